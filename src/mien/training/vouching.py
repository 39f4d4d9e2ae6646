"""Who vouches for whom: what BTN's attention across the batch does as it learns."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from mien.errors import MienError
from mien.files import whole
from mien.nn import BatchTransformer
from mien.nn.observe import observe

FACES = 256
"""Of the first that are validated; the same every time."""


def measure_vouching(attn: Tensor, labels: Tensor) -> dict[str, float]:
    """What a batch's attention (C, B, M), of which the first B keys are the faces themselves, says of faces (B,) int64.

    A face is looked at in the attention of its own class:

        own      mean over faces of the share that goes to other faces of its class
        chance   the same share, were all other faces attended to alike
        itself   mean of the share that it keeps for itself
        entropy  mean of -Σ a log a, divided by log M: 1 is all alike, 0 a single face

    Faces whose class nobody else of the batch has do not count for `own` and `chance`, which are NaN if there is none.
    """
    count, faces = len(labels), torch.arange(len(labels))
    rows = attn[labels, faces].double()  # (B, M)
    same = (labels[:, None] == labels[None]) & ~torch.eye(count, dtype=torch.bool)
    shared = same.any(1)
    own = (rows[:, :count] * same).sum(1)[shared]
    chance = same.sum(1)[shared] / max(count - 1, 1)
    entropy = -torch.special.xlogy(rows, rows).sum(1) / math.log(max(rows.shape[1], 2))
    figures = {"own": own, "chance": chance.double(), "itself": rows[faces, faces], "entropy": entropy}
    return {name: float(values.mean()) if len(values) else math.nan for name, values in figures.items()}


def examples(attn: Tensor, labels: Tensor, names: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """Of each class the first face (its name) and, of the other faces, the three that it attends to most.

    attn (C, B, M) and labels (B,) as in `measure_vouching`; names of the B faces; classes by number.
    """
    found = {}
    for c, label in enumerate(classes):
        if not (labels == c).any():
            continue
        face = int((labels == c).int().argmax())
        shares = attn[c, face, : len(labels)].clone()
        shares[face] = -1
        most = shares.topk(min(3, len(labels) - 1))
        others = [
            {"face": names[j], "label": classes[int(labels[j])], "share": round(float(share), 4)}
            for share, j in zip(*most, strict=True)
        ]
        found[label] = {"face": names[face], "attends_to": others}
    return found


class VouchingLog(Callback):
    """Writes `vouching.csv` into a folder: a row behind every validation, of `measure_vouching` over FACES faces, and
    `vouching.json`, of the last one: for each class a face and the three others that it attends to most, by number.

    Raises MienError where the network has no `BatchTransformer`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows: list[dict[str, float]] = []

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._branch(module.network)
        file = self.folder / "vouching.csv"
        if trainer.ckpt_path and file.exists():
            with file.open(newline="") as table:
                self.rows = [{name: float(v) for name, v in row.items()} for row in csv.DictReader(table)]

    def _branch(self, network: nn.Module) -> str:
        for name, part in network.named_modules():
            if isinstance(part, BatchTransformer):
                return name
        raise MienError("--vouching: the network has no batch transformer, so that no face vouches for another")

    @rank_zero_only
    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        dataset = trainer.datamodule.validation_faces
        items = [dataset[i] for i in range(min(FACES, len(dataset)))]
        batch = tuple(torch.stack([torch.as_tensor(item[k]) for item in items]).to(module.device) for k in range(3))
        images, _, labels = module.on_after_batch_transfer(batch, 0)
        with observe(module.network, self._branch(module.network), stages=["attn"]) as seen:
            module.network.training_logits(images)
        attn, labels = next(iter(seen.values())).attn.float().cpu(), labels.cpu()
        self.rows = [row for row in self.rows if row["step"] < trainer.global_step]
        self.rows.append({"step": trainer.global_step, **measure_vouching(attn, labels)})
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, self.rows[0].keys())
        table.writeheader()
        table.writerows(self.rows)
        with whole(self.folder / "vouching.csv") as file:
            file.write(text.getvalue().encode())
        names = [row.name for row in dataset.rows]
        with whole(self.folder / "vouching.json") as file:
            file.write(json.dumps(examples(attn, labels, names, trainer.datamodule.data.labels), indent=2).encode())
