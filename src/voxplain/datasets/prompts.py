"""COCO-Gen and Unreal-Gen (Tang et al., ACL 2023): captions to generate from, as written and with their nouns swapped.

Both come from the same captions, drawn by a seed, so they can be compared pair by pair. A noun is a class of COCO or
its plural. The truth is what a segmenter finds in the image that is generated; so these records have no image.
"""

import os
from collections import Counter
from pathlib import Path

import numpy as np

from voxplain.datasets.base import Dataset, Record, counted
from voxplain.datasets.coco import Mention, annotations, by_class, in_order, mentions, pattern_of, plurals, spelled

COUNT = 200  # word-image pairs that the paper scored in each set
TRIES = 1000


def build_coco_gen(root: str | os.PathLike, split: str = "val2014", *, count: int = COUNT, seed: int = 0) -> Dataset:
    """`count` captions that name a class, drawn by `seed`; one record for each class that a caption names."""
    drawn, left_out = _drawn(root, split, count, seed)
    return _dataset("coco-gen", [(caption, found, {}) for caption, found in drawn], left_out, split, seed)


def build_unreal_gen(root: str | os.PathLike, split: str = "val2014", *, count: int = COUNT, seed: int = 0) -> Dataset:
    """The captions of `build_coco_gen` with their nouns swapped among them: each set has the same nouns, equally often.

    One takes the place of one and many of many; no caption gets back a class that it named, nor one twice; "a" and "an"
    follow. Raises ValueError where so few captions cannot be swapped that way.
    """
    drawn, left_out = _drawn(root, split, count, seed)
    names = _swapped([found for _, found in drawn], np.random.default_rng([seed, 1]))
    swapped = []
    for (caption, found), new in zip(drawn, names, strict=True):
        text, places = _replaced(caption, found, new)
        swapped.append((text, places, {"caption": caption}))
    return _dataset("unreal-gen", swapped, left_out, split, seed)


def _drawn(
    root: str | os.PathLike, split: str, count: int, seed: int
) -> tuple[list[tuple[str, list[Mention]]], Counter[str]]:
    """Captions with their mentions, in the order in which the seed draws them."""
    base = Path(root)
    captions = annotations(base, "captions", split, ("annotations",))["annotations"]
    categories = annotations(base, "instances", split, ("categories",))["categories"]
    pattern = pattern_of(entry["name"] for entry in categories.values())
    texts = [" ".join(entry["caption"].split()) for _, entry in in_order(captions)]
    naming = [(text, found) for text in dict.fromkeys(texts) if (found := mentions(text, pattern))]
    if not 1 <= count <= len(naming):
        raise ValueError(f"count={count}: {len(naming)} captions of {split} name a class; give 1 to {len(naming)}")
    chosen = np.random.default_rng([seed, 0]).permutation(len(naming))[:count]
    left_out = Counter(
        {
            "the caption occurs twice": len(texts) - len(set(texts)),
            "the caption names no class": len(set(texts)) - len(naming),
            "the caption was not drawn": len(naming) - count,
        }
    )
    return [naming[i] for i in chosen], left_out


def _dataset(
    name: str, made: list[tuple[str, list[Mention], dict]], left_out: Counter[str], split: str, seed: int
) -> Dataset:
    records = [
        Record(
            id=f"{name}-{number:04d}-{label.replace(' ', '-')}",
            prompt=text,
            words=spelled(text, places),
            label=label,
            patient=f"{number:04d}",
            split=split,
            facts=facts,
        )
        for number, (text, found, facts) in enumerate(made)
        for label, places in by_class(found).items()
    ]
    return Dataset(name, tuple(records), counted(left_out), {"split": split, "count": len(made), "seed": seed})


def _swapped(found: list[list[Mention]], rng: np.random.Generator) -> list[list[str]]:
    """For each mention of each caption the class that takes its place: a permutation of one and of many."""
    slots = [(at, mention) for at, each in enumerate(found) for mention in each]
    had = [{mention.name for mention in each} for each in found]
    new = [mention.name for _, mention in slots]
    inside = [[i for i, (at, _) in enumerate(slots) if at == caption] for caption in range(len(found))]

    def wrong(i: int) -> bool:
        at = slots[i][0]
        return new[i] in had[at] or any(new[j] == new[i] for j in inside[at] if j != i)

    for many in (False, True):
        group = [i for i, (_, mention) in enumerate(slots) if mention.many == many]
        for i, name in zip(group, rng.permutation([new[i] for i in group]).tolist(), strict=True):
            new[i] = name
        for _ in range(TRIES):
            bad = [i for i in group if wrong(i)]
            if not bad:
                break
            for i in bad:
                j = int(rng.choice(group))
                before = wrong(i) + wrong(j)
                new[i], new[j] = new[j], new[i]
                if wrong(i) + wrong(j) > before:
                    new[i], new[j] = new[j], new[i]
    if any(wrong(i) for i in range(len(slots))):
        raise ValueError(f"the nouns of these {len(found)} captions cannot be swapped so that all change; draw more")
    return [[new[i] for i in each] for each in inside]


def _replaced(caption: str, found: list[Mention], names: list[str]) -> tuple[str, list[Mention]]:
    """The caption with other nouns, and where they stand in it."""
    text, places, done = "", [], 0
    for mention, name in zip(found, names, strict=True):
        before = caption[done : mention.start]
        noun = (plurals(name) or (name,))[0] if mention.many else name
        article = before.rstrip().rpartition(" ")[2]
        if article.lower() in ("a", "an"):
            fitting = "an" if noun[0] in "aeiou" else "a"
            before = before.rstrip()[: -len(article)] + (fitting.capitalize() if article[0] == "A" else fitting) + " "
        if caption[mention.start].isupper():
            noun = noun[0].upper() + noun[1:]
        text += before
        places.append(Mention(len(text), len(text) + len(noun), name, mention.many))
        text, done = text + noun, mention.end
    return text + caption[done:], places
