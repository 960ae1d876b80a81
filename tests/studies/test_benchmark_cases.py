"""Masks of run folders: read by the one way of all masks, and refused with the line of the table."""

import numpy as np
import pytest
from PIL import Image

from voxplain.adapters.toy import ToyAdapter
from voxplain.io.nifti import write_volume
from voxplain.io.run import save_run
from voxplain.studies import explaining
from voxplain.studies.benchmark_cases import Runs

TOY = ToyAdapter((8, 24))
LABELS = np.zeros((16, 48), np.uint8)
LABELS[:, 10:20], LABELS[:, 30:40] = 1, 2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    save_run(explaining.explain(TOY, "left effusion", steps=2, recipes=("mean",)), folder / "one")
    palette = Image.fromarray(LABELS).convert("P")
    palette.putpalette([0, 0, 0, 0, 128, 0, 0, 0, 128])  # as of PASCAL VOC: no red in the colors that count
    palette.save(folder / "palette.png")
    Image.fromarray(LABELS).save(folder / "gray.png")
    Image.fromarray(np.stack([0 * LABELS, 100 * LABELS, LABELS], -1)).save(folder / "color.png")
    Image.fromarray(np.stack([100 * LABELS] * 3, -1)).save(folder / "rgb.png")
    Image.fromarray(100 * LABELS).save(folder / "lossy.jpg")
    write_volume(folder / "nan.nii.gz", np.where(LABELS == 1, np.nan, LABELS), TOY.geometry)
    return folder


def truth(base, mask, values=""):
    path = base / "runs.csv"
    path.write_text(f"run,mask,mask_values,words\none,{mask},{values},effusion\n")
    return Runs(path).trial(0, None).truth.values


@pytest.mark.parametrize(
    ("mask", "values", "expected"),
    [
        ("palette.png", "", LABELS > 0),
        ("palette.png", "2", LABELS == 2),
        ("gray.png", "1", LABELS == 1),
        ("rgb.png", "", LABELS > 0),
    ],
)
def test_a_picture_is_read_by_what_it_stores(base, mask, values, expected):
    assert np.array_equal(truth(base, mask, values), expected)


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        ("color.png", "mask color.png is a picture in color"),
        ("lossy.jpg", "mask lossy.jpg is a JPEG"),
        ("nan.nii.gz", "mask nan.nii.gz holds NaN in 160 cells; write 0 there"),
    ],
)
def test_what_is_no_mask_is_refused_with_the_line(base, mask, complaint):
    with pytest.raises(ValueError, match=f"runs.csv, line 2: {complaint}"):
        truth(base, mask)
    with pytest.raises(FileNotFoundError, match="gone.png is not there"):
        truth(base, "gone.png")
