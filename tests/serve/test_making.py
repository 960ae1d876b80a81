import asyncio
import threading

import pytest

from voxplain.adapters.toy import ToyAdapter
from voxplain.io import load_run, save_run
from voxplain.serve import generating
from voxplain.serve.jobs import Jobs, Worker
from voxplain.serve.library import Library
from voxplain.studies.explaining import explain

PROMPT = "large left effusion beside pneumothorax"


@pytest.fixture(scope="module")
def model():
    return ToyAdapter()


@pytest.fixture
def maker(tmp_path, model, monkeypatch):
    monkeypatch.setattr(generating, "load", lambda name, device=None: model)
    library = Library([save_run(explain(model, PROMPT, steps=2), tmp_path / "one")])
    return library, generating.Maker(library, "toy", tmp_path / "made")


async def heard(jobs, job):
    return [event async for event in jobs.events(job, pause=0.01)]


def test_a_new_run_is_made_kept_and_served_with_its_progress(maker, tmp_path):
    library, worker = maker
    jobs = Jobs(worker)
    job = jobs.start({"kind": "run", "prompt": "small right effusion", "seed": 3, "steps": 2})
    last = asyncio.run(heard(jobs, job))[-1]
    assert last["run"] in library.ids
    kept = load_run(library.folder(last["run"]))
    assert library.folder(last["run"]).parent == tmp_path / "made"
    assert kept.provenance["seed"] == 3
    assert "mean part 1 of 2" in kept.attributions


@pytest.mark.parametrize(("kind", "word"), [("without", "effusion"), ("swapped", "left")])
def test_an_image_made_again_stands_beside_its_run(maker, kind, word):
    library, worker = maker
    stages = []
    wanted = worker.check({"kind": kind, "run": "one", "word": word})
    assert worker.make(wanted, lambda stage, done, total: stages.append(stage)) == "one"
    (variant,) = library.variants("one")
    assert (variant.kind, variant.word) == (kind, word)
    image, difference = library.variant_samples("one", 0)
    assert image.image.shape == library.load("one").sample.image.shape
    assert difference.image.min() >= 0
    assert stages


def test_a_side_is_swapped_in_its_place_and_case(maker):
    explanation = maker[0].load("one")
    assert generating.changed(explanation, "swapped", "left") == PROMPT.replace("left", "right")
    with pytest.raises(ValueError, match="names no side"):
        generating.changed(explanation, "swapped", "effusion")


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"kind": "shell"},
        {"kind": "run", "prompt": " ", "seed": 0, "steps": 2},
        {"kind": "run", "prompt": "x" * 2001, "seed": 0, "steps": 2},
        {"kind": "run", "prompt": "x", "seed": -1, "steps": 2},
        {"kind": "run", "prompt": "x", "seed": 0, "steps": 10**6},
        {"kind": "run", "prompt": "x", "seed": True, "steps": 2},
        {"kind": "without", "run": "../one", "word": "left"},
        {"kind": "without", "run": "one", "word": "absent"},
        {"kind": "swapped", "run": "one", "word": "large"},
    ],
    ids=str,
)
def test_a_wish_that_cannot_be_is_refused_before_any_work(maker, wanted):
    with pytest.raises(ValueError, match="."):
        Jobs(maker[1]).start(wanted)


class Slow(Worker):
    def __init__(self):
        self.go, self.asked = threading.Event(), threading.Event()

    def check(self, wanted):
        return wanted

    def make(self, wanted, report):
        if wanted.get("fails"):
            raise RuntimeError("no such luck")
        self.asked.set()
        self.go.wait(10)
        report("step", 1, 2)
        return "done"


def test_a_job_is_stopped_at_its_next_step_and_a_failure_is_told():
    slow = Slow()
    jobs = Jobs(slow)
    job = jobs.start({})
    slow.asked.wait(10)
    failing = jobs.start({"fails": True})
    assert jobs.stop(job)
    slow.go.set()
    assert asyncio.run(heard(jobs, job))[-1] == {"stopped": True}
    assert asyncio.run(heard(jobs, failing))[-1] == {"error": "RuntimeError: no such luck"}
    assert not jobs.stop(job)
    assert not jobs.stop("unknown")


def test_too_many_jobs_are_not_taken():
    slow = Slow()
    jobs = Jobs(slow)
    started = [jobs.start({}) for _ in range(4)]
    with pytest.raises(ValueError, match="wait already"):
        jobs.start({})
    slow.go.set()
    for job in started:
        asyncio.run(heard(jobs, job))
