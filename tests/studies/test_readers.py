import csv
import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import explained

from voxplain.studies.reader_folder import Study
from voxplain.studies.reader_plan import ARMS, Case, PlanError, Question, default_plan, plan_of, read_plan
from voxplain.studies.readers import Showing, check, overlay, sequence, summary
from voxplain.view.tables import as_csv

PROMPTS = {"one": "Large effusion in the left lung", "two": "Small nodule in the right lung"}


MADE = {name: explained(text=text) for name, text in PROMPTS.items()} | {
    "flat": explained((12, 16), text=PROMPTS["one"])
}


@pytest.fixture
def runs(tmp_path):
    """Folders that look like runs; what is in them is not read here."""
    for name in MADE:
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(name)
    return {name: tmp_path / name for name in MADE}


@pytest.fixture
def plan(runs):
    return default_plan([Case("a", str(runs["one"]), "effusion"), Case("b", str(runs["two"]), "nodule")])


def load(case):
    return MADE[Path(case.run).name]


def row(case="a", arm="wrong", question="fits", answer="it fits", reader="R1", **more):
    facts = {"confidence": 3, "seconds": 2.0, "case_seconds": 4.0, "shown": {}, "run": "one", "position": 0}
    return {"reader": reader, "case": case, "arm": arm, "question": question, "answer": answer, **facts, **more}


def many(count, **changes):
    return replace(default_plan([Case(f"c{n}", "run", "word") for n in range(count)]), **changes)


def test_arms_turn_like_a_latin_square():
    plan = many(10)
    seen = [sequence(plan, f"R{number}", number) for number in range(4)]
    for shown in seen:
        assert sorted(each.case.id for each in shown) == sorted(each.id for each in plan.cases), "each case once"
        assert set(Counter(each.arm for each in shown).values()) <= {2, 3}
    for case in plan.cases:
        assert {each.arm for shown in seen for each in shown if each.case == case} == set(ARMS)
    assert len({tuple(each.case.id for each in shown) for shown in seen}) == 4, "an order of each reader's own"
    assert sequence(plan, "R1", 1) == seen[1]
    assert sequence(replace(plan, seed=2), "R1", 1) != seen[1]


def test_the_plan_may_fix_the_order_an_arm_and_repeats():
    plan = many(3, order="listed", repeat=True, arms=("none", "wrong"))
    plan = replace(plan, cases=(*plan.cases, Case("fixed", "run", "word", arm="effect")))
    shown = sequence(plan, "R1", 0)
    assert [each.case.id for each in shown] == ["c0", "c1", "c2", "fixed", "c0", "c1", "c2"]
    assert Counter(each.arm for each in shown) == {"none": 3, "wrong": 3, "effect": 1}
    assert len({(each.case.id, each.arm) for each in shown}) == 7


def test_overlays_are_what_they_are_recorded_to_be(plan):
    case, explanation = plan.cases[0], MADE["one"]
    right = explanation.word("effusion")
    assert overlay(plan, Showing(case, "none"), load) == (None, {})
    shown, facts = overlay(plan, Showing(case, "attention"), load)
    assert np.array_equal(shown.values, right.values)
    assert facts == {"recipe": "mean", "word": "effusion", "distinguishable": True}
    shown, _ = overlay(plan, Showing(case, "effect"), load)
    assert np.array_equal(shown.values, explanation.word("effusion", recipe="effect").values)
    mirrored, facts = overlay(plan, Showing(case, "wrong"), load)
    assert np.array_equal(mirrored.values, right.values[..., ::-1]), "columns run along x, which is left and right"
    assert facts["wrong"] == "mirror"
    assert facts["likeness"] < 0.5
    shown, facts = overlay(replace(plan, wrong="word"), Showing(case, "wrong"), load)
    assert facts["shown_word"] != "effusion"
    assert np.array_equal(shown.values, explanation.word(facts["shown_word"]).values)
    shown, facts = overlay(replace(plan, wrong="case"), Showing(case, "wrong"), load)
    assert (facts["shown_case"], facts["shown_word"]) == ("b", "nodule")
    assert np.array_equal(shown.values, MADE["two"].word("nodule").values)
    named = replace(case, wrong={"word": "left"})
    assert overlay(plan, Showing(named, "wrong"), load)[1]["shown_word"] == "left"


def test_an_image_of_two_axes_is_mirrored_too(plan, runs):
    case = Case("f", str(runs["flat"]), "effusion")
    shown, _ = overlay(plan, Showing(case, "wrong"), load)
    assert np.array_equal(shown.values, MADE["flat"].word("effusion").values[:, ::-1])
    with pytest.raises(PlanError, match="other axes"):
        overlay(replace(plan, cases=(case, *plan.cases)), Showing(replace(case, wrong="case"), "wrong"), load)


def test_doubtful_overlays_are_named_and_impossible_ones_refused(plan):
    case = plan.cases[0]
    assert check(plan, load) == []
    notes = check(replace(plan, cases=(replace(case, word="the"),), arms=("attention",)), load)
    assert "not distinguishable" in notes[0]
    notes = check(replace(plan, cases=(replace(case, wrong={"word": "effusion"}),)), load)
    assert "nearly the right one" in notes[0]
    for wrong in ({"word": "absent"}, {"case": "c"}, {"case": "a"}):
        with pytest.raises(PlanError):
            check(replace(plan, cases=(replace(case, wrong=wrong),)), load)
    with pytest.raises(PlanError, match="a: .*absent"):
        check(replace(plan, cases=(replace(case, word="absent"),)), load)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"voxplain_study": 2}, "is this a plan"),
        ({"seed": None}, "plan.seed is None; expected a whole number"),
        ({"seed": True}, "plan.seed"),
        ({"arms": ["none", "magic"]}, "arms.1. is 'magic'; it can be none"),
        ({"arms": ["none", "none"], "repeat": True}, "name each one once"),
        ({"shown": 1}, "unknown key 'shown'"),
        ({"top": 0}, "top is 0"),
        ({"cases": [{"id": "a", "run": "x"}]}, r"cases\[0\] has no 'word'"),
        ({"cases": []}, "one at least"),
        ({"cases": [{"id": "a", "run": "x", "word": "w", "wrong": {"words": "w"}}]}, "wrong is"),
        ({"cases": [{"id": "a", "run": "x", "word": "w", "truth": {"nope": "yes"}}]}, "no question's id"),
        ({"cases": [{"id": "a", "run": "x", "word": "w", "truth": {"fits": "maybe"}}]}, "is none of"),
        ({"questions": [{"id": "q", "text": "?", "kind": "slider"}]}, "'slider'; it can be choice, scale, text"),
        ({"questions": [{"id": "q", "text": "?", "kind": "choice"}]}, "two or more"),
        ({"questions": [{"id": "q", "text": "?", "kind": "choice", "options": ["a", "b"], "notices": "c"}]}, "notices"),
    ],
)
def test_a_damaged_plan_is_named_where_it_is_wrong(plan, change, complaint):
    assert plan_of(plan.document()) == plan
    with pytest.raises(PlanError, match=complaint):
        plan_of({**plan.document(), **change})


def test_a_plan_names_runs_by_folder_or_path(plan, runs, tmp_path):
    document = plan.document()
    document["cases"][0]["run"] = "one"
    place = tmp_path / "plans"
    place.mkdir()
    (place / "p.json").write_text(json.dumps(document))
    assert read_plan(place / "p.json", {"one": runs["one"]}) == plan
    assert read_plan(place / "p.json").cases[0].run == str(place / "one"), "beside the plan"
    (place / "p.json").write_text("{")
    for name in ("p.json", "absent.json"):
        with pytest.raises(PlanError, match=name):
            read_plan(place / name)


def test_answers_are_kept_once_and_survive_a_half_written_line(plan, tmp_path):
    study = Study.at(tmp_path / "study", plan)
    showings = study.showings("R1")
    assert study.next("R1", showings) == 0
    first = showings[0]
    rows = [row(first.case.id, first.arm, each.id, "yes") for each in first.asked(plan)]
    assert study.append("R1", rows) == len(rows)
    assert study.append("R1", [{**each, "answer": "no"} for each in rows]) == 0
    with (study.folder / "answers-R1.jsonl").open("a") as file:
        file.write('{"case": "b", "half')
    again = Study.at(tmp_path / "study")
    assert again.next("R1", again.showings("R1")) == 1
    assert [each["answer"] for each in again.answers()] == ["yes"] * len(rows)
    last = showings[1]
    again.append("R1", [row(last.case.id, last.arm, each.id) for each in last.asked(plan)])
    assert again.next("R1", showings) == 2
    assert {each["plan"] for each in again.answers("R1")} == {plan.hash[:12]}


def test_plan_and_runs_may_change_until_the_first_answer_only(plan, runs, tmp_path):
    study = Study.at(tmp_path / "study", plan)
    other = replace(plan, seed=5, top=10)
    study = Study.at(study.folder, other)
    assert read_plan(study.folder / "plan.json") == other
    study.append("R1", [row()])
    Study.at(study.folder, other)
    with pytest.raises(PlanError, match=r"seed, top\. Put it back .* another --out"):
        Study.at(study.folder, plan)
    (study.folder / "plan.json").write_text(json.dumps(plan.document()))
    with pytest.raises(PlanError, match="seed"):
        Study.at(study.folder)
    study = Study.at(tmp_path / "second", plan)
    study.append("R1", [row()])
    (runs["one"] / "run.json").write_text("made again")
    with pytest.raises(PlanError, match="the run of a"):
        Study.at(study.folder)


def test_a_folder_of_something_else_and_strange_readers_are_refused(plan, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no reader study"):
        Study.at(tmp_path, plan)
    with pytest.raises(PlanError, match="run folders"):
        Study.at(tmp_path / "new")
    study = Study.at(tmp_path / "study", replace(plan, readers=("A", "B")))
    for name in ("../A", "", "Jane Doe", "a" * 41):
        with pytest.raises(ValueError, match="pseudonym"):
            study.showings(name)
    with pytest.raises(PlanError, match="lists 2 readers"):
        study.showings("C")
    assert study.showings("B") == sequence(study.plan, "B", 1)
    (study.folder / "study.json").write_text("{}")
    with pytest.raises(PlanError, match="damaged"):
        Study.at(study.folder)


def test_a_summary_says_who_noticed_with_an_interval(plan):
    wrong, fits = "it does not fit", "it fits"
    case = replace(plan.cases[0], truth={"abnormal": "yes"})
    plan = replace(plan, cases=(case, plan.cases[1]))
    rows = [row(answer=wrong, reader=f"R{n}", confidence=n) for n in range(1, 4)] + [row(answer=fits, reader="R4")]
    rows += [row(arm="attention", answer=fits), row(arm="none", question="abnormal", answer="no", confidence=None)]
    table = summary(plan, rows)
    found = {line[:2]: dict(zip(table.columns, line, strict=True)) for line in table.rows}
    share, low, high = found["wrong", "fits"]["noticed"]
    assert share == 0.75
    assert (low, high) == pytest.approx((0.3006, 0.9544), abs=1e-3), "Wilson's interval of 3 in 4"
    assert found["wrong", "fits"]["confidence"] == pytest.approx((1 + 2 + 3 + 3) / 4)
    assert found["wrong", "fits"]["readers"] == 4
    assert found["attention", "fits"]["noticed"][0] == 0
    assert found["none", "abnormal"]["correct"][0] == 0
    assert found["none", "abnormal"]["noticed"] is None
    assert found["none", "abnormal"]["seconds"] == 4.0


def test_the_table_joins_answers_with_what_was_looked_at_and_spreadsheets_run_nothing(plan, tmp_path):
    plan = replace(plan, questions=(*plan.questions, Question("more", "More?", "text")))
    study = Study.at(tmp_path / "study", plan)
    study.append(
        "R1",
        [
            row(
                question="more",
                answer='=HYPERLINK("x"),"',
                shown={"recipe": "mean", "word": "effusion", "wrong": "mirror"},
            )
        ],
    )
    study.log("R1", {"reader": "R1", "case": "a", "arm": "wrong"})
    events = [
        [0.5, "voxel", [1, 2, 3]],
        [1.0, "voxel", [2, 2, 3]],
        [1.5, "window", "bone"],
        [2, "hidden", None],
        [5, "shown", None],
    ]
    study.log("R1", {"reader": "R1", "case": "a", "arm": "wrong", "events": [*events, [6, "overlay", False]]})
    (only,) = csv.DictReader(io.StringIO(as_csv(study.table())))
    assert only["answer"].startswith("'=HYPERLINK")
    assert (only["shown_wrong"], only["shown_word"], only["times_opened"]) == ("mirror", "effusion", "1")
    assert (only["slices"], only["windows"], only["seconds_away"], only["overlay_switched"]) == (
        "4",
        "bone",
        "3.0",
        "1",
    )
