"""The promises that every adapter must keep, and a check that runs them all."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from voxplain.adapters.base import Adapter, Run, Step
from voxplain.attention import AttentionCall, SingleKeyError
from voxplain.maps import Sample
from voxplain.tracing import Trace, attached, trace

STEPS = 2
Promise = Callable[[Adapter, Sequence[str]], None]


PROMPTS = ("large left effusion", "small nodule")


def check_adapter(adapter: Adapter, prompts: tuple[str, str] = PROMPTS) -> list[str]:
    """The promises that the adapter keeps, by name; raises AssertionError that names all it breaks.

    `prompts` are two texts the model can be given, of two words or more each. Generates about forty times, at 2
    steps. An adapter whose layers have a single text key is checked for refusing attention instead.
    """
    found = verdicts(adapter, prompts)
    if broken := [f"{name}: {reason}" for name, reason in found.items() if reason]:
        raise AssertionError(f"{adapter.name} breaks {len(broken)} promises:\n" + "\n".join(broken))
    return list(found)


def verdicts(
    adapter: Adapter,
    prompts: tuple[str, str] = PROMPTS,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, str | None]:
    """Each promise by name, with None if it is kept, else with how it is broken; see `check_adapter`.

    `progress(name, done, total)` follows each promise.
    """
    promises = GENERAL + (ATTENTION if _attends(adapter, prompts[0]) else SINGLE_KEY)
    found: dict[str, str | None] = {}
    for promise in promises:
        try:
            promise(adapter, prompts)
            found[promise.__name__] = None
        except Exception as error:  # whatever an adapter raises is a broken promise, and the others are still of use
            found[promise.__name__] = f"{type(error).__name__}: {error}"
        if progress:
            progress(promise.__name__, len(found), len(promises))
    return found


# what any adapter promises ----------------------------------------------------------------------------------------


def layers_are_named_once(adapter: Adapter, prompts: Sequence[str]) -> None:
    _need(len(adapter.layers) == len(set(adapter.layers)) > 0, f"layers: {adapter.layers}")
    strange = set(adapter.localizing_layers) - set(adapter.layers)
    _need(not strange, f"localizing_layers that are no layers: {sorted(strange)}")


def unknown_layers_are_refused(adapter: Adapter, prompts: Sequence[str]) -> None:
    for seam in (adapter.observe, adapter.edit):
        try:
            with seam("no such layer", lambda call: None):
                pass
        except KeyError:
            continue
        raise AssertionError("an unknown layer was accepted; raise KeyError")


def tokens_cover_the_words(adapter: Adapter, prompts: Sequence[str]) -> None:
    prompt = adapter.tokenize(prompts[0])
    _need(prompt.text == prompts[0], f"text became {prompt.text!r}")
    _need(len(prompt.words) >= 2, f"{prompts[0]!r} has the words {[word.text for word in prompt.words]}")


def generation_repeats_by_seed(adapter: Adapter, prompts: Sequence[str]) -> None:
    first, again, other = (_image(adapter, prompts[0], seed=seed) for seed in (1, 1, 2))
    _need(np.array_equal(first, again), "the same seed gave another image")
    _need(not np.array_equal(first, other), "another seed gave the same image")


def runs_and_steps_are_announced(adapter: Adapter, prompts: Sequence[str]) -> None:
    runs: list[Run] = []
    steps: list[Step] = []
    with adapter.on_run(runs.append), adapter.on_step(steps.append):
        made = adapter.generate(list(prompts), seed=0, steps=STEPS)
    _image(adapter, prompts[0])
    count = len(adapter.timesteps(STEPS))  # some schedulers make a call more
    _need(len(runs) == 1 and runs[0].steps == count, f"{len(runs)} runs were announced, not one of {count} steps")
    _need([prompt.text for prompt in runs[0].prompts] == list(prompts), "a run must name the prompt of each sample")
    _need([step.step for step in steps] == list(range(count)), f"steps announced: {[step.step for step in steps]}")
    shape = (len(prompts), *adapter.latent_shape)
    _need(
        all(step.latent.shape == step.prediction.shape == shape for step in steps), f"a step's tensors are not {shape}"
    )
    levels, stated = [step.timestep for step in steps], list(adapter.timesteps(STEPS))
    _need(levels == stated, f"timesteps {levels}, but timesteps() says {stated}")
    _need(isinstance(made, list) and all(one.geometry.same_as(adapter.geometry) for one in made), "geometry differs")


def images_become_latents_and_back(adapter: Adapter, prompts: Sequence[str]) -> None:
    image = _image(adapter, prompts[0])
    latent = adapter.encode_image(image)
    _need(latent.shape == (1, *adapter.latent_shape), f"encode_image gave {tuple(latent.shape)}")
    back = adapter.decode(latent)
    _need(back.shape == (1, *image.shape), f"decode gave {back.shape} for an image {image.shape}")
    levels = adapter.timesteps(4)
    _need(len(levels) >= 4 and list(levels) == sorted(levels, reverse=True), f"timesteps(4) are {levels}")
    nothing, noise = torch.zeros_like(latent), torch.ones_like(latent)
    noisy = [adapter.add_noise(nothing, noise, level).abs().mean() for level in levels]
    _need(bool(noisy[0] > noisy[-1]), "the first timestep must be the noisiest")


def text_reaches_the_prediction(adapter: Adapter, prompts: Sequence[str]) -> None:
    prompt = adapter.tokenize(prompts[0])
    latent = torch.zeros(1, *adapter.latent_shape).to(adapter.encode_prompt(prompt))  # where the model is
    removed, level = adapter.remove(prompt, prompt.words[0].rows, how="before"), adapter.timesteps(STEPS)[0]
    with torch.no_grad():
        whole = adapter.predict(latent, level, adapter.encode_prompt(prompt))
        less = adapter.predict(latent, level, removed)
    _need(whole.shape == less.shape == latent.shape, f"predict gave {tuple(whole.shape)} for {tuple(latent.shape)}")
    _need(not torch.equal(whole, less), "removing a word before the text encoder changed nothing")


def rows_keep_their_noise_levels(adapter: Adapter, prompts: Sequence[str]) -> None:
    if not adapter.mixes_levels:
        return
    levels, context = adapter.timesteps(4)[:2], adapter.encode_prompt(adapter.tokenize(prompts[0]))
    latent = torch.ones(2, *adapter.latent_shape).to(context)
    with torch.no_grad():
        together = adapter.predict(latent, levels, context)
        alone = torch.cat([adapter.predict(latent[:1], level, context) for level in levels])
    _need(torch.allclose(together, alone, rtol=1e-3, atol=1e-4), "two noise levels in one batch are not read as alone")


GENERAL: tuple[Promise, ...] = (
    layers_are_named_once,
    unknown_layers_are_refused,
    tokens_cover_the_words,
    generation_repeats_by_seed,
    runs_and_steps_are_announced,
    images_become_latents_and_back,
    text_reaches_the_prediction,
    rows_keep_their_noise_levels,
)

# what adapters promise whose attention tells tokens apart -----------------------------------------------------------


def observing_leaves_the_image_bit_identical(adapter: Adapter, prompts: Sequence[str]) -> None:
    tried: list[dict[str, Any]] = [{"guidance_scale": 1.0}, {"guidance_scale": 2.0}, {"samples": 2}]
    for options in tried:
        plain = _images(adapter.generate(prompts[0], seed=3, steps=STEPS, **options))
        with trace(adapter):
            traced = _images(adapter.generate(prompts[0], seed=3, steps=STEPS, **options))
        _need(np.array_equal(plain, traced), f"the traced image differs with {options}")


def calls_fit_their_prompt_and_step(adapter: Adapter, prompts: Sequence[str]) -> None:
    steps = range(len(adapter.timesteps(STEPS)))
    for scale in (1.0, 2.0):
        calls = _calls(adapter, prompts, guidance_scale=scale)
        expected = {(layer, n, step) for layer in adapter.layers for n in range(len(prompts)) for step in steps}
        heard = {(call.layer, call.sample, call.step) for call in calls}
        odd = heard ^ expected
        _need(not odd, f"guidance {scale}: layers, samples or steps are missing or strange: {odd}")
        _need(len(calls) == len(expected), f"guidance {scale}: {len(calls)} calls, expected {len(expected)}")
        for call in calls:
            length = len(adapter.tokenize(prompts[call.sample]).ids)
            _need(call.key.shape[1] == length, f"{call.layer}: {call.key.shape[1]} keys for {length} positions")
            _need(call.timestep == adapter.timesteps(STEPS)[call.step], f"{call.layer}: timestep {call.timestep}")
            _need(len(call.grid) == adapter.geometry.ndim, f"{call.layer}: grid {call.grid}")


def only_conditional_rows_are_heard(adapter: Adapter, prompts: Sequence[str]) -> None:
    alone = _first_keys(adapter, prompts, guidance_scale=1.0)
    guided = _first_keys(adapter, prompts, guidance_scale=2.0, negative_prompt=prompts[0])
    for place, key in alone.items():
        _need(place in guided and torch.allclose(key, guided[place], atol=1e-4), f"{place}: keys change with guidance")
    first, second = (alone[adapter.layers[0], number] for number in (0, 1))
    _need(not torch.allclose(first, second, atol=1e-4), "two prompts have the same keys")


def probabilities_sum_to_one(adapter: Adapter, prompts: Sequence[str]) -> None:
    with trace(adapter) as tracer:
        adapter.generate(list(prompts), seed=0, steps=STEPS)
    for attribution in tracer.attributions():
        total = attribution.maps.sum(0) + attribution.padding
        _need(float(np.abs(total - 1).max()) < 1e-5, "maps and padding do not sum to one")
        _need(float(attribution.maps.min()) >= 0, "a probability is negative")


def samples_of_a_batch_are_not_mixed(adapter: Adapter, prompts: Sequence[str]) -> None:
    with trace(adapter) as together:
        adapter.generate(list(prompts), seed=[5, 6], steps=STEPS)
    for prompt, seed, maps in zip(prompts, (5, 6), together.attributions(), strict=True):
        with trace(adapter) as alone:
            adapter.generate(prompt, seed=seed, steps=STEPS)
        difference = np.abs(alone.attribution().maps - maps.maps).max()
        _need(bool(difference < 1e-3), f"{prompt!r} has other maps in a batch than alone, by {difference:.2g}")


def memory_does_not_grow_with_steps(adapter: Adapter, prompts: Sequence[str]) -> None:
    kept = [_traced(adapter, prompts[0], steps).nbytes for steps in (1, 2, 4)]
    _need(len(set(kept)) == 1, f"1, 2 and 4 steps keep {kept} bytes")


def nothing_is_left_behind(adapter: Adapter, prompts: Sequence[str]) -> None:
    before = _hook_count(adapter)
    heard: list[AttentionCall] = []
    for error in (None, RuntimeError, KeyboardInterrupt):
        with _expecting(error), attached(adapter, heard.append):
            if error:
                raise error
        _need(_hook_count(adapter) == before, f"hooks are left after {error.__name__ if error else 'success'}")
    with _expecting(KeyError), attached(adapter, heard.append, [*adapter.layers[:2], "no such layer"]):
        raise AssertionError("an unknown layer was accepted")
    _need(_hook_count(adapter) == before, "hooks are left after a layer could not be attached")
    adapter.generate(prompts[0], seed=0, steps=1)
    _need(not heard, "a listener was called after its block")


def edits_reach_the_image_and_end(adapter: Adapter, prompts: Sequence[str]) -> None:
    def uniform(call: AttentionCall) -> Tensor:
        return torch.full_like(call.probs(), 1 / call.key.shape[1])

    plain = _image(adapter, prompts[0])
    scale = float(np.abs(plain).max())
    for layer in dict.fromkeys((adapter.layers[0], adapter.layers[-1])):
        with adapter.edit(layer, lambda call: None):
            _need(np.array_equal(_image(adapter, prompts[0]), plain), f"{layer}: an edit of None changed the image")
        with adapter.edit(layer, AttentionCall.probs):
            same = np.abs(_image(adapter, prompts[0]) - plain).max()
            _need(bool(same < 1e-3 * scale), f"{layer}: its own probabilities change the image by {same:.2g}")
        with adapter.edit(layer, uniform):
            _need(not np.array_equal(_image(adapter, prompts[0]), plain), f"{layer}: an edit changed nothing")
    _need(np.array_equal(_image(adapter, prompts[0]), plain), "the model stays edited after the block")


def positions_can_be_removed(adapter: Adapter, prompts: Sequence[str]) -> None:
    prompt = adapter.tokenize(prompts[0])
    rows = prompt.words[0].rows
    whole, less = adapter.encode_prompt(prompt), adapter.remove(prompt, rows)
    _need(less.shape[1] == whole.shape[1] - len(rows), f"{len(rows)} rows removed: {whole.shape[1]} -> {less.shape[1]}")


ATTENTION: tuple[Promise, ...] = (
    observing_leaves_the_image_bit_identical,
    calls_fit_their_prompt_and_step,
    only_conditional_rows_are_heard,
    probabilities_sum_to_one,
    samples_of_a_batch_are_not_mixed,
    memory_does_not_grow_with_steps,
    nothing_is_left_behind,
    edits_reach_the_image_and_end,
    positions_can_be_removed,
)


def attention_is_refused_in_favor_of_effect(adapter: Adapter, prompts: Sequence[str]) -> None:
    before = _hook_count(adapter)
    try:
        _traced(adapter, prompts[0], 1)
    except SingleKeyError as error:
        _need("effect" in str(error), f"the refusal does not name recipe 'effect': {error}")
    _need(_hook_count(adapter) == before, "hooks are left after the refusal")


SINGLE_KEY: tuple[Promise, ...] = (attention_is_refused_in_favor_of_effect,)

# tools ------------------------------------------------------------------------------------------------------------


def _need(kept: bool, otherwise: str) -> None:
    if not kept:
        raise AssertionError(otherwise)


def _attends(adapter: Adapter, prompt: str) -> bool:
    try:
        _traced(adapter, prompt, 1)
    except SingleKeyError:
        return False
    except Exception:
        return True  # the promises say what is wrong
    return True


def _traced(adapter: Adapter, prompt: str, steps: int) -> Trace:
    with trace(adapter) as tracer:
        adapter.generate(prompt, seed=0, steps=steps)
    return tracer


def _images(made: Sample | list[Sample]) -> np.ndarray:
    return np.stack([one.image for one in (made if isinstance(made, list) else [made])])


def _image(adapter: Adapter, prompt: str, seed: int = 0) -> np.ndarray:
    return _images(adapter.generate(prompt, seed=seed, steps=STEPS))[0]


def _calls(adapter: Adapter, prompts: Sequence[str], **options: Any) -> list[AttentionCall]:
    heard: list[AttentionCall] = []
    with attached(adapter, heard.append):
        adapter.generate(list(prompts), seed=0, steps=STEPS, **options)
    return heard


def _first_keys(adapter: Adapter, prompts: Sequence[str], **options: Any) -> dict[tuple[str, int], Tensor]:
    calls = _calls(adapter, prompts, **options)
    return {(call.layer, call.sample): call.key for call in calls if call.step == 0}


def _hook_count(adapter: Adapter) -> int:
    """Forward hooks on all modules that the adapter holds."""
    held = [value for value in vars(adapter).values() if isinstance(value, nn.Module)]
    modules = {id(module): module for root in held for module in root.modules()}.values()
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


@contextmanager
def _expecting(error: type[BaseException] | None) -> Iterator[None]:
    try:
        yield
    except BaseException as raised:
        if error is None or not isinstance(raised, error):
            raise
