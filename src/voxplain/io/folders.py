"""Folders and files that are either complete or not there."""

import os
import re
import shutil
import unicodedata
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(folder: str | os.PathLike, *, overwrite: bool = False, marker: str) -> Iterator[Path]:
    """Yield a hidden folder beside `folder` that takes its place when the block ends, and vanishes if it fails.

    An existing folder is refused, with `FileExistsError`, unless `overwrite`; even then only one that is empty or
    holds `marker` (a file that only we write) is replaced, and the old one stays until the new one is complete.
    """
    final = Path(folder).expanduser().resolve()
    if final.exists() and not overwrite:
        raise FileExistsError(f"{final} exists; choose another folder or allow it to be replaced (--overwrite)")
    if final.exists() and not (final.is_dir() and ((final / marker).is_file() or not any(final.iterdir()))):
        raise FileExistsError(f"{final} holds no {marker}, so it is not replaced; choose another folder")
    refuse_blocked(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        yield partial
        _swap(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, final: Path) -> None:
    old = partial.with_suffix(".old")
    try:
        if final.exists():
            final.rename(old)
        partial.rename(final)
    except BaseException:
        if old.exists() and not final.exists():
            old.rename(final)  # interrupted between the two renames: the old folder comes back
        raise
    try:
        shutil.rmtree(old, ignore_errors=True)
    except KeyboardInterrupt:  # what is new is in place; the rest of the old folder still has to go
        shutil.rmtree(old, ignore_errors=True)
        raise


def write_file(path: str | os.PathLike, content: bytes | Iterable[bytes], *, mode: int | None = None) -> None:
    """Replace the file at `path` in one step: readers see the old content or the new one, never a part.

    Content may come in parts. `mode` says who may read it, from its first byte on (0o600: its owner alone); None leaves
    that to the system. Folders that it lies in are made where they are not there yet.
    """
    final = Path(path).expanduser().resolve()
    if final.is_dir():
        raise IsADirectoryError(f"{final} is a folder; name the file to write")
    refuse_blocked(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        with open(
            partial, "xb", opener=lambda name, flags: os.open(name, flags, 0o666 if mode is None else mode)
        ) as file:
            file.writelines([content] if isinstance(content, bytes) else content)
        if mode is not None:
            partial.chmod(mode)  # also what the umask took away
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


def refuse_blocked(path: str | os.PathLike) -> None:
    """Raise if nothing can be written at `path`: what there is of the folders above it is a file, or is read-only."""
    final = Path(path).expanduser().resolve()
    above = next(each for each in final.parents if each.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{final} cannot be written: {above} is a file, not a folder; choose another place")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"{final} cannot be written: {above} is read-only to you; choose another place")


def safe_name(text: str) -> str:
    """`text` as a part of a file name: letters, digits and dashes, at most 40 characters, never empty."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-")[:40] or "word"
