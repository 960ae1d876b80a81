"""A run as DICOM comes back voxel by voxel: image, masks and maps in one frame, marked, and without the prompt."""

import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from synthetic import explained

from voxplain import masks
from voxplain.geometry import Geometry, regular
from voxplain.maps import Sample

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("highdicom", reason="needs the extra dicom")

from voxplain.io.dicom import axial, export  # noqa: E402
from voxplain.io.dicom_series import read_series  # noqa: E402

NEWER = "(0008,001c)"  # Synthetic Data: in the standard since 2023, and in no dciodvfy of before


@pytest.fixture(scope="module")
def run():
    return explained()


@pytest.fixture(scope="module")
def out(run, tmp_path_factory):
    return export(run, tmp_path_factory.mktemp("dicom") / "out", raw=True)


def entries(out, recipe="mean"):
    return [entry for entry in json.loads((out / "export.json").read_text())["files"] if entry["recipe"] == recipe]


def read_frames(path):
    """Positions, pixels and the affine that they say, from the file alone."""
    one = pydicom.dcmread(path)
    positions = np.array(
        [f.PlanePositionSequence[0].ImagePositionPatient for f in one.PerFrameFunctionalGroupsSequence]
    )
    shared = one.SharedFunctionalGroupsSequence[0]
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    rows, columns = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    return one, positions.astype(float), np.stack([axes[1] * rows, axes[0] * columns], 1)


def test_the_image_comes_back_as_a_ct_series_in_whole_hounsfield_units(run, out):
    values, geometry = read_series(out / "ct")
    np.testing.assert_array_equal(values, np.rint(run.sample.image[0]))
    np.testing.assert_allclose(geometry.affine, run.sample.geometry.affine, atol=1e-9)
    assert geometry.shape == run.sample.geometry.shape


def test_maps_come_back_with_their_true_scale_in_the_slices_of_the_ct(run, out):
    _, geometry = read_series(out / "ct")
    for entry in entries(out):
        heatmap = run.word(entry["word"])
        whole = heatmap.resize(run.sample.geometry).values
        inside = masks.top_fraction(heatmap).resize(run.sample.geometry).values
        for kind, expected in (("map", np.where(inside, whole, 0)), ("raw", whole)):
            if entry[kind] is None:
                assert kind == "map" and entry["word"] == "the"
                continue
            one, positions, plane = read_frames(out / entry[kind])
            assert one.SOPClassUID.name == "Parametric Map Storage"
            stored = one.pixel_array
            assert stored.dtype == np.float32 and stored.max() == 1.0
            scale = one.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0].RealWorldValueSlope
            np.testing.assert_allclose(stored * scale, expected, rtol=1e-6)
            np.testing.assert_array_equal(stored == 0, expected == 0)
            ahead = geometry.world(np.array([[k, 0, 0] for k in range(len(stored))], float))
            np.testing.assert_allclose(positions, ahead, atol=1e-9)  # frame k lies on slice k of the CT
            np.testing.assert_allclose(plane, geometry.affine[:3, 1:3], atol=1e-9)
            assert (np.diff(positions[:, 2]) > 0).all()
            assert one.BodyPartExamined == "CHEST"


def test_masks_overlap_in_one_binary_seg_and_come_back(run, out):
    from highdicom.seg import segread

    every = entries(out)
    found = [entry for entry in every if entry["mask"]]
    seg = segread(out / found[0]["mask"])
    assert seg.SegmentationType == "BINARY" and [entry["word"] for entry in found].count("the") == 0
    volume = seg.get_volume(combine_segments=False)
    place = volume.get_affine("LPS")[:3, 3]
    values = np.moveaxis(np.asarray(volume.array), -1, 0) > 0
    if not np.allclose(place, run.sample.geometry.affine[:3, 3]):  # the reader may start at the top
        values = values[:, ::-1]
    expected = [masks.top_fraction(run.word(e["word"])).resize(run.sample.geometry).values for e in found]
    np.testing.assert_array_equal(values, np.stack(expected)[:, : values.shape[1]])
    assert (values.sum(0) > 1).any()
    assert [segment.SegmentNumber for segment in seg.SegmentSequence] == [entry["segment"] for entry in found]
    colors = {tuple(segment.RecommendedDisplayCIELabValue) for segment in seg.SegmentSequence}
    assert len(colors) == len({(entry["number"] - 1) % 7 for entry in found})


def test_every_object_is_marked_as_synthetic_and_lies_in_one_study_and_frame(out):
    made = [pydicom.dcmread(path) for path in sorted(out.rglob("*.dcm"))]
    assert {one.SOPClassUID.name for one in made} == {
        "CT Image Storage",
        "Segmentation Storage",
        "Parametric Map Storage",
    }
    for one in made:
        assert one.SyntheticData == "YES" and one.BurnedInAnnotation == "NO"
        assert one.ImageType[0] == "DERIVED"
        assert one.SeriesDescription.startswith("SYNTHETIC") and one.StudyDescription.startswith("SYNTHETIC")
        assert str(one.PatientName) == "SYNTHETIC^VOXPLAIN"
        assert one.get("ContentQualification", "RESEARCH") == "RESEARCH"
    assert len({one.StudyInstanceUID for one in made}) == len({one.FrameOfReferenceUID for one in made}) == 1
    assert len({one.SOPInstanceUID for one in made}) == len(made)
    maps = [one for one in made if one.SOPClassUID.name == "Parametric Map Storage"]
    assert len({one.SeriesInstanceUID for one in maps}) == len({one.SeriesNumber for one in maps}) == len(maps)


def test_an_image_that_was_given_to_the_model_is_not_called_synthetic(run, tmp_path):
    given = replace(run, provenance={**run.provenance, "readout": "renoise"})
    for path in export(given, tmp_path / "out", ["Large"]).rglob("*.dcm"):
        one = pydicom.dcmread(path)
        assert "SyntheticData" not in one and "SYNTHETIC" not in str(one)


def test_no_object_holds_a_word_of_the_prompt_unless_asked(run, out, tmp_path):
    words = {"large", "effusion", "left"}

    def told(folder):
        texts = [pydicom.dcmread(path, stop_before_pixels=True).to_json().lower() for path in folder.rglob("*.dcm")]
        return {word for word in words for text in texts if word in text}

    assert told(out) == set()
    named = export(run, tmp_path / "named", with_prompt=True)
    assert told(named) == words
    seg = pydicom.dcmread(named / "seg" / "mean.dcm")
    assert "effusion#2" in [segment.SegmentLabel for segment in seg.SegmentSequence]
    assert seg.ImageComments == f"Prompt: {run.prompt.text}"


def test_two_exports_of_one_run_bear_the_same_uids_and_another_run_bears_others(run, out, tmp_path):
    def uids(folder):
        return {pydicom.dcmread(path).SOPInstanceUID for path in folder.rglob("*.dcm")}

    assert uids(export(run, tmp_path / "again", raw=True)) == uids(out)
    sample = replace(run.sample, image=run.sample.image + 1)
    assert not uids(export(replace(run, sample=sample), tmp_path / "other", raw=True)) & uids(out)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2)])
def test_an_image_in_any_axis_order_is_laid_out_as_a_scanner_does_it(run, order, flips):
    plain = run.sample
    affine, image = plain.geometry.affine[:, [*order, 3]].copy(), np.transpose(plain.image[0], order)
    for axis in flips:
        affine[:, 3] += affine[:, axis] * (image.shape[axis] - 1)
        affine[:, axis] *= -1
        image = np.flip(image, axis)
    turned = Sample(image[None].copy(), Geometry(image.shape, affine), plain.prompt)
    values, geometry = axial(replace(run, sample=turned))
    np.testing.assert_array_equal(values, plain.image[0])
    np.testing.assert_allclose(geometry.affine, plain.geometry.affine)


def test_words_are_chosen_and_a_phrase_that_was_not_measured_is_named(run, tmp_path):
    chosen = export(run, tmp_path / "out", ["effusion#2", "the left"])
    assert [(entry["word"], entry.get("note")) for entry in entries(chosen, "effect")][-1] == (
        "the left",
        "not measured",
    )
    assert not any("raw" in path.name for path in chosen.rglob("*.dcm"))


def test_maps_of_other_images_of_some_steps_and_of_one_layer_are_left_out(run, tmp_path):
    mean = run.attributions["mean"]
    for name in ("mean over seeds", "mean part 1 of 2", "mean layer up.0.attn2"):
        more = {name: replace(mean, provenance={"statistic": name})}
        made = export(replace(run, attributions={"mean": mean, **more}), tmp_path / name, ["left"])
        assert [path.name for path in sorted(made.glob("*/*.dcm"))][-2:] == ["mean-01.dcm", "mean.dcm"]
        assert not entries(made, name)


def sheared():
    affine = regular((8, 12, 16), 5.0).affine.copy()
    affine[1, 0] = 1.0
    return Geometry((8, 12, 16), affine)


@pytest.mark.parametrize(
    ("sample", "complaint"),
    [
        (lambda s: replace(s, geometry=replace(s.geometry, spacing_known=False)), "nobody knows the size"),
        (lambda s: replace(s, unit="brightness"), "'brightness'"),
        (lambda s: replace(s, geometry=sheared()), "not perpendicular"),
        (lambda s: replace(s, image=s.image[:, 0], geometry=regular((12, 16), 1.0)), "--nifti, or draw it"),
    ],
)
def test_what_no_ct_series_can_hold_is_refused_and_leaves_nothing(run, tmp_path, sample, complaint):
    with pytest.raises(ValueError, match=complaint):
        export(replace(run, sample=sample(run.sample)), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (Debian: dicom3tools)")
def test_every_object_is_valid(run, out, tmp_path):
    named = export(run, tmp_path / "named", with_prompt=True)
    paths = [out / "ct" / "0001.dcm", *out.glob("seg/*.dcm"), *out.glob("map/*-01*.dcm")]
    for path in (*paths, named / "ct" / "0001.dcm", named / "seg" / "mean.dcm", *named.glob("map/mean-01.dcm")):
        done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, timeout=60)
        said = "\n".join(text for text in (done.stdout + done.stderr).splitlines() if NEWER not in text)
        assert "Error" not in said, f"{path}\n{said}"
        assert any(kind in said for kind in ("CTImage", "Segmentation", "ParametricMap")), said


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (Debian: dicom3tools)")
def test_the_validator_finds_an_error(out, tmp_path):
    one = pydicom.dcmread(out / "ct" / "0001.dcm")
    del one.ImagePositionPatient
    one.save_as(tmp_path / "bad.dcm")
    done = subprocess.run(["dciodvfy", "-new", str(tmp_path / "bad.dcm")], capture_output=True, text=True, timeout=60)
    assert "Error" in done.stdout + done.stderr
