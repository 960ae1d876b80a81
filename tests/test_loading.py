"""The one door to the models says what is behind it."""

import pytest

import voxplain


@pytest.mark.parametrize("name", ["lung", "torax", "no/such/folder"])
def test_an_unknown_model_names_what_there_is(name):
    with pytest.raises(
        ValueError,
        match=f"no model '{name}'.*give one of 'thorax', 'thorax-2d', 'thorax-2d-seed1', 'thorax-2d-seed2'; a folder",
    ):
        voxplain.load(name)


def test_a_folder_of_something_else_says_what_it_holds(tmp_path):
    (tmp_path / "config.json").write_text("{}")  # a text encoder, say
    with pytest.raises(ValueError, match=r"no model .* \(a folder that holds config.json\): give one of 'thorax'"):
        voxplain.load(tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_names_those_that_are(device, monkeypatch):
    monkeypatch.setattr("voxplain.models.thorax.load", lambda name: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match=f"device = '{device}' cannot be used here .*; there is cpu"):
        voxplain.load("thorax", device=device)


def test_a_name_that_is_not_there_says_what_is():
    with pytest.raises(AttributeError, match="no 'explian'; it has .*explain"):
        voxplain.explian  # noqa: B018


def test_the_table_of_contents_lists_what_it_gives():
    assert {"load", "trace", "explain", "masks", "io", "__version__"} <= set(dir(voxplain))
    assert voxplain.__version__ == voxplain.__version__ != ""
    assert voxplain.masks.top_fraction.__module__ == "voxplain.masks"
