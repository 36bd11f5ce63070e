"""What `--precision` gives: Kiln in f32, bf16 and f16, taking turns in one run.

usage: precisions.py KILN KILN_RT [--rounds N]

MiniLM-L3 and all-MiniLM-L6 at several sizes, one thread and two: medians, each against
Kiln's own f32, and how far the outputs are from f32's. Results go to
benches/results/precisions.json, and the table in the README is written anew.
"""
import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "scripts"))
import against_ort  # noqa: E402
import build_sentence  # noqa: E402
import e2e_models  # noqa: E402
import models  # noqa: E402

PRECISIONS = ["f32", "bf16", "f16"]
SHAPES = {"minilm-l3": [(1, 1), (1, 16), (1, 128), (8, 128)], "all-minilm-l6": [(1, 128), (32, 64)]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kiln")
    parser.add_argument("kiln_rt")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        built = Path(tmp) / "all-minilm-l6.onnx"
        build_sentence.build(built)
        for model, path in [("minilm-l3", models.path("minilm")), ("all-minilm-l6", built)]:
            names = [i.name for i in onnx.load(path).graph.input]
            artifacts = {}
            for precision in PRECISIONS:
                artifacts[precision] = Path(tmp) / f"{model}-{precision}.kiln"
                subprocess.run([args.kiln, "compile", str(path), "-o", str(artifacts[precision]), "--precision", precision],
                               check=True, stdout=subprocess.DEVNULL)
            for shape in SHAPES[model]:
                for threads in (1, 2):
                    row = measure(args, model, names, artifacts, shape, threads, tmp)
                    rows.append(row)
                    print(f"{model} {shape[0]} x {shape[1]}, {threads} threads: f32 {row['ms']['f32']:.3f} ms, "
                          + ", ".join(f"{p} {row['ratio'][p]:.2f} (off {row['relative_error'][p]:.1e}, "
                                      f"{row['peak_mb'][p]:.0f} MB)" for p in PRECISIONS[1:]), flush=True)
    readme = HERE.parent / "README.md"
    begin, end = "<!-- precisions -->\n", "<!-- /precisions -->\n"
    text = readme.read_text()
    before, after = text.split(begin)[0], text.split(end)[1]
    readme.write_text(before + begin + table(rows) + end + after)
    report = {"machine": platform.processor() or platform.machine(), "rounds": args.rounds, "rows": rows}
    (HERE / "results" / "precisions.json").write_text(json.dumps(report, indent=1) + "\n")


def table(rows):
    """The README's table: time over f32's at one thread and two."""
    lines = ["| model | f32, ms | bf16 | off by | f16 | off by | memory, MB: f32 | bf16 | f16 |",
             "|---|---|---|---|---|---|---|---|---|"]
    for one, two in zip(rows[::2], rows[1::2]):
        cells = [f"{one['model']} {one['shape'][0]} x {one['shape'][1]}", f"{one['ms']['f32']:.3g}"]
        for p in PRECISIONS[1:]:
            cells += [f"{one['ratio'][p]:.2f} / {two['ratio'][p]:.2f}", f"{one['relative_error'][p]:.1e}"]
        cells += [f"{one['peak_mb'][p]:.0f}" for p in PRECISIONS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def measure(args, model, names, artifacts, shape, threads, tmp):
    feed = e2e_models.sentences(*shape)
    given = {name: feed[name] for name in names}
    archive = Path(tmp) / "in.npz"
    np.savez(archive, **given)
    runs = max(3, 3000 // (shape[0] * shape[1]))
    times, peak = {p: [] for p in artifacts}, {}
    for _ in range(args.rounds):
        for precision, artifact in artifacts.items():
            out = subprocess.run([args.kiln_rt, "bench", str(artifact), "--inputs", str(archive), "--threads",
                                  str(threads), "--runs", str(runs), "--json"], check=True, capture_output=True)
            bench = json.loads(out.stdout)
            times[precision].append(bench["median_ms"])
            peak[precision] = bench["peak_bytes"] / 1e6
    outputs = {}
    for precision, artifact in artifacts.items():
        to = Path(tmp) / f"out-{precision}"
        subprocess.run([args.kiln_rt, "run", str(artifact), "--inputs", str(archive), "--output-dir", str(to)],
                       check=True, stdout=subprocess.DEVNULL)
        outputs[precision] = [np.load(f) for f in sorted(to.glob("*.npy"))]
    medians = {p: float(np.median(t)) for p, t in times.items()}
    off = {p: max(against_ort.errors(got, want)[0] for got, want in zip(outputs[p], outputs["f32"])) for p in artifacts}
    return {"model": model, "shape": list(shape), "threads": threads, "ms": medians, "peak_mb": peak,
            "ratio": {p: medians[p] / medians["f32"] for p in artifacts}, "relative_error": off}


if __name__ == "__main__":
    main()
