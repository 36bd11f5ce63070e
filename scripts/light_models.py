"""The model zoo's image networks with real-looking weights, against ONNX Runtime.

    light_models.py KILN KILN_RT [NAME...]       NAME: those of the `onnx` package's
                                                  light models; --small: under 100 MB

The package has their graphs with constant weights. Here each weight is drawn with a
seed: He-normal for convolutions and linear layers, batch norms as training leaves
them. The batch becomes a symbol. The last layer is scaled so that the scores before
the softmax deviate by 3, and those scores are an output too: a softmax alone would
hide an error or, with scores in the thousands, magnify one. Batches 1 and 2 from one
artifact; relative error at most 1e-4, no element off by more than 1e-3 of the largest.
"""
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import onnxruntime as ort
from onnx import numpy_helper

import against_ort

DATA = Path(onnx.backend.test.__file__).parent / "data" / "light"
NAMES = sorted(p.stem.removeprefix("light_") for p in DATA.glob("*.onnx"))
# Fully connected layers of some hundred MB.
LARGE = {"bvlc_alexnet", "vgg19", "zfnet512"}


def draw(rng, user, place, shape):
    """A weight of this shape for the input of a node at this place."""
    normal = rng.standard_normal(shape, np.float32)
    match user, place:
        case ("Conv" | "Gemm"), 1:
            fan_in = int(np.prod(shape[1:]))  # Gemm: transB, as every light model has it
            return normal * np.float32(np.sqrt(2 / fan_in))
        case "BatchNormalization", 4:
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        case ("BatchNormalization", 1) | ("Mul", _):
            return 1 + np.float32(0.1) * normal
        case ("Conv" | "Gemm", 2) | ("BatchNormalization", 2 | 3) | ("Add", _):
            return np.float32(0.1) * normal
    raise ValueError(f"no rule for input {place} of {user}")


def users(graph):
    """The first node that reads each value for what it holds, and at which place."""
    found = {}
    for node in reversed(graph.node):
        for place, name in enumerate(node.input):
            found[name] = (node, place)
    for node in reversed(graph.node):
        if node.op_type in ("Unsqueeze", "Reshape") and node.output[0] in found:
            found[node.input[0]] = found[node.output[0]]
    return found


def weights(graph, seed):
    """A drawn array for every float that is no input of the caller's."""
    rng, read_by = np.random.default_rng(seed), users(graph)
    fixed = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    shapes = {n.output[0]: tuple(fixed[n.input[0]]) for n in graph.node if n.op_type == "ConstantOfShape"}
    shapes |= {name: a.shape for name, a in fixed.items() if a.dtype == np.float32}
    drawn = {}
    for name, shape in shapes.items():
        if name not in read_by:
            continue
        node, place = read_by[name]
        if node.op_type == "Gemm" and place == 1:
            assert any(a.name == "transB" and a.i == 1 for a in node.attribute), node.name
        drawn[name] = draw(rng, node.op_type, place, shape)
    return drawn


def build(name):
    """The network; the names of its data and of its last weight."""
    model = onnx.load(DATA / f"light_{name}.onnx")
    graph = model.graph
    drawn = weights(graph, len(name))
    kept = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT64]
    shapes = {n.input[0] for n in graph.node if n.op_type == "ConstantOfShape"}
    reshaped = {n.input[1] for n in graph.node if n.op_type == "Reshape"}
    nodes = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    fixed = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in fixed]
    inputs[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    last = [n for n in nodes if n.op_type in ("Conv", "Gemm")][-1]
    softmax = [n for n in nodes if n.op_type == "Softmax"]
    if softmax:
        graph.output.append(onnx.helper.make_tensor_value_info(softmax[-1].input[0], onnx.TensorProto.FLOAT, None))
    tensors = []
    for t in kept:
        if t.name in shapes:
            continue
        if t.name in reshaped:  # a batch of 1 is written out: 0 keeps what comes
            to = numpy_helper.to_array(t).copy()
            to[0] = 0 if to[0] == 1 else to[0]
            t = numpy_helper.from_array(to, t.name)
        tensors.append(t)
    tensors += [numpy_helper.from_array(a, n) for n, a in drawn.items()]
    for field, values in ((graph.node, nodes), (graph.input, inputs), (graph.initializer, tensors)):
        del field[:]
        field.extend(values)
    del graph.value_info[:]
    return model, inputs[0].name, last.input[1]


def feed(data, batch):
    r = np.random.default_rng(batch)
    return {data: r.standard_normal((batch, 3, 224, 224)).astype(np.float32)}


def scaled(model, data, weight, folder):
    """Writes the model with its last weight such that the scores deviate by 3."""
    path = Path(folder) / "network.onnx"
    onnx.save(model, path)
    scores = ort.InferenceSession(str(path)).run(None, feed(data, 1))[-1]
    for t in model.graph.initializer:
        if t.name == weight:
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * np.float32(3 / scores.std()), weight))
    onnx.save(model, path)
    return path


def main():
    kiln, kiln_rt, *names = sys.argv[1:]
    small = "--small" in names
    names = [n for n in names if n != "--small"] or [n for n in NAMES if not (small and n in LARGE)]
    total = np.zeros(2, int)
    for name in names:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            model, data, weight = build(name)
            path = scaled(model, data, weight, folder)
            del model
            runs = [(f"batch {b}", feed(data, b)) for b in (1, 2)]
            total += against_ort.compare(kiln, kiln_rt, name, path, runs, folder)
        print(f"{name:<14} {time.monotonic() - start:.1f} s")
    print(f"{total[0]} passed, {total[1]} failed")
    sys.exit(1 if total[1] else 0)


if __name__ == "__main__":
    main()
