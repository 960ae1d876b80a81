"""Stable Diffusion 1.x, 2.x and XL, and the other diffusers pipelines around the same U-Net."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from voxplain.adapters.base import LESSON, Editor, Listener, Rows, announced_rows, projections
from voxplain.adapters.folders import check_width, load_pipeline
from voxplain.adapters.generation import PipelineAdapter, latent_grid
from voxplain.adapters.pipelines import PipelineEvents, refuse_compiled
from voxplain.adapters.prompts import tokenized
from voxplain.models.events import NULL, TEXT, Call, Event
from voxplain.tokens import TokenizedPrompt

__all__ = ["DiffusersAdapter", "load_pipeline"]

# processors whose scores are softmax(to_q(x) to_k(context)^T scale + mask): what the hooks see is what they attend by
PROCESSORS = ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")
PAGE = "docs/diffusers.md"

Told = str | TokenizedPrompt | Sequence[str | TokenizedPrompt] | None


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
        super().__init__(pipe, unet, pipe.vae.config["latent_channels"], grid, None)
        self._told = [prompt] if isinstance(prompt, str | TokenizedPrompt) else prompt and list(prompt)
        self._negative = negative
        self._events = PipelineEvents(pipe, unet, self._read, self.image_geometry, NULL if negative else TEXT)
        self._pooled: dict[bytes, Tensor] = {}  # what SD XL reads beside a context, by the context's last position

    # seams --------------------------------------------------------------------------------------------------------

    def observe(self, layer: str, listener: Listener) -> AbstractContextManager[None]:
        return self._projections(layer, listener, edit=False)

    def edit(self, layer: str, editor: Editor) -> AbstractContextManager[None]:
        return self._projections(layer, editor, edit=True)

    def watching(self, callback: Callable[[Event], None]) -> AbstractContextManager[None]:
        return self._events.watching(callback)

    def _projections(self, layer: str, use: Callable, edit: bool) -> AbstractContextManager[None]:
        if layer not in self.layers:
            raise KeyError(f"{self.name} has no layer {layer!r}; it has {', '.join(self.layers)}")
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

    def _read(self, given: Mapping[str, Any], samples: int) -> tuple[TokenizedPrompt, ...]:
        """One prompt a sample, from the arguments of the pipeline's `encode_prompt`."""
        name = "negative_prompt" if self._negative else "prompt"
        texts: Any = given.get(name)
        second = given.get(f"{name}_2")
        if second is not None and second != texts:
            raise NotImplementedError(
                f"{name}_2 differs from {name}: then every key belongs to two texts and no map to one"
            )
        if texts is None and given.get(f"{name}_embeds") is not None:
            if self._told is None:
                raise ValueError(
                    f"the pipeline was given {name}_embeds, so nobody knows the words; tell the text by "
                    f"voxplain.trace(voxplain.as_adapter(pipe, prompt=...))"
                )
            texts = self._told
        elif texts is None:
            if getattr(self.pipe.config, "force_zeros_for_empty_prompt", False):
                raise ValueError("without a negative_prompt this pipeline guides by zeros, which have no words")
            texts = ""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts or samples % len(texts):
            raise ValueError(f"{len(texts)} texts for {samples} samples; give one for all, or one for each prompt")
        prompts = [text if isinstance(text, TokenizedPrompt) else self.tokenize(text) for text in texts]
        return tuple(prompt for prompt in prompts for _ in range(samples // len(texts)))

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

    def predict(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: float,
        context: Float[Tensor, "contexts tokens dim"],
        *,
        rows: Rows | None = None,
        step: int = 0,
    ) -> Float[Tensor, "batch channels *grid"]:
        if self.network.config["in_channels"] != latent.shape[1]:
            raise NotImplementedError(
                f"the U-Net of {self.name} takes {self.network.config['in_channels']} channels, an image beside the "
                f"latent of {latent.shape[1]}; call the pipeline itself"
            )
        level = torch.full((len(latent),), float(timestep), device=self.device)
        scaled = self.scaled(latent.to(self.device), timestep)
        context = context.to(self.device, self.network.dtype).expand(len(latent), -1, -1)
        with self._events.predicting(Call(announced_rows(rows, len(latent)), step, float(timestep))):
            return self.network(
                scaled.to(self.network.dtype),
                level,
                context,
                added_cond_kwargs=self._added(context, latent),
                return_dict=False,
            )[0]

    def _added(self, context: Tensor, latent: Tensor) -> dict[str, Tensor]:
        """What SD XL reads beside the context: the pooled text, and the image's size, uncropped."""
        if self.network.config["addition_embed_type"] is None:
            return {}
        if self.network.config["addition_embed_type"] != "text_time":
            raise NotImplementedError(
                f"addition_embed_type {self.network.config['addition_embed_type']!r} is not known here"
            )
        try:
            pooled = torch.cat([self._pooled[_last(row[None])] for row in context]).to(context)
        except KeyError:
            raise ValueError("SD XL reads a pooled text beside the context; make contexts with encode_prompt") from None
        size = [self.pipe.vae_scale_factor * edge for edge in latent.shape[2:]]
        numbers = torch.tensor([[*size, 0, 0, *size]], device=context.device, dtype=context.dtype)
        return {"text_embeds": pooled, "time_ids": numbers.expand(len(context), -1)}

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
