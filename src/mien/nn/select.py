"""APViT's attentive pooling: the tokens that matter most, in their order."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Criterion = Literal["abs", "sum", "max", "square", "max_abs", "random", "lanet"]


class LANet(nn.Module):
    """A learned weight for every token: `sigmoid(bn2(conv2(relu(bn1(conv1(x))))))`, (B, N, dim) -> (B, N) in (0, 1).

    Both convolutions are 1×1, so they are linear layers here: dim to dim / 16, and that to 1. The paper has no
    sigmoid; its code does.

    Paper: Xue et al., APViT, arXiv 2212.05463. Reference: youqingxiaozhua/APViT, 9efaf97.
    """

    def __init__(self, dim: int):
        super().__init__()
        hidden = max(1, dim // 16)
        self.conv1, self.bn1 = nn.Linear(dim, hidden), nn.BatchNorm1d(hidden)
        self.conv2, self.bn2 = nn.Linear(hidden, 1), nn.BatchNorm1d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x).transpose(1, 2)).relu()  # (B, hidden, N)
        return self.bn2(self.conv2(x.transpose(1, 2)).transpose(1, 2)).sigmoid()[:, 0]


class AttentiveSelect(nn.Module):
    """The tokens whose evidence is greatest, in their order: (B, P + N, D), (B, N, E) -> (B, P + K, D), index (B, K).

        map[n] = Σ_e |evidence[n, e]|        (abs; also sum, max, square: Σ e², max_abs)
        index = sort(topk(map, K));   kept = tokens[index]

    The first P tokens, for which there is no evidence, stay as they are, and the index does not count them.
    `K = keep`, or `max(int(N · rate), 1)` with Python's floats, as published; `keep` and `rate` can be set at any time,
    one replacing the other. With K = N nothing is done. `random` judges by one channel, drawn anew for every batch in
    training and the first one otherwise. `lanet` learns the map (and needs `dim`, which is E), and multiplies the
    tokens by it, or it would get no gradient; no other map has one. `soft` drops nothing and multiplies the tokens by
    the map: *inferred* is that a map other than LANet's is divided by its greatest absolute value, to end at 1 as well.

    Published code sorts the same map once for each of D channels, and keeps every token of a batch that happens to have
    as many faces as tokens; here neither happens.

    Args:
        keep: int from 1 on, tokens to keep, or None: `rate` says it.
        rate: float in (0, 1], fraction to keep; 1.
        criterion: abs, sum, max, square, max_abs, random or lanet; abs.
        dim: int, E, which lanet needs.
        soft: bool; False.

    Paper: Xue et al., APViT, arXiv 2212.05463. Reference: youqingxiaozhua/APViT, 9efaf97.
    """

    def __init__(
        self,
        keep: int | None = None,
        rate: float = 1.0,
        criterion: Criterion = "abs",
        dim: int | None = None,
        soft: bool = False,
    ):
        super().__init__()
        if criterion not in get_args(Criterion):
            raise ValueError(f"the criterion must be one of {', '.join(get_args(Criterion))}, not {criterion!r}")
        if keep is not None and rate != 1:
            raise ValueError("either keep or rate says how many tokens are kept, not both")
        self.criterion, self.soft = criterion, soft
        self.lanet = None
        if criterion == "lanet":
            if dim is None:
                raise ValueError("lanet needs dim, the width of its evidence")
            self.lanet = LANet(dim)
        self.rate = rate
        if keep is not None:
            self.keep = keep

    @property
    def keep(self) -> int | None:
        """How many tokens are kept; None: a fraction of them, `rate`."""
        return self._keep

    @keep.setter
    def keep(self, keep: int) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep must be a whole number above 0, not {keep!r}")
        if self.soft:
            raise ValueError("soft pooling drops nothing: it takes no keep")
        self._keep, self._rate = keep, 1.0

    @property
    def rate(self) -> float:
        """The fraction of the tokens that is kept, where `keep` is None."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        if not 0 < rate <= 1:
            raise ValueError(f"the rate must be above 0 and at most 1, not {rate!r}")
        if self.soft and rate != 1:
            raise ValueError("soft pooling drops nothing: it takes no rate but 1")
        self._keep, self._rate = None, float(rate)

    def count(self, num_tokens: int) -> int:
        """How many of so many tokens are kept."""
        if self.keep is None:
            return max(int(int(num_tokens) * self.rate), 1)  # a tracer's sizes are tensors of fp32
        if self.keep > num_tokens:
            raise ValueError(f"{self.keep} tokens are to be kept, and there are {num_tokens}")
        return self.keep

    def idle(self, num_tokens: int) -> bool:
        return self.count(num_tokens) == num_tokens and self.lanet is None and not self.soft

    def map(self, evidence: Tensor) -> Tensor:
        """What each token is worth: (B, N, E) -> (B, N), in at least fp32."""
        if self.lanet is not None:
            return self.lanet(evidence)
        dtype = torch.promote_types(evidence.dtype, torch.float32)
        match self.criterion:
            case "abs":
                return evidence.abs().sum(-1, dtype=dtype)
            case "sum":
                return evidence.sum(-1, dtype=dtype)
            case "max":
                return evidence.amax(-1).to(dtype)
            case "square":
                return evidence.to(dtype).square().sum(-1)
            case "max_abs":
                return evidence.abs().amax(-1).to(dtype)
            case _:
                channel = torch.randint(evidence.shape[-1], ()) if self.training else 0
                return evidence[..., channel].to(dtype)

    def forward(self, tokens: Tensor, evidence: Tensor) -> tuple[Tensor, Tensor]:
        n = evidence.shape[1]
        if self.idle(n):
            return tokens, every(evidence)
        prefix = tokens.shape[1] - n
        weighs = self.soft or self.lanet is not None
        worth = self.map(evidence if weighs else evidence.detach())
        if weighs:
            scale = 1 if self.lanet is not None else worth.abs().amax(1, keepdim=True).clamp_min(1e-12)
            tokens = tokens * F.pad((worth / scale).to(tokens.dtype), (prefix, 0), value=1.0)[..., None]
        if self.count(n) == n:
            return tokens, every(evidence)
        index = worth.detach().topk(self.count(n), dim=1, sorted=False).indices.sort(dim=1).values
        if not prefix:
            return take(tokens, index), index
        first = torch.arange(prefix, device=index.device).expand(index.shape[0], -1)
        return take(tokens, torch.cat([first, index + prefix], dim=1)), index


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """`tokens[b, index[b]]`: (B, N, D), (B, K) -> (B, K, D)."""
    batch, n = tokens.shape[:2]
    rows = index + n * torch.arange(batch, device=index.device)[:, None]  # whole rows copy, and add up, fast
    return tokens.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, index.shape)


def every(tokens: Tensor) -> Tensor:
    """The index that keeps all: (B, N, D) -> (B, N)."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[0], -1)
