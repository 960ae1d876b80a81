"""What a generation is asked for, checked before any work is done."""

import operator
from collections.abc import Sequence


def asked_for(
    prompt: str | Sequence[str], seed: int | Sequence[int], samples: int, steps: int, most: int, scale: float
) -> tuple[list[str], list[int]]:
    """The text and the seed of each sample, prompt by prompt: sample i has seed + i, or `seed[i]`.

    Raises ValueError for a blank prompt, for steps not in 1..`most`, a guidance scale not in 0..30, samples below 1,
    and seeds that are negative or not as many as the samples.
    """
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not texts or any(not text.strip() for text in texts):
        raise ValueError("the prompt is empty; say what the image should show, as in 'large left pleural effusion'")
    if not 1 <= steps <= most:
        raise ValueError(f"steps = {steps}; give 1 to {most}")
    if not 0 <= scale <= 30:  # NaN fails this too
        raise ValueError(f"guidance_scale = {scale}; give 0 to 30 (1 is no guidance)")
    if samples < 1:
        raise ValueError(f"samples = {samples}; give 1 or more")
    texts = [text for text in texts for _ in range(samples)]
    count = len(texts)
    seeds = list(seed) if isinstance(seed, Sequence) else [operator.index(seed) + number for number in range(count)]
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} samples; give one seed, or one a sample")
    if min(seeds) < 0:
        raise ValueError(f"seed = {min(seeds)}; give 0 or more")
    return texts, seeds
