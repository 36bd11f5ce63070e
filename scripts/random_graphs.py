#!/usr/bin/env python3
"""Random ONNX models with what ONNX Runtime makes of them.

    random_graphs.py OUT --seeds FROM:TO [--nodes N]

Writes OUT/SEED/model.onnx and OUT/SEED/test_data_set_N, the layout of ONNX's own
suite, one data set for each size that the model is run at. One seed is one model,
on every machine with the same numpy, onnx and onnxruntime (scripts/requirements.txt).
The references come from ONNX Runtime's plain CPU kernels, with its graph
optimizations off. A seed whose model ONNX Runtime has no kernels for is drawn again
with the next sub-seed; `--verbose` says why.

The way of NNSmith (Liu et al., ASPLOS 2023): a pool of typed values with known
shapes, operators inserted forward from values and backward from needed operands,
attributes drawn so that all constraints hold. See graphgen/core.py for what keeps
the results comparable.
"""

import argparse
import collections
import os
import shutil
import sys

import numpy as np
import onnx
import onnxruntime as ort
from graphgen import control, elementwise, layout, linear, window
from graphgen.core import LIMIT, ONNX, Graph, Retry, Val, info, model
from onnx import numpy_helper

SIMPLE = elementwise.OPS + layout.OPS + linear.OPS + control.QUANT
ALL = SIMPLE + window.OPS + [(control.branch(SIMPLE), 4), (control.loop(SIMPLE), 3), (control.scan(SIMPLE), 3)]
# Each model draws from a family more often, so that its operators meet.
FAMILIES = [elementwise.OPS, layout.OPS, linear.OPS, window.OPS, control.QUANT, []]


def sizes(rng):
    """Two or three named sizes at three runs: one of them has a 1 among its extents,
    and no two are ever alike."""
    pool = list(rng.permutation([2, 3, 4, 5, 6, 7, 9, 11, 13, 17]))
    count = int(rng.integers(2, 4))
    names = {n: [int(pool.pop()) for _ in range(3)] for n in ("batch", "seq", "width")[:count]}
    for extents in names.values():
        if rng.random() < 0.5:
            extents[1] = 1
    # At the run with 1 they may be equal: that is a case of its own.
    return {n: tuple(e) for n, e in names.items()}


def start(g):
    """The first values."""
    for _ in range(int(g.rng.integers(2, 4))):
        dtype = g.choice(["f32", "f32", "f32", "f32", "f64", "f16", "i32", "i64", "bool", "u8", "i8"])
        for _ in range(9):
            try:
                g.source(dtype, g.new_shape(int(g.choice([1, 2, 2, 3, 3, 4]))), constant=False)
                break
            except Retry:
                pass


def build(rng, nodes):
    """A graph with some operators, and the values that it returns."""
    opset = int(rng.choice([13, 17, 18, 20, 21, 22, 23, 23]))
    g = Graph(rng, opset, sizes(rng))
    start(g)
    family = FAMILIES[int(rng.integers(len(FAMILIES)))]
    ops = ALL + family * 3
    weights = np.array([w for _, w in ops], float)
    want, tries = int(rng.integers(1, nodes + 1)), 0
    while len(g.nodes) < want and tries < 20 * nodes:
        tries += 1
        f = ops[int(rng.choice(len(ops), p=weights / weights.sum()))][0]
        try:
            f(g)
        except Retry:
            if tries % 50 == 0:
                start(g)
    return g, opset


def outputs(g):
    """What the model returns: what nothing else reads, and some of the rest."""
    made = {o for n in g.nodes for o in n.output}
    leaves = [v for v in g.pool if v.name in made and v.name not in g.used]
    inner = [v for v in g.pool if v.name in made and v.name in g.used and g.chance(0.15)]
    out, seen = [], set()
    for v in leaves + inner:
        if v.name not in seen:
            seen.add(v.name)
            out.append(lifted(g, v))
    return out


def lifted(g, v):
    """A result that is mostly noise against its own size (x - x, say) is compared
    after a number is added that makes it large against the noise."""
    if not v.is_float or v.noise <= LIMIT[v.dtype] * 1e-3:
        return v
    least = v.noise / LIMIT[v.dtype]
    if v.lo > least or v.hi < -least:
        return v
    shift = float(np.ceil(least - v.lo))
    name = g.emit("Add", [v, g.scalar(shift, v.dtype)])
    return Val(name, v.dtype, v.shape, v.lo + shift, v.hi + shift, None, v.noise)


def references(m, feeds):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in feeds]


def draw(seed, sub, nodes):
    """A model with its inputs and results, or why there is none."""
    rng = np.random.default_rng([seed, sub])
    g, opset = build(rng, nodes)
    outs = outputs(g)
    if not outs:
        raise Retry("nothing was made")
    m = model(g.to_onnx([info(v) for v in outs], g.inputs, f"random_{seed}"), opset)
    results = references(m, g.feeds)
    for run, arrays in enumerate(results):
        for v, a in zip(outs, arrays):
            want = tuple(d[run] for d in v.shape)
            if a.shape != want or ONNX[v.dtype] != onnx.helper.np_dtype_to_tensor_dtype(a.dtype):
                raise AssertionError(f"{v.name} is {a.dtype}{a.shape}, not {v.dtype}{want} as its rule says")
            if v.is_float and a.size and not np.all(np.isfinite(a)):
                raise AssertionError(f"{v.name} is not finite")
            if a.size and (a.min() < v.lo - 1e-2 or a.max() > v.hi + 1e-2):
                raise AssertionError(f"{v.name} is in [{a.min()}, {a.max()}], not in [{v.lo}, {v.hi}] as its rule says")
    return g, outs, m, results


def write(folder, g, outs, m, results):
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    onnx.save(m, os.path.join(folder, "model.onnx"))
    for run, arrays in enumerate(results):
        data = os.path.join(folder, f"test_data_set_{run}")
        os.makedirs(data)
        ins = [numpy_helper.from_array(np.asarray(g.feeds[run][i.name]), i.name) for i in g.inputs]
        for kind, protos in (("input", ins), ("output", [numpy_helper.from_array(np.asarray(a), v.name) for v, a in zip(outs, arrays)])):
            for k, p in enumerate(protos):
                with open(os.path.join(data, f"{kind}_{k}.pb"), "wb") as f:
                    f.write(p.SerializeToString())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--seeds", required=True, help="FROM:TO, TO not included")
    parser.add_argument("--nodes", type=int, default=10, help="at most about so many operators")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    first, last = (int(x) for x in args.seeds.split(":"))
    why, ops, nodes = collections.Counter(), collections.Counter(), 0
    for seed in range(first, last):
        for sub in range(50):
            try:
                drawn = draw(seed, sub, args.nodes)
                break
            except Retry as e:
                why[str(e)] += 1
            except AssertionError as e:
                why["rule: " + str(e)[:120] if args.verbose else "a rule of the generator is wrong"] += 1
            except Exception as e:  # ONNX Runtime's own errors have no common class
                why[f"ONNX Runtime: {str(e)[-160:]}" if args.verbose else "ONNX Runtime refuses"] += 1
        else:
            print(f"seed {seed}: no model in 50 tries", file=sys.stderr)
            return 1
        write(os.path.join(args.out, str(seed)), *drawn)
        nodes += len(drawn[2].graph.node)
        ops.update(n.op_type for n in drawn[2].graph.node)
    print(f"{last - first} models, {nodes} nodes, {len(ops)} operators; drawn again {sum(why.values())} times")
    if args.verbose:
        for reason, n in why.most_common(40):
            print(f"{n:>6}  {reason}")
        print(" ".join(f"{o}:{n}" for o, n in ops.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
