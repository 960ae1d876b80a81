"""Files become an image and a mask in one frame, or an error that says what to do."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from voxplain.datasets.base import Boxes, Dataset, Excluded, Faulty, Gone, MaskFile, Record
from voxplain.datasets.frames import Cover, Crop, Resize
from voxplain.datasets.reading import read, read_mask, readable
from voxplain.geometry import regular
from voxplain.io import write_volume


@pytest.fixture
def film(tmp_path):
    """A film of 6 rows and 8 columns, bright where the box (5, 1, 2, 3) is."""
    pixels = np.full((6, 8), 51, np.uint8)
    pixels[1:4, 5:7] = 255
    Image.fromarray(pixels).save(tmp_path / "film.png")
    return Record("film", "bright spot", tmp_path / "film.png", truth=Boxes(((5, 1, 2, 3),)), label="spot", size=(8, 6))


def test_the_box_lies_on_what_it_was_drawn_around(film):
    found = read(film)
    assert found.sample.image.shape == (1, 6, 8) and found.sample.unit == "0 to 1"
    np.testing.assert_array_equal(found.truth.values, found.sample.image[0] == 1)
    assert found.truth.label == "spot" and found.boxes == ((5, 1, 2, 3),) and found.share == 1
    assert not found.sample.geometry.spacing_known
    assert found.sample.provenance["frame"] == {"stored": [6, 8], "scored": [6, 8], "steps": [{"step": "Orient"}]}


def test_image_mask_and_boxes_are_in_one_frame(film):
    found = read(film, [Cover((12, 12)), Crop((12, 8), (0, 8))])
    assert found.truth.geometry.same_as(found.sample.geometry) and found.frame.target.same_as(found.sample.geometry)
    assert found.boxes == ((2, 2, 4, 6),)
    inside, outside = (found.sample.image[0][where].mean() for where in (found.truth.values, ~found.truth.values))
    assert inside > 0.8 > 0.4 > outside


@pytest.mark.parametrize(
    ("pixels", "channels"),
    [
        (Image.fromarray(np.array([[0, 65535]], np.uint16)), [[[0, 1]]]),
        (Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)), [[[1, 0]], [[0, 0]], [[0, 1]]]),
        (Image.fromarray(np.array([[[255, 9], [0, 9]]], np.uint8), "LA"), [[[1, 0]]]),
        (Image.fromarray(np.array([[False, True]])), [[[0, 1]]]),
        (Image.fromarray(np.array([[[0, 255, 0]] * 2], np.uint8)).convert("P"), [[[0, 0]], [[1, 1]], [[0, 0]]]),
    ],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_pictures_of_every_kind_run_from_0_to_1(tmp_path, pixels, channels):
    pixels.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(Record("a", "", tmp_path / "a.png")).sample.image, channels)


def test_a_mask_file_is_read_by_its_values(film, tmp_path):
    codes = np.zeros((6, 8), np.uint8)
    codes[:, :4], codes[:, 4:] = 1, 2
    Image.fromarray(codes).save(tmp_path / "lungs.png")
    left = read(replace(film, truth=MaskFile(tmp_path / "lungs.png", (2,)))).truth.values
    np.testing.assert_array_equal(left, codes == 2)
    assert read(replace(film, truth=MaskFile(tmp_path / "lungs.png"))).truth.values.all()


def test_a_volume_and_its_mask_are_turned_together(tmp_path):
    values = np.zeros((5, 4, 3), np.float32)  # NIfTI order: first axis to the patient's right
    values[0, 1, 2] = 40.0  # the leftmost voxel of the top slice
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    for name, data in (("ct", values - 1000), ("mask", (values > 0).astype(np.float32))):
        nib.save(nib.Nifti1Image(data, affine), tmp_path / f"{name}.nii.gz")
    record = Record("ct", "nodule", tmp_path / "ct.nii.gz", truth=MaskFile(tmp_path / "mask.nii.gz"))
    found = read(record)
    assert found.sample.unit == "HU" and found.sample.image.shape == (1, 3, 4, 5)
    (where,) = np.argwhere(found.truth.values)
    assert found.sample.image[0][tuple(where)] == -960
    assert where.tolist() == [2, 2, 4]  # top slice; second row from the back; leftmost
    assert (np.diag(found.sample.geometry.affine[:3, 2::-1]) > 0).all()


def test_a_mask_on_another_grid_is_never_resized(film, tmp_path):
    Image.fromarray(np.ones((6, 9), np.uint8)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match=r"wide.png has shape \(6, 9\).* never resized silently"):
        read(replace(film, truth=MaskFile(tmp_path / "wide.png")))
    write_volume(tmp_path / "ct.nii.gz", np.zeros((2, 3, 4), np.float32), regular((2, 3, 4), 2.0))
    write_volume(tmp_path / "mask.nii.gz", np.ones((2, 3, 4), np.float32), regular((2, 3, 4), 2.0, (1.0, 0, 0)))
    with pytest.raises(ValueError, match="has the shape of the image, .* but lies elsewhere"):
        read(Record("ct", "lung", tmp_path / "ct.nii.gz", truth=MaskFile(tmp_path / "mask.nii.gz")))


LABELS = np.array([[0, 1, 2], [2, 0, 0]], np.uint8)


def palette(*colors):
    picture = Image.fromarray(LABELS).convert("P")
    picture.putpalette([value for color in colors for value in color])
    return picture


@pytest.mark.parametrize(
    ("picture", "counted", "twos"),
    [
        (Image.fromarray(LABELS), LABELS > 0, True),
        (Image.fromarray(LABELS.astype(np.uint16)), LABELS > 0, True),
        (Image.fromarray(np.stack([LABELS] * 3, -1)), LABELS > 0, True),
        (Image.fromarray(np.stack([LABELS, LABELS + 7], -1), "LA"), LABELS > 0, True),
        (Image.fromarray(LABELS > 0), LABELS > 0, False),
        (palette((0, 0, 0), (0, 128, 0), (0, 0, 128)), LABELS > 0, True),
        (palette((255, 255, 255), (0, 0, 0), (0, 0, 0)), LABELS == 0, True),  # black and white, the other way round
        (palette((255, 0, 0), (0, 128, 0), (0, 0, 128)), None, True),
        (palette((0, 0, 0), (0, 128, 0), (0, 0, 0)), None, True),
    ],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_the_labels_of_a_picture_are_what_it_stores(tmp_path, picture, counted, twos):
    picture.save(tmp_path / "mask.png")
    place = regular(LABELS.shape, 1.0)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", place, (2,)), (LABELS == 2) & twos)
    if counted is None:
        with pytest.raises(ValueError, match="mask mask.png has a palette .* name the indices that count"):
            read_mask(tmp_path / "mask.png", place)
    else:
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", place), counted)


def test_what_would_silently_become_a_wrong_truth_is_refused(film, tmp_path):
    place = regular((6, 8), 1.0)
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[2:4, 2:4, 1] = 255
    Image.fromarray(pixels).save(tmp_path / "color.png")
    for values in ((), (1,)):
        with pytest.raises(ValueError, match="mask color.png is a picture in color; give it in gray"):
            read_mask(tmp_path / "color.png", place, values)
    Image.fromarray(pixels[..., 1]).save(tmp_path / "blurred.jpg")
    (tmp_path / "blurred.jpg").rename(tmp_path / "renamed.png")  # the content says what it is
    with pytest.raises(ValueError, match="record 'film': mask renamed.png is a JPEG, which blurs the edges"):
        read(replace(film, truth=MaskFile(tmp_path / "renamed.png")))
    solid = regular((2, 3, 4), 2.0)
    write_volume(tmp_path / "ct.nii.gz", np.zeros((2, 3, 4), np.float32), solid)
    values = np.zeros((2, 3, 4), np.float32)
    values[0, 0] = np.nan
    write_volume(tmp_path / "nan.nii.gz", values, solid)
    write_volume(tmp_path / "two.nii.gz", np.ones((2, 2, 3, 4), np.float32), solid)
    for name, complaint in (("nan", "holds NaN in 4 cells; write 0 there"), ("two", "holds 2 channels; give one")):
        with pytest.raises(ValueError, match=f"record 'ct': mask {name}.nii.gz {complaint}"):
            read(Record("ct", "lung", tmp_path / "ct.nii.gz", truth=MaskFile(tmp_path / f"{name}.nii.gz")))
    with pytest.raises(FileNotFoundError, match=r"mask .*gone\.png is not there"):
        read_mask(tmp_path / "gone.png", place)
    with pytest.raises(ValueError, match="is a folder; give one file"):
        read_mask(tmp_path, place)


def test_an_image_with_nan_is_named_with_their_number(tmp_path):
    values = np.zeros((2, 3, 4), np.float32)
    values[0, 0, :2] = np.nan, -np.inf
    write_volume(tmp_path / "ct.nii.gz", values, regular((2, 3, 4), 2.0))
    with pytest.raises(ValueError, match=r"^ct.nii.gz holds 2 NaN or infinite values of 24; replace them"):
        read(Record("ct", "lung", tmp_path / "ct.nii.gz"))


@pytest.mark.parametrize(("orientation", "warned"), [(1, False), (6, True), (99, False)])
def test_a_film_that_is_stored_turned_is_warned_of_and_read_as_stored(tmp_path, recwarn, orientation, warned):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "film.jpg", exif=exif)
    assert read(Record("film", "", tmp_path / "film.jpg")).sample.image.shape == (1, 6, 8)
    assert [str(one.message) for one in recwarn if "film.jpg says by EXIF" in str(one.message)] == warned * [
        "film.jpg says by EXIF that it is shown turned; it is read as it is stored"
    ]
    content = (tmp_path / "film.jpg").read_bytes()
    (tmp_path / "film.jpg").write_bytes(
        content.replace(b"Exif\0\0MM", b"Exif\0\0XX").replace(b"Exif\0\0II", b"Exif\0\0XX")
    )
    recwarn.clear()
    assert read(Record("film", "", tmp_path / "film.jpg")).sample.image.shape == (1, 6, 8)  # damaged notes
    assert not recwarn.list


def test_a_size_that_the_annotation_did_not_mean_is_refused(film):
    with pytest.raises(ValueError, match="an image of 6 x 8.*holds 8 x 6; was it resized"):
        read(replace(film, size=(6, 8)))


def test_a_box_that_leaves_the_image_is_refused_by_name(film):
    with pytest.raises(ValueError, match="record 'film': box .* leaves the image"):
        read(replace(film, truth=Boxes(((7, 1, 2, 3),))))


def test_a_record_with_nothing_left_to_score_is_excluded_with_a_reason(film, tmp_path):
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "empty.png")
    steps = [Crop((6, 6))]
    outside = replace(film, id="outside", truth=Boxes(((0, 0, 1, 3),)))
    empty = replace(film, id="empty", truth=MaskFile(tmp_path / "empty.png"))
    found = readable(Dataset("films", (film, outside, empty)), steps)
    assert found.records == (film,)
    assert found.left_out == {"the truth is empty": 1, "the truth lies outside of the frame": 1}
    thin = replace(film, truth=Boxes(((0, 0, 1, 6),)))
    with pytest.raises(Excluded, match="thinner than a cell"):
        read(thin, [Resize((6, 2))])


def test_files_that_are_no_images_are_named(film, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="text.png is no picture"):
        read(replace(film, image=tmp_path / "text.png"))
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        read(replace(film, image=tmp_path / "gone.png"))
    with pytest.raises(ValueError, match="only .npz files hold several"):
        read(replace(film, index=3))
    with pytest.raises(ValueError, match="it is a text to generate from"):
        read(replace(film, image=None))


def test_a_file_of_many_images_is_read_by_index(tmp_path):
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.savez(tmp_path / "many.npz", images=images)
    found = read(Record("b", "", tmp_path / "many.npz", 1))
    np.testing.assert_allclose(found.sample.image[0] * 255, images[1], rtol=1e-6)
    with pytest.raises(ValueError, match="index from 0 to 1, not 2"):
        read(Record("c", "", tmp_path / "many.npz", 2))


def test_what_is_wrong_with_a_record_has_a_short_reason_and_does_not_exclude_it(film, tmp_path):
    Image.fromarray(np.ones((6, 9), np.uint8)).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.nii").write_text("no volume")
    write_volume(tmp_path / "nan.nii.gz", np.full((2, 3, 4), np.nan, np.float32), regular((2, 3, 4), 2.0))
    mask = MaskFile(tmp_path / "wide.png")
    wrong = {
        "the file's size is not the annotation's": replace(film, size=(6, 8)),
        "the mask is on another grid": replace(film, truth=mask),
        "a box leaves the image": replace(film, truth=Boxes(((7, 1, 2, 3),))),
        "the file is no readable picture": replace(film, image=tmp_path / "text.png"),
        "the file is no readable volume": replace(film, image=tmp_path / "text.nii"),
        "the image is gone": replace(film, image=tmp_path / "gone.png"),
        "the mask is gone": replace(film, truth=MaskFile(tmp_path / "gone.png")),
        "the image is a folder": replace(film, image=tmp_path),
        "the image holds NaN or infinity": replace(film, image=tmp_path / "nan.nii.gz"),
        "the truth cannot be read": replace(film, truth=Boxes(((1, 1, 1, 2, 2, 2),))),
    }
    for reason, record in wrong.items():
        with pytest.raises(Faulty) as caught:
            readable(Dataset("films", (film, record)) if record.id != film.id else Dataset("films", (record,)))
        assert caught.value.reason == reason and len(str(caught.value)) > len(reason)
        assert isinstance(caught.value, FileNotFoundError) is isinstance(caught.value, Gone) is reason.endswith("gone")


def test_a_file_of_several_pages_is_refused_and_a_preview_is_none(film, tmp_path):
    pages = [Image.fromarray(np.full((6, 8), value, np.uint8)) for value in (1, 2)]
    for name in ("pages.tif", "pages.gif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        for record in (replace(film, image=tmp_path / name), replace(film, truth=MaskFile(tmp_path / name))):
            with pytest.raises(Faulty, match=f"{name} holds 2 pictures; save the one that is meant") as caught:
                read(record)
            assert caught.value.reason == "the file holds several pictures"
    pages[0].save(tmp_path / "one.tif")
    pages[0].save(tmp_path / "camera.jpg", "MPO", save_all=True, append_images=pages[1:])
    for name in ("one.tif", "camera.jpg"):
        assert read(replace(film, image=tmp_path / name)).sample.image.shape == (1, 6, 8)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04broken"])
def test_a_broken_file_of_many_images_is_named(tmp_path, content):
    (tmp_path / "many.npz").write_bytes(content)
    with pytest.raises(Faulty, match=r"many\.npz is no \.npz file of arrays"):
        read(Record("a", "", tmp_path / "many.npz", 0))
    with (tmp_path / "many.npz").open("wb") as file:
        np.save(file, np.zeros((1, 3, 4), np.uint8))
    with pytest.raises(Faulty, match=r"many\.npz is no \.npz file of arrays"):
        read(Record("a", "", tmp_path / "many.npz", 0))


def test_a_picture_that_is_too_large_is_named(film, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(Faulty, match=r"film\.png is no picture that can be read: .*exceeds limit"):
        read(film)
