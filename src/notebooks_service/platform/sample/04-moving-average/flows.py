"""Reading and smoothing the flow of the Nile; used by the notebooks."""

from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data" / "nile.csv"


def read_flows(path=DATA):
    """The years, and the volume of water in each of them, as two arrays."""
    year, volume = np.loadtxt(path, delimiter=",", skiprows=1, unpack=True)
    return year.astype(int), volume


def moving_average(volume, years=10):
    """The mean of each run of ``years`` values; the result is ``years - 1`` shorter."""
    return np.convolve(volume, np.full(years, 1 / years), mode="valid")
