"""What every training here shares: a rate, a descent, a checkpoint, a log, and an end between two steps."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from voxplain.studies.optimizing import MuonAndAdamW

Optimizer = torch.optim.Optimizer | MuonAndAdamW

CHECKPOINT_SECONDS = 300
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def set_rate(optimizer: Optimizer, peak: float, step: int, steps: int, warmup: int) -> None:
    """Linear warm-up, then cosine decay to 2 % of the peak."""
    decay = 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / max(steps, 1)))
    for group in optimizer.param_groups:
        rate = peak * group.get("factor", 1.0) * min((step + 1) / warmup, 1.0) * decay
        group["lr"] = float(rate)  # no NumPy scalar: read back weights-only


def descend(loss: Tensor, optimizer: Optimizer, network: nn.Module) -> None:
    """One step with the gradient's norm clipped to 1; a loss that is not finite raises FloatingPointError."""
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss.item()}; resume with a lower rate")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


class Checkpoint:
    """Parts that are saved together, beside the old file and then in its place."""

    def __init__(self, path: Path, parts: dict[str, Any]) -> None:
        self.path, self.parts, self.last = path, parts, time.monotonic()

    def save(self, step: int) -> None:
        partial = self.path.with_suffix(".part")
        torch.save({"step": step, **{name: part.state_dict() for name, part in self.parts.items()}}, partial)
        partial.replace(self.path)
        self.last = time.monotonic()

    def settle(self, step: int, steps: int, stopped: Callable[[], bool]) -> None:
        """End a step: save where it is time to, or the last step, or a stop was asked for, which then ends the run."""
        due = time.monotonic() - self.last > CHECKPOINT_SECONDS
        if stopped() or due or step == steps - 1:
            self.save(step + 1)
        if stopped():
            raise KeyboardInterrupt

    def load(self) -> int:
        if not self.path.exists():
            return 0
        kept = torch.load(self.path, weights_only=True, map_location="cpu")
        for name, part in self.parts.items():
            part.load_state_dict(kept[name])
        return kept["step"]


class Log:
    """One JSON line every ten steps, and a call of `progress` at each."""

    def __init__(self, path: Path, progress: Callable[[str, int, int, float, float], None] | None) -> None:
        self.path, self.progress, self.losses = path, progress, []

    def begin(self, stage: str, first: int, steps: int) -> None:
        self.stage, self.first, self.steps, self.begun, self.losses = stage, first, steps, time.monotonic(), []

    def step(self, step: int, loss: float) -> None:
        self.losses.append(loss)
        spent = time.monotonic() - self.begun
        left = spent / (step + 1 - self.first) * (self.steps - step - 1)
        mean = float(np.mean(self.losses[-50:]))
        if self.progress:
            self.progress(self.stage, step + 1, self.steps, mean, left)
        if (step + 1) % 10 == 0 or step + 1 == self.steps:
            line = {"stage": self.stage, "step": step + 1, "loss": round(mean, 5), "seconds": round(spent, 1)}
            with self.path.open("a") as file:
                file.write(json.dumps({**line, "seconds_left": round(left)}) + "\n")


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and a polite kill end the current step, not the middle of one."""
    flags: list[int] = []
    old = {s: signal.signal(s, lambda number, _: flags.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(flags)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
