"""Times of kernels against PyTorch's, in turns, by CUDA events.

Every launch waits behind a short sleep of the GPU, so that the host's time is in no
figure; inputs change from launch to launch, so that the second-level cache serves none.
"""
import statistics

import torch
import torch.nn.functional as F
from gpu_cases import result_of
from torch.nn.attention import SDPBackend, sdpa_kernel

RUNS = 50
WARM = 5
# Bytes that a round of inputs takes at least: several times the second-level cache.
ROUND = 256 << 20
MOST_COPIES = 64
DEVICE = "cuda"
SLEEP_CYCLES = 1_000_000
TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i8": torch.int8, "u8": torch.uint8,
         "i32": torch.int32, "f8e4m3fn": torch.float8_e4m3fn, "f8e5m2": torch.float8_e5m2}
# Data sheets, dense: TFLOP/s of f32, tf32, bf16, i8 (and f8 where there is such) and GB/s.
SHEETS = {"H200": (67, 495, 989, 1979, 4800), "H100 PCIe": (51, 378, 756, 1513, 2000),
          "H100": (67, 495, 989, 1979, 3350), "A100": (19.5, 156, 312, 624, 2039)}


def sheet(name):
    """The data sheet's rates of a chip, or None."""
    found = next((rates for chip, rates in SHEETS.items() if all(w in name for w in chip.split())), None)
    return found and dict(zip(("f32", "tf32", "bf16", "i8", "copy"), found))


def turns(calls, runs=RUNS):
    """Median, least and greatest milliseconds of each call of the round number, in turns."""
    order = list(calls)
    times = {name: [] for name in order}
    for i in range(-WARM, runs):
        marks = []
        torch.cuda._sleep(SLEEP_CYCLES)
        for name in order if i % 2 else reversed(order):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            calls[name](i)
            end.record()
            marks.append((name, start, end))
        torch.cuda.synchronize()
        for name, start, end in marks if i >= 0 else []:
            times[name].append(start.elapsed_time(end))
    return {name: {"ms": statistics.median(t), "least": min(t), "most": max(t)} for name, t in times.items()}


def in_tf32(call):
    """A call whose products of f32 PyTorch computes in tf32."""
    def called(i):
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return call(i)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    return called


def ceilings():
    """What PyTorch reaches here: TFLOP/s of products by type, GB/s of a copy."""
    n, out = 8192, {}
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    x, y = (torch.randn(4096, 4096, device=DEVICE) for _ in range(2))
    i, j = (torch.randint(-128, 128, (n, n), device=DEVICE, dtype=torch.int8) for _ in range(2))
    large = torch.zeros(1 << 28, device=DEVICE)
    to = torch.empty_like(large)
    for name, work, call in (("bf16", 2 * n**3, lambda _: a @ b.t()), ("f32", 2 * 4096**3, lambda _: x @ y),
                             ("tf32", 2 * 4096**3, in_tf32(lambda _: x @ y)),
                             ("i8", 2 * n**3, lambda _: torch._int_mm(i, j.t())),
                             ("copy", 1000 * 8 * large.numel(), lambda _: to.copy_(large))):
        out[name] = work / turns({name: call}, 20)[name]["least"] / 1e9
    return out


def drawn(buffer, op):
    """A dense tensor of a buffer's shape with random values."""
    shape, dtype = buffer["shape"], TORCH[buffer["dtype"]]
    if op.get("tf32") and buffer["role"] in ("a", "b"):
        bits = torch.randn(shape, device=DEVICE).view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    if dtype in (torch.int8, torch.uint8):
        low = torch.iinfo(dtype).min
        return torch.randint(low, low + 256, shape, device=DEVICE, dtype=dtype)
    return torch.randn(shape, device=DEVICE, dtype=torch.float32).to(dtype)


def laid(buffer, x):
    """A tensor as the kernel reads it. Large problems fill their panels."""
    (kind, how), = buffer["layout"].items()
    if kind == "strides":
        out = torch.empty(buffer["elements"], device=DEVICE, dtype=x.dtype)
        out.as_strided(x.shape, how).copy_(x)
        return out
    if kind == "depthwise" and how["pad"] == 1:
        return x.reshape(-1).contiguous()
    if kind == "filters" and how["pad"] == 1 and how["groups"] == 1:
        x, how = x.reshape(-1, x.shape[-1]), {"nr": how["nr"], "group": 1}
    elif kind != "panels":
        raise ValueError(f"a large kernel's {buffer['role']} lies by {kind}")
    (k, n), nr, group = x.shape, how["nr"], how["group"]
    if k % group or n % nr:
        raise ValueError(f"{k} x {n} does not fill its panels")
    return x.reshape(k // group, group, n // nr, nr).permute(2, 0, 3, 1).contiguous()


def off(got, want):
    """‖got − want‖ / ‖want‖ in float64."""
    got, want = got.double(), want.double()
    if not bool(torch.isfinite(got).all()):
        return float("inf")
    return float((got - want).norm() / want.norm().clamp_min(1e-300))


def both(function, args, compiled):
    """A function as it is and, if `compiled` makes one, as torch.compile has it."""
    peers = {"eager": lambda i: function(*args(i))}
    graph = compiled and compiled(function, args(0))
    if graph:
        peers["compiled"] = lambda i: graph(*args(i))
    return peers


def block_weight(kernel, r):
    """What quantized blocks mean, `[n, k]`."""
    op = kernel["op"]
    parts = [(r["q"] >> (op["bits"] * i)) & ((1 << op["bits"]) - 1) for i in range(8 // op["bits"])]
    q = torch.stack(parts, -1).reshape(len(r["q"]), -1).to(torch.float32)
    return (q - (1 << (op["bits"] - 1))) * r["s"].float().repeat_interleave(op["block"], 1)


def peers_of_product(kernel, rounds, compiled):
    if kernel["op"]["kind"] == "block_matmul":
        # PyTorch alone multiplies by what the blocks mean, which is four times as many bytes.
        weights = [block_weight(kernel, r).to(r["a"].dtype).t() for r in rounds]
        return {"matmul dequantized": lambda i: torch.matmul(rounds[i]["a"], weights[i])}
    bias = kernel["op"]["epilogue"] == "BiasGelu"
    if kernel["buffers"][0]["dtype"] == "i8":
        by_columns = [r["b"].t().contiguous().t() for r in rounds]
        return {"_int_mm": lambda i: torch._int_mm(rounds[i]["a"], by_columns[i])}
    if "f8" in kernel["buffers"][0]["dtype"]:
        if torch.cuda.get_device_capability() < (8, 9):
            return {}
        by_columns, one = [r["b"].t().contiguous().t() for r in rounds], torch.ones((), device=DEVICE)
        return {"_scaled_mm": lambda i: torch._scaled_mm(
            rounds[i]["a"], by_columns[i], scale_a=one, scale_b=one, out_dtype=TORCH[result_of(kernel)["dtype"]])}
    if bias:
        weights = [r["b"].t().contiguous() for r in rounds]
        biases = [r["bias"].to(weights[0].dtype) for r in rounds]
        layer = lambda a, w, b: F.gelu(F.linear(a, w, b))
        return both(layer, lambda i: [rounds[i]["a"], weights[i], biases[i]], compiled)
    # As the layout that the kernel has: by columns, as a linear layer's weight lies.
    by_columns = [r["b"].t().contiguous().t() for r in rounds]
    peers = {"matmul": lambda i: torch.matmul(rounds[i]["a"], by_columns[i]),
             "matmul of rows": lambda i: torch.matmul(rounds[i]["a"], rounds[i]["b"])}
    return {name: in_tf32(call) for name, call in peers.items()} if kernel["op"]["tf32"] else peers


def peers_of_attention(kernel, rounds, _):
    how = {"is_causal": kernel["op"]["mask"] == "Causal", "scale": kernel["op"]["scale"]}
    if kernel["op"]["group"] > 1:
        how["enable_gqa"] = True
    peers = {}
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        def call(i, backend=getattr(SDPBackend, name)):
            r = rounds[i]
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(r["q"], r["k"], r["v"], **how)

        try:
            call(0)
            peers[name.lower()] = call
        except (RuntimeError, TypeError):
            continue  # PyTorch has no such kernel for this problem, or knows no such problem.
    return peers


def peers_of_conv(kernel, rounds, _):
    op, groups = kernel["op"], kernel["op"]["groups"]
    side = op["kernel"]
    images = [r["x"].permute(0, 3, 1, 2) for r in rounds]
    weights = [r["w"].permute(2, 1, 0).reshape(r["w"].shape[2], -1, side, side).contiguous(
        memory_format=torch.channels_last) for r in rounds]
    return {"conv2d": lambda i: F.conv2d(images[i], weights[i], None, op["stride"], op["pad"], op["dilation"], groups)}


def peers_of_nest(kernel, rounds, compiled):
    op = kernel["op"]
    gammas = [r["gamma"].to(r["x"].dtype) for r in rounds if "gamma" in r]
    betas = [r["beta"].to(r["x"].dtype) for r in rounds if "beta" in r]
    given = {
        "softmax": (lambda x: torch.softmax(x, -1), lambda i: [rounds[i]["x"]]),
        "layer_norm": (lambda x, g, b: F.layer_norm(x, x.shape[-1:], g, b, op["epsilon"]),
                       lambda i: [rounds[i]["x"], gammas[i], betas[i]]),
        "add": (torch.add, lambda i: [rounds[i]["x"], rounds[i]["y"]]),
        "gelu": (F.gelu, lambda i: [rounds[i]["x"]]),
        "copy": (torch.clone, lambda i: [rounds[i]["x"]]),
        "sum_rows": (lambda x: torch.sum(x, 1, dtype=torch.float32), lambda i: [rounds[i]["x"]]),
        "cumulate": (lambda x: torch.cumsum(x, 1, dtype=torch.float32), lambda i: [rounds[i]["x"]]),
        "sum_columns": (lambda x: torch.sum(x, 0, dtype=torch.float32), lambda i: [rounds[i]["x"]]),
    }
    function, args = given[op["kind"]]
    return both(function, args, compiled if op["kind"] != "copy" else None)


PEERS = {"matmul": peers_of_product, "attention": peers_of_attention, "conv": peers_of_conv,
         "depthwise": peers_of_conv, "nest": peers_of_nest}


def want(kernel, r, rows):
    """A part of the result in float64, and how to take the same part of the result."""
    op, kind = kernel["op"], kernel["op"]["kind"]
    v = {name: x.double() for name, x in r.items()} if kind not in ("attention", "conv") else r
    pick = lambda out: out[rows]
    if kind == "matmul":
        x = r["a"][rows].double() @ v["b"] + v.get("bias", 0)
        return (F.gelu(x) if op["epilogue"] == "BiasGelu" else x), pick
    if kind == "block_matmul":
        w = block_weight(kernel, r).to(r["a"].dtype).double()
        return r["a"][rows].double() @ w.t() + v["bias"], pick
    if kind == "conv":
        x, w = r["x"][-1:].double().permute(0, 3, 1, 2), r["w"].double().permute(2, 1, 0)
        w = w.reshape(w.shape[0], -1, op["kernel"], op["kernel"])
        y = F.conv2d(x, w, None, op["stride"], op["pad"], op["dilation"], op["groups"])
        return y.permute(0, 2, 3, 1), lambda out: out[-1:]
    if kind == "attention":
        q, k, value = (r[role][-1, -1].double() for role in "qkv")
        scores = q[rows] @ k.t() * op["scale"]
        if op["mask"] == "Causal":
            scores.masked_fill_(torch.arange(k.shape[0], device=DEVICE) > rows[:, None], float("-inf"))
        return torch.softmax(scores, -1) @ value, lambda out: out[-1, -1][rows]
    if kind == "sum_columns":
        return v["x"][:, rows].sum(0), pick
    x = v["x"][rows]
    if kind == "layer_norm":
        return F.layer_norm(x, x.shape[-1:], v["gamma"], v["beta"], op["epsilon"]), pick
    whole = {"softmax": lambda: torch.softmax(x, -1), "add": lambda: x + v["y"][rows], "gelu": lambda: F.gelu(x),
             "copy": lambda: x, "sum_rows": lambda: x.sum(1),
             "cumulate": lambda: x.cumsum(1)}
    return whole[kind](), pick


class Timed:
    """A kernel's inputs, several of each, and calls that launch it on them."""

    def __init__(self, kernel, target, driver, functions, status_bytes):
        self.kernel, how, out = kernel, kernel["launches"][target], result_of(kernel)
        copies = min(MOST_COPIES, max(1, -(-ROUND // kernel["bytes"])))
        self.rounds, self.launches, self.outs = [], [], []
        self.status = torch.zeros(status_bytes, dtype=torch.uint8, device=DEVICE)
        # Launches have addresses alone: the memory lives as long as this.
        self.memory = [torch.empty(max(how["scratch"], 1), dtype=torch.uint8, device=DEVICE)]
        stream = torch.cuda.current_stream().cuda_stream
        for _ in range(copies):
            logical = {b["role"]: drawn(b, kernel["op"]) for b in kernel["buffers"] if b is not out}
            self.rounds.append(logical)
            result = torch.full((out["elements"],), 0x5A if "i" in out["dtype"] else float("nan"),
                                dtype=TORCH[out["dtype"]], device=DEVICE)
            memory = [result if b is out else laid(b, logical[b["role"]]) for b in kernel["buffers"]]
            words = [t.data_ptr() for t in (*memory, self.status, self.memory[0])] + kernel["params"]
            self.launches.append(driver.prepared(functions, how, words, stream))
            self.outs.append(result.as_strided(out["shape"], out["layout"]["strides"]))
            self.memory += memory

    def check(self):
        """How far the last round's result is off, on rows drawn at random."""
        self.launches[-1]()
        torch.cuda.synchronize()
        count = self.outs[-1].shape[-2 if self.kernel["family"] == "attention" else 0]
        rows = torch.randint(0, count, (64,) if count < 1 << 20 else (1 << 16,), device=DEVICE)
        wanted, pick = want(self.kernel, self.rounds[-1], rows)
        return off(pick(self.outs[-1]), wanted), int(self.status[:4].view(torch.int32)[0])

    def measure(self, compiled):
        """Times of Kiln's and of the peers', in turns."""
        n = len(self.rounds)
        peers = PEERS[self.kernel["family"]](self.kernel, self.rounds, compiled)
        calls = {"kiln": lambda i: self.launches[i % n]()}
        for name, call in peers.items():
            calls[name] = lambda i, call=call: call(i % n)
        return turns(calls)


def row(kernel, error, times, best, rates):
    """A line of the report: times, rates, shares of the data sheet and of the ceiling."""
    ms = times["kiln"]["ms"]
    peers = {name: t["ms"] for name, t in times.items() if name != "kiln"}
    peer = min(peers, key=peers.get) if peers else None
    flops, unit = kernel["flops"], "copy"
    if flops and kernel["family"] != "depthwise":
        dtype = kernel["buffers"][0]["dtype"]
        unit = {"f16": "bf16", "u8": "i8", "f8e4m3fn": "i8", "f8e5m2": "i8"}.get(dtype, dtype)
        unit = "tf32" if kernel["op"].get("tf32") else unit
    small = unit != "copy" and flops / kernel["bytes"] < 50  # Bound by memory on every chip here.
    unit = "copy" if small else unit
    rate = (kernel["bytes"] / 1e6 if unit == "copy" else flops / 1e9) / ms
    return {"name": kernel["name"], "ms": ms, "peer": peer, "peer_ms": peers.get(peer), "error": error,
            "ratio": ms / peers[peer] if peer else None, "rate": rate, "unit": "GB/s" if unit == "copy" else "TFLOP/s",
            "of_sheet": rate / rates[unit] if rates else None, "of_ceiling": rate / best[unit] if best else None,
            "times": times}
