"""Every mixer in the same small ViT on FER2013+: the same tokens, steps and seeds, accuracy beside cost.

    python benchmarks/mixers.py train_validation.parquet weights/mobilefacenet.safetensors --out out/mixers

Tokens are the 14×14 map of a MobileFaceNet that learnt to tell people apart and no expressions, computed once and never
trained: they go through one linear layer, two blocks and a mean. Each run is written to a file of its own, so that what
was cut goes on; runs are spread over processes of one thread each.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mien.data import FERPlus
from mien.evaluation.robustness import beyond
from mien.files import whole
from mien.networks import MobileFaceNet, Normalize, ViT
from mien.networks.checkpoint import fill, load_tensors
from mien.networks.deploy import to_float
from mien.nn import (
    CAM,
    CMHA,
    GAAM,
    PAM,
    RCMHA,
    Axial,
    ChannelAttention,
    CosineMoH,
    Grassmann,
    Halo,
    MaxViTBlockAttention,
    MaxViTGridAttention,
    MoH,
    Neighborhood,
    SelfAttention,
    Sparsifiner,
    SpectralGate,
    TalkingHeads,
    TiC,
    WindowAttention,
)
from mien.training.crops import GREY48, Crops

SIDE, DIM, HEADS, BATCH = 14, 64, 4, 64


class Nothing(nn.Module):
    """Tokens as they are: what a ViT does whose tokens never meet before they are averaged."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()

    def forward(self, tokens, grid=None):
        return torch.zeros_like(tokens)


class Mean(nn.Module):
    def __init__(self, dim: int):
        super().__init__()

    def forward(self, tokens):
        return tokens.mean(1)


# what stands in the two blocks
MIXERS = {
    "nothing": [Nothing] * 2,
    "self-attention": [SelfAttention] * 2,
    "talking heads": [TalkingHeads] * 2,
    "MoH, 1 shared and 2 of 3 routed heads": [MoH] * 2,
    "MoH, cosine": [CosineMoH] * 2,
    "MaxViT: block, grid": [MaxViTBlockAttention, MaxViTGridAttention],
    "Halo": [Halo] * 2,
    "neighborhood": [Neighborhood] * 2,
    "axial": [Axial] * 2,
    "TiC": [TiC] * 2,
    "DaViT: window, channel": [WindowAttention, ChannelAttention],
    "spectral gate": [partial(SpectralGate, grid=(SIDE, SIDE))] * 2,
    "SpectFormer: gate, self-attention": [partial(SpectralGate, grid=(SIDE, SIDE)), SelfAttention],
    "Sparsifiner": [partial(Sparsifiner, num_tokens=SIDE * SIDE, num_prefix=0)] * 2,
    "GAAM": [GAAM] * 2,
    "CMHA": [CMHA] * 2,
    "RCMHA, 2-D": [partial(RCMHA, grid=(SIDE, SIDE))] * 2,
    "Grassmann": [Grassmann] * 2,
    "PAM": [PAM] * 2,
    "CAM": [CAM] * 2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("trunk", help="the identity weights, converted")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--faces", type=int, default=3000, help="of the training split, by seed 0 (3000)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokens = args.out / f"tokens_{args.faces}.pt"
    if not tokens.exists():
        torch.save(make_tokens(args.data, args.trunk, args.faces), tokens)
    jobs = [(name, seed) for seed in range(args.seeds) for name in MIXERS]
    missing = [job for job in jobs if not place(args, *job).exists()]
    with ProcessPoolExecutor(args.processes) as pool:
        for name, seed in pool.map(partial(run, args, tokens), missing):
            print(f"{name}, seed {seed}", flush=True)
    print(table(args))


def make_tokens(data: str, trunk: str, count: int) -> dict[str, torch.Tensor]:
    """{"x" (n, 128, 14, 14) bf16, "target" (n, 8), "vx", "label" (m,)}: training and validation faces."""
    network = MobileFaceNet("relu6", num_levels=2).eval()
    tensors = load_tensors(trunk, "")
    fill(network, {name: t for name, t in tensors.items() if not name.startswith(network.beyond)}, trunk)
    normalize, found = Normalize(GREY48), FERPlus(data, min_votes=2, check=False)
    rows = found.rows("train")
    picked = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:count]]
    out = {}
    for name, some in (("x", picked), ("vx", found.rows("validation"))):
        crops, maps = Crops(some, GREY48), []
        for start in range(0, len(some), 64):
            faces = torch.stack([crops[i][0] for i in range(start, min(start + 64, len(some)))])
            with torch.inference_mode():
                maps.append(network(normalize(to_float(faces)))[-1].bfloat16())
        out[name] = torch.cat(maps).clone()
    out["target"] = torch.from_numpy(np.stack([row.target for row in picked]))
    out["label"] = torch.tensor([row.label for row in found.rows("validation")])
    return out


@cache
def load(tokens: Path) -> dict[str, torch.Tensor]:
    """What `make_tokens` made, every channel with mean 0 and deviation 1 over the training faces; once a process."""
    data = torch.load(tokens)
    sample = data["x"][:500].float()
    mean, std = sample.mean((0, 2, 3), keepdim=True), sample.std((0, 2, 3), keepdim=True)
    for key in ("x", "vx"):
        data[key] = torch.cat([((part.float() - mean) / std).bfloat16() for part in data[key].split(256)])
    return data


def place(args: argparse.Namespace, name: str, seed: int) -> Path:
    short = "".join(letter if letter.isalnum() else "_" for letter in name)
    return args.out / f"{short}_{args.faces}_{args.epochs}_{seed}.json"


def run(args: argparse.Namespace, tokens: Path, job: tuple[str, int]) -> tuple[str, int]:
    """Train one and write which validation faces it has right, and the processor's seconds."""
    torch.set_num_threads(1)
    name, seed = job
    data = load(tokens)
    x, vx = data["x"], data["vx"]
    torch.manual_seed(seed)
    vit = ViT(num_classes=8, num_tokens=SIDE**2, embed_dim=DIM, depth=2, num_heads=HEADS, mlp_ratio=2.0,
              mixer=MIXERS[name], grid=(SIDE, SIDE), pool=Mean)  # fmt: skip
    network = nn.Sequential(nn.Flatten(2), Turn(), nn.Linear(x.shape[1], DIM), vit)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    steps = args.epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    begin = time.process_time()
    for _ in range(args.epochs):
        for picked in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            images = x[picked].float()
            images = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, images.flip(3), images)
            loss = nn.functional.cross_entropy(network(images), data["target"][picked])
            extra = [m.aux_loss for m in network.modules() if getattr(m, "aux_loss", None) is not None]
            loss = loss + 0.01 * sum(extra) / len(extra) if extra else loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    seconds = time.process_time() - begin
    network.eval()
    with torch.inference_mode():
        said = torch.cat([network(part.float()).argmax(1) for part in vx.split(128)])
    result = {
        "mixer": name,
        "seed": seed,
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": seconds,
        "right": "".join("01"[int(right)] for right in said == data["label"]),
    }
    with whole(place(args, name, seed)) as file:
        file.write(json.dumps(result).encode())
    return job


class Turn(nn.Module):
    """(B, D, N) -> (B, N, D)."""

    def forward(self, x):
        return x.transpose(1, 2)


def table(args: argparse.Namespace) -> str:
    """Markdown, the most accurate first."""
    found = {name: [json.loads(place(args, name, seed).read_text()) for seed in range(args.seeds)] for name in MIXERS}
    right = {name: np.array([[c == "1" for c in each["right"]] for each in results]) for name, results in found.items()}
    base = found["self-attention"]
    seconds = {name: sum(each["seconds"] for each in results) for name, results in found.items()}
    lines = [
        "| mixer | accuracy, each seed | mean | beyond self-attention, 95 % | parameters beyond | time, ratio |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name in sorted(MIXERS, key=lambda name: -right[name].mean()):
        each = ", ".join(f"{seed.mean():.3f}" for seed in right[name])
        more = "{:+.3f} ({:+.3f} to {:+.3f})".format(*beyond(right["self-attention"], right[name]))
        more = "–" if name == "self-attention" else more
        time_ = seconds[name] / seconds["self-attention"]
        size = found[name][0]["parameters"] - base[0]["parameters"]
        lines.append(f"| {name} | {each} | {right[name].mean():.3f} | {more} | {size:+,} | {time_:.2f} |")
    lines.append(f"\nself-attention: {base[0]['parameters']:,} parameters; {right['nothing'].shape[1]:,} faces judged")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
