"""What an image, its mask and a token rule have to be, before a model reads anything; refusals say what to do."""

from functools import partial

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from voxplain.adapters.toy import ToyAdapter
from voxplain.io.nifti import write_volume
from voxplain.studies import given as module
from voxplain.studies.given import check_rule, given
from voxplain.tokens import PhraseError

FLAT, SOLID = ToyAdapter((8, 24)), ToyAdapter((4, 8, 12))
TEXT, SIZE = "left effusion", (16, 48)


@pytest.fixture
def film(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, SIZE).astype(np.uint8)).save(tmp_path / "film.png")
    return tmp_path / "film.png"


@pytest.fixture
def case(tmp_path):
    write_volume(tmp_path / "case.nii.gz", np.random.default_rng(0).normal(size=(8, 16, 24)), SOLID.geometry)
    return tmp_path / "case.nii.gz"


def test_an_image_with_nan_is_named_with_their_number_and_a_remedy(case):
    values = np.zeros((8, 16, 24))
    values[0, 0, :3] = np.nan, np.inf, np.nan
    write_volume(case, values, SOLID.geometry)
    with pytest.raises(ValueError, match=r"^case.nii.gz holds 3 NaN or infinite values of 3072; replace .*-1000 HU"):
        given(case, TEXT, SOLID)


def test_other_channels_than_the_models_are_refused_by_number(case):
    write_volume(case, np.zeros((2, 8, 16, 24)), SOLID.geometry)
    with pytest.raises(ValueError, match=r"case.nii.gz holds 2 channels, and toy reads 1; give one of them"):
        given(case, TEXT, SOLID)


def test_what_is_not_there_and_what_is_no_image_is_said_in_words(film, case):
    folder, note = film.parent / "folder", film.with_name("note.txt")
    folder.mkdir()
    note.write_text("no picture")
    for name in ("gone.png", "gone.nii.gz"):
        with pytest.raises(FileNotFoundError, match=f"{name} is not there"):
            given(film.with_name(name), TEXT, FLAT)
        with pytest.raises(FileNotFoundError, match=f"^mask .*{name} is not there"):
            given(film, TEXT, FLAT, mask=film.with_name(name))
    with pytest.raises(ValueError, match="^mask .*folder is a folder; give one file"):
        given(film, TEXT, FLAT, mask=folder)
    for model in (FLAT, SOLID):
        with pytest.raises(ValueError, match=r"note.txt is no image .* NIfTI \(.nii or .nii.gz\).* PNG, JPEG or TIFF"):
            given(note, TEXT, model)
    with pytest.raises(ValueError, match="note.txt is no picture that can be read.* PNG"):
        given(film, TEXT, FLAT, mask=note)
    with pytest.raises(ValueError, match="folder is no image that toy can read.* models of pictures"):
        given(folder, TEXT, FLAT)


def test_a_volume_for_a_model_of_pictures_asks_for_another_model(case, film):
    with pytest.raises(ValueError, match=r"case.nii.gz has shape \(8, 16, 24\), .* choose a model of volumes"):
        given(case, TEXT, FLAT)
    nib.save(nib.Nifti1Image(np.zeros((48, 16), np.float32), np.eye(4)), case.with_name("flat.nii"))
    with pytest.raises(ValueError, match=r"flat.nii has shape \(16, 48\), .* choose a model of pictures"):
        given(case.with_name("flat.nii"), TEXT, SOLID)
    with pytest.raises(ValueError, match=r"mask case.nii.gz has shape \(8, 16, 24\), but the image \(16, 48\)"):
        given(film, TEXT, FLAT, mask=case)


def test_values_of_a_mask_need_a_mask_and_hold_for_pictures_too(film):
    labels = np.zeros(SIZE, np.uint8)
    labels[:, 10:20], labels[:, 30:40] = 1, 2
    Image.fromarray(labels).save(film.with_name("labels.png"))
    found = given(film, TEXT, FLAT, mask=film.with_name("labels.png"), mask_values=[2])
    assert np.array_equal(found.truth.values, labels == 2)
    with pytest.raises(ValueError, match="has no cell of 255"):
        given(film, TEXT, FLAT, mask=film.with_name("labels.png"), mask_values=[255])
    for boxes in ((), [(1, 1, 4, 4)]):
        with pytest.raises(ValueError, match="values 2, 3 of a mask are named, but no mask is"):
            given(film, TEXT, FLAT, mask_values=[2, 3], boxes=boxes)


def test_nan_in_a_mask_is_no_truth(case):
    write_volume(
        case.with_name("mask.nii.gz"), np.where(np.arange(24) > 21, np.nan, np.ones((8, 16, 24))), SOLID.geometry
    )
    with pytest.raises(ValueError, match="^mask mask.nii.gz holds NaN in 256 cells; write 0 there$"):
        given(case, TEXT, SOLID, mask=case.with_name("mask.nii.gz"))


def test_a_picture_is_no_mask_of_an_image_that_has_a_place_in_the_world(film):
    write_volume(film.with_name("slice.nii.gz"), np.zeros(SIZE), FLAT.geometry)
    Image.fromarray(np.full(SIZE, 255, np.uint8)).save(film.with_name("mask.png"))
    with pytest.raises(ValueError, match="mask.png is a picture, which has no place in the world, .* give .* as NIfTI"):
        given(film.with_name("slice.nii.gz"), TEXT, FLAT, mask=film.with_name("mask.png"))
    write_volume(film.with_name("mask.nii.gz"), np.ones(SIZE), FLAT.geometry)
    assert given(film.with_name("slice.nii.gz"), TEXT, FLAT, mask=film.with_name("mask.nii.gz")).truth.values.all()


def test_forms_of_a_finding_are_alternatives_and_substrings_need_no_whole_word():
    check = partial(check_rule, FLAT.tokenize("small effusion, left"), recipes=("mean", "effect"))
    for rule in ("words", "first"):
        check(rule, ["effusion", "effusions", "fluid"])
        with pytest.raises(PhraseError, match="none of 'effusions', 'fluid' is in the text"):
            check(rule, ["effusions", "fluid"])
        with pytest.raises(PhraseError, match="'effusions' is not in the prompt .* nearest to it: 'effusion'"):
            check(rule, ["effusions"])
    check("substring", ["effus"])
    check("substring", ["fluid"])  # nothing fits: as all
    with pytest.raises(ValueError, match="'substring' needs the words"):
        check("substring", [])
    with pytest.raises(ValueError, match="is blank"):
        check("substring", [" "])


def test_a_text_that_is_cut_is_scored_by_named_words_alone():
    prompt = FLAT.tokenize("left " * 14 + "effusion")
    check_rule(prompt, "all", (), ["mean"])
    check_rule(prompt, "words", ["left#1"], ["mean"], scored=True)
    with pytest.raises(ValueError, match="longer than the model's context, and 'effusion' fell off.*--word"):
        check_rule(prompt, "all", (), ["mean"], scored=True)
    with pytest.raises(PhraseError, match="'effusion' was cut off"):
        check_rule(prompt, "words", ["effusion"], ["mean"], scored=True)


def test_nothing_is_read_of_an_image_whose_mask_is_missing(film, monkeypatch):
    monkeypatch.setattr(module, "read_picture", lambda path: pytest.fail("it was read"))
    with pytest.raises(FileNotFoundError):
        given(film, TEXT, FLAT, mask=film.with_name("gone.png"))
