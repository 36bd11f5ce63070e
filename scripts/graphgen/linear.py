"""Reductions, products, norms, attention."""

import math

import numpy as np

from .core import EPS, Retry, Val, elements, is_static
from .elementwise import broadcast_shape, joined
from .layout import axis_of, signed

REAL = ("f32", "f64")


def extent(g, dims):
    """The largest number of elements of some axes together."""
    return max(elements(dims, g.runs)) if dims else 1


def reduce(g):
    kinds = ["Sum", "Mean", "Max", "Min", "L1", "L2", "SumSquare", "Prod", "LogSumExp", "LogSum"]
    kind = g.choice(kinds)
    v = g.pick(lambda v: v.rank >= 1 and v.dtype in (REAL + ("i32", "i64") if kind in ("Sum", "Max", "Min", "Prod") else REAL))
    axes = [a for a in range(v.rank) if g.chance(0.5)]
    every = not axes
    noop = every and g.chance(0.4)
    axes = [] if noop else axes or list(range(v.rank))
    keep = int(g.chance(0.5))
    n = extent(g, [v.shape[a] for a in axes])
    eps = EPS.get(v.dtype, 0)
    lo, hi, grid, noise = reduced(g, kind, v, n, eps, noop)
    shape = [(1,) * g.runs if i in axes else d for i, d in enumerate(v.shape) if keep or i not in axes]
    attrs, ins = {"keepdims": keep}, [v]
    written = [signed(g, a, v.rank) for a in axes]
    if g.opset >= 18 or (kind == "Sum" and g.opset >= 13):
        if not every:
            ins.append(g.ints(written))
        elif noop:
            attrs["noop_with_empty_axes"] = 1
    else:
        if noop:
            raise Retry("since opset 18")
        if not every:
            attrs["axes"] = written
    return g.result("Reduce" + kind, ins, v.dtype, shape, lo, hi, grid, noise, **attrs)


def reduced(g, kind, v, n, eps, noop):
    if noop and kind not in ("Sum", "Max", "Min", "Mean"):
        raise Retry("whether the function is applied without axes is not settled")
    if kind in ("Max", "Min"):
        return v.lo, v.hi, v.grid, v.noise
    if kind == "Sum":
        grid = v.grid
        return min(n * v.lo, v.lo), max(n * v.hi, v.hi), grid, math.sqrt(n) * v.noise + (0 if grid is not None else eps * v.mag * n)
    if kind == "Mean":
        return v.lo - 1e-3, v.hi + 1e-3, None, v.noise + eps * v.mag
    if kind == "Prod":
        if n > 4 or v.mag > 4:
            raise Retry("too much growth")
        mag = max(1, v.mag) ** n
        grid = None if v.grid is None else v.grid * n
        return -mag, mag, grid, n * v.noise * mag + eps * mag * n
    if kind in ("L1", "SumSquare"):
        mag = n * (v.mag if kind == "L1" else v.mag**2)
        grid = None if v.grid is None else v.grid * (1 if kind == "L1" else 2)
        return 0, mag, grid, v.noise * math.sqrt(n) * (1 if kind == "L1" else 2 * v.mag) + (eps * mag if grid is None else 0)
    if kind == "L2":
        mag = math.sqrt(n) * v.mag
        # The root's slope is infinite at 0: fine for what is exact.
        if v.noise > 0:
            raise Retry("the root of what may be 0")
        return 0, mag, None, eps * mag * 2
    if kind == "LogSumExp":
        if v.mag > 16:
            raise Retry("too large")
        return v.lo, v.hi + math.log(n), None, v.noise + 2 * eps * (v.mag + math.log(n) + 1)
    if v.lo < 0.25:
        raise Retry("the logarithm of what is not positive")
    return math.log(v.lo), math.log(v.hi * n), None, v.noise / v.lo + 2 * eps * 8


def arg_reduce(g):
    op = g.choice(["ArgMax", "ArgMin"])
    v = g.pick(lambda v: v.rank >= 1 and v.dtype in ("f32", "f64", "i32") and v.grid is not None)
    a = axis_of(g, v)
    keep = int(g.chance(0.5))
    shape = [(1,) * g.runs if i == a else d for i, d in enumerate(v.shape) if keep or i != a]
    return g.result(op, [v], "i64", shape, 0, max(v.shape[a]), 0, axis=signed(g, a, v.rank), keepdims=keep,
                    select_last_index=int(g.chance(0.3)))


def cumsum(g):
    v = g.pick(lambda v: v.rank >= 1 and v.dtype in REAL + ("i32", "i64"))
    a = axis_of(g, v)
    n = extent(g, [v.shape[a]])
    noise = n * v.noise + (EPS.get(v.dtype, 0) * n * v.mag if v.grid is None else 0)
    return g.result("CumSum", [v, g.scalar(signed(g, a, v.rank), g.choice(["i32", "i64"]))], v.dtype, v.shape, -n * v.mag, n * v.mag,
                    v.grid, noise, exclusive=int(g.chance(0.3)), reverse=int(g.chance(0.3)))


def softmax(g):
    v = g.pick(lambda v: v.rank >= 1 and v.dtype in REAL and v.mag <= 16)
    a = axis_of(g, v)
    eps = EPS[v.dtype]
    if g.chance(0.3):
        n = extent(g, [v.shape[a]])
        mag = 2 * v.mag + math.log(n)
        return g.result("LogSoftmax", [v], v.dtype, v.shape, -mag, 0, None, 2 * v.noise + 4 * eps * mag, axis=signed(g, a, v.rank))
    return g.result("Softmax", [v], v.dtype, v.shape, 0, 1, None, v.noise + 4 * eps, axis=signed(g, a, v.rank))


def epsilon(g, v):
    """How near to 0 a norm may divide: not near where there is noise."""
    if v.noise == 0 and v.grid is not None:
        return float(g.choice([1e-5, 1e-3, 1e-2]))
    return float(g.choice([1e-2, 0.1]))


def weights(g, v, shape, bias=True):
    out = []
    for _ in range(2 if bias else 1):
        out.append(g.operand(v.dtype, shape, lambda w: w.mag <= 4))
    return out


def normed(g, v, eps, scale, bias, n):
    """Interval and noise of scale * normalized + bias."""
    unit = min(math.sqrt(n), 2 * v.mag / math.sqrt(eps))
    mag = unit * scale.mag + (bias.mag if bias else 0)
    each = (v.noise * 2 + 2 * EPS[v.dtype] * v.mag) / math.sqrt(eps) if v.grid is None else 4 * EPS[v.dtype] * unit + EPS[v.dtype] * v.mag / math.sqrt(eps) / 8
    noise = each * scale.mag + scale.noise * unit + (bias.noise if bias else 0) + 4 * EPS[v.dtype] * mag
    return mag, noise


def layer_norm(g):
    v = g.pick(lambda v: v.rank >= 2 and v.dtype == "f32")
    kind = g.choice(["layer", "layer", "rms", "instance", "group", "batch"])
    eps = epsilon(g, v)
    if kind == "layer" and g.opset >= 17 or kind == "rms" and g.opset >= 23:
        a = int(g.rng.integers(v.rank))
        rest = v.shape[a:]
        scale = g.operand(v.dtype, rest, lambda w: w.mag <= 4)
        bias = g.operand(v.dtype, rest, lambda w: w.mag <= 4) if kind == "layer" and g.chance(0.7) else None
        mag, noise = normed(g, v, eps, scale, bias, extent(g, rest))
        op = "LayerNormalization" if kind == "layer" else "RMSNormalization"
        return g.result(op, [v, scale, bias], v.dtype, v.shape, -mag, mag, None, noise, axis=signed(g, a, v.rank), epsilon=eps)
    c = v.shape[1]
    if not is_static(c):
        raise Retry("channels are fixed")
    n = extent(g, v.shape[2:])
    if kind == "instance" and v.rank >= 3:
        scale, bias = weights(g, v, (c,))
        mag, noise = normed(g, v, eps, scale, bias, n)
        return g.result("InstanceNormalization", [v, scale, bias], v.dtype, v.shape, -mag, mag, None, noise, epsilon=eps)
    if kind == "group" and v.rank >= 3 and g.opset >= 21:
        groups = g.choice([d for d in (1, 2, 4) if c[0] % d == 0])
        scale, bias = weights(g, v, (c,))
        mag, noise = normed(g, v, eps, scale, bias, n * c[0] // groups)
        return g.result("GroupNormalization", [v, scale, bias], v.dtype, v.shape, -mag, mag, None, noise, epsilon=eps, num_groups=groups)
    if kind == "batch":
        scale, bias = weights(g, v, (c,))
        mean = g.operand(v.dtype, (c,), lambda w: w.mag <= 4)
        var = g.source(v.dtype, (c,), positive=True)
        mag = (v.mag + mean.mag) * scale.mag * 1.5 + bias.mag
        noise = 1.5 * (v.noise + mean.noise) * scale.mag + scale.noise * (v.mag + mean.mag) * 1.5 + bias.noise + 6 * EPS[v.dtype] * mag
        return g.result("BatchNormalization", [v, scale, bias, mean, var], v.dtype, v.shape, -mag, mag, None, noise, epsilon=eps)
    raise Retry("not for this rank or opset")


def product_bounds(g, a, b, k):
    """Interval, grid and noise of sums of k products."""
    mag = max(k, 1) * a.mag * b.mag
    grid = None if joined(a, b) is None else a.grid + b.grid
    if not a.is_float:
        return mag, 0, 0
    if grid is not None and mag * 2.0**grid > 2.0**23:
        grid = None
    noise = math.sqrt(k) * (a.noise * b.mag + b.noise * a.mag) + (EPS[a.dtype] * mag if grid is None else 0)
    return mag, grid, noise


def matmul(g):
    a = g.pick(lambda v: v.rank >= 1 and v.dtype in REAL + ("i32", "i64"))
    if g.chance(0.4) and a.rank >= 2:
        # From the right: a is what is multiplied with.
        shape = [g.static_dim(), a.shape[-2]] if g.chance(0.6) else list(a.shape[:-2]) + [g.static_dim(), a.shape[-2]]
        left, right = g.operand(a.dtype, shape), a
    else:
        k = a.shape[-1]
        n = g.static_dim() if g.chance(0.8) else g.names[g.choice(g.names)]
        shape = [k, n]
        if a.rank > 2 and g.chance(0.5):
            shape = [d if g.chance(0.7) else (1,) * g.runs for d in a.shape[:-2]] + shape
        elif g.chance(0.1):
            shape = [k]
        elif g.chance(0.1):
            shape = [g.static_dim(True)] + shape
        left, right = a, g.operand(a.dtype, shape)
    ls, rs = left.shape, right.shape
    l2 = ((1,) * g.runs,) + ls if len(ls) == 1 else ls
    r2 = rs + ((1,) * g.runs,) if len(rs) == 1 else rs
    batch = broadcast_shape(l2[:-2], r2[:-2]) if len(l2) > 2 or len(r2) > 2 else ()
    shape = batch + ((l2[-2],) if len(ls) > 1 else ()) + ((r2[-1],) if len(rs) > 1 else ())
    mag, grid, noise = product_bounds(g, left, right, max(l2[-1]))
    return g.result("MatMul", [left, right], a.dtype, shape, -mag, mag, grid, noise)


def gemm(g):
    a = g.pick(lambda v: v.rank == 2 and v.dtype in REAL)
    ta, tb = int(g.chance(0.4)), int(g.chance(0.4))
    m, k = a.shape[::-1] if ta else a.shape
    n = g.static_dim()
    b = g.operand(a.dtype, (n, k) if tb else (k, n))
    attrs = {"transA": ta, "transB": tb}
    mag, grid, noise = product_bounds(g, a, b, max(k))
    if g.chance(0.4):
        attrs["alpha"] = 0.5
        mag, noise, grid = mag / 2, noise / 2, None if grid is None else grid + 1
    ins = [a, b]
    if g.chance(0.7):
        one = (1,) * g.runs
        c = g.operand(a.dtype, g.choice([(n,), (m, n), (one, n), (m, one), (one,), (), (one, one)]), lambda c: c.mag <= 16)
        attrs["beta"] = float(g.choice([1.0, 2.0]))
        mag, noise = mag + 2 * c.mag, noise + 2 * c.noise
        grid = None if grid is None or c.grid is None else max(grid, c.grid)
        ins.append(c)
    noise += EPS[a.dtype] * mag if grid is None else 0
    return g.result("Gemm", ins, a.dtype, (m, n), -mag, mag, grid, noise, **attrs)


EQUATIONS = [
    "ij,jk->ik", "ij,kj->ik", "ij,jk", "bij,bjk->bik", "bhqd,bhkd->bhqk", "bqhd,bkhd->bhqk", "ij->ji", "ij->i", "ijk->", "i,j->ij",
    "ij,ij->ij", "ij,ij->", "ijk,jk->i", "bij,jk->bki", "bi,bj->bij", "ijk,ilk->jl", "...ij,...jk->...ik", "...i->...", "ii->i", "bii->b",
    "ij,j,jk->ik", "abc,cd->dab",
]


def einsum(g):
    eq = g.choice(EQUATIONS)
    v = g.pick(lambda v: v.dtype in REAL and v.rank >= 1)
    terms = eq.split("->")[0].split(",")
    rank = len(terms[0].replace("...", ""))
    if "..." in terms[0]:
        if v.rank < rank:
            raise Retry("rank")
        dots = v.shape[:v.rank - rank]
    elif v.rank != rank:
        raise Retry("rank")
    else:
        dots = ()
    dim = {}
    for letter, d in zip(terms[0].replace("...", ""), v.shape[len(dots):]):
        if dim.setdefault(letter, d) != d:
            raise Retry("a diagonal of what is not square")
    vals = [v]
    for t in terms[1:]:
        shape = tuple(dim.setdefault(x, g.static_dim(True)) for x in t.replace("...", ""))
        vals.append(g.operand(v.dtype, (dots if "..." in t else ()) + shape))
    if "->" in eq:
        out = eq.split("->")[1]
    else:
        letters = eq.replace(",", "")
        out = "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    summed = [d for x, d in dim.items() if x not in out]
    k = extent(g, summed)
    shape = (dots if "..." in out else ()) + tuple(dim[x] for x in out.replace("...", ""))
    mag, grid, noise = v.mag, v.grid, v.noise
    for w in vals[1:]:
        grid = None if grid is None or w.grid is None else grid + w.grid
        noise = noise * w.mag + w.noise * mag
        mag *= w.mag
    noise = math.sqrt(k) * noise + EPS[v.dtype] * mag * k
    mag *= k
    if grid is not None and mag * 2.0**grid > 2.0**23:
        grid = None
    return g.result("Einsum", vals, v.dtype, shape, -mag, mag, grid, 0 if grid is not None else noise, equation=eq)


def integers(g):
    """MatMulInteger: bytes in, i32 out, zero points for all or for each row or column."""
    a = g.pick(lambda v: v.rank >= 2 and v.dtype in ("u8", "i8"))
    n = g.static_dim(True)
    b = g.operand(g.choice(["u8", "i8"]), (a.shape[-1], n))
    if a.dtype == "i8" and b.dtype == "u8":
        raise Retry("ONNX Runtime has no such kernel")
    ins = [a, b]
    if g.chance(0.6):
        ins.append(g.scalar(3, a.dtype))
        if g.chance(0.6):
            ins.append(g.scalar(2, b.dtype) if g.chance(0.5) else g.constant(g.rng.integers(0, 4, n[0]).astype(np.int8 if b.dtype == "i8" else np.uint8)))
    mag = max(a.shape[-1]) * (a.mag + 3) * (b.mag + 4)
    return g.result("MatMulInteger", ins, "i32", a.shape[:-1] + (n,), -mag, mag, 0)


def attention_parts(g):
    """Attention written out: heads split, scores scaled and masked, softmax, product."""
    v = g.pick(lambda v: v.rank == 3 and v.dtype == "f32" and v.mag <= 16)
    b, s, width = v.shape
    heads, d = int(g.choice([1, 2, 4])), int(g.choice([4, 8, 5]))
    kv = v if g.chance(0.6) else g.operand("f32", (b, g.static_dim() if g.chance(0.5) else s, width), lambda w: w.mag <= 16)

    def project(x):
        w = g.source("f32", (width, (heads * d,) * g.runs), constant=True)
        mag, _, noise = product_bounds(g, x, w, max(width))
        y = g.result("MatMul", [x, w], "f32", x.shape[:2] + ((heads * d,) * g.runs,), -mag, mag, None, noise)
        y = g.result("Reshape", [y, g.ints([0, 0, heads, d])], "f32", y.shape[:2] + ((heads,) * g.runs, (d,) * g.runs), y.lo, y.hi, None, y.noise)
        return y

    def turn(x, perm):
        return g.result("Transpose", [x], "f32", [x.shape[p] for p in perm], x.lo, x.hi, None, x.noise, perm=perm)

    q, k, val = turn(project(v), [0, 2, 1, 3]), turn(project(kv), [0, 2, 3, 1]), turn(project(kv), [0, 2, 1, 3])
    scale = 2.0 ** -math.ceil(math.log2(max(d * q.mag * k.mag / 4, 1)))
    mag, _, noise = product_bounds(g, q, k, d)
    scores = g.emit("MatMul", [q, k])
    shape = q.shape[:3] + (kv.shape[1],)
    op, by = ("Mul", scale) if g.chance(0.5) else ("Div", 1 / scale)
    scores = g.result(op, [scores, g.scalar(by, "f32")], "f32", shape, -mag * scale, mag * scale, None, noise * scale)
    if g.chance(0.5):
        one = (1,) * g.runs
        mask = g.operand("f32", g.choice([(b, one, one, kv.shape[1]), (s, kv.shape[1]), (b, one, s, kv.shape[1]), (kv.shape[1],)]), lambda m: m.mag <= 16)
        scores = g.result("Add", [scores, mask], "f32", shape, scores.lo + mask.lo, scores.hi + mask.hi, None, scores.noise + mask.noise)
    if scores.mag > 40:
        raise Retry("too sharp")
    weights = g.result("Softmax", [scores], "f32", shape, 0, 1, None, scores.noise + 1e-6, axis=-1)
    mag, noise = val.mag, val.noise + weights.noise * val.mag
    out = g.result("MatMul", [weights, val], "f32", val.shape[:2] + (s, val.shape[3]), -mag, mag, None, noise)
    out = turn(Val(out.name, "f32", (b, (heads,) * g.runs, s, (d,) * g.runs), out.lo, out.hi, None, out.noise), [0, 2, 1, 3])
    return g.result("Reshape", [out, g.ints([0, 0, heads * d])], "f32", (b, s, (heads * d,) * g.runs), out.lo, out.hi, None, out.noise)


def attention(g):
    """The operator of opset 23, over three or four axes, causal or masked, grouped."""
    if g.opset < 23:
        raise Retry("since opset 23")
    v = g.pick(lambda v: v.rank in (3, 4) and v.dtype == "f32" and v.mag <= 4)
    attrs = {}
    if v.rank == 3:
        b, s, width = v.shape
        if not is_static(width):
            raise Retry("the width is fixed")
        heads = int(g.choice([h for h in (1, 2, 4) if width[0] % h == 0]))
        attrs["q_num_heads"] = attrs["kv_num_heads"] = heads
        d = width[0] // heads
        k = g.operand("f32", (b, g.static_dim() if g.chance(0.3) else s, width), lambda w: w.mag <= 4)
        val = g.operand("f32", k.shape, lambda w: w.mag <= 16)
        t = k.shape[1]
    else:
        b, h, s, d = v.shape
        d = max(d)
        t = g.static_dim() if g.chance(0.3) else s
        kh = h
        k = g.operand("f32", (b, kh, t, v.shape[3]), lambda w: w.mag <= 4)
        val = g.operand("f32", k.shape, lambda w: w.mag <= 16)
    attrs["scale"] = 1.0 / max(d, 1) if g.chance(0.5) or d * v.mag * k.mag / math.sqrt(d) > 16 else None
    scores = v.mag * k.mag * math.sqrt(d)
    ins = [v, k, val]
    if t == s and g.chance(0.4):
        attrs["is_causal"] = 1
    elif g.chance(0.4):
        ins.append(g.operand("f32", (s, t), lambda m: m.mag <= 16))
    noise = val.noise + val.mag * ((v.noise + k.noise) * 4 * math.sqrt(d) + EPS["f32"] * (scores + 16))
    return g.result("Attention", ins, "f32", v.shape, -val.mag, val.mag, None, noise, **attrs)


def det_like_norms(g):
    """LpNormalization and MeanVarianceNormalization, of what stays away from 0."""
    v = g.pick(lambda v: v.rank >= 1 and v.dtype == "f32" and (v.lo >= 0.25 or v.hi <= -0.25))
    least = min(abs(v.lo), abs(v.hi))
    noise = 2 * v.noise / least + 4 * EPS["f32"]
    a = axis_of(g, v)
    return g.result("LpNormalization", [v], "f32", v.shape, -1, 1, None, noise, axis=signed(g, a, v.rank), p=int(g.choice([1, 2])))


OPS = [
    (reduce, 8), (arg_reduce, 2), (cumsum, 2), (softmax, 4), (layer_norm, 6), (matmul, 8), (gemm, 4), (einsum, 3), (integers, 2),
    (attention_parts, 2), (attention, 2), (det_like_norms, 1),
]
