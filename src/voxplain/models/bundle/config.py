"""The configuration of a bundle: known classes and plain values are data, everything else in it is code."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml  # comes with transformers

OURS = "voxplain"  # configs/voxplain.json: what a bundle does not say, in the same names; it goes before the rest
FIRST = "inference"
NO_CONFIGS = ("metadata", "logging", OURS)
SUFFIXES = (".json", ".yaml", ".yml")
KNOWN = {  # class -> (what it is, where it lives)
    "DiffusionModelUNet": ("denoiser", "monai.networks.nets.diffusion_model_unet"),
    "DiffusionModelUNetMaisi": ("denoiser", "monai.apps.generation.maisi.networks.diffusion_model_unet_maisi"),
    "AutoencoderKL": ("autoencoder", "monai.networks.nets.autoencoderkl"),
    "AutoencoderKlMaisi": ("autoencoder", "monai.apps.generation.maisi.networks.autoencoderkl_maisi"),
    "DDPMScheduler": ("scheduler", "monai.networks.schedulers.ddpm"),
    "DDIMScheduler": ("scheduler", "monai.networks.schedulers.ddim"),
}
TARGET, REMARK = "_target_", "_desc_"


class BundleError(ValueError):
    """A folder that is no bundle that can be read: incomplete, of unknown parts, or code where data was expected."""


class Config:
    """The entries of a bundle's configuration, read one at a time and only when asked for.

    What nothing asks for may hold anything. With `trust_code` the entries asked for are evaluated by MONAI's own
    parser: expressions in them, and whatever they refer to, run as Python.
    """

    def __init__(self, folder: Path, name: str | None = None, *, trust_code: bool = False) -> None:
        self.folder, self.file = folder, _find(folder / "configs", name)
        self.entries: dict[str, Any] = _read(self.file)
        for extra in (self.file.parent / f"{OURS}{suffix}" for suffix in SUFFIXES):
            self.entries |= _read(extra) if extra.is_file() else {}
        self._parser: Any = self._trusted() if trust_code else None

    def metadata(self) -> Mapping[str, Any]:
        """What configs/metadata.json says of the format of the first image that comes out; {} if nothing."""
        file = self.folder / "configs" / "metadata.json"
        described = _read(file) if file.is_file() else {}
        outputs = (described.get("network_data_format") or {}).get("outputs") or {}
        return next((each for each in outputs.values() if each.get("type") == "image"), {})

    def value(self, name: str) -> Any:
        """A plain value, references followed; None where there is no such entry."""
        if name not in self.entries:
            return None
        return self._evaluated(name) if self._parser else self._plain(self.entries[name], name)

    def part(self, role: str) -> Any:
        """The denoiser, the autoencoder or the scheduler, made anew."""
        found = {name: target for name, target in self._targets().items() if KNOWN[target][0] == role}
        if not found:
            classes = ", ".join(name for name, (kind, _) in KNOWN.items() if kind == role)
            entries = self.entries.values()
            other = [str(entry[TARGET]) for entry in entries if isinstance(entry, dict) and TARGET in entry]
            raise BundleError(
                f"{self.file} defines no {role}: expected an entry whose {TARGET} is {classes}, found "
                f"{', '.join(other) or 'none with a class'}. Only these classes are read"
            )
        if len(found) > 1:
            raise BundleError(
                f"{self.file} defines {len(found)} of the kind {role}: {', '.join(found)}; keep one, and write "
                f"null for the others in configs/{OURS}.json"
            )
        ((name, target),) = found.items()
        if self._parser:
            return self._evaluated(name)
        options = self._plain({key: value for key, value in self.entries[name].items() if key != TARGET}, name)
        # flash attention is a way to compute, not a part of the network, and Maisi's refuses to be made without a GPU
        flash = options.pop("use_flash_attention", None)
        try:
            made = getattr(import_module(KNOWN[target][1]), target)(**options)
        except (TypeError, ValueError) as error:
            raise BundleError(f"{self.file}: {name} does not describe a {target}: {error}") from error
        for module in made.modules():
            if flash and hasattr(module, "use_flash_attention"):
                module.use_flash_attention = True
        return made

    def _targets(self) -> dict[str, str]:
        """Class of each entry that is of a known one."""
        classes = {
            name: entry[TARGET]
            for name, entry in self.entries.items()
            if isinstance(entry, dict) and isinstance(entry.get(TARGET), str)
        }
        return {
            name: target.rpartition(".")[2]
            for name, target in classes.items()
            if target.rpartition(".")[2] in KNOWN and (target.startswith("monai.") or "." not in target)
        }

    def _plain(self, value: Any, where: str, trail: tuple[str, ...] = ()) -> Any:
        """The value with all references replaced by what they name; raises for code."""
        if isinstance(value, dict):
            if special := [key for key in map(str, value) if key[:1] == key[-1:] == "_" and key != REMARK]:
                raise self._code(f"{where} has {', '.join(special)}, which make or run something")
            return {key: self._plain(each, f"{where}::{key}", trail) for key, each in value.items() if key != REMARK}
        if isinstance(value, list):
            return [self._plain(each, f"{where}::{number}", trail) for number, each in enumerate(value)]
        if not isinstance(value, str) or value[:1] not in ("$", "%", "@"):
            return value
        if value[0] != "@":
            raise self._code(f"{where} is {value!r}, an expression")
        if value in trail:
            raise BundleError(f"{self.file}: {where} refers to itself: {' -> '.join((*trail, value))}")
        found: Any = self.entries
        for key in value[1:].replace("#", "::").split("::"):
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise BundleError(f"{self.file}: {where} refers to {value}, which is not there") from None
        return self._plain(found, f"{where} -> {value[1:]}", (*trail, value))

    def _code(self, what: str) -> BundleError:
        return BundleError(
            f"{self.file}: {what}. That is code, and bundles are read as data: write it as a plain value, here or in "
            f"configs/{OURS}.json, or trust the author of this bundle with your machine: trust_code=True, --trust-code"
        )

    def _evaluated(self, name: str) -> Any:
        try:
            return self._parser.get_parsed_content(name)
        except Exception as error:  # it is somebody's program
            raise BundleError(f"{self.file}: {name} could not be evaluated: {error}") from error

    def _trusted(self) -> Any:
        from monai.bundle.config_parser import ConfigParser

        parser = ConfigParser(self.entries | {"bundle_root": str(self.folder)})
        if "imports" in self.entries:
            parser.get_parsed_content("imports")
        return parser


def _find(configs: Path, name: str | None) -> Path:
    files = sorted(each for each in configs.glob("*") if each.suffix in SUFFIXES and each.stem not in NO_CONFIGS)
    first = [each for each in files if (name or FIRST) in (each.name, each.stem)]
    wanted = first if first or name else files
    if len(wanted) != 1:
        there = ", ".join(each.name for each in files) or "no .json or .yaml"
        raise FileNotFoundError(
            f"{configs} holds {there}; expected {name or f'{FIRST}.json'}: give the folder of a MONAI bundle, and "
            "config='NAME' where the networks are defined in another file"
        )
    return wanted[0]


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise BundleError(f"{file} holds no table of named entries")
    return found
