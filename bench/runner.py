"""Two workers of the runner against one, and whether its memory grows with the number of cases.

    python bench/runner.py           needs Ray; two idle cores, to bench/results/runner.json

A case is a fixed amount of work on one core (about a third of a second). Runs of one and of two workers alternate, and
the first of each does not count. The rate is that of the cases alone, between the first row and the last: starting Ray
costs seconds, once. Memory is the peak of the traced allocations of the serial runner over many cases of no work.
"""

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from record import write

from voxplain import runner

ROUNDS = 2_000_000  # of the loop that a case runs
FEW, MANY = 1_000, 10_000  # cases, for memory


def prepare() -> runner.Work:
    def work(rounds: int) -> dict[str, Any]:
        total = 0
        for number in range(rounds):
            total += number * number % 7
        return {"total": total}

    return work


def rate(workers: int, cases: int, folder: Path) -> float:
    """Cases a second between the first row and the last."""
    stamps: list[float] = []
    some = [(f"{number:04d}", ROUNDS) for number in range(cases)]
    path = folder / f"{workers}-{time.monotonic_ns()}.jsonl"
    runner.run(
        some, prepare, path, executor="ray", workers=workers, progress=lambda *_: stamps.append(time.monotonic())
    )
    stamps = stamps[1:]  # the first tells how many are done already
    return (len(stamps) - workers) / (stamps[-1] - stamps[workers - 1])


def peak(cases: int, folder: Path) -> int:
    """Bytes that a serial run allocates at most, beyond the list of its cases."""
    some = [(str(number), 0) for number in range(cases)]
    tracemalloc.start()
    runner.run(some, prepare, folder / f"memory-{cases}.jsonl")
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=60, help="cases a run (60)")
    options.add_argument("--pairs", type=int, default=3, help="pairs of runs (3)")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rates: Mapping[int, list[float]] = {1: [], 2: []}
        for pair in range(given.pairs + 1):
            for workers in (1, 2) if pair % 2 else (2, 1):
                found = rate(workers, given.cases, folder)
                if pair:
                    rates[workers].append(found)
        gains = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
        few, many = peak(FEW, folder), peak(MANY, folder)
    gain, grown = statistics.median(gains), (many - few) / (MANY - FEW)
    figures = {"cases": given.cases, "rates": {str(k): v for k, v in rates.items()}, "gains": gains,
               "peak_bytes": {str(FEW): few, str(MANY): many}}  # fmt: skip
    columns = ("runner", "measured", "bound", "met")
    rows = [
        ("two workers of Ray against one, cases a second", f"{gain:.2f}", "1.7", gain >= 1.7),
        (f"memory a case, {FEW:,} to {MANY:,} cases", f"{grown:.0f} bytes", "200 bytes (its name)", grown <= 200),
    ]
    table: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in rows]
    for row in table:
        print("  ".join(str(value) for value in row.values()))
    print(write("runner", f"python bench/runner.py --cases {given.cases} --pairs {given.pairs}", figures, table))


if __name__ == "__main__":
    main()
