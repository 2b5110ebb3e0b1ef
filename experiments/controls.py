"""The controls of every comparison of guidances: what a plane must beat before it is believed.

`Rescaled` is the mode vector at the length of its tangent part, `RandomPlanes` knows nothing of the
data, the plane of another class knows the wrong data (`ManifoldGuidance` with candidates of the
next class), and `moved_toward` guides nothing: it moves a finished sample straight to its
prototype until it is as near as a guided one.
"""
from dataclasses import dataclass

import torch

from manifoldgd.core import draw_noise
from manifoldgd.geometry.tangent import TangentSpace
from manifoldgd.guidance.manifold import ManifoldGuidance


class Rescaled(ManifoldGuidance):
    "The mode vector, at the length of its tangent part."

    def vector(self, step, record: dict = None) -> torch.Tensor:
        "Shorten the mode vector."
        m = self.mode(step)
        tangent = super().vector(step, record)
        lengths = m.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return m * tangent.norm(dim=1, keepdim=True) / lengths


@dataclass
class RandomPlanes:
    "Random planes, one for each image, in place of those of its neighbors."
    dims: torch.Tensor  # (n,) their dimensions
    generator: list  # one `torch.Generator` per image
    fixed: TangentSpace = None

    def __call__(self, step, s: float) -> tuple:
        "Draw the planes at the first step, and keep them."
        if self.fixed is None:
            shape = (step.x0.shape[1], int(self.dims.max()))
            frames = [torch.linalg.qr(draw_noise(shape, [g])[0]).Q.T for g in self.generator]
            basis = torch.stack(frames)
            weights = torch.ones(basis.shape[:2])
            self.fixed = TangentSpace(torch.zeros_like(step.x0), basis, weights)
        return self.fixed, step.x0


def moved_toward(
    latents: torch.Tensor,  # (n, ...) finished samples, of no guidance
    prototypes: torch.Tensor,  # (n, D) one for each
    distance: torch.Tensor,  # a number, or (n,): how far from its prototype a sample may stay
) -> torch.Tensor:  # (n, ...) samples at that distance, or where they were if they are nearer
    "Move finished samples straight toward their prototypes, to a given distance."
    away = latents.flatten(1) - prototypes
    length = away.norm(dim=1).clamp(min=1e-12)
    share = (torch.as_tensor(distance) / length).clamp(max=1)
    return (prototypes + share[:, None] * away).reshape(latents.shape)
