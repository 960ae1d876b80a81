"""Tiny random pipelines around diffusion transformers and a U-Net of volumes, built like those of tiny_pipelines."""

import tiny_pipelines as tiny
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
)
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
TEXT_WIDTH = 2 * tiny.WIDTH


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def t5_tokenizer():
    """Words are pieces of their own, with the space before them; "pneumothorax" is two."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0), ("thorax", -1.0)]
    words = [(f"▁{word}", -1.0) for word in tiny.WORDS]
    return T5Tokenizer(vocab=special + words + [(letter, -12.0) for letter in [*LETTERS, ",", "."]], extra_ids=0)


def t5(tokenizer):
    sizes = {"d_model": TEXT_WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return tiny.seeded(T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)))


def gemma_tokenizer():
    """A start token and no end; a space is a piece of its own."""
    pieces, merges = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *LETTERS, *",.:-'"], []
    for word in tiny.WORDS:
        parts = list(word)
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
                pieces.append(parts[0] + parts[1])
            parts[:2] = [parts[0] + parts[1]]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=merges)
    start = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])])
    tokenizer.backend_tokenizer.post_processor = start
    return tokenizer


def gemma(tokenizer):
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = Gemma2Config(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, **sizes)
    return tiny.seeded(Gemma2Model(config))


def shifted_vae(channels=4):
    vae = tiny.vae(channels=channels)
    vae.register_to_config(shift_factor=0.1)
    return vae


def pixart(kind=PixArtAlphaPipeline, **more):
    """Two layers; a cell is two latent cells or four pixels wide; the network also predicts a variance."""
    tokenizer = t5_tokenizer()
    network = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=TEXT_WIDTH,
        **more,
    )
    return quiet(
        kind(
            tokenizer=tokenizer,
            text_encoder=t5(tokenizer),
            vae=tiny.vae(),
            transformer=tiny.seeded(network),
            scheduler=tiny.scheduler(),
        )
    )


def sana(qk_norm="rms_norm_across_heads"):
    """Two layers; a cell is two latent cells or four pixels wide."""
    tokenizer = gemma_tokenizer()
    network = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
        patch_size=2,
        qk_norm=qk_norm,
    )
    blocks = {"block_out_channels": (4, 4), "layers_per_block": (1, 1), "qkv_multiscales": ((), (5,))}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in blocks.items()}
    types = ("ResBlock", "EfficientViTBlock")
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=types,
        decoder_block_types=types,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        **sides,
    )
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return quiet(
        SanaPipeline(
            tokenizer=tokenizer,
            text_encoder=gemma(tokenizer),
            vae=tiny.seeded(vae),
            transformer=tiny.seeded(network),
            scheduler=DPMSolverMultistepScheduler(**flow),
        )
    )


def sd3(with_t5=True, channels=4, **shift):
    """Two layers, the first also with attention of the image to itself alone; a cell is four pixels wide."""
    tokenizer, second, third = tiny.clip_tokenizer(), tiny.clip_tokenizer(pad="a"), t5_tokenizer()
    network = SD3Transformer2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * tiny.WIDTH,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return quiet(
        StableDiffusion3Pipeline(
            transformer=tiny.seeded(network),
            scheduler=FlowMatchEulerDiscreteScheduler(**shift),
            vae=shifted_vae(channels),
            text_encoder=tiny.clip(tokenizer, CLIPTextModelWithProjection),
            tokenizer=tokenizer,
            text_encoder_2=tiny.clip(second, CLIPTextModelWithProjection),
            tokenizer_2=second,
            text_encoder_3=t5(third) if with_t5 else None,
            tokenizer_3=third if with_t5 else None,
        )
    )


def flux(distilled=False):
    """One layer of two streams and one of a single stream; a cell is two latent cells or four pixels wide."""
    tokenizer, second = tiny.clip_tokenizer(), t5_tokenizer()
    network = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=tiny.WIDTH,
        guidance_embeds=distilled,
        axes_dims_rope=(4, 4, 8),
    )
    return quiet(
        FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=shifted_vae(),
            text_encoder=tiny.clip(tokenizer, CLIPTextModel),
            tokenizer=tokenizer,
            text_encoder_2=t5(second),
            tokenizer_2=second,
            transformer=tiny.seeded(network),
        )
    )


def video():
    """Cross-attention at 8 x 8 and, in the middle, at 4 x 4 cells of each frame."""
    network = UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=tiny.WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    tokenizer = tiny.clip_tokenizer()
    return quiet(
        TextToVideoSDPipeline(
            vae=tiny.vae(),
            text_encoder=tiny.clip(tokenizer),
            tokenizer=tokenizer,
            unet=tiny.seeded(network),
            scheduler=tiny.scheduler(),
        )
    )
