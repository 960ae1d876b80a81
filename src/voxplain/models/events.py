"""What a pipeline announces while it generates, to whoever watches."""

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
