"""Damaged and hostile input: each case must end with a coded error and exit 1 or
2, without a panic, a signal, a hang or unbounded memory.

usage: bad_input.py KILN KILN_RT
"""
import random
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import models

KILN, KILN_RT = sys.argv[1:3]
LIMIT = 6 << 30
results = []


def limit():
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))


def expect(name, command, code=r"K\d{4}", exits=(1, 2), env=None):
    import os
    full = dict(os.environ, **(env or {}))
    try:
        p = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=limit, env=full, errors="replace")
    except subprocess.TimeoutExpired:
        results.append((name, "hangs"))
        return
    text = p.stderr + p.stdout
    if p.returncode not in exits:
        results.append((name, f"exit {p.returncode}: {text[:200]!r}"))
    elif "panicked" in text:
        results.append((name, f"panic: {text[:200]!r}"))
    elif p.returncode != 0 and not re.search(code, text):
        results.append((name, f"no code {code}: {text[:200]!r}"))
    else:
        results.append((name, None))


def value(name, dtype, shape):
    return helper.make_tensor_value_info(name, dtype, shape)


def save(path, nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def devices(tmp, model, cpu_artifact, rng):
    out, bad = tmp / "gpu.kiln", tmp / "gpu-bad.kiln"
    subprocess.run([KILN, "compile", str(model), "-o", str(out), "--target", "sm_80"], check=True, stdout=subprocess.DEVNULL)
    np.savez(tmp / "gpu.npz", x=np.ones((3, 8), np.float32))
    run = lambda tool, f, *more: [tool, "run", str(f), "--inputs", str(tmp / "gpu.npz"), *more]
    expect("on the simulated device", run(KILN, out, "--device", "sim"), exits=(0,))
    whole = out.read_bytes()
    for i in range(16):
        at = rng.randrange(len(whole))
        bad.write_bytes(whole[:at])
        expect(f"GPU artifact cut at {at}", run(KILN, bad, "--device", "sim"))
        flipped = bytearray(whole)
        at = rng.randrange(len(whole))
        flipped[at] ^= 1 << rng.randrange(8)
        bad.write_bytes(flipped)
        expect(f"GPU artifact bit flipped at {at}", run(KILN, bad, "--device", "sim"), exits=(2,))
    expect("GPU code on the CPU", run(KILN_RT, out), code="K0704", exits=(1,))
    expect("CPU code on a device", run(KILN, cpu_artifact, "--device", "sim"), code="K0804", exits=(1,))
    expect("a target that is not there", run(KILN, out, "--device", "sim", "--target", "sm_90a"), code="K0804", exits=(1,))
    expect("no interpreter in kiln-rt", run(KILN_RT, out, "--device", "sim"), code="K0801", exits=(1,))
    for name in ("gpu", "cuda:", "cuda:x", "sim:0"):
        for tool in (KILN, KILN_RT):
            expect(f"the device {name}", run(tool, out, "--device", name), code="no device", exits=(64,))
    expect("a target without a device", run(KILN_RT, out, "--target", "sm_80"), code="--target", exits=(64,))
    expect("a GPU target without a device", [KILN, "run", str(model), "--target", "sm_80"], code="--device", exits=(64,))
    expect("index out of range on a device", [KILN, "run", str(tmp / "gather.onnx"), "--device", "sim", "--inputs", str(tmp / "g.npz")],
           code="K0723", exits=(1,))


def main():
    rng = random.Random(7)
    tmp = Path(tempfile.mkdtemp())
    out = str(tmp / "out.kiln")
    F = TensorProto.FLOAT
    small = tmp / "small.onnx"
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32), "w")
    save(small, [helper.make_node("MatMul", ["x", "w"], ["h"], name="mm"), helper.make_node("Relu", ["h"], ["y"])],
         [value("x", F, ["n", 8])], [value("y", F, ["n", 8])], [weight])
    subprocess.run([KILN, "compile", str(small), "-o", out], check=True, stdout=subprocess.DEVNULL)
    artifact = Path(out).read_bytes()
    np.savez(tmp / "in.npz", x=np.ones((3, 8), np.float32))
    run = lambda f, *more: [KILN_RT, "run", str(f), "--inputs", str(tmp / "in.npz"), *more]
    subprocess.run(run(out), check=True, stdout=subprocess.DEVNULL)

    # Artifacts: every flip and truncation is noticed.
    bad = tmp / "bad.kiln"
    for i in range(24):
        at = rng.randrange(len(artifact))
        bad.write_bytes(artifact[:at])
        expect(f"artifact cut at {at}", run(bad))
        flipped = bytearray(artifact)
        at = rng.randrange(len(artifact))
        flipped[at] ^= 1 << rng.randrange(8)
        bad.write_bytes(flipped)
        expect(f"artifact bit flipped at {at}", run(bad), exits=(2,))
    bad.write_bytes(b"KILNART\0" + b"\xff" * 4096)
    expect("artifact of noise", run(bad))
    bad.write_bytes(b"not an artifact at all")
    expect("foreign file", run(bad))
    expect("missing artifact", run(tmp / "none.kiln"))

    # Models: a flip may leave a valid model; it must never crash.
    whole = models.path("minilm-int8").read_bytes()
    model = small.read_bytes()
    m = tmp / "bad.onnx"
    for i in range(16):
        at = rng.randrange(len(model))
        m.write_bytes(model[:at])
        expect(f"model cut at {at}", [KILN, "compile", str(m), "-o", out], exits=(0, 1, 2))
        flipped = bytearray(model)
        at = rng.randrange(len(model))
        flipped[at] ^= 1 << rng.randrange(8)
        m.write_bytes(flipped)
        expect(f"model bit flipped at {at}", [KILN, "compile", str(m), "-o", out], exits=(0, 1, 2))
    for i in range(6):
        at = rng.randrange(len(whole))
        m.write_bytes(whole[:at])
        expect(f"real model cut at {at}", [KILN, "check", str(m)], exits=(1, 2))
        flipped = bytearray(whole)
        at = rng.randrange(60000)
        flipped[-at] ^= 1 << rng.randrange(8)
        m.write_bytes(flipped)
        expect(f"real model bit flipped at -{at}", [KILN, "compile", str(m), "-o", out], exits=(0, 1, 2))
    m.write_bytes(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
    expect("huge protobuf length", [KILN, "compile", str(m), "-o", out])
    expect("missing model", [KILN, "compile", str(tmp / "none.onnx"), "-o", out])

    # External data that is missing, or outside the model's folder.
    for where in ["missing.bin", "../../etc/passwd"]:
        w = TensorProto(name="w", data_type=F, dims=[8, 8], data_location=TensorProto.EXTERNAL)
        w.external_data.add(key="location", value=where)
        save(m, [helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", F, ["n", 8])], [value("y", F, ["n", 8])], [w])
        expect(f"external data {where}", [KILN, "compile", str(m), "-o", out])
    save(m, [helper.make_node("NoSuchOp", ["x"], ["y"], name="odd")], [value("x", F, [2])], [value("y", F, [2])])
    expect("unsupported operator", [KILN, "compile", str(m), "-o", out])
    expect("unsupported operator, check", [KILN, "check", str(m)], exits=(2,))
    save(m, [helper.make_node("Add", ["x", "b"], ["a"], name="one"), helper.make_node("Relu", ["a"], ["b"], name="two")],
         [value("x", F, [2])], [value("b", F, [2])])
    expect("cyclic graph", [KILN, "compile", str(m), "-o", out])
    save(m, [helper.make_node("Add", ["x", "x"], ["y"])], [value("x", F, [10**6, 10**6])], [value("y", F, [10**6, 10**6])])
    expect("10^12 elements", [KILN, "bench", str(m)])
    save(m, [helper.make_node("Add", ["x", "x"], ["y"])], [value("x", F, ["n", "n"])], [value("y", F, ["n", "n"])])
    expect("10^12 elements bound at run time", [KILN, "bench", str(m), "--dim", "n=1000000"])

    # Inputs.
    np.savez(tmp / "in.npz", z=np.ones((3, 8), np.float32))
    good = Path(tmp / "good.kiln")
    good.write_bytes(artifact)
    expect("wrong input name", run(good), code="K0711", exits=(2,))
    np.savez(tmp / "in.npz", x=np.ones((3, 8), np.float64))
    expect("wrong dtype", run(good), code="K0712", exits=(2,))
    np.savez(tmp / "in.npz", x=np.ones((3, 9), np.float32))
    expect("wrong shape", run(good), code="K0713", exits=(2,))
    np.savez(tmp / "in.npz", x=np.ones((3,), np.float32))
    expect("wrong rank", run(good), code="K0713", exits=(2,))
    (tmp / "in.npz").write_bytes(b"PK\x03\x04 broken")
    expect("broken npz", run(good), exits=(2,))

    # Threads.
    bench = [KILN_RT, "bench", str(good), "--dim", "n=1", "--runs", "1"]
    expect("a processor that is not there", [*bench, "--pin", "1023"], code="K0733", exits=(2,))
    expect("more threads than processors", [*bench, "--pin", "auto", "--threads", "1000"], code="K0733", exits=(2,))
    expect("pinned to no processor", [*bench, "--pin", "one"], code="neither `auto`", exits=(64,))
    expect("one thread that scales", [*bench, "--scaling", "--threads", "1"], code="K0733", exits=(2,))
    expect("pinned, by kiln", [KILN, *bench[1:], "--pin", "auto"], exits=(0,))
    expect("two kinds of benchmarks", [KILN, *bench[1:], "--scaling", "--sessions", "2"], code="cannot be used with", exits=(64,))
    expect("index out of range", gather(tmp), code="K0723", exits=(1,))

    strings(tmp)
    devices(tmp, small, good, rng)

    # An abort inside a worker names the kernel.
    expect("abort in a worker", [KILN, "compile", str(small), "-o", out, "--no-cache"], code="kiln_matmul", exits=(1,),
           env={"KILN_TEST_ABORT_KERNEL": "matmul"})

    # NaN weights warn and still compile.
    w = np.ones((8, 8), np.float32)
    w[3, 3] = np.nan
    save(m, [helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", F, ["n", 8])], [value("y", F, ["n", 8])],
         [numpy_helper.from_array(w, "w")])
    p = subprocess.run([KILN, "compile", str(m), "-o", out], capture_output=True, text=True)
    results.append(("NaN weights warn", None if p.returncode == 0 and "NaN" in p.stderr else p.stderr[:200]))

    left = [p.name for p in tmp.iterdir() if ".tmp" in p.name]
    results.append(("nothing half-written is left", None if not left else str(left)))
    failed = [r for r in results if r[1]]
    for name, why in failed:
        print(f"FAILED {name}: {why}")
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    sys.exit(1 if failed else 0)


def strings(tmp):
    """Strings where none belong, and those that are no numbers."""
    m, out = tmp / "parse.onnx", tmp / "parse.kiln"
    save(m, [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT, name="read")],
         [value("x", TensorProto.STRING, ["n"])], [value("y", TensorProto.FLOAT, ["n"])])
    subprocess.run([KILN, "compile", str(m), "-o", str(out)], check=True, stdout=subprocess.DEVNULL)
    given = tmp / "s.npy"
    run = [KILN_RT, "run", str(out), "--input", f"x={given}"]
    np.save(given, np.array(["1", " 2.5"]))
    expect("strings that are numbers", run, exits=(0,))
    for name, array, code, exits in [
        ("a string that is no number", np.array(["1", "two"]), "K0728", (1,)),
        ("numbers for strings", np.ones(2, np.float32), "K0712", (2,)),
        ("objects for strings", np.array(["1", "2"], object), "K0730", (2,)),
        ("bytes for strings", np.array([b"1"]), "K0730", (2,)),
    ]:
        np.save(given, array)
        expect(name, run, code=code, exits=exits)
    np.save(given, np.array(["12345"] * 3))
    whole = given.read_bytes()
    for at in range(0, len(whole), 7):
        given.write_bytes(whole[:at])
        expect(f"strings cut at {at}", run)
    given.write_bytes(whole[:-4] + b"\xff\xff\xff\x7f")
    expect("a string of no characters", run, code="K0730", exits=(2,))
    given.write_bytes(whole.replace(b"'<U5'", b"'<U0'").replace(b"(3,)", b"(9,)"))
    expect("strings of another size", run, code="K0730", exits=(2,))


def gather(tmp):
    m, out = tmp / "gather.onnx", tmp / "gather.kiln"
    save(m, [helper.make_node("Gather", ["x", "i"], ["y"])],
         [value("x", TensorProto.FLOAT, [4, 2]), value("i", TensorProto.INT64, ["n"])],
         [value("y", TensorProto.FLOAT, ["n", 2])])
    subprocess.run([KILN, "compile", str(m), "-o", str(out)], check=True, stdout=subprocess.DEVNULL)
    np.savez(tmp / "g.npz", x=np.ones((4, 2), np.float32), i=np.array([1, 9]))
    return [KILN_RT, "run", str(out), "--inputs", str(tmp / "g.npz")]


main()
