"""Kiln and ONNX Runtime on image networks of 8-bit integers, taking turns in one run.

usage: peers_int8_images.py KILN_RT KILN [--rounds N] [--only NAME] [--output FILE]

The networks of scripts/int8_images.py (QDQ, activations in u8, filters in i8 with a
scale each), batch 1, one thread; Kiln's time on the float network beside them. Each
round times all three; a ratio is the median of the rounds' ratios, a time the least.
Results go to benches/results/int8-images.json, or to FILE.
"""
import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import int8_images  # noqa: E402
import light_models  # noqa: E402

NAMES = ["resnet50", "squeezenet", "mobile", "shufflenet"]


def compiled(kiln, path, to):
    subprocess.run([kiln, "compile", str(path), "-o", str(to)], check=True, stdout=subprocess.DEVNULL)
    return to


def kiln_ms(kiln_rt, artifact, inputs, runs):
    out = subprocess.check_output([kiln_rt, "bench", str(artifact), "--inputs", str(inputs), "--threads", "1",
                                   "--runs", str(runs), "--json"])
    return json.loads(out)["median_ms"]


def ort_ms(session, feed, runs):
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(None, feed)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def measure(name, args, folder):
    floats, quantized, data = int8_images.quantized(name, folder)
    feed = light_models.feed(data, 1)
    inputs = Path(folder) / "in.npz"
    np.savez(inputs, **feed)
    artifacts = [compiled(args.kiln, p, Path(folder) / f"{p.stem}.kiln") for p in (floats, quantized)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(quantized), options, providers=["CPUExecutionProvider"])
    session.run(None, feed)
    rows = []
    for _ in range(args.rounds):
        ours = [kiln_ms(args.kiln_rt, a, inputs, args.runs) for a in artifacts]
        rows.append((*ours, ort_ms(session, feed, args.runs)))
    least = [min(column) for column in zip(*rows)]
    ratio = statistics.median(k / o for _, k, o in rows)
    to_float = statistics.median(k / f for f, k, _ in rows)
    print(f"{name:<11} Kiln {least[1]:7.2f} ms, ONNX Runtime {least[2]:7.2f} ms, ratio {ratio:.2f}; "
          f"Kiln in f32 {least[0]:7.2f} ms, ratio {to_float:.2f}", flush=True)
    return {"model": name, "kiln_ms": least[1], "onnxruntime_ms": least[2], "ratio": ratio,
            "kiln_f32_ms": least[0], "ratio_to_f32": to_float}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kiln_rt")
    parser.add_argument("kiln")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--only")
    parser.add_argument("--output", default=Path(__file__).resolve().parent / "results" / "int8-images.json")
    args = parser.parse_args()
    rows = []
    for name in [args.only] if args.only else NAMES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, args, folder))
    doc = {"cores": os.cpu_count(), "threads": 1, "batch": 1, "rounds": args.rounds, "onnxruntime": ort.__version__,
           "models": rows, "date": time.strftime("%Y-%m-%d")}
    Path(args.output).write_text(json.dumps(doc, indent=1) + "\n")


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # the tool's advice on what to run before it
    main()
