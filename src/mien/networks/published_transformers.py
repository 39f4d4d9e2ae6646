"""Published weights of transformers whose official code has names of its own."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mien.networks.published import Rules, rename, sizes_of, under

_SPECTFORMER: Rules = (
    (r"patch_embed\.proj\.(.*)", r"patch_embed.\1"),
    (r"blocks\.(\d+)\.filter\.(.*)", r"blocks.\1.attn.\2"),
    (r"((?:pos_embed$|blocks\.|norm\.|head\.).*)", r"\1"),
)
_HIERARCHICAL_SPECTFORMER: Rules = (
    (r"patch_embed1\.conv\.(.*)", r"stem.\1"),
    (r"patch_embed([1-4])\.proj\.(.*)", r"downs.<\1>.\2"),
    (r"patch_embed([1-4])\.norm\.(.*)", r"down_norms.<\1>.\2"),
    (r"block([1-4])\.(\d+)\.mlp\.dwconv\.dwconv\.(.*)", r"stages.<\1>.\2.mlp.conv.\3"),
    (r"block([1-4])\.(.*)", r"stages.<\1>.\2"),
    (r"norm([1-4])\.(.*)", r"norms.<\1>.\2"),
    (r"post_network\.0\.(.*)", r"class_block.\1"),
    (r"((?:aux_)?head\..*)", r"\1"),
)
_DEIT: Rules = (
    (r"patch_embed\.proj\.(.*)", r"patch_embed.\1"),
    (r"blocks\.(\d+)\.attn\.mask_predictor\.proj_c_([qk])\.(.*)", r"blocks.\1.attn.reduce_\2.\3"),
    (r"blocks\.(\d+)\.attn\.mask_predictor\.proj_n", r"blocks.\1.attn.reduce_tokens"),
    (r"blocks\.(\d+)\.attn\.mask_predictor\.proj_back_n", r"blocks.\1.attn.basis"),
    (r"((?:cls_token$|pos_embed$|blocks\.|norm\.|head\.).*)", r"\1"),
)


def from_spectformer(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Of either architecture of badripatro/SpectFormers; q and kv of the hierarchical one are put together as here."""
    if "patch_embed.proj.weight" in tensors:
        return rename(tensors, _SPECTFORMER)
    renamed, unknown = rename(tensors, _HIERARCHICAL_SPECTFORMER)
    for name in [name for name in renamed if ".attn.kv." in name]:
        q, kv = name.replace(".kv.", ".q."), renamed.pop(name)
        if name.startswith("class_block."):
            renamed |= dict(zip((name.replace(".kv.", f".{x}.") for x in "kv"), kv.chunk(2), strict=True))
        elif q in renamed:
            renamed[name.replace(".kv.", ".qkv.")] = torch.cat([renamed.pop(q), kv])
    return renamed, unknown


def from_deit(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Of facebookresearch/deit, or of Sparsifiner's code, which has mask predictors as well."""
    return rename(tensors, _DEIT)


def spectformer(tensors: Mapping[str, Tensor]) -> str:
    hierarchical = any(name.startswith("stages.") for name in tensors)
    return f"mien.networks.{'Hierarchical' if hierarchical else ''}SpectFormer"


def spectformer_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Heads are 64 wide in the vanilla architecture, and 32 in the hierarchical one, as published."""
    if spectformer(tensors) == "mien.networks.SpectFormer":
        arguments = sizes_of(
            tensors,
            num_classes=("head.weight", 0),
            embed_dim=("patch_embed.weight", 0),
            patch_size=("patch_embed.weight", 2),
        )
        side = math.isqrt(sizes_of(tensors, patches=("pos_embed", 1)).get("patches", 0))
        return arguments | {
            "img_size": side * arguments.get("patch_size", 0),
            "depth": count_blocks(tensors, "blocks."),
            "spectral_depth": sum(name.endswith(".complex_weight") for name in tensors),
            "num_heads": arguments.get("embed_dim", 0) // 64,
        }
    dims = [sizes_of(tensors, dim=(f"norms.{i}.weight", 0)).get("dim", 32) for i in range(4)]
    hidden = [sizes_of(tensors, dim=(f"stages.{i}.0.mlp.fc1.weight", 0)).get("dim", 0) for i in range(4)]
    return sizes_of(tensors, num_classes=("head.weight", 0), stem_dim=("stem.0.weight", 0)) | {
        "img_size": 4 * sizes_of(tensors, side=("stages.0.0.attn.complex_weight", 0)).get("side", 0),
        "embed_dims": dims,
        "depths": [count_blocks(tensors, f"stages.{i}.") for i in range(4)],
        "num_heads": [dim // 32 for dim in dims],
        "mlp_ratios": [width / dim for width, dim in zip(hidden, dims, strict=True)],
        "token_labels": "aux_head.weight" in tensors,
    }


def deit_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Heads are 64 wide in every DeiT."""
    arguments = sizes_of(
        tensors,
        num_classes=("head.weight", 0),
        embed_dim=("patch_embed.weight", 0),
        patch_size=("patch_embed.weight", 2),
    )
    side = math.isqrt(max(0, sizes_of(tensors, places=("pos_embed", 1)).get("places", 1) - 1))
    sizes = {"img_size": side * arguments.get("patch_size", 0), "depth": count_blocks(tensors, "blocks.")}
    return arguments | sizes | {"num_heads": arguments.get("embed_dim", 0) // 64}


def count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks there are under a prefix."""
    return len({name.partition(".")[0] for name in under(prefix, tensors)})
