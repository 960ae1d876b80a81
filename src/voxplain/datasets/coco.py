"""COCO captions with instances (Lin et al., ECCV 2014): where the class that a caption names is in the image.

Built from the public files `annotations/captions_SPLIT.json` and `annotations/instances_SPLIT.json` and the images in
`SPLIT/`.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxplain.datasets.base import Dataset, Outlines, Polygon, Record, Runs, counted, whole_words
from voxplain.datasets.shapes import runs_of
from voxplain.datasets.tables import Fields, distinct, entries, on_disk, read_document, some_on_disk

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
FIELDS: Mapping[str, Fields] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "categories": {"id": int, "name": str},
    "captions": {"id": int, "image_id": int, "caption": str},
    "instances": {"id": int, "image_id": int, "category_id": int, "segmentation": (list, dict)},
}
"""What is read of the lists in an annotation file; the list `annotations` by the kind of the file."""


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
    unknown class, for entries that point to none, and for an instance whose outline is none or of another size.
    """
    base = Path(root)
    captions = annotations(base, "captions", split, ("images", "annotations"))
    instances = annotations(base, "instances", split, ("annotations", "categories"))
    names = {entry["id"]: entry["name"] for entry in instances["categories"].values()}
    wanted = chosen_classes(names.values(), classes)
    sizes = {entry["id"]: entry for entry in captions["images"].values()}
    outlines = _outlines(instances["annotations"], names, sizes)
    folders = [base / split, base / "images" / split, base / "images", base]
    paths = {number: on_disk(folders, entry["file_name"]) for number, entry in sizes.items()}
    missing = list(paths.values()).count(None)
    some_on_disk(len(paths) - missing, missing, folders, "000000000139.jpg")
    pattern = pattern_of(names.values())
    records, left_out = [], Counter()
    for place, entry in in_order(captions["annotations"]):
        number, caption = entry["image_id"], " ".join(entry["caption"].split())
        if number not in sizes:
            raise ValueError(f"{place} captions image {number}, which is not among the images")
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


def annotations(base: Path, kind: str, split: str, lists: Collection[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Lists of the document `KIND_SPLIT.json`, in `annotations/` or in the folder itself: place -> entry, checked."""
    path = on_disk([base / "annotations", base], f"{kind}_{split}.json")
    if path is None:
        raise FileNotFoundError(f"{base} holds no annotations/{kind}_{split}.json; unzip COCO's annotations there")
    document = read_document(path, tuple(lists))
    fields = {**FIELDS, "annotations": FIELDS[kind]}
    return {name: dict(distinct(entries(path, name, document[name], fields[name]), "id")) for name in lists}


def in_order(captions: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The captions by their ids."""
    return sorted(captions.items(), key=lambda item: item[1]["id"])


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
    instances: Mapping[str, Mapping[str, Any]], names: Mapping[int, str], sizes: Mapping[int, Mapping[str, Any]]
) -> dict[tuple[int, str], Outlines]:
    """(image, class) -> everything of that class in the image, crowds included."""
    parts: dict[tuple[int, str], list[Polygon | Runs]] = {}
    for place, entry in instances.items():
        number, kind = entry["image_id"], entry["category_id"]
        if number not in sizes or kind not in names:
            raise ValueError(
                f"{place}: instance {entry['id']} points to image {number}, category {kind}; one is unknown"
            )
        shape = (sizes[number]["height"], sizes[number]["width"])
        try:
            parts.setdefault((number, names[kind]), []).extend(_shapes(entry["segmentation"], shape))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{place}: the outline of instance {entry['id']} cannot be read: {error}") from error
    return {key: Outlines(tuple(each)) for key, each in parts.items() if each}


def _shapes(segments: Any, shape: tuple[int, int]) -> list[Polygon | Runs]:
    """The polygons of an instance, or its run lengths, which say of which size their image is."""
    if isinstance(segments, list):
        return [Polygon(tuple(map(float, points))) for points in segments]
    if segments.get("size") != list(shape):
        raise ValueError(f"run lengths for an image of {segments.get('size')}, but this one has shape {shape}")
    counts = segments["counts"]
    return [runs_of(counts, shape) if isinstance(counts, str) else Runs(tuple(map(int, counts)), shape)]
