"""What a wheel may hold: files that are committed, each once, and no more than 12 MB beside the default model."""

import subprocess
import sys
import zipfile
from pathlib import Path

from mien.classifier import DEFAULT_MODEL

MOST = 12e6
"""Bytes of the wheel beside those of the default model's files."""


def check(wheel: Path) -> list[str]:
    """What is wrong with a wheel."""
    listed = subprocess.run(["git", "ls-files", "src"], capture_output=True, text=True, check=True).stdout.splitlines()
    committed = {name.removeprefix("src/") for name in listed}
    wrong = []
    with zipfile.ZipFile(wheel) as archive:
        files = {info.filename: info for info in archive.infolist() if ".dist-info/" not in info.filename}
    wrong += [f"{name}: not committed" for name in files if name not in committed]
    wrong += [f"{name}: not in the wheel" for name in committed if name.endswith(".py") and name not in files]
    rest = sum(info.compress_size for name, info in files.items() if f"models/{DEFAULT_MODEL}/" not in name)
    if rest > MOST:
        wrong.append(f"{rest / 1e6:.1f} MB beside the default model, {MOST / 1e6:.0f} at most")
    print(
        f"{wheel}: {len(files)} files, {wheel.stat().st_size / 1e6:.1f} MB, {rest / 1e6:.1f} beside the default model"
    )
    return wrong


if __name__ == "__main__":
    faults = [fault for wheel in Path(sys.argv[1]).glob("*.whl") for fault in check(wheel)]
    print("\n".join(faults), end="\n" * bool(faults))
    sys.exit(bool(faults))
