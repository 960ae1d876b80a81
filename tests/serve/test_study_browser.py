"""A reader at the page of a study, by its state and its pixels; skipped where Chromium or the server is missing."""

import json
from dataclasses import replace

import pytest
from browsing import Watched
from synthetic import explained

from voxplain.io import save_run
from voxplain.studies.reader_folder import Study
from voxplain.studies.reader_plan import Case, Question, default_plan

pytest.importorskip("fastapi", reason="the viewer's web server is not installed (voxplain[viewer])")

from voxplain.serve.study import Session, build_study  # noqa: E402

MARKUP = "<img src=x onerror=alert(1)>"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a machine without GPU, busy with other tests


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    deep = str(save_run(explained((16, 24, 32), text=f"{MARKUP} effusion in the left hilum"), place / "deep"))
    flat = str(save_run(explained((24, 32), text="A nodule in the left hilum", unit="relative"), place / "flat"))
    cases = [Case("1", deep, "effusion", arm="wrong"), Case("2", deep, "effusion", arm="none")]
    plan = default_plan([*cases, Case("3", flat, "nodule", arm="attention")])
    questions = (*plan.questions, Question("real", MARKUP, "scale", ("not", "very"), confidence=False))
    return Study.at(place / "out", replace(plan, order="listed", title=MARKUP, show_prompt=True, questions=questions))


class Reader(Watched):
    """A page of the study."""

    def __init__(self, chromium, url):
        super().__init__(chromium, (1280, 720))
        self.page.goto(url)

    def ready(self, name):
        self.page.wait_for_selector(f'html[data-ready="{name}"]', state="attached")

    def choose(self, number, value):
        self.page.locator(f'input[name="{number}"][value="{value}"]').check(force=True)

    def colored(self):
        """How many pixels of the picture are not gray, right after painting."""
        return self.page.evaluate(
            """() => {
              const { nv } = Voxplain.study.stage;
              nv.drawScene();
              const [wide, high] = [nv.gl.drawingBufferWidth, nv.gl.drawingBufferHeight];
              const pixels = new Uint8Array(4 * wide * high);
              nv.gl.readPixels(0, 0, wide, high, nv.gl.RGBA, nv.gl.UNSIGNED_BYTE, pixels);
              let count = 0;
              for (let n = 0; n < pixels.length; n += 4)
                count += Math.max(...pixels.subarray(n, n + 3)) - Math.min(...pixels.subarray(n, n + 3)) > 24;
              return count;
            }"""
        )


def test_a_reader_goes_through_a_study_closes_the_browser_and_goes_on(study, chromium, serving):
    session = Session(study, "R1")
    with serving(lambda access: build_study(session, access)) as url:
        first = Reader(chromium, url)
        page = first.page
        first.ready("cover")
        assert page.locator("#title").inner_text() == MARKUP
        assert "deliberately wrong" in page.locator("#notice").inner_text()
        assert "not for diagnosis" in page.locator("#notice").inner_text()
        page.keyboard.press("Enter")  # the button has the focus
        first.ready("case 0")
        assert f"{MARKUP} effusion" in page.locator("#told").inner_text()
        assert page.locator("main img").count() == 0
        assert first.colored() > 200
        page.keyboard.press("h")
        assert first.colored() == 0
        page.keyboard.press("h")
        page.keyboard.press("3")
        assert page.locator('[data-window="bone"]').get_attribute("aria-pressed") == "true"
        page.locator("#pane canvas.gl").focus()
        page.keyboard.press("PageUp")
        page.click("#next")  # nothing is answered
        first.ready("case 0")
        assert study.answers() == []
        first.choose("answer-0", "no")
        first.choose("sure-0", 5)
        first.choose("answer-1", "it does not fit")
        first.choose("sure-1", 2)
        first.choose("answer-3", 3)
        page.fill("textarea", "=1+1")
        page.click("#next")
        first.ready("case 1")
        assert first.colored() == 0, "the arm without overlay"
        assert page.locator("#overlay").is_hidden()
        assert page.locator("fieldset").count() == 3, "no question about an overlay"
        page.mouse.move(300, 200)
        page.close()
        assert first.wrong == []
        assert first.elsewhere(url) == []

        second = Reader(chromium, url)
        page = second.page
        second.ready("cover")
        assert "case 2 of 3" in page.locator("#begin").inner_text()
        page.click("#begin")
        second.ready("case 1")
        for _ in "two cases":
            second.choose("answer-0", "yes")
            second.choose("sure-0", 1)
            last = page.locator("fieldset").count() - 1
            second.choose(f"answer-{last}", 1)
            if last == 3:
                assert second.colored() > 200, "an image of two axes has its overlay, too"
                second.choose("answer-1", "it fits")
                second.choose("sure-1", 3)
                break
            page.click("#next")
            second.ready("case 2")
        page.click("#next")
        second.ready("done")
        assert second.wrong == []
        page.close()

    rows = {(row["case"], row["question"]): row for row in study.answers()}
    assert len(rows) == len(study.answers()) == 4 + 3 + 4
    assert (rows["1", "fits"]["answer"], rows["1", "fits"]["confidence"]) == ("it does not fit", 2)
    assert rows["1", "fits"]["shown"]["wrong"] == "mirror"
    assert rows["1", "remark"]["answer"] == "=1+1"
    assert rows["2", "remark"]["answer"] is None
    assert 0 <= rows["1", "abnormal"]["seconds"] <= rows["1", "fits"]["seconds"] <= rows["1", "fits"]["case_seconds"]
    logged = [json.loads(line) for line in (study.folder / "events-R1.jsonl").read_text().splitlines()]
    seen = next(each["events"] for each in logged if each.get("complete"))
    kinds = [(what, value) for _, what, value in seen]
    assert kinds[:2] == [("window", "lung"), ("voxel", [8, 12, 16])]
    for event in (
        ("overlay", False),
        ("overlay", True),
        ("window", "bone"),
        ("voxel", [9, 12, 16]),
        ("answer", "fits"),
    ):
        assert event in kinds
    assert [seconds for seconds, _, _ in seen] == sorted(seconds for seconds, _, _ in seen)
    table = study.table()
    facts = dict(zip(table.columns, table.rows[-1], strict=True))
    assert (facts["case"], facts["times_opened"]) == ("3", 1)
