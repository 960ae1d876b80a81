"""MedSyn from files: checkpoints in every wrapping, BERT folders, and the order that no file states."""

import json
import warnings

import pytest
import torch
from medsyn_models import CONTEXT, PIECES, SHARED, WIDTH, needs_shared, small_bert, small_encoder, small_network
from safetensors.torch import load_file, save_file

from voxplain.models.medsyn import (
    UP_ORDERS,
    CheckpointError,
    WeightsLicenseWarning,
    fit_up_order,
    load,
    load_checkpoint,
    load_text_encoder,
)
from voxplain.models.medsyn.checkpoint import LEGACY
from voxplain.models.medsyn.checkpoint import SHARED as TIED
from voxplain.models.medsyn.orders import torso
from voxplain.tokens import PhraseError

PREFIXES = ("", "denoise_fn.", "module.denoise_fn.")


def plain_state(**changes):
    return {name: value.clone() for name, value in small_network(**changes).state_dict().items()}


def opened(path, **options):
    with pytest.warns(WeightsLicenseWarning, match="CC BY-NC 4.0.*non-commercial use only"):
        return load_checkpoint(path, **options)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_checkpoint_loads_in_every_wrapping(tmp_path, prefix, suffix):
    state, path = plain_state(), tmp_path / f"weights{suffix}"
    wrapped = {prefix + name: value for name, value in state.items()}
    wrapped |= {prefix.removesuffix("denoise_fn.") + name: torch.zeros(3) for name in LEGACY}
    if suffix == ".bin":
        torch.save(wrapped, path)
    else:
        for group in TIED:
            for name in group[1:]:
                del wrapped[prefix + name]
        save_file(wrapped, path)
    network = opened(path, up_order="up_mid")
    assert network.up_order == "up_mid" and not network.training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in network.parameters())
    assert network.get_parameter(TIED[0][0]) is network.get_parameter(TIED[0][3])


@needs_shared
def test_sizes_are_read_from_the_shapes(tmp_path):
    path = SHARED / "parity_small.safetensors"
    network = opened(path)
    assert (network.channels, network.cond_dim, network.context, network.coarsest) == (3, 24, 192, 4)
    assert network.mid_cross_attn1.fn.fn.heads == 4
    state = {name.removeprefix("denoise_fn."): value for name, value in load_file(path).items()}
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert opened(path, dtype=torch.bfloat16).init_conv.weight.dtype == torch.bfloat16


def test_the_average_is_taken_from_a_state_folder_and_the_last_of_many(tmp_path):
    for number, shift in ((9, 1.0), (10, 2.0)):
        folder = tmp_path / f"{number}_ckpt"
        folder.mkdir()
        for name, more in (("pytorch_model.bin", 0.0), ("pytorch_model_1.bin", 0.5)):
            torch.save({**plain_state(), "final_conv.1.bias": torch.full((4,), shift + more)}, folder / name)
    bias = [float(opened(tmp_path, ema=ema).final_conv[1].bias[0]) for ema in (True, False)]
    assert bias == [2.5, 2.0]
    (tmp_path / "10_ckpt" / "pytorch_model_1.bin").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"averaged.*pytorch_model.bin; name the file itself, or load with ema="
    ):
        load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_checkpoint(tmp_path / "nothing")


class Code:
    """A pickle that would run something."""

    def __reduce__(self):
        return print, ("code in a pickle ran",)


def damaged(name):
    state = plain_state()
    if name == "missing":
        del state["mid_block1.mlp.1.bias"]
    elif name == "unexpected":
        state["denoise_fn.betas"] = torch.zeros(3)  # a schedule stands beside the network, not in it
    elif name == "shape":
        state["mid_block1.mlp.1.bias"] = torch.zeros(3)
    elif name == "twice":
        state["denoise_fn.init_conv.bias"] = state["init_conv.bias"]
    elif name == "untied":
        state[TIED[1][2]] = state[TIED[1][2]] + 1
    elif name == "super-resolution":
        state = {key: value for key, value in state.items() if key != "null_cond_emb" and ".mid_cross" not in key}
    elif name == "nested":
        state = {"model": state, "step": 3}
    elif name == "code":
        state["code"] = Code()
    return state


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("missing", "1 missing: mid_block1.mlp.1.bias"),
        ("unexpected", "1 unexpected: betas"),
        ("shape", r"1 of another shape: mid_block1.mlp.1.bias \(3,\), expected \(32,\)"),
        ("twice", "init_conv.bias twice"),
        ("untied", "attn3.fn.fn.fn.to_out.weight differ"),
        ("super-resolution", "super-resolution stage reads no text"),
        ("nested", r"model \(dict\), step \(int\); save the state_dict alone"),
        ("code", "a pickle that holds code"),
    ],
)
def test_what_does_not_fit_is_listed_and_refused(tmp_path, capsys, name, complaint):
    torch.save(damaged(name), tmp_path / "weights.bin")
    with pytest.raises(CheckpointError, match=complaint):
        load_checkpoint(tmp_path / "weights.bin")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_text("not a checkpoint at all")
    with pytest.raises(CheckpointError, match="weights"):
        load_checkpoint(path)


# the order of the up levels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("up_order", UP_ORDERS)
def test_the_order_that_a_network_was_trained_in_is_found(up_order):
    network, volume = small_network(up_order=up_order).requires_grad_(True), torso(4, (2, 8, 8))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    draw = torch.Generator().manual_seed(1)
    for _ in range(75):
        noisy = 0.999 * volume[None] + 0.05 * torch.randn(1, *volume.shape, generator=draw)
        loss = (network(noisy, torch.full((1,), 20.0), network.null_cond_emb) - volume).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.up_order = "up_last"
    test = fit_up_order(network, volume)
    assert test.best == up_order and test.ratio >= 2, str(test)
    assert fit_up_order(network, shape=(2, 8, 8)).errors == test.errors
    assert network.up_order == "up_last"


def test_random_weights_have_no_order():
    test = fit_up_order(small_network(), shape=(4, 8, 8))
    assert test.best is None and "too close to tell" in str(test)


# text -------------------------------------------------------------------------------------------------------------


def write_bert(folder, *, prefix="bert.", positions=20, **config):
    """A folder like that of CXR-BERT: a custom configuration class, code to run, heads beside BERT."""
    folder.mkdir(exist_ok=True)
    bert = small_bert(positions)
    described = {**bert.config.to_dict(), "model_type": "cxr-bert", "auto_map": {"AutoModel": "evil.Model"}, **config}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "evil.py").write_text("raise SystemExit('code of a model folder ran')")
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    heads = {"cls.predictions.bias": torch.zeros(len(PIECES)), f"{prefix}pooler.dense.bias": torch.zeros(3)}
    positions = {f"{prefix}embeddings.position_ids": torch.arange(3)}
    state = {prefix + name: value for name, value in bert.state_dict().items()} | heads | positions
    save_file(state, folder / "model.safetensors")
    return bert


@pytest.mark.parametrize("prefix", ["bert.", "module.text_encoder.bert.", ""])
def test_a_bert_folder_is_read_as_data_whatever_wraps_it(tmp_path, prefix):
    bert = write_bert(tmp_path / "bert", prefix=prefix)
    encoder = load_text_encoder(tmp_path / "bert", context=CONTEXT)
    assert all(torch.equal(value, bert.state_dict()[name]) for name, value in encoder.bert.state_dict().items())
    assert torch.equal(encoder("large left effusion"), small_encoder()("large left effusion"))


def test_features_are_the_last_hidden_layer_with_padding_masked_inside_bert_only():
    encoder = small_encoder()
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    alone = encoder.bert(ids).last_hidden_state
    features = encoder("LARGE left effusion")
    assert features.shape == (1, CONTEXT, WIDTH)
    torch.testing.assert_close(features[:, :5], alone, atol=1e-5, rtol=1e-5)
    assert features[:, 5:].abs().min(-1).values.min() >= 0 and features[0, 5:].std() > 0.1  # padding has features too


def test_words_know_their_pieces_and_special_tokens_their_places():
    prompt = small_encoder().tokenize("Large pleural effusion.")
    assert prompt.pieces[:7] == ("[CLS]", "large", "pleur", "##al", "effusion", ".", "[SEP]")
    assert (prompt.start, prompt.end, len(prompt.ids), prompt.cut) == (0, 6, CONTEXT, None)
    assert prompt.find("pleural") == (2, 3) and len(prompt.padding) == 5
    assert small_encoder().unknown_words("large odd effusion odd") == ["odd"]


def test_a_long_prompt_is_cut_for_the_network_but_not_for_bert():
    encoder = small_encoder()
    full = encoder.tokenize("large " * 11)
    assert full.end is None and full.cut is None and full.truncated == ""
    text = "large " * 11 + "nodule effusion"
    prompt = encoder.tokenize(text)
    assert prompt.end is None and prompt.truncated == "nodule effusion" and len(prompt.ids) == CONTEXT
    with pytest.raises(PhraseError, match="cut off"):
        prompt.find("nodule")
    assert not torch.allclose(encoder(text), encoder("large " * 11 + "effusion effusion"), atol=1e-4)
    assert encoder("large " * 500).shape == (1, CONTEXT, WIDTH)


def test_a_folder_that_is_no_bert_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no such folder"):
        load_text_encoder(tmp_path / "none")
    folder = tmp_path / "bert"
    write_bert(folder, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"missing encoder.layer.1"):
        load_text_encoder(folder, context=CONTEXT)
    write_bert(folder)
    with pytest.raises(ValueError, match="20 positions, but 192 are read"):
        load_text_encoder(folder)
    (folder / "vocab.txt").write_text("\n".join([*PIECES, "more"]))
    with pytest.raises(ValueError, match="13 pieces, but BERT embeds 12"):
        load_text_encoder(folder, context=CONTEXT)
    (folder / "vocab.txt").write_text("\n".join(PIECES[4:]))
    with pytest.raises(ValueError, match=r"lacks \[CLS\], \[SEP\], \[PAD\], \[UNK\]"):
        load_text_encoder(folder, context=CONTEXT)
    (folder / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match="neither tokenizer.json nor vocab.txt"):
        load_text_encoder(folder, context=CONTEXT)
    save_file({"other": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="0 tensors called"):
        load_text_encoder(folder, context=CONTEXT)


# together ---------------------------------------------------------------------------------------------------------


def test_a_pipeline_opens_from_files_and_says_what_it_is(tmp_path):
    write_bert(tmp_path / "bert")
    torch.save(plain_state(), tmp_path / "weights.bin")
    options = {"shape": (3, 4, 6)}
    with pytest.warns(UserWarning) as said:
        undecided = load(tmp_path / "weights.bin", tmp_path / "bert", **options)
    assert "up_order='up_mid'" in str(said[-1].message) and undecided.network.up_order == "up_last"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeightsLicenseWarning)
        told = load(tmp_path / "weights.bin", tmp_path / "bert", up_order="up_mid", **options)
    sample = told.generate("small nodule", steps=1)
    facts = sample.provenance
    assert facts["up_order"] == "up_mid" and facts["checkpoint"] == "weights.bin" and "CC BY-NC" in facts["license"]
    assert len(facts["weights"]) == 64 and told.weights_hash == undecided.weights_hash
    assert "too close to tell" in undecided.facts["up_order_test"]
    with pytest.warns(WeightsLicenseWarning), pytest.raises(ValueError, match="multiples of 2"):
        load(tmp_path / "weights.bin", tmp_path / "bert", up_order="up_last", shape=(3, 5, 6))
