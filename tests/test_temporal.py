"""Temporal models: made tracks, windows of labelled ones, filters, training, export, and smoothing by them."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import header
from films import film
from PIL import Image
from sets import EXPR, UNITS, write
from torch import Tensor, nn

from mien.checkpoint import read_header
from mien.classifier import Classifier
from mien.data import Row
from mien.data.sequences import FaceSequences
from mien.data.windows import windows
from mien.errors import CheckpointError, MienError, MienWarning
from mien.evaluation.tracks import choose_seconds, exponential, interval, median, right, two_state
from mien.export import export_model
from mien.labels import EXPRESSIONS, ORDERS
from mien.networks import Network, Temporal, save_network
from mien.networks.temporal import causal_attention
from mien.nn import CMHA, RCMHA, Grassmann, LinearAttention, Superlinear
from mien.outputs import Output
from mien.reader import Reader
from mien.training.temporal import JUDGING, Tracks, judge, learn, made_tracks, window_tracks
from mien.video import read_video
from mien.video.smooth import Exponential
from mien.video.temporal import TemporalSmoothing

RECIPES = Path(__file__).parents[1] / "recipes" / "temporal"


def faces(count=40, width=6, views=3, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Features of three classes that lie apart, and labels."""
    chance = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    features = np.eye(width)[labels][:, None] * 3 + chance.normal(0, 1.5, (count, views, width))
    return features.astype(np.float16), labels


# made tracks


def test_a_track_is_told_by_its_seed_and_number():
    features, labels = faces()
    data, again = (FaceSequences(features, labels, seed=3, length=50, count=9) for _ in range(2))
    for one, other in zip(data[7], again[7], strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(data[7].features, data[8].features)
    assert not np.array_equal(data[7].features, FaceSequences(features, labels, seed=4, length=50)[7].features)
    with pytest.raises(IndexError):
        data[9]
    with pytest.raises(ValueError, match="are not"):
        FaceSequences(features[0], labels, seed=0)


def test_what_made_tracks_hold():
    """Rates, gaps, segments, transitions, spoilt and wrong faces, as its docstring says."""
    labels = np.arange(30) % 3
    features = np.zeros((30, 2, 31), np.float32)
    features[np.arange(30), :, np.arange(30)] = 1  # which face it is, and in the last place whether it is spoilt
    features[:, 1, 30] = 1
    tracks = [FaceSequences(features, labels, seed=0, length=64, count=150)[i] for i in range(150)]
    steps = [np.diff(track.times) for track in tracks]
    assert all((step > 0).all() and len(track.times) == 64 for step, track in zip(steps, tracks, strict=True))
    rates = [1 / np.median(step) for step in steps]
    assert 4 < min(rates) < 7 and 20 < max(rates) < 33
    assert 0.3 < max(map(max, steps)) < 1.3  # gaps
    weights = np.concatenate([track.features[:, :30] for track in tracks])
    target, shown = np.concatenate([t.target for t in tracks]), np.concatenate([t.faces for t in tracks])
    assert np.allclose(weights.sum(1), 1, atol=1e-5) and 0.02 < (weights.max(1) < 0.999).mean() < 0.25  # transitions
    whole = weights.max(1) > 0.999
    wrong = weights[whole].argmax(1) != shown[whole]
    assert 0.01 < wrong.mean() < 0.08 and (labels[shown[whole]] == target[whole]).mean() > 0.97
    assert 0.1 < np.concatenate([t.features[:, 30] for t in tracks]).mean() < 0.35  # spoilt
    assert 0.35 < (target == 0).mean() < 0.6  # neutral
    ends = [track.times[np.flatnonzero(np.diff(track.target)) + 1] for track in tracks]
    lengths = np.concatenate([np.diff(end) for end in ends])
    assert np.quantile(lengths, 0.05) > 0.3 and 1 < lengths.mean() < 3


def rows(*numbers, subject="1", label=0):
    target = np.eye(3, dtype=np.float32)[label]
    return [Row(b"", target, "train", subject, name=f"{subject} {n}", number=n) for n in numbers]


def test_windows_of_videos():
    """In the order of frames, ended by gaps, whatever the order of rows; of a track of one frame, too."""
    mixed = rows(5, 3, 4, 100, 101) + rows(7, subject="2")
    found = windows(mixed, length=2, rate=10.0)
    told = [(w.subject, w.rows.tolist(), [round(float(t), 3) for t in w.times]) for w in found]
    assert told == [
        ("1", [1, 2], [0.3, 0.4]),
        ("1", [0], [0.5]),
        ("1", [3, 4], [10.0, 10.1]),
        ("2", [5], [0.7]),
    ]
    assert [len(w.rows) for w in windows(rows(*range(10)), length=4, stride=2)] == [4, 4, 4, 4]
    assert [w.times[1] for w in windows(rows(0, 1) + rows(0, 1, subject="b"), rate={"1": 10, "b": 20})] == [
        pytest.approx(0.1),
        pytest.approx(0.05),
    ]
    for bad, reason in (
        (rows(3, 3), "1 3: frame 3 comes twice"),
        (rows(-1), "1 -1: without a subject or the number"),
        (rows(1, subject=None), "without a subject"),
    ):
        with pytest.raises(MienError, match=reason):
            windows(bad)
    with pytest.raises(MienError, match="1: no rate"):
        windows(rows(1), rate={"2": 30})


# filters


def test_filters():
    times = np.array([[0.0, 0.5, 1.0, 1.5]])
    probs = np.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    way = 1 - math.exp(-1)
    assert exponential(times, probs, 0.5)[0, :2, 1] == pytest.approx([0, way])
    assert median(times, probs, 1.0)[0, :, 0] == pytest.approx([1, 0.5, 1, 1])
    chain = two_state(times, probs.clip(0.1, 0.9), 5.0)[0, :, 0]
    assert chain[0] == pytest.approx(0.9) and 0.4 < chain[1] < 0.6 and chain[3] > chain[2] > 0.8
    assert np.allclose(two_state(times, probs, 0.5).sum(2), 1)
    target = np.array([[0, 0, 0, -1]])
    assert right(probs, target)[0] == pytest.approx(2 / 3) and np.isnan(right(probs, target * 0 - 1)[0])
    assert choose_seconds("exponential", times, probs, np.zeros((1, 4), int)) == 0.8
    assert interval(np.array([0.5, 0.5, np.nan])) == (0.5, 0.5, 0.5)


# the network

MIXERS = {
    "self": causal_attention,
    "superlinear": partial(Superlinear, window=3),
    "delta": LinearAttention,
    "Grassmann": partial(Grassmann, direction="past"),
    "RCMHA": partial(RCMHA, causal=True),
    "CMHA": partial(CMHA, causal=True),
}


@pytest.mark.parametrize("name", MIXERS)
def test_no_frame_looks_ahead(name):
    """And a network that has learnt nothing smooths exponentially."""
    torch.manual_seed(0)
    network = Temporal(width=6, num_classes=3, dim=16, depth=1, num_heads=2, mixer=MIXERS[name], seconds=0.3).eval()
    track = torch.cat([torch.rand(2, 12, 1).cumsum(1) * 0.1, torch.randn(2, 12, 6)], 2)
    alone = network.head(track[..., 1:]).softmax(-1).detach().numpy()
    filtered = exponential(track[..., 0].numpy(), alone, 0.3)
    assert np.allclose(network(track).softmax(-1).detach().numpy(), filtered, atol=1e-5)
    nn.init.normal_(network.fix.weight)
    other = track.clone()
    other[:, 8:, 1:] += 1
    before, after = network(track), network(other)
    assert torch.allclose(before[:, :8], after[:, :8], atol=1e-5) and not torch.allclose(before[:, 8], after[:, 8])
    later = track.clone()
    later[..., 0] += 3600
    assert torch.allclose(network(later), before, atol=2e-2)  # only differences of times count


def test_learning_beats_the_filter_where_there_is_something_to_learn():
    """A frame's last feature says whether it is of a wrong face, which a filter does not know."""

    def track(i: int):
        draw = np.random.default_rng([0, i])
        target, wrong = np.repeat(draw.integers(3, size=4), 8), draw.random(32) < 0.5
        shown = np.where(wrong, draw.integers(3, size=32), target)
        features = np.concatenate([4 * np.eye(3)[shown], wrong[:, None]], 1)
        return np.arange(32) / 10, features, {"expression": target}

    tracks = Tracks(200, track, 32)
    torch.manual_seed(0)
    network = Temporal(width=4, num_classes=3, dim=16, depth=1, num_heads=2)
    with torch.no_grad():
        network.head.weight.copy_(torch.eye(3, 4))
        network.head.bias.zero_()
    judging = Tracks(60, lambda i: track(1000 + i), 32)
    learn(network, tracks, steps=50, batch_size=8, lr=2e-2, seed=0)
    found = judge({"temporal#0": network, "temporal#1": network}, judging, tracks)
    assert found["temporal - exponential"][1] > 0 and found["nothing - exponential"][0] < 0


def test_other_answers_are_learnt_of_those_that_are_labelled():
    units = Output("action_units", "binary", ("AU1", "AU2"))

    class Set:
        outputs = (None, units)

        def targets(self, row):
            return {"action_units": np.array([row.number % 2, np.nan], np.float32)}

    frames = rows(0, 1, 2) + rows(9, subject="b")
    tracks = window_tracks(np.ones((4, 1, 6), np.float16), frames, Set(), length=4)
    track, targets = tracks[0]
    assert track.shape == (4, 7) and targets["expression"].tolist() == [0, 0, 0, -1]  # the fourth is padding
    assert np.array_equal(targets["action_units"][:, 0], [0, 1, 0, np.nan], equal_nan=True)
    network = Temporal(width=6, num_classes=3, dim=8, depth=1, num_heads=2)
    network.add_heads([units])
    before = network.heads["action_units"].weight.detach().clone()
    learn(network, tracks, [units], steps=2, batch_size=2, lr=1e-2, seed=0)
    moved = (network.heads["action_units"].weight.detach() - before).abs().sum(1)
    assert moved[0] > 1e-3 and all(p.isfinite().all() for p in network.parameters())


# the command, export, and reading


def test_the_command(tmp_path, call):
    """Of pictures in folders, a network that never learnt, and two steps."""
    for split in ("train", "validation"):
        for i, label in enumerate(EXPRESSIONS):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            Image.new("L", (48, 48), 20 * i + 9).save(tmp_path / "data" / split / label / "a.png")
    trunk = tmp_path / "trunk.safetensors"
    from mien.networks import mobilefacenet

    save_network(trunk, mobilefacenet(), header("mien.networks.mobilefacenet"))
    block = {"class_path": "folder", "init_args": {"path": str(tmp_path / "data"), "labels": list(EXPRESSIONS)}}
    recipe = {"model": str(trunk), "data": block, "made": {"length": 8, "count": 20}, "network": {"dim": 8, "depth": 1}}
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(recipe | {"steps": 2, "batch_size": 2}))
    code, out, err = call("temporal", file, "--out", tmp_path / "run", "--cache", tmp_path / "kept")
    assert code == 0 and out[-1] == f"{tmp_path}/run/temporal.safetensors"
    assert any(line.startswith("temporal - exponential") for line in out)
    made = read_header(tmp_path / "run" / "temporal.safetensors")
    assert made["model"]["class_path"] == "mien.networks.Temporal" and made["training"]["seed"] == 0
    assert np.load(tmp_path / "kept" / "train.npz")["features"].shape == (8, 3, 512)
    with pytest.raises(CheckpointError, match="a temporal model reads no faces"):
        Classifier.from_pretrained(tmp_path / "run" / "temporal.safetensors")
    for wrong, reason in (
        ({"stepz": 1}, "stepz"),
        ({"windows": {}}, "either made"),
        ({"made": {"lenght": 1}}, "lenght"),
        ({"network": {"dimm": 1}}, "dimm"),
    ):
        file.write_text(json.dumps(recipe | wrong))
        code, _, err = call("temporal", file, "--out", tmp_path / "other", "--cache", tmp_path / "kept")
        assert code == 1 and len(err) == 1 and reason in err[0], err
    assert call("temporal", tmp_path / "no.yaml")[2] == [f"mien: {tmp_path}/no.yaml: no such file or directory"]


class Small(Network):
    """The mean colour of a face and five numbers more."""

    def __init__(self, num_classes: int = 8):
        super().__init__()
        self.body, self.head = nn.Linear(3, 8), nn.Linear(8, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.body(images.mean((2, 3))).tanh()

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The file of a model with features and a temporal graph beside it; the two networks."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    small, says = Small(), header("test_temporal.Small")
    nn.init.normal_(small.head.weight, std=2.0)
    save_network(folder / "small.safetensors", small, says)
    temporal = Temporal(width=8, num_classes=8, dim=8, depth=1, num_heads=2)
    temporal.head.load_state_dict(small.head.state_dict())
    nn.init.normal_(temporal.fix.weight, std=0.3)
    block = {"class_path": "mien.networks.Temporal", "init_args": {"width": 8, "num_classes": 8, "dim": 8}}
    block["init_args"] |= {"depth": 1, "num_heads": 2}
    save_network(folder / "temporal.safetensors", temporal, {**says, "model": block})
    options = {"temporal": folder / "temporal.safetensors", "trust": True}
    done = export_model(folder / "small.safetensors", folder / "out.onnx", precision="fp32", **options)
    assert sorted(path.name for path in done.files) == ["out.onnx", "out.temporal.onnx"]
    return done.path, small.eval(), temporal.eval()


def test_features_are_one_more_output(exported):
    path, small, _ = exported
    classifier = Classifier.from_pretrained(path)
    assert classifier.header["features"] == 8
    assert classifier.header["temporal"] == {"file": "out.temporal.onnx", "window": 64}
    crops = np.random.default_rng(0).integers(0, 255, (3, 112, 112, 3), np.uint8)
    answers = classifier.answers(crops)
    images = (torch.from_numpy(crops).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    assert np.allclose(answers["features"], small.forward_features(images).detach(), atol=1e-5)
    assert np.allclose(answers["expression"], small(images).softmax(-1).detach(), atol=1e-5)
    assert set(classifier.read(crops)[0]) == {"expression", "features"}
    assert "features" not in Reader(classifier, None).face(None, classifier.read(crops)[0]).to_dict()


def test_smoothing_by_the_temporal_graph(exported, tmp_path):
    """Frame by frame it says what the network says of the whole, in a video, too; NaN has a line and loses nothing."""
    path, small, temporal = exported
    images = [np.full((64, 64, 3), colour, np.uint8) for colour in [(200, 30, 30)] * 4 + [(20, 40, 220)] * 5]
    film(tmp_path / "a.mkv", images, codec="ffv1")
    reader = Reader.from_pretrained(path, aligned=True)
    options = {"track": True, "cuts": math.inf}
    frames = list(read_video(tmp_path / "a.mkv", reader, smooth="temporal", images=True, **options))
    told = np.array([list(frame.faces[0].probabilities.values()) for frame in frames])
    crops = torch.from_numpy(np.stack([reader.classifier.crop(frame.image) for frame in frames])).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = small.forward_features((crops / 255 - 0.5) / 0.5)
        track = torch.cat([torch.tensor([[frame.time] for frame in frames]), features], 1)[None].float()
        wanted = temporal(track)[0].softmax(-1).numpy()
    usually = list(read_video(tmp_path / "a.mkv", reader, **options))  # by a time constant, though the model has one
    assert usually[-1].faces[0].probabilities != frames[-1].faces[0].probabilities
    assert np.allclose(told, wanted, atol=1e-3) and list(frames[0].faces[0].probabilities) == list(EXPRESSIONS)
    assert np.abs(told - [list(frame.faces[0].unsmoothed.values()) for frame in frames]).max() > 0.01

    smooth, usual = TemporalSmoothing(reader.classifier), Exponential(0.5, reader.classifier.outputs)
    answer = reader.classifier.read(np.stack([np.full((112, 112, 3), 90, np.uint8)]))[0]
    with pytest.warns(MienWarning, match=r"track 1 at 5.00 s: features that are not numbers") as lines:
        for at in (5.0, 5.1):
            bad = smooth(1, at, {**answer, "features": np.full(8, np.nan, np.float32)})
            assert np.allclose(bad["expression"], usual(1, at, answer)["expression"])
    assert len(lines) == 1
    first = smooth(1, 3.0, answer)["expression"]
    for at in (3.0, 2.0, 600.0):  # repeated, back, and minutes later
        assert np.isfinite(smooth(1, at, answer)["expression"]).all()
    assert np.allclose(smooth(2, 0.0, answer)["expression"], first, atol=1e-5)
    smooth.forget(1000.0)
    assert not smooth._tracks
    for i in range(200):
        smooth(1, 1000 + i / 25, answer)
    assert len(smooth._tracks[1]) == 64  # memory ends with the window


def test_what_does_not_fit_together(exported, stand_in, tmp_path, call):
    path, *_ = exported
    film(tmp_path / "a.mkv", [np.zeros((64, 64, 3), np.uint8)] * 2, codec="ffv1")
    words = ["read", tmp_path / "a.mkv", "--aligned", "--track", "--smooth", "temporal", "--model"]
    assert call(*words, stand_in)[2] == [f"mien: {stand_in}/model.onnx: no temporal model: its header names none"]
    stranger = tmp_path / "small.safetensors"
    save_network(stranger, Small(), header("test_temporal.Small"))
    with pytest.raises(MienError, match="learnt of the features of another model"):
        export_model(stranger, tmp_path / "o.onnx", temporal=path.with_name("temporal.safetensors"), trust=True)
    with pytest.raises(MienError, match="no temporal model, but test_temporal.Small"):
        export_model(stranger, tmp_path / "o.onnx", temporal=stranger, trust=True)
    assert not list(tmp_path.glob("*.onnx"))
    (tmp_path / "out.onnx").write_bytes(path.read_bytes())
    code, _, err = call(*words, tmp_path / "out.onnx")
    assert code == 1 and err == [
        f"mien: {tmp_path}/out.onnx: out.temporal.onnx, which its header names, is not beside it"
    ]


def test_judging_tracks_are_the_same_whatever_the_seed_of_training():
    features, labels = faces()
    one, other = (made_tracks(features, labels, seed=JUDGING, length=8, count=3) for _ in range(2))
    assert np.array_equal(one[2][0], other[2][0])


def test_windows_of_affwild2_train_every_answer(tmp_path, call):
    """Three frames of one video, of which one is not labelled, and one of another."""
    notes, frames = tmp_path / "annotations", tmp_path / "cropped_aligned"
    for split in ("Train_Set", "Validation_Set"):
        write(notes / "EXPR_Set" / split / f"{split}.txt", EXPR, "0", "-1", "5")
        write(notes / "AU_Set" / split / f"{split}.txt", UNITS, "0,0,1", "1,-1,0", "1,1,1")
        write(notes / "VA_Set" / split / f"{split}.txt", "valence,arousal", "0.1,0.2", "-5,-5", "-0.5,1")
        (frames / split).mkdir(parents=True)
        for i in (1, 2, 3):
            Image.new("RGB", (112, 112), (20 * i, 9, 99)).save(frames / split / f"{i:05}.jpg")
    from mien.networks import mobilefacenet

    says = header("mien.networks.mobilefacenet", num_classes=7)
    says["id2label"] = {str(i): label for i, label in enumerate(ORDERS["affwild2"])}
    save_network(tmp_path / "trunk.safetensors", mobilefacenet(num_classes=7), says)
    recipe = yaml.safe_load((RECIPES / "affwild2.yaml").read_text())
    recipe |= {"model": str(tmp_path / "trunk.safetensors"), "steps": 2, "batch_size": 2}
    recipe |= {"windows": {"length": 2, "stride": 1, "rate": 30.0}, "network": {"dim": 8, "depth": 1}}
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(recipe))
    code, out, err = call("temporal", file, "--data", tmp_path, "--out", tmp_path / "run")
    assert code == 0, err
    made = read_header(tmp_path / "run" / "temporal.safetensors")
    assert [output["name"] for output in made["outputs"]] == ["expression", "action_units", "valence", "arousal"]


@pytest.mark.parametrize("name", ["ferplus", "affwild2"])
def test_recipes_are_understood(name, tmp_path, monkeypatch, call):
    """Up to the data, which are not here."""
    monkeypatch.chdir(tmp_path)
    code, _, err = call("temporal", RECIPES / f"{name}.yaml")
    assert code == 1 and len(err) == 1 and err[0].startswith("mien: data/") and "no such" in err[0]
