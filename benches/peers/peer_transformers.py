"""Prompt and decode steps of Hugging Face transformers in bf16 on the CPU, one line of JSON."""

import inspect

import torch
from transformers import AutoModelForCausalLM

from protocol import arguments, measure


def main():
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.eval()
    # Its name changed within version 5.
    name = "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
    cache = None

    def run(ids):
        nonlocal cache
        # No mask and only the logits that are needed: the fastest way to say the same.
        out = model(input_ids=torch.tensor([ids]), use_cache=True, logits_to_keep=1, **{name: cache})
        cache = getattr(out, name)
        return out.logits[0, -1].argmax().item()

    def forget():
        nonlocal cache
        cache = None

    with torch.inference_mode():
        measure(options, model.config.vocab_size, run, lambda token: run([token]), forget)


main()
