"""Pictures of what a network looked at, and what its answer rests on."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mien.explain.attention import Attention
    from mien.explain.batch import Batch
    from mien.explain.explanation import Explanation
    from mien.explain.gradients import GradCAM, IntegratedGradients
    from mien.explain.occlusion import Occlusion
    from mien.explain.opening import open_network
    from mien.explain.panel import Panel, sheet
    from mien.explain.patches import Patches
    from mien.explain.rollout import Rollout

__all__ = [
    "Rollout",
    "Batch",
    "Attention",
    "Explanation",
    "GradCAM",
    "IntegratedGradients",
    "Occlusion",
    "Panel",
    "Patches",
    "open_network",
    "sheet",
]

# Where each name lives: imported when first used, since most of them need torch and occlusion does not.
_HOMES = {
    "Rollout": "rollout",
    "Batch": "batch",
    "Attention": "attention",
    "Explanation": "explanation",
    "GradCAM": "gradients",
    "IntegratedGradients": "gradients",
    "Occlusion": "occlusion",
    "Panel": "panel",
    "Patches": "patches",
    "open_network": "opening",
    "sheet": "panel",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
