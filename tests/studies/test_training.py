import json

import pytest
import torch
from safetensors.torch import load_file

from voxplain.studies import training

TINY = {
    "cases": 8,
    "autoencoder_steps": 2,
    "detail_steps": 1,
    "autoencoder_batch": 2,
    "denoiser_steps": 3,
    "alike_from": 2,  # so that both pools are used
    "denoiser_batch": 4,
}


class Killed(Exception):
    pass


def weights(folder):
    return {name: tensor for shard in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(shard).items()}


def test_a_training_killed_at_any_step_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)  # a checkpoint after each step

    def kill(stage, done, steps, loss, left):
        if (stage, done) in (("autoencoder", 2), ("denoiser", 2)) and (stage, done) not in seen:
            seen.add((stage, done))
            raise Killed

    seen = set()
    whole = weights(training.train("thorax-2d", tmp_path / "whole", **TINY))
    for _ in range(2):
        with pytest.raises(Killed):
            training.train("thorax-2d", tmp_path / "parts", progress=kill, **TINY)
    parts = weights(training.train("thorax-2d", tmp_path / "parts", progress=kill, **TINY))
    assert len(seen) == 2
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_log_line_says_stage_step_loss_and_time_left(tmp_path):
    training.train("thorax-2d", tmp_path, **TINY)
    lines = [json.loads(line) for line in (tmp_path / "thorax-2d" / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["autoencoder", "denoiser"]
    assert [line["step"] for line in lines] == [3, 3]
    assert all(line["loss"] > 0 and line["seconds_left"] == 0 for line in lines)


def test_an_unknown_model_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="thorax-2d"):
        training.train("abdomen", tmp_path)


def test_a_batch_that_cannot_hold_a_family_is_refused(tmp_path):
    with pytest.raises(ValueError, match="multiples of siblings = 4"):
        training.train("thorax-2d", tmp_path, **{**TINY, "denoiser_batch": 6})
    pairs = {**TINY, "siblings": 2, "denoiser_batch": 6, "cases": 12}
    with pytest.raises(ValueError, match="multiples of siblings = 4"):  # of the families from `alike_from` on
        training.train("thorax-2d", tmp_path, **{**pairs, "alike_from": 1, "denoiser_steps": 2})
    assert not list(tmp_path.iterdir())


def test_the_evened_contrast_counts_a_change_by_its_root():
    clean = torch.zeros(1, 3, 1, 4)
    clean[0, 1], clean[0, 2] = 0.1, 10.0  # one sibling a little and one far from the first
    ignores_the_text = clean[:, :1] - clean
    assert training._evened_contrast(ignores_the_text, clean).item() == pytest.approx((0.1 + 10) / 2)
    half_of_the_small = ignores_the_text.clone()
    half_of_the_small[0, 1] /= 2
    assert training._evened_contrast(half_of_the_small, clean).item() == pytest.approx((0.025 + 10) / 2)
    shared = torch.full_like(clean, 3.0)
    assert training._evened_contrast(shared, clean).item() == 0


def test_siblings_without_any_difference_weigh_nothing_and_divide_by_nothing():
    clean = torch.ones(1, 2, 1, 4)
    assert training._evened_contrast(torch.zeros_like(clean), clean).item() == 0


def test_siblings_share_their_chest_and_not_their_findings(tmp_path):
    training.train("thorax-2d", tmp_path, **TINY)
    pool = training.Pool(tmp_path / "thorax-2d-pool", 8, 4, 1, volumes=False)
    pool.fill()
    images = pool.batch(training.np.arange(8))
    apart = (images[:, None] - images[None]).abs().mean((2, 3, 4))  # [cases, cases]
    assert apart[:4, :4].max() < apart[:4, 4:].min()
    assert len({tuple(f.kind for f in case.findings) for case in pool.cases}) > 2
