"""How published weights of networks of stages name their tensors, and what these are called here."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mien.networks.published import Rules, rename

_MAXVIT: Rules = (
    (r".*\.relative_position_index", None),
    (r"stages\.(\d+)\.blocks\.(.*\.attn)\.rel_pos\.relative_position_bias_table", r"stages.\1.\2.relative_bias"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.(.*)", r"stages.\1.\2.\3"),
    (r"head\.norm\.(.*)", r"norm.\1"),
    (r"head\.pre_logits\.fc\.(.*)", r"fc.\1"),
    (r"head\.fc\.(.*)", r"head.\1"),
    (r"((?:stem|norm)\..*)", r"\1"),
)
_HALONET: Rules = (
    (r"(stages\.\d+\.\d+)\.self_attn\.pos_embed\.(.*)", r"\1.attn.\2"),
    (r"(stages\.\d+\.\d+)\.self_attn\.(.*)", r"\1.attn.\2"),
    (r"head\.fc\.(.*)", r"head.\1"),
    (r"((?:stem|stages)\..*)", r"\1"),
)
_DAVIT: Rules = (  # timm's, then the authors'
    (r"(stages\.\d+\.blocks\..*)\.(cpe[12])\.proj\.(.*)", r"\1.\2.\3"),
    (r"head\.(?:norm)\.(.*)", r"norm.\1"),
    (r"head\.fc\.(.*)", r"head.\1"),
    (r"((?:stem|stages)\..*)", r"\1"),
    (r"patch_embeds\.0\.proj\.(.*)", r"stem.conv.\1"),
    (r"patch_embeds\.0\.norm\.(.*)", r"stem.norm.\1"),
    (r"patch_embeds\.(\d+)\.proj\.(.*)", r"stages.\1.downsample.conv.\2"),
    (r"patch_embeds\.(\d+)\.norm\.(.*)", r"stages.\1.downsample.norm.\2"),
    *((rf"main_blocks\.(\d+)\.(.*)\.cpe\.{i}\.proj\.(.*)", rf"stages.\1.blocks.\2.cpe{i + 1}.\3") for i in range(2)),
    (r"main_blocks\.(\d+)\.(.*)", r"stages.\1.blocks.\2"),
    (r"norms\.(.*)", r"norm.\1"),
    (r"head\.(weight|bias)", r"head.\1"),
)


def from_maxvit(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """timm's, in TensorFlow's form, or in its own: there q, k and v lie head by head, and offsets the other way."""
    renamed, unknown = rename(tensors, _MAXVIT)
    if "fc.weight" in renamed:
        return renamed, unknown
    for name, tensor in renamed.items():
        if re.search(r"\.attn\.qkv\.(weight|bias)$", name) and tensor.shape[0] % 96 == 0:
            renamed[name] = tensor.unflatten(0, (-1, 3, 32)).transpose(0, 1).flatten(0, 2)  # from (heads, 3, 32)
        elif name.endswith(".relative_bias") and tensor.ndim == 2:
            side = round(tensor.shape[0] ** 0.5)
            if side**2 == tensor.shape[0]:
                renamed[name] = tensor.T.unflatten(1, (side, side)).flip(1, 2)
    return renamed, unknown


def from_halonet(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """timm's, where q is apart, and k and v lie head by head."""
    renamed, unknown = rename(tensors, _HALONET)
    for name in [name for name in renamed if name.endswith(".attn.q.weight")]:
        before = name.removesuffix("q.weight")
        wanted = [renamed.get(before + part) for part in ("q.weight", "kv.weight", "height_rel")]
        if any(tensor is None or tensor.ndim < 2 for tensor in wanted):
            continue
        q, kv, table = (tensor for tensor in wanted if tensor is not None)
        dim, heads = table.shape[1], q.shape[0] // table.shape[1]
        if kv.shape[0] % max(1, heads):
            continue
        k, v = kv.unflatten(0, (heads, -1)).split((dim, kv.shape[0] // heads - dim), 1)
        del renamed[name], renamed[before + "kv.weight"]
        renamed[before + "qkv.weight"] = torch.cat([q, k.flatten(0, 1), v.flatten(0, 1)]).flatten(1)
    return renamed, unknown


def from_davit(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """In timm's names, or in the authors'."""
    return rename(tensors, _DAVIT)
