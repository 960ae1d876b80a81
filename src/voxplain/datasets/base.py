"""The record that every data set becomes, and the set: its records, and the rows that became none, by reason."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

RULE = (
    "Credentialed data: files, reports and identifiers stay on this disk. Do not share tables, figures or logs "
    "that show them."
)

Box = tuple[float, ...]
"""(x, y, width, height), in volumes (x, y, z, width, height, depth), in pixels of the image as it is stored.

x counts columns, y rows, z slices; the first pixel covers 0 to 1.
"""


class RuleWarning(UserWarning):
    """Credentialed data are about to leave this disk."""


class Excluded(ValueError):
    """A record that cannot be scored; `reason` is short, countable and names nobody."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Faulty(ValueError):
    """What is wrong with a record's files; `reason` is short, countable and names nobody, the message says it all."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Gone(Faulty, FileNotFoundError):
    """A file of a record that is no longer there."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """One or more boxes that are the truth together."""

    boxes: tuple[Box, ...]

    def __post_init__(self) -> None:
        if not self.boxes:
            raise ValueError("no box: give at least one, or no truth at all")
        for box in self.boxes:
            if len(box) not in (4, 6) or len(box) != len(self.boxes[0]) or not all(map(isfinite, box)):
                raise ValueError(f"box {box}: expected 4 numbers (x, y, width, height), or 6 in volumes, all alike")
            if min(box[len(box) // 2 :]) <= 0:
                raise ValueError(f"box {box} has no area: its sizes must be positive")


@dataclass(frozen=True, slots=True)
class MaskFile:
    """An image of whole numbers on the grid of the record's image; the truth is where it has one of `values`.

    No values stand for everything but 0.
    """

    path: Path
    values: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Polygon:
    """A closed outline x0, y0, x1, y1, ... in pixels of the image; the first pixel covers 0 to 1."""

    points: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.points) < 6 or len(self.points) % 2 or not all(map(isfinite, self.points)):
            raise ValueError(f"a polygon needs three or more points x, y; got {len(self.points)} numbers")


@dataclass(frozen=True, slots=True)
class Runs:
    """COCO's run lengths: outside, inside, outside, ... down the columns of an image of `shape` (rows, columns)."""

    counts: tuple[int, ...]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.counts, default=0) < 0 or sum(self.counts) != self.shape[0] * self.shape[1]:
            raise ValueError(f"run lengths add up to {sum(self.counts)}, but the image has shape {self.shape}")


@dataclass(frozen=True, slots=True)
class Outlines:
    """Polygons and run lengths that are the truth together."""

    parts: tuple[Polygon | Runs, ...]


Truth = Boxes | MaskFile | Outlines


@dataclass(frozen=True, slots=True)
class Record:
    """One thing to look at: an image (or none, for a text to generate from), a text, and where the text is true.

    `words` are the words or phrases of the prompt that name the truth, as `TokenizedPrompt.find` takes them; () where
    the study has a rule of its own. `index` is the place in a file of many images. `label` is what the truth shows,
    `labels` what is known to be present or absent in the image. `patient` is who (or what) several records share, and
    so what intervals are clustered by. `size` (width, height, ...) is what the annotation says of the image, and is
    checked when it is read. `unit` is of the image's values; "" leaves it to the kind of file. `facts` holds further
    columns, such as the license.
    """

    id: str
    prompt: str
    image: Path | None = None
    index: int | None = None
    truth: Truth | None = None
    words: tuple[str, ...] = ()
    label: str = ""
    labels: Mapping[str, bool] = field(default_factory=dict)
    patient: str = ""
    split: str = ""
    size: tuple[int, ...] | None = None
    unit: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Records in a fixed order, how many rows were left out by reason, and how the set was built.

    A `credentialed` set must not leave the user's disk (`RULE`).
    """

    name: str
    records: tuple[Record, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    credentialed: bool = False

    def __post_init__(self) -> None:
        if twice := [name for name, count in Counter(record.id for record in self.records).items() if count > 1]:
            raise ValueError(f"{self.name}: {len(twice)} ids occur more than once, such as {twice[0]!r}")

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def where(self, *, split: str | None = None, label: str | None = None) -> "Dataset":
        """Only the records of a split and of a label; the others are counted. Raises ValueError for an unknown one."""
        kept, left_out = self.records, Counter(self.left_out)
        for what, wanted in (("split", split), ("label", label)):
            if wanted is None:
                continue
            known = sorted({getattr(record, what) for record in self.records})
            if wanted not in known:
                raise ValueError(
                    f"{self.name} has no {what} {wanted!r}; it has {', '.join(map(repr, known)) or 'none'}"
                )
            chosen = tuple(record for record in kept if getattr(record, what) == wanted)
            left_out[f"another {what}"] += len(kept) - len(chosen)
            kept = chosen
        return replace(self, records=kept, left_out=counted(left_out))

    def summary(self) -> str:
        """One line: how many records, images and patients, and what was left out, by reason."""
        images = {(record.image, record.index) for record in self.records if record.image is not None}
        patients = {record.patient for record in self.records if record.patient}
        size = f"{self.name}: {len(self):,} records, {len(images):,} images, {len(patients):,} patients"
        reasons = "; ".join(f"{reason} {count:,}" for reason, count in self.left_out.items())
        return f"{size}; left out: {reasons or 'nothing'}"


def whole_words(pattern: str) -> str:
    """The regular expression, kept to whole words as `TokenizedPrompt` has them: no "dog" in "dog-house" or "dogma"."""
    return rf"(?<!\w)(?<!\w[-‐‑'’/])(?:{pattern})(?!\w)(?![-‐‑'’/]\w)"


def counted(left_out: Counter[str]) -> dict[str, int]:
    """The counts in alphabetical order, without zeros."""
    return {reason: left_out[reason] for reason in sorted(left_out) if left_out[reason]}
