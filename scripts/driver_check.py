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
from onnx import TensorProto, helper

KILN, KILN_RT = sys.argv[1:3]
HERE = Path(__file__).resolve().parent


def model(path):
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [60]) for n in "xyz"]
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


def main():
    tmp = Path(tempfile.mkdtemp())
    source, one, all_, cpu = tmp / "m.onnx", tmp / "one.kiln", tmp / "all.kiln", tmp / "cpu.kiln"
    model(source)
    for out, targets in [(one, ["sm_80"]), (all_, ["sm_80", "sm_89", "sm_90a", "x86-64-v3"]), (cpu, ["x86-64-v3"])]:
        chosen = [t for name in targets for t in ("--target", name)]
        subprocess.run([KILN, "compile", source, "-o", out, *chosen], check=True, stdout=subprocess.DEVNULL)
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
            done = run([tool, "bench", all_, *cuda, "--runs", "5", "--json", *options], good)
            doc = json.loads(done.stdout) if done.returncode == 0 else {}
            lanes = [s["lane"] for s in doc.get("per_step", [])]
            if lanes != ["to_device", "to_device", "device", "to_host"] or ("a graph" in done.stderr) != graphs:
                wrong.append(f"bench {options}: {done.stdout} {done.stderr}")
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
