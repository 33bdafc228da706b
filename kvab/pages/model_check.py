"""Page 09: how far the simulation can be trusted: live runs against simulations of the same rows.

Input: the live runs of a study. Output: their simulated twins, kept beside them in one small table;
the errors of the simulation in levels and in what the comparison changes; figures, tables and
sentences, in the order of the page. `closeness` stands on the first page too.
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
from scipy import special

from kvab.cache import remember, source_digest, write_beside
from kvab.clusters.simulated import simulate
from kvab.clusters.simulated import versions as simulator_versions
from kvab.console import counted, number, percent, plain, signed
from kvab.declarations import digest
from kvab.errors import InputError
from kvab.pages.evidence import Evidence, load_evidence
from kvab.pages.gate import WITHHELD, gate
from kvab.pages.printed import changed, in_unit, quantity
from kvab.pages.tables import Table
from kvab.pages.theme import (
    PLAIN,
    WIDTH_IN,
    Drawing,
    arm_styles,
    drawn,
    legend_below,
    unless_missing,
)
from kvab.requests import metrics
from kvab.requests.metrics import LATENCIES, METRICS
from kvab.runs import folder as runs
from kvab.runs import summaries
from kvab.study import Simulated, Study, load_study, root
from kvab.study.manifests import read_configuration
from kvab.study.topology import read_topology
from kvab.trace.reading import Trace, burst_order

TABLE, ORDERS = Path("model-check") / "twins.parquet", Path("model-check") / "orders.parquet"
FILE, SENT, SHORT = "file", "sent", "shortest first"
SHUFFLES = 8
KEPT = ["row", "arrival_ms", "input_tokens", "output_tokens", "requested_output_tokens",
        *LATENCIES, "cached_tokens", "error"]  # fmt: skip
ROUNDED = {"ttft_ms": 1, "itl_ms": 3, "latency_ms": 1}
STATISTICS = ("mean", "p50", "p90", "p99")
WATCHED = (("ttft_ms", "mean"), ("itl_ms", "p50"), ("latency_ms", "mean"))
EFFECTS = (
    ("good_share", "share"), ("ttft_ms", "mean"), ("ttft_ms", "p90"), ("itl_ms", "mean"),
    ("latency_ms", "mean"),
)  # fmt: skip
LINE = "#333333"
NO_LIVE_RUNS = (
    ":::{note}\nNo live runs yet: `kvab report --cluster live-cpu --rows 300` makes them "
    "on two cores, in real time.\n:::"
)


# --- the simulated twins --------------------------------------------------------------------------


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
        (repeats[0], trace, label, order)
        for repeats in evidence.runs.values()
        for label, order in _orders(repeats[0], trace).items()
    ]
    print(f"simulating the same rows: {len(jobs)} short replays", file=sys.stderr)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        tables = [*pool.map(_simulate, jobs)]
    twins, values = [], []
    for (run, _, label, _), table in zip(jobs, tables, strict=True):
        name, summary = run.manifest.configuration, metrics.summarize(table, evidence.study.slo)
        if label == FILE:
            twins.append(table[KEPT].round(ROUNDED).assign(configuration=name))
        values += [
            (name, label, key, statistic, summary[key][statistic])
            for key in LATENCIES
            for statistic in metrics.COMPARED
        ]
        values.append((name, label, "good_share", "share", summary["good"]["share"]))
    orders = pd.DataFrame(
        values, columns=["configuration", "order", "metric", "statistic", "value"]
    )
    beside = folder / evidence.study.name / evidence.cluster
    (beside / TABLE).parent.mkdir(parents=True, exist_ok=True)
    write_beside(beside / ORDERS, runs.parquet_bytes([orders]))
    write_beside(beside / TABLE, runs.parquet_bytes([pd.concat(twins, ignore_index=True)]))
    return beside / TABLE


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
        kv_transfer_gb_per_s=cluster.get("kv_transfer_gb_per_s"),
        frontend_ms_per_1k_tokens=cluster.get("frontend_ms_per_1k_tokens", 0.0),
    )  # fmt: skip
    simulator_versions(profile)  # or the error that says what is missing
    topology = read_topology(read_configuration(run.path / "manifests"))
    return simulate(profile, topology, trace, order)[0]


# --- the check ------------------------------------------------------------------------------------


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
        """Whether the workload is generated."""
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
        """Errors of the simulation, see `_errors`."""
        return remember(digest([self.key, source_digest()]), "model-check", lambda: _errors(self))

    @property
    def effects(self) -> pd.DataFrame:
        """What the comparison changes against the baseline, live and simulated.

        A row for each of `EFFECTS`, none unless both were run live: ``metric``, ``statistic``,
        ``live``, ``centre``, ``least``, ``most`` (simulated: mean over file order and shuffles,
        ends over all orders inside bursts, the same one in both arms), in the metric's unit.
        """
        baseline, comparison = self.live.study.baseline, self.live.study.comparison
        index = ["metric", "statistic"]
        simulated = self.orders.pivot(
            index=[*index, "order"], columns="configuration", values="value"
        )
        live = self.errors.pivot(index=index, columns="configuration", values="live")
        lines = []
        for of in EFFECTS if {baseline, comparison} <= self.live.runs.keys() else ():
            by_order = (simulated[comparison] - simulated[baseline]).loc[of]
            lines.append({
                "metric": of[0], "statistic": of[1],
                "live": live.loc[of, comparison] - live.loc[of, baseline],
                "centre": _centre(by_order), "least": by_order.min(), "most": by_order.max(),
            })  # fmt: skip
        return pd.DataFrame(lines, columns=[*index, "live", "centre", "least", "most"])

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


def _centre(by_order: pd.Series) -> float:
    """Return the mean over file order and shuffles: over orders that none has chosen."""
    return float(by_order.drop([SENT, SHORT], errors="ignore").mean())


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
    values = check.orders.set_index("order").groupby(["configuration", "metric", "statistic"])
    for name in check.live.runs:
        tables = [check.live.tables(name)[0]], [check.twin(name)]
        comparison = compare(*tables, study.slo, **study.statistics.model_dump())
        cells = [
            (key, statistic, row)
            for key in LATENCIES
            for statistic, row in comparison.metrics[key].statistics.items()
        ]
        for key, statistic, row in [*cells, ("good_share", "share", comparison.good.mean)]:
            share = key == "good_share"
            ends = row.difference if share else row.ratio
            off = values.get_group((name, key, statistic))["value"]
            off = off - row.baseline if share else off / row.baseline - 1
            lines.append({
                "configuration": name, "metric": key, "statistic": statistic,
                "live": row.baseline, "simulated": row.comparison, "error": off[FILE],
                "ci_low": ends.low - (not share), "ci_high": ends.high - (not share),
                "sent": off[SENT], "centre": _centre(off), "least": off.min(), "most": off.max(),
            })  # fmt: skip
    return pd.DataFrame(lines)


def load_check(
    study: str | Path | Study,
    cluster: str,
    folder: str | Path,
    published: str | Path = "book/published",
) -> Check | None:
    """Return the check of a live cluster in a folder of runs, else the published one, if any."""
    name, public = load_study(study).name, root() / published
    candidates = [(root() / folder, cluster)]
    candidates += [(public, path.parents[1].name)
                   for path in sorted(public.glob(f"{name}/*/{TABLE}"))]  # fmt: skip
    for runs_folder, live in candidates:
        path = runs_folder / name / live / TABLE
        if path.is_file():
            own = not path.resolve().is_relative_to(public.resolve())
            orders = pd.read_parquet(runs_folder / name / live / ORDERS)
            evidence = load_evidence(study, live, runs_folder)
            return Check(evidence, pd.read_parquet(path), orders, own)
    return None


# --- the page -------------------------------------------------------------------------------------


@unless_missing(NO_LIVE_RUNS)
def provenance(check: Check, cluster: str) -> str:
    """Return the notice on top of the page: which live runs are shown."""
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
    errors = check.errors
    rows = errors[(errors["metric"] == metric) & (errors["statistic"] == statistic)]
    return rows.loc[rows["centre"].abs().idxmax()]


@drawn("check-errors", lambda c: c.errors, source=_source)
def errors_figure(check: Check) -> Drawing:
    """Error of each statistic of each latency, over orders inside bursts, by configuration."""
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH_IN, 3.1), sharey=True)
    errors, styles = check.errors, arm_styles(check.live.arms)
    for axes, key in zip(panels, LATENCIES, strict=True):
        axes.axvline(0, color=LINE, linewidth=0.9)
        for nth, (name, style) in enumerate(styles.items()):
            rows = errors[(errors["configuration"] == name) & (errors["metric"] == key)]
            rows = rows.set_index("statistic").loc[[*STATISTICS]]
            at = [n + 0.17 * (nth - (len(styles) - 1) / 2) for n in range(len(STATISTICS))]
            axes.hlines(at, 100 * rows["least"], 100 * rows["most"], color=style["color"],
                        linewidth=1.3, alpha=0.6)  # fmt: skip
            axes.plot(100 * rows["centre"], at, linestyle="", marker=style["marker"],
                      markersize=4.5, color=style["color"],
                      label=check.live.arms[name].label)  # fmt: skip
        axes.set(xlabel=f"{METRICS[key].short} error [%]")
        axes.grid(axis="x")
    panels[0].set_yticks(range(len(STATISTICS)), STATISTICS)
    panels[0].invert_yaxis()
    legend_below(figure, panels[0])
    worst = _worst(check, "ttft_ms", "mean")
    caption = (
        f"The mean TTFT is off most under {check.live.arms[worst['configuration']].label}, by "
        f"{signed(100 * worst['centre'], 1)} %. Error "
        "of the simulation against the live run of the same rows: a dot its mean over orders of "
        "the rows inside bursts, the bar from the least to the most."
    )
    return figure, caption, f"Dots with ranges by statistic and configuration. {caption}"


@unless_missing(None)
def errors_table(check: Check) -> Table:
    """Return live value and error of each statistic, with what the order inside bursts does."""
    errors = check.errors.set_index(["configuration", "metric", "statistic"])
    lines = []
    for name, arm in check.live.arms.items():
        for key in LATENCIES:
            line = {"configuration": arm.label, "metric": f"{METRICS[key].short} [ms]"}
            for statistic in STATISTICS:
                row = errors.loc[(name, key, statistic)]
                spread = " to ".join(signed(100 * row[end], 0) for end in ("least", "most"))
                line[statistic] = (
                    f"{number(row['live'])}\n{signed(100 * row['centre'], 1)} %\n({spread})"
                )
            lines.append(line)
    caption = (
        "Live value; below it the error of the simulation, its mean over orders of the rows inside "
        f"bursts ({check.orders['order'].nunique()} of them), and the least and the most."
    )
    return Table(pd.DataFrame(lines), caption, ("configuration", "metric"))


@drawn("check-requests", lambda c: c.pairs, source=_source)
def requests_figure(check: Check) -> Drawing:
    """TTFT of every request, live and simulated, a panel for each configuration."""
    arms = check.live.arms
    figure, panels = plt.subplots(
        1, len(arms), figsize=(WIDTH_IN, 2.5), sharex=True, sharey=True, squeeze=False
    )
    styles, groups = arm_styles(arms), check.pairs.groupby("configuration", sort=False)
    for axes, (name, rows) in zip(panels[0], groups, strict=True):
        live, twin = rows["ttft_ms_live"], rows["ttft_ms_twin"]
        axes.scatter(live, twin, s=5, alpha=0.45, linewidths=0, color=styles[name]["color"])
        ends = [min(live.min(), twin.min()), max(live.max(), twin.max())]
        axes.plot(ends, ends, color=LINE, linewidth=0.8)
        axes.set(xscale="log", yscale="log", aspect="equal")
        axes.set_title(arms[name].label.replace(", ", ",\n"), fontsize=7)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PLAIN)
        axes.tick_params(labelsize=6)
        axes.grid(axis="both")
    panels[0][0].set_ylabel("simulated TTFT\n[ms, log scale]")
    figure.supxlabel("live TTFT [ms, log scale]", fontsize=9)
    caption = scatter_caption(check)
    return figure, caption, f"Scatter of simulated over live TTFT on log axes. {caption}"


def scatter_caption(check: Check) -> str:
    """Return the caption of the scatter of requests."""
    pairs = check.pairs.dropna(subset=["ttft_ms_live", "ttft_ms_twin"])
    ratio = pairs["ttft_ms_twin"] / pairs["ttft_ms_live"]
    near = float(ratio.between(0.8, 1.25).mean())
    return (
        f"{percent(near, 0)} of requests have a simulated TTFT within a quarter of their live one. "
        "Each point a request; on the line both agree."
    )


@unless_missing(None)
def reuse_table(check: Check) -> Table:
    """Return good share and prefix reuse, live and simulated."""
    good = check.errors[check.errors["metric"] == "good_share"].set_index("configuration")
    lines = []
    for name, arm in check.live.arms.items():
        row, reuse = good.loc[name], check.reuse.loc[name]
        centre, least, most = (
            percent(row["live"] + row[end]) for end in ("centre", "least", "most")
        )
        known = not pd.isna(reuse["live"])
        lines.append({
            "configuration": arm.label,
            "good, live": percent(row["live"]),
            "good, simulated": centre,
            "least to most": f"{least} to {most}",
            "prompt from cache, live": percent(reuse["live"]) if known else "not known",
            "simulated": percent(reuse["simulated"]),
        })  # fmt: skip
    caption = "AIPerf does not record which worker served a request, so no balance is shown."
    return Table(pd.DataFrame(lines), caption, ("configuration",))


def _effects(check: Check) -> pd.DataFrame:
    """Return effects live and simulated as they are printed."""
    lines = []
    for row in check.effects.itertuples():
        key, slack = row.metric, 1e-9  # of sums in another order
        inside = row.least - slack <= row.live <= row.most + slack
        lines.append({
            "difference of": quantity(key, row.statistic), "live": in_unit(key, row.live),
            "simulated": in_unit(key, row.centre),
            "least to most": f"{in_unit(key, row.least)} to {in_unit(key, row.most)}",
            "error": changed(key, row.live, row.centre), "live within": "yes" if inside else "no",
        })  # fmt: skip
    return pd.DataFrame(lines)


@unless_missing(None)
def effects_table(check: Check) -> Table:
    """Return what the comparison changes, live and simulated, and the error of that."""
    caption = (
        "Comparison minus baseline, one live run of each. Simulated: the mean over orders of the "
        f"rows inside bursts, and the least and the most of {check.orders['order'].nunique()}."
    )
    return Table(_effects(check), caption, ("difference of",))


def effects(check: Check) -> str:
    """Return what the comparison changes, live and simulated; nothing unless both were run."""
    if check.effects.empty:
        return ""
    table = _effects(check).set_index("difference of")
    clauses = []
    for what, row in table.iterrows():
        name, unit = str(what).rstrip("]").split(" [")
        clauses.append(f"{name} {row['live']} and {row['simulated']} {unit}")
    return (
        "What the comparison changes against the baseline on these requests, in one live run of "
        f"each and simulated: {'; '.join(clauses)}; of {len(table)} live effects "
        f"{(table['live within'] == 'yes').sum()} lie within the range of "
        f"{check.orders['order'].nunique()} simulated orders inside bursts."
    )


@unless_missing("Nothing to compare yet.")
def orders(check: Check) -> str:
    """Return what the order inside bursts may explain of the errors, and what remains."""
    errors = check.errors[check.errors["metric"].isin(LATENCIES)]
    errors = errors[errors["statistic"].isin(["mean", "p50", "p90"])]
    inside = (errors["least"] <= 0) & (errors["most"] >= 0)
    outside = errors[~inside]
    width = (errors["most"] - errors["least"]).mean()
    text = (
        f"Over {check.orders['order'].nunique()} orders the simulated mean, p50 and p90 of the "
        f"three latencies move by {percent(width)} on average. {inside.sum()} of {len(errors)} "
        "live values lie within that range: their difference is compatible with the order alone. "
        "In the very order in which AIPerf sent the rows the error is "
        f"{percent(errors['sent'].abs().mean())} on average, in file order "
        f"{percent(errors['error'].abs().mean())}, averaged over orders "
        f"{percent(errors['centre'].abs().mean())}."
    )
    if outside.empty:
        return text
    worst = outside.loc[outside["centre"].abs().idxmax()]
    label = check.live.arms[worst["configuration"]].label
    return text + (
        f" Of the {len(outside)} others the largest error is that of the {worst['statistic']} "
        f"{METRICS[worst['metric']].short} of {label} ({signed(100 * worst['centre'], 1)} %), "
        "which no order that was tried explains."
    )


@unless_missing("Nothing to compare yet.")
def tokens(check: Check) -> str:
    """Return that every count agrees, and how late requests were sent."""
    tables = [check.live.tables(name)[0] for name in check.live.runs]
    rows = sum(len(table) for table in tables)
    off = sum(int((t["output_tokens"] != t["requested_output_tokens"]).sum()) for t in tables)
    failed = sum(int(t["error"].notna().sum()) for t in tables)
    lag = max(t["send_lag_ms"].quantile(0.99) for t in tables)
    return (
        f"{rows:,} requests live: {failed} failed, {off} with another number of answer tokens "
        f"than the trace asks for, prompt tokens equal on every row (the gate checks it); the "
        f"largest p99 send lag of a run is {number(lag, 1)} ms."
    )


@unless_missing("")
def frontend(check: Check) -> str:
    """Return what the live frontend took for a thousand prompt tokens, with its interval."""
    every = [run for repeats in check.live.runs.values() for run in repeats]
    recorded = [run.manifest.host.get("frontend_ms_per_1k_tokens") for run in every]
    took = np.array([value for value in recorded if value is not None], float)
    if not took.size:
        return "These live runs did not record what their frontend took to read a prompt."
    text = (
        f"The frontend's own clock says {number(took.mean(), 2)} ms for each 1,000 prompt tokens "
        f"(template and tokenizer, {counted(len(took), 'run')}"
    )
    if len(took) > 1:
        level = check.live.study.statistics.level
        half = special.stdtrit(len(took) - 1, (1 + level) / 2) * took.std(ddof=1)
        half /= np.sqrt(len(took))
        low, high = took.mean() - half, took.mean() + half
        text += f"; {number(low, 2)} to {number(high, 2)} from run to run"
    return f"{text}). What the simulation takes for it is declared by the profile."


@unless_missing("How far the simulation can be trusted is not known yet: no live run is there.")
def closeness(check: Check) -> str:
    """Return how close the simulation came, in levels and in what the comparison changes."""
    if not gate(check.live).green:
        return (
            f"How far the simulation can be trusted is {WITHHELD} on {plain(check.live.cluster)}."
        )
    clauses = [
        f"{percent(abs(_worst(check, key, statistic)['centre']))} in {statistic} "
        f"{METRICS[key].short}"
        for key, statistic in WATCHED
    ]
    good = _worst(check, "good_share", "share")
    rows = check.live.manifest.trace.rows
    return (
        f"**How far the simulation can be trusted:** against Dynamo's real frontend, router and "
        f"mock engines under real AIPerf, on the first {rows:,} requests, it is off by "
        f"{', '.join(clauses)} and {number(100 * abs(good['centre']), 1)} points in the good "
        "share, each under the configuration where it is off most ([](09_model_check)). "
        f"{effects(check)}"
    ).rstrip()
