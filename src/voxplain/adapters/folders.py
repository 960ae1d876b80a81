"""Opening a folder that holds a diffusers pipeline, as data: no code of the folder runs and no pickle is read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

try:
    import diffusers
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("pipelines of diffusers need the package: pip install 'voxplain[diffusers]'") from error

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SHOWN = 5  # names that a message lists


def load_pipeline(
    folder: str | Path, *, dtype: str | torch.dtype = "float32", device: str | torch.device = "cpu"
) -> Any:
    """The pipeline of a folder written by `save_pretrained`, ready to run, from safetensors only and without network.

    Raises ValueError for a folder that is none, a component that is missing, is code, or is there as a pickle only, for
    a text encoder whose width the U-Net does not take, and for weights that do not fit their network, by name.
    """
    folder = Path(folder)
    index = _document(folder / "model_index.json", f"{folder} is no folder of a diffusers pipeline")
    name = index.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"{folder}: {name!r} is no pipeline of diffusers; code that comes with a model is never run")
    parts = {part: entry for part, entry in index.items() if not part.startswith("_") and isinstance(entry, list)}
    for part, (library, _) in parts.items():
        if library is not None:
            _check_part(folder, part, library, str(name))
    if "unet" in parts:
        encoders = [part for part in ("text_encoder", "text_encoder_2") if parts.get(part, [None])[0] is not None]
        configs = [_config(folder, part) for part in (*encoders, "unet")]
        check_width(configs[:-1], configs[-1])
    kept = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kept, torch.dtype):
        raise ValueError(f"dtype = {dtype!r}; give float32, float16 or bfloat16")
    with _quiet():
        networks = _networks(folder, parts, kept)
        pipe = kind.from_pretrained(folder, torch_dtype=kept, local_files_only=True, use_safetensors=True, **networks)
    return pipe.to(device)


def check_width(encoders: Sequence[Mapping[str, Any]], unet: Mapping[str, Any]) -> None:
    """Raise ValueError unless the text encoders are, side by side, as wide as the context that the U-Net takes."""
    if not encoders or unet.get("encoder_hid_dim_type") is not None:
        return
    widths = [encoder.get("hidden_size") or encoder.get("d_model") or 0 for encoder in encoders]
    wanted = unet["cross_attention_dim"]
    wanted = set(wanted) if isinstance(wanted, list | tuple) else {wanted}
    if {sum(widths)} != wanted:
        raise ValueError(
            f"the text encoder gives vectors of width {' + '.join(map(str, widths))}, but the U-Net takes "
            f"{', '.join(map(str, sorted(wanted)))}: these two do not belong together"
        )


def _networks(folder: Path, parts: Mapping[str, Sequence[str | None]], dtype: torch.dtype) -> dict[str, nn.Module]:
    """Each component that has weights, with all of them; a pipeline would make up those that are missing."""
    found = {}
    for part, (library, name) in parts.items():
        home = {"diffusers": diffusers, "transformers": transformers}.get(library or "")
        kind = getattr(home, name or "", None)
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            found[part] = _opened(kind, folder / part, dtype, theirs=home is transformers)
    return found


def _opened(kind: Any, place: Path, dtype: torch.dtype, *, theirs: bool) -> nn.Module:
    """The network of a folder. What a text encoder has beside it, such as the head of another task, is left out."""
    renamed = theirs and tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= (4, 56)
    options = {"dtype" if renamed else "torch_dtype": dtype, "local_files_only": True, "use_safetensors": True}
    try:
        made, report = kind.from_pretrained(place, output_loading_info=True, ignore_mismatched_sizes=theirs, **options)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{place} holds no weights that can be read: {error}") from error
    shapes = [f"{name} {tuple(given)}, expected {tuple(own)}" for name, given, own in report["mismatched_keys"]]
    strange = () if theirs else report["unexpected_keys"]
    lists = {"missing": report["missing_keys"], "unexpected": strange, "of another shape": shapes}
    if wrong := [_listed(what, names) for what, names in lists.items() if names]:
        raise ValueError(f"the weights in {place} do not fit {kind.__name__}: {'; '.join(wrong)}")
    return made


def _listed(what: str, names: Sequence[str] | set[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} {what}: {', '.join(sorted(names)[:SHOWN])}{more}"


@contextmanager
def _quiet() -> Iterator[None]:
    """No remarks of the libraries about weights: what matters of them is checked here."""
    with ExitStack() as leaving:
        for library in (diffusers, transformers):
            logs = library.utils.logging
            leaving.callback(logs.set_verbosity, logs.get_verbosity())
            logs.set_verbosity_error()
        logs = transformers.utils.logging
        if logs.is_progress_bar_enabled():
            leaving.callback(logs.enable_progress_bar)
            logs.disable_progress_bar()
        yield


def _check_part(folder: Path, part: str, library: str, pipeline: str) -> None:
    """Raise ValueError unless a component is there, is of a known library, and has no weights that are pickles only."""
    if library not in ("diffusers", "transformers") and not hasattr(diffusers.pipelines, library):
        raise ValueError(
            f"{folder}: the component {part!r} is code of its own ({library}), which is never run; save it as a "
            "class of transformers or diffusers"
        )
    place = folder / part
    files = [path for path in place.glob("*") if path.is_file()] if place.is_dir() else []
    if not files:
        raise ValueError(f"{folder}: the component {part!r} of {pipeline} is missing")
    pickles = [path.name for path in files if path.suffix in PICKLES]
    if pickles and not any(path.suffix == ".safetensors" for path in files):
        raise ValueError(
            f"{place} holds its weights as {', '.join(pickles)}, a format that can carry code; convert them to "
            "safetensors"
        )


def _config(folder: Path, part: str) -> Mapping[str, Any]:
    return _document(folder / part / "config.json", f"{folder}: the component {part!r} has no configuration")


def _document(path: Path, otherwise: str) -> Mapping[str, Any]:
    if not path.is_file():
        there = sorted(each.name for each in path.parent.glob("*"))[:8] if path.parent.is_dir() else []
        raise ValueError(f"{otherwise}: there is no {path.name} (found: {', '.join(there) or 'nothing'})")
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
