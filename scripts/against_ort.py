"""One artifact of a model at several sizes, against ONNX Runtime."""
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort


def file_name(name):
    """The file that `kiln run` writes an output to."""
    return "".join(c if c.isalnum() or c in "._-:" else "_" for c in name) + ".npy"


def errors(got, want):
    """‖got − want‖ / ‖want‖ and max|got − want| / max|want|, 0 where both are empty;
    infinite where types, shapes, or places of NaN and infinities differ, and where
    integers do."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return np.inf, np.inf
    if want.dtype.kind not in "fV":
        return (0.0, 0.0) if np.array_equal(got, want) else (np.inf, np.inf)
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return np.inf, np.inf
    difference, want = np.where(finite, got - np.where(finite, want, 0), 0), want[finite]
    norm, largest = np.linalg.norm(want), np.abs(want).max(initial=0)
    return (np.linalg.norm(difference[finite]) / max(norm, 1e-30), np.abs(difference).max(initial=0) / max(largest, 1e-30))


class Artifact:
    """A model compiled once."""

    def __init__(self, kiln, kiln_rt, path, folder, options=()):
        self.kiln_rt, self.folder = kiln_rt, Path(folder)
        self.file = self.folder / "model.kiln"
        subprocess.run([kiln, "compile", str(path), "-o", str(self.file), *options], check=True)

    def run(self, given, outputs):
        archive = self.folder / "in.npz"
        np.savez(archive, **given)
        command = [self.kiln_rt, "run", str(self.file), "--inputs", str(archive), "--output-dir", str(self.folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [np.load(self.folder / file_name(name)) for name in outputs]


def compare(kiln, kiln_rt, name, path, runs, folder, relative=1e-4, element=1e-3, options=()):
    """Runs a model, compiled with these options, at every size and prints how near each
    is; (passed, failed)."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    outputs = [o.name for o in session.get_outputs()]
    artifact = Artifact(kiln, kiln_rt, path, folder, options)
    passed = failed = 0
    for label, every in runs:
        given = {n: every[n] for n in names}
        got = artifact.run(given, outputs)
        worst = np.max([errors(g, w) for g, w in zip(got, session.run(None, given))], axis=0)
        ok = worst[0] <= relative and worst[1] <= element
        passed, failed = passed + ok, failed + (not ok)
        print(f"{name:<14} {label:<16} relative {worst[0]:.2e}  largest {worst[1]:.2e}{'' if ok else '  FAILED'}")
    return passed, failed
