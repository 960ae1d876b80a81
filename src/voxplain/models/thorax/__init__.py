"""The default model: text to chest CT, made of MONAI parts and trained on procedural phantoms."""

from voxplain.models.thorax.network import THORAX, THORAX_2D, build
from voxplain.models.thorax.text import TextEncoder, Tokenizer, build_tokenizer
from voxplain.models.thorax.weights import load, save

__all__ = ["THORAX", "THORAX_2D", "TextEncoder", "Tokenizer", "build", "build_tokenizer", "load", "save"]
