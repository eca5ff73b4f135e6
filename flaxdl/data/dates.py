"""Generated pairs of texts: dates in many styles, and the same dates as ISO 8601 writes them."""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from flaxdl.data.dataset import ArrayDataset
from flaxdl.data.source import Source, Splits, hold_out
from flaxdl.errors import UserError

# Spelled out, since what `calendar` and `strftime` call them depends on the locale.
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_FIRST, _LAST = date(1900, 1, 1), date(2099, 12, 31)

# Fields: d day, dth its ordinal, m month, Month and Mon its name, yyyy year, Weekday.
STYLES = (
    "{d} {Month} {yyyy}",
    "{d} {Mon} {yyyy}",
    "{Month} {d}, {yyyy}",
    "{Mon} {dth} {yyyy}",
    "the {dth} of {Month}, {yyyy}",
    "{Weekday}, {d} {Month} {yyyy}",
    "{Weekday}, {Month} {dth}, {yyyy}",
    "{yyyy}, {d} {Month}",
    "{d}.{m}.{yyyy}",  # as in German
    "{m:02}/{d:02}/{yyyy}",  # as in the United States
)


@dataclass(frozen=True)
class Dates(Source):
    """`Friday, May 3rd, 1985` and `1985-05-03`: days of two centuries, each in one style.

    No day of the test is in the other splits. What is generated is always the same.
    """

    train: int = 20_000
    """Dates to learn from, those that are held out included."""
    test: int = 2_000
    """Dates that are looked at once."""
    validation_fraction: float = 0.1
    """Share of the training dates that is held out to choose by."""

    def load(self, seed: int) -> Splits:
        """Generates the dates; `seed` decides which are held out.

        Raises:
            UserError: if there are not as many days, or one of the splits would be empty.
        """
        days = (_LAST - _FIRST).days + 1
        if not (self.train > 0 and self.test > 0 and self.train + self.test <= days):
            raise UserError(
                f"train and test must be positive, and together at most {days:,} days, "
                f"got {self.train} and {self.test}"
            )
        rng = np.random.default_rng(0)
        chosen = rng.permutation(days)[: self.train + self.test]
        styles = rng.integers(len(STYLES), size=len(chosen))
        dates = [_FIRST + timedelta(int(day)) for day in chosen]
        written = [write(day, STYLES[style]) for day, style in zip(dates, styles, strict=True)]
        pairs = {
            "inputs": np.array(written, dtype=object),
            "label": np.array([day.isoformat() for day in dates], dtype=object),
        }
        test = ArrayDataset({name: texts[: self.test] for name, texts in pairs.items()})
        train = ArrayDataset({name: texts[self.test :] for name, texts in pairs.items()})
        return Splits(
            *hold_out(train, fraction=self.validation_fraction, seed=seed), test, classes=None
        )


def write(day: date, style: str) -> str:
    """Writes a date out in English, in one of the `STYLES`."""
    month = _MONTHS[day.month - 1]
    ending = {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    return style.format(
        d=day.day,
        dth=f"{day.day}{'th' if day.day in (11, 12, 13) else ending}",
        m=day.month,
        Month=month,
        Mon=month[:3],
        yyyy=day.year,
        Weekday=_WEEKDAYS[day.weekday()],
    )
