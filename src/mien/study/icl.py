"""In-context linear regression: what one layer of softmax attention becomes when it is trained to regress.

    x_l, x ~ N(0, I_d);   β ~ N(0, I_d / d);   y_l = β · x_l + N(0, σ²), l = 1 … L;   wanted: β · x

Heads come in pairs of opposite sign: two of them compute `x · (p / L) Σ_l (x_l - x̄) y_l`, one step of gradient descent
on centred data at the rate p.

Paper: He et al., In-Context Linear Regression Demystified, arXiv 2503.12734. Reference: XintianPan/ICL_linear,
87ed34f. The closed forms of the best risk are ours, of the paper's risk.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads, split_heads
from mien.nn.circuits import circuits
from mien.study.findings import Bound, Findings, NumberTable, Series

NOISE = 0.1
"""σ², the variance of the noise."""


class IclSize(NamedTuple):
    """d and L, the lengths of tasks that are tried, how long is trained, and how near to theory that brings it."""

    covariates: int = 5
    pairs: int = 40
    lengths: Sequence[int] = (10, 20, 40, 80, 160)
    heads: Sequence[int] = (1, 2)
    steps: int = 2500
    batch: int = 256
    rate: float = 0.02  # of learning
    tasks: int = 20000
    risk: float = 0.150  # at most, of two heads
    rates: tuple[float, float] = (0.86, 0.90)  # of the descent that two heads do
    balance: float = 0.05  # |Σ μ| / max |μ|, at most
    cosine: float = 0.997  # with centred descent, at least
    share: float = 0.10  # of the risk of centred descent, from which that of two heads may differ


SMALL = IclSize(3, 20, (20, 40), (2,), 500, 128, 0.03, 4000, 0.20, (0.80, 0.95), 0.15, 0.985, 0.25)


class Tasks(NamedTuple):
    """x (B, L, d), y (B, L), the query (B, d) and its answer (B,)."""

    x: Tensor
    y: Tensor
    query: Tensor
    answer: Tensor


def draw(count: int, length: int, d: int, generator: torch.Generator) -> Tasks:
    """So many tasks of `length` pairs of d covariates; the answer to the query has no noise."""
    x, query = (torch.randn(count, size, d, generator=generator) for size in (length, 1))
    beta = torch.randn(count, d, 1, generator=generator) * d**-0.5
    y = x @ beta + NOISE**0.5 * torch.randn(count, length, 1, generator=generator)
    return Tasks(x, y[..., 0], query[:, 0], (query @ beta)[:, 0, 0])


class InContext(nn.Module):
    """The answer `Σ_h O_h V_h Zᵀ softmax(Z K_hᵀ Q_h z / √e)`, Z (L, e) the pairs [x, y], z = [query, 0], e = d + 1.

    Every head is e wide. x (B, L, d), y (B, L), query (B, d) -> (B,).
    """

    def __init__(self, d: int, num_heads: int):
        super().__init__()
        self.num_heads, width = num_heads, num_heads * (d + 1)
        self.q, self.k, self.v = (nn.Linear(d + 1, width, bias=False) for _ in range(3))
        self.attend = Attend()
        self.proj = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        pairs, query = torch.cat([x, y[..., None]], -1), F.pad(query, (0, 1))[:, None]
        q, k, v = (split_heads(t, self.num_heads) for t in (self.q(query), self.k(pairs), self.v(pairs)))
        return self.proj(merge_heads(self.attend(q, k, v)))[:, 0, 0]


def train(num_heads: int, size: IclSize, generator: torch.Generator) -> InContext:
    """Adam, its rate to 0 along a cosine, fresh tasks at every step."""
    network = InContext(size.covariates, num_heads)
    optimizer = torch.optim.Adam(network.parameters(), lr=size.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, size.steps)
    for _ in range(size.steps):
        tasks = draw(size.batch, size.pairs, size.covariates, generator)
        optimizer.zero_grad()
        F.mse_loss(network(*tasks[:3]), tasks.answer).backward()
        optimizer.step()
        schedule.step()
    return network


def descent(tasks: Tasks, rate: float, centred: bool) -> Tensor:
    """One step of gradient descent from 0, on the data as they are or on x less its mean: (B,)."""
    x = tasks.x - tasks.x.mean(1, keepdim=True) if centred else tasks.x
    return rate * torch.einsum("bd,bld,bl->b", tasks.query, x, tasks.y) / tasks.x.shape[1]


def ridge(tasks: Tasks) -> Tensor:
    """The best answer there is: Bayes' under the very prior."""
    d = tasks.x.shape[2]
    gram = tasks.x.mT @ tasks.x + NOISE * d * torch.eye(d)
    return (tasks.query * torch.linalg.solve(gram, tasks.x.mT @ tasks.y[..., None])[..., 0]).sum(-1)


NAMES = {1: "one head", 2: "two heads"}


def run(small: bool = False) -> Findings:
    """Train one head and two, and hold them against theory; `small`: two heads, smaller and shorter tasks."""
    size = SMALL if small else IclSize()
    d, pairs = size.covariates, size.pairs
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    networks = {heads: train(heads, size, generator) for heads in size.heads}
    c = (1 + NOISE) * d / pairs
    best = {1: 1 - 1 / (1 + math.e * c), 2: 1 - 1 / (1 + c)}
    kq, ov, mu, omega = weights(networks[2])
    rate = float(mu @ omega)
    tests = {length: draw(size.tasks, length, d, generator) for length in size.lengths}
    answers = {
        **{
            NAMES[heads]: {n: network(*t[:3]).detach() for n, t in tests.items()} for heads, network in networks.items()
        },
        "descent, centred, same rate": {n: descent(t, rate, centred=True) for n, t in tests.items()},
        "descent, best rate": {n: descent(t, 1 / (1 + (1 + NOISE) * d / n), False) for n, t in tests.items()},
        "Bayes": {n: ridge(t) for n, t in tests.items()},
    }
    risks = {
        name: {n: F.mse_loss(found, tests[n].answer).item() for n, found in by_length.items()}
        for name, by_length in answers.items()
    }
    two, centred, plain = (answers[name][pairs] for name in ("two heads", *list(answers)[-3:-1]))
    square = kq[:, :d, :d]
    off = square - torch.diag_embed(square.diagonal(dim1=1, dim2=2))
    bounds = [
        Bound("risk, two heads", risks["two heads"][pairs], high=size.risk, theory=best[2]),
        Bound("rate of the descent, Σ μ ω", rate, *size.rates, theory=1 / (1 + c)),
        Bound("|Σ μ| / max |μ|", float(mu.sum().abs() / mu.abs().max()), high=size.balance, theory=0),
        Bound("ω of one head over that of the other", float(omega.min() / omega.max()), high=-0.8, theory=-1),
        Bound("KQ off its diagonal, share of its norm", float(off.norm() / kq.norm()), high=0.15, theory=0),
        Bound("OV in its last entry, share of its norm", float(ov[:, 0, -1].norm() / ov.norm()), 0.99, theory=1),
        Bound("cosine with centred descent", cosine(two, centred), size.cosine, theory=1),
        Bound("cosine with descent", cosine(two, plain)),
    ]
    if 1 in networks:
        one = risks["one head"][pairs]
        bounds += [
            Bound("risk, one head", one, 0.27, 0.33, best[1]),
            Bound("risk, two heads over one", risks["two heads"][pairs] / one, high=0.55, theory=best[2] / best[1]),
        ]
    beside = risks["descent, centred, same rate"]
    bounds += [
        Bound.near(f"risk, two heads, {n} pairs: as centred descent", risks["two heads"][n], beside[n], size.share)
        for n in size.lengths
        if n >= pairs // 2
    ]
    lines = {name: list(by_length.values()) for name, by_length in risks.items()}
    by_head = {NAMES[heads]: weights(network)[2:] for heads, network in networks.items()}
    inputs = [*(f"x{i + 1}" for i in range(d)), "y"]
    title = f"risk by pairs, trained with {pairs}"
    tables = {
        "risks": NumberTable(title, list(lines), [str(n) for n in size.lengths], list(lines.values())),
        "heads": NumberTable(
            "ω, the mean diagonal of KQ, and μ, the last entry of OV",
            [f"{name}, {i + 1}" for name, (m, _) in by_head.items() for i in range(len(m))],
            ["ω", "μ"],
            [[float(w[i]), float(m[i])] for m, w in by_head.values() for i in range(len(m))],
        ),
        **{
            f"kq{i + 1}": NumberTable(f"KQ of head {i + 1} of two", inputs, inputs, kq[i].tolist(), drawn=True)
            for i in range(2)
        },
    }
    dashed = [name for name in lines if name not in NAMES.values()]
    series = {"risk": Series(title, "pairs", "risk", size.lengths, lines, dashed, scale="log")}
    settings = {"covariates": d, "pairs": pairs, "noise": NOISE, "steps": size.steps, "tasks": size.tasks, "seed": 0}
    return Findings("icl", "In-context linear regression", settings, bounds, tables, series)


def weights(network: InContext) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KQ (heads, e, e), OV (heads, 1, e), and of each head μ, the last entry of OV, and ω, the mean diagonal of KQ."""
    circuit = circuits(network, plain=(InContext,))["attend"]
    assert circuit.kq is not None and circuit.ov is not None
    omega = circuit.kq[:, :-1, :-1].diagonal(dim1=1, dim2=2).mean(1)
    return circuit.kq, circuit.ov, circuit.ov[:, 0, -1], omega


def cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a, b, dim=0).item()
