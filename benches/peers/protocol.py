"""What all peers have in common: the protocol of `shadow-bench`, and how a result is handed over."""

import argparse
import json
import statistics
import time


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--gen", type=int, default=128)
    parser.add_argument("--warm-up", type=int, default=2)
    return parser


def tokens(first, end, vocab):
    """The tokens of shadow-bench at these positions."""
    return [(i * 7919 + 11) % vocab for i in range(first, end)]


def measure(options, vocab, prefill, step, forget):
    """Times a prompt and single steps. `prefill(tokens)` and `step(token)` return the most likely next token, which makes
    sure that logits exist; `forget()` empties the cache."""
    prompt = tokens(0, options.prompt, vocab)
    following = tokens(options.prompt, options.prompt + options.gen, vocab)
    prefill(prompt)
    for token in following[: options.warm_up]:
        step(token)
    forget()
    start = time.perf_counter()
    first = prefill(prompt)
    prefill_seconds = time.perf_counter() - start
    seconds = []
    for token in following:
        start = time.perf_counter()
        step(token)
        seconds.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "ms_per_token": 1e3 * statistics.median(seconds),
                "prefill_tokens_per_second": options.prompt / prefill_seconds,
                "next_token": int(first),
            }
        )
    )
