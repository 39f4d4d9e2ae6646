"""Landmarks of the faces of a data set, found once."""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mien.data import Row
from mien.errors import MienError
from mien.faces import YuNet, find_known
from mien.files import whole

logger = logging.getLogger(__name__)

KEPT = np.dtype([("picture", "V16"), ("landmarks", np.float32, (5, 2))])
"""What a cache has of each picture: a digest of its pixels, and its landmarks."""


def find_landmarks(rows: Sequence[Row], cache: str | os.PathLike[str] | None = None) -> np.ndarray:
    """Landmarks (N, 5, 2) float32 of N pictures, in pixels of each, not a number where YuNet finds no face.

    cache: a .npy file where they are kept by picture, so that any splits and sets can share it. Pictures that it does
        not have are looked through, and added.

    Raises MienError for a file that holds no such landmarks.
    """
    cache = None if cache is None else Path(cache)
    keys = range(len(rows)) if cache is None else [_digest(row.image()) for row in rows]
    known = {} if cache is None or not cache.exists() else _read(cache)
    missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in known}
    if missing:
        detector = YuNet(min_face=0)
        for key, row in tqdm(missing.items(), desc="landmarks", unit="face"):
            found = find_known(detector, row.image())
            known[key] = max(found, key=lambda face: face.score).landmarks if found else np.full((5, 2), np.nan)
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            with whole(cache) as file:
                np.save(file, np.array(list(known.items()), KEPT))
    landmarks = np.array([known[key] for key in keys], np.float32).reshape(-1, 5, 2)
    found = np.isfinite(landmarks[:, 0, 0]).sum()
    logger.info("landmarks found in %d of %d pictures", found, len(rows))
    return landmarks


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).digest()


def _read(cache: Path) -> dict[bytes, np.ndarray]:
    try:
        kept = np.load(cache)
    except (ValueError, EOFError) as error:
        raise MienError(f"{cache}: no landmarks of pictures; remove it") from error
    if kept.dtype != KEPT:
        raise MienError(f"{cache}: landmarks that do not say of which pictures; remove it")
    return dict(zip(kept["picture"].tolist(), kept["landmarks"], strict=True))
