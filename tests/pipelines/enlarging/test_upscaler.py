"""Upscalers from files: every layout gives the network of the papers, tiles join, and other files are named."""

from __future__ import annotations

import importlib.util
import re
from hashlib import sha256

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import conv2d, interpolate, leaky_relu, pad, pixel_shuffle, pixel_unshuffle

from pipelines.enlarging import upscaler as module
from pipelines.enlarging.networks import Compact, RRDBNet
from pipelines.enlarging.upscaler import Upscaler
from pipelines.errors import Cancelled, ConceptError, ModelError, RequestError, StudioError
from pipelines.events import Note, StepDone, ignore
from pipelines.generation import generate
from pipelines.request.request import Request
from tests import tiny


def filled(network, scale=0.2):
    chance = torch.Generator().manual_seed(0)
    for one in network.parameters():
        one.requires_grad_(False).copy_(scale * torch.randn(one.shape, generator=chance))
    return network


def of_the_paper(x, weights, blocks, doublings, folded):
    """ESRGAN's generator written down as its figures have it, without modules."""
    height, width = x.shape[-2:]

    def conv(name, value):
        return conv2d(value, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    if folded > 1:
        x = pixel_unshuffle(pad(x, (0, -width % folded, 0, -height % folded), "reflect"), folded)
    first = inner = conv("conv_first", x)
    for block in range(blocks):
        begin = inner
        for dense in (1, 2, 3):
            seen = [inner]
            for number in (1, 2, 3, 4):
                seen.append(leaky_relu(conv(f"body.{block}.rdb{dense}.conv{number}", torch.cat(seen, 1)), 0.2))
            inner = inner + 0.2 * conv(f"body.{block}.rdb{dense}.conv5", torch.cat(seen, 1))
        inner = begin + 0.2 * inner
    x = first + conv("conv_body", inner)
    for number in range(1, doublings + 1):
        x = leaky_relu(conv(f"conv_up{number}", interpolate(x, scale_factor=2)), 0.2)
    x = conv("conv_last", leaky_relu(conv("conv_hr", x), 0.2))
    return x[..., : height * 2**doublings // folded, : width * 2**doublings // folded]


def second(name):
    """The name of a tensor in the layout of BSRGAN."""
    for new, old in (
        ("body.", "RRDB_trunk."),
        ("conv_body", "trunk_conv"),
        ("conv_up", "upconv"),
        ("conv_hr", "HRconv"),
    ):
        name = old + name.removeprefix(new) if name.startswith(new) else name
    return name.replace(".rdb", ".RDB")


def original(name, blocks, doublings):
    """The name of a tensor in the first layout of ESRGAN, whose layers have numbers."""
    layer, _, kind = name.rpartition(".")
    if found := re.fullmatch(r"body\.(\d+)\.rdb(\d)\.conv(\d)", layer):
        return f"model.1.sub.{found[1]}.RDB{found[2]}.conv{found[3]}.0.{kind}"
    if layer.startswith("conv_up"):
        return f"model.{3 * int(layer[-1])}.{kind}"
    places = {"conv_first": "0", "conv_body": f"1.sub.{blocks}"}
    places |= {"conv_hr": str(3 * doublings + 2), "conv_last": str(3 * doublings + 4)}
    return f"model.{places[layer]}.{kind}"


def written(path, tensors):
    """Write weights as the name of the file asks: alone, within a dictionary, or as torch did before 1.6."""
    if path.suffix == ".safetensors":
        save_file({name: one.contiguous() for name, one in tensors.items()}, path)
    else:
        held = {"params": {name: 0 * one for name, one in tensors.items()}, "params_ema": tensors}
        kept = held if "within" in path.name else {f"module.{name}": one for name, one in tensors.items()}
        torch.save(kept, path, _use_new_zipfile_serialization="old" not in path.name)
    return path


@pytest.mark.parametrize("file", ["x.safetensors", "x.pth", "old.pth", "within.pt", "old-within.pth"])
@pytest.mark.parametrize(("doublings", "folded"), [(2, 1), (1, 1), (0, 1), (2, 2), (2, 4)])
def test_every_layout_is_the_network_of_the_paper(tmp_path, doublings, folded, file):
    network = filled(RRDBNet(8, 4, 2, doublings, folded))
    weights = network.state_dict()
    x = torch.rand(1, 3, 11, 14, generator=torch.Generator().manual_seed(1))
    expected = of_the_paper(x, weights, 2, doublings, folded)
    assert expected.std() > 0.01
    layouts = (weights, {second(name): one for name, one in weights.items()},
               {original(name, 2, doublings): one for name, one in weights.items()})  # fmt: skip
    assert len({frozenset(one) for one in layouts}) == 3
    for layout in layouts:
        read = Upscaler.read(written(tmp_path / file, layout))
        assert read.scale == 2**doublings // folded
        assert torch.allclose(read.network(x), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_the_compact_network_is_read(tmp_path, scale):
    network = filled(Compact(6, 2, scale))
    weights = network.state_dict()
    x = inner = torch.rand(1, 3, 9, 10, generator=torch.Generator().manual_seed(1))
    for place in (0, 2, 4, 6):
        inner = conv2d(inner, weights[f"body.{place}.weight"], weights[f"body.{place}.bias"], padding=1)
        if place < 6:
            inner = torch.where(inner > 0, inner, weights[f"body.{place + 1}.weight"][:, None, None] * inner)
    expected = pixel_shuffle(inner, scale) + x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    read = Upscaler.read(written(tmp_path / "within.pth", weights))
    assert read.scale == scale and torch.allclose(read.network(x), expected, atol=1e-5)


# -- tiles --------------------------------------------------------------------------------------------------------


def doubling(path, scale=2):
    """Write a network that repeats each pixel."""
    return written(path, filled(Compact(4, 1, scale), 0).state_dict())


def test_tiles_are_joined_told_and_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SIDE", 16)
    read = Upscaler.read(doubling(tmp_path / "x.pth"))
    pictures = 2 * torch.rand(2, 3, 30, 20, generator=torch.Generator().manual_seed(0)) - 1
    told = []
    large = read.enlarged(pictures, (80, 120), told.append, lambda: False)
    assert torch.allclose(large, pictures.repeat_interleave(4, 2).repeat_interleave(4, 3), atol=1e-5)
    per_picture = [len(run) for run in read.tiles((20, 30), (80, 120))]
    assert per_picture == [4, 15]  # 20 x 30, then 40 x 60
    assert told == [StepDone(i, 38) for i in range(1, 39)]
    assert read.enlarged(pictures, (30, 45), ignore, lambda: False).shape == (2, 3, 45, 30)  # of twice its size
    with pytest.raises(Cancelled, match="after tile 0 of 8"):
        read.enlarged(pictures, (40, 60), ignore, lambda: True)
    cleaning = Upscaler.read(doubling(tmp_path / "1x.pth", 1))
    assert [len(run) for run in cleaning.tiles((16, 16), (64, 64))] == [1]  # runs once, whatever the size


# -- requests -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def drawn(base, **enlarge):
    told = []
    asked = Request.read({"prompt": "a cat", "steps": 4, "count": 2, "scheduler": "ddim", "enlarge": enlarge})
    return generate(base, asked, on_event=told.append), told


def test_a_request_is_enlarged_by_its_upscaler_and_drawn_again(base, tmp_path):
    path = doubling(tmp_path / "2x.pth")
    plain, _ = drawn(base)
    side = plain.pictures[0].width
    result, told = drawn(base, factor=2, strength=0, upscaler=str(path))
    nearest = [one.resize((2 * side, 2 * side), Image.Resampling.NEAREST).tobytes() for one in plain.pictures]
    assert [one.tobytes() for one in result.pictures] == nearest
    assert [(one.step, one.steps) for one in told if isinstance(one, StepDone)] == [(i, 6) for i in range(1, 7)]
    assert result.request.enlarge.digests == (sha256(path.read_bytes()).hexdigest(),)
    again = generate(base, result.request)
    assert [one.tobytes() for one in again.pictures] == nearest
    redrawn, told = drawn(base, factor=2, strength=0.5, upscaler=str(path))
    assert redrawn.pictures[0].tobytes() != drawn(base, factor=2, strength=0.5)[0].pictures[0].tobytes()
    assert told[-1] == StepDone(8, 8, {}, told[-1].seconds)
    same, told = drawn(base, upscaler=str(path))  # a factor of 1
    assert [one.tobytes() for one in same.pictures] == [one.tobytes() for one in plain.pictures]
    assert Note("2x.pth has nothing to do: the pictures are to be enlarged 1 time.") in told
    doubling(path, 4)
    with pytest.raises(RequestError, match=r"2x\.pth has changed since"):
        generate(base, result.request)


def test_latents_have_no_upscaler(base):
    with pytest.raises(RequestError, match="enlarges finished pictures, no latents"):
        drawn(base, factor=2, upscaler="x.pth", by="latents")


# -- other files --------------------------------------------------------------------------------------------------

ROWS = torch.zeros(2, 8)
LORA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({LORA: ROWS, LORA.replace("down.", "up."): ROWS.T}, r"a change of weights \(LoRA\), and no up.*--concept"),
        ({"model.diffusion_model.input_blocks.0.0.weight": ROWS}, "a whole checkpoint, and no upscaler.*--base"),
        ({"decoder.conv_in.weight": ROWS}, r"an autoencoder \(VAE\)"),
        ({"emb_params": ROWS}, "an embedding, and no upscaler"),
    ],
)
def test_other_files_are_named(tmp_path, tensors, said):
    for name in ("x.safetensors", "within.pth"):
        with pytest.raises(ModelError, match=f"{name} is {said}"):
            Upscaler.read(written(tmp_path / name, {key: one.contiguous() for key, one in tensors.items()}))


def changed(weights, **others):
    return {name: others.get(name.replace(".", "_"), one) for name, one in weights.items()}


def test_networks_that_only_look_alike_are_not_run(tmp_path):
    there = importlib.util.find_spec("spandrel") is not None
    said = "no upscaler|enlarges no pictures" if there else r"another kind than ESRGAN.*promptstudio\[upscalers\]"
    weights = filled(RRDBNet(8, 4, 1, 1, 1)).state_dict()
    for other in (
        changed(weights, conv_first_weight=torch.zeros(8, 1, 3, 3)),
        changed(weights, conv_hr_weight=torch.zeros(9, 8, 3, 3)),
        weights | {"attention.q.weight": ROWS},
        {"layers.0.residual_group.blocks.0.mlp.fc1.weight": ROWS},
    ):
        with pytest.raises(ModelError, match=said):
            Upscaler.read(written(tmp_path / "x.safetensors", other))


def test_files_that_cannot_be_read_are_one_sentence(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    whole = doubling(tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    old = doubling(tmp_path / "old.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(old[: len(old) - 9])
    (tmp_path / "text.pth").write_text("no network")
    for name, kind, said in (
        ("none.pth", RequestError, "There is no file"),
        ("cat.png", RequestError, "cat.png is no file of an upscaler. Those end in"),
        ("half.safetensors", StudioError, "half.safetensors"),
        ("half.pth", ConceptError, "a tensor has the wrong length"),
        ("text.pth", ConceptError, "text.pth is a pickle that cannot be read"),
    ):
        with pytest.raises(kind, match=said):
            Upscaler.read(tmp_path / name)


def test_files_that_would_fill_the_memory_are_refused(tmp_path):
    weights = filled(Compact(8, 40, 2)).state_dict()
    one = {tensor.shape: tensor for tensor in weights.values()}
    torch.save({name: one[tensor.shape] for name, tensor in weights.items()}, tmp_path / "shared.pth")
    save_file(Compact(1, 0, 40).state_dict(), tmp_path / "huge.safetensors")
    for name, said in (("shared.pth", "its tensors together"), ("huge.safetensors", "enlarges 40 times; 16 is")):
        with pytest.raises(ModelError, match=said):
            Upscaler.read(tmp_path / name)
