"""What the page shows of a photograph, as HTML: everything is in it, pictures included."""

import base64
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mien.explain.panel import Panel
from mien.faces import Face
from mien.faces.columns import entries, safe_cell
from mien.faces.draw import answer_of
from mien.faces.palette import colour_of, css, ink_on
from mien.faces.record import picture_records
from mien.outputs import EXPRESSION, Output

_MOST = 12  # numbers of an answer that are shown

LARGEST = 1280
"""Pixels of the longer side of a picture as it is shown; a larger one is made smaller."""

_RULE = Path(__file__).with_name("place.js").read_text(encoding="utf-8").replace("export function", "function")

PLACE = (
    _RULE
    + """const GAP = 5;
const place = frame => {
    const faces = [...frame.querySelectorAll('.mien-face')], chosen = face => face.ariaPressed === 'true';
    faces.sort((a, b) => chosen(b) - chosen(a));
    const labels = faces.map(face => face.querySelector('span')), within = frame.getBoundingClientRect();
    const several = faces.length > 1, boxes = faces.map(face => face.getBoundingClientRect())
        .map(({left, top, right, bottom}) => [left - within.left, top - within.top, right - within.left,
            bottom - within.top]);
    const measured = short => {
        labels.forEach(label => label.classList.toggle('short', short));
        return labels.map(label => label.getBoundingClientRect()).map(({width, height}) => [width, height]);
    };
    const short = measured(several), full = measured(false);
    places(boxes, short, full, [within.width, within.height], GAP).forEach((found, i) => {
        labels[i].classList.toggle('short', several && !found?.full);
        labels[i].classList.toggle('crowded', several && !found);
        const [left, top] = found ? found.place : [Math.max(0, boxes[i][0]), Math.max(0, boxes[i][1])];
        labels[i].style.left = left - boxes[i][0] - faces[i].clientLeft + 'px';
        labels[i].style.top = top - boxes[i][1] - faces[i].clientTop + 'px';
    });
};
const again = () => {  // gradio changes what is there into what is to be there, attribute by attribute
    changes.disconnect();
    const frame = element.querySelector('.mien-photograph');
    if (frame) place(frame);
    if (frame && frame !== observed) sizes.observe(observed = frame);
    changes.observe(element, {childList: true, subtree: true, attributes: true, characterData: true});
};
const sizes = new ResizeObserver(again), changes = new MutationObserver(again);
let observed = null;
again();
"""
)
"""JavaScript: no label of a face covers another one, or leaves the picture, as in `mien.faces.places`.

A number that has no room is left out until its face is chosen, or pointed at.
"""


def problem(reason: object) -> str:
    """Why there is nothing else to be seen."""
    return f'<p class="mien-problem" role="alert">{escape(str(reason))}</p>'


def photograph(url: str, size: tuple[int, int], faces: Sequence[Face], chosen: int = 0) -> str:
    """A picture with a button around each face, which names it, and numbers it where there are several.

    url: of the picture.
    size: width and height, in pixels, of the picture in which the faces were found.
    faces: what was found.
    chosen: the index of the face that is pressed.
    """
    width, height = size
    found = f"{len(faces)} faces" if len(faces) > 1 else "one face" if faces else "no face"
    parts = [f'<img src="{url}" alt="The photograph, with {found} found in it">']
    for i, face in enumerate(faces):
        x, y, w, h = face.box or (0, 0, width, height)
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        percents = [
            100 * v / of for v, of in ((left, width), (top, height), (right - left, width), (bottom - top, height))
        ]
        text = f"{i + 1} " if len(faces) > 1 else ""
        text += f"<b>{escape(answer_of(face))} {percent(face.probability)}</b>"
        style = "left:{:.2f}%;top:{:.2f}%;width:{:.2f}%;height:{:.2f}%".format(*percents)
        parts.append(
            f'<button type="button" class="mien-face" data-face="{i}" aria-pressed="{str(i == chosen).lower()}" '
            f'aria-label="{escape(title(i, face))}" '
            f'style="{style};{painted(face)}">'
            f"<span>{text}</span></button>"
        )
    # by the ratio of its sides the style makes it fit the height of a window, too
    return f'<div class="mien-photograph" style="--ratio:{width / height:.4f}">{"".join(parts)}</div>'


def bars(face: Face, index: int | None = None) -> str:
    """A table of the probabilities, a bar each; `index` is the face's number from 0, where there are several."""
    rows = "".join(
        f'<tr class="{"best" if label == face.expression else ""}"><th scope="row">{escape(label)}</th>'
        f'<td><span style="width:{100 * prob:.2f}%;background:{colour(label, face.probabilities)}"></span></td>'
        f"<td>{percent(prob)}</td></tr>"
        for label, prob in face.probabilities.items()
    )
    which = "This face" if index is None else f"Face {index + 1}"
    said = f"{which}: <strong>{escape(answer_of(face))}</strong>, with a probability of {percent(face.probability)}"
    others = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_spoken(answer))}</dd>"
        for name, answer in face.outputs.items()
        if name != EXPRESSION
    )
    more = f'<dl class="mien-answers">{others}</dl>' if others else ""
    more += f'<p class="mien-note">Of this face: {escape(face.note)}.</p>' if face.note else ""
    return f'<table class="mien-bars"><caption>{said}</caption><tbody>{rows}</tbody></table>{more}'


def _spoken(answer: Any) -> str:
    """An answer that is not the expression, as text; of many numbers, the largest."""
    if answer is None:
        return "not known"
    if isinstance(answer, Mapping) and len(answer) > _MOST:
        largest = sorted(answer, key=answer.__getitem__, reverse=True)[:_MOST]
        return f"{_spoken({label: answer[label] for label in largest})} and {len(answer) - _MOST} smaller"
    if isinstance(answer, Mapping):
        return ", ".join(f"{label} {_spoken(value)}" for label, value in answer.items())
    return " ".join(map(_spoken, answer)) if isinstance(answer, tuple) else f"{answer:.2f}"


def occluded(row: Sequence[Panel]) -> str:
    """The two panels of `mien.explain.Occlusion`, the face and its map."""
    return (
        f'<div class="mien-panels mien-two">{"".join(map(_figure, row))}</div><p class="mien-note">Parts of the face '
        "were hidden, one after the other, and the face was read again by the same model. Orange parts are those that "
        "its answer rests on: without them its probability falls. Without the blue ones it rises.</p>"
    )


def _figure(panel: Panel) -> str:
    picture = picture_url(panel.picture, lossless=True)
    said = escape(panel.title)
    if panel.legend and panel.legend.colours is not None:
        ramp = picture_url(panel.legend.colours, lossless=True)
        said += (
            f'<span class="mien-scale"><span>{escape(panel.legend.low)}</span><img src="{ramp}" alt="">'
            f"<span>{escape(panel.legend.high)}</span></span>{escape(panel.legend.words)}"
        )
    return f'<figure><img src="{picture}" alt="{_described(panel.title)}"><figcaption>{said}</figcaption></figure>'


def panels(rows: Sequence[Sequence[Panel]], note: str) -> str:
    """The rows of `mien.explain`, all but the first folded away; `note` says which model this is."""
    sheets = []
    for i, row in enumerate(rows):
        sheet = f'<div class="mien-panels">{"".join(map(_figure, row))}</div>'
        sheets.append(f"<details><summary>With {row[1].title} only</summary>{sheet}</details>" if i else sheet)
    return (
        f'<p>{escape(note)}</p>{"".join(sheets)}<p class="mien-note">Whitened patches were dropped on the way; bright '
        "ones are those that the last block attended to. This is where the network looked. Why it answered as it did "
        "does not follow from it.</p>"
    )


def thumbnails(crops: Sequence[np.ndarray], faces: Sequence[Face], chosen: int = 0) -> str:
    """A small picture of each face, to be pressed, with its expression; nothing where there are not several faces.

    crops: uint8 (S, S, 3) RGB, one for each of the faces.
    faces: what was read in them.
    chosen: the index of the face that is pressed.
    """
    if len(faces) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" data-face="{i}" aria-pressed="{str(i == chosen).lower()}" aria-label='
        f'"{escape(title(i, face))}" style="{painted(face)}">'
        f'<img src="{picture_url(crop)}" alt=""><span>{i + 1} {escape(answer_of(face))}</span></button>'
        for i, (face, crop) in enumerate(zip(faces, crops, strict=True))
    )
    return f'<div class="mien-faces" role="group" aria-label="{len(faces)} faces, the largest first">{buttons}</div>'


def title(index: int, face: Face) -> str:
    """The name of a face where there are several."""
    return f"Face {index + 1}: {answer_of(face)} {percent(face.probability)}"


def percent(prob: float) -> str:
    """In whole percent; 0 and 100 only where that is exact."""
    return "under 1%" if 0 < prob < 0.005 else "over 99%" if 0.995 <= prob < 1 else f"{prob:.0%}"


def downloads(name: str, faces: Sequence[Face], outputs: Sequence[Output]) -> str:
    """Links that save what was read in a picture as `mien read` writes it: JSON, a list of rows, and CSV.

    name: str, what the picture's file is called.
    faces: Sequence of Face, all that were found in it.
    outputs: Sequence of Output, what the reader tells of a face.
    """
    rows, table, columns = picture_records(name, faces), io.StringIO(), entries(outputs)
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(column.name for entry in columns for column in entry.columns)
    for row in rows:
        writer.writerow(safe_cell(cell) for entry in columns for cell in entry.cells(row.get(entry.name)))
    json_rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    files = {
        "json": ("application/json", f"[\n{json_rows}\n]\n".encode()),
        "csv": ("text/csv", table.getvalue().encode()),
    }
    links = " ".join(
        f'<a download="{escape(Path(name).stem)}.{ending}" href="data:{kind};base64,'
        f'{base64.b64encode(data).decode()}">Download {ending.upper()}</a>'
        for ending, (kind, data) in files.items()
    )
    return f'<p class="mien-downloads">What was read, as rows with the columns of <code>mien read</code>: {links}</p>'


def painted(face: Face) -> str:
    """CSS: the colour of what a face shows, and that of text on it, as variables."""
    paint = colour_of(face.expression, face.probabilities)
    return f"--expression:{css(paint)};--on:{css(ink_on(paint))}"


def colour(expression: str, labels: Iterable[str]) -> str:
    return css(colour_of(expression, labels))


def picture_url(image: np.ndarray, *, lossless: bool = False) -> str:
    """The picture (H, W, 3) uint8 as an address that holds all of it, its longer side at most LARGEST pixels."""
    picture = Image.fromarray(image)
    picture.thumbnail((LARGEST, LARGEST))
    file, kind = io.BytesIO(), "png" if lossless else "jpeg"
    picture.save(file, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _described(heading: str) -> str:
    """What a panel with this title shows, for those who do not see it."""
    if heading == "occlusion":
        return (
            "The face in grey, orange where hiding a part lowers the probability of the answer, blue where it raises it"
        )
    if "attention" in heading:
        return f"The face in the colours of the attention: {heading}"
    return f"The face with what was kept: {heading}" if " of " in heading else f"The face, read as {heading}"
