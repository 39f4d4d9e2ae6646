"""The networks that came with mien: how large they are, whose they are, and which published weights they open."""

from fnmatch import fnmatchcase
from typing import NamedTuple


class Entry(NamedTuple):
    """What is known of a network before it is built."""

    parameters: int  # with the classes that it has unless others are asked for
    gmac: float  # 10⁹ multiplications, each with its addition, for one face
    size: int  # pixels along the side of its images
    paper: str  # or "ours"
    opens: tuple[str, ...] = ()  # kinds of `mien convert`, for the whole network or for a part of it


POSTER, BTN, APVIT = "Mao 2023, POSTER++", "Her 2024, Batch Transformer", "Xue 2022, APViT"
CAIT, ARBEX = "Touvron 2021, CaiT", "Wasi 2023, ARBEx"

NETWORKS: dict[str, Entry] = {
    "acmil_mobile": Entry(1_117_749, 0.243, 112, "Zhang 2024, ACMIL", ("mobilefacenet",)),
    "apvit": Entry(65_209_543, 12.647, 112, APVIT, ("apvit", "ir50", "timm_vit")),
    "apvit_mobile": Entry(2_111_304, 0.475, 112, APVIT, ("mobilefacenet",)),
    "arbex": Entry(44_159_906, 8.593, 112, ARBEX, ("poster",)),
    "arbex_mobile": Entry(2_627_046, 0.556, 112, ARBEX, ("mobilefacenet",)),
    "btn": Entry(45_115_706, 8.710, 112, BTN, ("poster", "ir50", "mobilefacenet", "vit")),
    "btn_mobile": Entry(2_860_830, 0.583, 112, BTN, ("mobilefacenet",)),
    "cait_m36": Entry(270_165_895, 53.378, 224, CAIT, ("timm", "cait")),
    "cait_m48": Entry(355_245_319, 70.972, 224, CAIT, ("timm", "cait")),
    "cait_s24": Entry(46_533_895, 9.331, 224, CAIT, ("timm", "cait")),
    "cait_s36": Entry(67_838_407, 13.907, 224, CAIT, ("timm", "cait")),
    "cait_xs24": Entry(26_273_671, 5.393, 224, CAIT, ("timm", "cait")),
    "cait_xxs24": Entry(11_764_615, 2.525, 224, CAIT, ("timm", "cait")),
    "cait_xxs36": Entry(17_108_071, 3.758, 224, CAIT, ("timm", "cait")),
    "deit_tiny": Entry(5_525_767, 0.956, 224, APVIT),
    "guided_mobile": Entry(16_873_914, 2.994, 112, "Sinha 2019, guided attention", ("mobilefacenet",)),
    "hybrid_deit_tiny": Entry(23_039_431, 6.087, 112, APVIT, ("ir50",)),
    "magnified": Entry(195_120, 0.012, 112, "Zhi 2024, LSceneLLM"),
    "mobilefacenet": Entry(912_008, 0.234, 112, "Chen 2018, MobileFaceNets", ("mobilefacenet",)),
    "poster": Entry(43_753_941, 8.593, 112, POSTER, ("poster", "ir50", "mobilefacenet", "vit")),
    "region_reader": Entry(684_168, 0.219, 112, "ours", ("mobilefacenet",)),
}
"""By the name of the function in `mien.networks` that builds it."""


def list_networks(pattern: str = "*") -> list[str]:
    """The names of mien's networks, in the order of the alphabet.

    pattern: str, a glob in which * stands for any characters, such as "*vit*"; all of them.
    """
    return sorted(name for name in NETWORKS if fnmatchcase(name, pattern))
