"""Tables for a terminal: what models and mixers there are, and what mechanisms cost."""

import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mien.catalogue import NETWORKS
from mien.checkpoint import outputs_of
from mien.console import printable

COSTS: dict[str, tuple[int, float]] = {
    "Axial": (295_296, 59.9),
    "CAM": (1, 2.4),
    "CMHA": (147_648, 43.8),
    "ChannelAttention": (148_224, 31.3),
    "CosineMoH": (154_380, 47.0),
    "DistributedAttention": (148_224, 43.7),
    "GAAM": (12, 0.0),
    "Grassmann": (175_520, 54.7),
    "Halo": (149_248, 42.6),
    "LinearAttention": (149_382, 48.4),
    "MaxViTBlockAttention": (149_238, 32.6),
    "MaxViTGridAttention": (149_238, 32.6),
    "MoH": (149_568, 44.0),
    "Neighborhood": (148_224, 43.7),
    "PAM": (46_321, 17.4),
    "RCMHA": (293_334, 52.0),
    "SelfAttention": (148_224, 43.7),
    "Sparsifiner": (161_824, 53.4),
    "SpectralGate": (43_008, 0.7),
    "Superlinear": (185_280, 59.6),
    "TalkingHeads": (148_308, 46.4),
    "TiC": (148_224, 29.6),
    "WindowAttention": (148_224, 32.6),
}
"""Parameters of each mixer of mien.nn, and millions of multiplications for one face, 192 wide, with 6 heads, on 14×14
tokens; counting them takes five seconds, so tests/test_bench.py does."""


_WIDE = 110  # letters of a line that has room for a sentence behind names and figures


def aligned(rows: Sequence[Sequence[str]], room: int | None = None) -> str:
    """Rows in columns, the first row their heads; numbers stand at the right. room: letters to which a row is cut."""
    columns = list(zip(*rows, strict=True))
    sides = [">" if all(re.match(r"[<>\d–-]", cell) for cell in column[1:]) else "<" for column in columns]
    forms = [f"{{:{side}{max(map(len, column))}}}" for side, column in zip(sides, columns, strict=True)]
    return "\n".join(_cut(printable("  ".join(forms).format(*row).rstrip()), room) for row in rows)


def _cut(line: str, room: int | None) -> str:
    return line if room is None or len(line) <= room else f"{line[: room - 1]}…"


def room() -> int | None:
    """Letters of a line on stdout; None where that is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def on_terminal(text: str) -> str:
    """Markdown with its tables aligned, where a terminal shows it; elsewhere as it is."""
    if not sys.stdout.isatty():
        return text

    def table(found: re.Match[str]) -> str:
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()]
        return aligned([rows[0], *rows[2:]]) + "\n"

    return re.sub(r"(?:^\|.*\|(?:\n|\Z))+", table, text, flags=re.M).rstrip("\n")


def paper(kind: type) -> str:
    """Whose a mechanism is, and when, as its docstring says it or one beside it does: "Jin et al. 2024"."""
    beside = [each for each in vars(sys.modules[kind.__module__]).values() if isinstance(each, type)]
    for doc in [each.__doc__ or "" for each in (kind, *beside) if each.__module__ == kind.__module__]:
        if found := re.search(r"Papers?: (.*?)(?:\n\n|Reference|;|$)", doc, re.S):
            text = " ".join(found[1].split())
            when = re.search(r"(?<!arXiv )\b(?:19|20)\d\d\b|arXiv \d{4}\.\d{5}", text)
            return f"{text.split(',')[0]} {when[0] if when else ''}".strip()
    return "–"


def mixer_table(found: Mapping[str, tuple[type, str]]) -> str:
    """By the name of each mixer, its class and what it does: with its costs and its paper."""
    rows = [("mixer", "parameters", "MMAC", "paper", "what it does")]
    for name, (kind, does) in found.items():
        parameters, mmac = COSTS.get(name, (None, None))
        costs = ("–", "–") if parameters is None else (f"{parameters:,}", f"{mmac:.1f}")
        rows.append((f"mien.nn.{name}", *costs, paper(kind), does))
    wide = room()
    if wide is None or wide >= _WIDE:
        return aligned(rows, wide)
    lines = aligned([row[:-1] for row in rows], wide).splitlines()  # what it does has a line of its own
    return "\n".join(f"{line}\n{_cut(f'    {row[-1]}', wide)}" for line, row in zip(lines, rows, strict=True))


def model_table(models: Iterable[tuple[str, Path, Mapping[str, Any]]]) -> str:
    """Of each model its name, its folder and its header: what it answers, how well, and what it costs."""
    rows = [("model", "answers", "accuracy", "macro F1", "MB", "parameters", "GMAC", "paper", "trained on", "licence")]
    for name, folder, header in models:
        training = header.get("training", {})
        metrics = training.get("metrics", {}) if isinstance(training.get("metrics"), dict) else {}
        scores = (metrics.get(f"val_{measure}") for measure in ("accuracy", "macro_f1"))
        known = NETWORKS.get(str(header.get("model", {}).get("class_path")).rpartition(".")[2])
        outputs = outputs_of(header)
        answers = f"{len(outputs[0].labels)} {outputs[0].name}s" + "".join(f", {out.name}" for out in outputs[1:])
        rows.append(
            (
                name,
                answers,
                *(f"{score:.3f}" if isinstance(score, float) else "–" for score in scores),
                f"{max(file.stat().st_size for file in folder.glob('model.*')) / 1e6:.1f}",
                *(("–", "–", "–") if known is None else (f"{known.parameters:,}", f"{known.gmac:.3f}", known.paper)),
                str(training.get("data", "–")),
                str(training.get("licence", "–")),
            )
        )
    return aligned(rows, room())
