"""Weights as others publish them, written on the spot: names and shapes as published, numbers from a rule."""

import json
import re
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


def rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def weight(name: str, shape: Iterable[int], has_bias: bool) -> Tensor:
    """What the tensor `name` holds. `has_bias`: a bias stands beside it, which tells a norm from a PReLU."""
    parent, _, leaf = name.rpartition(".")
    shape = tuple(shape)
    if leaf in ("num_batches_tracked", "relative_position_index"):
        return torch.zeros(shape, dtype=torch.int64)
    z = rng(name).standard_normal(shape)
    if leaf == "running_mean" or leaf.endswith("bias"):
        value = 0.1 * z
    elif leaf == "running_var":
        value = 0.5 + np.abs(z)
    elif leaf in ("gamma1", "gamma2"):
        value = 0.5 + 0.1 * z
    elif leaf.endswith("weight") and len(shape) > 1:
        value = z / np.sqrt(np.prod(shape[1:]))
    elif leaf == "weight":
        value = 1 + 0.1 * z if has_bias else 0.25 + 0.05 * z
    else:
        value = 0.5 * z
    return torch.from_numpy(np.asarray(value, np.float32))


def fill_by_rule(shapes: dict[str, Iterable[int]]) -> dict[str, Tensor]:
    return {name: weight(name, shape, f"{name.rpartition('.')[0]}.bias" in shapes) for name, shape in shapes.items()}


def fill_small(shapes: dict[str, Iterable[int]], ones: str = "norms alone", scale: float = 0.02) -> dict[str, Tensor]:
    """The rule of the numbers for APViT, CaiT and mixers: scale · z; norms, and what ends in `ones`, are 1 + scale · z.

    z is fp32 noise by the whole name; running variances are |z| + 0.5.
    """

    def small(name: str, shape: Iterable[int]) -> Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.zeros((), dtype=torch.int64)
        z = torch.from_numpy(rng(name).standard_normal(tuple(shape)).astype(np.float32))
        if name.endswith("running_var"):
            return z.abs() + 0.5
        norm = name.endswith(".weight") and len(z.shape) == 1 and f"{name.removesuffix('weight')}bias" in shapes
        return 1 + scale * z if norm or name.endswith(ones) else scale * z

    return {name: small(name, shape) for name, shape in shapes.items()}


def cait_shapes(
    num_classes: int = 7,
    *,
    tokens: int = 196,
    dim: int = 192,
    depth: int = 24,
    heads: int = 4,
    class_depth: int = 2,
    patch: int = 16,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a CaiT in timm's layout."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, tokens, dim)}

    def linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def block(name: str, *parts: tuple[str, int, int]) -> None:
        for vector in ("gamma_1", "gamma_2", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"{name}.{vector}"] = (dim,)
        for part, out, into in (*parts, ("attn.proj", dim, dim), ("mlp.fc1", 4 * dim, dim), ("mlp.fc2", dim, 4 * dim)):
            linear(f"{name}.{part}", out, into)

    shapes["patch_embed.proj.weight"], shapes["patch_embed.proj.bias"] = (dim, 3, patch, patch), (dim,)
    for i in range(depth):
        talk = [(f"attn.proj_{x}", heads, heads) for x in "lw"]
        block(f"blocks.{i}", ("attn.qkv", 3 * dim, dim), *talk)
    for i in range(class_depth):
        block(f"blocks_token_only.{i}", *((f"attn.{x}", dim, dim) for x in "qkv"))
    shapes["norm.weight"], shapes["norm.bias"] = (dim,), (dim,)
    linear("head", num_classes, dim)
    return shapes


@cache
def posterpp_facts() -> dict:
    return json.loads((GOLDEN / "posterpp.json").read_text())


def posterpp_shapes(num_classes: int = 7) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published POSTER++ checkpoint's 747 tensors."""
    head = ("VIT.head.linear.weight", "VIT.head.linear.bias")
    keys = posterpp_facts()["keys"]
    return {name: (num_classes, *shape[1:]) if name in head else tuple(shape) for name, shape in keys.items()}


def part(prefix: str, shapes: dict) -> dict:
    """What stands under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in shapes.items() if name.startswith(prefix)}


def ir50_shapes() -> dict[str, tuple[int, ...]]:
    """In three stages, with the embedding."""
    return part("ir_back.", posterpp_shapes())


def flat_ir50_shapes() -> dict[str, tuple[int, ...]]:
    """One list of 24 units, of which POSTER++ uses 21."""
    first = {"body1": 0, "body2": 3, "body3": 7}
    flat = {}
    for name, shape in ir50_shapes().items():
        stage, _, rest = name.partition(".")
        if stage in first:
            unit, _, rest = rest.partition(".")
            name = f"body.{first[stage] + int(unit)}.{rest}"
        flat[name] = shape

    def norm(name, dim):
        flat[name + ".num_batches_tracked"] = ()
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            flat[f"{name}.{leaf}"] = (dim,)

    for unit, dim in ((21, 256), (22, 512), (23, 512)):
        layers = f"body.{unit}.res_layer."
        norm(layers + "0", dim)
        flat |= {
            layers + "1.weight": (512, dim, 3, 3),
            layers + "2.weight": (512,),
            layers + "3.weight": (512, 512, 3, 3),
        }
        norm(layers + "4", 512)
    flat["body.21.shortcut_layer.0.weight"] = (512, 256, 1, 1)
    norm("body.21.shortcut_layer.1", 512)
    return flat


def vit_blocks(prefix: str, depth: int, dim: int, hidden: int, qkv_bias: bool) -> dict[str, tuple[int, ...]]:
    """Blocks of a ViT and its last norm, in timm's names."""
    shapes = {f"{prefix}norm.weight": (dim,), f"{prefix}norm.bias": (dim,)}
    for i in range(depth):
        parts = {"norm1": (dim,), "attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "norm2": (dim,)}
        parts |= {"mlp.fc1": (hidden, dim), "mlp.fc2": (dim, hidden)}
        for part_name, shape in parts.items():
            shapes[f"{prefix}blocks.{i}.{part_name}.weight"] = shape
            if qkv_bias or part_name != "attn.qkv":
                shapes[f"{prefix}blocks.{i}.{part_name}.bias"] = shape[:1]
    return shapes


def apvit_shapes(num_classes: int = 7, lanet: bool = False) -> dict[str, tuple[int, ...]]:
    """A published APViT checkpoint's 389 tensors, and the 14 of the one that learns its map."""
    shapes = {}
    for name, shape in ir50_shapes().items():
        if not name.startswith("output_layer."):
            shapes["extractor." + re.sub(r"^body(\d)", lambda stage: f"body.{int(stage[1]) - 1}", name)] = shape
    shapes |= {"vit.cls_token": (1, 1, 768), "vit.cls_pos_embed": (1, 1, 768), "vit.patch_pos_embed": (1, 196, 768)}
    shapes |= {"vit.projs.0.weight": (768, 256, 1, 1), "vit.projs.0.bias": (768,)}
    shapes |= vit_blocks("vit.", 8, 768, 2304, qkv_bias=False)
    shapes |= {"head.fc.weight": (num_classes, 768), "head.fc.bias": (num_classes,)}
    for i, out, into in ((1, 48, 768), (2, 1, 48)) if lanet else ():
        shapes |= {f"vit.attn_f.LA_conv{i}.weight": (out, into, 1, 1), f"vit.attn_f.LA_conv{i}.bias": (out,)}
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"vit.attn_f.bn{i}.{leaf}"] = (out,)
        shapes[f"vit.attn_f.bn{i}.num_batches_tracked"] = ()
    return shapes


def timm_vit_shapes(depth: int = 8, dim: int = 768, hidden: int = 2304, qkv_bias: bool = False):
    """One of timm's ViTs; by default its first ViT-Small, which APViT starts from."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 197, dim)}
    shapes |= {"patch_embed.proj.weight": (dim, 3, 16, 16), "patch_embed.proj.bias": (dim,)}
    return shapes | vit_blocks("", depth, dim, hidden, qkv_bias) | {"head.weight": (1000, dim), "head.bias": (1000,)}


def mobilefacenet_shapes() -> dict[str, tuple[int, ...]]:
    """POSTER++'s landmark network, with its landmarks."""
    return part("face_landback.", posterpp_shapes())


FOAMLIU = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
"""Expansion, width, repeats and first stride of foamliu/MobileFaceNet's stages."""


def foamliu_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, dim: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (dim,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def unit(name: str, at: int, *shape: int) -> None:
        shapes[f"{name}.{at}.weight"] = shape
        norm(f"{name}.{at + 1}", shape[0])

    unit("conv1", 0, 64, 3, 3, 3)
    shapes["dw_conv.depthwise.weight"], shapes["dw_conv.pointwise.weight"] = (64, 1, 3, 3), (64, 64, 1, 1)
    norm("dw_conv.bn1", 64)
    norm("dw_conv.bn2", 64)
    c_in, i = 64, 0
    for expansion, width, repeats, _ in FOAMLIU:
        for _ in range(repeats):
            hidden = c_in * expansion
            unit(f"features.{i}.conv.0", 0, hidden, c_in, 1, 1)
            unit(f"features.{i}.conv.1", 0, hidden, 1, 3, 3)
            unit(f"features.{i}.conv", 2, width, hidden, 1, 1)
            c_in, i = width, i + 1
    unit("conv2", 0, 512, 128, 1, 1)
    shapes["gdconv.depthwise.weight"] = (512, 1, 7, 7)
    norm("gdconv.bn", 512)
    shapes["conv3.weight"], shapes["conv3.bias"] = (128, 512, 1, 1), (128,)
    norm("bn", 128)
    return shapes
