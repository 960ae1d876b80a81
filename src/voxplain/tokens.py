"""What a prompt became: pieces with character ranges, and the way back from a phrase to its pieces.

Words are found by character offsets, never by comparing pieces: the piece "x" at the end of "pneumothorax" is no word.
"""

import difflib
import re
from collections import Counter
from dataclasses import dataclass

# letters and digits, joined inside a word by - ' / and inside a number by a point or comma: ground-glass, 1.5, T2/FLAIR
_WORD = re.compile(r"[^\W_]+(?:[-‐‑'’/][^\W_]+|(?<=\d)[.,](?=\d)[^\W_]+)*")
_NUMBERED = re.compile(r"(.*\S)\s*#([1-9]\d*)\s*", re.DOTALL)

Span = tuple[int, int]


class PhraseError(ValueError):
    """A phrase that is absent from the prompt, fell off its end, or occurs more than once."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a prompt: its characters, its rows in a map, and which of `count` equal words it is (from 0)."""

    text: str
    span: tuple[int, int]
    rows: tuple[int, ...]
    occurrence: int = 0
    count: int = 1


def label(word: Word) -> str:
    """The word's name for display: "effusion", or "effusion#2" for the second of several."""
    return _numbered(word.text, word.occurrence, word.count)


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt as the model saw it: one id, piece and character range for each position of the context.

    `spans` is None for special tokens and padding. `cut` is the first character that did not fit the context.
    Rows number the kept positions (start, pieces, end), which are the rows of `Attribution.maps`.
    """

    text: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    spans: tuple[tuple[int, int] | None, ...]
    start: int | None = 0
    end: int | None = None
    cut: int | None = None

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.pieces) == len(self.spans):
            sizes = f"{len(self.ids)} ids, {len(self.pieces)} pieces, {len(self.spans)} spans"
            raise ValueError(f"a tokenized prompt needs one of each per position, but got {sizes}")
        last = 0
        for position, span in enumerate(self.spans):
            if span is None:
                continue
            if not last <= span[0] <= span[1] <= len(self.text):
                raise ValueError(f"span {span} at position {position} is out of order or outside the text")
            last = span[0]
        for name, position in (("start", self.start), ("end", self.end)):
            if position is None:
                continue
            if not 0 <= position < len(self.ids):
                raise ValueError(f"{name} token at position {position} of {len(self.ids)}; give None if it has none")
            if self.spans[position] is not None:
                raise ValueError(
                    f"{name} token at position {position} is a piece of the text; give None if it has none"
                )
        if self.cut is not None and not 0 <= self.cut <= len(self.text):
            raise ValueError(f"cut {self.cut} lies outside the text of {len(self.text)} characters")

    @property
    def kept(self) -> tuple[int, ...]:
        """The positions that maps keep as rows: start, pieces, end."""
        special = (self.start, self.end)
        return tuple(i for i, span in enumerate(self.spans) if span is not None or i in special)

    @property
    def padding(self) -> tuple[int, ...]:
        """All other positions."""
        kept = set(self.kept)
        return tuple(i for i in range(len(self.ids)) if i not in kept)

    @property
    def words(self) -> tuple[Word, ...]:
        """The words that fit the context, in order; repeated ones are numbered."""
        pieces, fits = self._kept_spans(), self._fits
        spans = [m.span() for m in _WORD.finditer(self.text) if m.end() <= fits]
        found = [(self.text[slice(*span)], span, rows) for span in spans if (rows := _overlapping(pieces, span))]
        counts, seen = Counter(_fold(text) for text, _, _ in found), Counter[str]()
        words = []
        for text, span, rows in found:
            words.append(Word(text, span, rows, seen[_fold(text)], counts[_fold(text)]))
            seen[_fold(text)] += 1
        return tuple(words)

    @property
    def truncated(self) -> str:
        """The text that fell off the end of the context, from the first word that is not whole; "" if none."""
        return self.text[self._fits :].strip()

    def find(self, phrase: str, occurrence: int | None = None) -> tuple[int, ...]:
        """The rows of a phrase. Upper and lower case and the kind of white space do not matter; words must be whole.

        A phrase that occurs several times needs `occurrence` (from 0) or its number ("effusion#2", from 1).
        Raises PhraseError for a phrase that is absent, that fell off the context, or that is ambiguous.
        """
        return _overlapping(self._kept_spans(), self.match(phrase, occurrence))

    def match(self, phrase: str, occurrence: int | None = None) -> tuple[int, int]:
        """The characters of a phrase, from and up to; same rules as `find`."""
        return self._locate(phrase, occurrence)[0]

    def name(self, phrase: str, occurrence: int | None = None) -> str:
        """The phrase as the prompt spells it, numbered if it occurs several times; same rules as `find`."""
        (first, last), index, count = self._locate(phrase, occurrence)
        return _numbered(" ".join(self.text[first:last].split()), index, count)

    @property
    def _fits(self) -> int:
        """The number of characters up to the first word that did not fit as a whole."""
        if self.cut is None:
            return len(self.text)
        return next((m.start() for m in _WORD.finditer(self.text) if m.start() < self.cut < m.end()), self.cut)

    def _kept_spans(self) -> list[tuple[int, Span]]:
        """Each row that has characters, and which."""
        return [(row, span) for row, at in enumerate(self.kept) if (span := self.spans[at]) is not None]

    def _locate(self, phrase: str, occurrence: int | None) -> tuple[Span, int, int]:
        """The span of a phrase, which of its occurrences that is, and how many of them fit."""
        every = _occurrences(self.text, phrase)
        numbered = _NUMBERED.fullmatch(phrase)
        if not every and numbered and occurrence is None:
            phrase, occurrence = numbered[1], int(numbered[2]) - 1
            every = _occurrences(self.text, phrase)
        if not every:
            raise PhraseError(self._absent(phrase))
        pieces, fits = self._kept_spans(), self._fits
        fitting = [span for span in every if span[1] <= fits and _overlapping(pieces, span)]
        if occurrence is None and len(fitting) > 1:
            places = ", ".join(f"{i}: ...{self.text[max(0, a - 15) : b + 15]}..." for i, (a, b) in enumerate(fitting))
            raise PhraseError(
                f"{phrase!r} occurs {len(fitting)} times; say which by occurrence=0 to {len(fitting) - 1} "
                f"or by {phrase + '#1'!r} to {f'{phrase}#{len(fitting)}'!r} ({places})"
            )
        index = occurrence or 0
        if not 0 <= index < len(every):
            times = "once" if len(every) == 1 else f"{len(every)} times"
            raise PhraseError(
                f"{phrase!r} occurs {times}, so there is no occurrence {index} (from 0), which is {phrase}#{index + 1}"
            )
        if index >= len(fitting):
            if self.truncated:
                raise PhraseError(
                    f"{phrase!r} was cut off: the model's context of {len(self.ids)} positions ended before "
                    f"{self.truncated!r}; shorten the prompt"
                )
            raise PhraseError(f"the tokenizer left no piece for {phrase!r}")
        return fitting[index], index, len(fitting)

    def _absent(self, phrase: str) -> str:
        """The message for a phrase that is not there: what is nearest to it."""
        words, wanted = [m.group() for m in _WORD.finditer(self.text)], _fold(phrase.strip())
        size = max(1, len(wanted.split()))
        runs = [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]
        names = {_fold(name): name for name in [*words, *runs]}
        near = difflib.get_close_matches(wanted, list(names), n=3, cutoff=0.6)
        near += [name for name in names if wanted and wanted in name and name not in near][:3]
        shown = [names[name] for name in near] or list(dict.fromkeys(words))
        what = "nearest to it" if near else "its words"
        return f"{phrase!r} is not in the prompt as whole words; {what}: {', '.join(map(repr, shown)) or 'none'}"


def _numbered(text: str, index: int, count: int) -> str:
    return f"{text}#{index + 1}" if count > 1 else text


def _overlapping(pieces: list[tuple[int, Span]], span: Span) -> tuple[int, ...]:
    """The rows of the pieces that share a character with the span."""
    first, last = span
    return tuple(row for row, (start, end) in pieces if start < last and first < end and start < end)


def _fold(text: str) -> str:
    """Lower case that keeps every character's place."""
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


def _occurrences(text: str, phrase: str) -> list[Span]:
    """Where the phrase stands in the text as whole words; punctuation around the phrase does not count."""
    inner = re.search(r"[^\W_](?:.*[^\W_])?", phrase, re.DOTALL)
    parts = (inner.group() if inner else phrase).split()
    if not parts:
        raise PhraseError("the phrase is blank; give one or more words of the prompt")
    pattern = re.compile("(?=(" + r"\s+".join(re.escape(_fold(part)) for part in parts) + "))")
    inside = {i for m in _WORD.finditer(text) for i in range(m.start() + 1, m.end())}
    spans = [m.span(1) for m in pattern.finditer(_fold(text))]
    return [span for span in spans if span[0] not in inside and span[1] not in inside]
