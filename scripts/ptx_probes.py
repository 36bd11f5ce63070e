#!/usr/bin/env python3
"""Writes runtime/tests/ptx/probes/*.ptx: one small kernel for each form of an instruction,
with its inputs and what it must give in comments. The expected words are computed here,
with exact fractions, NumPy and ml_dtypes, not by Kiln.

  scripts/ptx_probes.py [OUT_DIR]

A probe is a kernel `NAME(in, out)` of one warp, or of the four of a warpgroup where there are
128 rows of words. Lane i reads its words at in + 4 * n_in * i
and writes its words at out + 4 * n_out * i:

  // probe NAME
  // isa: the section of the PTX ISA that defines the instruction
  // in: words of lane 0; words of lane 1; ...     (32 lanes; fewer repeat)
  // out: the same

`hardware: N ulp` says that the ISA allows an error; without hardware that was asked the
expected value is the exact one, rounded once.
"""
import functools
import math
import random
import sys
from decimal import Decimal as Dec, getcontext
from fractions import Fraction as F
from pathlib import Path

import ml_dtypes
import numpy as np

HEAD = """// Written by scripts/ptx_probes.py.
.version {version}
.target {target}
.address_size 64
"""
LANES = 32
M32 = (1 << 32) - 1
random.seed(7)
getcontext().prec = 80


class File:
    """The probes of one file."""

    def __init__(self, name, target="sm_80", version="7.8"):
        self.name, self.text, self.names = name, [HEAD.format(target=target, version=version)], set()

    def probe(self, name, isa, regs, body, ins, outs, note=""):
        """`ins` and `outs` are words of each lane; the body reads %a0.. and writes %d0.."""
        name = name.replace("::", "_").replace(".", "_")
        assert name not in self.names, name
        self.names.add(name)
        n_in, n_out = len(ins[0]), len(outs[0])
        show = lambda rows: "; ".join(" ".join(f"{w & M32:08x}" for w in row) for row in rows)
        loads = "".join(f"    ld.global.b32 %a{i}, [%rd3+{4 * i}];\n" for i in range(n_in))
        stores = "".join(f"    st.global.b32 [%rd4+{4 * i}], %d{i};\n" for i in range(n_out))
        self.text.append(f"""
// probe {name}
// isa: {isa}{note}
// in: {show(ins)}
// out: {show(outs)}
.visible .entry {name}(.param .u64 in, .param .u64 out)
{{
    .reg .b32 %lane, %a<{max(n_in, 1)}>, %d<{n_out}>;
    .reg .b64 %rd<5>;
    {regs}
    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    mov.u32 %lane, %tid.x;
    mad.wide.u32 %rd3, %lane, {4 * n_in}, %rd1;
    mad.wide.u32 %rd4, %lane, {4 * n_out}, %rd2;
{loads}    {body}
{stores}    ret;
}}
""")

    def write(self, folder):
        (folder / f"{self.name}.ptx").write_text("".join(self.text))


# ---- values of types as words ----------------------------------------------------------

BITS = {"u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "b32": 32, "u32": 32, "s32": 32, "b64": 64,
        "u64": 64, "s64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "f16x2": 32, "bf16x2": 32}


def words(value, ty):
    """The bits of a value in an operand of `ty`, as words."""
    bits = raw(value, ty)
    return [bits & M32, bits >> 32] if BITS[ty] == 64 else [bits]


def raw(value, ty):
    if ty in ("f32", "f64", "f16", "bf16"):
        if isinstance(value, int):
            return value
        kind = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[ty]
        unsigned = {16: np.uint16, 32: np.uint32, 64: np.uint64}[BITS[ty]]
        if math.isnan(value):
            return {"f32": 0x7FFFFFFF, "f64": 0xFFF8000000000000, "f16": 0x7FFF, "bf16": 0x7FFF}[ty]
        with np.errstate(all="ignore"):
            return int(np.array([value], kind).view(unsigned)[0])
    return int(value) & ((1 << BITS[ty]) - 1)


def register(ty):
    return {"bf16": "b16", "bf16x2": "b32"}.get(ty, ty)


def unpack(k, ty, at):
    """PTX that makes register %{k} of type ty from words %a{at}..."""
    if BITS[ty] == 64:
        return f"mov.b64 %{k}, {{%a{at}, %a{at + 1}}};", 2
    if BITS[ty] == 16:
        return f"mov.b32 {{%{k}, %h}}, %a{at};", 1
    return f"mov.b32 %{k}, %a{at};", 1


def pack(ty, k="r"):
    if ty == "pred":
        return f"selp.b32 %d0, 1, 0, %{k};"
    if BITS[ty] == 64:
        return f"mov.b64 {{%d0, %d1}}, %{k};"
    if BITS[ty] == 16:
        return f"mov.b32 %d0, {{%{k}, %z}};"
    return f"mov.b32 %d0, %{k};"


def alu(f, op, out, types, rows, function, isa, extra="", note="", name=None):
    """A probe of `op d, a, b, ...`: rows of operands, their result by `function`."""
    body, at, names = [], 0, []
    for i, ty in enumerate(types):
        text, n = unpack(f"s{i}", ty, at)
        at += n
        names.append(f"%s{i}")
        body.append(text)
    if any(BITS[t] == 16 for t in [*types] if t != "pred") or (out != "pred" and BITS[out] == 16):
        body.insert(0, "mov.b16 %z, 0;")
    body += [f"{op} %r, {', '.join(names)}{extra};", pack(out)]
    regs = " ".join(f".reg .{register(t)} %s{i};" for i, t in enumerate(types))
    regs += f" .reg .{register(out)} %r; .reg .b16 %h, %z;"
    ins = [[w for v, t in zip(row, types) for w in words(v, t)] for row in rows]
    results = [function(*row) for row in rows]
    outs = [[int(v)] if out == "pred" else words(v, out) for v in results]
    f.probe(name or f"{f.name}_{op}", isa, regs, "\n    ".join(body), ins, outs, note)


# ---- integers --------------------------------------------------------------------------

INTS = ["u16", "s16", "u32", "s32", "u64", "s64"]


def wrap(v, ty):
    n = BITS[ty]
    v &= (1 << n) - 1
    return v - (1 << n) if ty[0] == "s" and v >> (n - 1) else v


def cases(ty, n=LANES):
    """Values of an integer type: its edges, then any."""
    bits = BITS[ty]
    edges = [0, 1, 2, 3, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1, 0x5A5A5A5A5A5A5A5A, 10, 7]
    values = [wrap(v, ty) for v in edges] + [wrap(random.getrandbits(bits), ty) for _ in range(n)]
    return values


def rows_of(types, n=LANES):
    lists = [cases(t) for t in types]
    out = []
    for i in range(n):
        out.append([l[i] if i < 10 and k == 0 else random.choice(l) for k, l in enumerate(lists)])
    return out


def trunc_div(a, b):
    q = abs(a) // abs(b)
    return -q if (a < 0) != (b < 0) else q


def integers():
    f = File("int")
    isa = "Integer Arithmetic Instructions"
    for ty in INTS:
        n = BITS[ty]
        two = {
            "add": lambda a, b: a + b,
            "sub": lambda a, b: a - b,
            "mul.lo": lambda a, b: a * b,
            "mul.hi": lambda a, b: (a * b) >> n,
            "min": min,
            "max": max,
        }
        for op, fn in two.items():
            alu(f, f"{op}.{ty}", ty, [ty, ty], rows_of([ty, ty]), fn, f"{isa}: {op}")
        nonzero = [r if r[1] else [r[0], 3] for r in rows_of([ty, ty])]
        alu(f, f"div.{ty}", ty, [ty, ty], nonzero, trunc_div, f"{isa}: div")
        alu(f, f"rem.{ty}", ty, [ty, ty], nonzero, lambda a, b: a - b * trunc_div(a, b), f"{isa}: rem")
        alu(f, f"mad.lo.{ty}", ty, [ty] * 3, rows_of([ty] * 3), lambda a, b, c: a * b + c, f"{isa}: mad")
        alu(f, f"mad.hi.{ty}", ty, [ty] * 3, rows_of([ty] * 3), lambda a, b, c: ((a * b) >> n) + c, f"{isa}: mad")
        alu(f, f"sad.{ty}", ty, [ty] * 3, rows_of([ty] * 3), lambda a, b, c: c + abs(a - b), f"{isa}: sad")
        if n < 64:
            wide = ty[0] + str(2 * n)
            alu(f, f"mul.wide.{ty}", wide, [ty, ty], rows_of([ty, ty]), lambda a, b: a * b, f"{isa}: mul")
            rows = rows_of([ty, ty, wide])
            alu(f, f"mad.wide.{ty}", wide, [ty, ty, wide], rows, lambda a, b, c: a * b + c, f"{isa}: mad")
        if ty[0] == "s":
            alu(f, f"abs.{ty}", ty, [ty], rows_of([ty]), abs, f"{isa}: abs")
            alu(f, f"neg.{ty}", ty, [ty], rows_of([ty]), lambda a: -a, f"{isa}: neg")
    clamp = lambda v: max(-(1 << 31), min((1 << 31) - 1, v))
    alu(f, "add.sat.s32", "s32", ["s32"] * 2, rows_of(["s32"] * 2), lambda a, b: clamp(a + b), f"{isa}: add")
    alu(f, "sub.sat.s32", "s32", ["s32"] * 2, rows_of(["s32"] * 2), lambda a, b: clamp(a - b), f"{isa}: sub")
    alu(f, "mad.hi.sat.s32", "s32", ["s32"] * 3, rows_of(["s32"] * 3),
        lambda a, b, c: clamp(((a * b) >> 32) + c), f"{isa}: mad")
    for a in "us":
        for b in "us":
            out = "u32" if a == b == "u" else "s32"
            byte = lambda w, i, t: (((w >> (8 * i)) & 255) ^ (128 if t == "s" else 0)) - (128 if t == "s" else 0)
            fn = lambda x, y, c, a=a, b=b: c + sum(byte(x, i, a) * byte(y, i, b) for i in range(4))
            alu(f, f"dp4a.{a}32.{b}32", out, ["b32", "b32", out], rows_of(["u32", "u32", out]), fn, f"{isa}: dp4a")
    ext = "Extended-Precision Integer Arithmetic Instructions"
    for first, second, sign in (("add.cc", "addc", 1), ("sub.cc", "subc", -1)):
        ins = [[random.choice(cases("u32")) for _ in range(4)] for _ in range(LANES)]
        outs = []
        for a, b, c, d in ins:
            v = (a | b << 32) + sign * (c | d << 32)
            outs.append([v & M32, (v >> 32) & M32])
        f.probe(f"int_{first}", f"{ext}: {first}, {second}", "",
                f"{first}.u32 %d0, %a0, %a2; {second}.u32 %d1, %a1, %a3;", ins, outs)
    return f


# ---- bits ------------------------------------------------------------------------------


def logic():
    f = File("logic")
    isa, misc = "Logic and Shift Instructions", "Integer Arithmetic Instructions"
    for ty in ("b16", "b32", "b64"):
        n, u = BITS[ty], "u" + ty[1:]
        alu(f, f"and.{ty}", ty, [ty] * 2, rows_of([u] * 2), lambda a, b: a & b, f"{isa}: and")
        alu(f, f"or.{ty}", ty, [ty] * 2, rows_of([u] * 2), lambda a, b: a | b, f"{isa}: or")
        alu(f, f"xor.{ty}", ty, [ty] * 2, rows_of([u] * 2), lambda a, b: a ^ b, f"{isa}: xor")
        alu(f, f"not.{ty}", ty, [ty], rows_of([u]), lambda a: ~a, f"{isa}: not")
        alu(f, f"cnot.{ty}", ty, [ty], rows_of([u]), lambda a: int(a == 0), f"{isa}: cnot")
        amounts = [0, 1, n - 1, n, n + 1, 100, 255, 7]
        shifts = lambda t: [[r[0], amounts[i % 8]] for i, r in enumerate(rows_of([t]))]
        alu(f, f"shl.{ty}", ty, [ty, "u32"], shifts(u), lambda a, s: a << s, f"{isa}: shl")
        for kind in "us":
            t = kind + ty[1:]
            alu(f, f"shr.{t}", t, [t, "u32"], shifts(t), lambda a, s: a >> min(s, 64), f"{isa}: shr")
    for ty in ("b32", "b64"):
        n, u = BITS[ty], "u" + ty[1:]
        alu(f, f"popc.{ty}", "u32", [ty], rows_of([u]), lambda a: bin(a).count("1"), f"{misc}: popc")
        alu(f, f"clz.{ty}", "u32", [ty], rows_of([u]), lambda a: n - a.bit_length(), f"{misc}: clz")
        alu(f, f"brev.{ty}", ty, [ty], rows_of([u]), lambda a: int(f"{a:0{n}b}"[::-1], 2), f"{misc}: brev")
        for kind in "us":
            t = kind + ty[1:]
            top = lambda a: (~a if a < 0 else a).bit_length() - 1
            alu(f, f"bfind.{t}", "u32", [t], rows_of([t]), top, f"{misc}: bfind")
            alu(f, f"bfind.shiftamt.{t}", "u32", [t], rows_of([t]),
                lambda a: M32 if top(a) < 0 else n - 1 - top(a), f"{misc}: bfind")

            def extract(a, pos, length):
                msb = n - 1
                bit = lambda i: (a >> i) & 1
                sign = bit(min(pos + length - 1, msb)) if t[0] == "s" and length else 0
                return sum((bit(pos + i) if i < length and pos + i <= msb else sign) << i for i in range(n))

            fields = [[r[0], random.choice([0, 1, 5, 31, 40, 63]), random.choice([0, 1, 8, 31, 32, 64])]
                      for r in rows_of([t])]
            alu(f, f"bfe.{t}", t, [t, "u32", "u32"], fields, extract, f"{misc}: bfe")

        def insert(a, b, pos, length):
            for i in range(length):
                if pos + i < n:
                    b = b & ~(1 << (pos + i)) | ((a >> i) & 1) << (pos + i)
            return b

        fields = [[*r, random.choice([0, 1, 5, 31, 40]), random.choice([0, 1, 8, 31, 32])] for r in rows_of([u, u])]
        alu(f, f"bfi.{ty}", ty, [ty, ty, "u32", "u32"], fields, insert, f"{misc}: bfi")
    for table in (0xE8, 0x96, 0x1B, 0xFE, 0x01):
        def lop(a, b, c):
            return sum(((table >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1))) & 1) << i for i in range(32))
        alu(f, "lop3.b32", "b32", ["b32"] * 3, rows_of(["u32"] * 3), lop, f"{isa}: lop3",
            extra=f", {table}", name=f"logic_lop3_{table:02x}")
    for mode in ("wrap", "clamp"):
        for side in "lr":
            def shf(a, b, c):
                n = c & 31 if mode == "wrap" else min(c, 32)
                both = b << 32 | a
                return (both << n) >> 32 if side == "l" else both >> n
            rows = [[*r, random.choice([0, 1, 16, 31, 32, 40])] for r in rows_of(["u32"] * 2)]
            alu(f, f"shf.{side}.{mode}.b32", "b32", ["b32", "b32", "u32"], rows, shf, f"{isa}: shf")

    def prmt(mode):
        def fn(a, b, c):
            data = [(a | b << 32) >> (8 * i) & 255 for i in range(8)]
            n = c & 3
            if mode == "":
                picks = [(c >> (4 * i)) & 15 for i in range(4)]
                get = lambda s: (255 if data[s & 7] & 128 else 0) if s & 8 else data[s]
            else:
                get = lambda s: data[s]
                picks = {
                    "f4e": [n, n + 1, n + 2, n + 3],
                    "b4e": [n, (n - 1) % 8, (n - 2) % 8, (n - 3) % 8],
                    "rc8": [n] * 4,
                    "ecl": [max(n, i) for i in range(4)],
                    "ecr": [min(n, i) for i in range(4)],
                    "rc16": [(n & 1) * 2, (n & 1) * 2 + 1] * 2,
                }[mode]
            return sum(get(s) << (8 * i) for i, s in enumerate(picks))
        return fn

    for mode in ("", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"):
        op = "prmt.b32" + ("." + mode if mode else "")
        alu(f, op, "b32", ["b32"] * 3, rows_of(["u32"] * 3), prmt(mode), "Data Movement and Conversion Instructions: prmt")

    def fns(mask, base, offset):
        ups = [i for i in range(base, 32) if mask >> i & 1]
        downs = [i for i in range(base, -1, -1) if mask >> i & 1]
        if offset == 0:
            return base if mask >> base & 1 else M32
        found = ups if offset > 0 else downs
        return found[abs(offset) - 1] if abs(offset) <= len(found) else M32
    rows = [[random.getrandbits(32), random.randrange(32), random.randrange(-8, 9)] for _ in range(LANES)]
    alu(f, "fns.b32", "b32", ["b32", "b32", "s32"], rows, fns, f"{misc}: fns")
    return f


# ---- floating point --------------------------------------------------------------------

FORMATS = {"f32": (24, -126, 127), "f64": (53, -1022, 1023), "f16": (11, -14, 15), "bf16": (8, -126, 127),
           "tf32": (11, -126, 127), "e5m2": (3, -14, 15)}


def rnd(x, ty, mode):
    """The fraction `x` rounded to a format in a direction, as a float."""
    p, emin, emax = FORMATS[ty]
    if x == 0:
        return 0.0
    sign, mag = (-1 if x < 0 else 1), abs(x)
    e = max(mag.numerator.bit_length() - mag.denominator.bit_length() - 1, emin)
    while mag >= F(2) ** (e + 1):
        e += 1
    unit = F(2) ** (e - p + 1)
    q, rest = divmod(mag, unit)
    up = {"rn": rest * 2 > unit or (rest * 2 == unit and q % 2 == 1), "rz": False, "rna": rest * 2 >= unit,
          "rm": sign < 0 and rest > 0, "rp": sign > 0 and rest > 0}[mode]
    mag = (q + up) * unit
    if mag >= F(2) ** (emax + 1):
        big = (2 - F(2) ** (1 - p)) * F(2) ** emax
        finite = mode == "rz" or (mode == "rm" and sign > 0) or (mode == "rp" and sign < 0)
        return sign * (float(big) if finite else math.inf)
    return sign * float(mag) if mag else sign * 0.0


def floats_of(ty, n=LANES):
    p, emin, emax = FORMATS[ty]
    out = []
    for _ in range(n):
        e = random.choice([0, 1, -1, 3, random.randint(-12, 12), random.randint(emin // 3, emax // 3)])
        m = random.getrandbits(p - 1) | 1 << (p - 1)
        out.append(random.choice([-1, 1]) * m * 2.0 ** (e - p + 1))
    return out


def exact(fn, ty, mode):
    return lambda *a: rnd(fn(*map(F, a)), ty, mode)


def sqrt_fraction(x):
    """The root with 2000 bits, and a bit more where it is not exact."""
    scale = 2 ** 4000
    n = x.numerator * scale // x.denominator
    r = math.isqrt(n)
    more = 0 if r * r == n and x.numerator * scale % x.denominator == 0 else F(1, 2)
    return (F(r) + more) / 2 ** 2000


def sine(x, shift=0):
    """The sine, or with a shift of 1 the cosine, by its series in 60 digits."""
    term, total, n = (x, x, 1) if not shift else (Dec(1), Dec(1), 0)
    while abs(term) > Dec(10) ** -60:
        term = -term * x * x / ((n + 1) * (n + 2))
        total, n = total + term, n + 2
    return total


def tanh(x):
    e = (2 * x).exp()
    return (e - 1) / (e + 1)


def float_probes():
    f = File("float")
    isa = "Floating Point Instructions"
    for ty in ("f32", "f64"):
        values = lambda k: list(zip(*[floats_of(ty) for _ in range(k)]))
        near = [(a, b) if i % 2 else (a, -a * (1 + 2.0 ** -10)) for i, (a, b) in enumerate(values(2))]
        near = [tuple(float(np.dtype(f"f{BITS[ty] // 8}").type(v)) for v in row) for row in near]
        for mode in ("rn", "rz", "rm", "rp"):
            for op, fn in (("add", lambda a, b: a + b), ("sub", lambda a, b: a - b), ("mul", lambda a, b: a * b)):
                alu(f, f"{op}.{mode}.{ty}", ty, [ty] * 2, near, exact(fn, ty, mode), f"{isa}: {op}")
            alu(f, f"div.{mode}.{ty}", ty, [ty] * 2, values(2), exact(lambda a, b: a / b, ty, mode), f"{isa}: div")
            alu(f, f"rcp.{mode}.{ty}", ty, [ty], values(1), exact(lambda a: 1 / a, ty, mode), f"{isa}: rcp")
            positive = [(abs(v[0]),) for v in values(1)]
            alu(f, f"sqrt.{mode}.{ty}", ty, [ty], positive, exact(sqrt_fraction, ty, mode), f"{isa}: sqrt")
            if ty == "f32" or mode == "rn":
                rows = [(a, b, -float(np.dtype(f"f{BITS[ty] // 8}").type(a * b)) if i % 3 == 0 else c)
                        for i, (a, b, c) in enumerate(values(3))]
                alu(f, f"fma.{mode}.{ty}", ty, [ty] * 3, rows, exact(lambda a, b, c: a * b + c, ty, mode), f"{isa}: fma")
    inf, nan = math.inf, math.nan
    special = [(1.0, 2.0), (nan, 1.0), (1.0, nan), (nan, nan), (inf, 1.0), (-inf, inf), (0.0, -0.0), (-0.0, 0.0),
               (-3.0, 2.0), (3.0, -2.0), (-1.0, -2.0), (1e-42, 2e-42)]

    def pick(op, propagate):
        def fn(a, b):
            if math.isnan(a) or math.isnan(b):
                return nan if propagate or (math.isnan(a) and math.isnan(b)) else (b if math.isnan(a) else a)
            if a == b == 0:
                neg = [math.copysign(1, v) < 0 for v in (a, b)]
                return -0.0 if (any(neg) if op == "min" else all(neg)) else 0.0
            return min(a, b) if op == "min" else max(a, b)
        return fn

    def signed(op, propagate):
        def fn(a, b):
            s = math.copysign(1, a) * math.copysign(1, b)
            v = pick(op, propagate)(abs(a), abs(b))
            return v if math.isnan(v) else math.copysign(v, s)
        return fn

    flush = lambda v: math.copysign(0.0, v) if 0 < abs(v) < 2.0 ** -126 else v
    for op in ("min", "max"):
        alu(f, f"{op}.f32", "f32", ["f32"] * 2, special, pick(op, False), f"{isa}: {op}")
        alu(f, f"{op}.f64", "f64", ["f64"] * 2, special, pick(op, False), f"{isa}: {op}")
        alu(f, f"{op}.NaN.f32", "f32", ["f32"] * 2, special, pick(op, True), f"{isa}: {op}")
        alu(f, f"{op}.ftz.f32", "f32", ["f32"] * 2, special,
            lambda a, b: pick(op, False)(flush(a), flush(b)), f"{isa}: {op}")
    small = [(1e-42, 1e-42), (-1e-42, 0.0), (2.0 ** -126, -(2.0 ** -127)), (1.5, 0.25), (-2.0, 0.5), (0.75, 0.75), (nan, 0.0)]
    alu(f, "add.ftz.f32", "f32", ["f32"] * 2, small, lambda a, b: flush(flush(a) + flush(b)), f"{isa}: add")
    sat = lambda v: 0.0 if math.isnan(v) or v <= 0 else min(v, 1.0)
    alu(f, "add.sat.f32", "f32", ["f32"] * 2, small[3:], lambda a, b: sat(a + b), f"{isa}: add")
    alu(f, "mul.sat.f32", "f32", ["f32"] * 2, small[3:], lambda a, b: sat(a * b), f"{isa}: mul")
    alu(f, "fma.rn.ftz.sat.f32", "f32", ["f32"] * 3, [(a, b, 0.25) for a, b in small],
        lambda a, b, c: sat(flush(a) * flush(b) + c), f"{isa}: fma")
    singles = [(v,) for v in (1.5, -1.5, 0.0, -0.0, inf, -inf, 1e-42)]
    for ty in ("f32", "f64"):
        alu(f, f"abs.{ty}", ty, [ty], singles, abs, f"{isa}: abs")
        alu(f, f"neg.{ty}", ty, [ty], singles, lambda a: -a, f"{isa}: neg")
        alu(f, f"copysign.{ty}", ty, [ty] * 2, [(a, 3.0) for (a,) in singles], lambda a, b: math.copysign(b, a), f"{isa}: copysign")
        tests = {"finite": math.isfinite, "infinite": math.isinf, "number": lambda v: not math.isnan(v),
                 "notanumber": math.isnan, "normal": lambda v: math.isfinite(v) and abs(v) >= 2.0 ** (-126 if ty == "f32" else -1022),
                 "subnormal": lambda v: 0 < abs(v) < 2.0 ** (-126 if ty == "f32" else -1022)}
        for name, fn in tests.items():
            alu(f, f"testp.{name}.{ty}", "pred", [ty], singles + [(nan,)], fn, f"{isa}: testp")
    # The ISA bounds these errors; expected is the exact result rounded once.
    to_f32 = lambda v: rnd(F(v), "f32", "rn")
    args = [(float(np.float32(v)),) for v in np.linspace(0.05, 9, 20)] + [(0.5,), (2.0,)]
    for op, fn, ulp in (("sin", sine, 2), ("cos", lambda v: sine(v, 1), 2), ("lg2", lambda v: v.ln() / Dec(2).ln(), 2),
                        ("ex2", lambda v: Dec(2) ** v, 2), ("rsqrt", lambda v: 1 / v.sqrt(), 2),
                        ("rcp", lambda v: 1 / v, 1), ("sqrt", lambda v: v.sqrt(), 2), ("tanh", tanh, 16)):
        alu(f, f"{op}.approx.f32", "f32", ["f32"], args, lambda a: to_f32(fn(Dec(a))), f"{isa}: {op}",
            note=f"; hardware: {ulp} ulp or the ISA's absolute error")
    pairs = [(a, b) for (a,), (b,) in zip(args, args[::-1])]
    for op in ("div.approx.f32", "div.full.f32"):
        alu(f, op, "f32", ["f32"] * 2, pairs, exact(lambda a, b: a / b, "f32", "rn"), f"{isa}: div", note="; hardware: 2 ulp")
    return f


def half_probes():
    f = File("half", target="sm_90", version="8.0")
    isa = "Half Precision Floating Point Instructions"
    for ty in ("f16", "bf16"):
        values = lambda k: [tuple(r) for r in zip(*[floats_of(ty) for _ in range(k)])]
        ops = {"add": (2, lambda a, b: a + b), "sub": (2, lambda a, b: a - b), "mul": (2, lambda a, b: a * b),
               "fma.rn": (3, lambda a, b, c: a * b + c), "fma.rn.relu": (3, lambda a, b, c: max(a * b + c, F(0)))}
        for op, (k, fn) in ops.items():
            alu(f, f"{op}.{ty}", ty, [ty] * k, values(k), exact(fn, ty, "rn"), f"{isa}: {op}")
            rows = [tuple(raw(x, ty) | raw(y, ty) << 16 for x, y in zip(p, q)) for p, q in zip(values(k), values(k))]

            def packed(*row):
                one = lambda s: raw(exact(fn, ty, "rn")(*[number(w >> s & 0xFFFF, ty) for w in row]), ty)
                return one(0) | one(16) << 16
            alu(f, f"{op}.{ty}x2", f"{ty}x2", [f"{ty}x2"] * k, rows, packed, f"{isa}: {op}")
        for op in ("min", "max"):
            alu(f, f"{op}.{ty}", ty, [ty] * 2, values(2), min if op == "min" else max, f"{isa}: {op}")
        alu(f, f"abs.{ty}", ty, [ty], values(1), abs, f"{isa}: abs")
        alu(f, f"neg.{ty}", ty, [ty], values(1), lambda a: -a, f"{isa}: neg")
        to = lambda v: rnd(F(v), ty, "rn")
        args = [(float(number(raw(v, ty), ty)),) for v in (0.3, -0.7, 1.25, 3.0, -2.5, 0.01)]
        alu(f, f"tanh.approx.{ty}", ty, [ty], args, lambda a: to(tanh(Dec(a))), f"{isa}: tanh", note="; hardware: 2 ulp")
        ftz = ".ftz" if ty == "bf16" else ""
        alu(f, f"ex2.approx{ftz}.{ty}", ty, [ty], args, lambda a: to(Dec(2) ** Dec(a)), f"{isa}: ex2", note="; hardware: 2 ulp")
        for cmp, fn in COMPARE.items():
            rows = values(2)[:16] + [(v, v) for (v,) in args] + [(math.nan, 1.0)]
            alu(f, f"setp.{cmp}.{ty}", "pred", [ty] * 2, rows, fn, "Half Precision Comparison Instructions: setp")
    return f


def number(bits, ty):
    kind = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}[ty]
    unsigned = np.uint8 if ty in ("e4m3", "e5m2") else np.uint16
    return float(np.array([bits], unsigned).view(kind)[0])


UNORDERED = lambda a, b: math.isnan(a) or math.isnan(b)
COMPARE = {"eq": lambda a, b: a == b, "ne": lambda a, b: a != b and not UNORDERED(a, b), "lt": lambda a, b: a < b,
           "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b}


def compare():
    f = File("compare")
    isa = "Comparison and Selection Instructions"
    more = {c + "u": (lambda a, b, fn=fn: fn(a, b) or UNORDERED(a, b)) for c, fn in COMPARE.items()}
    more["num"] = lambda a, b: not UNORDERED(a, b)
    more["nan"] = UNORDERED
    for ty in INTS:
        for cmp, fn in COMPARE.items():
            rows = rows_of([ty, ty])
            rows[3] = [rows[3][0]] * 2
            alu(f, f"setp.{cmp}.{ty}", "pred", [ty] * 2, rows, fn, f"{isa}: setp")
    values = [1.0, -1.0, 0.0, -0.0, math.inf, math.nan, 2.5]
    rows = [(random.choice(values), random.choice(values)) for _ in range(LANES)]
    for ty in ("f32", "f64"):
        for cmp, fn in {**COMPARE, **more}.items():
            alu(f, f"setp.{cmp}.{ty}", "pred", [ty] * 2, rows, fn, f"{isa}: setp")
    ints = [(random.randrange(4), random.randrange(4), random.randrange(2)) for _ in range(LANES)]
    for combine, g in (("and", lambda x, c: x and c), ("or", lambda x, c: x or c), ("xor", lambda x, c: x != c)):
        f.probe(f"setp_{combine}", f"{isa}: setp", ".reg .pred %p, %q, %c;",
                f"setp.ne.u32 %c, %a2, 0; setp.lt.{combine}.u32 %p|%q, %a0, %a1, !%c; "
                "selp.b32 %d0, 1, 0, %p; selp.b32 %d1, 1, 0, %q;", [list(r) for r in ints],
                [[int(bool(g(a < b, not c))), int(bool(g(a >= b, not c)))] for a, b, c in ints])
    f.probe("set_f32", f"{isa}: set", ".reg .f32 %f;", "set.gt.f32.s32 %f, %a0, %a1; mov.b32 %d0, %f;",
            [[a, b] for a, b, _ in ints], [[0x3F800000 if a > b else 0] for a, b, _ in ints])
    f.probe("set_u32", f"{isa}: set", "", "set.le.u32.s32 %d0, %a0, %a1;",
            [[a, b] for a, b, _ in ints], [[M32 if a <= b else 0] for a, b, _ in ints])
    signs = [[a, b, c] for a, b, c in zip(cases("u32"), cases("u32")[::-1], cases("u32"))]
    f.probe("slct_s32", f"{isa}: slct", "", "slct.b32.s32 %d0, %a0, %a1, %a2;", signs,
            [[a if c < 1 << 31 else b] for a, b, c in signs])
    singles = [[1, 2, raw(v, "f32")] for v in (1.0, -1.0, 0.0, -0.0, math.nan)]
    f.probe("slct_f32", f"{isa}: slct", ".reg .f32 %f;", "mov.b32 %f, %a2; slct.b32.f32 %d0, %a0, %a1, %f;", singles,
            [[1], [2], [1], [1], [2]])
    return f


# ---- conversions -----------------------------------------------------------------------


def convert():
    f = File("convert", target="sm_90", version="8.1")
    isa = "Data Movement and Conversion Instructions: cvt"
    for to in INTS:
        for fr in INTS:
            if to != fr:
                alu(f, f"cvt.{to}.{fr}", to, [fr], rows_of([fr]), lambda a: a, isa)
        top, low = (1 << (BITS[to] - (to[0] == "s"))) - 1, -(1 << (BITS[to] - 1)) if to[0] == "s" else 0
        source = "s64" if to != "s64" else "u64"
        alu(f, f"cvt.sat.{to}.{source}", to, [source], rows_of([source]), lambda a: max(low, min(top, a)), isa)
        for fr in ("f32", "f64", "f16"):
            rows = [(v,) for v in (0.5, 1.5, 2.5, -0.5, -1.5, 3.49, -3.51, 1e4, -1e4, 6e4, math.inf, -math.inf)]
            rows = [(float(np.dtype(f"f{BITS[fr] // 8}").type(v)),) for (v,) in rows] + floats_rows(fr)
            for mode, fn in (("rni", lambda v: round(F(v))), ("rzi", math.trunc), ("rmi", math.floor), ("rpi", math.ceil)):
                clamp = lambda v: (top if v > 0 else low) if math.isinf(v) else max(low, min(top, int(fn(v))))
                alu(f, f"cvt.{mode}.{to}.{fr}", to, [fr], rows, clamp, isa)
        for ty in ("f32", "f64", "f16"):
            for mode in ("rn", "rz", "rm", "rp"):
                alu(f, f"cvt.{mode}.{ty}.{to}", ty, [to], rows_of([to]), exact(lambda a: a, ty, mode), isa)
    for mode in ("rn", "rz", "rm", "rp"):
        alu(f, f"cvt.{mode}.f32.f64", "f32", ["f64"], floats_rows("f64"), exact(lambda a: a, "f32", mode), isa)
        alu(f, f"cvt.{mode}.f16.f32", "f16", ["f32"], floats_rows("f32"), exact(lambda a: a, "f16", mode), isa)
        alu(f, f"cvt.{mode}.f16.f64", "f16", ["f64"], floats_rows("f64"), exact(lambda a: a, "f16", mode), isa)
    alu(f, "cvt.f32.f16", "f32", ["f16"], floats_rows("f16"), lambda a: a, isa)
    alu(f, "cvt.f64.f32", "f64", ["f32"], floats_rows("f32"), lambda a: a, isa)
    alu(f, "cvt.f32.bf16", "f32", ["bf16"], floats_rows("bf16"), lambda a: a, isa)
    alu(f, "cvt.sat.f32.f32", "f32", ["f32"], floats_rows("f32"), lambda a: min(max(a, 0.0), 1.0), isa)
    for mode, fn in (("rni", lambda v: float(round(v))), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
        rows = [(v,) for v in (0.4, 1.5, 2.5, 3.7, 1e6)]
        rows = [(float(np.float32(v)),) for (v,) in rows]
        alu(f, f"cvt.{mode}.f32.f32", "f32", ["f32"], rows, lambda v: float(fn(v)), isa)
    for mode in ("rn", "rz"):
        alu(f, f"cvt.{mode}.bf16.f32", "bf16", ["f32"], floats_rows("f32"), exact(lambda a: a, "bf16", mode), isa)
        relu = lambda ty: lambda a: rnd(max(F(a), F(0)), ty, mode)
        alu(f, f"cvt.{mode}.relu.bf16.f32", "bf16", ["f32"], floats_rows("f32"), relu("bf16"), isa)
        alu(f, f"cvt.{mode}.relu.f16.f32", "f16", ["f32"], floats_rows("f32"), relu("f16"), isa)
        for ty in ("f16", "bf16"):
            two = lambda a, b: raw(rnd(F(b), ty, mode), ty) | raw(rnd(F(a), ty, mode), ty) << 16
            rows = list(zip(floats_of("f32"), floats_of("f32")))
            alu(f, f"cvt.{mode}.{ty}x2.f32", f"{ty}x2", ["f32"] * 2, rows, two, isa)
    for mode in ("rna", "rn", "rz"):
        alu(f, f"cvt.{mode}.tf32.f32", "b32", ["f32"], floats_rows("f32"),
            lambda a: raw(rnd(F(a), "tf32", mode), "f32"), isa)
    kinds = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
    most = {"e4m3": 448.0, "e5m2": 57344.0}
    for ty, kind in kinds.items():
        def byte(v):
            clipped = np.float32(max(-most[ty], min(most[ty], v)))
            return int(np.array([clipped]).astype(kind).view(np.uint8)[0])
        values = [0.0, 1.0, -1.0, 0.3, 447.0, 460.0, 1e9, -1e9, 2.0 ** -9, 2.0 ** -10, 0.017, -3.3, 57000.0, 61439.0]
        rows = [(float(np.float32(random.choice(values))), float(np.float32(random.choice(values)))) for _ in range(LANES)]
        alu(f, f"cvt.rn.satfinite.{ty}x2.f32", "b16", ["f32"] * 2, rows, lambda a, b: byte(b) | byte(a) << 8, isa)
        finite = [i for i in range(256) if math.isfinite(number(i, ty))]
        rows = [(random.choice(finite) | random.choice(finite) << 8,) for _ in range(LANES)]
        alu(f, f"cvt.rn.f16x2.{ty}x2", "f16x2", ["b16"], rows,
            lambda a: raw(number(a & 255, ty), "f16") | raw(number(a >> 8, ty), "f16") << 16, isa)
    return f


def floats_rows(ty):
    p, emin, emax = FORMATS[ty]
    tiny = [2.0 ** (emin - 1), 3 * 2.0 ** (emin - p + 1)] if ty != "f64" else [2.0 ** -25 * 1.5, 2.0 ** -149]
    values = floats_of(ty, 20) + [0.0, 1.0, 65504.0 if ty != "bf16" else 65280.0, 0.75, 1e-5 if ty in ("f32", "f64") else 0.125, *tiny]
    cast = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[ty]
    return [(float(cast(v)),) for v in values]


# ---- lanes -----------------------------------------------------------------------------


def lanes():
    f = File("lanes", target="sm_90", version="8.0")
    isa = "Parallel Synchronization and Communication Instructions"
    move = "Data Movement and Conversion Instructions: shfl.sync"
    data = [random.getrandbits(32) for _ in range(LANES)]
    for mode in ("up", "down", "bfly", "idx"):
        for b, c in ((1, 0 if mode == "up" else 31), (5, 0 if mode == "up" else 31), (3, 0x1800 if mode == "up" else 0x1807)):
            outs = []
            for lane in range(LANES):
                seg, clamp = c >> 8 & 31, c & 31
                most, least = lane & seg | clamp & ~seg, lane & seg
                j = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": least | b & ~seg}[mode]
                ok = j >= most if mode == "up" else j <= most
                outs.append([data[j if ok else lane], int(ok)])
            f.probe(f"shfl_{mode}_{b}_{c}", move, ".reg .pred %p;",
                    f"shfl.sync.{mode}.b32 %d0|%p, %a0, {b}, {c}, 0xffffffff; selp.b32 %d1, 1, 0, %p;",
                    [[d] for d in data], outs)
    bits = [random.randrange(2) for _ in range(LANES)]
    head = ".reg .pred %p, %q;"
    for mode, value in (("all", all(bits)), ("any", any(bits)), ("uni", len(set(bits)) == 1)):
        f.probe(f"vote_{mode}", f"{isa}: vote.sync", head,
                f"setp.ne.u32 %p, %a0, 0; vote.sync.{mode}.pred %q, %p, 0xffffffff; selp.b32 %d0, 1, 0, %q;",
                [[b] for b in bits], [[int(value)]] * LANES)
    ballot = sum(b << i for i, b in enumerate(bits))
    f.probe("vote_ballot", f"{isa}: vote.sync", head,
            "setp.ne.u32 %p, %a0, 0; vote.sync.ballot.b32 %d0, !%p, 0xffffffff;",
            [[b] for b in bits], [[~ballot & M32]] * LANES)
    groups = [random.randrange(4) for _ in range(LANES)]
    same = lambda v: sum(1 << i for i, g in enumerate(groups) if g == v)
    f.probe("match_any", f"{isa}: match.sync", "", "match.any.sync.b32 %d0, %a0, 0xffffffff;",
            [[g] for g in groups], [[same(g)] for g in groups])
    f.probe("match_all", f"{isa}: match.sync", head,
            "match.all.sync.b32 %d0|%p, %a0, 0xffffffff; selp.b32 %d1, 1, 0, %p;",
            [[g] for g in groups], [[0, 0]] * LANES)
    signed = [wrap(d, "s32") for d in data]
    for op, ty, value in (("add", "u32", sum(data)), ("min", "s32", min(signed)), ("max", "s32", max(signed)),
                          ("min", "u32", min(data)), ("max", "u32", max(data))):
        f.probe(f"redux_{op}_{ty}", f"{isa}: redux.sync", "", f"redux.sync.{op}.{ty} %d0, %a0, 0xffffffff;",
                [[d] for d in data], [[value & M32]] * LANES)
    for op, fn in (("and", lambda a, b: a & b), ("or", lambda a, b: a | b), ("xor", lambda a, b: a ^ b)):
        f.probe(f"redux_{op}", f"{isa}: redux.sync", "", f"redux.sync.{op}.b32 %d0, %a0, 0xffffffff;",
                [[d] for d in data], [[functools.reduce(fn, data)]] * LANES)
    f.probe("activemask", f"{isa}: activemask", head,
            "setp.lt.u32 %p, %a0, 9; mov.b32 %d0, 0; @!%p bra END; activemask.b32 %d0; END:",
            [[i] for i in range(LANES)], [[0x1FF if i < 9 else 0] for i in range(LANES)])
    f.probe("lanemasks", "Special Registers", "",
            "mov.u32 %d0, %lanemask_eq; mov.u32 %d1, %lanemask_le; mov.u32 %d2, %lanemask_lt; mov.u32 %d3, %lanemask_ge; "
            "mov.u32 %d4, %lanemask_gt; mov.u32 %d5, %laneid;", [[0]],
            [[1 << i, (2 << i) - 1, (1 << i) - 1, M32 & ~((1 << i) - 1), M32 & ~((2 << i) - 1), i] for i in range(LANES)])
    f.probe("mov_halves", "Data Movement and Conversion Instructions: mov", ".reg .b16 %h<4>; .reg .b64 %x;",
            "mov.b64 %x, {%a0, %a1}; mov.b64 {%h0, %h1, %h2, %h3}, %x; mov.b64 %x, {%h3, %h2, %h1, %h0}; "
            "mov.b64 {%d0, %d1}, %x;", [[0x22221111, 0x44443333]], [[0x33334444, 0x11112222]])
    f.probe("brx_idx", "Control Flow Instructions: brx.idx", "",
            "rem.u32 %a0, %lane, 3; TABLE: .branchtargets A, B, C; brx.idx %a0, TABLE; A: mov.b32 %d0, 10; bra END; "
            "B: mov.b32 %d0, 20; bra END; C: mov.b32 %d0, 30; END:", [[0]], [[10 * (i % 3 + 1)] for i in range(LANES)])
    counts = sum(b for b in bits)
    for op, value in (("popc", counts), ("and", int(all(bits))), ("or", int(any(bits)))):
        ty, d = ("u32", "%d0") if op == "popc" else ("pred", "%q")
        after = "" if op == "popc" else " selp.b32 %d0, 1, 0, %q;"
        f.probe(f"bar_red_{op}", f"{isa}: bar", head, f"setp.ne.u32 %p, %a0, 0; bar.red.{op}.{ty} {d}, 1, %p;{after}",
                [[b] for b in bits], [[value]] * LANES)
    return f


def atomics():
    f = File("atomics", target="sm_90", version="8.1")
    isa = "Parallel Synchronization and Communication Instructions: "
    rows = [[a, b] for a, b in rows_of(["u32", "u32"])]
    s = lambda v: wrap(v, "s32")
    ops = {"add.u32": lambda a, b: a + b, "min.u32": min, "max.u32": max, "min.s32": lambda a, b: a if s(a) <= s(b) else b,
           "max.s32": lambda a, b: a if s(a) >= s(b) else b, "and.b32": lambda a, b: a & b, "or.b32": lambda a, b: a | b,
           "xor.b32": lambda a, b: a ^ b, "exch.b32": lambda a, b: b, "inc.u32": lambda a, b: 0 if a >= b else a + 1,
           "dec.u32": lambda a, b: b if a == 0 or a > b else a - 1}
    shared = ".shared .align 8 .b8 t[256]; .reg .b32 %t;"
    place = "mov.u32 %t, t; mad.lo.u32 %t, %lane, 4, %t; st.shared.b32 [%t], %a0;"
    for op, fn in ops.items():
        f.probe(f"atom_shared_{op}", isa + "atom", shared, f"{place} atom.shared.{op} %d0, [%t], %a1; ld.shared.b32 %d1, [%t];",
                rows, [[a, fn(a, b) & M32] for a, b in rows])
        if not op.startswith("exch"):
            f.probe(f"red_global_{op}", isa + "red", "", f"red.global.{op} [%rd3], %a1; ld.global.b32 %d0, [%rd3];",
                    rows, [[fn(a, b) & M32] for a, b in rows])
    f.probe("atom_cas", isa + "atom", shared, f"{place} atom.shared.cas.b32 %d0, [%t], %a1, 99; ld.shared.b32 %d1, [%t];",
            [[i % 3, 1] for i in range(LANES)], [[i % 3, 99 if i % 3 == 1 else i % 3] for i in range(LANES)])
    fl = [[raw(a, "f32"), raw(b, "f32")] for a, b in zip(floats_of("f32"), floats_of("f32"))]
    asf = lambda w: float(np.array([w], np.uint32).view(np.float32)[0])
    f.probe("atom_global_add_f32", isa + "atom", ".reg .f32 %f, %g;",
            "mov.b32 %f, %a1; atom.global.add.f32 %g, [%rd3], %f; mov.b32 %d0, %g; ld.global.b32 %d1, [%rd3];", fl,
            [[a, raw(rnd(F(asf(a)) + F(asf(b)), "f32", "rn"), "f32")] for a, b in fl])
    for ty in ("f16", "bf16"):
        pairs = [[raw(a, ty) | raw(b, ty) << 16, raw(c, ty) | raw(d, ty) << 16]
                 for a, b, c, d in zip(*[floats_of(ty) for _ in range(4)])]
        one = lambda x, y: raw(rnd(F(number(x, ty)) + F(number(y, ty)), ty, "rn"), ty)
        f.probe(f"red_global_add_{ty}x2", isa + "red", "", f"red.global.add.noftz.{ty}x2 [%rd3], %a1; ld.global.b32 %d0, [%rd3];",
                pairs, [[one(a & 0xFFFF, b & 0xFFFF) | one(a >> 16, b >> 16) << 16] for a, b in pairs])
    f.probe("red_v2_f32", isa + "red", ".reg .f32 %f;",
            "mov.b32 %f, 0f3F800000; red.global.add.v2.f32 [%rd3], {%f, %f}; ld.global.b32 %d0, [%rd3]; ld.global.b32 %d1, [%rd3+4];",
            [[raw(1.5, "f32"), raw(-4.0, "f32")]], [[raw(2.5, "f32"), raw(-3.0, "f32")]])
    f.probe("atom_shared_sum", isa + "atom", shared,
            "mov.u32 %t, t; setp.eq.u32 %p, %lane, 0; @%p st.shared.b32 [%t], %a0; bar.sync 0; "
            "red.shared.add.u32 [%t], %lane; bar.sync 0; ld.shared.b32 %d0, [%t];".replace("setp", ".reg .pred %p; setp"),
            [[5]], [[5 + 31 * 16]] * LANES)
    return f


# ---- matrices --------------------------------------------------------------------------


WIDTH = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8}


def encode(v, ty):
    if ty in ("s8", "u8"):
        return int(v) & 255
    if ty == "tf32":
        return raw(float(v), "f32")
    if ty in ("e4m3", "e5m2"):
        kind = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}[ty]
        return int(np.array([v], np.float32).astype(kind).view(np.uint8)[0])
    return raw(float(v), ty)


def fragments(matrix, place, lane, count, ty):
    per = 32 // WIDTH[ty]
    out = [0] * (count // per)
    for i in range(count):
        out[i // per] |= encode(matrix[place(lane, i)], ty) << (WIDTH[ty] * (i % per))
    return out


def matrices():
    """Fragments as the ISA's figures have them, one formula for each."""
    f = File("matrix", target="sm_89", version="8.4")
    isa = "Warp Level Matrix Multiply-Accumulate Instructions: "
    group, quad = lambda l: l >> 2, lambda l: l & 3
    # (row, column) of element i of A, (row, column) of element i of B, by lane.
    a16x16 = lambda l, i: (group(l) + (8 if i in (2, 3, 6, 7) else 0), quad(l) * 2 + (i & 1) + (8 if i >= 4 else 0))
    b16x8 = lambda l, i: (quad(l) * 2 + (i & 1) + (8 if i >= 2 else 0), group(l))
    a16x8 = lambda l, i: (group(l) + (8 if i >= 2 else 0), quad(l) * 2 + (i & 1))
    b8x8 = lambda l, i: (quad(l) * 2 + i, group(l))
    a16x8t = lambda l, i: (group(l) + (8 if i in (1, 3) else 0), quad(l) + (4 if i >= 2 else 0))
    b8x8t = lambda l, i: (quad(l) + (4 if i else 0), group(l))
    a16x4t = lambda l, i: (group(l) + 8 * i, quad(l))
    b4x8t = lambda l, i: (quad(l), group(l))
    a16x32 = lambda l, i: (group(l) + (8 if i in (*range(4, 8), *range(12, 16)) else 0), quad(l) * 4 + (i & 3) + (16 if i >= 8 else 0))
    b32x8 = lambda l, i: (quad(l) * 4 + (i & 3) + (16 if i >= 4 else 0), group(l))
    a16x16b = lambda l, i: (group(l) + (8 if i >= 4 else 0), quad(l) * 4 + (i & 3))
    b16x8b = lambda l, i: (quad(l) * 4 + i, group(l))
    a8x16 = lambda l, i: (group(l), quad(l) * 4 + i)
    c16 = lambda l, i: (group(l) + (8 if i >= 2 else 0), quad(l) * 2 + (i & 1))
    c8 = lambda l, i: (group(l), quad(l) * 2 + i)
    shapes = [("m16n8k16", 16, 16, "f16", a16x16, b16x8), ("m16n8k16", 16, 16, "bf16", a16x16, b16x8),
              ("m16n8k8", 16, 8, "f16", a16x8, b8x8), ("m16n8k8", 16, 8, "bf16", a16x8, b8x8),
              ("m16n8k8", 16, 8, "tf32", a16x8t, b8x8t), ("m16n8k4", 16, 4, "tf32", a16x4t, b4x8t),
              ("m16n8k32", 16, 32, "e4m3", a16x32, b32x8), ("m16n8k32", 16, 32, "e5m2", a16x32, b32x8),
              ("m16n8k32", 16, 32, "s8", a16x32, b32x8), ("m16n8k32", 16, 32, "u8", a16x32, b32x8),
              ("m16n8k16", 16, 16, "s8", a16x16b, b16x8b), ("m8n8k16", 8, 16, "s8", a8x16, b16x8b)]
    for shape, m, k, ty, pa, pb in shapes:
        integer = ty in ("s8", "u8")
        low = 0 if ty == "u8" else -4
        # Small integers: every sum is exact, so its order does not matter.
        a, b = np.random.RandomState(1).randint(low, 5, (m, k)), np.random.RandomState(2).randint(low, 5, (k, 8))
        c = np.random.RandomState(3).randint(-9, 9, (m, 8))
        d = a @ b + c
        na, nb, nc = m * k // 32, k * 8 // 32, m * 8 // 32
        pc = c16 if m == 16 else c8
        for acc in ["s32"] if integer else (["f32", "f16"] if ty == "f16" else ["f32"]):
            enc = (lambda v: int(v) & M32) if acc == "s32" else (lambda v: raw(float(v), "f32"))
            ins, outs = [], []
            for lane in range(LANES):
                cs, ds = [c[pc(lane, i)] for i in range(nc)], [d[pc(lane, i)] for i in range(nc)]
                if acc == "f16":
                    two = lambda x: [raw(float(x[i]), "f16") | raw(float(x[i + 1]), "f16") << 16 for i in range(0, nc, 2)]
                    cs, ds = two(cs), two(ds)
                else:
                    cs, ds = [enc(v) for v in cs], [enc(v) for v in ds]
                ins.append(fragments(a, pa, lane, na, ty) + fragments(b, pb, lane, nb, ty) + cs)
                outs.append(ds)
            wa, wb, wc = na * WIDTH[ty] // 32, nb * WIDTH[ty] // 32, len(outs[0])
            regs, moves, names = "", "", [f"%a{wa + wb + i}" for i in range(wc)]
            results = [f"%d{i}" for i in range(wc)]
            after = ""
            if acc == "f32":
                regs = f".reg .f32 %f<{wc}>;"
                moves = " ".join(f"mov.b32 %f{i}, {n};" for i, n in enumerate(names))
                names = results = [f"%f{i}" for i in range(wc)]
                after = " ".join(f"mov.b32 %d{i}, %f{i};" for i in range(wc))
            vec = lambda xs: "{" + ", ".join(xs) + "}"
            text = (f"{moves} mma.sync.aligned.{shape}.row.col.{acc}.{ty}.{ty}.{acc} {vec(results)}, "
                    f"{vec([f'%a{i}' for i in range(wa)])}, {vec([f'%a{wa + i}' for i in range(wb)])}, {vec(names)}; {after}")
            f.probe(f"mma_{shape}_{acc}_{ty}", isa + "mma.sync", regs, text, ins, outs)
    # f64: one 8 x 8 x 4 product.
    a, b = np.random.RandomState(4).randint(-9, 9, (8, 4)), np.random.RandomState(5).randint(-9, 9, (4, 8))
    c = np.random.RandomState(6).randint(-9, 9, (8, 8))
    d = a @ b + c
    w = lambda v: words(float(v), "f64")
    ins = [w(a[group(l), quad(l)]) + w(b[quad(l), group(l)]) + w(c[c8(l, 0)]) + w(c[c8(l, 1)]) for l in range(LANES)]
    f.probe("mma_m8n8k4_f64", isa + "mma.sync", ".reg .f64 %x<4>;",
            " ".join(f"mov.b64 %x{i}, {{%a{2 * i}, %a{2 * i + 1}}};" for i in range(4))
            + " mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%x2, %x3}, {%x0}, {%x1}, {%x2, %x3};"
            + " mov.b64 {%d0, %d1}, %x2; mov.b64 {%d2, %d3}, %x3;", ins, [w(d[c8(l, 0)]) + w(d[c8(l, 1)]) for l in range(LANES)])
    # Saturation of integers.
    full = [0x7F7F7F7F] * 6
    f.probe("mma_satfinite", isa + "mma.sync", "",
            "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%a4, %a5}, {%a6, %a7, %a8, %a9};",
            [full + [0x7FFFFFF0, 0, 0x80000000, 0x7FFFFFFF]],
            [[0x7FFFFFFF, 127 * 127 * 32, (0x80000000 + 127 * 127 * 32) & M32, 0x7FFFFFFF]])
    rows = [[random.getrandbits(32)] for _ in range(LANES)]
    half = lambda r, c: rows[4 * r + c // 2][0] >> (16 * (c % 2)) & 0xFFFF
    f.probe("movmatrix", isa + "movmatrix", "", "movmatrix.sync.aligned.m8n8.trans.b16 %d0, %a0;", rows,
            [[half(2 * (l % 4), l // 4) | half(2 * (l % 4) + 1, l // 4) << 16] for l in range(LANES)])
    # Lane i writes row i of 16 bytes; matrices of 8 rows are loaded.
    data = [[random.getrandbits(32) for _ in range(4)] for _ in range(LANES)]
    store = ("mov.u32 %t, t; mad.lo.u32 %t, %lane, 16, %t; st.shared.v4.b32 [%t], {%a0, %a1, %a2, %a3}; bar.sync 0;")
    at = lambda mat, r, c: data[8 * mat + r][c // 2] >> (16 * (c % 2)) & 0xFFFF
    regs = ".shared .align 16 .b8 t[512]; .reg .b32 %t;"
    for n in (1, 2, 4):
        for trans in ("", ".trans"):
            get = lambda mat, r, c: at(mat, c, r) if trans else at(mat, r, c)
            outs = [[get(j, l // 4, 2 * (l % 4)) | get(j, l // 4, 2 * (l % 4) + 1) << 16 for j in range(n)] for l in range(LANES)]
            vec = ", ".join(f"%d{i}" for i in range(n))
            f.probe(f"ldmatrix_x{n}{trans}", isa + "ldmatrix", regs,
                    f"{store} ldmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16 {{{vec}}}, [%t];", data, outs)
    return f


def stmatrix():
    f = File("stmatrix", target="sm_90", version="7.8")
    data = [[random.getrandbits(32) for _ in range(4)] for _ in range(LANES)]
    for trans in ("", ".trans"):
        rows = np.zeros((32, 8), np.uint32)
        for l in range(LANES):
            for j in range(4):
                for i in range(2):
                    r, c, v = l // 4, 2 * (l % 4) + i, data[l][j] >> (16 * i) & 0xFFFF
                    rows[(8 * j + c, r) if trans else (8 * j + r, c)] = v
        outs = [[int(rows[l, 2 * i]) | int(rows[l, 2 * i + 1]) << 16 for i in range(4)] for l in range(LANES)]
        f.probe(f"stmatrix_x4{trans}", "Warp Level Matrix Instructions: stmatrix", ".shared .align 16 .b8 t[512]; .reg .b32 %t;",
                f"mov.u32 %t, t; mad.lo.u32 %t, %lane, 16, %t; stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%t], {{%a0, %a1, %a2, %a3}}; "
                "bar.sync 0; ld.shared.v4.b32 {%d0, %d1, %d2, %d3}, [%t];", data, outs)
    return f


def warpgroups():
    """`wgmma` with A in registers and B, 8 columns of 32 bytes, in shared memory without a swizzle."""
    f = File("wgmma", target="sm_90a", version="8.4")
    isa = "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions: wgmma.mma_async"
    row = lambda l, second: l // 32 * 16 + l % 32 // 4 + (8 if second else 0)
    halves = lambda l, i: (row(l, i in (2, 3, 6, 7)), l % 4 * 2 + (i & 1) + (8 if i >= 4 else 0))
    wholes = lambda l, i: (row(l, i in (1, 3)), l % 4 + (4 if i >= 2 else 0))
    eights = lambda l, i: (row(l, i in (*range(4, 8), *range(12, 16))), l % 4 * 4 + (i & 3) + (16 if i >= 8 else 0))
    sums = lambda l, i: (row(l, i >= 2), l % 4 * 2 + (i & 1))
    kinds = [("f16", "f16", 16, halves), ("bf16", "bf16", 16, halves), ("tf32", "tf32", 8, wholes),
             *((a, b, 32, eights) for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2")),
             *((a, b, 32, eights) for a in ("s8", "u8") for b in ("s8", "u8"))]
    for ta, tb, k, place in kinds:
        low = lambda t: 0 if t == "u8" else -4
        # Small integers: every sum is exact.
        a = np.random.RandomState(1).randint(low(ta), 5, (64, k))
        b = np.random.RandomState(2).randint(low(tb), 5, (k, 8))
        c = np.random.RandomState(3).randint(-9, 9, (64, 8))
        d, per = a @ b + c, 32 // WIDTH[tb]
        # Core matrices of 8 columns of 16 bytes, the second one with the rest of k.
        word = lambda i: sum(encode(b[(i // 32 * 4 + i % 4) * per + j, i % 32 // 4], tb) << (WIDTH[tb] * j) for j in range(per))
        acc = "s32" if ta in ("s8", "u8") else "f32"
        enc = (lambda v: int(v) & M32) if acc == "s32" else (lambda v: raw(float(v), "f32"))
        four = lambda m, l: [enc(m[sums(l, i)]) for i in range(4)]
        ins = [fragments(a, place, l, 64 * k // 128, ta) + [word(l % 64)] + four(c, l) for l in range(128)]
        x = "%f" if acc == "f32" else "%i"
        regs = (f".shared .align 128 .b8 t[256]; .reg .b32 %t, %i<4>; .reg .f32 %f<4>; .reg .b64 %m; .reg .pred %p;")
        turned = ", 0" if WIDTH[tb] == 16 else ""
        signs = "" if acc == "s32" else ", 1, 1"
        text = ("mov.u32 %t, t; mad.lo.u32 %t, %lane, 4, %t; setp.lt.u32 %p, %lane, 64; @%p st.shared.b32 [%t], %a4; "
                "fence.proxy.async; bar.sync 0; mov.u32 %t, t; shr.u32 %t, %t, 4; cvt.u64.u32 %m, %t; "
                f"or.b64 %m, %m, {128 >> 4 << 16 | 256 >> 4 << 32}; "
                + " ".join(f"mov.b32 {x}{i}, %a{5 + i};" for i in range(4))
                + f" setp.eq.u32 %p, 0, 0; wgmma.fence.sync.aligned; wgmma.mma_async.sync.aligned.m64n8k{k}.{acc}.{ta}.{tb} "
                + "{" + ", ".join(f"{x}{i}" for i in range(4)) + "}, {%a0, %a1, %a2, %a3}, %m, %p" + signs + turned
                + "; wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; "
                + " ".join(f"mov.b32 %d{i}, {x}{i};" for i in range(4)))
        f.probe(f"wgmma_m64n8k{k}_{acc}_{ta}_{tb}", isa, regs, text, ins, [four(d, l) for l in range(128)])
    return f


def main():
    default = Path(__file__).resolve().parent.parent / "runtime/tests/ptx/probes"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for make in (integers, logic, float_probes, half_probes, compare, convert, lanes, atomics, matrices, stmatrix, warpgroups):
        f = make()
        f.write(folder)
        total += len(f.names)
    print(f"{total} probes in {folder}")


if __name__ == "__main__":
    main()
