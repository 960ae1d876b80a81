"""What a pipeline announces while it generates, to whoever watches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxplain.geometry import Geometry
from voxplain.models.diagnosis import explain_nan
from voxplain.tokens import TokenizedPrompt

TEXT, NULL = "text", "null"  # the branches of classifier-free guidance


@dataclass(frozen=True, slots=True)
class Run:
    """A generation begins: one prompt a sample, the geometry of the images to come, and how many steps it takes."""

    prompts: tuple[TokenizedPrompt, ...]
    geometry: Geometry
    steps: int


@dataclass(frozen=True, slots=True)
class Call:
    """The denoiser is about to run: row i of its batch is (sample, branch) `rows[i]`.

    Rows of several noise levels have them in `levels`; `timestep` is that of the first row then.
    """

    rows: tuple[tuple[int, str], ...]
    step: int
    timestep: float
    levels: tuple[float, ...] = ()

    def level(self, row: int) -> float:
        """The noise level of a row."""
        return self.levels[row] if self.levels else self.timestep


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step is done: the latent that went in and the guided prediction, `[samples, channels, *grid]` each."""

    step: int
    timestep: float
    latent: Tensor
    prediction: Tensor
    samples: tuple[int, ...]


Event = Run | Call | Step


class Announcing:
    """Tells what it does to all who are watching; whoever derives from it sets `_watchers` to an empty list."""

    _watchers: list[Callable[[Event], None]]

    @contextmanager
    def watching(self, callback: Callable[[Event], None]) -> Iterator[None]:
        """Hand every `Run`, `Call` and `Step` of the generations inside the block to `callback`."""
        self._watchers.append(callback)
        try:
            yield
        finally:
            self._watchers.remove(callback)

    def announce(self, event: Event) -> None:
        """Tell all who are watching."""
        for watcher in tuple(self._watchers):
            watcher(event)

    @contextmanager
    def predicting(self, call: Call) -> Iterator[None]:
        """The denoiser runs once inside the block, outside of any generation; its rows are those of `call`."""
        self.announce(call)
        yield

    def descend(
        self,
        latent: Float[Tensor, "samples channels *grid"],
        levels: Sequence[float],
        predict: Callable[[Tensor, float, int], Tensor],
        move: Callable[[Tensor, Tensor, int], Tensor],
        *,
        network: nn.Module,
        encode: Callable[[], Any],
        progress: Callable[[int, int], None] | None,
    ) -> Float[Tensor, "samples channels *grid"]:
        """The latent behind the last of the noise levels; each `Step` is announced, each `Call` is `predict`'s to say.

        `predict(latent, level, step)` is the guided prediction, `move(latent, prediction, step)` where it leads, and
        `progress(done, steps)` follows. Raises FloatingPointError for a value that is not finite, naming the step and
        the first module of `network` that made one; `encode` runs the text encoder again for that.
        """
        numbers = tuple(range(len(latent)))
        for step, level in enumerate(levels):
            prediction = predict(latent, level, step)
            following = move(latent, prediction, step)
            if not (torch.isfinite(prediction).all() and torch.isfinite(following).all()):
                again = latent, level, step
                where = f"step {step + 1} of {len(levels)} (timestep {level:g})"
                explain_nan(network, lambda again=again: (encode(), predict(*again)), where)
            self.announce(Step(step, level, latent, prediction, numbers))
            latent = following
            if progress:
                progress(step + 1, len(levels))
        return latent
