"""The values that the two halves hand to each other: what was made, what was recorded, where each word looked.

Every array is copied once and frozen. Values neither draw nor write files.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from voxplain.arrays import active_mean, frozen, settled
from voxplain.geometry import Geometry
from voxplain.resampling import Mode, resample_to
from voxplain.tokens import TokenizedPrompt, label

Scaling = Literal["raw", "words", "log_ratio"]
CAVEAT = "A map shows where a word was attended to, or what it changed; not why, and it is no segmentation."


class UnmeasuredError(ValueError):
    """A span of several words that has to be measured as a whole, and was not."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A generated (or real) image `[channels, *spatial]` in physical units, float32, and where it is."""

    image: Float[np.ndarray, "channels *spatial"]
    geometry: Geometry
    prompt: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "HU"

    def __post_init__(self) -> None:
        image = settled(self.image, self.geometry.shape, f"the sample of {self.prompt!r}", leading=1)
        object.__setattr__(self, "image", image)


@dataclass(frozen=True, slots=True, eq=False)
class Heatmap:
    """How strongly one word acts on each cell; not normalized. Negative only on the scale log_ratio."""

    label: str
    values: Float[np.ndarray, "*spatial"]
    geometry: Geometry

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", settled(self.values, self.geometry.shape, self.label))

    def resize(self, geometry: Geometry, mode: Mode = "linear") -> "Heatmap":
        """The heatmap at the cells of another geometry; 0 outside its own field of view."""
        return Heatmap(self.label, resample_to(self.values, self.geometry, geometry, mode), geometry)

    @property
    def peak(self) -> tuple[int, ...]:
        """The index of the largest value; of equal ones the first."""
        return tuple(int(i) for i in np.unravel_index(self.values.argmax(), self.values.shape))


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Yes or no at every cell: a thresholded heatmap, or the truth."""

    label: str
    values: Bool[np.ndarray, "*spatial"]
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.values.dtype != np.bool_:
            raise ValueError(f"{self.label!r}: a mask is boolean, not {self.values.dtype}; threshold the values first")
        object.__setattr__(self, "values", settled(self.values, self.geometry.shape, self.label, kind=np.bool_))

    def resize(self, geometry: Geometry) -> "Mask":
        """The mask at the cells of another geometry, by nearest cell; False outside its own field of view."""
        values = resample_to(self.values.astype(np.float32), self.geometry, geometry, "nearest")
        return Mask(self.label, values > 0.5, geometry)


@dataclass(frozen=True, slots=True)
class MapKey:
    """What one recorded mean is over: all calls on a grid, or only those of one layer, head or bin of steps."""

    grid: tuple[int, ...]
    layer: str | None = None
    head: int | None = None
    bin: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AttentionMaps:
    """What was recorded for one sample: mean attention `[rows + 1, *grid]` a key, the last row being summed padding.

    `counts` says how many (layer, head, step) maps each mean holds; `geometry` is the image's.
    """

    prompt: TokenizedPrompt
    geometry: Geometry
    means: Mapping[MapKey, Float[np.ndarray, "..."]]
    counts: Mapping[MapKey, int]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.means or self.means.keys() != self.counts.keys():
            raise ValueError(f"{len(self.means)} means and {len(self.counts)} counts: expected one count for each mean")
        rows, means = len(self.prompt.kept) + 1, {}
        for key, mean in self.means.items():
            shape, count = (rows, *key.grid), self.counts[key]
            if mean.shape != shape or len(key.grid) != self.geometry.ndim or count < 1:
                raise ValueError(f"{key}: a mean {mean.shape} of {count} calls; expected {shape} of at least one")
            means[key] = frozen(mean, np.float32)
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "counts", dict(self.counts))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How maps are made of a run: what to accumulate apart, which layers count, how to scale, and who said so.

    `layers` are fnmatch patterns on module paths; None means all, () that a model has yet to name them.
    With `whole_spans` a phrase of several words is measured as a whole instead of averaged over its words.
    """

    name: str
    source: str
    formula: str
    accumulate: frozenset[str] = frozenset()
    layers: tuple[str, ...] | None = None
    scaling: Scaling = "raw"
    whole_spans: bool = False
    needs_attention: bool = True

    def __post_init__(self) -> None:
        if unknown := self.accumulate - {"layer", "head", "bin"}:
            raise ValueError(f"recipe {self.name!r} accumulates {sorted(unknown)}; it can be layer, head, bin")


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """One map for every kept token, `[rows, *grid]` on the finest recorded grid, and the padding's summed map.

    Rows: start, pieces, end (as `prompt.kept`). For attention, maps and padding sum to one at every cell.
    `phrases` holds spans that were measured as a whole, by their rows; `controls` maps of words that mean nothing here.
    """

    maps: Float[np.ndarray, "rows *grid"]
    padding: Float[np.ndarray, "*grid"]
    prompt: TokenizedPrompt
    geometry: Geometry
    recipe: Recipe
    image_geometry: Geometry
    provenance: Mapping[str, Any] = field(default_factory=dict)
    phrases: Mapping[tuple[int, ...], np.ndarray] = field(default_factory=dict)
    controls: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, name = self.geometry.shape, f"attribution {self.recipe.name!r}"
        if len(self.maps) != len(self.prompt.kept):
            raise ValueError(f"{name}: {len(self.maps)} rows, but the prompt keeps {len(self.prompt.kept)}")
        if self.image_geometry.ndim != self.geometry.ndim:
            raise ValueError(f"{name}: grid {shape} and image {self.image_geometry.shape} differ in their axes")
        object.__setattr__(self, "maps", settled(self.maps, shape, f"{name}, maps", leading=1))
        object.__setattr__(self, "padding", settled(self.padding, shape, f"{name}, padding"))
        for part in ("phrases", "controls"):
            extra = {key: settled(each, shape, f"{name}, {part} {key!r}") for key, each in getattr(self, part).items()}
            object.__setattr__(self, part, extra)

    def word(self, phrase: str, occurrence: int | None = None) -> Heatmap:
        """The map of a word or phrase: the mean over its pieces, or its own pass where the recipe measures spans whole.

        Raises PhraseError for a phrase that is absent, cut off or ambiguous, and UnmeasuredError for a span of several
        words that such a recipe has not measured.
        """
        rows, name = self.prompt.find(phrase, occurrence), self.prompt.name(phrase, occurrence)
        if rows in self.phrases:
            return Heatmap(name, self.phrases[rows], self.geometry)
        if self.recipe.whole_spans and sum(not set(rows).isdisjoint(word.rows) for word in self.prompt.words) > 1:
            raise UnmeasuredError(
                f"recipe {self.recipe.name!r} measures a span as a whole, and {name!r} was not measured: "
                f"ask for it by `voxplain effect RUN {name!r}`, or for one of its words"
            )
        return Heatmap(name, self.maps[list(rows)].mean(0), self.geometry)

    def words(self) -> list[Heatmap]:
        """One map a word, in the order of the prompt."""
        return [Heatmap(label(w), self.maps[list(w.rows)].mean(0), self.geometry) for w in self.prompt.words]

    def joint(self, phrases: Sequence[str], fraction: float = 0.25) -> Heatmap:
        """One map of several phrases; the rule is that of `masks.joint`, on the native grid."""
        if not phrases:
            raise ValueError("joint needs at least one phrase")
        maps = [self.word(phrase) for phrase in phrases]
        values = active_mean(np.stack([heatmap.values for heatmap in maps]), fraction)
        return Heatmap(" + ".join(heatmap.label for heatmap in maps), values, self.geometry)

    def mass(self) -> dict[str, float]:
        """Each word's share of everything, and that of "[start]", "[end]", "[padding]" and "[other]" (punctuation and
        words that were cut in half). Shares sum to one. Refused for maps that hold negative values.
        """
        if min(self.maps.min(), self.padding.min()) < 0:
            raise ValueError("maps on a logarithmic scale have no mass; take the raw attribution")
        sums = self.maps.reshape(len(self.maps), -1).sum(1, dtype=np.float64)
        padding = float(self.padding.sum(dtype=np.float64))
        total = (sums.sum() + padding) or 1.0
        special = {"[start]": self.prompt.start, "[end]": self.prompt.end}
        rows = {name: [self.prompt.kept.index(at)] for name, at in special.items() if at is not None}
        rows |= {label(word): list(word.rows) for word in self.prompt.words}
        shares = {name: float(sums[of].sum() / total) for name, of in rows.items()}
        rest = sorted(set(range(len(sums))) - {row for of in rows.values() for row in of})
        return shares | {"[other]": float(sums[rest].sum() / total), "[padding]": padding / total}


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """The latents that were kept on the way, `[steps, channels, *latent]`, with their noise levels and step numbers."""

    latents: Float[np.ndarray, "steps channels *latent"]
    timesteps: tuple[float, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.latents) == len(self.timesteps) == len(self.steps) > 0:
            sizes = f"{len(self.latents)} latents, {len(self.timesteps)} timesteps, {len(self.steps)} steps"
            raise ValueError(f"a trajectory needs as many of each, and one at least, but got {sizes}")
        object.__setattr__(self, "latents", frozen(self.latents, np.float32))

    def at(self, numbers: Iterable[int]) -> "Trajectory":
        """Some of the states, counted from 0; one at least."""
        some = list(numbers)
        levels, steps = tuple(self.timesteps[i] for i in some), tuple(self.steps[i] for i in some)
        return Trajectory(self.latents[some], levels, steps)


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What `explain` returns and a run folder holds: the sample and an attribution for each recipe.

    `honesty` says by label how far a word can be believed; `measure` makes the effect map of a span on request.
    """

    sample: Sample
    prompt: TokenizedPrompt
    attributions: Mapping[str, Attribution]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    states: Trajectory | None = None
    honesty: Mapping[str, Any] = field(default_factory=dict)
    measure: Callable[[str], Heatmap] | None = None

    def word(self, phrase: str, occurrence: int | None = None, recipe: str = "mean") -> Heatmap:
        """The recipe's map of a word or phrase; what must be measured as a whole is measured now."""
        if recipe not in self.attributions:
            raise ValueError(f"there is no recipe {recipe!r} here; there are {', '.join(self.attributions) or 'none'}")
        try:
            return self.attributions[recipe].word(phrase, occurrence)
        except UnmeasuredError:
            if self.measure is None:
                raise
            return self.measure(self.prompt.name(phrase, occurrence))

    def sure(self, phrase: str, recipe: str | None = None) -> bool:
        """False if the recipe's maps tell no word of the phrase apart from one that means nothing; None: any recipe's.

        True where that was not tested. Statistics over seeds go by the verdict of all recipes.
        """
        rows = set(self.prompt.find(phrase))
        entries = [self.honesty.get(label(word), {}) for word in self.prompt.words if rows & set(word.rows)]
        facts = [(entry.get("recipes") or {}).get(recipe, entry) for entry in entries]
        return not facts or any(known.get("distinguishable") is not False for known in facts)

    def _repr_html_(self) -> str:
        """A small table for notebooks: where each word's maps peak, with warnings and the standing caveat."""
        head = "".join(f"<th>{escape(name)}: peak (mm)</th>" for name in self.attributions)
        rows = []
        for word in self.prompt.words:
            maps = [attribution.word(label(word)) for attribution in self.attributions.values()]
            peaks = [heatmap.geometry.world(np.array([heatmap.peak], float))[0] for heatmap in maps]
            cells = "".join(f"<td>{', '.join(f'{x:.0f}' for x in peak)}</td>" for peak in peaks)
            mark = "" if self.sure(label(word)) else " (not distinguishable)"
            rows.append(f"<tr><td>{escape(label(word))}{mark}</td>{cells}</tr>")
        table = f"<table><tr><th>word</th>{head}</tr>{''.join(rows)}</table>"
        notes = "".join(f"<p>{escape(note)}</p>" for note in (*self.provenance.get("warnings", ()), CAVEAT))
        return f"<div><p><b>{escape(self.prompt.text)}</b></p>{table}{notes}</div>"
