"""The profile of one run: `kiln bench --profile` and `kiln-rt bench --profile`.

    profile_check.py KILN KILN_RT

A model with a loop, one with convolutions, and MiniLM: the JSON answer has every key of
the contract, every step has its share of the roofline, and the trace has every step, in
the run's time, with events that nest on each thread's track. MiniLM's products are long
enough that a second thread takes part. `kiln` and `kiln-rt` measure the same arithmetic
with loops of their own: the best that each finds is the same within a fifth.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

import build_models
import models

KILN, KILN_RT = sys.argv[1:3]
DOCUMENT = {"median_ms", "min_ms", "compile_ms", "load_ms", "before_bytes", "peak_bytes", "flops", "bytes", "runs",
            "threads", "level", "roofline", "per_step"}
STEP = {"label", "kernel", "ns", "flops", "bytes", "share", "bound"}
ARGS = {"step", "kernel", "flops", "bytes", "gflops", "gb_s", "share", "bound", "lane", "counts"}


best = {KILN: 0.0, KILN_RT: 0.0}


def nested(events):
    """Whether of any two events of one track one ends before the other or holds it."""
    for track in {e["tid"] for e in events}:
        open_ends = []
        for e in sorted((e for e in events if e["tid"] == track), key=lambda e: (e["ts"], -e["dur"])):
            end = e["ts"] + e["dur"]
            while open_ends and open_ends[-1] <= e["ts"] + 1e-6:
                open_ends.pop()
            if open_ends and end > open_ends[-1] + 1e-6:
                return False
            open_ends.append(end)
    return True


def check(program, artifact, inputs, threads, folder):
    trace = folder / "trace.json"
    command = [program, "bench", str(artifact), "--inputs", str(inputs), "--threads", str(threads), "--runs", "3",
               "--profile", str(trace), "--json"]
    doc = json.loads(subprocess.check_output(command))
    assert set(doc) == DOCUMENT, set(doc) ^ DOCUMENT
    assert doc["roofline"]["threads"] == threads and doc["roofline"]["fma_gflops"] > 1 and doc["roofline"]["read_gb_s"] > 0.1
    best[program] = max(best[program], doc["roofline"]["fma_gflops"] / threads)
    own = "Kiln's code generator" in doc["roofline"]["fma_loop"]
    assert own == (program == KILN), doc["roofline"]["fma_loop"]
    for step in doc["per_step"]:
        assert set(step) == STEP and step["ns"] > 0 and step["share"] >= 0, step
        time = max(step["flops"] / doc["roofline"]["fma_gflops"], step["bytes"] / doc["roofline"]["read_gb_s"])
        assert abs(step["share"] - time / step["ns"]) <= 1e-9 + 1e-6 * step["share"], step
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"]
    steps = [e for e in events if e["cat"] == "step"]
    assert [(e["name"], e["args"]["kernel"]) for e in steps] == [(s["label"], s["kernel"]) for s in doc["per_step"]]
    assert all(set(e["args"]) == ARGS for e in steps)
    (run,) = (e for e in events if e["cat"] == "run")
    assert all(e["ts"] + e["dur"] <= run["ts"] + run["dur"] + 1e-6 for e in steps)
    assert nested(events) and not nested(events + [{"tid": 0, "ts": run["ts"] + run["dur"] / 2, "dur": run["dur"]}])
    tracks = {e["tid"] for e in events if e["cat"] == "work"}
    assert tracks <= set(range(threads)) and 0 in tracks
    return len(steps), tracks


def models_in(folder):
    """Names, files and inputs."""
    for name in ("loop", "cnn"):
        model, runs = build_models.MODELS[name]()
        onnx.save(model, folder / "m.onnx")
        yield name, folder / "m.onnx", runs[-1][1]
    ids = np.ones((1, 128), np.int64)
    yield "minilm", models.path("minilm"), {"input_ids": ids, "attention_mask": ids}


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        artifact, inputs = folder / "m.kiln", folder / "in.npz"
        for name, path, feed in models_in(folder):
            np.savez(inputs, **feed)
            subprocess.run([KILN, "compile", str(path), "-o", str(artifact)], check=True, stdout=subprocess.DEVNULL)
            for program in (KILN, KILN_RT):
                for threads in (1, 2):
                    steps, tracks = check(program, artifact, inputs, threads, folder)
                    # The other core may be busy with something else for a while.
                    for _ in range(10):
                        if len(tracks) == threads or name != "minilm":
                            break
                        steps, tracks = check(program, artifact, inputs, threads, folder)
                    assert len(tracks) == threads or name != "minilm", tracks
                    print(f"{name} {Path(program).name} {threads} threads: {steps} steps on {len(tracks)} tracks")
    print("FMA peak of a thread: " + ", ".join(f"{Path(p).name} {g:.1f} GFLOP/s" for p, g in best.items()))
    assert min(best.values()) >= 0.8 * max(best.values()), best
    wrong = subprocess.run([KILN_RT, "run", "m.kiln", "--profile", "t.json"], capture_output=True)
    assert wrong.returncode == 64, wrong


main()
