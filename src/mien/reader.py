"""From pictures to faces with expressions."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from mien.classifier import Classifier
from mien.errors import MienError, ReadError
from mien.faces import SEARCHES, Detection, Detections, Detector, Face, Faces, Source, YuNet, find_faces, open_picture
from mien.faces.picture import MAX_PIXELS
from mien.faces.search import upright
from mien.labels import UNCERTAIN


class Reader:
    """Finds the faces in a picture and reads their expressions.

    reader = Reader.from_pretrained()
    for face in reader("photograph.jpg"):
        print(face.box, face.expression, face.probability)

    Threads may share it.

    classifier: reads a face that is cut out.
    detector: any `mien.faces.Detector`; by default YuNet.
    min_face: the least shorter side of a face, in pixels of the picture (default 20).
    search: how thoroughly small faces are searched for in large pictures, "fast", "auto" (default) or "full": see
        `mien.faces.YuNet.reach`. Where a picture was not searched down to `min_face`, `Faces.note` says so.
    aligned: nothing is detected: every picture is taken as one face, cut out already (default False).
    abstain: where no label is as probable as this, 0 to 1, the expression is "uncertain"; with True it is the share
        that the model was calibrated to (`mien calibrate`), and a model that was not raises MienError (default False).
    max_pixels, max_faces: a picture of more pixels, or of more faces, cannot be read.
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
        self.detector = None if aligned else detector or YuNet(min_face=min_face)

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
    ) -> "Reader":
        """Open a model, and the detector beside it.

        model, device, precision, trust: as for `Classifier.from_pretrained`, and its errors.
        threshold: the least score of a face, 0 to 1 (default 0.6), where the detector is YuNet.
        detector, aligned, min_face, search, abstain, max_pixels, max_faces: as for `Reader`.
        """
        with ThreadPoolExecutor(1) as pool:  # side by side, since opening either takes long
            opening = None
            if detector is None and not aligned:
                opening = pool.submit(YuNet, threshold=threshold, min_face=min_face)
            classifier = Classifier.from_pretrained(model, device=device, precision=precision, trust=trust)
            detector = opening.result() if opening else detector
        options = {"search": search, "aligned": aligned, "abstain": abstain}
        return cls(classifier, detector, min_face=min_face, max_pixels=max_pixels, max_faces=max_faces, **options)

    def __call__(self, source: Source) -> Faces:
        """The faces of one picture: a path, a Pillow picture, or a uint8 array, (H, W, 3) RGB or (H, W) grey.

        No face is an empty list. A picture on its side or upside down is read as it should stand: `Faces.rotation` says
        how it is to be turned; boxes and landmarks are in pixels of the picture as it was given.

        Raises ReadError for what is no picture.
        """
        found = self._find(source)
        if found.error:
            raise found.error
        return self._faces(found.detections, self.classifier.run(np.stack(found.crops)) if found.crops else ())

    def read_many(
        self, sources: Iterable[Source], *, batch_size: int = 32, workers: int | Executor | None = None
    ) -> Iterator[Faces | ReadError]:
        """For each source, in order: its faces, or the ReadError that reading it alone would have raised.

        for path, faces in zip(paths, reader.read_many(paths)): ...

        `workers` threads (by default one a processor, four at most; or those of an executor that is there already) open
        pictures and find faces; the network reads `batch_size` faces at a time, out of as many pictures as it takes. A
        picture is let go of once its faces are cut out, so that memory does not grow with the number of pictures.
        """
        if batch_size < 1:
            raise ValueError(f"a batch holds at least one face, not {batch_size}")
        lent = workers if isinstance(workers, Executor) else None
        if lent or not workers:
            workers = min(4, os.cpu_count() or 1)
        sources = iter(sources)
        opening: deque[Future[_Found]] = deque()
        found: deque[_Found] = deque()
        crops: list[np.ndarray] = []  # the last faces of `found`, which the network has not seen
        probs: list[np.ndarray] = []  # the first faces of `found`, which it has
        pool = lent or ThreadPoolExecutor(workers, "mien")
        try:
            while True:
                more = islice(sources, 2 * workers - len(opening))
                opening.extend(pool.submit(self._find, source) for source in more)
                if opening:
                    found.append(opening.popleft().result())
                    crops += found[-1].crops
                hurry = not opening or len(found) > 4 * batch_size  # the end, or hardly any faces
                while len(crops) >= batch_size or (crops and hurry):
                    probs += list(self.classifier.run(np.stack(crops[:batch_size])))
                    del crops[:batch_size]
                while found and len(found[0].detections) <= len(probs):
                    first = found.popleft()
                    count = len(first.detections)
                    yield first.error or self._faces(first.detections, probs[:count])
                    del probs[:count]
                if not opening and not found:
                    return
        finally:
            if lent:
                for future in opening:
                    future.cancel()
            else:
                pool.shutdown(cancel_futures=True)

    def _find(self, source: Source) -> "_Found":
        try:
            image = open_picture(source, max_pixels=self.max_pixels)
        except ReadError as error:
            return _Found(Detections(), [], error)
        if self.detector is None:
            return _Found([None], [self.classifier.crop(image)])
        found = find_faces(self.detector, image, self.min_face, search=self.search)
        if self.max_faces is not None and len(found) > self.max_faces:
            name = source if isinstance(source, str | os.PathLike) else "picture"
            return _Found(Detections(), [], ReadError(name, f"{len(found)} faces, more than {self.max_faces}"))
        image, faces = upright(image, found)
        return _Found(found, [self.classifier.crop(image, face.landmarks, face.box) for face in faces])

    def _faces(self, detections: "Detections | list[None]", probs: Iterable[np.ndarray]) -> Faces:
        note, rotation = getattr(detections, "note", None), getattr(detections, "rotation", 0)
        faces = (self.face(found, row, rotation) for found, row in zip(detections, probs, strict=True))
        return Faces(faces, note=note, rotation=rotation)

    def face(self, detection: Detection | None, probs: np.ndarray, rotation: int = 0) -> Face:
        """A face with its expression.

        detection: where it is; None where all of the picture is the face. probs: (C,) of each label.
        rotation: degrees clockwise by which the picture is turned to bring it upright (default 0).
        """
        probabilities = dict(zip(self.classifier.labels, map(float, probs), strict=True))
        best = self.classifier.labels[probs.argmax()]
        label = best if probabilities[best] >= self.abstain else UNCERTAIN
        box = score = landmarks = None
        if detection is not None:
            box, score, landmarks = tuple(map(float, detection.box)), float(detection.score), detection.landmarks
        return Face(box, score, landmarks, label, probabilities[best], probabilities, rotation=rotation)


class _Found(NamedTuple):
    """What is kept of a picture: where its faces are, the faces cut out, or why there are none.

    detections: [None] where all of the picture is the face.
    """

    detections: Detections | list[None]
    crops: list[np.ndarray]
    error: ReadError | None = None
