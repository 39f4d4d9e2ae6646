"""Attention mechanisms, one file each: tensors in, tensors out. `mien.nn.base` states the contracts."""

from mien.nn.attend import Attend
from mien.nn.block import Block, DropPath, LayerScale, Mlp
from mien.nn.class_attention import ClassAttention, ClassAttentionPool, ClassBlock
from mien.nn.class_batch_attention import BatchTransformer, ClassEncoding, class_batch_attention
from mien.nn.cmha import CMHA
from mien.nn.gaam import GAAM, GAAMBlock
from mien.nn.landmark_cross_attention import LandmarkCrossAttention
from mien.nn.moh import CosineMoH, MoH
from mien.nn.multi_level_attention import LevelAttention
from mien.nn.rcmha import RCMHA
from mien.nn.select import AttentiveSelect
from mien.nn.self_attention import SelfAttention
from mien.nn.sparsifiner import Sparsifiner
from mien.nn.talking_heads import TalkingHeads

__all__ = [
    "CMHA",
    "GAAM",
    "RCMHA",
    "Attend",
    "AttentiveSelect",
    "BatchTransformer",
    "Block",
    "ClassAttention",
    "ClassAttentionPool",
    "ClassBlock",
    "ClassEncoding",
    "CosineMoH",
    "DropPath",
    "GAAMBlock",
    "LandmarkCrossAttention",
    "LayerScale",
    "LevelAttention",
    "Mlp",
    "MoH",
    "SelfAttention",
    "Sparsifiner",
    "TalkingHeads",
    "class_batch_attention",
]
