"""One picture: read upright as RGB, whatever it comes from."""

import io
import os
import stat
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from mien.errors import ReadError
from mien.faces.formats import FORMATS, HEAD, HEIC, KINDS, SUFFIXES, ends, kind_of, opens_heic, why_not
from mien.faces.sources import Source, find_pictures, in_zip, take

__all__ = ["FORMATS", "MAX_PIXELS", "SUFFIXES", "Source", "find_pictures", "open_picture"]

MAX_PIXELS = 178_956_970
"""The largest picture that is decoded: where Pillow's own default stops, held whatever others set Pillow's to."""

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

_NOTES = 2**20
"""Bytes of a note in a PNG that Pillow reads, once unpacked; a longer one would make it refuse the picture."""

_loading = threading.Lock()  # a Pillow picture decodes itself when first used, which two threads must not do at once


class TooManyPixels(ReadError):
    """A picture of more pixels than was allowed, which was not decoded: `pixels` of them."""

    def __init__(self, source: object, reason: str, pixels: int = 0):
        super().__init__(source, reason)
        self.pixels = pixels


def _unlock() -> None:
    global _loading
    _loading = threading.Lock()  # of the parent of this process, another thread may have held it


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_unlock)


def open_picture(source: Source, *, max_pixels: int = MAX_PIXELS, name: str | None = None) -> np.ndarray:
    """Read one picture.

    source: a path; a file's bytes; anything with `read`; a Pillow picture; a uint8 array (H, W, 3) RGB, (H, W, 4) RGBA,
        (H, W) or (H, W, 1) grey; "-" for stdin; an address that begins with file://, http:// or https://; or a path
        into a zip, "album.zip/in/it.jpg".
    max_pixels: a larger picture is not decoded.
    name: what errors call it, by default what the source says of itself.

    Returns (H, W, 3) uint8 RGB, turned upright as its EXIF tag says; it may be read-only. Transparency is laid on
    white, 16 bits and floats are scaled to 8, and of an animation the first frame is read. HEIC needs the extra [heic].

    Raises ReadError for what is missing, empty, no picture, of a format that does not open, cut short, or of more than
    `max_pixels`; from a server also for what comes too late or is too large.
    """
    named, taken = take(source)
    name = named if name is None else name
    if isinstance(taken, np.ndarray):
        return _check_array(taken, name)
    if isinstance(taken, Image.Image):
        with _told(name, max_pixels), _loading:
            return _decode(taken, name, max_pixels)
    if not isinstance(taken, str):
        return _open(io.BytesIO(taken), name, len(taken), max_pixels)
    try:
        found = os.stat(taken)
        if stat.S_ISDIR(found.st_mode):
            missed: list[ReadError] = []
            inside = find_pictures([taken], missed=missed)
            raise ReadError(name, "a folder without pictures" if inside in ([], [taken]) else "a folder, not a picture")
        if not stat.S_ISREG(found.st_mode):
            raise ReadError(name, "not a file")
        with open(taken, "rb") as file:
            return _open(file, name, found.st_size, max_pixels)
    except NotADirectoryError as error:
        data = in_zip(taken)
        if data is None:
            raise ReadError(name, "no such file") from error
        return _open(io.BytesIO(data), name, len(data), max_pixels)
    except FileNotFoundError as error:
        raise ReadError(name, "no such file") from error
    except (OSError, ValueError) as error:  # no permission, a name too long, a name with a null character
        raise ReadError(name, (getattr(error, "strerror", None) or str(error)).lower()) from error


def _check_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)):
        kinds = "H×W×3 (RGB), H×W×4 (RGBA), H×W or H×W×1 (grey)"
        raise ReadError(name, f"needs uint8 of {kinds}, got {array.dtype} of shape {array.shape}")
    if not array.size:
        raise ReadError(name, f"has no pixels: shape {array.shape}")
    if array.shape[2:] == (4,):
        return np.asarray(_on_white(Image.fromarray(array)))
    return array if array.shape[2:] == (3,) else np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)


def _open(file: BinaryIO, name: str, size: int, max_pixels: int) -> np.ndarray:
    if not size:
        raise ReadError(name, "an empty file")
    kind = kind_of(file.read(HEAD))
    file.seek(0)
    formats = FORMATS
    if kind == HEIC and opens_heic():
        formats = (*FORMATS, _heif())
    elif kind:
        raise ReadError(name, why_not(kind))
    with _told(name, max_pixels):
        try:
            return _read(file, formats, name, max_pixels)
        except (ReadError, UnidentifiedImageError):
            raise
        except Exception:
            file.seek(0)
            slim = _without_notes(file)
            if slim is None:
                raise
            return _read(io.BytesIO(slim), FORMATS, name, max_pixels)


def _read(file: BinaryIO, formats: tuple[str, ...], name: str, max_pixels: int) -> np.ndarray:
    with Image.open(file, formats=formats) as image:
        if image.format == "TIFF" and _is_raw(image, name):
            raise ReadError(name, why_not("raw"))
        return _decode(image, name, max_pixels)


def _is_raw(image: Image.Image, name: str) -> bool:
    """Whether what looks like a TIFF is what a camera calls raw, of which only a small preview could be read."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    return KINDS.get(ends(os.path.basename(name))) == "raw" or 50706 in tags or (330 in tags and tags.get(254, 0) & 1)


def _heif() -> str:
    """Pillow's name of the format, once it knows it."""
    import pi_heif

    if "HEIF" not in Image.OPEN:
        pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    return "HEIF"


def _without_notes(file: BinaryIO) -> bytes | None:
    """A PNG without its colour profile and its text, but for short notes that may say which side is up; None for what
    is no PNG, or has nothing of the kind."""
    data = file.read()
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : end - 4]
        if kind not in (b"iCCP", b"tEXt", b"zTXt", b"iTXt") or (kind != b"iCCP" and _says_up(kind, content)):
            parts.append(data[at:end])
        at = end
    slim = b"".join(parts)
    return slim if len(slim) < len(data) else None


def _says_up(kind: bytes, content: bytes) -> bool:
    """Whether a note may hold the EXIF tag, and is short."""
    keyword, _, rest = content.partition(b"\0")
    if keyword not in (b"Raw profile type exif", b"XML:com.adobe.xmp") or len(content) > _NOTES:
        return False
    if kind == b"zTXt":
        packed = rest[1:]
    elif kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]  # behind a language and a translation
    else:
        return True
    try:
        return len(zlib.decompressobj().decompress(packed, _NOTES)) < _NOTES
    except zlib.error:
        return False


@contextmanager
def _told(source: str, max_pixels: int) -> Iterator[None]:
    """Turn what Pillow raises into what a person can use."""
    try:
        yield
    except ReadError:
        raise
    except UnidentifiedImageError as error:
        kind = KINDS.get(ends(os.path.basename(source)))  # such as Targa, which begins like nothing in particular
        raise ReadError(source, why_not(kind) if kind and kind != HEIC else "not a picture") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # the latter under -W error
        raise ReadError(source, f"more than {_spoken(max_pixels)} pixels") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise ReadError(source, "damaged or cut short") from error


def _decode(image: Image.Image, source: str, max_pixels: int) -> np.ndarray:
    width, height = image.size
    if not width * height:
        raise ReadError(source, "has no pixels")
    if width * height > max_pixels:
        reason = f"{width}×{height}, more than {_spoken(max_pixels)} pixels"
        raise TooManyPixels(source, reason, width * height)
    image.load()  # first, since TIFF turns itself upright and PNG may carry its EXIF behind the pixels
    turn = _UPRIGHT.get(_orientation(image))
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    elif image.has_transparency_data:
        image = _on_white(image.convert("RGBA"))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.asarray(image if turn is None else image.transpose(turn))


def _on_white(image: Image.Image) -> Image.Image:
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    return paper.convert("RGB")


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
