"""Networks: images (B, 3, 112, 112) in, logits (B, C) out."""

from mien.networks.btn import BTN, btn, btn_mobile
from mien.networks.ir50 import IR50
from mien.networks.mobilefacenet import MobileFaceNet
from mien.networks.network import Network
from mien.networks.poster import Poster, poster
from mien.networks.vit import ViT

__all__ = ["BTN", "IR50", "MobileFaceNet", "Network", "Poster", "ViT", "btn", "btn_mobile", "poster"]
