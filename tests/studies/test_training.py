import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from voxplain import load
from voxplain.studies import loop, training

TINY = {
    "cases": 8,
    "autoencoder_steps": 2,
    "detail_steps": 1,
    "autoencoder_batch": 2,
    "text_steps": 2,
    "text_batch": 4,
    "denoiser_steps": 3,
    "denoiser_batch": 4,
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Both pools of phantoms, drawn once."""
    folder = tmp_path_factory.mktemp("pools")
    for kind, alike in (("pool", False), ("alike-pool", True)):
        training.Pool(folder / f"thorax-2d-{kind}", TINY["cases"], 1, volumes=False, alike=alike).fill()
    return folder


@pytest.fixture
def place(drawn, tmp_path):
    """A folder of a name that holds the pools."""
    return lambda name: shutil.copytree(drawn, tmp_path / name)


class Killed(Exception):
    pass


def weights(folder):
    return {name: tensor for shard in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(shard).items()}


def test_a_training_killed_at_any_step_ends_with_the_same_weights(place, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)  # a checkpoint after each step

    def kill(stage, done, steps, loss, left):
        if (stage, done) in (("text", 1), ("autoencoder", 2), ("denoiser", 2)) and (stage, done) not in seen:
            seen.add((stage, done))
            raise Killed

    seen = set()
    whole, out = weights(training.train("thorax-2d", place("whole"), **TINY)), place("parts")
    for _ in range(3):
        with pytest.raises(Killed):
            training.train("thorax-2d", out, progress=kill, **TINY)
    parts = weights(training.train("thorax-2d", out, progress=kill, **TINY))
    assert len(seen) == 3
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_log_line_says_stage_step_loss_and_time_left(place):
    out = place("out")
    training.train("thorax-2d", out, **TINY)
    lines = [json.loads(line) for line in (out / "thorax-2d" / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["text", "autoencoder", "denoiser"]
    assert [line["step"] for line in lines] == [2, 3, 3]
    assert all(line["loss"] > 0 and line["seconds_left"] == 0 for line in lines)


def test_an_unknown_model_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="thorax-2d"):
        training.train("abdomen", tmp_path)


def test_a_batch_that_cannot_hold_a_family_is_refused(tmp_path):
    with pytest.raises(ValueError, match="multiples of 4"):
        training.train("thorax-2d", tmp_path, **{**TINY, "denoiser_batch": 6})
    assert not list(tmp_path.iterdir())


def test_training_on_keeps_the_autoencoder_and_names_where_it_began(place, tmp_path):
    out = place("first")
    first = training.train("thorax-2d", out, **TINY)
    on = training.train("thorax-2d", place("on"), start=first, **TINY)
    before, after = weights(first), weights(on)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert all(name in same for name in before if name.startswith("autoencoder."))
    assert "unet.out.2.conv.weight" not in same
    kept = training.train("thorax-2d", place("kept"), start=first, **{**TINY, "text_steps": 0, "denoiser_steps": 0})
    assert all(torch.equal(before[name], value) for name, value in weights(kept).items())
    assert not torch.equal(before["text_encoder.positions"], after["text_encoder.positions"])
    assert f"weights {load(first).weights_hash}" in (on / "MODEL_CARD.md").read_text()
    assert load(on).config["latent_scale"] == load(first).config["latent_scale"]
    assert "that of the model it begins from" in (kept / "MODEL_CARD.md").read_text()
    with pytest.raises(ValueError, match=f"begun with begins from = '{training.NOWHERE}'.*give another `out`"):
        training.train("thorax-2d", out, start=first, **TINY)
    with pytest.raises(ValueError, match=r"makes images of \[96, 96\]"):
        training.train("thorax", tmp_path / "other", start=first, **TINY)
    assert not (tmp_path / "other").exists()


def test_siblings_share_their_chest_and_not_their_findings(drawn):
    pool = training.Pool(drawn / "thorax-2d-pool", 8, 1, volumes=False)
    pool.fill()
    images = pool.batch(training.np.arange(8))
    apart = (images[:, None] - images[None]).abs().mean((2, 3, 4))  # [cases, cases]
    assert apart[:4, :4].max() < apart[:4, 4:].min()
    assert len({tuple(f.kind for f in case.findings) for case in pool.cases}) > 2
