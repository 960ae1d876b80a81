"""What every family promises, kept by Stable Diffusion, XL, and a pipeline whose text encoder is a BERT."""

import tiny_pipelines as tiny

from voxplain.adapters.diffusers import DiffusersAdapter
from voxplain.testing import check_adapter


def test_stable_diffusion_keeps_all_promises():
    assert len(check_adapter(DiffusersAdapter(tiny.sd()))) == 16


def test_stable_diffusion_xl_keeps_all_promises():
    assert len(check_adapter(DiffusersAdapter(tiny.sdxl()))) == 16


def test_a_pipeline_around_a_bert_keeps_all_promises():
    tokenizer = tiny.bert_tokenizer()
    pipe = tiny.sd(tokenizer=tokenizer, encoder=tiny.bert(tokenizer))
    assert len(check_adapter(DiffusersAdapter(pipe))) == 16
    prompt = DiffusersAdapter(pipe).tokenize("left pneumothorax")
    assert prompt.pieces[:5] == ("[CLS]", "left", "pneumo", "##thorax", "[SEP]")
    assert prompt.find("pneumothorax") == (2, 3)
