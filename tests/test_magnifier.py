"""The magnifier: the published form against brute force, what it is with nothing and with all selected, and the reader
in two passes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mien.networks import Magnified
from mien.networks.cost import macs
from mien.nn import Attend, MagnifiedAttention, SelfAttention, observe
from mien.nn.magnified_attention import by_parent, magnified, select_regions


def test_regions_are_opened_as_published():
    file = np.load(Path(__file__).parent / "golden" / "lscene.npz")
    case = {name: torch.from_numpy(value)[None] for name, value in file.items() if value.ndim}
    attend = Attend()
    selected = select_regions(case["attn_coarse"], 96 / 255)
    assert torch.equal(selected, case["selected"])
    q, k, v, kd, vd = (case[name] for name in ("q", "k", "v", "kd", "vd"))
    nothing = magnified(attend, q, k, v, (kd, vd), torch.zeros_like(selected))
    torch.testing.assert_close(nothing, case["out_coarse"], atol=1e-10, rtol=0)
    torch.testing.assert_close(
        magnified(attend, q, k, v, (kd, vd), selected), case["out_magnified"], atol=1e-10, rtol=0
    )
    with observe(attend) as seen:
        magnified(attend, q, k, v, (kd, vd), selected)
    torch.testing.assert_close(seen["attend"].attn, case["attn_magnified"], atol=1e-10, rtol=0)


def test_a_constant_row_selects_nothing():
    attn = torch.tensor([[[[0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]]]])
    assert select_regions(attn)[0].tolist() == [[False] * 4, [False, False, True, True]]


@torch.no_grad()
def test_nothing_selected_is_plain_attention_and_all_is_joint():
    torch.manual_seed(0)
    layer = MagnifiedAttention(16, 4).double().eval()
    tokens, fine = (torch.randn(3, n, 16, dtype=torch.float64) for n in (5, 16))  # a class token, 4 regions of 4
    plain = SelfAttention(16, 4).double()
    plain.load_state_dict(layer.state_dict(), strict=False)
    none, every = (torch.full((3, 1, 4), value) for value in (False, True))
    torch.testing.assert_close(layer(tokens), plain(tokens), atol=0, rtol=0)
    torch.testing.assert_close(layer(tokens, fine=fine, selected=none), plain(tokens), atol=1e-12, rtol=0)

    q, k, v = layer.split(tokens)
    wide = [
        torch.cat([x, p(fine).unflatten(-1, (4, 4)).transpose(1, 2)], 2)
        for x, p in ((k, layer.k_fine), (v, layer.v_fine))
    ]
    joint = layer.join((q @ wide[0].transpose(2, 3) / 2).softmax(-1) @ wide[1])
    found = layer(tokens, fine=fine, selected=every)
    torch.testing.assert_close(found[:, :1], joint[:, :1], atol=1e-12, rtol=0)
    torch.testing.assert_close(found[:, 1:], plain(tokens)[:, 1:], atol=1e-12, rtol=0)
    both = layer(tokens, fine=fine, selected=every.expand(-1, 5, -1))
    torch.testing.assert_close(both, joint, atol=1e-12, rtol=0)
    layer.alpha = 0.25
    ramp = layer(tokens, fine=fine, selected=every)
    torch.testing.assert_close(ramp, 0.75 * plain(tokens) + 0.25 * found, atol=1e-12, rtol=0)

    chosen = layer.regions(tokens, 4)
    with observe(layer) as seen:
        layer(tokens)
    assert torch.equal(chosen, select_regions(seen["attend"].attn[:, :, :1, 1:])) and chosen.any()
    with pytest.raises(ValueError, match="3 regions"):
        layer(tokens, fine=fine, selected=none[..., :3])


def test_children_stand_behind_one_another():
    fine = torch.arange(24.0).view(1, 24, 1)  # 4 × 6, of 2 × 3 regions
    assert by_parent(fine, (2, 3), 2).flatten().tolist()[:8] == [0, 1, 6, 7, 2, 3, 8, 9]


def test_the_second_pass_reads_the_window_that_is_attended_to():
    torch.manual_seed(0)
    network = Magnified(num_classes=3, embed_dim=16, num_heads=2).eval()
    attn = torch.zeros(2, 49)
    attn[0, 3 * 7 + 4], attn[1, 0] = 1.0, 1.0
    attn[0, 4 * 7 + 5] = 0.5
    row, column = network.choose(attn)
    assert (row[0] <= 3) and (row[0] + 2 >= 4) and (column[0] + 2 >= 5) and (row[1], column[1]) == (0, 0)
    images = torch.rand(2, 3, 112, 112)
    window = network.cut(images, torch.tensor([2, 4]), torch.tensor([3, 0]))
    assert torch.equal(window[0], images[0, :, 32:80, 48:96]) and torch.equal(window[1], images[1, :, 64:112, :48])
    with torch.no_grad():
        row, column = network.choose(network.first(images)[1])
        changed = images.clone()
        for i in range(2):  # seen by the second pass alone: the mean of each pixel of the first stays
            y, x = row[i] * 16, column[i] * 16
            changed[i, :, y : y + 48 : 4, x : x + 48] += 0.2
            changed[i, :, y + 1 : y + 48 : 4, x : x + 48] -= 0.2
        torch.testing.assert_close(network.first(changed)[0], network.first(images)[0])
        assert (network(changed) - network(images)).abs().max() > 1e-4
    plain = Magnified(num_classes=3, window=0, coarse_size=56, depths=(4, 0))
    assert 0.9 < macs(Magnified(num_classes=3), images) / macs(plain, images) < 1
    with pytest.raises(ValueError, match="cells"):
        Magnified(num_classes=3, coarse_size=30)


def test_the_page_on_looking_twice():
    page = (Path(__file__).parents[1] / "docs" / "magnifier.md").read_text()
    exec(page.partition("```python\n")[2].partition("```")[0], {})
