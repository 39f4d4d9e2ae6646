"""cd tests && python -m fuzz KIND [--count N] [--seed N] [WORDS ...]: try many inputs, and say what went wrong.

KIND: pictures, models, programs, recipes, workers or moments; WORDS are those of the command that is interrupted at N
moments.
"""

import argparse
import importlib
import os
import tempfile
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("kind", choices=("pictures", "models", "programs", "recipes", "moments", "workers"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first input; the others follow")
    parser.add_argument("words", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    os.environ.setdefault("TORCH_LOGS", "-all")  # as commands do
    seeds = range(args.seed, args.seed + args.count)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.kind == "pictures":
            from fuzz.pictures import fault

            faults = list(map(fault, seeds))
        elif args.kind == "moments":
            from fuzz import moments

            total = moments.moments(args.words)
            faults = [moments.fault(moment, args.words) for moment in moments.spread(total, args.count)]
        elif args.kind == "workers":
            from fuzz import workers

            faults = workers.faults(args.count, args.seed, folder)
        else:
            kind = importlib.import_module(f"fuzz.{args.kind}")
            faults = [kind.fault(seed, folder) for seed in seeds]
    faults = [fault for fault in faults if fault]
    print(f"{args.kind}: {args.count:,} tried, {len(faults):,} faults")
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
