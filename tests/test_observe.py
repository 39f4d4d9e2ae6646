"""Looking at attention and moving it: names, what is seen, what rules do, and what is left when nobody looks."""

import copy
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from mien.errors import MienError
from mien.networks import ViT, btn_mobile
from mien.nn import (
    CAM,
    CMHA,
    GAAM,
    PAM,
    RCMHA,
    Attend,
    Axial,
    Block,
    ChannelAttention,
    CosineMoH,
    Grassmann,
    Halo,
    Layout,
    LookError,
    MaxViTBlockAttention,
    MaxViTGridAttention,
    MoH,
    Neighborhood,
    SelfAttention,
    Sparsifiner,
    SpectralGate,
    TalkingHeads,
    TiC,
    WindowAttention,
    intervene,
    observe,
)
from mien.nn.observe import attentions

GRID = (3, 4)
MIXERS = {  # every family, at the size of a test
    "self": SelfAttention,
    "talking heads": TalkingHeads,
    "moh": partial(MoH, skip=True),
    "cosine moh": CosineMoH,
    "sparsifiner": partial(Sparsifiner, num_tokens=25, keep=0.5),
    "gaam": GAAM,
    "cmha, axial": partial(CMHA, axial=True),
    "rcmha, grid": partial(RCMHA, grid=GRID),
    "pam": partial(PAM, init_values=0.5),
    "cam": partial(CAM, init_values=0.5),
    "channels": ChannelAttention,
    "axial": Axial,
    "windows": partial(WindowAttention, window_size=2),
    "tic": TiC,
    "maxvit block": partial(MaxViTBlockAttention, window_size=2),
    "maxvit grid": partial(MaxViTGridAttention, window_size=2),
    "halo": partial(Halo, block_size=2, halo_size=1),
    "neighborhood": partial(Neighborhood, kernel_size=2, rel_pos_bias=True),
}
WITHOUT = {"gate": partial(SpectralGate, grid=GRID), "grassmann": partial(Grassmann, rank=4, offsets=((0, 1), (1, 0)))}


def same(stage, tensor, layout):
    return tensor + 0


def vit(mixer=None, depth=3):
    torch.manual_seed(0)
    return ViT(num_classes=3, num_tokens=24, embed_dim=8, depth=depth, num_heads=2, mixer=mixer, grid=GRID).eval()


TOKENS = torch.randn(2, 24, 8, generator=torch.Generator().manual_seed(1))


# names


def test_patterns_are_of_module_names_and_a_block_means_its_attention():
    network = vit()
    for patterns, names in {
        (): ["blocks.0", "blocks.1", "blocks.2"],
        ("blocks.*",): ["blocks.0", "blocks.1", "blocks.2"],
        ("blocks.1",): ["blocks.1"],
        ("blocks.1.attn", "*.2.attn.attend"): ["blocks.1", "blocks.2"],
        ("block[sz]",): ["blocks.0", "blocks.1", "blocks.2"],
    }.items():
        with observe(network, *patterns) as seen:
            assert seen == {}
            network(TOKENS)
        assert list(seen) == names
    with pytest.raises(MienError, match="blocks.9: no module of ViT has such a name"), observe(network, "blocks.9"):
        pass
    assert list(attentions(vit([Axial, SelfAttention], 2))) == [
        "blocks.0.attn.columns",
        "blocks.0.attn.rows",
        "blocks.1",
    ]
    assert list(attentions(SelfAttention(8, 2))) == list(attentions(Attend())) == ["attend"]
    assert list(attentions(Block(8, 2))) == ["attn"]


def test_who_has_no_attention_is_named():
    network = vit([WITHOUT["gate"], SelfAttention, WITHOUT["grassmann"]])
    for pattern, message in {
        "blocks.7": "blocks.7: no module of ViT has such a name; attention of ViT is in blocks.1",
        "blocks.0": "blocks.0: SpectralGate forms no attention; attention of ViT is in blocks.1",
        "blocks.2": "blocks.2: Grassmann forms no attention; attention of ViT is in blocks.1",
        "head": "head: Linear forms no attention; attention of ViT is in blocks.1",
    }.items():
        for look in (observe(network, "*", pattern), intervene(network, {pattern: same})):
            with pytest.raises(LookError) as caught, look:
                pass
            assert str(caught.value) == message
    with pytest.raises(LookError, match="^Linear forms no attention anywhere$"), observe(nn.Linear(2, 2)):
        pass


# what is seen


@pytest.mark.parametrize("name", MIXERS)
def test_a_rule_acts_in_every_stage_of_every_mixer(name):
    """In train and in eval, under autocast, forward and backward; and a face is never told of another."""
    torch.manual_seed(0)
    mixer, tokens = MIXERS[name](8, 2).double(), torch.randn(2, 25, 8, dtype=torch.float64, requires_grad=True)
    layouts = set()

    def half(wanted, stage, tensor, layout):
        layouts.add(layout)
        return tensor * 0.5 if stage == wanted else tensor

    for mode in (True, False):
        mixer.train(mode)
        plain = mixer(tokens, GRID)
        with intervene(mixer, {"*": same}):
            torch.testing.assert_close(mixer(tokens, GRID), plain, atol=1e-12, rtol=0)
        gradients = [torch.autograd.grad(plain.square().sum(), tokens)[0]]
        for stage in ("scores", "attn", "heads"):
            with intervene(mixer, {"*": partial(half, stage)}):
                moved = mixer(tokens, GRID)
            assert (moved - plain).abs().max() > 1e-6, stage
            gradients.append(torch.autograd.grad(moved.square().sum(), tokens)[0])
        assert all((grad - gradients[0]).abs().max() > 1e-6 for grad in gradients[1:])
        assert torch.equal(mixer(tokens, GRID), plain)
    kinds = {"channels": "channel", "cam": "channel"}
    grids = (None, GRID) if name in ("gaam", "channels", "cam") else (GRID,)
    [layout] = layouts
    assert layout.kind == kinds.get(name, "token") and layout.grid in grids
    if layout.grid:
        assert (layout.prefix, layout.planes) == (1, 2)
    mixer.float()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = mixer(tokens.float(), GRID)
        with intervene(mixer, {"*": same}), observe(mixer) as seen:
            torch.testing.assert_close(mixer(tokens.float(), GRID), rounded, atol=0.05, rtol=0.05)
    assert all(look.attn.isfinite().all() for look in seen.values())


def test_windows_are_seen_as_if_they_were_dense():
    """Which pairs have a score: of a block of MaxViT's, of a neighborhood, and of the prefix, which sees all."""
    places = [(y, x) for y in range(3) for x in range(4)]
    near = {
        "maxvit block": lambda a, b: (a[0] // 2, a[1] // 2) == (b[0] // 2, b[1] // 2),
        "maxvit grid": lambda a, b: (a[0] % 2, a[1] % 2) == (b[0] % 2, b[1] % 2),
        "tic": lambda a, b: abs(a[0] - b[0]) < 2 and abs(a[1] - b[1]) < 2,
        "axial": lambda a, b: a[1] == b[1],
        "halo": lambda a, b: all(2 * (q // 2) - 1 <= k <= 2 * (q // 2) + 2 for q, k in zip(a, b, strict=True)),
    }

    for name, inside in near.items():
        mixer = MIXERS[name](8, 2)
        with observe(mixer) as seen:
            mixer(torch.randn(2, 1 + 24, 8), GRID)
        scores = next(iter(seen.values())).scores
        assert scores.shape == (2, 2, 25, 25)
        plane = torch.tensor([[inside(a, b) for b in places] for a in places])
        expected = torch.zeros(25, 25, dtype=torch.bool)
        expected[0] = expected[:, 0] = True
        expected[1:13, 1:13] = expected[13:, 13:] = plane
        assert torch.equal(scores[0, 0] > -torch.inf, expected), name


def test_scores_and_heads_are_those_of_the_formula():
    mixer, tokens = SelfAttention(8, 2), torch.randn(2, 5, 8)
    with observe(mixer) as seen:
        out = mixer(tokens)
    look = seen["attend"]
    q, k, v = mixer.split(tokens)
    torch.testing.assert_close(look.scores, q @ k.mT / 2)
    torch.testing.assert_close(look.attn, look.scores.softmax(-1))
    torch.testing.assert_close(look.heads, look.attn @ v)
    assert torch.equal(mixer.join(look.heads), out) and look.layout == Layout("token")
    grad = torch.autograd.grad(out.sum(), look.attn)[0]  # what is seen keeps its graph
    assert grad.shape == look.attn.shape and grad.abs().max() > 0


def test_the_last_forward_is_kept_and_only_what_was_wanted():
    network = vit()
    with observe(network, "blocks.0", stages=["attn"]) as seen:
        network(TOKENS)
        first = seen["blocks.0"]
        network(TOKENS[:1])
    assert first.attn.shape == (2, 2, 25, 25) and first.scores is None and first.heads is None
    assert seen["blocks.0"].attn.shape == (1, 2, 25, 25)


def test_what_is_seen_is_what_was_used():
    network, zero = vit(), lambda stage, x, _: torch.zeros_like(x) if stage == "scores" else x
    with observe(network, "blocks.1") as seen, intervene(network, {"blocks.1": zero, "blocks.*": same}):
        network(TOKENS)
    torch.testing.assert_close(seen["blocks.1"].attn, torch.full((2, 2, 25, 25), 1 / 25))


# rules


def test_a_rule_of_uniform_attention_is_the_mean_of_values_forward_and_backward():
    mixer, tokens = SelfAttention(8, 2).double(), torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    out = mixer.join(mixer.split(tokens)[2].mean(2, keepdim=True).expand(-1, -1, 5, -1))
    expected = torch.autograd.grad(out.square().sum(), [tokens, *mixer.proj.parameters()])
    with intervene(mixer, {"*": lambda stage, x, _: torch.full_like(x, 0.2) if stage == "attn" else x}):
        moved = mixer(tokens)
    torch.testing.assert_close(moved, out)
    torch.testing.assert_close(torch.autograd.grad(moved.square().sum(), [tokens, *mixer.proj.parameters()]), expected)


@pytest.mark.parametrize(
    "stage, wrong, message",
    [
        ("attn", lambda x: x[:, :1], r"the rule returned attn of shape \(2, 1, 25, 25\), not \(2, 2, 25, 25\)$"),
        ("scores", lambda x: x.double(), "scores of dtype torch.float64, not torch.float32$"),
        ("heads", lambda x: None, "the rule returned no tensor for heads, but NoneType$"),
        ("attn", lambda x: x / 0, "the rule returned attn that are not finite$"),
        ("scores", lambda x: x * torch.nan, "scores that are not finite$"),
        ("scores", lambda x: x + torch.inf, "scores that are not finite$"),
        ("scores", lambda x: x - torch.inf, "scores that are not finite$"),
    ],
)
def test_what_a_rule_may_not_return(stage, wrong, message):
    network = vit()
    expected = network(TOKENS)
    rule = {"blocks.1": lambda name, x, _: wrong(x) if name == stage else x}
    with pytest.raises(LookError, match=f"^blocks.1: .*{message}") as caught, intervene(network, rule):
        network(TOKENS)
    assert "\n" not in str(caught.value)
    assert torch.equal(network(TOKENS), expected)
    hide = {"*": lambda name, x, _: x.masked_fill(torch.arange(25) == 3, -torch.inf) if name == "scores" else x}
    with intervene(network, hide):  # a key that nobody sees is no fault
        assert network(TOKENS).isfinite().all()


def test_stages_and_rules_that_are_none():
    network = vit()
    with pytest.raises(LookError, match="the stages of attention are scores, attn, heads, not 'weights'"):
        observe(network, stages=["weights"]).__enter__()
    network.blocks[1].attn.attend.stages = ("attn", "heads")
    with pytest.raises(LookError, match="blocks.1 has no scores: its stages are attn, heads"):
        intervene(network, {"*": same}, stages=["scores"]).__enter__()
    with pytest.raises(LookError, match="a rule is a function"):
        intervene(network, {"*": torch.zeros(1)}).__enter__()
    assert not any("watchers" in part.__dict__ for part in network.modules())


# what is left behind


def test_nothing_is_left_behind():
    network = vit()
    expected = network(TOKENS)
    with pytest.raises(RuntimeError), observe(network), intervene(network, {"blocks.0": same}):
        raise RuntimeError
    with observe(network) as outer:
        with observe(network, "blocks.0") as inner, intervene(network, {"blocks.2": same}):
            network(TOKENS)
            again = copy.deepcopy(network)
        assert network.blocks[0].attn.attend.open and not again.blocks[0].attn.attend.open
        network(TOKENS[:1])
    assert outer["blocks.0"].attn.shape[0] == 1 and inner["blocks.0"].attn.shape[0] == 2
    for part in (*network.modules(), *again.modules()):
        assert "watchers" not in part.__dict__
    assert torch.equal(network(TOKENS), expected) and network.state_dict().keys() == vit().state_dict().keys()


def test_two_threads_look_at_two_networks():
    networks, shapes, wait = [vit(), vit()], [set(), set()], threading.Barrier(2, timeout=60)

    def look(number):
        with observe(networks[number], "blocks.0") as seen:
            wait.wait()
            for _ in range(20):
                networks[number](TOKENS[: number + 1])
                shapes[number].add(seen["blocks.0"].attn.shape[0])
            wait.wait()

    threads = [threading.Thread(target=look, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shapes == [{1}, {2}]
    assert not any("watchers" in part.__dict__ for network in networks for part in network.modules())


# compilers


def test_refused_where_a_program_is_made():
    network = SelfAttention(8, 2)
    compiled, tokens = torch.compile(network, backend="eager"), torch.randn(1, 5, 8)
    with pytest.raises(LookError, match="^attention of a compiled network cannot be seen or moved"):
        observe(compiled).__enter__()
    message = "^attention cannot be seen or moved under torch.compile and torch.export$"
    with pytest.raises(LookError, match=message), observe(network):
        compiled(tokens)
    with pytest.raises(LookError, match=message), observe(network):
        torch.export.export(network, (tokens,))
    torch.testing.assert_close(compiled(tokens), network(tokens))


@pytest.mark.parametrize("name", MIXERS | WITHOUT)
def test_compiled_for_two_grids(name):
    make = (MIXERS | WITHOUT)[name]
    torch.manual_seed(0)
    torch.compiler.reset()
    mixer = make(8, 2)
    backend = "aot_eager" if name in ("self", "halo", "moh", "sparsifiner") else "eager"  # the first compiles gradients
    compiled = torch.compile(mixer, backend=backend, fullgraph=True)
    for grid in (GRID, (4, 3)):
        if name == "rcmha, grid" and grid != GRID:
            grid = (2, 4)
        count = 25 if name == "sparsifiner" else 1 + grid[0] * grid[1]
        tokens = torch.randn(1, count, 8, requires_grad=True)
        answers = []
        for module in (mixer, compiled):
            out = module(tokens, grid)
            loss = out.square().sum() + (getattr(mixer, "aux_loss", None) or 0)
            answers.append([out, *torch.autograd.grad(loss, [tokens, *mixer.parameters()], allow_unused=True)])
        for a, b in zip(*answers, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_network_by_block():
    network, images = btn_mobile().eval(), torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        expected = network(images)
        with observe(network, "vit.blocks.*") as seen:
            network(images)
        assert list(seen) == ["vit.blocks.0"] and seen["vit.blocks.0"].layout == Layout("token", 1, 3, (7, 7))
        uniform = {"vit.blocks.0": lambda stage, x, _: torch.full_like(x, 1 / 148) if stage == "attn" else x}
        with intervene(network, uniform):
            assert (network(images) - expected).abs().max() > 0
        assert torch.equal(network(images), expected)


def test_the_page_on_attention():
    page = (Path(__file__).parents[1] / "docs" / "attention.md").read_text()
    exec(page.partition("```python\n")[2].partition("```")[0], {})
