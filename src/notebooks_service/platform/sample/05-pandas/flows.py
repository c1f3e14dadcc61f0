"""Reading and smoothing the flow of the Nile; used by the notebooks."""

from pathlib import Path

import pandas as pd

DATA = Path(__file__).parent / "data" / "nile.csv"


def read_flows(path=DATA):
    """The volume of water in 10⁸ m³, by year."""
    return pd.read_csv(path, index_col="year")["volume"]


def moving_average(flows, years=10):
    """The mean of each year and the ``years - 1`` before it; the first ones have none."""
    return flows.rolling(years).mean()
