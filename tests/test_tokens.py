"""Words are found by their characters: sub-words, repeats, hyphens, white space, and text that fell off the context."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxplain.tokens import PhraseError, TokenizedPrompt, label


def tokenized(text: str, size: int = 4, context: int = 64, **given: Any) -> TokenizedPrompt:
    """Pieces of at most `size` characters, start and end tokens, padding; pieces beyond the context fall off."""
    runs = [m for m in re.finditer(r"\w+|[^\w\s]", text)]
    spans = [(i, min(i + size, m.end())) for m in runs for i in range(m.start(), m.end(), size)]
    fitting = spans[: context - 2]
    cut = spans[context - 2][0] if len(spans) > len(fitting) else None
    every = [None, *fitting, None, *[None] * (context - 2 - len(fitting))]
    pieces = tuple("[]" if span is None else text[span[0] : span[1]] for span in every)
    kinds = {"start": 0, "end": len(fitting) + 1, "cut": cut} | given
    return TokenizedPrompt(text, tuple(range(context)), pieces, tuple(every), **kinds)


def covered(prompt: TokenizedPrompt, rows: tuple[int, ...]) -> str:
    return "".join(prompt.pieces[prompt.kept[row]] for row in rows)


def test_a_word_is_all_of_its_pieces():
    prompt = tokenized("Large left pneumothorax.")
    assert covered(prompt, prompt.find("pneumothorax")) == "pneumothorax"
    assert len(prompt.find("pneumothorax")) == 3


@pytest.mark.parametrize("part", ["x", "rax", "thorax", "pneumo"])
def test_a_part_of_a_word_is_no_word(part):
    with pytest.raises(PhraseError, match=r"whole words.*'pneumothorax'"):
        tokenized("Large left pneumothorax.", size=1).find(part)


def test_a_word_stands_alone_although_another_ends_in_it():
    prompt = tokenized("pneumothorax, thorax", size=6)
    assert prompt.match("thorax") == (14, 20)


def test_a_hyphenated_word_is_one_word():
    prompt = tokenized("Patchy ground-glass opacity of 1.5 cm in the patient's T2/FLAIR")
    texts = [word.text for word in prompt.words]
    assert texts == ["Patchy", "ground-glass", "opacity", "of", "1.5", "cm", "in", "the", "patient's", "T2/FLAIR"]
    assert covered(prompt, prompt.find("ground-glass")) == "ground-glass"
    for part in ("ground", "glass", "glass opacity", "patchy ground"):
        with pytest.raises(PhraseError, match="ground-glass"):
            prompt.find(part)


def test_a_phrase_is_a_span_of_characters_with_what_stands_between():
    prompt = tokenized("No effusion, small nodule.")
    assert covered(prompt, prompt.find("effusion, small")) == "effusion,small"


@pytest.mark.parametrize("phrase", ["left  PLEURAL", "left pleural", " Left\npleural. ", "(left pleural)"])
def test_case_white_space_and_outer_punctuation_do_not_matter(phrase):
    prompt = tokenized("Large left\n pleural effusion.")
    assert prompt.text[slice(*prompt.match(phrase))] == "left\n pleural"
    assert prompt.name(phrase) == "left pleural"


def test_a_repeated_word_needs_its_occurrence():
    prompt = tokenized("Left effusion. Right Effusion. No consolidation.")
    with pytest.raises(PhraseError, match=r"2 times.*occurrence=0 to 1.*'effusion#2'"):
        prompt.find("effusion")
    assert prompt.match("effusion", 0) == (5, 13)
    assert prompt.match("effusion", 1) == prompt.match("EFFUSION#2") == (21, 29)
    assert prompt.find("effusion", 0) != prompt.find("effusion", 1)
    assert [label(word) for word in prompt.words if word.count > 1] == ["effusion#1", "Effusion#2"]
    assert prompt.name("right effusion") == "Right Effusion"
    for wrong in (2, -1):
        with pytest.raises(
            PhraseError, match=f"occurs 2 times, so there is no occurrence {wrong} .*effusion#{wrong + 1}"
        ):
            prompt.find("effusion", wrong)
    with pytest.raises(PhraseError, match="'consolidation' occurs once, so there is no .* consolidation#2"):
        prompt.find("consolidation#2")


def test_a_number_sign_in_the_prompt_is_read_as_it_stands():
    prompt = tokenized("rib #2, rib #3")
    assert prompt.match("rib #3") == (8, 14)


def test_a_misspelled_word_names_its_neighbors():
    prompt = tokenized("Large left pleural effusion.")
    with pytest.raises(PhraseError, match="'effusion'"):
        prompt.find("effusoin")
    with pytest.raises(PhraseError, match="'pleural effusion'"):
        prompt.find("plural effusion")
    with pytest.raises(PhraseError, match="its words: 'Large', 'left', 'pleural', 'effusion'"):
        prompt.find("zzzz")


@pytest.mark.parametrize("blank", ["", "  \n"])
def test_a_blank_phrase_is_refused(blank):
    with pytest.raises(PhraseError, match="blank"):
        tokenized("effusion").find(blank)


def test_a_phrase_that_fell_off_the_context_is_named():
    prompt = tokenized("Left effusion. Severe consolidation.", context=7)  # Left|effu|sion|.|Seve fit
    assert prompt.truncated == "Severe consolidation."
    assert [word.text for word in prompt.words] == ["Left", "effusion"]
    for lost in ("consolidation", "severe", "effusion. Severe"):
        with pytest.raises(PhraseError, match=r"cut off.*'Severe consolidation\.'"):
            prompt.find(lost)


def test_of_a_repeated_word_only_what_the_model_was_given_counts():
    prompt = tokenized("left effusion, right effusion", size=20, context=6)
    assert prompt.truncated == "effusion"
    assert prompt.find("effusion") == (2,)
    assert label(prompt.words[1]) == "effusion"
    with pytest.raises(PhraseError, match="cut off"):
        prompt.find("effusion", 1)


def test_rows_are_start_pieces_end_and_the_rest_is_padding():
    prompt = tokenized("left lung", context=8)
    assert prompt.kept == (0, 1, 2, 3)  # start, left, lung, end
    assert prompt.padding == (4, 5, 6, 7)


def test_a_family_without_start_and_end_keeps_only_pieces():
    prompt = TokenizedPrompt("left lung", (5, 6, 0), ("left", "lung", "-"), ((0, 4), (5, 9), None), None, None)
    assert (prompt.kept, prompt.padding) == ((0, 1), (2,))
    assert prompt.find("lung") == (1,)


def test_a_piece_that_carries_the_space_before_it_belongs_to_its_own_word_only():
    prompt = TokenizedPrompt("left lung", (5, 6), ("left", " lung"), ((0, 4), (4, 9)), None)
    assert (prompt.find("left"), prompt.find("lung")) == ((0,), (1,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": (1,)}, "one of each"),
        ({"spans": ((5, 9), (0, 4), None)}, "out of order"),
        ({"spans": ((0, 4), (5, 99), None)}, "outside the text"),
        ({"start": 0}, "is a piece of the text"),
        ({"end": 3}, "position 3 of 3"),
        ({"cut": 10}, "cut 10"),
    ],
)
def test_a_prompt_that_contradicts_itself_is_refused(change, message):
    good: dict[str, Any] = {
        "text": "left lung",
        "ids": (5, 6, 0),
        "pieces": ("left", "lung", "-"),
        "spans": ((0, 4), (5, 9), None),
        "start": None,
        "end": 2,
    }
    TokenizedPrompt(**good)
    with pytest.raises(ValueError, match=message):
        TokenizedPrompt(**good | change)


TEXTS = st.text(st.sampled_from("abxAB12éß-'/., \n("), max_size=40)


@given(text=TEXTS, size=st.integers(1, 5), context=st.integers(2, 50))
def test_every_word_is_found_by_its_label_and_by_its_occurrence(text, size, context):
    prompt = tokenized(text, size, context)
    for word in prompt.words:
        assert prompt.find(label(word)) == prompt.find(word.text, word.occurrence) == word.rows
        assert prompt.match(label(word)) == word.span
        assert prompt.name(word.text, word.occurrence) == label(word)


@given(text=TEXTS, size=st.integers(1, 5), context=st.integers(2, 50))
def test_words_share_no_row_and_every_position_is_kept_or_padding(text, size, context):
    prompt = tokenized(text, size, context)
    rows = [row for word in prompt.words for row in word.rows]
    assert len(rows) == len(set(rows)) and rows == sorted(rows)
    assert sorted(prompt.kept + prompt.padding) == list(range(context))


@given(text=TEXTS, size=st.integers(1, 5), context=st.integers(2, 50))
def test_every_letter_is_in_a_word_that_fits_or_in_what_fell_off(text, size, context):
    prompt = tokenized(text, size, context)
    kept = "".join(word.text for word in prompt.words)
    letters = [char for char in kept + prompt.truncated if char.isalnum()]
    assert letters == [char for char in text if char.isalnum()]
