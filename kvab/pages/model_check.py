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

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter
from scipy import special

from kvab.cache import remember, source_digest
from kvab.console import counted, number, percent, plain, signed
from kvab.declarations import digest
from kvab.pages.evidence import Evidence, load_evidence
from kvab.pages.gate import WITHHELD, gate
from kvab.pages.printed import Table, changed, in_unit, quantity, size, with_ends
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
from kvab.study import Study, load_study, root

STATISTICS = ("mean", "p50", "p90", "p99")
WATCHED = (("ttft_ms", "mean"), ("itl_ms", "p50"), ("latency_ms", "mean"))
EFFECTS = (
    ("good_share", "share"), ("ttft_ms", "mean"), ("ttft_ms", "p90"), ("itl_ms", "mean"),
    ("latency_ms", "mean"),
)  # fmt: skip
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
        tables = (self.twins, self.orders, self.fits)
        return digest([self.live.key, *(table.to_json() for table in tables), self.own])

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
        """Return the relative error of the simulation for each metric and statistic.

        Returns
        -------
        DataFrame
            ``configuration``, ``metric``, ``statistic``, ``live`` (ms; a share of 1), and the
            errors, relative but for the good share, in file order, that of sending and that of
            pairs (``file``, ``sent``, ``pairs``), ``centre``, ``least`` and ``most`` (mean over
            file order and shuffles; ends over all).
        """
        slo, lines = self.live.study.slo, []
        values = self.orders.set_index("order").groupby(["configuration", "metric", "statistic"])
        for name in self.live.runs:
            found = metrics.summarize(self.live.tables(name)[0], slo)
            cells = [(key, each, found[key][each]) for key in LATENCIES for each in STATISTICS]
            for key, statistic, live in [*cells, ("good_share", "share", found["good"]["share"])]:
                off = values.get_group((name, key, statistic))["value"]
                off = off - live if key == "good_share" else off / live - 1
                lines.append({
                    "configuration": name, "metric": key, "statistic": statistic, "live": live,
                    "file": off[FILE], "sent": off[SENT], "pairs": off.get(PAIRS, np.nan),
                    "centre": _centre(off), "least": off.min(), "most": off.max(),
                })  # fmt: skip
        return pd.DataFrame(lines)

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
    def by_repeat(self) -> pd.DataFrame:
        """Live effects of each repeat: `EFFECTS` by ``repeat``; empty unless there are several."""
        arms = (self.live.study.baseline, self.live.study.comparison)
        if not self.live.runs.keys() >= {*arms} or self.live.repeats < 2:
            return pd.DataFrame()
        rows = {}
        for repeat, tables in enumerate(zip(*map(self.live.tables, arms), strict=False), 1):
            first, second = (metrics.summarize(table, self.live.study.slo) for table in tables)
            rows[repeat] = {
                (key, statistic): second[key][statistic] - first[key][statistic]
                if key in LATENCIES else second["good"]["share"] - first["good"]["share"]
                for key, statistic in EFFECTS
            }  # fmt: skip
        return pd.DataFrame(rows)

    @cached_property
    def agreement(self) -> pd.DataFrame | None:
        """Whether live and simulated effects agree; see `kvab.stats.robustness.agreement`.

        The simulation counts as published; None unless both configurations were run live.
        """
        from kvab.stats.robustness import agreement

        study = self.live.study
        if not self.live.runs.keys() >= {study.baseline, study.comparison}:
            return None
        baseline, comparison = study.baseline, study.comparison
        twins = [self.twin(baseline)], [self.twin(comparison)]
        live = self.live.tables(baseline)[:1], self.live.tables(comparison)[:1]
        settings = study.statistics.model_dump()
        return remember(
            digest([self.key, source_digest()]), "model-agreement",
            lambda: agreement(twins, live, study.slo, study.margins, **settings),
        )  # fmt: skip

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
    def parts(self) -> pd.DataFrame:
        """Mean time until the first token and after it: live and simulated, in ms.

        Indexed by configuration; columns ``(first, live)``, ``(first, twin)``, ``(rest, live)``,
        ``(rest, twin)``.
        """
        pairs = self.pairs
        parts = {
            (part, side): pairs[f"latency_ms_{side}"] - pairs[f"ttft_ms_{side}"]
            if part == "rest" else pairs[f"ttft_ms_{side}"]
            for part in ("first", "rest") for side in ("live", "twin")
        }  # fmt: skip
        return pd.DataFrame(parts).groupby(pairs["configuration"], sort=False).mean()

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

    @cached_property
    def reuse(self) -> pd.DataFrame:
        """Share of prompt tokens from cache: indexed by configuration, ``live``, ``simulated``."""
        rows = {
            name: {
                "live": self.live.runs[name][0].reuse,
                "simulated": metrics.cached_share(self.twin(name)),
            }
            for name in self.live.runs
        }
        return pd.DataFrame.from_dict(rows, orient="index")


def _centre(by_order: pd.Series) -> float:
    """Return the mean over file order and shuffles: over orders that none has chosen."""
    return float(by_order.drop(CHOSEN, errors="ignore").mean())


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
    return next((check for check in checks if not (repeated and check.by_repeat.empty)), None)


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
        of_cluster = {check.live.cluster: check.live.cluster == cluster for check in found}
        yield from sorted(
            found,
            key=lambda c: (of_cluster[c.live.cluster], c.live.manifest.trace.rows),
            reverse=True,
        )


# --- the page -------------------------------------------------------------------------------------


@unless_missing(NO_LIVE_RUNS)
def provenance(check: Check, cluster: str) -> str:
    """Return the notice on top of the page: which live runs are shown."""
    manifest = check.live.manifest
    whose = "" if check.own or check.live.cluster == cluster else " These are the published runs."
    versions = ", ".join(f"{plain(name)} {plain(text)}" for name, text in manifest.versions.items())
    return (
        f":::{{note}}\n**Live:** {plain(manifest.cluster['description'])}, {_requests(check)} of "
        f"{plain(manifest.trace.name)} in real time. "
        f"**Simulated:** the same rows on the simulator. No GPU in either.{whose} {versions}.\n:::"
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
    caption = requests_caption(check)
    return figure, caption, f"Cumulative curves that rise around 1. {caption}"


def requests_caption(check: Check) -> str:
    """Return the finding on single requests, and what is drawn."""
    pairs = check.pairs.dropna(subset=["ttft_ms_live", "ttft_ms_twin"])
    ratio = pairs["ttft_ms_twin"] / pairs["ttft_ms_live"]
    near = float(ratio.between(*NEAR).mean())
    return (
        f"{percent(near, 0)} of requests have a simulated TTFT within a quarter of their live one "
        "(shaded). Share of requests by the ratio of the two, by configuration."
    )


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
def parts_table(check: Check) -> Table:
    """Return the time until the first token and after it, live and simulated."""
    lines = []
    for name, arm in check.live.arms.items():
        row, line = check.parts.loc[name], {"configuration": arm.label}
        for part, title in (("first", "until the first token"), ("rest", "after it")):
            live, twin = row[part, "live"], row[part, "twin"]
            off = signed(100 * (twin / live - 1), 1)
            line |= {
                f"{title}, live": number(live),
                f"{title}, simulated": f"{number(twin)}\n{off} %",
            }
        lines.append(line)
    caption = (
        "Mean of a request in ms, and the error of the simulation. Where prefill and decode have "
        "workers of their own, the first part is spent in the prefill pool and on the transfer, "
        "the second in the decode pool."
    )
    return Table(pd.DataFrame(lines), caption, ("configuration",))


@unless_missing(None)
def agreement_table(check: Check) -> Table | None:
    """Return whether the live effect agrees with the simulated one, by the reproduction's rule."""
    if check.agreement is None:
        return None
    lines = [
        {"difference of": quantity(key), "verdict": row["verdict"],
         **{title: with_ends(key, row[of], row[f"{of}_low"], row[f"{of}_high"])
            for of, title in (("yours", "live"), ("published", "simulated"), ("gap", "gap"))},
         "margin": f"± {size(key, row['margin'])}"}
        for key, row in ((str(key), row) for key, row in check.agreement.iterrows())
    ]  # fmt: skip
    rows, level = check.agreement["rows"].iloc[0], check.live.study.statistics.percent
    caption = (
        f"Means, comparison minus baseline, on {rows:,} pairs; gap: live minus simulated, with its "
        f"{level} workload interval. By the rule on the page of reproduction."
    )
    return Table(pd.DataFrame(lines), caption, ("difference of", "verdict"))


@unless_missing(
    "How much live runs differ from one another is not known yet: there is one of each."
)
def run_to_run(check: Check) -> str:
    """Return how much the effect differs between live repeats, beside the simulated orders."""
    clauses = []
    simulated = check.orders.pivot(
        index=["metric", "statistic", "order"], columns="configuration", values="value"
    )
    study = check.live.study
    for (key, statistic), row in check.by_repeat.iterrows():
        name, unit = quantity(key, statistic).rstrip("]").split(" [")
        orders = (simulated[study.comparison] - simulated[study.baseline]).loc[key, statistic]
        values = ", ".join(in_unit(key, value) for value in row)
        clauses.append(
            f"{name} {values} {unit} (sd {size(key, row.std())}; simulated orders "
            f"{size(key, orders.drop(CHOSEN, errors='ignore').std())})"
        )
    return (
        f"The same {check.live.manifest.trace.rows:,} requests live, "
        f"{check.by_repeat.shape[1]} times in other orders inside bursts: the comparison changes "
        f"{'; '.join(clauses)}."
    )


@unless_missing(None)
def frontends_table(check: Check) -> Table:
    """Return how well each time of the frontend fits, by half of the replay."""
    points = check.frontends.map(lambda value: number(value, 1)).rename(
        columns={1: "first half", 2: "second half"}
    )
    points.index = [f"{value:g}" for value in points.index]
    frame = points.rename_axis("frontend [ms per 1,000 tokens]").reset_index()
    caption = (
        "Sum of four errors of the simulated TTFT in points (requests off by more than a quarter, "
        "mean, p50, p90), averaged over configurations and orders."
    )
    return Table(frame, caption, ("frontend [ms per 1,000 tokens]",))


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
    for key, statistic in (("good_share", "share"), ("ttft_ms", "mean")):
        row = table.loc[what := quantity(key, statistic)]
        name, unit = what.rstrip("]").split(" [")
        clauses.append(f"{name} by {row['live']} {unit} live, {row['simulated']} simulated")
    return (
        f"The comparison changes the {' and the '.join(clauses)}, one live run of each; of "
        f"{len(table)} live effects {(table['live within'] == 'yes').sum()} lie within the range "
        f"of {check.orders['order'].nunique()} simulated orders inside bursts."
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
        f"{percent(errors['file'].abs().mean())}, averaged over orders "
        f"{percent(errors['centre'].abs().mean())}.{_pairs(check)}"
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


def _pairs(check: Check) -> str:
    """Return how far the mean latencies are off if the frontend reads two prompts at once."""
    means = check.errors[check.errors["statistic"] == "mean"].dropna(subset="pairs")
    if means.empty:
        return ""
    clauses = []
    for key, rows in means.groupby("metric", sort=False):
        ends = (percent(abs(rows[order]).mean()) for order in ("pairs", "centre"))
        clauses.append(
            "the mean {} is off by {} on average, not {}".format(METRICS[key].short, *ends)
        )
    return (
        " In the order of a frontend that reads two prompts at once, so that a short one overtakes "
        f"a long one, {'; '.join(clauses)}.{_pairs_effect(check)}"
    )


def _pairs_effect(check: Check) -> str:
    """Return how much of the gap between the effects on the mean TTFT that order leaves."""
    arms, effects = (check.live.study.baseline, check.live.study.comparison), check.effects
    if effects.empty:
        return ""
    row = effects[(effects["metric"] == "ttft_ms") & (effects["statistic"] == "mean")].iloc[0]
    values = check.orders.set_index(["order", "metric", "statistic", "configuration"])["value"]
    first, second = (values[PAIRS, "ttft_ms", "mean", name] for name in arms)
    return (
        f" The comparison then changes the mean TTFT by {signed(second - first)} ms, not "
        f"{signed(row['centre'])}; live by {signed(row['live'])}, so "
        f"{number(abs(second - first - row['live']))} ms remain unexplained."
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
        f"largest p99 send lag of a run is {number(lag, 1)} ms.{_memory(check)}"
    )


def _memory(check: Check) -> str:
    """Return what all processes of a run held, where the runs recorded it."""
    hosts = (repeats[0].manifest.host.get("memory_gb") for repeats in check.live.runs.values())
    held = [host for host in hosts if host]
    if not held:
        return ""
    middle, last, most = (
        max(at(host) for host in held)
        for at in (lambda host: host[len(host) // 2], lambda host: host[-1], max)
    )
    return (
        f" All processes of a run together held {number(most, 1)} GB at most, {number(middle, 1)} "
        f"half-way and {number(last, 1)} at the end."
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
    return f"{text}). {_fitted(check)}"


def _fitted(check: Check) -> str:
    """Return which time of the frontend fits the first half, and what it is worth on the second."""
    points = check.frontends
    best, declared = points[1].idxmin(), check.live.manifest.cluster["frontend_ms_per_1k_tokens"]
    text = (
        f"Of the times tried, {best:g} ms fits the first half of the replay best; on the second "
        f"its errors add up to {number(points.loc[best, 2], 1)} points a configuration, the least "
        f"of any time being {number(points[2].min(), 1)} ({points[2].idxmin():g} ms)"
    )
    if best == declared:
        return f"{text}. The profile declares it."
    first, second = (number(points.loc[declared, half], 1) for half in (1, 2))
    return (
        f"{text}. The profile declares {declared:g} ms: {first} points on the first half, {second} "
        "on the second."
    )


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
    return (
        f"**How far the simulation can be trusted:** against Dynamo's real frontend, router and "
        f"mock engines under real AIPerf, on {_requests(check)}, it is off by "
        f"{', '.join(clauses)} and {number(100 * abs(good['centre']), 1)} points in the good "
        "share, each under the configuration where it is off most ([](09_model_check)). "
        f"{effects(check)}"
    ).rstrip()
