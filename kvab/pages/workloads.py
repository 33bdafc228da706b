"""Page 14: whether another workload gives the same answer, each judged by itself.

Input: a study with several workloads, a cluster and a folder of runs. Output: one object that a
notebook loads, its tables and sentences. Workloads stand side by side and are never pooled.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from kvab.console import interval, number, percent, plain
from kvab.errors import InputError
from kvab.pages.attribution import steps
from kvab.pages.capacity import (
    cheapest,
    ends_text,
    load_text,
    points_text,
    ratio_text,
)
from kvab.pages.evidence import Evidence, load_evidence
from kvab.pages.gate import WITHHELD, gate, verdict
from kvab.pages.outcome import headline
from kvab.pages.printed import Table, comparison_lines, with_ends
from kvab.runs.sweep import Sweep, load_sweep
from kvab.study import PUBLISHED, Study, load_study, root

SHOWN = {"good_share": "good requests", "ttft_ms": "TTFT mean [ms]", "itl_ms": "ITL mean [ms]"}


@dataclass(frozen=True)
class Workloads:
    """The workloads of a study on one cluster.

    Attributes
    ----------
    study : Study
        The declaration.
    cluster : str
        Name of the cluster.
    places : dict of str to Evidence
        Those with runs of both main configurations, by their name in study.yaml.
    folder : path
        The folder of runs; sweeps that it lacks are the published ones.
    """

    study: Study
    cluster: str
    places: dict[str, Evidence]
    folder: str | Path = PUBLISHED

    @cached_property
    def sweeps(self) -> dict[str, Sweep | None]:
        """The load sweep of each declared workload, None where it was not swept."""
        return {name: load_sweep(self.study.on(name), self.cluster, self.folder)
                for name in self.study.workloads}  # fmt: skip

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """The verdict on each metric (row) of each workload; withheld where its gate is red."""
        return pd.DataFrame({
            name: {key: verdict(evidence, key) for key in SHOWN}
            for name, evidence in self.places.items()
        })  # fmt: skip


def load_workloads(
    study: str | Path | Study, cluster: str, folder: str | Path, published: Path = PUBLISHED
) -> Workloads:
    """Return every workload of a study: its runs in a folder, else the published ones."""
    declared = load_study(study)
    places: dict[str, Evidence] = {}
    for name in declared.workloads:
        of = declared.on(name)
        own = (root() / folder / of.name / cluster).is_dir()
        with suppress(InputError):  # none, or they cannot be compared: the page says how to get it
            evidence = load_evidence(of, cluster, folder if own else published)
            if {of.baseline, of.comparison} <= evidence.runs.keys():
                places[name] = evidence
    return Workloads(declared, cluster, places, folder)


def notice(workloads: Workloads) -> str:
    """Return the notice on top of the page: where, and every workload that was replayed."""
    if not workloads.places:
        return ""
    traces = [plain(of.manifest.trace.name) + " (GENERATED WORKLOAD)" * of.synthetic
              for of in workloads.places.values()]  # fmt: skip
    first = next(iter(workloads.places.values()))
    title = "Simulated, not measured" if first.simulated else f"On {plain(workloads.cluster)}"
    what = f"{plain(first.manifest.cluster['description'])}, replaying each by itself"
    return f":::{{admonition}} {title}\n:class: important\n{what}: {', '.join(traces)}.\n:::"


def finding(workloads: Workloads) -> str:
    """Return whether all workloads have one verdict on good requests, and each one's answer."""
    verdicts = workloads.verdicts.loc["good_share"]
    head = "**The verdict on good requests depends on the workload.**"
    if len(verdicts) < 2 or WITHHELD in set(verdicts):
        head = "Fewer than two workloads have a verdict: none is compared with another."
    elif verdicts.nunique() == 1:
        same = f"On {len(verdicts)} workloads the verdict on good requests is the same"
        head = f"**{same}: {verdicts.iloc[0]}.**"
    every = workloads.places.items()
    return "\n".join([head, "", *(f"- `{name}`. {headline(of, gate(of))}" for name, of in every)])


def to_come(workloads: Workloads) -> str:
    """Return how to get the workloads that are not shown; nothing if all are."""
    study = workloads.study
    report = f"kvab report --study recipes/{study.base}/study.yaml --cluster {workloads.cluster}"
    missing = [name for name in study.workloads if name not in workloads.places]
    commands = ", ".join(f"`{report} --workload {name}`" for name in missing)
    if len(study.workloads) == 1:
        return "The study declares one workload; `workloads` of its study.yaml takes more."
    return f"Declared, but without runs to compare; to make them: {commands}." if missing else ""


def too_long(evidence: Evidence) -> int:
    """Return how many requests failed that are longer than the context, prompt and answer."""
    groups = [group for of in evidence.topologies.values() for group in of.groups.values()]
    rows, context = evidence.replayed, min(group.context_length for group in groups)
    long = rows.loc[rows["input_tokens"] + rows["output_tokens"] > context, "row"]
    return len({*long} & {*evidence.requests.loc[evidence.requests["error"].notna(), "row"]})


def table(workloads: Workloads) -> Table:
    """Return the comparison and every configuration on each workload."""
    columns: dict[str, dict[str, str]] = {}
    for name, evidence in workloads.places.items():
        rows = evidence.replayed
        cells = columns[name] = {
            "workload": f"{evidence.manifest.trace.name}\n"
            f"{len(rows):,} requests × {evidence.repeats}\n"
            f"mean prompt {number(rows['input_tokens'].mean(), 0)} tokens, "
            f"{percent(evidence.reusable_share)} reusable\n{too_long(evidence)} too long"
        }
        lines = dict(comparison_lines(evidence.comparison))
        for key, label in SHOWN.items():
            text = lines[label].replace("->", "→").replace(": ", "\n")
            cells[label] = f"{text}\n{workloads.verdicts.loc[key, name]}"
        main = evidence.study.baseline, evidence.study.comparison
        for arm, of in evidence.pooled.drop([*main]).iterrows():
            ttft_ms, itl_ms = number(of["ttft_ms.mean"]), number(of["itl_ms.mean"])
            cells[evidence.arms[str(arm)].label] = (
                f"{percent(of['good.share'])} good\nTTFT {ttft_ms}, ITL {itl_ms} ms"
            )
    same, level = workloads.verdicts.nunique(axis=1).eq(1).sum(), workloads.study.statistics.percent
    caption = (
        f"{same} of {len(SHOWN)} metrics have one verdict on all workloads shown. Baseline → "
        f"comparison with the {level} workload interval and the verdict; then the others. Too "
        "long: rejected, as prompt and answer are longer than the context; never good."
    )
    frame = pd.DataFrame(columns).fillna("no run").rename_axis("what").reset_index()
    return Table(frame, caption, tuple(frame))


def sweeps_table(workloads: Workloads) -> Table | None:
    """Return what the load sweep of each workload says: loads, layouts, and the least cost."""
    columns: dict[str, dict[str, str]] = {}
    for name, swept in workloads.sweeps.items():
        if swept is None:
            continue
        ratio = swept.curves.ratios.loc[swept.headline]
        carried = swept.curves.loads.set_index(["target", "configuration"]).loc[swept.headline]
        cells = columns[name] = {}
        for key, arm in swept.arms.items():
            load, least = load_text(*carried.loc[key, ["low", "high"]]), cheapest(swept, key)
            cells[arm.label] = f"{load}\n{number(least.gpu_hours)} GPU-hours at {least.load:g}x"
        cells["comparison / baseline"] = f"{ratio_text(ratio)}\n({ends_text(ratio)})"
        for (at, key, layout), row in swept.best_layouts("load", "configuration").iterrows():
            cells[f"{swept.arms[key].label}, best layout at {at:g}x"] = (
                f"{layout}: {percent(row['share'])} good\n{points_text(row)}".rstrip()
            )
        if swept.changes:
            cells["does not fit what is declared now"] = "\n".join(swept.changes)
    if not columns:
        return None
    share = percent(workloads.study.capacity.headline, 0) if workloads.study.capacity else ""
    caption = (
        f"Of each configuration the load that keeps {share} good, in multiples of the workload's "
        "own arrival speed with bursts at once, and the fewest GPU-hours for 1,000 good requests "
        "with the load that takes them. Then the layout on the same GPUs that keeps most requests "
        "good, and its points from the comparison as deployed, paired. In brackets "
        f"{workloads.study.statistics.percent} workload intervals."
    )
    frame = pd.DataFrame(columns).fillna("not swept").rename_axis("what").reset_index()
    return Table(frame, caption, tuple(frame))


def _effects(evidence: Evidence) -> str:
    """Return what routing and split bring to the good share, with intervals where all four ran."""
    if not gate(evidence).green:
        return f"{WITHHELD}."
    if evidence.missing:
        return f"{steps(evidence)}; these differences have no interval here."
    rows = evidence.attribution[evidence.attribution["statistic"] == "share"]
    effects = (
        f"{row.effect} {with_ends('good_share', row.value, row.ci_low, row.ci_high, gap=' ')}"
        for row in rows.itertuples()
    )
    return (
        f"{steps(evidence)}. Main effects in points, with their "
        f"{evidence.study.statistics.percent} workload interval: {', '.join(effects)}."
    )


def _ahead(swept: Sweep | None) -> str:
    """Return which layouts of other configurations beat the comparison beyond noise, by load."""
    if swept is None:
        return ""
    said = ""
    for (load, name, label), row in swept.best_layouts("load").iterrows():
        if name != swept.study.comparison and row["difference_low"] > 0:
            ends = interval(row["difference_low"], row["difference_high"], 100)
            said += (
                f" At {load:g} times its load {swept.arms[name].label} as {label}, chosen after "
                f"the fact, is ahead of the comparison by {number(100 * row['difference'], 1)} "
                f"points ({ends})."
            )
    return said


def beside_answer(workloads: Workloads) -> str:
    """Return what the comparison brings on the further workloads, for the first page."""
    lines = []
    for name, evidence in workloads.places.items():
        if name == workloads.study.workload or not gate(evidence).green:
            continue
        good = evidence.comparison.good.mean.difference
        ends = with_ends("good_share", good.value, good.low, good.high, gap=" ")
        lines.append(
            f"On `{name}` the comparison changes the good share by {ends} points."
            f"{_ahead(workloads.sweeps.get(name))}"
        )
    return f"**[Another workload?](14_other_workload)** {' '.join(lines)}" if lines else ""


def lesson(workloads: Workloads) -> str:
    """Return what the factors bring on each workload, and what two workloads cannot show."""
    lines = [
        f"- `{name}`. {_effects(evidence)}{_ahead(workloads.sweeps.get(name))}"
        for name, evidence in workloads.places.items()
    ]
    if len(lines) > 1:
        lines.append("- Workloads differ in load, lengths and reuse at once: which of these makes "
                     "the difference is not shown here.")  # fmt: skip
    return "\n".join(lines)
