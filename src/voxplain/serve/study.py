"""Reader studies on a page: one reader, one case at a time, blinded. What a case is called stays on this side.

The page knows a case by its position in this reader's order. No answer of the server holds an id, a folder, an arm, a
recipe or a seed, nor prompt and word unless the plan says so; overlays are scaled to a maximum of 1.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from voxplain.io.run import RunError
from voxplain.maps import Explanation
from voxplain.serve.describing import describe
from voxplain.serve.guard import Access, Guard
from voxplain.serve.library import Library
from voxplain.serve.packing import map_file, sample_file, to_ras
from voxplain.serve.page import serve_static, text
from voxplain.studies.reader_folder import Study
from voxplain.studies.reader_plan import STEPS, Case, PlanError, Question, answer_problem
from voxplain.studies.readers import Showing, check, overlay

SCRIPTS = ("niivue.umd.js", "volumes.js", "contours.js", "stage.js", "study.js")
STATIC = {
    **{name: "text/javascript" for name in SCRIPTS},
    **{name: "text/css" for name in ("viewer.css", "study.css")},
    "icon.svg": "image/svg+xml",
}
SHOWN = ("shape", "ndim", "unit", "channels", "windows", "ras")  # what the page is told of an image
EVENTS = ("voxel", "plane", "window", "overlay", "answer", "hidden", "shown")
MOST_EVENTS = 20_000
MOST = 512  # voxels along an axis that a browser is ever sent


class Runs:
    """The run of a case, kept in memory as the viewer keeps runs; PlanError for a folder that is no run."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.library, self.given = Library(), set[str]()
        try:
            self.ids = {case.run: self.library.add(Path(case.run)) for case in cases}
        except RunError as error:
            raise PlanError(str(error)) from error

    def __call__(self, case: Case) -> Explanation:
        found = self.library.load(self.ids[case.run])
        if "readout" in found.provenance:  # the image was given to the model, not made by it
            self.given.add(case.run)
        return found


class Session:
    """One reader in front of a study; every overlay of the plan was tried, and `notes` say which are doubtful."""

    def __init__(self, study: Study, reader: str) -> None:
        self.study, self.reader, self.load = study, reader, Runs(study.plan.cases)
        self.notes = check(study.plan, self.load)
        self.showings = study.showings(reader)

    @property
    def position(self) -> int:
        """The first case that is not answered whole."""
        return self.study.next(self.reader, self.showings)

    def facts(self) -> dict[str, Any]:
        """What the page says before any case."""
        plan = self.study.plan
        made = "Some images are synthetic." if self.load.given else "All images are synthetic."
        said = {"title": plan.title, "instructions": plan.instructions, "made": made, "top": plan.top, "steps": STEPS}
        return {**said, "total": len(self.showings), "position": self.position}

    def case(self, showing: Showing) -> dict[str, Any]:
        """What the page may know of a case: how its image lies, whether an overlay is there, what is asked."""
        plan, explanation = self.study.plan, self.load(showing.case)
        image = describe(explanation)["sample"]
        shown, _ = overlay(plan, showing, self.load)
        cells = None
        if shown is not None:
            there = np.linalg.inv(to_ras(shown.geometry)) @ to_ras(explanation.sample.geometry)
            cells = np.round(there[:3], 9).tolist()
        keys = ("id", "text", "kind", "options", "required", "confidence")
        return {
            "image": {key: image[key] for key in SHOWN},
            "cells": cells,
            "questions": [{key: getattr(each, key) for key in keys} for each in showing.asked(plan)],
            "prompt": explanation.prompt.text if plan.show_prompt else None,
            "word": showing.case.word if plan.show_word and shown is not None else None,
        }

    def image(self, showing: Showing, limit: int) -> bytes:
        """The image as NIfTI."""
        return sample_file(self.load(showing.case).sample, limit)[0]

    def overlay(self, showing: Showing) -> bytes | None:
        """The map as NIfTI, its maximum 1, with no word of what it is; None where none is shown."""
        shown, _ = overlay(self.study.plan, showing, self.load)
        if shown is None:
            return None
        shown = replace(shown, values=shown.values / shown.values.max())
        return map_file(shown.values, shown.geometry, {})

    def opened(self, position: int) -> None:
        """Log that the case was put before the reader."""
        self.study.log(self.reader, self._about(position))

    def left(self, position: int, given: Mapping[str, Any]) -> None:
        """Log what was looked at in a case that was left without answers."""
        self.study.log(self.reader, {**self._about(position), "complete": False, "events": events_of(given)})

    def answer(self, position: int, given: Mapping[str, Any]) -> int:
        """Keep the answers to a case; the position that comes next. ValueError for what is no answer.

        A case that was answered already, as from another window, stays as it was.
        """
        showing = self.showings[position]
        answers = given.get("answers")
        if not isinstance(answers, dict):
            raise ValueError("answers are an object by question")
        _, shown = overlay(self.study.plan, showing, self.load)
        whole = {"run": Path(showing.case.run).name, "shown": shown, "case_seconds": _seconds(given.get("seconds"))}
        asked, events = showing.asked(self.study.plan), events_of(given)
        rows = [{**self._about(position), **whole, **_answer(each, answers.get(each.id))} for each in asked]
        if self.study.append(self.reader, rows):
            self.study.log(self.reader, {**self._about(position), "complete": True, "events": events})
        return self.position

    def _about(self, position: int) -> dict[str, Any]:
        showing = self.showings[position]
        return {"reader": self.reader, "position": position, "case": showing.case.id, "arm": showing.arm}


def events_of(given: Mapping[str, Any]) -> list[list[Any]]:
    """The event log of a page: [seconds since the case began, what, value]; ValueError for anything else."""
    events = given.get("events")
    if not isinstance(events, list) or len(events) > MOST_EVENTS:
        raise ValueError(f"events are a list of at most {MOST_EVENTS}")
    for event in events:
        if not (isinstance(event, list) and len(event) == 3 and event[1] in EVENTS):
            raise ValueError(f"an event is [seconds, one of {', '.join(EVENTS)}, value]")
        _seconds(event[0])
        value = event[2]
        voxel = isinstance(value, list) and len(value) == 3 and all(type(each) is int for each in value)
        plain = value is None or isinstance(value, bool) or (isinstance(value, str) and len(value) <= 100)
        if not (voxel if event[1] == "voxel" else plain):
            raise ValueError(f"the value of an event {event[1]!r} is not of its kind")
    return events


def _answer(question: Question, given: Any) -> dict[str, Any]:
    facts = given if isinstance(given, dict) else {}
    answer, sure = facts.get("answer"), facts.get("confidence")
    if isinstance(answer, str) and not answer.strip():
        answer = None
    if problem := answer_problem(question, answer):
        raise ValueError(f"the answer to {question.text!r} {problem}")
    if not question.confidence or answer is None:
        sure = None
    elif not (type(sure) is int and 1 <= sure <= STEPS):
        raise ValueError(f"how sure you are of {question.text!r} is missing")
    seconds = None if answer is None else _seconds(facts.get("seconds"))
    return {"question": question.id, "answer": answer, "confidence": sure, "seconds": seconds}


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not (math.isfinite(value) and 0 <= value < 1e7):
        raise ValueError("seconds are a number from 0 on")
    return round(float(value), 3)


def build_study(session: Session, access: Access) -> Guard:
    """The application of one reader, behind the viewer's guard."""
    from fastapi import FastAPI, HTTPException, Query, Request
    from fastapi.responses import Response

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def current(position: int) -> Showing:
        if position != session.position or position >= len(session.showings):
            raise HTTPException(409, "that case is not the next one; reload the page")
        return session.showings[position]

    async def body(request: Request) -> dict[str, Any]:
        try:
            given = json.loads(await request.body())
        except ValueError as error:
            raise HTTPException(422, "the body is no JSON") from error
        if not isinstance(given, dict):
            raise HTTPException(422, "the body is no JSON object")
        return given

    @app.get("/")
    def page() -> Response:
        return Response(text("study.html"), media_type="text/html")

    serve_static(app, STATIC)

    @app.get("/api/study")
    def study() -> dict[str, Any]:
        return session.facts()

    @app.get("/api/cases/{position}")
    def case(position: int) -> dict[str, Any]:
        facts = session.case(current(position))
        session.opened(position)
        return facts

    @app.get("/api/cases/{position}/image.nii.gz")
    def image(position: int, limit: int = Query(MOST, ge=16, le=MOST)) -> Response:
        return Response(session.image(current(position), limit), media_type="application/gzip")

    @app.get("/api/cases/{position}/overlay.nii.gz")
    def one_overlay(position: int) -> Response:
        content = session.overlay(current(position))
        if content is None:
            raise HTTPException(404, "this case has no overlay")
        return Response(content, media_type="application/gzip")

    @app.post("/api/cases/{position}/answers")
    async def answers(position: int, request: Request) -> dict[str, int]:
        given = await body(request)
        if not 0 <= position <= min(session.position, len(session.showings) - 1):
            raise HTTPException(409, "that case is not the next one; reload the page")
        try:
            return {"position": session.answer(position, given)}
        except PlanError as error:
            raise HTTPException(409, "the plan or a run was changed; this study cannot go on") from error
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    @app.post("/api/cases/{position}/left")
    async def left(position: int, request: Request) -> dict[str, bool]:
        current(position)
        try:
            session.left(position, await body(request))
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return {"kept": True}

    return Guard(app, access)
