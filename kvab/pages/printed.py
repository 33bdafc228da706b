"""How a metric's numbers are printed, and the tables of pages and of the command line.

Input: numbers, a run or a comparison. Output: text; (label, value) pairs; what a notebook shows.
Loaded without what draws.
"""

from __future__ import annotations

import html
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from kvab.console import change, counted, interval, number, percent, signed
from kvab.requests.metrics import LATENCIES, METRICS
from kvab.runs.folder import read_run
from kvab.runs.sources import Source, of_run
from kvab.study import Arm, Slo

if TYPE_CHECKING:
    from kvab.runs.bounds import Advice, Change, Option
    from kvab.stats.compare import Comparison
    from kvab.stats.contrasts import Contrast, Estimate

Lines = list[tuple[str, str]]
Columns = dict[str, tuple[pd.Series, int | None]]
"""By heading the numbers of each configuration, and with how many decimals they are printed."""
TEXT = ' class="kvab-text"'
UNBROKEN = re.compile(r"(?<=\d) (?=%|(?:ms|s|GB/s|GPUs?)\b)|(?<=±) |(?<= to) (?=[−+\d])")
IN_A_NAME = re.compile(r"(?<=[a-z};\]][.,:/_])(?=\S)")  # where a long name may be broken


# --- tables of pages --------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table of finished text with its caption; shows itself in a notebook.

    The first column names the rows and is text, as ``text_columns`` are. With a title in ``folded``
    it is closed until it is opened.
    """

    frame: pd.DataFrame
    caption: str = ""
    text_columns: tuple[str, ...] = ()
    folded: str = ""

    def _repr_html_(self) -> str:
        names = [*self.frame.columns]
        marks = [TEXT * (name in (names[0], *self.text_columns)) for name in names]
        head = _row(names, [f'th scope="col"{mark}' for mark in marks])
        cells = [f'th scope="row"{marks[0]}', *(f"td{mark}" for mark in marks[1:])]
        body = "".join(_row(row, cells) for row in self.frame.itertuples(index=False))
        caption = f"<caption>{escaped(self.caption)}</caption>" if self.caption else ""
        name = html.escape(self.caption.split(". ")[0] or ", ".join(names))
        table = (
            f'<div class="kvab-table" role="region" tabindex="0" aria-label="{name}"><table>'
            f"{caption}<thead>{head}</thead><tbody>{body}</tbody></table></div>"
        )
        folded = f"<details><summary>{html.escape(self.folded)}</summary>{table}</details>"
        return folded if self.folded else table


def _row(values: Iterable[object], tags: list[str]) -> str:
    cells = (f"<{tag}>{IN_A_NAME.sub('<wbr>', escaped(str(value)))}</{tag[:2]}>"
             for value, tag in zip(values, tags, strict=True))  # fmt: skip
    return f"<tr>{''.join(cells)}</tr>"


def with_units(text: str) -> str:
    """Return a text in which no line ends before a unit, nor before the end of an interval."""
    return UNBROKEN.sub("\N{NO-BREAK SPACE}", text)


def escaped(text: str) -> str:
    """Return a text for HTML, its numbers with their units."""
    return html.escape(with_units(text))


def by_configuration(arms: Mapping[str, Arm], columns: Columns, caption: str) -> Table:
    """Return numbers of each configuration, a row each."""
    frame = pd.DataFrame({
        heading: [number(value, decimals) for value in values[[*arms]]]
        for heading, (values, decimals) in columns.items()
    })  # fmt: skip
    frame.insert(0, "configuration", [arm.label for arm in arms.values()])
    return Table(frame, caption)


def run_table(path: Path, slo: Slo) -> Table:
    """Return the metrics of one run folder."""
    lines = summary_lines(of_run(read_run(path)), slo)
    return Table(pd.DataFrame(lines, columns=["quantity", "value"]), path.name)


# --- numbers and the lines of the command line ------------------------------------------------


def quantity(key: str, statistic: str = "") -> str:
    """Return what a difference is of, with its unit: mean TTFT [ms], good share [points]."""
    if key == "good_share":
        return "good share [points]"
    return f"{statistic} {METRICS[key].short} [ms]".lstrip()


def _decimals(key: str) -> int | None:
    return 1 if key == "good_share" else None


def size(key: str, value: float) -> str:
    """Return the size of a difference of a metric, of the good share in points."""
    return number(METRICS[key].factor * value, _decimals(key))


def in_unit(key: str, value: float) -> str:
    """Return a difference of a metric with its sign, of the good share in points."""
    return signed(METRICS[key].factor * value, _decimals(key))


def agreed(agreement: pd.DataFrame) -> str:
    """Return on which metrics runs agree with others; see `kvab.stats.robustness.agreement`."""
    from kvab.stats.robustness import AGREE, DIFFER  # imports slowly, as all statistics do

    verdicts, clauses = agreement["verdict"], []
    for verdict, verb in ((AGREE, "agrees"), (DIFFER, "differs")):
        metrics = [METRICS[key].label.lower() for key in agreement.index[verdicts == verdict]]
        clauses += [f"{verb} on {' and '.join(metrics)}"] if metrics else []
    rest = (~verdicts.isin([AGREE, DIFFER])).sum()
    clauses += [f"cannot tell on {rest} of {counted(len(agreement), 'metric')}"] if rest else []
    return ", ".join(clauses)


def with_ends(key: str, value: float, low: float, high: float, *, gap: str = "\n") -> str:
    """Return a difference of a metric and, in brackets, its interval."""
    return f"{in_unit(key, value)}{gap}({interval(low, high, METRICS[key].factor)})"


def agreement_cells(key: str, row: pd.Series) -> dict[str, str]:
    """Return two effects on a metric and their gap, with the verdict on it, as `agreed` has them.

    The row is of `kvab.stats.robustness.agreement`; ``yours``, ``published`` and ``gap``.
    """
    cells = {of: with_ends(key, row[of], row[f"{of}_low"], row[f"{of}_high"])
             for of in ("yours", "published", "gap")}  # fmt: skip
    verdict = f"{row['verdict']} (± {size(key, row['margin'])})"
    return cells | {"gap": f"{cells['gap']}\n{verdict}"}


def side_by_side(key: str, row: Contrast) -> tuple[str, str, str]:
    """Return both values of a metric and their difference, of the good share in per cent."""
    factor = METRICS[key].factor
    return change(factor * row.baseline, factor * row.comparison, _decimals(key))


def ends(key: str, estimate: Estimate) -> str:
    """Return the interval of a metric or a difference, of the good share in points."""
    return interval(estimate.low, estimate.high, METRICS[key].factor)


def where(values: Iterable[float], holds: Iterable[bool]) -> str:
    """Return at which values something holds: a single one, or from where to where.

    Examples
    --------
    >>> where([10, 15, 20, 25], [True, False, True, True])
    '10, 20 to 25'
    """
    runs = itertools.groupby(zip(values, holds, strict=True), key=lambda pair: pair[1])
    held = [[f"{value:g}" for value, _ in run] for holding, run in runs if holding]
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in held)


def rejected(overload: int | None) -> str:
    """Return how many of the failed requests were rejected for overload; nothing if none was."""
    return f", {overload:,} of them rejected for overload (HTTP 503 or 529)" if overload else ""


def _within(slo: Slo, basis: str) -> str:
    """Return what a good request keeps to, and where that comes from."""
    return f"TTFT {slo.ttft_ms:g} ms, ITL {slo.itl_ms:g} ms" + (f", {basis}" if basis else "")


def summary_lines(source: Source, slo: Slo, basis: str = "") -> Lines:
    """Return the metrics of one run."""
    summary = source.summary(slo)
    counts, good = summary["requests"], summary["good"]
    lines = [
        *source.about,
        ("requests", f"{number(counts['received'], 0)} of {number(counts['expected'], 0)}, "
                     f"{counts['errors']} failed{rejected(counts['overload'])}"),
        ("good requests",
         f"{percent(good['share'])} ({_within(slo, basis)}), {number(good['rps'], 2)} a second"),
    ]  # fmt: skip
    for key in LATENCIES:
        values = (f"{name} {number(summary[key][name])}" for name in ("mean", "p50", "p90", "p99"))
        lines.append((f"{METRICS[key].short} [ms]", ", ".join(values)))
    lines.append(("prompt from cache", percent(summary["cached_share"])))
    lines.append(("output tokens/s", number(summary["output_tokens_per_s"], 0)))
    return lines


def header_lines(arms: list[list[Source]], level: float, slo: Slo, basis: str) -> Lines:
    """Return which arms are compared, of what level the intervals are, and what is good."""
    first, second = ("; ".join(source.about[0][1] for source in arm) for arm in arms)
    return [("baseline", first), ("comparison", second), ("intervals", percent(level, 0)),
            ("bounds", _within(slo, basis))]  # fmt: skip


def comparison_lines(comparison: Comparison) -> Lines:
    """Return differences with intervals and the verdicts."""
    metrics = comparison.metrics
    lines = [
        ("pairs", f"{comparison.pairs:,}" if comparison.pairs else "none: unpaired"),
        ("good requests", _change("good_share", comparison.good.mean)),
    ]
    lines += [
        (f"{METRICS[key].short} {statistic} [ms]", _change(key, row))
        for key in LATENCIES
        for statistic, row in metrics[key].statistics.items()
    ]
    lines += [
        (f"faster, {METRICS[key].short}", percent(metrics[key].paired.faster.value))
        for key in LATENCIES
    ]
    lines += [(f"verdict, {METRICS[key].short}", of.verdict) for key, of in metrics.items()]
    lines += [("note", note) for note in comparison.notes]
    return lines


def _change(key: str, row: Contrast) -> str:
    """Return both values and their difference with its interval; of a share in points."""
    before, after, text = side_by_side(key, row)
    if math.isnan(row.difference.value):
        return f"{before} -> {after}: not measured in both"
    unit, points = (" %", " points") if key == "good_share" else ("", "")
    return f"{before}{unit} -> {after}{unit}: {text}{points} ({ends(key, row.difference)})"


# --- advice -----------------------------------------------------------------------------------

BOUNDS = {
    "load": "a load of {:g}",
    "ttft_ms": "a TTFT within {:,g} ms",
    "itl_ms": "an ITL within {:g} ms",
}


def advice_lines(advice: Advice) -> Lines:
    """Return labels and values: what was judged, each configuration, and which one to take."""
    swept, arms = advice.swept, advice.swept.arms
    price = number(swept.declared(swept.study).gpu_dollars_per_hour, 2)
    whose = "this machine's sweep" if swept.own else "the published sweep"
    lines = [
        ("workload", f"{swept.summary.trace.name}, {advice.load:g} times its arrival speed"),
        ("cluster", f"{swept.cluster}, {whose}, simulated"),
        ("bounds", _bounds(advice)),
        ("price", f"{price} dollars an hour for each GPU, as study.yaml assumes"),
        *((arms[name].label, _option(option)) for name, option in advice.options.items()),
        ("advice", _recommended(advice)),
    ]
    changes = [_elsewhere(advice, other) for other in advice.changes_if]
    return lines + [("what changes it" * (not n), text) for n, text in enumerate(changes)]


def _bounds(advice: Advice) -> str:
    text = f"TTFT within {advice.asked.ttft_ms:,g} ms, ITL within {advice.asked.itl_ms:g} ms"
    if advice.judged == advice.asked:
        return text
    taken = f"{advice.judged.ttft_ms:,g} and {advice.judged.itl_ms:g} ms"
    return f"{text}; judged at {taken}, the next stricter ones that were swept"


def _option(option: Option) -> str:
    ends = "no interval: too few blocks"
    if option.ci_low is not None:
        ends = f"{percent(option.ci_low)} to {percent(option.ci_high)}"
    text = f"{percent(option.good_share)} good ({ends})"
    if option.gpu_hours_per_1000_good is not None:
        text += f", {number(option.gpu_hours_per_1000_good)} GPU-hours for 1,000 good requests"
    if option.dollars_per_million_output_tokens is not None:
        dollars = number(option.dollars_per_million_output_tokens, 2)
        text += f", {dollars} dollars for 1M good output tokens"
    return text


def _recommended(advice: Advice) -> str:
    if advice.configuration is None:
        return "none keeps any request good"
    arms, lead, study = advice.swept.arms, advice.lead, advice.swept.study
    ends = interval(lead["low"], lead["high"], 100)
    ahead = (
        f"{number(100 * lead['margin'], 1)} points ahead of {arms[lead['next']].label} "
        f"({study.statistics.percent} workload interval {ends})"
    )
    label = arms[advice.configuration].label
    if advice.within_noise:
        return f"no clear one: {label} is {ahead}, which is within noise"
    return f"{label}: {ahead}"


def _elsewhere(advice: Advice, other: Change) -> str:
    noise = ", within noise" if other.within_noise else ""
    label = advice.swept.arms[other.configuration].label
    return (
        f"at {BOUNDS[other.key].format(other.value)} {label} leads "
        f"({signed(100 * other.margin, 1)} points{noise})"
    )
