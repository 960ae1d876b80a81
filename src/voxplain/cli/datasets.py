"""The verb that builds a table of a data set: dataset."""

from pathlib import Path
from typing import Annotated, Any

import typer

from voxplain.cli.base import named, say, verb

MANY, WHOLE, PAIRS = ("views", "splits", "classes"), ("count", "seed"), ("columns",)


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

    made = build(name, root, **options_of(option))
    say(f"{write_table(made, out)}: {made.summary()}")
    if made.credentialed:
        say(RULE)


def options_of(given: list[str] | None) -> dict[str, Any]:
    """The options of a data set, each in its type."""
    return {name: _typed(name, value) for name, value in named(given).items()}


def _typed(name: str, value: str) -> Any:
    if name in MANY:
        return value.split(",")
    if name in WHOLE:
        try:
            return int(value)
        except ValueError:
            raise ValueError(f"--set {name}={value}: give a whole number") from None
    if name in PAIRS:
        pairs = {ours: yours for ours, _, yours in (part.partition(":") for part in value.split(","))}
        if not all(pairs.values()):
            raise ValueError(
                f"--set {name}={value}: give OURS:YOURS with commas between, as in mask:lung_mask,prompt:text"
            )
        return pairs
    return value
