"""The server of a reader study: what it tells, what it keeps, what it refuses; and the verb that starts it."""

import csv
import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from synthetic import explained
from typer.testing import CliRunner

from voxplain.cli import app
from voxplain.io import save_run
from voxplain.serve import starting
from voxplain.serve.guard import CSP, LIMIT, Access
from voxplain.studies.reader_folder import Study
from voxplain.studies.reader_plan import ARMS, Case, default_plan

pytest.importorskip("fastapi", reason="the viewer's web server is not installed (voxplain[viewer])")
testclient = pytest.importorskip("starlette.testclient", reason="starlette's test client is not installed")

from voxplain.serve.study import Session, build_study  # noqa: E402

PROMPTS = {"zebra": "Large effusion in the left hilum", "yak": "<b>nodule</b> of the right hilum"}
OURS = {"x-voxplain": "1"}
HOME = "http://127.0.0.1:8766"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("cases")
    return {name: save_run(explained(text=text), place / name) for name, text in PROMPTS.items()}


@pytest.fixture
def plan(runs):
    cases = [Case("marmot", str(runs["zebra"]), "effusion"), Case("lynx", str(runs["yak"]), "nodule")]
    return replace(default_plan(cases), seed=987654321)


def client(session, access=None):
    guarded = build_study(session, access or Access(port=8766))

    async def application(scope, receive, send):
        await guarded(scope, receive, send)

    return testclient.TestClient(application, base_url=HOME)


def filled(case, **more):
    """Answers that pass, to all questions of a case."""
    answers = {each["id"]: {"answer": (each["options"] or ["-"])[-1], "seconds": 1.5} for each in case["questions"]}
    for each in case["questions"]:
        answers[each["id"]] |= {"confidence": 4} if each["confidence"] else {}
    return {"answers": answers, "seconds": 3.25, "events": [[0, "window", "lung"], [1, "voxel", [1, 2, 3]]], **more}


def everything(asking):
    """All that the server sends of a whole study, answered on the way: texts and unpacked bytes, addresses, headers."""
    facts, sent = asking.get("/api/study"), []
    sent.append(facts)
    for position in range(facts.json()["total"]):
        sent.append(asking.get(f"/api/cases/{position}"))
        parts = ["image", "overlay"] if sent[-1].json()["cells"] else ["image"]
        case = sent[-1].json()
        sent += [asking.get(f"/api/cases/{position}/{part}.nii.gz") for part in parts]
        sent.append(asking.post(f"/api/cases/{position}/answers", json=filled(case), headers=OURS))
    assert {each.status_code for each in sent} == {200}
    for each in sent:
        packed = each.content[:2] == b"\x1f\x8b"
        told = {name: value for name, value in each.headers.items() if name != "content-security-policy"}
        yield (gzip.decompress(each.content) if packed else each.content), str(each.url), str(told)


def test_nothing_that_the_page_receives_tells_what_a_case_is(plan, runs, tmp_path):
    cases = (*plan.cases, replace(plan.cases[0], id="stoat"))
    cases = tuple(replace(case, wrong=wrong) for case, wrong in zip(cases, ("mirror", "case", "word"), strict=True))
    plan = replace(plan, cases=cases, repeat=True)  # every case in every arm
    sent = list(everything(client(Session(Study.at(tmp_path / "study", plan), "R1"))))
    assert len(sent) == 1 + 12 * 3 + 9, "three of twelve have no overlay"
    words = " ".join(PROMPTS.values()).replace("<b>", "").replace("</b>", "").split()
    secret = {*runs, "marmot", "lynx", "stoat", *ARMS, "mean", "mirror", "R1", "987654321", str(tmp_path)}
    secret |= {word for word in words if len(word) > 3} | {plan.hash[:12], "truth", "seed", "recipe", "likeness"}
    for content, url, headers in sent:
        for name in secret:
            for place in (content.decode("latin-1"), url, headers):
                assert name not in place, f"{name!r} in {url}"
    kept = Study.at(tmp_path / "study").answers()
    assert {row["arm"] for row in kept} == set(ARMS), "what was shown is kept on this side"
    shown = {row["case"]: row["shown"]["wrong"] for row in kept if row["arm"] == "wrong"}
    assert shown == {"marmot": "mirror", "lynx": "case", "stoat": "word"}


def test_prompt_and_word_are_told_where_the_plan_says_so(plan, tmp_path):
    plan = replace(plan, show_prompt=True, show_word=True, order="listed")
    asking = client(Session(Study.at(tmp_path / "study", plan), "R1"))
    case = asking.get("/api/cases/0").json()
    assert (case["prompt"], case["word"]) == (PROMPTS["zebra"], "effusion")


def test_overlays_give_no_scale_away(plan, tmp_path):
    session = Session(Study.at(tmp_path / "study", replace(plan, repeat=True)), "R1")
    for showing in session.showings:
        content = session.overlay(showing)
        assert (content is None) == (showing.arm == "none")
        if content:
            assert b'"maximum": 1.0' in gzip.decompress(content)


def test_a_closed_browser_and_a_killed_server_lose_no_answer(plan, tmp_path):
    folder = tmp_path / "study"
    asking = client(Session(Study.at(folder, plan), "R1"))
    case = asking.get("/api/cases/0").json()
    assert asking.post("/api/cases/0/answers", json=filled(case), headers=OURS).json() == {"position": 1}
    asking.get("/api/cases/1")
    left = {"events": [[0.5, "plane", "axial"]]}
    assert asking.post("/api/cases/1/left", json=left, headers=OURS).status_code == 200
    again = client(Session(Study.at(folder), "R1"))
    assert again.get("/api/study").json()["position"] == 1
    case = again.get("/api/cases/1").json()
    assert again.post("/api/cases/1/answers", json=filled(case), headers=OURS).json() == {"position": 2}
    assert again.get("/api/study").json()["position"] == 2
    assert again.get("/api/cases/2").status_code == 409
    events = [json.loads(line) for line in (folder / "events-R1.jsonl").read_text().splitlines()]
    assert [each.get("complete") for each in events] == [None, True, None, False, None, True]
    second = client(Session(Study.at(folder), "R2"))
    assert second.get("/api/study").json()["position"] == 0, "readers are apart"


def test_the_same_reader_twice_at_once_leaves_one_row_a_question(plan, tmp_path):
    sessions = [Session(Study.at(tmp_path / "study", plan), "R1") for _ in range(2)]
    case = client(sessions[0]).get("/api/cases/0").json()
    with ThreadPoolExecutor(8) as pool:
        given = [pool.submit(sessions[n % 2].answer, 0, filled(case)) for n in range(8)]
        assert {each.result() for each in given} == {1}
    rows = sessions[0].study.answers()
    assert len(rows) == len(case["questions"]) == len({row["question"] for row in rows})


def test_only_the_case_at_hand_is_served_and_answers_are_checked(plan, tmp_path):
    asking = client(Session(Study.at(tmp_path / "study", plan), "R1"))
    for path in ("/api/cases/1", "/api/cases/1/image.nii.gz", "/api/cases/-1", "/api/cases/99/overlay.nii.gz"):
        assert asking.get(path).status_code == 409
    for path in ("/api/cases/x", "/static/..%2fstudy.py", "/static/viewer.html", "/docs", "/api/runs"):
        assert asking.get(path).status_code in (404, 422)
    case = asking.get("/api/cases/0").json()
    good, where = filled(case), "/api/cases/0/answers"
    abnormal = good["answers"]["abnormal"]

    def status(**change):
        return asking.post(where, json={**good, **change}, headers=OURS).status_code

    for wrong in ({"answer": "perhaps"}, {"answer": None}, {"confidence": None}, {"confidence": 9}, {"seconds": -1}):
        assert status(answers={**good["answers"], "abnormal": {**abnormal, **wrong}}) == 422
    for change in ({"answers": []}, {"seconds": "1"}, {"events": [[0, "other", 1]]}, {"events": [[0, "voxel", 1]]}):
        assert status(**change) == 422
    assert asking.post(where, content=b"{", headers=OURS).status_code == 422
    assert asking.post("/api/cases/1/answers", json=good, headers=OURS).status_code == 409
    assert asking.post(where, json=good).status_code == 403, "another site's page"
    assert asking.post(where, content=b"0" * (LIMIT + 1), headers=OURS).status_code == 413
    assert asking.get("/", headers={"host": "evil.example"}).status_code == 421
    assert asking.get("/").headers["content-security-policy"] == CSP
    assert Study.at(tmp_path / "study").answers() == []
    assert status() == 200


def test_answers_to_a_plan_that_changed_meanwhile_are_refused(plan, runs, tmp_path):
    session = Session(Study.at(tmp_path / "study", plan), "R1")
    Study.at(tmp_path / "study", replace(plan, top=50)).agree()
    asking = client(session)
    answer = asking.post("/api/cases/0/answers", json=filled(asking.get("/api/cases/0").json()), headers=OURS)
    assert answer.status_code == 409
    assert "zebra" not in answer.text


@pytest.fixture
def started(monkeypatch):
    """What would have been served, instead of serving it."""
    seen = {}

    def serve(build, listening, access, ready):
        listening.close()
        seen.update(access=access, built=build(access))
        ready(access.url)

    monkeypatch.setattr(starting, "run", serve)
    return seen


def call(*arguments):
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


def test_the_verb_writes_a_plan_serves_it_and_exports(started, plan, runs, tmp_path):
    folder = tmp_path / "study"
    made = call(runs["zebra"].parent, "--out", folder, "--no-open", "--port", 0)
    assert made.exit_code == 0, made.stderr
    assert f"wrote {folder / 'plan.json'}" in made.stderr
    assert "0 of 2 cases answered" in made.stderr
    assert started["access"].token is None
    assert call("--out", folder, "--export", tmp_path / "a.csv").exit_code == 2, "no answers yet"
    (tmp_path / "own.json").write_text(json.dumps(plan.document()).replace(str(runs["yak"]), "yak"))
    assert call(runs["yak"], "--out", folder, "--plan", tmp_path / "own.json", "--no-open", "--port", 0).exit_code == 0
    session = Session(Study.at(folder), "R1")
    assert session.study.plan == plan
    list(everything(client(session)))
    again = call("--out", folder, "--no-open", "--port", 0)
    assert "2 of 2 cases answered" in again.stderr
    exported = call("--out", folder, "--export", tmp_path / "a.csv")
    assert exported.exit_code == 0, exported.stderr
    assert "noticed" in exported.stdout
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert len(rows) == len(session.study.answers())
    assert {row["case"] for row in rows} == {"marmot", "lynx"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "holds none"),
        ([], "name the run folders"),
        (["zebra", "--plan", "absent.json"], "does not exist"),
        (["zebra", "--reader", "Jane Doe"], "pseudonym"),
        (["zebra", "--out", "."], "holds no reader study"),
        (["--export", "a.csv"], "holds no reader study"),
    ],
)
def test_bad_input_is_said_in_one_line(started, runs, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(runs["zebra"].parent)
    made = call(*arguments, *([] if "--out" in arguments else ["--out", tmp_path / "study"]), "--no-open", "--port", 0)
    assert made.exit_code == 2
    assert said in made.stderr
    assert not started
