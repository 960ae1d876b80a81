"""Pieces of HTML that a report is made of; whatever came from outside is escaped here."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from voxplain.maps import Attribution, Explanation, Heatmap
from voxplain.view.overlay import RGB, colors, overlay, planes
from voxplain.view.words import recipe_title


def page(title: str, body: str) -> str:
    """A whole page around `body`, with our style in it; the title is escaped and cut."""
    style = files("voxplain.view").joinpath("page.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title[:80])} · Voxplain</title><style>{style}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


def data_uri(rgb: RGB) -> str:
    """The picture as a `data:` address; JPEG, since noise makes PNG five times larger."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def image(rgb: RGB, letters: Sequence[str], text: str) -> str:
    """A picture with its four letters, and `text` for those who do not see it."""
    marks = "".join(f'<b aria-hidden="true">{letter}</b>' for letter in letters)
    size = f'width="{rgb.shape[1]}" height="{rgb.shape[0]}"'
    return f'<div class="image"><img src="{data_uri(rgb)}" {size} alt="{escape(text)}">{marks}</div>'


def all_planes(
    explanation: Explanation, heatmap: Heatmap | None, point: Sequence[int], what: str, options: Mapping[str, Any]
) -> str:
    """The sample cut through `point` in each plane, side by side, with the heatmap on top."""
    figures = []
    for name, plane in planes(explanation.sample.geometry).items():
        at = plane.through_point(point)
        rgb = overlay(explanation.sample, heatmap, plane=name, index=at, pixels=400, **options)
        place = name + (f", slice {at}" if plane.through else "")
        picture = image(rgb, plane.letters, f"{what}: {place}")
        figures.append(f"<figure>{picture}<figcaption>{place}</figcaption></figure>")
    return f'<div class="planes">{"".join(figures)}</div>'


def ramp(sure: bool) -> RGB:
    """The color scale as a strip, lowest on the left."""
    line = colors(np.linspace(0, 1, 220), sure)
    return np.repeat((line * 255).astype(np.uint8)[None], 14, axis=0)


def recipe_name(name: str, attribution: Attribution) -> str:
    """What a recipe shows, and its name."""
    return f'{recipe_title(attribution).capitalize()} <span class="soft">({escape(name)})</span>'


def table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table of cells that are HTML already; each row comes with its class."""
    body = "".join(f'<tr class="{kind}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for kind, cells in rows)
    titles = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def definitions(facts: Mapping[str, str]) -> str:
    """A list of names and values."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in facts.items())}</dl>"


def bullets(sentences: Iterable[str]) -> str:
    """A list of sentences, escaped."""
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as lines of text: `model · name`."""
    lines: dict[str, str] = {}
    for key, value in facts.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            lines.update(flat(value, f"{name} · "))
        elif isinstance(value, (list, tuple)):
            lines[name] = ", ".join(map(str, value)) or "none"
        else:
            lines[name] = f"{value:.4g}" if isinstance(value, float) else str(value)
    return lines


def percent(value: float | None) -> str:
    """0.123 as 12.3%, and a dash for what was not measured."""
    return "–" if value is None else f"{value:.1%}"


def decimal(value: float | None) -> str:
    """Two decimals, and a dash for what was not measured."""
    return "–" if value is None else f"{value:.2f}"
