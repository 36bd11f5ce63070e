#!/usr/bin/env python3
"""Every value of a model as ONNX Runtime computes it, for `kiln diff --reference`.

    ort_intermediates.py MODEL.onnx INPUTS.npz -o REF.npz

Each tensor that a node of the main graph defines becomes an output; ONNX Runtime's
fusions are off, so that all of them are there. Arrays go by the values' names; what
is no tensor of a NumPy type is left out and named.
"""

import argparse
import sys

import numpy as np
import onnx
import onnxruntime as ort


def with_all_outputs(path):
    """The model with every node's results as outputs, as bytes, and their names."""
    model = onnx.load(path)
    own = [o.name for o in model.graph.output]
    inner = [o for n in model.graph.node for o in n.output if o and o not in own]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    return model.SerializeToString(), own + inner


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("inputs")
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    model, names = with_all_outputs(args.model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with np.load(args.inputs) as given:
        feed = {i.name: given[i.name] for i in session.get_inputs()}
    values = dict(zip(names, session.run(names, feed)))
    kept = {n: v for n, v in values.items() if isinstance(v, np.ndarray) and v.dtype.kind in "fiub"}
    for name in values.keys() - kept.keys():
        print(f"left out {name}", file=sys.stderr)
    np.savez(args.output, **kept)
    print(f"{len(kept)} values of {len(names)}")


if __name__ == "__main__":
    main()
