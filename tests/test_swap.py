"""Any mixer in any network: by name, one for all blocks or one a block, told its grid, and in timm's ViTs."""

import json
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import HEADER
from jsonargparse import ArgumentParser, Namespace
from torch import nn

from mien.__main__ import main
from mien.commands.list import mixers
from mien.errors import CheckpointError
from mien.networks import (
    BTN,
    APViT,
    ARBEx,
    CaiT,
    Network,
    Poster,
    ViT,
    build,
    load_network,
    mobilefacenet,
    save_network,
    swap_attention,
)
from mien.nn import ClassAttentionPool, SelfAttention, TalkingHeads
from mien.training.run import parser, plain

MIXERS = mixers()
OPTIONS = {"Sparsifiner": {"num_tokens": 148}}  # of a class token and three planes of 7×7
BLIND = ("LinearAttention", "Superlinear")  # they look back: a class token, which comes first, sees itself alone
every = pytest.mark.parametrize("name", MIXERS)


class Trunk(nn.Module):
    """Three maps of one convolution."""

    levels = ((6, 28), (6, 14), (6, 7))

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, 4)

    def forward(self, images):
        maps = self.conv(images)
        return [F.avg_pool2d(maps, side) if side > 1 else maps for side in (1, 2, 4)]


class Tiny(BTN):
    """BTN at the size of a test."""

    def __init__(self, *, num_classes: int = 8, **options):
        super().__init__(
            image=Trunk(),
            landmarks=Trunk(),
            num_classes=num_classes,
            dims=(8, 8, 8),
            head_dim=4,
            key_strides=(4, 2, 1),
            embed_dim=16,
            depth=2,
            num_heads=4,
            **options,
        )


class Patches(APViT):
    """APViT with 14×14 patches, at the size of a test."""

    def __init__(self, *, num_classes: int = 8, **options):
        sizes = {"patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 4}
        super().__init__(image=None, num_classes=num_classes, **{**sizes, **options})
        nn.init.normal_(self.head.weight)


class Gridded(nn.Module):
    """A mixer of the user's own, that keeps the grids that it was given."""

    needs_grid = True

    def __init__(self, dim: int, num_heads: int, share: float = 0.5):
        super().__init__()
        self.proj, self.share, self.grids = nn.Linear(dim, dim), share, []

    def forward(self, tokens, grid=None):
        self.grids.append(grid)
        return self.share * self.proj(tokens)


class Scored(SelfAttention):
    """A mixer that needs the grid and can tell what tokens are worth."""

    needs_grid = True

    def with_class_scores(self, tokens, grid=None):
        assert grid is not None
        return super().with_class_scores(tokens, grid)


def faces(batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, 112, 112, generator=torch.Generator().manual_seed(0), dtype=dtype)


def block(name: str) -> dict:
    return {"class_path": f"mien.nn.{name}", "init_args": OPTIONS.get(name, {})}


def stir(network: nn.Module) -> nn.Module:
    """Parameters that let everything through, though some start at 0."""
    torch.manual_seed(1)
    for p in network.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return network


# every mixer in a network


@every
def test_a_network_of_it_trains_answers_and_is_kept(name, tmp_path):
    model = {"class_path": f"{__name__}.Tiny", "init_args": {"mixer": block(name)}}
    network = stir(build(model, trust=True)).train()
    assert all(type(b.attn) is MIXERS[name] for b in network.vit.blocks)
    loss = sum(logits.square().mean() for logits in network.training_logits(faces(2)).values())
    loss = loss + sum(m.aux_loss for m in network.modules() if getattr(m, "aux_loss", None) is not None)
    loss.backward()
    for parameter, p in network.vit.blocks.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), parameter
    assert all(any(p.grad.any() for p in b.attn.parameters()) for b in network.vit.blocks)

    images = faces(3, torch.float64)
    network.double().eval()
    with torch.no_grad():
        together = network(images)
        assert name in BLIND or (together[0] - together[1]).abs().max() > 1e-6
        torch.testing.assert_close(network(images[[2, 0, 1]]), together[[2, 0, 1]])
        torch.testing.assert_close(network(images[1:2]), together[1:2])
        save_network(tmp_path / "n.safetensors", network.float(), HEADER | {"model": model})
        again = load_network(tmp_path / "n.safetensors", trust=True)
        assert torch.equal(again(faces(2)), network(faces(2)))


class Together(nn.Module):
    """Several networks of the same tokens."""

    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, tokens):
        return {name: network(tokens) for name, network in self.networks.items()}


EXPORTED = OPTIONS | {
    "Grassmann": {"lags": (1, 2), "offsets": ((0, 1), (1, 0), (1, -1))},  # each is the same few nodes once more
    "MaxViTBlockAttention": {"window_size": (7, 1)},
    "MaxViTGridAttention": {"window_size": (1, 7)},
    "WindowAttention": {"window_size": 4},
    "Halo": {"block_size": 4, "halo_size": 1},
}
"""Options with which planes of 7×7 have several windows."""


def test_a_vit_of_each_is_exported_for_any_batch():
    makes = {name: partial(kind, **EXPORTED.get(name, {})) for name, kind in MIXERS.items()}
    vits = {name: stir(ViT(embed_dim=16, depth=1, num_heads=4, mixer=make)) for name, make in makes.items()}
    together, tokens = Together(vits).eval(), torch.randn(3, 147, 16)
    program = torch.export.export(together, (tokens[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(tokens), together(tokens), atol=1e-5, rtol=1e-5)


# one a block


def test_one_a_block():
    network = Tiny(mixer=[TalkingHeads, SelfAttention])
    assert [type(b.attn) for b in network.vit.blocks] == [TalkingHeads, SelfAttention]
    patches = Patches(mixer=[Gridded] * 2 + [SelfAttention] * 2)
    assert [type(b.attn) for b in patches.vit.blocks] == [Gridded, Gridded, SelfAttention, SelfAttention]
    cait = CaiT(num_classes=3, img_size=32, embed_dim=16, depth=2, num_heads=2, mixer=(Gridded, TalkingHeads))
    assert [type(b.attn) for b in cait.blocks] == [Gridded, TalkingHeads]
    assert cait(torch.randn(2, 3, 32, 32)).shape == (2, 3) and cait.blocks[0].attn.grids == [(2, 2)]


@pytest.mark.parametrize("make", [Tiny, partial(ViT, embed_dim=16), Patches, partial(CaiT, num_classes=3)])
def test_what_is_no_mixer_is_told_at_construction(make):
    with pytest.raises(ValueError, match="mixer is a list of 5 for (2|4|24) blocks"):
        make(mixer=[SelfAttention] * 5)
    for wrong in ("mien.nn.TalkingHeads", [SelfAttention, "mien.nn.TalkingHeads"]):
        with pytest.raises(ValueError, match="mixer must make a mixer, or be a list"):
            make(mixer=wrong)


def test_without_a_mixer_networks_are_what_they_were():
    for make, usual in ((Tiny, SelfAttention), (Patches, SelfAttention)):
        assert {type(b.attn) for b in make().vit.blocks} == {usual}
    assert Patches().vit.blocks[0].attn.qkv.bias is None and Patches(qkv_bias=True).vit.blocks[0].attn.qkv.bias.any
    cait = CaiT(num_classes=3, embed_dim=16, depth=1, num_heads=2, qkv_bias=False)
    assert type(cait.blocks[0].attn) is TalkingHeads and cait.blocks[0].attn.qkv.bias is None
    with pytest.raises(ValueError, match="qk_scale is self-attention's"):
        Patches(mixer=Gridded, qk_scale=0.1)


# the grid


def test_mixers_are_told_the_grid():
    for options, tokens in ({}, 147), ({"vit_tokens": "fused49"}, 49):
        network = Tiny(mixer=Gridded, **options).eval()
        network(faces(1))
        assert network.vit.pos_embed.shape[1] == tokens + 1
        assert [b.attn.grids for b in network.vit.blocks] == [[(7, 7)], [(7, 7)]]
    patches = Patches(mixer=Gridded).eval()
    patches(faces(1))
    assert [b.attn.grids for b in patches.vit.blocks] == [[(14, 14)]] * 4
    vit = ViT(num_tokens=15, grid=[3, 5], embed_dim=16, depth=1, num_heads=2, mixer=Gridded)
    vit(torch.randn(1, 15, 16))
    assert vit.blocks[0].attn.grids == [(3, 5)]
    with pytest.raises(ValueError, match="Gridded needs a grid, and 148 tokens are no planes of 7×7"):
        ViT(num_tokens=148, mixer=Gridded)
    with pytest.raises(ValueError, match="Gridded needs a grid, and there is none"):
        ViT(grid=None, mixer=Gridded)
    assert ViT(num_tokens=5, embed_dim=16, depth=1, num_heads=2).grid is None


def test_where_the_grid_is_gone_a_grid_mixer_is_refused():
    for options in ({"keep_patches": 160}, {"keep_patches": 195, "mixer": [SelfAttention] * 3 + [Gridded]}):
        with pytest.raises(ValueError, match=r"Gridded needs a grid, of which only \d+ patches would be kept"):
            Patches(**{"mixer": Gridded} | options)
    with pytest.raises(
        ValueError, match=r"Gridded needs a grid, and stands behind a block that drops tokens \(number 1\)"
    ):
        Patches(mixer=[SelfAttention] * 3 + [Gridded], keep_rate=[1.0, 0.9, 1.0, 1.0])
    with pytest.raises(ValueError, match="Scored needs a grid, and stands behind"):
        Patches(mixer=Scored, keep_rate=0.9)
    with pytest.raises(ValueError, match="Gridded has no class scores by which tokens could be selected"):
        Patches(mixer=[SelfAttention] * 3 + [Gridded], keep_rate=[1.0, 1.0, 1.0, 0.9])
    before = Patches(mixer=[Gridded] * 2 + [Scored] + [SelfAttention], keep_rate=[1.0, 1.0, 0.9, 0.5], keep_patches=196)
    assert before.eval()(faces(2)).isfinite().all()
    assert [b.attn.grids for b in before.vit.blocks[:2]] == [[(14, 14)]] * 2

    network = Patches(mixer=[SelfAttention] * 3 + [Gridded]).eval()
    with pytest.raises(ValueError, match="only 120 patches"):
        network.keep_patches = 120
    with pytest.raises(ValueError, match="number 2"):
        network.keep_rate = [1.0, 1.0, 0.5, 1.0]
    assert network.keep_patches is None and network.keep_rate == [1.0] * 4


def test_a_trace_passes_mixers_without_scores():
    network = stir(Patches(mixer=[Gridded, SelfAttention, SelfAttention, SelfAttention], keep_rate=0.9)).eval()
    trace = network.trace(faces(2))
    torch.testing.assert_close(trace.logits, network(faces(2)))
    first, *others = trace.blocks
    assert first.scores is None and first.attn is None and torch.equal(first.came, first.stayed)
    assert all(len(block.attn.shape) == 3 for block in others) and others[-1].stayed.shape[1] < 196


# by name

BY_NAME = {
    "a name": "mien.nn.TalkingHeads",
    "a block": {"class_path": "mien.nn.TalkingHeads", "init_args": {"attn_drop": 0.25}},
    "a list": ["mien.nn.TalkingHeads", {"class_path": "mien.nn.SelfAttention", "init_args": {"qkv_bias": False}}],
    "one's own": {"class_path": f"{__name__}.Gridded", "init_args": {"share": 0.25}},
    "none": None,
}


@pytest.mark.parametrize("path", ["mien.networks.btn_mobile", f"{__name__}.Tiny"])
@pytest.mark.parametrize("name", BY_NAME)
def test_in_recipes_and_headers(name, path, tmp_path):
    """What a recipe says is built, and what is kept of it in a checkpoint, too."""
    mixer = BY_NAME[name]
    if path.endswith("btn_mobile") and isinstance(mixer, list):
        mixer = mixer[:1]  # it has one block
    recipe = {
        "model": {"class_path": path, "init_args": {"mixer": mixer}},
        "data": {"class_path": "mien.data.Folder", "init_args": {"root": "none"}},
        "task": {"optimizer": {"class_path": "torch.optim.AdamW"}},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    model = parser().parse_args(["--config", str(tmp_path / "recipe.yaml")]).model
    alone = ArgumentParser()  # without the data, of which there is none
    alone.add_subclass_arguments(Network, "model")
    kept = json.loads(json.dumps(plain(model)))
    made = [
        alone.instantiate(Namespace(model=model)).model,
        build(kept, trust=True),
        build(recipe["model"], trust=True),
    ]
    for network in made:
        mixed = [b.attn for b in network.vit.blocks]
        if name in ("a name", "a block"):
            assert all(type(m) is TalkingHeads and m.attn_drop.p == 0.25 * (name == "a block") for m in mixed)
        elif name == "a list":
            assert [type(m) for m in mixed] == [TalkingHeads, SelfAttention][: len(mixed)]
            assert all(m.qkv.bias is None for m in mixed[1:])
        elif name == "one's own":
            assert all(type(m) is Gridded and m.share == 0.25 for m in mixed)
        else:
            assert all(type(m) is SelfAttention for m in mixed)
    if name == "one's own" and path.startswith("mien."):
        with pytest.raises(CheckpointError, match=r"Gridded is not one of mien's networks: trust=True"):
            build(kept)


@pytest.mark.parametrize(
    "mixer, reason",
    [
        ("mien.nn.Gone", "there is no network mien.nn.Gone"),
        (["mien.nn.SelfAttention"] * 2, "mixer is a list of 2 for 1 blocks"),
        (["os.system"], "os.system is not one of mien's networks"),
        ({"class_path": "mien.nn.TalkingHeads", "init_args": {"top_k": 2}}, "unexpected keyword argument 'top_k'"),
        ("full", "mixer must make a mixer, or be a list"),
    ],
)
def test_names_that_are_none(mixer, reason):
    with pytest.raises(CheckpointError, match=reason) as error:
        build({"class_path": "mien.networks.btn_mobile", "init_args": {"mixer": mixer}})
    assert "\n" not in str(error.value)


def test_the_command_names_them(capsys):
    assert main(["list", "mixers"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["mixer", "parameters", "MMAC", "paper"]
    assert [line.split()[0] for line in lines] == [f"mien.nn.{name}" for name in MIXERS]
    assert any("149,568  44.0  Jin et al. 2024  " in line for line in lines)
    assert all(re.search(r"  \S.* (?:(?:19|20)\d\d|arXiv \d{4}\.\d{5})  ", line) for line in lines), lines
    assert {"SelfAttention", "TalkingHeads"} <= MIXERS.keys() and not {"Block", "Attend", "Mlp"} & MIXERS.keys()
    assert all(len(line.split()) > 4 and "`" not in line and "(B," not in line for line in lines), lines


# timm


class TimmAttention(nn.Module):
    """As timm names its parts and calls them."""

    def __init__(self, dim, num_heads, qkv_bias):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, attn_mask=None, is_causal=False):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class TimmBlock(nn.Module):
    def __init__(self, dim, num_heads, qkv_bias):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), TimmAttention(dim, num_heads, qkv_bias)

    def forward(self, x, attn_mask=None, is_causal=False):
        return x + self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)


class TimmViT(nn.Module):
    """24 pixels in 8×8 patches behind a class token."""

    def __init__(self, dim=16, num_heads=4, depth=3, qkv_bias=True):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj, self.patch_embed.grid_size = nn.Conv2d(3, dim, 8, 8), (3, 3)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.blocks = nn.Sequential(*(TimmBlock(dim, num_heads, qkv_bias) for _ in range(depth)))

    def forward(self, images, attn_mask=None):
        x = self.patch_embed.proj(images).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for b in self.blocks:
            x = b(x, attn_mask)
        return x[:, 0]


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_timms_attention_swapped_for_the_same_is_the_same(qkv_bias):
    vit, images = TimmViT(qkv_bias=qkv_bias).eval(), torch.randn(2, 3, 24, 24)
    expected, names = vit(images), vit.state_dict().keys()
    assert swap_attention(vit, partial(SelfAttention, qkv_bias=qkv_bias)) is vit
    assert all(type(b.attn) is SelfAttention and not b.attn.training for b in vit.blocks)
    torch.testing.assert_close(vit(images), expected)
    assert vit.state_dict().keys() == names
    torch.testing.assert_close(swap_attention(vit, SelfAttention)(images), expected)  # mien's own has timm's names, too
    with pytest.raises(ValueError, match="SelfAttention takes tokens alone here, and no attn_mask"):
        vit(images, attn_mask=torch.ones(10, 10, dtype=torch.bool))


def test_other_mixers_in_timms_vit():
    vit, images = TimmViT().double(), torch.randn(2, 3, 24, 24, dtype=torch.float64)
    qkv = vit.blocks[0].attn.qkv.weight.detach().clone()
    swap_attention(vit, [TalkingHeads, Gridded, TimmAttentionFree])
    assert [type(b.attn) for b in vit.blocks] == [TalkingHeads, Gridded, TimmAttentionFree]
    assert torch.equal(vit.blocks[0].attn.qkv.weight, qkv)
    vit(images).sum().backward()
    assert vit.blocks[1].attn.grids == [(3, 3)] and vit.blocks[0].attn.proj_l.weight.grad.dtype == torch.float64
    torch.export.export(vit, (images,))


class TimmAttentionFree(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.qkv = nn.Linear(dim, dim)  # of another shape

    def forward(self, tokens, grid=None):
        return self.qkv(tokens)


def test_what_cannot_be_swapped_is_left_alone():
    vit = TimmViT(depth=2)
    before = [b.attn for b in vit.blocks]
    with pytest.raises(ValueError, match="mixer is a list of 3 for 2 blocks"):
        swap_attention(vit, [SelfAttention] * 3)
    del vit.patch_embed.grid_size
    with pytest.raises(ValueError, match="Gridded needs a grid, and TimmViT has no patch_embed.grid_size"):
        swap_attention(vit, [SelfAttention, Gridded])
    assert [b.attn for b in vit.blocks] == before
    swap_attention(vit, Gridded, grid=(3, 3))
    with pytest.raises(ValueError, match=r"blocks\[0\].attn has no qkv, proj and num_heads"):
        swap_attention(vit, SelfAttention)
    with pytest.raises(ValueError, match="Linear has no blocks"):
        swap_attention(nn.Linear(2, 2), SelfAttention)


def refused(change) -> str:
    """What is said of a ViT that was changed so; and that it is as it was."""
    vit = TimmViT()
    change(vit)
    before = [b.attn for b in vit.blocks]
    with pytest.raises(ValueError) as caught:
        swap_attention(vit, SelfAttention)
    assert [b.attn for b in vit.blocks] == before and "\n" not in str(caught.value)
    return str(caught.value)


def test_attention_that_is_more_than_plain_is_refused_at_once():
    """As in DINOv3 and EVA-02 (rotary, apart or fused), SAM (maps, windows, relative positions), hybrids, BEiT."""

    def with_parameter(name):
        return lambda vit: setattr(vit.blocks[1].attn, name, nn.Parameter(torch.zeros(2)))

    rotary = "has rotary positions, which no mixer here takes"
    assert refused(lambda vit: setattr(vit, "rope", nn.Module())).endswith(f"blocks[0].attn {rotary}")
    assert refused(lambda vit: setattr(vit.blocks[2].attn, "rope", nn.Module())) == f"blocks[2].attn {rotary}"
    for name in ("rel_pos_h", "relative_position_bias_table", "gate"):
        assert refused(with_parameter(name)) == f"blocks[1].attn has {name} of its own, which would be lost"
    normed = refused(lambda vit: setattr(vit.blocks[0].attn, "q_norm", nn.LayerNorm(4)))
    assert normed == "blocks[0].attn has q_norm of its own, which would be lost"
    assert "is given relative positions" in refused(lambda vit: setattr(vit, "rel_pos_bias", nn.Module()))
    assert "works on maps and in windows" in refused(lambda vit: setattr(vit.blocks[0], "window_size", 14))
    assert "works on maps and in windows" in refused(lambda vit: setattr(vit.blocks[0].attn, "use_rel_pos", False))
    assert "has no qkv, proj and num_heads" in refused(lambda vit: setattr(vit.blocks[0].attn, "qkv", None))
    assert "16 / 4 wide" in refused(lambda vit: setattr(vit.blocks[0].attn, "qkv", nn.Linear(16, 96)))
    assert "hybrid stem" in refused(lambda vit: setattr(vit.patch_embed, "backbone", nn.Module()))
    hybrid = TimmViT()
    hybrid.patch_embed.backbone = nn.Identity()
    swap_attention(hybrid, Gridded, grid=(3, 3))
    assert hybrid(torch.randn(1, 3, 24, 24)).shape == (1, 16)


def test_beits_separate_biases_are_kept_or_refused():
    vit, images = TimmViT(qkv_bias=True).eval(), torch.randn(2, 3, 24, 24)
    for b in vit.blocks:
        b.attn.qkv.bias.data[16:32] = 0  # BEiT has none of k
    expected = vit(images)

    def as_beit(vit):
        for b in vit.blocks:
            q, _, v = b.attn.qkv.bias.detach().chunk(3)
            b.attn.q_bias, b.attn.v_bias, b.attn.qkv.bias = nn.Parameter(q), nn.Parameter(v), None

    as_beit(vit)
    with pytest.raises(ValueError, match="the bias of qkv or proj would be lost"):
        swap_attention(vit, partial(SelfAttention, qkv_bias=False))
    torch.testing.assert_close(swap_attention(vit, SelfAttention)(images), expected)


def test_poster_takes_a_mixer():
    sizes = {"dims": (8, 8, 8), "head_dim": 4, "embed_dim": 16, "num_heads": 4}
    network = Poster(image=Trunk(), landmarks=Trunk(), num_classes=3, mixer=Gridded, **sizes)
    assert network.eval()(faces(1)).shape == (1, 3) and network.vit.blocks[0].attn.grids == [(7, 7)]


# between the blocks


@pytest.mark.parametrize("name", ["btn", "btn, pooled", "apvit", "cait", "arbex"])
def test_intermediates_are_timms(name):
    """What each block gives, as tokens or as maps; the final ones are what the head's vector is read from."""
    makes = {
        "btn": lambda: Tiny(),
        "btn, pooled": lambda: Tiny(pool=partial(ClassAttentionPool, num_heads=2, depth=1)),
        "apvit": lambda: Patches(),
        "cait": lambda: CaiT(num_classes=3, img_size=112, embed_dim=16, depth=4, num_heads=4),
        "arbex": lambda: ARBEx(body=Tiny()),
    }
    network, images, seen = stir(makes[name]()).eval(), faces(2), []
    blocks = network.blocks if name == "cait" else (network.body if name == "arbex" else network).vit.blocks
    hooks = [b.register_forward_hook(lambda _, __, out: seen.append(out)) for b in blocks]
    features = network.forward_features(images)
    final, maps = network.forward_intermediates(images)
    for hook in hooks:
        hook.remove()
    half, depth = seen[: len(blocks)], len(blocks)
    prefix = 0 if name in ("cait", "btn, pooled") else 1
    side = {"apvit": (14, 14), "cait": (7, 7)}.get(name, (21, 7))
    assert len(maps) == depth
    for out, each in zip(half, maps, strict=True):
        assert torch.equal(each, out[:, prefix:].mT.unflatten(2, side))
    if name == "apvit":
        torch.testing.assert_close(final[:, 0], features)
    elif name == "cait":
        torch.testing.assert_close(final[:, 0], features)
        assert final.shape == (2, 1 + 49, 16)
    last = network.forward_intermediates(
        images, indices=1, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    assert [tuple(x.shape[1] for x in pair) for pair in last] == [(half[-1].shape[1] - prefix, prefix)]
    assert torch.equal(torch.cat(last[0][::-1], 1), half[-1])
    normed, [first] = network.forward_intermediates(images, indices=[-depth], norm=True, stop_early=True)
    assert normed.shape == final.shape and not torch.allclose(normed, final) and first.isfinite().all()
    with pytest.raises(ValueError, match=f"indices \\[{depth}\\] are not of {depth} blocks"):
        network.forward_intermediates(images, indices=[depth])
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW' or 'NLC', not 'NHWC'"):
        network.forward_intermediates(images, output_fmt="NHWC")


def test_intermediates_without_a_grid_or_without_blocks():
    network = stir(Patches(keep_patches=50, keep_rate=0.5)).eval()
    with pytest.raises(ValueError, match="50 tokens lie on no grid: output_fmt must be 'NLC'"):
        network.forward_intermediates(faces(1))
    _, found = network.forward_intermediates(faces(1), output_fmt="NLC")
    assert [x.shape[1] for x in found] == [50, 50, 25, 12]
    with pytest.raises(ValueError, match="PlainClassifier has no blocks"):
        mobilefacenet().forward_intermediates(faces(1))
