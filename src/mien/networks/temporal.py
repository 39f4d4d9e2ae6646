"""A track's features and times -> what each of its frames shows, as the frames before it say as well."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.base import MakeMixer
from mien.nn.block import Block
from mien.nn.self_attention import SelfAttention
from mien.outputs import Output

_LONGEST = 10.0  # seconds between two frames, beyond which it makes no difference


class Temporal(nn.Module):
    """Tracks (B, T, 1 + D), times in seconds before D features -> logits (B, T, C); none depends on later frames.

        z_t = head(features_t)                            the trunk's own logits; the head does not learn
        p_t = Σ_s w_ts softmax(z_s / temperature)         w_ts ∝ (t_s - t_{s-1}) exp((t_s - t_t) / τ) for s ≤ t
        logits_t = log p_t + fix(blocks(proj([features_t, p_t, log(1 + 10 Δt)])))

    p is smoothing by a time constant τ, which learns, and `fix` begins at 0: a network that has learnt nothing is that
    filter. `add_heads` gives it further outputs, each a linear layer beside `fix`. Only differences of times count.
    Mixers see the frames in a row, and how long each came after the one before; they have to be causal.

    Args:
        width, num_classes: int, D and C.
        dim, depth, num_heads: int, of the blocks; 64, 2 and 4.
        mixer: makes that of every block; by default self-attention that is causal.
        seconds: float above 0, τ at first; 0.5.
        temperature: float above 0, of the trunk's logits; 1.
        dropout: float in [0, 1), of the features in training; 0.

    Ours. Smoothing as part of the network is that of a linear state space of one state, whose step is Δt: Gu et al.,
    Efficiently Modeling Long Sequences with Structured State Spaces, 2022.
    """

    def __init__(
        self,
        *,
        width: int,
        num_classes: int,
        dim: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        mixer: MakeMixer | None = None,
        seconds: float = 0.5,
        temperature: float = 1.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if not (seconds > 0 and temperature > 0):
            raise ValueError(f"seconds and temperature must be above 0: not {seconds} and {temperature}")
        self.temperature = temperature
        self.head = nn.Linear(width, num_classes).requires_grad_(False)
        self.log_seconds = nn.Parameter(torch.tensor(math.log(seconds)))
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(width + num_classes + 1, dim)
        make = mixer or causal_attention
        self.blocks = nn.ModuleList(Block(dim, num_heads, 2.0, mixer=make) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.fix = nn.Linear(dim, num_classes)
        nn.init.zeros_(self.fix.weight)
        nn.init.zeros_(self.fix.bias)
        self.heads = nn.ModuleDict()

    def add_heads(self, outputs: Iterable[Output]) -> None:
        """A linear layer for each output beside the first."""
        for output in outputs:
            self.heads[output.name] = nn.Linear(self.norm.normalized_shape[0], output.width)

    def forward(self, tracks: Tensor) -> Tensor:
        return self.answers(tracks)["logits"]

    def answers(self, tracks: Tensor) -> dict[str, Tensor]:
        """Tracks (B, T, 1 + D) -> "logits" (B, T, C), and (B, T, width) of every other output by its name."""
        times, features = tracks[..., 0], tracks[..., 1:]
        alone = (self.head(features) / self.temperature).softmax(-1)
        smoothed, steps = self.smooth(times, alone)
        known = torch.cat([self.dropout(features), smoothed, torch.log1p(10 * steps)[..., None]], -1)
        x = self.proj(known)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits = smoothed.clamp_min(1e-6).log() + self.fix(x)
        return {"logits": logits, **{name: head(x) for name, head in self.heads.items()}}

    def smooth(self, times: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Times (B, T) and probabilities (B, T, C) -> smoothed ones, and the seconds since the frame before (B, T).

        Exactly `s + (1 - exp(-Δt / τ)) (p - s)`, frame after frame: w_ts = (1 - exp(-Δt_s / τ)) exp(-(t_t - t_s) / τ),
        and the first frame has all that is left of 1.
        """
        steps = F.pad(times[:, 1:] - times[:, :-1], (1, 0)).clamp(0.0, _LONGEST)
        tau = self.log_seconds.exp()
        place = torch.arange(times.shape[1], device=times.device)
        since = steps.cumsum(1)
        since = since[:, :, None] - since[:, None]  # (B, T, T): from s to t
        fade = torch.exp(-since.clamp_min(0.0) / tau)
        taken = torch.where(place == 0, 1.0, 1 - torch.exp(-steps / tau))
        weight = (fade * taken[:, None]).masked_fill(place > place[:, None], 0.0)
        return weight @ probs, steps


def causal_attention(dim: int, num_heads: int) -> SelfAttention:
    """Self-attention in which no frame attends to a later one."""
    return SelfAttention(dim, num_heads, causal=True)
