"""How much each region of a face differs from a neutral face of the same person, as parallel cross attention sees it.

    python benchmarks/regions.py neutral.jpg smiling.jpg …

Nothing is trained here: the trunk is the default model's, and all projections of `mien.nn.RegionCrossAttention` are the
identity, so that tokens attend to tokens like themselves. Printed is the mean length of what the reference adds in each
region, weighted by its mask, for every picture with the first as its reference; of the first itself it is 0.
"""

import argparse

import numpy as np
import torch

from mien import Reader
from mien.classifier import find_checkpoint
from mien.faces import open_picture
from mien.networks import deploy, load_network, region_reader
from mien.networks.deploy import to_float
from mien.networks.regions import ARCFACE, REGIONS, region_masks
from mien.nn.attend import split_heads


def main() -> None:
    parser = argparse.ArgumentParser(description="Regions that differ from a neutral face.")
    parser.add_argument("pictures", nargs="+")
    pictures = parser.parse_args().pictures
    path = find_checkpoint()
    trained, reader = load_network(path), Reader.from_pretrained()
    crops = []
    for picture in pictures:
        face = reader(picture)[0]
        crops.append(reader.classifier.crop(open_picture(picture), face.landmarks, face.box))
    network = region_reader(num_heads=1).eval()
    kept = network.image.state_dict()
    network.image.load_state_dict({name: t for name, t in trained.image.state_dict().items() if name in kept})
    layer = network.regions
    with torch.inference_mode():
        for part in (layer.q, layer.k_image, layer.v_image):
            part.weight.copy_(torch.eye(128))
        network.proj.weight.copy_(torch.eye(128)[..., None, None])
        network.proj.bias.zero_()
        images = deploy(trained, reader.classifier.header).normalize(to_float(torch.from_numpy(np.stack(crops))))
        tokens = network.norm1(network.tokens(images))
        q = split_heads(layer.q(tokens), 1)
        own, other = (layer.refer(q, x[:, None]) for x in (tokens, tokens[:1].expand_as(tokens)))
        lengths = (other - own)[:, 0].norm(dim=-1)  # (B, 196)
        masks = region_masks(torch.tensor([ARCFACE]), network.grid).flatten(2)
        means = (lengths[:, None] * masks).sum(2) / masks.sum(2)
    print("| beside the first | " + " | ".join(REGIONS) + " |\n|---|" + "---:|" * len(REGIONS))
    for picture, row in zip(pictures, means.tolist(), strict=True):
        print(f"| {picture.rpartition('/')[2]} | " + " | ".join(f"{value:.3f}" for value in row) + " |")


if __name__ == "__main__":
    main()
