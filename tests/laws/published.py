"""Published points, and points that follow a law exactly."""

from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.laws.law import Law
from jaxpretrain.laws.points import Points, parse_columns, points_of, read_table

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "scaling"
"""A folder beside the repository with points that have no licence."""
LAW = Law(A=400.0, B=1000.0, E=1.7, alpha=0.34, beta=0.3)
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the points are not here")


def table(path: Path, columns: str, *conditions: str, **tasks: tuple[str, str]) -> Points:
    """The points of a file."""
    rows = read_table(path)
    return points_of(rows, parse_columns(columns, rows), conditions, tasks)


def chinchilla() -> Points:
    """The points that Epoch AI has read from a figure of the Chinchilla paper."""
    file = SHARED / "epoch_chinchilla_svg_extracted_data.csv"
    return table(file, "n=Model Size,c=Training FLOP,loss=loss")


def ladder(**tasks: tuple[str, str]) -> Points:
    """The runs of OLMo's ladder that its paper fits: up to 1.3B, 1 to 10 times Chinchilla."""
    conditions = ("length=1xC,2xC,5xC,10xC", "N_non_embedding<2e9")
    columns = "n=N_non_embedding,d=D_tokens,loss=ce5_c4_en"
    return table(DATA / "olmo_ladder.csv", columns, *conditions, **tasks)


def isoflop() -> Points:
    """The points of Porian et al. on RefinedWeb, twelve budgets."""
    return table(DATA / "porian_isoflop.csv", "n=n,c=flops,loss=val_loss")


def made(noise: float = 0.0, law: Law = LAW) -> Points:
    """Points of four sizes and four lengths that follow a law, with noise of the log."""
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 4)))
    losses = law.loss(n, d) * np.exp(noise * np.random.default_rng(0).normal(size=n.size))
    return Points(n, d, losses, tuple(f"run {place}" for place in range(n.size)), "loss")
