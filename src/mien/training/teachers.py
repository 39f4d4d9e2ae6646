"""Finished networks that teach another."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mien.checkpoint import labels_of, outputs_of, read_header
from mien.classifier import find_checkpoint
from mien.errors import MienError
from mien.networks import load_network


class Teachers:
    """What networks answer in the mean: images (B, 3, S, S), normalised -> shares (B, C), a distribution each.

        shares = mean_t softmax(logits_t / T_t)        T the temperature of the checkpoint

    Each sees the student's own augmented image, as Beyer et al. (Knowledge distillation: A good teacher is patient and
    consistent, 2022) advise; a share of a target that is lerped towards these has the gradient of Hinton et al.'s
    distillation (2015) at temperature 1.

    One with another input size, mean or standard deviation is shown the image in its own.

    models: names or files, as `mien.classifier.find_checkpoint` takes them, which are no part of a checkpoint. trust:
    see `mien.networks.checkpoint.build`. Raises MienError for a teacher of other labels, or one that is shown faces in
    another way.
    """

    def __init__(
        self, models: Sequence[str], labels: Sequence[str], preprocess: Mapping[str, Any], trust: bool = False
    ):
        self.networks, digest = [], hashlib.blake2b(digest_size=16)
        for model in models:
            path = find_checkpoint(model)
            digest.update(path.read_bytes())
            header = read_header(path)
            if list(labels_of(header)) != list(labels):
                raise MienError(f"--teachers: {model} names {', '.join(labels_of(header))}, not {', '.join(labels)}")
            own = header["preprocess"]
            if own["color"] != preprocess["color"]:
                raise MienError(f"--teachers: {model} is shown faces with another color")
            network = load_network(path, trust=trust).eval().requires_grad_(False).to(memory_format=torch.channels_last)
            rescale, temperature = _rescale(preprocess, own), outputs_of(header)[0].temperature
            self.networks.append((network, own["input_size"], rescale, temperature))
        self.digest = digest.hexdigest()  # of their files

    @torch.no_grad()
    def __call__(self, images: Tensor, mirrored: bool = False) -> Tensor:
        """mirrored: the mean over the images and their mirror images."""
        probs = []
        for network, size, (factor, offset), temperature in self.networks:
            network, shown = network.to(images.device), images * factor.to(images.device) + offset.to(images.device)
            if images.shape[2] != size:
                shown = F.interpolate(shown, (size, size), mode="bilinear", antialias=True, align_corners=False)
            once = not mirrored or getattr(network, "mirror", False)  # which looks at both itself
            looks = [shown] if once else [shown, shown.flip(3)]
            probs.append(torch.stack([(network(look).float() / temperature).softmax(1) for look in looks]).mean(0))
        return torch.stack(probs).mean(0)


def _rescale(given: Mapping[str, Any], own: Mapping[str, Any]) -> Tensor:
    """Factors and offsets (2, 3, 1, 1) that turn images normalised as `given` into images normalised as `own`."""
    mean, std, own_mean, own_std = (torch.tensor(each[key]) for each in (given, own) for key in ("mean", "std"))
    return torch.stack([std / own_std, (mean - own_mean) / own_std])[..., None, None]
