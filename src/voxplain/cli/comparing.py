"""The verb that compares images with images: fidelity."""

from pathlib import Path
from typing import Annotated

import typer

from voxplain.cli.base import Seed, named, say, verb


@verb
def fidelity(
    given: Annotated[
        Path, typer.Argument(help="Real features (.npy) or images (a folder); or one file alone.", show_default=False)
    ],
    generated: Annotated[Path | None, typer.Argument(help="The generated ones, of the same kind.")] = None,
    reader: Annotated[
        str | None, typer.Option(help="Take features of the two folders from a reader: its folder, or `shipped`.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV (file, label): the reader's AUC on one folder.", show_default=False)
    ] = None,
    read_as: Annotated[
        list[str] | None,
        typer.Option("--as", help="LABEL=OUTPUT: what the classifier calls a finding; again for several."),
    ] = None,
    healthy: Annotated[str, typer.Option(help="The label of healthy images, for the AUC.")] = "No Finding",
    data_range: Annotated[
        float | None, typer.Option(help="Width of the values' scale: 1 for pictures, 2000 for CT.", show_default=False)
    ] = None,
    scales: Annotated[int, typer.Option(help="Of MS-SSIM.")] = 5,
    window: Annotated[int, typer.Option(help="Width of the window of SSIM and MS-SSIM, in cells.")] = 11,
    allow_few: Annotated[bool, typer.Option("--allow-few", help="FID of fewer images than dimensions.")] = False,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare generated images with real ones: distances of features, pairs of images, diversity, classifier AUC."""
    from dataclasses import asdict

    from voxplain.metrics.classification import TORCHXRAYVISION
    from voxplain.metrics.features import load_features
    from voxplain.studies import fidelity as study

    options = {"data_range": data_range, "scales": scales, "window": window}
    called = {"names": {**TORCHXRAYVISION, **named(read_as, "--as")}, "healthy": healthy}
    found, table = [], None
    if reader is not None:
        from voxplain.studies.judging import load_reader

        opened = load_reader() if reader == "shipped" else load_reader(reader)
        if (generated is None) == (labels is None):
            raise ValueError("with --reader give two folders, or one folder and --labels")
        if labels is not None:
            table = study.reader_auc(opened, given, labels, **called)
        elif generated is not None:
            both = [study.reader_features(opened, folder) for folder in (given, generated)]
            found = study.distances(*both, allow_few=allow_few, seed=seed)
    elif generated is None and given.suffix == ".npy":
        table = study.scored_files(given, **called)
    elif generated is None:
        if given.suffix != ".csv":
            raise ValueError(f"{given}: give two of a kind; or alone a CSV file (image, prompt) or scores (.npy)")
        table = study.diversity_table(given, **ranged(options), seed=seed)
    elif given.suffix == generated.suffix == ".npy":
        found = study.distances(load_features(given), load_features(generated), allow_few=allow_few, seed=seed)
    else:
        table = study.pair_table(given, generated, **ranged(options))
    if as_json:
        import json

        from voxplain.view.tables import as_plain

        made = as_plain([table])[0] if table else {"distances": [asdict(one) for one in found]}
        typer.echo(json.dumps(made, ensure_ascii=False, allow_nan=False))
        return
    for one in found:
        typer.echo(str(one))
    if table:
        from voxplain.view.tables import text

        for row in (table.columns, *table.rows):
            typer.echo("  ".join(text(cell) for cell in row))
        say(table.note)


def ranged(options: dict) -> dict:
    """The options, with a data range."""
    if options["data_range"] is None:
        raise ValueError("give --data-range, the width of the values' scale: 1 for pictures, 2000 for -1000 to 1000 HU")
    return options
