"""Soft labels: the loss and the optimizer by hand, teachers that are kept, a table of their own."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from manifoldgd.config.commands import EvaluateConfig
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.config.protocols import PROTOCOLS, adapt, default_protocol, teacher_recipe
from manifoldgd.config.settings import to_dict
from manifoldgd.core import to_pil
from manifoldgd.data.sources import load_data
from manifoldgd.distillation.runs import image_hashes
from manifoldgd.errors import InputError
from manifoldgd.evaluation.accuracy import evaluate
from manifoldgd.evaluation.comparison import summarize
from manifoldgd.students import teacher as teachers
from manifoldgd.students import training
from manifoldgd.students.teacher import Ordered, kept_teacher, teacher_file, teacher_key
from manifoldgd.students.training import make_student, soft_loss, train_student

SOFT = PROTOCOLS["soft-label-32"]
QUICK = (("student", "ConvNet"), ("depth", 2), ("width", 4), ("epochs", ((None, 2),)))
TINY = replace(SOFT, depth=2, width=4, epochs=((None, 2),), teacher=(*SOFT.teacher[4:], *QUICK))
STILL = replace(TINY, pad=0, flip=False, cutout=0, cutmix=0.)
NEUTRAL = (torch.zeros(1), torch.ones(1))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "cache"))


def test_the_loss_of_two_samples_by_hand():
    student, teacher, T = [[1., 2., 0.], [0., 0., 3.]], [[4., 0., 0.], [0., 20., 0.]], 20.
    total = 0.
    for s, t in zip(student, teacher):
        p = np.exp(np.array(t) / T) / np.exp(np.array(t) / T).sum()
        q = np.exp(np.array(s) / T) / np.exp(np.array(s) / T).sum()
        total += (p * np.log(p / q)).sum()
    found = soft_loss(torch.tensor(student), torch.tensor(teacher), T)
    assert found.item() == pytest.approx(total / 2, rel=1e-4)


def test_the_protocol_is_d4ms():
    soft = PROTOCOLS["soft-label"]
    assert (soft.temperature, soft.epochs_for(10), soft.optimizer) == (20., 300, "adamw")
    assert (soft.learning_rate, soft.weight_decay, soft.schedule) == (.001, .01, "cosine")
    assert (soft.crop, soft.flip, soft.cutmix, soft.jitter, soft.lighting) == (.08, True, 1., 0, 0)
    hard = [name for name, protocol in PROTOCOLS.items() if not protocol.teacher]
    assert all(PROTOCOLS[name].optimizer == "sgd" for name in hard)
    assert all(PROTOCOLS[name].schedule == "steps" for name in hard)
    assert {default_protocol("photos", size) for size in (8, 32, 64, 500)} <= set(hard)


@pytest.mark.parametrize("name", ["soft-label", "soft-label-32"])
def test_a_teacher_has_hard_labels_and_does_not_depend_on_the_student(name):
    protocol = PROTOCOLS[name]
    recipe = teacher_recipe(protocol)
    assert (recipe.teacher, recipe.temperature, recipe.optimizer) == ((), 0., "sgd")
    other = adapt(protocol, 10, 3, "ResNetAP-10")
    assert other.name == "ResNetAP-10"
    assert teacher_recipe(other) == recipe


def some_images(n=5, size=32):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Told(nn.Module):
    "A teacher that answers by the means of an image's quarters, and notes what it saw."

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return 30 * nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)[:, :3]


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_a_step_is_adamw_on_the_soft_loss_by_hand():
    images, labels = some_images(), torch.tensor([0, 1, 2, 0, 1])
    protocol = replace(STILL, epochs=((None, 1),), weight_decay=.5, learning_rate=.01)
    told = Told()
    student = train_student(images, labels, protocol, 3, 1, 0, NEUTRAL, teacher=told)

    net = make_student(protocol, 3, 1, seed=0)
    order = told.seen[0]
    q = (net(order) / 20).log_softmax(1)
    p = (Told()(order) / 20).softmax(1)
    loss = (p * (p.log() - q)).sum() / len(images)
    for value, slope in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
        decay = .5 if value.ndim > 1 else 0.
        step = slope / (slope.abs() + 1e-8)  # both moments are of one gradient
        with torch.no_grad():
            value.copy_(value * (1 - .01 * decay) - .01 * step)
    difference = (weights(student[1]) - weights(net)).abs()
    assert difference.median() < 1e-6
    assert (difference < 1e-4).float().mean() > .98  # where the gradient is not about nothing


def test_the_teacher_labels_the_views_that_the_student_sees(monkeypatch):
    seen = []
    real = training.train_step

    def watched(student, optimizer, images, targets, temperature):
        seen.append((images, targets, temperature))
        real(student, optimizer, images, targets, temperature)

    monkeypatch.setattr(training, "train_step", watched)
    told = Told()
    train_student(some_images(), torch.arange(5) % 3, TINY, 3, 1, 0, NEUTRAL, teacher=told)
    assert len(seen) == len(told.seen) == 2
    for (images, targets, temperature), views in zip(seen, told.seen):
        assert torch.equal(images, views)
        assert torch.equal(targets, Told()(views))
        assert temperature == 20.


@pytest.mark.parametrize("protocol, teacher", [(TINY, None), (PROTOCOLS["plain-32"], Told())])
def test_soft_labels_need_a_teacher_and_hard_ones_have_none(protocol, teacher):
    with pytest.raises(InputError, match="a teacher for a protocol of soft labels"):
        train_student(some_images(), torch.arange(5) % 3, protocol, 3, 1, 0, NEUTRAL,
                      teacher=teacher)


@pytest.fixture
def counted(monkeypatch):
    "The number of teachers that are trained."
    trained = []
    real = teachers.train_teacher

    def train_teacher(*arguments):
        trained.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(teachers, "train_teacher", train_teacher)
    return trained


def small_digits(n=60):
    return load_data("digits").keep(list(range(n)))


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: bytes(len(raw))])
def test_a_damaged_teacher_is_trained_again(counted, damage):
    data = small_digits()
    first = kept_teacher(data, TINY, 1, NEUTRAL)
    path = teacher_file(data, teacher_key(data, teacher_recipe(TINY), 1))
    path.write_bytes(damage(path.read_bytes()))
    second = kept_teacher(data, TINY, 1, NEUTRAL)
    kept_teacher(data, TINY, 1, NEUTRAL)
    assert len(counted) == 2
    assert torch.equal(weights(first), weights(second))
    assert not any(p.requires_grad for p in second.parameters())


def make_run(out, seed, order):
    "Write a finished run of one real digit a class, with its classes in some order."
    digits = load_data("digits")
    classes = []
    for c in order:
        info = digits.classes[c]
        path = out / "images" / info.folder / "00000.png"
        path.parent.mkdir(parents=True)
        to_pil(digits.images(digits.of_class(c)[seed:seed + 1], channels=1))[0].save(path)
        classes.append({"id": len(classes), "folder": info.folder, "name": info.name})
    config = resolve(DistillConfig(preset="random", seed=seed, ipc=1, out=str(out)))
    manifest = {
        "config": to_dict(config),
        "classes": classes,
        "data_fingerprint": "of the digits",
        "backbone_fingerprint": "none",
        "finished": True,
    }
    manifest["images"] = image_hashes(out, manifest)
    (out / "manifest.json").write_text(json.dumps(manifest))
    return str(out)


def test_an_evaluation_with_soft_labels_and_its_table(monkeypatch, tmp_path, counted):
    hard = replace(TINY, teacher=(), temperature=0., optimizer="sgd")
    monkeypatch.setitem(PROTOCOLS, "soft", TINY)
    monkeypatch.setitem(PROTOCOLS, "hard", hard)
    runs = tuple(make_run(tmp_path / f"run{seed}", seed, range(10)) for seed in range(2))
    config = EvaluateConfig(runs, protocol="soft", seeds=2, out=str(tmp_path / "results.csv"),
                            device="cpu")
    rows = evaluate(config, progress=False)
    assert len(counted) == 1
    assert set(rows.protocol) == {"soft"}
    settings = json.loads(rows.settings[0])
    assert settings["temperature"] == 20.
    assert ["epochs", [[None, 2]]] in settings["teacher"]
    evaluate(replace(config, out=str(tmp_path / "again.csv")), progress=False)
    assert len(counted) == 1  # the teacher was kept

    others = evaluate(replace(config, protocol="hard"), progress=False)
    assert len(counted) == 1
    both = pd.concat([rows, others])
    with pytest.raises(InputError, match="results of one protocol to compare, but got soft, hard"):
        summarize(both[both.training_seed == 0])


def test_the_answers_stand_in_the_order_of_the_run():
    data = small_digits()
    teacher = kept_teacher(data, TINY, 1, NEUTRAL)
    known = [c.folder for c in data.classes]
    turned = Ordered(teacher, known, known[::-1])
    images = data.images(range(3), channels=1)
    assert torch.equal(turned(images), teacher(images).flip(1))
