"""Generated text pairs: dates in many styles and the same dates in ISO 8601."""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from flaxdl.data.dataset import ArrayDataset
from flaxdl.data.source import Source, Splits, hold_out
from flaxdl.errors import UserError

# Spelled out because the names from `calendar` and `strftime` depend on the locale.
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
    """Pairs such as `Friday, May 3rd, 1985` and `1985-05-03`, for 1900 to 2099.

    Each date is written in one style, and no test date is in another split. The generated dates do
    not depend on the seed.
    """

    train: int = 20_000
    """Number of training dates, including those held out for validation."""
    test: int = 2_000
    """Number of test dates, evaluated once, at the end of the run."""
    validation_fraction: float = 0.1
    """Fraction of the training dates held out for validation."""

    def load(self, seed: int) -> Splits:
        """Generates the dates; `seed` determines which ones are held out for validation.

        Raises:
            UserError: if more dates are requested than days exist, or if a split would be empty.
        """
        days = (_LAST - _FIRST).days + 1
        if not (self.train > 0 and self.test > 0 and self.train + self.test <= days):
            raise UserError(
                f"train and test must be positive and sum to at most {days:,} days, "
                f"got {self.train} and {self.test}"
            )
        rng = np.random.default_rng(0)
        chosen = rng.permutation(days)[: self.train + self.test]
        styles = rng.integers(len(STYLES), size=len(chosen))
        dates = [_FIRST + timedelta(int(day)) for day in chosen]
        written = [
            format_date(day, STYLES[style]) for day, style in zip(dates, styles, strict=True)
        ]
        pairs = {
            "inputs": np.array(written, dtype=object),
            "label": np.array([day.isoformat() for day in dates], dtype=object),
        }
        test = ArrayDataset({name: texts[: self.test] for name, texts in pairs.items()})
        train = ArrayDataset({name: texts[self.test :] for name, texts in pairs.items()})
        return Splits(
            *hold_out(train, fraction=self.validation_fraction, seed=seed), test, classes=None
        )


def format_date(day: date, style: str) -> str:
    """Formats a date in English in the given style, one of `STYLES`."""
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
