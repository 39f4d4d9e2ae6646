"""A checkpoint as the files that other engines run, checked before they are written."""

import hashlib
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
from mien.engines import computes_bf16
from mien.errors import MienError, MienWarning, Misuse, require
from mien.evaluation.measure import Data, choose_split, open_labelled, sample
from mien.export.ir import write_ir
from mien.export.onnx import make_onnx, write_onnx
from mien.export.program import export_program
from mien.export.side_by_side import SideBySide, open_graph, put_side_by_side
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
class Exported:
    """What `export_model` wrote.

    path: the file to open.
    files: all that were written.
    header: what the file says of itself.
    checked: the file beside torch; None where that was not wanted.
    measured: bf16 beside fp32; None where that was not wanted, or could not be.
    int8: the int8 file of a folder beside its fp32; None where there is none.
    """

    path: Path
    files: tuple[Path, ...]
    header: Mapping[str, Any] = field(repr=False)
    checked: SideBySide | None = None
    measured: SideBySide | None = None
    int8: SideBySide | None = None


class AccuracyLost(MienError):
    """A file that was not written, since it reads fewer faces right.

    out: the file that would have been written.
    checked: how many faces it and torch read right.
    """

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
    out: a .onnx, an .xml (beside it a .bin) or a .pt2 file; or a folder, for model.safetensors and model.onnx, and
        with `calibrate` for model.int8.onnx, whose loss is measured and written into the header of the others.
    precision: weights stored as "fp32" or "fp16", or convolutions computed in "int8". By default "fp16" in a folder,
        and for a file if it holds the weights without loss.
    check: labelled pictures. A file whose accuracy is more than 0.01 below torch's is not written.
    calibrate: labelled pictures, of whose training faces 256 give int8 its ranges; for a file by default those of
        `check`.
    measure: labelled pictures, on which the header is to say what bf16, and the int8 file of a folder, do to the
        answers. That file is measured on those of `check` where there are none.
    split, limit: the split and the number of faces of `check` and `measure`; by default validation, else test, else
        the only one, and all of them.
    format, labels: as `mien.data.open_for` takes them, of data that are given as a path.
    features: give what the network's head reads as a further output, "features".
    temporal: the .safetensors file of a temporal model that learnt of those features: its graph is written beside, as
        temporal.onnx in a folder and else as NAME.temporal.onnx, and the header names it; then features are given, too.
    trust: as for `mien.load_network`.
    progress: show a bar on stderr.

    Labelled pictures are a data set, or the path of one, which `mien.data.open_for` opens.

    Warns (MienWarning) where bf16 cannot be measured. Raises Misuse for arguments that do not go together;
    AccuracyLost; CheckpointError and MienError for a model or data that cannot be read; MissingExtra without the extra
    [export].
    """
    out = Path(out)
    folder = out.is_dir() or not out.suffix
    kind, int8 = ".onnx" if folder else out.suffix, precision == "int8"
    _check_options(out, kind, folder, precision, check, calibrate, measure)
    quantized = int8 or calibrate is not None
    if quantized and (features or temporal is not None):
        raise Misuse("features are of a model in fp32 or fp16: int8 would change what a temporal model learnt of")
    for module in ("onnxscript", *(["onnxruntime.quantization"] if quantized else [])):
        require(module, "export")
    path = find_checkpoint(source)
    header = read_header(path)
    bare = {name: value for name, value in header.items() if name != "precision"}  # which is of one file in fp32
    found = {name: value for name, value in header.get("precision", {}).items() if name != "int8"}
    header = bare | ({"precision": found} if found and not int8 else {})
    opened = cache(lambda data: open_labelled(data, format, labels, model=path))  # each set once
    for data in (calibrate, check, measure):
        if data is not None:
            opened(data)  # before the work, not after it
    judging = measure if folder and measure is not None else check
    calibrating = _calibrating_split(opened, calibrate, judging, split) if quantized else ""
    compared = partial(put_side_by_side, split=split, limit=limit, progress=progress)

    network = load_network(path, trust=trust)
    joined, file = None, ""
    if temporal is not None:
        file = "temporal.onnx" if folder else f"{out.stem}.temporal.onnx"
        joined = open_temporal(temporal, network, labels_of(header), trust)
    if features or joined:
        if not isinstance(network, Network):
            raise MienError(f"{path}: {type(network).__name__} has no one vector of features")
        header = with_temporal(header, network, file)
    checked = measured = lost = None
    with tempfile.TemporaryDirectory() as name:
        weights, graph, small = (Path(name, f"model{ending}") for ending in (".safetensors", kind, ".int8.onnx"))
        half: bool | Literal["rounded"] = precision != "fp32"
        if precision in ("fp16", "int8") or (folder and not precision):
            save_network(weights, network, header, torch.float16)
            network = load_network(weights, trust=trust)
            half = "rounded"
        elif folder:
            save_network(weights, network, header)
        faces = _training_faces(opened(calibrate or check), calibrating, header) if quantized else None
        if kind == ".pt2":
            export_program(graph, network, header, half=bool(half))
        else:
            model = make_onnx(network, header, half=half, calibration=faces if int8 else None)
            write = write_ir if kind == ".xml" else write_onnx
            write(graph, model, header)
            if measure is not None and not computes_bf16():
                left_out = "what bf16 does to the answers was not measured: this CPU does not compute in it"
                warnings.warn(left_out, MienWarning, stacklevel=2)
            elif measure is not None:
                measured = compared(opened(measure), {name: open_graph(graph, name) for name in ("fp32", "bf16")})
                header["precision"] = {**header.get("precision", {}), "bf16": measured.to_header()}
            if folder and faces is not None:
                write_onnx(small, make_onnx(network, bare, half=half, calibration=faces), bare)
                both = {"fp32": open_graph(graph, "fp32"), "int8": open_graph(small, "int8")}
                lost = compared(opened(judging), both)
                if lost.difference.accuracy_difference < -LOSS:
                    raise AccuracyLost(out / small.name, lost)
                named = {"sha256": hashlib.sha256(small.read_bytes()).hexdigest()}
                header["precision"] = {**header.get("precision", {}), "int8": lost.to_header() | named}
            if measured or lost:
                write(graph, model, header)
                if folder:
                    write_header(weights, header)
        if check is not None:
            exact = Classifier.from_pretrained(path, device="cpu", precision="fp32", trust=trust)
            other = open_graph(graph, "fp32")
            runs = "torch" if kind == ".pt2" else type(other.engine).__name__.removesuffix("Engine")
            checked = compared(opened(check), {f"{path}, torch": exact, f"{out}, {runs}": other})
            if checked.difference.accuracy_difference < -LOSS:
                raise AccuracyLost(out, checked)
        files = {graph: out}
        if folder:
            files = {each: out / each.name for each in (weights, small, graph) if each.exists()}
        elif kind == ".xml":
            files = {graph.with_suffix(".bin"): out.with_suffix(".bin"), **files}
        if joined:
            write_onnx(Path(name, file), temporal_onnx(*joined), joined[1])
            files[Path(name, file)] = (out if folder else out.parent) / file
        with ExitStack() as stack:  # all of them or none
            for made, target in files.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(whole(target)).write(made.read_bytes())
    return Exported(files[graph], tuple(files.values()), header, checked, measured, lost)


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
        (int8 and folder, "int8 writes a file, .onnx or .xml; a folder gets one beside fp32 with data to calibrate"),
        (int8 and kind == ".pt2", "int8 is for .onnx and .xml: torch by itself has no convolutions in int8 to export"),
        (
            int8 and calibrate is None and check is None,
            "int8 takes data to calibrate with, or data to check with that has training faces as well",
        ),
        (calibrate is not None and not (int8 or folder), "data to calibrate with goes with int8 or a folder"),
        (
            folder and calibrate is not None and check is None and measure is None,
            "the int8 file of a folder takes data to check with, on which its loss is measured",
        ),
        (measure is not None and int8, "what is measured is what bf16 does to a model that is not int8 already"),
        (measure is not None and kind == ".pt2", "what is measured is OpenVINO's bf16, and torch runs a .pt2"),
    ):
        if wrong:
            raise Misuse(reason)


def _calibrating_split(
    opened: Callable[[Data], DataSet], calibrate: Data | None, judging: Data | None, split: str | None
) -> str:
    """That of the faces from which int8 takes its ranges, which are not those that judge it."""
    data = opened(judging if calibrate is None else calibrate)
    chosen = choose_split(data, prefer=("train",)) if calibrate is not None else "train"
    same = judging is not None and data is opened(judging)
    if chosen not in data.splits or (same and choose_split(data, split) == chosen):
        raise Misuse(f"{data} has no training faces beside those to check with: name others to calibrate with")
    return chosen


def _training_faces(data: DataSet, split: str, header: Mapping[str, Any]) -> np.ndarray:
    """(CALIBRATION, S, S, 3) uint8."""
    return np.stack([crop(row.image(), header["preprocess"]) for row in sample(data.rows(split), CALIBRATION)])
