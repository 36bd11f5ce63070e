"""Convolution, pooling and resampling in one to three dimensions."""

import math

import numpy as np

from .core import EPS, Retry, dim_map, is_static
from .linear import product_bounds


def image(g, dtypes=("f32",), least=1):
    """A value [N, C, spatial...] with fixed channels; made if there is none."""
    def ok(v):
        return v.rank in (3, 4, 5) and v.dtype in dtypes and is_static(v.shape[1]) and v.mag <= 64 and all(min(d) >= least for d in v.shape[2:])
    try:
        if g.chance(0.7):
            return g.pick(ok)
    except Retry:
        pass
    rank = int(g.choice([1, 1, 2, 2, 2, 3]))
    spatial = []
    for _ in range(rank):
        named = [d for d in g.names.values() if min(d) >= least]
        sizes = {1: [5, 8, 17, 33], 2: [4, 5, 7, 8], 3: [3, 4, 5]}[rank]
        spatial.append(g.choice(named) if named and g.chance(0.3) else (int(g.choice(sizes)),) * g.runs)
    n = g.names[g.choice(g.names)] if g.chance(0.5) else (int(g.choice([1, 2])),) * g.runs
    c = (int(g.choice([1, 2, 3, 4, 6, 8])),) * g.runs
    v = g.source(dtypes[0], (n, c, *spatial), constant=False)
    if not ok(v):
        raise Retry("too small")
    return v


def windows(g, v, ceil=False, dilate=True):
    """Kernel, strides, dilations and paddings with the shape that results."""
    kernel, strides, dilations, before, after, out = [], [], [], [], [], []
    auto = g.choice(["NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
    ceil = ceil and auto == "NOTSET" and g.chance(0.4)
    for d in v.shape[2:]:
        k = int(g.choice([1, 2, 3, 3, 5]))
        s = int(g.choice([1, 1, 2, 3]))
        dil = int(g.choice([1, 1, 2])) if dilate and auto in ("NOTSET", "VALID") else 1
        span = (k - 1) * dil + 1
        b, e = (0, 0)
        if auto == "NOTSET" and g.chance(0.6):
            b, e = (int(x) for x in g.rng.integers(0, min(k - 1, 2) + 1, 2))
        if auto.startswith("SAME"):
            if span < s:
                # What SAME means where windows leave gaps is not settled: ONNX Runtime
                # crops, others do not pad.
                raise Retry("windows that leave gaps")
            o = dim_map(lambda n: -(-n // s), d)
        elif ceil:
            def f(n, b=b, e=e, span=span, s=s):
                o = -(-(n + b + e - span) // s) + 1
                # The last window starts inside the image or its first padding.
                return o - 1 if (o - 1) * s >= n + b else o
            o = dim_map(f, d)
        else:
            o = dim_map(lambda n: (n + b + e - span) // s + 1, d)
        if min(o) < 1 or any(n + b + e < span for n in d) and not auto.startswith("SAME"):
            raise Retry("the window does not fit")
        if not is_static(d) and max(o) == 1:
            raise Retry("an extent that is 1 by chance")
        kernel.append(k), strides.append(s), dilations.append(dil), before.append(b), after.append(e), out.append(o)
    attrs = {"kernel_shape": kernel}
    if any(s != 1 for s in strides) or g.chance(0.3):
        attrs["strides"] = strides
    if any(x != 1 for x in dilations):
        attrs["dilations"] = dilations
    if auto != "NOTSET":
        attrs["auto_pad"] = auto
    elif any(before + after):
        attrs["pads"] = before + after
    if ceil:
        attrs["ceil_mode"] = 1
    return attrs, out


def conv(g):
    v = image(g)
    attrs, out = windows(g, v)
    c = v.shape[1][0]
    group = int(g.choice([d for d in (1, 1, 2, 3, c) if c % d == 0]))
    m = group * int(g.choice([1, 2, 3, 4]))
    w = g.operand("f32", [(m,) * g.runs, (c // group,) * g.runs] + [(k,) * g.runs for k in attrs["kernel_shape"]])
    mag, grid, noise = product_bounds(g, v, w, c // group * math.prod(attrs["kernel_shape"]))
    ins = [v, w]
    if g.chance(0.6):
        b = g.operand("f32", [(m,) * g.runs], lambda b: b.mag <= 64)
        mag, noise = mag + b.mag, noise + b.noise
        grid = None if grid is None or b.grid is None else max(grid, b.grid)
        ins.append(b)
    if g.chance(0.3):
        del attrs["kernel_shape"]
    noise += EPS["f32"] * mag if grid is None else 0
    return g.result("Conv", ins, "f32", [v.shape[0], (m,) * g.runs] + out, -mag, mag, grid, noise, group=group if group > 1 else None, **attrs)


def conv_transpose(g):
    v = image(g)
    c = v.shape[1][0]
    group = int(g.choice([d for d in (1, 1, 2, c) if c % d == 0]))
    m = int(g.choice([1, 2, 3]))
    kernel, strides, dilations, before, after, extra, out = [], [], [], [], [], [], []
    for d in v.shape[2:]:
        k, s, dil = int(g.choice([1, 2, 3])), int(g.choice([1, 2, 3])), int(g.choice([1, 1, 2]))
        b, e = (int(x) for x in g.rng.integers(0, 2, 2)) if g.chance(0.5) else (0, 0)
        x = int(g.rng.integers(0, max(s, dil))) if g.chance(0.4) else 0
        o = dim_map(lambda n: s * (n - 1) + x + (k - 1) * dil + 1 - b - e, d)
        if min(o) < 1:
            raise Retry("nothing is left")
        kernel.append(k), strides.append(s), dilations.append(dil), before.append(b), after.append(e), extra.append(x), out.append(o)
    w = g.operand("f32", [(c,) * g.runs, (m,) * g.runs] + [(k,) * g.runs for k in kernel])
    mag, grid, noise = product_bounds(g, v, w, c // group * math.prod(kernel))
    ins = [v, w]
    if g.chance(0.5):
        b = g.operand("f32", [(m * group,) * g.runs], lambda b: b.mag <= 64)
        mag, noise = mag + b.mag, noise + b.noise
        grid = None if grid is None or b.grid is None else max(grid, b.grid)
        ins.append(b)
    noise += EPS["f32"] * mag if grid is None else 0
    return g.result("ConvTranspose", ins, "f32", [v.shape[0], (m * group,) * g.runs] + out, -mag, mag, grid, noise,
                    group=group if group > 1 else None, strides=strides, dilations=dilations if any(x > 1 for x in dilations) else None,
                    pads=before + after if any(before + after) else None, output_padding=extra if any(extra) else None)


def pool(g):
    op = g.choice(["MaxPool", "MaxPool", "AveragePool", "AveragePool", "LpPool"])
    v = image(g)
    since = {"MaxPool": 12, "AveragePool": 19, "LpPool": 18}[op]
    attrs, out = windows(g, v, ceil=op != "LpPool" and g.opset >= 19, dilate=g.opset >= since and op != "LpPool")
    n = math.prod(attrs["kernel_shape"])
    lo, hi, grid, noise = v.lo, v.hi, v.grid, v.noise
    if op == "AveragePool":
        lo, hi, grid = min(lo, 0) - 1e-3, max(hi, 0) + 1e-3, None
        noise += EPS["f32"] * v.mag
        attrs["count_include_pad"] = int(g.chance(0.4))
    if op == "LpPool":
        if v.noise > 0:
            raise Retry("the root of what may be 0")
        attrs["p"] = int(g.choice([1, 2]))
        lo, hi, grid, noise = 0, v.mag * n, None, 4 * EPS["f32"] * v.mag * n
    return g.result(op, [v], "f32", list(v.shape[:2]) + out, lo, hi, grid, noise, **attrs)


def global_pool(g):
    v = image(g)
    op = g.choice(["GlobalAveragePool", "GlobalMaxPool"])
    shape = list(v.shape[:2]) + [(1,) * g.runs] * (v.rank - 2)
    grid = v.grid if op == "GlobalMaxPool" else None
    noise = v.noise + (EPS["f32"] * v.mag if grid is None else 0)
    return g.result(op, [v], "f32", shape, v.lo - 1e-3, v.hi + 1e-3, grid, noise)


def resize(g):
    """Factors are powers of two, so that coordinates are exact and nearest has one answer."""
    v = image(g)
    if v.rank > 4 or g.opset < 18:
        raise Retry("two dimensions at most")
    mode = g.choice(["nearest", "linear", "cubic"])
    if mode == "cubic" and v.rank != 4:
        raise Retry("cubic is of images")
    attrs = {"mode": mode, "coordinate_transformation_mode": g.choice(["half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners"])}
    if mode == "nearest":
        attrs["nearest_mode"] = g.choice(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
        if attrs["coordinate_transformation_mode"] == "align_corners":
            raise Retry("quotients that are not exact decide what is nearest")
    scales = [float(g.choice([1, 2, 2, 0.5, 4])) for _ in v.shape[2:]]
    out = [dim_map(lambda n, s=s: int(n * s), d) for d, s in zip(v.shape[2:], scales)]
    if any(min(o) < 1 or any(n * s != int(n * s) for n in d) for o, d, s in zip(out, v.shape[2:], scales)):
        raise Retry("not whole")
    if attrs["coordinate_transformation_mode"] == "align_corners" and any(min(o) < 2 for o in out):
        raise Retry("0 / 0")
    if all(is_static(o) for o in out) and all(is_static(d) for d in v.shape[:2]) and g.chance(0.5):
        ins = [v, None, None, g.ints([d[0] for d in v.shape[:2]] + [o[0] for o in out])]
    else:
        ins = [v, None, g.constant(np.array([1, 1] + scales, np.float32))]
    lo, hi, grid, noise = v.lo, v.hi, v.grid, v.noise
    if mode != "nearest":
        grid, noise = None, 2 * noise + 8 * EPS["f32"] * v.mag
        if mode == "cubic":
            lo, hi = -2 * v.mag, 2 * v.mag
    return g.result("Resize", ins, "f32", list(v.shape[:2]) + out, lo, hi, grid, noise, **attrs)


def lrn(g):
    v = image(g)
    size = int(g.choice([1, 3, 5]))
    noise = 2 * v.noise + 4 * EPS["f32"] * v.mag
    return g.result("LRN", [v], "f32", v.shape, -v.mag, v.mag, None, noise, size=size, alpha=0.01, beta=0.75, bias=1.0)


OPS = [(conv, 8), (conv_transpose, 4), (pool, 6), (global_pool, 1), (resize, 4), (lrn, 1)]
