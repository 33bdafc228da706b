"""How far the simulation can be trusted: live runs against simulations of the same rows.

Input: the live runs of a study. Output: their simulated twins, kept beside them in one small table,
and the errors of the simulation with their intervals.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from kvab import runs
from kvab.cache import remember, source_digest
from kvab.clusters.simulated import simulate
from kvab.clusters.simulated import versions as simulator_versions
from kvab.console import number, percent, plain, signed
from kvab.declarations import digest
from kvab.errors import InputError
from kvab.pages.evidence import Evidence, load_evidence
from kvab.pages.gate import WITHHELD, gate
from kvab.pages.theme import PLAIN, WIDTH_IN, Drawing, Table, arm_styles, drawn, legend_below
from kvab.requests import metrics
from kvab.requests.metrics import LATENCIES, METRICS
from kvab.runs import summaries
from kvab.study import Simulated, load_study, recipes, root
from kvab.trace import Trace, burst_order

TABLE, ORDERS = Path("model-check") / "twins.parquet", Path("model-check") / "orders.parquet"
FILE, SENT, SHORT = "file", "sent", "shortest first"
SHUFFLES = 8
KEPT = ["row", "arrival_ms", "input_tokens", "output_tokens", "requested_output_tokens",
        *LATENCIES, "cached_tokens", "error"]  # fmt: skip
ROUNDED = {"ttft_ms": 1, "itl_ms": 3, "latency_ms": 1}


def make_twins(evidence: Evidence, trace: Trace, folder: Path) -> Path:
    """Simulate the rows of each live configuration's first run, and keep the twins beside it.

    The twin proper has the rows of a burst in the order of the run's file. The same rows are also
    simulated in the order in which AIPerf sent them, with the shortest prompts of a burst first
    (a frontend that reads prompts side by side has those first), and in seeded shuffles: of these
    only the statistics are kept, to tell what the order alone does.

    Raises
    ------
    InputError
        If the runs are of another trace.
    """
    if trace.sha256 != evidence.manifest.trace.sha256:
        raise InputError(
            f"{trace.path}: expected the trace of the runs ({evidence.manifest.trace.name}), got "
            f"another; name that trace with --trace"
        )
    jobs = [
        (found[0], trace, label, order)
        for found in evidence.runs.values()
        for label, order in _orders(found[0], trace).items()
    ]
    print(f"simulating the same rows: {len(jobs)} short replays", file=sys.stderr)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        tables = [*pool.map(_simulate, jobs)]
    twins, told = [], []
    for (run, _, label, _), table in zip(jobs, tables, strict=True):
        name, found = run.manifest.configuration, metrics.summarize(table, evidence.study.slo)
        if label == FILE:
            twins.append(table[KEPT].round(ROUNDED).assign(configuration=name))
        told += [
            {"configuration": name, "order": label, "metric": key, "statistic": each,
             "value": found[key][each]}
            for key in LATENCIES for each in metrics.COMPARED
        ]  # fmt: skip
        told.append({"configuration": name, "order": label, "metric": "good_share",
                     "statistic": "share", "value": found["good"]["share"]})  # fmt: skip
    place = folder / evidence.study.name / evidence.cluster
    (place / TABLE).parent.mkdir(parents=True, exist_ok=True)
    runs.write_beside(place / ORDERS, runs.parquet_bytes([pd.DataFrame(told)]))
    runs.write_beside(place / TABLE, runs.parquet_bytes([pd.concat(twins, ignore_index=True)]))
    return place / TABLE


def _orders(run: runs.Run, trace: Trace) -> dict[str, np.ndarray]:
    """Return rows in sending order, by label."""
    at_ms = trace.timestamp_ms[: len(run.requests)]
    sent = run.requests.sort_values(["arrival_ms", "send_lag_ms"])["row"].to_numpy()
    shuffled = {f"shuffle {n}": burst_order(at_ms, n) for n in range(1, SHUFFLES + 1)}
    short = np.lexsort((trace.input_tokens[: len(at_ms)], at_ms))
    return {FILE: burst_order(at_ms, run.manifest.seed), SENT: sent, SHORT: short} | shuffled


def _simulate(job: tuple[runs.Run, Trace, str, np.ndarray]) -> pd.DataFrame:
    run, trace, _, order = job
    cluster = run.manifest.cluster
    profile = Simulated(
        kind="simulated", name=f"twin of {cluster['name']}", description="twin",
        hardware=cluster["hardware"], backend=cluster["backend"],
    )  # fmt: skip
    simulator_versions(profile)  # or the error that says what is missing
    topology = recipes.topology(recipes.read_configuration(run.path / "manifests"))
    return simulate(profile, topology, trace, order)[0]


@dataclass(frozen=True)
class Check:
    """Live runs and their simulated twins; ``own`` is False for the published ones."""

    live: Evidence
    twins: pd.DataFrame
    orders: pd.DataFrame
    own: bool

    @property
    def simulated(self) -> bool:
        """Not as a whole: its figures name both sides."""
        return False

    @property
    def synthetic(self) -> bool:
        """Whether the workload is made up."""
        return self.live.synthetic

    @cached_property
    def key(self) -> str:
        """Digest of everything that a page shows of the check."""
        return digest([self.live.key, self.twins.to_json(), self.orders.to_json(), self.own])

    def twin(self, configuration: str) -> pd.DataFrame:
        """Return the simulated requests table of a configuration; it sends without a lag."""
        own = self.twins[self.twins["configuration"] == configuration]
        return own.sort_values("row", ignore_index=True).assign(send_lag_ms=0.0)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Every request: ``configuration``, ``row``, and each metric ``_live`` and ``_twin``."""
        parts = []
        for name in self.live.runs:
            live, twin = self.live.tables(name)[0], self.twin(name)
            both = live.merge(twin, on="row", suffixes=("_live", "_twin"))
            parts.append(both.assign(configuration=name))
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def errors(self) -> pd.DataFrame:
        """Errors of the simulation, see `errors`."""
        return remember(digest([self.key, source_digest()]), "model-check", lambda: _errors(self))

    @cached_property
    def reuse(self) -> pd.DataFrame:
        """Share of prompt tokens from cache: indexed by configuration, ``live``, ``simulated``."""
        rows = {
            name: {
                "live": summaries.reuse(self.live.runs[name][0]),
                "simulated": metrics.cached_share(self.twin(name)),
            }
            for name in self.live.runs
        }
        return pd.DataFrame.from_dict(rows, orient="index")


def _errors(check: Check) -> pd.DataFrame:
    """Return the relative error of the simulation for each metric and statistic.

    Returns
    -------
    DataFrame
        ``configuration``, ``metric``, ``statistic``, ``live``, ``simulated`` (ms; shares of 1),
        ``error`` (simulated over live minus 1; for the good share the difference) and its workload
        interval ``ci_low``, ``ci_high``; ``sent`` (the error in the order sent), ``centre``,
        ``least`` and ``most`` (mean over file order and shuffles; ends over all orders).
    """
    from kvab.stats.compare import compare

    study, lines = check.live.study, []
    for name in check.live.runs:
        tables = [check.live.tables(name)[0]], [check.twin(name)]
        found = compare(*tables, study.slo, **study.statistics.model_dump())
        cells = [(key, *of) for key in LATENCIES for of in found.metrics[key].statistics.items()]
        for key, statistic, row in [*cells, ("good_share", "share", found.good.mean)]:
            share = key == "good_share"
            ends = row.difference if share else row.ratio
            low, high = ends.low - (not share), ends.high - (not share)
            live = row.baseline
            off = _values(check, name, key, statistic)
            off = off - live if share else off / live - 1
            shuffled = off.drop([SENT, SHORT], errors="ignore")
            lines.append(
                {"configuration": name, "metric": key, "statistic": statistic, "live": live,
                 "simulated": row.comparison, "error": off[FILE], "ci_low": low,
                 "ci_high": high, "sent": off[SENT], "centre": shuffled.mean(),
                 "least": off.min(), "most": off.max()}
            )  # fmt: skip
    return pd.DataFrame(lines)


def _values(check: Check, configuration: str, metric: str, statistic: str) -> pd.Series:
    """Return the simulated value by order."""
    found = check.orders
    own = (found["configuration"] == configuration) & (found["metric"] == metric)
    return found[own & (found["statistic"] == statistic)].set_index("order")["value"]


def load_check(
    study: str | Path, cluster: str, folder: str | Path, published: str | Path = "book/published"
) -> Check | None:
    """Return the check of a live cluster in a folder of runs, else the published one, if any."""
    read = load_study(study)
    places = [(root() / folder, cluster)]
    public = root() / published
    places += [
        (public, path.parents[1].name) for path in sorted(public.glob(f"{read.name}/*/{TABLE}"))
    ]
    for place, name in places:
        path = place / read.name / name / TABLE
        if path.is_file():
            own = not path.resolve().is_relative_to(public.resolve())
            orders = pd.read_parquet(place / read.name / name / ORDERS)
            return Check(load_evidence(study, name, place), pd.read_parquet(path), orders, own)
    return None


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


def _source(check: Check, _: bool = True) -> str:
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


def _errors_caption(check: Check) -> str:
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


STATISTICS = ("mean", "p50", "p90", "p99")


@drawn("check-errors", lambda c: c.errors, source=_source)
def errors_figure(check: Check) -> Drawing:
    """Error of each statistic of each latency, over orders inside bursts, by configuration."""
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH_IN, 3.1), sharey=True)
    found = check.errors
    styles = arm_styles(check.live.arms)
    for place, key in zip(axes, LATENCIES, strict=True):
        place.axvline(0, color="#333333", linewidth=0.9)
        for nth, (name, style) in enumerate(styles.items()):
            rows = found[(found["configuration"] == name) & (found["metric"] == key)]
            rows = rows.set_index("statistic").loc[[*STATISTICS]]
            at = [n + 0.17 * (nth - (len(styles) - 1) / 2) for n in range(len(STATISTICS))]
            look = {"color": style["color"], "linewidth": 1.3, "alpha": 0.6}
            place.hlines(at, 100 * rows["least"], 100 * rows["most"], **look)
            place.plot(
                100 * rows["centre"],
                at,
                linestyle="",
                marker=style["marker"],
                markersize=4.5,
                color=style["color"],
                label=check.live.arms[name].label,
            )
        place.set(xlabel=f"{METRICS[key].short} error [%]")
        place.grid(axis="x")
    axes[0].set_yticks(range(len(STATISTICS)), STATISTICS)
    axes[0].invert_yaxis()
    legend_below(figure, axes[0])
    alt = "Dots with ranges by statistic and configuration. " + _errors_caption(check)
    return figure, _errors_caption(check), alt


@drawn("check-requests", lambda c: c.pairs, source=_source)
def requests_figure(check: Check) -> Drawing:
    """TTFT of every request, live and simulated, a panel for each configuration."""
    arms = check.live.arms
    figure, axes = plt.subplots(
        1, len(arms), figsize=(WIDTH_IN, 2.5), sharex=True, sharey=True, squeeze=False
    )
    styles = arm_styles(arms)
    for place, (name, rows) in zip(axes[0], check.pairs.groupby("configuration", sort=False),
                                   strict=True):  # fmt: skip
        live, twin = rows["ttft_ms_live"], rows["ttft_ms_twin"]
        place.scatter(live, twin, s=5, alpha=0.45, linewidths=0, color=styles[name]["color"])
        ends = [min(live.min(), twin.min()), max(live.max(), twin.max())]
        place.plot(ends, ends, color="#333333", linewidth=0.8)
        place.set(xscale="log", yscale="log", aspect="equal")
        place.set_title(arms[name].label.replace(", ", ",\n"), fontsize=7)
        for axis in (place.xaxis, place.yaxis):
            axis.set_major_formatter(PLAIN)
        place.tick_params(labelsize=6)
        place.grid(axis="both")
    axes[0][0].set_ylabel("simulated TTFT\n[ms, log scale]")
    figure.supxlabel("live TTFT [ms, log scale]", fontsize=9)
    return (
        figure,
        scatter_caption(check),
        ("Scatter of simulated over live TTFT on log axes. " + scatter_caption(check)),
    )


def errors_table(check: Check | None) -> Table | None:
    """Return live value and error of each statistic, with what the order inside bursts does."""
    if check is None:
        return None
    found = check.errors.set_index(["configuration", "metric", "statistic"])
    lines = []
    for name, arm in check.live.arms.items():
        for key in LATENCIES:
            line = {"configuration": arm.label, "metric": f"{METRICS[key].short} [ms]"}
            for statistic in STATISTICS:
                row = found.loc[(name, key, statistic)]
                spread = " to ".join(signed(100 * row[end], 0) for end in ("least", "most"))
                line[statistic] = (
                    f"{number(row['live'])}\n{signed(100 * row['centre'], 1)} %\n({spread})"
                )
            lines.append(line)
    caption = (
        "Live value; below it the error of the simulation, its mean over orders of the rows inside "
        f"bursts ({len(check.orders['order'].unique())} of them), and the least and the most."
    )
    return Table(pd.DataFrame(lines), caption, ("configuration", "metric"))


def reuse_table(check: Check | None) -> Table | None:
    """Return good share and prefix reuse, live and simulated; None without a check."""
    if check is None:
        return None
    found = check.errors[check.errors["metric"] == "good_share"]
    good = found.set_index("configuration")
    lines = [
        {
            "configuration": arm.label,
            "good, live": percent(good.loc[name, "live"]),
            "good, simulated": percent(good.loc[name, "live"] + good.loc[name, "centre"]),
            "least to most": " to ".join(
                percent(good.loc[name, "live"] + good.loc[name, end]) for end in ("least", "most")
            ),
            "prompt from cache, live": _known(check.reuse.loc[name, "live"]),
            "simulated": percent(check.reuse.loc[name, "simulated"]),
        }
        for name, arm in check.live.arms.items()
    ]
    caption = "AIPerf does not record which worker served a request, so no balance is shown."
    return Table(pd.DataFrame(lines), caption, ("configuration",))


def _known(share: float) -> str:
    return "not known" if pd.isna(share) else percent(share)
