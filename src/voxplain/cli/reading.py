"""Verbs that only read: words, mask, overlay, export, report, doctor."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxplain.cli.base import On, Overwrite, Place, Recipe, Run, Scale, Top, Words, progress, say, verb

if TYPE_CHECKING:
    from voxplain.maps import Explanation


@verb
def words(run: Run, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """How far to believe each word, as a table."""
    from voxplain.io.run import load_run
    from voxplain.view.words import attention_mass, word_rows

    explanation = load_run(run)
    rows, mass = word_rows(explanation), attention_mass(explanation)
    if as_json:
        import json

        typer.echo(json.dumps({"prompt": explanation.prompt.text, "words": rows, "mass": mass}, ensure_ascii=False))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=off_words(mass))
    lines = [each for row in rows for each in word_lines(row)]
    shown = [title for title in (lines[0] if lines else {}) if any(each[title] for each in lines)]
    for title in shown:
        table.add_column(title, no_wrap=True)
    for each in lines:
        table.add_row(*(each[title] for title in shown), style="dim" if each["sure"] == "NO" else None)
    console = Console()
    natural = Console(width=10_000).measure(table).maximum
    Console(width=max(console.width, natural)).print(table)  # lines may wrap in a narrow window, figures are never cut


@verb
def mask(
    run: Run,
    word: Words,
    out: Annotated[Path, typer.Option(help="The NIfTI file to write.", show_default=False)],
    top: Top = 0.25,
    relative: Annotated[
        float | None, typer.Option(help="Instead: keep what reaches this share of the map's maximum.")
    ] = None,
    largest: Annotated[bool, typer.Option("--largest", help="Only the largest piece that hangs together.")] = False,
    recipe: Recipe = "mean",
    anyway: Annotated[bool, typer.Option("--anyway", help="Also for words that are not distinguishable.")] = False,
    scaling: Scale = "raw",
    on: On = None,
    place: Place = "file",
) -> None:
    """A mask of a word's map, or of several words' joint map."""
    import numpy as np

    from voxplain.io.nifti import write_volume
    from voxplain.masks import joint, largest_component, relative_threshold, top_fraction

    if not out.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"--out {out}: a mask is written as NIfTI; give a name that ends in .nii.gz")
    explanation = opened(run, on, place, scaling)
    heatmaps = [explanation.word(one, recipe=recipe) for one in word]
    unsure = [one for one in word if not explanation.sure(one, recipe)]
    if unsure and not anyway:
        names = ", ".join(unsure)
        raise ValueError(f"not distinguishable from a word that means nothing here: {names}; --anyway writes it still")
    heatmap = heatmaps[0] if len(heatmaps) == 1 else joint(heatmaps, top)
    chosen = top_fraction(heatmap, top) if relative is None else relative_threshold(heatmap, relative)
    chosen = largest_component(chosen) if largest else chosen
    values = chosen.resize(explanation.sample.geometry).values
    write_volume(out, values, explanation.sample.geometry, np.uint8)
    say(f"{out}: {values.mean():.1%} of the volume; a mask of a map is no segmentation")


@verb
def overlay(
    run: Run,
    word: Words,
    out: Annotated[Path, typer.Option(help="The picture to write: .png, .pdf or .svg.", show_default=False)],
    top: Top = 0.25,
    plane: Annotated[str | None, typer.Option(help="axial, coronal, sagittal or frontal. [default: the first]")] = None,
    window: Annotated[str | None, typer.Option(help="lung, soft tissue or bone. [default: lung]")] = None,
    scaling: Scale = "raw",
    on: On = None,
    place: Place = "file",
) -> None:
    """A picture of the words' maps over the image."""
    import io

    from voxplain.io.folders import write_file
    from voxplain.view.figure import figure

    buffer = io.BytesIO()
    with progress() as show:
        show("drawing")
        picture = figure(opened(run, on, place, scaling), word, fraction=top, plane=plane, window=window)
        picture.savefig(buffer, format=out.suffix.lstrip(".") or "png")
        write_file(out, buffer.getvalue())
    say(str(out))


@verb
def export(
    run: Run,
    nifti: Annotated[Path | None, typer.Option(help="The folder to write as NIfTI.", show_default=False)] = None,
    word: Annotated[list[str] | None, typer.Option(help="Only these words or phrases. [default: all]")] = None,
    top: Top = 0.25,
    scaling: Scale = "raw",
    on: On = None,
    place: Place = "file",
    overwrite: Overwrite = False,
    dicom: Annotated[Path | None, typer.Option(help="The folder to write as DICOM.", show_default=False)] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Also whole maps, not cut off, as DICOM.")] = False,
    with_prompt: Annotated[bool, typer.Option("--with-prompt", help="Words and prompt in DICOM, too.")] = False,
) -> None:
    """Image, maps and masks as NIfTI or DICOM, with a JSON sidecar."""
    if not (nifti or dicom):
        raise ValueError("name the folder to write, by --nifti or by --dicom")
    with progress() as show:
        show("writing")
        explanation = opened(run, on, place, scaling)
        if nifti:
            from voxplain.io.nifti import export as write

            say(str(write(explanation, nifti, word, top, overwrite=overwrite)))
        if dicom:
            from voxplain.io.dicom import export as write

            made = write(explanation, dicom, word, top, raw=raw, with_prompt=with_prompt, overwrite=overwrite)
            told = "" if with_prompt else "; words are numbers in the objects, --with-prompt writes them"
            say(f"{made}{told}")


@verb
def report(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="[default: report.html or viewer.html in the run]")] = None,
    interactive: Annotated[bool, typer.Option("--interactive", help="The viewer as one file, instead.")] = False,
) -> None:
    """Write the HTML page anew."""
    from voxplain.io.folders import write_file
    from voxplain.io.run import load_run

    place = out or run / ("viewer.html" if interactive else "report.html")
    with progress() as show:
        show("drawing")
        explanation = load_run(run)
        if interactive:
            from voxplain.serve.offline import interactive as viewer

            content = viewer(explanation, run.resolve().name)
        else:
            from voxplain.view.page import report as page

            content = page(explanation)
        write_file(place, content.encode())
    say(str(place))


@verb
def doctor() -> None:
    """What is installed, what is missing, which device is used."""
    import platform

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("what", "found", "for", title="voxplain doctor")
    table.add_row("python", platform.python_version(), "")
    table.add_row("device", device(), "")
    needed = requirements()
    for package, extra in needed.items():
        table.add_row(package, installed(package) or "missing", escape(f"voxplain[{extra}]") if extra else "core")
    shipped = Path(__file__).parents[1] / "models" / "thorax" / "weights"
    for config in sorted(shipped.glob("*/config.json")):
        table.add_row(config.parent.name, "ready", "model")
    Console().print(table)
    missing = [package for package, extra in needed.items() if not extra and not installed(package)]
    if missing or not needed:
        raise ImportError(f"not installed: {', '.join(missing) or 'voxplain itself'}; run `pip install voxplain`")


def opened(run: Path, on: Path | None, place: str, scaling: Scale = "raw") -> "Explanation":
    """The explanation in a run folder, over its own image or over a volume from elsewhere; its attention scaled."""
    from voxplain.io.run import load_run

    if on is None and place != "file":
        raise ValueError(f"--place {place} says where a volume from elsewhere is; name it by --on")
    explanation = load_run(run)
    if scaling != "raw":
        from dataclasses import replace

        from voxplain.recipes import scale

        maps = {
            name: scale(item, scaling) if item.recipe.needs_attention else item
            for name, item in explanation.attributions.items()
        }
        explanation = replace(explanation, attributions=maps)
    if on is None:
        return explanation
    from voxplain.io.placing import on_volume

    explanation = on_volume(explanation, on, place)
    if (share := explanation.provenance["shown_on"]["covered"]) < 0.99:
        say(f"{on} covers {share:.0%} of the run's field of view")
    return explanation


def device() -> str:
    """Where models run, in words."""
    try:
        import torch
    except ImportError:
        return "none: torch is missing"
    if not torch.cuda.is_available():
        return f"CPU, {torch.get_num_threads()} threads"
    return f"CUDA: {torch.cuda.get_device_name()}"


def requirements() -> dict[str, str]:
    """The packages that Voxplain names, each with the extra that takes it, "" for the core."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires("voxplain") or []
    except PackageNotFoundError:
        return {}
    parsed = (re.match(r"([\w.-]+)[^;]*(?:;.*extra == ['\"]([\w-]+)['\"])?", line) for line in lines)
    found = {match[1]: match[2] or "" for match in parsed if match}
    return {package: extra for package, extra in found.items() if package != "voxplain"}


def installed(package: str) -> str | None:
    """The version that is installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def word_lines(row: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The lines of one word in the table, one a recipe: title -> text, "" where there is nothing to say."""
    for number, (recipe, facts) in enumerate(row["recipes"].items()):
        null = facts["null_distinctness"]
        common = {
            "agree": short(row["rank_correlation"]),
            "top10": short(row["top10_overlap"]),
            "seeds": short(row["seed_correlation"]),
        }
        yield {
            "word": "" if number else row["word"],
            "mass": "" if number else short(row["mass"]),
            "recipe": recipe,
            "peak (mm)": " ".join(f"{value:.0f}" for value in facts["peak"] or ()),
            "distinct": short(facts["distinctness"]),
            "null": short(null),
            "evidence": short(facts["evidence"]),
            "sure": {True: "yes", False: "NO"}.get(facts["distinguishable"], ""),
            "seen": "" if number or not row["unknown"] else "never",
            **{title: "" if number else text for title, text in common.items()},
        }


def short(value: float | None) -> str:
    """A share or correlation, short; "" for None."""
    return "" if value is None else f"{value:.2f}"


def off_words(mass: Mapping[str, float]) -> str:
    """The shares of attention that no word got."""
    return ", ".join(f"{name.strip('[]')} {share:.1%}" for name, share in mass.items() if name.startswith("["))
