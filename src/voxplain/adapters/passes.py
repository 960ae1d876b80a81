"""The passes of a transformer: which text and image positions each has, and which of them read the prompt."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from voxplain.adapters.joint import Seats
from voxplain.adapters.pipelines import OTHER, PipelineEvents, bound, replaced
from voxplain.models.events import NULL, TEXT, Call


class TransformerEvents(PipelineEvents):
    """The events of a pipeline around a transformer, and where text and image are in its run.

    Pipelines that change the size that they were asked for, and cut their image afterwards, are refused: what they give
    is not what the maps cover.
    """

    takes = ("hidden_states",)

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        self.cells: tuple[int, ...] = ()
        self._texts = 0
        self._bare_orders: tuple[tuple[int, ...] | None, ...] | None = None
        super().__init__(
            adapter.pipe, adapter.network, adapter.prompts, adapter.image_geometry, NULL if adapter.negative else TEXT
        )

    def seats(self, call: Call) -> Seats:
        """Where things are in the run that was announced last."""
        orders = self._bare_orders
        if orders is None:
            orders = tuple(self.adapter.order(self._prompts[sample]) for sample, _ in call.rows)
        return Seats(self.cells, self._texts, orders)

    @contextmanager
    def ordered(self, orders: tuple[tuple[int, ...] | None, ...]) -> Iterator[None]:
        """The text keys of the rows of a bare prediction."""
        self._bare_orders = orders
        try:
            yield
        finally:
            self._bare_orders = None

    def contexts(self, given: Mapping[str, Any], made: Any) -> tuple[Tensor, Tensor | None]:
        return self.adapter.guiding(made)

    def grid(self, given: Mapping[str, Any]) -> tuple[int, ...]:
        return tuple(self.adapter.patch * cells for cells in self.cells)

    def level(self, given: Mapping[str, Any]) -> float:
        return self.adapter.level(given)

    def latent(self, stepped: Tensor) -> Tensor:
        return self.adapter.unpacked(stepped, self.cells)

    def _attach(self) -> None:
        super()._attach()
        if hasattr(self._pipe.image_processor, "classify_height_width_bin"):
            self._stack.enter_context(replaced(self._pipe.image_processor, "classify_height_width_bin", _uncut))

    def _calling(self, unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = dict(zip(self.takes, args, strict=False)) | kwargs
        self.cells, self._texts = self.adapter.cells(given), given["encoder_hidden_states"].shape[1]
        if given.get("skip_layers") is not None and self._encoded:  # a run beside the conditional one, to guide it
            rows = tuple((number, OTHER) for number in range(len(given["hidden_states"])))
            self.announce(Call(rows, self._step, self.level(given)))
            return
        super()._calling(unet, args, kwargs)


class TwoTexts(TransformerEvents):
    """The events of a Flux pipeline, which encodes its negative prompt, and runs it, by a call of its own."""

    def level(self, given: Mapping[str, Any]) -> float:
        levels = self._pipe.scheduler.timesteps  # the network is given it rounded; image to image takes the last ones
        return float(levels[len(levels) - self._steps + self._step])

    def _attach(self) -> None:
        super()._attach()
        self._stack.enter_context(replaced(self._pipe, "check_inputs", self._beginning))

    def _beginning(self, check: Callable) -> Callable:
        """Around the first thing that every call of the pipeline does."""

        @wraps(check)
        def heard(*args: Any, **kwargs: Any) -> Any:
            self._forget()
            return check(*args, **kwargs)

        return heard

    def _encoding(self, encode: Callable) -> Callable:
        """Around the pipeline's `encode_prompt`: the prompt, then the negative prompt if there is one."""

        @wraps(encode)
        def heard(*args: Any, **kwargs: Any) -> Any:
            given, branch = bound(encode, *args, **kwargs), NULL if self._encoded else TEXT
            made = encode(*args, **kwargs)
            self._encoded[branch], _ = self.contexts(given, made)
            if branch == self._heard:
                self._prompts = self._read(given, len(self._encoded[branch]))
            self._hear_scheduler()  # which may have been exchanged since the block began
            return made

        return heard

    def _calling(self, unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._bare is None and self._encoded and self._heard not in self._encoded:
            raise ValueError(self.adapter.unguided)
        super()._calling(unet, args, kwargs)

    def _told_apart(self, context: Float[Tensor, "rows tokens dim"]) -> tuple[tuple[int, str], ...]:
        for branch, encoded in self._encoded.items():
            if context is encoded:  # also where the two texts are the same
                return tuple((sample, self.called(branch, branch == self._heard)) for sample in range(len(context)))
        return super()._told_apart(context)


def _uncut(classify: Callable) -> Callable:
    """Around the choice of a size among those of the training: refuse one that is not what was asked for."""

    @wraps(classify)
    def chosen(height: int, width: int, **more: Any) -> Any:
        found = classify(height, width, **more)
        if tuple(found) != (height, width):
            raise NotImplementedError(
                f"the pipeline would make {found[0]} x {found[1]} pixels and cut them to {height} x {width}, where the "
                "maps would not fit; pass use_resolution_binning=False, or ask for the size that it makes"
            )
        return found

    return chosen
