"""Every method by its name, as a function that draws a face crop."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from mien.checkpoint import labels_of
from mien.classifier import DEFAULT_MODEL, EXPLAINED_MODEL, Classifier
from mien.errors import MienError, require
from mien.explain.explanation import answered, draw
from mien.explain.occlusion import Occlusion
from mien.explain.panel import Panel

METHODS = {
    "occlusion": "what hiding a part of the face takes from the answer (default)",
    "gradcam": "where a layer's maps speak for the answer",
    "gradients": "integrated gradients: what every pixel adds to the answer",
    "rollout": "attention through all blocks",
    "attention": "what the class token attends to",
    "patches": "the patches and tokens that attentive pooling keeps",
    "batch": "who vouched: what each face attends to among all the others, as in training",
}
"""By name, in a few words."""

DRAW = Callable[[np.ndarray], Sequence[Sequence[Panel]]]


def default_model(method: str) -> str:
    """The model that is explained where none is named: the one that people use, if it has what the method looks at."""
    return EXPLAINED_MODEL if method in ("patches", "attention") else DEFAULT_MODEL


def open_method(
    method: str, model: str | None = None, *, trust: bool = False, answer: str | None = None, **options: Any
) -> tuple[Any, Mapping[str, Any], str]:
    """What draws a face crop, as rows of panels (of "batch" the `Batch` itself); the model's header; what it is called.

    method: one of METHODS. model, trust: as for `Classifier.from_pretrained`, `default_model` by default. answer: the
    label that is explained, by default the likeliest; of occlusion and the two of gradients. options: the method's own.
    Occlusion needs no torch, and takes every model. Raises MienError for a model without what the method
    looks at; where none was named, or it has none at all, the error lists those that come with mien and have some.
    """
    name = model or default_model(method)
    if method == "occlusion":
        classifier = Classifier.from_pretrained(name, precision="fp32", trust=trust)
        occlusion = Occlusion(classifier.run, classifier.labels, **options)
        answered(np.zeros(len(classifier.labels)), classifier.labels, answer)
        return lambda crop: [draw(crop, occlusion.explain(crop, answer))], classifier.header, name
    for module in ("torch", "safetensors"):
        require(module, "torch")
    from mien.explain.opening import open_network, shipped_with

    deployed, header = open_network(name, trust=trust)
    answered(np.zeros(len(labels_of(header))), labels_of(header), answer)
    try:
        explain = _make(method, deployed, labels_of(header), options, answer)
        _try(method, explain, deployed)
    except MienError as error:
        if options or answer is not None:
            raise
        others = shipped_with(lambda other: _able(method, other))
        raise MienError(f"{error}; of the models that come with mien, {', '.join(others) or 'none'} can be") from None
    return explain, header, f"{name} ({type(deployed.network).__name__})"


def _make(
    method: str, deployed: Any, labels: Sequence[str], options: Mapping[str, Any], answer: str | None = None
) -> Any:
    from mien.explain.attention import Attention
    from mien.explain.batch import Batch
    from mien.explain.gradients import GradCAM, IntegratedGradients
    from mien.explain.patches import Patches
    from mien.explain.rollout import Rollout

    match method:
        case "patches":
            return Patches(deployed, labels, **options)
        case "attention":
            return Attention(deployed, labels, **options)
        case "batch":
            return Batch(deployed, labels)
    maps: Any = {"gradcam": GradCAM, "gradients": IntegratedGradients, "rollout": Rollout}[method]
    explain = maps(deployed, labels, **options)
    return lambda crop: [draw(crop, explain.explain(crop, answer))]


def _try(method: str, explain: Any, deployed: Any) -> None:
    """Draw a face without features, so that a network that cannot be drawn is known before any face is."""
    if method not in ("batch", "gradients"):  # the one looks at once, the other at every network
        size = getattr(deployed.network, "img_size", 112)
        explain(np.full((size, size, 3), 128, np.uint8))


def _able(method: str, deployed: Any) -> bool:
    with suppress(MienError):
        _try(method, _make(method, deployed, [""] * 1000, {}), deployed)
        return True
    return False
