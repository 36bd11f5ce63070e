"""What the cost model says that GPUs take, to be held against a first measurement.

    python scripts/gpu_predictions.py KILN GPU_KERNELS

GPU_KERNELS is the example of that name of `kernels/`; it has the kernels of the check on
hardware. MiniLM's whole time is the sum over its launches. Both results go to
`benches/results/`.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import models  # noqa: E402

RESULTS = Path(__file__).resolve().parent.parent / "benches" / "results"
CHIPS = {"sm_80": "A100 SXM 80 GB", "sm_90a": "H100 SXM"}
COMPILE = ["compile", "MODEL", "-o", "m.kiln", "--target", "T", "--precision", "P"]
INSPECT = ["inspect", "m.kiln", "--dim", "batch_size=32", "--dim", "sequence_length=128", "--json"]


def out(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def microseconds(kiln, target, precision):
    with tempfile.TemporaryDirectory() as folder:
        here = {"MODEL": models.path("minilm"), "m.kiln": Path(folder) / "m.kiln"}
        here |= {"T": target, "P": precision}
        out([kiln, *(here.get(a, a) for a in COMPILE)])
        told = json.loads(out([kiln, *(here.get(a, a) for a in INSPECT)]))
    launches = [launch for entry in told["schedules"] for launch in entry["launches"]]
    taken = [form for launch in launches for form in launch["forms"] if form["taken"]]
    assert len(taken) == len(launches), "a launch has no form"
    return round(sum(form["predicted"]["seconds"] for form in taken) * 1e6, 1)


def main():
    kiln, kernels = sys.argv[1:]
    (RESULTS / "gpu-predictions.json").write_text(out([kernels, "predict"]))
    precisions = ["f32", "tf32", "bf16"]
    times = {
        f"{target} ({chip})": {p: microseconds(kiln, target, p) for p in precisions}
        for target, chip in CHIPS.items()
    }
    command = f"kiln {' '.join(COMPILE)}; kiln {' '.join(INSPECT)}"
    whole = {
        "what": "sum of the predicted times of all launches of paraphrase-MiniLM-L3, "
        "batch 32 of 128 tokens, in microseconds",
        "command": command,
        "microseconds": times,
    }
    text = json.dumps(whole, indent=1) + "\n"
    (RESULTS / "gpu-predictions-minilm.json").write_text(text)


main()
