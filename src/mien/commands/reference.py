"""`mien read --reference`: how far each expression is from the same person's neutral face."""

import math
from collections.abc import Callable, Mapping

from mien.commands.rows import Writer
from mien.console import printable
from mien.errors import MienError
from mien.faces.record import Record
from mien.reader import Reader

_LEAST = 1e-6  # of a probability, as rows give them


def log_odds(probabilities: Mapping[str, float]) -> dict[str, float]:
    """`log(p / (1 - p))` of each label, of probabilities from a millionth up."""
    bounded = {label: min(max(prob, _LEAST), 1 - _LEAST) for label, prob in probabilities.items()}
    return {label: math.log(prob / (1 - prob)) for label, prob in bounded.items()}


class Reference:
    """A neutral face, beside which others of the same person are read.

    reader: reads it. source: a picture; its largest face is taken. say: called with a line for whatever a person should
    know of it.

    Raises ReadError for what is no picture, and MienError where no face is found in it.
    """

    def __init__(self, reader: Reader, source: str, say: Callable[[str], None]):
        faces = reader(source)
        if not faces:
            raise MienError(f"{source}: no face found, beside which others could be read")
        if len(faces) > 1:
            say(f"{source}: the largest of {len(faces)} faces is the reference")
        first = reader.classifier.labels[0] if "neutral" not in reader.classifier.labels else "neutral"
        best = max(faces[0].probabilities, key=lambda label: faces[0].probabilities[label])
        if best != first:
            sure = f"{best} ({faces[0].probabilities[best]:.0%})"
            say(f"{source}: read as {sure}, and not as {first}: changes are from that")
        self.source, self.neutral, self._say = source, log_odds(faces[0].probabilities), say
        self._seen: set[object] = set()

    def change(self, probabilities: Mapping[str, float]) -> dict[str, float]:
        """How much larger the log-odds of each label are than those of the reference."""
        return {label: value - self.neutral[label] for label, value in log_odds(probabilities).items()}

    def into(self, writer: Writer) -> "_Changed":
        """A writer that writes `change` with every face."""
        return _Changed(self, writer)

    def meet(self, face: object) -> None:
        """Say once that a second face is compared, too."""
        self._seen.add(face)
        if len(self._seen) == 2:
            self._say(f"{self.source}: every face is read beside it, and there is more than one person's")
            self._seen |= {None, ""}


class _Changed:
    def __init__(self, reference: Reference, writer: Writer):
        self._reference, self._writer = reference, writer

    def write(self, record: Record) -> None:
        probabilities = record["probabilities"]
        if probabilities is not None:
            self._reference.meet(record.get("track") or record["face"])
            change = {label: round(value, 4) for label, value in self._reference.change(probabilities).items()}
            record = {**record, "change": change}
        self._writer.write(record)

    def close(self) -> None:
        self._writer.close()


def say_by(write: Callable[[str], None]) -> Callable[[str], None]:
    """What tells a person something in a line that begins as all of the command's do."""
    return lambda line: write(f"mien: {printable(line)}")
