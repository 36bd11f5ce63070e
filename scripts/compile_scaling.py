"""Compile time against the number of nodes: transformer blocks and a chain of
elementwise operators, from 100 to 20,000 nodes.

usage: compile_scaling.py KILN [NODES...]

Every block has weights of its own, sizes are symbolic, kernels repeat: what grows
is the graph. Prints milliseconds, microseconds a node and peak memory.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KILN = sys.argv[1]
SIZES = [int(n) for n in sys.argv[2:]] or [100, 500, 2000, 5000, 20000]
WIDTH = 16


class Graph:
    def __init__(self):
        self.nodes, self.random = [], np.random.default_rng(1)
        self.weights = [numpy_helper.from_array(np.float32(0.25), "scale")]

    def weight(self, *shape):
        name = f"w{len(self.weights)}"
        values = self.random.standard_normal(shape).astype(np.float32) * 0.2
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def op(self, kind, *args, **attributes):
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(args), [out], **attributes))
        return out


def transformer(nodes):
    g, x = Graph(), "x"
    while len(g.nodes) < nodes:
        h = g.op("LayerNormalization", x, g.weight(WIDTH), g.weight(WIDTH))
        q, k, v = (g.op("Add", g.op("MatMul", h, g.weight(WIDTH, WIDTH)), g.weight(WIDTH)) for _ in range(3))
        scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1]))
        h = g.op("MatMul", g.op("Softmax", g.op("Mul", scores, "scale"), axis=-1), v)
        x = g.op("Add", x, g.op("MatMul", h, g.weight(WIDTH, WIDTH)))
        h = g.op("LayerNormalization", x, g.weight(WIDTH), g.weight(WIDTH))
        h = g.op("Gelu", g.op("Add", g.op("MatMul", h, g.weight(WIDTH, 2 * WIDTH)), g.weight(2 * WIDTH)))
        x = g.op("Add", x, g.op("MatMul", h, g.weight(2 * WIDTH, WIDTH)))
    return g, x


def chain(nodes):
    g, x = Graph(), "x"
    while len(g.nodes) < nodes:
        x = g.op("Tanh", g.op("Add", g.op("Mul", x, g.weight(WIDTH)), g.weight(WIDTH)))
    return g, x


def model(build, nodes, path):
    g, out = build(nodes)
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "seq", WIDTH]) for n in ("x", out)]
    graph = helper.make_graph(g.nodes, "scaling", ports[:1], ports[1:], g.weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return len(g.nodes)


def main():
    with tempfile.TemporaryDirectory() as tmp:
        for build in (transformer, chain):
            for nodes in SIZES:
                path = Path(tmp) / "m.onnx"
                count = model(build, nodes, path)
                out = subprocess.run([KILN, "compile", str(path), "-o", f"{tmp}/m.kiln", "--no-cache", "--json"],
                                     check=True, capture_output=True, text=True).stdout
                doc = json.loads(out)
                print(f"{build.__name__:<12} {count:>6} nodes {doc['compile_ms']:>9.0f} ms "
                      f"{1e3 * doc['compile_ms'] / count:>7.0f} us a node  {doc['kernels']:>4} kernels "
                      f"{doc['peak_bytes'] / 1e6:>6.0f} MB", flush=True)


main()
