import json

import numpy as np
import pytest
from scipy.linalg import sqrtm

from voxplain.metrics import (
    Features,
    Undefined,
    covered,
    fid,
    frechet_distance,
    kernel_distance,
    kid,
    load_features,
    precision_recall,
    save_features,
)


def drawn(seed: int, n: int = 200, dim: int = 5, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (n, dim))


def seen(values: np.ndarray, network: str = "phantom-cnn, pooled", preprocessing: str = "32 px, -1 to 1") -> Features:
    return Features(values, network, preprocessing)


def test_frechet_distance_is_the_squared_shift_of_equal_clouds():
    cloud = drawn(0)
    assert frechet_distance(cloud, cloud) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(cloud, cloud + np.array([3.0, 4, 0, 0, 0])) == pytest.approx(25)
    scaled = (cloud - cloud.mean(0)) * 2 + cloud.mean(0)  # covariances S and 4 S: tr(S + 4 S - 2 * 2 S) = tr S
    assert frechet_distance(cloud, scaled) == pytest.approx(np.trace(np.cov(cloud, rowvar=False)))


def test_frechet_distance_equals_the_published_formula():
    first, second = drawn(1), drawn(2, 300) @ np.random.default_rng(3).normal(size=(5, 5))
    s1, s2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert frechet_distance(first, second) == pytest.approx(expected)
    assert frechet_distance(second, first) == pytest.approx(expected)


def test_singular_covariances_and_one_dimension_have_a_value():
    few = drawn(4, n=4, dim=8)
    assert frechet_distance(few, few + 1) == pytest.approx(8, abs=1e-4)
    assert frechet_distance(np.ones((5, 3)), np.zeros((5, 3))) == pytest.approx(3)
    a, b = np.array([[0.0], [2.0]]), np.array([[1.0], [1.0]])
    assert frechet_distance(a, b) == pytest.approx(2), "means agree, variances 2 and 0"


def test_kernel_distance_is_the_mean_over_distinct_rows():
    a, b = drawn(5, 7), drawn(6, 9, shift=1.0)
    kernel = [[(x @ y / 5 + 1) ** 3 for y in np.vstack([a, b])] for x in np.vstack([a, b])]
    k = np.array(kernel)
    aa, bb = k[:7, :7], k[7:, 7:]
    expected = (aa.sum() - np.trace(aa)) / 42 + (bb.sum() - np.trace(bb)) / 72 - 2 * k[:7, 7:].mean()
    assert kernel_distance(a, b) == pytest.approx(expected)


def test_kid_is_unbiased_where_fid_is_not():
    kernel = [kernel_distance(drawn(seed, 30), drawn(seed + 100, 30)) for seed in range(60)]
    frechet = [frechet_distance(drawn(seed, 30), drawn(seed + 100, 30)) for seed in range(60)]
    assert abs(np.mean(kernel)) < 3 * np.std(kernel) / np.sqrt(60) and min(kernel) < 0
    assert np.mean(frechet) > 0.3


def test_coverage_of_a_set_counts_those_within_reach_of_a_kth_neighbor():
    line = np.array([[0.0], [1.0], [2.0], [10.0]])  # to the first neighbor: 1, 1, 1, 8
    found = np.array([[-1.0], [-1.1], [3.0], [17.9], [18.1], [2.0]])
    assert covered(line, found, neighbors=1).tolist() == [True, False, True, True, False, True]
    assert covered(line, found, neighbors=2).all(), "to the second neighbor: 2, 1, 2, 9"
    assert covered(np.ones((4, 2)), np.ones((2, 2)), neighbors=3).all(), "equal rows are within a reach of 0"
    assert not covered(np.ones((4, 2)), np.full((2, 2), 1.001), neighbors=3).any()
    with pytest.raises(Undefined, match="no 4 neighbors"):
        covered(line, found, neighbors=4)
    with pytest.raises(ValueError, match="1 or more"):
        covered(line, found, neighbors=0)


def test_numbers_far_from_zero_are_compared_in_double_precision():
    real, made = ((drawn(seed, 60, 4) + 1000).astype(np.float32) for seed in (30, 31))
    gaps, own = (np.linalg.norm(rows[:, None].astype(float) - real, axis=2) for rows in (made, real))
    expected = (gaps <= np.sort(own, axis=1)[:, 3]).any(1)
    assert 0 < expected.sum() < 60
    np.testing.assert_array_equal(covered(real, made), expected)
    for distance in (frechet_distance, kernel_distance):
        assert distance(real, made) == distance(real.astype(float), made.astype(float))


def test_features_that_are_no_numbers_are_an_error_on_either_side():
    good, bad = drawn(32), np.where(drawn(33) > 2, np.nan, drawn(33))
    for distance in (frechet_distance, kernel_distance, covered):
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(ValueError, match="the features hold NaN or infinity; find the image"):
                distance(*pair)


def test_rows_are_compared_in_blocks_without_a_seam():
    many, other = drawn(7, 1100, 2), drawn(8, 1050, 2, 0.5)
    gaps = np.linalg.norm(other[:, None] - many, axis=2)
    own = np.sort(np.linalg.norm(many[:, None] - many, axis=2), axis=1)[:, 3]
    np.testing.assert_array_equal(covered(many, other), (gaps <= own).any(1))
    parts = [(a @ b.T / 2 + 1) ** 3 for a, b in ((many, many), (other, other), (many, other))]
    own = [(part.sum() - np.trace(part)) / (len(part) * (len(part) - 1)) for part in parts[:2]]
    assert kernel_distance(many, other) == pytest.approx(sum(own) - 2 * parts[2].mean())


def test_a_collapsed_generator_is_precise_and_recalls_little():
    real = drawn(9, 200, 2)
    precision, recall = precision_recall(seen(real), seen(drawn(10, 200, 2) * 0.1))
    assert precision.metric == "precision" and precision.value > 0.95
    assert recall.metric == "recall" and recall.value < 0.2
    assert precision.floor > 0.7 and recall.floor > 0.7 and recall.note == "3 neighbors"


def test_a_figure_says_all_that_it_depends_on():
    found = fid(seen(drawn(11)), seen(drawn(12, 150, shift=1.0)))
    assert (found.n_real, found.n_generated, found.dimension, found.floor_n) == (200, 150, 5, 100)
    assert found.value > 4 > 1 > found.floor > 0
    for part in (
        f"FID {found.value:.4g}",
        f"floor {found.floor:.4g} at 100",
        "200 real",
        "150 generated",
        "5 dimensions",
    ):
        assert part in str(found)
    assert "phantom-cnn, pooled" in str(found) and "32 px, -1 to 1" in str(found)
    assert found == fid(seen(drawn(11)), seen(drawn(12, 150, shift=1.0)))
    assert abs(kid(seen(drawn(11)), seen(drawn(13))).value) < 0.2


def test_fewer_images_than_dimensions_are_refused_unless_asked_for():
    few, many = seen(drawn(14, 20, 30)), seen(drawn(15, 40, 30))
    for pair in ((few, many), (many, few)):
        with pytest.raises(ValueError, match="20 images in 30 dimensions") as error:
            fid(*pair)
        assert not isinstance(error.value, Undefined)
    assert "20 images are fewer than 30 dimensions" in fid(few, many, allow_few=True).note
    assert "floor's 20 images" in fid(many, many).note
    assert kid(few, many).note == ""


def test_features_of_different_networks_are_not_compared():
    real = seen(drawn(16))
    for other, field in (
        (seen(drawn(17), network="inception"), "network"),
        (seen(drawn(17), preprocessing="resized"), "preprocessing"),
        (seen(drawn(17, dim=4)), "dimensions"),
    ):
        for compare in (fid, kid, precision_recall):
            with pytest.raises(ValueError, match=f"{field}.*; extract both with one network and one preprocessing"):
                compare(real, other)


def test_two_groups_of_one_have_no_distance_and_three_have_no_floor():
    one = seen(drawn(18, 1, 1))
    for compare in (fid, kid, precision_recall):
        with pytest.raises(Undefined):
            compare(one, one)
    three = kid(seen(drawn(19, 3, 1)), seen(drawn(20, 3, 1)))
    assert three.floor is None and "no real-real floor" in str(three)


def test_features_are_checked_and_frozen():
    mine = drawn(21)
    kept = seen(mine)
    mine[0, 0] = 99
    assert kept.values[0, 0] != 99 and not kept.values.flags.writeable
    for values, network, words in (
        (np.full((3, 2), np.nan), "net", "NaN"),
        (drawn(22), " ", "need a network"),
        (np.zeros((0, 3)), "net", "shape"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            Features(values, network, "none")


def test_a_feature_file_needs_the_name_of_its_network_beside_it(tmp_path):
    path = save_features(seen(drawn(23)), tmp_path / "real.npy")
    found = load_features(path)
    assert (found.network, found.preprocessing) == ("phantom-cnn, pooled", "32 px, -1 to 1")
    np.testing.assert_allclose(found.values, drawn(23), rtol=1e-6)
    path.with_suffix(".json").write_text(json.dumps({"network": "x"}))
    with pytest.raises(ValueError, match="network and preprocessing"):
        load_features(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match="real.json is missing"):
        load_features(path)
    np.save(path, np.arange(4).reshape(2, 2))
    path.with_suffix(".json").write_text(json.dumps({"network": "x", "preprocessing": "y"}))
    with pytest.raises(ValueError, match="int64"):
        load_features(path)


def test_a_name_with_a_dot_is_a_name_of_its_own(tmp_path):
    for name, shift in (("step0.1", 1.0), ("step0.2", 2.0), ("step0.1.npy.old", 3.0)):
        path = save_features(seen(drawn(24) + shift, network=name), tmp_path / name)
        assert path == tmp_path / f"{name}.npy"
    first = load_features(tmp_path / "step0.1")
    assert first.network == "step0.1" and load_features(tmp_path / "step0.1.npy").network == "step0.1"
    np.testing.assert_allclose(first.values, drawn(24) + 1, rtol=1e-6)
    assert {path.name for path in tmp_path.glob("step0.1*")} >= {"step0.1.npy", "step0.1.json"}


def test_a_feature_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="real.npy is missing: write there the array"):
        load_features(tmp_path / "real")
    path = save_features(seen(drawn(25)), tmp_path / "real")
    beside = path.with_suffix(".json")
    for content, words in (("{network:", "real.json is no JSON .*: write there"), ("[1]", "real.json holds a list")):
        beside.write_text(content)
        with pytest.raises(ValueError, match=words):
            load_features(path)
    beside.write_text(json.dumps({"network": "x", "preprocessing": "y"}))
    for content in (b"", b"no array", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="real.npy is no array that can be read"):
            load_features(path)
