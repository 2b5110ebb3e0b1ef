"""Training-free dataset distillation with manifold-guided diffusion.

The public names are found on first use, so `import manifoldgd` loads neither torch nor diffusers.
No name here is the name of a module: importing `manifoldgd.distillation` can then never hide the function `manifoldgd.distill`.
"""
__version__ = "0.1.0"

from importlib import import_module

_HOMES = {
    'DistillConfig': 'config',
    'EvaluateConfig': 'config',
    'PretrainConfig': 'config',
    'bisect_tree': 'tree',
    'select_prototypes': 'prototypes',
    'TangentSpace': 'tangent',
    'fit_tangent': 'tangent',
    'NoGuidance': 'guidance',
    'ModeGuidance': 'guidance',
    'ManifoldGuidance': 'guidance',
    'ReleasedGuidance': 'guidance',
    'sample': 'sampling',
    'ManifoldGDPipeline': 'sampling',
    'expected_shift': 'trace',
    'distill': 'distillation',
    'evaluate': 'evaluation',
    'summarize': 'comparison',
    'pretrain': 'pretraining',
}
__all__ = list(_HOMES)


def __getattr__(name):
    "Import the module of a public name when the name is first asked for."
    if name not in _HOMES: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
    return value


def __dir__(): return sorted({*globals(), *_HOMES})
