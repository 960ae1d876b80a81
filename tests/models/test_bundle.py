"""Bundles in temporary folders: tiny networks with random weights, tiny text encoders, nothing that runs as code."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from safetensors.torch import load_file, save_file
from tiny_bundles import DENOISER, SCHEDULE, WIDTH, bert, clip, t5, write
from transformers import BertModel

from voxplain.adapters.base import as_adapter
from voxplain.attention import SingleKeyError
from voxplain.models.bundle import BundleError, load
from voxplain.studies.explaining import explain
from voxplain.testing import check_adapter
from voxplain.tracing import trace

PROMPT = "large left effusion"


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    torch.manual_seed(1)
    root = tmp_path_factory.mktemp("text")
    for make in (bert, clip, t5):
        make(root / make.__name__)
    bert(root / "wide", width=32)
    return root


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return write(tmp_path_factory.mktemp("bundles") / "thing")


@pytest.fixture
def folder(made, tmp_path):
    """A bundle that a test may change."""
    return shutil.copytree(made, tmp_path / "thing")


def change(folder, **entries):
    """The same bundle with some entries changed; None takes one out."""
    file = folder / "configs" / "inference.json"
    entries = {**json.loads(file.read_text()), **entries}
    file.write_text(json.dumps({name: value for name, value in entries.items() if value is not None}))


def entry(folder, name, **options):
    """The same bundle with some options of one entry changed."""
    change(folder, **{name: {**json.loads((folder / "configs" / "inference.json").read_text())[name], **options}})


# what is read -----------------------------------------------------------------------------------------------------


def test_a_bundle_becomes_a_pipeline_that_keeps_all_promises(made, text):
    pipeline = load(made, text_encoder=text / "bert", intensity=[-1000, 1000], unit="HU", spacing=[5, 4, 3])
    adapter = as_adapter(pipeline)
    assert adapter.name == "thing" and len(adapter.layers) == 4
    assert adapter.latent_shape == (2, 4, 6, 8) and adapter.geometry.shape == (8, 12, 16)
    assert adapter.geometry.spacing == (5, 4, 3) and adapter.geometry.spacing_known
    assert pipeline.config["latent_scale"] == [0.5, 0.5] and pipeline.config["prediction"] == "epsilon"
    assert len(check_adapter(adapter)) == 17


def test_words_are_explained_from_end_to_end(made, text):
    pipeline = load(made, text_encoder=text / "bert")
    explanation = explain(pipeline, PROMPT, steps=2)
    assert explanation.attributions["mean"].maps.shape == (5, 2, 3, 4)  # [CLS], three words, [SEP]; the coarser level
    assert explanation.word("effusion", recipe="effect").values.shape == (4, 6, 8)
    assert not explanation.sample.geometry.spacing_known and explanation.sample.unit == "relative intensity"


def test_the_networks_compute_what_monai_computes(made, text):
    pipeline = load(made, text_encoder=text / "bert", intensity=[-1000, 1000])
    unet = DiffusionModelUNet(**DENOISER, channels=[4, 8])
    unet.load_state_dict(torch.load(made / "models" / "diffusion.pt"))
    latent, context = torch.randn(1, 2, 4, 6, 8), pipeline.encode_prompt(pipeline.tokenize(PROMPT))
    with torch.no_grad():
        expected = unet(latent, torch.tensor([400]), context)
        assert torch.equal(pipeline.predict(latent, 400, context), expected)
        image = pipeline.decode(latent)
        model_units = pipeline.autoencoder.decode(latent / 0.5)
    np.testing.assert_allclose(image, (2000 * model_units - 1000).clamp(-1000, 1000), atol=1e-2)


@pytest.mark.parametrize(
    ("schedule", "kind", "clip_sample"),
    [
        ("linear_beta", "epsilon", False),
        ("scaled_linear_beta", "v_prediction", False),
        ("cosine", "sample", False),
        ("scaled_linear_beta", "epsilon", True),
        ("cosine", "v_prediction", True),
    ],
)
def test_every_step_is_that_of_monais_ddim(tmp_path, text, schedule, kind, clip_sample):
    changed = {"schedule": schedule, "prediction_type": kind, "clip_sample": clip_sample}
    options = {
        name: value for name, value in {**SCHEDULE, **changed}.items() if schedule != "cosine" or "beta" not in name
    }
    entries = {"scheduler": {"_target_": "monai.networks.schedulers.ddim.DDIMScheduler", **options}}
    pipeline = load(write(tmp_path / "bundle", config=entries), text_encoder=text / "bert")
    theirs = DDIMScheduler(**options)
    theirs.set_timesteps(4)
    latents = []
    with as_adapter(pipeline).on_step(lambda step: latents.append((step.latent, step.prediction, int(step.timestep)))):
        pipeline.generate(PROMPT, steps=4)
    assert [level for *_, level in latents] == [999, 749, 499, 249]
    for (latent, prediction, level), (following, *_) in zip(latents, latents[1:], strict=False):
        expected, _ = theirs.step(prediction, level, latent)
        torch.testing.assert_close(following, expected, rtol=1e-4, atol=1e-4)


def test_references_yaml_and_a_file_of_our_own_are_read(tmp_path, text):
    sizes = {"latent": 2, "text": [WIDTH]}
    folder = write(tmp_path / "bundle", config={"sizes": sizes, "scale_factor": "$1 / std"})
    entry(folder, "diffusion_def", in_channels="@sizes::latent", cross_attention_dim="@sizes#text#0")
    file = folder / "configs" / "inference.json"
    (folder / "configs" / "train.yaml").write_text(yaml.safe_dump(json.loads(file.read_text())))
    file.unlink()
    (folder / "configs" / "voxplain.json").write_text(json.dumps({"scale_factor": 0.25, "orientation": "RAS"}))
    pipeline = load(folder, text_encoder=text / "bert", spacing=2.0)
    assert pipeline.config["latent_scale"] == [0.25, 0.25] and pipeline.unet.in_channels == 2
    assert np.array_equal(pipeline.geometry.affine, np.diag([-2.0, -2.0, 2.0, 1.0]))  # axis 0 grows to the right: -x
    assert load(folder, text_encoder=text / "bert", scale_factor=3).config["latent_scale"] == [3, 3]


def test_maisi_networks_get_their_further_inputs_and_no_dropout(tmp_path, text):
    options = {"include_spacing_input": True, "use_flash_attention": True, "dropout_cattn": 0.5}
    folder = write(tmp_path / "maisi", maisi=True, denoiser={**options, "use_flash_attention": False})
    entry(folder, "diffusion_def", **options)  # MONAI would not make flash attention here, where there is no GPU
    with pytest.raises(BundleError, match="takes spacing_tensor, but inputs are none"):
        load(folder, text_encoder=text / "bert")
    pipeline = load(folder, text_encoder=text / "bert", inputs={"spacing_tensor": [1.0, 2.0, 1.0]})
    layers = as_adapter(pipeline).layers
    assert all(pipeline.unet.get_submodule(layer).use_flash_attention for layer in layers) and len(layers) == 4
    first, again = (pipeline.generate(PROMPT, steps=2).image for _ in range(2))
    assert np.array_equal(first, again)  # MONAI leaves the dropout of flash attention on
    pipeline.config["inputs"] = {"spacing_tensor": [1.0, 5.0, 1.0]}
    assert not np.array_equal(first, pipeline.generate(PROMPT, steps=2).image)


def test_weights_are_found_by_their_names_whatever_wraps_them(folder, text):
    plain = load(folder, text_encoder=text / "bert").weights_hash
    models = folder / "models"
    unet, autoencoder = (torch.load(models / f"{name}.pt") for name in ("diffusion", "autoencoder"))
    shutil.rmtree(models)
    models.mkdir()
    wrapped = {f"module.{name}": value for name, value in unet.items()}
    torch.save({"epoch": 3, "scale_factor": torch.tensor(0.125), "unet_state_dict": wrapped}, models / "a.pt")
    save_file(autoencoder, models / "b.safetensors")
    change(folder, scale_factor=None)
    pipeline = load(folder, text_encoder=text / "bert")
    assert pipeline.config["latent_scale"] == [0.125, 0.125]
    assert all(torch.equal(value, unet[name]) for name, value in pipeline.unet.state_dict().items())
    assert plain != pipeline.weights_hash


# text encoders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "pieces", "start"),
    [
        ("bert", ["[CLS]", "large", "left", "effusion", "[SEP]"], 0),
        ("clip", ["<|startoftext|>", *"larg", "e</w>", "left</w>", *"effusio", "n</w>", "<|endoftext|>"], 0),
        ("t5", ["▁large", "▁left", "▁effusion", "</s>"], None),
    ],
)
def test_every_family_of_text_encoders_gives_pieces_with_their_characters(made, text, kind, pieces, start):
    pipeline = load(made, text_encoder=text / kind, text_positions=None if kind != "t5" else 8)
    prompt = pipeline.tokenize(PROMPT)
    assert [prompt.pieces[at] for at in prompt.kept] == pieces
    assert prompt.start == start and prompt.pieces[prompt.end] == pieces[-1] and prompt.cut is None
    assert [word.text for word in prompt.words] == PROMPT.split()
    assert [len(word.rows) for word in prompt.words] == ([5, 1, 8] if kind == "clip" else [1, 1, 1])
    assert pipeline.encode_prompt(prompt).shape == (1, len(prompt.ids), WIDTH)
    assert pipeline.tokenize("").words == () and pipeline.encode_prompt(pipeline.tokenize("")).isfinite().all()
    with trace(pipeline) as tracer:
        pipeline.generate(PROMPT, steps=1)
    assert tracer.attribution().maps.shape == (len(pieces), 2, 3, 4)


def test_features_are_those_of_the_text_encoder_with_padding_masked(made, text):
    pipeline = load(made, text_encoder=text / "bert")
    own = BertModel.from_pretrained(text / "bert").eval()
    content = torch.tensor([[2, 5, 6, 7, 3]])
    context = pipeline.encode_prompt(pipeline.tokenize(PROMPT))
    torch.testing.assert_close(context[:, :5], own(input_ids=content).last_hidden_state, rtol=1e-5, atol=1e-5)
    assert context.shape[1] == 12


def test_the_code_of_a_cxr_bert_folder_is_not_run(made, text, tmp_path):
    folder = shutil.copytree(text / "bert", tmp_path / "cxr")
    described = json.loads((folder / "config.json").read_text())
    described |= {"model_type": "cxr-bert", "auto_map": {"AutoModel": "evil.Model", "AutoTokenizer": "evil.Words"}}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "evil.py").write_text("raise SystemExit('code of a model folder ran')")
    pipeline, plain = (load(made, text_encoder=place) for place in (folder, text / "bert"))
    assert torch.equal(*(each.encode_prompt(each.tokenize(PROMPT)) for each in (pipeline, plain)))


def test_words_that_do_not_fit_and_words_that_cannot_be_spelled_are_named(made, text):
    pipeline = load(made, text_encoder=text / "bert", text_positions=5)
    prompt = pipeline.tokenize("large left effusion small nodule")
    assert prompt.truncated == "small nodule" and len(prompt.ids) == 5
    assert pipeline.tokenizer.unknown_words("large zebra and zebra") == ["zebra", "and"]


def test_a_pipeline_folder_is_a_text_encoder_too(made, text, tmp_path):
    shutil.copytree(text / "clip", tmp_path / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.move(tmp_path / "text_encoder" / name, tmp_path / "tokenizer" / name)
    assert load(made, text_encoder=tmp_path).tokenize(PROMPT).words


@pytest.mark.parametrize(
    ("kind", "pooled"), [("bert", "pooler"), ("bert", "first"), ("clip", "pooler"), ("t5", "mean")]
)
def test_pooled_text_is_refused_by_attention_and_explained_by_effect(made, text, kind, pooled):
    pipeline = load(made, text_encoder=text / kind, pooled=pooled, text_positions=24 if kind == "t5" else None)
    assert pipeline.encode_prompt(pipeline.tokenize(PROMPT)).shape == (1, 1, WIDTH)
    with pytest.raises(SingleKeyError, match="use recipe 'effect'"), trace(pipeline):
        pipeline.generate(PROMPT, steps=1)
    explanation = explain(pipeline, PROMPT, steps=2, recipes=["effect"])
    assert explanation.attributions["effect"].provenance["removed"] == "before"
    assert explanation.word("effusion", recipe="effect").values.max() > 0


def test_a_bundle_with_pooled_text_keeps_the_promises_for_one_key(made, text):
    assert "attention_is_refused_in_favor_of_effect" in check_adapter(
        as_adapter(load(made, text_encoder=text / "bert", pooled="first"))
    )


# what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        (
            "diffusion_def",
            {"in_channels": "$1 + 1"},
            r"diffusion_def::in_channels is '\$1 \+ 1', an expression. That is code",
        ),
        ("diffusion_def", {"channels": [4, "%other.json::x"]}, "diffusion_def::channels::1 is '%other.json::x'"),
        ("scheduler", {"_requires_": ["@load_diffusion"]}, "scheduler has _requires_"),
        ("scheduler", {"_disabled_": True}, "scheduler has _disabled_"),
        ("diffusion_def", {"in_channels": "@autoencoder"}, r"in_channels -> autoencoder is .\$@autoencoder_def"),
        ("diffusion_def", {"in_channels": "@nowhere"}, "refers to @nowhere, which is not there"),
        ("diffusion_def", {"in_channels": "@diffusion_def::in_channels"}, "refers to itself"),
        ("diffusion_def", {"depth": 3}, "diffusion_def does not describe a DiffusionModelUNet: .*depth"),
        ("diffusion_def", {"_target_": "os.system"}, "defines no denoiser: .*found .*os.system"),
        ("diffusion_def", {"_target_": "scripts.nets.DiffusionModelUNet"}, "defines no denoiser"),
        ("scheduler", {"_target_": "RFlowScheduler"}, "defines no scheduler: .*DDPMScheduler, DDIMScheduler"),
        ("autoencoder_def", {"latent_channels": 4}, "does not fit the autoencoder.*of another shape: .*expected"),
        ("diffusion_def", {"cross_attention_dim": None, "with_conditioning": False}, "reads no text"),
    ],
)
def test_code_and_unknown_parts_are_refused_by_name(folder, text, place, options, message):
    entry(folder, place, **options)
    with pytest.raises(BundleError, match=message):
        load(folder, text_encoder=text / "bert")


def test_code_runs_where_it_is_trusted_and_only_there(tmp_path, text, capsys):
    entries = {
        "imports": ["$import math"],
        "bundle_root": ".",
        "width": f"$int(math.sqrt({WIDTH**2}))",
        "scale_factor": "$1 / math.sqrt(16)",
    }
    folder = write(tmp_path / "bundle", denoiser={}, config=entries)
    entry(folder, "diffusion_def", cross_attention_dim="@width")
    entry(folder, "scheduler", _requires_=["$print('this ran')"])
    with pytest.raises(BundleError, match="scale_factor is .*trust_code=True"):
        load(folder, text_encoder=text / "bert")
    with pytest.raises(BundleError, match="width is .*trust_code=True"):
        load(folder, text_encoder=text / "bert", scale_factor=1)
    assert "this ran" not in capsys.readouterr().out
    pipeline = load(folder, text_encoder=text / "bert", trust_code=True)
    assert "this ran" in capsys.readouterr().out
    assert pipeline.config["latent_scale"] == [0.25, 0.25]
    assert np.isfinite(pipeline.generate(PROMPT, steps=1).image).all()


def test_weights_that_do_not_fit_are_listed_with_their_count(folder, text):
    file = folder / "models" / "diffusion.pt"
    state = torch.load(file)
    for name in list(state)[:7]:
        state[f"old.{name}"] = state.pop(name)
    torch.save(state, file)
    with pytest.raises(BundleError, match=r"7 missing: conv_in.*, \.\.\.; 7 unexpected: old\.conv_in"):
        load(folder, text_encoder=text / "bert")


def test_two_files_that_fit_have_to_be_told_apart(folder, text):
    shutil.copy(folder / "models" / "diffusion.pt", folder / "models" / "last.pt")
    with pytest.raises(BundleError, match=r"diffusion.pt, last.pt; say which by weights=\{'denoiser'"):
        load(folder, text_encoder=text / "bert")
    load(folder, text_encoder=text / "bert", weights={"denoiser": "last.pt"})
    with pytest.raises(BundleError, match="no weights of the denoiser in autoencoder.pt"):
        load(folder, text_encoder=text / "bert", weights={"denoiser": "autoencoder.pt"})


class Runs:
    def __reduce__(self):
        return print, ("this ran",)


def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(folder, text, capsys):
    torch.save({"state_dict": Runs()}, folder / "models" / "diffusion.pt")
    with pytest.raises(BundleError, match="pickle that holds code"):
        load(folder, text_encoder=text / "bert", trust_code=False)
    assert "this ran" not in capsys.readouterr().out


def test_a_text_encoder_is_read_from_a_plain_pickle_and_refused_with_code_in_it(made, text, tmp_path, capsys):
    copied = shutil.copytree(text / "bert", tmp_path / "bert")
    state = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(state, copied / "pytorch_model.bin")
    load(made, text_encoder=copied)
    torch.save({**state, "code": Runs()}, copied / "pytorch_model.bin")
    with pytest.raises(BundleError, match=r"pytorch_model.bin was not read: .*a pickle that holds code"):
        load(made, text_encoder=copied)
    assert "this ran" not in capsys.readouterr().out
    (copied / "pytorch_model.bin").unlink()
    with pytest.raises(BundleError, match="holds no weights that can be read"):
        load(made, text_encoder=copied)


def test_a_text_encoder_of_another_width_is_refused_with_both_numbers(made, text):
    with pytest.raises(BundleError, match="vectors of 32 numbers, .*cross_attention_dim is 16"):
        load(made, text_encoder=text / "wide")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"image_shape": [8, 12, 15]}, "cannot be cut into latent cells of 2"),
        ({"image_shape": [8, 12]}, "3 dimensions, but image_shape is"),
        ({"image_shape": [8, 12, 14]}, "cannot be halved"),
        ({"latent_shape": [2, 4, 6, 6], "image_shape": [8, 12, 16]}, "does not fit latent_shape"),
        ({"latent_shape": [3, 4, 6, 8]}, "the latent has 3"),
        ({"inputs": {"class_labels": 1}}, "takes nothing, but inputs are class_labels"),
        ({"pooled": "max"}, "pooled = 'max'"),
        ({"text_positions": 13}, "text_positions = 13, but the text encoder has 12"),
        ({"orientation": "RAR"}, "orientation 'RAR'"),
    ],
)
def test_facts_that_contradict_the_networks_are_refused(made, text, facts, message):
    with pytest.raises(ValueError, match=message):
        _ = load(made, text_encoder=text / "bert", **facts).geometry


def test_what_the_bundle_does_not_say_is_asked_for_all_at_once(folder, text):
    change(folder, scale_factor=None)
    (folder / "configs" / "metadata.json").unlink()
    with pytest.raises(BundleError, match=r"does not say: scale_factor .*image_shape .*model_range .*voxplain.json"):
        load(folder, text_encoder=text / "bert")
    with pytest.raises(TypeError, match="unknown arguments scale; known: image_shape"):
        load(folder, text_encoder=text / "bert", scale=1)


def test_folders_that_are_something_else_are_refused_with_what_is_missing(made, folder, text, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected inference.json"):
        load(tmp_path, text_encoder=text / "bert")
    with pytest.raises(FileNotFoundError, match="expected other"):
        load(folder, text_encoder=text / "bert", config="other")
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        load(made, text_encoder=tmp_path / "nowhere")
    described = json.loads((text / "bert" / "config.json").read_text())
    other = shutil.copytree(text / "bert", tmp_path / "other")
    (other / "config.json").write_text(json.dumps({**described, "model_type": "gpt2"}))
    with pytest.raises(BundleError, match="type 'gpt2'; text encoders that are read: clip"):
        load(made, text_encoder=other)
    (other / "config.json").write_text(json.dumps({**described, "num_hidden_layers": 2}))
    with pytest.raises(BundleError, match=r"lacks 16 weights of a bert: encoder\.layer\.1"):
        load(made, text_encoder=other)
    (other / "config.json").write_text(json.dumps(described))
    (other / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        load(made, text_encoder=other)
    shutil.rmtree(folder / "models")
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        load(folder, text_encoder=text / "bert")
    (folder / "configs" / "inference.json").write_text("{")
    with pytest.raises(BundleError, match="cannot be read"):
        load(folder, text_encoder=text / "bert")
