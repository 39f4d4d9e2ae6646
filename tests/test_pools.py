"""Refiners, pools and query layers: other people's numbers, and what each promises of its own."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import GOLDEN, fill_small, rng

from mien.losses import weighted_cross_entropy
from mien.networks import MobileFaceNet, build, mobilefacenet
from mien.nn import (
    CAM,
    PAM,
    ACMILHead,
    ACMILPool,
    ACMILQueryPool,
    DeformableAttention,
    GroupPoseLayer,
    GroupSelfAttention,
    GuidedAttention,
    LandmarkQueryHead,
    LandmarkQueryPool,
    Medusa,
    MultiConv,
    SemanticModule,
    intervene,
    observe,
)
from mien.nn.guided_attention import attention_layer

with np.load(GOLDEN / "pools.npz") as _file:
    GOLD = {key: torch.from_numpy(_file[key]) for key in _file.files}


def noise(name, *shape):
    return torch.from_numpy(rng(name).standard_normal(shape).astype(np.float32))


def few(x):
    """About 600 numbers of a tensor, at an odd stride: what is kept of the published ones."""
    stride = -(-x.numel() // 600)
    return x.detach().flatten()[:: stride + (stride > 1 and stride % 2 == 0)]


def near(ours, name, tolerance=1e-5):
    expected = GOLD[name].flatten()
    torch.testing.assert_close(few(ours), expected, atol=tolerance * expected.abs().max().item(), rtol=0)


def near_with_gradient(case, out, x, tolerance=1e-5, of_gradient=1e-5):
    near(out, f"{case}/out", tolerance)
    (grad,) = torch.autograd.grad((out * noise(f"{case}/probe", *out.shape)).sum(), x)
    near(grad, f"{case}/grad_x", of_gradient)


def filled(module, names):
    """The module in eval mode with the published weights, `names` being theirs for our parameters or for their layers.

    A bias that stands before a batch norm there, and is none of ours, is taken from the norm's running mean.
    """
    keys = {}
    for name in module.state_dict():
        layer, _, leaf = name.rpartition(".")
        keys[name] = names[name] if name in names else f"{names[layer]}.{leaf}"
    shapes = {keys[name]: t.shape for name, t in module.state_dict().items()}
    folded = {}
    for name in [name for name in keys if name.endswith(".1.running_mean")]:
        folded[name] = names[name.removesuffix("1.running_mean") + "0"] + ".bias"
        shapes[folded[name]] = shapes[keys[name]]
    weights = fill_small(shapes, ones="gamma", scale=0.2)
    state = {name: weights[key] for name, key in keys.items()}
    module.load_state_dict(state | {name: state[name] - weights[key] for name, key in folded.items()})
    return module.eval()


def units(ours, theirs, count, start=0):
    """Names of `count` published layers in a row, which here are threes of convolution, norm and activation."""
    return {f"{ours}{i // 3}.{i % 3}": f"{theirs}.{start + i}" for i in range(count)}


def pam_names(ours="", theirs=""):
    layers = {f"{ours}{x}": f"{theirs}{name}_conv" for x, name in (("q", "query"), ("k", "key"), ("v", "value"))}
    return layers | {f"{ours}gamma": f"{theirs}gamma"}


# multi-scale self-guided attention


def test_pam():
    x = noise("msga_pam/x", 2, 64, 14, 14).requires_grad_()
    near_with_gradient("msga_pam", filled(PAM(64), pam_names())(x), x)


def test_cam():
    x = (0.3 * noise("msga_cam/x", 2, 64, 7, 7)).requires_grad_()
    near_with_gradient("msga_cam", filled(CAM(64), {"gamma": "gamma"})(x), x)


@pytest.mark.parametrize("kind", [PAM, CAM])
def test_layers_around_pam_and_cam(kind):
    case = f"msga_layer_{kind.__name__.lower()}"
    names = {f"{at}.{i}": f"attn.{2 * at + i}" for at in (0, 2) for i in range(3)} | pam_names("1.", "attn.3.")
    x = noise(f"{case}/x", 2, 64, 14, 14).requires_grad_()
    # CAM's scores are up to 8000 here: the published fp32 gradient is itself 7e-5 off the same formula in fp64
    near_with_gradient(case, filled(attention_layer(32, kind), names)(x), x, of_gradient=1e-5 if kind is PAM else 2e-4)


def test_multi_conv():
    x = noise("msga_multiconv/x", 2, 128, 7, 7).requires_grad_()
    near_with_gradient("msga_multiconv", filled(MultiConv(128, 64), units("", "fuse_attn", 9))(x), x)


def test_semantic_module():
    names = {}
    for part in ("enc1", "enc2", "dec1", "dec2"):
        way = f"{part}.{part[:3]}ode"
        names |= units(f"{part}.", way, 6) | {f"{part}.2": f"{way}.6"}
    x = noise("msga_semantic/x", 2, 16, 16, 16).requires_grad_()
    code, again = filled(SemanticModule(16), names)(x)
    near(code, "msga_semantic/vec")
    near_with_gradient("msga_semantic", again, x)


def test_the_semantic_module_tells_maps_of_any_size():
    module = SemanticModule(4)
    for size in ((7, 7), (14, 14), (5, 9)):
        code, again = module(torch.randn(2, 4, *size))
        assert again.shape == (2, 4, *size) and code.shape == (2, 16, size[0] // 4, size[1] // 4)
    with pytest.raises(ValueError, match="3×7 is too small"):
        module(torch.randn(2, 4, 3, 7))


@pytest.mark.parametrize("kind", [PAM, CAM])
def test_refiners_start_as_the_identity_and_see_tokens_as_maps(kind):
    maps = torch.randn(2, 16, 5, 3)
    assert torch.equal(kind(16)(maps), maps)
    refiner = kind(16, 2, init_values=0.7)
    refined = refiner(maps)
    assert (refined - maps).abs().max() > 0.1
    torch.testing.assert_close(refiner(maps.flatten(2).mT, (5, 3)), refined.flatten(2).mT)
    with pytest.raises(ValueError, match="10 is not a multiple of num_heads 4"):
        kind(10, 4)


def test_cam_is_its_formula_and_its_power_keeps_it_soft():
    maps = torch.randn(2, 8, 14, 14).double()
    f = maps.flatten(2)
    energy = f @ f.mT
    sharp = []
    for power in (0.0, 0.5, 1.0):
        scores = energy * 196**-power
        attn = (scores.amax(-1, keepdim=True) - scores).softmax(-1)
        sharp.append(attn.amax(-1).mean())
        expected = maps + 0.5 * (attn @ f).view_as(maps)
        torch.testing.assert_close(CAM(8, power=power, init_values=0.5).double()(maps), expected)
    assert sharp[0] > 0.6 > sharp[1] > sharp[2]


def test_a_guided_head_learns_from_every_scale_and_round():
    torch.manual_seed(0)
    head = GuidedAttention((6, 8, 10), num_classes=5, dim=8, level=1, init_values=0.1)
    maps = [torch.randn(2, c, s, s, requires_grad=True) for c, s in ((6, 16), (8, 8), (10, 4))]
    target = torch.tensor([0, 3])
    logits, sides = head(maps)
    assert logits.shape == (2, 5) and sides.shape == (2, 6, 5)
    torch.testing.assert_close(logits, sides[:, 3:].mean(1))
    torch.testing.assert_close(
        head.loss(sides, target), sum(-sides[:, i].log_softmax(1)[range(2), target].mean() for i in range(6))
    )
    assert head.aux_loss > 0
    grads = torch.autograd.grad(head.aux_loss, [*head.attend.semantic.parameters()], retain_graph=True)
    assert all(grad.abs().max() > 0 for grad in grads)
    logits.sum().backward()  # what is answered hangs on all maps, and on both rounds
    assert all(x.grad.abs().max() > 0 for x in maps)
    for part in (*head.attend.pam, *head.refine.cam):
        assert part[0][0].weight.grad.abs().max() > 0
    head.eval()(maps)
    assert head.aux_loss is None
    with pytest.raises(ValueError, match="level must be"):
        GuidedAttention((6, 8), num_classes=5, level=2)


def test_a_guided_heads_losses_are_those_of_its_formula():
    torch.manual_seed(0)
    head = GuidedAttention((6, 8), num_classes=5, dim=4)
    maps = [torch.randn(2, 6, 8, 8), torch.randn(2, 8, 4, 4)]
    kept = []
    for part in (head.attend, head.refine):
        part.semantic.register_forward_hook(lambda _, inputs, output: kept.append((inputs[0], *output)))
    head(maps)
    assert len(kept) == 4
    told = sum(((again - x) ** 2).mean() for x, _, again in kept)
    codes = sum(((kept[s][1] - kept[s + 2][1]) ** 2).mean() for s in range(2))
    torch.testing.assert_close(head.aux_loss, 0.25 * codes + 0.1 * told)


# ACMIL

GATED = {
    "reduce": "dimreduction.fc1",
    "pool.gate_v": "attention.attention_V.0",
    "pool.gate_u": "attention.attention_U.0",
    "pool.score": "attention.attention_weights",
}
BRANCHES = {f"branch_heads.{i}": f"classifier.{i}.fc" for i in range(5)} | {"head": "Slide_classifier.fc"}


def bag():
    return noise("acmil_ga_eval/x", 1, 196, 64).requires_grad_()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_acmil(mode, monkeypatch):
    case, x = f"acmil_ga_{mode}", bag()
    head = filled(ACMILHead(64, 7, 32, partial(ACMILPool, hidden=16)), GATED | BRANCHES).train(mode == "train")
    if mode == "train":
        hidden = torch.zeros(1, 1, 5, 196, dtype=torch.bool)
        hidden[0, 0][tuple(GOLD[f"{case}/hidden"].long().T)] = True
        scores = head.pool.scores(head.reduce(x).relu())
        top = torch.zeros_like(hidden).scatter(-1, scores.topk(10).indices, True)
        assert hidden.sum(-1).eq(6).all() and not (hidden & ~top).any()  # published numbers hide six of our ten
        monkeypatch.setattr(head.pool, "hidden", lambda scores: hidden)
    with observe(head) as seen:
        logits, branches = head(x)
    near(branches, f"{case}/sub")
    target = torch.tensor([3])
    near(head.loss(logits, branches, target), f"{case}/loss_bag_and_sub")
    if mode == "train":
        assert torch.equal(seen["pool"].attn == 0, hidden)
        near(head.pool.aux_loss, f"{case}/loss_diff")
    else:
        assert head.pool.aux_loss is None
        scores = GOLD[f"{case}/attn_logits"]
        near(head.pool.scores(head.reduce(x).relu()), f"{case}/attn_logits")
        assert len(scores) > 300
    near_with_gradient(case, logits, x)


def test_abmil_is_acmil_of_one_branch():
    x = bag()
    pool = partial(ACMILPool, num_branches=1, mask_ratio=0.0, hidden=16)
    head = filled(ACMILHead(64, 7, 32, pool), GATED | {"head": "classifier.fc"}).train()
    logits, branches = head(x)
    near_with_gradient("abmil_eval", logits, x)
    assert torch.equal(branches[:, 0], logits) and head.pool.aux_loss is None
    target = torch.tensor([3])
    assert torch.equal(head.loss(logits, branches, target), F.cross_entropy(logits, target))


def test_acmil_of_many_heads():
    x = bag()
    head = ACMILHead(64, 7, 32, ACMILQueryPool)
    names = {"reduce": "dimreduction.fc1", "pool.score.weight": "(below)"} | BRANCHES
    for ours, theirs in [("pool.gather", "bag_attention"), *((f"gathers.{i}", f"sub_attention.{i}") for i in range(5))]:
        for leaf, published in (("v", "v_proj"), ("proj", "out_proj"), ("norm", "layer_norm")):
            names[f"{ours}.{leaf}"] = f"{theirs}.{published}"
    filled(head, names)
    shapes = {"q": (1, 5, 32)}
    for i in range(5):
        for part in "qk":
            shapes |= {f"sub_attention.{i}.{part}_proj.weight": (32, 32), f"sub_attention.{i}.{part}_proj.bias": (32,)}
    w = fill_small(shapes, scale=0.2)
    rows, shift = [], []
    for i in range(5):
        layer = f"sub_attention.{i}."
        q = F.linear(w["q"][0, i], w[layer + "q_proj.weight"], w[layer + "q_proj.bias"]).view(8, 4) / 4**0.5
        rows.append(torch.einsum("hd,hdx->hx", q, w[layer + "k_proj.weight"].view(8, 4, 32)))
        shift.append((q * w[layer + "k_proj.bias"].view(8, 4)).sum(1))
    head.pool.score.weight.data = torch.stack(rows, 1).flatten(0, 1)
    scores = head.pool.scores(head.reduce(x).relu()) + torch.stack(shift, 1)[None, ..., None]
    near(scores, "acmil_mha_eval/attn_logits")
    logits, branches = head(x)
    near(branches, "acmil_mha_eval/sub")
    near_with_gradient("acmil_mha_eval", logits, x)


@pytest.mark.parametrize("kind", [ACMILPool, ACMILQueryPool])
def test_acmil_hides_in_training_only_and_every_face_by_itself(kind):
    torch.manual_seed(0)
    pool = kind(16, num_branches=3, **({"num_heads": 2, "dropout": 0.0} if kind is ACMILQueryPool else {"hidden": 8}))
    heads = 2 if kind is ACMILQueryPool else 1
    tokens = torch.randn(1, 49, 16).expand(4, -1, -1)
    first, second = pool.attention(tokens), pool.attention(tokens)
    top = torch.zeros(4, heads, 3, 49, dtype=torch.bool).scatter(-1, pool.scores(tokens).topk(10).indices, True)
    for attn in (first, second):
        assert (attn == 0).sum(-1).eq(6).all() and not ((attn == 0) & ~top).any()
        torch.testing.assert_close(attn.sum(-1), torch.ones(4, heads, 3))
    assert not torch.equal(first, second)
    assert len({tuple(face.flatten().tolist()) for face in first == 0}) == 4  # equal faces, other tokens
    pool.eval()
    assert (pool.attention(tokens) > 0).all() and torch.equal(pool(tokens), pool(tokens))
    pool.train()
    for count in (1, 2, 7):  # fewer tokens than top_k: a share of those that are there
        assert (pool.attention(tokens[:, :count]) == 0).sum(-1).eq(int(count * 0.6)).all()
    for wrong in ({"mask_ratio": 1.0}, {"num_branches": 0}, {"top_k": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            kind(16, **wrong)


@pytest.mark.parametrize("kind", [ACMILPool, partial(ACMILQueryPool, num_heads=2)])
def test_acmil_of_a_batch_is_acmil_of_each_face(kind):
    head = ACMILHead(16, 4, 8, kind).double().eval()
    tokens = torch.randn(5, 20, 16).double()
    for together, alone in zip(head(tokens), zip(*(head(x[None]) for x in tokens), strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(alone))
    target = torch.tensor([0, 3, 2, 2, 1])
    losses = torch.stack([head.loss(*head(x[None]), t[None]) for x, t in zip(tokens, target, strict=True)])
    torch.testing.assert_close(head.loss(*head(tokens), target), losses.mean())
    torch.testing.assert_close(head.loss(*head(tokens), F.one_hot(target, 4).double()), losses.mean())


def test_unlike_branches_have_a_smaller_loss():
    pool = ACMILPool(8, num_branches=3, mask_ratio=0.0)
    pool.score.weight.data[:] = pool.score.weight.data[:1]
    pool.score.bias.data.zero_()
    pool(torch.randn(2, 30, 8))
    assert pool.aux_loss.item() == pytest.approx(1, abs=1e-5)
    pool.score.weight.data.normal_(std=100)
    pool(torch.randn(2, 30, 8))
    assert pool.aux_loss < 0.7


# Group Pose


def group_names(prefix=""):
    names = {f"{prefix}{way}_norm": f"{way}_norm" for way in ("within", "across")}
    for way in ("within_attn", "across_attn"):
        names |= {f"{prefix}{way}.qkv.{leaf}": f"{way}.in_proj_{leaf}" for leaf in ("weight", "bias")}
        names[f"{prefix}{way}.proj"] = f"{way}.out_proj"
    return names


def test_group_self_attention():
    case = "grouppose_group_attn"
    x, pos = noise(f"{case}/x", 6, 2, 6, 64).requires_grad_(), noise(f"{case}/pos", 6, 2, 5, 64)
    module = filled(GroupSelfAttention(64, 4), group_names())
    out = module(x.transpose(0, 1), pos.transpose(0, 1)).transpose(0, 1)
    near_with_gradient(case, out, x)
    within = GroupSelfAttention(64, 4, across=False)
    within.load_state_dict({name: t for name, t in module.state_dict().items() if name.startswith("within")})
    near(within(x.transpose(0, 1), pos.transpose(0, 1)).transpose(0, 1), f"{case}/after_within")


def test_group_pose_layer():
    case = "grouppose_full_layer"
    x, pos = noise(f"{case}/x", 3, 2, 18, 64).requires_grad_(), noise(f"{case}/pos", 3, 2, 17, 64)
    memory, ref = noise(f"{case}/memory", 49, 2, 64), noise(f"{case}/ref", 3, 2, 1, 36).sigmoid()
    names = group_names("group.") | {name: name for name in ("norm1", "norm2", "linear1", "linear2")}
    for ours, theirs in (("value", "value_proj"), ("proj", "output_proj")):
        names[f"cross_attn.{ours}"] = f"cross_attn.{theirs}"
    names |= {f"cross_attn.{name}": f"cross_attn.{name}" for name in ("sampling_offsets", "attention_weights")}
    layer = filled(GroupPoseLayer(64, 4, DeformableAttention(64, 4), hidden=128), names)
    reference, maps = ref.transpose(0, 1).reshape(2, 54, 2), memory.permute(1, 2, 0).unflatten(2, (7, 7))
    out = layer(x.transpose(0, 1), pos.transpose(0, 1), reference, [maps]).transpose(0, 1)
    near_with_gradient(case, out, x)


def test_group_attention_keeps_faces_and_kinds_apart():
    """A query sees its own instance, then others' queries of its kind; never another picture."""
    x = torch.randn(2, 3, 4, 8).double().requires_grad_()

    def reached(module):
        (grad,) = torch.autograd.grad((module(x)[0, 1, 2] * torch.arange(8)).sum(), x)
        return grad.abs().amax(-1) > 0

    within = reached(GroupSelfAttention(8, 2, across=False).double())
    assert within[0, 1].all() and within.sum() == 4
    both = reached(GroupSelfAttention(8, 2).double())
    assert both[0].all() and not both[1].any()
    module = GroupSelfAttention(8, 2).double()
    module.within_attn.proj.weight.data.zero_()
    across = reached(module)
    assert across[0, :, 2].all() and across.sum() == 3


def test_positions_of_queries_and_keys_alone():
    module = GroupSelfAttention(8, 2, across=False, pos_in_values=False).double()
    x, pos = torch.randn(2, 1, 4, 8).double(), torch.randn(2, 1, 3, 8).double()
    placed = x + F.pad(pos, (0, 0, 1, 0))
    attn = module.within_attn
    q, k, _ = attn.qkv(placed).chunk(3, -1)
    v = attn.qkv(x).chunk(3, -1)[2]
    heads = [(q[..., p] @ k[..., p].mT / 2).softmax(-1) @ v[..., p] for p in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(module(x, pos), module.within_norm(x + attn.proj(torch.cat(heads, -1))))


def test_deformable_attention_starts_as_published():
    for points, cells in ((4, [1, 2, 3, 4]), (8, [1, 2, 3, 4] * 2), (2, [0, 0]), (6, [0] * 6)):
        module = DeformableAttention(16, 4, num_points=points, num_levels=3)
        bias = module.sampling_offsets.bias.view(4, 3, points, 2)
        ways = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        expected = ways[:, None, None] * torch.tensor(cells)[:, None]
        torch.testing.assert_close(bias, expected.expand(-1, 3, -1, -1), atol=1e-6, rtol=0)
        for layer in (module.value, module.proj):
            assert not layer.bias.any() and layer.weight.abs().max() <= (6 / 32) ** 0.5
            assert layer.weight.std().item() == pytest.approx((2 / 32) ** 0.5, rel=0.2)  # Xavier, uniform
        assert not (module.sampling_offsets.weight.any() or module.attention_weights.weight.any())


def test_a_reference_point_for_each_level():
    torch.manual_seed(0)
    module = DeformableAttention(8, 2, num_points=4, num_levels=2).double()
    queries, maps = torch.randn(1, 3, 8).double(), [torch.randn(1, 8, 4, 6).double(), torch.randn(1, 8, 2, 3).double()]
    points = torch.rand(1, 3, 2, 2).double()
    one = points[:, :, 0]
    torch.testing.assert_close(module(queries, one[:, :, None].expand(-1, -1, 2, -1), maps), module(queries, one, maps))
    with observe(module) as seen:
        out = module(queries, points, maps)
    assert seen["attend"].attn.shape == (1, 2, 3, 8)
    low = points.clone()
    low[:, :, 1] = one
    assert not torch.allclose(out, module(queries, low, maps))
    only_first = {"*": lambda stage, x, _: x * (torch.arange(8) < 4) if stage == "attn" else x}
    with intervene(module, only_first):
        torch.testing.assert_close(module(queries, points, maps), module(queries, low, maps))
    with pytest.raises(ValueError, match="points of 3 levels, and there are 2"):
        module(queries, torch.rand(1, 3, 3, 2).double(), maps)


def test_deformable_attention_without_offsets_reads_the_map_at_the_reference():
    module = DeformableAttention(8, 2, num_points=2, num_levels=2).double()
    for part in (module.sampling_offsets, module.value, module.proj):
        part.bias.data.zero_()
    for part in (module.value, module.proj):
        part.weight.data = torch.eye(8).double()
    maps = [torch.randn(1, 8, 4, 6).double(), torch.randn(1, 8, 2, 3).double()]
    centre = torch.tensor([[[(2 + 0.5) / 6, (1 + 0.5) / 4]]]).double()  # of the first map's cell in row 1, column 2
    out = module(torch.randn(1, 1, 8).double(), centre, maps)
    low = F.grid_sample(maps[1], 2 * centre[:, None] - 1, align_corners=False)[0, :, 0, 0]
    torch.testing.assert_close(out[0, 0], (maps[0][0, :, 1, 2] + low) / 2)
    with pytest.raises(ValueError, match="2 maps are expected, and 1"):
        module(torch.randn(1, 1, 8).double(), centre, maps[:1])


@pytest.mark.parametrize("count", [5, 68])
def test_landmark_queries_find_a_token(count):
    """Each landmark's query attends to all tokens, and can be watched doing so."""
    torch.manual_seed(0)
    head = LandmarkQueryHead(16, 7, num_heads=2, num_landmarks=count, depth=1)
    tokens = torch.randn(3, 20, 16)
    with observe(head) as seen:
        logits, landmarks = head(tokens)
    assert logits.shape == (3, 7) and landmarks.shape == (3, count, 2)
    assert ((landmarks > 0) & (landmarks < 1)).all()
    assert seen["pool.blocks.0.cross_attn"].attn.shape == (3, 2, 1 + count, 20)
    assert torch.equal(head.pool(tokens), head.pool.gather(tokens)[:, 0])
    torch.testing.assert_close(head(tokens.flip(1))[0], logits)  # tokens are a set
    landmarks[:, 2].sum().backward()
    assert head.points.weight.grad.abs().max() > 0 and head.head.weight.grad is None
    with pytest.raises(ValueError, match="num_landmarks"):
        LandmarkQueryPool(16, num_landmarks=0)


# MEDUSA


def test_medusa_of_a_constant_gate_scales_the_maps():
    medusa = Medusa((6, 8), width=4, residual=False)
    images, maps = torch.randn(2, 3, 32, 32), [torch.randn(2, 6, 8, 8), torch.randn(2, 8, 4, 4)]
    for residual in (False, True):
        for head, value in zip(medusa.heads, (0.3, -1.0), strict=True):
            head.residual = residual
            head.gate.weight.data.zero_()
            head.gate.bias.data.fill_(value)
        for out, x, value in zip(medusa(images, maps), maps, (0.3, -1.0), strict=True):
            torch.testing.assert_close(out, x * (residual + torch.tensor(value).sigmoid()))


def test_medusas_one_body_learns_from_every_scale():
    torch.manual_seed(0)
    medusa = Medusa((6, 8, 10), width=4)
    images = torch.randn(2, 3, 64, 64)
    maps = [torch.randn(2, c, s, s) for c, s in ((6, 16), (8, 8), (10, 4))]
    for i in range(3):
        medusa.zero_grad()
        medusa(images, maps)[i].square().sum().backward()
        for name, p in medusa.body.named_parameters():
            assert p.grad.abs().max() > 0, (i, name)
        assert [head.gate.weight.grad is not None for head in medusa.heads] == [j == i for j in range(3)]


# in networks


def images(count=2):
    return torch.randn(count, 3, 112, 112, generator=torch.Generator().manual_seed(0))


def test_refiners_stand_behind_every_level_of_a_trunk():
    torch.manual_seed(0)
    trunk = MobileFaceNet().eval()
    scales = [lambda maps, by=by: maps * by for by in (2.0, 1.5, 3.0)]
    with torch.no_grad():
        plain, refined = trunk(images(1)), trunk(images(1), scales)
        for before, after, by in zip(plain, refined, (2, 3, 9), strict=True):  # each is what the next is made of
            torch.testing.assert_close(after, by * before)  # an untrained trunk keeps scales: no bias, no 6 reached
        same = MobileFaceNet(num_levels=2).eval()
        same.load_state_dict(same.fit(trunk.state_dict()))
        torch.testing.assert_close(same(images(1), scales[:2])[1], refined[1])


def test_a_refined_network_starts_as_the_plain_one():
    torch.manual_seed(0)
    plain, refined = mobilefacenet().eval(), mobilefacenet(refine=PAM).eval()
    missing = refined.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all(name.startswith("refine.") for name in missing)
    with torch.no_grad():
        torch.testing.assert_close(refined(images()), plain(images()))
        for level in refined.refine:
            level.gamma.fill_(0.5)
        assert (refined(images()) - plain(images())).abs().max() > 1e-3
    named = build(
        {"class_path": "mien.networks.mobilefacenet", "init_args": {"num_classes": 3, "refine": "mien.nn.PAM"}}
    )
    assert [type(level) for level in named.refine] == [PAM] * 3
    with pytest.raises(ValueError, match="refine must be"):
        mobilefacenet(refine="pam")


@pytest.mark.parametrize(
    "options",
    [
        {"refine": "medusa"},
        {"refine": {"class_path": "mien.nn.CAM", "init_args": {"power": 1.0, "init_values": 0.1}}},
        {"pool": {"class_path": "mien.nn.ACMILPool", "init_args": {"num_branches": 3}}},
        {"pool": {"class_path": "mien.nn.ACMILQueryPool", "init_args": {"num_heads": 4}}},
        {"pool": {"class_path": "mien.nn.LandmarkQueryPool", "init_args": {"num_landmarks": 68, "depth": 1}}},
    ],
    ids=lambda options: str(options)[:50],
)
def test_networks_of_these_parts(options):
    """Built as a checkpoint builds them, they train every parameter, and answer a face alone as among others."""
    torch.manual_seed(0)
    network = build({"class_path": "mien.networks.mobilefacenet", "init_args": options})
    F.cross_entropy(network(images()), torch.tensor([0, 3])).backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0 or name.endswith(("kv.bias", "pool.score.bias")), name
    network.eval()
    with torch.no_grad():
        together = network(images(3))
        torch.testing.assert_close(network(images(3)[1:2])[0], together[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name, options, count",
    [
        ("acmil_mobile", {"width": 16}, 5),
        (
            "acmil_mobile",
            {"width": 16, "pool": {"class_path": "mien.nn.ACMILPool", "init_args": {"num_branches": 1}}},
            0,
        ),
        ("guided_mobile", {"dim": 8, "level": 2, "init_values": 0.1}, 6),
    ],
)
def test_networks_whose_branches_have_losses(name, options, count):
    torch.manual_seed(0)
    network = build({"class_path": f"mien.networks.{name}", "init_args": {"num_classes": 3} | options})
    target = torch.tensor([0, 2])
    logits = network.training_logits(images())
    assert list(logits) == ["logits", *(f"branch_{m}" for m in range(count))]
    branches = torch.stack([*logits.values()][1:] or [logits["logits"]], dim=1)
    given = (logits["logits"], branches) if name == "acmil_mobile" else (branches,)
    loss, _ = weighted_cross_entropy(logits, target, network.loss_weights)
    torch.testing.assert_close(loss, network.head.loss(*given, target))
    aux = [part.aux_loss for part in network.modules() if getattr(part, "aux_loss", None) is not None]
    assert len(aux) == (count > 0)
    (loss + sum(aux)).backward()
    for parameter, p in network.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), parameter
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images(3)[1:2])[0], network(images(3))[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "module",
    [PAM(8), CAM(8), ACMILPool(8), ACMILQueryPool(8), LandmarkQueryHead(8, 3), ACMILHead(8, 3, 8)],
    ids=lambda module: type(module).__name__,
)
def test_export_for_batches_of_any_size(module):
    module.eval()
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(module, (torch.randn(2, 9, 8),), dynamic_shapes=({0: batch},)).module()
    for count in (1, 3):
        tokens = torch.randn(count, 9, 8)
        torch.testing.assert_close(program(tokens), module(tokens))
