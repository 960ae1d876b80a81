import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxplain.models.thorax.text import END, PAD, START, TextEncoder, Tokenizer, build_tokenizer

TEXTS = ["Large left pleural effusion. Severe consolidation in the right upper lobe.", "No pneumothorax."]
TOKENIZER = build_tokenizer(TEXTS)


def test_words_of_the_training_texts_are_whole_pieces():
    prompt = TOKENIZER.tokenize("Severe consolidation")
    assert prompt.pieces[:4] == (START, "severe", "consolidation", END)
    assert prompt.spans[:4] == (None, (0, 6), (7, 20), None)
    assert (prompt.start, prompt.end, prompt.cut) == (0, 3, None)
    assert len(prompt.ids) == len(prompt.pieces) == len(prompt.spans) == 96
    assert set(prompt.pieces[4:]) == {PAD} and set(prompt.ids[4:]) == {0}


@settings(max_examples=200)
@given(st.text(max_size=300))
def test_no_text_gives_an_unknown_piece_and_every_span_points_at_its_piece(text):
    prompt = TOKENIZER.tokenize(text)
    assert "[UNK]" not in prompt.pieces
    for piece, span in zip(prompt.pieces, prompt.spans, strict=True):
        if span is not None and text[slice(*span)].isascii():
            assert text[slice(*span)].lower() == piece.removeprefix("##")
    kept = [span for span in prompt.spans if span is not None]
    assert kept == sorted(kept)


@pytest.mark.parametrize("word", ["x" * 100, "x" * 101, "effusion" * 400])
def test_a_word_of_any_length_falls_apart_into_known_pieces(word):
    prompt = TOKENIZER.tokenize(word)
    assert "[UNK]" not in prompt.pieces
    assert prompt.cut is not None or len(word) <= 94


def test_the_first_character_beyond_the_context_is_named():
    prompt = build_tokenizer(TEXTS, context=6).tokenize("large left pleural effusion in the lobe")
    assert prompt.pieces == (START, "large", "left", "pleural", "effusion", END)
    assert prompt.cut == len("large left pleural effusion ")
    assert prompt.truncated.strip() == "in the lobe"


def test_a_text_that_just_fits_is_not_cut():
    prompt = build_tokenizer(TEXTS, context=6).tokenize("large left pleural effusion")
    assert prompt.cut is None and prompt.end == 5


def test_accents_do_not_shift_the_spans():
    prompt = TOKENIZER.tokenize("sévère left 漢 lobe")
    places = dict(zip(prompt.pieces, prompt.spans, strict=True))
    assert places["left"] == (7, 11) and places["lobe"] == (14, 18)


def test_words_that_training_never_showed_are_named_once_and_case_does_not_matter():
    assert TOKENIZER.unknown_words("LARGE Zebra, left zebra-like Zebra") == ["Zebra", "zebra", "like"]
    assert TOKENIZER.unknown_words("large left effusion") == []


def test_a_vocabulary_without_a_letter_is_refused():
    with pytest.raises(ValueError, match="'q'"):
        Tokenizer([piece for piece in TOKENIZER.pieces if piece != "q"])


def test_the_same_texts_in_another_order_give_the_same_vocabulary():
    assert build_tokenizer(TEXTS[::-1]).pieces == TOKENIZER.pieces


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return TextEncoder(len(TOKENIZER.pieces), width=16, layers=2, heads=2).eval()


def ids(text):
    return torch.tensor([TOKENIZER.tokenize(text).ids])


def test_content_does_not_depend_on_how_much_padding_follows(encoder):
    row = ids("large left effusion")
    torch.testing.assert_close(encoder(row)[:, :5], encoder(row[:, :5]), rtol=1e-5, atol=1e-6)


def test_padding_is_a_key_of_its_own_that_knows_nothing_of_the_text(encoder):
    one, other = encoder(ids("large left effusion")), encoder(ids("severe right consolidation"))
    assert torch.equal(one[:, 5:], other[:, 5:])
    assert one[:, 5:].abs().sum(-1).min() > 0
    assert not torch.allclose(one[:, 1:4], other[:, 1:4])


def test_start_and_end_hold_no_text_where_they_are_silent():
    torch.manual_seed(0)
    encoder = TextEncoder(len(TOKENIZER.pieces), width=16, layers=2, heads=2, silent=3)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    texts = [TOKENIZER.tokenize(text) for text in ("left effusion", "right effusion", "")]
    first, second, empty = encoder(torch.tensor([text.ids for text in texts]))
    assert torch.equal(first[0], second[0]) and torch.equal(first[3], second[3])
    assert torch.equal(first[0], empty[0]) and not torch.allclose(first[1], second[1])
    encoder(torch.tensor([texts[2].ids])).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_words_are_encoded_alone_until_training_mixes_them(encoder):
    assert torch.allclose(encoder(ids("left effusion"))[0, 2], encoder(ids("right effusion"))[0, 2], atol=1e-6)
    for block in encoder.blocks:
        torch.nn.init.normal_(block.out.weight, std=0.3)
    assert not torch.allclose(encoder(ids("left effusion"))[0, 2], encoder(ids("right effusion"))[0, 2], atol=1e-3)


def test_context_vectors_are_layer_normed(encoder):
    vectors = encoder(ids("large left effusion"))
    assert vectors.shape == (1, 96, 16)
    torch.testing.assert_close(vectors.mean(-1), torch.zeros(1, 96), atol=1e-5, rtol=0)
