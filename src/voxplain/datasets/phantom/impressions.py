"""Radiology-style impressions of phantom cases: every mention tied to its mask, every word to its part of speech.

The text does not give the place away: of a finding that has a lobe, about 40 % of the mentions name no place, 30 % the
side alone and 30 % the lobe. Nothing else in the text lets a reader conclude a place that is not named.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from re import sub

import numpy as np
from jaxtyping import Bool

from voxplain.datasets.phantom import lexicon
from voxplain.datasets.phantom.cases import Case
from voxplain.datasets.phantom.findings import KINDS, LOBAR, LOBES, NODULE_MASS_MM, Finding, Plan
from voxplain.datasets.phantom.lexicon import all_words
from voxplain.datasets.phantom.wording import WITHOUT_PLACE, Dice, Draft, Said

LEVELS = ("label", "template", "composed")
ROOM = 66  # word pieces after which no optional sentence begins
DENIALS = (0, 0, 0, 0, 1, 1, 1, 2, 2, 3)  # how many findings a text denies, each equally often
ORGANS = (0, 0, 0, 0, 0, 1, 1, 1, 2, 2)


@dataclass(frozen=True, eq=False)
class Mention:
    """Words of a text and the voxels they speak of.

    `span` is the name of the finding or organ, `phrase` all words about it ("small nodule in the left lung"). `kind`
    is a kind of finding or the name of an organ. `mask` is the union of all findings the words speak of, None for a
    negated mention, for a case without that organ and for a prompt without a case. `finding` is the index of the
    (first) finding, None for organs and negated mentions. `region` is the smallest region that the words leave: a
    lobe, "left lung", "right lung", "lungs" (a lung finding without a place) or "body". `side` and `lobe` are what the
    words name, None where they name nothing.
    """

    span: tuple[int, int]
    kind: str
    mask: Bool[np.ndarray, "*spatial"] | None
    negated: bool
    finding: int | None
    region: str
    side: str | None
    lobe: str | None
    phrase: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Impression:
    """A text, its mentions in order of appearance, and one (start, end, part of speech) for each word and sign."""

    text: str
    mentions: tuple[Mention, ...]
    tags: tuple[tuple[int, int, str], ...]

    @property
    def findings(self) -> tuple[Mention, ...]:
        """The mentions of findings, affirmed and negated; the others are organs."""
        return tuple(mention for mention in self.mentions if mention.kind in KINDS)


def compose(case: Case, rng: np.random.Generator, level: str = "composed") -> Impression:
    """A new impression of a case, at one of three levels of variability.

    "label": names joined by commas. "template": one sentence of fixed words for each finding. "composed": synonyms,
    degrees, sizes, several sentences in random order, negated findings, organs; up to about 60 words for three
    findings. Raises ValueError for another level.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r}: expected one of {', '.join(LEVELS)}")
    said: list[Said] = []
    for index, finding in enumerate(case.findings):
        if not any(_covers(earlier, finding) for earlier in said):
            said.append(_choose(rng, finding, index, level))
    draft = Draft(Dice(rng if level == "composed" else None), [finding.kind for finding in case.findings])
    if level == "composed":
        _fill(draft, said)
    elif not said:
        draft.state("no finding" if level == "label" else lexicon.NORMAL[0])
    elif level == "label":
        draft.name(said)
    else:
        for one in said:
            draft.affirm([one], plain=True)
    return _finish(draft, case)


def request(
    plans: Sequence[Plan], rng: np.random.Generator, *, absent: Sequence[str] = (), plain: bool = False
) -> Impression:
    """A prompt that asks for the planned findings, names all that a plan names, and denies the kinds in `absent`.

    The mentions say what was asked, `finding` is the index of the plan, masks are None. `plain` gives bare phrases
    ("Large left pleural effusion.") in the given order. Nothing asked and nothing denied gives a normal impression.
    Mirrored plans and the same seed give the mirrored text. Raises ValueError for a kind both asked for and denied,
    and for kinds, sides, lobes, severities or counts that do not exist.
    """
    if both := sorted({plan.kind for plan in plans} & set(absent)):
        raise ValueError(f"{', '.join(both)}: both asked for and denied; take it out of `plans` or of `absent`")
    draft = Draft(Dice(rng), [plan.kind for plan in plans])
    for index, plan in enumerate(plans):
        draft.affirm([_asked(plan, index)], plain=plain)
    for kind in absent:
        draft.deny([_asked(Plan(kind), None)], plain=plain)
    if not draft.units:
        draft.state(draft.dice.pick(lexicon.NORMAL))
    return _finish(draft, None, shuffle=not plain)


def negated_twin(plan: Plan, rng: np.random.Generator) -> tuple[Impression, Impression]:
    """Two prompts with the same name for a finding, affirmed and negated: "Left effusion." and "No effusion."."""
    said = _asked(plan, 0)
    nouns = lexicon.NOUNS["mass" if said.mass else said.kind]
    said = replace(said, noun=Dice(rng).pick([noun for noun in nouns if noun.deniable]))
    affirmed, denied = Draft(Dice(rng), ()), Draft(Dice(rng), ())
    affirmed.affirm([said], plain=True)
    denied.deny([Said(said.kind, mass=said.mass, noun=said.noun)], plain=True)
    return _finish(affirmed, None), _finish(denied, None)


def swap_side(text: str) -> str:
    """The text with left and right exchanged, case kept; ValueError for a middle lobe, which the left lung lacks."""
    if "middle lobe" in text.casefold():
        raise ValueError(f"{text!r} has no twin: the left lung has no middle lobe")
    other = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}
    return sub(r"\b(left|right|Left|Right|LEFT|RIGHT)\b", lambda match: other[match[0]], text)


def vocabulary_texts(count: int, seed: int = 0) -> Iterator[str]:
    """`count` texts for building a tokenizer: first one that holds every word of the grammar, then random ones."""
    rng = np.random.default_rng(seed)
    if count > 0:
        yield " ".join(all_words())
    for _ in range(count - 1):
        draft = Draft(Dice(rng), ())
        kinds = draft.dice.shuffled(KINDS)[: int(rng.integers(0, 4))]
        draft.kinds = tuple(kinds)
        findings = [_anything(rng, kind) for kind in kinds]
        _fill(draft, [_choose(rng, finding, index, "composed") for index, finding in enumerate(findings)])
        yield draft.layout().text


def _asked(plan: Plan, index: int | None) -> Said:
    severity = lexicon.SAME_DEGREE.get(plan.severity or "", plan.severity)
    for name, value, allowed in (
        ("kind", plan.kind, KINDS),
        ("side", plan.side, (None, "left", "right", "bilateral")),
        ("lobe", plan.lobe, (None, *LOBES)),
        ("severity", severity, (None, *lexicon.DEGREES["size"])),
        ("count", plan.count, (1, *lexicon.COUNTS)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} {value!r}: expected one of {', '.join(map(str, allowed))}")
    side = plan.lobe.split()[0] if plan.lobe else plan.side
    if plan.side not in (None, side):
        raise ValueError(f"the {plan.lobe} lies on the {side}, but the plan says {plan.side}")
    if plan.kind in WITHOUT_PLACE and side is not None:
        raise ValueError(f"{plan.kind} has no side or lobe, but the plan names {plan.lobe or side!r}")
    mass = plan.kind == "nodule" and severity == "large"
    return Said(plan.kind, side, plan.lobe, severity, plan.count, mass=mass, negated=index is None, finding=index)


def _choose(rng: np.random.Generator, finding: Finding, index: int, level: str) -> Said:
    """What to say of a finding, and what to keep back."""
    said = Said(finding.kind, mass=_is_mass(finding), finding=index)
    if level == "label":
        return said
    place, degree = rng.random(), rng.random()
    if finding.kind not in WITHOUT_PLACE and place >= 0.4:
        said = replace(said, side=finding.side, lobe=finding.lobe if place >= 0.7 else None)
    if level == "template":
        return said
    said = replace(said, count=finding.count)
    size = round(finding.size_mm or 0)
    if size in lexicon.MILLIMETERS and degree < 0.2:
        return replace(said, millimeters=size)
    severity = lexicon.SAME_DEGREE.get(finding.severity or "", finding.severity)
    return replace(said, severity=severity) if degree < 0.55 else said


def _is_mass(finding: Finding) -> bool:
    if finding.kind != "nodule":
        return False
    return finding.severity == "large" if finding.size_mm is None else finding.size_mm > NODULE_MASS_MM


def _fill(draft: Draft, said: Sequence[Said]) -> None:
    """Sentences for all that is to be said, then denials and organs while there is room."""
    dice = draft.dice
    absent = dice.shuffled([kind for kind in KINDS if kind not in draft.kinds])[: dice.pick(DENIALS)]
    denied = [Said(kind, mass=kind == "nodule" and dice.random() < 0.3, negated=True) for kind in absent]
    rest = dice.shuffled(said)
    while rest:
        group = [rest.pop()]
        if rest and rest[-1].placed == group[0].placed and dice.random() < 0.25:  # else a place could seem shared
            group.append(rest.pop())
        without = [denied.pop()] if denied and dice.random() < 0.15 else []
        draft.affirm(group, without=without)
    if not said and dice.random() < 0.7:
        draft.state(dice.pick(lexicon.NORMAL))
    together = dice.random() < 0.5
    while denied and draft.length < ROOM:
        group, denied = (denied, []) if together else (denied[:1], denied[1:])
        draft.deny(group)
    for sentence in _organ_sentences(draft, said)[: dice.pick(ORGANS)]:
        if draft.length < ROOM:
            draft.state(sentence)
    if not draft.units:
        draft.state(dice.pick(lexicon.NORMAL))


def _organ_sentences(draft: Draft, said: Sequence[Said]) -> list[str]:
    """True sentences, one an organ, in random order."""
    dice = draft.dice
    true = [[text for text, against in lines if not set(against) & set(draft.kinds)] for lines in lexicon.ORGANS]
    sides = [one.side for one in said if one.kind in lexicon.LUNG]
    if sides and None not in sides and len(set(sides)) == 1 and sides[0] != "bilateral":  # no place is given away
        true.append([text.format(side=swap_side(sides[0] or "")) for text in lexicon.CLEAR_SIDE])
    return [dice.pick(lines) for lines in dice.shuffled([lines for lines in true if lines])]


def _speaks_of(said: Said, finding: Finding) -> bool:
    """Whether the words fit a finding of the case."""
    severity = lexicon.SAME_DEGREE.get(finding.severity or "", finding.severity)
    return (
        finding.kind == said.kind
        and (said.lobe in (None, finding.lobe) or finding.lobe is None)
        and (said.side in (None, "bilateral", finding.side) or finding.side in (None, "bilateral"))
        and said.severity in (None, severity)
        and said.count in (1, finding.count)
        and said.mass == _is_mass(finding)
        and said.millimeters in (None, round(finding.size_mm or 0))
    )


def _covers(said: Said, finding: Finding) -> bool:
    """Whether the words fit all of a finding, so that nothing is left to say of it."""
    return _speaks_of(said, finding) and not _wider(said, finding)


def _wider(said: Said, finding: Finding) -> bool:
    """Whether a finding reaches beyond the place that the words name."""
    two_sided = finding.side in (None, "bilateral") and said.side in ("left", "right")
    return two_sided or (finding.lobe is None and said.lobe is not None)


def _mask(said: Said, case: Case) -> Bool[np.ndarray, "*spatial"]:
    """Everything the words speak of; of a finding that reaches beyond the named place only the part inside."""
    spoken = [finding for finding in case.findings if _speaks_of(said, finding)]
    masks = [f.mask & case.organs[said.region] if _wider(said, f) else f.mask for f in spoken]
    return masks[0] if len(masks) == 1 else np.logical_or.reduce(masks)


def _finish(draft: Draft, case: Case | None, *, shuffle: bool = True) -> Impression:
    layout = draft.layout(shuffle=shuffle)
    mentions = []
    for number, said in enumerate(draft.said):
        mask = None if said.negated or case is None else _mask(said, case)
        finding = None if said.negated else said.finding
        place = (said.region, said.side, said.lobe, layout.phrases[number])
        mentions.append(Mention(layout.heads[number], said.kind, mask, said.negated, finding, *place))
    for span, organ in layout.organs:
        mask = None if case is None else case.organs.get(organ)
        mentions.append(Mention(span, organ, mask, False, None, "body", None, None, span))
    return Impression(layout.text, tuple(sorted(mentions, key=lambda mention: mention.span)), layout.tags)


def _anything(rng: np.random.Generator, kind: str) -> Finding:
    """A finding without voxels, for texts alone."""
    severity = str(rng.choice(["small", "moderate", "large"]))
    side = None if kind in WITHOUT_PLACE else str(rng.choice(["left", "right", "bilateral"]))
    lobe = str(rng.choice(LOBES)) if kind in LOBAR and side != "bilateral" else None
    size = float(rng.uniform(15, 40)) if kind == "nodule" else None
    count = int(rng.choice([1, 1, 1, 2])) if kind == "nodule" else 1
    return Finding(kind, lobe.split()[0] if lobe else side, lobe, severity, count, np.zeros((1, 1, 1), bool), size)
