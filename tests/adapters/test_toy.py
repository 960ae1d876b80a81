import numpy as np
import pytest
import torch

from voxplain.adapters.toy import ToyAdapter
from voxplain.testing import check_adapter
from voxplain.tracing import attached

PROMPT = "large left effusion beside pneumothorax"
KINDS = [{}, {"grid": (8, 12)}, {"guidance": "two_passes"}, {"single_key": True}, {"layers": 5}]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_every_kind_keeps_all_promises(options):
    assert check_adapter(ToyAdapter(**options))


def changed(whole, less):
    """The cells of a prediction that differ by more than the rounding of sums of another length."""
    return ((whole - less).abs() > 1e-5).any(0).numpy()


def predictions(model, rows, how):
    prompt = model.tokenize(PROMPT)
    latent = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model.predict(latent, 500.0, model.encode_prompt(prompt))
        return whole[0], model.predict(latent, 500.0, model.remove(prompt, rows, how))[0]


@pytest.mark.parametrize("grid", [(8, 12), (4, 8, 12)], ids=["image", "volume"])
@pytest.mark.parametrize("word", ["large", "left", "effusion"])
def test_a_removed_word_changes_its_own_box_and_nothing_else(grid, word):
    model = ToyAdapter(grid)
    rows = model.tokenize(PROMPT).find(word)
    whole, less = predictions(model, rows, "after")
    assert np.array_equal(changed(whole, less), model.box(word))
    whole, less = predictions(model, rows, "before")
    change = (whole - less).abs().amax(0).numpy()
    assert change[model.box(word)].min() > 0.5
    assert change[~model.box(word)].max() < 1e-5


def test_a_word_of_two_pieces_has_two_boxes_and_an_unknown_word_none():
    model = ToyAdapter()
    prompt = model.tokenize(PROMPT)
    whole, less = predictions(model, prompt.find("pneumothorax"), "after")
    assert np.array_equal(changed(whole, less), model.box("pneumo") | model.box("##thorax"))
    whole, less = predictions(model, prompt.find("beside"), "after")
    assert not changed(whole, less).any()


def test_with_a_single_key_words_act_in_their_boxes_although_attention_is_blind():
    model = ToyAdapter(single_key=True)
    whole, less = predictions(model, model.tokenize(PROMPT).find("effusion"), "before")
    assert np.array_equal(changed(whole, less), model.box("effusion"))
    with pytest.raises(ValueError, match="how='before'"):
        predictions(model, (1,), "after")


def test_the_boxes_do_not_overlap():
    model = ToyAdapter((8, 12))
    assert model.network.boxes[:-1].sum(0).max() == 1


def test_removing_a_word_from_the_prompt_changes_the_image_only_in_its_box():
    model = ToyAdapter()
    whole, less = (model.generate(text, seed=4).image[0] for text in ("large left effusion", "large effusion"))
    box = model.box("left").repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert np.abs(whole - less)[box].min() > 500
    assert np.abs(whole - less)[~box].max() < 0.1


def test_a_failing_network_is_named_with_its_step():
    model = ToyAdapter(nan_at=2)
    with pytest.raises(
        FloatingPointError, match=r"step 3 of 4 \(timestep 330\); the first module to make one is 'paint'"
    ):
        model.generate(PROMPT, steps=4)
    assert not any(part._forward_hooks for part in model.network.modules())


def test_a_prediction_names_its_rows_to_listeners():
    model, heard = ToyAdapter(layers=1), []
    prompt = model.tokenize(PROMPT)
    latent = torch.zeros(3, *model.latent_shape)
    with attached(model, heard.append):
        model.predict(latent, 300.0, model.encode_prompt(prompt), rows=[(4, "text"), (0, "null"), (2, "text")], step=6)
    assert [(call.sample, call.step, call.timestep) for call in heard] == [(4, 6, 300.0), (2, 6, 300.0)]
    with pytest.raises(ValueError, match="2 rows are named, but the batch has 3"):
        model.predict(latent, 300.0, model.encode_prompt(prompt), rows=[(0, "text")] * 2)


def test_a_long_prompt_says_what_fell_off():
    prompt = ToyAdapter().tokenize("left " * 14 + "effusion")
    assert prompt.truncated == "effusion"
    assert len(prompt.ids) == 16


@pytest.mark.parametrize(
    "wrong", [{"prompt": " "}, {"prompt": []}, {"steps": 0}, {"guidance_scale": -1.0}, {"samples": 0}], ids=str
)
def test_bad_input_is_refused(wrong):
    with pytest.raises(ValueError, match="give 0 to|give 1|empty"):
        ToyAdapter().generate(**{"prompt": PROMPT, **wrong})


def test_a_grid_without_room_is_refused():
    with pytest.raises(ValueError, match="no room for 11 boxes"):
        ToyAdapter((4, 4))
