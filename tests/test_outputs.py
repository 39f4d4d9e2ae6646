"""Outputs as data: what is refused, how values are read, what they cost, and how they get through a network."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.checkpoint import check_header, labels_of, outputs_of, tensor_names, with_outputs
from mien.errors import CheckpointError
from mien.faces import Face
from mien.faces.columns import answer_entry, entries
from mien.faces.record import flat, record
from mien.labels import EXPRESSIONS
from mien.losses import output_loss
from mien.networks import activate, deploy, load_network, mobilefacenet, save_network
from mien.networks.branched import acmil_mobile
from mien.outputs import VALENCE_AROUSAL, Output, expression_output

EXPRESSION = Output("expression", "classes", ("calm", "glad", "cross"))
UNITS = Output("action_units", "binary", ("AU1", "AU12"))
VALENCE = Output("valence", "range", ("valence",))
POSE = Output("pose", "angles", ("yaw", "pitch", "roll"))
EYES = Output("eyes", "points", ("left", "right"))
ALL = (EXPRESSION, UNITS, VALENCE, POSE, EYES)

PREPROCESS = {
    "align": "none",
    "resize": [{"size": 112}],
    "input_size": 112,
    "color": "rgb",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


def header(outputs=ALL) -> dict:
    model = {"class_path": "mien.networks.mobilefacenet", "init_args": {"num_classes": len(outputs[0].labels)}}
    return with_outputs({"model": model, "preprocess": PREPROCESS}, outputs)


@pytest.mark.parametrize(
    "wrong, reason",
    [
        ({"kind": "mood"}, "unknown kind 'mood'"),
        ({"name": "face"}, "'face'"),
        ({"name": "Nasty name"}, "Nasty name"),
        ({"labels": []}, "label without a name"),
        ({"labels": ["AU1", "AU1"]}, "one label twice"),
        ({"labels": "AU1"}, "no list"),
        ({"low": 2}, "range from 2"),
        ({"weight": math.nan}, "weight that is not a number"),
        ({"temperature": 0}, "not above 0"),
        ({"colour": "red"}, "nothing beside"),
    ],
)
def test_what_is_no_output_is_refused_in_one_line(wrong, reason):
    good = header()
    good["outputs"][1] |= wrong
    with pytest.raises(CheckpointError, match=reason) as error:
        check_header(good, "model.onnx")
    assert str(error.value).startswith("model.onnx: its header") and "\n" not in str(error.value)


def test_two_of_one_name_and_none_at_all():
    with pytest.raises(CheckpointError, match="called action_units"):
        check_header(header((EXPRESSION, UNITS, UNITS)), "model.onnx")
    with pytest.raises(CheckpointError, match="without outputs"):
        check_header(header() | {"outputs": []}, "model.onnx")
    with pytest.raises(CheckpointError, match='the first output is not "expression", of classes'):
        check_header(header((UNITS, EXPRESSION)), "model.onnx")


def test_a_header_of_an_unknown_version():
    with pytest.raises(CheckpointError, match="of version 3, and this mien reads versions 1 and 2"):
        check_header(header() | {"mien": 3}, "model.onnx")


def test_a_header_of_version_1_says_its_first_output_apart():
    old = {"mien": 1, "id2label": {"0": "no", "1": "yes"}, "temperature": 2.0, "preprocess": PREPROCESS}
    old["model"] = header()["model"]
    check_header(old, "old.onnx")
    [output] = outputs_of(old)
    assert (output.name, output.kind, output.labels, output.temperature) == ("expression", "classes", ("no", "yes"), 2)
    assert tensor_names(old) == ("logits", "probs")
    assert labels_of(with_outputs(old, [output])) == ("no", "yes")
    check_header(with_outputs(old, [output]), "new.onnx")
    more = old | {"outputs": [ALL[1].to_json()]}
    check_header(more, "old.onnx")
    assert outputs_of(more) == (output, ALL[1]) and tensor_names(more) == ("logits", "probs", ALL[1].name)
    assert outputs_of(with_outputs(more, outputs_of(more))) == outputs_of(more)
    with pytest.raises(CheckpointError, match="two outputs are called expression"):
        check_header(old | {"outputs": [output.to_json()]}, "old.onnx")


def test_headers_keep_every_output():
    assert outputs_of(header()) == ALL


def face() -> Face:
    """One with an answer to everything."""
    values = {o.name: np.linspace(0.1, 0.9, o.width, dtype=np.float32).reshape(o.shape) for o in ALL}
    outputs = {output.name: output.decode(values[output.name]) for output in ALL}
    return Face((1, 2, 3, 4), 0.9, np.zeros((5, 2), np.float32), "cross", 0.9, outputs["expression"], outputs=outputs)


@pytest.mark.parametrize("moving", [False, True])
def test_cells_stand_under_their_columns(moving):
    table = entries(ALL, moving)
    row = record("a.jpg", 0, face()) | {"note": "seen", "time": 0.5, "frame": 1, "width": 9, "height": 8, "track": 2}
    row["unsmoothed"] = {"calm": 0.2}
    for entry in table:
        cells = entry.cells(row[entry.name])
        assert len(cells) == len(entry.columns) == len(entry.cells(None)) and all(c.description for c in entry.columns)
        kinds = {"text": str, "integer": int, "number": (int, float, type(None))}
        pairs = zip(cells, entry.columns, strict=True)
        assert all(isinstance(cell, kinds[column.type]) for cell, column in pairs), entry.name
    names = [column.name for entry in table for column in entry.columns]
    assert len(set(names)) == len(names)
    assert ("unsmoothed_glad" in names) == ("time" in names) == moving


def test_a_row_without_lists_has_the_names_of_the_columns():
    flattened = flat(record("a.jpg", 0, face(), "seen"))
    assert list(flattened) == [column.name for entry in entries(ALL) for column in entry.columns]


def test_names_of_columns():
    names = [column.name for entry in entries(ALL) for column in entry.columns]
    assert names[names.index("rotation") + 1 :] == [
        *("expression", "probability", "p_calm", "p_glad", "p_cross"),
        *("action_units_AU1", "action_units_AU12"),
        "valence",
        *("pose_yaw", "pose_pitch", "pose_roll"),
        *("eyes_left_x", "eyes_left_y", "eyes_right_x", "eyes_right_y"),
        "note",
    ]
    assert [c.name for c in answer_entry(Output("mood", "classes", ("a", "b"))).columns] == ["mood_a", "mood_b"]


def test_what_a_person_reads():
    assert VALENCE.decode(np.float32([0.5])) == 0.5
    assert POSE.decode(np.float32([1, 2, 3])) == {"yaw": 1, "pitch": 2, "roll": 3}
    assert EYES.decode(np.float32([[0, 1], [0.5, 0.25]])) == {"left": (0, 1), "right": (0.5, 0.25)}


@pytest.mark.parametrize(
    "output, values, reason",
    [
        (EXPRESSION, [[0.5, 0.5, math.nan]], "not a number"),
        (EXPRESSION, [[0.5, 0.5, 0.5]], "sum to 1"),
        (UNITS, [[0.5, 1.5]], "outside of 0 to 1"),
        (VALENCE, [[-2]], "outside of -1 to 1"),
        (POSE, [[0, 0, 200]], "outside of -180 to 180"),
        (POSE, [[0, 0]], "of 2 values for 3 labels"),
        (EYES, [[[math.inf, 0], [0, 0]]], "not a number"),
    ],
)
def test_answers_that_cannot_be_are_refused(output, values, reason):
    with pytest.raises(ValueError, match=reason):
        output.check(np.float32(values))


# losses


def known_halves(output: Output, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of a head, and targets of which a part is not known."""
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(count, output.width, generator=draw, dtype=torch.float64)
    if output.kind == "classes":
        target = torch.rand(count, output.width, generator=draw, dtype=torch.float64).softmax(1)
        target[::3] = math.nan
        return values, target
    target = torch.rand(count, *output.shape, generator=draw, dtype=torch.float64)
    target = (target > 0.5).double() if output.kind == "binary" else target
    target = target * 360 - 180 if output.kind == "angles" else target
    target.view(-1)[::5] = math.nan
    return values, target


@pytest.mark.parametrize("output", ALL, ids=lambda output: output.kind)
def test_what_is_not_known_costs_nothing(output):
    values, target = known_halves(output)
    values.requires_grad_()
    loss = output_loss(output, values, target)
    loss.backward()
    known = target.isfinite().reshape(len(target), -1)
    assert loss.isfinite() and values.grad[known].abs().min() > 0
    assert not values.grad[~known].any()
    nothing = output_loss(output, values, torch.full_like(target, math.nan))
    nothing.backward()
    assert nothing == 0 and values.grad.isfinite().all()


@pytest.mark.parametrize("output", ALL, ids=lambda output: output.kind)
def test_loss_of_two_processes_is_that_of_one(output):
    """Their gradients, averaged as training averages them, are those of all the faces together."""
    values, target = known_halves(output)
    whole = values.clone().requires_grad_()
    wanted = output_loss(output, whole, target)
    wanted.backward()
    parts = [values[:5].clone().requires_grad_(), values[5:].clone().requires_grad_()]
    targets = [target[:5], target[5:]]
    loss = in_step(output, parts, targets)
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    torch.testing.assert_close(torch.cat([part.grad for part in parts]), whole.grad)


def in_step(output: Output, parts: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
    """The loss of the first of two processes, whose k-th exchange meets the k-th of the other.

    What one gives depends on what both gave before, so they are run over and over until all is known.
    """
    given: list[list[torch.Tensor]] = [[], []]

    def run(rank: int) -> torch.Tensor:
        count = 0

        def exchange(value: torch.Tensor) -> torch.Tensor:
            nonlocal count
            given[rank][count : count + 1] = [value]
            count += 1
            others = given[1 - rank]
            return (value + (others[count - 1] if count <= len(others) else value)) / 2

        return output_loss(output, parts[rank], targets[rank], over_processes=exchange)

    for _ in range(6):
        losses = run(0), run(1)
    return losses[0]


def test_the_concordance_is_lin_s():
    draw = np.random.default_rng(0)
    truth, raw = draw.uniform(-1, 1, 40), draw.normal(size=40)
    given = 2 / (1 + np.exp(-raw)) - 1
    ccc = 2 * np.cov(given, truth, bias=True)[0, 1] / (given.var() + truth.var() + (given.mean() - truth.mean()) ** 2)
    wanted = ((given - truth) ** 2).mean() + 1 - ccc
    loss = output_loss(VALENCE, torch.tensor(raw)[:, None], torch.tensor(truth)[:, None])
    assert loss.item() == pytest.approx(wanted, abs=1e-9)


def test_angles_are_the_same_a_turn_later():
    target = torch.tensor([[179.0, -90.0, 10.0]])
    near = output_loss(POSE, torch.deg2rad(torch.tensor([[-179.0, 270.0, 370.0]])), target)
    assert near.item() == pytest.approx(0.5 * math.radians(2) ** 2 / 3, rel=1e-3)


def test_ones_can_weigh_more():
    values, target = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    loss = output_loss(UNITS, values, target, balance=torch.tensor([3.0, 1.0]))
    assert loss.item() == pytest.approx(2 * math.log(2))


# networks


def test_heads_begin_at_nothing_and_leave_the_first_answer_alone(tmp_path):
    torch.manual_seed(0)
    network = mobilefacenet(num_classes=3).eval()
    images = torch.rand(2, 3, 112, 112)
    before = network(images)
    network.add_heads(ALL[1:])
    answers = network.answers(images)
    assert torch.equal(answers["logits"], before) and torch.equal(network(images), before)
    widths = {"logits": 3, "action_units": 2, "valence": 1, "pose": 3, "eyes": 4}
    assert {name: tuple(value.shape) for name, value in answers.items()} == {n: (2, w) for n, w in widths.items()}
    assert not answers["pose"].any()


def test_a_checkpoint_keeps_its_heads(tmp_path):
    torch.manual_seed(0)
    network = mobilefacenet(num_classes=3).eval()
    network.add_heads(ALL[1:])
    for head in network.heads.values():
        torch.nn.init.normal_(head.weight)
    save_network(tmp_path / "model.safetensors", network, header())
    again = load_network(tmp_path / "model.safetensors")
    faces = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8)
    wanted, got = deploy(network, header())(faces), deploy(again, header())(faces)
    assert tensor_names(header()) == ("logits", "expression", "action_units", "valence", "pose", "eyes")
    for one, other, output in zip(wanted[1:], got[1:], ALL, strict=True):
        assert torch.equal(one, other)
        output.check(one.detach().numpy())


def test_a_network_that_lacks_a_head():
    with pytest.raises(CheckpointError, match="no head for action_units, valence"):
        deploy(mobilefacenet(num_classes=3), header((EXPRESSION, UNITS, VALENCE)))
    with pytest.raises(ValueError, match="ACMILClassifier has no one vector"):
        acmil_mobile(num_classes=3).add_heads([UNITS])


@pytest.mark.parametrize("output", ALL, ids=lambda output: output.kind)
def test_any_values_become_answers(output):
    values = 20 * torch.randn(50, output.width, generator=torch.Generator().manual_seed(0))
    values = values / 20 if output.kind == "points" else values
    answers = activate(output, values).numpy()
    if output.kind != "points":
        output.check(answers)
    assert answers.shape == (50, *output.shape)


def test_the_page_about_outputs_prints_the_table():
    page = (Path(__file__).parents[1] / "docs/outputs.md").read_text()
    outputs = (expression_output(EXPRESSIONS), UNITS, *VALENCE_AROUSAL)
    for entry in entries(outputs, moving=True):
        assert f"| `{entry.name}` | `{entry.columns[0].name}`" in page and f"| {entry.description} |" in page
        assert f"`{entry.columns[-1].name}` | {entry.description} |" in page
