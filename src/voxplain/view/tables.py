"""A table of figures as CSV, LaTeX and HTML: a mean keeps its interval in each of them, and what is absent stays blank.

Whatever came from outside is escaped here, for the language that it is written in.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Spread = tuple[float, float | None, float | None]  # value, and the ends of its interval where there is one
Cell = str | int | float | Spread | None

FIGURE = re.compile(r"[+-]\d+(\.\d+)?(±\d+(\.\d+)?)?")  # as papers print it
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}",  # after the end of a row, a bracket would be its length
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under their columns; the first cell names its row. `note` says what has to be known to read it."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        if wrong := next((row for row in self.rows if len(row) != len(self.columns)), None):
            raise ValueError(f"table {self.name!r}: {len(wrong)} cells under {len(self.columns)} columns: {wrong}")


def as_csv(table: Table) -> str:
    """Comma-separated values at full precision; a column of intervals is three: value, low, high."""
    wide = [any(isinstance(row[place], tuple) for row in table.rows) for place in range(len(table.columns))]
    head: list[str] = []
    for title, spread in zip(table.columns, wide, strict=True):
        head += [title, f"{title}: low", f"{title}: high"] if spread else [title]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for row in table.rows:
        line: list[str | int | float | None] = []
        for cell, spread in zip(row, wide, strict=True):
            parts = cell if isinstance(cell, tuple) else (cell, None, None)
            line += parts if spread else parts[:1]
        writer.writerow(["" if part is None else _inert(part) for part in line])
    return buffer.getvalue()


def as_latex(table: Table) -> str:
    r"""A `tabular` for the package booktabs, with the title as caption and `tab:NAME` as label."""
    lines = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in (table.columns, *table.rows)]
    note = f"\n\\par\\footnotesize {_latex(table.note)}" if table.note else ""
    return (
        f"\\begin{{table}}\n\\caption{{{_latex(table.title)}}}\n\\label{{tab:{table.name}}}\n"
        f"\\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}\n\\toprule\n{lines[0]}\n\\midrule\n"
        + "\n".join(lines[1:])
        + f"\n\\bottomrule\n\\end{{tabular}}{note}\n\\end{{table}}\n"
    )


def as_html(table: Table) -> str:
    """A title, the table, and its note."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in table.columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text(cell))}</td>' for cell in row)}</tr>" for row in table.rows)
    note = f'<p class="soft">{escape(table.note)}</p>' if table.note else ""
    last = [str(row[-1]) for row in table.rows if isinstance(row[-1], str)]
    kind = "" if any(not one[:1].isdigit() and not FIGURE.match(one) for one in last) else ' class="figures"'
    return (
        f'<section id="{escape(table.name)}"><h3>{escape(table.title)}</h3><div class="scroll"><table{kind}><thead>'
        f"<tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}</section>"
    )


def text(cell: Cell) -> str:
    """A cell for people: three decimals, [low, high] after a value that has an interval, a dash for None."""
    if cell is None:
        return "–"
    if isinstance(cell, tuple):
        value, low, high = cell
        return _decimals(value) + ("" if low is None or high is None else f" [{_decimals(low)}, {_decimals(high)}]")
    return _decimals(cell) if isinstance(cell, float) else str(cell)


def _decimals(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) and abs(value) < 100 else f"{value:.1f}"


def _latex(cell: Cell) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text(cell).replace("–", "--"))


def _inert(part: str | int | float) -> str | int | float:
    """A text that a spreadsheet would run as a formula is marked as text; a figure, such as "-0.27", is none."""
    formula = isinstance(part, str) and part[:1] in ("=", "+", "-", "@", "\t") and not FIGURE.fullmatch(part)
    return f"'{part}" if formula else part


def as_plain(tables: Sequence[Table]) -> list[dict]:
    """The tables as JSON types."""
    return [
        {
            "name": table.name,
            "title": table.title,
            "note": table.note,
            "columns": list(table.columns),
            "rows": [[list(cell) if isinstance(cell, tuple) else cell for cell in row] for row in table.rows],
        }
        for table in tables
    ]
