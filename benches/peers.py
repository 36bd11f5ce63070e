"""Kiln and ONNX Runtime on MiniLM, taking turns in one run.

usage: peers.py KILN_RT KILN

Each round runs both with the same threads and input; a ratio is Kiln's median
over ONNX Runtime's. The FMA peak is measured in the same run by a register loop.
Results go to benches/results/peers-minilm.json.
"""
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import models  # noqa: E402

KILN_RT, KILN = sys.argv[1:3]
SHAPES = [(1, 1), (1, 16), (1, 128), (8, 128)]
ROUNDS = 7

PEAK = r"""
#include <immintrin.h>
#include <stdio.h>
#include <time.h>
int main(void) {
#ifdef __AVX512F__
  typedef __m512 V; enum { L = 16 };
#define SET _mm512_set1_ps
#define FMA _mm512_fmadd_ps
#else
  typedef __m256 V; enum { L = 8 };
#define SET _mm256_set1_ps
#define FMA _mm256_fmadd_ps
#endif
  V x = SET(1.000001f), y = SET(1e-9f);
  V a0 = SET(0), a1 = SET(1), a2 = SET(2), a3 = SET(3), a4 = SET(4), a5 = SET(5);
  V a6 = SET(6), a7 = SET(7), a8 = SET(8), a9 = SET(9), a10 = SET(10), a11 = SET(11);
  long n = 40000000; struct timespec s, e; double best = 0;
  for (int r = 0; r < 5; r++) {
    clock_gettime(CLOCK_MONOTONIC, &s);
    for (long i = 0; i < n; i++) {
      a0 = FMA(a0, x, y); a1 = FMA(a1, x, y); a2 = FMA(a2, x, y); a3 = FMA(a3, x, y);
      a4 = FMA(a4, x, y); a5 = FMA(a5, x, y); a6 = FMA(a6, x, y); a7 = FMA(a7, x, y);
      a8 = FMA(a8, x, y); a9 = FMA(a9, x, y); a10 = FMA(a10, x, y); a11 = FMA(a11, x, y);
    }
    clock_gettime(CLOCK_MONOTONIC, &e);
    double t = (e.tv_sec - s.tv_sec) + 1e-9 * (e.tv_nsec - s.tv_nsec), g = 2.0 * 12 * L * n / t / 1e9;
    if (g > best) best = g;
  }
  float out[L]; V sum = a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7 + a8 + a9 + a10 + a11;
  __builtin_memcpy(out, &sum, sizeof out);
  fprintf(stderr, "%f\n", out[0]); printf("%f\n", best);
}
"""


def peak(tmp):
    source, binary = tmp / "peak.c", tmp / "peak"
    source.write_text(PEAK)
    subprocess.run(["gcc", "-O2", "-march=native", str(source), "-o", str(binary)], check=True)
    return float(subprocess.check_output([str(binary)], stderr=subprocess.DEVNULL))


def main():
    tmp = Path(tempfile.mkdtemp())
    model, artifact = models.path("minilm"), tmp / "m.kiln"
    subprocess.run([KILN, "compile", str(model), "-o", str(artifact)], check=True, stdout=subprocess.DEVNULL)
    gflops = peak(tmp)
    rows = []
    for threads in [1, 2]:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        for batch, length in SHAPES:
            ids = np.ones((batch, length), np.int64)
            given = {"input_ids": ids, "attention_mask": ids}
            np.savez(tmp / "in.npz", **given)
            ours, theirs, flops = [], [], 0
            # A process of ours is new each round: 40 runs of 0.2 ms are over before
            # the system has given its threads a core each.
            runs = 400 if batch * length <= 16 else 40
            for _ in range(ROUNDS):
                out = subprocess.check_output([KILN_RT, "bench", str(artifact), "--inputs", str(tmp / "in.npz"),
                                               "--threads", str(threads), "--runs", str(runs), "--json"])
                doc = json.loads(out)
                ours.append(doc["median_ms"])
                flops = doc["flops"]
                for _ in range(3):
                    session.run(None, given)
                times = []
                for _ in range(runs):
                    start = time.perf_counter()
                    session.run(None, given)
                    times.append((time.perf_counter() - start) * 1e3)
                theirs.append(statistics.median(times))
            k, o = statistics.median(ours), statistics.median(theirs)
            share = flops / (k * 1e6) / (gflops * threads)
            rows.append({"batch": batch, "length": length, "threads": threads, "kiln_ms": k, "onnxruntime_ms": o,
                         "ratio": k / o, "share_of_peak": share})
            print(f"{batch} x {length:<4} {threads} threads: Kiln {k:8.3f} ms, ONNX Runtime {o:8.3f} ms, "
                  f"ratio {k / o:.2f}, {share:.0%} of the FMA peak")
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.processor())
    doc = {"model": "paraphrase-MiniLM-L3-v2", "cpu": cpu, "cores": os.cpu_count(), "fma_peak_gflops_one_core": gflops,
           "onnxruntime": ort.__version__, "rounds": ROUNDS, "rows": rows, "date": time.strftime("%Y-%m-%d"),
           "command": "make bench-peers"}
    path = Path(__file__).resolve().parent / "results" / "peers-minilm.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(doc, indent=1) + "\n")
    print(f"FMA peak of one core {gflops:.0f} GFLOP/s; written to {path}")


main()
