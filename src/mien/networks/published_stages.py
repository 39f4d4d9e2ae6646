"""How published weights of networks of stages name their tensors, and what these are called here."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mien.networks.published import Rules, rename, under

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
_MOH_VIT: Rules = (
    (r"patch_embed(\d+)\.proj\.(.*)", r"stages.<\1>.proj.\2"),
    (r"patch_embed(\d+)\.norm\.(.*)", r"stages.<\1>.proj_norm.\2"),
    (r"block(\d+)\.(.*)\.mlp\.dwconv\.dwconv\.(.*)", r"stages.<\1>.blocks.\2.mlp.dwconv.\3"),
    (r"block(\d+)\.(.*)\.attn\.relative_pos_bias_local", r"stages.<\1>.blocks.\2.attn.local_bias"),
    (r"block(\d+)\.(.*)\.attn\.learnable_tokens", r"stages.<\1>.blocks.\2.attn.local_tokens"),
    (r"block(\d+)\.(.*)\.attn\.learnable_bias", r"stages.<\1>.blocks.\2.attn.local_weights"),
    (r"block(\d+)\.(.*)", r"stages.<\1>.blocks.\2"),
    (r"norm(\d+)\.(.*)", r"stages.<\1>.norm.\2"),
    (r"(head\..*)", r"\1"),
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
        own = {part: renamed.pop(part) for part in list(renamed) if part.startswith(before)}
        renamed |= {before + part: tensor for part, tensor in halo_qkv(under(before, own)).items()}
    return renamed, unknown


def halo_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's q and kv, by leaf, of one Halo attention, put together: there k and v lie head by head."""
    left = dict(tensors)
    for leaf in ("weight", "bias"):
        q, kv, table = (left.get(part) for part in (f"q.{leaf}", f"kv.{leaf}", "height_rel"))
        if q is None or kv is None or table is None or table.ndim < 2 or not (heads := len(q) // table.shape[1]):
            continue
        if len(kv) % heads == 0 and len(kv) // heads > table.shape[1]:
            k, v = kv.unflatten(0, (heads, -1)).split((table.shape[1], len(kv) // heads - table.shape[1]), 1)
            joined = torch.cat([q, k.flatten(0, 1), v.flatten(0, 1)])
            left[f"qkv.{leaf}"] = joined.flatten(1) if leaf == "weight" else joined
            del left[f"q.{leaf}"], left[f"kv.{leaf}"]
    return left


def from_davit(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """In timm's names, or in the authors'."""
    return rename(tensors, _DAVIT)


def from_moh_vit(tensors: Mapping[str, Tensor], shared: Sequence[int]) -> tuple[dict[str, Tensor], list[str]]:
    """The authors', where q is apart in stages that pool, and each router is apart.

    shared: heads of each stage that serve all tokens; tensors of another number come back as unknown.
    """
    renamed, unknown = rename(tensors, _MOH_VIT)
    for before in dict.fromkeys(name.partition(".attn.")[0] + ".attn." for name in renamed if ".attn." in name):
        routers = [renamed.pop(f"{before}wg{part}.weight", None) for part in ("", "_1", "_0")]
        common = shared[int(before.split(".")[1])] if before.split(".")[1] in map(str, range(len(shared))) else 0
        if (routers[1] is None) != (common < 2) or (routers[1] is not None and len(routers[1]) != common):
            unknown.append(f"{before}wg_1.weight")
        if any(router is not None for router in routers):
            renamed[before + "router.weight"] = torch.cat([router for router in routers if router is not None])
        for part in ("weight", "bias"):
            q, kv = (renamed.pop(f"{before}{name}.{part}", None) for name in ("q", "kv"))
            if q is not None and kv is not None:
                renamed[f"{before}qkv.{part}"] = torch.cat([q, kv])
        if before + "sr.weight" in renamed:
            renamed[before + "sr.weight"] = renamed[before + "sr.weight"].flatten(1)
    return renamed, unknown
