"""Verbs that show runs in a browser: view."""

from pathlib import Path
from typing import Annotated

import typer

from voxplain.cli.base import Device, Model, say, verb


@verb
def view(
    run: Annotated[list[Path], typer.Argument(help="Run folders, as `voxplain explain` writes them.")],
    host: Annotated[str, typer.Option(help="Where to listen; off this machine a token is asked for.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.")] = 8765,
    name: Annotated[list[str] | None, typer.Option(help="Another host name to answer to, as a proxy's.")] = None,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    allow_generate: Annotated[bool, typer.Option("--allow-generate", help="Let the page make new runs.")] = False,
    out: Annotated[Path, typer.Option(help="Where new runs are kept.")] = Path("runs"),
    model: Model = "thorax",
    device: Device = None,
    ohif: Annotated[bool, typer.Option("--ohif", help="Show the runs in OHIF instead, as DICOM objects.")] = False,
    ohif_dist: Annotated[
        Path | None, typer.Option(help="A build of OHIF. [default: the installed one]", show_default=False)
    ] = None,
) -> None:
    """Explore runs on a page: maps of words on three planes."""
    from voxplain.serve import starting

    if ohif_dist and not ohif:
        raise ValueError("--ohif-dist is a build of OHIF; add --ohif to show the runs in it")
    if ohif and allow_generate:
        raise ValueError("--ohif shows runs and makes none; leave out --allow-generate, or --ohif")
    starting.needed()
    from voxplain.serve.app import build
    from voxplain.serve.guard import Access
    from voxplain.serve.library import Library

    library, jobs = Library(run), None
    library.load(library.ids[0])  # a damaged folder is said now, not on the page
    if allow_generate:
        from voxplain.serve.generating import Maker
        from voxplain.serve.jobs import Jobs

        jobs = Jobs(Maker(library, model, out, device=device))
    with starting.bound(host, port) as listening:
        access = Access.of(host, listening.getsockname()[1], name or ())

        def ready(url: str) -> None:
            say(f"{url}  (Ctrl-C ends)")
            if browser:
                import webbrowser

                webbrowser.open(url)

        if ohif:
            from voxplain.serve.ohif import exported, found_dist, ohif_application

            dist = found_dist(ohif_dist)
            say("writing DICOM into a folder that goes away at the end")
            with exported([library.load(each) for each in library.ids]) as folder:
                starting.run(lambda access: ohif_application(folder, dist, access), listening, access, ready)
            return
        starting.run(lambda access: build(library, access, jobs=jobs), listening, access, ready)
