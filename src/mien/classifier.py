"""From face crops to expressions: an engine, labels and preprocessing, read from one checkpoint."""

import difflib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mien.checkpoint import FEATURES, labels_of, outputs_of, read_header, tensor_names
from mien.engines import Engine, TorchEngine, open_model
from mien.engines.graph import external_files
from mien.errors import CheckpointError, MienError, require
from mien.faces import Source, crop, open_picture
from mien.faces.sources import is_source
from mien.files import whole
from mien.precision import choose, int8_beside

MODELS = Path(__file__).with_name("models")
"""A folder with a folder for each model that comes with mien."""

DEFAULT_MODEL = "mobilefacenet_ferplus"

EXPLAINED_MODEL = "apvit_mobile_ferplus"
"""The model whose patches and attention are drawn if none is named: it drops patches, and has a class token."""

_FILES = ("model.onnx", "model.safetensors", "model.xml", "model.pt2")
"""The model files of a folder, in order of preference: ONNX needs no torch. model.bin has the weights of model.xml."""

_BESIDE = ("model.bin", "model.onnx?data", "model.int8.onnx", "temporal.onnx")
"""Weights of model.xml, such of model.onnx as exporters call them, model.onnx in int8, and what joins a track's
features."""

_NOTES = ("README.md", "config.json", "calibration.png")


Answer = Mapping[str, np.ndarray]
"""What a model says of one face: by the name of each output an array of the output's shape, and of a model that gives
them the "features" (D,)."""


class Classifier:
    """Reads the expressions of faces that are cut out already.

    classifier = Classifier.from_pretrained()
    classifier.predict([face])        # ["happiness"]
    classifier.predict_proba([face])  # (1, C) float32, a column for each of classifier.labels

    A model may answer more than one question: `outputs` are those that it answers, the expression first. Threads may
    share one.

    engine: uint8 (N, S, S, 3) RGB -> the tensors that `mien.checkpoint.tensor_names` lists.
    header: what `mien.checkpoint.check_header` describes.
    path: the file that both come from, which `save_pretrained` copies; None (default) if there is none.
    """

    def __init__(self, engine: Engine, header: Mapping[str, Any], path: Path | None = None):
        self.engine, self.header, self.path = engine, header, path
        self.outputs = outputs_of(header)
        self.labels = self.outputs[0].labels
        self._tensors = tensor_names(header)[1 : 1 + len(self.outputs)]

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        trust: bool = False,
    ) -> "Classifier":
        """Open a model.

        model: the name of one that comes with mien (by default its best); a .onnx, .safetensors, .xml (with its .bin)
            or .pt2 file; a folder with such a file that is called "model"; or "owner/name" on the Hugging Face Hub,
            "owner/name@revision" for a branch, a tag or a commit of it.
        device: "auto", "cpu" or "cuda".
        precision: "fp32", "bf16", "int8" (a .onnx file with its int8 file beside it) or "auto" (default), the fastest
            on this CPU that costs next to no accuracy: see `mien.precision.choose`.
        trust: build the network of whatever classes the header of a .safetensors file names; by default, of mien's
            classes only.

        Raises CheckpointError for a model that is missing, damaged or unknown, and MissingExtra if a .safetensors or
        .pt2 file needs torch, or a model on the Hub huggingface_hub, which is not installed.
        """
        path = find_model(model)
        header = read_header(path)
        file, precision = choose(path, header, device=device, precision=precision)
        if path.suffix != ".safetensors":
            engine = open_model(file, device=device, precision=precision)
        else:
            require("torch", "torch")
            require("safetensors", "torch")
            from mien.networks import deploy, load_network

            deployed = deploy(load_network(path, trust=trust), header)
            engine = TorchEngine(deployed, outputs=tensor_names(header), device=device, precision=precision)
        return cls(engine, header, path)

    def predict_proba(self, images: Any, *, batch_size: int = 32) -> np.ndarray:
        """The probability of each label, (N, C) float32, for N face crops of any size.

        images: a list of pictures, each a path, bytes, an opened file, a Pillow picture or an array, as
            `mien.faces.open_picture` takes them; or one tensor or array (N, 3, H, W), uint8 or float from 0 to 1.
        batch_size: how many faces the network reads at a time, 1 or more (default 32).

        Raises ValueError for anything else, and ReadError for what is no picture.
        """
        if batch_size < 1:
            raise ValueError(f"a batch holds at least one face, not {batch_size}")
        images = _pictures(images)
        probs = [np.empty((0, len(self.labels)), np.float32)]
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            probs.append(self.run(np.stack([self.crop(open_picture(image)) for image in chunk])))
        return np.concatenate(probs)

    def predict(self, images: Any, *, batch_size: int = 32) -> list[str]:
        """The likeliest label of each face crop; images as for `predict_proba`."""
        return [self.labels[best] for best in self.predict_proba(images, batch_size=batch_size).argmax(1)]

    def crop(
        self, image: np.ndarray, landmarks: np.ndarray | None = None, box: Sequence[float] | None = None
    ) -> np.ndarray:
        """The crop (S, S, 3) uint8 of a face in image (H, W, 3) uint8 RGB that the network sees: `mien.faces.crop`."""
        return crop(image, self.header["preprocess"], landmarks, box)

    def run(self, crops: np.ndarray) -> np.ndarray:
        """The probability of each label, (N, C) float32, for crops (N, S, S, 3) uint8 that `crop` made."""
        return self.answers(crops)[self.outputs[0].name]

    def read(self, crops: np.ndarray) -> list[Answer]:
        """What `answers` gives, face by face: for each of the N crops the answer of every output by its name, and its
        features where the model gives them."""
        answers = self.answers(crops)
        return [{name: values[i] for name, values in answers.items()} for i in range(len(crops))]

    def answers(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """The answer of every output by its name, (N, …) float32 as its kind says, of crops as for `run`.

        Raises CheckpointError for answers of another shape, out of range, or that are not numbers.
        """
        values = self.engine(crops)
        answers = {}
        if FEATURES in self.header:
            answers[FEATURES] = values.get(FEATURES)
            if np.shape(answers[FEATURES]) != (len(crops), self.header[FEATURES]):
                raise CheckpointError(f"{self.path}: gives no features of {self.header[FEATURES]} numbers a face")
        for output, tensor in zip(self.outputs, self._tensors, strict=True):
            if tensor not in values:
                raise CheckpointError(f"{self.path}: gives no {tensor}, only {', '.join(sorted(values))}")
            try:
                answers[output.name] = output.check(values[tensor])
            except ValueError as error:
                raise CheckpointError(f"{self.path}: {error}") from error
            if len(values[tensor]) != len(crops):
                raise CheckpointError(f"{self.path}: {len(values[tensor])} answers for {len(crops)} faces")
        return answers

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model's files, config.json (the header) and README.md into `folder`.

        The folder is made if it is missing; `from_pretrained(folder)` opens it again.

        Raises MienError for a classifier that was not opened from a file.
        """
        if self.path is None:
            raise MienError("a classifier that was not opened from a file cannot be saved")
        folder, source = Path(folder), self.path.parent
        whole = self.path.name in _FILES  # otherwise one file among others, such as a training run's
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in {Path(name).suffix for name in _FILES} if whole else [self.path.suffix]:
            origin = source / f"model{suffix}" if whole else self.path
            for part in [origin.with_suffix(".bin"), origin] if suffix == ".xml" else [origin]:
                if origin.exists():
                    _write(folder / f"model{part.suffix}", part.read_bytes())
            for part in external_files(origin) if origin.exists() else []:
                _write(folder / part.name, part.read_bytes())
        if (joins := source / self.header.get("temporal", {}).get("file", "")).is_file():
            _write(folder / joins.name, joins.read_bytes())
        if "int8" in self.header.get("precision", {}) and (small := int8_beside(self.path)).exists():
            _write(folder / "model.int8.onnx", small.read_bytes())
        card, plot = source / "README.md", source / "calibration.png"
        text = card.read_text("utf-8") if whole and card.exists() else model_card(self.header)
        if whole and plot.exists():
            _write(folder / plot.name, plot.read_bytes())
        _write(folder / "README.md", text.encode())
        _write(folder / "config.json", json.dumps(self.header, indent=2).encode())

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, message: str = "Upload model"
    ) -> str:
        """Upload the model to the Hugging Face Hub, and return its address there.

        repo_id: "owner/name"; the repository is made if it is missing.
        private: whether a new repository is private (default: public).
        token: of the Hub; by default the one that its client has stored.
        message: of the commit.

        Needs the extra [hub]. Raises MienError if the Hub refuses.
        """
        hub = require("huggingface_hub", "hub")
        api = hub.HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            with _hub_errors(repo_id):
                address = api.create_repo(repo_id, private=private, exist_ok=True)
                api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        return str(address)


def find_model(model: str | os.PathLike[str] | None = None) -> Path:
    """The file of a model that is named as for `Classifier.from_pretrained`; CheckpointError if there is none."""
    name = os.fspath(DEFAULT_MODEL if model is None else model)
    path = Path(name)
    if path.is_dir():
        return _file_in(path)
    if path.suffix in (".onnx", ".safetensors", ".xml", ".pt2") or path.exists():
        return path  # whoever reads it says what is wrong with it
    if re.fullmatch(r"\w[\w.-]*", name) and (MODELS / name).is_dir():
        return _file_in(MODELS / name)
    if isinstance(model, str) and (hub := re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?", name)):
        return _file_in(_download(*hub.groups()))
    if name in pinned_models():
        if (folder := fetched_models() / name).is_dir():
            return _file_in(folder)
        raise CheckpointError(f"{name}: not on this computer: mien fetch {name} gets it")
    near = difflib.get_close_matches(name, [file.parent.name for file in MODELS.glob("*/model.*")], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise CheckpointError(
        f"{name}: no such model (a file, a folder, owner/name or owner/name@revision on the Hub, or one that mien list "
        f"shows){hint}"
    )


def pinned_models() -> dict[str, dict[str, str]]:
    """The models that `mien fetch` gets: of each name the SHA-256 of every file."""
    return json.loads((MODELS / "fetched.json").read_text())


def fetched_models() -> Path:
    """The folder of fetched models: $MIEN_MODELS, else mien/models in $XDG_DATA_HOME or ~/.local/share.

    Raises CheckpointError where the user has no home.
    """
    if named := os.environ.get("MIEN_MODELS"):
        return Path(named)
    base = os.environ.get("XDG_DATA_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        return (Path(base) if base else Path.home() / ".local/share") / "mien/models"
    except RuntimeError as error:
        raise CheckpointError("no home folder for models: set MIEN_MODELS to a folder") from error


def find_checkpoint(model: str | os.PathLike[str] | None = None) -> Path:
    """The same, but the .safetensors file of a folder or of a model that comes with mien, if it has one."""
    path = find_model(model)
    other = path.with_suffix(".safetensors")
    return other if path != Path(model or "") and other.exists() else path


def model_card(header: Mapping[str, Any]) -> str:
    """A README.md for a model that has none, made from its header."""
    training = header.get("training", {})
    facts = "\n".join(f"- {name}: {_as_text(value)}" for name, value in training.items())
    return f"""---
library_name: mien
pipeline_tag: image-classification
tags: [facial-expression-recognition]
---
# {header["model"]["class_path"].rpartition(".")[2]}

Reads the expression of a face: {", ".join(labels_of(header))}.

```python
import mien

reader = mien.Reader.from_pretrained("this folder, or its name on the Hub")
print(reader("photograph.jpg"))
```

{facts}
"""


def _write(path: Path, data: bytes) -> None:
    with whole(path) as file:
        file.write(data)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _file_in(folder: Path) -> Path:
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    suffixes = {Path(name).suffix for name in _FILES}
    models = [str(path) for path in sorted(folder.iterdir()) if path.suffix in suffixes]
    one = f"; name one of {', '.join(models)}" if models else ""  # the folder of a run, for example
    raise CheckpointError(f"{folder}: neither model.onnx nor model.safetensors in it, nor model.xml or model.pt2{one}")


def _download(repo_id: str, revision: str | None) -> Path:
    hub = require("huggingface_hub", "hub")
    with _hub_errors(f"{repo_id}@{revision}" if revision else repo_id):
        files = [name for name in _FILES if name != "model.pt2"]  # which is a program: none is fetched
        return Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=[*files, *_BESIDE, *_NOTES]))


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Say in one line why the Hub refuses."""
    try:
        yield
    except Exception as error:  # those of its client have no base of their own: httpx's, httpx2's, OSError, ValueError
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise MienError(f"{repo_id} on the Hub: {reason}") from error


def _pictures(images: Any) -> Sequence[Source] | np.ndarray:
    """A list of pictures, out of all that `predict_proba` takes."""
    if isinstance(images, list | tuple):
        for image in images:
            if not is_source(image):
                raise ValueError(f"a face is a path, bytes, an opened file, a picture or an array, not {_kind(image)}")
        return images
    if hasattr(images, "detach"):  # a tensor of torch, which need not be installed
        images = images.detach().cpu()
        images = (images.float() if images.is_floating_point() else images).numpy()
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"faces are a list of pictures or one tensor (N, 3, H, W), not {_kind(images)}")
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating) or not np.all((images >= 0) & (images <= 1)):
            raise ValueError("a tensor of faces is uint8, or float from 0 to 1: do not normalise it")
        images = np.rint(images * np.float32(255)).astype(np.uint8)
    return list(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))


def _kind(thing: Any) -> str:
    shape = f" of shape {tuple(thing.shape)}" if isinstance(thing, np.ndarray) else ""
    return type(thing).__name__ + shape
