"""`voxplain dataset`: a table of the user's own files, and what was left out of it."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from voxplain.cli import app, base
from voxplain.cli.datasets import options_of
from voxplain.datasets.base import RuleWarning
from voxplain.datasets.folder import build_folder


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def films(tmp_path):
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("image,boxes,prompt,split\na.png,0 0 2 2,nodule,test\n")
    return tmp_path


def test_a_folder_becomes_a_table_that_reads_back(films):
    result = call("dataset", "folder", films, "--out", films / "table.csv")
    assert result.exit_code == 0, result.stderr
    assert "table.csv" in result.stderr + result.stdout
    made = build_folder(films, table="table.csv")
    assert [record.prompt for record in made] == ["nodule"] and made.records[0].truth is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("imagenet", "."), "no data set 'imagenet'"),
        (("ms-cxr",), "give its folder"),
        (("folder", ".", "--set", "views"), "NAME=VALUE"),
        (("folder", ".", "--set", "color=red"), "its options are"),
        (("coco-gen", ".", "--set", "count=many"), "count=many: give a whole number"),
        (("folder", ".", "--set", "columns=mask"), "columns=mask: give OURS:YOURS"),
        (("folder", ".", "--set", "columns=mask:a,mask:b"), "columns=mask:a,mask:b: give OURS:YOURS"),
        (("folder", ".", "--set", "credentialed=true"), "credentialed=true: give yes or no"),
        (("folder", ".", "--set", "table=a.csv", "--set", "table=b.csv"), "--set table is given more than once"),
        (("mimic-cxr", ".", "--set", "views=PA,"), "views=PA,: give names with commas between"),
        (("shared-brain_mri", "--set", "split=train"), "its options are none"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(tmp_path, arguments, message):
    result = call("dataset", *arguments, "--out", tmp_path / "t.csv")
    assert result.exit_code == 2 and message in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_foreign_table_is_read_by_naming_its_columns(films):
    (films / "mine.csv").write_text("file,text,where\na.png,nodule,0 0 2 2\n")
    columns = "columns=image:file,prompt:text,boxes:where"
    made = call("dataset", "folder", films, "--out", films / "t.csv", "--set", "table=mine.csv", "--set", columns)
    assert made.exit_code == 0, made.stderr
    (record,) = build_folder(films, table="t.csv")
    assert (record.image.name, record.prompt, record.truth.boxes) == ("a.png", "nodule", ((0, 0, 2, 2),))


def test_no_file_is_replaced_unasked_and_none_that_is_read_at_all(films):
    before = (films / "metadata.csv").read_bytes()
    for more in ((), ("--overwrite",)):
        result = call("dataset", "folder", films, "--out", films / "metadata.csv", *more)
        assert result.exit_code == 2 and "so it is not replaced" in result.stderr
    assert (films / "metadata.csv").read_bytes() == before
    table = ("dataset", "folder", films, "--out", films / "t.csv")
    assert call(*table).exit_code == 0
    again = call(*table)
    assert again.exit_code == 2 and "--overwrite" in again.stderr
    assert call(*table, "--overwrite").exit_code == 0
    own = call(*table, "--overwrite", "--set", "table=t.csv")
    assert own.exit_code == 2 and "is what the set is built from" in own.stderr


def test_a_folder_is_private_where_the_user_says_so(films):
    result = call("dataset", "folder", films, "--out", films / "t.csv", "--set", "credentialed=yes")
    assert result.exit_code == 0 and "stay on this disk" in result.stderr
    assert (films / "t.csv").stat().st_mode & 0o077 == 0 and build_folder(films, "t.csv").credentialed


def test_spaces_after_commas_are_no_part_of_a_name():
    given = ["views=PA, AP", "columns=mask: lung_mask , prompt:text", "credentialed=yes", "count=3"]
    assert options_of(given) == {
        "views": ["PA", "AP"],
        "columns": {"mask": "lung_mask", "prompt": "text"},
        "credentialed": True,
        "count": 3,
    }


def test_a_folder_whose_name_is_not_in_utf_8_is_built_or_named(films):
    odd = films / os.fsdecode(b"f\xff")
    odd.mkdir()
    for name in ("a.png", "metadata.csv"):
        (films / name).rename(odd / name)
    assert call("dataset", "folder", odd, "--out", odd / "t.csv").exit_code == 0
    result = call("dataset", "folder", odd, "--out", films / "t.csv")
    assert result.exit_code == 2 and "not in UTF-8; rename" in result.stderr


@pytest.fixture
def clock(monkeypatch):
    """The time, as a list of one number of seconds."""
    now = [0.0]
    monkeypatch.setattr(base.time, "monotonic", lambda: now[0])
    return now


def test_progress_off_a_terminal_is_a_line_now_and_then_and_the_last(clock, capsys):
    with base.progress() as report:
        for done in range(11):
            report("cases", done, 10, base.remaining(900 * (10 - done)))
            clock[0] += 20
    assert capsys.readouterr().err.splitlines() == [
        "cases (2 h 0 min left): 2 of 10",
        "cases (1 h 30 min left): 4 of 10",
        "cases (1 h 0 min left): 6 of 10",
        "cases (30 min left): 8 of 10",
        "cases: 10 of 10",
    ]


def test_what_is_quick_prints_no_progress(clock, capsys):
    with base.progress() as report:
        for done in range(11):
            report("steps", done, 10)
            clock[0] += 1
    assert capsys.readouterr().err == ""


def test_the_time_left_is_told_in_its_unit():
    told = {0: "", 40: "(40 s left)", 89: "(89 s left)", 91: "(2 min left)", 3599: "(1 h 0 min left)"}
    assert {seconds: base.remaining(seconds) for seconds in told} == told
    assert base.remaining(7300.0) == "(2 h 2 min left)"


def test_the_rule_of_credentialed_data_is_said_in_one_line(monkeypatch):
    def warned(*_, **__):
        warnings.warn("too technical", stacklevel=1)
        warnings.warn("prompts are sent away", RuleWarning, stacklevel=1)
        raise ValueError("done")

    monkeypatch.setattr("voxplain.datasets.opening.build", warned)
    result = call("dataset", "folder", ".", "--out", "t.csv")
    assert result.stderr.splitlines() == ["warning: prompts are sent away", "error: done"]
