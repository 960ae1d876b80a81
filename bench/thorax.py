"""The figures of the model `thorax`: autoencoder, generation, localization, each beside its controls.

    python bench/thorax.py layers --split dev --count 60        # choose the localizing layers: on dev alone
    python bench/thorax.py autoencoder generation reader support guidance_1 twins phantoms --count 300
    python bench/thorax.py summary                                # bench/results/thorax.json

Each stage writes one JSON line a case into bench/runs/ and goes on where it stopped. Stages on the split `test` append
a line to bench/results/test_log.jsonl: test seeds report, they never choose.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import RESULTS, write
from scipy import ndimage

import voxplain
from voxplain.adapters import as_adapter
from voxplain.adapters.base import Adapter
from voxplain.datasets.phantom import segmenter
from voxplain.datasets.phantom.cases import Case, draw, plan_case
from voxplain.datasets.phantom.findings import CORE, KINDS, LOBAR, LOBES, SIDED, Plan
from voxplain.datasets.phantom.impressions import Impression, Mention, compose, negated_twin, request
from voxplain.datasets.phantom.registration import register
from voxplain.geometry import Geometry
from voxplain.maps import Attribution, Heatmap, Recipe, Sample, Trajectory
from voxplain.metrics import controls, localization
from voxplain.metrics.base import Undefined
from voxplain.metrics.statistics import bootstrap, wilson
from voxplain.models.latent_diffusion import LatentDiffusion
from voxplain.models.thorax import build
from voxplain.recipes import reduce
from voxplain.studies.benchmark_phantoms import DRAWN
from voxplain.studies.effect import differences, keeping
from voxplain.studies.grounding import record, renoise, thinned
from voxplain.studies.judging import LearnedReader, load_reader
from voxplain.studies.support import supports
from voxplain.tokens import TokenizedPrompt
from voxplain.tracing import trace

RUNS = Path(__file__).parent / "runs"
PER_LAYER = Recipe("per-layer", "ours", "as mean, every layer apart", accumulate=frozenset({"layer"}), layers=("*",))
OFFSET = 10_000  # prompts for generation use case numbers from here on


class Bench:
    """One model, one split, and the rows measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model: LatentDiffusion = voxplain.load(options.model)
        self.adapter = as_adapter(self.model)
        self.label = f"{self.model.weights_hash[:12]}-{options.split}"
        RUNS.mkdir(exist_ok=True)

    def stage(self, name: str, measure: Callable[[int], list[dict[str, Any]]], count: int) -> None:
        path = RUNS / f"{name}-{self.label}.jsonl"
        done = {json.loads(line)["case"] for line in path.read_text().splitlines()} if path.exists() else set()
        part, parts = map(int, self.options.part.split("/"))
        begun, left = time.monotonic(), [i for i in range(self.options.first + part, count, parts) if i not in done]
        for number, index in enumerate(left, start=1):
            rows = measure(index) or [{}]
            with path.open("a") as file:
                file.write("".join(json.dumps({"case": index, **row}) + "\n" for row in rows))
            spent = time.monotonic() - begun
            print(
                f"\r{name} {number}/{len(left)}, {spent / number * (len(left) - number):.0f} s left ",
                end="",
                file=sys.stderr,
            )
        print(file=sys.stderr)
        if self.options.split == "test":
            line = {"stage": name, "weights": self.model.weights_hash, "cases": count, "new": len(left)}
            with (RESULTS / "test_log.jsonl").open("a") as file:
                file.write(json.dumps({**line, "date": time.strftime("%Y-%m-%d")}) + "\n")

    # autoencoder and segmenter ------------------------------------------------------------------------------------

    def autoencoder(self, index: int) -> list[dict[str, Any]]:
        case = draw(index, self.options.split)
        again = self.model.decode(self.model.encode_image(case.image))[0, 0]
        low, high = self.model.config["intensity"]
        error = float(np.abs(np.clip(case.image[0], low, high) - again).mean())
        truth = [{"kind": f.kind, "side": f.side, "lobe": f.lobe} for f in case.findings]
        rows = {"truth": truth, "error": error}
        return [{**rows, "before": _found(case.image[0]), "after": _found(again)}]

    # generation ---------------------------------------------------------------------------------------------------

    def generation(self, index: int) -> list[dict[str, Any]]:
        """1 to 3 findings asked for in a bare or composed prompt; every tenth prompt asks for none."""
        plans, absent, prompt = self.prompted(index)
        with trace(self.adapter, PER_LAYER) as tracer, keeping(self.adapter) as states:
            sample = self.model.generate(prompt.text, seed=index, steps=self.options.steps)
        assert isinstance(sample, Sample)
        volume = sample.image[0]
        np.save(_volume_path(self.label, index), volume.round().astype(np.int16))
        found = segmenter.findings(volume)
        row: dict[str, Any] = {"asked": [_plan(p) for p in plans], "absent": absent, "found": [_seen(f) for f in found]}
        maps = tracer.maps()[0]
        tokens = self.adapter.tokenize(prompt.text)
        anatomy = register(volume)
        scores = []
        for mention, truth in _drawn(prompt.findings, found):
            if mention.kind not in CORE or truth is None:
                continue
            region = named_region(anatomy, mention.region, volume)
            named = {r.name: reduce(maps, r) for r in self.recipes()}
            scores.append(self._score(mention, tokens, truth, region, named, states()[0], volume))
            break
        return [{**row, "scores": scores}]

    def prompted(self, index: int) -> tuple[tuple[Plan, ...], list[str], Impression]:
        """What a prompt for generation asks for, which kind it denies, and its text."""
        rng = np.random.default_rng((77, draw_seed(self.options.split), index))
        plans = () if index % 10 == 9 else tuple(_asked(rng))
        absent = [str(rng.choice([k for k in KINDS if k not in {p.kind for p in plans}]))] if rng.random() < 0.3 else []
        return plans, absent, request(plans, rng, absent=absent, plain=bool(rng.random() < 0.5))

    def reader(self, index: int) -> list[dict[str, Any]]:
        """The learned judge on the volume that `generation` left; it, too, is blind to the prompt."""
        return [{"found": [_seen(f) for f in self.learned.read(self.volume(index))]}]

    def support(self, index: int) -> list[dict[str, Any]]:
        """In the volume that `generation` left: the evidence for each finding that was asked for, whether the rules
        find it, and the map of the one that `generation` scored.
        """
        volume, prompt = self.volume(index), self.prompted(index)[2]
        tokens, geometry = self.adapter.tokenize(prompt.text), self.adapter.geometry
        drawn = list(_drawn(prompt.findings, segmenter.findings(volume)))
        if not drawn:
            return []
        sample = Sample(volume[None], geometry, prompt.text)
        spans = [tuple(rows_of(tokens, mention.span)) for mention, _ in drawn]
        maps, evidence = supports(self.adapter, tokens, sample, renoise(self.adapter, sample, seed=index), spans)
        told = [
            {"kind": mention.kind, "found": truth is not None, "evidence": float(value)}
            for (mention, truth), value in zip(drawn, evidence, strict=True)
        ]
        score: dict[str, Any] = {}
        for (mention, truth), values in zip(drawn, maps, strict=True):
            if mention.kind in CORE and truth is not None:
                region = named_region(register(volume), mention.region, volume)
                score = _figures("support", _at(values, geometry), truth, region)
                break
        return [{"told": told, "score": score}]

    def volume(self, index: int) -> np.ndarray:
        """What `generation` made, in HU."""
        path = _volume_path(self.label, index)
        if not path.exists():
            raise SystemExit(f"{path} is missing; the stage generation comes first")
        return np.load(path).astype(np.float32)

    @cached_property
    def learned(self) -> LearnedReader:
        return load_reader()

    def recipes(self) -> list[Recipe]:
        chosen = {"mean": ("*",), "selected": tuple(self.adapter.localizing_layers)}
        return [replace(PER_LAYER, name=name, layers=layers) for name, layers in chosen.items() if layers]

    def guidance_1(self, index: int) -> list[dict[str, Any]]:
        rng = np.random.default_rng((77, draw_seed(self.options.split), index))
        plans = tuple(_asked(rng))
        prompt = request(plans, rng, plain=True)
        sample = self.model.generate(prompt.text, seed=index, steps=self.options.steps, guidance_scale=1)
        assert isinstance(sample, Sample)
        return [{"asked": [_plan(p) for p in plans], "found": _found(sample.image[0])}]

    def twins(self, index: int) -> list[dict[str, Any]]:
        """The same seed with a finding affirmed and denied."""
        rng = np.random.default_rng((78, draw_seed(self.options.split), index))
        kind = KINDS[index % len(KINDS)]
        affirmed, denied = negated_twin(Plan(kind), rng)
        found = {}
        for name, text in (("affirmed", affirmed.text), ("denied", denied.text)):
            sample = self.model.generate(text, seed=index, steps=self.options.steps)
            assert isinstance(sample, Sample)
            found[name] = sorted({f["kind"] for f in _found(sample.image[0])})
        return [{"kind": kind, **found}]

    # localization on phantoms -------------------------------------------------------------------------------------

    def phantoms(self, index: int) -> list[dict[str, Any]]:
        case, text, mention = self.mentioned(index)
        if mention is None or mention.mask is None or not mention.mask.any():
            return []
        tokens = self.adapter.tokenize(text)
        first, last = mention.span
        kinds = {f.kind for f in case.findings}
        absent = next(kind for kind in CORE[index % len(CORE) :] + CORE if kind not in kinds).replace("_", " ")
        swapped = self.adapter.tokenize(text[:first] + absent + text[last:])
        states = renoise(self.adapter, Sample(case.image, case.geometry, text), seed=index)
        few = thinned(states)  # for the controls
        recorded, other = (
            record(self.adapter, [text], [some], PER_LAYER)[0] for text, some in ((tokens, states), (swapped, few))
        )
        recipes = self.recipes()
        named = {r.name: reduce(recorded, r) for r in recipes}
        span = first, first + len(absent)
        extra = {
            f"{r.name} of an absent finding": map_of(reduce(other, r), swapped, span, case.geometry) for r in recipes
        }
        raw = reduce(record(self.untrained, [tokens], [few], PER_LAYER)[0], PER_LAYER)
        extra["untrained"] = map_of(raw, tokens, mention.span, case.geometry)
        extra["mean_mask"] = self._same_text(mention)
        region, told = case.organs[mention.region], {}
        texts = {"": (tokens, mention.span)}
        if index // len(CORE) % 3 == 0:  # every third case of each kind: it takes as long again
            texts[" of an absent finding"] = (swapped, span)
        for name, (words, place) in texts.items():
            rows = tuple(rows_of(words, place))
            sample = Sample(case.image, case.geometry, words.text)
            (made,), (evidence,) = supports(self.adapter, words, sample, states, [rows])
            extra[f"support{name}"] = _at(made, case.geometry)
            told[f"support{name}/evidence"] = float(evidence)
            if name:
                (made,) = differences(self.adapter, words, few, [rows])
                extra[f"effect{name}"] = _at(made, case.geometry)
        row = self._score(mention, tokens, mention.mask, region, named, few, case.image[0], extra, case)
        return [{**row, **told}]

    def mentioned(self, index: int) -> tuple[Case, str, Mention | None]:
        """A case of each core kind in turn, with a composed text and the mention of that kind."""
        kind = CORE[index % len(CORE)]
        rng = np.random.default_rng((79, draw_seed(self.options.split), index))
        others = [p for p in plan_case(rng) if p.kind != kind][:2]
        case = DRAWN[self.adapter.geometry.ndim](index, self.options.split, [_one(rng, kind), *others])
        said = compose(case, rng)
        mentions = [m for m in said.findings if m.kind == kind and not m.negated]
        return case, said.text, mentions[0] if mentions else None

    def layers(self, index: int) -> list[dict[str, Any]]:
        """AUC inside the named region of every layer alone, at the noisier and the cleaner half of the levels."""
        case, text, mention = self.mentioned(index)
        if mention is None or mention.mask is None or not mention.mask.any():
            return []
        tokens = self.adapter.tokenize(text)
        states = renoise(self.adapter, Sample(case.image, case.geometry, text), used=50, seed=index)
        row: dict[str, Any] = {"kind": mention.kind}
        region = case.organs[mention.region]
        for half, picked in (("noisy", range(1, 25, 3)), ("clean", range(26, 50, 3))):
            maps = record(self.adapter, [tokens], [states.at(picked)], PER_LAYER)[0]
            for layer in self.adapter.layers:
                made = reduce(maps, replace(PER_LAYER, layers=(layer,)))
                heat = map_of(made, tokens, mention.span, case.geometry)
                row[f"{layer}/{half}"] = _try(localization.auc_roc, heat, mention.mask, region)
        return [row]

    @cached_property
    def untrained(self) -> Adapter:
        """The same network and text encoder before any training, behind the same autoencoder."""
        torch.manual_seed(0)
        fresh = build(self.model.config, self.model.tokenizer)
        fresh.autoencoder = self.model.autoencoder
        return as_adapter(fresh.eval())

    def _same_text(self, mention: Mention) -> np.ndarray:
        """The mean mask of training cases of this finding in the place that the text names."""
        path = RUNS / f"mean-{mention.kind}-{mention.region.replace(' ', '_')}.npy"
        if not path.exists():
            rng = np.random.default_rng((80, KINDS.index(mention.kind)))
            masks: dict[str, list[np.ndarray]] = {}
            for number in range(180):
                plan = _one(rng, mention.kind)
                for f in draw(5_000_000 + number, "train", [plan]).findings:
                    for place in {"lungs", "body", f"{f.side} lung", str(f.lobe)}:
                        masks.setdefault(place, []).append(f.mask)
            for place, some in masks.items():
                np.save(RUNS / f"mean-{mention.kind}-{place.replace(' ', '_')}.npy", controls.mean_mask(some))
        return np.load(path)

    def _score(
        self,
        mention: Mention,
        tokens: TokenizedPrompt,
        truth: np.ndarray,
        region: np.ndarray,
        named: dict[str, Attribution],
        states: Trajectory,
        volume: np.ndarray,
        extra: dict[str, np.ndarray] | None = None,
        case: Case | None = None,
    ) -> dict[str, Any]:
        """Every map of the mention against the truth; of other words, three are measured."""
        row: dict[str, Any] = {"kind": mention.kind, "region": mention.region, "voxels": int(truth.sum())}
        geometry = self.adapter.geometry
        own = rows_of(tokens, mention.span)
        others = [w.rows for w in tokens.words if not set(w.rows) & set(own)]
        others = [others[i] for i in np.random.default_rng(len(tokens.text)).permutation(len(others))[:3]]
        changes = differences(self.adapter, tokens, states, [*((r,) for r in own), *others, tuple(own)])
        spread = [_at(values, geometry) for values in changes]
        maps = {name: map_of(attribution, tokens, mention.span, geometry) for name, attribution in named.items()}
        maps["effect"], maps["effect_phrase"] = np.mean(spread[: len(own)], axis=0), spread[-1]
        told = dict(maps)  # what is ours, not a control
        maps["region_lit"] = controls.region_lit(region)
        maps["abs_from_mean"] = controls.abs_from_mean(volume)
        maps["gradient"] = controls.gradient_magnitude(volume)
        maps["oracle"] = localization.native_oracle(truth, changes.shape[1:])
        for name, values in {**maps, **(extra or {})}.items():
            row |= _figures(name, values, truth, region)
        row["chance/top1"] = localization.chance_level(truth)
        for name, attribution in named.items():
            heats = [Heatmap("", attribution.maps[list(r)].mean(0), attribution.geometry) for r in others]
            scores = [_try(localization.auc_roc, h.resize(geometry).values, truth) for h in heats]
            row[f"{name}/auc_other_words"] = _mean(scores)
        heats = spread[len(own) : len(own) + len(others)]
        row["effect/auc_other_words"] = _mean([_try(localization.auc_roc, heat, truth) for heat in heats])
        if case is not None and case.distractor is not None and case.distractor[1].any():
            distractor = case.distractor[1]
            for name, heat in told.items():
                share = localization.mass_inside(heat, distractor) / localization.chance_level(distractor)
                row[f"{name}/distractor_mass_ratio"] = share
        return row


def _drawn(
    mentions: Sequence[Mention], found: Sequence[segmenter.Found]
) -> Iterator[tuple[Mention, np.ndarray | None]]:
    """Each finding that a text affirms, with the mask of what is found of it on the named side, None if nothing is."""
    for mention in mentions:
        if not mention.negated:
            same = [f for f in found if f.kind == mention.kind]
            masks = [f.mask for f in same if mention.side in (None, f.side) or f.side == "bilateral"]
            yield mention, np.logical_or.reduce(masks) if masks else None


def _figures(name: str, values: np.ndarray, truth: np.ndarray, region: np.ndarray) -> dict[str, float | None]:
    """A map against the truth."""
    return {
        f"{name}/auc": _try(localization.auc_roc, values, truth),
        f"{name}/auc_region": _try(localization.auc_roc, values, truth, region),
        f"{name}/cnr": _try(localization.cnr, values, truth),
        f"{name}/top1": _try(localization.pointing_game, values, truth),
    }


def _at(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A map of the latent's grid at full resolution."""
    return Heatmap("", values, geometry.at(values.shape)).resize(geometry).values


def draw_seed(split: str) -> int:
    return {"dev": 1, "test": 2, "shift": 3}[split]


def _one(rng: np.random.Generator, kind: str) -> Plan:
    severity = str(rng.choice(["small", "moderate", "large"]))
    if kind not in SIDED:
        return Plan(kind, "bilateral" if kind in ("emphysema", "fibrosis") else None, None, severity)
    if kind not in LOBAR:
        return Plan(kind, str(rng.choice(["left", "right"])), None, severity)
    lobe = str(rng.choice(LOBES))
    return Plan(kind, lobe.split()[0], lobe, severity if kind != "nodule" else "small")


def _asked(rng: np.random.Generator) -> Iterator[Plan]:
    """1 to 3 plans; of each about a third names no place, a third the side, a third the lobe."""
    for kind in rng.choice(KINDS, size=int(rng.integers(1, 4)), replace=False):
        plan, detail = _one(rng, str(kind)), rng.random()
        severity = plan.severity if rng.random() < 0.5 else None
        if kind not in SIDED:
            yield Plan(plan.kind, None, None, severity)
        else:
            yield Plan(plan.kind, plan.side if detail > 0.33 else None, plan.lobe if detail > 0.66 else None, severity)


def _plan(plan: Plan) -> dict[str, Any]:
    return {"kind": plan.kind, "side": plan.side, "lobe": plan.lobe, "severity": plan.severity}


def _seen(found: segmenter.Found) -> dict[str, Any]:
    return {"kind": found.kind, "side": found.side, "lobe": found.lobe, "ml": round(found.volume_ml, 1)}


def _found(volume: np.ndarray) -> list[dict[str, Any]]:
    return [_seen(f) for f in segmenter.findings(volume)]


def _volume_path(label: str, index: int) -> Path:
    """Where a generated volume (HU, int16) is kept for the second judge."""
    folder = RUNS / f"generated-{label}"
    folder.mkdir(exist_ok=True)
    return folder / f"{index:04d}.npy"


def named_region(anatomy, name: str, volume: np.ndarray) -> np.ndarray:
    if name == "body":
        return ndimage.binary_fill_holes(volume > -500)
    if name == "lungs":
        return anatomy.lungs
    return anatomy.side(name.split()[0]) if name.endswith(" lung") else anatomy.lobes()[name]


def rows_of(tokens: TokenizedPrompt, span: tuple[int, int]) -> list[int]:
    """The rows of the pieces inside a character span."""
    return [r for r, p in enumerate(tokens.kept) if (s := tokens.spans[p]) and span[0] <= s[0] and s[1] <= span[1]]


def map_of(attribution: Attribution, tokens: TokenizedPrompt, span: tuple[int, int], geometry: Geometry) -> np.ndarray:
    """The mean map of the pieces inside a character span, at full resolution."""
    heat = Heatmap("", attribution.maps[rows_of(tokens, span)].mean(0), attribution.geometry)
    return heat.resize(geometry).values


def _mean(values: list[float | None]) -> float | None:
    defined = [v for v in values if v is not None]
    return float(np.mean(defined)) if defined else None


def _try(metric, *arguments) -> float | None:
    try:
        return float(metric(*arguments))
    except Undefined:
        return None


CONTROLS = ("region_lit", "mean_mask", "abs_from_mean", "gradient", "untrained")
SHOWN = {"auc_region": "AUC inside the named region", "auc": "AUC", "cnr": "CNR", "top1": "Top-1"}
OURS = ("mean", "selected", "effect", "effect_phrase", "support")
MAPS = (*OURS, *CONTROLS, "oracle")
HEAD = "map of a finding's word"


COUNTS = ("prompts", "unasked_findings_a_volume")  # beside shares, in the figures of generation
JOINED = ("guidance_1", "twins")  # stages whose shares of earlier cases are counted together with those of later ones


def _earlier(label: str) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, int]]:
    """Figures, table and cases a stage of the summary that is there, if it is of these weights and this split."""
    path = RESULTS / "thorax.json"
    made = json.loads(path.read_text()) if path.is_file() else {"figures": {}}
    if made["figures"].get("weights_and_split") != label:
        return {}, [], {}
    stages = re.findall(r"thorax\.py ([\w ]+?) --split \w+ --count (\d+)", made["command"])
    counts = {stage: int(count) for names, count in stages for stage in names.split() if stage != "summary"}
    return made["figures"], made["table"], counts


def summarize(label: str, split: str) -> None:
    """All stages measured so far with these weights on this split, as bench/results/thorax.json.

    The command that is written beside them measures all of it anew, in however many processes it was measured here.
    Stages with no rows stay as they were measured before, where that was with the same weights; where rows of a stage
    of `JOINED` begin just behind those cases (`--first`), both are counted together.
    """
    found = {path.name.removesuffix(f"-{label}.jsonl"): path for path in RUNS.glob(f"*-{label}.jsonl")}
    rows = {stage: _rows(path) for stage, path in found.items() if hasattr(Bench, stage)}  # others have their own files
    if not rows:
        raise SystemExit(f"nothing was measured of {label} yet; name the stages before summary")
    before, table, counts = _earlier(label)
    numbers = {stage: {case["case"] for case in cases} for stage, cases in rows.items()}
    joined = {stage for stage in JOINED if stage in rows and min(numbers[stage]) == counts.get(stage)}
    counts |= {stage: len(some) + (counts[stage] if stage in joined else 0) for stage, some in numbers.items()}
    by_count: dict[int, list[str]] = {}
    for stage, count in sorted(counts.items()):
        by_count.setdefault(count, []).append(stage)
    measured = [f"python bench/thorax.py {' '.join(s)} --split {split} --count {n}" for n, s in by_count.items()]
    command = " && ".join([*measured[:-1], measured[-1].replace(" --split", " summary --split")])
    figures: dict[str, Any] = {**before, "weights_and_split": label}
    if cases := rows.get("autoencoder"):
        before, after = ([_matches(c["truth"], c[when]) for c in cases] for when in ("before", "after"))
        figures["autoencoder"] = {
            "cases": len(cases),
            "mean_absolute_error_HU": _interval([c["error"] for c in cases]),
            "segmenter_recall_on_phantoms": _share([hit for case in before for _, hit in case]),
            "still_found_after_decoding": _share(
                [b for a, c in zip(before, after, strict=True) for (_, x), (_, b) in zip(a, c, strict=True) if x]
            ),
        }
    if cases := rows.get("generation"):
        figures["generation"] = _generation(cases)
        if read := {case["case"]: case["found"] for case in rows.get("reader", [])}:
            both = [case for case in cases if case["case"] in read]
            figures["generation_reader"] = _generation([{**case, "found": read[case["case"]]} for case in both])
            figures["judges_agree"] = _agreement(both, read)
    if cases := rows.get("guidance_1"):
        earlier = before["generation_guidance_1"] if "guidance_1" in joined else None
        figures["generation_guidance_1"] = _together(earlier, _generation(cases))
    if cases := rows.get("twins"):
        new = {
            "affirmed_present": _share([c["kind"] in c["affirmed"] for c in cases]),
            "denied_absent": _share([c["kind"] not in c["denied"] for c in cases]),
        }
        figures["twins"] = _together(before["twins"] if "twins" in joined else None, new)
    if cases := [c for c in rows.get("layers", []) if "kind" in c]:
        names = [name for name in cases[0] if "/" in name]
        figures["layers"] = {name: _interval([c[name] for c in cases]) for name in names}
    scored = {"phantoms": rows.get("phantoms", [])}
    supported = {case["case"]: case for case in rows.get("support", [])}
    scored["generated"] = [
        {**score, **supported.get(case["case"], {}).get("score", {})}
        for case in rows.get("generation", [])
        for score in case.get("scores", [])
    ]
    told = [one for case in supported.values() for one in case.get("told", [])]
    figures["evidence"] = {**before.get("evidence", {}), **_evidence(rows.get("phantoms", []), told)}
    for where, cases in scored.items():
        cases = [c for c in cases if "kind" in c]
        if not cases:
            continue
        table = [row for row in table if not row[HEAD].startswith(where)]
        figures[f"localization_{where}"] = {
            kind: _localization([c for c in cases if c["kind"] == kind]) for kind in CORE
        }
        figures[f"localization_{where}"]["all"] = _localization(cases)
        lines = [*((kind, "auc_region") for kind in CORE), *(("all", metric) for metric in SHOWN)]
        for kind, metric in lines:
            found = figures[f"localization_{where}"][kind]
            row: dict[str, Any] = {HEAD: f"{where}, {SHOWN[metric]}: {kind}", "n": found["n"]}
            for name in MAPS:
                value = found.get(f"{name}/{metric}")
                row[name.replace("_", " ")] = None if value is None else [value["mean"], value["low"], value["high"]]
            table.append(row)
    print(write("thorax", command, figures, table))
    if cases := rows.get("generation"):
        command = f"python bench/thorax.py generation reader summary --split {split} --count {len(cases)}"
        print(write("thorax_generation", command, {"see": "thorax.json"}, _generation_table(figures)))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _share(hits: list[bool]) -> dict[str, Any] | None:
    return asdict(wilson(sum(hits), len(hits))) if hits else None


def _together(before: Any, new: Any) -> Any:
    """Shares of two sets of cases as shares of both: what was counted before, and what was measured since."""
    if before is None or new is None:
        return before or new
    if "n" in new:
        hits = sum(round(one["mean"] * one["n"]) for one in (before, new))
        return asdict(wilson(hits, before["n"] + new["n"]))
    both = {key: _together(before[key], value) for key, value in new.items() if key not in COUNTS}
    if "prompts" in new:
        prompts = [one["prompts"] for one in (before, new)]
        mean = np.average([one["unasked_findings_a_volume"] for one in (before, new)], weights=prompts)
        both |= {"prompts": sum(prompts), "unasked_findings_a_volume": float(mean)}
    return both


def _interval(values: list[float | None]) -> dict[str, Any] | None:
    defined = [v for v in values if v is not None]
    return asdict(bootstrap(defined)) if defined else None


def _localization(cases: list[dict[str, Any]]) -> dict[str, Any]:
    names = sorted({key for case in cases for key in case if "/" in key})
    found: dict[str, Any] = {"n": len(cases), **{key: _interval([case.get(key) for case in cases]) for key in names}}
    for ours in OURS:
        for control in (*CONTROLS, f"{ours} of an absent finding"):
            pairs = [(case.get(f"{ours}/auc_region"), case.get(f"{control}/auc_region")) for case in cases]
            gains = [a - b for a, b in pairs if a is not None and b is not None]
            found[f"{ours} over {control}/auc_region"] = _interval(gains)
    return found


def _evidence(phantoms: list[dict[str, Any]], told: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether the evidence for a word tells what is there from what is not: AUC of one against the other.

    On phantoms a finding that is there and another one in its place in the text; on generated volumes a finding that
    was asked for and that the rules find, or do not. There kinds differ in both, so it is also told what is left of it
    among pairs of the same kind.
    """
    key, found = "support of an absent finding/evidence", {}
    both = [case for case in phantoms if key in case]
    if both:
        there, absent = ([case[name] for case in both] for name in ("support/evidence", key))
        found["phantoms, there or absent"] = _apart(there, absent)
    drawn, missed = ([one for one in told if one["found"] is wanted] for wanted in (True, False))
    if drawn and missed:
        kinds = [
            [[one["evidence"] for one in some if one["kind"] == kind] for some in (drawn, missed)] for kind in KINDS
        ]
        pairs = [(a > b) + 0.5 * (a == b) for some, others in kinds for a in some for b in others]
        whole = _apart(*([one["evidence"] for one in some] for some in (drawn, missed)))
        found["generated, drawn or not"] = {
            **whole,
            "auc_of_pairs_of_one_kind": float(np.mean(pairs)),
            "pairs": len(pairs),
        }
    return found


def _apart(there: list[float], absent: list[float]) -> dict[str, Any]:
    truth = np.array([True] * len(there) + [False] * len(absent))
    auc = float(localization.auc_roc(np.array(there + absent), truth))
    return {"there": _interval(list(there)), "absent": _interval(list(absent)), "auc": auc}


def _matches(asked: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    return [(a["kind"], any(f["kind"] == a["kind"] for f in found)) for a in asked]


def _generation(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all findings asked for: found at all, on the named side, in the named lobe; prompts not found stay in.

    `unasked`: of the volumes that a kind was not asked for, those in which it is found.
    """
    asked = [(a, case["found"]) for case in cases for a in case["asked"]]

    def share(kind: str | None, place: str | None) -> dict[str, Any] | None:
        some = [(a, f) for a, f in asked if kind in (None, a["kind"]) and (place is None or a[place] is not None)]
        return _share(
            [any(x["kind"] == a["kind"] and (place is None or x[place] == a[place]) for x in f) for a, f in some]
        )

    def unasked(kind: str) -> dict[str, Any] | None:
        others = [case for case in cases if kind not in {a["kind"] for a in case["asked"]}]
        return _share([any(x["kind"] == kind for x in case["found"]) for case in others])

    empty = [case["found"] for case in cases if not case["asked"]]
    others = [f["kind"] for case in cases for f in case["found"] if f["kind"] not in {a["kind"] for a in case["asked"]}]
    return {
        "prompts": len(cases),
        "found": {kind or "all": share(kind, None) for kind in (None, *KINDS)},
        "right_side": {kind or "all": share(kind, "side") for kind in (None, *SIDED)},
        "right_lobe": {kind or "all": share(kind, "lobe") for kind in (None, *LOBAR)},
        "unasked": {kind: unasked(kind) for kind in KINDS},
        "denied_absent": _share(
            [all(f["kind"] != kind for f in case["found"]) for case in cases for kind in case.get("absent", [])]
        ),
        "no_finding_prompts_without_any": _share([not found for found in empty]),
        "unasked_findings_a_volume": len(others) / len(cases),
    }


def _generation_table(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a kind: what was asked for and found, by both judges; and found without being asked for."""
    table = []
    for kind in ("all", *KINDS):
        row: dict[str, Any] = {"generated volumes": kind}
        for judge, name in (("rules", "generation"), ("reader", "generation_reader")):
            for question in ("found", "right_side", "right_lobe", "unasked") if name in figures else ():
                if share := figures[name][question].get(kind):
                    row[f"{question.replace('_', ' ')}, {judge}"] = [share["mean"], share["low"], share["high"]]
                    row.setdefault("asked for", share["n"])
        if agreed := figures.get("judges_agree", {}).get(kind):
            row["judges agree"], row["kappa"] = agreed["same"]["mean"], agreed["kappa"]
        table.append(row)
    return table


def _agreement(cases: list[dict[str, Any]], read: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """For each kind: the share of volumes in which both judges see it or neither does, and Cohen's kappa."""
    agreed = {}
    for kind in KINDS:
        pairs = [tuple(any(f["kind"] == kind for f in found) for found in (c["found"], read[c["case"]])) for c in cases]
        same, (first, second) = [a == b for a, b in pairs], np.mean(pairs, axis=0)
        chance = float(first * second + (1 - first) * (1 - second))
        kappa = (float(np.mean(same)) - chance) / (1 - chance) if chance < 1 else None
        agreed[kind] = {"same": _share(same), "kappa": kappa, "rules": float(first), "reader": float(second)}
    return agreed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--model", default="thorax")
    parser.add_argument("--split", default="test", choices=["dev", "test", "shift"])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the case to begin with")
    parser.add_argument("--part", default="0/1", help="of several processes side by side: 0/2 and 1/2")
    options = parser.parse_args()
    torch.manual_seed(0)
    RESULTS.mkdir(exist_ok=True)
    bench = Bench(options)
    for name in options.stages:
        if name == "summary":
            summarize(bench.label, options.split)
            continue
        bench.stage(name, getattr(bench, name), options.count)


if __name__ == "__main__":
    main()
