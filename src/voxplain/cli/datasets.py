"""The verb that builds a table of a data set: dataset."""

from pathlib import Path
from typing import Annotated

import typer

from voxplain.cli.base import say, verb

MANY, WHOLE = ("views", "splits", "classes"), ("count", "seed")


@verb
def dataset(
    name: Annotated[str, typer.Argument(help="ms-cxr, mimic-cxr, chexpert-plus, coco, coco-gen, unreal-gen, folder.")],
    out: Annotated[Path, typer.Option(help="The CSV file to write.", show_default=False)],
    root: Annotated[Path | None, typer.Argument(help="Your copy of the files.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, as in uncertain=unknown or views=PA,AP.")
    ] = None,
) -> None:
    """Build a table of a data set from your own copy of its files."""
    from voxplain.datasets.base import RULE
    from voxplain.datasets.folder import write_table
    from voxplain.datasets.opening import build

    if wrong := [pair for pair in option or () if "=" not in pair]:
        raise ValueError(f"--set {wrong[0]}: give it as NAME=VALUE")
    given = {key: value for key, _, value in (pair.partition("=") for pair in option or ())}
    options = {
        key: value.split(",") if key in MANY else int(value) if key in WHOLE else value for key, value in given.items()
    }
    made = build(name, root, **options)
    say(f"{write_table(made, out)}: {made.summary()}")
    if made.credentialed:
        say(RULE)
