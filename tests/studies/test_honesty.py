from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from voxplain import recipes
from voxplain.adapters.toy import ToyAdapter
from voxplain.geometry import regular
from voxplain.maps import Attribution
from voxplain.studies import honesty

TOY = ToyAdapter()
GRID = (3, 4, 5)


def attribution(text, values, controls=None, seed=0):
    """An attribution whose words have the given maps, in order."""
    prompt = TOY.tokenize(text)
    maps = np.zeros((len(prompt.kept), *GRID), np.float32)
    for word, value in zip(prompt.words, values, strict=True):
        maps[list(word.rows)] = value
    where = regular(GRID, 5.0)
    nothing, recipe = np.zeros(GRID, np.float32), recipes.get("mean")
    return Attribution(maps, nothing, prompt, where, recipe, where, {"seed": seed}, controls=controls or {})


def drawn(count, seed=0):
    return np.random.default_rng(seed).random((count, *GRID)).astype(np.float32)


def test_correlations_equal_scipys_and_are_zero_for_a_flat_map():
    maps = np.concatenate([drawn(3).astype(float), np.full((1, *GRID), 0.1)])
    related = honesty.correlations(maps)
    for i in range(3):
        for j in range(3):
            assert related[i, j] == pytest.approx(pearsonr(maps[i].ravel(), maps[j].ravel()).statistic, abs=1e-9)
    assert not related[3].any()


@given(st.floats(1e-6, 1e6), st.floats(-10, 10), st.integers(0, 1000))
def test_distinctness_does_not_depend_on_scale_or_offset_of_a_map(scale, offset, seed):
    values = drawn(3, seed).astype(float)
    moved = values.copy()
    moved[1] = scale * (values[1] + offset)
    nulls = dict(zip(("of", "there"), drawn(2, seed + 1), strict=True))
    plain, _ = honesty.distinctness(attribution("left small nodule", values, nulls))
    again, _ = honesty.distinctness(attribution("left small nodule", moved, nulls))
    for a, b in zip(plain, again, strict=True):
        assert a["distinctness"] == pytest.approx(b["distinctness"], abs=1e-3)


def test_distinctness_is_one_minus_the_mean_correlation_with_the_null_words():
    left, of, there = (one.ravel() for one in drawn(3))
    nulls = {"of": of.reshape(GRID), "there": there.reshape(GRID)}
    (word,), (first, second) = honesty.distinctness(attribution("left", [left.reshape(GRID)], nulls))
    expected = 1 - (pearsonr(left, of).statistic + pearsonr(left, there).statistic) / 2
    assert word["distinctness"] == pytest.approx(expected, abs=1e-6)
    between = 1 - pearsonr(of, there).statistic
    assert first["distinctness"] == second["distinctness"] == pytest.approx(between, abs=1e-6)


def test_a_flat_map_is_not_distinct_and_a_flat_null_word_is_no_reference():
    flat = np.full(GRID, 0.25, np.float32)
    left, of = drawn(2)
    (shown, nothing), _ = honesty.distinctness(attribution("left nodule", [left, flat], {"of": of, "there": of}))
    assert shown["distinctness"] > 0 and nothing["distinctness"] == 0
    for nulls in ({"of": of, "there": flat}, {"of": flat, "there": flat}):
        judged = honesty.judge({"mean": attribution("left small nodule", [left, of, flat], nulls)})
        assert judged["left"]["recipes"]["mean"]["null_distinctness"] == 0
        assert judged["left"]["distinguishable"] is True
        assert judged["small"]["distinguishable"] is bool(nulls["of"] is flat)  # else it is a null word's copy
        assert judged["nodule"]["distinguishable"] is False


def test_the_nearest_word_is_the_content_word_with_the_most_similar_map():
    left, small = drawn(2)
    nodule = 0.9 * small + 0.1 * left
    found = honesty.nearest(attribution("left small and nodule", [left, small, small, nodule]))
    highest = pearsonr(small.ravel(), nodule.ravel()).statistic
    assert [one["word"] for one in found[1:]] == [
        "nodule",
        "small",
        "small",
    ]  # "and" is like "small", never the nearest
    assert found[1]["correlation"] == found[3]["correlation"] == pytest.approx(highest, abs=1e-6)


def test_a_repeated_word_a_flat_map_and_a_lonely_word_have_no_nearest():
    left, other = drawn(2)
    found = honesty.nearest(attribution("left and left the nodule", [left, left, left, left, other]))
    assert [found[0]["word"], found[2]["word"]] == ["nodule", "nodule"]  # not "left", said again
    nothing = {"word": None, "correlation": None}
    assert honesty.nearest(attribution("left nodule", [np.full(GRID, 0.25), other]))[0] == nothing
    assert honesty.nearest(attribution("nodule", [other])) == [nothing]


def test_words_that_share_a_map_are_distinguishable_as_long_as_null_words_have_another():
    phrase, picture, detail = drawn(3)
    nulls = {"of": picture, "there": 0.7 * picture + 0.3 * detail}
    alike = [phrase, phrase, 0.99 * phrase + 0.01 * detail]
    judged = honesty.judge({"mean": attribution("left pleural effusion", alike, nulls)})
    assert all(judged[word]["distinguishable"] for word in ("left", "pleural", "effusion"))
    assert judged["effusion"]["nearest"]["correlation"] > 0.99


@given(st.integers(0, 1000))
def test_a_copy_of_a_null_words_map_is_never_distinguishable(seed):
    of, there, left = drawn(3, seed)
    judged = honesty.judge({"mean": attribution("left nodule", [left, 3 * there], {"of": of, "there": there})})
    assert judged["nodule"]["distinguishable"] is False


def test_a_word_is_distinguishable_only_if_its_map_is_more_distinct_than_every_null_words():
    left, small, picture = drawn(3)
    empty = 0.97 * picture + 0.03 * left
    nulls = {"of": picture, "there": 0.9 * picture + 0.1 * small}
    judged = honesty.judge({"mean": attribution("left small opacity", [left, small, empty], nulls)})
    assert judged["left"]["distinguishable"] is True
    assert judged["small"]["distinguishable"] is True
    assert judged["opacity"]["distinguishable"] is False
    facts = judged["opacity"]["recipes"]["mean"]
    assert facts["distinctness"] <= facts["null_distinctness"]


def test_without_null_words_no_verdict_is_given():
    judged = honesty.judge({"mean": attribution("left nodule", drawn(2))})
    assert judged["left"]["distinguishable"] is None
    assert judged["left"]["recipes"]["mean"]["null_distinctness"] is None
    assert judged["left"]["distinctness"] is None


def test_a_word_must_be_distinguishable_in_every_recipe():
    left, small, picture = drawn(3)
    nulls = {"of": picture, "there": 0.99 * picture + 0.01 * small}
    good = attribution("left small", [left, small], nulls)
    bad = attribution("left small", [left, picture], nulls)
    judged = honesty.judge({"mean": good, "effect": bad})
    assert judged["left"]["distinguishable"] is True
    assert judged["small"]["distinguishable"] is False
    assert judged["small"]["recipes"]["mean"]["distinguishable"] is True


@pytest.mark.parametrize(("against", "left"), [(0.1, True), (-0.1, True), (0.3, False), (-0.3, False)])
def test_where_evidence_was_measured_a_word_needs_more_of_it_than_null_words_have_for_or_against_them(against, left):
    maps, (of, there) = drawn(2), drawn(2, seed=1)
    made = attribution("left nodule", maps, {"of": of, "there": there})
    told = {"evidence": {"left": 0.2, "nodule": -0.5}, "null_evidence": {"of": 0.01, "there": against}}
    judged = honesty.judge({"support": replace(made, provenance=told)})
    assert judged["left"]["distinguishable"] is left
    assert judged["nodule"]["distinguishable"] is False  # whatever its map


def test_masses_of_a_recipe_stand_with_the_word():
    judged = honesty.judge({"mean": attribution("left nodule", [np.full(GRID, 3.0), np.full(GRID, 1.0)])})
    assert judged["left"]["mass"] == pytest.approx(0.75)
    assert judged["nodule"]["recipes"]["mean"]["mass"] == pytest.approx(0.25)


def test_agreement_is_spearmans_and_the_shared_top_tenth():
    a, b = drawn(2)
    found = honesty.agreement(a, b)
    assert found["rank_correlation"] == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-6)
    top = [set(np.argsort(values.ravel())[-6:]) for values in (a, b)]  # 6 of 60 cells
    assert found["top10_overlap"] == pytest.approx(len(top[0] & top[1]) / 6)


@given(st.integers(0, 1000))
def test_agreement_is_perfect_for_any_rising_function_and_reversed_for_a_falling_one(seed):
    (a,) = drawn(1, seed)
    assert honesty.agreement(a, np.exp(5 * a)) == {"rank_correlation": pytest.approx(1), "top10_overlap": 1.0}
    assert honesty.agreement(a, -a) == {"rank_correlation": pytest.approx(-1), "top10_overlap": 0.0}


def test_maps_of_different_grids_agree_on_the_finer_one():
    coarse = np.arange(8.0).reshape(2, 4)
    fine = np.kron(coarse, np.ones((2, 2)))
    assert honesty.agreement(coarse, fine)["rank_correlation"] > 0.9


def test_a_flat_map_agrees_with_nothing():
    nothing = {"rank_correlation": None, "top10_overlap": None}
    assert honesty.agreement(drawn(1)[0], np.full(GRID, 0.3, np.float32)) == nothing


def test_null_words_are_absent_from_the_prompt_and_come_after_it():
    prompt = TOY.tokenize("nodule of the left")
    assert honesty.null_words(prompt) == ("and", "there")
    longer = honesty.with_null_words(prompt, TOY.tokenize)
    assert longer.text == "nodule of the left and there"
    assert honesty.null_words(TOY.tokenize(" ".join(honesty.NULL_WORDS))) == honesty.NULL_WORDS[-2:]


def test_in_a_full_context_null_words_take_the_place_of_the_last_words():
    words = "left small mild severe large right opacity"
    prompt = TOY.tokenize(f"{words} {words} effusion nodule")
    assert prompt.truncated  # 16 words for 14 places
    longer = honesty.with_null_words(prompt, TOY.tokenize)
    assert longer.truncated == ""
    assert [word.text for word in longer.words] == [*f"{words} {words}".split()[:12], "and", "of"]


def test_mean_and_spread_over_seeds_are_those_of_the_maps():
    runs = [attribution("left nodule", drawn(2, seed), seed=seed) for seed in range(3)]
    mean, spread = honesty.spread(runs)
    stack = np.stack([run.maps for run in runs])
    np.testing.assert_allclose(mean.maps, stack.mean(0), atol=1e-6)
    np.testing.assert_allclose(spread.maps, stack.std(0), atol=1e-6)
    assert mean.provenance["seed"] == [0, 1, 2]


def test_the_spread_of_a_word_of_several_pieces_is_that_of_its_map():
    a, b = drawn(2)
    runs = [attribution("pneumothorax", [np.stack(pieces)]) for pieces in ((a, b), (b, a))]
    mean, spread = honesty.spread(runs)
    np.testing.assert_allclose(mean.word("pneumothorax").values, (a + b) / 2, atol=1e-6)
    np.testing.assert_allclose(spread.word("pneumothorax").values, 0, atol=1e-6)
    np.testing.assert_allclose(spread.maps[1], np.abs(a - b) / 2, atol=1e-6)


def test_spans_that_every_run_measured_have_a_spread():
    rows = (1, 2)
    runs = [replace(attribution("left nodule", drawn(2, seed)), phrases={rows: drawn(1, seed)[0]}) for seed in range(3)]
    mean, spread = honesty.spread(runs)
    for made, over in ((mean, np.mean), (spread, np.std)):
        np.testing.assert_allclose(made.phrases[rows], over([run.phrases[rows] for run in runs], 0), atol=1e-6)
    assert not honesty.spread([replace(runs[0], phrases={}), *runs[1:]])[0].phrases


def test_stability_is_the_mean_correlation_of_every_two_seeds():
    left, a, b, c = drawn(4)
    runs = [attribution("left nodule", [left, values]) for values in (a, b, c)]
    found = honesty.stability(runs)
    pairs = [pearsonr(x.ravel(), y.ravel()).statistic for x, y in ((a, b), (a, c), (b, c))]
    assert found == {"left": pytest.approx(1.0), "nodule": pytest.approx(np.mean(pairs), abs=1e-6)}


def test_different_prompts_or_a_single_seed_have_no_spread():
    one = attribution("left nodule", drawn(2))
    with pytest.raises(ValueError, match="two or more"):
        honesty.spread([one])
    with pytest.raises(ValueError, match="one prompt"):
        honesty.stability([one, attribution("left opacity", drawn(2))])
