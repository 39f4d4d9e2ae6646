"""What trunks have in common."""

from collections.abc import Mapping

from torch import Tensor, nn


class Trunk(nn.Module):
    """Images (B, 3, 112, 112) -> maps, from low to high, of the channels and sides in `levels`.

    One that was built with fewer levels than it can have says in `beyond` how the names of all that it lacks begin.
    """

    levels: tuple[tuple[int, int], ...]
    beyond: tuple[str, ...] = ()

    def fit(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of a whole trunk, without those that nobody reads in one that ends early."""
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(self.beyond)}
