"""Work that takes minutes, one piece at a time in a thread, and its progress for whoever listens."""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Report = Callable[[str, int, int], None]
LONGEST = 2000  # characters of a prompt
REMEMBERED = 20  # finished jobs


class StoppedError(Exception):
    """The user asked a job to stop."""


class Worker:
    """What jobs do: `check` raises ValueError for a wish that cannot be, `make` fulfills it."""

    def check(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """The wish, complete and within limits."""
        raise NotImplementedError

    def make(self, wanted: Mapping[str, Any], report: Report) -> str:
        """Do it; the id of the run that it made or changed."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What the page may offer."""
        raise NotImplementedError


@dataclass
class _Job:
    wanted: Mapping[str, Any]
    event: dict[str, Any] = field(default_factory=lambda: {"stage": "waiting", "done": 0, "total": 0})
    stopped: bool = False

    @property
    def over(self) -> bool:
        return not self.event.keys().isdisjoint(("run", "error", "stopped"))


class Jobs:
    """Jobs by id; they wait for one another, since a model fills a machine."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._jobs: dict[str, _Job] = {}
        self._turn = threading.Lock()

    @property
    def ids(self) -> list[str]:
        """All jobs that are remembered."""
        return list(self._jobs)

    def describe(self) -> dict[str, Any]:
        """What the page may offer."""
        return self._worker.describe()

    def start(self, wanted: Mapping[str, Any]) -> str:
        """Begin; gives the job's id. Raises ValueError for a wish that cannot be, or if too many wait."""
        checked = self._worker.check(wanted)
        if sum(not job.over for job in self._jobs.values()) >= 4:
            raise ValueError("four runs wait already; let one end, or stop it")
        for name in [name for name, job in self._jobs.items() if job.over][:-REMEMBERED]:
            del self._jobs[name]
        name, job = secrets.token_urlsafe(8), _Job(checked)
        self._jobs[name] = job
        threading.Thread(target=self._run, args=(job,), daemon=True).start()
        return name

    def stop(self, job: str) -> bool:
        """Ask a job to stop at its next step; False if it is over or unknown."""
        found = self._jobs.get(job)
        if found is None or found.over:
            return False
        found.stopped = True
        return True

    async def events(self, job: str, pause: float = 0.2) -> AsyncIterator[dict[str, Any]]:
        """The job's progress as it changes, until it is over."""
        found, last, said = self._jobs[job], None, 0.0
        while True:
            event = found.event
            if event is not last or time.monotonic() - said > 15:  # now and then a sign of life
                last, said = event, time.monotonic()
                yield event
            if not event.keys().isdisjoint(("run", "error", "stopped")):
                return
            await asyncio.sleep(pause)

    def _run(self, job: _Job) -> None:
        def report(stage: str, done: int = 0, total: int = 0) -> None:
            if job.stopped:
                raise StoppedError
            job.event = {"stage": stage, "done": done, "total": total}

        with self._turn:
            try:
                report("starting")
                job.event = {"run": self._worker.make(job.wanted, report)}
            except StoppedError:
                job.event = {"stopped": True}
            except Exception as error:  # a thread has nobody above it: the page is told
                job.event = {"error": f"{type(error).__name__}: {error}"}
