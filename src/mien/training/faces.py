"""Labelled faces in batches: uint8 crops and targets."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from mien.data import DataSet, Row
from mien.errors import MienError
from mien.networks import Normalize
from mien.networks.deploy import to_float
from mien.training.cache import Cache
from mien.training.crops import GREY48, LABEL_SHARES, Crops
from mien.training.in_memory import InMemory
from mien.training.landmarks import find_landmarks
from mien.training.teachers import Teachers


class Order(Sampler[tuple[int, float]]):
    """The rows of an epoch, each with a chance in [0, 1), as the seed and the number of the epoch decide.

    weights: (n,) or None; with them n rows are drawn with replacement, each with probability proportional to its own,
    without them every row comes once, or as often as `repeats` (n,) says. place: the epoch, and how many of its own
    rows of it a process that was resumed has seen already. share: the number of this process, and of all; each has
    every so-many-th row, so that their batches together are one process's of that size. The rest, which does not go
    round, is left out of the epoch.
    """

    def __init__(
        self,
        count: int,
        weights: np.ndarray | None,
        seed: int,
        place: Callable[[], tuple[int, int]],
        repeats: np.ndarray | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        self.rows = np.arange(count) if repeats is None else np.repeat(np.arange(count), repeats)
        self.count, self.weights, self.seed, self.place, self.share = len(self.rows), weights, seed, place, share

    def __len__(self) -> int:
        return self.count // self.share[1]

    def __iter__(self) -> Iterator[tuple[int, float]]:
        epoch, seen = self.place()
        draw = np.random.default_rng((self.seed, epoch))
        if self.weights is None:
            order = self.rows[draw.permutation(self.count)]
        else:
            order = draw.choice(self.count, self.count, p=self.weights / self.weights.sum())
        chances = draw.random(self.count)
        rank, processes = self.share
        own = np.arange(rank, len(self) * processes, processes)[seen:]
        yield from zip(order[own].tolist(), chances[own].tolist(), strict=True)


def count_repeats(labels: np.ndarray, oversample: Literal["sqrt", "reciprocal"]) -> np.ndarray:
    """How often each row comes in an epoch, by the share f of its label (n,) among all rows; (n,) whole numbers.

    "sqrt": `ceil(max(1, sqrt(0.15 / f)))`; "reciprocal": `ceil(max f / f)`. A row without a label (-1) comes once.

    Reference: youqingxiaozhua/APViT, 9efaf97 (ClassBalancedDataset).
    """
    values, group, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if oversample == "sqrt":
        times = np.ceil(np.sqrt(0.15 / (counts / len(labels))).clip(1)).astype(int)
    else:
        times = -(-counts[values >= 0].max(initial=1) // counts)
    return np.where(values < 0, 1, times)[group]


def weigh_classes(shares: np.ndarray, power: float) -> np.ndarray:
    """Weights ~ `count(class) ** -power` of classes (C,), whose mean over the rows is 1; 0 for a class without rows.

    shares: (n, C), what is learned of each row. With a power of 1 it is `n / (C · count)`.
    """
    counts = shares.sum(0, dtype=np.float64)
    weights = np.where(counts > 0, counts.clip(1e-12) ** -power, 0.0)
    return weights * counts.sum() / max((weights * counts).sum(), 1e-12)


class Batches(DataLoader):
    """A loader that asks for its order with its first batch: only then does a resumed run know its place."""

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()


class FaceData(LightningDataModule):
    """Training and validation batches of a data set; rows without an expression are not validated.

    data: the set; `train_split` and `validation_split` name its splits.
    preprocess: how a picture becomes a network's input, kept in every checkpoint.
    aligned: the share of training faces that are aligned to landmarks, where the detector finds some; the others are
        shown as they are, and validation faces always are. The landmarks are found once and kept in `landmarks_cache`,
        by picture: any data can share the file.
    targets: the votes' distribution; one class, the label; or the mean of the two.
    balance: 0 draws every row once an epoch; above 0 rows are drawn with replacement, each with probability
        proportional to `count(class) ** -balance`.
    oversample: rows of rare classes come several times an epoch, each as often as `count_repeats` says.
    train_size: the side of training faces where the augmentation crops them to the network's input; by default they
        come in the size of the input. Validation faces always do.
    subset: train on the first rows of a seeded shuffle only, for trying things.
    in_memory: crop every face once and keep all on the device that learns, instead of reading them in every epoch.
    """

    def __init__(
        self,
        data: DataSet,
        preprocess: dict[str, Any] | None = None,
        batch_size: int = 128,
        aligned: float = 0.5,
        landmarks_cache: str | None = None,
        targets: Literal["votes", "label", "both"] = "votes",
        balance: float = 0.0,
        oversample: Literal["none", "sqrt", "reciprocal"] = "none",
        train_size: int | None = None,
        subset: int | None = None,
        in_memory: bool = False,
        num_workers: int = 0,
        train_split: str = "train",
        validation_split: str = "validation",
        seed: int = 0,
    ):
        super().__init__()
        if balance and oversample != "none":
            raise MienError("--faces: rows are either drawn by balance or repeated by oversample, not both")
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.preprocess = dict(preprocess or GREY48)
        aligned = aligned if self.preprocess.get("align") == "arcface112" else 0.0
        self.preprocess["trained_on"] = ["as is"] * (aligned < 1) + ["arcface112"] * (aligned > 0)
        self.aligned, self.landmarks_cache, self.label_share = aligned, landmarks_cache, LABEL_SHARES[targets]
        self.balance, self.oversample, self.train_size = balance, oversample, train_size
        self.subset, self.in_memory = subset, in_memory
        self.num_workers = 0 if in_memory else num_workers
        self.train_split, self.validation_split = train_split, validation_split
        self.teachers, self.teach = None, 0.0
        self.cache: Cache | None = None  # where there is one, its features are given in place of faces

    def teach_once(self, teachers: Teachers | None, share: float) -> None:
        """Mix targets with the teachers' probabilities for every face as it is; share: their weight, in [0, 1].

        Raises MienError where there are none, or where faces are not kept in memory.
        """
        if teachers is None or not self.in_memory or self.cache is not None:
            raise MienError("--teachers_once: it needs --teachers, --faces.in_memory true and no --cache")
        self.teachers, self.teach = teachers, share

    def prepare_data(self) -> None:
        """In one process alone: what the others then find in the caches."""
        if self.aligned and self.landmarks_cache is not None:
            find_landmarks(self.data.rows(self.train_split), self.landmarks_cache)
        if self.cache is not None:
            device = self._device
            self.cache.make(Crops(self.data.rows(self.train_split), self.preprocess), self.train_split, None, device)
            first = self.cache.views[:1]
            self.cache.make(Crops(self._judged(), self.preprocess), self.validation_split, first, device)

    def setup(self, stage: str | None = None) -> None:
        rows = list(self.data.rows(self.train_split))
        landmarks, keep = find_landmarks(rows, self.landmarks_cache) if self.aligned else None, None
        if self.subset is not None:
            keep = np.random.default_rng(0).permutation(len(rows))[: self.subset]
            rows = [rows[i] for i in keep]
            landmarks = None if landmarks is None else landmarks[keep]
        shown = self.preprocess
        if self.train_size is not None:
            shown = shown | {"resize": [{"size": self.train_size, "interpolation": "auto"}]}
        further = self.data.targets if len(self.data.outputs) > 1 else None
        self.train_faces = Crops(rows, shown, landmarks, self.aligned, self.label_share, further)
        self.validation_faces = Crops(self._judged(), self.preprocess, label_share=self.label_share)
        if self.cache is not None:
            first = self.cache.views[:1]
            self.train_faces = self.cache.open(self.train_faces, self.train_split, rows=keep)
            self.validation_faces = self.cache.open(self.validation_faces, self.validation_split, first)
        if self.in_memory:
            self.train_faces = InMemory(self.train_faces, self._device)
            self.validation_faces = InMemory(self.validation_faces, self._device)
            if self.teachers is not None:
                with nullcontext() if self.trainer is None else self.trainer.precision_plugin.forward_context():
                    self.train_faces.learn_from(self.teachers, self.preprocess, self.teach)

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _judged(self) -> list[Row]:
        return [row for row in self.data.rows(self.validation_split) if row.label >= 0]

    def examples(self, count: int) -> Tensor:
        """Training faces from all over the split, unchanged, normalised (at most `count`, 3, S, S)."""
        rows = self.data.rows(self.train_split)
        crops = Crops(rows[:: max(1, len(rows) // count)][:count], self.preprocess)
        return Normalize(self.preprocess)(to_float(torch.stack([crops[i][0] for i in range(len(crops))])))

    def train_dataloader(self) -> DataLoader:
        weights = repeats = None
        labels = np.array([row.label for row in self.train_faces.rows])
        if self.balance:
            _, group, counts = np.unique(labels, return_inverse=True, return_counts=True)
            weights = (counts ** -float(self.balance))[group]
        if self.oversample != "none":
            repeats = count_repeats(labels, self.oversample)
        order = Order(len(labels), weights, self.seed, self._place, repeats, self._share(len(labels)))
        return Batches(
            self.train_faces,
            self.batch_size,
            sampler=order,
            drop_last=len(order) > self.batch_size,  # an attention set of full size
            num_workers=self.num_workers,
            collate_fn=self._collate,
        )

    @property
    def _collate(self) -> Callable[[Any], Any] | None:
        """What is kept in memory comes in whole batches."""
        return (lambda batch: batch) if isinstance(self.train_faces, InMemory) else None

    def _place(self) -> tuple[int, int]:
        """The epoch, and how many of its rows were seen."""
        if self.trainer is None:
            return 0, 0
        epoch, step = divmod(self.trainer.global_step, self.count_steps())
        return epoch, step * self.trainer.accumulate_grad_batches * self.batch_size

    def count_steps(self) -> int:
        """The steps of an epoch, once training has begun."""
        return math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)

    def _share(self, rows: int) -> tuple[int, int]:
        """The number of this process, and of all that share the rows."""
        rank, processes = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        if rows < processes:
            raise MienError(f"{self.data}: {rows} faces are too few for {processes} processes")
        return rank, processes

    def class_weights(self, power: float) -> np.ndarray:
        """(C,), of the training rows as they are, neither drawn by balance nor repeated; see `weigh_classes`."""
        return weigh_classes(self._targets(), power)

    def class_shares(self) -> np.ndarray:
        """(C,), what part of all that is learned is of each class, of the training rows as they are."""
        counts = self._targets().sum(0, dtype=np.float64)
        return counts / max(counts.sum(), 1e-12)

    def zeros_to_ones(self, name: str) -> np.ndarray:
        """How many training rows say no for one that says yes, of each label of a binary output, (U,), 0.01 to 100."""
        said = np.stack([self.data.targets(row)[name] for row in self.train_faces.rows])
        return ((said == 0).sum(0) / np.maximum((said == 1).sum(0), 1)).clip(0.01, 100)

    def _targets(self) -> np.ndarray:
        return np.stack([self.train_faces.target(row) for row in self.train_faces.rows])

    def val_dataloader(self) -> DataLoader:
        rank, processes = self._share(len(self.validation_faces))
        own = range(rank, len(self.validation_faces), processes)
        workers = {"num_workers": self.num_workers, "collate_fn": self._collate}
        return DataLoader(self.validation_faces, self.batch_size, sampler=own, **workers)
