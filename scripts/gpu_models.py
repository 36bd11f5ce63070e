"""Models as PTX on its interpreter, against the same models on this machine's processor.

usage: gpu_models.py KILN [TARGET...]

MiniLM in f32 and bf16, MiniLM and a small CNN quantized by ONNX Runtime, PP-OCR's three
models, an LSTM and loops, at several sizes from one artifact. Any fault of the interpreter
(memory out of bounds or never written, races, missing waits) fails the run.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build_models  # noqa: E402
import int8_models  # noqa: E402
import models  # noqa: E402

KILN = sys.argv[1]
TARGETS = sys.argv[2:] or ["sm_80", "sm_90a"]


def run(model, feed, folder, *options):
    given, out = folder / "in.npz", folder / "out"
    np.savez(given, **feed)
    done = subprocess.run([KILN, "run", str(model), "--inputs", str(given), "--output-dir", str(out), *options],
                          capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{model} {' '.join(options)}: {done.stderr}")
    return {p.stem: np.load(p) for p in out.iterdir()}


def off(got, want):
    """‖got − want‖ / ‖want‖ of floats, the worst; integers must be equal."""
    worst = 0.0
    for name, w in want.items():
        g = got[name]
        if g.shape != w.shape or not np.array_equal(np.isnan(g), np.isnan(w)) if w.dtype.kind == "f" else g.shape != w.shape:
            return float("inf")
        if w.dtype.kind != "f":
            if not np.array_equal(g, w):
                return float("inf")
            continue
        g, w = np.nan_to_num(g.astype(np.float64)), np.nan_to_num(w.astype(np.float64))
        worst = max(worst, np.linalg.norm(g - w) / max(np.linalg.norm(w), 1e-30))
    return worst


def image(*shape):
    return {"x": np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)}


def cases(folder):
    """Name, model, options of compile, feeds, how far results may be off."""
    minilm = models.path("minilm")
    feed = lambda *which: {k: v for k, v in int8_models.sentences(*which).items() if k != "token_type_ids"}
    texts = [feed(1, 1, 1), feed(3, 3, 2)]
    yield "MiniLM f32", minilm, [], texts, 2e-6
    # Of the last one's rows there are enough for products by tiles.
    yield "MiniLM bf16", minilm, ["--precision", "bf16"], [*texts, feed(0, 8, 4)], 1e-2
    yield "MiniLM tf32", minilm, ["--precision", "tf32"], [*texts, feed(0, 8, 4)], 2e-3
    for name, build in (("MiniLM int8", int8_models.minilm), ("CNN int8", int8_models.cnn)):
        own = folder / build.__name__
        own.mkdir()
        path, runs = int8_models.quantized(build, own)
        yield name, path, [], [feed for _, feed in runs[:2]], 1e-3
    yield "OCR classify", models.path("ocr-classify"), [], [image(1, 3, 48, 96), image(2, 3, 48, 64)], 1e-5
    yield "OCR recognise", models.path("ocr-recognise"), [], [image(1, 3, 48, 64)], 1e-5
    yield "OCR detect", models.path("ocr-detect"), [], [image(1, 3, 32, 64)], 1e-5
    for name in ("lstm", "gru", "branches", "loop", "scan", "speech", "spectrogram", "detection", "cnn"):
        model, runs = getattr(build_models, name)()
        path = folder / f"{name}.onnx"
        onnx.save(model, path)
        yield name, path, [], [feed for _, feed in runs[:2]], 1e-5


def main():
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, model, options, feeds, bound in cases(folder):
            wants = []
            # Kernels of f32 are the same for all targets.
            for target in TARGETS if any(t in name for t in ("bf16", "tf32", "int8", "classify")) else TARGETS[:1]:
                artifact = folder / f"model.{target}.kiln"
                compiled = subprocess.run([KILN, "compile", str(model), "--target", target, *options, "-o", str(artifact)],
                                          capture_output=True, text=True)
                if compiled.returncode:
                    sys.exit(f"{name} for {target}: {compiled.stderr}")
                if not wants:
                    own = folder / "model.cpu.kiln"
                    subprocess.run([KILN, "compile", str(model), *options, "-o", str(own)], check=True, capture_output=True)
                    wants = [run(own, feed, folder) for feed in feeds]
                errors = [off(run(artifact, feed, folder, "--device", "sim"), want) for feed, want in zip(feeds, wants)]
                ok = max(errors) <= bound
                failed |= not ok
                print(f"{'ok  ' if ok else 'FAIL'} {name:14} {target:7} {len(feeds)} sizes, off by {max(errors):.1e} (at most {bound:.0e})")
    sys.exit(failed)


main()
