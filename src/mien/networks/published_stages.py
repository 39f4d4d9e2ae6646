"""How published weights of networks of stages name their tensors, and what these are called here."""

import re
from collections.abc import Mapping

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
