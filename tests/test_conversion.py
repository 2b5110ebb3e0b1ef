"""Original checkpoints of DiT, SiT and LDM against forward passes written out by hand."""
import json
import math

import pytest
import torch
from diffusers import AutoencoderKL
from torch.nn.functional import (
    conv2d,
    gelu,
    group_norm,
    interpolate,
    layer_norm,
    linear,
    pad,
    silu,
)

from manifoldgd.backbones.backbone import tiny_vae
from manifoldgd.backbones.conversion import convert, convert_dit, convert_ldm, names_of
from manifoldgd.backbones.families import open_backbone
from manifoldgd.backbones.latents import decode, encode
from manifoldgd.backbones.ldm import LDM, save_ldm, tiny_ldm
from manifoldgd.errors import InputError
from manifoldgd.sampling.pipeline import ManifoldGDPipeline

WIDTH, DEPTH, PATCH, CHANNELS, SIDE, CLASSES, N_HEADS = 24, 2, 2, 4, 8, 3, 2


def draw(generator, *shape):
    "Random numbers, small enough for a network."
    return torch.randn(shape, generator=generator) / math.sqrt(max(shape[1:] or (4,)))


def layer(state, generator, name, *shape):
    "A weight and its bias."
    state[f"{name}.weight"] = draw(generator, *shape)
    state[f"{name}.bias"] = draw(generator, shape[0])


# DiT and SiT (Peebles and Xie, 2023; Ma et al., 2024)


def positions():
    "Sines and cosines: one half of the numbers for the column of a patch, one for its row."
    side, quarter = SIDE // PATCH, WIDTH // 4
    frequencies = 1 / 10_000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    rows = []
    for row in range(side):
        for column in range(side):
            parts = []
            for place in (column, row):
                parts += [(place * frequencies).sin(), (place * frequencies).cos()]
            rows.append(torch.cat(parts))
    return torch.stack(rows).float()[None]


def original_dit(out_channels=2 * CHANNELS):
    "A checkpoint of random numbers under its authors' names."
    generator, state = torch.Generator().manual_seed(0), {}
    layer(state, generator, "x_embedder.proj", WIDTH, CHANNELS, PATCH, PATCH)
    layer(state, generator, "t_embedder.mlp.0", WIDTH, 256)
    layer(state, generator, "t_embedder.mlp.2", WIDTH, WIDTH)
    state["y_embedder.embedding_table.weight"] = draw(generator, CLASSES + 1, WIDTH)
    state["pos_embed"] = positions()
    for i in range(DEPTH):
        layer(state, generator, f"blocks.{i}.attn.qkv", 3 * WIDTH, WIDTH)
        layer(state, generator, f"blocks.{i}.attn.proj", WIDTH, WIDTH)
        layer(state, generator, f"blocks.{i}.mlp.fc1", 4 * WIDTH, WIDTH)
        layer(state, generator, f"blocks.{i}.mlp.fc2", WIDTH, 4 * WIDTH)
        layer(state, generator, f"blocks.{i}.adaLN_modulation.1", 6 * WIDTH, WIDTH)
    layer(state, generator, "final_layer.linear", PATCH ** 2 * out_channels, WIDTH)
    layer(state, generator, "final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)
    return state


def waves(t, half=128):
    "Cosines, then sines, of a time at frequencies from 1 down to nearly 1/10,000."
    frequencies = 10_000 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = t.double()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1).float()


def apply(state, name, x):
    "A linear layer."
    return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def adapted(x, shift, scale):
    "A layer norm whose shift and scale come from the condition."
    return layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def attended(state, name, x):
    "Self-attention of two heads."
    n, tokens, _ = x.shape
    three = apply(state, f"{name}.qkv", x).reshape(n, tokens, 3, N_HEADS, -1)
    q, k, v = (part.transpose(1, 2) for part in three.unbind(2))
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
    return apply(state, f"{name}.proj", (weights @ v).transpose(1, 2).reshape(n, tokens, -1))


def dit_by_hand(state, x, t, labels):
    "The network of the paper."
    weight, bias = state["x_embedder.proj.weight"], state["x_embedder.proj.bias"]
    tokens = conv2d(x, weight, bias, stride=PATCH).flatten(2).transpose(1, 2) + state["pos_embed"]
    time = apply(state, "t_embedder.mlp.2", silu(apply(state, "t_embedder.mlp.0", waves(t))))
    condition = silu(time + state["y_embedder.embedding_table.weight"][labels])
    for i in range(DEPTH):
        block = f"blocks.{i}"
        parts = apply(state, f"{block}.adaLN_modulation.1", condition).chunk(6, 1)
        shift, scale, gate, shift2, scale2, gate2 = parts
        told = attended(state, f"{block}.attn", adapted(tokens, shift, scale))
        tokens = tokens + gate[:, None] * told
        hidden = apply(state, f"{block}.mlp.fc1", adapted(tokens, shift2, scale2))
        tokens = tokens + gate2[:, None] * apply(
            state, f"{block}.mlp.fc2", gelu(hidden, approximate="tanh"))
    shift, scale = apply(state, "final_layer.adaLN_modulation.1", condition).chunk(2, 1)
    patches = apply(state, "final_layer.linear", adapted(tokens, shift, scale))
    side = SIDE // PATCH
    grid = patches.reshape(len(x), side, side, PATCH, PATCH, -1)  # row, column, of the patch
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, SIDE, SIDE)


def noisy():
    "Two noisy latents."
    return torch.randn(2, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("t", [999., 250., 0.])
@pytest.mark.parametrize("out_channels", [CHANNELS, 2 * CHANNELS])
def test_a_dit_computes_what_it_did(out_channels, t):
    state, labels = original_dit(out_channels), torch.tensor([1, CLASSES])
    dit, scheduler = convert_dit(state, "dit", N_HEADS)
    times = torch.full((2,), t)
    with torch.no_grad():
        found = dit(noisy(), timestep=times, class_labels=labels).sample
    expected = dit_by_hand(state, noisy(), times, labels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    variance = scheduler.config.variance_type
    assert variance == ("fixed_small" if out_channels == CHANNELS else "learned_range")


@pytest.mark.parametrize("t", [1000., 620., 20.])
def test_a_sit_is_told_the_time_the_other_way_around(t):
    "The original is told 1 - t/1000, and its velocity points to the data."
    state, labels = original_dit(), torch.tensor([1, CLASSES])
    dit, _ = convert_dit(state, "sit", N_HEADS)
    with torch.no_grad():
        found = dit(noisy(), timestep=torch.full((2,), t), class_labels=labels).sample
    velocity = dit_by_hand(state, noisy(), torch.full((2,), 1 - t / 1000), labels)[:, :CHANNELS]
    torch.testing.assert_close(found[:, :CHANNELS], -velocity, rtol=1e-4, atol=1e-4)


def test_what_a_converted_sit_samples():
    "Euler's method from noise to data, by the original's own time and velocity."
    state = original_dit()
    dit, scheduler = convert_dit(state, "sit", N_HEADS)
    pipe = ManifoldGDPipeline(tiny_vae(3), dit, scheduler, names_of(CLASSES))
    pipe.set_progress_bar_config(disable=True)
    labels, null, x = torch.tensor([0, 2]), torch.full((2,), CLASSES), noisy()
    found = pipe([0, 2], latents=x, guidance_scale=2., num_inference_steps=5,
                 output_type="latent").images
    for i in range(5):
        tau = torch.full((2,), i / 5)
        told, nothing = (dit_by_hand(state, x, tau, y)[:, :CHANNELS] for y in (labels, null))
        x = x + .2 * (nothing + 2. * (told - nothing))
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


@pytest.fixture
def files(tmp_path):
    "Checkpoints and an autoencoder."
    torch.save(original_dit(), tmp_path / "DiT.pt")
    torch.save({"ema": original_dit(), "model": {}}, tmp_path / "SiT.pt")
    tiny_vae(3).save_pretrained(tmp_path / "vae")
    return tmp_path


@pytest.mark.parametrize("family, file, prediction", [
    ("dit", "DiT.pt", "noise"),
    ("sit", "SiT.pt", "velocity"),
])
def test_a_folder_opens_as_the_network_that_was_converted(files, family, file, prediction):
    out = convert(files / file, family, files / family, str(files / "vae"), heads=N_HEADS)
    backbone = open_backbone(str(out))
    assert backbone.prediction.name == prediction
    assert backbone.null_label == CLASSES
    assert isinstance(backbone.vae, AutoencoderKL)
    terms = {"dit": "CC BY-NC 4.0", "sit": "MIT"}[family]
    assert backbone.licence.startswith(f"by its README: {terms}")
    dit, _ = convert_dit(original_dit(), family, N_HEADS)
    pipe = ManifoldGDPipeline.from_pretrained(out)
    pipe.save_pretrained(files / "again")
    again = open_backbone(str(files / "again"))
    told = {"timestep": torch.full((2,), 620.), "class_labels": torch.tensor([1, 2])}
    with torch.no_grad():
        outputs = [network(noisy(), **told).sample
                   for network in (dit, backbone.transformer, pipe.transformer, again.transformer)]
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0])
    assert again.fingerprint() == backbone.fingerprint()


def test_how_the_time_is_embedded_is_part_of_a_backbone(files):
    out = convert(files / "DiT.pt", "dit", files / "dit", str(files / "vae"), heads=N_HEADS)
    before = open_backbone(str(out)).fingerprint()
    index = json.loads((out / "model_index.json").read_text())
    for settings in ({"scale": .5}, {"downscale_freq_shift": 1, "scale": 1}):
        (out / "model_index.json").write_text(json.dumps(index | {"time_proj": settings}))
        assert open_backbone(str(out)).fingerprint() != before
    for settings in ({"scale": "large"}, {"speed": 1}, [1]):
        (out / "model_index.json").write_text(json.dumps(index | {"time_proj": settings}))
        with pytest.raises(InputError, match="`time_proj` to hold numbers for"):
            open_backbone(str(out))


def moved(state):
    "Positions that are not those of sines and cosines."
    return state | {"pos_embed": state["pos_embed"].flip(1)}


def more(state):
    "A tensor that nobody knows."
    return state | {"adapter.weight": torch.ones(2)}


def fewer(state):
    "A checkpoint without its last layer."
    return {name: value for name, value in state.items() if not name.startswith("final")}


@pytest.mark.parametrize("change, settings, words", [
    (dict, {}, "`heads` to be given for a network of width 24"),
    (moved, {"heads": 2}, "positions in sines and cosines"),
    (more, {"heads": 2}, "has others too: adapter.weight"),
    (fewer, {"heads": 2}, "to be a checkpoint of the original dit"),
    (dict, {"heads": 2, "vae": None}, "`vae` to name the autoencoder"),
    (dict, {"heads": 2, "family": "dot"}, "`family` to be one of dit, sit, ldm"),
    (dict, {"family": "ldm"}, "to be a checkpoint of the original ldm"),
])
def test_what_cannot_be_converted_is_one_line(files, change, settings, words):
    torch.save(change(original_dit()), files / "changed.pt")
    rest = {"family": "dit", "vae": str(files / "vae")} | settings
    with pytest.raises(InputError, match=words) as error:
        convert(files / "changed.pt", out=files / "out", **rest)
    assert "\n" not in str(error.value)


class Trap:
    "A pickle that would write a file if it were run."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_in_a_checkpoint_is_run(files):
    torch.save({"model": Trap(files / "sprung")}, files / "trap.pt")
    with pytest.raises(InputError, match="a checkpoint of tensors alone"):
        convert(files / "trap.pt", "dit", files / "out", str(files / "vae"))
    assert not (files / "sprung").exists()


def test_a_folder_that_holds_something_is_left_alone(files):
    with pytest.raises(InputError, match="`out` to be a new folder"):
        convert(files / "DiT.pt", "dit", files, str(files / "vae"), heads=N_HEADS)


# LDM (Rombach et al., 2022): UNet with one head, and an autoencoder with a codebook

CONTEXT, BASE, ENTRIES = 16, 32, 20


def conv(state, name, x, **rest):
    "A convolution that keeps the size."
    weight = state[f"{name}.weight"]
    padding = rest.pop("padding", weight.shape[-1] // 2)
    return conv2d(x, weight, state[f"{name}.bias"], padding=padding, **rest)


def norm(state, name, x, eps):
    "A group norm of 32 groups."
    return group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps)


def residual(state, name, x, time):
    "A residual block of the UNet."
    h = conv(state, f"{name}.in_layers.2", silu(norm(state, f"{name}.in_layers.0", x, 1e-5)))
    h = h + apply(state, f"{name}.emb_layers.1", silu(time))[:, :, None, None]
    h = conv(state, f"{name}.out_layers.3", silu(norm(state, f"{name}.out_layers.0", h, 1e-5)))
    skip = f"{name}.skip_connection"
    return h + (conv(state, skip, x) if f"{skip}.weight" in state else x)


def one_head(state, name, x, context):
    "Attention of one head: all channels together."
    q = x @ state[f"{name}.to_q.weight"].T
    k, v = (context @ state[f"{name}.to_{letter}.weight"].T for letter in "kv")
    weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
    return apply(state, f"{name}.to_out.0", weights @ v)


def spatial(state, name, x, context):
    "A transformer block over the places of an image."
    n, c, h, w = x.shape
    tokens = conv(state, f"{name}.proj_in", norm(state, f"{name}.norm", x, 1e-6))
    tokens = tokens.flatten(2).transpose(1, 2)
    block = f"{name}.transformer_blocks.0"

    def normed(i):
        weight, bias = state[f"{block}.norm{i}.weight"], state[f"{block}.norm{i}.bias"]
        return layer_norm(tokens, (c,), weight, bias)

    told = normed(1)
    tokens = tokens + one_head(state, f"{block}.attn1", told, told)
    tokens = tokens + one_head(state, f"{block}.attn2", normed(2), context)
    hidden, gate = apply(state, f"{block}.ff.net.0.proj", normed(3)).chunk(2, -1)
    tokens = tokens + apply(state, f"{block}.ff.net.2", hidden * gelu(gate))
    grid = tokens.transpose(1, 2).reshape(n, c, h, w)
    return conv(state, f"{name}.proj_out", grid) + x


def unet_by_hand(state, x, t, context):
    "Two levels, one residual block each, attention in the second."
    first = apply(state, "time_embed.0", waves(t, BASE // 2))
    time = apply(state, "time_embed.2", silu(first))
    a = conv(state, "input_blocks.0.0", x)
    b = residual(state, "input_blocks.1.0", a, time)
    c = conv(state, "input_blocks.2.0.op", b, stride=2)
    d = spatial(state, "input_blocks.3.1", residual(state, "input_blocks.3.0", c, time), context)
    h = spatial(state, "middle_block.1", residual(state, "middle_block.0", d, time), context)
    h = residual(state, "middle_block.2", h, time)
    for i, skip in enumerate((d, c, b, a)):
        h = residual(state, f"output_blocks.{i}.0", torch.cat([h, skip], 1), time)
        if i < 2:
            h = spatial(state, f"output_blocks.{i}.1", h, context)
        if i == 1:
            h = conv(state, "output_blocks.1.2.conv", interpolate(h, scale_factor=2.))
    return conv(state, "out.2", silu(norm(state, "out.0", h, 1e-5)))


def random_residual(state, generator, name, into, out):
    "Tensors of a residual block."
    layer(state, generator, f"{name}.in_layers.0", into)
    layer(state, generator, f"{name}.in_layers.2", out, into, 3, 3)
    layer(state, generator, f"{name}.emb_layers.1", out, 4 * BASE)
    layer(state, generator, f"{name}.out_layers.0", out)
    layer(state, generator, f"{name}.out_layers.3", out, out, 3, 3)
    if into != out:
        layer(state, generator, f"{name}.skip_connection", out, into, 1, 1)


def random_spatial(state, generator, name, width):
    "Tensors of a transformer block."
    block = f"{name}.transformer_blocks.0"
    layer(state, generator, f"{name}.norm", width)
    layer(state, generator, f"{name}.proj_in", width, width, 1, 1)
    for i, told in ((1, width), (2, CONTEXT)):
        for letter, source in (("q", width), ("k", told), ("v", told)):
            state[f"{block}.attn{i}.to_{letter}.weight"] = draw(generator, width, source)
        layer(state, generator, f"{block}.attn{i}.to_out.0", width, width)
    layer(state, generator, f"{block}.ff.net.0.proj", 8 * width, width)
    layer(state, generator, f"{block}.ff.net.2", width, 4 * width)
    for i in (1, 2, 3):
        layer(state, generator, f"{block}.norm{i}", width)
    layer(state, generator, f"{name}.proj_out", width, width, 1, 1)


def original_unet(generator):
    "Tensors of a UNet under its authors' names."
    state, wide = {}, 2 * BASE
    layer(state, generator, "time_embed.0", 4 * BASE, BASE)
    layer(state, generator, "time_embed.2", 4 * BASE, 4 * BASE)
    layer(state, generator, "input_blocks.0.0", BASE, 3, 3, 3)
    random_residual(state, generator, "input_blocks.1.0", BASE, BASE)
    layer(state, generator, "input_blocks.2.0.op", BASE, BASE, 3, 3)
    random_residual(state, generator, "input_blocks.3.0", BASE, wide)
    random_spatial(state, generator, "input_blocks.3.1", wide)
    random_residual(state, generator, "middle_block.0", wide, wide)
    random_spatial(state, generator, "middle_block.1", wide)
    random_residual(state, generator, "middle_block.2", wide, wide)
    for i, (into, out) in enumerate(((2 * wide, wide), (3 * BASE, wide), (3 * BASE, BASE),
                                     (wide, BASE))):
        random_residual(state, generator, f"output_blocks.{i}.0", into, out)
        if i < 2:
            random_spatial(state, generator, f"output_blocks.{i}.1", wide)
    layer(state, generator, "output_blocks.1.2.conv", wide, wide, 3, 3)
    layer(state, generator, "out.0", BASE)
    layer(state, generator, "out.2", 3, BASE, 3, 3)
    return state


def random_vq_block(state, generator, name, into, out):
    "Tensors of a residual block of the autoencoder."
    layer(state, generator, f"{name}.norm1", into)
    layer(state, generator, f"{name}.conv1", out, into, 3, 3)
    layer(state, generator, f"{name}.norm2", out)
    layer(state, generator, f"{name}.conv2", out, out, 3, 3)
    if into != out:
        layer(state, generator, f"{name}.nin_shortcut", out, into, 1, 1)


def original_vq(generator):
    "Tensors of an autoencoder under its authors' names: two levels, one block each."
    state, wide = {}, 2 * BASE
    layer(state, generator, "encoder.conv_in", BASE, 3, 3, 3)
    random_vq_block(state, generator, "encoder.down.0.block.0", BASE, BASE)
    layer(state, generator, "encoder.down.0.downsample.conv", BASE, BASE, 3, 3)
    random_vq_block(state, generator, "encoder.down.1.block.0", BASE, wide)
    for side in ("encoder", "decoder"):
        for i in (1, 2):
            random_vq_block(state, generator, f"{side}.mid.block_{i}", wide, wide)
        layer(state, generator, f"{side}.mid.attn_1.norm", wide)
        for part in ("q", "k", "v", "proj_out"):
            layer(state, generator, f"{side}.mid.attn_1.{part}", wide, wide, 1, 1)
    layer(state, generator, "encoder.norm_out", wide)
    layer(state, generator, "encoder.conv_out", 3, wide, 3, 3)
    layer(state, generator, "quant_conv", 3, 3, 1, 1)
    state["quantize.embedding.weight"] = draw(generator, ENTRIES, 3)
    layer(state, generator, "post_quant_conv", 3, 3, 1, 1)
    layer(state, generator, "decoder.conv_in", wide, 3, 3, 3)
    for i in (0, 1):
        random_vq_block(state, generator, f"decoder.up.1.block.{i}", wide, wide)
        random_vq_block(state, generator, f"decoder.up.0.block.{i}", BASE if i else wide, BASE)
    layer(state, generator, "decoder.up.1.upsample.conv", wide, wide, 3, 3)
    layer(state, generator, "decoder.norm_out", BASE)
    layer(state, generator, "decoder.conv_out", 3, BASE, 3, 3)
    return state


def vq_block(state, name, x):
    "A residual block of the autoencoder."
    h = conv(state, f"{name}.conv1", silu(norm(state, f"{name}.norm1", x, 1e-6)))
    h = conv(state, f"{name}.conv2", silu(norm(state, f"{name}.norm2", h, 1e-6)))
    skip = f"{name}.nin_shortcut"
    return h + (conv(state, skip, x) if f"{skip}.weight" in state else x)


def vq_middle(state, side, x):
    "Two residual blocks, and attention between all places."
    x = vq_block(state, f"{side}.mid.block_1", x)
    name, told = f"{side}.mid.attn_1", norm(state, f"{side}.mid.attn_1.norm", x, 1e-6)
    q, k, v = (conv(state, f"{name}.{part}", told).flatten(2).transpose(1, 2) for part in "qkv")
    weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
    x = x + conv(state, f"{name}.proj_out", (weights @ v).transpose(1, 2).reshape(x.shape))
    return vq_block(state, f"{side}.mid.block_2", x)


def encode_by_hand(state, images):
    "Latents before the codebook."
    h = vq_block(state, "encoder.down.0.block.0", conv(state, "encoder.conv_in", images))
    h = conv(state, "encoder.down.0.downsample.conv", pad(h, (0, 1, 0, 1)), stride=2, padding=0)
    h = vq_middle(state, "encoder", vq_block(state, "encoder.down.1.block.0", h))
    h = conv(state, "encoder.conv_out", silu(norm(state, "encoder.norm_out", h, 1e-6)))
    return conv(state, "quant_conv", h)


def decode_by_hand(state, latents):
    "Images, from the entries of the codebook that are nearest."
    book, vectors = state["quantize.embedding.weight"], latents.permute(0, 2, 3, 1)
    nearest = (vectors[..., None, :] - book).square().sum(-1).argmin(-1)
    h = conv(state, "post_quant_conv", book[nearest].permute(0, 3, 1, 2))
    h = vq_middle(state, "decoder", conv(state, "decoder.conv_in", h))
    for i in (0, 1):
        h = vq_block(state, f"decoder.up.1.block.{i}", h)
    h = conv(state, "decoder.up.1.upsample.conv", interpolate(h, scale_factor=2.))
    for i in (0, 1):
        h = vq_block(state, f"decoder.up.0.block.{i}", h)
    return conv(state, "decoder.conv_out", silu(norm(state, "decoder.norm_out", h, 1e-6)))


@pytest.fixture(scope="module")
def original_ldm():
    "The parts of an LDM under their authors' names."
    generator = torch.Generator().manual_seed(3)
    unet, vq = original_unet(generator), original_vq(generator)
    return unet, vq, draw(generator, CLASSES + 1, CONTEXT)


def checkpoint(parts, averaged=None):
    "The file of an LDM; with averages, the UNet's own numbers are others."
    unet, vq, table = parts
    own = {name: value + 1 if averaged else value for name, value in unet.items()}
    state = {f"model.diffusion_model.{name}": value for name, value in own.items()}
    state |= {f"first_stage_model.{name}": value for name, value in vq.items()}
    state |= {"first_stage_model.loss.discriminator.weight": torch.ones(2),
              "cond_stage_model.embedding.weight": table, "betas": torch.ones(1000)}
    if averaged:
        state |= {"model_ema.diffusion_model" + name.replace(".", ""): value
                  for name, value in unet.items()}
    return {"state_dict": state, "global_step": 7}


@pytest.mark.parametrize("averaged", [False, True])
def test_an_ldm_computes_what_it_did(original_ldm, averaged):
    unet, vq, table = original_ldm
    ldm = convert_ldm(checkpoint(original_ldm, averaged)["state_dict"], size=8)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    labels = [1, CLASSES]
    told = ldm.condition(labels)
    with torch.no_grad():
        for t in (999, 250, 0):
            found, _ = ldm.predict(x, torch.tensor(t), told)
            context = table[labels][:, None]
            expected = unet_by_hand(unet, x, torch.full((2,), t), context)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    latents = encode_by_hand(vq, images)
    torch.testing.assert_close(encode(ldm.vae, images), latents, rtol=1e-3, atol=1e-3)
    pixels = decode_by_hand(vq, latents).clamp(-1, 1)
    torch.testing.assert_close(decode(ldm.vae, latents), pixels, rtol=1e-3, atol=1e-3)
    assert torch.equal(ldm.unconditional(1)["states"][0, 0], table[CLASSES])


def test_a_converted_ldm_opens(original_ldm, tmp_path):
    torch.save(checkpoint(original_ldm), tmp_path / "model.ckpt")
    out = convert(tmp_path / "model.ckpt", "ldm", tmp_path / "ldm", size=8)
    opened = open_backbone(str(out))
    assert isinstance(opened, LDM)
    made = convert_ldm(checkpoint(original_ldm)["state_dict"], size=8)
    assert opened.fingerprint() == made.fingerprint()
    assert opened.licence.startswith("by its README: unknown for the original weights")
    with pytest.raises(InputError, match="reads no prompt"):
        open_backbone(str(out), "a {name}")


def edited(part, **changes):
    "A change of a part's configuration."
    def change(folder):
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return change


@pytest.mark.parametrize("change, words", [
    (edited("vae", _class_name="AutoencoderKL"), "to be of the class VQModel, but got Auto"),
    (edited("unet", in_channels=4), "take latents of 3 channels, as its VAE makes them"),
    (edited("class_embedder", width=8), "to attend to tokens of 8 numbers"),
    (edited("class_embedder", n_classes=9), "to name the labels 0 to 8"),
    (edited("vae", scaling_factor=0), "`scaling_factor` of the VAE"),
    (lambda folder: (folder / "unet" / "config.json").unlink(), "could not be loaded"),
])
def test_a_damaged_ldm_is_one_line(tmp_path, change, words):
    save_ldm(tiny_ldm(), tmp_path / "ldm")
    change(tmp_path / "ldm")
    with pytest.raises(InputError, match=words) as error:
        open_backbone(str(tmp_path / "ldm"))
    assert "\n" not in str(error.value)
