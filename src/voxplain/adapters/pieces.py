"""What a tokenizer makes of a text that a pipeline rewrites: lower case, an instruction in front, a selection."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from voxplain.tokens import TokenizedPrompt


def read_text(
    tokenizer: Any, prompt: str, room: int, *, lower: bool = False, before: str = "", chosen: Sequence[int] = ()
) -> TokenizedPrompt:
    """The prompt cut or padded to `room` positions, with the characters that each piece came from.

    `lower` reads it in lower case and without white space around it, `before` behind another text, whose pieces have no
    characters of the prompt. `chosen` are the positions that the pipeline keeps, by default all. Raises
    NotImplementedError for a tokenizer that does not say where its pieces came from.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise NotImplementedError(
            f"{type(tokenizer).__name__} does not say which characters a piece came from; load the pipeline with the "
            "fast tokenizer of its class"
        )
    text, origin = prompt, list(range(len(prompt)))
    if lower:
        origin = [at for at, char in enumerate(prompt) for _ in char.lower()]
        left = len(prompt.lower()) - len(prompt.lower().lstrip())
        text = prompt.lower().strip()
        origin = origin[left : left + len(text)]

    def original(first: int, last: int) -> tuple[int, int] | None:
        """The characters of the prompt for those of the whole text, without white space; None if it has none of it."""
        first, last = max(first - len(before), 0), last - len(before)
        if before and last <= 0:
            return None
        while first < last and text[first].isspace():
            first += 1
        start = origin[first] if first < len(origin) else len(prompt)
        return (start, origin[last - 1] + 1) if first < last else (start, start)

    options = {"padding": "max_length", "max_length": room, "truncation": True, "padding_side": "right"}
    read = tokenizer(before + text, return_offsets_mapping=True, **options)
    real, marks = read["attention_mask"], read.encodings[0].special_tokens_mask
    words = [bool(here) and not mark for here, mark in zip(real, marks, strict=True)]
    chosen = chosen or range(len(words))
    ids = [read["input_ids"][at] for at in chosen]
    special = [row for row, at in enumerate(chosen) if real[at] and marks[at]]
    start = next((row for row in special if ids[row] == tokenizer.bos_token_id), None)
    whole = tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    lost = whole["offset_mapping"][sum(words) :]
    cut = original(*lost[0]) if lost else None
    return TokenizedPrompt(
        text=prompt,
        ids=tuple(ids),
        pieces=tuple(tokenizer.convert_ids_to_tokens(ids)),
        spans=tuple(original(*read["offset_mapping"][at]) if words[at] else None for at in chosen),
        start=start,
        end=next((row for row in special if row != start), None),
        cut=cut[0] if cut else None,
    )


def read_words(prompt: str, number: Callable[[str], int], room: int, *, padding: int = 0) -> TokenizedPrompt:
    """A piece for each word, without start and end, cut or padded to `room` positions.

    `number` gives the id of a word in lower case, `padding` is the id of what fills up. A word is a run of letters,
    digits and underscores.
    """
    found = list(re.finditer(r"\w+", prompt))
    words, lost, free = found[:room], found[room:], max(0, room - len(found))
    return TokenizedPrompt(
        text=prompt,
        ids=(*(number(word.group().lower()) for word in words), *(padding,) * free),
        pieces=(*(word.group() for word in words), *("[PAD]",) * free),
        spans=(*(word.span() for word in words), *(None,) * free),
        start=None,
        cut=lost[0].start() if lost else None,
    )
