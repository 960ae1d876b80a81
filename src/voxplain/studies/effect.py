"""The recipe `effect` (ours): not where a word was looked at, but what the prediction owes to it.

    e_w(x) = mean over kept steps t of |f(z_t, c) - f(z_t, c without w)|(x) / rms over cells of |f(z_t, c)|

|.| is the norm over the latent's channels, f the conditional prediction, z_t the states of a finished generation. A
value of 0.1 says: without the word the prediction at this cell would move by a tenth of its typical size.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voxplain import recipes
from voxplain.adapters.base import Adapter, Run, Step, without
from voxplain.maps import Attribution, Explanation, Heatmap, Recipe, Sample, Trajectory
from voxplain.tokens import TokenizedPrompt

KEPT = 8  # states of a generation that the effect is averaged over
LIMIT = 16  # rows that the network takes at once
TOGETHER = 8  # of those, rows of several states: on a CPU more of them take longer each
ROUNDING = 1e-6  # relative changes below this are what float32 leaves of none, and count as 0
PROBE = "probe"  # the branch of these rows: they belong to no generation, so no trace listens to them

How = Literal["after", "before"]
Progress = Callable[[int, int], None]  # (done, total)
Pass = tuple[Tensor, float, Tensor, Tensor]
"""A state as `passes` gives it: latent, noise level, prediction with the whole prompt, predictions without words."""


def kept_steps(steps: int, count: int = KEPT) -> tuple[int, ...]:
    """The middles of `count` equal parts of a run of `steps` steps; every step of a shorter run."""
    count = min(steps, count)
    return tuple((2 * part + 1) * steps // (2 * count) for part in range(count))


@contextmanager
def keeping(adapter: Adapter, count: int = KEPT) -> Iterator[Callable[[], list[Trajectory]]]:
    """Keep `count` states of the generation inside the block; call what it yields for one trajectory a sample."""
    wanted: set[int] = set()
    kept: dict[int, list[tuple[int, float, np.ndarray]]] = {}

    def begin(run: Run) -> None:
        wanted.update(kept_steps(run.steps, count))

    def keep(step: Step) -> None:
        if step.step in wanted:
            for sample, latent in zip(step.samples, step.latent, strict=True):
                state = latent.detach().float().cpu().numpy().copy()
                kept.setdefault(sample, []).append((step.step, float(step.timestep), state))

    def trajectories() -> list[Trajectory]:
        runs = [list(zip(*kept[sample], strict=True)) for sample in sorted(kept)]
        return [Trajectory(np.stack(latents), tuple(levels), tuple(numbers)) for numbers, levels, latents in runs]

    with adapter.on_run(begin), adapter.on_step(keep):
        yield trajectories


def removal(adapter: Adapter, prompt: TokenizedPrompt) -> How:
    """How words are best removed: as the model says, else "after" the text encoder, but "before" it where the text
    becomes one vector.
    """
    if adapter.words_removed:
        return adapter.words_removed
    with torch.no_grad():
        return "after" if adapter.encode_prompt(prompt).shape[1] == adapter.text_keys(prompt) else "before"


def differences(
    adapter: Adapter,
    prompt: TokenizedPrompt,
    states: Trajectory,
    removals: Sequence[tuple[int, ...]],
    *,
    how: How | None = None,
    limit: int = LIMIT,
    progress: Progress | None = None,
) -> Float[np.ndarray, "removals *grid"]:
    """What the prediction owes to each set of rows of the prompt, as the formula of this module has it.

    `how`: "after" takes the rows' vectors out of the encoded prompt, so other words still carry what the encoder
    mixed into them; "before" encodes the prompt anew without their characters; None asks `removal`. Contexts of equal
    length run in one batch of at most `limit` rows, and several states, too, where the adapter `mixes_levels`.
    Costs (removals + 1) rows of the network a state.
    """
    return changed(passes(adapter, prompt, states, removals, how=how, limit=limit, progress=progress))


def changed(made: Iterable[Pass]) -> Float[np.ndarray, "removals *grid"]:
    """`differences` of passes that were made before."""
    total, count = 0.0, 0
    for _, level, full, others in made:
        size = full.norm(dim=0).square().mean().sqrt()
        if not size > 0:  # NaN fails this too
            raise ValueError(f"the prediction at timestep {level:g} has size {size:g}: nothing to be relative to")
        changes = (others - full).norm(dim=1) / size
        total, count = total + changes.where(changes > ROUNDING, 0.0), count + 1
    assert isinstance(total, Tensor)
    return (total / count).cpu().numpy()


def passes(
    adapter: Adapter,
    prompt: TokenizedPrompt,
    states: Trajectory,
    removals: Sequence[tuple[int, ...]],
    *,
    how: How | None = None,
    limit: int = LIMIT,
    branch: str = PROBE,
    progress: Progress | None = None,
) -> Iterator[Pass]:
    """At each state: the latent `[1, channels, *grid]`, its noise level, the prediction with the whole prompt
    `[channels, *grid]` and that without each set of rows `[removals, channels, *grid]`; options as in `differences`.

    The row with the whole prompt is of `branch`: on "text" listeners hear it, so that attention is read on the way.
    """
    how = how or removal(adapter, prompt)
    with torch.no_grad():
        whole = adapter.encode_prompt(prompt)
        contexts = [whole, *(adapter.remove(prompt, rows, how) for rows in removals)]
    batches = batched([context.shape[1] for context in contexts], limit)
    size = max(1, min(TOGETHER, limit) // max(map(len, batches))) if adapter.mixes_levels else 1
    for first in range(0, len(states.timesteps), size):
        levels = states.timesteps[first : first + size]
        latents = torch.tensor(states.latents[first : first + size], device=whole.device, dtype=whole.dtype)
        predictions: dict[tuple[int, int], Tensor] = {}
        for batch in batches:
            pairs = list(product(range(len(levels)), batch))
            rows, named = [number for number, _ in pairs], [(0, PROBE if index else branch) for _, index in pairs]
            with torch.no_grad():
                context = torch.cat([contexts[index] for _, index in pairs])
                made = adapter.predict(latents[rows], [levels[row] for row in rows], context, rows=named).float()
            predictions.update(zip(pairs, made, strict=True))
        for number, level in enumerate(levels):
            made = torch.stack([predictions[number, index] for index in range(len(contexts))])
            yield latents[number : number + 1], level, made[0], made[1:]
        if progress:
            progress(first + len(levels), len(states.timesteps))


def measure_words(
    adapter: Adapter,
    prompt: TokenizedPrompt,
    states: Trajectory,
    *,
    how: How | None = None,
    limit: int = LIMIT,
    progress: Progress | None = None,
) -> Attribution:
    """The effect of every word of the prompt: each of its pieces carries the word's map, all other rows are zero."""
    how = how or removal(adapter, prompt)
    rows = rows_of_words(prompt)
    changes = differences(adapter, prompt, states, rows, how=how, limit=limit, progress=progress)
    return by_word(adapter, prompt, recipes.get("effect"), changes, {"removed": how, **origin(states)})


def rows_of_words(prompt: TokenizedPrompt) -> list[tuple[int, ...]]:
    """The rows of each word; ValueError for a prompt that has none."""
    if not prompt.words:
        raise ValueError(f"the prompt {prompt.text!r} has no word whose effect could be measured")
    return [word.rows for word in prompt.words]


def origin(states: Trajectory) -> dict[str, Any]:
    """What is remembered of states that a map was measured at."""
    return {"steps": list(states.steps), "timesteps": list(states.timesteps)}


def by_word(
    adapter: Adapter,
    prompt: TokenizedPrompt,
    recipe: Recipe,
    changes: Float[np.ndarray, "words *grid"],
    provenance: Mapping[str, Any],
) -> Attribution:
    """An attribution of one map a word: each of its pieces carries the word's map, all other rows are zero."""
    maps = np.zeros((len(prompt.kept), *changes.shape[1:]), np.float32)
    for word, change in zip(prompt.words, changes, strict=True):
        maps[list(word.rows)] = change
    return Attribution(
        maps=maps,
        padding=np.zeros(changes.shape[1:], np.float32),
        prompt=prompt,
        geometry=adapter.geometry.at(changes.shape[1:]),
        recipe=recipe,
        image_geometry=adapter.geometry,
        provenance=provenance,
    )


def measure_phrase(
    adapter: Adapter,
    source: Explanation | Trajectory,
    phrase: str,
    *,
    prompt: TokenizedPrompt | None = None,
    occurrence: int | None = None,
    how: How | None = None,
) -> Heatmap:
    """The effect of a span of words, removed as a whole: an own pass at the kept states.

    `source` is an `Explanation` (also one loaded from a run folder) or a `Trajectory` with the `prompt` it was made
    from. `how` is by default what the explanation's words were measured with.
    """
    if isinstance(source, Explanation):
        if source.states is None:
            raise ValueError("this explanation keeps no states; explain it again with the recipe 'effect'")
        if how is None and "effect" in source.attributions:
            how = source.attributions["effect"].provenance.get("removed")
        prompt, states = source.prompt, source.states
    else:
        states = source
    if prompt is None:
        raise ValueError("give the prompt that these states were made from: measure_phrase(..., prompt=...)")
    rows = prompt.find(phrase, occurrence)
    change = differences(adapter, prompt, states, [rows], how=how)[0]
    return Heatmap(prompt.name(phrase, occurrence), change, adapter.geometry.at(change.shape))


def with_phrase(explanation: Explanation, heatmap: Heatmap, rows: tuple[int, ...]) -> Explanation:
    """The explanation with the measured effect of the phrase at `rows` in it."""
    effect = explanation.attributions["effect"]
    effect = replace(effect, phrases={**effect.phrases, tuple(rows): heatmap.values})
    return replace(explanation, attributions={**explanation.attributions, "effect": effect})


@dataclass(frozen=True, slots=True, eq=False)
class TotalEffect:
    """What a phrase changed in the end: |with - without| in the sample's unit, and the two samples."""

    heatmap: Heatmap
    sample: Sample
    without: Sample


def total(
    adapter: Adapter,
    prompt: str,
    phrase: str,
    *,
    seed: int = 0,
    occurrence: int | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    progress: Progress | None = None,
) -> TotalEffect:
    """Generate twice from the same noise, with the phrase and without it, and take the difference (HU for CT).

    The second prompt is the first less the phrase's characters. From the same seed the two images share what the
    phrase does not touch, but early differences spread: this is the whole consequence, not a location of the word.
    """
    tokens = adapter.tokenize(prompt)
    rest = without(tokens, tokens.find(phrase, occurrence))
    if not adapter.tokenize(rest).words:
        raise ValueError(f"without {phrase!r} nothing is left of the prompt; add the words that should stay")
    options = {"seed": seed, "steps": steps, "guidance_scale": guidance_scale, "negative_prompt": negative_prompt}
    sample, other = (adapter.generate(text, **options, progress=progress) for text in (prompt, rest))
    assert isinstance(sample, Sample)
    assert isinstance(other, Sample)
    change = np.linalg.norm(sample.image - other.image, axis=0)  # over channels; one channel: the absolute difference
    return TotalEffect(Heatmap(tokens.name(phrase, occurrence), change, sample.geometry), sample, other)


def batched(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Indices in groups of equal length, at most `limit` in each: what can run in one batch."""
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(length, []).append(index)
    return [group[start : start + limit] for group in groups.values() for start in range(0, len(group), limit)]
