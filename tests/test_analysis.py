"""The analysis of heads: golden numbers, heads taken away, patterns, and `mien analyse`."""

import io
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from test_explain import POOLED, checkpoint

from mien.errors import MienError
from mien.explain.analysis_plots import plot_class_rows
from mien.explain.heads import Head, ablations, agreement, heads_of, importance, pruned, without
from mien.explain.patterns import content_agnostic, k_means, recentred, summarise
from mien.explain.strength import concentration, grid_places, importance_factor, profile
from mien.labels import EXPRESSIONS
from mien.networks import ViT, mobilefacenet
from mien.nn import ACMILPool

GOLDEN = np.load(Path(__file__).with_name("golden") / "analysis_heads.npz")


def test_importance_equals_golden():
    found = importance(GOLDEN["base_logits"], GOLDEN["ablated_logits"], GOLDEN["label"])
    for name in ("d_prob", "d_ce", "jsd", "d_rank", "flip", "d_acc"):
        np.testing.assert_allclose(found[name].mean(1), GOLDEN[name], atol=1e-6, err_msg=name)


def test_strength_equals_golden():
    found = profile(GOLDEN["attn"], grid_places(1, (7, 7)), prefix=1)
    for name, values in (
        ("share_by_hop", found.share_by_hop),
        ("mean_by_hop", found.mean_by_hop),
        ("mean_distance", found.mean_distance),
        ("entropy", found.entropy),
        ("cls_column_share", found.class_column),
        ("cls_row", found.class_row),
    ):
        np.testing.assert_allclose(values, GOLDEN[name], atol=1e-6, err_msg=name)
    alike = profile(np.full((1, 2, 50, 50), 1 / 50), grid_places(1, (7, 7)), prefix=1)
    np.testing.assert_allclose(alike.share_by_hop, [alike.uniform] * 2, atol=1e-9)
    # tokens of each face that were kept, in any order, are where they are
    kept = np.stack([np.random.default_rng(b).permutation(49)[:30] for b in range(2)])
    attn = GOLDEN["attn"][:, :, 1:, 1:].astype(float)
    part = np.stack([each[:, k][:, :, k] for each, k in zip(attn, kept, strict=True)])
    ordered = np.sort(kept)
    again = np.stack([each[:, k][:, :, k] for each, k in zip(attn, ordered, strict=True)])
    one, other = (profile(a, np.stack(np.divmod(k, 7), -1)) for a, k in ((part, kept), (again, ordered)))
    np.testing.assert_allclose(one.share_by_hop, other.share_by_hop, atol=1e-9)
    assert np.isnan(one.class_column).all()


@pytest.fixture
def vit():
    torch.manual_seed(0)
    network = ViT(num_classes=4, num_tokens=9, embed_dim=8, depth=2, num_heads=2, grid=(3, 3)).eval()
    for p in network.parameters():
        p.data += 0.5 * torch.randn_like(p)
    return network


def test_a_head_is_taken_away(vit):
    """Before the output projection there is 0 in its place: as if the projection did not read it."""
    tokens = torch.randn(3, 9, 8)
    heads = heads_of(vit, tokens)
    assert [str(head) for head in heads] == [f"blocks.{b} head {h}" for b in (0, 1) for h in (0, 1)]
    with torch.no_grad():
        before = vit(tokens)
        with without(vit, [Head("blocks.1", 0)]):
            gone = vit(tokens)
        with without(vit, [Head("blocks.1", 0)], "class"):
            partly = vit(tokens)
        with without(vit, [Head("blocks.0", 0)], "class"):
            early = vit(tokens)
        with without(vit, [Head("blocks.0", 0)], [0, 4]):
            some = vit(tokens)
        with without(vit, [Head("blocks.0", 1)], by="mean"):
            mean = vit(tokens)
        assert torch.equal(vit(tokens), before)
        kept = vit.blocks[1].attn.proj.weight.clone()
        vit.blocks[1].attn.proj.weight[:, :4] = 0
        torch.testing.assert_close(vit(tokens), gone)
        vit.blocks[1].attn.proj.weight[:] = kept
        torch.testing.assert_close(gone, partly)  # behind the last block only the class token is read
        assert not torch.allclose(early, before) and not torch.allclose(early, some)
        assert not torch.allclose(mean, before)
    for head, reason in (
        (Head("blocks.1", 2), "has no head 2: its heads are 0 to 1"),
        (Head("blocks.7", 0), "blocks.7"),
    ):
        with pytest.raises(MienError, match=reason), without(vit, [head]):
            vit(tokens)
    with pytest.raises(MienError, match="PlainClassifier has no attention whose heads"):
        heads_of(mobilefacenet(), torch.zeros(1, 3, 112, 112))


def test_what_matters_is_found_and_pruned_last(vit):
    """A head whose share of the projection is 0 costs nothing, and all gone is what all gone is, in whatever order."""
    with torch.no_grad():
        vit.blocks[0].attn.proj.weight[:, 4:] = 0
    tokens = [torch.randn(20, 9, 8), torch.randn(10, 9, 8)]
    heads = heads_of(vit, tokens[0])
    with torch.no_grad():
        target = np.concatenate([vit(part).argmax(1).numpy() for part in tokens])
    lost = importance(*ablations(vit, tokens, heads), target)
    assert np.abs(lost["jsd"][1]).max() < 1e-9 and (lost["jsd"][[0, 2, 3]].mean(1) > 1e-6).all()
    order = np.argsort(lost["jsd"].mean(1))
    one, other = (pruned(vit, tokens, heads, each, target) for each in (order, order[::-1]))
    assert one[0].all() and one[1].all() and (one[-1] == other[-1]).all() and one.shape == (5, 30)
    pairs = agreement({"a": np.array([1.0, 2, 3, 4]), "b": np.array([10.0, 20, 20, 40]), "c": np.array([4.0, 3, 2, 1])})
    assert pairs["a", "c"] == pytest.approx(-1) and pairs["a", "b"] == pytest.approx(0.9486833)
    assert np.isnan(agreement({"a": np.ones(3), "b": np.arange(3.0)})["a", "b"])


def test_concentration_and_importance_factor():
    attn = np.full((1, 1, 2, 20), 1 / 20)
    attn[0, 0, 1] = np.eye(20)[3]
    assert concentration(attn)[0, 0] == pytest.approx((0.5 + 1) / 2)
    assert concentration(attn[..., :5])[0, 0] == pytest.approx((0.25 + 1) / 2)  # fewer keys than ten
    factor = importance_factor(np.array([[[1.0, 5], [3, 5], [2, 5]]]))
    np.testing.assert_allclose(factor, [[[0, 0], [1, 0], [0.5, 0]]])


def test_patterns():
    """Whoever looks at itself looks at the middle; a head that looks one to the right does so on every face."""
    places, right = grid_places(1, (4, 4)), np.zeros((3, 2, 16, 16))
    right[:, 0] = np.eye(16)
    for q in range(16):
        right[:, 1, q, q + 1 if q % 4 < 3 else q] = 1
    maps = recentred(right, places, (4, 4))
    assert maps.shape == (3, 2, 7, 7) and np.allclose(maps.sum((2, 3)), 1)
    assert maps[0, 0, 3, 3] == 1 and maps[0, 1, 3, 4] == pytest.approx(12 / 16)
    np.testing.assert_allclose(content_agnostic(maps), 1)
    mixed = maps.copy()
    mixed[0] = mixed[0, ::-1]
    assert (content_agnostic(mixed) < 0.8).all()
    noise = np.random.default_rng(0).random((20, 7, 7)) * 0.01
    both = np.concatenate([maps[:1, 0].repeat(10, 0), maps[:1, 1].repeat(10, 0)]) + noise
    found = summarise(both / both.sum((1, 2), keepdims=True), clusters=2, latent=4, steps=60)
    assert found.codes.shape == (20, 4) and found.places.shape == (20, 2) and 0.5 < found.shown <= 1 + 1e-9
    assert found.left_out < 0.5 and len(set(found.clusters[:10])) == len(set(found.clusters[10:])) == 1
    assert found.clusters[0] != found.clusters[10]
    assert k_means(np.zeros((4, 2)), 3).tolist() == [0, 0, 0, 0]  # all alike


def faces(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for label in EXPRESSIONS[:3]:
        (folder / "validation" / label).mkdir(parents=True)
        for i in range(4):
            picture = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
            Image.fromarray(picture).save(folder / "validation" / label / f"{i}.png")
    return folder


def test_mien_analyse(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mien.explain.analysis.summarise", partial(summarise, steps=2))
    checkpoint(tmp_path / "pooled.safetensors", "APViT", **POOLED, keep_patches=40, keep_rate=0.6)
    data = faces(tmp_path / "data")
    code, out, err = call("analyse", "pooled.safetensors", "--data", data, "--out", "out", "--draws", "1")
    assert (code, err) == (0, []) and "12 faces" in out[0]
    facts = json.loads(Path("out/analysis.json").read_text())
    assert facts["heads"] == [f"vit.blocks.{b} head {h}" for b in range(4) for h in (0, 1)]
    assert facts["class_rows"]["heads"] == facts["heads"] and len(facts["pruning"]["random"]) == 9
    assert facts["pruning"]["random"][-1] == facts["pruning"]["least first"][-1]  # all gone
    assert list(facts["profiles"]) == [f"vit.blocks.{b}" for b in range(4)]
    page = Path("out/analysis.html").read_text()
    assert page.count("<img") == 7 and "http" not in page and "vit.blocks.3 head 1" in page
    assert len(list(Path("out").glob("*.png"))) == 7

    checkpoint(tmp_path / "plain.safetensors", "mobilefacenet", 112, num_classes=8)
    code, out, err = call("analyse", "plain.safetensors", "--data", data, "--out", "none")
    assert (code, out, len(err)) == (1, [], 1) and "no attention whose heads could be analysed" in err[0]
    assert not Path("none").exists()
    assert call("analyse", "pooled.safetensors", "--data", data, "--limit", "3")[0] == 2


def test_acmil_hides_tokens_as_in_training():
    """What ten keys get with some of the strongest hidden; the pool is as it was afterwards."""
    from mien.explain.analysis import _masked

    torch.manual_seed(0)
    network = torch.nn.Sequential(ACMILPool(8, num_branches=2, hidden=4)).eval()
    tokens = torch.randn(16, 49, 8)
    [found] = _masked(network, [tokens], 16, 0).values()
    assert found.shape == (1,) and not network[0].training
    with torch.no_grad():
        plain = concentration(network[0].attention(tokens).numpy()).mean()
        torch.manual_seed(0)
        network.train()
        hidden = network[0].attention(tokens).numpy()
    assert (hidden == 0).sum() == 16 * 2 * 6 and found[0] == pytest.approx(concentration(hidden).mean())
    assert found[0] != plain


@pytest.mark.parametrize("tokens", [9, 18, 7])
def test_rows_of_dropped_tokens_are_no_picture(tokens):
    one = SimpleNamespace(class_row=np.full((2, tokens), 1 / tokens))
    found = SimpleNamespace(profiles={"vit.blocks.0": one}, grids={"vit.blocks.0": (3, 3)})
    figure = Figure()
    plot_class_rows(figure, found)
    pictures = [image for axes in figure.axes for image in axes.images]
    assert len(pictures) == (2 if tokens % 9 == 0 else 0) and len(figure.texts) == (tokens == 7)
    assert all(np.asarray(image.get_array()).sum() == pytest.approx(1) for image in pictures)


def test_only_what_a_phone_cannot_show_scrolls():
    from mien.faces.look import WIDE, plot

    def png(width):
        file = io.BytesIO()
        Image.new("L", (width, 10)).save(file, "png")
        return file.getvalue()

    assert plot(png(WIDE), "a < b").startswith('<img class="plot" alt="a &lt; b" src="data:image/png;base64,')
    assert plot(png(WIDE + 1)).startswith('<div class="wide" tabindex="0"><img class="plot"')
