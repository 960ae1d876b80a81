"""What a pipeline announces while it generates, to whoever watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from voxplain.geometry import Geometry
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
    """The denoiser is about to run: row i of its batch is (sample, branch) `rows[i]`."""

    rows: tuple[tuple[int, str], ...]
    step: int
    timestep: float


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
