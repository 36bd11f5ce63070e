"""If, Loop and Scan with subgraphs that see outer values; quantization."""

import numpy as np
from onnx import helper

from .core import EPS, NUMPY, ONNX, Graph, Retry, Val, elements, is_static
from .elementwise import broadcast_shape
from .layout import axis_of, signed


def child(g):
    return Graph(g.rng, g.opset, g.names, parent=g)


def grow(sub, ops, count):
    """Some operators inside a subgraph; what does not fit is left out."""
    weights = np.array([w for _, w in ops], float)
    for _ in range(count * 3):
        if count == 0:
            return
        f = ops[int(sub.rng.choice(len(ops), p=weights / weights.sum()))][0]
        try:
            f(sub)
            count -= 1
        except Retry:
            pass


def bring(sub, dtype, shape, bound=None):
    """A value of a given type and shape that depends on what the subgraph made."""
    shape = tuple(shape)
    made = [v for v in sub.pool if v.dtype == dtype]
    v = sub.choice(made) if made else sub.pick(lambda v: v.dtype == dtype)
    if v.shape != shape or sub.chance(0.3):
        try:
            if broadcast_shape(v.shape, shape) != shape:
                raise Retry("does not broadcast to the shape")
        except Retry:
            if dtype in ("f16", "bool", "u8", "i8"):
                raise
            v = sub.result("ReduceMax", [v], dtype, (), v.lo, v.hi, v.grid, v.noise, keepdims=0)
        base = sub.operand(dtype, shape)
        if dtype == "bool":
            v = sub.result("And", [v, base], dtype, shape, 0, 1, 0)
        else:
            op = sub.choice(["Max", "Min"]) if dtype != "bool" else "And"
            grid = None if v.grid is None or base.grid is None else max(v.grid, base.grid)
            f = max if op == "Max" else min
            v = sub.result(op, [v, base], dtype, shape, f(v.lo, base.lo), f(v.hi, base.hi), grid, max(v.noise, base.noise))
    if bound is not None:
        if sub.chance(0.5) and dtype in ("f32", "f64"):
            noise = v.noise + EPS[dtype]
            return sub.result("Tanh", [v], dtype, shape, -1, 1, None, noise)
        lo, hi = sub.scalar(-bound, dtype), sub.scalar(bound, dtype)
        return sub.result("Clip", [v, lo, hi], dtype, shape, -bound, bound, v.grid, v.noise)
    # A subgraph's outputs are values of its own.
    name = sub.emit("Identity", [v])
    return Val(name, dtype, shape, v.lo, v.hi, v.grid, v.noise)


def output_info(v):
    return helper.make_tensor_value_info(v.name, ONNX[v.dtype], [None] * v.rank)


def condition(g):
    """A scalar that is known only while running: from data, or from a size."""
    if g.chance(0.4):
        v = g.pick(lambda v: v.rank >= 1)
        n = elements(v.shape, g.runs)
        size = g.emit("Size", [v])
        return g.result("Greater", [size, g.scalar(int(g.choice(n)), "i64")], "bool", (), 0, 1, 0)
    return g.operand("bool", ())


def branch(ops):
    def make(g):
        if g.parent and g.parent.parent:
            raise Retry("deep enough")
        c = condition(g)
        count = int(g.rng.integers(1, 3))
        kinds = [(g.choice(["f32", "f32", "i64", "f64", "bool"]), None) for _ in range(count)]
        targets = []
        for dtype, _ in kinds:
            like = [v for v in g.visible() if v.dtype == dtype]
            targets.append((dtype, g.choice(like).shape if like else g.new_shape(2)))
        graphs, outs = [], []
        for name in ("then", "else"):
            sub = child(g)
            grow(sub, ops, int(g.rng.integers(0, 4)))
            vals = [bring(sub, d, s) for d, s in targets]
            graphs.append(sub.to_onnx([output_info(v) for v in vals], [], name))
            outs.append(vals)
        names = g.emit("If", [c], outputs=count, then_branch=graphs[0], else_branch=graphs[1])
        for name, a, b in zip([names] if count == 1 else names, *outs):
            grid = None if a.grid is None or b.grid is None else max(a.grid, b.grid)
            last = g.add(Val(name, a.dtype, a.shape, min(a.lo, b.lo), max(a.hi, b.hi), grid, max(a.noise, b.noise)))
        return last
    return make


def carried(g, count):
    """Initial values of a loop's state, within [-2, 2]."""
    out = []
    for _ in range(count):
        v = g.pick(lambda v: v.dtype in ("f32", "f64", "i64", "i32") and v.mag <= 2 or v.dtype == "f32" and v.rank <= 3)
        if v.mag > 2:
            v = g.result("Clip", [v, g.scalar(-2, v.dtype), g.scalar(2, v.dtype)], v.dtype, v.shape, -2, 2, v.grid, v.noise)
        out.append(v)
    return out


def state_value(sub, v):
    """A loop's state inside its body: no more is known than that it stays in range."""
    inside = Val(sub.fresh("s"), v.dtype, v.shape, -2, 2, None if v.is_float else 0, EPS[v.dtype] * 8 if v.is_float else 0)
    sub.pool.append(inside)
    return inside


def after(v, out):
    """A state after the loop."""
    noise = (out.noise + v.noise) * 4 if v.is_float else 0
    return -2, 2, None if v.is_float else 0, noise


def loop(ops):
    def make(g):
        if g.parent:
            raise Retry("deep enough")
        trips = int(g.rng.integers(1, 5))
        states = carried(g, int(g.rng.integers(1, 3)))
        sub = child(g)
        iteration, cond = sub.fresh("i"), sub.fresh("k")
        sub.pool.append(Val(iteration, "i64", (), 0, trips, 0))
        inner = [state_value(sub, v) for v in states]
        grow(sub, ops, int(g.rng.integers(1, 5)))
        outs = [bring(sub, v.dtype, v.shape, bound=2) for v in states]
        scan = None
        if g.chance(0.5):
            made = [v for v in sub.pool if v.dtype in ("f32", "i64", "f64", "bool")]
            s = sub.choice(made)
            scan = Val(sub.emit("Identity", [s]), s.dtype, s.shape, s.lo, s.hi, s.grid, s.noise * 4)
        runs = trips
        count = g.scalar(trips, "i64")
        if g.chance(0.3):
            stop = int(g.rng.integers(0, trips))
            # Goes on after iteration i while i < stop: stop + 1 iterations.
            keep = sub.emit("Less", [iteration, sub.scalar(stop, "i64")])
            runs = stop + 1
            if g.chance(0.5):
                count = None
        else:
            keep = sub.emit("Identity", [cond])
        body_out = [helper.make_tensor_value_info(keep, ONNX["bool"], [])] + [output_info(v) for v in outs] + ([output_info(scan)] if scan else [])
        body_in = [helper.make_tensor_value_info(iteration, ONNX["i64"], []), helper.make_tensor_value_info(cond, ONNX["bool"], [])]
        body_in += [output_info(v) for v in inner]
        body = sub.to_onnx(body_out, body_in, "body")
        first = g.scalar(True, "bool") if g.chance(0.6) or count is None else None
        total = len(states) + (1 if scan else 0)
        names = g.emit("Loop", [count, first] + states, outputs=total, body=body)
        names = [names] if total == 1 else names
        for name, v, o in zip(names, states, outs):
            last = g.add(Val(name, v.dtype, v.shape, *after(v, o)))
        if scan:
            grid = scan.grid
            g.add(Val(names[-1], scan.dtype, ((runs,) * g.runs,) + scan.shape, scan.lo, scan.hi, grid, scan.noise))
        return last
    return make


def scan(ops):
    def make(g):
        if g.parent:
            raise Retry("deep enough")
        x = g.pick(lambda v: v.rank >= 1 and v.dtype in ("f32", "i64", "f64") and all(1 <= max(d) <= 17 for d in v.shape[:1]))
        axis = 0 if g.chance(0.6) else axis_of(g, x, lambda d: max(d) <= 17)
        states = carried(g, int(g.rng.integers(0, 2)))
        sub = child(g)
        inner = [state_value(sub, v) for v in states]
        row = Val(sub.fresh("r"), x.dtype, x.shape[:axis] + x.shape[axis + 1:], x.lo, x.hi, x.grid, x.noise)
        sub.pool.append(row)
        grow(sub, ops, int(g.rng.integers(1, 4)))
        outs = [bring(sub, v.dtype, v.shape, bound=2) for v in states]
        made = [v for v in sub.pool if v.dtype in ("f32", "i64", "f64")]
        s = sub.choice(made)
        out = Val(sub.emit("Identity", [s]), s.dtype, s.shape, s.lo, s.hi, s.grid, s.noise * 4)
        body = sub.to_onnx([output_info(v) for v in outs + [out]], [output_info(v) for v in inner + [row]], "body")
        to = int(g.rng.integers(out.rank + 1)) if g.chance(0.3) else 0
        names = g.emit("Scan", states + [x], outputs=len(states) + 1, body=body, num_scan_inputs=1,
                       scan_input_axes=[signed(g, axis, x.rank)] if axis or g.chance(0.3) else None,
                       scan_input_directions=[1] if g.chance(0.3) else None,
                       scan_output_axes=[to] if to else None, scan_output_directions=[1] if g.chance(0.3) else None)
        names = [names] if not states else names
        for name, v, o in zip(names, states, outs):
            g.add(Val(name, v.dtype, v.shape, *after(v, o)))
        shape = out.shape[:to] + (x.shape[axis],) + out.shape[to:]
        return g.add(Val(names[-1], out.dtype, shape, out.lo, out.hi, out.grid, out.noise))
    return make


def quantize(g):
    """Scales are powers of two and values exact, so that every rounding is defined."""
    v = g.pick(lambda v: v.dtype == "f32" and v.grid is not None)
    to = g.choice(["u8", "i8"])
    low, high = np.iinfo(NUMPY[to]).min, np.iinfo(NUMPY[to]).max
    if g.chance(0.4) and any(is_static(d) for d in v.shape) and g.opset >= 13:
        a = axis_of(g, v, is_static)
        n = v.shape[a][0]
        scale = g.constant(2.0 ** g.rng.integers(-3, 1, n).astype(np.float32))
        zero = g.constant(g.rng.integers(0, 9, n).astype(NUMPY[to]))
        return g.result("QuantizeLinear", [v, scale, zero], to, v.shape, low, high, 0, axis=signed(g, a, v.rank))
    ins = [v, g.scalar(2.0 ** int(g.rng.integers(-3, 1)), "f32")]
    if g.chance(0.6) or to == "i8":
        ins.append(g.scalar(int(g.rng.integers(0, 9)), to))
    return g.result("QuantizeLinear", ins, to if len(ins) == 3 else "u8", v.shape, low if len(ins) == 3 else 0, high if len(ins) == 3 else 255, 0)


def dequantize(g):
    v = g.pick(lambda v: v.dtype in ("u8", "i8", "i32") and v.mag < 4000)
    grid, mag = 3, v.mag + (8 if v.dtype != "i32" else 0)
    if g.chance(0.4) and any(is_static(d) for d in v.shape):
        a = axis_of(g, v, is_static)
        n = v.shape[a][0]
        ins = [v, g.constant(2.0 ** g.rng.integers(-3, 1, n).astype(np.float32))]
        if v.dtype != "i32" and g.chance(0.7):
            ins.append(g.constant(g.rng.integers(0, 9, n).astype(NUMPY[v.dtype])))
        return g.result("DequantizeLinear", ins, "f32", v.shape, -mag, mag, grid, axis=signed(g, a, v.rank))
    if g.opset >= 21 and v.dtype in ("u8", "i8") and g.chance(0.4):
        found = [i for i, d in enumerate(v.shape) if is_static(d) and d[0] % 2 == 0]
        if found and all(is_static(d) for d in v.shape):
            a = g.choice(found)
            dims = [d[0] // 2 if i == a else d[0] for i, d in enumerate(v.shape)]
            ins = [v, g.constant(2.0 ** g.rng.integers(-3, 1, dims).astype(np.float32))]
            if g.chance(0.5):
                ins.append(g.constant(g.rng.integers(0, 9, dims).astype(NUMPY[v.dtype])))
            return g.result("DequantizeLinear", ins, "f32", v.shape, -mag, mag, grid, axis=int(a), block_size=2)
    ins = [v, g.scalar(2.0 ** int(g.rng.integers(-3, 1)), "f32")]
    if v.dtype != "i32" and g.chance(0.7):
        ins.append(g.scalar(int(g.rng.integers(0, 9)), v.dtype))
    return g.result("DequantizeLinear", ins, "f32", v.shape, -mag, mag, grid)


def quantized_pair(g):
    v = g.pick(lambda v: v.dtype == "f32" and v.grid is not None)
    scale, zero = g.scalar(0.25, "f32"), g.scalar(int(g.rng.integers(0, 100)), "u8")
    q = g.emit("QuantizeLinear", [v, scale, zero])
    return g.result("DequantizeLinear", [q, scale, zero], "f32", v.shape, -64, 64, 2)


QUANT = [(quantize, 3), (dequantize, 3), (quantized_pair, 2)]
