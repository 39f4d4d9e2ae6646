"""Published data sets, in small: each in the very layout in which it is given out."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image


def draw(path: Path, value: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_rafdb(root: Path) -> Path:
    lines = []
    for i in range(7):
        for split, grey in (("train", 10 + i), ("test", 110 + i)):
            draw(root / f"Image/aligned/{split}_{i + 1:05}_aligned.png", grey)
            draw(root / f"Image/aligned_224/{split}_{i + 1:05}.png", grey + 50)
            lines.append(f"{split}_{i + 1:05}.png {i + 1}")
    write(root / "EmoLabel/list_patition_label.txt", *lines)
    return root


def write_expw(root: Path) -> Path:
    """Twenty pictures of two faces, the left one dark and labelled i % 7, the right one bright and neutral."""
    lines = []
    for i in range(20):
        picture = np.full((20, 40), 3 * i, np.uint8)
        picture[:, 20:] = 200 + i
        path = root / f"image/origin/face_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
        lines += [f"face_{i}.png 0 2 4 16 18 60.5 {i % 7}", f"face_{i}.png 1 -3 22 45 17 -1.25 6"]
    write(root / "label/label.lst", *lines)
    return root


HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"


def write_affectnet_2017(root: Path) -> Path:
    for split, header in (("training", [HEADER]), ("validation", [])):  # the second file came without one
        lines = []
        for i in range(11):
            name = f"{i}/{split}.png"
            picture = np.zeros((20, 20), np.uint8)
            picture[3:9, 5:12] = 10 + i
            path = root / "Manually_Annotated_Images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
            box = "NULL,NULL,NULL,NULL" if i == 10 else "5,3,7,6"
            lines.append(f"{name},{box},1.5;2.5;3.5,{i},-0.1,0.2")
        write(root / f"{split}.csv", *header, *lines)
    return root


def write_affectnet(root: Path) -> Path:
    """Labels of text, as they are given out; numbers as some copies have them."""
    for split in ("train_set", "val_set"):
        for i in range(8):
            draw(root / split / f"images/{9 + i}.jpg", 20 * i)
            folder = root / split / "annotations"
            folder.mkdir(exist_ok=True)
            np.save(folder / f"{9 + i}_exp.npy", np.array(str(i) if i % 2 else i))
            np.save(folder / f"{9 + i}_val.npy", np.array("0.5"))
    return root


UNITS = "AU1,AU2,AU12"
EXPR = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise"


def write_affwild2(root: Path) -> Path:
    """One video of expressions, one of action units, one of both; no face in frame 3."""
    notes = root / "annotations"
    write(notes / "EXPR_Set/Train_Set/1.txt", EXPR, "0", "4", "5", "-1", "1")
    write(notes / "AU_Set/Train_Set/2_left.txt", UNITS, "0,0,1", "1,-1,0", "0,0,0", "-1,-1,-1", "1,1,1")
    write(notes / "EXPR_Set/Train_Set/3.txt", EXPR, "-1", "6", "2", "3", "-1")
    write(notes / "AU_Set/Train_Set/3.txt", UNITS, "1,0,0", "-1,-1,-1", "0,0,0", "0,1,0", "-1,-1,-1")
    write(notes / "EXPR_Set/Validation_Set/4.txt", EXPR, "3", "-1")
    write(notes / "AU_Set/Validation_Set/4.txt", UNITS, "0,1,1", "0,0,1")
    for video, frames in (("1", 5), ("2_left", 5), ("3", 5), ("4", 2)):
        for frame in range(1, frames + 1):
            if frame != 3:
                draw(root / f"cropped_aligned/{video}/{frame:05}.png", 40 * int(video[0]) + frame)
    (root / "cropped_aligned/1/.DS_Store").write_bytes(b"")
    return root


def python2_batch(labels: list[int], pixels: bytes) -> bytes:
    """A batch as Python 2 pickled it, protocol 2: {"data": array, "labels": [...], "filenames": [...], ...}."""

    def text(data: bytes) -> bytes:
        return b"U" + struct.pack("<B", len(data)) + data

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    array += b"(K\x01" + b"".join(b"M" + struct.pack("<H", n) for n in (len(labels), 3072)) + b"\x86"
    array += b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"\x89T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    items = text(b"batch_label") + text(b"training batch 1 of 5") + text(b"labels") + numbers + text(b"data") + array
    return b"\x80\x02}(" + items + text(b"filenames") + b"](" + text(b"a_s_000001.png") + b"eu."


def pictures(count: int, start: int) -> np.ndarray:
    """(count, 3072): red the number, green its row, blue its column."""
    planes = np.zeros((count, 3, 32, 32), np.uint8)
    planes[:, 0] = np.arange(start, start + count)[:, None, None]
    planes[:, 1] = np.arange(32)[:, None]
    planes[:, 2] = np.arange(32)
    return planes.reshape(count, -1)


def write_sfew(root: Path) -> Path:
    for i, folder in enumerate(("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")):
        draw(root / f"Train/{folder}/film_{i}.png", 10 + i)
        draw(root / f"Val/{folder}/film_{i}.png", 110 + i)
    draw(root / "Test/film_1.png", 5)
    return root


def write_cifar10(root: Path, kind: str) -> Path:
    """As bytes ("bin") or pickled ("py"); batch i holds the numbers 10 i and 10 i + 1, of the classes i and 9 - i."""
    folder = root / f"cifar-10-batches-{kind}"
    folder.mkdir()
    for i, batch in enumerate(["test_batch", *(f"data_batch_{n}" for n in range(1, 6))]):
        labels, pixels = [i, 9 - i], pictures(2, 10 * i)
        if kind == "bin":
            rows = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1)
            (folder / f"{batch}.bin").write_bytes(rows.tobytes())
        else:
            (folder / batch).write_bytes(python2_batch(labels, pixels.tobytes()))
    return folder
