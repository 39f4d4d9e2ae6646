"""What would end a run in the middle, or spoil it unseen, reported before it begins."""

import torch
from jsonargparse import Namespace

from mien.data import DataSet
from mien.data.dataset import NoSplit
from mien.data.spelling import spell_split
from mien.errors import MienError
from mien.training.faces import FaceData
from mien.training.task import Task


def check_splits(data: DataSet, faces: Namespace) -> None:
    """Name the option that helps where a split is missing; rows that cannot be used are logged here, once."""
    for option in ("train_split", "validation_split"):
        try:
            data.rows(getattr(faces, option))
        except NoSplit as error:
            others = [name for name in data.splits if spell_split(faces.train_split) != name]
            hint = f"--faces.{option} {'test' if 'test' in others else others[0]}" if others else ""
            if len(data.splits) == 1:
                hint = "mien finetune holds some of it out, and so does mien.data.HeldOut in a recipe"
            raise MienError(f"{error}: {hint}") from error


def check_run(task: Task, trainer: Namespace, faces: FaceData) -> None:
    """What would otherwise end a run in the middle, or spoil it unseen."""
    data, size = faces.data, task.preprocess["input_size"]
    blank = torch.zeros(1, 3, size, size)
    units = 0
    with torch.no_grad():
        try:
            classes = task.network.eval()(blank).shape[1]
            if task.network.training_only:
                task.network.training_logits(blank)
        except (ValueError, RuntimeError) as error:
            raise MienError(
                f"the network cannot look at faces of {size} pixels: {' '.join(str(error).split())}"
            ) from error
        if "action_units" in task.network.loss_weights:
            units = task.network.training_logits(blank)["action_units"].shape[1]
    task.network.train()
    if classes != len(data.labels):
        raise MienError(
            f"the network tells {classes} classes apart, and {data} has {len(data.labels)}: {', '.join(data.labels)}"
        )
    if units and units != len(data.units):
        raise MienError(f"the network tells of {units} action units, and {data} of {len(data.units)}")
    further = [output.name for output in data.outputs[1:]]
    if further and (task.mixup or task.cutmix or task.teachers):
        raise MienError(
            f"faces with {' and '.join(further)} are neither mixed nor taught: "
            "no --task.mixup, no --task.cutmix, no --teachers"
        )
    moving = [output.name for output in task.heads if output.kind in ("angles", "points")]
    if moving and (task.augment is not None or task.flip_consistency):
        raise MienError(f"{moving[0]} moves with the face: no --augment, no --task.flip_consistency")
    if task.augment is not None:
        side = faces.train_size or size
        made = task.augment(torch.zeros(1, 3, side, side)).shape[-1]
        if made != size:
            raise MienError(f"training faces would come in {made} pixels, but the network's input has {size}")
    if task.schedule in ("epoch_cosine", "exponential") and trainer.max_epochs in (None, -1) and trainer.max_steps > 0:
        raise MienError(f"--task.schedule {task.schedule} counts epochs: it needs --trainer.max_epochs")
    for prefix in task.lr_scale:
        if not any(name.startswith(prefix) for name, _ in task.network.named_parameters()):
            raise MienError(f"--task.lr_scale: no parameter's name begins with {prefix!r}")
    if task.sam_rho and trainer.accumulate_grad_batches != 1:
        raise MienError("SAM looks twice at one batch: it needs --trainer.accumulate_grad_batches 1")
    if task.sam_rho and str(trainer.precision).startswith("16"):
        raise MienError("SAM does not go with the loss scaling of fp16: take --trainer.precision bf16-mixed")
