"""`kiln quantize` against ONNX Runtime: its runtime and its own quantizer.

    quantize_models.py KILN KILN_RT

MiniLM (calibrated on tokenized sentences) and a small convolutional network, with every
method. Of each quantized model:

- ONNX Runtime loads it and fuses its products to integers (of MiniLM all that multiply
  by a weight; convolutions need grids of results for that, `--outputs`);
- on other inputs than those of calibration, the relative error of every float output to
  the f32 model is at most 1.1 times that of `quantize_static` with the same settings
  (min-max for mean squared error, which that tool has not), both run by ONNX Runtime;
- what Kiln reported is what ONNX Runtime measures, within a tenth;
- sentence embeddings of MiniLM keep a cosine of 0.99 with the f32 ones;
- a quantized weight takes a quarter of its bytes.

One of each model goes through both comparisons of int8_models.py: step by step, given
the same integers, Kiln's kernels and ONNX Runtime's agree but for values on a rounding
border, and as a whole within what one step more or less does.

Then options, older opsets, external data, inner graphs, and what is refused.
"""
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

import build_models
import int8_models
import models
from against_ort import errors

METHODS = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile,
           "entropy": CalibrationMethod.Entropy, "mse": CalibrationMethod.MinMax}
COUNTS = [0, 0]


def check(ok, text):
    COUNTS[not ok] += 1
    print(f"{text}{'' if ok else '  FAILED'}", flush=True)


def session(path, optimized=None):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(path, feeds):
    """Float outputs by name, over all feeds."""
    s = session(path)
    floats = [o.name for o in s.get_outputs() if o.type == "tensor(float)"]
    return {n: [s.run([n], f)[0] for f in feeds] for n in floats}


def relative(got, want):
    """The relative error of each output over all feeds."""
    total = lambda arrays: np.sqrt(sum(float((a.astype(np.float64) ** 2).sum()) for a in arrays))
    return {n: total([g - w for g, w in zip(got[n], want[n])]) / total(want[n]) for n in want}


class Case:
    """A model with data to calibrate on and other data to check with."""

    def __init__(self, kiln, name, path, calibration, runs, folder):
        self.kiln, self.name, self.path, self.folder = kiln, name, path, Path(folder)
        self.calibration, self.runs = calibration, runs
        for kind, feeds in (("calibration", calibration), ("check", [f for _, f in runs])):
            (self.folder / kind).mkdir()
            for i, feed in enumerate(feeds):
                np.savez(self.folder / kind / f"{i}.npz", **feed)
        self.want = outputs(path, [f for _, f in runs])

    def quantize(self, *options, path=None, out="ours.onnx"):
        """The exit status, the report or the error, and the model's path."""
        out = self.folder / out
        command = [self.kiln, "quantize", str(path or self.path), "-o", str(out), "--int8", "--json",
                   "--calibration", str(self.folder / "calibration"), "--check", str(self.folder / "check"), *options]
        ran = subprocess.run(command, capture_output=True, text=True)
        report = json.loads(ran.stdout) if ran.stdout.startswith("{") else {}
        return ran.returncode, report or ran.stderr, out

    def theirs(self, method, options):
        out = self.folder / "theirs.onnx"
        extra = {"MatMulConstBOnly": True, "CalibPercentile": 99.99}
        quantize_static(str(self.path), str(out), int8_models.Samples(self.calibration), quant_format=QuantFormat.QDQ,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
                        calibrate_method=METHODS[method], extra_options=extra, **options)
        return relative(outputs(out, [f for _, f in self.runs]), self.want)


def minilm(kiln, folder):
    path = models.path("minilm")
    names = [i.name for i in session(path).get_inputs()]
    # All of one size: the tool's histograms take no others.
    ids = int8_models.sentences(0, 16, 5)
    rows = [{k: v[i:i + 4] for k, v in ids.items() if k in names} for i in range(0, 16, 4)]
    feed = lambda *which: {k: v for k, v in int8_models.sentences(*which).items() if k in names}
    runs = [feed(*which) for which in ((1, 1, 1), (2, 1, 6), (3, 3, 2), (4, 8, 10))]
    return Case(kiln, "minilm", path, rows, [("%d x %d" % r["input_ids"].shape, r) for r in runs], folder)


def cnn(kiln, folder):
    model, runs = build_models.cnn_for_int8()
    path = Path(folder) / "float.onnx"
    onnx.save(model, path)
    calibration = [f for _, f in build_models.images([(4, 48, 48), (3, 48, 48)])]
    calibration = [{"image": f["image"][:3]} for f in calibration]
    return Case(kiln, "cnn", path, calibration, runs, folder)


def fused(path, folder):
    """The operators that ONNX Runtime makes of a model."""
    optimized = Path(folder) / "optimized.onnx"
    session(path, optimized)
    return [n.op_type for n in onnx.load(optimized).graph.node]


def weights_shrink(case, report, path):
    """The quantized constants are in 8 bits, and the f32 ones are gone."""
    size = lambda m, kinds: sum(numpy_helper.to_array(t).nbytes for t in m.graph.initializer if t.data_type in kinds)
    model = onnx.load(path)
    elements = sum(int(np.prod(w["shape"])) for w in report["weights"])
    integers = size(model, [TensorProto.INT8])
    zeros = sum(w["scales"] for w in report["weights"])
    gone = report["bytes_before"] - report["bytes_after"]
    # Of a small model, the names of what was put in take as much.
    ok = integers == elements + zeros and (elements < 1e6 or abs(gone / (3 * elements) - 1) < 0.06)
    check(ok, f"{case.name}: {4 * elements / 1e6:.2f} MB of weights became {integers / 1e6:.2f} MB, "
              f"the file {gone / 1e6:.2f} MB less")


def methods(case, options):
    """Every method against the tool's; the last one's report and model."""
    theirs = {m: case.theirs(m, options) for m in METHODS if m != "mse"}
    theirs["mse"] = theirs["minmax"]
    for method in METHODS:
        status, report, path = case.quantize("--method", method)
        if status != 0:
            check(False, f"{case.name} {method}: {report}")
            continue
        ours = relative(outputs(path, [f for _, f in case.runs]), case.want)
        for name, e in ours.items():
            check(e <= 1.1 * theirs[method][name], f"{case.name} {method:<10} {name}: relative error {e:.4f}, "
                                                   f"quantize_static's {theirs[method][name]:.4f}")
        if case.name == "minilm":
            embeddings(case, path)
        reported = {o["name"]: o["relative_error"] for o in report["outputs"]}
        check(all(abs(reported[n] / e - 1) < 0.1 for n, e in ours.items()),
              f"{case.name} {method:<10} reported as measured: " + ", ".join(f"{reported[n]:.4f}" for n in ours))
    return report, path


def embeddings(case, path):
    """Rows of the last output are sentences."""
    name = list(case.want)[-1]
    got = outputs(path, [f for _, f in case.runs])[name]
    cosine = [(g * w).sum(-1) / np.linalg.norm(g, axis=-1) / np.linalg.norm(w, axis=-1)
              for g, w in zip(got, case.want[name])]
    least = min(c.min() for c in cosine)
    check(least >= 0.99, f"{case.name}: least cosine of a sentence's embedding {least:.5f}")


def options_of_minilm(case):
    base = case.quantize()[1]["largest_error"]
    for option, most in (("--smooth", 0.7), ("--all-products", 1.2), ("--per-tensor", 4), ("--reduce-range", 1.5)):
        status, report, path = case.quantize(option)
        error = report["largest_error"] if status == 0 else np.inf
        check(error <= most * base, f"minilm {option}: relative error {error:.4f}, by default {base:.4f}")
        if option == "--all-products":
            ops = fused(path, case.folder)
            check(not {"MatMul", "FusedMatMul"} & set(ops), "minilm --all-products: no product in floats is left")
    status, report, path = case.quantize("--ops", "MatMul,Gather")
    size = report["bytes_after"] / report["bytes_before"]
    check(status == 0 and size < 0.27, f"minilm with its tables: {size:.3f} of the file")
    status, report, path = case.quantize("--exclude", "*/output/dense/*", "--exclude", "*/query/MatMul")
    left = [n["node"] for n in report["left"] if "excluded" in n["why"]]
    check(status == 0 and len(left) == 9, f"minilm --exclude: {len(left)} nodes are left")
    plain = {n.name: n.input[1] for n in onnx.load(path).graph.node if n.op_type == "MatMul"}
    check(all("dequantized" not in plain[n] for n in left), "minilm --exclude: they multiply by what they did")


def refusals(case):
    out = case.folder / "refused.onnx"
    before = sorted(p.name for p in case.folder.iterdir())
    status, report, _ = case.quantize("--max-error", "1e-6", out="refused.onnx")
    ok = status == 1 and report["written"] is False and sorted(p.name for p in case.folder.iterdir()) == before
    check(ok, "over --max-error: status 1, the report, and no file")
    np.savez(case.folder / "wrong.npz", picture=np.zeros((1, 3, 8, 8), np.float32))
    nan = np.full((1, 3, 32, 32), np.nan, np.float32)
    np.savez(case.folder / "nan.npz", image=nan)
    (case.folder / "empty").mkdir()
    for code, status, options in (
            ("K0741", 2, ["--exclude", "nothing*"]),
            ("K0742", 2, ["--ops", "Gather"]),
            ("K0742", 2, ["--calibration", str(case.folder / "nan.npz")]),
            ("K0740", 2, ["--calibration", str(case.folder / "empty")]),
            ("K0740", 2, ["--calibration", str(case.folder / "missing.npz")]),
            ("K0711", 2, ["--calibration", str(case.folder / "wrong.npz")]),
            ("", 64, ["--method", "best"]),
            ("", 64, ["--smooth=2"])):
        command = [case.kiln, "quantize", str(case.path), "-o", str(out), "--int8", *options]
        if "--calibration" not in options:
            command += ["--calibration", str(case.folder / "calibration")]
        ran = subprocess.run(command, capture_output=True, text=True)
        ok = ran.returncode == status and code in ran.stderr and "panicked" not in ran.stderr and not out.exists()
        check(ok, f"refused {' '.join(options[:1])} {code or status}: {ran.stderr.splitlines()[0][:90] if ran.stderr else ''}")


def old_model(opset):
    """A product, and beside it one of each operator whose attributes became inputs; of
    the softmax family with an axis before the last."""
    net = build_models.Net(opset)
    x4 = net.op("Reshape", "x", net.ints(2, 3, 4, 5))
    ends = [net.op("MatMul", "x", net.weight(60, 8, fan_in=60))]
    for kind in ("Softmax", "LogSoftmax", "Hardmax"):
        ends += [net.op(kind, x4), net.op(kind, x4, axis=2)]
    wide = net.op("Unsqueeze", x4, axes=[0, 3])
    ends += [wide, net.op("Squeeze", wide, axes=[0]), net.op("ReduceSum", x4, axes=[1, 3], keepdims=0),
             net.op("ReduceSum", x4), *net.op("Split", x4, outputs=2, axis=2, split=[1, 3]),
             *net.op("Split", x4, outputs=2, axis=2)]
    ends.append(net.op("Dropout", x4, ratio=0.3, outputs=2)[0] if opset < 12 else net.op("Dropout", x4))
    if opset < 11:
        ends += [net.op("Clip", x4, min=-0.5, max=0.25), net.op("Clip", x4, max=0.25),
                 net.op("Pad", x4, pads=[0, 1, 0, 2, 0, 0, 3, 0], value=1.5)]
    if opset < 10:
        ends += [net.op("Slice", x4, starts=[1, 0], ends=[9, -1], axes=[1, 3]),
                 net.op("Slice", x4, starts=[1], ends=[2]), net.op("TopK", x4, outputs=2, k=2, axis=2)[0]]
    ports = [(f"y{i}", e, TensorProto.FLOAT, None) for i, e in enumerate(ends)]
    graph = net.graph("old", [("x", TensorProto.FLOAT, [2, 60])], ports)
    model = helper.make_model(graph, ir_version=5, opset_imports=[helper.make_opsetid("", opset)])
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def old_opsets(kiln, folder):
    x = np.random.default_rng(3).standard_normal((2, 60)).astype(np.float32)
    for opset in (8, 10, 11, 12):
        inner = Path(folder) / str(opset)
        inner.mkdir()
        path = inner / "float.onnx"
        onnx.save(old_model(opset), path)
        case = Case(kiln, f"opset {opset}", path, [{"x": x}], [("", {"x": x})], inner)
        status, report, out = case.quantize()
        if status != 0:
            check(False, f"opset {opset}: {report}")
            continue
        model = onnx.load(out)
        onnx.checker.check_model(model, full_check=True)
        got = outputs(out, [{"x": x}])
        same = [n for n in case.want if np.array_equal(got[n][0], case.want[n][0])]
        near = errors(got["y0"][0], case.want["y0"][0])[0]
        ok = model.opset_import[0].version == 13 and same == [n for n in case.want if n != "y0"] and 0 < near < 0.03
        check(ok, f"opset {opset} brought to 13: {len(same)} of {len(case.want) - 1} operators give the same bits, "
                  f"the product is off by {near:.4f}")
    net = build_models.Net(1)
    y = net.op("Upsample", net.op("Conv", "x", net.weight(2, 3, 3, 3)), scales=[1.0, 1.0, 2.0, 2.0])
    graph = net.graph("up", [("x", TensorProto.FLOAT, [1, 3, 8, 8])], [("y", y, TensorProto.FLOAT, None)])
    path = Path(folder) / "up.onnx"
    onnx.save(helper.make_model(graph, ir_version=4, opset_imports=[helper.make_opsetid("", 8)]), path)
    np.savez(Path(folder) / "x.npz", x=np.zeros((1, 3, 8, 8), np.float32))
    ran = subprocess.run([kiln, "quantize", str(path), "-o", str(Path(folder) / "no.onnx"), "--int8",
                          "--calibration", str(Path(folder) / "x.npz")], capture_output=True, text=True)
    check(ran.returncode == 2 and "K0744" in ran.stderr and "Upsample" in ran.stderr, "opset 8 with Upsample is refused")


def external(case):
    """A model whose weights lie in a file beside it, and one that is written so."""
    model = onnx.load(case.path)
    path = case.folder / "outside" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    got = [case.quantize(path=path, out="inside.onnx"), case.quantize("--external-data", out="apart.onnx")]
    ok = all(status == 0 for status, *_ in got)
    apart = case.folder / "apart.onnx.data"
    ok = ok and apart.exists() and not (case.folder / "inside.onnx.data").exists()
    feeds = [f for _, f in case.runs]
    a, b = (outputs(out, feeds) for *_, out in got)
    check(ok and all(np.array_equal(x, y) for n in a for x, y in zip(a[n], b[n])), "external data, in and out")


def inner_graphs(kiln, folder):
    """Products in branches stay as they are, and are named."""
    model, runs = build_models.branches()
    path = Path(folder) / "float.onnx"
    onnx.save(model, path)
    case = Case(kiln, "branches", path, [f for _, f in runs], runs, folder)
    status, report, out = case.quantize()
    left = [n for n in report["left"] if "inner" in n["why"]] if status == 0 else []
    off = relative(outputs(out, [f for _, f in runs]), case.want) if status == 0 else {}
    check(len(left) == 1 and left[0]["op"] == "If" and off["p"] < 0.05, f"inner graphs: {left}, off by {off}")


def main():
    kiln, kiln_rt = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as folder:
        case = minilm(kiln, folder)
        report, path = methods(case, {"op_types_to_quantize": ["MatMul"]})
        ops = fused(path, folder)
        check(ops.count("MatMulIntegerToFloat") == 18, "minilm: ONNX Runtime fuses all 18 products with weights")
        weights_shrink(case, report, path)
        with tempfile.TemporaryDirectory() as inner:
            COUNTS[:] = np.add(COUNTS, int8_models.check(kiln, kiln_rt, "minilm", path, case.runs, 5e-2, inner))
        options_of_minilm(case)
    with tempfile.TemporaryDirectory() as folder:
        case = cnn(kiln, folder)
        report, path = methods(case, {})
        weights_shrink(case, report, path)
        with tempfile.TemporaryDirectory() as inner:
            COUNTS[:] = np.add(COUNTS, int8_models.check(kiln, kiln_rt, "cnn", path, case.runs, 1e-2, inner))
        status, report, path = case.quantize("--outputs")
        ops = fused(path, folder)
        check(status == 0 and "QLinearConv" in ops and "Conv" not in ops, "cnn --outputs: all convolutions are QLinearConv")
        refusals(case)
        external(case)
    with tempfile.TemporaryDirectory() as folder:
        old_opsets(kiln, folder)
    with tempfile.TemporaryDirectory() as folder:
        inner_graphs(kiln, folder)
    print(f"{COUNTS[0]} passed, {COUNTS[1]} failed")
    sys.exit(1 if COUNTS[1] else 0)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # the tool's advice on what to run before it
    main()
