"""Page 12: how far the same simulator was from GPUs that others have measured.

Input: measured figures beside simulated ones. Output: figures, tables and sentences, in the order
of the page, and what `kvab hardware` prints.
"""

from __future__ import annotations

from kvab.console import number, percent, signed
from kvab.runs.hardware import Held
from kvab.study.hardware import METRICS


def hardware_lines(held: Held) -> list[tuple[str, str]]:
    """Return every measured figure beside the simulated one, and a summary of each metric."""
    lines = []
    for name, of in held.rows.groupby("scenario", sort=False):
        scenario = held.scenarios[str(name)]
        lines.append((f"{name}: {scenario.title}", ""))
        for row in of.itertuples():
            measured = " and ".join(number(value) for value in row.measured)
            apart = signed(100 * (row.ratio - 1), 0)
            lines.append((f"  {row.arm} {row.cell} {METRICS[row.metric]}",
                          f"measured {measured}, simulated {number(row.simulated)} ({apart} %)"
                          ))  # fmt: skip
        for metric, found in held.summary(str(name)).items():
            floor = found["noise_floor"]
            noise = f"; two publications differ by {percent(floor)}" if floor is not None else ""
            median, low, high = (number(found[key], 2) for key in ("median_ratio", "low", "high"))
            lines.append((f"  {METRICS[metric]}, simulated over measured",
                          f"median {median}, {low} to {high}{noise}"))  # fmt: skip
    return lines
