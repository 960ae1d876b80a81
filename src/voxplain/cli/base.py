"""What all verbs share: the application, its exit codes, progress on the error stream, common options."""

import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from voxplain.datasets.base import RuleWarning

DEBUG = "VOXPLAIN_DEBUG"
BAD_INPUT = (ValueError, NotImplementedError, FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
PERIOD = 30  # seconds between two lines of progress where no bar can be drawn
FAILURE = (FloatingPointError, ImportError, OSError)  # not the user's words, but nothing a traceback would explain

app = typer.Typer(
    help="Which words of the prompt made which voxels, and should you believe the answer?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Run = Annotated[Path, typer.Argument(help="A run folder, as `voxplain explain` writes it.", show_default=False)]
Words = Annotated[list[str], typer.Argument(help="Words or quoted phrases of the prompt.", show_default=False)]
Model = Annotated[str, typer.Option(help="A shipped model by name, a diffusers or MONAI folder, or medsyn:CHECKPOINT.")]
TextEncoder = Annotated[
    Path | None, typer.Option(help="Folder of the text encoder, for MONAI and MedSyn.", show_default=False)
]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16. [default: float32]")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... [default: cuda where there is one]")]
TrustCode = Annotated[bool, typer.Option("--trust-code", help="Run the expressions of a MONAI bundle, which are code.")]
Seed = Annotated[int, typer.Option(help="Where the noise comes from.")]
Seeds = Annotated[int, typer.Option(help="This many seeds: mean, spread and correlation between them.")]
Recipes = Annotated[
    list[str] | None,
    typer.Option("--recipe", help="mean, effect, support, ...; give it again for several. [default: mean, effect]"),
]
Recipe = Annotated[str, typer.Option(help="Whose maps: mean (attended to), effect (changed) or support (borne out).")]
Scale = Annotated[
    Literal["raw", "words", "log_ratio"],
    typer.Option("--scaling", help="Of attention; words: shares among the words; log_ratio: to the uniform level."),
]
Top = Annotated[float, typer.Option(help="The share of nonzero cells to keep.")]
On = Annotated[
    Path | None, typer.Option(help="A volume from elsewhere (NIfTI) to lay under the maps.", show_default=False)
]
Place = Annotated[str, typer.Option(help="Where that volume is: as its file says, or as run or medsyn.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """A command that ends in one clear line and an exit code: 2 for bad input, 1 for failure, 130 when interrupted."""

    @app.command()
    @wraps(function)
    def command(*args: Any, **options: Any) -> None:
        try:
            with warnings.catch_warnings():
                if not os.environ.get(DEBUG):
                    warnings.simplefilter("ignore")  # what concerns the user is said by the verbs themselves, but for:
                    warnings.simplefilter("always", RuleWarning)
                    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
                function(*args, **options)
        except KeyboardInterrupt:
            say("interrupted; nothing half-written is left")
            raise SystemExit(130) from None
        except (*BAD_INPUT, *FAILURE) as error:
            if os.environ.get(DEBUG):
                raise
            say(f"error: {error or type(error).__name__}")
            raise SystemExit(2 if isinstance(error, BAD_INPUT) else 1) from None

    return command


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and warnings.")] = False) -> None:
    """Options that every verb shares."""
    if debug:
        os.environ[DEBUG] = "1"


def say(line: str) -> None:
    """One line for the user, on the error stream: standard output is for results."""
    print(line, file=sys.stderr)


@contextmanager
def progress() -> Iterator[Callable[..., None]]:
    """Bars on the error stream, one a stage; yields `report(stage, done, total, note)`, total 0 if it is not known.

    A stream that is no terminal gets a plain line at most every `PERIOD` seconds, and the last where it had others.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        stages: dict[str, Any] = {}
        began = said = time.monotonic()

        def report(stage: str, done: int = 0, total: int = 0, note: str = "") -> None:
            nonlocal said
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=None)
            described = f"{stage} {note}".strip()
            bars.update(stages[stage], completed=done, total=total or None, description=described)
            now = time.monotonic()
            if not console.is_terminal and (now - said >= PERIOD or (said > began and 0 < total == done)):
                said = now
                say(f"{described}: {done} of {total}" if total else described)

        yield report


def remaining(seconds: float) -> str:
    """How long something still takes, in hours, minutes or seconds; nothing for no time."""
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"({hours} h {minutes} min left)"
    return f"({minutes} min left)" if minutes > 1 else f"({seconds:.0f} s left)" if seconds else ""


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Fail before any work is done if the run folder could not be written after it."""
    from voxplain.io.folders import refuse_blocked

    refuse_blocked(out)
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; choose another folder, or replace the run in it by --overwrite")
    if out.exists() and not (out / "run.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} holds no run, so it is not replaced; choose another folder")


def several(recipes: list[str] | None) -> list[str]:
    """The recipes asked for, by repeated options or with commas; both of ours if none was."""
    return [name for given in recipes or ["mean,effect"] for name in given.replace(",", " ").split()]


def named(given: list[str] | None, option: str = "--set") -> dict[str, str]:
    """What a repeated option NAME=VALUE says."""
    if wrong := [pair for pair in given or () if "=" not in pair]:
        raise ValueError(f"{option} {wrong[0]}: give it as NAME=VALUE")
    pairs = [(name, value) for name, _, value in (pair.partition("=") for pair in given or ())]
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"{option} {twice[0]} is given more than once; give it once")
    return dict(pairs)
