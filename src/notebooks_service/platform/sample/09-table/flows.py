"""Reading and describing the flow of the Nile; used by the notebooks."""

from pathlib import Path

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
