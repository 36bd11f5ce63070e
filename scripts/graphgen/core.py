"""The pool of typed values and the graph that is being written.

A value knows its type, its shape at every size that the model is run at, the
interval of its elements, and how exact it is. `grid` = g says that all elements
are multiples of 2^-g that its type holds exactly: sums and products of such values
have no rounding at all, so that two right evaluations agree to the bit, and steps
(Floor, comparisons, ArgMax, Quantize) may follow. `noise` is about how far two right
evaluations may differ; no operator is inserted that would make it large.
"""

from dataclasses import dataclass

import numpy as np
from onnx import helper, numpy_helper

NUMPY = {
    "f16": np.float16, "f32": np.float32, "f64": np.float64, "i8": np.int8, "u8": np.uint8,
    "i32": np.int32, "i64": np.int64, "bool": np.bool_,
}
ONNX = {d: helper.np_dtype_to_tensor_dtype(np.dtype(t)) for d, t in NUMPY.items()}
FLOATS = ("f16", "f32", "f64")
INTS = ("i8", "u8", "i32", "i64")
EPS = {"f16": 2.0**-10, "f32": 2.0**-23, "f64": 2.0**-52}
MANTISSA = {"f16": 11, "f32": 24, "f64": 53}
# The share of a value that its noise may be: a hundredth of what is reported.
LIMIT = {"f16": 4e-3, "f32": 2e-5, "f64": 1e-10}
LARGEST = {"f16": 16.0, "f32": 64.0, "f64": 64.0, "i8": 127, "u8": 255, "i32": 2**24, "i64": 2**40}
MAX_ELEMENTS = 6000


class Retry(Exception):
    """The operator cannot be put here; another one is tried."""


@dataclass(frozen=True)
class Val:
    """A value of the graph: `shape` has, for each axis, the extents at every size."""

    name: str
    dtype: str
    shape: tuple
    lo: float = 0.0
    hi: float = 1.0
    grid: int | None = None
    noise: float = 0.0

    @property
    def rank(self):
        return len(self.shape)

    @property
    def mag(self):
        return max(abs(self.lo), abs(self.hi))

    @property
    def is_float(self):
        return self.dtype in FLOATS


def is_static(dim):
    return len(set(dim)) == 1


def dim_map(f, *dims):
    """A formula of extents, at every size."""
    return tuple(int(f(*at)) for at in zip(*dims))


def elements(shape, runs):
    """Number of elements at every size."""
    total = [1] * runs
    for d in shape:
        total = [t * x for t, x in zip(total, d)]
    return total


class Graph:
    """A graph under construction; a subgraph sees what is outside through `parent`."""

    def __init__(self, rng, opset, names, parent=None):
        self.rng, self.opset, self.parent = rng, opset, parent
        self.root = parent.root if parent else self
        self.names = names  # name of a size -> its extents
        self.runs = len(next(iter(names.values())))
        self.nodes, self.initializers, self.pool = [], [], []
        if parent is None:
            self.counter, self.inputs, self.feeds = 0, [], [dict() for _ in range(self.runs)]
            self.used = set()

    # Names, nodes, values.

    def fresh(self, what="v"):
        self.root.counter += 1
        return f"{what}{self.root.counter}"

    def emit(self, op, inputs, outputs=1, domain="", **attrs):
        """Adds a node; its outputs' names (one, or a list if more are asked for)."""
        names = [self.fresh() for _ in range(outputs)]
        ins = [i.name if isinstance(i, Val) else (i or "") for i in inputs]
        while ins and not ins[-1]:
            ins.pop()
        self.root.used.update(ins)
        attrs = {k: v for k, v in attrs.items() if v is not None}
        self.nodes.append(helper.make_node(op, ins, names, domain=domain, **attrs))
        return names[0] if outputs == 1 else names

    def add(self, val, keep=True):
        """Checks and tames a new value, and puts it in the pool."""
        if max(elements(val.shape, self.runs)) > MAX_ELEMENTS:
            raise Retry("too large")
        if val.is_float:
            if val.grid is not None and val.mag * 2.0**val.grid > 2 ** MANTISSA[val.dtype]:
                val = Val(val.name, val.dtype, val.shape, val.lo, val.hi, None, val.noise + EPS[val.dtype] * val.mag)
            if val.noise > LIMIT[val.dtype] * 10:
                raise Retry("too noisy")
            if val.mag > LARGEST[val.dtype]:
                if val.dtype == "f16" and val.mag > 6e4:
                    raise Retry("out of range")
                val = self.tame(val)
        elif val.dtype in INTS:
            info = np.iinfo(NUMPY[val.dtype])
            if val.lo < info.min or val.hi > info.max:
                raise Retry("overflow")
            if val.mag > LARGEST[val.dtype]:
                val = self.tame(val)
        if keep:
            self.pool.append(val)
        return val

    def result(self, op, inputs, dtype, shape, lo=0.0, hi=1.0, grid=None, noise=0.0, **attrs):
        """Adds a node with one output and its value."""
        mark = len(self.nodes)
        try:
            name = self.emit(op, inputs, **attrs)
            return self.add(Val(name, dtype, tuple(shape), float(lo), float(hi), grid, float(noise)))
        except Retry:
            del self.nodes[mark:]
            raise

    def tame(self, v):
        """Brings a value that has grown back into range."""
        if not v.is_float:
            lo, hi = self.scalar(-100 if v.dtype != "u8" else 0, v.dtype), self.scalar(100, v.dtype)
            return Val(self.emit("Clip", [v, lo, hi]), v.dtype, v.shape, -100, 100, 0)
        choice = self.rng.integers(3)
        if choice == 0:
            name = self.emit("Tanh", [v])
            return Val(name, v.dtype, v.shape, -1.0, 1.0, None, v.noise + EPS[v.dtype])
        if choice == 1:
            name = self.emit("Clip", [v, self.scalar(-4.0, v.dtype), self.scalar(4.0, v.dtype)])
            return Val(name, v.dtype, v.shape, -4.0, 4.0, v.grid, v.noise)
        k = int(np.ceil(np.log2(v.mag))) - 1
        name = self.emit("Mul", [v, self.scalar(2.0**-k, v.dtype)])
        grid = None if v.grid is None else v.grid + k
        return Val(name, v.dtype, v.shape, v.lo * 2.0**-k, v.hi * 2.0**-k, grid, v.noise * 2.0**-k)

    # Constants and inputs.

    def constant(self, array, name=None):
        """A constant: an initializer, or the output of a Constant node."""
        array = np.asarray(array)
        if self.rng.random() < 0.3:
            out = self.fresh("c")
            self.nodes.append(helper.make_node("Constant", [], [out], value=numpy_helper.from_array(array)))
            return out
        name = name or self.fresh("w")
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def scalar(self, x, dtype):
        return self.constant(np.asarray(x, NUMPY[dtype]))

    def ints(self, xs):
        """A vector of i64, for axes, shapes and the like."""
        return self.constant(np.asarray(xs, np.int64))

    def draw(self, dtype, shape, continuous, positive):
        """An array of a type with its interval and grid."""
        rng, t = self.rng, NUMPY[dtype]
        if dtype == "bool":
            return rng.random(shape) < 0.5, 0, 1, 0
        if dtype in INTS:
            lo, hi = (1, 9) if positive else (0, 10) if dtype == "u8" else (-10, 10)
            return rng.integers(lo, hi + 1, shape).astype(t), lo, hi, 0
        lo, hi = (0.5, 4.5) if positive else (-2.0, 2.0)
        if continuous:
            return rng.uniform(lo, hi, shape).astype(t), lo - 0.01, hi + 0.01, None
        return (rng.integers(int(lo * 8), int(hi * 8) + 1, shape) / 8.0).astype(t), lo, hi, 3

    def source(self, dtype, shape, positive=False, constant=None):
        """A new value from outside: an input of the model, or a weight if the shape
        does not depend on the sizes."""
        shape = tuple(shape)
        static = all(is_static(d) for d in shape)
        if not static and not all(is_static(d) or d in self.names.values() for d in shape):
            raise Retry("a shape that no input can have")
        continuous = self.chance(0.4)
        if static and (self.chance(0.5) if constant is None else constant):
            array, lo, hi, grid = self.draw(dtype, [d[0] for d in shape], continuous, positive)
            return self.keep(Val(self.constant(array), dtype, shape, lo, hi, grid))
        name = self.fresh("x")
        for run in range(self.runs):
            # All sizes draw from one distribution, so that they share the interval.
            array, lo, hi, grid = self.draw(dtype, [d[run] for d in shape], continuous, positive)
            self.root.feeds[run][name] = np.asarray(array)
        by_extents = {v: k for k, v in self.names.items()}
        dims = [d[0] if is_static(d) else by_extents[d] for d in shape]
        self.root.inputs.append(helper.make_tensor_value_info(name, ONNX[dtype], dims))
        return self.keep(Val(name, dtype, shape, lo, hi, grid))

    def keep(self, v):
        self.pool.append(v)
        return v

    # Choosing.

    def visible(self):
        out, g = [], self
        while g:
            out = g.pool + out
            g = g.parent
        return out

    def chance(self, p):
        return self.rng.random() < p

    def choice(self, items):
        items = list(items)
        if not items:
            raise Retry("nothing to choose from")
        return items[int(self.rng.integers(len(items)))]

    def pick(self, ok=lambda v: True):
        """A value from the pool; late and unused ones are preferred."""
        found = [v for v in self.visible() if ok(v)]
        if not found:
            raise Retry("no such value")
        weights = np.array([(1.0 + i) * (1.0 if v.name in self.root.used else 3.0) for i, v in enumerate(found)])
        return found[int(self.rng.choice(len(found), p=weights / weights.sum()))]

    def float_val(self, rank=None, dtypes=FLOATS, ok=lambda v: True):
        at = (lambda r: True) if rank is None else (lambda r: r in rank)
        return self.pick(lambda v: v.dtype in dtypes and at(v.rank) and ok(v))

    def static_dim(self, small=False):
        sizes = [1, 2, 3, 4, 5] if small else [1, 2, 3, 4, 5, 7, 8, 16, 17, 33]
        return (int(self.choice(sizes)),) * self.runs

    def new_shape(self, rank):
        dims = [self.names[self.choice(self.names)] if self.chance(0.35) else self.static_dim(rank > 2) for _ in range(rank)]
        if max(elements(dims, self.runs)) > MAX_ELEMENTS // 2:
            raise Retry("too large")
        return tuple(dims)

    def operand(self, dtype, shape, ok=lambda v: True):
        """A value of just this shape and type: one that exists, a new source, or
        (inserted backward) something new brought into this shape."""
        shape = tuple(shape)
        found = [v for v in self.visible() if v.dtype == dtype and v.shape == shape and ok(v)]
        if found and self.chance(0.6):
            return self.choice(found)
        if self.chance(0.25) and len(shape) >= 2:
            v = self.backward(dtype, shape)
            if ok(v):
                return v
        try:
            v = self.source(dtype, shape)
            if ok(v):
                return v
        except Retry:
            pass
        return self.choice(found)

    def backward(self, dtype, shape):
        """A producer put before an operand that is needed."""
        kind = self.choice(["transpose", "expand", "cast"])
        if kind == "transpose":
            perm = [int(p) for p in self.rng.permutation(len(shape))]
            inner = [None] * len(shape)
            for out_axis, in_axis in enumerate(perm):
                inner[in_axis] = shape[out_axis]
            v = self.source(dtype, tuple(inner))
            return self.result("Transpose", [v], dtype, shape, v.lo, v.hi, v.grid, perm=perm)
        if kind == "expand" and all(is_static(d) for d in shape):
            inner = tuple(d if self.chance(0.5) else (1,) * self.runs for d in shape)
            v = self.source(dtype, inner)
            return self.result("Expand", [v, self.ints([d[0] for d in shape])], dtype, shape, v.lo, v.hi, v.grid)
        if dtype in ("bool", "u8", "f16"):
            return self.source(dtype, shape)
        v = self.source("i8", shape)
        return self.result("Cast", [v], dtype, shape, v.lo, v.hi, 0, to=ONNX[dtype])

    # Making a model.

    def to_onnx(self, outputs, inputs, name):
        return helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)


def info(v, with_shape=None):
    return helper.make_tensor_value_info(v.name, ONNX[v.dtype], with_shape)


def model(graph, opset):
    m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="random_graphs")
    m.ir_version = 10
    return m
