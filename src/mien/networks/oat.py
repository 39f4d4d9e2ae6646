"""OAT: which objects of a scene a person who searches looks at, one after another."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mien.nn.distance_position import distance_codes, joined_codes, sinusoid_codes
from mien.nn.object_attention import ObjectAttention


class CropCNN(nn.Module):
    """Crops (…, 3, S, S), S from 8 up, -> features (…, dim): three strided convolutions, each with batch norm, and
    their mean. Ours: the published network has a ResNet's."""

    def __init__(self, dim: int):
        super().__init__()
        widths = (3, 16, 32, dim)
        layers: list[nn.Module] = []
        for c_in, c_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(c_in, c_out, 3, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward(self, crops: Tensor) -> Tensor:
        return self.layers(crops.flatten(0, -4)).mean((2, 3)).unflatten(0, crops.shape[:-3])


class OAT(nn.Module):
    """Objects and a target -> at each step a logit for each object, and for the end: (B, T + 1, N + 1).

        objects  = [features(crops) ; code(row, column, flag)]    (B, N + 1, dim); the target is the last, of flag 1
        memory   = encoder(objects)                               post-norm layers of torch's
        steps    = decoder([start, objects[path]] + sinusoid(t), memory), causal
        logits   = pointer(steps, memory)                         `ObjectAttention`; the target's own place is the end

    Half of an object's width are its features, half its code, those of its row, column and flag, cut to fit. They are
    in closed form here, with the likeness that the published ones are fitted to (`mien.nn.distance_position`).
    *Inferred*: that choosing the target's token ends a path, the learned token of step 0, the target's place (0, 0).

    Args:
        grid: (rows, columns) of places; 8 by 8 at least 2.
        features: makes of a width what gives crops (…, 3, S, S) features of that width; `CropCNN`. An identity takes
            features that are given as crops.
        dim, num_heads, ffn: int; 512, 4 and 512 as published.
        depth: (int, int), layers of encoder and decoder; (4, 4).
        steps: int, the longest path; 32.
        dropout: float in [0, 1); 0.1, torch's own.

    Paper: OAT, ECCV 2024. Reference: HKUST-NISL/oat_eccv24, 0c48c3e.
    """

    def __init__(
        self,
        *,
        grid: tuple[int, int] = (8, 8),
        features: type[nn.Module] | None = None,
        dim: int = 512,
        num_heads: int = 4,
        ffn: int = 512,
        depth: Sequence[int] = (4, 4),
        steps: int = 32,
        dropout: float = 0.1,
    ):
        super().__init__()
        if min(grid) < 2:
            raise ValueError(f"a grid of {grid[0]}×{grid[1]} is too small for codes of places: 2×2 is the least")
        self.grid, self.steps = (grid[0], grid[1]), steps
        self.features = (features or CropCNN)(dim // 2)
        each = -(-dim // 6)  # of each of three axes, so that they fill half of the width
        for i, count in enumerate((*grid, 2)):
            self.register_buffer(f"codes{i}", distance_codes((count,), each))
        self.register_buffer("time", sinusoid_codes((steps + 1,), dim) * (dim / 2) ** 0.5)
        self.start = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        options = {"dim_feedforward": ffn, "dropout": dropout, "batch_first": True}
        layers = (
            nn.TransformerEncoderLayer(dim, num_heads, **options),
            nn.TransformerDecoderLayer(dim, num_heads, **options),
        )
        self.encoder = nn.TransformerEncoder(layers[0], depth[0], enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(layers[1], depth[1])
        self.pointer = ObjectAttention(dim, 2)

    def embed(self, crops: Tensor, places: Tensor, target: Tensor) -> Tensor:
        """Crops (B, N, …), places (B, N, 2) of row and column, target (B, …) -> (B, N + 1, dim), the target last."""
        features = self.features(torch.cat([crops, target[:, None]], 1))
        if not bool(((places >= 0) & (places < torch.tensor(self.grid, device=places.device))).all()):
            raise ValueError(f"an object lies outside of the grid of {self.grid[0]}×{self.grid[1]}")
        index = nn.functional.pad(places, (0, 1, 0, 1))  # flag 0, and the target behind
        index[:, -1, 2] = 1
        tables = [self.get_buffer(f"codes{i}") for i in range(3)]
        return torch.cat([features, joined_codes(tables, index, features.shape[-1])], -1)

    def forward(
        self, crops: Tensor, places: Tensor, target: Tensor, path: Tensor, absent: Tensor | None = None
    ) -> Tensor:
        """Logits for every step of a path that is known, and for the one behind it.

        crops: (B, N, 3, S, S). places: (B, N, 2), whole. target: (B, 3, S, S), what is looked for. path: (B, T) numbers
        of objects, T up to `steps`; what follows a path's end is ignored. absent: (B, N), True where a scene has fewer.
        """
        objects = self.embed(crops, places, target)
        if absent is not None:
            absent = nn.functional.pad(absent, (0, 1))
        memory = self.encoder(objects, src_key_padding_mask=absent)
        return self.look(objects, memory, path, absent)

    def look(self, objects: Tensor, memory: Tensor, path: Tensor, absent: Tensor | None) -> Tensor:
        """The logits (B, T + 1, N + 1) of a path (B, T) over objects that were encoded; absent ones have -inf."""
        if path.shape[1] > self.steps:
            raise ValueError(f"a path of {path.shape[1]} steps; there are {self.steps} at most")
        seen = objects.gather(1, path[..., None].expand(-1, -1, objects.shape[-1]))
        steps = (
            torch.cat([self.start.expand(len(path), -1, -1), seen], 1) + self.get_buffer("time")[: path.shape[1] + 1]
        )
        causal = torch.ones(steps.shape[1], steps.shape[1], dtype=torch.bool, device=steps.device).triu(1)
        found = self.decoder(steps, memory, tgt_mask=causal, memory_key_padding_mask=absent)
        logits = self.pointer(found, memory)
        return logits if absent is None else logits.masked_fill(absent[:, None], float("-inf"))

    @torch.no_grad()
    def search(
        self,
        crops: Tensor,
        places: Tensor,
        target: Tensor,
        *,
        absent: Tensor | None = None,
        most: int | None = None,
        return_again: bool = False,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """The paths (B lists of numbers of objects) that the network would take, each to its end or to `most` steps.

        The likeliest object at each step, or with a `generator` one drawn by its probability. `return_again`: whether
        an object may be looked at twice; False.
        """
        most = self.steps if most is None else min(most, self.steps)
        objects = self.embed(crops, places, target)
        if absent is not None:
            absent = nn.functional.pad(absent, (0, 1))
        memory = self.encoder(objects, src_key_padding_mask=absent)
        end, path = objects.shape[1] - 1, torch.empty(len(objects), 0, dtype=torch.long, device=objects.device)
        for _ in range(most):
            logits = self.look(objects, memory, path, absent)[:, -1]
            if not return_again:
                again = torch.zeros_like(logits, dtype=torch.bool).scatter(1, path, True)
                again[:, end] = False
                logits = logits.masked_fill(again, float("-inf"))
            if generator is None:
                chosen = logits.argmax(1, keepdim=True)
            else:
                chosen = torch.multinomial(logits.softmax(1), 1, generator=generator)
            path = torch.cat([path, chosen], 1)
            if bool((path == end).any(1).all()):
                break
        rows = path.tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]
