"""LPS becomes RAS in the file and comes back; exports are named, masked and explained."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from synthetic import explained

from voxplain.geometry import Geometry, regular
from voxplain.io import export, read_png, read_volume, write_png, write_volume
from voxplain.io.folders import safe_name
from voxplain.tokens import PhraseError

OBLIQUE = np.array([[0.0, -1.0, 2.0, 5.0], [0.5, 3.0, 1.0, -7.0], [4.0, 0.0, 0.0, 9.0], [0, 0, 0, 1]])


def test_a_voxel_is_where_the_patient_has_it(tmp_path):
    geometry = regular((4, 6, 8), (5.0, 3.0, 2.0), (-10.0, 20.0, 30.0))
    values = np.zeros((4, 6, 8), np.float32)
    values[3, 1, 2] = 7.0
    write_volume(tmp_path / "a.nii.gz", values, geometry)
    image = nib.Nifti1Image.from_filename(tmp_path / "a.nii.gz")
    assert image.shape == (8, 6, 4)
    assert image.get_fdata()[2, 1, 3] == 7.0
    left, posterior, superior = -10 + 2 * 2, 20 + 1 * 3, 30 + 3 * 5
    np.testing.assert_allclose(np.asarray(image.affine) @ [2, 1, 3, 1], [-left, -posterior, superior, 1])  # RAS
    assert nib.orientations.aff2axcodes(image.affine) == ("L", "P", "S")
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    assert image.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize(
    "geometry",
    [
        regular((4, 6, 8), (5.0, 3.0, 2.0), (-10.0, 20.0, 30.0)),
        Geometry((4, 6, 8), OBLIQUE, spacing_known=False),
        regular((6, 8), (3.0, 2.0), (4.0, -1.0)),
        regular((1, 1), 2.0),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_write_then_read_is_the_identity(tmp_path, geometry, name):
    values = np.random.default_rng(0).normal(size=geometry.shape).astype(np.float32)
    write_volume(tmp_path / name, values, geometry)
    found, place = read_volume(tmp_path / name, geometry.ndim)
    np.testing.assert_array_equal(found, values)
    assert place.same_as(geometry) and place.spacing_known == geometry.spacing_known


def test_channels_and_masks_survive(tmp_path):
    geometry = regular((4, 6, 8), 5.0)
    values = np.random.default_rng(0).normal(size=(3, 4, 6, 8)).astype(np.float32)
    write_volume(tmp_path / "a.nii.gz", values, geometry)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz")[0], values)
    write_volume(tmp_path / "m.nii.gz", values[0] > 0, geometry, np.uint8)
    mask = read_volume(tmp_path / "m.nii.gz")[0]
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, values[0] > 0)


def test_values_that_do_not_fit_the_geometry_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(4, 6\) do not fit the geometry \(6, 4\)"):
        write_volume(tmp_path / "a.nii", np.zeros((4, 6)), regular((6, 4), 1.0))
    assert not list(tmp_path.iterdir())


def test_a_volume_is_not_read_as_an_image(tmp_path):
    write_volume(tmp_path / "a.nii", np.zeros((4, 6, 8)), regular((4, 6, 8), 1.0))
    with pytest.raises(ValueError, match="no 2D image"):
        read_volume(tmp_path / "a.nii", 2)


@pytest.mark.parametrize("shape", [(8, 12, 16), (12, 16)])
def test_every_word_is_exported_and_only_distinguishable_ones_get_a_mask(tmp_path, shape):
    explanation = explained(shape)
    out = export(explanation, tmp_path / "out")
    sidecar = json.loads((out / "export.json").read_text())
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.nii.gz")} == {
        "sample.nii.gz",
        *(entry[kind] for entry in sidecar["files"] for kind in ("map", "mask") if entry[kind]),
    }
    assert len(sidecar["files"]) == 2 * len(explanation.prompt.words)
    assert [(e["word"], e["recipe"]) for e in sidecar["files"] if e["mask"] is None] == [("the", "mean")]
    assert "no segmentation" in sidecar["caution"]
    entry = sidecar["files"][0]
    values, geometry = read_volume(out / entry["map"], len(shape))
    assert geometry.same_as(explanation.sample.geometry)
    expected = explanation.word("Large").resize(explanation.sample.geometry)
    np.testing.assert_array_equal(values, expected.values)
    mask = read_volume(out / entry["mask"], len(shape))[0]
    assert mask.mean() == pytest.approx(0.25, abs=0.02)


def test_phrases_are_exported_and_unmeasured_ones_are_named(tmp_path):
    out = export(explained(), tmp_path / "out", ["effusion#2", "the left"])
    files = json.loads((out / "export.json").read_text())["files"]
    assert [entry["word"] for entry in files] == ["effusion#2", "the left", "effusion#2", "the left"]
    assert [entry["map"] is None for entry in files] == [False, False, False, True]
    assert files[3]["note"] == "not measured"


def test_a_phrase_of_words_that_are_not_distinguishable_and_a_spread_get_no_mask(tmp_path):
    explanation = explained((12, 16))
    mean = explanation.attributions["mean"]
    spread = replace(mean, provenance={"statistic": "standard deviation over seeds"})
    explanation = replace(explanation, attributions={"mean": mean, "mean spread over seeds": spread})
    entries = json.loads((export(explanation, tmp_path / "out", ["The", "lung"]) / "export.json").read_text())["files"]
    assert [(entry["distinguishable"], entry["mask"] is None) for entry in entries] == [
        (False, True),
        (True, False),
        (False, True),
        (True, True),
    ]


def test_the_sidecar_says_how_far_each_word_can_be_believed(tmp_path):
    explanation = explained((12, 16))
    sidecar = json.loads((export(explanation, tmp_path / "out") / "export.json").read_text())
    assert sidecar["honesty"] == json.loads(json.dumps(explanation.honesty))


@pytest.mark.parametrize(("name", "content"), [("a.txt", b"no"), ("a.nii", b"no"), ("a.nii.gz", b"no")])
def test_a_file_that_is_no_volume_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is no NIfTI volume"):
        read_volume(tmp_path / name)


def test_a_failed_export_leaves_nothing(tmp_path):
    with pytest.raises(PhraseError, match="pneumonia"):
        export(explained(), tmp_path / "out", ["pneumonia"])
    assert not list(tmp_path.iterdir())


def test_names_of_files_are_harmless():
    assert safe_name("../../etc/passwd") == "etc-passwd"
    assert safe_name("Œdème pulmonaire") == "deme-pulmonaire"
    assert safe_name("肺") == "word"
    assert len(safe_name("x" * 300)) == 40


def test_a_picture_survives(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_png(tmp_path / "a.png", rgb)
    np.testing.assert_array_equal(read_png(tmp_path / "a.png"), rgb)
