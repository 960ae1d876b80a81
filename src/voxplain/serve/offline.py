"""The viewer as one file: nothing is fetched, so it opens from a disk, an e-mail or a notebook."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from voxplain.maps import Explanation
from voxplain.serve.describing import describe, heatmap
from voxplain.serve.packing import map_file, sample_file
from voxplain.serve.page import page_with
from voxplain.view.overlay import mosaic, overlay, planes
from voxplain.view.words import best_words, main_recipes, word_views

LARGEST = 96  # voxels along the longest axis of the image in the file


def interactive(explanation: Explanation, name: str = "run") -> str:
    """The page with the image and every map of every word in it; larger images are made coarser for it.

    `name` is what the page calls the run. Maps stay on their own grid. Without WebGL2 it shows a picture.
    """
    described = {"id": name, **describe(explanation), "variants": []}
    image, factor = sample_file(explanation.sample, LARGEST)
    volumes = {"sample": image}
    for recipe in explanation.attributions:
        listed = [*described["words"], *described["phrases"]]
        names = [entry["label"] for entry in listed if recipe in entry["recipes"]]
        if explanation.attributions[recipe].recipe.needs_attention:
            names += described["specials"]
        for each in names:
            found, facts = heatmap(explanation, recipe, each)
            volumes[f"{recipe}/{each}"] = map_file(found.values, found.geometry, facts)
    if factor > 1:
        described["notes"]["warnings"].append(f"the image in this file is {factor} times coarser than the run's")
    text = escape(f"{', '.join(best_words(explanation, 4))}: {explanation.prompt.text}")
    picture = base64.b64encode(still(explanation)).decode()
    fallback = f'<template id="still"><img src="data:image/png;base64,{picture}" alt="{text}"></template>'
    return page_with(described, volumes, fallback)


def still(explanation: Explanation) -> bytes:
    """A mosaic as PNG: the most distinct words, a row each recipe, cut where the word is highest."""
    words, shown = best_words(explanation, 4, fill=True), planes(explanation.sample.geometry)
    plane = "coronal" if "coronal" in shown else next(iter(shown))
    views = list(word_views(explanation, words))
    pictures = [
        overlay(
            explanation.sample,
            view.heatmaps[recipe],
            plane=plane,
            index=shown[plane].through_point(view.point),
            pixels=220,
            sure=view.sure(recipe),
        )
        for recipe in main_recipes(explanation)
        for view in views
    ]
    buffer = io.BytesIO()
    made = mosaic(pictures, len(views)) if pictures else np.zeros((8, 8, 3), np.uint8)
    Image.fromarray(made).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
