"""OHIF itself on a run: what lies in its memory is compared with the run, voxel by voxel.

Skipped where OHIF, Chromium or a package is missing.
"""

import numpy as np
import pytest
from browsing import Watched
from typer.testing import CliRunner

from voxplain import masks
from voxplain.adapters.toy import ToyAdapter
from voxplain.cli import app
from voxplain.geometry import regular
from voxplain.io import save_run
from voxplain.studies import explaining

for package, extra in {"pydicom": "dicom", "highdicom": "dicom", "fastapi": "viewer", "uvicorn": "viewer"}.items():
    pytest.importorskip(package, reason=f"{package} is not installed (voxplain[{extra}])")

from voxplain.serve import ohif, starting  # noqa: E402

PROMPT = "large effusion in the left lung"
FRACTION = 0.05  # the toy's maps are flat outside of boxes of 6 %, so a larger part would be everything
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SERIES = "services.displaySetService.getActiveDisplaySets()"
VIEWPORT = (
    "services.cornerstoneViewportService.getCornerstoneViewport(services.viewportGridService.getActiveViewportId())"
)
VOLUME = """
  (named) => {
    const found = [...cornerstone.cache._volumeCache.keys()].find((id) => id.match(named));
    const {dimensions, spacing, origin, direction, loadStatus, voxelManager} =
      (found && cornerstone.cache.getVolume(found)) || {};
    if (!loadStatus?.loaded) return null;
    const values = Array.from(voxelManager.getCompleteScalarDataArray());
    return {dimensions, spacing, origin, direction: [...direction], values};
  }
"""
LABELS = """
  () => cornerstoneTools.segmentation.state.getSegmentations()[0].representationData.Labelmap.imageIds.map((id) => ({
    height: cornerstone.metaData.get("imagePlaneModule", id).imagePositionPatient[2],
    values: Array.from(cornerstone.cache.getImage(id).voxelManager.getScalarData()),
  }))
"""
PAINTED = f"""
  (colored) => {{
    const canvas = {VIEWPORT}.canvas;
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const found = {{colored: 0, gray: 0}};
    for (let n = 0; n < pixels.length; n += 4) {{
      const [low, high] = [Math.min(...pixels.subarray(n, n + 3)), Math.max(...pixels.subarray(n, n + 3))];
      if (high - low > 24) found.colored += 1;
      else if (high > 24) found.gray += 1;
    }}
    return found.gray > 1000 && (colored ? found.colored > 1000 : found.colored === 0);
  }}
"""


@pytest.fixture(scope="module")
def explanation():
    """A run of the toy whose three voxel sizes differ, and whose words are all at the feet."""
    adapter = ToyAdapter((6, 8, 12))
    adapter.geometry = regular((12, 16, 24), (7.5, 5.0, 6.0), (-40.0, 12.0, 7.0))
    return explaining.explain(adapter, PROMPT, seed=1, steps=4, recipes=("mean",))


class Opened(Watched):
    """OHIF on the run, past what it says to newcomers."""

    def __init__(self, chromium, address):
        super().__init__(chromium, (1000, 700))
        self.page.goto(address)
        self.page.wait_for_function(f"window.services && {SERIES}.length === 5")
        self.page.wait_for_function(f"{VIEWPORT}?.viewportStatus === 'rendered'")
        self.page.get_by_text("Skip all").first.click()
        self.page.get_by_text("Confirm and hide").first.click()

    def lay_over(self, text):
        """Open a series over the CT, as its user does."""
        self.page.locator('[data-cy="study-browser-thumbnail-no-image"]').filter(has_text=text).dblclick()

    def volume(self, named):
        """A volume in OHIF's memory, `[slices, rows, columns]`, and what OHIF knows of its place."""
        kept = self.page.wait_for_function(VOLUME, arg=named).json_value()
        return np.array(kept.pop("values")).reshape(kept["dimensions"][::-1]), kept

    def wait_for_slice(self, number, colored):
        """Go to a slice, counted from the feet, and wait until it shows the CT with a map over it, or without."""
        self.page.wait_for_function(f"{VIEWPORT}?.type === 'orthographic' && {VIEWPORT}.getActors().length === 2")
        world = [32, 52, 7 + 7.5 * number]
        self.page.evaluate(f"(world) => {{ {VIEWPORT}.jumpToWorld(world); {VIEWPORT}.render(); }}", world)
        self.page.wait_for_function(PAINTED, arg=colored, timeout=60_000)


@pytest.fixture(scope="module")
def address(explanation, serving):
    try:
        dist = ohif.found_dist()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    with (
        ohif.exported([explanation], FRACTION) as folder,
        serving(lambda access: ohif.ohif_application(folder, dist, access)) as url,
    ):
        yield url


@pytest.fixture(scope="module")
def opened(chromium, address):
    return Opened(chromium, address)


def mask_of(explanation, word):
    return masks.top_fraction(explanation.word(word), FRACTION).resize(explanation.sample.geometry).values


def test_every_object_of_a_run_is_recognized_and_nobody_else_is_asked(opened, address):
    found = opened.page.evaluate(f"{SERIES}.map((one) => [one.Modality, one.SeriesDescription])")
    words = ("large", "effusion", "left")
    assert sorted(map(tuple, found)) == sorted(
        [
            ("CT", "SYNTHETIC CT"),
            ("SEG", "SYNTHETIC masks of words, mean"),
            *(("PMAP", f"SYNTHETIC {word}, map by mean") for word in words),
        ]
    )
    assert opened.page.evaluate("crossOriginIsolated")
    assert opened.elsewhere(address) == [] and opened.wrong == []


def test_a_map_lies_on_the_ct_as_it_does_in_the_run(opened, explanation):
    opened.lay_over("effusion, m")
    values, place = opened.volume("^pmap")
    image, under = opened.volume("Volume:(?!pmap)")
    heatmap = explanation.word("effusion").resize(explanation.sample.geometry).values
    shown = np.where(mask_of(explanation, "effusion"), heatmap, 0)
    assert shown[:6].any() and not shown[6:].any()  # upside down would be another map
    np.testing.assert_array_equal(image, np.rint(explanation.sample.image[0]))
    np.testing.assert_allclose(values, 100 * shown / shown.max(), rtol=1e-5)  # OHIF keeps maps in hundredths
    assert place == under
    assert place["origin"] == [-40, 12, 7] and place["spacing"] == [6, 5, 7.5]
    assert place["direction"] == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    opened.wait_for_slice(int(shown.sum((1, 2)).argmax()), colored=True)
    opened.wait_for_slice(11, colored=False)
    assert opened.wrong == []


def test_masks_are_segments_by_their_words_on_the_slices_of_the_run(opened, explanation):
    opened.lay_over("masks of words")
    opened.page.get_by_role("button", name="Yes").click()
    opened.page.wait_for_function("cornerstoneTools.segmentation.state.getSegmentations().length === 1")
    segments = opened.page.evaluate(
        "Object.values(cornerstoneTools.segmentation.state.getSegmentations()[0].segments)"
        ".map((one) => [one.segmentIndex, one.label])"
    )
    assert [tuple(one) for one in segments] == [(1, "large"), (2, "effusion"), (3, "left")]
    found = {number: np.zeros((12, 16, 24), bool) for number, _ in segments}
    for plane in opened.page.evaluate(LABELS):
        slice_number = round((plane["height"] - 7) / 7.5)
        labels = np.reshape(plane["values"], (16, 24))
        for number, mask in found.items():
            mask[slice_number] |= labels == number
    for number, word in segments:
        np.testing.assert_array_equal(found[number], mask_of(explanation, word))
    assert opened.wrong == []


@pytest.fixture
def served(monkeypatch):
    """What `voxplain view --ohif` would have served, instead of serving it."""
    seen = {}

    def serve(build, listening, access, ready):
        listening.close()
        seen.update(application=build(access), access=access)
        client = testclient.TestClient(seen["application"], base_url=access.url, follow_redirects=False)
        seen["answers"] = {path: client.get(path) for path in ("/", "/dicom-web/studies", "/dicom-web/series")}
        ready(access.url)

    testclient = pytest.importorskip("fastapi.testclient", reason="needs httpx")
    monkeypatch.setattr(starting, "run", serve)
    return seen


def view(*arguments):
    return CliRunner().invoke(app, ["view", *map(str, arguments), "--ohif", "--no-open", "--port", "0"])


def test_the_verb_serves_ohif_on_the_runs_and_tells_the_address(served, explanation, tmp_path):
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "index.html").write_text("OHIF")
    made = view(save_run(explanation, tmp_path / "run"), "--ohif-dist", tmp_path / "dist")
    assert made.exit_code == 0, made.stderr
    assert f"http://127.0.0.1:{served['access'].port}/ " in made.stderr
    home, studies, series = served["answers"].values()
    (study,) = studies.json()
    assert home.headers["location"] == f"/viewer?StudyInstanceUIDs={study['0020000D']['Value'][0]}"
    assert sorted(one["00080060"]["Value"][0] for one in series.json()) == ["CT", "OT", "OT", "OT", "SEG"]


def test_without_ohif_the_verb_says_how_to_get_it_and_serves_nothing(served, explanation, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = view(save_run(explanation, tmp_path / "run"))
    assert made.exit_code == 2 and "voxplain ohif install" in made.stderr
    assert not served


@pytest.mark.parametrize(
    ("options", "part"),
    [(("--ohif", "--allow-generate"), "makes none"), (("--ohif-dist", "."), "add --ohif")],
    ids=" ".join,
)
def test_options_that_would_do_nothing_are_refused(served, tmp_path, options, part):
    made = CliRunner().invoke(app, ["view", str(tmp_path), "--no-open", *options])
    assert made.exit_code == 2 and part in made.stderr
    assert not served
