"""One colour for each answer, wherever answers are drawn: in pictures, pages, timelines and plots."""

from collections.abc import Iterable
from functools import lru_cache

from mien.labels import UNCERTAIN

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""

EXPRESSIONS: dict[str, Colour] = {
    "neutral": (210, 210, 210),
    "happiness": (240, 228, 66),
    "sadness": (0, 114, 178),
    "surprise": (86, 180, 233),
    "fear": (204, 121, 167),
    "disgust": (0, 158, 115),
    "anger": (213, 94, 0),
    "contempt": (230, 159, 0),
}
"""The colour of each expression; they stay apart for the colour-blind as well.

Paper: Okabe, Ito: Color Universal Design, 2008.
"""

OTHERS: tuple[Colour, ...] = (
    *(colour for label, colour in EXPRESSIONS.items() if label != "neutral"),
    (135, 0, 240),
    (120, 45, 0),
    (0, 255, 135),
    (150, 120, 255),
    EXPRESSIONS["neutral"],
)
"""What other labels are given, in this order. Any two of the twelve are at least 15 apart (CIE 1976 ΔE), also as they
are seen without one kind of cone (Machado et al., 2009)."""

NOTHING: Colour = (255, 255, 255)
"""The colour of "uncertain", and of what is no label of a model's."""


@lru_cache(64)
def _palette(labels: tuple[str, ...]) -> dict[str, Colour]:
    known = {label: EXPRESSIONS[label] for label in labels if label in EXPRESSIONS}
    free = [colour for colour in OTHERS if colour not in known.values()] or list(OTHERS)
    others = [label for label in labels if label not in known and label != UNCERTAIN]
    return known | {label: free[i % len(free)] for i, label in enumerate(others)}


def palette(labels: Iterable[str]) -> dict[str, Colour]:
    """The colour of each label of a model, and of "uncertain".

    labels: all labels of the model, in its order. Expressions have their own colours, and others those that are left;
    from the thirteenth label on, colours come again.
    """
    return {**_palette(tuple(labels)), UNCERTAIN: NOTHING}


def colour_of(label: str, labels: Iterable[str]) -> Colour:
    """The colour of one label among all labels of its model; white for what is none of them."""
    return _palette(tuple(labels)).get(label, NOTHING)


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever has more contrast to a colour (WCAG 2.2): 4.5 or more on any."""
    parts = (part / 255 for part in colour)
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (light + 0.05) ** 2 > 0.05 * 1.05 else (255, 255, 255)


def css(colour: Colour) -> str:
    """A colour as a web page spells it: #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
