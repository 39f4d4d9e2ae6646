"""Ctrl-C at chosen moments of a command: behind its n-th import or opened file, of whatever thread."""

import os
import subprocess
import sys
from collections.abc import Sequence

CHILD = """
import os, sys
moment, seen = int(sys.argv[1]), 0
def count(event, _):
    global seen
    if event in ("import", "open", "exec", "compile"):
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), 2)
sys.argv[:] = ["mien", *sys.argv[2:]]
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import mien.console  # from here on it is mien's to answer for
mien.console.on_interrupt(mien.console.leave)
sys.addaudithook(count)
if moment < 0:
    import atexit
    atexit.register(lambda: print("moments", seen, file=sys.stderr))
from mien.__main__ import main
sys.exit(main())
"""


def run(moment: int, words: Sequence[str], timeout: float = 120) -> tuple[int | None, str]:
    """The exit code of a command that is interrupted at this moment, None where it hangs, and its stderr."""
    command = [sys.executable, "-c", CHILD, str(moment), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as child:
        try:
            return child.wait(timeout), child.stderr.read().decode()
        except subprocess.TimeoutExpired:
            child.kill()
            return None, child.stderr.read().decode()


def moments(words: Sequence[str]) -> int:
    """How many moments a command has; the second run counts, as the first may write byte code, which opens files."""
    for _ in range(2):
        code, err = run(-1, words)
        assert code == 0, err
    return int(err.split()[-1])


def spread(total: int, count: int) -> list[int]:
    """Numbers of moments, from the first to before the last: a run may have some per cent fewer than another."""
    return [1 + round(i * (0.88 * total - 1) / max(1, count - 1)) for i in range(count)]


def fault(moment: int, words: Sequence[str]) -> str | None:
    """What is wrong with how the command ends."""
    code, err = run(moment, words)
    if code is None:
        return f"moment {moment}: hangs"
    return None if (code, err) == (130, "mien: interrupted\n") else f"moment {moment}: exit code {code}: {err[-2000:]}"
