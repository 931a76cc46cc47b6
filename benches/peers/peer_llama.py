"""Prompt and decode steps of llama.cpp on a GGUF file, through the C functions of llama-cpp-python, one line of JSON."""

import ctypes

import llama_cpp
import numpy as np

from protocol import arguments, measure


@llama_cpp.llama_log_callback
def quiet(_level, _text, _data):
    pass


def main():
    options = arguments(__doc__).parse_args()
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(options.model.encode(), parameters)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {options.model}")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = options.prompt + options.gen + 8
    settings.n_batch = settings.n_ubatch = max(512, options.prompt)
    settings.n_threads = settings.n_threads_batch = options.threads
    context = llama_cpp.llama_init_from_model(model, settings)
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def run(ids):
        array = (llama_cpp.llama_token * len(ids))(*ids)
        code = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids)))
        if code != 0:
            raise SystemExit(f"llama_decode returned {code}")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(vocab,)).argmax())

    def forget():
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)

    measure(options, vocab, run, lambda token: run([token]), forget)


main()
