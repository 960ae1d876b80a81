"""Diffusion transformers: PixArt and Sana attend to text alone, SD 3 and Flux to text and image at once."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from voxplain.adapters.dit import TransformerAdapter
from voxplain.adapters.joint import Wiring
from voxplain.adapters.passes import TwoTexts
from voxplain.adapters.pieces import read_text
from voxplain.tokens import TokenizedPrompt

__all__ = ["FluxAdapter", "PixArtAdapter", "SD3Adapter", "SanaAdapter"]


class CrossAdapter(TransformerAdapter):
    """Cross-attention to one text, whose padding is masked."""

    joint = False

    def reads(self, path: str, part: nn.Module) -> bool:
        return isinstance(part, Attention) and part.is_cross_attention

    def wiring(self, attention: Any) -> Wiring:
        return Wiring(_normed(attention, "norm_q", "to_q"), (_normed(attention, "norm_k", "to_k"), "to_v"))

    def guiding(self, made: Any) -> tuple[Tensor, Tensor | None]:
        return made[0], made[2]  # each followed by its mask

    def asked(
        self, samples: int, steps: int | None, guidance_scale: float | None, negative_prompt: str | None
    ) -> dict[str, Any]:
        as_told = {"use_resolution_binning": False, "clean_caption": False}
        return super().asked(samples, steps, guidance_scale, negative_prompt) | as_told


class PixArtAdapter(CrossAdapter):
    """PixArt Alpha and Sigma, whose text goes through T5."""

    kind, encoder = PixArtTransformer2DModel, ("text_encoder", "caption_channels")
    processors = ("AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor")

    def segments(self, text: str, given: Mapping[str, Any]) -> dict[str, TokenizedPrompt]:
        return {"t5": read_text(self.pipe.tokenizer, text, given["max_sequence_length"], lower=True)}

    def encode(self, text: str) -> tuple[Float[Tensor, "1 tokens dim"], dict[str, Tensor]]:
        made = type(self.pipe).encode_prompt(self.pipe, text, False, max_sequence_length=self.room)
        return made[0], {"mask": made[1]}

    def arguments(
        self, latent: Tensor, timestep: float, context: Tensor, beside: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        shape: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if self.network.use_additional_conditions:
            height, width = (side * self.pipe.vae_scale_factor for side in latent.shape[2:])
            told = {"resolution": [height, width], "aspect_ratio": [height / width]}
            shape = {name: latent.new_tensor([numbers] * len(latent)) for name, numbers in told.items()}
        return {
            "hidden_states": latent,
            "timestep": latent.new_full((len(latent),), timestep, dtype=torch.float32),
            "encoder_hidden_states": context,
            "encoder_attention_mask": beside["mask"],
            "added_cond_kwargs": shape,
        }


class SanaAdapter(CrossAdapter):
    """Sana, whose text goes through Gemma, behind an instruction that the pipeline writes."""

    kind, encoder = SanaTransformer2DModel, ("text_encoder", "caption_channels")
    processors = ("SanaAttnProcessor2_0",)

    def segments(self, text: str, given: Mapping[str, Any]) -> dict[str, TokenizedPrompt]:
        tokenizer, room = self.pipe.tokenizer, given["max_sequence_length"]
        said = given.get("complex_human_instruction", self.default("complex_human_instruction"))
        before = "\n".join(said) if said else ""
        longer = len(tokenizer.encode(before)) + room - 2 if before else room
        chosen = [0, *range(longer - room + 1, longer)]  # of the instruction, only its last position stays
        return {"gemma": read_text(tokenizer, text, longer, lower=True, before=before, chosen=chosen)}

    def spoken(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        alone = {"complex_human_instruction": None} if self.negative else {}  # it stands before the prompt only
        return {**super().spoken(given), **alone}

    def encode(self, text: str) -> tuple[Float[Tensor, "1 tokens dim"], dict[str, Tensor]]:
        said = self.default("complex_human_instruction")
        options = {"max_sequence_length": self.room, "complex_human_instruction": said}
        made = type(self.pipe).encode_prompt(self.pipe, text, False, **options)
        return made[0], {"mask": made[1]}

    def level(self, given: Mapping[str, Any]) -> float:
        levels = self.pipe.scheduler.timesteps
        level = super().level(given) / self.network.config["timestep_scale"]
        return float(levels[(levels - level).abs().argmin()])

    def arguments(
        self, latent: Tensor, timestep: float, context: Tensor, beside: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        level = timestep * self.network.config["timestep_scale"]
        return {
            "hidden_states": latent,
            "timestep": latent.new_full((len(latent),), level, dtype=torch.float32),
            "encoder_hidden_states": context,
            "encoder_attention_mask": beside["mask"],
        }


class SD3Adapter(TransformerAdapter):
    """SD 3 and 3.5: joint attention to a CLIP text (two encoders, one row of keys) and a T5 text."""

    kind, joint, encoder = SD3Transformer2DModel, True, ("text_encoder_3", "joint_attention_dim")
    processors = ("JointAttnProcessor2_0", "XFormersJointAttnProcessor")

    def reads(self, path: str, part: nn.Module) -> bool:
        return isinstance(part, Attention) and part.added_kv_proj_dim is not None

    def wiring(self, attention: Any) -> Wiring:
        return Wiring(
            _normed(attention, "norm_q", "to_q"),
            (_normed(attention, "norm_added_k", "add_k_proj"), "add_v_proj"),
            (_normed(attention, "norm_k", "to_k"), "to_v"),
        )

    def segments(self, text: str, given: Mapping[str, Any]) -> dict[str, TokenizedPrompt]:
        room = given["max_sequence_length"]
        clip = read_text(self.pipe.tokenizer, text, self.pipe.tokenizer_max_length)
        if self.pipe.text_encoder_3 is None:  # its positions are there, as zeros
            return {"clip": clip, "t5": TokenizedPrompt(text, (0,) * room, ("[zero]",) * room, (None,) * room, None)}
        return {"clip": clip, "t5": read_text(self.pipe.tokenizer_3, text, room)}

    def spoken(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        told, which = super().spoken(given), "negative_" if self.negative else ""
        for name in ("prompt_2", "prompt_3"):
            if told.get(name) is not None and told[name] != told["prompt"]:
                raise NotImplementedError(
                    f"{which}{name} differs from {which}prompt: then a word's keys belong to two texts"
                )
        return told

    def guiding(self, made: Any) -> tuple[Tensor, Tensor | None]:
        return made[0], made[1]

    def encode(self, text: str) -> tuple[Float[Tensor, "1 tokens dim"], dict[str, Tensor]]:
        options = {"do_classifier_free_guidance": False, "max_sequence_length": self.room}
        made = type(self.pipe).encode_prompt(self.pipe, text, None, None, **options)
        return made[0], {"pooled": made[2]}

    def arguments(
        self, latent: Tensor, timestep: float, context: Tensor, beside: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        return {
            "hidden_states": latent,
            "timestep": latent.new_full((len(latent),), timestep, dtype=torch.float32),
            "encoder_hidden_states": context,
            "pooled_projections": beside["pooled"].to(context),
        }

    def schedule(self, scheduler: Any, steps: int) -> None:
        given = {"mu": self.shift(scheduler, 1.16)} if scheduler.config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(steps, **given)


class FluxAdapter(TransformerAdapter):
    """Flux 1: joint attention to a T5 text; CLIP gives one pooled vector, which has no positions.

    `guidance_scale` is the one that was distilled into the network where there is such; `predict` takes the pipeline's
    usual one then. Elsewhere it is that of true guidance (the pipeline's `true_cfg_scale`), which takes a second pass.
    """

    kind, joint, announces = FluxTransformer2DModel, True, TwoTexts
    encoder = "text_encoder_2", "joint_attention_dim"
    processors = ("FluxAttnProcessor",)

    @property
    def patch(self) -> int:
        return 2  # the pipeline packs four latent cells into the channels of one

    @property
    def channels(self) -> int:
        return self.network.config["in_channels"] // 4

    @property
    def usual_guidance(self) -> float:
        return super().usual_guidance if self.network.config["guidance_embeds"] else 1.0

    @property
    def unguided(self) -> str:
        """Why a run that was to be heard by its negative prompt has none."""
        distilled = self.network.config["guidance_embeds"]
        why = "guidance is distilled into it, in one pass without a negative branch" if distilled else "no guidance"
        return f"{self.name} read no negative prompt ({why}); give true_cfg_scale > 1 and a negative_prompt"

    def native(self) -> tuple[int, int]:
        return (self.pipe.default_sample_size * self.pipe.vae_scale_factor,) * 2

    def reads(self, path: str, part: nn.Module) -> bool:
        return isinstance(part, FluxAttention)

    def wiring(self, attention: Any) -> Wiring:
        image = "norm_k", "to_v"
        text = image if attention.added_kv_proj_dim is None else ("norm_added_k", "add_v_proj")
        return Wiring("norm_q", text, image, heads_first=False)

    def segments(self, text: str, given: Mapping[str, Any]) -> dict[str, TokenizedPrompt]:
        tokenizer = self.pipe.tokenizer_2
        if hasattr(self.pipe, "maybe_convert_prompt") and self.pipe.maybe_convert_prompt(text, tokenizer) != text:
            raise NotImplementedError("a textual inversion of several vectors is not read here")
        return {"t5": read_text(tokenizer, text, given["max_sequence_length"])}

    def spoken(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**given, "prompt": given.get("prompt_2") or given.get("prompt")}  # T5 reads the second

    def guiding(self, made: Any) -> tuple[Tensor, Tensor | None]:
        return made[0], None  # which is encoded by a call of its own

    def encode(self, text: str) -> tuple[Float[Tensor, "1 tokens dim"], dict[str, Tensor]]:
        made = type(self.pipe).encode_prompt(self.pipe, text, max_sequence_length=self.room)
        return made[0], {"pooled": made[1]}

    def cells(self, given: Mapping[str, Any]) -> tuple[int, ...]:
        places = given["img_ids"].reshape(-1, 3)  # image, row and column of each position
        image, row, column = (int(last) for last in places.max(0).values)
        if image or len(places) != (row + 1) * (column + 1):
            raise NotImplementedError("the network is given more than the one image, which is not read here")
        return row + 1, column + 1

    def unpacked(self, packed: Tensor, cells: tuple[int, ...]) -> Float[Tensor, "batch channels *grid"]:
        parts = packed.unflatten(1, cells).unflatten(-1, (-1, 2, 2))  # [batch, row, column, channel, down, right]
        return parts.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def arguments(
        self, latent: Tensor, timestep: float, context: Tensor, beside: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        rows, columns = (side // 2 for side in latent.shape[2:])
        parts = latent.unflatten(3, (columns, 2)).unflatten(2, (rows, 2))  # [batch, channel, row, down, column, right]
        packed = parts.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        down, right = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        places = torch.stack([torch.zeros_like(down), down, right], -1).reshape(-1, 3)
        distilled = self.network.config["guidance_embeds"]
        scale = torch.full((len(latent),), self.usual_guidance, device=self.device) if distilled else None
        return {
            "hidden_states": packed,
            "timestep": latent.new_full((len(latent),), timestep / 1000),
            "guidance": scale,
            "encoder_hidden_states": context,
            "pooled_projections": beside["pooled"].to(context),
            "img_ids": places.to(latent),
            "txt_ids": context.new_zeros(context.shape[1], 3),
        }

    def schedule(self, scheduler: Any, steps: int) -> None:
        mu = self.shift(scheduler, 1.15)
        if scheduler.config.get("use_flow_sigmas"):
            scheduler.set_timesteps(steps, mu=mu)
        else:
            scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)

    def asked(
        self, samples: int, steps: int | None, guidance_scale: float | None, negative_prompt: str | None
    ) -> dict[str, Any]:
        if self.network.config["guidance_embeds"]:
            if negative_prompt is not None or self.negative:
                raise ValueError(
                    f"guidance is distilled into {self.name}, so it reads no negative prompt; call the pipeline itself "
                    "with true_cfg_scale"
                )
            return super().asked(samples, steps, guidance_scale, None)
        if guidance_scale is None or guidance_scale <= 1:
            return super().asked(samples, steps, None, None)
        true = {"true_cfg_scale": guidance_scale}
        return super().asked(samples, steps, None, negative_prompt or "") | true


def _normed(attention: Any, norm: str, projection: str) -> str:
    """The part that has the last word."""
    return projection if getattr(attention, norm, None) is None else norm
