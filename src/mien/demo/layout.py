"""The page itself: what is on it, and what happens when somebody uses it."""

import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np

from mien.demo import show
from mien.demo.clips import Clips
from mien.demo.drawing import drawing
from mien.demo.looking import Looking
from mien.demo.timeline import FOLLOW, reading
from mien.errors import MienError, ReadError
from mien.explain.explanation import draw
from mien.explain.occlusion import Occlusion
from mien.faces import Face, open_picture
from mien.faces.overlay import trace
from mien.reader import Reader

_LIMITS = (
    "An expression is not a feeling: what is named here is what a face shows at one moment, and the answer is often "
    "wrong, most of all for fear, disgust and contempt."
)
_PRIVACY = "Pictures go to the computer that runs this page and nowhere else, and it does not keep them."
_START = "Choose a photograph, take one, or try an example: faces are marked here."
_QUEUED = '<p role="status">Waiting for the videos of others to be read.</p>'
_NO_FILM = "There is no video to read: nothing was recorded, or it was removed before its turn came."
_FILM = "Choose a video, or film yourself: it is shown here with the faces marked, and below it who was seen when."
_NOBODY = "No face was found. Small faces, covered ones, and faces seen from the side or from behind are missed."
_FORGOTTEN = "This photograph is no longer there: choose it again."
_SESSIONS = 100  # whose last photograph is remembered
_CHOOSE = """element.addEventListener('click', event => {
    const face = event.target.closest('[data-face]');
    if (face) trigger('select', {index: Number(face.dataset.face)});
});"""


@dataclass(frozen=True, eq=False)
class Seen:
    """A photograph that was read: what its file is called, as it is shown, its size (width, height), its faces, and
    what is cut out of each for the model that reads, and for the one that is looked into."""

    name: str
    url: str
    size: tuple[int, int]
    faces: Sequence[Face]
    crops: Sequence[np.ndarray]
    others: Sequence[np.ndarray]


class Desk:
    """What the page does with photographs, without the page: every method answers with HTML.

    The last photograph of each session is remembered until the session is forgotten, in memory only.
    """

    def __init__(self, reader: Reader, looking: Looking):
        self.reader, self.looking = reader, looking
        self.occlusion = Occlusion(reader.classifier.run, reader.classifier.labels)
        self._seen: OrderedDict[str, Seen] = OrderedDict()

    def read(self, session: str, name: str, data: bytes) -> tuple[str, Sequence[Face] | None]:
        """The photograph in the bytes of a file called `name`, and its faces; what is wrong with it, and None."""
        self.forget(session)
        try:
            image = open_picture(data)
            faces = self.reader(image)
        except ReadError as error:
            return show.problem(f"{name}: {error.reason}"), None
        crops = [self.reader.classifier.crop(image, face.landmarks, face.box) for face in faces]
        picture = show.picture_url(trace(image, faces))
        seen = Seen(name, picture, image.shape[1::-1], faces, crops, self.looking.crops(image, faces))
        self._seen[session] = seen
        if len(self._seen) > _SESSIONS:
            self._seen.popitem(last=False)
        return self.photograph(session, 0), faces

    def forget(self, session: str) -> None:
        self._seen.pop(session, None)

    def photograph(self, session: str, chosen: int) -> str:
        seen = self._seen.get(session)
        return show.photograph(seen.url, seen.size, seen.faces, chosen) if seen else show.problem(_FORGOTTEN)

    def thumbnails(self, session: str, chosen: int) -> str:
        seen = self._seen.get(session)
        return show.thumbnails(seen.crops, seen.faces, chosen) if seen else ""

    def bars(self, session: str, chosen: int) -> str:
        seen = self._seen.get(session)
        if seen is None:
            return ""
        rows = show.downloads(seen.name, seen.faces, self.reader.outputs)
        if not seen.faces:
            return f'<p role="status">{_NOBODY}</p>{rows}'
        return show.bars(seen.faces[chosen], chosen if len(seen.faces) > 1 else None) + rows

    def rests_on(self, session: str, chosen: int) -> str:
        """What hiding each part of the face takes from the answer."""
        seen = self._seen.get(session)
        if seen is None or not seen.faces:
            return ""
        crop = seen.crops[chosen]
        return show.occluded(draw(crop, self.occlusion.explain(crop)))

    def panels(self, session: str, chosen: int) -> str:
        """What a network that can be looked into kept of the face."""
        seen = self._seen.get(session)
        if seen is None or not seen.faces:
            return ""
        try:
            rows = self.looking(seen.others[chosen])
        except MienError as error:
            return show.problem(error)
        model, answer = Path(self.looking.model).name, rows[0][0].title
        note = (
            f"This is {model}, made to be looked into, which reads the face as {answer}. The probabilities are those "
            f"of another model, which reads it as {seen.faces[chosen].expression}."
        )
        return show.panels(rows, note)


def examples(folder: Path) -> dict[str, Path]:
    """Pictures by name: drawn faces, written into `folder`, and where this is mien's repository, its photographs."""
    drawn = folder / "drawn faces.png"
    drawing().save(drawn)
    photographs = Path(__file__).parents[3] / "examples"
    named = {"Astronaut": photographs / "astronaut.png", "Admiral": photographs / "hopper.jpg"}
    return {name: path for name, path in named.items() if path.is_file()} | {"Drawn faces": drawn}


def build_page(reader: Reader, looking: Looking, examples: Mapping[str, Path]) -> gr.Blocks:
    """The page.

    reader: what reads the faces.
    looking: what looks into a model.
    examples: files of pictures by their names on the buttons.
    """
    desk, clips = Desk(reader, looking), Clips(reader)

    def leave(request: gr.Request) -> None:
        desk.forget(request.session_hash)
        clips.forget(request.session_hash)

    with gr.Blocks(title="mien", analytics_enabled=False, delete_cache=(60, 1800)) as page:
        gr.HTML(
            f'<h1>mien</h1><p>Which expression does a face show?</p><p class="mien-limits">{_LIMITS} {_PRIVACY}</p>',
            elem_id="mien-title",
            elem_classes="mien-plain",
        )
        with gr.Tabs():
            with gr.Tab("Photograph"):
                _photograph(desk, examples)
            with gr.Tab("Video"):
                _video(clips)
        page.unload(leave)
    page.queue(api_open=False, max_size=64, default_concurrency_limit=2)
    return page


def _photograph(desk: Desk, examples: Mapping[str, Path]) -> None:
    opened = gr.State("bars")  # the tab that is open: the others are filled when they are opened
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            file = gr.Image(
                label="Photograph",
                sources=["upload", "webcam", "clipboard"],
                type="filepath",
                height=300,
                buttons=[],
                elem_id="mien-file",
                placeholder="# Choose a photograph\nor drop one here",
            )
            with gr.Row(elem_classes="mien-examples"):
                buttons = {name: gr.Button(name, icon=str(path), size="sm") for name, path in examples.items()}
        with gr.Column(scale=3, min_width=280):
            picture = gr.HTML(
                f'<p class="mien-hint">{_START}</p>',
                js_on_load=_CHOOSE + show.PLACE,
                elem_id="mien-picture",
                elem_classes="mien-plain",
            )
    chooser = gr.State(0)  # the face that is chosen
    small = gr.HTML(js_on_load=_CHOOSE, elem_id="mien-chooser", elem_classes="mien-plain")
    with gr.Tabs(visible=False) as tabs:
        with gr.Tab("Probabilities", id="bars") as bars_tab:
            bars = gr.HTML(elem_classes="mien-plain")
        with gr.Tab("What it rests on", id="rests") as rests_tab:
            rests = gr.HTML(elem_classes="mien-plain")
        with gr.Tab("Inside another model", id="panels") as panels_tab:
            panels = gr.HTML(elem_classes="mien-plain")

    def read(session: str, name: str, data: bytes):
        shown, faces = desk.read(session, name, data)
        return {
            file: None,
            picture: shown,
            opened: "bars",
            chooser: 0,
            small: desk.thumbnails(session, 0),
            tabs: gr.Tabs(selected="bars", visible=faces is not None),
            rests_tab: gr.Tab(visible=bool(faces)),
            panels_tab: gr.Tab(visible=bool(faces)),
            bars: desk.bars(session, 0),
            rests: "",
            panels: "",
        }

    def read_file(uploaded: dict | None, request: gr.Request):
        if uploaded is None:  # removed in the same moment
            return gr.skip()
        path = Path(uploaded["path"])
        try:
            return read(request.session_hash, uploaded["orig_name"] or path.name, path.read_bytes())
        finally:
            path.unlink(missing_ok=True)

    def read_example(path: Path):
        def read_this(request: gr.Request):  # gradio sees no annotations through a partial
            return read(request.session_hash, path.name, path.read_bytes())

        return read_this

    def choose(event: gr.EventData, request: gr.Request):
        shown = (desk.photograph, desk.thumbnails, desk.bars)
        return event.index, *(fill(request.session_hash, event.index) for fill in shown)

    def look(chosen: int, opened: str, request: gr.Request):
        fill = {"rests": desk.rests_on, "panels": desk.panels}
        return [fill[tab](request.session_hash, chosen) if tab == opened else "" for tab in fill]

    outputs = [file, picture, opened, chooser, small, tabs, rests_tab, panels_tab, bars, rests, panels]
    hidden = {"api_visibility": "private", "show_progress": "hidden"}
    # the file as it was sent, instead of what gradio would make of it; `input` also comes, with nothing, when the
    # camera is opened or the picture removed
    file.upload(
        read_file,
        file,
        outputs,
        preprocess=False,
        trigger_mode="multiple",
        api_visibility="private",
        show_progress_on=picture,
    )
    for name, button in buttons.items():
        button.click(read_example(examples[name]), None, outputs, api_visibility="private", show_progress_on=picture)
    shown = {"inputs": [chooser, opened], "outputs": [rests, panels], "api_visibility": "private"}
    for pressed in (picture, small):
        pressed.select(choose, None, [chooser, picture, small, bars], **hidden).then(look, **shown)
    bars_tab.select(lambda: "bars", None, opened, **hidden)
    rests_tab.select(lambda: "rests", None, opened, **hidden).then(look, **shown)
    panels_tab.select(lambda: "panels", None, opened, **hidden).then(look, **shown)


def _video(clips: Clips) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            clip = gr.Video(label="Video", sources=["upload", "webcam"], height=300, buttons=[], elem_id="mien-clip")
            stop = gr.Button("Stop reading", visible=False, size="sm", elem_id="mien-stop")
        with gr.Column(scale=3, min_width=280):
            hint = gr.HTML(f'<p class="mien-hint">{_FILM}</p>', elem_classes="mien-plain")
            drawn = gr.Video(
                label="The video, with the faces marked",
                show_label=False,
                visible=False,
                buttons=["download"],
                elem_id="mien-drawn",
            )
    timeline = gr.HTML(elem_id="mien-timeline", js_on_load=FOLLOW, elem_classes="mien-plain")

    def begin(request: gr.Request):
        clips.forget(request.session_hash)  # an earlier video is not wanted any more
        return {timeline: _QUEUED, drawn: gr.Video(None, visible=False), hint: gr.HTML(visible=True)}

    def read(uploaded: dict | None, request: gr.Request):
        if uploaded is None:
            yield {timeline: show.problem(_NO_FILM), stop: gr.Button(visible=False)}
            return
        source = Path(uploaded["path"])
        target = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])) / "drawn.mp4"
        yield {clip: None, stop: gr.Button(visible=True), timeline: reading(0, None)}
        for seen, done in clips.read(request.session_hash, source, uploaded["orig_name"] or source.name, target):
            if done:
                there = target.is_file()
                found = gr.Video(str(target) if there else None, visible=there)
                yield {timeline: seen, drawn: found, hint: gr.HTML(visible=not there), stop: gr.Button(visible=False)}
            else:
                yield {timeline: seen}

    def halt(request: gr.Request) -> None:
        clips.stop(request.session_hash)

    hidden = {"api_visibility": "private", "show_progress": "hidden"}
    many = {"trigger_mode": "multiple", **hidden}
    chosen = gr.on([clip.upload, clip.stop_recording], begin, None, [timeline, drawn, hint], queue=False, **many)
    chosen.then(read, clip, [clip, drawn, hint, stop, timeline], preprocess=False, concurrency_limit=1, **many)
    stop.click(halt, None, None, queue=False, **hidden)
