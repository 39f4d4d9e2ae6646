"""Mixture-of-head attention: every token asks only some of the heads."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads
from mien.nn.base import Grid, OwnLoss
from mien.nn.grid import offset_index, split_planes
from mien.nn.plane_attend import attend_planes


class MoH(OwnLoss):
    """Self-attention of which some heads are shared by all tokens, and the others routed: (B, N, dim) -> (B, N, dim).

        p = softmax(W_r x) (B, N, E);   T = the top_k greatest;   r = top_k · p / Σ_T p within T, else 0
        s = h_s · softmax(W_s x) (B, N, h_s);   β = 2 · softmax(W_0 x) (B, N, 2)
        out = proj(concat_i g_i · head_i),   g = [β_0 s; β_1 r]

    The first h_s = `num_shared` heads are shared, E = num_heads - h_s routed; g is s or r where all are shared or all
    routed, and of one shared head s is 1. A gate weighs what a query brings home; keys and values know no gates. Logits
    that are all equal make plain attention of the heads asked. `router` holds W_r, W_s and W_0 in this order, and works
    in at least fp32. By default a quarter of the heads is shared, and half of the others, two at least, are asked: with
    `top_k = 1` r is 1, and the router would learn from its loss alone. `grid` is ignored.

    `aux_loss` balances the load: `E · Σ_i f_i P_i`, f the share of tokens that ask a head and P the mean of p, which is
    top_k where all heads are asked alike; published with the weight 0.01, as the mean of all layers.

    `skip`: in eval mode a routed head answers only the queries that ask it, which is the same but for rounding, and
    saves their share of the N² part. (Published code computes all heads, and so do training, `torch.export`, and an
    `attend` that is open.) The paper's r is p within T; its code divides by their sum, and so do we.

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
            raise ValueError(f"of {routed} routed heads a token cannot ask {top_k}")
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
        if self.skip and not (self.training or self.attend.open or torch.compiler.is_compiling()):
            heads = self.asked(q, k, v, gates.to(q.dtype))
        else:
            heads = self.mix(q, k, v, grid) * gates.to(q.dtype)
        return self.proj_drop(self.proj(merge_heads(heads)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid | None) -> Tensor:
        """What every head answers: (B, heads, N, head_dim) -> the same."""
        return self.attend(q, k, v)

    def gates(self, tokens: Tensor) -> Tensor:
        """What every head counts for, at every token: (B, N, dim) -> g (B, N, heads). In training sets `aux_loss`."""
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        with torch.autocast(tokens.device.type, enabled=False):
            logits = F.linear(tokens.to(dtype), self.router.weight.to(dtype))
        routed, shared, beta = logits.split(self.sizes, dim=-1)
        beta = 2 * beta.softmax(dim=-1) if self.sizes[2] else beta.new_ones(2)
        gates = []
        if self.num_shared:
            s = self.num_shared * shared.softmax(dim=-1) if self.sizes[1] else logits.new_ones(*tokens.shape[:2], 1)
            gates.append(beta[..., :1] * s)
        if self.top_k:
            p = routed.softmax(dim=-1)
            asked = torch.zeros_like(p).scatter(-1, p.topk(self.top_k, dim=-1).indices, 1)
            r = p * asked
            gates.append(beta[..., 1:] * (self.top_k * r / r.sum(dim=-1, keepdim=True)))
            if self.training:
                self.aux_loss = self.sizes[0] * (asked.mean((0, 1)) * p.mean((0, 1))).sum()
        return torch.cat(gates, dim=-1)

    def asked(self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
        """The gated heads, of which a routed one sees only the queries that ask it: (B, heads, N, head_dim).

        A batch is as long as the face that asks the most; others are filled up with queries whose gate is 0.
        """
        shared = slice(0, self.num_shared)
        heads = [self.attend(q[:, shared], k[:, shared], v[:, shared]) * gates[:, shared]] if self.num_shared else []
        for i in range(self.num_shared, self.num_heads):
            head = slice(i, i + 1)
            answer = torch.zeros_like(q[:, head])
            asks = gates[:, head] != 0  # (B, 1, N, 1)
            most = int(asks.sum(dim=2).max())
            if most:
                index = asks.int().topk(most, dim=2).indices  # (B, 1, M, 1)
                rows = index.expand(-1, -1, -1, q.shape[-1])
                some = self.attend(q[:, head].gather(2, rows), k[:, head], v[:, head]) * gates[:, head].gather(2, index)
                answer = answer.scatter(2, rows, some)
            heads.append(answer)
        return torch.cat(heads, dim=1)


class CosineMoH(MoH):
    """MoH as released for images, on TransNeXt's attention: directions are compared, and places have a learned bias.

        scores = softplus(τ) · log(H · W) · (q / ‖q‖ + e) · k / ‖k‖ + W2 relu(W1 Δ)

    τ (heads), e (heads, head_dim); Δ is the offset in (y, x) from key to query, over (H - 1, W - 1): *inferred*, the
    layer is handed its table. Every plane is mixed alone, with the prefix; among prefix and others there is no bias.

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
        self.attend, self.attend_prefix = Attend(attn_drop, scale=1.0), Attend(attn_drop, scale=1.0)
        self.query_embedding = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(num_heads, 1, dim // num_heads), std=0.02)
        )
        self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), math.log(math.expm1(1 / 0.24))))
        self.cpb_fc1, self.cpb_fc2 = nn.Linear(2, 512), nn.Linear(512, num_heads)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid | None) -> Tensor:
        split_planes(q[:, 0], grid, "CosineMoH")
        axes = [torch.linspace(-1, 1, 2 * n - 1).to(self.cpb_fc1.weight) * (n > 1) for n in grid]
        bias = self.cpb_fc2(self.cpb_fc1(torch.cartesian_prod(*axes)).relu())  # (offsets, heads)
        bias = bias[offset_index(grid, grid, q.device).T].permute(2, 0, 1)
        scale = (F.softplus(self.temperature) * math.log(grid[0] * grid[1])).to(q.dtype)
        q = (F.normalize(q, dim=-1) + self.query_embedding.to(q.dtype)) * scale
        return attend_planes(self.attend, self.attend_prefix, q, F.normalize(k, dim=-1), v, grid, bias)
