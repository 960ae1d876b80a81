"""A folder of a pipeline is opened as data, or refused with what is wrong with it."""

import json
import pickle
import shutil

import pytest
import tiny_pipelines as tiny
import torch
from safetensors.torch import load_file, save_file

from voxplain.adapters.base import as_adapter
from voxplain.adapters.diffusers import load_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning:diffusers")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tiny-sd"
    tiny.sd().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "tiny-sd")


def index(folder, **changes):
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_saved_pipeline_comes_back_and_makes_the_same(saved):
    pipe = load_pipeline(saved)
    assert as_adapter(pipe).name == "tiny-sd"
    made, before = (as_adapter(one).generate("large left effusion", steps=1).image for one in (pipe, tiny.sd()))
    assert (made == before).all()
    assert load_pipeline(str(saved), dtype="bfloat16").unet.dtype == torch.bfloat16


def test_a_pipeline_of_two_encoders_comes_back(tmp_path):
    tiny.sdxl().save_pretrained(tmp_path / "tiny-xl")
    pipe = load_pipeline(tmp_path / "tiny-xl", dtype=torch.float32, device="cpu")
    assert type(pipe).__name__ == "StableDiffusionXLPipeline"
    assert as_adapter(pipe).tokenize("small nodule").find("nodule") == (2,)


def test_a_folder_that_holds_no_pipeline_says_what_it_holds(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"no folder of a diffusers pipeline: .* model_index.json \(found: scan.nii.gz"
    ):
        load_pipeline(tmp_path)
    with pytest.raises(ValueError, match=r"found: nothing"):
        load_pipeline(tmp_path / "nowhere")
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        load_pipeline(tmp_path)


def test_a_missing_component_is_named(folder):
    shutil.rmtree(folder / "vae")
    with pytest.raises(ValueError, match="component 'vae' of StableDiffusionPipeline is missing"):
        load_pipeline(folder)


def test_a_text_encoder_of_another_width_is_refused_before_it_is_loaded(folder):
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": 24}))
    with pytest.raises(ValueError, match="vectors of width 24, but the U-Net takes 16"):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("part", "name", "value", "complaint"),
    [
        ("unet", "conv_in.bias", None, "do not fit UNet2DConditionModel: 1 missing: conv_in.bias$"),
        ("unet", "odd", torch.zeros(1), "do not fit UNet2DConditionModel: 1 unexpected: odd$"),
        ("unet", "conv_in.bias", torch.zeros(3), "conv_in.bias"),
        ("text_encoder", "final_layer_norm.bias", None, "fit CLIPTextModel: 1 missing: .*final_layer_norm.bias$"),
        (
            "text_encoder",
            "final_layer_norm.bias",
            torch.zeros(3),
            r"1 of another shape: .*final_layer_norm.bias \(3,\)",
        ),
        ("text_encoder", "odd", torch.zeros(1), None),  # of another task, perhaps
    ],
    ids=str,
)
def test_weights_that_do_not_fit_are_listed_and_nothing_is_made_up(folder, capfd, part, name, value, complaint):
    [path] = (folder / part).glob("*.safetensors")
    state = load_file(path)
    place = next((one for one in state if one.endswith(name)), name)
    state.pop(place, None)
    save_file(state if value is None else {**state, place: value}, path, {"format": "pt"})
    if complaint is None:
        assert load_pipeline(folder).text_encoder is not None
    else:
        with pytest.raises(ValueError, match=complaint):
            load_pipeline(folder)
    assert "newly initialized" not in capfd.readouterr().err


def test_weights_that_are_damaged_or_gone_are_named(folder):
    [path] = (folder / "unet").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="unet holds no weights that can be read"):
        load_pipeline(folder)
    path.unlink()
    with pytest.raises(ValueError, match="unet holds no weights that can be read"):
        load_pipeline(folder)


def test_pickles_are_refused_and_not_opened(folder):
    class Boom:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was opened",))

    (weights,) = (folder / "unet").glob("*.safetensors")
    weights.unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Boom()))
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.bin, a format that can carry code; convert"):
        load_pipeline(folder)


@pytest.mark.parametrize("changes", [{"_class_name": ["pipeline", "MyPipeline"]}, {"_class_name": "MyPipeline"}])
def test_pipelines_that_are_code_are_refused(folder, changes):
    index(folder, **changes)
    with pytest.raises(ValueError, match="no pipeline of diffusers; code that comes with a model is never run"):
        load_pipeline(folder)


def test_components_that_are_code_are_refused(folder):
    index(folder, text_encoder=["modeling_cxrbert", "CXRBertModel"])
    with pytest.raises(ValueError, match=r"'text_encoder' is code of its own \(modeling_cxrbert\)"):
        load_pipeline(folder)


def test_a_strange_precision_is_refused(saved):
    with pytest.raises(ValueError, match="dtype = 'half-ish'; give float32, float16 or bfloat16"):
        load_pipeline(saved, dtype="half-ish")
