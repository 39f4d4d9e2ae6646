"""`mien bench mixers`: what is counted is what there is, and the table compares it with self-attention."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from mien.__main__ import main
from mien.commands.list import mixers
from mien.commands.tables import COSTS
from mien.networks.cost import MEASURES, compare, fitted, macs, milliseconds, peak_bytes, side_by_side
from mien.nn import SelfAttention, TalkingHeads


class Doubled(SelfAttention):
    """Self-attention twice over: everything costs twice as much."""

    def __init__(self, dim, num_heads):
        super().__init__(dim, num_heads)
        self.again = SelfAttention(dim, num_heads)

    def forward(self, tokens, grid=None):
        return super().forward(tokens, grid) + self.again(tokens, grid)


class Filter(nn.Module):
    """A depthwise filter of a plane by its spectrum; made for one size."""

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int] = (1, 1)):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(grid[0], grid[1] // 2 + 1, dim))

    def forward(self, tokens, grid=None):
        spectrum = torch.fft.rfft2(tokens.unflatten(1, grid), dim=(1, 2))
        return torch.fft.irfft2(spectrum * self.weight, grid, dim=(1, 2)).flatten(1, 2)


@pytest.mark.parametrize("n", [49, 60])
def test_macs_are_those_of_the_formula(n):
    dim, tokens = 32, torch.randn(1, n, 32)
    attention = SelfAttention(dim, 4)
    assert macs(attention, tokens) == 4 * n * dim**2 + 2 * n**2 * dim
    assert macs(TalkingHeads(dim, 4), tokens) == 4 * n * dim**2 + 2 * n**2 * dim + 2 * n**2 * 4**2
    assert macs(nn.Conv2d(6, 6, 3, padding=1, groups=6), torch.randn(2, 6, 5, 7)) == 2 * 5 * 7 * 6 * 9


def test_macs_of_a_spectrum():
    n, channels = 14 * 14, 8
    filtered = fitted(Filter, (14, 14))(channels, 1)
    transforms = 2 * 0.5 * 2.5 * channels * n * math.log2(n)  # there and back, of real numbers
    assert macs(filtered, torch.randn(1, n, channels), (14, 14)) == pytest.approx(
        transforms + 14 * 8 * channels, rel=1e-3
    )


def test_products_number_by_number_count_and_those_with_a_constant_do_not():
    class Products(nn.Module):
        def forward(self, x, y):
            return 2 * (x * y) + x

    assert macs(Products(), torch.randn(3, 5), torch.randn(5)) == 15


def test_peak_is_the_most_at_once():
    def run():
        a = torch.empty(1_000_000, dtype=torch.float32)
        del a
        b = torch.empty(500_000, dtype=torch.float32)
        c = b + 1
        return b, c

    assert peak_bytes(run) == pytest.approx(4e6, rel=0.01)


def test_every_round_has_all_in_turn():
    told = []
    times = side_by_side({name: lambda name=name: told.append(name) for name in "abc"}, rounds=3)
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3, "c": 3}
    turns = [name for name, before in zip(told, [None, *told], strict=False) if name != before]
    assert "".join(turns) == "abc" * 4  # and once to see how long each takes
    assert milliseconds(lambda: sum(range(100_000)), 2) > 0.1


def test_measures_beside_self_attention():
    told = compare({"one": SelfAttention, "two": Doubled, "filter": Filter}, [(8, 8), (2, 8)], 32, 4, 2, 1)
    assert list(told["one"]["grids"]) == ["2,8", "8,8"] and told["two"]["grids"]["8,8"]["tokens"] == 64
    for grid in told["one"]["grids"].values():
        assert all(grid[measure]["ratio"] == 1 and grid[measure]["value"] > 0 for measure in MEASURES)
    for grid in told["two"]["grids"].values():
        assert grid["macs"]["ratio"] == grid["parameters"]["ratio"] == 2 and grid["training_mb"]["ratio"] > 1.2
    assert told["filter"]["grids"]["2,8"]["parameters"]["value"] == 2 * 5 * 32
    assert told["filter"]["grids"]["8,8"]["parameters"]["value"] == 8 * 5 * 32
    small, large = (4 * n * 32**2 + 2 * n**2 * 32 for n in (16, 64))
    assert told["one"]["slopes"]["macs"] == pytest.approx(math.log(large / small) / math.log(4))


def test_what_would_take_too_much_memory_is_skipped():
    makers = {"one": SelfAttention, "two": Doubled}
    few, all_of_it = (compare(makers, [(2, 2), (16, 16)], 32, 4, 1, 1, most_gb=gb) for gb in (1e-4, 1.0))
    assert list(few["one"]["grids"]) == list(all_of_it["two"]["grids"]) == ["2,2", "16,16"]
    assert list(few["two"]["grids"]) == ["2,2"] and few["two"]["slopes"] == {}


SMALL = ["--dim", "16", "--heads", "2", "--batch", "1", "--rounds", "1"]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_json(capfd):
    arguments = ["--grid", "2,3", "--grid", "4,4", *SMALL, "--json"]
    assert main(["bench", "mixers", "TalkingHeads", f"{__name__}.Doubled", *arguments]) == 0
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert not err  # the profiler would tell of itself
    assert (told["dim"], told["heads"], told["batch"], told["threads"], told["rounds"]) == (16, 2, 1, 1, 1)
    assert list(told["mixers"]) == ["SelfAttention", "TalkingHeads", f"{__name__}.Doubled"]
    assert told["mixers"][f"{__name__}.Doubled"]["grids"]["4,4"]["macs"]["ratio"] == 2
    assert all(list(mixer["slopes"]) == list(MEASURES) for mixer in told["mixers"].values())


def test_a_mixer_of_the_current_folder(monkeypatch, tmp_path, capsys):
    (tmp_path / "lies_here.py").write_text("from mien.nn import SelfAttention\nclass Mine(SelfAttention):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    assert main(["bench", "mixers", "lies_here.Mine", "--grid", "2,3", *SMALL]) == 0
    assert "| lies_here.Mine | 1,088 (1.00) |" in capsys.readouterr().out
    assert sys.path[-1] == str(tmp_path)  # where it hides nothing


def test_tables(capsys):
    assert main(["bench", "mixers", "TalkingHeads", "--grid", "2,3", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0].startswith("| 2×3 | parameters | MMAC a face |") and len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| SelfAttention | 1,088 (1.00) | 0.0 (1.00) |") and "torch's profiler" in lines[0]


def test_tables_are_aligned_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["bench", "mixers", "TalkingHeads", "--grid", "2,3", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    head, *rows = lines[2:]
    assert "|" not in "".join(lines[2:]) and head.split()[:2] == ["2×3", "parameters"] and len(rows) == 2
    assert len({len(line) for line in (head, *rows)}) == 1 and rows[0].startswith("SelfAttention  1,088 (1.00)")


def test_costs_that_are_listed_are_those_that_are_counted():
    assert COSTS.keys() == mixers().keys()
    for name, make in mixers().items():
        module = fitted(make, (14, 14))(192, 6)
        counted = sum(p.numel() for p in module.parameters()), macs(module, torch.randn(1, 196, 192), (14, 14)) / 1e6
        assert (counted[0], round(counted[1], 1)) == COSTS[name], name


@pytest.mark.parametrize(
    "arguments, code, reason",
    [
        (["mixers", "--grid", "14"], 2, "a grid is two whole numbers with a comma between, not '14'"),
        (["mixers", "--rounds", "0"], 2, "0: not a whole number of 1 to"),
        (["heads"], 2, "invalid choice: 'heads'"),
        (["mixers", "Gone"], 1, "there is no mixer Gone; mien list mixers names mien's"),
        (["mixers", "TalkingHeads", "--heads", "5"], 1, "dim 192 is not a multiple of num_heads 5"),
    ],
)
def test_what_cannot_be_measured(arguments, code, reason, capsys):
    try:
        assert main(["bench", *arguments]) == code
    except SystemExit as end:
        assert end.code == code
    assert reason in capsys.readouterr().err


# the pages made from it


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "docs")
    return importlib.import_module("make_mechanisms")


class Window(nn.Module):
    """Every token is the mean of its window of 7×7, of which `proj` starts at 0."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.proj.weight)

    def forward(self, tokens, grid=None):
        maps = self.proj(tokens).unflatten(1, (grid[0] // 7, 7, grid[1] // 7, 7))
        return maps.mean((2, 4), keepdim=True).expand_as(maps).flatten(1, 4)


def test_reach_is_what_a_token_depends_on(pages):
    whole = pages.reach(SelfAttention, (7, 7), dim=12, num_heads=2, draws=4)
    assert whole.shape == (14, 14) and (whole > 0).all() and whole.argmax() == 7 * 14 + 7
    windowed = pages.reach(Window, (11, 3), dim=12, draws=4)
    expected = torch.zeros(14, 14, dtype=torch.bool)
    expected[7:, :7] = True
    assert torch.equal(windowed > 0, expected)


def test_a_page(pages, monkeypatch, tmp_path):
    told = {"dim": 16, "heads": 2, "batch": 1, "threads": 1, "rounds": 1, "torch": "2"}
    makers = {"SelfAttention": SelfAttention, "TalkingHeads": TalkingHeads}
    told["mixers"] = compare(makers, [(2, 2), (4, 4)], 16, 2, 1, 1)
    (tmp_path / "bench.json").write_text(json.dumps(told))
    arguments = ["--out", str(tmp_path / "out"), "--bench", str(tmp_path / "bench.json"), "--only", "TalkingHeads"]
    monkeypatch.setattr("sys.argv", ["make_mechanisms.py", *arguments])
    pages.main()
    made = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert made.keys() == {"README.md", "TalkingHeads.md", "TalkingHeads.png", "TalkingHeads.mixing.png"}
    text = made["TalkingHeads.md"].read_text()
    for part in (
        "scores = proj_l(head_dim^-1/2",
        "mixer: mien.nn.TalkingHeads",
        "196 from the middle",
        "| 4×4 |",
        "Shazeer",
        "(TalkingHeads.mixing.png)",
    ):
        assert part in text
    assert "| [TalkingHeads](TalkingHeads.md) | Self-attention whose" in made["README.md"].read_text()
    with Image.open(made["TalkingHeads.png"]) as image:
        assert image.width > 500 and made["TalkingHeads.png"].stat().st_size < 60_000


def test_every_mechanism_has_its_page(pages):
    folder = Path(__file__).parents[1] / "docs" / "mechanisms"
    index = (folder / "README.md").read_text()
    for name in pages.mechanisms():
        assert (folder / f"{name}.md").exists() and f"[{name}]({name}.md)" in index, (
            f"run docs/make_mechanisms.py: {name}"
        )
