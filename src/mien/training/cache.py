"""What resting trunks say of training faces, kept in a file: heads learn from it, and no trunk runs twice."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from mien.data import DataSet
from mien.errors import MienError
from mien.files import whole
from mien.networks import Network, Normalize
from mien.networks.deploy import to_float
from mien.training.resume import facts_of
from mien.training.teachers import Teachers

VIEWS = ("as is", "mirrored")
"""How a face can be shown to the trunks."""

LIMIT = 10.0
"""Gigabytes (1e9 bytes) that the caches of a run's splits take at most."""

_CHUNK = 64  # faces that go through the trunks at a time
_MARK = 16  # chunks between two notes of how far it is


class Cache:
    """The answers of a network's front, of every face of a split and every view, as fp16 in a memory-mapped file.

    folder: of `SPLIT.npy`, (faces, views, width) float16, and its header `SPLIT.json`.
    network: whose `front` is kept; its parts in `front_parts` must be at rest.
    data: the set. preprocess: how its faces are shown.
    views: of training faces, some of VIEWS; of faces that judge only the first is kept.
    teachers: whose probabilities of each view are kept as well, or None.
    limit: gigabytes that may be written.

    A header holds the number of `faces`, of which `done` are written, `views`, the `shapes` of what `front` gives, in
    order and without the batch, and digests: of the `trunk`, the `data` and the `teachers`, with the `preprocessing`.
    A cache that was cut while it was made goes on where it was.

    Raises MienError for a cache that was made by another trunk, of other data, preprocessing or views or by other
    teachers; for one that would be too large; and for a network that has no front.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        network: Network,
        data: DataSet,
        preprocess: dict[str, Any],
        views: Sequence[str] = VIEWS,
        teachers: Teachers | None = None,
        limit: float = LIMIT,
    ):
        if not views or len(set(views)) < len(views) or not set(views) <= set(VIEWS):
            raise MienError(f"--cache_views: one or both of {', '.join(VIEWS)}, each once, not {', '.join(views)}")
        if not network.front_parts:
            raise MienError("--cache: the network does not say what its trunks are")
        self.folder, self.network, self.data, self.preprocess = Path(folder), network, data, preprocess
        self.views, self.teachers, self.limit = list(views), teachers, limit
        self.normalize = Normalize(preprocess)
        size = preprocess["input_size"]
        with torch.no_grad():
            try:
                kept = self._kept(torch.zeros(1, 3, size, size))
            except ValueError as error:
                raise MienError(f"--cache: {error}") from error
        self.shapes = [list(each.shape[1:]) for each in kept]

    @property
    def width(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def header(self, split: str, views: Sequence[str], faces: int) -> dict[str, Any]:
        """What the header must say."""
        trunk = hashlib.blake2b(digest_size=16)
        for part in self.network.front_parts:
            for name, tensor in self.network.get_submodule(part).state_dict().items():
                if not name.endswith("num_batches_tracked"):
                    values = tensor.numpy(force=True) + 0  # an average of weights may turn -0 into 0
                    trunk.update(f"{part}.{name} {tuple(tensor.shape)}".encode() + values.tobytes())
        facts = facts_of(self.data, (split,), self.preprocess)
        taught = [] if self.teachers is None else [self.teachers.digest]
        made_of = {"trunk": trunk.hexdigest(), "data": facts["data"], "preprocessing": facts["preprocessing"]}
        return {**made_of, "teachers": taught, "views": list(views), "shapes": self.shapes, "faces": faces}

    def make(
        self,
        dataset: Dataset,
        split: str,
        views: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Write the cache of a split, or what is missing of it; dataset: its faces, uint8 (S, S, 3) the first.

        The trunks run on `device`.
        """
        views = views or self.views
        needed = self.header(split, views, len(dataset))
        self._check_size(len(dataset) * len(views))
        place = self.folder / f"{split}.npy"
        done = self._checked(split, needed)
        if done == len(dataset):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        shape = (len(dataset), len(views), self.width)
        mode = "r+" if done and place.exists() else "w+"
        kept = np.lib.format.open_memmap(place, mode, np.float16, None if mode == "r+" else shape)
        done = done if mode == "r+" else 0
        self.network.to(device)
        with tqdm(total=len(dataset), initial=done, desc=f"cache, {split}", unit="face", mininterval=1) as bar:
            for number, start in enumerate(range(done, len(dataset), _CHUNK), start=1):
                stop = min(start + _CHUNK, len(dataset))
                faces = torch.stack([dataset[i][0] for i in range(start, stop)])
                kept[start:stop] = self._read(faces.to(device), views).numpy(force=True)
                bar.update(stop - start)
                if number % _MARK == 0 or stop == len(dataset):
                    kept.flush()
                    with whole(self.folder / f"{split}.json") as file:
                        file.write(json.dumps({**needed, "done": stop}, indent=2).encode())

    def open(
        self, dataset: Dataset, split: str, views: Sequence[str] | None = None, rows: np.ndarray | None = None
    ) -> "Cached":
        """The cached faces of a split; rows: which of them `dataset` has, if not all."""
        views = views or self.views
        count = len(dataset) if rows is None else len(self.data.rows(split))
        if self._checked(split, self.header(split, views, count)) < count:
            raise MienError(f"{self.folder}: the cache of {split!r} is not finished: run once more")
        return Cached(np.load(self.folder / f"{split}.npy", mmap_mode="r"), dataset, rows)

    def cut(self, features: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Features (B, width) -> what stands for images to the network, in fp32, and the teachers' (B, C) or None."""
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        parts = features.float().split(sizes, 1)
        parts = [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        probs = None if self.teachers is None else parts.pop()
        maps = [each.contiguous(memory_format=torch.channels_last) if each.ndim == 4 else each for each in parts]
        return tuple(maps), probs

    def _checked(self, split: str, needed: dict[str, Any]) -> int:
        """How many faces are there of such a cache."""
        file = self.folder / f"{split}.json"
        if not file.exists():
            return 0
        try:
            found = json.loads(file.read_text())
            done = int(found["done"])
        except (ValueError, KeyError, TypeError) as error:
            raise MienError(f"{file}: damaged: remove {self.folder}") from error
        for name, value in needed.items():
            if found.get(name) != value:
                other = "another trunk" if name == "trunk" else f"other {name}"
                raise MienError(
                    f"{self.folder}: a cache of {other}, {split}: remove it, or give another --cache_folder"
                )
        return done

    def _check_size(self, faces: int) -> None:
        size = faces * self.width * 2 / 1e9
        if size > self.limit:
            raise MienError(
                f"--cache would take {size:.1f} GB, and {self.limit:g} are allowed: let adapters behind the trunks "
                "rest as well, keep fewer views, or raise --cache_limit"
            )

    @torch.no_grad()
    def _read(self, faces: Tensor, views: Sequence[str]) -> Tensor:
        """uint8 (B, S, S, 3) -> (B, views, width) float16."""
        images = self.normalize.to(faces.device)(to_float(faces)).contiguous(memory_format=torch.channels_last)
        shown = [images.flip(3) if view == "mirrored" else images for view in views]
        kept = torch.stack([torch.cat([each.flatten(1) for each in self._kept(view)], 1) for view in shown], 1)
        if kept.abs().max() > torch.finfo(torch.float16).max:
            raise MienError("--cache: the trunk gives numbers that fp16 cannot hold")
        return kept.half()

    def _kept(self, images: Tensor) -> tuple[Tensor, ...]:
        """In eval mode, whatever the network's was."""
        training = self.network.training
        self.network.eval()
        kept = self.network.front(images)
        self.network.train(training)
        return kept if self.teachers is None else (*kept, self.teachers(images))


class Cached(Dataset):
    """Features float16 (width,) in place of faces, beside what else `mien.training.crops.Crops` gives.

    The key of an item is its number, or that and a chance in [0, 1), which draws one of the views.
    """

    def __init__(self, kept: np.ndarray, crops: Any, rows: np.ndarray | None = None):
        self.kept, self.crops, self.rows, self.target = kept, crops, crops.rows, crops.target
        self.numbers = np.arange(len(crops)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.crops)

    def view(self, chance: float) -> int:
        return int(chance * self.kept.shape[1])

    def truth(self, i: int) -> tuple[Any, ...]:
        return self.crops.truth(i)

    def __getitem__(self, key: int | tuple[int, float]) -> tuple[Any, ...]:
        i, view = (key[0], self.view(key[1])) if isinstance(key, tuple) else (key, 0)
        return torch.from_numpy(np.array(self.kept[self.numbers[i], view])), *self.crops.truth(i)


def check_cached(network: Network, made: Any) -> None:
    """Raise MienError for options of a run, `made`, that a cache cannot have: what changes faces has no part in a run
    that never looks at one."""
    moving = [
        part for part in network.front_parts if any(p.requires_grad for p in network.get_submodule(part).parameters())
    ]
    if moving:
        raise MienError(f"--cache: {' and '.join(moving)} would be trained: --rest {' '.join(network.front_parts)}")
    refused = {
        "--augment null": made.augment is not None,
        "--faces.aligned 0": made.faces.aligned > 0,
        "no --faces.train_size": made.faces.train_size is not None,
        "no --task.cutmix": made.task.cutmix > 0,
        "no --task.flip_consistency": made.task.flip_consistency > 0,
    }
    if wanted := [option for option, asked in refused.items() if asked]:
        raise MienError(f"--cache: faces are kept as they are, and mirrored: it needs {', '.join(wanted)}")
