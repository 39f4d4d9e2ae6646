"""From pictures to faces with expressions."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from mien.classifier import Classifier
from mien.errors import MienError, ReadError
from mien.faces import Detection, Detector, Face, Source, YuNet, detect_or_retry, open_picture
from mien.faces.picture import MAX_PIXELS
from mien.labels import UNCERTAIN


class Reader:
    """Finds the faces in a picture and reads their expressions.

    reader = Reader.from_pretrained()
    for face in reader("photograph.jpg"):
        print(face.box, face.expression, face.probability)

    May be shared by threads. detector: any `mien.faces.Detector`, YuNet if none is given. min_face: the least shorter
    side of a face, in pixels. With `aligned`, nothing is detected: every picture is taken as one face, cut out already.
    abstain: where no label is as probable as this, the expression is "uncertain"; with True it is the share that the
    model was calibrated to (`mien calibrate`), and a model that was not raises MienError. A picture of more pixels than
    max_pixels, or of more faces than max_faces, cannot be read.
    """

    def __init__(
        self,
        classifier: Classifier,
        detector: Detector | None = None,
        *,
        min_face: float = 20,
        aligned: bool = False,
        abstain: bool | float = False,
        max_pixels: int = MAX_PIXELS,
        max_faces: int | None = None,
    ):
        self.classifier, self.min_face = classifier, min_face
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
        detector, aligned, min_face, abstain, max_pixels, max_faces: as for `Reader`.
        """
        with ThreadPoolExecutor(1) as pool:  # side by side, since opening either takes long
            opening = None
            if detector is None and not aligned:
                opening = pool.submit(YuNet, threshold=threshold, min_face=min_face)
            classifier = Classifier.from_pretrained(model, device=device, precision=precision, trust=trust)
            detector = opening.result() if opening else detector
        limits = {"max_pixels": max_pixels, "max_faces": max_faces}
        return cls(classifier, detector, min_face=min_face, aligned=aligned, abstain=abstain, **limits)

    def __call__(self, source: Source) -> list[Face]:
        """The faces of one picture: a path, a Pillow picture, or a uint8 array, (H, W, 3) RGB or (H, W) grey.

        No face is an empty list. Raises ReadError for what is no picture.
        """
        found = self._find(source)
        if found.error:
            raise found.error
        return self._faces(found.places, self.classifier.run(np.stack(found.crops))) if found.crops else []

    def read_many(
        self, sources: Iterable[Source], *, batch_size: int = 32, workers: int | Executor | None = None
    ) -> Iterator[list[Face] | ReadError]:
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
                while found and len(found[0].places) <= len(probs):
                    first = found.popleft()
                    count = len(first.places)
                    yield first.error or self._faces(first.places, probs[:count])
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
            return _Found([], [], error)
        if self.detector is None:
            return _Found([None], [self.classifier.crop(image)])
        places = detect_or_retry(self.detector, image, self.min_face)
        if self.max_faces is not None and len(places) > self.max_faces:
            name = source if isinstance(source, str | os.PathLike) else "picture"
            return _Found([], [], ReadError(name, f"{len(places)} faces, more than {self.max_faces}"))
        return _Found(places, [self.classifier.crop(image, place.landmarks, place.box) for place in places])

    def _faces(self, places: Sequence[Detection | None], probs: Iterable[np.ndarray]) -> list[Face]:
        return [self.face(place, shares) for place, shares in zip(places, probs, strict=True)]

    def face(self, place: Detection | None, shares: np.ndarray) -> Face:
        """A face as it is told of: where it is, None for all of the picture, and the share (C,) of each label."""
        probabilities = dict(zip(self.classifier.labels, map(float, shares), strict=True))
        best = self.classifier.labels[shares.argmax()]
        told = (best if probabilities[best] >= self.abstain else UNCERTAIN, probabilities[best], probabilities)
        if place is None:
            return Face(None, None, None, *told)
        return Face(tuple(map(float, place.box)), float(place.score), place.landmarks, *told)


class _Found(NamedTuple):
    """What is kept of a picture: where its faces are, the faces cut out, or why there are none."""

    places: list[Detection | None]
    crops: list[np.ndarray]
    error: ReadError | None = None
