"""Learned queries for the landmarks of a face, which attend to its tokens. Ours, of Group Pose's parts."""

import warnings

import torch
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads, split_heads
from mien.nn.group_pose import GroupPoseLayer
from mien.nn.observe import Layout


class TokenCrossAttention(nn.Module):
    """Queries attend to tokens: `proj(softmax(head_dim^-1/2 · q kᵀ) v)`, (B, Q, dim), (B, N, dim) -> (B, Q, dim).

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.

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
        qkv = (self.q(queries), *self.kv(tokens).chunk(2, dim=-1))
        q, k, v = (split_heads(x, self.num_heads) for x in qkv)
        return self.proj(merge_heads(self.attend(q, k, v, layout=Layout("cross"))))


class LandmarkQueryPool(nn.Module):
    """The face's own query, after it and its landmarks have attended to the tokens: (B, N, dim) -> (B, dim).

    A query for the face and one for each of `num_landmarks` (5 points, or 68, or any number) pass `depth` layers
    (`GroupPoseLayer`): they attend to one another, then to all tokens; then comes the feed-forward part.
    `mien.nn.observe` shows the attention of every query, (B, heads, 1 + K, N), under `blocks.i.cross_attn`.

    Ours: Group Pose looks for the points of many bodies; here one face is one instance, so there is no attention across
    instances. Queries and their positions are learned, not made of reference points, and they attend to all tokens, not
    to sampled points. Tokens must carry their position, as a ViT's do. Paper and reference: `GroupSelfAttention`.

    Args:
        dim, num_heads: int, width of the tokens and number of heads; 8 heads.
        num_landmarks, depth: int from 1 on, K and number of layers; 5 and 2.
        mlp_ratio: float, hidden width of the mlp over dim; 4.
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

    def gather(self, tokens: Tensor) -> Tensor:
        """(B, N, dim) -> the face's query and its landmarks' (B, 1 + K, dim)."""
        t = self.queries.repeat(tokens.shape[0], 1, 1, 1)
        for block in self.blocks:
            t = block(t, self.pos_embed, tokens)
        return t[:, 0]

    def ask(self, tokens: Tensor) -> Tensor:
        """The old name of `gather`."""
        warnings.warn("LandmarkQueryPool.ask is now called gather", DeprecationWarning, stacklevel=2)
        return self.gather(tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.gather(tokens)[:, 0]


class LandmarkQueryHead(nn.Module):
    """Tokens (B, N, dim) -> logits (B, C) of the face's query, and its landmarks (B, K, 2) in (0, 1).

    `logits = head(t_0);   landmarks = sigmoid(points(t_k))`, (x, y) as fractions of the crop's width and height. The
    landmarks mean something only if a loss on known landmarks has trained them; without one leave `points` alone. Ours:
    see `LandmarkQueryPool`.

    Args:
        dim, num_classes: int, width of the tokens and C.
        pool: further arguments of `LandmarkQueryPool`.
    """

    def __init__(self, dim: int, num_classes: int, **pool):
        super().__init__()
        self.pool = LandmarkQueryPool(dim, **pool)
        self.head, self.points = nn.Linear(dim, num_classes), nn.Linear(dim, 2)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        t = self.pool.gather(tokens)
        return self.head(t[:, 0]), self.points(t[:, 1:]).sigmoid()
