"""Networks of the literature against the numbers of their official code, and what each promises."""

import json

import numpy as np
import pytest
import torch
from conftest import header
from published import GOLDEN, fill_by_rule, rng
from safetensors.torch import save_file
from torch import Tensor, nn

from mien.__main__ import main
from mien.checkpoint import labels_of, read_header
from mien.errors import CheckpointError
from mien.labels import EXPRESSIONS
from mien.networks import (
    HierarchicalSpectFormer,
    SpectFormer,
    build,
    load_network,
    save_network,
    spectformer_mobile,
)
from mien.networks.convert import KINDS
from mien.nn import MoH, SelfAttention, observe


def published(golden, name: str) -> dict[str, Tensor]:
    """Weights by the rule, under the names of the official code."""
    return fill_by_rule(json.loads(str(golden[f"{name}.shapes"])))


def as_converted(kind: str, tensors: dict[str, Tensor], **arguments) -> nn.Module:
    """The network that `mien convert` makes of published tensors, in memory."""
    how = KINDS[kind]
    renamed, unknown = how.tensors(tensors)
    assert not unknown
    path = how.network if isinstance(how.network, str) else how.network(renamed)
    network = build({"class_path": path, "init_args": how.arguments(renamed) | arguments})
    network.load_state_dict(network.fit(renamed))
    return network.eval()


@pytest.mark.parametrize("name", ["s", "h_s"])
def test_spectformer_answers_as_the_official_code(name):
    golden = np.load(GOLDEN / "spectformer.npz")
    network = as_converted("spectformer", published(golden, name))
    assert sum(p.numel() for p in network.parameters()) == golden[f"{name}.parameters"]
    images = torch.from_numpy(rng(f"spectformer_{name}").standard_normal((1, 3, 224, 224)).astype(np.float32))
    logits = network(images.requires_grad_())
    (logits * torch.from_numpy(rng("cotangent").standard_normal((1, 1000)).astype(np.float32))).sum().backward()
    np.testing.assert_allclose(logits.detach(), golden[f"{name}.logits"], atol=1e-5)
    np.testing.assert_allclose(images.grad[:, :, ::7, ::7], golden[f"{name}.grad"], atol=1e-6)


VANILLA = {"num_classes": 4, "img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
STAGES = {"num_classes": 4, "img_size": 32, "embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (1,) * 4}
STAGES |= {"mlp_ratios": (2,) * 4, "stem_dim": 8}


@pytest.mark.parametrize(
    "kind, sizes", [(SpectFormer, VANILLA | {"spectral_depth": 1}), (HierarchicalSpectFormer, STAGES)]
)
def test_spectformer_for_another_image_size(kind, sizes, tmp_path):
    """What was learned for 64 pixels is fitted to 32: a smooth spectrum and smooth positions stay what they are."""
    torch.manual_seed(0)
    large = kind(**sizes | {"img_size": 64}).eval()
    path = f"mien.networks.{kind.__name__}"
    save_network(tmp_path / "a.safetensors", large, header(path, **sizes | {"img_size": 64}))
    small = kind(**sizes).eval()
    tensors = small.fit(load_network(tmp_path / "a.safetensors").state_dict())
    small.load_state_dict(tensors)
    gates = [name for name in tensors if name.endswith("complex_weight")]
    assert len(gates) == (1 if kind is SpectFormer else 2)
    for name in gates:  # of twice as many frequencies every second one
        torch.testing.assert_close(tensors[name], large.state_dict()[name][::2, ::2])
    with pytest.raises(ValueError, match="images are 64×64 pixels, and .*32×32"):
        small(torch.rand(1, 3, 64, 64))
    assert small(torch.rand(2, 3, 32, 32)).shape == (2, 4)


def test_spectformer_has_mixers_by_name_and_shows_them():
    torch.manual_seed(0)
    network = SpectFormer(**VANILLA, spectral_depth=1, mixer=[MoH, SelfAttention]).eval()
    assert [type(block.attn).__name__ for block in network.blocks] == ["SpectralGate", "MoH", "SelfAttention"]
    images = torch.rand(2, 3, 32, 32)
    with observe(network) as seen:
        logits = network(images)
    assert list(seen) == ["blocks.1", "blocks.2"] and seen["blocks.2"].attn.shape == (2, 2, 16, 16)
    tokens, maps = network.forward_intermediates(images)
    torch.testing.assert_close(network.head(tokens.mean(1)), logits)
    assert [tuple(each.shape) for each in maps] == [(2, 16, 4, 4)] * 3
    with observe(HierarchicalSpectFormer(**STAGES)) as seen:
        assert list(seen) == []
    with pytest.raises(ValueError, match="of 3 blocks 4 cannot be spectral"):
        SpectFormer(**VANILLA, spectral_depth=4)
    with pytest.raises(ValueError, match="a list of 1 for 2"):
        HierarchicalSpectFormer(**STAGES, mixer=[SelfAttention])
    with pytest.raises(ValueError, match="img_size must be a multiple of 16 from 32 on, not 100"):
        HierarchicalSpectFormer(**STAGES | {"img_size": 100})


def test_tokens_of_spectformer_have_their_share_in_answer_and_loss():
    torch.manual_seed(0)
    network = HierarchicalSpectFormer(**STAGES).eval()
    images = torch.rand(2, 3, 32, 32)
    c, tokens = network.tokens(images)
    wanted = network.head(c) + 0.5 * network.aux_head(tokens).max(1).values
    torch.testing.assert_close(network(images), wanted)
    torch.testing.assert_close(network.answers(images)["logits"], wanted)
    logits = network.training_logits(images)
    assert logits.keys() == network.loss_weights.keys()
    torch.testing.assert_close(logits["tokens"], network.aux_head(tokens).mean(1))
    without = HierarchicalSpectFormer(**STAGES, token_labels=False)
    assert without.training_logits(images).keys() == without.loss_weights.keys() == {"logits"}


def spectformer_shapes(kind: type, sizes: dict) -> dict[str, Tensor]:
    """A small network's weights under their published names."""
    own, found = kind(**sizes).state_dict(), {}
    for name, tensor in own.items():
        name = name.replace("patch_embed.", "patch_embed.proj.")
        found[name.replace("attn.complex", "filter.complex")] = tensor
    return found


def test_convert_spectformer(tmp_path, capsys):
    """By the command, for faces of another size and with another head; a tensor too many is named."""
    sizes = VANILLA | {"num_classes": 1000, "embed_dim": 64, "num_heads": 1, "patch_size": 16, "img_size": 64}
    tensors = spectformer_shapes(SpectFormer, sizes | {"spectral_depth": 2})
    save_file(tensors, tmp_path / "published.safetensors")
    source, out = str(tmp_path / "published.safetensors"), str(tmp_path / "a.safetensors")
    given = ["--num-classes", "8", "--img-size", "32", "--labels", ",".join(EXPRESSIONS)]
    assert main(["convert", "spectformer", source, out, *given]) == 0
    head = read_header(tmp_path / "a.safetensors")
    assert head["model"]["init_args"] | {"depth": 3, "spectral_depth": 2, "num_heads": 1} == head["model"]["init_args"]
    assert labels_of(head) == EXPRESSIONS and head["preprocess"]["input_size"] == 32
    assert load_network(out)(torch.rand(1, 3, 32, 32)).shape == (1, 8)
    save_file(tensors | {"blocks.7.extra": torch.zeros(1)}, tmp_path / "published.safetensors")
    assert main(["convert", "spectformer", source, out]) == 1
    assert "blocks.7.extra" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="cannot be built"):
        build({"class_path": "mien.networks.SpectFormer", "init_args": {"num_classes": 8, "img_size": 100}})


def test_mobile_sizes_are_those_of_a_phone():
    for make in (spectformer_mobile,):
        with torch.device("meta"):
            network = make()
        assert sum(p.numel() for p in network.parameters()) <= 5e6
