"""Prompts to text features: a BERT that the user has on disk, read as MedSyn reads it."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from tokenizers.models import WordPiece
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from voxplain.models.medsyn.checkpoint import SHOWN, CheckpointError, read_tensors
from voxplain.tokens import TokenizedPrompt

CONTEXT = 192
START, END, PAD, UNKNOWN = "[CLS]", "[SEP]", "[PAD]", "[UNK]"
WORDS = "embeddings.word_embeddings.weight"
PLACES = "embeddings.position_embeddings.weight"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class TextEncoder(nn.Module):
    """BERT's last hidden layer at the first `context` positions.

    BERT itself reads the whole prompt up to its own limit and masks the padding; what reads these features masks
    nothing. So padding positions are keys, and words beyond `context` are lost except for their trace in the others.
    """

    def __init__(self, bert: BertModel, engine: Tokenizer, context: int = CONTEXT) -> None:
        super().__init__()
        vocabulary = engine.get_vocab(with_added_tokens=True)
        _need_special(vocabulary)
        engine.no_padding()
        engine.no_truncation()
        if len(vocabulary) > bert.config.vocab_size:
            raise ValueError(
                f"the vocabulary has {len(vocabulary)} pieces, but BERT embeds {bert.config.vocab_size}; the "
                "files of the folder do not belong together"
            )
        if bert.config.max_position_embeddings < context:
            raise ValueError(
                f"BERT has {bert.config.max_position_embeddings} positions, but {context} are read; give one with more"
            )
        self.bert, self.context, self._engine = bert, context, engine
        self._start, self._end, self._pad = (vocabulary[name] for name in (START, END, PAD))

    @property
    def width(self) -> int:
        """Of the features."""
        return self.bert.config.hidden_size

    def tokenize(self, text: str) -> TokenizedPrompt:
        """The prompt at the positions that are read: start, pieces, end, padding. A prompt that is too long has no end
        token, and `cut` is the first character that did not fit.
        """
        encoded = self._engine.encode(text, add_special_tokens=False)
        room = self.context - 1
        ids, pieces, spans = encoded.ids[:room], encoded.tokens[:room], encoded.offsets[:room]
        ended = len(encoded.ids) < room
        padding = room - ended - len(ids)
        return TokenizedPrompt(
            text=text,
            ids=(self._start, *ids, *(self._end,) * ended, *(self._pad,) * padding),
            pieces=(START, *pieces, *(END,) * ended, *(PAD,) * padding),
            spans=(None, *((first, last) for first, last in spans), *(None,) * (ended + padding)),
            start=0,
            end=len(ids) + 1 if ended else None,
            cut=encoded.offsets[room][0] if len(encoded.ids) > room else None,
        )

    def unknown_words(self, text: str) -> list[str]:
        """What the vocabulary cannot spell, each once."""
        encoded = self._engine.encode(text, add_special_tokens=False)
        unknown = [span for piece, span in zip(encoded.tokens, encoded.offsets, strict=True) if piece == UNKNOWN]
        return list(dict.fromkeys(text[first:last] for first, last in unknown))

    def forward(self, text: str) -> Float[Tensor, "1 tokens dim"]:
        """The features of one prompt, padding included."""
        limit = self.bert.config.max_position_embeddings
        ids = [self._start, *self._engine.encode(text, add_special_tokens=False).ids[: limit - 2], self._end]
        length = max(self.context, len(ids))
        device = self.bert.embeddings.word_embeddings.weight.device
        positions = torch.tensor([[*ids, *[self._pad] * (length - len(ids))]], device=device)
        content = (torch.arange(length, device=device) < len(ids)).long()[None]
        return self.bert(positions, attention_mask=content).last_hidden_state[:, : self.context]


def load_text_encoder(folder: str | Path, *, context: int = CONTEXT) -> TextEncoder:
    """The BERT in a folder (config.json, vocab.txt or tokenizer.json, model.safetensors or pytorch_model.bin).

    Made for BiomedVLP-CXR-BERT and for MedSyn's fine-tuned copy of it, whose weights have 2048 positions. Only data is
    read: code that the folder brings is ignored, nothing is downloaded, heads on top of BERT are left out. Raises
    FileNotFoundError for what is missing and CheckpointError for weights that do not fit the configuration.
    """
    folder, file = Path(folder), find_weights(folder)
    settings = folder / "config.json"
    state = _own_names(read_tensors(file), file)
    described = json.loads(settings.read_text(encoding="utf-8"))
    described |= {"max_position_embeddings": len(state[PLACES]), "vocab_size": len(state[WORDS])}
    with torch.device("meta"):
        expected = BertModel(BertConfig.from_dict(described), add_pooling_layer=False).state_dict()
    wrong = [f"missing {name}" for name in expected if name not in state]
    wrong += [f"unexpected {name}" for name in state if name not in expected]
    wrong += [
        f"{name} {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise CheckpointError(f"{file} does not fit {settings}: {'; '.join(wrong[:SHOWN])}{more}")
    bert = BertModel(BertConfig.from_dict(described), add_pooling_layer=False)
    bert.load_state_dict({name: value.float() for name, value in state.items()})
    return TextEncoder(bert.eval().requires_grad_(False), _tokenizer(folder), context)


def find_weights(folder: str | Path) -> Path:
    """The weights in a BERT folder; FileNotFoundError where it is none."""
    folder = Path(folder)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None or not (folder / "config.json").is_file():
        there = ", ".join(sorted(each.name for each in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"{folder} is no BERT folder: expected config.json and {' or '.join(WEIGHTS)}, found {there}. Give the "
            "folder of BiomedVLP-CXR-BERT-specialized, with MedSyn's fine-tuned pytorch_model.bin in it if you have it"
        )
    return file


def _own_names(state: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """BERT's own names, whatever it was wrapped in; no pooler, no heads, no table of position numbers."""
    roots = [name.removesuffix(WORDS) for name in state if name.endswith(WORDS)]
    if len(roots) != 1 or roots[0] + PLACES not in state:
        raise CheckpointError(
            f"{file} holds {len(roots)} tensors called ...{WORDS}; expected one, and its {PLACES}: give a BERT model"
        )
    own = {name.removeprefix(roots[0]): value for name, value in state.items() if name.startswith(roots[0])}
    parts = ("embeddings.", "encoder.")
    return {name: value for name, value in own.items() if name.startswith(parts) and "position_ids" not in name}


def _tokenizer(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    if not (folder / "vocab.txt").is_file():
        raise FileNotFoundError(f"{folder} holds neither tokenizer.json nor vocab.txt; copy them from the BERT model")
    settings = folder / "tokenizer_config.json"
    told = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    vocabulary = WordPiece.read_file(str(folder / "vocab.txt"))
    _need_special(vocabulary)
    # the class is a Python face of the engine, with BERT's splitting and lower-casing set up
    return BertWordPieceTokenizer(vocabulary, lowercase=bool(told.get("do_lower_case", True)))._tokenizer


def _need_special(vocabulary: Mapping[str, int]) -> None:
    if missing := [name for name in (START, END, PAD, UNKNOWN) if name not in vocabulary]:
        raise ValueError(f"the vocabulary lacks {', '.join(missing)}; give the folder of a BERT model")
