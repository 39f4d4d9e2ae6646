"""What a picture costs in the static page, in the browser of this machine, beside `mien.Reader` in this process.

python web/build.py && python benchmarks/web.py [--rounds 10]

Both read the same pictures in turn, from pixels to probabilities: astronaut.png (512×512) and hopper.jpg (512×600) with
one face, and four of these side by side (1898×512). Each line is the median of the rounds, in milliseconds; the first
round, which warms up, is left out. "opening" is from asking for the page to its model being ready, fetched from this
machine.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np

from mien import Reader
from mien.faces import open_picture

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import browser  # noqa: E402

READ = """
const [path, done] = arguments;
const { Reader } = await import("./read.js");
const { openPicture, pixels } = await import("./picture.js");
const ort = await import("./ort.wasm.bundle.min.mjs");
ort.env.wasm.numThreads = 1;
window.reader ??= await Reader.open(ort, location.href);
const bitmap = await openPicture(await (await fetch(path)).blob());
const image = pixels(bitmap, bitmap.width, bitmap.height);
const start = performance.now();
const faces = await window.reader.read(image);
done([performance.now() - start, faces.length]);
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    pictures = write_pictures(ROOT / "web" / "dist")
    reader = Reader.from_pretrained(precision="fp32")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=ROOT / "web" / "dist"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in pictures}
    with tempfile.TemporaryDirectory() as folder, browser.open_browser(Path(folder)) as driver:
        driver.set_script_timeout(300)
        start = time.perf_counter()
        driver.get(f"http://127.0.0.1:{server.server_port}/")
        browser.wait(driver, "#status", "Ready")
        print(f"opening {time.perf_counter() - start:.1f} s, {driver.capabilities['browserVersion']}")
        for _ in range(rounds + 1):
            for name, image in pictures.items():
                page, faces = driver.execute_async_script(f"(async () => {{{READ}}}).apply(null, arguments)", name)
                start = time.perf_counter()
                assert len(reader(image)) == faces
                times[name].append((page, 1000 * (time.perf_counter() - start)))
    for name in pictures:
        (ROOT / "web" / "dist" / name).unlink()
    print(f"{'picture':20} {'page':>8} {'Reader':>8} {'ratio':>6}")
    for name, pairs in times.items():
        page, python = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
        print(f"{name:20} {page:8.0f} {python:8.0f} {page / python:6.1f}")


def write_pictures(folder: Path) -> dict[str, np.ndarray]:
    """The pictures as PNG beside the page, and their pixels."""
    if not folder.is_dir():
        raise SystemExit("first: python web/build.py")
    one, other = (open_picture(ROOT / "examples" / name) for name in ("astronaut.png", "hopper.jpg"))
    small = cv2.resize(other, (437, 512), interpolation=cv2.INTER_AREA)
    four = np.concatenate([small, one, one[:, ::-1], small[:, ::-1]], axis=1)
    pictures = {"bench_astronaut.png": one, "bench_hopper.png": other, "bench_four.png": four}
    for name, image in pictures.items():
        cv2.imwrite(str(folder / name), image[:, :, ::-1])
    return pictures


if __name__ == "__main__":
    main()
