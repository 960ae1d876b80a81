"""One function over many cases: a row each in a file of JSON lines, which a kill at any moment leaves fit to go on.

A row holds the case, the seconds it took, and what the function gave, or why it failed. Beside the file lies what the
rows were made with, so rows of other settings are never mixed in. A worker is made once: its models are loaded once.
"""

import json
import os
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from voxplain.datasets.base import RULE, RuleWarning
from voxplain.io.folders import write_file

Row = dict[str, Any]
Work = Callable[[Any], Mapping[str, Any]]  # a case's payload -> its row
Prepare = Callable[[], Work]  # called once a worker, where it runs
Cases = Sequence[tuple[str, Any]]  # (id, payload); light payloads, such as numbers, keep memory small
Progress = Callable[[int, int, float], None]  # (done, of all, seconds left)

RESERVED = ("case", "seconds", "failed")
EXECUTORS = ("serial", "ray")
ALONE = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # the second: the loopback address alone
DEATHS = ("RayActorError", "OutOfMemoryError", "NodeDiedError", "WorkerCrashedError")  # of ray.exceptions
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
    anew: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Append a row for each case that has none yet; the file's path.

    `prepare` is called once a worker and gives the function of a case's payload. A case that raises becomes a row with
    the reason, and is taken up again only with `retry`. `about` says what the rows were made with (JSON types).
    "ray" uses `workers` processes of this machine, or of the cluster at `address`, with `gpus` each. `private` rows are
    readable by their owner alone, and their reasons quote no message, which could name a file. `anew` begins without
    the rows that are there, and with another `about`.

    Raises ValueError for rows made with another `about`, for ids that occur twice, for a damaged file, and for a name
    that does not end in .jsonl; BlockingIOError where another process writes to the file; ImportError where Ray is
    missing; ChildProcessError where a worker dies before it is prepared. What `prepare` raises ends the run. Warns
    where `private` cases are sent to the cluster at `address`.
    """
    file, ids = Path(path), [name for name, _ in cases]
    if file.suffix != ".jsonl":  # what lies beside the file has its stem, so two files of one stem would share it
        raise ValueError(f"{file}: rows are kept in a file whose name ends in .jsonl; give such a name")
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"{len(twice)} cases occur more than once, such as {twice[0]!r}")
    if executor not in EXECUTORS or workers < 1 or (executor == "serial" and workers > 1):
        raise ValueError(f"executor {executor!r} with {workers} workers; give 'serial' with 1, or 'ray' with 1 or more")
    if private and executor == "ray" and address not in (None, "local"):
        warnings.warn(f"prompts and paths are sent to the cluster at {address}. {RULE}", RuleWarning, stacklevel=2)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file):
        file.touch(0o600 if private else 0o666)
        if private:
            file.chmod(0o600)
        if anew:
            os.truncate(file, 0)
            _beside(file).unlink(missing_ok=True)
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
                rows.write(_encoded(row) + b"\n")
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


def _encoded(value: Any, indent: int | None = None) -> bytes:
    """JSON in UTF-8; what UTF-8 cannot hold, such as the name of a file that is none, is escaped as JSON has it."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace")


def _beside(path: Path) -> Path:
    return path.with_suffix(".about.json")


def _agree(path: Path, about: Mapping[str, Any]) -> None:
    """Keep what the rows are made with, or see that it is the same as before."""
    place, now = _beside(path), json.loads(json.dumps(about, allow_nan=False))
    if not place.is_file():
        if path.stat().st_size:
            raise ValueError(f"{place} is gone, so nobody can say what the rows of {path} were made with; start anew")
        write_file(place, _encoded(now, indent=1), mode=path.stat().st_mode & 0o777)
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
        write_file(path, _kept(path), mode=path.stat().st_mode & 0o777)
    return done


def _kept(path: Path) -> Iterator[bytes]:
    """The lines of the cases that did not fail."""
    with path.open("rb") as file:
        for line, row in _parsed(file, path):
            if row is not None and "failed" not in row:
                yield line


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
    """The short countable reason of an error of ours that has one, else its kind and message."""
    ours = type(error).__module__.startswith("voxplain.")  # what others call a reason may hold private text
    if ours and isinstance(short := getattr(error, "reason", None), str):
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
    deaths = tuple(getattr(ray.exceptions, name) for name in DEATHS)
    team: list[Any] = []
    waiting: dict[Any, tuple[Any, str | None]] = {}  # what is awaited -> the worker and its case; None: its preparation
    left = deque(cases)
    try:
        _enough(ray.cluster_resources(), {"CPU": workers, "GPU": gpus * workers})
        remote = ray.remote(num_cpus=1, num_gpus=gpus)(Worker)

        def hire() -> None:
            team.append(worker := remote.remote(prepare))
            waiting[worker.ready.remote()] = worker, None

        for _ in range(workers):
            hire()
        ray.wait(list(waiting), num_returns=workers)  # no case before all are prepared, so that each gets its share
        while left or any(name is not None for _, name in waiting.values()):
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            worker, name = waiting.pop(done)
            try:
                row = ray.get(done)
            except deaths as error:
                if name is None:
                    raise ChildProcessError(f"a worker could not be made: {error}") from error
                row = {"case": name, "seconds": 0.0, "failed": "the worker died"}
                team.remove(worker)
                ray.kill(worker)  # one that only cannot be reached would keep its CPU
                if left:
                    hire()
            else:
                if left:
                    case, payload = left.popleft()
                    waiting[worker.attempt.remote(case, payload, private)] = worker, case
            if name is not None:
                yield row
    finally:
        for worker in team:
            ray.kill(worker)
        if ours:
            ray.shutdown()


def _started(workers: int, address: str | None) -> tuple[Any, bool]:
    """Ray, and whether it was started or joined here. Without an address it is this machine's alone, with a token."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    alone = address in (None, "local")
    if alone and "ray" not in sys.modules:  # read when Ray is loaded: later, its two halves would disagree
        for name, value in ALONE.items():
            os.environ.setdefault(name, value)
    try:
        ray = import_module("ray")
    except ImportError as error:
        raise ImportError("the executor 'ray' needs Ray; run `pip install 'voxplain[ray]'`, or use 'serial'") from error
    if ray.is_initialized():
        return ray, False
    if alone:  # said, as else a cluster that runs here, or that RAY_ADDRESS names, would be joined
        options = {"include_dashboard": False, "object_store_memory": OBJECTS}
        ray.init(address="local", num_cpus=workers, log_to_driver=False, **options)
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
