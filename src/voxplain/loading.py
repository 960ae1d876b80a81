"""One door to every model that Voxplain can open."""

import importlib
from pathlib import Path
from typing import Any

NAMES = ("thorax", "thorax-2d", "thorax-2d-seed1", "thorax-2d-seed2")
DTYPES = ("float32", "float16", "bfloat16")
MEDSYN = "medsyn:"
KINDS = (
    f"give one of {', '.join(map(repr, NAMES))}; a folder that `voxplain train` wrote; a diffusers folder "
    f"(with a model_index.json); the folder of a MONAI bundle (with configs/); or {MEDSYN}PATH, a MedSyn checkpoint"
)


def load(
    name_or_path: str | Path,
    *,
    text_encoder: str | Path | None = None,
    dtype: str | None = None,
    device: str | None = None,
    trust_code: bool = False,
) -> Any:
    """A model that is ready to generate: a shipped one by name, or the user's own from its folder or checkpoint.

    `text_encoder` is the folder of the transformers model that reads the text, for MONAI bundles and MedSyn. `dtype`
    ("float32", "float16", "bfloat16") is that of the networks; `device` is "cpu" unless given. `trust_code` runs the
    expressions of a MONAI bundle, which are code.

    Raises ValueError for what is no model, for options that it does not take and for a device that is not there, and
    FileNotFoundError where there are no weights; both say what there is.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype = {dtype!r}; give {', '.join(DTYPES)}")
    if device not in (None, "cpu"):
        _refuse_device(device)
    name = str(name_or_path)
    folder = Path(name)
    if name.startswith(MEDSYN):
        options = {"text_encoder": _needed(text_encoder, name), "device": device or "cpu"}
        if dtype:
            options["dtype"] = getattr(importlib.import_module("torch"), dtype)
        return _part("voxplain.models.medsyn").load(name.removeprefix(MEDSYN), **options)
    if (folder / "model_index.json").is_file():
        _refuse(name, text_encoder=text_encoder, trust_code=trust_code)
        opened = _part("voxplain.adapters.folders")
        return opened.load_pipeline(folder, dtype=dtype or "float32", device=device or "cpu")
    if (folder / "configs").is_dir():
        _refuse(name, dtype=dtype)
        encoder = _needed(text_encoder, name)
        model = _part("voxplain.models.bundle").load(folder, text_encoder=encoder, trust_code=trust_code)
    elif name.startswith(NAMES) or any(folder.glob("weights-*.safetensors")):  # thorax knows its own names
        _refuse(name, text_encoder=text_encoder, dtype=dtype, trust_code=trust_code)
        model = _part("voxplain.models.thorax").load(name)
    else:
        found = [each.name for each in sorted(folder.glob("*"))[:8]]
        holds = f" (a folder that holds {', '.join(found) or 'nothing'})" if folder.is_dir() else ""
        raise ValueError(f"there is no model {name!r}{holds}: {KINDS}")
    return model.to(device) if device else model


def _refuse_device(device: str) -> None:
    torch = _part("torch")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # PyTorch without CUDA asserts it
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        there += ["mps"] * torch.backends.mps.is_available()
        why = str(error).splitlines()[0]
        raise ValueError(f"device = {device!r} cannot be used here ({why}); there is {', '.join(there)}") from None


def _part(module: str) -> Any:
    return importlib.import_module(module)


def _needed(text_encoder: str | Path | None, name: str) -> Path:
    if text_encoder is None:
        raise ValueError(f"{name} brings no text encoder; give text_encoder, the folder of the one it was trained with")
    return Path(text_encoder)


def _refuse(name: str, **options: Any) -> None:
    given = [option for option, value in options.items() if value]
    if given:
        raise ValueError(f"{name} takes no {' or '.join(given)}; it comes with its own")
