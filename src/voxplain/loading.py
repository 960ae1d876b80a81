"""One door to every model that Voxplain can open."""

import importlib
from pathlib import Path
from typing import Any

NAMES = ("thorax", "thorax-2d")


def load(name_or_path: str | Path) -> Any:
    """A model that is ready to generate: a shipped one by name, or one of ours from the folder that holds its weights.

    Raises ValueError for what is neither, and FileNotFoundError where there are no weights; both say what there is.
    """
    name = str(name_or_path)
    if name.startswith(NAMES) or Path(name).is_dir():  # thorax-2d was trained several times; thorax knows its own names
        return importlib.import_module("voxplain.models.thorax").load(name)
    raise ValueError(
        f"there is no model {name!r}: give one of {', '.join(map(repr, NAMES))}, or an existing folder that holds the "
        "weights of one (written by `voxplain train`)"
    )
