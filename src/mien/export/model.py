"""A checkpoint as the files that other engines run, checked before they are written."""

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mien.checkpoint import labels_of, read_header
from mien.classifier import Classifier, find_checkpoint
from mien.data import DataSet
from mien.engines import computes_bf16, open_model
from mien.errors import MienError, MienWarning, Misuse, require
from mien.evaluation.compare import Comparison, compare, read_side_by_side
from mien.evaluation.measure import Data, choose_split, open_labelled, sample, targets
from mien.export.ir import write_ir
from mien.export.onnx import make_onnx, write_onnx
from mien.export.program import export_program
from mien.export.temporal import open_temporal, temporal_onnx, with_temporal
from mien.faces import crop
from mien.files import whole
from mien.networks import Network, load_network, save_network
from mien.networks.checkpoint import write_header

CALIBRATION = 256
"""Training faces from which the ranges of int8 are taken."""

LOSS = 0.01
"""Of accuracy; a file that loses more against torch is not written."""

KINDS = (".onnx", ".xml", ".pt2")


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Two ways to compute one model, on the same labelled faces. `str` of it is a table for a person.

    names: of both. accuracy: the share that each has right. cpu_ms: processor time a face, in milliseconds.
    difference: what the second changes.
    """

    names: tuple[str, str]
    accuracy: tuple[float, float]
    cpu_ms: tuple[float, float]
    difference: Comparison

    def __str__(self) -> str:
        wide = max(map(len, self.names))
        lines = [f"{'':{wide}}  accuracy  CPU-ms a face  speed"]
        for name, right, ms in zip(self.names, self.accuracy, self.cpu_ms, strict=True):
            lines.append(f"{name:{wide}}  {right:>8.4f}  {ms:>13.2f}  {self.cpu_ms[0] / ms:>4.1f}×")
        return "\n".join([*lines, str(self.difference)])


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export_model` wrote.

    path: the file to open. files: all that were written.
    header: what the file says of itself.
    checked: the file beside torch. measured: bf16 beside fp32. None where that was not wanted, or could not be.
    """

    path: Path
    files: tuple[Path, ...]
    header: Mapping[str, Any] = field(repr=False)
    checked: SideBySide | None = None
    measured: SideBySide | None = None


class AccuracyLost(MienError):
    """A file that was not written, since it reads fewer faces right; `checked` says how many."""

    def __init__(self, out: Path, checked: SideBySide):
        super().__init__(f"{out}: not written, it loses {-checked.difference.accuracy_difference:.1%} of accuracy")
        self.out, self.checked = out, checked

    def __reduce__(self):
        return type(self), (self.out, self.checked)


def export_model(
    source: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    precision: Literal["fp32", "fp16", "int8"] | None = None,
    check: Data | None = None,
    calibrate: Data | None = None,
    measure: Data | None = None,
    split: str | None = None,
    format: str | None = None,
    labels: Sequence[str] | str | None = None,
    limit: int | None = None,
    features: bool = False,
    temporal: str | os.PathLike[str] | None = None,
    trust: bool = False,
    progress: bool = False,
) -> Exported:
    """Write a model for other engines: what `mien export` does. All files are written, or none.

    source: a model's name, a .safetensors file, a folder with one, or "owner/name" on the Hub; None is the best.
    out: a .onnx, an .xml (beside it a .bin) or a .pt2 file; or a folder, for model.safetensors and model.onnx.
    precision: weights stored as "fp32" or "fp16", or convolutions computed in "int8". By default "fp16" in a folder,
        and for a file if it holds the weights without loss.
    check: labelled pictures. A file whose accuracy is more than 0.01 below torch's is not written.
    calibrate: labelled pictures, of whose training faces 256 give int8 its ranges; by default those of `check`.
    measure: labelled pictures, on which the header is to say what bf16 does to the answers.
    split, limit: the split and the number of faces of `check` and `measure`; by default validation, else test, else
        the only one, and all of them.
    features: give what the network's head reads as a further output, "features". temporal: the .safetensors file of a
        temporal model that learnt of those features: its graph is written beside, as temporal.onnx in a folder and else
        as NAME.temporal.onnx, and the header names it; then features are given, too.
    trust: as for `mien.load_network`. progress: show a bar on stderr.

    Data are a data set, or the path of one, which `mien.data.open_for` opens as format and labels say.

    Warns (MienWarning) where bf16 cannot be measured. Raises Misuse for arguments that do not go together;
    AccuracyLost; CheckpointError and MienError for a model or data that cannot be read; MissingExtra without the extra
    [export].
    """
    out = Path(out)
    folder = out.is_dir() or not out.suffix
    kind, int8 = ".onnx" if folder else out.suffix, precision == "int8"
    _check_options(out, kind, folder, precision, check, calibrate, measure)
    if int8 and (features or temporal is not None):
        raise Misuse("features are of a model in fp32 or fp16: int8 would change what a temporal model learnt of")
    for module in ("onnxscript", *(["onnxruntime.quantization"] if int8 else [])):
        require(module, "export")
    path = find_checkpoint(source)
    header = dict(read_header(path))
    opened = cache(lambda data: open_labelled(data, format, labels, model=path))  # each set once
    for data in (calibrate, check, measure):
        if data is not None:
            opened(data)  # before the work, not after it
    calibrating = _calibrating_split(opened, calibrate, check, split) if int8 else ""
    compared = partial(_side_by_side, split=split, limit=limit, progress=progress)

    network = load_network(path, trust=trust)
    joined, file = None, ""
    if temporal is not None:
        file = "temporal.onnx" if folder else f"{out.stem}.temporal.onnx"
        joined = open_temporal(temporal, network, labels_of(header), trust)
    if features or joined:
        if not isinstance(network, Network):
            raise MienError(f"{path}: {type(network).__name__} has no one vector of features")
        header = with_temporal(header, network, file)
    checked = measured = None
    with tempfile.TemporaryDirectory() as name:
        weights, graph = Path(name, "model.safetensors"), Path(name, f"model{kind}")
        if precision in ("fp16", "int8") or (folder and not precision):
            save_network(weights, network, header, torch.float16)
            network = load_network(weights, trust=trust)
        elif folder:
            save_network(weights, network, header)
        half = precision != "fp32"
        if kind == ".pt2":
            export_program(graph, network, header, half=half)
        else:
            faces = None
            if int8:
                faces = _training_faces(opened(calibrate or check), calibrating, header)
                header.pop("precision", None)  # of bf16 in place of fp32, which is another matter here
            model = make_onnx(network, header, half=half, calibration=faces)
            write = write_ir if kind == ".xml" else write_onnx
            write(graph, model, header)
            if measure is not None and not computes_bf16():
                left_out = "what bf16 does to the answers was not measured: this CPU does not compute in it"
                warnings.warn(left_out, MienWarning, stacklevel=2)
            elif measure is not None:
                measured = compared(opened(measure), {name: _classifier(graph, name) for name in ("fp32", "bf16")})
                header["precision"] = {**header.get("precision", {}), "bf16": _plain(measured.difference)}
                write(graph, model, header)
                if folder:
                    write_header(weights, header)
        if check is not None:
            exact = Classifier.from_pretrained(path, device="cpu", precision="fp32", trust=trust)
            other = _classifier(graph, "fp32")
            runs = "torch" if kind == ".pt2" else type(other.engine).__name__.removesuffix("Engine")
            checked = compared(opened(check), {f"{path}, torch": exact, f"{out}, {runs}": other})
            if checked.difference.accuracy_difference < -LOSS:
                raise AccuracyLost(out, checked)
        files = {graph: out}
        if folder:
            files = {each: out / each.name for each in (weights, graph)}
        elif kind == ".xml":
            files = {graph.with_suffix(".bin"): out.with_suffix(".bin"), **files}
        if joined:
            write_onnx(Path(name, file), temporal_onnx(*joined), joined[1])
            files[Path(name, file)] = (out if folder else out.parent) / file
        with ExitStack() as stack:  # all of them or none
            for made, target in files.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(whole(target)).write(made.read_bytes())
    return Exported(files[graph], tuple(files.values()), header, checked, measured)


def _check_options(
    out: Path,
    kind: str,
    folder: bool,
    precision: str | None,
    check: Data | None,
    calibrate: Data | None,
    measure: Data | None,
) -> None:
    int8 = precision == "int8"
    if kind not in KINDS:
        raise MienError(
            f"{out}: export writes a .onnx, .xml or .pt2 file or a folder; the checkpoint that it reads is --model"
        )
    for wrong, reason in (
        (precision not in (None, "fp32", "fp16", "int8"), f"no such precision: {precision!r}"),
        (int8 and folder, "int8 writes a file, .onnx or .xml, and no folder"),
        (int8 and kind == ".pt2", "int8 is for .onnx and .xml: torch by itself has no convolutions in int8 to export"),
        (
            int8 and calibrate is None and check is None,
            "int8 takes data to calibrate with, or data to check with that has training faces as well",
        ),
        (calibrate is not None and not int8, "data to calibrate with goes with precision int8"),
        (measure is not None and int8, "what is measured is what bf16 does to a model that is not int8 already"),
        (measure is not None and kind == ".pt2", "what is measured is OpenVINO's bf16, and torch runs a .pt2"),
    ):
        if wrong:
            raise Misuse(reason)


def _calibrating_split(
    opened: Callable[[Data], DataSet], calibrate: Data | None, check: Data | None, split: str | None
) -> str:
    """That of the faces from which int8 takes its ranges, which are not those that check it."""
    if calibrate is not None:
        return choose_split(opened(calibrate), prefer=("train",))
    data = opened(check)
    if "train" not in data.splits or choose_split(data, split) == "train":
        raise Misuse(f"{data} has no training faces beside those to check with: name others to calibrate with")
    return "train"


def _training_faces(data: DataSet, split: str, header: Mapping[str, Any]) -> np.ndarray:
    """(CALIBRATION, S, S, 3) uint8."""
    return np.stack([crop(row.image(), header["preprocess"]) for row in sample(data.rows(split), CALIBRATION)])


def _classifier(graph: Path, precision: str) -> Classifier:
    """Of a file that may not stay: what is compiled of it is not kept."""
    return Classifier(open_model(graph, device="cpu", precision=precision, cache=False), read_header(graph), graph)


def _side_by_side(
    data: DataSet, classifiers: Mapping[str, Classifier], *, split: str | None, limit: int | None, progress: bool
) -> SideBySide:
    first, second = classifiers
    rows = sample(data.rows(choose_split(data, split)), limit)
    target = targets(classifiers[first], data, rows)
    answers = read_side_by_side(classifiers, rows, progress=progress)
    found = compare(answers[first].probs, answers[second].probs, target)
    times = answers[first].cpu_ms, answers[second].cpu_ms
    return SideBySide((first, second), (found.accuracy, found.other_accuracy), times, found)


def _plain(found: Comparison) -> dict[str, Any]:
    """A comparison as a header has it."""
    return {
        "accuracy_difference": round(found.accuracy_difference, 6),
        "interval": [round(end, 6) for end in found.interval],
        "faces": found.faces,
        "mean_distance": round(found.mean_distance, 6),
    }
