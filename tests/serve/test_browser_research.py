"""The research drawer, the sizes of screens and the keyboard, in a browser."""

from dataclasses import replace

import numpy as np
import pytest
from browsing import Viewer
from synthetic import explained

from voxplain.io import save_run
from voxplain.serve.library import Library

pytest.importorskip("fastapi", reason="the viewer's web server is not installed (voxplain[viewer])")

from voxplain.serve.app import build  # noqa: E402

SHAPE, TEXT = (16, 24, 32), "Large effusion in the left lung"
PARTS, LAYERS = 3, ("down.0.attn2", "up.1.attn2")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a machine without GPU, busy with other tests


def detailed(shift):
    """An explanation with maps of parts of the steps, all different, and of layers, one on a coarser grid."""
    made = explained(SHAPE, text=TEXT)
    mean = made.attributions["mean"]
    attributions = {**made.attributions, "mean": replace(mean, maps=np.roll(mean.maps, shift, 1))}
    for part in range(PARTS):
        name = f"part {part + 1} of {PARTS}"
        facts = {"statistic": f"{name} of the steps"}
        attributions[f"mean {name}"] = replace(mean, maps=np.roll(mean.maps, part, 3), provenance=facts)
    for number, layer in enumerate(LAYERS, start=1):
        step = (slice(None), *[slice(None, None, number)] * 3)
        maps, padding = mean.maps[step], mean.padding[step[1:]]
        facts = {"statistic": f"layer {layer}", "layers": [layer]}
        geometry = mean.image_geometry.at(padding.shape)
        attributions[f"mean layer {layer}"] = replace(
            mean, maps=maps, padding=padding, controls={}, geometry=geometry, provenance=facts
        )
    return replace(made, attributions=attributions)


@pytest.fixture(scope="module")
def address(tmp_path_factory, serving):
    place = tmp_path_factory.mktemp("runs")
    runs = [save_run(detailed(shift), place / name) for name, shift in (("first", 0), ("second", 2))]
    with serving(lambda access: build(Library(runs), access)) as url:
        yield url


@pytest.fixture(scope="module")
def shared(chromium, address):
    return Viewer(chromium, f"{address}#drawer=true", (1280, 720))


@pytest.fixture
def page(shared):
    shared.run("app.set({beside: '', difference: false, part: 0, layer: '', recipe: 'mean', words: ['effusion']})")
    shared.settled()
    yield shared
    assert shared.wrong == []


def test_two_runs_stand_side_by_side_with_one_crosshair_and_their_difference(page):
    page.page.select_option("#compare", "run:second")
    page.page.locator("#pane-right").wait_for()
    page.settled()
    assert page.colored("other") > 100
    for pane, place in (("pane-left", (0.2, 0.3)), ("pane-right", (0.7, 0.6))):
        left, top, width, height = page.tile(0, pane)
        page.page.mouse.click(left + place[0] * width, top + place[1] * height)
        page.settled()
        there = page.run("app.stage.voxel")
        assert there == page.run("app.other.voxel") == page.state("voxel")
        assert there[2] == pytest.approx(place[0] * SHAPE[2], abs=1)
    page.page.get_by_label("difference of the maps").check()
    page.settled()
    assert "second less first" in page.page.locator("#pane-right figcaption").inner_text()
    ours, theirs = (
        detailed(shift).word("effusion").resize(explained(SHAPE).sample.geometry).values for shift in (0, 2)
    )
    expected = theirs / detailed(2).word("effusion").values.max() - ours / detailed(0).word("effusion").values.max()
    found = np.reshape(page.run("Array.from(app.other.layers[0].values)"), SHAPE)
    np.testing.assert_allclose(found, expected, atol=0.01)  # maps are sent in 256 steps
    assert found.min() < -0.3 and found.max() > 0.3
    assert "less here (blue), more here (orange)" in page.page.locator("#legend").inner_text()


def test_the_steps_are_played_and_stop_where_there_are_none(page):
    page.page.get_by_role("button", name="Play").click()
    shown = {}
    for part in (1, 2, 3, 1):  # round and round
        page.until(f"app.state.part === {part}")
        shown[page.run("app.recipeNow()")] = None
    assert list(shown) == [f"mean part {part + 1} of {PARTS}" for part in range(PARTS)]
    page.page.get_by_role("button", name="Stop").click()
    page.settled()
    assert page.state("part") == 0
    for part in (1, 2, 3):
        page.page.get_by_label("Part").fill(str(part))
        page.settled()
        heat = explained(SHAPE, text=TEXT).attributions["mean"]
        row = heat.prompt.find("effusion")[0]
        values = np.reshape(
            page.run("Array.from((await app.view.heat(app.recipeNow(), 'effusion')).values)"), (8, 12, 16)
        )
        np.testing.assert_allclose(values, np.roll(heat.maps, part - 1, 3)[row], atol=0.01)
    page.page.get_by_role("button", name="Play").click()
    page.press("e")  # the effect has no parts
    assert page.state("recipe") == "effect" and page.state("part") == 0
    assert not page.run("Boolean(app.playing)")


def test_a_single_layer_is_shown_on_its_own_grid_and_is_part_of_the_link_and_the_code(page):
    page.page.select_option("#layer", LAYERS[1])
    page.settled()
    assert page.run("(await app.view.heat(app.recipeNow(), 'effusion')).shape") == [4, 6, 8]
    assert page.colored() > 100
    assert f'recipe="mean layer {LAYERS[1]}"' in page.page.locator("#code").inner_text()
    assert "1 layer\n" in page.page.locator("#drawer").inner_text() + "\n"
    page.until(f"location.hash.includes('layer={LAYERS[1]}')")
    names = page.page.locator('[aria-label="What a map shows"] button').all_inner_texts()
    assert names == ["Attended to", "Changed"]  # parts and layers are no choices of their own


@pytest.mark.parametrize("size", [(1280, 720), (820, 1180), (1180, 500)], ids=str)  # the last as in a notebook
@pytest.mark.parametrize("link", ["", "#drawer=true&beside=recipe:effect"], ids=["plain", "all"])
def test_nothing_overlaps_or_is_cut_off(chromium, address, size, link):
    page = Viewer(chromium, address + link, size)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    names = page.page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(names) == len(set(names))  # labels lead to the first element of a name
    boxes = {
        name: box
        for name in ("#top", "#prompt", "#pane-left .screen", "#pane-right .screen", "#side", "#ranking", "#drawer")
        if (box := page.page.locator(name).bounding_box())
    }
    assert len(boxes) == 5 + 2 * bool(link)
    for name, a in boxes.items():
        assert a["x"] >= 0 and a["x"] + a["width"] <= size[0] + 0.5, name
        for other, b in boxes.items():
            beside = a["x"] + a["width"] <= b["x"] + 0.5 or b["x"] + b["width"] <= a["x"] + 0.5
            above = a["y"] + a["height"] <= b["y"] + 0.5 or b["y"] + b["height"] <= a["y"] + 0.5
            assert name == other or beside or above, f"{name} and {other} overlap"
    cut = """[...document.querySelectorAll("button, label, h2, figcaption, .soft, select")]
      .filter((one) => one.clientWidth && one.scrollWidth > one.clientWidth + 1).map((one) => one.textContent)"""
    assert page.page.evaluate(cut) == []
    for number in range(3):
        _, top, width, height = page.tile(number)
        assert min(width, height) > 100
        assert link or size[1] < 720 or top + height <= size[1]  # all planes at once, without scrolling
    assert page.wrong == []
    page.page.close()


def test_everything_is_reached_by_the_keyboard_alone(chromium, address):
    page = Viewer(chromium, address)

    def focused(what="dataset.word"):
        return page.page.evaluate(f"document.activeElement?.{what}")

    def tab_to(wanted, what="dataset.word"):
        for _ in range(60):
            if focused(what) == wanted:
                return
            page.page.keyboard.press("Tab")
        raise AssertionError(f"{wanted} is not reached by Tab")

    tab_to("left")
    assert page.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter")
    assert "left" in page.state("words") and focused() == "left"  # the line was drawn anew, and the focus stayed
    page.press("Space")
    assert "left" not in page.state("words") and not page.state("hidden")
    page.press("j")
    assert "left" in page.state("joined")
    tab_to("gl", "className")
    before = page.run("app.stage.voxel")
    page.press("PageUp")
    page.press("ArrowRight")
    moved = [now - then for now, then in zip(page.run("app.stage.voxel"), before, strict=True)]
    assert [abs(step) for step in moved] == [1, 0, 1]
    tab_to("outline", "dataset.name")
    page.press("Enter")
    assert page.state("outline") and focused("dataset.name") == "outline"
    tab_to("show-top", "id")
    page.press("ArrowRight")
    assert page.state("top") == 26
    page.press("?")
    assert page.page.locator("#help").is_visible()
    page.page.keyboard.press("Escape")
    page.until("!document.querySelector('dialog[open]') && !document.activeElement.closest('dialog')")
    assert not page.page.locator("#help").is_visible() and page.state("joined")
    page.press("r")
    assert page.state("drawer")
    tab_to("layer", "id")
    page.press("ArrowDown")
    assert page.state("layer") == LAYERS[0] and focused("id") == "layer"
    assert page.wrong == []
    page.page.close()
