"""What lies in a run's folder: whether it is finished, and whether it can be gone on with."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from mien.checkpoint import read_header
from mien.data import DataSet
from mien.data.heldout import content_of
from mien.errors import MienError
from mien.files import whole
from mien.training.ablate import FINISHED

LAST = "resume.ckpt"
"""All that a run which was cut goes on from."""


def goes_on(folder: Path, fresh: bool) -> bool:
    """Whether a run in this folder goes on from a cut one.

    Raises MienError where it would write over a finished one and nobody said `fresh`.
    """
    if fresh:
        return False
    best = folder / "best.safetensors"
    if (folder / FINISHED).exists() or (best.exists() and not (folder / LAST).exists()):
        found = read_header(best)["training"] if best.exists() else {}
        metrics = ", ".join(f"{name} {value}" for name, value in found.get("metrics", {}).items())
        raise MienError(
            f"{folder}: holds a finished run{f' ({metrics})' if metrics else ''}: give another --out, or --fresh to "
            "train anew and lose it"
        )
    return (folder / LAST).exists()


def clear(folder: Path) -> None:
    """Remove what another run left there."""
    names = (LAST, FINISHED, "best.safetensors", "last.safetensors", "metrics.csv", "recipe.yaml")
    for file in [*(folder / name for name in names), *folder.glob("step_*.safetensors")]:
        file.unlink(missing_ok=True)


def finish(folder: Path, steps: int) -> None:
    """Say that the run is finished; what it could have gone on from is not needed any more."""
    metrics = read_header(folder / "best.safetensors")["training"]["metrics"]
    with whole(folder / FINISHED) as file:
        file.write(json.dumps({"steps": steps, "best": metrics}, indent=2).encode() + b"\n")
    (folder / LAST).unlink(missing_ok=True)


def facts_of(data: DataSet, splits: tuple[str, str], preprocess: dict[str, Any]) -> dict[str, Any]:
    """What a run that goes on must have as it had it: labels, data and preprocessing, as JSON."""
    digest = hashlib.blake2b(digest_size=16)
    for split in splits:
        for row in data.rows(split):
            digest.update(repr((content_of(row), row.label, row.target.tolist())).encode())
    plain = json.loads(json.dumps(preprocess))
    return {"labels": list(data.labels), "data": digest.hexdigest(), "preprocessing": plain}


def check_fits(state: dict[str, torch.Tensor], last: Path, facts: dict[str, Any]) -> None:
    """Raise MienError unless the run in `last` is of this network, these labels, this data and this preprocessing.

    Lightning would tell of every tensor, in a line each, behind a traceback, and of the others nothing.
    """
    try:
        kept = torch.load(last, map_location="cpu", mmap=True, weights_only=True)
        shapes = {name: t.shape for name, t in kept["state_dict"].items()}
        before = kept.get("mien", {})
    except Exception as error:  # an unpickler raises whatever a damaged file leads it to
        raise MienError(f"{last}: damaged: remove it, or give --fresh to start anew") from error
    other = [name for name, value in facts.items() if before.get(name, value) != value]
    if not other and shapes != {name: t.shape for name, t in state.items()}:
        other = ["network"]
    if not other:
        return
    what = f"other {other[0]}" if other[0] in facts else "another network"
    if other[0] == "labels":
        what += f" ({', '.join(before['labels'])}; now {', '.join(facts['labels'])})"
    raise MienError(f"{last}: holds a run of {what}: give another --out, or --fresh to start anew")
