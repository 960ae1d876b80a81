import json

import pytest
import torch

from voxplain.models.thorax import weights
from voxplain.models.thorax.weights import load, save


@pytest.fixture
def saved(tiny, tmp_path):
    return save(tiny(localizing_layers=["middle_block"]), tmp_path / "model", "# card", shard_bytes=40_000)


def test_save_then_load_gives_the_same_weights_in_half_precision(tiny, saved):
    pipeline, again = tiny(), load(saved)
    assert again.tokenizer.pieces == pipeline.tokenizer.pieces and again.tokenizer.words == pipeline.tokenizer.words
    assert again.tokenizer.context == 24
    assert again.config == {**pipeline.config, "localizing_layers": ["middle_block"]}
    for name, value in again.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, pipeline.state_dict()[name].half().float())
    assert not again.training and not any(parameter.requires_grad for parameter in again.parameters())


def test_a_loaded_model_saved_again_is_the_same_model(saved, tmp_path):
    twin = save(load(saved), tmp_path / "twin", "# card", shard_bytes=40_000)
    for path in saved.iterdir():
        assert path.read_bytes() == (twin / path.name).read_bytes()


def test_per_channel_latent_statistics_survive(tiny, tmp_path):
    pipeline = tiny()
    pipeline.calibrate([0.1, 0.2, 0.3], 2.0)
    again = load(save(pipeline, tmp_path / "model", ""))
    assert torch.equal(again.latent_shift, pipeline.latent_shift)
    assert torch.equal(again.latent_scale, pipeline.latent_scale)


def test_no_shard_is_larger_than_asked(saved):
    sizes = [path.stat().st_size for path in saved.glob("weights-*.safetensors")]
    assert len(sizes) > 1 and max(sizes) <= 40_000


@pytest.mark.parametrize("name", ["weights-00002.safetensors", "vocab.json"])
def test_a_changed_file_is_refused_by_name(saved, name):
    content = bytearray((saved / name).read_bytes())
    content[-1] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*sha256"):
        load(saved)


def test_a_missing_shard_is_named(saved):
    (saved / "weights-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="weights-00001"):
        load(saved)


def test_a_later_format_is_refused(saved):
    described = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**described, "format": 2}))
    with pytest.raises(ValueError, match="format 2"):
        load(saved)


def test_missing_weights_say_how_to_train(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="voxplain train thorax"):
        load("thorax")


def test_a_shipped_model_is_found_by_name(saved, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED", saved.parent)
    assert load("model").weights_hash == load(saved).weights_hash


def test_a_folder_that_is_not_a_model_is_left_alone(tiny, tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(FileExistsError):
        save(tiny(), tmp_path, "")
    assert (tmp_path / "notes.txt").read_text() == "keep"


def test_weights_beyond_half_precision_are_not_saved(tiny, tmp_path):
    pipeline = tiny()
    with torch.no_grad():
        pipeline.text_encoder.positions[0, 0] = 1e6
    with pytest.raises(ValueError, match="text_encoder.positions"):
        save(pipeline, tmp_path / "model", "")
    assert not (tmp_path / "model").exists()
