"""Shapes, slices, gathers, scatters: nothing is computed, everything moves."""

import numpy as np

from .core import FLOATS, NUMPY, Retry, Val, dim_map, elements, is_static
from .elementwise import broadcast_shape

BIG = 2**31 - 1


def moved(g, op, inputs, v, shape, **attrs):
    """A result that holds some of v's elements."""
    return g.result(op, inputs, v.dtype, shape, v.lo, v.hi, v.grid, v.noise, **attrs)


def axis_of(g, v, ok=lambda d: True):
    return g.choice([i for i, d in enumerate(v.shape) if ok(d)])


def signed(g, axis, rank):
    """An axis, written from the front or from the back."""
    return int(axis - rank) if g.chance(0.4) else int(axis)


def transpose(g):
    v = g.pick(lambda v: v.rank >= 1)
    if g.chance(0.15):
        return moved(g, "Transpose", [v], v, v.shape[::-1])
    perm = [int(p) for p in g.rng.permutation(v.rank)]
    return moved(g, "Transpose", [v], v, [v.shape[p] for p in perm], perm=perm)


def times(*dims):
    out = dims[0]
    for d in dims[1:]:
        out = dim_map(lambda a, b: a * b, out, d)
    return out


def reshape(g):
    """Merges neighbours or splits an axis; what is dynamic is written as 0 or -1."""
    v = g.pick(lambda v: v.rank >= 1)
    shape, minus = list(v.shape), False
    spec = [(0, i) for i in range(v.rank)]  # (what to write, position it copies)
    for _ in range(int(g.rng.integers(1, 3))):
        if len(shape) >= 2 and g.chance(0.6):
            i = int(g.rng.integers(len(shape) - 1))
            d = times(shape[i], shape[i + 1])
            shape[i:i + 2], spec[i:i + 2] = [d], [("d", None)]
        else:
            i = int(g.rng.integers(len(shape)))
            for f in (2, 3, 4, 5, 1):
                if all(x % f == 0 for x in shape[i]) and len(shape) < 5:
                    rest = dim_map(lambda a: a // f, shape[i])
                    new = [(f,) * g.runs, rest]
                    shape[i:i + 1], spec[i:i + 1] = (new, [("d", None)] * 2) if g.chance(0.5) else (new[::-1], [("d", None)] * 2)
                    break
    out = []
    for i, (d, (_, copied)) in enumerate(zip(shape, spec)):
        if i < v.rank and d == v.shape[i] and (copied == i or not is_static(d)):
            out.append(0 if not is_static(d) or g.chance(0.5) else d[0])
        elif is_static(d) and not (not minus and g.chance(0.3)):
            out.append(d[0])
        elif not minus:
            out.append(-1)
            minus = True
        else:
            raise Retry("two sizes are not known")
    if min(elements(v.shape, g.runs)) == 0:
        raise Retry("0 copies")
    return moved(g, "Reshape", [v, g.ints(out)], v, shape)


def reshape_by_shape(g):
    """The target is computed from Shape: Gather, Concat, Unsqueeze, arithmetic."""
    v = g.pick(lambda v: v.rank >= 2)
    s = g.emit("Shape", [v])
    i = int(g.rng.integers(v.rank - 1))
    if g.chance(0.4):
        # [.., a, b, ..] -> [.., a*b, ..] with the product computed.
        pick = lambda k: g.emit("Gather", [s, g.ints([k])], axis=0)  # noqa: E731
        product = g.emit("Mul", [pick(i), pick(i + 1)])
        parts = [pick(k) for k in range(i)] + [product] + [pick(k) for k in range(i + 2, v.rank)]
        shape = v.shape[:i] + (times(v.shape[i], v.shape[i + 1]),) + v.shape[i + 2:]
    else:
        perm = [int(p) for p in g.rng.permutation(v.rank)]
        if g.chance(0.5):
            parts = [g.emit("Unsqueeze", [g.emit("Gather", [s, g.scalar(k, "i64")], axis=0), g.ints([0])]) for k in perm]
        else:
            parts = [g.emit("Slice", [s, g.ints([k]), g.ints([k + 1])]) for k in perm]
        shape = [v.shape[p] for p in perm]
    target = g.emit("Concat", parts, axis=0) if len(parts) > 1 else parts[0]
    return moved(g, "Reshape", [v, target], v, shape)


def flatten(g):
    v = g.pick(lambda v: v.rank >= 1)
    axis = int(g.rng.integers(v.rank + 1))
    one = (1,) * g.runs
    left, right = v.shape[:axis], v.shape[axis:]
    shape = [times(one, *left), times(one, *right)]
    written = axis - v.rank if axis < v.rank and g.chance(0.4) else axis
    return moved(g, "Flatten", [v], v, shape, axis=int(written))


def squeeze(g):
    v = g.pick(lambda v: any(d == (1,) * g.runs for d in v.shape))
    ones = [i for i, d in enumerate(v.shape) if d == (1,) * g.runs]
    if g.chance(0.2) and all(max(d) == 1 or min(d) > 1 for d in v.shape):
        return moved(g, "Squeeze", [v], v, [d for i, d in enumerate(v.shape) if i not in ones])
    axes = [a for a in ones if g.chance(0.7)] or ones[:1]
    written = [signed(g, a, v.rank) for a in axes]
    return moved(g, "Squeeze", [v, g.ints(written)], v, [d for i, d in enumerate(v.shape) if i not in axes])


def unsqueeze(g):
    v = g.pick(lambda v: v.rank <= 3)
    count = int(g.rng.integers(1, 3))
    rank = v.rank + count
    axes = sorted(int(a) for a in g.rng.choice(rank, count, replace=False))
    rest = iter(v.shape)
    shape = [(1,) * g.runs if i in axes else next(rest) for i in range(rank)]
    written = [signed(g, a, rank) for a in axes]
    if g.chance(0.3):
        written = written[::-1]
    return moved(g, "Unsqueeze", [v, g.ints(written)], v, shape)


def expand(g):
    v = g.pick(lambda v: v.rank <= 3)
    one = (1,) * g.runs
    if g.chance(0.4):
        # To the shape of another value.
        w = g.pick(lambda w: w.rank >= 1)
        shape = broadcast_shape(v.shape, w.shape)
        return moved(g, "Expand", [v, g.emit("Shape", [w])], v, shape)
    shape = [g.static_dim(small=True) if d == one and g.chance(0.7) else d for d in v.shape]
    written = [1 if not is_static(d) else d[0] for d in shape]
    if len(shape) < 4 and g.chance(0.3):
        d = g.static_dim(small=True)
        shape, written = [d] + shape, [d[0]] + written
    if not shape:
        raise Retry("a scalar to a scalar")
    return moved(g, "Expand", [v, g.ints(written)], v, shape)


def tile(g):
    v = g.pick(lambda v: v.rank >= 1 and v.dtype not in ("f16",))
    reps = [int(g.choice([1, 1, 2, 3])) for _ in v.shape]
    return moved(g, "Tile", [v, g.ints(reps)], v, [dim_map(lambda a, r=r: a * r, d) for d, r in zip(v.shape, reps)])


def slice_(g):
    v = g.pick(lambda v: v.rank >= 1)
    axes = [i for i in range(v.rank) if g.chance(0.6)] or [0]
    starts, ends, steps, shape = [], [], [], list(v.shape)
    for a in axes:
        least = min(v.shape[a])
        step = int(g.choice([1, 1, 1, 2, 3, -1, -1, -2]))
        if step > 0:
            start = int(g.choice([0, 0, -least, 1 if least > 1 else 0, least - 1, -1]))
            end = int(g.choice([BIG, BIG, least, -1 if least > 1 and start >= 0 and start < least - 1 else BIG, 1000]))
        else:
            start = int(g.choice([-1, BIG, least - 1]))
            end = int(g.choice([-BIG, -BIG, -1000, 0 if least > 1 else -BIG]))
        shape[a] = dim_map(lambda n: len(range(n)[start:(None if step < 0 and end <= -1000 else end):step]), v.shape[a])
        if min(shape[a]) < 1:
            raise Retry("empty")
        if max(shape[a]) == 1 and not is_static(v.shape[a]):
            # x[0::-2] has 1 element or none: whether it broadcasts depends on a size,
            # and Kiln takes extents that it cannot tell apart as equal (K0716).
            raise Retry("an extent that is 1 by chance")
        starts.append(start), ends.append(end), steps.append(step)
    if len(axes) == v.rank and g.chance(0.3) and all(s == 1 for s in steps):
        return moved(g, "Slice", [v, g.ints(starts), g.ints(ends)], v, shape)
    written = [signed(g, a, v.rank) for a in axes]
    if all(s == 1 for s in steps) and g.chance(0.5):
        return moved(g, "Slice", [v, g.ints(starts), g.ints(ends), g.ints(written)], v, shape)
    return moved(g, "Slice", [v, g.ints(starts), g.ints(ends), g.ints(written), g.ints(steps)], v, shape)


def slice_by_shape(g):
    """The end is computed from another value's size."""
    v = g.pick(lambda v: v.rank >= 1)
    a = axis_of(g, v)
    w = g.pick(lambda w: any(all(x <= y for x, y in zip(d, v.shape[a])) for d in w.shape))
    k = g.choice([i for i, d in enumerate(w.shape) if all(x <= y for x, y in zip(d, v.shape[a]))])
    end = g.emit("Gather", [g.emit("Shape", [w]), g.ints([k])], axis=0)
    shape = list(v.shape)
    shape[a] = w.shape[k]
    return moved(g, "Slice", [v, g.ints([0]), end, g.ints([signed(g, a, v.rank)])], v, shape)


def split(g):
    v = g.pick(lambda v: v.rank >= 1 and any(is_static(d) and d[0] >= 2 for d in v.shape))
    a = axis_of(g, v, lambda d: is_static(d) and d[0] >= 2)
    n = v.shape[a][0]
    parts = int(g.rng.integers(2, min(n, 4) + 1))
    attrs, extra = {"axis": signed(g, a, v.rank)}, []
    if g.chance(0.5):
        cuts = sorted(int(c) for c in g.rng.choice(np.arange(1, n), parts - 1, replace=False))
        sizes = [b - a for a, b in zip([0] + cuts, cuts + [n])]
        extra = [g.ints(sizes)]
    else:
        size = -(-n // parts)
        if g.opset < 18 and n % parts or n - size * (parts - 1) <= 0:
            raise Retry("unequal parts since opset 18")
        sizes = [size] * (parts - 1) + [n - size * (parts - 1)]
        if g.opset >= 18:
            attrs["num_outputs"] = parts
    names = g.emit("Split", [v] + extra, outputs=parts, **attrs)
    for name, size in zip(names, sizes):
        shape = list(v.shape)
        shape[a] = (size,) * g.runs
        last = g.add(Val(name, v.dtype, tuple(shape), v.lo, v.hi, v.grid, v.noise))
    return last


def concat(g):
    v = g.pick(lambda v: v.rank >= 1)
    a = axis_of(g, v)
    vals = [v]
    for _ in range(int(g.rng.integers(1, 4))):
        shape = list(v.shape)
        if g.chance(0.6):
            shape[a] = g.static_dim(small=True) if g.chance(0.7) else g.names[g.choice(g.names)]
        vals.append(g.operand(v.dtype, shape))
    if g.chance(0.3):
        vals = vals[::-1]
    shape = list(v.shape)
    shape[a] = dim_map(lambda *xs: sum(xs), *[w.shape[a] for w in vals])
    grid = None if any(w.grid is None for w in vals) else max(w.grid for w in vals)
    return g.result("Concat", vals, v.dtype, shape, min(w.lo for w in vals), max(w.hi for w in vals), grid,
                    max(w.noise for w in vals), axis=signed(g, a, v.rank))


def pad(g):
    v = g.pick(lambda v: v.rank >= 1 and v.dtype in ("f32", "f64", "i32", "i64", "u8", "i8"))
    mode = g.choice(["constant", "constant", "reflect", "edge"])
    before, after, shape = [], [], []
    for d in v.shape:
        limit = min(d) - 1 if mode == "reflect" else 3
        b, e = (int(g.rng.integers(0, max(min(limit, 3), 0) + 1)) if g.chance(0.6) else 0 for _ in range(2))
        if mode == "constant" and g.chance(0.1) and min(d) > 2:
            b = -1
        before.append(b), after.append(e)
        shape.append(dim_map(lambda n: n + b + e, d))
    lo, hi, grid, ins = v.lo, v.hi, v.grid, [v, g.ints(before + after)]
    if mode == "constant":
        lo, hi = min(lo, 0), max(hi, 0)
        if g.chance(0.5):
            ins.append(g.scalar(2, v.dtype))
            lo, hi = min(lo, 2), max(hi, 2)
    return g.result("Pad", ins, v.dtype, shape, lo, hi, grid, v.noise, mode=mode)


def indices(g, shape, limit, dtype=None, negative=True):
    """Indices within every size's extent: constants or an input of their own."""
    dtype = dtype or g.choice(["i32", "i64"])
    lo = -limit if negative and g.chance(0.3) else 0
    arrays = [g.rng.integers(lo, limit, [d[r] for d in shape]).astype(NUMPY[dtype]) for r in range(g.runs)]
    return given(g, arrays, dtype, shape)


def given(g, arrays, dtype, shape):
    """Integers with given contents, as a constant where the shape allows."""
    if all(is_static(d) for d in shape) and g.chance(0.6):
        return g.constant(arrays[0])
    mark = len(g.root.inputs)
    v = g.source(dtype, shape, constant=False)
    g.pool.remove(v)  # its contents are indices: nothing else should use it
    assert len(g.root.inputs) == mark + 1
    for r in range(g.runs):
        g.root.feeds[r][v.name] = arrays[r]
    return v


def gather(g):
    v = g.pick(lambda v: v.rank >= 1)
    a = axis_of(g, v)
    shape = g.choice([(), (g.static_dim(True),), g.new_shape(1), (g.static_dim(True), g.static_dim(True))])
    idx = indices(g, shape, min(v.shape[a]))
    return moved(g, "Gather", [v, idx], v, v.shape[:a] + tuple(shape) + v.shape[a + 1:], axis=signed(g, a, v.rank))


def gather_elements(g):
    v = g.pick(lambda v: v.rank >= 1)
    a = axis_of(g, v)
    shape = list(v.shape)
    shape[a] = g.static_dim(True) if g.chance(0.7) else shape[a]
    idx = indices(g, shape, min(v.shape[a]))
    return moved(g, "GatherElements", [v, idx], v, shape, axis=signed(g, a, v.rank))


def gather_nd(g):
    v = g.pick(lambda v: v.rank >= 1)
    batch = int(g.rng.integers(0, v.rank)) if g.chance(0.4) else 0
    k = int(g.rng.integers(1, v.rank - batch + 1))
    middle = (g.static_dim(True),) if g.chance(0.7) else (g.static_dim(True), g.static_dim(True))
    shape = v.shape[:batch] + middle + ((k,) * g.runs,)
    limits = [min(v.shape[batch + i]) for i in range(k)]
    arrays = []
    for r in range(g.runs):
        dims = [d[r] for d in shape[:-1]]
        arrays.append(np.stack([g.rng.integers(0, n, dims) for n in limits], -1).astype(np.int64))
    idx = given(g, arrays, "i64", shape)
    return moved(g, "GatherND", [v, idx], v, v.shape[:batch] + middle + v.shape[batch + k:], batch_dims=batch or None)


def scatter_elements(g):
    """Indices without repeats along the axis, unless the reduction does not care."""
    v = g.pick(lambda v: v.rank >= 1 and v.dtype in ("f32", "f64", "i32", "i64") and v.grid is not None)
    a = axis_of(g, v)
    reduction = g.choice(["none", "add", "max", "min"]) if g.opset >= 18 else "none"
    limit = min(v.shape[a])
    n = int(g.rng.integers(1, limit + 1))
    shape = list(v.shape)
    shape[a] = (n,) * g.runs
    arrays = []
    for r in range(g.runs):
        dims = [d[r] for d in shape]
        order = np.argsort(g.rng.random(dims[:a] + [limit] + dims[a + 1:]), axis=a)
        arrays.append(np.take(order, np.arange(n), axis=a).astype(np.int64))
    if reduction != "none" and g.chance(0.5):
        arrays = [x // 2 for x in arrays]
    idx = given(g, arrays, "i64", shape)
    u = g.operand(v.dtype, shape, lambda w: w.grid is not None)
    lo, hi = min(v.lo, u.lo), max(v.hi, u.hi)
    if reduction == "add":
        lo, hi = v.lo + n * min(u.lo, 0), v.hi + n * max(u.hi, 0)
    return g.result("ScatterElements", [v, idx, u], v.dtype, v.shape, lo, hi, max(v.grid, u.grid), 0,
                    axis=signed(g, a, v.rank), reduction=None if reduction == "none" else reduction)


def scatter_nd(g):
    v = g.pick(lambda v: v.rank >= 1 and v.dtype in ("f32", "f64", "i32", "i64") and v.grid is not None)
    k = int(g.rng.integers(1, v.rank + 1))
    limits = [min(d) for d in v.shape[:k]]
    cells = int(np.prod(limits))
    n = int(g.rng.integers(1, min(cells, 6) + 1))
    reduction = g.choice(["none", "add", "max", "min"]) if g.opset >= 18 else "none"
    flat = g.rng.integers(0, cells, n) if reduction != "none" else g.rng.permutation(cells)[:n]
    table = np.stack(np.unravel_index(flat, limits), -1).astype(np.int64)
    idx = given(g, [table] * g.runs, "i64", ((n,) * g.runs, (k,) * g.runs))
    u = g.operand(v.dtype, ((n,) * g.runs,) + v.shape[k:], lambda w: w.grid is not None)
    lo, hi = min(v.lo, u.lo), max(v.hi, u.hi)
    if reduction == "add":
        lo, hi = v.lo + n * min(u.lo, 0), v.hi + n * max(u.hi, 0)
    return g.result("ScatterND", [v, idx, u], v.dtype, v.shape, lo, hi, max(v.grid, u.grid), 0,
                    reduction=None if reduction == "none" else reduction)


def trilu(g):
    v = g.pick(lambda v: v.rank >= 2 and v.dtype in ("f32", "f64", "i64", "bool") and v.rank >= 2)
    k = [g.scalar(int(g.choice([-2, -1, 0, 1, 2])), "i64")] if g.chance(0.6) else []
    return g.result("Trilu", [v] + k, v.dtype, v.shape, min(v.lo, 0), max(v.hi, 0), v.grid, v.noise, upper=int(g.chance(0.5)))


def ranges(g):
    """Range from sizes, or of constants."""
    if g.chance(0.6):
        v = g.pick(lambda v: v.rank >= 1)
        a = axis_of(g, v)
        n = g.emit("Gather", [g.emit("Shape", [v]), g.scalar(a, "i64")], axis=0)
        d = v.shape[a]
        return g.result("Range", [g.scalar(0, "i64"), n, g.scalar(1, "i64")], "i64", (d,), 0, max(d), 0)
    dtype = g.choice(["f32", "i32", "i64", "f64"])
    start, count, step = int(g.rng.integers(-3, 4)), int(g.rng.integers(1, 9)), int(g.choice([1, 2, -1, -3]))
    ends = [start, start + step * count]
    ins = [g.scalar(x, dtype) for x in (start, ends[1], step)]
    return g.result("Range", ins, dtype, ((count,) * g.runs,), min(ends), max(ends), 0)


def one_hot(g):
    depth = int(g.choice([2, 3, 5, 8]))
    v = g.pick(lambda v: v.dtype in ("i64", "i32") and v.rank <= 3)
    dtype = "f32" if v.dtype == "i64" and g.chance(0.5) else "i64"
    if v.dtype == "i32":
        v = g.result("Cast", [v], "i64", v.shape, v.lo, v.hi, 0, to=7)
    a = int(g.rng.integers(v.rank + 1))
    values = g.constant(np.array([-1, 2], NUMPY[dtype]))
    shape = v.shape[:a] + ((depth,) * g.runs,) + v.shape[a:]
    written = -1 if a == v.rank and g.chance(0.5) else a
    return g.result("OneHot", [v, g.scalar(depth, "i64"), values], dtype, shape, -1, 2, 0, axis=written)


def constant_of_shape(g):
    w = g.pick(lambda w: w.rank >= 1)
    from onnx import helper
    dtype = g.choice(["f32", "i64", "i32"])
    value = helper.make_tensor("value", {"f32": 1, "i64": 7, "i32": 6}[dtype], [1], [3])
    return g.result("ConstantOfShape", [g.emit("Shape", [w])], dtype, w.shape, 3, 3, 0, value=value)


def sizes(g):
    """Numbers from shapes: Size, a part of Shape."""
    v = g.pick(lambda v: v.rank >= 1)
    if g.chance(0.4):
        n = elements(v.shape, g.runs)
        return g.result("Size", [v], "i64", (), 0, max(n), 0)
    start, end = sorted(int(x) for x in g.rng.choice(v.rank + 1, 2, replace=False))
    if g.opset < 15:
        start, end = 0, v.rank
        return g.result("Shape", [v], "i64", ((v.rank,) * g.runs,), 0, max(map(max, v.shape)), 0)
    top = max(max(d) for d in v.shape[start:end])
    return g.result("Shape", [v], "i64", ((end - start,) * g.runs,), 0, top, 0, start=start, end=end if end < v.rank or g.chance(0.5) else None)


def depth_space(g):
    v = g.pick(lambda v: v.rank == 4 and v.dtype in ("f32", "f64", "u8"))
    n, c, h, w = v.shape
    b = 2
    if g.chance(0.5) and is_static(c) and c[0] % 4 == 0:
        mode = g.choice(["DCR", "CRD"])
        shape = (n, (c[0] // 4,) * g.runs, dim_map(lambda x: x * b, h), dim_map(lambda x: x * b, w))
        return moved(g, "DepthToSpace", [v], v, shape, blocksize=b, mode=mode)
    if any(x % 2 for x in h + w):
        raise Retry("odd")
    half = lambda d: dim_map(lambda x: x // b, d)  # noqa: E731
    return moved(g, "SpaceToDepth", [v], v, (n, dim_map(lambda x: x * 4, c), half(h), half(w)), blocksize=b)


def reverse_sequence(g):
    v = g.pick(lambda v: v.rank >= 2 and v.dtype in FLOATS + ("i32", "i64"))
    t = int(g.chance(0.5))
    lens = [g.rng.integers(1, min(v.shape[t]) + 1, v.shape[1 - t][r]).astype(np.int64) for r in range(g.runs)]
    idx = given(g, lens, "i64", (v.shape[1 - t],))
    return moved(g, "ReverseSequence", [v, idx], v, v.shape, time_axis=t, batch_axis=1 - t)


def top_k(g):
    v = g.pick(lambda v: v.rank >= 1 and v.dtype in ("f32", "f64", "i32", "i64") and v.grid is not None)
    a = axis_of(g, v)
    k = int(g.rng.integers(1, min(v.shape[a]) + 1))
    names = g.emit("TopK", [v, g.ints([k])], outputs=2, axis=signed(g, a, v.rank), largest=int(g.chance(0.6)), sorted=1)
    shape = v.shape[:a] + ((k,) * g.runs,) + v.shape[a + 1:]
    g.add(Val(names[1], "i64", shape, 0, max(v.shape[a]), 0))
    return g.add(Val(names[0], v.dtype, shape, v.lo, v.hi, v.grid, 0))


OPS = [
    (transpose, 6), (reshape, 6), (reshape_by_shape, 3), (flatten, 1), (squeeze, 2), (unsqueeze, 3), (expand, 3),
    (tile, 2), (slice_, 6), (slice_by_shape, 1), (split, 3), (concat, 5), (pad, 3), (gather, 3), (gather_elements, 2),
    (gather_nd, 2), (scatter_elements, 2), (scatter_nd, 2), (trilu, 1), (ranges, 2), (one_hot, 1),
    (constant_of_shape, 1), (sizes, 1), (depth_space, 2), (reverse_sequence, 1), (top_k, 1),
]
