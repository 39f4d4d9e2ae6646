"""Train a temporal model: what a resting network says of faces is kept, and tracks of it are joined."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mien.checkpoint import outputs_of, read_header, with_outputs
from mien.classifier import find_checkpoint
from mien.data import DataSet, Row
from mien.data.sequences import FaceSequences
from mien.data.windows import windows
from mien.errors import MienError
from mien.evaluation.robustness import WAYS
from mien.evaluation.tracks import FILTERS, choose_seconds, interval, right
from mien.faces import crop
from mien.faces.align import ARCFACE112
from mien.files import whole
from mien.losses import output_loss
from mien.networks import Temporal, build, load_network, save_network
from mien.networks.deploy import Normalize, to_float
from mien.outputs import Output

SOFT = ("blur", "resolution", "dark and grey", "JPEG", "noise")
HARD = ("shifted crop", "turned", "boxes anywhere", "mouth hidden", "eyes hidden")
"""Ways in which the second and the third view of a face are spoilt, one of each by chance, of a severity by chance."""

JUDGING = 1_000_003
"""The seed of the tracks that judge, whatever the seed of training."""

Targets = Mapping[str, np.ndarray]
"""Of each frame of a track the class ("expression", -1 where nobody said), and (T, width) of others, NaN so."""


class Tracks:
    """Tracks of one length that learn and judge, out of kept features: item i is (track (T, 1 + D), targets)."""

    def __init__(self, count: int, track: Callable[[int], tuple[np.ndarray, np.ndarray, Targets]], length: int):
        self.count, self._track, self.length = count, track, length

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[np.ndarray, Targets]:
        """Shorter ones go on with frames that nobody labelled, which no frame before them sees."""
        times, features, targets = self._track(i)
        more = self.length - len(times)
        rows = np.concatenate([times[:, None] - times[0], features], 1).astype(np.float32)
        filled = {}
        for name, values in targets.items():
            width = [(0, more)] + [(0, 0)] * (values.ndim - 1)
            filled[name] = np.pad(values, width, constant_values=-1 if name == "expression" else np.nan)
        return np.pad(rows, ((0, more), (0, 0)), "edge"), filled


def made_tracks(features: np.ndarray, labels: np.ndarray, **options: Any) -> Tracks:
    """Those of `mien.data.sequences.FaceSequences`."""
    data = FaceSequences(features, labels, **options)

    def track(i: int) -> tuple[np.ndarray, np.ndarray, Targets]:
        made = data[i]
        return made.times, made.features, {"expression": made.target}

    return Tracks(len(data), track, data.length)


def window_tracks(features: np.ndarray, rows: Sequence[Row], data: DataSet, *, length: int, **options: Any) -> Tracks:
    """Those of `mien.data.windows.windows`, with all that the rows tell."""
    found = windows(rows, length=length, **options)
    said = [data.targets(row) for row in rows]

    def track(i: int) -> tuple[np.ndarray, np.ndarray, Targets]:
        window = found[i]
        targets = {"expression": np.array([rows[k].label for k in window.rows])}
        for output in data.outputs[1:]:
            targets[output.name] = np.stack([said[k][output.name].reshape(-1) for k in window.rows])
        return window.times, features[window.rows, 0], targets

    return Tracks(len(found), track, length)


def keep_features(
    model: Path, rows: Sequence[Row], cache: Path | None, *, spoilt: bool, batch_size: int = 32, progress: bool = False
) -> np.ndarray:
    """What the model's head reads of every row, (N, V, D) float16: as it is, and `spoilt` in two ways more.

    cache: a .npz that is used again where it is of the same model, rows and views. Raises MienError for another one.
    """
    key = hashlib.blake2b(model.read_bytes() + f"{spoilt}".encode(), digest_size=16)
    for row in rows:
        key.update(f"{row.name}\n".encode(errors="surrogateescape"))
    if cache is not None and cache.exists():
        kept = np.load(cache)
        if str(kept["key"]) != key.hexdigest():
            raise MienError(f"{cache}: features of another model or of other faces; delete it, or name another file")
        return kept["features"]
    header, network = read_header(model), load_network(model)
    preprocess = header["preprocess"]
    normalize, parts = Normalize(preprocess), []
    with torch.no_grad(), tqdm(total=len(rows), unit=" faces", leave=False, disable=not progress) as bar:
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            crops = [crop(view, preprocess) for i, row in enumerate(some, start) for view in views(row, i, spoilt)]
            found = network.forward_features(normalize(to_float(torch.from_numpy(np.stack(crops)))))
            parts.append(found.numpy().astype(np.float16).reshape(len(some), -1, found.shape[1]))
            bar.update(len(some))
    features = np.concatenate(parts)
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with whole(cache) as file:
            np.savez(file, features=features, key=key.hexdigest())
    return features


def views(row: Row, index: int, spoilt: bool) -> list[np.ndarray]:
    """The picture, and with `spoilt` two spoilt ones; chance is seeded by the row's number, or else its index."""
    image = row.image()
    shown = [image]
    chance = np.random.default_rng([7, row.number if row.number >= 0 else index])
    for ways in (SOFT, HARD) if spoilt else ():
        way, severity = ways[int(chance.integers(len(ways)))], int(chance.integers(1, 5))
        shown.append(WAYS[way](image, ARCFACE112 * (np.array(image.shape[1::-1]) / 112), severity, chance))
    return shown


def learn(
    network: Temporal,
    tracks: Tracks,
    others: Sequence[Output] = (),
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    progress: bool = False,
) -> None:
    """AdamW with a cosine, on the cross entropy of every labelled frame and the losses of `others`, in place."""
    torch.manual_seed(seed)
    learnt = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, (i + 1) / 20) * _cosine(i / steps))
    order = np.random.default_rng(seed)
    network.train()
    for _ in tqdm(range(steps), unit=" steps", leave=False, disable=not progress):
        batch = [tracks[int(i)] for i in order.integers(len(tracks), size=batch_size)]
        answers = network.answers(torch.from_numpy(np.stack([x for x, _ in batch])))
        loss = _loss(answers, [targets for _, targets in batch], others)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        schedule.step()
    network.eval()


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _loss(answers: Mapping[str, Tensor], targets: Sequence[Targets], others: Sequence[Output]) -> Tensor:
    target = torch.from_numpy(np.stack([each["expression"] for each in targets]))
    loss = F.cross_entropy(answers["logits"].flatten(0, 1), target.flatten(), ignore_index=-1, reduction="sum")
    loss = loss / (target >= 0).sum().clamp_min(1)
    for output in others:
        truth = torch.from_numpy(np.stack([each[output.name] for each in targets])).flatten(0, 1)
        loss = loss + output.weight * output_loss(output, answers[output.name].flatten(0, 1), truth)
    return loss


def start(model: Path, settings: Mapping[str, Any], others: Sequence[Output] = ()) -> tuple[Temporal, dict[str, Any]]:
    """A temporal network for the features of a model, as `settings` (init_args of `Temporal`) say, and its block."""
    trunk, first = load_network(model), outputs_of(read_header(model))[0]
    arguments = {"width": trunk.width, "num_classes": len(first.labels), "temperature": first.temperature, **settings}
    block = {"class_path": "mien.networks.Temporal", "init_args": arguments}
    network = build(block)
    network.add_heads(others)
    head = next(part for part in trunk.headed.head.modules() if isinstance(part, torch.nn.Linear))
    network.head.load_state_dict(head.state_dict())
    return network, block


def judge(
    networks: Mapping[str, Temporal], tracks: Tracks, learning: Tracks, most: int = 400
) -> dict[str, tuple[float, float, float]]:
    """How often frames are right by each filter and network, the mean over tracks with the ends of its 95 %.

    networks: by name; of several that are called alike but for what follows a "#" the mean is taken track by track.
    tracks: those that judge, the first `most`. learning: those by which the seconds of filters are chosen. What is
    called "… - exponential" is the difference from that filter, track by track.
    """
    (times, alone, target, inputs), (learn_times, learn_alone, learn_target, _) = (
        _stacked(each, next(iter(networks.values())), most) for each in (tracks, learning)
    )
    shares: dict[str, list[np.ndarray]] = {}
    for name, (smooth, _) in FILTERS.items():
        seconds = choose_seconds(name, learn_times, learn_alone, learn_target)
        shares[f"{name}, {seconds:g} s" if seconds else name] = [right(smooth(times, alone, seconds), target)]
    usual = next(values[0] for name, values in shares.items() if name.startswith("exponential"))
    shares["exponential, as mien read has it, 0.5 s"] = [right(FILTERS["exponential"][0](times, alone, 0.5), target)]
    for name, network in networks.items():
        with torch.no_grad():
            logits = torch.cat([network(part) for part in torch.from_numpy(inputs).split(32)])
        shares.setdefault(name.partition("#")[0], []).append(right(logits.softmax(-1).numpy(), target))
    means = {name: np.mean(values, axis=0) for name, values in shares.items()}
    found = {name: interval(values) for name, values in means.items()}
    return found | {f"{name} - exponential": interval(values - usual) for name, values in means.items()}


def _stacked(tracks: Tracks, network: Temporal, most: int) -> tuple[np.ndarray, ...]:
    """Times (N, T), the trunk's own probabilities (N, T, C), targets (N, T) and tracks (N, T, 1 + D)."""
    some = [tracks[i] for i in range(min(most, len(tracks)))]
    inputs = np.stack([x for x, _ in some])
    with torch.no_grad():
        alone = (network.head(torch.from_numpy(inputs[..., 1:])) / network.temperature).softmax(-1).numpy()
    return inputs[..., 0], alone, np.stack([targets["expression"] for _, targets in some]), inputs


def train_temporal(
    *,
    model: str,
    data: Mapping[str, Any],
    splits: Sequence[str] = ("train", "validation"),
    sampled: Mapping[str, Mapping[str, int]] | None = None,
    made: Mapping[str, Any] | None = None,
    windows: Mapping[str, Any] | None = None,
    network: Mapping[str, Any] | None = None,
    steps: int = 400,
    batch_size: int = 16,
    lr: float = 1e-3,
    seed: int = 0,
    cache: str = "",
    out: str = "runs/temporal",
    progress: bool = False,
) -> dict[str, tuple[float, float, float]]:
    """Train a temporal model as a recipe says, and write OUT/temporal.safetensors; returns what `judge` found.

    model: a name or file, whose weights rest. data: the block of a data set. splits: which learn, and which judge.
    sampled: by split, arguments of `sample`, where not all faces are to be read.
    made: options of `FaceSequences` (length, count), of sets of pictures. windows: options of
        `mien.data.windows.windows` (length, stride, rate), of sets of videos. One of the two.
    network: init_args of `mien.networks.Temporal`. steps, batch_size, lr, seed: of training.
    cache: a folder for features, which are then computed once.

    Raises MienError for what does not fit, and what cannot be read.
    """
    if (made is None) == (windows is None):
        raise MienError("a recipe of a temporal model has either made (of pictures) or windows (of videos)")
    _check("made", made or {}, ("length", "count", "neutral"))
    _check("windows", windows or {}, ("length", "stride", "rate", "gap"))
    for split, arguments in (sampled or {}).items():
        _check(f"sampled.{split}", arguments, ("per_class", "thin"))
    path, opened = find_checkpoint(model), build_data(data)
    labels = outputs_of(read_header(path))[0].labels
    if windows is not None and "length" not in windows:
        windows = {**windows, "length": 64}
    if tuple(opened.labels) != labels:
        raise MienError(f"{opened}: labels {', '.join(opened.labels)}, and the model's are {', '.join(labels)}")
    others = opened.outputs[1:] if windows is not None else ()
    sets = []
    for split, of_seed in zip(splits, (seed, JUDGING), strict=True):
        rows = sample(opened.rows(split), **(sampled or {}).get(split, {}))
        kept = Path(cache, f"{split}.npz") if cache else None
        features = keep_features(path, rows, kept, spoilt=made is not None, progress=progress)
        if made is not None:
            sets.append(made_tracks(features, np.array([row.label for row in rows]), seed=of_seed, **made))
        else:
            sets.append(window_tracks(features, rows, opened, **windows))
    made_network, block = start(path, network or {}, others)
    learn(made_network, sets[0], others, steps=steps, batch_size=batch_size, lr=lr, seed=seed, progress=progress)
    found = judge({"temporal": made_network}, sets[1], sets[0])
    header = with_outputs({**read_header(path), "model": block}, [outputs_of(read_header(path))[0], *others])
    header.pop("precision", None)
    metrics = {name: [round(value, 5) for value in values] for name, values in found.items()}
    header["training"] = {"data": f"{opened}, {splits[0]}", "model": model, "seed": seed, "metrics": metrics}
    save_network(Path(out, "temporal.safetensors"), made_network, header)
    return found


def sample(rows: Sequence[Row], per_class: int = 0, thin: int = 1) -> list[Row]:
    """By chance, the same ones every time: at most `per_class` of each class (0: all), of them every `thin`-th."""
    counts: dict[int, int] = {}
    chosen = []
    for i in np.random.default_rng(0).permutation(len(rows)) if per_class else range(len(rows)):
        label = rows[i].label
        if not per_class or counts.get(label, 0) < per_class:
            counts[label] = counts.get(label, 0) + 1
            chosen.append(rows[i])
    return chosen[::thin]


def _check(name: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    if unknown := [option for option in given if option not in known]:
        raise MienError(f"{name}: no option {unknown[0]!r}, only {', '.join(known)}")


def build_data(block: Mapping[str, Any]) -> DataSet:
    """The data set that a recipe's block names."""
    from mien.data import open_dataset

    arguments = dict(block.get("init_args", {}))
    return open_dataset(arguments.pop("path"), block["class_path"], **arguments)
