"""LSceneLLM's adaptive magnifier: regions that a layer attends to are opened, in detail, in the next."""

import torch
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads, split_heads
from mien.nn.base import Grid
from mien.nn.observe import Layout
from mien.nn.self_attention import SelfAttention

THRESHOLD = 96 / 255


def select_regions(attn: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Which regions each query opens, by its attention to them: (B, heads, Q, S) -> (B, Q, S) bool.

    The sum over heads, brought to 0 to 1 within a query's row, is above the threshold. Of a row whose values are all
    equal, which published code divides by 0, none is opened.
    """
    total = attn.sum(1)
    low, high = total.aminmax(dim=-1, keepdim=True)
    return total - low > threshold * (high - low)


def magnified(attend: Attend, q: Tensor, k: Tensor, v: Tensor, fine: tuple[Tensor, Tensor], selected: Tensor) -> Tensor:
    """`softmax([q kᵀ, q k'ᵀ or -inf] · scale) [v; v']`, one softmax over keys and the children of opened regions.

    q: (B, heads, Q, head_dim). k, v: (B, heads, P + S, head_dim), of which the last S are regions. fine: k' and v',
    (B, heads, S · r, head_dim), the r children of region s at s · r and on. selected: (B, Q, S) bool, the regions that
    each query opens. -> (B, heads, Q, head_dim).
    """
    children, rest = divmod(fine[0].shape[2], selected.shape[2])
    if rest or k.shape[2] < selected.shape[2]:
        have = f"{fine[0].shape[2]} fine tokens and {k.shape[2]} coarse ones"
        raise ValueError(f"{selected.shape[2]} regions have as many children each, among {have}")
    opened = selected.repeat_interleave(children, -1)
    seen = torch.cat([opened.new_ones(*opened.shape[:2], k.shape[2]), opened], -1)[:, None]
    bias = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, -torch.inf)
    layout = Layout("cross", prefix=k.shape[2])
    return attend(q, torch.cat([k, fine[0]], 2), torch.cat([v, fine[1]], 2), bias, layout)


def by_parent(fine: Tensor, grid: Grid, factor: int) -> Tensor:
    """Fine tokens, row-major, in the order of their regions: (B, H · f · W · f, D) -> (B, H · W · f², D).

    grid: (H, W), of the regions, each of which has f × f children.
    """
    cells = fine.unflatten(1, (grid[0], factor, grid[1], factor))
    return cells.transpose(2, 3).flatten(1, 4)


class MagnifiedAttention(SelfAttention):
    """Self-attention whose first queries also attend to the details of regions that they chose a layer before.

        regions = layer_l.regions(tokens)                           (B, Q, S), of its attention to the S last tokens
        tokens = layer_l(tokens)
        tokens = layer_{l+1}(tokens, fine=fine, selected=regions)   k' = k_fine(fine), v' = v_fine(fine)

    Queries behind the first Q, and all of them without `fine`, attend as ever: with nothing selected the output is that
    of plain attention, and with everything selected that of joint attention over both. `alpha` is a ramp for training:
    `(1 - alpha) · plain + alpha · magnified`. Published is that all children of a region are opened for that query
    alone, that fine tokens have projections of keys and values of their own, and the threshold 96 of 255; there fine
    keys have their region's rotary position, and here no attention has one: give fine tokens their positions.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        threshold: float in [0, 1), of `select_regions`; 96 / 255.
        options: qkv_bias, attn_drop, proj_drop and scale, as for `SelfAttention`.

    Paper: Zhi et al., LSceneLLM, arXiv 2412.01292. Reference: Hoyyyaard/LSceneLLM, b85581b.
    """

    def __init__(self, dim: int, num_heads: int, threshold: float = THRESHOLD, **options):
        super().__init__(dim, num_heads, **options)
        if not 0 <= threshold < 1:
            raise ValueError(f"the threshold must be in [0, 1), not {threshold!r}")
        self.threshold, self.alpha = threshold, 1.0
        bias = self.qkv.bias is not None
        self.k_fine, self.v_fine = (nn.Linear(dim, dim, bias=bias) for _ in range(2))

    def regions(self, tokens: Tensor, count: int, queries: int = 1) -> Tensor:
        """What the first `queries` tokens open of the last `count`: (B, N, dim) -> (B, queries, count) bool."""
        q, k, _ = self.split(tokens)
        attn = self.attend.scores(q[:, :, :queries], k).softmax(-1)
        return select_regions(attn[..., -count:], self.threshold)

    def forward(
        self, tokens: Tensor, grid: Grid | None = None, fine: Tensor | None = None, selected: Tensor | None = None
    ) -> Tensor:
        if fine is None or selected is None:
            return super().forward(tokens, grid)
        q, k, v = self.split(tokens)
        details = tuple(split_heads(project(fine), self.num_heads) for project in (self.k_fine, self.v_fine))
        count = selected.shape[1]
        heads = magnified(self.attend, q[:, :, :count], k, v, (details[0], details[1]), selected)
        if self.alpha != 1 or count < q.shape[2]:
            plain = self.attend(q, k, v, layout=Layout.of_tokens(tokens.shape[1], grid))
            heads = torch.cat([torch.lerp(plain[:, :, :count], heads, self.alpha), plain[:, :, count:]], 2)
        return self.proj_drop(self.proj(merge_heads(heads)))
