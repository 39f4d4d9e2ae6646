"""Networks and mechanisms against numbers that other people's code gave."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import GOLDEN, fill_by_rule, posterpp_facts, posterpp_shapes, rng, weight

from mien.networks import btn, load_network, poster
from mien.networks.convert import convert
from mien.networks.published import from_poster
from mien.nn import BatchTransformer, class_batch_attention
from mien.training.sam import SAM

DEAD = (
    "VIT.patch_embed.",
    "VIT.eca_block.",
    "VIT.CON1.",
    "VIT.IRLinear1.",
    "VIT.IRLinear2.",
    "VIT.blocks.0.conv.",
    "VIT.blocks.1.conv.",
    "ir_back.output_layer.",
)
"""What the published code never reads."""

UNREAD = (*DEAD, "face_landback.output_layer.", *(f"attn{i}.relative_position_index" for i in (1, 2, 3)))
"""And what decides nothing: landmarks that nobody uses, and an index that follows from the size."""


def load(name):
    with np.load(GOLDEN / name) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def by_place(maps):
    """(B, D, H, W) -> (B, H, W, D), as the published code keeps its windows."""
    return maps.permute(0, 2, 3, 1)


@pytest.fixture(scope="module")
def state():
    return fill_by_rule(posterpp_shapes())


@pytest.fixture(scope="module")
def golden():
    return load("posterpp.npz")


@pytest.fixture(scope="module")
def run(state, tmp_path_factory):
    """The published weights through `convert` and `load_network`, and every tensor on the way to the logits."""
    folder = tmp_path_factory.mktemp("posterpp")
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": t for name, t in state.items()}}, folder / "best.pth")
    network = load_network(convert("poster", folder / "best.pth", folder / "poster.safetensors"))
    for file in folder.iterdir():
        file.unlink()
    seen = {}

    def keep(name, change=lambda x: x, given=False):
        def hook(module, inputs, output):
            seen[name] = change(inputs[0] if given else output).detach()

        return hook

    for i in range(3):
        n, side = i + 1, network.cross[i].size
        square = lambda x, side=side: x.unflatten(1, (side, side))  # noqa: E731
        network.landmarks.register_forward_hook(keep(f"face{n}", lambda maps, i=i: maps[i]))
        network.image.register_forward_hook(keep(f"ir{n}", lambda maps, i=i: maps[i]))
        network.image_adapt[i].register_forward_hook(keep(f"ir{n}_down"))
        network.cross[i].norm1.register_forward_hook(keep(f"win{n}_normed", square))
        network.cross[i].proj.register_forward_hook(keep(f"attn{n}_out"))
        network.cross[i].register_forward_hook(keep(f"ffn{n}_out", by_place))
    network.landmark_adapt[2].register_forward_hook(keep("face3_proj"))
    first, second = network.vit.blocks
    first.register_forward_hook(keep("tokens", lambda x: (x - network.vit.pos_embed)[:, 1:], given=True))
    first.register_forward_hook(keep("vit_block0"))
    second.register_forward_hook(keep("vit_block1"))
    network.vit.norm.register_forward_hook(keep("vit_norm_cls"))
    network.vit.gate.register_forward_hook(keep("vit_se_out"))

    picture = torch.from_numpy(rng("golden.input").standard_normal((2, 3, 224, 224)).astype(np.float32))
    assert hashlib.sha256(picture.numpy().tobytes()).hexdigest() == posterpp_facts()["input_sha256"]
    seen["face_input_112"] = images = F.interpolate(picture, 112, mode="nearest")
    logits = network(images)
    loss = F.cross_entropy(logits, torch.tensor([0, 3]))
    loss.backward()
    seen["logits"] = logits.detach()
    return SimpleNamespace(network=network, seen=seen, loss=loss.item(), images=images)


def test_weights_are_those_of_the_rule(state):
    """Before anything else: numpy still draws the numbers that the published code was filled with."""
    for name, digest in posterpp_facts()["sha256"].items():
        assert hashlib.sha256(state[name].numpy().tobytes()).hexdigest() == digest, name


def bare(make, **options):
    """A network without numbers: its names, shapes and sizes."""
    with torch.device("meta"):
        return make(**options)


def test_every_published_tensor_has_its_place_or_is_known_to_be_unread():
    names = posterpp_shapes()
    assert len(names) == 747
    places, unknown = from_poster({name: name for name in names})
    assert not unknown
    assert len(set(places.values())) == len(places)
    assert {name for name in names if name.startswith(UNREAD)} == names.keys() - places.values()
    assert places.keys() == bare(poster).state_dict().keys()


@pytest.mark.parametrize("name", [name for name in posterpp_facts()["tensors"] if name not in ("input", "logits_8cls")])
def test_posterpp(run, golden, name):
    fact, ours = posterpp_facts()["tensors"][name], run.seen[name]
    assert list(ours.shape) == fact["shape"]
    tolerance = 2e-3 if name in ("ir3", "ir3_down") else 1e-4  # their spread is 36, others' about 1
    expected = golden[name]
    ours = ours.flatten()[:: fact["stride"]].view_as(expected)
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=0)


def test_posterpp_of_eight_classes(state, run, golden):
    eight = posterpp_shapes(8)
    head = {name: weight(name, eight[name], True) for name in eight if name.startswith("VIT.head.")}
    tensors, unknown = from_poster(state | head)
    assert not unknown
    network = poster(num_classes=8).eval()
    network.load_state_dict(tensors)
    with torch.no_grad():
        logits = network(run.images)
    torch.testing.assert_close(logits, golden["logits_8cls"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[:, :7], golden["logits"], atol=1e-4, rtol=0)


def test_posterpp_gradients(run):
    expected = posterpp_facts()["grad_l2"]
    assert len(expected) == 252
    assert run.loss == pytest.approx(posterpp_facts()["loss"], abs=1e-5)
    names = dict(from_poster({name: name for name in posterpp_shapes()})[0])
    ours = {names[name]: p.grad for name, p in run.network.named_parameters()}
    frozen = {name for name, grad in ours.items() if grad is None}
    assert frozen == {name for name in ours if name.startswith("face_landback.")}
    assert ours.keys() - frozen == expected.keys()
    for name, l2 in expected.items():
        if l2 >= 1e-5:  # below, it is rounding
            assert ours[name].norm().item() == pytest.approx(l2, rel=1e-3), name


def test_posterpp_has_the_published_size(run):
    """43,849,957 parameters are executed there, of which the landmarks' head decides nothing."""
    unread = (*DEAD, "face_landback.output_layer.")
    shapes = posterpp_shapes()
    buffers = ("running_mean", "running_var", "num_batches_tracked", "relative_position_index")
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items() if not name.endswith(buffers)}
    assert sum(sizes.values()) == 58_316_594
    assert sum(size for name, size in sizes.items() if name.startswith(DEAD)) == 14_466_637
    landmark_head = sum(size for name, size in sizes.items() if name.startswith("face_landback.output_layer."))
    count = sum(p.numel() for p in run.network.parameters())
    assert count == 43_753_941 == sum(size for name, size in sizes.items() if not name.startswith(unread))
    assert count + landmark_head == 43_849_957


def test_btn_adds_what_the_paper_says_to_posterpp():
    added = sum(p.numel() for p in bare(btn).parameters()) - sum(p.numel() for p in bare(poster).parameters())
    assert added == 1_361_765  # the paper: 1.3 M


def test_btn_warm_starts_as_posterpp(run, golden):
    """With a gate at 0 only the layer scales stand between them: the answers differ by a share of that size, or not."""
    warm = btn(mla_gate_lower=True, mla_init_values=1e-5).eval()
    left = warm.load_state_dict(run.network.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert all(name.startswith(("mla_mid.", "mla_high.", "batch_transformer.")) for name in left.missing_keys)
    differences = {}
    with torch.no_grad():
        for scale in (1e-5, 1e-4, 1e-3, 0.0):
            for name, p in warm.named_parameters():
                if name.startswith("mla") and name.endswith("gamma"):
                    p.fill_(scale)
            differences[scale] = (warm(run.images) - run.seen["logits"]).abs().max().item()
    assert differences[0.0] == 0
    assert 0 < differences[1e-5] < 1e-4 < 1e-3 * golden["logits"].abs().max()
    assert differences[1e-3] == pytest.approx(10 * differences[1e-4], rel=0.2)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("encoded", [False, True], ids=["nope", "pe"])
@pytest.mark.parametrize("classes, faces", [(7, 6), (8, 5), (7, 1)])
def test_class_batch_attention(classes, faces, encoded, dtype, tolerance):
    def draw(name, *shape):
        return torch.from_numpy(rng(name).standard_normal(shape)).to(dtype)

    query, key = (draw(f"btn.{name}.{classes}.{faces}", faces, classes, 49) for name in "qk")
    value = draw(f"btn.v.{classes}.{faces}", faces, classes)
    branch = BatchTransformer(classes, classes, encoding="learned" if encoded else "none").to(dtype)
    if encoded:
        branch.encoding.table.data = 0.1 * draw(f"btn.pe.{classes}", 1, classes, 49)
    q, k = branch.encoding(query), branch.encoding(key)
    cba, attn = class_batch_attention(q, k, value)
    expected = load("cba.npz")
    case = f"C{classes}_N{faces}.{'pe' if encoded else 'nope'}"
    near = {"atol": tolerance, "rtol": 0, "check_dtype": False}
    torch.testing.assert_close(attn, expected[f"{case}.weights"], **near)
    torch.testing.assert_close(cba, expected[f"{case}.cba"], **near)

    # and the whole branch, with embeddings that pass on what they get, the second of them the key instead of the map
    identity = torch.eye(classes, dtype=dtype)[:, :, None, None]
    with torch.no_grad():
        for embed in (branch.embed_q, branch.embed_k):
            embed.weight.copy_(identity)
            embed.bias.zero_()
        branch.embed_k.register_forward_pre_hook(lambda module, _: key.unflatten(2, (7, 7)))
        got = branch(query.unflatten(2, (7, 7)), value)
    torch.testing.assert_close(got["cba"], expected[f"{case}.cba"], **near)
    torch.testing.assert_close(got["bt"], expected[f"{case}.bt"], **near)


@pytest.mark.parametrize("kind", ["plain", "adaptive"])
def test_sam(kind):
    expected = json.loads((GOLDEN / "sam.json").read_text())[kind]
    p = torch.nn.Parameter(torch.from_numpy(rng("sam.p").standard_normal(5)))
    a = torch.from_numpy(rng("sam.A").standard_normal((5, 5)))
    a = a @ a.T / 5
    optimizer = SAM(torch.optim.Adam([p], lr=1e-2), rho=0.05, adaptive=kind == "adaptive")
    visited = []

    def closure():
        visited.append(p.detach().clone())
        optimizer.zero_grad()
        loss = 0.5 * p @ a @ p + (p**4).sum() / 4
        loss.backward()
        return loss

    for _ in range(3):
        loss = optimizer.step(closure)
        torch.testing.assert_close(loss.detach(), 0.5 * visited[-2] @ a @ visited[-2] + (visited[-2] ** 4).sum() / 4)
    for ours, name in (
        (torch.stack([*visited[::2], p.detach()]), "trajectory"),
        (torch.stack(visited[1::2]), "perturbed"),
    ):
        torch.testing.assert_close(ours, torch.tensor(expected[name], dtype=torch.float64), atol=1e-12, rtol=0)
