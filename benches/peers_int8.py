"""Kiln and ONNX Runtime on 8-bit integers, taking turns in one run.

usage: peers_int8.py KILN_RT KILN [PEAK_EXAMPLE]

Single products (MatMulInteger and QLinearMatMul by a constant matrix, of MiniLM's
sizes and 1024³), and MiniLM quantized by ONNX Runtime's own tools in four ways:
`qdq-s8` as scripts/int8_models.py has it (activations in i8, feed-forward outputs left
in f32), `qdq-u8` and `qdq-u8t` (activations in u8, every product quantized, weights by
column or by tensor: forms that ONNX Runtime fuses to QLinearMatMul), and `dynamic`
(activations quantized by their range while running). One thread. A time is the fastest
of all rounds, for both alike, and a ratio Kiln's over ONNX Runtime's: on a machine that
others use too, a median is theirs. PEAK_EXAMPLE (`examples/peak`) gives the machine's
peak in the same run. Results go to benches/results/int8-minilm.json.
"""
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import int8_models  # noqa: E402
import models  # noqa: E402

KILN_RT, KILN = sys.argv[1:3]
ROUNDS = 6
SIZES = [(m, n, k) for n, k in [(384, 384), (1536, 384), (384, 1536)] for m in (1, 16, 128, 1024)]
SIZES.append((1024, 1024, 1024))
SHAPES = [(1, 1), (1, 16), (1, 128), (8, 128)]


def product(kind, n, k):
    """`a: u8[m, k]` times a constant `i8[k, n]`: the sums, or quantized again."""
    rng = np.random.default_rng(n * k)
    values = {"w": rng.integers(-127, 128, (k, n)).astype(np.int8), "za": np.array(131, np.uint8)}
    if kind == "MatMulInteger":
        inputs, out = ["a", "w", "za"], TensorProto.INT32
    else:
        inputs, out = ["a", "sa", "za", "w", "sb", "zb", "sy", "zy"], TensorProto.UINT8
        values |= {"sa": np.float32(0.02), "sb": np.float32(0.01), "zb": np.array(0, np.int8),
                   "sy": np.float32(0.9 * np.sqrt(k)), "zy": np.array(120, np.uint8)}
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, ["y"])], "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["m", k])],
        [helper.make_tensor_value_info("y", out, ["m", n])],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Pair:
    """One model in both runtimes."""

    def __init__(self, path, folder):
        self.artifact = Path(folder) / "model.kiln"
        self.inputs = Path(folder) / "in.npz"
        subprocess.run([KILN, "compile", str(path), "-o", str(self.artifact)], check=True, stdout=subprocess.DEVNULL)
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def times(self, feed, runs):
        """Kiln's and ONNX Runtime's milliseconds, and the ratio."""
        np.savez(self.inputs, **feed)
        rows = []
        for _ in range(ROUNDS):
            out = subprocess.check_output([KILN_RT, "bench", str(self.artifact), "--inputs", str(self.inputs),
                                           "--threads", "1", "--runs", str(runs), "--json"])
            binding = self.session.io_binding()
            for name, value in feed.items():
                binding.bind_cpu_input(name, value)
            for output in self.session.get_outputs():
                binding.bind_output(output.name)
            theirs = []
            for _ in range(runs):
                start = time.perf_counter()
                self.session.run_with_iobinding(binding)
                theirs.append((time.perf_counter() - start) * 1e3)
            rows.append((json.loads(out)["min_ms"], min(theirs)))
        ours, theirs = min(k for k, _ in rows), min(o for _, o in rows)
        return ours, theirs, ours / theirs


def products(folder, peak):
    rows = []
    for kind in ("MatMulInteger", "QLinearMatMul"):
        for m, n, k in SIZES:
            path = Path(folder) / "product.onnx"
            onnx.save(product(kind, n, k), path)
            pair = Pair(path, folder)
            a = np.random.default_rng(m).integers(0, 256, (m, k)).astype(np.uint8)
            operations = 2 * m * n * k
            ours, theirs, ratio = pair.times({"a": a}, int(np.clip(2e9 / operations, 20, 2000)))
            row = {"op": kind, "m": m, "n": n, "k": k, "kiln_ms": ours, "onnxruntime_ms": theirs, "ratio": ratio,
                   "kiln_gops": operations / ours / 1e6}
            share = ""
            if peak:
                row["share_of_peak"] = row["kiln_gops"] / peak
                share = f", {row['share_of_peak']:.0%} of the peak"
            rows.append(row)
            print(f"{kind:<14} {m:>4}x{n}x{k}: Kiln {ours * 1e3:7.1f} us, ONNX Runtime {theirs * 1e3:7.1f} us, "
                  f"ratio {ratio:.2f}, {row['kiln_gops']:.0f} GOPS{share}", flush=True)
    return rows


def minilm(name, folder):
    if name == "dynamic":
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(str(models.path("minilm")), str(path), weight_type=QuantType.QInt8, per_channel=True)
        return path

    def build(folder):
        path, runs, calibration, options = int8_models.minilm(folder)
        if name != "qdq-s8":
            options = {**options, "nodes_to_exclude": [], "activation_type": QuantType.QUInt8,
                       "per_channel": name == "qdq-u8"}
        return path, runs, calibration, options
    return int8_models.quantized(build, folder)[0]


def whole_models():
    rows = []
    for name in ("qdq-s8", "qdq-u8", "qdq-u8t", "dynamic"):
        with tempfile.TemporaryDirectory() as folder:
            pair = Pair(minilm(name, folder), folder)
            for batch, length in SHAPES:
                ids = np.ones((batch, length), np.int64)
                feed = {i.name: ids for i in pair.session.get_inputs()}
                ours, theirs, ratio = pair.times(feed, 200 if batch * length <= 16 else 20)
                rows.append({"model": name, "batch": batch, "length": length, "kiln_ms": ours,
                             "onnxruntime_ms": theirs, "ratio": ratio})
                print(f"{name:<8} {batch} x {length:<4}: Kiln {ours:8.3f} ms, ONNX Runtime {theirs:8.3f} ms, "
                      f"ratio {ratio:.2f}", flush=True)
    return rows


def main():
    peak = None
    if len(sys.argv) > 3:
        out = subprocess.check_output([sys.argv[3], "bytes"], text=True)
        found = re.search(r"peak (\d+) GF/s", out)
        peak = float(found.group(1)) if found else None
    with tempfile.TemporaryDirectory() as folder:
        rows = products(folder, peak)
    doc = {"model": "paraphrase-MiniLM-L3-v2, 8-bit", "cores": os.cpu_count(), "threads": 1, "rounds": ROUNDS,
           "onnxruntime": ort.__version__, "peak_gops_one_core": peak, "products": rows, "models": whole_models(),
           "date": time.strftime("%Y-%m-%d"), "command": "make bench-peers"}
    path = Path(__file__).resolve().parent / "results" / "int8-minilm.json"
    path.write_text(json.dumps(doc, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # the tools' advice on what to run before them
    main()
