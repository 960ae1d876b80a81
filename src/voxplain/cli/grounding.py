"""The verb ground: a text on an image from elsewhere."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxplain.cli.base import (
    Device,
    Dtype,
    Model,
    Overwrite,
    Recipes,
    Seed,
    Seeds,
    TextEncoder,
    TrustCode,
    progress,
    refuse_existing,
    say,
    several,
    verb,
)
from voxplain.cli.making import place, remark
from voxplain.cli.opening import open_model, remembered

if TYPE_CHECKING:
    from voxplain.maps import Heatmap
    from voxplain.studies.given import Given

LARGEST = 2**63  # seeds are below it
WIDE = 160  # columns of a table that goes into a file
RULES = "words, substring, first, all, start, end or padding. [default: words if --word is given, else all]"


@verb
def ground(
    image: Annotated[
        Path, typer.Argument(help="NIfTI, a folder with a CT series, or PNG or JPEG.", show_default=False)
    ],
    text: Annotated[str, typer.Argument(help="The text whose words are looked for.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The run folder to write.", show_default=False)],
    model: Model = "thorax",
    profile: Annotated[str, typer.Option(help="How the image is read: renoise, invert or generate.")] = "renoise",
    seed: Seed = 0,
    seeds: Seeds = 1,
    recipe: Recipes = None,
    rule: Annotated[str | None, typer.Option(help=f"Also one map by a token rule: {RULES}", show_default=False)] = None,
    word: Annotated[
        list[str] | None, typer.Option(help="A finding's word or phrase, for the rule; again for its other forms.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="The truth, on the image's own grid: score the rule's map.", show_default=False)
    ] = None,
    mask_value: Annotated[
        list[int] | None, typer.Option(help="A value of --mask that counts; again for several. [default: all but 0]")
    ] = None,
    box: Annotated[
        list[str] | None, typer.Option(help="Truth as X,Y,W,H (X,Y,Z,W,H,D) in pixels as stored; again for several.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="W,H (W,H,D) of the image that the boxes were drawn on; checked.")
    ] = None,
    text_encoder: TextEncoder = None,
    dtype: Dtype = None,
    device: Device = None,
    trust_code: TrustCode = False,
    overwrite: Overwrite = False,
) -> None:
    """Map the words of a text on an image from elsewhere; score the map where the truth is known."""
    refuse_existing(out, overwrite)
    if not 0 <= seed < LARGEST:
        raise ValueError(f"--seed {seed}: give a whole number from 0 to {LARGEST - 1}")
    words, names = tuple(word or ()), several(recipe)
    boxes = tuple(tuple(numbers(one, "--box")) for one in box or ())
    wanted = None if size is None else whole(size, "--size")
    options = {"text_encoder": text_encoder, "dtype": dtype, "trust_code": trust_code}
    with progress() as report:
        opened = open_model(model, report, device=device, **options)
        from voxplain.adapters import as_adapter
        from voxplain.io.folders import new_folder
        from voxplain.io.run import save_run
        from voxplain.studies import explaining, given

        adapter = as_adapter(opened)
        with warned():
            found = given.given(image, text, adapter, mask=mask, mask_values=mask_value or (), boxes=boxes, size=wanted)
        asked = rule is not None or bool(words) or found.truth is not None
        chosen = rule or ("words" if words else "all")
        if asked:
            given.check_rule(adapter.tokenize(text), chosen, words, names, scored=found.truth is not None)
        explanation = explaining.explain_image(
            opened, found.sample, text, profile=profile, seed=seed, seeds=seeds, recipes=names, progress=report
        )
        maps = given.ruled(explanation, chosen, words) if asked else {}
        scores = given.scored(maps, found.truth, seed=seed) if found.truth is not None else {}
        facts = remembered(model, options)
        if asked:
            facts["rule"] = {"name": chosen, "words": list(words)}
        if found.truth is not None:
            origin: dict[str, Any] = {"boxes": [list(one) for one in boxes]}
            if mask is not None:
                origin = {"file": mask.name, **({"values": list(mask_value)} if mask_value else {})}
            facts |= {"truth": {**origin, "share": found.share}, "scores": scores}
        explanation = replace(explanation, provenance={**explanation.provenance, **facts})
        report("writing")
        with new_folder(out, overwrite=overwrite, marker="run.json") as folder:
            save_run(explanation, folder, overwrite=True)
            keep(folder, maps, found)
    remark(explanation, out)
    if trip := explanation.provenance.get("round_trip"):
        say(
            f"round trip of the inversion: latent {trip['latent']:.1%}, image {trip['image']:.3g} {trip['unit']} (mean "
            f"absolute); the autoencoder alone {trip['autoencoder']:.3g}"
        )
    for name, heatmap in maps.items():
        say(f"{name}, rule {chosen}: {heatmap.label} is highest at {place(heatmap)}")
    if scores:
        show(scores, found)


def numbers(given: str, option: str) -> list[float]:
    """The numbers of an option, parted by commas."""
    try:
        return [float(part) for part in given.split(",")]
    except ValueError:
        raise ValueError(f"{option} {given}: give numbers with commas between, x first, as in 10,20,64,48") from None


def whole(given: str, option: str) -> tuple[int, ...]:
    """The whole numbers of an option, parted by commas."""
    found = numbers(given, option)
    if not all(one.is_integer() for one in found):
        raise ValueError(f"{option} {given}: pixels are counted, so give whole numbers, as in 96,48")
    return tuple(map(int, found))


@contextmanager
def warned() -> Iterator[None]:
    """Say what our own code warns of inside the block."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module=r"voxplain\.")
        warnings.showwarning = lambda message, *about: say(f"warning: {message}")
        yield


def keep(run: Path, maps: Mapping[str, "Heatmap"], found: "Given") -> None:
    """The maps of the rule, and the truth in the frame of the run's image, as files of the run folder."""
    import numpy as np

    from voxplain.io.folders import safe_name
    from voxplain.io.nifti import write_volume

    for name, heatmap in maps.items():
        write_volume(run / f"rule-{safe_name(name)}.nii.gz", heatmap.values, heatmap.geometry)
    if found.truth is not None:
        write_volume(run / "truth.nii.gz", found.truth.values, found.truth.geometry, np.uint8)


def show(scores: Mapping[str, Mapping[str, float | str]], found: "Given") -> None:
    """A table of the scores on standard output, and the frame that they are of."""
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table

    shapes = [" x ".join(map(str, one.shape)) for one in (found.frame.target, found.frame.source)]
    way = ", ".join(type(step).__name__ for step in found.frame.steps) or "its place in millimeters"
    caption = f"in the model's frame {shapes[0]}, of {shapes[1]} by {way}; it holds {found.share:.0%} of the truth"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption)
    for title in ("map", *next(iter(scores.values()))):
        table.add_column(title)
    for name, row in scores.items():
        table.add_row(name, *(value if isinstance(value, str) else f"{value:.3f}" for value in row.values()))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)
