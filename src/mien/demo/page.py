"""The page itself: what is on it, and what happens when somebody uses it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradio as gr
import numpy as np

from mien.demo import show
from mien.demo.drawing import drawing
from mien.demo.looking import Looking
from mien.errors import MienError, ReadError
from mien.faces import Face, open_picture
from mien.reader import Reader

_LIMITS = (
    "An expression is not a feeling: what is named here is what a face shows at one moment, and the answer is often "
    "wrong, most of all for fear, disgust and contempt."
)
_PRIVACY = "Pictures go to the computer that runs this page and nowhere else, and it does not keep them."
_START = "Choose a photograph, take one, or try an example: faces are marked here."
_NOBODY = "No face was found. Small faces, covered ones, and faces seen from the side or from behind are missed."
_KEPT = 3600  # seconds for which faces stay in memory, to be looked at again
_CHOOSE = """element.addEventListener('click', event => {
    const face = event.target.closest('[data-face]');
    if (face) trigger('select', {index: Number(face.dataset.face)});
});"""


@dataclass(frozen=True, eq=False)
class Seen:
    """A photograph that was read: as it is shown, its size (width, height), its faces and what is cut out of each."""

    url: str
    size: tuple[int, int]
    faces: Sequence[Face]
    crops: Sequence[np.ndarray]


class File(gr.Image):
    """A photograph as it was uploaded, whatever it is, instead of what gradio makes of it."""

    def preprocess(self, payload):
        return payload

    def get_block_name(self) -> str:
        return "image"


class Desk:
    """What the page does, without the page: every method answers with what its outputs show."""

    def __init__(self, reader: Reader, looking: Looking):
        self.reader, self.looking = reader, looking

    def read(self, name: str, data: bytes) -> tuple[str, Seen | None]:
        """What is shown of the bytes of a file, and what is remembered of them."""
        try:
            image = open_picture(data)
            faces = self.reader(image)
        except ReadError as error:
            return show.problem(f"{name}: {error.reason}"), None
        seen = Seen(show.picture_url(image), image.shape[1::-1], faces, self.looking.crops(image, faces))
        return self.photograph(seen, 0), seen

    def photograph(self, seen: Seen, chosen: int) -> str:
        return show.photograph(seen.url, seen.size, seen.faces, chosen)

    def bars(self, seen: Seen | None, chosen: int) -> str:
        if seen is None:
            return ""
        if not seen.faces:
            return f'<p role="status">{_NOBODY}</p>'
        return show.bars(seen.faces[chosen], chosen if len(seen.faces) > 1 else None)

    def panels(self, seen: Seen | None, chosen: int) -> str:
        if seen is None or not seen.faces:
            return '<p class="mien-note">There is no face to look at.</p>'
        try:
            rows = self.looking(seen.crops[chosen])
        except MienError as error:
            return show.problem(error)
        return show.panels(rows, self._note(seen.faces[chosen], rows[0][0].title))

    def _note(self, face: Face, answer: str) -> str:
        return (
            f"This is {Path(self.looking.model).name}, made to be looked into, which reads the face as {answer}. "
            f"The probabilities are those of another model, which reads it as {face.expression}."
        )


def examples(folder: Path) -> dict[str, Path]:
    """Pictures by name: drawn faces, written into `folder`, and where this is mien's repository, its photographs."""
    drawn = folder / "drawn faces.png"
    drawing().save(drawn)
    photographs = Path(__file__).parents[3] / "examples"
    named = {"Astronaut": photographs / "astronaut.png", "Admiral": photographs / "hopper.jpg"}
    return {name: path for name, path in named.items() if path.is_file()} | {"Drawn faces": drawn}


def build(reader: Reader, looking: Looking, examples: Mapping[str, Path]) -> gr.Blocks:
    """The page; examples: pictures by name."""
    desk = Desk(reader, looking)
    with gr.Blocks(title="mien", analytics_enabled=False, delete_cache=(60, 600)) as page:
        gr.HTML(
            f'<h1>mien</h1><p>Which expression does a face show?</p><p class="mien-limits">{_LIMITS} {_PRIVACY}</p>',
            elem_id="mien-title",
        )
        with gr.Tabs(), gr.Tab("Photograph"):
            _photograph(desk, examples)
    page.queue(api_open=False, max_size=64, default_concurrency_limit=2)
    return page


def _photograph(desk: Desk, examples: Mapping[str, Path]) -> None:
    seen = gr.State(None, time_to_live=_KEPT)
    looking = gr.State(False)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            file = File(
                label="Photograph",
                sources=["upload", "webcam", "clipboard"],
                type="filepath",
                height=260,
                buttons=[],
                elem_id="mien-file",
                placeholder="# Choose a photograph\nor drop one here",
            )
            with gr.Row(elem_classes="mien-examples"):
                buttons = {name: gr.Button(name, icon=str(path), size="sm") for name, path in examples.items()}
        with gr.Column(scale=3, min_width=280):
            picture = gr.HTML(
                f'<p class="mien-hint">{_START}</p>', js_on_load=_CHOOSE, elem_id="mien-picture", label="Faces"
            )
    chooser = gr.Radio([], label="Face", visible=False, elem_id="mien-chooser")
    with gr.Tabs(visible=False) as tabs:
        with gr.Tab("Probabilities", id="bars") as bars_tab:
            bars = gr.HTML(elem_id="mien-bars", label="Probabilities")
        with gr.Tab("Where it looked", id="panels") as panels_tab:
            panels = gr.HTML(elem_id="mien-panels", label="Where it looked")

    def read(name: str, data: bytes):
        shown, found = desk.read(name, data)
        faces = found.faces if found else []
        choices = [(show.title(i, face), i) for i, face in enumerate(faces)]
        return {
            file: None,
            picture: shown,
            seen: found,
            looking: False,
            chooser: gr.Radio(choices, value=0 if faces else None, visible=len(faces) > 1),
            tabs: gr.Tabs(selected="bars", visible=found is not None),
            panels_tab: gr.Tab(visible=bool(faces)),
            bars: desk.bars(found, 0),
            panels: "",
        }

    def read_file(uploaded):
        if uploaded is None:
            return {file: None}
        path = Path(uploaded.path)
        try:
            return read(uploaded.orig_name or path.name, path.read_bytes())
        finally:
            path.unlink(missing_ok=True)

    def read_example(path: Path):
        return read(path.name, path.read_bytes())

    def choose(seen: Seen | None, chosen: int | None):
        if seen is None or chosen is None:
            return gr.skip(), gr.skip()
        return desk.photograph(seen, chosen), desk.bars(seen, chosen)

    def pressed(event: gr.EventData):
        return event.index

    def look(seen: Seen | None, chosen: int | None, looking: bool):
        return desk.panels(seen, chosen or 0) if looking else ""

    outputs = [file, picture, seen, looking, chooser, tabs, panels_tab, bars, panels]
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    file.input(read_file, file, outputs, api_visibility="private", show_progress_on=picture)
    for name, button in buttons.items():
        button.click(
            partial(read_example, examples[name]), None, outputs, api_visibility="private", show_progress_on=picture
        )
    picture.select(pressed, None, chooser, **quiet)
    chooser.change(choose, [seen, chooser], [picture, bars], **quiet).then(
        look, [seen, chooser, looking], panels, api_visibility="private"
    )
    bars_tab.select(lambda: False, None, looking, **quiet)
    panels_tab.select(lambda: True, None, looking, **quiet).then(
        look, [seen, chooser, looking], panels, api_visibility="private"
    )
