"""Training-free dataset distillation with manifold-guided diffusion.

The public names are found on first use, so `import manifoldgd` loads neither torch nor diffusers.
No name here is the name of a module or of a subpackage: importing `manifoldgd.distillation` can
then never hide the function `manifoldgd.distill`.
"""
__version__ = "0.1.0"

from importlib import import_module

_HOMES = {
    "DistillConfig": "config.presets",
    "EvaluateConfig": "config.commands",
    "PretrainConfig": "config.commands",
    "image_generator": "core",
    "image_grid": "core",
    "load_data": "data.sources",
    "load_backbone": "backbones.backbone",
    "latent_bank": "backbones.latents",
    "decode": "backbones.latents",
    "bisect_tree": "prototypes.tree",
    "select_prototypes": "prototypes.selection",
    "find_candidates": "geometry.neighborhood",
    "stack_candidates": "geometry.neighborhood",
    "TangentSpace": "geometry.tangent",
    "fit_tangent": "geometry.tangent",
    "NoGuidance": "guidance.guidance",
    "ModeGuidance": "guidance.mode",
    "ManifoldGuidance": "guidance.manifold",
    "ReleasedGuidance": "guidance.released",
    "sample": "sampling.loop",
    "ManifoldGDPipeline": "sampling.pipeline",
    "expected_shift": "sampling.trace",
    "plot_trace": "sampling.trace",
    "distill": "distillation.distill",
    "evaluate": "evaluation.accuracy",
    "summarize": "evaluation.comparison",
    "format_summary": "evaluation.comparison",
    "plot_summary": "evaluation.comparison",
    "pretrain": "pretraining.training",
}
__all__ = list(_HOMES)


def __getattr__(name):
    "Import the module of a public name when the name is first asked for."
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOMES[name]}")
    globals()[name] = getattr(home, name)
    return globals()[name]


def __dir__():
    "List the public names too, before they are imported."
    return sorted({*globals(), *_HOMES})
