"""Temporal models of every causal mixer beside filters, on tracks made of faces.

    python benchmarks/temporal.py --data train_validation.parquet --cache out/temporal      # all, three seeds

Trains on tracks of training faces, judges on tracks of validation faces, and prints a table: how often frames are
right, the mean over tracks, with 95 % intervals over tracks, of filters and networks, and their difference from the
exponential filter, whose seconds were chosen on tracks of training faces. A network's is the mean of its seeds, track
by track.

The recipe, with which `mien temporal` trains one, is recipes/temporal/ferplus.yaml.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml

from mien.classifier import find_checkpoint
from mien.data import FERPlus
from mien.networks.temporal import causal_attention
from mien.nn import CMHA, RCMHA, Grassmann, LinearAttention, Superlinear
from mien.training.temporal import JUDGING, judge, keep_features, learn, made_tracks, sample, start

RECIPE = Path(__file__).parents[1] / "recipes" / "temporal" / "ferplus.yaml"

MIXERS = {
    "no mixer": None,  # no blocks: what a filter and another head on the features give by themselves
    "self-attention": causal_attention,
    "superlinear": partial(Superlinear, window=15),
    "delta": partial(LinearAttention, update="delta"),
    "Hebb": partial(LinearAttention, update="hebb"),
    "Grassmann": partial(Grassmann, direction="past"),
    "RCMHA": partial(RCMHA, causal=True),
    "CMHA": partial(CMHA, causal=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--cache", type=Path, default=Path("out/temporal"))
    parser.add_argument("--mixers", nargs="+", default=list(MIXERS), choices=list(MIXERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tracks", type=int, default=400, help="that judge")
    parser.add_argument("--out", type=Path, help="a .json of what was found")
    args = parser.parse_args()
    recipe = yaml.safe_load(RECIPE.read_text())
    model, data = find_checkpoint(recipe["model"]), FERPlus(args.data, check=False)
    kept = {}
    for split in recipe["splits"]:
        rows = sample(data.rows(split), **recipe["sampled"][split])
        features = keep_features(model, rows, args.cache / f"{split}.npz", spoilt=True, progress=True)
        kept[split] = features, np.array([row.label for row in rows])
        print(f"{split}: {len(rows):,} faces, {features.shape[1]} views", flush=True)
    train, validation = recipe["splits"]
    judging = made_tracks(*kept[validation], seed=JUDGING, **{**recipe["made"], "count": args.tracks})
    options = {name: recipe[name] for name in ("steps", "batch_size", "lr")}
    networks = {}
    for name in args.mixers:
        for seed in args.seeds:
            torch.manual_seed(seed)
            begin = time.process_time()
            depth = {"depth": 0} if MIXERS[name] is None else {}
            network, _ = start(model, {**recipe["network"], **depth, "mixer": MIXERS[name]})
            learning = made_tracks(*kept[train], seed=seed, **recipe["made"])
            learn(network, learning, seed=seed, **options)
            networks[f"{name}#{seed}"] = network
            print(f"{name}, seed {seed}: {time.process_time() - begin:.0f} CPU s", flush=True)
    found = judge(networks, judging, made_tracks(*kept[train], seed=99, **recipe["made"]), args.tracks)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    print(f"{'':44} {'right':>7}  {'95 % of tracks':17} {'- exponential':>14}")
    for name, (mean, low, high) in found.items():
        if " - " not in name:
            more, least, most = found[f"{name} - exponential"]
            print(f"{name:44} {mean:7.4f}  {low:.4f} to {high:.4f}  {more:+8.4f} ({least:+.4f} to {most:+.4f})")


if __name__ == "__main__":
    main()
