"""Mixers of long sequences against other people's numbers, and what they promise besides."""

import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import GOLDEN, rng

from mien.commands.list import mixers
from mien.networks.cost import fitted
from mien.nn import LinearAttention, LookError, SelfAttention, SpectralGate, Superlinear, mixing_matrix, observe
from mien.nn.linear_attention import remember

near = partial(torch.testing.assert_close, atol=1e-12, rtol=0)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "sequence.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def noise(name, *shape):
    return torch.from_numpy(rng(name).standard_normal(shape).astype(np.float32)).double()


# superlinear


@pytest.fixture(scope="module")
def given():
    return [noise(f"sl.{name}", 1, 2, 64, 8) for name in ("q1", "q2", "k", "v")]


@pytest.mark.parametrize("dense_tokens", [0, 64], ids=["sparse", "dense"])
@pytest.mark.parametrize("ff", [0, 1])
def test_superlinear_is_the_published_one(golden, given, ff, dense_tokens):
    mixer = Superlinear(16, 2, window=8, forward_factor=ff, dense_tokens=dense_tokens).double()
    torch.testing.assert_close(mixer.mixed(*given), golden[f"superlinear.out_ff{ff}"], atol=1e-10, rtol=0)


def test_superlinear_searches_and_spans_as_published(golden, given):
    mixer = Superlinear(16, 2, window=8, forward_factor=1.0)
    root, side = mixer.searched(given[0][0], given[2][0])
    t, found = torch.arange(64)[:, None], root > 0
    anchor = t + side * (root**2 - 1)
    theirs = golden["superlinear.qanchor"][0].long()
    assert torch.equal(found, theirs >= 0) and torch.equal(anchor[found], theirs[found])
    first, last = mixer.bounds(t, anchor, side, 64)
    assert torch.equal(first[found], golden["superlinear.qstart"][0].long()[found])
    assert torch.equal(last[found], golden["superlinear.qend_ff1"][0].long()[found])
    with observe(mixer := Superlinear(16, 2, window=8, top_k=64)) as seen:
        mixer.mixed(*given)
    reached = seen["attend"].scores[0, 0] > -math.inf
    candidates = {t - i * i + 1 for t in [63] for i in range(3, 9)}
    assert candidates == {0, 15, 28, 39, 48, 55} and torch.equal(reached, torch.ones(64, 64).tril() > 0)


def test_a_window_as_long_as_the_sequence_is_causal_attention():
    q1, q2, k, v = torch.randn(4, 2, 2, 50, 8, dtype=torch.float64)
    causal = F.scaled_dot_product_attention(q2, k, v, is_causal=True)
    for dense_tokens in (0, 50):
        near(Superlinear(16, 2, window=50, dense_tokens=dense_tokens).mixed(q1, q2, k, v), causal)
        both = Superlinear(16, 2, window=50, direction="both", dense_tokens=dense_tokens).mixed(q1, q2, k, v)
        near(both, F.scaled_dot_product_attention(q2, k, v))


@pytest.mark.parametrize("direction", ["past", "future", "both"])
def test_spans_and_window_reach_every_token_that_may_be_seen(direction):
    """And not with less than the least factor: the search would never find what lies in the gaps."""

    def covered(mixer, n):
        t = torch.arange(n) if n < 300 else torch.tensor([0, 1, 2, n // 3, n // 2, n - 2, n - 1])
        reach = torch.zeros(len(t), n + 1, dtype=torch.int32)
        ranges = [mixer.window_bounds(t, n)] if mixer.window else []
        for side in mixer.sides:
            for i in range(mixer.first_root, math.isqrt(n) + 1):
                anchor = t + side * (i * i - 1)
                first, last = mixer.bounds(t, anchor, side, n)
                ranges.append((first, last.masked_fill((anchor < 0) | (anchor >= n), -1)))
        for first, last in ranges:
            some = first <= last
            reach[some, first[some]] += 1
            reach[some, last[some] + 1] -= 1
        order = torch.arange(n) - t[:, None]
        expected = {"past": order <= 0, "future": order >= 0, "both": order == order}[direction]
        return torch.equal(reach.cumsum(1)[:, :n] > 0, expected)

    for n in (1, 2, 7, 64, 211, 5000):
        for window in (0, 1, 8, 63) if direction != "both" else (1, 8, 63):
            assert covered(Superlinear(8, 2, window, direction=direction), n), (n, window)
    mixer = Superlinear(8, 2, 8, direction=direction)
    mixer.backward_factor = 1.5
    assert not covered(mixer, 5000)


@pytest.mark.parametrize("window, top_k, factors", [(1, 2, (2.0, 0.0)), (8, 3, (2.5, 0.5)), (0, 4, (2.0, 1.0))])
def test_sparse_is_dense_and_the_future_mirrors_the_past(window, top_k, factors, monkeypatch):
    """In outputs and gradients, with blocks and chunks that end somewhere within the sequence."""
    monkeypatch.setattr("mien.nn.partial_attention.ROWS", 16)
    monkeypatch.setattr("mien.nn.superlinear.CHUNK", 10)
    torch.manual_seed(0)
    make = partial(Superlinear, 8, 2, window, top_k, *factors)
    tokens = torch.randn(2, 37, 8, dtype=torch.float64)

    def run(mixer, tokens):
        tokens = tokens.clone().requires_grad_()
        out = mixer(tokens)
        mixer.zero_grad()
        (out * torch.linspace(-1, 1, 8)).square().sum().backward()
        return [out, tokens.grad, *(p.grad.clone() for p in mixer.parameters())]

    answers, state = {}, make().double().state_dict()
    for direction in ("past", "future", "both") if window else ("past", "future"):
        mixer = make(direction=direction).double()
        mixer.load_state_dict(state)
        dense, mixer.dense_tokens = run(mixer, tokens), 0
        for a, b in zip(dense, run(mixer, tokens), strict=True):
            torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)
        answers[direction] = dense[0]
        mirrored = mixer(tokens.flip(1)).flip(1)
        if direction == "both":
            near(mirrored, dense[0])
        elif direction == "future":
            near(mirrored, answers["past"])
    later = tokens.clone()
    later[:, 20:] += 1
    mixer = make().double()
    mixer.load_state_dict(state)
    for mixer.dense_tokens in (0, 99):
        near(mixer(later)[:, :20], answers["past"][:, :20])


def test_a_needle_is_found_through_the_gate():
    """The last token must say what one far token holds; those behind it, as layers before would have it, know of it."""
    torch.manual_seed(0)
    mixer = Superlinear(8, 1, window=3, dense_tokens=0)

    def batch(size):
        tokens = 0.1 * torch.randn(size, 64, 8)
        place, sign = torch.randint(0, 30, (size, 1)), 2.0 * torch.randint(0, 2, (size,)) - 1
        behind = torch.arange(64) - place
        tokens[..., 1] += (behind >= 0) & (behind < 16)  # the span of an anchor here reaches back to the needle
        tokens[..., 2] += (behind == 0) * sign[:, None]
        tokens[..., 3] += behind == 0
        tokens[:, -1, 0] += 1
        return tokens, sign

    optimizer = torch.optim.Adam(mixer.parameters(), 0.03)
    mixer.dense_tokens = 64  # as quick as can be
    for _ in range(40):
        tokens, sign = batch(32)
        loss = F.softplus(-4 * sign * mixer(tokens)[:, -1, 0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens, sign = batch(200)
    mixer.dense_tokens = 0
    with torch.no_grad():
        found = (mixer(tokens)[:, -1, 0] * sign > 0).float().mean().item()
        mixer.search.weight.neg_()  # the search for what it liked least
        mixer.search.bias.neg_()
        blind = (mixer(tokens)[:, -1, 0] * sign > 0).float().mean().item()
    assert found > 0.9 > 0.75 > blind, (found, blind)


# linear attention


@pytest.mark.parametrize("update", ["hebb", "delta"])
def test_memory_is_written_and_read_as_published(golden, update):
    k, v, q = noise("pav.K", 6, 16), noise("pav.V", 6, 5), noise("pav.Q", 3, 16)
    k = F.normalize(k, dim=-1)
    answers, state = remember(k, k, v, torch.ones(6, 1).double(), torch.zeros(16, 5).double(), update)
    near(state.T, golden[f"hebb.S_{update}"])
    near(q @ state, golden[f"hebb.read_{update}"])
    if update == "delta":
        near(answers, v)  # what was written last is read without error


@pytest.mark.parametrize("update, rate", [("hebb", 1.0), ("hebb", None), ("delta", 0.5), ("delta", None)])
def test_a_stream_is_the_whole_and_both_are_the_rule(update, rate):
    torch.manual_seed(0)
    mixer = LinearAttention(8, 2, update, rate).double()
    tokens = torch.randn(2, 131, 8, dtype=torch.float64)
    whole, state = mixer.stream(tokens)
    near(mixer(tokens), whole)
    one, pieces = None, []
    for part in tokens.split([1] * 70 + [61], 1):
        out, one = mixer.stream(part, one)
        pieces.append(out)
    assert one.shape == (2, 2, 4, 4)
    near(torch.cat(pieces, 1), whole)
    near(one, state)
    q, k, v = mixer.qkv(tokens).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    b = torch.full((2, 2, 131), rate).double() if rate else mixer.rate(tokens).sigmoid().transpose(1, 2)
    memory, heads = torch.zeros(2, 2, 4, 4).double(), []
    for t in range(131):
        error = v[:, :, t] - (torch.einsum("bhkv,bhk->bhv", memory, k[:, :, t]) if update == "delta" else 0)
        memory = memory + b[:, :, t, None, None] * k[:, :, t, :, None] * error[:, :, None]
        heads.append(torch.einsum("bhkv,bhk->bhv", memory, q[:, :, t]))
    near(memory, state)
    heads = torch.stack(heads, 2)
    heads = heads / (heads.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    near(mixer.proj(heads.transpose(1, 2).flatten(2)), whole)
    later = tokens.clone()
    later[:, 100:] += 1
    near(mixer(later)[:, :100], whole[:, :100])


# the matrix of a mixer

WITHOUT_MATRIX = {
    "Axial": "attends in 2 places (columns, rows)",
    "CAM": "does not mix tokens by a matrix",
    "ChannelAttention": "does not mix tokens by a matrix",
    "GAAM": "does not mix tokens by a matrix",
    "CosineMoH": "does more to values than to mix them",
    "MoH": "does more to values than to mix them",
    "Grassmann": "forms no attention, and is not linear in the tokens",
}


@pytest.mark.parametrize("name", mixers())
def test_a_matrix_mixes_values_or_there_is_none_and_why(name):
    torch.manual_seed(0)
    mixer, tokens = fitted(mixers()[name], (3, 4))(8, 2).double().eval(), torch.randn(2, 12, 8, dtype=torch.float64)
    if name in WITHOUT_MATRIX:
        with pytest.raises(LookError, match=f"^{re.escape(f'{name} {WITHOUT_MATRIX[name]}')}"):
            mixing_matrix(mixer, tokens, (3, 4))
        return
    matrix = mixing_matrix(mixer, tokens, (3, 4))
    assert matrix.shape == ((1, 8, 12, 12) if name == "SpectralGate" else (2, 2, 12, 12)) and matrix.abs().max() > 0
    if hasattr(mixer, "qkv") and hasattr(mixer, "proj") and name not in ("TiC", "LinearAttention"):
        values = mixer.qkv(tokens)[..., 16:].unflatten(-1, (2, 4)).transpose(1, 2)
        near(mixer.proj((matrix @ values).transpose(1, 2).flatten(2)), mixer(tokens, (3, 4)))


def test_known_matrices():
    tokens = torch.randn(1, 12, 8, dtype=torch.float64)
    gate = SpectralGate(8, 2, (3, 4)).double()
    matrix = mixing_matrix(gate, tokens, (3, 4))
    near(torch.einsum("dts,bsd->btd", matrix[0], tokens), gate(tokens, (3, 4)))
    near(matrix[0, :, 5, 6], matrix[0, :, 0, 1])  # circular: only the offset counts
    hebb = LinearAttention(8, 2, "hebb", rate=1.0).double()
    q, k, _ = hebb.qkv(tokens).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    near(mixing_matrix(hebb, tokens), (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).tril())
    near(mixing_matrix(SelfAttention(8, 2).double(), tokens).sum(-1), torch.ones(1, 2, 12, dtype=torch.float64))
    with pytest.raises(LookError, match="does more to values"):  # what is dropped in training is another each time
        mixing_matrix(SelfAttention(8, 2, attn_drop=0.5).double(), tokens)


def test_the_program_of_the_page_runs():
    page = (Path(__file__).parents[1] / "docs" / "sequences.md").read_text()
    exec(page.partition("```python\n")[2].partition("```")[0], {})


@pytest.mark.parametrize("make", [Superlinear, partial(Superlinear, dense_tokens=0), LinearAttention])
def test_autocast_rounds(make):
    mixer, tokens = make(8, 2), torch.randn(2, 30, 8)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = mixer(tokens)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), mixer(tokens), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Superlinear(10, 4), "10 is not a multiple of num_heads 4"),
        (lambda: Superlinear(8, 2, -1), "window must be from 0 on"),
        (lambda: Superlinear(8, 2, top_k=0), "top_k from 1 on"),
        (lambda: Superlinear(8, 2, backward_factor=1.9), "or spans leave gaps: not 1.9"),
        (lambda: Superlinear(8, 2, forward_factor=-1), "forward_factor must be from 0 on"),
        (lambda: Superlinear(8, 2, direction="back"), "'past', 'future' or 'both', not 'back'"),
        (lambda: Superlinear(8, 2, 0, direction="both"), "needs a window from 1 on"),
        (lambda: LinearAttention(10, 4), "10 is not a multiple of num_heads 4"),
        (lambda: LinearAttention(8, 2, "oja"), "'hebb' or 'delta', not 'oja'"),
        (lambda: LinearAttention(8, 2, rate=0.0), "rate must be above 0"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
