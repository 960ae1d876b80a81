"""Every verb over one run folder, on the toy model; what goes wrong ends in one line and an exit code."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from voxplain import loading, recipes
from voxplain.adapters.toy import ToyAdapter
from voxplain.cli import app
from voxplain.cli.reading import word_lines
from voxplain.geometry import regular
from voxplain.io.nifti import read_volume, write_volume
from voxplain.io.run import load_run
from voxplain.masks import joint, largest_component, relative_threshold, top_fraction
from voxplain.studies import effect, explaining, reading, training
from voxplain.view.words import word_rows

PROMPT = "large left effusion and small nodule"


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The toy stands in for whatever model is asked for."""
    adapter = ToyAdapter((4, 8, 12))
    monkeypatch.setattr(loading, "load", lambda name, **options: adapter)
    monkeypatch.delenv("VOXPLAIN_DEBUG", raising=False)
    return adapter


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A run folder, made once."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", lambda name, **options: ToyAdapter((4, 8, 12)))
        result = call("explain", PROMPT, "--out", folder, "--steps", 4, "--model", "toy", "--seed", 3)
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A run folder that a test may change."""
    return shutil.copytree(made, tmp_path / "run")


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result, *parts, code=2):
    """The command ended with this code and one line that holds the parts."""
    assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
    assert isinstance(result.exception, SystemExit)
    line = result.stderr.strip()
    assert line.startswith("error: ") and "\n" not in line, line
    for part in parts:
        assert part in line, line


def test_explain_writes_a_run_that_holds_what_the_function_gives(made, toy):
    kept = load_run(made)
    result = explaining.explain(toy, PROMPT, steps=4, seed=3)
    assert {path.name for path in made.iterdir()} >= {
        "run.json",
        "sample.nii.gz",
        "attribution.npz",
        "overlay.png",
        "report.html",
    }
    for recipe in ("mean", "effect"):
        assert np.array_equal(kept.attributions[recipe].maps, result.attributions[recipe].maps)
    assert kept.provenance["source"] == "toy"
    assert kept.honesty == json.loads(json.dumps(result.honesty))
    assert list(made.parent.iterdir()) == [made]


def test_explain_says_which_words_are_not_to_be_trusted(tmp_path):
    result = call("explain", PROMPT, "--out", tmp_path / "run", "--steps", 2)
    for recipe in ("mean", "effect"):
        assert f"not distinguishable by '{recipe}' from a word that means nothing here: and\n" in result.stderr
    assert result.stdout == ""


def test_words_that_fell_off_or_are_unknown_are_named_in_the_terminal_and_on_the_page(tmp_path, toy, monkeypatch):
    monkeypatch.setattr(toy, "unknown_words", lambda text: ["mystery"])
    result = call("explain", " ".join(["left effusion"] * 8), "--out", tmp_path / "long", "--steps", 2)
    assert "warning: the prompt is longer than the model's context; these words fell off: left eff" in result.stderr
    assert "these words fell off: left effusion" in (tmp_path / "long" / "report.html").read_text()
    volume = toy.generate("left nodule", steps=2)
    write_volume(tmp_path / "case.nii.gz", volume.image, volume.geometry)
    options = ("--out", tmp_path / "run", "--recipe", "mean")
    result = call("ground", tmp_path / "case.nii.gz", "left mystery", *options)
    assert "warning: the model never saw these words in training: mystery" in result.stderr
    assert "never saw these words in training: mystery" in (tmp_path / "run" / "report.html").read_text()


def test_an_image_that_is_no_volume_is_refused(tmp_path):
    (tmp_path / "case.txt").write_text("no volume")
    refused(call("ground", tmp_path / "case.txt", "left", "--out", tmp_path / "run"), "case.txt", "take NIfTI")


def test_a_map_over_seeds_of_an_indistinct_word_gets_no_mask_either(tmp_path):
    options = ("--steps", 2, "--seeds", 2, "--recipe", "mean")
    call("explain", "left effusion and", "--out", tmp_path / "run", *options)
    out = tmp_path / "a.nii.gz"
    refused(call("mask", tmp_path / "run", "and", "--recipe", "mean over seeds", "--out", out), "not distinguishable")


def test_recipes_and_phrases_and_seeds_are_passed_on(tmp_path):
    out = tmp_path / "run"
    options = ("--recipe", "effect", "--phrase", "left effusion", "--seeds", 2, "--guidance", 1.5)
    options += ("--removed", "before")
    result = call("explain", PROMPT, "--out", out, "--steps", 2, *options)
    assert result.exit_code == 0, result.stderr
    kept = load_run(out)
    assert list(kept.attributions) == ["effect", "effect over seeds", "effect spread over seeds"]
    assert kept.word("left effusion", recipe="effect").values.any()
    assert kept.provenance["guidance_scale"] == 1.5
    assert kept.attributions["effect"].provenance["removed"] == "before"
    assert kept.provenance["seeds"] == [0, 1]


def test_words_prints_a_row_for_each_word(made):
    result = call("words", made)
    assert result.exit_code == 0, result.stderr
    for word in ("word", "mass", "large", "effusion", "and"):
        assert word in result.stdout


def test_a_narrow_window_cuts_no_figure_of_the_table_off(made, monkeypatch):
    wide = call("words", made).stdout
    monkeypatch.setenv("COLUMNS", "30")
    assert call("words", made).stdout == wide
    assert "…" not in wide


def test_words_as_json_is_one_document_with_the_honesty_of_each_word(made):
    result = call("words", made, "--json")
    document = json.loads(result.stdout)
    assert [row["word"] for row in document["words"]] == PROMPT.split()
    known = load_run(made).honesty
    for row in document["words"]:
        for recipe in ("mean", "effect"):
            facts = known[row["word"]]["recipes"][recipe]
            assert row["recipes"][recipe]["distinctness"] == facts["distinctness"]
            assert row["recipes"][recipe]["null_distinctness"] == facts["null_distinctness"]
            assert row["recipes"][recipe]["nearest"] == facts["nearest"]
        assert row["distinguishable"] == (row["word"] != "and")
        assert row["rank_correlation"] == known[row["word"]]["agreement"]["rank_correlation"]
        assert row["top10_overlap"] == known[row["word"]]["agreement"]["top10_overlap"]
    assert sum(document["mass"].values()) == pytest.approx(1)


def test_words_that_training_never_showed_are_marked(made):
    known = load_run(made)
    rows = word_rows(replace(known, provenance={**known.provenance, "unknown_words": ["LARGE"]}))
    assert [row["word"] for row in rows if row["unknown"]] == ["large"]
    seen = {row["word"]: [line["seen"] for line in word_lines(row)] for row in rows}
    assert seen["large"] == ["never", ""] and seen["effusion"] == ["", ""]


def test_effect_measures_a_phrase_and_keeps_it_in_the_run(run, toy):
    result = call("effect", run, "left effusion")
    assert result.exit_code == 0, result.stderr
    assert "left effusion: changed by up to" in result.stderr
    kept = load_run(run)
    expected = effect.measure_phrase(toy, kept, "left effusion")
    assert np.array_equal(kept.word("left effusion", recipe="effect").values, expected.values)


def test_the_total_effect_is_written_in_hounsfield_units(run, toy):
    result = call("effect", run, "left effusion", "--total")
    assert result.exit_code == 0, result.stderr
    values, _ = read_volume(run / "total-left-effusion.nii.gz")
    expected = effect.total(toy, PROMPT, "left effusion", seed=3, steps=4)
    assert np.array_equal(values, expected.heatmap.values)
    other, _ = read_volume(run / "without-left-effusion.nii.gz")
    assert np.array_equal(other, expected.without.image[0])
    assert "HU" in result.stderr
    load_run(run)  # and the run is still whole


def test_effect_refuses_a_model_whose_weights_are_others(run, toy):
    toy.weights_hash = "abc"
    refused(call("effect", run, "left effusion"), "made with weights None", "these are abc", "--model")


def test_effect_needs_a_run_with_states_of_that_recipe(tmp_path):
    call("explain", PROMPT, "--out", tmp_path / "run", "--steps", 2, "--recipe", "mean")
    refused(call("effect", tmp_path / "run", "left effusion"), "without the recipe 'effect'")


def test_a_mask_is_the_top_fraction_of_the_words_map(made, tmp_path):
    kept = load_run(made)
    for words, recipe in ((["effusion"], "mean"), (["left", "small"], "effect")):
        out = tmp_path / f"{recipe}.nii.gz"
        result = call("mask", made, *words, "--top", 0.5, "--recipe", recipe, "--out", out)
        assert result.exit_code == 0, result.stderr
        values, geometry = read_volume(out)
        maps = [kept.word(word, recipe=recipe) for word in words]
        expected = top_fraction(maps[0] if len(maps) == 1 else joint(maps, 0.5), 0.5).resize(kept.sample.geometry)
        assert np.array_equal(values.astype(bool), expected.values)
        assert geometry.same_as(kept.sample.geometry)


def test_a_mask_may_keep_a_share_of_the_maximum_and_its_largest_piece_only(made, tmp_path):
    kept, out = load_run(made), tmp_path / "a.nii.gz"
    heatmap = kept.word("effusion")
    pieces = relative_threshold(heatmap, 0.01)
    for options, expected in ((("--relative", 0.01), pieces), (("--relative", 0.9), relative_threshold(heatmap, 0.9))):
        assert call("mask", made, "effusion", *options, "--out", out).exit_code == 0
        assert np.array_equal(read_volume(out)[0].astype(bool), expected.resize(kept.sample.geometry).values)
    both = [kept.word(word, recipe="effect") for word in ("left", "small")]
    whole = top_fraction(joint(both, 0.25), 0.25)
    largest = largest_component(whole)
    assert 0 < largest.values.sum() < whole.values.sum()
    assert call("mask", made, "left", "small", "--recipe", "effect", "--largest", "--out", out).exit_code == 0
    assert np.array_equal(read_volume(out)[0].astype(bool), largest.resize(kept.sample.geometry).values)
    refused(call("mask", made, "left", "--relative", 2, "--out", out), "tau 2.0: expected 0 to 1")


def test_a_word_that_is_not_distinguishable_gets_no_mask_unless_asked_twice(made, tmp_path):
    out = tmp_path / "and.nii.gz"
    refused(call("mask", made, "and", "--out", out), "not distinguishable", "and", "--anyway")
    assert not out.exists()
    assert call("mask", made, "and", "--anyway", "--out", out).exit_code == 0
    assert out.exists()


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")])
def test_an_overlay_is_a_picture_of_the_kind_that_its_name_says(made, tmp_path, name, magic):
    result = call("overlay", made, "left", "nodule", "--plane", "coronal", "--out", tmp_path / name)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_export_writes_one_map_a_word_and_recipe(made, tmp_path):
    result = call("export", made, "--nifti", tmp_path / "maps", "--word", "effusion")
    assert result.exit_code == 0, result.stderr
    kept = load_run(made)
    for recipe in ("mean", "effect"):
        (path,) = (tmp_path / "maps" / recipe).glob("*effusion.nii.gz")
        expected = kept.word("effusion", recipe=recipe).resize(kept.sample.geometry).values
        np.testing.assert_allclose(read_volume(path)[0], expected, atol=1e-6)
    assert json.loads((tmp_path / "maps" / "export.json").read_text())["prompt"] == PROMPT


def test_attention_is_exported_on_the_scale_that_was_asked_for(made, tmp_path):
    result = call("export", made, "--nifti", tmp_path / "maps", "--word", "effusion", "--scaling", "words")
    assert result.exit_code == 0, result.stderr
    kept = load_run(made)
    scaled = recipes.scale(kept.attributions["mean"], "words").word("effusion")
    for recipe, expected in (("mean", scaled), ("effect", kept.word("effusion", recipe="effect"))):
        (path,) = (tmp_path / "maps" / recipe).glob("*effusion.nii.gz")
        values = expected.resize(kept.sample.geometry).values
        np.testing.assert_allclose(read_volume(path)[0], values, atol=1e-6)
    assert call("overlay", made, "left", "--scaling", "log_ratio", "--out", tmp_path / "a.png").exit_code == 0
    result = call("overlay", made, "left", "--scaling", "softmax", "--out", tmp_path / "b.png")
    assert result.exit_code == 2
    assert "softmax" in result.stderr and "log_ratio" in result.stderr


def test_maps_are_laid_over_a_volume_from_elsewhere(made, tmp_path):
    kept = load_run(made)
    finer = kept.sample.geometry.at(tuple(2 * size for size in kept.sample.geometry.shape))
    volume = np.random.default_rng(0).normal(size=finer.shape).astype(np.float32)
    write_volume(tmp_path / "fine.nii.gz", volume, finer)
    on = ("--on", tmp_path / "fine.nii.gz")
    result = call("export", made, "--nifti", tmp_path / "maps", "--word", "effusion", *on)
    assert result.exit_code == 0 and "covers" not in result.stderr, result.stderr
    assert np.array_equal(read_volume(tmp_path / "maps" / "sample.nii.gz")[0], volume)
    (path,) = (tmp_path / "maps" / "mean").glob("*effusion.nii.gz")
    values, geometry = read_volume(path)
    assert geometry.same_as(finer)
    np.testing.assert_allclose(values, kept.word("effusion").resize(finer).values, atol=1e-6)
    assert call("mask", made, "effusion", "--out", tmp_path / "m.nii.gz", *on).exit_code == 0
    assert read_volume(tmp_path / "m.nii.gz")[1].same_as(finer)
    assert call("overlay", made, "left", "--out", tmp_path / "own.png").exit_code == 0
    assert call("overlay", made, "left", "--out", tmp_path / "on.png", *on).exit_code == 0
    assert (tmp_path / "own.png").read_bytes() != (tmp_path / "on.png").read_bytes()

    away = regular(finer.shape, 1.0, (900.0, 0.0, 0.0))
    write_volume(tmp_path / "away.nii.gz", volume, away)
    far = ("overlay", made, "left", "--out", tmp_path / "b.png", "--on", tmp_path / "away.nii.gz")
    refused(call(*far), "outside of the run's field of view", "'run'")
    assert call(*far, "--place", "run").exit_code == 0
    refused(call("overlay", made, "left", "--out", tmp_path / "c.png", "--place", "run"), "name it by --on")
    half = regular((1, *finer.shape[1:]), finer.spacing, finer.affine[:-1, -1].tolist())
    write_volume(tmp_path / "half.nii.gz", volume[:1], half)
    result = call("overlay", made, "left", "--out", tmp_path / "d.png", "--on", tmp_path / "half.nii.gz")
    assert result.exit_code == 0 and "of the run's field of view" in result.stderr


def test_report_writes_the_page_anew(run):
    (run / "report.html").unlink()
    assert call("report", run).exit_code == 0
    page = (run / "report.html").read_text()
    assert all(word in page for word in PROMPT.split())


def test_ground_makes_a_run_of_a_given_volume(tmp_path, toy):
    volume = toy.generate("left nodule", steps=2)
    write_volume(tmp_path / "case.nii.gz", volume.image, volume.geometry)
    out = tmp_path / "run"
    result = call("ground", tmp_path / "case.nii.gz", "left nodule", "--out", out, "--recipe", "mean")
    assert result.exit_code == 0, result.stderr
    kept = load_run(out)
    assert np.array_equal(kept.sample.image, volume.image)
    assert toy.box("nodule")[kept.word("nodule").peak]
    refused(call("effect", out, "left", "--total"), "not generated")


def test_train_hands_its_options_to_the_study(monkeypatch, tmp_path):
    seen = {}

    def train(name, out, *, progress, workers, weights, **settings):
        progress("denoiser", 1, 2, 0.5, 10.0)
        seen.update(name=name, out=out, workers=workers, weights=weights, **settings)
        return tmp_path / "weights"

    monkeypatch.setattr(training, "train", train)
    result = call("train", "thorax-2d", "--seed", 2, "--steps", 7, "--out", tmp_path, "--workers", 3)
    assert result.exit_code == 0, result.stderr
    assert seen == {"name": "thorax-2d", "out": tmp_path, "workers": 3, "weights": None, "seed": 2, "denoiser_steps": 7}
    assert str(tmp_path / "weights") in result.stderr
    assert call("train", "thorax", "--from", "thorax", "--keep-text").exit_code == 0
    assert (seen["start"], seen["text_steps"]) == ("thorax", 0)


def test_train_refuses_to_keep_what_nobody_named():
    assert "name a model" in call("train", "thorax", "--keep-text").stderr
    assert "leave --from out" in call("train", "reader", "--from", "thorax").stderr


def test_train_reader_calls_its_own_study(monkeypatch, tmp_path):
    seen = {}

    def train_reader(out, *, progress, **options):
        progress("reader", 1, 2, 0.5, 10.0)
        seen.update(out=out, **options)
        return tmp_path / "weights"

    monkeypatch.setattr(reading, "train_reader", train_reader)
    result = call("train", "reader", "--steps", 7, "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert seen == {"out": tmp_path, "workers": 1, "weights": None, "seed": 0, "steps": 7}


def test_doctor_names_packages_and_device():
    result = call("doctor")
    for part in ("python", "device", "CPU"):
        assert part in result.stdout
    if result.exit_code:  # from a source folder that is not installed there is nothing to read requirements from
        assert "voxplain itself" in result.stderr
    else:
        assert "torch" in result.stdout and "voxplain[" in result.stdout


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ((" ",), ("prompt is empty",)),
        ((PROMPT, "--steps", 0), ("steps = 0",)),
        ((PROMPT, "--seeds", 0), ("seeds = 0",)),
        ((PROMPT, "--guidance", -1), ("guidance_scale = -1",)),
        ((PROMPT, "--recipe", "magic"), ("unknown recipe 'magic'", "mean, selected, effect")),
        ((PROMPT, "--phrase", "efusion"), ("'efusion' is not in the prompt", "'effusion'")),
    ],
)
def test_bad_input_to_explain_is_one_line_and_leaves_nothing(tmp_path, options, parts):
    refused(call("explain", *options, "--out", tmp_path / "run"), *parts)
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_a_single_text_key_is_offered_the_effect(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda name, **options: ToyAdapter((4, 8, 12), single_key=True))
    refused(call("explain", PROMPT, "--out", tmp_path / "run"), "single text key", "use recipe 'effect'")
    assert call("explain", PROMPT, "--out", tmp_path / "run", "--steps", 2, "--recipe", "effect").exit_code == 0


def test_an_existing_folder_is_refused_before_any_work_and_replaced_when_allowed(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loading, "load", lambda name, **options: pytest.fail("the model was loaded"))
        refused(call("explain", PROMPT, "--out", run), "exists", "--overwrite")
    assert call("explain", "left nodule", "--out", run, "--steps", 2, "--overwrite").exit_code == 0
    assert load_run(run).prompt.text == "left nodule"


def test_a_folder_that_is_no_run_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("all of it")
    refused(call("explain", PROMPT, "--out", tmp_path / "thesis", "--overwrite"), "holds no run")
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_a_run_that_could_not_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda name, **options: pytest.fail("the model was loaded"))
    (tmp_path / "notes").write_text("a file")
    refused(call("explain", PROMPT, "--out", tmp_path / "notes" / "runs" / "one"), "notes is a file, not a folder")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    refused(call("explain", PROMPT, "--out", tmp_path / "runs" / "one"), f"{tmp_path} is read-only", code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_file_is_written_into_a_folder_that_is_made_for_it_and_never_over_one(made, tmp_path):
    out = tmp_path / "masks" / "left.nii.gz"
    assert call("mask", made, "left", "--out", out).exit_code == 0 and out.is_file()
    refused(call("overlay", made, "left", "--out", tmp_path), f"{tmp_path} is a folder; name the file to write")
    refused(call("report", made, "--out", out / "page.html"), "left.nii.gz is a file, not a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


@pytest.mark.parametrize("verb", ["words", "report", "effect", "mask", "overlay", "export"])
def test_every_verb_says_when_a_folder_is_no_run(verb, tmp_path):
    more = {"effect": ["left"], "mask": ["left", "--out", "a.nii.gz"], "overlay": ["left", "--out", "a.png"]}
    more["export"] = ["--nifti", tmp_path / "maps"]
    refused(call(verb, tmp_path / "nowhere", *more.get(verb, [])), "nowhere", "voxplain explain")


def test_an_absent_word_and_an_ambiguous_one_are_named(run, tmp_path):
    refused(call("mask", run, "efusion", "--out", tmp_path / "a.nii.gz"), "'efusion'", "'effusion'")
    call("explain", "left nodule and right nodule", "--out", tmp_path / "two", "--steps", 2)
    refused(call("mask", tmp_path / "two", "nodule", "--out", tmp_path / "a.nii.gz"), "2 times", "nodule#1")
    assert call("mask", tmp_path / "two", "nodule#2", "--out", tmp_path / "a.nii.gz").exit_code == 0


def test_a_mask_has_to_be_a_nifti_and_its_fraction_a_share(made, tmp_path):
    refused(call("mask", made, "left", "--out", tmp_path / "a.png"), ".nii.gz")
    refused(call("mask", made, "left", "--top", 1.5, "--out", tmp_path / "a.nii.gz"), "1.5")


@pytest.mark.parametrize("stage", ["generate", "effect", "writing"])
def test_an_interruption_leaves_nothing_half_written_and_exits_130(tmp_path, monkeypatch, stage):
    from voxplain.io import run as runs

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    if stage == "writing":
        monkeypatch.setattr(runs, "figure", interrupt)
    else:
        monkeypatch.setattr(*{"generate": (ToyAdapter, stage), "effect": (effect, "measure_words")}[stage], interrupt)
    result = call("explain", PROMPT, "--out", tmp_path / "run", "--steps", 2)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failure_that_is_not_the_users_exits_1(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda name, **options: ToyAdapter((4, 8, 12), nan_at=1))
    refused(call("explain", PROMPT, "--out", tmp_path / "run", "--steps", 2), "NaN", code=1)


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("VOXPLAIN_DEBUG", "1")
    result = call("words", tmp_path)
    assert isinstance(result.exception, ValueError)


def test_a_defect_of_ours_is_not_hidden(made, monkeypatch):
    from voxplain.view import words

    monkeypatch.setattr(words, "word_rows", lambda explanation: [].pop())
    assert isinstance(call("words", made).exception, IndexError)


def test_a_wrong_command_line_exits_2_and_help_names_every_verb():
    assert call("explain").exit_code == 2
    assert call("dance").exit_code == 2
    page = call("--help").stdout
    for verb in "explain words effect mask overlay export report doctor train ground".split():  # noqa: SIM905
        assert verb in page
