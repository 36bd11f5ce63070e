"""Models and what ONNX Runtime makes of them, in the layout of ONNX's suite:
NAME/model.onnx and NAME/test_data_set_K/{input,output}_J.pb.
"""

import os
import sys

try:
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
except ImportError as e:
    print(e, file=sys.stderr)
    sys.exit(3)

KINDS = {
    "f": TensorProto.FLOAT, "h": TensorProto.FLOAT16, "d": TensorProto.DOUBLE, "i": TensorProto.INT64,
    "j": TensorProto.INT32, "u": TensorProto.UINT8, "s": TensorProto.INT8, "b": TensorProto.BOOL,
    "t": TensorProto.STRING, "w": TensorProto.INT16, "q": TensorProto.UINT64,
}


def node(op, inputs, outputs, domain="com.microsoft", **attrs):
    """A node; `_` stands for a name that is left out."""
    names = [["" if n == "_" else n for n in part.split()] for part in (inputs, outputs)]
    return helper.make_node(op, *names, domain=domain, **attrs)


def plain(op, inputs, outputs, **attrs):
    """A node of ONNX's own domain."""
    return node(op, inputs, outputs, "", **attrs)


def info(text):
    """`x:f[b,3]` as a value's name and type."""
    name, rest = text.split(":")
    kind, dims = rest[:-1].split("[")
    dims = [int(d) if d.isdigit() else d for d in dims.split(",") if d]
    return helper.make_tensor_value_info(name, KINDS[kind], dims)


def tensor(value, name):
    """A tensor; what is one already keeps its type (those below a byte have none
    in NumPy)."""
    if isinstance(value, TensorProto):
        copy = TensorProto()
        copy.CopyFrom(value)
        copy.name = name
        return copy
    return numpy_helper.from_array(np.asarray(value), name)


def result(text):
    """`y`, or `y:f` where ONNX Runtime infers no type."""
    name, _, kind = text.partition(":")
    if kind:
        return helper.make_tensor_value_info(name, KINDS[kind], None)
    return helper.make_empty_tensor_value_info(name)


class Writer:
    """Writes cases into a folder and counts them."""

    def __init__(self, folder, domains):
        self.folder, self.domains, self.count = folder, domains, 0

    def model(self, name, nodes, inputs, outputs, consts, opset):
        nodes = nodes if isinstance(nodes, list) else [nodes]
        graph = helper.make_graph(
            nodes, name, [info(i) for i in inputs.split()],
            [result(o) for o in outputs.split()],
            [tensor(v, k) for k, v in consts.items()],
        )
        imports = [helper.make_opsetid("", opset)]
        imports += [helper.make_opsetid(d, v) for d, v in self.domains.items()]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)

    def case(self, name, nodes, inputs, outputs, feeds, consts=None, opset=21, reference=None):
        """One case. Its results are those of `reference`, nodes that ONNX Runtime
        has kernels for, where it has none for the nodes themselves."""
        consts = consts or {}
        model = self.model(name, nodes, inputs, outputs, consts, opset)
        runs = model if reference is None else self.model(name, reference, inputs, outputs, consts, opset)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # The nodes as they stand, one thread: the same numbers every time.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(
                runs.SerializeToString(), options, providers=["CPUExecutionProvider"])
            sets = []
            for feed in feeds if isinstance(feeds, list) else [feeds]:
                feed = {k: np.asarray(v) for k, v in feed.items()}
                sets.append((feed, session.run(None, feed)))
        except Exception as e:
            raise RuntimeError(f"{name}: {e}") from e
        folder = os.path.join(self.folder, name)
        os.makedirs(folder, exist_ok=True)
        onnx.save(model, os.path.join(folder, "model.onnx"))
        for k, (feed, results) in enumerate(sets):
            data = os.path.join(folder, f"test_data_set_{k}")
            os.makedirs(data, exist_ok=True)
            given = [(i.name, feed[i.name]) for i in session.get_inputs()]
            made = [(o.name, v) for o, v in zip(session.get_outputs(), results)]
            for kind, values in (("input", given), ("output", made)):
                for j, (label, value) in enumerate(values):
                    with open(os.path.join(data, f"{kind}_{j}.pb"), "wb") as f:
                        f.write(tensor(value, label).SerializeToString())
        self.count += 1
