"""Mixers as one matrix over the tokens: how much of every token's value each token is given."""

import torch
from torch import Tensor, nn

from mien.nn.base import Grid
from mien.nn.observe import Layout, Look, LookError, attentions, intervene, observe


@torch.no_grad()
def mixing_matrix(mixer: nn.Module, tokens: Tensor, grid: Grid | None = None) -> Tensor:
    """P of `heads = P values`: how much of the value of token s (last axis) token t is given, for these tokens.

    mixer: as `mien.nn.base.MakeMixer` makes them, with one attention among tokens, softmax or not; or one without
        attention that is linear in the tokens, channel by channel, such as `SpectralGate`.
    tokens: (B, N, dim).
    grid: (rows, columns) of the tokens, or None.

    Returns (B, heads, N, N), of a linear one (1, dim, N, N).

    Values are what attention gathers (RCMHA's are convolved before). That heads are `P values` is checked for these
    tokens: values are read where every token is made to attend to itself alone. Raises LookError where they are not,
    as with gates behind attention (MoH) and dropout in training, and for mixers that have no such matrix: several
    attentions, or one among channels, or none and not linear.

    Paper: Hè and Kabić, A Unified View of Long-Sequence Models towards Modeling Million-Scale Dependencies, arXiv
    2302.06218: the template `nonlinearity(P x W)` of attention, Fourier, convolutional and linear mixers.
    """
    kind, sites = type(mixer).__name__, attentions(mixer)
    if not sites:
        return _of_impulses(mixer, tokens, grid)
    if len(sites) > 1:
        raise LookError(f"{kind} attends in {len(sites)} places ({', '.join(sites)}): there is no one matrix of it")
    name, n = *sites, tokens.shape[1]
    look = _looked(mixer, tokens, grid, name)
    if look.attn is None or look.attn.shape[2:] != (n, n) or look.layout.kind != "token":
        raise LookError(f"{kind} does not mix tokens by a matrix over all of them: it has none")

    def alone(_stage: str, attn: Tensor, _layout: Layout) -> Tensor:
        return torch.eye(n, dtype=attn.dtype, device=attn.device).expand_as(attn).clone()

    with intervene(mixer, {"*": alone}, stages=("attn",)):
        values = _looked(mixer, tokens, grid, name).heads
    if look.heads is None or values is None or not _close(look.attn @ values, look.heads):
        raise LookError(f"{kind} does more to values than to mix them: its heads are no matrix times them")
    return look.attn


def _looked(mixer: nn.Module, tokens: Tensor, grid: Grid | None, name: str) -> Look:
    with observe(mixer, stages=("attn", "heads")) as seen:
        mixer(tokens, grid)
    return seen[name]


def _of_impulses(mixer: nn.Module, tokens: Tensor, grid: Grid | None) -> Tensor:
    """P of a mixer that is linear in its tokens: what it makes of each token alone, (1, dim, N, N)."""
    n, dim = tokens.shape[1:]
    still = mixer(torch.zeros_like(tokens[:1]), grid)
    impulses = torch.eye(n, dtype=tokens.dtype, device=tokens.device)[..., None].expand(n, n, dim)
    matrix = (torch.cat([mixer(each, grid) for each in impulses.split(16)]) - still).permute(2, 1, 0)  # (dim, t, s)
    mixed = torch.einsum("dts,bsd->btd", matrix, tokens)
    if not _close(mixed, mixer(tokens, grid) - still):
        raise LookError(f"{type(mixer).__name__} forms no attention, and is not linear in the tokens: it has no matrix")
    return matrix[None]


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e3 * torch.finfo(b.dtype).eps * b.abs().max().clamp_min(1e-30))
