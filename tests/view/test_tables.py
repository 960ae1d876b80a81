"""A table says the same in every form, and nothing from outside can break out of it."""

import csv
import io

import pytest

from voxplain.view.charts import boxes, dots, files
from voxplain.view.scoreboard import scoreboard, verdicts
from voxplain.view.tables import Table, as_csv, as_html, as_latex, as_plain, text

EVIL = '<script>alert("1")</script> & 50% _x_ {y} \\z $1 #2 ~ ^'
TABLE = Table(
    "auc",
    f"AUC of {EVIL}",
    ("finding", "n", "mean", "p"),
    ((EVIL, 3, (0.71234, 0.6, 0.8), 0.04), ("=1+1", 1, (0.5, None, None), None)),
    note=EVIL,
)


def test_cells_are_short_for_people_and_exact_for_machines():
    assert [text(cell) for cell in TABLE.rows[0][1:]] == ["3", "0.712 [0.600, 0.800]", "0.040"]
    assert [text(cell) for cell in TABLE.rows[1]] == ["=1+1", "1", "0.500", "–"]
    assert text(1234.5) == "1234.5" and text(float("inf")) == "inf"
    rows = list(csv.reader(io.StringIO(as_csv(TABLE))))
    assert rows[0] == ["finding", "n", "mean", "mean: low", "mean: high", "p"]
    assert rows[1] == [EVIL, "3", "0.71234", "0.6", "0.8", "0.04"]
    assert rows[2] == ["'=1+1", "1", "0.5", "", "", ""]  # no spreadsheet runs it
    assert as_plain([TABLE])[0]["rows"][0][2] == [0.71234, 0.6, 0.8]


def test_a_printed_figure_stays_a_figure_and_a_formula_does_not_run():
    cells = ("-0.27", "+3", "-4.5±1.6", "-0.27+1", "-A1", "@x", "-")
    table = Table("t", "t", ("figure",), tuple((cell,) for cell in cells))
    assert [row[0] for row in csv.reader(io.StringIO(as_csv(table)))][1:] == [
        *cells[:3],
        "'-0.27+1",
        "'-A1",
        "'@x",
        "'-",
    ]


def test_latex_is_escaped():
    made = as_latex(TABLE)
    for part in (r"50\% \_x\_ \{y\} \textbackslash{}z \$1 \#2", r"\textless{}script\textgreater{}", r"\& "):
        assert part in made
    assert made.count(r"\\") == 3 and r"\label{tab:auc}" in made and "{lrrr}" in made


def test_a_row_that_begins_with_a_bracket_is_no_length_in_latex():
    made = as_latex(Table("words", "t", ("word", "|a|"), (("[end]", 1),)))
    assert "\n{[}end] & 1" in made and "\\textbar{}a\\textbar{}" in made


def test_html_is_escaped():
    assert "<script>" not in as_html(TABLE) and "&lt;script&gt;" in as_html(TABLE)


def test_figures_end_below_each_other_and_words_begin_so():
    figures = Table("t", "t", ("a", "b"), (("x", 1), ("y", "62.1 (our mean)"), ("z", "-0.27")))
    assert '<table class="figures">' in as_html(figures)
    assert "<table><thead>" in as_html(Table("t", "t", ("a", "reason"), (("x", "because"),)))


def test_rows_that_do_not_fit_their_columns_are_refused():
    with pytest.raises(ValueError, match="1 cells under 2 columns"):
        Table("a", "a", ("x", "y"), (("only",),))


def test_pages_are_escaped_and_load_nothing():
    figure = files(dots(EVIL.replace("$", ""), {"mean": [(0.5, 0.4, 0.7), None]}, ["a", "b"], 0.5))["svg"]
    page = scoreboard(EVIL, [(EVIL, (EVIL,), (TABLE,), {EVIL: figure})], {"model": EVIL}, cautions=[EVIL], command=EVIL)
    page += verdicts(EVIL, [(EVIL, True, EVIL), ("b", False, ""), ("c", None, "")], {"model": EVIL})
    assert "<script" not in page and "http" not in page and "1 of 3 checks failed" in page
    assert "data:image/svg+xml;base64," in page and "Not for diagnosis" in page


def test_figures_come_as_both_kinds_of_file():
    made = files(boxes("coverage", {"NOUN": [0.1, 0.2], "$x$ _": [0.4]}, "share"))
    assert made["png"].startswith(b"\x89PNG") and b"<svg" in made["svg"]
    assert files(boxes("coverage", {"NOUN": [0.1]}, "share"))["svg"].count(b"<svg") == 1
