from contextlib import contextmanager

import numpy as np
import pytest
import torch

from voxplain.adapters.toy import ToyAdapter
from voxplain.attention import AttentionCall
from voxplain.testing import ATTENTION, GENERAL, SINGLE_KEY, check_adapter
from voxplain.tokens import TokenizedPrompt


def test_an_adapter_that_keeps_its_promises_passes():
    assert check_adapter(ToyAdapter()) == [promise.__name__ for promise in GENERAL + ATTENTION]
    assert check_adapter(ToyAdapter(single_key=True)) == [promise.__name__ for promise in GENERAL + SINGLE_KEY]


OPEN = []  # context managers that nobody closes: collected as garbage, they would close themselves


class Changing(ToyAdapter):
    """Looks by replacing the kernel, so the traced image differs."""

    def observe(self, layer, listener):
        def look(call):
            listener(call)
            return call.probs() * (1 + 1e-6)

        return self.edit(layer, look)


class Leaking(ToyAdapter):
    """Never takes its hooks off."""

    @contextmanager
    def observe(self, layer, listener):
        OPEN.append(super().observe(layer, listener))
        OPEN[-1].__enter__()
        yield


class LeakingOnErrors(ToyAdapter):
    """Takes its hooks off only when all goes well."""

    @contextmanager
    def observe(self, layer, listener):
        seam = super().observe(layer, listener)
        OPEN.append(seam)
        seam.__enter__()
        yield
        seam.__exit__(None, None, None)


class HearsEverything(ToyAdapter):
    """Hands out the unconditional rows as well, as if they were conditional."""

    def predict(self, latent, timestep, context, *, rows=None, step=0):
        rows = [(sample, "text") for sample, _ in rows or [(number, "text") for number in range(len(latent))]]
        return super().predict(latent, timestep, context, rows=rows, step=step)


class WrongHalf(ToyAdapter):
    """Takes the unconditional half of the batch for the conditional one."""

    def predict(self, latent, timestep, context, *, rows=None, step=0):
        if rows and len({branch for _, branch in rows}) == 2:
            rows = [(sample, {"text": "null", "null": "text"}[branch]) for sample, branch in rows]
        return super().predict(latent, timestep, context, rows=rows, step=step)


class MixesSamples(ToyAdapter):
    """Says sample 0 of every row."""

    def predict(self, latent, timestep, context, *, rows=None, step=0):
        rows = [(0, branch) for _, branch in rows] if rows else None
        return super().predict(latent, timestep, context, rows=rows, step=step)


class SwapsSamples(ToyAdapter):
    """Gives each sample the attention of the other."""

    def observe(self, layer, listener):
        def swapped(call):
            values = {name: getattr(call, name) for name in AttentionCall.__slots__}
            listener(AttentionCall(**{**values, "sample": 1 - call.sample}))

        return super().observe(layer, swapped)


class SkipsALayer(ToyAdapter):
    """Is deaf at one layer."""

    def observe(self, layer, listener):
        return super().observe(layer, listener if layer == self.layers[0] else lambda call: None)


class DropsAToken(ToyAdapter):
    """Hands out keys of less tokens than there are."""

    def observe(self, layer, listener):
        def fewer(call):
            values = {name: getattr(call, name) for name in AttentionCall.__slots__}
            listener(AttentionCall(**{**values, "key": call.key[:, :-1]}))

        return super().observe(layer, fewer)


class Forgetful(ToyAdapter):
    """Draws another noise each time."""

    calls = 0

    def generate(self, prompt, *, seed=0, **options):
        Forgetful.calls += 100
        seed = [one + Forgetful.calls for one in seed] if isinstance(seed, list) else seed + Forgetful.calls
        return super().generate(prompt, seed=seed, **options)


class DeafToText(ToyAdapter):
    """Predicts the same whatever the prompt."""

    def encode_prompt(self, prompt: TokenizedPrompt):
        return super().encode_prompt(self.tokenize("mild"))


class KeepsEdits(ToyAdapter):
    """Stays edited after the block."""

    @contextmanager
    def edit(self, layer, editor):
        OPEN.append(super().edit(layer, editor))
        OPEN[-1].__enter__()
        yield


class AcceptsAnything(ToyAdapter):
    """Does not notice a layer that is not there."""

    def observe(self, layer, listener):
        return super().observe(layer if layer in self.layers else self.layers[0], listener)


class SilentSteps(ToyAdapter):
    """Announces no step."""

    @contextmanager
    def watching(self, callback):
        with super().watching(lambda event: None if type(event).__name__ == "Step" else callback(event)):
            yield


class LeakingRefusal(Leaking):
    """Refuses a single key, and leaves its hooks on."""

    def __init__(self):
        super().__init__(single_key=True)


class RisingNoise(ToyAdapter):
    """Lists its noise levels from clean to noisy."""

    def timesteps(self, steps):
        return tuple(float(level) for level in np.linspace(0, 990, steps))


class ShortensNothing(ToyAdapter):
    """Removes a word by writing zeros over it, which is still a key."""

    def remove(self, prompt, rows, how="after"):
        context = torch.clone(self.encode_prompt(prompt))
        context[:, [prompt.kept[row] for row in rows]] = 0
        return context


class TakesTheFirstLevel(ToyAdapter):
    """Says that rows may be at levels of their own, and reads all of them at the first one."""

    mixes_levels = True

    def denoise(self, latent, timestep, context):
        level = timestep[0] if isinstance(timestep, tuple) else timestep
        return super().denoise(latent, level, context) * (1 + level / 1000)


@pytest.mark.parametrize(
    ("wrong", "promise"),
    [
        (TakesTheFirstLevel, "rows_keep_their_noise_levels"),
        (Changing, "observing_leaves_the_image_bit_identical"),
        (Leaking, "nothing_is_left_behind"),
        (LeakingOnErrors, "nothing_is_left_behind"),
        (HearsEverything, "calls_fit_their_prompt_and_step"),
        (WrongHalf, "only_conditional_rows_are_heard"),
        (MixesSamples, "calls_fit_their_prompt_and_step"),
        (SwapsSamples, "samples_of_a_batch_are_not_mixed"),
        (SkipsALayer, "calls_fit_their_prompt_and_step"),
        (DropsAToken, "calls_fit_their_prompt_and_step"),
        (Forgetful, "generation_repeats_by_seed"),
        (DeafToText, "text_reaches_the_prediction"),
        (KeepsEdits, "edits_reach_the_image_and_end"),
        (AcceptsAnything, "unknown_layers_are_refused"),
        (SilentSteps, "runs_and_steps_are_announced"),
        (LeakingRefusal, "attention_is_refused_in_favor_of_effect"),
        (RisingNoise, "images_become_latents_and_back"),
        (ShortensNothing, "positions_can_be_removed"),
    ],
)
def test_a_deliberately_wrong_adapter_is_rejected_by_name(wrong, promise):
    with pytest.raises(AssertionError, match=f"(?m)^{promise}: "):
        check_adapter(wrong())
