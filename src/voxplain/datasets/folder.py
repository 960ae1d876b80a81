"""A plain CSV file of images, masks or boxes and texts; also the form that any set is written in."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxplain.datasets.base import Boxes, Dataset, MaskFile, Outlines, Polygon, Record, Runs, Truth, counted
from voxplain.datasets.tables import from_json, numbers, on_disk, rows, some_on_disk, whole
from voxplain.io.folders import refuse_blocked, write_file

COLUMNS = (
    "id",
    "image",
    "index",
    "mask",
    "mask_values",
    "boxes",
    "outlines",
    "prompt",
    "words",
    "label",
    "labels",
    "patient",
    "split",
    "size",
    "unit",
)


def build_folder(
    root: str | os.PathLike,
    table: str = "metadata.csv",
    *,
    columns: Mapping[str, str] | None = None,
    credentialed: bool = False,
) -> Dataset:
    """The records of a CSV file in a folder; paths in it are relative to the folder, or absolute.

    Known columns are `COLUMNS`, all of them optional but `image` or `prompt`; what each holds is in docs/datasets.md.
    `columns` says under which name the table has one of them, as {"mask": "lung_mask"}. Further columns become
    `facts`. A file that is absent costs its row, counted; that none is there is an error. The set is `credentialed`
    where this or the file beside the table says so.
    """
    base = Path(root)
    path, given = base / table, dict(columns or {})
    if unknown := sorted(set(given) - set(COLUMNS)):
        raise ValueError(f"columns {', '.join(unknown)}: known are {', '.join(COLUMNS)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give a folder with a CSV file, and its name")
    about = _about(path)
    records, left_out = [], Counter(about.get("left_out", {}))
    missing = 0
    for count, (place, row) in enumerate(rows(path, tuple(given.values()))):
        ours = {name: row.get(given.get(name, name), "") for name in COLUMNS}
        facts = {name: value for name, value in row.items() if name not in {given.get(key, key) for key in COLUMNS}}
        image = on_disk([base], ours["image"]) if ours["image"] else None
        if not ours["image"] and not ours["prompt"]:
            left_out["neither image nor text"] += 1
        elif ours["image"] and image is None:
            left_out["the image is not on the disk"] += 1
            missing += 1
        elif ours["mask"] and on_disk([base], ours["mask"]) is None:
            left_out["the mask is not on the disk"] += 1
        else:
            name = ours["id"] or f"{path.stem}-{count:06d}"
            records.append(_record(base, name, image, ours, facts, place))
    some_on_disk(sum(record.image is not None for record in records), missing, [base], "its images")
    origin = about.get("about") or {"table": table, "columns": given}
    name, private = about.get("name", base.resolve().name), credentialed or bool(about.get("credentialed"))
    return Dataset(name, tuple(records), counted(left_out), origin, private)


def write_table(dataset: Dataset, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """Write the set as a CSV file that `build_folder` reads, and beside it `NAME.dataset.json` with what was left out.

    Images stay where they are: the table holds their paths. A credentialed set is written for its owner's eyes only.
    Raises as `place_of`, and ValueError where a path in the table is not in UTF-8.
    """
    table = place_of(path, overwrite=overwrite)
    names: list[str] = [*COLUMNS, "facts"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(record, table.parent) for record in dataset)
    about = {
        "name": dataset.name,
        "records": len(dataset),
        "left_out": dict(dataset.left_out),
        "credentialed": dataset.credentialed,
        "about": dict(dataset.about),
    }
    files = [(_sidecar(table), json.dumps(about, indent=2)), (table, buffer.getvalue())]
    try:
        content = [(place, text.encode()) for place, text in files]
    except UnicodeEncodeError as error:
        part = error.object[max(error.start - 40, 0) : error.end]
        raise ValueError(f"the table would hold {part!r}, which is not in UTF-8; rename that file or folder") from error
    for place, made in content if dataset.credentialed else reversed(content):  # no private table without its flag
        write_file(place, made, mode=0o600 if dataset.credentialed else None)
    return table


def place_of(path: str | os.PathLike, *, overwrite: bool = False, source: Path | None = None) -> Path:
    """Where a table is to be written. `source` is the table that it is made from.

    Raises ValueError for a name that does not end in .csv, and FileExistsError for the source, for a file that is there
    already unless `overwrite`, and in any case for one that has no `NAME.dataset.json` beside it, as tables of ours do.
    """
    table = Path(path).expanduser().resolve()
    if table.suffix != ".csv":
        raise ValueError(f"{table}: a table is written to a file whose name ends in .csv; give such a name")
    refuse_blocked(table)
    if table.exists():
        if source is not None and source.exists() and table.samefile(source):
            raise FileExistsError(f"{table} is what the set is built from, so it is not replaced; choose another file")
        if not _sidecar(table).is_file():
            raise FileExistsError(
                f"{table} has no {_sidecar(table).name} beside it, so it is not replaced; choose another"
            )
        if not overwrite:
            raise FileExistsError(f"{table} exists; choose another file or allow it to be replaced (--overwrite)")
    return table


def _record(
    base: Path, name: str, image: Path | None, ours: Mapping[str, str], others: Mapping[str, str], place: str
) -> Record:
    labels = _object(ours["labels"], f"{place}, labels")
    if not all(isinstance(value, bool) for value in labels.values()):
        raise ValueError(f'{place}, labels: expected true or false for each, as in {{"Edema": true}}')
    facts = _object(others.get("facts", ""), f"{place}, facts")
    facts |= {name: value for name, value in others.items() if name != "facts"}
    size = tuple(whole(part, f"{place}, size") for part in ours["size"].split())
    return Record(
        id=name,
        prompt=ours["prompt"],
        image=image,
        index=whole(ours["index"], f"{place}, index") if ours["index"] else None,
        truth=_truth(base, ours, place),
        words=tuple(part.strip() for part in ours["words"].split(";") if part.strip()),
        label=ours["label"],
        labels=labels,
        patient=ours["patient"],
        split=ours["split"],
        size=size or None,
        unit=ours["unit"],
        facts={key: value for key, value in facts.items() if value},
    )


def _object(text: str | bytes, place: str) -> dict[str, Any]:
    """The JSON object that a field holds; an empty field holds none."""
    found = from_json(text or "{}", place)
    if not isinstance(found, dict):
        raise ValueError(f'{place}: expected a JSON object, as in {{"name": ...}}')
    return found


def _truth(base: Path, ours: Mapping[str, str], place: str) -> Truth | None:
    given = [name for name in ("mask", "boxes", "outlines") if ours[name]]
    if len(given) > 1:
        raise ValueError(f"{place}: {' and '.join(given)}; a row has one truth, so give it as several rows")
    try:
        if ours["mask"]:
            values = tuple(whole(part, "mask_values") for part in ours["mask_values"].split())
            return MaskFile(base / ours["mask"], values)
        if ours["boxes"]:
            return Boxes(tuple(numbers(part, "boxes") for part in ours["boxes"].split(";") if part.strip()))
        if ours["outlines"]:
            return Outlines(tuple(map(_part, from_json(ours["outlines"], "outlines"))))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{place}: outlines are not as in docs/datasets.md: {error}") from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return None


def _part(part: Mapping[str, Any]) -> Polygon | Runs:
    if "points" in part:
        return Polygon(tuple(map(float, part["points"])))
    rows, columns = map(int, part["shape"])
    return Runs(tuple(map(int, part["counts"])), (rows, columns))


def _row(record: Record, home: Path) -> dict[str, str]:
    row = {
        "id": record.id,
        "image": _path(record.image, home),
        "index": "" if record.index is None else str(record.index),
        "prompt": record.prompt,
        "words": "; ".join(record.words),
        "label": record.label,
        "labels": json.dumps(dict(record.labels)) if record.labels else "",
        "patient": record.patient,
        "split": record.split,
        "size": " ".join(map(str, record.size or ())),
        "unit": record.unit,
        "facts": json.dumps(dict(record.facts), ensure_ascii=False) if record.facts else "",
    }
    match record.truth:
        case MaskFile(path, values):
            row |= {"mask": _path(path, home), "mask_values": " ".join(map(str, values))}
        case Boxes(boxes):
            row["boxes"] = "; ".join(" ".join(map(repr, box)) for box in boxes)
        case Outlines(parts):
            row["outlines"] = json.dumps([{name: getattr(part, name) for name in part.__slots__} for part in parts])
    return row


def _path(path: Path | None, home: Path) -> str:
    """Relative to the table where the file lies below it, else absolute."""
    if path is None:
        return ""
    final = path.resolve()
    return str(final.relative_to(home) if final.is_relative_to(home) else final)


def _sidecar(table: Path) -> Path:
    return table.with_name(f"{table.stem}.dataset.json")


def _about(table: Path) -> dict[str, Any]:
    sidecar = _sidecar(table)
    return _object(sidecar.read_bytes(), str(sidecar)) if sidecar.is_file() else {}
