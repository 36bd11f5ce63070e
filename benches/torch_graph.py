"""An ONNX graph as eager PyTorch calls: the peer that a PyTorch user has without
exporting anything. An operator, or a form of one, that is not here is refused by name;
peers.py compares results, so a wrong one is not timed.
"""
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper

TYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}


def refuse(what):
    raise NotImplementedError(f"torch_graph.py has no {what}")


def ints(x):
    return x.tolist() if isinstance(x, torch.Tensor) else list(x)


def axes_of(a, rest):
    """Axes as an attribute (older opsets) or as an input."""
    return a["axes"] if "axes" in a else ints(rest[0]) if rest and rest[0] is not None else None


def padded(x, a, value):
    """`x` with what the windows need around it (and behind it in ceil mode), which
    PyTorch's own padding may not be able to say."""
    kernel, n = a["kernel_shape"], len(a["kernel_shape"])
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        refuse(f"auto_pad {a['auto_pad']}")
    if any(d != 1 for d in a.get("dilations", [])):
        refuse("dilated pooling")
    pads, strides = list(a.get("pads", [0] * 2 * n)), a.get("strides", [1] * n)
    for i in range(n):
        over = (x.shape[2 + i] + pads[i] + pads[n + i] - kernel[i]) % strides[i]
        if a.get("ceil_mode") and over:
            pads[n + i] += strides[i] - over
    flat = [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])]
    return F.pad(x, flat, value=value) if any(flat) else x


def max_pool(a, x):
    return F.max_pool2d(padded(x, a, float("-inf")), a["kernel_shape"], a.get("strides", [1, 1]))


def average_pool(a, x):
    kernel, strides = a["kernel_shape"], a.get("strides", [1, 1])
    if a.get("ceil_mode") and a.get("count_include_pad"):
        refuse("average pooling that counts padding in ceil mode")
    total = F.avg_pool2d(padded(x, a, 0.0), kernel, strides)
    if a.get("count_include_pad") or not any(a.get("pads", [])) and not a.get("ceil_mode"):
        return total
    return total / F.avg_pool2d(padded(torch.ones_like(x[:1, :1]), a, 0.0), kernel, strides)


def conv(a, x, w, b=None):
    n = w.dim() - 2
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        refuse(f"auto_pad {a['auto_pad']}")
    pads = a.get("pads", [0] * 2 * n)
    low, high = pads[:n], pads[n:]
    if low != high:
        x, low = F.pad(x, [p for i in reversed(range(n)) for p in (low[i], high[i])]), [0] * n
    run = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[n]
    return run(x, w, b, a.get("strides", [1] * n), low, a.get("dilations", [1] * n), a.get("group", 1))


def conv_transpose(a, x, w, b=None):
    pads = a.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:] or "output_shape" in a or a.get("auto_pad", b"NOTSET") != b"NOTSET":
        refuse("such padding of ConvTranspose")
    return F.conv_transpose2d(x, w, b, a.get("strides", [1, 1]), pads[:2], a.get("output_padding", [0, 0]),
                              a.get("group", 1), a.get("dilations", [1, 1]))


def softmax(a, x, opset):
    if opset >= 13:
        return x.softmax(a.get("axis", -1))
    # Before 13: over all axes from `axis` on.
    return x.flatten(a.get("axis", 1) % x.dim()).softmax(-1).reshape(x.shape)


def resize(a, x, roi=None, scales=None, sizes=None):
    nearest = a.get("mode", b"nearest") == b"nearest"
    where, rounding = a.get("coordinate_transformation_mode"), a.get("nearest_mode", b"round_prefer_floor")
    if not nearest or where != b"asymmetric" or rounding != b"floor":
        refuse(f"Resize {a.get('mode')} {where} {rounding}")
    to = ints(sizes) if sizes is not None else [int(n * s) for n, s in zip(x.shape, ints(scales))]
    return F.interpolate(x, size=to[2:], mode="nearest")


def slices(a, x, *rest):
    starts, ends, axes, steps = (list(map(lambda v: v if v is None else ints(v), rest)) + [None, None])[:4] \
        if rest else (a["starts"], a["ends"], a.get("axes"), None)
    index = [slice(None)] * x.dim()
    for i, (begin, end) in enumerate(zip(starts, ends)):
        step = steps[i] if steps else 1
        if step < 1:
            refuse("Slice backwards")
        index[axes[i] if axes else i] = slice(begin, end, step)
    return x[tuple(index)]


def gather(a, x, index):
    axis = a.get("axis", 0) % x.dim()
    index = torch.where(index < 0, index + x.shape[axis], index)
    return x.index_select(axis, index.reshape(-1)).reshape(x.shape[:axis] + index.shape + x.shape[axis + 1:])


def reshape(a, x, to):
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(ints(to))])


def unsqueeze(a, x, *rest):
    axes = axes_of(a, rest)
    for axis in sorted(n % (x.dim() + len(axes)) for n in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(a, x, *rest):
    axes = axes_of(a, rest)
    for axis in sorted((n % x.dim() for n in axes), reverse=True) if axes is not None else ():
        x = x.squeeze(axis)
    return x.squeeze() if axes is None else x


def reduced(what):
    def run(a, x, *rest):
        axes = axes_of(a, rest)
        return what(x, list(range(x.dim())) if axes is None else axes, keepdim=bool(a.get("keepdims", 1)))
    return run


def division(a, x, y):
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


def gemm(a, x, w, c=None):
    y = a.get("alpha", 1.0) * ((x.T if a.get("transA") else x) @ (w.T if a.get("transB") else w))
    return y if c is None else y + a.get("beta", 1.0) * c


def constant(a):
    return torch.from_numpy(numpy_helper.to_array(a["value"]).copy())


def filled(a, shape):
    value = constant(a) if "value" in a else torch.zeros(1)
    return torch.full(ints(shape), value.item(), dtype=value.dtype)


def clip(a, x, low=None, high=None):
    return x.clamp(a.get("min", low), a.get("max", high))


def expand(a, x, to):
    return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(to))))


def lrn(a, x):
    return F.local_response_norm(x, a["size"], a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0))


def layer_norm(a, x, scale, bias=None):
    return F.layer_norm(x, x.shape[a.get("axis", -1) % x.dim():], scale, bias, a.get("epsilon", 1e-5))


def batch_norm(a, x, scale, bias, mean, variance):
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, a.get("epsilon", 1e-5))


OPS = {
    "Add": lambda a, x, y: x + y, "Sub": lambda a, x, y: x - y, "Mul": lambda a, x, y: x * y, "Div": division,
    "Pow": lambda a, x, y: x.pow(y), "Sqrt": lambda a, x: x.sqrt(), "Erf": lambda a, x: x.erf(), "Sum": lambda a, *x: sum(x),
    "Equal": lambda a, x, y: x == y, "Where": lambda a, c, x, y: torch.where(c, x, y), "Relu": lambda a, x: x.relu(),
    "Sigmoid": lambda a, x: x.sigmoid(), "Clip": clip, "Identity": lambda a, x: x, "Dropout": lambda a, x, *rest: x,
    "HardSigmoid": lambda a, x: (x * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0, 1),
    "MatMul": lambda a, x, y: x @ y, "Gemm": gemm, "Conv": conv, "ConvTranspose": conv_transpose, "LRN": lrn,
    "BatchNormalization": batch_norm, "LayerNormalization": layer_norm, "MaxPool": max_pool, "AveragePool": average_pool,
    "GlobalAveragePool": lambda a, x: x.mean(list(range(2, x.dim())), keepdim=True), "Resize": resize,
    "ReduceSum": reduced(torch.sum), "ReduceMean": reduced(torch.mean), "Constant": constant, "ConstantOfShape": filled,
    "Shape": lambda a, x: torch.tensor(x.shape), "Gather": gather, "Slice": slices, "Expand": expand, "Reshape": reshape,
    "Concat": lambda a, *x: torch.cat(x, a["axis"]), "Transpose": lambda a, x: x.permute(a["perm"]),
    "Unsqueeze": unsqueeze, "Squeeze": squeeze, "Cast": lambda a, x: x.to(TYPES[a["to"]]),
}


def load(path):
    """A function from inputs by name to the list of outputs."""
    model = onnx.load(path)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    fixed = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    steps = []
    for node in model.graph.node:
        if node.op_type not in OPS and node.op_type != "Softmax" or node.domain not in ("", "ai.onnx"):
            refuse(f"operator {node.op_type}")
        a = {v.name: onnx.helper.get_attribute_value(v) for v in node.attribute}
        if node.op_type == "Constant":
            fixed[node.output[0]] = constant(a)
            continue
        op = OPS.get(node.op_type, lambda a, x: softmax(a, x, opset))
        steps.append((op, a, list(node.input), node.output[0]))
    last = {name: i for i, (_, _, given, _) in enumerate(steps) for name in given}
    outputs = [o.name for o in model.graph.output]

    @torch.inference_mode()
    def run(feed):
        values = {name: torch.from_numpy(array) for name, array in feed.items()}
        for i, (op, a, given, to) in enumerate(steps):
            values[to] = op(a, *[values[n] if n in values else fixed.get(n) for n in given])
            for name in given:
                if last[name] == i and name not in outputs:
                    values.pop(name, None)
        return [(values[n] if n in values else fixed[n]).numpy() for n in outputs]

    return run
