"""`mien eval-events`, and MSTA beside EOC-Bench's own numbers."""

import json
import math
from pathlib import Path

import pytest

from mien.evaluation.events import Noted, compare_events, first_number, msta, read_events

GOLDEN = json.loads((Path(__file__).parent / "golden" / "eoc_msta.json").read_text())


def test_msta_is_the_published_one():
    for case in GOLDEN["cases"]:
        assert msta(case["pred"], case["gt"], strict=True) == case["score"], case
    assert [first_number(case["text"]) for case in GOLDEN["parse"]] == [case["value"] for case in GOLDEN["parse"]]


def test_msta_without_the_edges_of_floats():
    """7.7 is ten per cent more than 7, and 1.01 one more than 1."""
    kept = {(case["gt"], case["pred"]): case["score"] for case in GOLDEN["cases"]}
    kept |= {(7, 7.7): 0.75, (1, 1.01): 1.0, (3, 3.3): 0.75, (0.5, 0.55): 0.75, (0.3, 0.33): 0.75}
    assert {(gt, pred): msta(pred, gt) for gt, pred in kept} == kept
    assert msta(math.nan, 3) == 0 and msta(1e-12, 0) == 0


def event(onset, offset, person="1", expression="fear", apex=math.nan, source=""):
    return Noted(source, person, expression, onset, apex, offset, math.nan)


def test_onsets_and_offsets_are_matched_one_to_one():
    true = [event(1, 2), event(1.2, 3), event(5, 6)]
    found = compare_events([event(1.1, 2.05), event(9, 10)], true, tolerances=(0.1, 0.5))
    assert found.f1["onset"] == {0.1: pytest.approx(2 / 5), 0.5: pytest.approx(2 / 5)}  # one of the two near 1.1
    both = compare_events([event(1.1, 2.05), event(1.3, 2.9)], true, tolerances=(0.1, 0.2))
    assert both.f1["onset"] == {0.1: pytest.approx(4 / 5), 0.2: pytest.approx(4 / 5)}
    assert compare_events(true, true).f1["offset"][0.1] == 1 and compare_events(true, true).msta["duration"] == 1
    assert compare_events([event(1, 2, expression="anger")], true).f1["onset"][1.0] == 0
    nothing = compare_events([], true)
    assert nothing.paired == 0 and nothing.msta["onset"] == 0 and nothing.f1["onset"][0.1] == 0
    assert math.isnan(nothing.msta["apex"]) and compare_events([], []).f1["onset"][0.1] == 0


def test_msta_is_of_events_that_overlap():
    true = [event(10, 20, apex=15), event(100, 101)]
    found = compare_events([event(11, 22, apex=15.1), event(10.5, 10.6), event(50, 60)], true)
    assert found.paired == 1
    assert found.msta == {"onset": 0.75 / 2, "apex": 1.0, "offset": 0.75 / 2, "duration": 0.75 / 2}
    assert list(found.within["onset"]) == [0, 0.5, 0.5, 0.5]
    edge = compare_events([event(7.7, 9)], [event(7, 9)]), compare_events([event(7.7, 9)], [event(7, 9)], strict=True)
    assert [each.msta["onset"] for each in edge] == [0.75, 0.5]


def test_numbers_of_people_need_not_agree():
    """Two tracks of one person are the one; a stranger is nobody, and other sources are other people."""
    true = [event(1, 2, "ann"), event(5, 6, "ann"), event(1, 2, "bob", "anger")]
    ours = [event(1, 2, "1"), event(5, 6, "7"), event(1, 2, "2", "anger"), event(8, 9, "3")]
    found = compare_events(ours, true)
    assert found.paired == 3 and found.f1["onset"][0.1] == pytest.approx(6 / 7)
    assert compare_events(ours, true, same_people=True).paired == 0
    elsewhere = [each._replace(source="b.mp4") for each in ours]
    assert compare_events(elsewhere, true).paired == 0


def write(path, *lines, head="person,expression,onset,apex,offset,peak"):
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def test_the_command(tmp_path, call):
    ours = write(tmp_path / "ours.csv", "1,fear,7.7,8,9.0,0.9")
    truth = write(tmp_path / "truth.csv", "ann,fear,7,9", head="person,expression,onset,offset")
    code, out, err = call("eval-events", ours, truth)
    assert (code, err) == (0, []) and out[0] == "1 predicted, 1 true events, 1 of them in pairs"
    assert out[3].split() == ["onset", "0.000", "0.000", "0.000", "1.000"]
    assert out[7].split() == ["onset", "0.750", "0.000", "1.000", "1.000", "1.000"]
    code, out, _ = call("eval-events", ours, truth, "--strict", "--json", "--tolerance", "2")
    told = json.loads("\n".join(out))
    assert told["msta"] == {"onset": 0.5, "apex": None, "offset": 1.0, "duration": 0.0}
    assert told["f1"]["offset"] == {"2": 1.0}


@pytest.mark.parametrize(
    "lines, reason",
    [
        (["1,fear,x,2,3,1"], "line 2: onset 'x' is no number"),
        (["1,fear,1,2,3,1", "1,fear,nan,2,3,1"], "line 3: onset nan is no time from 0 on"),
        (["1,fear,-1,2,3,1"], "line 2: onset -1 is no time from 0 on"),
        (["1,fear,5,5,3,1"], "line 2: ends at 3, before it begins at 5"),
        (["1,,1,2,3,1"], "line 2: no expression"),
        (["1,fear"], "line 2: onset '' is no number"),
    ],
)
def test_bad_files_have_a_line(tmp_path, call, lines, reason):
    bad, good = write(tmp_path / "bad.csv", *lines), write(tmp_path / "good.csv", "1,fear,1,2,3,1")
    for words in ((bad, good), (good, bad)):
        code, out, err = call("eval-events", *words)
        assert (code, out, err) == (1, [], [f"mien: {bad} {reason}"])


def test_other_bad_files(tmp_path, call):
    good, head = write(tmp_path / "good.csv", "1,fear,1,2,3,1"), write(tmp_path / "head.csv", head="person,onset")
    assert call("eval-events", good, tmp_path / "no.csv")[2] == [f"mien: {tmp_path}/no.csv: no such file or directory"]
    assert call("eval-events", head, good)[2] == [f"mien: {head}: no column 'expression', only person, onset"]
    (tmp_path / "noise.csv").write_bytes(bytes(range(256)))
    assert "no table" in call("eval-events", tmp_path / "noise.csv", good)[2][0]
    empty = write(tmp_path / "empty.csv")
    code, _, err = call("eval-events", good, empty)
    assert (code, err) == (1, [f"mien: {empty}: no event in it, so nothing can be met"])
    assert read_events(empty) == []
