"""What a run remembers of how its model was opened, and what it may ask for when it is opened again."""

import pytest

from voxplain.cli.opening import remembered, reopened


def test_files_are_remembered_by_whole_paths_and_shipped_models_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("bert", "model", "thorax"):
        (tmp_path / name).mkdir()
    (tmp_path / "a.bin").touch()
    given = {"text_encoder": "bert", "dtype": "float16", "trust_code": False}
    kept = remembered("medsyn:a.bin", given)
    assert kept["source"] == f"medsyn:{tmp_path / 'a.bin'}"
    assert kept["opened_with"] == {"text_encoder": str(tmp_path / "bert"), "dtype": "float16"}
    assert remembered("model", {})["source"] == str(tmp_path / "model")
    assert remembered("thorax", {}) == {"source": "thorax", "opened_with": {}}
    assert remembered("./thorax", {})["source"] == str(tmp_path / "thorax")


def test_what_is_given_goes_before_what_is_remembered(tmp_path):
    origin = {"source": "toy", "opened_with": {"text_encoder": str(tmp_path), "dtype": "float16"}}
    none = {"text_encoder": None, "dtype": None, "trust_code": False}
    assert reopened(tmp_path, origin, None, none) == ("toy", origin["opened_with"])
    name, options = reopened(tmp_path, origin, "other", {**none, "dtype": "float32"})
    assert name == "other" and options == {"text_encoder": str(tmp_path), "dtype": "float32"}
    assert reopened(tmp_path, {"model": "thorax"}, None, none) == ("thorax", {})  # made without the command line


def test_what_is_gone_is_named(tmp_path):
    gone = tmp_path / "gone"
    with pytest.raises(FileNotFoundError, match="the model .*gone, which is no longer there; name it by --model"):
        reopened(tmp_path, {"source": f"medsyn:{gone}"}, None, {})
    origin = {"source": "toy", "opened_with": {"text_encoder": str(gone)}}
    with pytest.raises(FileNotFoundError, match="the text encoder .*gone, which is no longer there"):
        reopened(tmp_path, origin, None, {})
    assert reopened(tmp_path, origin, None, {"text_encoder": tmp_path})[1] == {"text_encoder": tmp_path}


def test_no_run_folder_can_ask_for_code_to_run(tmp_path):
    origin = {"source": "toy", "opened_with": {"trust_code": True}}
    with pytest.raises(ValueError, match="made with --trust-code, so code of toy ran; give --trust-code again"):
        reopened(tmp_path, origin, None, {"trust_code": False})
    assert reopened(tmp_path, origin, None, {"trust_code": True}) == ("toy", {"trust_code": True})
