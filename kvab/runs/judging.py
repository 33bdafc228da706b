"""By what runs are judged: bounds of a good request, margins, settings of the intervals.

Input: sources and what a user names. Output: the terms, and where each bound comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvab import runs
from kvab.errors import InputError
from kvab.requests import aiperf
from kvab.runs.sources import Source
from kvab.study import Slo, Study, default_study, load_study, root

PACKAGED = Path(__file__).parents[1] / "study" / "default.yaml"  # where there is no checkout


@dataclass(frozen=True)
class Terms:
    """By what runs are judged; ``basis`` says where the bounds come from."""

    slo: Slo
    margins: Mapping[str, float]
    basis: str


def study_of(paths: Iterable[Path], named: Path | None) -> Study:
    """Return the study that paths are read by: the named one, their own, else the default.

    The default is that of the checkout, or the one packed with kvab where there is none or no
    single one.
    """
    if named:
        return load_study(named)
    for path in paths:
        if (path / "run.json").is_file():
            try:
                own = root() / "recipes" / runs.read_manifest(path).study / "study.yaml"
            except InputError:  # no checkout; a manifest that cannot be read is told by its reader
                break
            if own.is_file():
                return load_study(own)
    try:
        return load_study(default_study())
    except InputError:
        return load_study(PACKAGED)


def terms(
    found: list[Source], study: Study, named: bool, ttft_ms: float | None, itl_ms: float | None
) -> Terms:
    """Return by what sources are judged.

    A bound is taken from the command line, else from a study named there, else from the runs' own
    study as run.json has it, else from AIPerf's own ``--goodput``, else from ``study``.

    Raises
    ------
    InputError
        If runs were made for different bounds, or a bound is not positive.
    """
    wanted = {"ttft_ms": ttft_ms, "itl_ms": itl_ms}
    bounds = {key: _bound(found, study, named, key, value) for key, value in wanted.items()}
    bases = {key: basis for key, (_, basis) in bounds.items()}
    told = bases["ttft_ms"]
    if len(set(bases.values())) > 1:
        told = f"TTFT {bases['ttft_ms']}, ITL {bases['itl_ms']}"
    own = next((s.run.manifest.margins for s in found if s.run and s.run.manifest.margins), None)
    margins = {**study.margins, **(own if own and not named else {})}
    return Terms(Slo(**{key: value for key, (value, _) in bounds.items()}), margins, told)


def _bound(
    found: list[Source], study: Study, named: bool, key: str, wanted: float | None
) -> tuple[float, str]:
    if wanted is not None and not wanted > 0:
        option = key.replace("_", "-")
        raise InputError(f"--{option}: expected milliseconds above 0, got {wanted:g}")
    declared = getattr(study.slo, key)
    own = [s.run.manifest.slo for s in found if s.run]
    theirs = [aiperf.goodput(s.artifacts) for s in found if s.artifacts]
    for basis, values in (
        ("as named", [wanted]),
        (f"of the study {study.name}, as named", [declared] if named else []),
        ("of the run's own study", [getattr(slo, key, None) for slo in own]),
        ("of AIPerf's --goodput", [each.get(aiperf.NAMES[key]) for each in theirs]),
    ):
        known = sorted({value for value in values if value is not None})
        if len(known) > 1:
            raise InputError(
                f"{', '.join(str(s.path) for s in found)}: made for different bounds of a good "
                f"request ({' and '.join(f'{value:g} ms' for value in known)}); name those to "
                "judge by with --ttft-ms and --itl-ms"
            )
        if known:
            return known[0], basis
    return declared, f"of the study {study.name}, by default"
