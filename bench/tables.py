"""Put measured tables into the README, from bench/results/*.json; with --run also the real output of its code.

python bench/tables.py            write the tables
python bench/tables.py --run      and run the README's Python block, and write what it printed
python bench/tables.py --check    write nothing; exit 1 if the README does not show what the results hold
"""

import contextlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TITLES = {
    "choose_layers": "Layers of `thorax` to average, chosen on 60 dev phantoms (AUC; chosen figures flatter)",
    "choose_layers_thorax-2d": "The same for `thorax-2d`, on 96 dev phantoms",
    "choose_layers_thorax-2d-seed1": "The same for `thorax-2d-seed1`",
    "choose_layers_thorax-2d-seed2": "The same for `thorax-2d-seed2`",
    "thorax": "Where the words of `thorax` point, with controls (test phantoms, and volumes made of test prompts)",
    "thorax_generation": "What `thorax` makes of test prompts, by two judges (aims: 0.85, side 0.9, lobe 0.8)",
    "first_results": "Words on test phantoms (`shift`: anatomy out of range), on films and on CT, by model (means over "
    "findings; the two other trainings of `thorax-2d` are in docs/measurements.md)",
    "ways": "Read-outs by inversion and by generation against new noise, on the same test phantoms",
    "states": "What costly methods find of the evidence for a word, by states (`thorax-2d`, 24 dev phantoms, AUC)",
    "states_share": "The same of the share of the prediction that a word makes up, at 8 states",
    "segmenter_unseen": "The rule-based judge on 300 phantoms it was not tuned on",
    "segmenter_decoded_unseen": "The rule-based judge on the same phantoms, encoded and decoded by `thorax`",
    "reader_unseen": "The learned judge on the same 300 phantoms",
    "reader_decoded_unseen": "The learned judge on the same phantoms, encoded and decoded by `thorax`",
    "contributions_dev": "What layers, levels, heads and scalings contribute (`thorax`, 36 dev phantoms, AUC)",
    "contributions_test": "The same on 36 test phantoms: what was chosen on dev, confirmed or not",
    "runner": "The runner with two workers, and its memory",
    "metrics": "The time of the localization metrics",
    "speed": "Speed and memory of the main job",
    "impressions": "The main job on 157 real impressions (both recipes, 10 steps)",
    "viewer": "Speed of the viewer's page",
    "tracing": "What tracing costs, beside other packages, and parity with the package daam",
    "text_gain": "How much of the denoising loss of `thorax` its text saves",
}
SHOWN = (
    "thorax",
    "thorax_generation",
    "first_results",
    "tracing",
    "speed",
    "impressions",
)  # in the README, without intervals; docs/measurements.md has all tables, these first


def cell(value: Any, brief: bool = False) -> str:
    """A number with three digits, [value, low, high] with its interval (not if `brief`), anything else as it is."""
    if isinstance(value, (list, tuple)):
        middle, low, high = value
        if brief or low is None:  # of a single case
            return cell(middle)
        return f"{cell(middle)} ({cell(low)} to {cell(high)})"
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value).replace("|", r"\|")


def markdown(rows: Iterable[Mapping[str, Any]], brief: bool = False) -> str:
    """A table whose columns are the keys of all rows, in the order of their first appearance."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([cell(row.get(column), brief) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(folder: Path, brief: bool) -> str:
    """The results that have a table, each with the command that made it: all of them, or briefly those of `SHOWN`."""
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    names = [*(name for name in SHOWN if name in found), *([] if brief else sorted({*found} - {*SHOWN}))]
    rows = {name: brief and found[name].get("brief") or found[name].get("table") for name in names}
    parts = [
        f"**{TITLES.get(name, name)}**\n\n{markdown(rows[name], brief)}\n\n`{found[name]['command']}`"
        for name in names
        if rows[name]
    ]
    return "\n\n".join(parts)


def between(text: str, name: str, content: str) -> str:
    """The text with what stands between the markers of that name replaced."""
    pattern = re.compile(rf"(<!-- {name}: start -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"expected one pair of markers <!-- {name}: start --> and <!-- {name}: end -->")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}" if content else "".join(found.groups()), text)


def code(text: str) -> str:
    """The first Python block of the text."""
    return text.split("```python\n", 1)[1].split("```", 1)[0]


def output(source: str) -> str:
    """What a piece of code prints, run in an empty folder."""
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(compile(source, "README.md", "exec"), {"__name__": "__main__"})
    return f"```\n{printed.getvalue().strip()}\n```"


def main(arguments: list[str]) -> int:
    results, stale = ROOT / "bench" / "results", []
    for page, shown in ((ROOT / "README.md", True), (ROOT / "docs" / "measurements.md", False)):
        old = page.read_text()
        new = between(old, "results", tables(results, shown))
        if shown and "--run" in arguments:
            new = between(new, "output", output(code(old)))
        if new != old:
            stale.append(page.name)
            if "--check" not in arguments:
                page.write_text(new)
    if "--check" not in arguments or not stale:
        return 0
    print(f"{', '.join(stale)} does not show what bench/results holds; run: python bench/tables.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
