"""A torch module that somebody has built already."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mien.errors import MienError, require

if TYPE_CHECKING:
    from torch import nn


class TorchEngine:
    """A torch module as an engine: given what the ONNX file is given, (B, 112, 112, 3) uint8, it returns the same.

    module: (B, …) tensor of the array's own dtype -> a tensor, or a tuple of them in the order of `outputs`; it is put
    into eval mode and moved to `device`: "cpu", "cuda", or "auto" for cuda where there is one. precision: "fp32", or
    "bf16" for torch's autocast; "auto" is fp32. What comes out is float32.

    Raises MienError for a device that is not here.
    """

    def __init__(
        self,
        module: "nn.Module",
        *,
        outputs: Sequence[str] = ("logits", "probs"),
        device: str = "auto",
        precision: str = "auto",
    ):
        torch = require("torch", "torch")
        if device == "cuda" and not torch.cuda.is_available():
            raise MienError("cuda: no GPU that this torch can use")
        self.device = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        self.outputs = tuple(outputs)
        self._module = module.eval().to(self.device)
        self.precision = "bf16" if precision == "bf16" else "fp32"

    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """x (B, …) -> every output by its name."""
        torch = require("torch", "torch")
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            values = self._module(torch.tensor(x, device=self.device))
        values = (values,) if isinstance(values, torch.Tensor) else values
        return {name: value.float().cpu().numpy() for name, value in zip(self.outputs, values, strict=True)}
