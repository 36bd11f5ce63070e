"""Every dependency's licence is one that Kiln's own licence can stand beside."""
import json
import re
import subprocess
import sys

ALLOWED = {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "Unicode-3.0", "Unicode-DFS-2016", "0BSD", "CC0-1.0",
           "Unlicense", "BSL-1.0", "MPL-2.0", "MIT-0", "CDLA-Permissive-2.0", "Apache-2.0 WITH LLVM-exception"}


def fits(expression):
    """An SPDX expression: some alternative consists of allowed licences."""
    text = expression.replace("/", " OR ").replace("(", " ( ").replace(")", " ) ")
    text = re.sub(r"Apache-2\.0 WITH LLVM-exception", "Apache-2.0", text)
    tokens = ["and" if t == "AND" else "or" if t == "OR" else t if t in "()" else str(t in ALLOWED) for t in text.split()]
    return bool(eval(" ".join(tokens), {"__builtins__": {}}))


def main():
    meta = json.loads(subprocess.check_output(["cargo", "metadata", "--format-version=1", "--locked"]))
    bad = []
    for p in meta["packages"]:
        licence = p["license"]
        if not licence and p["license_file"]:
            continue
        if not licence or not fits(licence):
            bad.append(f"{p['name']} {p['version']}: {licence}")
    for line in bad:
        print("not allowed:", line)
    print(f"{len(meta['packages'])} packages, {len(bad)} with a licence that is not allowed")
    sys.exit(1 if bad else 0)


main()
