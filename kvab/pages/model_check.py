"""Page 09: how far the simulation can be trusted: live runs against simulations of the same rows.

Input: the live runs of a study and their simulated twins (`kvab.runs.twins`). Output: the errors of
the simulation in levels and in what the comparison changes; figures, tables and sentences, in the
order of the page. `closeness` stands on the first page too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter
from scipy import special

from kvab.console import counted, number, percent, plain, signed
from kvab.declarations import digest
from kvab.pages.evidence import Evidence, agreement, load_evidence
from kvab.pages.gate import WITHHELD, gate, versions_text
from kvab.pages.printed import Table, agreed, agreement_cells, in_unit, quantity, size
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
from kvab.runs.twins import CHOSEN, FILE, FITS, NEAR, ORDERS, PAIRS, SENT, TABLE
from kvab.study import Slo, Study, load_study, root

STATISTICS = ("mean", "p50", "p90", "p99")
WATCHED = (("ttft_ms", "mean"), ("itl_ms", "p50"), ("latency_ms", "mean"))
EFFECTS = (
    ("good_share", "share"), ("ttft_ms", "mean"), ("ttft_ms", "p90"), ("itl_ms", "mean"),
    ("latency_ms", "mean"),
)  # fmt: skip
BY = ["configuration", "metric", "statistic"]
LINE = "#333333"
STEP_MIN = 2  # of the good share over time
NO_LIVE_RUNS = (
    ":::{note}\nNo live runs yet: `kvab report --cluster live-cpu --rows 300` makes them "
    "on two cores, in real time.\n:::"
)


# --- the check ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """Live runs and their simulated twins; ``own`` is False for the published ones."""

    live: Evidence
    twins: pd.DataFrame
    orders: pd.DataFrame
    fits: pd.DataFrame
    own: bool

    simulated: ClassVar = False  # not as a whole: its figures name both sides

    @property
    def synthetic(self) -> bool:
        """Whether the workload is generated."""
        return self.live.synthetic

    @cached_property
    def key(self) -> str:
        """Digest of everything that a page shows of the check."""
        tables = (self.twins, self.orders, self.fits)
        return digest([self.live.key, *(table.to_json() for table in tables), self.own])

    def twin(self, configuration: str) -> pd.DataFrame:
        """Return the simulated requests table of a configuration; it sends without a lag."""
        own = self.twins[self.twins["configuration"] == configuration]
        return own.sort_values("row", ignore_index=True).assign(send_lag_ms=0.0)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Every request: ``configuration``, ``row``, and each metric ``_live`` and ``_twin``."""
        live = pd.concat(
            self.live.tables(name)[0].assign(configuration=name) for name in self.live.runs
        )
        return live.merge(self.twins, on=["configuration", "row"], suffixes=("_live", "_twin"))

    @cached_property
    def by_repeat(self) -> pd.DataFrame:
        """Live statistics: a row for each of `BY`, a column for each repeat."""
        slo = self.live.study.slo
        repeats = {
            name: pd.concat([_statistics(of, slo) for of in self.live.tables(name)], axis=1)
            for name in self.live.runs
        }
        return pd.concat(repeats, names=BY)

    @cached_property
    def by_order(self) -> pd.DataFrame:
        """Simulated statistics: a row for each of `BY`, a column for each order inside bursts."""
        return self.orders.pivot(index=BY, columns="order", values="value")

    @cached_property
    def errors(self) -> pd.DataFrame:
        """Errors of the simulation, relative but for the good share, for each of `BY`.

        Returns
        -------
        DataFrame
            ``live`` (the first repeat; ms, a share of 1), the errors in the order of sending and in
            that of pairs (`SENT`, `PAIRS`), and over all orders as `_over_orders` has them.
        """
        live = self.by_repeat[0]
        scale = live.mask(live.index.get_level_values("metric") == "good_share", 1)
        off = self.by_order.loc[live.index].sub(live, axis=0).div(scale, axis=0)
        return _over_orders(off).assign(live=live)

    @property
    def whole(self) -> bool:
        """Whether baseline and comparison were both run live."""
        return self.live.runs.keys() >= {self.live.study.baseline, self.live.study.comparison}

    def effects_of(self, values: pd.DataFrame) -> pd.DataFrame:
        """Return comparison minus baseline, a row for each of `EFFECTS`, of values by `BY`."""
        study = self.live.study
        return (values.loc[study.comparison] - values.loc[study.baseline]).loc[[*EFFECTS]]

    @property
    def effects(self) -> pd.DataFrame:
        """What the comparison changes, live and simulated; empty unless both arms were run live.

        A row for each of `EFFECTS`: ``live``, the simulated ones of each order as `_over_orders`
        has them (an order is the same in both arms), and ``within``: whether the live one lies
        between the least and the most of them. In the metric's unit.
        """
        if not self.whole:
            return pd.DataFrame()
        effects, live = map(self.effects_of, (self.by_order, self.by_repeat))
        effects = _over_orders(effects).assign(live=live[0])
        slack = 1e-9  # of sums in another order
        within = effects["live"].between(effects["least"] - slack, effects["most"] + slack)
        return effects.assign(within=within)

    @cached_property
    def agreement(self) -> pd.DataFrame | None:
        """Whether live and simulated effects agree; see `kvab.stats.robustness.agreement`.

        The simulation counts as published; None unless both configurations were run live.
        """
        if not self.whole:
            return None
        baseline, comparison = self.live.study.baseline, self.live.study.comparison
        twins = [self.twin(baseline)], [self.twin(comparison)]
        live = self.live.tables(baseline)[:1], self.live.tables(comparison)[:1]
        return agreement(self.live.study, twins, live, self.key)

    @cached_property
    def good_by_time(self) -> pd.DataFrame:
        """Good share in each `STEP_MIN` minutes: ``configuration``, ``minute``, live and twin."""
        pairs, slo = self.pairs, self.live.study.slo
        by = pairs["arrival_ms_live"] // (60_000 * STEP_MIN) * STEP_MIN
        within = {
            side: (pairs[f"ttft_ms_{side}"] <= slo.ttft_ms)
            & (pairs[f"itl_ms_{side}"] <= slo.itl_ms)
            for side in ("live", "twin")
        }
        grouped = pairs.assign(**within, minute=by).groupby(["configuration", "minute"], sort=False)
        return grouped[["live", "twin"]].mean().reset_index()

    @cached_property
    def frontends(self) -> pd.DataFrame:
        """How far the TTFT is off by the frontend's time for 1,000 tokens and half of the hour.

        Sum of four errors in points (requests off by more than a quarter, mean, p50, p90), averaged
        over configurations and orders: columns 1 and 2 are the halves.
        """
        errors = self.fits.assign(
            sum=100 * self.fits[["far", "mean", "p50", "p90"]].abs().sum(axis=1)
        )
        return errors.pivot_table("sum", "frontend_ms_per_1k_tokens", "half")


def _statistics(table: pd.DataFrame, slo: Slo) -> pd.Series:
    """Return `STATISTICS` of each latency and the good share, by metric and statistic."""
    summary = metrics.summarize(table, slo)
    values = {(key, each): summary[key][each] for key in LATENCIES for each in STATISTICS}
    return pd.Series(values | {("good_share", "share"): summary["good"]["share"]})


def _over_orders(values: pd.DataFrame) -> pd.DataFrame:
    """Return values of some orders, and over all of them their centre, least, most and spread.

    The centre and the spread (a standard deviation) are of file order and shuffles: of the orders
    that none has chosen.
    """
    free = values.drop(columns=CHOSEN, errors="ignore")
    summary = {"centre": free.mean(axis=1), "spread": free.std(axis=1),
               "least": values.min(axis=1), "most": values.max(axis=1)}  # fmt: skip
    return values.reindex(columns=[FILE, SENT, PAIRS]).assign(**summary)


def load_check(
    study: str | Path | Study,
    cluster: str,
    folder: str | Path,
    published: str | Path = "book/published",
    repeated: bool = False,
) -> Check | None:
    """Return the check of a live cluster in a folder of runs, else the longest published one.

    With ``repeated`` the first one that has repeats of both main configurations, if any.
    """
    checks = _checks(study, cluster, folder, published)
    repeats = (check for check in checks if check.whole and check.live.repeats > 1)
    return next(repeats if repeated else checks, None)


def _checks(
    study: str | Path | Study, cluster: str, folder: str | Path, published: str | Path
) -> Iterator[Check]:
    """Yield the checks of a folder's live clusters, then the published: the longest runs first."""
    name, public = load_study(study).name, (root() / published).resolve()
    for runs_folder in dict.fromkeys((root() / folder, public)):
        found = []
        for path in sorted(runs_folder.glob(f"{name}/*/{TABLE}")):
            beside = path.parents[1]
            twins, orders, fits = (pd.read_parquet(beside / t) for t in (TABLE, ORDERS, FITS))
            live = load_evidence(study, beside.name, runs_folder)
            same = public / path.relative_to(runs_folder)
            own = not same.is_file() or path.read_bytes() != same.read_bytes()
            found.append(Check(live, twins, orders, fits, own))
        found.sort(key=lambda of: (of.live.cluster == cluster, of.live.manifest.trace.rows))
        yield from reversed(found)


# --- the page -------------------------------------------------------------------------------------


@unless_missing(NO_LIVE_RUNS)
def provenance(check: Check, cluster: str) -> str:
    """Return the notice on top of the page: which live runs are shown."""
    manifest = check.live.manifest
    whose = "" if check.own or check.live.cluster == cluster else " These are the published runs."
    return (
        f":::{{note}}\n**Live:** {plain(manifest.cluster['description'])}, {_requests(check)} of "
        f"{plain(manifest.trace.name)} in real time. "
        f"**Simulated:** the same rows on the simulator. No GPU in either.{whose} "
        f"{versions_text(manifest.versions)}.\n:::"
    )


def _requests(check: Check) -> str:
    trace = check.live.manifest.trace
    which = "all" if trace.rows == trace.total_rows else "the first"
    return f"{which} {trace.rows:,} requests"


def _source(check: Check, _: bool = True) -> str:
    """Return where a figure's data come from, for the end of its caption."""
    rows = check.live.manifest.trace.rows
    return (
        f"Source: {check.live.cluster}, {rows:,} requests on mock engines without a GPU, and a "
        "simulation of the same rows."
    )


def _worst(check: Check, metric: str, statistic: str) -> pd.Series:
    """Return the row, named after the configuration in which the simulation is off most."""
    rows = check.errors.xs((metric, statistic), level=BY[1:])
    return rows.loc[rows["centre"].abs().idxmax()]


@drawn("check-errors", lambda c: c.errors, source=_source)
def errors_figure(check: Check) -> Drawing:
    """Error of each statistic of each latency, over orders inside bursts, by configuration."""
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH_IN, 3.1), sharey=True)
    errors, styles = check.errors, arm_styles(check.live.arms)
    for axes, key in zip(panels, LATENCIES, strict=True):
        axes.axvline(0, color=LINE, linewidth=0.9)
        for nth, (name, style) in enumerate(styles.items()):
            rows = 100 * errors.xs((name, key), level=BY[:2])
            at = [n + 0.17 * (nth - (len(styles) - 1) / 2) for n in range(len(STATISTICS))]
            axes.hlines(at, rows["least"], rows["most"], color=style["color"], linewidth=1.3,
                        alpha=0.6)  # fmt: skip
            axes.plot(rows["centre"], at, linestyle="", marker=style["marker"],
                      markersize=4.5, color=style["color"],
                      label=check.live.arms[name].label)  # fmt: skip
        axes.set(xlabel=f"{METRICS[key].short} error [%]")
        axes.grid(axis="x")
    panels[0].set_yticks(range(len(STATISTICS)), STATISTICS)
    panels[0].invert_yaxis()
    legend_below(figure, panels[0])
    worst = _worst(check, "ttft_ms", "mean")
    caption = (
        f"The mean TTFT is off most under {check.live.arms[str(worst.name)].label}, by "
        f"{signed(100 * worst['centre'], 1)} %. Error of the simulation against the live run of "
        f"the same rows: its mean (dot) and range (bar) over {_orders(check)}."
    )
    return figure, caption, f"Dots with ranges by statistic and configuration. {caption}"


def _orders(check: Check) -> str:
    """Return over how many orders the simulation was repeated."""
    return f"{check.by_order.columns.size} orders of each burst's requests"


def _ratios(check: Check) -> pd.DataFrame:
    """Return the quantiles of simulated over live TTFT of a request, for each configuration."""
    pairs = check.pairs
    ratio = (pairs["ttft_ms_twin"] / pairs["ttft_ms_live"]).groupby(pairs["configuration"])
    return ratio.quantile(np.linspace(0, 1, 401)).unstack("configuration").rename_axis("share")


@drawn("check-requests", _ratios, source=_source)
def requests_figure(check: Check) -> Drawing:
    """How far single requests are off: share of requests by simulated over live TTFT."""
    figure, axes = plt.subplots(figsize=(WIDTH_IN, 2.6))
    axes.axvspan(*NEAR, color="#f0f0f0")
    axes.axvline(1, color=LINE, linewidth=0.9)
    ratios = _ratios(check)
    for name, style in arm_styles(check.live.arms).items():
        axes.plot(ratios[name], 100 * ratios.index, color=style["color"],
                  linestyle=style["linestyle"], label=check.live.arms[name].label)  # fmt: skip
    axes.set(xscale="log", xlim=(0.2, 5), xlabel="simulated over live TTFT of a request [log]",
             ylabel="requests up to it [%]")  # fmt: skip
    axes.set_xticks([0.2, 0.5, 1, 2, 5])
    axes.xaxis.set_major_formatter(PLAIN)
    axes.xaxis.set_minor_formatter(NullFormatter())
    legend_below(figure, axes)
    pairs = check.pairs.dropna(subset=["ttft_ms_live", "ttft_ms_twin"])
    near = (pairs["ttft_ms_twin"] / pairs["ttft_ms_live"]).between(*NEAR).mean()
    caption = (
        f"{percent(near, 0)} of requests have a simulated TTFT within a quarter of their live one "
        "(shaded). Share of requests by the ratio of the two, by configuration."
    )
    return figure, caption, f"Cumulative curves that rise around 1. {caption}"


@drawn("check-time", lambda c: c.good_by_time, source=_source)
def time_figure(check: Check) -> Drawing:
    """Good share over the time of the replay, live and simulated, a panel for each main arm."""
    study, by_time = check.live.study, check.good_by_time
    names = [name for name in (study.baseline, study.comparison) if name in check.live.runs]
    figure, panels = plt.subplots(
        1, len(names), figsize=(WIDTH_IN, 2.3), sharey=True, squeeze=False
    )
    styles, off = arm_styles(check.live.arms), []
    for axes, name in zip(panels[0], names, strict=True):
        rows = by_time[by_time["configuration"] == name]
        axes.plot(rows["minute"], 100 * rows["live"], color=styles[name]["color"], label="live")
        axes.plot(rows["minute"], 100 * rows["twin"], color=LINE, linestyle=":", label="simulated")
        axes.set(title=check.live.arms[name].label, xlabel="minute of the trace", ylim=(0, 102))
        gap = (rows["twin"] - rows["live"]).abs().median()
        off.append(
            f"{number(100 * gap, 1)} points under {check.live.arms[name].label} "
            f"(correlation {number(rows['twin'].corr(rows['live']), 2)})"
        )
    panels[0][0].set_ylabel("good requests [%]")
    legend_below(figure, panels[0][0])
    caption = (
        f"From {STEP_MIN} minutes to the next the simulated good share follows the live one; half "
        f"of the times it is off by at most {' and '.join(off)}."
    )
    return figure, caption, f"Two lines over time in each panel. {caption}"


@unless_missing(None)
def effects_table(check: Check) -> Table | None:
    """Return what the comparison changes, live and simulated, and whether both agree."""
    if check.agreement is None:
        return None
    lines, ranges = [], f"{check.by_order.columns.size} orders"
    for (key, statistic), effect in check.effects.iterrows():
        live, simulated, *ends = (
            in_unit(key, effect[of]) for of in ("live", FILE, "centre", "least", "most")
        )
        line = {"difference of": quantity(key, statistic), "live": live, "simulated": simulated,
                ranges: "{}\n({} to {})".format(*ends), "gap": "–"}  # fmt: skip
        if statistic in ("mean", "share"):
            of_means = agreement_cells(key, check.agreement.loc[key])
            line |= {"live": of_means["yours"], "simulated": of_means["published"],
                     "gap": of_means["gap"]}  # fmt: skip
        lines.append(line)
    rows, level = check.agreement["rows"].iloc[0], check.live.study.statistics.percent
    caption = (
        f"Comparison minus baseline on {rows:,} pairs, in file order, with {level} workload "
        f"intervals; then mean and range over {_orders(check)}. Gap: live minus simulated, and "
        "whether they agree, by the rule on the page of reproduction; ± its margin."
    )
    return Table(pd.DataFrame(lines), caption)


@unless_missing(None)
def repeats_table(check: Check) -> Table | None:
    """Return how much the effect differs between live repeats, beside the simulated orders."""
    repeats, spread = check.effects_of(check.by_repeat), check.effects["spread"]
    ratio = repeats.std(axis=1) / spread
    lines = [
        {"difference of": quantity(key, statistic),
         f"live, {repeats.shape[1]} times": ", ".join(in_unit(key, value) for value in row),
         "sd": size(key, row.std()), "sd, simulated": size(key, spread[key, statistic])}
        for (key, statistic), row in repeats.iterrows()
    ]  # fmt: skip
    caption = (
        f"From one live run to the next an effect varies {number(ratio.min(), 1)} to "
        f"{number(ratio.max(), 1)} times as much as between simulated orders: the same "
        f"{check.live.manifest.trace.rows:,} requests in other orders inside bursts. sd: standard "
        "deviation."
    )
    return Table(pd.DataFrame(lines), caption)


@unless_missing(None)
def reuse_table(check: Check) -> Table:
    """Return good share and prefix reuse, live and simulated."""
    lines = []
    for name, arm in check.live.arms.items():
        good = check.errors.loc[name, "good_share", "share"]
        centre, least, most = (good["live"] + good[end] for end in ("centre", "least", "most"))
        reuse = check.live.runs[name][0].reuse
        lines.append({
            "configuration": arm.label,
            "good, live": percent(good["live"]),
            "good, simulated": f"{percent(centre)}\n({percent(least)} to {percent(most)})",
            "from cache": f"{'not known' if reuse is None else percent(reuse)}\n"
                          f"({percent(metrics.cached_share(check.twin(name)))})",
        })  # fmt: skip
    caption = (
        "Good requests, simulated with their range over orders, and prompt tokens from cache, in "
        "brackets the simulated ones. "
        "AIPerf does not record which worker served a request, so no balance is shown."
    )
    return Table(pd.DataFrame(lines), caption)


@unless_missing("")
def effects(check: Check) -> str:
    """Return what the comparison changes, live and simulated; nothing unless both were run."""
    found = check.effects
    if check.agreement is None:
        return ""
    clauses = []
    for key, statistic in (("good_share", "share"), ("ttft_ms", "mean")):
        name, unit = quantity(key, statistic).rstrip("]").split(" [")
        live, centre = (in_unit(key, found.loc[(key, statistic), of]) for of in ("live", "centre"))
        clauses.append(f"the {name} by {live} {unit} live, {centre} simulated")
    return (
        f"The comparison changes {', and '.join(clauses)}; {found['within'].sum()} of "
        f"{counted(len(found), 'live effect')} lie within what {_orders(check)} give. By the "
        f"[rule of reproduction](reproduce): {agreed(check.agreement)}."
    )


@unless_missing("Nothing to compare yet.")
def orders(check: Check) -> str:
    """Return what the order inside bursts may explain of the errors, and what remains."""
    errors = check.errors.drop(index="p99", level="statistic")
    errors = errors.drop(index="good_share", level="metric")
    outside = errors.loc[(errors["least"] > 0) | (errors["most"] < 0), "centre"]
    sent, file, pairs, centre = (percent(errors[of].abs().mean())
                                 for of in (SENT, FILE, PAIRS, "centre"))  # fmt: skip
    text = (
        f"- Over {_orders(check)} the simulated mean, p50 and p90 of the three latencies move by "
        f"{percent((errors['most'] - errors['least']).mean())} on average. "
        f"{len(errors) - len(outside)} of {len(errors)} live values lie within that range: the "
        "order alone may explain their error."
    )
    if len(outside):
        name, key, statistic = worst = outside.abs().idxmax()
        text += (
            f" Of the others the {statistic} {METRICS[key].short} of {check.live.arms[name].label} "
            f"is off most ({signed(100 * outside[worst], 1)} %)."
        )
    text += (
        f"\n- The error is {sent} on average in the order of sending, {file} in file order, "
        f"{pairs} in that of a frontend that reads two prompts at once, so that a short one "
        f"overtakes a long one, and {centre} averaged over orders."
    )
    if not check.whole:
        return text
    effect = check.effects.loc[("ttft_ms", "mean")]
    pairs, centre, live = (signed(effect[of]) for of in (PAIRS, "centre", "live"))
    return (
        f"{text}\n- With two prompts read at once the comparison changes the mean TTFT by {pairs} "
        f"ms, over all orders by {centre}; live by {live}, so "
        f"{number(abs(effect[PAIRS] - effect['live']))} ms remain unexplained."
    )


@unless_missing("Nothing to compare yet.")
def tokens(check: Check) -> str:
    """Return that every count agrees, and how late requests were sent."""
    tables = [check.live.tables(name)[0] for name in check.live.runs]
    rows = sum(len(table) for table in tables)
    off = sum(int((t["output_tokens"] != t["requested_output_tokens"]).sum()) for t in tables)
    failed = sum(int(t["error"].notna().sum()) for t in tables)
    lag = max(t["send_lag_ms"].quantile(0.99) for t in tables)
    text = (
        f"{rows:,} requests live: {failed} failed, {off} with another number of answer tokens "
        f"than the trace asks for, prompt tokens equal on every row (the gate checks it); the "
        f"largest p99 send lag of a run is {number(lag, 1)} ms."
    )
    hosts = [repeats[0].manifest.host for repeats in check.live.runs.values()]
    held_gb = [host["memory_gb"] for host in hosts if host.get("memory_gb")]
    if not held_gb:
        return text
    by_run = [(max(run), run[len(run) // 2], run[-1]) for run in held_gb]
    most, middle, last = (number(max(of_runs), 1) for of_runs in zip(*by_run, strict=True))
    return (
        f"{text} All processes of a run together held {most} GB at most, {middle} half-way and "
        f"{last} at the end."
    )


@unless_missing("")
def frontend(check: Check) -> str:
    """Return what the live frontend took for a thousand prompt tokens, with its interval."""
    hosts = [run.manifest.host for repeats in check.live.runs.values() for run in repeats]
    took = pd.Series([host.get("frontend_ms_per_1k_tokens") for host in hosts], dtype=float)
    took = took.dropna()
    if took.empty:
        return "These live runs did not record what their frontend took to read a prompt."
    text = (
        f"The frontend's own clock says {number(took.mean(), 2)} ms for each 1,000 prompt tokens "
        f"(template and tokenizer, {counted(len(took), 'run')}"
    )
    if len(took) > 1:
        level = check.live.study.statistics.level
        half = special.stdtrit(len(took) - 1, (1 + level) / 2) * took.sem()
        low, high = (number(took.mean() + side * half, 2) for side in (-1, 1))
        text += f"; {low} to {high} from run to run"
    return f"{text}). {_fitted(check)}"


def _fitted(check: Check) -> str:
    """Return which time of the frontend fits the first half, and what it is worth on the second."""
    points = check.frontends
    best, declared = points[1].idxmin(), check.live.manifest.cluster["frontend_ms_per_1k_tokens"]
    of_best, of_declared = points.loc[best], points.loc[declared]
    return (
        f"Of the times tried, {best:g} ms fits the first half of the replay best; on the second "
        f"its errors add up to {number(of_best[2], 1)} points a configuration, the least of any "
        f"time being {number(points[2].min(), 1)} ({points[2].idxmin():g} ms). The profile "
        f"declares {declared:g} ms: {number(of_declared[1], 1)} points on the first half, "
        f"{number(of_declared[2], 1)} on the second."
    )


@unless_missing("")
def levels(check: Check) -> str:
    """Return how close the simulation came in levels; withheld where the gate is red."""
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
    return (
        "Against Dynamo's real frontend, router and mock engines under real AIPerf, on "
        f"{_requests(check)}, the simulation is off by {', '.join(clauses)} and "
        f"{number(100 * abs(good['centre']), 1)} points in the good share, each under the "
        "configuration where it is off most."
    )


@unless_missing("How far the simulation can be trusted is not known yet: no live run is there.")
def closeness(check: Check) -> str:
    """Return how close it came, in levels and in what the comparison changes, for other pages."""
    if not gate(check.live).green:
        return levels(check)
    return f"**[](09_model_check)** {levels(check)} {effects(check)}".rstrip()
