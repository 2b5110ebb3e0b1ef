"""What a guidance is made of must fit together: wrong parts are refused when it is made."""
import pytest
import torch

from manifoldgd.errors import InputError
from manifoldgd.geometry.neighborhood import find_candidates, stack_candidates
from manifoldgd.guidance.guidance import Guidance, NoGuidance, annealed
from manifoldgd.guidance.manifold import ManifoldGuidance
from manifoldgd.guidance.mode import ModeGuidance, kernel_weight
from manifoldgd.guidance.released import ReleasedGuidance

LATENTS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
PROTOTYPES = LATENTS[:3] + .1
CANDIDATES = stack_candidates([find_candidates(c, LATENTS) for c in PROTOTYPES])


def manifold(**settings):
    "A manifold guidance for three samples."
    return ManifoldGuidance(PROTOTYPES, CANDIDATES, **settings)


@pytest.mark.parametrize("make, words", [
    (lambda: NoGuidance(apply="noise"), "`apply` to be one of score, mean, but got 'noise'"),
    (lambda: Guidance(start=.6, stop=.5), "`start` to be at most `stop`"),
    (lambda: annealed(0, 25, "square"), "linear, cosine, exp, constant, but got 'square'"),
    (lambda: kernel_weight(torch.ones(1), "box"), "one of rbf, laplace, imq, but got 'box'"),
    (lambda: ModeGuidance(PROTOTYPES, kernel="imq"), "Expected `spread` with the imq kernel"),
    (lambda: ModeGuidance(PROTOTYPES, torch.ones(3), kernel="imq", space="xt"),
     "the rbf kernel with `space='xt'`, but got 'imq'"),
    (lambda: ModeGuidance(PROTOTYPES, ridge=.1), "`setting` to be one of"),
    (lambda: manifold(noise="independent"), "`generator` to be a list of 3, one per sample"),
    (lambda: manifold(noise="white"), "one of predicted, shared, independent, but got 'white'"),
    (lambda: manifold(projection=2), "`projection` to be between 0 and 1, but got 2"),
    (lambda: manifold(tangent_dim=-1), "`tangent_dim` to be at least 0, but got -1"),
    (lambda: manifold(n_neighbors=0), "`n_neighbors` to be at least 1, but got 0"),
    (lambda: manifold(ridge=-1.), "`ridge` to be at least 0, but got -1.0"),
    (lambda: ManifoldGuidance(PROTOTYPES[:2], CANDIDATES),
     "candidates for 2 prototypes of 6 numbers, but got them for 3 of 6"),
    (lambda: ReleasedGuidance(PROTOTYPES, torch.Generator()),
     "a list of 3, one per sample, but got Generator"),
    (lambda: ReleasedGuidance(PROTOTYPES, [torch.Generator()] * 2),
     "a list of 3, one per sample, but got 2"),
])
def test_parts_that_do_not_fit(make, words):
    with pytest.raises(InputError) as error:
        make()
    assert words in str(error.value)
