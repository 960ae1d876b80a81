"""Opening the model that a verb was told, or the one that made a run: what a run remembers of it."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from voxplain.cli.base import say

MEDSYN = "medsyn:"
KEPT = ("text_encoder", "dtype", "trust_code")  # options that the same model needs again


def open_model(name: str, report: Callable[..., None], *, device: str | None = None, **options: Any) -> Any:
    """The model by that name, on the GPU where there is one."""
    report(f"loading {name}")
    import torch

    from voxplain.loading import load

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load(name, device=device or ("cuda" if torch.cuda.is_available() else None), **options)
    for one in caught:
        if Path(one.filename).is_relative_to(Path(__file__).parents[1]):  # ours: a license, a guess that was made
            say(f"warning: {one.message}")
    return model


def sized(model: Any, *size: int | None) -> Any:
    """The model for images of that size; only pipelines of diffusers take one."""
    if not any(size):
        return model
    if not all(size):
        raise ValueError("give --height and --width, or neither")
    from voxplain.adapters import as_adapter

    try:
        return as_adapter(model, size=size)
    except TypeError:
        raise ValueError("this model makes images of one size; leave --height and --width out") from None


def remembered(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a run keeps of how its model was opened: "source" and "opened_with"; the paths of files are made whole."""
    kept = {key: options[key] for key in KEPT if options.get(key)}
    if "text_encoder" in kept:
        kept["text_encoder"] = str(Path(kept["text_encoder"]).resolve())
    prefix, path = (MEDSYN, name.removeprefix(MEDSYN)) if name.startswith(MEDSYN) else ("", name)
    file = Path(path)
    whole = file.exists() and (prefix or os.sep in path or not _shipped(path))
    return {"source": prefix + str(file.resolve()) if whole else name, "opened_with": kept}


def reopened(
    run: Path, origin: Mapping[str, Any], model: str | None, options: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The name and the options by which the model of a run is opened: those given, else those that it remembers.

    Raises FileNotFoundError where what it remembers is gone, and ValueError where it was made by running the code of a
    bundle, which no file may ask for.
    """
    name, kept = model or origin.get("source") or origin.get("model") or "thorax", origin.get("opened_with") or {}
    path = Path(name.removeprefix(MEDSYN))
    if model is None and path.is_absolute() and not path.exists():
        raise FileNotFoundError(f"{run} was made with the model {path}, which is no longer there; name it by --model")
    encoder = kept.get("text_encoder")
    if encoder and not options.get("text_encoder") and not Path(encoder).exists():
        raise FileNotFoundError(
            f"{run} was made with the text encoder {encoder}, which is no longer there; name its folder by "
            "--text-encoder"
        )
    if kept.get("trust_code") and not options.get("trust_code"):
        raise ValueError(
            f"{run} was made with --trust-code, so code of {name} ran; give --trust-code again to allow it"
        )
    return name, {**kept, **{key: value for key, value in options.items() if value}}


def _shipped(name: str) -> bool:
    from voxplain.loading import NAMES

    return name.startswith(NAMES)
