"""OAT's parts: codes of places that fall with the distance, in every ViT, and the pointer over objects."""

import zlib

import numpy as np
import pytest
import torch
from published import GOLDEN, fill_small

from mien.evaluation.paths import hit_rate, sequence_score
from mien.networks import OAT, APViT, CaiT, MobileFaceNet, ViT, btn_mobile, load_network, save_network
from mien.nn import ObjectAttention, observe
from mien.nn.distance_position import distance_codes, fit_codes, joined_codes, likeness, sinusoid_codes


def by_distance(codes: torch.Tensor, sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The products of codes (P, D) of all pairs of places at one distance: the least of them and the largest, by
    distance."""
    places = torch.cartesian_prod(*(torch.arange(float(size)) for size in sizes))
    far = torch.cdist(places, places).square().round().int()
    products = codes @ codes.T
    spans = [(products[far == d].min(), products[far == d].max()) for d in far.unique()]
    return tuple(np.array(ends) for ends in zip(*spans, strict=True))


@pytest.mark.parametrize("sizes, dim", [((7, 7), 49), ((14, 14), 192), ((14, 14), 64), ((3, 7, 7), 128), ((1, 5), 8)])
def test_likeness_falls_with_the_distance_in_every_direction(sizes, dim):
    codes = distance_codes(sizes, dim)
    assert codes.shape == (np.prod(sizes), dim) and codes.dtype == torch.float32
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(len(codes)))
    error = float((codes @ codes.T - likeness(sizes).float()).abs().max())
    assert error < (1e-5 if dim in (49, 128, 192, 8) else 0.01)
    least, largest = by_distance(codes, sizes)
    near = least > 0.02  # beyond that two places have nothing in common
    assert near.sum() >= 4 and (least[:-1] > largest[1:])[near[:-1]].all()


def test_likeness_of_sinusoids_does_not():
    least, largest = by_distance(sinusoid_codes((14, 14), 64), (14, 14))
    assert (least[:-1] < largest[1:]).sum() > 20


def test_codes_fitted_as_published():
    codes = fit_codes(7, dim=24, steps=1000, seed=1)
    unit = torch.nn.functional.normalize(codes, dim=1)
    torch.testing.assert_close(unit @ unit.T, likeness((7,)).float(), atol=0.07, rtol=0)  # 0.016 after 2,000
    assert codes.norm(dim=1).std() < 0.05 * codes.norm(dim=1).mean()
    closed = distance_codes((7,), 24)
    torch.testing.assert_close(unit @ unit.T, closed @ closed.T, atol=0.07, rtol=0)
    flags = torch.eye(2)
    index = torch.tensor([[0, 6, 0], [6, 0, 1]])
    assert joined_codes([codes, codes, flags], index, 49).shape == (2, 49)
    torch.testing.assert_close(
        joined_codes([codes, codes, flags], index, 50)[1], torch.cat([codes[6], codes[0], flags[1]])
    )


def test_grids_that_are_too_small_and_codes_too_short():
    for make, reason in (
        (lambda: distance_codes((1, 1), 8), "a grid of 1×1 is too small for codes of distance"),
        (lambda: distance_codes((7, 7), 16), "16 dimensions are too short for a grid of 7×7; 19 are enough"),
        (lambda: distance_codes((7, 7), 49, sigma=0), "sigma is a number of cells above 0"),
        (lambda: sinusoid_codes((7, 7), 30), "need a multiple of 4 dimensions, not 30"),
        (lambda: ViT(num_tokens=50, embed_dim=32, position="distance"), "needs a grid that 50 tokens fill"),
        (lambda: ViT(embed_dim=32, position="absolute"), "position must be one of 'learned', 'distance', 'sinusoid'"),
        (lambda: ObjectAttention(8, 0), "num_heads and d_k must be whole numbers from 1 up"),
    ):
        with pytest.raises(ValueError, match=reason):
            make()


SMALL = {"num_classes": 3, "embed_dim": 32, "depth": 1, "num_heads": 2}
VITS = {
    "ViT": (lambda position: ViT(num_tokens=49, position=position, **SMALL), "pos_embed", torch.zeros(1, 49, 32)),
    "APViT": (
        lambda position: APViT(image=None, img_size=32, patch_size=8, position=position, **SMALL),
        "vit.patch_pos_embed",
        torch.zeros(1, 3, 32, 32),
    ),
    "CaiT": (
        lambda position: CaiT(img_size=32, patch_size=8, position=position, **SMALL),
        "pos_embed",
        torch.zeros(1, 3, 32, 32),
    ),
}


@pytest.mark.parametrize("name", VITS)
def test_position_of_every_vit(name):
    make, table, x = VITS[name]
    learned, distance, sinusoid = (make(position).eval() for position in ("learned", "distance", "sinusoid"))
    assert learned.state_dict().keys() == distance.state_dict().keys() == sinusoid.state_dict().keys()
    assert table in dict(learned.named_parameters()) and table not in dict(distance.named_parameters())
    codes = distance.state_dict()[table][0]
    side = 7 if name == "ViT" else 4
    torch.testing.assert_close(codes[-side * side :], distance_codes((side, side), 32))
    assert not codes[: -side * side].any()  # the class token's
    for network in (distance, sinusoid):
        assert network(x).isfinite().all()
    before = distance.state_dict()[table].clone()
    distance.load_state_dict(distance.fit(learned.state_dict()) if name != "ViT" else distance.state_dict())
    torch.testing.assert_close(distance.state_dict()[table], before)  # another network's positions are not taken


def test_a_network_of_levels_and_its_checkpoint(tmp_path):
    from conftest import header

    network = btn_mobile(num_classes=8, position="distance")
    torch.testing.assert_close(network.vit.pos_embed[0, 1:], distance_codes((3, 7, 7), 128))
    save_network(
        tmp_path / "a.safetensors", network, header("mien.networks.btn_mobile", num_classes=8, position="distance")
    )
    again = load_network(tmp_path / "a.safetensors")
    assert torch.equal(again.vit.pos_embed, network.vit.pos_embed) and isinstance(again.image, MobileFaceNet)


# ---- the pointer


def test_the_pointer_against_published_code():
    with np.load(GOLDEN / "oat.npz") as file:
        golden = {name: torch.from_numpy(file[name]) for name in file.files}
    parts = [(part, kind) for part in ("decode", "encode") for kind in ("weight", "bias")]
    shapes = {"readout.weight": (1, 2), "readout.bias": (1,)}
    for part, kind in parts:
        shapes |= {f"cross_attentions.{u}.{part}_fc.{kind}": (64, 64)[: 1 + (kind == "weight")] for u in (0, 1)}
    state = fill_small(shapes, scale=0.2)
    joined = {name: state[name] for name in ("readout.weight", "readout.bias")}
    for part, kind in parts:
        joined[f"{part}.{kind}"] = torch.cat([state[f"cross_attentions.{u}.{part}_fc.{kind}"] for u in (0, 1)])
    pointer = ObjectAttention(64, 2, padding=True)
    pointer.load_state_dict(joined)
    objects = golden["x"].transpose(0, 1).requires_grad_()
    logits = pointer(golden["dec"].transpose(0, 1), objects)
    torch.testing.assert_close(logits.transpose(0, 1), golden["out_s02"], atol=1e-5, rtol=1e-5)
    z = np.random.default_rng(zlib.crc32(b"oat_object_attention/probe")).standard_normal((5, 2, 28))
    (logits.transpose(0, 1) * torch.from_numpy(z.astype(np.float32))).sum().backward()
    torch.testing.assert_close(objects.grad.transpose(0, 1), golden["grad_x_s02"], atol=1e-4, rtol=1e-4)


def test_the_pointer_can_be_observed():
    pointer = ObjectAttention(16, 3, d_k=8)
    with observe(pointer) as seen:
        logits = pointer(torch.randn(2, 4, 16), torch.randn(2, 5, 16))
    (look,) = seen.values()
    assert look.scores.shape == (2, 3, 4, 5) and logits.shape == (2, 4, 5)
    torch.testing.assert_close(pointer.readout(look.scores.permute(0, 2, 3, 1))[..., 0], logits)


# ---- the whole


@pytest.fixture(scope="module")
def oat():
    torch.manual_seed(0)
    network = OAT(grid=(4, 5), dim=48, num_heads=2, ffn=32, depth=(1, 1), steps=6).eval()
    with torch.no_grad():
        network.pointer.readout.weight.mul_(20)
    return network


def scene(batch: int = 2, count: int = 5):
    draw = torch.Generator().manual_seed(1)
    places = torch.stack([torch.randperm(20, generator=draw)[:count] for _ in range(batch)])
    places = torch.stack([places // 5, places % 5], -1)
    crops = torch.rand(batch, count, 3, 8, 8, generator=draw)
    return crops, places, torch.rand(batch, 3, 8, 8, generator=draw)


def test_a_step_knows_only_what_was_before_it(oat):
    crops, places, target = scene()
    path = torch.tensor([[0, 1, 2], [3, 4, 0]])
    logits = oat(crops, places, target, path)
    assert logits.shape == (2, 4, 6)
    other = path.clone()
    other[:, 2] = torch.tensor([4, 1])
    changed = oat(crops, places, target, other)
    torch.testing.assert_close(changed[:, :3], logits[:, :3])
    assert (changed[:, 3] - logits[:, 3]).abs().max() > 1e-4
    longer = oat(crops, places, target, path[:, :1])
    torch.testing.assert_close(longer, logits[:, :2], atol=1e-5, rtol=1e-4)


def test_objects_and_places_count_and_their_order_does_not(oat):
    crops, places, target = scene()
    path = torch.tensor([[0, 1], [3, 4]])
    logits = oat(crops, places, target, path)
    order = torch.tensor([4, 2, 0, 1, 3])
    mixed = oat(crops[:, order], places[:, order], target, order.argsort()[path])
    torch.testing.assert_close(mixed[..., :5], logits[..., order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixed[..., 5], logits[..., 5], atol=1e-5, rtol=1e-4)
    moved = oat(crops, (places + 1) % 4, target, path)
    assert (moved - logits).abs().max() > 1e-3
    padded = torch.cat([crops, torch.rand(2, 2, 3, 8, 8)], 1), torch.cat([places, torch.zeros(2, 2, 2).long()], 1)
    absent = torch.tensor([[False] * 5 + [True] * 2] * 2)
    found = oat(*padded, target, path, absent)
    assert found[..., 5:7].isinf().all()
    torch.testing.assert_close(found[..., [0, 1, 2, 3, 4, 7]], logits, atol=1e-5, rtol=1e-4)


def test_a_search_follows_its_own_logits_to_the_end(oat):
    crops, places, target = scene()
    paths = oat.search(crops, places, target)
    for row, path in enumerate(paths):
        one = [x[row : row + 1] for x in (crops, places, target)]
        assert len(set(path)) == len(path) <= 6 and set(path) <= set(range(5))
        logits = oat(*one, torch.tensor([path], dtype=torch.long).reshape(1, -1))[0].tolist()
        for step, chosen in enumerate([*path, 5] if len(path) < 6 else path):
            free = [i for i in range(6) if i not in path[:step]]
            assert chosen == max(free, key=logits[step].__getitem__)
    drawn = [oat.search(crops, places, target, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and any(each != drawn[0] for each in drawn[2:])
    assert all(len(path) <= 2 for path in oat.search(crops, places, target, most=2))


def test_every_part_of_it_learns():
    torch.manual_seed(0)
    network = OAT(grid=(4, 5), dim=24, num_heads=2, ffn=16, depth=(1, 1), steps=4)
    logits = network(*scene(), torch.tensor([[0, 1], [3, 4]]))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor([0, 1, 5, 3, 4, 5])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    for make, reason in (
        (lambda: OAT(grid=(1, 5), dim=24, num_heads=2), "a grid of 1×5 is too small"),
        (
            lambda: network(scene()[0], scene()[1] + 9, scene()[2], torch.zeros(2, 1).long()),
            "outside of the grid of 4×5",
        ),
        (lambda: network(*scene(), torch.zeros(2, 5).long()), "a path of 5 steps; there are 4 at most"),
    ):
        with pytest.raises(ValueError, match=reason):
            make()


def test_scores_of_paths_by_hand():
    assert sequence_score([1, 2, 3], [1, 2, 3]) == 1 and sequence_score([1, 2], [3, 4]) == 0
    assert sequence_score([1, 2, 3, 4], [1, 3, 5]) == 2 / 4  # 1 and 3, in the same order
    assert sequence_score([3, 1], [1, 3]) == 1 / 2
    assert sequence_score([], []) == 1 and sequence_score([], [1]) == 0
    assert hit_rate([[3, 1], [2], []], [1, 2, 0], looks=1) == pytest.approx(1 / 3)
    assert hit_rate([[3, 1], [2], []], [1, 2, 0], looks=2) == pytest.approx(2 / 3)
