"""Models of the structures that real ones have, built with seeded weights.

    build_models.py NAME OUT.onnx

Each function below returns a model with symbolic sizes and the inputs to try it
with: (ModelProto, [(label, {name: array})]). `MODELS` names them.
"""
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F32, I64, I32, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL


class Net:
    """A graph under construction: nodes in order, weights by name."""

    def __init__(self, seed):
        self.rng, self.seed = np.random.default_rng(seed), seed
        self.nodes, self.weights, self.count = [], [], 0

    def name(self, stem):
        self.count += 1
        # Inner graphs see the outer one's names: the seed keeps them apart.
        return f"{stem}_{self.seed}_{self.count}"

    def const(self, array, stem="c"):
        name = self.name(stem)
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape, fan_in=None, gain=1.0):
        """Normal weights whose products keep their inputs' scale."""
        fan_in = fan_in or int(np.prod(shape[1:])) or 1
        values = self.rng.standard_normal(shape) * gain / np.sqrt(fan_in)
        return self.const(values.astype(np.float32), "w")

    def bias(self, n):
        return self.const((self.rng.standard_normal(n) * 0.1).astype(np.float32), "b")

    def scale(self, n):
        return self.const((1 + self.rng.standard_normal(n) * 0.1).astype(np.float32), "g")

    def op(self, kind, *inputs, outputs=1, **attributes):
        names = [self.name(kind.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names[0] if outputs == 1 else names

    def ints(self, *values):
        return self.const(np.array(values, np.int64))

    def linear(self, x, n, m):
        return self.op("Add", self.op("MatMul", x, self.weight(n, m, fan_in=n)), self.bias(m))

    def norm(self, x, n):
        return self.op("LayerNormalization", x, self.scale(n), self.bias(n), axis=-1, epsilon=1e-5)

    def batch_norm(self, x, n):
        mean = self.const((self.rng.standard_normal(n) * 0.1).astype(np.float32))
        variance = self.const((0.5 + self.rng.random(n)).astype(np.float32))
        return self.op("BatchNormalization", x, self.scale(n), self.bias(n), mean, variance)

    def attention(self, x, n, heads):
        """Self-attention over [batch, length, n], in plain operators."""
        split = self.ints(0, 0, heads, n // heads)
        turn = lambda v, perm: self.op("Transpose", self.op("Reshape", v, split), perm=perm)
        q = turn(self.linear(x, n, n), [0, 2, 1, 3])
        k = turn(self.linear(x, n, n), [0, 2, 3, 1])
        v = turn(self.linear(x, n, n), [0, 2, 1, 3])
        scale = self.const(np.float32((n // heads) ** -0.5))
        scores = self.op("Softmax", self.op("Mul", self.op("MatMul", q, k), scale), axis=-1)
        out = self.op("Transpose", self.op("MatMul", scores, v), perm=[0, 2, 1, 3])
        return self.linear(self.op("Reshape", out, self.ints(0, 0, n)), n, n)

    def graph(self, name, inputs, outputs):
        """The graph; ports are (name, element type, sizes)."""
        renamed = [helper.make_node("Identity", [v], [n]) for n, v, *_ in outputs]
        return helper.make_graph(
            self.nodes + renamed, name,
            [helper.make_tensor_value_info(*port) for port in inputs],
            [helper.make_tensor_value_info(n, *port) for n, _, *port in outputs],
            self.weights)

    def model(self, name, inputs, outputs, opset=17):
        model = helper.make_model(self.graph(name, inputs, outputs), ir_version=8,
                                  opset_imports=[helper.make_opsetid("", opset)])
        onnx.checker.check_model(model)
        return model


def tokens(seed, batch, length, vocabulary):
    r = np.random.default_rng(seed)
    lengths = r.integers(1, length + 1, batch).astype(np.int32)
    lengths[0] = length
    return {"ids": r.integers(0, vocabulary, (batch, length)).astype(np.int64), "lengths": lengths}


TEXTS = [(1, 1), (1, 9), (2, 5), (3, 32), (8, 17)]


def recurrent(net, kind, x, n, hidden, lengths):
    """A bidirectional layer over [length, batch, n] that gives [length, batch, 2·hidden]."""
    gates = {"LSTM": 4, "GRU": 3}[kind]
    w = net.weight(2, gates * hidden, n, fan_in=n)
    r = net.weight(2, gates * hidden, hidden, fan_in=hidden)
    b = net.const((net.rng.standard_normal((2, 2 * gates * hidden)) * 0.1).astype(np.float32))
    extra = {"linear_before_reset": 1} if kind == "GRU" else {}
    outputs = {"LSTM": 3, "GRU": 2}[kind]
    y = net.op(kind, x, w, r, b, lengths, outputs=outputs, hidden_size=hidden, direction="bidirectional", **extra)[0]
    return net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, 2 * hidden))


def tagger(kind, layers, seed):
    """A tag for every token: embedding, recurrent layers, a linear one."""
    net, vocabulary, n, hidden, tags = Net(seed), 500, 48, 40, 9
    x = net.op("Gather", net.weight(vocabulary, n, fan_in=1), "ids", axis=0)
    x = net.op("Transpose", x, perm=[1, 0, 2])
    for layer in range(layers):
        x = recurrent(net, kind, x, n if layer == 0 else 2 * hidden, hidden, "lengths")
    logits = net.linear(net.op("Transpose", x, perm=[1, 0, 2]), 2 * hidden, tags)
    best = net.op("ArgMax", logits, axis=-1, keepdims=0)
    model = net.model(kind.lower(), [("ids", I64, ["batch", "seq"]), ("lengths", I32, ["batch"])],
                      [("logits", logits, F32, ["batch", "seq", tags]), ("tags", best, I64, ["batch", "seq"])])
    return model, [("%d x %d" % s, tokens(sum(s), *s, vocabulary)) for s in TEXTS]


def lstm():
    return tagger("LSTM", 2, 1)


def gru():
    return tagger("GRU", 1, 2)


def branches():
    """An early exit: rows that are sure go by the short way, else by the long one."""
    net, n, classes = Net(3), 32, 10
    early = net.linear("x", n, classes)
    sure = net.op("ReduceMin", net.op("ReduceMax", net.op("Softmax", early, axis=-1), axes=[1], keepdims=0),
                  keepdims=0)
    cond = net.op("Greater", sure, "threshold")
    short, long = Net(4), Net(5)
    out = short.op("Softmax", early, axis=-1)
    then = short.graph("short", [], [("short_out", out, F32, ["batch", classes])])
    h = "x"
    for _ in range(3):
        h = long.op("Add", h, long.op("Relu", long.linear(h, n, n)))
    out = long.op("Softmax", long.op("Add", long.linear(h, n, classes), early), axis=-1)
    other = long.graph("long", [], [("long_out", out, F32, ["batch", classes])])
    p = net.op("If", cond, then_branch=then, else_branch=other)
    model = net.model("early_exit", [("x", F32, ["batch", n]), ("threshold", F32, [])],
                      [("p", p, F32, ["batch", classes]), ("sure", sure, F32, [])])
    runs = []
    for batch in (1, 2, 7):
        x = np.random.default_rng(batch).standard_normal((batch, n)).astype(np.float32)
        for t in (0.01, 0.99):
            runs.append((f"{batch} above {t}", {"x": x, "threshold": np.array(t, np.float32)}))
    return model, runs


def loop():
    """Greedy decoding by a small recurrent network until every row has ended: the
    tokens of each step, and how many steps there were."""
    net, body, n, vocabulary, end = Net(6), Net(7), 24, 12, 0
    x = body.op("Gather", body.weight(vocabulary, n, fan_in=1), "token", axis=0)
    state = body.op("Tanh", body.op("Add", body.linear("state", n, n), body.linear(x, n, n)))
    logits = body.linear(state, n, vocabulary)
    token = body.op("ArgMax", logits, axis=-1, keepdims=0)
    ended = body.op("Or", "ended", body.op("Equal", token, body.const(np.int64(end))))
    kept = body.op("Where", ended, body.const(np.int64(end)), token)
    left = body.op("Cast", body.op("ReduceMin", body.op("Cast", ended, to=I64), keepdims=0), to=BOOL)
    go_on = body.op("Not", left)
    graph = body.graph(
        "step", [("i", I64, []), ("go", BOOL, []), ("state", F32, ["batch", n]), ("token", I64, ["batch"]),
                 ("ended", BOOL, ["batch"])],
        [("go_on", go_on, BOOL, []), ("state_next", state, F32, ["batch", n]), ("token_next", kept, I64, ["batch"]),
         ("ended_next", ended, BOOL, ["batch"]), ("token_out", kept, I64, ["batch"])])
    batch = net.op("Shape", "context", start=0, end=1)
    first = net.op("Expand", net.const(np.int64(1)), batch)
    none = net.op("Cast", net.op("Expand", net.const(np.int64(0)), batch), to=BOOL)
    state = net.op("Tanh", net.linear("context", n, n))
    outs = net.op("Loop", "limit", net.const(np.bool_(True)), state, first, none, outputs=4, body=graph)
    model = net.model("greedy", [("context", F32, ["batch", n]), ("limit", I64, [])],
                      [("tokens", outs[3], I64, ["steps", "batch"]), ("state", outs[0], F32, ["batch", n]),
                       ("ended", outs[2], BOOL, ["batch"])])
    runs = []
    for batch, limit in ((1, 1), (1, 40), (2, 40), (5, 16)):
        x = np.random.default_rng(batch).standard_normal((batch, n)).astype(np.float32) * 2
        runs.append((f"{batch}, at most {limit}", {"context": x, "limit": np.array(limit, np.int64)}))
    return model, runs


def scan():
    """A linear state-space layer: a state for each channel, carried along the length."""
    net, body, n, states = Net(8), Net(9), 16, 8
    decay = body.const(np.exp(-np.linspace(0.01, 2, n * states)).reshape(n, states).astype(np.float32))
    drive = body.op("Unsqueeze", "u", body.ints(2))
    h = body.op("Add", body.op("Mul", "h", decay), body.op("Mul", drive, body.weight(n, states, fan_in=1)))
    y = body.op("ReduceSum", body.op("Mul", h, body.weight(n, states, fan_in=states)), body.ints(2), keepdims=0)
    graph = body.graph("step", [("h", F32, ["batch", n, states]), ("u", F32, ["batch", n])],
                       [("h_next", h, F32, ["batch", n, states]), ("y", y, F32, ["batch", n])])
    x = net.op("Transpose", net.norm(net.linear("x", n, n), n), perm=[1, 0, 2])
    sizes = net.op("Concat", net.op("Shape", "x", start=0, end=1), net.ints(n, states), axis=0)
    zero = net.op("ConstantOfShape", sizes, value=numpy_helper.from_array(np.zeros(1, np.float32)))
    h, y = net.op("Scan", zero, x, outputs=2, body=graph, num_scan_inputs=1)
    y = net.op("Mul", net.op("Transpose", y, perm=[1, 0, 2]), net.op("Sigmoid", net.linear("x", n, n)))
    model = net.model("state_space", [("x", F32, ["batch", "seq", n])],
                      [("y", y, F32, ["batch", "seq", n]), ("h", h, F32, ["batch", n, states])])
    runs = [("%d x %d" % s, {"x": np.random.default_rng(s[1]).standard_normal((*s, n)).astype(np.float32)})
            for s in ((1, 1), (1, 33), (4, 16), (3, 100))]
    return model, runs


def speech():
    """A speech encoder: strided Conv1d, then blocks of attention, a gated depthwise
    convolution and a feed-forward layer."""
    net, mels, n = Net(10), 40, 64

    def gated(x, channels):
        a, b = net.op("Split", x, net.ints(channels, channels), outputs=2, axis=1)
        return net.op("Mul", a, net.op("Sigmoid", b))

    def conv(x, n, m, k, **attributes):
        group = attributes.get("group", 1)
        w = net.weight(m, n // group, k)
        return net.op("Conv", x, w, net.bias(m), kernel_shape=[k], **attributes)

    x = gated(conv("mel", mels, 2 * n, 3, pads=[1, 1], strides=[2]), n)
    x = gated(conv(x, n, 2 * n, 3, pads=[1, 1], strides=[2]), n)
    x = net.op("Transpose", x, perm=[0, 2, 1])
    for _ in range(2):
        x = net.op("Add", x, net.attention(net.norm(x, n), n, 4))
        h = gated(conv(net.op("Transpose", net.norm(x, n), perm=[0, 2, 1]), n, 2 * n, 1), n)
        h = net.batch_norm(conv(h, n, n, 9, pads=[4, 4], group=n), n)
        h = conv(net.op("Mul", h, net.op("Sigmoid", h)), n, n, 1)
        x = net.op("Add", x, net.op("Transpose", h, perm=[0, 2, 1]))
        h = net.linear(net.norm(x, n), n, 4 * n)
        h = net.linear(net.op("Mul", h, net.op("Sigmoid", h)), 4 * n, n)
        x = net.op("Add", x, h)
    x = net.op("LogSoftmax", net.linear(net.norm(x, n), n, 30), axis=-1)
    model = net.model("speech", [("mel", F32, ["batch", mels, "frames"])], [("logits", x, F32, ["batch", "out", 30])])
    runs = [("%d x %d" % (b, f), {"mel": np.random.default_rng(f).standard_normal((b, mels, f)).astype(np.float32)})
            for b, f in ((1, 4), (1, 37), (2, 100), (4, 64), (1, 300))]
    return model, runs


def mel_filters(bands, bins, rate):
    """Triangular filters, equally spaced on the mel scale, over [bins, bands]."""
    mel = lambda f: 2595 * np.log10(1 + f / 700)
    points = 700 * (10 ** (np.linspace(0, mel(rate / 2), bands + 2) / 2595) - 1)
    f = np.linspace(0, rate / 2, bins)[:, None]
    low, mid, high = points[:-2], points[1:-1], points[2:]
    return np.maximum(0, np.minimum((f - low) / (mid - low), (high - f) / (high - mid))).astype(np.float32)


def spectrogram():
    """Sound to log-mel features: STFT with a Hann window, power, mel bands, log."""
    net, frame, step, bands = Net(11), 128, 64, 20
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / frame)).astype(np.float32)
    x = net.op("Unsqueeze", "sound", net.ints(2))
    s = net.op("STFT", x, net.const(np.int64(step)), net.const(window), net.const(np.int64(frame)), onesided=1)
    power = net.op("ReduceSumSquare", s, axes=[3], keepdims=0)
    mel = net.op("MatMul", power, net.const(mel_filters(bands, frame // 2 + 1, 16000)))
    log = net.op("Log", net.op("Max", mel, net.const(np.float32(1e-6))))
    mean = net.op("ReduceMean", log, axes=[1], keepdims=1)
    model = net.model("spectrogram", [("sound", F32, ["batch", "samples"])],
                      [("mel", net.op("Sub", log, mean), F32, ["batch", "frames", bands])])
    runs = [("%d x %d" % s, {"sound": np.random.default_rng(s[1]).standard_normal(s).astype(np.float32)})
            for s in ((1, 192), (1, 1000), (2, 4096), (3, 1601))]
    return model, runs


def detection():
    """What follows a detector: boxes from offsets, suppression, the best few."""
    net, classes, most = Net(12), 3, 20
    centre, size = net.op("Split", "offsets", net.ints(2, 2), outputs=2, axis=2)
    anchor_centre, anchor_size = net.op("Split", "anchors", net.ints(2, 2), outputs=2, axis=1)
    centre = net.op("Add", net.op("Mul", centre, anchor_size), anchor_centre)
    half = net.op("Mul", net.op("Mul", net.op("Exp", size), anchor_size), net.const(np.float32(0.5)))
    boxes = net.op("Concat", net.op("Sub", centre, half), net.op("Add", centre, half), axis=2)
    scores = net.op("Sigmoid", net.op("Transpose", "logits", perm=[0, 2, 1]))
    chosen = net.op("NonMaxSuppression", boxes, scores, net.ints(15), net.const(np.array([0.4], np.float32)),
                    net.const(np.array([0.3], np.float32)))
    image, label, box = (net.op("Squeeze", v, net.ints(1)) for v in
                         net.op("Split", chosen, net.ints(1, 1, 1), outputs=3, axis=1))
    picked = net.op("GatherND", scores, chosen)
    place = net.op("Concat", net.op("Unsqueeze", image, net.ints(1)), net.op("Unsqueeze", box, net.ints(1)), axis=1)
    corners = net.op("GatherND", boxes, place)
    count = net.op("Shape", picked)
    k = net.op("Min", count, net.ints(most))
    best, order = net.op("TopK", picked, k, outputs=2, axis=0)
    take = lambda v: net.op("Gather", v, order, axis=0)
    model = net.model(
        "detection", [("offsets", F32, ["images", "n", 4]), ("anchors", F32, ["n", 4]),
                      ("logits", F32, ["images", "n", classes])],
        [("scores", best, F32, ["k"]), ("boxes", take(corners), F32, ["k", 4]), ("labels", take(label), I64, ["k"]),
         ("images_of", take(image), I64, ["k"])])
    runs = []
    for images, n in ((1, 12), (1, 100), (2, 60)):
        r = np.random.default_rng(n)
        anchors = np.concatenate([r.random((n, 2)), 0.1 + 0.2 * r.random((n, 2))], 1).astype(np.float32)
        runs.append((f"{images} x {n}", {
            "offsets": (r.standard_normal((images, n, 4)) * 0.2).astype(np.float32), "anchors": anchors,
            "logits": (r.standard_normal((images, n, classes)) * 2 - 1).astype(np.float32)}))
    return model, runs


IMAGES = [(1, 32, 32), (2, 48, 64), (5, 33, 47)]


def images(shapes, name="image"):
    return [("%d x %d x %d" % s, {name: np.random.default_rng(sum(s)).standard_normal((s[0], 3, *s[1:])).astype(np.float32)})
            for s in shapes]


def convolutions(net, x, widths, classes, squeeze):
    """Inverted residual blocks: expand, depthwise, optionally squeeze and excite,
    project; batch norms as an exporter leaves them."""

    def conv(x, n, m, k=1, stride=1, group=1):
        pads = [k // 2] * 4
        x = net.op("Conv", x, net.weight(m, n // group, k, k, gain=1.4), kernel_shape=[k, k], strides=[stride] * 2,
                   pads=pads, group=group)
        return net.batch_norm(x, m)

    act = (lambda v: net.op("HardSwish", v)) if squeeze else (lambda v: net.op("Relu", v))
    x = act(conv(x, 3, widths[0], 3, 2))
    for n, m in zip(widths, widths[1:]):
        stride, wide = (1 if n == m else 2), 3 * n
        h = act(conv(x, n, wide))
        h = act(conv(h, wide, wide, 3, stride, group=wide))
        if squeeze:
            s = net.op("GlobalAveragePool", h)
            s = net.op("Relu", net.op("Conv", s, net.weight(n, wide, 1, 1), net.bias(n)))
            s = net.op("HardSigmoid", net.op("Conv", s, net.weight(wide, n, 1, 1), net.bias(wide)), alpha=1 / 6, beta=0.5)
            h = net.op("Mul", h, s)
        h = conv(h, wide, m)
        x = net.op("Add", x, h) if n == m else h
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.op("Gemm", x, net.weight(classes, widths[-1]), net.bias(classes), transB=1)


def cnn():
    net = Net(13)
    y = convolutions(net, "image", [16, 16, 24, 24, 40], 20, True)
    model = net.model("cnn", [("image", F32, ["batch", 3, "height", "width"])], [("logits", y, F32, ["batch", 20])])
    return model, images(IMAGES)


def cnn_for_int8():
    net = Net(14)
    y = convolutions(net, "image", [16, 16, 24, 24], 10, False)
    model = net.model("cnn8", [("image", F32, ["batch", 3, "height", "width"])], [("logits", y, F32, ["batch", 10])])
    return model, images(IMAGES)


def mobile():
    """MobileNetV2's layers: inverted residuals, 3x3 filters of one channel each."""
    net, c = Net(15), 32

    def conv(x, n, m, k=1, stride=1, group=1, act=True):
        w = net.weight(m, n // group, k, k, fan_in=n // group * k * k, gain=np.sqrt(2.0) if act else 1.0)
        x = net.op("Conv", x, w, net.bias(m), kernel_shape=[k, k], strides=[stride] * 2,
                   pads=[k // 2] * 4, group=group)
        return net.op("Clip", x, net.const(np.float32(0)), net.const(np.float32(6))) if act else x

    x = conv("image", 3, c, 3, 2)
    for expand, m, count, stride in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
                                     (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
        for i in range(count):
            step, wide = stride if i == 0 else 1, c * expand
            y = x if expand == 1 else conv(x, c, wide)
            y = conv(y, wide, wide, 3, step, wide)
            y = conv(y, wide, m, act=False)
            x = net.op("Add", x, y) if step == 1 and c == m else y
            c = m
    x = conv(x, c, 1280)
    x = net.op("GlobalAveragePool", x)
    x = net.op("Flatten", x)
    x = net.linear(x, 1280, 1000)
    image = ("image", F32, ["batch", 3, 224, 224])
    return net.model("mobile", [image], [("logits", x, F32, ["batch", 1000])])


MODELS = {
    "lstm": lstm, "gru": gru, "if": branches, "loop": loop, "scan": scan, "speech": speech,
    "spectrogram": spectrogram, "detection": detection, "cnn": cnn,
}


if __name__ == "__main__":
    onnx.save({**MODELS, "cnn-for-int8": cnn_for_int8}[sys.argv[1]]()[0], sys.argv[2])
