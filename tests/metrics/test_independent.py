"""Our metrics against other people's code, on random and degenerate cases."""

import numpy as np
import pytest
import torch
from monai import metrics as theirs
from monai.data import box_utils
from monai.metrics.average_precision import compute_average_precision
from monai.metrics.fid import get_fid_score
from monai.metrics.regression import compute_ms_ssim, compute_ssim_and_cs
from monai.metrics.rocauc import compute_roc_auc

from voxplain import metrics


def drawn(seed: int, levels: int = 0, shape: tuple[int, ...] = (9, 8, 7)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=shape).astype(float) if levels else rng.random(shape)
    truth = rng.random(shape) < 0.2
    truth.flat[0], truth.flat[-1] = True, False
    return scores, truth


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None, None]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("levels", [0, 1, 4])
def test_ranking_metrics_agree_with_monai(seed, levels):
    scores, truth = drawn(seed, levels)
    flat = torch.from_numpy(scores.ravel()), torch.from_numpy(truth.ravel().astype(int))
    assert metrics.auc_roc(scores, truth) == pytest.approx(float(compute_roc_auc(*flat)), abs=1e-6)
    assert metrics.average_precision(scores, truth) == pytest.approx(float(compute_average_precision(*flat)), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_agree_with_monai(seed):
    scores, truth = drawn(seed)
    for found in (scores > 0.7, scores > 2, truth):
        pair = tensor(found).float(), tensor(truth).float()
        assert metrics.iou(found, truth) == pytest.approx(float(theirs.compute_iou(*pair)), abs=1e-6)
        assert metrics.dice(found, truth) == pytest.approx(float(theirs.compute_dice(*pair)), abs=1e-6)


@pytest.mark.parametrize("levels", [0, 1, 3])
@pytest.mark.parametrize("hits", [1, 250, 503])
def test_truths_of_one_cell_of_half_and_of_all_but_one_agree_with_monai(levels, hits):
    scores, truth = drawn(7, levels)
    truth.flat[:] = np.arange(truth.size) < hits
    flat = torch.from_numpy(scores.ravel()), torch.from_numpy(truth.ravel().astype(int))
    assert metrics.auc_roc(scores, truth) == pytest.approx(float(compute_roc_auc(*flat)), abs=1e-6)
    assert metrics.average_precision(scores, truth) == pytest.approx(float(compute_average_precision(*flat)), abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
def test_overlaps_agree_with_the_jaccard_score_of_scikit_learn(share):
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    scores, truth = drawn(8)
    number = np.arange(truth.size).reshape(truth.shape)
    for inside in (truth, number < 1, number > 0):
        found, labels = scores < share, inside.ravel()
        jaccard = {"zero_division": 0.0}
        assert metrics.iou(found, inside) == pytest.approx(sklearn.jaccard_score(labels, found.ravel(), **jaccard))
        both = sklearn.jaccard_score(labels, found.ravel(), average="macro", labels=[False, True], **jaccard)
        assert metrics.foreground_background_iou(found, inside) == pytest.approx(both)
        levels = np.round(scores * share, 1)  # many cells at a threshold, and none above the highest
        each = [sklearn.jaccard_score(labels, levels.ravel() > t, **jaccard) for t in (0.1, 0.2, 0.3, 0.4, 0.5)]
        assert metrics.mean_iou(levels, inside, scale="raw") == pytest.approx(np.mean(each))


FLAT = {
    "equal": (lambda noise: noise, lambda noise: noise),
    "flat and equal": (lambda noise: 0 * noise + 0.5, lambda noise: 0 * noise + 0.5),
    "flat and apart": (lambda noise: 0 * noise + 0.5, lambda noise: 0 * noise),
    "flat and noise": (lambda noise: 0 * noise + 0.5, lambda noise: noise),
    "black and white": (lambda noise: np.round(noise), lambda noise: np.round(noise[::-1])),
    "opposite": (lambda noise: noise, lambda noise: 1 - noise),
}


@pytest.mark.parametrize("case", FLAT)
def test_image_metrics_of_flat_equal_and_opposite_images_agree_with_monai(case):
    noise = np.random.default_rng(9).random((48, 45))
    a, b = (make(noise) for make in FLAT[case])
    pair = tensor(a).float(), tensor(b).float()
    expected = float(theirs.PSNRMetric(1.0)(*pair))
    if np.isinf(expected):
        with pytest.raises(metrics.Undefined, match="equal"):
            metrics.psnr(a, b, data_range=1.0)
    else:
        assert metrics.psnr(a, b, data_range=1.0) == pytest.approx(expected, abs=1e-3)
    whole, _ = compute_ssim_and_cs(*pair, spatial_dims=2, kernel_size=[11] * 2, kernel_sigma=[1.5] * 2)
    assert metrics.ssim(a, b, data_range=1.0) == pytest.approx(float(whole.mean()), abs=1e-4)
    weights = np.array([0.0448, 0.2856, 0.3001]) / 0.6305
    multi = compute_ms_ssim(*pair, spatial_dims=2, kernel_size=7, weights=weights.tolist())
    assert metrics.ms_ssim(a, b, data_range=1.0, scales=3, window=7) == pytest.approx(float(multi), abs=1e-4)


@pytest.mark.parametrize("shape", [(48, 45), (29, 28, 31)])
def test_image_metrics_agree_with_monai(shape):
    rng = np.random.default_rng(0)
    a = rng.random(shape)
    b = np.clip(a + 0.3 * rng.normal(size=shape), 0, 1)
    pair, axes = (tensor(a).float(), tensor(b).float()), len(shape)
    assert metrics.psnr(a, b, data_range=1.0) == pytest.approx(float(theirs.PSNRMetric(1.0)(*pair)), abs=1e-3)
    whole, _ = compute_ssim_and_cs(*pair, spatial_dims=axes, kernel_size=[11] * axes, kernel_sigma=[1.5] * axes)
    assert metrics.ssim(a, b, data_range=1.0) == pytest.approx(float(whole.mean()), abs=1e-4)
    weights = np.array([0.0448, 0.2856, 0.3001]) / 0.6305
    multi = compute_ms_ssim(*pair, spatial_dims=axes, kernel_size=7, weights=weights.tolist())
    assert metrics.ms_ssim(a, b, data_range=1.0, scales=3, window=7) == pytest.approx(float(multi), abs=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MONAI calls scipy.linalg.sqrtm the old way
def test_distances_between_features_agree_with_monai():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(80, 4)), rng.normal(0.5, 2, (90, 4))
    assert metrics.frechet_distance(a, b) == pytest.approx(
        float(get_fid_score(torch.from_numpy(a), torch.from_numpy(b))), rel=1e-6
    )

    b = b[:80]  # MONAI wants sets of one size
    expected = theirs.MMDMetric(cubed)(torch.from_numpy(a), torch.from_numpy(b))
    assert metrics.kernel_distance(a, b) == pytest.approx(float(expected), rel=1e-6)


def cubed(rows: torch.Tensor) -> torch.Tensor:
    """The features whose dot product is (x . y / 4 + 1)^3, of rows of 4."""
    ends = torch.cat([rows / 2, torch.ones(len(rows), 1)], 1)
    return torch.einsum("na,nb,nc->nabc", ends, ends, ends).flatten(1)


CLOUDS = {
    "equal": lambda a, b: (a, a),
    "equal in another order": lambda a, b: (a, a[::-1]),
    "fewer rows than dimensions": lambda a, b: (a[:3], b[:3]),
    "duplicates": lambda a, b: (np.repeat(a[:5], 4, 0), np.repeat(b[:10], 2, 0)),
    "one point each": lambda a, b: (0 * a + 1, 0 * b + 3),
    "a constant axis": lambda a, b: (a * [1, 1, 0, 1], b * [1, 1, 0, 1]),
    "axes that say the same": lambda a, b: (a[:, [0, 0, 1, 1]], b[:, [0, 0, 1, 1]]),
}


@pytest.mark.filterwarnings("ignore")  # MONAI calls scipy.linalg.sqrtm, which warns of what is singular
@pytest.mark.parametrize("case", CLOUDS)
def test_distances_between_equal_and_singular_sets_agree_with_monai(case):
    rng = np.random.default_rng(10)
    a, b = CLOUDS[case](rng.normal(size=(20, 4)), rng.normal(0.5, 2, (20, 4)))
    first, second = torch.from_numpy(a.copy()), torch.from_numpy(b.copy())
    assert metrics.frechet_distance(a, b) == pytest.approx(float(get_fid_score(first, second)), rel=1e-5, abs=1e-5)
    assert metrics.kernel_distance(a, b) == pytest.approx(float(theirs.MMDMetric(cubed)(first, second)), abs=1e-9)


@pytest.mark.parametrize("shape", [(9, 8), (6, 9, 7)])
def test_boxes_agree_with_monai(shape):
    rng = np.random.default_rng(4)
    for _ in range(5):
        masks, corners = [], []
        for _ in range(2):
            ends = np.sort([rng.choice(size + 1, 2, replace=False) for size in shape], axis=1)  # [axes, 2]
            masks.append(np.zeros(shape, bool))
            masks[-1][tuple(slice(*pair) for pair in ends)] = True
            corners.append(torch.from_numpy(np.concatenate(ends.T)[None].astype(np.float32)))
        assert metrics.box_iou(*masks) == pytest.approx(float(box_utils.box_iou(*corners)), abs=1e-6)
        expected = float(box_utils.boxes_center_distance(*corners)[0])
        assert metrics.center_distance(*masks) == pytest.approx(expected, abs=1e-5)


PLACES = {
    "equal": (((1, 4), (2, 5)), ((1, 4), (2, 5))),
    "one cell": (((3, 4), (3, 4)), ((3, 4), (3, 4))),
    "one cell of it": (((0, 6), (0, 7)), ((5, 6), (6, 7))),
    "side by side": (((0, 3), (0, 3)), ((3, 6), (0, 3))),
    "corner to corner": (((0, 3), (0, 3)), ((3, 6), (3, 7))),
    "far apart": (((0, 1), (0, 1)), ((5, 6), (6, 7))),
    "a line and the whole": (((2, 3), (0, 7)), ((0, 6), (0, 7))),
}


@pytest.mark.parametrize("case", PLACES)
def test_boxes_that_touch_nest_or_are_one_cell_agree_with_monai(case):
    masks = []
    for spans in PLACES[case]:
        masks.append(np.zeros((6, 7), bool))
        for end in (0, 1):  # two corners alone: the box is the same
            masks[-1][tuple(span[end] - end for span in spans)] = True
    corners = [torch.tensor([list(zip(*spans, strict=True))], dtype=torch.float32).flatten(1) for spans in PLACES[case]]
    assert metrics.box_iou(*masks) == pytest.approx(float(box_utils.box_iou(*corners)), abs=1e-6)
    whole = [metrics.boxed(mask) for mask in masks]
    expected = float(box_utils.boxes_center_distance(*corners)[0])
    assert metrics.center_distance(*whole) == pytest.approx(expected, abs=1e-5)


def test_reach_of_duplicates_and_ties_agrees_with_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors", reason="scikit-learn is not installed")
    rng = np.random.default_rng(11)
    real = np.concatenate([np.zeros((4, 2)), rng.integers(0, 6, (20, 2)) + 3.0])  # whole numbers: distances tie
    made = np.concatenate([np.zeros((2, 2)), rng.integers(-3, 12, (60, 2)).astype(float)])
    reach = neighbors.NearestNeighbors(n_neighbors=4).fit(real).kneighbors(real)[0][:, -1]
    gaps = neighbors.NearestNeighbors(n_neighbors=len(real)).fit(real).kneighbors(made)
    expected = [bool((away <= reach[rows]).any()) for away, rows in zip(*gaps, strict=True)]
    assert reach.min() == 0 and 0 < sum(expected) < len(made)
    assert metrics.covered(real, made, neighbors=3).tolist() == expected


def test_reach_agrees_with_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors", reason="scikit-learn is not installed")
    rng = np.random.default_rng(5)
    real, made = rng.normal(size=(60, 3)), rng.normal(0.8, 1, (50, 3))
    near = neighbors.NearestNeighbors(n_neighbors=4).fit(real)
    reach = near.kneighbors(real)[0][:, -1]  # the first is the row itself
    among, where = near.radius_neighbors(made, radius=reach.max())
    expected = [bool((gaps <= reach[rows]).any()) for gaps, rows in zip(among, where, strict=True)]
    assert 0 < sum(expected) < 50 and metrics.covered(real, made, neighbors=3).tolist() == expected


@pytest.mark.parametrize("levels", [0, 1, 4])
def test_ranking_metrics_agree_with_scikit_learn(levels):
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    for seed in range(3):
        scores, truth = drawn(seed, levels)
        flat = truth.ravel(), scores.ravel()
        assert metrics.auc_roc(scores, truth) == pytest.approx(sklearn.roc_auc_score(*flat), abs=1e-12)
        assert metrics.average_precision(scores, truth) == pytest.approx(sklearn.average_precision_score(*flat))


def test_the_mixture_threshold_agrees_with_scikit_learn():
    mixture = pytest.importorskip("sklearn.mixture", reason="scikit-learn is not installed")
    rng = np.random.default_rng(2)
    for part in (0.1, 0.4):
        scores = np.where(rng.random((64, 64)) < part, rng.normal(0.7, 0.1, (64, 64)), rng.normal(0.2, 0.1, (64, 64)))
        span = np.ptp(scores)
        fitted = mixture.GaussianMixture(2, random_state=0).fit(((scores - scores.min()) / span).reshape(-1, 1))
        expected = scores.min() + span * fitted.means_.mean()
        assert metrics.mixture_threshold(scores) == pytest.approx(expected, abs=0.01)


def test_corrections_and_equivalence_agree_with_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is not installed")
    weightstats = pytest.importorskip("statsmodels.stats.weightstats", reason="statsmodels is not installed")
    rng = np.random.default_rng(3)
    p = rng.random(12) ** 3
    np.testing.assert_allclose(metrics.holm(p), multitest.multipletests(p, method="holm")[1])
    np.testing.assert_allclose(metrics.benjamini_hochberg(p), multitest.multipletests(p, method="fdr_bh")[1])
    values = rng.normal(0.02, 0.1, 12)
    expected = weightstats.ttost_paired(values, np.zeros(12), -0.1, 0.1)[0]
    assert metrics.equivalence(values, -0.1, 0.1).p == pytest.approx(expected)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 7), (7, 7), (1, 1)])
def test_the_interval_of_a_proportion_agrees_with_statsmodels(hits, n):
    proportion = pytest.importorskip("statsmodels.stats.proportion", reason="statsmodels is not installed")
    found = metrics.wilson(hits, n)
    np.testing.assert_allclose(
        (found.low, found.high), proportion.proportion_confint(hits, n, method="wilson"), atol=1e-9
    )
