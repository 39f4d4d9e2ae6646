"""Published weights of transformers whose official code has names of its own."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mien.networks.published import Rules, rename

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
