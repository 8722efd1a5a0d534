"""Metrics in readable words: the titles of charts and the formats of their values."""

import re

_WORDS = {
    "acc": "accuracy",
    "acc_uncond": "accuracy by pointwise mutual information",
    "bits_per_byte": "bits per byte",
    "bpb": "bits per byte of the right answer",
    "ce_loss": "nats per character of the right answer",
    "data_wait_fraction": "time spent waiting for data",
    "epochs": "epochs of the data",
    "f1": "F1 score",
    "host_spread": "time of the slowest process beyond the usual one, as a part of a step",
    "len_norm": "accuracy by likelihood per character",
    "loss_predict_zero": "loss of predicting zero",
    "max": "maximum",
    "mfu": "model FLOPs utilisation",
    "mfu_full_attention": "model FLOPs utilisation, all pairs of attention counted",
    "pmi_dc": "accuracy relative to the unconditional likelihood",
    "primary": "accuracy that the authors report",
    "rms": "root mean square",
    "skipped": "skipped steps",
    "slowest_host": "number of the slowest process",
    "soft": "probability of the right answer",
    "soft_log": "log-probability of the right answer",
    "weight": "positions that count in the loss",
    "z": "squared log-partition function (z)",
}
_SHARES = ("_fraction", "_spread", "mfu", "mfu_full_attention")


def words(name: str) -> str:
    """Returns the last part of a metric's name in words, such as `host memory, GiB`."""
    last = name.rpartition("/")[2]
    if probe := re.fullmatch(r"probe_(\d+)shot", last):
        return f"accuracy of a linear probe, images per class: {probe[1]}"
    by_v2 = last.removesuffix("_v2")
    if by_v2 != last:
        return f"{words(by_v2)}, first space counted"
    return re.sub("_gib$", ", GiB", _WORDS.get(last, last)).replace("_", " ")


def title(name: str) -> str:
    """Returns the title of a chart of one metric, such as `Loss of wiki` for `train/wiki/loss`."""
    text = words(name)
    of = " ".join(name.split("/")[1:-1]).replace("_", " ")
    return text[:1].upper() + text[1:] + (f" of {of}" if of else "")


def tick_format(name: str) -> str:
    """Returns the format of the values of a metric, in the notation of D3: shares are percent."""
    return ".3~%" if name.endswith(_SHARES) else ""
