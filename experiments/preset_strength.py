"""Compare strengths of the guided presets; write results/preset_strength.csv.

    python experiments/preset_strength.py [--runs runs/preset_strength]

`manifoldgd` (score rule) and `mgd` (mean rule) on the digits with the sampler of all presets,
beside the plain model. Both presets get the same number of strengths. It takes about as long as
two `make demo`; a command that was stopped goes on where it stopped.
"""
from sweep import compare

STRENGTHS = {
    "dit": (0.,),
    "mgd": (.03, .1, .2),
    "manifoldgd": (.1, .3, 1.),
}


def main():
    "Compare the strengths."
    arms = {}
    for preset, strengths in STRENGTHS.items():
        for strength in strengths:
            arms[f"{preset}{strength:g}"] = {"preset": preset, "strength": strength}
    compare(__doc__, "preset_strength", arms, baseline=True)


if __name__ == "__main__":
    main()
