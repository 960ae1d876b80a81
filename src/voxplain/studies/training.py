"""Training of the default models: draw phantoms, fit the autoencoder, encode, fit the denoiser with its text encoder.

Everything lies in one folder and everything resumes: a run that was killed goes on from its last checkpoint, and since
each step draws its batch from (seed, step), it goes on as if nothing had happened. No mask is ever read here: the text
reaches the image through the denoising loss alone.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxplain.datasets.phantom.cases import Case, plan_siblings
from voxplain.datasets.phantom.findings import Plan
from voxplain.datasets.phantom.impressions import all_words, compose, request
from voxplain.models.latent_diffusion import LatentDiffusion
from voxplain.models.thorax import THORAX, THORAX_2D, build, build_tokenizer, save
from voxplain.studies.loop import CHANNELS_LAST, Checkpoint, Log, descend, interruptible, set_rate
from voxplain.studies.pool import Pool

# How often a text is of each kind: the levels of `compose`, and "full", a bare phrase that names all there is to name
LEVELS = {"full": 0.45, "composed": 0.35, "template": 0.1, "label": 0.1}
WORTH = {"small": 0.5, "moderate": 1.0, "large": 2.0}  # cases that say and show more are drawn more often
TILT = (0.7, 1.5)  # exponents of the uniform numbers that noise levels are drawn from, of every other family
HAZE = (-0.94, -0.25)  # normalized intensities around a voxel of lung: between air and soft tissue
HAZE_WEIGHT = 4.0
ALIKE = len(plan_siblings(np.random.default_rng(0)))
SMALLEST_CHANGE = 1e-4  # mean square of the latent's; less is a finding for which there was no room
CHECKPOINT_SECONDS = 300
FIRST_POOL, LATER_POOL = "data (SHA-256 of the first 100 phantoms)", "data from `alike_from` on (the same)"


@dataclass(frozen=True)
class Settings:
    """What a training depends on; written beside its checkpoints and into the model card."""

    name: str = "thorax"
    seed: int = 0
    cases: int = 8000  # phantoms in the pool
    siblings: int = 4  # cases in a row that share their anatomy and differ in their findings
    autoencoder_steps: int = 3000
    detail_steps: int = 700  # of the autoencoder after those, on squared errors, and most of all in haze
    autoencoder_batch: int = 4
    autoencoder_lr: float = 1e-3
    denoiser_steps: int = 12000
    alike_from: int = 8000  # the step from which siblings differ in one finding alone, with a rate of its own
    denoiser_batch: int = 8
    denoiser_lr: float = 1e-3
    alike_lr: float = 2.5e-4
    text_lr_factor: float = 0.4  # on the text encoder, whose words run together at the denoiser's rate
    warmup: int = 200
    drop_text: float = 0.1  # share of rows that see the empty text, for classifier-free guidance
    ema: float = 0.999
    contrast: float = 6.0  # weight, at the first step, of the error that siblings do not share; 1 at the last
    alike_contrast: float = 0.4  # weight, on top of the plain loss, of siblings that differ in one finding; 0 at last


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
            alike_from=4000,
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
    **settings: Any,
) -> Path:
    """Train `name` ("thorax", "thorax-2d") in the folder `out`/`name`, from where it stopped; the weights' folder.

    `settings` replace fields of `Settings` and must not change between resumptions, except step counts; fewer steps
    than are done already pack the weights as they are.
    `progress(stage, done, steps, loss, seconds left)` is called at every step. The device is CUDA where there is one.
    """
    if name not in PRESETS:
        raise ValueError(f"no model {name!r} to train; there are {', '.join(PRESETS)}")
    config, preset = PRESETS[name]
    chosen = replace(preset, **settings)
    later = chosen.denoiser_steps > chosen.alike_from
    for siblings in (chosen.siblings, *[ALIKE] * later):
        if chosen.denoiser_batch % siblings or chosen.cases % siblings:
            given = f"denoiser_batch = {chosen.denoiser_batch} and cases = {chosen.cases}"
            raise ValueError(f"{given}: give multiples of siblings = {siblings}")
    folder = Path(out) / (name if chosen.seed == 0 else f"{name}-seed{chosen.seed}")
    folder.mkdir(parents=True, exist_ok=True)
    config = {**config, "name": name}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    volumes = len(config["image_shape"]) == 3
    pool = Pool(folder.parent / f"{name}-pool", chosen.cases, chosen.siblings, workers, volumes=volumes)
    pool.fill(progress)
    pools = [pool]
    if later:
        place = folder.parent / f"{name}-alike-pool"
        pools.append(Pool(place, chosen.cases, ALIKE, workers, volumes=volumes, alike=True))
        pools[-1].fill(progress)
    torch.manual_seed(chosen.seed)
    pipeline = build(config, build_tokenizer(all_words())).to(device)
    for part in (pipeline.autoencoder, pipeline.unet):  # a quarter to half of a step's time
        part.to(memory_format=CHANNELS_LAST[len(config["image_shape"])])  # type: ignore[call-overload]
    log = Log(folder / "log.jsonl", progress)
    with interruptible() as stopped:
        _fit_autoencoder(pipeline, pool, chosen, folder, log, stopped)
        drawn = [Drawn(pool, _calibrate(pipeline, pool, folder / "latents.pt"))]
        drawn += [Drawn(other, _encode(pipeline, other, folder / "latents-alike.pt")) for other in pools[1:]]
        averaged, reached = _fit_denoiser(pipeline, drawn, chosen, folder, log, stopped)
    chosen = replace(chosen, denoiser_steps=reached)
    for parameter, mean in zip(_learned(pipeline).parameters(), averaged, strict=True):
        parameter.data.copy_(mean)
    target = Path(weights) if weights else folder / "weights"
    save(pipeline, target, _card(chosen, [each.hash() for each in pools], pipeline))
    return target


def _card(settings: Settings, hashes: list[str], pipeline: LatentDiffusion) -> str:
    """What a user of the weights has to know."""
    size = sum(p.numel() for p in pipeline.parameters()) / 1e6
    command = f"voxplain train {settings.name} --seed {settings.seed} --steps {settings.denoiser_steps}"
    facts = asdict(settings)
    facts |= dict(zip((FIRST_POOL, LATER_POOL), (f"`{value}`" for value in hashes), strict=False))
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""# {settings.name}

A small text-to-image latent diffusion model ({size:.1f} M parameters) of procedural chest phantoms, made for looking
into such models. **No patient data; not for diagnosis; it has never seen a real chest.**

- Parts: MONAI `AutoencoderKL` on 4-voxel patches, MONAI `DiffusionModelUNet` with cross-attention on all levels, a
  two-layer text transformer with 96 positions. Padding positions are keys like any other.
- Words: the phantom grammar alone (`vocab.json` lists them). Other words are spelled in letters and mean nothing here.
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
    state = Checkpoint(folder / "autoencoder.pt", {"network": network, "optimizer": optimizer}, CHECKPOINT_SECONDS)
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
        if stopped() or state.due() or step == steps - 1:
            state.save(step + 1)
        if stopped():
            raise KeyboardInterrupt


def _haze_weights(images: Float[Tensor, "batch 1 *spatial"]) -> Float[Tensor, "batch 1 *spatial"]:
    """1 a voxel on average; more where the mean of the 7 voxels around each way lies between air and soft tissue."""
    pool = {2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}[images.ndim - 2]
    around = pool(images, 7, 1, 3, count_include_pad=False)
    weights = 1 + (HAZE_WEIGHT - 1) * ((around > HAZE[0]) & (around < HAZE[1])).float()
    return weights / weights.mean()


def _calibrate(pipeline: LatentDiffusion, pool: Pool, path: Path) -> Float[Tensor, "cases channels *grid"]:
    """All latents of the pool; the pipeline's latent scale is set so that they have zero mean and unit variance.

    One scale for all channels: the mean of a patch, where findings show, then stands out of the noise long before its
    texture does, and at high noise the loss is about little else.
    """
    if not path.exists():
        pipeline.calibrate(0.0, 1.0)
    latents = _encode(pipeline, pool, path)
    axes = [0, *range(2, latents.ndim)]
    mean, deviation = latents.mean(axes), latents.std(axes)
    scale = (1 / deviation.square().mean().sqrt()).expand(latents.shape[1])
    pipeline.calibrate(mean.tolist(), scale.tolist(), (deviation * scale).tolist())
    return latents.sub_(pipeline.latent_shift.cpu()).mul_(pipeline.latent_scale.cpu())


def _encode(pipeline: LatentDiffusion, pool: Pool, path: Path) -> Float[Tensor, "cases channels *grid"]:
    """The latents of the pool, on the scale that the pipeline has; kept in half precision."""
    if not path.exists():
        with torch.no_grad():
            parts = [pipeline.to_latent(pool.batch(np.arange(b, min(b + 8, pool.size))).to(pipeline.device)).cpu()
                     for b in range(0, pool.size, 8)]  # fmt: skip
        torch.save(torch.cat(parts).half(), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return torch.load(path, weights_only=True).float()


class Drawn:
    """Phantoms of a pool and their latents, in families."""

    def __init__(self, pool: Pool, latents: Float[Tensor, "cases channels *grid"]) -> None:
        self.pool, self.latents = pool, latents
        worth = [0.4 + sum(WORTH.get(f.severity or "", 1.0) for f in case.findings) for case in pool.cases]
        families = np.reshape(worth, (-1, pool.siblings)).sum(1) ** (not pool.alike)  # alike: all are worth the same
        self.shares = families / families.sum()


def _fit_denoiser(
    pipeline: LatentDiffusion, pools: list[Drawn], settings: Settings, folder: Path, log, stopped
) -> tuple[list[Tensor], int]:
    """The averaged parameters of the denoiser and the text encoder, and how many steps they have behind them."""
    network, steps, device = _learned(pipeline), settings.denoiser_steps, pipeline.device
    factors = (1.0, settings.text_lr_factor)
    groups = [{"params": list(part.parameters()), "factor": f} for part, f in zip(network, factors, strict=True)]
    optimizer = torch.optim.AdamW(groups, settings.denoiser_lr, weight_decay=1e-3, fused=True)
    averaged = nn.ParameterList([p.detach().clone() for p in network.parameters()])
    parts = {"network": network, "optimizer": optimizer, "averaged": averaged}
    state = Checkpoint(folder / "denoiser.pt", parts, CHECKPOINT_SECONDS)
    begin, turn = state.load(), min(settings.alike_from, steps)
    log.begin("denoiser", begin, steps)
    names, shares = list(LEVELS), list(LEVELS.values())
    for step in range(begin, steps):
        late = step >= turn
        drawn = pools[late]
        family = drawn.pool.siblings
        part, length = (step - turn, steps - turn) if late else (step, turn)
        set_rate(optimizer, settings.alike_lr if late else settings.denoiser_lr, part, length, settings.warmup)
        rng = np.random.default_rng((settings.seed, 2, step))
        chosen = rng.choice(len(drawn.shares), settings.denoiser_batch // family, p=drawn.shares)
        picked = (chosen[:, None] * family + np.arange(family)).ravel()
        texts = [
            ""
            if rng.random() < settings.drop_text
            else _text(drawn.pool.cases[i], rng, str(rng.choice(names, p=shares)))
            for i in picked
        ]
        clean = drawn.latents[torch.from_numpy(picked)].to(device)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        # Siblings share noise and level: what they have in common cancels out of the gradient of what text tells
        # apart, which is a hundredth of the loss and would drown in it.
        noise = torch.randn((len(chosen), *clean.shape[1:]), generator=generator)
        noise = noise.repeat_interleave(family, 0).to(device)
        # Half of the families at high noise, where the text decides, and half at low noise, where the image is cleared
        tilt = torch.tensor(TILT).repeat(len(chosen))[: len(chosen)]
        uniform = (torch.rand(len(chosen), generator=generator) ** tilt).repeat_interleave(family)
        levels = (uniform * len(pipeline.alphas)).long().to(device)
        noisy, target = pipeline.add_noise(clean, noise, levels), pipeline.velocity(clean, noise, levels)
        with torch.autocast(device.type, torch.bfloat16):
            ids = torch.tensor([pipeline.tokenize(text).ids for text in texts], device=device)
            predicted = pipeline(noisy, levels.float(), pipeline.text_encoder(ids))
        error = (predicted.float() - target).unflatten(0, (-1, family))
        if late:
            weight = settings.alike_contrast * (1 - part / length)
            loss = error.square().mean() + weight * _evened_contrast(error, clean.unflatten(0, (-1, family)))
        else:
            shared = error.mean(1, keepdim=True)
            weight = 1 + (settings.contrast - 1) * (1 - step / turn)
            loss = (shared.square() + weight * (error - shared).square()).mean()
        descend(loss, optimizer, network)
        decay = min(settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, parameter in zip(averaged, network.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)
        log.step(step, error.square().mean().item())
        if stopped() or state.due() or step == steps - 1:
            state.save(step + 1)
        if stopped():
            raise KeyboardInterrupt
    return [p.detach() for p in averaged], max(begin, steps)


def _evened_contrast(
    error: Float[Tensor, "families siblings *rest"], clean: Float[Tensor, "families siblings *rest"]
) -> Float[Tensor, ""]:
    """Mean square of how far a sibling's error is from the first one's, over the root of the same of the siblings.

    So what changes a hundredth of what an effusion changes counts a tenth as much, not a hundredth (ours). Divided by
    the mean square itself, the smallest would rule: any answer to the text costs them more than it gains.
    """
    axes = tuple(range(2, clean.ndim))
    apart = (clean[:, 1:] - clean[:, :1]).square().mean(axes).clamp(min=SMALLEST_CHANGE)
    return ((error[:, 1:] - error[:, :1]).square().mean(axes) / apart.sqrt()).mean()


def _text(case: Case, rng: np.random.Generator, level: str) -> str:
    if level != "full":
        return compose(case, rng, level).text
    plans = [Plan(f.kind, f.side, f.lobe, f.severity, f.count) for f in case.findings]
    return request(plans, rng, plain=True).text


def _learned(pipeline: LatentDiffusion) -> nn.ModuleList:
    return nn.ModuleList([pipeline.unet, pipeline.text_encoder])


def _normalized(images: Tensor, low: float, high: float) -> Tensor:
    return (images.clamp(low, high) - low) * (2 / (high - low)) - 1
