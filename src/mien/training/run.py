"""A recipe from its first line to its last checkpoint."""

import datetime
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from mien import __version__
from mien.checkpoint import VERSION
from mien.data import DataSet
from mien.errors import MienError
from mien.networks import Network, save_network
from mien.networks.checkpoint import fill, load_tensors
from mien.training.augment import Augment
from mien.training.faces import Faces
from mien.training.task import Task


class Keep(Callback):
    """Writes `best.safetensors`, whenever a validation is the best so far, and `last.safetensors` after every one.

    Stands before the averaging callback, whose weights are then still in place.
    """

    def __init__(self, folder: Path, header: dict[str, Any], monitor: str):
        self.folder, self.header, self.monitor, self.best = folder, header, monitor, float("-inf")

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = {name: round(float(value), 5) for name, value in module.metrics.compute().items()}
        training = self.header["training"] | {"metrics": metrics, "steps": trainer.global_step}
        header = self.header | {"training": training}
        save_network(self.folder / "last.safetensors", module.network, header)
        if metrics[self.monitor] > self.best:
            self.best = metrics[self.monitor]
            save_network(self.folder / "best.safetensors", module.network, header)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]


def parser() -> ArgumentParser:
    """The options of a recipe; each can also stand on the command line, as --name.part VALUE."""
    parser = ArgumentParser(prog="mien train", description="Run a recipe.", env_prefix="MIEN_TRAIN")
    parser.add_argument("--config", action="config", help="the recipe, a YAML file; the first argument can be one, too")
    parser.add_argument("--name", type=str, default="run", help="what the run is called")
    parser.add_argument("--out", type=str, help="folder of checkpoints and logs (default: runs/NAME)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--licence", type=str, default="", help="terms of the weights, kept in every checkpoint")
    parser.add_argument("--notes", type=dict[str, str], default={}, help="what else checkpoints say of their training")
    parser.add_argument(
        "--init", type=dict[str, str], default={}, help="part of the network: CHECKPOINT[#PREFIX] to start from"
    )
    parser.add_argument("--ema", type=float, default=0.0, help="decay of the averaged weights a step; 0: none")
    parser.add_argument("--monitor", type=str, default="val_accuracy", help="what makes a checkpoint the best")
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints to resume from")
    parser.add_argument("--fresh", action="store_true", help="do not resume from the folder's last checkpoint")
    parser.add_subclass_arguments(Network, "model", required=True, help="the network")
    parser.add_subclass_arguments(DataSet, "data", required=True, help="the data set")
    parser.add_class_arguments(Faces, "faces", skip={"data"})
    parser.add_class_arguments(Task, "task", skip={"network", "preprocess", "num_classes", "augment"})
    parser.add_class_arguments(Augment, "augment")
    parser.add_class_arguments(Trainer, "trainer", skip={"logger", "callbacks", "default_root_dir"})
    return parser


def train(arguments: Sequence[str]) -> Path:
    """Run a recipe given as on the command line; the folder of its checkpoints.

    A folder that holds `resume.ckpt` is resumed from there. At the end it holds best.safetensors, last.safetensors,
    metrics.csv and recipe.yaml.
    """
    options = parser()
    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--config")
    config = options.parse_args(arguments)
    folder = Path(config.out or Path("runs") / config.name)
    folder.mkdir(parents=True, exist_ok=True)
    options.save(config, folder / "recipe.yaml", overwrite=True, skip_none=False)
    seed_everything(config.seed, workers=True, verbose=False)

    made = options.instantiate(config, instantiate_groups=False)
    network, data = made.model, made.data
    start_from(network, config.init)
    faces = Faces(data, **vars(made.faces))
    augment = Augment(**vars(made.augment))
    task = Task(network, faces.preprocess, len(data.labels), augment=augment, **vars(made.task))
    task = task.to(memory_format=torch.channels_last)

    header = {
        "mien": VERSION,
        "model": plain(config.model),
        "id2label": {str(i): label for i, label in enumerate(data.labels)},
        "preprocess": faces.preprocess,
        "temperature": 1.0,
        "training": {
            "data": f"{type(data).__name__}, {faces.train_split}",
            "recipe": config.name,
            "date": datetime.date.today().isoformat(),
            "version": __version__,
            "seed": config.seed,
            "licence": config.licence,
            **config.notes,
        },
    }
    resume = ModelCheckpoint(folder, filename="resume", every_n_train_steps=config.every, enable_version_counter=False)
    callbacks: list[Callback] = [Keep(folder, header, config.monitor), resume]
    if config.ema:
        callbacks.append(EMAWeightAveraging(decay=config.ema))
    trainer = Trainer(
        **vars(made.trainer),
        logger=CSVLogger(folder, name="", version="log"),
        callbacks=callbacks,
        default_root_dir=folder,
    )
    last = folder / "resume.ckpt"
    began = time.monotonic()
    trainer.fit(task, faces, ckpt_path=last if last.exists() and not config.fresh else None, weights_only=False)
    print(f"{folder}: {trainer.global_step} steps, {(time.monotonic() - began) / 60:.1f} minutes", file=sys.stderr)
    return folder


def start_from(network: torch.nn.Module, init: dict[str, str]) -> None:
    """Load parts of a network from checkpoints: {"image": "path.safetensors#prefix"}; "" is the whole network."""
    for part, source in init.items():
        path, _, prefix = source.partition("#")
        try:
            module = network.get_submodule(part)
        except AttributeError as error:
            raise MienError(f"--init: the network has no part {part!r}") from error
        fill(module, load_tensors(path, prefix), source)


def plain(config: Namespace) -> dict[str, Any]:
    """A parsed block as JSON keeps it."""
    block = json.loads(json.dumps(config.as_dict()))
    return {"class_path": block["class_path"], "init_args": block.get("init_args", {})}
