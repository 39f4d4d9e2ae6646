"""How a head is turned: three angles, the rotation that they mean, and the numbers that a network gives for them."""

import numpy as np

LABELS = ("pitch", "yaw", "roll")
"""The order of angles wherever three of them stand together."""

SPAN = (180.0, 360.0, 180.0)
"""Degrees that each angle of LABELS spans in the codec, about 0."""


def encode(angles: np.ndarray) -> np.ndarray:
    """Degrees (…, 3) of pitch, yaw, roll -> numbers in [0, 1]: pitch / 180 + ½, yaw / 360 + ½, roll / 180 + ½.

    angles: pitch and roll from -90 to 90, yaw from -180 to 180.

    Raises ValueError for angles outside of that, and for what is not a number.

    Paper: Zhou et al., DirectMHP, arXiv 2302.01110. The published code was not read: it is under the GPL.
    """
    angles = np.asarray(angles, float)
    for i, (label, span) in enumerate(zip(LABELS, SPAN, strict=True)):
        bad = angles[..., i][~(np.abs(angles[..., i]) <= span / 2)]
        if bad.size:
            raise ValueError(f"a {label} of {bad.flat[0]:g} degrees; it goes from {-span / 2:g} to {span / 2:g}")
    return angles / SPAN + 0.5


def decode(codes: np.ndarray) -> np.ndarray:
    """Numbers (…, 3) in [0, 1] -> degrees of pitch, yaw, roll: what `encode` undoes."""
    return (np.asarray(codes) - 0.5) * SPAN


def to_rotation(angles: np.ndarray) -> np.ndarray:
    """Degrees (3,) of pitch, yaw, roll -> the rotation (3, 3) `Ry(-yaw) · Rx(-pitch) · Rz(roll)` of a head that looks
    at the camera.

    The camera's axes are x to the right of the picture, y down, z away. With all angles 0 the head looks along -z, its
    crown is at -y. Yaw turns it to the person's left, about the vertical; pitch lifts its look; roll tilts it clockwise
    as seen by whom it looks at, about its own look, so that a head seen from behind is tilted the other way. In this
    order only a head that looks straight up or down has more than one set of angles; profiles have one.
    """
    pitch, yaw, roll = np.deg2rad(np.asarray(angles, float))
    (cp, sp), (cy, sy), (cr, sr) = ((np.cos(a), np.sin(a)) for a in (-pitch, -yaw, roll))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def from_rotation(rotation: np.ndarray) -> np.ndarray:
    """The degrees (3,) of pitch, yaw, roll that `to_rotation` makes the rotation (3, 3) of; roll in [-180, 180)."""
    look = -rotation[:, 2]
    pitch, yaw = np.arcsin(np.clip(-look[1], -1, 1)), np.arctan2(look[0], -look[2])
    tilt = to_rotation(np.rad2deg([pitch, yaw, 0])).T @ rotation
    angles = np.rad2deg([pitch, yaw, np.arctan2(tilt[1, 0], tilt[0, 0])])
    angles[1:] = (angles[1:] + 180) % 360 - 180
    return angles


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far angles (…, 3) are apart, in degrees, each the shorter way round, 0 to 180."""
    return np.abs((np.asarray(one) - other + 180) % 360 - 180)


def turn_between(one: np.ndarray, other: np.ndarray) -> float:
    """The angle, 0 to 180 degrees, of the one rotation that takes a head of angles (3,) to other angles (3,)."""
    cosine = (np.trace(to_rotation(one).T @ to_rotation(other)) - 1) / 2
    return float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))
