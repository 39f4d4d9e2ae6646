"""Axial, TiC, DaViT's two, the spectral gate and the Grassmann layer: others' numbers, and what each promises."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import GOLDEN, fill_small, rng
from torch import nn

from mien.networks.axial import AxialLayer
from mien.nn import (
    Axial,
    Block,
    ChannelAttention,
    Grassmann,
    Mlp,
    SpectralGate,
    TiC,
    WindowAttention,
    observe,
)
from mien.nn.attend import merge_heads, split_heads
from mien.nn.axial import AxialPositions
from mien.nn.grassmann import across
from mien.nn.grid import from_windows, to_map, to_tokens, to_windows

# numbers of others


class OnMaps(nn.Module):
    """A mixer between maps: (B, D, H, W) -> (B, D', H', W')."""

    def __init__(self, mixer: nn.Module, stride: int = 1):
        super().__init__()
        self.mixer, self.stride = mixer, stride

    def forward(self, maps):
        grid = tuple(maps.shape[2:])
        return to_map(self.mixer(to_tokens(maps), grid), tuple(-(-size // self.stride) for size in grid))


class DaViTBlock(nn.Module):
    """`x += cpe1(x); x += attn(norm1(x)); x += cpe2(x); x += mlp(norm2(x))`, as published, of our attention."""

    def __init__(self, attn: nn.Module, dim: int = 64):
        super().__init__()
        depthwise = [OrderedDict(proj=nn.Conv2d(dim, dim, 3, padding=1, groups=dim)) for _ in range(2)]
        self.cpe1, self.cpe2 = (nn.Sequential(each) for each in depthwise)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = attn, Mlp(dim, 4 * dim)

    def forward(self, maps):
        grid = tuple(maps.shape[2:])
        x = to_tokens(maps + self.cpe1(maps))
        maps = to_map(x + self.attn(self.norm1(x), grid), grid)
        x = to_tokens(maps + self.cpe2(maps))
        return to_map(x + self.mlp(self.norm2(x)), grid)


class SpectralBlock(nn.Module):
    """`x + mlp(norm2(filter(norm1(x))))`."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(64, eps=1e-6), nn.LayerNorm(64, eps=1e-6)
        self.filter, self.mlp = SpectralGate(64, 1), Mlp(64, 256)

    def forward(self, x):
        return x + self.mlp(self.norm2(self.filter(self.norm1(x), (14, 14))))


class AxialTransformer(nn.Module):
    """One published layer on 7×7: positions, attention along columns and along rows, two convolutional mlps."""

    def __init__(self):
        super().__init__()
        self.positions, self.layer = AxialPositions(32, (7, 7)), AxialLayer(32, 4)

    def forward(self, maps):
        return to_map(self.layer(self.positions(to_tokens(maps), (7, 7)), (7, 7)), (7, 7))


def axial_names(dim: int, parts: dict[str, str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Published name -> (ours, shape) of the attention along one axis; q and kv are put together after."""
    leaves = {
        "to_q.weight": (dim, dim),
        "to_kv.weight": (2 * dim, dim),
        "to_out.weight": (dim, dim),
        "to_out.bias": (dim,),
    }
    return {
        f"{theirs}.{leaf}": (f"{ours}.{leaf}", shape)
        for theirs, ours in parts.items()
        for leaf, shape in leaves.items()
    }


def fill(module: nn.Module, names: dict[str, tuple[str, tuple[int, ...]]] | None = None) -> nn.Module:
    """Weights by the rule (scale 0.2) under their published names, which are ours unless `names` says otherwise."""
    if names is None:
        names = {name: (name, tuple(p.shape)) for name, p in module.state_dict().items()}
    filled = fill_small({theirs: shape for theirs, (_, shape) in names.items()}, scale=0.2)
    state = {ours: filled[theirs] for theirs, (ours, _) in names.items()}
    for name in [name for name in state if name.endswith("to_q.weight")]:
        at = name.removesuffix("to_q.weight")
        state[f"{at}qkv.weight"] = torch.cat([state.pop(name), state.pop(f"{at}to_kv.weight")])
        state |= {f"{at}proj.{leaf}": state.pop(f"{at}to_out.{leaf}") for leaf in ("weight", "bias")}
    ours = module.state_dict()
    assert state.keys() == ours.keys()
    module.load_state_dict({name: t.view_as(ours[name]) for name, t in state.items()})
    return module


def axial(combine):
    names = axial_names(64, {"axial_attentions.0.fn": "mixer.columns", "axial_attentions.1.fn": "mixer.rows"})
    return fill(OnMaps(Axial(64, 4, combine)), names)


def axial_transformer():
    names = axial_names(
        32, {"layers.blocks.0.0.fn.fn": "layer.axial.columns", "layers.blocks.0.1.fn.fn": "layer.axial.rows"}
    )
    module = AxialTransformer()
    names |= {
        "pos_emb.param_0": ("positions.rows", (1, 32, 7, 1)),
        "pos_emb.param_1": ("positions.columns", (1, 32, 1, 7)),
    }
    for i in (0, 1):
        names |= {
            f"layers.blocks.0.{i}.fn.norm.{leaf}": (f"layer.norms.{i}.{leaf}", (32,)) for leaf in ("weight", "bias")
        }
        for theirs, ours in (("g", "scale"), ("b", "shift")):
            names[f"layers.blocks.1.{i}.0.{theirs}"] = (f"layer.mlps.{i}.0.{ours}", (1, 32, 1, 1))
        for j, (out, into) in enumerate([(128, 32), (32, 128)]):
            for leaf, shape in (("weight", (out, into, 3, 3)), ("bias", (out,))):
                names[f"layers.blocks.1.{i}.{2 * j + 1}.{leaf}"] = (f"layer.mlps.{i}.{2 * j + 1}.{leaf}", shape)
    return turned(module, names)


def axial_positions():
    names = {"param_0": ("mixer.rows", (1, 64, 14, 1)), "param_1": ("mixer.columns", (1, 64, 1, 10))}
    return turned(OnMaps(AxialPositions(64, (14, 10))), names)


def turned(module, names):
    """`fill`, for positions that are published as (1, dim, H, 1) and (1, dim, 1, W), and are (H, dim) here."""
    fill(module, names)
    for p in (p for name, p in module.named_parameters() if name.endswith((".rows", ".columns"))):
        p.data = p.data.view(p.shape[1], p.shape[0]).mT.contiguous()
    return module


def tic(stride=1, out_dim=64, conv_bias=False, **options):
    mixer = TiC(64, 1, mask_padding=False, conv=True, stride=stride, out_dim=out_dim, conv_bias=conv_bias, **options)
    names = {
        name.replace("conv", "mlp").replace("qkv", "qkv_conv"): (f"mixer.{name}", tuple(p.shape))
        for name, p in mixer.state_dict().items()
    }
    return fill(OnMaps(mixer, stride), names)


def gate(grid):
    module = fill(SpectralGate(64, 1, grid))
    return lambda x: module(x, grid)


CASES = {
    "axial_sum": lambda: axial("sum"),
    "axial_seq": lambda: axial("sequential"),
    "axial_posemb": axial_positions,
    "axial_transformer_d1": axial_transformer,
    "tic_msaconv_k3_14": tic,
    "tic_msaconv_k3_s2_8": lambda: tic(2),
    "tic_msaconv_k5_8_d2": lambda: tic(out_dim=32, conv_bias=True, kernel_size=5, dilation=2),
    "davit_channel_14": lambda: fill(DaViTBlock(ChannelAttention(64, 4))),
    "davit_channel_v2_14": lambda: fill(DaViTBlock(ChannelAttention(64, 4, v2=True))),
    "davit_channel_attn_only": lambda: fill(ChannelAttention(64, 4)),
    "davit_spatial_14": lambda: fill(DaViTBlock(WindowAttention(64, 4))),
    "davit_spatial_pad_8": lambda: fill(DaViTBlock(WindowAttention(64, 4, mask_padding=False))),
    "spectformer_gate_14": lambda: gate((14, 14)),
    "spectformer_gate_8": lambda: gate((8, 8)),
    "spectformer_gate_7": lambda: gate((7, 7)),
    "spectformer_gate_rect_8x6": lambda: gate((8, 6)),
    "spectformer_block_spectral_14": lambda: fill(SpectralBlock()),
    "spectformer_block_attn_14": lambda: fill(Block(96, 6)),
}
INPUTS = {
    "axial_transformer_d1": (2, 32, 7, 7),
    "tic_msaconv_k3_s2_8": (2, 64, 8, 8),
    "tic_msaconv_k5_8_d2": (2, 64, 8, 8),
    "davit_channel_attn_only": (2, 49, 64),
    "davit_spatial_pad_8": (2, 64, 8, 8),
    "spectformer_gate_14": (2, 196, 64),
    "spectformer_gate_8": (2, 64, 64),
    "spectformer_gate_7": (2, 49, 64),
    "spectformer_gate_rect_8x6": (2, 48, 64),
    "spectformer_block_spectral_14": (2, 196, 64),
    "spectformer_block_attn_14": (2, 64, 96),
} | dict.fromkeys(("axial_sum", "axial_seq", "axial_posemb"), (2, 64, 14, 10))


def noise(name, shape):
    return torch.from_numpy(rng(name).standard_normal(shape).astype(np.float32))


def answer(case):
    """Output, and gradient of its product with a probe."""
    x = noise(f"{case}/x", INPUTS.get(case, (2, 64, 14, 14))).requires_grad_()
    out = CASES[case]()(x)
    (out * noise(f"{case}/probe", tuple(out.shape))).sum().backward()
    return {"out": out.detach(), "grad": x.grad}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "mixers_axes.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def near(ours, expected, tolerance=1e-5):
    assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_published(golden, case):
    for name, ours in answer(case).items():
        near(ours.flatten()[::31], golden[f"{case}.{name}"])


class Given(nn.Module):
    """Stands for `qkv`: tokens are q already."""

    def __init__(self, k, v):
        super().__init__()
        self.k, self.v = k, v

    def forward(self, q):
        return torch.cat([q, self.k, self.v], -1)


def test_tic_core_published(golden):
    q, k, v = (to_tokens(noise(f"tic_core_op/{name}", (2, 64, 7, 7))) for name in "xkv")
    mixer = TiC(64, 1, mask_padding=False)
    mixer.qkv, mixer.proj = Given(k, v), nn.Identity()
    out = to_map(mixer(q.requires_grad_(), (7, 7)), (7, 7))
    grad = torch.autograd.grad((out * noise("tic_core_op/probe", out.shape)).sum(), q)[0]
    near(out.flatten()[::31], golden["tic_core_op.out"])
    near(to_map(grad, (7, 7)).flatten()[::31], golden["tic_core_op.grad"])
    scores, _ = mixer.scores(torch.empty(2, 0, 192), torch.cat([q, k, v], -1), (7, 7))
    near(to_map(scores.softmax(-1)[:, 0], (7, 7)).flatten()[::7], golden["tic_core_op.attn"])


@pytest.mark.parametrize("bias_alone", [True, False], ids=["bias", "0"])
def test_grassmann_published(golden, bias_alone):
    mixer = Grassmann(24, 1, rank=6, direction="past", lags=(1, 2, 4, 8), bias_alone=bias_alone)
    for part, name in (("reduce", "W_red"), ("proj", "W_plu"), ("gate", "W_gate")):
        for leaf, p in getattr(mixer, part).named_parameters():
            p.data = noise(f"grassmann.{name}.{leaf}", p.shape) * np.float32(0.02) * 5
    x = noise("grassmann.x", (2, 13, 24))
    out = mixer(x)
    if bias_alone:
        near(out, golden["grassmann.y_youdie"])
    else:
        near(F.layer_norm(out, (24,)), golden["grassmann.y_adipks_ln"])
    exact = golden[f"grassmann.y64_{'biasat0' if bias_alone else 'zeroat0'}"]
    torch.testing.assert_close(mixer.double()(x.double())[:, :, ::2], exact, atol=1e-9, rtol=0)


# what is seen: every pattern as a mask over all tokens

PREFIX, GRID = 2, (5, 4)
SIZE = math.prod(GRID)


def pattern(near):
    """Who sees whom among 2 prefix tokens and 2 planes, if `near((y, x), (y', x'))` says so of one plane: (N, N)."""
    places = [(plane, divmod(i, GRID[1])) for plane in range(2) for i in range(SIZE)]
    plane = [[p == q and near(a, b) for q, b in places] for p, a in places]
    mask = torch.ones(PREFIX + 2 * SIZE, PREFIX + 2 * SIZE, dtype=torch.bool)
    mask[PREFIX:, PREFIX:] = torch.tensor(plane)
    return mask


def masked(tokens, part, mask, heads=2):
    """Softmax attention with the weights of `part` and a mask."""
    q, k, v = (split_heads(x, heads) for x in part.qkv(tokens).chunk(3, -1))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
    return part.proj(merge_heads(scores.softmax(-1) @ v))


def within(step):
    return lambda a, b: (a[0] // step, a[1] // step) == (b[0] // step, b[1] // step)


SEEN = {
    "windows": (WindowAttention(8, 2, window_size=3), within(3)),  # which divides neither 5 nor 4
    "one window": (WindowAttention(8, 2), lambda a, b: True),
    "kernel": (TiC(8, 2), lambda a, b: max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= 1),
    "kernel, dilated": (
        TiC(8, 2, dilation=2),
        lambda a, b: all(abs(i - j) in (0, 2) for i, j in zip(a, b, strict=True)),
    ),
    "kernel, everything": (TiC(8, 2, kernel_size=9), lambda a, b: True),
    "columns": (Axial(8, 2).columns, lambda a, b: a[1] == b[1]),
    "rows": (Axial(8, 2).rows, lambda a, b: a[0] == b[0]),
}


@pytest.mark.parametrize("name", SEEN)
def test_a_token_sees_its_pattern_and_the_prefix_and_the_prefix_sees_all(name):
    mixer, seen = SEEN[name]
    tokens = torch.randn(3, PREFIX + 2 * SIZE, 8)
    torch.testing.assert_close(mixer(tokens, GRID), masked(tokens, mixer, pattern(seen)))
    assert not torch.allclose(mixer(tokens, GRID), masked(tokens, mixer, pattern(lambda a, b: a == b)))
    alone = tokens[:, PREFIX : PREFIX + SIZE]
    expected = masked(alone, mixer, pattern(seen)[PREFIX : PREFIX + SIZE, PREFIX : PREFIX + SIZE])
    torch.testing.assert_close(mixer(alone, GRID), expected)


def test_axial_is_the_sum_or_the_sequence_of_its_axes():
    tokens = torch.randn(2, SIZE, 8)
    both, chain = Axial(8, 2), Axial(8, 2, "sequential")
    torch.testing.assert_close(both(tokens, GRID), both.columns(tokens, GRID) + both.rows(tokens, GRID))
    torch.testing.assert_close(chain(tokens, GRID), chain.rows(chain.columns(tokens, GRID), GRID))


@pytest.mark.parametrize("combine", ["sum", "sequential"])
def test_axial_sharing_is_the_same_qkv_twice(combine):
    shared, apart = Axial(8, 2, combine, share_qkv=True), Axial(8, 2, combine)
    state = shared.state_dict()
    qkv = state.pop("qkv.weight")
    apart.load_state_dict(state | {"columns.qkv.weight": qkv, "rows.qkv.weight": qkv})
    tokens = torch.randn(2, 1 + SIZE, 8)
    torch.testing.assert_close(shared(tokens, GRID), apart(tokens, GRID))


def reach(mixers, grid):
    """How many tokens each token hears of, through one mixer after the other: (N,)."""
    n = math.prod(grid)

    def through(tokens):
        for mixer in mixers:
            tokens = mixer(tokens[None], grid)[0]
        return tokens.sum(-1)

    jacobian = torch.autograd.functional.jacobian(through, torch.randn(n, 8, dtype=torch.float64))  # (N, N, 8)
    return (jacobian.abs().amax(-1) > 0).sum(-1)


def test_axial_reaches_everything_in_two_steps():
    once, twice = Axial(8, 2).double(), Axial(8, 2).double()
    assert (reach([once], GRID) == 5 + 4 - 1).all()
    assert (reach([once, twice], GRID) == SIZE).all()
    assert (reach([once.columns], GRID) == 5).all() and (
        reach([Axial(8, 2, "sequential").double()], GRID) == SIZE
    ).all()


def test_axial_positions_on_another_grid():
    tokens = torch.zeros(1, 3 + 2 * 6 * 8, 8)
    mixer = AxialPositions(8, (3, 4))
    mixer.rows.data = torch.arange(3.0)[:, None].expand(3, 8).contiguous()
    mixer.columns.data = torch.full((4, 8), 10.0)
    prefix, planes = mixer(tokens, (6, 8)).split([3, 96], 1)
    assert (prefix == 0).all() and torch.equal(planes[:, :48], planes[:, 48:])
    maps = planes[0, :48, 0].view(6, 8) - 10
    torch.testing.assert_close(maps, torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2])[:, None].expand(6, 8))
    mixer, tokens = Axial(8, 2, positions=GRID), torch.randn(2, SIZE, 8)
    out, placed = mixer(tokens, GRID), mixer.positions(tokens, GRID)
    mixer.positions = None
    torch.testing.assert_close(out, mixer(placed, GRID))


# TiC


@pytest.mark.parametrize("conv", [False, True])
def test_tic_of_one_size_runs_on_another(conv):
    mixer = TiC(8, 2, conv=conv)
    large = torch.randn(1, 8, 14, 14)
    small = large[:, :, 3:10, 3:10]
    mixed, part = (to_map(mixer(to_tokens(x), x.shape[2:]), x.shape[2:]) for x in (large, small))
    inside = 2 if conv else 1  # from the border of the small one, where they differ
    torch.testing.assert_close(
        mixed[:, :, 3:10, 3:10][..., inside:-inside, inside:-inside], part[..., inside:-inside, inside:-inside]
    )
    assert not torch.allclose(mixed[:, :, 3, 3], part[:, :, 0, 0])


@pytest.mark.parametrize("mask_padding", [True, False])
def test_mass_on_padding(mask_padding):
    mixer = TiC(8, 2, mask_padding=mask_padding)
    with observe(mixer) as seen:
        mixer(torch.randn(2, 49, 8), (7, 7))
    border = (F.unfold(torch.ones(1, 1, 7, 7), 3, padding=1)[0].T == 0).any(-1)  # (49,)
    mass = 1 - seen["attend"].attn.sum(-1)
    assert (mass[..., border] > 1e-3).all() != mask_padding
    assert (mass[..., ~border].abs() < 1e-6).all() and (mass.abs() < 1e-6).all() == mask_padding


def test_tic_convolution_of_a_prefix_and_of_planes():
    mixer, tokens = TiC(8, 2, conv=True, stride=2, out_dim=6, conv_bias=True), torch.randn(2, 1 + 2 * SIZE, 8)
    plain = TiC(8, 2)
    plain.load_state_dict({name: p for name, p in mixer.state_dict().items() if name.startswith("qkv")}, strict=False)
    plain.proj = nn.Identity()
    x = tokens + plain(tokens, GRID)
    planes = [to_map(x[:, 1 + i * SIZE :][:, :SIZE], GRID) for i in range(2)]
    planes = [F.conv2d(maps, mixer.conv.weight, mixer.conv.bias, 2, 1).relu().flatten(2).mT for maps in planes]
    constant = x[:, 0, :, None, None].expand(-1, -1, 3, 3)
    prefix = F.conv2d(constant, mixer.conv.weight, mixer.conv.bias).relu().flatten(1)[:, None]
    torch.testing.assert_close(mixer(tokens, GRID), torch.cat([prefix, *planes], 1))


# DaViT


def test_published_padding_has_the_keys_of_nothing():
    mixer = WindowAttention(8, 2, window_size=3, mask_padding=False)
    tokens = torch.randn(2, 1 + SIZE, 8)
    padded = F.pad(tokens[:, 1:].unflatten(1, GRID), (0, 0, 0, 2, 0, 1)).flatten(1, 2)  # (2, 36, 8)
    mask = torch.tensor([[within(3)(divmod(i, 6), divmod(j, 6)) for j in range(36)] for i in range(36)])
    mask = F.pad(mask, (1, 0, 1, 0), value=True)
    mask[0, 1:].unflatten(0, (6, 6))[5:] = False  # the prefix sees no padding
    mask[0, 1:].unflatten(0, (6, 6))[:, 4:] = False
    expected = masked(torch.cat([tokens[:, :1], padded], 1), mixer, mask)
    expected = torch.cat([expected[:, :1], expected[:, 1:].unflatten(1, (6, 6))[:, :5, :4].flatten(1, 2)], 1)
    torch.testing.assert_close(mixer(tokens, GRID), expected)


@pytest.mark.parametrize("v2", [False, True])
def test_channel_attention_is_its_formula_and_reaches_everything(v2):
    mixer, x = ChannelAttention(8, 2, v2=v2).double(), torch.randn(2, 6, 8).double()
    q, k, v = (part.unflatten(-1, (2, 4)) for part in mixer.qkv(x).chunk(3, -1))  # (B, N, heads, d)
    if v2:
        q, k, v = v, q, k
    scores = torch.einsum("bnhi,bnhj->bhij", k, v) * (6 if v2 else 4) ** -0.5
    out = torch.einsum("bhij,bnhj->bnhi", scores.softmax(-1), q).flatten(2)
    torch.testing.assert_close(mixer(x), mixer.proj(out))
    assert (reach([mixer], (2, 3)) == 6).all()


# the spectral gate


def filtered(module, plane, size, wrap):
    """The same by a sum over all places: (H, W, D) -> (H, W, D)."""
    weight = torch.view_as_complex(module.resized(size))
    kernel = torch.fft.irfft2(weight, size, dim=(0, 1))  # (H', W', D)
    out = torch.zeros_like(plane)
    height, width, _ = plane.shape
    for y, x, b, a in np.ndindex(height, width, height, width):
        if wrap:
            out[y, x] += kernel[(y - b) % height, (x - a) % width] * plane[b, a]
        else:
            out[y, x] += kernel[y - b, x - a] * plane[b, a]  # at -1 the last: there is room for both signs
    return out


@pytest.mark.parametrize("zero_pad", [False, True])
@pytest.mark.parametrize("built", [(4, 3), (6, 5)], ids=["its grid", "another"])
def test_the_gate_is_a_convolution(zero_pad, built):
    gate, planes = SpectralGate(5, 1, built, zero_pad).double(), torch.randn(2 * 12, 5, dtype=torch.float64)
    size = (8, 6) if zero_pad else (4, 3)
    out = gate(planes[None], (4, 3))[0].unflatten(0, (2, 4, 3))
    for plane, ours in zip(planes.unflatten(0, (2, 4, 3)), out, strict=True):
        torch.testing.assert_close(ours, filtered(gate, plane, size, not zero_pad))


@pytest.mark.parametrize("built", [(7, 8), (14, 14), (5, 4)], ids=str)
def test_the_gate_follows_a_roll(built):
    gate, x = SpectralGate(4, 1, built), torch.randn(2, 7, 8, 4)
    mixed = gate(x.flatten(1, 2), (7, 8)).unflatten(1, (7, 8))
    rolled = gate(x.roll((2, 3), (1, 2)).flatten(1, 2), (7, 8)).unflatten(1, (7, 8))
    torch.testing.assert_close(rolled, mixed.roll((2, 3), (1, 2)), atol=1e-6, rtol=0)
    padded = SpectralGate(4, 1, built, zero_pad=True)
    border = torch.zeros(1, 7, 8, 4)
    border[:, 0] = 1
    local = torch.zeros(*padded.size, 4)
    local[[0, 1, -1]], local[:, 1:] = 1, 0  # a token, the one below and the one above
    padded.complex_weight.data = torch.view_as_real(torch.fft.rfft2(local, dim=(0, 1))).contiguous()
    reached = padded(border.flatten(1, 2), (7, 8)).unflatten(1, (7, 8)).abs().amax((0, 2, 3)) > 0.1
    assert reached.tolist() == [True, True] + 5 * [False]  # and not the last row


def test_a_gate_on_another_grid():
    gate = SpectralGate(3, 1, (14, 14))
    assert gate.resized((14, 14)) is gate.complex_weight or torch.equal(gate.resized((14, 14)), gate.complex_weight)
    assert torch.equal(gate.resized((7, 7)), gate.complex_weight[::2, ::2][:, :4])
    large = gate.resized((28, 28))
    assert large.shape == (28, 15, 3, 2)
    torch.testing.assert_close(large[::2, ::2], gate.complex_weight)
    torch.testing.assert_close(large[27], (large[26] + large[0]) / 2)
    gate.complex_weight.data = torch.view_as_real(torch.full((14, 8, 3), 2 + 0j))
    for grid in ((7, 9), (20, 3), (1, 5)):
        x = torch.randn(1, math.prod(grid), 3)
        torch.testing.assert_close(gate(x, grid), 2 * x)
    blur = torch.zeros(14, 14, 3)
    blur[0, 0], blur[[1, -1], 0], blur[0, [1, -1]] = 0.6, 0.1, 0.1
    gate.complex_weight.data = torch.view_as_real(torch.fft.rfft2(blur, dim=(0, 1))).contiguous()
    kernel = torch.fft.irfft2(torch.view_as_complex(gate.resized((28, 28))), (28, 28), dim=(0, 1))
    assert (kernel[:14, :14] - blur)[:3, :3].abs().max() < 0.02 and kernel[4:-4, 4:-4].abs().max() < 0.02


def test_the_prefix_of_a_gate():
    gate, x = SpectralGate(4, 1, (4, 3)), torch.randn(2, 3 + 24, 4)
    out, zero = gate(x, (4, 3)), gate.complex_weight[0, 0, :, 0]
    torch.testing.assert_close(out[:, :3], zero * (x[:, :3] + x.mean(1, keepdim=True)))
    torch.testing.assert_close(out[:, 3:], gate(x[:, 3:], (4, 3)))
    gate.complex_weight.data[0, 0, :, 1] += 5
    torch.testing.assert_close(gate(x, (4, 3)), out)
    constant = x[:, :1].expand(-1, 12, -1)
    torch.testing.assert_close(gate(constant, (4, 3)), zero * constant, atol=1e-6, rtol=0)


# Grassmann


def wedge(u, v):
    i, j = torch.triu_indices(u.shape[-1], u.shape[-1], 1)
    return u[..., i] * v[..., j] - u[..., j] * v[..., i]


def plane(u, v):
    return F.normalize(wedge(u, v), dim=-1, eps=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_plane_is_spanned_by_what_lies_across(dtype):
    torch.manual_seed(0)
    u, v = torch.randn(2, 50, 6, dtype=dtype)
    exact = plane(u.double(), v.double()).to(dtype)
    m, n = across(u, v)
    torch.testing.assert_close(wedge(u, m), exact)
    torch.testing.assert_close(wedge(v, n), -exact)
    a, b, c, d = torch.randn(4, 50, 1, dtype=dtype)
    a, d = a + 4, d + 4  # far from singular
    other, _ = across(a * u + b * v, c * u + d * v)
    sign = (a * d - b * c).sign()
    exactly = {"atol": 1e-4 if dtype == torch.float32 else 1e-10, "rtol": 0}
    torch.testing.assert_close(wedge(a * u + b * v, other), exact * sign, **exactly)
    almost = u + 1e-3 * v  # parallel: not much less exact than the numbers of the plane themselves
    direct = (plane(u, almost) - exact).abs().max()
    assert (wedge(u, across(u, almost)[0]) - exact).abs().max() < 10 * direct
    for parallel in (u, 0 * u, 2 * u):
        m, n = across(u.requires_grad_(), parallel)
        assert (wedge(u, m) == 0).all() and (wedge(parallel, n) == 0).all()
        (grad,) = torch.autograd.grad((wedge(u, m) + wedge(parallel, n)).sum(), u)
        assert grad.isfinite().all()


def gathered(mixer, x, partners):
    """The layer by its formula, for lists of partners: (N, D) -> (N, D)."""
    z = mixer.reduce(x)
    planes = [[plane(z[t], z[s]) for s in some] for t, some in enumerate(partners)]
    means = [
        torch.stack(some).mean(0) if some else mixer.proj.weight.new_zeros(mixer.proj.in_features) for some in planes
    ]
    g = mixer.proj(torch.stack(means))
    a = mixer.gate(torch.cat([x, g], -1)).sigmoid()
    return a * x + (1 - a) * g


@pytest.mark.parametrize("direction", ["past", "future", "both"])
def test_grassmann_is_its_formula(direction):
    mixer = Grassmann(
        8, 1, rank=4, direction=direction, lags=(1, 3), offsets=((0, 1), (1, -1), (2, 0), (9, 0))
    ).double()
    behind, ahead = direction != "future", direction != "past"
    x = torch.randn(1, 6, 8).double()
    lagged = [[t - lag for lag in (1, 3) if behind] + [t + lag for lag in (1, 3) if ahead] for t in range(6)]
    lagged = [[s for s in some if 0 <= s < 6] for some in lagged]
    torch.testing.assert_close(mixer(x)[0], gathered(mixer, x[0], lagged))

    x = torch.randn(2, PREFIX + 2 * SIZE, 8).double()
    order = range(x.shape[1])
    partners = [[s for s in order if (s < t and behind) or (s > t and ahead)] for t in range(PREFIX)]
    for t in range(PREFIX, x.shape[1]):
        which, (y, c) = (t - PREFIX) // SIZE, divmod((t - PREFIX) % SIZE, GRID[1])
        some = [(y + s * i, c + s * j) for i, j in ((0, 1), (1, -1), (2, 0)) for s in [-1] * behind + [1] * ahead]
        some = [PREFIX + which * SIZE + i * GRID[1] + j for i, j in some if 0 <= i < GRID[0] and 0 <= j < GRID[1]]
        partners.append(some + list(range(PREFIX)) * behind)
    for ours, one in zip(mixer(x, GRID), x, strict=True):
        torch.testing.assert_close(ours, gathered(mixer, one, partners))


@pytest.mark.parametrize("grid", [None, (4, 3)], ids=["sequence", "grid"])
@pytest.mark.parametrize("direction", ["past", "future"])
def test_grassmann_does_not_look_the_other_way(direction, grid):
    n = 9 if grid is None else 2 + 12
    first, second = (Grassmann(8, 1, rank=4, direction=direction).double() for _ in range(2))
    jacobian = (
        torch.autograd.functional.jacobian(
            lambda x: second(first(x, grid), grid).sum(-1), torch.randn(1, n, 8).double()
        )[0, :, 0]
        .abs()
        .amax(-1)
    )  # (N, N)
    unseen = jacobian.triu(1) if direction == "past" else jacobian.tril(-1)
    assert (unseen == 0).all() and (jacobian.diagonal() > 0).all()
    near = [(0, 1), (1, 4)] if grid is None else [(0, 1), (2, 5), (3, 4), (2, 11)]
    for a, b in near:
        assert jacobian[(b, a) if direction == "past" else (a, b)] > 0


# together


def test_windows_come_back():
    x = torch.randn(3, 63, 2)
    for window in ((7, 7), (2, 4), (7, 1), (1, 9)):
        for spread in (False, True):
            windows, inside = to_windows(x, (7, 9), window, spread)
            assert torch.equal(from_windows(windows, (7, 9), window, spread), x)
            if inside is None:
                assert windows.shape[0] * math.prod(window) == 3 * 63
            else:
                assert inside.sum() == 63 and (windows.unflatten(0, (3, -1))[:, ~inside] == 0).all()
    place = torch.arange(16.0).view(1, 16, 1)
    assert to_windows(place, (4, 4), (2, 2))[0][1, :, 0].tolist() == [2, 3, 6, 7]
    assert to_windows(place, (4, 4), (2, 2), spread=True)[0][1, :, 0].tolist() == [1, 3, 9, 11]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Axial(8, 2, "both"), "combine must be 'sum' or 'sequential', not 'both'"),
        (lambda: WindowAttention(8, 2, 0), "window_size must be at least 1"),
        (lambda: TiC(8, 2, 4), "kernel_size must be odd"),
        (lambda: TiC(8, 2, dilation=0), "dilation and stride must be at least 1"),
        (lambda: TiC(8, 2, stride=2), "need"),
        (lambda: SpectralGate(8, 2, (0, 4)), "at least one row"),
        (lambda: Grassmann(8, 2, rank=1), "rank must not be 1"),
        (lambda: Grassmann(8, 2, direction="back"), "'past', 'future' or 'both', not 'back'"),
        (lambda: Grassmann(8, 2, lags=(0, 1)), "reading order"),
        (lambda: Grassmann(8, 2, offsets=((0, -1),)), "reading order"),
        (lambda: Axial(8, 2)(torch.randn(1, 6, 8)), "Axial works on a grid"),
        (lambda: TiC(8, 2)(torch.randn(1, 6, 8), (3, 3)), "TiC: 6 tokens do not fill"),
        (lambda: SpectralGate(8, 2)(torch.randn(1, 6, 8)), "SpectralGate works on a grid"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [Axial, WindowAttention, TiC, SpectralGate, ChannelAttention, Grassmann])
def test_heads_divide_the_width_and_autocast_rounds(make):
    with pytest.raises(ValueError, match="10 is not a multiple of num_heads 4"):
        make(10, 4)
    mixer, x = make(8, 2), torch.randn(2, 1 + SIZE, 8)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = mixer(x, GRID)
    torch.testing.assert_close(rounded.float(), mixer(x, GRID), atol=0.05, rtol=0.05)


def test_a_stride_is_exported_for_a_batch_of_any_size():
    mixer, tokens = TiC(8, 2, conv=True, stride=2), torch.randn(5, 1 + 2 * SIZE, 8)
    shapes = {"tokens": {0: torch.export.Dim("batch")}, "grid": (None, None)}
    program = torch.export.export(mixer.eval(), (tokens[:3], GRID), dynamic_shapes=shapes).module()
    for batch in (1, 5):
        torch.testing.assert_close(program(tokens[:batch], GRID), mixer(tokens[:batch], GRID))
