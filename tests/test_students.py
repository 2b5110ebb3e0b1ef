"""Students: what is refused, what views leave alone, and how often a training is looked at."""
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

from manifoldgd.config.protocols import PROTOCOLS
from manifoldgd.errors import InputError
from manifoldgd.students import training, views
from manifoldgd.students.networks import ConvNet, ResNet, ResNetAP
from manifoldgd.students.training import make_student, train_student

FILL = torch.tensor([.1, .2, .3])
VIEWS = {
    "random_affine": lambda x, g: views.random_affine(x, g, 10., .1, .1),
    "random_crop": lambda x, g: views.random_crop(x, g, 4),
    "random_flip": views.random_flip,
    "cutout": lambda x, g: views.cutout(x, g, 16, FILL),
    "random_resized_crop": lambda x, g: views.random_resized_crop(x, g, .5),
    "color_jitter": lambda x, g: views.color_jitter(x, g, .4),
    "lighting": lambda x, g: views.lighting(x, g, .1),
    "cutmix": lambda x, g: views.cutmix(x, torch.eye(len(x)), g)[0],
    "photo_views": lambda x, g: views.photo_views(x, PROTOCOLS["hard-label-256"], g),
}
each_view = pytest.mark.parametrize("name", VIEWS)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def some_images(n=6, size=32):
    return torch.rand(n, 3, size, size, generator=seeded(0)) * 2 - 1


@pytest.mark.parametrize("network, settings, message", [
    (ConvNet, {"depth": 6, "image_size": 32}, "`image_size` to be at least 64, but got 32"),
    (ConvNet, {"depth": 3, "image_size": 7}, "`image_size` to be at least 8, but got 7"),
    (ResNet, {"depth": 50}, "`depth` to be one of 10, 18, but got 50"),
    (ResNetAP, {"depth": 34}, "`depth` to be one of 10, 18, but got 34"),
    (ResNet, {"depth": 18, "image_size": 15}, "`image_size` to be at least 16, but got 15"),
    (ResNetAP, {"depth": 10, "image_size": 8}, "`image_size` to be at least 16, but got 8"),
])
def test_a_network_that_cannot_be_built_is_refused(network, settings, message):
    with pytest.raises(InputError, match=message):
        network(**settings)


@pytest.mark.parametrize("network, depth, size", [
    (ConvNet, 3, 8),
    (ConvNet, 5, 32),
    (ResNet, 10, 16),
    (ResNetAP, 18, 16),
])
def test_the_smallest_images_allowed_get_logits(network, depth, size):
    net = network(depth, width=4, n_classes=7, channels=1, image_size=size)
    assert net(torch.zeros(2, 1, size, size)).shape == (2, 7)


@each_view
def test_equal_generators_make_equal_views(name):
    images = some_images()
    first, second, other = (VIEWS[name](images, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@each_view
def test_a_view_is_new_and_keeps_shape_and_type(name):
    images = some_images()
    before = images.clone()
    view = VIEWS[name](images, seeded(0))
    assert (view.shape, view.dtype) == (images.shape, images.dtype)
    assert torch.equal(images, before)
    assert view.data_ptr() != images.data_ptr()


@each_view
def test_images_of_a_batch_are_changed_differently(name):
    same = some_images(1).expand(16, -1, -1, -1)
    if name == "cutmix":  # one box for all: it needs different partners
        same = torch.arange(16.).reshape(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    seen = VIEWS[name](same, seeded(0)).flatten(1)
    assert len(seen.unique(dim=0)) > 1


@pytest.mark.parametrize("name", ["random_flip", "cutout", "random_resized_crop", "lighting"])
def test_no_images_give_no_views(name):
    assert VIEWS[name](some_images(0), seeded(0)).shape == (0, 3, 32, 32)


def test_an_image_alone_in_its_batch_is_its_own_partner():
    image = some_images(1)
    mixed, targets = views.cutmix(image, torch.ones(1, 1), seeded(1))
    assert torch.equal(mixed, image)
    assert targets.item() == pytest.approx(1)


class Slow(nn.Module):
    "A network whose weights are drawn in two parts, with time for others between them."

    def __init__(self, *settings):
        super().__init__()
        first = torch.rand(3)
        time.sleep(.02)
        self.weight = nn.Parameter(torch.cat([first, torch.rand(3)]))


def test_students_built_side_by_side_have_the_weights_of_their_seeds(monkeypatch):
    monkeypatch.setitem(training.STUDENTS, "Slow", Slow)
    protocol = replace(PROTOCOLS["digits-quick"], student="Slow")

    def weight(seed):
        return make_student(protocol, 10, 1, seed).weight.detach()

    alone = [weight(seed) for seed in range(8)]
    state = torch.random.get_rng_state()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(weight, range(8)))
    assert all(map(torch.equal, alone, together))
    assert torch.equal(torch.random.get_rng_state(), state)


class Constant(nn.Module):
    "A student that answers the same to every image."

    def __init__(self, *settings):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, images):
        return self.logits.expand(len(images), 2)


@pytest.mark.parametrize("epochs, looks", [(1, 1), (7, 7), (100, 100), (200, 100), (1300, 100)])
def test_a_training_is_looked_at_a_hundred_times_at_most(monkeypatch, epochs, looks):
    monkeypatch.setitem(training.STUDENTS, "Constant", Constant)
    protocol = replace(PROTOCOLS["plain-32"], student="Constant", epochs=((None, epochs),))
    seen = []
    mean_std = (torch.zeros(3), torch.ones(3))
    labels = torch.tensor([0, 1])
    train_student(some_images(2), labels, protocol, 2, 1, 0, mean_std, "cpu", seen.append)
    assert len(seen) == looks
    assert isinstance(seen[-1][1], Constant)
