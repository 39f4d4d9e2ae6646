"""Networks: images (B, 3, 112, 112) in, logits (B, C) out."""

from mien.networks.btn import BTN, btn, btn_mobile
from mien.networks.checkpoint import build, load_network, save_network
from mien.networks.deploy import Deployed, Normalize
from mien.networks.ir50 import IR50
from mien.networks.mobilefacenet import MobileFaceNet
from mien.networks.network import Network
from mien.networks.plain import PlainClassifier, mobilefacenet
from mien.networks.poster import Poster, poster
from mien.networks.vit import ViT

__all__ = [
    "BTN",
    "IR50",
    "Deployed",
    "MobileFaceNet",
    "Network",
    "Normalize",
    "PlainClassifier",
    "Poster",
    "ViT",
    "btn",
    "btn_mobile",
    "build",
    "load_network",
    "mobilefacenet",
    "poster",
    "save_network",
]
