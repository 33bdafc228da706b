"""The model check in words: how close the simulation comes to the live stack, and where not.

Input: the check. Output: Markdown, and plain text for captions.
"""

from __future__ import annotations

import pandas as pd

from kvab.console import number, percent, plain, signed
from kvab.pages.evidence.model_check import Check
from kvab.pages.validity import WITHHELD, gate
from kvab.requests.metrics import LATENCIES, METRICS

WATCHED = (("ttft_ms", "mean"), ("itl_ms", "p50"), ("latency_ms", "mean"))


def provenance(check: Check | None, cluster: str) -> str:
    """Return the notice on top of the page: which live runs are shown."""
    if check is None:
        return (
            ":::{note}\nNo live runs yet: `kvab report --cluster live-cpu --rows 300` makes them "
            "on two cores, in real time.\n:::"
        )
    manifest = check.live.manifest
    whose = "" if check.own or check.live.cluster == cluster else " These are the published runs."
    versions = ", ".join(f"{plain(name)} {plain(text)}" for name, text in manifest.versions.items())
    return (
        f":::{{note}}\n**Live:** {plain(manifest.cluster['description'])}, the first "
        f"{manifest.trace.rows:,} requests of {plain(manifest.trace.name)} in real time. "
        f"**Simulated:** the same rows on the simulator. No GPU in either.{whose} {versions}.\n:::"
    )


def source(check: Check, _: bool = True) -> str:
    """Return where a figure's data come from, for the end of its caption."""
    rows = check.live.manifest.trace.rows
    return (
        f"Source: {check.live.cluster}, {rows:,} requests on mock engines without a GPU, and a "
        "simulation of the same rows."
    )


def _worst(check: Check, metric: str, statistic: str) -> pd.Series:
    """Return the row of the configuration in which the simulation is off most."""
    found = check.errors
    rows = found[(found["metric"] == metric) & (found["statistic"] == statistic)]
    return rows.loc[rows["centre"].abs().idxmax()]


def closeness(check: Check | None) -> str:
    """Return in one sentence how close the simulation came."""
    if check is None:
        return "How far the simulation can be trusted is not known yet: no live run is there."
    if not gate(check.live).green:
        return (
            f"How far the simulation can be trusted is {WITHHELD} on {plain(check.live.cluster)}."
        )
    said = [
        f"{statistic if statistic != 'mean' else 'mean'} {METRICS[key].short} by at most "
        f"{percent(abs(_worst(check, key, statistic)['centre']))}"
        for key, statistic in WATCHED
    ]
    good = _worst(check, "good_share", "share")
    rows = check.live.manifest.trace.rows
    return (
        f"**How far the simulation can be trusted:** against Dynamo's real frontend, router and "
        f"mock engines under real AIPerf, on the first {rows:,} requests, it is off in "
        f"{', in '.join(said)}, and in the good share by at most "
        f"{number(100 * abs(good['centre']), 1)} points ([](09_model_check))."
    )


def orders(check: Check | None) -> str:
    """Return what the order inside bursts explains of the errors, and what remains."""
    if check is None:
        return "Nothing to compare yet."
    found = check.errors[check.errors["metric"].isin(LATENCIES)]
    found = found[found["statistic"].isin(["mean", "p50", "p90"])]
    inside = (found["least"] <= 0) & (found["most"] >= 0)
    outside = found[~inside]
    width = (found["most"] - found["least"]).mean()
    said = (
        "A burst's requests come at one instant of the trace's clock, and who comes first decides "
        "who shares a worker with whom. Live, that order is settled by which prompt the frontend "
        "has read first, and AIPerf does not record it. So the simulation is repeated in "
        f"{check.orders['order'].nunique()} orders (the file's, that of sending, shortest prompts "
        "first, shuffles): over them its mean, p50 and p90 of the three "
        f"latencies move by {percent(width)} on average. {inside.sum()} of {len(found)} live "
        "values lie within that range: for them the order inside bursts is enough to explain the "
        "difference. "
        f"In the very order in which AIPerf sent them the error is "
        f"{percent(found['sent'].abs().mean())} on average, in file order "
        f"{percent(found['error'].abs().mean())}, averaged over orders "
        f"{percent(found['centre'].abs().mean())}."
    )
    if outside.empty:
        return said
    worst = outside.loc[outside["centre"].abs().idxmax()]
    label = check.live.arms[worst["configuration"]].label
    return said + (
        f" Of the {len(outside)} others the largest error is that of the {worst['statistic']} "
        f"{METRICS[worst['metric']].short} of {label} ({signed(100 * worst['centre'], 1)} %), "
        "which no order that was tried explains. What else differs: live, frontend, engines and "
        "load generator share the cores of one machine, and the first requests of a burst start "
        "while the others are still being read."
    )


def tokens(check: Check | None) -> str:
    """Return that every count agrees, which makes the two definitions of ITL one."""
    if check is None:
        return "Nothing to compare yet."
    tables = [check.live.tables(name)[0] for name in check.live.runs]
    rows = sum(len(table) for table in tables)
    off = sum(int((t["output_tokens"] != t["requested_output_tokens"]).sum()) for t in tables)
    failed = sum(int(t["error"].notna().sum()) for t in tables)
    lag = max(t["send_lag_ms"].quantile(0.99) for t in tables)
    return (
        f"{rows:,} requests live: {failed} failed, {off} with another number of answer tokens "
        f"than the trace asks for, prompt tokens equal on every row (the gate checks it); the p99 "
        f"send lag is at most {number(lag, 1)} ms. ITL is (latency - TTFT) / (answer tokens - 1) "
        "of each request in both, on the server's counts; the simulator's own summary pools all "
        "gaps instead and is not used."
    )


def errors_caption(check: Check) -> str:
    """Return the caption of the figure of errors."""
    ttft = _worst(check, "ttft_ms", "mean")
    label = check.live.arms[ttft["configuration"]].label
    return (
        f"The mean TTFT is off most under {label}, by {signed(100 * ttft['centre'], 1)} %. Error "
        "of the simulation against the live run of the same rows: a dot its mean over orders of "
        "the rows inside bursts, the bar from the least to the most."
    )


def scatter_caption(check: Check) -> str:
    """Return the caption of the scatter of requests."""
    pairs = check.pairs.dropna(subset=["ttft_ms_live", "ttft_ms_twin"])
    ratio = pairs["ttft_ms_twin"] / pairs["ttft_ms_live"]
    near = float(ratio.between(0.8, 1.25).mean())
    return (
        f"{percent(near, 0)} of requests have a simulated TTFT within a quarter of their live one. "
        "Each point a request; on the line both agree."
    )
