"""Whether a difference between two models is larger than the noise between seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A score of one model less that of another, paired by seed.

    Attributes:
        each: the difference of each seed.
        mean: their mean.
        low: lower end of the two-sided 95 % interval of the mean, by Student's t; as `high` infinite for one seed.
        high: its upper end.
        p: of the paired t-test that the mean is zero.
    """

    each: tuple[float, ...]
    mean: float
    low: float
    high: float
    p: float

    @property
    def larger_than_noise(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare scores of the same seeds in the same order.

    With three seeds the interval is 2.5 deviations of a difference to either side, with five 1.2. The sign test, exact
    without any assumption, could not fall below p = 0.25 with three seeds and 0.06 with five; so this leans on the
    differences being about normal.

    Raises:
        ValueError: not one score of each for every seed.
    """
    each = tuple(a - b for a, b in zip(first, second, strict=True))
    if not each:
        raise ValueError("there are no seeds that both models were trained with")
    mean = statistics.fmean(each)
    if len(each) == 1:
        return Difference(each=each, mean=mean, low=-math.inf, high=math.inf, p=1.0)
    freedom = len(each) - 1
    error = statistics.stdev(each) / math.sqrt(len(each))
    reach = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    p = float(2 * t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    return Difference(each=each, mean=mean, low=mean - reach, high=mean + reach, p=p)


def holm(values: Sequence[float]) -> list[float]:
    """Adjust the p of several tests so that the chance of any false one stays at the level of a single one (Holm)."""
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted
