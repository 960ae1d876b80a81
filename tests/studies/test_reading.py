import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from voxplain.datasets.phantom.anatomy import LOBES
from voxplain.datasets.phantom.cases import draw, radiograph
from voxplain.datasets.phantom.findings import KINDS, Plan
from voxplain.studies import judging, loop, reading

TINY = {"steps": 3, "batch": 1, "workers": 0, "dev_cases": 2}
SHAPE = (16, 16, 16)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return reading.train_reader(tmp_path_factory.mktemp("reader"), **TINY)


def test_a_training_killed_at_any_step_ends_with_the_same_weights(tmp_path, monkeypatch, trained):
    def kill(stage, done, steps, loss, left):
        if (stage, done) == ("reader", 3):
            raise Killed

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)  # a checkpoint after each step
    with pytest.raises(Killed):
        reading.train_reader(tmp_path, progress=kill, **TINY)
    assert torch.load(tmp_path / "reader" / "reader.pt", weights_only=True)["step"] == 2
    parts = load_file(reading.train_reader(tmp_path, **TINY) / "reader.safetensors")
    whole = load_file(trained / "reader.safetensors")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_processes_draw_the_same_batches_in_the_same_order():
    with reading.closing(reading._ahead(reading.partial(pow, 3), range(2, 9), 1)) as ahead:
        assert list(ahead) == [3**step for step in range(2, 9)]


def test_what_is_written_is_small_says_how_it_was_made_and_can_be_read(trained):
    described = json.loads((trained / "reader.json").read_text())
    assert (trained / "reader.safetensors").stat().st_size < 2_000_000
    assert described["training"]["command"] == "voxplain train reader --steps 3 --seed 0"
    assert (described["training"]["seed"], described["training"]["steps"]) == (0, 3)
    reader = reading.load_reader(trained)
    assert reader.weights_hash == described["sha256"]
    assert set(reader.smallest_ml) == set(KINDS)
    found = reader.read(draw(5, "dev").image[0])
    assert {f.kind for f in found} <= set(KINDS)


def test_a_reader_that_is_absent_or_changed_is_refused(tmp_path, trained):
    with pytest.raises(FileNotFoundError, match="voxplain train reader"):
        reading.load_reader(tmp_path)
    for name in ("reader.json", "reader.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    assert reading.load_reader(tmp_path).weights_hash
    (tmp_path / "reader.safetensors").write_bytes(b"x" + (trained / "reader.safetensors").read_bytes()[1:])
    with pytest.raises(ValueError, match="not the file that was saved"):
        reading.load_reader(tmp_path)


def test_wrong_input_is_refused(tmp_path, trained):
    with pytest.raises(ValueError, match="finite HU"):
        reading.load_reader(trained).read(np.full((64, 64, 64), np.nan, np.float32))
    with pytest.raises(ValueError, match="at least 1"):
        reading.train_reader(tmp_path, steps=0)
    (tmp_path / "weights").mkdir()
    with pytest.raises(FileExistsError, match="not a reader's folder"):
        reading.train_reader(tmp_path, weights=tmp_path / "weights", **{**TINY, "steps": 1, "dev_cases": 0})


@pytest.mark.parametrize("made", [draw, radiograph])
def test_targets_count_the_covered_voxels_of_each_cell_in_volumes_and_radiographs(made):
    case = made(
        3, "dev", [Plan("effusion", "right", None, "large"), Plan("nodule", "left", "left upper lobe", "large")]
    )
    targets = dict(zip(judging.OUTPUTS, reading.covered(case), strict=True))
    cell = 2**case.geometry.ndim
    for finding in case.findings:
        assert targets[finding.kind].sum(dtype=int) == finding.mask.sum() > 0
    assert targets["left lung"].sum(dtype=int) == case.organs["left lung"].sum()
    assert targets["right lung"].max() == cell
    assert not targets["fibrosis"].any()
    whole = np.kron(targets["effusion"] == cell, np.ones((2,) * case.geometry.ndim, bool))
    assert case.findings[0].mask[whole].all()


def test_the_objective_prefers_what_is_true():
    shares = torch.zeros(2, 3, 4, 4)
    shares[0, 0, :2] = 1
    right, wrong = (8 * (2 * answer - 1) for answer in (shares, shares.flip(2)))
    assert reading.objective(right, shares) < 0.05 < reading.objective(torch.zeros_like(shares), shares)
    assert reading.objective(torch.zeros_like(shares), shares) < reading.objective(wrong, shares)
    assert torch.isfinite(reading.objective(right, torch.zeros_like(shares)))


def seen(**boxes):
    """Probabilities of a chest cut in two lungs (right first) with two or three lobes, and boxes of findings in it."""
    maps = {name: np.zeros(SHAPE, np.float32) for name in judging.OUTPUTS}
    maps["right lung"][:, :, :8] = maps["left lung"][:, :, 8:] = 1
    for lobe, first, last in (("lower", 0, 6), ("middle", 6, 10), ("upper", 10, 16)):
        maps[f"right {lobe} lobe"][first:last, :, :8] = 1
    maps["left lower lobe"][:8, :, 8:] = maps["left upper lobe"][8:, :, 8:] = 1
    for kind, places in boxes.items():
        for place in places:
            maps[kind][place] = 0.9
    return maps


RIGHT_UPPER, LEFT_LOWER = np.s_[11:14, 2:6, 1:5], np.s_[1:5, 2:6, 10:14]


def places(kind, maps, smallest=1.0):
    return [(found.side, found.lobe, found.count) for found in judging.decide(kind, maps, smallest)]


def test_side_and_lobe_come_from_the_lungs_and_lobes_that_were_seen():
    maps = seen(consolidation=[RIGHT_UPPER], effusion=[LEFT_LOWER], cardiomegaly=[RIGHT_UPPER])
    assert places("consolidation", maps) == [("right", "right upper lobe", 1)]
    assert places("effusion", maps) == [("left", None, 1)]
    assert places("cardiomegaly", maps) == [(None, None, 1)]
    assert places("nodule", maps) == []
    mirrored = {name: values[:, :, ::-1] for name, values in maps.items()}
    swapped = {**{name: mirrored[name] for name in KINDS}, **{name: maps[name] for name in maps if name not in KINDS}}
    assert places("effusion", swapped) == [("right", None, 1)]


def test_both_sides_are_one_bilateral_finding_and_two_nodules_of_a_lobe_are_counted():
    maps = seen(
        effusion=[RIGHT_UPPER, LEFT_LOWER],
        ground_glass=[RIGHT_UPPER, LEFT_LOWER],
        consolidation=[RIGHT_UPPER, LEFT_LOWER],
        nodule=[RIGHT_UPPER, np.s_[11:14, 10:13, 1:4]],
        emphysema=[RIGHT_UPPER],
    )
    assert places("effusion", maps) == places("ground_glass", maps) == [("bilateral", None, 1)]
    assert {lobe for _, lobe, _ in places("consolidation", maps)} == {"right upper lobe", "left lower lobe"}
    assert places("nodule", maps) == [("right", "right upper lobe", 2)]
    assert places("emphysema", maps) == [("bilateral", None, 1)]


def test_what_is_smaller_than_the_minimum_is_no_finding():
    maps = seen(consolidation=[RIGHT_UPPER])
    (found,) = judging.decide("consolidation", maps, 1.0)
    assert found.volume_ml == found.mask.sum() / 8 == 6.0
    assert places("consolidation", maps, 6.0) and not places("consolidation", maps, 6.1)


def test_the_minimum_separates_those_who_have_it():
    volumes, there = np.array([0.0, 1.0, 2.0, 5.0, 6.0]), np.array([False, False, False, True, True])
    assert judging._cut(volumes, there) == (3.5, 1.0, 1.0)
    assert judging._cut(volumes, np.zeros(5, bool))[1:] == (None, None)
    cut, recall, specificity = judging._cut(volumes, np.array([False, True, False, True, True]))
    assert (recall, specificity) == (2 / 3, 1.0) or (recall, specificity) == (1.0, 0.5)
    assert ((volumes >= cut) == (volumes > 2)).all() or cut <= 1


def test_every_lobe_is_an_output():
    assert set(LOBES) < set(judging.OUTPUTS)
    assert len(judging.OUTPUTS) == 17
