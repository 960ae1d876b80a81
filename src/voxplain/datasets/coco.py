"""COCO captions with instances (Lin et al., ECCV 2014): where the class that a caption names is in the image.

Built from the public files `annotations/captions_SPLIT.json` and `annotations/instances_SPLIT.json` and the images in
`SPLIT/`.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxplain.datasets.base import Dataset, Outlines, Polygon, Record, Runs, counted, whole_words
from voxplain.datasets.shapes import runs_of
from voxplain.datasets.tables import on_disk, some_on_disk

MANY = {
    "person": ("people", "persons"),
    "knife": ("knives",),
    "mouse": ("mice",),
    "sheep": (),
    "broccoli": (),
    "skis": (),
    "scissors": (),
}
"""The plurals that no rule gives; () where the name itself stands for several."""


@dataclass(frozen=True, slots=True)
class Mention:
    """A class named in a caption: which characters, which class, and whether as one or many."""

    start: int
    end: int
    name: str
    many: bool


def build_coco(root: str | os.PathLike, split: str = "val2017", *, classes: Collection[str] | None = None) -> Dataset:
    """One record for each caption and class that it names; the truth is the union of that class's instances.

    A class is named by its name or the plural, as whole words, the longest name first ("hot dog" names no dog).
    Captions of one image share its `patient`. Left out, and counted: captions that name no class (or none of
    `classes`), classes without an instance in the image, images that are not on the disk. Raises ValueError for an
    unknown class.
    """
    base = Path(root)
    captions, instances = annotations(base, "captions", split), annotations(base, "instances", split)
    names = {entry["id"]: entry["name"] for entry in instances["categories"]}
    wanted = chosen_classes(names.values(), classes)
    sizes = {entry["id"]: entry for entry in captions["images"]}
    outlines = _outlines(instances, names, sizes)
    folders = [base / split, base / "images" / split, base / "images", base]
    paths = {number: on_disk(folders, entry["file_name"]) for number, entry in sizes.items()}
    missing = list(paths.values()).count(None)
    some_on_disk(len(paths) - missing, missing, folders, "000000000139.jpg")
    pattern = pattern_of(names.values())
    records, left_out = [], Counter()
    for entry in sorted(captions["annotations"], key=lambda entry: entry["id"]):
        number, caption = entry["image_id"], " ".join(entry["caption"].split())
        found = by_class(mention for mention in mentions(caption, pattern) if mention.name in wanted)
        left_out["the caption names no class"] += not found
        for name, places in found.items():
            if paths[number] is None:
                left_out["the image is not on the disk"] += 1
            elif (number, name) not in outlines:
                left_out["the class has no instance in the image"] += 1
            else:
                records.append(
                    Record(
                        id=f"coco-{entry['id']}-{name.replace(' ', '-')}",
                        prompt=caption,
                        image=paths[number],
                        truth=outlines[number, name],
                        words=spelled(caption, places),
                        label=name,
                        patient=str(number),
                        split=split,
                        size=(sizes[number]["width"], sizes[number]["height"]),
                    )
                )
    about = {"split": split, "classes": sorted(wanted)}
    return Dataset("coco", tuple(records), counted(left_out), about)


def annotations(base: Path, kind: str, split: str) -> dict[str, Any]:
    """The document `KIND_SPLIT.json`, in `annotations/` or in the folder itself."""
    path = on_disk([base / "annotations", base], f"{kind}_{split}.json")
    if path is None:
        raise FileNotFoundError(f"{base} holds no annotations/{kind}_{split}.json; unzip COCO's annotations there")
    return json.loads(path.read_text(encoding="utf-8"))


def chosen_classes(names: Iterable[str], classes: Collection[str] | None) -> frozenset[str]:
    """The classes asked for; all of them for None."""
    known = frozenset(names)
    if unknown := sorted(set(classes or ()) - known):
        raise ValueError(f"class {', '.join(unknown)}: COCO has {', '.join(sorted(known))}")
    return known if classes is None else frozenset(classes)


def plurals(name: str) -> tuple[str, ...]:
    """The plural forms of a class's name."""
    head, _, last = name.rpartition(" ")
    if last in MANY:
        forms = MANY[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        forms = (f"{last}es",)
    else:
        forms = (f"{last}s",)
    return tuple(f"{head} {form}".strip() for form in forms)


def pattern_of(names: Iterable[str]) -> tuple[re.Pattern[str], Mapping[str, tuple[str, bool]]]:
    """What finds the classes in a caption: a pattern, and for each spelling its class and whether it means many."""
    spellings = {}
    for name in names:
        spellings[name] = (name, not plurals(name))
        spellings |= {form: (name, True) for form in plurals(name)}
    longest = sorted(spellings, key=lambda text: (-len(text), text))
    return re.compile(whole_words("|".join(map(re.escape, longest))), re.IGNORECASE), spellings


def mentions(caption: str, pattern: tuple[re.Pattern[str], Mapping[str, tuple[str, bool]]]) -> list[Mention]:
    """Where the caption names which class, in order."""
    finder, spellings = pattern
    return [Mention(*match.span(), *spellings[match[0].lower()]) for match in finder.finditer(caption)]


def by_class(found: Iterable[Mention]) -> dict[str, list[Mention]]:
    """The mentions of each class."""
    groups: dict[str, list[Mention]] = {}
    for mention in found:
        groups.setdefault(mention.name, []).append(mention)
    return groups


def spelled(caption: str, found: Iterable[Mention]) -> tuple[str, ...]:
    """The mentions as `TokenizedPrompt.find` takes them: as spelled, numbered where the text occurs several times."""
    words = []
    for mention in found:
        text = caption[mention.start : mention.end]
        every = re.finditer(whole_words(re.escape(text)), caption, re.IGNORECASE)
        starts = [match.start() for match in every]
        words.append(text if len(starts) == 1 else f"{text}#{starts.index(mention.start) + 1}")
    return tuple(words)


def _outlines(
    instances: Mapping[str, Any], names: Mapping[int, str], sizes: Mapping[int, Mapping[str, Any]]
) -> dict[tuple[int, str], Outlines]:
    """(image, class) -> everything of that class in the image, crowds included."""
    parts: dict[tuple[int, str], list[Polygon | Runs]] = {}
    for entry in instances["annotations"]:
        number = entry["image_id"]
        if number not in sizes:
            raise ValueError(f"instance {entry['id']} lies in image {number}, which the captions do not know")
        shape = (sizes[number]["height"], sizes[number]["width"])
        shapes = parts.setdefault((number, names[entry["category_id"]]), [])
        segments = entry["segmentation"]
        if isinstance(segments, list):
            shapes += [Polygon(tuple(map(float, points))) for points in segments]
        elif isinstance(segments["counts"], str):
            shapes.append(runs_of(segments["counts"], shape))
        else:
            shapes.append(Runs(tuple(segments["counts"]), shape))
    return {key: Outlines(tuple(each)) for key, each in parts.items() if each}
