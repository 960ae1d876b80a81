"""A model on a data set, or run folders with masks: every case a row, and a report of all of them.

The read-out is `studies.grounding`; beside each method stand controls that know nothing of the model's attention, the
first sub-token's map, the truth of another case with the same text, and what the method's own grid could reach.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from voxplain.adapters import as_adapter
from voxplain.datasets.base import Excluded
from voxplain.maps import Attribution, Heatmap, Mask, UnmeasuredError
from voxplain.metrics.base import Undefined
from voxplain.metrics.controls import (
    abs_from_mean,
    center_prior,
    gradient_magnitude,
    mean_mask,
    random_half,
    region_lit,
)
from voxplain.metrics.localization import native_oracle
from voxplain.runner import Progress, run
from voxplain.scoring import MASK_METRICS, METRICS, values
from voxplain.studies import rules
from voxplain.studies.baselines import CONTROLS, check, measure, see
from voxplain.studies.benchmark_cases import Source, Trial
from voxplain.studies.benchmark_report import ROWS, write_report
from voxplain.studies.benchmark_tables import MAIN, SWAPPED
from voxplain.studies.benchmark_words import MINIMUM, tagger, word_rows
from voxplain.studies.grounding import STEPS, USED
from voxplain.tokens import PhraseError

Opener = Callable[[], Any]  # loads the model, where it is called
ALL = (*METRICS, *MASK_METRICS)


@dataclass(frozen=True, slots=True)
class Settings:
    """How cases are read and scored. `methods` are recipes or methods of `studies.baselines`; the first one leads.

    Case i is noised from `seed` + i. `spacy` names a pipeline for parts of speech; None takes the phantom grammar's.
    """

    methods: tuple[str, ...] = ("mean",)
    profile: str = "renoise"
    seed: int = 0
    steps: int = STEPS
    used: int = USED
    metrics: tuple[str, ...] = ALL
    spacy: str | None = None

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods {self.methods}: give one or more, each once")
        if unknown := [name for name in self.metrics if name not in ALL]:
            raise ValueError(f"unknown metrics {', '.join(unknown)}; known: {', '.join(ALL)}")


class Scorer:
    """What a worker is: the model, loaded once, and the row of each case. `opener` is None for run folders."""

    def __init__(self, opener: Opener | None, source: Source, settings: Settings) -> None:
        self.source, self.settings = source, settings
        self.adapter = None if opener is None else as_adapter(opener())
        self.tag = tagger(settings.spacy)[1]
        self.priors: dict[Any, np.ndarray | None] = {}

    def __call__(self, number: int) -> dict[str, Any]:
        trial = self.source.trial(number, self.adapter)
        rule = "words" if trial.words else "all"
        run = trial.explanation
        prompt = as_adapter(self.adapter).tokenize(trial.text) if run is None else run.prompt
        if not trial.words and prompt.truncated:
            raise Excluded("the text is longer than the context, and no words name the truth")
        try:
            made, cost = self._attributions(number, trial)
            maps = {name: read(attribution, rule, trial.words) for name, attribution in made.items()}
        except PhraseError as error:
            raise Excluded("the words are not in the text as far as it was read") from error
        lead = self.settings.methods[0]
        first, grid = made[lead], maps[lead].geometry.shape
        found = {name: values(heat, trial.truth, trial.region, self.settings.metrics) for name, heat in maps.items()}
        main = [name for name in self.settings.metrics if name in MAIN]
        others = dict(self._controls(number, trial, grid))
        words: list[list[Any]] = []
        if first.recipe.needs_attention:
            tags = trial.tags if trial.tags and not self.settings.spacy else self.tag(trial.text)
            words = word_rows(first, trial.truth, tags)
            if trial.words:
                others[f"{lead}, first sub-token"] = rules.by_rule(first, "first", trial.words)
        found |= {name: values(heat, trial.truth, trial.region, main) for name, heat in others.items()}
        partner = self.source.partner(number, self.adapter)
        if partner is not None and partner.any() and partner.shape == trial.truth.values.shape:
            other = Mask(trial.label, partner, trial.truth.geometry)
            found |= {name + SWAPPED: values(heat, other, trial.region, main) for name, heat in maps.items()}
        about = {"label": trial.label, "group": trial.group, "patient": trial.patient, "share": trial.share}
        weights = as_adapter(self.adapter).weights_hash if run is None else run.provenance.get("weights")
        about |= {"rule": rule, "weights": weights}
        return {**about, "unknown": self._unknown(trial), "maps": found, "cost": cost, "words": words}

    def _unknown(self, trial: Trial) -> list[str]:
        """What of the words that name the truth the model never saw in training, as far as it knows."""
        named = " ".join(word.partition("#")[0] for word in trial.words)
        return [] if self.adapter is None else self.adapter.unknown_words(named)

    def _attributions(self, number: int, trial: Trial) -> tuple[dict[str, Attribution], dict[str, list[float]]]:
        """The attribution of each method, and what it took."""
        settings = self.settings
        if trial.explanation is not None:
            kept = trial.explanation.attributions
            if missing := [name for name in settings.methods if name not in kept]:
                raise ValueError(f"the run holds {', '.join(kept)}, and no {', '.join(missing)}")
            return {name: kept[name] for name in settings.methods}, {}
        adapter = as_adapter(self.adapter)
        spans = rules.spans(adapter.tokenize(trial.text), trial.words) if trial.words else None
        levels: dict[str, Any] = {"profile": settings.profile, "seed": settings.seed + number}
        seen = None
        if not set(settings.methods) <= set(CONTROLS):
            levels |= {"steps": settings.steps, "used": settings.used}
            seen = see(adapter, trial.sample, trial.text, settings.methods, spans=spans, **levels)
        made, cost = {}, {}
        for name in settings.methods:
            given = {**levels, "spans": spans, "seen": seen, "region": trial.region}
            one = measure(adapter, trial.sample, trial.text, name, **given)
            made[name] = one.attribution
            cost[name] = [one.cost.forward, one.cost.backward, round(one.cost.cpu_seconds, 4)]
        return made, cost

    def _controls(self, number: int, trial: Trial, grid: tuple[int, ...]) -> dict[str, Heatmap]:
        """Maps that know nothing of attention, and the truth as the grid of the method could show it."""
        geometry, image = trial.truth.geometry, trial.sample.image.mean(0)
        coarse, spacing = geometry.at(grid), geometry.spacing if geometry.spacing_known else None
        found = {
            "random half": Heatmap("random", random_half(grid, self.settings.seed + number), coarse),
            "center": Heatmap("center", center_prior(grid), coarse),
            "|value - mean|": Heatmap("unusual", abs_from_mean(image), geometry),
            "gradient of the image": Heatmap("edges", gradient_magnitude(image, spacing), geometry),
        }
        if trial.region is not None:
            found["region lit"] = Heatmap("region", region_lit(trial.region.values), geometry)
        prior = self._prior(trial)
        if prior is not None and prior.shape == geometry.shape:
            found["mean training mask"] = Heatmap("prior", prior, geometry)
        return {**found, "oracle of the grid": Heatmap("oracle", native_oracle(trial.truth.values, grid), geometry)}

    def _prior(self, trial: Trial) -> np.ndarray | None:
        key = self.source.prior(trial)
        if key is not None and key not in self.priors:
            try:
                self.priors[key] = mean_mask(self.source.masks(key, self.adapter))
            except (Undefined, ValueError):  # no training case, or pictures of several sizes
                self.priors[key] = None
        return self.priors.get(key)


def read(attribution: Attribution, rule: str, words: tuple[str, ...]) -> Heatmap:
    """The map of a token rule; a phrase that was to be measured whole, and was not, is the mean over its words."""
    try:
        return rules.by_rule(attribution, rule, words)
    except UnmeasuredError:
        return rules.by_rule(replace(attribution, recipe=replace(attribution.recipe, whole_spans=False)), rule, words)


def evaluate(
    source: Source,
    out: str | os.PathLike[str],
    *,
    opener: Opener | None = None,
    model: str = "",
    settings: Settings | None = None,
    minimum: int = MINIMUM,
    command: str = "",
    overwrite: bool = False,
    progress: Progress | None = None,
    **running: Any,
) -> Path:
    """Score every case of the source and write the report's folder; goes on where it stopped.

    `opener` loads the model that `model` names, once a worker; neither is needed for `Runs`. Words of a finding are
    shown that occur more than `minimum` times. `running` are options of `runner.run`: executor, workers, address, gpus,
    retry. The folder holds rows.jsonl, results.json, report.html, tables (CSV, LaTeX) and figures (PNG, SVG).

    Raises FileExistsError for a folder that holds something else, and ValueError where it holds rows of other settings
    (`overwrite` begins anew), for unknown methods and profiles, and where no case could be scored. Whether a model's
    weights changed is seen only where its adapter hashes them.
    """
    chosen, folder = settings or Settings(), Path(out)
    for method in chosen.methods if opener is not None else ():  # run folders have names of their own
        check(method, chosen.profile)
    rows = folder / ROWS
    if folder.exists() and not (folder.is_dir() and (rows.is_file() or not any(folder.iterdir()))):
        raise FileExistsError(f"{folder} holds no evaluation, so nothing is written there; choose another folder")
    unsaid = {"spacy"} if opener is not None else {"spacy", "profile", "steps", "used"}  # runs were read when made
    settled = {name: value for name, value in asdict(chosen).items() if name not in unsaid}
    about = {"model": model, "source": source.about(), **settled, "parts_of_speech": tagger(chosen.spacy)[0]}
    prepare = partial(Scorer, opener, source, chosen)
    running |= {"about": about, "private": source.credentialed, "anew": overwrite, "progress": progress}
    run(source.cases(), prepare, rows, **running)
    write_report(folder, source, about, minimum=minimum, command=command)
    return folder
