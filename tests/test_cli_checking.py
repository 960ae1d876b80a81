"""`voxplain check` on the toy model: what it says, and with which exit code."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from voxplain import loading
from voxplain.adapters.toy import ToyAdapter
from voxplain.cli import app

GRID = (4, 8, 12)


@pytest.fixture
def check(monkeypatch):
    """Runs the verb on an adapter."""

    def run(adapter, *arguments):
        monkeypatch.setattr(loading, "load", lambda name, **options: adapter)
        monkeypatch.delenv("VOXPLAIN_DEBUG", raising=False)
        return CliRunner().invoke(app, ["check", "toy", *arguments])

    return run


class Changing(ToyAdapter):
    """Looks by replacing the kernel, so the traced image differs."""

    def observe(self, layer, listener):
        def look(call):
            listener(call)
            return call.probs() * (1 + 1e-6)

        return self.edit(layer, look)


class Broken(ToyAdapter):
    """Cannot generate."""

    def generate(self, prompt, **options):
        raise ZeroDivisionError("no noise")


def test_a_model_that_keeps_its_promises_is_described_in_words(check):
    result = check(ToyAdapter(GRID))
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "toy (weights unknown)"
    assert lines[1] == "Images: 8 x 16 x 24 voxels of 5 x 5 x 5 mm, from latents of 4 x 8 x 12."
    assert "  grid 4 x 8 x 12: 1 layer of 2 heads, 16 text keys" in lines
    assert "  grid 2 x 4 x 6: 1 layer of 1 head, 16 text keys" in lines
    assert "Guidance: one run a step (null and text); without it one run a step (text)." in lines
    assert any(line.startswith("Tracing: ") and "MB kept." in line for line in lines)
    assert lines[-1] == "Promises: 17 of 17 kept."


def test_two_passes_of_guidance_and_the_cost_are_told_as_json(check):
    result = check(ToyAdapter(GRID, guidance="two_passes"), "--json")
    facts = json.loads(result.stdout)
    assert facts["guidance"] == {"with": [["null"], ["text"]], "without": [["text"]]}
    assert [(layer["layer"], layer["grid"], layer["heads"]) for layer in facts["layers"]] == [
        ("layers.0.attn2", [4, 8, 12], 2),
        ("layers.1.attn2", [2, 4, 6], 1),
    ]
    cost = facts["cost"]
    assert len(cost["of_pairs"]) == 3 and cost["cpu_ratio"] == np.median(cost["of_pairs"]) > 0
    assert facts["start"] == "[START]" and facts["padding"] == facts["positions"] - len(facts["pieces"])
    assert set(facts["promises"].values()) == {None}


def test_a_single_text_key_is_a_refusal_and_no_broken_promise(check):
    result = check(ToyAdapter(GRID, single_key=True))
    assert result.exit_code == 0, result.stdout
    assert "refused: layers.0.attn2, layers.1.attn2: " in result.stdout and "recipe 'effect'" in result.stdout
    assert "Tracing:" not in result.stdout and "Promises: 9 of 9 kept." in result.stdout


def test_a_broken_promise_is_named_and_ends_in_exit_code_1(check):
    result = check(Changing(GRID))
    assert result.exit_code == 1
    assert "Promises: 16 of 17 kept." in result.stdout
    assert "broken: observing leaves the image bit identical (AssertionError: the traced image" in result.stdout


def test_a_model_that_does_not_run_is_told_by_its_promises(check):
    result = check(Broken(GRID), "--json")
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert facts["model"] == "toy" and "layers" not in facts
    assert facts["promises"]["generation_repeats_by_seed"] == "ZeroDivisionError: no noise"


def test_one_prompt_is_not_enough(check):
    result = check(ToyAdapter(GRID), "--prompt", "large effusion")
    assert result.exit_code == 2 and "give --prompt twice" in result.stderr
