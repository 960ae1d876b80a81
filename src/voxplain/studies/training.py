"""Training of the default models: draw phantoms, fit autoencoder and text encoder, encode, fit the denoiser.

Everything lies in one folder and everything resumes: a run that was killed goes on from its last checkpoint, and since
each step draws its batch from (seed, step), it goes on as if nothing had happened. No mask is ever read here: the text
reaches the image through the denoising loss alone.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxplain.datasets.phantom.impressions import all_words
from voxplain.models.latent_diffusion import LatentDiffusion
from voxplain.models.thorax import THORAX, THORAX_2D, TextEncoder, build, build_tokenizer, load, save
from voxplain.studies.levels import Levels
from voxplain.studies.loop import CHANNELS_LAST, Checkpoint, Log, descend, interruptible, set_rate
from voxplain.studies.optimizing import MuonAndAdamW, split
from voxplain.studies.phrases import fit_text_encoder, text_of
from voxplain.studies.pool import FAMILY, Pool
from voxplain.studies.weighing import BANDS, Precision, apart, contrast, evening, heard

WORTH = {"small": 0.5, "moderate": 1.0, "large": 2.0}  # cases that say and show more are drawn more often
CALIBRATING = 1000  # cases that the latents' scale is taken from
HAZE = (-0.94, -0.25)  # normalized intensities around a voxel of lung: between air and soft tissue
HAZE_WEIGHT = 4.0
NOWHERE = "random numbers"
TAUGHT = """- The text encoder learned the phantom grammar first, from text alone: each word tells what its phrase
  speaks of (finding, negation, side, lobe, degree). So the words of a phrase know of each other."""
KEPT = "- The text encoder is that of the model it begins from, trained on."
DATA = ("data (SHA-256 of the first 100 phantoms)", "data, siblings that differ in one finding (the same)")


@dataclass(frozen=True)
class Settings:
    """What a training depends on; written beside its checkpoints and into the model card."""

    name: str = "thorax"
    seed: int = 0
    cases: int = 8000  # phantoms in each of the two pools
    autoencoder_steps: int = 3000
    detail_steps: int = 700  # of the autoencoder after those, on squared errors, and most of all in haze
    autoencoder_batch: int = 4
    autoencoder_lr: float = 1e-3
    text_steps: int = 1500
    text_batch: int = 64
    text_lr: float = 1e-3
    denoiser_steps: int = 12000
    denoiser_batch: int = 16
    denoiser_lr: float = 5e-4
    text_lr_factor: float = 0.1  # of the text encoder while the denoiser is trained
    warmup: int = 100
    drop_text: float = 0.1  # share of families that see the empty text, for classifier-free guidance
    ema: float = 0.998
    contrast: float = 6.0  # weight, at the first step, of the error that siblings do not share; 1 at the last


PRESETS = {
    "thorax": (THORAX, Settings()),
    "thorax-2d": (
        THORAX_2D,
        Settings(
            "thorax-2d",
            cases=4000,
            autoencoder_steps=1500,
            detail_steps=0,
            autoencoder_batch=16,
            denoiser_steps=4000,
            denoiser_lr=1e-3,
        ),
    ),
}


def train(
    name: str = "thorax",
    out: str | os.PathLike[str] = "checkpoints",
    *,
    progress: Callable[[str, int, int, float, float], None] | None = None,
    workers: int = 1,
    weights: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Path:
    """Train `name` ("thorax", "thorax-2d") in the folder `out`/`name`, from where it stopped; the weights' folder.

    `start` names a model whose autoencoder stays and whose denoiser is trained on, with a text encoder made anew, or
    its own where `text_steps` is 0.
    `settings` replace fields of `Settings`; they and `start` must not change between resumptions, except step counts;
    fewer steps than are done already pack the weights as they are.
    `progress(stage, done, steps, loss, seconds left)` is called at every step. The device is CUDA where there is one.
    """
    if name not in PRESETS:
        raise ValueError(f"no model {name!r} to train; there are {', '.join(PRESETS)}")
    config, preset = PRESETS[name]
    chosen = replace(preset, **settings)
    if chosen.denoiser_batch % FAMILY or chosen.cases % FAMILY:
        given = f"denoiser_batch = {chosen.denoiser_batch} and cases = {chosen.cases}"
        raise ValueError(f"{given}: give multiples of {FAMILY}, the cases of a family")
    torch.manual_seed(chosen.seed)
    pipeline = load(Path(start)) if start else build({**config, "name": name}, build_tokenizer(all_words()))
    if pipeline.config["image_shape"] != config["image_shape"]:
        raise ValueError(f"{start} makes images of {pipeline.config['image_shape']}, {name} of {config['image_shape']}")
    # the levels that are drawn are those that are sampled; layers are to be chosen for the weights to come
    pipeline.config |= {name: config[name] for name in ("finest", "loudest")} | {"localizing_layers": []}
    origin = f"`{start}`, weights {pipeline.weights_hash}" if start else NOWHERE
    begun = {"begins from": origin, "text encoder": "made anew" if chosen.text_steps else "kept"}
    folder = Path(out) / (name if chosen.seed == 0 else f"{name}-seed{chosen.seed}")
    folder.mkdir(parents=True, exist_ok=True)
    _remember(folder / "settings.json", {**asdict(chosen), **begun})
    volumes = len(config["image_shape"]) == 3
    pools = [
        Pool(folder.parent / f"{name}-{kind}", chosen.cases, workers, volumes=volumes, alike=alike)
        for kind, alike in (("pool", False), ("alike-pool", True))
    ]
    for pool in pools:
        pool.fill(progress)
    if start and chosen.text_steps:
        pipeline.text_encoder = TextEncoder(len(pipeline.tokenizer.pieces), **pipeline.config["text"])
    assert isinstance(pipeline.text_encoder, TextEncoder)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_(True).train()
    for part in (pipeline.autoencoder, pipeline.unet):  # a quarter to half of a step's time
        part.to(memory_format=CHANNELS_LAST[len(config["image_shape"])])  # type: ignore[call-overload]
    log = Log(folder / "log.jsonl", progress)
    with interruptible() as stopped:
        fit_text_encoder(
            pipeline.text_encoder,
            pipeline.tokenizer,
            pools[0].cases,
            folder / "text.pt",
            log,
            stopped,
            seed=chosen.seed,
            steps=chosen.text_steps,
            batch=chosen.text_batch,
            rate=chosen.text_lr,
            warmup=chosen.warmup,
        )
        if not start:
            _fit_autoencoder(pipeline, pools[0], chosen, folder, log, stopped)
            _calibrate(pipeline, pools[0])
        drawn = [
            Drawn(pool, _encode(pipeline, pool, folder / f"latents-{number}.pt", progress))
            for number, pool in enumerate(pools)
        ]
        averaged, reached = _fit_denoiser(pipeline, drawn, chosen, folder, log, stopped)
    chosen = replace(chosen, denoiser_steps=reached)
    for parameter, mean in zip(_learned(pipeline).parameters(), averaged, strict=True):
        parameter.data.copy_(mean)
    target = Path(weights) if weights else folder / "weights"
    save(pipeline, target, _card(chosen, origin, [each.hash() for each in pools], pipeline))
    return target


def _remember(path: Path, settings: dict[str, Any]) -> None:
    """Keep what a folder is trained with; ValueError where it was begun with anything else but step counts."""
    if not path.exists():
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(settings, indent=1) + "\n")
        partial.replace(path)
    kept = json.loads(path.read_text())
    if apart := [name for name in settings if not name.endswith("_steps") and kept.get(name) != settings[name]]:
        told = ", ".join(f"{name} = {kept.get(name)!r}, now {settings[name]!r}" for name in apart)
        raise ValueError(f"{path.parent} was begun with {told}; go on as it was begun, or give another `out`")


def _card(settings: Settings, origin: str, hashes: list[str], pipeline: LatentDiffusion) -> str:
    """What a user of the weights has to know."""
    size = sum(p.numel() for p in pipeline.parameters()) / 1e6
    command = f"voxplain train {settings.name} --seed {settings.seed} --steps {settings.denoiser_steps}"
    command += "" if origin == NOWHERE else " --from MODEL" + " --keep-text" * (settings.text_steps == 0)
    fresh = origin == NOWHERE
    facts = {"begins from": origin, **asdict(settings)}
    facts = {name: value for name, value in facts.items() if fresh or not name.startswith(("autoencoder", "detail"))}
    facts |= {what: f"`{value}`" for what, value in zip(DATA, hashes, strict=True)}
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""# {settings.name}

A small text-to-image latent diffusion model ({size:.1f} M parameters) of procedural chest phantoms, made for looking
into such models. **No patient data; not for diagnosis; it has never seen a real chest.**

- Parts: MONAI `AutoencoderKL` on 4-voxel patches, MONAI `DiffusionModelUNet` with cross-attention on all levels, a
  two-layer text transformer with 96 positions. Padding positions are keys like any other.
- Words: the phantom grammar alone (`vocab.json` lists them). Other words are spelled in letters and mean nothing here.
{TAUGHT if settings.text_steps else KEPT}
- Attention was never trained on masks: text reaches the image through the denoising loss alone.
- Licence: Apache-2.0, like the code.

| made by | `{command}` |
| --- | --- |
{rows}

Measured figures, with their controls: `bench/results/` in the repository, and its README.
"""


def _fit_autoencoder(pipeline: LatentDiffusion, pool: Pool, settings: Settings, folder: Path, log, stopped) -> None:
    """First the absolute error, then the squared one weighted by haze, each with a rate of its own.

    The absolute error forgives a network that leaves thin vessels out and smears small nodules: lung is a sixteenth of
    the volume.
    """
    network, first_part = pipeline.autoencoder, settings.autoencoder_steps
    low, high = pipeline.config["intensity"]
    optimizer = torch.optim.AdamW(network.parameters(), settings.autoencoder_lr, weight_decay=1e-4)
    state = Checkpoint(folder / "autoencoder.pt", {"network": network, "optimizer": optimizer})
    first, steps = state.load(), first_part + settings.detail_steps
    if first == 0:
        network.start_from(_normalized(pool.batch(np.arange(min(48, pool.size))), low, high).to(pipeline.device))  # type: ignore[operator]
    log.begin("autoencoder", first, steps)
    for step in range(first, steps):
        detail = step >= first_part
        part = (step - first_part, settings.detail_steps) if detail else (step, first_part)
        set_rate(optimizer, settings.autoencoder_lr, *part, settings.warmup)
        rng = np.random.default_rng((settings.seed, 1, step))
        images = pool.batch(rng.integers(0, pool.size, settings.autoencoder_batch)).to(pipeline.device)
        images = _normalized(images, low, high)
        torch.manual_seed(int(rng.integers(2**62)))  # the latents' noise
        with torch.autocast(pipeline.device.type, torch.bfloat16):
            made, mean, deviation = network(images)
        mean, deviation = mean.float(), deviation.float()
        prior = 0.5 * (mean**2 + deviation**2 - 2 * deviation.log() - 1).mean()
        error = made.float() - images
        loss = 20 * (_haze_weights(images) * error.square()).mean() if detail else error.abs().mean()
        descend(loss + 1e-6 * prior, optimizer, network)
        log.step(step, error.abs().mean().item() * (high - low) / 2)
        state.settle(step, steps, stopped)


def _haze_weights(images: Float[Tensor, "batch 1 *spatial"]) -> Float[Tensor, "batch 1 *spatial"]:
    """1 a voxel on average; more where the mean of the 7 voxels around each way lies between air and soft tissue."""
    pool = {2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}[images.ndim - 2]
    around = pool(images, 7, 1, 3, count_include_pad=False)
    weights = 1 + (HAZE_WEIGHT - 1) * ((around > HAZE[0]) & (around < HAZE[1])).float()
    return weights / weights.mean()


def _calibrate(pipeline: LatentDiffusion, pool: Pool) -> None:
    """Set the pipeline's latent scale so that latents have zero mean and unit variance.

    One scale for all channels: the mean of a patch, where findings show, then stands out of the noise long before its
    texture does, and at high noise the loss is about little else.
    """
    pipeline.calibrate(0.0, 1.0)
    latents = torch.cat(list(_latents(pipeline, pool, min(pool.size, CALIBRATING))))
    axes = [0, *range(2, latents.ndim)]
    mean, deviation = latents.mean(axes), latents.std(axes)
    scale = (1 / deviation.square().mean().sqrt()).expand(latents.shape[1])
    pipeline.calibrate(mean.tolist(), scale.tolist(), (deviation * scale).tolist())


def _encode(pipeline: LatentDiffusion, pool: Pool, path: Path, progress) -> Float[Tensor, "cases channels *grid"]:
    """The latents of the pool, on the scale that the pipeline has; kept in half precision."""
    if not path.exists():
        parts: list[Tensor] = []
        for part in _latents(pipeline, pool, pool.size):
            parts.append(part.half())
            if progress:
                progress("latents", sum(map(len, parts)), pool.size, float("nan"), float("nan"))
        torch.save(torch.cat(parts), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return torch.load(path, weights_only=True)


@torch.no_grad()
def _latents(pipeline: LatentDiffusion, pool: Pool, cases: int) -> Iterator[Float[Tensor, "batch channels *grid"]]:
    for first in range(0, cases, 8):
        yield pipeline.to_latent(pool.batch(np.arange(first, min(first + 8, cases))).to(pipeline.device)).cpu()


class Drawn:
    """Phantoms of a pool and their latents, in families."""

    def __init__(self, pool: Pool, latents: Float[Tensor, "cases channels *grid"]) -> None:
        self.pool, self.latents = pool, latents
        worth = [0.4 + sum(WORTH.get(f.severity or "", 1.0) for f in case.findings) for case in pool.cases]
        families = np.reshape(worth, (-1, FAMILY)).sum(1) ** (not pool.alike)  # alike: all are worth the same
        self.shares = families / families.sum()


def _fit_denoiser(
    pipeline: LatentDiffusion, pools: list[Drawn], settings: Settings, folder: Path, log, stopped
) -> tuple[list[Tensor], int]:
    """The averaged parameters of the denoiser and the text encoder, and how many steps they have behind them."""
    network, steps, device = _learned(pipeline), settings.denoiser_steps, pipeline.device
    matrices, others = split(pipeline.unet, plain=("conv_in", "out", "time_embed"))
    words = {"params": list(pipeline.text_encoder.parameters()), "factor": settings.text_lr_factor}
    optimizer = MuonAndAdamW(matrices, [{"params": others}, words], settings.denoiser_lr)
    sampled, precision = Levels(pipeline), Precision(pipeline.latent_spread, pipeline.latent_shape).to(device)
    averaged = nn.ParameterList([p.detach().clone() for p in network.parameters()])
    parts = {"network": network, "optimizer": optimizer, "averaged": averaged, "precision": precision}
    state = Checkpoint(folder / "denoiser.pt", parts)
    begin = state.load()
    log.begin("denoiser", begin, steps)
    for step in range(begin, steps):
        set_rate(optimizer, settings.denoiser_lr, step, steps, settings.warmup)
        rng = np.random.default_rng((settings.seed, 2, step))
        latents, texts = [], []
        for number in range(settings.denoiser_batch // FAMILY):
            drawn = pools[(step // 2 + number) % len(pools)]
            rows = FAMILY * int(rng.choice(len(drawn.shares), p=drawn.shares)) + np.arange(FAMILY)
            silent = rng.random() < settings.drop_text
            texts += ["" if silent else text_of(drawn.pool.cases[row], rng).text for row in rows]
            latents.append(drawn.latents[torch.from_numpy(rows)].float())
        clean, families = torch.cat(latents).to(device), len(latents)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        # Siblings share noise and level: what they have in common cancels out of the gradient of what text tells
        # apart, which is a hundredth of the loss and would drown in it.
        noise = torch.randn((families, *clean.shape[1:]), generator=generator)
        noise = noise.repeat_interleave(FAMILY, 0).to(device)
        pairs = apart(clean.unflatten(0, (-1, FAMILY))).cpu()  # [families, pairs]
        numbers = sampled.draw(step, pairs, generator)
        each = sampled.at(numbers)  # [families]
        levels = each.repeat_interleave(FAMILY).to(device)
        noisy, target = pipeline.add_noise(clean, noise, levels), pipeline.velocity(clean, noise, levels)
        with torch.autocast(device.type, torch.bfloat16):
            ids = torch.tensor([pipeline.tokenize(text).ids for text in texts], device=device)
            predicted = pipeline(noisy, levels.float(), pipeline.text_encoder(ids))
        error = (predicted.float() - target) / pipeline.scale_of_error(levels.float(), noisy)
        error = error.unflatten(0, (-1, FAMILY))  # [families, siblings, channels, *grid]
        cells = precision.weigh(error, (BANDS * numbers).long().clamp(max=BANDS - 1))
        more = heard(sampled.noise[each, None], pairs) * evening(pairs, clean[0].numel())
        more = (settings.contrast - 1) * (1 - step / steps) * more.to(device)
        loss = (cells * error.square()).mean() + (cells * contrast(error, more)).mean()
        descend(loss, optimizer, network)
        decay = min(settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, parameter in zip(averaged, network.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)
        log.step(step, (cells * error.square()).mean().item())
        state.settle(step, steps, stopped)
    return [p.detach() for p in averaged], max(begin, steps)


def _learned(pipeline: LatentDiffusion) -> nn.ModuleList:
    return nn.ModuleList([pipeline.unet, pipeline.text_encoder])


def _normalized(images: Tensor, low: float, high: float) -> Tensor:
    return (images.clamp(low, high) - low) * (2 / (high - low)) - 1
