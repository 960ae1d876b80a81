"""Words to vectors: a WordPiece tokenizer whose vocabulary is the phantom grammar's, and a small transformer."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from string import ascii_lowercase, digits, punctuation

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Engine
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from voxplain.tokens import TokenizedPrompt

CONTEXT = 96
LOUDNESS = 3.0  # initial length of word vectors, against 1 of a plain layer norm
PAD, START, END = "[PAD]", "[CLS]", "[SEP]"
_UNREACHABLE = "[UNK]"  # tokenizers wants a name for it; the vocabulary below leaves no way to reach it
_WORD = re.compile(r"[^\W_]+")


class Tokenizer:
    """Text -> `TokenizedPrompt` of a fixed context: start, pieces, end, padding.

    Lower-cased WordPiece (Schuster and Nakajima 2012; greedy longest match as in BERT). Every letter, digit and sign
    of ASCII is a piece, so a word from outside the training grammar falls apart instead of becoming unknown; accents
    are stripped and what is still not ASCII is skipped. `words` are the words seen in training, case-folded.
    """

    def __init__(self, pieces: Sequence[str], words: Iterable[str] = (), *, context: int = CONTEXT) -> None:
        if len(set(pieces)) != len(pieces) or list(pieces[:3]) != [PAD, START, END]:
            raise ValueError(f"a vocabulary is distinct pieces that begin with {PAD}, {START}, {END}")
        if missing := sorted(set(_letters()) - set(pieces)):
            raise ValueError(f"the vocabulary lacks the single characters {missing}; build it with build_tokenizer")
        self.pieces, self.words, self.context = tuple(pieces), frozenset(words), context
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        self._engine = Engine(models.WordPiece(vocab=vocabulary, unk_token=_UNREACHABLE))
        strip = normalizers.Replace(Regex(r"[^\x20-\x7e]"), " ")
        self._engine.normalizer = normalizers.Sequence(
            [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), strip]
        )
        # WordPiece gives up on words of more than 100 characters, so longer ones are halved before they reach it
        halved = pre_tokenizers.Split(Regex(r".{1,50}"), "isolated")
        self._engine.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), halved])

    def tokenize(self, text: str) -> TokenizedPrompt:
        """The text in `context` positions; `cut` is the first character that did not fit, None if all fitted."""
        encoded = self._engine.encode(text, add_special_tokens=False)
        room = self.context - 2
        ids, pieces, spans = encoded.ids[:room], encoded.tokens[:room], encoded.offsets[:room]
        padding = room - len(ids)
        return TokenizedPrompt(
            text=text,
            ids=(1, *ids, 2, *(0,) * padding),
            pieces=(START, *pieces, END, *(PAD,) * padding),
            spans=(None, *((first, last) for first, last in spans), None, *(None,) * padding),
            start=0,
            end=len(ids) + 1,
            cut=encoded.offsets[room][0] if len(encoded.ids) > room else None,
        )

    def unknown_words(self, text: str) -> list[str]:
        """Words of the text that training never showed, as written, each once, in order; a number counts as a word."""
        unknown = [word for word in _WORD.findall(text) if word.casefold() not in self.words]
        return list(dict.fromkeys(unknown))


def build_tokenizer(texts: Iterable[str], *, context: int = CONTEXT) -> Tokenizer:
    """A tokenizer whose whole words are those of `texts`, the most frequent first, after all single characters."""
    counts = Counter(word.casefold() for text in texts for word in _WORD.findall(text))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    letters = _letters()
    whole = [word for word in words if word.isascii() and word not in letters]
    return Tokenizer([PAD, START, END, *letters, *whole], words, context=context)


def _letters() -> list[str]:
    return [*ascii_lowercase, *digits, *punctuation, *(f"##{sign}" for sign in ascii_lowercase + digits)]


class TextEncoder(nn.Module):
    """Token ids -> context vectors: pre-norm transformer, learned positions, layer-normed output.

    Padding positions are keys like any other for the denoiser that reads the context, as in MedSyn, but they hold a
    learned vector of their own and no text: content attends to content only. Pieces below `silent` are no content: 1
    is padding alone; 3 takes in start and end, which otherwise gather the text of all words and draw the attention
    that words would get.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        context: int = CONTEXT,
        silent: int = 1,
    ):
        super().__init__()
        self.silent = silent
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        # Most positions are padding. Long word vectors and short padding vectors keep them from drowning the words
        # before attention has learned anything; both lengths are trained.
        self.hush = nn.Parameter(torch.tensor(0.02))
        nn.init.constant_(self.norm.weight, LOUDNESS)
        nn.init.normal_(self.tokens.weight, std=0.5)  # rows must differ from the first step on: they are the keys
        nn.init.normal_(self.positions, std=0.1)

    def forward(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        content = ids >= self.silent  # [batch, tokens]
        embedded = self.tokens(ids) + self.positions[: ids.shape[1]]  # [batch, tokens, dim]
        encoded = embedded
        for block in self.blocks:
            encoded = block(encoded, content)
        return torch.where(content[..., None], self.norm(encoded), self.hush * self.norm(embedded))


class Block(nn.Module):
    """Self-attention over the content positions, then a feed-forward layer four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        narrow = nn.Linear(4 * width, width)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), narrow)
        for layer in (self.out, narrow):  # a block begins as the identity: words stay distinct until mixing them pays
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], content: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens dim"]:
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))  # [batch, tokens, 3, heads, dim / heads]
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [batch, heads, tokens, dim / heads]
        itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)  # an empty text has no content to attend to
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=content[:, None, None] | itself)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))  # [batch, tokens, dim]
        return x + self.ff(self.norm2(x))
