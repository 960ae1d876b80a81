"""One run read by four recipes: where theory says that they agree, and where they differ.

    python bench/recipes_figure.py     docs/img/recipes.png, and its numbers in bench/results/recipes.json

Above, only the layers of the finest grid are read: the recipes are then one map but for a factor. Below, each recipe
reads the layers that it names, on all grids, and gives the coarse ones another weight and another way to the finest.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from record import write

import voxplain
from voxplain import recipes
from voxplain.maps import AttentionMaps

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "img" / "recipes.png"
PROMPT, WORD, STEPS = "Large left pleural effusion.", "effusion", 10
NAMES = ("mean", "daam", "daam_paper", "chest_distillation")


def finest_layers(maps: AttentionMaps) -> tuple[str, ...]:
    """The layers of the finest grid."""
    finest = max((key.grid for key in maps.means), key=prod)
    return tuple(dict.fromkeys(key.layer for key in maps.means if key.grid == finest and key.layer is not None))


def shares(maps: AttentionMaps, word: str, layers: tuple[str, ...] | None = None) -> dict[str, Any]:
    """A word's map by each recipe, in shares of its maximum; `layers` instead of those that the recipes name."""
    made = {}
    for name in NAMES:
        recipe = recipes.get(name)
        values = recipes.reduce(maps, recipe if layers is None else replace(recipe, layers=layers)).word(word).values
        made[name] = values / values.max()
    return made


def departures(made: Mapping[str, Any]) -> dict[str, float]:
    """How far each map is from that of `mean` at most, in shares of the maximum."""
    return {name: float(np.abs(values - made["mean"]).max()) for name, values in made.items()}


def draw(maps: AttentionMaps, word: str, picture: Path) -> dict[str, dict[str, float]]:
    """Write the picture, coronal sections where the `mean` of the row is highest, and give the departures."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    reads = {"layers of the finest grid": finest_layers(maps), "all grids": None}
    figure, axes = plt.subplots(2, len(NAMES), figsize=(7.2, 4.2), layout="constrained")
    found = {}
    for line, (title, layers) in zip(axes, reads.items(), strict=True):
        made = shares(maps, word, layers)
        row = np.unravel_index(made["mean"].argmax(), made["mean"].shape)[1]
        found[title] = departures(made)
        for panel, (name, values) in zip(line, made.items(), strict=True):
            shown = panel.imshow(values[:, row], origin="lower", vmin=0, vmax=1, cmap="magma")
            away = "" if name == "mean" else f"\ndiffers by up to {100 * found[title][name]:.1f} %"
            panel.set_title(name + away, fontsize=8)
            panel.set_xticks([])
            panel.set_yticks([])
        line[0].set_ylabel(title, fontsize=8)
        figure.colorbar(shown, ax=line[-1], fraction=0.046).ax.tick_params(labelsize=7)
    figure.suptitle(f"{word!r}, one run, in shares of each map's maximum", fontsize=9)
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    return found


def main() -> None:
    model = voxplain.load("thorax")
    with voxplain.trace(model, per_head=True) as tracer:
        model.generate(PROMPT, seed=0, steps=STEPS)
    found = draw(tracer.maps()[0], WORD, PICTURE)
    for title, departs in found.items():
        print(title, {name: f"{100 * value:.2g} %" for name, value in departs.items()})
    run = {"prompt": PROMPT, "word": WORD, "steps": STEPS, "weights": voxplain.as_adapter(model).weights_hash}
    write("recipes", "python bench/recipes_figure.py", {**run, "departures": found})


if __name__ == "__main__":
    main()
