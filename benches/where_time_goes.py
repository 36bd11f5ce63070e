"""Where the time of each model goes, at one thread: writes docs/where-time-goes.md.

    where_time_goes.py KILN_RT KILN [--only NAME]... [--turns N] [--output FILE]

NAME is a model of benches/peer_models.py. The models take turns: in each, `kiln-rt
bench` runs every model for about 0.4 s and profiles five runs, of which it gives the
steps of the fastest; a step's time is the fastest of all turns, and so are the rates of
the machine that it is held against. A model's time is the sum of its steps'. A step's *roofline* is the time that its operations
and bytes take at those rates, whichever is longer; what it takes beyond that is lost. A
share above 100 % is possible: bytes that lie in a cache, products of 8-bit integers, and
convolutions by Winograd, which count the direct form's operations.

Only what stands between the markers of the document is replaced; with --only, only
that model's part of it, and not the table of all.
"""
import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import peer_models
import peers

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "where-time-goes.md"
HEAD = """# Where the time goes

One thread, model by model: how each family of steps does against what the machine can
do (columns of families are shares of the time), and the steps that lose most.
`python benches/where_time_goes.py KILN_RT KILN` writes what stands between the markers;
its description says how the figures are made.
"""
# The families of kernels by the names that `kiln_FAMILY_HASH` has for them.
FAMILIES = {"matmul": "products", "conv": "convolutions", "attention": "attention", "nest": "nests"}
COLUMNS = [*FAMILIES.values(), "copies", "host"]
TURN_MS, NAMED = 400, 5


def family(kernel):
    """Of a step by its kernel; what the runtime does itself has names of its own."""
    found = re.fullmatch(r"kiln_(\w+)_[0-9a-f]{16}", kernel)
    if found:
        return FAMILIES.get(found[1], found[1])
    return "copies" if kernel == "copy" else "host"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kiln_rt")
    parser.add_argument("kiln")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", choices=[m.name for m in peer_models.MODELS])
    parser.add_argument("--turns", type=int, default=5, metavar="N")
    parser.add_argument("--output", type=Path, default=DOCUMENT, metavar="FILE", help="another document than docs/where-time-goes.md")
    a = parser.parse_args()
    if a.turns < 1:
        parser.error("at least one turn")
    return a


class Case:
    """A model at one shape: the fastest times so far."""

    def __init__(self, label, artifact, inputs):
        self.label, self.artifact, self.inputs = label, artifact, inputs
        self.steps, self.runs = None, 3

    def turn(self, kiln_rt, rates):
        command = [kiln_rt, "bench", str(self.artifact), "--inputs", str(self.inputs), "--threads", "1",
                   "--runs", str(self.runs), "--json"]
        doc = json.loads(subprocess.check_output(command))
        self.runs = max(3, min(2000, int(TURN_MS / doc["median_ms"])))
        for key in rates:
            rates[key] = max(rates[key], doc["roofline"][key])
        if self.steps is None:
            self.steps = doc["per_step"]
        elif [s["label"] for s in self.steps] != [s["label"] for s in doc["per_step"]]:
            sys.exit(f"{self.label}: the steps of two runs differ")
        else:
            for best, new in zip(self.steps, doc["per_step"]):
                best["ns"] = min(best["ns"], new["ns"])

    def against(self, rates):
        """Holds every step against the machine; sums of nanoseconds: taken, of the
        roofline, of arithmetic alone."""
        for s in self.steps:
            s["roof"] = max(s["flops"] / rates["fma_gflops"], s["bytes"] / rates["read_gb_s"])
        sums = {k: sum(s[k] for s in self.steps) for k in ("ns", "roof", "flops")}
        return sums["ns"], sums["roof"], sums["flops"] / rates["fma_gflops"]

    def row(self, rates):
        """The model's row in the table of all."""
        total, roof, arithmetic = self.against(rates)
        shares = [sum(s["ns"] for s in self.steps if family(s["kernel"]) == f) / total for f in COLUMNS]
        cells = [f"{total / 1e6:.3g}", f"{arithmetic / total:.0%}", f"{roof / total:.0%}", *(f"{x:.0%}" for x in shares)]
        return f"| {self.label} | " + " | ".join(cells) + " |\n"

    def report(self, rates):
        """The model's part of the document."""
        total, roof, arithmetic = self.against(rates)
        lines = [f"## {self.label}", "",
                 f"{total / 1e6:.3g} ms: {arithmetic / total:.0%} of the peak of arithmetic, {roof / total:.0%} of the "
                 "roofline of its steps.", "",
                 "| family | steps | ms | of the time | of its roofline |", "|---|---|---|---|---|"]
        groups = {}
        for s in self.steps:
            groups.setdefault(family(s["kernel"]), []).append(s)
        for name, steps in sorted(groups.items(), key=lambda g: -sum(s["ns"] for s in g[1])):
            ns, roof = sum(s["ns"] for s in steps), sum(s["roof"] for s in steps)
            lines.append(f"| {name} | {len(steps)} | {ns / 1e6:.3g} | {ns / total:.1%} | {roof / ns:.0%} |")
        lines += ["", "| lost, ms | took, ms | of its roofline | step |", "|---|---|---|---|"]
        losers = sorted(self.steps, key=lambda s: s["roof"] - s["ns"])
        for s in losers[:NAMED]:
            if s["ns"] > s["roof"]:
                label = s["label"].replace("|", "\\|")
                lines.append(f"| {(s['ns'] - s['roof']) / 1e6:.3g} | {s['ns'] / 1e6:.3g} | {s['roof'] / s['ns']:.0%} "
                             f"| {family(s['kernel'])}: `{label}` |")
        return "\n".join(lines) + "\n"


def cases(kiln, folder, only):
    for model in peer_models.MODELS:
        if only and model.name not in only:
            continue
        artifact = folder / f"{model.name}.kiln"
        path = model.path(folder)
        subprocess.run([kiln, "compile", str(path), "-o", str(artifact)], check=True, stdout=subprocess.DEVNULL)
        for i, (shape, feed) in enumerate(model.shapes):
            inputs = folder / f"{model.name}-{i}.npz"
            data = feed()
            np.savez(inputs, **{n: data[n] for n in peers.ports(path)[0]})
            yield Case(f"{model.name} {shape}", artifact, inputs)


def replaced(text, begin, end, body):
    """`text` with what stands between two markers, themselves included, replaced; at its
    end where it has no such markers."""
    block = f"{begin}\n{body}{end}"
    found = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return found.sub(lambda _: block, text) if found.search(text) else text.rstrip() + f"\n\n{block}\n"


def main():
    a = arguments()
    rates = {"fma_gflops": 0.0, "read_gb_s": 0.0}
    with tempfile.TemporaryDirectory() as temporary:
        all_cases = list(cases(a.kiln, Path(temporary), a.only))
        for n in range(a.turns):
            for case in all_cases:
                case.turn(a.kiln_rt, rates)
            print(f"turn {n + 1} of {a.turns}", file=sys.stderr)
    text = a.output.read_text() if a.output.exists() else HEAD
    machine = (f"{datetime.date.today()}, {peers.processor()}, one thread: {rates['fma_gflops']:.1f} GFLOP/s in registers, "
               f"{rates['read_gb_s']:.1f} GB/s read from memory.\n")
    if not a.only:
        head = ["model", "ms", "of the peak", "of its roofline", *COLUMNS]
        table = f"| {' | '.join(head)} |\n{'|---' * len(head)}|\n" + "".join(c.row(rates) for c in all_cases)
        text = replaced(text, "<!-- time: all -->", "<!-- /time: all -->", f"{machine}\n{table}")
    for case in all_cases:
        text = replaced(text, f"<!-- time: {case.label} -->", f"<!-- /time: {case.label} -->",
                        case.report(rates) + "\n" + machine)
    a.output.write_text(text)


if __name__ == "__main__":
    main()
