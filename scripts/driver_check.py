"""What `--device cuda` does with drivers that are missing, old, small or failing, and
that it calls a driver as it must: against a stand-in (driver/fake_cuda.c), so that no GPU
is needed. Kernels do not run on it; those are checked by the PTX interpreter.

usage: driver_check.py KILN KILN_RT
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KILN, KILN_RT = sys.argv[1:3]
HERE = Path(__file__).resolve().parent


def model(path):
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [60]) for n in "xyz"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "y"], ["z"])], "g", ports[:2], ports[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)


def product(path):
    """A product of halves, whose kernel has several forms."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, ["rows", k]) for n, k in [("x", 64), ("z", 96)]]
    weights = numpy_helper.from_array(np.ones((64, 96), np.float16), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"])], "g", ports[:1], ports[1:], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)


def two_sums(path, first=60, second=70):
    """Sums of 60 and of 70 numbers, or of sizes by name, which nothing joins."""
    shapes = {"x": first, "y": first, "z": first, "u": second, "v": second, "w": second}
    ports = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [k]) for n, k in shapes.items()}
    nodes = [helper.make_node("Add", ["x", "y"], ["z"]), helper.make_node("Add", ["u", "v"], ["w"])]
    graph = helper.make_graph(nodes, "g", [ports[n] for n in "xyuv"], [ports["z"], ports["w"]])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)


def large_sum(path, count):
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [count]) for n in "xyz"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "y"], ["z"])], "g", ports[:2], ports[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)


def library(folder, *flags):
    folder.mkdir()
    out = folder / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wno-incompatible-pointer-types", *flags,
                    "-o", str(out), str(HERE / "driver" / "fake_cuda.c")], check=True)
    return folder


def run(command, driver=None, **fake):
    env = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    if driver:
        env["LD_LIBRARY_PATH"] = str(driver)
    env |= {f"FAKE_{k.upper()}": str(v) for k, v in fake.items()}
    return subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True)


def log(done):
    lines = [line.removeprefix("fake driver: ").split() for line in done.stderr.splitlines()]
    return ["kernel" if "kiln_" in words[0] else " ".join(words[:-1]) for words in lines
            if words[-1].isdigit()]


def lanes(tmp, driver, wrong):
    """The stand-in does work as late as it may: what is copied down first has waited for
    no kernel but its own, and no kernel for copies that it does not read."""
    artifact = tmp / "two.kiln"
    given = {n: np.arange(k, dtype=np.float32) + i for i, (n, k) in enumerate(
        [("x", 60), ("y", 60), ("u", 70), ("v", 70)])}
    np.savez(tmp / "two.npz", **given)
    half = ["from the host", "from the host", "kernel", "to the host"]
    for tool in (KILN, KILN_RT):
        done = run([tool, "run", artifact, "--inputs", tmp / "two.npz", "--device", "cuda", "--output-dir", tmp / "two"],
                   driver, log=1)
        sums = [np.load(tmp / "two" / f"{n}.npy")[:60] for n in "zw"]
        right = np.array_equal(sums[0], given["x"] + given["y"]) and np.array_equal(sums[1], (given["u"] + given["v"])[:60])
        # Last come the status blocks.
        if done.returncode or not right or log(done) != [*half, *half, "to the host"]:
            wrong.append(f"lanes: {done.returncode} {log(done)} {sums}")
    # Waits between streams that do nothing: the stand-in shows it.
    deaf = library(tmp / "deaf", "-DDEAF")
    done = run([KILN_RT, "run", artifact, "--inputs", tmp / "two.npz", "--device", "cuda", "--output-dir", tmp / "deaf-two"], deaf)
    if done.returncode == 0 and np.array_equal(np.load(tmp / "deaf-two" / "z.npy"), given["x"] + given["y"]):
        wrong.append("a driver that waits for nothing gives the same")
    # Through several pieces of page-locked memory, in both directions.
    count = 5_000_000
    source, artifact = tmp / "large.onnx", tmp / "large.kiln"
    large_sum(source, count)
    subprocess.run([KILN, "compile", source, "-o", artifact, "--target", "sm_80"], check=True, stdout=subprocess.DEVNULL)
    x, y = np.arange(count, dtype=np.float32), np.arange(count, dtype=np.float32)[::-1] % 1000
    np.savez(tmp / "large.npz", x=x, y=y)
    done = run([KILN_RT, "run", artifact, "--inputs", tmp / "large.npz", "--device", "cuda", "--output-dir", tmp / "large"],
               driver, elements=count, log=1)
    pieces = [log(done).count(what) for what in ("from the host", "to the host")]
    if done.returncode or not np.array_equal(np.load(tmp / "large" / "z.npy"), x + y) or pieces != [6, 4]:
        wrong.append(f"large copies: {done.returncode} {pieces} {done.stderr[-500:]}")


def growing(tmp, driver, wrong):
    """Graphs across sizes: one is recorded and the node that has the size is changed, or
    all is recorded again where the driver refuses that."""
    source, artifact = tmp / "grows.onnx", tmp / "grows.kiln"
    two_sums(source, "n", "m")
    subprocess.run([KILN, "compile", source, "-o", artifact, "--target", "sm_80"], check=True, stdout=subprocess.DEVNULL)
    at = ["--device", "cuda", "--dim", "m=70", "--json"]
    for tool in (KILN, KILN_RT):
        bench = [tool, "bench", artifact, *at]
        # Nine runs, and those of the profile without graphs.
        for fake, want in [({}, {"recorded": 1, "updated": 7, "replayed": 8}),
                           ({"change": 0}, {"recorded": 8, "updated": 0, "replayed": 8})]:
            done = run([*bench, "--dim", "n=61", "--grow", "n", "--runs", "5"], driver, log=1, **fake)
            graphs = json.loads(done.stdout)["device"]["graphs"] if done.returncode == 0 else None
            lines = done.stderr.splitlines()
            seen = {"recorded": sum("a graph of 2" in x for x in lines), "updated": sum("a change" in x for x in lines),
                    "replayed": sum("a graph starts" in x for x in lines)}
            if graphs != want or seen != want or "all was given back" not in done.stderr:
                wrong.append(f"growing, {fake}: {done.returncode} {graphs} {seen} {done.stderr[-500:]}")
        # With memory for what the plan of the last size says, and for little more: first
        # that is not there which pieces get beyond theirs, then what they have is given back.
        done = run([*bench, "--dim", "n=1000", "--grow", "n", "--runs", "190"], driver, memory=16000, log=1)
        lacked = [int(x.split()[-1]) for x in done.stderr.splitlines() if "no memory" in x]
        beyond = [n >= 5000 for n in lacked]
        if done.returncode or set(beyond) != {True, False}:
            wrong.append(f"growing in little memory: {done.returncode} {lacked} {done.stderr[-500:]}")
        for options, exits, code in [(["--grow", "k"], 2, "K0732"), (["--grow", "n", "--scaling"], 64, "--grow")]:
            done = run([*bench, "--dim", "n=61", *options], driver)
            if done.returncode != exits or code not in done.stderr:
                wrong.append(f"bench {options}: {done.returncode} {done.stderr}")


def tuning(tmp, driver, wrong):
    source, artifact, out = tmp / "product.onnx", tmp / "product.kiln", tmp / "tuned.kiln"
    product(source)
    subprocess.run([KILN, "compile", source, "-o", artifact, "--target", "sm_80"], check=True, stdout=subprocess.DEVNULL)
    at = ["--device", "cuda", "--dim", "rows=16"]
    for tool in (KILN, KILN_RT):
        tune = [tool, "tune", artifact, "-o", out, *at]
        done = run(tune)
        if done.returncode != 1 or "K0801" not in done.stderr or out.exists():
            wrong.append(f"tune without a driver: {done.returncode} {done.stderr} {out.exists()}")
        # All forms are as fast, then the first one is not.
        for slow, changed in [("nothing", 0), ("_rows16", 1)]:
            done = run([*tune, "--json"], driver, slow=slow)
            doc = json.loads(done.stdout) if done.returncode == 0 else {"measured": []}
            forms = [f["entry"] for m in doc["measured"] for f in m["forms"]]
            if doc.get("changed") != changed or doc.get("unit") != "nanoseconds" or len(forms) < 2:
                wrong.append(f"tune, {slow} is slow: {doc} {done.stderr}")
                continue
            best = forms[[f["form"] for f in doc["measured"][0]["forms"]].index(doc["measured"][0]["best"])]
            np.savez(tmp / "product.npz", x=np.zeros((16, 64), np.float16))
            for number, taken in [(0, best), (1, best if number_of(out, 1) else forms[0])]:
                done = run([tool, "run", out, "--inputs", tmp / "product.npz", "--device", f"cuda:{number}"],
                           driver, log=1, count=2)
                if done.returncode or f"{taken} 60" not in done.stderr:
                    wrong.append(f"tuned, device {number}: not {taken}: {done.stderr}")
        out.unlink()
        done = run([*tune[:-1], "row=16"], driver)
        if done.returncode != 2 or "K0732" not in done.stderr or out.exists():
            wrong.append(f"tune at a size that is none: {done.returncode} {done.stderr}")
        done = run([*tune, "--seconds", "0.001"], driver)
        if done.returncode or "untimed: " not in done.stdout or "the time was up" not in done.stdout:
            wrong.append(f"tune without time: {done.returncode} {done.stdout} {done.stderr}")
        out.unlink()
    usage = [[KILN_RT, "tune", artifact, *at], [KILN_RT, "tune", artifact, "-o", out, *at[2:]],
             [KILN_RT, "run", artifact, "-o", out], [KILN_RT, "tune", artifact, "-o", out, *at, "--seconds", "none"],
             [KILN, "tune", artifact, "-o", out, *at[2:]], [KILN, "tune", artifact, "-o", out, *at, "--seconds", "-1"],
             [KILN, "compile", source, "-o", out, "--tune"], [KILN, "compile", source, "-o", out, "--tune-dim", "rows=1"]]
    for command in usage:
        done = run(command, driver)
        if done.returncode != 64 or out.exists():
            wrong.append(f"{command}: {done.returncode} {done.stderr}")
    done = run([KILN_RT, "tune", artifact, "-o", tmp / "missing" / "out.kiln", *at], driver)
    if done.returncode != 1 or "K0707" not in done.stderr:
        wrong.append(f"tune into no folder: {done.returncode} {done.stderr}")
    compile_ = [KILN, "compile", source, "-o", out, "--target", "sm_80", "--tune", "--tune-dim", "rows=16", "--json"]
    done = run(compile_)
    if done.returncode != 1 or "K0801" not in done.stderr or out.exists():
        wrong.append(f"compile --tune without a driver: {done.returncode} {done.stderr}")
    done = run(compile_, driver, slow="_rows16")
    if done.returncode or json.loads(done.stdout)["tune"]["changed"] != 1 or not number_of(out, 0):
        wrong.append(f"compile --tune: {done.returncode} {done.stdout} {done.stderr}")
    left = [p.name for p in tmp.iterdir() if p.name.startswith(".")]
    if left:
        wrong.append(f"tune leaves {left}")


def number_of(artifact, device):
    """How many rows of an artifact's table are of a device of the stand-in."""
    done = run([KILN, "inspect", artifact, "--json"])
    return sum(row["device"] == f"Fake {device}" for g in json.loads(done.stdout)["gpu"] for row in g.get("tuned", []))


def main():
    tmp = Path(tempfile.mkdtemp())
    source, one, all_, cpu = tmp / "m.onnx", tmp / "one.kiln", tmp / "all.kiln", tmp / "cpu.kiln"
    model(source)
    for out, targets in [(one, ["sm_80"]), (all_, ["sm_80", "sm_89", "sm_90a", "x86-64-v3"]), (cpu, ["x86-64-v3"])]:
        chosen = [t for name in targets for t in ("--target", name)]
        subprocess.run([KILN, "compile", source, "-o", out, *chosen], check=True, stdout=subprocess.DEVNULL)
    two_sums(tmp / "two.onnx")
    subprocess.run([KILN, "compile", tmp / "two.onnx", "-o", tmp / "two.kiln", "--target", "sm_80"], check=True, stdout=subprocess.DEVNULL)
    good, old = library(tmp / "good"), library(tmp / "old", "-DOLD")
    x, y = np.arange(60, dtype=np.float32), np.full(60, 0.5, np.float32)
    np.savez(tmp / "in.npz", x=x, y=y)
    given = ["--inputs", tmp / "in.npz"]
    hopper = ["--device", "cuda", "--target", "sm_90a"]
    cuda = ["--device", "cuda"]
    wrong = []

    def expect(what, command, code, *words, driver=good, exits=1, **fake):
        done = run(command, driver, **fake)
        text = done.stderr
        missing = [w for w in [code, "help:", *words] if w not in text]
        if done.returncode != exits or missing or "panicked" in text:
            wrong.append(f"{what}: exit {done.returncode}, without {missing}: {text}")

    for tool in (KILN, KILN_RT):
        r = [tool, "run", all_, *given]
        expect("no driver", [*r, *cuda], "K0801", "libcuda.so.1", driver=None)
        expect("a driver without a function", [*r, *cuda], "K0802", "cuLaunchKernelEx", driver=old)
        expect("no GPU", [*r, *cuda], "K0803", "finds no GPU", count=0)
        expect("no such GPU", [*r, "--device", "cuda:2"], "K0803", "no GPU 2", "2 GPUs", count=2)
        expect("an old GPU", [*r, *cuda], "K0804", "7.5", "sm_90a, sm_89, sm_80", capability=75)
        expect("another target", [*r, *hopper], "K0804", "8.0", "sm_90a", capability=80)
        expect("no code for GPUs", [tool, "run", cpu, *given, *cuda], "K0804", "x86-64-v3", "--target sm_80")
        expect("a driver that is too old", [*r, *cuda], "K0802", "CUDA 12.0", "CUDA 11.8", version=11080)
        expect("PTX that is refused", [*r, *cuda], "K0805", "line 7; unknown symbol", "CUDA_ERROR_INVALID_PTX", refuse=1)
        expect("no memory", [*r, *cuda], "K0806", "240 of outputs", "300", memory=300)
        expect("a launch that fails", [*r, *cuda], "K0807", "CUDA_ERROR_LAUNCH_FAILED", "add [z]", launch=0)
        expect("an index out of range", [*r, *cuda], "K0723", "an index is out of range in add [z]", status=1)
        done = run([*r, *cuda, "--output-dir", tmp / "out"], good)
        z = np.load(tmp / "out" / "z.npy")
        if done.returncode or not np.array_equal(z, x + y) or "all was given back" not in done.stderr:
            wrong.append(f"a run: {done.returncode} {done.stdout} {done.stderr}")
        for capability, target in [(80, "sm_80"), (86, "sm_80"), (89, "sm_89"), (90, "sm_90a"), (120, "sm_89")]:
            done = run([*r, *cuda, "--json"], good, capability=capability)
            level = json.loads(done.stdout)["level"] if done.returncode == 0 else done.stderr
            if not level.startswith(f"{target} on cuda (Fake 0)"):
                wrong.append(f"capability {capability}: {level}, not {target}")
        for options, graphs in [([], True), (["--no-graphs"], False)]:
            # Two kernels are worth a graph.
            done = run([tool, "bench", tmp / "two.kiln", *cuda, "--runs", "5", "--json", *options], good)
            doc = json.loads(done.stdout) if done.returncode == 0 else {}
            ran = [s["lane"] for s in doc.get("per_step", [])]
            if ran != [*["to_device", "to_device", "device"] * 2, "to_host", "to_host"] or ("a graph" in done.stderr) != graphs:
                wrong.append(f"bench {options}: {done.stdout} {done.stderr}")
    lanes(tmp, good, wrong)
    growing(tmp, good, wrong)
    tuning(tmp, good, wrong)
    # A model that is compiled gets the device's own target.
    done = run([KILN, "run", source, *given, *cuda, "--json"], good, capability=86)
    if done.returncode or not json.loads(done.stdout)["level"].startswith("sm_80 on cuda"):
        wrong.append(f"a model on 8.6: {done.stdout} {done.stderr}")
    expect("a model without a driver", [KILN, "run", source, *given, *cuda], "K0801", driver=None)
    done = run([KILN, "doctor", "--json"], good, count=2)
    doc = json.loads(done.stdout)
    if doc["devices"] != ["cpu", "sim", "cuda:0", "cuda:1"] or doc["cuda_driver"] != [12, 4]:
        wrong.append(f"doctor: {doc}")
    for line in wrong:
        print(line)
    print(f"the driver's checks: {len(wrong)} wrong")
    sys.exit(bool(wrong))


main()
