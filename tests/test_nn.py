"""What every mechanism must hold to, and what each promises of its own."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mien.nn import (
    CAM,
    CMHA,
    GAAM,
    PAM,
    RCMHA,
    ACMILHead,
    ACMILPool,
    ACMILQueryPool,
    Attend,
    Axial,
    BatchTransformer,
    Block,
    ChannelAttention,
    ClassAttention,
    ClassAttentionPool,
    ClassBlock,
    ClassEncoding,
    CosineMoH,
    DeformableAttention,
    DistributedAttention,
    DropPath,
    Grassmann,
    GroupPoseLayer,
    GroupSelfAttention,
    GuidedAttention,
    Halo,
    LandmarkCrossAttention,
    LandmarkQueryHead,
    LandmarkQueryPool,
    LayerScale,
    LevelAttention,
    LinearAttention,
    LookError,
    MagnifiedAttention,
    MaxViTBlockAttention,
    MaxViTGridAttention,
    Medusa,
    Mlp,
    MoH,
    MultiConv,
    Neighborhood,
    RandomFeatureAttentionPool,
    RegionCrossAttention,
    SelfAttention,
    Sparsifiner,
    SpectralGate,
    Superlinear,
    TalkingHeads,
    TiC,
    WindowAttention,
    class_batch_attention,
    intervene,
    observe,
)
from mien.nn.grid import offset_index, to_map, to_tokens
from mien.nn.observe import attentions

WIDE, TINY = 16, 4


def level(dim, **options):
    return LevelAttention(dim, dim, 2, mlp_ratio=2, **options)


def landmarks(dim, size=4, **options):
    return LandmarkCrossAttention(dim, 2, size, mlp_ratio=2, **options)


class OnGrid(nn.Module):
    """A mixer and its grid: tokens in, tokens out."""

    def __init__(self, mixer, grid):
        super().__init__()
        self.mixer, self.grid = mixer, grid

    def forward(self, tokens):
        return self.mixer(tokens, self.grid)


class Opened(nn.Module):
    """A magnified layer that reads its own tokens, doubled, for details: what it chose, and the last, are opened."""

    def __init__(self, dim):
        super().__init__()
        self.layer = MagnifiedAttention(dim, 2)

    def forward(self, tokens):
        chosen = self.layer.regions(tokens, 5) | (torch.arange(5, device=tokens.device) == 4)
        return self.layer(tokens, fine=tokens[:, 1:].repeat_interleave(2, 1), selected=chosen)


class Regions(nn.Module):
    """Parallel cross attention whose grid is 2 × 3, and whose masks are shares that tokens of their own make."""

    def __init__(self, dim):
        super().__init__()
        self.layer = RegionCrossAttention(dim, 2)

    def forward(self, text, image, masks, tokens):
        shares = masks.softmax(2).transpose(1, 2).unflatten(2, (2, 3))[:, None]  # (B, 1, M, 2, 3)
        return self.layer(tokens, (2, 3), text, shares.expand(-1, 2, -1, -1, -1), image)


class Joined(nn.Module):
    """A part whose several answers are laid end to end, (B, all); `lists` puts its last inputs into a list."""

    def __init__(self, part: nn.Module, lists: int = 0):
        super().__init__()
        self.part, self.lists = part, lists

    def forward(self, *inputs: Tensor) -> Tensor:
        given = len(inputs) - self.lists
        out = self.part(*inputs[:given], *([list(inputs[given:])] if self.lists else []))
        return torch.cat([x.flatten(1) for x in (out if isinstance(out, list | tuple) else [out])], dim=1)


def gated_pool(dim):
    return ACMILPool(dim, num_branches=3, hidden=8, mask_ratio=0.0)


# what it is: how it is built for a width, and what it is given in a batch of B faces
MECHANISMS = {
    "self attention": (lambda dim: SelfAttention(dim, 2), lambda b, dim: [(b, 6, dim)]),
    "self attention without bias": (lambda dim: SelfAttention(dim, 2, qkv_bias=False), lambda b, dim: [(b, 6, dim)]),
    "block": (lambda dim: Block(dim, 2, mlp_ratio=2), lambda b, dim: [(b, 6, dim)]),
    "block, scaled": (lambda dim: Block(dim, 2, mlp_ratio=2, init_values=0.1), lambda b, dim: [(b, 6, dim)]),
    "magnified attention": (lambda dim: Opened(dim), lambda b, dim: [(b, 6, dim)]),
    "region cross attention": (
        Regions,
        lambda b, dim: [(b, 3, 2, dim), (b, 3, 4, dim), (b, 6, 3), (b, 6, dim)],
    ),
    "talking heads": (lambda dim: TalkingHeads(dim, 2), lambda b, dim: [(b, 6, dim)]),
    "moh": (lambda dim: MoH(dim, 4, 1, 2), lambda b, dim: [(b, 6, dim)]),
    "moh, skipping": (lambda dim: MoH(dim, 4, 1, 2, skip=True), lambda b, dim: [(b, 6, dim)]),
    "cosine moh": (lambda dim: OnGrid(CosineMoH(dim, 2), (2, 3)), lambda b, dim: [(b, 1 + 2 * 6, dim)]),
    "sparsifiner": (lambda dim: Sparsifiner(dim, 2, num_tokens=6, keep=0.5), lambda b, dim: [(b, 6, dim)]),
    "gaam": (lambda dim: GAAM(dim, 2, 2, mixture=True), lambda b, dim: [(b, 6, dim)]),
    "cmha": (lambda dim: CMHA(dim, 2, rope_start=False), lambda b, dim: [(b, 6, dim)]),
    "cmha, axial": (lambda dim: OnGrid(CMHA(dim, 1, axial=True), (2, 3)), lambda b, dim: [(b, 1 + 2 * 6, dim)]),
    "rcmha": (lambda dim: RCMHA(dim, 2, causal=True, max_length=6), lambda b, dim: [(b, 6, dim)]),
    "rcmha, grid": (lambda dim: OnGrid(RCMHA(dim, 2, grid=(2, 3)), (2, 3)), lambda b, dim: [(b, 1 + 2 * 6, dim)]),
    "superlinear": (lambda dim: Superlinear(dim, 2, 3, top_k=2), lambda b, dim: [(b, 12, dim)]),
    "superlinear, sparse": (
        lambda dim: Superlinear(dim, 2, 3, forward_factor=0.5, direction="both", dense_tokens=0),
        lambda b, dim: [(b, 12, dim)],
    ),
    "linear, delta": (lambda dim: LinearAttention(dim, 2), lambda b, dim: [(b, 6, dim)]),
    "linear, hebb": (lambda dim: LinearAttention(dim, 2, "hebb", norm=False), lambda b, dim: [(b, 6, dim)]),
    "distributed": (lambda dim: DistributedAttention(dim, 2, causal=True), lambda b, dim: [(b, 6, dim)]),
    "class attention": (lambda dim: ClassAttention(dim, 2), lambda b, dim: [(b, 6, dim)]),
    "class block": (lambda dim: ClassBlock(dim, 2, 2, init_values=0.1), lambda b, dim: [(b, 1, dim), (b, 5, dim)]),
    "class pool": (lambda dim: ClassAttentionPool(dim, 2, mlp_ratio=2), lambda b, dim: [(b, 7, dim)]),
    "random features": (lambda dim: RandomFeatureAttentionPool(dim, 3), lambda b, dim: [(b, 7, dim)]),
    "mlp": (lambda dim: Mlp(dim, 2 * dim), lambda b, dim: [(b, 6, dim)]),
    "layer scale": (lambda dim: LayerScale(dim, 0.1), lambda b, dim: [(b, 6, dim)]),
    "landmarks": (landmarks, lambda b, dim: [(b, dim, 4, 4)] * 2),
    "landmarks, fewer keys": (partial(landmarks, key_stride=2), lambda b, dim: [(b, dim, 4, 4)] * 2),
    "levels": (level, lambda b, dim: [(b, dim, 4, 6), (b, dim, 2, 3)]),
    "levels, query": (partial(level, residual="query"), lambda b, dim: [(b, dim, 4, 6), (b, dim, 2, 3)]),
    "levels, warm": (
        partial(level, gate_lower=True, init_values=1e-5),
        lambda b, dim: [(b, dim, 4, 6), (b, dim, 2, 3)],
    ),
}
PLANES = {
    "axial": Axial,
    "axial, shared": partial(Axial, combine="sequential", share_qkv=True, qkv_bias=True, positions=(3, 4)),
    "windows": partial(WindowAttention, window_size=2),
    "windows, padded": partial(WindowAttention, window_size=2, mask_padding=False),
    "channels": ChannelAttention,
    "channels, v2": partial(ChannelAttention, v2=True),
    "tic": TiC,
    "tic, published": partial(TiC, mask_padding=False, conv=True),
    "gate": partial(SpectralGate, grid=(3, 4)),
    "gate, padded": partial(SpectralGate, grid=(3, 4), zero_pad=True),
    "grassmann": partial(Grassmann, rank=4),
    "grassmann, past": partial(Grassmann, rank=4, direction="past", bias_alone=False),
    "maxvit block": partial(MaxViTBlockAttention, window_size=2),
    "maxvit grid": partial(MaxViTGridAttention, window_size=(2, 3)),
    "halo": partial(Halo, block_size=2, halo_size=1),
    "halo, published": partial(Halo, block_size=2, halo_size=1, mask_padding=False, qkv_bias=True),
    "neighborhood": partial(Neighborhood, kernel_size=3),
    "neighborhood, tiled": partial(Neighborhood, kernel_size=2, dilation=(1, 2), dense_tokens=0, tile_size=1),
    "neighborhood, causal": partial(Neighborhood, kernel_size=2, causal=(True, False), rel_pos_bias=True),
}
for _name, _make in PLANES.items():  # two planes behind two prefix tokens
    MECHANISMS[_name] = (lambda dim, make=_make: OnGrid(make(dim, 2), (3, 4)), lambda b, dim: [(b, 2 + 2 * 12, dim)])
MECHANISMS |= {
    "pam": (lambda dim: PAM(dim, init_values=0.5), lambda b, dim: [(b, 6, dim)]),
    "pam, maps": (lambda dim: PAM(dim, 2, init_values=0.5), lambda b, dim: [(b, dim, 3, 4)]),
    "cam": (lambda dim: CAM(dim, init_values=0.5), lambda b, dim: [(b, 6, dim)]),
    "cam, maps": (lambda dim: CAM(dim, 2, power=0.5, init_values=0.5), lambda b, dim: [(b, dim, 3, 4)]),
    "multi conv": (lambda dim: MultiConv(dim, dim), lambda b, dim: [(b, dim, 3, 4)]),
    "guided head": (
        lambda dim: Joined(GuidedAttention((dim,), 3, dim=dim // 2, init_values=0.1), lists=1),
        lambda b, dim: [(b, dim, 4, 4)],
    ),
    "acmil pool": (gated_pool, lambda b, dim: [(b, 7, dim)]),
    "acmil pool, heads": (
        lambda dim: ACMILQueryPool(dim, num_heads=2, mask_ratio=0.0, dropout=0.0),
        lambda b, dim: [(b, 7, dim)],
    ),
    "acmil head": (lambda dim: Joined(ACMILHead(dim, 4, dim, gated_pool)), lambda b, dim: [(b, 7, dim)]),
    "group attention": (lambda dim: GroupSelfAttention(dim, 2), lambda b, dim: [(b, 2, 4, dim), (b, 2, 3, dim)]),
    "group layer": (
        lambda dim: Joined(GroupPoseLayer(dim, 2, DeformableAttention(dim, 2), hidden=2 * dim), lists=1),
        lambda b, dim: [(b, 2, 4, dim), (b, 2, 3, dim), (b, 8, 2), (b, dim, 5, 7)],
    ),
    "landmark pool": (
        lambda dim: LandmarkQueryPool(dim, 2, num_landmarks=3, mlp_ratio=2),
        lambda b, dim: [(b, 7, dim)],
    ),
    "landmark head": (
        lambda dim: Joined(LandmarkQueryHead(dim, 4, num_heads=2, depth=1, mlp_ratio=2)),
        lambda b, dim: [(b, 7, dim)],
    ),
    "medusa": (
        lambda dim: Joined(Medusa((dim, dim), width=4, hidden=8), lists=2),
        lambda b, dim: [(b, 3, 32, 32), (b, dim, 8, 8), (b, dim, 4, 4)],
    ),
}
BRANCHES = {
    "batch": {},
    "batch, sinusoidal": {"encoding": "sinusoidal"},
    "batch, scalar": {"encoding": "scalar"},
    "batch, none": {"encoding": "none"},
    "batch, shared": {"shared": True},
    "batch, softmax": {"value_softmax": True},
    "batch, detached": {"detach_value": True},
}
for _name, _options in BRANCHES.items():
    MECHANISMS[_name] = (
        lambda dim, options=_options: BatchTransformer(dim, 3, features=4, **options),
        lambda b, dim: [(b, dim, 2, 2), (b, 3)],
    )
SHAPES = {"class attention": (3, 1, WIDE), "class block": (3, 1, WIDE), "class pool": (3, WIDE)}  # others: the input's
SHAPES["random features"] = (3, WIDE)
SHAPES |= {
    "guided head": (3, 3 + 2 * 3),
    "acmil pool": (3, WIDE),
    "acmil pool, heads": (3, WIDE),
    "acmil head": (3, 4 + 3 * 4),
    "group attention": (3, 2, 4, WIDE),
    "group layer": (3, 2 * 4 * WIDE),
    "landmark pool": (3, WIDE),
    "landmark head": (3, 4 + 5 * 2),
    "medusa": (3, 64 * WIDE + 16 * WIDE),
}
WITHOUT_ATTENTION = ("mlp", "layer scale", "gate", "grassmann", "multi conv", "medusa")
RECTIFIED = ("guided", "group layer", "landmark ", "medusa")  # what is below 0 has no gradient
every = pytest.mark.parametrize("name", MECHANISMS)
alone = pytest.mark.parametrize("name", [name for name in MECHANISMS if not name.startswith("batch")])


def prepare(name: str, dim: int = WIDE, batch: int = 3, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    make, shapes = MECHANISMS[name]
    return make(dim).to(dtype), [torch.randn(shape, dtype=dtype) for shape in shapes(batch, dim)]


def sets(output: Tensor | dict[str, Tensor]) -> list[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


@every
def test_shape_and_dtype_come_out_as_they_went_in(name):
    """And bf16 is fp32 but for rounding."""
    exact = None
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        module, inputs = prepare(name, dtype=dtype)
        if dtype == torch.bfloat16:
            module, inputs = prepare(name)
            module, inputs = module.bfloat16(), [x.bfloat16() for x in inputs]
        out = module(*inputs)
        if isinstance(out, dict):  # across the batch, in fp32 at least
            assert list(out) == ["bt", "cba"]
            dtype = torch.promote_types(dtype, torch.float32)
        for each in sets(out):
            assert each.shape == SHAPES.get(name, inputs[-1].shape) and each.dtype == dtype and each.isfinite().all()
        exact = exact or sets(out)
    for a, b in zip(exact, sets(out), strict=True):
        torch.testing.assert_close(a, b.float(), atol=0.1, rtol=0.05)


def without_gradient(name: str) -> dict[str, slice]:
    """The parts of parameters that shift every score of a query alike, which softmax does not see: biases of keys."""
    if name == "rcmha":
        return {"conv_k.bias": slice(None)}
    if name in ("self attention", "talking heads", "distributed") or name.startswith(("block", "moh")):
        keys = {("attn." if name.startswith("block") else "") + "qkv.bias": slice(WIDE, 2 * WIDE)}
        return keys | ({"proj_l.bias": slice(None)} if name == "talking heads" else {})
    if name.startswith("superlinear"):
        return {"qkv.bias": slice(WIDE, 2 * WIDE)}
    if name in ("axial, shared", "windows", "windows, padded", "tic") or name.startswith(("maxvit", "neighborhood")):
        return {"mixer.qkv.bias": slice(WIDE, 2 * WIDE)}
    if name.startswith("class "):
        blocks = {"class attention": [""], "class block": ["attn."], "class pool": ["blocks.0.attn.", "blocks.1.attn."]}
        return {f"{block}k.bias": slice(None) for block in blocks[name]}
    if name.startswith(("landmarks", "levels")):
        return {"kv.bias": slice(0, WIDE)}
    if name.startswith("batch") and name != "batch, shared":
        return {"embed_k.bias": slice(None)}
    if name.startswith(("pam", "guided", "acmil", "group", "landmark ")):
        keys = {"qkv.bias": slice(WIDE, 2 * WIDE), "kv.bias": slice(0, WIDE), "k.bias": slice(None)}
        keys["score.bias"] = slice(None)
        parameters = [n for n, _ in MECHANISMS[name][0](WIDE).named_parameters()]
        return {n: keys[leaf] for n in parameters if (leaf := ".".join(n.split(".")[-2:])) in keys}
    return {}


@every
def test_every_parameter_has_a_gradient(name):
    module, inputs = prepare(name, dtype=torch.float64)
    for x in inputs:
        x.requires_grad_()
    loss = sum((each * torch.randn_like(each)).sum() for each in sets(module(*inputs)))
    loss += sum(part.aux_loss for part in module.modules() if getattr(part, "aux_loss", None) is not None)
    loss.backward()
    none = without_gradient(name)
    for parameter, p in module.named_parameters():
        grad = p.grad.clone()
        assert grad.isfinite().all(), parameter
        if parameter in none:
            assert grad[none[parameter]].abs().max() < 1e-12
            grad[none[parameter]] = 1
        assert grad.abs().max() > 1e-12, parameter
        partly = parameter.endswith(
            ("complex_weight", "relative_bias", "cpb_fc1.weight", "cpb_fc1.bias", "cpb_fc2.weight")
        )  # unused in part
        if parameter.endswith(("weight", "bias")) and not partly and not name.startswith(RECTIFIED):
            assert (grad != 0).all(), parameter
    for x in inputs:
        expected = name != "batch, detached" or x is not inputs[1]
        assert (x.grad is not None and x.grad.abs().max() > 0) == expected


@every
def test_gradients_are_right(name):
    module, inputs = prepare(name, TINY, 2, torch.float64)
    names, values = zip(*((n, p.detach().requires_grad_()) for n, p in module.named_parameters()), strict=True)
    for p in values:
        p.data += 0.1 * torch.randn_like(p)  # a gate at 0 and scales of 1e-5 hide what stands behind them
    inputs = [x.requires_grad_() for x in inputs]
    if name == "batch, detached":
        inputs[1].requires_grad_(False)

    def call(*arguments):
        parameters = dict(zip(names, arguments[len(inputs) :], strict=True))
        return tuple(sets(functional_call(module, parameters, arguments[: len(inputs)])))

    assert torch.autograd.gradcheck(call, (*inputs, *values), fast_mode=True)
    if attentions(module):  # open, gradients are the same
        wanted = [x for x in (*inputs, *values) if x.requires_grad]

        def gradients():
            loss = sum((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in call(*inputs, *values))
            return torch.autograd.grad(loss, wanted, allow_unused=True)

        fused = gradients()
        with intervene(module, {"*": lambda stage, tensor, layout: tensor + 0}):
            again = gradients()
        for a, b in zip(fused, again, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)


@every
def test_attention_is_the_same_when_looked_at(name):
    module, _ = prepare(name)
    if not attentions(module):
        assert name.startswith(WITHOUT_ATTENTION)
        with pytest.raises(LookError, match="forms no attention"):
            observe(module).__enter__()
        return
    for dtype, near in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        module, inputs = prepare(name, dtype=dtype)
        fused = sets(module(*inputs))
        with observe(module) as seen, intervene(module, {"*": lambda stage, tensor, layout: tensor + 0}):
            opened = sets(module(*inputs))
        for a, b, c in zip(fused, opened, sets(module(*inputs)), strict=True):
            torch.testing.assert_close(a, b, atol=near * max(1.0, a.abs().max().item()), rtol=0)
            assert torch.equal(a, c)  # nothing is left behind
    assert seen.keys() == attentions(module).keys()
    for look in seen.values():
        assert look.layout.kind in ("token", "class", "cross", "channel", "batch")
        if name.startswith("linear"):  # there is no softmax
            assert look.scores is None and look.attn.shape == (3, 2, 6, 6) and look.heads.isfinite().all()
            continue
        assert look.scores.shape == look.attn.shape and look.heads.isfinite().all()
        if look.attn.ndim == 4:
            count = look.attn.shape[-1]
            prefix, planes, grid = look.layout[1:]
            assert grid is None or count == prefix + planes * grid[0] * grid[1]
            if name.startswith(("talking", "random")):
                continue  # heads are mixed after the softmax, or there is none
            assert (look.attn >= 0).all() and not look.attn[look.scores == -torch.inf].any()
            mass = look.attn.sum(-1)
            assert (mass < 1 + 1e-5).all()
            if "padded" not in name and "published" not in name:
                torch.testing.assert_close(mass, torch.ones_like(mass))


@alone
def test_a_face_has_the_same_answer_alone_and_among_others(name):
    module, inputs = prepare(name, batch=4, dtype=torch.float64)
    module.eval()
    together = module(*inputs)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(module(*[x[order] for x in inputs]), together[order])
    for i in range(4):
        torch.testing.assert_close(module(*[x[i : i + 1] for x in inputs])[0], together[i])


@every
def test_a_state_dict_comes_back_and_a_module_in_training_can_be_copied(name):
    module, inputs = prepare(name)
    expected = sets(module(*inputs))
    torch.manual_seed(1)
    other = MECHANISMS[name][0](WIDE)
    other.load_state_dict(module.state_dict())
    assert all(map(torch.equal, sets(other(*inputs)), expected))
    assert not [key for key in module.state_dict() if key.endswith(("index", "weights"))]
    other = copy.deepcopy(module)
    assert all(getattr(part, "aux_loss", None) is None for part in other.modules())
    assert all(map(torch.equal, sets(other(*inputs)), expected))


EXPORTED_WITHIN = {  # another that is exported, too
    *("self attention", "self attention without bias", "block, scaled", "mlp", "layer scale"),
    *("class attention", "class block", "levels, query", "levels, warm", "multi conv", "acmil pool"),
    *("group attention", "landmark pool", *(name for name in BRANCHES if name != "batch")),
    # in a ViT of every mixer, or in its network
    *("talking heads", "linear, delta", "pam", "cam", "axial"),
    *("windows", "channels", "tic", "gate", "grassmann", "halo", "maxvit block", "maxvit grid"),
    *("class pool", "acmil head", "guided head"),
}


class Together(nn.Module):
    """Several mechanisms, each with inputs of its own."""

    def __init__(self, parts: list[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, inputs: list[list[Tensor]]) -> list[list[Tensor]]:
        return [sets(part(*given)) for part, given in zip(self.parts, inputs, strict=True)]


def test_export():
    names = [name for name in MECHANISMS if name not in EXPORTED_WITHIN]
    assert MECHANISMS.keys() >= EXPORTED_WITHIN
    parts, inputs = map(list, zip(*map(prepare, names), strict=True))
    together = Together(parts).eval()
    program = torch.export.export(together, (inputs,))
    for name, a, b in zip(names, program.module()(inputs), together(inputs), strict=True):
        torch.testing.assert_close(a, b, msg=lambda reason, name=name: f"{name}: {reason}")


@pytest.mark.parametrize("grid", [(7, 9), (14, 14), (1, 5), None], ids=str)
def test_mixers_take_any_grid(grid):
    for make in (SelfAttention, TalkingHeads, Block, *PLANES.values()):
        mixer = make(WIDE, 4)
        tokens = torch.randn(2, 10 if grid is None else grid[0] * grid[1], WIDE)
        if grid is None and getattr(mixer, "needs_grid", False):
            with pytest.raises(ValueError, match="works on a grid, and was given none"):
                mixer(tokens)
        else:
            assert mixer(tokens, grid).shape == tokens.shape


# Attend


@pytest.mark.parametrize("biased", [False, True])
def test_attend_is_softmax_attention(biased):
    q, k, v = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    bias = torch.randn(3, 5, 7) if biased else None
    out = torch.empty(2, 3, 5, 4)
    for b in range(2):
        for h in range(3):
            for i in range(5):
                scores = [(q[b, h, i] @ k[b, h, j]) / 4**0.5 + (bias[h, i, j] if biased else 0) for j in range(7)]
                shares = torch.stack(scores).exp()
                out[b, h, i] = (shares / shares.sum()) @ v[b, h]
    torch.testing.assert_close(Attend()(q, k, v, bias), out)


def test_a_rule_may_replace_the_weights_of_attention():
    attend = Attend()
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    with intervene(attend, {"*": lambda stage, x, _: torch.full((1, 2, 5, 5), 0.2) if stage == "attn" else x}):
        torch.testing.assert_close(attend(q, k, v), v.mean(2, keepdim=True).expand_as(v))


@pytest.mark.parametrize("show", [False, True], ids=["fused", "open"])
def test_attention_drops_in_training_only(show):
    attend = Attend(dropout=0.5)
    q, k, v = torch.randn(3, 1, 2, 50, 4)
    with observe(attend) if show else nullcontext():
        assert not torch.equal(attend(q, k, v), attend(q, k, v))
        attend.eval()
        assert torch.equal(attend(q, k, v), attend(q, k, v))


# blocks


def test_a_block_is_its_formula():
    block, (x,) = Block(WIDE, 2), [torch.randn(2, 6, WIDE)]
    y = x + block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))
    scaled = Block(WIDE, 2, init_values=0.5)
    assert scaled.state_dict().keys() - block.state_dict().keys() == {"ls1.gamma", "ls2.gamma"}
    scaled.load_state_dict(block.state_dict(), strict=False)
    y = x + 0.5 * block.attn(block.norm1(x))
    torch.testing.assert_close(scaled(x), y + 0.5 * block.mlp(block.norm2(y)))


def test_a_block_takes_any_mixer():
    class Nothing(nn.Module):
        def __init__(self, dim, num_heads):
            super().__init__()
            self.seen = (dim, num_heads)

        def forward(self, tokens, grid=None):
            return torch.zeros_like(tokens) if grid == (2, 3) else tokens

    block = Block(WIDE, 4, mixer=Nothing)
    assert block.attn.seen == (WIDE, 4)
    x = torch.randn(2, 6, WIDE)
    torch.testing.assert_close(block(x, (2, 3)), x + block.mlp(block.norm2(x)))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3)
    drop = DropPath(0.25)
    out = drop(x)
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (out == out[:, :1, :1]).all()
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    assert drop.eval()(x) is x
    with pytest.raises(ValueError, match="drop_path"):
        DropPath(1.0)


def test_heads_must_divide_the_width():
    for kind in (SelfAttention, TalkingHeads, ClassAttention, ClassAttentionPool):
        with pytest.raises(ValueError, match="10 is not a multiple of num_heads 4"):
            kind(10, 4)


# places


@pytest.mark.parametrize(
    "grid, size", [((1, 1), (1, 1)), ((7, 7), (7, 7)), ((3, 4), (3, 4)), ((2, 4), (5, 4))], ids=str
)
def test_offset_index_by_brute_force(grid, size):
    (height, width), places = size, [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    expected = [
        [(yj - yi + height - 1) * (2 * width - 1) + (xj - xi + width - 1) for yj, xj in places] for yi, xi in places
    ]
    assert offset_index(grid, size).tolist() == expected


def test_fewer_keys_look_up_the_place_of_their_squares_first_corner():
    full, few = landmarks(WIDE), landmarks(WIDE, key_stride=2)
    few.load_state_dict(full.state_dict())
    corners = [y * 4 + x for y in (0, 2) for x in (0, 2)]
    assert torch.equal(few.bias(), full.bias()[:, :, corners])


def test_maps_and_tokens_are_each_others_inverse():
    maps = torch.randn(2, 5, 3, 4)
    tokens = to_tokens(maps)
    assert torch.equal(to_map(tokens, (3, 4)), maps)
    assert torch.equal(tokens[:, 1 * 4 + 2], maps[:, :, 1, 2])


# talking heads and the class token


def test_talking_heads_are_their_formula():
    module, (x,) = prepare("talking heads", dtype=torch.float64)
    q, k, v = module.qkv(x).split(WIDE, dim=-1)
    parts = (slice(0, 8), slice(8, 16))
    scores = [q[..., p] @ k[..., p].mT / 8**0.5 for p in parts]

    def mixed(linear, heads):
        return [sum(linear.weight[i, j] * heads[j] for j in range(2)) + linear.bias[i] for i in range(2)]

    attn = mixed(module.proj_w, [s.softmax(-1) for s in mixed(module.proj_l, scores)])
    out = module.proj(torch.cat([a @ v[..., p] for a, p in zip(attn, parts, strict=True)], -1))
    with observe(module) as seen:
        torch.testing.assert_close(module(x), out)
    torch.testing.assert_close(seen["attend"].attn, torch.stack(attn, 1))


def test_class_attention_is_the_first_row_of_self_attention():
    module, (x,) = prepare("class attention", dtype=torch.float64)
    whole = SelfAttention(WIDE, 2).double()
    for leaf in ("weight", "bias"):
        three = torch.cat([getattr(part, leaf) for part in (module.q, module.k, module.v)])
        getattr(whole.qkv, leaf).data = three.detach()
        getattr(whole.proj, leaf).data = getattr(module.proj, leaf).detach()
    torch.testing.assert_close(module(x), whole(x)[:, :1])


def test_a_class_pool_is_its_formula():
    module, (x,) = prepare("class pool", dtype=torch.float64)
    c = module.cls_token.expand(len(x), 1, WIDE)
    for block in module.blocks:
        c = c + block.ls1.gamma * block.attn(block.norm1(torch.cat([c, x], 1)))
        c = c + block.ls2.gamma * block.mlp(block.norm2(c))
    torch.testing.assert_close(module(x), module.norm(c)[:, 0])


# landmarks and levels


def test_landmark_attention_is_its_formula():
    module, (image, asked) = prepare("landmarks", dtype=torch.float64)
    for p in module.parameters():
        p.data += 0.1 * torch.randn_like(p)
    x, f = module.norm1(image.flatten(2).mT), asked.flatten(2).mT
    k, v = module.kv(x).split(WIDE, dim=-1)
    heads = []
    for h, part in enumerate((slice(0, 8), slice(8, 16))):
        scores = f[..., part] @ k[..., part].mT / 8**0.5 + module.relative_bias[offset_index((4, 4), (4, 4)).T][..., h]
        heads.append(scores.softmax(-1) @ v[..., part])
    y = x + module.ls1.gamma * module.proj(torch.cat(heads, -1))
    z = y + module.ls2.gamma * module.mlp(module.norm2(y))
    torch.testing.assert_close(module(image, asked), z.mT.unflatten(2, (4, 4)))


@pytest.mark.parametrize("residual", ["both", "query"])
def test_level_attention_is_its_formula(residual):
    torch.manual_seed(0)
    module = level(WIDE, residual=residual, gate_lower=True, init_values=0.3).double()
    module.gate.data.fill_(0.7)
    lower, upper = torch.randn(2, WIDE, 4, 6).double(), torch.randn(2, WIDE, 2, 3).double()
    t, u = module.down(lower).flatten(2).mT, upper.flatten(2).mT
    q = module.q(module.norm_q(t))
    k, v = module.kv(module.norm_kv(u)).split(WIDE, dim=-1)
    parts = (slice(0, 8), slice(8, 16))
    heads = [(q[..., p] @ k[..., p].mT / 8**0.5).softmax(-1) @ v[..., p] for p in parts]
    m = 0.7 * t + (u if residual == "both" else 0) + 0.3 * module.proj(torch.cat(heads, -1))
    m = m + 0.3 * module.mlp(module.norm2(m))
    torch.testing.assert_close(module(lower, upper), m.mT.unflatten(2, (2, 3)))


def test_levels_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="not twice as large"):
        level(WIDE)(torch.randn(1, WIDE, 8, 8), torch.randn(1, WIDE, 2, 2))
    with pytest.raises(ValueError, match="residual must be 'both' or 'query', not 'all'"):
        level(WIDE, residual="all")


# the batch


@pytest.mark.parametrize("name", BRANCHES)
def test_permuting_the_batch_permutes_the_answers(name):
    module, (maps, logits) = prepare(name, batch=5, dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    together, shuffled = module(maps, logits), module(maps[order], logits[order])
    for key in together:
        torch.testing.assert_close(shuffled[key], together[key][order])


@pytest.mark.parametrize("name", BRANCHES)
def test_one_face_has_only_itself_to_ask(name):
    module, (maps, logits) = prepare(name, batch=1)
    value = logits.softmax(-1) if name == "batch, softmax" else logits
    out = module(maps, logits)
    torch.testing.assert_close(out["cba"], value)
    torch.testing.assert_close(out["bt"], 2 * value)


def test_faces_ask_the_whole_batch():
    module, (maps, logits) = prepare("batch")
    changed = logits.clone()
    changed[2] += 1
    assert (module(maps, changed)["cba"][0] != module(maps, logits)["cba"][0]).all()
    _, attn = class_batch_attention(torch.randn(5, 3, 49), torch.randn(5, 3, 49), torch.randn(5, 3))
    assert attn.shape == (3, 5, 5)
    torch.testing.assert_close(attn.sum(-1), torch.ones(3, 5))


def test_scores_across_the_batch_stay_fp32_under_autocast():
    query, key, value = torch.randn(4, 3, 49), torch.randn(4, 3, 49), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = class_batch_attention(query, key, value)
    for a, b in zip(rounded, class_batch_attention(query, key, value), strict=True):
        assert torch.equal(a, b)


def test_encodings():
    x = torch.zeros(2, 3, 5)
    table = ClassEncoding(3, 5, "sinusoidal")(x)[0]
    for c in range(3):
        for f in range(5):
            angle = torch.tensor(c / 10000 ** (f // 2 * 2 / 6))
            assert table[c, f].item() == pytest.approx((angle.sin() if f % 2 == 0 else angle.cos()).item(), abs=1e-6)
    assert ClassEncoding(3, 5, "none")(x) is x
    scalar = ClassEncoding(3, 5, "scalar")
    assert [p.shape for p in scalar.parameters()] == [(1, 3, 1)]
    assert (scalar(x) == scalar(x)[:, :, :1]).all()
    learned = ClassEncoding(30, 49)
    assert learned.table.shape == (1, 30, 49) and learned.table.std().item() == pytest.approx(0.02, rel=0.1)
    assert not list(ClassEncoding(3, 5, "sinusoidal").state_dict())
    with pytest.raises(ValueError, match="learned, sinusoidal, scalar or none, not 'rotary'"):
        ClassEncoding(3, 5, "rotary")
