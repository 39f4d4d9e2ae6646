"""What others call the expressions and the splits, and what the names in a set stand for."""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

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
    """An expression as mien spells it: "Happy" is "happiness"; any other name in lower case."""
    plain = name.strip().lower()
    return _EXPRESSION_OF.get(plain, plain)


@dataclass(frozen=True, slots=True)
class Known:
    """The classes of a model, to which the names in a set are matched.

    labels: in the model's order.
    first: the number of the first class in the model's training data, where that had numbers in place of names; without
        it numbers are no classes.
    """

    labels: tuple[str, ...]
    first: int | None = None


Labels = Sequence[str] | str | Known | None
"""The classes in order by name, a data set of mien.labels.ORDERS, those of a model, or None: as the set names them."""


def spell_split(name: str) -> str:
    """The name of a split as mien spells it: "val" is "validation"; another name as it is."""
    return _SPLIT_OF.get(name.strip().lower(), name)


def names_split(name: str) -> bool:
    """Whether this is what anybody calls a split."""
    return name.strip().lower() in _SPLIT_OF


def class_order(labels: Sequence[str] | str | Known) -> tuple[str, ...]:
    """The classes in order: a list of names, a data set of mien.labels.ORDERS ("rafdb"), or those of a model.

    Names of a list are spelt as mien does where all of them are expressions, each another one; else they stay.

    Raises MienError for an unknown data set, and for a class named twice.
    """
    if isinstance(labels, Known):
        return labels.labels
    if isinstance(labels, str):
        if labels not in ORDERS:
            raise MienError(f"no order of labels is called {labels!r}, only {', '.join(ORDERS)}; or list the names")
        return ORDERS[labels]
    order = tuple(name.strip() for name in labels)
    if len({name.casefold() for name in order}) < len(order) or not all(order) or not order:
        raise MienError(f"labels must name each class once, not {', '.join(order) or 'nothing'}")
    spelt = tuple(map(spell, order))
    return spelt if set(spelt) <= set(EXPRESSIONS) and len(set(spelt)) == len(spelt) else order


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Each class once: the expressions in mien's own order, then numbers, then what else there is by name."""
    found = set(names)
    others = sorted(
        found - set(EXPRESSIONS), key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name)
    )
    return (*(name for name in EXPRESSIONS if name in found), *others)


@dataclass(frozen=True, slots=True)
class Matched:
    """What the names in a set stand for.

    labels: the classes in order.
    label_of: the class of each name as it is written, None for a name of no class.
    notes: what was read otherwise than it is written, a sentence each.
    first: the number of the first class, where the names are numbers.
    """

    labels: tuple[str, ...]
    label_of: Mapping[str, str | None]
    notes: tuple[str, ...] = ()
    first: int | None = None

    def why_none(self, name: str) -> str:
        """Why a name is no class, and what may help."""
        reason = f"{name!r} is none of {', '.join(self.labels)}"
        if spell(name) in self.labels:
            return f"{reason}: names of expressions are translated only where every name is one"
        if name.isdecimal():
            return f"{reason}: of numbered classes say the names in order (--labels)"
        near = difflib.get_close_matches(name.strip().lower(), [label.casefold() for label in self.labels], 1, 0.75)
        return f"{reason}: is {near[0]!r} meant?" if near else reason


def match_names(groups: Iterable[Iterable[str]], labels: Labels = None) -> Matched:
    """Find the class of each name: of folders side by side (a group is a split's), or of the values of a column.

    groups: names, by group.
    labels: the classes, as `class_order` takes them; None: the names are the classes.

    A name that is a label, in whatever case, is that label. Other spellings of expressions ("Happy") are read as such
    only where every label is an expression, and, unless `labels` were given, every name; `notes` say so. Without
    labels, names are spelt as mien spells them where every one is an expression, and no two of a group the same one;
    else they stay as they are.

    Raises MienError where two names of a group would be one class, and where names are numbers and nobody says of what.
    """
    groups = [list(dict.fromkeys(group)) for group in groups]
    names = list(dict.fromkeys(name for group in groups for name in group))
    foreign = [name for name in names if spell(name) not in EXPRESSIONS]
    if labels is None:
        return _name_classes(groups, names, foreign)
    order, first = class_order(labels), None
    by_name = {label.casefold(): label for label in order}
    label_of = {name: by_name.get(name.strip().casefold()) for name in names}
    if names and all(name.isdecimal() for name in names) and not any(label_of.values()):
        first = labels.first if isinstance(labels, Known) else int(all(int(name) for name in names))
        if first is not None:
            numbered = dict(enumerate(order, start=first))
            label_of = {name: numbered.get(int(name)) for name in names}
    elif set(order) <= set(EXPRESSIONS) and not (foreign and isinstance(labels, Known)):
        label_of = {name: spell(name) if spell(name) in order else None for name in names}
    for group in groups:
        _refuse_doubles(group, label_of)
    return Matched(order, label_of, tuple(_translations(label_of)), first)


def _name_classes(groups: Sequence[Sequence[str]], names: Sequence[str], foreign: Sequence[str]) -> Matched:
    if any(name.isdecimal() for name in names) and all(name.isdecimal() for name in foreign):
        raise MienError(
            f"the classes are numbered, {', '.join(foreign[:3])}, …: say labels, the names in order or a known set "
            'such as "rafdb" (--labels; in a recipe data.init_args.labels)'
        )
    doubles = {spell(name) for group in groups for name, n in Counter(map(spell, group)).items() if n > 1}
    if not foreign and not doubles:
        label_of = {name: spell(name) for name in names}
        return Matched(sort_classes(label_of.values()), label_of, tuple(_translations(label_of)))
    written: dict[str, str] = {}
    label_of = {name: written.setdefault(name.strip().casefold(), name.strip()) for name in names}
    for group in groups:
        _refuse_doubles(group, label_of)
    notes, known = [], {spell(name): name for name in names if spell(name) in EXPRESSIONS}
    others = [name for label, name in known.items() if name.strip().casefold() != label]
    if foreign and others:
        notes.append(f"names of classes stay as they are ({', '.join(others)}), since {foreign[0]!r} is no expression")
    elif doubles:
        both = [name for name in names if spell(name) in doubles]
        notes.append(f"{' and '.join(both)} stay as they are: two names of one expression are two classes here")
    for name in foreign if known else ():
        if near := difflib.get_close_matches(name.strip().lower(), _EXPRESSION_OF, 1, 0.75):
            notes.append(f"{name!r} is a class of its own: is {near[0]!r} meant?")
    return Matched(sort_classes(label_of.values()), label_of, tuple(notes))


def _refuse_doubles(group: Sequence[str], label_of: Mapping[str, str | None]) -> None:
    seen: dict[str, str] = {}
    for name in group:
        label = label_of[name]
        if label is not None and seen.setdefault(label, name) != name:
            raise MienError(f"{seen[label]!r} and {name!r} would both be {label!r}: rename one of them")


def _translations(label_of: Mapping[str, str | None]) -> Iterator[str]:
    read = [
        f"{name} as {label}"
        for name, label in label_of.items()
        if label and not name.isdecimal() and name.strip().casefold() != label.casefold()
    ]
    if read:
        yield f"read {', '.join(read)}"
