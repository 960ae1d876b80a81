"""A CT series is read whatever the order of its files; what is no straight, whole, even stack is refused by name."""

import random

import numpy as np
import pytest

from voxplain.geometry import regular
from voxplain.io.nifti import write_volume

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("highdicom", reason="needs the extra dicom")

from voxplain.io.dicom_series import read_image, read_series  # noqa: E402

ORIGIN = np.array([-10.0, 20.0, -30.0])
CT, SEG = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4"
STORED = np.random.default_rng(0).integers(0, 3000, (5, 4, 6)).astype("<u2")


def stack(axes=((1, 0, 0), (0, 1, 0)), step=2.5, count=5):
    """The slices of a series, from the lowest along the normal up."""
    normal = np.cross(*axes)
    made = []
    for number in range(count):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one.SOPClassUID, one.SOPInstanceUID = CT, f"1.2.3.{number}"
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2", "1.2.3", "1.2.4"
        one.Modality, one.SeriesNumber, one.InstanceNumber = "CT", 7, number + 1
        one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.ImagePositionPatient = [float(value) for value in ORIGIN + number * step * normal]
        one.ImageOrientationPatient = [float(value) for axis in axes for value in axis]
        one.PixelSpacing = [0.8, 0.7]
        one.Rows, one.Columns = STORED.shape[1:]
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.RescaleSlope, one.RescaleIntercept = 2, -1024
        one.PixelData = STORED[number].tobytes()
        made.append(one)
    return made


def write(folder, slices):
    """The files under names that say nothing of their order, some in a folder below."""
    names = list(range(len(slices)))
    random.Random(3).shuffle(names)
    (folder / "below").mkdir(parents=True)
    for name, one in zip(names, slices, strict=True):
        one.save_as(folder / ("below" if name % 2 else ".") / f"file{name}", enforce_file_format=True)
    (folder / "README.txt").write_text("no DICOM")
    return folder


OBLIQUE = ((0.8, 0.6, 0.0), (0.0, 0.0, -1.0))


@pytest.mark.parametrize("axes", [((1, 0, 0), (0, 1, 0)), ((1, 0, 0), (0, 0, -1)), OBLIQUE, ((-1, 0, 0), (0, 1, 0))])
def test_a_series_is_read_in_any_order_rescaled_and_where_it_lies(tmp_path, axes):
    values, geometry = read_series(write(tmp_path / "ct", stack(axes)))
    np.testing.assert_array_equal(values, 2.0 * STORED - 1024)
    assert values.dtype == np.float32
    row, column = np.array(axes, float)
    expected = np.eye(4)
    expected[:3] = np.stack([2.5 * np.cross(row, column), 0.8 * column, 0.7 * row, ORIGIN], axis=1)
    np.testing.assert_allclose(geometry.affine, expected, atol=1e-9)
    assert geometry.shape == STORED.shape and geometry.spacing_known


def test_each_slice_is_rescaled_by_its_own_numbers_and_padding_becomes_air(tmp_path):
    slices = stack()
    slices[2].RescaleSlope = "0.5"
    slices[4].PixelPaddingValue = int(STORED[4, 1, 2])
    values, _ = read_series(write(tmp_path / "ct", slices))
    np.testing.assert_array_equal(values[2], 0.5 * STORED[2] - 1024)
    assert values[4, 1, 2] == -1000.0
    assert (values[4] == 2.0 * STORED[4] - 1024).sum() == STORED[4].size - (STORED[4] == STORED[4, 1, 2]).sum()


def put(index, **changes):
    def changed(slices):
        for one in slices if index is None else [slices[index]]:
            for name, value in changes.items():
                setattr(one, name, value)
        return slices

    return changed


def moved(along, only=None):
    def changed(slices):
        for number, one in enumerate(slices):
            if only is None or number == only:
                position = np.array(one.ImagePositionPatient, float) + np.array(along) * (number if only is None else 1)
                one.ImagePositionPatient = [float(value) for value in position]
        return slices

    return changed


def without(name):
    def changed(slices):
        delattr(slices[3], name)
        return slices

    return changed


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (moved((0, 1.0, 0)), r"gantry tilted by 21\.8 degrees"),
        (moved((0.5, 0, 0), only=2), "drift sideways by 0.5 mm"),
        (moved((0, 0, 0.4), only=4), "2.5 to 2.9 mm apart"),
        (lambda slices: slices[:2] + slices[3:], "1 slices are missing"),
        (moved((0, 0, 2.5), only=3), "lie at the same place"),
        (put(1, SeriesInstanceUID="1.2.9", SeriesNumber=8), "several series: number 7 with 4 slices, number 8 with 1"),
        (put(1, SOPClassUID=SEG), "no CT slices: 1 of Segmentation Storage"),
        (put(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1"), "5 of Enhanced CT Image Storage.*single slices"),
        (put(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), "5 of MR Image Storage"),
        (put(0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
        (put(3, PixelSpacing=[0.8, 0.75]), "differ in PixelSpacing"),
        (put(3, FrameOfReferenceUID="1.2.5"), "differ in FrameOfReferenceUID"),
        (put(3, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "differ in ImageOrientationPatient"),
        (put(None, ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]), "not perpendicular"),
        (put(3, RescaleType="US"), "'US'"),
        (put(3, PixelData=b"\0\0"), "pixels of .* cannot be read"),
        (put(3, NumberOfFrames=2), "several frames"),
        (without("ImagePositionPatient"), "does not say its ImagePositionPatient"),
        (without("RescaleSlope"), "does not say its RescaleSlope"),
        (lambda slices: slices[:1], "a single slice"),
    ],
)
def test_what_is_no_whole_straight_series_is_refused(tmp_path, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_series(write(tmp_path / "ct", change(stack())))


def test_a_folder_without_dicom_a_damaged_file_and_an_absent_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match="no DICOM files"):
        read_series(tmp_path)
    write(tmp_path / "ct", stack())
    whole = (tmp_path / "ct" / "file2").read_bytes()
    (tmp_path / "ct" / "file2").write_bytes(whole[:300])
    with pytest.raises(ValueError, match="file2"):
        read_series(tmp_path / "ct")
    with pytest.raises(FileNotFoundError, match="absent"):
        read_series(tmp_path / "absent")


def test_a_folder_is_a_series_a_file_is_nifti_and_one_slice_is_pointed_to_its_folder(tmp_path):
    folder = write(tmp_path / "ct", stack())
    values, geometry = read_image(folder)
    np.testing.assert_array_equal(values, read_series(folder)[0])
    write_volume(tmp_path / "a.nii.gz", values, geometry)
    again, place = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(again, values)
    assert place.same_as(geometry)
    with pytest.raises(ValueError, match="give the folder that holds its series"):
        read_image(folder / "file2")
    with pytest.raises(ValueError, match="reads 2D images"):
        read_image(folder, 2)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "absent.nii.gz")


def test_a_packed_series_is_read_like_the_plain_one(tmp_path):
    slices = stack()
    for one in slices:
        one.compress(pydicom.uid.RLELossless)
    values, geometry = read_series(write(tmp_path / "ct", slices))
    np.testing.assert_array_equal(values, 2.0 * STORED - 1024)
    assert geometry.same_as(regular(STORED.shape, (2.5, 0.8, 0.7), ORIGIN.tolist()))
