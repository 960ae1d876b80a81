"""What an evaluation scores: trials from a data set on the disk, from run folders with masks, or from phantoms.

A trial is an image, a text, the words that name the truth, and the truth in the image's own frame. Image and truth come
through one recorded frame; a mask of a run folder has to lie on the run's grid already, and is never resized.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from voxplain.adapters.base import Adapter
from voxplain.datasets.base import Dataset, Excluded, MaskFile, Record
from voxplain.datasets.frames import Cover, Crop, Orient, Step
from voxplain.datasets.reading import read, read_mask
from voxplain.datasets.tables import rows, whole
from voxplain.geometry import Geometry
from voxplain.io.run import load_run
from voxplain.maps import Explanation, Mask, Sample
from voxplain.metrics.controls import same_text_partners
from voxplain.studies.fitting import way_to

Tags = tuple[tuple[int, int, str], ...]  # (first character, one past the last, part of speech)
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npz")
CODES = "code"  # the unit of an image whose values are names
PRIOR = 60  # training masks that a location prior is the mean of


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One truth to find. `words` name it in the text (none: all words are read); `region` is what the text leaves.

    `share` says how much of the stored truth lies in the frame. An `explanation` has been made already.
    """

    label: str
    text: str
    sample: Sample
    truth: Mask
    region: Mask | None = None
    words: tuple[str, ...] = ()
    patient: str = ""
    group: str = ""
    tags: Tags | None = None
    share: float = 1.0
    explanation: Explanation | None = None


class Source(ABC):
    """Where trials come from; cases are numbers, so that a worker needs nothing but the source."""

    name: str
    credentialed: bool = False
    left_out: Mapping[str, int] = {}
    texts: Mapping[str, str] = {}  # label -> the text that it is read by in place of its own

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Which cases these are, as JSON types."""

    @abstractmethod
    def cases(self) -> list[tuple[str, int]]:
        """(id, number) of each case."""

    @abstractmethod
    def trial(self, number: int, adapter: Adapter | None) -> Trial:
        """The case, in the frame of the model; raises `Excluded` where it cannot be scored."""

    def partner(self, number: int, adapter: Adapter | None) -> Bool[np.ndarray, "*spatial"] | None:
        """The truth of another case of the very same text; None where there is none."""
        return None

    def prior(self, trial: Trial) -> Hashable | None:
        """What names the location prior of a trial; None where there is none."""
        return None

    def masks(self, prior: Any, adapter: Adapter | None) -> Iterator[Bool[np.ndarray, "*spatial"]]:
        """The masks of training cases that this location prior is the mean of."""
        yield from ()


@dataclass(frozen=True)
class Records(Source):
    """The records of a data set that have an image and a truth: all, or those of a split, at most `count` of them.

    `labels` keeps those that show one of these; `texts` says by which text a label is read in place of the record's
    own, for findings that the model knows by another name. The location prior of a label is the mean mask of up to
    `PRIOR` records of `prior_split`, of other patients.
    """

    dataset: Dataset
    split: str | None = None
    count: int | None = None
    prior_split: str = "train"
    labels: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.dataset.name

    @property
    def credentialed(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.dataset.credentialed

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"{self.count} records of {self.name}; give 1 or more")

    @cached_property
    def _chosen(self) -> Dataset:
        chosen = self.dataset if self.split is None else self.dataset.where(split=self.split)
        whole = [record for record in chosen if record.image is not None and record.truth is not None]
        if not whole:
            raise ValueError(f"{self.name} has no record with an image and a truth{_of(self.split)}")
        known = {record.label for record in whole}
        if unknown := [label for label in (*self.labels, *self.texts) if label not in known]:
            raise ValueError(f"{self.name} shows no {', '.join(unknown)}{_of(self.split)}; it shows {_list(known)}")
        kept = [_read_as(record, self.texts) for record in whole if not self.labels or record.label in self.labels]
        drawn = np.sort(np.random.default_rng(0).permutation(len(kept))[: self.count])
        left_out = {
            **chosen.left_out,
            "no image or no truth": len(chosen) - len(whole),
            "another label": len(whole) - len(kept),
            "beyond the count that was asked for": len(kept) - len(drawn),
        }
        some = {reason: count for reason, count in left_out.items() if count}
        return replace(chosen, records=tuple(kept[at] for at in drawn), left_out=some)

    @property
    def left_out(self) -> Mapping[str, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._chosen.left_out

    @cached_property
    def _partners(self) -> tuple[int | None, ...]:
        found = list(self._chosen)
        return same_text_partners(
            [f"{one.label}\n{one.prompt}" for one in found], [one.patient or one.id for one in found]
        )

    def about(self) -> dict[str, Any]:
        listed = json.dumps([_told(record) for record in self._chosen])
        facts = {"data": self.name, "split": self.split, "count": len(self._chosen), "set": dict(self.dataset.about)}
        facts |= {"labels": list(self.labels), "read_as": dict(self.texts)}
        return {**facts, "records": hashlib.sha256(listed.encode()).hexdigest()[:12]}

    def cases(self) -> list[tuple[str, int]]:
        return [(record.id, number) for number, record in enumerate(self._chosen)]

    def trial(self, number: int, adapter: Adapter | None) -> Trial:
        model, record = model_of(adapter), self._chosen.records[number]
        if record.unit == CODES:
            raise Excluded("the image holds codes and no intensities")
        assert record.image is not None
        framed = read(record, steps_of(record.image, model))
        assert framed.truth is not None  # only records with a truth were chosen
        label = record.label or framed.truth.label
        facts = {"words": record.words, "patient": record.patient or record.id, "share": framed.share}
        return Trial(label, record.prompt, suited(framed.sample, model), framed.truth, **facts)

    def partner(self, number: int, adapter: Adapter | None) -> Bool[np.ndarray, "*spatial"] | None:
        other = self._partners[number]
        return None if other is None else self._truth(self._chosen.records[other], model_of(adapter))

    def prior(self, trial: Trial) -> Hashable | None:
        return trial.label

    def masks(self, prior: Any, adapter: Adapter | None) -> Iterator[Bool[np.ndarray, "*spatial"]]:
        own = {record.patient for record in self._chosen}
        others = [
            record
            for record in self.dataset
            if record.split == self.prior_split and record.label == prior and record.patient not in own
        ]
        for record in [one for one in others if one.image is not None and one.truth is not None][:PRIOR]:
            if (mask := self._truth(record, model_of(adapter))) is not None:
                yield mask

    def _truth(self, record: Record, adapter: Adapter) -> Bool[np.ndarray, "*spatial"] | None:
        assert record.image is not None
        try:
            truth = read(record, steps_of(record.image, adapter)).truth
        except Excluded:
            return None
        return None if truth is None else truth.values


@dataclass(frozen=True)
class Runs(Source):
    """Run folders with masks, named by a CSV file: columns run and mask, and where known words, label, mask_values,
    region, region_values, patient, group. Paths are relative to the file.
    """

    table: str | os.PathLike[str]
    name: str = "runs"
    _lines: tuple[tuple[str, Mapping[str, str]], ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        path = Path(self.table)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there; give a CSV file with the columns run, mask and words")
        lines = tuple(rows(path, ("run", "mask")))
        if not lines:
            raise ValueError(f"{path} has no row below its header")
        object.__setattr__(self, "_lines", lines)

    def about(self) -> dict[str, Any]:
        content = hashlib.sha256(Path(self.table).read_bytes()).hexdigest()[:12]
        return {"data": self.name, "table": Path(self.table).name, "sha256": content}

    def cases(self) -> list[tuple[str, int]]:
        return [(f"{row['run']}, row {number + 1}", number) for number, (_, row) in enumerate(self._lines)]

    def trial(self, number: int, adapter: Adapter | None) -> Trial:
        place, row = self._lines[number]
        made = load_run(Path(self.table).parent / row["run"])
        words = tuple(part.strip() for part in row.get("words", "").split(";") if part.strip())
        label = row.get("label") or ", ".join(words) or made.prompt.text
        truth = Mask(label, self._mask(place, row, "mask", made.sample.geometry), made.sample.geometry)
        if not truth.values.any():
            raise Excluded("the truth is empty")
        region = None
        if row.get("region"):
            values = self._mask(place, row, "region", made.sample.geometry)
            region = Mask("region", values, made.sample.geometry)
        patient, group = row.get("patient", ""), row.get("group", "")
        return Trial(label, made.prompt.text, made.sample, truth, region, words, patient, group, explanation=made)

    def _mask(
        self, place: str, row: Mapping[str, str], column: str, geometry: Geometry
    ) -> Bool[np.ndarray, "*spatial"]:
        wanted = [whole(part, f"{place}, {column}_values") for part in row.get(f"{column}_values", "").split()]
        try:
            return read_mask(Path(self.table).parent / row[column], geometry, wanted)
        except FileNotFoundError:
            raise
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error


def steps_of(path: Path, adapter: Adapter) -> Callable[[Geometry], tuple[Step, ...]]:
    """From a stored image to a model's grid: by millimeters for volumes, by covering and cropping for pictures.

    The steps raise ValueError for a picture and a model of volumes.
    """
    model = adapter.geometry

    def steps(stored: Geometry) -> tuple[Step, ...]:
        if not is_picture(path):
            return way_to(stored, model)
        if model.ndim != stored.ndim:
            raise ValueError(f"{path} is a picture, and {adapter.name} reads volumes; choose a model of pictures")
        return Orient(), Cover(model.shape), Crop(model.shape)

    return steps


def is_picture(path: Path) -> bool:
    """Whether it is read by pillow, or from a stack of pictures: its cells have no place in the world."""
    return path.is_file() and path.suffix.lower() in PICTURES


def suited(sample: Sample, adapter: Adapter) -> Sample:
    """A picture from 0 to 1 with black and white at the ends of the model's range, and with its number of channels."""
    if sample.unit != "0 to 1":
        return sample
    low, high = (getattr(getattr(adapter, "pipeline", None), "config", None) or {}).get("intensity", (0.0, 1.0))
    autoencoder = getattr(getattr(adapter, "pipe", None), "vae", None)
    channels = autoencoder.config["in_channels"] if autoencoder is not None else 1
    image = low + sample.image * (high - low)
    if len(image) != channels:
        image = np.repeat(image.mean(0, keepdims=True), channels, axis=0)
    return replace(sample, image=image.astype(np.float32))


def model_of(adapter: Adapter | None) -> Adapter:
    """The model that reads the cases; ValueError where there is none."""
    if adapter is None:
        raise ValueError("these cases are read by a model; name one")
    return adapter


def _told(record: Record) -> list[Any]:
    """All that a row depends on; files by their name, size and time, so that the set may move."""
    truth = record.truth
    stored = [record.image, truth.path if isinstance(truth, MaskFile) else None]
    there = [(path.name, path.stat()) for path in stored if path is not None and path.is_file()]
    files = [(name, found.st_size, int(found.st_mtime)) for name, found in there]
    what = truth.values if isinstance(truth, MaskFile) else repr(truth)
    told = [record.id, record.prompt, record.label, record.words, record.patient]
    return [*told, record.index, record.size, record.unit, what, files]


def _read_as(record: Record, texts: Mapping[str, str]) -> Record:
    text = texts.get(record.label)
    return record if text is None else replace(record, prompt=text, words=(text,))


def _list(labels: Iterable[str]) -> str:
    return ", ".join(sorted(labels)[:20]) + (", ..." if len(set(labels)) > 20 else "")


def _of(split: str | None) -> str:
    return "" if split is None else f" in the split {split!r}"
