import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxplain import attention
from voxplain.attention import AttentionCall, RunningMeans, SingleKeyError, attention_probs
from voxplain.geometry import regular
from voxplain.tokens import TokenizedPrompt

GRID = (2, 3, 5)
IMAGE = regular((4, 6, 10), 5.0)
PROMPT = TokenizedPrompt(  # start, two pieces, end, two positions of padding
    text="left lung",
    ids=(1, 5, 6, 2, 0, 0),
    pieces=("[S]", "left", "lung", "[E]", "[P]", "[P]"),
    spans=(None, (0, 4), (5, 9), None, None, None),
    start=0,
    end=3,
)


def make_call(seed=0, *, layer="a", heads=2, grid=GRID, sample=0, step=0, dtype=torch.float32, **changes):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(heads, int(np.prod(grid)), 4, generator=generator).to(dtype)
    key = torch.randn(heads, len(PROMPT.ids), 4, generator=generator).to(dtype)
    values = {"layer": layer, "sample": sample, "step": step, "timestep": 9.0, "grid": grid, "query": query, "key": key}
    return AttentionCall(**{**values, "scale": 0.5, **changes})


def rows(call):
    """The kept rows and the summed padding of one call, the slow way."""
    probs = call.probs().mean(0).numpy()
    return np.concatenate([probs[list(PROMPT.kept)], probs[list(PROMPT.padding)].sum(0, keepdims=True)])


def test_probabilities_are_the_softmax_of_scaled_scores():
    call = make_call()
    scores = torch.einsum("hqd,htd->htq", call.query.double(), call.key.double()) * 0.5
    expected = scores.exp() / scores.exp().sum(1, keepdim=True)
    assert torch.allclose(call.probs().double(), expected.unflatten(-1, GRID), atol=1e-6)


@given(st.integers(0, 1000), st.sampled_from([(7,), (3, 4), (2, 3, 2)]))
def test_probabilities_sum_to_one_over_tokens_at_every_cell(seed, grid):
    assert torch.allclose(make_call(seed, grid=grid).probs().sum(1), torch.ones(2, *grid), atol=1e-6)


def test_a_masked_token_gets_nothing_and_a_flat_bias_changes_nothing():
    plain = make_call()
    flat = make_call(bias=torch.full((1, 1, 6), 3.0))
    assert torch.allclose(plain.probs(), flat.probs(), atol=1e-6)
    mask = torch.zeros(1, 1, 6)
    mask[..., 2] = -torch.inf
    masked = make_call(bias=mask).probs()
    assert masked[:, 2].max() == 0
    assert torch.allclose(masked.sum(1), torch.ones(2, *GRID), atol=1e-6)


KERNELS = pytest.mark.parametrize("few", [0, 128], ids=["fused", "products"])  # keys up to which products are taken


@KERNELS
def test_a_bias_of_each_query_reaches_that_query_also_in_chunks(monkeypatch, few):
    monkeypatch.setattr(attention, "FEW", few)
    bias = torch.zeros(2, 30, 6)
    bias[:, 17, 4] = 50.0
    call = make_call(bias=bias)
    assert call.probs().flatten(2)[:, 4, 17].min() > 0.999
    monkeypatch.setattr(attention, "CHUNK", 7 * 12)
    monkeypatch.setattr(attention, "ROOM", 7 * 12)
    pieces = torch.cat([mixed for _, mixed in call.mixed(torch.eye(6))], dim=1)
    assert torch.allclose(pieces.mT, call.probs().flatten(2), atol=1e-6)


@KERNELS
@pytest.mark.parametrize("columns", [2, 4, 6])
def test_mixed_values_are_probabilities_times_values_whatever_their_width(monkeypatch, columns, few):
    monkeypatch.setattr(attention, "FEW", few)
    call, values = make_call(), torch.randn(6, columns)
    ((_, mixed),) = call.mixed(values)
    assert torch.allclose(mixed[..., :columns], call.probs().flatten(2).mT @ values, atol=1e-6)


def test_permuting_tokens_permutes_maps():
    call, order = make_call(), torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = make_call(key=call.key[:, order])
    assert torch.allclose(permuted.probs(), call.probs()[:, order], atol=1e-6)


def test_a_volume_of_depth_one_equals_the_image():
    image, volume = make_call(grid=(3, 5)), make_call(grid=(1, 3, 5))
    assert torch.equal(volume.probs()[:, :, 0], image.probs())


def test_half_precision_is_brought_to_float32_before_the_product():
    call = make_call(dtype=torch.float16)
    assert call.probs().dtype == torch.float32
    exact = attention_probs(call.query.double().float(), call.key.double().float(), 0.5)
    assert torch.equal(call.probs().flatten(2), exact)


def test_a_single_text_key_is_refused_in_favor_of_effect():
    with pytest.raises(SingleKeyError, match="recipe 'effect'"):
        make_call(key=torch.randn(2, 1, 4))


def test_a_grid_that_the_queries_do_not_fill_is_refused():
    with pytest.raises(ValueError, match="30 queries do not fill a grid of"):
        make_call(query=torch.randn(2, 30, 4), grid=(6, 6))


# running means ----------------------------------------------------------------------------------------------------


@given(st.permutations(range(6)))
def test_a_streamed_mean_equals_the_stored_mean_in_any_order(order):
    calls = [make_call(seed) for seed in range(6)]
    means = RunningMeans([PROMPT])
    for number in order:
        means.update(calls[number])
    (mean,) = means.maps(0, IMAGE).means.values()
    np.testing.assert_allclose(mean, np.mean([rows(call) for call in calls], axis=0), atol=1e-6)


@KERNELS
def test_chunks_give_the_same_mean_as_the_whole(monkeypatch, few):
    monkeypatch.setattr(attention, "FEW", few)
    whole, chunked = RunningMeans([PROMPT]), RunningMeans([PROMPT])
    for seed in range(3):
        whole.update(make_call(seed))
    monkeypatch.setattr(attention, "CHUNK", 1)
    monkeypatch.setattr(attention, "ROOM", 1)
    assert len(list(make_call().mixed(torch.eye(6)))) == 30
    for seed in range(3):
        chunked.update(make_call(seed))
    ours, theirs = (next(iter(means.maps(0, IMAGE).means.values())) for means in (whole, chunked))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_last_row_is_all_padding_and_rows_sum_to_one():
    means = RunningMeans([PROMPT])
    means.update(make_call())
    (mean,) = means.maps(0, IMAGE).means.values()
    np.testing.assert_allclose(mean[-1], make_call().probs().mean(0)[[4, 5]].sum(0).numpy(), atol=1e-6)
    np.testing.assert_allclose(mean.sum(0), 1, atol=1e-6)


def test_every_head_weighs_the_same_whatever_its_layer():
    narrow, wide = make_call(1, layer="a", heads=1), make_call(2, layer="b", heads=3)
    means = RunningMeans([PROMPT])
    means.update(narrow)
    means.update(wide)
    (mean,), (count,) = means.maps(0, IMAGE).means.values(), means.maps(0, IMAGE).counts.values()
    np.testing.assert_allclose(mean, (rows(narrow) + 3 * rows(wide)) / 4, atol=1e-6)
    assert count == 4


def test_each_grid_and_each_sample_has_its_own_mean():
    coarse, other = make_call(1, grid=(1, 3, 5)), make_call(2, sample=1)
    means = RunningMeans([PROMPT, PROMPT])
    for call in (make_call(0), coarse, other):
        means.update(call)
    first, second = means.maps(0, IMAGE), means.maps(1, IMAGE)
    assert {key.grid for key in first.means} == {GRID, (1, 3, 5)}
    (mean,) = second.means.values()
    np.testing.assert_allclose(mean, rows(other), atol=1e-6)


def test_layers_and_heads_are_kept_apart_on_request():
    calls = [make_call(1, layer="a", heads=2), make_call(2, layer="b", heads=3)]
    layers, heads = RunningMeans([PROMPT], per_layer=True), RunningMeans([PROMPT], per_head=True)
    for call in calls:
        layers.update(call)
        heads.update(call)
    found = {(key.layer, key.head): mean for key, mean in heads.maps(0, IMAGE).means.items()}
    assert set(found) == {("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)}
    for call in calls:
        each = [found[call.layer, head] for head in range(len(call.key))]
        np.testing.assert_allclose(np.mean(each, axis=0), rows(call), atol=1e-6)
        np.testing.assert_allclose(each[1][:4], call.probs()[1, :4].numpy(), atol=1e-6)
    named = {key.layer: mean for key, mean in layers.maps(0, IMAGE).means.items()}
    np.testing.assert_allclose(named["b"], rows(calls[1]), atol=1e-6)


def test_bins_sort_calls_by_step():
    means = RunningMeans([PROMPT], bin_of=lambda call: call.step // 2)
    for step in range(4):
        means.update(make_call(step, step=step))
    found = {key.bin: mean for key, mean in means.maps(0, IMAGE).means.items()}
    assert set(found) == {0, 1}
    np.testing.assert_allclose(found[1], (rows(make_call(2)) + rows(make_call(3))) / 2, atol=1e-6)


def test_memory_is_rows_times_cells_and_does_not_grow_with_calls():
    means, kept = RunningMeans([PROMPT]), []
    for seed in range(20):
        means.update(make_call(seed))
        kept.append(means.nbytes)
    assert set(kept) == {4 * 5 * 30 + 4 * 5 * 6}  # means, and the choice of rows


def test_half_precision_calls_give_a_float32_mean_over_many_steps():
    means, calls = RunningMeans([PROMPT]), [make_call(seed, dtype=torch.float16) for seed in range(200)]
    for call in calls:
        means.update(call)
    (mean,) = means.maps(0, IMAGE).means.values()
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, np.mean([rows(call) for call in calls], axis=0, dtype=np.float64), atol=2e-6)


def test_a_model_that_runs_under_autocast_is_averaged_in_float32():
    means, calls = RunningMeans([PROMPT]), [make_call(seed) for seed in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        for call in calls:
            means.update(call)
    (mean,) = means.maps(0, IMAGE).means.values()
    np.testing.assert_allclose(mean, np.mean([rows(call) for call in calls], axis=0), atol=1e-6)


def test_no_graph_is_kept():
    means = RunningMeans([PROMPT])
    means.update(make_call(query=torch.randn(2, 30, 4, requires_grad=True)))
    assert next(iter(means.maps(0, IMAGE).means.values())).sum() == pytest.approx(30)


def test_maps_that_were_written_out_do_not_change_afterwards():
    means = RunningMeans([PROMPT])
    means.update(make_call(0))
    maps = means.maps(0, IMAGE)
    means.update(make_call(1))
    np.testing.assert_allclose(next(iter(maps.means.values())), rows(make_call(0)), atol=1e-6)


def test_what_cannot_be_counted_is_refused():
    means = RunningMeans([PROMPT])
    with pytest.raises(ValueError, match="nothing|no attention was recorded"):
        means.maps(0, IMAGE)
    with pytest.raises(ValueError, match="sample 1, but 1 prompts"):
        means.update(make_call(sample=1))
    with pytest.raises(ValueError, match="9 text keys, but the prompt has 6 positions"):
        means.update(make_call(key=torch.randn(2, 9, 4)))
