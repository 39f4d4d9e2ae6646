"""How much work a graph asks for, known from the shapes of its tensors before it is compiled."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mien.errors import CheckpointError

STEPS = 2 * 10**11
"""Multiplications for one face, each number read or written counted as one: POSTER++ has 8.4·10⁹, IR-50 6.3·10⁹."""

NUMBERS = 10**9
"""Numbers in all tensors of a graph together: the default model has 2.6·10⁷."""

_UNKNOWN = 10**40  # a side of any length

_SIDES = (
    1024,
    640,
    512,
    448,
    384,
    320,
    300,
    299,
    288,
    260,
    256,
    240,
    224,
    192,
    160,
    128,
    112,
    96,
    64,
    48,
    32,
    16,
    8,
    1,
)
"""What stands for a side of the input that varies: the first of these that the graph takes."""

_LINEAR = frozenset(
    "Abs Add BatchNormInference Broadcast Ceiling Clamp Concat Constant Convert Divide Elu Equal Erf Exp FakeQuantize "
    "Floor Gather GatherElements GatherND Gelu Greater GreaterEqual HSigmoid HSwish HardSigmoid If Interpolate Less "
    "LessEqual Log LogSoftmax LogicalAnd LogicalNot LogicalOr MVN Maximum Minimum Mish Mod Multiply Negative NonZero "
    "NormalizeL2 NotEqual PRelu Pad Parameter Power Range ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum Relu Reshape Result Round Select Selu ShapeOf Sigmoid Sign Slice Softmax SoftPlus SoftSign Split Sqrt "
    "SquaredDifference Squeeze StridedSlice Subtract Swish Tan Tanh Tile Transpose Unsqueeze VariadicSplit".split()
)
"""Operations of which each number costs about the same. Others that are not known may cost as much as a sort by
insertion."""


def check_work(path: Path, model: Any) -> None:
    """Raise CheckpointError for a graph that one face would keep busy for too long, or that takes too much memory.

    path: as errors call the model. model: of OpenVINO, as read; it stays as it is. Where the first side of an input
    varies, it is taken as 1, and other sides as in `_SIDES`.
    """
    steps = numbers = 0
    for operation in _operations(_for_one_face(path, model)):
        shapes = list(map(_sizes, operation.outputs()))
        made = sum(map(math.prod, shapes))
        if made >= _UNKNOWN:
            raise CheckpointError(f"{path}: how large its tensors become cannot be known before it runs")
        numbers += made
        steps += made if operation.get_type_name() == "Constant" else _steps(operation, shapes)
        if numbers > NUMBERS or steps > STEPS:
            what = f"{NUMBERS:,} numbers" if numbers > NUMBERS else f"{STEPS:,} multiplications"
            raise CheckpointError(f"{path}: its graph asks for more than {what} for one face")


def _for_one_face(path: Path, model: Any) -> Any:
    shapes = [port.get_partial_shape() for port in model.inputs]
    if not any(shape.is_dynamic for shape in shapes):
        return model
    if any(shape.rank.is_dynamic for shape in shapes):
        raise CheckpointError(f"{path}: its input may have any number of dimensions")
    varies = any(size.is_dynamic for shape in shapes for size in list(shape)[1:])
    failed: Exception | None = None
    for side in _SIDES if varies else _SIDES[-1:]:
        one = model.clone()
        try:
            one.reshape({port: _fixed(shape, side) for port, shape in zip(one.inputs, shapes, strict=True)})
            return one
        except RuntimeError as error:
            failed = error
    raise CheckpointError(f"{path}: fits no size of face ({str(failed).strip().splitlines()[-1]})")


def _fixed(shape: Any, side: int) -> list[int]:
    return [(side if i else 1) if size.is_dynamic else size.get_length() for i, size in enumerate(shape)]


def _operations(model: Any) -> Iterator[Any]:
    for operation in model.get_ordered_ops():
        yield operation
        if operation.get_type_name() == "If":
            yield from _operations(operation.get_function(0))
            yield from _operations(operation.get_function(1))


def _steps(operation: Any, outputs: Sequence[tuple[int, ...]]) -> int:
    """Multiplications, and numbers read and written."""
    kind, inputs = operation.get_type_name(), list(map(_sizes, operation.inputs()))
    read, made = sum(map(math.prod, inputs)), sum(map(math.prod, outputs))
    match kind:
        case "MatMul":
            across = len(inputs[0]) > 1 and operation.get_attributes()["transpose_a"]
            times = made * inputs[0][-2 if across else -1]
        case "Convolution" | "BinaryConvolution" | "DeformableConvolution" | "GroupConvolution":
            weights = inputs[2 if kind.startswith("Deformable") else 1]
            times = made * math.prod(weights[2 if kind.startswith("Group") else 1 :])
        case "ConvolutionBackpropData" | "GroupConvolutionBackpropData":
            times = math.prod(inputs[0]) * math.prod(inputs[1][2 if kind.startswith("Group") else 1 :])
        case "AvgPool" | "MaxPool":
            times = made * math.prod(operation.get_attributes()["kernel"])
        case "ScaledDotProductAttention":
            times = (math.prod(inputs[0]) + made) * inputs[1][-2]
        case "Einsum":
            times = _einsum(operation.get_attributes()["equation"], inputs)
        case _ if kind.endswith(("Sequence", "Cell")):
            times = math.prod(inputs[0][:-1]) * (read - math.prod(inputs[0]))
        case _ if kind in _LINEAR:
            times = 0
        case _:
            longest = min(max((1, *sum(shapes, ()))) for shapes in (inputs, outputs))
            samples = operation.get_attributes().get("sampling_ratio", 1)
            times = (read + made) * longest * max(1, samples) ** 2
    return read + made + times


def _einsum(equation: str, shapes: list[tuple[int, ...]]) -> int:
    sides: dict[str | int, int] = {}
    for term, sizes in zip(equation.replace(" ", "").split("->")[0].split(","), shapes, strict=True):
        head, _, tail = term.partition("...")
        between = range(len(head) + len(tail) - len(sizes), 0)  # counted from the last
        for letter, size in zip((*head, *between, *tail), sizes, strict=True):
            sides[letter] = max(size, sides.get(letter, 1))
    return math.prod(sides.values())


def _sizes(port: Any) -> tuple[int, ...]:
    """The sides, the largest that each may be."""
    shape = port.get_partial_shape()
    if not shape.is_dynamic:
        return tuple(shape.to_shape())
    if shape.rank.is_dynamic:
        return (_UNKNOWN,)
    return tuple(_UNKNOWN if (most := size.get_max_length()) < 0 else most for size in shape)
