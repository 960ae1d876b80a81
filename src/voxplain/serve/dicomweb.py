"""A read-only DICOMweb service (DICOM PS3.18) over a folder: QIDO-RS and WADO-RS, as much of them as viewers ask for.

Objects are found by their UIDs among those that lay in the folder at the start; no path is ever made of a request.
"""

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset

PREFIX = "/dicom-web"
LEVELS = ("studies", "series", "instances")
IDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
STUDY = [
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
    "StudyDescription",
]
SERIES = ["Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "BodyPartExamined"]
INSTANCE = ["SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames"]
PIXELS = {"PixelData": ("7FE00010", "OW"), "FloatPixelData": ("7FE00008", "OF")}  # tag, value representation
PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
OPTIONS = ("limit", "offset", "includefield", "fuzzymatching")
JSON, OBJECT, BYTES = "application/dicom+json", "application/dicom", "application/octet-stream"
MOST = 5000  # results of one search
MEDIA = re.compile(r"[\w*.+-]+/[\w*.+-]+")
Ids = tuple[str, ...]


@dataclass(frozen=True)
class Instance:
    """One object: its file, and its header without pixels."""

    path: Path
    header: "Dataset"

    @property
    def ids(self) -> Ids:
        """The UIDs of study, series and instance."""
        return tuple(str(self.header[name].value) for name in IDS)

    @property
    def keyword(self) -> str:
        """The attribute that holds its pixels."""
        return "FloatPixelData" if self.header.SOPClassUID == PARAMETRIC_MAP else "PixelData"

    @cached_property
    def json(self) -> dict[str, Any]:
        """The header in DICOM's JSON model, with the transfer syntax that is offered."""
        syntax = {"vr": "UI", "Value": [str(self.header.file_meta.TransferSyntaxUID)]}
        return {**self.header.to_json_dict(), "00083002": syntax}

    def pixels(self) -> bytes:
        """The pixel data as it lies in the file."""
        from pydicom import dcmread

        return bytes(dcmread(self.path)[self.keyword].value)

    def frames(self, numbers: Sequence[int]) -> list[bytes]:
        """The pixels of frames, counted from 1; frames of single bits are packed anew, each from its first byte.

        Raises IndexError for a frame that is not there.
        """
        import numpy as np

        count, content = int(self.header.get("NumberOfFrames") or 1), self.pixels()
        if not all(1 <= number <= count for number in numbers):
            raise IndexError(f"there are frames 1 to {count}")
        bits = int(self.header.BitsAllocated)
        size = self.header.Rows * self.header.Columns * int(self.header.get("SamplesPerPixel") or 1) * bits
        if size % 8 == 0:
            return [content[(number - 1) * size // 8 : number * size // 8] for number in numbers]
        every = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
        return [np.packbits(every[(n - 1) * size : n * size], bitorder="little").tobytes() for n in numbers]


class Archive:
    """The uncompressed DICOM objects in a folder and in those below it, as they were when it was opened."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError for a folder without such objects."""
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError

        self.instances: dict[Ids, Instance] = {}
        for path in sorted(folder.rglob("*.dcm")):
            try:
                found = Instance(path, dcmread(path, stop_before_pixels=True))
                if not found.header.file_meta.TransferSyntaxUID.is_compressed:
                    self.instances[found.ids] = found
            except (InvalidDicomError, AttributeError, KeyError):
                continue  # no object with an identity
        if not self.instances:
            raise ValueError(f"{folder} holds no uncompressed DICOM objects (*.dcm) to serve")

    def below(self, ids: Ids) -> list[Instance]:
        """The objects of a study, a series, or everything for ()."""
        return [one for key, one in self.instances.items() if key[: len(ids)] == ids]

    def search(self, level: int, ids: Ids, query: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
        """QIDO-RS: what is at a level (0 studies, 1 series, 2 instances) below `ids` and matches the query.

        Raises ValueError for an attribute that is unknown or a number that is none.
        """
        query = list(query)
        wanted = [(_tag(name), value) for name, value in query if name.lower() not in OPTIONS]
        limits = {name.lower(): value for name, value in query}
        start, most = (_count(limits.get(name), usual) for name, usual in (("offset", 0), ("limit", MOST)))
        groups: dict[Ids, list[Instance]] = {}
        for one in self.below(ids):
            groups.setdefault(one.ids[: level + 1], []).append(one)
        rows = [_row(level, group) for group in groups.values()]
        fitting = [row for row in rows if all(_fits(row.get(tag), value) for tag, value in wanted)]
        return fitting[start : start + most]


def dicomweb_router(archive: Archive, prefix: str = PREFIX) -> Any:
    """A FastAPI router that serves the archive: searches, metadata, whole objects, frames and bulk data."""
    from fastapi import APIRouter, HTTPException, Request
    from fastapi.responses import JSONResponse, Response

    router = APIRouter(prefix=prefix)

    def sent(parts: Iterable[bytes], kind: str, accepted: set[str], extra: str = "") -> Response:
        if accepted.isdisjoint({kind, "*/*"}):
            raise HTTPException(406, f"this is answered as multipart/related with parts of {kind}")
        content, boundary = _multipart(parts, kind + extra)
        return Response(content, media_type=f'multipart/related; type="{kind}"; boundary={boundary}')

    def searched(request: Request, base: str, level: int, ids: Ids) -> Response:
        try:
            rows = archive.search(level, ids, request.query_params.multi_items())
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        return JSONResponse([{**row, "00081190": _element("UR", _url(base, row))} for row in rows], media_type=JSON)

    def framed(one: Instance, numbers: str, accepted: set[str]) -> Response:
        try:
            parts = one.frames([int(number) for number in numbers.split(",")])
        except ValueError as error:
            raise HTTPException(400, f"frames {numbers!r}: give numbers from 1, with commas between") from error
        except IndexError as error:
            raise HTTPException(404, str(error)) from error
        return sent(parts, BYTES, accepted, f"; transfer-syntax={one.header.file_meta.TransferSyntaxUID}")

    @router.get("/{path:path}", response_model=None)
    def answer(request: Request, path: str) -> Response:
        ids, rest = _parsed(path)
        base = str(request.base_url).rstrip("/") + prefix
        accepted = set(MEDIA.findall(request.headers.get("accept", ""))) or {"*/*"}
        if len(rest) == 1 and rest[0] in LEVELS[len(ids) :]:
            return searched(request, base, LEVELS.index(rest[0]), ids)
        below = archive.below(ids) if ids else []
        if not below:
            raise HTTPException(404, "there is no such object, or no such service")
        first = below[0]
        if rest == ["metadata"]:
            return JSONResponse([_metadata(one, base) for one in below], media_type=JSON)
        if not rest and len(below) == 1 and OBJECT in accepted and "multipart/related" not in accepted:
            return Response(first.path.read_bytes(), media_type=OBJECT)
        if not rest:
            return sent((one.path.read_bytes() for one in below), OBJECT, accepted)
        if len(ids) == 3 and len(rest) == 2 and rest[0] == "frames":
            return framed(first, rest[1], accepted)
        if len(ids) == 3 and rest == ["bulkdata", PIXELS[first.keyword][0]]:
            if "multipart/related" in accepted:
                return sent([first.pixels()], BYTES, accepted)
            return Response(first.pixels(), media_type=BYTES)
        raise HTTPException(404, "there is no such service")

    return router


def _parsed(path: str) -> tuple[Ids, list[str]]:
    """The UIDs that lead to a thing, and what is asked of it."""
    ids, rest = (), path.strip("/").split("/")
    while len(ids) < len(LEVELS) and len(rest) > 1 and rest[0] == LEVELS[len(ids)]:
        ids, rest = (*ids, rest[1]), rest[2:]
    return ids, rest


def _row(level: int, group: Sequence[Instance]) -> dict[str, Any]:
    """What a search tells of one study, series or instance."""
    names = (STUDY, [*SERIES, "StudyInstanceUID"], [*INSTANCE, "StudyInstanceUID", "SeriesInstanceUID"])[level]
    described = group[0].json
    row = {tag: described[tag] for tag in map(_tag, names) if tag in described}
    row["00080056"] = _element("CS", "ONLINE")
    if level == 0:
        row["00080061"] = _element("CS", *sorted({str(one.header.Modality) for one in group}))
        row["00201206"] = _element("IS", len({one.ids[1] for one in group}))
        row["00201208"] = _element("IS", len(group))
    if level == 1:
        row["00201209"] = _element("IS", len(group))
    return row


def _metadata(one: Instance, base: str) -> dict[str, Any]:
    tag, kind = PIXELS[one.keyword]
    return {**one.json, tag: {"vr": kind, "BulkDataURI": f"{_url(base, one.json)}/bulkdata/{tag}"}}


def _url(base: str, row: Mapping[str, Any]) -> str:
    """Where a study, series or instance is, by the UIDs in its JSON."""
    found = ((level, row.get(_tag(name))) for level, name in zip(LEVELS, IDS, strict=True))
    return base + "".join(f"/{level}/{uid['Value'][0]}" for level, uid in found if uid)


def _element(kind: str, *values: str | int) -> dict[str, Any]:
    return {"vr": kind, "Value": list(values)}


def _tag(name: str) -> str:
    from pydicom.datadict import tag_for_keyword

    if re.fullmatch("[0-9A-Fa-f]{8}", name):
        return name.upper()
    tag = tag_for_keyword(name)
    if tag is None:
        raise ValueError(f"{name!r} is no attribute of DICOM")
    return f"{tag:08X}"


def _count(text: str | None, usual: int) -> int:
    if text is None:
        return usual
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(f"{text!r} is no count; give a whole number from 0")
    return int(text)


def _fits(element: Mapping[str, Any] | None, wanted: str) -> bool:
    """Whether an attribute matches: a list of UIDs, a range of dates, or a text with * and ? as wildcards."""
    if wanted in ("", "*"):
        return True
    values = [one.get("Alphabetic", "") if isinstance(one, dict) else one for one in (element or {}).get("Value", [])]
    if element and element["vr"] in ("DA", "TM") and "-" in wanted:
        low, _, high = wanted.partition("-")
        return any(low <= str(one) <= (high or "9") for one in values)
    patterns = [one.strip().lower().replace("[", "[[]") for one in re.split(r"[,\\]", wanted)]
    return any(fnmatchcase(str(one).lower(), pattern) for one in values for pattern in patterns)


def _multipart(parts: Iterable[bytes], kind: str) -> tuple[bytes, str]:
    """The parts as one body, and the boundary between them."""
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode()
    return b"".join(b"".join((head, part, b"\r\n")) for part in parts) + f"--{boundary}--\r\n".encode(), boundary
