"""Models as exporters write them: sizes computed in the graph by Shape, Gather and
Concat, functions spelled out in plain operators. As in build_models.py, each function
returns (ModelProto, [(label, inputs)]); `MODELS` names them.
"""
import numpy as np

from build_models import BOOL, F32, I64, Net


def size(net, x, axis):
    """One extent of a value, as i64[1]."""
    return net.op("Unsqueeze", net.op("Gather", net.op("Shape", x), net.const(np.int64(axis)), axis=0), net.ints(0))


def reshape(net, x, *parts):
    """To extents that are numbers or i64[1] values."""
    parts = [net.ints(p) if isinstance(p, int) else p for p in parts]
    return net.op("Reshape", x, net.op("Concat", *parts, axis=0))


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rms_norm(net, x, n):
    square = net.op("ReduceMean", net.op("Pow", x, net.const(np.float32(2))), axes=[-1], keepdims=1)
    root = net.op("Sqrt", net.op("Add", square, net.const(np.float32(1e-6))))
    return net.op("Mul", net.op("Mul", x, net.op("Div", net.const(np.float32(1)), root)), net.scale(n))


def decoder():
    """A decoder layer with a key-value cache: rotary positions, grouped queries, a
    causal mask from sizes, a gated feed-forward layer."""
    net, n, heads, groups, d, vocabulary = Net(20), 48, 6, 2, 8, 60
    x = net.op("Gather", net.weight(vocabulary, n, fan_in=1), "ids", axis=0)
    batch, length, past = size(net, "ids", 0), size(net, "ids", 1), size(net, "past_k", 2)
    total = net.op("Add", past, length)
    scalar = lambda v: net.op("Squeeze", v, net.ints(0))
    at = net.op("Range", scalar(past), scalar(total), net.const(np.int64(1)))
    rates = net.const((10000.0 ** -(np.arange(d // 2) * 2 / d)).astype(np.float32))
    angle = net.op("Mul", net.op("Unsqueeze", net.op("Cast", at, to=F32), net.ints(1)), rates)
    angle = net.op("Concat", angle, angle, axis=1)
    cos, sin = net.op("Cos", angle), net.op("Sin", angle)

    def turned(v):
        low = net.op("Slice", v, net.ints(0), net.ints(d // 2), net.ints(3))
        high = net.op("Slice", v, net.ints(d // 2), net.ints(2 ** 62), net.ints(3))
        half = net.op("Concat", net.op("Neg", high), low, axis=3)
        return net.op("Add", net.op("Mul", v, cos), net.op("Mul", half, sin))

    def split(v, count):
        return net.op("Transpose", reshape(net, v, batch, length, count, d), perm=[0, 2, 1, 3])

    h = rms_norm(net, x, n)
    q = turned(split(net.op("MatMul", h, net.weight(n, heads * d, fan_in=n)), heads))
    k = turned(split(net.op("MatMul", h, net.weight(n, groups * d, fan_in=n)), groups))
    v = split(net.op("MatMul", h, net.weight(n, groups * d, fan_in=n)), groups)
    k, v = net.op("Concat", "past_k", k, axis=2), net.op("Concat", "past_v", v, axis=2)

    def repeated(u):
        wide = net.op("Concat", batch, net.ints(groups, heads // groups), total, net.ints(d), axis=0)
        u = net.op("Expand", net.op("Unsqueeze", u, net.ints(2)), wide)
        return reshape(net, u, batch, heads, total, d)

    scores = net.op("MatMul", q, net.op("Transpose", repeated(k), perm=[0, 1, 3, 2]))
    scores = net.op("Div", scores, net.const(np.float32(d ** 0.5)))
    keys = net.op("Range", net.const(np.int64(0)), scalar(total), net.const(np.int64(1)))
    later = net.op("Greater", net.op("Unsqueeze", keys, net.ints(0)), net.op("Unsqueeze", at, net.ints(1)))
    scores = net.op("Where", later, net.const(np.float32(-3.4e38)), scores)
    out = net.op("MatMul", net.op("Softmax", scores, axis=-1), repeated(v))
    out = reshape(net, net.op("Transpose", out, perm=[0, 2, 1, 3]), batch, length, heads * d)
    x = net.op("Add", x, net.op("MatMul", out, net.weight(heads * d, n, fan_in=n)))
    h = rms_norm(net, x, n)
    gate = net.op("MatMul", h, net.weight(n, 2 * n, fan_in=n))
    gate = net.op("Mul", gate, net.op("Sigmoid", gate))
    up = net.op("Mul", gate, net.op("MatMul", h, net.weight(n, 2 * n, fan_in=n)))
    x = net.op("Add", x, net.op("MatMul", up, net.weight(2 * n, n, fan_in=2 * n)))
    logits = net.op("MatMul", rms_norm(net, x, n), net.weight(n, vocabulary, fan_in=n))
    cache = ["batch", groups, "past", d]
    longer = ["batch", groups, "total", d]
    model = net.model("decoder", [("ids", I64, ["batch", "seq"]), ("past_k", F32, cache), ("past_v", F32, cache)],
                      [("logits", logits, F32, ["batch", "seq", vocabulary]), ("k", k, F32, longer), ("v", v, F32, longer)])
    runs = []
    for b, s, p in ((1, 1, 0), (1, 7, 0), (2, 1, 9), (3, 5, 4), (1, 64, 0)):
        ids = np.random.default_rng(s).integers(0, vocabulary, (b, s)).astype(np.int64)
        runs.append((f"{b} x {s} after {p}", {"ids": ids, "past_k": normal(p, b, groups, p, d), "past_v": normal(p + 1, b, groups, p, d)}))
    return model, runs


def unet():
    """Down and up again with skips: group norms as instance norms over reshapes,
    strided and transposed convolutions, resizing to a size that is computed."""
    net, n = Net(21), 16

    def group_norm(x, n, groups=4):
        y = net.op("Reshape", x, net.ints(0, groups, -1))
        ones, zeros = net.const(np.ones(groups, np.float32)), net.const(np.zeros(groups, np.float32))
        y = net.op("Reshape", net.op("InstanceNormalization", y, ones, zeros, epsilon=1e-5), net.op("Shape", x))
        y = net.op("Mul", y, net.const(1 + 0.1 * normal(n, n, 1, 1)))
        return net.op("Add", y, net.const(0.1 * normal(n + 1, n, 1, 1)))

    def block(x, n, m, stride=1):
        x = net.op("Conv", x, net.weight(m, n, 3, 3, gain=1.4), net.bias(m), kernel_shape=[3, 3], pads=[1] * 4,
                   strides=[stride] * 2)
        x = group_norm(x, m)
        return net.op("Mul", x, net.op("Sigmoid", x))

    a = block("image", 3, n)
    b = block(a, n, 2 * n, 2)
    c = block(b, 2 * n, 4 * n, 2)
    up = net.op("ConvTranspose", c, net.weight(4 * n, 2 * n, 2, 2, fan_in=4 * n), net.bias(2 * n), kernel_shape=[2, 2], strides=[2, 2])
    up = block(net.op("Concat", up, b, axis=1), 4 * n, 2 * n)
    whole = net.op("Concat", net.op("Slice", net.op("Shape", up), net.ints(0), net.ints(2), net.ints(0)),
                   net.op("Slice", net.op("Shape", a), net.ints(2), net.ints(4), net.ints(0)), axis=0)
    up = net.op("Resize", up, "", "", whole, mode="linear", coordinate_transformation_mode="half_pixel")
    up = block(net.op("Concat", up, a, axis=1), 3 * n, n)
    out = net.op("Conv", up, net.weight(5, n, 1, 1), net.bias(5), kernel_shape=[1, 1])
    mask = net.op("ArgMax", out, axis=1, keepdims=0)
    model = net.model("unet", [("image", F32, ["batch", 3, "height", "width"])],
                      [("scores", out, F32, ["batch", 5, "height", "width"]), ("mask", mask, I64, ["batch", "height", "width"])])
    runs = [("%d x %d x %d" % s, {"image": normal(sum(s), s[0], 3, *s[1:])}) for s in ((1, 16, 16), (2, 32, 48), (3, 8, 64))]
    return model, runs


def windows():
    """Attention inside windows of an image's patches, shifted by half a window, with
    biases by relative position."""
    net, n, heads, w = Net(22), 24, 3, 4
    x = net.op("Conv", "image", net.weight(n, 3, 2, 2), net.bias(n), kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Transpose", x, perm=[0, 2, 3, 1])
    batch, height, width = (size(net, x, axis) for axis in range(3))
    rows, columns = net.op("Div", height, net.ints(w)), net.op("Div", width, net.ints(w))

    def rolled(v, by):
        for axis in (1, 2):
            ends = net.op("Slice", v, net.ints(by), net.ints(2 ** 62), net.ints(axis))
            starts = net.op("Slice", v, net.ints(0), net.ints(by), net.ints(axis))
            v = net.op("Concat", ends, starts, axis=axis)
        return v

    i = np.stack(np.meshgrid(np.arange(w), np.arange(w), indexing="ij"), -1).reshape(-1, 2)
    apart = (i[:, None] - i[None] + w - 1) @ np.array([2 * w - 1, 1])
    for shift in (0, w // 2):
        h = net.norm(x, n)
        h = rolled(h, shift) if shift else h
        h = net.op("Transpose", reshape(net, h, batch, rows, w, columns, w, n), perm=[0, 1, 3, 2, 4, 5])
        h = net.op("Reshape", h, net.ints(-1, w * w, n))
        qkv = net.op("Reshape", net.linear(h, n, 3 * n), net.ints(0, w * w, 3, heads, n // heads))
        qkv = net.op("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        q, k, v = (net.op("Gather", qkv, net.const(np.int64(part)), axis=0) for part in range(3))
        q = net.op("Mul", q, net.const(np.float32((n // heads) ** -0.5)))
        bias = net.op("Gather", net.weight((2 * w - 1) ** 2, heads, fan_in=4), net.const(apart.astype(np.int64)), axis=0)
        scores = net.op("Add", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])),
                        net.op("Transpose", bias, perm=[2, 0, 1]))
        out = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
        out = net.linear(net.op("Reshape", net.op("Transpose", out, perm=[0, 2, 1, 3]), net.ints(0, w * w, n)), n, n)
        out = net.op("Transpose", reshape(net, out, batch, rows, columns, w, w, n), perm=[0, 1, 3, 2, 4, 5])
        out = reshape(net, out, batch, height, width, n)
        # Back where it was: to the right by a shift is to the left by the rest.
        out = rolled(out, -shift) if shift else out
        x = net.op("Add", x, out)
        erf = lambda v: net.op("Erf", net.op("Div", v, net.const(np.float32(2 ** 0.5))))
        h = net.linear(net.norm(x, n), n, 2 * n)
        h = net.op("Mul", net.op("Mul", h, net.op("Add", erf(h), net.const(np.float32(1)))), net.const(np.float32(0.5)))
        x = net.op("Add", x, net.linear(h, 2 * n, n))
    y = net.linear(net.op("ReduceMean", x, axes=[1, 2], keepdims=0), n, 7)
    model = net.model("windows", [("image", F32, ["batch", 3, "height", "width"])], [("logits", y, F32, ["batch", 7])])
    runs = [("%d x %d x %d" % s, {"image": normal(sum(s), s[0], 3, *s[1:])}) for s in ((1, 8, 8), (2, 16, 24), (3, 40, 16))]
    return model, runs


def experts():
    """A layer of experts: each token goes through the two with the highest scores,
    weighted; how many tokens each expert got."""
    net, n, count = Net(23), 16, 6
    gates = net.op("MatMul", "x", net.weight(n, count, fan_in=n))
    top, which = net.op("TopK", gates, net.ints(2), outputs=2, axis=-1)
    share = net.op("Softmax", top, axis=-1)
    zeros = net.op("Mul", gates, net.const(np.float32(0)))
    weights = net.op("ScatterElements", zeros, which, share, axis=-1)
    h = net.op("Einsum", "x", net.weight(count, n, 2 * n, fan_in=n), equation="tn,enm->etm")
    h = net.op("Einsum", net.op("Relu", h), net.weight(count, 2 * n, n, fan_in=2 * n), equation="etm,emn->etn")
    y = net.op("Einsum", weights, h, equation="te,etn->tn")
    hot = net.op("OneHot", which, net.const(np.int64(count)), net.const(np.array([0, 1], np.int64)), axis=-1)
    load = net.op("ReduceSum", net.op("Reshape", hot, net.ints(-1, count)), net.ints(0), keepdims=0)
    model = net.model("experts", [("x", F32, ["tokens", n])],
                      [("y", y, F32, ["tokens", n]), ("load", load, I64, [count]), ("which", which, I64, ["tokens", 2])])
    return model, [(f"{t} tokens", {"x": normal(t, t, n)}) for t in (1, 5, 33, 128)]


def graph_net():
    """Messages along a graph's edges, summed at their ends, then a readout by graph."""
    net, n, out = Net(24), 12, 4
    source, target = (net.op("Gather", "edges", net.const(np.int64(i)), axis=0) for i in (0, 1))
    h = net.linear("nodes", 5, n)
    for _ in range(3):
        pair = net.op("Concat", net.op("Gather", h, source, axis=0), net.op("Gather", h, target, axis=0), axis=1)
        message = net.op("Relu", net.linear(pair, 2 * n, n))
        zeros = net.op("Mul", h, net.const(np.float32(0)))
        total = net.op("ScatterND", zeros, net.op("Unsqueeze", target, net.ints(1)), message, reduction="add")
        ones = net.op("Expand", net.const(np.ones((1, 1), np.float32)), net.op("Concat", size(net, target, 0), net.ints(1), axis=0))
        none = net.op("Slice", zeros, net.ints(0), net.ints(1), net.ints(1))
        degree = net.op("ScatterND", none, net.op("Unsqueeze", target, net.ints(1)), ones, reduction="add")
        mean = net.op("Div", total, net.op("Max", degree, net.const(np.float32(1))))
        h = net.norm(net.op("Add", h, net.linear(mean, n, n)), n)
    y = net.op("Softplus", net.linear(net.op("ReduceMax", h, axes=[0], keepdims=1), n, out))
    model = net.model("graph", [("nodes", F32, ["n", 5]), ("edges", I64, [2, "m"])],
                      [("y", y, F32, [1, out]), ("h", h, F32, ["n", n])])
    runs = []
    for nodes, edges in ((1, 1), (6, 14), (40, 150)):
        ends = np.random.default_rng(edges).integers(0, nodes, (2, edges)).astype(np.int64)
        runs.append((f"{nodes} nodes, {edges} edges", {"nodes": normal(nodes, nodes, 5), "edges": ends}))
    return model, runs


def positions():
    """Positions from a mask by a running sum, as one family of encoders has them, and
    pooling over what the mask keeps."""
    net, n, vocabulary, pad = Net(25), 32, 90, 1
    real = net.op("Cast", net.op("Not", net.op("Equal", "ids", net.const(np.int64(pad)))), to=I64)
    at = net.op("Mul", net.op("CumSum", real, net.const(np.int64(1))), real)
    at = net.op("Add", at, net.const(np.int64(pad)))
    x = net.op("Add", net.op("Gather", net.weight(vocabulary, n, fan_in=1), "ids", axis=0),
               net.op("Gather", net.weight(80, n, fan_in=1), at, axis=0))
    x = net.norm(x, n)
    x = net.op("Add", x, net.attention(x, n, 4))
    keep = net.op("Unsqueeze", net.op("Cast", real, to=F32), net.ints(2))
    count = net.op("Clip", net.op("ReduceSum", keep, net.ints(1), keepdims=0), net.const(np.float32(1)))
    mean = net.op("Div", net.op("ReduceSum", net.op("Mul", x, keep), net.ints(1), keepdims=0), count)
    y = net.op("Div", mean, net.op("ReduceL2", mean, axes=[1], keepdims=1))
    model = net.model("positions", [("ids", I64, ["batch", "seq"])], [("y", y, F32, ["batch", n])])
    runs = []
    for b, s in ((1, 1), (2, 9), (4, 33), (3, 64)):
        r = np.random.default_rng(s)
        ids = r.integers(2, vocabulary, (b, s)).astype(np.int64)
        for row in range(1, b):
            ids[row, int(r.integers(1, s + 1)):] = pad
        runs.append((f"{b} x {s}", {"ids": ids}))
    return model, runs


def dilated():
    """A causal stack of gated, dilated convolutions with skips, as speech synthesis
    has them, upsampled first by a transposed convolution."""
    net, n = Net(26), 16
    x = net.op("ConvTranspose", "features", net.weight(8, n, 8, fan_in=32), net.bias(n), kernel_shape=[8], strides=[4], pads=[2, 2])
    skips = []
    for layer in range(4):
        d = 2 ** layer
        h = net.op("Pad", x, net.ints(0, 0, 2 * d, 0, 0, 0))
        h = net.op("Conv", h, net.weight(2 * n, n, 3), net.bias(2 * n), kernel_shape=[3], dilations=[d])
        a, b = net.op("Split", h, net.ints(n, n), outputs=2, axis=1)
        h = net.op("Mul", net.op("Tanh", a), net.op("Sigmoid", b))
        skips.append(net.op("Conv", h, net.weight(n, n, 1), net.bias(n), kernel_shape=[1]))
        x = net.op("Add", x, net.op("Conv", h, net.weight(n, n, 1), net.bias(n), kernel_shape=[1]))
    y = net.op("LeakyRelu", net.op("Sum", *skips), alpha=0.1)
    y = net.op("Tanh", net.op("Conv", y, net.weight(1, n, 7), net.bias(1), kernel_shape=[7], pads=[3, 3]))
    model = net.model("dilated", [("features", F32, ["batch", 8, "frames"])],
                      [("sound", net.op("Squeeze", y, net.ints(1)), F32, ["batch", "samples"])])
    return model, [("%d x %d" % s, {"features": normal(s[1], s[0], 8, s[1])}) for s in ((1, 2), (1, 25), (3, 40))]


def beam():
    """Beam search over a table of transitions: the best few of beam times vocabulary
    at every step, the sequences gathered along and grown by one."""
    net, body, width, vocabulary = Net(27), Net(28), 3, 11
    logits = body.op("LogSoftmax", body.op("Gather", body.weight(vocabulary, vocabulary, fan_in=1), "last", axis=0), axis=-1)
    scores = body.op("Add", body.op("Unsqueeze", "score", body.ints(1)), logits)
    best, flat = body.op("TopK", body.op("Reshape", scores, body.ints(-1)), body.ints(width), outputs=2, axis=0)
    parent = body.op("Div", flat, body.const(np.int64(vocabulary)))
    token = body.op("Mod", flat, body.const(np.int64(vocabulary)))
    grown = body.op("Concat", body.op("Gather", "text", parent, axis=0), body.op("Unsqueeze", token, body.ints(1)), axis=1)
    go = body.op("Identity", "go")
    graph = body.graph(
        "step", [("i", I64, []), ("go", BOOL, []), ("score", F32, [width]), ("last", I64, [width]), ("text", I64, [width, "done"])],
        [("go_on", go, BOOL, []), ("score_next", best, F32, [width]), ("last_next", token, I64, [width]),
         ("text_next", grown, I64, [width, "more"])])
    start = net.const(np.array([0, -1e9, -1e9], np.float32))
    first = net.op("Expand", "first", net.ints(width))
    text = net.op("Unsqueeze", first, net.ints(1))
    score, _, text = net.op("Loop", "steps", net.const(np.bool_(True)), start, first, text, outputs=3, body=graph)
    model = net.model("beam", [("first", I64, [1]), ("steps", I64, [])],
                      [("score", score, F32, [width]), ("text", text, I64, [width, "length"])])
    runs = [(f"from {t}, {s} steps", {"first": np.array([t], np.int64), "steps": np.array(s, np.int64)})
            for t, s in ((0, 1), (4, 5), (7, 20))]
    return model, runs


MODELS = {
    "decoder": decoder, "unet": unet, "windows": windows, "experts": experts, "graph": graph_net,
    "positions": positions, "dilated": dilated, "beam": beam,
}
