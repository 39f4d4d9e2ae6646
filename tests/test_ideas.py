"""What training may do beside the plain loss: mirror images, companions, adjusted logits, mixed faces, averages."""

import numpy as np
import onnx
import pytest
import torch
from conftest import header
from torch import nn

from mien.checkpoint import outputs_of, read_header
from mien.classifier import MODELS, Classifier
from mien.errors import CheckpointError, MienError
from mien.export import export_onnx
from mien.losses import adjust_logits, flip_divergence, weighted_cross_entropy
from mien.networks import Network, build, load_network, mobilefacenet, save_network
from mien.networks.plain import PlainClassifier
from mien.networks.trunk import widen
from mien.nn import BatchTransformer
from mien.training.augment import Augment, Jpeg, RandomChanges, Resample, cut_mix
from mien.training.callbacks import Keep
from mien.training.task import Task


class Trunk(nn.Module):
    levels = ((6, 7),)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 16, 16)

    def forward(self, images):
        return (self.conv(images).relu(),)


def plain(**options) -> PlainClassifier:
    torch.manual_seed(0)
    return PlainClassifier(image=Trunk(), num_classes=8, dropout=0.0, **options)


def test_flip_divergence_by_hand():
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.5, 0.5], [0.3, 0.7]])
    logits = torch.cat([p, q]).log().requires_grad_()
    m = (p + q) / 2
    expected = sum((m * (m / each).log()).sum() for each in (p, q)) / 4
    found = flip_divergence(logits)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    np.testing.assert_allclose(logits.grad, (torch.cat([p, q]) - torch.cat([m, m])) / 4, atol=1e-6)
    assert flip_divergence(torch.cat([p, p]).log().half()).dtype == torch.float32


PREPROCESS = {"color": "rgb", "mean": [0.5] * 3, "std": [0.5] * 3, "input_size": 112}


def task(network: Network, **options) -> Task:
    made = Task(network, PREPROCESS, 8, lambda p: torch.optim.SGD(p, lr=0.1), **options)
    made.log = made.log_dict = lambda *_, **__: None
    made._over_processes = lambda value: value
    return made


def batch(count: int = 6):
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 112, 112, generator=draw)
    return images, torch.softmax(torch.randn(count, 8, generator=draw), 1), torch.zeros(count, dtype=torch.long)


def test_flip_consistency_learns_each_face_beside_its_mirror_image():
    network, (images, target, label) = plain(), batch()
    found = task(network, flip_consistency=3.0).training_step((images, target, label), 0)
    z, mirrored = network(images), network(images.flip(3))
    entropy = nn.functional.cross_entropy(torch.cat([z, mirrored]), torch.cat([target, target]))
    assert found.item() == pytest.approx((entropy + 3 * flip_divergence(torch.cat([z, mirrored]))).item(), rel=1e-5)
    even = images + images.flip(3)
    loss = task(network, flip_consistency=3.0).training_step((even, target, label), 0)
    alone = task(network).training_step((even, target, label), 0)
    assert loss.item() == pytest.approx(alone.item(), rel=1e-4)  # of a face that is its mirror image


@pytest.mark.parametrize("name", ["mixup", "cutmix", "flip_consistency", "logit_adjustment"])
def test_what_is_below_0_is_refused(name):
    with pytest.raises(MienError, match=f"--task.{name} is 0 or more, not -1"):
        task(plain(), **{name: -1})


def test_logit_adjustment_is_the_loss_alone():
    network, (images, target, label) = plain(), batch()
    shares = torch.tensor([0.5, 0.3, 0.1, 0.04, 0.03, 0.02, 0.01, 0.0])
    made = task(network, logit_adjustment=0.5)
    made.shares = shares
    found = made.training_step((images, target, label), 0)
    z = network(images)
    expected = nn.functional.cross_entropy(z + 0.5 * shares.clamp_min(1e-6).log(), target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    rare = adjust_logits({"a": torch.zeros(1, 8), "center": torch.zeros(1, 8), "own": torch.zeros(())}, shares, 1.0)
    assert rare["a"][0, 0] == pytest.approx(np.log(0.5)) and rare["center"].any() == rare["own"].any() == False  # noqa: E712


def test_cut_mix_by_area():
    torch.manual_seed(0)
    images = torch.arange(32.0).view(32, 1, 1, 1).expand(32, 3, 20, 10)
    target = torch.eye(32)
    mixed, shares = cut_mix(images, target, 1.0)
    assert mixed.shape == images.shape
    whole = cut = 0
    for i in range(32):
        values, counts = mixed[i, 0].unique(return_counts=True)
        assert i in values or len(values) == 1
        whole, cut = whole + (len(values) == 1), cut + (len(values) == 2)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            assert shares[i, int(value)] == pytest.approx(count / 200)
        if len(values) == 2:  # a rectangle: rows and columns
            other = mixed[i, 0] != i
            np.testing.assert_array_equal(other, other.any(1)[:, None] & other.any(0)[None])
    assert cut > 20 and shares.sum(1).allclose(torch.ones(32))
    torch.manual_seed(0)
    assert torch.equal(cut_mix(images, target, 1.0)[0], mixed)


def test_random_changes_are_drawn_for_each_part_of_a_batch():
    (first,) = (step for step in Augment(rand_count=3, rand_magnitude=12).steps if isinstance(step, RandomChanges))
    assert (first.change.n, first.change.m) == (3, 12)
    assert not any(isinstance(step, RandomChanges) for step in Augment().steps)
    change, images = RandomChanges(1, groups=4), torch.rand(1, 3, 24, 24).mul(0.5).expand(8, -1, -1, -1)
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        out = change(images)
        assert out.shape == images.shape and out.min() >= 0 and out.max() <= 1
        torch.manual_seed(seed)
        assert torch.equal(change(images), out)
        seen |= {len({part.numpy().tobytes() for part in out[::2]})}
    assert max(seen) > 2  # parts of one batch are changed in different ways
    for count, magnitude in ((0, 10), (14, 10), (2, 0), (2, 30)):
        with pytest.raises(ValueError, match="1 to 13 changes"):
            RandomChanges(count, magnitude)


def test_resolution_and_compression_can_be_made_harder():
    steps = Augment(resample_p=0.4, resample_side=(10, 30), jpeg_p=0.5, jpeg_quality=(5, 40), jpeg_smallest=24).steps
    (shrunk,) = (step for step in steps if isinstance(step, Resample))
    (coded,) = (step for step in steps if isinstance(step, Jpeg))
    assert (shrunk.smallest, shrunk.largest, shrunk.p) == (10, 30, 0.4)
    assert (coded.quality, coded.smallest, coded.p) == ((5, 40), 24, 0.5)


# the batch branch as a companion


def test_the_companion_is_btns_branch_on_the_last_map():
    network, (images, target, label) = plain(batch_branch=BatchTransformer, logits_loss_weight=3.0), batch()
    logits = network.training_logits(images)
    maps = network.image(images)[-1]
    expected = network.batch_branch(maps, network(images))
    assert list(logits) == ["logits", "bt", "cba"] and network.loss_weights == {"logits": 3.0, "bt": 1.0, "cba": 1.0}
    for name in ("bt", "cba"):
        torch.testing.assert_close(logits[name], expected[name])
    torch.testing.assert_close(logits["logits"], network(images))
    _, parts = weighted_cross_entropy(logits, target, network.loss_weights)
    found = task(network).training_step((images, target, label), 0)
    assert found.item() == pytest.approx((3 * parts["logits"] + parts["bt"] + parts["cba"]).item(), rel=1e-5)


def test_nothing_of_the_companion_is_in_a_file(tmp_path):
    """Weights, header and graph are those of the network that never had one."""
    alone, beside = plain(), plain(batch_branch=BatchTransformer)
    own = {name: t for name, t in beside.state_dict().items() if not name.startswith("batch_branch")}
    alone.load_state_dict(own)
    model = {"class_path": "mien.networks.mobilefacenet", "init_args": {"num_classes": 8, "batch_branch": "none"}}
    plainly = header("mien.networks.mobilefacenet") | {"model": model}
    made = {"class_path": "mien.nn.BatchTransformer"}
    besides = header("mien.networks.mobilefacenet", num_classes=8, batch_branch=made)
    save_network(tmp_path / "alone.safetensors", alone, plainly)
    save_network(tmp_path / "beside.safetensors", beside, besides)
    assert (tmp_path / "alone.safetensors").read_bytes() == (tmp_path / "beside.safetensors").read_bytes()
    for name, network in (("alone", alone), ("beside", beside)):
        export_onnx(tmp_path / f"{name}.onnx", network.eval(), plainly)
    assert (tmp_path / "alone.onnx").read_bytes() == (tmp_path / "beside.onnx").read_bytes()
    names = {tensor.name for tensor in onnx.load(tmp_path / "beside.onnx").graph.initializer}
    assert not any("batch_branch" in name for name in names)


def test_a_checkpoint_without_the_companion_starts_a_network_with_one(tmp_path):
    block = {"class_path": "mien.networks.mobilefacenet", "init_args": {"num_classes": 8}}
    save_network(tmp_path / "a.safetensors", mobilefacenet(), header("mien.networks.mobilefacenet", num_classes=8))
    network = load_network(tmp_path / "a.safetensors", batch_branch=BatchTransformer)
    assert isinstance(network.batch_branch, BatchTransformer)
    made = build(block | {"init_args": {"num_classes": 8, "batch_branch": "mien.nn.BatchTransformer"}})
    assert isinstance(made.batch_branch, BatchTransformer)
    keep = Keep(tmp_path, header("mien.networks.mobilefacenet", num_classes=8), "val_accuracy", every=True)
    assert keep.every


# averages


def test_an_average_is_of_weights(tmp_path, call):
    lost = {"accuracy_difference": 0.0, "interval": [0.0, 0.0], "faces": 9, "mean_distance": 0.0}
    facts = header("mien.networks.mobilefacenet", num_classes=8) | {"precision": {"bf16": lost}}
    paths = []
    for i in range(3):
        torch.manual_seed(i)
        network = mobilefacenet()
        network.image.stem.bn.num_batches_tracked += i
        paths.append(tmp_path / f"{i}.safetensors")
        training = {"recipe": "x", "metrics": {"val_accuracy": 0.5}}
        save_network(paths[-1], network, facts | {"training": training, "temperature": 2.0})
    out = tmp_path / "mean.safetensors"
    assert call("average", out, *paths)[:2] == (0, [str(out)])
    mean, each = load_network(out).state_dict(), [load_network(path).state_dict() for path in paths]
    for name in ("head.weight", "image.stem.conv.weight", "image.stem.bn.running_var"):
        torch.testing.assert_close(mean[name], torch.stack([one[name] for one in each]).mean(0))
    assert mean["image.stem.bn.num_batches_tracked"] == 2
    told = read_header(out)
    assert told["training"] == {"recipe": "x", "average_of": ["0.safetensors", "1.safetensors", "2.safetensors"]}
    assert outputs_of(told)[0].temperature == 1.0 and "precision" not in told  # which was measured of the last alone


def test_what_cannot_be_averaged_is_one_line(tmp_path, call):
    facts = header("mien.networks.mobilefacenet", num_classes=8)
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_network(one, mobilefacenet(), facts)
    save_network(other, mobilefacenet(), facts | {"preprocess": facts["preprocess"] | {"color": "grey"}})
    assert call("average", tmp_path / "x.safetensors", one)[2] == ["mien: an average is of two checkpoints or more"]
    assert call("average", tmp_path / "x.onnx", one, one)[2] == [
        f"mien: {tmp_path / 'x.onnx'}: an average is a .safetensors file"
    ]
    code, _, err = call("average", tmp_path / "x.safetensors", other, one)
    assert (code, err) == (1, [f"mien: {other}: of another preprocess than {one}: they cannot be averaged"])
    with pytest.raises(CheckpointError, match="no such file"):
        from mien.networks.checkpoint import average_networks

        average_networks([one, tmp_path / "none.safetensors"])


# wider networks


def test_a_wider_network_answers_as_the_narrow_one_whose_weights_it_is_given(tmp_path):
    torch.manual_seed(0)
    narrow = mobilefacenet()
    with torch.no_grad():  # statistics that are not those of a new network
        narrow.train()(torch.randn(8, 3, 112, 112))
    save_network(tmp_path / "a.safetensors", narrow.eval(), header("mien.networks.mobilefacenet", num_classes=8))
    wide, images = load_network(tmp_path / "a.safetensors", width=2), torch.randn(3, 3, 112, 112)
    count = sum(p.numel() for p in wide.parameters())
    assert 3.3e6 < count < 5e6 and wide.image.levels == ((128, 28), (256, 14), (1024, 7))
    with torch.no_grad():
        torch.testing.assert_close(wide(images), narrow(images), atol=0.02, rtol=0.02)
    one, other = wide.image.stages[0][0].expand.conv.weight.chunk(2)
    assert not torch.equal(one, other)  # or both would learn the same
    save_network(tmp_path / "b.safetensors", wide, header("mien.networks.mobilefacenet", num_classes=8, width=2))
    torch.testing.assert_close(load_network(tmp_path / "b.safetensors")(images), wide(images))


def test_widening_is_exact_but_for_the_noise_that_parts_twins():
    narrow = {"a.weight": torch.randn(4, 3, 1, 1), "b.weight": torch.randn(4, 1, 3, 3), "c.weight": torch.randn(2, 4)}
    narrow |= {"bn.weight": torch.randn(4), "n": torch.tensor(7)}
    shapes = {"a.weight": (8, 3, 1, 1), "b.weight": (8, 1, 3, 3), "c.weight": (2, 8), "bn.weight": (8,), "n": ()}
    wide = widen(narrow, {name: torch.empty(shape) for name, shape in shapes.items()})
    assert {name: tuple(t.shape) for name, t in wide.items()} == shapes
    torch.testing.assert_close(wide["c.weight"], narrow["c.weight"].repeat(1, 2) / 2, atol=0.01, rtol=0.01)
    assert torch.equal(wide["bn.weight"], narrow["bn.weight"].repeat(2)) and wide["n"] == 7
    odd = {"x": torch.randn(3, 3)}
    assert widen(odd, {"x": torch.empty(4, 3)})["x"] is odd["x"]  # for `fill` to refuse


@pytest.mark.parametrize("width", [0, -1])
def test_a_width_is_1_or_more(width):
    with pytest.raises(ValueError, match="width must be a whole number from 1 up"):
        mobilefacenet(width=width)


@pytest.mark.parametrize("name", sorted(path.name for path in MODELS.iterdir() if path.is_dir()))
def test_an_answer_of_a_shipped_file_does_not_depend_on_its_batch(name):
    """As BTN's paper promises of its own: the batch branch is of training alone."""
    classifier = Classifier.from_pretrained(name, precision="fp32")
    size = classifier.header["preprocess"]["input_size"]
    faces = np.random.default_rng(0).integers(0, 256, (5, size, size, 3), np.uint8)
    together = classifier.run(faces)
    alone = np.concatenate([classifier.run(face[None]) for face in faces])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3
