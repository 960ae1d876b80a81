"""A labeled picture of some words: one column a word, one row a recipe."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from voxplain.maps import Explanation
from voxplain.view.overlay import Plane, colors, limits, overlay, planes
from voxplain.view.words import UNSURE_TEXT, WordView, best_words, image_note, main_recipes, recipe_title, word_views

CAPTION = "Where a word was attended to is neither a cause nor a segmentation."


def figure(
    explanation: Explanation,
    words: Sequence[str] | None = None,
    *,
    plane: str | None = None,
    fraction: float = 0.25,
    opacity: float = 0.65,
    window: str | tuple[float, float] | None = None,
) -> Figure:
    """The top `fraction` of each word's maps over the slice where they peak; `savefig(path)` makes it a file.

    `words` are words or phrases (default: six, first those that are distinguishable), `plane` a name of `planes(...)`
    (default the first). A map that is not distinguishable is of one faint color and says so; a phrase that a recipe has
    not measured has no map.
    """
    views = list(word_views(explanation, best_words(explanation, 6, fill=True) if words is None else words))
    if not views:
        raise ValueError("there is no word to show; name at least one word of the prompt")
    shown = planes(explanation.sample.geometry)
    if plane is not None and plane not in shown:
        raise ValueError(f"no plane {plane!r}; this sample has {', '.join(shown)}")
    name = plane or next(iter(shown))
    recipes = main_recipes(explanation)
    rows, columns = (explanation.sample.geometry.shape[axis] for axis in (shown[name].rows, shown[name].columns))
    ratio = rows * shown[name].spacing[0] / (columns * shown[name].spacing[1])
    wide = max(2.3 * len(views) + 1.2, 5.5)
    high = ((wide - 2.0) / len(views) * ratio + 0.25) * len(recipes) + 1.0
    picture = Figure(figsize=(wide, high), dpi=120, facecolor="white", layout="constrained")
    axes = picture.subplots(len(recipes), len(views), squeeze=False)
    settings = {"plane": name, "fraction": fraction, "opacity": opacity, "window": window, "pixels": 320}
    for row, recipe in enumerate(recipes):
        for column, view in enumerate(views):
            panel = axes[row, column]
            _panel(panel, explanation, view, recipe, shown[name], settings)
            if row == 0:
                panel.set_title(view.label, fontsize=12, fontweight="bold", parse_math=False)
        label = f"{recipe_title(explanation.attributions[recipe])}\n({recipe})"
        axes[row, 0].set_ylabel(label, fontsize=11, parse_math=False)
    _color_bar(picture, axes, fraction)
    picture.suptitle(fill(explanation.prompt.text, int(wide * 10)), fontsize=12, parse_math=False)
    caption = fill(f"{name} plane. {image_note(explanation)} {CAPTION}", int(wide * 16))
    picture.supxlabel(caption, fontsize=8, color="#555555")
    return picture


def _panel(panel: Axes, explanation: Explanation, view: WordView, recipe: str, plane: Plane, settings: dict) -> None:
    heatmap = view.heatmaps[recipe]
    at = plane.through_point(view.point)
    rgb = overlay(explanation.sample, heatmap, index=at, sure=view.sure(recipe), **settings)
    panel.imshow(rgb, interpolation="bilinear")
    panel.set_xticks([])
    panel.set_yticks([])
    rows, columns = rgb.shape[:2]
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))  # left, right, top, bottom
    for letter, (x, y) in zip(plane.letters, places, strict=True):
        sides = {0.02: ("left", "bottom"), 0.98: ("right", "top"), 0.5: ("center", "center")}
        text = panel.text(x, y, letter, transform=panel.transAxes, color="white", fontsize=9, fontweight="bold")
        text.set(ha=sides[x][0], va=sides[y][1], path_effects=[withStroke(linewidth=2, foreground="black")])
    if heatmap is None:
        note = f"phrase not measured\nby {recipe}"
        text = panel.text(columns / 2, rows / 2, note, color="white", ha="center", va="center", parse_math=False)
        text.set_bbox({"facecolor": "black", "alpha": 0.7, "edgecolor": "none"})
        return
    low, high = limits(heatmap, settings["fraction"])
    note = f"{low:.2g} to {high:.2g}" if view.sure(recipe) else UNSURE_TEXT
    panel.set_xlabel(note, fontsize=8, color="#555555", fontweight="normal" if view.sure(recipe) else "bold")


def _color_bar(picture: Figure, axes: np.ndarray, fraction: float) -> None:
    scale = ScalarMappable(Normalize(0, 1), ListedColormap(colors(np.linspace(0, 1, 256))))
    bar = picture.colorbar(scale, ax=axes, fraction=0.05, pad=0.02, shrink=0.8)
    bar.set_ticks([0, 1], labels=[f"top {fraction:.0%}", "highest"])
    bar.set_label("value, relative within each picture")
