"""A volume from elsewhere lies under the maps by world coordinates, or is refused with what to do."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from synthetic import explained

from voxplain import maps
from voxplain.geometry import Geometry, regular
from voxplain.io import export, on_volume, read_volume, write_volume
from voxplain.io.placing import coverage, turned
from voxplain.models.medsyn.channels import volume_geometry
from voxplain.view.figure import figure
from voxplain.view.overlay import overlay

SHAPE = (8, 12, 16)


def fine(geometry, factor=3):
    return geometry.at(tuple(factor * size for size in geometry.shape))


def written(path, geometry, values=None):
    write_volume(path, np.zeros(geometry.shape, np.float32) if values is None else values, geometry)
    return path


def test_maps_are_where_they_were_on_a_finer_volume_with_other_axes(tmp_path):
    explanation = explained(SHAPE)
    own = fine(explanation.sample.geometry)
    order = np.eye(4)[:, [2, 0, 1, 3]]  # slices, rows, columns -> columns, slices, rows, and one of them backward
    other = turned(Geometry(tuple(own.shape[axis] for axis in (2, 0, 1)), own.affine @ order), 1)
    values = np.random.default_rng(0).normal(size=other.shape).astype(np.float32)
    shown = on_volume(explanation, written(tmp_path / "a.nii.gz", other, values))
    np.testing.assert_array_equal(shown.sample.image[0], values)
    assert shown.sample.geometry.same_as(other) and shown.sample.unit == "HU"
    facts = {"file": "a.nii.gz", "place": "file", "covered": 1.0}
    assert shown.provenance["shown_on"] == shown.sample.provenance["shown_on"] == facts

    out = export(shown, tmp_path / "out", ["left"])
    entry = json.loads((out / "export.json").read_text())
    assert entry["image"] == facts
    found, place = read_volume(out / entry["files"][0]["map"])
    assert place.same_as(other)
    heatmap = explanation.word("left")
    np.testing.assert_allclose(found, heatmap.resize(other).values, atol=1e-6)
    back = maps.Heatmap("left", found, place).resize(own)
    np.testing.assert_allclose(back.values, heatmap.resize(own).values, atol=1e-5)
    peak = place.world(np.array([np.unravel_index(found.argmax(), found.shape)], float))[0]
    cell = heatmap.geometry.world(np.array([heatmap.peak], float))[0]
    assert (np.abs(peak - cell) <= np.array(heatmap.geometry.spacing)[::-1] / 2).all()


def test_a_part_of_the_field_of_view_is_enough_and_the_rest_is_zero(tmp_path):
    explanation = explained(SHAPE)
    own = explanation.sample.geometry
    half = regular((8, 12, 32), own.spacing, own.world(np.array([[0.0, 0.0, 8.0]]))[0].tolist())  # one half, and beyond
    shown = on_volume(explanation, written(tmp_path / "a.nii", half))
    assert shown.provenance["shown_on"]["covered"] == pytest.approx(0.5, abs=0.05)
    values = shown.word("left").resize(half).values
    assert values[..., :8].min() > 0 and not values[..., 8:].any()


def test_a_file_whose_affine_is_not_true_is_laid_over_the_whole_run(tmp_path):
    explanation = explained(SHAPE)
    own = explanation.sample.geometry
    path = written(tmp_path / "a.nii.gz", regular((16, 24, 48), 1.0, (500.0, 500.0, 500.0)))
    assert on_volume(explanation, path, "run").sample.geometry.same_as(own.at((16, 24, 48)))
    back = on_volume(explanation, path, "medsyn").sample.geometry
    np.testing.assert_allclose(back.world(np.array([[0.0, 23, 0]])), own.at((16, 24, 48)).world(np.zeros((1, 3))))
    with pytest.raises(ValueError, match=r"a.nii.gz lies outside .*spans 500..548 x .* the run -34..78 x .*'medsyn'"):
        on_volume(explanation, path)


def test_a_volume_of_the_medsyn_script_is_where_its_atlas_is():
    own = volume_geometry((64, 64, 64))
    expected = volume_geometry((256, 256, 256), rows_flipped=True)
    assert turned(own.at((256, 256, 256)), 1).same_as(expected)
    assert coverage(expected, own) == 1.0 and coverage(own.at((256,) * 3), expected) == 1.0


def test_an_image_is_shown_on_an_image(tmp_path):
    explanation = explained((12, 16))
    shown = on_volume(explanation, written(tmp_path / "a.nii", fine(explanation.sample.geometry)))
    assert shown.sample.image.shape == (1, 36, 48)
    flat = nib.Nifti1Image(np.zeros((48, 36), np.float32), np.diag([-2.0, -2.0, 1, 1]))
    flat.to_filename(tmp_path / "flat.nii")
    assert on_volume(explanation, tmp_path / "flat.nii", "run").sample.image.shape == (1, 36, 48)
    with pytest.raises(ValueError, match=r"flat.nii has shape \(36, 48\), which is no 3D volume"):
        on_volume(explained(SHAPE), tmp_path / "flat.nii")


def test_what_cannot_be_placed_is_refused_by_name(tmp_path):
    explanation = explained(SHAPE)
    path = written(tmp_path / "a.nii", fine(explanation.sample.geometry))
    with pytest.raises(ValueError, match=r"place = 'here'; give file \(.*run \(.*medsyn \("):
        on_volume(explanation, path, "here")
    with pytest.raises(FileNotFoundError):
        on_volume(explanation, tmp_path / "none.nii")
    bare = nib.Nifti1Image(np.zeros((16, 12, 8), np.float32), None)
    bare.to_filename(tmp_path / "bare.nii")
    with pytest.raises(ValueError, match="bare.nii does not say where its voxels are: it has neither an sform"):
        on_volume(explanation, tmp_path / "bare.nii")
    assert on_volume(explanation, tmp_path / "bare.nii", "run").sample.image.shape == (1, *SHAPE)
    colors = np.zeros((16, 12, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(colors, np.eye(4)).to_filename(tmp_path / "colors.nii")
    with pytest.raises(ValueError, match="colors.nii holds .*no intensities"):
        on_volume(explanation, tmp_path / "colors.nii")
    sample = explanation.sample
    unknown = replace(explanation, sample=replace(sample, geometry=replace(sample.geometry, spacing_known=False)))
    with pytest.raises(ValueError, match="nobody knows the size of this run's voxels.*place 'run'"):
        on_volume(unknown, path)
    assert not on_volume(unknown, path, "run").sample.geometry.spacing_known


def test_only_the_words_that_are_asked_for_are_enlarged_and_for_pictures_only_a_slice(tmp_path, monkeypatch):
    explanation, sizes = explained(SHAPE), []
    shown = on_volume(explanation, written(tmp_path / "a.nii", fine(explanation.sample.geometry, 4)))
    whole, stock = shown.sample.image[0].size, maps.resample_to

    def counted(values, source, target, mode="linear"):
        sizes.append(int(np.prod(target.shape)))
        return stock(values, source, target, mode)

    monkeypatch.setattr(maps, "resample_to", counted)
    overlay(shown.sample, explanation.word("left"))
    figure(shown, ["left"])
    assert sizes and max(sizes) <= whole / 16
    sizes.clear()
    export(shown, tmp_path / "out", ["left"])
    assert sizes == [whole] * 4  # a map and a mask by either recipe
