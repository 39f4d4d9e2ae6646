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
    units: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`Σ weight · cross entropy` over named logits (B, C); target (B,) class indices or (B, C) distributions.

    Gives the sum and each cross entropy by name, unweighted; both in fp32. BTN: L = λ · L_vit + L_bt + L_cba.

    The logits "action_units" (B, U) have the binary cross entropy with `units` (B, U) of 0, 1, and -1 where nobody
    looked. With `units` a face may lack an expression, too: an index below 0, or a distribution of nothing but 0. What
    is not known has no share in the mean, and the mean of nothing is 0, with a gradient of 0. APViT on Aff-Wild2:
    L = 10 · L_expression + L_action_units; *inferred*: that the latter is this one.
    """
    if logits.keys() != weights.keys():
        raise ValueError(f"logits {sorted(logits)} do not go with weights {sorted(weights)}")
    if "action_units" in logits and units is None:
        raise ValueError("logits of action units need units")
    known = slice(None)
    if units is not None:
        known = target >= 0 if target.ndim == 1 else target.sum(1) > 0

    def loss(name: str, each: Tensor) -> Tensor:
        each = each.float()
        if name == "action_units":
            seen = units >= 0
            each, truth = each[seen], units[seen].to(each)
            return F.binary_cross_entropy_with_logits(each, truth) if len(each) else each.sum()
        each = each[known]
        if not len(each):
            return each.sum()
        return F.cross_entropy(each, target[known], class_weights, label_smoothing=label_smoothing)

    parts = {name: loss(name, each) for name, each in logits.items()}
    return sum(weights[name] * part for name, part in parts.items()), parts
