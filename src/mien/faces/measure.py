"""What is measured of a face beside what the model answers: its pose, and with a landmarker its mesh and its shape."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mien.errors import Misuse
from mien.faces.action_units import ACTION_UNITS, mixing
from mien.faces.detect import Detection
from mien.faces.landmarker import BLENDSHAPES, COEFFICIENTS, EYE_DIRECTION, MESH, Landmarker
from mien.faces.pose import POSE, pose_of
from mien.faces.search import turn_points
from mien.outputs import Output

Measured = Mapping[str, np.ndarray | None]
"""Of a face, by the names of `Measures.outputs`, an array of the output's shape, None where it could not be measured;
and under "mesh" (478, 3) float32, in pixels of the picture as it was given."""


class Measures:
    """Measures faces; threads may share it.

    landmarker: gives mesh, coefficients, pose and eye direction; without one, pose is measured by five landmarks.
    action_units: give them, too, out of the coefficients. mesh: give its points to rows.
    answered: what the model answers itself. A pose that it answers is left to it.

    Raises Misuse where action units or a mesh are asked for without a landmarker, and where the model answers what is
    to be measured.
    """

    def __init__(
        self,
        landmarker: Landmarker | None = None,
        *,
        action_units: bool = False,
        mesh: bool = False,
        answered: Sequence[Output] = (),
    ):
        self.landmarker, self.outputs = landmarker, measured_outputs(landmarker is not None, action_units, mesh)
        names = {output.name for output in answered}
        self.outputs = tuple(output for output in self.outputs if output is not POSE or POSE.name not in names)
        if twice := names & {output.name for output in self.outputs}:
            raise Misuse(f"the model answers {', '.join(sorted(twice))} itself: read without the landmarker")
        self._units = mixing(COEFFICIENTS)

    def __call__(self, image: np.ndarray, faces: Sequence[Detection | None], rotation: int = 0) -> list[Measured]:
        """What is measured of each face.

        image: (H, W, 3) uint8 RGB, upright, by a turn of `rotation` degrees clockwise. faces: in its pixels; None where
            all of the picture is the face.
        """
        if self.landmarker is None:
            return [{"pose": None if face is None else pose_of(face.landmarks)} for face in faces]
        measured = []
        for face, geometry in zip(faces, self.landmarker(image, faces), strict=True):
            if geometry is None:
                measured.append({"pose": None if face is None else pose_of(face.landmarks)})
                continue
            mesh = geometry.mesh.copy()
            mesh[:, :2] = turn_points(mesh[:, :2], image.shape, -rotation)
            units = self._units @ geometry.blendshapes
            measured.append({**geometry._asdict(), "mesh": mesh, "action_units": units})
        return measured

    def decode(self, measured: Measured) -> dict[str, Any]:
        """What a person reads of it, by the names of `outputs`."""
        values = {output: measured.get(output.name) for output in self.outputs}
        return {
            output.name: None if value is None else _points(value) if output is MESH else output.decode(value)
            for output, value in values.items()
        }


def measured_outputs(landmarker: bool = False, action_units: bool = False, mesh: bool = False) -> tuple[Output, ...]:
    """What is measured with these options, the pose first; Misuse where one needs the landmarker."""
    if (action_units or mesh) and not landmarker:
        raise Misuse(f"{'--action-units' if action_units else '--mesh'} needs --landmarker FILE, or auto")
    if not landmarker:
        return (POSE,)
    return (POSE, EYE_DIRECTION, BLENDSHAPES, *[ACTION_UNITS] * action_units, *[MESH] * mesh)


def _points(mesh: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(value, 2) for value in point) for point in mesh.tolist())
