"""Starting the server, and the few ways in which that fails."""

import socket
from collections.abc import Callable
from typing import Any

from voxplain.serve.guard import Access


def needed() -> None:
    """Raise ImportError with the cure where the packages of the web server are missing."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(f"the viewer needs {error.name}: pip install 'voxplain[viewer]'") from error


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes any free one. Raises OSError with what to do if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(128)
    except OSError as error:
        made.close()
        reason = error.strerror or str(error)
        raise OSError(f"cannot listen on {host}:{port} ({reason}); give another --port, or --port 0 for any") from error
    return made


def run(build: Callable[[Access], Any], listening: socket.socket, access: Access, ready: Callable[[str], None]) -> None:
    """Serve until interrupted; `ready` is called with the address when requests are answered."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(access.url)

    config = uvicorn.Config(
        build(access),
        interface="asgi3",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    with listening:
        Server(config).run(sockets=[listening])
