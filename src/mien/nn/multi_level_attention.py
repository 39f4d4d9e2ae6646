"""BTN's multi-level attention (MLA): lower levels attend to higher ones before the tokens are made."""

from typing import Literal

import torch
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads, split_heads
from mien.nn.block import DropPath, LayerScale, Mlp
from mien.nn.grid import to_map, to_tokens
from mien.nn.observe import Layout


class LevelAttention(nn.Module):
    """One step of MLA: maps (B, low, 2h, 2w) and (B, dim, h, w) -> (B, dim, h, w).

        t = conv3x3, stride 2 (lower);   u = upper          (both as tokens)
        m = t + u + ls1(proj(softmax(q kᵀ · head_dim^-1/2) v)),   q = q(norm_q(t)),  k, v = kv(norm_kv(u))
        m = m + ls2(mlp(norm2(m)))

    *Inferred*: the paper says that the low level passes a convolution, is cross-attended with the next level, and that
    the step repeats; widths, norms, residuals and the feed-forward part are ours, sized to the 1.3 M parameters and
    0.18 G that it reports for all it adds. `residual="query"` keeps t alone in the sum. `gate_lower` multiplies t by a
    learnable scalar that starts at 0, and `init_values` starts ls1 and ls2: with a gate and 1e-5 training can start
    from a POSTER++ checkpoint. Without `init_values` there is no layer scale.

    Args:
        low, dim: int, channels of the lower and of the upper map.
        num_heads: int, which divides dim.
        mlp_ratio: float, hidden width of the mlp over dim; 4.
        residual: "both" or "query"; both.
        gate_lower: bool; False.
        init_values: float at which layer scales start, or None: there are none.
        drop_path: float in [0, 1), rate of stochastic depth; 0.

    Paper: Her et al., Batch Transformer, arXiv 2407.04218.
    """

    def __init__(
        self,
        low: int,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        residual: Literal["both", "query"] = "both",
        gate_lower: bool = False,
        init_values: float | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        if residual not in ("both", "query"):
            raise ValueError(f"residual must be 'both' or 'query', not {residual!r}")
        self.num_heads, self.residual = num_heads, residual
        self.down = nn.Conv2d(low, dim, 3, stride=2, padding=1)
        self.down.bias.data.zero_()  # pyright: ignore[reportOptionalMemberAccess]
        self.norm_q, self.norm_kv, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.attend = Attend()
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.gate = nn.Parameter(torch.zeros(())) if gate_lower else None
        self.drop_path = DropPath(drop_path)

    def forward(self, lower: Tensor, upper: Tensor) -> Tensor:
        t, u = to_tokens(self.down(lower)), to_tokens(upper)
        if t.shape != u.shape:
            raise ValueError(
                f"the lower map {tuple(lower.shape)} is not twice as large as the upper {tuple(upper.shape)}"
            )
        q = split_heads(self.q(self.norm_q(t)), self.num_heads)
        k, v = (split_heads(x, self.num_heads) for x in self.kv(self.norm_kv(u)).chunk(2, dim=-1))
        m = t if self.gate is None else self.gate * t
        if self.residual == "both":
            m = m + u
        heads = self.attend(q, k, v, layout=Layout("cross", grid=(upper.shape[2], upper.shape[3])))
        m = m + self.drop_path(self.ls1(self.proj(merge_heads(heads))))
        m = m + self.drop_path(self.ls2(self.mlp(self.norm2(m))))
        return to_map(m, (upper.shape[2], upper.shape[3]))
