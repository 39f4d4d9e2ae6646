"""`mien COMMAND ...`: find the command, run it, and say in one line what went wrong."""

import os
import sys

from mien import console

if __name__ == "__main__" or os.path.basename(sys.argv[0]) in ("mien", "mien.exe"):  # the process is the command's own
    console.on_interrupt(console.leave)

# ruff: noqa: E402, I001
import argparse
import difflib
import errno
import importlib
import re
import warnings
from collections.abc import Iterable, Sequence

from mien.errors import MienError, MienWarning, MissingExtra, Misuse

# name: (module, imported when the command is called; the extra that it needs, if any; what `mien --help` says of it)
COMMANDS = {
    "read": ("mien.commands.read", "", "find the faces in pictures and read their expressions"),
    "batch": ("mien.commands.batch", "parquet", "read very many pictures, on one machine or on many"),
    "list": ("mien.commands.list", "", "list the models that came with mien, its networks, or the mixers in them"),
    "eval": ("mien.commands.eval", "eval", "measure a model on labelled pictures"),
    "eval-events": ("mien.commands.eval_events", "", "measure events of videos against those that people noted"),
    "choose": ("mien.commands.choose", "eval", "choose among models by one half of labelled faces, judge by the other"),
    "data": ("mien.commands.data", "", "check labelled pictures, or prepare them for training"),
    "finetune": ("mien.commands.finetune", "train", "teach a model your own classes, from a folder of pictures"),
    "train": ("mien.commands.train", "train", "train a network as a recipe says"),
    "temporal": ("mien.commands.temporal", "train", "train what joins a face's answers through time, as a recipe says"),
    "ablate": ("mien.commands.ablate", "train", "train a recipe with options varied, several seeds of each"),
    "average": ("mien.commands.average", "torch", "make one checkpoint of several, whose weights are their mean"),
    "calibrate": ("mien.commands.calibrate", "eval", "scale a checkpoint's probabilities to how often it is right"),
    "convert": ("mien.commands.convert", "torch", "turn somebody else's weights into a checkpoint of mien's"),
    "explain": ("mien.commands.explain", "torch", "draw what an answer rests on, and what a network attended to"),
    "analyse": ("mien.commands.analyse", "eval", "which heads of a network's attention matter, and where they look"),
    "study": ("mien.commands.study", "torch", "do a small study of attention, figures beside their bounds"),
    "bench": ("mien.commands.bench", "torch", "measure what attention mechanisms and whole networks cost"),
    "export": ("mien.commands.export", "export", "turn a model into a file for other engines"),
    "heads": ("mien.commands.heads", "", "find all heads, seen from any side, and how they are turned; train that"),
    "serve": ("mien.commands.serve", "serve", "read pictures that are sent over HTTP"),
    "demo": ("mien.commands.demo", "demo", "a page in the browser that reads photographs, webcams and videos"),
    "fetch": ("mien.commands.fetch", "", "get a model that is not in the package, and check that it is that one"),
    "doctor": ("mien.commands.doctor", "", "show what is installed, which engine reads, and how fast"),
}

GROUPS = {
    "Read": ("read", "batch", "demo", "serve"),
    "Measure": ("eval", "eval-events", "choose", "calibrate", "explain", "analyse", "bench", "study"),
    "Teach": ("finetune", "data", "train", "temporal", "ablate", "average"),
    "Models": ("list", "fetch", "export", "convert", "heads", "doctor"),
}
"""Where `mien` alone shows each command."""

WELCOME = """\
mien reads facial expressions from photographs and videos, on this computer.

  mien read photo.jpg                          which faces, and what they show
  mien read holiday/ --annotate drawn/         a folder, and copies with the faces drawn in
  mien finetune faces/ --out mine              your own classes, a folder of pictures for each
"""

SERVICES = {"serve", "demo", "train", "temporal", "finetune", "ablate", "bench", "batch"}
"""Commands of several processes, whose stderr is what says how they end; in all others libraries in C keep silent."""

NAMING = {"train", "temporal", "finetune", "ablate", "bench", "eval", "choose", "data", "analyse"}
"""Commands to which people may name classes of their own, which are looked for in the current folder, too; so are they
with --trust, which every command has that opens a model."""


class _Version(argparse.Action):
    def __call__(self, parser, *_):
        import mien

        print(f"mien {mien.__version__}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0 if all went well, 1 if something could not be done, 2 for misuse, 130 if interrupted.

    argv: the words behind `mien`; None (default) for those of this process, which then is the command's own: its
        streams and its signals are set up for that.
    """
    if argv is not None:
        return _run(list(argv))
    console.begin()
    try:
        console.on_interrupt(console.interrupt)
        code = _run(sys.argv[1:])
    except KeyboardInterrupt:
        code = console.interrupted()
    except SystemExit as end:  # of argparse, which may have printed its help
        code = end.code
    finally:
        console.on_interrupt(console.leave)
        lost = _flush()
    if console.waits():  # the timer would outlive Python's handler, and kill
        return console.interrupted()
    return _fail(lost) if lost and not code else code  # type: ignore[return-value]


def _run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mien", description="Reads facial expressions from photographs.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, _, purpose) in COMMANDS.items():
        commands.add_parser(name, help=purpose, description=f"{purpose.capitalize()}.")
    name = argv[0] if argv and argv[0] in COMMANDS else None
    try:
        if not argv:
            print(_welcome())
            return 0
        if name is None:
            if not argv[0].startswith("-"):
                parser.error(f"no such command: {argv[0]!r}; mien --help lists them{_meant(argv[0], COMMANDS)}")
            parser.parse_args(argv)  # help, version and misuse end here
            parser.error("the command comes first")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of other libraries, on pictures that are read all the same
            warnings.simplefilter("always", MienWarning)
            warnings.showwarning = _show
            os.environ.setdefault("TORCH_LOGS", "-all")  # errors only, since torch raises as well what it warns of
            if name not in SERVICES:
                console.keep_stderr()
            command = _load(name)
            command.add_arguments(commands.choices[name])
            args, unknown = parser.parse_known_args(argv)
            if unknown:
                options = re.findall(r"--[\w-]+", commands.choices[name].format_help())
                hint = _meant(unknown[0].partition("=")[0], options)
                commands.choices[name].error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
            if (name in NAMING or getattr(args, "trust", False)) and (here := os.getcwd()) not in sys.path:
                sys.path.append(here)
            code = command.run(args)
            sys.stdout.flush()
            return code
    except Misuse as error:
        commands.choices[name].error(str(error))
    except MienError as error:
        return _fail(error)
    except OSError as error:
        if error.filename is None:
            _flush()
        if isinstance(error, BrokenPipeError):
            return 141
        return _fail(_reason(error) if error.filename is None else f"{error.filename}: {_reason(error)}")
    except KeyboardInterrupt:
        return console.interrupted()


def _welcome() -> str:
    lines, width = [WELCOME], max(map(len, COMMANDS))
    for group, names in GROUPS.items():
        lines += [group, *(f"  {name:<{width}} {COMMANDS[name][2]}" for name in names), ""]
    return "\n".join([*lines, "mien COMMAND --help shows a command's options."])


def _meant(word: str, known: Iterable[str]) -> str:
    """What was likely meant by a word that is not known; nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _flush() -> str:
    """Where stdout cannot take more, drop it, and say why: Python would try again when it ends, and complain."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _reason(error)
    return ""


def _reason(error: OSError) -> str:
    if error.filename is None and error.errno == errno.EBADF:
        return "stdout is closed"
    return (error.strerror or str(error)).lower()


def _load(name: str):
    module, extra, _ = COMMANDS[name]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not extra or (error.name or "mien").partition(".")[0] == "mien":
            raise
        raise MissingExtra(f'mien {name} needs {error.name}: pip install "mien[{extra}]"') from error


def _show(message: Warning | str, *_: object) -> None:
    _fail(message)


def _fail(reason: object, code: int = 1) -> int:
    print("mien:", console.printable(" ".join(str(reason).split("\n"))), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
