"""Phantoms as the cases of an evaluation: drawn on the fly, with exact masks, priors and partners."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
from jaxtyping import Bool

from voxplain.adapters.base import Adapter
from voxplain.datasets.base import Excluded
from voxplain.datasets.phantom.cases import SPLITS, Case, draw, held_out, plan_case, plan_finding, radiograph
from voxplain.datasets.phantom.findings import CORE, Plan
from voxplain.datasets.phantom.impressions import Impression, Mention, compose
from voxplain.geometry import Geometry
from voxplain.maps import Mask, Sample
from voxplain.studies.benchmark_cases import PRIOR, Source, Trial, model_of
from voxplain.studies.fitting import fitted
from voxplain.tokens import PhraseError, TokenizedPrompt

DRAWN = {2: radiograph, 3: draw}  # a phantom by the axes of its image


@dataclass(frozen=True)
class Phantoms(Source):
    """`count` phantoms of a split, each kind of `kinds` in turn, with a composed text that names the finding.

    Cases of the pairs that training never shows are the group "held out"; those of the split "shift" "out of range".
    """

    count: int
    split: str = "test"
    kinds: tuple[str, ...] = CORE
    name: str = "phantoms"

    def __post_init__(self) -> None:
        if self.split not in SPLITS or self.split == "train" or self.count < 1:
            raise ValueError(f"{self.count} phantoms of {self.split!r}; give 1 or more of dev, test or shift")

    def about(self) -> dict[str, Any]:
        return {"data": self.name, "split": self.split, "kinds": list(self.kinds)}  # a larger count keeps these rows

    def cases(self) -> list[tuple[str, int]]:
        return [(f"{self.split}-{number:05d}", number) for number in range(self.count)]

    def trial(self, number: int, adapter: Adapter | None) -> Trial:
        geometry = model_of(adapter).geometry
        plans = self._plans(number)
        case, said, mention = self._said(number, plans, number, geometry.ndim)
        unit = "HU" if geometry.ndim == 3 else "relative attenuation"
        sample = fitted(Sample(case.image, case.geometry, said.text, unit=unit), geometry)
        truth = carried(Mask(mention.kind, _some(mention.mask), case.geometry), sample.geometry)
        if not truth.values.any():
            raise Excluded("the truth is thinner than a cell of the frame")
        region = carried(Mask(mention.region, case.organs[mention.region], case.geometry), sample.geometry)
        group = "out of range" if self.split == "shift" else "held out" if held_out(plans[0]) else "seen"
        word = numbered(model_of(adapter).tokenize(said.text), mention.span)
        patient = f"{self.split}-{number}"
        return Trial(mention.kind, said.text, sample, truth, region, (word,), patient, group, said.tags)

    def partner(self, number: int, adapter: Adapter | None) -> Bool[np.ndarray, "*spatial"] | None:
        geometry, plans = model_of(adapter).geometry, self._plans(number)
        _, said, _ = self._said(number, plans, number, geometry.ndim)
        try:
            other, again, mention = self._said(number + 10**6, plans, number, geometry.ndim)
        except Excluded:
            return None
        if again.text != said.text:
            return None
        sample = fitted(Sample(other.image, other.geometry, said.text), geometry)
        return carried(Mask("", _some(mention.mask), other.geometry), sample.geometry).values

    def prior(self, trial: Trial) -> Hashable | None:
        return trial.label, trial.region.label if trial.region else ""

    def masks(self, prior: Any, adapter: Adapter | None) -> Iterator[Bool[np.ndarray, "*spatial"]]:
        kind, region = prior
        geometry, rng = model_of(adapter).geometry, np.random.default_rng((80, *str(prior).encode()))
        for number in range(PRIOR):
            plan = plan_finding(rng, kind)
            while region not in ("body", "lungs", f"{plan.side} lung", plan.lobe):
                plan = plan_finding(rng, kind)
            case = DRAWN[geometry.ndim](5_000_000 + number, "train", [plan])
            for finding in case.findings:
                sample = fitted(Sample(case.image, case.geometry, ""), geometry)
                yield carried(Mask("", finding.mask, case.geometry), sample.geometry).values

    def _plans(self, number: int) -> list[Plan]:
        """The finding that is looked for, and up to two others."""
        rng = np.random.default_rng((81, SPLITS[self.split], number))
        first = plan_finding(rng, self.kinds[number % len(self.kinds)])
        return [first, *[plan for plan in plan_case(rng) if plan.kind != first.kind][:2]]

    def _said(self, index: int, plans: Sequence[Plan], wording: int, axes: int) -> tuple[Case, Impression, Mention]:
        """A phantom with these plans, its text, and the mention of the first plan."""
        case = _drawn(axes, index, self.split, tuple(plans))
        said = compose(case, np.random.default_rng((82, SPLITS[self.split], wording)))
        kind = plans[0].kind
        mentions = [one for one in said.findings if one.kind == kind and not one.negated]
        if not mentions:
            raise Excluded("the finding was too small to be drawn")
        return case, said, mentions[0]


@lru_cache(maxsize=1)
def _drawn(axes: int, number: int, split: str, plans: tuple[Plan, ...]) -> Case:
    """A case is asked for twice in a row: for itself and for its partner."""
    return DRAWN[axes](number, split, plans)


def _some(mask: np.ndarray | None) -> Bool[np.ndarray, "*spatial"]:
    if mask is None or not mask.any():
        raise Excluded("the truth is empty")
    return mask


def numbered(prompt: TokenizedPrompt, span: tuple[int, int]) -> str:
    """The words at a span, numbered where the text has them more than once; `Excluded` where they fell off."""
    phrase = prompt.text[slice(*span)]
    for occurrence in count():
        try:
            if prompt.match(phrase, occurrence) == span:
                return prompt.name(phrase, occurrence)
        except PhraseError:
            break
    raise Excluded("the words fell off the context")


def carried(mask: Mask, geometry: Geometry) -> Mask:
    return mask if mask.geometry.same_as(geometry) else mask.resize(geometry)
