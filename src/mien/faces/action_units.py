"""Action units out of MediaPipe's coefficients: a table, and an approximation."""

import numpy as np

from mien.outputs import Output

UNITS: dict[str, tuple[str, ...]] = {
    "AU1": ("browInnerUp",),
    "AU2": ("browOuterUp",),
    "AU4": ("browDown",),
    "AU5": ("eyeWide",),
    "AU6": ("cheekSquint",),
    "AU7": ("eyeSquint",),
    "AU9": ("noseSneer",),
    "AU10": ("mouthUpperUp",),
    "AU12": ("mouthSmile",),
    "AU14": ("mouthDimple",),
    "AU15": ("mouthFrown",),
    "AU16": ("mouthLowerDown",),
    "AU17": ("mouthShrugLower",),
    "AU18": ("mouthPucker",),
    "AU20": ("mouthStretch",),
    "AU22": ("mouthFunnel",),
    "AU24": ("mouthPress",),
    "AU26": ("jawOpen",),
    "AU28": ("mouthRollLower", "mouthRollUpper"),
    "AU34": ("cheekPuff",),
    "AU45": ("eyeBlink",),
}
"""Of each action unit the coefficients that stand for it, without Left and Right; the mean of all of them is its value.

Source: Ozel: ARKit to FACS Cheat Sheet, https://melindaozel.com/arkit-to-facs-cheat-sheet, for Apple's shapes, whose
names MediaPipe's have; names of units as in Ekman, Friesen, Hager: FACS, 2002. *Inferred*: that the mean of left and
right stands for a unit, and that AU28 is the mean of both lips.
"""

ACTION_UNITS = Output("action_units", "range", tuple(UNITS), low=0.0, high=1.0)
"""How far each unit seems to be moved, 0 to 1: neither a probability that it is there nor FACS's intensities A to E."""


def mixing(names: tuple[str, ...]) -> np.ndarray:
    """(units, coefficients) float32: what gives the units, times coefficients of these names."""
    rows = []
    for stems in UNITS.values():
        chosen = [name.removesuffix("Left").removesuffix("Right") in stems for name in names]
        rows.append(np.array(chosen, np.float32) / sum(chosen))
    return np.stack(rows)
