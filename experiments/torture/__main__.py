"""Cause faults for so many minutes, and write the table: ``python -m experiments.torture --minutes 20``.

Every kind of fault is caused in turn, again and again until the time is over; a kind that draws nothing at random is
caused once. The table is printed, and written to ``<output>/faults.json`` and ``<output>/faults.md``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.torture.registry import Fault, Outcome, all_faults


def cause(fault: Fault, folder: Path) -> Outcome:
    """Cause a fault once in a folder that is made for it; an exception is a fault that was not survived."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        result = fault.cause(folder)
    except Exception as error:
        return Outcome(0, 1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result if isinstance(result, Outcome) else Outcome(int(result), 1)


def torture(faults: dict[str, Fault], minutes: float, folder: Path) -> dict[str, dict[str, Any]]:
    """Cause every fault once, then go on with those drawn at random until the time is over."""
    until = time.monotonic() + 60 * minutes
    table: dict[str, dict[str, Any]] = {}
    left = dict(faults)
    while left:
        for name, fault in list(left.items()):
            if name in table and time.monotonic() >= until:
                return table
            begun = time.monotonic()
            outcome = cause(fault, folder)
            entry = table.setdefault(name, {"does": fault.does, "survived": 0, "tried": 0, "seconds": 0.0, "notes": []})
            entry["survived"] += outcome.survived
            entry["tried"] += outcome.tried
            entry["seconds"] = round(entry["seconds"] + time.monotonic() - begun, 1)
            if outcome.note:
                entry["notes"].append(outcome.note)
            print(f"{name}: {entry['survived']} of {entry['tried']} survived {outcome.note}".rstrip(), flush=True)
            if fault.once:
                del left[name]
    return table


def markdown(table: dict[str, dict[str, Any]], command: str) -> str:
    """The table, as Markdown."""
    lines = [f"`{command}`", "", "| fault | survived | tried | what is caused |", "|---|---|---|---|"]
    lines += [f"| {name} | {row['survived']} | {row['tried']} | {row['does']} |" for name, row in table.items()]
    survived, tried = (sum(row[key] for row in table.values()) for key in ("survived", "tried"))
    return "\n".join([*lines, f"| all | {survived} | {tried} | |"]) + "\n"


def main() -> int:
    """The command line; exit code 1 where a fault was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="go on for so long")
    parser.add_argument("--fault", action="append", help="only these; repeatable")
    parser.add_argument("--output", type=Path, default=Path("results/torture"), help="where the table goes")
    options = parser.parse_args()
    faults = all_faults()
    unknown = set(options.fault or ()) - set(faults)
    if unknown:
        print(f"error: --fault {sorted(unknown)[0]!r}: is none of {', '.join(sorted(faults))}", file=sys.stderr)
        return 2
    chosen = {name: fault for name, fault in faults.items() if not options.fault or name in options.fault}
    from forgetting.provenance import provenance
    from forgetting.results import write_atomically

    command = f"python -m experiments.torture --minutes {options.minutes:g}"
    command += "".join(f' --fault "{name}"' for name in options.fault or ())
    with tempfile.TemporaryDirectory() as scratch:
        table = torture(chosen, options.minutes, Path(scratch) / "fault")
    text = markdown(table, command)
    content = {"command": command, "provenance": provenance({}), "faults": table}
    write_atomically(options.output / "faults.json", (json.dumps(content, indent=1) + "\n").encode())
    write_atomically(options.output / "faults.md", text.encode())
    print(text)
    return int(any(row["survived"] < row["tried"] for row in table.values()))


if __name__ == "__main__":
    sys.exit(main())
