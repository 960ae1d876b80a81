"""A run that is cut short anywhere goes on as if nothing had happened, and no case is computed twice."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from voxplain import runner
from voxplain.datasets.base import Faulty, RuleWarning
from voxplain.metrics import Undefined

CASES = [(f"case-{number}", number) for number in range(6)]


def doubling(calls, number):
    calls.append(number)
    if number == 4:
        raise ValueError("four is not liked, says /home/someone")
    return {"value": 2 * number}


@pytest.fixture
def modes(monkeypatch):
    """The mode of each file that is put in its place, from when its first byte was written."""
    seen = {}
    path_type = type(Path())
    replace = path_type.replace

    def watched(self, target):
        seen[target.name] = self.stat().st_mode & 0o777
        return replace(self, target)

    monkeypatch.setattr(path_type, "replace", watched)
    return seen


def prepared(calls, made=None):
    def prepare():
        if made is not None:
            made.append("worker")
        return partial(doubling, calls)

    return prepare


def rows_of(path):
    return [{name: row[name] for name in row if name != "seconds"} for row in runner.read_rows(path)]


EXPECTED = [
    {"case": "case-4", "failed": "ValueError: four is not liked, says /home/someone"}
    if number == 4
    else {"case": name, "value": 2 * number}
    for name, number in CASES
]


def test_each_case_has_one_row_and_a_failed_one_says_why(tmp_path):
    calls, made, seen = [], [], []
    path = runner.run(CASES, prepared(calls, made), tmp_path / "rows.jsonl", progress=lambda *at: seen.append(at))
    assert rows_of(path) == EXPECTED
    assert made == ["worker"]
    assert [at[:2] for at in seen] == [(number, 6) for number in range(7)]
    assert seen[-1][2] == 0 and all(at[2] >= 0 for at in seen)


@pytest.mark.parametrize("size", range(0, 400, 7))
def test_a_file_cut_anywhere_is_completed_without_doubling(tmp_path, size):
    path = runner.run(CASES, prepared([]), tmp_path / "rows.jsonl")
    content = path.read_bytes()
    path.write_bytes(content[:size])
    whole = content[:size].count(b"\n")
    calls = []
    runner.run(CASES, prepared(calls), path)
    assert rows_of(path) == EXPECTED
    assert calls == list(range(whole, 6))


def test_an_interrupted_run_keeps_what_it_has_and_goes_on(tmp_path):
    path = tmp_path / "rows.jsonl"

    def work(number):
        if number == 3:
            raise KeyboardInterrupt
        return {"value": 2 * number}

    with pytest.raises(KeyboardInterrupt):
        runner.run(CASES, lambda: work, path)
    calls = []
    runner.run(CASES, prepared(calls), path)
    assert calls == [3, 4, 5] and rows_of(path) == EXPECTED


def test_a_finished_run_makes_no_worker(tmp_path):
    path = runner.run(CASES, prepared([]), tmp_path / "rows.jsonl")
    runner.run(CASES, lambda: pytest.fail("nothing was left to do"), path)


def test_failed_cases_are_taken_up_again_only_when_asked(tmp_path):
    path, calls = tmp_path / "rows.jsonl", []
    runner.run(CASES, prepared([]), path)
    runner.run(CASES, prepared(calls), path)
    assert calls == []
    runner.run(CASES, lambda: lambda number: {"value": 2 * number}, path, retry=True)
    assert sorted(row["case"] for row in runner.read_rows(path)) == [name for name, _ in CASES]
    assert not any("failed" in row for row in runner.read_rows(path))


def test_rows_that_are_kept_are_not_held_in_memory(tmp_path, monkeypatch):
    write, kinds = runner.write_file, []

    def watched(path, content, **options):
        kinds.append(isinstance(content, Iterator))
        write(path, content, **options)

    path = runner.run(CASES, prepared([]), tmp_path / "rows.jsonl")
    path.chmod(0o640)
    monkeypatch.setattr(runner, "write_file", watched)
    runner.run(CASES, prepared([]), path, retry=True)
    assert kinds == [True] and [row["case"] for row in runner.read_rows(path)][-1] == "case-4"
    assert path.stat().st_mode & 0o777 == 0o640


def test_rows_of_other_settings_are_never_mixed(tmp_path):
    path = runner.run(CASES[:2], prepared([]), tmp_path / "rows.jsonl", about={"model": "a", "steps": 4})
    runner.run(CASES, prepared([]), path, about={"model": "a", "steps": 4})
    assert runner.read_about(path) == {"model": "a", "steps": 4}
    with pytest.raises(ValueError, match="model was 'a' and is 'b'"):
        runner.run(CASES, prepared([]), path, about={"model": "b", "steps": 4})
    (tmp_path / "rows.about.json").unlink()
    with pytest.raises(ValueError, match="nobody can say"):
        runner.run(CASES, prepared([]), path, about={"model": "a", "steps": 4})


def test_rows_begun_anew_hold_nothing_of_before(tmp_path):
    path = runner.run(CASES, prepared([]), tmp_path / "rows.jsonl", about={"model": "a"})
    path.write_bytes(path.read_bytes() + b"rubbish\n\n")
    calls = []
    runner.run(CASES[:2], prepared(calls), path, about={"model": "b"}, anew=True)
    assert calls == [0, 1] and rows_of(path) == EXPECTED[:2] and runner.read_about(path) == {"model": "b"}


def test_rows_that_another_process_writes_are_not_begun_anew(tmp_path):
    path = runner.run(CASES, prepared([]), tmp_path / "rows.jsonl", about={"model": "a"})
    with runner._locked(path), pytest.raises(BlockingIOError):
        runner.run(CASES, prepared([]), path, about={"model": "b"}, anew=True)
    assert rows_of(path) == EXPECTED and runner.read_about(path) == {"model": "a"}


def test_text_that_is_no_unicode_is_kept_as_it_is(tmp_path):
    text = os.fsdecode(b"/films/\xff \xc3\xa4.png")
    cases = [(text, 1), ("next", 2)]

    def work(number):
        if number == 2:
            raise ValueError(text)
        return {"path": text, text: [text]}

    path = runner.run(cases, lambda: work, tmp_path / "rows.jsonl", about={"data": text})
    first, second = rows_of(path)
    assert first == {"case": text, "path": text, text: [text]} and second["failed"] == f"ValueError: {text}"
    assert runner.read_about(path) == {"data": text} and "ä".encode() in path.read_bytes()
    runner.run(cases, lambda: pytest.fail("nothing was left to do"), path, about={"data": text})


def test_files_of_one_stem_would_share_what_lies_beside_them_and_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"r\.one: .* ends in \.jsonl"):
        runner.run(CASES, prepared([]), tmp_path / "r.one")
    assert not list(tmp_path.iterdir())


def test_only_reasons_of_our_own_are_quoted(tmp_path):
    def work(number):
        if number == 0:
            b"\xff".decode()
        raise Faulty("a box leaves the image", "record 'Jane': box (1, 2, 3, 4) leaves the image")

    for private in (False, True):
        path = runner.run(CASES[:2], lambda: work, tmp_path / f"{private}.jsonl", private=private)
        first, second = (row["failed"] for row in runner.read_rows(path))
        assert first.startswith("UnicodeDecodeError") and (first == "UnicodeDecodeError") is private
        assert second == "a box leaves the image"


def test_private_rows_are_for_their_owner_and_quote_no_message(tmp_path, modes):
    def work(number):
        if number == 1:
            raise Undefined("the truth is empty")
        return doubling([], number)

    path = runner.run(CASES, lambda: work, tmp_path / "rows.jsonl", private=True)
    assert [row["failed"] for row in runner.read_rows(path) if "failed" in row] == ["the truth is empty", "ValueError"]
    assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "rows.about.json").stat().st_mode & 0o077 == 0
    runner.run(CASES, lambda: work, path, private=True, retry=True)
    assert modes == {"rows.about.json": 0o600, "rows.jsonl": 0o600}  # from the first byte on


@pytest.mark.parametrize(
    ("row", "reason"),
    [({"case": "x"}, "may not have a column case"), ({"value": float("nan")}, "not JSON compliant"), (3, "TypeError")],
)
def test_a_row_that_cannot_be_written_is_a_failed_one(tmp_path, row, reason):
    path = runner.run(CASES[:1], lambda: lambda number: row, tmp_path / "rows.jsonl")
    (made,) = runner.read_rows(path)
    assert reason in made["failed"]


def test_wrong_use_is_refused_before_anything_runs(tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match="case-0"):
        runner.run([*CASES, CASES[0]], prepared([]), path)
    for options in ({"executor": "threads"}, {"workers": 2}, {"executor": "ray", "workers": 0}):
        with pytest.raises(ValueError, match="give 'serial' with 1, or 'ray'"):
            runner.run(CASES, prepared([]), path, **options)
    assert not path.exists()


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = runner.run(CASES, prepared([]), tmp_path / "rows.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"rubbish\n" + lines[1])
    with pytest.raises(ValueError, match="line 2 is no row"):
        runner.run(CASES, prepared([]), path)


def test_only_one_process_writes_at_a_time(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = (
        "import fcntl, sys\n"
        f"file = open({str(path.with_suffix('.lock'))!r}, 'ab')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match="another process writes"):
            runner.run(CASES, prepared([]), path)
        holder.stdin.close()
    assert rows_of(runner.run(CASES, prepared([]), path)) == EXPECTED


# Ray ------------------------------------------------------------------------------------------------------------------


DEATHS = {name: type(name, (Exception,), {}) for name in runner.DEATHS}


def pretended(log, *, cpus=2, dies=(), death="RayActorError", stillborn=()):
    """What the runner uses of Ray, in one process; the workers of the cases in `dies` die on them.

    The workers of the numbers in `stillborn` die while they are made.
    """

    class Method:
        def __init__(self, function, number):
            self.function, self.number, self.dead = function, number, number in stillborn

        def remote(self, *arguments):
            if (arguments[:1] and arguments[0] in dies) or self.dead:
                return ("died", self.number, *arguments[:1])
            return ("done", self.number, json.dumps(self.function(*arguments)))

    class Actor:
        def __init__(self, kind, prepare):
            made = kind(prepare)
            number = log.count("worker")
            log.append("worker")
            self.ready, self.attempt = Method(made.ready, number), Method(made.attempt, number)

    def get(reference):
        if reference[0] == "died":
            raise DEATHS[death]
        return json.loads(reference[2])

    fake = ModuleType("ray")
    fake.__dict__.update(
        is_initialized=lambda: False,
        init=lambda **options: log.append(options),
        cluster_resources=lambda: {"CPU": cpus},
        remote=lambda **options: lambda kind: SimpleNamespace(remote=lambda prepare: Actor(kind, prepare)),
        get=get,
        wait=lambda references, num_returns: (references[-1:], references[:-1]),
        kill=lambda actor: log.append("killed"),
        shutdown=lambda: log.append("shut down"),
        exceptions=SimpleNamespace(**DEATHS),
    )
    return fake


def test_ray_is_asked_for_by_name_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'voxplain\[ray\]'"):
        runner.run(CASES, prepared([]), tmp_path / "rows.jsonl", executor="ray")


@pytest.mark.parametrize("death", runner.DEATHS)
def test_ray_gives_the_same_rows_with_one_preparation_a_worker(tmp_path, monkeypatch, death):
    log = []
    monkeypatch.setitem(sys.modules, "ray", pretended(log, dies=("case-2",), death=death))
    path = runner.run(CASES, prepared([]), tmp_path / "rows.jsonl", executor="ray", workers=2)
    expected = [row if row["case"] != "case-2" else {"case": "case-2", "failed": "the worker died"} for row in EXPECTED]
    assert sorted(rows_of(path), key=lambda row: row["case"]) == expected
    assert log.count("worker") == 3  # two, and one for the worker that died
    assert log[0] == {
        "address": "local", "num_cpus": 2, "include_dashboard": False, "log_to_driver": False,
        "object_store_memory": runner.OBJECTS,
    }  # fmt: skip
    assert log[-1] == "shut down" and log.count("killed") == 3


@pytest.mark.parametrize(("number", "kept"), [(0, 0), (2, 1)])
def test_a_worker_that_cannot_be_made_ends_the_run_and_not_its_cases(tmp_path, monkeypatch, number, kept):
    log = []
    monkeypatch.setitem(sys.modules, "ray", pretended(log, dies=("case-0",), stillborn=(number,)))
    path = tmp_path / "rows.jsonl"
    with pytest.raises(ChildProcessError, match="could not be made"):
        runner.run(CASES, prepared([]), path, executor="ray", workers=2 if number == 2 else 1)
    assert [row["case"] for row in runner.read_rows(path) if row.get("failed") == "the worker died"] == [
        "case-0"
    ] * kept
    assert log[-1] == "shut down"


def test_a_death_at_the_very_end_makes_no_other_worker(tmp_path, monkeypatch):
    log = []
    monkeypatch.setitem(sys.modules, "ray", pretended(log, dies=("case-5",)))
    runner.run(CASES, prepared([]), tmp_path / "rows.jsonl", executor="ray")
    assert log.count("worker") == 1


def test_private_cases_on_a_cluster_are_warned_of(tmp_path, monkeypatch, recwarn):
    monkeypatch.setitem(sys.modules, "ray", pretended([]))
    for address in (None, "local"):
        runner.run(CASES, prepared([]), tmp_path / f"{address}.jsonl", executor="ray", private=True, address=address)
    with pytest.warns(RuleWarning, match="cluster at there:1. Credentialed data"):
        runner.run(CASES, prepared([]), tmp_path / "a.jsonl", executor="ray", private=True, address="there:1")


def test_workers_that_would_wait_forever_are_refused(tmp_path, monkeypatch):
    log = []
    monkeypatch.setitem(sys.modules, "ray", pretended(log, cpus=1))
    with pytest.raises(ValueError, match="need 2 CPU, but Ray has 1"):
        runner.run(CASES, prepared([]), tmp_path / "rows.jsonl", executor="ray", workers=2, address="here:1")
    assert log == [{"address": "here:1", "log_to_driver": False}, "shut down"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (voxplain[ray])")
def test_real_ray_gives_the_same_rows(tmp_path):
    def prepare():
        def work(number):  # nothing of this file, which workers cannot import
            if number == 4:
                raise ValueError("four is not liked, says /home/someone")
            return {"value": 2 * number, "process": os.getpid()}

        return work

    path = runner.run(CASES, prepare, tmp_path / "rows.jsonl", executor="ray", workers=2)
    rows = sorted(rows_of(path), key=lambda row: row["case"])
    processes = {row.pop("process") for row in rows if "process" in row}
    assert rows == EXPECTED
    assert os.getpid() not in processes and len(processes) == 2
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (voxplain[ray])")
def test_a_real_worker_that_dies_costs_its_case_and_one_that_cannot_be_replaced_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # nobody is there, and nobody is asked
    mark = tmp_path / "made"

    def prepare():
        if mark.exists():
            os._exit(1)
        mark.touch()

        def work(number):
            if number == 2:
                os._exit(1)
            return {"value": 2 * number}

        return work

    path = tmp_path / "rows.jsonl"
    with pytest.raises(ChildProcessError, match="could not be made"):
        runner.run(CASES, prepare, path, executor="ray")
    assert rows_of(path) == [*EXPECTED[:2], {"case": "case-2", "failed": "the worker died"}]
