"""The report: one HTML file with everything in it, for a reader without Voxplain."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from voxplain.maps import CAVEAT, Explanation
from voxplain.view import markup
from voxplain.view.overlay import WINDOWS, limits, overlay, planes
from voxplain.view.words import (
    UNSURE_TEXT,
    WordView,
    attention_mass,
    best_words,
    detail,
    image_note,
    main_recipes,
    measured_phrases,
    nearest_voxel,
    origin,
    recipe_title,
    unknown_labels,
    warnings_of,
    word_rows,
    word_views,
)

Window = str | tuple[float, float] | None


def report(explanation: Explanation, *, fraction: float = 0.25, window: Window = None) -> str:
    """A self-contained HTML page (no scripts, nothing loaded from elsewhere): sample, words, joint view, table, origin.

    Maps show their top `fraction`; `window` is a name of `WINDOWS` or (center, width), by default the lung for HU.
    Everything that came from outside (prompt, model, words) is escaped.
    """
    views = list(word_views(explanation))
    phrases = list(word_views(explanation, measured_phrases(explanation)))
    options = {"fraction": fraction, "window": window}
    sections = (
        _heading(explanation, views),
        _sample(explanation, views, window),
        _joint(explanation, options),
        _words(explanation, [*views, *phrases], options),
        _table(explanation),
        _origin(explanation, views),
    )
    return markup.page(explanation.prompt.text, "".join(sections))


def _heading(explanation: Explanation, views: Sequence[WordView]) -> str:
    warnings = warnings_of(explanation)
    return (
        f'<h1>Voxplain report</h1><p class="prompt">{_prompt(explanation, views)}</p>'
        '<p class="soft">Each word leads to its maps. The bar under a word is its share of the attention; '
        f"a dashed word is, in one recipe at least, {UNSURE_TEXT} from a word that means nothing here.</p>"
        f'<div class="caution"><strong>Not for diagnosis.</strong> {image_note(explanation)} '
        f"{escape(CAVEAT)}"
        f"{markup.bullets(warnings) if warnings else ''}</div>"
    )


def _prompt(explanation: Explanation, views: Sequence[WordView]) -> str:
    """The prompt with every word as a link."""
    prompt, mass = explanation.prompt, attention_mass(explanation)
    shares = [mass.get(view.label, view.honesty.get("mass") or 0.0) for view in views]
    top = max(shares, default=0.0) or 1.0
    unknown = unknown_labels(explanation)
    parts, last = [], 0
    for number, (view, word, share) in enumerate(zip(views, prompt.words, shares, strict=True)):
        marks = {"unsure": not view.sure(), "unknown": view.label in unknown}
        notes = {"unsure": UNSURE_TEXT, "unknown": "not among the words seen in training"}
        kinds = [kind for kind, applies in marks.items() if applies]
        tip = "; ".join([f"{share:.1%} of the attention", *(notes[kind] for kind in kinds)])
        parts.append(escape(prompt.text[last : word.span[0]]))
        parts.append(
            f'<a class="{" ".join(["chip", *kinds])}" style="--share:{100 * share / top:.0f}%" '
            f'href="#word-{number}" title="{tip}">{escape(word.text)}</a>'
        )
        last = word.span[1]
    cut = prompt.truncated
    end = prompt.text.rindex(cut) if cut else len(prompt.text)
    parts.append(escape(prompt.text[last:end]))
    parts.append(f'<span class="cut" title="beyond the context of the model">{escape(cut)}</span>' if cut else "")
    return "".join(parts)


def _sample(explanation: Explanation, views: Sequence[WordView], window: Window) -> str:
    sample, best = explanation.sample, best_words(explanation, 1)
    point = next((view.point for view in views if view.label in best), tuple(n // 2 for n in sample.geometry.shape))
    windows = [window] if window is not None or sample.unit != "HU" else list(WINDOWS)
    hidden = " hidden" if len(windows) == 1 else ""
    tabs, panels = [], []
    for number, each in enumerate(windows):
        name, checked = _window_name(each, sample.unit), "" if number else " checked"
        tabs.append(
            f'<input type="radio" name="window" id="w{number}"{checked}{hidden}>'
            f'<label for="w{number}"{hidden}>{escape(name)}</label>'
        )
        pictures = markup.all_planes(explanation, None, point, f"the sample, {name}", {"window": each})
        panels.append(f'<div class="panel p{number}">{pictures}</div>')
    size = " × ".join(map(str, sample.geometry.shape))
    spacing = " × ".join(f"{step:.3g}" for step in sample.geometry.spacing)
    known = f"{spacing} mm" if sample.geometry.spacing_known else "unknown spacing"
    cut = f", cut where the maps of <em>{escape(best[0])}</em> are highest" if best and sample.geometry.ndim > 2 else ""
    return (
        f'<h2>The sample</h2><p class="soft">{size} voxels of {known}, in {escape(sample.unit)}{cut}. Patient right '
        f'is on the left of the screen.</p><div class="tabs">{"".join(tabs)}{"".join(panels)}</div>'
    )


def _joint(explanation: Explanation, options: Mapping[str, Any]) -> str:
    chosen, geometry = best_words(explanation, 4), explanation.sample.geometry
    if not chosen:
        return ""
    blocks = []
    for name in main_recipes(explanation):
        attribution = explanation.attributions[name]
        joint = attribution.joint(chosen, options["fraction"])
        point = nearest_voxel(geometry, joint.geometry, joint.peak)
        whole = {**options, "fraction": 1.0}
        pictures = markup.all_planes(explanation, joint, point, f"{joint.label}, joint map ({name})", whole)
        wide = 300 * len(planes(geometry))
        title = markup.recipe_name(name, attribution)
        blocks.append(f'<section style="flex-basis:{wide}px"><h3>{title}</h3>{pictures}</section>')
    names = ", ".join(f"<em>{escape(label)}</em>" for label in chosen)
    return (
        f"<h2>Joint view</h2><p>The most distinct words together: {names}. At each voxel the mean over only those "
        f"words that are in their top {options['fraction']:.0%} there; cut where it is highest.</p>"
        f'<div class="blocks">{"".join(blocks)}</div>'
    )


def _words(explanation: Explanation, views: Iterable[WordView], options: Mapping[str, Any]) -> str:
    cards = "".join(_card(explanation, number, view, options) for number, view in enumerate(views))
    return (
        f"<h2>Word by word</h2><p>The top {options['fraction']:.0%} of each map, cut where the word's maps together "
        f'are highest.</p>{_legend()}<div class="words">{cards}</div>'
    )


def _legend() -> str:
    texts = ((True, "threshold to highest, within one picture"), (False, UNSURE_TEXT))
    ramps = "".join(
        f'<span><img class="ramp" src="{markup.data_uri(markup.ramp(sure))}" alt="">{text}</span>'
        for sure, text in texts
    )
    return (
        f'<div class="legend soft">{ramps}</div><p class="soft">Pictures are not on one scale: the range is under '
        "each. Attention is a probability (a word's share of all positions of the context, at a voxel); a change is "
        "relative to the size of the model's own prediction. Both have no unit.</p>"
    )


def _card(explanation: Explanation, number: int, view: WordView, options: Mapping[str, Any]) -> str:
    shown = [recipe for recipe, one in explanation.attributions.items() if not detail(recipe, one)]
    figures = "".join(_card_figure(explanation, view, recipe, options) for recipe in shown)
    unsure = [recipe for recipe in main_recipes(explanation) if not view.sure(recipe)]
    badge = f'<span class="badge">{UNSURE_TEXT}: {escape(", ".join(unsure))}</span>' if unsure else ""
    return (
        f'<article class="card" id="word-{number}"><header><h3>{escape(view.label)}</h3>{badge}</header>'
        f'<div class="pair">{figures}</div></article>'
    )


def _card_figure(explanation: Explanation, view: WordView, recipe: str, options: Mapping[str, Any]) -> str:
    heatmap, attribution = view.heatmaps[recipe], explanation.attributions[recipe]
    title = markup.recipe_name(recipe, attribution)
    if heatmap is None:
        return f'<figure><div class="empty">not measured</div><figcaption>{title}</figcaption></figure>'
    sure, pictures = view.sure(recipe), []
    for name, plane in list(planes(explanation.sample.geometry).items())[:2]:
        at = plane.through_point(view.point)
        rgb = overlay(explanation.sample, heatmap, plane=name, index=at, pixels=240, sure=sure, **options)
        text = f"{view.label}, {recipe_title(attribution)} ({recipe}): {name}{'' if sure else ', ' + UNSURE_TEXT}"
        pictures.append(markup.image(rgb, plane.letters, text))
    low, high = limits(heatmap, options["fraction"])
    return f"<figure>{''.join(pictures)}<figcaption>{title}<br>{low:.2g} to {high:.2g}</figcaption></figure>"


def _table(explanation: Explanation) -> str:
    recipes = main_recipes(explanation)
    seeds = any("seeds" in facts for facts in explanation.honesty.values())
    axes = ", ".join("xyz"[: explanation.sample.geometry.ndim])
    head = ["Word", "Mass", *(f"Peak of {escape(recipe)}<br>({axes} mm)" for recipe in recipes)]
    head += [f"Distinctness of {escape(recipe)}<br>(null word)" for recipe in recipes]
    weighed = [recipe for recipe in recipes if explanation.attributions[recipe].provenance.get("evidence")]
    head += [f"Evidence<br>({escape(recipe)})" for recipe in weighed]
    head += [f"Map of {escape(recipe)}<br>most like that of" for recipe in recipes]
    head += ["Rank correlation of recipes", "Overlap of their top 10%"] + ["Correlation of seeds"] * seeds + ["Verdict"]
    rows = []
    for row in word_rows(explanation):
        each = row["recipes"].values()
        verdict = {True: "distinguishable", False: UNSURE_TEXT}.get(row["distinguishable"], "not tested")
        cells = [escape(row["word"]), markup.percent(row["mass"])]
        cells += [", ".join(f"{x:.0f}" for x in facts["peak"] or ()) for facts in each]
        cells += [f"{markup.decimal(f['distinctness'])} ({markup.decimal(f['null_distinctness'])})" for f in each]
        cells += [markup.decimal(row["recipes"][recipe]["evidence"]) for recipe in weighed]
        cells += [_nearest(facts["nearest"]) for facts in each]
        cells += [markup.decimal(row["rank_correlation"]), markup.percent(row["top10_overlap"])]
        cells += [markup.decimal(row["seed_correlation"])] * seeds + [verdict]
        rows.append(("unsure" if row["distinguishable"] is False else "", cells))
    return (
        f"<h2>How far to believe each word</h2>{markup.table(head, rows)}<p class='soft'>{_special(explanation)}"
        "Distinctness is 1 minus the mean correlation with the maps of two null words, which mean nothing here; in "
        f"brackets that of a null word. A word that does not exceed it is {UNSURE_TEXT}. "
        f"{_weighing(explanation, weighed)}"
        "Words of one phrase may well share a map: the word with the most similar one is named, with the correlation. "
        "Peaks are in LPS millimeters: x to the patient's left, y to posterior (downwards in a radiograph), z to "
        "superior.</p>"
    )


def _weighing(explanation: Explanation, recipes: Sequence[str]) -> str:
    """What evidence is, where it was measured, and what words have that mean nothing."""
    nothing = [
        value
        for recipe in recipes
        for value in explanation.attributions[recipe].provenance.get("null_evidence", {}).values()
    ]
    if not recipes:
        return ""
    bar = f" Null words have {', '.join(map(markup.decimal, nothing))}, and by it a word needs more." if nothing else ""
    return (
        "Evidence is the cosine (-1 to 1) between what a word changes and what the prediction lacks of this image "
        f"without it.{bar} "
    )


def _nearest(near: Mapping[str, Any]) -> str:
    return f"{escape(near['word'])} ({markup.decimal(near['correlation'])})" if near["word"] else markup.decimal(None)


def _special(explanation: Explanation) -> str:
    mass = attention_mass(explanation)
    names = {"[start]": "the start token", "[end]": "the end token", "[padding]": "padding", "[other]": "punctuation"}
    parts = [f"{mass[key]:.1%} on {name}" for key, name in names.items() if mass.get(key)]
    return f"Attention off the words: {', '.join(parts)}. " if parts else ""


def _origin(explanation: Explanation, views: Sequence[WordView]) -> str:
    facts = {name: value for name, value in origin(explanation).items() if name != "warnings"}
    every = explanation.attributions.items()
    recipes = {
        f"recipe {name}": f"{one.recipe.formula} ({one.recipe.source})" for name, one in every if not detail(name, one)
    }
    cautions = [
        image_note(explanation),
        "Attention is neither a cause nor a segmentation: a map shows where the model looked for a word.",
        "A change is measured in this model on this run; another seed can give another map.",
    ]
    if unsure := [view.label for view in views if not view.sure()]:
        cautions.append(f"Maps that are {UNSURE_TEXT} should not be read, in one recipe at least: {', '.join(unsure)}.")
    return (
        f"<h2>Cautions</h2>{markup.bullets([*cautions, *warnings_of(explanation)])}"
        f"<h2>How it was made</h2>{markup.definitions(markup.flat({**facts, **recipes}))}"
    )


def _window_name(window: Window, unit: str) -> str:
    if window is None:
        return f"1 to 99% of the values ({unit})"
    name, (center, width) = (window, WINDOWS[window]) if isinstance(window, str) else ("window", window)
    return f"{name} ({center:g} / {width:g} {unit})"
