"""Pictures held out: a set's training rows in two, one to learn from and one to be judged by."""

import csv
import hashlib
import io
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mien.checkpoint import labels_of
from mien.data.dataset import DataSet
from mien.data.opening import open_dataset
from mien.data.row import Row
from mien.data.spelling import Known
from mien.errors import MienError, MienWarning, ReadError
from mien.faces.columns import safe_cell
from mien.files import whole

HELD_OUT = "held_out.csv"
"""Beside a checkpoint: the pictures that it was taught, and those that were held out."""

MOST = 2000
"""So many faces say enough of an accuracy: ± 2 % at the most; the others are learned from."""

_HEAD = 65_536  # bytes of a picture's file that its digest is of, beside its size


class HeldOut(DataSet):
    """Another set, a share of whose training rows is "validation".

    data: the set; it has no "validation" of its own.
    share: of the rows, above 0 and below 1 (default 0.2), but not more than MOST rows.
    seed: of the draw.
    learned: whether each row is learned from, by its digest, as `read_list` gives it. It takes the place of a draw;
        rows that are not in it are not learned from.

    The rows are those of "train", or of the only split. The same share of each class is drawn, at least one row and
    never all; rows of one subject, where the set says who is in the picture, and copies of one file stay together.
    Which rows they are depends on their contents and the seed, not on where they lie.

    Raises MienError for a set with a "validation", or several splits and no "train".
    """

    def __init__(self, data: DataSet, share: float = 0.2, seed: int = 0, learned: Mapping[str, bool] | None = None):
        super().__init__(data.check)
        if not 0 < share < 1:
            raise MienError(f"a share between 0 and 1 can be held out, not {share}")
        if "validation" in data.splits or not ("train" in data.splits or len(data.splits) == 1):
            raise MienError(f"{data}: of the splits {', '.join(data.splits)} nothing is to be held out")
        self.data, self.share, self.seed, self._learned = data, share, seed, learned
        self.whole = "train" if "train" in data.splits else data.splits[0]
        self.labels, self.units, self.further = data.labels, data.units, data.further
        self.first, self.notes = data.first, data.notes
        others = [split for split in data.splits if split != self.whole]
        self.splits = ("train", "validation", *others)
        self._items: list[tuple[Row | ReadError, str]] | None = None

    def __str__(self) -> str:
        return str(self.data)

    def read(self, split: str) -> Iterator[Row | ReadError]:
        if split not in ("train", "validation"):
            yield from self.data.read(split)
            return
        for item, _ in self._all():
            if isinstance(item, ReadError):
                if split == "train":
                    yield item
            elif item.split == split:
                yield item

    def counts(self) -> tuple[int, int]:
        """How many rows are held out, and of how many."""
        splits = [item.split for item, _ in self._all() if isinstance(item, Row)]
        return splits.count("validation"), len(splits)

    def write_list(self, path: Path) -> None:
        """Write which picture is where, a line each, for `read_list`."""
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(("picture", "class", "split", "digest"))
        for item, digest in self._all():
            if isinstance(item, Row):
                label = self.labels[item.label] if item.label >= 0 else ""
                table.writerow(map(safe_cell, (item.name, label, item.split, digest)))
        with whole(path) as file:
            file.write(text.getvalue().encode(errors="backslashreplace"))

    def _all(self) -> list[tuple[Row | ReadError, str]]:
        """Every row, in its split, with its digest."""
        if self._items is None:
            found = list(self.data.read(self.whole))
            digests = [content_of(item) if isinstance(item, Row) else "" for item in found]
            held = self._draw(found, digests)
            self._items = []
            for item, digest, out in zip(found, digests, held, strict=True):
                placed = replace(item, split="validation" if out else "train") if isinstance(item, Row) else item
                self._items.append((placed, digest))
        return self._items

    def _draw(self, found: list[Row | ReadError], digests: list[str]) -> list[bool]:
        """Whether each row is held out."""
        if self._learned is not None:
            return [not self._learned.get(digest, False) for digest in digests]
        units: dict[str, list[int]] = defaultdict(list)  # what stays together
        for i, (item, digest) in enumerate(zip(found, digests, strict=True)):
            if isinstance(item, Row):
                units[f"subject {item.subject}" if item.subject is not None else digest].append(i)
        rows = [i for unit in units.values() for i in unit]
        share = min(self.share, MOST / max(1, len(rows)))
        left = Counter(found[i].label for i in rows)
        wanted = {label: max(1, round(share * n)) if n > 1 else 0 for label, n in left.items()}
        order = sorted(units)
        np.random.default_rng(self.seed).shuffle(order)
        held = [False] * len(found)
        for unit in order:
            classes = Counter(found[i].label for i in units[unit])
            of_use = sum(min(n, max(0, wanted[label])) for label, n in classes.items())
            if 2 * of_use >= len(units[unit]) and all(left[label] > n for label, n in classes.items()):
                for label, n in classes.items():
                    wanted[label] -= n
                    left[label] -= n
                for i in units[unit]:
                    held[i] = True
        return held


def content_of(row: Row) -> str:
    """A digest of a row's picture, wherever it lies: of its size and the beginning of its file."""
    source = row.source
    if isinstance(source, np.ndarray):
        content = repr(source.shape).encode() + source.tobytes()
    elif isinstance(source, bytes):
        content = str(len(source)).encode() + source[:_HEAD]
    else:
        try:
            with open(source, "rb") as file:  # type: ignore[arg-type]
                content = str(os.fstat(file.fileno()).st_size).encode() + file.read(_HEAD)
        except (OSError, TypeError):  # what is missing is said when it is read; a frame of a video has no file
            content = os.path.basename(row.name).encode(errors="surrogateescape")
    return hashlib.blake2b(content + repr(row.box).encode(), digest_size=16).hexdigest()


def read_list(path: Path) -> dict[str, bool]:
    """Whether each picture was learned from, by its digest. Raises MienError for a file that is no such list."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {line["digest"]: line["split"] == "train" for line in csv.DictReader(file)}
    except (OSError, KeyError, csv.Error, UnicodeDecodeError) as error:
        raise MienError(f"{path}: no list of pictures held out ({error})") from error


def open_for(
    header: Mapping[str, Any],
    folder: Path | None,
    path: str | os.PathLike[str],
    format: str | None = None,
    **options: Any,
) -> DataSet:
    """Open labelled pictures to judge a model by: the labels are the model's, and what it learned from is left out.

    header: of the model.
    folder: in which its file lies; where that has a list of what was held out, and the set holds pictures of that list,
        its splits are "train" and "validation" as they were in training.
    path, format, options: as `mien.data.open_dataset` takes them; `labels` that are given stay.

    Warns (MienWarning) where the model held pictures out and the list of them is not beside it. Raises MienError as
    `open_dataset` does.
    """
    training = header.get("training", {})
    if options.get("labels") is None:
        first = training.get("numbered_from")
        options["labels"] = Known(labels_of(header), None if first is None else int(first))
    data = open_dataset(path, format, **options)
    if "held_out" not in training or "validation" in data.splits:
        return data
    listed = folder / HELD_OUT if folder else None
    if listed is None or not listed.exists():
        warnings.warn(
            f"{data}: the model held out {training['held_out']} pictures of its own, and {HELD_OUT}, the list of them, "
            "is not beside it: training pictures may be among these",
            MienWarning,
            stacklevel=2,
        )
        return data
    if not ("train" in data.splits or len(data.splits) == 1):
        return data
    learned = read_list(listed)
    wrapped = HeldOut(data, learned=learned)
    seen = sum(digest in learned for _, digest in wrapped._all())
    return wrapped if seen else open_dataset(path, format, **options)
