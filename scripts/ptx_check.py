"""PTX that kiln emits, assembled by NVIDIA's ptxas of CUDA 12.4 and 13: no GPU needed.

usage: ptx_check.py KILN [FOLDER]

Of real models (MiniLM in f32, tf32, bf16 and quantized; PP-OCR's classifier) for sm_80,
sm_89 and sm_90a, and of the kernel tests' modules in FOLDER (`NAME.TARGET.ptx`, and
`errors.txt`, which `KILN_TEST_PTX=FOLDER cargo test -p kiln-kernels` writes). Checks that everything
assembles, that ptxas warns of nothing about wgmma or registers (C75xx), that no
contraction, convolution or attention spills more than `FEW` bytes, and that the
instructions of tensor cores and of asynchronous copies are where they belong. Prints a table by family and target.
"""
import collections
import concurrent.futures
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import int8_models  # noqa: E402
import models  # noqa: E402

KILN = sys.argv[1]
FOLDER = Path(sys.argv[2]) if len(sys.argv) > 2 else None
TARGETS = ["sm_80", "sm_89", "sm_90a"]
HOT = ("matmul", "conv", "attention")
# Bytes that an entry may spill: ptxas aims at rounds of blocks, and keeps a few words of some
# products on panels of words, of attention and of depthwise convolutions in memory for it,
# below the registers that there are.
FEW = 96


def tool(package, name):
    """A program of one of NVIDIA's wheels; made executable, as a wheel's may not be."""
    for path in sys.path:
        found = Path(path) / "nvidia" / package / "bin" / name
        if found.is_file():
            found.chmod(0o755)
            return str(found)
    sys.exit(f"{name} is missing: run scripts/setup.sh")


PTXAS = {"12.4": tool("cuda_nvcc", "ptxas"), "13": tool("cu13", "ptxas")}
NVDISASM = tool("cu13", "nvdisasm")


# Products of a group of warps and copies of tiles are Hopper's own.
ON_HOPPER = {
    "minilm-bf16": {"matmul": ["HGMMA", "UTMALDG", "LDGSTS"],
                    "attention": ["HGMMA", "UTMALDG", "LDGSTS"]},
    "minilm-tf32": {"matmul": ["HGMMA", "UTMALDG", "LDGSTS"]},
    "minilm-qdq": {"matmul": ["IGMMA", "UTMALDG", "LDGSTS"]},
}


class Kernel:
    """What ptxas says of an entry."""

    def __init__(self, name):
        self.name, self.registers, self.spills, self.shared = name, 0, 0, 0

    @property
    def family(self):
        found = re.match(r"kiln_([a-z]+)_", self.name)
        return found[1] if found else "test"


def assemble(path, target, version):
    """Entries with their resources; what is wrong; the machine code's file."""
    out = path.with_suffix(f".{target}.{version}.cubin")
    done = subprocess.run([PTXAS[version], "-v", "-arch", target, str(path), "-o", str(out)],
                          capture_output=True, text=True)
    text = done.stdout + done.stderr
    wrong = [f"{path.name} for {target}, ptxas {version}: {line}" for line in text.splitlines()
             if "error" in line or "fatal" in line or re.search(r"C75\d\d", line)]
    if done.returncode and not wrong:
        wrong = [f"{path.name} for {target}, ptxas {version}: ended with {done.returncode}"]
    kernels, kernel = [], None
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = Kernel(found[1])
            kernels.append(kernel)
        elif kernel and (found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)):
            kernel.spills = max(kernel.spills, int(found[1]), int(found[2]))
        elif kernel and (found := re.search(r"Used (\d+) registers", line)):
            kernel.registers = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernel.shared = int(shared[1]) if shared else 0
    return kernels, wrong, out


def instructions(cubin):
    """How often each instruction stands in each entry."""
    text = subprocess.run([NVDISASM, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    counts, entry = collections.defaultdict(collections.Counter), None
    for line in text.splitlines():
        if found := re.match(r"\s*\.text\.(\w+):", line):
            entry = found[1]
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", line):
            counts[entry][found[1]] += 1
    return counts


def compiled(folder):
    """PTX files of real models: name, path, target, what must be there by family (Hopper's
    products of halves are its own)."""
    minilm = models.path("minilm")
    quantized, _ = int8_models.quantized(int8_models.minilm, folder)
    rows = [
        ("minilm", minilm, [], {}),
        ("minilm-bf16", minilm, ["--precision", "bf16"],
         {"matmul": ["HMMA", "LDSM"], "attention": ["HMMA", "LDSM", "LDGSTS"]}),
        ("minilm-tf32", minilm, ["--precision", "tf32"], {"matmul": ["HMMA", "LDSM", "LDGSTS"]}),
        ("minilm-qdq", quantized, [], {"matmul": ["IMMA", "LDSM"]}),
        ("ocr-classify", models.path("ocr-classify"), [], {}),
    ]
    for name, model, options, wanted in rows:
        for target in TARGETS:
            path = folder / f"{name}.{target}.ptx"
            done = subprocess.run([KILN, "compile", str(model), "--target", target, *options, f"--emit=ptx={path}"],
                                  capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name} for {target}: {done.stderr}")
            yield name, path, target, wanted


def errors(path):
    """What the kernel tests noted: results on the PTX interpreter against references."""
    worst = collections.defaultdict(lambda: [0, 0.0])
    for line in path.read_text().splitlines():
        family, first, last, error = line.split()
        row = worst[(family, first, last)]
        row[0], row[1] = row[0] + 1, max(row[1], float(error))
    print("family     reads   writes  runs on the interpreter  off by at most (no faults)")
    for (family, first, last), (n, error) in sorted(worst.items()):
        print(f"{family:10} {first:7} {last:7} {n:23} {error:15.1e}")


def main():
    table = collections.defaultdict(lambda: [0, 0, 0, 0])
    failed = []
    with tempfile.TemporaryDirectory() as temporary, concurrent.futures.ThreadPoolExecutor(2) as pool:
        folder = Path(temporary)
        work = list(compiled(folder))
        if FOLDER:
            # sm_89's differ from sm_80's in nothing but the name.
            for path in sorted(p for p in FOLDER.glob("*.ptx") if "sm_89" not in p.name):
                copy = folder / path.name
                copy.write_bytes(path.read_bytes())
                work.append(("tests", copy, path.suffixes[-2][1:], {}))
        jobs = []
        for name, path, target, wanted in work:
            versions = list(PTXAS) if name != "tests" else ["13" if target == "sm_90a" else "12.4"]
            jobs += [(name, target, v, wanted, pool.submit(assemble, path, target, v)) for v in versions]
        for name, target, version, wanted, job in jobs:
            kernels, wrong, cubin = job.result()
            failed += wrong
            for k in kernels:
                row = table[("tests" if name == "tests" else k.family, target, version)]
                row[0] += 1
                row[1], row[2], row[3] = max(row[1], k.registers), max(row[2], k.shared), row[3] + k.spills
                if k.spills > FEW and (k.family in HOT or name == "tests"):
                    failed.append(f"{name} for {target}, ptxas {version}: {k.name} spills {k.spills} bytes")
            if wanted and not wrong and version == "13":
                found = instructions(cubin)
                for family, names in (ON_HOPPER.get(name, wanted) if target == "sm_90a" else wanted).items():
                    for i in names:
                        if not any(c[i] for e, c in found.items() if e and f"_{family}_" in e):
                            failed.append(f"{name} for {target}: no {i} in a kernel of {family}")
    print("family     target  ptxas   kernels  registers  static shared memory  spilled")
    for (family, target, version), (n, registers, shared, spills) in sorted(table.items()):
        print(f"{family:10} {target:7} {version:6} {n:8} {registers:10} {shared:21} {spills:8}")
    if FOLDER and (FOLDER / "errors.txt").exists():
        errors(FOLDER / "errors.txt")
    if failed:
        sys.exit("\n".join(failed[:40]))
    print(f"{sum(row[0] for row in table.values())} kernels assembled")


main()
