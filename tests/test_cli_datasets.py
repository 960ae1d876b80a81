"""`voxplain dataset`: a table of the user's own files, and what was left out of it."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from voxplain.cli import app
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
