"""New runs from the page, by a real adapter; what is made stays on the disk."""

import pytest
from browsing import Viewer

from voxplain.adapters.toy import ToyAdapter
from voxplain.io import load_run, save_run
from voxplain.serve import generating
from voxplain.serve.jobs import Jobs
from voxplain.serve.library import Library
from voxplain.studies.explaining import explain

pytest.importorskip("fastapi", reason="the viewer's web server is not installed (voxplain[viewer])")

from voxplain.serve.app import build  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_run_is_made_from_the_prompt_box_and_again_without_a_word(chromium, serving, tmp_path, monkeypatch):
    model = ToyAdapter()
    monkeypatch.setattr(generating, "load", lambda name, device=None: model)
    library = Library([save_run(explain(model, "large left effusion", steps=2), tmp_path / "one")])
    jobs = Jobs(generating.Maker(library, "toy", tmp_path / "made"))
    with serving(lambda access: build(library, access, jobs=jobs)) as address:
        viewer = Viewer(chromium, address)
        page = viewer.page
        page.get_by_role("button", name="New run").click()
        page.get_by_label("What the image should show").fill("small right <i>effusion</i>")
        page.get_by_label("Seed").fill("3")
        page.get_by_label("Steps").fill("4")
        page.get_by_role("button", name="Generate").click()
        viewer.until("app.view.prompt.startsWith('small right')")
        made = library.folder(viewer.state("run"))
        assert made.parent == tmp_path / "made"
        kept = load_run(made)
        assert (kept.provenance["seed"], kept.provenance["steps"]) == (3, 4)
        assert page.locator("#prompt i").count() == 0

        if "right" in viewer.state("words"):
            viewer.click("right")
        viewer.click("right")
        page.get_by_role("button", name="Make it without “right”").click()
        page.locator("#pane-right figcaption", has_text="without “right”").wait_for()
        viewer.settled()
        assert viewer.state("beside") == "variant:0" and viewer.state("difference")
        assert {path.name for path in made.glob("*right*")} == {"total-right.nii.gz", "without-right.nii.gz"}
        page.get_by_role("button", name="Flicker").click()
        viewer.until("app.stage.nv.volumes[0].img !== app.stage.images.own")
        page.get_by_role("button", name="Make it with the side swapped").click()
        page.locator("#pane-right figcaption", has_text="side swapped").wait_for()
        assert viewer.wrong == []
