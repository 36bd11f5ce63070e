"""A worker of gpu_check.py: `gpu_worker.py BUNDLE KIND TARGET`, names as JSON on stdin.

Prints a line `@@{..}` for each name in order. A kernel that breaks the context ends the
worker; the check starts another for what is left.
"""
import concurrent.futures
import ctypes
import json
import os
import platform
import sys
import time

import numpy as np
import torch
import gpu_cases as cases
from gpu_check import SEED, Bundle, read_probes
from gpu_driver import LOST, Driver, DriverError, split

GUARD, GUARD_BYTE = 256, 0xA5
LOADERS = 8


def say(said):
    print("@@" + json.dumps(said), flush=True)


def words_of(tensor):
    return tensor.cpu().numpy()


class Worker:
    def __init__(self, bundle, target, until):
        self.bundle, self.target, self.until = bundle, target, until
        self.driver = Driver()
        torch.zeros(1, device="cuda")
        context = ctypes.c_void_p()
        self.driver.call("cuCtxGetCurrent", ctypes.byref(context))
        self.context = context

    def load(self, ptx):
        """A module, from any thread."""
        self.driver.call("cuCtxSetCurrent", self.context)
        return self.driver.load(ptx)

    def modules(self, names):
        """Each kernel's own module, assembled ahead by a few threads."""
        head, entries = self.bundle.entries(self.target)
        pool = concurrent.futures.ThreadPoolExecutor(LOADERS)
        text = {name: "\n".join(entries[p["entry"]] for p in self.launch(name)["passes"])
                for name in names if name in self.bundle.by_name}
        return {name: pool.submit(self.load, head + text[name]) for name in text}

    def launch(self, name):
        """How a kernel is launched."""
        return self.bundle.by_name[name]["launches"][self.target]

    def functions(self, modules, name):
        """A kernel's passes."""
        module = modules[name].result()
        return [self.driver.kernel(module, p["entry"], p["shared"]) for p in self.launch(name)["passes"]]

    def check(self, names):
        modules = self.modules(names)
        for name in names:
            guarded(lambda name=name: self.check_one(modules, name))

    def check_one(self, modules, name):
        kernel = self.bundle.by_name[name]
        functions = self.functions(modules, name)
        memory, values = cases.fill(kernel, SEED)
        guard = np.full(GUARD, GUARD_BYTE, np.uint8)
        given = [np.concatenate([raw.view(np.uint8), guard]) for raw in memory]
        buffers = [torch.from_numpy(raw).cuda() for raw in given]
        how = kernel["launches"][self.target]
        status = torch.zeros(self.bundle.status_bytes, dtype=torch.uint8, device="cuda")
        scratch = torch.empty(max(how["scratch"], 1), dtype=torch.uint8, device="cuda")
        words = [t.data_ptr() for t in (*buffers, status, scratch)] + kernel["params"]
        self.driver.prepared(functions, how, words, torch.cuda.current_stream().cuda_stream)()
        torch.cuda.synchronize()
        code = int(words_of(status)[:4].view(np.int32)[0])
        if code:
            return {"wrong": f"status {code}"}
        result = None
        for buffer, before, after in zip(kernel["buffers"], given, map(words_of, buffers)):
            kept = GUARD if buffer["role"] in ("out", "taken") else len(before)
            if not np.array_equal(before[-kept:], after[-kept:]):
                return {"wrong": f"wrote to {buffer['role']}, or behind it"}
            if buffer["role"] == "out":
                result = after[:-GUARD].view(cases.STORED[buffer["dtype"]])
        error, what = cases.compare(kernel, result, cases.reference(kernel, values))
        return {"error": error, "wrong": what} if what else {"error": error}

    def probe(self, names):
        for name in names:
            guarded(lambda name=name: self.probe_file(self.bundle.folder / "probes" / name))

    def probe_file(self, path):
        """Each probe's words as the chip gives them. Differences are wrong where the ISA leaves none."""
        head, entries = split(path.read_text())
        capability = 10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1]
        needs = int(head.split(".target sm_")[1][:2])
        if needs > capability or (".target sm_90a" in head and capability != 90):
            return {"skipped": f"needs sm_{needs}"}
        whole, golden, differ, wrong = None, {}, {}, []
        try:
            whole = self.load(path.read_text())
        except DriverError:
            pass  # One of its entries is refused; below it is found which.
        for probe in read_probes(path):
            name = probe["name"]
            try:
                module = whole or self.load(head + entries[name])
                found, expected = self.probe_one(self.driver.kernel(module, name), probe)
            except DriverError as e:
                wrong.append(f"{name}: {e}")
                continue
            golden[name] = found.tobytes().hex()
            if not np.array_equal(found, expected):
                lane = int(np.flatnonzero((found != expected).any(1))[0])
                differ[name] = {"lane": lane, "found": [f"{w:08x}" for w in found[lane]],
                                "expected": [f"{w:08x}" for w in expected[lane]], "may_be_near": probe["near"]}
                wrong += [] if probe["near"] else [f"{name}: lane {lane} differs"]
        said = {"equal": len(golden) - len(differ), "differ": differ, "golden": golden}
        return {**said, "wrong": "; ".join(wrong)} if wrong else said

    def probe_one(self, function, probe):
        many = 128 if len(probe["out"]) > 32 else 32
        lanes = lambda rows: np.array([rows[i % len(rows)] for i in range(many)], np.uint32)
        given, expected = lanes(probe["in"]), lanes(probe["out"])
        to_gpu = lambda words: torch.from_numpy(words.view(np.int32).copy()).cuda()
        source, out = to_gpu(given), to_gpu(np.full_like(expected, 0xA5A5A5A5))
        how = {"passes": [{"grid": [1, 1, 1], "block": [many, 1, 1], "cluster": [1, 1, 1], "shared": 0}], "tiles": []}
        stream = torch.cuda.current_stream().cuda_stream
        self.driver.prepared([function], how, [source.data_ptr(), out.data_ptr()], stream)()
        torch.cuda.synchronize()
        return words_of(out).view(np.uint32).reshape(expected.shape), expected

    def speed(self, names):
        import gpu_speed

        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        rates = gpu_speed.sheet(torch.cuda.get_device_name())
        modules, best = self.modules(names), {}

        def ceilings():
            if not best:
                best.update(gpu_speed.ceilings())
            return best

        def compiled(function, args):
            """torch.compile's form, tried; none where it fails or time is short."""
            if time.time() > self.until - 60:
                return None
            try:
                print("compiling", flush=True)  # News, as it may take long.
                torch._dynamo.reset()
                graph = torch.compile(function, dynamic=False)
                graph(*args)
                return graph
            except Exception as e:  # Whatever a compiler fails with: the peer is then absent.
                print(f"torch.compile: {type(e).__name__}: {e}", file=sys.stderr)
                return None

        def one(name):
            kernel = self.bundle.by_name[name]
            if time.time() > self.until - 10:
                return {"wrong": "not run: out of time"}
            timed = gpu_speed.Timed(kernel, self.target, self.driver, self.functions(modules, name), self.bundle.status_bytes)
            error, status = timed.check()
            said = gpu_speed.row(kernel, error, timed.measure(compiled), ceilings(), rates)
            most = cases.bound(kernel)
            wrong = status != 0 or not error <= most
            return {**said, "wrong": f"off by {error:.1e} (at most {most:.0e}), status {status}"} if wrong else said

        for name in names:
            guarded(ceilings if name == "ceilings" else lambda name=name: one(name))
            torch.cuda.empty_cache()


def guarded(call):
    """Says what a call gives, or that it failed; ends the worker if the context is lost."""
    try:
        said = call()
    except Exception as e:  # Whatever goes wrong with one kernel is its result.
        said = {"wrong": f"{type(e).__name__}: {e}"}
    try:
        torch.cuda.synchronize()
    except RuntimeError as e:
        say({**said, "wrong": f"{said.get('wrong', '')} the context is lost: {e}"})
        # Nothing of a lost context can be given back in order.
        os._exit(LOST)
    say(said)


def facts():
    name, driver = torch.cuda.get_device_name(), Driver()
    properties = torch.cuda.get_device_properties(0)
    return {"name": name, "capability": list(torch.cuda.get_device_capability()), "driver_cuda": driver.version(),
            "multiprocessors": properties.multi_processor_count, "memory": properties.total_memory,
            "torch": torch.__version__, "torch_cuda": torch.version.cuda, "python": platform.python_version()}


def main():
    folder, kind, target = sys.argv[1:]
    asked = json.load(sys.stdin)
    if kind == "facts":
        say(facts())
        return
    worker = Worker(Bundle(folder), target, asked["until"])
    getattr(worker, kind)(asked["names"])


main()
