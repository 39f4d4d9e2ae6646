"""Attention whose queries and keys are random and stay so: only what is read out of it is learned, in closed form."""

import torch
from torch import Tensor, nn

from mien.nn.observe import Layout, Stages

LAYOUT = Layout("class")


def random_features(weight: Tensor, query: Tensor, tokens: Tensor, stages: Stages | None = None) -> Tensor:
    """`φ_m = (1 / N) Σ_i relu(qᵀ W_m t_i) t_i` of M random heads: (B, M · E).

    weight (M, E, E), query (B, E), tokens (B, N, E). The order of the tokens does not count. `stages` shows what it
    does to whoever looks, and lets it be replaced.

    Paper: Fu et al., What can a Single Attention Layer Learn? A Study Through the Random Features Lens, arXiv
    2307.11353.
    """
    show = (lambda _, tensor, __: tensor) if stages is None else stages.stage
    scores = torch.einsum("be,mef->bmf", query, weight)[:, :, None] @ tokens.mT[:, None]  # (B, M, 1, N)
    attn = show("attn", show("scores", scores, LAYOUT).relu() / tokens.shape[1], LAYOUT)
    return show("heads", attn @ tokens[:, None], LAYOUT)[:, :, 0].flatten(1)


class RandomFeatureAttentionPool(nn.Module):
    """Attention of the mean token with random weights, read out by one linear layer: tokens (B, N, dim) -> (B, dim).

        t = [token · scale, 1];   φ_m = (1 / N) Σ_i relu(mean(t)ᵀ W_m t_i) t_i;   out = v(φ)

    W_m is (dim + 1)² numbers of a normal distribution of variance 1/4, drawn once and frozen; v alone is learned. As a
    read-out over frozen tokens nothing needs to be trained by descent: `Ridge` finds the best linear layer from
    `features` (B, num_heads · (dim + 1)) to targets in closed form. The appended 1 is no ornament: without it, nothing
    even in the tokens can be learned that a query does not ask for.

    *Inferred*: the query. The paper is given one; a face has none, and the mean of its tokens stands in.

    Args:
        dim: int, width of the tokens.
        num_heads: int from 1 on, random heads; 16.
        biased: bool, whether the mean of W_m is diag(4, …, 4, 0) instead of 0, which favours functions of how alike a
            token and the query are; False.
        scale: float above 0, what tokens are multiplied by, so that they are about as long as the appended 1; 1.

    Paper: Fu et al., What can a Single Attention Layer Learn? A Study Through the Random Features Lens, arXiv
    2307.11353.
    """

    weight: Tensor

    def __init__(self, dim: int, num_heads: int = 16, biased: bool = False, scale: float = 1.0):
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"num_heads must be 1 at least, not {num_heads}")
        if not scale > 0:
            raise ValueError(f"scale must be above 0, not {scale!r}")
        self.scale = scale
        self.register_buffer("weight", draw_weight(dim, num_heads, biased))
        self.attend = Stages()
        self.v = nn.Linear(num_heads * (dim + 1), dim, bias=False)

    def features(self, tokens: Tensor, query: Tensor | None = None) -> Tensor:
        """φ of tokens (B, N, dim) for a query (B, dim), their mean unless given: (B, num_heads · (dim + 1))."""
        query = tokens.mean(1) if query is None else query
        query, tokens = (append_one(x * self.scale) for x in (query, tokens))
        return random_features(self.weight.to(tokens.dtype), query, tokens, self.attend)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.v(self.features(tokens))


def draw_weight(dim: int, num_heads: int, biased: bool, generator: torch.Generator | None = None) -> Tensor:
    """W (num_heads, dim + 1, dim + 1): normal, of variance 1/4 about 0, or about diag(4, …, 4, 0) if `biased`."""
    weight = 0.5 * torch.randn(num_heads, dim + 1, dim + 1, generator=generator)
    if biased:
        weight.diagonal(dim1=1, dim2=2)[:, :dim] += 4
    return weight


def append_one(x: Tensor) -> Tensor:
    """(…, dim) -> (…, dim + 1)."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)


class Ridge:
    """A linear layer by least squares with a penalty, from sums that batches add to; nothing else is kept of them.

        min Σ ‖y - W x - b‖² + strength · Σ_i s_i² ‖W_i‖²,   s_i the standard deviation of feature i

    Args:
        width: int, of x, for which a Gram matrix of width² numbers is held in fp64.
        outputs: int, width of y.
    """

    def __init__(self, width: int, outputs: int):
        self.count = 0
        self.gram = torch.zeros(width, width, dtype=torch.float64)
        self.cross = torch.zeros(width, outputs, dtype=torch.float64)
        self.x, self.y = torch.zeros(width, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Features (B, width) and what is wanted of them (B, outputs), such as shares of classes."""
        x, y = x.detach().double(), y.detach().double()
        self.count += len(x)
        self.gram += x.mT @ x
        self.cross += x.mT @ y
        self.x += x.sum(0)
        self.y += y.sum(0)

    def solve(self, strength: float) -> nn.Linear:
        """The layer, in fp32; strength is above 0.

        Raises ValueError before anything was added, and for a strength that is not above 0.
        """
        if not self.count or not strength > 0:
            raise ValueError(f"there is nothing to solve of {self.count} rows with a strength of {strength!r}")
        x, y = self.x / self.count, self.y / self.count
        gram = self.gram / self.count - torch.outer(x, x)
        deviation = gram.diagonal().clamp(min=1e-12).sqrt()
        gram = gram / torch.outer(deviation, deviation)
        gram.diagonal().add_(strength)
        cross = (self.cross / self.count - torch.outer(x, y)) / deviation[:, None]
        weight = torch.cholesky_solve(cross, torch.linalg.cholesky(gram)) / deviation[:, None]
        layer = nn.Linear(weight.shape[0], weight.shape[1])
        with torch.no_grad():
            layer.weight.copy_(weight.mT)
            layer.bias.copy_(y - x @ weight)
        return layer
