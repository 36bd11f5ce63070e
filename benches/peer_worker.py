"""One runtime with one model in a process of its own.

    peer_worker.py PEER MODEL.onnx THREADS INPUTS.npz OUTPUTS.npz

Loads, runs twice, saves the results, and answers on stdout with one line of JSON:
`version`, `before_bytes` (resident once the runtime's library is imported: an empty
process) and `peak_bytes` (the most that was resident up to the end of the second run).
Then each line N on stdin runs the model N times; the answer is their milliseconds.
"""
import json
import os
import sys
import time

import numpy as np


def onnxruntime():
    import onnxruntime as ort

    def load(model, threads):
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        names = {i.name for i in session.get_inputs()}
        return lambda feed: session.run(None, {n: a for n, a in feed.items() if n in names})

    return ort.__version__, load


def openvino():
    import openvino as ov

    def load(model, threads):
        core = ov.Core()
        # f32 as the others, one request at a time on as many threads.
        compiled = core.compile_model(model, "CPU", {
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32"})
        request = compiled.create_infer_request()
        names = [i.get_any_name() for i in compiled.inputs]

        def run(feed):
            result = request.infer({n: feed[n] for n in names}, share_inputs=True, share_outputs=True)
            return [result[o] for o in compiled.outputs]

        return run

    return ov.__version__.split("-")[0], load


def pytorch():
    import torch

    import torch_graph

    def load(model, threads):
        torch.set_num_threads(threads)
        return torch_graph.load(model)

    return torch.__version__, load


PEERS = {"onnxruntime": onnxruntime, "openvino": openvino, "pytorch": pytorch}


def resident(key):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(key))


def main():
    peer, model, threads, inputs, outputs = sys.argv[1:]
    # What libraries print goes to stderr: stdout carries answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    version, load = PEERS[peer]()
    before = resident("VmRSS")
    feed = dict(np.load(inputs))
    run = load(model, int(threads))
    run(feed)
    results = run(feed)
    peak = resident("VmHWM")
    np.savez(outputs, *[np.asarray(r) for r in results])
    print(json.dumps({"version": version, "before_bytes": before, "peak_bytes": peak}), file=answers)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            run(feed)
            times.append((time.perf_counter() - start) * 1e3)
        print(json.dumps(times), file=answers)


if __name__ == "__main__":
    main()
