"""What a pipeline's own tokenizer makes of a prompt, with the characters that each piece came from."""

import re
from collections.abc import Iterable
from typing import Any

from voxplain.tokens import TokenizedPrompt

Origin = list[tuple[int, int]]  # for each character of a text, the characters of another that it stands for


def tokenized(pipe: Any, prompt: str) -> TokenizedPrompt:
    """The prompt as a diffusers pipeline reads it: padded and cut to the context of its first tokenizer.

    The words of a textual inversion of several vectors are that many pieces. Raises NotImplementedError for a
    tokenizer that does not say where its pieces came from, and for two that do not read the same pieces.
    """
    parts = (getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2"))
    read = [_read(pipe, tokenizer, prompt) for tokenizer in parts if tokenizer is not None]
    if any(_apart(read[0], other) for other in read[1:]):
        raise NotImplementedError(
            f"the two tokenizers take {prompt!r} apart differently, so keys are made of two words each; load textual "
            "inversions into both text encoders"
        )
    return read[0]


def _apart(one: TokenizedPrompt, other: TokenizedPrompt) -> bool:
    """Whether two readings have other words at a position; the padding of one may be a character of the other."""
    return one.end != other.end or any(a and b and a != b for a, b in zip(one.spans, other.spans, strict=True))


def _read(pipe: Any, tokenizer: Any, prompt: str) -> TokenizedPrompt:
    if not getattr(tokenizer, "is_fast", False):
        raise NotImplementedError(
            f"{type(tokenizer).__name__} does not say which characters a piece came from; load the pipeline with the "
            "fast tokenizer of its class"
        )
    text, origin = expanded(prompt, tokenizer.get_added_vocab())
    if hasattr(pipe, "maybe_convert_prompt") and text != pipe.maybe_convert_prompt(prompt, tokenizer):
        raise ValueError(f"the pipeline reads {prompt!r} as other textual inversions than are found in it")
    room = tokenizer.model_max_length
    read = tokenizer(text, padding="max_length", max_length=room, truncation=True, return_offsets_mapping=True)
    rows = zip(read["offset_mapping"], read["attention_mask"], read.encodings[0].special_tokens_mask, strict=True)
    spans = [None if special or not real else _from(origin, *span) for span, real, special in rows]
    special = [
        at for at, (real, span) in enumerate(zip(read["attention_mask"], spans, strict=True)) if real and not span
    ]
    pieces = [at for at, span in enumerate(spans) if span]
    start = next((at for at in special if not pieces or at < pieces[0]), None)
    end = next((at for at in special if at != start and (not pieces or at > pieces[-1])), None)
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    cut = _from(origin, *whole[len(pieces)])[0] if len(whole) > len(pieces) else None
    return TokenizedPrompt(
        text=prompt,
        ids=tuple(read["input_ids"]),
        pieces=tuple(tokenizer.convert_ids_to_tokens(read["input_ids"])),
        spans=tuple(spans),
        start=start,
        end=end,
        cut=cut,
    )


def expanded(text: str, added: Iterable[str]) -> tuple[str, Origin]:
    """The text with each token of several vectors written out, "<x>" as "<x> <x>_1"; and the characters behind each."""
    known = set(added)
    several = {token for token in known if f"{token}_1" in known}
    made, origin, place = "", [], 0
    for match in re.finditer("|".join(map(re.escape, sorted(several, key=len, reverse=True))) or r"(?!)", text):
        made += text[place : match.start()]
        origin += [(at, at + 1) for at in range(place, match.start())]
        written, number = match.group(), 1
        while f"{match.group()}_{number}" in known:
            written += f" {match.group()}_{number}"
            number += 1
        made += written
        origin += [match.span()] * len(written)
        place = match.end()
    return made + text[place:], origin + [(at, at + 1) for at in range(place, len(text))]


def _from(origin: Origin, first: int, last: int) -> tuple[int, int]:
    """The characters that a range of characters stands for."""
    if first == last:
        at = origin[first][0] if first < len(origin) else origin[-1][1] if origin else 0
        return at, at
    return origin[first][0], origin[last - 1][1]
