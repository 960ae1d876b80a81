"""From the folder of a MONAI bundle to a pipeline that is ready to generate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from voxplain.models.bundle.config import BundleError, Config
from voxplain.models.bundle.text import load_text
from voxplain.models.bundle.weights import SCALE, fill, fingerprint, stored
from voxplain.models.latent_diffusion import LatentDiffusion

FACTS = {  # what may be said by an argument, in configs/voxplain.json, or by the bundle's own configuration
    "image_shape": "sizes of an image, slowest axis first",
    "latent_shape": "channels and sizes of a latent",
    SCALE: "what latents were multiplied by in training; 1 if by nothing",
    "model_range": "lowest and highest value that the autoencoder was trained on, as [0, 1] or [-1, 1]",
    "intensity": "these two values in physical units, as [-1000, 1000]; default: model_range",
    "unit": "of the intensity; default: relative intensity",
    "spacing": "mm along each axis; default: unknown",
    "orientation": "toward which side of the patient each axis grows, as 'RAS'; default: 'SPL'",
    "guidance_scale": "default of generate; 1, no guidance",
    "steps": "default of generate; 50",
    "text_positions": "positions that the text encoder reads; default: its limit",
    "pooled": "how the text becomes one vector: pooler, first or mean; default: it does not",
    "inputs": "further inputs of the denoiser, as {'spacing_tensor': [1, 1, 1]}",
    "localizing_layers": "the layers of recipe 'selected'; default: none",
}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
INPUTS = {  # attribute of the denoiser -> the argument that it then wants
    "num_class_embeds": "class_labels",
    "include_top_region_index_input": "top_region_index_tensor",
    "include_bottom_region_index_input": "bottom_region_index_tensor",
    "include_spacing_input": "spacing_tensor",
}
DOWN = ("AEKLDownsample", "MaisiDownsample")  # each halves the grid of the autoencoder


def load(
    folder: str | Path,
    *,
    text_encoder: str | Path,
    trust_code: bool = False,
    config: str | None = None,
    weights: Mapping[str, str] | None = None,
    **facts: Any,
) -> LatentDiffusion:
    """A pipeline from a MONAI bundle and a text encoder's folder: float32, in evaluation mode, without gradients.

    The networks are the entries of configs/inference.json (or of `config`) whose class is known: a denoiser, an
    autoencoder, a scheduler. Their values have to be plain; expressions are refused unless `trust_code`, which runs
    them. Weights are the files in models/ whose names fit; `weights` says which file is the "denoiser" or the
    "autoencoder" where several do. `facts` are those of `FACTS`; they go before configs/voxplain.json, and this before
    the configuration itself.

    Sampling is deterministic DDIM with evenly spaced levels, whatever sampler the bundle names; of its scheduler the
    noise levels, the kind of prediction and the clipping are taken. Raises BundleError (a ValueError) for what cannot
    be read or does not fit, and FileNotFoundError for what is missing.
    """
    folder = Path(folder)
    settings = Config(folder, config, trust_code=trust_code)
    known = _facts(settings, facts)
    unet, autoencoder, scheduler = (settings.part(role) for role in ("denoiser", "autoencoder", "scheduler"))
    wanted = getattr(unet, "with_conditioning", False)
    if not wanted:
        raise BundleError(f"{settings.file}: the denoiser reads no text (with_conditioning is not true)")
    encoder, words = load_text(Path(text_encoder), known["text_positions"], known["pooled"])
    _check_width(unet, encoder.width)

    candidates, roles = stored(folder), {"denoiser": unet, "autoencoder": autoencoder}
    if strange := sorted(set(weights or {}) - set(roles)):
        raise BundleError(f"weights for {', '.join(strange)}; give them for {' or '.join(roles)}")
    used = [fill(network, role, candidates, (weights or {}).get(role)) for role, network in roles.items()]
    scales = [each.scale for each in used if each.scale is not None]
    scale = known[SCALE] if known[SCALE] is not None else next(iter(scales), None)
    latent_shape, image_shape = _shapes(known, unet, autoencoder)
    _need({SCALE: scale, "image_shape": image_shape, "model_range": known["model_range"]}, settings)
    assert latent_shape is not None and image_shape is not None
    _check_shapes(latent_shape, image_shape, unet, autoencoder)
    _check_inputs(unet, known["inputs"] or {})
    if str(scheduler.prediction_type) not in PREDICTIONS:
        raise BundleError(f"prediction_type {scheduler.prediction_type}: give one of {', '.join(PREDICTIONS)}")

    complete = {
        **{name: value for name, value in known.items() if value is not None and name != SCALE},
        "name": folder.resolve().name,
        "image_shape": list(image_shape),
        "latent_shape": list(latent_shape),
        "latent_shift": 0.0,
        "latent_scale": scale,
        "spacing": _each(known["spacing"], len(image_shape)),
        "intensity": known["intensity"] or known["model_range"],
        "unit": known["unit"] or "relative intensity",
        "coordinates": False,
        "schedule": {"kind": type(scheduler).__name__, "steps": len(scheduler.alphas_cumprod)},
        "prediction": PREDICTIONS[str(scheduler.prediction_type)],
        "clip": list(scheduler.clip_sample_values) if scheduler.clip_sample else None,
        "steps": known["steps"] or 50,
        "guidance_scale": 1.0 if known["guidance_scale"] is None else known["guidance_scale"],
        "localizing_layers": known["localizing_layers"] or [],
    }
    pipeline = LatentDiffusion(unet, autoencoder, encoder, words, complete, alphas=scheduler.alphas_cumprod.float())
    files = {each.file for each in used}
    files |= {each for each in Path(text_encoder).rglob("*") if each.suffix in (".safetensors", ".bin")}
    pipeline.weights_hash = fingerprint(sorted(files))
    return _settled(pipeline)


def _facts(settings: Config, given: Mapping[str, Any]) -> dict[str, Any]:
    """Each of `FACTS`: as given, else as configured, else as the metadata has it, else None."""
    if strange := sorted(set(given) - set(FACTS)):
        raise TypeError(f"unknown arguments {', '.join(strange)}; known: {', '.join(FACTS)}")
    known = {name: given[name] if given.get(name) is not None else settings.value(name) for name in FACTS}
    said = settings.metadata()
    if known["image_shape"] is None and known["latent_shape"] is None and _numbers(said.get("spatial_shape")):
        known["image_shape"] = said["spatial_shape"]
    if known["model_range"] is None and _numbers(said.get("value_range")) and len(said["value_range"]) == 2:
        known["model_range"] = said["value_range"]
    return known


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, int | float) for each in value)


def _need(found: Mapping[str, Any], settings: Config) -> None:
    missing = [f"{name} ({FACTS[name]})" for name, value in found.items() if value is None]
    if missing:
        raise BundleError(
            f"{settings.file} does not say: {'; '.join(missing)}. Give them as arguments, or write them to "
            "configs/voxplain.json in the bundle, as in {" + ", ".join(f'"{name}": ...' for name in found) + "}"
        )


def _shapes(
    known: Mapping[str, Any], unet: Any, autoencoder: nn.Module
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Of latents and images; each follows from the other, as the autoencoder halves the grid some times."""
    factor = 2 ** sum(type(module).__name__ in DOWN for module in autoencoder.modules())
    image, latent = (
        known[name] and tuple(int(size) for size in known[name]) for name in ("image_shape", "latent_shape")
    )
    if image is None and latent is not None:
        image = tuple(size * factor for size in latent[1:])
    if latent is None and image is not None:
        if any(size % factor for size in image):
            raise BundleError(f"image_shape {image} cannot be cut into latent cells of {factor} a side")
        latent = (int(unet.in_channels), *(size // factor for size in image))
    if image and latent and tuple(size * factor for size in latent[1:]) != image:
        raise BundleError(f"image_shape {image} does not fit latent_shape {latent}: cells are {factor} voxels a side")
    return latent, image


def _check_shapes(latent: Sequence[int], image: Sequence[int], unet: Any, autoencoder: Any) -> None:
    axes = unet.get_parameter("conv_in.conv.weight").ndim - 2
    if axes != len(image):
        raise BundleError(f"the denoiser works in {axes} dimensions, but image_shape is {tuple(image)}")
    made = int(getattr(autoencoder, "latent_channels", latent[0]))
    if not made == latent[0] == unet.in_channels == unet.out_channels:
        raise BundleError(
            f"the autoencoder makes {made} channels, the latent has {latent[0]}, and the denoiser takes "
            f"{unet.in_channels} and gives {unet.out_channels}; all have to be equal"
        )
    coarsest = 2 ** (len(unet.block_out_channels) - 1)
    if any(size % coarsest for size in latent[1:]):
        raise BundleError(f"a latent of {tuple(latent[1:])} cannot be halved {len(unet.block_out_channels) - 1} times")


def _check_width(unet: nn.Module, width: int) -> None:
    keys = [module for path, module in unet.named_modules() if path.endswith("attn2.to_k")]
    wanted = {int(module.in_features) for module in keys if isinstance(module, nn.Linear)}
    if wanted != {width}:
        raise BundleError(
            f"the text encoder makes vectors of {width} numbers, but the denoiser's cross_attention_dim is "
            f"{', '.join(map(str, sorted(wanted))) or 'not to be found'}; give the one that it was trained with"
        )


def _check_inputs(unet: nn.Module, given: Mapping[str, Any]) -> None:
    wanted = {argument for name, argument in INPUTS.items() if getattr(unet, name, None)}
    if wanted != set(given):
        raise BundleError(
            f"beside latent, time and text the denoiser takes {', '.join(sorted(wanted)) or 'nothing'}, but inputs are "
            f"{', '.join(sorted(given)) or 'none'}; give inputs={{NAME: VALUE}} with a value of one sample for each"
        )


def _each(value: Any, axes: int) -> list[float] | None:
    return [float(value)] * axes if isinstance(value, int | float) else value and [float(each) for each in value]


def _settled(pipeline: LatentDiffusion) -> LatentDiffusion:
    """In evaluation mode, without gradients, and float32; MONAI's flash attention would drop out weights even then."""
    module: Any
    for module in pipeline.modules():
        if getattr(module, "use_flash_attention", False) and hasattr(module, "dropout_rate"):
            module.dropout_rate = 0.0
        if hasattr(module, "norm_float16"):
            module.norm_float16 = False
    return pipeline.float().eval().requires_grad_(False)
