"""What tracing costs, measured: CPU time in parts of a run, operations and bytes counted, memory at its peak."""

import ctypes
import gc
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

MEMORY = Path("/proc/self/status")  # of Linux


class Clock:
    """CPU seconds of this process in the parts that it goes around; a part inside of another counts once."""

    def __init__(self) -> None:
        self.seconds, self._depth, self._start = 0.0, 0, 0.0

    def enter(self) -> None:
        if self._depth == 0:
            self._start = time.process_time()
        self._depth += 1

    def leave(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.process_time() - self._start

    def around(self, job: Callable) -> Callable:
        @wraps(job)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter()
            try:
                return job(*args, **kwargs)
            finally:
                self.leave()

        return timed


@contextmanager
def inside(modules: Iterable[nn.Module], clock: Clock) -> Iterator[None]:
    """Time the modules and every hook that hangs on them already."""
    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(lambda *_: clock.enter(), prepend=True).remove)
            hooks.callback(module.register_forward_hook(lambda *_: clock.leave()).remove)
        yield


@contextmanager
def registering(clock: Clock) -> Iterator[None]:
    """Time, for as long as they stay, the hooks that are registered on any module inside the block."""

    def timed(register: Callable) -> Callable:
        return lambda module, hook, **more: register(module, clock.around(hook), **more)

    with ExitStack() as patches:
        for name in ("register_forward_hook", "register_forward_pre_hook"):
            patches.enter_context(patch.object(nn.Module, name, timed(getattr(nn.Module, name))))
        yield


class Counted(TorchDispatchMode):
    """Counts what PyTorch does inside the block.

    `flops` are those of matrix products, convolutions and attention, two for a multiplication with an addition;
    `nbytes` is what all operators are given and give back, views excepted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if not func.is_view:
            packet = func._overloadpacket
            if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
                self.flops += sdpa_flop_count(*(one.shape for one in args[:3]))
            elif packet in flop_registry:
                self.flops += flop_registry[packet](*args, **kwargs, out_val=made)
            self.nbytes += sum(
                _bytes(one) for one in tree_leaves((args, kwargs, made)) if isinstance(one, torch.Tensor)
            )
        return made


def _bytes(tensor: torch.Tensor) -> int:
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())  # what is expanded is read once


def with_peak(job: Callable[[], Any]) -> tuple[Any, int | None]:
    """What the job returns, and by how many bytes the process grew at most meanwhile; None where nobody can say.

    Memory that was freed before is handed back to the system first, so that none is taken from it unseen.
    """
    gc.collect()
    if not MEMORY.exists():
        return job(), None
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    MEMORY.with_name("clear_refs").write_text("5")  # the peak is counted from here on
    before = _resident("VmRSS")
    made = job()
    return made, max(0, _resident("VmHWM") - before)


def _resident(which: str) -> int:
    line = next(line for line in MEMORY.read_text().splitlines() if line.startswith(which))
    return 1024 * int(line.split()[1])
