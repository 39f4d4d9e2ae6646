"""OpenVINO on the CPU, and the folder that keeps what it compiled."""

import hashlib
import importlib
import io
import os
import re
import sys
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mien.engines.graph import check_layers, external_files
from mien.engines.process import FileEngine, computing, leak
from mien.engines.work import check_work
from mien.errors import CheckpointError
from mien.files import whole

STREAMS = 4
"""How many requests run at once, each on one thread, where there are as many cores; memory grows with each."""

SIDE_BY_SIDE = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": STREAMS, "INFERENCE_NUM_THREADS": STREAMS}
ALONE = {"NUM_STREAMS": 0, "INFERENCE_NUM_THREADS": 1}
"""With 0 streams a request runs on the thread that asks. In a process that a fork made nothing else will do: OpenVINO
keeps the threads of freed models for the next with the same settings, and there would wait for those of the parent."""

CHUNK = 4
"""Rows of a request: each takes 10 MB while it runs, and longer requests are no faster."""

WEIGHTS_CHECK = "mien_weights"
"""Under which an .xml may hold the crc32 of its .bin: OpenVINO reads either beside a stranger."""

_importing = threading.Lock()
_core: Any = None
_forked = False


class OpenVINOEngine(FileEngine):
    """A model file in OpenVINO, on the CPU, one thread a request.

    path: a .onnx, .xml or .tflite file.
    precision: "fp32" or "auto", which are the same, "bf16", or "int8" for a file whose convolutions are int8 already;
        auto. A CPU without bf16 computes in fp32, as the attribute `precision` then says.
    cache: keep what OpenVINO compiles in the user's cache folder; True.
    shape: replaces the input's, -1 where it varies; None keeps the file's.

    One thread spends the least CPU time on a picture: two that wait for each other took 13 ms together where one took
    10. Cores are put to use by rows of a batch, and by threads that share the engine, running side by side.

    It may be carried over a fork, where it then computes on the threads that call it, and pickled: see `FileEngine`.

    Raises CheckpointError, naming the file, where no model can be made of it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        precision: str = "auto",
        cache: bool = True,
        shape: Sequence[int] | None = None,
    ):
        super().__init__(path, precision=precision, cache=cache, shape=None if shape is None else list(shape))
        model = self._get().model
        taken = model.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.precision = "bf16" if taken == "bf16" else "fp32"  # a CPU without bf16 takes fp32, whatever is asked for
        if precision == "int8":
            self.precision = precision
        self._streams = max(1, int(model.get_property("NUM_STREAMS")))
        self._names = [sorted(port.get_names()) for port in model.outputs]
        self._splits = model.input(0).get_partial_shape()[0].is_dynamic
        self.outputs = tuple(name for names in self._names for name in names)

    def _open(self, path: Path, options: dict[str, Any]) -> tuple["_Compiled", int]:
        settings = {
            **(ALONE if _forked else SIDE_BY_SIDE),
            "ENABLE_CPU_PINNING": False,
            # left alone, OpenVINO takes bf16 wherever the CPU has it
            "INFERENCE_PRECISION_HINT": "bf16" if options["precision"] == "bf16" else "f32",
        }
        model, checksum = _compile(path, settings, options["cache"], options["shape"])
        return _Compiled(model), checksum

    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """x (B, …) -> every output by each of its names."""
        x = np.require(x, requirements=("C", "W"))  # OpenVINO reads the array itself, and wants it writable
        parts = [x]
        if self._splits and len(x) > 1:
            parts = np.array_split(x, max(-(-len(x) // CHUNK), min(self._streams, len(x))))
        if len(parts) == 1:
            columns = [[value] for value in self._run(parts)[0]]
        else:
            runs = []
            for first in range(0, len(parts), self._streams):
                runs += self._run(parts[first : first + self._streams])
            columns = [list(column) for column in zip(*runs, strict=True)]
        values = [column[0] if len(column) == 1 else np.concatenate(column) for column in columns]
        return {name: value for names, value in zip(self._names, values, strict=True) for name in names}

    def _run(self, parts: list[np.ndarray]) -> list[list[np.ndarray]]:
        """Side by side, as many parts as there are streams at most."""
        tensor = sys.modules["openvino"].Tensor
        compiled = self._get()
        requests = compiled.mine.__dict__.setdefault("requests", [])
        while len(requests) < len(parts):
            requests.append(compiled.model.create_infer_request())
        busy = requests[: len(parts)]
        try:
            with computing():
                for request, part in zip(busy, parts, strict=True):
                    request.set_input_tensor(tensor(part, shared_memory=True))
                    request.start_async()
                for request in busy:
                    request.wait()
        except RuntimeError as error:  # of its graph, which may hold whatever a stranger put there
            raise self._cannot(error) from error
        return [[output.data.copy() for output in request.output_tensors] for request in busy]

    def _cannot(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self._path}: cannot be run on these faces ({_last_line(error)})")


def _last_line(error: Exception) -> str:
    return next(filter(None, map(str.strip, reversed(str(error).splitlines()))), type(error).__name__)


class _Compiled:
    """A compiled model, and the requests of each thread, since one serves one thread at a time."""

    def __init__(self, model: Any):
        self.model, self.mine = model, threading.local()


def cpu_capabilities() -> list[str]:
    """What this CPU has instructions for, as OpenVINO names it: "FP32", "INT8", "BF16", …"""
    return shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def cache_folder() -> Path:
    """Where compiled models are kept: $MIEN_CACHE, else mien in $XDG_CACHE_HOME or ~/.cache; it may be emptied.

    Raises RuntimeError where the user has no home.
    """
    if named := os.environ.get("MIEN_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mien"


def _compile(path: Path, settings: dict[str, Any], cache: bool, shape: list[int] | None) -> tuple[Any, int]:
    """The compiled model, and a checksum of what it was made of."""
    data = [_read(path, "no such file")]
    if path.suffix == ".xml":
        weights = path.with_suffix(".bin")
        data.append(_read(path, f"its weights, {weights.name}, are not beside it", weights))
        check = re.search(rb'<%b value="(\d+)"' % WEIGHTS_CHECK.encode(), data[0])
        if check and int(check[1]) != zlib.crc32(data[1]):
            raise CheckpointError(f"{path}: {weights.name} beside it is damaged, or of another model")
        check_layers(path, data[0])
    beside = external_files(path, data[0])
    tensors = [_read(path, f"{file.name} is not beside it", file) for file in beside]
    everything = b"".join([*data, *(len(one).to_bytes(8) + one for one in tensors)])
    core = shared_core()
    kept = _kept_at(core, everything, settings, shape, path.stem) if cache else None
    model = None if kept is None else _recall(core, kept, settings)
    if model is None:
        try:
            # by its name where tensors lie beside it: of bytes OpenVINO looks for them in the working directory;
            # and TFLite, which it does not know by its bytes
            named = beside or path.suffix == ".tflite"
            network = core.read_model(os.path.abspath(path)) if named else core.read_model(*data)
            if shape is not None:
                network.reshape(shape)
            check_work(path, network)
            model = core.compile_model(network, "CPU", settings)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: no model that OpenVINO can run ({_last_line(error)})") from error
        if kept is not None:
            _keep(model, kept)
    return model, zlib.crc32(everything)


def _read(path: Path, missing: str, file: Path | None = None) -> bytes:
    """The file, or another that belongs to it."""
    try:
        return (file or path).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: {missing}") from error
    except OSError as error:
        raise CheckpointError(f"{file or path}: {(error.strerror or str(error)).lower()}") from error


def _kept_at(core: Any, data: bytes, settings: dict[str, Any], shape: list[int] | None, stem: str) -> Path | None:
    """The file for just this model, its settings, this OpenVINO and this CPU.

    OpenVINO's own cache would do, but for two things: it has no checksum, so that a block of zeros in it changes
    probabilities unnoticed, and it parses the model before it looks.
    """
    version = sys.modules["openvino"].__version__
    maker = (version, core.get_property("CPU", "FULL_DEVICE_NAME"), sorted(settings.items()), shape)
    key = hashlib.sha256(repr(maker).encode() + data).hexdigest()[:32]
    try:
        return cache_folder() / f"{stem}-{key}.compiled"
    except RuntimeError:
        return None


def _recall(core: Any, kept: Path, settings: dict[str, Any]) -> Any | None:
    """The compiled model that `kept` holds behind a checksum of 4 bytes; None where there is none that is whole."""
    try:
        data = memoryview(kept.read_bytes())
        if len(data) > 4 and int.from_bytes(data[:4]) == zlib.crc32(data[4:]):
            return core.import_model(io.BytesIO(data[4:]), "CPU", settings)
    except (OSError, RuntimeError):
        pass  # compiled anew, which costs a third of a second and overwrites it
    return None


def _keep(model: Any, kept: Path) -> None:
    """Write whole or not at all; a folder that cannot be written to costs a slower start, and nothing else."""
    model.export_model(stream := io.BytesIO())  # what it would return is of another type in each version
    data = stream.getvalue()
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with whole(kept) as file:
            file.write(zlib.crc32(data).to_bytes(4))
            file.write(data)


def shared_core() -> Any:
    """OpenVINO's core, imported when first needed and without its telemetry: `import openvino` reports to Google.

    Of the package that reports only the absence is pretended, and only meanwhile; OpenVINO then has nothing to call.
    """
    global _core
    with _importing:
        if _core is None:
            name = "openvino_telemetry"
            before = sys.modules.get(name)
            sys.modules[name] = None  # type: ignore[assignment]
            try:
                _core = importlib.import_module("openvino").Core()
            finally:
                del sys.modules[name]
                if before is not None:
                    sys.modules[name] = before
        return _core


def _after_fork() -> None:
    """The parent's core has its threads there, and another thread may have held the lock."""
    global _core, _importing, _forked
    _importing, _forked = threading.Lock(), True
    if _core is not None:
        leak(_core)
        _core = None


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
