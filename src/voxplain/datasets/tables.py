"""CSV files, zipped or not, with errors that name file and line; and paths that have to be on the disk."""

import csv
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

csv.field_size_limit(2**24)  # reports are longer than the 128 KiB that Python takes by default

Row = tuple[str, dict[str, str]]
"""("metadata.csv, line 7", column -> text without white space around it)."""


def find_table(folder: Path, name: str) -> Path:
    """`name` or `name`.gz in the folder. Raises FileNotFoundError, naming both."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} holds neither {name} nor {name}.gz; give the folder as it was distributed")


def rows(path: Path, columns: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a CSV file with a header, each with its place. Raises ValueError if one of `columns` is missing."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        header = reader.fieldnames or []
        if missing := [column for column in columns if column not in header]:
            raise ValueError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(header)}")
        for row in reader:
            place = f"{path.name}, line {reader.line_num}"
            if None in row:
                raise ValueError(f"{place} has more fields than the header; is a comma outside of quotes?")
            yield place, {column: value.strip() for column, value in row.items()}


def number(text: str, what: str) -> float:
    """The number that a text spells. Raises ValueError that says where it stood."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{what}: {text!r} is no number") from None


def numbers(text: str, what: str) -> tuple[float, ...]:
    """The numbers of a text, separated by spaces."""
    return tuple(number(part, what) for part in text.split())


def whole(text: str, what: str) -> int:
    """The whole number that a text spells, also as "256.0"."""
    value = number(text, what)
    if not value.is_integer():
        raise ValueError(f"{what}: {text!r} is no whole number")
    return int(value)


def on_disk(folders: Sequence[Path], relative: str) -> Path | None:
    """The first of the folders that holds the file, joined with it; None if none does."""
    return next((path for folder in folders if (path := folder / relative).is_file()), None)


def some_on_disk(found: int, missing: int, folders: Sequence[Path], example: str) -> None:
    """Raises FileNotFoundError where not one of several files was found: then it is the folder that is wrong."""
    if missing and not found:
        looked = ", ".join(map(str, folders))
        raise FileNotFoundError(f"none of {missing} images is on the disk; looked for {example} in {looked}")
