"""Reader studies: who sees which case in which arm and order, what the overlay then is, and what the answers say."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from voxplain.maps import Explanation, Heatmap
from voxplain.metrics.base import Undefined
from voxplain.metrics.statistics import wilson
from voxplain.studies.reader_plan import ARMS, Case, Plan, PlanError, Question
from voxplain.tokens import label
from voxplain.view.tables import Table

Load = Callable[[Case], Explanation]
ALIKE = 0.8  # a wrong map that correlates more than this with the right one is hard to call wrong


@dataclass(frozen=True, slots=True)
class Showing:
    """One case as one reader sees it."""

    case: Case
    arm: str

    def asked(self, plan: Plan) -> list[Question]:
        """The plan's questions that are asked here."""
        return [each for each in plan.questions if each.when == "always" or self.arm != "none"]


def sequence(plan: Plan, reader: str, number: int) -> list[Showing]:
    """What the reader sees, in order. `number` counts the readers from 0 and turns the arms by one each.

    Among as many readers as there are arms each case is seen once in each arm, and each reader sees all arms equally
    often, up to one (a Latin square); cases with an arm of their own stand outside. The order is drawn from the plan's
    seed and the name, unless the plan says "listed". With `repeat` all cases come once before any comes again.
    """
    turning = [case.id for case in plan.cases if case.arm is None]
    random.Random(plan.seed).shuffle(turning)
    place = {name: at for at, name in enumerate(turning)}
    found = []
    for turn in range(len(plan.arms) if plan.repeat else 1):
        block = []
        for case in plan.cases:
            if case.arm is None:
                block.append(Showing(case, plan.arms[(place[case.id] + number + turn) % len(plan.arms)]))
            elif turn == 0:
                block.append(Showing(case, case.arm))
        if plan.order == "random":
            random.Random(f"{plan.seed}/{reader}/{turn}").shuffle(block)
        found += block
    return found


def overlay(plan: Plan, showing: Showing, load: Load) -> tuple[Heatmap | None, dict[str, Any]]:
    """The map that is shown, None in the arm "none", and what it is: recipe, word, whether distinguishable.

    Of a wrong one also which kind of wrong it is and its `likeness`: its correlation with the right map. Raises
    PlanError for a word that is not in the case's prompt, a recipe that the run does not hold, and an empty map.
    """
    case, arm = showing.case, showing.arm
    if arm == "none":
        return None, {}
    explanation = load(case)
    right, recipe = _right(case, arm, explanation)
    facts = {"recipe": recipe, "word": right.label, "distinguishable": explanation.sure(case.word, recipe)}
    shown = right
    if arm == "wrong":
        shown, what = _wrong(plan, case, right, recipe, load)
        there = shown.resize(right.geometry).values
        flat = there.std() == 0
        facts |= {
            **what,
            "likeness": 0.0 if flat else round(float(np.corrcoef(right.values.flat, there.flat)[0, 1]), 3),
        }
    return shown, facts


def check(plan: Plan, load: Load) -> list[str]:
    """Make every overlay that a plan can show: a sentence for each that is doubtful, PlanError for one that fails."""
    notes = []
    for case in plan.cases:
        load(case)
        for arm in dict.fromkeys([case.arm] if case.arm else plan.arms):
            _, facts = overlay(plan, Showing(case, arm), load)
            if facts.get("distinguishable") is False:
                notes.append(f"{case.id}: {case.word!r} is not distinguishable, so its overlay ({arm}) is one of noise")
            if facts.get("likeness", 0) > ALIKE:
                notes.append(f"{case.id}: the wrong overlay is nearly the right one (correlation {facts['likeness']})")
    return notes


def summary(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> Table:
    """For each arm and question: counts, share noticed, share correct (with Wilson intervals), confidence, seconds.

    `rows` are answers as they are logged. `noticed` is the share that chose the question's `notices`: hits in the arm
    "wrong", false alarms elsewhere; `correct` goes by the plan's truth. None where there is nothing to say.
    """
    lines = []
    for arm, question in product(ARMS, plan.questions):
        given = [row for row in rows if row["arm"] == arm and row["question"] == question.id]
        marks = [marked(plan, row) for row in given]
        shares = [_share([mark[name] for mark in marks]) for name in ("noticed", "correct")]
        means = [_mean([row[name] for row in given]) for name in ("confidence", "case_seconds")]
        if given:
            lines.append((arm, question.id, len(given), len({row["reader"] for row in given}), *shares, *means))
    columns = ("arm", "question", "answers", "readers", "noticed", "correct", "confidence", "seconds")
    note = "Wilson intervals take answers as independent, which several of one reader are not quite. Seconds: a case."
    return Table("summary", "Answers by arm", columns, tuple(lines), note)


def marked(plan: Plan, row: Mapping[str, Any]) -> dict[str, Any]:
    """The truth of an answer's question for its case, and whether it is `correct` and has `noticed`; None: unknown."""
    question = next(each for each in plan.questions if each.id == row["question"])
    truth = (plan.case(row["case"]).truth or {}).get(question.id)
    return {
        "truth": truth,
        "correct": None if truth is None else row["answer"] == truth,
        "noticed": None if question.notices is None else row["answer"] == question.notices,
    }


def _right(case: Case, arm: str, explanation: Explanation) -> tuple[Heatmap, str]:
    """The case's map in an arm, and the name of its recipe."""
    known = explanation.attributions
    attention = [
        name for name, each in known.items() if each.recipe.needs_attention and "statistic" not in each.provenance
    ]
    wanted = "effect" if arm == "effect" else "mean" if "mean" in known else next(iter(attention), "mean")
    if wanted not in known:
        raise PlanError(f"{case.id}: its run has no recipe {wanted!r} for the arm {arm!r}; it has {', '.join(known)}")
    return _map(case, case.word, explanation, wanted), wanted


def _map(case: Case, word: str, explanation: Explanation, recipe: str) -> Heatmap:
    try:
        found = explanation.attributions[recipe].word(word)
    except ValueError as error:
        raise PlanError(f"{case.id}: {error}") from error
    if not found.values.max() > max(0.0, found.values.min()):
        raise PlanError(f"{case.id}: the map of {word!r} by {recipe!r} is the same everywhere; choose another word")
    return found


def _wrong(plan: Plan, case: Case, right: Heatmap, recipe: str, load: Load) -> tuple[Heatmap, dict[str, Any]]:
    """A wrong map and what it is: the right one left-right mirrored, or of another word, or of another case."""
    wanted = case.wrong or plan.wrong
    if wanted == "mirror":
        axis = int(np.abs(right.geometry.affine[0, :-1]).argmax())  # the one along which left and right lie
        return replace(right, values=np.flip(right.values, axis).copy()), {"wrong": "mirror"}
    if wanted == "word" or (isinstance(wanted, Mapping) and "word" in wanted):
        word = wanted["word"] if isinstance(wanted, Mapping) else _other_word(case, right, recipe, load(case))
        return _map(case, word, load(case), recipe), {"wrong": "word", "shown_word": word}
    if isinstance(wanted, Mapping):
        other = plan.case(wanted["case"])
    else:
        later = [*plan.cases, *plan.cases][[each.id for each in plan.cases].index(case.id) + 1 :]
        other = next((each for each in later if each.run != case.run), case)
    if other.run == case.run:
        raise PlanError(f"{case.id}: no other run to take a wrong map from; use wrong: mirror, or wrong: word")
    theirs, _ = _right(other, "wrong", load(other))
    geometry = load(case).sample.geometry
    if theirs.values.ndim != geometry.ndim:
        raise PlanError(f"{case.id}: the run of {other.id!r} has other axes; name another case, or use wrong: mirror")
    shown = replace(theirs, geometry=geometry.at(theirs.geometry.shape))  # over the whole field of view
    return shown, {"wrong": "case", "shown_case": other.id, "shown_word": theirs.label}


def _other_word(case: Case, right: Heatmap, recipe: str, explanation: Explanation) -> str:
    """The word of the prompt whose map is least like the right one; one that can be told apart if there is any."""
    rows, prompt = set(explanation.prompt.find(case.word)), explanation.prompt
    names = [label(word) for word in prompt.words if rows.isdisjoint(word.rows)]
    names = [name for name in names if explanation.sure(name, recipe)] or names
    maps = {name: explanation.attributions[recipe].word(name).values for name in names}
    maps = {name: values for name, values in maps.items() if values.std() > 0}
    if not maps:
        raise PlanError(f"{case.id}: its prompt has no other word; use wrong: mirror, or wrong: case")
    return min(maps, key=lambda name: np.corrcoef(right.values.flat, maps[name].flat)[0, 1])


def _share(values: Sequence[bool | None]) -> tuple[float, float | None, float | None] | None:
    known = [value for value in values if value is not None]
    try:
        found = wilson(sum(known), len(known))
    except Undefined:
        return None
    return found.mean, found.low, found.high


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
