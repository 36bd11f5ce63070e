"""Checks and measures Kiln on a machine with an NVIDIA GPU; PyTorch must be there.

usage: gpu_check.py BUNDLE OUT_DIR [--seconds N]     on the GPU: writes OUT_DIR/gpu-DATE-CHIP.json
       gpu_check.py BUNDLE --sim GPU_KERNELS         the same kernels, inputs and references on
                                                     the PTX interpreter; no GPU, no PyTorch
       gpu_check.py BUNDLE --no-device               parses everything, says what would run

BUNDLE is what `gpu_check.sh bundle` packs. First every kernel against a float64 reference
(fresh inputs, results poisoned, guards behind each buffer), models by `kiln-rt` against
outputs of the CPU, and probes of single instructions against the interpreter's words; then
times. Kernels run in worker processes: one that faults or hangs takes no other with it.
Exit status 1 if anything was wrong or not run.
"""
import datetime
import gzip
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import gpu_cases as cases  # noqa: E402
import gpu_driver  # noqa: E402

SEED = 1
# Seconds without news after which a worker is taken to hang.
PATIENCE = 90
# Seconds in all, and those that a worker may go on after them.
SECONDS, GRACE = 330, 20


class Bundle:
    """What was packed."""

    def __init__(self, folder):
        self.folder = Path(folder).resolve()
        said = json.loads((self.folder / "kernels.json").read_text())
        if said["format"] != 1:
            sys.exit(f"kernels.json has format {said['format']}, this script reads 1")
        self.targets, self.status_bytes, self.kernels = said["targets"], said["status_bytes"], said["kernels"]
        self.by_name = {k["name"]: k for k in self.kernels}
        for packed in (self.folder / "models").glob("*.kiln.gz"):
            artifact, part = packed.with_suffix(""), packed.with_suffix(".part")
            if not artifact.exists():
                part.write_bytes(gzip.decompress(packed.read_bytes()))
                part.rename(artifact)
        self.models = json.loads((self.folder / "models" / "models.json").read_text())
        self.probes = sorted((self.folder / "probes").glob("*.ptx"))

    def names(self, purpose):
        return [k["name"] for k in self.kernels if k["purpose"] == purpose]

    def ptx(self, target):
        return gzip.decompress((self.folder / f"kernels.{target}.ptx.gz").read_bytes()).decode()

    def entries(self, target):
        return gpu_driver.split(self.ptx(target))


def read_probes(path):
    """Each probe of a file: name, words of each lane in and out, whether its result may be near."""
    probes, rows = [], lambda text: [[int(w, 16) for w in row.split()] for row in text.split(";")]
    for line in path.read_text().splitlines():
        if found := re.match(r"// (probe|isa:|in:|out:) ?(.*)", line):
            what, rest = found.groups()
            if what == "probe":
                probes.append({"name": rest, "near": False})
            elif what == "isa:":
                probes[-1]["near"] = "hardware:" in rest
            else:
                probes[-1][what[:-1]] = rows(rest)
    return probes


def unplanned(bundle, model):
    """What `kiln-rt` has against planning a model for each target."""
    wrong, sizes = [], [word for name, n in model["dims"].items() for word in ("--dim", f"{name}={n}")]
    for target in bundle.targets:
        command = [str(bundle.folder / "kiln-rt"), "plan", str(bundle.folder / "models" / model["artifact"]),
                   *sizes, "--device", "cuda", "--target", target, "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        wrong += [f"{model['name']} for {target}: {done.stderr.strip()}"] if done.returncode else []
    return wrong


def no_device(bundle):
    """What is wrong with a bundle that can be seen without a GPU; prints what would run."""
    wrong = []
    for target in bundle.targets:
        _, entries = bundle.entries(target)
        for kernel in bundle.kernels:
            name, how = kernel["name"], kernel["launches"].get(target)
            if not how or any(p["entry"] not in entries for p in how["passes"]):
                wrong.append(f"{name} has no code or launch for {target}")
                continue
            given = len(kernel["buffers"]) + 2 + len(kernel["params"]) + len(how["tiles"])
            for one in how["passes"]:
                said = len(re.findall(r"\.param .*\bp\d+", entries[one["entry"]].split("{")[0]))
                if said != given:
                    wrong.append(f"{one['entry']} for {target} has {said} parameters, not {given}")
                threads = int(np.prod(one["block"]))
                if not 0 < threads <= 1024 or one["shared"] > 227 << 10 or min(one["grid"]) < 1:
                    wrong.append(f"{one['entry']} for {target} cannot be launched: {one}")
    wrong += [f"{k['name']}: no reference for {k['op']['kind']}" for k in bundle.kernels
              if k["op"]["kind"] not in cases.REFERENCES]
    for model in bundle.models:
        files = [model["artifact"], model["inputs"], model["expected"]]
        missing = [f"models/{f} is missing" for f in files if not (bundle.folder / "models" / f).is_file()]
        wrong += missing or unplanned(bundle, model)
    probes = sum(len(read_probes(p)) for p in bundle.probes)
    wrong += [] if probes > 600 else [f"only {probes} probes"]
    for purpose, verb in (("check", "checks"), ("speed", "times")):
        for family in sorted({k["family"] for k in bundle.kernels}):
            n = sum(k["family"] == family and k["purpose"] == purpose for k in bundle.kernels)
            print(f"{verb} {n:3} kernels of {family}")
    print(f"runs {probes} probes of {len(bundle.probes)} files")
    print("runs models: " + ", ".join(m["name"] for m in bundle.models))
    return wrong


def on_sim(bundle, program):
    """Every kernel to check on the interpreter: what is wrong."""
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        data, wants = Path(temporary), {}
        shutil.copy(bundle.folder / "kernels.json", data)
        for name in bundle.names("check"):
            memory, values = cases.fill(bundle.by_name[name], SEED)
            for i, raw in enumerate(memory):
                raw.tofile(data / f"{name}.{i}.bin")
            wants[name] = cases.reference(bundle.by_name[name], values)
        seen = {}
        for target in bundle.targets:
            # A kernel that is the same text for two targets runs once.
            _, entries = bundle.entries(target)
            how = {name: bundle.by_name[name]["launches"][target] for name in wants}
            text = {name: "".join(entries[p["entry"]] for p in how[name]["passes"]) for name in wants}
            code = {name: (text[name], json.dumps({**how[name], "predicted": None})) for name in wants}
            names = [name for name in wants if code[name] not in seen.setdefault(name, [])]
            for name in names:
                seen[name].append(code[name])
            (data / "names.json").write_text(json.dumps(names))
            (data / f"kernels.{target}.ptx").write_text(bundle.ptx(target))
            command = [program, "sim", str(data), target, str(data)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                return [*wrong, done.stderr.strip()]
            said, worst = json.loads((data / "done.json").read_text()), {}
            for name in names:
                want = wants[name]
                if said[name].get("status") != 0:
                    wrong.append(f"{name} for {target}: {said[name]}")
                    continue
                kernel = bundle.by_name[name]
                raw = np.fromfile(data / f"{name}.out.bin", cases.STORED[cases.result_of(kernel)["dtype"]])
                error, what = cases.compare(kernel, raw, want)
                worst[kernel["family"]] = max(worst.get(kernel["family"], 0), error)
                wrong += [f"{name} for {target}: {what}"] if what else []
            print(f"{target}: {len(names)} kernels on the interpreter, {len(wants) - len(names)} the same as before; "
                  "worst errors " + (", ".join(f"{family} {error:.1e}" for family, error in worst.items()) or "none"))
    return wrong


def results(bundle, kind, target, names, until):
    """Each name with what a worker says of it; `until` is the time when all ends."""
    names, crashes = list(names), 0
    while names:
        if time.time() > until:
            yield from ((name, {"wrong": "not run: out of time"}) for name in names)
            return
        command = [sys.executable, "-u", str(Path(__file__).with_name("gpu_worker.py")), str(bundle.folder), kind, target]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        worker.stdin.write(json.dumps({"names": names, "until": until}).encode())
        worker.stdin.close()
        said, why = yield from heard(worker, names, until + GRACE)
        names = names[said:]
        if not names:
            return
        if worker.returncode == gpu_driver.LOST:
            continue  # Its last word was of what lost the context.
        # What it was at when it ended is at fault; a worker that says nothing, three times, ends this.
        yield names.pop(0), {"wrong": f"the worker ended here: {why}"}
        crashes = crashes + 1 if said == 0 else 0
        if crashes == 3:
            yield from ((name, {"wrong": "not run: workers keep ending"}) for name in names)
            return


def heard(worker, names, until):
    """Yields what a worker says of its names; gives how many, and why it ended. A worker
    without news, or at work after the time `until`, is ended."""
    said, buffered, errors = 0, b"", []
    pipes, last = [worker.stdout, worker.stderr], time.time()
    while pipes:
        ready, _, _ = select.select(pipes, [], [], 1)
        for pipe in ready:
            part = os.read(pipe.fileno(), 1 << 16)
            if not part:
                pipes.remove(pipe)
            elif pipe is worker.stderr:
                errors = [*errors, part.decode(errors="replace")][-20:]
            else:
                buffered, last = buffered + part, time.time()
        *lines, buffered = buffered.split(b"\n")
        for line in lines:
            if line.startswith(b"@@"):
                yield names[said], json.loads(line[2:])
                said += 1
        late = time.time() > until
        if late or time.time() - last > PATIENCE:
            worker.kill()
            errors.append("out of time" if late else f"no news for {PATIENCE} s")
            break
    worker.wait()
    return said, "".join(errors)[-2000:].strip() or f"exit status {worker.returncode}"


def run_model(bundle, model):
    """A model on the GPU: how far it is off the CPU, and its times."""
    folder = bundle.folder / "models"
    program, artifact = str(bundle.folder / "kiln-rt"), str(folder / model["artifact"])
    given = ["--device", "cuda", "--inputs", str(folder / model["inputs"]), "--json"]
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run([program, "run", artifact, *given, "--output-dir", out], capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            return {"wrong": done.stderr.strip()}
        error = 0.0
        for name, want in np.load(folder / model["expected"]).items():
            got = np.load(Path(out) / f"{name}.npy").astype(np.float64)
            if got.shape != want.shape or not np.isfinite(got).all():
                return {"wrong": f"{name} has shape {got.shape}, or values that are not finite"}
            error = max(error, float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)))
    said = {"error": error} if error <= model["bound"] else {"error": error, "wrong": f"off by {error:.1e}, at most {model['bound']:.0e}"}
    done = subprocess.run([program, "bench", artifact, *given], capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        return {"wrong": done.stderr.strip(), **said}
    said["bench"] = json.loads(done.stdout)
    return said


class Report:
    """All that was found, printed as it comes."""

    def __init__(self):
        self.sections, self.wrong = {}, []

    def add(self, section, name, said):
        if said.get("error") == float("inf"):
            said["error"] = None  # JSON has no infinity.
        self.sections.setdefault(section, {})[name] = said
        if said.get("wrong"):
            self.wrong.append(f"{section}: {name}: {said['wrong']}")
            print("WRONG", self.wrong[-1][:1500], flush=True)


def on_gpu(bundle, out_dir, seconds):
    start, report = time.time(), Report()
    until = start + seconds
    facts = dict(next(results(bundle, "facts", "-", ["facts"], until))[1])
    if "name" not in facts:
        print(f"no GPU to check: {facts.get('wrong')}")
        return 1
    hopper = facts["capability"] == [9, 0]
    targets = ["sm_90a", "sm_80"] if hopper else ["sm_80"]

    def stage(section, kind, target, names):
        began = time.time()
        for name, said in results(bundle, kind, target, names, until):
            report.add(section, name, said)
        wrong = sum(bool(s.get("wrong")) for s in report.sections.get(section, {}).values())
        print(f"{section}: {len(names)} done, {wrong} wrong, {time.time() - began:.0f} s", flush=True)

    stage(f"check {targets[0]}", "check", targets[0], bundle.names("check"))
    for model in bundle.models:
        try:
            report.add("models", model["name"], run_model(bundle, model))
        except (OSError, ValueError, KeyError, subprocess.TimeoutExpired) as e:
            report.add("models", model["name"], {"wrong": f"{type(e).__name__}: {e}"})
    stage("probes", "probe", "-", [p.name for p in bundle.probes])
    for target in targets[1:]:
        stage(f"check {target}", "check", target, bundle.names("check"))
    stage("speed", "speed", targets[0], ["ceilings", *bundle.names("speed")])
    date = datetime.date.today().isoformat()
    chip = re.sub(r"[^a-z0-9]+", "-", facts["name"].lower()).strip("-")
    path = Path(out_dir) / f"gpu-{date}-{chip}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {**facts, "date": date, "seconds": round(time.time() - start), "wrong": report.wrong, **report.sections}
    path.write_text(json.dumps(whole, indent=1))
    table(report.sections)
    print(f"{path}: {len(report.wrong)} wrong, {whole['seconds']} s")
    return int(bool(report.wrong))


def table(sections):
    """What was measured, last."""
    share = lambda x: f"{100 * x:4.0f} %" if x else "     -"
    print(f"{'kernel':52} {'ms':>8} {'peer ms':>8} {'ratio':>6} {'rate':>15} {'sheet':>6} {'ceiling':>7}")
    for name, said in sections.get("speed", {}).items():
        if name == "ceilings" or "ms" not in said:
            continue
        peer, ratio = (f"{said[k]:{w}}" if said[k] else "-" for k, w in (("peer_ms", "8.3f"), ("ratio", "6.2f")))
        print(f"{name[:52]:52} {said['ms']:8.3f} {peer:>8} {ratio:>6} {said['rate']:8.1f} {said['unit']:7} "
              f"{share(said['of_sheet'])} {share(said['of_ceiling']):>7}")
    for name, said in sections.get("models", {}).items():
        if "bench" in said:
            print(f"model {name:46} {said['bench']['median_ms']:8.3f} ms, off by {said['error']:.1e}")


def main():
    args = sys.argv[1:]
    seconds = SECONDS
    if "--seconds" in args:
        at = args.index("--seconds")
        seconds = float(args[at + 1])
        del args[at:at + 2]
    if len(args) == 2 and args[1] == "--no-device":
        wrong = no_device(Bundle(args[0]))
    elif len(args) == 3 and args[1] == "--sim":
        wrong = on_sim(Bundle(args[0]), args[2])
    elif len(args) == 2 and not args[1].startswith("-"):
        sys.exit(on_gpu(Bundle(args[0]), args[1], seconds))
    else:
        sys.exit(__doc__)
    for line in wrong:
        print("WRONG", line)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
