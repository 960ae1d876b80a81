"""Token rules on maps whose rows are numbered, so that the mean says which rows were taken."""

from dataclasses import replace

import numpy as np
import pytest

from voxplain import recipes
from voxplain.adapters.toy import ToyAdapter
from voxplain.geometry import regular
from voxplain.maps import Attribution, UnmeasuredError
from voxplain.studies.rules import by_rule, spans
from voxplain.tokens import PhraseError

GRID = (8, 24)
TOY = ToyAdapter(GRID)
TEXT = "left pneumothorax, small effusion. No left effusions"  # rows: start, 1, 2 and 3, 4, 5, 6, 7, 8, end


def attribution(text=TEXT, recipe="mean", **changes):
    prompt, geometry = TOY.tokenize(text), regular(GRID, 1.0)
    maps = np.arange(len(prompt.kept), dtype=float)[:, None, None] * np.ones(GRID)
    made = Attribution(maps, np.full(GRID, 50.0), prompt, geometry, recipes.get(recipe), geometry)
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("rule", "words", "expected"),
    [
        ("words", ["effusion"], 5),
        ("words", ["pneumothorax"], 2.5),
        ("words", ["left"], (1 + 7) / 2),  # every occurrence
        ("words", ["left#2"], 7),
        ("words", ["LEFT", "absent"], (1 + 7) / 2),
        ("words", ["effusion", "effusions"], (5 + 8) / 2),
        ("words", ["left pneumothorax"], (1 + 2 + 3) / 3),
        ("substring", ["effusion"], (5 + 8) / 2),
        ("substring", ["effusion", "effusions"], (5 + 8 + 8) / 3),  # counted twice, as published
        ("substring", ["Thorax"], 2.5),
        ("substring", ["absent"], np.mean(range(1, 9))),
        ("first", ["pneumothorax"], 2),
        ("first", ["left pneumothorax", "small"], ((1 + 2) / 2 + 4) / 2),
        ("all", [], np.mean(range(1, 9))),
        ("start", [], 0),
        ("end", [], 9),
        ("padding", [], 50),
    ],
)
def test_a_rule_is_the_mean_over_its_rows(rule, words, expected):
    made = by_rule(attribution(), rule, words)
    np.testing.assert_allclose(made.values, expected, rtol=1e-6)
    assert made.label == (" + ".join(words) if words else f"[{rule}]")


def test_what_fell_off_the_context_is_not_counted():
    text = " ".join(["left effusion"] * 8)  # 16 words, 14 places
    found = by_rule(attribution(text), "words", ["effusion"])
    np.testing.assert_allclose(found.values, np.mean(range(2, 15, 2)))
    np.testing.assert_allclose(by_rule(attribution(text), "all").values, np.mean(range(1, 15)))


def test_spans_that_a_recipe_measures_whole_are_not_put_together():
    measured = attribution(recipe="effect", phrases={(1, 2, 3): np.full(GRID, 0.25)})
    np.testing.assert_allclose(by_rule(measured, "words", ["left pneumothorax"]).values, 0.25)
    with pytest.raises(UnmeasuredError):
        by_rule(measured, "words", ["small effusion"])
    with pytest.raises(ValueError, match="'effect' measures words, so it has no map of \\[end\\]"):
        by_rule(measured, "end")


@pytest.mark.parametrize("rule", ["words", "first"])
def test_words_that_are_not_there_are_named(rule):
    with pytest.raises(PhraseError, match="none of 'nodule', 'mass' is in the text"):
        by_rule(attribution(), rule, ["nodule", "mass"])


def test_bad_rules_missing_words_and_missing_tokens_are_refused():
    with pytest.raises(ValueError, match="unknown token rule 'magic'; there are words, substring"):
        by_rule(attribution(), "magic")
    with pytest.raises(ValueError, match="'substring' needs the words"):
        by_rule(attribution(), "substring")
    bare = attribution()
    bare = replace(bare, prompt=replace(bare.prompt, start=None), maps=bare.maps[1:])
    with pytest.raises(ValueError, match="no start token"):
        by_rule(bare, "start")
    full = attribution(" ".join(["left"] * 20))
    with pytest.raises(ValueError, match="no map of \\[padding\\]"):
        by_rule(full, "padding")


def test_spans_are_the_rows_of_every_occurrence_each_once():
    prompt = TOY.tokenize(TEXT)
    assert spans(prompt, ["left", "LEFT", "left#2", "left pneumothorax"]) == [(1,), (7,), (1, 2, 3)]
    with pytest.raises(PhraseError, match="none of 'nodule', 'mass' is in the text"):
        spans(prompt, ["nodule", "mass"])
