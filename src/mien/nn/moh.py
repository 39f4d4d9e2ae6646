"""Mixture-of-head attention: every token uses only some of the heads."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads
from mien.nn.base import Grid, OwnLoss
from mien.nn.grid import checked_grid, offset_index
from mien.nn.observe import Layout
from mien.nn.plane_attend import attend_planes


class MoH(OwnLoss):
    """Self-attention of which some heads are shared by all tokens, and the others routed: (B, N, dim) -> (B, N, dim).

        p = softmax(W_r x) (B, N, E);   T = the top_k greatest;   r = top_k · p / Σ_T p within T, else 0
        s = h_s · softmax(W_s x) (B, N, h_s);   β = 2 · softmax(W_0 x) (B, N, 2)
        out = proj(concat_i g_i · head_i),   g = [β_0 s; β_1 r]

    The first h_s = `num_shared` heads are shared, E = num_heads - h_s are routed; g is s or r where all are shared or
    all routed, and for one shared head s is 1. A gate weighs the output of a query; keys and values have no gates.
    Logits that are all equal make plain attention of the heads in use. `router` holds W_r, W_s and W_0 in this order,
    and works in at least fp32. By default a quarter of the heads is shared, and each token uses half of the others, two
    at least: with `top_k = 1` r is 1, and the router would learn from its loss alone. `grid` is ignored. The stage
    `heads` has the gates in it.

    `aux_loss` balances the load: `E · Σ_i f_i P_i`, where f is the share of tokens that use a head and P the mean of p.
    It is top_k where all heads are used alike; published with the weight 0.01, as the mean of all layers.

    `skip`: in eval mode a routed head computes only the queries that use it. The result is the same but for rounding,
    and their share of the N² part is saved. (Published code computes all heads, and so do training, `torch.export`, and
    whoever looks.) The paper's r is p within T; its code divides by their sum, and so do we.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        num_shared: int in [0, num_heads], heads that all tokens use; num_heads // 4.
        top_k: int in [1, routed heads], routed heads that a token uses; half of them, 2 at least.
        skip: bool, whether eval mode computes only what is used; False.
        qkv_bias: bool, whether q, k and v have biases; True.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.

    Paper: Jin et al., MoH: Multi-Head Attention as Mixture-of-Head Attention, 2024. Reference: SkyworkAI/MoH, 2cefd57
    (MoH-DiT).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_shared: int | None = None,
        top_k: int | None = None,
        skip: bool = False,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        num_shared = num_heads // 4 if num_shared is None else num_shared
        if not 0 <= num_shared <= num_heads:
            raise ValueError(f"of {num_heads} heads {num_shared} cannot be shared")
        routed = num_heads - num_shared
        top_k = min(routed, max(2, -(-routed // 2))) if top_k is None else top_k
        if not min(routed, 1) <= top_k <= routed:
            raise ValueError(f"of {routed} routed heads a token cannot use {top_k}")
        self.num_heads, self.num_shared, self.top_k, self.skip = num_heads, num_shared, top_k, skip
        self.sizes = [routed, num_shared if num_shared > 1 else 0, 2 if routed and num_shared else 0]
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.router = nn.Linear(dim, sum(self.sizes), bias=False)
        self.attend = Attend(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        gates = self.gates(tokens).transpose(1, 2).unsqueeze(-1)  # (B, heads, N, 1)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mix = self.mix
        if self.skip and not (self.training or self.attend.open or torch.compiler.is_compiling()):
            mix = self.mix_used
        return self.proj_drop(self.proj(merge_heads(mix(q, k, v, gates.to(q.dtype), grid))))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, grid: Grid | None) -> Tensor:
        """The gated output of every head: (B, heads, N, head_dim) -> the same."""
        return self.attend(q, k, v, layout=Layout.of_tokens(q.shape[2], grid), gates=gates)

    def gates(self, tokens: Tensor) -> Tensor:
        """The weight of every head at every token: (B, N, dim) -> g (B, N, heads). In training sets `aux_loss`."""
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        with torch.autocast("cpu" if tokens.is_meta else tokens.device.type, enabled=False):
            logits = F.linear(tokens.to(dtype), self.router.weight.to(dtype))
        routed, shared, beta = logits.split(self.sizes, dim=-1)
        beta = 2 * beta.softmax(dim=-1) if self.sizes[2] else beta.new_ones(2)
        gates = []
        if self.num_shared:
            s = self.num_shared * shared.softmax(dim=-1) if self.sizes[1] else logits.new_ones(*tokens.shape[:2], 1)
            gates.append(beta[..., :1] * s)
        if self.top_k:
            p = routed.softmax(dim=-1)
            used = torch.zeros_like(p).scatter(-1, p.topk(self.top_k, dim=-1).indices, 1)
            r = p * used
            gates.append(beta[..., 1:] * (self.top_k * r / r.sum(dim=-1, keepdim=True)))
            if self.training:
                self.aux_loss = self.sizes[0] * (used.mean((0, 1)) * p.mean((0, 1))).sum()
        return torch.cat(gates, dim=-1)

    def mix_used(self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, grid: Grid | None) -> Tensor:
        """The same; a routed head computes only the queries that use it: (B, heads, N, head_dim).

        All faces of a batch have as many such queries as the one with the most; the rest are queries whose gate is 0.
        """
        shared = slice(0, self.num_shared)
        heads = [self.attend(q[:, shared], k[:, shared], v[:, shared]) * gates[:, shared]] if self.num_shared else []
        for i in range(self.num_shared, self.num_heads):
            head = slice(i, i + 1)
            output = torch.zeros_like(q[:, head])
            uses = gates[:, head] != 0  # (B, 1, N, 1)
            most = int(uses.sum(dim=2).max())
            if most:
                index = uses.int().topk(most, dim=2).indices  # (B, 1, M, 1)
                rows = index.expand(-1, -1, -1, q.shape[-1])
                some = self.attend(q[:, head].gather(2, rows), k[:, head], v[:, head]) * gates[:, head].gather(2, index)
                output = output.scatter(2, rows, some)
            heads.append(output)
        return torch.cat(heads, dim=1)


class CosineMoH(MoH):
    """MoH as released for images, on TransNeXt's attention: directions are compared, and offsets have a learned bias.

        scores = softplus(τ) · log(H · W) · (q / ‖q‖ + e) · k / ‖k‖ + W2 relu(W1 Δ)
        Δ = sign(r) · log2(|r| + 1) / log2(8),   r = 8 · (y_i - y_j) / (H - 1), and the same along x

    τ (heads), e (heads, head_dim); Δ (2) is of the offset from key j to query i, and 0 along an axis of one place. It
    is computed in the precision of the input, at least fp32. Every plane is mixed alone, with the prefix; there is no
    bias between the prefix and others.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        num_shared, top_k: int, as for `MoH`.
        qkv_bias: bool, whether q, k and v have biases; True.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.

    Paper: Shi, TransNeXt, 2024; and `MoH`. Reference: SkyworkAI/MoH, 2cefd57 (MoH-ViT).
    """

    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_shared: int | None = None,
        top_k: int | None = None,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__(dim, num_heads, num_shared, top_k, False, qkv_bias, attn_drop, proj_drop)
        self.attend = Attend(attn_drop, scale=1.0)
        self.query_embedding = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(num_heads, 1, dim // num_heads), std=0.02)
        )
        self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), math.log(math.expm1(1 / 0.24))))
        self.cpb_fc1, self.cpb_fc2 = nn.Linear(2, 512), nn.Linear(512, num_heads)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, grid: Grid | None) -> Tensor:
        grid = checked_grid(q[:, 0], grid, "CosineMoH")
        bias = self.cpb_fc2(self.cpb_fc1(self.offsets(grid, q)).relu())  # (offsets, heads)
        bias = bias[offset_index(grid, grid, q.device).T].permute(2, 0, 1)
        scale = (F.softplus(self.temperature) * math.log(grid[0] * grid[1])).to(q.dtype)
        q = (F.normalize(q, dim=-1) + self.query_embedding.to(q.dtype)) * scale
        return attend_planes(self.attend, q, F.normalize(k, dim=-1), v, grid, bias, gates=gates)

    def offsets(self, grid: Grid, like: Tensor) -> Tensor:
        """Δ of every offset from key to query, row-major: ((2H - 1) · (2W - 1), 2), in the precision of the weights.

        Computed in that of `like`, at least fp32."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        axes = []
        for n in grid:
            r = 8 * torch.arange(1 - n, n, dtype=dtype, device=like.device) / max(n - 1, 1)
            axes.append(r.sign() * (r.abs() + 1).log2() / 3)
        return torch.cartesian_prod(*axes).to(self.cpb_fc1.weight)
