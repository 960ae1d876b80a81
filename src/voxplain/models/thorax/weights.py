"""Model folders: configuration, vocabulary, half-precision shards with their hashes, model card."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from voxplain.models.latent_diffusion import LatentDiffusion
from voxplain.models.thorax.network import build
from voxplain.models.thorax.text import Tokenizer

SHIPPED = Path(__file__).parent / "weights"
FORMAT = 1
SHARD_BYTES = 12_000_000


def save(pipeline: LatentDiffusion, folder: str | Path, card: str, *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write a model folder: config.json, vocab.json, weights-*.safetensors (fp16) and MODEL_CARD.md.

    Written beside `folder` and renamed, so a broken run leaves no half model; an older model there is replaced, any
    other folder refused. Weights that half precision cannot hold raise ValueError.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "config.json").is_file():
        raise FileExistsError(f"{folder} exists and is not a model folder; give another place")
    fresh = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)

    tokenizer: Tokenizer = pipeline.tokenizer
    vocabulary = {"context": tokenizer.context, "pieces": tokenizer.pieces, "words": sorted(tokenizer.words)}
    (fresh / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    for number, shard in enumerate(_shards(pipeline, shard_bytes), start=1):
        save_file(shard, fresh / f"weights-{number:05d}.safetensors")
    files = {path.name: _sha256(path) for path in sorted(fresh.iterdir())}
    described = {"format": FORMAT, "config": pipeline.config, "files": files}
    (fresh / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    (fresh / "MODEL_CARD.md").write_text(card, encoding="utf-8")

    if folder.exists():
        shutil.rmtree(folder)
    return fresh.rename(folder)


def load(model: str | Path = "thorax") -> LatentDiffusion:
    """A pipeline ready to generate, float32, without gradients: a shipped one by name, or one from a model folder.

    Raises FileNotFoundError where there are no weights, ValueError where a file differs from its recorded hash or
    the folder was written by a later version.
    """
    folder = SHIPPED / model if (SHIPPED / model / "config.json").is_file() else Path(model)
    if not (folder / "config.json").is_file():
        shipped = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
        raise FileNotFoundError(
            f"no weights for {str(model)!r}: it is neither a model folder nor one of the shipped models {shipped}. "
            f"Train it with `voxplain train {Path(model).name}`"
        )
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if described.get("format") != FORMAT:
        found = described.get("format")
        raise ValueError(f"{folder} has model format {found!r}, this version reads {FORMAT}; update voxplain")
    for name, expected in described["files"].items():
        _verify(folder / name, expected)

    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer(vocabulary["pieces"], vocabulary["words"], context=vocabulary["context"])
    pipeline = build(described["config"], tokenizer)
    state: dict[str, Tensor] = {}
    for name in described["files"]:
        if name.endswith(".safetensors"):
            state |= {key: value.float() for key, value in load_file(folder / name).items()}
    pipeline.load_state_dict(state)
    pipeline.weights_hash = hashlib.sha256("".join(sorted(described["files"].values())).encode()).hexdigest()
    return pipeline.eval().requires_grad_(False)


def _shards(pipeline: LatentDiffusion, limit: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, value in pipeline.state_dict().items():
        half = value.detach().to("cpu", torch.float16).contiguous()
        if not torch.isfinite(half).all():
            raise ValueError(f"{name} does not fit half precision (largest value {value.abs().max():g}); not saved")
        header = len(name) + 100  # an upper bound of what safetensors writes about one tensor
        if shard and size + half.nbytes + header > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = half
        size += half.nbytes + header
    yield shard


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _verify(path: Path, expected: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; restore the model folder, or install voxplain again")
    if (found := _sha256(path)) != expected:
        raise ValueError(
            f"{path} is not the file that the model was saved with: sha256 {found[:12]}..., expected "
            f"{expected[:12]}...; restore it, or train and save the model again"
        )
