"""Words that occur twice, phrases, and what an absent word answers.

Words are ranges of characters. Pieces of the tokenizer are never compared as text, so nothing matches by accident.
"""

from voxplain.adapters.toy import ToyAdapter
from voxplain.tokens import PhraseError

prompt = ToyAdapter().tokenize("Small effusion left. Large effusion right. Pneumothorax.")

print("pneumothorax has the rows", prompt.find("pneumothorax"), "for its two pieces")
assert len(prompt.find("pneumothorax")) == 2

assert prompt.find("effusion", 1) == prompt.find("effusion#2")  # the second one, counted from 0 or by its number
assert prompt.find("large  EFFUSION")  # case and white space do not matter, and a phrase can settle which one

for phrase in ("effusion", "effusoin", "thorax"):
    try:
        prompt.find(phrase)
    except PhraseError as error:
        print(f"{phrase}: {error}")
    else:
        raise AssertionError(f"{phrase!r} should not have been found")
