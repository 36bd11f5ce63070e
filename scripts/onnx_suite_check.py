#!/usr/bin/env python3
"""Prints what `kiln verify --suite DIR --json` found, and fails where a set has fewer
cases right, or fewer all compiled, than it had.

    onnx_suite_check.py RESULT.json
"""

import json
import sys

# By set: right, and of them all compiled (see `Passed` in src/bin/kiln/suite.rs).
LEAST = {
    "node": (1865, 1551),
    "simple": (21, 14),
    "pytorch-converted": (82, 82),
    "pytorch-operator": (35, 35),
    "light": (9, 0),
}


def line(name, tally):
    counts = ("passed", "failed", "skipped")
    text = f"{name:<18}" + "".join(f" {tally[k]:>5} {k}" for k in counts)
    how = [f"{n} {k.replace('_', ' ')}" for k, n in tally.items() if k not in counts and n]
    return text + "; of the passed " + ", ".join(how)


def main():
    with open(sys.argv[1]) as f:
        result = json.load(f)
    for reason, names in result["skips"].items():
        print(f"skipped {len(names):>4}  {reason}")
    for name, tally in result["sets"].items():
        print(line(name, tally))
    print(line("_expanded cases", result["expanded"]))
    bad = result["failures"]
    for name, (passed, compiled) in LEAST.items():
        tally = result["sets"].get(name, {"passed": 0, "all_compiled": 0})
        if tally["passed"] < passed or tally["all_compiled"] < compiled:
            bad.append(f"{name}: {tally['passed']} passed and {tally['all_compiled']} all compiled, "
                       f"where {passed} and {compiled} did")
    print(*bad, sep="\n", end="\n" if bad else "")
    print(f"{result['passed']} passed, {result['failed']} failed, {result['skipped']} skipped")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
