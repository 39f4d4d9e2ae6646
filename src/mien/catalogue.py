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
SPECTFORMER, SPARSIFINER = "Patro 2023, SpectFormer", "Wei 2023, Sparsifiner"
CAIT, ARBEX = "Touvron 2021, CaiT", "Wasi 2023, ARBEx"
MAXVIT, DAVIT, HALONET, MOH_VIT = "Tu 2022, MaxViT", "Ding 2022, DaViT", "Vaswani 2021, HaloNet", "Jin 2024, MoH"

NETWORKS: dict[str, Entry] = {
    "acmil_mobile": Entry(1_117_749, 0.243, 112, "Zhang 2024, ACMIL", ("mobilefacenet",)),
    "apvit": Entry(65_209_543, 12.647, 112, APVIT, ("apvit", "ir50", "timm_vit")),
    "apvit_mobile": Entry(2_111_304, 0.475, 112, APVIT, ("mobilefacenet",)),
    "arbex": Entry(44_159_906, 8.593, 112, ARBEX, ("poster",)),
    "arbex_mobile": Entry(2_627_046, 0.556, 112, ARBEX, ("mobilefacenet",)),
    "axial": Entry(204_944, 0.166, 28, "Ho 2019, Axial Transformer"),
    "btn": Entry(45_115_706, 8.710, 112, BTN, ("poster", "ir50", "mobilefacenet", "vit")),
    "btn_mobile": Entry(2_860_830, 0.583, 112, BTN, ("mobilefacenet",)),
    "cait_m36": Entry(270_165_895, 53.378, 224, CAIT, ("timm", "cait")),
    "cait_m48": Entry(355_245_319, 70.972, 224, CAIT, ("timm", "cait")),
    "cait_s24": Entry(46_533_895, 9.331, 224, CAIT, ("timm", "cait")),
    "cait_s36": Entry(67_838_407, 13.907, 224, CAIT, ("timm", "cait")),
    "cait_xs24": Entry(26_273_671, 5.393, 224, CAIT, ("timm", "cait")),
    "cait_xxs24": Entry(11_764_615, 2.525, 224, CAIT, ("timm", "cait")),
    "cait_xxs36": Entry(17_108_071, 3.758, 224, CAIT, ("timm", "cait")),
    "davit_base": Entry(86_937_608, 15.473, 224, DAVIT, ("timm", "davit")),
    "davit_mobile": Entry(1_512_776, 0.202, 112, DAVIT),
    "davit_small": Entry(48_983_048, 8.772, 224, DAVIT, ("timm", "davit")),
    "davit_tiny": Entry(27_597_320, 4.521, 224, DAVIT, ("timm", "davit")),
    "deit_tiny": Entry(5_525_767, 0.956, 224, APVIT),
    "group_pose": Entry(876_060, 0.327, 128, "Liu 2023, Group Pose", ("mobilefacenet",)),
    "guided_mobile": Entry(16_873_914, 2.994, 112, "Sinha 2019, guided attention", ("mobilefacenet",)),
    "halonet26t": Entry(10_447_680, 3.218, 256, HALONET, ("timm", "halonet")),
    "halonet50ts": Entry(20_700_672, 5.258, 256, HALONET, ("timm", "halonet")),
    "halonet_mobile": Entry(1_115_524, 0.164, 112, HALONET),
    "hybrid_deit_tiny": Entry(23_039_431, 6.087, 112, APVIT, ("ir50",)),
    "magnified": Entry(195_120, 0.012, 112, "Zhi 2024, LSceneLLM"),
    "maxvit_mobile": Entry(1_344_786, 0.166, 112, MAXVIT),
    "maxvit_tiny_rw": Entry(28_548_416, 5.071, 224, MAXVIT, ("timm",)),
    "maxvit_tiny_tf": Entry(30_407_632, 5.548, 224, MAXVIT, ("timm",)),
    "mobilefacenet": Entry(912_008, 0.234, 112, "Chen 2018, MobileFaceNets", ("mobilefacenet",)),
    "mobilenet": Entry(3_215_176, 0.290, 160, "Howard 2017, MobileNets", ("mobilenet",)),
    "moh_vit_base_50": Entry(89_260_664, 18.419, 224, MOH_VIT, ("moh_vit",)),
    "moh_vit_base_75": Entry(89_257_784, 18.414, 224, MOH_VIT, ("moh_vit",)),
    "moh_vit_mobile": Entry(1_427_344, 0.164, 112, MOH_VIT),
    "moh_vit_small_75": Entry(49_338_164, 10.366, 224, MOH_VIT, ("moh_vit",)),
    "moh_vit_small_80": Entry(49_338_164, 10.366, 224, MOH_VIT, ("moh_vit",)),
    "moh_vit_tiny": Entry(27_779_168, 5.751, 224, MOH_VIT, ("moh_vit",)),
    "poster": Entry(43_753_941, 8.593, 112, POSTER, ("poster", "ir50", "mobilefacenet", "vit")),
    "region_reader": Entry(684_168, 0.219, 112, "ours", ("mobilefacenet",)),
    "sparsifiner_deit_small": Entry(21_831_751, 4.745, 224, SPARSIFINER, ("deit",)),
    "sparsifiner_mobile": Entry(4_661_800, 1.089, 112, SPARSIFINER),
    "spectformer_h_s": Entry(21_335_214, 4.071, 224, SPECTFORMER, ("spectformer",)),
    "spectformer_mobile": Entry(4_104_392, 0.850, 112, SPECTFORMER),
    "spectformer_s": Entry(32_067_463, 6.633, 224, SPECTFORMER, ("spectformer",)),
    "tic_mobile": Entry(3_760_776, 0.506, 112, "Zhang 2023, TiC"),
}
"""By the name of the function in `mien.networks` that builds it."""


def list_networks(pattern: str = "*") -> list[str]:
    """The names of mien's networks, in the order of the alphabet.

    pattern: str, a glob in which * stands for any characters, such as "*vit*"; all of them.
    """
    return sorted(name for name in NETWORKS if fnmatchcase(name, pattern))
