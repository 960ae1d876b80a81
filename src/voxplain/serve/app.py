"""The viewer as an ASGI application: our page, its static files, the API, and whatever routers come with it."""

from collections.abc import Sequence
from typing import Any

from voxplain.serve.api import api_router, loaded
from voxplain.serve.guard import Access, Guard
from voxplain.serve.jobs import Jobs
from voxplain.serve.library import Library
from voxplain.serve.offline import interactive
from voxplain.serve.page import SCRIPTS, STYLE, page, serve_static
from voxplain.view.page import report

STATIC = {**{name: "text/javascript" for name in SCRIPTS}, STYLE: "text/css", "icon.svg": "image/svg+xml"}
REPORT_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)


def build(library: Library, access: Access, *, jobs: Jobs | None = None, routers: Sequence[Any] = ()) -> Guard:
    """The application behind its guard; `jobs` makes new runs, without it everything is read-only.

    `routers` are FastAPI routers that are asked before our own, so that one may take a path of ours.
    """
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    for router in routers:
        app.include_router(router)
    app.include_router(api_router(library, jobs, paths=access.token is None))

    @app.get("/")
    def viewer() -> HTMLResponse:
        return HTMLResponse(page())

    serve_static(app, STATIC)

    @app.get("/runs/{run}/report")
    def static_report(run: str) -> HTMLResponse:
        return HTMLResponse(report(loaded(library, run)), headers={"content-security-policy": REPORT_CSP})

    @app.get("/runs/{run}/file")
    def one_file(run: str) -> HTMLResponse:
        name = {"content-disposition": f'attachment; filename="{run}.html"'}
        return HTMLResponse(interactive(loaded(library, run), run), headers=name)

    return Guard(app, access)
