"""The paired comparison of two configurations: differences, intervals, verdicts.

Input: the requests tables of two arms, a list of repeats each. Output: the numbers of
``kvab compare`` and of the pages on the outcome. Differences are comparison minus baseline.
Two sources of variation have an interval each: the workload (``ci_*``: block bootstrap over arrival
time, `kvab.stats.bootstrap`; repeats are pooled, so their noise inside bursts is in it too) and run
to run (``run_to_run``: Student's t over repeats).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Unpack

import msgspec
import numpy as np
import pandas as pd
from scipy import special

from kvab.console import counted
from kvab.declarations import Json
from kvab.requests.metrics import LATENCIES, METRICS, SCHEMA, Slo
from kvab.stats import bootstrap, contrasts
from kvab.stats.bootstrap import Design, Replicates, Settings
from kvab.stats.contrasts import ARMS, POWER, Contrast, Estimate, Judgement, Method

UNPAIRED = (
    "Unpaired: the runs replayed no schedule in common, so no request of one has its partner in "
    "the other. Each arm is resampled by itself, in blocks over its order of sending; whether both "
    "had the same load and prompts is not checked."
)
MEAN = 0  # where it stands among the statistics of a metric
FEW_BLOCKS = 10  # below, a note says that the intervals are rough


@dataclass(frozen=True)
class RunToRun:
    """Differences of the means by repeat, their mean, and why it has no interval if so."""

    differences: list[float]
    mean: Estimate
    reason: str | None


@dataclass(frozen=True)
class Paired:
    """A latency pair by pair: share faster, pseudo-median and median of the differences.

    The pseudo-median (Hodges-Lehmann) is the median only of a symmetric distribution.
    """

    faster: Estimate = field(default_factory=Estimate)
    hodges_lehmann: Estimate = field(default_factory=Estimate)
    median: Estimate = field(default_factory=Estimate)


@dataclass(frozen=True)
class GoodTable:
    """Good and not good by pairs, and McNemar's p."""

    both: int = 0
    only_baseline: int = 0
    only_comparison: int = 0
    neither: int = 0
    mcnemar_p: float = np.nan


@dataclass(frozen=True)
class Outcome:
    """What becomes of one metric: statistic -> contrast, the verdict, and what it hangs on.

    ``paired`` is NaN of the good share and without pairs. ``smallest_detectable``: the true
    difference that such a comparison would call different from zero four times in five.
    """

    statistics: dict[str, Contrast]
    judgement: Judgement
    run_to_run: RunToRun
    smallest_detectable: float
    paired: Paired

    @property
    def mean(self) -> Contrast:
        """The mean; of the good share the share itself."""
        return self.statistics["mean"]

    @property
    def p50(self) -> Contrast:
        """The median of a latency."""
        return self.statistics["p50"]

    @property
    def p99(self) -> Contrast:
        """The tail of a latency."""
        return self.statistics["p99"]

    @property
    def verdict(self) -> str:
        """Better, worse, no difference or inconclusive."""
        return self.judgement.verdict


@dataclass(frozen=True)
class Comparison:
    """Two configurations compared; numbers are NaN where undefined.

    Attributes
    ----------
    pairs : int
        Pairs of requests, over all repeats; 0 if unpaired.
    metrics : dict of str to Outcome
        By metric, in display order; also as ``ttft``, ``itl`` and ``good``.
    method : Method
        Settings of the intervals.
    good_table : GoodTable
        Good and not good by pairs; zeros without pairs.
    notes : list of str
        What limits the comparison, a sentence each.
    """

    pairs: int
    metrics: dict[str, Outcome]
    method: Method
    good_table: GoodTable
    notes: list[str]

    @property
    def ttft(self) -> Outcome:
        """Time to first token."""
        return self.metrics["ttft_ms"]

    @property
    def itl(self) -> Outcome:
        """Inter-token latency."""
        return self.metrics["itl_ms"]

    @property
    def good(self) -> Outcome:
        """Good requests."""
        return self.metrics["good_share"]

    def to_json(self) -> Json:
        """Return the document of ``kvab compare --json`` (schema 1); null where undefined."""
        every = self.metrics.items()
        paired = {key: self.metrics[key].paired for key in LATENCIES}
        rows = {
            key: {name: _row(contrast) for name, contrast in of.statistics.items()}
            for key, of in every
        }
        method = asdict(self.method)
        if self.method.requests is None:
            del method["requests"]
        pseudo = {key: _ends("value", of.hodges_lehmann) for key, of in paired.items()}
        document = {
            "schema": SCHEMA,
            "pairs": self.pairs,
            "metrics": {key: rows[key] for key in LATENCIES},
            "good_share": rows["good_share"]["mean"],
            "faster_share": {key: of.faster.value for key, of in paired.items()},
            "faster_share_ci": {key: [of.faster.low, of.faster.high] for key, of in paired.items()},
            "paired_median_difference": {  # its value is the pseudo-median, as it always was
                key: pseudo[key] | _ends("median", of.median, "median_")
                for key, of in paired.items()
            },
            "pseudo_median_difference": pseudo,
            "verdict": {key: of.verdict for key, of in every},
            "verdict_basis": {
                key: {"statistic": "mean"}
                | asdict(of.judgement)
                | _ends("difference", of.judgement.difference)
                for key, of in every
            },
            "method": method,
            "good_table": asdict(self.good_table) if self.pairs else {},
            "run_to_run": {key: _repeats(of.run_to_run) for key, of in every},
            "smallest_detectable": {key: of.smallest_detectable for key, of in every},
            "notes": self.notes,
        }
        text = msgspec.json.encode(document, enc_hook=float)  # NaN becomes null
        plain: Json = msgspec.json.decode(text)
        return plain


def _ends(name: str, estimate: Estimate, prefix: str = "") -> dict[str, float]:
    ends = {f"{prefix}ci_low": estimate.low, f"{prefix}ci_high": estimate.high}
    return {name: estimate.value, **ends}


def _row(contrast: Contrast) -> dict[str, float]:
    return (
        {"baseline": contrast.baseline, "comparison": contrast.comparison}
        | {"difference": contrast.difference.value, "ratio": contrast.ratio.value}
        | _ends("difference", contrast.difference)
        | _ends("ratio", contrast.ratio, "ratio_")
    )


def _repeats(of: RunToRun) -> dict[str, object]:
    return {"differences": of.differences, **_ends("mean", of.mean), "reason": of.reason}


def compare(
    baseline_tables: Sequence[pd.DataFrame],
    comparison_tables: Sequence[pd.DataFrame],
    slo: Slo,
    *,
    margins: Mapping[str, float] | None = None,
    **settings: Unpack[Settings],
) -> Comparison:
    """Return the paired comparison of two arms.

    Parameters
    ----------
    baseline_tables, comparison_tables : sequence of DataFrame
        Requests tables, one a repeat; repeats are pooled within bursts.
    slo : Slo
        Bounds of a good request, in milliseconds.
    margins : mapping, optional
        Metric -> practical margin, see `kvab.stats.contrasts.verdicts`; 0 where missing.
    **settings
        ``level``, ``resamples``, ``seed`` of the intervals.

    Returns
    -------
    Comparison
        Latency statistics are over the served rows of each arm, paired ones over rows served in
        both, the good share over all rows. Verdicts on latencies are about the mean, what users
        wait in total; it hides what the paired statistics beside it show.

    Raises
    ------
    InputError
        If the arms cannot be paired, see `kvab.stats.contrasts.join`.
    """
    pairs = contrasts.pair(baseline_tables, comparison_tables)
    both = contrasts.values(pairs, slo)
    by_pair = contrasts.paired(both)
    design = contrasts.plan(pairs, by_pair.values(), **settings)
    return Comparison(
        pairs=len(pairs),
        metrics=_outcomes(
            contrasts.compared(pairs, both, design),
            margins or {},
            {key: _run_to_run(pairs, of, design.level) for key, of in both.items()},
            {key: paired_statistics(pairs, by_pair[key], design) for key in LATENCIES},
        ),
        method=contrasts.method(pairs, design),
        good_table=_good_table(pairs, both["good_share"]),
        notes=_notes(both, design, [len(baseline_tables), len(comparison_tables)]),
    )


def compare_unpaired(
    baseline_tables: Sequence[pd.DataFrame],
    comparison_tables: Sequence[pd.DataFrame],
    slo: Slo,
    *,
    margins: Mapping[str, float] | None = None,
    **settings: Unpack[Settings],
) -> Comparison:
    """Return the comparison of two arms whose requests have no partners; as `compare`.

    What rests on pairs is NaN or zero.

    Notes
    -----
    Each arm is resampled by itself, in blocks over its order of sending, its runs in turn; the unit
    is a request. The arms are independent, so the variance of a difference is the sum of theirs.
    The interval takes Student's t and the correction for few blocks of the arm with fewer blocks:
    never narrower than Welch's, whose degrees of freedom lie between that arm's and the sum.
    """
    both, alone, designs = [], [], []
    for at, tables in enumerate((baseline_tables, comparison_tables)):
        sent = pd.concat(table.sort_values("arrival_ms", kind="stable") for table in tables)
        order = pd.DataFrame({"burst": np.arange(len(sent))})
        arm = {key: of[None] for key, of in contrasts.metric_values(sent, slo).items()}
        seed = settings.get("seed", 0) + at
        design = contrasts.plan(order, arm.values(), **(settings | {"seed": seed}))
        both.append(arm)
        designs.append(design)
        alone.append(contrasts.compared(order, arm, design))
    used = min(designs, key=lambda design: design.blocks)
    arms = {}
    for key in METRICS:
        value = np.concatenate([arm[key].value for arm in alone])
        arms[key] = Replicates(value, np.concatenate([arm[key].draws for arm in alone], 1), used)
    name = "stationary block bootstrap over the order of sending, each arm by itself, Student t"
    requests = [design.bursts for design in designs]
    unknown = RunToRun([], Estimate(), "unpaired")
    of_arms = {key: [arm[key] for arm in both] for key in METRICS}
    repeats = [len(baseline_tables), len(comparison_tables)]
    return Comparison(
        pairs=0,
        metrics=_outcomes(arms, margins or {}, dict.fromkeys(METRICS, unknown), {}),
        method=Method(name, block_s=np.nan, blocks=used.blocks, requests=requests, **asdict(used)),
        good_table=GoodTable(),
        notes=[UNPAIRED, *_notes(of_arms, used, repeats)],
    )


def _outcomes(
    arms: Mapping[str, Replicates],
    margins: Mapping[str, float],
    repeats: Mapping[str, RunToRun],
    paired: Mapping[str, Paired],
) -> dict[str, Outcome]:
    """Return the outcome of each metric from the statistics of both arms."""
    basis = contrasts.verdicts(arms, margins)
    return {
        key: Outcome(
            statistics=contrasts.by_statistic(of, contrasts.statistics_of(key)),
            judgement=basis[key],
            run_to_run=repeats[key],
            smallest_detectable=float(
                (of.design.critical() + of.design.critical(POWER))
                * contrasts.difference(of).error[MEAN]
            ),
            paired=paired.get(key, Paired()),
        )
        for key, of in arms.items()
    }


def paired_statistics(pairs: pd.DataFrame, paired: np.ndarray, design: Design) -> Paired:
    """Return share faster, pseudo-median and median of one metric's paired differences."""
    unknown = np.isnan(paired)
    faster = contrasts.sample(pairs, np.where(unknown, np.nan, paired < 0))
    of_pairs = contrasts.sample(pairs, paired)
    share = bootstrap.replicate(design, partial(bootstrap.mean, faster))
    median = bootstrap.replicate(design, partial(bootstrap.percentiles, of_pairs, q=[50]))
    return Paired(
        faster=Estimate(*map(float, (share.value, *share.share_interval))),
        hodges_lehmann=Estimate(*bootstrap.hodges_lehmann_interval(of_pairs, design)),
        median=Estimate.each(median.value, *median.interval)[0],
    )


def _good_table(pairs: pd.DataFrame, both: np.ndarray) -> GoodTable:
    """Return how many pairs are good in which arm.

    Notes
    -----
    McNemar's exact test: binomial(n, 1/2) over the n discordant pairs, of each repeat by itself, as
    pooled it would count pairs twice. It takes pairs as independent, which neighbours in time are
    not: the block bootstrap decides, this is shown beside it.
    Q. McNemar, Psychometrika 12 (1947), DOI 10.1007/BF02295996.
    """
    from scipy.stats import binomtest  # imports for seconds

    before, after = both > 0
    lost, won = before & ~after, after & ~before
    discordant = pd.DataFrame({"lost": lost, "won": won}).groupby(pairs["repeat"]).sum()
    counts = discordant.to_numpy().tolist()
    p = [binomtest(lost, lost + won).pvalue for lost, won in counts if lost + won]
    return GoodTable(
        both=int((before & after).sum()),
        only_baseline=int(lost.sum()),
        only_comparison=int(won.sum()),
        neither=int((~before & ~after).sum()),
        mcnemar_p=float(max(p, default=1.0)),
    )


def _run_to_run(pairs: pd.DataFrame, both: np.ndarray, level: float) -> RunToRun:
    baseline, comparison = (pd.Series(arm).groupby(pairs["repeat"]).mean() for arm in both)
    by_repeat = (comparison - baseline).dropna().to_numpy()
    differences = [*map(float, by_repeat)]
    mean = float(by_repeat.mean()) if differences else np.nan
    if len(by_repeat) < 2:
        reason = f"{len(by_repeat)} repeat: variation from run to run needs at least two"
        return RunToRun(differences, Estimate(mean), reason)
    error = by_repeat.std(ddof=1) / np.sqrt(len(by_repeat))
    half = float(special.stdtrit(len(by_repeat) - 1, (1 + level) / 2) * error)
    return RunToRun(differences, Estimate(mean, mean - half, mean + half), None)


def _notes(
    both: Mapping[str, Iterable[np.ndarray]], design: Design, repeats: Sequence[int]
) -> list[str]:
    notes = []
    for arm, latency_ms, good in zip(ARMS, both["latency_ms"], both["good_share"], strict=True):
        if np.isnan(latency_ms).all():
            notes.append(f"The {arm} served no request: only the good share can be compared.")
        elif np.isnan(good).all():
            notes.append(f"The {arm} was not streamed: only its latency can be compared.")
    if len(set(repeats)) > 1:
        notes.append(
            f"The baseline has {counted(repeats[0], 'repeat')} and the comparison {repeats[1]}: "
            f"the first {min(repeats)} of each are compared."
        )
    if min(repeats) == 1:
        notes.append("One repeat: variation from run to run is unknown.")
    if design.blocks <= 2:
        notes.append(
            f"{counted(design.bursts, 'burst')} in blocks of {design.block_bursts} are too few for "
            "an interval: the estimates stand without one and no verdict is possible."
        )
    elif design.blocks < FEW_BLOCKS:
        notes.append(f"Only {design.blocks:.1f} blocks: the intervals are wide and rough.")
    return notes
