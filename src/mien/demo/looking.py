"""Where a network looked, for the page: `mien.explain`, opened when the first face is drawn."""

import threading
from collections.abc import Sequence

import numpy as np

from mien.checkpoint import labels_of, read_header
from mien.classifier import EXPLAINED_MODEL, find_model
from mien.errors import MienError, require
from mien.faces import Face, crop


class Looking:
    """Draws what a model kept of a face and attended to; may be shared by threads.

    model: a model's name, file, folder, or owner/name on the Hub, with a .safetensors in it. The network is loaded when
    the first face is drawn, since that takes torch. trust: as for `mien.load_network`.
    """

    def __init__(self, model: str = EXPLAINED_MODEL, trust: bool = False):
        self.model, self.trust, self._lock, self._draw = model, trust, threading.Lock(), None
        self.header = read_header(find_model(model))

    def crops(self, image: np.ndarray, faces: Sequence[Face]) -> list[np.ndarray]:
        """What the network is shown of each face of image (H, W, 3) uint8."""
        return [crop(image, self.header["preprocess"], face.landmarks, face.box) for face in faces]

    def __call__(self, face: np.ndarray) -> list[list]:
        """Rows of panels of a face as `crops` cuts it out.

        Raises MissingExtra without torch, and MienError where the network has neither attentive pooling nor attention.
        """
        with self._lock:
            if self._draw is None:
                self._draw = self._open()
            return self._draw(face)

    def _open(self):
        for module in ("torch", "safetensors"):
            require(module, "torch")
        from mien.explain import Attention, Patches, open_network

        deployed, header = open_network(self.model, trust=self.trust)
        try:
            return Patches(deployed, labels_of(header))
        except MienError:  # no attentive pooling: perhaps a class token
            return Attention(deployed, labels_of(header))
