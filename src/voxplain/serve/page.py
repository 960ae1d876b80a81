"""The page: its markup and scripts, as a server sends them or as one file with everything in it."""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

SCRIPTS = (
    "niivue.umd.js",
    "volumes.js",
    "source.js",
    "contours.js",
    "stage.js",
    "chips.js",
    "panels.js",
    "drawer.js",
    "layers.js",
    "app.js",
)
STYLE = "viewer.css"


def text(name: str) -> str:
    """One of the page's own files."""
    return files("voxplain.serve").joinpath("static", name).read_text("utf-8")


def serve_static(app: Any, types: Mapping[str, str]) -> None:
    """Let a FastAPI application send the named files of the page, each with its media type, and no others."""
    from fastapi import HTTPException
    from fastapi.responses import Response

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in types:
            raise HTTPException(404, "there is no such file")
        content = files("voxplain.serve").joinpath("static", name).read_bytes()
        return Response(content, media_type=types[name], headers={"cache-control": "max-age=600"})


def page() -> str:
    """The page that asks a server for its data."""
    head = f'<link rel="icon" href="static/icon.svg"><link rel="stylesheet" href="static/{STYLE}">'
    scripts = "".join(f'<script defer src="static/{name}"></script>' for name in SCRIPTS)
    return _filled(head, scripts)


def page_with(data: Mapping[str, Any], volumes: Mapping[str, bytes], fallback: str = "") -> str:
    """The page as one file: scripts and style inside, `data` as JSON, `volumes` by name, and a picture as `fallback`.

    Its policy names each script by its hash, and lets it fetch nothing.
    """
    codes = [_inlined(text(name)) for name in SCRIPTS]
    hashes = " ".join(f"'sha256-{_hash(code)}'" for code in codes)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'sha256-{_hash(text(STYLE))}'; img-src data: blob:; "
        "connect-src data:; base-uri 'none'; form-action 'none'"
    )
    head = f'<meta http-equiv="content-security-policy" content="{policy}"><style>{text(STYLE)}</style>'
    packed = {name: base64.b64encode(content).decode() for name, content in volumes.items()}
    blocks = _data("case", data) + _data("volumes", packed) + fallback
    return _filled(head, blocks + "".join(f"<script>{code}</script>" for code in codes))


def _filled(head: str, scripts: str) -> str:
    return text("viewer.html").replace("<!--head-->", head).replace("<!--scripts-->", scripts)


def _data(name: str, values: Any) -> str:
    """A block of JSON that no markup can end early."""
    content = json.dumps(values, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="data-{name}">{content}</script>'


def _inlined(code: str) -> str:
    """A script that can stand in a page: nothing in it ends the element, or opens a comment."""
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r\n", "\n")


def _hash(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
