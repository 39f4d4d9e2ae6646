"""Networks of the literature against the numbers of their official code, and what each promises."""

import importlib
import itertools
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import header
from published import GOLDEN, fill_by_rule, rng
from safetensors.torch import save_file
from torch import Tensor, nn

from mien.__main__ import main
from mien.catalogue import NETWORKS
from mien.checkpoint import labels_of, read_header
from mien.errors import CheckpointError
from mien.labels import EXPRESSIONS
from mien.networks import (
    AxialTransformer,
    GroupPose,
    HierarchicalSpectFormer,
    SparseDeiT,
    SpectFormer,
    TiCNet,
    build,
    load_network,
    save_network,
)
from mien.networks.convert import KINDS
from mien.networks.group_pose import generalised_iou, normalized, set_loss
from mien.networks.matching import cheapest_pairs
from mien.networks.sparsifiner import PREDICTOR
from mien.nn import MoH, SelfAttention, TiC, observe

DOCS = Path(__file__).parents[1] / "docs"


def published(golden, name: str) -> dict[str, Tensor]:
    """Weights by the rule, under the names of the official code."""
    return fill_by_rule(json.loads(str(golden[f"{name}.shapes"])))


def as_converted(kind: str, tensors: dict[str, Tensor], **arguments) -> nn.Module:
    """The network that `mien convert` makes of published tensors, in memory."""
    how = KINDS[kind]
    renamed, unknown = how.tensors(tensors)
    assert not unknown
    path = how.network if isinstance(how.network, str) else how.network(renamed)
    network = build({"class_path": path, "init_args": how.arguments(renamed) | arguments})
    network.load_state_dict(network.fit(renamed))
    return network.eval()


@pytest.mark.parametrize("name", ["s", "h_s"])
def test_spectformer_answers_as_the_official_code(name):
    golden = np.load(GOLDEN / "spectformer.npz")
    network = as_converted("spectformer", published(golden, name))
    assert sum(p.numel() for p in network.parameters()) == golden[f"{name}.parameters"]
    images = torch.from_numpy(rng(f"spectformer_{name}").standard_normal((1, 3, 224, 224)).astype(np.float32))
    logits = network(images.requires_grad_())
    (logits * torch.from_numpy(rng("cotangent").standard_normal((1, 1000)).astype(np.float32))).sum().backward()
    np.testing.assert_allclose(logits.detach(), golden[f"{name}.logits"], atol=1e-5)
    np.testing.assert_allclose(images.grad[:, :, ::7, ::7], golden[f"{name}.grad"], atol=1e-6)


VANILLA = {"num_classes": 4, "img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
STAGES = {"num_classes": 4, "img_size": 32, "embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (1,) * 4}
STAGES |= {"mlp_ratios": (2,) * 4, "stem_dim": 8}


@pytest.mark.parametrize(
    "kind, sizes", [(SpectFormer, VANILLA | {"spectral_depth": 1}), (HierarchicalSpectFormer, STAGES)]
)
def test_spectformer_for_another_image_size(kind, sizes, tmp_path):
    """What was learned for 64 pixels is fitted to 32: a smooth spectrum and smooth positions stay what they are."""
    torch.manual_seed(0)
    large = kind(**sizes | {"img_size": 64}).eval()
    path = f"mien.networks.{kind.__name__}"
    save_network(tmp_path / "a.safetensors", large, header(path, **sizes | {"img_size": 64}))
    small = kind(**sizes).eval()
    tensors = small.fit(load_network(tmp_path / "a.safetensors").state_dict())
    small.load_state_dict(tensors)
    gates = [name for name in tensors if name.endswith("complex_weight")]
    assert len(gates) == (1 if kind is SpectFormer else 2)
    for name in gates:  # of twice as many frequencies every second one
        torch.testing.assert_close(tensors[name], large.state_dict()[name][::2, ::2])
    with pytest.raises(ValueError, match="images are 64×64 pixels, and .*32×32"):
        small(torch.rand(1, 3, 64, 64))
    assert small(torch.rand(2, 3, 32, 32)).shape == (2, 4)


def test_spectformer_has_mixers_by_name_and_shows_them():
    torch.manual_seed(0)
    network = SpectFormer(**VANILLA, spectral_depth=1, mixer=[MoH, SelfAttention]).eval()
    assert [type(block.attn).__name__ for block in network.blocks] == ["SpectralGate", "MoH", "SelfAttention"]
    images = torch.rand(2, 3, 32, 32)
    with observe(network) as seen:
        logits = network(images)
    assert list(seen) == ["blocks.1", "blocks.2"] and seen["blocks.2"].attn.shape == (2, 2, 16, 16)
    tokens, maps = network.forward_intermediates(images)
    torch.testing.assert_close(network.head(tokens.mean(1)), logits)
    assert [tuple(each.shape) for each in maps] == [(2, 16, 4, 4)] * 3
    with observe(HierarchicalSpectFormer(**STAGES)) as seen:
        assert list(seen) == []
    with pytest.raises(ValueError, match="of 3 blocks 4 cannot be spectral"):
        SpectFormer(**VANILLA, spectral_depth=4)
    with pytest.raises(ValueError, match="a list of 1 for 2"):
        HierarchicalSpectFormer(**STAGES, mixer=[SelfAttention])
    with pytest.raises(ValueError, match="img_size must be a multiple of 16 from 32 on, not 100"):
        HierarchicalSpectFormer(**STAGES | {"img_size": 100})


def test_tokens_of_spectformer_have_their_share_in_answer_and_loss():
    torch.manual_seed(0)
    network = HierarchicalSpectFormer(**STAGES).eval()
    images = torch.rand(2, 3, 32, 32)
    c, tokens = network.tokens(images)
    wanted = network.head(c) + 0.5 * network.aux_head(tokens).max(1).values
    torch.testing.assert_close(network(images), wanted)
    torch.testing.assert_close(network.answers(images)["logits"], wanted)
    logits = network.training_logits(images)
    assert logits.keys() == network.loss_weights.keys()
    torch.testing.assert_close(logits["tokens"], network.aux_head(tokens).mean(1))
    without = HierarchicalSpectFormer(**STAGES, token_labels=False)
    assert without.training_logits(images).keys() == without.loss_weights.keys() == {"logits"}


def spectformer_shapes(kind: type, sizes: dict) -> dict[str, Tensor]:
    """A small network's weights under their published names."""
    own, found = kind(**sizes).state_dict(), {}
    for name, tensor in own.items():
        name = name.replace("patch_embed.", "patch_embed.proj.")
        found[name.replace("attn.complex", "filter.complex")] = tensor
    return found


def test_convert_spectformer(tmp_path, capsys):
    """By the command, for faces of another size and with another head; a tensor too many is named."""
    sizes = VANILLA | {"num_classes": 1000, "embed_dim": 64, "num_heads": 1, "patch_size": 16, "img_size": 64}
    tensors = spectformer_shapes(SpectFormer, sizes | {"spectral_depth": 2})
    save_file(tensors, tmp_path / "published.safetensors")
    source, out = str(tmp_path / "published.safetensors"), str(tmp_path / "a.safetensors")
    given = ["--num-classes", "8", "--img-size", "32", "--labels", ",".join(EXPRESSIONS)]
    assert main(["convert", "spectformer", source, out, *given]) == 0
    head = read_header(tmp_path / "a.safetensors")
    assert head["model"]["init_args"] | {"depth": 3, "spectral_depth": 2, "num_heads": 1} == head["model"]["init_args"]
    assert labels_of(head) == EXPRESSIONS and head["preprocess"]["input_size"] == 32
    assert load_network(out)(torch.rand(1, 3, 32, 32)).shape == (1, 8)
    save_file(tensors | {"blocks.7.extra": torch.zeros(1)}, tmp_path / "published.safetensors")
    assert main(["convert", "spectformer", source, out]) == 1
    assert "blocks.7.extra" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="cannot be built"):
        build({"class_path": "mien.networks.SpectFormer", "init_args": {"num_classes": 8, "img_size": 100}})


@pytest.mark.parametrize("name", ["spectformer_mobile", "sparsifiner_mobile", "tic_mobile"])
def test_mobile_sizes_are_those_of_a_phone(name):
    assert NETWORKS[name].parameters <= 5e6  # test_published_networks counts them


def test_sparsifiner_answers_as_the_official_code():
    """In fp64, in which no two tokens change places among the greatest."""
    golden = np.load(GOLDEN / "sparsifiner.npz")
    network = as_converted("deit", published(golden, "s")).double()
    assert sum(p.numel() for p in network.parameters()) == golden["s.parameters"]
    images = torch.from_numpy(rng("sparsifiner").standard_normal((1, 3, 224, 224)).astype(np.float32)).double()
    logits = network(images.requires_grad_())
    (logits * torch.from_numpy(rng("cotangent").standard_normal((1, 1000)).astype(np.float32))).sum().backward()
    np.testing.assert_allclose(logits.detach(), golden["s.logits"], atol=1e-5)
    np.testing.assert_allclose(images.grad[:, :, ::7, ::7], golden["s.grad"], atol=1e-6)


SPARSE = VANILLA | {"img_size": 48, "depth": 2}


def test_sparsifiner_learns_masks_first_and_then_both():
    torch.manual_seed(0)
    network = SparseDeiT(**SPARSE, mask_phase=0.5).train()
    network.norm.weight.requires_grad_(False)  # as a recipe's `freeze` does
    images, target = torch.rand(3, 3, 48, 48), torch.tensor([0, 1, 2])

    def learned(done: float) -> set[str]:
        network.begin_step(done)
        network.zero_grad()
        logits = network.training_logits(images)["logits"]
        aux = torch.stack([mixer.aux_loss for mixer in network.sparsifiners]).mean()
        (nn.functional.cross_entropy(logits, target) + 0.01 * aux).backward()
        with torch.no_grad():
            dense = SparseDeiT(**SPARSE, mixer=SelfAttention).train()
            dense.load_state_dict({n: t for n, t in network.state_dict().items() if n in dense.state_dict()})
            assert torch.allclose(dense(images), logits, atol=1e-6) == (done < 0.5)
        return {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}

    every = {name for name, _ in network.named_parameters()}
    predictors = {name for name in every if any(f".attn.{part}" in name for part in PREDICTOR)}
    assert len(predictors) == 12
    assert learned(0.0) == learned(0.49) == predictors
    assert learned(0.5) == learned(1.0) == every - {"norm.weight"}
    assert learned(0.0) == predictors and learned(0.9) == every - {"norm.weight"}
    with pytest.raises(ValueError, match="mask_phase must be from 0 to 1, not 2"):
        SparseDeiT(**SPARSE, mask_phase=2)


def test_sparsifiner_attends_to_a_quarter_of_the_tokens_and_shows_it():
    torch.manual_seed(0)
    network = SparseDeiT(**SPARSE).eval()
    with observe(network) as seen:
        network(torch.rand(2, 3, 48, 48))
    assert list(seen) == ["blocks.0", "blocks.1"]
    counts = (seen["blocks.0"].attn > 0).sum(-1)  # 36 patches and the class token
    assert (counts[:, :, 0] == 37).all() and (counts[:, :, 1:] == 10).all()


def test_convert_deit(tmp_path, capsys):
    """A DeiT's weights open; the predictors that it lacks are listed, and always the same."""
    dense = SparseDeiT(**SPARSE | {"embed_dim": 64, "num_heads": 1, "patch_size": 16}, mixer=SelfAttention)
    tensors = {name.replace("patch_embed.", "patch_embed.proj."): t for name, t in dense.state_dict().items()}
    torch.save({"model": tensors}, tmp_path / "deit.pth")
    for out in "ab":
        given = [str(tmp_path / "deit.pth"), str(tmp_path / f"{out}.safetensors"), "--labels", "w,x,y,z"]
        assert main(["convert", "deit", *given]) == 0
        said = capsys.readouterr().err
        assert "blocks.1.attn.basis" in said and "begin at random" in said and said.count("\n") == 1
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    network = load_network(tmp_path / "a.safetensors").train()
    assert len(read_header(tmp_path / "a.safetensors")["training"]["untrained"]) == 12
    images = torch.rand(2, 3, 48, 48)
    network.begin_step(0.0)
    torch.testing.assert_close(network(images), dense(images))
    assert main(["convert", "deit", *given, "--img-size", "96", "--num-classes", "4"]) == 0
    assert load_network(tmp_path / "b.safetensors")(torch.rand(1, 3, 96, 96)).shape == (1, 4)


def test_heads_of_tic_look_around_five_places():
    torch.manual_seed(0)
    mixer, grid, middle = TiC(20, 5, shift=True).double(), (5, 7), 2 * 7 + 3
    tokens = torch.randn(2, 3 + 2 * 35, 20).double()  # a prefix and two planes
    with observe(mixer) as seen:
        looked = mixer(tokens, grid)
    torch.testing.assert_close(looked, mixer(tokens, grid))
    attn = next(iter(seen.values())).attn[0, :, 3 + middle, 3 : 3 + 35]
    kernel = {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    for head, (down, right) in enumerate([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]):
        found = {(i // 7 - 2 - down, i % 7 - 3 - right) for i in attn[head].nonzero().flatten().tolist()}
        assert found == kernel
    corner = next(iter(seen.values())).attn[0, 1, 3, 3 : 3 + 35].nonzero().flatten().tolist()
    assert corner == [0, 1, 28, 29]  # what was rolled in from the other side, and nothing beyond the border
    with pytest.raises(ValueError, match="shift goes with mask_padding"):
        TiC(20, 5, shift=True, mask_padding=False)


def test_tic_takes_images_of_any_size():
    """The same weights; and a token far from the kernel matters through the pooled ones alone."""
    torch.manual_seed(0)
    sizes = {"num_classes": 4, "embed_dims": (8, 16), "depths": (1, 1), "num_heads": (2, 2)}
    network = TiCNet(**sizes).eval()
    assert [network(torch.rand(1, 3, *side)).shape for side in ((32, 32), (100, 60))] == [(1, 4)] * 2
    with observe(network) as seen:
        network(torch.rand(1, 3, 48, 48))
    assert list(seen) == ["stages.0.0", "downs.0", "stages.1.0"] and seen["stages.0.0"].attn.shape[-1] == 4 + 144
    tokens = torch.randn(1, 144, 8, requires_grad=True)
    for pool, reached in ((2, 144), (0, 25)):  # a kernel of 3 for attention, and one of 3 behind it
        torch.manual_seed(0)
        block = TiCNet(**sizes | {"shift": False, "inter_pool": pool}).stages[0][0]
        (gradient,) = torch.autograd.grad(block(tokens, (12, 12))[0, 6 * 12 + 6].square().sum(), tokens)
        assert (gradient.abs().sum(-1) > 0).sum() == reached
    with pytest.raises(ValueError, match="images are 32×16 pixels, and 32 is the least"):
        network(torch.rand(1, 3, 32, 16))


IMAGE_MODEL = {"levels": 5, "size": (5, 6), "dim": 16, "num_heads": 2}


@pytest.mark.parametrize("channels", [1, 2])
def test_a_value_is_told_by_those_before_it_alone(channels):
    """Channel by channel, row by row: each value has a part in the logits of all behind it, and of no other."""
    torch.manual_seed(0)
    model = AxialTransformer(**IMAGE_MODEL, channels=channels).double().eval()
    images = torch.randint(0, 5, (1, channels, 5, 6))
    before, count = model(images).flatten(1, 3), channels * 30
    for place in (0, 7, 17, 29, count - 1):
        other = images.clone().flatten(1)
        other[:, place] = (other[:, place] + 1) % 5
        moved = (model(other.view_as(images)).flatten(1, 3) - before).abs().amax((0, 2)) > 1e-12
        assert moved.tolist() == [False] * (place + 1) + [True] * (count - place - 1)
    bits = model.bits_per_dim(images)
    torch.testing.assert_close(bits, torch.nn.functional.cross_entropy(before.mT, images.flatten(1))[None] / np.log(2))
    with pytest.raises(ValueError, match=f"images are {channels}×5×5, and the model is for {channels}×5×6"):
        model(images[..., :5])
    with pytest.raises(ValueError, match="levels must be 2 at least"):
        AxialTransformer(levels=1)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_likelihood_of_a_sample_is_that_of_the_image(channels):
    """What drawing, a row and a pixel at a time, says of its pixels is what the whole image's pass says of them."""
    torch.manual_seed(0)
    model = AxialTransformer(**IMAGE_MODEL, channels=channels).double().eval()
    images = torch.randint(0, 5, (3, channels, 5, 6))
    nothing = torch.zeros(5, 6, dtype=torch.bool)
    drawn, log_probs = model.complete(images, nothing)
    torch.testing.assert_close(log_probs.flatten(1).sum(1).double(), model.log_likelihood(drawn).double())
    assert len(drawn.flatten(1).unique(dim=0)) == 3
    known = torch.rand(5, 6) < 0.5
    part, of_part = model.complete(images, known)
    assert torch.equal(part[:, :, known], images[:, :, known])
    assert (of_part[:, :, known] == 0).all() and (of_part[:, :, ~known] < 0).all()
    every = model(part).log_softmax(-1).gather(-1, part[..., None])[..., 0]
    torch.testing.assert_close(of_part[:, :, ~known].double(), every[:, :, ~known])
    surest, _ = model.complete(images, nothing, temperature=1e-4)
    assert torch.equal(surest, model(surest).argmax(-1))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        model.complete(images, nothing, temperature=0)


def test_draws_of_the_axial_transformer_follow_its_probabilities():
    torch.manual_seed(0)
    model = AxialTransformer(levels=2, size=(1, 2), dim=8, num_heads=1).eval()
    drawn, _ = model.complete(torch.zeros(4000, 1, 1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.bool))
    pairs = torch.tensor(list(itertools.product((0, 1), repeat=2)))[:, None, None]
    chances = model.log_likelihood(pairs).exp()
    torch.testing.assert_close(chances.sum(), torch.tensor(1.0))
    counts = torch.bincount(2 * drawn[:, 0, 0, 0] + drawn[:, 0, 0, 1], minlength=4)
    assert ((counts - 4000 * chances).abs() < 4 * (4000 * chances * (1 - chances)).sqrt()).all()


def test_the_cheapest_pairs_are_those_of_every_order():
    draw = np.random.default_rng(0)
    for number in range(200):
        rows, columns = int(draw.integers(1, 5)), int(draw.integers(5, 7))
        cost = draw.integers(-4, 5, (rows, columns)) if number % 2 else draw.normal(size=(rows, columns))
        own = cheapest_pairs(cost.astype(float))
        least = min(cost[range(rows), order].sum() for order in itertools.permutations(range(columns), rows))
        assert len(set(own)) == rows and cost[range(rows), own].sum() == pytest.approx(least)
    with pytest.raises(ValueError, match="3 rows cannot each have one of 2 columns"):
        cheapest_pairs(np.zeros((3, 2)))


POSE = {"img_size": 64, "dim": 16, "num_heads": 2, "hidden": 32, "depth": 2, "num_instances": 6}


def some_faces(counts=(0, 2, 1)):
    draw = torch.Generator().manual_seed(0)
    boxes = [torch.rand(n, 4, generator=draw) * 0.3 + 0.3 for n in counts]
    return boxes, [torch.rand(n, 5, 2, generator=draw) * 0.5 + 0.25 for n in counts]


def awake_pose() -> GroupPose:
    """One whose boxes and points move, as they do not before it has learned anything."""
    torch.manual_seed(0)
    network = GroupPose(**POSE)
    for head in (network.propose, *network.predictors):
        for last in (head.box[2], head.point[2]):
            nn.init.normal_(last.weight, std=0.3)
    return network


def test_group_pose_learns_every_part_and_keeps_pictures_apart():
    network = awake_pose().double().train()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    boxes, points = some_faces()
    losses = network.losses(images, [b.double() for b in boxes], [p.double() for p in points])
    assert losses.keys() == {"logits", "boxes", "giou", "points"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in network.parameters())
    network.eval()
    together, alone = network(images), network(images[1:2])
    for name in together._fields:
        torch.testing.assert_close(getattr(together, name)[1:2], getattr(alone, name))
    assert together.points.shape == (3, 6, 5, 2) and (together.points[0] - together.points[1]).abs().max() > 1e-3
    empty = network.losses(images, *some_faces((0, 0, 0)))
    assert empty["points"] == 0 and empty["logits"] > 0
    with pytest.raises(ValueError, match="3 pictures have 1 sets of boxes"):
        network.losses(images, boxes[:1], points)
    with pytest.raises(ValueError, match="images are 32×32 pixels"):
        network(images[..., :32, :32])
    with pytest.raises(ValueError, match="img_size must be a multiple of 16 from 64 on, not 70"):
        GroupPose(img_size=70)


def test_the_loss_of_a_set_does_not_mind_its_order():
    """And is the least where predictions are true, one for each face."""
    network = awake_pose().eval()
    found = network(torch.rand(3, 3, 64, 64))
    boxes, points = some_faces()
    before = set_loss(found, boxes, points)
    turned = type(found)(*(each.flip(1) for each in found))
    after = set_loss(turned, [b.flip(0) for b in boxes], [p.flip(0) for p in points])
    torch.testing.assert_close(before, after)
    found.boxes[1, 3], found.boxes[1, 5] = boxes[1][0], boxes[1][1]
    found.points[1, 3], found.points[1, 5] = points[1][0], points[1][1]
    found.boxes[2, 0], found.points[2, 0] = boxes[2][0], points[2][0]
    logits = torch.full_like(found.logits, -12)
    logits[1, [3, 5]], logits[2, 0] = 12, 12
    right = set_loss(found._replace(logits=logits), boxes, points)
    assert max(part.abs().item() for part in right.values()) < 1e-4
    twice = logits.clone()
    twice[1, 4] = 12
    assert set_loss(found._replace(logits=twice), boxes, points)["logits"] > 1


def test_generalised_iou():
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    for other, wanted in (((0.5, 0.5, 0.2, 0.2), 1), ((0.6, 0.5, 0.2, 0.2), 1 / 3), ((0.9, 0.5, 0.2, 0.2), -1 / 3)):
        assert generalised_iou(box, torch.tensor(other)).item() == pytest.approx(wanted, abs=1e-5)


def test_group_pose_finds_faces_in_pixels_of_the_picture():
    """Whatever its shape: a box in the middle of what the network sees lies there in the picture."""
    network = awake_pose()
    for height, width in ((64, 64), (30, 90), (300, 100)):
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        found = network.find(picture, threshold=0.0)
        assert len(found) == 6 and [face.score for face in found] == sorted((f.score for f in found), reverse=True)
        scale = max(height, width)
        small = torch.nn.functional.interpolate(
            torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255,
            (round(64 * height / scale), round(64 * width / scale)),
            mode="bilinear",
            antialias=scale > 64,
        )
        seen = torch.zeros(1, 3, 64, 64)
        seen[:, :, : small.shape[2], : small.shape[3]] = small
        with torch.no_grad():
            predicted = network.eval()(normalized(seen))
        best = predicted.logits[0].argmax()
        np.testing.assert_allclose(found[0].landmarks, predicted.points[0, best] * scale, rtol=0.05, atol=0.05)
        middle = found[0].box[:2] + found[0].box[2:] / 2
        np.testing.assert_allclose(middle, predicted.boxes[0, best, :2] * scale, rtol=0.05, atol=0.05)
        assert network.find(picture, threshold=1.0) == []
    with pytest.raises(ValueError, match=r"a picture is \(H, W, 3\) uint8"):
        network.find(np.zeros((4, 4), np.uint8))


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("make_networks")


def test_every_network_has_its_page(pages, tmp_path):
    """And pages are those that the docstrings give now, of two that are soon made."""
    folder = DOCS / "networks"
    index = (folder / "README.md").read_text()
    for name, known in NETWORKS.items():
        text = (folder / f"{name}.md").read_text() if (folder / f"{name}.md").exists() else ""
        assert f"| {known.parameters:,} | {known.gmac:.3f} |" in text, f"run docs/make_networks.py: {name}"
        assert f"[{name}]({name}.md)" in index and (folder / f"{name}.svg").exists()
        assert ")](" not in text, f"{name}: a link within a link"
    for name in ("tic_mobile", "axial"):
        pages.page(name, tmp_path)
        for kind in ("md", "svg"):
            made = (tmp_path / f"{name}.{kind}").read_text()
            assert made == (folder / f"{name}.{kind}").read_text(), f"run docs/make_networks.py: {name}"


def test_an_arrow_leads_to_what_depends_on_the_part_before_it(pages):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, images):
            left, right = self.left(images), self.right(images)
            return self.head(input=torch.cat([left, right.exp()]).relu_())

    drawn = pages.parts(network := Branches(), torch.rand(1, 4))
    assert [(part.name, part.reads) for part in drawn] == [("left", True), ("right", False), ("head", True)]
    root = ElementTree.fromstring(pages.draw(network, torch.rand(1, 4)))
    assert [float(each.get("x2")) for each in root if each.tag.endswith("line")] == [219.0, 615.0]


def test_a_drawing_shows_what_ran_in_its_order(pages):
    network = HierarchicalSpectFormer(**STAGES | {"depths": (2, 1, 1, 1)})
    network.unused = nn.Linear(2, 2)
    drawn = pages.parts(network, torch.rand(1, 3, 32, 32))
    names = [part.name for part in drawn]
    assert names[:4] == ["stem", "downs.0", "stages.0", "downs.1"] and names[-1] == "unused"
    assert names[-4:-1] == ["class_block", "head", "aux_head"]
    stage = drawn[2]
    assert (stage.what, stage.out, stage.kind) == ("2 × ConvBlock of SpectralGate", "64×8", "other")
    assert stage.parameters == sum(p.numel() for p in network.stages[0].parameters())
    assert [part.kind for part in drawn if part.name.startswith("stages.2")] == ["attention"]
    assert drawn[-1].kind == "idle" and drawn[-1].out == ""
    root = ElementTree.fromstring(pages.draw(network, torch.rand(1, 3, 32, 32)))
    boxes = [each for each in root if each.tag.endswith("rect")]
    assert len(boxes) == 1 + 1 + len(drawn)  # the card, the images
    width, height = (float(root.get(side)) for side in ("width", "height"))
    for box in boxes:
        assert float(box.get("x", 0)) + float(box.get("width")) <= width
        assert float(box.get("y", 0)) + float(box.get("height")) <= height


def test_the_image_model_is_exported():
    """For any number of pictures, as a torch program."""
    torch.manual_seed(0)
    model, one = AxialTransformer(**IMAGE_MODEL).eval(), torch.ones(1, 1, 5, 6, dtype=torch.long)
    some = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (one.repeat(2, 1, 1, 1),), dynamic_shapes=(some,)).module()
    torch.testing.assert_close(program(one), model(one))
