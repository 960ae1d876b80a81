"""Verbs that judge a model's maps: evaluate, sanity."""

import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxplain.cli.base import (
    Device,
    Dtype,
    Model,
    Overwrite,
    Seed,
    TextEncoder,
    TrustCode,
    named,
    progress,
    remaining,
    say,
    verb,
)
from voxplain.cli.datasets import options_of
from voxplain.cli.opening import open_model

if TYPE_CHECKING:
    from voxplain.studies.benchmark_cases import Source

PHANTOMS = 100
Split = Annotated[str | None, typer.Option(help="Only this split. [default: test of the phantoms, else all]")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE of the data set, as `voxplain dataset`.")]


@verb
def evaluate(
    data: Annotated[str, typer.Argument(help="phantoms, runs, or a set of `voxplain dataset`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder of the report.", show_default=False)],
    root: Annotated[Path | None, typer.Argument(help="Your copy of the files; of runs the CSV file.")] = None,
    model: Model = "thorax",
    split: Split = None,
    count: Annotated[int | None, typer.Option(help="At most so many cases. [default: 100 phantoms, else all]")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="A recipe or baseline; give it again for several. [default: mean]")
    ] = None,
    profile: Annotated[str, typer.Option(help="How images are read: renoise, invert or generate.")] = "renoise",
    seed: Seed = 0,
    words: Annotated[int, typer.Option(help="Show words that occur more often than this.")] = 25,
    spacy: Annotated[str | None, typer.Option(help="An installed spaCy pipeline for parts of speech.")] = None,
    option: Settings = None,
    label: Annotated[list[str] | None, typer.Option(help="Only what shows this; again for several.")] = None,
    read_as: Annotated[
        list[str] | None, typer.Option("--as", help="LABEL=TEXT: read what shows LABEL by this text.")
    ] = None,
    executor: Annotated[str, typer.Option(help="serial, or ray.")] = "serial",
    workers: Annotated[int, typer.Option(help="Processes, with ray.")] = 1,
    address: Annotated[str | None, typer.Option(help="A Ray cluster. [default: this machine alone]")] = None,
    gpus: Annotated[float, typer.Option(help="GPUs of each worker, with ray.")] = 0,
    retry: Annotated[bool, typer.Option("--retry", help="Take failed cases up again.")] = False,
    text_encoder: TextEncoder = None,
    dtype: Dtype = None,
    device: Device = None,
    trust_code: TrustCode = False,
    overwrite: Overwrite = False,
) -> None:
    """Score maps against truth: a report with intervals, controls and chance; goes on where it stopped."""
    given = {key: value for key, value in locals().items() if key not in ("data", "root")}
    command = spelled("evaluate", [data, *([str(root)] if root else [])], given)
    opened = {"text_encoder": text_encoder, "dtype": dtype, "trust_code": trust_code}
    with progress() as report:
        report("cases")
        from voxplain.studies import benchmark

        source = source_of(data, root, split, count, option or [], label or [], read_as or [])
        reads = data != "runs"
        made = benchmark.evaluate(
            source,
            out,
            opener=partial(open_model, model, quiet, device=device, **opened) if reads else None,
            model=model if reads else "",
            settings=benchmark.Settings(tuple(method or ["mean"]), profile, seed, spacy=spacy),
            minimum=words,
            command=command,
            overwrite=overwrite,
            progress=lambda done, total, left: report("cases", done, total, remaining(left)),
            executor=executor,
            workers=workers,
            address=address,
            gpus=gpus,
            retry=retry,
        )
    say(f"{made}: open {made / 'report.html'}")


@verb
def sanity(
    model: Annotated[str, typer.Argument(help="As --model of `voxplain explain`.", show_default=False)],
    text: Annotated[str, typer.Option(help="A text that the model can read.")] = "large left effusion",
    word: Annotated[str, typer.Option(help="The word of it whose map is tried.")] = "effusion",
    other: Annotated[str, typer.Option(help="A finding that it does not mention.")] = "nodule",
    image: Annotated[Path | None, typer.Option(help="An image to read. [default: one made of the text]")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the page, an HTML file.", show_default=False)] = None,
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Of the generations. [default: the model's]")] = None,
    text_encoder: TextEncoder = None,
    dtype: Dtype = None,
    device: Device = None,
    trust_code: TrustCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Try whether maps depend on what they should: pass or fail, with the reason."""
    given = {key: value for key, value in locals().items() if key != "model"}
    command = spelled("sanity", [model], given)
    with progress() as report:
        opened = open_model(model, report, text_encoder=text_encoder, dtype=dtype, device=device, trust_code=trust_code)
        from voxplain.adapters import as_adapter
        from voxplain.studies import given as images
        from voxplain.studies import sanity as study

        adapter = as_adapter(opened)
        sample = images.given(image, text, adapter).sample if image else None
        options: dict[str, Any] = {"text": text, "word": word, "other": other, "sample": sample, "seed": seed}
        made = study.examine(adapter, **options, generation_steps=steps, progress=report)
    rows = [(one.name, one.passed, one.reason) for one in made.verdicts]
    if as_json:
        import json

        checks = [
            {"check": one.name, "passed": one.passed, "reason": one.reason, "figures": dict(one.figures)}
            for one in made.verdicts
        ]
        told = {**made.facts, "command": command, "passed": made.passed, "checks": checks}
        typer.echo(json.dumps(told, ensure_ascii=False))
    else:
        words = {True: "pass", False: "FAIL", None: "  – "}
        for name, passed, reason in rows:
            typer.echo(f"{words[passed]}  {name}: {reason}")
    if out is not None:
        from voxplain.io.folders import write_file
        from voxplain.view.scoreboard import verdicts

        write_file(out, verdicts(f"{adapter.name}: {text}", rows, made.facts, command).encode("utf-8", "replace"))
        say(str(out))
    if not made.passed:
        raise SystemExit(1)


def source_of(
    data: str,
    root: Path | None,
    split: str | None,
    count: int | None,
    option: list[str],
    labels: list[str],
    texts: list[str],
) -> "Source":
    """The cases that were asked for."""
    from voxplain.datasets.opening import build
    from voxplain.studies.benchmark_cases import Records, Runs
    from voxplain.studies.benchmark_phantoms import Phantoms

    if data in ("phantoms", "runs") and (labels or texts or option):
        raise ValueError(f"{data} take no --set, --label and --as: these choose among the records of a data set")
    if data == "phantoms" and root is not None:
        raise ValueError(f"phantoms are drawn and read no file; leave {str(root)!r} out, or name a data set")
    if data == "runs" and (split, count) != (None, None):
        raise ValueError("runs take no --split and --count: list in the CSV file what is to be scored")
    if data == "phantoms":
        return Phantoms(PHANTOMS if count is None else count, split or "test")
    if data == "runs":
        if root is None:
            raise ValueError("runs are listed in a CSV file with the columns run, mask and words; give it")
        return Runs(root)
    built = build(data, root, **options_of(option))
    return Records(built, split, count, labels=tuple(labels), texts=named(texts, "--as"))


def spelled(name: str, arguments: list[str], options: Mapping[str, Any]) -> str:
    """The command line that says the same, without what is left at its default."""
    from inspect import signature

    usual = {key: one.default for key, one in signature(globals()[name]).parameters.items()}
    names = {"option": "set", "read_as": "as", "as_json": "json"}
    parts = ["voxplain", name, *arguments]
    for key, value in options.items():
        if value == usual.get(key) or value is None:
            continue
        flag = f"--{names.get(key, key).replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            parts += [flag] if one is True else [flag, str(one)]
    return shlex.join(parts)


def quiet(*progress: Any) -> None:
    """A worker's progress in loading is nobody's concern."""
