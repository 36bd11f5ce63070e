#!/usr/bin/env python3
"""Writes cases for the operators of the domain `com.microsoft`: small models with
seeded inputs, and what ONNX Runtime's kernels make of them.

    microsoft_cases.py OUT_DIR

Prints how many were written; any that ONNX Runtime refuses is an error. Exits with
3 where numpy, onnx or onnxruntime are not installed.
"""

import sys

from case_writer import TensorProto, Writer, helper, node, np, plain

RNG = np.random.default_rng(11)
W = Writer(sys.argv[1], {"com.microsoft": 1})
case = W.case


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def small(*shape):
    return (0.2 * RNG.standard_normal(shape)).astype(np.float32)


def u8(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


def s8(*shape):
    return RNG.integers(-128, 128, shape).astype(np.int8)


def i32(*values):
    return np.array(values, np.int32)


def i64(*values):
    return np.array(values, np.int64)


def attention():
    x, w, b = f32(2, 4, 8), small(8, 24), small(24)
    weights = {"w": w, "b": b}
    two = [{"x": x}, {"x": f32(1, 7, 8)}]
    case("attention", node("Attention", "x w b", "y", num_heads=2), "x:f[b,s,8]", "y", two, weights)
    case("attention-no-bias", node("Attention", "x w", "y", num_heads=2), "x:f[b,s,8]", "y", two, {"w": w})
    case("attention-scale", node("Attention", "x w b", "y", num_heads=4, scale=0.3), "x:f[b,s,8]", "y", two, weights)
    case("attention-causal", node("Attention", "x w b", "y", num_heads=2, unidirectional=1),
         "x:f[b,s,8]", "y", two, weights)
    case("attention-present", node("Attention", "x w b", "y p", num_heads=2, unidirectional=1),
         "x:f[b,s,8]", "y p", two, weights)
    case("attention-past", node("Attention", "x w b _ past", "y p", num_heads=2, unidirectional=1),
         "x:f[b,s,8] past:f[2,b,2,t,4]", "y p",
         [{"x": f32(2, s, 8), "past": f32(2, 2, 2, t, 4)} for s, t in [(1, 3), (2, 5)]], weights)
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32)
    case("attention-mask-2d", node("Attention", "x w b m", "y", num_heads=2), "x:f[b,s,8] m:j[b,s]", "y",
         {"x": x, "m": mask}, weights)
    case("attention-mask-2d-causal", node("Attention", "x w b m", "y", num_heads=2, unidirectional=1),
         "x:f[b,s,8] m:j[b,s]", "y", {"x": x, "m": mask}, weights)
    case("attention-mask-all-hidden", node("Attention", "x w b m", "y", num_heads=2), "x:f[b,s,8] m:j[b,s]", "y",
         {"x": x, "m": np.zeros((2, 4), np.int32)}, weights)
    case("attention-mask-filter", node("Attention", "x w b m", "y", num_heads=2, mask_filter_value=-3.0),
         "x:f[b,s,8] m:j[b,s]", "y", {"x": x, "m": mask}, weights)
    case("attention-mask-3d", node("Attention", "x w b m", "y", num_heads=2), "x:f[b,s,8] m:j[b,s,s]", "y",
         {"x": x, "m": RNG.integers(0, 2, (2, 4, 4)).astype(np.int32)}, weights)
    case("attention-lengths", node("Attention", "x w b m", "y", num_heads=2), "x:f[b,s,8] m:j[b]", "y",
         {"x": x, "m": i32(3, 1)}, weights)
    case("attention-ends-starts", node("Attention", "x w b m", "y", num_heads=2), "x:f[2,s,8] m:j[4]", "y",
         {"x": x, "m": i32(4, 3, 1, 2)}, weights)
    case("attention-bias", node("Attention", "x w b _ _ a", "y", num_heads=2), "x:f[b,s,8] a:f[1,2,s,s]", "y",
         {"x": x, "a": f32(1, 2, 4, 4)}, weights)
    case("attention-bias-mask", node("Attention", "x w b m _ a", "y", num_heads=2),
         "x:f[b,s,8] m:j[b,s] a:f[b,1,s,s]", "y", {"x": x, "m": mask, "a": f32(2, 1, 4, 4)}, weights)
    case("attention-past-mask", node("Attention", "x w b m past", "y p", num_heads=2),
         "x:f[b,s,8] m:j[b,u] past:f[2,b,2,t,4]", "y p",
         {"x": f32(2, 2, 8), "m": np.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 1]], np.int32),
          "past": f32(2, 2, 2, 3, 4)}, weights)
    case("attention-own-sizes", node("Attention", "x w b", "y", num_heads=2, qkv_hidden_sizes=[4, 4, 12]),
         "x:f[b,s,8]", "y", two, {"w": small(8, 20), "b": small(20)})
    quantized = {"w": s8(8, 24), "b": small(24), "sx": np.float32(0.02), "sw": np.float32(0.005),
                 "zx": np.uint8(120), "zw": np.int8(0)}
    inputs = {"x": u8(2, 4, 8)}
    case("qattention", node("QAttention", "x w b sx sw _ zx zw", "y", num_heads=2), "x:u[b,s,8]", "y",
         inputs, quantized)
    case("qattention-mask", node("QAttention", "x w b sx sw m zx zw", "y", num_heads=2), "x:u[b,s,8] m:j[b]", "y",
         {**inputs, "m": i32(3, 4)}, quantized)
    case("qattention-columns", node("QAttention", "x w b sx sw _ zx zw", "y", num_heads=2), "x:u[b,s,8]", "y",
         inputs, {**quantized, "sw": np.abs(small(24)) * np.float32(0.05), "zw": np.zeros(24, np.int8)})
    case("qattention-past", node("QAttention", "x w b sx sw _ zx zw past", "y p", num_heads=2, unidirectional=1),
         "x:u[b,s,8] past:f[2,b,2,t,4]", "y p", {"x": u8(2, 2, 8), "past": f32(2, 2, 2, 3, 4)}, quantized)
    case("qattention-unsigned", node("QAttention", "x w b sx sw _ zx zw", "y", num_heads=2), "x:u[b,s,8]", "y",
         inputs, {**quantized, "w": u8(8, 24), "zw": np.uint8(128)})


def multi_head():
    def qkv(b, s, t, v=8):
        return {"q": f32(b, s, 8), "k": f32(b, t, 8), "v": f32(b, t, v)}

    apart = "q:f[b,s,8] k:f[b,t,8] v:f[b,t,8]"
    two = [qkv(2, 3, 5), qkv(1, 1, 4)]
    case("multihead", node("MultiHeadAttention", "q k v", "y", num_heads=2), apart, "y", two)
    case("multihead-bias", node("MultiHeadAttention", "q k v b", "y", num_heads=2), apart, "y", two, {"b": f32(24)})
    case("multihead-scale", node("MultiHeadAttention", "q k v", "y", num_heads=2, scale=0.9), apart, "y", two)
    case("multihead-values-wider", node("MultiHeadAttention", "q k v b", "y", num_heads=2),
         "q:f[b,s,8] k:f[b,t,8] v:f[b,t,12]", "y", qkv(2, 3, 5, 12), {"b": f32(28)})
    case("multihead-lengths", node("MultiHeadAttention", "q k v _ m", "y", num_heads=2), apart + " m:j[b]", "y",
         {**qkv(2, 3, 5), "m": i32(2, 5)})
    case("multihead-mask", node("MultiHeadAttention", "q k v _ m", "y", num_heads=2), apart + " m:j[b,t]", "y",
         {**qkv(2, 3, 5), "m": RNG.integers(0, 2, (2, 5)).astype(np.int32)})
    case("multihead-mask-3d", node("MultiHeadAttention", "q k v _ m", "y", num_heads=2), apart + " m:j[b,s,t]", "y",
         {**qkv(2, 3, 5), "m": RNG.integers(0, 2, (2, 3, 5)).astype(np.int32)})
    case("multihead-attention-bias", node("MultiHeadAttention", "q k v b m a", "y", num_heads=2),
         apart + " m:j[b,t] a:f[1,2,s,t]", "y",
         {**qkv(2, 3, 5), "m": RNG.integers(0, 2, (2, 5)).astype(np.int32), "a": f32(1, 2, 3, 5)}, {"b": f32(24)})
    case("multihead-causal", node("MultiHeadAttention", "q k v", "y", num_heads=2, unidirectional=1),
         "q:f[b,s,8] k:f[b,s,8] v:f[b,s,8]", "y", qkv(2, 4, 4))
    past = " pk:f[b,2,p,4] pv:f[b,2,p,4]"
    cached = {"pk": f32(2, 2, 3, 4), "pv": f32(2, 2, 3, 4)}
    case("multihead-past", node("MultiHeadAttention", "q k v _ _ _ pk pv", "y nk nv", num_heads=2),
         apart + past, "y nk nv", {**qkv(2, 2, 2), **cached})
    case("multihead-past-causal", node(
        "MultiHeadAttention", "q k v b _ _ pk pv", "y nk nv", num_heads=2, unidirectional=1),
        apart + past, "y nk nv", {**qkv(2, 2, 2), **cached}, {"b": f32(24)})
    case("multihead-past-mask", node("MultiHeadAttention", "q k v _ m _ pk pv", "y nk nv", num_heads=2),
         apart + past + " m:j[b,u]", "y nk nv",
         {**qkv(2, 1, 1), **cached, "m": np.array([[1, 1, 0, 1], [1, 0, 1, 1]], np.int32)})
    case("multihead-present", node("MultiHeadAttention", "q k v", "y nk nv", num_heads=2), apart, "y nk nv", two)
    case("multihead-scores", node("MultiHeadAttention", "q k v _ _ a", "y _ _ qk", num_heads=2),
         apart + " a:f[1,1,s,t]", "y qk:f", {**qkv(2, 3, 5), "a": f32(1, 1, 3, 5)})
    case("multihead-cross-cached", node("MultiHeadAttention", "q k v", "y", num_heads=2),
         "q:f[b,s,8] k:f[b,2,t,4] v:f[b,2,t,4]", "y",
         {"q": f32(2, 3, 8), "k": f32(2, 2, 5, 4), "v": f32(2, 2, 5, 4)})
    # Packed forms have no kernel on the CPU: the same, unpacked.
    axes = {"one": i64(3), "flat": i64(0, 0, 8), "bias": f32(24)}

    def taken(source, count, names):
        nodes = [plain("Split", source, " ".join(n + "5" for n in names), axis=3, num_outputs=count)]
        return nodes + [plain("Reshape", f"{n}5 flat", n) for n in names]

    case("multihead-packed-qkv", node("MultiHeadAttention", "x _ _ bias", "y", num_heads=2), "x:f[b,s,2,3,4]", "y",
         {"x": f32(2, 3, 2, 3, 4)}, axes,
         reference=taken("x", 3, "qkv") + [node("MultiHeadAttention", "q k v bias", "y", num_heads=2)])
    case("multihead-packed-kv", node("MultiHeadAttention", "q x", "y", num_heads=2), "q:f[b,s,8] x:f[b,t,2,2,4]", "y",
         {"q": f32(2, 3, 8), "x": f32(2, 5, 2, 2, 4)}, axes,
         reference=taken("x", 2, "kv") + [node("MultiHeadAttention", "q k v", "y", num_heads=2)])


def grouped():
    heads = {"num_heads": 4, "kv_num_heads": 2}
    new = "q:f[b,s,64] k:f[b,s,32] v:f[b,s,32]"
    cache = " pk:f[b,2,p,16] pv:f[b,2,p,16]"
    ends = " n:j[b] t:j[]"
    op = "GroupQueryAttention"

    def feed(b, s, p, ends, total, packed=False):
        out = {"q": f32(b, s, 128 if packed else 64), "n": i32(*[e - 1 for e in ends]), "t": np.array(total, np.int32)}
        if not packed:
            out.update(k=f32(b, s, 32), v=f32(b, s, 32))
        if p is not None:
            out.update(pk=f32(b, 2, p, 16), pv=f32(b, 2, p, 16))
        return out

    prompt, step = feed(2, 3, None, (3, 3), 3), [feed(2, 1, 3, (4, 4), 4), feed(1, 2, 5, (7,), 7)]
    case("grouped-prompt", node(op, "q k v _ _ n t", "y nk nv", **heads), new + ends, "y nk nv", prompt)
    case("grouped-step", node(op, "q k v pk pv n t", "y nk nv", **heads), new + cache + ends, "y nk nv", step)
    case("grouped-empty-past", node(op, "q k v pk pv n t", "y nk nv", **heads), new + cache + ends, "y nk nv",
         feed(2, 3, 0, (3, 3), 3))
    # The cache is longer than what is in it, and rows fill differently.
    case("grouped-ragged", node(op, "q k v pk pv n t", "y nk nv", **heads), new + cache + ends, "y nk nv",
         feed(3, 1, 8, (4, 7, 2), 7))
    case("grouped-buffer-prompt", node(op, "q k v pk pv n t", "y nk nv", **heads), new + cache + ends, "y nk nv",
         feed(2, 3, 8, (3, 3), 3))
    case("grouped-scale", node(op, "q k v pk pv n t", "y nk nv", scale=0.7, **heads), new + cache + ends,
         "y nk nv", step)
    case("grouped-packed", node(op, "q _ _ pk pv n t", "y nk nv", **heads), "q:f[b,s,128]" + cache + ends, "y nk nv",
         feed(2, 1, 3, (4, 4), 4, True))
    tables = {"c": f32(16, 8), "s": f32(16, 8)}
    for name, attrs in [("", {}), ("-interleaved", {"rotary_interleaved": 1})]:
        case("grouped-rotary" + name, node(op, "q k v pk pv n t c s", "y nk nv", do_rotary=1, **attrs, **heads),
             new + cache + ends, "y nk nv", step + [feed(3, 1, 8, (4, 7, 2), 7)], tables)
    case("grouped-rotary-prompt", node(op, "q k v _ _ n t c s", "y nk nv", do_rotary=1, **heads),
         new + ends, "y nk nv", prompt, tables)
    case("grouped-rotary-packed", node(op, "q _ _ pk pv n t c s", "y nk nv", do_rotary=1, **heads),
         "q:f[b,s,128]" + cache + ends, "y nk nv", feed(2, 1, 3, (4, 4), 4, True), tables)
    case("grouped-rotary-positions", node(op, "q k v pk pv n t c s at", "y nk nv", do_rotary=1, **heads),
         new + cache + ends + " at:i[b,s]", "y nk nv",
         {**feed(2, 1, 3, (4, 4), 4), "at": i64(5, 3).reshape(2, 1)}, tables)
    case("grouped-rotary-half", node(op, "q k v pk pv n t c s", "y nk nv", do_rotary=1, num_heads=2, kv_num_heads=1),
         "q:f[b,s,64] k:f[b,s,32] v:f[b,s,32] pk:f[b,1,p,32] pv:f[b,1,p,32]" + ends, "y nk nv",
         {"q": f32(2, 1, 64), "k": f32(2, 1, 32), "v": f32(2, 1, 32), "pk": f32(2, 1, 3, 32),
          "pv": f32(2, 1, 3, 32), "n": i32(3, 3), "t": np.array(4, np.int32)}, tables)
    for window in [1, 2, 4]:
        case(f"grouped-window-{window}", node(op, "q k v pk pv n t", "y nk nv", local_window_size=window, **heads),
             new + cache + ends, "y nk nv", [feed(2, 1, 6, (7, 7), 7), feed(1, 3, 4, (7,), 7)])
    case("grouped-window-prompt", node(op, "q k v _ _ n t", "y nk nv", local_window_size=2, **heads),
         new + ends, "y nk nv", feed(2, 5, None, (5, 5), 5))
    case("grouped-softcap", node(op, "q k v pk pv n t", "y nk nv", softcap=0.8, **heads),
         new + cache + ends, "y nk nv", step)
    case("grouped-smooth", node(op, "q k v pk pv n t", "y nk nv", smooth_softmax=1, **heads),
         new + cache + ends, "y nk nv", step)
    case("grouped-smooth-window-softcap", node(
        op, "q k v pk pv n t", "y nk nv", smooth_softmax=1, softcap=1.5, local_window_size=2, **heads),
        new + cache + ends, "y nk nv", feed(2, 1, 6, (7, 7), 7))
    case("grouped-sink", node(op, "q k v pk pv n t _ _ _ _ sink", "y nk nv", **heads), new + cache + ends,
         "y nk nv", step, {"sink": f32(4)})
    case("grouped-bias", node(op, "q k v pk pv n t _ _ _ a", "y nk nv", **heads),
         new + cache + ends + " a:f[1,4,s,u]", "y nk nv",
         {**feed(2, 1, 3, (4, 4), 4), "a": f32(1, 4, 1, 4)})
    # Rows behind a prompt's end are not specified: those before it.
    case("grouped-ragged-prompt", [node(op, "q k v _ _ n t c s", "all nk nv", do_rotary=1, **heads),
                                   plain("GatherND", "all at", "y")], new + ends, "y", feed(2, 4, None, (4, 2), 4),
         {**tables, "at": np.array([[0, 0], [0, 1], [0, 3], [1, 0], [1, 1]])})
    case("grouped-bidirectional", node(op, "q k v _ _ n t", "y nk nv", causal=0, **heads), new + ends, "y nk nv", prompt)
    # Chunks padded to one length, each row of the batch with its own count.
    chunk = {**feed(3, 4, 12, (6, 8, 5), 12), "c": i32(4, 2, 1)}
    seen = np.array([[0, 0], [0, 3], [1, 0], [1, 1], [2, 0]])
    kept = np.array([[b, g, r] for b, e in enumerate((6, 8, 5)) for g in range(2) for r in range(e)])
    case("grouped-padded-chunk", [
        node(op, "q k v pk pv n t co si _ _ _ _ _ _ _ c", "all nk nv", do_rotary=1, **heads),
        plain("GatherND", "all at", "y"), plain("GatherND", "nk kept", "k2"), plain("GatherND", "nv kept", "v2")],
        new + cache + ends + " c:j[b]", "y k2 v2", chunk,
        {"co": tables["c"], "si": tables["s"], "at": seen, "kept": kept})
    # What exporters emit: lengths from the mask.
    case("grouped-from-mask", [
        plain("Cast", "mask", "m32", to=TensorProto.INT32), plain("ReduceSum", "m32 last", "sum", keepdims=0),
        plain("Sub", "sum one", "n"), plain("Shape", "mask", "shape"), plain("Gather", "shape at", "t64"),
        plain("Cast", "t64", "t", to=TensorProto.INT32),
        node(op, "q k v pk pv n t c s", "y nk nv", do_rotary=1, **heads)],
        new + cache + " mask:i[b,total]", "y nk nv",
        [{k: v for k, v in {**feed(b, s, p, (p + s,) * b, p + s), "mask": np.ones((b, p + s), np.int64)}.items()
          if k not in "nt"} for b, s, p in [(2, 3, 0), (2, 1, 3), (1, 2, 4)]],
        {**tables, "last": i64(1), "one": i32(1)[0], "at": np.array(1)})
    # Normalised heads have no kernel on the CPU: the same in front of it.
    norm = {"qw": f32(16), "kw": f32(16), "h": i64(0, 0, -1, 16), "r": i64(0, 0, -1)}

    def normed(name):
        return [plain("Reshape", f"{name} h", name + "4"),
                plain("SimplifiedLayerNormalization", f"{name}4 {name}w", name + "5", axis=-1, epsilon=1e-5),
                plain("Reshape", f"{name}5 r", name + "n")]

    case("grouped-normed", node(op, "q k v pk pv n t c s _ _ _ _ _ qw kw", "y nk nv", do_rotary=1,
                                qk_norm_epsilon=1e-5, **heads),
         new + cache + ends, "y nk nv", step, {**tables, **norm},
         reference=normed("q") + normed("k")
         + [node(op, "qn kn v pk pv n t c s", "y nk nv", do_rotary=1, **heads)])


def norms():
    x, w = f32(2, 3, 8), {"g": f32(8), "b": f32(8), "c": f32(8)}
    skip = "SkipLayerNormalization"
    two = [{"x": x, "s": f32(2, 3, 8)}, {"x": f32(1, 5, 8), "s": f32(1, 5, 8)}]
    case("skip-norm", node(skip, "x s g b", "y", epsilon=1e-5), "x:f[a,n,8] s:f[a,n,8]", "y", two, w)
    case("skip-norm-plain", node(skip, "x s g", "y"), "x:f[a,n,8] s:f[a,n,8]", "y", two, w)
    case("skip-norm-bias-sum", node(skip, "x s g b c", "y _ _ t", epsilon=1e-3), "x:f[a,n,8] s:f[a,n,8]", "y t", two, w)
    case("skip-norm-bias-only", node(skip, "x s g _ c", "y"), "x:f[a,n,8] s:f[a,n,8]", "y", two, w)
    case("skip-norm-broadcast", node(skip, "x s g b", "y _ _ t"), "x:f[a,n,8] s:f[1,n,8]", "y t",
         {"x": x, "s": f32(1, 3, 8)}, w)
    case("skip-norm-broadcast-2d", node(skip, "x s g b", "y _ _ t"), "x:f[a,n,8] s:f[n,8]", "y t",
         {"x": x, "s": f32(3, 8)}, w)
    case("skip-norm-2d", node(skip, "x s g b", "y"), "x:f[n,8] s:f[n,8]", "y", {"x": f32(3, 8), "s": f32(3, 8)}, w)
    # The mean and the deviation have no kernel: those of the norm of the sum.
    case("skip-norm-mean", node(skip, "x s g b", "y m d t", epsilon=1e-5), "x:f[a,n,8] s:f[a,n,8]", "y m d t", two, w,
         reference=[plain("Add", "x s", "t"), plain("LayerNormalization", "t g b", "y m d", epsilon=1e-5)])
    rms = "SkipSimplifiedLayerNormalization"
    case("skip-rms", node(rms, "x s g", "y"), "x:f[a,n,8] s:f[a,n,8]", "y", two, w)
    case("skip-rms-bias-sum", node(rms, "x s g c", "y _ _ t", epsilon=1e-5), "x:f[a,n,8] s:f[a,n,8]", "y t", two, w)
    case("skip-rms-2d", node(rms, "x s g", "y _ _ t"), "x:f[n,8] s:f[n,8]", "y t",
         {"x": f32(3, 8), "s": f32(3, 8)}, w)
    case("skip-rms-deviation", node(rms, "x s g", "y _ d", epsilon=1e-5), "x:f[a,n,8] s:f[a,n,8]", "y d", two, w,
         reference=[plain("Add", "x s", "t"), plain("SimplifiedLayerNormalization", "t g", "y d", epsilon=1e-5)])
    tables = {"words": f32(20, 8), "places": f32(10, 8), "kinds": f32(3, 8), "g": f32(8), "b": f32(8)}
    op, ids = "EmbedLayerNormalization", RNG.integers(0, 20, (2, 5)).astype(np.int32)
    kinds = RNG.integers(0, 3, (2, 5)).astype(np.int32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    case("embed-norm", node(op, "i k words places kinds g b m", "y c", epsilon=1e-5),
         "i:j[a,n] k:j[a,n] m:j[a,n]", "y c", {"i": ids, "k": kinds, "m": mask}, tables)
    case("embed-norm-no-mask", node(op, "i k words places kinds g b", "y c"), "i:j[a,n] k:j[a,n]", "y c",
         {"i": ids, "k": kinds}, tables)
    case("embed-norm-no-segments", node(op, "i _ words places _ g b", "y c"), "i:j[a,n]", "y", {"i": ids}, tables)
    case("embed-norm-sum", node(op, "i k words places kinds g b m", "y c t"), "i:j[a,n] k:j[a,n] m:j[a,n]", "y c t",
         {"i": ids, "k": kinds, "m": mask}, tables)
    case("embed-norm-places", node(op, "i k words places kinds g b _ p", "y c"), "i:j[a,n] k:j[a,n] p:j[a,n]", "y",
         {"i": ids, "k": kinds, "p": RNG.integers(0, 10, (2, 5)).astype(np.int32)}, tables)
    case("embed-norm-places-shared", node(op, "i k words places kinds g b _ p", "y c"), "i:j[a,n] k:j[a,n] p:j[1,n]",
         "y", {"i": ids, "k": kinds, "p": RNG.integers(0, 10, (1, 5)).astype(np.int32)}, tables)


def activations():
    x = [{"x": f32(2, 3, 8) * 3}, {"x": f32(1, 1, 8)}]
    shape, bias = "x:f[a,n,8]", {"b": f32(8)}
    case("bias-gelu", node("BiasGelu", "x b", "y"), shape, "y", x, bias)
    case("fast-gelu", node("FastGelu", "x", "y"), shape, "y", x)
    case("fast-gelu-bias", node("FastGelu", "x b", "y"), shape, "y", x, bias)
    case("gelu", node("Gelu", "x", "y"), shape, "y", x)
    case("quick-gelu", node("QuickGelu", "x", "y"), shape, "y", x)
    case("quick-gelu-alpha", node("QuickGelu", "x", "y", alpha=0.7), shape, "y", x)
    case("bias-split-gelu", node("BiasSplitGelu", "x b", "y"), shape, "y", x, bias, reference=[
        plain("Add", "x b", "t"), plain("Split", "t", "l r", axis=-1, num_outputs=2),
        node("Gelu", "r", "g"), plain("Mul", "l g", "y")])
    tables = {"c": f32(12, 4), "s": f32(12, 4)}
    at = RNG.integers(0, 12, (2, 3)).astype(np.int64)
    rotary = "RotaryEmbedding"
    case("rotary-3d", node(rotary, "x p c s", "y"), "x:f[b,n,16] p:i[b,n]", "y", {"x": f32(2, 3, 16), "p": at}, tables)
    case("rotary-4d", node(rotary, "x p c s", "y"), "x:f[b,2,n,8] p:i[b,n]", "y", {"x": f32(2, 2, 3, 8), "p": at}, tables)
    case("rotary-interleaved", node(rotary, "x p c s", "y", interleaved=1), "x:f[b,n,16] p:i[b,n]", "y",
         {"x": f32(2, 3, 16), "p": at}, tables)
    case("rotary-offset", node(rotary, "x p c s", "y"), "x:f[b,n,16] p:i[1]", "y",
         [{"x": f32(2, 3, 16), "p": i64(4)}, {"x": f32(1, 5, 16), "p": i64(0)}], tables)
    case("rotary-partial", node(rotary, "x p c s", "y", rotary_embedding_dim=8, num_heads=2),
         "x:f[b,n,32] p:i[b,n]", "y", {"x": f32(2, 3, 32), "p": at}, tables)


def products():
    x = [{"x": f32(2, 3, 8)}, {"x": f32(1, 1, 8)}]
    op = "FusedMatMul"
    case("fused-matmul", node(op, "x w", "y", alpha=0.5), "x:f[a,n,8]", "y", x, {"w": f32(8, 5)})
    case("fused-matmul-tb", node(op, "x w", "y", transB=1), "x:f[a,n,8]", "y", x, {"w": f32(5, 8)})
    case("fused-matmul-ta", node(op, "x w", "y", transA=1, alpha=2.0), "x:f[a,8,n]", "y", {"x": f32(2, 8, 3)},
         {"w": f32(8, 5)})
    case("fused-matmul-both", node(op, "x z", "y", transA=1, transB=1), "x:f[a,8,n] z:f[a,m,8]", "y",
         {"x": f32(2, 8, 3), "z": f32(2, 5, 8)})
    for name, flags, a, b in [
        ("a", {"transBatchA": 1}, (3, 2, 8), (2, 8, 5)), ("b", {"transBatchB": 1}, (2, 3, 8), (8, 2, 5)),
        ("ab", {"transBatchA": 1, "transBatchB": 1}, (3, 2, 8), (8, 2, 5)),
        ("a-ta", {"transBatchA": 1, "transA": 1}, (8, 2, 3), (2, 8, 5)),
        ("b-tb", {"transBatchB": 1, "transB": 1}, (2, 3, 8), (5, 2, 8)),
        ("a-4d", {"transBatchA": 1}, (3, 2, 4, 8), (2, 4, 8, 5)),
    ]:
        dims = [",".join(map(str, d)) for d in (a, b)]
        case("fused-matmul-batch-" + name, node(op, "x z", "y", **flags), f"x:f[{dims[0]}] z:f[{dims[1]}]", "y",
             {"x": f32(*a), "z": f32(*b)})
    case("transpose-matmul", node("TransposeMatMul", "x w", "y", transB=1, alpha=0.3), "x:f[a,n,8]", "y", x,
         {"w": f32(5, 8)})
    for name, attrs in [("relu", {"activation": "Relu"}), ("tanh", {"activation": "Tanh"}),
                        ("sigmoid", {"activation": "Sigmoid"}),
                        ("leaky", {"activation": "LeakyRelu", "activation_alpha": 0.2})]:
        case("fused-gemm-" + name, node("FusedGemm", "x w b", "y", transB=1, alpha=0.5, beta=2.0, **attrs),
             "x:f[n,8]", "y", [{"x": f32(3, 8)}, {"x": f32(1, 8)}], {"w": f32(5, 8), "b": f32(5)})
    case("fused-gemm-no-bias", node("FusedGemm", "x w", "y", activation="Relu"), "x:f[n,8]", "y",
         {"x": f32(3, 8)}, {"w": f32(8, 5)})
    image = [{"x": f32(2, 4, 6, 7)}, {"x": f32(1, 4, 9, 5)}]
    w = {"w": f32(6, 4, 3, 3), "b": f32(6)}
    for name, attrs in [("relu", {"activation": "Relu"}), ("tanh", {"activation": "Tanh"}),
                        ("sigmoid", {"activation": "Sigmoid"}),
                        ("leaky", {"activation": "LeakyRelu", "activation_params": [0.3]}),
                        ("clip", {"activation": "Clip", "activation_params": [-1.0, 2.0]}),
                        ("hard-sigmoid", {"activation": "HardSigmoid", "activation_params": [0.1, 0.6]})]:
        case("fused-conv-" + name, node("FusedConv", "x w b", "y", pads=[1, 1, 1, 1], strides=[2, 1], **attrs),
             "x:f[n,4,h,v]", "y", image, w)
    case("fused-conv-z", node("FusedConv", "x w b z", "y", pads=[1, 1, 1, 1], activation="Relu"),
         "x:f[n,4,h,v] z:f[n,6,h,v]", "y", {"x": f32(2, 4, 5, 6), "z": f32(2, 6, 5, 6)}, w)
    case("fused-conv-groups", node("FusedConv", "x w", "y", group=2, dilations=[1, 2], activation="Relu"),
         "x:f[n,4,h,v]", "y", image, {"w": f32(6, 2, 3, 2)})


def others():
    x = {"x": f32(2, 3, 5, 4)}
    w = {"w": f32(3, 4, 3, 3), "b": f32(4)}
    for name, pads in [("", [0, 0, 0, 0]), ("-pads", [1, 0, 1, 1])]:
        case("conv-transpose-pads" + name, node("ConvTransposeWithDynamicPads", "x w p b", "y", strides=[2, 1]),
             "x:f[n,3,h,v]", "y", x, {**w, "p": i64(*pads)})
    grid = {"x": x["x"], "g": RNG.uniform(-1.2, 1.2, (2, 4, 3, 2)).astype(np.float32)}
    for mode in ["bilinear", "nearest"]:
        case(f"grid-sample-{mode}", node("GridSample", "x g", "y", mode=mode), "x:f[n,3,h,v] g:f[n,a,b,2]", "y", grid)
    case("gather-nd", node("GatherND", "x i", "y"), "x:f[n,3,h,v] i:i[k,2]", "y",
         {"x": x["x"], "i": np.array([[0, 1], [1, 2], [1, 0]])})
    for name, shape in [("", (3, 5, 5)), ("-wide", (2, 9, 9)), ("-one", (1, 1, 1))]:
        case("inverse" + name, node("Inverse", "x", "y"), "x:f[b,n,n]", "y",
             {"x": f32(*shape) + 3 * np.eye(shape[1], dtype=np.float32)})
    swapped = np.eye(5, dtype=np.float32)[::-1] * np.arange(1, 6, dtype=np.float32)
    case("inverse-pivots", node("Inverse", "x", "y"), "x:f[n,n]", "y", {"x": swapped})
    case("unique-in-order", node("Unique", "x", "y i c"), "x:f[n]", "y i c",
         {"x": np.array([2, 1, 1, 3, 4, 3], np.float32)})
    state = {"x": f32(2, 4, 6), "s": f32(2, 4, 2)}
    case("causal-conv", node("CausalConvWithState", "x w b s", "y n", activation="silu"), "x:f[n,4,t] s:f[n,4,2]", "y n",
         state, {"w": f32(4, 1, 3), "b": f32(4)})
    q = {"q": f32(2, 3, 8), "k": f32(2, 3, 8), "v": f32(2, 3, 6), "g": -np.abs(f32(2, 3, 2)), "b": np.abs(small(2, 3, 2))}
    for rule, inputs in [("linear", "q k v"), ("gated", "q k v _ g"), ("gated_delta", "q k v _ g b")]:
        names = [n for n in inputs.split() if n != "_"]
        widths = {"q": 8, "k": 8, "v": 6, "g": 2, "b": 2}
        case(f"linear-attention-{rule}", node("LinearAttention", inputs, "y n", update_rule=rule, q_num_heads=2,
                                              kv_num_heads=2), " ".join(f"{n}:f[n,t,{widths[n]}]" for n in names), "y n",
             {n: q[n] for n in names})


def halves():
    """Half floats, where ONNX Runtime has kernels for them."""
    def f16(*shape):
        return f32(*shape).astype(np.float16)

    w = {"g": f16(8)}
    case("half-skip-rms", node("SkipSimplifiedLayerNormalization", "x s g", "y _ _ t", epsilon=1e-5),
         "x:h[a,n,8] s:h[a,n,8]", "y t", {"x": f16(2, 3, 8), "s": f16(2, 3, 8)}, w)
    # All of one sign: what cancels is only known to the terms' rounding.
    n, k, block = 6, 64, 32
    case("half-matmul-4-bits", node("MatMulNBits", "x w s z", "y", N=n, K=k, bits=4, block_size=block), f"x:h[a,{k}]", "y",
         {"x": np.abs(f16(3, k))},
         {"w": u8(n, k // block, block // 2), "s": np.abs(small(n, k // block)).astype(np.float16),
          "z": np.zeros((n, 1), np.uint8)})
    case("half-rotary", node("RotaryEmbedding", "x p c s", "y"), "x:h[b,n,16] p:i[b,n]", "y",
         {"x": f16(2, 3, 16), "p": RNG.integers(0, 12, (2, 3))}, {"c": f16(12, 4), "s": f16(12, 4)})
    case("half-grouped", node("GroupQueryAttention", "q k v pk pv n t c s", "y nk nv", do_rotary=1, num_heads=4,
                              kv_num_heads=2),
         "q:h[b,s,64] k:h[b,s,32] v:h[b,s,32] pk:h[b,2,p,16] pv:h[b,2,p,16] n:j[b] t:j[]", "y nk nv",
         {"q": f16(2, 1, 64), "k": f16(2, 1, 32), "v": f16(2, 1, 32), "pk": f16(2, 2, 3, 16), "pv": f16(2, 2, 3, 16),
          "n": i32(3, 3), "t": np.array(4, np.int32)}, {"c": f16(16, 8), "s": f16(16, 8)})


def quantized_products():
    x = [{"x": f32(2, 3, 8) * 2}, {"x": f32(1, 1, 8)}]
    op = "DynamicQuantizeMatMul"
    for name, w, z, s in [
        ("", s8(8, 5), np.int8(3), np.float32(0.02)), ("-unsigned", u8(8, 5), np.uint8(130), np.float32(0.02)),
        ("-columns", s8(8, 5), s8(5), np.abs(small(5)) * np.float32(0.1)),
    ]:
        case("dynamic-matmul" + name, node(op, "x w s z b", "y"), "x:f[a,n,8]", "y", x,
             {"w": w, "s": s, "z": z, "b": f32(5)})
    case("dynamic-matmul-plain", node(op, "x w s", "y"), "x:f[a,n,8]", "y", x, {"w": s8(8, 5), "s": np.float32(0.03)})
    op = "MatMulIntegerToFloat"
    q = [{"x": u8(2, 3, 8)}, {"x": u8(1, 1, 8)}]
    case("integer-to-float", node(op, "x w sx sw zx zw b", "y"), "x:u[a,n,8]", "y", q,
         {"w": s8(8, 5), "sx": np.float32(0.02), "sw": np.float32(0.03), "zx": np.uint8(120), "zw": np.int8(-3),
          "b": f32(5)})
    case("integer-to-float-columns", node(op, "x w sx sw zx zw", "y"), "x:u[a,n,8]", "y", q,
         {"w": u8(8, 5), "sx": np.float32(0.02), "sw": np.abs(small(5)), "zx": np.uint8(120), "zw": u8(5)})
    case("integer-to-float-signed", node(op, "x w sx sw", "y"), "x:s[n,8]", "y", {"x": s8(3, 8)},
         {"w": s8(8, 5), "sx": np.float32(0.02), "sw": np.float32(0.03)})
    op = "QGemm"
    base = {"sa": np.float32(0.02), "za": np.uint8(120), "sb": np.float32(0.03), "zb": np.int8(4),
            "c": RNG.integers(-2000, 2000, 5).astype(np.int32), "sy": np.float32(0.13), "zy": np.uint8(100)}
    rows = [{"x": u8(3, 8)}, {"x": u8(1, 8)}]
    case("qgemm", node(op, "x sa za w sb zb c sy zy", "y", transB=1), "x:u[n,8]", "y", rows, {**base, "w": s8(5, 8)})
    case("qgemm-float", node(op, "x sa za w sb zb c", "y", alpha=0.5), "x:u[n,8]", "y", rows, {**base, "w": s8(8, 5)})
    case("qgemm-no-c", node(op, "x sa za w sb zb _ sy zy", "y", transA=1), "x:u[8,n]", "y", {"x": u8(8, 3)},
         {**base, "w": s8(8, 5)})
    case("qgemm-columns", node(op, "x sa za w sb zb c sy zy", "y"), "x:u[n,8]", "y", rows,
         {**base, "w": s8(8, 5), "sb": np.abs(small(5)), "zb": np.zeros(5, np.int8)})
    few_bits()


def few_bits():
    op = "MatMulNBits"
    n, k, block = 6, 40, 16
    blocks = -(-k // block)
    rows = [{"x": f32(2, 3, k)}, {"x": f32(1, 1, k)}]
    shape = f"x:f[a,m,{k}]"
    for bits in [2, 4, 8]:
        w = {"w": u8(n, blocks, block * bits // 8), "s": np.abs(small(n, blocks)), "b": f32(n),
             "z": u8(n, -(-blocks * bits // 8)), "zf": (f32(n, blocks) * 2 + 2 ** (bits - 1)).astype(np.float32)}
        attrs = {"N": n, "K": k, "bits": bits, "block_size": block}
        case(f"matmul-{bits}-bits", node(op, "x w s", "y", **attrs), shape, "y", rows, w)
        case(f"matmul-{bits}-bits-zero", node(op, "x w s z", "y", **attrs), shape, "y", rows, w)
        case(f"matmul-{bits}-bits-bias", node(op, "x w s z _ b", "y", **attrs), shape, "y", rows, w)
        if bits != 8:
            case(f"matmul-{bits}-bits-zero-float", node(op, "x w s zf", "y", **attrs), shape, "y", rows, w)
    order = RNG.permutation(np.arange(k) // block).astype(np.int32)
    attrs = {"N": n, "K": k, "bits": 4, "block_size": block}
    # With zero points as well, ONNX Runtime's kernel reads others than it should.
    case("matmul-4-bits-groups", node(op, "x w s _ g", "y", **attrs), shape, "y", rows,
         {"w": u8(n, blocks, block // 2), "s": np.abs(small(n, blocks)), "g": order})
    # A layer as large as those of models, whole blocks.
    n, k, block = 64, 128, 32
    case("matmul-4-bits-wide", node(op, "x w s z", "y", N=n, K=k, bits=4, block_size=block, accuracy_level=1),
         f"x:f[a,m,{k}]", "y", [{"x": small(1, 1, k)}, {"x": small(2, 9, k)}],
         {"w": u8(n, k // block, block // 2), "s": np.abs(small(n, k // block)), "z": u8(n, k // block // 2)})
    gather_blocks()


def packed_tensor(kind, shape):
    """A constant of elements below a byte, packed."""
    count = int(np.prod(shape))
    return helper.make_tensor("t", kind, shape, u8(-(-count // 2)).tobytes(), raw=True)


def gather_blocks():
    op, at = "GatherBlockQuantized", {"i": np.array([[0, 5], [2, -1]], np.int64)}
    scales = np.abs(small(6, 2))
    for bits in [4, 8]:
        attrs = {"bits": bits, "block_size": 16, "gather_axis": 0, "quantize_axis": 1}
        w = {"w": u8(6, 32 * bits // 8), "s": scales, "z": u8(6, 2 * bits // 8)}
        case(f"gather-{bits}-bits", node(op, "w i s", "y", **attrs), "i:i[a,b]", "y", at, w)
        case(f"gather-{bits}-bits-zero", node(op, "w i s z", "y", **attrs), "i:i[a,b]", "y", at, w)
    for name, kind in [("u4", TensorProto.UINT4), ("i4", TensorProto.INT4)]:
        w = {"w": packed_tensor(kind, [6, 40]), "s": np.abs(small(6, 3)), "z": packed_tensor(kind, [6, 3])}
        attrs = {"block_size": 16, "gather_axis": 0, "quantize_axis": 1}
        case(f"gather-{name}", node(op, "w i s", "y", **attrs), "i:i[a,b]", "y", at, w)
        case(f"gather-{name}-zero", node(op, "w i s z", "y", **attrs), "i:i[a,b]", "y", at, w)


def quantized_values():
    # Scales whose quotients are no short fractions: what lies half way between two
    # integers would depend on the order of roundings.
    sx, sy = {"sx": np.float32(0.031391)}, {"sy": np.float32(0.017257)}
    u = {**sx, **sy, "zx": np.uint8(117), "zy": np.uint8(139), "sz": np.float32(0.053), "zz": np.uint8(101)}
    s = {**sx, **sy, "zx": np.int8(-7), "zy": np.int8(12), "sz": np.float32(0.053), "zz": np.int8(5)}
    for name, make, kind, consts in [("", u8, "u", u), ("-signed", s8, "s", s)]:
        both = f"x:{kind}[a,n,8] y:{kind}[a,n,8]"
        two = [{"x": make(2, 3, 8), "y": make(2, 3, 8)}, {"x": make(1, 5, 8), "y": make(1, 5, 8)}]
        row = {"x": make(2, 3, 8), "y": make(8)}
        for op in ["QLinearAdd", "QLinearMul"]:
            case(f"{op}{name}", node(op, "x sx zx y sy zy sz zz", "z"), both, "z", two, consts)
            case(f"{op}{name}-broadcast", node(op, "x sx zx y sy zy sz zz", "z"),
                 f"x:{kind}[a,n,8] y:{kind}[8]", "z", row, consts)
        one = [{"x": make(2, 3, 8)}, {"x": make(1, 40, 8)}]
        shape = f"x:{kind}[a,n,8]"
        tight = {**consts, "sy": np.float32(1 / 255), "zy": np.array(0 if kind == "u" else -128, make(1).dtype)}
        case(f"QLinearSigmoid{name}", node("QLinearSigmoid", "x sx zx sy zy", "z"), shape, "z", one, tight)
        case(f"QLinearLeakyRelu{name}", node("QLinearLeakyRelu", "x sx zx sy zy", "z", alpha=0.3), shape, "z", one, consts)
        for axis in [-1, 1]:
            case(f"QLinearSoftmax{name}-{axis}", node("QLinearSoftmax", "x sx zx sy zy", "z", axis=axis, opset=13),
                 shape, "z", one, tight)
        case(f"QLinearSoftmax{name}-flat", node("QLinearSoftmax", "x sx zx sy zy", "z", axis=1, opset=11),
             shape, "z", one, tight)
        case(f"QLinearConcat{name}", node("QLinearConcat", "sz zz x sx zx y sy zy", "z", axis=1), both, "z", two, consts)
        case(f"QLinearWhere{name}", node("QLinearWhere", "c x sx zx y sy zy sz zz", "z"), "c:b[a,n,1] " + both, "z",
             {**two[0], "c": RNG.integers(0, 2, (2, 3, 1)).astype(bool)}, consts)
        mean = [plain("DequantizeLinear", "x sx zx", "f"), plain("ReduceMean", "f axes", "m", keepdims=1),
                plain("QuantizeLinear", "m sy zy", "z")]
        case(f"QLinearReduceMean{name}", node("QLinearReduceMean", "x sx zx sy zy", "z", axes=[1, 2], keepdims=1), shape,
             "z", one, {**consts, "axes": i64(1, 2)}, reference=mean)
        images(name, make, kind, consts)


def images(name, make, kind, consts):
    first, last = f"x:{kind}[n,3,h,w]", f"x:{kind}[n,h,w,3]"
    plane, planes = {"x": make(2, 3, 7, 6)}, {"x": make(2, 7, 6, 3)}
    for suffix, attrs in [("", {}), ("-pads", {"pads": [1, 0, 1, 1]}),
                          ("-counted", {"pads": [1, 1, 1, 1], "count_include_pad": 1}),
                          ("-strides", {"strides": [2, 3]}), ("-same", {"auto_pad": "SAME_UPPER", "strides": [2, 2]})]:
        op = node("QLinearAveragePool", "x sx zx sy zy", "z", kernel_shape=[3, 2], **attrs)
        case(f"QLinearAveragePool{name}{suffix}", op, first, "z", plane, consts)
    op = node("QLinearAveragePool", "x sx zx sy zy", "z", kernel_shape=[3, 2], channels_last=1, pads=[1, 0, 1, 1])
    case(f"QLinearAveragePool{name}-last", op, last, "z", planes, consts)
    op = "QLinearGlobalAveragePool"
    case(f"{op}{name}", node(op, "x sx zx sy zy", "z"), first, "z", plane, consts)
    case(f"{op}{name}-last", node(op, "x sx zx sy zy", "z", channels_last=1), last, "z", planes, consts)
    case(f"NhwcMaxPool{name}", node("NhwcMaxPool", "x", "z", kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[2, 1]),
         last, "z", planes)
    w = {**consts, "w": s8(4, 3, 3, 2), "sw": np.float32(0.01), "zw": np.int8(0), "sz": np.float32(0.9),
         "b": RNG.integers(-3000, 3000, 4).astype(np.int32)}
    case(f"QLinearConv{name}", node("QLinearConv", "x sx zx w sw zw sz zz b", "z", pads=[1, 1, 1, 0]), first, "z", plane, w)
    case(f"QLinearConv{name}-last", node("QLinearConv", "x sx zx w sw zw sz zz b", "z", channels_last=1, strides=[2, 2]),
         last, "z", planes, w)
    case(f"QLinearConv{name}-channels", node("QLinearConv", "x sx zx w sw zw sz zz", "z", channels_last=1),
         last, "z", planes, {**w, "sw": np.abs(small(4)) * np.float32(0.1), "zw": np.zeros(4, np.int8)})


def conversions():
    x = {"x": f32(3, 8) * 50}
    for name, kind in [("u8", np.uint8), ("s8", np.int8), ("u16", np.uint16), ("s16", np.int16)]:
        zero = np.array(7, kind)
        case(f"quantize-{name}", node("QuantizeLinear", "x s z", "y"), "x:f[n,8]", "y", x,
             {"s": np.float32(0.37), "z": zero})
        case(f"round-trip-{name}", [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")],
             "x:f[n,8]", "y", x, {"s": np.float32(0.37), "z": zero})
        column = {"s": np.abs(f32(8)) + np.float32(0.1), "z": np.arange(8).astype(kind)}
        case(f"round-trip-{name}-axis", [
            node("QuantizeLinear", "x s z", "q", axis=1), node("DequantizeLinear", "q s z", "y", axis=1)],
            "x:f[n,8]", "y", x, column)
    for name, kind in [("u4", TensorProto.UINT4), ("i4", TensorProto.INT4)]:
        w = {"w": packed_tensor(kind, [4, 8]), "s": np.float32(0.3), "z": helper.make_tensor("z", kind, [], [3])}
        case(f"dequantize-{name}", [node("DequantizeLinear", "w s z", "d"), plain("MatMul", "x d", "y")],
             "x:f[n,4]", "y", {"x": f32(3, 4)}, w)
        case(f"quantize-{name}", [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")],
             "x:f[n,8]", "y", {"x": f32(3, 8)}, w)


def layouts():
    x = [{"x": f32(2, 3, 4)}, {"x": f32(1, 5, 5)}]
    case("expand-dims", node("ExpandDims", "x axis", "y"), "x:f[a,b,c]", "y", x, {"axis": i32(1)[0]})
    case("expand-dims-last", node("ExpandDims", "x axis", "y"), "x:f[a,b,c]", "y", x, {"axis": i32(-1)[0]})
    for mode in ["constant", "reflect", "edge"]:
        case(f"pad-{mode}", node("Pad", "x p v", "y", mode=mode), "x:f[a,b,c]", "y", x,
             {"p": i64(0, 1, 2, 0, 1, 1), "v": np.float32(1.5)})
    case("pad-default", node("Pad", "x p", "y"), "x:f[a,b,c]", "y", x, {"p": i64(1, 0, 0, 0, 0, 2)})
    case("range", node("Range", "a b c", "y"), "a:f[] b:f[] c:f[]", "y",
         {"a": np.float32(1), "b": np.float32(8), "c": np.float32(1.5)})
    case("range-no-step", node("Range", "a b", "y"), "a:i[] b:i[]", "y", {"a": np.array(2), "b": np.array(7)})
    case("trilu-upper", node("Trilu", "x", "y"), "x:f[a,b,c]", "y", x)
    case("trilu-lower", node("Trilu", "x k", "y", upper=0), "x:f[a,b,c]", "y", x, {"k": np.array(1)})


for group in [attention, multi_head, grouped, norms, activations, products, others, halves, quantized_products,
              quantized_values, conversions, layouts]:
    group()
print(W.count, "cases written")
