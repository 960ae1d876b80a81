"""One function over many cases: a row each in a file of JSON lines, which a kill at any moment leaves fit to go on.

A row holds the case, the seconds it took, and what the function gave, or why it failed. Beside the file lies what the
rows were made with, so rows of other settings are never mixed in. A worker is made once: its models are loaded once.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from voxplain.io.folders import write_file

Row = dict[str, Any]
Work = Callable[[Any], Mapping[str, Any]]  # a case's payload -> its row
Prepare = Callable[[], Work]  # called once a worker, where it runs
Cases = Sequence[tuple[str, Any]]  # (id, payload); light payloads, such as numbers, keep memory small
Progress = Callable[[int, int, float], None]  # (done, of all, seconds left)

RESERVED = ("case", "seconds", "failed")
EXECUTORS = ("serial", "ray")
ALONE = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # the second: the loopback address alone
OBJECTS = 2**28  # bytes that Ray may hold between processes: rows and sources are small


def run(
    cases: Cases,
    prepare: Prepare,
    path: str | os.PathLike[str],
    *,
    about: Mapping[str, Any] | None = None,
    executor: str = "serial",
    workers: int = 1,
    address: str | None = None,
    gpus: float = 0,
    retry: bool = False,
    private: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Append a row for each case that has none yet; the file's path.

    `prepare` is called once a worker and gives the function of a case's payload. A case that raises becomes a row with
    the reason, and is taken up again only with `retry`. `about` says what the rows were made with (JSON types).
    "ray" uses `workers` processes of this machine, or of the cluster at `address`, with `gpus` each. `private` rows are
    readable by their owner alone, and their reasons quote no message, which could name a file.

    Raises ValueError for rows made with another `about`, for ids that occur twice and for a damaged file;
    BlockingIOError where another process writes to the file; ImportError where Ray is missing. What `prepare` raises
    ends the run.
    """
    file, ids = Path(path), [name for name, _ in cases]
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"{len(twice)} cases occur more than once, such as {twice[0]!r}")
    if executor not in EXECUTORS or workers < 1 or (executor == "serial" and workers > 1):
        raise ValueError(f"executor {executor!r} with {workers} workers; give 'serial' with 1, or 'ray' with 1 or more")
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file):
        file.touch()
        if private:
            file.chmod(0o600)
        _agree(file, about or {})
        done = _repaired(file, retry)
        left = [case for case in cases if case[0] not in done]
        finished, began = len(ids) - len(left), time.monotonic()
        if progress:
            progress(finished, len(ids), 0.0)
        if not left:
            return file
        every = _serial(left, prepare, private)
        if executor == "ray":
            every = _on_ray(left, prepare, private, min(workers, len(left)), address, gpus)
        with file.open("ab") as rows:
            for number, row in enumerate(every, start=1):
                rows.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
                rows.flush()
                if progress:
                    spent = time.monotonic() - began
                    progress(finished + number, len(ids), spent / number * (len(left) - number))
    return file


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """The rows of a file, in the order in which they were finished; a half-written last line is left out."""
    with Path(path).open("rb") as file:
        for _, row in _parsed(file, Path(path)):
            if row is not None:
                yield row


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the rows of a file were made with."""
    return json.loads(_beside(Path(path)).read_text(encoding="utf-8"))


def _beside(path: Path) -> Path:
    return path.with_suffix(".about.json")


def _agree(path: Path, about: Mapping[str, Any]) -> None:
    """Keep what the rows are made with, or see that it is the same as before."""
    place, now = _beside(path), json.loads(json.dumps(about, allow_nan=False))
    if not place.is_file():
        if path.stat().st_size:
            raise ValueError(f"{place} is gone, so nobody can say what the rows of {path} were made with; start anew")
        write_file(place, json.dumps(now, indent=1, ensure_ascii=False).encode())
        place.chmod(path.stat().st_mode & 0o777)
        return
    before = json.loads(place.read_text(encoding="utf-8"))
    if other := sorted(name for name in {*before, *now} if before.get(name) != now.get(name)):
        said = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in other)
        raise ValueError(f"the rows of {path} were made with other settings ({said}); take another folder")


def _repaired(path: Path, retry: bool) -> set[str]:
    """The cases that have a row, once a half-written last line, and with `retry` the failed rows, are gone."""
    done, end, failed = set(), 0, False
    with path.open("rb") as file:
        for line, row in _parsed(file, path):
            if row is None:
                break
            end += len(line)
            failed = failed or "failed" in row
            if not (retry and "failed" in row):
                done.add(row["case"])
    os.truncate(path, end)
    if retry and failed:
        with path.open("rb") as file:
            kept = [line for line, row in _parsed(file, path) if row is not None and "failed" not in row]
        mode = path.stat().st_mode & 0o777
        write_file(path, b"".join(kept))
        path.chmod(mode)
    return done


def _parsed(file: IO[bytes], path: Path) -> Iterator[tuple[bytes, Row | None]]:
    """Each line with its row; None for a last line that was half written."""
    for number, line in enumerate(file, start=1):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if not (isinstance(row, dict) and "case" in row):
            if file.read(1):
                raise ValueError(f"{path}, line {number} is no row; the file was damaged after it was written")
            row = None
        yield line, row


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time, so that no case is computed twice; the system lets go of the lock when a process dies."""
    with path.with_suffix(".lock").open("ab") as file:
        try:
            fcntl = import_module("fcntl")
        except ImportError:  # Windows has no such lock: two writers at once are up to the user there
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process writes to {path}; wait for it, or take another folder") from None
        yield


def attempt(work: Work, case: str, payload: Any, private: bool) -> Row:
    """The row of one case, whatever becomes of it."""
    began = time.perf_counter()
    try:
        made = dict(work(payload))
        if taken := sorted(made.keys() & set(RESERVED)):
            raise ValueError(f"a row may not have a column {', '.join(taken)}: the runner writes it")
        json.dumps(made, allow_nan=False)
    except Exception as error:
        made = {"failed": _reason(error, private)}
    return {"case": case, "seconds": round(time.perf_counter() - began, 3), **made}


def _reason(error: Exception, private: bool) -> str:
    """The short countable reason of an error that has one, else its kind and message."""
    if isinstance(short := getattr(error, "reason", None), str):
        return short
    return type(error).__name__ if private else f"{type(error).__name__}: {error}"


def _serial(cases: Cases, prepare: Prepare, private: bool) -> Iterator[Row]:
    work = prepare()
    for case, payload in cases:
        yield attempt(work, case, payload, private)


class Worker:
    """One worker of Ray: it prepares itself when it is made."""

    def __init__(self, prepare: Prepare) -> None:
        self.work = prepare()

    def ready(self) -> bool:
        """Whether the worker could be made; what `prepare` raised comes out here."""
        return True

    def attempt(self, case: str, payload: Any, private: bool) -> Row:
        """The row of one case."""
        return attempt(self.work, case, payload, private)


def _on_ray(
    cases: Cases, prepare: Prepare, private: bool, workers: int, address: str | None, gpus: float
) -> Iterator[Row]:
    """Rows as they are finished; at most one case a worker is under way. A worker that dies costs its case."""
    ray, ours = _started(workers, address)
    waiting: dict[Any, tuple[Any, str]] = {}
    idle: list[Any] = []
    try:
        _enough(ray.cluster_resources(), {"CPU": workers, "GPU": gpus * workers})
        remote = ray.remote(num_cpus=1, num_gpus=gpus)(Worker)
        idle += [remote.remote(prepare) for _ in range(workers)]
        try:
            ray.get([worker.ready.remote() for worker in idle])
        except ray.exceptions.RayActorError as error:
            raise ChildProcessError(f"a worker could not be made: {error}") from error
        left = iter(cases)
        while True:
            while idle and (case := next(left, None)):
                worker = idle.pop()
                waiting[worker.attempt.remote(*case, private)] = worker, case[0]
            if not waiting:
                return
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            worker, name = waiting.pop(done)
            try:
                row = ray.get(done)
            except ray.exceptions.RayActorError:
                row, worker = {"case": name, "seconds": 0.0, "failed": "the worker died"}, remote.remote(prepare)
            idle.append(worker)
            yield row
    finally:
        for worker in [*idle, *(worker for worker, _ in waiting.values())]:
            ray.kill(worker)
        if ours:
            ray.shutdown()


def _started(workers: int, address: str | None) -> tuple[Any, bool]:
    """Ray, and whether it was started or joined here. Without an address it is this machine's alone, with a token."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None and "ray" not in sys.modules:  # read when Ray is loaded: later, its two halves would disagree
        for name, value in ALONE.items():
            os.environ.setdefault(name, value)
    try:
        ray = import_module("ray")
    except ImportError as error:
        raise ImportError("the executor 'ray' needs Ray; run `pip install 'voxplain[ray]'`, or use 'serial'") from error
    if ray.is_initialized():
        return ray, False
    if address is None:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, object_store_memory=OBJECTS)
    else:
        ray.init(address=address, log_to_driver=False)
    return ray, True


def _enough(there: Mapping[str, float], wanted: Mapping[str, float]) -> None:
    """Raise ValueError for workers that would wait forever."""
    for name, count in wanted.items():
        if there.get(name, 0) < count:
            raise ValueError(
                f"the workers need {count:g} {name}, but Ray has {there.get(name, 0):g}; use fewer workers"
            )
