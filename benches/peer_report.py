"""What people read of a benchmark's result: the README's table, and a chart.

    peer_report.py RESULT.json       write the chart, and put the table into README.md
    peer_report.py --check           README.md has the table of the result that it names,
                                     every result is whole, and so is its chart
"""
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- peers: benches/results/", "<!-- /peers -->"


NUMBER = (int, float)
DOCUMENT = {"date": str, "cpu": str, "cores": int, "rounds": int, "versions": dict, "fma_peak_gflops": dict,
            "rows": list, "command": str}
ROW = {"model": str, "shape": str, "threads": int, "ms": dict, "ratio": NUMBER, "share_of_peak": NUMBER}
# Older results lack these.
LATER = {"rounds_ms": dict, "flops": int, "relative_error": NUMBER, "relative_error_bound": NUMBER,
         "peers_relative_error": dict, "memory_bytes": dict, "refused": dict}
COST = {"artifact_bytes": int, "onnx_bytes": int, "kernels": int, "compile_cold_ms": NUMBER, "compile_warm_ms": NUMBER}


def faults(doc):
    """What a result lacks, or has of a wrong type or value."""
    found = [f"`{k}` is missing or no {t}" for k, t in DOCUMENT.items() if not isinstance(doc.get(k), t)]
    if found:
        return found
    wanted = {**ROW, **LATER} if "models" in doc else ROW
    for row in doc["rows"]:
        name = f"{row.get('model')} {row.get('shape')}"
        bad = [k for k, t in wanted.items() if not isinstance(row.get(k), t)]
        found += [f"{name}: `{k}` is missing or of a wrong type" for k in bad]
        if bad:
            continue
        if not all(v > 0 for v in row["ms"].values()) or not {"kiln", "onnxruntime"} <= set(row["ms"]):
            found.append(f"{name}: a time is missing or not positive")
        elif abs(row["ratio"] - row["ms"]["kiln"] / row["ms"]["onnxruntime"]) > 1e-6 * row["ratio"]:
            found.append(f"{name}: the ratio is not that of the times")
        if "models" in doc and any(len(t) != doc["rounds"] for t in row["rounds_ms"].values()):
            found.append(f"{name}: not every round is there")
        cost = doc.get("models", {}).get(row["model"])
        if "models" in doc and (cost is None or any(not isinstance(cost.get(k), t) for k, t in COST.items())):
            found.append(f"{name}: what compiling costs is missing")
    return found


def grouped(doc):
    """Rows by model and shape, in order: (label, {threads: row})."""
    found = {}
    for row in doc["rows"]:
        found.setdefault(f"{row['model']} {row['shape']}", {})[row["threads"]] = row
    return list(found.items())


def counts(doc):
    return sorted({row["threads"] for row in doc["rows"]})


def milliseconds(ms):
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def table(doc):
    """The README's table: a line a model and shape; ratios by threads, Kiln's time and
    share of the peak with the least of them, memory."""
    threads = counts(doc)
    names = [f"{n} thread{'s' if n > 1 else ''}" for n in threads]
    heads = ["model", *names, "ms", "of the FMA peak"]
    memory = all("memory_bytes" in row for row in doc["rows"])
    heads += ["memory, MB: Kiln", "ONNX Runtime"] if memory else []
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for label, by in grouped(doc):
        first = by[min(by)]
        cells = [label, *(f"{by[n]['ratio']:.2f}" if n in by else "" for n in threads),
                 milliseconds(first["ms"]["kiln"]), f"{first['share_of_peak']:.0%}".replace("%", " %")]
        if memory:
            cells += [f"{first['memory_bytes'][p] / 1e6:.0f}" for p in ("kiln", "onnxruntime")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def block(path):
    """The README's part that a result gives, its markers included."""
    doc = json.loads(path.read_text())
    run = f"{doc['cpu']}, {doc['cores']} cores, {doc['date']}, {doc['rounds']} rounds, ONNX Runtime {doc['versions']['onnxruntime']}"
    picture = path.with_suffix(".svg")
    chart_line = f"\n![Kiln's time over ONNX Runtime's](benches/results/{picture.name})\n" if picture.exists() else ""
    return f"{BEGIN}{path.name} -->\n{run}:\n\n{table(doc)}\n{chart_line}{END}"


def named_in_readme():
    """The part of the README between the markers, and the result that it names."""
    found = re.search(re.escape(BEGIN) + r"(\S+) -->\n.*?" + re.escape(END), README.read_text(), re.S)
    if not found:
        raise SystemExit(f"README.md has no part between `{BEGIN}FILE -->` and `{END}`")
    return found.group(0), HERE / "results" / found.group(1)


def put_into_readme(path):
    old, _ = named_in_readme()
    if path.resolve().parent != HERE / "results":
        raise SystemExit("the README names results in benches/results")
    README.write_text(README.read_text().replace(old, block(path)))
    print("README.md has its table")


WIDTH, LEFT, RIGHT, TOP, LINE = 860, 250, 60, 74, 26
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .small { font-size: 11px; fill: #59636e; }
  .grid { stroke: #d1d9e0; }
  .one { stroke: #1f2328; stroke-width: 1.5; }
  .t1 { fill: #0969da; } .t2 { fill: #bc4c00; } .t3 { fill: #1a7f37; } .t4 { fill: #8250df; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .small { fill: #9198a1; }
    .grid { stroke: #3d444d; }
    .one { stroke: #f0f6fc; }
    .t1 { fill: #58a6ff; } .t2 { fill: #ffa657; } .t3 { fill: #56d364; } .t4 { fill: #d2a8ff; }
  }
"""


def mark(kind, x, y, title):
    """A dot, or a diamond, square or triangle: threads differ in form, not colour alone."""
    points = {2: [(0, -6), (6, 0), (0, 6), (-6, 0)], 3: [(-5, -5), (5, -5), (5, 5), (-5, 5)], 4: [(0, -6), (6, 5), (-6, 5)]}
    inside = f'<title>{escape(title)}</title>'
    if kind == 1:
        return f'<circle class="t1" cx="{x:.1f}" cy="{y:.1f}" r="5.5">{inside}</circle>'
    at = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in points[kind])
    return f'<polygon class="t{kind}" points="{at}">{inside}</polygon>'


def chart(doc):
    """Ratios by model as SVG, drawn here: no library, no background, and colours for a
    light and a dark page."""
    rows, threads = grouped(doc), counts(doc)[:4]
    most = max(1.25, max(row["ratio"] for row in doc["rows"]) * 1.05)
    height = TOP + LINE * len(rows) + 40
    x = lambda ratio: LEFT + (WIDTH - LEFT - RIGHT) * ratio / most
    step = next(s for s in (0.25, 0.5, 1, 2, 5, 10, 50, 250, 1e9) if most / s <= 8)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
           f"<title>Kiln's time over ONNX Runtime's, by model</title><style>{STYLE}</style>",
           '<text x="12" y="24" font-weight="bold">Kiln\'s time over ONNX Runtime\'s: left of the line, Kiln is faster</text>',
           f'<text class="small" x="12" y="42">{escape(doc["cpu"])}, {doc["cores"]} cores, {doc["date"]}, '
           f'medians of {doc["rounds"]} rounds</text>']
    for k, n in enumerate(threads, 1):
        at = WIDTH - RIGHT - 110 * (len(threads) - k + 1)
        out.append(mark(k, at, 56, f"{n} threads"))
        out.append(f'<text class="small" x="{at + 10}" y="60">{n} thread{"s" if n > 1 else ""}</text>')
    bottom = TOP + LINE * len(rows)
    for i in range(int(most / step) + 1):
        ratio = i * step
        kind = "one" if ratio == 1 else "grid"
        out.append(f'<line class="{kind}" x1="{x(ratio):.1f}" x2="{x(ratio):.1f}" y1="{TOP - 4}" y2="{bottom}"/>')
        out.append(f'<text class="small" x="{x(ratio):.1f}" y="{bottom + 16}" text-anchor="middle">{ratio:g}</text>')
    if 1 % step:
        out.append(f'<line class="one" x1="{x(1):.1f}" x2="{x(1):.1f}" y1="{TOP - 4}" y2="{bottom}"/>')
    for i, (label, by) in enumerate(rows):
        y = TOP + LINE * i + LINE / 2
        out.append(f'<text x="{LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
        for k, n in enumerate(threads, 1):
            if n in by:
                out.append(mark(k, x(by[n]["ratio"]), y, f"{label}, {n} threads: {by[n]['ratio']:.2f}"))
    return "\n".join(out) + "\n</svg>\n"


def chart_faults(doc, text):
    """What a chart lacks: a mark for each row at its ratio's place, and the line at 1."""
    root = ElementTree.fromstring(text)
    svg = "{http://www.w3.org/2000/svg}"
    titles = {t.text for t in root.iter(f"{svg}title")}
    found = [f"no mark for {r['model']} {r['shape']}" for r in doc["rows"] if r["threads"] in counts(doc)[:4]
             and f"{r['model']} {r['shape']}, {r['threads']} threads: {r['ratio']:.2f}" not in titles]
    lines = [e for e in root.iter(f"{svg}line") if e.get("class") == "one"]
    return found + ([] if len(lines) == 1 else [f"{len(lines)} lines at 1"])


def check():
    old, path = named_in_readme()
    wrong = []
    if not path.exists():
        wrong.append(f"README.md names {path.name}, which is not there")
    elif old != block(path):
        wrong.append(f"README.md's table is not that of {path.name}: run benches/peer_report.py benches/results/{path.name}")
    results = sorted((HERE / "results").glob("peers-*.json"))
    for result in results:
        doc = json.loads(result.read_text())
        bad = faults(doc) or chart_faults(doc, chart(doc))
        wrong += [f"{result.name}: {what}" for what in bad]
    # A check that finds nothing in anything is none.
    if results:
        doc = json.loads(results[0].read_text())
        text = chart(doc)
        doc["rows"][0]["ratio"] += 1
        if not faults(doc) or not chart_faults(doc, text):
            wrong.append("a changed ratio is not noticed")
    print("\n".join(wrong) or f"README.md has the table of {path.name}; {len(results)} results are whole")
    sys.exit(1 if wrong or not results else 0)


if __name__ == "__main__":
    if sys.argv[1] == "--check":
        check()
    at = Path(sys.argv[1])
    at.with_suffix(".svg").write_text(chart(json.loads(at.read_text())))
    put_into_readme(at)
