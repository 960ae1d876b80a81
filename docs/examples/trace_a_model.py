"""Listen to a model while it generates, and read where a word was attended to.

The model here is a toy whose attention is planted: every word has a box of its own. Any adapter or pipeline goes in its
place, for example `voxplain.load("thorax")`.
"""

import voxplain
from voxplain.adapters.toy import ToyAdapter

model = ToyAdapter()
untraced = model.generate("large effusion and small nodule", seed=0)

with voxplain.trace(model) as tracer:  # recipe "mean": heads, layers and steps weigh the same
    sample = model.generate("large effusion and small nodule", seed=0)
attribution = tracer.attribution()

assert (sample.image == untraced.image).all()  # listening changed nothing

heatmap = attribution.word("effusion")  # on the attention grid, not on the voxels
print("the word's map", heatmap.values.shape, "peaks at cell", heatmap.peak)
assert model.box("effusion")[heatmap.peak]  # where it was planted

voxels = heatmap.resize(sample.geometry)  # only the chosen word is brought to image size
print("on the image", voxels.values.shape, "with voxels of", sample.geometry.spacing, "mm")

for name, share in attribution.mass().items():
    print(f"{name:12} {share:.3f}")  # what goes to start, end and padding is shown, not hidden
assert abs(sum(attribution.mass().values()) - 1) < 1e-5
