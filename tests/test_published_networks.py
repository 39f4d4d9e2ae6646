"""Whole networks of the literature: against their own code's numbers, their weights' files, the list of them."""

import copy
import inspect
import json
from functools import partial

import numpy as np
import pytest
import test_arbex as balanced
import test_mixers_axes as axes
import test_mixers_heads as heads
import test_mixers_local as local
import test_pools as pools
import torch
from published import GOLDEN, fill_by_rule, fill_small, rng, weight

import mien
import mien.networks
import mien.nn as nn_
from mien.__main__ import main
from mien.catalogue import NETWORKS
from mien.checkpoint import read_header
from mien.errors import CheckpointError
from mien.networks import (
    AxialTransformer,
    DaViT,
    GroupPose,
    HaloNet,
    MaxViT,
    MoHViT,
    Network,
    build,
    load_mechanism,
    load_network,
)
from mien.networks.checkpoint import fill
from mien.networks.convert import KINDS, convert
from mien.networks.cost import macs
from mien.nn import ChannelAttention, MaxViTGridAttention, SelfAttention, WindowAttention, intervene, observe
from mien.nn.moh import MoH
from mien.nn.observe import attentions

KINDS_OF_NETWORK = (Network, AxialTransformer, GroupPose)
PARTS = ("btn", "poster", "apvit", "cait", "arbex", "maxvit", "davit", "halonet", "spectformer", "moh", "tic", "axial")
PARTS += ("group_pose", "sparsifiner")
TIMM = KINDS["timm"].variants


# the list


def builders() -> dict:
    public = {name: getattr(mien.networks, name) for name in mien.networks.__all__}
    made = {
        name: inspect.signature(make).return_annotation for name, make in public.items() if inspect.isfunction(make)
    }
    return {
        name: public[name]
        for name, kind in made.items()
        if inspect.isclass(kind) and issubclass(kind, KINDS_OF_NETWORK)
    }


def test_every_network_is_listed_as_large_as_it_is():
    """Multiplications of those only that are counted in a moment."""
    assert NETWORKS.keys() == builders().keys()
    for name, make in builders().items():
        known = NETWORKS[name]
        assert set(known.opens) <= KINDS.keys(), name
        assert ("timm" in known.opens) == (name in TIMM), name
        assert all(name in KINDS[kind].variants for kind in known.opens if KINDS[kind].variants), name
        if name == "arbex":  # built on the meta device in five seconds
            continue
        with torch.device("meta"):
            network = make()
        assert sum(p.numel() for p in network.parameters()) == known.parameters, name
        assert getattr(network, "img_size", 112) == known.size, name
        if known.gmac < 0.7:
            with torch.device("meta"):
                images = torch.zeros(1, 3, known.size, known.size)
                images = network.example(1) if hasattr(network, "example") else images
            assert macs(network, images) / 1e9 == pytest.approx(known.gmac, abs=6e-4)
        if name.endswith("mobile") and name != "guided_mobile":
            assert known.parameters <= 5e6 and known.size == 112


def test_parameters_of_the_other_published_sizes():
    """Those of the original classes with a thousand classes; a class is a row of the head."""
    for name, width, parameters in (
        ("davit_small", 768, 49_745_896),
        ("davit_base", 1024, 87_954_408),
        ("moh_vit_small_75", 576, 49_910_548),
        ("moh_vit_small_80", 576, 49_910_548),
        ("moh_vit_base_75", 768, 90_020_632),
        ("moh_vit_base_50", 768, 90_023_512),
    ):
        assert NETWORKS[name].parameters + 992 * (width + 1) == parameters, name


def test_the_list(capsys):
    assert main(["list", "networks"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["name", "parameters", "GMAC", "input", "paper", "opens"]
    names = [line.split()[0] for line in lines]
    assert names == mien.list_networks() == sorted(NETWORKS)
    for part in PARTS:
        assert any(part in name for name in names), part
    for column in ("paper", "opens"):  # what stands in a column begins under its title
        at = title.index(column)
        assert all(line[at - 1] == " " and line[at] != " " for line in lines)
    assert main(["list", "networks", "*vit*"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == mien.list_networks("*vit*")
    assert mien.list_networks("*vit*") == [name for name in names if "vit" in name] != names
    assert main(["list", "networks", "q*"]) == 1
    assert capsys.readouterr().err == "mien: none of the networks is called 'q*'; mien list networks names them\n"


def test_networks_side_by_side(capfd):
    assert main(["bench", "networks", "magnified", "cait_m48", "--batch", "1", "--rounds", "1"]) == 0
    text, err = capfd.readouterr()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert not err and [row[0] for row in rows] == ["| network", "| mobilefacenet", "| magnified", "| cait_m48"]
    assert rows[2][2].startswith("195,120 (0.21)") and rows[2][3].startswith("0.012 (0.05)")
    assert rows[3][1:] == ["224", *["–"] * 5, "– |"]  # its weights would take more than --memory allows
    for misuse, code, reason in (
        (["--dim", "8"], 2, "--dim: networks have their own"),
        (["gone"], 1, "there is no network gone; mien list networks names mien's"),
    ):
        try:
            assert main(["bench", "networks", *misuse]) == code
        except SystemExit as end:
            assert end.code == code
        assert reason in capfd.readouterr().err


# at the published size, against the published code

PUBLISHED = {  # parameters as published, of a thousand classes
    "maxvit_tiny_rw": ("timm", 29_057_312),
    "maxvit_tiny_tf": ("timm", 30_916_528),
    "halonet26t": ("halonet", 12_480_288),
    "halonet50ts": ("halonet", 22_733_280),
    "davit_tiny": ("davit", 28_360_168),
    "moh_vit_tiny": ("moh_vit", 28_351_552),
}


def published(name: str) -> tuple[dict, dict]:
    """What its own code said, and the weights that it said it with, in its names."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = {key: file[key] for key in file.files}
    return golden, fill_by_rule(json.loads(golden["keys"].tobytes()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_network_answers_as_its_own_code_does(name):
    kind, parameters = PUBLISHED[name]
    golden, tensors = published(name)
    how = KINDS[kind].variants[name]
    renamed, unknown = how.tensors(tensors)
    assert not unknown
    with torch.device("meta"):
        network = build({"class_path": f"mien.networks.{name}", "init_args": how.arguments(renamed)})
    assert sum(p.numel() for p in network.parameters()) == int(golden["parameters"]) == parameters
    network = network.to_empty(device="cpu").eval()
    fill(network, renamed, name)
    network.double()  # in fp32 some processors round a ReLU's input to its other side, and the gradient is another
    side = int(golden["side"])
    images, probe = (
        torch.from_numpy(rng(seed).standard_normal(shape).astype(np.float32)).double()
        for seed, shape in ((name, (1, 3, side, side)), (f"{name} loss", 1000))
    )
    logits = network(images.requires_grad_())
    (grad,) = torch.autograd.grad((logits * probe).sum(), images)
    for ours, theirs in ((logits[0], golden["logits"]), (grad[0, :, ::16, ::16], golden["grad"])):
        assert np.abs(ours.detach().numpy() - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_timm_names_davit_otherwise_than_its_authors_do():
    """Both layouts give the same tensors."""
    shapes = {name: name for name in json.loads(np.load(GOLDEN / "davit_tiny.npz")["keys"].tobytes())}
    of_timm = {}
    for name in shapes:
        new = name.replace("patch_embeds.0.proj", "stem.conv").replace("patch_embeds.0.norm", "stem.norm")
        for i in range(4):
            new = new.replace(f"patch_embeds.{i}.proj", f"stages.{i}.downsample.conv")
            new = new.replace(f"patch_embeds.{i}.norm", f"stages.{i}.downsample.norm")
            new = new.replace(f"main_blocks.{i}.", f"stages.{i}.blocks.")
        new = new.replace("cpe.0", "cpe1").replace("cpe.1", "cpe2").replace("norms.", "head.norm.")
        of_timm[new.replace("head.weight", "head.fc.weight").replace("head.bias", "head.fc.bias")] = name
    assert of_timm.keys() != shapes.keys()
    how = KINDS["davit"].variants["davit_tiny"]
    assert how.tensors(of_timm) == how.tensors(shapes) and not how.tensors(shapes)[1]


# files


def hollow(name: str) -> dict:
    """Weights of the published names and sizes that take no room."""
    keys = json.loads(np.load(GOLDEN / f"{name}.npz")["keys"].tobytes())
    return {key: torch.zeros(()).expand(shape) for key, shape in keys.items()}


def test_files_become_checkpoints(tmp_path, capsys):
    torch.save(published("halonet26t")[1], tmp_path / "halonet.pth")
    source, out = str(tmp_path / "halonet.pth"), tmp_path / "a.safetensors"
    assert main(["convert", "timm", source, str(out), "--as", "halonet26t", "--num-classes", "8"]) == 0
    header = read_header(out)
    assert header["model"] == {"class_path": "mien.networks.halonet26t", "init_args": {"num_classes": 8}}
    assert header["preprocess"]["resize"] == [{"size": 256, "interpolation": "bicubic"}]
    network = load_network(out)
    assert network.head.weight.shape == (8, 2048) and not network.head.weight.any()
    assert network.stages[3][0].attn.qkv.weight.any()
    assert main(["convert", "halonet", source, str(tmp_path / "b.safetensors"), "--num-classes", "8"]) == 0
    assert read_header(tmp_path / "b.safetensors")["model"] == header["model"]  # by the tensors
    capsys.readouterr()

    def said(*arguments: str) -> str:
        assert main(["convert", *arguments]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    other = str(tmp_path / "c.safetensors")
    assert "halonet.pth: these are not the weights of halonet50ts: they look like those of halonet26t" in said(
        "halonet", source, other, "--as", "halonet50ts"
    )
    assert "needs --as, one of cait_xxs24, " in said("timm", source, other)
    assert "opens davit_tiny, davit_small, davit_base, not halonet26t" in said(
        "davit", source, other, "--as", "halonet26t"
    )
    assert "opens one network alone: it takes no --as" in said("cait", source, other, "--as", "cait_xxs24")
    assert "windows of 8×8 do not divide maps of 7, 3.5; they do at 256, 512, …" in said(
        "halonet", source, other, "--num-classes", "8", "--img-size", "112"
    )
    assert not (tmp_path / "c.safetensors").exists()


def test_weights_of_another_network_say_which_they_look_like(tmp_path):
    for name, kind, as_, looks in (
        ("maxvit_tiny_tf", "timm", "maxvit_tiny_rw", "maxvit_tiny_tf"),
        ("davit_tiny", "timm", "maxvit_tiny_rw", "davit_tiny"),
        ("moh_vit_tiny", "moh_vit", "moh_vit_base_50", "moh_vit_tiny"),
    ):
        torch.save(hollow(name), tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=f"not the weights of {as_}: they look like those of {looks}$"):
            convert(kind, tmp_path / "a.pth", tmp_path / "b.safetensors", as_=as_)
    scalars = {key: torch.zeros(()) for key in hollow("moh_vit_tiny")}
    torch.save(scalars, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: tensors are not shaped as those of this layout are"):
        convert("moh_vit", tmp_path / "a.pth", tmp_path / "b.safetensors")
    wide = {key: t.new_zeros(()).expand([2 * n for n in t.shape]) for key, t in hollow("davit_tiny").items()}
    torch.save(wide, tmp_path / "a.pth")  # of a size that mien has not
    with pytest.raises(
        CheckpointError, match="davit_base: they look like a .* are 192, 384, 768, 1536 wide, of 1, 1, 3, "
    ):
        convert("davit", tmp_path / "a.pth", tmp_path / "b.safetensors")
    torch.save(hollow("davit_tiny") | {"surplus": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="1 without a place: 'surplus'"):
        convert("davit", tmp_path / "a.pth", tmp_path / "b.safetensors")


# what every network is held to, as small as they can be

STAGES = {"num_classes": 5, "img_size": 32}
SMALL = {
    "maxvit": partial(MaxViT, **STAGES, dims=(8, 16), depths=(1, 1), stem=(8, 8), head_dim=8, window_size=4),
    "maxvit, timm's": partial(
        MaxViT, **STAGES, dims=(8, 16), depths=(1, 2), stem=(4, 8), head_dim=8, window_size=4, tf=False
    ),
    "halonet": partial(
        HaloNet, **STAGES, dims=(32, 64), num_heads=(2, 4), plan=("ca", "aa"), stem=16, block_size=4, halo_size=1
    ),
    "halonet, masked": partial(
        HaloNet, **STAGES, dims=(32, 64), num_heads=(2, 4), plan=("ca", "ca"), stem=16, block_size=3, mask_padding=True
    ),
    "davit": partial(DaViT, **STAGES, dims=(8, 16), depths=(1, 1), num_heads=(2, 4), window_size=3),
    "moh_vit": partial(
        MoHViT,
        **STAGES,
        dims=(16, 24),
        depths=(1, 1),
        num_heads=(4, 6),
        mlp_ratios=(2, 2),
        pools=(2, 1),
        shared=(2, 1),
        top_k=(1, 3),
    ),
}


def lively(name: str) -> Network:
    network = SMALL[name]()
    network.load_state_dict(fill_by_rule({key: t.shape for key, t in network.state_dict().items()}))
    return network.double().eval()


def faces(count: int) -> torch.Tensor:
    return torch.from_numpy(rng("small faces").standard_normal((count, 3, 32, 32)))


@pytest.mark.parametrize("name", SMALL)
def test_a_face_alone_and_seen(name):
    """Its logits alone and among others; the same while somebody looks; a gradient for every parameter."""
    network, images = lively(name), faces(3)
    logits = network(images)
    assert logits.shape == (3, 5) and logits.std(0).min() > 1e-3
    torch.testing.assert_close(network(images[1:2]), logits[1:2], atol=1e-10, rtol=0)
    torch.testing.assert_close(network(images.flip(0)).flip(0), logits, atol=1e-10, rtol=0)
    with observe(network) as seen:
        torch.testing.assert_close(network(images), logits, atol=1e-10, rtol=0)
    assert seen.keys() == attentions(network).keys() and len(seen) >= 2
    for look in seen.values():
        assert look.attn.sum(-1).max() <= 1 + 1e-9 and look.scores.shape == look.attn.shape
        assert not look.attn.isnan().any() and look.heads.isfinite().all()
    with intervene(network, {"*": lambda stage, x, layout: x * 0 if stage == "heads" else x}):
        assert (network(images) - logits).abs().max() > 1e-3
    network.train().training_logits(images)["logits"].square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        keys_alone = key.endswith("cpb_fc2.bias")  # shifts every score of a query alike, where all keys have it
        assert parameter.grad.abs().max() > 0 or keys_alone, key
    if name == "moh_vit":
        assert all(part.aux_loss is not None for part in network.modules() if isinstance(part, MoH))


def test_mixers_by_name():
    block = {"class_path": "mien.networks.davit_mobile", "init_args": {"mixer": "mien.nn.SelfAttention"}}
    assert sum(isinstance(part, SelfAttention) for part in build(block).modules()) == 8
    turns = [ChannelAttention, partial(WindowAttention, window_size=4)]
    network = SMALL["davit"](mixer=turns * 2)
    assert network(faces(1).float()).shape == (1, 5)
    assert SMALL["halonet"](mixer=SelfAttention)(faces(1).float()).shape == (1, 5)
    assert SMALL["moh_vit"](mixer=SelfAttention)(faces(1).float()).shape == (1, 5)
    grids = SMALL["maxvit"](mixer=partial(MaxViTGridAttention, window_size=4))
    assert sum(isinstance(part, MaxViTGridAttention) for part in grids.modules()) == 4
    with pytest.raises(ValueError, match="mixer is a list of 3 for 4 blocks"):
        SMALL["davit"](mixer=[SelfAttention] * 3)


def test_sizes_that_windows_do_not_divide():
    for make, size, reason in (
        (mien.networks.maxvit_tiny_rw, 112, "maps of 28, 14, 7, 3.5; they do at 224, 448, …"),
        (mien.networks.halonet26t, 224, "maps of 14, 7; they do at 256, 512, …"),
        (mien.networks.moh_vit_tiny, 112, "they do at 32, 64, …"),
        (mien.networks.davit_tiny, 114, "takes multiples of 4, such as 112 or 224"),
    ):
        with torch.device("meta"), pytest.raises(ValueError, match=f"img_size {size}: .*{reason}"):
            make(img_size=size)
    with torch.device("meta"):
        assert mien.networks.davit_tiny(img_size=112).img_size == 112
    for name in ("maxvit", "halonet", "moh_vit"):
        with pytest.raises(ValueError, match="images are 64×32 pixels, and the network is for 32×32"):
            SMALL[name]()(torch.zeros(1, 3, 64, 32))
    with pytest.raises(ValueError, match="plan must be of c and a"):
        HaloNet(num_classes=5, plan=("cb", "c", "c", "c"))


# single mechanisms, against what their own tests make of the same weights, which is held to their code's numbers


def of_moh():
    shapes = {"qkv.weight": (192, 64), "qkv.bias": (192,), "proj.weight": (64, 64), "proj.bias": (64,)}
    shapes |= {"wg.weight": (6, 64), "wg_1.weight": (2, 64), "wg_0.weight": (2, 64)}
    theirs = {name: 0.2 * heads.noise(name, *shape) for name, shape in shapes.items()}
    return MoH(64, 8, 2, 3), theirs, heads.moh(heads.ROUTED, num_shared=2, top_k=3)


def of_gaam():
    theirs = {}
    for i in range(4):
        theirs[f"attention_heads.{i}.mean_offsets"] = 0.2 * heads.noise(f"attention_heads.{i}.mean_offsets", 3)
        theirs[f"attention_heads.{i}.c"] = 1 + 0.2 * heads.noise(f"attention_heads.{i}.c", 3)
    return nn_.GAAM(64, 4, 3), theirs, heads.gaam(4, 3)


def of_rcmha():
    shapes = {"query_pos_bias": (4, 8), "output.weight": (32, 32), "output.bias": (32,), "value.0.linear.bias": (32,)}
    shapes |= {"key_pos_embeddings": (8192, 4, 8), "key_pos_bias": (8192, 4)}
    for name in ("query", "key", "value"):
        shapes[f"{name}.0.linear.weight"] = (32, 32)
        shapes |= {f"{name}.1.conv.weight": (8, 1, 3), f"{name}.1.conv.bias": (8,)}
    theirs = {name: 0.02 * heads.noise(f"rcmha.{name}", *shape) for name, shape in shapes.items()}
    return nn_.RCMHA(32, 4, max_length=16), theirs, heads.rcmha()


def of_halo():
    shapes = {"q.weight": (64, 64), "kv.weight": (128, 64), "q.bias": (64,), "kv.bias": (128,)}
    shapes |= {f"pos_embed.{axis}_rel": (25, 16) for axis in ("height", "width")}
    theirs = {name: t for name, t in fill_small(shapes, scale=0.2).items() if not name.endswith("bias")}
    return nn_.Halo(64, 4, 7, 3, False, proj=False), theirs, local.halo(7, 3)


def of_masked_halo():
    shapes = {"to_q.weight": (64, 64), "to_kv.weight": (128, 64), "to_out.weight": (64, 64), "to_out.bias": (64,)}
    shapes |= {"rel_pos_emb.rel_height": (25, 16), "rel_pos_emb.rel_width": (25, 16)}
    return nn_.Halo(64, 4, 7, 3, scale_pos_embed=True), fill_small(shapes, scale=0.2), local.masked_halo()


def of_axial():
    shapes = {}
    for i in range(2):
        shapes |= axes.axial_names(64, {f"axial_attentions.{i}.fn": "x"})
    theirs = fill_small({name: shape for name, (_, shape) in shapes.items()}, scale=0.2)
    return nn_.Axial(64, 4, "sum"), theirs, axes.axial("sum").mixer


def of_layers(module, names: dict):
    """A module, and its tensors by the rule of the pools, in their names."""
    shapes = {}
    for name, tensor in module.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        shapes[names[name] if name in names else f"{names[layer]}.{leaf}"] = tensor.shape
    return module, fill_small(shapes, ones="gamma", scale=0.2), pools.filled(copy.deepcopy(module), names)


def of_acmil():
    head = nn_.ACMILHead(64, 7, 32, partial(nn_.ACMILPool, hidden=16))
    return of_layers(head, pools.GATED | pools.BRANCHES)


def of_group_pose():
    names = pools.group_names("group.") | {name: name for name in ("norm1", "norm2", "linear1", "linear2")}
    names |= {"cross_attn.value": "cross_attn.value_proj", "cross_attn.proj": "cross_attn.output_proj"}
    names |= {f"cross_attn.{name}": f"cross_attn.{name}" for name in ("sampling_offsets", "attention_weights")}
    layer = nn_.GroupPoseLayer(64, 4, nn_.DeformableAttention(64, 4), hidden=128)
    return of_layers(layer, names)


def of_arbex():
    shapes = balanced.FACTS["keys"]["K1"]
    theirs = {name: weight(name, shape, f"{name.rpartition('.')[0]}.bias" in shapes) for name, shape in shapes.items()}
    under = "arbex.self_attn1."
    theirs = {name.removeprefix(under): t for name, t in theirs.items() if name.startswith(under)}
    theirs["anchors"] = weight("arbex.anchors1.anchors", shapes["arbex.anchors1.anchors"], False)
    module = nn_.ReliabilityBalancing(768, 8, num_anchors=1, delta=balanced.FACTS["delta"], margin=None)
    return module, theirs, balanced.published(1)[1]


SINGLE = (
    of_moh,
    of_gaam,
    of_rcmha,
    of_halo,
    of_masked_halo,
    of_axial,
    of_acmil,
    of_group_pose,
    of_arbex,
)


@pytest.mark.parametrize("make", SINGLE, ids=lambda make: make.__name__.removeprefix("of_"))
def test_a_mechanism_opens_the_weights_of_its_own_code(make):
    module, theirs, expected = make()
    assert load_mechanism(module, {f"a.{name}": t for name, t in theirs.items()} | {"b": torch.ones(2)}, "a.") is module
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name].double(), tensor.double(), atol=1e-6, rtol=1e-6, msg=name)
    with pytest.raises(CheckpointError, match="1 without a place: .*surplus"):
        load_mechanism(module, theirs | {"surplus": torch.zeros(3)})
    missing = dict(list(theirs.items())[1:])
    with pytest.raises(CheckpointError, match="missing|of another shape"):
        load_mechanism(module, missing)


def test_a_mechanism_without_a_known_layout():
    with pytest.raises(CheckpointError, match="are known of CosineMoH, MoH, .*, not of SelfAttention$"):
        load_mechanism(SelfAttention(8, 2), {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no tensor's name begins with 'b.'"):
        load_mechanism(MoH(8, 4), {"a": torch.zeros(1)}, "b.")
