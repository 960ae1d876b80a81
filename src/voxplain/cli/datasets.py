"""The verb that builds a table of a data set: dataset."""

from pathlib import Path
from typing import Annotated, Any

import typer

from voxplain.cli.base import Overwrite, named, say, verb

MANY, WHOLE, PAIRS = ("views", "splits", "classes"), ("count", "seed"), ("columns",)
SAID = {"credentialed": {"yes": True, "no": False}}


@verb
def dataset(
    name: Annotated[str, typer.Argument(help="ms-cxr, mimic-cxr, chexpert-plus, coco, coco-gen, unreal-gen, folder.")],
    out: Annotated[Path, typer.Option(help="The CSV file to write.", show_default=False)],
    root: Annotated[Path | None, typer.Argument(help="Your copy of the files.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, as in uncertain=unknown or views=PA,AP.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Build a table of a data set from your own copy of its files."""
    from voxplain.datasets.base import RULE
    from voxplain.datasets.folder import place_of, write_table
    from voxplain.datasets.opening import build

    options = options_of(option)
    read = root / options.get("table", "metadata.csv") if name == "folder" and root is not None else None
    place_of(out, overwrite=overwrite, source=read)
    made = build(name, root, **options)
    say(f"{write_table(made, out, overwrite=overwrite)}: {made.summary()}")
    if made.credentialed:
        say(RULE)


def options_of(given: list[str] | None) -> dict[str, Any]:
    """The options of a data set, each in its type."""
    return {name: _typed(name, value) for name, value in named(given).items()}


def _typed(name: str, value: str) -> Any:
    parts = [part.strip() for part in value.split(",")]
    if name in MANY:
        if not all(parts):
            raise ValueError(f"--set {name}={value}: give names with commas between, as in views=PA,AP")
        return parts
    if name in WHOLE:
        try:
            return int(value)
        except ValueError:
            raise ValueError(f"--set {name}={value}: give a whole number") from None
    if name in PAIRS:
        pairs = {ours.strip(): yours.strip() for ours, _, yours in (part.partition(":") for part in parts)}
        if not all(pairs.values()) or len(pairs) < len(parts):
            raise ValueError(
                f"--set {name}={value}: give OURS:YOURS with commas between, as in mask:lung_mask,prompt:text"
            )
        return pairs
    if name in SAID:
        if value not in SAID[name]:
            raise ValueError(f"--set {name}={value}: give {' or '.join(SAID[name])}")
        return SAID[name][value]
    return value
