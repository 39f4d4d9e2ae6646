"""One recipe, varied: every combination of values, several seeds of each, one table."""

import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from csv import DictReader
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mien.errors import MienError
from mien.files import whole

FINISHED = "finished.json"
"""What a run leaves behind that went on to its end."""

DEFAULT = "default"
"""The value that leaves an option as the recipe has it."""

_POLL = 5.0  # seconds between two notes of the time that a run has taken
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 97.5 % of Student's t, 1 to 10 degrees


@dataclass(frozen=True, slots=True)
class Variant:
    """What is set, option by option, and what came of it, seed by seed."""

    settings: dict[str, str]
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.settings.items()) or "as it is"

    @property
    def folder(self) -> str:
        """A name that any file system takes."""
        return (
            re.sub(r"[^\w.=-]+", "_", "_".join(f"{key}={value}" for key, value in self.settings.items())) or "as_it_is"
        )


def settings(texts: Sequence[str]) -> dict[str, str]:
    """{"option": "value"} of "option=value". Raises MienError for what has another form, or names an option twice."""
    found: dict[str, str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not (key and sign and value):
            raise MienError(f"{text}: not of the form option=value")
        if key in found:
            raise MienError(f"{key}: said twice")
        found[key] = value
    return found


def variants(vary: Sequence[str]) -> list[Variant]:
    """Every combination of "option=value,value…"; the first has the first value of each, the last option turns fastest.

    Commas within brackets do not part values. Raises MienError as `settings` does.
    """
    choices = {key: re.split(r",(?![^\[{]*[\]}])", values) for key, values in settings(vary).items()}
    return [Variant(dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]


def ablate(
    recipe: str, table: Sequence[Variant], seeds: int, out: Path, fixed: Mapping[str, str]
) -> Iterator[tuple[Variant, int, dict[str, Any] | None]]:
    """Train every variant of a recipe with the seeds 0, 1, …, each run a process and a folder of its own in `out`.

    Gives variant, seed and None before a run, and its result after: {"accuracy", "macro_f1", "loss": of the last
    validation, "steps", "minutes"}. Seeds turn slowest, so that a table that was cut has the same seeds everywhere. A
    run that is done is not made again, and one that was cut is resumed. `fixed` are options that all variants share.
    An option whose value is DEFAULT is not set.

    Raises MienError where a run fails, or where `out` holds a run, done or cut, that was begun with other options.
    """
    for seed in range(seeds):
        for variant in table:
            folder = out / variant.folder / f"seed_{seed}"
            chosen = {**fixed, **variant.settings}
            given = ((f"--{key}", value) for key, value in chosen.items() if value != DEFAULT)
            command = [recipe, *itertools.chain.from_iterable(given)]
            begun, done = folder / "command.json", folder / "result.json"
            trained = begun.exists() and (folder / "recipe.yaml").exists()  # a misspelt option leaves no recipe
            if trained and (made := json.loads(begun.read_text())) != command:
                raise MienError(f"{folder}: begun by mien train {' '.join(made)}: remove it, or give another --out")
            result = json.loads(done.read_text()) if done.exists() else None
            if result is None:
                yield variant, seed, None
                folder.mkdir(parents=True, exist_ok=True)
                with whole(begun) as file:
                    file.write(json.dumps(command).encode())
                result = _run(folder, command, seed)
                with whole(done) as file:
                    file.write(json.dumps(result, indent=2).encode())
            variant.results.append(result)
            yield variant, seed, result


def _run(folder: Path, command: Sequence[str], seed: int) -> dict[str, Any]:
    clock = folder / "seconds"
    before = float(clock.read_text() or 0) if clock.exists() else 0.0
    if not (folder / FINISHED).exists():  # else it was cut between its end and the note of its result
        _train(folder, command, seed, clock, before)
    with open(folder / "metrics.csv", newline="") as file:
        judged = [row for row in DictReader(file) if row.get("val_accuracy")]
    if not judged:
        raise MienError(f"{folder}: was not validated once, so that there is nothing to compare")
    last = judged[-1]
    return {
        "command": list(command),
        "seed": seed,
        "accuracy": float(last["val_accuracy"]),
        "macro_f1": float(last["val_macro_f1"]),
        "loss": float(last["val_loss"]),
        "steps": int(last["step"]) + 1,
        "minutes": float(clock.read_text()) / 60,
    }


def _train(folder: Path, command: Sequence[str], seed: int, clock: Path, before: float) -> None:
    """One run, in a process of its own, whose seconds `clock` counts."""
    begun = time.monotonic()
    named = ["--name", folder.parent.name, "--out", os.fspath(folder), "--seed", str(seed)]
    process = subprocess.Popen([sys.executable, "-m", "mien", "train", *command, *named], stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                code = process.wait(_POLL)
            except subprocess.TimeoutExpired:
                code = None
            clock.write_text(f"{before + time.monotonic() - begun:.1f}")
            if code is not None:
                break
    except BaseException:  # Ctrl-C reaches the run as well, and it leaves what it can be resumed from
        process.terminate()
        process.wait()
        raise
    if code:
        raise MienError(f"{folder}: mien train ended with {code}")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % (Student's t over the values); of a single one it is not a number."""
    mean, degrees = statistics.fmean(values), len(values) - 1
    if not degrees:
        return mean, math.nan
    t = _T[degrees - 1] if degrees <= len(_T) else 1.96 + 2.372 / degrees + 2.823 / degrees**2
    return mean, t * statistics.stdev(values) / math.sqrt(len(values))


def ablation_table(table: Sequence[Variant]) -> str:
    """In Markdown: a row a variant that has results; differences from the first are of the same seeds, pair by pair."""

    def shown(values: Sequence[float], sign: str = "") -> str:
        mean, half = interval(values)
        return f"{mean:{sign}.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}")

    lines = [
        "| variant | seeds | accuracy | beyond the first | macro-F1 | log loss | steps | minutes a run |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    first = {result["seed"]: result["accuracy"] for result in table[0].results}
    for variant in table:
        results = variant.results
        if not results:
            continue
        pairs = [r["accuracy"] - first[r["seed"]] for r in results if r["seed"] in first]
        beyond = shown(pairs, "+") if pairs and variant is not table[0] else "–"
        cells = [shown([r[key] for r in results]) for key in ("accuracy", "macro_f1", "loss")]
        minutes = statistics.fmean(r["minutes"] for r in results)
        steps = max(r["steps"] for r in results)
        row = [variant.name, len(results), cells[0], beyond, *cells[1:], steps, f"{minutes:.1f}"]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)
