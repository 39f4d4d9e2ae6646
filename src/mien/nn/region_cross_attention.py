"""AutoStudio's parallel cross attention: each region of a map attends to words, and to a reference, of its own."""

import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads, split_heads
from mien.nn.base import Grid
from mien.nn.observe import Layout


def attend_apart(attend: Attend, q: Tensor, k: Tensor, v: Tensor, grid: Grid | None = None) -> Tensor:
    """One map of queries, asked of the keys of each region alone.

    q (B, heads, N, head_dim); k, v (B, M, heads, T, head_dim) -> (B, M, N, heads · head_dim).
    """
    regions = k.shape[1]
    queries = q[:, None].expand(-1, regions, -1, -1, -1).flatten(0, 1)
    heads = attend(queries, k.flatten(0, 1), v.flatten(0, 1), layout=Layout("cross"))
    return merge_heads(heads).unflatten(0, (-1, regions))


def within(branches: Tensor, masks: Tensor, grid: Grid) -> Tensor:
    """`Σ_m mask_m · branch_m`: branches (B, M, N, D), masks (B, M, h, w), resized bilinearly -> (B, N, D)."""
    if masks.shape[2:] != grid:
        masks = F.interpolate(masks, grid, mode="bilinear", align_corners=False)
    return (masks.flatten(2)[..., None].to(branches.dtype) * branches).sum(1)


class RegionCrossAttention(nn.Module):
    """Tokens on a grid attend, region by region, to what is said of the region and to what it looked like elsewhere.

        T_m = softmax(q k_textᵀ · head_dim^-1/2) v_text          of region m's words
        I_m = softmax(q k_imageᵀ · head_dim^-1/2) v_image        of its reference, with k and v of its own
        out = proj(Σ_m mask_text,m · T_m + scale · Σ_m ref_m · mask_image,m · I_m)

    One q for all. Masks are used as they are: make them sum to 1 at each place, if each place is to be read once. In
    published code the reference of region 1, the background, is replaced by its words, and all references count as
    given: `as_released=True`. Without a reference, or where no `have_ref` is set, the second sum is 0 and the output
    bitwise that of the first alone.

    Args:
        dim, num_heads: int, width of tokens and number of heads, which divides it.
        text_dim, image_dim: int, widths of words and references; dim.
        scale: float, of the references; 1.
        as_released: bool; False.
        qkv_bias: bool; False.

    Paper: Cheng et al., AutoStudio, arXiv 2406.01388. Reference: donahowe/AutoStudio, bc598a5.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        text_dim: int | None = None,
        image_dim: int | None = None,
        scale: float = 1.0,
        as_released: bool = False,
        qkv_bias: bool = False,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.scale, self.as_released = num_heads, scale, as_released
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_text, self.v_text = (nn.Linear(text_dim or dim, dim, bias=qkv_bias) for _ in range(2))
        self.k_image, self.v_image = (nn.Linear(image_dim or dim, dim, bias=qkv_bias) for _ in range(2))
        self.attend_text, self.attend_image = Attend(), Attend()
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        tokens: Tensor,
        grid: Grid,
        text: Tensor,
        masks: Tensor,
        image: Tensor | None = None,
        have_ref: Tensor | None = None,
        own: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, H · W, dim), text (B, M, T, text_dim), masks (B, 2, M, h, w) -> (B, H · W, dim).

        masks: for text and for image. image: (B, M, R, image_dim), or None. have_ref: (B, M), 1 where there is a
        reference, 0 where not; by default there are all. own: ours, what the face itself has in the place of `image`,
        of the same shape: I_m of it is taken away from that of the reference, so that what is equal changes nothing.
        """
        q = split_heads(self.q(tokens), self.num_heads)
        of_text = attend_apart(self.attend_text, q, *self._apart(text, self.k_text, self.v_text))
        if image is None:
            return self.proj(within(of_text, masks[:, 0], grid))
        of_image = self.refer(q, image) if own is None else self.refer(q, image) - self.refer(q, own)
        return self.proj(join(of_text, of_image, masks, grid, have_ref, self.scale, self.as_released))

    def refer(self, q: Tensor, image: Tensor) -> Tensor:
        """I_m: queries (B, heads, N, head_dim), references (B, M, R, image_dim) -> (B, M, N, dim)."""
        return attend_apart(self.attend_image, q, *self._apart(image, self.k_image, self.v_image))

    def _apart(self, said: Tensor, k: nn.Linear, v: nn.Linear) -> tuple[Tensor, Tensor]:
        """(B, M, T, dim) -> keys and values (B, M, heads, T, head_dim)."""
        keys, values = (p(said).unflatten(-1, (self.num_heads, -1)).transpose(2, 3) for p in (k, v))
        return keys, values


def join(
    of_text: Tensor,
    of_image: Tensor,
    masks: Tensor,
    grid: Grid,
    have_ref: Tensor | None = None,
    scale: float = 1.0,
    as_released: bool = False,
) -> Tensor:
    """Both branches (B, M, N, D) within their masks (B, 2, M, h, w), together: (B, N, D)."""
    if as_released:
        of_image = of_image.clone()
        of_image[:, 1] = of_text[:, 1]
    elif have_ref is not None:
        of_image = of_image * have_ref[..., None, None].to(of_image.dtype)
    return within(of_text, masks[:, 0], grid) + scale * within(of_image, masks[:, 1], grid)
