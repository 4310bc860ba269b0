"""The table of docs/parallelism.md from the record of the parity tests.

AREAL_MEGA_PARITY_OUT=parity.json make test ARGS="tests/distributed/test_parity.py"
python tools/parity_table.py parity.json docs/parallelism.md

Writes it between the page's two marks; without a page it prints it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

BEGIN, END = "<!-- parity: written by tools/parity_table.py -->", "<!-- parity: end -->"
COLUMNS = {
    "log-probs": ("logprobs",),
    "values": ("values",),
    "gradients": ("gradients", "critic gradients"),
    "grad norm": ("grad_norm", "critic grad_norm"),
    "other split": ("micro-batch split, loss", "micro-batch split, grad_norm"),
    "weights after 4 steps": ("weights after steps",),
}


def main() -> None:
    measured = json.loads(Path(sys.argv[1]).read_text())
    text = table(measured)
    if len(sys.argv) == 2:
        print(text)
        return
    page = Path(sys.argv[2])
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def table(measured: dict[str, dict[str, dict[str, float]]]) -> str:
    """A line for each layout and family."""
    lines = [f"| layout | family | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for layout, families in measured.items():
        for family, checks in families.items():
            cells = [_worst(checks, names) for names in COLUMNS.values()]
            lines.append(f"| {layout} | {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _worst(checks: dict[str, float], names: tuple[str, ...]) -> str:
    values = [checks[name] for name in names if name in checks]
    return f"{max(values):.1e}" if values else ""


if __name__ == "__main__":
    main()
