"""What every family promises, kept by Stable Diffusion, XL, and a pipeline whose text encoder is a BERT."""

import tiny_pipelines as tiny
from diffusers.models.attention_processor import AttnProcessor2_0

from voxplain.adapters.diffusers import DiffusersAdapter
from voxplain.testing import check_adapter, describe


def test_stable_diffusion_keeps_all_promises():
    assert len(check_adapter(DiffusersAdapter(tiny.sd()))) == 17


def test_stable_diffusion_xl_keeps_all_promises():
    assert len(check_adapter(DiffusersAdapter(tiny.sdxl()))) == 17


def test_a_pipeline_around_a_bert_keeps_all_promises():
    tokenizer = tiny.bert_tokenizer()
    pipe = tiny.sd(tokenizer=tokenizer, encoder=tiny.bert(tokenizer))
    assert len(check_adapter(DiffusersAdapter(pipe))) == 17
    prompt = DiffusersAdapter(pipe).tokenize("left pneumothorax")
    assert prompt.pieces[:5] == ("[CLS]", "left", "pneumo", "##thorax", "[SEP]")
    assert prompt.find("pneumothorax") == (2, 3)


def test_what_is_found_in_a_pipeline_is_told_with_its_refusals():
    adapter = DiffusersAdapter(tiny.sd(), size=(24, 40))
    facts = describe(adapter, pairs=1)
    assert facts["image"] == [24, 40] and facts["spacing"] is None and facts["refused"] == {}
    found = {layer["layer"].partition(".attentions")[0]: layer for layer in facts["layers"]}
    assert {name: (one["grid"], one["heads"], one["keys"]) for name, one in found.items()} == {
        "down_blocks.0": ([12, 20], 2, tiny.CONTEXT),
        "down_blocks.1": ([6, 10], 4, tiny.CONTEXT),
        "mid_block": ([3, 5], 4, tiny.CONTEXT),
        "up_blocks.1": ([6, 10], 4, tiny.CONTEXT),
        "up_blocks.2": ([12, 20], 2, tiny.CONTEXT),
    }
    assert facts["guidance"] == {"with": [["null", "text"]], "without": [["text"]]}
    assert facts["cost"]["kept_bytes"] > 0
    odd = adapter.layers[1]
    adapter.network.get_submodule(odd).set_processor(type("Strange", (AttnProcessor2_0,), {})())
    refused = describe(adapter)
    assert list(refused["refused"]) == [odd] and refused["cost"] is None
    assert "attends by Strange" in refused["refused"][odd] and "docs/adapters.md" in refused["refused"][odd]
