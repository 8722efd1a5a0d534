"""The plan of a run beside the measured memory, speed and time."""

from collections.abc import Iterator

import numpy as np

from jaxpretrain.devices.chips import GIB
from jaxpretrain.display.wording import format_count
from jaxpretrain.reports.runs import Run
from jaxpretrain.reports.words import table


def planned(run: Run) -> str:
    """Returns tables of the step's memory and of the numbers in `plan.json`; "" without either."""
    memory = run.document.get("memory") or {}
    parts = [[name, f"{size / GIB:.2f}"] for name, size in memory.items()]
    if parts:
        parts.append(["in all", f"{sum(memory.values()) / GIB:.2f}"])
        parts += [
            [f"most that was held on the {place}", f"{peak:.2f}"]
            for place in ("device", "host")
            if (peak := run.history.last(f"perf/{place}_memory_gib")) is not None
        ]
    shown = table(["memory of the compiled step", "GiB per device"], parts) if parts else ""
    rows = list(_compared(run))
    return shown + (table(["", "planned", "measured"], rows) if rows else "")


def _compared(run: Run) -> Iterator[list[str]]:
    """Yields rows of a name, the planned and the measured number."""
    unit = run.history.unit
    before, name = run.planned, f"{unit}_per_second"
    if rate := before.get(name):
        rates = run.history[f"perf/{name}"].finite.values
        came = format_count(float(np.median(rates))) if len(rates) else "?"
        yield [f"{unit} a second", format_count(rate), came]
    if (hours := before.get("device_hours")) is not None:
        estimate = run.estimate
        came = "?" if estimate is None else format_count(estimate.device_hours)
        yield ["device-hours of the whole run", format_count(hours), came]
    if (size := before.get("memory_bytes_per_device")) is not None:
        peak = run.history.last("perf/device_memory_gib")
        yield ["GiB of a device", f"{size / GIB:.2f}", "?" if peak is None else f"{peak:.2f}"]
