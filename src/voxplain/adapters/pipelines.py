"""Hearing a diffusers pipeline from outside: what it was asked, which rows of each batch are whose, which step it is.

A pipeline is called as its users call it, so the events come from three places that every pipeline around a U-Net
passes: `encode_prompt` (which texts, for how many samples), the U-Net (which rows run), and the scheduler's `step`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxplain.adapters.hooks import refuse_compiled
from voxplain.geometry import Geometry
from voxplain.models.events import NULL, TEXT, Announcing, Call, Event, Run, Step
from voxplain.tokens import TokenizedPrompt

# the order of the branches in the batches of diffusers pipelines: one pass, two halves, two passes, three-way
LAYOUTS = ((TEXT,), (NULL, TEXT), (NULL,), (TEXT, NULL), (TEXT, NULL, NULL))
OTHER = "other"  # the branch of rows that are neither heard nor the null text's

Read = Callable[[Mapping[str, Any], int], tuple[TokenizedPrompt, ...]]  # arguments of encode_prompt, samples -> prompts
MISSING = object()


class PipelineEvents(Announcing):
    """Announces the `Run`, `Call`s and `Step`s of every call of a pipeline, while somebody watches.

    `read` says which prompt each sample has. `heard` is the branch whose maps are wanted: its rows are announced as
    "text". Rows are told apart by comparing what the U-Net is given with what the pipeline encoded, so a batch of any
    other make-up is refused and never guessed. Nothing stays behind when the last watcher leaves.
    """

    def __init__(self, pipe: Any, unet: nn.Module, read: Read, geometry: Callable[..., Geometry], heard: str) -> None:
        self._pipe, self._unet, self._read, self._geometry, self._heard = pipe, unet, read, geometry, heard
        self._watchers: list[Callable[[Event], None]] = []
        self._stack = ExitStack()
        self._schedulers: list[Any] = []
        self._bare: Call | None = None
        self._forget()

    def _forget(self) -> None:
        """No run is under way."""
        self._encoded: dict[str, Tensor] = {}
        self._prompts: tuple[TokenizedPrompt, ...] = ()
        self._steps, self._step = 0, 0
        self._context: Tensor | None = None
        self._rows: tuple[tuple[int, str], ...] = ()

    @contextmanager
    def watching(self, callback: Callable[[Event], None]) -> Iterator[None]:
        """Hand every event inside the block to `callback`."""
        with ExitStack() as leaving:
            self._watchers.append(callback)
            leaving.callback(self._leave, callback)
            if len(self._watchers) == 1:
                self._attach()
            yield

    @contextmanager
    def predicting(self, call: Call) -> Iterator[None]:
        """The U-Net runs inside the block outside of any pipeline call; its rows are those of `call`."""
        self._bare = call
        try:
            yield
        finally:
            self._bare = None

    # what families do in their own way ----------------------------------------------------------------------------

    takes: tuple[str, ...] = ("sample", "timestep", "encoder_hidden_states")  # the denoiser's positional arguments

    def contexts(self, given: Mapping[str, Any], made: Any) -> tuple[Tensor, Tensor | None]:
        """The encoded text and null text, of what `encode_prompt` made of its arguments."""
        if isinstance(made, tuple):
            return made[:2]
        # three-way guidance gives one tensor: text, null, null
        return made.chunk(3)[:2] if given["do_classifier_free_guidance"] else (made, None)

    def grid(self, given: Mapping[str, Any]) -> tuple[int, ...]:
        """The cells of the latent, from the arguments of the denoiser."""
        return tuple(given["sample"].shape[2:])

    def level(self, given: Mapping[str, Any]) -> float:
        """The timestep, from the arguments of the denoiser."""
        return float(torch.as_tensor(given["timestep"]).flatten()[0])

    def latent(self, stepped: Tensor) -> Tensor:
        """`[samples, channels, *grid]`, of what the scheduler steps."""
        return stepped

    def called(self, branch: str, heard: bool) -> str:
        """The name under which rows of a branch are announced."""
        return TEXT if heard else NULL if branch == NULL and self._heard == TEXT else OTHER

    # what is hung into the pipeline -------------------------------------------------------------------------------

    def _attach(self) -> None:
        refuse_compiled(self._unet)
        self._forget()
        name = "encode_prompt" if hasattr(self._pipe, "encode_prompt") else "_encode_prompt"
        self._stack.enter_context(replaced(self._pipe, name, self._encoding))
        self._stack.callback(self._unet.register_forward_pre_hook(self._calling, with_kwargs=True).remove)
        self._hear_scheduler()

    def _leave(self, callback: Callable[[Event], None]) -> None:
        self._watchers.remove(callback)
        if not self._watchers:
            self._stack.close()
            self._schedulers.clear()
            self._forget()

    def _hear_scheduler(self) -> None:
        scheduler = self._pipe.scheduler
        if not any(scheduler is one for one in self._schedulers):
            self._stack.enter_context(replaced(scheduler, "step", self._stepping))
            self._schedulers.append(scheduler)

    def _encoding(self, encode: Callable) -> Callable:
        """Around the pipeline's `encode_prompt`: a generation begins."""

        @wraps(encode)
        def heard(*args: Any, **kwargs: Any) -> Any:
            given, made = bound(encode, *args, **kwargs), encode(*args, **kwargs)
            text, null = self.contexts(given, made)
            self._forget()
            self._prompts = self._read(given, len(text))
            self._encoded = {TEXT: text} if null is None else {TEXT: text, NULL: null}
            if self._heard not in self._encoded:
                raise ValueError("this run has no guidance, so no negative prompt is read; give guidance_scale > 1")
            self._hear_scheduler()  # which may have been exchanged since the block began
            return made

        return heard

    def _calling(self, unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before the U-Net: announce whose rows it is given, and before the first time the run."""
        if self._bare is not None:
            self.announce(self._bare)
            return
        if not self._encoded:
            return  # outside of a pipeline call; the layers refuse it if somebody listens to them
        given = dict(zip(self.takes, args, strict=False)) | kwargs
        context = given["encoder_hidden_states"]
        if context is not self._context:
            self._context, self._rows = context, self._told_apart(context)
        if self._steps == 0:
            levels = getattr(self._pipe, "num_timesteps", None) or len(self._pipe.scheduler.timesteps)
            self._steps = int(levels)
            self.announce(Run(self._prompts, self._geometry(self.grid(given)), self._steps))
        self.announce(Call(self._rows, self._step, self.level(given)))

    def _stepping(self, step: Callable) -> Callable:
        """Around the scheduler's `step`: a step is done."""

        @wraps(step)
        def heard(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(("model_output", "timestep", "sample"), args, strict=False)) | kwargs
            made = step(*args, **kwargs)
            if self._steps:
                level, samples = float(given["timestep"]), tuple(range(len(self._prompts)))
                latents = self.latent(given["sample"]), self.latent(given["model_output"])
                done = Step(self._step, level, *latents, samples)
                self._step += 1
                finished = self._step == self._steps
                if finished:
                    self._forget()
                self.announce(done)
            return made

        return heard

    def _told_apart(self, context: Float[Tensor, "rows tokens dim"]) -> tuple[tuple[int, str], ...]:
        """Sample and branch of each row that the U-Net is given."""
        samples = len(self._prompts)
        known = {branch: encoded.to(context) for branch, encoded in self._encoded.items()}
        parts = context.split(samples)
        for layout in LAYOUTS:
            if len(layout) * samples == len(context) and all(
                branch in known and torch.equal(part, known[branch]) for part, branch in zip(parts, layout, strict=True)
            ):
                first = layout.index(self._heard) if self._heard in layout else None
                named = [self.called(branch, place == first) for place, branch in enumerate(layout)]
                return tuple((sample, branch) for branch in named for sample in range(samples))
        raise ValueError(
            f"{type(self._pipe).__name__} gave its U-Net {len(context)} rows for {samples} samples, and they are not "
            "what its encode_prompt returned, so no row can be told from another; pipelines that mix or repeat the "
            "text (perturbed attention, regional prompts) are not read"
        )


def bound(call: Callable, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """What a function is called with, by name, defaults included."""
    made = signature(call).bind(*args, **kwargs)
    made.apply_defaults()
    return made.arguments


@contextmanager
def replaced(thing: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """`thing.name` is what `make` makes of it inside the block, on this one object, and as it was afterwards."""
    before = vars(thing).get(name, MISSING)
    setattr(thing, name, make(getattr(thing, name, None)))
    try:
        yield
    finally:
        if before is MISSING:
            delattr(thing, name)
        else:
            setattr(thing, name, before)
