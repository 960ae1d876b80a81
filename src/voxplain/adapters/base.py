"""What every family of models promises to the tools that listen to it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from voxplain.attention import AttentionCall
from voxplain.geometry import Geometry
from voxplain.maps import Sample
from voxplain.models.events import TEXT, Call, Event, Run, Step
from voxplain.tokens import TokenizedPrompt

Listener = Callable[[AttentionCall], None]
Editor = Callable[[AttentionCall], Tensor | None]  # new probabilities [heads, tokens, *grid], None to leave them
Use = Callable[[AttentionCall], Any]  # a listener or an editor
Rows = Sequence[tuple[int, str]]  # (sample, branch) of each row of a batch

BUILT_IN = {  # class name of a model -> its adapter
    "LatentDiffusion": "voxplain.adapters.monai:MonaiAdapter",
    "MedSyn": "voxplain.adapters.medsyn:MedSynAdapter",
    "TextToVideoSDPipeline": "voxplain.adapters.unet3d:UNet3DAdapter",
    "PixArtAlphaPipeline": "voxplain.adapters.transformers:PixArtAdapter",
    "PixArtSigmaPipeline": "voxplain.adapters.transformers:PixArtAdapter",
    "SanaPipeline": "voxplain.adapters.transformers:SanaAdapter",
    "StableDiffusion3Pipeline": "voxplain.adapters.transformers:SD3Adapter",
    "StableDiffusion3Img2ImgPipeline": "voxplain.adapters.transformers:SD3Adapter",
    "StableDiffusion3InpaintPipeline": "voxplain.adapters.transformers:SD3Adapter",
    "FluxPipeline": "voxplain.adapters.transformers:FluxAdapter",
    "FluxImg2ImgPipeline": "voxplain.adapters.transformers:FluxAdapter",
    "FluxInpaintPipeline": "voxplain.adapters.transformers:FluxAdapter",
    "StableDiffusionMixin": "voxplain.adapters.diffusers:DiffusersAdapter",  # the base of all pipelines around a U-Net
}
LESSON = "docs/adapters.md"  # the page that teaches adding a family
GROUP = "voxplain.adapters"  # entry points of other packages, named by the class of the model


class Adapter(ABC):
    """One family of text-to-image diffusion models, seen from outside.

    Every seam is a context manager and observing leaves the output bit-identical. Layers are named by their module
    path in the denoiser. Listeners receive conditional rows (branch "text") only, whatever the guidance.
    """

    name: str
    layers: tuple[str, ...]
    """The cross-attention layers, in the order of the network."""
    localizing_layers: tuple[str, ...]
    """The layers whose maps localize best, chosen on development seeds; empty where nobody has measured."""
    words_removed: Literal["after", "before"] | None = None
    """Where the text encoder is when a word is taken out, chosen on development seeds; None where nobody measured."""
    latent_shape: tuple[int, ...]
    """[channels, *grid] of one latent."""
    geometry: Geometry
    """Of a generated image."""
    weights_hash: str | None = None
    """Which weights these are; None where nobody says."""
    mixes_levels: bool = False
    """Whether rows of one batch may be at noise levels of their own: several states are read at once then."""
    prediction: str | None = None
    """What `denoise` gives, one of `models.schedule.PREDICTIONS`; None, or another name, where DDIM does not apply."""

    # seams --------------------------------------------------------------------------------------------------------

    def observe(self, layer: str, listener: Listener) -> AbstractContextManager[None]:
        """Hand each conditional call of one layer to `listener`; KeyError if there is no such layer."""
        return self._seam(layer, listener, edit=False)

    def edit(self, layer: str, editor: Editor) -> AbstractContextManager[None]:
        """Replace the attention of one layer by the probabilities that `editor` returns for a conditional call."""
        return self._seam(layer, editor, edit=True)

    def _seam(self, layer: str, use: Use, edit: bool) -> AbstractContextManager[None]:
        if layer not in self.layers:
            raise KeyError(f"{self.name} has no layer {layer!r}; it has {', '.join(self.layers)}")
        return self.hooked(layer, use, edit)

    @abstractmethod
    def hooked(self, layer: str, use: Use, edit: bool) -> AbstractContextManager[None]:
        """Hand each conditional call of one of `layers` to `use`; with `edit` the layer attends as it returns."""

    @abstractmethod
    def watching(self, callback: Callable[[Event], None]) -> AbstractContextManager[None]:
        """Hand every `Run`, `Call` (before each run of the denoiser) and `Step` (after each step) to `callback`."""

    @abstractmethod
    def predicting(self, call: Call) -> AbstractContextManager[None]:
        """The denoiser runs once inside the block, outside of any generation; its rows are those of `call`."""

    def on_run(self, callback: Callable[[Run], None]) -> AbstractContextManager[None]:
        """Call back at the start of each generation, with the prompt of each sample."""
        return self.watching(lambda event: callback(event) if isinstance(event, Run) else None)

    def on_step(self, callback: Callable[[Step], None]) -> AbstractContextManager[None]:
        """Call back after each step, with the latent that went in and the guided prediction."""
        return self.watching(lambda event: callback(event) if isinstance(event, Step) else None)

    # the model ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def tokenize(self, prompt: str) -> TokenizedPrompt:
        """The prompt as the model reads it, cut to its context."""

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of the prompt that training never showed; none where nobody kept the training's words."""
        return []

    @abstractmethod
    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        samples: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> Sample | list[Sample]:
        """One `Sample`, or a list where `prompt` is a list or `samples` > 1: prompt by prompt, one batch.

        Sample i starts from the noise of seed + i, or of `seed[i]`. `progress(done, steps)` follows each step.
        """

    @abstractmethod
    def encode_prompt(self, prompt: TokenizedPrompt) -> Float[Tensor, "1 tokens dim"]:
        """The context that the denoiser reads, padding included."""

    def text_keys(self, prompt: TokenizedPrompt) -> int:
        """How many positions of the context a prompt has where each of its positions is a key of its own."""
        return len(prompt.ids)

    def remove(
        self, prompt: TokenizedPrompt, rows: Sequence[int], how: Literal["after", "before"] = "after"
    ) -> Float[Tensor, "1 tokens dim"]:
        """The context of a prompt without some rows (indices into `prompt.kept`).

        "after" the text encoder: their positions are taken out of the encoded context, which is what a mask of -inf
        does, as keys have no order; the context is shorter by `len(rows)`. "before" it: their characters are taken
        out of the text, which is encoded again.
        """
        if how == "before":
            return self.encode_prompt(self.tokenize(without(prompt, rows)))
        if how != "after":
            raise ValueError(f"how = {how!r}; a word is removed 'after' or 'before' the text encoder")
        context = self.encode_prompt(prompt)
        if context.shape[1] != len(prompt.ids):
            raise ValueError(
                f"{self.name} reads {context.shape[1]} text key(s) for all words; remove with how='before'"
            )
        gone = {prompt.kept[row] for row in rows}
        return context[:, [position for position in range(context.shape[1]) if position not in gone]]

    def predict(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: float | Sequence[float],
        context: Float[Tensor, "contexts tokens dim"],
        *,
        rows: Rows | None = None,
        step: int = 0,
    ) -> Float[Tensor, "batch channels *grid"]:
        """What the denoiser predicts, unguided; listeners hear it. A context of one row serves all rows.

        `rows` names the sample and branch of each row, by default sample i on the branch "text". Where the adapter
        `mixes_levels`, each row may have a timestep of its own.
        """
        batch = len(latent)
        named = tuple(rows) if rows is not None else tuple((number, TEXT) for number in range(batch))
        if len(named) != batch:
            raise ValueError(f"{len(named)} rows are named, but the batch has {batch}")
        levels = tuple(map(float, timestep)) if isinstance(timestep, Sequence) else (float(timestep),) * batch
        if len(levels) != batch or (len({*levels}) > 1 and not self.mixes_levels):
            raise ValueError(
                f"{len(levels)} timesteps from {max(levels):g} to {min(levels):g} for a batch of {batch}: give one a "
                f"row{'' if self.mixes_levels else f', all of them equal, since {self.name} takes one a batch'}"
            )
        mixed = levels if len({*levels}) > 1 else ()
        with self.predicting(Call(named, step, levels[0], mixed)):
            return self.denoise(latent, mixed or levels[0], context.expand(batch, -1, -1))

    @abstractmethod
    def denoise(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: Any,
        context: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch channels *grid"]:
        """What the denoiser makes of latents at a noise level, a float; or, where the adapter `mixes_levels`, at one
        each, a tuple of floats.
        """

    @abstractmethod
    def encode_image(self, image: Float[np.ndarray, "channels *spatial"]) -> Float[Tensor, "1 dim *grid"]:
        """The latent of one image in physical units."""

    @abstractmethod
    def decode(self, latent: Float[Tensor, "batch dim *grid"]) -> Float[np.ndarray, "batch channels *spatial"]:
        """The images of latents, in physical units."""

    @abstractmethod
    def add_noise(self, latent: Tensor, noise: Tensor, timestep: float) -> Tensor:
        """The latent at a noise level."""

    @abstractmethod
    def timesteps(self, steps: int) -> tuple[float, ...]:
        """The noise levels that `steps` steps visit, noisiest first."""


def as_adapter(model: Any, **options: Any) -> Adapter:
    """The adapter of a model: itself, or the one registered for its class or a class that it derives from.

    `options` are the adapter's own, such as `negative=True` for the maps of a pipeline's negative prompt.
    Other packages register theirs as an entry point of the group "voxplain.adapters": the name is the class name of
    the model, the object takes the model and returns an `Adapter`. Raises TypeError for an unknown class.
    """
    if isinstance(model, Adapter):
        if options:
            raise TypeError(f"{model.name} is an adapter already; give {', '.join(options)} where it is made")
        return model
    names = [kind.__name__ for kind in type(model).__mro__]
    for name in names:
        if name in BUILT_IN:
            module, _, adapter = BUILT_IN[name].partition(":")
            return getattr(import_module(module), adapter)(model, **options)
    registered = {point.name: point for point in entry_points(group=GROUP)}  # reads the metadata of every package
    for name in names:
        if name in registered:
            return registered[name].load()(model, **options)
    known = ", ".join(sorted({*BUILT_IN, *registered}))
    raise TypeError(
        f"no adapter for {type(model).__name__}; known: {known}. Pass an Adapter, or register one as an entry point "
        f"of the group {GROUP!r}; {LESSON} teaches writing one"
    )


def without(prompt: TokenizedPrompt, rows: Sequence[int]) -> str:
    """The text of a prompt without the characters of some rows; white space left double is made single."""
    gone = [prompt.spans[prompt.kept[row]] for row in rows]
    if None in gone:
        raise ValueError("start and end tokens have no characters to remove; name rows of words")
    text = list(prompt.text)
    for first, last in filter(None, gone):
        text[first:last] = [""] * (last - first)
    return " ".join("".join(text).split())
