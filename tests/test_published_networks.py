"""Whole networks of the literature: the list of them, and published weights of one size or another."""

import inspect

import pytest
import torch

import mien
import mien.networks
from mien.__main__ import main
from mien.catalogue import NETWORKS
from mien.networks import Network
from mien.networks.convert import KINDS, TIMM
from mien.networks.cost import macs

CHEAP = 3.0  # GMAC, above which parameters alone are counted


def builders() -> dict:
    public = {name: getattr(mien.networks, name) for name in mien.networks.__all__}
    made = {
        name: inspect.signature(make).return_annotation for name, make in public.items() if inspect.isfunction(make)
    }
    return {name: public[name] for name, kind in made.items() if inspect.isclass(kind) and issubclass(kind, Network)}


def test_every_network_is_listed_as_large_as_it_is():
    """On the meta device; the multiplications of those only that are counted in a moment."""
    assert NETWORKS.keys() == builders().keys()
    for name, make in builders().items():
        with torch.device("meta"):
            network, known = make(), NETWORKS[name]
            assert sum(p.numel() for p in network.parameters()) == known.parameters, name
            assert getattr(network, "img_size", 112) == known.size, name
            if known.gmac < CHEAP:
                images = torch.empty(1, 3, known.size, known.size)
                assert macs(network, images) / 1e9 == pytest.approx(known.gmac, abs=6e-4), name
        assert set(known.opens) <= KINDS.keys(), name
        assert ("timm" in known.opens) == (name in TIMM), name


def test_the_list(capsys):
    assert main(["list", "networks"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["name", "parameters", "GMAC", "input", "paper", "opens"]
    names = [line.split()[0] for line in lines]
    assert names == mien.list_networks() == sorted(NETWORKS)
    for part in PARTS:
        assert any(part in name for name in names), part
    for column in ("paper", "opens"):  # what stands in a column begins under its title
        at = title.index(column)
        assert all(line[at - 1] == " " and line[at] != " " for line in lines)
    assert main(["list", "networks", "*vit*"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == mien.list_networks("*vit*")
    assert mien.list_networks("*vit*") == [name for name in names if "vit" in name] != names
    assert main(["list", "networks", "q*"]) == 1
    assert capsys.readouterr().err == "mien: none of the networks is called 'q*'; mien list networks names them\n"


PARTS = ("btn", "poster", "apvit", "cait", "arbex")


def test_networks_side_by_side(capfd):
    assert main(["bench", "networks", "magnified", "cait_m48", "--batch", "1", "--rounds", "1"]) == 0
    text, err = capfd.readouterr()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert not err and [row[0] for row in rows] == ["| network", "| mobilefacenet", "| magnified", "| cait_m48"]
    assert rows[2][2].startswith("195,120 (0.21)") and rows[2][3].startswith("0.012 (0.05)")
    assert rows[3][1:] == ["224", *["–"] * 5, "– |"]  # its weights would take more than --memory allows
    for misuse, code, reason in (
        (["--dim", "8"], 2, "--dim: networks have their own"),
        (["gone"], 1, "there is no network gone; mien list networks names mien's"),
    ):
        try:
            assert main(["bench", "networks", *misuse]) == code
        except SystemExit as end:
            assert end.code == code
        assert reason in capfd.readouterr().err
