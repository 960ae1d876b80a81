import json

import numpy as np
import torch

from voxplain.datasets.phantom.findings import Plan
from voxplain.datasets.phantom.impressions import all_words, request
from voxplain.models.thorax import TextEncoder, build_tokenizer
from voxplain.studies.loop import Log
from voxplain.studies.phrases import FACTS, facts_of, fit_text_encoder, text_of
from voxplain.studies.pool import _light

TOKENIZER = build_tokenizer(all_words())
EFFUSION = {"kind": "effusion", "side": "left", "lobe": None, "severity": "large", "count": 1, "size_mm": None}
NODULE = {**EFFUSION, "kind": "nodule", "side": "right", "lobe": "right upper lobe", "severity": "small"}
CASES = [_light({"seed": 0, "findings": found}) for found in ([EFFUSION], [NODULE], [EFFUSION, NODULE], [])]


def said(text, word):
    """What `facts_of` says of a word of an impression."""
    prompt = TOKENIZER.tokenize(text.text)
    told = facts_of(text, prompt)
    at = text.text.index(word)
    (token,) = [n for n, span in enumerate(prompt.spans) if span == (at, at + len(word))]
    return {
        name: values[code - 1] if code else "outside"
        for (name, values), code in zip(FACTS.items(), told[:, token], strict=True)
    }


def test_a_word_is_told_what_its_own_phrase_says():
    plans = [Plan("effusion", "left", severity="large"), Plan("nodule", "right", "right upper lobe", "small")]
    text = request(plans, np.random.default_rng(0), absent=["pneumothorax"], plain=True)
    effusion = said(text, text.text.split()[0])
    assert effusion == {"kind": "effusion", "negated": False, "side": "left", "lobe": None, "degree": "large"}
    nodule = said(text, "upper")
    assert nodule | {"degree": "small", "negated": False} == nodule
    assert (nodule["kind"], nodule["side"], nodule["lobe"]) == ("nodule", "right", "right upper lobe")
    denied = [m for m in text.mentions if m.negated][0]
    assert said(text, text.text[slice(*denied.span)].split()[-1])["negated"] is True


def test_what_belongs_to_no_phrase_says_nothing():
    text = request([Plan("cardiomegaly")], np.random.default_rng(1), plain=True)
    prompt = TOKENIZER.tokenize(text.text)
    told = facts_of(text, prompt)
    assert (told[:, [prompt.start, prompt.end, prompt.end + 1]] == 0).all()
    assert (told[0] > 0).any()


def test_texts_are_of_every_kind_and_say_what_the_case_has():
    rng = np.random.default_rng(3)
    texts = [text_of(CASES[0], rng) for _ in range(200)]
    assert all(any(m.kind == "effusion" and not m.negated for m in text.mentions) for text in texts)
    assert any(m.negated for text in texts for m in text.mentions)
    assert {m.side for text in texts for m in text.findings if not m.negated} == {None, "left"}


def test_an_encoder_learns_to_tell_what_its_words_belong_to(tmp_path):
    torch.manual_seed(0)
    encoder = TextEncoder(len(TOKENIZER.pieces), width=32, layers=1, heads=2)
    log = Log(tmp_path / "log.jsonl", None)
    fit_text_encoder(
        encoder, TOKENIZER, CASES, tmp_path / "text.pt", log, lambda: False,
        seed=0, steps=60, batch=16, rate=3e-3, warmup=5,
    )  # fmt: skip
    losses = [json.loads(line)["loss"] for line in log.path.read_text().splitlines()]  # means of up to 50 steps
    assert losses[-1] < 0.6 * losses[0]
