"""What the paper prints: ``paper_tables.csv``, every cell that could be read, with its source."""

import csv
from pathlib import Path

FILE = Path(__file__).parent / "paper_tables.csv"


def cells(table: str, setting: str) -> dict[tuple[str, str, str], float]:
    """The values of one table and setting by (method, variant, metric), as printed."""
    lines = [line for line in FILE.read_text("utf-8").splitlines() if not line.startswith("#")]
    return {
        (row["method"], row["variant"], row["metric"]): float(row["value"])
        for row in csv.DictReader(lines)
        if (row["table"], row["setting"]) == (table, setting) and row["value"]
    }
