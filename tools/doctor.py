"""What this machine has for training and generation, and what each thing gives.

python tools/doctor.py [--json FILE]

Exit status 1: something is missing without which nothing works.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from areal_mega.runtime.doctor import Finding, examine

MARKS = {True: "ok", False: "--"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="also write the findings to this file")
    arguments = parser.parse_args()
    findings = examine()
    print(table(findings))
    missing = [f.name for f in findings if f.needed and not f.there]
    if missing:
        print(f"\nNeeded and not found: {', '.join(missing)}. `make setup` installs what is pinned.")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([asdict(f) for f in findings], indent=2) + "\n")
    return 1 if missing else 0


def table(findings: list[Finding]) -> str:
    """One line for each finding: whether it is there, what was found, what it gives."""
    names, found = (max(len(getattr(f, part)) for f in findings) for part in ("name", "found"))
    return "\n".join(f"{MARKS[f.there]}  {f.name:<{names}}  {f.found:<{found}}  {f.gives}" for f in findings)


if __name__ == "__main__":
    sys.exit(main())
