"""What trunks have in common."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Trunk(nn.Module):
    """Images (B, 3, S, S) -> maps, from low to high, of `levels`' channels and sides; S is `img_size`, or else 112.

    One that was built with fewer levels than it can have says in `beyond` how the names of all that it lacks begin.
    """

    levels: tuple[tuple[int, int], ...]
    beyond: tuple[str, ...] = ()

    def fit(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of a whole trunk, without those that nobody reads in one that ends early."""
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(self.beyond)}


def widen(tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a narrow network for one that is a whole number r of times as wide, whose answers are the same.

        channel c of the wide one is channel c mod C of the narrow one;   weights of r equal inputs are divided by r

    tensors: of convolutions, linear layers, norms. places: those of the wide network, by the same names; a tensor that
    has its shape already, or cannot be brought to it, stays. Channels that are equal have equal gradients too: dropout
    or noise must part them, of which there is a little in the weights here (a thousandth of their deviation).

    Paper: Chen et al., Net2Net, ICLR 2016 (Net2WiderNet).
    """
    draw, wide = torch.Generator().manual_seed(0), {}
    for name, tensor in tensors.items():
        place = places.get(name)
        wide[name] = tensor
        if place is None or place.shape == tensor.shape or place.ndim != tensor.ndim:
            continue
        times = [there // here for there, here in zip(place.shape, tensor.shape, strict=True)]
        if [n * here for n, here in zip(times, tensor.shape, strict=True)] != list(place.shape):
            continue  # `fill` says what does not fit
        inputs = times[1] if tensor.ndim > 1 else 1
        wide[name] = tensor.repeat(*times) / inputs
        if tensor.ndim > 1:
            noise = torch.randn(place.shape, generator=draw) * tensor.std(correction=0) / inputs
            wide[name] += 1e-3 * noise
    return wide
