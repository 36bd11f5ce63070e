"""Elementwise operators, casts, comparisons."""

import math

import numpy as np

from .core import EPS, FLOATS, INTS, NUMPY, ONNX, Retry, Val


def broadcast_shape(a, b):
    """The shape that two values broadcast to, or Retry."""
    rank = max(len(a), len(b))
    runs = len((a or b or ((1,),))[0])
    one = (1,) * runs
    a, b = (one,) * (rank - len(a)) + tuple(a), (one,) * (rank - len(b)) + tuple(b)
    out = []
    for x, y in zip(a, b):
        if x != y and x != one and y != one:
            raise Retry("these do not broadcast")
        out.append(y if x == one else x)
    return tuple(out)


def partner(g, v, dtype=None, ok=lambda w: True):
    """A value that broadcasts with v: one of the pool, or of v's shape with axes
    dropped, made 1, or put in front."""
    dtype = dtype or v.dtype
    if g.chance(0.4):
        found = []
        for w in g.visible():
            try:
                if w.dtype == dtype and ok(w):
                    broadcast_shape(v.shape, w.shape)
                    found.append(w)
            except Retry:
                pass
        if found:
            return g.choice(found)
    one = (1,) * g.runs
    shape = list(v.shape)
    if g.chance(0.3):
        shape = [one if g.chance(0.4) else d for d in shape]
    if shape and g.chance(0.3):
        shape = shape[int(g.rng.integers(len(shape))):]
    if len(shape) < 4 and g.chance(0.1):
        shape = [g.static_dim(small=True)] + shape
    if g.chance(0.1):
        shape = []
    return g.operand(dtype, shape, ok)


def monotone(f):
    return lambda v: (f(v.lo), f(v.hi))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# name -> (interval of the result, largest slope, opset). Only where the argument's
# interval suits.
SMOOTH = {
    "Tanh": (monotone(math.tanh), 1.0, 13),
    "Sigmoid": (monotone(sigmoid), 0.25, 13),
    "Erf": (monotone(math.erf), 1.13, 13),
    "Sin": (lambda v: (-1, 1), 1.0, 13),
    "Cos": (lambda v: (-1, 1), 1.0, 13),
    "Atan": (monotone(math.atan), 1.0, 13),
    "Asinh": (monotone(math.asinh), 1.0, 13),
    "Softplus": (lambda v: (0, v.mag + 1), 1.0, 13),
    "Softsign": (lambda v: (-1, 1), 1.0, 13),
    "Elu": (lambda v: (-1, max(v.hi, 0)), 1.0, 13),
    "Selu": (lambda v: (-1.76, max(1.06 * v.hi, 0)), 1.8, 13),
    "Celu": (lambda v: (-1, max(v.hi, 0)), 1.0, 13),
    "LeakyRelu": (lambda v: (-v.mag, v.mag), 1.0, 13),
    "HardSigmoid": (lambda v: (0, 1), 0.5, 13),
    "HardSwish": (lambda v: (-0.4, max(v.hi, 0.1)), 1.5, 14),
    "Mish": (lambda v: (-0.4, max(v.hi, 0.1)), 1.1, 18),
    "Gelu": (lambda v: (-0.2, max(v.hi, 0.1)), 1.2, 20),
}


def smooth(g):
    v = g.float_val(ok=lambda v: v.mag <= 16)
    op = g.choice([k for k, r in SMOOTH.items() if r[2] <= g.opset])
    if op in ("Celu", "Mish", "Erf", "Sin", "Cos", "Atan", "Asinh") and v.dtype != "f32":
        raise Retry("ONNX Runtime has these in f32 only")
    bounds, slope, _ = SMOOTH[op]
    attrs = {}
    if op in ("Elu", "LeakyRelu", "Celu") and g.chance(0.5):
        attrs["alpha"] = float(g.choice([0.125, 0.5, 1.0]))
    if op == "HardSigmoid" and g.chance(0.5):
        attrs.update(alpha=0.25, beta=float(g.choice([0.25, 0.5])))
    if op == "Gelu":
        attrs["approximate"] = g.choice(["none", "tanh"])
    lo, hi = bounds(v)
    noise = v.noise * slope + 2 * EPS[v.dtype] * max(1, abs(lo), abs(hi))
    return g.result(op, [v], v.dtype, v.shape, min(lo, hi) - 0.01, hi + 0.01, None, noise, **attrs)


def bounded(g):
    """Functions that need an interval: it is made by a clamp if there is none."""
    op = g.choice(["Exp", "Log", "Sqrt", "Reciprocal", "Asin", "Acos", "Acosh", "Sinh", "Cosh", "Atanh", "Tan"])
    v = g.float_val(dtypes=("f32", "f64") if op in ("Exp", "Log", "Sqrt", "Reciprocal") else ("f32",))
    lo, hi, slope = {
        "Exp": (-8, 3, 20), "Log": (0.25, 64, 4), "Sqrt": (0.0625, 64, 2), "Reciprocal": (0.25, 64, 16),
        "Asin": (-0.875, 0.875, 2.1), "Acos": (-0.875, 0.875, 2.1), "Acosh": (1.25, 32, 1.4),
        "Sinh": (-3, 3, 10), "Cosh": (-3, 3, 10), "Atanh": (-0.75, 0.75, 2.3), "Tan": (-1.25, 1.25, 10),
    }[op]
    if v.lo < lo or v.hi > hi:
        v = g.result("Clip", [v, g.scalar(lo, v.dtype), g.scalar(hi, v.dtype)], v.dtype, v.shape, lo, hi, None, v.noise)
    out = {
        "Exp": (0, 20.1), "Log": (-1.4, 4.2), "Sqrt": (0.2, 8.1), "Reciprocal": (0, 4.1), "Asin": (-1.6, 1.6),
        "Acos": (0, 3.2), "Acosh": (0.5, 4.2), "Sinh": (-10.1, 10.1), "Cosh": (1, 10.1), "Atanh": (-1, 1), "Tan": (-3.1, 3.1),
    }[op]
    noise = v.noise * slope + 2 * EPS[v.dtype] * max(map(abs, out))
    return g.result(op, [v], v.dtype, v.shape, *out, None, noise)


def exact_unary(g):
    v = g.pick(lambda v: v.is_float or v.dtype in ("i8", "i32", "i64"))
    op = g.choice(["Neg", "Abs", "Relu", "Identity"] + (["Sign"] if v.grid is not None else []))
    if op == "Relu" and v.dtype in ("i64",):
        raise Retry("ONNX Runtime has no such kernel")
    lo, hi = {
        "Neg": (-v.hi, -v.lo), "Abs": (0 if v.lo <= 0 <= v.hi else min(abs(v.lo), abs(v.hi)), v.mag),
        "Relu": (max(v.lo, 0), max(v.hi, 0)), "Identity": (v.lo, v.hi), "Sign": (-1, 1),
    }[op]
    if op == "Relu" and v.dtype in INTS and g.opset < 14:
        raise Retry("integers since opset 14")
    return g.result(op, [v], v.dtype, v.shape, lo, hi, v.grid, v.noise)


def steps(g):
    v = g.float_val(ok=lambda v: v.grid is not None)
    op = g.choice(["Floor", "Ceil", "Round"])
    return g.result(op, [v], v.dtype, v.shape, math.floor(v.lo), math.ceil(v.hi), 0)


def joined(a, b):
    return None if a.grid is None or b.grid is None else max(a.grid, b.grid)


def arithmetic(g):
    a = g.pick(lambda v: v.dtype in FLOATS + ("i32", "i64"))
    op = g.choice(["Add", "Sub", "Mul", "Mul", "Add"])
    b = partner(g, a)
    if g.chance(0.3):
        a, b = b, a
    ends = [a.lo * b.lo, a.lo * b.hi, a.hi * b.lo, a.hi * b.hi]
    lo, hi = {
        "Add": (a.lo + b.lo, a.hi + b.hi), "Sub": (a.lo - b.hi, a.hi - b.lo), "Mul": (min(ends), max(ends)),
    }[op]
    grid = joined(a, b)
    if op == "Mul" and grid is not None:
        grid = a.grid + b.grid
    noise = 0.0
    if a.is_float:
        noise = a.noise * b.mag + b.noise * a.mag if op == "Mul" else a.noise + b.noise
        noise += EPS[a.dtype] * max(abs(lo), abs(hi)) if grid is None else 0
    return g.result(op, [a, b], a.dtype, broadcast_shape(a.shape, b.shape), lo, hi, grid, noise)


def division(g):
    a = g.pick(lambda v: v.dtype in ("f32", "f64", "i32", "i64"))
    far = lambda v: v.lo >= 0.25 or v.hi <= -0.25  # noqa: E731
    try:
        b = partner(g, a, ok=far)
    except Retry:
        b = g.source(a.dtype, a.shape if g.chance(0.5) else (), positive=True)
    if a.is_float:
        least = min(abs(b.lo), abs(b.hi))
        mag = a.mag / least
        noise = a.noise / least + b.noise * a.mag / least**2 + EPS[a.dtype] * mag
        lo = 0 if a.lo >= 0 and b.lo > 0 else -mag
        return g.result("Div", [a, b], a.dtype, broadcast_shape(a.shape, b.shape), lo, mag, None, noise)
    if g.chance(0.5):
        return g.result("Div", [a, b], a.dtype, broadcast_shape(a.shape, b.shape), -a.mag, a.mag, 0)
    fmod = int(g.chance(0.4))
    return g.result("Mod", [a, b], a.dtype, broadcast_shape(a.shape, b.shape), -b.mag, b.mag, 0, fmod=fmod)


def power(g):
    a = g.float_val(dtypes=("f32", "f64"), ok=lambda v: v.mag <= 8)
    if g.chance(0.6):
        k = int(g.choice([2, 3]))
        dtype = g.choice([a.dtype, "i32", "i64", "f32"])
        grid = None if a.grid is None else a.grid * k
        mag = a.mag**k
        noise = a.noise * k * a.mag ** (k - 1) + 2 * EPS[a.dtype] * mag
        lo = 0 if k == 2 else -mag
        # Whether pow(x, 2) rounds is the library's affair.
        return g.result("Pow", [a, g.scalar(k, dtype)], a.dtype, a.shape, lo, mag, grid if noise == 0 else None, noise)
    b = g.operand(a.dtype, (), lambda v: v.mag <= 2)
    base = g.result("Abs", [a], a.dtype, a.shape, 0, a.mag, a.grid, a.noise)
    base = g.result("Add", [base, g.scalar(0.5, a.dtype)], a.dtype, a.shape, 0.5, a.mag + 0.5, a.grid, a.noise)
    mag = base.hi**2 if base.hi > 2 else 4.0
    noise = base.noise * 2 * mag / 0.5 + b.noise * mag * 2.2 + 4 * EPS[a.dtype] * mag
    return g.result("Pow", [base, b], a.dtype, a.shape, 0, mag, None, noise)


def extremes(g):
    a = g.pick(lambda v: v.dtype in ("f16", "f32", "f64", "i32", "i64", "u8", "i8"))
    op = g.choice(["Max", "Min"])
    vals = [a] + [partner(g, a) for _ in range(int(g.rng.integers(1, 3)))]
    shape = ()
    for v in vals:
        shape = broadcast_shape(shape, v.shape) if shape or v.shape else ()
    f = max if op == "Max" else min
    grid = None if any(v.grid is None for v in vals) else max(v.grid for v in vals)
    return g.result(op, vals, a.dtype, shape, f(v.lo for v in vals), f(v.hi for v in vals), grid, max(v.noise for v in vals))


def sums(g):
    a = g.float_val(dtypes=("f32", "f64"))
    op = g.choice(["Sum", "Mean"])
    vals = [a] + [partner(g, a) for _ in range(int(g.rng.integers(0, 3)))]
    shape = vals[0].shape
    for v in vals[1:]:
        shape = broadcast_shape(shape, v.shape) if shape or v.shape else ()
    lo, hi = sum(v.lo for v in vals), sum(v.hi for v in vals)
    grid = None if op == "Mean" or any(v.grid is None for v in vals) else max(v.grid for v in vals)
    noise = sum(v.noise for v in vals) + (EPS[a.dtype] * sum(v.mag for v in vals) if grid is None else 0)
    if op == "Mean":
        lo, hi = lo / len(vals), hi / len(vals)
    return g.result(op, vals, a.dtype, shape, lo, hi, grid, noise)


def compare(g):
    op = g.choice(["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"])
    kinds = ("f32", "f64", "i32", "i64") + (("bool",) if op == "Equal" else ())
    a = g.pick(lambda v: v.dtype in kinds and (v.grid is not None))
    b = partner(g, a, ok=lambda v: v.grid is not None)
    return g.result(op, [a, b], "bool", broadcast_shape(a.shape, b.shape), 0, 1, 0)


def logic(g):
    a = g.pick(lambda v: v.dtype == "bool")
    op = g.choice(["And", "Or", "Xor", "Not"])
    if op == "Not":
        return g.result("Not", [a], "bool", a.shape, 0, 1, 0)
    b = partner(g, a)
    return g.result(op, [a, b], "bool", broadcast_shape(a.shape, b.shape), 0, 1, 0)


def bits(g):
    if g.opset < 18:
        raise Retry("since opset 18")
    a = g.pick(lambda v: v.dtype in ("u8", "i32", "i64", "i8") and v.lo >= 0)
    op = g.choice(["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
    b = partner(g, a, ok=lambda v: v.lo >= 0)
    top = 2 ** int(max(a.hi, b.hi, 1)).bit_length() - 1
    return g.result(op, [a, b], a.dtype, broadcast_shape(a.shape, b.shape), 0, top, 0)


def where(g):
    c = g.pick(lambda v: v.dtype == "bool")
    a = partner(g, c, dtype=g.choice(["f32", "f32", "f64", "i32", "i64", "u8", "f16"]))
    whole = broadcast_shape(c.shape, a.shape) if c.shape or a.shape else ()
    b = partner(g, Val("", a.dtype, whole))
    shape = broadcast_shape(whole, b.shape) if whole or b.shape else ()
    grid = joined(a, b)
    return g.result("Where", [c, a, b], a.dtype, shape, min(a.lo, b.lo), max(a.hi, b.hi), grid, max(a.noise, b.noise))


def clip(g):
    v = g.pick(lambda v: v.dtype in FLOATS + ("i32", "i64", "u8", "i8"))
    if g.chance(0.2):
        # Both bounds are optional.
        return g.result("Clip", [v], v.dtype, v.shape, v.lo, v.hi, v.grid, v.noise)
    lo, hi = (-1, 2) if v.dtype != "u8" else (1, 5)
    grid = v.grid
    which = g.choice(["both", "low", "high"])
    low = g.scalar(lo, v.dtype) if which != "high" else None
    high = g.scalar(hi, v.dtype) if which != "low" else None
    new = (max(v.lo, lo) if low else v.lo, min(v.hi, hi) if high else v.hi)
    new = (min(new[0], hi) if high else new[0], max(new[1], lo) if low else new[1])
    return g.result("Clip", [v, low, high], v.dtype, v.shape, *new, grid, v.noise)


def cast(g):
    v = g.pick()
    to = g.choice([d for d in NUMPY if d != v.dtype])
    like = g.chance(0.15) and g.opset >= 15
    lo, hi, grid, noise = v.lo, v.hi, v.grid, v.noise
    if to == "bool":
        if v.grid is None:
            raise Retry("zero or not is a step")
        lo, hi, grid, noise = 0, 1, 0, 0
    elif to in INTS:
        if v.grid is None:
            raise Retry("rounding to integers is a step")
        i = np.iinfo(NUMPY[to])
        if lo <= i.min or hi >= i.max:
            raise Retry("what is out of range has no defined result")
        if to == "u8" and lo < 0:
            raise Retry("what is out of range has no defined result")
        lo, hi, grid = math.trunc(lo), math.trunc(hi), 0
    else:
        if max(abs(lo), abs(hi)) > (1e3 if to == "f16" else 1e6):
            raise Retry("too large")
        noise = noise + (EPS[to] * v.mag if grid is None else 0)
    if like:
        return g.result("CastLike", [v, g.source(to, ())], to, v.shape, lo, hi, grid, noise)
    return g.result("Cast", [v], to, v.shape, lo, hi, grid, noise, to=ONNX[to])


def prelu(g):
    v = g.float_val(dtypes=("f32", "f64"), rank=(1, 2, 3, 4))
    keep = int(g.rng.integers(len(v.shape)))
    slope = g.operand(v.dtype, v.shape[keep:], lambda s: s.mag <= 2)
    grid = None if joined(v, slope) is None else v.grid + slope.grid
    mag = v.mag * max(slope.mag, 1)
    noise = v.noise * max(1, slope.mag) + slope.noise * v.mag + (EPS[v.dtype] * mag if grid is None else 0)
    return g.result("PRelu", [v, slope], v.dtype, v.shape, -mag, mag, grid, noise)


OPS = [
    (smooth, 8), (bounded, 4), (exact_unary, 5), (steps, 1), (arithmetic, 14), (division, 3), (power, 2),
    (extremes, 3), (sums, 2), (compare, 3), (logic, 2), (bits, 1), (where, 4), (clip, 2), (cast, 4), (prelu, 1),
]
