"""Page 02: what was replayed, on which configurations, and what the gate says of it.

Input: the evidence, whose runs carry their manifests, and its gate. Output: figures, tables and
sentences, in the order of the page.
"""

from __future__ import annotations

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from kvab.console import counted, number, percent, plain
from kvab.pages.evidence import Evidence
from kvab.pages.gate import REUSE_WORTH_SHARE, Gate
from kvab.pages.printed import Table, rejected
from kvab.pages.theme import WIDTH_IN, Drawing, drawn
from kvab.requests.metrics import overloaded
from kvab.study.manifests import read_configuration
from kvab.study.topology import flatten
from kvab.trace.reading import describe_rows

BURSTY_SHARE = 0.5  # of the requests that share their timestamp with another
LONG_PROMPTS = 4  # times the tokens of the answers
OF_BLOCKS = ("unique blocks", "blocks in more than one request", "block references",
             "repeat references", "longest prompt + answer [tokens]")  # fmt: skip
"""What `kvab trace describe` prints beside."""
ORDERS = {"file": "in the order of the file"}
LINE, BARS = "#333333", "#8c8c8c"


def _prompt_tokens_an_answer_token(rows: pd.DataFrame) -> float:
    return float(rows["input_tokens"].sum() / rows["output_tokens"].sum())


def _times(ratio: float) -> str:
    return f"{number(ratio, 0 if ratio >= 10 else 1)} times as many tokens as answers"


def _together(evidence: Evidence) -> int:
    """Return how many of the replayed requests share their timestamp with another."""
    return int(evidence.replayed["arrival_ms"].duplicated(keep=False).sum())


def _bursty(evidence: Evidence) -> bool:
    return _together(evidence) > BURSTY_SHARE * len(evidence.replayed)


def finding(evidence: Evidence, judged: Gate) -> str:
    """Return whether the runs may be compared, and how much differs between them."""
    if not judged.green:
        reasons = "".join(f"\n- {plain(reason)}" for reason in judged.reasons)
        return f":::{{danger}}\nThe gate is **red**; every verdict is withheld.\n{reasons}\n:::"
    fields = len(_difference(evidence))
    return (
        f"**The runs may be compared: all {len(judged.checks)} checks passed.** "
        f"{counted(len(evidence.arms), 'configuration')} replayed the same "
        f"{counted(len(evidence.replayed), 'request')}, {counted(evidence.repeats, 'time')} each; "
        f"baseline and comparison differ in {counted(fields, 'field')} of their deploy.yaml."
    )


def description_table(evidence: Evidence) -> Table:
    """Return the description of the trace."""
    description, trace = evidence.workload.description, evidence.manifest.trace
    lines = describe_rows({**description, "sha256": description["sha256"][:16] + "…"})
    lines = [(label, value) for label, value in lines if label not in OF_BLOCKS]
    caption = (
        f"The whole trace; replayed were the first {trace.rows:,} of its "
        f"{counted(trace.total_rows, 'request')}."
        if trace.rows < trace.total_rows
        else ""
    )
    return Table(pd.DataFrame(lines, columns=["quantity", "value"]), caption)


def _per_tick(evidence: Evidence) -> pd.DataFrame:
    counts = evidence.workload.table["arrival_ms"].value_counts().sort_index()
    return counts.rename("requests").reset_index()


@drawn("workload-arrivals", _per_tick, runs=False)
def arrivals_figure(evidence: Evidence) -> Drawing:
    """Draw requests a minute along the trace, and how many arrive at one tick of its clock."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH_IN, 2.6), width_ratios=[2, 1])
    arrival_ms, trace = evidence.workload.table["arrival_ms"], evidence.workload.description
    per_minute = (arrival_ms // 60_000).value_counts().sort_index()
    left.step(per_minute.index, per_minute, where="mid", color=LINE, linewidth=1.2)
    left.set(xlabel="minute of the trace", ylabel="requests a minute", ylim=(0, None))
    bursts = arrival_ms.value_counts().value_counts().sort_index()
    right.bar(bursts.index, bursts, color=BARS, width=0.8)
    right.set(xlabel="requests at one tick", ylabel="ticks")
    caption = (
        f"{counted(trace['rows'], 'request')} at "
        f"{counted(trace['distinct_timestamps'], 'timestamp')}, up to {trace['largest_burst']} at "
        "one. Left: requests a minute along the trace. Right: how many requests come at one tick "
        "of its clock."
    )
    alt = (
        f"Left: requests a minute between {per_minute.min()} and {per_minute.max()} over "
        f"{len(per_minute)} minutes. Right: histogram of burst sizes from {bursts.index.min()} "
        f"to {bursts.index.max()}."
    )
    return figure, caption, alt


def clock(evidence: Evidence) -> str:
    """Return whether requests come in bursts, and what a shuffle inside these changes."""
    together, total = _together(evidence), len(evidence.replayed)
    some = f"{together:,} of {total:,}"
    if _bursty(evidence):
        return (
            f"The clock of the trace is coarse: {'all' if together == total else some} requests "
            "share their timestamp with others, and the order inside such a burst is not recorded."
        )
    if not together:
        return "Requests come one by one: no two share a timestamp, so a shuffle changes nothing."
    return (
        f"Requests come mostly one by one: {some} share their timestamp with another, so a shuffle "
        "changes little."
    )


@drawn("workload-lengths", lambda e: e.workload.table, runs=False)
def lengths_figure(evidence: Evidence) -> Drawing:
    """Distributions of prompt and answer lengths, and of the reusable part of prompts."""
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH_IN, 2.5))
    table = evidence.workload.table
    repeated = table["reusable_tokens"]
    shares = 100 * repeated / table["input_tokens"]
    shown = (
        (table["input_tokens"], "prompt tokens", True),
        (table["output_tokens"], "answer tokens", True),
        (shares, "prompt seen before [%]", False),
    )
    for axes, (values, label, log) in zip(panels, shown, strict=True):
        space, scale = (np.geomspace, "log") if log else (np.linspace, "linear")
        axes.hist(values, space(values.min(), values.max(), 41), color=BARS)
        axes.set(xscale=scale, xlabel=label + " [log scale]" * log)
    panels[0].set_ylabel("requests")
    caption = (
        f"Prompts hold {_times(_prompt_tokens_an_answer_token(table))}, "
        f"and {percent(repeated.sum() / table['input_tokens'].sum(), 0)} of prompt tokens had been "
        "seen before as a prefix. Distributions of prompt length, answer length and the share of "
        "each prompt that an earlier prompt began with."
    )
    alt = (
        f"Histograms: prompts of median {table['input_tokens'].median():,.0f} tokens, answers of "
        f"median {table['output_tokens'].median():,.0f}, and the share of each prompt that an "
        f"earlier prompt began with, median {shares.median():.0f} per cent."
    )
    return figure, caption, alt


def lengths(evidence: Evidence) -> str:
    """Return what the lengths mean for the two latencies, and how many answers have no pace."""
    rows = evidence.replayed
    text = (
        "Prompts are long against answers: most tokens are prefilled, and prefill is what a "
        "cached prefix saves."
        if _prompt_tokens_an_answer_token(rows) >= LONG_PROMPTS
        else "Answers hold a good part of all tokens, so the pace of decoding matters as well as "
        "the time to first token."
    )
    if one := int((rows["output_tokens"] == 1).sum()):
        text += (
            f" {counted(one, 'request')} with one answer token can never be *good* by AIPerf's "
            "rule: there is no inter-token latency."
        )
    return text


# --- the configurations -----------------------------------------------------------------------


def topologies_table(evidence: Evidence) -> Table:
    """Return what each configuration deploys."""
    lines = [
        {
            "configuration": arm.label,
            "role": arm.role,
            "workers": ", ".join(
                f"{group.replicas} {role} x TP{group.tensor_parallel}"
                for role, group in evidence.topologies[name].groups.items()
            ),
            "GPUs": evidence.gpus[name],
        }
        for name, arm in evidence.arms.items()
    ]
    return Table(pd.DataFrame(lines), "", ("role", "workers"))


def _difference(evidence: Evidence) -> pd.DataFrame:
    """Return the fields in which both configurations differ, worker compared with worker.

    Workers are matched by role; a role that only one configuration has is compared with the
    worker that does its work in the other.
    """
    names = evidence.study.main
    flat = [flatten(read_configuration(evidence.runs[name][0].path / "manifests"))
            for name in names]  # fmt: skip
    groups = [evidence.topologies[name].groups for name in names]
    workers = {group.component for each in groups for group in each.values()}
    pairs = {"deployment": ("", "")}
    for role in dict.fromkeys([*groups[0], *groups[1]]):
        one, other = (each.get(role) or each.get("aggregated") for each in groups)
        if one and other:
            pairs[f"{role} worker"] = (f"{one.component}.", f"{other.component}.")
    rows = []
    for where, prefixes in pairs.items():
        left, right = (
            {
                field.removeprefix(prefix): value
                for field, value in fields.items()
                if (field.startswith(prefix) if prefix else field.split(".")[0] not in workers)
            }
            for prefix, fields in zip(prefixes, flat, strict=True)
        )
        rows += [
            (f"{where}: {field}", left.get(field, "–"), right.get(field, "–"))
            for field in dict.fromkeys([*left, *right])
            if left.get(field) != right.get(field)
        ]
    return pd.DataFrame(rows, columns=["field", *(evidence.arms[name].label for name in names)])


def differences_table(evidence: Evidence) -> Table:
    """Return every field in which baseline and comparison differ."""
    frame = _difference(evidence)
    return Table(frame, "", tuple(frame.columns))


def unexpressed_table(evidence: Evidence) -> Table:
    """Return why the simulator cannot express some fields of the manifests, and which."""
    every = [(item.why, item.field) for name in evidence.arms
             for item in evidence.topologies[name].unexpressed]  # fmt: skip
    frame = pd.DataFrame(every, columns=["why", "fields"]).drop_duplicates()
    frame = frame.groupby("why", sort=False, as_index=False).agg(", ".join)
    return Table(frame, "", tuple(frame.columns))


# --- the runs and their gate --------------------------------------------------------------------


def runs_table(evidence: Evidence) -> Table:
    """Return the runs that the book stands on, the repeats of each configuration together."""
    lines = []
    for name, repeats in evidence.runs.items():
        counts = [run.manifest.counts for run in repeats]
        orders = Counter(run.manifest.order for run in repeats)
        overload = sum(int(overloaded(run.requests).sum()) for run in repeats)
        lines.append({
            "configuration": evidence.arms[name].label,
            "repeats": ", ".join(
                f"{count} {ORDERS.get(order, order)}" for order, count in orders.items()
            ),
            "received": f"{sum(count.received for count in counts):,} of "
                        f"{sum(count.expected for count in counts):,}",
            "failed": f"{sum(count.errors for count in counts):,}{rejected(overload)}",
            "ended (UTC)": f"{max(run.manifest.end for run in repeats):%Y-%m-%d %H:%M}",
        })  # fmt: skip
    versions = ", ".join(f"{name} {v}" for name, v in evidence.manifest.versions.items())
    return Table(pd.DataFrame(lines), f"Cluster {evidence.cluster}; {versions}.", ("repeats",))


def exclusions(evidence: Evidence) -> str:
    """Return which declared configurations and repeats are missing, with the reason."""
    study, lines = evidence.study, []
    for name, arm in study.configurations.items():
        repeats = evidence.runs.get(name, [])
        if not repeats:
            lines.append(f"{arm.label}: not run on {plain(evidence.cluster)}")
        elif len(repeats) < study.repeats:
            every = counted(study.repeats, "repeat")
            lines.append(f"{arm.label}: {len(repeats)} of {every}")
        lines += [f"{arm.label} r{run.manifest.repeat}: {plain(run.manifest.reason)}"
                  for run in repeats if run.manifest.status != "complete"]  # fmt: skip
    if not lines:
        return "Nothing is excluded: every declared configuration and repeat is there and whole."
    return "Missing or incomplete:\n\n" + "\n".join(f"- {line}" for line in lines)


def gate_table(judged: Gate) -> Table:
    """Return the checks: those that failed one by one, those that passed summed up."""
    checks = judged.checks
    failed = checks[~checks["passed"]]
    failed = failed.assign(found="FAILED: " + failed["found"])
    passed = checks[checks["passed"]].groupby("check", sort=False, as_index=False).agg(
        where=("where", lambda v: v.iloc[0] if len(v) == 1 else f"all {len(v)}"),
        expected=("expected", "first"),
        found=("found", lambda v: v.iloc[0] if v.nunique() == 1 else f"{v.iloc[0]} … {v.iloc[-1]}"),
    )  # fmt: skip
    columns = ["check", "where", "expected", "found"]
    return Table(pd.concat([failed, passed])[columns], "", tuple(columns))


def lesson(evidence: Evidence) -> str:
    """Return what the page teaches of the requests."""
    repeated = evidence.reusable_share
    comes = "in bursts" if _bursty(evidence) else "mostly one by one"
    worth = "is worth something" if repeated >= REUSE_WORTH_SHARE else "saves next to nothing"
    return (
        f"Requests come {comes}, prompts hold "
        f"{_times(_prompt_tokens_an_answer_token(evidence.replayed))}, "
        f"and {percent(repeated, 0)} of prompt tokens repeat the beginning of an earlier prompt: "
        f"finding a cached prefix {worth}."
    )
