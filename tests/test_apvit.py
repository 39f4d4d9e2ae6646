"""APViT against its own code's numbers; attentive pooling by itself; its files; what others rely on."""

import itertools
import json
import warnings
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from published import GOLDEN, apvit_shapes, fill_small, flat_ir50_shapes, foamliu_shapes, timm_vit_shapes
from torch import nn

from mien.checkpoint import labels_of, read_header
from mien.engines import OnnxRuntimeEngine, OpenVINOEngine
from mien.errors import CheckpointError, MienError
from mien.export import export_onnx
from mien.labels import ORDERS
from mien.networks import (
    IR50,
    APViT,
    Deployed,
    MobileFaceNet,
    PooledViT,
    apvit,
    apvit_mobile,
    build,
    deit_tiny,
    hybrid_deit_tiny,
    load_network,
    save_network,
)
from mien.networks.convert import KINDS, _labels, convert
from mien.networks.published import from_apvit, from_timm_vit
from mien.nn import AttentiveSelect, Block, ClassAttentionPool, SelfAttention, observe
from mien.nn.observe import attentions
from mien.nn.select import Criterion
from mien.training.run import start_from

FACTS = json.loads((GOLDEN / "apvit.json").read_text())
SETTINGS = ((196, 1.0), (160, 0.9), (80, 0.6), (10, 0.6))
near = partial(torch.testing.assert_close, atol=2e-5, rtol=0)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "apvit.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def under(prefix, tensors):
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def published_input():
    rng = np.random.default_rng(112)
    low = rng.standard_normal((2, 3, 14, 14)).astype(np.float32)
    high = rng.standard_normal((2, 3, 112, 112)).astype(np.float32)
    return torch.from_numpy(low.repeat(8, 2).repeat(8, 3) + np.float32(0.25) * high)


class Known(nn.Module):
    """A trunk whose last map was computed before."""

    def __init__(self, maps):
        super().__init__()
        self.maps, self.levels = maps, ((maps.shape[1], maps.shape[2]),)

    def forward(self, images):
        return (self.maps[: len(images)],)


@pytest.fixture(scope="module")
def lanet(tmp_path_factory):
    """The published weights of the variant that learns its map, as a training script leaves them, converted."""
    folder = tmp_path_factory.mktemp("apvit")
    tensors = {f"module.{name}": t for name, t in fill_small(apvit_shapes(lanet=True)).items()}
    torch.save({"meta": {"epoch": 40, "mmcls_version": "0"}, "state_dict": tensors}, folder / "latest.pth")
    out = convert("apvit", folder / "latest.pth", folder / "apvit.safetensors")
    network, header = load_network(out), read_header(out)
    for file in folder.iterdir():
        file.unlink()
    return SimpleNamespace(network=network, header=header)


@pytest.fixture(scope="module")
def run(lanet):
    """The same without the learned map; a step of it, and the trunk's maps, so that it need not run again."""
    network = bare(apvit)
    shared = {name: t for name, t in lanet.network.state_dict().items() if not name.startswith("select.")}
    network.load_state_dict(shared, assign=True)
    network.eval()
    images, seen = published_input(), {}
    hooks = [
        network.image.input_layer.register_forward_hook(lambda _, __, x: seen.update(stem=x.detach())),
        network.proj.register_forward_hook(lambda _, __, x: seen.update(proj=x.detach())),
        *(
            getattr(network.image, f"body{i}").register_forward_hook(
                lambda _, __, x, i=i: seen.update({f"stage{i}": x.detach()})
            )
            for i in (1, 2, 3)
        ),
    ]
    loss = F.cross_entropy(network(images), torch.tensor([0, 3]))
    loss.backward()
    for hook in hooks:
        hook.remove()
    before = {name: t.clone() for name, t in network.named_buffers()}
    with torch.no_grad():
        trained = network.train()(images)
    running = {name: t.clone() for name, t in network.named_buffers()}
    for name, buffer in network.eval().named_buffers():
        buffer.copy_(before[name])
    network.image, trunk = Known(seen["stage3"]), network.image
    lanet.network.image = network.image
    return SimpleNamespace(
        network=network, images=images, seen=seen, loss=loss.item(), trained=trained, running=running, trunk=trunk
    )


def bare(make, **options):
    with torch.device("meta"):
        return make(**options)


# numbers


def test_every_published_tensor_has_its_place():
    for plain in (True, False):
        shapes = apvit_shapes(lanet=not plain)
        tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        assert len(tensors) == 389 + 14 * (not plain)
        places, unknown = from_apvit(tensors)
        assert not unknown
        network = bare(apvit, patch_criterion="abs" if plain else "lanet")
        assert {n: t.shape for n, t in places.items()} == {n: t.shape for n, t in network.state_dict().items()}
        assert sum(p.numel() for p in network.parameters()) == 65_209_543 + 37_059 * (not plain)
    assert sum(p.numel() for p in bare(IR50).parameters()) == 17_611_968


def test_maps(run, golden):
    for name, channels, step in (("stem", 16, 8), ("stage1", 16, 4), ("stage2", 32, 2), ("stage3", 32, 1)):
        maps = run.seen[name]
        near(maps[:, ::channels, ::step, ::step], golden[name + "_s" * (name != "stage3")])
        if name != "stage3":
            near(torch.stack([maps.mean((2, 3)), maps.std((2, 3), correction=0)]), golden[f"{name}_stats"])
    near(run.seen["proj"][:, ::128], golden["proj_s"])
    patches = run.seen["proj"].flatten(2).mT
    torch.testing.assert_close(run.network.select.map(patches).view(2, 1, 14, 14), golden["attn_map"])


@pytest.mark.parametrize("keep, rate", SETTINGS)
def test_every_token_on_the_way(run, golden, keep, rate):
    """Indexes exactly, and every block's tokens, class token and scores."""
    network, expected = run.network, under(f"k{keep}_r{rate}/", golden)
    network.keep_patches, network.keep_rate = keep, rate
    places = range(196)
    with torch.no_grad():
        patches = network.patches(run.images)
        tokens, index = network.select(patches, patches)
        assert ("app_index" in expected) == (keep < 196)
        if keep < 196:
            assert torch.equal(index, expected["app_index"].long())
        x, places, counts = network.vit.start(tokens, index), index, [keep + 1]
        near(x[:, :, ::256], expected["tokens_in_s"])
        near(x[:, 0, ::16], expected["cls_in"])
        for i, block in enumerate(network.vit.blocks):
            whole = x.shape[1]
            x, kept, scores = block.selecting(x)
            near(scores.sum(1), expected[f"block{i}_cls_score"])
            near(x[:, :, ::256], expected[f"block{i}_tokens_s"])
            near(x[:, 0, ::16], expected[f"block{i}_cls"])
            if f"block{i}_keep_index" in expected:
                assert torch.equal(F.pad(kept + 1, (1, 0)), expected[f"block{i}_keep_index"].long())
            else:
                assert x.shape[1] == whole
            places = places.gather(1, kept)
            counts.append(x.shape[1])
        assert torch.equal(places, expected["final_patch_index"].long())
        assert counts == expected["token_counts"].tolist()
        near(network.vit.norm(x)[:, 0, ::8], expected["feature"])
        near(network(run.images), expected["logits"])
        near(network.forward_features(run.images)[:, ::8], expected["feature"])
    trace = network.trace(run.images)
    near(trace.logits, expected["logits"])
    assert torch.equal(trace.patches, index) and torch.equal(trace.blocks[-1].stayed, places)
    near(trace.blocks[-1].attn.sum(-1), torch.ones(2, 8))


def test_the_last_tokens_are_the_papers(golden):
    """Counted with the class token: 105 of 196 at (160, 0.9), and 10 at (80, 0.6)."""
    assert [golden[f"k{k}_r{r}/token_counts"][-1] for k, r in SETTINGS[1:]] == [105, 10, 2]


APP = {"SUM": "sum", "MAX": "max", "SUM_ABS_2": "square", "MAX_ABS_1": "max_abs"}


@pytest.mark.parametrize("name", APP)
def test_criteria_of_patches(run, golden, name):
    expected = under(f"variants/app_{name}_", golden)
    network = run.network
    network.keep_patches, network.keep_rate, network.select.criterion = 160, 0.9, APP[name]
    trace = network.trace(run.images)
    network.select.criterion = "abs"
    atol = 5e-5 if name == "SUM" else 2e-5  # signed terms cancel: without AVX-512, summed in another order, 3.7e-5
    torch.testing.assert_close(trace.worth, expected["map"].flatten(1), atol=atol, rtol=2e-6)
    assert torch.equal(trace.patches, expected["index"].long())
    near(trace.logits, expected["logits"])


@pytest.mark.parametrize("name, criterion", [("SUM_ABS_1", "abs"), ("MAX", "max")])
def test_criteria_of_tokens(run, golden, name, criterion):
    network = run.network
    network.keep_patches, network.keep_rate = 160, 0.9
    for block in network.vit.blocks:
        block.select.criterion = criterion
    with torch.no_grad():
        near(network(run.images), golden[f"variants/atp_{name}_logits"])
    for block in network.vit.blocks:
        block.select.criterion = "sum"


def test_the_learned_map(run, lanet, golden):
    """Its two last patches are 3e-5 apart: the map is held to more than its index, and the logits to the index."""
    expected = under("variants/app_LA_", golden)
    trace = lanet.network.trace(run.images)
    torch.testing.assert_close(trace.worth, expected["map"].flatten(1), atol=1e-6, rtol=0)
    index = expected["index"].long()
    for worth, ours, theirs in zip(trace.worth, trace.patches, index, strict=True):
        edge = worth.sort().values[36]
        assert all(abs(worth[place] - edge) < 1e-4 for place in set(ours.tolist()) ^ set(theirs.tolist()))
    near(trace.logits, expected["logits"], atol=2e-5 if torch.equal(trace.patches, index) else 1e-2)


def test_gradients(run):
    assert run.loss == pytest.approx(FACTS["loss"], abs=1e-6)
    names, _ = from_apvit({name: name for name in apvit_shapes()})
    network_grads = {names[name]: p.grad.norm().item() for name, p in grads(run).items()}
    assert network_grads.keys() == FACTS["grad_l2"].keys() and len(network_grads) == 254
    for name, l2 in FACTS["grad_l2"].items():
        assert network_grads[name] == pytest.approx(l2, rel=1e-3), name


def grads(run):
    own = {name: p for name, p in run.network.named_parameters() if not name.startswith("image.")}
    return own | {f"image.{name}": p for name, p in run.trunk.named_parameters()}


def test_in_training(run):
    near(run.trained, torch.tensor(FACTS["train_logits"]))
    names, _ = from_apvit({name: name for name in apvit_shapes()})
    ours = {names[name]: buffer for name, buffer in run.running.items()}
    for name, values in FACTS["running"].items():
        torch.testing.assert_close(ours[name][: len(values)], torch.tensor(values), atol=2e-5, rtol=1e-5)


# what it costs


def flops(network, size=112, batch=1):
    """As fvcore counts: a product is one; what is fused counts as nothing, so attention is opened."""
    with warnings.catch_warnings(), observe(network) if attentions(network) else nullcontext():
        warnings.simplefilter("ignore")  # of the tracer
        count = FlopCountAnalysis(
            network.eval(), torch.zeros(batch, 3, size, size, device=next(network.parameters()).device)
        )
        return count.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


TABLE = {  # GFLOPs and percent of the unpooled network's, as the paper's tables and their recount have them
    (196, 1.0): ("15.3021", "100.00"),
    (196, 0.9): ("14.3355", "93.68"),
    (160, 1.0): ("13.4427", "87.85"),
    (160, 0.9): ("12.6665", "82.78"),
    (120, 0.9): ("10.8409", "70.85"),
    (80, 1.0): ("9.4247", "61.59"),
    (196, 0.6): ("12.4286", "81.22"),
    (80, 0.6): ("8.2740", "54.07"),
    (40, 0.6): ("6.9037", "45.12"),
    (10, 0.6): ("5.8875", "38.48"),
}


def test_flops_of_every_row(run):
    """To the last operation what fvcore counts in the published code, and so to every printed digit."""
    network = run.network
    trunk = flops(run.trunk)
    for key, total in FACTS["flops"].items():
        if key.startswith("hybrid"):
            continue
        keep, rate = key.split("_")
        network.keep_patches, network.keep_rate = int(keep), float(rate)
        counted = trunk + flops(network)
        assert counted == total, key
        if (int(keep), float(rate)) in TABLE:
            shown = (f"{counted / 1e9:.4f}", f"{100 * counted / FACTS['flops']['196_1.0']:.2f}")
            assert shown == TABLE[int(keep), float(rate)]


def test_flops_of_the_smaller_ones():
    pooled, plain = hybrid_deit_tiny(), hybrid_deit_tiny(keep_patches=None, keep_rate=1.0)
    assert flops(pooled) == FACTS["flops"]["hybrid_deit_tiny_12_ap"] == 6_099_978_880
    assert flops(plain) == FACTS["flops"]["hybrid_deit_tiny_12"] == 6_717_168_640
    assert sum(p.numel() for p in pooled.parameters()) == 23_039_431
    assert f"{flops(deit_tiny(keep_rate=1.0), 224) / 1e9:.4f}" == "1.2582"
    network = deit_tiny()
    assert f"{flops(network, 224) / 1e9:.4f}" == "0.9598"
    for pooling, count in ((4, "1.105"), (8, "0.792")):  # which tells that six blocks of twelve pool, and their order
        network.keep_rate = [1.0] * (12 - pooling) + [0.8] * pooling
        assert f"{flops(network, 224) / 1e9:.3f}" == count


def test_apvit_mobile_is_made_for_a_phone():
    network = apvit_mobile()
    assert sum(p.numel() for p in network.parameters()) == 2_111_304 <= 5e6
    assert flops(network) == 482_653_504
    twin = apvit_mobile(keep_patches=None, keep_rate=1.0)
    assert flops(twin) == 570_569_920 <= 0.6e9


# tokens


def tiny(awake=True, **options):
    """196 patches of 4×4 pixels, 16 wide; `awake`: with weights other than those it starts from."""
    torch.manual_seed(0)
    options = {"num_classes": 5, "img_size": 56, "depth": 8, "keep_patches": 160, "keep_rate": 0.9, **options}
    network = APViT(image=None, patch_size=4, embed_dim=16, num_heads=2, mlp_ratio=2.0, **options).eval()
    if awake:
        for p in network.parameters():
            p.data += 0.3 * torch.randn_like(p)
    if network.select.lanet is not None:
        network.select.lanet.bn1.bias.data += 3  # or the ReLU of its one channel gives many patches the same worth
    return network


def pictures(batch=3, size=56):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


COUNTS = {
    (196, 1.0): [197] * 9,
    (160, 0.9): [161, 161, 161, 161, 161, 145, 130, 117, 105],
    (80, 0.6): [81, 81, 81, 81, 81, 49, 29, 17, 10],
    (40, 0.6): [41, 41, 41, 41, 41, 25, 15, 9, 5],
    (10, 0.6): [11, 11, 11, 11, 11, 7, 4, 2, 2],
    (1, 0.5): [2] * 9,
}


def counts(network, images):
    blocks = network.trace(images).blocks
    return [1 + t.shape[1] for t in (blocks[0].came, *(block.stayed for block in blocks))]


@pytest.mark.parametrize("keep, rate", COUNTS)
def test_token_counts(keep, rate):
    network, seen = tiny(keep_patches=keep, keep_rate=rate), []
    assert counts(network, pictures()) == COUNTS[keep, rate]
    for block in network.vit.blocks:
        block.register_forward_hook(lambda _, __, x: seen.append(x.shape[1]))
    network(pictures())
    assert seen == COUNTS[keep, rate][1:]


@pytest.mark.parametrize("batch", [8, 9, 10])
def test_a_batch_of_as_many_faces_as_tokens_is_pooled_as_any(batch):
    """The published code compares the number of tokens with the length of an index, which is the batch's: with nine
    faces and nine tokens none of them left."""
    network = tiny(keep_patches=8, keep_rate=0.6)
    assert counts(network, pictures(batch)) == [9, 9, 9, 9, 9, 5, 3, 2, 2]
    torch.testing.assert_close(
        network(pictures(10))[:batch], network(pictures(batch) if batch == 10 else pictures(10)[:batch])
    )


def test_counts_are_those_of_pythons_floats():
    assert [AttentiveSelect(rate=0.7).count(n) for n in (90, 170, 180)] == [62, 118, 125]  # exactly: 63, 119, 126
    assert [AttentiveSelect(rate=0.3).count(n) for n in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert AttentiveSelect().count(7) == 7 and AttentiveSelect(keep=5).count(7) == 5


# selecting by itself

CRITERIA = get_args(Criterion)
every_criterion = pytest.mark.parametrize("criterion", CRITERIA)
BY_HAND = {
    "abs": lambda e: sum(abs(x) for x in e),
    "sum": sum,
    "max": max,
    "square": lambda e: sum(x * x for x in e),
    "max_abs": lambda e: max(abs(x) for x in e),
    "random": lambda e: e[0],
}


def select(criterion, dim=5, **options):
    torch.manual_seed(0)
    module = AttentiveSelect(criterion=criterion, dim=dim, **options)
    for p in module.parameters():
        p.data += 0.5 * torch.randn_like(p)
    if criterion == "lanet":
        module.lanet.bn1.bias.data += 3  # or its ReLU gives many the same worth
    return module.eval()


def evidence(batch=4, n=9, dim=5, dtype=torch.float32):
    return torch.randn(batch, n, dim, generator=torch.Generator().manual_seed(2)).to(dtype)


@every_criterion
def test_what_is_kept_is_what_matters_most_in_its_order(criterion):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        module, seen = select(criterion, keep=4).to(dtype), evidence(dtype=dtype)
        tokens = torch.arange(4 * 9 * 2).view(4, 9, 2).to(dtype)
        kept, index = module(tokens, seen)
        assert kept.shape == (4, 4, 2) and kept.dtype == dtype and index.shape == (4, 4)
        worth = module.map(seen)
        for b in range(4):
            if criterion != "lanet":
                by_hand = [BY_HAND[criterion](row) for row in seen[b].double().tolist()]
                torch.testing.assert_close(worth[b].double(), torch.tensor(by_hand).double(), atol=1e-6, rtol=1e-2)
            best = sorted(sorted(range(9), key=lambda n: -worth[b, n].item())[:4])
            assert index[b].tolist() == best
            factor = worth[b, best][:, None] if criterion == "lanet" else 1
            assert torch.equal(kept[b], tokens[b, best] * factor)


@every_criterion
def test_keeping_all_does_nothing(criterion):
    tokens = torch.randn(2, 9, 3)
    for module in (select(criterion), select(criterion, keep=9), select(criterion, rate=0.999)):
        kept, index = module(tokens, evidence(2))
        if module.rate < 1:
            assert not module.idle(9) and kept.shape == (2, 8, 3)
            continue
        assert index.tolist() == [list(range(9))] * 2
        assert module.idle(9) == (criterion != "lanet")
        if criterion == "lanet":  # the learned map still weighs them
            torch.testing.assert_close(kept, tokens * module.map(evidence(2))[..., None])
        else:
            assert kept is tokens


@every_criterion
def test_gradients_of_selecting(criterion):
    """What is kept has its own gradient, and evidence one where the tokens are multiplied by the map."""
    for soft in (False, True):
        module = select(criterion, soft=soft, **({} if soft else {"keep": 4})).double()
        tokens = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
        seen = evidence(2, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda t, e, module=module: module(t, e)[0], (tokens, seen), fast_mode=True)
        kept, index = module(tokens, seen)
        kept.sum().backward()
        weighed = soft or criterion == "lanet"
        assert (seen.grad is not None and seen.grad.abs().max() > 0) == weighed
        if not weighed:
            assert torch.equal(
                tokens.grad, torch.zeros(2, 9, 3).scatter(1, index[..., None].expand(-1, -1, 3), 1).double()
            )
        for name, p in module.named_parameters():
            assert p.grad.isfinite().all() and p.grad.abs().max() > 0, name


def test_soft_pooling_drops_nothing():
    tokens, seen = torch.randn(2, 9, 3), evidence(2)
    kept, index = select("sum", soft=True)(tokens, seen)
    worth = seen.sum(-1)
    torch.testing.assert_close(kept, tokens * (worth / worth.abs().amax(1, keepdim=True))[..., None])
    assert index.tolist() == [list(range(9))] * 2
    kept, _ = select("lanet", soft=True)(tokens, seen)
    torch.testing.assert_close(kept, tokens * select("lanet").map(seen)[..., None])
    assert select("abs", soft=True)(tokens, 0 * seen)[0].isfinite().all()


@every_criterion
def test_tokens_without_evidence_stay_as_they_are(criterion):
    for soft, prefix in itertools.product((False, True), (1, 3)):
        module, tokens, seen = select(criterion, soft=soft), torch.randn(4, prefix + 9, 3), evidence()
        if not soft:
            module.rate = 0.5
        kept, index = module(tokens, seen)
        alone, of_others = module(tokens[:, prefix:], seen)
        assert torch.equal(index, of_others)
        assert torch.equal(kept, torch.cat([tokens[:, :prefix], alone], dim=1))


@every_criterion
def test_selecting_looks_at_one_face(criterion):
    module, tokens = select(criterion, rate=0.5), torch.randn(4, 9, 3)
    kept, index = module(tokens, evidence())
    for i in range(4):
        alone, places = module(tokens[i : i + 1], evidence()[i : i + 1])
        assert torch.equal(places[0], index[i])
        torch.testing.assert_close(alone[0], kept[i])


def test_random_draws_anew_in_training_alone():
    module, tokens, seen = select("random", keep=3), torch.randn(2, 9, 3), evidence(2)
    assert torch.equal(module(tokens, seen)[1], module(tokens, seen)[1])
    module.train()
    assert len({tuple(module(tokens, seen)[1].flatten().tolist()) for _ in range(30)}) > 1


def test_how_many_are_kept_can_be_set():
    module = AttentiveSelect(keep=4)
    assert (module.keep, module.rate) == (4, 1.0)
    module.rate = 0.5
    assert (module.keep, module.rate) == (None, 0.5) and module.count(9) == 4
    module.keep = 7
    assert (module.keep, module.rate) == (7, 1.0) and module.count(9) == 7
    for name, value in (("keep", 0), ("keep", 2.5), ("rate", 0), ("rate", 1.01), ("rate", float("nan"))):
        with pytest.raises(ValueError, match=name):
            setattr(module, name, value)
    assert module.keep == 7


@pytest.mark.parametrize(
    "options, message",
    [
        ({"criterion": "l2"}, "the criterion must be one of abs, sum, .* lanet, not 'l2'"),
        ({"keep": 0}, "keep must be a whole number above 0, not 0"),
        ({"keep": 1.5}, "keep must be a whole number"),
        ({"rate": 0.0}, r"the rate must be above 0 and at most 1, not 0\.0"),
        ({"rate": 1.2}, "the rate must be above 0"),
        ({"rate": -0.5}, "the rate must be above 0"),
        ({"keep": 3, "rate": 0.5}, "not both"),
        ({"soft": True, "keep": 3}, "soft pooling drops nothing"),
        ({"soft": True, "rate": 0.5}, "soft pooling drops nothing"),
        ({"criterion": "lanet"}, "lanet needs dim"),
    ],
)
def test_wrong_selecting_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        AttentiveSelect(**options)


def test_more_than_there_are_cannot_be_kept():
    with pytest.raises(ValueError, match="10 tokens are to be kept, and there are 9"):
        select("sum", keep=10)(torch.randn(1, 9, 3), evidence(1))


# blocks


@pytest.mark.parametrize("scale", [None, 0.05])
@pytest.mark.parametrize("show", [False, True], ids=["fused", "open"])
def test_class_scores_are_one_row_of_all(scale, show):
    torch.manual_seed(0)
    mixer = SelfAttention(16, 2, scale=scale)
    tokens = torch.randn(3, 7, 16)
    q, k, v = mixer.qkv(tokens).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    scores = q @ k.mT * (scale or 8**-0.5)
    with observe(mixer) if show else nullcontext():
        mixed, row = mixer.with_class_scores(tokens)
    torch.testing.assert_close(row, scores[:, :, 0])
    torch.testing.assert_close(mixed, mixer.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))
    torch.testing.assert_close(mixer(tokens), mixed)


def test_a_block_that_selects_is_its_formula():
    torch.manual_seed(0)
    block = Block(16, 2, mlp_ratio=2, select=AttentiveSelect(rate=0.5, criterion="sum"), init_values=0.5).eval()
    x = torch.randn(3, 9, 16)
    mixed, scores = block.attn.with_class_scores(block.norm1(x))
    y = x + block.ls1(mixed)
    index = scores[:, :, 1:].sum(1).topk(4).indices.sort().values + 1
    y = torch.stack([torch.cat([row[:1], row[places]]) for row, places in zip(y, index, strict=True)])
    expected = y + block.ls2(block.mlp(block.norm2(y)))
    torch.testing.assert_close(block(x), expected)
    tokens, kept, seen = block.selecting(x)
    assert torch.equal(kept + 1, index) and torch.equal(seen, scores)
    torch.testing.assert_close(tokens, expected)
    block.select.rate = 1.0
    whole = x + block.ls1(block.attn(block.norm1(x)))
    torch.testing.assert_close(block(x), whole + block.ls2(block.mlp(block.norm2(whole))))


def test_a_mixer_without_class_scores_cannot_select():
    class Mean(nn.Module):
        def __init__(self, dim, num_heads):
            super().__init__()

    Block(16, 2, mixer=Mean)
    with pytest.raises(ValueError, match="Mean has no class scores"):
        Block(16, 2, mixer=Mean, select=AttentiveSelect(rate=0.5))


# the network's options


def test_it_starts_as_published():
    network = tiny(awake=False, num_action_units=3)
    for head in (network.head, network.action_units):
        assert not head.weight.any() and not head.bias.any()
    assert not network(pictures()).any()
    vit = network.vit
    assert not vit.cls_pos_embed.any() and all(not block.attn.proj.bias.any() for block in vit.blocks)
    for p in (vit.patch_pos_embed, vit.cls_token, vit.blocks[0].mlp.fc1.weight):
        assert p.std().item() == pytest.approx(0.02, rel=0.4)
    convolution = IR50(num_levels=1).body1[0].res_layer[1].weight
    assert convolution.std().item() == pytest.approx((2 / (2 * 64 * 9)) ** 0.5, rel=0.05)  # Xavier


# with a gradient of rounding alone: a softmax takes away what all keys share, and the batch norm behind LANet's one
# channel its shift and scale
TAKEN_AWAY = (
    *("attn.k.bias", "lanet.conv1.bias", "lanet.bn1.weight", "lanet.bn1.bias", "lanet.conv2.weight"),
    "lanet.conv2.bias",
)


def test_a_step_reaches_every_parameter():
    for options in ({}, {"patch_criterion": "lanet"}, {"pool": "mean"}, {"pool": ClassAttentionPool}):
        network = tiny(depth=2, **options).train()
        F.cross_entropy(network.training_logits(pictures())["logits"], torch.tensor([0, 3, 1])).backward()
        for name, p in network.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), name
            assert (p.grad.abs().max() > 1e-6) != name.endswith(TAKEN_AWAY), name


def test_pools():
    network = tiny(pool="mean")
    tokens = network.vit(*network.select(*[network.patches(pictures())] * 2))
    torch.testing.assert_close(network.forward_features(pictures()), tokens[:, 1:].mean(1))
    network.pool = "class"
    torch.testing.assert_close(network.forward_features(pictures()), tokens[:, 0])
    network = tiny(pool=partial(ClassAttentionPool, num_heads=4, depth=1))
    tokens = network.vit(*network.select(*[network.patches(pictures())] * 2))
    torch.testing.assert_close(network.forward_features(pictures()), network.pool(tokens[:, 1:]))


def test_two_heads_on_one_feature():
    network = tiny(num_action_units=12)
    logits = network.training_logits(pictures())
    assert {name: tuple(x.shape) for name, x in logits.items()} == {"expression": (3, 5), "action_units": (3, 12)}
    assert network.loss_weights == {"expression": 10.0, "action_units": 1.0}
    torch.testing.assert_close(network(pictures()), logits["expression"])
    torch.testing.assert_close(network.action_units(network.forward_features(pictures())), logits["action_units"])
    assert tiny().loss_weights == {"logits": 1.0}


def test_pooling_of_a_network_can_be_set():
    network = tiny()
    parameters = [name for name, _ in network.named_parameters()]
    assert network.keep_patches == 160 and network.keep_rate == [1.0] * 4 + [0.9] * 4
    network.keep_patches, network.keep_rate = None, [1.0] * 7 + [0.5]
    assert network.keep_patches is None and counts(network, pictures()) == [197] * 8 + [99]
    network.keep_patches, network.keep_rate = 80, 0.6
    assert torch.equal(network(pictures()), tiny(keep_patches=80, keep_rate=0.6)(pictures()))
    assert parameters == [name for name, _ in network.named_parameters()]
    for name, value in (("keep_patches", 197), ("keep_patches", 0), ("keep_rate", 0.0), ("keep_rate", [0.9] * 7)):
        with pytest.raises(ValueError, match=f"{name}|rate|keep"):
            setattr(network, name, value)


def test_soft_patches():
    network = tiny(soft=True, keep_patches=None, keep_rate=1.0)
    assert counts(network, pictures()) == [197] * 9
    network.keep_rate = 0.6
    assert counts(network, pictures())[-1] == 26
    with pytest.raises(ValueError, match="soft pooling drops no patches"):
        network.keep_patches = 160


def test_positions_are_those_among_all_patches():
    network = tiny(keep_patches=30)
    patches = network.patches(pictures())
    tokens, index = network.select(patches, patches)
    x = network.vit.start(tokens, index)
    for b in range(3):
        expected = (patches[b] + network.vit.patch_pos_embed[0])[index[b]]
        torch.testing.assert_close(x[b, 1:], expected)
        torch.testing.assert_close(x[b, :1], (network.vit.cls_token + network.vit.cls_pos_embed)[0])


def test_the_scale_of_scores_is_an_option():
    network, other = tiny(), tiny(qk_scale=16**-0.5)
    assert not torch.allclose(network(pictures()), other(pictures()))
    torch.testing.assert_close(network(pictures()), tiny(qk_scale=8**-0.5)(pictures()))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"keep_patches": 197}, "keep_patches is 197, and there are 196 patches"),
        ({"keep_patches": 0}, "keep must be a whole number above 0"),
        ({"keep_rate": 0.0}, "the rate must be above 0 and at most 1"),
        ({"keep_rate": 1.1}, "the rate must be above 0 and at most 1"),
        ({"keep_rate": [0.9, 0.9]}, "keep_rate has 2 rates for 8 blocks"),
        ({"patch_criterion": "l2"}, "the criterion must be one of"),
        ({"token_criterion": "l2"}, "the criterion must be one of"),
        ({"token_criterion": "lanet"}, "lanet judges patches"),
        ({"soft": True}, "soft pooling drops no patches"),
        ({"pool": "max"}, "pool must be 'class', 'mean' or make a pool, not 'max'"),
        ({"img_size": 57}, "img_size 57 is not a multiple of patch_size 4"),
        ({"qk_scale": -1.0}, "the scale of scores must be above 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_trunks_that_do_not_fit_are_told():
    trunk = MobileFaceNet(num_levels=1)
    make = partial(APViT, image=trunk, num_classes=3, embed_dim=16, depth=1, num_heads=2)
    assert make().num_patches == 784
    with pytest.raises(ValueError, match="the trunk has 1 levels, and none is number 1"):
        make(level=1)
    with pytest.raises(ValueError, match="those of 112 pixels, not of 224"):
        make(img_size=224)
    with pytest.raises(ValueError, match="keep_patches is 800, and there are 784 patches"):
        make(keep_patches=800)
    with pytest.raises(CheckpointError, match="apvit_mobile cannot be built: .*keep_patches is 200"):
        build({"class_path": "mien.networks.apvit_mobile", "init_args": {"keep_patches": 200}})


def test_images_of_another_size_are_refused():
    for network, size, message in (
        (tiny(), 64, "images of 64×64 pixels give 16×16 patches, and positions are for 14×14"),
        (apvit_mobile().eval(), 224, "images of 224×224 pixels give 28×28 patches"),
    ):
        with pytest.raises(ValueError, match=message):
            network(torch.zeros(1, 3, size, size))


def test_any_level_of_a_trunk():
    network = APViT(image=MobileFaceNet(), level=1, num_classes=3, embed_dim=16, depth=1, num_heads=2)
    assert network.num_patches == 196 and network.eval()(torch.zeros(1, 3, 112, 112)).shape == (1, 3)


@pytest.mark.parametrize("trunk", [MobileFaceNet, IR50])
def test_trunks_that_end_early_are_the_beginning_of_whole_ones(trunk):
    torch.manual_seed(0)
    whole, images = trunk().eval(), torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        maps = whole(images)
    for count in (1, 2, 3):
        part = trunk(num_levels=count).eval()
        part.load_state_dict(part.fit(whole.state_dict()))
        assert part.levels == trunk.levels[:count]
        with torch.no_grad():
            for ours, theirs in zip(part(images), maps[:count], strict=True):
                assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="num_levels must be 1, 2 or 3, not 4"):
        trunk(num_levels=4)


# its files


def header(class_path, **arguments):
    return {
        "mien": 1,
        "model": {"class_path": f"mien.networks.{class_path}", "init_args": arguments},
        "id2label": {str(i): name for i, name in enumerate(ORDERS["apvit8"])},
        "preprocess": {
            "align": "none",
            "resize": [{"size": 112}],
            "input_size": 112,
            "color": "rgb",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
    }


def mobile(**options):
    torch.manual_seed(0)
    network = apvit_mobile(**options).eval()
    for p in network.parameters():
        p.data += 0.02 * torch.randn_like(p)
    return network


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("criterion", ["abs", "lanet"])
def test_pooling_of_a_checkpoint_can_be_changed(criterion, tmp_path, images):
    network = mobile(patch_criterion=criterion)
    save_network(tmp_path / "a.safetensors", network, header("apvit_mobile", patch_criterion=criterion))
    assert torch.equal(load_network(tmp_path / "a.safetensors")(images), network(images))
    again = load_network(tmp_path / "a.safetensors", keep_patches=140, keep_rate=0.85)
    assert again.keep_patches == 140 and again.keep_rate == [1.0, 1.0, 0.85, 0.85]
    trace = again.trace(images)
    assert trace.patches.shape == (3, 140) and [b.stayed.shape[1] for b in trace.blocks] == [140, 140, 119, 101]
    network.keep_patches, network.keep_rate = 140, 0.85
    assert torch.equal(again(images), network(images))
    with pytest.raises(CheckpointError, match="keep_patches is 300"):
        load_network(tmp_path / "a.safetensors", keep_patches=300)


def test_what_a_converted_checkpoint_says(lanet):
    assert lanet.header["model"] == {
        "class_path": "mien.networks.apvit",
        "init_args": {"num_classes": 7, "patch_criterion": "lanet"},
    }
    assert labels_of(lanet.header) == ("anger", "disgust", "fear", "sadness", "happiness", "surprise", "neutral")
    preprocess = lanet.header["preprocess"]
    assert [(step["size"], step["interpolation"]) for step in preprocess["resize"]] == [(224, "auto"), (112, "linear")]
    np.testing.assert_allclose(np.array(preprocess["mean"]) * 255, (123.675, 116.28, 103.53))
    np.testing.assert_allclose(np.array(preprocess["std"]) * 255, (58.395, 57.12, 57.375))
    assert preprocess["align"] == "arcface112"
    assert lanet.network.keep_patches == 160 and lanet.network.keep_rate[3:5] == [1.0, 0.9]


def test_rafdb_counts_otherwise_than_apvit():
    """The place of RAF-DB's folders 1 to 7 among APViT's classes, as its data set has it."""
    assert tuple(ORDERS["apvit7"].index(name) for name in ORDERS["rafdb"]) == (5, 2, 1, 4, 3, 0, 6)


def hollow(shapes):
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def test_eight_classes_and_what_does_not_fit(tmp_path):
    places, _ = from_apvit({name: torch.empty(shape, device="meta") for name, shape in apvit_shapes(8).items()})
    assert KINDS["apvit"].arguments(places) == {"num_classes": 8}
    assert _labels(8, None, KINDS["apvit"].labels) == ORDERS["apvit8"]
    shapes = apvit_shapes()
    del shapes["vit.cls_pos_embed"]
    torch.save(hollow(shapes | {"extractor.body.3.0.res_layer.2.weight": (512,)}), tmp_path / "bad.pth")
    said = "1 missing: vit.cls_pos_embed; 1 without a place: 'extractor.body.3"
    with torch.device("meta"), pytest.raises(CheckpointError, match=said):
        convert("apvit", tmp_path / "bad.pth", tmp_path / "bad.safetensors")
    assert not (tmp_path / "bad.safetensors").exists()


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_timm_vits(wrapper, tmp_path):
    shapes = timm_vit_shapes(depth=2, dim=128, hidden=512, qkv_bias=True)
    tensors = fill_small(shapes)
    torch.save({wrapper: tensors} if wrapper else tensors, tmp_path / "vit.pth")
    out = convert("timm_vit", tmp_path / "vit.pth", tmp_path / "vit.safetensors")
    assert read_header(out)["model"] == {
        "class_path": "mien.networks.PooledViT",
        "init_args": {
            "num_tokens": 196,
            "embed_dim": 128,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 4.0,
            "qkv_bias": True,
            "qk_scale": None,
            "keep_rate": 1.0,
        },
    }
    vit = load_network(out)
    assert torch.equal(vit.patch_pos_embed, tensors["pos_embed"][:, 1:])
    assert torch.equal(vit.cls_pos_embed, tensors["pos_embed"][:, :1])
    options = {"embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 4.0, "qkv_bias": True}
    network = APViT(image=MobileFaceNet(num_levels=2), num_classes=3, keep_patches=100, keep_rate=0.5, **options)
    start_from(network, {"vit": str(out)})  # what a recipe's `init` does
    for name, p in network.vit.named_parameters():
        assert torch.equal(p, vit.state_dict()[name]), name
    del tensors["cls_token"]
    torch.save(tensors, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="1 missing: cls_token"):
        convert("timm_vit", tmp_path / "bad.pth", tmp_path / "bad.safetensors")


def test_the_vit_that_apvit_starts_from():
    """Its scores were scaled by 768^-1/2; the option that says so is not APViT's default."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in timm_vit_shapes().items()}
    places, unknown = from_timm_vit(tensors)
    assert not unknown
    arguments = KINDS["timm_vit"].arguments(places)
    assert arguments["qk_scale"] == pytest.approx(768**-0.5) and arguments["num_heads"] == 8
    vit = bare(PooledViT, **arguments)
    assert {n: t.shape for n, t in places.items()} == {n: t.shape for n, t in vit.state_dict().items()}
    assert places.keys() == under("vit.", bare(apvit).state_dict()).keys()
    assert {block.attn.attend.scale for block in vit.blocks} == {768**-0.5}
    assert {block.attn.attend.scale for block in bare(apvit).vit.blocks} == {None}


def test_trunks_start_from_whole_ones(tmp_path):
    torch.save(fill_small(foamliu_shapes()), tmp_path / "m.pt")
    whole = convert("mobilefacenet", tmp_path / "m.pt", tmp_path / "m.safetensors")
    network = apvit_mobile()
    start_from(network, {"image": str(whole)})
    assert torch.equal(network.image.stages[2][5].depthwise.bn.bias, load_network(whole).stages[2][5].depthwise.bn.bias)
    shapes = {name: shape for name, shape in flat_ir50_shapes().items() if name != "body.20.res_layer.4.bias"}
    torch.save(hollow(shapes), tmp_path / "ir50.pth")
    with pytest.raises(CheckpointError, match="body3.13.res_layer.4.bias"):
        convert("ir50", tmp_path / "ir50.pth", tmp_path / "ir50.safetensors")
    with pytest.raises(MienError, match="do not fit"):
        start_from(network, {"vit": str(whole)})


def test_positions_for_images_of_another_size(tmp_path):
    network = deit_tiny(img_size=64)
    other = bare(deit_tiny, img_size=96)
    fitted = other.fit(network.state_dict())
    assert {n: t.shape for n, t in fitted.items()} == {n: t.shape for n, t in other.state_dict().items()}


# what others rely on


@pytest.mark.parametrize("options", [{}, {"patch_criterion": "lanet", "pool": "mean"}], ids=["abs", "lanet"])
def test_a_face_has_the_same_logits_alone_and_among_others(options, images):
    network = mobile(**options).double()
    with torch.no_grad():
        together = network(images.double())
        for i in range(3):
            torch.testing.assert_close(network(images[i : i + 1].double()), together[i : i + 1], atol=1e-10, rtol=0)
    assert together.std(0).max() > 1e-3


def test_memory_format_and_autocast_change_nothing_but_rounding(images):
    network = mobile()
    with torch.no_grad():
        exact = network(images)
        network.to(memory_format=torch.channels_last)
        near(network(images.contiguous(memory_format=torch.channels_last)), exact, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(images).float()
    assert (rounded - exact).abs().mean() < 0.2 * exact.abs().mean()


def test_export():
    network = tiny(depth=1, soft=True, keep_patches=None)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (pictures(2),), dynamic_shapes=({0: batch},)).module()
    for count in (1, 3):
        near(program(pictures(count)), network(pictures(count)))


def test_compile():
    """In one piece, for batches of any size, forth and back."""
    network = tiny(depth=1).train()
    compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=True)
    found = []
    for run_it in (compiled, network):
        network.zero_grad()
        logits = run_it(pictures())
        logits.square().sum().backward()
        found.append({"logits": logits.detach()} | {name: p.grad for name, p in network.named_parameters()})
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(compiled(pictures(5)), network(pictures(5)), atol=1e-4, rtol=1e-4)


def test_onnx_of_the_learned_criterion(tmp_path):
    options = {"keep_patches": 50, "keep_rate": 0.6, "depth": 1, "patch_criterion": "lanet"}
    network, note = tiny(num_classes=8, **options), header("APViT")
    note["preprocess"] |= {"resize": [{"size": 56}], "input_size": 56}
    export_onnx(tmp_path / "tiny.onnx", network, note)
    engines = OpenVINOEngine(tmp_path / "tiny.onnx"), OnnxRuntimeEngine(tmp_path / "tiny.onnx")
    for count in (1, 2, 5):
        faces = np.random.default_rng(count).integers(0, 256, (count, 56, 56, 3), dtype=np.uint8)
        with torch.no_grad():
            expected, _ = Deployed(network, note["preprocess"])(torch.from_numpy(faces))
        for engine in engines:
            np.testing.assert_allclose(engine(faces)["logits"], expected.numpy(), atol=1e-4)


def test_ten_classes_of_any_pictures():
    """CIFAR-10, enlarged to 112."""
    assert apvit_mobile(num_classes=10).eval()(torch.zeros(1, 3, 112, 112)).shape == (1, 10)
