"""Pretraining on bad input, pretraining that is stopped, its time budget and its judgement."""
import dataclasses
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

from manifoldgd.backbones.backbone import hash_networks, load_backbone, tiny_backbone
from manifoldgd.config.commands import PretrainConfig
from manifoldgd.data.sources import load_data
from manifoldgd.errors import InputError
from manifoldgd.pretraining import budget, training
from manifoldgd.pretraining.budget import (
    Timers,
    Timing,
    choose,
    enough_steps,
    levels_for,
    with_augmentation,
    with_defaults,
)
from manifoldgd.pretraining.judge import (
    Quality,
    doubts,
    read_quality,
    sampled_labels,
    split_held_out,
    write_quality,
)
from manifoldgd.pretraining.loop import held_signals, train_steps
from manifoldgd.pretraining.models import dit_loss
from manifoldgd.pretraining.paths import noise_schedule
from manifoldgd.pretraining.training import check_settings, model_card, prepare, pretrain

# A training of four steps makes no good backbone, and is told so every time.
pytestmark = pytest.mark.filterwarnings("ignore:This backbone may be too poor")


def make_squares(folder, n=3):
    "A folder of two classes of colored squares."
    for name, tint in (("reddish", 200), ("bluish", 20)):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (8, 8), (tint, 40 * i, 220 - tint)).save(folder / name / f"{i}.png")


@pytest.fixture
def config(tmp_path):
    "The settings of a minute training on squares."
    make_squares(tmp_path / "data")
    return PretrainConfig(
        data=str(tmp_path / "data"),
        out=str(tmp_path / "model"),
        image_size=8,
        channels=3,
        vae_widths=(8, 16),
        vae_steps=3,
        vae_batch_size=4,
        views=2,
        hidden_size=32,
        num_layers=1,
        dit_steps=4,
        dit_batch_size=8,
        every=2,
        device="cpu",
    )


# Settings


@pytest.mark.parametrize(
    "setting, value, message",
    [
        ("vae_steps", 0, "`vae_steps` to be at least 1, but got 0"),
        ("vae_batch_size", -4, "`vae_batch_size` to be between 1 and 65536, but got -4"),
        ("dit_steps", 0, "`dit_steps` to be at least 1, but got 0"),
        ("dit_batch_size", 0, "`dit_batch_size` to be between 1 and 65536, but got 0"),
        ("num_layers", 0, "`num_layers` to be between 1 and 512, but got 0"),
        ("every", 0, "`every` to be at least 1, but got 0"),
        ("image_size", 0, "`image_size` to be between 1 and 4096, but got 0"),
        ("image_size", 10, "`image_size` to be a multiple of 4, but got 10"),
        ("hidden_size", 0, "`hidden_size` to be between 1 and 8192, but got 0"),
        ("hidden_size", 40, "`hidden_size` to be a multiple of 32, but got 40"),
        ("vae_widths", (), "`vae_widths` to be multiples of 8 from"),
        ("vae_widths", (10, 20), "multiples of 8 from 8 to 4096, but got 10, 20"),
        ("vae_widths", (0, 8), "multiples of 8 from 8 to 4096, but got 0, 8"),
        ("minutes", 0., "`minutes` to be at least 0.001, but got 0.0"),
        ("minutes", -5., "`minutes` to be at least 0.001, but got -5.0"),
        ("views", 0, "`views` to be between 1 and 10000, but got 0"),
        ("held_out", .8, "`held_out` to be between 0 and 0.5, but got 0.8"),
        ("held_out", -.1, "`held_out` to be between 0 and 0.5, but got -0.1"),
        ("channels", 4, "`channels` to be one of 1, 3, but got 4"),
        ("prediction", "x0", "`prediction` to be one of noise, v, velocity, but got 'x0'"),
        ("vae", "nowhere", "\"digits\", a folder in diffusers layout or a hub id"),
        ("vae", "digits", r"`vae_widths` to be \(16, 32, 64\) or left out, as the VAE of digits"),
    ],
)
def test_a_setting_that_cannot_work_is_named_before_anything_is_made(
    config, tmp_path, setting, value, message
):
    wrong = dataclasses.replace(config, **{setting: value})
    with pytest.raises(InputError, match=message):
        pretrain(wrong, progress=False)
    assert not (tmp_path / "model").exists()


def test_one_image_is_not_enough(config):
    data = load_data(config.data)
    data.labels = data.labels[:1]
    with pytest.raises(InputError, match="at least two training images, but got 1"):
        check_settings(config, data)


# What is predicted


SCHEDULERS = {
    "noise": DDPMScheduler,
    "v": DDPMScheduler,
    "velocity": FlowMatchEulerDiscreteScheduler,
}


def test_a_folder_says_what_its_model_predicts(config):
    "Three trainings from one start and on the same latents, that end with other weights."
    prints = set()
    for prediction, scheduler in SCHEDULERS.items():
        out = f"{config.out}-{prediction}"
        changed = dataclasses.replace(config, prediction=prediction, out=out)
        backbone = load_backbone(str(pretrain(changed, progress=False)))
        assert backbone.prediction.name == prediction
        assert isinstance(backbone.scheduler, scheduler)
        card = (Path(out) / "README.md").read_text()
        assert f"{prediction} prediction" in card
        sampler = "FLOW-EULER-50" if prediction == "velocity" else "DDPM-50"
        assert f"samples ({sampler}, guidance scale 4)" in card
        prints.add(hash_networks(backbone.denoiser))
    assert len(prints) == 3


class Oracle(torch.nn.Module):
    "Knows the latents, and says what was wanted of it, by the formulas of the papers."
    device = torch.device("cpu")

    def __init__(self, config, latents, answer):
        super().__init__()
        self.config, self.latents, self.answer = config, latents, answer

    def forward(self, x, timestep, class_labels):
        t = timestep.reshape(-1, 1, 1, 1)
        return SimpleNamespace(sample=self.answer(x, t, self.latents))


def say_noise(x, t, latents):
    "Noise on DDPM's linear schedule, whose abar is multiplied up here."
    betas = torch.linspace(1e-4, .02, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)[t]
    return ((x - abar.sqrt() * latents) / (1 - abar).sqrt()).float()


def say_velocity(x, t, latents):
    "The way from the latent to the sample, in the time that it took."
    return (x - latents) / (t / 1000)


@pytest.mark.parametrize(
    "prediction, answer", [("noise", say_noise), ("velocity", say_velocity)]
)
def test_who_knows_the_answer_makes_no_error(prediction, answer):
    tiny = tiny_backbone()
    latents = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    oracle = Oracle(tiny.transformer.config, latents, answer)
    labels = torch.zeros(64, dtype=torch.long)
    generator = torch.Generator().manual_seed(1)
    schedule = noise_schedule(prediction)
    assert dit_loss(oracle, latents, labels, schedule, generator, prediction) < 1e-4


# A VAE that is reused


@pytest.fixture
def first(config):
    "A backbone that was trained, and the settings that reuse its VAE."
    again = dataclasses.replace(config, vae=config.out, vae_widths=None, out=f"{config.out}-2")
    return load_backbone(str(pretrain(config, progress=False))), again


def test_a_reused_vae_is_not_trained(first, monkeypatch):
    backbone, config = first
    monkeypatch.setattr(training, "train_vae", None)
    second = load_backbone(str(pretrain(config, progress=False)))
    factors = [b.vae.config.scaling_factor for b in (backbone, second)]
    assert factors[0] == pytest.approx(factors[1], rel=1e-5), "Expected the same views."
    assert hash_networks(second.vae) == hash_networks(backbone.vae)
    assert hash_networks(second.transformer) != hash_networks(backbone.transformer)
    assert f"The VAE is that of {config.vae}" in open(f"{config.out}/README.md").read()
    again = load_backbone(str(pretrain(config, progress=False)))
    assert again.fingerprint() == second.fingerprint()


def test_another_vae_is_another_training(first, tmp_path):
    _, config = first
    data = load_data(config.data)
    prepare(tmp_path / "model-2", config, data, "cpu")
    moved = tmp_path / "moved"
    shutil.copytree(config.vae, moved)
    prepare(tmp_path / "model-2", dataclasses.replace(config, vae=str(moved)), data, "cpu")
    other = load_backbone(str(moved)).vae
    other.state_dict()["quant_conv.bias"].add_(1.)
    other.save_pretrained(moved / "vae")
    with pytest.raises(InputError, match="differs in vae. Choose another `--out`"):
        prepare(tmp_path / "model-2", dataclasses.replace(config, vae=str(moved)), data, "cpu")


def test_a_vae_of_other_latents_is_refused(first):
    _, config = first
    folder = Path(config.vae) / "vae"
    vae = AutoencoderKL.from_pretrained(folder)
    wider = AutoencoderKL.from_config(vae.config, latent_channels=16)
    wider.save_pretrained(folder)
    with pytest.raises(InputError, match="`vae` to make latents of 4 channels, .* makes 16"):
        pretrain(config, progress=False)


# The folder


@pytest.fixture
def start(config, tmp_path):
    "Prepare the folder for settings that differ from the fixture's."

    def start(**changes):
        changed = dataclasses.replace(config, **changes)
        return prepare(tmp_path / "model", changed, load_data(changed.data), "cpu")

    return start


def test_what_may_change_on_the_way(start, tmp_path):
    start()
    make_squares(tmp_path / "elsewhere" / "data")
    moved = str(tmp_path / "elsewhere" / "data")
    start(every=7, device="auto", data=moved)


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"num_layers": 2}, "num_layers"),
        ({"seed": 1, "dit_steps": 9}, "seed, dit_steps"),
    ],
)
def test_another_training_in_the_folder_is_refused(start, changes, names):
    start()
    with pytest.raises(InputError, match=f"differs in {names}. Choose another `--out`"):
        start(**changes)


def test_other_images_are_another_training(start, tmp_path):
    start()
    make_squares(tmp_path / "more", n=4)
    with pytest.raises(InputError, match="differs in fingerprint"):
        start(data=str(tmp_path / "more"))


def test_a_folder_with_other_files_is_left_alone(start, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other files. Choose another `--out`"):
        start()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["thesis.txt"]


def test_a_file_is_no_folder(start, tmp_path):
    (tmp_path / "model").write_text("years of work")
    with pytest.raises(InputError, match="to be a folder, but it is a file"):
        start()


# A time budget


def timers(vae, dit, encoding=1e-3):
    "Stand-ins: every step of a network takes as long as is said."
    return Timers(
        vae=lambda config, device, choices: Timing(vae, low=True),
        dit=lambda config, n_classes, device, choices: Timing(dit, low=False),
        encoding=lambda config, device: encoding,
    )


def photos(**given):
    "The settings of a training on photographs under a budget."
    given = {"image_size": 64, "channels": 3, "minutes": 10.} | given
    return with_augmentation(PretrainConfig(data="-", out="-", **given))


def test_a_budget_fills_in_everything_that_is_open():
    chosen, seconds = choose(photos(), 5000, 10, "cpu", timers(.1, .1))
    asked = {"channels", "named", "classes", "image_column", "label_column", "vae"}  # by users
    assert None not in {f: v for f, v in vars(chosen).items() if f not in asked}.values()
    assert chosen.autocast == ("vae",)
    assert chosen.held_out == .05
    assert sum(seconds.values()) <= 600


@pytest.mark.parametrize("seconds_of_a_step", [1e-4, .01, 1., 10.])
def test_the_plan_keeps_within_the_budget_where_one_step_fits(seconds_of_a_step):
    plan = timers(seconds_of_a_step, seconds_of_a_step, seconds_of_a_step / 1000)
    chosen, seconds = choose(photos(), 5000, 10, "cpu", plan)
    assert chosen.vae_steps >= 1 and chosen.dit_steps >= 1 and chosen.views >= 1
    assert sum(seconds.values()) <= 600


def test_a_slow_machine_trains_the_smallest_networks_and_a_fast_one_the_largest():
    slow, _ = choose(photos(), 5000, 10, "cpu", timers(10., 10.))
    fast, _ = choose(photos(), 5000, 10, "cpu", timers(1e-6, 1e-6))
    assert (slow.vae_widths, slow.hidden_size) == ((16, 32, 64), 128)
    assert (fast.vae_widths, fast.hidden_size) == ((128, 256, 512), 512)


def test_what_is_given_is_not_chosen():
    given = {
        "vae_widths": (8, 8),
        "vae_steps": 7,
        "dit_steps": 8,
        "num_layers": 1,
        "views": 3,
        "held_out": 0.,
        "autocast": (),
        "flip": False,
    }
    chosen, _ = choose(photos(**given), 5000, 10, "cpu", timers(1e-6, 1e-6))
    assert {name: getattr(chosen, name) for name in given} == given


def test_more_time_never_means_fewer_weights():
    widths = []
    for minutes in (1., 10., 100., 1000.):
        clock = Timers(
            vae=lambda c, device, choices: Timing(1e-3 * sum(c.vae_widths), low=False),
            dit=lambda c, n, device, choices: Timing(1e-6 * c.hidden_size ** 2, low=False),
            encoding=lambda c, device: 1e-3,
        )
        chosen, _ = choose(photos(minutes=minutes), 5000, 10, "cpu", clock)
        widths.append((chosen.hidden_size, sum(chosen.vae_widths)))
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_a_small_dataset_is_not_learnt_by_heart_however_long_there_is():
    assert enough_steps(1e9, Timing(.1, False), 100, 64, epochs=1000) == 3000


@pytest.mark.parametrize("size", [8, 16, 24, 32, 40, 64, 72, 96, 128, 200, 256, 512])
def test_every_multiple_of_eight_can_be_trained(size):
    "The levels halve the image as often as they can, and the DiT once more."
    assert size % 2 ** levels_for(size) == 0


def test_an_odd_size_is_refused_before_anything_is_timed(config, monkeypatch):
    monkeypatch.setattr(budget, "time_step", None)
    open_config = dataclasses.replace(config, image_size=7, vae_widths=None, minutes=1.)
    with pytest.raises(InputError, match="`image_size` to be a multiple of"):
        pretrain(open_config, progress=False)


def test_color_images_are_mirrored_and_not_turned(tmp_path):
    color = with_augmentation(PretrainConfig(data="-", out="-", channels=3))
    gray = with_augmentation(PretrainConfig(data="-", out="-", channels=1))
    assert (color.flip, color.rotation) == (True, 0.)
    assert (gray.flip, gray.rotation, gray.shift, gray.zoom) == (False, 10., .05, .1)


def test_the_recipe_of_the_embedded_backbone():
    recipe = with_defaults(with_augmentation(PretrainConfig(data="digits", out="-", channels=1)))
    facts = (recipe.vae_widths, recipe.vae_steps, recipe.hidden_size, recipe.num_layers)
    assert facts == ((16, 32, 64), 1200, 128, 6)
    assert (recipe.dit_steps, recipe.views, recipe.held_out) == (4000, 16, 0.)
    assert (recipe.ema_decay, recipe.dit_learning_rate) == (.998, 1e-3)
    assert recipe.autocast == ()


def test_a_plan_is_made_once(config, monkeypatch, capsys):
    "Under a budget the first start times steps; a resumed training does not, and ends the same."
    timed = dataclasses.replace(config, minutes=.01, hidden_size=None, num_layers=None)
    first = load_backbone(str(pretrain(timed)))
    said = capsys.readouterr().out
    plan = json.loads(open(f"{config.out}/training/config.json").read())["plan"]
    assert plan["settings"]["hidden_size"] == 128
    assert f"{plan['settings']['dit_steps']:,} steps" in said
    assert "Together about" in said
    monkeypatch.setattr(training, "choose", None)
    again = load_backbone(str(pretrain(timed, progress=False)))
    assert again.fingerprint() == first.fingerprint()


def test_other_minutes_are_another_training(start):
    start(minutes=.01)
    with pytest.raises(InputError, match="differs in minutes"):
        start(minutes=.02)


def test_autocast_changes_the_weights_but_not_their_type(config, tmp_path):
    low = dataclasses.replace(config, autocast=("vae", "dit"), out=str(tmp_path / "low"))
    plain = load_backbone(str(pretrain(config, progress=False)))
    rounded = load_backbone(str(pretrain(low, progress=False)))
    assert {p.dtype for p in rounded.transformer.parameters()} == {torch.float32}
    weights = [torch.cat([p.flatten() for p in b.vae.parameters()]) for b in (plain, rounded)]
    assert not torch.equal(*weights)
    assert torch.allclose(*weights, atol=.02)


@pytest.mark.parametrize("seconds_of_a_step", [1e-4, .1, 10.])
def test_the_average_forgets_the_untrained_weights(seconds_of_a_step):
    clock = timers(seconds_of_a_step, seconds_of_a_step)
    chosen, _ = choose(photos(minutes=20.), 5000, 10, "cpu", clock)
    assert chosen.ema_decay ** chosen.dit_steps < 1e-3


# The judgement


QUALITY = Quality(
    n_real=100,
    held_out=True,
    n_samples=200,
    n_classes=10,
    error=.01,
    real=.9,
    decoded=.85,
    samples=.8,
    spread=1.,
)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, None),
        ({"samples": .51}, None),
        ({"samples": .49}, "49% of the samples are recognized, 90% of the real images"),
        ({"decoded": .71}, None),
        ({"decoded": .69}, "The VAE blurs"),
        ({"spread": 1.19}, None),
        ({"spread": 1.21}, "spread 1.21 times"),
        ({"spread": .79}, "spread 0.79 times"),
        ({"spread": float("nan")}, "spread nan times"),
        ({"real": .15, "decoded": .15, "samples": .15}, "only 15% of the real images"),
        ({"n_classes": 2, "decoded": .88, "samples": .87}, None),
    ],
)
def test_doubts_name_what_is_at_fault(changes, words):
    found = doubts(dataclasses.replace(QUALITY, **changes))
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


def test_figures_belong_to_their_weights(tmp_path):
    write_quality(tmp_path / "quality.json", QUALITY, "abc")
    assert read_quality(tmp_path / "quality.json", "abc") == QUALITY
    assert read_quality(tmp_path / "quality.json", "abd") is None
    assert read_quality(tmp_path / "none.json", "abc") is None


def test_a_poor_backbone_is_called_poor(config):
    with pytest.warns(UserWarning, match="too poor to distil with"):
        out = pretrain(config, progress=False)
    quality = json.loads((out / "quality.json").read_text())
    assert quality["fingerprint"] == load_backbone(str(out)).fingerprint()
    assert quality["held_out"] is False
    card = (out / "README.md").read_text()
    assert f"| {quality['spread']:.3f} |" in card
    assert all(doubt in card for doubt in quality["doubts"])


def test_held_out_images_are_never_trained_on(tmp_path, config, monkeypatch):
    make_squares(tmp_path / "many", n=20)
    seen = []
    encode_views = training.encode_views

    def spy(config, images, vae, progress):
        seen.append(images)
        return encode_views(config, images, vae, progress)

    monkeypatch.setattr(training, "encode_views", spy)
    many = dataclasses.replace(config, data=str(tmp_path / "many"), held_out=.1)
    out = pretrain(many, progress=False)
    data = load_data(many.data)
    kept, held = split_held_out(data.labels, .1)
    assert data.labels[held].tolist() == [0, 0, 1, 1]
    assert torch.equal(seen[0], data.images(kept, size=8))
    quality = json.loads((out / "quality.json").read_text())
    assert (quality["held_out"], quality["n_real"]) == (True, 4)


def test_small_classes_keep_their_images():
    kept, held = split_held_out(torch.tensor([0] * 19 + [1] * 20), .05)
    assert held.tolist() == [29]
    assert len(kept) == 38


def test_samples_are_shared_out_among_the_classes():
    assert sampled_labels(3, 7) == [0, 1, 2, 0, 1, 2, 0]
    many = sampled_labels(1000, 200)
    assert len(set(many)) == 200
    assert max(many) > 900


# A training that is stopped


def learn(folder, on_step=None):
    "Train one layer for ten steps; return its weight."
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model = torch.nn.Linear(3, 1)

    def loss_of(model, generator):
        if on_step:
            on_step()
        return model(torch.randn(4, 3, generator=generator)).pow(2).mean()

    trained = train_steps(model, loss_of, "line", 10, .1, folder, every=100, progress=False)
    return trained.weight.detach().clone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_the_training_goes_on_from_there(tmp_path, number):
    whole = learn(tmp_path / "whole")
    steps = []

    def at_the_fourth():
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "stopped", at_the_fourth)
    assert len(steps) == 4
    assert torch.load(tmp_path / "stopped" / "line.pt", weights_only=True)["done"] == 4
    assert torch.equal(learn(tmp_path / "stopped"), whole)


@pytest.fixture
def interruptible():
    "A process that can be interrupted, also where a shell has started it in the background."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_second_interruption_is_obeyed_at_once(interruptible):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        with held_signals() as held:
            os.kill(os.getpid(), signal.SIGINT)
            assert held == [signal.SIGINT]
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_training_in_a_thread_leaves_signals_alone(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    inside = []
    thread = threading.Thread(
        target=learn, args=(tmp_path, lambda: inside.append(signal.getsignal(signal.SIGINT)))
    )
    thread.start()
    thread.join()
    assert set(inside) == {before}
    assert (tmp_path / "line.pt").exists()


class Stopped(Exception):
    "The process ends here."


def stop_at(monkeypatch, name):
    "Let a function of the module fail when it is called."

    def stop(*args, **kwargs):
        raise Stopped

    monkeypatch.setattr(training, name, stop)


@pytest.mark.parametrize("place", ["encode_views", "sample_grid", "judge_it", "write_card"])
def test_stopped_pretraining_ends_with_the_same_weights(config, monkeypatch, tmp_path, place):
    "After the VAE, at the first checkpoint of the DiT, and just before the end."
    whole = load_backbone(str(pretrain(config, progress=False)))
    again = dataclasses.replace(config, out=str(tmp_path / "again"))
    with monkeypatch.context() as patch:
        stop_at(patch, place)
        with pytest.raises(Stopped):
            pretrain(again, progress=False)
    assert not (tmp_path / "again" / "README.md").exists()
    resumed = load_backbone(str(pretrain(again, progress=False)))
    assert resumed.fingerprint() == whole.fingerprint()


def test_every_sample_of_the_grid_has_a_noise_of_its_own(monkeypatch):
    "With few classes too: samples of one class must differ."
    drawn = []

    def generator(*words):
        drawn.append(words)
        return torch.Generator().manual_seed(len(drawn))

    monkeypatch.setattr(training, "image_generator", generator)
    training.sample_grid(tiny_backbone(n_classes=2), seed=0, rows=3)
    assert len(drawn) == len(set(drawn)) == 6


def test_pretraining_leaves_the_global_generator_alone(config):
    before = torch.random.get_rng_state()
    pretrain(config, progress=False)
    assert torch.equal(torch.random.get_rng_state(), before)


# The model card


def test_model_card_names_at_most_twenty_classes(config):
    data = load_data(config.data)
    data.classes = [data.classes[0]] * 21
    text = model_card(config, data, {"error": "0.1"}, "None.", doubts=("It is blurred.",))
    assert "6 training images of 21 classes (bluish, " in text
    assert text.count("bluish") == 20
    assert "bluish, ...), 8x8 pixels, 3 channel(s)" in text
    assert "| `num_layers` | 1 |\n" in text
    assert "| error | 0.1 |\n" in text
    assert "**Licence.** None.\n" in text
    assert "\n**Doubt.** It is blurred.\n" in text
    assert "`out`" not in text
