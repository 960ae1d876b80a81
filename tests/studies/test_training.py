import json

import pytest
import torch
from safetensors.torch import load_file

from voxplain.studies import training

TINY = {"cases": 6, "autoencoder_steps": 2, "autoencoder_batch": 2, "denoiser_steps": 3, "denoiser_batch": 2}


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
    assert [line["step"] for line in lines] == [2, 3]
    assert all(line["loss"] > 0 and line["seconds_left"] == 0 for line in lines)


def test_an_unknown_model_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="thorax-2d"):
        training.train("abdomen", tmp_path)
