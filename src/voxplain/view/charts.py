"""Figures of scores: means with their intervals side by side, and box plots. `files` makes PNG and SVG of each."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from voxplain.view.tables import Spread

MARKS = "osD^vP*X<>hp"


def dots(
    title: str, series: Mapping[str, Sequence[Spread | None]], groups: Sequence[str], chance: float | None = None
) -> Figure:
    """A mark with its interval for each series in each group; None leaves a gap. A dashed line where chance is."""
    high = max(2.4, 0.16 * (len(series) + 2) * len(groups) + 1.2)
    picture = Figure(figsize=(7.5, high), dpi=120, facecolor="white", layout="constrained")
    axes = picture.subplots()
    step = 0.8 / max(1, len(series))
    for number, (name, spreads) in enumerate(series.items()):
        places = [place + number * step - 0.4 + step / 2 for place in range(len(groups))]
        known = [(place, spread) for place, spread in zip(places, spreads, strict=True) if spread is not None]
        values = [spread[0] for _, spread in known]
        below = [0.0 if low is None else value - low for _, (value, low, _) in known]
        above = [0.0 if top is None else top - value for _, (value, _, top) in known]
        axes.errorbar(
            values,
            [place for place, _ in known],
            xerr=[[max(0.0, one) for one in side] for side in (below, above)],
            fmt=MARKS[number % len(MARKS)],
            markersize=4,
            markerfacecolor="white" if number > 9 else None,  # ten colors, then hollow ones
            linewidth=1,
            label=name,
        )
    if chance is not None:
        axes.axvline(chance, linestyle="--", linewidth=1, color="#555555", label="chance")
    axes.set_yticks(range(len(groups)), labels=list(groups), parse_math=False)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_title(title, fontsize=11, parse_math=False)
    axes.grid(axis="x", linewidth=0.4)
    _legend(axes)
    return picture


def boxes(title: str, groups: Mapping[str, Sequence[float]], label: str) -> Figure:
    """A box for each group with its number of values: quartiles, median, whiskers to 1.5 times the box, the rest."""
    picture = Figure(figsize=(max(5.0, 0.7 * len(groups) + 1.5), 3.6), dpi=120, facecolor="white", layout="constrained")
    axes = picture.subplots()
    axes.boxplot(list(groups.values()), flierprops={"markersize": 2})
    names = [f"{name}\n{len(values)}" for name, values in groups.items()]
    axes.set_xticks(range(1, len(groups) + 1), labels=names, parse_math=False)
    axes.set_ylabel(label, parse_math=False)
    axes.set_title(title, fontsize=11, parse_math=False)
    axes.grid(axis="y", linewidth=0.4)
    return picture


def files(figure: Figure) -> dict[str, bytes]:
    """The figure as "png" and "svg"."""
    made = {}
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
        made[kind] = buffer.getvalue()
    return made


def _legend(axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    shown = axes.legend(handles, labels, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    for one in shown.get_texts():
        one.set_parse_math(False)
