"""The page of an evaluation, and that of a series of checks: one HTML file each, nothing is loaded from elsewhere."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from voxplain.maps import CAVEAT
from voxplain.view import markup
from voxplain.view.tables import Table, as_html

WARNING = f"Not for diagnosis. {CAVEAT}"


def scoreboard(
    title: str,
    sections: Sequence[tuple[str, Sequence[str], Sequence[Table], Mapping[str, bytes]]],
    facts: Mapping[str, Any],
    *,
    cautions: Sequence[str] = (),
    command: str = "",
) -> str:
    """The page. A section is its title, sentences that belong above it, tables, and figures (title -> SVG)."""
    body = "".join(_section(*section) for section in sections)
    return markup.page(
        title,
        f'<h1>Voxplain evaluation</h1><p class="prompt">{escape(title)}</p><div class="caution">'
        f"<strong>{escape(WARNING)}</strong>{markup.bullets(cautions) if cautions else ''}</div>{body}"
        f"<h2>How it was made</h2>{_again(command)}{markup.definitions(markup.flat(facts))}",
    )


def verdicts(
    title: str, rows: Sequence[tuple[str, bool | None, str]], facts: Mapping[str, Any], command: str = ""
) -> str:
    """The page of a series of checks: name, whether it passed (None: it does not apply), and the reason."""
    words = {True: "pass", False: "FAIL", None: "not applicable"}
    failed = sum(passed is False for _, passed, _ in rows)
    head = f"{failed} of {len(rows)} checks failed" if failed else f"no check of {len(rows)} failed"
    table = Table(
        "checks", head, ("check", "verdict", "reason"), tuple((name, words[ok], why) for name, ok, why in rows)
    )
    return markup.page(
        title,
        f'<h1>Voxplain sanity</h1><p class="prompt">{escape(title)}</p><div class="caution"><strong>'
        f"{escape(WARNING)}</strong></div>{as_html(table)}<h2>How it was made</h2>"
        f"{_again(command)}{markup.definitions(markup.flat(facts))}",
    )


def _again(command: str) -> str:
    return f"<p>Made again by</p><pre>{escape(command)}</pre>" if command else ""


def _section(title: str, sentences: Sequence[str], tables: Sequence[Table], figures: Mapping[str, bytes]) -> str:
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    drawn = "".join(
        f'<figure><img alt="{escape(name)}" style="max-width:100%" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(svg).decode()}"><figcaption>{escape(name)}</figcaption></figure>'
        for name, svg in figures.items()
    )
    return f"<h2>{escape(title)}</h2>{said}{drawn}{''.join(as_html(table) for table in tables)}"
