"""A Llama checkpoint of safetensors as GGUF in bf16 or Q8_0, without a tokenizer: what llama.cpp needs to run on the same weights."""

import json
import os
import sys

import gguf
import numpy as np
import torch
from safetensors import safe_open

KINDS = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
FILES = {"bf16": gguf.LlamaFileType.MOSTLY_BF16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}

WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def name_of(name):
    stem = name.removesuffix(".weight")
    if stem in WHOLE:
        return WHOLE[stem] + ".weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.weight"


def paired(rows, heads):
    """Rows of each head in the order that llama.cpp rotates them: pairs beside each other, not a half apart."""
    width = rows.shape[0] // heads
    return rows.reshape(heads, 2, width // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def convert(directory, path, kind):
    with open(os.path.join(directory, "config.json")) as file:
        config = json.load(file)
    if config["model_type"] != "llama":
        raise SystemExit(f"{directory}: llama.cpp runs Llama here, not {config['model_type']}")
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    out = gguf.GGUFWriter(path + ".part", "llama")
    out.add_name(os.path.basename(os.path.abspath(directory)))
    out.add_file_type(FILES[kind])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    out.add_rope_freq_base(config["rope_theta"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_vocab_size(config["vocab_size"])
    out.add_tokenizer_model("none")
    with safe_open(os.path.join(directory, "model.safetensors"), "pt") as tensors:
        for name in tensors.keys():
            values = tensors.get_tensor(name).to(torch.float32).numpy()
            if name.endswith("q_proj.weight"):
                values = paired(values, heads)
            if name.endswith("k_proj.weight"):
                values = paired(values, kv_heads)
            if values.ndim == 1:
                out.add_tensor(name_of(name), values)
            else:
                data = gguf.quants.quantize(np.ascontiguousarray(values), KINDS[kind])
                out.add_tensor(name_of(name), data, raw_dtype=KINDS[kind])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    os.replace(path + ".part", path)


if __name__ == "__main__":
    convert(*sys.argv[1:4])
