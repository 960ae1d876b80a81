"""Results as JSON: what was measured, by which command, with which versions, and the rows of its table."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("voxplain", "torch", "monai", "numpy", "scipy", "scikit-learn", "transformers", "tokenizers")


def write(
    name: str,
    command: str,
    figures: Mapping[str, Any],
    table: Sequence[Mapping[str, Any]] = (),
    brief: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write `bench/results/NAME.json` and give its path back.

    `table` is what `tables.py` shows of it: one mapping a row, from column title to text, number, or
    [value, low, high]. The first column titles the row. `brief` takes its place in the README.
    """
    content = {
        "command": command,
        "versions": versions(),
        "machine": {"cores": os.cpu_count(), "system": platform.system(), "processor": platform.machine()},
        "figures": figures,
        "table": list(table),
    }
    if brief:
        content["brief"] = list(brief)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
