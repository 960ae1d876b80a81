"""The folder of a reader study: plan, answers as JSON lines (one file a reader), and what was looked at.

`study.json` says that the folder is ours, who reads, and with which plan and runs the first answer was given; from then
on neither may change. Whatever is killed at any moment, rows that were answered stay, and no row is written twice.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from voxplain.io.folders import write_file
from voxplain.runner import read_rows
from voxplain.studies.reader_plan import Plan, PlanError, read_plan
from voxplain.studies.readers import Showing, marked, sequence
from voxplain.view.tables import Table

MARKER, PLAN = "study.json", "plan.json"
PSEUDONYM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
Row = dict[str, Any]
COLUMNS = (
    *("reader", "position", "case", "run", "arm", "question", "answer", "confidence", "truth", "correct", "noticed"),
    *("seconds", "case_seconds", "shown_recipe", "shown_word", "shown_wrong", "shown_case", "likeness"),
    *("distinguishable", "times_opened", "seconds_away", "slices", "planes", "windows", "overlay_switched"),
    *("answered_at", "plan"),
)


class Study:
    """A study's folder, opened with `Study.at`; safe to be used by several processes at once."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan

    @classmethod
    def at(cls, folder: Path, plan: Plan | None = None) -> "Study":
        """The study in a folder. `plan` starts one there, or takes the place of its plan while nobody has answered.

        Raises FileExistsError for a folder that holds something else, PlanError for a plan that is damaged, missing, or
        other than the one that answers were given to.
        """
        if not (folder / MARKER).is_file():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise FileExistsError(f"{folder} holds no reader study; choose another --out")
            if plan is None:
                raise PlanError(f"{folder} holds no reader study yet; name the run folders that it is to show")
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / MARKER, {"schema": 1, "created": _now(), "readers": [], "agreed": None})
        study = cls(folder, read_plan(folder / PLAN) if plan is None else plan)
        study.agree(only_check=True)
        if plan is not None:
            _write(folder / PLAN, plan.document())
        return study

    def agree(self, *, only_check: bool = False) -> None:
        """Record plan and runs with the first answer; PlanError where they are no longer those of earlier answers."""
        with self._locked():
            facts = _read(self.folder / MARKER)
            before = facts["agreed"]
            if before is None and only_check:
                return
            runs = {case.id: _hash(Path(case.run) / "run.json") for case in self.plan.cases}
            now = {"hash": self.plan.hash, "plan": self.plan.document(), "runs": runs}
            if before is None:
                return _write(self.folder / MARKER, {**facts, "agreed": now})
        what = [key for key, value in now["plan"].items() if before["plan"].get(key) != value]
        what += [f"the run of {name}" for name, value in runs.items() if before["runs"].get(name, value) != value]
        if what:
            raise PlanError(
                f"{self.folder}: answers were given to plan {before['hash'][:12]}, and since then something changed: "
                f"{', '.join(what)}. Put it back (study.json holds that plan), or take another --out for the new one"
            )

    def showings(self, reader: str) -> list[Showing]:
        """What the reader sees, in order; a new reader is entered, and gets the next turn of the arms."""
        if not PSEUDONYM.fullmatch(reader):
            raise ValueError(f"reader {reader!r}: a pseudonym has 1 to 40 letters, digits, - and _, and no real name")
        if self.plan.readers and reader not in self.plan.readers:
            raise PlanError(f"the plan lists {len(self.plan.readers)} readers, and {reader!r} is none of them")
        if self.plan.readers:
            return sequence(self.plan, reader, self.plan.readers.index(reader))
        with self._locked():
            facts = _read(self.folder / MARKER)
            if reader not in facts["readers"]:
                facts["readers"].append(reader)
                _write(self.folder / MARKER, facts)
        return sequence(self.plan, reader, facts["readers"].index(reader))

    def answers(self, reader: str | None = None) -> list[Row]:
        """All answers, or those of one reader, in the order in which they were given."""
        return self._rows("answers", reader)

    def next(self, reader: str, showings: Sequence[Showing]) -> int:
        """The position of the first showing that lacks an answer; as many as there are when all are answered."""
        done = {_key(row) for row in self.answers(reader)}
        wanted = [[(each.case.id, each.arm, one.id) for one in each.asked(self.plan)] for each in showings]
        return next((n for n, keys in enumerate(wanted) if not done.issuperset(keys)), len(showings))

    def append(self, reader: str, rows: Sequence[Mapping[str, Any]]) -> int:
        """Add the rows whose case, arm and question have none yet; how many. They are on the disk when this returns."""
        self.agree()
        with self._locked():
            done = {_key(row) for row in self.answers(reader)}
            new = [{**row, "at": _now(), "plan": self.plan.hash[:12]} for row in rows if _key(row) not in done]
            self._add(f"answers-{reader}.jsonl", new)
            return len(new)

    def log(self, reader: str, row: Mapping[str, Any]) -> None:
        """Add what was looked at in one sitting with a case."""
        with self._locked():
            self._add(f"events-{reader}.jsonl", [{**row, "at": _now()}])

    def table(self) -> Table:
        """Every answer with its marks and what was looked at in its case, under COLUMNS."""
        seen: dict[tuple[Any, ...], list[Row]] = {}
        for row in self._rows("events", None):
            seen.setdefault((row["reader"], row["case"], row["arm"]), []).append(row)
        found = []
        for row in self.answers():
            shown, looks = row["shown"], seen.get((row["reader"], row["case"], row["arm"]), [])
            right_word = {} if "shown_word" in shown else {"shown_word": shown.get("word")}
            names = {"shown_recipe": shown.get("recipe"), "shown_wrong": shown.get("wrong"), "answered_at": row["at"]}
            facts = {**row, **marked(self.plan, row), **names, **right_word, **shown, **_looked(looks)}
            found.append(tuple(facts.get(name) for name in COLUMNS))
        return Table("answers", "Answers", COLUMNS, tuple(found))

    def _rows(self, kind: str, reader: str | None) -> list[Row]:
        names = sorted(self.folder.glob(f"{kind}-*.jsonl")) if reader is None else [self._file(kind, reader)]
        return [row for path in names if path.is_file() for row in read_rows(path)]

    def _file(self, kind: str, reader: str) -> Path:
        return self.folder / f"{kind}-{reader}.jsonl"

    def _add(self, name: str, rows: Sequence[Row]) -> None:
        """Append under the lock, after taking away a last line that a kill left half written."""
        with (self.folder / name).open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(b"".join(json.dumps(row, allow_nan=False).encode() + b"\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time; the system lets go of the lock when a process dies."""
        with (self.folder / ".lock").open("ab") as file:
            try:
                fcntl = import_module("fcntl")
            except ImportError:  # Windows: one server a study there
                yield
                return
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["case"], row["arm"], row["question"]


def _looked(sittings: Sequence[Row]) -> Row:
    """Counts of what was looked at in a case, over all sittings with it."""
    events = [event for row in sittings for event in row.get("events", [])]
    voxels = [value for _, what, value in events if what == "voxel"]
    away, left = 0.0, None
    for seconds, what, _ in events:
        if what == "hidden":
            left = seconds
        elif what == "shown" and left is not None:
            away, left = away + seconds - left, None
    return {
        "times_opened": sum("events" not in row for row in sittings),
        "seconds_away": round(away, 2),
        "slices": sum(len({voxel[axis] for voxel in voxels}) for axis in range(3)),
        "planes": " ".join(dict.fromkeys(str(value) for _, what, value in events if what == "plane")),
        "windows": " ".join(dict.fromkeys(str(value) for _, what, value in events if what == "window")),
        "overlay_switched": sum(what == "overlay" for _, what, _ in events),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PlanError(
            f"{path} cannot be read ({error.strerror}); put the run back where the plan names it"
        ) from error


def _read(path: Path) -> Row:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        _ = facts["readers"], facts["agreed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{path} is damaged ({error}); put it back, or take another --out") from error
    return facts


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())
