"""All faces of a split, or what resting trunks say of them, on the device that learns."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from mien.networks import Normalize
from mien.networks.deploy import to_float
from mien.training.cache import Cached
from mien.training.crops import Crops
from mien.training.teachers import Teachers

_CHUNK = 32  # faces that go through the teachers at a time: on a CPU a face takes 20 to 37 % longer among 256


class InMemory(Dataset):
    """The items of `Crops` or `Cached`, a batch at a time, from faces or features that all lie on `device`.

    Where all are grey they have one channel: 12.5 kB for each of 112 pixels, and as much for its aligned crop.
    """

    def __init__(self, items: Crops | Cached, device: torch.device):
        self.rows, self.target, self.view = items.rows, items.target, items.view
        self.shown = self._all(items).to(device)  # (n, views, ...)
        target, label, *further = default_collate([items.truth(i) for i in range(len(items))])
        views = self.shown.shape[1]
        self.targets = target[:, None].repeat(1, views, 1).to(device)  # (n, views, C)
        self.labels = label.to(device)
        self.further = [{name: each.to(device) for name, each in part.items()} for part in further]

    @staticmethod
    def _all(items: Crops | Cached) -> Tensor:
        if isinstance(items, Cached):
            return torch.from_numpy(items.kept[items.numbers])
        chances = [1.0, 0.0] if items.view(0.0) else [1.0]

        def shown(i: int) -> Tensor:
            return torch.stack([items[i, chance][0] for chance in chances])

        with ThreadPoolExecutor() as pool:
            faces = torch.stack(list(tqdm(pool.map(shown, range(len(items))), "faces", len(items), unit="face")))
        return faces[..., :1].contiguous() if torch.equal(faces[..., :1].expand_as(faces), faces) else faces

    @torch.no_grad()
    def learn_from(self, teachers: Teachers, preprocess: Mapping[str, Any], share: float) -> None:
        """Mix the targets of each view with the teachers' probabilities, the mean over it and its mirror image.

        share: in [0, 1], the weight of the teachers.
        """
        normalize = Normalize(preprocess).to(self.shown.device)
        chunks = list(zip(self.shown.split(_CHUNK), self.targets.split(_CHUNK), strict=True))
        for faces, targets in tqdm(chunks, "teachers", unit="batch"):
            for view in range(faces.shape[1]):
                images = normalize(to_float(faces[:, view].expand(-1, -1, -1, 3)))
                images = images.contiguous(memory_format=torch.channels_last)
                targets[:, view] = targets[:, view].lerp(teachers(images, mirrored=True), share)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, float]) -> tuple[Any, ...]:
        shown, target, label, *further = self.__getitems__([key])
        return shown[0], target[0], label[0], *({name: each[0] for name, each in part.items()} for part in further)

    def __getitems__(self, keys: Sequence[int | tuple[int, float]]) -> tuple[Any, ...]:
        places = [(key[0], self.view(key[1])) if isinstance(key, tuple) else (key, 0) for key in keys]
        rows, views = torch.tensor(places, device=self.shown.device).T
        shown = self.shown[rows, views]
        shown = shown.expand(-1, -1, -1, 3) if shown.ndim == 4 else shown
        further = [{name: each[rows] for name, each in part.items()} for part in self.further]
        return shown, self.targets[rows, views], self.labels[rows], *further
