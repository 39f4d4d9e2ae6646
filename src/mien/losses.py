"""What torch lacks among the losses."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor


def weighted_cross_entropy(
    logits: Mapping[str, Tensor],
    target: Tensor,
    weights: Mapping[str, float],
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`Σ weight · cross entropy` over named logits (B, C); target (B,) class indices or (B, C) distributions.

    Gives the sum and each cross entropy by name, unweighted; both in fp32. BTN: L = λ · L_vit + L_bt + L_cba.
    """
    if logits.keys() != weights.keys():
        raise ValueError(f"logits {sorted(logits)} do not go with weights {sorted(weights)}")
    parts = {
        name: F.cross_entropy(each.float(), target, class_weights, label_smoothing=label_smoothing)
        for name, each in logits.items()
    }
    return sum(weights[name] * part for name, part in parts.items()), parts
