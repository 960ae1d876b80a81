"""Where a word was attended to, beside what it measurably changed.

`mean` reads attention; `effect` (ours) asks the network again without the word and takes the difference. In the toy
model both must point to the word's own box, and the effect is exactly zero everywhere else.
"""

import numpy as np

import voxplain
from voxplain.adapters.toy import ToyAdapter

model = ToyAdapter()
result = voxplain.explain(model, "large effusion and small nodule", seed=0, steps=4)

attended = result.word("effusion")
changed = result.word("effusion", recipe="effect")
print("attended to, most at cell", attended.peak)
print("changed, most at cell", changed.peak)
assert np.array_equal(changed.values > 0, model.box("effusion"))

# Effects do not add up, so a phrase is removed as a whole, in a pass of its own, when it is asked for.
phrase = result.word("large effusion", recipe="effect")
assert np.array_equal(phrase.values > 0, model.box("effusion") | model.box("large"))

for word, entry in result.honesty.items():
    print(f"{word:10} distinguishable from a word without meaning: {entry['distinguishable']}")
