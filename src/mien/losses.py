"""What torch lacks among the losses."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mien.networks.deploy import activate
from mien.outputs import Output


def weighted_cross_entropy(
    logits: Mapping[str, Tensor],
    target: Tensor,
    weights: Mapping[str, float],
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    units: Tensor | None = None,
    over_processes: Callable[[Tensor], Tensor] = lambda count: count,
    partial: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`Σ weight · cross entropy` over named logits (B, C); target (B,) class indices or (B, C) distributions.

    Gives the sum and each cross entropy by name, unweighted; both in at least fp32. BTN: L = λ · L_vit + L_bt + L_cba.

    With `class_weights` w (C,) and targets q, smoothed to q̃, it is `-Σ_bc w_c q̃_bc log p_bc / Σ_bc w_c q_bc`, which for
    class indices is torch's.

    The logits "action_units" (B, U) have the binary cross entropy with `units` (B, U) of 0, 1, and -1 where nobody
    looked. With `units`, or `partial`, a face may lack an expression, too: an index below 0, or a distribution of
    nothing but 0. What is not known has no share in the mean, and the mean of nothing is 0, with a gradient of 0.
    APViT on Aff-Wild2: L = 10 · L_expression + L_action_units; *inferred*: that the latter is this one.

    What is called "center" (B, C) are no logits but costs: the loss is the mean, over faces, of the cost of their
    class, or of their classes by their shares. A scalar is a loss itself.

    over_processes: the mean of a scalar over all processes that share the batch. What a mean is divided by goes through
    it, so that the mean of the processes' losses is that of one process with all the faces.
    """
    if logits.keys() != weights.keys():
        raise ValueError(f"logits {sorted(logits)} do not go with weights {sorted(weights)}")
    if "action_units" in logits and units is None:
        raise ValueError("logits of action units need units")
    known = slice(None)
    if units is not None or partial:
        known = target >= 0 if target.ndim == 1 else target.sum(1) > 0
    target = target[known]
    if target.ndim > 1:
        target = target.to(torch.promote_types(target.dtype, torch.float32))
    shares = torch.ones(len(target), device=target.device)
    if class_weights is not None:
        shares = class_weights[target] if target.ndim == 1 else target @ class_weights.to(target)
    faces = over_processes(shares.sum())

    def divide(total: Tensor, count: Tensor) -> Tensor:
        return total / count.clamp_min(1e-12)

    def loss(name: str, each: Tensor) -> Tensor:
        each = each.to(torch.promote_types(each.dtype, torch.float32))
        if each.ndim == 0:
            return each
        if name == "action_units":
            seen = units >= 0
            truth = units[seen].to(each)
            total = F.binary_cross_entropy_with_logits(each[seen], truth, reduction="sum")
            return divide(total, over_processes(seen.sum().to(each)))
        each = each[known]
        if name == "center":
            costs = each.gather(1, target[:, None]) if target.ndim == 1 else each * target
            return divide(costs.sum(), over_processes(torch.ones_like(shares).sum()))
        truth = target if target.ndim == 1 else target.to(each)
        weight = None if class_weights is None else class_weights.to(each)
        return divide(F.cross_entropy(each, truth, weight, reduction="sum", label_smoothing=label_smoothing), faces)

    parts = {name: loss(name, each) for name, each in logits.items()}
    return sum(weights[name] * part for name, part in parts.items()), parts


def output_loss(
    output: Output,
    values: Tensor,
    target: Tensor,
    balance: Tensor | None = None,
    over_processes: Callable[[Tensor], Tensor] = lambda mean: mean,
) -> Tensor:
    """What a head's values (B, width) cost, against a target of which NaN is not known; unweighted, in at least fp32.

        classes  cross entropy with distributions (B, C)
        binary   binary cross entropy with 0 and 1 (B, U); `balance` (U,) is the weight of the ones
        range    mean squared error + mean over labels of 1 - CCC, (B, R); CCC is the concordance
                 2 cov(x, y) / (var x + var y + (mean x - mean y)²) over the known values of the whole batch
        angles   smooth L1 of the difference in radians, wrapped to [-π, π), (B, A) in degrees
        points   smooth L1 with a knee at a twentieth of the crop, (B, P, 2)

    What is not known has no share in a mean, and the mean of nothing is 0, with a gradient of 0.

    over_processes: the mean of a tensor over all processes that share the batch, with its gradient; the mean of the
    processes' losses, and of their gradients, is then that of one process with all the faces.

    Paper of 1 - CCC: Ringeval et al., Prediction of asynchronous dimensional emotion ratings, 2015.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    values = values.unflatten(1, output.shape) if output.kind == "points" else values
    known = target.isfinite()
    if output.kind == "classes":
        known = known.all(1, keepdim=True)
    truth = torch.where(known, target, 0).to(values)
    part = known.to(values)

    def mean(each: Tensor) -> Tensor:
        return over_processes((each * part).sum()) / over_processes(part.sum()).clamp_min(1e-12)

    match output.kind:
        case "classes":
            return mean(-(truth * values.log_softmax(1)).sum(1, keepdim=True))
        case "binary":
            return mean(F.binary_cross_entropy_with_logits(values, truth, pos_weight=balance, reduction="none"))
        case "range":
            given = activate(output, values)
            return mean((given - truth).square()) + _discord(given, truth, part, over_processes)
        case "angles":
            turn = torch.remainder(values - truth * (math.pi / 180) + math.pi, 2 * math.pi) - math.pi
            return mean(F.smooth_l1_loss(turn, torch.zeros_like(turn), reduction="none"))
        case _:
            return mean(F.smooth_l1_loss(values, truth, beta=0.05, reduction="none"))


def _discord(given: Tensor, truth: Tensor, known: Tensor, over_processes: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean of 1 - CCC over the labels of which some values are known; given, truth, known (B, R) -> a scalar."""
    sums = [(each * known).sum(0) for each in (torch.ones_like(given), given, truth)]
    count, sum_given, sum_truth = over_processes(torch.stack(sums))
    whole = count.clamp_min(1e-12)
    mean_given, mean_truth = sum_given / whole, sum_truth / whole
    x, y = given - mean_given, truth - mean_truth  # centred first: fp32 loses a small variance beside a large mean
    products = torch.stack([(each * known).sum(0) for each in (x * x, y * y, x * y)])
    var_given, var_truth, covariance = over_processes(products) / whole
    spread = var_given + var_truth + (mean_given - mean_truth).square()
    discord = 1 - 2 * covariance / spread.clamp_min(1e-8)
    any_known = (count > 0).to(given)
    return (discord * any_known).sum() / any_known.sum().clamp_min(1)


def flip_divergence(logits: Tensor) -> Tensor:
    """How far answers to faces and to their mirror images are apart: logits (2B, C), mirror images behind -> a scalar.

        p, q = softmax(logits[:B]), softmax(logits[B:]);   m = (p + q) / 2, without a gradient
        mean over faces of (KL(m | p) + KL(m | q)) / 2

    In at least fp32. Its gradient draws both answers to their mean, which is what reading a face twice would answer.
    """
    logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    mean = logp.detach().exp().unflatten(0, (2, -1)).mean(0)
    return F.kl_div(logp, torch.cat([mean, mean]), reduction="batchmean")


def adjust_logits(logits: Mapping[str, Tensor], shares: Tensor, strength: float) -> dict[str, Tensor]:
    """Logits as a loss reads them that counts rare classes as much as common ones: `z_c + strength · log share_c`.

    logits: by name, as `weighted_cross_entropy` takes them; those of action units, costs ("center") and losses stay.
    shares: (C,), of each class among what is learned; a class without any counts as one in a million. The network is
    read without it, so that its answer leans to rare classes; a strength of 1 aims at the mean of recalls.

    Paper: Menon et al., Long-tail learning via logit adjustment, ICLR 2021.
    """
    offset = strength * shares.clamp_min(1e-6).log()
    apart = ("action_units", "center")
    return {name: each if each.ndim == 0 or name in apart else each + offset.to(each) for name, each in logits.items()}
