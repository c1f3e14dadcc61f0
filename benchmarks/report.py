"""Turns measured seconds into a JSON file and a short table with median and spread."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum of ``values`` in seconds, and how many there are."""
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "runs": len(values),
    }


def write(results: Mapping[str, Mapping[str, Sequence[float]]], file: Path) -> str:
    """Write all figures to ``file`` and return the table (Markdown) for a person."""
    machine = {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    figures = {
        name: {what: {**summary(values), "values": list(values)} for what, values in row.items()}
        for name, row in results.items()
    }
    file.write_text(json.dumps({"machine": machine, "seconds": figures}, indent=2) + "\n")
    columns = list(dict.fromkeys(what for row in results.values() for what in row))
    lines = [
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name, row in figures.items():
        cells = [
            f"{row[what]['median']:.2f} s ({row[what]['min']:.2f}–{row[what]['max']:.2f})"
            if what in row
            else "–"
            for what in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
