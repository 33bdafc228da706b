"""The figure of what large inputs take.

Input: what the benchmarks measured. Output: a panel that a notebook shows.
"""

from __future__ import annotations

import matplotlib.pyplot as plt

from kvab.evidence.speed import Memory
from kvab.figures.theme import WIDTH_IN, Drawing, drawn
from kvab.wording import speed as wording


@drawn("speed-memory", lambda m: m.table, source=wording.memory_source)
def memory(measured: Memory) -> Drawing:
    """Draw memory over time, a panel for each large input."""
    steps = measured.table.groupby("step", sort=False)
    figure, axes = plt.subplots(
        1, steps.ngroups, figsize=(WIDTH_IN, 2.5), sharey=True, squeeze=False
    )
    for place, (step, rows) in zip(axes[0], steps, strict=True):
        place.plot(rows["seconds"], rows["gb"], color="#333333", linewidth=1.3)
        place.fill_between(rows["seconds"], rows["gb"], color="#8c8c8c", alpha=0.25, linewidth=0)
        place.set(title=step, xlabel="seconds", xlim=(0, None))
    axes[0][0].set(ylabel="memory [GB]", ylim=(0, None))  # of all panels, once all are drawn
    alt = "Memory over time, a panel for each large input. " + wording.memory_caption(measured)
    return figure, wording.memory_caption(measured), alt
