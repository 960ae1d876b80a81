"""Voxplain: which words of the prompt made which voxels, and should you believe the answer?

This file is a table of contents. A name is imported when it is first used, so `import voxplain` loads no torch.
"""
# pyright: reportUnsupportedDunderAll=false

import importlib
from typing import Any

_FUNCTIONS = {
    "load": "loading",
    "trace": "tracing",
    "trace_modules": "listening.modules",
    "explain": "studies.explaining",
    "as_adapter": "adapters.base",
    "show": "serve.notebook",
    "check_adapter": "testing",
}
_TYPES = {
    "TokenizedPrompt": "tokens",
    "PhraseError": "tokens",
    "Geometry": "geometry",
    "Sample": "maps",
    "AttentionMaps": "maps",
    "Recipe": "maps",
    "Attribution": "maps",
    "Heatmap": "maps",
    "Mask": "maps",
    "Explanation": "maps",
    "Scores": "scoring",
}
_MODULES = (
    "tokens",
    "geometry",
    "resampling",
    "maps",
    "recipes",
    "masks",
    "metrics",
    "scoring",
    "datasets",
    "io",
    "view",
    "adapters",
    "models",
    "studies",
    "testing",
)

__all__ = ["__version__", *_FUNCTIONS, *_TYPES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    elif name in _FUNCTIONS or name in _TYPES:
        module = _FUNCTIONS.get(name) or _TYPES[name]
        value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    else:
        raise AttributeError(f"voxplain has no {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("voxplain")
    except PackageNotFoundError:
        return "0+unknown"  # run from a source folder that is not installed
