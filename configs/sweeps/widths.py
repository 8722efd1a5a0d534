"""Does the best learning rate stay where it is as the model gets wider?

Command   python -m jaxpretrain.sweep --sweep=widths --workdir=runs/widths --jobs=2
Hardware  cpu:1, two cores, 4 GB of memory.
"""

from jaxpretrain.api import make_sweep

WIDTHS = (64, 128, 256, 512)
SETTINGS = {
    "mup": {},
    "standard": {"model.scaling": "standard", "model.base_width": None},
}
PEAKS = {
    "mup": ("4e-3", "8e-3", "1.6e-2", "3.2e-2", "6.4e-2"),
    "standard": ("5e-4", "1e-3", "2e-3", "4e-3", "8e-3"),
}


def get_sweep():
    """Four widths with and without muP, five learning rates, two seeds: 80 short runs."""
    arms = {
        f"{scaling}-{width},peak={peak}": {
            "model.d_model": width,
            "model.num_heads": width // 16,
            "model.d_ff": 3 * width,
            "optim.schedule.peak": peak,
            **settings,
        }
        for scaling, settings in SETTINGS.items()
        for width in WIDTHS
        for peak in PEAKS[scaling]
    }
    return make_sweep("widths_nano", arms=arms, shared={"monitor.tensorboard": False}, seeds=2)
