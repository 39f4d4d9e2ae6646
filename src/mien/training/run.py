"""A recipe from its first line to its last checkpoint."""

import ctypes
import datetime
import json
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mien import __version__
from mien.checkpoint import VERSION, check_header
from mien.console import is_usual
from mien.data import DataSet
from mien.data.heldout import HELD_OUT, HeldOut
from mien.engines import computes_bf16
from mien.errors import MienError
from mien.networks import Network
from mien.outputs import EXPRESSION, Output
from mien.training.cache import Cache, check_cached
from mien.training.callbacks import Average, Bar, Decay, Keep, MetricsFile, Resume, Still, Waiting
from mien.training.check import check_run, check_splits
from mien.training.faces import FaceData
from mien.training.options import parse, parser
from mien.training.resume import LAST, check_fits, clear, facts_of, finish, goes_on
from mien.training.silent import find_silent
from mien.training.start import freeze, rest, seed_of_start, settle_norms, start_from
from mien.training.task import Task
from mien.training.teachers import Teachers
from mien.training.vouching import VouchingLog

_NO_BF16 = "this CPU computes bf16 in software, some ten times slower than fp32: --trainer.precision 32-true"

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of malloc.h


def train(arguments: Sequence[str]) -> Path:
    """Run a recipe given as on the command line; the folder of its checkpoints.

    A folder that holds `resume.ckpt` is resumed from there, and ends with the weights of a run that was never cut. At
    the end it holds best.safetensors, last.safetensors, metrics.csv, recipe.yaml and finished.json.

    Raises SystemExit(2) for options that are none, KeyboardInterrupt when interrupted, and MienError: for a folder that
    holds a finished run, or one of other labels, data or preprocessing; and where nothing was kept.
    """
    options = parser()
    config, given = parse(options, arguments)
    folder = Path(config.out or Path("runs") / config.name)
    last, resume = folder / LAST, goes_on(folder, config.fresh)
    seed_everything(config.seed, workers=True, verbose=False)
    keep_memory()
    task, faces, header, chosen = _build(options, config, given)
    facts = facts_of(faces.data, (faces.train_split, faces.validation_split), faces.preprocess)
    if resume:
        check_fits(task.state_dict(), last, facts)
    learned = _is_learned(faces)
    keep = Keep(folder, header, config.monitor, config.keep_all, config.patience, learned)
    points, waiting = Resume(last, config.every, facts), Waiting()
    callbacks = [keep, points, waiting, *_callbacks(config, task.network, chosen, folder)]

    folder.mkdir(parents=True, exist_ok=True)
    if rank_zero_only.rank == 0:
        if not resume:
            clear(folder)
        _print_classes(config.name, faces, learned)
        if isinstance(faces.data, HeldOut):
            faces.data.write_list(folder / HELD_OUT)
        options.save(config, folder / "recipe.yaml", overwrite=True, skip_validation=True)
    began = time.monotonic()
    handler = signal.getsignal(signal.SIGINT)
    if is_usual(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, points.interrupt)
    try:
        logger = MetricsFile(folder, resume, faces.count_steps)
        chosen |= {"use_distributed_sampler": False}  # Faces gives each process its share
        trainer = Trainer(**chosen, logger=logger, callbacks=callbacks, default_root_dir=folder)
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
        for line in find_silent(task, faces):
            print(f"{folder}: {line}", file=sys.stderr)
    return folder


def _build(
    options: ArgumentParser, config: Namespace, given: Namespace
) -> tuple[Task, FaceData, dict[str, Any], dict[str, Any]]:
    """The network that learns, from what, what its checkpoints say of it, and the options of lightning's trainer."""
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
    faces = FaceData(data, seed=config.seed, **vars(made.faces))
    if config.settle_norms:
        settle_norms(network, faces.examples(256))
    heads = add_heads(network, data, config.heads)
    header = _header(config, network, faces, {output.name: output for output in heads})
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
    return task, faces, header, vars(made.trainer)


def _header(config: Namespace, network: Network, faces: FaceData, heads: Mapping[str, Output]) -> dict[str, Any]:
    """What every checkpoint says of itself; heads: the outputs that were added, by name."""
    data = faces.data
    learned = [output for output in data.outputs if output.name in (EXPRESSION, *network.head_names)]
    header = {
        "mien": VERSION,
        "model": plain(config.model),
        "outputs": [heads.get(output.name, output).to_json() for output in learned],
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
    return header


def _callbacks(config: Namespace, network: Network, chosen: Mapping[str, Any], folder: Path) -> list[Callback]:
    """The callbacks that options turn on; chosen: options of the trainer."""
    callbacks: list[Callback] = [_decay(network, chosen["max_epochs"])] if config.pooling == "gradual" else []
    callbacks += [Still()] if config.still_norms else []
    callbacks += [Still(config.rest)] if config.rest else []
    callbacks += [VouchingLog(folder)] if config.vouching else []
    callbacks += [Average(config.ema)] if config.ema else []
    callbacks += [Bar(config.name)] if chosen["enable_progress_bar"] is not False else []
    return callbacks


def _is_learned(faces: FaceData) -> bool:
    """Whether a face of validation is one of training, too."""
    own = {id(row) for row in faces.data.rows(faces.train_split)}
    return any(id(row) in own for row in faces.data.rows(faces.validation_split))


def _print_classes(name: str, faces: FaceData, learned: bool) -> None:
    """How many faces of each class there are to learn from, and whether validation is among them, to stderr."""
    counts = zip(faces.data.labels, faces.data.class_counts(faces.train_split), strict=True)
    print(f"{name}: {faces.data}: {', '.join(f'{label} {n:,}' for label, n in counts)}", file=sys.stderr)
    if learned:
        note = "is learned, too: checkpoints have no metrics, and the best is the last"
        print(f"{name}: {faces.validation_split!r} {note}", file=sys.stderr)


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


def _decay(network: Network, max_epochs: int | None) -> Decay:
    if not hasattr(network, "keep_patches"):
        raise MienError("--pooling gradual: this network keeps all of its patches")
    if max_epochs in (None, -1):
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
