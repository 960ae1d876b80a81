"""Prompts to context vectors: a text encoder of the user, read from a transformers folder."""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import BertConfig, BertModel, CLIPTextModel, T5EncoderModel
from transformers.utils import logging

from voxplain.models.bundle.config import BundleError
from voxplain.models.storage import pickled
from voxplain.tokens import TokenizedPrompt

FAMILIES: dict[str, tuple[Any, str]] = {  # model_type of config.json -> network, fast tokenizer
    "clip": (CLIPTextModel, "CLIPTokenizerFast"),
    "clip_text_model": (CLIPTextModel, "CLIPTokenizerFast"),
    "bert": (BertModel, "BertTokenizerFast"),
    "cxr-bert": (BertModel, "BertTokenizerFast"),  # BERT with heads on top, which stay out
    "t5": (T5EncoderModel, "T5TokenizerFast"),
}
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
POOLED = ("pooler", "first", "mean")
ENDLESS = 10**6  # tokenizers without a limit state an astronomic one
SHOWN = 5  # names listed in an error


class TextEncoder(nn.Module):
    """Token ids -> the last hidden layer at every position, or one pooled vector.

    BERT and T5 mask padding inside the encoder; CLIP does not, as in Stable Diffusion. The denoiser that reads the
    positions masks nothing, so padding positions are keys like any other. `pooled`: "pooler" is the encoder's own
    (of CLIP the end token's), "first" the first position, "mean" that over all positions that are not masked.
    """

    def __init__(self, network: nn.Module, width: int, padding: int | None, pooled: str | None) -> None:
        super().__init__()
        if pooled not in (None, *POOLED):
            raise BundleError(f"pooled = {pooled!r}; give one of {', '.join(POOLED)}, or none for a vector a position")
        self.network, self.width, self.padding, self.pooled = network, width, padding, pooled

    def forward(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch keys dim"]:
        content = torch.ones_like(ids) if self.padding is None else (ids != self.padding).long()  # [batch, tokens]
        made = self.network(input_ids=ids, attention_mask=None if self.padding is None else content)
        hidden = made.last_hidden_state  # [batch, tokens, dim]
        if self.pooled is None:
            return hidden
        if self.pooled == "pooler":
            return made.pooler_output[:, None]
        weights = torch.zeros_like(content) if self.pooled == "first" else content
        weights[:, 0] = 1
        return (hidden * weights[..., None]).sum(1, keepdim=True) / weights.sum(1)[:, None, None]


class Words:
    """A fast tokenizer of transformers, brought to `TokenizedPrompt` at a fixed number of positions."""

    def __init__(self, tokenizer: Any, positions: int) -> None:
        self._fast, self.positions = tokenizer, positions
        self._starts = bool(tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"][0])

    def tokenize(self, text: str) -> TokenizedPrompt:
        """The text as the encoder reads it: special tokens, pieces, padding; `cut` is the first character that did
        not fit, None if all fitted.
        """
        read = self._fast(
            text,
            padding="max_length",
            max_length=self.positions,
            truncation=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        real = [at for at, content in enumerate(read["attention_mask"]) if content]
        special = [at for at in real if read["special_tokens_mask"][at]]
        spans = [
            (int(span[0]), int(span[1])) if at in real and at not in special else None
            for at, span in enumerate(read["offset_mapping"])
        ]
        start = special[0] if self._starts and special else None
        whole = self._fast(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        pieces = len(real) - len(special)
        return TokenizedPrompt(
            text=text,
            ids=tuple(read["input_ids"]),
            pieces=tuple(self._fast.convert_ids_to_tokens(read["input_ids"])),
            spans=tuple(spans),
            start=start,
            end=next((at for at in special if at != start), None),
            cut=whole["offset_mapping"][pieces][0] if len(whole["input_ids"]) > pieces else None,
        )

    def unknown_words(self, text: str) -> list[str]:
        """What the vocabulary cannot spell, each once."""
        if self._fast.unk_token_id in (None, self._fast.eos_token_id):  # pieces of bytes spell everything
            return []
        read = self._fast(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        pairs = zip(read["input_ids"], read["offset_mapping"], strict=True)
        unknown = [span for piece, span in pairs if piece == self._fast.unk_token_id]
        return list(dict.fromkeys(text[first:last] for first, last in unknown))


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no remarks of transformers: what matters is checked here."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_text(folder: Path, positions: int | None, pooled: str | None) -> tuple[TextEncoder, Words]:
    """Encoder and tokenizer of a transformers folder, or of `text_encoder` and `tokenizer` in a pipeline's folder.

    Only files of the folder are read, and no code in it. Raises BundleError for an unknown kind, for weights that are
    missing, and where nothing says how many positions are read (`positions`, by default the encoder's own limit).
    """
    folder = Path(folder)
    inner = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    places = (folder / "tokenizer", inner, inner.parent / "tokenizer")
    words = next((each for each in places if any((each / name).is_file() for name in VOCABULARIES)), None)
    if not (inner / "config.json").is_file():
        raise FileNotFoundError(
            f"{inner} holds no config.json; give the folder of a text encoder, as transformers saves it"
        )
    described = json.loads((inner / "config.json").read_text(encoding="utf-8"))
    kind = described.get("model_type")
    if kind not in FAMILIES:
        raise BundleError(f"{inner} holds a model of type {kind!r}; text encoders that are read: {', '.join(FAMILIES)}")
    network, tokenizer = FAMILIES[kind]
    if pooled == "pooler" and network is T5EncoderModel:
        raise BundleError("T5 has no pooler; give pooled='first' or pooled='mean'")
    options: dict[str, Any] = {}
    if network is BertModel:
        options = {"config": BertConfig.from_dict(described), "add_pooling_layer": pooled == "pooler"}
    try:
        with quiet():
            made: Any = network.from_pretrained(inner, local_files_only=True, output_loading_info=True, **options)
    except pickle.UnpicklingError as error:
        raise BundleError(pickled(next(inner.glob("*.bin"), inner), error)) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"{inner} holds no weights that can be read: {error}") from error
    encoder, report = made
    if missing := sorted(report["missing_keys"]):
        more = ", ..." if len(missing) > SHOWN else ""
        raise BundleError(f"{inner} lacks {len(missing)} weights of a {kind}: {', '.join(missing[:SHOWN])}{more}")
    if words is None:
        raise FileNotFoundError(f"{inner} holds no tokenizer ({' or '.join(VOCABULARIES)}); copy it there")
    fast = getattr(transformers, tokenizer).from_pretrained(words, local_files_only=True)
    limits = [getattr(encoder.config, "max_position_embeddings", ENDLESS), fast.model_max_length]
    own = min(limit for limit in limits if limit is not None)
    if positions is None and own >= ENDLESS:
        raise BundleError(f"nothing in {inner} says how many positions are read; give text_positions=...")
    if positions is not None and positions > limits[0]:
        raise BundleError(f"text_positions = {positions}, but the text encoder has {limits[0]}")
    if len(fast) > encoder.config.vocab_size:
        raise BundleError(f"{words} has {len(fast)} pieces, but the text encoder embeds {encoder.config.vocab_size}")
    padding = None if network is CLIPTextModel else fast.pad_token_id
    width = int(encoder.config.hidden_size)  # d_model of T5
    return TextEncoder(encoder.float(), width, padding, pooled), Words(fast, positions or own)
