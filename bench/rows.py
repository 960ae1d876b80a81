"""The rows behind the figures: what each case gave, kept with the results, to go on from or to count otherwise.

python bench/rows.py pack        # bench/runs/**/*.jsonl -> bench/results/rows/**/*.jsonl.gz, five digits each
python bench/rows.py unpack      # and back, where bench/runs has fewer rows, so that a benchmark goes on from them

Rows of real images stay where they are.
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

from voxplain.runner import read_about, read_rows

RUNS, ROWS = Path(__file__).parent / "runs", Path(__file__).parent / "results" / "rows"
DIGITS = 5
MADE = "made.jsonl"  # these rows name volumes, which are not kept
REAL = "-shared-"  # jobs on open data: rows of real images are not copied


def short(value: Any) -> Any:
    """The value with floats of so many digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: short(one) for key, one in value.items()}
    return [short(one) for one in value] if isinstance(value, list) else value


def pack(runs: Path = RUNS, rows: Path = ROWS) -> int:
    """Pack every file of rows, and what its rows were made with; how many files there were."""
    files = sorted(path for path in runs.rglob("*.jsonl") if path.name != MADE and REAL not in str(path))
    for path in files:
        about = read_about(path) if path.with_suffix(".about.json").is_file() else None
        lines = [about, *map(short, read_rows(path))]
        kept = (rows / path.relative_to(runs)).with_suffix(".jsonl.gz")
        kept.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        kept.write_bytes(gzip.compress(text.encode(), mtime=0))
    return len(files)


def unpack(runs: Path = RUNS, rows: Path = ROWS) -> int:
    """Write back what was packed, where there are fewer rows; how many files that were."""
    written = 0
    for kept in sorted(rows.rglob("*.jsonl.gz")):
        about, *lines = gzip.decompress(kept.read_bytes()).decode().splitlines()
        path = runs / kept.relative_to(rows).with_suffix("")
        if path.is_file() and len(path.read_text().splitlines()) >= len(lines):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if about != "null":
            path.with_suffix(".about.json").write_text(json.dumps(json.loads(about), indent=1) + "\n")
        path.write_text("".join(line + "\n" for line in lines))
        written += 1
    return written


if __name__ == "__main__":
    if sys.argv[1:] not in (["pack"], ["unpack"]):
        sys.exit(__doc__)
    print({"pack": pack, "unpack": unpack}[sys.argv[1]](), "files")
