"""Attention mechanisms, one file each: tensors in, tensors out. `mien.nn.base` states the contracts."""

from mien.nn.attend import Attend
from mien.nn.block import Block, DropPath, LayerScale, Mlp
from mien.nn.class_attention import ClassAttention, ClassAttentionPool, ClassBlock
from mien.nn.class_batch_attention import BatchTransformer, ClassEncoding, class_batch_attention
from mien.nn.landmark_cross_attention import LandmarkCrossAttention
from mien.nn.multi_level_attention import LevelAttention
from mien.nn.select import AttentiveSelect
from mien.nn.self_attention import SelfAttention
from mien.nn.talking_heads import TalkingHeads

__all__ = [
    "Attend",
    "AttentiveSelect",
    "BatchTransformer",
    "Block",
    "ClassAttention",
    "ClassAttentionPool",
    "ClassBlock",
    "ClassEncoding",
    "DropPath",
    "LandmarkCrossAttention",
    "LayerScale",
    "LevelAttention",
    "Mlp",
    "SelfAttention",
    "TalkingHeads",
    "class_batch_attention",
]
