"""Every word of a text against the truth, and how far words of each part of speech spread.

The per-word tables of Dombrowski et al. (AAAI 2024) read the first sub-token of each word; here that rule stands beside
the mean over the word's sub-tokens. Words are folded to lower case (theirs keep case and punctuation). The coverage by
part of speech is that of Tang et al. (2022), at tau 0.4, on the map's own grid.
"""

import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from voxplain.datasets.phantom.lexicon import POS
from voxplain.maps import Attribution, Heatmap, Mask
from voxplain.metrics.base import Undefined
from voxplain.metrics.overlap import coverage
from voxplain.metrics.statistics import bootstrap
from voxplain.scoring import values
from voxplain.studies.benchmark_cases import Tags
from voxplain.tokens import Word
from voxplain.view.tables import Cell, Spread, Table

TAU = 0.4
MINIMUM = 25  # a word is shown if it occurs more often than this
UNKNOWN = "unknown"
SPECIAL = {"[start]": "start", "[end]": "end"}

WordRow = list[
    Any
]  # word, part of speech, CNR of the whole word, CNR of its first sub-token, coverage; None: undefined


def tagger(name: str | None) -> tuple[str, Callable[[str], Tags]]:
    """What gives words their parts of speech where a case has none of its own: a spaCy pipeline, else the lexicon.

    `name` is an installed pipeline of spaCy ("en_core_web_sm"); None takes the words of the phantom grammar, by which
    any other word is unknown. Raises ImportError where spaCy or the pipeline is not installed; nothing is downloaded.
    """
    if name is None:
        return "words of the phantom grammar", _by_lexicon
    if importlib.util.find_spec("spacy") is None or importlib.util.find_spec(name) is None:
        raise ImportError(f"parts of speech by {name!r} need spaCy and that pipeline; install both, or leave it out")
    pipeline = importlib.import_module("spacy").load(name)
    return f"spaCy {name}", lambda text: tuple(
        (token.idx, token.idx + len(token.text), token.pos_) for token in pipeline(text) if not token.is_space
    )


def word_rows(attribution: Attribution, truth: Mask, tags: Tags, tau: float = TAU) -> list[WordRow]:
    """A row for each occurrence of a word, and for the start and end token and the padding."""
    prompt, found = attribution.prompt, []
    for word in prompt.words:
        rows = attribution.maps[list(word.rows)]
        maps = {"whole": rows.mean(0), "first": rows[0]}
        found.append([word.text.lower(), _tag(word, tags), *_scores(attribution, maps, truth, tau)])
    for name, part in SPECIAL.items():
        if (position := getattr(prompt, part)) is not None:
            maps = {"whole": attribution.maps[prompt.kept.index(position)]}
            found.append([name, name, *_scores(attribution, maps, truth, tau)])
    if prompt.padding:
        found.append(["[padding]", "[padding]", *_scores(attribution, {"whole": attribution.padding}, truth, tau)])
    return found


def word_tables(rows: Iterable[Mapping[str, Any]], minimum: int = MINIMUM) -> list[Table]:
    """For each finding the words that occur more than `minimum` times, the highest contrast first."""
    seen: dict[str, dict[str, list[tuple[str, WordRow]]]] = {}
    for row in rows:
        for one in row.get("words", ()):
            seen.setdefault(row["label"], {}).setdefault(one[0], []).append((row["patient"], one))
    tables = []
    for label, words in seen.items():
        often = {word: found for word, found in words.items() if len(found) > minimum}
        lines = [
            [word, found[0][1][1], len(found), *(_mean(found, at) for at in (2, 3, 4))] for word, found in often.items()
        ]
        lines.sort(key=lambda line: -line[3][0] if isinstance(line[3], tuple) else np.inf)
        if not lines:
            continue
        note = (
            f"{len(often)} of {len(words)} words occur more than {minimum} times. The order was found with the truth "
            "in hand and is not corrected for choosing: the best of many words look better than they are. A word that "
            "a text says twice counts twice; intervals draw whole patients."
        )
        columns = ("word", "part of speech", "occurrences", "CNR, whole word", "CNR, first sub-token", "coverage")
        shown = tuple(map(tuple, lines))
        tables.append(Table(f"words-{len(tables) + 1}", f"{label}: words", columns, shown, note))
    return tables


def by_part(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The coverage of every word, by part of speech, the widest median first."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for _, part, _, _, covered in row.get("words", ()):
            if covered is not None and not part.startswith("["):
                found.setdefault(part, []).append(covered)
    return dict(sorted(found.items(), key=lambda item: -float(np.median(item[1]))))


def part_table(groups: Mapping[str, Sequence[float]], how: str) -> Table:
    """Quartiles of the coverage by part of speech."""
    lines = []
    for part, covered in groups.items():
        low, middle, high = (float(value) for value in np.quantile(covered, (0.25, 0.5, 0.75)))
        lines.append((part, len(covered), low, middle, high))
    columns = ("part of speech", "words", "lower quartile", "median", "upper quartile")
    note = f"Share of the map's cells at {TAU} of its maximum or above, on its own grid. Parts of speech: {how}."
    return Table("parts-of-speech", "How far words spread, by part of speech", columns, tuple(lines), note)


def _by_lexicon(text: str) -> Tags:
    found = re.finditer(r"[^\W_]+(?:[-'/][^\W_]+)*", text)
    return tuple((*match.span(), POS.get(match.group().casefold(), UNKNOWN)) for match in found)


def _tag(word: Word, tags: Tags) -> str:
    """The part of speech of the first tagged span that shares a character with the word."""
    first, last = word.span
    return next((part for start, end, part in tags if start < last and first < end), UNKNOWN)


def _scores(
    attribution: Attribution, maps: Mapping[str, np.ndarray], truth: Mask, tau: float
) -> tuple[float | None, float | None, float | None]:
    """CNR of the whole word and of its first sub-token, and the coverage."""
    found: dict[str, float | None] = {}
    for name, each in maps.items():
        value = values(Heatmap(name, each, attribution.geometry), truth, None, ("cnr",))["cnr"]
        found[name] = None if isinstance(value, str) else value
    try:
        covered = coverage(maps["whole"], tau=tau)
    except Undefined:
        covered = None
    return found["whole"], found.get("first"), covered


def _mean(found: Sequence[tuple[str, WordRow]], column: int) -> Cell:
    known = [(patient, row[column]) for patient, row in found if row[column] is not None]
    if not known:
        return None
    spread = bootstrap([value for _, value in known], clusters=[patient for patient, _ in known], resamples=2000)
    cell: Spread = spread.mean, spread.low, spread.high
    return cell
