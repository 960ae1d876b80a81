"""The verbs evaluate and sanity on the toy: what is asked for arrives, and bad input ends in one line."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image
from test_cli import call, refused

from voxplain import loading
from voxplain.adapters.toy import ToyAdapter
from voxplain.cli import evaluating
from voxplain.studies import benchmark, sanity

TOY = ToyAdapter((8, 24))


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(loading, "load", lambda name, **options: TOY)
    quick = {"steps": 2, "used": 1}
    few = partial(benchmark.Settings, **quick, metrics=("auc_roc", "cnr", "pointing_game", "chance_level"))
    monkeypatch.setattr(benchmark, "Settings", few)
    monkeypatch.setattr(sanity, "examine", partial(sanity.examine, **quick))
    monkeypatch.delenv("VOXPLAIN_DEBUG", raising=False)


@pytest.fixture
def films(tmp_path):
    """Two films with boxes, in a folder of the user's own."""
    base = tmp_path / "my films"
    base.mkdir()
    rows = ["image,boxes,prompt,words,label,patient"]
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 96)).astype(np.uint8)
        Image.fromarray(pixels).save(base / f"{number}.png")
        rows.append(f"{number}.png,{8 * number} 4 20 10,left effusion,effusion,effusion,p{number}")
    (base / "metadata.csv").write_text("\n".join(rows))
    return base


def test_a_folder_of_films_becomes_a_report_whose_command_makes_it_again(films, tmp_path):
    out = tmp_path / "report"
    options = ("--out", out, "--model", "toy", "--method", "mean", "--method", "center", "--words", 0, "--seed", 3)
    result = call("evaluate", "folder", films, *options)
    assert result.exit_code == 0, result.stderr
    assert "report.html" in result.stderr
    made = json.loads((out / "results.json").read_text())
    assert made["scored"] == 2 and made["methods"] == ["mean", "center"] and made["model"] == "toy"
    rest = "--model toy --method mean --method center --seed 3 --words 0"
    assert made["command"] == f"voxplain evaluate folder '{films}' --out {out} {rest}"
    assert call("evaluate", "folder", films, *options).exit_code == 0  # nothing is left to do
    other = call("evaluate", "folder", films, *options[:-1], 4)
    refused(other, "seed was 3 and is 4")
    assert call("evaluate", "folder", films, *options[:-1], 4, "--overwrite").exit_code == 0


def test_bad_input_ends_in_one_line(films, tmp_path, monkeypatch):
    out = tmp_path / "report"
    refused(call("evaluate", "mscxr", films, "--out", out), "no data set 'mscxr'")
    refused(call("evaluate", "folder", films, "--out", out, "--split", "tset"), "no split 'tset'")
    refused(call("evaluate", "folder", films, "--out", out, "--set", "table"), "NAME=VALUE")
    refused(call("evaluate", "runs", "--out", out), "CSV file with the columns run, mask and words")
    refused(call("evaluate", "folder", films, "--out", out, "--workers", 2), "'serial' with 1")
    refused(call("evaluate", "phantoms", "--out", out, "--count", 0), "1 or more of dev, test or shift")
    refused(call("evaluate", "folder", films, "--out", films), "holds no evaluation")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    ray = call("evaluate", "folder", films, "--out", out, "--executor", "ray", "--workers", 2)
    refused(ray, "pip install 'voxplain[ray]'", code=1)


def test_labels_are_chosen_and_read_by_another_text(films, tmp_path):
    out = tmp_path / "report"
    chosen = ("--label", "effusion", "--as", "effusion=nodule")
    result = call("evaluate", "folder", films, "--out", out, "--model", "toy", *chosen)
    assert result.exit_code == 0, result.stderr
    made = json.loads((out / "results.json").read_text())
    assert made["source"]["read_as"] == {"effusion": "nodule"} and made["source"]["labels"] == ["effusion"]
    assert made["command"].endswith("--label effusion --as effusion=nodule")
    refused(call("evaluate", "folder", films, "--out", out, "--label", "mass"), "shows no mass; it shows effusion")
    refused(call("evaluate", "folder", films, "--out", out, "--as", "effusion"), "--as effusion", "NAME=VALUE")
    refused(
        call("evaluate", "phantoms", "--out", out, "--label", "effusion"), "phantoms take no --set, --label and --as"
    )


def test_sanity_prints_a_line_a_check_and_writes_a_page(tmp_path, films):
    page = tmp_path / "sanity.html"
    result = call("sanity", "toy", "--out", page, "--image", films / "0.png", "--steps", 2)
    assert result.exit_code == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 7 and all(line.startswith("pass  ") for line in lines)
    assert "no check of 7 failed" in page.read_text()


def test_sanity_fails_where_the_text_is_ignored(monkeypatch):
    class Deaf(ToyAdapter):
        def encode_prompt(self, prompt):
            return super().encode_prompt(self.tokenize(""))

    monkeypatch.setattr(loading, "load", lambda name, **options: Deaf((8, 24)))
    monkeypatch.setattr(sanity, "SEEDS", 2)
    result = call("sanity", "deaf", "--json", "--steps", 2)
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["passed"] is False and document["image"] == "made from the text"
    assert {one["check"] for one in document["checks"] if one["passed"] is False} >= {"word removal", "guidance"}
    refused(call("sanity", "deaf", "--word", "mass"), "not in the prompt")


def test_a_command_leaves_out_what_is_usual():
    given = {"out": "a b", "model": "thorax", "retry": True, "option": ["x=1", "y=2"], "count": None, "gpus": 0.5}
    assert evaluating.spelled("evaluate", ["phantoms"], given) == (
        "voxplain evaluate phantoms --out 'a b' --retry --set x=1 --set y=2 --gpus 0.5"
    )
    assert evaluating.spelled("sanity", ["toy"], {"as_json": True, "other": "nodule"}) == "voxplain sanity toy --json"
