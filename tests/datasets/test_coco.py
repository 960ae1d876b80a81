"""COCO on a synthetic copy: classes named in captions, their instances as the truth, and prompts with nouns swapped."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from invented import picture
from synthetic import tokenized

from voxplain.datasets.base import MaskFile
from voxplain.datasets.coco import Mention, build_coco, mentions, pattern_of, plurals
from voxplain.datasets.prompts import build_coco_gen, build_unreal_gen
from voxplain.datasets.reading import read

NAMES = ["person", "dog", "hot dog", "bus", "knife", "sheep", "wine glass", "apple", "tv", "umbrella"]
CAPTIONS = [
    (1, "A dog next to two people."),
    (1, "The dog eats a hot dog"),
    (2, "Several buses and an umbrella on a street"),
    (2, "An empty street"),
    (3, "Sheep, with a knife."),
    (1, "a dogma about a dog-house"),
]
SQUARE = [2.0, 1.0, 5.0, 1.0, 5.0, 4.0, 2.0, 4.0]  # columns 2 to 4, rows 1 to 3


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 10, "height": 8} for i in (1, 2, 3)]
    for image in images[:2]:
        picture(root / "val2017" / image["file_name"], 10, 8)
    captions = [{"id": 100 + i, "image_id": at, "caption": text} for i, (at, text) in enumerate(CAPTIONS)]

    def instance(number, image, name, segmentation):
        segment = {"segmentation": segmentation, "iscrowd": int(isinstance(segmentation, dict))}
        return {"id": number, "image_id": image, "category_id": NAMES.index(name) + 1, **segment}

    instances = [
        instance(1, 1, "dog", [SQUARE]),
        instance(2, 1, "dog", [[6, 6, 8, 6, 8, 8, 6, 8]]),
        instance(3, 1, "person", {"counts": [8, 8, 64], "size": [8, 10]}),  # a crowd: the second column
        instance(4, 2, "bus", [SQUARE]),
        instance(5, 3, "knife", [SQUARE]),
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
    for kind, entries in (("captions", captions), ("instances", instances)):
        document = {"images": images, "annotations": entries, "categories": categories}
        (root / f"annotations/{kind}_val2017.json").write_text(json.dumps(document))
    return root


def test_a_row_is_a_caption_and_a_class_that_it_names(copy):
    found = build_coco(copy)
    assert [(record.prompt[:7], record.label, record.words) for record in found] == [
        ("A dog n", "dog", ("dog",)),
        ("A dog n", "person", ("people",)),
        ("The dog", "dog", ("dog#1",)),  # the second dog is hot
        ("Several", "bus", ("buses",)),
    ]
    assert found.left_out == {
        "the caption names no class": 2,
        "the class has no instance in the image": 2,  # hot dog, umbrella
        "the image is not on the disk": 2,  # sheep, knife
    }
    assert all(tokenized(record.prompt).find(word) for record in found for word in record.words)
    assert [record.patient for record in found] == ["1", "1", "1", "2"]


def test_the_truth_is_the_union_of_the_instances(copy):
    dog, person, *_ = build_coco(copy)
    mask = np.zeros((8, 10), bool)
    mask[1:4, 2:5] = mask[6:8, 6:8] = True
    np.testing.assert_array_equal(read(dog).truth.values, mask)
    assert np.argwhere(read(person).truth.values)[:, 1].tolist() == [1] * 8
    assert not isinstance(dog.truth, MaskFile) and read(dog).sample.image.shape == (1, 8, 10)


def test_classes_can_be_chosen_and_unknown_ones_are_refused(copy):
    assert {record.label for record in build_coco(copy, classes=["bus"])} == {"bus"}
    with pytest.raises(ValueError, match="class nodule: COCO has apple"):
        build_coco(copy, classes=["nodule"])
    with pytest.raises(FileNotFoundError, match="annotations/captions_train2017.json"):
        build_coco(copy, "train2017")


@pytest.mark.parametrize(
    ("kind", "name", "changes", "complaint"),
    [
        ("captions", "annotations", {"image_id": 9}, "captions_val2017.json, annotations 1 captions image 9"),
        ("captions", "annotations", {"caption": None}, "annotations 1 has no caption that is str"),
        ("captions", "images", {"width": None}, "captions_val2017.json, images 1 has no width that is int"),
        ("captions", "images", {"id": 2}, "images 2 has the id of captions_val2017.json, images 1"),
        ("instances", "annotations", {"image_id": 9}, "instance 1 points to image 9, category 2; one is unknown"),
        ("instances", "annotations", {"category_id": 99}, "instance 1 points to image 1, category 99"),
        ("instances", "annotations", {"segmentation": [[1, 2, 3, 4]]}, "outline of instance 1 .*three or more points"),
        ("instances", "annotations", {"segmentation": [3]}, "outline of instance 1 cannot be read"),
        ("instances", "annotations", {"segmentation": {"size": [8, 10], "counts": "~"}}, "instance 1 .*no part of"),
        ("instances", "annotations", {"segmentation": {"size": [8, 10], "counts": [8]}}, "instance 1 .*add up to 8"),
        ("instances", "annotations", {"segmentation": {"size": [8, 10]}}, "outline of instance 1 cannot be read"),
        (
            "instances",
            "annotations",
            {"segmentation": {"size": [10, 8], "counts": [80]}},
            r"instance 1 .*an image of \[10, 8\], but this one has shape \(8, 10\)",
        ),
    ],
)
def test_a_malformed_file_is_refused_with_its_entry(copy, tmp_path, kind, name, changes, complaint):
    place = shutil.copytree(copy, tmp_path / "copy")
    path = place / f"annotations/{kind}_val2017.json"
    document = json.loads(path.read_text())
    document[name][0] |= changes
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=complaint):
        build_coco(place)


@pytest.mark.parametrize(("kind", "missing"), [("captions", "images"), ("instances", "categories")])
def test_a_file_without_its_lists_is_named(copy, tmp_path, kind, missing):
    place = shutil.copytree(copy, tmp_path / "copy")
    path = place / f"annotations/{kind}_val2017.json"
    path.write_text(json.dumps({"annotations": []}))
    with pytest.raises(ValueError, match=f"{kind}_val2017.json has no {missing}; expected"):
        build_coco(place)
    path.write_text("[")
    for build in (build_coco, build_unreal_gen):
        with pytest.raises(ValueError, match=f"{kind}_val2017.json is no JSON"):
            build(place, "val2017")


@pytest.mark.parametrize(
    ("name", "many"),
    [
        ("dog", ("dogs",)),
        ("wine glass", ("wine glasses",)),
        ("bus", ("buses",)),
        ("toothbrush", ("toothbrushes",)),
        ("couch", ("couches",)),
        ("person", ("people", "persons")),
        ("sheep", ()),
        ("baseball bat", ("baseball bats",)),
    ],
)
def test_plurals(name, many):
    assert plurals(name) == many


def test_only_whole_words_name_a_class():
    found = mentions("Dogs, a hot dog and dogma; the dog's tail, a sheepdog", pattern_of(NAMES))
    assert found == [Mention(0, 4, "dog", True), Mention(8, 15, "hot dog", False)]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Sixty captions, some with two nouns, of one and of many."""
    root = tmp_path_factory.mktemp("prompts")
    rng = np.random.default_rng(0)
    texts = []
    for number in range(60):
        one, two = rng.choice([name for name in NAMES if plurals(name)], 2, replace=False)
        article = "An" if one[0] in "au" else "A"
        tail = f"near some {plurals(two)[0]}" if number % 3 else f"and a {two}"
        texts.append(f"{article} {one} {tail} on day {number}")
    texts += ["Nothing here", texts[0]]
    captions = [{"id": i, "image_id": i, "caption": text} for i, text in enumerate(texts)]
    for kind, entries in (("captions", captions), ("instances", [])):
        document = {
            "images": [],
            "annotations": entries,
            "categories": [{"id": i, "name": n} for i, n in enumerate(NAMES)],
        }
        (root / f"{kind}_val2014.json").write_text(json.dumps(document))
    return root


def test_the_same_seed_draws_the_same_captions_and_says_what_it_left(many):
    first, again, other = (build_coco_gen(many, count=20, seed=seed) for seed in (0, 0, 1))
    assert first.records == again.records != other.records
    assert first.left_out == {
        "the caption names no class": 1,
        "the caption occurs twice": 1,
        "the caption was not drawn": 40,
    }
    assert len({record.patient for record in first}) == 20 and all(record.image is None for record in first)
    with pytest.raises(ValueError, match="60 captions of val2014 name a class; give 1 to 60"):
        build_coco_gen(many, count=61)


@pytest.mark.parametrize("seed", range(5))
def test_nouns_are_swapped_and_nothing_else(many, seed):
    plain, unreal = build_coco_gen(many, count=40, seed=seed), build_unreal_gen(many, count=40, seed=seed)
    assert Counter(r.label for r in plain) == Counter(r.label for r in unreal)  # a permutation
    groups = [{}, {}]
    for group, dataset in zip(groups, (plain, unreal), strict=True):
        for record in dataset:
            group.setdefault(record.patient, []).append(record)
    for number, before in groups[0].items():
        after = groups[1][number]
        assert not {r.label for r in before} & {r.label for r in after}
        assert len(after) == len(before) == 2  # none twice
        assert after[0].facts["caption"] == before[0].prompt
        for record in after:
            assert all(tokenized(record.prompt).find(word) for word in record.words)
        day = before[0].prompt.split(" on day ")[1]
        assert after[0].prompt.endswith(f" on day {day}")
        words = after[0].prompt.split()
        for article, noun in zip(words, words[1:], strict=False):
            if article.lower() in ("a", "an"):
                assert (article.lower() == "an") == (noun[0] in "aeiou")
    assert build_unreal_gen(many, count=40, seed=seed).records == unreal.records


def test_too_few_captions_cannot_be_swapped(many):
    with pytest.raises(ValueError, match="cannot be swapped"):
        build_unreal_gen(many, count=1)
