"""Every family that users bring opens by one name and runs end to end from the command line, on tiny models."""

import numpy as np
import pytest
import tiny_pipelines as tiny
from medsyn_models import PIECES, small_bert, small_network
from safetensors.torch import save_file
from typer.testing import CliRunner

import voxplain
from voxplain.cli import app
from voxplain.io.run import load_run


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sd"
    tiny.sd().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def medsyn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("medsyn")
    network = small_network(cond_dim=16, context=192)
    save_file(
        {f"denoise_fn.{name}": value.clone() for name, value in network.state_dict().items()}, folder / "a.safetensors"
    )
    small_bert(200).save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("\n".join(PIECES))
    return folder


def test_a_diffusers_folder_with_every_option(diffusion, tmp_path):
    run = tmp_path / "run"
    options = ["--height", 40, "--width", 24, "--negative", "nodule", "--per-step", 2, "--layers", "up_blocks.*"]
    recipes = ["--recipe", "mean,daam,effect", "--steps", 4, "--guidance", 4, "--dtype", "float32", "--device", "cpu"]
    call("explain", "large left effusion", "--model", diffusion, "--out", run, *options, *recipes)
    made = load_run(run)
    assert made.sample.image.shape == (3, 40, 24)
    assert made.provenance["negative_prompt"] == "nodule" and made.provenance["guidance_scale"] == 4
    assert list(made.attributions) == [
        "mean", "mean part 1 of 2", "mean part 2 of 2", "daam", "daam part 1 of 2", "daam part 2 of 2", "effect"
    ]  # fmt: skip
    whole, *parts = (made.attributions[name].maps for name in ("mean", "mean part 1 of 2", "mean part 2 of 2"))
    np.testing.assert_allclose(np.mean(parts, axis=0), whole, atol=1e-6)
    assert not np.allclose(*parts)
    assert all(layer.startswith("up_blocks") for layer in made.attributions["mean"].provenance["layers"])
    call("effect", run, "left effusion")
    assert load_run(run).word("left effusion", recipe="effect").values.max() > 0
    call("effect", run, "effusion", "--total")
    assert (run / "total-effusion.nii.gz").exists()


def test_a_medsyn_checkpoint_with_its_text_encoder(medsyn, tmp_path):
    run, name = tmp_path / "run", f"medsyn:{medsyn / 'a.safetensors'}"
    call(
        "explain", "large left effusion", "--model", name, "--text-encoder", medsyn / "bert", "--out", run, "--steps", 2
    )
    made = load_run(run)
    assert made.sample.unit == "HU" and made.sample.image.shape[1:] == (64, 64, 64)
    assert made.attributions["mean"].maps.shape[1] == 64


def test_options_that_a_model_does_not_take_are_refused_by_name(diffusion, medsyn, tmp_path):
    with pytest.raises(ValueError, match="brings no text encoder; give text_encoder"):
        voxplain.load(f"medsyn:{medsyn}")
    with pytest.raises(ValueError, match="takes no text_encoder or trust_code"):
        voxplain.load(diffusion, text_encoder=medsyn, trust_code=True)
    with pytest.raises(ValueError, match="thorax takes no dtype"):
        voxplain.load("thorax", dtype="float16")
    with pytest.raises(ValueError, match="dtype = 'int8'; give float32, float16, bfloat16"):
        voxplain.load(diffusion, dtype="int8")
    result = CliRunner().invoke(app, ["explain", "effusion", "--out", str(tmp_path / "run"), "--height", "64"])
    assert result.exit_code == 2 and "give --height and --width, or neither" in result.stderr
