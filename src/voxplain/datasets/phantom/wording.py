"""Words to sentences: phrases for findings, sentences around them, and the text with all character spans."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import numpy as np

from voxplain.datasets.phantom import lexicon
from voxplain.datasets.phantom.lexicon import Noun

T = TypeVar("T")
Span = tuple[int, int]
WITHOUT_PLACE = ("cardiomegaly", "pericardial_effusion")
PLEURAL = ("effusion", "pneumothorax")


@dataclass(frozen=True)
class Said:
    """What the text says of one finding: exactly that, so anything that is None stays unsaid."""

    kind: str
    side: str | None = None
    lobe: str | None = None
    severity: str | None = None  # small, moderate, large
    count: int = 1
    millimeters: int | None = None
    mass: bool = False  # nodules only: called a mass
    negated: bool = False
    finding: int | None = None
    noun: Noun | None = None  # the name to use, else any

    @property
    def degree(self) -> bool:
        return self.severity is not None or self.millimeters is not None

    @property
    def placed(self) -> bool:
        return self.side is not None or self.lobe is not None

    @property
    def region(self) -> str:
        """Lobe, "left lung", "right lung", "lungs" or "body": the smallest region these words leave."""
        if self.kind in WITHOUT_PLACE:
            return "body"
        return self.lobe or (f"{self.side} lung" if self.side in ("left", "right") else "lungs")


@dataclass(frozen=True)
class Token:
    word: str
    part: str
    said: int | None = None  # which `Said` the word belongs to
    head: bool = False  # part of the finding's name


Tokens = tuple[Token, ...]


@dataclass(frozen=True)
class Phrase:
    tokens: Tokens
    plural: bool
    article: bool
    degrees: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The finished text; `heads` and `phrases` give the span of each finding's name and of all words about it."""

    text: str
    tags: tuple[tuple[int, int, str], ...]
    heads: dict[int, Span]
    phrases: dict[int, Span]
    organs: tuple[tuple[Span, str], ...]


class Dice:
    """Choices from a random generator; without one always the first choice. A pick is always one draw."""

    def __init__(self, rng: np.random.Generator | None) -> None:
        self.rng = rng

    def random(self) -> float:
        return 0.0 if self.rng is None else self.rng.random()

    def pick(self, choices: Sequence[T]) -> T:
        return choices[int(self.random() * len(choices))]  # ten times faster than Generator.choice

    def shuffled(self, choices: Sequence[T]) -> list[T]:
        return list(choices) if self.rng is None else [choices[i] for i in self.rng.permutation(len(choices))]


class Draft:
    """An impression under construction: sentences, and what they say of each finding.

    `kinds` are all kinds of findings of the case, said or not: names that would be ambiguous beside them are left out.
    """

    def __init__(self, dice: Dice, kinds: Sequence[str]) -> None:
        self.dice, self.kinds = dice, tuple(kinds)
        self.said: list[Said] = []
        self.units: list[Tokens] = []  # one or two sentences that stay together

    @property
    def length(self) -> int:
        """Pieces so far if every word is one piece and every hyphen another two halves."""
        return sum(1 + 2 * token.word.count("-") for unit in self.units for token in unit)

    def affirm(self, group: Sequence[Said], *, plain: bool = False, without: Sequence[Said] = ()) -> None:
        """Add a sentence that says all of `group`, joined, and denies `without`; `plain`: a bare phrase as sentence."""
        dice = self.dice
        style = 0.0 if plain else dice.random()
        alone = len(group) == 1
        if alone and group[0].kind == "cardiomegaly" and style > 0.6:
            self.units.append(self._enlarged(group[0]) + self._lacking(without) + _plain("."))
            return
        later = group[0]
        twice = alone and not plain and later.degree and later.kind != "cardiomegaly" and dice.random() < 0.15
        if twice:  # the degree comes in a sentence of its own
            group = [replace(later, severity=None, millimeters=None)]
        inside = alone and style > 0.85 and later.side in ("left", "right") and later.kind not in PLEURAL
        phrases = [self.phrase(said, place=not inside) for said in group]
        joint = " with " if dice.random() < 0.25 else " and "
        bare = _join([phrase.tokens for phrase in phrases], joint)
        full = _join([_articled(phrase) for phrase in phrases], joint)
        if inside:
            where = later.lobe or f"{later.side} lung"
            unit = _about(len(self.said) - 1, _plain(f"the {where} {dice.pick(lexicon.SHOWS)}")) + full
        elif style < 0.45:
            unit = bare
        elif style < 0.7:
            unit = _plain("there are" if phrases[0].plural else "there is") + full
        elif style < 0.78:
            unit = _plain("there is evidence of") + full
        else:
            be = "are" if not alone or phrases[0].plural else "is"
            unit = bare + _plain(f"{be} {dice.pick(lexicon.SEEN)}")
        unit += self._lacking(without) + _plain(".")
        if twice:
            unit += self._follow_up(later, phrases[0])
        self.units.append(unit)

    def deny(self, group: Sequence[Said], *, plain: bool = False) -> None:
        """Add a sentence that denies every finding of `group`."""
        style = 0.0 if plain else self.dice.random()
        if len(group) == 1 and group[0].kind == "cardiomegaly" and style > 0.7:
            self.units.append(self._enlarged(group[0]) + _plain("."))
            return
        names = self._any_of(group)
        if style < 0.45:
            unit = _plain("no") + names
        elif style < 0.65:
            unit = _plain("no evidence of") + names
        elif style < 0.85:
            unit = _plain("there is no") + names
        else:
            unit = _plain("no") + names + _plain(f"is {self.dice.pick(lexicon.SEEN[:2])}")
        self.units.append(unit + _plain("."))

    def name(self, group: Sequence[Said]) -> None:
        """Add the names alone, joined by commas, without a full stop."""
        self.units.append(_join([self.phrase(said).tokens for said in group], " , "))

    def state(self, sentence: str) -> None:
        """Add a ready sentence, organs or normality."""
        self.units.append(_plain(sentence))

    def phrase(self, said: Said, *, place: bool = True) -> Phrase:
        """Count, degree, side, name and place of a finding; registers it as said."""
        dice, number = self.dice, len(self.said)
        self.said.append(said)
        noun = self._noun(said)
        plural = noun.many is not None and (said.count > 1 or said.side == "bilateral")
        before: list[str] = []
        if said.count in lexicon.COUNTS and plural:
            before.append(dice.pick(lexicon.COUNTS[said.count]))
        if said.millimeters is not None:
            before.append(f"{said.millimeters} mm")
        elif said.severity is not None:
            before.append(dice.pick(lexicon.DEGREES[dice.pick(noun.degrees)][said.severity]))
        after = ""
        if place and (said.side or said.lobe):
            level = "lobe" if said.lobe else "bilateral" if said.side == "bilateral" else "side"
            first, choices = dice.random() < 0.45, lexicon.AFTER[level]
            if said.kind in PLEURAL and level != "lobe":
                first, choices = first or dice.random() < 0.5, choices[-1:]
            words = dice.pick(lexicon.BEFORE[level] if first else choices).format(side=said.side, lobe=said.lobe)
            if first:
                before.append(words)
            else:
                after = words
        name = noun.many if plural and noun.many else noun.one
        tokens = (
            _about(number, _plain(" ".join(before)))
            + _about(number, _plain(name), head=True)
            + _about(number, _plain(after))
        )
        many = plural or noun.one == noun.many  # "reticular opacities" has no singular
        article = not many and (noun.many is not None or noun.one in lexicon.ARTICLED)
        return Phrase(tokens, many, article, noun.degrees)

    def layout(self, *, shuffle: bool = True) -> Layout:
        """Lay the sentences out, in random order unless told otherwise."""
        tokens = [token for unit in (self.dice.shuffled(self.units) if shuffle else self.units) for token in unit]
        text, tags = "", []
        for token in tokens:
            word = token.word
            if not text or text.endswith("."):
                word = word[0].upper() + word[1:]
            text += word if token.part == "PUNCT" or not text else " " + word
            tags.append((len(text) - len(word), len(text), token.part))
        heads: dict[int, Span] = {}
        phrases: dict[int, Span] = {}
        for token, (start, end, _) in zip(tokens, tags, strict=True):
            if token.said is not None:
                phrases[token.said] = (phrases.get(token.said, (start, end))[0], end)
                if token.head:
                    heads[token.said] = (heads.get(token.said, (start, end))[0], end)
        return Layout(text, tuple(tags), heads, phrases, _organs(tokens, tags))

    def _noun(self, said: Said) -> Noun:
        if said.noun is not None:
            return said.noun
        nouns = lexicon.NOUNS["mass" if said.mass else said.kind]
        if said.kind == "effusion" and "pericardial_effusion" in self.kinds:
            nouns = nouns[:-1]  # a bare "effusion" could be either
        return self.dice.pick([noun for noun in nouns if noun.deniable] if said.negated else nouns)

    def _any_of(self, group: Sequence[Said]) -> Tokens:
        phrases = [self.phrase(replace(said, negated=True)).tokens for said in group]
        first = _join(phrases[:-1] or phrases, " , ")
        return first + _plain("or") + phrases[-1] if len(phrases) > 1 else first

    def _lacking(self, group: Sequence[Said]) -> Tokens:
        return _plain("without") + self._any_of(group) if group else ()

    def _enlarged(self, said: Said) -> Tokens:
        """The heart is (not) enlarged: here "enlarged" is the name of the finding and the heart an organ."""
        number = len(self.said)
        self.said.append(said)
        degree = self.dice.pick(lexicon.DEGREES["adverb"][said.severity]) if said.severity else ""
        subject = self.dice.pick(("the heart", "the heart", "the cardiac silhouette"))
        start = _plain(f"{subject} is {'not' if said.negated else degree}")
        return _about(number, start) + _about(number, _plain("enlarged"), head=True)

    def _follow_up(self, said: Said, phrase: Phrase) -> Tokens:
        """A second sentence about the same finding, so that its name occurs twice: "The effusion is large"."""
        number = len(self.said)
        self.said.append(said)
        name = tuple(replace(token, said=number) for token in phrase.tokens if token.head)
        if said.millimeters is not None:
            rest = f"{'measure' if phrase.plural else 'measures'} {said.millimeters} mm"
        else:
            degrees = lexicon.DEGREES[phrase.degrees[0]][said.severity or "moderate"]
            rest = f"{'are' if phrase.plural else 'is'} {self.dice.pick(degrees)}"
        return _about(number, _plain("the")) + name + _about(number, _plain(rest)) + _plain(".")


_ORGANS = [(tuple(words.split()), organ) for words, organ in lexicon.ORGAN_WORDS.items()]


@cache
def _plain(text: str) -> Tokens:
    return tuple(Token(word, part) for word, part in lexicon.tagged(text))


def _about(number: int, tokens: Tokens, *, head: bool = False) -> Tokens:
    return tuple(replace(token, said=number, head=head) for token in tokens)


def _join(parts: Sequence[Tokens], joint: str) -> Tokens:
    joined = parts[0]
    for part in parts[1:]:
        joined += _plain(joint) + part
    return joined


def _articled(phrase: Phrase) -> Tokens:
    if not phrase.article:
        return phrase.tokens
    first = phrase.tokens[0].word
    return _plain("an" if first[0] in "aeiou" or first == "18" else "a") + phrase.tokens


def _organs(tokens: Sequence[Token], tags: Sequence[tuple[int, int, str]]) -> tuple[tuple[Span, str], ...]:
    """Every organ word outside the names of findings, longest match first."""
    found, at = [], 0
    while at < len(tokens):
        for words, organ in _ORGANS:
            here = tokens[at : at + len(words)]
            if tuple(t.word for t in here) == words and not any(t.head for t in here):
                found.append(((tags[at][0], tags[at + len(words) - 1][1]), organ))
                at += len(words) - 1
                break
        at += 1
    return tuple(found)
