"""A recipe from its first line to its last checkpoint."""

import ctypes
import datetime
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mien import __version__
from mien.checkpoint import VERSION, check_header
from mien.console import is_usual, printable
from mien.data import DataSet
from mien.data.heldout import HELD_OUT, HeldOut
from mien.engines import computes_bf16
from mien.errors import MienError
from mien.networks import Network
from mien.outputs import EXPRESSION, Output
from mien.training.augment import Augment, Augmentation
from mien.training.cache import LIMIT, VIEWS, Cache, check_cached
from mien.training.callbacks import Average, Bar, Decay, Keep, MetricsFile, Resume, Still, Waiting
from mien.training.check import check_run, check_splits
from mien.training.faces import Faces
from mien.training.recipe import check_recipes
from mien.training.resume import LAST, check_fits, clear, facts_of, finish, goes_on
from mien.training.start import freeze, rest, seed_of_start, start_from
from mien.training.task import Task
from mien.training.teachers import Teachers
from mien.training.vouching import Vouching

_NO_BF16 = "this CPU computes bf16 in software, some ten times slower than fp32: --trainer.precision 32-true"

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of malloc.h


@cache
def parser() -> ArgumentParser:
    """The options of a recipe; each can also stand on the command line, as --name.part VALUE."""
    parser = ArgumentParser(prog="mien train", description="Run a recipe.", exit_on_error=False)
    parser.add_argument("--config", action="config", help="the recipe, a YAML file; the first argument can be one, too")
    parser.add_argument("--name", type=str, default="run", help="what the run is called")
    parser.add_argument("--out", type=str, help="folder of checkpoints and logs (default: runs/NAME)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--licence", type=str, default="", help="terms of the weights, kept in every checkpoint")
    parser.add_argument("--notes", type=dict[str, str], default={}, help="what else checkpoints say of their training")
    parser.add_argument(
        "--init", type=dict[str, str], default={}, help="part of the network: MODEL[#PREFIX] to start from"
    )
    parser.add_argument(
        "--ema", type=ClosedUnitInterval, default=0.0, help="decay of the averaged weights a step; 0: none"
    )
    parser.add_argument(
        "--freeze", type=list[str], default=[], help="beginnings of the names of parameters that are left as they are"
    )
    parser.add_argument(
        "--heads",
        type=dict[str, float],
        default={},
        help="outputs that the data has beside the expression and the network learns: {NAME: weight of its loss}",
    )
    parser.add_argument(
        "--vouching", action="store_true", help="say of every epoch who vouches for whom in BTN's batch: vouching.csv"
    )
    parser.add_argument(
        "--rest", type=list[str], default=[], help="parts that stay as they are, statistics of batch norm included"
    )
    parser.add_argument(
        "--cache", type=bool, default=False, help="keep what resting trunks say of every face, and learn from that"
    )
    parser.add_argument("--cache_folder", type=str, default="runs/cache", help="where (default: runs/cache)")
    parser.add_argument(
        "--cache_views", type=list[str], default=list(VIEWS), help="of training faces: as is, mirrored, or both"
    )
    parser.add_argument("--cache_limit", type=float, default=LIMIT, help="gigabytes that it may take")
    parser.add_argument(
        "--teachers", type=list[str], default=[], help="models whose answers are a share of every target: --task.teach"
    )
    parser.add_argument(
        "--teachers_once",
        action="store_true",
        help="compute teachers' probabilities once, of every face and its mirror image: with --faces.in_memory true",
    )
    parser.add_argument("--trust", action="store_true", help="build teachers of classes of yours, too")
    parser.add_argument(
        "--pooling",
        type=Literal["constant", "gradual"],
        default="constant",
        help="of a network that keeps some of its patches and tokens: as it is built, or set in over the epochs",
    )
    parser.add_argument(
        "--monitor",
        type=Literal["val_accuracy", "val_macro_f1", "val_loss"],
        default="val_accuracy",
        help="what makes a checkpoint the best",
    )
    parser.add_argument(
        "--patience", type=NonNegativeInt, default=0, help="validations without a better one that end the run; 0: none"
    )
    parser.add_argument(
        "--still_norms", action="store_true", help="batch norms keep the statistics that they start with: few faces"
    )
    parser.add_argument(
        "--keep_all", action="store_true", help="keep the weights of every validation, as step_N.safetensors"
    )
    parser.add_argument("--every", type=PositiveInt, default=50, help="steps between checkpoints to resume from")
    parser.add_argument("--fresh", action="store_true", help="train anew, whatever run the folder holds")
    parser.add_subclass_arguments(Network, "model", required=True, help="the network")
    parser.add_subclass_arguments(DataSet, "data", required=True, help="the data set")
    parser.add_class_arguments(Faces, "faces", skip={"data", "seed"})
    elsewhere = {"network", "preprocess", "num_classes", "augment", "teachers", "heads", "cache", "seed"}
    parser.add_class_arguments(Task, "task", skip=elsewhere)
    parser.add_subclass_arguments(Augmentation, "augment", help="how training faces are changed")
    parser.add_class_arguments(Trainer, "trainer", skip={"logger", "callbacks", "default_root_dir"})
    parser.set_defaults({"augment": {"class_path": f"{Augment.__module__}.{Augment.__name__}"}})
    parser.set_defaults({"trainer.num_sanity_val_steps": 0, "trainer.enable_model_summary": False})
    return parser


def train(arguments: Sequence[str]) -> Path:
    """Run a recipe given as on the command line; the folder of its checkpoints.

    A folder that holds `resume.ckpt` is resumed from there, and ends with the weights of a run that was never cut. At
    the end it holds best.safetensors, last.safetensors, metrics.csv, recipe.yaml and finished.json.

    Raises SystemExit(2) for options that are none, KeyboardInterrupt when interrupted, and MienError: for a folder that
    holds a finished run, or one of other labels, data or preprocessing; and where nothing was kept.
    """
    options = parser()
    config, given = _parse(options, arguments)
    folder = Path(config.out or Path("runs") / config.name)
    last, resume = folder / LAST, goes_on(folder, config.fresh)
    seed_everything(config.seed, workers=True, verbose=False)
    keep_memory()
    if config.init:
        torch.manual_seed(seed_of_start(config.seed))

    try:
        data = options.instantiate(Namespace(data=config.data), instantiate_groups=False).data
        if "num_classes" in config.model.init_args and "num_classes" not in given.model.get("init_args", {}):
            config.model.init_args.num_classes = len(data.labels)
        rest_of_it = Namespace(**{name: value for name, value in vars(config).items() if name != "data"})
        made = options.instantiate(rest_of_it, instantiate_groups=False)
    except ValueError as error:  # around what a constructor said
        raise MienError(" ".join(str(error.__cause__ or error).split())) from error
    network = made.model
    check_splits(data, made.faces)
    start_from(network, config.init, data.labels, plain(config.model))
    freeze(network, config.freeze)
    rest(network, config.rest)
    torch.manual_seed(config.seed)
    faces = Faces(data, seed=config.seed, **vars(made.faces))
    heads = add_heads(network, data, config.heads)
    weighted = {output.name: output for output in heads}
    asked = [output for output in data.outputs if output.name in (EXPRESSION, *network.head_names)]
    answered = [weighted.get(output.name, output) for output in asked]
    header = {
        "mien": VERSION,
        "model": plain(config.model),
        "outputs": [output.to_json() for output in answered],
        "preprocess": faces.preprocess,
        "training": {
            "data": f"{type(data).__name__}, {faces.train_split}",
            "recipe": config.name,
            "date": datetime.date.today().isoformat(),
            "version": __version__,
            "seed": config.seed,
            "licence": config.licence,
            **({"numbered_from": data.first} if data.first is not None else {}),
            **({"held_out": " of ".join(map(str, data.counts()))} if isinstance(data, HeldOut) else {}),
            **config.notes,
        },
    }
    check_header(header, "the recipe")
    teachers = Teachers(config.teachers, data.labels, faces.preprocess, config.trust) if config.teachers else None
    if config.cache:
        check_cached(network, made)
        views = tuple(config.cache_views)
        faces.cache = Cache(
            config.cache_folder, network, data, faces.preprocess, views, teachers, limit=config.cache_limit
        )
    if config.teachers_once:
        faces.teach_once(teachers, made.task.teach)
        teachers = None
    parts = {"augment": made.augment, "teachers": teachers, "heads": heads, "cache": faces.cache, "seed": config.seed}
    task = Task(network, faces.preprocess, len(data.labels), **parts, **vars(made.task))
    task = task.to(memory_format=torch.channels_last)
    check_run(task, made.trainer, faces)
    decay = [_decay(network, made.trainer)] if config.pooling == "gradual" else []
    facts = facts_of(data, (faces.train_split, faces.validation_split), faces.preprocess)
    if resume:
        check_fits(task.state_dict(), last, facts)

    folder.mkdir(parents=True, exist_ok=True)
    if rank_zero_only.rank == 0:
        if not resume:
            clear(folder)
        if isinstance(data, HeldOut):
            data.write_list(folder / HELD_OUT)
        counts = zip(data.labels, data.class_counts(faces.train_split), strict=True)
        print(f"{config.name}: {data}: {', '.join(f'{label} {n:,}' for label, n in counts)}", file=sys.stderr)
        options.save(config, folder / "recipe.yaml", overwrite=True, skip_validation=True)
    waiting = Waiting()
    own = {id(row) for row in data.rows(faces.train_split)}
    learned = any(id(row) in own for row in data.rows(faces.validation_split))
    if learned and rank_zero_only.rank == 0:
        note = "is learned, too: checkpoints have no metrics, and the best is the last"
        print(f"{config.name}: {faces.validation_split!r} {note}", file=sys.stderr)
    keep = Keep(folder, header, config.monitor, config.keep_all, config.patience, learned)
    points = Resume(last, config.every, facts)
    callbacks: list[Callback] = [keep, points, waiting, *decay, *([Still()] if config.still_norms else [])]
    callbacks += [Still(config.rest)] if config.rest else []
    callbacks += [Vouching(folder)] if config.vouching else []
    if config.ema:
        callbacks.append(Average(config.ema))
    if made.trainer.enable_progress_bar is not False:
        callbacks.append(Bar(config.name))
    began = time.monotonic()
    handler = signal.getsignal(signal.SIGINT)
    if is_usual(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, points.interrupt)
    try:
        chosen = vars(made.trainer) | {"use_distributed_sampler": False}  # Faces gives each process its share
        trainer = Trainer(**chosen, logger=MetricsFile(folder, resume), callbacks=callbacks, default_root_dir=folder)
        slow = trainer.strategy.root_device.type == "cpu" and not computes_bf16()
        if slow and str(trainer.precision).startswith("bf16") and trainer.is_global_zero:
            print(f"{config.name}: {_NO_BF16}", file=sys.stderr)
        trainer.fit(task, faces, ckpt_path=last if resume else None, weights_only=True)
    except MisconfigurationException as error:
        raise MienError(" ".join(str(error).split())) from error
    except SIGTERMException:
        _say_where(last)
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as end:  # lightning's way to say that somebody pressed Ctrl-C, which it then ignores
        signal.signal(signal.SIGINT, handler)
        if end.code == 128 + signal.SIGTERM:  # a handler of the caller's
            raise
        _say_where(last)
        raise KeyboardInterrupt from None
    finally:
        if signal.getsignal(signal.SIGINT) == points.interrupt:
            signal.signal(signal.SIGINT, handler)
    minutes = (time.monotonic() - began) / 60
    if trainer.is_global_zero:
        print(
            f"{folder}: {trainer.global_step} steps, {minutes:.1f} minutes; "
            f"of a step's time {waiting.share:.0%} was waiting for faces; {_memory()} GB of memory at most",
            file=sys.stderr,
        )
        if not (folder / "best.safetensors").exists():
            raise MienError(f"{folder}: nothing is kept: the run was not validated once in {trainer.global_step} steps")
        finish(folder, trainer.global_step)
    return folder


def _say_where(last: Path) -> None:
    if rank_zero_only.rank == 0:
        kept = (
            f"{last}: the same command goes on from there" if last.exists() else f"{last.parent}: nothing to go on from"
        )
        print(kept, file=sys.stderr)


def _memory() -> str:
    """The most gigabytes (1e9 bytes) that this process has held, and of a GPU's."""
    try:
        import resource
    except ImportError:
        return "an unknown number of"  # on Windows
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpu = f" and {torch.cuda.max_memory_allocated() / 1e9:.1f}" if torch.cuda.is_available() else ""
    return f"{used / 1e9:.1f}{gpu}"


def keep_memory() -> None:
    """Ask glibc to hold on to freed memory: giving it back between steps costs a CPU a fifth of training's time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**30), (_M_MMAP_MAX, 0)):
            mallopt(option, value)


def _parse(options: ArgumentParser, arguments: Sequence[str]) -> tuple[Namespace, Namespace]:
    """All options, and those that somebody gave."""
    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--config")
    try:
        check_recipes(arguments)
        return options.parse_args(arguments), options.parse_args(arguments, defaults=False)
    except (ArgumentError, ValueError) as error:  # the latter of a number with thousands of digits
        reason = " ".join(str(error).split())
        reason = re.sub(r"Does not validate .*? Errors: - (.*?) - Expected a <class 'NoneType'>.*", r"\1", reason)
        reason = re.sub(
            "^(Problems parsing|Unexpected) config: ", " ".join([*arguments[1:2], "is no recipe: "]), reason
        )
        print(f"mien train: {printable(reason)}", file=sys.stderr)
        raise SystemExit(2) from None
    except MienError as error:  # of a recipe that is too large or none
        print(f"mien train: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None


def _decay(network: Network, trainer: Namespace) -> Decay:
    if not hasattr(network, "keep_patches"):
        raise MienError("--pooling gradual: this network keeps all of its patches")
    if trainer.max_epochs in (None, -1):
        raise MienError("--pooling gradual counts epochs: it needs --trainer.max_epochs")
    return Decay(network)


def add_heads(network: Network, data: DataSet, weights: Mapping[str, float]) -> list[Output]:
    """Give the network a head for each output of the data that is named, with the weight of its loss."""
    known = {output.name: output for output in data.outputs[1:]}
    if unknown := [name for name in weights if name not in known]:
        there = f"beside the expression only of {', '.join(known)}" if known else "of the expression alone"
        raise MienError(f"--heads: {data} does not tell of {unknown[0]}, {there}")
    if taken := [name for name in weights if name in network.head_names]:
        raise MienError(f"--heads: the network has a head for {taken[0]} already")
    try:
        heads = [replace(known[name], weight=float(weight)) for name, weight in weights.items()]
        network.add_heads(heads)
    except ValueError as error:
        raise MienError(f"--heads: {error}") from error
    return heads


def plain(config: Namespace) -> dict[str, Any]:
    """A parsed block as JSON keeps it."""
    block = json.loads(json.dumps(config.as_dict()))
    return {"class_path": block["class_path"], "init_args": block.get("init_args", {})}
