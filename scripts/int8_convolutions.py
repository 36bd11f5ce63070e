"""Random convolutions of 8-bit integers against ONNX Runtime.

    int8_convolutions.py KILN KILN_RT [COUNT] [FIRST_SEED]

ConvInteger, QLinearConv, and Conv between DequantizeLinear and QuantizeLinear: 1 to 3
spatial axes, strides, dilations, paddings, groups, depthwise, both signs on both sides,
zero points that are constant or given, filters that are constant or given, biases, batch
1 and 3 from one artifact, for a level of x86-64 that the seed picks. The integers are
ONNX Runtime's with its fusions off; for the quantized Conv, which it sums in f32, one
may be off by a step where its number lies within a thousandth of the border of two.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import against_ort
import int8_models

TYPES = {"u8": (np.uint8, TensorProto.UINT8), "i8": (np.int8, TensorProto.INT8)}


def drawn(rng, kind, shape):
    bounds = np.iinfo(TYPES[kind][0])
    return rng.integers(bounds.min, bounds.max + 1, shape).astype(TYPES[kind][0])


def frame(rng):
    """Attributes, the image's sizes, groups, and channels and filters of a group."""
    n = int(rng.choice([1, 2, 2, 2, 3]))
    pick = lambda of, count=n: [int(x) for x in rng.choice(of, count)]
    kernel, strides, dilations = pick([1, 2, 3, 5] if n < 3 else [1, 2, 3]), pick([1, 1, 2, 3]), pick([1, 1, 2])
    if rng.random() < 0.3:
        groups, depth, filters = int(rng.choice([2, 5, 16, 24, 33])), 1, 1
    else:
        groups, depth, filters = (int(rng.choice(of)) for of in
                                  ([1, 1, 1, 2, 3], [1, 2, 3, 4, 8, 17, 40], [1, 3, 16, 20, 33, 70]))
    sizes = [(k - 1) * d + 1 + room for k, d, room in zip(kernel, dilations, pick([0, 1, 2, 6, 11]))]
    attributes = dict(kernel_shape=kernel, strides=strides, dilations=dilations, pads=pick([0, 0, 1, 2], 2 * n), group=groups)
    return attributes, sizes, groups, depth, filters


def case(seed):
    """A model, what it is fed, and whether its integers are exact."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(["ConvInteger", "QLinearConv", "Conv"]))
    attributes, sizes, groups, depth, m = frame(rng)
    x_type = str(rng.choice(["u8", "u8", "i8"]))
    w_type = str(rng.choice(["i8", "i8", "u8"])) if x_type == "u8" else "i8"
    filters, each = groups * m, bool(rng.random() < 0.5)
    w = drawn(rng, w_type, [filters, depth, *attributes["kernel_shape"]])
    middle = np.asarray(128 if w_type == "u8" else 0, w.dtype)
    # ONNX Runtime has no kernel for filters of i8 with a zero point in the first two.
    free = rng.random() < 0.4 and (w_type == "u8" or kind == "Conv")
    zero = drawn(rng, w_type, [])[()] if free else middle[()]
    scale = lambda shape: (rng.uniform(0.5, 2, shape) * 2.0 ** rng.integers(-8, -4)).astype(np.float32)
    values = {"w": w, "zx": drawn(rng, x_type, []), "zw": np.asarray(zero, w.dtype)}
    out = TYPES[x_type][1]
    if kind == "ConvInteger":
        nodes, out = [helper.make_node(kind, ["x", "w", "zx", "zw"], ["y"], **attributes)], TensorProto.INT32
    else:
        sx, sw = scale([]), scale([filters] if each else [])
        size = np.sqrt(depth * np.prod(attributes["kernel_shape"]))
        values |= {"sx": sx, "sw": sw, "sy": np.float32(sx * sw.mean() * 40 * size), "zy": drawn(rng, x_type, [])}
        values["zw"] = np.full([filters] if each else [], zero, w.dtype)
        if rng.random() < 0.5:
            values["b"] = rng.integers(-5000, 5000, filters).astype(np.int32)
        bias = ["b"] if "b" in values else []
        if kind == "QLinearConv":
            nodes = [helper.make_node(kind, ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy"] + bias, ["y"], **attributes)]
        else:
            nodes = [helper.make_node("DequantizeLinear", ["x", "sx", "zx"], ["xf"]),
                     helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wf"], axis=0)]
            if bias:
                values["sb"] = (sx * sw).astype(np.float32)
                nodes.append(helper.make_node("DequantizeLinear", ["b", "sb"], ["bf"], axis=0))
                bias = ["bf"]
            nodes.append(helper.make_node("Conv", ["xf", "wf"] + bias, ["c"], **attributes))
            relu = [helper.make_node("Relu", ["c"], ["r"])] if rng.random() < 0.5 else []
            nodes += [*relu, helper.make_node("QuantizeLinear", ["r" if relu else "c", "sy", "zy"], ["y"])]
    names = ["n", groups * depth, *(f"d{i}" for i in range(len(sizes)))]
    ports, given = [helper.make_tensor_value_info("x", TYPES[x_type][1], names)], {}
    for name, share in (("w", 0.2), ("zx", 0.3)):
        if kind == "ConvInteger" and rng.random() < share:
            given[name] = values.pop(name)
            element = TYPES[w_type if name == "w" else x_type][1]
            ports.append(helper.make_tensor_value_info(name, element, list(given[name].shape)))
    result = helper.make_tensor_value_info("y", out, None)
    weights = [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items()]
    model = helper.make_model(helper.make_graph(nodes, f"case{seed}", ports, [result], weights), ir_version=8,
                              opset_imports=[helper.make_opsetid("", 17)])
    feeds = [{"x": drawn(rng, x_type, [batch, groups * depth, *sizes]), **given} for batch in (1, 3)]
    return model, feeds, kind != "Conv"


def levels():
    flags = Path("/proc/cpuinfo").read_text()
    return ["x86-64-v3"] + ["x86-64-v4"] * ("avx512f" in flags) + ["x86-64-v4-vnni"] * ("avx512_vnni" in flags)


def differs(seed, kiln, kiln_rt, folder):
    """What is wrong with a seed, if anything is."""
    model, feeds, exact = case(seed)
    path = Path(folder) / "model.onnx"
    onnx.save(model, path)
    expected = [int8_models.plain_session(path).run(None, feed)[0] for feed in feeds]
    # Where the numbers of a quantized Conv lie between two steps.
    near = [{"y": 0}] * 2 if exact else int8_models.borders(path, folder, [("", feed) for feed in feeds])
    level = levels()[seed % len(levels())]
    artifact = Path(folder) / "model.kiln"
    subprocess.run([kiln, "compile", str(path), "-o", str(artifact), "--target", level], check=True, stdout=subprocess.DEVNULL)
    for feed, want, border in zip(feeds, expected, near):
        np.savez(Path(folder) / "in.npz", **feed)
        subprocess.run([kiln_rt, "run", str(artifact), "--inputs", str(Path(folder) / "in.npz"), "--output-dir", folder],
                       check=True, stdout=subprocess.DEVNULL)
        got = np.load(Path(folder) / against_ort.file_name("y"))
        if got.dtype != want.dtype or got.shape != want.shape:
            return f"{level}: {got.dtype} {got.shape}, not {want.dtype} {want.shape}"
        steps = np.abs(got.astype(np.int64) - want.astype(np.int64))
        off = steps > 0
        if off.any() and (exact or steps.max() > 1 or (border["y"][off] > 1e-3).any()):
            return f"{level}: {off.sum()} of {off.size} integers are off, by {steps.max()} at most"
    return None


def main():
    kiln, kiln_rt = sys.argv[1:3]
    count, first = (int(x) for x in (sys.argv[3:] + ["150", "0"][len(sys.argv[3:]):])[:2])
    wrong = 0
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory() as folder:
            what = differs(seed, kiln, kiln_rt, folder)
        if what:
            wrong += 1
            print(f"seed {seed}: {what}")
    print(f"{count - wrong} convolutions agree, {wrong} differ")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
