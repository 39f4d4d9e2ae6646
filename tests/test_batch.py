"""mien batch: what it finds, what it writes, and that nothing is lost or repeated wherever it is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import COLOURS
from PIL import Image

from mien.__main__ import main
from mien.batch import Shard, Store
from mien.batch.sources import contents
from mien.batch.tries import REASON, Tries
from mien.commands import batch
from mien.errors import ReadError

NAMES = ["anger", "disgust", "sadness"]


def crop(label: str) -> Image.Image:
    return Image.new("RGB", (16, 16), COLOURS[label])


def draw(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03}.png" for i in range(count)]
    for i, path in enumerate(paths):
        crop(NAMES[i % 3]).save(path)
    return list(map(str, paths))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mien(stand_in, call):
    """`mien batch` with the stand-in model, or another, on face crops."""
    return lambda *words, model=stand_in: call("batch", *words, "--aligned", "--model", model)


def table(out) -> list[dict]:
    """All rows, in the order of the files."""
    return [row for path in sorted(Path(out).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def written(out) -> dict[str, tuple[int, int]]:
    """Which files there are, and what tells whether they were written anew."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in Path(out).glob("*.parquet")}


def test_rows_are_those_of_mien_read(here, mien, stand_in):
    paths = draw(here / "in", 5)
    code, out, err = mien("in", "out", "--shard-size", 2)
    assert (code, out, err) == (0, ["out: 5 faces in 5 pictures"], [])
    assert sorted(written("out")) == [f"part-0000{i}.parquet" for i in range(3)]
    main(["read", *paths, "--aligned", "--model", str(stand_in), "--output", "read.parquet"])
    read, ours = pq.read_table("read.parquet"), pq.read_table("out")  # as a folder: nothing else in it is in the way
    assert ours.column_names == [*read.column_names, "error"]
    assert ours.drop_columns("error").to_pylist() == read.to_pylist()
    assert ours["error"].null_count == 5
    assert [row["expression"] for row in table("out")] == [NAMES[i % 3] for i in range(5)]


def test_what_cannot_be_read_is_a_row(here, mien, monkeypatch):
    paths = draw(here / "in", 4)
    Path("in/a_bomb.png").write_bytes(b"P6\n20000 20000\n255\n")
    Path("in/empty.png").touch()
    Path("in/junk.jpg").write_text("no picture")
    os.mkfifo("in/pipe.png")

    def find_and_lose(*arguments):
        found = find_sources(*arguments)
        os.unlink(paths[2])
        return found

    find_sources = batch.find_sources
    monkeypatch.setattr(batch, "find_sources", find_and_lose)
    code, out, err = mien("in", "out", "--shard-size", 3)
    rows = {Path(row["source"]).name: row for row in table("out")}
    errors = {name: row["error"] for name, row in rows.items() if row["error"]}
    assert errors.keys() >= {"a_bomb.png"} and "more than 178 million pixels" in errors["a_bomb.png"]
    assert errors == {
        "a_bomb.png": errors["a_bomb.png"],
        "empty.png": "an empty file",
        "junk.jpg": "not a picture",
        "pipe.png": "not a file",
        "002.png": "no such file",
    }
    assert list(rows) == sorted(rows) and len(rows) == 8
    assert all(rows[name]["face"] is rows[name]["note"] is None for name in errors)
    assert [rows[f"00{i}.png"]["expression"] for i in (0, 1, 3)] == ["anger", "disgust", "anger"]
    assert code == 1
    assert out == ["out: 3 faces in 3 pictures, 5 could not be read"]
    assert sorted(err) == sorted(f"mien: {here}/in/{name}: {reason}" for name, reason in errors.items())

    monkeypatch.setattr(batch, "find_sources", find_sources)
    assert mien("in", "out")[::2] == (1, [])  # it is told once, and stays an error
    assert mien("in", "out", "--tolerate", 0.7)[0] == 0
    assert mien("in", "out", "--tolerate", 0.6)[0] == 1


def test_what_nobody_thought_of_is_a_row(here, mien, monkeypatch):
    draw(here / "in", 5)
    from mien import reader

    opening = reader.open_picture

    def fail(source, **options):
        if str(source).endswith("003.png"):
            raise MemoryError("too much")
        return opening(source, **options)

    monkeypatch.setattr(reader, "open_picture", fail)
    code, out, _ = mien("in", "out")
    assert (code, out) == (1, ["out: 4 faces in 4 pictures, 1 could not be read"])
    assert [row["error"] for row in table("out")] == [None] * 3 + ["MemoryError: too much", None]


def test_no_face(here, stand_in, capfd):
    crop("anger").resize((300, 300)).save("none.png")
    assert main(["batch", "none.png", "out", "--model", str(stand_in)]) == 0
    [row] = table("out")
    assert (row["face"], row["note"], row["error"]) == (None, "no face found", None)
    assert capfd.readouterr().out == "out: 0 faces in 1 picture\n"


def test_again(here, mien, monkeypatch):
    paths = draw(here / "in", 5)
    mien("in", "out", "--shard-size", 2)
    before = written("out")
    assert mien("in", "out", "--shard-size", 2)[:2] == (0, ["out: 5 faces in 5 pictures (nothing was left to do)"])
    assert written("out") == before

    with monkeypatch.context() as patch:
        patch.setattr(batch, "__version__", "99")
        code, _, [line] = mien("in", "out")
    assert code == 0 and "was begun by mien 0." in line and "99" in line

    Path("out/part-00000.parquet").unlink()  # or never written
    Path("out/part-00001.parquet").write_bytes(b"PAR1")  # or cut
    draw(here / "more", 3)
    os.unlink(paths[4])  # its row stays, since it is read
    code, out, _ = mien("in", "./in/000.png", "more", "out", "--shard-size", 2)
    assert (code, out) == (0, ["out: 8 faces in 8 pictures (7 of them now)"])
    after = written("out")
    assert [name for name in before if after[name] == before[name]] == ["part-00002.parquet"]
    assert [row["source"] for row in table("out")] == [*paths, *(f"{here}/more/00{i}.png" for i in range(3))]


def test_retry(here, mien):
    draw(here / "in", 4)
    whole, path = Path("in/001.png").read_bytes(), Path("in/001.png")
    path.write_bytes(whole[:40])
    assert mien("in", "out", "--shard-size", 2)[0] == 1
    before = written("out")
    path.write_bytes(whole)
    assert mien("in", "out")[0] == 1
    assert mien("in", "out", "--retry")[:2] == (0, ["out: 4 faces in 4 pictures (2 of them now)"])
    after = written("out")
    assert [name for name in before if after[name] == before[name]] == ["part-00001.parquet"]
    assert [row["error"] for row in table("out")] == [None] * 4


def test_something_else_is_refused(here, mien, tmp_path_factory):
    from conftest import HEADER, write_stand_in

    draw(here / "in", 2)
    mien("in", "out")
    before = written("out")
    code, _, [line] = mien("in", "out", "--abstain", "--min-face", 30)
    assert code == 1 and "min_face 20 there, 30.0 here, abstain False there, True here" in line
    assert "another folder" in line
    other = write_stand_in(here / "other" / "model.onnx", HEADER | {"temperature": 2.0})
    code, _, [line] = mien("in", "out", model=other)
    assert code == 1 and "another folder" in line and str(other) in line
    assert written("out") == before

    Path("mine").mkdir()
    Path("mine/notes.txt").touch()
    code, _, [line] = mien("in", "mine")
    assert code == 1 and "notes.txt" in line
    Path("out/_mien/sources-00000.json").write_text("{")
    code, _, [line] = mien("in", "out")
    assert code == 1 and "sources-00000.json: damaged" in line
    assert mien("in", "in/000.png")[0] == 2  # not a folder
    for words, reason in [
        (("nothing", "new"), "nothing: no such file"),
        (("in/*.gif", "new"), "no pictures there"),
        (("zzz://bucket", "new"), "protocol not known: zzz"),
        (("zip://a::s3://b", "new"), "an address within an address"),
    ]:
        code, _, [line] = mien(*words)
        assert code == 1 and reason in line, line
        assert not list(Path("new").glob("*.parquet"))


def test_another_run_is_at_work(here, mien):
    draw(here / "in", 1)
    with Store("out").alone():
        code, _, [line] = mien("in", "out")
    assert code == 1 and "another run is at work" in line
    assert mien("in", "out")[0] == 0


def encoded(label: str) -> bytes:
    import io

    file = io.BytesIO()
    crop(label).save(file, "PNG")
    return file.getvalue()


def test_tables(here, mien):
    """Bytes, paths, and the Hub's structs of both; a table's rows are cut where a file is full, whatever its groups."""
    Path("tables").mkdir()
    draw(here / "tables" / "beside", 3)
    crops = [encoded(NAMES[i % 3]) for i in range(11)]
    pq.write_table(pa.table({"image": crops, "id": range(11)}), "tables/bytes.parquet", row_group_size=4)
    structs = [{"bytes": crops[1], "path": None}, {"bytes": None, "path": "beside/002.png"}, {"bytes": None}, None]
    pq.write_table(pa.table({"image": structs}), "tables/hub.parquet")
    paths = ["beside/000.png", str(here / "tables/beside/001.png"), "beside/gone.png", "memory://far/a.png"]
    pq.write_table(pa.table({"image": paths}), "tables/paths.parquet")
    fsspec.filesystem("memory").pipe_file("/far/a.png", encoded("sadness"))
    Path("tables/zzz.parquet").write_text("no table")

    code, out, _ = mien("tables/*.parquet", "out", "--shard-size", 3)
    rows = table("out")
    expected = [(f"bytes.parquet row {i}", NAMES[i % 3], None) for i in range(11)]
    expected += [(f"hub.parquet row {i}", NAMES[i], None) for i in (1, 2)]
    expected[11:13] = [("hub.parquet row 0", "disgust", None), ("hub.parquet row 1", "sadness", None)]
    expected += [(f"hub.parquet row {i}", None, "no picture") for i in (2, 3)]
    expected += [("paths.parquet row 0", "anger", None), ("paths.parquet row 1", "disgust", None)]
    expected += [("paths.parquet row 2", None, "no such file"), ("paths.parquet row 3", "sadness", None)]
    expected += [("zzz.parquet", None, "not a parquet file, or damaged")]
    told = [(row["source"].removeprefix(f"{here}/tables/"), row["expression"], row["error"]) for row in rows]
    assert told == expected
    assert (code, out) == (1, ["out: 16 faces in 16 pictures, 4 could not be read"])

    code, _, [line] = mien("tables/bytes.parquet", "other", "--column", "picture")
    assert code == 1 and "no column 'picture', only image, id" in line
    pq.write_table(pa.table({"image": crops[:5]}), "tables/bytes.parquet")
    code, _, [line] = mien("tables/*.parquet", "out")
    assert code == 1 and "5 rows, and 11 when it was planned" in line

    os.mkdir("apart")
    os.rename("tables/bytes.parquet", "apart/bytes.parquet")
    assert mien("apart", "three")[:2] == (0, ["three: 5 faces in 5 pictures"])  # a folder of tables


def test_rows_of_a_table_that_is_cut_later(here):
    """From any row, any number of them."""
    pq.write_table(pa.table({"image": [str(i) for i in range(200)]}), "t.parquet", row_group_size=70)
    name = str(here / "t.parquet")
    for first, count in [(0, 200), (0, 1), (69, 2), (70, 70), (130, 70), (199, 1)]:
        told = list(contents([(name, first, count)], "image"))
        assert told == [(f"{name} row {i}", str(here / str(i))) for i in range(first, first + count)]
    os.truncate(name, 50)
    told = list(contents([(name, 3, 4)], "image"))
    assert [where for where, _ in told] == [f"{name} row {i}" for i in range(3, 7)]
    assert all(isinstance(error, ReadError) for _, error in told)


@pytest.fixture
def bucket():
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()


def test_buckets(here, mien, bucket):
    for i, name in enumerate(["b/in/x.png", "b/in/sub/y.PNG", "b/in/notes.txt", "b/in/.z.png"]):
        bucket.pipe_file(f"/{name}", encoded(NAMES[i % 3]))
    bucket.pipe_file("/b/in/empty.jpg", b"")
    code, out, _ = mien("memory://b/in", "memory://b/out", "--shard-size", 2)
    assert (code, out) == (1, ["memory://b/out: 2 faces in 2 pictures, 1 could not be read"])
    rows = [row for i in range(2) for row in pq.read_table(bucket.open(f"/b/out/part-0000{i}.parquet")).to_pylist()]
    told = [(row["source"], row["expression"], row["error"]) for row in rows]
    assert told == [
        ("memory:///b/in/empty.jpg", None, "an empty file"),
        ("memory:///b/in/sub/y.PNG", "disgust", None),
        ("memory:///b/in/x.png", "anger", None),
    ]
    bucket.rm("/b/out/part-00001.parquet")
    bucket.pipe_file("/b/in/more.png", encoded("anger"))
    code, out, _ = mien("memory://b/in/*.png", "memory://b/out", "--tolerate", 0.5)
    assert (code, out) == (0, ["memory://b/out: 3 faces in 3 pictures (2 of them now), 1 could not be read"])
    assert sorted(bucket.ls("/b/out", detail=False))[1:] == [f"/b/out/part-0000{i}.parquet" for i in range(3)]

    pq.write_table(pa.table({"image": ["x.png", "sub/y.PNG", "gone.png"]}), "t.parquet")
    bucket.pipe_file("/b/in/t.parquet", Path("t.parquet").read_bytes())
    assert mien("memory://b/in/t.parquet", f"file://{here}/local")[0] == 1
    assert [row["error"] for row in table("local")] == [None, None, "no such file"]


def test_what_is_missing_is_named(here, mien, monkeypatch):
    draw(here / "in", 1)
    for module, words, extra in [
        ("pyarrow.parquet", ("in", "out"), "parquet"),
        ("fsspec", ("s3://bucket/in", "out"), "ray"),
        ("ray", ("in", "out", "--engine", "ray"), "ray"),
    ]:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            code, _, [line] = mien(*words)
        assert code == 1 and f'pip install "mien[{extra}]"' in line, line
    code, _, [line] = mien("s3://bucket/in", "out")
    assert code == 1 and "s3fs" in line  # the bucket's own client, which no extra brings


def test_no_cluster(monkeypatch):
    from mien.batch.cluster import running_ray
    from mien.errors import MienError

    monkeypatch.setattr("mien.batch.cluster.ray_and_data", lambda: (SimpleNamespace(is_initialized=bool), None))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(MienError, match="127.0.0.1:9: no Ray to be had there"), running_ray():
        pass


def shell(stand_in, *words, before: str = "") -> list[str]:
    told = ["batch", *map(str, words), "--aligned", "--model", str(stand_in)]
    return [sys.executable, "-c", f"import sys; from mien.__main__ import main; {before}; sys.exit(main({told!r}))"]


def test_a_kill_loses_and_repeats_nothing(here, stand_in, mien):
    paths = draw(here / "in", 60)
    mien("in", "whole", "--shard-size", 2)
    slow = (
        "import time, mien.reader as r; o = r.open_picture; "
        "r.open_picture = lambda s, **k: (time.sleep(0.01), o(s, **k))[1]"
    )
    seen = {}
    for at_least in (4, 12):
        run = subprocess.Popen(shell(stand_in, "in", "out", "--shard-size", 2, before=slow))
        while len(written("out")) < at_least:
            assert run.poll() is None
            time.sleep(0.005)
        run.kill()
        run.wait()
        now = written("out")
        assert at_least <= len(now) < 30
        assert seen.items() <= now.items()  # what was there is not made again
        seen = now
    Path("out/.1-abcd.part").write_bytes(b"half")
    code, out, _ = mien("in", "out", "--shard-size", 2)
    assert (code, out) == (0, [f"out: 60 faces in 60 pictures ({60 - 2 * len(seen)} of them now)"])
    assert seen.items() <= written("out").items()
    assert [row["source"] for row in table("out")] == paths
    assert sorted(os.listdir("out")) == sorted(os.listdir("whole"))
    for name in written("whole"):
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()


def test_a_picture_that_ends_the_process_is_a_row(here, stand_in, mien):
    draw(here / "in", 5)
    deadly = (
        "import os, mien.reader as r; o = r.open_picture; "
        "r.open_picture = lambda s, **k: os._exit(9) if s.endswith('003.png') else o(s, **k)"
    )
    for _ in range(3):
        assert subprocess.run(shell(stand_in, "in", "out", before=deadly)).returncode == 9
        assert not written("out")
    code, out, err = mien("in", "out")
    assert (code, out) == (1, ["out: 4 faces in 4 pictures, 1 could not be read"])
    assert [row["error"] for row in table("out")] == [None] * 3 + [REASON, None]
    digest = Shard(0, tuple(row["source"] for row in table("out"))).digest
    assert Tries(str(here / "out"), digest).attempt == 1  # forgotten, once it is told


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason="ray is not installed")
    from mien.batch import ray_and_data

    ray_and_data()
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init("local", num_cpus=2, object_store_memory=80 * 2**20, **quiet)
    yield ray
    ray.shutdown()


def workers() -> list[int]:
    """The processes of Ray's that hold a reader."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::") and b"_Worker" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


def test_ray_writes_the_same_files_even_if_a_worker_is_killed(ray, here, mien):
    paths = draw(here / "in", 40)
    Path("in/junk.png").write_text("no picture")
    mien("in", "alone", "--shard-size", 2)
    killed = []

    def kill() -> None:
        end = time.monotonic() + 250
        while not killed and time.monotonic() < end:
            if written("out") and (found := workers()):
                os.kill(found[0], signal.SIGKILL)
                killed.extend([found[0], len(written("out"))])
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    code, out, err = mien("in", "out", "--shard-size", 2, "--engine", "ray", "--workers", 1, "--worker-cpus", 1)
    killer.join()
    assert killed and 1 <= killed[1] < 21, "it came too late"
    assert (code, out) == (1, ["out: 40 faces in 40 pictures, 1 could not be read"])
    assert f"mien: {here}/in/junk.png: not a picture" in err  # beside what Ray says of its worker
    assert [row["source"] for row in table("out")] == [*paths, f"{here}/in/junk.png"]
    for name in written("alone"):
        assert Path("out", name).read_bytes() == Path("alone", name).read_bytes()
    assert killed[0] not in workers()

    code, out, _ = mien("in", "out", "--engine", "ray")
    assert (code, out) == (1, ["out: 40 faces in 40 pictures (nothing was left to do), 1 could not be read"])
    code, _, [line] = mien("in", "memory://not/shared", "--engine", "ray")
    assert code == 1 and "is not to be seen from here" in line
    code, _, [line] = mien("in", "wide", "--engine", "ray", "--worker-cpus", 64)
    assert code == 1 and "64 cores" in line
