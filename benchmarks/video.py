"""How many frames a second `mien read` takes in, and whether memory stays flat over a long video.

    python benchmarks/video.py                    # speed: 720p at 25 fps, one face that moves about
    python benchmarks/video.py --long 3600        # memory: resident set size while an hour of low-cost video is read
    python benchmarks/video.py --cores 2          # on so many cores only (Linux)

Speed is measured end to end (open, decode, detect or track, classify, write rows), in turns, `--rounds` of each way of
reading, so that what else the machine does falls on all of them; the table shows the best and the median round. The
clip is examples/astronaut.png moving over a darkened copy of itself, H.264 with three B-frames, coded at a quality at
which people keep videos.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from mien.faces import open_picture
from mien.files import whole
from mien.reader import Reader
from mien.video import AnnotatedVideo, Video, read_video, video_records

ASTRONAUT = Path(__file__).parents[1] / "examples" / "astronaut.png"


def frames(size: tuple[int, int], face: int, count: int) -> Iterator[np.ndarray]:
    """The astronaut, whose face is about 90 of 512 pixels wide, made so large that it is `face` wide, on her way."""
    image = open_picture(ASTRONAUT)
    ground = cv2.GaussianBlur(cv2.resize(image, size), (0, 0), 5) // 3
    side = min(round(512 * face / 90), size[1])
    her = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    room = np.subtract(size, side)
    for i in range(count):
        canvas = ground.copy()
        x, y = ((np.sin((i / 61, i / 43)) + 1) / 2 * room).astype(int)
        canvas[y : y + side, x : x + side] = her
        yield canvas


def write(path: Path, size: tuple[int, int], face: int, seconds: int, rate: int, quality: str) -> None:
    """A minute at most is coded; a longer video repeats it, packet by packet."""
    part = path.with_name("minute.mp4")
    count = min(seconds, 60) * rate
    with av.open(str(part), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": quality, "bf": "3"})
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        for image in frames(size, face, count):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(video.encode())
    with av.open(str(path), "w") as container:
        copy = None
        for again in range(-(-seconds * rate // count)):
            with av.open(str(part)) as minute:
                copy = copy or container.add_stream_from_template(minute.streams.video[0])
                for packet in minute.demux(video=0):
                    if packet.size:
                        shift = round(again * count / rate / packet.time_base)
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                        container.mux(packet)


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def speed(reader: Reader, folder: Path, args: argparse.Namespace) -> None:
    clip = folder / "clip.mp4"
    write(clip, (1280, 720), args.face, args.seconds, 25, "23")
    count = args.seconds * 25

    def decode() -> None:
        for _ in Video(clip).pictures():
            pass

    def read(**options) -> None:
        with whole(folder / "rows.jsonl") as file:
            for frame in read_video(clip, reader, **options):
                for row in video_records("clip.mp4", frame):
                    file.write(repr(row).encode())

    def annotate() -> None:
        with Video(clip) as video, AnnotatedVideo(folder / "drawn.mp4", video) as drawn:
            for frame in read_video(video, reader, track=True, images=True, sound=True):
                drawn.write(frame)

    ways = {
        "decode and convert only": decode,
        "every frame by itself": read,
        "--track": lambda: read(track=True),
        "--track --detect-every 1": lambda: read(track=True, detect_every=1),
        "--track --every 5": lambda: read(track=True, every=5),
        "--track --annotate": annotate,
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            took[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    cores = len(os.sched_getaffinity(0))
    print(f"1280×720, 25 fps, one face {args.face} pixels wide, {args.seconds} s, {cores} cores")
    print(f"{'':26} {'fps best':>9} {'median':>8} {'× real time':>12} {'CPU ms a frame':>15}")
    for name, rounds in took.items():
        walls = [wall for wall, _ in rounds]
        best, median = count / min(walls), count / statistics.median(walls)
        cpu = min(cpu for _, cpu in rounds) / count * 1000
        print(f"{name:26} {best:9.1f} {median:8.1f} {best / 25:12.1f} {cpu:15.1f}")


def memory(reader: Reader, folder: Path, args: argparse.Namespace) -> None:
    clip = folder / "long.mp4"
    write(clip, (320, 240), 60, args.long, 25, "35")
    print(f"320×240, 25 fps, {args.long} s, tracked, rows as parquet, a summary and an annotated copy are written")
    from mien.commands.rows import WRITERS
    from mien.video import Summary
    from mien.video.timeline import plot

    summary, video = Summary(reader.classifier.labels, reader.outputs[1:]), Video(clip)
    summary.begin(clip.name)
    begin, marks = time.perf_counter(), 0
    with (
        whole(folder / "rows.parquet") as file,
        AnnotatedVideo(folder / "drawn.mp4", video) as drawn,
    ):
        writer = WRITERS[".parquet"](file, reader.outputs, True)
        for frame in read_video(video, reader, track=True, images=True, sound=True, thumbnails=True):
            for row in video_records(clip.name, frame):
                writer.write(row)
            drawn.write(frame)
            summary.add(frame)
            if frame.time >= marks * args.long / 12:
                threads, took = threading.active_count(), time.perf_counter() - begin
                print(
                    f"{frame.time:8.1f} s read   {resident():7.1f} MiB   {threads} threads   {took:6.0f} s", flush=True
                )
                marks += 1
        writer.close()
    summary.end()
    with open(folder / "timeline.png", "wb") as file:
        plot(summary, file)
    print(f"     end          {resident():7.1f} MiB, the timeline drawn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20, help="of the clip (default: 20)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--face", type=int, default=125, help="width of the face in pixels, 126 at most (default: 125)")
    parser.add_argument("--long", type=int, metavar="SECONDS", help="measure memory over a video so long instead")
    parser.add_argument("--cores", type=int)
    args = parser.parse_args()
    if args.cores:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: args.cores]))
    reader = Reader.from_pretrained()
    with tempfile.TemporaryDirectory() as folder:
        (memory if args.long else speed)(reader, Path(folder), args)


if __name__ == "__main__":
    main()
