"""The tracing benchmark: its clocks and counters are right, its query store computes what is traced, it goes on."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

BENCH = Path(__file__).parents[1] / "bench"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCH)
    import tracing

    monkeypatch.setattr(tracing, "RUNS", tmp_path / "runs")
    return tracing


@pytest.fixture
def costs(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import tracing_costs

    return tracing_costs


@pytest.fixture
def subject(bench):
    import tracing_models

    return tracing_models.drawn(tracing_models.stable_diffusion(**tracing_models.SMALL, sharp=True), 64)


@pytest.fixture
def work(costs, monkeypatch):
    """Spends that many seconds of a clock that nothing else moves."""
    spent = [0.0]
    monkeypatch.setattr(costs.time, "process_time", lambda: spent[0])

    def work(seconds):
        spent[0] += seconds

    return work


# costs ---------------------------------------------------------------------------------------------------------------


def test_what_is_inside_another_part_counts_once(costs, work):
    clock = costs.Clock()
    clock.around(lambda: (work(1), clock.around(work)(2)))()
    work(4)
    clock.around(work)(8)
    assert clock.seconds == 1 + 2 + 8


def test_hooks_are_timed_that_were_registered_inside_and_modules_with_all_their_hooks(costs, work):
    module, hooks, whole = nn.Linear(2, 2), costs.Clock(), costs.Clock()
    module.register_forward_hook(lambda *_: work(1))
    with costs.registering(hooks):
        handle = module.register_forward_hook(lambda *_: work(2))
        module.register_forward_pre_hook(lambda *_: work(4))
    work(8)
    with costs.inside([module], whole):
        module(torch.zeros(1, 2))
    assert (hooks.seconds, whole.seconds) == (2 + 4, 1 + 2 + 4)
    handle.remove()
    assert (len(module._forward_hooks), len(module._forward_pre_hooks)) == (1, 1)
    module(torch.zeros(1, 2))
    assert (hooks.seconds, whole.seconds) == (2 + 4 + 4, 1 + 2 + 4)


def test_operations_and_bytes_are_counted_and_views_are_not(costs):
    weight, given = torch.zeros(4, 8), torch.zeros(3, 8)
    with costs.Counted() as count:
        made = given @ weight.T
    assert (count.flops, count.nbytes) == (2 * 3 * 8 * 4, 4 * (24 + 32 + 12))
    with costs.Counted() as count:
        assert made.view(12).reshape(4, 3).T.shape == (3, 4)
    assert (count.flops, count.nbytes) == (0, 0)
    query, key = torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 7, 8)
    with costs.Counted() as count, torch.no_grad():
        scaled_dot_product_attention(query, key, key)
    assert count.flops == 2 * 2 * (2 * 5 * 7 * 8)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_the_peak_is_that_of_memory_that_is_gone_again(costs):
    def job():
        return np.ones(2_000_000).sum() + torch.ones(4_000_000, dtype=torch.float64).sum()

    made, peak = costs.with_peak(job)
    assert made == 6_000_000
    assert 30e6 < peak < 80e6
    assert costs.with_peak(lambda: None)[1] < 4e6


# ways ----------------------------------------------------------------------------------------------------------------


def test_the_query_store_computes_what_is_traced_and_grows_with_the_steps(subject):
    from tracing_ways import Plain, QueryStore, Traced

    made, kept = {}, {}
    for way in (Plain(subject), Traced(subject), QueryStore(subject)):
        with way.listening():
            latents = subject.generate(2)
        made[type(way)], kept[type(way)] = (latents, way.maps()), way.kept
    assert torch.equal(made[Plain][0], made[Traced][0]) and torch.equal(made[Plain][0], made[QueryStore][0])
    np.testing.assert_allclose(made[QueryStore][1], made[Traced][1], atol=1e-6)
    assert made[Traced][1].shape[0] == subject.rows == 18
    assert way.cells() == 8 * 8 + 4 * 4 + 2 * 2 + 1
    queries = kept[QueryStore] - sum(key.nbytes for key in way.keys.values())
    with way.listening():
        subject.generate(1)
    assert 2 * (way.kept - sum(key.nbytes for key in way.keys.values())) == queries > 0


# rounds and results --------------------------------------------------------------------------------------------------


def test_missing_rounds_are_measured_and_others_are_not(bench, monkeypatch):
    import tracing_ways

    ways = ("plain", "voxplain mean", "voxplain daam", "query store", "absent")
    absent = type("Absent", (tracing_ways.Plain,), {"package": "no-such-package"})
    monkeypatch.setitem(tracing_ways.WAYS, "absent", absent)
    monkeypatch.setattr(bench, "PLANS", {"sd15-64": bench.Plan("tiny", 1, 1, ways)})
    threads = torch.get_num_threads()
    try:
        bench.measure(["sd15-64"], small=True)
        before = bench.rows("sd15-64", True)
        bench.measure(["sd15-64"], small=True)
        assert bench.rows("sd15-64", True) == before and [row["round"] for row in before] == [0, 1]
        monkeypatch.setattr(absent, "package", None)  # it has come: its rounds are measured again, once
        bench.measure(["sd15-64"], small=True)
        after = bench.rows("sd15-64", True)
        bench.measure(["sd15-64"], small=True)
    finally:
        torch.set_num_threads(threads)
    assert bench.rows("sd15-64", True) == after and [row["round"] for row in after] == [0, 1]
    assert all("missing" in row["ways"]["absent"] for row in before)
    assert all("error" not in row["ways"]["absent"] for row in after)
    found = bench.digest(before, "tiny", ways, 1)
    assert "no-such-package is not installed" in found["ways"]["absent"]["error"]
    mean = found["ways"]["voxplain mean"]
    assert mean["kept_bytes"] <= 18 * found["cells"] * 4 + 64 * 1024
    assert mean["hooks_and_maps_percent"] > 0
    # the scores of the rows that are heard, and what they mix: 19 columns, of which heads of 8 and 16 have fewer
    floor = found["plain"]["floor_percent"]
    assert 2 * 19 / 16 * floor < mean["flops_added_percent"] < 2 * 19 / 8 * floor
    assert found["ways"]["query store"]["flops_added_percent"] == pytest.approx(mean["flops_added_percent"])


def test_a_parity_that_had_no_package_is_tried_again(bench, monkeypatch, tmp_path):
    import tracing_models

    monkeypatch.setattr(bench, "PARITY", {"tiny": (8, "DDIMScheduler", 64, 1, "daam")})
    monkeypatch.setattr(bench, "PEERS", tmp_path / "nowhere")
    bench.parity(small=True)
    assert "is missing; make peers" in bench.rows("parity", True)[0]["error"]
    monkeypatch.setattr(bench, "PEERS", tmp_path)
    pipe = type("Pipe", (), {"save_pretrained": staticmethod(lambda folder: None)})
    monkeypatch.setattr(tracing_models, "stable_diffusion", lambda **shape: pipe)
    monkeypatch.setattr(bench, "compared", lambda folder, *run: {"error_same_kernel": 1e-7, "run": run})
    for _ in range(2):
        bench.parity(small=True)
    expected = {"case": "tiny", "error_same_kernel": 1e-7, "run": [64, 1, "daam"]}
    assert bench.rows("parity", True) == [expected]
    assert len(bench.path("parity", True).read_text().splitlines()) == 2


def planted(call, attention, maps):
    return {"call": call, "attention": attention, "hooks": 0.02, "maps": maps, "kept": 1000}


def test_each_way_is_compared_with_the_plain_run_of_its_round_and_the_median_counts(bench):
    way = "voxplain mean"
    count = {"flops": 100, "bytes": 200, "map_flops": 0, "map_bytes": 0, "peak": 0, "floor": 1, "cells": 10, "rows": 5}
    heard = {**count, "flops": 102, "bytes": 210}
    rounds = [{"round": 0, "versions": {}, "ways": {"plain": count, "query store": count, way: heard}}]
    for number, (plain, own) in enumerate([(10.0, 11.0), (20.0, 20.0), (10.0, 30.0)], start=1):
        both = {"plain": planted(plain, 1.0, 0.0), way: planted(own, 1.04, 0.01)}
        rounds.append({"round": number, "versions": {}, "ways": both})
    found = bench.digest(rounds, "planted", ("plain", way), 1)
    made = found["ways"][way]
    assert made["call_ratio"] == pytest.approx(1.1)
    assert made["attention_ratio"] == pytest.approx(1.04)
    assert made["added_percent"] == pytest.approx(0.5)
    assert made["hooks_and_maps_percent"] == pytest.approx(0.3)
    assert (made["flops_added_percent"], made["bytes_added_percent"]) == pytest.approx((2, 5))
    assert found["plain"]["floor_percent"] == pytest.approx(1)
    assert all(aim["met"] for aim in bench.aims(way, made, found))
    missed = [
        aim["what"]
        for aim in bench.aims(way, {**made, "maps_ms": 21, "attention_ratio": 1.06}, found)
        if not aim["met"]
    ]
    assert missed == ["attention_ratio", "maps_ms"]
    parity = [{"case": "one", "recipe": "daam", "error_same_kernel": 1e-6}, {"case": "two", "error": "no package"}]
    lines = bench.table({"networks": {"planted": found}, "aims": {}, "parity": parity})
    assert [line["tracing"] for line in lines] == [
        "planted: the scores QK^T alone, which nobody can spare",
        f"planted: {way}",
        "parity of recipe daam with the package daam, one",
        "parity of recipe daam with the package daam, two",
    ]
    assert lines[2]["aims met"].startswith("yes: largest error 1.0e-06") and lines[3]["aims met"] == "no package"
    [far] = bench.table({"networks": {}, "aims": {}, "parity": [{**parity[0], "error_same_kernel": 1e-5}]})
    assert far["aims met"].startswith("**no**")


def test_a_summary_without_measurements_says_what_to_run(bench):
    with pytest.raises(ValueError, match="was not measured; run this command without parts"):
        bench.digest([], "thorax", ("plain",), 1)


# the figure of the recipes -------------------------------------------------------------------------------------------


def test_on_one_grid_the_recipes_are_one_map_and_on_several_they_are_not(bench, tmp_path):
    import recipes_figure

    from voxplain.geometry import regular
    from voxplain.maps import AttentionMaps, MapKey
    from voxplain.tokens import TokenizedPrompt

    prompt = TokenizedPrompt("left lung", (0, 1, 2, 3), ("-",) * 4, (None, (0, 4), (5, 9), None), start=0, end=3)
    draws = np.random.default_rng(0)
    means = {}
    for layer, grid in {"down.0": (16, 16, 16), "down.1": (8, 8, 8), "mid_block": (4, 4, 4)}.items():
        for head in range(2):
            scores = np.exp(3 * draws.normal(size=(5, *grid)))
            means[MapKey(grid, layer, head)] = (scores / scores.sum(0)).astype(np.float32)
    maps = AttentionMaps(prompt, regular((64, 64, 64), 1.0), means, dict.fromkeys(means, 3))
    found = recipes_figure.draw(maps, "lung", tmp_path / "img" / "recipes.png")
    assert (tmp_path / "img" / "recipes.png").stat().st_size > 10_000
    assert max(found["layers of the finest grid"].values()) < 1e-4
    assert min(value for name, value in found["all grids"].items() if name != "mean") > 0.05
