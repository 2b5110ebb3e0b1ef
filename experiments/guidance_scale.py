"""Compare scales of the classifier-free guidance on the validation split of the digits and write results/guidance_scale.csv.

The plain model (`dit`), 1 and 10 images per class, 3 distillation seeds, 2 trainings each. The scale with the best mean is what `GUIDANCE_SCALES` in the configuration page says.
"""
from pathlib import Path

from manifoldgd.config.commands import EvaluateConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation.distill import distill
from manifoldgd.evaluation.accuracy import evaluate
from manifoldgd.evaluation.comparison import format_summary, summarize

out = Path("runs/guidance_scale")
runs = [str(distill(DistillConfig(preset="dit", ipc=ipc, seed=seed, guidance_scale=scale, out=str(out / f"scale{scale:g}-ipc{ipc}-seed{seed}"))))
        for scale in (1., 1.5, 2., 4.) for ipc in (1, 10) for seed in (0, 1, 2)]
rows = evaluate(EvaluateConfig(runs=tuple(runs), split="validation", seeds=2, out=str(Path(__file__).parents[1] / "results" / "guidance_scale.csv")))
print(format_summary(summarize(rows)))
