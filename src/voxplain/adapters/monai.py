"""Pipelines around MONAI's `DiffusionModelUNet` and `DiffusionModelUNetMaisi`, in two and three dimensions."""

from contextlib import AbstractContextManager

from monai.networks.blocks.crossattention import CrossAttentionBlock

from voxplain.adapters.base import Use
from voxplain.adapters.hooks import projections, refuse_compiled
from voxplain.adapters.own import OwnAdapter
from voxplain.models.latent_diffusion import LatentDiffusion


class MonaiAdapter(OwnAdapter):
    """A `LatentDiffusion` pipeline whose denoiser reads the text through MONAI's `CrossAttentionBlock`s.

    Layers are the paths of all blocks called `attn2` in the denoiser. Queries and keys are read in forward hooks on
    their projections, with or without flash attention; the grid is that of the `SpatialTransformer` around them.
    Guidance runs in one doubled batch, text rows first. Where the context is one pooled vector, attention is refused
    when it is heard, and the recipe `effect` is left.
    """

    mixes_levels = True

    def __init__(self, pipeline: LatentDiffusion) -> None:
        layers = tuple(
            path
            for path, module in pipeline.unet.named_modules()
            if path.endswith("attn2") and isinstance(module, CrossAttentionBlock)
        )
        super().__init__(pipeline, str(pipeline.config["name"]), layers)
        if not layers:
            raise ValueError(f"{self.name}: the denoiser has no cross-attention block called 'attn2'")
        self.localizing_layers = tuple(pipeline.config.get("localizing_layers", ()))
        self.prediction = pipeline.config["prediction"]
        self.words_removed = pipeline.config.get("words_removed")

    def hooked(self, layer: str, use: Use, edit: bool) -> AbstractContextManager[None]:
        refuse_compiled(self.pipeline.unet)
        block, _, _ = layer.rpartition(".transformer_blocks.")
        attention = self.pipeline.unet.get_submodule(layer)
        if attention.causal or attention.rel_positional_embedding is not None:
            raise NotImplementedError(f"{layer} adds a causal mask or relative positions, which are not read here")
        if attention.use_flash_attention and attention.dropout_rate:
            raise NotImplementedError(
                f"{layer} drops out {attention.dropout_rate:g} of its attention at random: MONAI's flash attention "
                "does so in evaluation mode, too; set its dropout_rate to 0"
            )
        return projections(self, layer, self.pipeline.unet.get_submodule(block), attention, use, edit)
