"""OAT's parts: codes of places that fall with the distance, in every ViT, and the pointer over objects."""

import zlib

import numpy as np
import pytest
import torch
from published import GOLDEN, fill_small

from mien.networks import APViT, CaiT, MobileFaceNet, ViT, btn_mobile, load_network, save_network
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
    codes = fit_codes(7, dim=24, steps=500, seed=1)
    unit = torch.nn.functional.normalize(codes, dim=1)
    torch.testing.assert_close(unit @ unit.T, likeness((7,)).float(), atol=0.02, rtol=0)
    assert codes.norm(dim=1).std() < 0.05 * codes.norm(dim=1).mean()
    closed = distance_codes((7,), 24)
    torch.testing.assert_close(unit @ unit.T, closed @ closed.T, atol=0.02, rtol=0)
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
