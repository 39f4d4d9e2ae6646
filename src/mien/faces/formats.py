"""Which picture formats there are, by the ending of a name and by what a file begins with, and which of them open."""

from collections import Counter
from importlib.util import find_spec
from os.path import splitext

from mien.errors import ReadError

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .j2c .jpc "
    ".jpf .jpx .avif .avifs .ico".split()
)
"""What a file in a folder is called that is taken for a picture."""

# Not every format of Pillow: EPS, for one, would start Ghostscript on a stranger's program. JPEG includes MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")

HEIC = "HEIC"

_ENDINGS = {
    HEIC: ".heic .heif .hif .heics .heifs",
    "raw": ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw "
    ".rw2 .rwl .sr2 .srf .srw .x3f",
    "JPEG XL": ".jxl",
    "JPEG XR": ".jxr .wdp .hdp",
    "JPEG-LS": ".jls",
    "Photoshop": ".psd .psb",
    "GIMP": ".xcf",
    "Krita": ".kra",
    "OpenRaster": ".ora",
    "OpenEXR": ".exr",
    "Radiance": ".hdr",
    "DDS": ".dds",
    "Targa": ".tga",
    "PCX": ".pcx",
    "SGI": ".sgi",
    "QOI": ".qoi",
    "BPG": ".bpg",
    "FLIF": ".flif",
    "DICOM": ".dcm .dicom",
    "FITS": ".fits .fts",
    "Apple icon": ".icns",
    "PICT": ".pict .pct",
    "Windows metafile": ".wmf .emf",
    "X bitmap": ".xbm .xpm",
    "PostScript": ".eps",
    "SVG": ".svg .svgz",
}

KINDS = {ending: kind for kind, endings in _ENDINGS.items() for ending in endings.split()}
"""Endings of pictures that mien does not open, HEIC's only without the extra, and what these are called."""

_HEADS = (
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n", "JPEG XL"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"8BPS", "Photoshop"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance"),
    (0, b"#?RGBE", "Radiance"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"FLIF", "FLIF"),
    (128, b"DICM", "DICOM"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"icns", "Apple icon"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"<svg", "SVG"),
    (0, b"FUJIFILMCCD-RAW", "raw"),
    (8, b"CR\x02", "raw"),  # Canon's CR2, else a TIFF
    (4, b"ftypcrx ", "raw"),  # Canon's CR3
    (6, b"HEAPCCDR", "raw"),  # Canon's CRW
    (0, b"IIRO", "raw"),  # Olympus
    (0, b"IIRS", "raw"),
    (0, b"MMOR", "raw"),
    (0, b"IIU\0", "raw"),  # Panasonic
    (0, b"FOVb", "raw"),  # Sigma
    (0, b"\0MRM", "raw"),  # Minolta
)

_HEIF_BRANDS = frozenset(b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split())

ZIP, VIDEO, DOCUMENT = "zip", "video", "PDF"

_OTHERS = (
    (0, b"PK\3\4", ZIP),
    (0, b"PK\5\6", ZIP),  # an empty one
    (0, b"%PDF", DOCUMENT),
    (0, b"\x1aE\xdf\xa3", VIDEO),  # Matroska and WebM
    (8, b"AVI LIST", VIDEO),
    (0, b"\0\0\1\xba", VIDEO),  # MPEG
    (0, b"FLV\1", VIDEO),
    (4, b"moov", VIDEO),  # old QuickTime
    (4, b"mdat", VIDEO),
    (4, b"wide", VIDEO),
    (0, b"OggS", VIDEO),
    (0, b"0&\xb2u\x8ef\xcf\x11", VIDEO),  # Windows Media
)

HEAD = 160
"""Bytes of a file that tell what it is."""


def kind_of(head: bytes) -> str:
    """What a file that begins with `head` is, by its content: HEIC, one of KINDS' values, ZIP, VIDEO, DOCUMENT; "" for
    what Pillow may know, and for nothing known."""
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, min(int.from_bytes(head[:4]), len(head)), 4))}
        if head[8:12] == b"crx ":
            return "raw"
        if brands & {b"avif", b"avis"}:
            return ""
        return HEIC if brands & _HEIF_BRANDS else VIDEO
    if head[:1] == b"G" and head[188:189] == b"G":
        return VIDEO  # an MPEG transport stream
    if head.lstrip().startswith((b"<?xml", b"<svg", b"<!DOCTYPE svg")) and b"<svg" in head:
        return "SVG"
    return next((kind for at, magic, kind in (*_HEADS, *_OTHERS) if head[at : at + len(magic)] == magic), "")


def opens_heic() -> bool:
    """Whether the extra [heic] is installed."""
    return find_spec("pi_heif") is not None


def ends(name: str) -> str:
    """The ending of a file's name in lower case; "" for names that begin with a dot."""
    return "" if name.startswith(".") else splitext(name)[1].lower()


def opens(ending: str) -> bool:
    """Whether pictures with this ending, in lower case, are opened here."""
    return ending in SUFFIXES or (KINDS.get(ending) == HEIC and opens_heic())


def why_not(kind: str) -> str:
    """Why a file of this kind cannot be opened, and what helps."""
    if kind == HEIC:
        return 'a HEIC picture, which needs pi-heif: pip install "mien[heic]"'
    if kind == ZIP:
        return "a zip, not a picture: mien read takes it, and mien.faces.find_pictures lists what is in it"
    if kind == VIDEO:
        return "a video, not a picture: mien read goes by the name, such as .mp4, and takes any with --video"
    return f"of the format {kind}, which mien does not open: convert it to JPEG or PNG"


class NotOpened(ReadError):
    """Pictures in a folder, a glob or a zip whose formats do not open here: one line with their count, which is `rows`.

    kinds: how many of each of KINDS' values.
    """

    def __init__(self, source: object, kinds: Counter[str]):
        parts = [f"{count:,} {kind}" for kind, count in kinds.most_common() if kind != HEIC]
        if heic := kinds[HEIC]:
            parts.insert(0, f'{heic:,} HEIC (pip install "mien[heic]")')
        said = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
        count = kinds.total()
        super().__init__(source, f"{count:,} picture{'s' * (count > 1)} of a format that does not open: {said}")
        self.kinds, self.rows = kinds, count

    def __reduce__(self):
        return type(self), (self.source, self.kinds)
