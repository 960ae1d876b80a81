"""Planted truth through the whole evaluation: every figure of the report is known beforehand."""

import csv
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from voxplain.adapters import toy
from voxplain.adapters.toy import ToyAdapter
from voxplain.datasets.folder import build_folder
from voxplain.datasets.frames import read_steps
from voxplain.geometry import regular
from voxplain.io.nifti import write_volume
from voxplain.io.run import save_run
from voxplain.models.placing import placed
from voxplain.runner import read_rows
from voxplain.studies import benchmark, benchmark_phantoms, benchmark_words, explaining, grounding
from voxplain.studies.benchmark import Settings, evaluate
from voxplain.studies.benchmark_cases import Records, Runs
from voxplain.studies.benchmark_phantoms import Phantoms
from voxplain.studies.benchmark_published import published_tables
from voxplain.studies.benchmark_tables import PLAIN, WEIGHTED, Measured, found_of
from voxplain.studies.effect import differences
from voxplain.studies.given import given

GRID = (8, 24)
TOY = ToyAdapter(GRID)
QUICK = Settings(
    steps=2, used=1, metrics=("auc_roc", "cnr", "pointing_game", "chance_level", "daam_iou_0.4", "center_distance")
)
CASES = [  # text, word, split, patient
    ("left effusion", "effusion", "test", "p1"),
    ("left effusion", "effusion", "test", "p2"),
    ("small effusion and left nodule", "nodule", "test", "p2"),
    ("severe pneumothorax", "pneumothorax", "test", "p3"),
    ("mild opacity", "effusion", "test", "p4"),  # the word is not in the text
    ("left effusion", "effusion", "train", "p9"),
]


def box_of(word):
    pieces = ("pneumo", "##thorax") if word == "pneumothorax" else (word,)
    cells = np.logical_or.reduce([TOY.box(piece) for piece in pieces])
    return cells.repeat(2, 0).repeat(2, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Films whose masks are the boxes that the toy attends to."""
    base = tmp_path_factory.mktemp("films")
    lines = []
    for number, (text, word, split, patient) in enumerate(CASES):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 48)).astype(np.uint8)
        Image.fromarray(pixels).save(base / f"{number}.png")
        Image.fromarray(255 * box_of(word).astype(np.uint8)).save(base / f"{number}-mask.png")
        lines.append((f"{number}.png", f"{number}-mask.png", text, word, word, split, patient))
    with (base / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "mask", "prompt", "words", "label", "split", "patient"))
        writer.writerows(lines)
    return base


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """The report of the folder's films, made once."""
    out = tmp_path_factory.mktemp("reports") / "films"
    source = Records(build_folder(folder), split="test")
    options = {"opener": lambda: TOY, "model": "toy <b>", "settings": QUICK, "minimum": 1}
    return evaluate(source, out, command="voxplain evaluate & more", **options), source, options


def results(folder):
    return json.loads((folder / "results.json").read_text())


def table(folder, name):
    (found,) = [one for one in results(folder)["tables"] if one["name"] == name]
    return {row[0]: dict(zip(found["columns"], row, strict=True)) for row in found["rows"]}


def test_planted_truth_is_found_and_controls_are_at_chance(made):
    out, _, _ = made
    auc, top = table(out, "auc_roc"), table(out, "pointing_game")
    for finding in ("effusion", "nodule", "pneumothorax", "mean over findings", "all cases"):
        assert auc[finding]["mean"][0] == pytest.approx(1, abs=0.02)
        assert top[finding]["mean"][0] == 1
    assert abs(auc["all cases"]["random half"][0] - 0.5) < 0.1
    assert auc["all cases"]["chance"] == 0.5
    assert top["effusion"]["chance"] == pytest.approx(box_of("effusion").mean())
    assert auc["effusion"]["oracle of the grid"][0] > 0.9
    assert auc["effusion"]["mean training mask"][0] == 1  # the training mask of the same finding
    assert auc["effusion"]["mean, truth of a case with the same text"][0] == pytest.approx(1, abs=0.02)
    assert auc["nodule"]["mean, truth of a case with the same text"] is None
    assert auc["pneumothorax"]["mean, first sub-token"][0] < auc["pneumothorax"]["mean"][0]


def test_counts_are_told_with_the_reasons_of_what_is_missing(made):
    out, _, _ = made
    auc = table(out, "auc_roc")
    assert {finding: row["n"] for finding, row in auc.items()} == {
        "effusion": 2, "nodule": 1, "pneumothorax": 1, "mean over findings": 4, "all cases": 4,
    }  # fmt: skip
    reasons = [row[1:] for one in results(out)["tables"] if one["name"] == "excluded" for row in one["rows"]]
    assert ["the words are not in the text as far as it was read", 1] in reasons
    assert ["another split", 1] in reasons
    assert results(out)["failed"] == 1


def test_gains_stand_with_their_n_and_cost_beside_quality(made):
    out, _, _ = made
    gains = table(out, "gains")
    assert gains["random half"]["auc_roc: gain"][0] == pytest.approx(0.5, abs=0.1)
    assert gains["random half"]["auc_roc: n"] == 4
    assert 0 < gains["random half"]["auc_roc: p (Holm)"] <= 1
    assert gains["mean, truth of a case with the same text"]["auc_roc: n"] == 2
    swapped = table(out, "swapped")["mean"]
    assert swapped["auc_roc: gain"][0] == pytest.approx(0, abs=1e-9) and swapped["auc_roc: n"] == 2  # equal boxes
    fewer = next(one["note"] for one in results(out)["tables"] if one["name"] == "auc_roc")
    assert "Of fewer cases: mean training mask 2, mean, truth of a case with the same text 2." in fewer
    cost = table(out, "cost")["mean"]
    assert (cost["cases"], cost["rows forward"], cost["rows backward"]) == (4, 1.0, 0.0)


def test_words_are_read_whole_and_by_their_first_piece(made):
    out, _, _ = made
    rows = {row["case"]: row for row in read_rows(out / "rows.jsonl")}
    words = {one[0]: one[1:] for one in rows["metadata-000003"]["words"]}
    assert set(words) == {"severe", "pneumothorax", "[start]", "[end]", "[padding]"}
    part, whole, first, covered = words["pneumothorax"]
    assert part == "NOUN" and whole > first > 0 and 0 < covered < 1
    assert words["[start]"][2] is None
    (effusion,) = [one for one in results(out)["tables"] if one["title"] == "effusion: words"]
    assert effusion["rows"][0][:3] == ["effusion", "NOUN", 2]
    assert {row[0] for row in effusion["rows"]} == {"left", "effusion", "[start]", "[end]", "[padding]"}
    latex = (out / "tables" / "words-1.tex").read_text()
    assert "\n{[}padding] &" in latex and "\n[" not in latex  # the end of a row takes a bracket for its length
    parts = table(out, "parts-of-speech")
    assert parts["NOUN"]["words"] == 5 and parts["ADJ"]["words"] == 5 and parts["CCONJ"]["words"] == 1


def test_the_folder_is_complete_and_the_page_is_escaped_and_self_contained(made):
    out, _, _ = made
    assert {path.name for path in out.iterdir()} == {
        "rows.jsonl", "rows.about.json", "rows.lock", "results.json", "report.html", "tables", "figures",
    }  # fmt: skip
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in ("auc_roc", "parts-of-speech") for kind in ("png", "svg")}
    assert (out / "figures" / "auc_roc.png").read_bytes()[:4] == b"\x89PNG"
    for one in results(out)["tables"]:
        assert {(out / "tables" / f"{one['name']}.{kind}").is_file() for kind in ("csv", "tex")} == {True}
    page = (out / "report.html").read_text()
    assert "toy &lt;b&gt; on films" in page and "<b> on" not in page
    assert "voxplain evaluate &amp; more" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page and "https://" not in page
    assert "Not for diagnosis" in page


def test_published_figures_stand_beside_ours_under_a_banner(made):
    out, _, _ = made
    page = (out / "report.html").read_text()
    beside = table(out, "published-tradeoffs-auc_roc")
    assert beside["pneumothorax"]["Finetune_F"] == "74±2.7"
    assert set(beside) == {"effusion", "pneumothorax", "mean over findings", "all cases"}
    assert (beside["effusion"]["n"], beside["effusion"]["chance"]) == (2, 0.5)
    assert beside["effusion"]["Finetune_F"] == "83±1.1"  # phantoms' and films' names mean the same finding
    contrast = table(out, "published-tradeoffs-cnr")
    assert contrast["all cases"]["Finetune_F"] == "0.920" and contrast["all cases"]["BioViL-L"] is None
    assert contrast["mean over findings"]["Finetune_F"] == "1.056 (our mean)"
    assert contrast["mean over findings"]["BioViL-L"] == "1.142"  # as it was printed
    assert "two different measurements" in page and "4 cases; other weights, other images" in page


def test_daams_two_figures_stand_beside_coco_and_nothing_else(made):
    rows = tuple(row for row in read_rows(made[0] / "rows.jsonl") if "failed" not in row)
    measured = Measured(rows, ("mean",))
    found = found_of(measured)
    both = published_tables(measured, found, "coco")
    assert [paper["name"] for paper, _ in both] == ["tradeoffs", "daam"]
    (beside,) = both[1][1]  # of its thresholds, 0.4 was measured
    assert beside.columns[4:] == ("COCO-Gen", "Unreal-Gen")
    assert [(row[0], *row[4:]) for row in beside.rows] == [(PLAIN, None, None), (WEIGHTED, "61.0", "51.5")]
    assert [paper["name"] for paper, _ in published_tables(measured, found, "phantoms")] == ["tradeoffs"]


def test_rows_of_another_truth_are_not_gone_on_with(folder, tmp_path):
    settings, out = Settings(("center",), metrics=("auc_roc",)), tmp_path / "out"
    table = "image,boxes,prompt,words\n0.png,{} 2 12 8,left effusion,effusion\n"
    for place in (2, 30):
        (folder / "moved.csv").write_text(table.format(place))
        source = Records(build_folder(folder, table="moved.csv"))
        if place == 30:
            with pytest.raises(ValueError, match="records"):
                evaluate(source, out, opener=lambda: TOY, settings=settings)
        evaluate(source, out, opener=lambda: TOY, settings=settings, overwrite=place == 30)


def test_a_report_is_made_again_without_reading_anything_anew(made, monkeypatch):
    out, source, options = made
    before = (out / "rows.jsonl").read_bytes()
    monkeypatch.setattr(benchmark, "Scorer", lambda *given: pytest.fail("nothing was left to score"))
    evaluate(source, out, **options)
    assert (out / "rows.jsonl").read_bytes() == before


def test_other_settings_and_foreign_folders_are_refused(made, tmp_path):
    out, source, options = made
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        evaluate(source, out, **{**options, "settings": Settings(seed=1)})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no evaluation"):
        evaluate(source, tmp_path, **options)
    for wrong in ({"methods": ()}, {"methods": ("mean", "mean")}, {"metrics": ("auc",)}):
        with pytest.raises(ValueError):
            Settings(**wrong)


def test_a_set_in_which_nothing_can_be_scored_says_why(folder, tmp_path):
    source = Records(build_folder(folder), split="test")
    settings = Settings(methods=("region",), steps=2, used=1)
    with pytest.raises(ValueError, match="none of 5 cases could be scored: ValueError: the control 'region' lights up"):
        evaluate(source, tmp_path / "out", opener=lambda: TOY, settings=settings)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"methods": ("mean", "guess")}, "unknown method 'guess'; there are occlusion"),
        ({"profile": "inverted"}, "unknown profile 'inverted'; there are renoise, invert, generate"),
        ({"methods": ("occlusion",), "profile": "generate"}, "changes the given image"),
    ],
)
def test_methods_and_profiles_are_checked_before_a_model_is_loaded(folder, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        evaluate(
            Records(build_folder(folder)),
            tmp_path / "out",
            opener=lambda: pytest.fail("no model is needed to say so"),
            settings=Settings(**wrong),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [0, -1])
def test_no_records_at_all_are_refused(folder, count):
    with pytest.raises(ValueError, match=f"{count} records of .*; give 1 or more"):
        Records(build_folder(folder), count=count)


def test_words_that_the_model_never_saw_are_named_on_the_page(folder, tmp_path):
    class Schooled(ToyAdapter):
        def unknown_words(self, prompt):
            return [word for word in prompt.split() if word in ("nodule", "left")]

    source = Records(build_folder(folder), split="test")
    out = evaluate(source, tmp_path / "out", opener=lambda: Schooled(GRID), settings=QUICK)
    page = (out / "report.html").read_text()
    assert "never saw &#x27;nodule&#x27; in training, which names the truth in 1 of 4 cases" in page
    assert "&#x27;left&#x27;" not in page, "it names no truth"


def test_cases_that_do_not_fit_are_rows_with_a_reason(tmp_path):
    Image.fromarray(np.zeros((16, 96), np.uint8)).save(tmp_path / "wide.png")
    (tmp_path / "metadata.csv").write_text(
        "image,boxes,prompt,words,size\n"
        "wide.png,30 2 8 8,left effusion,effusion,\n"
        "wide.png,2 2 8 8,left effusion,effusion,\n"  # left of what a crop to the middle keeps
        "wide.png,30 2 8 8,left effusion,effusion,48 16\n"
        f"wide.png,30 2 8 8,{'small ' * 20}effusion,effusion,\n"
        "wide.png,20 2 16 8,left effusion,effusion,\n"  # a quarter of it is cut off
    )
    out = evaluate(Records(build_folder(tmp_path)), tmp_path / "out", opener=lambda: TOY, settings=QUICK)
    rows = list(read_rows(out / "rows.jsonl"))
    expected = (None, "outside of the frame", "size is not the annotation's", "not in the text", None)
    for row, part in zip(rows, expected, strict=True):
        assert ("failed" not in row) if part is None else (part in row["failed"]), row
    assert rows[4]["share"] == 0.75
    assert "In 1 of 2 cases part of the truth lies outside" in (out / "report.html").read_text()


def test_a_credentialed_set_is_written_for_its_owner_alone(folder, tmp_path):
    from dataclasses import replace

    source = Records(replace(build_folder(folder), credentialed=True), split="train")
    out = evaluate(source, tmp_path / "out", opener=lambda: TOY, settings=QUICK)
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "rows.lock"]
    assert len(files) > 8 and all(path.stat().st_mode & 0o077 == 0 for path in files)
    assert "stay on this disk" in (out / "report.html").read_text()


def test_several_methods_stand_beside_each_other(folder, tmp_path):
    settings = Settings(methods=("mean", "effect", "gradient"), steps=2, used=1, metrics=("auc_roc",))
    out = evaluate(
        Records(build_folder(folder), split="train"), tmp_path / "out", opener=lambda: TOY, settings=settings
    )
    row = table(out, "auc_roc")["effusion"]
    assert row["effect"][0] == 1 and row["mean"][0] > 0.95
    cost = table(out, "cost")
    assert cost["gradient"]["rows backward"] > 0 == cost["mean"]["rows backward"]


def test_every_method_stands_against_another_cases_truth_and_maps_on_cut_scales_against_controls(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 48)).astype(np.uint8)).save(tmp_path / "0.png")
    lines = ["image,boxes,prompt,words,patient"]
    lines += [f"0.png,{place} 2 12 8,left effusion,effusion,p{place}" for place in (2, 30)]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    settings = Settings(
        ("mean", "effect", "center"), steps=2, used=1, metrics=("auc_roc", "chance_level", "daam_iou_0.4")
    )
    out = evaluate(Records(build_folder(tmp_path)), tmp_path / "out", opener=lambda: TOY, settings=settings)
    swapped, auc = table(out, "swapped"), table(out, "auc_roc")
    assert set(swapped) == {"mean", "effect", "center"}
    for row in swapped.values():  # each truth is the other's partner, so what is won here is lost there
        assert row["auc_roc: gain"][0] == pytest.approx(0, abs=1e-9) and row["auc_roc: n"] == 2
    assert [name for name in auc["all cases"] if name.endswith("same text")] == [
        "mean, truth of a case with the same text"
    ]
    cut = table(out, "daam_iou_0.4")["all cases"]
    assert cut["chance"] == pytest.approx(12 * 8 / (16 * 48))
    assert cut["random half"][0] > 0 and cut["oracle of the grid"][0] > 0.5


def test_a_phrase_is_taken_away_as_a_whole_and_other_words_cost_nothing(folder):
    settings = Settings(methods=("effect", "gradient"), steps=4, used=3, metrics=("auc_roc",))
    lines = "image,mask,prompt,words\n0.png,0-mask.png,small effusion and left nodule,left nodule\n"
    (folder / "phrase.csv").write_text(lines)
    scorer = benchmark.Scorer(lambda: TOY, Records(build_folder(folder, table="phrase.csv")), settings)
    trial = scorer.source.trial(0, TOY)
    made, cost = scorer._attributions(0, trial)
    prompt = TOY.tokenize(trial.text)
    states = grounding.thinned(grounding.renoise(TOY, trial.sample, steps=4, used=3, seed=0))
    (expected,) = differences(TOY, prompt, states, [prompt.find("left nodule")])
    np.testing.assert_allclose(benchmark.read(made["effect"], "words", trial.words).values, expected)
    assert cost["effect"][:2] == [3 * 2, 0]  # the whole text and the text without the phrase, at three states
    assert cost["gradient"][:2] == [3 * 3, 3 * 2]


def test_states_are_made_once_and_stand_in_every_price(folder, monkeypatch):
    class Invertible(ToyAdapter):
        prediction = "sample"

    calls, states_of = [], grounding.states_of
    monkeypatch.setattr(
        grounding, "states_of", lambda *given, **options: calls.append(1) or states_of(*given, **options)
    )
    settings = Settings(methods=("mean", "effect", "center"), profile="invert", steps=4, used=3, metrics=("auc_roc",))
    scorer = benchmark.Scorer(lambda: Invertible(GRID), Records(build_folder(folder), split="train"), settings)
    cost = scorer(0)["cost"]
    way = 2 * (3 - 1)  # up and down again; the level without noise is the image itself
    assert len(calls) == 1 and cost["center"][0] == 0
    assert (cost["mean"][0], cost["effect"][0]) == (way + 3, way + 3 * 2)


def test_labels_are_chosen_and_read_by_another_text(folder, tmp_path):
    films = build_folder(folder)
    source = Records(films, split="test", labels=("effusion",), texts={"effusion": "nodule"})
    assert [source.trial(number, TOY).words for _, number in source.cases()][0] == ("nodule",)
    out = evaluate(source, tmp_path / "out", opener=lambda: TOY, settings=QUICK)
    made = table(out, "auc_roc")
    assert list(made) == ["effusion", "mean over findings", "all cases"] and made["effusion"]["n"] == 3
    assert made["effusion"]["mean"][0] < 0.9  # the toy looks elsewhere for a nodule
    assert "&#x27;effusion&#x27; is read by the text &#x27;nodule&#x27;" in (out / "report.html").read_text()
    assert results(out)["source"]["read_as"] == {"effusion": "nodule"} and source.left_out["another label"] == 2
    with pytest.raises(ValueError, match="shows no mass in the split 'test'; it shows effusion, nodule, pneumothorax"):
        Records(films, split="test", labels=("mass",)).cases()


def test_a_volume_is_turned_to_the_axes_of_the_model_that_reads_it(tmp_path):
    model, stored = ToyAdapter((4, 8, 12)), regular((24, 16, 8), 5.0, (3.0, 4.0, 5.0))
    model.geometry = placed((8, 16, 24), (5.0, 5.0, 5.0), "RAS")  # axes grow to the right, to the front, upward
    left = np.zeros(stored.shape, np.float32)
    left[:, :, 4:] = 40  # columns grow to the patient's left
    write_volume(tmp_path / "ct.nii.gz", left, stored)
    write_volume(tmp_path / "mask.nii.gz", (left > 0).astype(np.uint8), stored, np.uint8)
    (tmp_path / "metadata.csv").write_text("image,mask,prompt,words\nct.nii.gz,mask.nii.gz,left effusion,effusion\n")
    trial = Records(build_folder(tmp_path)).trial(0, model)
    assert trial.sample.geometry.shape == (8, 16, 24)
    assert (trial.sample.image[0] > 20)[:4].all() and (trial.sample.image[0] < 20)[4:].all()  # right grows: left first
    assert np.array_equal(trial.truth.values, trial.sample.image[0] > 20)
    alone = given(tmp_path / "ct.nii.gz", "left effusion", model, mask=tmp_path / "mask.nii.gz")
    assert np.array_equal(alone.sample.image, trial.sample.image) and alone.frame.target.same_as(trial.truth.geometry)
    assert np.array_equal(alone.truth.values, trial.truth.values)
    assert read_steps(json.loads(json.dumps(alone.frame.facts()))["steps"]) == alone.frame.steps


def test_a_picture_is_refused_by_a_model_of_volumes(folder, tmp_path):
    source = Records(build_folder(folder), split="train")
    with pytest.raises(ValueError, match="is a picture, and .* reads volumes"):
        evaluate(source, tmp_path / "out", opener=lambda: ToyAdapter((4, 8, 12)), settings=QUICK)


# run folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the toy and masks on their grid, one of them of another shape."""
    base = tmp_path_factory.mktemp("runs")
    adapter = ToyAdapter((4, 8, 12))
    save_run(explaining.explain(adapter, "left effusion", steps=2, recipes=("mean",)), base / "one")
    box = adapter.box("effusion").repeat(2, 0).repeat(2, 1).repeat(2, 2)
    write_volume(base / "effusion.nii.gz", 3 * box.astype(np.uint8), adapter.geometry, np.uint8)
    write_volume(base / "coarse.nii.gz", box[::2, ::2, ::2].astype(np.uint8), adapter.geometry.at((4, 8, 12)), np.uint8)
    write_volume(base / "empty.nii.gz", np.zeros(box.shape, np.uint8), adapter.geometry, np.uint8)
    return base


def listed(base, *lines):
    path = base / "runs.csv"
    path.write_text("run,mask,mask_values,words,region\n" + "".join(f"{line}\n" for line in lines))
    return Runs(path)


def test_run_folders_are_scored_against_their_masks(runs, tmp_path):
    source = listed(runs, "one,effusion.nii.gz,3,effusion,", "one,effusion.nii.gz,,effusion,effusion.nii.gz")
    out = evaluate(source, tmp_path / "out", settings=QUICK)
    assert table(out, "auc_roc")["effusion"]["mean"][0] > 0.98
    assert "cost" not in [one["name"] for one in results(out)["tables"]]
    assert results(out)["source"]["data"] == "runs"


def test_masks_in_another_frame_and_empty_ones_are_not_scored(runs, tmp_path):
    source = listed(
        runs,
        "one,effusion.nii.gz,,effusion,",
        "one,coarse.nii.gz,,effusion,",
        "one,empty.nii.gz,,effusion,",
        "one,effusion.nii.gz,,nodule,",
        "two,effusion.nii.gz,,effusion,",
    )
    evaluate(source, tmp_path / "out", settings=QUICK)
    reasons = [row.get("failed", "") for row in read_rows(tmp_path / "out" / "rows.jsonl")]
    for reason, part in zip(
        reasons, ("", "never resized", "the truth is empty", "not in the text", "two"), strict=True
    ):
        assert part in reason, reasons
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
        Runs(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="no column run, mask"):
        (tmp_path / "other.csv").write_text("a,b\n1,2\n")
        Runs(tmp_path / "other.csv")


# phantoms -------------------------------------------------------------------------------------------------------------


def test_phantoms_come_with_region_prior_partner_and_their_own_tags(tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "CONTEXT", 160)
    monkeypatch.setattr(benchmark_phantoms, "PRIOR", 2)
    adapter, source = ToyAdapter((48, 48)), Phantoms(2, "dev", kinds=("consolidation", "cardiomegaly"))
    trial = source.trial(0, adapter)
    assert trial.truth.geometry.same_as(trial.sample.geometry) and trial.sample.image.shape == (1, 96, 96)
    assert trial.region is not None and (trial.region.values & trial.truth.values).any()
    (word,) = trial.words
    assert word.split("#")[0] in trial.text and trial.tags
    out = evaluate(source, tmp_path / "out", opener=lambda: adapter, settings=QUICK)
    assert table(out, "auc_roc")["consolidation"]["region lit"][0] > 0.5
    assert table(out, "auc_roc")["consolidation"]["mean training mask"][0] > 0.5
    assert "parts-of-speech" in [one["name"] for one in results(out)["tables"]]
    before = (out / "rows.jsonl").read_bytes()
    more = Phantoms(3, "dev", kinds=("consolidation", "cardiomegaly"))
    evaluate(more, out, opener=lambda: adapter, settings=QUICK)
    assert (out / "rows.jsonl").read_bytes().startswith(before)  # a larger count goes on with the same rows
    assert len(list(read_rows(out / "rows.jsonl"))) == 3
    with pytest.raises(ValueError, match="dev, test or shift"):
        Phantoms(3, "train")


# parts of speech ------------------------------------------------------------------------------------------------------


def test_parts_of_speech_come_from_spacy_only_when_it_is_named(monkeypatch):
    assert benchmark_words.tagger(None)[1]("a large mystery.") == (
        (0, 1, "DET"), (2, 7, "ADJ"), (8, 15, "unknown"),
    )  # fmt: skip
    with pytest.raises(ImportError, match="need spaCy and that pipeline"):
        benchmark_words.tagger("en_no_such_pipeline")
    token = SimpleNamespace(idx=0, text="large", pos_="ADJ", is_space=False)
    fake = ModuleType("spacy")
    fake.load = lambda name: lambda text: [token, SimpleNamespace(idx=5, text=" ", pos_="SPACE", is_space=True)]
    monkeypatch.setitem(sys.modules, "spacy", fake)
    monkeypatch.setattr(benchmark_words.importlib.util, "find_spec", lambda name: object())
    name, tag = benchmark_words.tagger("en_small")
    assert name == "spaCy en_small" and tag("large ") == ((0, 5, "ADJ"),)
