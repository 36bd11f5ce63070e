"""Kiln and its peers on the same models, taking turns in one run.

    peers.py KILN_RT KILN [--only NAME]... [--threads N]... [--rounds N] [--output DIR] [--readme]

NAME is a model of benches/peer_models.py, or one with its shape ("resnet50 1 x 3 x 224
x 224"). In each round every runtime runs the model for about 0.4 s, one after the
other, with the same input and number of threads; a round's time is its median, a
runtime's is the median of its rounds, and a ratio is Kiln's over ONNX Runtime's.
OpenVINO and PyTorch take part where they can be imported; nothing is installed. Every
runtime has a process of its own (Kiln's is `kiln-rt`).

In the same run: how far Kiln's results are from ONNX Runtime's (above a model's bound
the run fails), Kiln's share of the arithmetic that `kiln-rt bench` measures in registers
in each round (the best of all rounds counts; a convolution by Winograd counts the
direct form's operations, and 8-bit arithmetic is counted against f32's), peak memory,
and what compiling costs with an empty and a full kernel cache.

Peak memory is resident memory at its highest while loading and running twice, less
what the same process had resident before loading the model: code of libraries does not
count, inputs, outputs, weights and mapped files do.

A full run writes benches/results/peers-DATE-CPU.json and the chart beside it; one of
some models writes to the folder given by --output alone. `peer_report.py` makes the
README's table of a result.
"""
import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

import peer_models
import peer_report

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import against_ort  # noqa: E402

HERE = Path(__file__).resolve().parent
PEERS = ["onnxruntime", "openvino", "pytorch"]
MODULES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "pytorch": "torch"}
TURN_MS = 400


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kiln_rt")
    parser.add_argument("kiln")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--threads", action="append", type=int, default=[], metavar="N")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--output", type=Path, metavar="DIR")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    a = parser.parse_args()
    known = {m.name for m in peer_models.MODELS} | {f"{m.name} {s}" for m in peer_models.MODELS for s, _ in m.shapes}
    for name in a.only:
        if name not in known:
            parser.error(f"there is no model {name!r}: " + ", ".join(m.name for m in peer_models.MODELS))
    if a.rounds < 1 or any(t < 1 for t in a.threads):
        parser.error("rounds and threads are at least 1")
    if a.readme and a.only:
        parser.error("the README's table is that of a full run")
    return a


class Kiln:
    """An artifact, run by kiln-rt in a process a turn."""

    def __init__(self, kiln, kiln_rt, model, folder):
        self.kiln, self.kiln_rt, self.model, self.file = kiln, kiln_rt, model, folder / "model.kiln"
        self.folder = folder

    def compile(self):
        """Compiles twice: with an empty kernel cache and with what the first left there."""
        env = dict(os.environ, KILN_CACHE_DIR=str(self.folder / "cache"))
        command = [self.kiln, "compile", str(self.model), "-o", str(self.file), "--json"]
        cold, warm = (json.loads(subprocess.check_output(command, env=env)) for _ in range(2))
        return {"artifact_bytes": cold["bytes"], "onnx_bytes": self.model.stat().st_size, "kernels": cold["kernels"],
                "compile_cold_ms": cold["compile_ms"], "compile_warm_ms": warm["compile_ms"]}

    def turn(self, inputs, threads, runs):
        command = [self.kiln_rt, "bench", str(self.file), "--inputs", str(inputs), "--threads", str(threads),
                   "--runs", str(runs), "--json"]
        return json.loads(subprocess.check_output(command))

    def outputs(self, inputs, threads, names):
        command = [self.kiln_rt, "run", str(self.file), "--inputs", str(inputs), "--threads", str(threads),
                   "--output-dir", str(self.folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [np.load(self.folder / against_ort.file_name(n)) for n in names]


class Peer:
    """A worker process with one runtime and one model; `facts` is none where it gave up."""

    def __init__(self, name, model, threads, inputs, folder):
        self.name, self.results = name, folder / f"{name}.npz"
        command = [sys.executable, str(HERE / "peer_worker.py"), name, str(model), str(threads), str(inputs), str(self.results)]
        self.log = open(folder / f"{name}.log", "w+")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        self.facts = json.loads(line) if line else None

    def refusal(self):
        """The last line that a worker which gave up has written."""
        self.process.wait()
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        return lines[-1] if lines else f"exit status {self.process.returncode}"

    def turn(self, runs):
        self.process.stdin.write(f"{runs}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} stopped: {self.refusal()}")
        return statistics.median(json.loads(line))

    def outputs(self):
        with np.load(self.results) as z:
            return [z[f"arr_{i}"] for i in range(len(z.files))]

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.log.close()


def ports(path):
    """Names of a model's inputs and outputs."""
    graph = onnx.load(path).graph
    fixed = {t.name for t in graph.initializer}
    return [i.name for i in graph.input if i.name not in fixed], [o.name for o in graph.output]


def runs_in(ms):
    """How many runs of `ms` milliseconds make a turn."""
    return int(min(max(TURN_MS / max(ms, 1e-3), 3), 1000))


def rounds_of(kiln, peers, inputs, threads, count):
    """The medians of each round by runtime, and what `kiln-rt bench` said in each."""
    estimate = kiln.turn(inputs, threads, 3)["median_ms"]
    estimates = {name: peer.turn(1) for name, peer in peers.items()}
    times, answers = {"kiln": [], **{name: [] for name in peers}}, []
    for _ in range(count):
        answers.append(kiln.turn(inputs, threads, runs_in(estimate)))
        times["kiln"].append(answers[-1]["median_ms"])
        for name, peer in peers.items():
            times[name].append(peer.turn(runs_in(estimates[name])))
    return times, answers


def start(wanted, model, threads, inputs, folder):
    """The peers that run a model, and why the others do not."""
    peers, refused = {}, {}
    for name in wanted:
        peer = Peer(name, model, threads, inputs, folder)
        if peer.facts:
            peers[name] = peer
        else:
            refused[name] = peer.refusal()
    if "onnxruntime" not in peers:
        raise SystemExit(f"ONNX Runtime does not run {model}: {refused['onnxruntime']}")
    return peers, refused


def distances(kiln, peers, inputs, threads):
    """How far each runtime's results are from ONNX Runtime's: the relative error of the
    output that is farthest."""
    want = peers["onnxruntime"].outputs()
    got = {"kiln": kiln.outputs(inputs, threads, ports(kiln.model)[1]), **{n: p.outputs() for n, p in peers.items()}}
    far = lambda outputs: float(max(against_ort.errors(g, w)[0] for g, w in zip(outputs, want, strict=True)))
    return {name: far(outputs) for name, outputs in got.items() if name != "onnxruntime"}


def distances_elsewhere(kiln, model, wanted, inputs, threads, folder):
    """The same on the model that is compared in this one's place."""
    folder = folder / "compared"
    folder.mkdir(exist_ok=True)
    other = Kiln(kiln.kiln, kiln.kiln_rt, model.compared(kiln.model, folder), folder)
    other.compile()
    peers, _ = start(wanted, other.model, threads, inputs, folder)
    found = distances(other, peers, inputs, threads)
    for peer in peers.values():
        peer.close()
    return found


def measure(kiln, model, label, feed, threads, options, folder, wanted):
    """One row: a model at a shape with so many threads."""
    inputs = folder / "in.npz"
    np.savez(inputs, **{n: feed[n] for n in ports(kiln.model)[0]})
    peers, refused = start(wanted, kiln.model, threads, inputs, folder)
    if model.compared:
        far = distances_elsewhere(kiln, model, list(peers), inputs, threads, folder)
    else:
        far = distances(kiln, peers, inputs, threads)
    error = far.pop("kiln")
    for name in [n for n, e in far.items() if not e <= model.bound]:
        refused[name] = f"its results are {far.pop(name):.1e} away from ONNX Runtime's"
        peers.pop(name).close()
    times, answers = rounds_of(kiln, peers, inputs, threads, options.rounds)
    for peer in peers.values():
        peer.close()
    ms = {name: statistics.median(t) for name, t in times.items()}
    memory = {"kiln": answers[0], **{name: peer.facts for name, peer in peers.items()}}
    row = {"model": model.name, "shape": label, "threads": threads, "ms": ms, "rounds_ms": times,
           "ratio": ms["kiln"] / ms["onnxruntime"], "flops": answers[0]["flops"],
           "fma_peak_gflops": max(a["roofline"]["fma_gflops"] for a in answers),
           "relative_error": error, "relative_error_bound": model.bound, "peers_relative_error": far,
           "memory_bytes": {n: max(0, m["peak_bytes"] - m["before_bytes"]) for n, m in memory.items()},
           "refused": refused}
    return row, {name: peer.facts["version"] for name, peer in peers.items()}


def describe(row):
    ms, memory = row["ms"], row["memory_bytes"]
    times = ", ".join(f"{name} {ms[name]:.3f}" for name in ms)
    return (f"{row['model']:<14} {row['shape']:<20} {row['threads']} threads: {times} ms; ratio {row['ratio']:.2f}; "
            f"error {row['relative_error']:.0e}; memory {memory['kiln'] / 1e6:.0f} / {memory['onnxruntime'] / 1e6:.0f} MB")


def chosen(options):
    """Models with those of their shapes that were asked for."""
    for m in peer_models.MODELS:
        shapes = [s for s in m.shapes if not options.only or {m.name, f"{m.name} {s[0]}"} & set(options.only)]
        if shapes:
            yield m, shapes


def run(options):
    wanted = [p for p in PEERS if importlib.util.find_spec(MODULES[p])]
    absent = [p for p in PEERS if p not in wanted]
    if "onnxruntime" in absent:
        raise SystemExit("ONNX Runtime is not installed: run scripts/setup.sh")
    print("absent, not measured: " + ", ".join(absent) if absent else "every peer is here", flush=True)
    rows, costs, versions = [], {}, {}
    for model, shapes in chosen(options):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            kiln = Kiln(options.kiln, options.kiln_rt, model.path(folder), folder)
            costs[model.name] = kiln.compile()
            cost = costs[model.name]
            print(f"{model.name:<14} compiled in {cost['compile_cold_ms']:.0f} ms cold, {cost['compile_warm_ms']:.0f} warm; "
                  f"{cost['artifact_bytes'] / 1e6:.1f} MB", flush=True)
            for label, feed in shapes:
                for threads in options.threads or [1, 2]:
                    row, seen = measure(kiln, model, label, feed(), threads, options, folder, wanted)
                    rows.append(row)
                    versions.update(seen)
                    print(describe(row), flush=True)
                    for name, why in row["refused"].items():
                        print(f"  {name} does not run it: {why[:200]}", flush=True)
    return rows, costs, versions, absent


def with_shares(rows):
    """Each row's share of the peak: the best that was measured with as many threads."""
    peaks = {}
    for row in rows:
        peaks[row["threads"]] = max(peaks.get(row["threads"], 0), row.pop("fma_peak_gflops"))
    for row in rows:
        row["share_of_peak"] = row["flops"] / (row["ms"]["kiln"] * 1e6) / peaks[row["threads"]]
    return {str(threads): peak for threads, peak in peaks.items()}


def processor():
    with open("/proc/cpuinfo") as f:
        return next((line.split(":")[1].strip() for line in f if line.startswith("model name")), "unknown")


def main():
    options = arguments()
    start = time.time()
    rows, costs, versions, absent = run(options)
    peaks = with_shares(rows)
    doc = {"date": time.strftime("%Y-%m-%d", time.gmtime(start)), "cpu": processor(), "cores": os.cpu_count(),
           "command": "make bench-peers", "rounds": options.rounds, "versions": versions, "absent": absent,
           "fma_peak_gflops": peaks, "models": costs, "rows": rows, "load_average": list(os.getloadavg())}
    wrong = peer_report.faults(doc)
    if wrong:
        raise SystemExit("the result is not what it should be: " + "; ".join(wrong))
    folder = options.output or (None if options.only else HERE / "results")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^a-z0-9]+", "-", doc["cpu"].lower()).strip("-")
        path = folder / f"peers-{doc['date']}-{slug}.json"
        path.write_text(json.dumps(doc, indent=1) + "\n")
        path.with_suffix(".svg").write_text(peer_report.chart(doc))
        print(f"written to {path}")
        if options.readme:
            peer_report.put_into_readme(path)
    far = [row for row in rows if not row["relative_error"] <= row["relative_error_bound"]]
    for row in far:
        print(f"FAILED  {row['model']} {row['shape']}: results are {row['relative_error']:.1e} away from ONNX Runtime's, "
              f"at most {row['relative_error_bound']:.0e}")
    sys.exit(1 if far else 0)


if __name__ == "__main__":
    main()
