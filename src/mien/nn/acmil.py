"""ACMIL's pooling: several attention branches; training hides some of the tokens with the highest scores."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.attend import merge_heads, split_heads
from mien.nn.base import MakePool, OwnLoss
from mien.nn.observe import Layout, Stages

LAYOUT = Layout("class")


class TokenGather(nn.Module):
    """Makes one vector a face of tokens (B, N, dim) and attn (B, heads, N): (B, dim)."""

    def heads(self, tokens: Tensor, attn: Tensor) -> Tensor:
        """-> (B, heads, head_dim)."""
        raise NotImplementedError

    def join(self, heads: Tensor) -> Tensor:
        """(B, heads, head_dim) -> (B, dim)."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, attn: Tensor) -> Tensor:
        return self.join(self.heads(tokens, attn))


class WeightedSum(TokenGather):
    """`Σ_n attn[n] tokens[n]`: tokens (B, N, dim), attn (B, 1, N) -> (B, dim)."""

    def heads(self, tokens: Tensor, attn: Tensor) -> Tensor:
        return attn @ tokens

    def join(self, heads: Tensor) -> Tensor:
        return heads[:, 0]


class ProjectedSum(TokenGather):
    """`norm(proj(Σ_n attn[n] v(tokens[n])))`, a sum a head: tokens (B, N, dim), attn (B, heads, N) -> (B, dim)."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.v, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.drop = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def heads(self, tokens: Tensor, attn: Tensor) -> Tensor:
        return (attn[:, :, None] @ split_heads(self.v(tokens), self.num_heads))[:, :, 0]

    def join(self, heads: Tensor) -> Tensor:
        return self.norm(self.drop(self.proj(merge_heads(heads[:, :, None])[:, 0])))


class BranchPool(OwnLoss):
    """What both of ACMIL's pools share: M branches of scores -> attn -> one vector a face, (B, N, dim) -> (B, dim).

        attn = softmax(scores);   pooled = gather(tokens, mean_m attn_m)

    Training hides tokens from each branch before the softmax (stochastic top-k instance masking): of the `top_k`
    highest scores (of all, where there are fewer tokens) a share `mask_ratio`, rounded down, is drawn at random, anew
    for every face. The paper's 10 are of bags of thousands; of a face's 49 tokens 6 are hidden, 12 %. `aux_loss` is the
    mean cosine of the attention of two branches in the last training forward; None in eval, and for one branch.

    As `mien.nn.observe` sees it, scores and attn are (B, heads, M, N), and heads (B, heads, 1, head_dim).

    Paper: Zhang et al., Attention-Challenging Multiple Instance Learning, arXiv 2311.07125. Reference:
    dazhangyu123/ACMIL, e53d19c.
    """

    gather: TokenGather

    def __init__(self, num_branches: int, top_k: int, mask_ratio: float):
        super().__init__()
        if num_branches < 1 or top_k < 1:
            raise ValueError(f"num_branches and top_k must be 1 at least, not {num_branches!r} and {top_k!r}")
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in [0, 1), not {mask_ratio!r}")
        self.num_branches, self.top_k, self.mask_ratio = num_branches, top_k, mask_ratio
        self.attend = Stages()

    def scores(self, tokens: Tensor) -> Tensor:
        """(B, N, dim) -> (B, heads, M, N)."""
        raise NotImplementedError

    def make_gather(self) -> TokenGather:
        """Builds what makes a vector of the tokens: one for the pool, and in a head one for each branch."""
        raise NotImplementedError

    def hidden(self, scores: Tensor) -> Tensor:
        """Which tokens a training step hides from each branch: (B, heads, M, N) bool."""
        top = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1).indices
        drawn = torch.rand(top.shape, device=top.device).argsort(-1)[..., : int(top.shape[-1] * self.mask_ratio)]
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, top.gather(-1, drawn), True)

    def attention(self, tokens: Tensor) -> Tensor:
        """(B, N, dim) -> attn (B, heads, M, N)."""
        scores = self.scores(tokens)
        if self.training and self.mask_ratio:
            scores = scores.masked_fill(self.hidden(scores), float("-inf"))
        at_least_fp32 = torch.promote_types(scores.dtype, torch.float32)
        scores = self.attend.stage("scores", scores, LAYOUT)
        attn = self.attend.stage("attn", scores.softmax(dim=-1, dtype=at_least_fp32).to(tokens.dtype), LAYOUT)
        if self.training and self.num_branches > 1:
            self.aux_loss = likeness(attn)
        return attn

    def gathered(self, tokens: Tensor, attn: Tensor) -> Tensor:
        """The pool's answer: (B, N, dim), attn (B, heads, M, N) -> (B, dim)."""
        heads = self.gather.heads(tokens, attn.mean(2))
        return self.gather.join(self.attend.stage("heads", heads[:, :, None], LAYOUT)[:, :, 0])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.gathered(tokens, self.attention(tokens))


class ACMILPool(BranchPool):
    """Gated attention: `scores_m(n) = w_m · (tanh(V x_n) ⊙ sigmoid(U x_n)) + b_m`, (B, N, dim) -> (B, dim).

    V and U, dim to `hidden`, are shared by the branches; tokens are gathered as they are. With one branch and
    `mask_ratio` 0 it is ABMIL. The published network narrows its tokens first: `ACMILHead`. Masking, paper and
    reference: `BranchPool`; ABMIL: Ilse et al., arXiv 1802.04712.

    Args:
        dim: int, width of the tokens.
        num_branches: int from 1 on, M; 5.
        hidden: int, width of the gated attention; 128.
        top_k: int from 1 on, tokens of which some are hidden; 10.
        mask_ratio: float in [0, 1), fraction of these that is hidden; 0.6.
    """

    def __init__(self, dim: int, num_branches: int = 5, hidden: int = 128, top_k: int = 10, mask_ratio: float = 0.6):
        super().__init__(num_branches, top_k, mask_ratio)
        self.gate_v, self.gate_u = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.score = nn.Linear(hidden, num_branches)
        self.gather = self.make_gather()

    def scores(self, tokens: Tensor) -> Tensor:
        return self.score(self.gate_v(tokens).tanh() * self.gate_u(tokens).sigmoid()).mT[:, None]

    def make_gather(self) -> TokenGather:
        return WeightedSum()


class ACMILQueryPool(BranchPool):
    """Multi-head attention with a learned query for each branch: (B, N, dim) -> (B, dim).

        scores_mh(n) = q_mh · (K_mh x_n) · head_dim^-1/2 = w_mh · x_n;   gather = norm(proj(attn v))

    A learned query against projected keys is one vector w for each branch and head, and w is what is learned here: the
    same functions, of dim · heads numbers a branch instead of dim · (2 · dim + 1). Masking, paper and reference:
    `BranchPool`.

    Args:
        dim, num_heads: int, width of the tokens and number of heads; 8 heads.
        num_branches, top_k, mask_ratio: as for `ACMILPool`.
        dropout: float in [0, 1], of the output in training; 0.1.
    """

    def __init__(
        self,
        dim: int,
        num_branches: int = 5,
        num_heads: int = 8,
        top_k: int = 10,
        mask_ratio: float = 0.6,
        dropout: float = 0.1,
    ):
        super().__init__(num_branches, top_k, mask_ratio)
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.dim, self.num_heads, self.dropout = dim, num_heads, dropout
        self.score = nn.Linear(dim, num_heads * num_branches, bias=False)
        self.gather = self.make_gather()

    def scores(self, tokens: Tensor) -> Tensor:
        return self.score(tokens).mT.unflatten(1, (self.num_heads, self.num_branches))

    def make_gather(self) -> TokenGather:
        return ProjectedSum(self.dim, self.num_heads, self.dropout)


class ACMILHead(nn.Module):
    """Tokens (B, N, dim) -> logits (B, C) of the pooled vector, and branch logits (B, M, C).

        z = relu(reduce(tokens));   logits = head(pool(z));   branch logits_m = branch_heads_m(gather_m(z, attn_m))
        L = CE(logits) + mean_m CE(branch logits_m) + pool.aux_loss

    Only `logits` are an answer. `loss` is the sum of the CE; `aux_loss` is kept on the pool. A single branch is the
    answer itself, and has no head and no loss of its own. Published for one bag at a time; here for
    batches of any size. A network with it is `mien.networks.acmil_mobile`. Paper and reference: `BranchPool`.

    Args:
        dim, num_classes: int, width of the tokens, and C.
        width: int, of z; 256.
        pool: makes a pool of a width; `ACMILPool`.
    """

    def __init__(self, dim: int, num_classes: int, width: int = 256, pool: MakePool = ACMILPool):
        super().__init__()
        self.reduce = nn.Linear(dim, width, bias=False)
        self.pool: Any = pool(width)  # a BranchPool
        branches = self.pool.num_branches if self.pool.num_branches > 1 else 0
        self.gathers = nn.ModuleList(self.pool.make_gather() for _ in range(branches))
        self.branch_heads = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(branches))
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        z = self.reduce(tokens).relu()
        attn = self.pool.attention(z)
        logits = self.head(self.pool.gathered(z, attn))
        if not self.branch_heads:
            return logits, logits[:, None]
        parts = zip(self.branch_heads, self.gathers, attn.unbind(2), strict=True)
        return logits, torch.stack([head(gather(z, a)) for head, gather, a in parts], dim=1)

    def loss(self, logits: Tensor, branch_logits: Tensor, target: Tensor) -> Tensor:
        """`CE(logits, target) + mean_m CE(branch logits_m, target)`: indices (B,) or probs (B, C) -> a scalar."""
        loss = F.cross_entropy(logits, target)
        if not self.branch_heads:
            return loss
        repeated = target.repeat_interleave(branch_logits.shape[1], dim=0)
        return loss + F.cross_entropy(branch_logits.flatten(0, 1), repeated)


def likeness(attn: Tensor) -> Tensor:
    """The mean cosine between two branches: attn (B, heads, M, N) -> a scalar."""
    unit = F.normalize(attn, dim=-1)
    cosine = unit @ unit.mT  # (B, heads, M, M)
    m = attn.shape[2]
    return cosine.triu(1).sum((-2, -1)).mean() / (m * (m - 1) / 2)
