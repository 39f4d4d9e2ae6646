"""Pictures: find them, and read them upright as RGB."""

import glob
import io
import os
import stat
import struct
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from mien.errors import ReadError

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .avif .ico".split()
)
"""What a file in a folder is called that is taken for a picture."""

# Not every format of Pillow: EPS, for one, would start Ghostscript on a stranger's program. JPEG includes MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")

MAX_PIXELS = 178_956_970
"""The largest picture that is decoded: where Pillow's own default stops, held whatever Pillow was told elsewhere."""

# What undoes each value of the EXIF tag 274; 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_loading = threading.Lock()  # a Pillow picture decodes itself when first used, which two threads must not do at once

Source = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


def open_picture(source: Source, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read one picture: a path, a file's bytes, a Pillow picture, or a uint8 array, (H, W, 3) RGB or (H, W) grey.

    Returns (H, W, 3) uint8 RGB, turned upright as its EXIF tag says; it may be read-only. Transparency is laid on
    white, 16 bits and floats are scaled to 8, and of an animation the first frame is read.

    Raises ReadError for what is missing, empty, no picture, cut short, or of more than `max_pixels`.
    """
    if isinstance(source, np.ndarray):
        return _check_array(source)
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or "picture"
        with _told(name, max_pixels), _loading:
            return _decode(source, name, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _open(io.BytesIO(source), "picture", len(source), max_pixels)
    try:
        path = os.fspath(source)
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            empty = find_pictures([path]) == [path]
            raise ReadError(source, "a folder without pictures" if empty else "a folder, not a picture")
        if not stat.S_ISREG(found.st_mode):
            raise ReadError(source, "not a file")
        with open(path, "rb") as file:
            return _open(file, source, found.st_size, max_pixels)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ReadError(source, "no such file") from error
    except TypeError as error:
        raise ReadError(type(source).__name__, "neither a path, a Pillow picture nor an array") from error
    except (OSError, ValueError) as error:  # no permission, a name too long, a name with a null character
        raise ReadError(source, (getattr(error, "strerror", None) or str(error)).lower()) from error


def find_pictures(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], suffixes: Collection[str] = SUFFIXES
) -> list[str]:
    """The pictures that files, folders and globs name, in the order given, each folder and glob sorted.

    A file is kept whatever it is called. Of a folder (and the folders below it) only what ends in one of `suffixes` and
    does not begin with a dot is kept, and so of a glob, unless the glob spells another ending; `**` goes through
    folders. What is missing, matches nothing, or holds no picture stays in the list, so that reading it tells why.
    """
    pictures: list[str] = []
    for source in [sources] if isinstance(sources, str | os.PathLike) else sources:
        name = os.fspath(source)
        if os.path.isdir(name):
            found = _in_folder(name, suffixes)
        elif glob.has_magic(name) and not os.path.lexists(name):
            found = _in_glob(name, suffixes)
        else:
            found = [name]
        pictures += found or [name]
    return pictures


def _in_folder(folder: str, suffixes: Collection[str]) -> list[str]:
    found = []
    for parent, _, names in os.walk(folder):
        found += [os.path.join(parent, name) for name in names if _ends(name, suffixes)]
    return sorted(found)


def _in_glob(pattern: str, suffixes: Collection[str]) -> list[str]:
    ending = os.path.splitext(pattern)[1]
    spelt = bool(ending) and not glob.has_magic(ending)
    found: set[str] = set()
    for name in glob.iglob(pattern, recursive=True):
        if os.path.isdir(name):
            found.update(_in_folder(name, suffixes))
        elif spelt or _ends(os.path.basename(name), suffixes):
            found.add(name)
    return sorted(found)


def _ends(name: str, suffixes: Collection[str]) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes


def _check_array(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)) or not array.size:
        raise ReadError("array", f"needs uint8 of H×W×3 (RGB) or H×W (grey), got {array.dtype} of shape {array.shape}")
    return array if array.ndim == 3 else np.repeat(array[:, :, None], 3, axis=2)


def _open(file: io.BufferedIOBase, source: object, size: int, max_pixels: int) -> np.ndarray:
    if not size:
        raise ReadError(source, "an empty file")
    with _told(source, max_pixels), Image.open(file, formats=FORMATS) as image:
        return _decode(image, source, max_pixels)


@contextmanager
def _told(source: object, max_pixels: int) -> Iterator[None]:
    """Turn what Pillow raises into what a person can use."""
    try:
        yield
    except ReadError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ReadError(source, "not a picture") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # the latter under -W error
        raise ReadError(source, f"more than {_spoken(max_pixels)} pixels") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise ReadError(source, "damaged or cut short") from error


def _decode(image: Image.Image, source: object, max_pixels: int) -> np.ndarray:
    width, height = image.size
    if not width * height:
        raise ReadError(source, "has no pixels")
    if width * height > max_pixels:
        raise ReadError(source, f"{width}×{height}, more than {_spoken(max_pixels)} pixels")
    image.load()  # first, since TIFF turns itself upright and PNG may carry its EXIF behind the pixels
    turn = _UPRIGHT.get(_orientation(image))
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image)
        image = paper
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.asarray(image if turn is None else image.transpose(turn))


def _spoken(pixels: int) -> str:
    return f"{pixels // 10**6} million" if pixels >= 10**6 else f"{pixels:,}"


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(274, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, EOFError, struct.error):
        return 1  # the pixels are whole: broken notes beside them are no reason to refuse the picture


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey of 16 bits (or 32, or floats of any range) to 8, without clipping."""
    limits = (65535.0,) if np.issubdtype(values.dtype, np.integer) else (1.0, 255.0)
    values = np.nan_to_num(values.astype(np.float32)).clip(0)
    top = float(values.max())
    full = next((limit for limit in limits if top <= limit), top)
    return np.rint(values * np.float32(255 / full)).astype(np.uint8)
