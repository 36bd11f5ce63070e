"""What the kernels of `kernels.json` are given, and what they must give: NumPy alone.

`fill` draws a kernel's inputs and lays them out as the description says, `reference`
computes its result in float64, plainly, `compare` says how far a result is off.
"""
import math

import numpy as np

STORED = {"f64": np.float64, "f32": np.float32, "f16": np.float16, "bf16": np.uint16, "bool": np.uint8,
          "f8e4m3fn": np.uint8, "f8e5m2": np.uint8, "i8": np.int8, "u8": np.uint8, "i32": np.int32, "i64": np.int64}
FLOATS = ("f64", "f32", "f16", "bf16", "f8e4m3fn", "f8e5m2")
# Bits of exponent and of mantissa, and the largest number's bits.
EIGHTS = {"f8e4m3fn": (4, 3, 0x7E), "f8e5m2": (5, 2, 0x7B)}
# ‖out − ref‖ / ‖ref‖ by the least precise type that a kernel touches; how tensor cores add
# what they multiply of f32 and of f8 is not documented.
BOUNDS = {"f64": 1e-12, "f32": 1e-5, "f16": 1e-2, "bf16": 1e-2, **dict.fromkeys(EIGHTS, 1e-3)}
TF32_BOUND = 1e-4


def eights(dtype):
    """The numbers of a float of eight bits from 0 up, each at its bits."""
    exponent, mantissa, last = EIGHTS[dtype]
    bits = np.arange(last + 1)
    e, m = bits >> mantissa, bits & ((1 << mantissa) - 1)
    bias = (1 << (exponent - 1)) - 1
    small = m * 2.0 ** (1 - bias - mantissa)
    return np.where(e == 0, small, (1 + m / (1 << mantissa)) * 2.0 ** (e - bias))


def stored(dtype, values):
    """Values as they lie in memory; bf16 as its bits, rounded to nearest, ties to even; f8 as
    its bits, rounded to nearest."""
    if dtype in EIGHTS:
        steps = eights(dtype)
        at = np.searchsorted((steps[1:] + steps[:-1]) / 2, np.abs(values))
        return (at + 0x80 * np.signbit(values)).astype(np.uint8)
    if dtype != "bf16":
        return np.asarray(values).astype(STORED[dtype])
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    nan = np.isnan(np.asarray(values, np.float32))
    return np.where(nan, 0x7FC0, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def numbers(dtype, raw):
    """The float64 values of what lies in memory."""
    if dtype in EIGHTS:
        steps, size = eights(dtype), raw & 0x7F
        known = np.where(size < steps.size, steps[np.minimum(size, steps.size - 1)], np.nan)
        return np.where(raw & 0x80, -known, known)
    if dtype == "bf16":
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.astype(np.float64)


def tf32(values):
    """f32 rounded to ten bits of mantissa, halves away from zero."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def draw(buffer, op, rng):
    """The stored elements of a buffer, by its shape."""
    shape, dtype, mask = buffer["shape"], buffer["dtype"], op.get("mask")
    if buffer["role"] == "mask" and mask == "Padding":
        return stored(dtype, np.where(rng.random(shape) < 0.3, np.finfo(np.float32).min, 0))
    if buffer["role"] == "mask" and mask == "Keep":
        seen = rng.random(shape) < 0.5
        seen[3::5] = False  # Queries that see nothing.
        return stored(dtype, seen)
    if dtype in FLOATS:
        values = rng.uniform(-2, 2, shape)
        return stored(dtype, tf32(values) if op.get("tf32") and buffer["role"] in ("a", "b") else values)
    if buffer["role"] == "ids":  # Of 40 rows, counted from either end.
        return stored(dtype, rng.integers(-40, 40, shape))
    low, high = {"i8": (-128, 128), "u8": (0, 256), "bool": (0, 2)}.get(dtype, (-1000, 1000))
    return stored(dtype, rng.integers(low, high, shape))


def panels(x, nr, group):
    """`[.., k, n]` as panels `[.., n/nr, k/group, nr, group]`, padded with zeros."""
    *batch, k, n = x.shape
    k_all, n_all = -(-k // group) * group, -(-n // nr) * nr
    x = np.pad(x, [(0, 0)] * len(batch) + [(0, k_all - k), (0, n_all - n)])
    x = x.reshape(*batch, k_all // group, group, n_all // nr, nr)
    at = len(batch)
    return x.transpose(*range(at), at + 2, at, at + 3, at + 1).ravel()


def in_runs(w, run, pad):
    """Filters `[taps, depth, f]` as `[taps/run, run·depth to a multiple of pad, f]`."""
    taps, depth, filters = w.shape
    w = w.reshape(taps // run, run * depth, filters)
    return np.pad(w, [(0, 0), (0, -(run * depth) % pad), (0, 0)])


def lay(buffer, raw):
    """Stored elements in memory order."""
    (kind, how), = buffer["layout"].items()
    if kind == "strides":
        flat = np.zeros(buffer["elements"], raw.dtype)
        strided(buffer, flat)[...] = raw
        return flat
    if kind == "panels":
        return panels(raw, how["nr"], how["group"])
    w = in_runs(raw, how["run"], how["pad"])
    if kind == "depthwise":
        rows, run, channels = w.shape
        return w.reshape(rows, run // how["pad"], how["pad"], channels).transpose(0, 1, 3, 2).ravel()
    parts = np.split(w.reshape(-1, w.shape[2]), how["groups"], axis=1)
    return np.concatenate([panels(part, how["nr"], how["pad"]) for part in parts])


def strided(buffer, flat):
    """A buffer's elements by its shape, as a view."""
    steps = [s * flat.itemsize for s in buffer["layout"]["strides"]]
    return np.lib.stride_tricks.as_strided(flat, buffer["shape"], steps)


def poison(buffer):
    """What a result holds before: NaN, or integers that are no result."""
    dtype = STORED[buffer["dtype"]]
    byte = 0xFF if buffer["dtype"] in FLOATS else 0xA5
    return np.full(buffer["elements"] * np.dtype(dtype).itemsize, byte, np.uint8).view(dtype)


def fill(kernel, seed):
    """Each buffer in memory order, the result poisoned; and the inputs' values by role."""
    rng = np.random.default_rng([seed, *kernel["name"].encode()])
    memory, values = [], {}
    for buffer in kernel["buffers"]:
        if buffer["role"] == "out":
            memory.append(poison(buffer))
            continue
        raw = draw(buffer, kernel["op"], rng)
        values[buffer["role"]] = numbers(buffer["dtype"], raw)
        memory.append(lay(buffer, raw))
        if memory[-1].size != buffer["elements"]:
            raise ValueError(f"{buffer['role']} has {memory[-1].size} elements, not {buffer['elements']}")
    return memory, values


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def matmul(op, v, _):
    x = v["a"] @ v["b"]
    if "scale" in v:
        x = x * v["scale"]
    x = x + v.get("bias", 0)
    if op["epilogue"] == "BiasRelu":
        return np.maximum(x, 0)
    if op["epilogue"] == "BiasGelu":
        return gelu(x)
    return np.tanh(x) + v["residual"] if op["epilogue"] == "BiasTanhResidual" else x


def block_weight(op, v, dtype, k):
    """What quantized blocks mean, `[n, k]`, as the kernel multiplies it."""
    q, bits = v["q"].astype(np.uint8), op["bits"]
    parts = [(q >> (bits * i)) & ((1 << bits) - 1) for i in range(8 // bits)]
    q = np.stack(parts, -1).reshape(len(q), -1)[:, :k].astype(np.float64)
    repeat = lambda x: np.repeat(x, op["block"], 1)[:, :k]
    zeros = v["z"].astype(np.uint8) & ((1 << bits) - 1) if "z" in v else np.full(v["s"].shape, 1 << (bits - 1))
    w = ((q - repeat(zeros)) * repeat(v["s"])).astype(np.float32)
    return numbers(dtype, stored(dtype, w))


def block_matmul(op, v, out):
    return v["a"] @ block_weight(op, v, out["dtype"], v["a"].shape[1]).T + v["bias"]


def shown(op, v, queries, keys):
    """What is added to scores: −inf where a key is hidden."""
    i, j = np.arange(queries)[:, None] + keys - queries, np.arange(keys)[None]
    if op["mask"] in ("Causal", "Window"):
        seen = j <= i
        if op["mask"] == "Window":
            seen &= j > i - op["window"]
        return np.where(seen, 0, -np.inf)
    if op["mask"] == "Keep":
        return np.where(v["mask"] != 0, 0, -np.inf)
    if op["mask"] == "Padding":
        return v["mask"][:, None, None, :]
    return v.get("mask", 0)


def attention(op, v, _):
    k, v_all = (np.repeat(v[role], op["group"], axis=1) for role in "kv")
    scores = v["q"] @ k.swapaxes(2, 3) * op["scale"] + shown(op, v, v["q"].shape[2], k.shape[2])
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = weights.sum(-1, keepdims=True)
    return weights @ v_all / np.where(total == 0, 1, total)


def conv(op, v, out):
    x, w, p, groups = v["x"], v["w"], op["pad"], op["groups"]
    around = v["around"][0] if "around" in v else 0
    x = np.pad(x, [(0, 0), (p, p), (p, p), (0, 0)], constant_values=around)
    _, rows, columns, filters = out["shape"]
    sums = np.zeros(out["shape"])
    depth, m = w.shape[1], filters // groups
    for tap in range(w.shape[0]):
        y, x0 = (t * op["dilation"] for t in divmod(tap, op["kernel"]))
        end = lambda first, count: first + (count - 1) * op["stride"] + 1
        part = x[:, y:end(y, rows):op["stride"], x0:end(x0, columns):op["stride"]]
        for g in range(groups):
            sums[..., g * m:(g + 1) * m] += part[..., g * depth:(g + 1) * depth] @ w[tap, :, g * m:(g + 1) * m]
    return np.maximum(sums + v["bias"], 0) if "bias" in v else sums


def softmax(_, v, __):
    e = np.exp(v["x"] - v["x"].max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(op, v, _):
    x = v["x"] - v["x"].mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + op["epsilon"]) * v["gamma"] + v["beta"]


def rms_norm(op, v, _):
    return v["x"] / np.sqrt((v["x"] ** 2).mean(-1, keepdims=True) + op["epsilon"]) * v["gamma"]


def add(_, v, out):
    x = v["x"] + v["y"]
    return (x + 128) % 256 - 128 if out["dtype"] == "i8" else x


def scatter_rows(_, v, out):
    y = strided(out, poison(out)).astype(np.int64)
    np.add.at(y, v["ids"].astype(np.int64), v["x"].astype(np.int64))
    return y


def select(op, v, _):
    """Indices of the best along axis 1, the lower one first among equals."""
    x = -v["x"] if op["largest"] else v["x"]
    return np.argsort(x, axis=1, kind="stable")[:, :op["k"]]


REFERENCES = {
    "matmul": matmul, "block_matmul": block_matmul, "attention": attention, "conv": conv, "softmax": softmax, "layer_norm": layer_norm,
    "rms_norm": rms_norm, "add": add,
    "scatter_rows": scatter_rows, "select": select,
    "gelu": lambda op, v, out: gelu(v["x"]),
    "copy": lambda op, v, out: v["x"],
    "transpose": lambda op, v, out: v["x"],
    "quantize": lambda op, v, out: np.clip(np.rint(v["x"] * 64), -128, 127),
    "arg_max": lambda op, v, out: v["x"].argmax(1),
    "cumulate": lambda op, v, out: v["x"].cumsum(1),
    "sum_rows": lambda op, v, out: v["x"].sum(1),
    "sum_columns": lambda op, v, out: v["x"].sum(0),
}


def result_of(kernel):
    return next(b for b in kernel["buffers"] if b["role"] == "out")


def reference(kernel, values):
    """The result in float64, by its shape."""
    return REFERENCES[kernel["op"]["kind"]](kernel["op"], values, result_of(kernel))


def bound(kernel):
    """How far a result may be off; 0: its integers are equal."""
    if result_of(kernel)["dtype"] not in FLOATS:
        return 0.0
    least = TF32_BOUND if kernel["op"].get("tf32") else 0
    return max(least, *(BOUNDS.get(b["dtype"], 1e-5) for b in kernel["buffers"]))


def compare(kernel, raw, want):
    """How far a result in memory is off, and what is wrong with it or None."""
    buffer = result_of(kernel)
    got, most = numbers(buffer["dtype"], strided(buffer, raw)), bound(kernel)
    if most == 0:
        wrong = int((got != want).sum())
        return float(wrong), f"{wrong} of {got.size} integers differ" if wrong else None
    if not np.isfinite(got).all():
        return math.inf, f"{int((~np.isfinite(got)).sum())} of {got.size} results are not finite"
    off = float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-300))
    worst = float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-300))
    if off > most or worst > 100 * most:
        return off, f"off by {off:.1e} (at most {most:.0e}), an element by {worst:.1e} of the largest"
    return off, None
