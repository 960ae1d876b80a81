"""What an impression says is true of its case, and its spans, masks, regions and tags say the same."""

import re
from dataclasses import replace

import numpy as np
import pytest

from voxplain.datasets.phantom import lexicon
from voxplain.datasets.phantom.cases import Case
from voxplain.datasets.phantom.findings import KINDS, LOBAR, LOBES, Finding, Plan
from voxplain.datasets.phantom.impressions import (
    Impression,
    all_words,
    compose,
    negated_twin,
    request,
    swap_side,
    vocabulary_texts,
)
from voxplain.geometry import regular

SHAPE = (4, 4, 10)
EXAMPLE = "Large left pleural effusion. Severe consolidation in the right upper lobe."
WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*|[.,]")


def box(first: int, last: int, z: int | slice = slice(None)) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[z, :, first:last] = True
    return mask


ORGANS = {
    "body": box(0, 10), "lungs": box(0, 3) | box(6, 9), "right lung": box(0, 3), "left lung": box(6, 9),
    "right upper lobe": box(0, 3, 3), "right middle lobe": box(0, 3, 2), "right lower lobe": box(0, 3, slice(0, 2)),
    "left upper lobe": box(6, 9, slice(2, 4)), "left lower lobe": box(6, 9, slice(0, 2)),
    "heart": box(4, 5), "aorta": box(5, 6), "trachea": box(3, 4), "liver": box(0, 1), "spine": box(5, 6),
    "ribs": box(9, 10), "vessels": box(2, 3), "mediastinum": box(3, 6),
}  # fmt: skip


def case_of(*findings: Finding) -> Case:
    image = np.zeros((1, *SHAPE), np.float32)
    return Case(0, "train", image, regular(SHAPE, (5.0, 5.0, 5.0)), findings, ORGANS, None)


def finding(kind: str, side=None, lobe=None, severity="moderate", count=1, size_mm=None, place=None) -> Finding:
    side = lobe.split()[0] if lobe else side
    inside = ORGANS[lobe or {"left": "left lung", "right": "right lung", "bilateral": "lungs"}.get(side, "heart")]
    mask = inside.copy()
    if place is not None:  # one row, so that two findings of one region differ
        mask[:] = False
        mask[:, place] = inside[:, place]
    return Finding(kind, side, lobe, severity, count, mask, size_mm)


def drawn(seed: int) -> Case:
    """A random case of 0 to 3 findings, kinds may repeat."""
    rng = np.random.default_rng(seed)
    findings = []
    for place in range(int(rng.integers(0, 4))):
        kind = str(rng.choice(KINDS))
        lobe = str(rng.choice(LOBES)) if kind in LOBAR and rng.random() < 0.8 else None
        side = (
            None
            if kind in ("cardiomegaly", "pericardial_effusion")
            else str(rng.choice(["left", "right", "bilateral"]))
        )
        severity = str(rng.choice(["small", "moderate", "large", "mild", "severe"]))
        size = float(rng.uniform(12, 45)) if kind == "nodule" else None
        count = int(rng.choice([1, 2])) if kind == "nodule" else 1
        findings.append(finding(kind, side, lobe, severity, count, size, place))
    return case_of(*findings)


def composed(count: int = 300) -> list[tuple[Case, Impression]]:
    cases = [drawn(seed) for seed in range(count)]
    return [(case, compose(case, np.random.default_rng(seed))) for seed, case in enumerate(cases)]


ALL = composed()


def words(text: str) -> list[str]:
    return [word.casefold() for word in WORD.findall(text) if word not in ".,"]


def names(kind: str) -> set[str]:
    nouns = lexicon.NOUNS[kind] + (lexicon.NOUNS["mass"] if kind == "nodule" else ())
    plain = {name.casefold() for noun in nouns for name in (noun.one, noun.many) if name}
    return plain | ({"enlarged"} if kind == "cardiomegaly" else set())


def test_a_span_covers_a_name_of_its_finding_or_organ():
    seen = set()
    for _, text in ALL:
        for mention in text.mentions:
            said = text.text[slice(*mention.span)].casefold()
            if mention.kind in KINDS:
                assert said in names(mention.kind)
            else:
                assert lexicon.ORGAN_WORDS[said] == mention.kind
            assert mention.phrase[0] <= mention.span[0] < mention.span[1] <= mention.phrase[1]
            seen.add(mention.kind)
    assert set(KINDS) <= seen


def test_every_finding_of_a_case_is_affirmed():
    for case, text in ALL:
        for one in case.findings:
            spoken = [m.mask for m in text.findings if m.kind == one.kind and not m.negated]
            assert any(not (one.mask & ~mask).any() for mask in spoken if mask is not None)


def test_a_negated_mention_is_absent_from_the_case_and_tied_to_no_mask():
    negated = [(case, mention) for case, text in ALL for mention in text.findings if mention.negated]
    assert len(negated) > 100
    for case, mention in negated:
        assert mention.mask is None and mention.finding is None
        assert mention.kind not in {one.kind for one in case.findings}


def test_negation_words_come_before_every_negated_mention_and_no_affirmed_one():
    for _, text in ALL:
        for mention in text.findings:
            sentence = text.text[: mention.span[0]].rpartition(". ")[2].casefold()
            assert mention.negated == bool(re.search(r"\b(no|not|without)\b", sentence)), text.text


def test_the_mask_of_an_organ_word_is_that_organ():
    organs = [m for _, text in ALL for m in text.mentions if m.kind not in KINDS]
    assert {"heart", "aorta", "liver", "lungs", "left lung", "right upper lobe"} <= {m.kind for m in organs}
    for mention in organs:
        assert mention.mask is ORGANS[mention.kind] and mention.region == "body" and mention.finding is None


def test_an_organ_that_the_case_lacks_is_tied_to_no_mask():
    case = replace(case_of(), organs={"lungs": ORGANS["lungs"]})
    kinds = {}
    for seed in range(60):
        for mention in compose(case, np.random.default_rng(seed)).mentions:
            kinds[mention.kind] = mention.mask
    assert kinds["heart"] is None and kinds["lungs"] is ORGANS["lungs"]


@pytest.mark.parametrize(
    ("side", "lobe"), [("left", "left lower lobe"), ("right", "right middle lobe"), ("left", None)]
)
def test_the_region_is_the_smallest_place_that_the_text_names(side, lobe):
    case = case_of(finding("consolidation", side, lobe))
    regions = []
    for seed in range(300):
        text = compose(case, np.random.default_rng(seed))
        found = [mention for mention in text.findings if not mention.negated]
        assert len({mention.region for mention in found}) == 1
        named = text.text[slice(*found[0].phrase)].casefold()
        expected = lobe if lobe and lobe in named else f"{side} lung" if side in named else "lungs"
        assert found[0].region == expected, text.text
        other = swap_side(side)
        assert other not in named
        if expected == "lungs":  # nothing else gives the place away
            assert not re.search(rf"\b({side}|{other})\b", text.text.casefold()), text.text
        regions.append(expected)
    assert 0.3 < regions.count("lungs") / 300 < 0.5
    assert regions.count(f"{side} lung") / 300 > 0.2


def test_a_finding_without_a_lung_lies_in_the_body():
    text = compose(case_of(finding("cardiomegaly")), np.random.default_rng(0))
    assert [m.region for m in text.findings if not m.negated] == ["body"]


def test_a_mention_without_a_place_speaks_of_all_findings_of_its_kind():
    right, left = finding("consolidation", lobe="right upper lobe"), finding("consolidation", lobe="left lower lobe")
    together = alone = 0
    for seed in range(200):
        for mention in compose(case_of(right, left), np.random.default_rng(seed)).findings:
            if mention.negated:
                continue
            expected = {
                None: right.mask | left.mask, "right": right.mask, "left": left.mask,
            }[mention.side]  # fmt: skip
            np.testing.assert_array_equal(mention.mask, expected)
            together += mention.side is None
            alone += mention.side is not None
    assert together > 20 and alone > 20


def test_a_named_side_cuts_a_finding_of_both_sides():
    both, left = finding("effusion", "bilateral", place=0), finding("effusion", "left", place=1)
    sides = set()
    for seed in range(100):
        for mention in compose(case_of(left, both), np.random.default_rng(seed)).findings:
            if mention.side == "left":
                assert not (mention.mask & ORGANS["right lung"]).any()
                assert (mention.mask & both.mask).any()
            sides.add(mention.side)
    assert {"left", "bilateral"} <= sides


def test_a_mass_is_not_spoken_of_as_a_nodule():
    mass = finding("nodule", lobe="left upper lobe", severity="large", size_mm=35.0)
    nodule = finding("nodule", lobe="right upper lobe", severity="small", size_mm=18.0)
    for seed in range(100):
        text = compose(case_of(mass, nodule), np.random.default_rng(seed))
        for mention in text.findings:
            if mention.kind == "nodule":
                is_mass = "mass" in text.text[slice(*mention.span)].casefold()
                assert mention.mask is (mass if is_mass else nodule).mask


def test_two_nodules_are_counted():
    case = case_of(finding("nodule", lobe="left upper lobe", severity="small", count=2))
    for seed in range(50):
        assert re.search(r"\b(two|2)\b.* nodules", compose(case, np.random.default_rng(seed)).text, re.I)


def test_organ_sentences_are_true():
    for case, text in ALL:
        kinds, lower = {one.kind for one in case.findings}, text.text.casefold()
        if "cardiomegaly" in kinds:
            assert not re.search(r"(heart|silhouette) is (normal|unremarkable)|heart size|size is normal", lower)
        if "lungs are clear" in lower:
            assert not kinds & set(lexicon.LUNG)
        for side in re.findall(r"(left|right) lung is clear", lower):
            assert not any((one.mask & ORGANS[f"{side} lung"]).any() for one in case.findings if one.side)


def test_some_texts_call_one_lung_clear():
    assert any(re.search(r"(left|right) lung is clear", text.text, re.I) for _, text in ALL)


def test_the_name_in_a_second_sentence_has_the_mask_of_the_first():
    case = case_of(finding("effusion", "left", severity="large"))
    repeated = 0
    for seed in range(100):
        found = [m for m in compose(case, np.random.default_rng(seed)).findings if not m.negated]
        assert {id(m.mask) for m in found} == {id(case.findings[0].mask)} and len({m.region for m in found}) == 1
        repeated += len(found) == 2
    assert repeated > 2


def test_tags_cover_all_words_and_signs_in_order():
    for _, text in ALL:
        assert [(m.start(), m.end()) for m in WORD.finditer(text.text)] == [tag[:2] for tag in text.tags]
        assert {tag[2] for tag in text.tags} <= set(lexicon.PARTS)
    heads = {text.text[tag[0] : tag[1]]: tag[2] for _, text in ALL for tag in text.tags}
    assert heads["consolidation"] == "NOUN" and heads["moderate"] == "ADJ" and heads["without"] == "ADP"


def test_left_is_a_noun_after_on_the_and_an_adjective_elsewhere():
    parts = set()
    for seed in range(60):
        text = request([Plan("effusion", "left")], np.random.default_rng(seed))
        for start, end, part in text.tags:
            if text.text[start:end].casefold() == "left":
                parts.add((text.text[:start].endswith("on the "), part))
    assert parts == {(True, "NOUN"), (False, "ADJ")}


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    case = drawn(2)
    texts = [compose(case, np.random.default_rng(seed)).text for seed in (5, 5, 6, 7, 8)]
    assert texts[0] == texts[1] and len(set(texts)) > 2


def test_every_word_is_declared_and_every_declared_word_is_used():
    declared = set(all_words())
    assert all_words() == sorted(declared)
    texts = list(vocabulary_texts(1500, seed=1))
    assert set(words(texts[0])) == declared
    used = {word for text in texts[1:] for word in words(text)}
    used |= {word for case, _ in ALL for word in words(compose(case, np.random.default_rng(0), "label").text)}
    assert used <= declared
    assert {word for word in declared - used if not word.isdecimal()} == set()


def test_a_composed_text_uses_declared_words_and_fits_the_context():
    declared = set(all_words())
    for _, text in ALL:
        assert set(words(text.text)) <= declared
        assert len(words(text.text)) <= 60
        assert len(re.findall(r"\w+|[^\w\s]", text.text)) <= 94


def test_a_word_outside_the_lexicon_is_refused():
    with pytest.raises(ValueError, match="'pneumonia' is not a word"):
        lexicon.tagged("no pneumonia .")


def test_sentences_begin_with_a_capital_and_end_with_a_full_stop():
    for _, text in ALL:
        assert re.fullmatch(r"(?:[A-Z0-9][^.]*\.(?: |$))+", text.text), text.text
        assert not re.search(r"(heart|silhouette) is (mild|moderate|severe|minimal|extensive)\b", text.text)
        assert "  " not in text.text and not re.search(r"\ba [aeiou]|\ban [^aeiou18]", text.text)


def test_a_label_is_the_names_and_nothing_else():
    case = case_of(finding("effusion", "left"), finding("ground_glass", lobe="right upper lobe"))
    label = compose(case, np.random.default_rng(0), "label")
    assert label.text == "Pleural effusion, ground-glass opacity"
    assert [m.mask is f.mask for m, f in zip(label.mentions, case.findings, strict=True)] == [True, True]
    assert compose(case_of(), np.random.default_rng(0), "label").text == "No finding"


def test_a_template_has_one_fixed_sentence_for_each_finding():
    case = case_of(finding("effusion", "left"), finding("cardiomegaly"))
    texts = {compose(case, np.random.default_rng(seed), "template").text for seed in range(40)}
    assert texts == {"Left pleural effusion. Cardiomegaly.", "Pleural effusion. Cardiomegaly."}


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="label, template, composed"):
        compose(case_of(), np.random.default_rng(0), "prose")


def test_a_normal_case_affirms_no_finding():
    for seed in range(60):
        text = compose(case_of(), np.random.default_rng(seed))
        assert text.text and all(mention.negated for mention in text.findings)


def test_the_example_of_the_project_can_be_said():
    assert set(words(EXAMPLE)) <= set(all_words())
    plans = [Plan("effusion", "left", None, "large"), Plan("consolidation", "right", "right upper lobe", "severe")]
    texts = (request(plans, np.random.default_rng(seed), plain=True) for seed in range(3000))
    prompt = next(text for text in texts if text.text == EXAMPLE)
    first, second = prompt.findings
    assert (first.kind, first.side, first.region, first.finding) == ("effusion", "left", "left lung", 0)
    assert EXAMPLE[slice(*second.phrase)] == "Severe consolidation in the right upper lobe"
    assert (second.lobe, second.region) == ("right upper lobe", "right upper lobe")


def test_a_request_names_all_that_it_asks_for():
    plans = [Plan("nodule", "left", "left upper lobe", "small", 2), Plan("pneumothorax", "right"), Plan("emphysema")]
    for seed in range(100):
        text = request(plans, np.random.default_rng(seed), absent=["effusion"])
        asked = {m.finding: m for m in text.findings if not m.negated}
        assert (asked[0].lobe, asked[1].side, asked[2].side) == ("left upper lobe", "right", None)
        assert "left upper lobe" in text.text.casefold() and all(m.mask is None for m in text.mentions)
        assert [m.kind for m in text.findings if m.negated] == ["effusion"]


def test_a_mirrored_request_gives_the_mirrored_text():
    for seed in range(100):
        plans = [Plan("consolidation", None, "left lower lobe", "mild"), Plan("effusion", "right", None, "large")]
        mirror = [replace(plan, side=swap_side(plan.side or "") or None, lobe=plan.lobe and swap_side(plan.lobe))
                  for plan in plans]  # fmt: skip
        text, twin = (request(each, np.random.default_rng(seed)).text for each in (plans, mirror))
        assert twin == swap_side(text) != text


@pytest.mark.parametrize(
    ("plan", "absent", "message"),
    [
        (Plan("effusion"), ["effusion"], "both asked for and denied"),
        (Plan("pneumonia"), [], "kind 'pneumonia'"),
        (Plan("effusion", "port"), [], "side 'port'"),
        (Plan("nodule", None, "left middle lobe"), [], "lobe 'left middle lobe'"),
        (Plan("effusion", "left", None, "huge"), [], "severity 'huge'"),
        (Plan("nodule", count=7), [], "count 7"),
        (Plan("cardiomegaly", "left"), [], "has no side"),
        (Plan("nodule", "right", "left upper lobe"), [], "lies on the left"),
    ],
)
def test_an_impossible_request_is_refused(plan, absent, message):
    with pytest.raises(ValueError, match=message):
        request([plan], np.random.default_rng(0), absent=absent)


def test_nothing_asked_gives_a_normal_impression():
    text = request([], np.random.default_rng(0))
    assert text.findings == () and text.text


@pytest.mark.parametrize("kind", KINDS)
def test_negated_twins_share_the_name_of_the_finding(kind):
    for seed in range(20):
        yes, no = negated_twin(Plan(kind, severity="large"), np.random.default_rng(seed))
        (affirmed,), (denied,) = yes.findings, no.findings
        assert no.text.startswith("No ") and (affirmed.negated, denied.negated) == (False, True)
        assert yes.text[slice(*affirmed.span)].casefold() == no.text[slice(*denied.span)].casefold()


def test_swapping_sides_twice_is_the_identity():
    for _, text in ALL:
        if "middle lobe" in text.text.casefold():
            with pytest.raises(ValueError, match="no middle lobe"):
                swap_side(text.text)
        else:
            assert swap_side(swap_side(text.text)) == text.text
    assert swap_side("Left-sided effusion, RIGHT lung, left.") == "Right-sided effusion, LEFT lung, right."
    assert swap_side("leftover bright") == "leftover bright"
