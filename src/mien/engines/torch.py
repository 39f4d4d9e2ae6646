"""A torch module that somebody has built already."""

import copy
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mien.errors import MienError, require

if TYPE_CHECKING:
    from torch import nn


class TorchEngine:
    """A torch module as an engine: given what the ONNX file is given, (B, 112, 112, 3) uint8, it returns the same.

    module: (B, …) tensor of the array's own dtype -> a tensor, or a tuple of them in the order of `outputs`; it is put
        into eval mode and moved to the device.
    outputs: the names of what the module gives; ("logits", "probs").
    device: "cpu", "cuda", or "auto" for cuda where there is one; auto.
    precision: "fp32" or "auto", which are the same, or "bf16" for torch's autocast; auto. What comes out is float32.
    reopen: makes the same engine in another process, where the module cannot be pickled; None: it is pickled.

    Threads may share it, and on the CPU it may be carried over a fork, where it computes on one thread.

    Raises MienError for a device that is not here, and for a GPU carried over a fork.
    """

    def __init__(
        self,
        module: "nn.Module",
        *,
        outputs: Sequence[str] = ("logits", "probs"),
        device: str = "auto",
        precision: str = "auto",
        reopen: "Callable[[], TorchEngine] | None" = None,
    ):
        torch = require("torch", "torch")
        if device == "cuda" and not torch.cuda.is_available():
            raise MienError("cuda: no GPU that this torch can use")
        self.device = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        self.outputs = tuple(outputs)
        self.module = module.eval().to(self.device)
        self.precision = "bf16" if precision == "bf16" else "fp32"
        self._asked, self._reopen, self._process = device, reopen, os.getpid()

    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """x (B, …) -> every output by its name."""
        torch = require("torch", "torch")
        if self._process != os.getpid():
            if self.device.type == "cuda":
                raise MienError("cuda: a GPU cannot be carried over a fork: open the model there, or start with spawn")
            torch.set_num_threads(1)  # those of the parent are not here, and would be waited for
            self._process = os.getpid()
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            values = self.module(torch.tensor(x, device=self.device))
        values = (values,) if isinstance(values, torch.Tensor) else values
        return {name: value.float().cpu().numpy() for name, value in zip(self.outputs, values, strict=True)}

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is not None:
            return self._reopen, ()
        module = self.module if self.device.type == "cpu" else copy.deepcopy(self.module).cpu()
        options = {"outputs": self.outputs, "device": self._asked, "precision": self.precision}
        return partial(TorchEngine, **options), (module,)
