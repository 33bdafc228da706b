r"""Hour to hour: the effect in other hours, from the effects in hours made of conversations.

Input: the effect (comparison minus baseline) in the recorded hour and in each made hour. Output:
two intervals, and how often they cover among the made hours.

Made hours are bootstrap samples of the recorded one, with the conversation as unit [1]_: their
effects :math:`d_1, \dots, d_n` spread about theirs as the effect of a recorded hour spreads about
the mean effect of all hours of its kind. With their standard deviation :math:`s`, the recorded
effect :math:`\hat\theta` and :math:`t` the quantile of Student's t with n - 1 degrees:

- **the mean effect** over such hours lies in :math:`\hat\theta \pm t s` (the bootstrap's standard
  interval, [1]_ section 13.3);
- **the effect in another hour**, which strays from that mean as much as the recorded one does and
  independently, lies in :math:`\hat\theta \pm \sqrt 2 \, t s` (a prediction interval [2]_).

**Coverage, leave one out.** Each made hour takes the place of the recorded one, and s comes from
the others: the shares of the others' effects, and of the others' means, that its intervals hold.

References
----------
.. [1] B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, Chapman & Hall (1993).
.. [2] G. J. Hahn and W. Q. Meeker, Statistical Intervals, Wiley (1991),
   DOI 10.1002/9780470316771.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from kvab.stats.contrasts import Estimate

FEWEST_HOURS = 3


@dataclass(frozen=True)
class HourToHour:
    """Intervals of one effect, and the shares that such intervals cover among the made hours."""

    mean: Estimate
    another: Estimate
    mean_coverage: float
    another_coverage: float


def hour_to_hour(recorded: float, made: np.ndarray, level: float) -> HourToHour:
    """Return the intervals that the module describes.

    Parameters
    ----------
    recorded : float
        The effect in the recorded hour.
    made : ndarray, shape (hours,)
        The effects in made hours, `FEWEST_HOURS` or more.
    level : float
        Level of the intervals.
    """
    half = _half_width(made, level)
    means, others = [], []
    for at, effect in enumerate(made):
        rest = np.delete(made, at)
        half_of_rest = _half_width(rest, level)
        means.append(abs(rest.mean() - effect) <= half_of_rest)
        others.append(np.mean(np.abs(rest - effect) <= np.sqrt(2) * half_of_rest))
    return HourToHour(
        mean=_around(recorded, half),
        another=_around(recorded, np.sqrt(2) * half),
        mean_coverage=float(np.mean(means)),
        another_coverage=float(np.mean(others)),
    )


def _half_width(made: np.ndarray, level: float) -> float:
    return float(special.stdtrit(len(made) - 1, (1 + level) / 2) * made.std(ddof=1))


def _around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)
