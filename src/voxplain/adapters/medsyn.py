"""MedSyn: text-to-CT in voxel space, whose four text attentions read slice by slice at the coarsest level."""

from contextlib import AbstractContextManager

from voxplain.adapters.base import Use
from voxplain.adapters.hooks import refuse_compiled
from voxplain.adapters.own import OwnAdapter
from voxplain.adapters.slices import Parts, sliced_projections
from voxplain.models.medsyn.blocks import CrossAttention
from voxplain.models.medsyn.pipeline import MedSyn


class MedSynAdapter(OwnAdapter):
    """Layers are the paths of the cross-attentions in the network; self-attention within slices reads no text.

    The native grid is (slices, rows / 8, columns / 8) for the published network: 64 x 8 x 8. Cells are stretched
    within the slice, and `Heatmap.resize` to the volume is where they are enlarged. With guidance the null text runs
    in a pass of its own, which no listener hears.
    """

    prediction = "sample"

    def __init__(self, pipeline: MedSyn) -> None:
        modules = pipeline.network.named_modules()
        layers = tuple(path for path, module in modules if isinstance(module, CrossAttention))
        super().__init__(pipeline, pipeline.name, layers)

    def hooked(self, layer: str, use: Use, edit: bool) -> AbstractContextManager[None]:
        refuse_compiled(self.pipeline.network)
        own = self.pipeline.network.get_submodule(layer)
        assert isinstance(own, CrossAttention)
        parts = Parts(own.to_q, own.to_q, own.to_kv, own.to_kv, own.to_out, own.heads, own.scale)
        return sliced_projections(self, layer, parts, use, edit)
