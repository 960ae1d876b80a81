"""What diffusion transformers of diffusers share: text keys and image cells of a run, and how it is announced."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from hashlib import blake2b
from math import prod
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxplain.adapters.base import LESSON, Use, without
from voxplain.adapters.generation import PipelineAdapter, Told
from voxplain.adapters.hooks import refuse_compiled
from voxplain.adapters.joint import Wiring, joint_products
from voxplain.adapters.passes import TransformerEvents
from voxplain.segments import beside_image, merged
from voxplain.tokens import TokenizedPrompt

PAGE = "docs/transformers.md"
TEXTS = ("prompt", "prompt_2", "prompt_3", "prompt_embeds")  # arguments of `encode_prompt` that have a negative twin


class TransformerAdapter(PipelineAdapter):
    """A diffusers pipeline around a diffusion transformer, heard whether it is called itself or through `generate`.

    `size` is the image (rows, columns) of `generate`, `max_sequence_length` the text positions of its T5 or Gemma; by
    default the pipeline's own. `negative` reads the negative prompt instead of the prompt. `prompt` tells the text of
    runs that are given `prompt_embeds` (with `negative`: `negative_prompt_embeds`).

    Raises NotImplementedError for networks and attention layers that are not read, by name, and ValueError for a
    compiled network and for a text encoder that does not fit it.
    """

    kind: ClassVar[type[nn.Module]]
    """The network that is read."""
    processors: ClassVar[tuple[str, ...]]
    """The attention processors whose product is that of the wiring."""
    joint: ClassVar[bool]
    """Text and image share one softmax."""
    encoder: ClassVar[tuple[str, str]]
    """The text encoder of the keys, and what the network calls the width of its vectors."""
    announces: ClassVar[type[TransformerEvents]] = TransformerEvents
    """What hears the pipeline."""
    events: TransformerEvents

    def __init__(
        self,
        pipe: Any,
        *,
        prompt: Told = None,
        negative: bool = False,
        size: tuple[int, int] | None = None,
        max_sequence_length: int | None = None,
    ) -> None:
        network: Any = getattr(pipe, "transformer", None)
        if isinstance(network, nn.Module):
            refuse_compiled(network)
        if not isinstance(network, self.kind):
            raise NotImplementedError(
                f"{type(pipe).__name__}: the denoiser is a {type(network).__name__}, and this adapter reads a "
                f"{self.kind.__name__}; {PAGE} says which pipelines are read"
            )
        self.pipe, self.network, self.negative = pipe, network, negative
        self._check_width()
        pixels = self.native() if size is None else size
        edge = pipe.vae_scale_factor * self.patch
        if any(side % edge for side in pixels):
            raise ValueError(f"size {pixels} is no multiple of {edge}, the pixels of an attention cell")
        super().__init__(pipe, network, self.channels, tuple(side // pipe.vae_scale_factor for side in pixels), prompt)
        self.layers = tuple(path for path, part in network.named_modules() if self.reads(path, part))
        self.room = max_sequence_length or self.default("max_sequence_length")
        self.events = self.announces(self)
        self._orders: dict[TokenizedPrompt, tuple[int, ...]] = {}
        self._beside: dict[bytes, dict[str, Any]] = {}  # what the network reads beside a context

    # what the families say ----------------------------------------------------------------------------------------

    @property
    def patch(self) -> int:
        """The latent cells along a side of an attention cell."""
        return self.network.config["patch_size"]

    @property
    def channels(self) -> int:
        """Of a latent."""
        return self.network.config["in_channels"]

    def native(self) -> tuple[int, int]:
        """The image that the network was made for, in pixels."""
        return (self.network.config["sample_size"] * self.pipe.vae_scale_factor,) * 2

    @abstractmethod
    def reads(self, path: str, part: nn.Module) -> bool:
        """Whether that part of the network is an attention layer with text keys."""

    @abstractmethod
    def wiring(self, attention: Any) -> Wiring:
        """What such a layer multiplies."""

    @abstractmethod
    def segments(self, text: str, given: Mapping[str, Any]) -> dict[str, TokenizedPrompt]:
        """The text as each encoder reads it, in the order of the context; `given` are arguments of `encode_prompt`."""

    def spoken(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments of `encode_prompt` with the text that gives the keys as `prompt`."""
        if not self.negative:
            return given
        told = {name: given.get(f"negative_{name}") for name in TEXTS}
        if told["prompt"] is None and told["prompt_embeds"] is None:
            told["prompt"] = ""
        return {**given, **told}

    @abstractmethod
    def encode(self, text: str) -> tuple[Float[Tensor, "1 tokens dim"], dict[str, Tensor]]:
        """The context of a text, and what the network reads beside it: tensors of one row."""

    @abstractmethod
    def arguments(
        self, latent: Tensor, timestep: float, context: Tensor, beside: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """What the network is called with."""

    @abstractmethod
    def guiding(self, made: Any) -> tuple[Tensor, Tensor | None]:
        """The encoded text and null text, of what `encode_prompt` returned."""

    def cells(self, given: Mapping[str, Any]) -> tuple[int, ...]:
        """The attention cells of a run, from the arguments of the network."""
        return tuple(side // self.patch for side in given["hidden_states"].shape[2:])

    def level(self, given: Mapping[str, Any]) -> float:
        """The scheduler's timestep, from the arguments of the network."""
        return float(given["timestep"].flatten()[0])

    def unpacked(self, packed: Tensor, cells: tuple[int, ...]) -> Float[Tensor, "batch channels *grid"]:
        """A latent as the scheduler and the network have it, by its attention cells."""
        return packed

    def _check_width(self) -> None:
        part, wide = self.encoder
        encoder = getattr(self.pipe, part, None)
        width, wanted = encoder and encoder.config.hidden_size, self.network.config[wide]
        if encoder is not None and width != wanted:
            raise ValueError(
                f"the {part} of {type(self.pipe).__name__} gives vectors of width {width}, but the transformer takes "
                f"{wanted} ({wide}): these two do not belong together"
            )

    def shift(self, scheduler: Any, steepest: float) -> float:
        """How far the noise levels move for the number of image positions: on a straight line, as the pipelines do.

        `steepest` is the shift of long lines where the scheduler does not say.
        """
        known = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": steepest}
        short, long, low, high = (scheduler.config.get(name, value) for name, value in known.items())
        positions = prod(side // self.patch for side in self.latent_shape[1:])
        return low + (positions - short) * (high - low) / (long - short)

    # seams --------------------------------------------------------------------------------------------------------

    def hooked(self, layer: str, use: Use, edit: bool) -> AbstractContextManager[None]:
        attention: Any = self.network.get_submodule(layer)

        def refuse() -> None:
            kind = type(attention.processor).__name__
            odd = [part for part in ("fused_projections", "residual_connection") if getattr(attention, part, False)]
            if kind not in self.processors or odd:
                raise NotImplementedError(
                    f"{layer} attends by {kind}{' with ' + ', '.join(odd) if odd else ''}, which is not read here "
                    f"(read are {', '.join(self.processors)}); {LESSON} teaches adding another"
                )

        refuse()
        wiring, seats = self.wiring(attention), self.events.seats
        return joint_products(self.watching, seats, layer, attention, wiring, refuse, use, edit)

    # text ---------------------------------------------------------------------------------------------------------

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        return self.read(prompt, {"max_sequence_length": self.room})

    def read(self, text: str, given: Mapping[str, Any]) -> TokenizedPrompt:
        """The text's positions, those of several segments in one line; beside the image where the two are joint."""
        if given.get("clean_caption") and self.pipe._text_preprocessing(text, True)[0] != text.lower().strip():
            raise NotImplementedError(
                f"clean_caption rewrites {text!r}, so its words cannot be found again; pass clean_caption=False"
            )
        segments, order = self.segments(text, given), None
        prompt = next(iter(segments.values()))
        if len(segments) > 1:
            prompt, order = merged(segments)
        prompt = beside_image(prompt) if self.joint else prompt
        if order is not None:
            self._orders[prompt] = order
        return prompt

    def order(self, prompt: TokenizedPrompt) -> tuple[int, ...] | None:
        """Where in the context each text position of a prompt stands; None: in its place."""
        return self._orders.get(prompt)

    def text_keys(self, prompt: TokenizedPrompt) -> int:
        return len(prompt.ids) - self.joint  # the image's own keys are the prompt's last position

    @torch.no_grad()
    def encode_prompt(self, prompt: TokenizedPrompt) -> Float[Tensor, "1 tokens dim"]:
        context, beside = self.encode(prompt.text)
        self._beside[_mark(context[0])] = {"order": self.order(prompt), "read": beside}
        return context

    def remove(
        self, prompt: TokenizedPrompt, rows: Sequence[int], how: Literal["after", "before"] = "after"
    ) -> Float[Tensor, "1 tokens dim"]:
        if how == "before":
            return self.encode_prompt(self.tokenize(without(prompt, rows)))
        if how != "after":
            raise ValueError(f"how = {how!r}; a word is removed 'after' or 'before' the text encoder")
        context = self.encode_prompt(prompt)
        order = self.order(prompt) or tuple(range(context.shape[1]))
        at = [prompt.kept[row] for row in rows]
        if any(position >= len(order) for position in at):
            raise ValueError("the image's own keys are no text; name rows of words")
        gone = {order[position] for position in at}
        stay = [position for position in range(context.shape[1]) if position not in gone]
        known = self._beside[_mark(context[0])]
        less = context[:, stay]
        beside = {name: part[:, stay] if name == "mask" else part for name, part in known["read"].items()}
        places = {position: number for number, position in enumerate(stay)}
        left = known["order"] and tuple(places[position] for position in order if position in places)
        self._beside[_mark(less[0])] = {"order": left, "read": beside}
        return less

    # the denoiser -------------------------------------------------------------------------------------------------

    def denoise(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: float,
        context: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch channels *grid"]:
        try:
            known = [self._beside[_mark(row)] for row in context]
        except KeyError:
            raise ValueError(
                f"{self.name} reads more than a context (a pooled text, a mask); make contexts with encode_prompt or "
                "remove"
            ) from None
        beside = {name: torch.cat([one["read"][name] for one in known]) for name in known[0]["read"]}
        context = context.to(self.device, self.network.dtype)
        scaled = self.scaled(latent.to(self.device), timestep).to(self.network.dtype)
        with self.events.ordered(tuple(one["order"] for one in known)):
            given = self.arguments(scaled, timestep, context, beside)
            made = self.unpacked(self.network(**given, return_dict=False)[0], self.cells(given))
        return made[:, : latent.shape[1]]  # without a learned variance

    def asked(
        self, samples: int, steps: int | None, guidance_scale: float | None, negative_prompt: str | None
    ) -> dict[str, Any]:
        height, width = self.geometry.shape
        sizes = {"height": height, "width": width, "max_sequence_length": self.room}
        return sizes | self.usual(samples, steps, guidance_scale, negative_prompt)

    def prompts(self, given: Mapping[str, Any], samples: int) -> tuple[TokenizedPrompt, ...]:
        """One prompt a sample, from the arguments of the pipeline's `encode_prompt`."""
        given = self.spoken(given)
        texts = (told if isinstance(told, str) else told.text for told in self.texts(given, samples))
        return tuple(self.read(text, given) for text in texts)


def _mark(context: Float[Tensor, "tokens dim"]) -> bytes:
    """What tells contexts apart."""
    return blake2b(context.detach().float().cpu().numpy().tobytes(), digest_size=16).digest()
