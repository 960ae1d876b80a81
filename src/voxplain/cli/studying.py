"""The verb of reader studies: study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from voxplain.cli.base import say, verb


@verb
def study(
    cases: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of them.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="The study's folder: plan, answers, what was looked at.")] = Path("study"),
    plan: Annotated[
        Path | None, typer.Option(help="A plan as JSON. [default: one is written]", show_default=False)
    ] = None,
    reader: Annotated[str, typer.Option(help="A pseudonym; each reader has an order and arms of their own.")] = "R1",
    export: Annotated[
        Path | None, typer.Option(help="Write all answers as CSV and print the summary.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; off this machine a token is asked for.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.")] = 8766,
    name: Annotated[list[str] | None, typer.Option(help="Another host name to answer to, as a proxy's.")] = None,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Put blinded cases before readers, with right, wrong and no overlays, and keep what they answer."""
    from voxplain.studies.reader_folder import MARKER, PLAN, Study
    from voxplain.studies.reader_plan import read_plan

    runs = _runs(cases or ())
    if export is not None:
        if not (out / MARKER).is_file():
            raise FileNotFoundError(f"{out} holds no reader study; give its folder as --out")
        return _export(Study.at(out), export)

    from voxplain.serve import starting

    starting.needed()
    from voxplain.serve.guard import Access
    from voxplain.serve.study import Session, build_study

    known = (out / MARKER).is_file() and (out / PLAN).is_file()
    wanted = read_plan(plan, runs) if plan else None if known or not runs else _default(runs)
    session = Session(Study.at(out, wanted), reader)
    if known and runs and not plan:
        say(f"{out / PLAN} is followed; what it does not name is not shown")
    elif not known and not plan:
        say(f"wrote {out / PLAN}: cases, words, arms and questions, to be edited until the first answer")
    for note in session.notes:
        say(f"note: {note}")
    with starting.bound(host, port) as listening:
        access = Access.of(host, listening.getsockname()[1], name or ())

        def ready(url: str) -> None:
            total = len(session.showings)
            say(f"{url}  reader {reader}, {session.position} of {total} cases answered (Ctrl-C ends, answers stay)")
            if browser:
                import webbrowser

                webbrowser.open(url)

        starting.run(lambda access: build_study(session, access), listening, access, ready)


def _runs(given: Sequence[Path]) -> dict[str, Path]:
    """Run folders by name, from run folders and from folders of them."""
    found: dict[str, Path] = {}
    for place in given:
        inside = [place] if (place / "run.json").is_file() else sorted(path.parent for path in place.glob("*/run.json"))
        if not inside:
            raise FileNotFoundError(f"{place} is no run folder and holds none; make one with `voxplain explain`")
        for path in inside:
            known = found.setdefault(path.resolve().name, path.resolve())
            if known != path.resolve():
                raise ValueError(f"{path} and {known} have the same name; a plan tells runs apart by it: rename one")
    return found


def _default(runs: dict[str, Path]) -> Any:
    """A plan over the most distinct word of each run, in those arms that all of them can serve."""
    from voxplain.io.run import load_run
    from voxplain.studies.reader_plan import ARMS, Case, default_plan
    from voxplain.view.words import best_words

    cases, effect = [], True
    for number, place in enumerate(runs.values(), start=1):
        explanation = load_run(place)
        words = best_words(explanation, 1)
        if not words:
            raise ValueError(f"{place}: its prompt has no word whose map could be shown")
        cases.append(Case(f"case-{number}", str(place), words[0]))
        effect = effect and "effect" in explanation.attributions
    return default_plan(cases, [arm for arm in ARMS if effect or arm != "effect"])


def _export(study: Any, path: Path) -> None:
    from voxplain.io.folders import write_file
    from voxplain.studies.readers import summary
    from voxplain.view.tables import as_csv, text

    rows = study.answers()
    if not rows:
        raise ValueError(f"{study.folder} holds no answers yet")
    write_file(path, as_csv(study.table()).encode())
    table = summary(study.plan, rows)
    lines = [table.columns, *([text(cell) for cell in row] for row in table.rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    say(table.note)
    say(f"wrote {path}: {len(rows)} answers of {len({row['reader'] for row in rows})} readers")
