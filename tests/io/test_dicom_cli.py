"""`voxplain export --dicom`: what it writes, what it says, what it refuses."""

import json

import pytest
from synthetic import explained
from typer.testing import CliRunner

from voxplain.cli import app, reading

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("highdicom", reason="needs the extra dicom")


@pytest.fixture(autouse=True)
def run(monkeypatch):
    """Any run folder holds this."""
    monkeypatch.setattr(reading, "opened", lambda *given: explained((4, 6, 8)))
    monkeypatch.delenv("VOXPLAIN_DEBUG", raising=False)


def call(*arguments):
    return CliRunner().invoke(app, ["export", "run", *(str(argument) for argument in arguments)])


def test_words_stay_out_unless_they_are_asked_for(tmp_path):
    result = call("--dicom", tmp_path / "a", "--word", "Large")
    assert result.exit_code == 0 and "--with-prompt" in result.stderr
    assert pydicom.dcmread(tmp_path / "a" / "seg" / "mean.dcm").SegmentSequence[0].SegmentLabel == "word 1"
    assert {path.parent.name for path in (tmp_path / "a").rglob("*.dcm")} == {"ct", "seg", "map"}
    result = call("--dicom", tmp_path / "b", "--word", "Large", "--with-prompt", "--raw")
    assert result.exit_code == 0 and "--with-prompt" not in result.stderr
    assert pydicom.dcmread(tmp_path / "b" / "seg" / "mean.dcm").SegmentSequence[0].SegmentLabel == "Large"
    assert json.loads((tmp_path / "b" / "export.json").read_text())["files"][0]["raw"] == "map/mean-01-raw.dcm"


def test_an_image_of_two_axes_is_refused_with_what_to_use_instead(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "opened", lambda *given: explained((12, 16), unit="brightness"))
    result = call("--dicom", tmp_path / "out")
    assert result.exit_code == 2 and "--nifti" in result.stderr and "voxplain overlay" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "part"), [((), "--nifti or by --dicom"), (("--dicom", "out", "--word", "pneumonia"), "pneumonia")]
)
def test_what_cannot_be_written_is_one_line(tmp_path, monkeypatch, arguments, part):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2 and part in result.stderr
    assert not list(tmp_path.iterdir())
