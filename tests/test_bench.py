"""What the benchmarks share: tables that are drawn from results and nothing else."""

import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import tables

    return tables


def test_the_readme_shows_what_the_results_hold(tables):
    assert tables.main(["--check"]) == 0


def test_a_readme_that_disagrees_with_the_results_is_told_apart(tables, tmp_path, monkeypatch, capsys):
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    pages = [tmp_path / "README.md", tmp_path / "docs" / "measurements.md"]
    for page in pages:
        page.write_text("<!-- results: start -->\n0.99\n<!-- results: end -->\n")
    row = {"what": "AUC", "mean": [0.5, 0.25, 0.75]}
    for name in ("speed", "other"):
        result = json.dumps({"command": f"make {name}", "table": [row]})
        (tmp_path / "bench" / "results" / f"{name}.json").write_text(result)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.main(["--check"]) == 1
    assert "README.md, measurements.md does not show" in capsys.readouterr().err
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0
    for page, name in zip(pages, ("speed", "other"), strict=True):
        drawn = f"| AUC | 0.5 (0.25 to 0.75) |\n\n`make {name}`\n<!-- results: end -->"
        assert drawn in page.read_text()
        assert page.read_text().count("`make ") == 1


def test_rows_with_different_columns_share_one_table(tables):
    drawn = tables.markdown([{"what": "a", "mean": 0.12345}, {"what": "b", "effect": 2, "met": False}])
    assert drawn.splitlines() == [
        "| what | mean | effect | met |",
        "| --- | --- | --- | --- |",
        "| a | 0.123 |  |  |",
        "| b |  | 2 | **no** |",
    ]


def test_a_lost_marker_is_an_error(tables):
    with pytest.raises(ValueError, match="one pair of markers"):
        tables.between("no markers here", "results", "x")


def test_the_readme_has_eight_lines_of_code(tables):
    lines = [line for line in tables.code((tables.ROOT / "README.md").read_text()).splitlines() if line.strip()]
    assert len(lines) == 8
