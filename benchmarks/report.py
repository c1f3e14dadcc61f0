"""Turns measured seconds into a JSON file and a short table with median and spread."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum of ``values`` in seconds, and how many there are."""
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "runs": len(values),
    }


def machine() -> dict[str, Any]:
    """What the figures are of."""
    return {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def seconds_of(results: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """The figures of every row and column, with the values that they are of."""
    return {
        name: {what: {**summary(values), "values": list(values)} for what, values in row.items()}
        for name, row in results.items()
    }


def table_of(results: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The figures as a table (Markdown) for a person."""
    columns = list(dict.fromkeys(what for row in results.values() for what in row))
    lines = [
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name, row in seconds_of(results).items():
        cells = [
            f"{row[what]['median']:.2f} s ({row[what]['min']:.2f}–{row[what]['max']:.2f})"
            if what in row
            else "–"
            for what in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(results: Mapping[str, Mapping[str, Sequence[float]]], file: Path) -> str:
    """Write all figures to ``file`` and return the table for a person."""
    figures = {"machine": machine(), "seconds": seconds_of(results)}
    file.write_text(json.dumps(figures, indent=2) + "\n")
    return table_of(results)
