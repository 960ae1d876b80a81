"""Tiny MONAI bundles and text encoders of random weights, written to folders; nothing in them that runs is needed."""

import json
import string

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.nets.autoencoderkl import AutoencoderKL
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5TokenizerFast

WIDTH = 16
AUTOENCODER = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": [1, 1],
    "attention_levels": [False, False],
    "latent_channels": 2,
    "norm_num_groups": 4,
    "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
}
DENOISER = {
    "spatial_dims": 3,
    "in_channels": 2,
    "out_channels": 2,
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "norm_num_groups": 4,
    "num_head_channels": 8,
    "with_conditioning": True,
    "cross_attention_dim": WIDTH,
}
SCHEDULE = {"num_train_timesteps": 1000, "schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0205}
METADATA = {"type": "image", "spatial_shape": [8, 12, 16], "value_range": [0, 1]}


def bert(folder, width=WIDTH):
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "large",
        "left",
        "effusion",
        "small",
        "nodule",
        *"abc",
        "##a",
    ]
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 12}
    BertModel(BertConfig(vocab_size=len(pieces), hidden_size=width, **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(pieces))


def clip(folder):
    letters = list(string.ascii_lowercase)
    whole = [*letters, *(f"{letter}</w>" for letter in letters), "le", "lef", "left</w>"]
    pieces = [*whole, "<|startoftext|>", "<|endoftext|>"]
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 24}
    ends = {"bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1}
    CLIPTextModel(CLIPTextConfig(vocab_size=len(pieces), hidden_size=WIDTH, **sizes, **ends)).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\nl e\nle f\nlef t</w>\n")


def t5(folder):
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁large", "▁left", "▁effusion", "▁small", "▁nodule", *"abcde"]
    sizes = {"num_layers": 1, "num_heads": 2, "d_ff": 8, "d_kv": 8}
    T5EncoderModel(T5Config(vocab_size=len(pieces), d_model=WIDTH, **sizes)).save_pretrained(folder)
    T5TokenizerFast(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0).save_pretrained(folder)


def lively(network):
    """Untrained, but with no layer at zero (MONAI starts its last ones there) and with attention that differs."""
    for name, parameter in network.named_parameters():
        if not parameter.any() and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
        if ".attn2.to_q" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    return network


def write(root, *, maisi=False, denoiser=None, scheduler=None, config=None):
    """A bundle of MONAI's own classes; the keywords change its entries."""
    torch.manual_seed(0)
    channels = "num_channels" if maisi else "channels"
    parts = {
        "autoencoder_def": {**AUTOENCODER, channels: [4, 8], **({"num_splits": 1, "save_mem": False} if maisi else {})},
        "diffusion_def": {**DENOISER, channels: [4, 8], **(denoiser or {})},
    }
    classes = [AutoencoderKlMaisi, DiffusionModelUNetMaisi] if maisi else [AutoencoderKL, DiffusionModelUNet]
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    for kind, (part, options) in zip(classes, parts.items(), strict=True):
        torch.save(lively(kind(**options)).state_dict(), root / "models" / f"{part.removesuffix('_def')}.pt")
    entries = {
        "imports": ["$import os", "$os.abort()"],
        "bundle_root": "$os.abort()",
        **{
            part: {"_target_": f"{kind.__module__}.{kind.__name__}", "_desc_": "free text", **options}
            for kind, (part, options) in zip(classes, parts.items(), strict=True)
        },
        "scheduler": {"_target_": "DDIMScheduler", **SCHEDULE, "clip_sample": False, **(scheduler or {})},
        "scale_factor": 0.5,
        "autoencoder": "$@autoencoder_def.to('cuda')",
        **(config or {}),
    }
    (root / "configs" / "inference.json").write_text(json.dumps(entries))
    metadata = {"network_data_format": {"outputs": {"pred": METADATA}}}
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return root
