"""Sharpness-aware minimisation around any optimizer."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer


class SAM(Optimizer):
    """Steps with the gradient found at the worst point nearby: `step(closure)`, two forward and backward passes.

        e = rho · g / (‖g‖₂ + 1e-12)          g over all parameters that have a gradient
        w ← base's step from w, with the gradient at w + e

    `adaptive`: `e = rho · w² · g / (‖|w| · g‖₂ + 1e-12)`. The closure clears the gradients, computes them and returns
    the loss; the loss at w is returned. State and groups are those of `base`: saving and resuming need nothing more.

    Paper: Foret et al., Sharpness-Aware Minimization, 2021; adaptive: Kwon et al., ASAM, 2021.
    """

    def __init__(self, base: Optimizer, rho: float = 0.05, adaptive: bool = False):
        if rho <= 0:
            raise ValueError(f"rho must be above 0, not {rho}")
        super().__init__(base.param_groups, base.defaults)
        self.base, self.rho, self.adaptive = base, rho, adaptive
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def load_state_dict(self, state_dict: dict) -> None:
        self.base.load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        with torch.enable_grad():
            loss = closure()
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        grads = [p.abs() * p.grad if self.adaptive else p.grad for p in params]
        if not grads:
            return loss
        scale = self.rho / (torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])) + 1e-12)
        before = [p.clone() for p in params]
        for p in params:
            p.add_(p.grad * (p.square() if self.adaptive else 1) * scale)
        with torch.enable_grad():
            closure()
        for p, w in zip(params, before, strict=True):
            p.copy_(w)
        self.base.step()
        return loss
