"""Files of weights, read as data: no code in them runs."""

import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


def read_weights(file: Path, wrong: type[ValueError]) -> Any:
    """What a .safetensors file, or a pickle of plain tensors, holds; raises `wrong` for code in it and for damage."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise wrong(pickled(file, error)) from error
    except (SafetensorError, EOFError, RuntimeError, BadZipFile) as error:
        raise wrong(f"{file} is damaged or of another format: {error}") from error


def pickled(file: Path, error: pickle.UnpicklingError) -> str:
    """Why a pickle was not read, and what to do about it."""
    return (
        f"{file} was not read: it is no PyTorch file, or a pickle that holds code beside tensors, which would run when "
        "it is read. Write its tensors to a .safetensors file where you trust it, and give that instead. "
        f"({str(error).strip().splitlines()[0]})"
    )
