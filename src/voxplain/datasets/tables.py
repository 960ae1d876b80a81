"""CSV files, zipped or not, and JSON, with errors that name file and line; and paths that have to be on the disk."""

import csv
import errno
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

csv.field_size_limit(2**24)  # reports are longer than the 128 KiB that Python takes by default

Row = tuple[str, dict[str, str]]
"""("metadata.csv, line 7", column -> text without white space around it)."""
Fields = Mapping[str, type | tuple[type, ...]]
"""What an entry of a JSON document must have -> the types that it may have there."""
ID = (int, str)
AnyRow = TypeVar("AnyRow", bound=tuple[str, Mapping[str, Any]])


def find_table(folder: Path, name: str) -> Path:
    """`name` or `name`.gz in the folder. Raises FileNotFoundError, naming both."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} holds neither {name} nor {name}.gz; give the folder as it was distributed")


def rows(path: Path, columns: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a CSV file with a header, each with its place.

    Raises ValueError if one of `columns` is missing, a name stands twice in the header, a row has not as many fields
    as it, a quote is never closed, or the file is cut short or not in UTF-8.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    line = 0
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval=None, strict=True)
            header = reader.fieldnames or []
            if missing := [column for column in columns if column not in header]:
                raise ValueError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(header)}")
            if twice := [name for name, count in Counter(header).items() if name and count > 1]:
                raise ValueError(
                    f"{path}, line 1 names {', '.join(twice)} more than once; give each column its own name"
                )
            for row in reader:
                line = reader.line_num
                place = f"{path.name}, line {line}"
                if None in row:
                    raise ValueError(f"{place} has more fields than the header; is a comma outside of quotes?")
                if None in row.values():
                    raise ValueError(f"{place} has fewer fields than the header; leave a field empty, but not out")
                yield place, {column: value.strip() for column, value in row.items()}
    except UnicodeError as error:
        raise ValueError(f"{path} is not in UTF-8, after line {line}: {error}; save it as UTF-8") from error
    except (csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read after line {line}: {error}; is a quote open, or the file damaged?"
        ) from error


def distinct(found: Iterable[AnyRow], name: str) -> Iterator[AnyRow]:
    """The rows, as long as no two have the same `name`. Raises ValueError with both of their places."""
    seen: dict[Hashable, str] = {}
    for row in found:
        place, fields = row
        if (first := seen.setdefault(fields[name], place)) is not place:
            raise ValueError(f"{place} has the {name} of {first}; keep the one that is right")
        yield row


def from_json(text: str | bytes, place: str) -> Any:
    """What a JSON text holds. Raises ValueError that says where it stood."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or too deep
        raise ValueError(f"{place} is no JSON that can be read: {error}") from error


def read_document(path: Path, lists: Sequence[str]) -> dict[str, list[Any]]:
    """The lists of that name in a JSON file of one object. Raises ValueError that says which it has not."""
    document = from_json(path.read_bytes(), str(path))
    found = document if isinstance(document, dict) else {}
    if missing := [name for name in lists if not isinstance(found.get(name), list)]:
        raise ValueError(f"{path} has no {', '.join(missing)}; expected an object with the lists {', '.join(lists)}")
    return {name: found[name] for name in lists}


def entries(path: Path, name: str, listed: Iterable[Any], fields: Fields) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a list in a JSON file, each with its place. Raises ValueError where one lacks one of `fields`."""
    for number, entry in enumerate(listed, start=1):
        place = f"{path.name}, {name} {number}"
        for field, types in fields.items():
            value = entry.get(field) if isinstance(entry, dict) else None
            if not isinstance(value, types):
                kinds = " or ".join(each.__name__ for each in (types if isinstance(types, tuple) else (types,)))
                raise ValueError(f"{place} has no {field} that is {kinds}; is the file whole?")
        yield place, entry


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
    return next((path for folder in folders if _is_file(path := folder / relative)), None)


def some_on_disk(found: int, missing: int, folders: Sequence[Path], example: str) -> None:
    """Raises FileNotFoundError where not one of several files was found: then it is the folder that is wrong."""
    if missing and not found:
        looked = ", ".join(map(str, folders))
        raise FileNotFoundError(f"none of {missing} images is on the disk; looked for {example} in {looked}")


def check_known(what: str, asked: Collection[str], known: Collection[str]) -> None:
    """Raises ValueError for what is asked for and not known."""
    if unknown := sorted(set(asked) - set(known)):
        raise ValueError(f"{what} {', '.join(unknown)}: there are {', '.join(filter(None, known))}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # a text, and no name of a file
            return False
        raise
