"""The toy attends as planted and passes; ignoring the text, or attending to noise, fails the check that it should."""

from dataclasses import replace

import pytest
import torch

from voxplain.adapters.toy import ToyAdapter
from voxplain.studies import sanity
from voxplain.studies.sanity_weights import network_of, shuffling
from voxplain.tokens import PhraseError

QUICK = {"steps": 4, "used": 2, "generation_steps": 2}
NAMES = [
    "weights",
    "null word",
    "unmentioned finding",
    "seeds",
    "word removal",
    "clean padding",
    "guidance",
]


def examined(adapter, **options):
    made = sanity.examine(adapter, **{**QUICK, **options})
    assert [one.name for one in made.verdicts] == NAMES
    return made, {one.name: one for one in made.verdicts}


@pytest.mark.parametrize("grid", [(8, 24), (4, 8, 12)])
def test_a_model_that_attends_as_it_should_passes_every_check(grid):
    made, found = examined(ToyAdapter(grid))
    assert {one.passed for one in made.verdicts} == {True} and made.passed, made
    assert found["seeds"].figures["correlation"] == pytest.approx(1)
    assert found["unmentioned finding"].figures["correlation"] < 0.5
    assert found["word removal"].figures["null word"] < 1e-6 < found["word removal"].figures["word"]
    assert all(one.reason for one in made.verdicts)


class Deaf(ToyAdapter):
    """It reads the same words whatever the text says."""

    def encode_prompt(self, prompt):
        return super().encode_prompt(self.tokenize(""))


class Unmoved(ToyAdapter):
    """It attends to the text as it should, and makes nothing of it."""

    def __init__(self, grid):
        super().__init__(grid)
        for block in self.network.layers:
            torch.nn.init.zeros_(block.get_submodule("attn2").to_v.weight)


class Scattered(ToyAdapter):
    """Its queries are drawn anew at every run."""

    def predict(self, latent, timestep, context, *, rows=None, step=0):
        for block in self.network.layers:
            torch.nn.init.normal_(block.get_submodule("attn2").to_q.weight, std=10)
        return super().predict(latent, timestep, context, rows=rows, step=step)


class Leaking(ToyAdapter):
    """Its padding holds the words of the text, so that taking one away changes little."""

    def encode_prompt(self, prompt):
        made = super().encode_prompt(prompt)
        words = made[:, :, :-1].sum(1, keepdim=True)
        padded = torch.tensor([[token == 0 for token in prompt.ids]]).unsqueeze(-1)
        return made + padded * torch.cat([words, torch.zeros_like(words[..., :1])], -1)


def test_a_model_whose_text_is_ignored_fails():
    made, found = examined(Deaf((8, 24)))
    assert not made.passed
    failed = {name for name, one in found.items() if one.passed is False}
    assert {"null word", "unmentioned finding", "word removal", "clean padding", "guidance"} <= failed


def test_a_model_that_attends_to_the_text_and_makes_nothing_of_it_fails():
    made, found = examined(Unmoved((8, 24)))
    assert not made.passed
    assert {name for name, one in found.items() if one.passed is False} == {
        "word removal", "clean padding", "guidance",
    }  # fmt: skip
    assert "changes by 0 of its size" in found["word removal"].reason


def test_maps_that_are_noise_fail_on_seeds():
    _, found = examined(Scattered((8, 24)))
    assert found["seeds"].passed is False


def test_padding_that_holds_the_text_is_found():
    _, found = examined(Leaking((8, 24)))
    assert found["clean padding"].passed is False


def test_what_does_not_apply_is_said_and_does_not_fail(monkeypatch):
    monkeypatch.setattr(sanity, "network_of", lambda adapter: None)
    full = " ".join(["large left effusion"] + ["mild small opacity"] * 4)  # no room is left for padding
    made, found = examined(ToyAdapter((8, 24)), text=full)
    assert found["clean padding"].passed is None and "no padding" in found["clean padding"].reason
    assert found["weights"].passed is None and made.passed
    assert network_of(ToyAdapter((8, 24))) is not None


def test_weights_are_shuffled_from_the_end_and_put_back():
    network = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(4)))
    before = [weight.detach().clone() for weight in network.parameters()]
    with pytest.raises(KeyboardInterrupt), shuffling(network, 0) as shuffle:
        shuffle(0)
        changed = [not torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True)]
        assert changed == [False, False, False, True]
        assert torch.equal(before[3].flatten().sort()[0], list(network.parameters())[3].flatten().sort()[0])
        shuffle(1)
        raise KeyboardInterrupt
    assert all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))


def test_a_given_image_is_read_and_the_model_is_left_as_it_was():
    adapter = ToyAdapter((8, 24))
    before = {name: value.clone() for name, value in adapter.network.state_dict().items()}
    image = adapter.generate("left nodule", steps=2)
    made, _ = examined(adapter, sample=replace(image, prompt=""))
    assert made.facts["image"] == "given"
    assert all(torch.equal(value, before[name]) for name, value in adapter.network.state_dict().items())


def test_words_that_make_no_sense_here_are_refused():
    adapter = ToyAdapter((8, 24))
    with pytest.raises(PhraseError, match="not in the prompt"):
        sanity.examine(adapter, word="mass", **QUICK)
    with pytest.raises(ValueError, match="stands in the text"):
        sanity.examine(adapter, other="left", **QUICK)
    with pytest.raises(ValueError, match="cannot read"):
        sanity.examine(adapter, other="--", **QUICK)
    adapter.unknown_words = lambda given: [one for one in given.split() if one in ("nodule", "effusion")]
    with pytest.raises(ValueError, match="never saw effusion in training; name a finding that it knows"):
        sanity.examine(adapter, **QUICK)
    with pytest.raises(ValueError, match="never saw nodule in training"):
        sanity.examine(adapter, word="left", **QUICK)
