"""Values as plain JSON plus named arrays, and back."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from voxplain.geometry import Geometry
from voxplain.maps import Attribution, Explanation, Recipe, Sample, Trajectory
from voxplain.tokens import TokenizedPrompt

Arrays = dict[str, np.ndarray]


def plain(value: Any, name: str = "") -> Any:
    """`value` as JSON types: arrays and tuples become lists, numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), name)
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item, name) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item, name) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item(), name)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    raise TypeError(f"{name.lstrip('.')}: a {type(value).__name__} cannot be kept in a run folder; use plain values")


def encode(explanation: Explanation) -> tuple[dict, Arrays]:
    """The explanation as JSON and arrays, all but the voxels of its sample."""
    arrays: Arrays = {}
    document = {
        "prompt": plain(dataclasses.asdict(explanation.prompt)),
        "sample": _sample(explanation.sample),
        "attributions": [
            {"name": name, **_attribution(name, item, arrays)} for name, item in explanation.attributions.items()
        ],
        "states": None,
        "honesty": plain(explanation.honesty, "honesty"),
        "provenance": plain(explanation.provenance, "provenance"),
    }
    if explanation.states is not None:
        arrays["states/latents"] = explanation.states.latents
        document["states"] = {
            "timesteps": plain(explanation.states.timesteps),
            "steps": plain(explanation.states.steps),
        }
    return document, arrays


def decode(document: Mapping, arrays: Mapping[str, np.ndarray], image: np.ndarray) -> Explanation:
    """What `encode` was given; a missing field or array is a `KeyError` that names it."""
    prompt = _decode_prompt(document["prompt"])
    sample = document["sample"]
    states = document["states"]
    return Explanation(
        sample=Sample(
            image=image,
            geometry=_decode_geometry(sample["geometry"]),
            prompt=sample["prompt"],
            provenance=sample["provenance"],
            unit=sample["unit"],
        ),
        prompt=prompt,
        attributions={item["name"]: _decode_attribution(item, arrays, prompt) for item in document["attributions"]},
        provenance=document["provenance"],
        states=states
        and Trajectory(
            latents=arrays["states/latents"], timesteps=tuple(states["timesteps"]), steps=tuple(states["steps"])
        ),
        honesty=document["honesty"],
    )


def phrase_key(recipe: str, rows: tuple[int, ...]) -> str:
    """The name of a measured phrase's array."""
    return f"{recipe}/phrase/{'-'.join(map(str, rows))}"


def _sample(sample: Sample) -> dict:
    return {
        "prompt": sample.prompt,
        "unit": sample.unit,
        "channels": sample.image.shape[0],
        "geometry": _geometry(sample.geometry),
        "provenance": plain(sample.provenance, "sample.provenance"),
    }


def _attribution(name: str, item: Attribution, arrays: Arrays) -> dict:
    arrays[f"{name}/maps"] = item.maps
    arrays[f"{name}/padding"] = item.padding
    arrays.update({phrase_key(name, rows): values for rows, values in item.phrases.items()})
    arrays.update({f"{name}/control/{number}": values for number, values in enumerate(item.controls.values())})
    return {
        "recipe": plain(dataclasses.asdict(item.recipe), "recipe"),
        "geometry": _geometry(item.geometry),
        "image_geometry": _geometry(item.image_geometry),
        "provenance": plain(item.provenance, f"{name}.provenance"),
        "phrases": plain(list(item.phrases)),
        "controls": list(item.controls),
    }


def _geometry(geometry: Geometry) -> dict:
    return {
        "shape": plain(geometry.shape),
        "affine": plain(geometry.affine),  # to LPS millimeters, index slowest first
        "spacing_known": geometry.spacing_known,
    }


def _decode_prompt(document: Mapping) -> TokenizedPrompt:
    spans = tuple(None if span is None else tuple(span) for span in document["spans"])
    ids, pieces = tuple(document["ids"]), tuple(document["pieces"])
    return TokenizedPrompt(**{**document, "ids": ids, "pieces": pieces, "spans": spans})


def _decode_geometry(document: Mapping) -> Geometry:
    return Geometry(
        tuple(document["shape"]), np.array(document["affine"], float), spacing_known=document["spacing_known"]
    )


def _decode_recipe(document: Mapping) -> Recipe:
    layers = document["layers"]
    accumulate = frozenset(document["accumulate"])
    return Recipe(**{**document, "accumulate": accumulate, "layers": layers if layers is None else tuple(layers)})


def _decode_attribution(item: Mapping, arrays: Mapping[str, np.ndarray], prompt: TokenizedPrompt) -> Attribution:
    name = item["name"]
    phrases = [tuple(rows) for rows in item["phrases"]]
    return Attribution(
        maps=arrays[f"{name}/maps"],
        padding=arrays[f"{name}/padding"],
        prompt=prompt,
        geometry=_decode_geometry(item["geometry"]),
        recipe=_decode_recipe(item["recipe"]),
        image_geometry=_decode_geometry(item["image_geometry"]),
        provenance=item["provenance"],
        phrases={rows: arrays[phrase_key(name, rows)] for rows in phrases},
        controls={label: arrays[f"{name}/control/{number}"] for number, label in enumerate(item["controls"])},
    )
