"""Every network as OUT.onnx, OUT.xml and OUT.pt2 answers as it does in torch."""

import inspect
from functools import partial

import numpy as np
import pytest
import torch
from conftest import header
from torch import nn

import mien.networks
from mien.engines import OnnxRuntimeEngine, OpenVINOEngine, TorchEngine, open_model
from mien.export.ir import write_ir
from mien.export.onnx import to_onnx, write_onnx
from mien.export.program import to_program, write_program
from mien.networks import (
    BTN,
    ACMILClassifier,
    APViT,
    ARBEx,
    CaiT,
    DaViT,
    Deployed,
    GuidedClassifier,
    HaloNet,
    HierarchicalSpectFormer,
    Magnified,
    MaxViT,
    MoHViT,
    Network,
    PlainClassifier,
    Poster,
    RegionReader,
    SparseDeiT,
    SpectFormer,
    TiCNet,
)
from mien.networks.trunk import Trunk
from mien.nn import PAM, ClassAttentionPool, Neighborhood, TalkingHeads

KINDS = ("onnx", "xml", "pt2")


def note(side: int) -> dict:
    """A header with letters that XML and JSON might trip over."""
    note = header("mien.networks.mobilefacenet", num_classes=8) | {"temperature": 1.7, "uncertain": 0.4}
    steps = [{"size": side, "interpolation": "auto"}]
    note["preprocess"] |= {"resize": steps, "input_size": side, "mean": [0.4, 0.5, 0.6]}
    return note | {"training": {"data": "« œuvres » & others", "licence": "<none> 'at' \"all\"\n\tсвобода"}}


class Small(Trunk):
    """Three convolutions, three maps, or the last `scales` of them; the first is a quarter as wide as the images."""

    def __init__(self, side: int, scales: int = 3):
        super().__init__()
        self.levels = ((8, side // 4), (8, side // 8), (8, side // 16))[-scales:]
        self.stem, self.middle, self.last = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 2, 2), nn.Conv2d(8, 8, 2, 2)

    def forward(self, images, refine=None):
        maps = []
        for i, layer in enumerate((self.stem, self.middle, self.last)):
            images = layer(images).relu()
            images = images if refine is None else refine[i](images)
            maps.append(images)
        return tuple(maps[-len(self.levels) :])


def plain(**options) -> PlainClassifier:
    return PlainClassifier(image=Small(32), num_classes=8, **options)


TWO_TRUNKS = {"dims": (8, 8, 8), "head_dim": 4, "adapt_kernel": 1, "key_strides": (4, 2, 1)}
TWO_TRUNKS |= {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 8}
TOKENS = {"num_classes": 8, "img_size": 32, "patch_size": 4, "embed_dim": 16, "num_heads": 2}
STAGE = {"num_classes": 8, "img_size": 32, "depths": (1,)}
ONE_HEAD = {"num_heads": (1,) * 4, "mlp_ratios": (1,) * 4}
HALO = {"dims": (32, 64), "num_heads": (2, 4), "plan": ("c", "a"), "stem": 16, "block_size": 4, "halo_size": 1}
MOH = {"dims": (16,), "num_heads": (2,), "mlp_ratios": (2,), "pools": (2,), "shared": (1,), "top_k": (1,)}


def calm(network: nn.Module) -> nn.Module:
    """Batch norms that make smaller what they read, or logits would be too far apart."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(2)
    return network


NETWORKS = {
    "plain, mirrored, refined, class attention": lambda: plain(
        mirror=True, refine=partial(PAM, init_values=1.0), pool=partial(ClassAttentionPool, num_heads=2)
    ),
    "acmil": lambda: ACMILClassifier(image=Small(32), num_classes=8, width=16),
    "guided": lambda: calm(GuidedClassifier(image=Small(96, 2), num_classes=8, dim=8, init_values=1.0)),
    "btn": lambda: BTN(image=Small(112), landmarks=Small(112), **TWO_TRUNKS),
    "arbex": lambda: ARBEx(body=plain(), head="mlp", balancing="anchors"),
    "apvit, patches and tokens pooled": lambda: APViT(image=None, **TOKENS, depth=2, keep_patches=20, keep_rate=0.6),
    "magnified": lambda: Magnified(num_classes=8, embed_dim=16, num_heads=2),
    "regions": lambda: RegionReader(image=Small(112), num_classes=8, embed_dim=16, num_heads=2),
    "maxvit": lambda: MaxViT(**STAGE, dims=(8,), stem=(8, 8), head_dim=8, window_size=4),
    "halonet": lambda: calm(HaloNet(num_classes=8, img_size=32, **HALO)),
    "davit": lambda: DaViT(**STAGE, dims=(8,), num_heads=(2,), window_size=3),
    "moh_vit": lambda: MoHViT(**STAGE, **MOH),
    "sparsifiner": lambda: SparseDeiT(**TOKENS, depth=1),
    "spectformer": lambda: SpectFormer(**TOKENS, depth=2, spectral_depth=1),
    "spectformer, hierarchical": lambda: HierarchicalSpectFormer(
        num_classes=8, img_size=32, stem_dim=8, embed_dims=(8,) * 4, depths=(1, 0, 0, 1), **ONE_HEAD
    ),
    "tic": lambda: TiCNet(num_classes=8, img_size=32, embed_dims=(8,), depths=(1,), num_heads=(2,)),
    "other mixers": lambda: CaiT(**TOKENS, depth=2, class_depth=1, init_values=1.0, mixer=[Neighborhood, TalkingHeads]),
}
"""One of every class, as small as they can be; a Poster is in BTN."""


def lively(network: nn.Module) -> nn.Module:
    """Weights by which faces differ, that fp16 holds, in eval mode."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in network.parameters():
            std = 1.5 / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.3
            tensor.add_(torch.randn(tensor.shape, generator=draw) * std)
            tensor.copy_(tensor.half())
    return network.eval()


def faces(side: int, count: int = 5) -> np.ndarray:
    """Squares of different colours."""
    squares = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return squares.repeat(side // 4, axis=1).repeat(side // 4, axis=2)


def test_every_network_is_among_them():
    public = {getattr(mien.networks, name) for name in mien.networks.__all__}
    kinds = {kind for kind in public if inspect.isclass(kind) and issubclass(kind, Network) and kind is not Network}
    assert issubclass(BTN, Poster) and kinds - {Poster} == {type(make()) for make in NETWORKS.values()}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_answers_as_in_torch(name, tmp_path):
    torch.manual_seed(0)
    network = lively(NETWORKS[name]())
    side = {"btn": 112, "magnified": 112, "regions": 112, "guided": 96}.get(name, 32)  # 96: a map of 6 is resized
    head, images = note(side), faces(side)
    with torch.no_grad():
        wanted = Deployed(network, head["preprocess"], 1.7)(torch.from_numpy(images))
    assert wanted[1].std(0).max() > 0.003  # or any answer would do

    program = to_program(network, head)
    write_program(tmp_path / "a.pt2", program, head)
    model = to_onnx(program)
    write_onnx(tmp_path / "a.onnx", model, head)
    write_ir(tmp_path / "a.xml", model, head)
    runs = [open_model(tmp_path / f"a.{kind}", device="cpu", cache=False) for kind in KINDS]
    assert [type(run) for run in runs] == [OpenVINOEngine, OpenVINOEngine, TorchEngine]
    for engine in (*runs, OnnxRuntimeEngine(tmp_path / "a.onnx")):
        for count in (1, 2, 5):
            found = engine(images[:count])
            np.testing.assert_allclose(found["probs"], wanted[1][:count], atol=1e-4, err_msg=type(engine).__name__)
            np.testing.assert_allclose(found["logits"], wanted[0][:count], atol=1e-4 * wanted[0].abs().max().item())
