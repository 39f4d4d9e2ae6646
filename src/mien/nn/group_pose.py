"""Group Pose: point queries attend within their instance, then across instances, then to the picture."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.attend import merge_heads
from mien.nn.grid import to_tokens
from mien.nn.observe import Layout, Stages
from mien.nn.self_attention import SelfAttention


def add_positions(queries: Tensor, pos: Tensor | None) -> Tensor:
    """Queries (B, n, 1 + K, D) plus positions (B, n, K, D) of the K points; the instance's own query has none."""
    return queries if pos is None else queries + F.pad(pos, (0, 0, queries.shape[2] - pos.shape[2], 0))


class GroupSelfAttention(nn.Module):
    """Attention within each instance, then across instances: queries (B, n, 1 + K, dim) -> the same.

        t = t + pos;   t = within_norm(t + within_attn(t))       over the 1 + K queries of an instance
        t = across_norm(t + across_attn(t))                      over the n queries of one kind

    Each of n instances has an instance query and K point queries; the B pictures of a batch never see one another. The
    cost is n (1 + K)² + (1 + K) n² pairs instead of (n (1 + K))². The published code adds `pos` (B, n, K, dim) in
    place, so it is part of values and residual; with `pos_in_values=False`, ours, it is in queries and keys alone.
    `across=False`, ours, leaves the second step out: with n = 1 it would only be a linear layer.

    Args:
        dim, num_heads: int, width of the queries and number of heads, which divides it.
        across: bool, whether there is the second step; True.
        pos_in_values: bool; True.

    Paper: Liu et al., Group Pose, arXiv 2308.07313. Reference: Michel-liu/GroupPose, 127fe0e.
    """

    def __init__(self, dim: int, num_heads: int, across: bool = True, pos_in_values: bool = True):
        super().__init__()
        self.pos_in_values = pos_in_values
        self.within_attn, self.within_norm = SelfAttention(dim, num_heads), nn.LayerNorm(dim)
        self.across_attn = SelfAttention(dim, num_heads) if across else None
        self.across_norm = nn.LayerNorm(dim) if across else None

    def forward(self, queries: Tensor, pos: Tensor | None = None) -> Tensor:
        shape, within = queries.shape, self.within_attn
        placed = add_positions(queries, pos)
        t = placed if self.pos_in_values else queries
        q, k, v = within.split(placed.flatten(0, 1))
        if not self.pos_in_values:
            v = within.split(t.flatten(0, 1))[2]
        heads = within.attend(q, k, v, layout=Layout("token", prefix=1))
        t = self.within_norm(t + within.join(heads).view(shape))
        if self.across_attn is None or self.across_norm is None:
            return t
        kinds = t.transpose(1, 2)  # (B, 1 + K, n, dim)
        mixed = self.across_attn(kinds.flatten(0, 1)).unflatten(0, kinds.shape[:2]).transpose(1, 2)
        return self.across_norm(t + mixed)


class DeformableAttention(nn.Module):
    """Queries attend to a few points around their reference: (B, Q, dim), reference (B, Q, 2), maps -> (B, Q, dim).

        proj(Σ_lp softmax(attention_weights(q))_lp · value(map_l)[reference + sampling_offsets(q)_lp / (W_l, H_l)])

    `reference` is (x, y) in [0, 1]: one for all levels, or one for each, (B, Q, levels, 2). There is one map
    (B, dim, H_l, W_l) a level. Each head samples `num_points` points a level, bilinear between the centres of cells,
    with zeros outside. As published, offsets start in as many directions as there are heads, 1 to 4 cells away and
    again from 1 for further points, or at 0 where `num_points` is no multiple of 4; `value` and `proj` start
    Xavier-uniform, without biases.

    As `mien.nn.observe` sees it, the keys are the points of all levels, (B, heads, Q, levels · points).

    Args:
        dim, num_heads: int, width of the queries and number of heads, which divides it.
        num_points: int from 1 on, points of a head and level; 4.
        num_levels: int from 1 on, maps; 1.

    Paper: Zhu et al., Deformable DETR, arXiv 2010.04159. Reference: Michel-liu/GroupPose, 127fe0e (ops).
    """

    def __init__(self, dim: int, num_heads: int, num_points: int = 4, num_levels: int = 1):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.num_points, self.num_levels = num_heads, num_points, num_levels
        points = num_heads * num_levels * num_points
        self.sampling_offsets, self.attention_weights = nn.Linear(dim, 2 * points), nn.Linear(dim, points)
        self.value, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        angle = torch.arange(num_heads) * (2 * math.pi / num_heads)
        way = torch.stack([angle.cos(), angle.sin()], dim=-1)
        cells = (torch.arange(num_points) % 4 + 1.0) * (num_points % 4 == 0)
        way = (way / way.abs().amax(-1, keepdim=True))[:, None, None] * cells[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(way.expand(-1, num_levels, -1, -1).flatten())
        zero = [self.sampling_offsets.weight, *self.attention_weights.parameters(), self.value.bias, self.proj.bias]
        for parameter in zero:
            nn.init.zeros_(parameter)
        for layer in (self.value, self.proj):
            nn.init.xavier_uniform_(layer.weight)
        self.attend = Stages()

    def forward(self, queries: Tensor, reference: Tensor, maps: Sequence[Tensor]) -> Tensor:
        if len(maps) != self.num_levels:
            raise ValueError(f"{self.num_levels} maps are expected, and {len(maps)} were given")
        if reference.ndim == 3:
            reference = reference[:, :, None].expand(-1, -1, self.num_levels, -1)
        if reference.shape[2] != self.num_levels:
            raise ValueError(f"reference has points of {reference.shape[2]} levels, and there are {self.num_levels}")
        exact = torch.promote_types(queries.dtype, torch.float32)  # points are finer than bf16
        offsets = self.sampling_offsets(queries).to(exact).unflatten(-1, (self.num_heads, -1, self.num_points, 2))
        layout = Layout("cross", planes=self.num_levels)
        scores = self.attention_weights(queries).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        scores = self.attend.stage("scores", scores, layout)  # (B, heads, Q, levels · points)
        attn = self.attend.stage("attn", scores.softmax(-1, dtype=exact), layout)
        sampled = []
        for level, each in enumerate(maps):
            h, w = each.shape[2:]
            value = self.value(to_tokens(each)).to(exact).unflatten(-1, (self.num_heads, -1))  # (B, N, heads, head_dim)
            value = value.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (h, w))
            points = reference[:, :, level, None, None] + offsets[:, :, :, level] / offsets.new_tensor([w, h])
            points = 2 * points.transpose(1, 2).flatten(0, 1) - 1  # (B · heads, Q, points, 2) in [-1, 1]
            sampled.append(F.grid_sample(value, points, align_corners=False))  # (B · heads, head_dim, Q, points)
        heads = (torch.cat(sampled, -1) * attn.flatten(0, 1)[:, None]).sum(-1)  # (B · heads, head_dim, Q)
        heads = self.attend.stage("heads", heads.unflatten(0, (-1, self.num_heads)).mT, layout)
        return self.proj(merge_heads(heads).to(queries.dtype))


class GroupPoseLayer(nn.Module):
    """A layer of Group Pose's decoder: queries (B, n, 1 + K, dim), pos (B, n, K, dim) or None -> the same queries.

        t = group(t, pos) + pos;   t = norm1(t + cross_attn(t, *seen));   t = norm2(t + linear2(relu(linear1(t))))

    `cross_attn` takes queries (B, Q, dim) and what they attend to, `seen`: for `DeformableAttention`, as published,
    their reference points and the maps. `pos_in_values=False` keeps `pos` out of the residual here, too. Paper and
    reference: `GroupSelfAttention`.

    Args:
        dim, num_heads: int, width of the queries and number of heads, which divides it.
        cross_attn: the module that attends to what is seen.
        hidden: int, width of the feed-forward part; 2048.
        across, pos_in_values: bool, as for `GroupSelfAttention`; True.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        cross_attn: nn.Module,
        hidden: int = 2048,
        across: bool = True,
        pos_in_values: bool = True,
    ):
        super().__init__()
        self.group = GroupSelfAttention(dim, num_heads, across, pos_in_values)
        self.cross_attn = cross_attn
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, queries: Tensor, pos: Tensor | None, *seen) -> Tensor:
        t = self.group(queries, pos)
        placed = add_positions(t, pos)
        attended = self.cross_attn(placed.flatten(1, 2), *seen).view(t.shape)
        t = self.norm1((placed if self.group.pos_in_values else t) + attended)
        return self.norm2(t + self.linear2(self.linear1(t).relu()))
