"""Saved pipelines of all the other families of diffusers run end to end from the command line, on tiny models."""

import json

import numpy as np
import pytest
import tiny_pipelines
import tiny_transformers as tiny
from typer.testing import CliRunner

from voxplain.cli import app
from voxplain.io.run import load_run

FAMILIES = {  # how it is made, rows and columns in pixels, the finest grid
    "xl": (tiny_pipelines.sdxl, (24, 40), (12, 20)),
    "pixart": (tiny.pixart, (16, 24), (4, 6)),
    "sana": (tiny.sana, (32, 64), (8, 16)),
    "sd3": (tiny.sd3, (16, 24), (4, 6)),
    "flux": (tiny.flux, (16, 24), (4, 6)),
    "video": (tiny.video, (8, 24), (16, 4, 12)),
}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_pipeline_is_explained_and_a_phrase_is_measured_later(name, tmp_path):
    make, (height, width), grid = FAMILIES[name]
    make().save_pretrained(tmp_path / "model")
    run, size = tmp_path / "run", ["--height", height, "--width", width]
    call("explain", "large left effusion", "--model", tmp_path / "model", "--out", run, "--steps", 1, *size)
    made = load_run(run)
    assert made.attributions["mean"].maps.shape[1:] == grid and made.sample.image.shape[-2:] == (height, width)
    assert made.word("effusion", recipe="effect").values.max() > 0
    rows = json.loads(call("words", run, "--json").stdout)["words"]
    assert [row["word"] for row in rows] == ["large", "left", "effusion"]
    call("effect", run, "left effusion")
    assert np.isfinite(load_run(run).word("left effusion", recipe="effect").values).all()
