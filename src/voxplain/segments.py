"""Texts that a model reads more than once, and keys that are no text: joint attention, read part by part.

In joint attention an image asks itself as well as the text, in one softmax. What its own keys take is one row of the
maps, the piece "[image]", which has no characters. Where two encoders read the same text, their pieces are rows of one
prompt, named by their segment ("clip:left</w>", "t5:▁left"), and a word's map is the mean over its pieces of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from voxplain.maps import Attribution
from voxplain.tokens import TokenizedPrompt

IMAGE = "[image]"


def merged(segments: Mapping[str, TokenizedPrompt]) -> tuple[TokenizedPrompt, tuple[int, ...]]:
    """One prompt of the positions of all segments, which stand one after another in the context that a model reads.

    Its positions come in the order of the text: starts, pieces, ends, then padding; the second value says where in the
    context each of them stands. The first start and the first end are the prompt's own, others pieces without
    characters. What one segment cut off is only cut where no other has it.
    """
    text = next(iter(segments.values())).text
    starts, pieces, ends, rest, offset = [], [], [], [], 0
    for name, part in segments.items():
        for at, (number, piece, span) in enumerate(zip(part.ids, part.pieces, part.spans, strict=True)):
            place = (offset + at, number, f"{name}:{piece}", span)
            kind = starts if at == part.start else ends if at == part.end else rest if span is None else pieces
            kind.append(place)
        offset += len(part.ids)
    pieces.sort(key=lambda place: (place[3], place[0]))
    starts[1:] = [(*place[:3], (0, 0)) for place in starts[1:]]
    ends[1:] = [(*place[:3], (len(text), len(text))) for place in ends[1:]]
    places = [*starts, *pieces, *ends, *rest]
    order, ids, names, spans = zip(*places, strict=True)
    cuts = [part.cut for part in segments.values()]
    prompt = TokenizedPrompt(
        text=text,
        ids=ids,
        pieces=names,
        spans=spans,
        start=0 if starts else None,
        end=len(starts) + len(pieces) if ends else None,
        cut=None if None in cuts else max(cut for cut in cuts if cut is not None),
    )
    return prompt, order


def beside_image(prompt: TokenizedPrompt) -> TokenizedPrompt:
    """The prompt with one more position at its end, which stands for all keys of the image."""
    last = len(prompt.text)
    return replace(prompt, ids=(*prompt.ids, -1), pieces=(*prompt.pieces, IMAGE), spans=(*prompt.spans, (last, last)))


def text_mass(attribution: Attribution) -> Float[np.ndarray, "*grid"]:
    """The share of attention that goes to text, padding included, from 0 to 1; all of it outside of joint attention."""
    _attends(attribution)
    text = attribution.maps[_text(attribution)].sum(0) + attribution.padding
    return text / (attribution.maps.sum(0) + attribution.padding)


def over_text(attribution: Attribution) -> Attribution:
    """The same maps as shares of what goes to text: with the padding they sum to one at every cell, and no image row.

    The mean map over the mean text mass: a layer, head or step counts as much as it looks at text at all. Where
    attention goes to text only, that is the attribution itself. Refused for recipes that do not read attention.
    """
    _attends(attribution)
    rows, prompt = _text(attribution), attribution.prompt
    if len(rows) == len(attribution.maps):
        return attribution
    mass = np.maximum(attribution.maps[rows].sum(0) + attribution.padding, np.finfo(np.float32).tiny)
    words = replace(prompt, ids=prompt.ids[:-1], pieces=prompt.pieces[:-1], spans=prompt.spans[:-1])
    return replace(attribution, maps=attribution.maps[rows] / mass, padding=attribution.padding / mass, prompt=words)


def segment(attribution: Attribution, name: str) -> Attribution:
    """The maps of one segment's pieces ("clip", "t5"); those of the others go to the padding, the image row stays.

    Raises ValueError, with the names that there are, for one that is none.
    """
    _attends(attribution)
    prompt = attribution.prompt
    known = list(dict.fromkeys(piece.partition(":")[0] for piece in prompt.pieces if piece != IMAGE))
    if not all(":" in piece for piece in prompt.pieces if piece != IMAGE):
        raise ValueError(f"there is no segment {name!r}: this model reads its text once")
    if name not in known:
        raise ValueError(f"there is no segment {name!r}; there are {', '.join(known)}")
    own = [piece == IMAGE or piece.startswith(f"{name}:") for piece in prompt.pieces]
    spans = tuple(span if mine else None for span, mine in zip(prompt.spans, own, strict=True))
    start, end = (at if at is not None and own[at] else None for at in (prompt.start, prompt.end))
    read = max((span[1] for span in spans if span and span[0] < span[1]), default=0)
    left = prompt.text[read:]
    cut = read + len(left) - len(left.lstrip()) if left.strip() else None
    kept = [row for row, at in enumerate(prompt.kept) if own[at]]
    others = sorted(set(range(len(prompt.kept))) - set(kept))
    return replace(
        attribution,
        maps=attribution.maps[kept],
        padding=attribution.padding + attribution.maps[others].sum(0),
        prompt=replace(prompt, spans=spans, start=start, end=end, cut=cut),
    )


def _text(attribution: Attribution) -> Sequence[int]:
    """The rows that are no image."""
    prompt = attribution.prompt
    return [row for row, at in enumerate(prompt.kept) if prompt.pieces[at] != IMAGE]


def _attends(attribution: Attribution) -> None:
    if not attribution.recipe.needs_attention:
        raise ValueError(f"recipe {attribution.recipe.name!r} does not read attention, so no share of it goes to text")
