"""Trees, levels and prototypes: what they refuse, and what they leave as it was."""
import warnings

import numpy as np
import pytest
import torch

from manifoldgd.backbones.latents import LatentBank
from manifoldgd.data.classes import ImageClass
from manifoldgd.errors import InputError
from manifoldgd.prototypes.baselines import fill_empty
from manifoldgd.prototypes.levels import choose_levels
from manifoldgd.prototypes.selection import class_prototypes, select_prototypes
from manifoldgd.prototypes.tree import as_points, bisect_tree, two_means

POINTS = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("points, message", [
    (torch.zeros(0, 2), r"at least one row, but got shape \(0, 2\)"),
    (torch.tensor(1.), r"at least one row, but got shape \(\)"),
    ([[0.], [NAN], [1.]], "infinity in 1 of 3 points, the first of them point 1"),
    ([[0., INF], [NAN, NAN], [1., 1.]], "infinity in 2 of 3 points, the first of them point 0"),
])
def test_points_that_are_none(points, message):
    with pytest.raises(InputError, match=message):
        as_points(points)


def test_read_only_memory_is_copied():
    array = np.zeros((3, 2))
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where it shares memory it cannot protect
        points = as_points(array)
    points += 1
    assert not array.any()


@pytest.mark.parametrize("settings, message", [
    (dict(n_leaves=31), "`n_leaves` to be between 1 and 30, but got 31. There are 30 points."),
    (dict(n_leaves=0), "`n_leaves` to be between 1 and 30, but got 0"),
    (dict(n_leaves=3, split_by="depth"), "`split_by` to be one of inertia, size, but got 'depth'"),
])
def test_trees_that_cannot_grow(settings, message):
    with pytest.raises(InputError, match=message):
        bisect_tree(POINTS, **settings)


def test_equal_points_have_no_split():
    equal = torch.ones(5, 3)
    gram = equal @ equal.T
    side = two_means(lambda u: u @ gram, gram.diagonal(), 4, torch.Generator().manual_seed(0))
    assert side is None


def test_tree_split_by_size():
    "The eight points near 0 are split before the two far apart, whose inertia is larger."
    points = torch.cat([torch.arange(8.), torch.tensor([1e3, 2e3])])[:, None]
    for split_by, size in (("size", 8), ("inertia", 2)):
        nodes = bisect_tree(points, 3, split_by=split_by).nodes
        split = [len(node.indices) for node in nodes if node.children]
        assert split == [10, size]


def test_levels_need_enough_leaves():
    tree = bisect_tree(POINTS, 4)
    with pytest.raises(InputError, match="at least 5 leaves to choose from, but got 4"):
        choose_levels(tree, 6, 0, torch.Generator())


@pytest.mark.parametrize("settings, message", [
    (dict(method="tree"), "herding, kcenter, random, but got 'tree'"),
    (dict(kind="mode"), "`kind` to be one of centroid, medoid, but got 'mode'"),
    (dict(ipc=0), "`ipc` to be at least 1, but got 0"),
    (dict(ipc=31), r"the class to have at least 31 images \(`ipc` = 31\), but got 30. Choose a"),
    (dict(ipc=31, name="dog"), "class 'dog' to have at least 31 images"),
    (dict(features=POINTS[:7]), "`features` to be of 30 points, but got 7 points"),
    (dict(features=POINTS * NAN), "infinity in 30 of 30 points"),
    (dict(tree=bisect_tree(POINTS[:9], 5)), "`tree` to be of 30 points, but got 9 points"),
])
def test_prototypes_that_cannot_be_chosen(settings, message):
    with pytest.raises(InputError, match=message):
        select_prototypes(POINTS, **settings)


def test_points_of_prototypes_are_finite():
    with pytest.raises(InputError, match="infinity in 1 of 8 points"):
        select_prototypes([[0.]] * 7 + [[NAN]], 2)


def test_empty_clusters_are_filled_one_after_the_other():
    "Each from what is the largest by then, so that none is emptied."
    groups = fill_empty([torch.arange(0)] * 3 + [torch.arange(4)])
    assert sorted(torch.cat(groups).tolist()) == [0, 1, 2, 3]
    assert [len(group) for group in groups] == [1] * 4


@pytest.fixture
def three_classes():
    latents = torch.randn(60, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    classes = [ImageClass(name, name) for name in ("cat", "dog", "owl")]
    return LatentBank(latents, torch.arange(60) % 3), classes


def test_class_that_is_too_small_is_named(three_classes):
    bank, classes = three_classes
    with pytest.raises(InputError, match="class 'cat' to have at least 21 images"):
        class_prototypes(bank, classes, ipc=21, progress=False)


@pytest.mark.parametrize("ipc", [2, 21])
def test_threads_are_given_back(three_classes, ipc):
    "Also where a class is refused."
    bank, classes = three_classes
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        class_prototypes(bank, classes, ipc=ipc, progress=False)
    except InputError:
        assert ipc == 21
    finally:
        after = torch.get_num_threads()
        torch.set_num_threads(before)
    assert after == 2
