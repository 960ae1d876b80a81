"""What tracing is measured on: networks of real shapes with random weights, small text encoders, nothing decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import voxplain
from voxplain.adapters.base import Adapter, as_adapter

# 16 pieces, so 18 rows with start and end
PROMPT = "Large left pleural effusion. Severe consolidation in the right upper lobe. No pneumothorax."
CONTEXT, WIDTH = 77, 768
SD15 = {"widths": (320, 640, 1280, 1280), "heads": 8, "blocks": 2}
SMALL = {"widths": (16, 32, 32, 32), "heads": 2, "blocks": 1}


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model to trace, `generate(steps)`, which runs it, and its modules that attend to the text."""

    model: Any
    adapter: Adapter
    generate: Callable[[int], Any]
    attention: tuple[nn.Module, ...]

    @property
    def rows(self) -> int:
        """Rows of a map: start, pieces, end."""
        return len(self.adapter.tokenize(PROMPT).kept)


def stable_diffusion(
    *,
    widths: Sequence[int],
    heads: int,
    blocks: int,
    native: int = 64,
    scheduler: str = "DDIMScheduler",
    sharp: bool = False,
) -> Any:
    """A pipeline around a U-Net of that shape; `sharp` makes random weights attend unevenly."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = words_of(PROMPT)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=12,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=native,
        layers_per_block=blocks,
        block_out_channels=tuple(widths),
        attention_head_dim=heads,
        cross_attention_dim=WIDTH,
        norm_num_groups=min(32, widths[0] // 2),
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4,  # eight pixels a latent cell
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
    )
    if sharp:
        for name, parameter in unet.named_parameters():
            if "attn2.to_q" in name or "attn2.to_k" in name:
                nn.init.normal_(parameter, std=4 * parameter.shape[1] ** -0.5)
    levels = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    levels |= {"DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False}}.get(
        scheduler, {"skip_prk_steps": True}
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(config).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=getattr(diffusers, scheduler)(**levels),
        safety_checker=None,
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def words_of(text: str) -> Any:
    """A CLIP tokenizer for which every word of the text is one piece, and any other falls apart into smaller ones."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + ["."]
    pieces, merges = letters + [f"{letter}</w>" for letter in letters], []
    words = [[*word[:-1], f"{word[-1]}</w>"] for word in dict.fromkeys(text.lower().replace(".", "").split())]
    while whole := [word for word in words if len(word) > 1]:  # each merge is made in all words, as it will be read
        first, second = whole[0][:2]
        merges.append((first, second))
        pieces.append(first + second)
        for word in words:
            for place in reversed(range(len(word) - 1)):
                if word[place : place + 2] == [first, second]:
                    word[place : place + 2] = [first + second]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token="<|endoftext|>", model_max_length=CONTEXT)


def drawn(pipe: Any, pixels: int) -> Subject:
    """Square images of a pipeline, as latents; guided, so that every second row of a batch is heard."""
    adapter = as_adapter(pipe)

    def generate(steps: int) -> Any:
        options = {"height": pixels, "width": pixels, "output_type": "latent", "guidance_scale": 7.5}
        return pipe(PROMPT, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), **options).images

    return Subject(pipe, adapter, generate, tuple(pipe.unet.get_submodule(layer) for layer in adapter.layers))


def medsyn(dim: int, shape: tuple[int, int, int]) -> Subject:
    """The network of MedSyn, narrower, on its 192 text positions; not guided, so that every row is heard."""
    from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel

    from voxplain.models.medsyn import MedSyn, MedSynNetwork, TextEncoder

    torch.manual_seed(0)
    words = dict.fromkeys(PROMPT.lower().replace(".", " .").split())
    pieces = {piece: number for number, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=12,
        intermediate_size=WIDTH,
        max_position_embeddings=200,
    )
    bert = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    encoder = TextEncoder(bert, BertWordPieceTokenizer(pieces, lowercase=True)._tokenizer, 192)
    network = MedSynNetwork(dim).eval().requires_grad_(False)
    model = MedSyn(network, encoder, shape=shape)
    adapter = as_adapter(model)

    def generate(steps: int) -> Any:
        return model.generate(PROMPT, seed=0, steps=steps)

    return Subject(model, adapter, generate, tuple(network.get_submodule(layer) for layer in adapter.layers))


def thorax() -> Subject:
    """The model that comes with the package: MONAI's U-Net in three dimensions, guided."""
    model = voxplain.load("thorax")
    adapter = as_adapter(model)

    def generate(steps: int) -> Any:
        return model.generate(PROMPT, seed=0, steps=steps)

    return Subject(model, adapter, generate, tuple(model.unet.get_submodule(layer) for layer in adapter.layers))
