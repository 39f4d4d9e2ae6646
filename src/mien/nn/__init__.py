"""Attention mechanisms, one file each: tensors in, tensors out. `mien.nn.base` states the contracts."""

from mien.nn.attend import Attend
from mien.nn.block import Block, DropPath, LayerScale, Mlp
from mien.nn.class_batch_attention import BatchTransformer, ClassEncoding, class_batch_attention
from mien.nn.landmark_cross_attention import LandmarkCrossAttention
from mien.nn.multi_level_attention import LevelAttention
from mien.nn.self_attention import SelfAttention

__all__ = [
    "Attend",
    "BatchTransformer",
    "Block",
    "ClassEncoding",
    "DropPath",
    "LandmarkCrossAttention",
    "LayerScale",
    "LevelAttention",
    "Mlp",
    "SelfAttention",
    "class_batch_attention",
]
