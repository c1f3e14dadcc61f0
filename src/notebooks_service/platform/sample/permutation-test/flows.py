"""Reading and describing the flow of the Nile; used by the notebooks."""

from pathlib import Path

import numpy as np
import pandas as pd

DATA = Path(__file__).parent / "data" / "nile.csv"


def read_flows(path=DATA):
    """The volume of water in km³, by year."""
    return pd.read_csv(path, index_col="year")["volume_km3"]


def moving_average(flows, years=10):
    """The mean of each year and the ``years - 1`` before it; the first ones have none."""
    return flows.rolling(years).mean()


def change_year(flows):
    """The last year before the change: where two means, one on each side, fit the flow best.

    "Best" is the least sum of squared distances from the two means.
    """

    def misfit(year):
        parts = flows.loc[:year], flows.loc[year + 1 :]
        return sum(((part - part.mean()) ** 2).sum() for part in parts)

    return min(flows.index[:-1], key=misfit)


def compare(**parts):
    """A table with one row for each part of the flow: years, mean, lowest and highest."""
    rows = {
        name: {
            "from": part.index[0],
            "to": part.index[-1],
            "mean [km³]": round(part.mean(), 1),
            "lowest [km³]": part.min(),
            "highest [km³]": part.max(),
        }
        for name, part in parts.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def chance_of_difference(before, after, tries=5000, seed=1):
    """How often years in random order differ at least as much as ``before`` and ``after`` do."""
    random = np.random.default_rng(seed)
    values = np.concatenate([before, after])
    seen = abs(before.mean() - after.mean())
    hits = 0
    for _ in range(tries):
        random.shuffle(values)
        hits += abs(values[: len(before)].mean() - values[len(before) :].mean()) >= seen
    return hits / tries
