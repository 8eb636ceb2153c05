"""How old a price is. Today comes from one place, and a plan records the day it was counted from."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime

from moeplan.files.scenario.schema_money import first_day
from moeplan.spec.prices import PriceUsed

STALE_DAYS = 90


def today() -> date:
    """The day of ``SOURCE_DATE_EPOCH`` (reproducible-builds.org) where that is set, else of the clock, in UTC."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(epoch), UTC).date() if epoch.isdecimal() else datetime.now(UTC).date()


def price_used(what: str, name: str, price_date: str, as_of: date) -> PriceUsed:
    """The age of a price on the day ``as_of``. A date known to the month or year counts from its first day."""
    if not price_date:
        return PriceUsed(what, name, "", None, False)
    age_days = max(0, (as_of - first_day(price_date)).days)
    return PriceUsed(what, name, price_date, age_days, age_days > STALE_DAYS)
