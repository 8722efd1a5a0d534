"""Draws the curves of a run: python scripts/plot_run.py --run=runs/quickstart --output=curve.png

Needs matplotlib. The upper panel shows the training and validation loss, the bits per byte of the
validation and the baselines given. The lower panel shows the learning rate.
"""

from pathlib import Path

from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.errors import InputError
from jaxpretrain.storage.jsonl import read_lines


def main(argv: list[str]) -> None:
    """Writes the picture."""
    parser = Parser(prog="python scripts/plot_run.py", description="Draws the curves of a run.")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    parser.add_argument("--baseline", action="append", default=[], help="NAME=BITS_PER_BYTE")
    flags = parser.parse_args(argv)

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_lines(flags.run / "metrics.jsonl")
    if not lines:
        raise InputError(f"--run={flags.run} is no run: it has no metrics.jsonl with lines")
    figure, (loss, rate) = pyplot.subplots(
        2, 1, figsize=(7.5, 4.6), height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    train = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    loss.plot(*zip(*train, strict=True), color="#9db4c8", linewidth=1, label="training loss")
    name = next(n for line in lines for n in line if n.endswith("/bits_per_byte"))
    held_out = [
        (line["step"], line[name.replace("bits_per_byte", "loss")])
        for line in lines
        if name in line
    ]
    loss.plot(*zip(*held_out, strict=True), "o-", color="#b3482e", label="validation loss")
    for line in lines:
        if name in line:
            loss.annotate(
                f"{line[name]:.2f} bits/byte",
                (line["step"], line[name.replace("bits_per_byte", "loss")]),
                xytext=(4, 8),
                textcoords="offset points",
                fontsize=8,
            )
    for baseline in flags.baseline:
        label, value = baseline.rsplit("=", 1)
        loss.axhline(float(value), linestyle=":", color="#666666", linewidth=1)
        loss.annotate(
            label, (0, float(value)), xytext=(4, 3), textcoords="offset points", fontsize=8
        )
    loss.set_ylabel("nats per token")
    loss.legend(frameon=False)
    rates = [(line["step"], line["train/learning_rate"]) for line in lines if "train/loss" in line]
    rate.plot(*zip(*rates, strict=True), color="#3c6e47")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    for axis in (loss, rate):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(flags.output, dpi=130)


if __name__ == "__main__":
    run(main)
