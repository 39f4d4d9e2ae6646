"""A raw set made into shards of faces, once: found, aligned, and stored with all that is known of them."""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from PIL import Image
from tqdm import tqdm

from mien.data.dataset import DataSet
from mien.data.parquet import PREPARED
from mien.data.row import Row
from mien.data.video import Frame
from mien.errors import MienError, ReadError, require
from mien.faces import Detection, Detector, YuNet, align, find_known, resize
from mien.faces.align import square
from mien.files import LOCK, alone, whole

_COLUMNS = ("image", "label", "target", "units", "split", "subject", "source", "box", "score", "landmarks", "note")
_FLOATS = ("target", "units", "box", "landmarks")


@dataclass(frozen=True, slots=True)
class Options:
    """How faces are stored.

    align: "detect" finds the face and turns it upright (five landmarks to ArcFace's); "as-is" takes the picture, or the
        part within the set's box; detect.
    size: int, pixels along the side of a face; 112.
    encoding: "png", or "jpeg" of quality 95; png.
    shard_size: int, rows of the set that make a file; 4096.
    """

    align: Literal["detect", "as-is"] = "detect"
    size: int = 112
    encoding: Literal["png", "jpeg"] = "png"
    shard_size: int = 4096


@dataclass(slots=True)
class Prepared:
    """What the shards hold.

    rows: how many, by split.
    not_found: how many faces were not found.
    left_out: an error for each row that was left out.
    """

    rows: Counter[str] = field(default_factory=Counter)
    not_found: int = 0
    left_out: list[ReadError] = field(default_factory=list)


def prepare(
    data: DataSet,
    out: Path,
    options: Options,
    *,
    root: str | os.PathLike[str] = "",
    workers: int | None = None,
    progress: bool = False,
) -> Prepared:
    """Write `out/SPLIT-00000-of-00012.parquet` and so on, each whole or not at all; those that are there stay.

    data: the set.
    out: the folder.
    options: how faces are stored.
    root: paths are stored as seen from there; as they are by default.
    workers: threads that find faces, by default one a processor.
    progress: show a bar on stderr.

    A file holds the same rows of the set whenever it is written, in their order, so that a run that was cut goes on
    where it was. `out/manifest.json` says what the shards are made of: another set, or other options, are refused. A
    face that is not found is stored as it is, with a `note` that says so; a row that cannot be used is left out and
    listed.

    Raises MienError for an `out` that is of something else, or in which another run is at work.
    """
    require("pyarrow.parquet", "parquet")
    items = {split: list(data.read(split)) for split in data.splits}
    base = os.path.join(os.fspath(root), "") if root else ""
    with alone(out):
        _agree(out, _manifest(data, items, options, base))
        detector = YuNet(min_face=0) if options.align == "detect" else None
        rows = [row for part in items.values() for row in part if isinstance(row, Row)]
        groups = sorted({name for row in rows for name in row.groups})
        shards = list(_shards(out, items, options.shard_size))

        def store(item: Row | ReadError) -> dict[str, Any] | ReadError:
            return item if isinstance(item, ReadError) else _store(item, detector, options, base)

        pool = ThreadPoolExecutor(workers or os.cpu_count())
        bar = tqdm(total=sum(map(len, items.values())), unit=" faces", disable=not progress)
        try:
            for path, part in shards:
                if path.exists():
                    bar.update(len(part))
                    continue
                stored = []
                for face in pool.map(store, part):
                    stored.append(face)
                    bar.update()
                _write(path, stored, data, groups)
        finally:
            bar.close()
            pool.shutdown(cancel_futures=True)
        return _sum_up(out, [path for path, _ in shards])


def _shards(out: Path, items: dict[str, list[Any]], size: int) -> Iterator[tuple[Path, list[Any]]]:
    for split, rows in items.items():
        count = -(-len(rows) // size)
        for number in range(count):
            name = f"{quote(split, safe=' ')}-{number:05}-of-{count:05}.parquet"
            yield out / name, rows[number * size : (number + 1) * size]


def _agree(out: Path, manifest: dict[str, Any]) -> None:
    """Refuse a folder of something else; in an empty one, say what it is of."""
    file = out / "manifest.json"
    if not file.exists():
        if others := sorted(path.name for path in out.iterdir() if path.name != LOCK):
            raise MienError(f"{out}: {others[0]} is there, and no manifest.json: not a folder of prepared faces")
        with whole(file) as written:
            written.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")
        return
    try:
        there = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise MienError(f"{file}: damaged ({error})") from error
    for key, value in manifest.items():
        if there.get(key) != value:
            message = "the rows are not" if key == "splits" else f"{key} {there.get(key)} there, {value} here: not"
            raise MienError(f"{out}: {message} those that it was begun with; prepare into another folder")


def _manifest(data: DataSet, items: dict[str, list[Row | ReadError]], options: Options, base: str) -> dict[str, Any]:
    splits = {}
    for split, rows in items.items():
        digest = hashlib.blake2b(digest_size=16)
        for row in rows:
            digest.update(repr(_identity(row, base)).encode(errors="surrogateescape"))
        splits[split] = {"rows": len(rows), "digest": digest.hexdigest()}
    return {
        "mien": 1,
        "reader": type(data).__name__,
        "labels": list(data.labels),
        "units": list(data.units),
        **({"outputs": [output.to_json() for output in data.further]} if data.further else {}),
        "options": asdict(options),
        "splits": splits,
    }


def _identity(row: Row | ReadError, base: str) -> tuple[Any, ...]:
    """All that a stored row is made of; a file stands for its contents by its size and when it was last written."""
    if isinstance(row, ReadError):
        return _below(row.source, base), row.reason.replace(base, "") if base else row.reason
    source = row.source
    if isinstance(source, bytes):
        source = hashlib.blake2b(source, digest_size=16).digest()
    elif isinstance(source, np.ndarray):
        source = hashlib.blake2b(source.tobytes(), digest_size=16).digest(), source.shape
    else:
        try:
            found = os.stat(source.video if isinstance(source, Frame) else source)
            source = found.st_size, found.st_mtime_ns
        except OSError:
            source = None
    units = None if row.units is None else row.units.tolist()
    labels = row.label, row.target.tolist(), units, row.box, row.subject, sorted(row.groups.items())
    targets = sorted((name, np.asarray(value).tolist()) for name, value in row.targets.items())
    return (source, _source(row, base), labels, *([targets] if targets else []))


def _source(row: Row, base: str) -> str:
    """Where the picture is from: a path, or where its row stands."""
    return _below(row.name if isinstance(row.source, bytes | np.ndarray) else str(row.source), base)


def _below(path: str, base: str) -> str:
    return os.fsencode(path.removeprefix(base)).decode(errors="backslashreplace")


def _store(row: Row, detector: Detector | None, options: Options, base: str) -> dict[str, Any] | ReadError:
    """What is stored of a row, but for how the file is made."""
    try:
        picture = row.whole()
        part = row.cut(picture)
    except ReadError as error:
        return ReadError(error.source, error.reason)
    face, found, note = None, None, None
    if detector is not None:
        found = _find(detector, picture, row.box)
        try:
            face = align(picture, found.landmarks, options.size) if found else None
        except ValueError as error:
            note = f"{error}: as it is"
        if found is None:
            note = "no face found: as it is"
    if face is None:
        face = resize(part, [{"size": options.size}])
    return {
        **row.groups,
        "image": {"bytes": _encode(face, options.encoding), "path": None},
        "label": row.label,
        "target": row.target,
        "units": row.units,
        **{name: np.asarray(value).ravel() for name, value in row.targets.items()},
        "split": row.split,
        "subject": row.subject,
        "source": _source(row, base),
        "box": None if found is None else found.box,
        "score": None if found is None else found.score,
        "landmarks": None if found is None else found.landmarks.ravel(),
        "note": note,
    }


def _find(detector: Detector, picture: np.ndarray, box: Sequence[int] | None) -> Detection | None:
    """The largest face; where the set gives a box, the one whose middle is nearest to the middle of it, and within."""
    if box is None:
        return max(find_known(detector, picture), key=lambda face: face.box[2] * face.box[3], default=None)
    x, y, width, height = box
    around, corner = square(picture, (x - width / 2, y - height / 2, 2 * width, 2 * height))
    middle, best = np.array((x + width / 2, y + height / 2)), None
    nearest = np.inf
    for face in find_known(detector, around):
        left, top, *size = face.box
        box_there = (left + corner[0], top + corner[1], *size)
        away = np.abs(np.array(box_there[:2]) + np.divide(size, 2) - middle)
        if (away <= (width / 2, height / 2)).all() and away @ away < nearest:
            landmarks = (face.landmarks + np.array(corner)).astype(np.float32)
            nearest, best = away @ away, Detection(box_there, face.score, landmarks)
    return best


def _encode(face: np.ndarray, encoding: str) -> bytes:
    grey = (face == face[:, :, :1]).all()
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(face[:, :, 0] if grey else face))
    image.save(file, "PNG") if encoding == "png" else image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _write(path: Path, stored: list[dict[str, Any] | ReadError], data: DataSet, groups: list[str]) -> None:
    """A shard, as `datasets` and the Hub know such tables; its metadata lists what it leaves out."""
    pa, parquet = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    rows = [row for row in stored if not isinstance(row, ReadError)]
    lists = (*_FLOATS, *(output.name for output in data.further))
    types = dict.fromkeys((*_COLUMNS, *groups), pa.string()) | dict.fromkeys(lists, pa.list_(pa.float32()))
    types |= {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()})}
    types |= {"label": pa.int64(), "score": pa.float32()}
    features: dict[str, Any] = {name: {"dtype": "string", "_type": "Value"} for name in types}
    floats = {"dtype": "float32", "_type": "Value"}
    features |= {name: {"feature": floats, "_type": "Sequence"} for name in lists} | {"score": floats}
    features |= {"image": {"_type": "Image"}, "label": {"names": list(data.labels), "_type": "ClassLabel"}}
    facts = {
        "units": list(data.units),
        "outputs": [output.to_json() for output in data.further],
        "not_found": sum(row["note"] is not None for row in rows),
        "rows": dict(Counter(row["split"] for row in rows)),
        "left_out": [[row.source, row.reason] for row in stored if isinstance(row, ReadError)],
    }
    metadata = {PREPARED: json.dumps(facts), b"huggingface": json.dumps({"info": {"features": features}})}
    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in types.items()}
    with whole(path) as file:
        parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), file, row_group_size=1024)


def _sum_up(out: Path, shards: Sequence[Path]) -> Prepared:
    """What all shards say; `left_out.jsonl` says it of the rows that are in none."""
    read_schema: Callable[..., Any] = require("pyarrow.parquet", "parquet").read_schema
    prepared, left_out = Prepared(), Counter()  # a list is read once for each split, and some lines are of none
    for path in shards:
        try:
            facts = json.loads(read_schema(path).metadata[PREPARED])
        except (require("pyarrow", "parquet").ArrowException, KeyError, TypeError) as error:
            raise MienError(f"{path}: damaged; remove it, and run again") from error
        prepared.rows.update(facts["rows"])
        prepared.not_found += facts["not_found"]
        left_out.update(map(tuple, facts["left_out"]))
    prepared.left_out = [ReadError(*pair) for pair in left_out]
    if prepared.left_out:
        with whole(out / "left_out.jsonl") as file:
            for error in prepared.left_out:
                line = {"where": error.source, "reason": error.reason}
                file.write(json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
    return prepared
