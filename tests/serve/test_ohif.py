"""OHIF is fetched at one pinned version, unpacked safely, and served with our settings at our own origin."""

import base64
import hashlib
import io
import json
import tarfile

import pytest
from synthetic import explained
from typer.testing import CliRunner

from voxplain.cli import app

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("highdicom", reason="needs the extra dicom")
pytest.importorskip("fastapi", reason="needs the extra viewer")
testclient = pytest.importorskip("fastapi.testclient", reason="needs httpx")

from voxplain.serve import ohif  # noqa: E402
from voxplain.serve.guard import Access  # noqa: E402

PACKED = {
    "package/LICENSE": b"MIT",
    "package/package.json": b"{}",
    "package/dist/index.html": b"<html>OHIF</html>",
    "package/dist/app.bundle.js": b"run()",
    "package/dist/app.bundle.js.map": b"map",
    "package/dist/assets/logo.svg": b"<svg/>",
    "package/dist/ort/ort.wasm": b"heavy",
    "package/dist/dicom-microscopy-viewer/a.js": b"heavy",
    "package/dist/../../evil.js": b"evil",
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of its own for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "ohif.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in PACKED.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("package/dist/link.js")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def sha512(path):
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def fake_npm(tmp_path, script):
    path = tmp_path / "npm"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def call(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_the_pinned_package_is_fetched_checked_and_unpacked_without_what_is_not_needed(tmp_path, packed, monkeypatch):
    monkeypatch.setattr(ohif, "SHA512", sha512(packed))
    npm = fake_npm(tmp_path, f'[ "$1 $2 $3" = "pack @ohif/app@3.13.2 --pack-destination" ] && cp {packed} "$4"')
    place = ohif.install(npm)
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} == {
        "LICENSE",
        "index.html",
        "app.bundle.js",
        "assets/logo.svg",
    }
    assert not list(tmp_path.rglob("evil.js"))
    assert ohif.install("no such program") == place == ohif.found_dist()
    assert call("ohif", "path").stdout.strip() == str(place)


def test_another_package_is_refused_and_leaves_nothing(tmp_path, packed, home):
    npm = fake_npm(tmp_path, f'cp {packed} "$4"')
    with pytest.raises(ValueError, match="not the file that was pinned"):
        ohif.install(npm)
    assert not list(home.rglob("*.html"))


def test_a_missing_or_failing_npm_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = call("ohif", "install")
    assert result.exit_code == 1 and "Node.js" in result.stderr and "--ohif-dist" in result.stderr
    with pytest.raises(OSError, match="npm error 404"):
        ohif.install(fake_npm(tmp_path, 'echo "npm error 404" >&2; exit 1'))


def test_the_verb_says_what_is_missing_or_unknown(tmp_path):
    for arguments, part in ((("ohif", "path"), "voxplain ohif install"), (("ohif", "remove"), "'remove'")):
        result = call(*arguments)
        assert result.exit_code == 2 and part in result.stderr
    with pytest.raises(FileNotFoundError, match="no index.html"):
        ohif.found_dist(tmp_path)


@pytest.fixture
def client(tmp_path, packed):
    ohif.unpack(packed, tmp_path / "dist", sha512(packed))
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "dist" / "out.txt").symlink_to(tmp_path / "secret.txt")
    with ohif.exported([explained((4, 6, 8))]) as folder:
        served = ohif.ohif_application(folder, tmp_path / "dist", Access(port=80))
        yield testclient.TestClient(served, base_url="http://localhost", follow_redirects=False)
    assert not folder.exists()


def test_pages_files_and_settings_come_from_one_isolated_origin(client):
    for path, kind, content in (
        ("/viewer?StudyInstanceUIDs=1.2", "text/html", b"OHIF"),
        ("/segmentation/anything", "text/html", b"OHIF"),
        ("/app.bundle.js", "text/javascript", b"run()"),
        ("/sw.js", "text/javascript", b""),
        ("/assets/logo.svg", "image/svg+xml", b"<svg/>"),
    ):
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind), path
        assert content in answer.content
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-embedder-policy"] == "require-corp"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    config = client.get("/app-config.js").text
    assert "http" not in config.replace("httpErrorHandler", "")
    settings = json.loads(config.removeprefix("window.config = ").rstrip(";\n"))
    assert settings["dataSources"][0]["configuration"]["wadoRoot"] == "/dicom-web"


def test_the_root_leads_to_the_study_which_is_there(client):
    place = client.get("/").headers["location"]
    study = place.removeprefix("/viewer?StudyInstanceUIDs=")
    (row,) = client.get("/dicom-web/studies").json()
    assert row["0020000D"]["Value"] == [study]
    assert "cross-origin-resource-policy" in client.get("/dicom-web/studies").headers


def test_nothing_outside_of_the_build_is_served_and_other_hosts_are_refused(client):
    for path in ("/missing.js", "/ort/ort.wasm", "/app.bundle.js.map", "/out.txt.svg"):
        assert client.get(path).status_code == 404, path
    for path in ("/out.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "//etc/passwd"):
        answer = client.get(path)
        assert b"secret" not in answer.content and b"root:" not in answer.content
    assert client.get("/viewer", headers={"host": "evil.example"}).status_code == 421
    assert client.post("/viewer", headers={"x-voxplain": "1"}).status_code == 405
