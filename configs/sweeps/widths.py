"""Does the best learning rate stay where it is as the model gets wider?

Command   python -m jaxpretrain.sweep --sweep=widths --workdir=runs/widths --jobs=2
Hardware  cpu:1, two cores, 4 GB of memory.
"""

from jaxpretrain.api import make_sweep

WIDTHS = (64, 128, 256, 512)
SCALINGS = {
    "mup": {},
    "standard": {"model.scaling": "standard", "model.base_width": None},
}


def get_sweep():
    """Four widths with and without muP, five learning rates, two seeds: 80 short runs."""
    arms = {
        f"{scaling}-{width}": {
            "model.d_model": width,
            "model.num_heads": width // 16,
            "model.d_ff": 3 * width,
            **settings,
        }
        for scaling, settings in SCALINGS.items()
        for width in WIDTHS
    }
    return make_sweep(
        "widths_nano",
        arms=arms,
        grid={"optim.schedule.peak": "2e-3,4e-3,8e-3,1.6e-2,3.2e-2"},
        shared={"monitor.tensorboard": False},
        seeds=2,
    )
