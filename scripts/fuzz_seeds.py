"""Makes the seeds of the fuzz targets anew, in fuzz/seeds: small files that reach
far into each reader. The kiln binary compiles those of `artifact`.

usage: fuzz_seeds.py KILN ONNX_NODE_CASES
"""
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEEDS = ROOT / "fuzz" / "seeds"


def fresh(target):
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    return folder


def kir():
    folder = fresh("kir")
    texts = ROOT / "tests" / "kir"
    for path in sorted(texts.rglob("*.kir")):
        # Megabytes of weights in a line of text: slow, and nothing new.
        if path.stem == "simplify_large_weights":
            continue
        text = path.read_text()
        # Tests may leave the version out; what they expect is no part of the text.
        lines = [line for line in text.splitlines() if not line.startswith("//")]
        if not any(line.startswith("kir ") for line in lines):
            lines.insert(0, "kir 1")
        name = "-".join(path.relative_to(texts).parts)
        (folder / name).write_text("\n".join(lines) + "\n")


# Node tests are small models, one operator each: of every operator the ones that
# differ most in form (by opset, inputs, attributes) and are small.
PER_OPERATOR = 4
MODEL_BYTES = 3000


def onnx(cases):
    import onnx as library

    folder = fresh("onnx")
    forms = {}
    for path in sorted(cases.rglob("model.onnx")):
        if path.stat().st_size > MODEL_BYTES:
            continue
        graph = library.load(path, load_external_data=False).graph
        if not graph.node:
            continue
        node = graph.node[0]
        form = (len(graph.node), len(node.input), tuple(sorted(a.name for a in node.attribute)))
        forms.setdefault(node.op_type, {}).setdefault(form, path)
    for operator, paths in sorted(forms.items()):
        for path in list(paths.values())[:PER_OPERATOR]:
            (folder / f"{path.parent.name}.onnx").write_bytes(path.read_bytes())
    names = {s.name for s in library.defs.get_all_schemas() if s.domain in ("", "ai.onnx.preview.training")}
    names |= {a for s in library.defs.get_all_schemas() for a in s.attributes}
    lines = [f'"{name}"' for name in sorted(names)]
    dictionaries = ROOT / "fuzz" / "dictionaries"
    dictionaries.mkdir(exist_ok=True)
    (dictionaries / "onnx.dict").write_text("# Operators and attributes of ONNX.\n" + "\n".join(lines) + "\n")


def artifact(kiln):
    folder = fresh("artifact")
    # PTX in some: a little goes a long way.
    gpu = {"interp-control": ["--target", "sm_80"], "interp-state": ["--target", "sm_80", "--target", "sm_90a"]}
    # Weights and views; sizes that branches and loops decide; elements below a
    # byte; strings; loops; state.
    for name in ["run-mlp", "run-resized", "run-small_elements", "run-strings", "interp-control", "interp-state"]:
        text, out = SEEDS / "kir" / f"{name}.kir", folder / f"{name}.artifact"
        targets = ["--target", "x86-64-v3", *gpu.get(name, [])]
        subprocess.run([kiln, "compile", text, *targets, "-o", out], check=True, stdout=subprocess.DEVNULL)


def safetensors():
    folder = fresh("safetensors")

    def save(name, header, data):
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (folder / f"{name}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)

    def entry(dtype, shape, start, end):
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}

    save("empty", {}, b"")
    save("one", {"w": entry("F32", [2, 2], 0, 16)}, bytes(16))
    save("named", {"__metadata__": {"format": "pt"}, "a.b": entry("BF16", [3], 4, 10), "scalar": entry("I32", [], 0, 4)}, bytes(range(10)))
    bits = {"BOOL": 8, "F4": 4, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
            "I32": 32, "U32": 32, "F64": 64, "C64": 64, "I64": 64, "U64": 64}
    header, at = {"nothing": entry("F32", [0, 4], 0, 0)}, 0
    for dtype, width in bits.items():
        header[dtype.lower()] = entry(dtype, [2, 1], at, at + width // 4)
        at += width // 4
    save("types", header, bytes(i % 2 for i in range(at)))


def main():
    kiln, cases = sys.argv[1], Path(sys.argv[2])
    kir()
    onnx(cases)
    artifact(kiln)
    safetensors()


main()
