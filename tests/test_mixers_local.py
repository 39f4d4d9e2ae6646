"""Attention to what is near: other people's numbers, and what windows promise."""

import itertools
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published import GOLDEN, fill_small, part, rng
from torch import Tensor, nn
from torch.nn import functional as F

from mien.networks.cost import macs
from mien.nn import Block, Halo, MaxViTBlockAttention, MaxViTGridAttention, Neighborhood, SelfAttention, observe
from mien.nn import neighborhood as neighborhood_file
from mien.nn.grid import from_windows, to_map, to_tokens, to_windows
from mien.nn.neighborhood import neighbours

WIDE = 16


# other people's numbers: tokens (2, N, 64) of a grid, weights 0.2 · z under their names

ATTENTION = {"qkv.weight": (192, 64), "qkv.bias": (192,), "proj.weight": (64, 64), "proj.bias": (64,)}
LAYER = {f"attn.{name}": shape for name, shape in ATTENTION.items()}
LAYER |= {"mlp.fc1.weight": (256, 64), "mlp.fc1.bias": (256,), "mlp.fc2.weight": (64, 256), "mlp.fc2.bias": (64,)}
LAYER |= {f"norm{i}.{leaf}": (64,) for i in (1, 2) for leaf in ("weight", "bias")}
TABLE = "attn.rel_pos.relative_position_bias_table"


def maxvit_layer(theirs: dict[str, Tensor], kind: type[nn.Module], eps: float = 1e-6, act: str = "none") -> Block:
    """timm's layer; where its table is (169, heads), by query - key, its qkv is q, k, v of one head after another."""
    block = Block(64, 4, mixer=kind, eps=eps)
    block.mlp.act = nn.GELU(act)
    table = theirs.pop(TABLE)
    if table.ndim == 2:
        table = table.T.unflatten(1, (13, 13)).flip(1, 2)
        for leaf in ("weight", "bias"):
            heads = theirs[f"attn.qkv.{leaf}"].unflatten(0, (4, 3, 16))
            theirs[f"attn.qkv.{leaf}"] = heads.transpose(0, 1).flatten(0, 2)
    block.load_state_dict(theirs | {"attn.relative_bias": table})
    return block


def maxvit(kind: type[nn.Module], table: tuple[int, ...]):
    return maxvit_layer(fill_small(LAYER | {TABLE: table}, scale=0.2), kind)


class MBConv(nn.Module):
    """What stands before the two layers of a MaxViT block: (B, 32, H, W) -> (B, 64, H/2, W/2)."""

    def __init__(self):
        super().__init__()
        self.pre_norm, self.norm1, self.norm2 = (nn.BatchNorm2d(width, eps=1e-3) for width in (32, 256, 256))
        self.conv1_1x1, self.conv3_1x1 = nn.Conv2d(32, 256, 1, bias=False), nn.Conv2d(256, 64, 1)
        self.conv2_kxk = nn.Conv2d(256, 256, 3, stride=2, groups=256, bias=False)
        self.se = nn.ModuleDict({"fc1": nn.Conv2d(256, 16, 1), "fc2": nn.Conv2d(16, 256, 1)})
        self.shortcut = nn.ModuleDict({"expand": nn.Conv2d(32, 64, 1)})

    def forward(self, x: Tensor) -> Tensor:
        act = partial(F.gelu, approximate="tanh")
        y = act(self.norm1(self.conv1_1x1(self.pre_norm(x))))
        y = act(self.norm2(self.conv2_kxk(F.pad(y, (0, 1, 0, 1)))))  # as TensorFlow pads for a stride of 2
        y = y * self.se.fc2(F.silu(self.se.fc1(y.mean((2, 3), keepdim=True)))).sigmoid()
        return self.conv3_1x1(y) + self.shortcut.expand(F.avg_pool2d(x, 2))


class MaxViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = MBConv()
        shapes = {f"conv.{name}": p.shape for name, p in self.conv.state_dict().items()}
        for axis in ("block", "grid"):
            shapes |= {f"attn_{axis}.{name}": shape for name, shape in (LAYER | {TABLE: (4, 13, 13)}).items()}
        theirs = fill_small(shapes, scale=0.2)
        self.conv.load_state_dict(part("conv.", theirs))
        layer = partial(maxvit_layer, eps=1e-5, act="tanh")
        self.attn_block = layer(part("attn_block.", theirs), MaxViTBlockAttention)
        self.attn_grid = layer(part("attn_grid.", theirs), MaxViTGridAttention)

    def forward(self, maps: Tensor) -> Tensor:
        tokens = to_tokens(self.conv(maps))
        return to_map(self.attn_grid(self.attn_block(tokens, (14, 14)), (14, 14)), (14, 14))


def halo(block_size: int, halo_size: int, value_dim: int = 64, head_dim: int = 16, **options) -> Halo:
    """timm's, which has no proj and lays k and v out head by head."""
    size = 2 * (block_size + 2 * halo_size) - 1
    shapes = {"q.weight": (4 * head_dim, 64), "kv.weight": (4 * head_dim + value_dim, 64)}
    shapes |= {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items()}
    theirs = fill_small(shapes | {f"pos_embed.{axis}_rel": (size, head_dim) for axis in ("height", "width")}, scale=0.2)
    ours = part("pos_embed.", theirs)
    for leaf in ("weight", "bias") if options.get("qkv_bias") else ("weight",):
        k, v = theirs[f"kv.{leaf}"].unflatten(0, (4, -1)).split((head_dim, value_dim // 4), 1)
        ours[f"qkv.{leaf}"] = torch.cat([theirs[f"q.{leaf}"], k.flatten(0, 1), v.flatten(0, 1)])
    mixer = Halo(64, 4, block_size, halo_size, False, head_dim=head_dim, value_dim=value_dim, proj=False, **options)
    mixer.load_state_dict(ours)
    return mixer


def masked_halo() -> Halo:
    shapes = {"to_q.weight": (64, 64), "to_kv.weight": (128, 64), "to_out.weight": (64, 64), "to_out.bias": (64,)}
    shapes |= {"rel_pos_emb.rel_height": (25, 16), "rel_pos_emb.rel_width": (25, 16)}
    theirs = fill_small(shapes, scale=0.2)
    mixer = Halo(64, 4, 7, 3, scale_pos_embed=True)
    mixer.load_state_dict(
        {"qkv.weight": torch.cat([theirs["to_q.weight"], theirs["to_kv.weight"]])}
        | {f"{axis}_rel": theirs[f"rel_pos_emb.rel_{axis}"] for axis in ("height", "width")}
        | {f"proj.{leaf}": theirs[f"to_out.{leaf}"] for leaf in ("weight", "bias")}
    )
    return mixer


def natten(*arguments, **options) -> Neighborhood:
    theirs = fill_small(ATTENTION | {"rpb": (4, 13, 13)}, scale=0.2)
    mixer = Neighborhood(64, 4, *arguments, **options)
    mixer.load_state_dict(
        {name.replace("rpb", "relative_bias"): theirs[name] for name in ATTENTION}
        | ({"relative_bias": theirs["rpb"]} if mixer.relative_bias is not None else {})
    )
    return mixer


CASES = {
    "maxvit_block_bias": (lambda: maxvit(MaxViTBlockAttention, (169, 4)), (14, 14)),
    "maxvit_block_bias_tf": (lambda: maxvit(MaxViTBlockAttention, (4, 13, 13)), (14, 14)),
    "maxvit_grid_bias": (lambda: maxvit(MaxViTGridAttention, (169, 4)), (14, 14)),
    "maxvit_grid_bias_tf": (lambda: maxvit(MaxViTGridAttention, (4, 13, 13)), (14, 14)),
    "maxvit_full_block_tf": (MaxViT, (28, 28)),
    "halo_b7h3_14": (lambda: halo(7, 3), (14, 14)),
    "halo_b4h2_8": (lambda: halo(4, 2, qkv_bias=True), (8, 8)),
    "halo_b4h1_posscale_8": (lambda: halo(4, 1, value_dim=96, head_dim=8, scale_pos_embed=True), (8, 8)),
    "halo_b7h2_s2_14": (lambda: halo(7, 2), (14, 14)),
    "halo_masked_b7h3_14": (masked_halo, (14, 14)),
    "halo_masked_b7h3_7": (masked_halo, (7, 7)),
    "natten_k3_7": (lambda: natten(3), (7, 7)),
    "natten_k7_7_full": (lambda: natten(7), (7, 7)),
    "natten_k7_14": (lambda: natten(7), (14, 14)),
    "natten_k5d2_14": (lambda: natten(5, 2), (14, 14)),
    "natten_k7_rpb_14": (lambda: natten(7, rel_pos_bias=True), (14, 14)),
    "natten_k3d2_rect_9x12": (lambda: natten(3, 2), (9, 12)),
    "natten_k3x5_causal_8": (lambda: natten((3, 5), causal=(True, False)), (8, 8)),
}


def run(name: str) -> tuple[Tensor, Tensor]:
    """What comes out, and the gradient of its sum, weighted by a probe: maps, with channels where they have them."""
    make, grid = CASES[name]
    module = make().eval()
    first = name.startswith("halo") or name == "maxvit_full_block_tf"
    channels = 32 if name == "maxvit_full_block_tf" else 64

    def draw(what: str, shape) -> Tensor:
        return torch.from_numpy(rng(f"{name}/{what}").standard_normal(tuple(shape)).astype(np.float32))

    x = draw("x", (2, channels, *grid) if first else (2, *grid, channels)).requires_grad_()
    if name == "maxvit_full_block_tf":
        out = module(x)
    elif first:
        out = to_map(module(to_tokens(x), grid), grid)
        out = F.avg_pool2d(out, 2) if "_s2_" in name else out
    else:
        out = module(x.flatten(1, 2), grid).unflatten(1, grid)
    (grad,) = torch.autograd.grad((out * draw("probe", out.shape)).sum(), x)
    return out.detach(), grad


@cache
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "local.npz"))


@pytest.mark.parametrize("name", CASES)
def test_others_numbers(name):
    for key, ours in zip(("out", "grad_x"), run(name), strict=True):
        theirs = torch.from_numpy(golden()[f"{name}.{key}"])
        stride = max(1, ours.numel() // 1500) | 1
        error = (ours.flatten()[::stride] - theirs).abs().max() / theirs.abs().max()
        assert error < 1e-5, key


def slots(name: str) -> Tensor:
    """Of natten_index_k5d2_14 and the like: 1 + the place of a key in the window of a query, 0 where it has none."""
    kernel, side = name.removeprefix("natten_index_k").split("_")
    kernel, _, dilation = kernel.partition("d")
    axis = neighbours(int(side), int(kernel), int(dilation or 1))
    found = torch.zeros(len(axis) ** 2, len(axis) ** 2, dtype=torch.int64)
    for i, (rows, columns) in enumerate((rows, columns) for rows in axis for columns in axis):
        found[i, [y * len(axis) + x for y in rows for x in columns]] = torch.arange(len(rows) * len(columns)) + 1
    return found


@pytest.mark.parametrize("name", ["natten_index_k3_7", "natten_index_k7_14", "natten_index_k5d2_14"])
def test_others_neighbours(name):
    assert slots(name).equal(torch.from_numpy(golden()[name]).long())


@pytest.mark.parametrize("kind, spread", [("window", False), ("grid", True)])
def test_others_partitions(kind, spread):
    windows, inside = to_windows(torch.arange(196).view(1, 196, 1), (14, 14), (7, 7), spread)
    assert inside is None
    assert windows.view(4, 7, 7).equal(torch.from_numpy(golden()[f"maxvit.{kind}"]).long())


# windows


LOCAL = {
    "block": partial(MaxViTBlockAttention, window_size=(3, 4)),
    "grid": partial(MaxViTGridAttention, window_size=(3, 4)),
    "halo": partial(Halo, block_size=3, halo_size=1, qkv_bias=True),
    "halo of padding": partial(Halo, block_size=3, halo_size=1, mask_padding=False),
    "neighborhood": partial(Neighborhood, kernel_size=3),
    "neighborhood, tiled": partial(Neighborhood, kernel_size=(3, 2), dense_tokens=0, tile_size=2),
    "neighborhood, all": partial(Neighborhood, kernel_size=3, dilation=2, causal=(True, False), rel_pos_bias=True),
}
mixers = pytest.mark.parametrize("name", LOCAL)


def build(name: str, dim: int = WIDE) -> nn.Module:
    torch.manual_seed(0)
    mixer = LOCAL[name](dim, 2).double()
    for table in ("relative_bias", "height_rel", "width_rel"):
        if getattr(mixer, table, None) is not None:
            nn.init.normal_(getattr(mixer, table))
    return mixer.eval()


def influence(mixer: nn.Module, grid, tokens: int) -> Tensor:
    """Which token (row) hears of which (column): whether its answer moves with the other's input, (N, N) bool."""
    x = torch.randn(1, tokens, WIDE, dtype=torch.float64)
    moved = torch.eye(tokens, dtype=torch.float64)[:, :, None] * torch.randn(WIDE, dtype=torch.float64)
    return ((mixer(x + moved, grid) - mixer(x, grid)).abs().amax(-1) > 1e-12).T


@given(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 4)] * 2), st.booleans())
@settings(deadline=None, max_examples=50)
def test_windows_invert(grid, window, spread):
    planes = torch.randn(2, grid[0] * grid[1], 3)
    windows, inside = to_windows(planes, grid, window, spread)
    assert from_windows(windows, grid, window, spread).equal(planes)
    if inside is None:
        assert windows.numel() == planes.numel()
    else:
        assert inside.any(1).all() and inside.sum() == grid[0] * grid[1]
        assert (windows.unflatten(0, (2, -1))[:, ~inside] == 0).all()


@mixers
def test_any_grid_prefix_and_planes(name):
    """A prefix sees and is seen by all; planes do not see one another, and see what each would see alone."""
    for grid, (prefix, planes) in itertools.product([(7, 9), (1, 5), (6, 8)], [(0, 1), (2, 3)]):
        mixer, size = build(name), grid[0] * grid[1]
        heard = influence(mixer, grid, prefix % size + planes * size)
        assert heard[:prefix].all() and heard[:, :prefix].all() and heard.diagonal().all()
        alone = heard[prefix : prefix + size, prefix : prefix + size]
        expected = torch.block_diag(*[alone] * planes)
        assert heard[prefix:, prefix:].equal(expected.bool())
        assert alone.equal(influence(mixer, grid, size))


@mixers
def test_what_is_near(name):
    """By brute force on 7×9, from the definitions."""
    height, width = grid = (7, 9)
    places = [(y, x) for y in range(height) for x in range(width)]

    def near(query, key) -> bool:
        (a, b), (c, d) = query, key
        if name == "block":
            return a // 3 == c // 3 and b // 4 == d // 4
        if name == "grid":
            return a % 3 == c % 3 and b % 3 == d % 3
        if name.startswith("halo"):
            return all(u // 3 * 3 - 1 <= v <= u // 3 * 3 + 3 for u, v in ((a, c), (b, d)))
        if name == "neighborhood, all":
            row = c in (a, a - 2, a - 4)
            column = [i for i in range(width) if i % 2 == b % 2]
            start = min(max(b // 2 - 1, 0), len(column) - 3)
            return row and d in column[start : start + 3]
        kernel = (3, 2) if name == "neighborhood, tiled" else (3, 3)
        starts = [min(max(u - k // 2, 0), n - k) for u, k, n in zip(query, kernel, grid, strict=True)]
        return all(s <= v < s + k for s, k, v in zip(starts, kernel, key, strict=True))

    expected = torch.tensor([[near(query, key) for key in places] for query in places])
    assert influence(build(name), grid, len(places)).equal(expected)


@mixers
def test_windows_as_large_as_the_grid_are_full_attention(name):
    large = {
        "block": {"window_size": 7},
        "grid": {"window_size": 7},
        "halo": {"block_size": 7, "halo_size": 3, "qkv_bias": True},
        "neighborhood": {"kernel_size": 7},
        "neighborhood, tiled": {"kernel_size": (5, 6), "dense_tokens": 0, "tile_size": 2},
        "neighborhood, all": {"kernel_size": (5, 9), "rel_pos_bias": True},
    }
    if name == "halo of padding":
        large[name] = {"block_size": 2, "halo_size": 9, "mask_padding": True, "qkv_bias": True}
    mixer = LOCAL[name].func(WIDE, 2, **large[name]).double().eval()
    for table in ("relative_bias", "height_rel", "width_rel"):
        if getattr(mixer, table, None) is not None:
            nn.init.zeros_(getattr(mixer, table))
    full = SelfAttention(WIDE, 2).double()
    full.load_state_dict({key: value for key, value in mixer.state_dict().items() if key in full.state_dict()})
    for tokens in (30, 33):
        x = torch.randn(2, tokens, WIDE, dtype=torch.float64)
        torch.testing.assert_close(mixer(x, (5, 6)), full(x), atol=1e-12, rtol=0)


@mixers
def test_padding_has_no_mass(name):
    """Weights sum to 1 over places on the grid: answers of equal values are that value."""
    mixer = build(name)
    with torch.no_grad():
        mixer.qkv.weight[-WIDE:] = 0
        mixer.qkv.bias = nn.Parameter(torch.ones(3 * WIDE, dtype=torch.float64))
        mixer.proj.weight.copy_(torch.eye(WIDE))
        mixer.proj.bias.zero_()
    for grid in ((7, 9), (1, 5), (7, 7)):
        values = mixer(torch.randn(2, grid[0] * grid[1], WIDE, dtype=torch.float64), grid)
        nothing_lost = torch.allclose(values, torch.ones_like(values), rtol=0, atol=1e-12)
        assert nothing_lost == (name != "halo of padding")


@pytest.mark.parametrize("side, share", [(14, 0.41), (7, 0.71)])
def test_how_much_of_an_even_attention_the_published_halo_gives_to_padding(side, share):
    halo = Halo(WIDE, 2, mask_padding=False, qkv_bias=True)
    with torch.no_grad():
        halo.qkv.weight.zero_()
        halo.qkv.bias.copy_(torch.arange(3 * WIDE) >= 2 * WIDE)  # scores are 0, values are 1
    halo.proj = nn.Identity()
    assert 1 - halo(torch.randn(1, side**2, WIDE), (side, side)).mean().item() == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize(
    "options", [{}, {"dilation": 2}, {"causal": True}, {"rel_pos_bias": True}, {"kernel_size": (4, 7)}]
)
@pytest.mark.parametrize("grid", [(10, 13), (16, 5)], ids=str)
def test_tiles_and_all_pairs_give_the_same(options, grid):
    torch.manual_seed(0)
    dense = Neighborhood(WIDE, 2, **({"kernel_size": 3} | options)).double()
    tiled = Neighborhood(WIDE, 2, **({"kernel_size": 3} | options), dense_tokens=0, tile_size=3).double()
    tiled.load_state_dict(dense.state_dict())
    assert [len(axis.queries) > 1 for axis in tiled.axes(grid)] == [True, True]
    assert [len(axis.queries) for axis in dense.axes(grid)] == [1, 1]
    x = torch.randn(2, 1 + 2 * grid[0] * grid[1], WIDE, dtype=torch.float64, requires_grad=True)
    probe = torch.randn_like(x)
    grads = []
    for mixer in (dense, tiled):
        out = mixer(x, grid)
        grads.append(torch.autograd.grad((out * probe).sum(), [x, *mixer.parameters()]))
    torch.testing.assert_close(tiled(x, grid), dense(x, grid), atol=1e-12, rtol=0)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("make", [MaxViTBlockAttention, MaxViTGridAttention, Halo, Neighborhood])
def test_cost_grows_with_the_tokens(make):
    """Products, with the sizes that are the default."""
    cost = [macs(make(2, 1), torch.randn(1, side**2, 2), (side, side)) for side in (40, 80)]
    assert cost[1] / cost[0] == pytest.approx(4, rel=0.01)
    assert cost[1] < 4 * 80**4 / 10  # of a pair in full attention: two for its score, and two for its value


def test_natten_is_asked_as_it_expects(monkeypatch):
    """A stand-in with natten's layout, (B, H, W, heads, head_dim), that attends to what ours attends to."""
    calls = []

    def na2d(query, key, value, *, kernel_size, dilation, is_causal):
        calls.append((kernel_size, dilation, is_causal))
        rows, columns = map(neighbours, query.shape[1:3], kernel_size, dilation, is_causal)
        out = torch.empty_like(query)
        for y, ys in enumerate(rows):
            for x, xs in enumerate(columns):
                k, v = (t[:, ys][:, :, xs].flatten(1, 2) for t in (key, value))  # (B, keys, heads, d)
                attn = (torch.einsum("bhd,bnhd->bhn", query[:, y, x], k) / query.shape[-1] ** 0.5).softmax(-1)
                out[:, y, x] = torch.einsum("bhn,bnhd->bhd", attn, v)
        return out

    make = partial(Neighborhood, WIDE, 2, kernel_size=(3, 2), dilation=(1, 2), causal=(True, False))
    mixer, x = make().double(), torch.randn(2, 2 * 42, WIDE, dtype=torch.float64)
    ours = mixer(x, (6, 7))
    monkeypatch.setattr(neighborhood_file, "natten_for", lambda tokens: na2d)
    torch.testing.assert_close(mixer(x, (6, 7)), ours)
    assert calls == [((3, 2), (1, 2), (True, False))]
    mixer(torch.cat([x[:, :1], x], 1), (6, 7))  # with a prefix
    mixer(x, (2, 21))  # a kernel that is larger than the grid
    with observe(mixer):
        mixer(x, (6, 7))
    make(rel_pos_bias=True).double()(x, (6, 7))
    make(attn_drop=0.5).double()(x, (6, 7))
    assert len(calls) == 1


def test_wrong_sizes_are_told():
    for make in (*LOCAL.values(), MaxViTBlockAttention):
        with pytest.raises(ValueError, match="10 is not a multiple of num_heads 4"):
            make(10, 4)
        with pytest.raises(ValueError, match="works on a grid"):
            make(WIDE, 4)(torch.randn(1, 9, WIDE))
    for make in (
        partial(Neighborhood, kernel_size=0),
        partial(Neighborhood, kernel_size=(3, 3, 3)),
        partial(Neighborhood, dilation=0),
        partial(MaxViTGridAttention, window_size=2.5),
        partial(Halo, block_size=0),
        partial(Halo, halo_size=-1),
        partial(Halo, value_dim=10),
    ):
        with pytest.raises(ValueError):
            make(WIDE, 4)
