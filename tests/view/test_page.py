"""The report and the figure: whole, self-contained, harmless, and honest about what cannot be told apart."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic import explained

from voxplain.tokens import PhraseError
from voxplain.view import figure, report, word_rows
from voxplain.view.words import best_words, main_recipes, measured_phrases, word_views

VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """Checks nesting and collects tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module", params=[(8, 12, 16), (12, 16)], ids=["3D", "2D"])
def explanation(request):
    return explained(request.param, unit="HU" if len(request.param) == 3 else "attenuation")


@pytest.fixture(scope="module")
def page(explanation):
    return Page(report(explanation))


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(explanation, page):
    for _, attrs in page.tags:
        assert not attrs.get("src", "data:").lstrip().lower().startswith(("http", "//", "file"))
        assert attrs.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attrs)
    assert not page.all("script") and not page.all("link")
    assert not re.search(r"url\(|@import", report(explanation))


def test_whatever_the_prompt_says_is_escaped(page):
    assert not page.all("b") or all(attrs == {"aria-hidden": "true"} for attrs in page.all("b"))
    assert "toy <model>" in "".join(page.text)
    assert re.sub(r"\s+", " ", "".join(page.text)).count("Large <b>effusion</b> & effusion in the left lung") >= 2


def test_a_hostile_prompt_stays_text():
    text = """"><script>alert(1)</script> ' onload="x" lung"""
    page = Page(report(explained((12, 16), text)))
    assert not page.all("script")
    assert text in "".join(page.text)


def test_every_picture_has_words_for_those_who_do_not_see_it(explanation, page):
    texts = [attrs["alt"] for attrs in page.all("img") if attrs.get("class") != "ramp"]
    assert all(texts)
    shown = 2 if explanation.sample.geometry.ndim == 3 else 1
    phrases = measured_phrases(explanation)
    assert sum(text.startswith("effusion#2, attended to (mean)") for text in texts) == shown
    assert sum(text.startswith("left lung, changed (effect)") for text in texts) == shown
    assert phrases == ["left lung"]


def test_every_word_of_the_prompt_leads_to_its_card(explanation, page):
    links = [attrs["href"] for attrs in page.all("a")]
    cards = {f"#{attrs['id']}" for attrs in page.all("article")}
    assert len(links) == len(explanation.prompt.words) and set(links) <= cards


def test_what_is_not_distinguishable_is_marked_where_it_is_shown(page):
    chips = [attrs for attrs in page.all("a") if "unsure" in attrs["class"]]
    assert len(chips) == 1 and "not distinguishable" in chips[0]["title"]
    text = " ".join(page.text)
    assert "not distinguishable: mean" in text  # the card
    assert "Maps that are not distinguishable should not be read, in one recipe at least: the." in text
    assert page.all("tr")[1:] and sum(attrs["class"] == "unsure" for attrs in page.all("tr")[1:]) == 1


def test_the_table_names_the_word_with_the_most_similar_map_where_it_is_known(explanation, page):
    assert " ".join(page.text).count("left (0.30)") == 2 * len(explanation.prompt.words)  # for each recipe
    bare = {name: {**facts, "recipes": {}, "nearest": None} for name, facts in explanation.honesty.items()}
    assert "(0.30)" not in report(replace(explanation, honesty=bare))


def test_a_phrase_of_words_that_are_not_distinguishable_is_marked_too(explanation):
    word, phrase = word_views(explanation, ["the", "the left"])
    assert not word.sure() and not word.sure("mean") and word.sure("effect")
    assert phrase.sure()  # one of its words is
    assert not next(word_views(replace(explanation, honesty={"the": {"distinguishable": False}}), ["the"])).sure("mean")


def test_the_standing_cautions_are_there(page):
    text = " ".join(page.text)
    assert "Not for diagnosis." in text and "This image is synthetic" in text
    assert "neither a cause nor a segmentation" in text
    assert "on padding" in text


def test_an_image_that_was_given_to_the_model_is_not_called_synthetic():
    explanation = replace(explained((12, 16)), provenance={"readout": "renoise"})
    text = " ".join(Page(report(explanation)).text)
    assert "synthetic" not in text and "given to the model, not made by it" in text


def test_words_beyond_the_context_and_unknown_words_are_named():
    explanation = explained((12, 16))
    last = explanation.prompt.spans[7]
    assert last
    cut = replace(explanation.prompt, cut=last[0] + 1)
    seen = {"unknown_words": ["Large"], "warnings": ["the model never saw these words in training: Large"]}
    attributions = {name: replace(one, prompt=cut) for name, one in explanation.attributions.items()}
    attributions = {name: replace(one, phrases={}) for name, one in attributions.items()}
    page = Page(report(replace(explanation, prompt=cut, provenance=seen, attributions=attributions)))
    assert "the left lung" in page.text and any(attrs.get("class") == "cut" for attrs in page.all("span"))
    assert any(attrs["class"] == "chip unknown" for attrs in page.all("a"))
    assert "the model never saw these words in training: Large" in page.text


def test_an_explanation_without_honesty_says_not_tested():
    text = " ".join(Page(report(replace(explained((12, 16)), honesty={}, provenance={}))).text)
    assert "not tested" in text and "distinguishable: mean" not in text


def test_one_recipe_and_statistics_over_seeds_are_shown():
    explanation = explained((12, 16))
    mean = explanation.attributions["mean"]
    spread = replace(mean, provenance={"statistic": "standard deviation over seeds"})
    several = replace(explanation, attributions={"mean": mean, "mean spread over seeds": spread})
    assert main_recipes(several) == ["mean"]
    assert "(mean spread over seeds)" in " ".join(Page(report(several)).text)
    assert len(figure(several, ["Large"]).axes) == 2  # a panel and the color bar


def test_maps_of_parts_and_single_layers_are_left_to_the_viewer(explanation):
    mean = explanation.attributions["mean"]
    alone = replace(mean, provenance={**mean.provenance, "statistic": "layer up.1.attn2"})
    page = report(replace(explanation, attributions={**explanation.attributions, "mean layer up.1.attn2": alone}))
    assert "up.1.attn2" not in page and "recipe mean" in page


def test_the_table_holds_plain_values(explanation):
    rows = word_rows(explanation)
    assert [row["word"] for row in rows] == [
        "Large",
        "b#1",
        "effusion#1",
        "b#2",
        "effusion#2",
        "in",
        "the",
        "left",
        "lung",
    ]
    assert rows[6]["distinguishable"] is False and rows[6]["recipes"]["mean"]["distinctness"] == 0.1
    assert rows[0]["nearest"] == rows[0]["recipes"]["effect"]["nearest"] == {"word": "left", "correlation": 0.3}
    assert rows[0]["mass"] == pytest.approx(explanation.attributions["mean"].mass()["Large"])
    heatmap = explanation.word("Large", recipe="effect")
    world = heatmap.geometry.world(np.array([heatmap.peak], float))[0]
    np.testing.assert_allclose(rows[0]["recipes"]["effect"]["peak"], world, atol=0.05)
    assert rows[0]["top10_overlap"] is None


def test_the_most_distinct_words_are_chosen_and_no_indistinct_one(explanation):
    assert best_words(explanation, 3) == ["in", "left", "lung"]
    assert "the" not in best_words(explanation, 100)


def test_words_are_chosen_by_what_they_changed_where_that_was_measured(explanation):
    def seen(label, recipe, value):
        known = {**explanation.honesty[label]["recipes"]}
        known[recipe] = {**known[recipe], "distinctness": value, "distinguishable": True}
        return replace(
            explanation, honesty={**explanation.honesty, label: {**explanation.honesty[label], "recipes": known}}
        )

    (first,) = best_words(explanation, 1)
    assert first != "left"
    assert best_words(seen("left", "mean", 9.0), 1) == [first]  # looked at in a place of its own, without consequence
    assert best_words(seen("left", "effect", 9.0), 1) == ["left"]


def test_words_are_cut_where_their_maps_peak(explanation):
    (view,) = word_views(explanation, ["left lung"])
    measured = [heatmap for heatmap in view.heatmaps.values() if heatmap is not None]
    shown = [one.resize(explanation.sample.geometry, "nearest").values / one.values.max() for one in measured]
    joint = np.sum(shown, axis=0)
    assert joint[view.point] == pytest.approx(joint.max())


def test_a_figure_has_a_panel_for_each_word_and_recipe_and_says_what_is_missing(explanation, tmp_path):
    picture = figure(explanation, ["the left", "effusion#2", "the"])
    panels = picture.axes[:6]
    assert [panel.get_title() for panel in panels[:3]] == ["the left", "effusion#2", "the"]
    assert "phrase not measured\nby effect" in [text.get_text() for text in panels[3].texts]
    assert panels[2].get_xlabel() == "not distinguishable" and panels[5].get_xlabel() != "not distinguishable"
    letters = ["R", "L", "A", "P"] if explanation.sample.geometry.ndim == 3 else ["R", "L", "S", "I"]
    assert [text.get_text() for text in panels[0].texts] == letters
    picture.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_prompt_with_dollar_signs_is_drawn_as_it_is(tmp_path):
    figure(explained((12, 16), "effusion $\\frac $ left"), ["left"]).savefig(tmp_path / "a.png")


def test_a_figure_of_an_absent_word_or_of_none_is_refused(explanation):
    with pytest.raises(PhraseError, match="pneumonia"):
        figure(explanation, ["pneumonia"])
    with pytest.raises(ValueError, match="at least one word"):
        figure(explanation, [])
    with pytest.raises(ValueError, match="no plane 'oblique'"):
        figure(explanation, ["left"], plane="oblique")


def test_evidence_stands_in_the_table_where_it_was_measured_beside_that_of_null_words(explanation):
    assert "Evidence" not in report(explanation)
    words = [word["word"] for word in word_rows(explanation)]
    told = {"evidence": dict.fromkeys(words, 0.234), "null_evidence": {"of": 0.011, "there": -0.022}}
    own = replace(explanation.attributions["effect"], provenance=told)
    made = replace(explanation, attributions={**explanation.attributions, "effect": own})
    assert [word["recipes"]["effect"]["evidence"] for word in word_rows(made)] == [0.234] * len(words)
    assert word_rows(made)[0]["recipes"]["mean"]["evidence"] is None
    text = " ".join(Page(report(made)).text)
    assert text.count("0.23") >= len(words) and "Null words have 0.01, -0.02, and by it a word needs more." in text
