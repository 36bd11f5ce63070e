"""What compiling and loading cost: time, memory, sizes. Figures that depend on
the machine are printed; promises that do not are checked.

usage: cost.py KILN KILN_RT
"""
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import models

KILN, KILN_RT = sys.argv[1:3]
failures = []


def check(ok, what):
    print(("ok      " if ok else "FAILED  ") + what)
    if not ok:
        failures.append(what)


def run(*command, env=None):
    p = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, **(env or {})))
    if p.returncode:
        sys.exit(f"{command} failed: {p.stderr}")
    return json.loads(p.stdout)


def main():
    tmp = Path(tempfile.mkdtemp())
    model = str(models.path("minilm"))
    a, b = tmp / "a.kiln", tmp / "b.kiln"
    cold = run(KILN, "compile", model, "-o", str(a), "--json", env={"KILN_CACHE_DIR": str(tmp / "cache")})
    warm = run(KILN, "compile", model, "-o", str(b), "--json", env={"KILN_CACHE_DIR": str(tmp / "cache")})
    print(f"compile: {cold['compile_ms']:.0f} ms cold, {warm['compile_ms']:.0f} ms warm, {cold['kernels']} kernels")
    same = hashlib.sha256(a.read_bytes()).digest() == hashlib.sha256(b.read_bytes()).digest()
    check(same, "two compilations give identical bytes")
    dims = ["--dim", "batch_size=4", "--dim", "sequence_length=128"]
    plan = run(KILN_RT, "plan", str(a), *dims, "--threads", "1", "--json")
    bench = run(KILN_RT, "bench", str(a), *dims, "--threads", "1", "--json")
    print(f"load: {bench['load_ms']:.1f} ms; 4x128 on one thread: {bench['median_ms']:.2f} ms")
    off = abs(plan["total"] - bench["peak_bytes"]) / bench["peak_bytes"]
    check(off <= 0.05, f"planned memory {plan['total'] / 1e6:.1f} MB, measured {bench['peak_bytes'] / 1e6:.1f} MB ({off:.1%} apart)")

    # Weights beyond 4 GB in a sparse file: they cost disk only where written to.
    size, layers = 5120, 40
    graph_inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", size])]
    nodes, weights, offset = [], [], 0
    data = tmp / "big.bin"
    for i in range(layers):
        w = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[size, size], data_location=TensorProto.EXTERNAL)
        for key, value in [("location", "big.bin"), ("offset", str(offset)), ("length", str(size * size * 4))]:
            w.external_data.add(key=key, value=value)
        weights.append(w)
        nodes.append(helper.make_node("MatMul", [f"h{i - 1}" if i else "x", f"w{i}"], [f"h{i}"]))
        offset += size * size * 4
    with open(data, "wb") as f:
        f.truncate(offset)
    graph = helper.make_graph(nodes, "big", graph_inputs,
                              [helper.make_tensor_value_info(f"h{layers - 1}", TensorProto.FLOAT, ["n", size])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp / "big.onnx")
    free = os.statvfs(tmp)
    if free.f_bavail * free.f_frsize < 12 << 30:
        print("skipped the 4 GB model: less than 12 GB of disk are free")
    else:
        big = run(KILN, "compile", str(tmp / "big.onnx"), "-o", str(tmp / "big.kiln"), "--json")
        anonymous = big.get("peak_anonymous_bytes", big["peak_bytes"])
        limit = (1 << 30) + size * size * 4
        print(f"4 GB model: {big['compile_ms'] / 1e3:.1f} s, peak {big['peak_bytes'] / 1e6:.0f} MB resident")
        check(anonymous <= limit, f"compiling {offset / 1e9:.1f} GB takes {anonymous / 1e6:.0f} MB, at most {limit / 1e6:.0f}")
        os.remove(tmp / "big.kiln")
    subprocess.run(["rm", "-rf", str(tmp)])
    print(f"{3 - len(failures)} passed, {len(failures)} failed")
    sys.exit(1 if failures else 0)


main()
