//! Damaged, incomplete and foreign files: each is named for what it is, and none makes the reader panic.

use proptest::prelude::*;

use super::super::*;
use super::{model, problem, text, texts};
use crate::DType;
use crate::gguf::testing::{Builder, Meta};

#[test]
fn what_is_wrong_is_named() {
    struct Case {
        change: fn(&mut Builder),
        message: &'static str,
    }
    let cases = [
        Case {
            change: |b| {
                b.remove_meta("general.architecture");
            },
            message: "key \"general.architecture\" is missing; convert the original model with a current converter",
        },
        Case {
            change: |b| {
                b.meta("general.architecture", text("mamba"));
            },
            message: "architecture \"mamba\"; llama and qwen2 can be imported",
        },
        Case {
            change: |b| {
                b.meta("llama.block_count", text("1"));
            },
            message: "key \"llama.block_count\" is of type string; expected a whole number",
        },
        Case {
            change: |b| {
                b.meta("llama.block_count", Meta::I32(-1));
            },
            message: "key \"llama.block_count\" is -1; expected 0 to 4294967295",
        },
        Case {
            change: |b| {
                b.meta("llama.context_length", Meta::U32(0));
            },
            message: "key \"llama.context_length\" is 0; expected at least 1",
        },
        Case {
            change: |b| {
                b.meta("llama.attention.head_count_kv", Meta::I32s(vec![1, 1]));
            },
            message: "key \"llama.attention.head_count_kv\" is an array of 2 i32; expected a whole number",
        },
        Case {
            change: |b| {
                b.meta("llama.attention.head_count_kv", Meta::U32(3));
            },
            message: "key \"llama.attention.head_count_kv\" is 3; expected a divisor of the 2 query heads",
        },
        Case {
            change: |b| {
                b.meta("llama.attention.key_length", Meta::U32(3));
            },
            message: "key \"llama.attention.key_length\" is 3; expected an even number: rotation works on pairs",
        },
        Case {
            change: |b| {
                b.meta("llama.rope.dimension_count", Meta::U32(2));
            },
            message: "key \"llama.rope.dimension_count\" is 2; expected the head width 4",
        },
        Case {
            change: |b| {
                b.meta("llama.expert_count", Meta::U32(8));
            },
            message: "the model has experts (llama.expert_count = 8), which this import does not handle; use the model's \
                      original Hugging Face checkpoint",
        },
        Case {
            change: |b| {
                b.meta("llama.attention.layer_norm_rms_epsilon", Meta::F32(f32::NAN));
            },
            message: "key \"llama.attention.layer_norm_rms_epsilon\" is NaN; expected a finite number",
        },
        Case {
            change: |b| {
                b.meta_again("llama.block_count", Meta::U32(2));
            },
            message: "key \"llama.block_count\" occurs twice; which one counts is undefined",
        },
        Case {
            change: |b| {
                b.meta("deep", Meta::Nested(5));
            },
            message: "key \"deep\" nests arrays deeper than 4; the file is damaged",
        },
        Case {
            change: |b| {
                b.meta("general.alignment", Meta::U32(48));
            },
            message: "general.alignment is 48; expected a power of two from 1 to 65536",
        },
        Case {
            change: |b| {
                b.meta("general.alignment", Meta::Bool(true));
            },
            message: "key \"general.alignment\" is of type bool; expected u32",
        },
        Case {
            change: |b| {
                b.remove_tensor("blk.0.ffn_up.weight");
            },
            message: "tensor \"blk.0.ffn_up.weight\" is missing; the file is incomplete or part of a split model, which must \
                      be merged first",
        },
        Case {
            change: |b| {
                b.f32_tensor("blk.0.ffn_gate_exps.weight", &[1], &[0.0]);
            },
            message: "tensor \"blk.0.ffn_gate_exps.weight\" is not part of architecture llama; leaving it out would give a \
                      different model, so nothing was imported",
        },
        Case {
            change: |b| {
                b.f32_tensor("output_norm.weight", &[8], &[0.0; 8]);
            },
            message: "tensor \"output_norm.weight\" occurs twice; which one counts is undefined",
        },
        Case {
            change: |b| {
                b.meta("llama.feed_forward_length", Meta::U32(4));
            },
            message: "tensor \"blk.0.ffn_gate.weight\" has shape [3, 8]; the metadata asks for [4, 8]",
        },
        Case {
            change: |b| {
                b.tensor("x", &[1, 1, 1, 1, 1], 0, vec![0; 4]);
            },
            message: "tensor \"x\" has 5 dimensions; expected 1 to 4",
        },
        Case {
            change: |b| {
                b.tensor("x", &[256], 10, vec![0; 84]);
            },
            message: "tensor \"x\" has type Q2_K; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, \
                      Q6_K; quantise the model with one of these",
        },
        Case {
            change: |b| {
                b.tensor("x", &[256], 99, vec![0; 84]);
            },
            message: "tensor \"x\" has type number 99; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, \
                      Q5_K, Q6_K; quantise the model with one of these",
        },
        Case {
            change: |b| {
                b.tensor("x", &[2, 48], 3, vec![0; 60]);
            },
            message: "tensor \"x\" has rows of 48 values; Q4_1 stores blocks of 32",
        },
        Case {
            change: |b| {
                b.tensor("x", &[1 << 40, 1 << 40], 0, vec![0; 4]);
            },
            message: "tensor \"x\" of shape [1099511627776, 1099511627776] is larger than any file; the file is damaged",
        },
        Case {
            change: |b| {
                b.tensor("x", &[1000], 0, vec![0; 4]);
            },
            message: "tensor \"x\" ends at byte 5440 of the data, which has 1444; the download is probably incomplete",
        },
        Case {
            change: |b| {
                b.meta("tokenizer.ggml.model", text("bert"));
            },
            message: "key \"tokenizer.ggml.model\" is \"bert\"; expected \"gpt2\" (byte-level BPE) or \"llama\" \
                      (SentencePiece BPE)",
        },
        Case {
            change: |b| {
                b.meta("tokenizer.ggml.pre", text("tekken"));
            },
            message: "key \"tokenizer.ggml.pre\" is \"tekken\"; expected one of default, gpt-2, llama-bpe, qwen2, smollm",
        },
        Case {
            change: |b| {
                b.remove_meta("tokenizer.ggml.pre");
            },
            message: "key \"tokenizer.ggml.pre\" is missing; convert the original model with a current converter",
        },
        Case {
            change: |b| {
                b.meta("tokenizer.ggml.merges", texts(&["a b", "a"]));
            },
            message: "merge 1 is \"a\"; expected two tokens separated by one space",
        },
        Case {
            change: |b| {
                b.meta("tokenizer.ggml.merges", texts(&["a b c"]));
            },
            message: "merge 0 is \"a b c\"; expected two tokens separated by one space",
        },
        Case {
            change: |b| {
                b.meta("tokenizer.ggml.merges", texts(&["b a"]));
            },
            message: "merge 0 (\"b a\") needs token \"ba\", which the vocabulary does not have",
        },
        Case {
            change: |b| {
                b.meta("tokenizer.ggml.token_type", Meta::I32s(vec![1]));
            },
            message: "key \"tokenizer.ggml.token_type\" has 1 entries for 9 tokens; expected one per token",
        },
        Case {
            change: |b| {
                b.meta("tokenizer.ggml.token_type", Meta::I32s(vec![7; 9]));
            },
            message: "key \"tokenizer.ggml.token_type\" is 7 for token 0; expected 1 to 6",
        },
        Case {
            change: |b| {
                b.meta("tokenizer.ggml.tokens", texts(&["a", "b", "a", "c", "d", "e", "f", "g", "h"]));
            },
            message: "token \"a\" has the two ids 0 and 2; a token stands for one id",
        },
        Case {
            change: |b| {
                b.meta("tokenizer.ggml.tokens", texts(&["a"; 10]));
            },
            message: "key \"tokenizer.ggml.token_type\" has 9 entries for 10 tokens; expected one per token",
        },
        Case {
            change: |b| {
                b.meta("tokenizer.ggml.eos_token_id", Meta::U32(9));
            },
            message: "key \"tokenizer.ggml.eos_token_id\" is 9, but the vocabulary has 9 tokens",
        },
        Case {
            change: |b| {
                b.remove_tensor("output_norm.weight").f32_tensor("output_norm.weight", &[8], &[70_000.0; 8]);
            },
            message: "tensor \"output_norm.weight\" holds 70000, which f16 cannot represent; import with --dtype bf16 or f32",
        },
    ];
    for case in cases {
        let mut b = model();
        (case.change)(&mut b);
        assert_eq!(problem(&b.build(), DType::F16), case.message);
    }
}

#[test]
fn more_tokens_than_rows_of_the_embedding() {
    let mut b = model();
    b.remove_tensor("token_embd.weight").f32_tensor("token_embd.weight", &[5, 8], &[0.0; 40]);
    assert_eq!(problem(&b.build(), DType::F32), "the tokenizer has 9 tokens, but token_embd.weight only 5 rows");
}

#[test]
fn misplaced_tensors() {
    let place = |name: &'static str, at: u64| model().build_with(move |n, o| if n == name { at } else { o });
    assert_eq!(
        problem(&place("blk.0.attn_v.weight", 8), DType::F32),
        "tensor \"blk.0.attn_v.weight\" starts at data offset 8, which is no multiple of the alignment 32"
    );
    assert_eq!(
        problem(&place("blk.0.attn_v.weight", 32), DType::F32),
        "tensors \"token_embd.weight\" and \"blk.0.attn_v.weight\" overlap; the file is damaged"
    );
    assert_eq!(
        problem(&place("blk.0.attn_v.weight", u64::MAX - 31), DType::F32),
        "tensor \"blk.0.attn_v.weight\" ends at byte 18446744073709551615 of the data, which has 1440; the download is \
         probably incomplete"
    );
}

#[test]
fn damaged_heads() {
    struct Case {
        at: usize,
        bytes: &'static [u8],
        message: &'static str,
    }
    let cases = [
        Case {
            at: 0,
            bytes: b"ggml",
            message: "not a GGUF file: it begins with bytes [67, 67, 6d, 6c], expected \"GGUF\"",
        },
        Case {
            at: 4,
            bytes: &[1, 0, 0, 0],
            message: "GGUF version 1; versions 2 and 3 are read; convert the original model with a current converter",
        },
        Case {
            at: 4,
            bytes: &[0, 0, 0, 3],
            message: "big-endian GGUF; only little-endian files are read; convert the original model for little-endian \
                      machines",
        },
        Case {
            at: 8,
            bytes: &[0xff; 8],
            message: "the number of tensors is 18446744073709551615, but the rest of the file has room for at most 65; the \
                      file is damaged",
        },
        Case {
            at: 16,
            bytes: &[0xff; 8],
            message: "the number of metadata keys is 18446744073709551615, but the rest of the file has room for at most \
                      222; the file is damaged",
        },
        Case {
            at: 24,
            bytes: &[0xff; 8],
            message: "the file ends inside metadata key 0: 18446744073709551615 bytes are needed and 2880 are left; the \
                      download is probably incomplete",
        },
        Case { at: 32, bytes: &[0xff], message: "metadata key 0 is not valid UTF-8; the file is damaged" },
        Case {
            at: 52,
            bytes: &[13],
            message: "key \"general.architecture\" has value type 13; the format defines 0 to 12; the file is damaged",
        },
    ];
    for case in cases {
        let mut bytes = model().build();
        bytes[case.at..case.at + case.bytes.len()].copy_from_slice(case.bytes);
        assert_eq!(problem(&bytes, DType::F32), case.message);
    }
}

/// Whatever the place where the file ends, the error says so.
#[test]
fn every_truncation_is_noticed() {
    let bytes = model().build();
    assert!(Gguf::parse(&bytes).is_ok());
    for len in 0..bytes.len() {
        let error = Gguf::parse(&bytes[..len]).unwrap_err();
        let expected = matches!(
            error,
            GgufProblem::Magic { .. }
                | GgufProblem::Truncated { .. }
                | GgufProblem::Count { .. }
                | GgufProblem::OutOfBounds { .. }
        );
        assert!(expected, "{len}: {error}");
    }
    assert_eq!(problem(b"", DType::F32), "not a GGUF file: it begins with bytes [], expected \"GGUF\"");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// Changed bytes anywhere in the head: an error or a file, never a panic.
    #[test]
    fn damage_never_panics(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = model().build();
        let head = bytes.len() - 1440;
        for (at, value) in changes {
            bytes[at.index(head)] = value;
        }
        let _ = check(&bytes);
    }

    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(noise);
        let _ = check(&bytes);
    }
}
