"""What every test with a browser shares; each skips with its reason where a part is missing."""

import shutil
import threading
import time
from contextlib import contextmanager

import pytest
from browsing import PATIENCE, Watched

USUAL = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SOFTWARE_GL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
NO_GL = ["--disable-gpu", "--disable-3d-apis"]


@pytest.fixture(scope="module")  # no longer: while it lasts, `asyncio.run` is refused in this thread
def launch():
    """Start Chromium: `launch(gl=True)` with WebGL by software, `launch(gl=False)` with none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if not path:
        pytest.skip("no chromium on PATH (apt-get install chromium)")
    with playwright.sync_playwright() as made:
        yield lambda gl: made.chromium.launch(
            executable_path=path,
            args=[*USUAL, *(SOFTWARE_GL if gl else NO_GL)],
            ignore_default_args=["--disable-gpu"],
            timeout=PATIENCE,
        )


@pytest.fixture(scope="module")
def chromium(launch):
    """One browser for all tests of a file; `chromium.new_page(viewport={"width": 1280, "height": 720})`."""
    made = launch(gl=True)
    yield made
    made.close()


@pytest.fixture(scope="session")
def serving():
    """Serve `build(access)` on a free port of this machine in a block: `with serving(build) as address`."""
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason=f"{package} is not installed (voxplain[viewer])")
    import uvicorn

    from voxplain.serve import starting
    from voxplain.serve.guard import Access

    @contextmanager
    def served(build):
        listening = starting.bound("127.0.0.1", 0)
        access = Access(port=listening.getsockname()[1])
        server = uvicorn.Server(uvicorn.Config(build(access), log_level="error", interface="asgi3"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.05)
        try:
            yield access.url
        finally:
            server.should_exit = True
            thread.join(20)

    return served


@pytest.fixture
def page(chromium):
    """A page of its own for one test, which fails if anything went wrong on it: `page.page` is Playwright's."""
    made = Watched(chromium)
    yield made
    made.page.close()
    assert made.wrong == []
