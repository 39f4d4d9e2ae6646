"""OAT's pointer: which of the objects in a scene is looked at next."""

from torch import Tensor, nn

from mien.nn.observe import Layout, Stages


class ObjectAttention(nn.Module):
    """Steps (B, T, dim) and objects (B, N, dim) -> logits (B, T, N), one for each object at each step.

        ℓ_u = (W_d,u steps) (W_e,u objects)ᵀ / √d_k        for each head u
        logits = Σ_u w_u ℓ_u + b

    With `padding` a column more, behind the others, is what an object of scores 0 would have: b alone. While observed
    the scores are ℓ, (B, heads, T, N); what a softmax makes of the logits is the caller's.

    Args:
        dim, d_k: int, widths; d_k is dim unless given.
        num_heads: int; 2.
        padding: bool; False.

    Paper: OAT, ECCV 2024. Reference: HKUST-NISL/oat_eccv24, 0c48c3e (Cross_Attention and readout).
    """

    def __init__(self, dim: int, num_heads: int = 2, d_k: int | None = None, padding: bool = False):
        super().__init__()
        d_k = dim if d_k is None else d_k
        if num_heads < 1 or d_k < 1:
            raise ValueError(f"num_heads and d_k must be whole numbers from 1 up, not {num_heads!r} and {d_k!r}")
        self.num_heads, self.scale, self.padding = num_heads, d_k**-0.5, padding
        self.decode, self.encode = nn.Linear(dim, num_heads * d_k), nn.Linear(dim, num_heads * d_k)
        self.readout = nn.Linear(num_heads, 1)
        self.attend = Stages(("scores",))

    def forward(self, steps: Tensor, objects: Tensor) -> Tensor:
        both = self.decode(steps), self.encode(objects)
        q, k = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in both)
        scores = self.attend.stage("scores", q @ k.transpose(-1, -2) * self.scale, Layout("cross"))
        if self.padding:
            scores = nn.functional.pad(scores, (0, 1))
        return self.readout(scores.permute(0, 2, 3, 1))[..., 0]
