"""The pipeline keeps the contract of diffusers' pipelines.

What diffusers asks of each of its own pipelines, asked here of ours: saving and loading, batches,
types of numbers, slicing, callbacks, outputs. A tiny model with random weights, on the CPU.
"""
import inspect
import json
import re

import numpy as np
import pytest
import torch
from diffusers.callbacks import PipelineCallback
from diffusers.utils import logging

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.backbones.latents import DECODED_PIXELS, decode
from manifoldgd.errors import InputError
from manifoldgd.guidance.mode import ModeGuidance
from manifoldgd.sampling.pipeline import ManifoldGDPipeline, classifier_free
from manifoldgd.sampling.schedulers import SCHEDULERS, make_scheduler

TINY = tiny_backbone(learned_variance=True)
NAMES = {0: "cat", 1: "dog, hound", 2: "owl"}
STEPS = 3


def new_pipe(scheduler="ddim", **options):
    "A pipeline with networks of its own."
    own = tiny_backbone(learned_variance=True)
    parts = (own.vae, own.transformer, make_scheduler(scheduler, own))
    pipe = ManifoldGDPipeline(*parts, NAMES)
    pipe.set_progress_bar_config(disable=True, **options)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return new_pipe()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def call(pipe, class_labels=(1,), **settings):
    "What a call gives, as arrays unless told otherwise."
    defaults = {"generator": generator(), "num_inference_steps": STEPS, "output_type": "np"}
    return pipe(class_labels, **defaults | settings)[0]


def assert_close(a, b, largest=1e-5):
    assert a.shape == b.shape
    assert np.abs(np.asarray(a) - np.asarray(b)).max() <= largest


# What a call takes and gives


def test_the_arguments_that_every_pipeline_has():
    parameters = inspect.signature(ManifoldGDPipeline.__call__).parameters
    optional = {name for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert set(parameters) - optional == {"self", "class_labels"}
    assert optional >= {
        "num_inference_steps",
        "num_images_per_prompt",
        "generator",
        "latents",
        "output_type",
        "return_dict",
        "guidance_scale",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
    }


def test_the_output_is_an_object_or_a_tuple(pipe):
    as_object = call(pipe)
    as_tuple = call(pipe, return_dict=False)
    assert_close(as_object, as_tuple, 0)
    assert pipe([0], num_inference_steps=STEPS).images[0].size == (16, 16)


def test_the_output_types_show_one_image(pipe):
    arrays = call(pipe, [1, 2])
    tensors = call(pipe, [1, 2], output_type="pt")
    pictures = call(pipe, [1, 2], output_type="pil")
    assert arrays.shape == (2, 16, 16, 3)
    assert arrays.dtype == np.float32
    assert_close(tensors.permute(0, 2, 3, 1), arrays)
    for picture, array in zip(pictures, arrays):
        assert np.abs(np.asarray(picture) - 255 * array).max() <= .51
    latents = call(pipe, [1, 2], output_type="latent")
    assert_close(decode(pipe.vae, latents) / 2 + .5, tensors)


def test_the_scale_of_classifier_free_guidance_matters(pipe):
    without, weak, strong = [call(pipe, guidance_scale=w) for w in (1., 2., 7.5)]
    assert without.shape == weak.shape == strong.shape
    assert np.abs(strong - without).max() > np.abs(weak - without).max() > 0


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_gives_images(pipe, name, monkeypatch):
    monkeypatch.setattr(pipe, "scheduler", make_scheduler(name, TINY))
    images = call(pipe)
    assert images.shape == (1, 16, 16, 3)
    assert np.isfinite(images).all()


# Labels


@pytest.mark.parametrize("labels", [
    [1, 2, 0],
    ["dog", "owl", "cat"],
    ["hound", 2, "cat"],
    [[1], [2], [0]],
    [[1, 2], [0]],
    [["hound"], [[2, "cat"]]],
    (1, 2, 0),
    np.array([1, 2, 0]),
    torch.tensor([[1], [2], [0]]),
    [torch.tensor(1), np.int64(2), 0],
], ids=str)
def test_labels_may_be_nested_and_named(pipe, labels):
    own = [generator(k) for k in range(3)]
    expected = call(pipe, [1, 2, 0], generator=[generator(k) for k in range(3)])
    assert_close(call(pipe, labels, generator=own), expected)


@pytest.mark.parametrize("label", ["hound", 1, torch.tensor(1), np.int64(1)], ids=repr)
def test_one_label_stands_alone(pipe, label):
    assert_close(call(pipe, label), call(pipe, [1]), 0)


def test_names_are_looked_up(pipe):
    assert pipe.get_label_ids(["hound", "dog", "owl"]) == [1, 1, 2]
    assert pipe.get_label_ids("owl") == [2]
    with pytest.raises(InputError, match="but got 'houd'. Did you mean 'hound'"):
        pipe.get_label_ids(["houd"])


@pytest.mark.parametrize("labels, settings, words", [
    ([], {}, "`class_labels` to name at least one class, but got none"),
    ([[]], {}, "at least one class"),
    (torch.tensor([]), {}, "at least one class"),
    ([1.5], {}, "numbers or names of the model's classes, but got 1.5"),
    ([None], {}, "numbers or names of the model's classes, but got None"),
    ([3], {}, "between 0 and 2, but got \\[3\\]"),
    ([0], {"output_type": "jpg"}, "`output_type` to be one of pil, np, pt, latent, but got 'jpg'"),
    ([0], {"num_images_per_prompt": 0}, "`num_images_per_prompt` to be at least 1, but got 0"),
    ([0], {"latents": torch.zeros(2, 4, 8, 8)}, r"shape \(1, 4, 8, 8\).* got \(2, 4, 8, 8\)"),
    ([0], {"latents": torch.zeros(1, 4, 8, 9)}, r"shape \(1, 4, 8, 8\).* got \(1, 4, 8, 9\)"),
    ([0], {"latents": torch.zeros(4, 8, 8)}, r"but got \(4, 8, 8\)"),
    (
        [0, 1],
        {"latents": torch.zeros(2, 4, 8, 8), "num_images_per_prompt": 2},
        r"shape \(4, 4, 8, 8\)",
    ),
    (
        [0, 1],
        {"generator": [generator(), generator()], "num_images_per_prompt": 2},
        "2 generators for 4 labels",
    ),
    (
        [0],
        {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
        "`callback_on_step_end_tensor_inputs` to be one of latents, but got 'prompt_embeds'",
    ),
])
def test_what_is_refused(pipe, labels, settings, words):
    with pytest.raises(InputError, match=words):
        call(pipe, labels, **settings)


# Batches


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_has_an_image_for_each_label(pipe, count):
    own = [generator(k) for k in range(count)]
    assert len(call(pipe, count * [[1]], generator=own)) == count


def test_an_image_does_not_know_its_batch(pipe):
    "The first of three images is the one that is made alone."
    own = [generator(k) for k in range(3)]
    assert_close(call(pipe, 3 * [[1]], generator=own)[:1], call(pipe, generator=[generator()]))


@pytest.mark.parametrize("labels", [[2], [2, 0]], ids=len)
@pytest.mark.parametrize("per_label", [1, 2])
def test_several_images_of_every_label(pipe, labels, per_label):
    spelled_out = [label for label in labels for _ in range(per_label)]
    seeds = range(len(spelled_out))
    images = call(pipe, labels, num_images_per_prompt=per_label,
                  generator=[generator(k) for k in seeds])
    expected = call(pipe, spelled_out, generator=[generator(k) for k in seeds])
    assert_close(images, expected, 0)


def test_a_guidance_holds_a_prototype_for_each_image(pipe):
    guide = ModeGuidance(torch.ones(4, 4, 8, 8), strength=1e-5)
    assert len(call(pipe, [0, 1], guidance=guide, num_images_per_prompt=2)) == 4
    with pytest.raises(InputError, match="one prototype per sample, but got 4 for 2"):
        call(pipe, [0, 1], guidance=guide)


def test_given_noise_is_used(pipe):
    noise = torch.randn(1, 4, 8, 8, generator=generator())
    assert_close(call(pipe, latents=noise), call(pipe), 0)
    assert not np.array_equal(call(pipe, latents=-noise), call(pipe))


# Saved and loaded


def test_saved_and_loaded(tmp_path, caplog):
    "Each part is loaded, and makes the same image."
    pipe = new_pipe()
    pipe.save_pretrained(tmp_path)
    logger = logging.get_logger("diffusers.pipelines.pipeline_utils")
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    try:
        loaded = ManifoldGDPipeline.from_pretrained(tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(before)
    for name in pipe.components:
        assert name in caplog.text
    assert loaded.names.names == NAMES
    loaded.set_progress_bar_config(disable=True)
    assert_close(call(loaded, "hound"), call(pipe, "hound"))


def test_the_parts_are_listed(pipe):
    assert set(pipe.components) == {"vae", "transformer", "scheduler"}
    again = ManifoldGDPipeline(**pipe.components, id2label=NAMES)
    again.set_progress_bar_config(disable=True)
    assert_close(call(again), call(pipe), 0)


def test_no_part_may_be_missing():
    assert ManifoldGDPipeline._optional_components == []


def test_saved_as_a_variant(tmp_path):
    pipe = new_pipe()
    pipe.save_pretrained(tmp_path, variant="fp16")
    index = json.loads((tmp_path / "model_index.json").read_text())
    for part in ("vae", "transformer"):
        files = [path.name for path in (tmp_path / part).glob("*.safetensors")]
        assert part in index
        assert files == ["diffusion_pytorch_model.fp16.safetensors"]
    loaded = ManifoldGDPipeline.from_pretrained(tmp_path, variant="fp16")
    for part in ("vae", "transformer"):
        found = loaded.components[part].state_dict()
        for name, weight in pipe.components[part].state_dict().items():
            assert torch.equal(found[name], weight)


def test_a_variant_that_is_not_there(tmp_path):
    new_pipe().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="variant=fp16"):
        ManifoldGDPipeline.from_pretrained(tmp_path, variant="fp16")


# Types of numbers, memory, devices


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(pipe, dtype, tmp_path):
    "The images stay what they are, nearly; so they do when they are made by what was saved."
    half = new_pipe().to(dtype)
    assert {half.vae.dtype, half.transformer.dtype} == {dtype}
    images = call(half)
    assert images.dtype == np.float32
    exact = call(pipe)
    assert np.abs(images - exact).mean() < .05 * exact.std()
    half.save_pretrained(tmp_path)
    loaded = ManifoldGDPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    assert {loaded.vae.dtype, loaded.transformer.dtype} == {dtype}
    loaded.set_progress_bar_config(disable=True)
    assert_close(call(loaded), images, 1e-2)  # one rounds tables that the other computes


def test_each_part_may_have_its_type(tmp_path):
    new_pipe().save_pretrained(tmp_path)
    types = {"transformer": torch.bfloat16, "default": torch.float16}
    loaded = ManifoldGDPipeline.from_pretrained(tmp_path, torch_dtype=types)
    assert loaded.transformer.dtype == torch.bfloat16
    assert loaded.vae.dtype == torch.float16


def test_half_precision_starts_from_the_same_noise(pipe, monkeypatch):
    seen = []

    def note(pipe, i, t, given):
        seen.append(given["latents"])

    half = new_pipe().to(torch.bfloat16)
    for one in (pipe, half):
        call(one, callback_on_step_end=note, guidance_scale=1., output_type="latent")
    assert {x.dtype for x in seen} == {torch.float32}
    exact, rounded = seen[0], seen[STEPS]
    assert (rounded - exact).norm() < .01 * exact.norm(), "Expected a step to differ by rounding."


def test_to_the_device_that_it_is_on(pipe):
    moved = pipe.to("cpu")
    assert {moved.vae.device.type, moved.transformer.device.type} == {"cpu"}
    assert np.isfinite(call(moved)).all()


@pytest.mark.parametrize("size", [1, 2])
def test_sliced_attention_changes_nothing(pipe, size):
    sliced = new_pipe()
    sliced.enable_attention_slicing(slice_size=size)
    assert_close(call(sliced), call(pipe), 1e-4)


def test_sliced_and_tiled_decoding():
    "Slices change nothing; tiles keep the size and, roughly, the image."
    pipe = new_pipe()
    latents = torch.randn(3, 4, 32, 32, generator=generator())
    expected = decode(pipe.vae, latents)
    pipe.vae.enable_slicing()
    assert_close(decode(pipe.vae, latents), expected)
    pipe.vae.enable_tiling()
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 16, 32
    tiled = decode(pipe.vae, latents)
    assert tiled.shape == expected.shape
    assert not torch.equal(tiled, expected)
    both = torch.stack([tiled.flatten(), expected.flatten()])
    assert torch.corrcoef(both)[0, 1] > .8


@pytest.mark.parametrize("side, at_once", [(8, 16), (128, 16), (256, 4), (1024, 1)])
def test_large_images_are_decoded_in_smaller_parts(side, at_once, monkeypatch):
    seen = []

    def pretend(part):
        seen.append(len(part))
        image = torch.zeros(len(part), 3, 1, 1)
        return type("Output", (), {"sample": image})

    monkeypatch.setattr(TINY.vae, "decode", pretend)
    assert len(decode(TINY.vae, torch.zeros(1, 4, 1, 1).expand(17, 4, side, side))) == 17
    assert max(seen) == at_once
    assert at_once == 1 or at_once * (2 * side)**2 <= DECODED_PIXELS


def test_offloading_is_prepared(pipe, monkeypatch):
    "Each network has its turn, decoding is on the device of the call, and a call ends with it."
    order = pipe.model_cpu_offload_seq.split("->")
    networks = [name for name, part in pipe.components.items()
                if isinstance(part, torch.nn.Module)]
    assert sorted(order) == sorted(networks)
    assert order == ["transformer", "vae"], "Expected the order in which they are used."
    ended = []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: ended.append(True))
    call(pipe)
    assert ended == [True]
    offloaded = new_pipe()
    offloaded.vae.to("meta")
    assert decode(offloaded.vae, torch.zeros(1, 4, 8, 8), "meta").device.type == "meta"


# Progress and callbacks


def test_the_progress_bar_ends_full_or_says_nothing(capfd):
    shown = new_pipe()
    shown.set_progress_bar_config(disable=False)
    call(shown)
    counts = re.findall(r"(\d+)/(\d+)", capfd.readouterr().err)
    assert counts[-1] == (str(STEPS), str(STEPS))
    shown.set_progress_bar_config(disable=True)
    call(shown)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("names", [["latents"], ManifoldGDPipeline._callback_tensor_inputs, []])
def test_a_callback_is_given_what_it_asks_for(pipe, names):
    seen = []

    def note(own, i, t, given):
        assert own is pipe
        assert list(given) == list(names)
        seen.append((i, int(t)))
        return given

    images = call(pipe, callback_on_step_end=note, callback_on_step_end_tensor_inputs=names)
    assert seen == list(enumerate(pipe.scheduler.timesteps.tolist()))
    assert pipe.num_timesteps == STEPS
    assert_close(images, call(pipe), 0)


def test_latents_that_a_callback_returns_are_used(pipe):
    def zero_at_the_end(pipe, i, t, given):
        if i == pipe.num_timesteps - 1:
            given["latents"] = torch.zeros_like(given["latents"])
        return given

    latents = call(pipe, callback_on_step_end=zero_at_the_end, output_type="latent")
    assert latents.abs().sum() == 0


def test_latents_that_are_replaced_early_go_through_the_rest(pipe):
    "Each step goes on from what the callback returned."
    noise = torch.randn(1, 4, 8, 8, generator=generator(1))
    seen = {}

    def replace(pipe, i, t, given):
        seen[i] = given["latents"]
        return {"latents": noise} if i == 0 else None

    call(pipe, callback_on_step_end=replace)
    model = classifier_free(pipe.transformer, torch.tensor([1]))
    t = pipe.scheduler.timesteps[1]
    with torch.no_grad():
        noise_pred, _ = model(noise, t)
    assert_close(seen[1], pipe.scheduler.step(noise_pred, t, noise).prev_sample)


def test_a_callback_may_change_the_scale(pipe):
    "It holds from the next step on, and the pipeline says what it is."
    def raise_it(pipe, i, t, given):
        pipe._guidance_scale += 1.
        return given

    def switch_off(pipe, i, t, given):
        pipe._guidance_scale = 1.

    call(pipe, guidance_scale=2., callback_on_step_end=raise_it)
    assert pipe.guidance_scale == 2. + pipe.num_timesteps
    calls = []
    hook = pipe.transformer.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    call(pipe, guidance_scale=2., callback_on_step_end=switch_off)
    hook.remove()
    assert calls == [2, 1, 1]
    call(pipe, guidance_scale=3.)
    assert pipe.guidance_scale == 3.


def test_callbacks_of_diffusers(pipe):
    class Halve(PipelineCallback):
        tensor_inputs = ["latents"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            callback_kwargs["latents"] = callback_kwargs["latents"] / 2
            return callback_kwargs

    halve = Halve(cutoff_step_ratio=None, cutoff_step_index=1)
    halved = call(pipe, callback_on_step_end=halve, output_type="latent")
    by_hand = call(
        pipe,
        callback_on_step_end=lambda pipe, i, t, given: {"latents": given["latents"] / 2},
        output_type="latent",
    )
    assert_close(halved, by_hand, 0)
    halve.tensor_inputs = ["prompt_embeds"]
    with pytest.raises(InputError, match="but got 'prompt_embeds'"):
        call(pipe, callback_on_step_end=halve)


@pytest.mark.parametrize("returned, words", [
    (True, "to return a dict of tensors or None, but got bool"),
    (torch.zeros(1, 4, 8, 8), "but got Tensor"),
    ({"latents": torch.zeros(2, 4, 8, 8)}, r"of shape \(1, 4, 8, 8\), but got \(2, 4, 8, 8\)"),
])
def test_what_a_callback_may_not_return(pipe, returned, words):
    with pytest.raises(InputError, match=words):
        call(pipe, callback_on_step_end=lambda *_: returned)


# Classifier-free guidance in an interval of steps


@pytest.mark.parametrize("interval, batches", [
    ({}, [2, 2, 2, 2]),
    ({"cfg_stop": .5}, [2, 2, 1, 1]),
    ({"cfg_start": .25, "cfg_stop": .75}, [1, 2, 2, 1]),
    ({"cfg_start": .5, "cfg_stop": .5}, [1, 1, 1, 1]),
    ({"guidance_scale": 1.}, [1, 1, 1, 1]),
])
def test_classifier_free_guidance_is_skipped_where_it_is_off(pipe, interval, batches):
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    images = call(pipe, num_inference_steps=4, **interval)
    hook.remove()
    assert seen == batches
    if max(batches) == 1:
        assert_close(images, call(pipe, num_inference_steps=4, guidance_scale=1.), 0)


@pytest.mark.parametrize("name", ["ddpm", "unipc"])
def test_the_whole_interval_is_no_interval(pipe, name, monkeypatch):
    "With a learned variance, and with a sampler that looks back."
    monkeypatch.setattr(pipe, "scheduler", make_scheduler(name, TINY))
    whole = call(pipe, cfg_start=0., cfg_stop=1.)
    assert_close(whole, call(pipe), 0)
    half = call(pipe, cfg_stop=.5)
    assert np.isfinite(half).all()
    assert not np.array_equal(half, whole)
