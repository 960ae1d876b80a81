"""How fast the viewer is, in a real browser with software GL, on the page itself.

    python bench/viewer.py --run runs/demo [--repeats 20]

The server runs in a process of its own, as a user starts it. Measured on the page, each `--repeats` times: from opening
it to the first picture; from pressing a word, and from moving the slider, to the picture on the screen (the pixels are
read back, so that the drawing is done); from a voxel to the words ranked beside it. The last one again on a made-up run
of 60 words whose maps have 64 x 64 x 64 cells. A time over its aim says so in the table.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright
from record import write

from voxplain.geometry import regular
from voxplain.io import save_run
from voxplain.maps import Attribution, Explanation, Sample, Trajectory
from voxplain.recipes import get
from voxplain.tokens import TokenizedPrompt

SIZE = {"width": 1064, "height": 560}  # leaves the three planes about 700 x 300 pixels
SWITCHES = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
AIMS = {"first picture": 1500, "slider": 50, "word, shown before": 50, "word, first time": 50, "voxel": 50}  # ms
READY = """new MutationObserver(() => {
  if (document.documentElement.dataset.ready) window.firstPicture ??= performance.now();
}).observe(document, {subtree: true, attributes: true, childList: true});"""
TIMED = """async (values) => {
  const app = window.Voxplain.app, gl = app.stage.nv.gl, taken = [];
  for (const value of values) {
    const start = performance.now();
    await (CHANGE);
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
    taken.push(performance.now() - start);
    await new Promise((done) => setTimeout(done, 60));
  }
  return taken;
}"""
SHOW = "app.set({words: [value], joined: []})"
SLIDE = "app.set({top: value}, true)"
RANK = "(app.stage.go(value), app.rank())"


@contextmanager
def served(run: Path) -> Iterator[str]:
    """The address of a run, served by the command line."""
    command = [str(Path(sys.executable).with_name("voxplain")), "view", str(run), "--no-open", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        if not line.startswith("http"):
            raise RuntimeError(f"{' '.join(command)} said: {line}{process.stderr.read()}")
        yield line.split()[0]
    finally:
        process.terminate()
        process.wait(20)


def opened(browser: Browser, url: str) -> tuple[Page, float]:
    """A fresh page that is ready, and the ms from its opening to its first picture."""
    page = browser.new_page(viewport=SIZE)
    page.add_init_script(READY)
    page.set_default_timeout(300_000)
    page.goto(url)
    page.wait_for_selector("html[data-ready]", state="attached")
    return page, page.evaluate("window.firstPicture")


def timed(page: Page, values: Sequence[Any], change: str) -> list[float]:
    """The ms that each change takes until its picture is there."""
    return page.evaluate(TIMED.replace("CHANGE", change), list(values))


def voxels(page: Page, count: int) -> list[list[int]]:
    """Places all over the image, the same ones each time."""
    shape = page.evaluate("window.Voxplain.app.view.sample.shape")
    return np.random.default_rng(0).integers(0, shape, (count, 3)).tolist()


def crowded(place: Path, words: int = 60, side: int = 64) -> Path:
    """A run of that many words, whose maps are as fine as its image."""
    text = " ".join(f"word{number}" for number in range(words))
    spans = [(text.index(word), text.index(word) + len(word)) for word in text.split()]
    pieces = ("[start]", *text.split(), "[end]")
    prompt = TokenizedPrompt(text, tuple(range(words + 2)), pieces, (None, *spans, None), start=0, end=words + 1)
    rng, geometry = np.random.default_rng(0), regular((side,) * 3, (5.0,) * 3)
    maps = rng.dirichlet(np.ones(words + 2), side**3).T.reshape(words + 2, side, side, side).astype(np.float32)
    mean = Attribution(
        maps,
        np.zeros((side,) * 3, np.float32),
        prompt=prompt,
        geometry=geometry,
        image_geometry=geometry,
        recipe=get("mean"),
    )
    sample = Sample(rng.normal(-500, 300, (1, side, side, side)).astype(np.float32), geometry, text)
    states = Trajectory(np.zeros((1, 1, 2, 2, 2), np.float32), (1.0,), (0,))
    return save_run(Explanation(sample, prompt, {"mean": mean}, {"seed": 0}, states), place / "crowded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--repeats", type=int, default=20)
    chosen = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("no chromium on PATH (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as made:
        browser = made.chromium.launch(
            executable_path=chromium, args=SWITCHES, ignore_default_args=["--disable-gpu"], timeout=300_000
        )
        taken: dict[str, list[float]] = {"first picture": []}
        with served(chosen.run) as url:
            opened(browser, url)[0].close()  # the first page of all warms the browser up, and does not count
            for number in range(chosen.repeats):
                page, first = opened(browser, url)
                taken["first picture"].append(first)
                if number < chosen.repeats - 1:
                    page.close()
            words = page.evaluate("window.Voxplain.app.view.words.map((word) => word.label)")
            canvas = page.evaluate("(({width, height}) => [width, height])(window.Voxplain.app.stage.glCanvas)")
            new = [word for word in words if word not in page.evaluate("window.Voxplain.app.state.words")]
            taken["word, first time"] = timed(page, new, SHOW)
            again = (words * chosen.repeats)[: chosen.repeats]
            taken["word, shown before"] = timed(page, again, SHOW)
            taken["slider"] = timed(page, [5 + 90 * n // chosen.repeats for n in range(chosen.repeats)], SLIDE)
            taken["voxel"] = timed(page, voxels(page, chosen.repeats), RANK)
        with served(crowded(Path(folder))) as url:
            page, _ = opened(browser, url)
            taken["voxel, 60 words at 64^3"] = timed(page, voxels(page, chosen.repeats), RANK)
        version = browser.version
        browser.close()
    figures, table = {}, []
    for name, values in taken.items():
        aim, median, worst = AIMS[name.split(", 60")[0]], statistics.median(values), max(values)
        figures[name] = {"aim_ms": aim, "n": len(values), "median_ms": median, "worst_ms": worst, "ms": values}
        met = "met" if median <= aim else "not met"
        row = {"measured": name, "n": len(values), "median, ms": round(median, 1), "worst, ms": round(worst, 1)}
        table.append({**row, "aim, ms": aim, "median": met})
        print(" | ".join(map(str, table[-1].values())))
    facts = {"canvas": canvas, "words": len(words), "browser": f"Chromium {version}, software GL"}
    command = f"python bench/viewer.py --run {chosen.run} --repeats {chosen.repeats}"
    print(write("viewer", command, {**facts, "times": figures}, table))


if __name__ == "__main__":
    main()
