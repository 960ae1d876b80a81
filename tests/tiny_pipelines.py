"""Tiny random diffusers pipelines: a vocabulary of a few words, widths of 8 to 16, latents of 16 cells a side."""

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

WORDS = ("large", "left", "effusion", "small", "nodule", "pneumo", "thorax", "right")
CONTEXT, WIDTH = 12, 16


def clip_tokenizer(pad="<|endoftext|>"):
    """Every listed word is a piece of its own; "pneumothorax" is two; other words fall apart into letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [",", "."]
    pieces, merges = letters + [f"{letter}</w>" for letter in letters], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>" if word != "pneumo" else word[-1]]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
                pieces.append(parts[0] + parts[1])
            parts[:2] = [parts[0] + parts[1]]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=CONTEXT)


def bert_tokenizer():
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##thorax", "[unused]"]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(vocab)}, model_max_length=CONTEXT)


def clip(tokenizer, kind=CLIPTextModel, width=WIDTH):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return seeded(kind(config))


def bert(tokenizer):
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
    )
    return seeded(BertModel(config))


def seeded(network):
    """Random weights that make attention uneven: an untrained layer attends to everything alike."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.02)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.5 if "attn2.to_q" in name or "attn2.to_k" in name else 0.2)
    return network.eval()


def unet(channels=(8, 16, 16), *, heads=(2, 4, 4), sample=16, width=WIDTH, inputs=4, **more):
    """Cross-attention at all levels but the last, as in Stable Diffusion, and in the middle."""
    levels = len(channels)
    return seeded(
        UNet2DConditionModel(
            sample_size=sample,
            in_channels=inputs,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=channels,
            down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
            cross_attention_dim=width,
            attention_head_dim=heads,
            norm_num_groups=4,
            **more,
        )
    )


def vae(scale=2, channels=4):
    """`scale` pixels a latent cell: a power of two."""
    levels = scale.bit_length()
    return seeded(
        AutoencoderKL(
            block_out_channels=(4,) * levels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=channels,
        )
    )


def scheduler(kind=DDIMScheduler, **more):
    """With the noise of Stable Diffusion."""
    if kind is DDIMScheduler:
        more = {"clip_sample": False, "set_alpha_to_one": False, **more}
    return kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, **more)


def sd(kind=StableDiffusionPipeline, *, network=None, tokenizer=None, encoder=None, levels=None, scale=2, **parts):
    tokenizer = tokenizer or clip_tokenizer()
    pipe = kind(
        vae=vae(scale),
        text_encoder=encoder or clip(tokenizer),
        tokenizer=tokenizer,
        unet=network or unet(),
        scheduler=levels or scheduler(),
        **{"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False, **parts},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd2():
    """What Stable Diffusion 2 does otherwise: linear projections around attention, and a prediction of v."""
    return sd(network=unet(use_linear_projection=True), levels=scheduler(prediction_type="v_prediction"))


def img2img(**options):
    return sd(StableDiffusionImg2ImgPipeline, **options)


def inpaint(**options):
    return sd(StableDiffusionInpaintPipeline, network=unet(inputs=9), **options)


def pix2pix(**options):
    return sd(StableDiffusionInstructPix2PixPipeline, network=unet(inputs=8), **options)


def controlnet(**options):
    network = unet()
    guide = seeded(ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(4, 8)))
    return sd(StableDiffusionControlNetPipeline, network=network, controlnet=guide, **options)


def sdxl(**options):
    tokenizer, second = clip_tokenizer(), clip_tokenizer(pad=".")
    network = unet(
        (8, 16),
        heads=(2, 4),
        width=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + WIDTH,
        transformer_layers_per_block=(1, 2),
    )
    pipe = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip(tokenizer),
        text_encoder_2=clip(second, CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        tokenizer_2=second,
        unet=network,
        scheduler=scheduler(),
        add_watermarker=False,
        **options,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
