import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import explained

from voxplain.io import RunError, save_run
from voxplain.io.nifti import write_volume
from voxplain.maps import Explanation
from voxplain.serve.guard import CSP, LIMIT, Access
from voxplain.serve.library import Library

pytest.importorskip("fastapi", reason="the viewer's web server is not installed (voxplain[viewer])")
testclient = pytest.importorskip("starlette.testclient", reason="starlette's test client is not installed")

from voxplain.serve.app import build  # noqa: E402

HTML = "<img src=x onerror=alert(1)> </script><script>alert(2)</script> effusion in the left lung"
AT_HOME = "http://127.0.0.1:8765"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_run(explained(), tmp_path_factory.mktemp("runs") / "one")


def client(*folders, access=None, base=AT_HOME, **options):
    guarded = build(Library(folders), access or Access(), **options)

    async def app(scope, receive, send):  # types are checked at run time here, which hides that ours is a coroutine
        await guarded(scope, receive, send)

    return testclient.TestClient(app, base_url=base, follow_redirects=False)


def test_the_page_and_its_files_come_with_a_strict_policy(folder):
    asking = client(folder)
    page = asking.get("/")
    assert page.status_code == 200
    assert page.headers["content-security-policy"] == CSP
    assert "unsafe" not in CSP
    scripts = re.findall(r'src="([^"]+)"', page.text)
    assert len(scripts) > 5
    assert all(asking.get(f"/{script}").status_code == 200 for script in scripts)
    assert not re.search(r"https?://", page.text)
    assert "on" not in {name[:2] for name in re.findall(r"<\w+[^>]* (\w+)=", page.text)}


def test_a_run_is_described_and_its_maps_are_sent(folder):
    asking = client(folder)
    assert asking.get("/api/runs").json()["runs"][0]["id"] == "one"
    case = asking.get("/api/runs/one/case").json()
    assert case["prompt"] == explained().prompt.text
    for entry in case["words"]:
        for recipe in entry["recipes"]:
            answer = asking.get("/api/runs/one/map.nii.gz", params={"recipe": recipe, "name": entry["label"]})
            assert answer.content[:2] == b"\x1f\x8b"
    assert asking.get("/api/runs/one/sample.nii.gz").status_code == 200
    words = asking.get("/api/runs/one/at", params={"recipe": "mean", "voxel": "1,2,3"}).json()["words"]
    assert len(words) == len(case["words"])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/runs/two/case", 404),
        ("/api/runs/one/map.nii.gz?recipe=none&name=left", 404),
        ("/api/runs/one/map.nii.gz?recipe=mean&name=nowhere", 404),
        ("/api/runs/one/map.nii.gz?recipe=mean&name=" + "x" * 3000, 422),
        ("/api/runs/one/at?recipe=mean&voxel=a,b,c", 422),
        ("/api/runs/one/at?recipe=none&voxel=1,1,1", 404),
        ("/api/runs/one/sample.nii.gz?limit=100000", 422),
        ("/api/runs/one/variants/0/image.nii.gz", 404),
        ("/runs/two/report", 404),
        ("/docs", 404),
        ("/openapi.json", 404),
    ],
)
def test_what_is_not_there_is_said_in_a_status(folder, path, status):
    assert client(folder).get(path).status_code == status


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2f..%2fapp.py",
        "/static/%2e%2e/guard.py",
        "/static//etc/passwd",
        "/api/runs/..%2f..%2fetc/case",
        "/api/runs/%2fetc%2fpasswd/case",
        "/api/runs/one%2f..%2fone/case",
        "/runs/..%2fone/report",
        "/static/niivue.umd.js%00.css",
    ],
)
def test_no_path_leads_out_of_what_is_served(folder, path):
    answer = client(folder).get(path)
    assert answer.status_code == 404, path
    assert b"root:" not in answer.content


def test_a_link_out_of_a_run_folder_is_not_followed(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "linked")
    secret = tmp_path / "secret.nii.gz"
    shutil.move(place / "sample.nii.gz", secret)
    (place / "sample.nii.gz").symlink_to(secret)  # even the right content
    answer = client(place).get("/api/runs/linked/case")
    assert answer.status_code == 409
    assert "leads out" in answer.json()["detail"]
    assert {client(place).get(f"/runs/linked/{kind}").status_code for kind in ("report", "file")} == {409}
    other = shutil.copytree(folder, tmp_path / "other")
    for name in ("without-left", "total-left"):
        (other / f"{name}.nii.gz").symlink_to(secret)
    with pytest.raises(RunError, match="leads out"):
        Library([other]).variants("other")
    assert client(other).get("/api/runs/other/case").status_code == 409


def test_a_damaged_run_is_named_and_the_others_are_served(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "broken")
    (place / "attribution.npz").write_bytes(b"no")
    answer = client(place).get("/api/runs/broken/case")
    assert answer.status_code == 409
    assert "attribution.npz is damaged" in answer.json()["detail"]
    (place / "run.json").write_text("{")
    listed = client(place, folder).get("/api/runs").json()["runs"]
    assert "damaged" in listed[0]["error"]
    assert listed[1]["prompt"]
    with pytest.raises(RunError, match="run.json"):
        Library([tmp_path])


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1:1", "", "localhost.evil.example:8765"]
)
def test_another_host_name_is_refused(folder, host):
    assert client(folder).get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765", "[::1]:8765", "viewer.lab"])
def test_our_own_names_are_answered(folder, host):
    asking = client(folder, access=Access(names=["viewer.lab"]))
    assert asking.get("/api/runs", headers={"host": host}).status_code == 200


def test_off_the_loopback_a_token_is_asked_for(folder):
    access = Access.of("0.0.0.0", 8765)
    assert Access.of("127.0.0.1", 8765).token is None
    assert access.token in access.url
    base = "http://192.0.2.7:8765"
    asking = client(folder, access=access, base=base)
    assert asking.get("/").status_code == 401
    assert asking.get("/static/niivue.umd.js").status_code == 401
    assert asking.get("/", params={"token": "wrong"}).status_code == 401
    entered = asking.get("/", params={"token": access.token})
    assert entered.status_code == 303
    assert "HttpOnly" in entered.headers["set-cookie"]
    assert "SameSite=Strict" in entered.headers["set-cookie"]
    away = asking.get(f"{base}//evil.example/%0d%0aset-cookie:a?token={access.token}")
    assert away.headers["location"] == "/evil.example/%0D%0Aset-cookie%3Aa"  # here, and one line
    assert asking.get("/api/runs").status_code == 200  # by the cookie
    assert "folder" not in asking.get("/api/runs").json()["runs"][0]
    assert client(folder, access=access, base="http://evil.example:8765").get("/").status_code == 421


def test_it_is_read_only_unless_told_otherwise(folder):
    asking = client(folder)
    ours = {"x-voxplain": "1"}
    assert asking.post("/api/generate", json={}, headers=ours).status_code == 404
    assert asking.get("/api/runs").json()["generate"] is None
    assert asking.delete("/api/runs/one", headers=ours).status_code in (404, 405)


def test_other_sites_cannot_post_and_large_bodies_are_refused(folder):
    asking, path = client(folder), "/api/runs/one/region?recipe=mean"
    bits = np.packbits(np.ones(8 * 12 * 16, np.uint8)).tobytes()
    assert asking.post(path, content=bits, headers={"x-voxplain": "1"}).json()["voxels"] == 8 * 12 * 16
    assert asking.post(path, content=bits).status_code == 403
    foreign = {"x-voxplain": "1", "origin": "http://evil.example"}
    assert asking.post(path, content=bits, headers=foreign).status_code == 403
    assert asking.post(path, content=bits[:-1], headers={"x-voxplain": "1"}).status_code == 422
    assert asking.post(path, content=b"0" * (LIMIT + 1), headers={"x-voxplain": "1"}).status_code == 413
    lying = (chunk for chunk in [b"0" * (LIMIT // 2)] * 3)  # no length is given
    with pytest.raises(Exception, match=".*"):
        answer = asking.post(path, content=lying, headers={"x-voxplain": "1"})
        assert answer.status_code < 400, "cut off"


def test_a_prompt_of_markup_stays_text_everywhere(tmp_path):
    place = save_run(explained(text=HTML), tmp_path / "html")
    asking = client(place)
    assert asking.get("/api/runs/html/case").json()["prompt"] == HTML
    assert "<img src=x" not in asking.get("/runs/html/report").text
    assert asking.get("/").text == client(place).get("/").text  # the page holds nothing of the run


def test_volumes_made_again_are_listed_with_their_difference(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "again")
    explanation: Explanation = explained()
    write_volume(place / "without-left.nii.gz", explanation.sample.image + 5, explanation.sample.geometry)
    write_volume(place / "total-left.nii.gz", np.full((8, 12, 16), 5.0), explanation.sample.geometry)
    write_volume(place / "without-lung.nii.gz", explanation.sample.image, explanation.sample.geometry)  # no difference
    asking = client(place)
    assert asking.get("/api/runs/again/case").json()["variants"] == [{"kind": "without", "word": "left"}]
    for part, status in (("image", 200), ("difference", 200), ("other", 404)):
        assert asking.get(f"/api/runs/again/variants/0/{part}.nii.gz").status_code == status
    assert asking.get("/api/runs/again/variants/1/image.nii.gz").status_code == 404


def test_runs_of_one_name_are_kept_apart_and_changes_are_seen(folder, tmp_path):
    library = Library([folder, shutil.copytree(folder, tmp_path / "one")])
    assert library.ids == ["one", "one-2"]
    assert library.add(folder) == "one"
    first = library.load("one-2")
    assert library.load("one-2") is first
    changed = replace(explained(), honesty={})
    save_run(changed, Path(library.folder("one-2")), overwrite=True)
    assert library.load("one-2").honesty == {}


def test_further_routers_come_first_and_may_have_their_own_policy(folder):
    from fastapi import APIRouter
    from fastapi.responses import HTMLResponse

    router = APIRouter()

    @router.get("/")
    def other() -> HTMLResponse:
        return HTMLResponse("other", headers={"content-security-policy": "default-src 'self'"})

    answer = client(folder, routers=[router]).get("/")
    assert answer.text == "other"
    assert answer.headers["content-security-policy"] == "default-src 'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"
