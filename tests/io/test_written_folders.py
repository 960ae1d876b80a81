"""A file is replaced in one step, and what is private is never readable by others, not even half written."""

import os
import stat

import pytest

from voxplain.io.folders import write_file


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize(("mode", "expected"), [(0o600, 0o600), (0o640, 0o640), (None, None)])
def test_a_file_has_its_mode_from_the_first_byte_on(tmp_path, umask, mode, expected):
    seen = []

    def content():
        (partial,) = tmp_path.iterdir()
        seen.append(mode_of(partial))
        yield b"private"

    before = os.umask(umask)
    try:
        write_file(tmp_path / "a", content(), mode=mode)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "a") == (0o666 & ~umask if expected is None else expected)
    assert seen[0] & ~mode_of(tmp_path / "a") == 0


def test_content_in_parts_is_written_whole_or_not_at_all(tmp_path):
    def broken():
        yield b"two"
        raise KeyboardInterrupt

    write_file(tmp_path / "a", iter([b"on", b"e"]))
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a", broken())
    assert (tmp_path / "a").read_bytes() == b"one" and len(list(tmp_path.iterdir())) == 1
