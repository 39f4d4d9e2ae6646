"""A model taught other classes: from a folder of pictures to a checkpoint, as far as their number allows."""

import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from mien.checkpoint import read_header
from mien.classifier import DEFAULT_MODEL, Classifier, find_checkpoint
from mien.data import HeldOut, Parquet, open_dataset
from mien.data.heldout import HELD_OUT
from mien.data.prepare import Options, prepare
from mien.errors import MienError
from mien.evaluation.measure import measure
from mien.evaluation.report import Report
from mien.networks import build
from mien.networks.checkpoint import write_header
from mien.networks.trunk import Trunk
from mien.training.resume import goes_on
from mien.training.run import train


@dataclass(frozen=True, slots=True)
class FinetunePlan:
    """How so many faces are learned: values of a recipe.

    batch_size: faces. epochs: at most. validate: every so many of them the held out are looked at. patience: it ends
    after so many looks without a better one. lr: of the head; trunk: its factor for the trunks. frozen: beginnings of
    the names of parameters that stay. still_norms: whether batch norms do. ema: as in a recipe.
    """

    batch_size: int
    epochs: int
    validate: int
    patience: int
    lr: float
    trunk: float
    frozen: tuple[str, ...]
    still_norms: bool
    ema: float


@dataclass(frozen=True, slots=True)
class Finetuned:
    """What `finetune` made. `str` of it is what a person should know.

    path: the checkpoint. split: which faces it was judged by. report: on them. interval: 95 % of the accuracy (Wilson),
    which is right for few faces, too. commonest: the share of the commonest class among them. learned, held: faces.
    """

    path: Path
    split: str
    report: Report
    interval: tuple[float, float]
    commonest: float
    learned: int

    def __str__(self) -> str:
        report = self.report
        right = round(report.accuracy * report.count)
        low, high = self.interval
        recalls = ", ".join(
            f"{label} {round((recall or 0) * report.support[label])} of {report.support[label]}"
            for label, recall in report.recall.items()
        )
        return (
            f"accuracy {report.accuracy:.3f}: {right:,} of {report.count:,} faces of {self.split!r} (95 %: "
            f"{low:.3f} to {high:.3f}; always the commonest class: {self.commonest:.3f})\n"
            f"right by class: {recalls}\n"
            f"next: {self.advice()}"
        )

    def advice(self) -> str:
        """The one thing to do next."""
        reading = f"mien read PHOTOS --model {self.path}"
        recalls = [(recall, self.report.support[label], label) for label, recall in self.report.recall.items()]
        worst = min(each for each in recalls if each[0] is not None)[2]
        if self.interval[0] <= self.commonest:
            return f"more pictures, most of all of {worst!r}: this may be luck, always saying one class does as well"
        if self.report.count < 200:
            return f"{reading}; and more pictures, most of all of {worst!r}, since so few say little of the accuracy"
        return f"mien calibrate {self.path} --data THE SAME, so that its probabilities can be used; then {reading}"


def finetune(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str = DEFAULT_MODEL,
    format: str | None = None,
    labels: Sequence[str] | str | None = None,
    align: Literal["detect", "as-is"] = "detect",
    held_out: float = 0.2,
    epochs: int | None = None,
    seed: int = 0,
    fresh: bool = False,
    trust: bool = False,
    progress: bool = False,
) -> Finetuned:
    """Teach a model the classes of labelled pictures: what `mien finetune` does.

    - folder: the pictures, in a folder for each class, or as `mien.data.open_dataset` opens them in `format`, `labels`.
    - out: the folder of the run. best.safetensors in it is the model, faces/ the faces that were cut out, held_out.csv
      the list of those held out, recipe.yaml what `mien train` would do.
    - model: what is started from, as `mien.find_checkpoint` takes it.
    - align: find the largest face in each picture and turn it upright, or take the pictures as they are, as crops.
    - held_out: the share of the pictures that is held out where the set has no validation split, 0 to 1 (default 0.2).
    - epochs: by default as suits the number of faces.
    - seed: of all that is drawn. fresh: train anew, whatever run `out` holds. trust: as for `mien.load_network`.
    - progress: show bars on stderr.

    A run that was cut goes on where it was. Raises MienError for data that are no use: of one class, without faces, or
    in `out`; and as `mien.training.run.train` does.
    """
    out, source = Path(out), find_checkpoint(model)
    header = read_header(source)
    goes_on(out, fresh)
    if out.resolve() == Path(folder).resolve() or Path(folder).resolve() in out.resolve().parents:
        raise MienError(f"{out} is in {folder}, which is to be read: give another --out")
    data = open_dataset(folder, format, **({} if labels is None else {"labels": labels}))
    if len(data.labels) < 2:
        raise MienError(f"{folder}: of one class alone, {data.labels[0]!r}, nothing is to be learned")
    whole = data if "validation" in data.splits else HeldOut(data, held_out, seed)
    notes = {"align": align, **({} if data.first is None else {"numbered_from": str(data.first)})}
    if isinstance(whole, HeldOut):
        notes["held_out"] = " of ".join(map(str, whole.counts()))
    for note in data.notes:
        print(f"{data}: {note}", file=sys.stderr)

    faces = _cut_out(whole, folder, out, header["preprocess"], align, fresh, progress)
    counts = faces.class_counts("train")
    if missing := [label for label, count in zip(faces.labels, counts, strict=True) if not count]:
        raise MienError(f"{folder}: not one face to learn {' and '.join(map(repr, missing))} from")
    if "validation" not in faces.splits:
        raise MienError(f"{folder}: too few faces to hold some out: two of a class are the least")
    recipe = _recipe(faces, counts, header, source, out, notes, epochs, seed, trust)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "finetune.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    train([str(file), *(["--fresh"] if fresh else [])])
    if isinstance(whole, HeldOut):
        whole.write_list(out / HELD_OUT)
    if align == "detect":  # what the run read as it is was aligned before
        made = read_header(best := out / "best.safetensors")
        write_header(best, made | {"preprocess": made["preprocess"] | {"trained_on": ["arcface112"]}})
    return _judge(out / "best.safetensors", faces, int(counts.sum()), trust)


def _cut_out(
    data: Any,
    folder: str | os.PathLike[str],
    out: Path,
    preprocess: Mapping[str, Any],
    align: Literal["detect", "as-is"],
    fresh: bool,
    progress: bool,
) -> Parquet:
    """The faces of the set in `out`/faces, as they are when the model reads them; found once."""
    target = out / "faces"
    if fresh and (target / "manifest.json").exists():
        shutil.rmtree(target)
    size = int(preprocess["resize"][0]["size"])
    options = Options(align=align, size=size)
    prepared = prepare(data, target, options, root=folder, progress=progress)
    for error in prepared.left_out:
        print(f"left out: {error}", file=sys.stderr)
    missed, total = prepared.not_found, prepared.rows.total()
    if missed:
        print(f"no face found in {missed:,} of {total:,} pictures, which are left out", file=sys.stderr)
    if not total or 2 * missed > total:
        raise MienError(
            f"{folder}: a face was found in {total - missed:,} of {total:,} pictures: if they are face crops, "
            "--align as-is reads them as they are"
        )
    return Parquet(str(target), drop=["note"] if align == "detect" else None)


def plan(count: int, trunks: Mapping[str, Trunk]) -> FinetunePlan:
    """How `count` faces are learned by a network with these trunks, by name.

    The faces shown grow with the power 2/3 of their number, from 1,500 for 50 to 150,000 for 50,000;
    the fewer there are the more of the trunk stays as it is, since what few faces say of its many weights is luck.
    """
    shown = 1500 * (max(count, 50) / 50) ** (2 / 3)
    epochs = max(3, round(shown / max(count, 1)))
    kept = 0.7 if count < 1000 else 0.4 if count < 10_000 else 0.2
    frozen = []
    for name, trunk in trunks.items():
        layers = _layers(trunk)
        whole = "landmark" in name and count < 10_000
        frozen += [f"{name}.{layer}." for layer in layers[: len(layers) if whole else round(kept * len(layers))]]
    few = count < 1000
    return FinetunePlan(
        batch_size=16 if few else 32 if count < 10_000 else 64,
        epochs=epochs,
        validate=max(1, epochs // 15),
        patience=4,
        lr=2e-3 if few else 1e-3,
        trunk=0.1 if few else 0.3,
        frozen=tuple(frozen),
        still_norms=count < 5000,
        ema=0.0 if few else 0.99,
    )


def _layers(trunk: Trunk) -> list[str]:
    """The names of its layers, from the image on; lists of layers are taken apart."""
    names = []
    for name, part in trunk.named_children():
        inner = [f"{name}.{i}" for i in range(len(part))] if type(part).__name__ in ("ModuleList", "Sequential") else []
        names += inner or [name]
    return [name for name in names if any(True for _ in trunk.get_submodule(name).parameters())]


def _recipe(
    faces: Parquet,
    counts: np.ndarray,
    header: Mapping[str, Any],
    source: Path,
    out: Path,
    notes: Mapping[str, str],
    epochs: int | None,
    seed: int,
    trust: bool,
) -> dict[str, Any]:
    """What `mien train` runs."""
    model = {
        "class_path": header["model"]["class_path"],
        "init_args": {**header["model"].get("init_args", {}), "num_classes": len(faces.labels)},
    }
    network = build(model, trust=trust)
    trunks = {name: part for name, part in network.named_modules() if isinstance(part, Trunk)}
    how = plan(int(counts.sum()), trunks)
    licence = header.get("training", {}).get("licence", "")
    return {
        "name": out.name or "finetuned",
        "out": str(out),
        "seed": seed,
        "licence": licence,
        "notes": {**notes, "started_from": source.parent.name if source.name == "model.safetensors" else source.name},
        "model": model,
        "init": {"": str(source)},
        "freeze": list(how.frozen),
        "still_norms": how.still_norms,
        "ema": how.ema,
        "monitor": "val_loss",
        "patience": how.patience,
        "data": {
            "class_path": "mien.data.Parquet",
            "init_args": {"path": str(out / "faces"), **({"drop": ["note"]} if notes["align"] == "detect" else {})},
        },
        "faces": {"batch_size": how.batch_size, "aligned": 0.0, "preprocess": dict(header["preprocess"])},
        "augment": {
            "class_path": "mien.training.augment.Augment",
            "init_args": {"degrees": 10.0, "translate": 0.05, "scale": [0.9, 1.12], "noise_p": 0.0, "erase_p": 0.1},
        },
        "task": {
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": how.lr, "weight_decay": 0.05}},
            "lr_scale": {f"{name}.": how.trunk for name in trunks},
            "warmup": 0.05,
            "class_weights": "sqrt" if counts.max() > 1.5 * counts.min() else "none",
        },
        "trainer": {
            "max_epochs": epochs or how.epochs,
            "check_val_every_n_epoch": min(how.validate, epochs or how.epochs),
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 10,
            "num_sanity_val_steps": 0,
        },
    }


def _judge(path: Path, faces: Parquet, learned: int, trust: bool) -> Finetuned:
    """The checkpoint on a split that chose nothing, where there is one: "test", else "validation"."""
    split = "test" if "test" in faces.splits else "validation"
    report = measure(Classifier.from_pretrained(path, trust=trust), faces, split).report
    commonest = max(report.support.values()) / report.count
    right = round(report.accuracy * report.count)
    return Finetuned(path, split, report, wilson(right, report.count), commonest, learned)


def wilson(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of which `right` of `count` were seen.

    Paper: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 1927.
    """
    p = right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return middle - half if right else 0.0, middle + half if right < count else 1.0
