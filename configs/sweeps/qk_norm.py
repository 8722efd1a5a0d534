"""Does QK-norm help a small model, and does that depend on the learning rate?

Command   python -m jaxpretrain.sweep --sweep=qk_norm --workdir=runs/qk_norm --jobs=2
Hardware  cpu:1, two cores, 4 GB of memory.
"""

from jaxpretrain.api import make_sweep


def get_sweep():
    """Six arms with three seeds: short runs of the nano model on the presidential messages."""
    return make_sweep(
        "olmo_nano",
        grid={"model.qk_norm": "true,false", "optim.schedule.peak": "3e-3,6e-3,1.2e-2"},
        shared={
            "train.duration": "100 steps",
            "optim.schedule.warmup": "20 steps",
            "data.seq_len": 128,
            "eval.every": 0,
            "eval.max_examples": 200,
            "eval.samples": None,
        },
        seeds=3,
    )
