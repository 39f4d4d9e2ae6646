"""BTN's batch transformer: attention across the batch, a class at a time."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from mien.nn.gather import gather_faces
from mien.nn.observe import Layout, Stages

LAYOUT = Layout("batch")


def class_batch_attention(
    query: Tensor, key: Tensor, value: Tensor, stages: Stages | None = None
) -> tuple[Tensor, Tensor]:
    """Faces attend to faces, class by class: query (B, C, F), key (M, C, F), value (M, C) -> (B, C), attn (C, B, M).

        scores[c] = query[:, c] key[:, c]ᵀ / √C      (B, M);   C is the number of classes, as published, not F
        attn[c] = softmax(scores[c]) over the keys;      out[i, c] = Σ_j attn[c, i, j] · value[j, c]

    Args:
        query: (B, C, F), of the faces that attend.
        key, value: (M, C, F) and (M, C), of the faces attended to; as published, these are the B of the batch.
        stages: where scores, attn and out can be seen and replaced, or None: nowhere.

    Scores are computed in at least fp32. The axis of the softmax is *inferred*: the published text of the function ends
    at the product. Nothing in here is learned.

    Paper: Her et al., Batch Transformer, arXiv 2407.04218. Reference: README of SeoulTech-HCIRLab/BTN.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast("cpu" if query.is_meta else query.device.type, enabled=False):
        scores = torch.einsum("icf,jcf->cij", query.to(dtype), key.to(dtype)) / math.sqrt(query.shape[1])
        scores = scores if stages is None else stages.stage("scores", scores, LAYOUT)
        attn = scores.softmax(dim=-1)
        attn = attn if stages is None else stages.stage("attn", attn, LAYOUT)
        out = torch.einsum("cij,jc->ic", attn, value.to(dtype))
        return out if stages is None else stages.stage("heads", out, LAYOUT), attn


class ClassEncoding(nn.Module):
    """Adds a position for every class: (B, C, F) -> (B, C, F).

    *Inferred*: the paper's encoder is built from the number of classes alone; its form was not published. The encoding
    has no part in inference.

    Args:
        num_classes, features: int, C and F; 49 features.
        kind: "learned" (C, F) starts at trunc-normal 0.02; "sinusoidal" is a fixed table over the class's index;
            "scalar" is one learnable number a class; "none" adds nothing; learned.
    """

    def __init__(
        self,
        num_classes: int,
        features: int = 49,
        kind: Literal["learned", "sinusoidal", "scalar", "none"] = "learned",
    ):
        super().__init__()
        if kind == "sinusoidal":
            pair = torch.arange(features) // 2 * 2
            angle = torch.arange(num_classes)[:, None] / 10000 ** (pair / (features + features % 2))
            table = torch.where(torch.arange(features) % 2 == 0, angle.sin(), angle.cos())
            self.register_buffer("table", table[None], persistent=False)
        elif kind in ("learned", "scalar"):
            self.table = nn.Parameter(torch.empty(1, num_classes, features if kind == "learned" else 1))
            nn.init.trunc_normal_(self.table, std=0.02)
        elif kind == "none":
            self.table = None
        else:
            raise ValueError(f"the encoding must be learned, sinusoidal, scalar or none, not {kind!r}")

    def forward(self, x: Tensor) -> Tensor:
        return x if self.table is None else x + self.table


class BatchTransformer(nn.Module):
    """The batch branch of BTN: fused map (B, dim, h, w), logits (B, C) -> {"bt", "cba"}, each (B, C). Training only.

        q, k = encoding(E_q(map)), encoding(E_k(map))   (B, C, h · w)
        cba = class_batch_attention(q, k, value);   bt = cba + value

    Certain: the shapes, that query and key and not the value are encoded, and `bt = cba + value`. *Inferred*: E is a
    1×1 convolution to the classes (`shared=True`: one for query and key), and the value is the logits
    (`value_softmax`, `detach_value` change that). A batch of one gives cba = value.

    Ours, in training mode alone, and with no part in a state dict:
    `gather`: faces attend to the faces of all processes, with gradients. As published, each process has its own.
    `memory`: faces also attend to so many faces of past batches, of all processes, as they were, without gradients.
    A batch is past once `remember` is called (`Network.begin_step` does), so SAM's second pass sees the same set.

    Args:
        dim, num_classes: int, channels of the map, and C.
        features: int, h · w; 49.
        encoding: kind of `ClassEncoding`; learned.
        shared, value_softmax, detach_value, gather: bool; False.
        memory: int from 0 on, faces of past batches; 0.

    Paper: Her et al., Batch Transformer, arXiv 2407.04218. Reference: README of SeoulTech-HCIRLab/BTN.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        features: int = 49,
        encoding: Literal["learned", "sinusoidal", "scalar", "none"] = "learned",
        shared: bool = False,
        value_softmax: bool = False,
        detach_value: bool = False,
        gather: bool = False,
        memory: int = 0,
    ):
        super().__init__()
        if memory < 0:
            raise ValueError(f"a memory holds 0 faces or more, not {memory}")
        self.embed_q = nn.Conv2d(dim, num_classes, 1)
        self.embed_k = self.embed_q if shared else nn.Conv2d(dim, num_classes, 1)
        self.encoding = ClassEncoding(num_classes, features, encoding)
        self.value_softmax, self.detach_value = value_softmax, detach_value
        self.gather, self.memory = gather, memory
        self.attend = Stages()
        self.past: Tensor | None = None  # (n, C, F + 1), n <= memory, the newest last: keys, and the value behind
        self.latest: Tensor | None = None  # the same, of the batch that is not past yet

    def forward(self, features: Tensor, logits: Tensor) -> dict[str, Tensor]:
        value = logits.detach() if self.detach_value else logits
        if self.value_softmax:
            value = value.softmax(dim=-1)
        query, key = (self.encoding(embed(features).flatten(2)) for embed in (self.embed_q, self.embed_k))
        wider = self.training and (self.gather or self.memory)
        keys, values = self.all_faces(key, value) if wider else (key, value)
        cba, _ = class_batch_attention(query, keys, values, self.attend)
        return {"bt": cba + value, "cba": cba}

    def all_faces(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The batch (B, C, F), (B, C) -> all faces that are attended to (M, C, F), (M, C)."""
        dtype = torch.promote_types(key.dtype, torch.float32)
        own = torch.cat([key.to(dtype), value.to(dtype)[..., None]], dim=-1)
        faces = gather_faces(own) if self.gather else own
        if self.memory:
            if self.latest is None:
                self.latest = (faces if self.gather else gather_faces(own.detach())).detach()
            if self.past is not None:
                faces = torch.cat([faces, self.past.to(faces)])
        return faces[..., :-1], faces[..., -1]

    def remember(self) -> None:
        """Move the latest batch, which is now past, into the memory."""
        if self.latest is not None:
            past = self.latest if self.past is None else torch.cat([self.past.to(self.latest), self.latest])
            self.past, self.latest = past[-self.memory :], None
