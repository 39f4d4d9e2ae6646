"""The options of a training run."""

import re
import sys
from collections.abc import Sequence
from functools import cache
from typing import Literal

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from lightning import Trainer

from mien.console import printable
from mien.data import DataSet
from mien.errors import MienError
from mien.networks import Network
from mien.training.augment import Augment, Augmentation
from mien.training.cache import LIMIT, VIEWS
from mien.training.faces import FaceData
from mien.training.recipe import check_recipes
from mien.training.task import Task


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
        "--settle_norms",
        action="store_true",
        help="batch norms take the statistics of 256 training faces, answers stay: for weights without batch norm",
    )
    parser.add_argument(
        "--keep_all", action="store_true", help="keep the weights of every validation, as step_N.safetensors"
    )
    parser.add_argument("--every", type=PositiveInt, default=50, help="steps between checkpoints to resume from")
    parser.add_argument("--fresh", action="store_true", help="train anew, whatever run the folder holds")
    parser.add_subclass_arguments(Network, "model", required=True, help="the network")
    parser.add_subclass_arguments(DataSet, "data", required=True, help="the data set")
    parser.add_class_arguments(FaceData, "faces", skip={"data", "seed"})
    elsewhere = {"network", "preprocess", "num_classes", "augment", "teachers", "heads", "cache", "seed"}
    parser.add_class_arguments(Task, "task", skip=elsewhere)
    parser.add_subclass_arguments(Augmentation, "augment", help="how training faces are changed")
    parser.add_class_arguments(Trainer, "trainer", skip={"logger", "callbacks", "default_root_dir"})
    parser.set_defaults({"augment": {"class_path": f"{Augment.__module__}.{Augment.__name__}"}})
    parser.set_defaults({"trainer.num_sanity_val_steps": 0, "trainer.enable_model_summary": False})
    return parser


def parse(options: ArgumentParser, arguments: Sequence[str]) -> tuple[Namespace, Namespace]:
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
