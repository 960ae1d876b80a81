"""Stable Diffusion 1.x, 2.x and XL, and the other diffusers pipelines around the same U-Net."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from voxplain.adapters.base import LESSON, Use
from voxplain.adapters.folders import check_width, load_pipeline
from voxplain.adapters.generation import PipelineAdapter, Told, latent_grid
from voxplain.adapters.hooks import projections, refuse_compiled
from voxplain.adapters.pipelines import PipelineEvents
from voxplain.adapters.prompts import tokenized
from voxplain.models.events import NULL, TEXT
from voxplain.tokens import TokenizedPrompt

__all__ = ["DiffusersAdapter", "load_pipeline"]

# processors whose scores are softmax(to_q(x) to_k(context)^T scale + mask): what the hooks see is what they attend by
PROCESSORS = ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")
PAGE = "docs/diffusers.md"


class DiffusersAdapter(PipelineAdapter):
    """A diffusers pipeline around a `UNet2DConditionModel`, heard whether it is called itself or through `generate`.

    `negative` reads the negative prompt instead of the prompt. `prompt` tells the text of runs that are given
    `prompt_embeds` (with `negative`: `negative_prompt_embeds`), one for each or one for all; a `TokenizedPrompt` where
    the embeddings are of another length than the tokenizer's. `size` is the image (rows, columns) of `generate`, by
    default the model's native one. Images are `[channels, rows, columns]` from 0 to 1.

    Raises NotImplementedError for networks and attention layers that are not read, by name, and ValueError for a
    compiled U-Net and for a text encoder that does not fit it.
    """

    def __init__(
        self, pipe: Any, *, prompt: Told = None, negative: bool = False, size: tuple[int, int] | None = None
    ) -> None:
        unet: Any = getattr(pipe, "unet", None)
        if isinstance(unet, nn.Module):
            refuse_compiled(unet)
        if not isinstance(unet, UNet2DConditionModel):
            raise NotImplementedError(
                f"{type(pipe).__name__}: the denoiser is a {type(unet).__name__}, and this adapter reads a "
                f"UNet2DConditionModel; {PAGE} says which pipelines are read"
            )
        encoders = [getattr(pipe, part, None) for part in ("text_encoder", "text_encoder_2")]
        check_width([encoder.config.to_dict() for encoder in encoders if encoder is not None], unet.config)
        self.layers = cross_attention(unet)
        grid = latent_grid(unet.config["sample_size"] or 64, size, pipe.vae_scale_factor)
        super().__init__(pipe, unet, pipe.vae.config["latent_channels"], grid, prompt)
        self._negative = negative
        self.events = PipelineEvents(pipe, unet, self.prompts, self.image_geometry, NULL if negative else TEXT)
        self._pooled: dict[bytes, Tensor] = {}  # what SD XL reads beside a context, by the context's last position

    # seams --------------------------------------------------------------------------------------------------------

    def hooked(self, layer: str, use: Use, edit: bool) -> AbstractContextManager[None]:
        attention: Any = self.network.get_submodule(layer)
        refuse_unread(layer, attention)

        def mask(named: Mapping[str, Any]) -> Tensor | None:
            refuse_unread(layer, attention)  # the processor may have been exchanged since the block began
            bias = named.get("attention_mask")
            return bias if bias is None else bias[:, None]  # [batch, 1, 1, tokens]

        read = SimpleNamespace(
            num_heads=attention.heads,
            scale=attention.scale,
            out_proj=nn.Sequential(*attention.to_out),
            get_submodule=attention.get_submodule,
            register_forward_hook=attention.register_forward_hook,
            register_forward_pre_hook=attention.register_forward_pre_hook,
        )
        block = self.network.get_submodule(layer.rpartition(".transformer_blocks.")[0])
        return projections(self, layer, block, read, use, edit, mask)

    # text ---------------------------------------------------------------------------------------------------------

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        return tokenized(self.pipe, prompt)

    def texts(self, given: Mapping[str, Any], samples: int) -> list[str | TokenizedPrompt]:
        name = "negative_prompt" if self._negative else "prompt"
        text, second, embeds = (given.get(f"{name}{part}") for part in ("", "_2", "_embeds"))
        if second is not None and second != text:
            raise NotImplementedError(
                f"{name}_2 differs from {name}: then every key belongs to two texts and no map to one"
            )
        if text is None and embeds is None:
            if getattr(self.pipe.config, "force_zeros_for_empty_prompt", False):
                raise ValueError("without a negative_prompt this pipeline guides by zeros, which have no words")
            text = ""
        return super().texts({"prompt": text}, samples)

    @torch.no_grad()
    def encode_prompt(self, prompt: TokenizedPrompt) -> Float[Tensor, "1 tokens dim"]:
        encode = getattr(type(self.pipe), "encode_prompt", None) or type(self.pipe)._encode_prompt
        made = encode(
            self.pipe,
            prompt=prompt.text,
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        if not isinstance(made, tuple):
            return made
        if len(made) == 4:  # SD XL: text, null, pooled text, pooled null
            self._pooled[_last(made[0])] = made[2]
        return made[0]

    # the denoiser -------------------------------------------------------------------------------------------------

    def denoise(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: float,
        context: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch channels *grid"]:
        if self.network.config["in_channels"] != latent.shape[1] or getattr(self.pipe, "controlnet", None) is not None:
            raise NotImplementedError(
                f"the U-Net of {self.name} reads an image beside the latent of {latent.shape[1]} channels (it takes "
                f"{self.network.config['in_channels']}, or those of a control network); call the pipeline itself"
            )
        dtype, level = self.network.dtype, torch.full((len(latent),), timestep, device=self.device)
        return self.network(
            self.scaled(latent.to(self.device), timestep).to(dtype),
            level,
            context.to(self.device, dtype),
            timestep_cond=self._distilled(len(latent)),
            added_cond_kwargs=self._added(context, latent),
            return_dict=False,
        )[0]

    def _distilled(self, batch: int) -> Float[Tensor, "batch dim"] | None:
        """The guidance scale that consistency models read, the pipeline's usual one; None elsewhere."""
        width = self.network.config["time_cond_proj_dim"]
        if width is None:
            return None
        scales = torch.full((batch,), self.usual_guidance - 1)
        return self.pipe.get_guidance_scale_embedding(scales, width).to(self.device, self.network.dtype)

    def _added(self, context: Tensor, latent: Tensor) -> dict[str, Tensor]:
        """What SD XL reads beside the context: the pooled text, and the image's size, uncropped.

        Its refiner reads the pipeline's usual aesthetic score in place of the target size.
        """
        if self.network.config["addition_embed_type"] is None:
            return {}
        if self.network.config["addition_embed_type"] != "text_time":
            raise NotImplementedError(
                f"addition_embed_type {self.network.config['addition_embed_type']!r} is not known here"
            )
        try:
            pooled = torch.cat([self._pooled[_last(row[None])] for row in context]).to(self.device, self.network.dtype)
        except KeyError:
            raise ValueError("SD XL reads a pooled text beside the context; make contexts with encode_prompt") from None
        size = [self.pipe.vae_scale_factor * edge for edge in latent.shape[2:]]
        refines = getattr(self.pipe.config, "requires_aesthetics_score", False)
        numbers = [*size, 0, 0, *([self.default("aesthetic_score")] if refines else size)]
        return {"text_embeds": pooled, "time_ids": torch.tensor([numbers] * len(context)).to(pooled)}

    def asked(
        self, samples: int, steps: int | None, guidance_scale: float | None, negative_prompt: str | None
    ) -> dict[str, Any]:
        height, width = self.geometry.shape
        return {"height": height, "width": width, **self.usual(samples, steps, guidance_scale, negative_prompt)}


def cross_attention(unet: nn.Module) -> tuple[str, ...]:
    """The paths of the layers that read the text; NotImplementedError names the first of a kind that is not known."""
    layers = []
    for path, module in unet.named_modules():
        cross = isinstance(module, Attention) and module.is_cross_attention
        if not cross and not (path.endswith("attn2") and not isinstance(module, Attention)):
            continue
        if not cross or ".transformer_blocks." not in path:
            raise NotImplementedError(
                f"{path} is a {type(module).__name__} whose attention is not known here; {LESSON} teaches adding it"
            )
        layers.append(path)
    if not layers:
        raise ValueError("the U-Net has no cross-attention layer, so it reads no text")
    return tuple(sorted(layers, key=lambda path: path.partition("_")[0]))  # down, mid, up: as they run


def refuse_unread(layer: str, attention: Any) -> None:
    """Raise NotImplementedError if the layer attends by anything else than its projections and a mask."""
    processor = type(attention.processor).__name__
    odd = [name for name in ("norm_q", "norm_k", "added_kv_proj_dim") if getattr(attention, name, None) is not None]
    odd += [
        name for name in ("fused_projections", "is_causal", "residual_connection") if getattr(attention, name, False)
    ]
    odd += [] if attention.rescale_output_factor == 1 else ["rescale_output_factor"]
    if processor not in PROCESSORS or odd:
        raise NotImplementedError(
            f"{layer} attends by {processor}{' with ' + ', '.join(odd) if odd else ''}, which is not read here (read "
            f"are {', '.join(PROCESSORS)}); {LESSON} teaches adding another"
        )


def _last(context: Float[Tensor, "1 tokens dim"]) -> bytes:
    """What tells contexts apart, also when words were taken out of the middle."""
    return context[0, -1].float().cpu().numpy().tobytes()
