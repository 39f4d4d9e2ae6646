"""What others call the expressions and the splits."""

from collections.abc import Iterable

from mien.errors import MienError
from mien.labels import EXPRESSIONS, ORDERS

_EXPRESSIONS = {
    "neutral": "neutrality none",
    "happiness": "happy joy smile",
    "sadness": "sad",
    "surprise": "surprised",
    "fear": "fearful afraid",
    "disgust": "disgusted",
    "anger": "angry",
    "contempt": "contemptuous scorn",
}
_SPLITS = {"train": "training", "validation": "val valid dev eval publictest", "test": "testing privatetest"}

_EXPRESSION_OF = {alias: name for name, aliases in _EXPRESSIONS.items() for alias in [name, *aliases.split()]}
_SPLIT_OF = {alias: name for name, aliases in _SPLITS.items() for alias in [name, *aliases.split()]}


def spell(name: str) -> str:
    """The name of a class as mien spells it: "Happy" is "happiness"; any other name in lower case."""
    plain = name.strip().lower()
    return _EXPRESSION_OF.get(plain, plain)


def spell_split(name: str) -> str:
    """The name of a split as mien spells it: "val" is "validation"; another name as it is."""
    return _SPLIT_OF.get(name.strip().lower(), name)


def class_order(labels: Iterable[str] | str) -> tuple[str, ...]:
    """The classes in order: a list of names, or a data set of mien.labels.ORDERS ("rafdb").

    Raises MienError for an unknown data set, and for a class named twice.
    """
    if isinstance(labels, str):
        if labels not in ORDERS:
            raise MienError(f"no order of labels is called {labels!r}, only {', '.join(ORDERS)}; or list the names")
        return ORDERS[labels]
    order = tuple(map(spell, labels))
    if len(set(order)) < len(order) or not order:
        raise MienError(f"labels must name each class once, not {', '.join(order) or 'nothing'}")
    return order


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Each class once: the expressions in mien's own order, then what else there is by name."""
    found = set(names)
    return (*(name for name in EXPRESSIONS if name in found), *sorted(found - set(EXPRESSIONS)))
