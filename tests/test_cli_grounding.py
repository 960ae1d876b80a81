"""The verb ground on the toy: profiles, token rules, pictures and volumes, and a truth that takes the image's way."""

from functools import partial

import numpy as np
import pytest
from PIL import Image
from test_cli import call, refused

from voxplain import loading
from voxplain.adapters.toy import ToyAdapter
from voxplain.cli import grounding as cli
from voxplain.geometry import regular
from voxplain.io.nifti import read_volume, write_volume
from voxplain.io.run import load_run
from voxplain.studies import explaining, fitting, grounding
from voxplain.studies.effect import measure_phrase
from voxplain.studies.given import given


class Named(ToyAdapter):
    """Says that it predicts the clean latent, so it can be inverted."""

    prediction = "sample"


FLAT, SOLID = Named((8, 24)), ToyAdapter((4, 8, 12))
TEXT, MEAN, FEW = "left effusion", ("--recipe", "mean"), {"steps": 3, "used": 2}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(loading, "load", lambda name, **options: FLAT if name == "flat" else SOLID)
    monkeypatch.setattr(grounding, "states_of", partial(grounding.states_of, **FEW))
    monkeypatch.delenv("VOXPLAIN_DEBUG", raising=False)


@pytest.fixture
def film(tmp_path):
    """A picture of twice the model's 16 x 48, with 8 rows more above and below than are seen."""
    pixels = np.random.default_rng(0).integers(0, 255, (48, 96)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "film.png")
    return tmp_path / "film.png"


def seen(word):
    """Where the model of pictures attends to a word, as a box of the film: x, y, width, height."""
    rows, columns = np.nonzero(FLAT.box(word))
    x, y, width, height = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
    return f"{4 * x},{4 * y + 8},{4 * width},{4 * height}"


def on(image, *options, text=TEXT, model="flat", out="run"):
    run = image.parent / out
    return call("ground", image, text, "--model", model, "--out", run, *MEAN, *options), run


def test_a_picture_comes_into_the_models_frame_by_recorded_steps(film):
    result, run = on(film)
    assert result.exit_code == 0, result.stderr
    kept = load_run(run)
    steps = [step["step"] for step in kept.provenance["frame"]["steps"]]
    assert steps == ["Orient", "Cover", "Crop"]
    assert kept.provenance["frame"]["stored"] == [48, 96] and kept.sample.geometry.shape == (16, 48)
    expected = explaining.explain_image(FLAT, given(film, TEXT, FLAT).sample, TEXT, recipes=("mean",))
    assert np.array_equal(kept.attributions["mean"].maps, expected.attributions["mean"].maps)
    back = kept.word("effusion").resize(regular((48, 96), 1.0)).values
    x, y, width, height = (int(part) for part in seen("effusion").split(","))
    row, column = np.unravel_index(back.argmax(), back.shape)
    assert y <= row < y + height and x <= column < x + width


def test_a_jpeg_in_color_is_read_and_volume_models_refuse_pictures(film):
    photo = film.with_name("photo.JPG")
    Image.open(film).convert("RGB").save(photo)
    assert on(photo)[0].exit_code == 0
    refused(on(film, model="solid", out="other")[0], "is a picture", "reads volumes")


def test_a_box_takes_the_way_of_the_image_and_is_scored_in_the_frame_stated(film):
    result, run = on(film, "--word", "effusion", "--box", seen("effusion"), "--size", "96,48")
    assert result.exit_code == 0, result.stderr
    assert "16 x 48" in result.stdout and "48 x 96" in result.stdout and "100%" in result.stdout
    kept, (mask, place) = load_run(run), read_volume(run / "truth.nii.gz", 2)
    assert np.array_equal(mask.astype(bool), FLAT.box("effusion").repeat(2, 0).repeat(2, 1))
    assert place.same_as(kept.sample.geometry)
    scores = kept.provenance["scores"]
    assert scores["mean"]["auc_roc"] > 0.99 and scores["mean"]["pointing_game"] == 1.0
    assert {"control: center", "control: random half"} < set(scores)
    assert kept.provenance["truth"] == {"boxes": [[float(one) for one in seen("effusion").split(",")]], "share": 1.0}
    assert kept.provenance["rule"] == {"name": "words", "words": ["effusion"]}
    wrong = on(film, "--word", "effusion", "--box", seen("left"), out="wrong")[1]
    assert load_run(wrong).provenance["scores"]["mean"]["pointing_game"] == 0.0


def test_a_truth_that_is_cut_by_the_frame_says_so(film):
    result, run = on(film, "--box", "8,0,16,16")
    assert result.exit_code == 0, result.stderr
    assert "50%" in result.stdout and load_run(run).provenance["truth"]["share"] == 0.5


def test_a_mask_is_scored_as_the_same_box(film):
    pixels = np.zeros((48, 96), np.uint8)
    x, y, width, height = (int(part) for part in seen("effusion").split(","))
    pixels[y : y + height, x : x + width] = 255
    Image.fromarray(pixels).save(film.with_name("mask.png"))
    by_mask = on(film, "--word", "effusion", "--mask", film.with_name("mask.png"))[1]
    by_box = on(film, "--word", "effusion", "--box", seen("effusion"), out="box")[1]
    assert load_run(by_mask).provenance["scores"] == load_run(by_box).provenance["scores"]


def test_a_volume_and_its_mask_are_brought_to_the_grid_by_millimeters(tmp_path):
    stored = regular((20, 40, 60), 2.5, (7.0, 8.0, 9.0))
    inside = np.kron(SOLID.box("nodule"), np.ones((4, 4, 4))) > 0  # a cell of the latent is four stored ones
    mask = np.pad(inside, [(2, 2), (4, 4), (6, 6)])
    write_volume(tmp_path / "case.nii.gz", np.random.default_rng(0).normal(size=stored.shape), stored)
    write_volume(tmp_path / "mask.nii.gz", mask, stored, np.uint8)
    image = tmp_path / "case.nii.gz"
    result, run = on(image, "--word", "nodule", "--mask", tmp_path / "mask.nii.gz", text="left nodule", model="solid")
    assert result.exit_code == 0, result.stderr
    kept = load_run(run)
    assert [step["step"] for step in kept.provenance["frame"]["steps"]] == ["Grid"]
    expected = fitting.fitted(given(image, "x", SOLID).sample, SOLID.geometry)
    assert np.array_equal(kept.sample.image, expected.image) and kept.sample.geometry.same_as(expected.geometry)
    assert kept.provenance["scores"]["mean"]["pointing_game"] == 1.0 and kept.provenance["truth"]["share"] == 1.0
    refused(on(image, "--profile", "invert", model="solid", out="inverted")[0], "cannot be inverted", "'renoise'")
    write_volume(tmp_path / "codes.nii.gz", np.where(mask, 7, 3), stored, np.uint8)
    coded = ("--word", "nodule", "--mask", tmp_path / "codes.nii.gz", "--mask-value")
    same = on(image, *coded, 7, text="left nodule", model="solid", out="coded")[1]
    assert load_run(same).provenance["scores"] == kept.provenance["scores"]
    assert load_run(same).provenance["truth"]["values"] == [7]
    refused(on(image, *coded, 9, text="left nodule", model="solid", out="none")[0], "has no cell of 9")


def test_a_phrase_is_measured_as_a_whole_by_the_effect(film):
    text, phrase = "small effusion and left nodule", "left nodule"
    options = ("--model", "flat", "--out", film.parent / "run", "--recipe", "effect", "--word", phrase)
    result = call("ground", film, text, *options)
    assert result.exit_code == 0, result.stderr
    kept, made = load_run(film.parent / "run"), read_volume(film.parent / "run" / "rule-effect.nii.gz", 2)[0]
    expected = measure_phrase(FLAT, kept, phrase).values
    np.testing.assert_allclose(made, expected, atol=1e-6)


def test_every_profile_is_what_the_study_reads(film):
    for profile in grounding.PROFILES:
        result, run = on(film, "--profile", profile, out=profile)
        assert result.exit_code == 0, result.stderr
        kept, sample = load_run(run), given(film, TEXT, FLAT).sample
        alone = grounding.ground(FLAT, sample, TEXT, profile=profile, **FEW)
        assert np.array_equal(kept.attributions["mean"].maps, alone.maps)
        assert kept.provenance["readout"] == profile
        assert ("round_trip" in kept.provenance) == ("round trip" in result.stderr) == (profile == "invert")
        assert ("made of the text" in result.stderr) == (profile == "generate")
    refused(on(film, "--profile", "guess", out="guess")[0], "unknown profile 'guess'", "renoise, invert, generate")
    refused(on(film, "--profile", "invert", "--seeds", 2, out="twice")[0], "draws no noise")


def test_seeds_give_mean_and_spread_and_the_score_of_the_mean(film):
    result, run = on(film, "--seeds", 3, "--word", "effusion", "--box", seen("effusion"))
    assert result.exit_code == 0, result.stderr
    kept, sample = load_run(run), given(film, TEXT, FLAT).sample
    mean, spread = grounding.ground_repeated(FLAT, sample, TEXT, seeds=3, **FEW)
    assert np.array_equal(kept.attributions["mean over seeds"].maps, mean.maps)
    assert np.array_equal(kept.attributions["mean spread over seeds"].maps, spread.maps)
    assert {"mean", "mean over seeds"} < set(kept.provenance["scores"])
    assert "mean spread over seeds" not in kept.provenance["scores"]
    assert (run / "rule-mean-over-seeds.nii.gz").is_file()


def test_every_token_rule_gives_its_map(film):
    text = "left pneumothorax"
    for rule in ("words", "substring", "first", "all", "start", "end", "padding"):
        word = ("--word", "pneumothorax") if rule in ("words", "substring", "first") else ()
        result, run = on(film, "--rule", rule, *word, text=text, out=rule)
        assert result.exit_code == 0, result.stderr
        one, made = load_run(run).attributions["mean"], read_volume(run / "rule-mean.nii.gz", 2)[0]
        pneumo = one.prompt.find("pneumothorax")
        rows = {"words": pneumo, "substring": pneumo, "first": pneumo[:1], "all": (*one.prompt.find("left"), *pneumo)}
        special = {"start": one.maps[0], "end": one.maps[-1], "padding": one.padding}
        expected = special[rule] if rule in special else one.maps[list(rows[rule])].mean(0)
        assert np.allclose(made, expected, atol=1e-7)


def test_forms_of_a_finding_are_alternatives_and_substrings_need_no_whole_word(film):
    for number, options in enumerate((("--word", "effusions"), ("--rule", "substring"))):
        result, run = on(film, "--word", "effusion", *options, out=f"several-{number}")
        assert result.exit_code == 0, result.stderr
        alone = on(film, "--word", "effusion", out=f"one-{number}")[1]
        made, expected = (read_volume(one / "rule-mean.nii.gz", 2)[0] for one in (run, alone))
        assert np.allclose(made, expected, atol=1e-7)
    result, run = on(film, "--word", "effus", "--rule", "substring", out="part")
    assert result.exit_code == 0, result.stderr
    assert np.allclose(read_volume(run / "rule-mean.nii.gz", 2)[0], expected, atol=1e-7)


def test_a_run_is_in_place_with_its_rule_maps_or_not_at_all(film, monkeypatch):
    def fail(*given):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(cli, "keep", fail)
        refused(on(film, "--word", "effusion")[0], "the disk is full", code=1)
    assert list(film.parent.iterdir()) == [film]
    result, run = on(film, "--word", "effusion")
    assert "report.html" in result.stderr and str(run) in result.stderr and ".partial" not in result.stderr
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(cli, "keep", fail)
        refused(on(film, "--word", "left", "--overwrite")[0], "the disk is full", code=1)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_film_that_is_stored_turned_is_said_before_anything_fails(film):
    exif, turned = Image.Exif(), film.with_name("turned.jpg")
    exif[274] = 6
    Image.open(film).save(turned, exif=exif)
    result = on(turned, "--box", "0,0,90,90")[0]
    warning, error = result.stderr.strip().splitlines()
    assert result.exit_code == 2 and "leaves the image" in error
    assert warning == "warning: turned.jpg says by EXIF that it is shown turned; it is read as it is stored"


def test_rules_that_have_no_map_are_refused_before_anything_is_read(film, monkeypatch):
    monkeypatch.setattr(explaining, "explain_image", lambda *given, **options: pytest.fail("it was read"))
    refused(on(film, "--rule", "last")[0], "unknown token rule 'last'")
    refused(on(film, "--rule", "first")[0], "needs the words")
    refused(on(film, "--word", "nodule")[0], "nodule")
    refused(on(film, "--rule", "start", "--word", "left")[0], "goes by no words")
    refused(on(film, "--word", "nodule", "--word", "mass")[0], "none of 'nodule', 'mass' is in the text")
    refused(on(film, "--box", "0,0,20,40", text="left " * 14 + "effusion")[0], "'effusion' fell off", "--word")
    effect = ("--recipe", "effect", "--rule", "start", "--out", film.parent / "run")
    refused(call("ground", film, TEXT, "--model", "flat", *effect), "measures words")


def test_a_truth_in_another_frame_is_refused_and_never_resized(film, monkeypatch):
    monkeypatch.setattr(explaining, "explain_image", lambda *given, **options: pytest.fail("it was read"))
    refused(on(film, "--box", "0,0,20,7")[0], "outside of the part of film.png", "(16, 48) by Orient, Cover, Crop")
    refused(on(film, "--box", "90,0,20,40")[0], "leaves the image")
    refused(on(film, "--box", "0,0,20")[0], "expected 4 numbers")
    refused(on(film, "--box", "0,0,20,x")[0], "--box 0,0,20,x", "commas")
    refused(on(film, "--box", "0,0,20,40", "--size", "96.7,48.2")[0], "--size 96.7,48.2", "whole numbers")
    refused(on(film, "--box", "0,0,20,40", "--size", "48,96")[0], "image of 48 x 96 (x first)", "holds 96 x 48")
    small, blank, photo = (film.with_name(name) for name in ("small.png", "blank.png", "mask.jpg"))
    Image.fromarray(np.ones((16, 48), np.uint8)).save(small)
    Image.fromarray(np.zeros((48, 96), np.uint8)).save(blank)
    Image.fromarray(np.ones((48, 96), np.uint8)).save(photo)
    refused(on(film, "--mask", small)[0], "small.png has shape (16, 48)", "never resized silently")
    refused(on(film, "--mask", blank)[0], "is empty")
    refused(on(film, "--mask", photo)[0], "JPEG")
    refused(on(film, "--mask", small, "--box", "0,0,20,40")[0], "not both")
    refused(on(film, "--mask-value", 7)[0], "values 7 of a mask are named, but no mask is")
    refused(on(film, "--seed", -1, "--box", "0,0,20,40")[0], "--seed -1: give a whole number from 0")
    grid = regular((16, 32, 48), 2.5)
    write_volume(film.with_name("case.nii.gz"), np.zeros(grid.shape), grid)
    moved = regular(grid.shape, 2.5, (5.0, 0.0, 0.0))
    write_volume(film.with_name("moved.nii.gz"), np.ones(grid.shape), moved, np.uint8)
    case = film.with_name("case.nii.gz")
    refused(on(case, "--mask", film.with_name("moved.nii.gz"), model="solid")[0], "moved.nii.gz", "never resized")
    assert not (film.parent / "run").exists()
