"""Does a model's map depend on what it should: the weights, the word, the text, and not on chance? Pass or fail.

Each check changes one thing and reads the map of one word of one text again, on one image. None of them says that a map
is right; a model that fails one has maps that should not be shown. A model whose text is ignored fails most of them.

weights     after Adebayo et al. (NeurIPS 2018): the entries of each weight are shuffled, from the last layer down; the
            map has to become another one
null word   the word's map has to be more distinct than that of a word that means nothing here (`studies.honesty`)
unmentioned with another finding's name in the word's place, the map has to change more than from noise to noise
seeds       the map has to stay much the same when the image is noised anew
removal     the prediction has to owe more to the word than to a word that means nothing here (`studies.effect`)
padding     with the padding of an empty text in its place, the prediction has to change less than without the word
guidance    without guidance the image has to become another one, while the map of the word stays much the same
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voxplain.adapters import as_adapter
from voxplain.adapters.base import Adapter
from voxplain.maps import Attribution, Sample, Trajectory
from voxplain.resampling import resample
from voxplain.studies import grounding, honesty
from voxplain.studies.effect import PROBE, differences, removal
from voxplain.studies.fitting import fitted
from voxplain.studies.sanity_weights import STAGES, network_of, shuffling
from voxplain.tokens import TokenizedPrompt
from voxplain.tracing import trace

ALIKE = 0.5  # correlation over cells above which two maps count as much the same
SEEDS = 3
LEAST = 1e-3  # of the prediction's size: what is smaller counts as no change

Progress = Callable[[str, int, int], None]  # (stage, done, total)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check: whether it passed (None where it does not apply), why, and the figures behind it."""

    name: str
    passed: bool | None
    reason: str
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Sanity:
    """All verdicts on a model, and what they were made with."""

    verdicts: tuple[Verdict, ...]
    facts: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not any(verdict.passed is False for verdict in self.verdicts)


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """What all checks share: the word of a text in an image, its states and its map."""

    adapter: Adapter
    sample: Sample
    prompt: TokenizedPrompt
    word: str
    states: Trajectory
    attribution: Attribution

    @property
    def rows(self) -> tuple[int, ...]:
        return self.prompt.find(self.word)

    @property
    def map(self) -> Float[np.ndarray, "*grid"]:
        return self.attribution.maps[list(self.rows)].mean(0)

    def again(self, states: Trajectory, prompt: TokenizedPrompt | None = None) -> Attribution:
        """The same read-out at other states, or of another text."""
        (made,) = grounding.attend(self.adapter, [prompt or self.prompt], [states])
        return made


def examine(
    model: Any,
    *,
    text: str = "large left effusion",
    word: str = "effusion",
    other: str = "nodule",
    sample: Sample | None = None,
    seed: int = 0,
    steps: int = grounding.STEPS,
    used: int = grounding.USED,
    generation_steps: int | None = None,
    progress: Progress | None = None,
) -> Sanity:
    """Every check on one word of one text, in a given image or in one that the model makes of the text.

    `other` names a finding that the text does not mention. The read-out takes the `used` least noisy of `steps` levels;
    `generation_steps` are by default the model's own.

    Raises PhraseError for a word that the text does not hold, and ValueError where `other` stands in the text, for
    words that training never showed, and for models whose text is one vector, as attention says nothing there.
    """
    adapter = as_adapter(model)
    prompt = adapter.tokenize(text)
    prompt.find(word)
    if other.casefold() in text.casefold():
        raise ValueError(f"{other!r} stands in the text {text!r}; name a finding that it does not mention")
    if not adapter.tokenize(other).words:
        raise ValueError(f"the model cannot read {other!r}; name another finding")
    for given in (word.partition("#")[0], other):
        if unknown := adapter.unknown_words(given):
            raise ValueError(f"the model never saw {', '.join(unknown)} in training; name a finding that it knows")
    report = progress or (lambda stage, done, total: None)
    report("guidance", 0, 0)
    guided, verdict = _guidance(adapter, prompt, word, seed, generation_steps)
    image = fitted(guided if sample is None else sample, adapter.geometry)
    states = grounding.renoise(adapter, image, steps=steps, used=used, seed=seed)
    (attribution,) = grounding.attend(adapter, [prompt], [states])
    reading = _Reading(adapter, image, prompt, word, states, attribution)
    noised = [grounding.renoise(adapter, image, steps=steps, used=used, seed=seed + n) for n in range(1, SEEDS)]
    report("seeds", 0, 0)
    stable, found = _seeds(reading, noised)
    checks: list[tuple[str, Callable[[], Verdict]]] = [
        ("weights", lambda: _weights(reading, seed, report)),
        ("null word", lambda: _null_word(reading)),
        ("unmentioned", lambda: _unmentioned(reading, other, stable)),
        ("removal", lambda: _removal(reading)),
        ("padding", lambda: _padding(reading)),
    ]
    verdicts = []
    for number, (name, check) in enumerate(checks):
        report(name, number, len(checks))
        verdicts.append(check())
    facts = {
        "model": adapter.name, "weights": adapter.weights_hash, "text": text, "word": word, "other finding": other,
        "image": "given" if sample is not None else "made from the text", "seed": seed,
        "noise levels": f"{used} of {steps}", "alike above": ALIKE,
    }  # fmt: skip
    return Sanity((*verdicts[:3], found, *verdicts[3:], verdict), facts)


def related(first: Float[np.ndarray, "*grid"], second: Float[np.ndarray, "*cells"]) -> float:
    """Pearson correlation over cells, the coarser map brought to the finer grid; 0 where one of them is flat."""
    finer = max(first.shape, second.shape, key=np.prod)
    return float(honesty.correlations(np.stack([resample(one[None], finer)[0] for one in (first, second)]))[0, 1])


def _seeds(reading: _Reading, noised: list[Trajectory]) -> tuple[float, Verdict]:
    """The mean correlation of the word's maps between seeds of noise, and the verdict on it."""
    maps = [reading.map, *(reading.again(states).maps[list(reading.rows)].mean(0) for states in noised)]
    stable = float(np.mean([related(*pair) for pair in combinations(maps, 2)]))
    reason = f"maps from {len(maps)} seeds of noise correlate by {stable:.2f} (at least {ALIKE} is asked)"
    return stable, Verdict("seeds", stable >= ALIKE, reason, {"correlation": stable})


def _weights(reading: _Reading, seed: int, report: Progress) -> Verdict:
    network = network_of(reading.adapter)
    if network is None:
        return Verdict("weights", None, "the adapter does not say which network is its own", {})
    left = []
    with shuffling(network, seed) as shuffle:
        for stage in range(STAGES):
            report("weights", stage, STAGES)
            shuffle(stage)
            made = reading.again(reading.states).maps[list(reading.rows)].mean(0)
            left.append(related(reading.map, made) if np.isfinite(made).all() else 0.0)
    said = ", ".join(f"{value:.2f}" for value in left)
    reason = (
        f"with a quarter, half, three quarters and all of the weights shuffled, the map keeps a correlation of {said}"
    )
    figures = {f"{(stage + 1) / STAGES:.0%}": value for stage, value in enumerate(left)}
    return Verdict("weights", left[-1] < ALIKE, f"{reason} (below {ALIKE} is asked in the end)", figures)


def _null_word(reading: _Reading) -> Verdict:
    longer = honesty.with_null_words(reading.prompt, reading.adapter.tokenize)
    read = reading.again(reading.states, longer)
    controls = {word.text: read.maps[list(word.rows)].mean(0) for word in longer.words[-2:]}
    own, nulls = honesty.distinctness(replace(reading.attribution, controls=controls))
    ours = [each for word, each in zip(reading.prompt.words, own, strict=True) if set(word.rows) & set(reading.rows)]
    distinct = max(each["distinctness"] or 0.0 for each in ours)
    floor = max(null["distinctness"] or 0.0 for null in nulls)
    reason = f"the word's map is distinct by {distinct:.3f}, that of a word that means nothing here by {floor:.3f}"
    return Verdict("null word", distinct > floor, reason, {"word": distinct, "null word": floor})


def _unmentioned(reading: _Reading, other: str, stable: float) -> Verdict:
    first, last = reading.prompt.match(reading.word)
    text = reading.prompt.text
    swapped = reading.adapter.tokenize(f"{text[:first]}{other}{text[last:]}")
    made = reading.again(reading.states, swapped).maps[list(swapped.find(other))].mean(0)
    alike = related(reading.map, made)
    reason = (
        f"with {other!r} in the place of the word its map correlates by {alike:.3f} with the word's; the word's own "
        f"does by {stable:.3f} from noise to noise, and has to be more alike"
    )
    return Verdict("unmentioned finding", alike < stable, reason, {"correlation": alike, "between seeds": stable})


def _removal(reading: _Reading) -> Verdict:
    owed, null = _owed(reading)
    reason = (
        f"without the word the prediction changes by {owed:.2g} of its size, without one that means nothing here by "
        f"{null:.2g} (more than that and {LEAST:g} is asked)"
    )
    return Verdict("word removal", owed > max(null, LEAST), reason, {"word": owed, "null word": null})


def _owed(reading: _Reading) -> tuple[float, float]:
    """The size of what the prediction owes to the word, and to the null word it owes most to."""
    adapter, states = reading.adapter, grounding.thinned(reading.states)
    longer = honesty.with_null_words(reading.prompt, adapter.tokenize)
    how = removal(adapter, reading.prompt)
    own = differences(adapter, reading.prompt, states, [reading.rows], how=how)
    nulls = differences(adapter, longer, states, [word.rows for word in longer.words[-2:]], how=how)
    return _size(own[0]), max(_size(one) for one in nulls)


def _padding(reading: _Reading) -> Verdict:
    """Positions after the end may hold what the encoder mixed into them: then no word's map is the whole story."""
    name, prompt, adapter = "clean padding", reading.prompt, reading.adapter
    if not prompt.padding:
        return Verdict(name, None, "the text has no padding here", {})
    try:
        empty = adapter.tokenize("")
        with torch.no_grad():
            whole, clean = adapter.encode_prompt(prompt), adapter.encode_prompt(empty)
            if whole.shape != clean.shape or whole.shape[1] != len(prompt.ids):
                return Verdict(name, None, "the context is not one vector a position of the text", {})
            mixed = whole.clone()
            mixed[:, list(prompt.padding)] = clean[:, list(prompt.padding)]
            changed = np.mean([_change(adapter, state, level, whole, mixed) for state, level in _few(reading.states)])
    except (ValueError, KeyError, NotImplementedError) as error:
        return Verdict(name, None, f"this model does not take another context: {error}", {})
    owed, _ = _owed(reading)
    reason = (
        f"with the padding of an empty text the prediction changes by {changed:.2g} of its size, without the word by "
        f"{owed:.2g}, which has to be more"
    )
    return Verdict(name, bool(changed < owed), reason, {"padding": float(changed), "word": owed})


def _few(states: Trajectory) -> Iterator[tuple[np.ndarray, float]]:
    few = grounding.thinned(states)
    yield from zip(few.latents, few.timesteps, strict=True)


def _change(adapter: Adapter, state: np.ndarray, level: float, whole: Tensor, other: Tensor) -> float:
    """How far another context moves the prediction, relative to its size."""
    latent = torch.tensor(state)[None].to(whole)
    one, two = (adapter.predict(latent, level, each, rows=[(0, PROBE)]).float() for each in (whole, other))
    return float((two - one).norm() / one.norm().clamp(min=1e-12))


def _size(change: Float[np.ndarray, "*grid"]) -> float:
    return float(np.sqrt(np.mean(np.square(change))))


def _guidance(
    adapter: Adapter, prompt: TokenizedPrompt, word: str, seed: int, steps: int | None
) -> tuple[Sample, Verdict]:
    """An image at the model's own guidance, and whether one without guidance differs as it should."""
    made, maps = [], []
    for scale in (None, 1.0):
        with trace(adapter) as tracer:
            sample = adapter.generate(prompt.text, seed=seed, steps=steps, guidance_scale=scale)
        assert isinstance(sample, Sample)
        made.append(sample)
        maps.append(tracer.attribution().maps[list(prompt.find(word))].mean(0))
    own = made[0].provenance.get("guidance_scale")
    if own in (None, 0, 1):
        return made[0], Verdict("guidance", None, "the model has no guidance of its own", {})
    spread = max(float(made[0].image.std()), 1e-12)
    moved, alike = float(np.abs(made[0].image - made[1].image).mean()) / spread, related(*maps)
    reason = (
        f"from guidance {own:g} to 1 the image changes by {moved:.2g} of its spread (more than {LEAST:g} is asked) and "
        f"the word's maps correlate by {alike:.2f} (at least {ALIKE} is asked)"
    )
    passed = moved > LEAST and alike >= ALIKE
    return made[0], Verdict("guidance", passed, reason, {"image": moved, "correlation": alike})
