"""The verb that fetches OHIF: ohif."""

from typing import Annotated

import typer

from voxplain.cli.base import progress, say, verb


@verb
def ohif(
    action: Annotated[str, typer.Argument(help="install (by npm, about 50 MB) or path.", show_default=False)],
) -> None:
    """Install the OHIF viewer, for `voxplain view RUN --ohif`, or say where it is."""
    from voxplain.serve.ohif import PACKAGE, VERSION, found_dist, install

    if action not in ("install", "path"):
        raise ValueError(f"{action!r} is nothing that can be done with OHIF; give install or path")
    if action == "path":
        typer.echo(str(found_dist()))
        return
    with progress() as report:
        report(f"fetching {PACKAGE} {VERSION}")
        place = install()
    say(f"{place}: OHIF {VERSION} (MIT); open a run in it by `voxplain view RUN --ohif`")
