import numpy as np
import pytest

from voxplain.metrics import Interval, Undefined, bootstrap, mean_of_groups, paired_gain, wilson


def test_the_interval_is_close_to_the_normal_one_for_normal_values():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert found.n == 400 and found.note == ""
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        found = bootstrap(rng.exponential(1.0, 40), resamples=500)
        hits += found.low <= 1.0 <= found.high
    assert 0.87 <= hits / 200 <= 0.99


def test_the_same_values_give_the_same_interval_and_more_confidence_a_wider_one():
    values = [0.1, 0.5, 0.2, 0.9, 0.4, 0.3]
    assert bootstrap(values) == bootstrap(values)
    wide, narrow = bootstrap(values, confidence=0.99), bootstrap(values, confidence=0.8)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_degenerate_samples_say_so():
    assert bootstrap([0.7]) == Interval(1, 0.7, None, None, "one value has no interval")
    same = bootstrap([0.7, 0.7, 0.7])
    assert (same.low, same.high) == (0.7, 0.7) and "no certainty" in same.note
    with pytest.raises(Undefined, match="no values"):
        bootstrap([])
    with pytest.raises(ValueError, match="NaN"):
        bootstrap([0.1, float("nan")])


def test_two_values_and_hits_and_misses_have_finite_intervals():
    for values in ([0.0, 1.0], [1.0] * 30 + [0.0], [0.0] * 5 + [1.0]):
        found = bootstrap(values)
        assert found.low is not None and 0 <= found.low <= found.mean <= found.high <= 1


def test_a_paired_gain_sees_through_the_spread_between_cases():
    rng = np.random.default_rng(2)
    theirs = rng.uniform(0.2, 1.0, 60)
    ours = theirs + rng.normal(0.03, 0.02, 60)
    gain = paired_gain(ours, theirs)
    assert gain.above(0.0) and gain.mean == pytest.approx((ours - theirs).mean())
    assert not paired_gain(theirs, ours).above(0.0)
    assert not paired_gain([0.9], [0.1]).above(0.0)
    with pytest.raises(ValueError, match="same cases"):
        paired_gain(list(ours), list(theirs[:-1]))


def test_a_mean_of_groups_weighs_each_group_once():
    rng = np.random.default_rng(3)
    groups = [list(rng.normal(0, 0.1, 90)), list(rng.normal(1, 0.1, 10))]
    found = mean_of_groups(groups)
    assert found.n == 100
    assert found.mean == pytest.approx(np.mean([np.mean(g) for g in groups]))
    assert 0.4 < found.low < found.mean < found.high < 0.6
    assert mean_of_groups([[1.0], [0.0]]).low is None
    assert "1 of 2 groups" in mean_of_groups([[1.0], [0.0, 0.5]]).note
    with pytest.raises(Undefined, match="no values"):
        mean_of_groups([])


def test_a_mean_of_groups_without_a_spread_says_that_this_is_no_certainty():
    same = mean_of_groups([[0.1, 0.1, 0.1], [0.7, 0.7]])
    assert same.low == pytest.approx(0.4) and same.low == pytest.approx(same.high) and "no certainty" in same.note
    whole = mean_of_groups([[0.1, 0.1, 0.1], [0.7, 0.7]], clusters=[["a", "b", "c"], ["a", "b"]])
    assert whole.note != "" and "no certainty" not in whole.note, "c alone has no second group: its draws differ"
    both = mean_of_groups([[0.1, 0.1], [0.7, 0.7]], clusters=[["a", "b"], ["a", "b"]])
    assert both.note == "2 clusters drawn whole; the draws agree: the width 0 is no certainty"
    assert "certainty" not in mean_of_groups([[0.1, 0.2, 0.3], [0.7, 0.7]]).note


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, -0.5, float("nan")])
def test_a_confidence_lies_between_zero_and_one(confidence):
    for interval in (
        lambda: bootstrap([0.1, 0.2], confidence=confidence),
        lambda: paired_gain([0.1, 0.2], [0.3, 0.5], confidence=confidence),
        lambda: mean_of_groups([[0.1, 0.2]], confidence=confidence),
        lambda: wilson(1, 2, confidence=confidence),
    ):
        with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got .*; 95 % is 0.95"):
            interval()


def test_wilson_equals_its_formula_and_keeps_a_width_at_the_ends():
    z, k, n = 1.959964, 45, 50
    p = k / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = wilson(k, n)
    assert (found.mean, found.n) == (0.9, 50)
    assert (found.low, found.high) == (pytest.approx(middle - half, abs=1e-6), pytest.approx(middle + half, abs=1e-6))
    assert wilson(20, 20).high == 1.0 and 0.8 < wilson(20, 20).low < 0.9
    assert wilson(0, 20).low == 0.0 and wilson(0, 20).high > 0.1
    with pytest.raises(Undefined, match="no values"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)


def test_values_of_one_patient_count_as_one_piece_of_news():
    rng = np.random.default_rng(4)
    patients = [patient for patient in range(20) for _ in range(10)]
    values = rng.normal(size=20)[patients] + rng.normal(0, 0.05, 200)
    each, whole = bootstrap(values), bootstrap(values, clusters=patients)
    assert whole.n == 200 and whole.mean == each.mean and whole.note == "20 clusters drawn whole"
    assert 2 < (whole.high - whole.low) / (each.high - each.low) < 4, "about the root of ten"


def test_clusters_of_one_change_the_interval_by_chance_only_and_names_do_not_matter():
    values = list(np.random.default_rng(5).normal(size=50))
    alone = bootstrap(values, clusters=[f"patient {index}" for index in range(50)])
    plain = bootstrap(values)
    assert (alone.low, alone.high) == (pytest.approx(plain.low, abs=0.02), pytest.approx(plain.high, abs=0.02))
    assert paired_gain(values, [0.0] * 50, clusters=list(range(50))) == alone


def test_clusters_weigh_by_their_size():
    values, patients = [1.0, 1.0, 1.0, 0.0, 0.5], ["a", "a", "a", "b", "c"]
    found = bootstrap(values, clusters=patients)
    assert found.mean == pytest.approx(0.7) and 0 <= found.low <= 0.7 <= found.high <= 1


def test_degenerate_clusters_say_so():
    assert bootstrap([0.1, 0.9], clusters=["a", "a"]).note == "one cluster has no interval"
    same = bootstrap([0.5, 0.5], clusters=["a", "b"])
    assert same.low == same.high == 0.5 and "no certainty" in same.note
    level = bootstrap([0.2, 0.8, 0.8, 0.2], clusters=["a", "a", "b", "b"])
    assert level.low == pytest.approx(0.5) and level.high == pytest.approx(0.5)
    with pytest.raises(ValueError, match="2 values but 1 names"):
        bootstrap([0.1, 0.9], clusters=["a"])


def test_a_mean_of_groups_draws_a_patient_with_all_findings():
    rng = np.random.default_rng(6)
    effect = rng.normal(size=30)
    groups = [list(effect + rng.normal(0, 0.05, 30)), list(effect[:15] + 1)]
    patients = [list(range(30)), list(range(15))]
    whole, each = mean_of_groups(groups, clusters=patients), mean_of_groups(groups)
    assert whole.n == 45 and whole.mean == each.mean and whole.note == "30 clusters drawn whole"
    assert whole.low < whole.mean < whole.high
    assert whole.high - whole.low > each.high - each.low, "both findings move together"
    assert mean_of_groups([[1.0], [0.0]], clusters=[["a"], ["a"]]).low is None
    lone = mean_of_groups([[1.0, 1.0], [0.0]], clusters=[["a", "b"], ["c"]])
    assert lone.mean == 0.5 and 0 <= lone.low <= lone.high <= 1
    with pytest.raises(ValueError, match="one name for each value"):
        mean_of_groups([[1.0, 2.0]], clusters=[["a"]])
