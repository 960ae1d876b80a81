"""What the benchmarks share: tables that are drawn from results and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from voxplain.runner import read_rows, run

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
        short = [row | {"what": "short"}]
        result = json.dumps({"command": f"make {name}", "table": [row], "brief": short})
        (tmp_path / "bench" / "results" / f"{name}.json").write_text(result)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.main(["--check"]) == 1
    assert "README.md, measurements.md does not show" in capsys.readouterr().err
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0
    brief, whole = (page.read_text() for page in pages)
    assert "| short | 0.5 |\n\n`make speed`\n<!-- results: end -->" in brief and "other" not in brief
    for name in ("speed", "other"):
        assert f"| AUC | 0.5 (0.25 to 0.75) |\n\n`make {name}`\n" in whole


def test_rows_with_different_columns_share_one_table(tables):
    drawn = tables.markdown([{"what": "a", "mean": 0.12345}, {"what": "b", "effect": 2, "met": False}])
    assert drawn.splitlines() == [
        "| what | mean | effect | met |",
        "| --- | --- | --- | --- |",
        "| a | 0.123 |  |  |",
        "| b |  | 2 | **no** |",
    ]


def test_a_bar_in_a_cell_divides_nothing(tables):
    drawn = tables.markdown([{"map": "mean", "best control": "|value - mean|: 0.767"}])
    assert drawn.splitlines()[2] == r"| mean | \|value - mean\|: 0.767 |"


def test_a_lost_marker_is_an_error(tables):
    with pytest.raises(ValueError, match="one pair of markers"):
        tables.between("no markers here", "results", "x")


def test_the_readme_has_eight_lines_of_code(tables):
    lines = [line for line in tables.code((tables.ROOT / "README.md").read_text()).splitlines() if line.strip()]
    assert len(lines) == 8


def test_packed_rows_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import rows

    def work(number):
        if number == 5:
            raise KeyboardInterrupt
        return {"value": number / 3, "words": [["left", None]]}

    cases = [(str(number), number) for number in range(8)]
    path = tmp_path / "runs" / "job" / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(cases, lambda: work, path, about={"model": "toy"})
    assert rows.pack(tmp_path / "runs", tmp_path / "kept") == 1
    before = list(read_rows(path))
    shutil.rmtree(tmp_path / "runs")
    assert rows.unpack(tmp_path / "runs", tmp_path / "kept") == 1
    assert rows.unpack(tmp_path / "runs", tmp_path / "kept") == 0  # as many rows are there: nothing is overwritten
    asked = []
    run(cases, lambda: lambda number: asked.append(number) or {"value": 0.0}, path, about={"model": "toy"})
    assert asked == [5, 6, 7]
    for old, new in zip(before, read_rows(path), strict=False):
        assert new == {**old, "value": pytest.approx(old["value"], rel=1e-4), "seconds": new["seconds"]}
    with pytest.raises(ValueError, match="other settings"):
        run(cases, lambda: work, path, about={"model": "thorax"})


def test_generated_volumes_without_what_was_asked_are_counted(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    from first_results_cases import Made

    (tmp_path / "runs.csv").write_text("run,mask\n0000,0000/truth.nii.gz\n")
    (tmp_path / "made.about.json").write_text("{}")
    lines = [{"case": "0000", "run": "0000"}, *({"case": f"000{n}", "failed": "not there"} for n in (1, 2))]
    (tmp_path / "made.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Made(tmp_path / "runs.csv", model="toy").left_out == {"not there": 2}


def test_a_summary_keeps_what_was_measured_before_and_counts_later_cases_with_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import record
    import thorax

    for module, name, folder in ((thorax, "RUNS", "runs"), (thorax, "RESULTS", "."), (record, "RESULTS", ".")):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.setattr(module, name, tmp_path / folder)

    def twins(first, last, denied=()):
        lines = [{"case": n, "kind": "nodule", "affirmed": ["nodule"], "denied": denied} for n in range(first, last)]
        (tmp_path / "runs" / "twins-abc-test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        thorax.summarize("abc-test", "test")
        made = json.loads((tmp_path / "thorax.json").read_text())
        return made["figures"], made["command"]

    asked = {"case": 0, "asked": [{"kind": "nodule", "side": None, "lobe": None}], "found": []}
    (tmp_path / "runs" / "guidance_1-abc-test.jsonl").write_text(json.dumps(asked) + "\n")
    twins(0, 4)
    (tmp_path / "runs" / "guidance_1-abc-test.jsonl").unlink()
    figures, command = twins(4, 6, ["nodule"])
    assert figures["twins"]["denied_absent"]["n"] == 6 and figures["twins"]["denied_absent"]["mean"] == 4 / 6
    assert figures["generation_guidance_1"]["found"]["nodule"]["mean"] == 0  # no rows any more, but still there
    assert "guidance_1 --split test --count 1" in command and "twins summary --split test --count 6" in command
    figures, command = twins(0, 3, ["nodule"])  # from the first case on: measured anew
    assert figures["twins"]["denied_absent"] == {**figures["twins"]["denied_absent"], "n": 3, "mean": 0}
    assert "twins summary --split test --count 3" in command
