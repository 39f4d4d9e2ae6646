"""Queries for the landmarks of a face, who look for them among its tokens. Ours, of Group Pose's parts."""

import torch
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads, split_heads
from mien.nn.group_pose import GroupPoseLayer


class TokenCrossAttention(nn.Module):
    """Queries ask tokens: `proj(softmax(head_dim^-1/2 · q kᵀ) v)`, (B, Q, dim), (B, N, dim) -> (B, Q, dim).

    Paper: Vaswani et al., Attention Is All You Need, 2017.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.attend = Attend()

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        asked = (self.q(queries), *self.kv(tokens).chunk(2, dim=-1))
        return self.proj(merge_heads(self.attend(*(split_heads(x, self.num_heads) for x in asked))))


class LandmarkQueryPool(nn.Module):
    """What a face's own query knows after its landmarks have looked: tokens (B, N, dim) -> (B, dim).

    A query for the face and one for each of `num_landmarks` (5 points, or 68, or any number) pass `depth` layers
    (`GroupPoseLayer`): they speak with one another, then ask all tokens, then think. Every attention of a landmark's
    query, (B, heads, 1 + K, N), can be seen by opening `blocks.i.cross_attn.attend`.

    Ours: Group Pose looks for the points of many bodies; here one face is one instance, so nobody speaks across
    instances; queries and their places are learned, not made of reference points; and they look at all tokens, not at
    sampled places. Tokens must know where they lie, as a ViT's do. Paper and reference: `GroupSelfAttention`.
    """

    def __init__(self, dim: int, num_heads: int = 8, num_landmarks: int = 5, depth: int = 2, mlp_ratio: float = 4.0):
        super().__init__()
        if num_landmarks < 1 or depth < 1:
            raise ValueError(f"num_landmarks and depth must be 1 at least, not {num_landmarks!r} and {depth!r}")
        self.queries = nn.Parameter(torch.empty(1, 1, 1 + num_landmarks, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1, num_landmarks, dim))
        for parameter in (self.queries, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.blocks = nn.ModuleList(
            GroupPoseLayer(dim, num_heads, TokenCrossAttention(dim, num_heads), int(dim * mlp_ratio), across=False)
            for _ in range(depth)
        )

    def ask(self, tokens: Tensor) -> Tensor:
        """(B, N, dim) -> the face's query and its landmarks' (B, 1 + K, dim)."""
        t = self.queries.repeat(tokens.shape[0], 1, 1, 1)
        for block in self.blocks:
            t = block(t, self.pos_embed, tokens)
        return t[:, 0]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.ask(tokens)[:, 0]


class LandmarkQueryHead(nn.Module):
    """Tokens (B, N, dim) -> logits (B, C) of the face's query, and where its landmarks lie, (B, K, 2) in (0, 1).

    `logits = head(t_0);   landmarks = sigmoid(points(t_k))`, (x, y) as shares of the crop's width and height. The
    places are worth something only where a loss on known landmarks has taught them; without one they, and `points`, may
    be left alone. Ours: see `LandmarkQueryPool`, whose arguments `pool` are.
    """

    def __init__(self, dim: int, num_classes: int, **pool):
        super().__init__()
        self.pool = LandmarkQueryPool(dim, **pool)
        self.head, self.points = nn.Linear(dim, num_classes), nn.Linear(dim, 2)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        t = self.pool.ask(tokens)
        return self.head(t[:, 0]), self.points(t[:, 1:]).sigmoid()
