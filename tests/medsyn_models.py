"""MedSyn in miniature: random networks, a BERT of one layer, and where the shared facts about the real one lie."""

import os
from pathlib import Path

import pytest
import torch
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from torch import nn
from transformers import BertConfig, BertModel

from voxplain.models.medsyn import MedSyn, MedSynNetwork, TextEncoder

SHARED = Path(os.environ.get("VOXPLAIN_SHARED", Path(__file__).parents[2] / "shared")) / "medsyn"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the facts about MedSyn are not at {SHARED}")
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "large", "left", "effusion", "small", "nodule", "pleur", "##al"]
CONTEXT, WIDTH = 12, 16


def small_bert(positions: int = 20, width: int = WIDTH) -> BertModel:
    """One layer over the vocabulary above."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(PIECES),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=positions,
    )
    return BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)


def small_encoder(context: int = CONTEXT, width: int = WIDTH) -> TextEncoder:
    vocabulary = {piece: number for number, piece in enumerate(PIECES)}
    engine = BertWordPieceTokenizer(vocabulary, lowercase=True)._tokenizer
    return TextEncoder(small_bert(context + 8, width), engine, context)


def small_network(**changes: object) -> MedSynNetwork:
    """Two levels, one frame kernel a level; sharp attention, so that the text matters."""
    torch.manual_seed(1)
    sizes = {"dim": 8, "dim_mults": (1, 2), "channels": 4, "cond_dim": WIDTH, "context": CONTEXT, "attn_heads": 2}
    network = MedSynNetwork(**{**sizes, **changes}).eval().requires_grad_(False)  # type: ignore[arg-type]
    for name, parameter in network.named_parameters():
        if ".to_q." in name or ".to_kv." in name:
            nn.init.normal_(parameter, std=0.7)
    return network


def small_model(shape: tuple[int, int, int] = (3, 4, 6), **changes: object) -> MedSyn:
    """A pipeline whose volumes are neither cubes nor of square slices."""
    return MedSyn(small_network(**changes), small_encoder(), shape=shape, steps=3)
