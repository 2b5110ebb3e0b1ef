"""Compare scales of the classifier-free guidance; write results/guidance_scale.csv.

    python experiments/guidance_scale.py [--runs runs/guidance_scale]

The plain model (`dit`) on the digits, with the sampler of all presets. The scale with the best
mean over 1 and 10 images per class is what `GUIDANCE_SCALES` in `config.presets` says. It takes
about as long as `make demo`; a command that was stopped goes on where it stopped.
"""
from sweep import compare

SCALES = (1., 1.5, 2., 4.)


def main():
    "Compare the scales."
    arms = {f"scale{scale:g}": {"preset": "dit", "guidance_scale": scale} for scale in SCALES}
    compare(__doc__, "guidance_scale", arms)


if __name__ == "__main__":
    main()
