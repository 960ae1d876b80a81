"""The plan of a reader study: JSON that fixes cases, arms, order, seed and questions. Every key is checked by name."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args

ARMS = ("none", "attention", "effect", "wrong")
WRONG = ("mirror", "word", "case")
KINDS = ("choice", "scale", "text")
STEPS = 5  # of a scale, and of confidence
SCHEMA = 1


class PlanError(ValueError):
    """A plan that cannot be followed: the message names the place in it and what to do."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of each case: `choice` of `options`, `scale` of 1 to 5 between two `options`, or free `text`.

    `when` "overlay" leaves it out where none is shown. `notices` is the option that says that the overlay is wrong.
    """

    id: str
    text: str
    kind: str
    options: tuple[str, ...] = ()
    required: bool = True
    confidence: bool = True
    when: str = "always"
    notices: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A run folder and the word whose map is laid over it; `truth` holds right answers by question.

    `arm` fixes the arm for every reader; `wrong` is the study's, or {"word": WORD}, or {"case": ID}.
    """

    id: str
    run: str
    word: str
    arm: str | None = None
    wrong: str | Mapping[str, str] | None = None
    truth: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole study. `repeat` shows each case in every arm to every reader; otherwise each reader sees it once.

    `readers`, where given, are the only ones, and their order is that of the rotation of arms.
    """

    seed: int
    cases: tuple[Case, ...]
    questions: tuple[Question, ...]
    arms: tuple[str, ...] = ARMS
    title: str = "Reader study"
    instructions: str = ""
    order: str = "random"
    repeat: bool = False
    wrong: str = "mirror"
    show_prompt: bool = False
    show_word: bool = False
    top: float = 25
    readers: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The plan as JSON holds it."""
        return {"voxplain_study": SCHEMA, **json.loads(json.dumps(asdict(self)))}

    @property
    def hash(self) -> str:
        """SHA-256 of the document; equal plans have equal ones, however they are laid out."""
        return hashlib.sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()

    def case(self, name: str) -> Case:
        """The case of that id; PlanError if there is none."""
        for case in self.cases:
            if case.id == name:
                return case
        raise PlanError(f"there is no case {name!r}; there are {', '.join(case.id for case in self.cases)}")


QUESTIONS = (
    Question("abnormal", "Is there anything abnormal in this image?", "choice", ("yes", "no")),
    Question(
        "fits",
        "Does the overlay fit the image?",
        "choice",
        ("it fits", "it does not fit"),
        when="overlay",
        notices="it does not fit",
    ),
    Question("remark", "Remarks (may stay empty)", "text", required=False, confidence=False),
)


def default_plan(cases: Sequence[Case], arms: Sequence[str] = ARMS) -> Plan:
    """Two questions and a remark over every case, arms taking turns; to be edited before the first answer."""
    said = "Scroll through the image, answer the questions, and say how sure you are. There is no way back."
    return Plan(seed=1, cases=tuple(cases), questions=QUESTIONS, arms=tuple(arms), instructions=said)


def read_plan(path: Path, runs: Mapping[str, Path] | None = None) -> Plan:
    """The plan in a JSON file. A case's `run` is a name of `runs`, or a path (from the plan's folder if relative)."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlanError(f"{path} does not exist; give a plan as JSON, or none to have one written") from None
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} is no JSON: {error}; mend it, or start without it to have one written") from error
    try:
        plan = plan_of(document)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error
    found = {name: str(place.resolve()) for name, place in (runs or {}).items()}
    beside = path.resolve().parent
    cases = [replace(case, run=found.get(case.run) or str((beside / case.run).resolve())) for case in plan.cases]
    return replace(plan, cases=tuple(cases))


def plan_of(document: Any) -> Plan:
    """The plan that a JSON document holds; PlanError names the first place that is wrong."""
    if not isinstance(document, dict) or document.get("voxplain_study") != SCHEMA:
        raise PlanError(f'expected an object with "voxplain_study": {SCHEMA}; is this a plan of a reader study?')
    plan: Plan = _made(Plan, {key: value for key, value in document.items() if key != "voxplain_study"}, "plan")
    for name, ids in (("cases", [each.id for each in plan.cases]), ("questions", [each.id for each in plan.questions])):
        if not ids or len({*ids}) < len(ids):
            raise PlanError(f"{name} need one at least, each with an id of its own, but are {ids}")
    _one_of(plan.order, ("random", "listed"), "order")
    _one_of(plan.wrong, WRONG, "wrong")
    if not plan.arms:
        raise PlanError(f"arms are empty; take some of {', '.join(ARMS)}")
    for n, arm in enumerate(plan.arms):
        _one_of(arm, ARMS, f"arms[{n}]")
    if plan.repeat and len({*plan.arms}) < len(plan.arms):
        raise PlanError(
            f"arms are {list(plan.arms)}; with repeat each case is shown once an arm, so name each one once"
        )
    if not 0 < plan.top <= 100:
        raise PlanError(f"top is {plan.top}; it is the shown percentage of a map, above 0 and at most 100")
    for n, question in enumerate(plan.questions):
        _check_question(question, f"plan.questions[{n}]")
    for n, case in enumerate(plan.cases):
        _check_case(plan, case, f"plan.cases[{n}]")
    return plan


def answer_problem(question: Question, answer: Any) -> str | None:
    """What is wrong with an answer, as the end of a sentence; None for a good one. Null is no answer."""
    if answer is None:
        return "is missing" if question.required else None
    if question.kind == "choice":
        return None if answer in question.options else f"is none of {', '.join(question.options)}"
    if question.kind == "scale":
        good = type(answer) is int and 1 <= answer <= STEPS
        return None if good else f"is no whole number from 1 to {STEPS}"
    good = isinstance(answer, str) and len(answer) <= 4000 and (bool(answer.strip()) or not question.required)
    return None if good else "is no text of 1 to 4000 characters"


def _check_question(question: Question, where: str) -> None:
    _one_of(question.kind, KINDS, f"{where}.kind")
    _one_of(question.when, ("always", "overlay"), f"{where}.when")
    few = {"choice": len(question.options) < 2, "scale": len(question.options) != 2, "text": bool(question.options)}
    if few[question.kind]:
        need = {"choice": "two or more", "scale": "two, for its low and high end", "text": "none"}[question.kind]
        raise PlanError(f"{where}.options: a {question.kind} has {need}, but here are {list(question.options)}")
    if question.notices is not None:
        if question.kind != "choice":
            raise PlanError(f"{where}.notices is for questions of kind 'choice', not {question.kind!r}")
        _one_of(question.notices, question.options, f"{where}.notices")


def _check_case(plan: Plan, case: Case, where: str) -> None:
    if case.arm is not None:
        _one_of(case.arm, ARMS, f"{where}.arm")
    if isinstance(case.wrong, str):
        _one_of(case.wrong, WRONG, f"{where}.wrong")
    elif case.wrong is not None and (
        {*case.wrong} not in ({"word"}, {"case"}) or {*map(type, case.wrong.values())} != {str}
    ):
        raise PlanError(
            f'{where}.wrong is {case.wrong}; expected {", ".join(WRONG)}, {{"word": ...}} or {{"case": ...}}'
        )
    for name, answer in (case.truth or {}).items():
        question = next((each for each in plan.questions if each.id == name), None)
        if question is None:
            raise PlanError(f"{where}.truth names {name!r}, which is no question's id")
        if problem := answer_problem(question, answer):
            raise PlanError(f"{where}.truth of {name!r} {problem}")


def _one_of(value: str, known: Sequence[str], where: str) -> None:
    if value not in known:
        raise PlanError(f"{where} is {value!r}; it can be {', '.join(known)}")


TYPES: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    bool: (bool,),
    float: (int, float),
    str | None: (str, NoneType),
    Mapping[str, Any] | None: (dict, NoneType),
    str | Mapping[str, str] | None: (str, dict, NoneType),
}
NAMES = {
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    float: "a number",
    dict: "an object",
    list: "a list",
}


def _made(kind: Any, given: Any, where: str) -> Any:
    """A dataclass from an object with its fields as keys; each value is checked against the field's type."""
    if not isinstance(given, dict):
        raise PlanError(f"{where} is {given!r}; expected an object")
    known = {each.name: each for each in fields(kind)}
    if unknown := sorted(given.keys() - known.keys()):
        raise PlanError(f"{where} has an unknown key {unknown[0]!r}; it can have {', '.join(known)}")
    needed = [name for name, each in known.items() if each.default is MISSING]
    if missing := [name for name in needed if name not in given]:
        raise PlanError(f"{where} has no {missing[0]!r}; it needs {', '.join(needed)}")
    return kind(**{name: _value(known[name].type, value, f"{where}.{name}") for name, value in given.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    allowed = TYPES.get(kind, (list,))  # whatever is none of those is a tuple of texts or of objects
    if type(value) not in allowed:
        raise PlanError(f"{where} is {value!r}; expected {' or '.join(NAMES.get(each, 'null') for each in allowed)}")
    if not isinstance(value, list):
        return value
    inner = get_args(kind)[0]
    make = _value if inner is str else _made
    return tuple(make(inner, each, f"{where}[{n}]") for n, each in enumerate(value))
