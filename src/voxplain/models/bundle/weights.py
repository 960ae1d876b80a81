"""The weights of a bundle, as plain tensors: which file belongs to which network, and whether all of it fits."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from voxplain.models.bundle.config import BundleError
from voxplain.models.storage import read_weights

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
WRAPPERS = ("module.", "_orig_mod.")  # of multi-GPU training and of torch.compile
SCALE = "scale_factor"  # what latents are multiplied by; some trainers keep it beside the weights
SHOWN = 5  # names listed in an error


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """One mapping from names to tensors in a file, and the scale factor that lay beside it."""

    file: Path
    place: str
    tensors: Mapping[str, Tensor]
    scale: float | None


def stored(folder: Path) -> list[Stored]:
    """All mappings of all weight files in `folder`/models; pickles are read as weights only, so no code runs."""
    files = sorted(each for each in (folder / "models").glob("*") if each.suffix in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{folder / 'models'} holds no weights ({', '.join(SUFFIXES)})")
    return [each for file in files for each in _mappings(file, _read(file))]


def fill(network: nn.Module, role: str, candidates: Sequence[Stored], named: str | None = None) -> Stored:
    """Load into `network` the weights whose names are most alike, of the file `named` or of all; strict."""
    chosen = [each for each in candidates if named is None or named in (each.file.name, each.file.stem)]
    expected, files = network.state_dict(), sorted({each.file.name for each in candidates})
    shared = [len(expected.keys() & each.tensors.keys()) for each in chosen]
    if not any(shared):
        raise BundleError(f"no weights of the {role} in {named or ', '.join(files)}; models holds {', '.join(files)}")
    best = [each for each, count in zip(chosen, shared, strict=True) if count == max(shared)]
    if len(best) > 1:
        places = ", ".join(f"{each.file.name}{each.place}" for each in best)
        raise BundleError(f"these could all be the {role}: {places}; say which by weights={{{role!r}: 'FILE'}}")
    own = best[0].tensors
    wrong = {
        "missing": [name for name in expected if name not in own],
        "unexpected": [name for name in own if name not in expected],
        "of another shape": [
            f"{name} {tuple(own[name].shape)} (expected {tuple(value.shape)})"
            for name, value in expected.items()
            if name in own and own[name].shape != value.shape
        ],
    }
    if any(wrong.values()):
        listed = "; ".join(
            f"{len(names)} {what}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
            for what, names in wrong.items()
            if names
        )
        raise BundleError(
            f"{best[0].file}{best[0].place} does not fit the {role} of the configuration. {listed}. Weights of MONAI "
            "Generative have other names; the network's load_old_state_dict turns them into these"
        )
    network.load_state_dict(own)
    return best[0]


def fingerprint(files: Sequence[Path]) -> str:
    """One hash of the contents of several files."""
    sums = []
    for file in files:
        with file.open("rb") as stream:
            sums.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return hashlib.sha256("".join(sorted(sums)).encode()).hexdigest()


def _read(file: Path) -> Mapping[str, Any]:
    found = read_weights(file, BundleError)
    if not isinstance(found, Mapping):
        raise BundleError(f"{file} holds a {type(found).__name__} and no named tensors; save the state_dict")
    return found


def _mappings(file: Path, found: Mapping[str, Any]) -> Iterator[Stored]:
    scale = float(found[SCALE]) if SCALE in found else None
    whole = {name: value for name, value in found.items() if isinstance(value, Tensor) and name != SCALE}
    for place, tensors in {"": whole, **found}.items():
        if isinstance(tensors, Mapping) and tensors and all(isinstance(value, Tensor) for value in tensors.values()):
            yield Stored(file, f":{place}" if place else "", _bare(tensors), scale)


def _bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names without the prefixes of wrappers that all of them carry."""
    names = dict(tensors)
    while prefix := next((each for each in WRAPPERS if all(name.startswith(each) for name in names)), ""):
        names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names
