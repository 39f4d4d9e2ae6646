"""Networks: images (B, 3, 112, 112) in, logits (B, C) out."""

from mien.networks.apvit import APViT, apvit, apvit_mobile, deit_tiny, hybrid_deit_tiny
from mien.networks.arbex import ARBEx, arbex, arbex_mobile
from mien.networks.axial import AxialTransformer, axial
from mien.networks.branched import ACMILClassifier, GuidedClassifier, acmil_mobile, guided_mobile
from mien.networks.btn import BTN, btn, btn_mobile
from mien.networks.cait import (
    CaiT,
    cait_m36,
    cait_m48,
    cait_s24,
    cait_s36,
    cait_xs24,
    cait_xxs24,
    cait_xxs36,
)
from mien.networks.checkpoint import build, load_network, save_network
from mien.networks.davit import DaViT, davit_base, davit_mobile, davit_small, davit_tiny
from mien.networks.deploy import Deployed, Normalize, activate, deploy
from mien.networks.directmhp import DirectMHP
from mien.networks.group_pose import GroupPose, group_pose
from mien.networks.halonet import HaloNet, halonet26t, halonet50ts, halonet_mobile
from mien.networks.ir50 import IR50
from mien.networks.magnified import Magnified, magnified
from mien.networks.maxvit import MaxViT, maxvit_mobile, maxvit_tiny_rw, maxvit_tiny_tf
from mien.networks.mixers import swap_attention
from mien.networks.mobilefacenet import MobileFaceNet
from mien.networks.mobilenet import MobileNet
from mien.networks.moh_vit import (
    MoHViT,
    moh_vit_base_50,
    moh_vit_base_75,
    moh_vit_mobile,
    moh_vit_small_75,
    moh_vit_small_80,
    moh_vit_tiny,
)
from mien.networks.network import Network
from mien.networks.oat import OAT
from mien.networks.plain import PlainClassifier, mobilefacenet, mobilenet
from mien.networks.pooled_vit import PooledViT
from mien.networks.poster import Poster, poster
from mien.networks.published_mechanisms import load_mechanism
from mien.networks.regions import RegionReader, region_reader
from mien.networks.sparsifiner import SparseDeiT, sparsifiner_deit_small, sparsifiner_mobile
from mien.networks.spectformer import (
    HierarchicalSpectFormer,
    SpectFormer,
    spectformer_h_s,
    spectformer_mobile,
    spectformer_s,
)
from mien.networks.temporal import Temporal
from mien.networks.tic import TiCNet, tic_mobile
from mien.networks.vit import ViT

__all__ = [
    "ACMILClassifier",
    "APViT",
    "ARBEx",
    "AxialTransformer",
    "BTN",
    "CaiT",
    "DaViT",
    "HaloNet",
    "HierarchicalSpectFormer",
    "IR50",
    "Deployed",
    "DirectMHP",
    "GroupPose",
    "GuidedClassifier",
    "Magnified",
    "MaxViT",
    "MoHViT",
    "MobileFaceNet",
    "MobileNet",
    "Network",
    "Normalize",
    "OAT",
    "PlainClassifier",
    "PooledViT",
    "Poster",
    "RegionReader",
    "SparseDeiT",
    "SpectFormer",
    "Temporal",
    "TiCNet",
    "ViT",
    "acmil_mobile",
    "activate",
    "apvit",
    "apvit_mobile",
    "arbex",
    "arbex_mobile",
    "axial",
    "btn",
    "btn_mobile",
    "build",
    "cait_m36",
    "cait_m48",
    "cait_s24",
    "cait_s36",
    "cait_xs24",
    "cait_xxs24",
    "cait_xxs36",
    "davit_base",
    "davit_mobile",
    "davit_small",
    "davit_tiny",
    "deit_tiny",
    "deploy",
    "group_pose",
    "guided_mobile",
    "halonet26t",
    "halonet50ts",
    "halonet_mobile",
    "hybrid_deit_tiny",
    "load_mechanism",
    "load_network",
    "magnified",
    "maxvit_mobile",
    "maxvit_tiny_rw",
    "maxvit_tiny_tf",
    "mobilefacenet",
    "mobilenet",
    "moh_vit_base_50",
    "moh_vit_base_75",
    "moh_vit_mobile",
    "moh_vit_small_75",
    "moh_vit_small_80",
    "moh_vit_tiny",
    "poster",
    "region_reader",
    "save_network",
    "sparsifiner_deit_small",
    "sparsifiner_mobile",
    "spectformer_h_s",
    "spectformer_mobile",
    "spectformer_s",
    "swap_attention",
    "tic_mobile",
]
