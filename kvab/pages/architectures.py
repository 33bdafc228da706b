"""A drawing of what baseline and comparison deploy.

Input: the evidence, whose runs carry their ``deploy.yaml``. Output: a figure.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from kvab.console import counted
from kvab.pages.evidence import Evidence
from kvab.pages.theme import WIDTH_IN, Drawing, arm_styles, drawn
from kvab.study.topology import Topology, WorkerGroup

Point = tuple[float, float]

INK, SHADED = "#333333", "#8c8c8c"
GAP, FRONTEND, ROWS, HEIGHT = 0.5, (2.6, 5.6), (8.6, 13), 15.6  # of lengths, a GPU's side is 1
ROUTES = {"round_robin": ("round-robin", "each worker in turn"),
          "kv": ("KV router", "most of the prompt cached, least load")}  # fmt: skip
FILLED = {"aggregated": 0.5, "prefill": 1, "decode": 0}  # of a GPU's square


def _both(evidence: Evidence) -> dict[str, Topology]:
    """Return what baseline and comparison deploy."""
    study = evidence.study
    return {name: evidence.topologies[name] for name in (study.baseline, study.comparison)}


def _table(evidence: Evidence) -> pd.DataFrame:
    """Return the number of workers of each role, by configuration."""
    workers = {name: {role: group.replicas for role, group in topology.groups.items()}
               for name, topology in _both(evidence).items()}  # fmt: skip
    return pd.DataFrame(workers).T.rename_axis("configuration")


@drawn("index-architectures", _table, runs=False,
       source=lambda *_: "Source: deploy.yaml of the runs.")  # fmt: skip
def architectures_figure(evidence: Evidence) -> Drawing:
    """Draw baseline and comparison: the frontend, every worker with its GPUs, a request's way."""
    both, styles = _both(evidence), arm_styles(evidence.arms)
    width = max(_width(group) for topology in both.values() for group in topology.groups.values())
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH_IN, 3.1))
    for axes, (name, topology) in zip(panels, both.items(), strict=True):
        axes.set(xlim=(0, width), ylim=(HEIGHT, 0), xticks=[], yticks=[])
        axes.axis("off")
        axes.set_title(evidence.arms[name].label)
        _draw(axes, topology, styles[name]["color"])
    baseline, comparison = (" and ".join(map(_workers, topology.groups, topology.groups.values()))
                            for topology in both.values())  # fmt: skip
    gpus = {topology.gpus for topology in both.values()}
    fill = f"the same {counted(gpus.pop(), 'GPU')}" if len(gpus) == 1 else "unequal hardware"
    caption = (
        f"Both fill {fill}: the baseline with {baseline}, the comparison with {comparison}. A "
        "square is a GPU, filled for prefill, empty for decode. Bold arrows are one request's way."
    )
    alt = "From the frontend requests go down to the workers. " + " ".join(
        f"{evidence.arms[name].label}: {topology.describe()}" for name, topology in both.items()
    )
    return figure, caption, alt


def _workers(role: str, group: WorkerGroup) -> str:
    return counted(group.replicas, f"{role} worker")


def _width(group: WorkerGroup) -> float:
    return group.replicas * (group.gpus_per_worker + GAP) + GAP


def _draw(axes: Axes, topology: Topology, color: str) -> None:
    """Draw one configuration from the request downwards."""
    middle = axes.get_xlim()[1] / 2
    top, bottom = FRONTEND
    route, criterion = ROUTES[topology.router]
    axes.text(middle, 0.5, "request", ha="center", va="center")
    _arrow(axes, (middle, 1.1), (middle, top), color)
    axes.add_patch(Rectangle((middle - 7.5, top), 15, bottom - top, fill=False, edgecolor=INK))
    axes.text(middle, top + 0.9, f"frontend, {route}", ha="center", va="center", weight="bold")
    axes.text(middle, top + 2.1, criterion, ha="center", va="center", fontsize=8)
    came = (middle, bottom)
    for n, (role, group) in enumerate(topology.groups.items()):
        y = ROWS[n - len(topology.groups)]
        middles = _row(axes, role, group, y)
        chosen = middles[len(middles) * 2 // 3]
        for x in () if n else middles:
            axes.plot([came[0], x], [came[1], y], color=SHADED, linewidth=0.7)
        _arrow(axes, came, (chosen, y - 0.1), color, "--" if n else "-")
        if n:
            axes.text(came[0] + 0.5, (came[1] + y) / 2, "KV transfer", va="center", fontsize=8.5)
        came = (chosen, y + 1.2)


def _row(axes: Axes, role: str, group: WorkerGroup, y: float) -> list[float]:
    """Draw the workers of one role, a square for each GPU; return the middle of each worker."""
    size, left = group.gpus_per_worker, (axes.get_xlim()[1] - _width(group)) / 2 + GAP
    starts = [left + worker * (size + GAP) for worker in range(group.replicas)]
    for start in starts:
        axes.add_patch(Rectangle((start, y), size, FILLED[role], color=SHADED, linewidth=0))
        for gpu in range(size):
            axes.add_patch(Rectangle((start + gpu, y), 1, 1, fill=False, edgecolor=INK))
    label = f"{_workers(role, group)} of {counted(size, 'GPU')}"
    axes.text(left, y + 1.9, label, va="center", fontsize=8.5)
    return [start + size / 2 for start in starts]


def _arrow(axes: Axes, start: Point, end: Point, color: str, line: str = "-") -> None:
    axes.annotate("", end, start, arrowprops={
        "arrowstyle": "-|>", "color": color, "linewidth": 2, "linestyle": line,
        "shrinkA": 0, "shrinkB": 0,
    })  # fmt: skip
