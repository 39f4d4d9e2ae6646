"""Where pictures come from: formats, folders, zips, stdin, opened files, addresses; and what is said of the rest."""

import http.server
import io
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mien
from mien import batch
from mien.commands.read import find_sources
from mien.errors import MienError, ReadError
from mien.faces import find_pictures, formats, is_video, open_picture, sources
from mien.faces.fetch import fetch
from mien.faces.formats import KINDS, SUFFIXES, NotOpened, kind_of

GOLDEN = Path(__file__).parent / "golden"
EXAMPLES = Path(__file__).parents[1] / "examples"
HEIC = GOLDEN / "small.heic"  # 64×48: red, green and blue stripes, of the encoder x265
HEIC_TEXT = 'a HEIC picture, which needs pi-heif: pip install "mien[heic]"'


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def without_heic(monkeypatch):
    """As where the extra [heic] is not installed."""
    monkeypatch.setattr(formats, "find_spec", lambda name: None)


def picture(path: str, colour: str = "red") -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 48), colour).save(path)
    return Path(path)


def png_bytes(colour: str = "red", size=(48, 48)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


# ---- HEIC, and formats that do not open


def test_heic_is_read_whatever_it_is_called(here):
    pytest.importorskip("pi_heif")
    for name in ("photo.heic", "photo.jpg", "photo"):
        shutil.copy(HEIC, name)
        image = open_picture(name)
        assert image.shape == (48, 64, 3)
        for x, channel in ((10, 0), (32, 1), (54, 2)):
            assert image[24, x].argmax() == channel and image[24, x, channel] > 120
    np.testing.assert_array_equal(open_picture(HEIC.read_bytes()), image)
    assert find_pictures(".") == ["./photo.heic", "./photo.jpg"]
    with pytest.raises(ReadError, match="photo.heic: 64×48, more than 100 pixels"):
        open_picture("photo.heic", max_pixels=100)
    Path("short.heic").write_bytes(HEIC.read_bytes()[:400])
    with pytest.raises(ReadError, match="short.heic: (damaged or cut short|not a picture)"):
        open_picture("short.heic")


def test_heic_without_the_extra(here, without_heic, stand_in, call):
    for name in ("album/1.heic", "album/2.HEIC", "album/a/3.heif", "album/._4.heic"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HEIC, name)
    shutil.copy(HEIC, "album/named.jpg")
    picture("album/face.png")
    picture("album/neutral/x.png")
    line = 'mien: album: 3 pictures of a format that does not open: 3 HEIC (pip install "mien[heic]")'
    code, out, err = call("read", "album", "--aligned", "--model", stand_in)
    assert code == 1
    assert [json.loads(row)["source"] for row in out] == ["album/face.png", "album/neutral/x.png"]
    assert err == [line, f"mien: album/named.jpg: {HEIC_TEXT}"]
    code, _, err = call("batch", "album", "out", "--aligned", "--model", stand_in)
    assert code == 1
    assert err == [line.replace("album", str(here / "album")), f"mien: {here}/album/named.jpg: {HEIC_TEXT}"]
    assert call("read", "album/1.heic", "--model", stand_in) == (1, [], [f"mien: album/1.heic: {HEIC_TEXT}"])
    with pytest.raises(ReadError) as error:
        open_picture("album/1.heic")
    assert error.value.reason == HEIC_TEXT


def test_a_folder_of_heic_alone_is_one_line(here, without_heic, stand_in, call):
    for i in range(3):
        picture(f"x{i}.png").rename(f"x{i}.heic")
    line = 'mien: .: 3 pictures of a format that does not open: 3 HEIC (pip install "mien[heic]")'
    assert call("read", ".", "--model", stand_in) == (1, [], [line])
    assert call("read", "*", "--model", stand_in) == (1, [], [line.replace(".:", "*:", 1)])


@pytest.mark.parametrize("command", ["check", "eval"])
def test_heic_in_a_data_set(here, without_heic, call, command, caplog):
    for name in ("neutral", "anger"):
        picture(f"set/{name}/1.png")
        shutil.copy(HEIC, f"set/{name}/2.heic")
    if command == "check":
        code, out, err = call("data", "check", "folder", "set", "--out", "sheets")
        assert code == 1
        assert out[0] == 'set: 2 pictures of a format that does not open: 2 HEIC (pip install "mien[heic]")'
        assert any(line.split() == ["left", "out", "2"] for line in out)
    else:
        data = mien.data.open_dataset("set", "folder")
        assert len(data.rows("all")) == 2 and data.findings["all"].left_out == 2
        assert '2 HEIC (pip install "mien[heic]")' in caplog.text


@pytest.mark.parametrize("ending", [".dng", ".CR2", ".jxl", ".psd", ".tga", ".exr", ".svg", ".xcf", ".orf"])
def test_formats_that_do_not_open_are_counted(here, stand_in, call, ending):
    picture("a/1.png")
    for i in range(2):
        Path(f"a/{i}{ending}").write_bytes(b"anything")
    kind = KINDS[ending.lower()]
    assert call("read", "a", "--aligned", "--model", stand_in)[::2] == (
        1,
        [f"mien: a: 2 pictures of a format that does not open: 2 {kind}"],
    )
    assert batch.find_sources(["a"], "image", "out", missed := []) == [str(here / "a/1.png")]
    assert [error.rows for error in missed] == [2]
    with pytest.raises(ReadError, match=f"of the format {kind}, which mien does not open"):
        open_picture(f"a/0{ending}")


def test_several_formats_are_one_line(here, without_heic):
    for name in ("1.heic", "2.jxl", "3.psd", "4.psd", "notes.txt", "film.mp4"):
        Path(name).touch()
    missed = []
    assert find_pictures(".", missed=missed) == []
    assert [str(error) for error in missed] == [
        '.: 4 pictures of a format that does not open: 1 HEIC (pip install "mien[heic]"), 2 Photoshop and 1 JPEG XL'
    ]
    again = pickle.loads(pickle.dumps(missed[0]))
    assert isinstance(again, NotOpened) and (str(again), again.rows) == (str(missed[0]), 4)
    missed.clear()
    assert find_pictures("*.jxl", missed=missed) == ["2.jxl"] and missed == []  # spelt, so that reading it says why


def test_without_a_list_it_is_logged(here, caplog):
    Path("1.jxl").touch()
    assert find_pictures(".") == []
    assert caplog.messages == [".: 1 picture of a format that does not open: 1 JPEG XL"]


@pytest.mark.parametrize(
    "head, kind",
    [
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS\0\1", "Photoshop"),
        (b"gimp xcf v011", "GIMP"),
        (b"II*\0\x10\0\0\0CR\x02\0", "raw"),
        (b"FUJIFILMCCD-RAW 0201", "raw"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "raw"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypheix\0\0\0\0mif1heix", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", ""),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "video"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81", "video"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"RIFF\0\0\0\0WEBPVP8 ", ""),
        (bytes(128) + b"DICM", "DICOM"),
        (b'<?xml version="1.0"?>\n<svg xmlns', "SVG"),
        (b"PK\3\4\x14\0", "zip"),
        (b"%PDF-1.7", "PDF"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", ""),
        (b"", ""),
    ],
)
def test_kinds_by_content(head, kind):
    assert kind_of(head) == kind
    if kind:
        with pytest.raises(ReadError, match="not a picture" if kind == "HEIC" and formats.opens_heic() else "mien"):
            open_picture(head + bytes(200))
    if kind == "raw":
        with pytest.raises(ReadError, match="of the format raw, which mien does not open"):
            open_picture(head + bytes(200))


def test_raw_that_looks_like_a_tiff(here):
    """Of which Pillow would read the preview, of 160×120."""
    file = io.BytesIO()
    Image.new("RGB", (160, 120)).save(file, "TIFF", tiffinfo={50706: b"\1\4\0\0"})  # DNGVersion
    for name, data in (("a.tif", file.getvalue()), ("b.nef", plain := tiff())):
        Path(name).write_bytes(data)
        with pytest.raises(ReadError, match=f"{name}: of the format raw"):
            open_picture(name)
    Path("c.tif").write_bytes(plain)
    assert open_picture("c.tif").shape == (120, 160, 3)


def tiff() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (160, 120)).save(file, "TIFF")
    return file.getvalue()


def test_no_ending_is_in_two_tables():
    assert not SUFFIXES & KINDS.keys()


# ---- PNG with much beside the pixels


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "note",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 3_000_000)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"a" * 3_000_000)),
        chunk(b"tEXt", b"Comment\0" + b"a" * 3_000_000) * 30,
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3_000_000))),
    ],
)
@pytest.mark.parametrize("behind", [False, True])
def test_a_png_with_huge_notes_is_read(note, behind):
    data = png_bytes("red", (5, 4))
    at = len(data) - 12 if behind else 33  # before the end, or behind the header
    up = chunk(b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0")  # a quarter turn
    image = open_picture(data[:33] + up + data[33:at] + note + data[at:])
    assert image.shape == (5, 4, 3) and (image == (255, 0, 0)).all()


def test_a_png_that_is_damaged_stays_so():
    data = png_bytes("red", (50, 40))
    note = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 3_000_000))
    with pytest.raises(ReadError, match="damaged or cut short"):
        open_picture(data[:33] + note + data[33:60])


# ---- folders


def test_a_path_that_is_too_long_is_reported(here, stand_in, call):
    """Deeper than a path can say, as archives unpack; what is above is read."""
    picture("deep/top.png")
    home = os.getcwd()
    os.chdir("deep")
    for _ in range(25):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    picture("lost.png")
    os.chdir(home)
    code, out, err = call("read", "deep", "--aligned", "--model", stand_in)
    assert code == 1 and len(out) == 1
    [line] = err
    assert line.startswith("mien: deep/ddd") and line.endswith("cannot be listed (file name too long)")
    code, _, err = call("batch", "deep", "out", "--aligned", "--model", stand_in)
    assert code == 1 and len(err) == 1 and err[0].endswith("cannot be listed (file name too long)")
    subprocess.run(["rm", "-r", "deep"], check=True)  # which pytest could not remove


@pytest.mark.parametrize("source", ["album", "album/**", "album/*/*.png", "album/shut/*"])
def test_folders_that_cannot_be_listed(here, monkeypatch, source):
    picture("album/open/1.png")
    os.makedirs("album/shut")
    scandir = os.scandir

    def closed(path="."):
        if os.fspath(path).rstrip("/").endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    missed = []
    found = find_pictures(source, missed=missed)
    assert found == ([] if "shut" in source else ["album/open/1.png"])
    assert {str(error).replace("shut/:", "shut:") for error in missed} == {
        "album/shut: cannot be listed (permission denied)"
    }


# ---- zips


@pytest.fixture
def album(here):
    with zipfile.ZipFile("album.zip", "w") as archive:
        archive.writestr("a/1.png", png_bytes("red"))
        archive.writestr("b/2.PNG", png_bytes("blue"))
        archive.writestr("b/notes.txt", "hello")
        archive.writestr("__MACOSX/b/._2.png", b"Mac")
        archive.writestr("b/3.jxl", b"\xff\x0a")
        archive.mkdir("empty")
    return here


def test_a_zip_of_pictures(album, stand_in, call):
    names = ["album.zip/a/1.png", "album.zip/b/2.PNG"]
    missed = []
    assert find_pictures("album.zip", missed=missed) == names
    assert [str(error) for error in missed] == ["album.zip: 1 picture of a format that does not open: 1 JPEG XL"]
    assert open_picture(names[0])[0, 0].tolist() == [255, 0, 0]
    code, out, err = call("read", "album.zip", "--aligned", "--model", stand_in, "--annotate", "drawn")
    rows = list(map(json.loads, out))
    assert code == 1 and err == [f"mien: {missed[0]}"]
    assert [(row["source"], row["expression"]) for row in rows] == [(names[0], "anger"), (names[1], "sadness")]
    assert sorted(os.listdir("drawn")) == ["1.png", "2.png"]
    code, out, err = call("batch", "album.zip", "out", "--aligned", "--model", stand_in)
    assert (code, out) == (1, ["out: 2 faces in 2 pictures"])
    assert call("batch", "album.zip/a/1.png", "out2", "--aligned", "--model", stand_in)[0] == 0
    reader = mien.Reader.from_pretrained(stand_in, aligned=True)
    assert [faces[0].expression for faces in reader.read_many(find_pictures("album.zip"))] == ["anger", "sadness"]
    with pytest.raises(ReadError, match="album.zip: a zip, not a picture"):
        reader("album.zip")


def test_a_zip_is_read_by_threads_and_forks(album):
    with zipfile.ZipFile("many.zip", "w") as archive:
        for i in range(40):
            archive.writestr(f"{i}.png", png_bytes((i, 0, 0)))
    names = [f"many.zip/{i}.png" for i in range(40)]
    open_picture(names[0])
    child = os.fork()
    good = False
    try:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            good = [image[0, 0, 0] for image in pool.map(open_picture, names)] == list(range(40))
    finally:
        if not child:
            os._exit(0 if good else 1)
    assert good and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_zips_that_cannot_be_read(album, monkeypatch):
    data = Path("album.zip").read_bytes()
    Path("cut.zip").write_bytes(data[:100])
    missed = []
    assert find_pictures("cut.zip", missed=missed) == []
    assert [str(error) for error in missed] == ["cut.zip: a zip that is damaged or cut short"]
    at = data.index(png_bytes("red")) + 45
    Path("bad.zip").write_bytes(data[:at] + b"\0\0\0" + data[at + 3 :])
    monkeypatch.setattr(sources, "MAX_BYTES", 2**28)
    for name, reason in {
        "album.zip/none.png": "nothing of that name in album.zip",
        "album.zip/a/1.png/x": "nothing of that name in album.zip",
        "bad.zip/a/1.png": "damaged in its zip",
        "none.zip/a.png": "no such file",
    }.items():
        with pytest.raises(ReadError) as error:
            open_picture(name)
        assert (error.value.source, error.value.reason) == (name, reason)
    monkeypatch.setattr(sources, "MAX_BYTES", 20)
    with pytest.raises(ReadError, match="album.zip/b/2.PNG: more than"):
        open_picture("album.zip/b/2.PNG")
    locked = bytearray(data)
    for at in (i for i in range(len(data)) if data[i : i + 4] == b"PK\1\2"):
        locked[at + 8] |= 1
    Path("locked.zip").write_bytes(locked)
    monkeypatch.setattr(sources, "MAX_BYTES", 2**28)
    with pytest.raises(ReadError, match="locked.zip/a/1.png: locked with a password"):
        open_picture("locked.zip/a/1.png")
    with zipfile.ZipFile("empty.zip", "w"):
        pass
    with pytest.raises(ReadError, match="empty.zip: a zip, not a picture"):
        open_picture(*find_pictures("empty.zip"))


# ---- opened files, bytes, stdin, file://


class Chunks:
    """Something with `read` alone."""

    def __init__(self, data):
        self.data = data

    def read(self, size):
        part, self.data = self.data[:size], self.data[size:]
        return part


def test_anything_with_read(here):
    path = picture("a.png")
    wanted = open_picture(path)
    with path.open("rb") as file, path.open("rb") as other:
        for source in (file, Chunks(path.read_bytes()), io.BytesIO(path.read_bytes()), bytearray(path.read_bytes())):
            np.testing.assert_array_equal(open_picture(source), wanted)
        with pytest.raises(ReadError, match="a.png: an empty file"):
            open_picture(file)  # it has been read
        other.close()
        with pytest.raises(ReadError, match="a.png: cannot be read"):
            open_picture(other)
    Path("text.txt").write_text("hello")
    with open("text.txt") as file, pytest.raises(ReadError, match="text.txt: .*binary mode"):
        open_picture(file)
    with open("text.txt", "rb") as file, pytest.raises(ReadError, match="text.txt: not a picture"):
        open_picture(file)


def test_an_endless_file_is_bounded(monkeypatch):
    monkeypatch.setattr(sources, "MAX_BYTES", 2**20)
    with open("/dev/zero", "rb") as file, pytest.raises(ReadError, match="/dev/zero: more than 1 MB"):
        open_picture(file)


def test_stdin(here, stand_in):
    words = [sys.executable, "-m", "mien", "read", "-", "--aligned", "--model", str(stand_in), "--annotate", "drawn"]
    ran = subprocess.run(words, input=png_bytes("blue"), capture_output=True, timeout=120)
    row = json.loads(ran.stdout)
    assert (ran.returncode, ran.stderr, row["source"], row["expression"]) == (0, b"", "-", "sadness")
    assert os.listdir("drawn") == ["stdin.png"]
    ran = subprocess.run(words, input=b"", capture_output=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (1, b"mien: stdin: an empty file\n")


def test_file_addresses(here, stand_in, call):
    path = picture("a b/é#.png", "blue")
    address = path.resolve().as_uri()
    assert "%20" in address
    np.testing.assert_array_equal(open_picture(address), open_picture(path))
    np.testing.assert_array_equal(open_picture(address.replace("file://", "file://localhost")), open_picture(path))
    assert find_pictures(address.rpartition("/")[0]) == [str(path.resolve())]
    assert find_sources([address]) == ([str(path.resolve())], [], [])
    code, out, _ = call("read", address, "--aligned", "--model", stand_in)
    assert code == 0 and json.loads(out[0])["expression"] == "sadness"
    assert call("batch", address, "out", "--aligned", "--model", stand_in)[0] == 0
    code, _, err = call("read", "file://elsewhere/a.png", "--model", stand_in)
    assert (code, err) == (
        1,
        ["mien: file://elsewhere/a.png: on another machine: a file:// address begins with three slashes"],
    )


# ---- servers


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/moved.png":
            self.answer(302, b"", {"Location": "/1.png"})
        elif path == "/leaves.png":
            self.answer(302, b"", {"Location": "file:///etc/passwd"})
        elif path == "/big.png":
            self.answer(200, bytes(5000))
        elif path == "/short.png":
            self.answer(200, png_bytes("blue")[:50], {"Content-Length": "5000"})
        elif path == "/drip.png":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                pass
        elif path in ("/1.png", "/photo"):
            self.answer(200, png_bytes("blue"), {"Content-Type": "image/png"})
        elif path == "/page":
            self.answer(200, b"<html>", {"Content-Type": "text/html"})
        else:
            self.answer(404, b"")

    def answer(self, code, data, headers=()):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_pictures_of_a_server(server, here, stand_in, call):
    reader = mien.Reader.from_pretrained(stand_in, aligned=True)
    for name in ("1.png", "moved.png", "photo", "1.png?size=2"):
        faces = reader(f"{server}/{name}")
        assert faces[0].expression == "sadness" and faces.to_dicts()[0]["source"] == f"{server}/{name}"
    faces.save("drawn.png")  # what was fetched is kept
    code, out, err = call(
        "read", f"{server}/1.png", f"{server}/photo", "--aligned", "--model", stand_in, "--crops", "c"
    )
    assert (code, err) == (0, []) and [json.loads(row)["expression"] for row in out] == ["sadness"] * 2
    assert sorted(os.listdir("c")) == ["1-face0.png", "photo-face0.png"]
    code, out, err = call("batch", f"{server}/1.png", f"{server}/none.png", "out", "--aligned", "--model", stand_in)
    assert (code, out) == (1, ["out: 1 face in 1 picture, 1 could not be read"])
    assert err == [f"mien: {server}/none.png: the server answers 404 not found"]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("none.png", "the server answers 404 not found"),
        ("page", "not a picture"),
        ("short.png", "cut short: 50 of 5,000 bytes came"),
        ("leaves.png", "the server answers 302"),
    ],
)
def test_what_a_server_may_answer(server, name, reason):
    with pytest.raises(ReadError, match=f"{server}/{name}: {reason}"):
        open_picture(f"{server}/{name}")


def test_bounds_of_size_and_time(server):
    with pytest.raises(ReadError, match="more than 0 MB"):
        fetch(f"{server}/big.png", max_bytes=1000)
    with pytest.raises(ReadError, match="no whole answer within 0.3 s"):
        fetch(f"{server}/drip.png", seconds=0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/a.png"
        with pytest.raises(ReadError, match="(no whole answer within 0.3 s|timed out)"):
            fetch(address, seconds=0.3)
    with pytest.raises(ReadError, match=r"not to be fetched \(connection refused\)"):
        fetch(address)


@pytest.mark.parametrize("address", ["http://", "http://[", "http://a b/c.png", "https://exa\nmple/c.png"])
def test_addresses_that_are_none(address):
    with pytest.raises(ReadError) as error:
        fetch(address, seconds=5)
    assert "\n" not in error.value.reason


def test_which_addresses_are_pictures(server):
    assert not any(map(is_video, [f"{server}/1.png", f"{server}/photo", "https://x/a.JPG?b=c.mp4"]))
    assert is_video(f"{server}/page") and is_video("https://x/a.mp4") and is_video("http://x/live.m3u8")
    assert is_video("rtsp://x/a.jpg")


# ---- videos by another name


def test_a_video_of_an_unknown_ending(here, stand_in, call):
    from films import film

    film(Path("clip.mp4"), [np.full((64, 64, 3), (255, 0, 0), np.uint8)] * 3)
    os.rename("clip.mp4", "clip.dat")
    code, _, err = call("read", "clip.dat", "--aligned", "--model", stand_in)
    assert code == 1
    assert err == [
        "mien: clip.dat: a video, not a picture: mien read goes by the name, such as .mp4, and takes any with --video"
    ]
    code, out, err = call("read", "clip.dat", "--video", "--aligned", "--model", stand_in, "--annotate", "drawn")
    assert (code, err) == (0, [])
    assert [json.loads(row)["frame"] for row in out] == [0, 1, 2]
    assert os.listdir("drawn") == ["clip.mp4"]


def test_video_is_forced(here):
    for name in ("a/1.jpg", "a/2.mp4"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert find_sources(["a", "a/1.jpg"], True) == (["a/2.mp4", "a/1.jpg"], [], [])


def test_the_service_takes_bytes_alone():
    """No name in a request is ever opened or fetched: pictures arrive as bytes."""
    from mien.service.bodies import pictures_in
    from mien.service.limits import Refused

    body = json.dumps({"pictures": [{"name": "/etc/passwd", "data": "aHR0cDovL3g="}]}).encode()
    try:
        taken = pictures_in(body, "application/json", 5)
    except Refused:
        taken = []
    assert all(isinstance(data, bytes | bytearray) for _, data in taken)


def test_classifiers_take_the_same_sources(here, stand_in):
    classifier = mien.Classifier.from_pretrained(stand_in)
    path = picture("a.png", "blue")
    faces = ["a.png", path, path.read_bytes(), path.as_posix(), io.BytesIO(path.read_bytes()), Image.open(path)]
    assert classifier.predict(faces) == ["sadness"] * len(faces)
    with pytest.raises(MienError, match="none.png: no such file"):
        classifier.predict(["none.png"])
