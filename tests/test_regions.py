"""Parallel cross attention: the published form, its released variant, and what no reference changes."""

from pathlib import Path

import numpy as np
import torch

from mien.networks import region_reader
from mien.networks.regions import ARCFACE, region_masks
from mien.nn import Attend, RegionCrossAttention
from mien.nn.region_cross_attention import attend_apart, join


def test_both_branches_and_both_variants_are_as_published():
    file = np.load(Path(__file__).parent / "golden" / "autostudio.npz")
    case = {name: torch.from_numpy(value)[None] for name, value in file.items()}
    q = case["q"].unflatten(-1, (2, 4)).transpose(1, 2)
    keys = {name: case[name].unflatten(-1, (2, 4)).transpose(2, 3) for name in ("kt", "vt", "ki", "vi")}
    text, image = (attend_apart(Attend(), q, keys[f"k{of}"], keys[f"v{of}"]) for of in "ti")
    torch.testing.assert_close(text, case["text_branch"], atol=1e-10, rtol=0)
    torch.testing.assert_close(image, case["image_branch"], atol=1e-10, rtol=0)
    options = (case["masks"], (4, 4), case["have_ref"], file["scale"].item())
    torch.testing.assert_close(join(text, image, *options), case["out"], atol=1e-10, rtol=0)
    torch.testing.assert_close(join(text, image, *options, True), case["out_code_slot1"], atol=1e-10, rtol=0)


@torch.no_grad()
def test_no_reference_is_bitwise_no_branch_and_masks_are_resized():
    torch.manual_seed(0)
    layer = RegionCrossAttention(16, 4, text_dim=8, scale=0.5)
    tokens, text, image = torch.randn(2, 12, 16), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 16)
    masks = torch.rand(2, 2, 3, 9, 9)
    plain = layer(tokens, (3, 4), text, masks)
    assert torch.equal(layer(tokens, (3, 4), text, masks, image, torch.zeros(2, 3)), plain)
    some = layer(tokens, (3, 4), text, masks, image, torch.tensor([[0.0, 0, 0], [0, 1, 0]]))
    assert torch.equal(some[0], plain[0]) and (some[1] - plain[1]).abs().max() > 1e-3
    masks[:, 1, 1] = 0
    assert torch.equal(layer(tokens, (3, 4), text, masks, image, torch.tensor([[0.0, 1, 0]] * 2)), plain)


@torch.no_grad()
def test_a_reference_counts_only_where_it_differs():
    torch.manual_seed(0)
    network = region_reader(embed_dim=16, prompts=2).eval()
    images, neutral = torch.randn(3, 3, 112, 112), torch.randn(3, 3, 112, 112)
    plain = network(images)
    assert torch.equal(network(images, images), plain)  # its own
    assert torch.equal(network(images, neutral, torch.zeros(3)), plain)
    compared = network(images, neutral, torch.tensor([1.0, 0, 0]))
    assert torch.equal(compared[1:], plain[1:]) and (compared[0] - plain[0]).abs().max() > 1e-6


def test_regions_lie_about_their_landmarks():
    masks = region_masks(torch.tensor([ARCFACE]), (28, 28))
    torch.testing.assert_close(masks.sum(1), torch.ones(1, 28, 28))
    assert masks.min() >= 0
    face, background, eyes, brows, mouth = masks[0]
    rows = torch.arange(28.0)[:, None]
    middles = [((m * rows).sum() / m.sum() / 28).item() for m in (brows, eyes, mouth)]
    assert middles == sorted(middles) and abs(middles[1] - 0.46) < 0.1 and abs(middles[2] - 0.82) < 0.1
    assert background[0, 0] > 0.99 and face[14, 14] > 0.5 and eyes[12, 9] > 0.5 and mouth[23, 13] > 0.5
