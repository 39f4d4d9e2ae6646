"""A model as OpenVINO's IR: an .xml file, and a .bin with its weights beside it."""

import json
import os
import sys
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from mien.checkpoint import KEY, check_header
from mien.engines.openvino import WEIGHTS_CHECK, shared_core
from mien.files import whole


def write_ir(path: str | os.PathLike[str], model: onnx.ModelProto, header: Mapping[str, Any]) -> None:
    """Write a model as IR, both files or neither.

    The `rt_info` of the .xml holds the header, and the checksum of the .bin, which shows that the two belong together.

    path: of the .xml. model: as `make_onnx` makes it; weights stay fp32, fp16 or int8. header: what
    `mien.checkpoint.check_header` describes.
    """
    path = Path(path)
    check_header(header, path)
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]  # OpenVINO would keep it as a second header
    core = shared_core()
    network = core.read_model(bare.SerializeToString())
    network.set_rt_info(json.dumps(header, ensure_ascii=False), [KEY])
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"model.{kind}") for kind in ("xml", "bin")]
        serialize = sys.modules["openvino"].serialize
        serialize(network, *map(str, files))
        network.set_rt_info(str(zlib.crc32(files[1].read_bytes())), [WEIGHTS_CHECK])
        serialize(network, *map(str, files))
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path.with_suffix(".bin")) as weights, whole(path) as graph:
            weights.write(files[1].read_bytes())
            graph.write(files[0].read_bytes())
