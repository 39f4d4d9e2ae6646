"""Attention mechanisms, one file each: tensors in, tensors out. `mien.nn.base` states the contracts."""

from mien.nn.acmil import ACMILHead, ACMILPool, ACMILQueryPool
from mien.nn.attend import Attend
from mien.nn.axial import Axial
from mien.nn.block import Block, DropPath, LayerScale, Mlp
from mien.nn.class_attention import ClassAttention, ClassAttentionPool, ClassBlock
from mien.nn.class_batch_attention import BatchTransformer, ClassEncoding, class_batch_attention
from mien.nn.cmha import CMHA
from mien.nn.davit import ChannelAttention, WindowAttention
from mien.nn.distributed_attention import DistributedAttention
from mien.nn.dual_attention import CAM, PAM
from mien.nn.gaam import GAAM, GAAMBlock
from mien.nn.grassmann import Grassmann
from mien.nn.group_pose import DeformableAttention, GroupPoseLayer, GroupSelfAttention
from mien.nn.guided_attention import GuidedAttention, MultiConv, SemanticModule
from mien.nn.halo import Halo
from mien.nn.landmark_cross_attention import LandmarkCrossAttention
from mien.nn.landmark_queries import LandmarkQueryHead, LandmarkQueryPool
from mien.nn.linear_attention import LinearAttention
from mien.nn.magnified_attention import MagnifiedAttention
from mien.nn.maxvit import MaxViTBlockAttention, MaxViTGridAttention
from mien.nn.medusa import Medusa
from mien.nn.mixing import mixing_matrix
from mien.nn.moh import CosineMoH, MoH
from mien.nn.multi_level_attention import LevelAttention
from mien.nn.neighborhood import Neighborhood
from mien.nn.observe import Layout, Look, LookError, intervene, observe
from mien.nn.rcmha import RCMHA
from mien.nn.region_cross_attention import RegionCrossAttention
from mien.nn.reliability_balancing import ReliabilityBalancing
from mien.nn.select import AttentiveSelect
from mien.nn.self_attention import SelfAttention
from mien.nn.shares import ShareError, join_tokens, share_tokens
from mien.nn.sparsifiner import Sparsifiner
from mien.nn.spectral_gate import SpectralGate
from mien.nn.superlinear import Superlinear
from mien.nn.talking_heads import TalkingHeads
from mien.nn.tic import TiC

__all__ = [
    "CAM",
    "CMHA",
    "GAAM",
    "PAM",
    "RCMHA",
    "ACMILHead",
    "ACMILPool",
    "ACMILQueryPool",
    "Attend",
    "AttentiveSelect",
    "Axial",
    "BatchTransformer",
    "Block",
    "ChannelAttention",
    "ClassAttention",
    "ClassAttentionPool",
    "ClassBlock",
    "ClassEncoding",
    "CosineMoH",
    "DeformableAttention",
    "DistributedAttention",
    "DropPath",
    "GAAMBlock",
    "Grassmann",
    "GroupPoseLayer",
    "GroupSelfAttention",
    "GuidedAttention",
    "Halo",
    "LandmarkCrossAttention",
    "LandmarkQueryHead",
    "LandmarkQueryPool",
    "LayerScale",
    "Layout",
    "LevelAttention",
    "LinearAttention",
    "Look",
    "LookError",
    "MagnifiedAttention",
    "MaxViTBlockAttention",
    "MaxViTGridAttention",
    "Medusa",
    "Mlp",
    "MoH",
    "MultiConv",
    "Neighborhood",
    "RegionCrossAttention",
    "ReliabilityBalancing",
    "SelfAttention",
    "SemanticModule",
    "ShareError",
    "Sparsifiner",
    "SpectralGate",
    "Superlinear",
    "TalkingHeads",
    "TiC",
    "WindowAttention",
    "class_batch_attention",
    "intervene",
    "join_tokens",
    "mixing_matrix",
    "observe",
    "share_tokens",
]
