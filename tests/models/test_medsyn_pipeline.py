"""MedSyn's pipeline in miniature: what it announces and returns, and where its voxels are."""

import numpy as np
import pytest
import torch
from medsyn_models import small_model

from voxplain.geometry import Geometry, regular
from voxplain.maps import Heatmap
from voxplain.models.events import Call, Run, Step
from voxplain.models.medsyn import ct, label_masks, volume_geometry

PROMPT = "large left effusion"


def test_a_sample_has_hounsfield_units_labels_and_says_how_it_was_made():
    sample = small_model().generate(PROMPT, seed=3)
    assert sample.image.shape == (4, 3, 4, 6)
    assert -1024 <= sample.image[0].min() < sample.image[0].max() <= 600
    assert sample.image[1:].min() >= 0 and sample.image[1:].max() <= 1
    facts = sample.provenance
    assert facts["steps"] == 3 and facts["up_order"] == "up_last" and facts["dtype"] == "float32" and facts["seed"] == 3
    assert facts["channels"] == ["CT", "lobes", "airway", "vessels"]
    np.testing.assert_array_equal(ct(sample).image[0], sample.image[0])
    masks = label_masks(sample, {"vessels": 0.9})
    assert list(masks) == ["lobes", "airway", "vessels"]
    np.testing.assert_array_equal(masks["vessels"].values, sample.image[3] > 0.9)
    np.testing.assert_array_equal(masks["lobes"].values, sample.image[1] > 0.1)


def test_a_batch_equals_its_samples_and_seeds_count_up():
    model = small_model()
    both = model.generate([PROMPT, "small nodule"], seed=[4, 5], guidance_scale=2.0)
    again = model.generate("small nodule", seed=5, guidance_scale=2.0)
    np.testing.assert_allclose(both[1].image, again.image, atol=0.05)  # HU
    pair = model.generate(PROMPT, seed=4, samples=2, guidance_scale=2.0)
    np.testing.assert_allclose(pair[0].image, both[0].image, atol=0.05)
    assert [one.provenance["seed"] for one in pair] == [4, 5]


def test_events_tell_the_passes_as_they_run():
    model, events, done = small_model(), [], []
    with model.watching(events.append):
        model.generate([PROMPT, "small nodule"], steps=2, guidance_scale=3.0, progress=lambda *now: done.append(now))
    assert isinstance(events[0], Run) and events[0].steps == 2
    calls = [event for event in events if isinstance(event, Call)]
    text, null = ((0, "text"), (1, "text")), ((0, "null"), (1, "null"))
    assert [(call.rows, call.step) for call in calls] == [(text, 0), (null, 0), (text, 1), (null, 1)]
    assert done == [(1, 2), (2, 2)]
    events.clear()
    with model.watching(events.append):
        model.generate(PROMPT, steps=2, guidance_scale=1.0)
    assert sum(isinstance(event, Call) for event in events) == 2


def test_guidance_leaves_the_null_text_for_the_prompt():
    model, predictions = small_model(), {}
    for scale in (0.0, 1.0, 3.0):
        with model.watching(lambda event, at=scale: isinstance(event, Step) and predictions.update({at: event})):
            model.generate(PROMPT, steps=1, guidance_scale=scale)
    null, text, guided = (predictions[scale].prediction for scale in (0.0, 1.0, 3.0))
    torch.testing.assert_close(guided, null + 3 * (text - null), atol=1e-4, rtol=1e-4)
    assert torch.equal(null, model.predict(predictions[0.0].latent, 1000.0, model.network.null_cond_emb))
    denied = model.generate(PROMPT, steps=1, guidance_scale=3.0, negative_prompt="small nodule")
    assert not np.array_equal(denied.image, model.generate(PROMPT, steps=1, guidance_scale=3.0).image)


def test_half_precision_keeps_the_volume_in_single():
    model = small_model()
    whole = model.generate(PROMPT, seed=1)
    model.network.bfloat16()
    half = model.generate(PROMPT, seed=1)
    assert half.image.dtype == np.float32 and half.provenance["dtype"] == "bfloat16"
    assert 0 < np.abs(half.image[0] - whole.image[0]).mean() < 50


def test_physical_units_come_back():
    model = small_model()
    image = model.generate(PROMPT, seed=1).image
    np.testing.assert_allclose(model.decode(model.encode_image(image))[0], image, atol=1e-3)
    with pytest.raises(ValueError, match="bring the label volumes"):
        model.encode_image(image[:1])


def test_bad_weights_are_traced_to_their_layer():
    model = small_model()
    model.network.mid_block1.block2.proj.weight[:] = torch.nan
    with pytest.raises(FloatingPointError, match=r"step 1 of 3 \(timestep 1000\).*network.mid_block1.block2.proj"):
        model.generate(PROMPT)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"steps": 0}, "steps = 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale = nan"),
        ({"samples": 0}, "samples = 0"),
        ({"seed": [1, 2]}, "2 seeds for 1 samples"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_impossible_requests_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        small_model().generate(**{"prompt": PROMPT, **options})


# where voxels are -------------------------------------------------------------------------------------------------


def test_the_published_volume_has_the_spacing_and_orientation_of_its_atlas():
    geometry = volume_geometry((64, 64, 64))
    assert geometry.spacing == pytest.approx((4.5625, 4.9375, 4.9375))
    first, slice_up, row_up, column_up = geometry.world(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float))
    assert np.sign(np.round(slice_up - first, 6)).tolist() == [0, 0, 1]  # superior
    assert np.sign(np.round(row_up - first, 6)).tolist() == [0, -1, 0]  # anterior
    assert np.sign(np.round(column_up - first, 6)).tolist() == [1, 0, 0]  # left


@pytest.mark.parametrize(("size", "flipped"), [(128, False), (256, True)])
def test_a_map_lands_in_the_same_place_on_a_volume_enlarged_elsewhere(size, flipped):
    """A cell of the native grid is a block of 1 x 8 x 8 voxels at 64, so of 4 x 32 x 32 at 256."""
    cells = volume_geometry((64, 64, 64)).at((64, 8, 8))
    values = np.zeros((64, 8, 8), np.float32)
    values[10, 2, 5] = 1
    large = volume_geometry((size, size, size), rows_flipped=flipped)
    shown = Heatmap("effusion", values, cells).resize(large, "nearest").values[:, :: -1 if flipped else 1]
    block = tuple(slice(at * size // cut, (at + 1) * size // cut) for at, cut in ((10, 64), (2, 8), (5, 8)))
    assert shown[block].all() and shown.sum() == (size // 64) * (size // 8) ** 2


def test_a_map_lands_on_any_volume_that_knows_where_it_is():
    """A user's own volume: other spacing, other field of view, rows to posterior or to anterior."""
    cells = volume_geometry((64, 64, 64)).at((64, 8, 8))
    values = np.zeros((64, 8, 8), np.float32)
    values[30, 4, 3] = 1
    heatmap = Heatmap("nodule", values, cells)
    x, y, z = (float(at) for at in cells.world(np.array([[30.0, 4, 3]]))[0])
    user = regular((5, 9, 9), 2.0, (x - 8, y - 4, z - 4))
    assert heatmap.resize(user).peak == (2, 2, 4)
    turned = user.affine @ np.array([[1, 0, 0, 0], [0, -1, 0, 8], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert heatmap.resize(Geometry(user.shape, turned)).peak == (2, 6, 4)
    assert not heatmap.resize(regular((5, 9, 9), 2.0, (x + 1000, y, z))).values.any()
