"""What is drawn."""

from kvab.pages.figures.choices import interaction, slo_surface
from kvab.pages.figures.outcomes import (
    distributions,
    effects_by_group,
    good_shares,
    over_time,
    quantile_differences,
    worker_balance,
)

__all__ = [
    "distributions",
    "effects_by_group",
    "good_shares",
    "interaction",
    "over_time",
    "quantile_differences",
    "slo_surface",
    "worker_balance",
]
