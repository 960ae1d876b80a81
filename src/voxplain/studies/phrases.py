"""The text encoder before it meets an image: texts of cases, and what each word's phrase speaks of.

An encoder that learns from the denoising loss alone has to find out from a hundredth of that loss which side belongs to
which finding. Here the grammar says it: every word learns to tell the finding, negation, side, lobe and degree of its
phrase (ours). Text alone: no image and no mask is read.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from voxplain.datasets.phantom.cases import Case
from voxplain.datasets.phantom.findings import KINDS, LOBES, Plan
from voxplain.datasets.phantom.impressions import Impression, Mention, compose, request
from voxplain.datasets.phantom.lexicon import DEGREES
from voxplain.models.thorax.text import TextEncoder, Tokenizer
from voxplain.studies.loop import Checkpoint, Log, descend, set_rate
from voxplain.tokens import TokenizedPrompt

# How often a text is of each kind: the levels of `compose`, and "full", bare phrases that name all there is to name
LEVELS = {"full": 0.45, "composed": 0.35, "template": 0.1, "label": 0.1}
DENIED = 0.3  # share of full texts that deny one more finding
ORGAN = "organ"
FACTS: dict[str, tuple[str | bool | None, ...]] = {
    "kind": (*KINDS, ORGAN),
    "negated": (False, True),
    "side": (None, "left", "right", "bilateral"),
    "lobe": (None, *LOBES),
    "degree": (None, "small", "moderate", "large"),
}
_DEGREE = {word: degree for table in DEGREES.values() for degree, words in table.items() for word in words}


def text_of(case: Case, rng: np.random.Generator) -> Impression:
    """A new text of a training case, of a random kind."""
    level = str(rng.choice(list(LEVELS), p=list(LEVELS.values())))
    if level != "full":
        return compose(case, rng, level)
    plans = [Plan(f.kind, f.side, f.lobe, f.severity, f.count) for f in case.findings]
    others = sorted(set(KINDS) - {plan.kind for plan in plans})
    return request(plans, rng, absent=[str(rng.choice(others))] if rng.random() < DENIED else [], plain=True)


def facts_of(impression: Impression, prompt: TokenizedPrompt) -> Int[np.ndarray, "facts tokens"]:
    """For each of `FACTS` and each token, 1 + the index of what its phrase says; 0 outside of any phrase."""
    told = np.zeros((len(FACTS), len(prompt.ids)), np.int64)
    for mention in sorted(impression.mentions, key=lambda each: each.kind in KINDS):  # "heart" in "enlarged heart"
        first, last = mention.phrase
        values = [1 + FACTS[name].index(value) for name, value in _said(mention, impression.text[first:last]).items()]
        inside = [span is not None and first <= span[0] and span[1] <= last for span in prompt.spans]
        told[:, inside] = np.array(values)[:, None]
    return told


def _said(mention: Mention, phrase: str) -> dict[str, str | bool | None]:
    degrees = [_DEGREE[word] for word in phrase.lower().split() if word in _DEGREE]
    return {
        "kind": mention.kind if mention.kind in KINDS else ORGAN,
        "negated": mention.negated,
        "side": mention.side,
        "lobe": mention.lobe,
        "degree": degrees[0] if degrees else None,
    }


def fit_text_encoder(
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    cases: Sequence[Case],
    path: Path,
    log: Log,
    stopped: Callable[[], bool],
    *,
    seed: int,
    steps: int,
    batch: int,
    rate: float,
    warmup: int,
) -> None:
    """Train the encoder on texts of the cases, from its checkpoint at `path`; the rate warms up for `warmup` steps."""
    device = encoder.positions.device
    width = encoder.positions.shape[1]
    heads = nn.ModuleList(nn.Linear(width, 1 + len(values)) for values in FACTS.values())
    network = nn.ModuleList([encoder, heads.to(device)])
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-3)
    state = Checkpoint(path, {"network": network, "optimizer": optimizer})
    first = state.load()
    log.begin("text", first, steps)
    for step in range(first, steps):
        set_rate(optimizer, rate, step, steps, warmup)
        rng = np.random.default_rng((seed, 3, step))
        texts = [text_of(cases[number], rng) for number in rng.integers(0, len(cases), batch)]
        prompts = [tokenizer.tokenize(text.text) for text in texts]
        longest = max(len(prompt.kept) for prompt in prompts)
        ids = torch.tensor([prompt.ids[:longest] for prompt in prompts], device=device)
        told = np.stack([facts_of(*pair)[:, :longest] for pair in zip(texts, prompts, strict=True)], axis=1)
        loss = _untold(encoder(ids)[ids > 2], torch.from_numpy(told).to(device)[:, ids > 2], heads)
        descend(loss, optimizer, network)
        log.step(step, loss.item())
        state.settle(step, steps, stopped)


def _untold(words: Tensor, told: Tensor, heads: nn.ModuleList) -> Tensor:
    """Cross-entropy of all facts, summed."""
    return torch.stack([cross_entropy(head(words), fact) for head, fact in zip(heads, told, strict=True)]).sum()
