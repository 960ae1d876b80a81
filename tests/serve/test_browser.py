"""The page in a browser, by its state and its pixels; skipped where Chromium or the server's packages are missing."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from browsing import PATIENCE, Viewer
from synthetic import explained

from voxplain.io import save_run
from voxplain.io.nifti import write_volume
from voxplain.serve import offline
from voxplain.serve.describing import ranking
from voxplain.serve.library import Library

pytest.importorskip("fastapi", reason="the viewer's web server is not installed (voxplain[viewer])")

from voxplain.serve.app import build  # noqa: E402

PROMPT = "Large effusion <img src=x onerror=alert(1)> and the left lung"
FRESH = {
    "words": ["effusion"],
    "joined": [],
    "hidden": False,
    "top": 25,
    "opacity": 70,
    "outline": False,
    "recipe": "mean",
    "beside": "",
    "difference": False,
    "flicker": False,
    "across": False,
    "drawer": False,
    "kept": None,
    "window": "lung",
    "last": "effusion",
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a machine without GPU, busy with other tests


@pytest.fixture(scope="module")
def address(tmp_path_factory, serving):
    place = tmp_path_factory.mktemp("runs")
    explanation = explained((16, 24, 32), text=PROMPT)
    first = save_run(explanation, place / "first")
    write_volume(first / "without-left.nii.gz", explanation.sample.image[:, ::-1] * 0.5, explanation.sample.geometry)
    change = np.zeros(explanation.sample.geometry.shape)
    change[4:8, 4:8, 4:8] = 100
    write_volume(first / "total-left.nii.gz", change, explanation.sample.geometry)
    flat = save_run(explained((24, 32), text="A large <b>nodule</b> on the left", unit="relative"), place / "flat")
    with serving(lambda access: build(Library([first, flat]), access)) as url:
        yield url


@pytest.fixture(scope="module")
def shared(chromium, address):
    return Viewer(chromium, address)


@pytest.fixture
def page(shared):
    """The one page, as it was when it opened: opening another costs seconds of software GL."""
    shared.run(f"(app.set({json.dumps(FRESH)}), app.go(app.view.entries.get('effusion').recipes.mean.peak))")
    shared.settled()
    yield shared
    assert shared.wrong == []


def test_it_opens_with_a_map_and_asks_nobody_else(page, address):
    assert page.colored() > 200
    assert page.elsewhere(address) == []
    assert page.page.locator("#prompt .line").inner_text() == PROMPT
    assert page.page.locator("#prompt img").count() == 0
    assert "synthetic" in page.page.locator("#notice").inner_text()
    assert "Not for diagnosis" in page.page.locator("#notice").inner_text()


def test_words_are_pressed_joined_soloed_and_hidden(page):
    one = page.colored()
    page.click("Large")
    assert page.state("words") == ["effusion", "Large"]
    assert page.colored() != one
    page.press("s")
    assert page.state("words") == ["Large"]
    page.press("s")
    assert page.state("words") == ["effusion", "Large"]
    page.press("h")
    assert page.colored() == 0
    page.press("h")
    assert page.colored() > 0
    page.click("left", modifiers=["Shift"])
    assert page.state("joined") == ["effusion", "Large", "left"]
    assert "effusion + Large + left" in page.page.locator("#legend").inner_text()
    page.press("Escape")
    assert page.colored() == 0


def test_the_shown_share_of_a_map_is_the_one_asked_for(page):
    shares = {}
    for top in (5, 25, 60):
        page.run(f"await app.set({{top: {top}}})")
        shares[top] = page.run(
            "(() => { let n = 0; for (let c = 3; c < app.stage.colors.length; c += 4) n += app.stage.colors[c] > 0;"
            " return n / (app.stage.colors.length / 4); })()"
        )
    assert shares[5] < shares[25] < shares[60]
    assert shares[25] == pytest.approx(0.25, abs=0.06)  # between cells the map is linear, so not exactly


def test_a_word_that_is_not_distinguishable_says_so_and_shows_no_mask(page):
    page.press("Escape")
    page.click("the")
    assert "not distinguishable" in page.page.locator("#legend").inner_text()
    assert page.page.locator('[data-word="the"]').get_attribute("class").split()[-1] == "unsure"
    table = page.run("app.stage.layers.map((layer) => [layer.flat, new Set(layer.table).size])")
    assert table == [[True, 3]]  # one color
    page.press("o")
    assert page.run("app.stage.layers.filter((layer) => !layer.flat).length") == 0


def test_attention_and_effect_switch_and_stand_side_by_side(page):
    page.press("e")
    assert page.state("recipe") == "effect"
    page.press("e")
    page.press("b")
    assert page.page.locator("#pane-right").is_visible()
    assert page.colored("other") > 0
    page.run("app.go([3, 5, 7])")
    assert page.run("app.other.voxel") == [3, 5, 7]
    page.press("b")
    assert not page.page.locator("#pane-right").is_visible()


def test_patient_right_is_on_the_left_of_the_screen(page):
    letters = page.run("app.stage.tiles.map((tile) => tile.ends.flat().join(''))")
    assert letters == ["RLAP", "RLSI", "APSI"]
    left, top, width, height = page.tile()
    page.page.mouse.click(left + 0.2 * width, top + 0.2 * height)
    page.settled()
    slices, row, column = page.run("app.stage.voxel")
    assert column < 32 / 3  # columns run to the patient's left, rows to posterior
    assert row < 24 / 3


def test_a_click_ranks_all_words_as_python_does(page):
    page.run("app.go([5, 6, 7])")
    for _ in range(200):
        if page.run("app.rankedAt") == "5,6,7":
            break
        time.sleep(0.1)
    shown = page.page.locator("#ranking li button").all_inner_texts()
    explanation = explained((16, 24, 32), text=PROMPT)
    values = {
        heatmap.label: float(heatmap.resize(explanation.sample.geometry).values[5, 6, 7])
        for heatmap in explanation.attributions["mean"].words()
    }
    assert shown == sorted(values, key=lambda word: -values[word])


def test_windows_change_the_gray_values_and_peaks_are_jumped_to(page):
    for key, low in (("1", -1350), ("2", -160), ("3", -500)):
        page.press(key)
        assert page.run("app.stage.nv.volumes[0].cal_min") == low
    page.press("n")
    word = page.state("words")[0]
    assert page.run(f"app.view.entries.get({word!r}).recipes.mean.peak") == page.run("app.stage.voxel")


def test_outlines_are_drawn_in_ink_and_the_picture_stays_gray(page):
    ink = (
        "app.stage.inkCanvas.getContext('2d').getImageData(0, 0, app.stage.inkCanvas.width, app.stage.inkCanvas.height)"
    )
    count = f"{ink}.data.filter((value, n) => n % 4 === 3 && value > 200).length"
    before = page.run(count)
    page.press("o")
    assert page.colored() == 0
    assert page.run(count) > before + 50


def test_the_image_without_a_word_stands_beside_with_its_difference(page):
    page.run("await app.set({beside: 'variant:0', difference: true})")
    page.run("app.go([5, 5, 5])")
    assert "without “left”" in page.page.locator("#pane-right figcaption").inner_text()
    assert page.colored("other") > 0
    page.run("await app.set({flicker: true})")
    assert page.run("Boolean(app.flickering)")
    page.run("await app.set({flicker: false, beside: ''})")
    assert not page.run("Boolean(app.flickering)")


def test_a_region_ranks_words_and_the_link_holds_the_state(page):
    page.press("r")
    assert page.page.locator("#drawer").is_visible()
    assert "load_run" in page.page.locator("#code").inner_text()
    page.page.get_by_role("button", name="Draw a region").click()
    left, top, width, height = page.tile()
    places = [(left + x * width, top + y * height) for x, y in [(0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8)]]
    page.page.mouse.move(*places[0])
    page.page.mouse.down()
    for place in places[1:]:
        page.page.mouse.move(*place, steps=4)
    with page.page.expect_request("**/region?*") as asked:
        page.page.mouse.up()
    page.page.locator("#ranking h2", has_text="region").wait_for()
    shape = (16, 24, 32)
    inside = np.unpackbits(np.frombuffer(asked.value.post_data_buffer, np.uint8)).reshape(shape).astype(bool)
    assert inside.any(axis=(1, 2)).sum() == 1  # one axial slice, of which about 0.6 x 0.6 was drawn around
    assert inside.sum() == pytest.approx(0.36 * 24 * 32, rel=0.15)
    expected = [entry["word"] for entry in ranking(explained(shape, text=PROMPT), "mean", inside)]
    assert page.page.locator("#ranking li button").all_inner_texts() == expected
    page.press("Escape")
    page.page.locator("#ranking h2", has_text="crosshair").wait_for()
    assert page.state("words") == ["effusion"]  # it took the region away, and no map
    time.sleep(0.4)
    assert "drawer=true" in page.run("location.hash")


def test_a_second_run_in_two_dimensions_opens_on_the_same_page(chromium, address):
    flat = Viewer(chromium, f"{address}#run=flat&top=40&part=9&layer=none")
    assert flat.state("top") == 40
    assert flat.colored() > 100
    assert flat.run("app.stage.tiles.map((tile) => tile.ends.flat().join(''))") == ["RLSI"]
    assert flat.page.locator("#prompt b").count() == 0
    assert flat.run("app.recipeNow()") == "effect"  # parts and layers that this run has not
    assert flat.wrong == []


def test_the_file_opens_from_the_disk_and_fetches_nothing(chromium, tmp_path):
    place = Path(tmp_path / "page.html")
    place.write_text(offline.interactive(explained((16, 24, 32), text=PROMPT), "a run"))
    page = Viewer(chromium, place.as_uri(), (1280, 720))
    assert page.colored() > 200
    assert page.state("recipe") == "effect"  # where it was measured it comes first
    page.press("e")
    assert page.state("recipe") == "mean"
    assert page.elsewhere("file:") == []
    assert page.wrong == []


def test_without_webgl_the_static_report_is_shown(launch, address):
    chromium = launch(gl=False)
    page = chromium.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector('html[data-ready="static"]', state="attached")
    assert "Voxplain report" in page.frame_locator("#fallback iframe").locator("h1").inner_text()
    chromium.close()
