"""A run folder is what was put in, or an error that names the file; never half of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic import explained

from voxplain.io import RunError, add_to_run, folders, load_run, run, save_run
from voxplain.maps import Explanation

FILES = {"run.json", "sample.nii.gz", "attribution.npz", "overlay.png", "report.html"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_run(explained(), tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a saved run that a test may spoil."""
    place = tmp_path / "run"
    place.mkdir()
    for path in saved.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


def assert_equal(first: Explanation, second: Explanation) -> None:
    assert first.prompt == second.prompt
    assert first.sample.prompt == second.sample.prompt and first.sample.unit == second.sample.unit
    assert first.sample.provenance == second.sample.provenance
    np.testing.assert_array_equal(first.sample.image, second.sample.image)
    np.testing.assert_array_equal(first.sample.geometry.affine, second.sample.geometry.affine)
    assert first.sample.geometry.spacing_known == second.sample.geometry.spacing_known
    assert first.provenance == second.provenance and first.honesty == second.honesty
    assert list(first.attributions) == list(second.attributions)
    for name, one in first.attributions.items():
        other = second.attributions[name]
        assert one.recipe == other.recipe and one.prompt == other.prompt and one.provenance == other.provenance
        assert one.geometry.same_as(other.geometry) and one.image_geometry.same_as(other.image_geometry)
        np.testing.assert_array_equal(one.maps, other.maps)
        np.testing.assert_array_equal(one.padding, other.padding)
        for part in ("phrases", "controls"):
            mine, theirs = getattr(one, part), getattr(other, part)
            assert list(mine) == list(theirs)
            for key in mine:
                np.testing.assert_array_equal(mine[key], theirs[key])
    assert (first.states is None) == (second.states is None)
    if first.states is not None and second.states is not None:
        assert first.states.steps == second.states.steps and first.states.timesteps == second.states.timesteps
        np.testing.assert_array_equal(first.states.latents, second.states.latents)


@pytest.mark.parametrize("shape", [(8, 12, 16), (12, 16)])
def test_save_then_load_is_the_identity(tmp_path, shape):
    explanation = explained(shape)
    assert_equal(load_run(save_run(explanation, tmp_path / "run")), explanation)


def test_a_run_without_states_or_with_several_channels_and_unknown_spacing_comes_back(tmp_path):
    explanation = explained()
    geometry = replace(explanation.sample.geometry, spacing_known=False)
    image = np.repeat(explanation.sample.image, 3, 0) + np.arange(3, dtype=np.float32)[:, None, None, None]
    explanation = replace(explanation, states=None, sample=replace(explanation.sample, image=image, geometry=geometry))
    assert_equal(load_run(save_run(explanation, tmp_path / "run")), explanation)


def test_a_run_folder_holds_the_five_files_and_says_what_was_done(saved):
    assert {path.name for path in saved.iterdir()} == FILES
    document = json.loads((saved / "run.json").read_text())
    assert document["schema"] == 1
    assert document["provenance"]["model"]["sha256"] == "0" * 64
    assert document["prompt"]["spans"][1] == [0, 5]
    assert document["packages"]["numpy"] == np.__version__


def test_an_existing_folder_is_refused(folder):
    before = (folder / "run.json").read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite"):
        save_run(explained(), folder)
    assert (folder / "run.json").read_bytes() == before


def test_overwrite_replaces_a_run_and_nothing_else(folder, tmp_path):
    save_run(explained((12, 16)), folder, overwrite=True)
    assert load_run(folder).sample.geometry.ndim == 2
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match=r"no run\.json"):
        save_run(explained(), precious, overwrite=True)
    assert (precious / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interruption_leaves_nothing_new_behind(folder, tmp_path, monkeypatch, overwrite):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "report", interrupted)
    target = folder if overwrite else tmp_path / "new"
    with pytest.raises(KeyboardInterrupt):
        save_run(explained((12, 16)), target, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert load_run(folder).sample.geometry.ndim == 3  # the old run is whole


def test_an_interruption_between_the_two_renames_brings_the_old_run_back(folder, tmp_path, monkeypatch):
    path_type = type(folder)
    rename = path_type.rename

    def interrupted(self, target):
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(path_type, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_run(explained((12, 16)), folder, overwrite=True)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert load_run(folder).sample.geometry.ndim == 3


def test_an_interruption_while_the_old_run_is_removed_leaves_the_new_one_alone(folder, tmp_path, monkeypatch):
    rmtree, calls = folders.shutil.rmtree, []

    def interrupted(path, **options):
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return rmtree(path, **options)

    monkeypatch.setattr(folders.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_run(explained((12, 16)), folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert load_run(folder).sample.geometry.ndim == 2


@pytest.mark.parametrize("name", ["sample.nii.gz", "attribution.npz"])
def test_a_damaged_array_file_is_named(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{name} is damaged"):
        load_run(folder)


@pytest.mark.parametrize("name", ["sample.nii.gz", "attribution.npz"])
def test_a_missing_array_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(RunError, match=f"{name} is missing"):
        load_run(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, r"run\.json has schema version 2.*upgrade"),
        ({"schema": "x"}, r"run\.json has schema version 'x'"),
        ({"prompt": {}}, r"run\.json is damaged"),
        ({"files": {}}, r"run\.json is damaged.*sample"),
        ({"files": {"sample.nii.gz": "", "attribution.npz": "", "../../etc/passwd": ""}}, "sample.nii.gz is damaged"),
        ({"attributions": None}, r"run\.json is damaged"),
    ],
)
def test_a_spoiled_or_newer_record_is_named(folder, change, message):
    document = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(RunError, match=message):
        load_run(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1'])
def test_a_record_that_is_no_record_is_named(folder, content):
    (folder / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        load_run(folder)


def test_a_folder_that_is_no_run_says_so(tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        load_run(tmp_path)


def test_pickled_arrays_are_refused(folder):
    np.savez(folder / "attribution.npz", maps=np.array([{}], object))
    document = json.loads((folder / "run.json").read_text())
    document["files"]["attribution.npz"] = run._hash((folder / "attribution.npz").read_bytes())
    (folder / "run.json").write_text(json.dumps(document))
    with pytest.raises(RunError, match="allow_pickle"):
        load_run(folder)


def test_a_phrase_measured_later_is_kept_and_shown(folder):
    old = load_run(folder)
    rows = old.prompt.find("in the left")
    values = np.random.default_rng(1).uniform(size=old.attributions["effect"].geometry.shape).astype(np.float32)
    new = add_to_run(folder, "effect", {rows: values}, {"in the left": {"mass": np.float32(0.5)}})
    assert_equal(load_run(folder), new)
    np.testing.assert_array_equal(new.word("in the left", recipe="effect").values, values)
    assert new.word("left lung", recipe="effect").values.shape == values.shape  # the earlier phrase is still there
    assert new.honesty["in the left"] == {"mass": 0.5}
    assert "in the left</h3>" in (folder / "report.html").read_text()
    add_to_run(folder, "effect", {rows: values + 1})  # measured anew: the last one counts
    np.testing.assert_array_equal(load_run(folder).word("in the left", recipe="effect").values, values + 1)


def test_an_interruption_while_a_phrase_is_added_leaves_the_old_run(folder, monkeypatch):
    old = load_run(folder)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add_to_run(folder, "effect", {old.prompt.find("the left"): old.attributions["effect"].padding})
    assert_equal(load_run(folder), old)


def test_a_phrase_for_an_unknown_recipe_is_refused(folder):
    with pytest.raises(ValueError, match="no recipe 'x'; it has mean, effect"):
        add_to_run(folder, "x", {})


def test_numbers_that_are_not_finite_become_none_and_odd_objects_are_refused_by_name(tmp_path):
    honesty = {"Large": {"agreement": {"rank_correlation": float("nan"), "top10_overlap": np.float64(0.5)}}}
    place = save_run(replace(explained((12, 16)), honesty=honesty), tmp_path / "run")
    assert load_run(place).honesty == {"Large": {"agreement": {"rank_correlation": None, "top10_overlap": 0.5}}}
    with pytest.raises(TypeError, match=r"provenance\.model\.object: a object cannot be kept"):
        save_run(replace(explained((12, 16)), provenance={"model": {"object": object()}}), tmp_path / "other")
    assert not (tmp_path / "other").exists()
