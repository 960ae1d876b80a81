"""Ways to get maps out of a run: ours, a store of queries that computes afterwards, and the packages of others."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from tracing_models import Subject

import voxplain
from voxplain import recipes
from voxplain.attention import AttentionCall, RunningMeans
from voxplain.models.events import Run
from voxplain.tracing import attached


class Way(ABC):
    """One run is listened to in `listening`; then `maps` makes the final maps."""

    package: str | None = None
    """What has to be installed beside Voxplain."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @abstractmethod
    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear the generation inside the block."""

    @abstractmethod
    def maps(self) -> Any:
        """The final maps, `[tokens, *grid]` where the way makes one for a token."""

    @property
    @abstractmethod
    def kept(self) -> int:
        """Bytes kept at the end of the run for the maps."""


class Plain(Way):
    """The run and nothing else."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        yield

    def maps(self) -> None:
        return None

    kept = 0


class Traced(Way):
    """`voxplain.trace`."""

    recipe = "mean"

    @contextmanager
    def listening(self) -> Iterator[None]:
        with voxplain.trace(self.subject.model, recipe=self.recipe) as self.tracer:
            yield

    def maps(self) -> Any:
        return self.tracer.attribution().maps

    @property
    def kept(self) -> int:
        return self.tracer.nbytes


class TracedDaam(Traced):
    recipe = "daam"


class QueryStore(Way):
    """Keeps the queries of every layer and step, and attends with them after the run: the way of OVAM.

    Marcos-Manchon et al., CVPR 2024. What is computed is recipe `mean`, so that its maps can be compared.
    """

    @contextmanager
    def listening(self) -> Iterator[None]:
        self.runs: list[Run] = []
        self.calls: list[AttentionCall] = []
        self.keys: dict[str, torch.Tensor] = {}
        with ExitStack() as hooks:
            hooks.enter_context(self.subject.adapter.on_run(self.runs.append))
            hooks.enter_context(attached(self.subject.adapter, self.keep))
            yield

    def keep(self, call: AttentionCall) -> None:
        key = self.keys.get(call.layer)
        if key is None:  # the text, and with it the keys, are the same in every step
            key = self.keys[call.layer] = call.key.clone()
        self.calls.append(replace(call, query=call.query.clone(), key=key))

    def maps(self) -> Any:
        means = RunningMeans(self.runs[-1].prompts)
        for call in self.calls:
            means.update(call)
        return recipes.reduce(means.maps(0, self.runs[-1].geometry), "mean").maps

    @property
    def kept(self) -> int:
        return sum(call.query.nbytes for call in self.calls) + sum(key.nbytes for key in self.keys.values())

    def floor(self) -> int:
        """Operations of the scores QK^T that were heard: what no way of computing maps can spare."""
        return sum(2 * call.query.numel() * call.key.shape[1] for call in self.calls)

    def cells(self) -> int:
        """Cells of all grids, each grid once."""
        return sum(torch.Size(grid).numel() for grid in {call.grid for call in self.calls})


class Daam(Way):
    """`daam.trace` and its global heat map."""

    package = "daam"

    @contextmanager
    def listening(self) -> Iterator[None]:
        import daam

        with daam.trace(self.subject.model) as self.tracer:
            yield

    def maps(self) -> Any:
        return self.tracer.compute_global_heat_map().heat_maps.numpy()

    @property
    def kept(self) -> int:
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for _, one in self.tracer.all_heat_maps}
        return sum(storage.nbytes() for storage in storages.values())


class Capture(Way):
    """`attention_map_diffusers.AttentionCapture` as it comes: queries and keys of the last step only.

    `compute` makes a map for every layer; the package leaves it to its users to bring them together.
    """

    package = "attention-map-diffusers"
    options: dict[str, Any] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        from attention_map_diffusers import AttentionCapture

        with AttentionCapture(self.subject.model, **self.options) as self.capture:
            yield

    def maps(self) -> Any:
        return self.capture.compute()

    @property
    def kept(self) -> int:
        return self.capture.collector.capture_bytes


class CaptureAll(Capture):
    """The same, with probabilities computed in the run, in every step."""

    options = {"mode": "exact", "timesteps": "all"}


WAYS: dict[str, type[Way]] = {
    "plain": Plain,
    "plain again": Plain,  # how far two equal runs differ
    "voxplain mean": Traced,
    "voxplain daam": TracedDaam,
    "query store": QueryStore,
    "daam": Daam,
    "attention-map-diffusers": Capture,
    "attention-map-diffusers, all steps": CaptureAll,
}
OURS = ("voxplain mean", "voxplain daam")


def missing(way: str) -> str | None:
    """Why a way cannot be measured here; None where it can."""
    package = WAYS[way].package
    try:
        return None if package is None or version(package) else None
    except PackageNotFoundError:
        return f"the package {package} is not installed here; make peers, and run again"
