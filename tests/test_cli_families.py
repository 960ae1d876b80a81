"""Every family that users bring opens by one name and runs end to end from the command line, on tiny models."""

import json
import shutil

import numpy as np
import pytest
import tiny_bundles
import tiny_pipelines as tiny
import torch
from medsyn_models import PIECES, small_bert, small_network
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import voxplain
from voxplain.cli import app
from voxplain.io.run import load_run


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


def failed(arguments, message):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, (result.exit_code, result.stderr, result.exception)
    assert result.stderr.strip().startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert message in result.stderr, result.stderr
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


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    tiny_bundles.write(folder / "chest")
    facts = {"intensity": [-1000, 1000], "unit": "HU", "spacing": [5, 4, 3], "orientation": "RAS"}
    (folder / "chest" / "configs" / "voxplain.json").write_text(json.dumps(facts))
    tiny_bundles.bert(folder / "bert")
    tiny_bundles.bert(folder / "wide", width=24)
    return folder


def test_a_diffusers_folder_with_every_option(diffusion, tmp_path):
    run = tmp_path / "run"
    options = ["--height", 40, "--width", 24, "--negative", "nodule", "--per-step", 2, "--layers", "up_blocks.*"]
    recipes = ["--recipe", "mean,daam,effect", "--steps", 4, "--guidance", 4, "--dtype", "bfloat16", "--device", "cpu"]
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


def test_a_diffusers_folder_is_checked_in_words(diffusion):
    lines = call("check", diffusion).stdout.splitlines()
    assert "Layers that read the text: 7, 7 of them heard." in lines
    assert "  grid 16 x 16: 3 layers of 2 heads, 12 text keys" in lines
    assert "Guidance: one run a step (null and text); without it one run a step (text)." in lines
    assert lines[-1] == "Promises: 17 of 17 kept."


def test_a_medsyn_checkpoint_with_its_text_encoder(medsyn, tmp_path):
    run, name = tmp_path / "run", f"medsyn:{medsyn / 'a.safetensors'}"
    call(
        "explain", "large left effusion", "--model", name, "--text-encoder", medsyn / "bert", "--out", run, "--steps", 2
    )
    made = load_run(run)
    assert made.sample.unit == "HU" and made.sample.image.shape[1:] == (64, 64, 64)
    assert made.attributions["mean"].maps.shape[1] == 64
    call("effect", run, "left effusion")  # the run remembers the text encoder
    assert load_run(run).word("left effusion", recipe="effect").values.max() > 0


def test_a_bundle_from_explaining_to_checking(bundle, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.chdir(bundle)
    model = ["chest", "--text-encoder", "bert"]
    call("explain", "large left effusion", "--model", *model, "--out", run, "--steps", 2)
    made = load_run(run)
    assert made.sample.unit == "HU" and made.sample.geometry.spacing == (5, 4, 3)
    assert made.attributions["mean"].maps.shape == (5, 2, 3, 4) and made.provenance["model"] == "chest"
    rows = json.loads(call("words", run, "--json").stdout)["words"]
    assert [row["word"] for row in rows] == ["large", "left", "effusion"] and set(rows[0]["recipes"]) == {
        "mean", "effect"
    }  # fmt: skip

    monkeypatch.chdir(tmp_path)  # names that were given from elsewhere are remembered as whole paths
    assert made.provenance["source"] == str(bundle / "chest")
    assert made.provenance["opened_with"] == {"text_encoder": str(bundle / "bert")}
    call("effect", run, "left effusion")
    assert load_run(run).word("left effusion", recipe="effect").values.max() > 0
    call("effect", run, "effusion", "--total")
    assert (run / "total-effusion.nii.gz").exists()
    monkeypatch.chdir(bundle)
    found = json.loads(call("check", *model, "--json").stdout)
    assert set(found["promises"].values()) == {None} and len(found["layers"]) == 4 and not found["refused"]


def test_the_code_of_a_bundle_runs_where_it_is_trusted_and_only_there(bundle, tmp_path):
    folder, run, ran = tmp_path / "chest", tmp_path / "run", tmp_path / "ran"
    entries = {"imports": ["$import math", "$import pathlib"], "bundle_root": "."}
    tiny_bundles.write(
        folder, config={**entries, "scale_factor": f"$math.exp(pathlib.Path({str(ran)!r}).touch() or 0)"}
    )
    facts = {"intensity": [-1000, 1000], "unit": "HU"}
    (folder / "configs" / "voxplain.json").write_text(json.dumps(facts))
    model = [folder, "--text-encoder", bundle / "bert"]
    explained = ["explain", "large left effusion", "--model", *model, "--out", run, "--steps", 1]
    for arguments in (explained, ["check", *model]):
        failed(arguments, "That is code")
    assert not ran.exists() and not run.exists()
    found = json.loads(call("check", *model, "--trust-code", "--json").stdout)
    assert set(found["promises"].values()) == {None} and ran.exists()
    ran.unlink()
    call(*explained, "--trust-code")
    assert ran.exists() and load_run(run).provenance["opened_with"]["trust_code"] is True
    failed(["effect", run, "left effusion"], "give --trust-code again")
    call("effect", run, "left effusion", "--trust-code")


def test_a_text_encoder_that_is_gone_is_named_and_can_be_given_anew(bundle, tmp_path):
    run, folder = tmp_path / "run", shutil.copytree(bundle, tmp_path / "models")
    options = ["--text-encoder", folder / "bert", "--steps", 1, "--recipe", "effect"]
    call("explain", "large left effusion", "--model", folder / "chest", "--out", run, *options)
    (folder / "bert").rename(folder / "moved")
    failed(["effect", run, "left effusion"], f"the text encoder {folder / 'bert'}, which is no longer there")
    call("effect", run, "left effusion", "--text-encoder", folder / "moved")
    failed(["effect", run, "effusion", "--text-encoder", bundle / "wide"], "vectors of 24 numbers")
    (folder / "chest").rename(folder / "thorax")
    failed(["effect", run, "effusion"], f"the model {folder / 'chest'}, which is no longer there; name it by --model")


def broken(case, place, diffusion, medsyn, bundle):
    """A model that cannot be opened: the arguments that name it."""
    if case == "empty folder":
        place.mkdir()
        return ["--model", place]
    if case == "missing component":
        shutil.copytree(diffusion, place)
        shutil.rmtree(place / "vae")
        return ["--model", place]
    if case == "text encoder of another width":
        return ["--model", bundle / "chest", "--text-encoder", bundle / "wide"]
    if case == "no text encoder":
        return ["--model", bundle / "chest"]
    place.mkdir()
    state = load_file(medsyn / "a.safetensors")
    state |= {"code": Code()} if case == "code in a pickle" else {"odd": torch.zeros(1)}
    torch.save({name: value for name, value in state.items() if "init_conv.bias" not in name}, place / "a.bin")
    return ["--model", f"medsyn:{place / 'a.bin'}", "--text-encoder", medsyn / "bert"]


class Code:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("empty folder", "(a folder that holds nothing): give one of"),
        ("missing component", "the component 'vae' of StableDiffusionPipeline is missing"),
        ("text encoder of another width", "vectors of 24 numbers, but the denoiser's cross_attention_dim is 16"),
        ("no text encoder", "brings no text encoder; give text_encoder"),
        ("code in a pickle", "a pickle that holds code"),
        ("names that do not fit", "1 missing: init_conv.bias; 1 unexpected: odd"),
    ],
)
def test_models_that_cannot_be_opened_end_in_one_line(case, message, diffusion, medsyn, bundle, tmp_path):
    given = broken(case, tmp_path / "model", diffusion, medsyn, bundle)
    result = failed(["explain", "large left effusion", "--out", tmp_path / "run", *given], message)
    assert "this ran" not in result.stdout and not (tmp_path / "run").exists()


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
