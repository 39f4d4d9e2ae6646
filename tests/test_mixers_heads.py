"""Mixers that weigh heads, tokens or numbers, against other people's numbers, and what they promise besides."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from published import GOLDEN, rng
from torch import nn

from mien.nn import CMHA, GAAM, RCMHA, CosineMoH, GAAMBlock, MoH, SelfAttention, Sparsifiner, observe

near = partial(torch.testing.assert_close, atol=1e-12, rtol=0)


def noise(name, *shape):
    return torch.from_numpy(rng(name).standard_normal(shape).astype(np.float32))


def by_rule(module, names, dtype=torch.float32):
    """0.2 · noise by their names, which are given for each of ours; widths of Gaussians are 1 more."""
    state = module.state_dict()
    for ours, theirs in names.items():
        rest, parts = state[ours], []
        sizes = [len(rest) // len(theirs)] * len(theirs) if isinstance(theirs, list) else theirs.values()
        for name, size in zip(theirs, sizes, strict=True):
            one = name.endswith(("mean_offsets", ".c"))  # a vector of one head, a row of ours
            z = 0.2 * noise(name, *(rest.shape[1:] if one else (size, *rest.shape[1:])))
            parts.append((1 + z if name.endswith(".c") else z).view(size, *rest.shape[1:]))
        state[ours] = torch.cat(parts)
    assert state.keys() == names.keys()
    module.load_state_dict(state)
    return module.to(dtype)


PROJECTED = {name: [name] for name in ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")}


def moh(routers, **options):
    return by_rule(MoH(64, 8, **options), PROJECTED | {"router.weight": routers})


def cosine():
    same = ("query_embedding", "temperature", "cpb_fc1.weight", "cpb_fc1.bias", "cpb_fc2.weight", "cpb_fc2.bias")
    routers = {"router.weight": {"wg.weight": 6, "wg_1.weight": 2, "wg_0.weight": 2}}
    mixer = by_rule(CosineMoH(64, 8, 2, 3), PROJECTED | {name: [name] for name in same} | routers)
    line = torch.linspace(-1, 1, 13)  # the layer was handed this table
    mixer.offsets = lambda grid, like: torch.cartesian_prod(line, line)
    return mixer


def sparsifiner(dim, heads, **options):
    theirs = {"reduce_tokens": "proj_n", "basis": "proj_back_n"}
    for kind in "qk":
        theirs |= {f"reduce_{kind}.{leaf}": f"proj_c_{kind}.{leaf}" for leaf in ("weight", "bias")}
    names = PROJECTED | {ours: [f"mask_predictor.{name}"] for ours, name in theirs.items()}
    return by_rule(Sparsifiner(dim, heads, **options), names)


def gaam(num_heads, gaussians, prefix="", **options):
    names = {leaf: [f"{prefix}attention_heads.{i}.{leaf}" for i in range(num_heads)] for leaf in ("mean_offsets", "c")}
    return by_rule(GAAM(64, num_heads, gaussians, **options), names)


def gaam_block():
    layers = ("tokens", 4, 5), ("channels", 4, 3), ("tokens", 2, 2)
    return GAAMBlock(
        gaam(num_heads, gaussians, f"layers.{i}.", axis=axis, heads=axis)
        for i, (axis, num_heads, gaussians) in enumerate(layers)
    )


ROUTED = {"wg.weight": 6, "wg_1.weight": 2, "wg_0.weight": 2}
ALONG = {"axis1": "tokens", "axis2": "channels"}
CASES = {
    "moh_shared0_routed4of8": (lambda: moh(["wg.weight"], num_shared=0, top_k=4).train(), "moh/x"),
    "moh_shared2_routed3of6": (lambda: moh(ROUTED, num_shared=2, top_k=3).train(), "moh/x"),
    "moh_shared2_routed3of6_eval": (lambda: moh(ROUTED, num_shared=2, top_k=3).eval(), "moh/x"),
    "moh_shared2_routed3of6_eval, skipping": (lambda: moh(ROUTED, num_shared=2, top_k=3, skip=True).eval(), "moh/x"),
    "moh_shared8_routed0": (lambda: moh(["wg_1.weight"], num_shared=8).eval(), "moh/x"),
    "moh_vit_cosine": (lambda: cosine().eval(), "moh/x"),
    "sparsifiner_n50_k025": (lambda: sparsifiner(64, 4, num_tokens=50, rank=12).eval(), None),
    "sparsifiner_n197_k025": (lambda: sparsifiner(32, 2).eval(), None),
    "sparsifiner_n50_recon_train": (lambda: sparsifiner(64, 4, num_tokens=50, rank=12, dense=True).train(), None),
    "gaam_mh_axis1": (lambda: gaam(4, 3, axis="tokens", heads="tokens"), None),
    "gaam_mh_axis2": (lambda: gaam(4, 3, axis="channels"), None),
    "gaam_mh_pad0": (lambda: gaam(4, 2, heads="tokens", padding_value=0.0), None),
    "gaam_block3": (gaam_block, None),
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "mixers_heads.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def answers(case):
    """What the golden numbers are compared with, by their names."""
    make, source = CASES[case]
    name = case.partition(",")[0]
    mixer, seen = make(), {}
    shape = (1, 197, 32) if "n197" in name else (2, 50, 64) if "n50" in name else (2, 49, 64)
    x = noise(source or f"{name}/x", *shape)
    if name == "gaam_mh_pad0":
        x[:, 40:] = 0
    if isinstance(mixer, Sparsifiner):
        mixer.mask.register_forward_hook(lambda _, __, mask: seen.update(mask=mask))
        guess = mixer.guess
        mixer.guess = lambda *a, **k: seen.setdefault("approx", guess(*a, **k))
    out = mixer(x.requires_grad_(), (7, 7))
    (out * noise(f"{name}/probe", *shape)).sum().backward()
    seen |= {"out": out, "grad_x": x.grad}
    if getattr(mixer, "aux_loss", None) is not None and isinstance(mixer, MoH):
        seen["aux"] = mixer.aux_loss
    return {key: value.detach() for key, value in seen.items()}


@pytest.mark.parametrize("case", CASES)
def test_published_numbers(golden, case):
    name = case.partition(",")[0]
    ours = answers(case)
    assert {f"{name}.{key}" for key in ours} == {key for key in golden if key.startswith(f"{name}.")}
    for key, value in ours.items():
        expected = golden[f"{name}.{key}"]
        if key == "mask":
            assert np.array_equal(np.packbits(value.numpy()), expected.numpy())
        else:
            near(value.flatten()[::7], expected, atol=1e-5 * value.abs().max().item())


# MoH


def tokens_of(n=9, dim=16, batch=3):
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(n))


def plain_and(mixer, dim=16, heads=4):
    """A self-attention with the same weights."""
    plain = SelfAttention(dim, heads).double()
    own = mixer.state_dict()
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    return plain


@pytest.mark.parametrize("shared", [0, 1, 2, 4])
def test_equal_router_logits_are_plain_attention(shared):
    mixer = MoH(16, 4, shared, 4 - shared).double()
    nn.init.zeros_(mixer.router.weight)
    plain = plain_and(mixer)
    near(mixer(tokens_of()), plain(tokens_of()))
    if shared < 3:  # of heads that nobody asks nothing is left
        mixer.top_k = 1
        mixer.train()
        gates = mixer.gates(tokens_of())
        assert ((gates == 1) == (gates > 0)).all() and (gates.sum(-1) == shared + 1).all()
        assert mixer.aux_loss.item() == pytest.approx(1)
    assert (mixer.aux_loss is None) == (shared == 4)
    assert mixer.eval().aux_loss is None


def test_load_balance():
    mixer = MoH(8, 4, 0, 2).double()
    with torch.no_grad():
        mixer.router.weight.copy_(torch.eye(4, 8) * 50)
    each = torch.eye(8, dtype=torch.float64)[:4]
    pairs = torch.stack([each[i] + each[j] for i, j in ((0, 1), (1, 2), (2, 3), (3, 0))])
    mixer(pairs[None])
    assert mixer.aux_loss.item() == pytest.approx(2)  # every head is asked by half, and has a quarter of p
    mixer(pairs[:1].expand(1, 4, 8))
    assert mixer.aux_loss.item() == pytest.approx(4)  # two heads have all
    mixer.aux_loss.backward()
    assert mixer.router.weight.grad.isfinite().all()


@pytest.mark.parametrize("options", [(1, 2), (0, 1), (2, 2), (3, 1), (4, 0)], ids=str)
def test_skipping_is_the_same_and_skips(options):
    dense = MoH(16, 4, *options).double().eval()
    skipping = MoH(16, 4, *options, skip=True).double().eval()
    with torch.no_grad():
        dense.router.weight.mul_(10)  # far from balance
    skipping.load_state_dict(dense.state_dict())
    shared, top_k = options
    asked = []
    skipping.attend.register_forward_pre_hook(lambda _, given: asked.append(given[0].shape[:3].numel()))
    for batch in (1, 3):
        x = tokens_of(batch=batch)
        asked.clear()
        near(skipping(x), dense(x))
        if batch == 1:
            assert sum(asked) == 9 * (shared + top_k)  # not a query more
        else:
            assert 27 * (shared + top_k) <= sum(asked) <= 27 * 4
    grads = []
    for mixer in (dense, skipping):
        x = tokens_of().requires_grad_()
        mixer(x).square().sum().backward()
        grads.append(x.grad)
    near(*grads)
    asked.clear()
    skipping.train()(tokens_of())
    with observe(skipping.eval()):
        skipping(tokens_of())
    assert asked == [108, 108]


def published_offsets(size):
    """Of MoH-ViT's network: the sorted table, and where each pair (query, key) stands in it."""
    y, x = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, size), indexing="ij"))
    r = [8 * (line[:, None] - line[None]).double() / (n - 1) for line, n in zip((y, x), size, strict=True)]
    table, index = torch.unique(torch.stack(r, -1).view(-1, 2), return_inverse=True, dim=0)
    return table.sign() * (table.abs() + 1).log2() / math.log2(8), index.view(y.numel(), -1)


@pytest.mark.parametrize("grid", [(7, 7), (3, 5)], ids=str)
def test_the_bias_of_cosine_moh_is_of_logarithms_of_offsets(grid):
    mixer = CosineMoH(16, 4).double()
    table, index = published_offsets(grid)
    near(mixer.offsets(grid, tokens_of()), table)
    assert mixer.float().offsets(grid, tokens_of()).dtype == torch.float32
    mixer.double().query_embedding.data.zero_()
    x = tokens_of(grid[0] * grid[1])
    with observe(mixer) as seen:
        mixer(x, grid)
    q, k, _ = mixer.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    scale = torch.nn.functional.softplus(mixer.temperature) * math.log(grid[0] * grid[1])
    cosine = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).mT
    bias = mixer.cpb_fc2(mixer.cpb_fc1(table).relu())[index].permute(2, 0, 1)
    near(seen["attend"].scores, scale * cosine + bias)
    assert mixer(x[:, :3], (1, 3)).isfinite().all()  # along an axis of one there are no offsets


def test_moh_refuses():
    with pytest.raises(ValueError, match="of 4 heads 5 cannot be shared"):
        MoH(16, 4, 5)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"of 3 routed heads a token cannot use {wrong}"):
            MoH(16, 4, 1, wrong)
    with pytest.raises(ValueError, match="not a multiple of num_heads"):
        MoH(16, 3)
    with pytest.raises(ValueError, match="CosineMoH works on a grid"):
        CosineMoH(16, 4).double()(tokens_of())


def grid_mixers():
    yield CosineMoH(16, 4).double()
    mixer = RCMHA(16, 4, grid=(3, 4)).double()
    for p in (mixer.relative_key, mixer.relative_bias, mixer.query_bias):
        nn.init.normal_(p)
    yield mixer
    yield CMHA(16, 4, axial=True).double()


@pytest.mark.parametrize("which", [0, 1, 2], ids=["cosine moh", "rcmha", "cmha"])
def test_planes_are_mixed_alone_and_the_prefix_with_all(which):
    mixer = list(grid_mixers())[which].eval()
    x = tokens_of(1 + 2 * 12, batch=2).requires_grad_()
    out = mixer(x, (3, 4))

    def reads(token):
        (grad,) = torch.autograd.grad(out[:, token].square().sum(), x, retain_graph=True)
        return grad.abs().sum((0, 2)) > 1e-9

    assert reads(0).all()
    first = reads(5)
    assert first[:13].all() and not first[13:].any()
    last = reads(20)
    assert last[0] and last[13:].all() and not last[1:13].any()
    swapped = torch.cat([x[:, :1], x[:, 13:], x[:, 1:13]], dim=1)
    near(mixer(swapped, (3, 4)), torch.cat([out[:, :1], out[:, 13:], out[:, 1:13]], dim=1))
    alone = mixer(x[:, 1:13], (3, 4))
    near(mixer(x[:, 1:], (3, 4))[:, :12], alone)


# Sparsifiner


def test_everything_kept_is_full_attention():
    mixer = Sparsifiner(16, 4, num_tokens=9, keep=1.0).double()
    plain = plain_and(mixer)
    near(mixer(tokens_of()), plain(tokens_of()))
    near(mixer.eval()(tokens_of()), plain(tokens_of()))
    sparse = Sparsifiner(16, 4, num_tokens=9, keep=0.3, dense=True).double()
    sparse.load_state_dict(mixer.state_dict())
    near(sparse(tokens_of()), plain(tokens_of()))  # the published first phase
    assert (sparse.eval()(tokens_of()) - plain(tokens_of())).abs().max() > 1e-3


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_the_mask_is_seen_and_obeyed(prefix):
    mixer, seen = Sparsifiner(16, 4, num_tokens=9, keep=0.3, num_prefix=prefix).double().eval(), {}
    mixer.mask.register_forward_hook(lambda _, __, mask: seen.update(mask=mask))
    with observe(mixer) as looks:
        out = mixer(tokens_of())
    assert torch.equal(looks["attend"].attn > 0, seen["mask"])
    counts = seen["mask"].sum(-1)
    assert (counts[:, :, :prefix] == 9).all() and (counts[:, :, prefix:] == 3).all()
    mixer.mask.register_forward_hook(lambda _, __, mask: torch.ones_like(mask))
    near(mixer(tokens_of()), plain_and(mixer)(tokens_of()))
    assert (mixer(tokens_of()) - out).abs().max() > 1e-3


def test_the_predictor_learns_from_its_loss_alone():
    mixer = Sparsifiner(16, 4, num_tokens=9).double()
    predictor = [mixer.reduce_tokens, mixer.basis, *mixer.reduce_q.parameters(), *mixer.reduce_k.parameters()]
    assert mixer.aux_loss is None
    out = mixer(tokens_of())
    assert all(grad is None for grad in torch.autograd.grad(out.sum(), predictor, retain_graph=True, allow_unused=True))
    own = mixer.aux_loss
    of_attn = [mixer.qkv.weight]
    (grad,) = torch.autograd.grad(own, of_attn, retain_graph=True)
    fixed = Sparsifiner(16, 4, num_tokens=9, detach_attn=True).double()
    fixed.load_state_dict(mixer.state_dict())
    fixed(tokens_of())
    near(fixed.aux_loss, own)
    (guessed,) = torch.autograd.grad(fixed.aux_loss, [fixed.qkv.weight])
    q, k, _ = mixer.qkv(tokens_of()).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    error = mixer.guess(q, k, exact=True).detach() - (q @ k.mT / 2).softmax(-1)[:, :, 1:]
    near(grad - guessed, torch.autograd.grad(error.square().sum() / 3, of_attn)[0])  # as published, attn learns, too
    assert all(grad.abs().max() > 0 for grad in torch.autograd.grad(own, predictor))
    teacher = torch.rand(3, 4, 9, 9, dtype=torch.float64).softmax(-1)
    mixer.teacher_attn = teacher
    mixer(tokens_of())
    q, k, _ = mixer.qkv(tokens_of()).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    expected = (mixer.guess(q, k, exact=True) - teacher[:, :, 1:]).square().sum() / 3
    near(mixer.aux_loss, expected)
    mixer(tokens_of())
    near(mixer.aux_loss, own)  # a teacher speaks once
    optimizer = torch.optim.Adam(predictor, lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        mixer(tokens_of())
        mixer.aux_loss.backward()
        optimizer.step()
    assert mixer.aux_loss < 0.5 * own
    assert mixer.eval().aux_loss is None


def test_sparsifiner_refuses():
    with pytest.raises(ValueError, match=r"Sparsifiner\(num_tokens=197\) was given 9 tokens"):
        Sparsifiner(16, 4)(torch.zeros(1, 9, 16))
    with pytest.raises(ValueError, match="keep must be above 0 and at most 1"):
        Sparsifiner(16, 4, keep=0.0)
    with pytest.raises(ValueError, match="must be above 0"):
        Sparsifiner(16, 4, num_tokens=1)


# GAAM


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"mixture": True}, {"axis": "channels"}, {"heads": "tokens"}], ids=str)
def test_gaam_is_finite_where_everything_is_equal(options, dtype):
    mixer = GAAM(16, 2, 20, **options).to(dtype)  # a product of 20 densities is 0, but in logarithms
    nn.init.normal_(mixer.mean_offsets)
    for value in (0.0, 3.0):
        x = torch.full((2, 8, 16), value, dtype=dtype, requires_grad=True)
        out = mixer(x)
        length = {"axis": 8, "heads": 4}.get(next(iter(options), ""), 8)
        near(out, torch.full_like(out, value / length), atol=0.01)
        out.sum().backward()
        assert all(p.grad.isfinite().all() for p in (x, *mixer.parameters()))
    out = mixer(10 * torch.randn(2, 8, 16).to(dtype))
    assert out.isfinite().all() and out.abs().max() > 0


def test_gaussians():
    x = tokens_of()
    three, one = GAAM(16, 4, 3).double(), GAAM(16, 4, 1).double()
    nn.init.normal_(three.mean_offsets)
    with torch.no_grad():  # a product of Gaussians is a Gaussian
        precision = three.c**-2
        one.c.copy_(precision.sum(1, keepdim=True) ** -0.5)
        one.mean_offsets.copy_((three.mean_offsets * precision).sum(1, keepdim=True) * one.c**2)
    near(three(x), one(x))
    three.mixture = True  # as a sum
    mean, sigma = x.mean(1, keepdim=True), (x.var(1, keepdim=True) + 1e-8).sqrt()
    offsets, c = (p.repeat_interleave(4, 0)[:, None] for p in (three.mean_offsets, three.c))  # (16, 1, 3)
    y = ((x - mean).transpose(1, 2)[..., None] - offsets) / sigma.transpose(1, 2)[..., None]
    density = ((-((y / c) ** 2) / 2).exp() / c).sum(-1).transpose(1, 2)
    near(three(x), x * density / density.sum(1, keepdim=True))
    assert (three(x) - one(x)).abs().max() > 1e-3
    rescaled = GAAM(16, 4, 1, rescale=True).double()
    rescaled.load_state_dict(one.state_dict())
    near(rescaled(x), 9 * one(x))
    with pytest.raises(ValueError, match="a variance needs 2"):
        GAAM(16, 4, heads="tokens")(torch.zeros(1, 7, 16))
    with pytest.raises(ValueError, match="axis must be tokens or channels, not 'rows'"):
        GAAM(16, 4, axis="rows")


# CMHA and RCMHA


def fill(module, names):
    state = {ours: torch.cat(tensors) for ours, tensors in names.items()}
    module.load_state_dict(state)
    return module.double()


def cmha(**options):
    linear = {name: 10 * (noise(f"cmha.{name}.weight", 32, 32) * 0.02) for name in ("W_q", "W_k", "W_v", "W_o")}
    delta, phase = (10 * (noise(f"cmha.{name}_params", 4, 4) * 0.02) for name in ("delta", "bias"))
    weights = {"qkv.weight": [linear["W_q"], linear["W_k"], linear["W_v"]], "proj.weight": [linear["W_o"]]}
    return fill(CMHA(32, 4, **options), weights | {"delta": [1 + delta], "phase": [phase]})


def test_cmha(golden):
    """Exact frequencies against fp64, and theirs, rounded to bf16, against the published code."""
    x, mixer = noise("cmha.x", 2, 12, 32).double(), cmha()
    with observe(mixer) as seen:
        near(mixer(x), golden["cmha.y64_exact_freq"], atol=1e-10)
    near(seen["attend"].attn, golden["cmha.attn64_exact_freq"], atol=1e-10)
    near(mixer(x), golden["cmha.y_ref"].double(), atol=5e-3)
    for causal in (False, True):
        mixer = cmha(causal=causal)
        mixer.angles = lambda q, grid: torch.arange(12.0).double()[:, None] * golden["cmha.g_bf16"]
        near(mixer(x), golden["cmha.y_ref_causal" if causal else "cmha.y_ref"].double(), atol=1e-5)


def test_cmha_is_rotary_attention_at_its_start():
    mixer, x = CMHA(16, 2).double(), tokens_of()
    q, k, v = mixer.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    angle = torch.arange(9.0, dtype=torch.float64)[:, None] * 10000 ** (-torch.arange(4.0, dtype=torch.float64) / 4)

    def rotated(y):
        re, im = y.chunk(2, -1)
        return torch.cat([re * angle.cos() - im * angle.sin(), re * angle.sin() + im * angle.cos()], -1)

    attn = (rotated(q) @ rotated(k).transpose(-2, -1)).softmax(-1)
    near(mixer(x), mixer.proj((attn @ v).transpose(1, 2).flatten(2)), atol=1e-6)  # but for the 1e-9 in m


def test_cmha_knows_distances_alone():
    mixer, given = CMHA(16, 2, rope_start=False).double(), []
    nn.init.normal_(mixer.phase)
    mixer.attend.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    x = tokens_of()
    mixer(x.repeat(1, 2, 1))
    scores = given[0][0] @ given[0][1].transpose(-2, -1)
    near(scores[:, :, 9:, 9:], scores[:, :, :9, :9])
    assert (scores[:, :, 9:, :9] - scores[:, :, :9, :9]).abs().max() > 1e-3
    order = torch.randperm(9)
    mixer.base = None  # and without places, nothing
    near(mixer(x[:, order]), mixer(x)[:, order])
    zeros = torch.zeros(1, 4, 16, dtype=torch.float64, requires_grad=True)
    mixer(zeros).sum().backward()
    assert zeros.grad.isfinite().all()
    with pytest.raises(ValueError, match="pairs of numbers"):
        CMHA(12, 4)


def test_cmha_on_a_grid():
    """Against the formula, pair by pair: rows and columns between places, nothing between a prefix and others."""
    mixer, x = CMHA(16, 2, base=100.0, rope_start=False, axial=True).double(), tokens_of(8, batch=1)
    nn.init.normal_(mixer.phase)
    q, k, v = mixer.qkv(x)[0].unflatten(-1, (3, 2, 8)).unbind(1)  # (N, heads, 8)
    (m_q, p_q), (m_k, p_k) = (
        ((y[..., :4] ** 2 + y[..., 4:] ** 2 + 1e-9).sqrt(), torch.atan2(y[..., 4:], y[..., :4])) for y in (q, k)
    )
    place = torch.tensor([[i // 3, i % 3] for i in range(6)], dtype=torch.float64)
    f = torch.tensor([1.0, 100**-0.5], dtype=torch.float64)
    angle = (place[:, None] - place[None])[..., None] * f  # (6, 6, axis, 2)
    angle = nn.functional.pad(angle.flatten(2), (0, 0, 2, 0, 2, 0))[:, :, None]  # two prefix tokens: (8, 8, 1, 4)
    turn = mixer.delta * (p_q[:, None] - p_k[None]) + mixer.phase + angle
    attn = (m_q[:, None] * m_k[None] * turn.cos()).sum(-1).softmax(1)  # (8, 8, heads)
    near(mixer(x, (2, 3))[0], mixer.proj(torch.einsum("ijh,jhd->ihd", attn, v).flatten(1)))
    for wrong in ({"causal": True}, {"num_heads": 8}):
        with pytest.raises(ValueError, match="not causal, and its heads have four numbers"):
            CMHA(16, **{"num_heads": 2, "axial": True} | wrong)


def rcmha(**options):
    def draw(name, *shape):
        return noise(f"rcmha.{name}", *shape) * 0.02

    mixer = RCMHA(32, 4, max_length=16, **options)
    names = {"query_bias": [draw("query_pos_bias", 4, 8)]}
    names |= {
        f"proj.{leaf}": [draw(f"output.{leaf}", *shape)] for leaf, shape in (("weight", (32, 32)), ("bias", (32,)))
    }
    for name in ("query", "key", "value"):
        names[f"{name[0]}.weight"] = [draw(f"{name}.0.linear.weight", 32, 32)]
        names[f"conv_{name[0]}.weight"] = [draw(f"{name}.1.conv.weight", 8, 1, 3)]
        names[f"conv_{name[0]}.bias"] = [draw(f"{name}.1.conv.bias", 8)]
    names["v.bias"] = [draw("value.0.linear.bias", 32)]
    middle = slice(4096 - 16, 4096 + 16)
    names["relative_key"] = [draw("key_pos_embeddings", 8192, 4, 8)[middle]]
    names["relative_bias"] = [draw("key_pos_bias", 8192, 4)[middle]]
    return fill(mixer, names)


def test_rcmha(golden):
    x, memory = (noise(f"rcmha.{name}", n, 2, 32).double().transpose(0, 1) for name, n in (("x", 10), ("mem", 3)))
    mixer = rcmha(causal=True)
    with observe(mixer) as seen:
        near(mixer(x), golden["rcmha.y_causal"].double().transpose(0, 1), atol=1e-8)
    ours = {"y_causal": mixer(x), "y_mem": mixer(x, memory=memory), "y_full": rcmha(conv_causal=True)(x)}
    for name, y in ours.items():
        expected = golden[f"rcmha.{name}"].double().transpose(0, 1)
        near(y, expected, atol=min(1e-8, 1e-5 * expected.std(0).max().item()))
    near(seen["attend"].attn, golden["rcmha.attn_causal"].double().permute(2, 3, 0, 1), atol=1e-7)


def wild(**options):
    """One whose positions say something."""
    mixer = RCMHA(16, 4, max_length=12, **options).double()
    for p in (mixer.relative_key, mixer.relative_bias, mixer.query_bias):
        nn.init.normal_(p)
    return mixer


def test_causal_rcmha_does_not_see_the_future():
    for mixer, causal in ((wild(causal=True), True), (CMHA(16, 4, causal=True).double(), True), (wild(), False)):
        x = tokens_of(6).requires_grad_()
        out = mixer(x)
        for i in range(6):
            (grad,) = torch.autograd.grad(out[:, i].square().sum(), x, retain_graph=True)
            seen = grad.abs().sum((0, 2)) > 0
            assert seen[: i + 1].all() and seen[i + 1 :].any() == (not causal and i < 5)
    mixer = wild(causal=True)
    x = tokens_of(8)
    later = mixer(x[:, 4:], memory=x[:, :4])
    near(later[:, 2:], mixer(x)[:, 6:])  # but for the two whose query's convolution looks beyond the beginning
    with pytest.raises(ValueError, match="looks ahead is not causal"):
        RCMHA(16, 4, causal=True, conv_causal=False)
    with pytest.raises(ValueError, match=r"max_length=12\) was given 13 tokens"):
        mixer(tokens_of(13))


def test_rcmha_on_a_grid():
    """Against the formula, pair by pair; and a smaller grid has the same offsets."""
    mixer, x = wild(grid=(3, 4)), tokens_of(13, batch=1)
    q, k, v = ((getattr(mixer, name)(x)) for name in "qkv")
    (p_q, q), (p_k, k), (p_v, v) = ((y[:, :1], y[:, 1:]) for y in (q, k, v))

    def convolved(name, y):
        maps = y.transpose(1, 2).unflatten(2, (3, 4))
        conv = getattr(mixer, f"conv_{name}")
        weight, bias = conv.weight.repeat(4, 1, 1, 1), conv.bias.repeat(4)
        return nn.functional.conv2d(maps, weight, bias, padding=1, groups=16).flatten(2).transpose(1, 2)

    q, k, v = (
        torch.cat([p, convolved(name, y)], 1).unflatten(2, (4, 4))[0]  # (N, heads, head_dim)
        for name, p, y in zip("qkv", (p_q, p_k, p_v), (q, k, v), strict=True)
    )
    scores = torch.einsum("ihd,jhd->hij", q + mixer.query_bias, k)
    table_key, table_bias = mixer.relative_key.unflatten(0, (5, 7)), mixer.relative_bias.unflatten(0, (5, 7))
    for i in range(12):
        for j in range(12):
            y, w = j // 4 - i // 4 + 2, j % 4 - i % 4 + 3
            scores[:, i + 1, j + 1] += (q[i + 1] * table_key[y, w]).sum(-1) + table_bias[y, w]
    expected = torch.einsum("hij,jhd->ihd", (scores / 2).softmax(-1), v).flatten(1)
    near(mixer(x, (3, 4))[0], mixer.proj(expected))

    small = wild(grid=(2, 3))
    state = mixer.state_dict()
    for name in ("relative_key", "relative_bias"):
        state[name] = state[name].unflatten(0, (5, 7))[1:-1, 1:-1].flatten(0, 1)
    small.load_state_dict(state)
    near(small(tokens_of(7), (2, 3)), mixer(tokens_of(7), (2, 3)))
    with pytest.raises(ValueError, match="up to 2×3, not for 3×4"):
        small(x, (3, 4))
    with pytest.raises(ValueError, match="RCMHA works on a grid"):
        mixer(x)
    with pytest.raises(ValueError, match="no order"):
        RCMHA(16, 4, causal=True, grid=(3, 4))


def test_chunks_of_tokens_need_not_divide():
    """The last one has what is left over, as published; a width must be divided."""
    gaam, x = GAAM(10, 4, axis="tokens", heads="tokens").double(), torch.randn(2, 11, 10, dtype=torch.float64)
    parts = [(0, 2), (2, 4), (4, 6), (6, 11)]
    expected = []
    for head, (first, last) in enumerate(parts):
        chunk = x[:, first:last]
        y = (chunk - chunk.mean(1, keepdim=True)) / (chunk.var(1, keepdim=True) + 1e-8).sqrt()
        expected.append(chunk * (-(y / gaam.c[head]).square() / 2).softmax(1))
    near(gaam(x), torch.cat(expected, 1))
    with pytest.raises(ValueError, match="dim 10 is not a multiple of num_heads 4"):
        GAAM(10, 4)


# all of them

MIXERS = {
    "moh": (partial(MoH, skip=True), None, 9),
    "cosine moh": (CosineMoH, (2, 4), 9),
    "sparsifiner": (partial(Sparsifiner, num_tokens=9), None, 9),
    "gaam": (GAAM, None, 9),
    "cmha": (partial(CMHA, causal=True), None, 9),
    "cmha, axial": (partial(CMHA, axial=True), (2, 4), 17),
    "rcmha": (RCMHA, None, 9),
    "rcmha, grid": (partial(RCMHA, grid=(3, 4)), (2, 4), 17),
}


@pytest.mark.parametrize("name", MIXERS)
def test_autocast(name):
    make, grid, n = MIXERS[name]
    mixer, x = make(16, 4), tokens_of(n).float()
    exact = mixer.eval()(x, grid)
    with torch.autocast("cpu", torch.bfloat16):
        assert (mixer(x, grid).float() - exact).abs().max() < 0.1
        out = mixer.train()(x, grid)
    loss = out.float().square().sum() + (getattr(mixer, "aux_loss", None) or 0)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())
