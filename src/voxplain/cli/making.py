"""Verbs that run a model: explain, effect, train; what they and ground write and say."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from voxplain.cli.base import (
    Device,
    Dtype,
    Model,
    Overwrite,
    Recipes,
    Run,
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
from voxplain.cli.opening import open_model, remembered, reopened, sized

if TYPE_CHECKING:
    from voxplain.maps import Explanation, Heatmap
    from voxplain.studies.effect import TotalEffect


@verb
def explain(
    prompt: Annotated[str, typer.Argument(help="What the image should show.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The run folder to write.", show_default=False)],
    model: Model = "thorax",
    seed: Seed = 0,
    seeds: Seeds = 1,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. [default: the model's]")] = None,
    negative: Annotated[str | None, typer.Option(help="What the image should not show.")] = None,
    height: Annotated[int | None, typer.Option(help="Rows of the image, for diffusers. [default: native]")] = None,
    width: Annotated[int | None, typer.Option(help="Columns of the image, for diffusers. [default: native]")] = None,
    recipe: Recipes = None,
    layers: Annotated[
        list[str] | None, typer.Option(help='Only layers that fit this pattern, as in "up_blocks.*".')
    ] = None,
    per_step: Annotated[int | None, typer.Option(help="Also a map for each of this many parts of the steps.")] = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Also a map of each layer alone.")] = False,
    phrase: Annotated[list[str] | None, typer.Option(help="Measure this span's effect as a whole, too.")] = None,
    removed: Annotated[
        Literal["after", "before"] | None,
        typer.Option(
            help="Take words out after the text encoder, or before it. [default: as the model says, else after]"
        ),
    ] = None,
    text_encoder: TextEncoder = None,
    dtype: Dtype = None,
    device: Device = None,
    trust_code: TrustCode = False,
    overwrite: Overwrite = False,
) -> None:
    """Generate an image and map every word of its prompt."""
    refuse_existing(out, overwrite)
    options = {"text_encoder": text_encoder, "dtype": dtype, "trust_code": trust_code}
    with progress() as report:
        opened = open_model(model, report, device=device, **options)
        from voxplain.studies import explaining

        explanation = explaining.explain(
            sized(opened, height, width),
            prompt,
            seed=seed,
            steps=steps,
            guidance_scale=guidance,
            negative_prompt=negative,
            recipes=several(recipe),
            layers=layers,
            parts=per_step,
            per_layer=per_layer,
            phrases=phrase or (),
            removed=removed,
            seeds=seeds,
            progress=report,
        )
        write(explanation, remembered(model, options), out, overwrite, report)


@verb
def effect(
    run: Run,
    phrase: Annotated[str, typer.Argument(help="A word or quoted phrase of the prompt.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="The model that made the run. [default: as recorded]")] = None,
    total: Annotated[bool, typer.Option("--total", help="Generate again without it; keep the difference.")] = False,
    text_encoder: TextEncoder = None,
    dtype: Dtype = None,
    device: Device = None,
    trust_code: TrustCode = False,
) -> None:
    """Measure what a phrase changed; keep it in the run."""
    from voxplain.io.run import add_to_run, load_run

    explanation = load_run(run)
    rows, origin = explanation.prompt.find(phrase), explanation.provenance
    if not total and "effect" not in explanation.attributions:
        raise ValueError(f"{run} was explained without the recipe 'effect'; explain it again with --recipe effect")
    if total and "readout" in origin:
        raise ValueError(
            f"{run} holds an image that was not generated, so there is none to generate without {phrase!r}"
        )
    given = {"text_encoder": text_encoder, "dtype": dtype, "trust_code": trust_code}
    name, options = reopened(run, origin, model, given)
    with progress() as report:
        opened = open_model(name, report, device=device, **options)
        recorded, weights = origin.get("weights"), getattr(opened, "weights_hash", None)
        if recorded != weights:
            raise ValueError(f"{run} was made with weights {recorded}, these are {weights}; name its model by --model")
        from voxplain.adapters import as_adapter
        from voxplain.studies import effect as study

        adapter, shape = as_adapter(opened), explanation.sample.geometry.shape
        if adapter.geometry.shape != shape:
            adapter = sized(opened, *shape[-2:])
        if total:
            again = {name: origin[name] for name in ("seed", "steps", "guidance_scale", "negative_prompt")}
            made = study.total(adapter, explanation.prompt.text, phrase, progress=partial(report, "generate"), **again)
            keep(run, made)
            heatmap, unit = made.heatmap, made.sample.unit
        else:
            report("effect")
            heatmap, unit = study.measure_phrase(adapter, explanation, phrase), "of the prediction's size"
            add_to_run(run, "effect", {rows: heatmap.values})
    say(f"{heatmap.label}: changed by up to {heatmap.values.max():.3g} {unit}, most at {place(heatmap)}")


@verb
def train(
    name: Annotated[str, typer.Argument(help="thorax, thorax-2d or reader.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where phantoms, checkpoints and log are kept.")] = Path("checkpoints"),
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Steps of the denoiser or reader. [default: the preset's]")] = None,
    workers: Annotated[int, typer.Option(help="Processes that draw phantoms.")] = 1,
    weights: Annotated[Path | None, typer.Option(help="The model folder to write. [default: in OUT]")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="A model whose denoiser is trained on. [default: random numbers]")
    ] = None,
    keep_text: Annotated[bool, typer.Option("--keep-text", help="With --from: its text encoder, too.")] = False,
) -> None:
    """Train a default model, or the reader that judges it, on phantoms; after a kill, go on."""
    if keep_text and start is None:
        raise ValueError("--keep-text without --from: there is no text encoder to keep; name a model")
    if start and name == "reader":
        raise ValueError("the reader is trained from random numbers; leave --from out")
    with progress() as report:
        report("loading torch")

        def show(stage: str, done: int, total: int, loss: float, left: float) -> None:
            report(stage, done, total, f"loss {loss:.4f}")

        chosen: dict[str, Any] = {"progress": show, "workers": workers, "weights": weights, "seed": seed}
        if name == "reader":
            from voxplain.studies.reading import train_reader

            place = train_reader(out, **(chosen if steps is None else {**chosen, "steps": steps}))
        else:
            from voxplain.studies.training import train as run

            chosen |= ({"start": start} if start else {}) | ({"text_steps": 0} if keep_text else {})
            place = run(name, out, **(chosen if steps is None else {**chosen, "denoiser_steps": steps}))
    say(str(place))


def write(
    explanation: "Explanation", opened: dict[str, Any], out: Path, overwrite: bool, report: Callable[..., None]
) -> None:
    """Save the run, with what its model was opened by, and say what the user should know (`remark`)."""
    from voxplain.io.run import save_run

    report("writing")
    explanation = replace(explanation, provenance={**explanation.provenance, **opened})
    save_run(explanation, out, overwrite=overwrite)
    remark(explanation, out)


def remark(explanation: "Explanation", out: Path) -> None:
    """What the user should know of the run, and where it is."""
    for warning in explanation.provenance["warnings"]:
        say(f"warning: {warning}")
    for recipe in explanation.provenance["recipes"]:
        judged = {word: facts["recipes"][recipe]["distinguishable"] for word, facts in explanation.honesty.items()}
        if unsure := [word for word, verdict in judged.items() if verdict is False]:
            say(f"not distinguishable by {recipe!r} from a word that means nothing here: {', '.join(unsure)}")
    say(f"{out}: open {out / 'report.html'}")


def keep(run: Path, made: "TotalEffect") -> None:
    """The difference and the sample without the phrase, as files of the run folder."""
    from voxplain.io.folders import safe_name
    from voxplain.io.nifti import write_volume

    name = safe_name(made.heatmap.label)
    write_volume(run / f"total-{name}.nii.gz", made.heatmap.values, made.heatmap.geometry)
    write_volume(run / f"without-{name}.nii.gz", made.without.image, made.without.geometry)


def place(heatmap: "Heatmap") -> str:
    """Where the heatmap is highest, for people."""
    import numpy as np

    peak = heatmap.geometry.world(np.array([heatmap.peak], float))[0]
    unit = "mm LPS" if heatmap.geometry.spacing_known else "in pixels, x first"
    return f"({', '.join(f'{value:.0f}' for value in peak)}) {unit}"
