"""ShadowLLM beside what a user would take instead, on the same random weights, in turn.

    python benches/peers/compare.py --shape llama-3.2-1b
    python benches/peers/compare.py --shape opt-1.3b --keep 0.5,0.25 --prompt 512

Every round runs each program once, so that a machine whose speed changes is so for all; medians over the rounds are printed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.2-1b", help="a shape that `shadowllm random-model` knows")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--gen", type=int, default=128)
    parser.add_argument("--keep", default="0.5", help="kept fractions of our sparse rows, with commas between them")
    parser.add_argument("--policy", default="shadow", help="our sparse policies, with commas between them")
    parser.add_argument("--dtypes", default="bf16", help="types of our weights, bf16 and int8, with commas between them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="transformers,llama-bf16,llama-q8_0")
    parser.add_argument("--models", default=os.path.join(ROOT, "target", "peers"), help="where the random weights are kept")
    parser.add_argument("--bin", default=os.path.join(ROOT, "target", "release"), help="where shadowllm and shadow-bench are")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def call(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode < 0:
        raise SystemExit(
            f"{command[1]} was ended by signal {-done.returncode}; a llama.cpp that was built for another processor dies so "
            "(see README.md)"
        )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed with exit code {done.returncode}")
    return done.stdout


def weights(options):
    """The folder with random weights of the shape; made if it is not there."""
    model = os.path.join(options.models, options.shape)
    if not os.path.isdir(model):
        os.makedirs(options.models, exist_ok=True)
        call([os.path.join(options.bin, "shadowllm"), "random-model", model, "--shape", options.shape, "--dtype", "bf16"])
    return model


def imported(options, model, dtype):
    """The folder with the weights in one of our types; int8 ones are made of the others if they are not there."""
    if dtype == "bf16":
        return model
    if dtype != "int8":
        raise SystemExit(f"unknown type {dtype!r}; expected bf16 or int8")
    folder = f"{model}-{dtype}"
    if not os.path.isdir(folder):
        call([os.path.join(options.bin, "shadowllm"), "import", model, folder, "--dtype", dtype])
    return folder


def ours(options, model, dtype):
    out = call(
        [
            os.path.join(options.bin, "shadow-bench"), "--shape", imported(options, model, dtype), "--threads", str(options.threads),
            "--prompt", str(options.prompt), "--gen", str(options.gen), "--repetitions", "1",
            "--policy", options.policy, "--keep", options.keep, "--json",
        ]
    )  # fmt: skip
    report = json.loads(out)
    rows = {}
    for row in report["rows"]:
        name = f"shadowllm {dtype} " + ("dense" if row["policy"] == "dense" else f"{row['policy']} {row['keep']}")
        rows[name] = {key: row[key] for key in ["ms_per_token", "prefill_tokens_per_second", "bytes_per_token"]}
    return rows, report["machine"]["read_gb_per_second"]


def peers(options, model):
    """Names and commands of the peers that run this shape."""
    with open(os.path.join(model, "config.json")) as file:
        is_llama = json.load(file)["model_type"] == "llama"
    rest = [
        "--threads", str(options.threads), "--prompt", str(options.prompt), "--gen", str(options.gen)
    ]  # fmt: skip
    commands = {}
    for peer in options.peers.split(","):
        if peer == "transformers":
            commands["transformers bf16"] = [sys.executable, os.path.join(HERE, "peer_transformers.py"), model, *rest]
        elif peer.startswith("llama-"):
            kind = peer.removeprefix("llama-")
            if not is_llama:
                print(f"llama.cpp does not run {options.shape}: {peer} is left out", file=sys.stderr)
                continue
            path = f"{model}-{kind}.gguf"
            if not os.path.exists(path):
                call([sys.executable, os.path.join(HERE, "to_gguf.py"), model, path, kind])
            commands[f"llama.cpp {kind}"] = [sys.executable, os.path.join(HERE, "peer_llama.py"), path, *rest]
        else:
            raise SystemExit(f"unknown peer {peer!r}; expected transformers, llama-bf16 or llama-q8_0")
    return commands


def main():
    options = parse()
    model = weights(options)
    commands = peers(options, model)
    rounds, read = [], []
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        rows = {}
        for dtype in options.dtypes.split(","):
            own, gb_per_second = ours(options, model, dtype)
            rows.update(own)
            read.append(gb_per_second)
        for name, command in commands.items():
            rows[name] = json.loads(call(command).splitlines()[-1])
        rounds.append(rows)
    median = {}
    for name in rounds[0]:
        median[name] = {}
        for key in ["ms_per_token", "prefill_tokens_per_second"]:
            median[name][key] = statistics.median(rows[name][key] for rows in rounds)
    if options.json:
        print(json.dumps({"shape": options.shape, "threads": options.threads, "read_gb_per_second": read, "rows": median, "rounds": rounds}, indent=2))
        return
    print(
        f"{options.shape}, {options.threads} threads, {options.gen} tokens after a prompt of {options.prompt}, "
        f"medians of {options.rounds} rounds; memory read at {statistics.median(read):.1f} GB/s"
    )
    names = list(commands)
    print("| program | ms/token | tokens/s | prefill/s | " + " | ".join(f"x {name}" for name in names) + " |")
    print("| --- |" + " ---: |" * (3 + len(names)))
    for name, row in median.items():
        # Ratios within a round, then their median.
        ratios = [statistics.median(r[peer]["ms_per_token"] / r[name]["ms_per_token"] for r in rounds) for peer in names]
        cells = [f"{row['ms_per_token']:.2f}", f"{1e3 / row['ms_per_token']:.2f}", f"{row['prefill_tokens_per_second']:.1f}"]
        print(f"| {name} | " + " | ".join(cells + [f"{ratio:.2f}" for ratio in ratios]) + " |")


main()
