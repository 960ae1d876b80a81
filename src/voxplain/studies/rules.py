"""Which rows of an attribution speak for a finding: the rules of the papers, each one small choice of rows.

words      every whole occurrence of each given phrase is one map; the mean of these
substring  as the code of Dombrowski et al. (2024): one map for each pair of a given text and a blank-separated piece of
           the prompt that holds it, so "effusions" counts twice for "effusion" and "effusions"; without any, as all
first      as words, but of each word its first sub-token only (the per-word tables of Dombrowski et al.)
all        the mean over all sub-tokens of the text, punctuation included
start, end, padding    the special tokens; of padding the sum over its positions
"""

import re
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np

from voxplain.maps import Attribution, Heatmap
from voxplain.tokens import PhraseError, TokenizedPrompt

RULES = ("words", "substring", "first", "all", "start", "end", "padding")
NEED_WORDS = ("words", "substring", "first")


def by_rule(attribution: Attribution, rule: str = "words", words: Sequence[str] = ()) -> Heatmap:
    """The map that a rule reads for the given words or phrases, on the attribution's own grid.

    Raises PhraseError where none of the words is in the prompt ("words", "first"), and ValueError for an unknown rule,
    for missing words, and for special tokens that the prompt does not have or that the recipe did not measure.
    """
    if rule not in RULES:
        raise ValueError(f"unknown token rule {rule!r}; there are {', '.join(RULES)}")
    if rule in NEED_WORDS and not words:
        raise ValueError(f"token rule {rule!r} needs the words of the finding, as in words=['effusion', 'effusions']")
    prompt, maps = attribution.prompt, attribution.maps
    label = " + ".join(words) if rule in NEED_WORDS else f"[{rule}]"
    if rule == "words":
        parts = [attribution.word(*place).values for place in occurrences(prompt, words)]
    elif rule == "first":
        owned = [set(prompt.find(*place)) for place in occurrences(prompt, words)]
        parts = [maps[[word.rows[0] for word in prompt.words if word.rows[0] in span]].mean(0) for span in owned]
    elif rule in ("substring", "all"):
        pieces = _pieces(prompt)
        fitting = [rows for text in words for piece, rows in pieces if text.casefold() in piece.casefold()]
        every = [tuple(row for _, rows in pieces for row in rows)]
        parts = [maps[list(rows)].mean(0) for rows in (fitting if rule == "substring" and fitting else every)]
    else:
        parts = [_special(attribution, rule)]
    if not parts:
        raise _absent(prompt, words)
    return Heatmap(label, np.mean(parts, axis=0), attribution.geometry)


def occurrences(prompt: TokenizedPrompt, words: Sequence[str]) -> list[tuple[str, int | None]]:
    """Every whole occurrence of the words or phrases that was read, as `TokenizedPrompt.find` takes it.

    The number is None for one that says its own, as "effusion#2". Words that are not there give none.
    """
    return [(phrase, number) for phrase in words for number in _numbers(prompt, phrase)]


def spans(prompt: TokenizedPrompt, words: Sequence[str]) -> list[tuple[int, ...]]:
    """The rows of every occurrence, each once; PhraseError where none of the words is in the prompt."""
    found = dict.fromkeys(prompt.find(*place) for place in occurrences(prompt, words))
    if not found:
        raise _absent(prompt, words)
    return list(found)


def _numbers(prompt: TokenizedPrompt, phrase: str) -> list[int | None]:
    found: list[int | None] = []
    for number in count():
        try:
            prompt.find(phrase, number)
        except PhraseError:
            break
        found.append(number)
    if not found and "#" in phrase:
        prompt.find(phrase)  # raises if it is not there
        return [None]
    return found


def _absent(prompt: TokenizedPrompt, words: Sequence[str]) -> PhraseError:
    return PhraseError(f"none of {', '.join(map(repr, words))} is in the text {prompt.text!r} as far as it was read")


def _pieces(prompt: TokenizedPrompt) -> list[tuple[str, tuple[int, ...]]]:
    """The blank-separated parts of the text, each with its rows; those that fell off are left out."""

    def parts() -> Iterator[tuple[str, tuple[int, ...]]]:
        spans = [(row, prompt.spans[position]) for row, position in enumerate(prompt.kept)]
        for match in re.finditer(r"\S+", prompt.text):
            first, last = match.span()
            rows = tuple(row for row, span in spans if span and span[0] < last and first < span[1])
            if rows:
                yield match.group(), rows

    return list(parts())


def _special(attribution: Attribution, rule: str) -> np.ndarray:
    prompt = attribution.prompt
    if not attribution.recipe.needs_attention:
        raise ValueError(f"recipe {attribution.recipe.name!r} measures words, so it has no map of [{rule}]")
    if rule == "padding":
        if not prompt.padding:
            raise ValueError("this text fills its context or the model has no padding, so there is no map of [padding]")
        return attribution.padding
    position = prompt.start if rule == "start" else prompt.end
    if position is None:
        raise ValueError(f"this model has no {rule} token")
    return attribution.maps[prompt.kept.index(position)]
