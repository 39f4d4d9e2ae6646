"""Pictures of what a network looked at."""

from mien.explain.attention import Attention
from mien.explain.opening import open_network
from mien.explain.panel import Panel, sheet
from mien.explain.patches import Patches

__all__ = ["Attention", "Panel", "Patches", "open_network", "sheet"]
