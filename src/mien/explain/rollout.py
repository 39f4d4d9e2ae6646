"""Attention rolled out: what reaches the answer through all blocks, one after the other."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mien.errors import MienError
from mien.explain.explanation import Explanation, answered
from mien.explain.layers import squares
from mien.networks import APViT, Deployed
from mien.nn import Block
from mien.nn.observe import Look, attentions, observe


class Rollout:
    """How much of each token reaches the class token, or the pool, through all blocks:

        R = Π_l (½ mean_heads A_l + ½ I);   values = R[class token]; of a pool's queries (mean A_pool) R

    deployed: the network, as it is used.
    labels: what its answers are called.

    ½ I is the residual around attention. Tokens that an APViT drops bring nothing further. Attention inside of a trunk,
    and from landmarks to the image, comes before the tokens and is not in it. Where one mixer has several attentions
    (axial), their mean is A. Mixers that form no attention between tokens are refused.

    `explain` raises MienError for a network without attention between tokens.

    Paper: Abnar & Zuidema, Quantifying Attention Flow in Transformers, arXiv 2005.00928; the pool's part is ours.
    """

    def __init__(self, deployed: Deployed, labels: Sequence[str]):
        self.deployed, self.labels = deployed, labels

    @torch.no_grad()
    def explain(self, crop: np.ndarray, target: str | None = None) -> Explanation:
        """The explanation of a face crop (S, S, 3) uint8 RGB. `target` names the answer; the map is one for all."""
        network, faces = self.deployed.network, torch.from_numpy(crop)[None]
        if not attentions(network):
            raise MienError(f"{type(network).__name__} has no attention to roll out")
        with observe(network, stages=["attn"]) as seen:
            logits = self.deployed(faces)[0]
        kept = None
        if isinstance(network, APViT):
            trace = network.trace(self.deployed.normalize(faces.permute(0, 3, 1, 2).float() / 255))
            kept = [(block.came[0], block.stayed[0]) for block in trace.blocks]
        reached = roll(network, seen, kept)
        probs = (logits / self.deployed.temperature).softmax(-1)[0].numpy()
        index = answered(probs, self.labels, target)
        if kept is not None:
            whole = torch.zeros(network.num_patches)
            whole[kept[0][0]] = reached
            reached = whole
        count, _, side = squares(len(reached))
        if not count:
            raise MienError(f"{type(network).__name__}: {len(reached)} tokens make no grid that could be drawn")
        unit = "share of what reaches the class token or the pool through all blocks, whatever the answer"
        values = reached.view(count, side, side).numpy()
        return Explanation("rollout", values, index, self.labels[index], float(probs[index]), unit)


def roll(network: nn.Module, seen: dict[str, Look], kept: Sequence[tuple[Tensor, Tensor]] | None = None) -> Tensor:
    """What `observe` saw of one face -> the share of every token that came to the first block (N).

    kept: of every block, the patches that came and that stayed, by number.
    """
    by_block: dict[str, list[Tensor]] = {}
    prefix, pool = 0, None
    blocks = [name for name, part in network.named_modules() if isinstance(part, Block)]
    for name, look in seen.items():
        if look.attn is None or look.attn.ndim != 4 or len(look.attn) != 1:
            continue
        mean = look.attn[0].float().mean(0)
        if look.layout.kind == "token" and mean.shape[0] == mean.shape[1]:
            prefix = look.layout.prefix
            owner = next((block for block in blocks if name == block or name.startswith(f"{block}.")), name)
            by_block.setdefault(owner, []).append(mean)
        elif look.layout.kind == "class":
            pool = mean.mean(0)[look.layout.prefix :]
    without = [name for name in blocks if name not in by_block]
    if not by_block or (pool is None and without):
        what = f" ({', '.join(without[:3])} forms none)" if without else ""
        raise MienError(f"{type(network).__name__} has no attention between tokens to roll out{what}")
    if kept is not None and not prefix:
        prefix = 1
    flow: Tensor | None = None
    for i, each in enumerate(by_block.values()):
        attn = torch.stack(each).mean(0)
        mixed = (attn + torch.eye(len(attn))) / 2
        flow = mixed if flow is None else mixed @ flow
        if kept is not None:
            came, stayed = (index.tolist() for index in kept[i])
            flow = torch.cat([flow[:prefix], flow[prefix:][[came.index(patch) for patch in stayed]]])
    assert flow is not None
    if pool is not None and len(pool) == len(flow) - prefix:
        return (pool @ flow[prefix:])[prefix:]
    return flow[0, prefix:] if prefix else flow.mean(0)
