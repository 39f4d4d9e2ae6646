"""Parts of a network that its answers do not depend on."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mien.networks import Network
from mien.training.faces import FaceData
from mien.training.task import Task

FACES = 64
"""So many faces of validation are enough to see whether logits depend on a part."""

LEAST = 0.01
"""The share of the spread of logits from which a part is heard."""


@torch.no_grad()
def find_silent(task: Task, faces: FaceData) -> Iterator[str]:
    """A sentence for each part that the answers to the first FACES of validation hardly depend on.

    task: what has learned. faces: set up, with validation faces.

    Two kinds of parts are looked at: those whose logits are added up (`Network.logit_parts`) are silent where they
    hardly differ from face to face, and streams of the front (`Network.streams`) where another face's in their place
    hardly moves the logits. Spreads are standard deviations over the faces, the mean over the classes.
    """
    network, shown = task.network, faces.validation_faces
    added = type(network).logit_parts is not Network.logit_parts
    if len(shown) < 2 or not (added or network.streams):
        return
    items = [shown[i] for i in range(min(FACES, len(shown)))]
    batch = tuple(torch.stack([torch.as_tensor(item[k]) for item in items]).to(task.device) for k in range(3))
    task.eval()
    images = task.on_after_batch_transfer(batch, 0)[0]
    if added:
        yield from _added(network, images)
    if network.streams:
        maps = images if isinstance(images, tuple) else network.front(images)
        yield from _streamed(network, maps)


def _spread(logits: Tensor) -> float:
    return float(logits.std(0).mean())


def _added(network: Network, images: Tensor) -> Iterator[str]:
    spread = {name: _spread(each) for name, each in network.logit_parts(network.forward_features(images)).items()}
    for name, value in spread.items():
        most = max(spread, key=spread.__getitem__)
        if value < LEAST * spread[most]:
            yield (
                f"the logits of {name} differ from face to face by {value:.2g}, those of {most} by "
                f"{spread[most]:.2g}: {name} adds next to nothing"
            )


def _streamed(network: Network, maps: Sequence[Tensor]) -> Iterator[str]:
    logits = network(tuple(maps))
    for name, places in network.streams.items():
        others = tuple(each.roll(1, 0) if i in places else each for i, each in enumerate(maps))
        moved = _spread(network(others) - logits)
        if moved < LEAST * _spread(logits):
            yield (
                f"with another face's {name} logits move by {moved:.2g}, from face to face by {_spread(logits):.2g}: "
                f"{name} is hardly read"
            )
