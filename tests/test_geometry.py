"""Neighborhoods and tangent planes: what they refuse, and the types they compute in."""
import pytest
import torch

from manifoldgd.errors import InputError
from manifoldgd.geometry.neighborhood import (
    at_noise_level,
    find_candidates,
    nearest_neighbors,
    stack_candidates,
)
from manifoldgd.geometry.tangent import fit_tangent

NAN = float("nan")
LATENTS = torch.randn(20, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def with_nan(rows):
    latents = LATENTS.clone()
    latents[rows, 0, 0, 0] = NAN
    return latents


@pytest.mark.parametrize("prototype, latents, message", [
    (torch.zeros(12), with_nan([3]), "in 1 of 20 latents and in 0 numbers of the prototype"),
    (torch.zeros(3, 2, 2), with_nan([3, 7]), "in 2 of 20 latents and in 0 numbers"),
    (torch.tensor([NAN] * 2 + [0.] * 10), LATENTS, "in 0 of 20 latents and in 2 numbers"),
])
def test_candidates_must_be_finite(prototype, latents, message):
    with pytest.raises(InputError, match=message):
        find_candidates(prototype, latents)


@pytest.mark.parametrize("given, used", [
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
])
def test_no_geometry_in_half_precision(given, used):
    found = find_candidates(LATENTS[0].to(given), LATENTS.to(given))
    assert {found.points.dtype, found.distances.dtype, found.spread.dtype} == {used}


@pytest.mark.parametrize("members", [None, [], torch.tensor([], dtype=torch.long)])
def test_node_without_members_gives_the_nearest(members):
    found = find_candidates(LATENTS[4], LATENTS, members, n_points=5)
    distances = (LATENTS - LATENTS[4]).flatten(1).norm(dim=1).sort().values
    assert torch.allclose(found.distances[0], distances[:5])


def test_padding_is_no_neighbor():
    "Not even where the query lies on the zeros that fill the padding."
    far = LATENTS + 100
    batch = stack_candidates([find_candidates(far[0], far[:4]), find_candidates(far[0], far)])
    _, there = nearest_neighbors(torch.zeros(2, 12), batch, n_neighbors=6, adaptive=True)
    assert there.sum(1)[0] == 4


def test_unknown_noise_is_not_taken_for_independent():
    found = find_candidates(LATENTS[0], LATENTS)
    x = torch.zeros(1, 12)
    with pytest.raises(InputError, match="one of predicted, shared, independent, but got 'fresh'"):
        at_noise_level(x, x, .5, found, "fresh", [torch.Generator()])


@pytest.mark.parametrize("dim, got", [
    (12, "12"),
    (-1, "-1"),
    (torch.tensor([3, 12]), "12"),
    (torch.tensor([-2, 3]), "-2"),
])
def test_planes_of_impossible_dimension(dim, got):
    patches = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=f"`tangent_dim` to be between 0 and 11, but got {got}"):
        fit_tangent(patches, dim)


def test_each_patch_may_have_its_own_dimension():
    patches = torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(0))
    both = fit_tangent(patches, torch.tensor([2, 5]))
    assert both.weights.sum(1).tolist() == [2., 5.]
    assert torch.allclose(both.basis[1, :5], fit_tangent(patches[1], 5).basis[:5], atol=1e-6)
