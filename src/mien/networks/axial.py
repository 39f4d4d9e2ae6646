"""The Axial Transformer: an image model that gives the probability of every pixel after those before it."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.axial import Axial, AxialPositions, Lines
from mien.nn.base import Grid
from mien.nn.block import Block
from mien.nn.grid import to_map, to_tokens


class ChannelNorm(nn.Module):
    """`(x - mean) / (std + eps) · scale + shift` over the channels of each place: maps (B, D, H, W) -> maps.

    As published eps stands beside the deviation, not within the root.
    """

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.scale, self.shift = nn.Parameter(torch.ones(1, dim, 1, 1)), nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        std, mean = torch.std_mean(maps, 1, correction=0, keepdim=True)
        return (maps - mean) / (std + self.eps) * self.scale + self.shift


class AxialLayer(nn.Module):
    """`x += columns(norm(x)); x += rows(norm(x)); maps += mlp(maps)` twice: (B, N, D), grid -> (B, N, D).

    Each mlp is a `ChannelNorm`, a 3×3 convolution to 4 D, a leaky ReLU (0.01) and a 3×3 convolution back.
    Paper and reference: `mien.nn.Axial`, whose attention it is.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.axial = Axial(dim, num_heads)
        self.mlps = nn.ModuleList(
            nn.Sequential(
                ChannelNorm(dim),
                nn.Conv2d(dim, 4 * dim, 3, padding=1),
                nn.LeakyReLU(0.01),
                nn.Conv2d(4 * dim, dim, 3, padding=1),
            )
            for _ in range(2)
        )

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        for norm, lines in zip(self.norms, (self.axial.columns, self.axial.rows), strict=True):
            tokens = tokens + lines(norm(tokens), grid)
        maps = to_map(tokens, grid)
        for mlp in self.mlps:
            maps = maps + mlp(maps)
        return to_tokens(maps)


def lines(dim: int, num_heads: int, axis: int, causal: bool = False) -> Lines:
    return Lines(axis, dim, num_heads, qkv_bias=False, attn_drop=0.0, causal=causal)


class AxialTransformer(nn.Module):
    """Images of whole numbers (B, channels, H, W) -> logits (B, channels, H, W, levels) of every value.

    The value at (c, y, x) is predicted from the channels before c, the rows of c above y, and what is left of x in y:

        seen  = encoder(Σ_{c' < c} embed_c'(image_c') + positions)     rows and columns; none for a single channel
        above = outer(shift_down(embed_c(image_c)) + seen + positions) rows, and columns where nothing below is seen
        left  = inner(shift_right(embed_c(image_c)) + above)           rows where nothing to the right is seen
        logits = head(norm(left))

    Encoder layers are the published code's (`AxialLayer`). *Inferred*, from Ho et al.: the outer and the inner decoder,
    which that code has not; that their blocks are pre-norm with an mlp (`mien.nn.Block`); that the encoder is one for
    all channels, and sees their sum. A pixel needs one pass of the inner decoder through its row, and a row one of the
    outer, where a transformer over all pixels needs one through the whole image.

    Args:
        levels: int from 2 on, values that a pixel can have, 0 to levels - 1; 16.
        size: (rows, columns) of the images; (28, 28).
        channels: int from 1 on; 1.
        dim, num_heads: int, width and number of heads, which divides it; 64 and 4.
        encoder_depth, outer_depth, inner_depth: int, layers of the encoder, pairs of blocks of the outer decoder, and
            blocks of the inner one; 1, 1 and 2.
        mlp_ratio: float, hidden width of the decoders' mlp over dim; 4.

    Paper: Ho et al., Axial Attention in Multidimensional Transformers, arXiv 1912.12180.
    Reference: lucidrains/axial-attention, eff2c10, for the encoder.
    """

    def __init__(
        self,
        *,
        levels: int = 16,
        size: Grid = (28, 28),
        channels: int = 1,
        dim: int = 64,
        num_heads: int = 4,
        encoder_depth: int = 1,
        outer_depth: int = 1,
        inner_depth: int = 2,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        if levels < 2 or channels < 1 or min(size) < 1:
            raise ValueError(f"levels must be 2 at least, channels and size 1, not {levels}, {channels} and {size}")
        self.levels, self.size, self.channels = levels, (size[0], size[1]), channels
        tables = [nn.Embedding(levels, dim) for _ in range(channels)]
        for table in tables:
            nn.init.normal_(table.weight, std=0.5)
        self.embed = nn.ModuleList(tables)
        self.positions = AxialPositions(dim, self.size)
        several = channels > 1
        self.encoder = nn.ModuleList(AxialLayer(dim, num_heads) for _ in range(encoder_depth if several else 0))
        block = partial(Block, dim, num_heads, mlp_ratio)
        self.outer = nn.ModuleList(
            block(mixer=partial(lines, axis=axis, causal=axis == 0)) for _ in range(outer_depth) for axis in (1, 0)
        )
        self.inner = nn.ModuleList(block(mixer=partial(lines, axis=1, causal=True)) for _ in range(inner_depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, levels)

    @property
    def img_size(self) -> int:
        """Rows of the images."""
        return self.size[0]

    def example(self, batch: int) -> Tensor:
        """Images of the size and kind that are read: (B, channels, H, W)."""
        return torch.zeros(batch, self.channels, *self.size, dtype=torch.long)

    def training_logits(self, images: Tensor) -> dict[str, Tensor]:
        """What training reads: the loss, a scalar."""
        return {"bits_per_dim": self.bits_per_dim(images).mean()}

    @property
    def places(self) -> Tensor:
        """What is learned for every place: (H, W, D)."""
        return self.positions.rows[:, None] + self.positions.columns

    def seen(self, images: Tensor, channel: int) -> Tensor:
        """What the decoders know of the channels before: (B, channels, H, W) -> (B or 1, H, W, D)."""
        if channel == 0:
            return self.places[None]
        x = self.places + sum(self.embed[c](images[:, c]) for c in range(channel))
        tokens = x.flatten(1, 2)
        for layer in self.encoder:
            tokens = layer(tokens, self.size)
        return tokens.unflatten(1, self.size) + self.places

    def above(self, embedded: Tensor, seen: Tensor) -> Tensor:
        """What each place knows of the rows above: (B, R, W, D), of the first R rows -> the same."""
        grid: Grid = (embedded.shape[1], embedded.shape[2])
        tokens = (F.pad(embedded, (0, 0, 0, 0, 1, 0))[:, :-1] + seen[:, : grid[0]]).flatten(1, 2)
        for block in self.outer:
            tokens = block(tokens, grid)
        return tokens.unflatten(1, grid)

    def left(self, embedded: Tensor, above: Tensor) -> Tensor:
        """What is said of the first X places of each row: (B, R, X, D), (B, R, W, D) -> logits (B, R, X, levels)."""
        grid: Grid = (embedded.shape[1], embedded.shape[2])
        tokens = (F.pad(embedded, (0, 0, 1, 0))[:, :, :-1] + above[:, :, : grid[1]]).flatten(1, 2)
        for block in self.inner:
            tokens = block(tokens, grid)
        return self.head(self.norm(tokens)).unflatten(1, grid)

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != (self.channels, *self.size):
            wanted = "×".join(map(str, (self.channels, *self.size)))
            raise ValueError(f"images are {'×'.join(map(str, images.shape[1:]))}, and the model is for {wanted}")
        logits = []
        for channel in range(self.channels):
            embedded = self.embed[channel](images[:, channel])  # (B, H, W, D)
            logits.append(self.left(embedded, self.above(embedded, self.seen(images, channel))))
        return torch.stack(logits, 1)

    def log_likelihood(self, images: Tensor) -> Tensor:
        """log p of whole images, in nats: (B, channels, H, W) -> (B,)."""
        log_probs = log_softmax(self(images))
        return log_probs.gather(-1, images[..., None]).flatten(1).sum(1)

    def bits_per_dim(self, images: Tensor) -> Tensor:
        """`-log2 p / (channels · H · W)`: (B, channels, H, W) -> (B,)."""
        return -self.log_likelihood(images) / (images[0].numel() * math.log(2))

    @torch.no_grad()
    def complete(
        self,
        images: Tensor,
        known: Tensor,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw what is not known, pixel by pixel, each after all that stand before it in its channel.

        images: whole numbers (B, channels, H, W), of which only those count where `known` (H, W), bool, is true; what
        is known further on has no influence on what stands before. temperature: float above 0, by which logits are
        divided; 1 draws from the model. Gives the images, and the log p of every drawn pixel (0 where it was known) at
        temperature 1, both (B, channels, H, W).
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature!r}")
        images, found = torch.where(known, images, 0), torch.zeros(images.shape, device=images.device)
        for channel in range(self.channels):
            seen = self.seen(images, channel)
            for y in range(self.size[0]):
                if known[y].all():
                    continue
                above = self.above(self.embed[channel](images[:, channel, : y + 1]), seen)[:, y:]
                for x in range(self.size[1]):
                    if known[y, x]:
                        continue
                    row = self.embed[channel](images[:, channel, y : y + 1, : x + 1])
                    logits = self.left(row, above)[:, 0, x]
                    drawn = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
                    images[:, channel, y, x] = drawn[:, 0]
                    found[:, channel, y, x] = log_softmax(logits).gather(1, drawn)[:, 0]
        return images, found


def log_softmax(logits: Tensor) -> Tensor:
    """In at least fp32."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def axial(**options) -> AxialTransformer:
    """The Axial Transformer of grey faces of 28×28 pixels in 16 levels, ours: 0.2 M parameters."""
    return AxialTransformer(**options)
