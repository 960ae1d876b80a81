"""OHIF (MIT, ohif.org) on the objects of a run: fetched by npm at one pinned version, served beside our DICOMweb.

The build has absolute paths, so it needs an origin of its own: this server stands in place of our viewer, not below it.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from voxplain.io.dicom import export
from voxplain.io.folders import new_folder
from voxplain.maps import Explanation
from voxplain.serve.dicomweb import PREFIX, Archive, dicomweb_router
from voxplain.serve.guard import Access, Guard

PACKAGE, VERSION = "@ohif/app", "3.13.2"
# base64, of the file that npm serves
SHA512 = "WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
LEFT_OUT = ("ort", "dicom-microscopy-viewer")  # three quarters of the size, for tools that we have no use for
SILENCED = ("init-service-worker.js", "sw.js")  # they load scripts from elsewhere, and would outlive this server
SECONDS = 900  # that a download may take
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".css": "text/css"}
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def cache() -> Path:
    """Where `install` puts OHIF: in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "voxplain" / f"ohif-{VERSION}"


def found_dist(given: Path | None = None) -> Path:
    """The folder of OHIF's build: the one given, else the installed one.

    Raises FileNotFoundError, saying how to get it, where there is none.
    """
    dist = given or cache()
    if (dist / "index.html").is_file():
        return dist
    if given:
        raise FileNotFoundError(f"{given} holds no index.html; give the folder dist/ of a build of {PACKAGE}")
    raise FileNotFoundError("OHIF is not installed: run `voxplain ohif install`, or give its build by --ohif-dist")


def install(npm: str = "npm") -> Path:
    """Fetch the pinned OHIF by npm, check its hash, unpack it into the user's cache; an installed one is kept.

    Raises OSError where npm is missing or fails, and ValueError for a package that is not the pinned one.
    """
    target = cache()
    if (target / "index.html").is_file():
        return target
    program = shutil.which(npm)
    if program is None:
        raise OSError(
            f"npm is not installed, and it fetches OHIF: install Node.js (nodejs.org), or unpack {PACKAGE} {VERSION} "
            "elsewhere and give its folder dist/ by --ohif-dist"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", folder, "--ignore-scripts"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=folder)
        except subprocess.TimeoutExpired as error:
            raise OSError(f"npm did not fetch {PACKAGE} within {SECONDS} seconds") from error
        packed = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or len(packed) != 1:
            said = [text for text in done.stderr.splitlines() if "error" in text.lower()][:2]
            raise OSError(f"npm could not fetch {PACKAGE} {VERSION}: {' '.join(said) or 'it said nothing'}")
        unpack(packed[0], target, SHA512)
    return target


def unpack(packed: Path, target: Path, sha512: str) -> None:
    """Unpack OHIF's build and its license from the file of npm, if its SHA-512 (base64) is the expected one."""
    with packed.open("rb") as file:
        found = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if found != sha512:
        raise ValueError(f"{packed.name} is not the file that was pinned: its SHA-512 is {found}, expected {sha512}")
    with tarfile.open(packed) as archive, new_folder(target, overwrite=True, marker="index.html") as folder:
        for member in archive:
            parts = PurePosixPath(member.name).parts[1:]  # below package/
            inside = parts[1:] if parts[:1] == ("dist",) else parts if parts == ("LICENSE",) else ()
            content = archive.extractfile(member) if member.isfile() else None
            if not inside or content is None or ".." in inside or inside[0] in LEFT_OUT or inside[-1].endswith(".map"):
                continue
            place = folder.joinpath(*inside)
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                shutil.copyfileobj(content, file)


def app_config(prefix: str = PREFIX) -> str:
    """The script that OHIF reads its settings from: our DICOMweb at the same origin, and nothing else."""
    source = {
        "friendlyName": "Voxplain",
        "name": "voxplain",
        **{root: prefix for root in ("qidoRoot", "wadoRoot", "wadoUriRoot")},
        **{rendering: "wadors" for rendering in ("imageRendering", "thumbnailRendering")},
        "enableStudyLazyLoad": True,
        "supportsFuzzyMatching": False,
        "supportsWildcard": True,
        "qidoSupportsIncludeField": False,
        "omitQuotationForMultipartRequest": True,
        "singlepart": "video",
        "bulkDataURI": {"enabled": True},
        "dicomUploadEnabled": False,
    }
    name = "@ohif/extension-default.dataSourcesModule.dicomweb"
    config = {
        "routerBasename": None,
        "extensions": [],
        "modes": [],
        "customizationService": {},
        "showStudyList": True,
        "maxNumberOfWebWorkers": 3,
        "showLoadingIndicator": True,
        "showWarningMessageForCrossOrigin": True,
        "showCPUFallbackMessage": True,
        "strictZSpacingForVolumeViewport": True,
        "defaultDataSourceName": source["name"],
        "dataSources": [{"namespace": name, "sourceName": source["name"], "configuration": source}],
    }
    return f"window.config = {json.dumps(config, indent=1)};\n"


def ohif_router(dist: Path, archive: Archive) -> Any:
    """A FastAPI router with OHIF's files; what is no file is a page of OHIF, and / leads to an archive's only study.

    Files are looked up among those that lay in `dist` at the start; links that lead out of it are not followed.
    """
    from fastapi import APIRouter, HTTPException
    from fastapi.responses import FileResponse, RedirectResponse, Response

    root = dist.resolve()
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    files = {name: path for name, path in files.items() if path.resolve().is_relative_to(root)}
    studies = sorted({ids[0] for ids in archive.instances})
    made = {"app-config.js": app_config(), **dict.fromkeys(SILENCED, "")}
    router = APIRouter()

    @router.get("/{path:path}", response_model=None)
    def answer(path: str) -> Response:
        if path == "" and len(studies) == 1:
            return RedirectResponse(f"/viewer?StudyInstanceUIDs={studies[0]}", headers=HEADERS)
        if path in made:
            return Response(made[path], media_type="text/javascript", headers=HEADERS)
        if path not in files and PurePosixPath(path).suffix in (*TYPES, ".json", ".svg", ".png", ".map"):
            raise HTTPException(404, "there is no such file")
        place = files.get(path, files["index.html"])
        return FileResponse(place, media_type=TYPES.get(place.suffix), headers=HEADERS)

    return router


def ohif_application(folder: Path, dist: Path, access: Access) -> Guard:
    """OHIF and the DICOM objects in a folder as one read-only application behind the guard of our own viewer."""
    from fastapi import FastAPI

    archive = Archive(folder)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(dicomweb_router(archive))
    app.include_router(ohif_router(dist, archive))
    return Guard(app, access)


@contextmanager
def exported(explanations: Sequence[Explanation], fraction: float = 0.25) -> Iterator[Path]:
    """A folder with the explanations as DICOM, with their words, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="voxplain-") as folder:
        for number, explanation in enumerate(explanations):
            export(explanation, Path(folder) / str(number), fraction=fraction, with_prompt=True)
        yield Path(folder)
