"""Writes small models with open sizes, older opsets, control flow and operators
of ONNX Runtime, and what ONNX Runtime makes of them:
NAME/model.onnx and NAME/test_data_set_K/{input,output}_J.pb.

    cases.py OUT_DIR
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

OUT = sys.argv[1]
F, I, B, U8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.UINT8
RNG = np.random.default_rng(7)


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def i64(*values):
    return np.array(values, np.int64)


def node(op, inputs, outputs, **attrs):
    """`_` stands for what is left out."""
    names = [["" if n == "_" else n for n in part.split()] for part in (inputs, outputs)]
    return helper.make_node(op, *names, **attrs)


def info(text):
    """`x:f[b,3]`; `x:*f[b,3]` is a sequence of such tensors."""
    name, rest = text.split(":")
    sequence = rest.startswith("*")
    kind, dims = rest.lstrip("*")[:-1].split("[")
    dims = [int(d) if d.lstrip("-").isdigit() else d for d in dims.split(",") if d]
    types = {"f": F, "i": I, "b": B, "u": U8, "h": TensorProto.FLOAT16}
    if sequence:
        element = helper.make_tensor_type_proto(types[kind], dims if rest[-2:] != "?]" else None)
        return helper.make_value_info(name, helper.make_sequence_type_proto(element))
    return helper.make_tensor_value_info(name, types[kind], dims)


def data(value, name):
    if isinstance(value, list):
        return numpy_helper.from_list(value, name)
    return numpy_helper.from_array(np.asarray(value), name)


def case(name, nodes, inputs, outputs, feeds, opset=17, consts={}, functions=(), domains=()):
    outputs = [info(o) if ":" in o else helper.make_empty_tensor_value_info(o) for o in outputs.split()]
    graph = helper.make_graph(
        nodes, name, [info(i) for i in inputs.split()], outputs,
        [numpy_helper.from_array(np.asarray(v), k) for k, v in consts.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    imports += [helper.make_opsetid(d, 1) for d in domains]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)
    folder = os.path.join(OUT, name)
    os.makedirs(folder, exist_ok=True)
    onnx.save(model, os.path.join(folder, "model.onnx"))
    # What is written is the model; what runs is the same.
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for k, feed in enumerate(feeds):
        feed = {name: value if isinstance(value, list) else np.asarray(value) for name, value in feed.items()}
        place = os.path.join(folder, f"test_data_set_{k}")
        os.makedirs(place, exist_ok=True)
        results = session.run(None, feed)
        pairs = [("input", i.name, feed[i.name]) for i in session.get_inputs()]
        pairs += [("output", o.name, v) for o, v in zip(session.get_outputs(), results)]
        counts = {"input": 0, "output": 0}
        for kind, tensor, value in pairs:
            with open(os.path.join(place, f"{kind}_{counts[kind]}.pb"), "wb") as f:
                f.write(data(value, tensor).SerializeToString())
            counts[kind] += 1


def older_opsets():
    x = {"x": f32(2, 3, 4)}
    for op in ["Softmax", "LogSoftmax", "Hardmax"]:
        for axis in [0, 1, 2]:
            case(f"{op}-11-axis{axis}", [node(op, "x", "y", axis=axis)], "x:f[a,b,4]", "y", [x], 11)
        case(f"{op}-9", [node(op, "x", "y")], "x:f[a,3,b]", "y", [x], 9)
        case(f"{op}-13", [node(op, "x", "y", axis=1)], "x:f[a,3,b]", "y", [x], 13)
    case("squeeze-11", [node("Unsqueeze", "x", "u", axes=[0, 4]), node("Squeeze", "u", "y", axes=[-1])],
         "x:f[a,b,c]", "y", [x], 11)
    case("squeeze-all", [node("Squeeze", "x", "y")], "x:f[1,a,1]", "y", [{"x": f32(1, 5, 1)}], 11)
    for op in ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp"]:
        case(f"{op}-11", [node(op, "x", "y", axes=[0, -1], keepdims=0)], "x:f[a,b,c]", "y", [x], 11)
        case(f"{op}-11-all", [node(op, "x", "y")], "x:f[a,b,c]", "y", [x], 11)
    case("clip-10", [node("Clip", "x", "y", min=-0.5)], "x:f[a,b,c]", "y", [x], 10)
    case("pad-10", [node("Pad", "x", "y", pads=[0, 1, 0, 1, 0, -1], value=2.0)], "x:f[a,b,c]", "y", [x], 10)
    case("slice-9", [node("Slice", "x", "y", starts=[0, -2], ends=[1, 100], axes=[0, 2])],
         "x:f[a,b,c]", "y", [x], 9)
    case("topk-9", [node("TopK", "x", "y z", k=2, axis=1)], "x:f[a,3,c]", "y z", [x], 9)
    case("split-11", [node("Split", "x", "y z", axis=2, split=[1, 3])], "x:f[a,b,4]", "y z", [x], 11)
    case("split-11-even", [node("Split", "x", "y z", axis=2)], "x:f[a,b,4]", "y z", [x], 11)
    case("split-18", [node("Split", "x", "y z", axis=2, num_outputs=2)], "x:f[a,b,5]", "y z",
         [{"x": f32(2, 3, 5)}], 18)
    case("dropout-10", [node("Dropout", "x", "y", ratio=0.7)], "x:f[a,b,c]", "y", [x], 10)
    case("batchnorm-9", [node("BatchNormalization", "x s b m v", "y", epsilon=0.01)], "x:f[a,3,c]", "y", [x], 9,
         {"s": f32(3), "b": f32(3), "m": f32(3), "v": np.abs(f32(3))})
    case("scatter-9", [node("Scatter", "x i u", "y", axis=1)], "x:f[a,3,c]", "y", [x], 9,
         {"i": np.zeros((1, 1, 2), np.int64), "u": f32(1, 1, 2)})
    case("gemm-9", [node("Gemm", "x w b", "y", alpha=0.5, beta=2.0, transB=1)], "x:f[a,4]", "y",
         [{"x": f32(3, 4)}], 9, {"w": f32(5, 4), "b": f32(5)})
    for name, scales in [("down", (1, 1, 0.6, 0.6)), ("up", (1, 1, 2, 3)), ("both", (1, 1, 1.5, 0.4))]:
        case(f"resize-10-{name}", [node("Resize", "x s", "y")], "x:f[1,2,4,5]", "y", [{"x": f32(1, 2, 4, 5)}], 10,
             {"s": np.array(scales, np.float32)})
    case("resize-11-half-pixel-for-nn", [
        node("Resize", "x r r s", "y", coordinate_transformation_mode="tf_half_pixel_for_nn")],
         "x:f[1,1,4,4]", "y", [{"x": f32(1, 1, 4, 4)}], 11, {"r": np.zeros(0, np.float32), "s": i64(1, 1, 3, 2)})
    # At 4 and 7 the last window would begin in the second padding and is left out.
    case("maxpool-ceil", [node("MaxPool", "x", "y", kernel_shape=[3], strides=[3], pads=[1, 1], ceil_mode=1)], "x:f[a,2,n]", "y",
         [{"x": f32(2, 2, n)} for n in (1, 3, 4, 5, 6, 7, 8)], 12)
    case("flatten-9", [node("Flatten", "x", "y", axis=2)], "x:f[a,b,c]", "y", [x], 9)


def open_sizes():
    xs = [{"x": f32(n, m)} for n, m in [(1, 1), (3, 5), (8, 2)]]
    for name, start, end, step in [
        ("front", 0, 2, 1), ("rest", 1, 2**63 - 1, 1), ("last", -1, 2**63 - 1, 1), ("but-last", 0, -1, 1),
        ("last-three", -3, 100, 1), ("stride", 0, 100, 2), ("middle", 1, -1, 1),
        ("backwards", -1, -(2**63), -1), ("backwards-two", 100, -100, -2), ("first", 0, 1, 1),
    ]:
        case(f"slice-{name}", [node("Slice", "x s e a p", "y")], "x:f[n,m]", "y", xs, 17,
             {"s": i64(start), "e": i64(end), "a": i64(1), "p": i64(step)})
    case("reshape-zero-minus", [node("Reshape", "x s", "y")], "x:f[n,m]", "y", xs, 17, {"s": i64(0, 1, -1)})
    case("expand-by-shape", [node("Shape", "x", "s"), node("Expand", "c s", "y")], "x:f[n,m]", "y", xs, 17,
         {"c": f32(1, 1)})
    case("tile", [node("Tile", "x r", "y")], "x:f[n,m]", "y", xs, 17, {"r": i64(2, 3)})
    case("range-of-size", [
        node("Shape", "x", "s"), node("Gather", "s one", "n"), node("Range", "z n step", "y")],
         "x:f[n,m]", "y", xs, 17, {"one": np.array(1), "z": np.array(0), "step": np.array(2)})
    case("causal-mask", [
        node("Shape", "x", "s"), node("Gather", "s one", "n"), node("Unsqueeze", "n zero", "u"),
        node("Concat", "u u", "nn", axis=0), node("Expand", "value nn", "full"), node("Trilu", "full k", "y", upper=1)],
         "x:f[n,m]", "y", xs, 17,
         {"one": np.array(1), "zero": i64(0), "value": np.float32(-1e9).reshape(1), "k": np.array(1)})
    case("pad-to-even", [
        node("Shape", "x", "s"), node("Mod", "s two", "r"), node("Concat", "zero2 r", "p", axis=0),
        node("Pad", "x p", "y")], "x:f[n,m]", "y", xs, 17, {"two": i64(2), "zero2": i64(0, 0)})
    case("flatten-heads", [
        node("Shape", "x", "s"), node("Slice", "s a b", "n"), node("Concat", "n rest", "t", axis=0),
        node("Reshape", "x t", "y")], "x:f[n,6]", "y", [{"x": f32(n, 6)} for n in (1, 4)], 17,
         {"a": i64(0), "b": i64(1), "rest": i64(2, -1)})
    case("einsum-attention", [node("Einsum", "q k", "y", equation="bqhd,bkhd->bhqk")],
         "q:f[b,s,2,3] k:f[b,t,2,3]", "y", [{"q": f32(2, 3, 2, 3), "k": f32(2, 5, 2, 3)}])
    case("einsum-ellipsis", [node("Einsum", "q k", "y", equation="...ij,...jk->...ik")],
         "q:f[b,c,4,3] k:f[3,2]".replace("k:f[3,2]", "k:f[b,c,3,2]"), "y",
         [{"q": f32(2, 3, 4, 3), "k": f32(2, 3, 3, 2)}])
    case("onehot", [node("OneHot", "i d v", "y", axis=1)], "i:i[n]", "y", [{"i": i64(0, 3, -1, 7)}], 17,
         {"d": np.array(5), "v": np.array([2, 9], np.float32)})


def data_dependent():
    case("slice-by-data", [node("Slice", "x s e a p", "y")], "x:f[n,m] s:i[1] e:i[1]", "y",
         [{"x": f32(3, 6), "s": i64(s), "e": i64(e)} for s, e in [(0, 3), (-4, -1), (2, 100), (5, 2)]], 17,
         {"a": i64(1), "p": i64(2)})
    case("slice-back-by-data", [node("Slice", "x s e a p", "y")], "x:f[n,m] s:i[1] e:i[1]", "y",
         [{"x": f32(3, 6), "s": i64(s), "e": i64(e)} for s, e in [(5, 0), (-1, -100), (100, 2), (2, 5)]], 17,
         {"a": i64(1), "p": i64(-1)})
    case("reshape-by-data", [node("Reshape", "x s", "y")], "x:f[n,m] s:i[3]", "y",
         [{"x": f32(4, 6), "s": i64(*s)} for s in [(2, 2, 6), (0, -1, 2), (-1, 1, 1)]])
    case("expand-by-data", [node("Expand", "x s", "y")], "x:f[1,m] s:i[2]", "y",
         [{"x": f32(1, 2), "s": i64(n, 2)} for n in (1, 4)])
    case("range-by-data", [node("Range", "a b c", "y")], "a:i[] b:i[] c:i[]", "y",
         [{"a": np.array(a), "b": np.array(b), "c": np.array(c)} for a, b, c in
          [(0, 5, 1), (5, 0, -2), (3, 3, 1), (1, 8, 3), (5, 0, 1)]])
    case("float-range-by-data", [node("Range", "a b c", "y")], "a:f[] b:f[] c:f[]", "y",
         [{"a": np.float32(a), "b": np.float32(b), "c": np.float32(c)} for a, b, c in
          [(0, 1, 0.3), (2, -1, -0.7), (0, -1, 1)]])
    case("nonzero", [node("NonZero", "x", "i"), node("Transpose", "i", "t"), node("GatherND", "x t", "y")],
         "x:f[n,m]", "y i", [{"x": np.array([[0, 1.5], [2, 0], [3, 4]], np.float32)}])
    case("topk-by-data", [node("TopK", "x k", "y z")], "x:f[n,m] k:i[1]", "y z",
         [{"x": f32(2, 5), "k": i64(k)} for k in (1, 4)])
    case("fill-by-data", [node("ConstantOfShape", "s", "y")], "s:i[2]", "y", [{"s": i64(2, 3)}])


def control_flow():
    def graph(name, nodes, inputs, outputs, consts={}):
        return helper.make_graph(
            nodes, name, [info(i) for i in inputs.split()], [info(o) for o in outputs.split()],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in consts.items()])

    yes = graph("yes", [node("Slice", "x z two", "t")], "", "t:f[k,m]", {"two": i64(2)})
    no = graph("no", [node("Neg", "x", "f")], "", "f:f[n,m]")
    case("if-different-sizes", [node("If", "c", "y", then_branch=yes, else_branch=no), node("Relu", "y", "r")],
         "x:f[n,m] c:b[]", "r", [{"x": f32(5, 2), "c": np.array(c)} for c in (True, False)], 17, {"z": i64(0)})
    case("if-constant", [node("If", "c", "y", then_branch=yes, else_branch=no)], "x:f[n,m]", "y",
         [{"x": f32(5, 2)}], 17, {"z": i64(0), "c": np.array(False)})
    squeeze = graph("squeeze", [node("Squeeze", "x one", "t")], "", "t:f[n]")
    keep = graph("keep", [node("Identity", "x", "f")], "", "f:f[n,m]")
    case("if-squeezable", [
        node("Shape", "x", "s"), node("Gather", "s at", "d"), node("Equal", "d number", "c"),
        node("If", "c", "y", then_branch=squeeze, else_branch=keep), node("Relu", "y", "r")],
         "x:f[n,m]", "r", [{"x": f32(3, 4)}], 17, {"at": np.array(1), "number": np.array(1), "one": i64(1)})
    body = graph("body", [
        node("Add", "s x", "next"), node("ReduceSum", "next", "total", keepdims=0),
        node("Less", "total limit", "go"), node("Identity", "next", "shown")],
        "i:i[] go_in:b[] s:f[n]", "go:b[] next:f[n] shown:f[n]", {"limit": np.float32(20)})
    case("loop-until", [node("Loop", "trip cond s0", "last all", body=body)], "x:f[n] s0:f[n]", "last all",
         [{"x": np.ones(4, np.float32), "s0": np.zeros(4, np.float32)}], 17,
         {"trip": np.array(50), "cond": np.array(True)})
    body = graph("body", [
        node("Add", "s x", "next"), node("Identity", "go_in", "go"), node("Mul", "next next", "shown")],
        "i:i[] go_in:b[] s:f[n]", "go:b[] next:f[n] shown:f[n]")
    case("loop-counted", [node("Shape", "x", "sh"), node("Squeeze", "sh", "trip"),
                          node("Loop", "trip _ s0", "last all", body=body)],
         "x:f[n] s0:f[n]", "last all", [{"x": f32(4), "s0": f32(4)}])
    body = graph("body", [
        node("Concat", "s x", "next", axis=0), node("Identity", "go_in", "go")],
        "i:i[] go_in:b[] s:f[k]", "go:b[] next:f[k2]")
    case("loop-growing", [node("Loop", "trip _ s0", "y", body=body)], "x:f[n] s0:f[n] trip:i[]", "y",
         [{"x": f32(2), "s0": f32(2), "trip": np.array(t)} for t in (0, 3)])
    body = graph("body", [node("Add", "s e", "next"), node("Mul", "next e", "shown")],
                 "s:f[m] e:f[m]", "next:f[m] shown:f[m]")
    for k, (attrs, shape) in enumerate([
        ({}, (5, 3)), ({"scan_input_axes": [1], "scan_output_axes": [1]}, (3, 5)),
        ({"scan_input_directions": [1], "scan_output_directions": [1]}, (5, 3)),
    ]):
        case(f"scan-{k}", [node("Scan", "s0 x", "last all", body=body, num_scan_inputs=1, **attrs)],
             "x:f[n,m] s0:f[3]", "last all", [{"x": f32(*shape), "s0": f32(3)}])


def sequences():
    def graph(name, nodes, inputs, outputs, consts={}):
        return helper.make_graph(
            nodes, name, [info(i) for i in inputs.split()], [info(o) for o in outputs.split()],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in consts.items()])

    at = {"zero": np.array(0), "one": np.array(1), "two": np.array(2), "last": np.array(-1), "three": np.array(3)}
    xy = [{"x": f32(2, 3), "y": f32(4, 3)}, {"x": f32(1, 3), "y": f32(1, 3)}]
    case("sequence-edit", [
        node("SequenceConstruct", "x y", "s"), node("SequenceInsert", "s y zero", "t"),
        node("SequenceInsert", "t x last", "u"), node("SequenceErase", "u one", "v"),
        node("ConcatFromSequence", "u", "c", axis=0), node("ConcatFromSequence", "v", "d", axis=-2),
        node("SequenceAt", "u last", "e"), node("SequenceLength", "v", "n"), node("SequenceErase", "v", "w")],
         "x:f[n,3] y:f[m,3]", "c d e n w:*f[?]", xy, 17, at)
    same = [{"x": f32(2, 3), "y": f32(2, 3), "p": np.array(p)} for p in (0, -1, 1, -2)]
    case("sequence-at-by-data", [
        node("SequenceConstruct", "x y", "s"), node("SequenceAt", "s p", "e"),
        node("ConcatFromSequence", "s", "c", axis=-1, new_axis=1)], "x:f[2,3] y:f[2,3] p:i[]", "e c", same)
    for keep in (0, 1):
        case(f"split-open-{keep}", [
            node("SplitToSequence", "x", "s", axis=1, keepdims=keep), node("SequenceLength", "s", "n"),
            node("SequenceAt", "s p", "e"), node("SequenceAt", "s last", "f"), node("SequenceAt", "s one", "g"),
            node("SequenceErase", "s", "t"), node("SequenceErase", "t one", "u"),
            node("SequenceInsert", "u f", "v"), node("ConcatFromSequence", "v", "c", axis=0),
            node("ConcatFromSequence", "v", "d", axis=1, new_axis=1)],
             "x:f[3,m] p:i[]", "n e f g c d", [{"x": f32(3, m), "p": np.array(p)} for m, p in [(5, 2), (3, -1)]], 17, at)
    case("split-known", [
        node("SplitToSequence", "x two", "s", axis=1), node("SplitToSequence", "x sizes", "t", axis=1)],
         "x:f[n,5]", "s:*f[?] t:*f[?]", [{"x": f32(2, 5)}], 17, {**at, "sizes": i64(1, 4)})

    append = graph("body", [
        node("Cast", "i", "f", to=F), node("Mul", "x f", "e"), node("SequenceInsert", "s e", "t"),
        node("Identity", "go_in", "go"), node("Add", "a e", "b")],
        "i:i[] go_in:b[] a:f[n] s:*f[n]", "go:b[] b:f[n] t:*f[n] e:f[n]")
    looped = [
        node("SequenceConstruct", "x", "s0"), node("Loop", "trip _ x s0", "a s all", body=append),
        node("ConcatFromSequence", "s", "c", axis=0, new_axis=1), node("SequenceAt", "s last", "e"),
        node("SequenceLength", "s", "n")]
    case("loop-appending", looped, "x:f[n] trip:i[]", "a all c e n",
         [{"x": f32(4), "trip": np.array(t)} for t in (1, 3)], 17, at)
    case("loop-appending-40", looped, "x:f[n]", "a all c e n s:*f[n]", [{"x": f32(4)}], 17, {**at, "trip": np.array(40)})
    case("loop-appending-3", looped, "x:f[n]", "a all c e n", [{"x": f32(4)}], 17, {**at, "trip": np.array(3)})
    until = graph("body", [
        node("Add", "i one", "end"), node("Unsqueeze", "end axes", "ends"), node("Slice", "x axes ends", "e"),
        node("SequenceInsert", "s e", "t"), node("Less", "end three", "go")],
        "i:i[] go_in:b[] s:*f[?]", "go:b[] t:*f[?]", {"axes": i64(0)})
    case("loop-of-slices", [
        node("SequenceEmpty", "", "s0"), node("Loop", "_ yes s0", "s", body=until),
        node("ConcatFromSequence", "s", "c", axis=0)], "x:f[4]", "s:*f[?] c", [{"x": f32(4)}], 17,
         {**at, "yes": np.array(True)})
    shrink = graph("body", [
        node("SequenceAt", "s zero", "e"), node("ReduceSum", "e", "r", keepdims=0), node("Add", "a r", "b"),
        node("SequenceErase", "s zero", "t"), node("SequenceLength", "t", "n"), node("Greater", "n zero", "go")],
        "i:i[] go_in:b[] s:*f[?] a:f[]", "go:b[] t:*f[?] b:f[]")
    case("loop-erasing", [node("Loop", "_ yes s a", "t b", body=shrink)], "s:*f[?] a:f[]", "b",
         [{"s": [f32(n) for n in sizes], "a": f32()} for sizes in [(2, 3), (1, 4, 1)]], 17,
         {**at, "yes": np.array(True)})
    reading = graph("body", [
        node("SequenceAt", "s i", "e"), node("ReduceSum", "e", "r", keepdims=0), node("Add", "a r", "b"),
        node("Identity", "go_in", "go")], "i:i[] go_in:b[] a:f[]", "go:b[] b:f[]")
    sums = [node("SequenceLength", "s", "n"), node("Loop", "n _ a", "b", body=reading)]
    case("loop-reading", sums, "s:*f[k] a:f[]", "b", [{"s": [f32(n) for n in (2, 3, 1)], "a": f32()}])
    case("loop-reading-open", [node("SplitToSequence", "x", "s"), *sums], "x:f[n,3] a:f[]", "b",
         [{"x": f32(n, 3), "a": f32()} for n in (1, 6)])
    twice = graph("body", [node("Add", "e f", "g"), node("Shape", "g", "h")], "e:f[k] f:f[k]", "g:f[k] h:i[1]")
    case("map-known", [node("SequenceMap", "s x", "t u", body=twice)], "s:*f[k] x:f[1]", "t:*f[k] u:*i[1]",
         [{"s": [f32(n) for n in (2, 3, 1)], "x": f32(1)}])
    case("map-open", [
        node("SplitToSequence", "x", "s", keepdims=0), node("SequenceMap", "s s", "t u", body=twice),
        node("ConcatFromSequence", "t", "c", axis=0, new_axis=1), node("ConcatFromSequence", "u", "d", axis=0)],
         "x:f[n,3]", "c d", [{"x": f32(n, 3)} for n in (1, 5)])
    yes = graph("yes", [node("SequenceConstruct", "x y", "t")], "", "t:*f[?]")
    no = graph("no", [node("Neg", "x", "nx"), node("SequenceConstruct", "y nx", "f")], "", "f:*f[?]")
    case("if-of-sequences", [node("If", "c", "s", then_branch=yes, else_branch=no)], "x:f[n] y:f[m] c:b[]", "s:*f[?]",
         [{"x": f32(2), "y": f32(3), "c": np.array(c)} for c in (True, False)])
    case("sequence-ports", [node("Identity", "s", "t"), node("SequenceInsert", "t x zero", "u")], "s:*f[?] x:f[n]",
         "t:*f[?] u:*f[?]", [{"s": [f32(2), f32(3, 1)], "x": f32(4)}, {"s": [f32(2)], "x": f32(1)}], 17, at)


def functions():
    inner = helper.make_function(
        "local", "Scaled", ["a", "b"], ["r"],
        [node("Constant", "", "c"), node("Mul", "a c", "m"), node("Add", "m b", "r")],
        [helper.make_opsetid("", 17)], ["factor"])
    attribute = onnx.AttributeProto(name="value_float", ref_attr_name="factor", type=onnx.AttributeProto.FLOAT)
    inner.node[0].attribute.append(attribute)
    del inner.node[0].input[:]
    outer = helper.make_function(
        "local", "Twice", ["a"], ["r"],
        [helper.make_node("Scaled", ["a", "a"], ["t"], domain="local", factor=3.0),
         helper.make_node("Scaled", ["t", "a"], ["r"], domain="local", factor=0.5)],
        [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)])
    case("functions", [helper.make_node("Twice", ["x"], ["y"], domain="local")], "x:f[n]", "y",
         [{"x": f32(4)}], 17, functions=[inner, outer], domains=["local"])


def of_onnxruntime():
    ms = {"domain": "com.microsoft"}
    x = {"x": f32(2, 3, 4)}
    case("ms-bias-gelu", [node("BiasGelu", "x b", "y", **ms)], "x:f[a,b,4]", "y", [x], 17, {"b": f32(4)})
    case("ms-fast-gelu", [node("FastGelu", "x b", "y", **ms)], "x:f[a,b,4]", "y", [x], 17, {"b": f32(4)})
    case("ms-gelu", [node("Gelu", "x", "y", **ms)], "x:f[a,b,4]", "y", [x])
    case("ms-quick-gelu", [node("QuickGelu", "x", "y", alpha=1.5, **ms)], "x:f[a,b,4]", "y", [x])
    case("ms-skip-layer-norm", [node("SkipLayerNormalization", "x x g b c", "y _ _ s", epsilon=1e-5, **ms)],
         "x:f[a,b,4]", "y", [x], 17, {"g": f32(4), "b": f32(4), "c": f32(4)})
    case("ms-skip-rms-norm", [node("SkipSimplifiedLayerNormalization", "x x g", "y", epsilon=1e-5, **ms)],
         "x:f[a,b,4]", "y", [x], 17, {"g": f32(4)})
    case("ms-rms-norm", [node("SimplifiedLayerNormalization", "x g", "y", epsilon=1e-5, axis=-1)],
         "x:f[a,b,4]", "y", [x], 17, {"g": f32(4)})
    case("ms-fused-matmul", [node("FusedMatMul", "x w", "y", alpha=0.5, transB=1, **ms)],
         "x:f[a,b,4]", "y", [x], 17, {"w": f32(5, 4)})
    case("ms-rotary", [node("RotaryEmbedding", "x p c s", "y", **ms)], "x:f[a,2,s,4] p:i[a,s]", "y",
         [{"x": f32(1, 2, 3, 4), "p": i64(2, 0, 1).reshape(1, 3)}], 17, {"c": f32(8, 2), "s": f32(8, 2)})
    q = [{"x": f32(3, 8) * 4}]
    case("dynamic-quantize", [
        node("DynamicQuantizeLinear", "x", "q s z"), node("MatMulInteger", "q w z zw", "i"),
        node("Cast", "i", "f", to=F), node("Mul", "s sw", "t"), node("Mul", "f t", "y")],
         "x:f[n,8]", "y q", q, 17,
         {"w": RNG.integers(0, 255, (8, 5)).astype(np.uint8), "zw": np.array(128, np.uint8), "sw": np.float32(0.02)})
    case("qdq-per-channel", [
        node("DequantizeLinear", "w s z", "d", axis=1), node("MatMul", "x d", "y")], "x:f[n,8]", "y", q, 17,
         {"w": RNG.integers(-128, 127, (8, 5)).astype(np.int8), "s": np.abs(f32(5)), "z": np.zeros(5, np.int8)})
    u8 = lambda *shape: RNG.integers(0, 255, shape).astype(np.uint8)
    scale = lambda v: np.float32(v)
    # Scales without common factors: no sum lies on a rounding border.
    pair = {"sa": scale(0.0213), "za": np.uint8(120), "b": u8(1, 5), "sb": scale(0.0517), "zb": np.uint8(3),
            "sy": scale(0.0607), "zy": np.uint8(100)}
    for op in ["QLinearAdd", "QLinearMul"]:
        case(f"ms-{op}", [node(op, "x sa za b sb zb sy zy", "y", **ms)], "x:u[n,5]", "y", [{"x": u8(4, 5)}], 17, pair)
    one = {"s": scale(0.03), "z": np.uint8(128), "sy": scale(0.004), "zy": np.uint8(0)}
    case("ms-QLinearSigmoid", [node("QLinearSigmoid", "x s z sy zy", "y", **ms)], "x:u[n,5]", "y", [{"x": u8(4, 5)}], 17, one)
    case("ms-QLinearGlobalAveragePool", [node("QLinearGlobalAveragePool", "x s z sy zy", "y", channels_last=0, **ms)],
         "x:u[n,3,h,w]", "y", [{"x": u8(2, 3, 4, 5)}], 17, {**one, "sy": scale(0.01), "zy": np.uint8(90)})
    weights = {"sx": scale(0.02), "zx": np.uint8(110), "w": RNG.integers(-99, 99, (5, 8)).astype(np.int8),
               "sw": np.abs(f32(5)) * scale(0.01) + scale(0.01), "zw": np.zeros(5, np.int8),
               "c": RNG.integers(-999, 999, 5).astype(np.int32), "sy": scale(0.2), "zy": np.uint8(128)}
    case("ms-QGemm", [node("QGemm", "x sx zx w sw zw c sy zy", "y", alpha=0.5, transB=1, **ms)], "x:u[n,8]", "y",
         [{"x": u8(3, 8)}], 17, weights)
    case("ms-QGemm-float", [node("QGemm", "x sx zx w sw zw c", "y", transB=1, **ms)], "x:u[n,8]", "y",
         [{"x": u8(3, 8)}], 17, weights)


for group in [older_opsets, open_sizes, data_dependent, control_flow, sequences, functions, of_onnxruntime]:
    group()
