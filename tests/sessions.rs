//! Sessions and the forward pass: chunks, rewinding, several at once, failures that change nothing.

#![allow(clippy::unwrap_used)]

mod support;

use std::ops::ControlFlow;

use shadowllm::kernels::{CpuOptions, argmax};
use shadowllm::model::random::random_checkpoint;
use shadowllm::model::{KvCache, NoProbe, Segment, Workspace};
use shadowllm::weights::{DType, ModelConfig};
use shadowllm::{Engine, EngineOptions, Session, SessionOptions};

use support::largest_difference;

/// A small Llama with grouped heads and a long context, or an OPT.
fn engine(family: &str, threads: usize) -> Engine {
    let config = match family {
        "llama" => {
            r#"{"model_type": "llama", "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
                "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5}"#
        }
        _ => {
            r#"{"model_type": "opt", "vocab_size": 97, "hidden_size": 48, "ffn_dim": 96, "num_hidden_layers": 2,
                "word_embed_proj_dim": 48, "num_attention_heads": 4, "max_position_embeddings": 2048}"#
        }
    };
    let config = ModelConfig::from_json(config.as_bytes()).unwrap();
    let checkpoint = random_checkpoint(config, DType::BF16, 5).unwrap();
    let cpu = CpuOptions { threads: Some(threads), ..CpuOptions::default() };
    Engine::load(&checkpoint, EngineOptions { cpu }).unwrap()
}

fn tokens(n: usize, salt: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i + 31 * i + 7 * salt) % 97) as u32).collect()
}

fn session(engine: &Engine) -> Session {
    engine.session(SessionOptions::default()).unwrap()
}

#[test]
fn a_prompt_longer_than_a_chunk_is_the_same_as_its_tokens_one_by_one() {
    for family in ["llama", "opt"] {
        let engine = engine(family, 2);
        let text = tokens(1300, 0);
        let mut at_once = session(&engine);
        let whole = at_once.prefill(&text).unwrap().to_vec();
        let mut stepped = session(&engine);
        for &token in &text {
            stepped.step(token).unwrap();
        }
        assert!(largest_difference(&whole, stepped.logits()) < 1e-4, "{family}");
        let mut scored = session(&engine);
        let mut seen = Vec::new();
        let each = &mut |index: usize, logits: &[f32]| {
            seen.push(index);
            assert_eq!(logits.len(), 97);
            ControlFlow::Continue(())
        };
        scored.score(&text, 700, each).unwrap();
        assert_eq!(seen, (700..1300).collect::<Vec<_>>());
        assert!(largest_difference(&whole, scored.logits()) < 1e-4, "{family}");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for family in ["llama", "opt"] {
        let run = |threads| {
            let mut session = session(&engine(family, threads));
            let mut all = session.prefill(&tokens(600, 1)).unwrap().to_vec();
            for token in tokens(8, 2) {
                all.extend_from_slice(session.step(token).unwrap());
            }
            all.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let one = run(1);
        assert!(one == run(2) && one == run(3), "{family}");
    }
}

#[test]
fn sessions_on_one_engine_do_not_disturb_each_other() {
    let engine = engine("llama", 2);
    let generate = |salt: usize| {
        let mut session = session(&engine);
        let mut next = argmax(session.prefill(&tokens(40 + salt, salt)).unwrap()) as u32;
        for _ in 0..30 {
            next = argmax(session.step(next).unwrap()) as u32;
        }
        session.tokens().to_vec()
    };
    let alone: Vec<_> = (0..6).map(generate).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..6).map(|salt| scope.spawn(move || generate(salt))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

#[test]
fn a_truncated_session_goes_on_as_if_the_rest_had_never_been() {
    let engine = engine("opt", 2);
    let mut rewound = session(&engine);
    rewound.prefill(&tokens(30, 0)).unwrap();
    rewound.prefill(&tokens(50, 9)).unwrap();
    rewound.truncate(20);
    let again = rewound.prefill(&tokens(25, 4)).unwrap().to_vec();
    let mut fresh = session(&engine);
    fresh.prefill(&tokens(30, 0)[..20]).unwrap();
    assert_eq!(fresh.prefill(&tokens(25, 4)).unwrap(), again);
    assert_eq!(rewound.tokens(), fresh.tokens());
    rewound.truncate(1000);
    assert_eq!(rewound.tokens().len(), 45);
}

#[test]
fn a_failed_call_changes_nothing() {
    let engine = engine("llama", 1);
    let mut session = engine.session(SessionOptions { context: Some(12) }).unwrap();
    session.prefill(&tokens(8, 0)).unwrap();
    let before = (session.tokens().to_vec(), session.logits().to_vec());
    let messages = [
        session.prefill(&[]).unwrap_err().to_string(),
        session.prefill(&[1, 97]).unwrap_err().to_string(),
        session.prefill(&tokens(5, 0)).unwrap_err().to_string(),
        session.step(u32::MAX).unwrap_err().to_string(),
        session.score(&tokens(5, 0), 0, &mut |_, _| ControlFlow::Continue(())).unwrap_err().to_string(),
        session.prefill_with(&[1, 2], &mut NoProbe, &mut |_| ControlFlow::Break(())).unwrap_err().to_string(),
    ];
    assert_eq!((session.tokens().to_vec(), session.remaining()), (before.0, 4));
    session.prefill(&tokens(4, 0)).unwrap();
    let full = session.step(1).unwrap_err().to_string();
    insta::assert_snapshot!("failed_calls", format!("{}\n{full}\n", messages.join("\n")));
    assert_eq!(session.remaining(), 0);
}

/// Sequences of different lengths and pasts in one pass: the same bits as each alone, as long as the rows together are few.
#[test]
fn sequences_run_together_give_what_each_gives_alone() {
    for family in ["llama", "opt"] {
        let engine = engine(family, 2);
        let (model, cpu, vocab) = (engine.model(), engine.cpu(), engine.config().vocab);
        let pasts = [0, 5, 40];
        let news = [tokens(3, 1), tokens(1, 2), tokens(6, 3)];
        let cache_of = |past: usize| {
            let mut cache = KvCache::new(engine.config(), 100);
            if past > 0 {
                let text = tokens(past, past);
                let segment = Segment { tokens: &text, cache: &mut cache };
                model.forward(cpu, &mut [segment], &mut Workspace::default(), &mut NoProbe).unwrap();
            }
            cache
        };
        let run = |which: &[usize]| {
            let mut caches: Vec<_> = which.iter().map(|&i| cache_of(pasts[i])).collect();
            let mut segments: Vec<_> =
                which.iter().zip(&mut caches).map(|(&i, cache)| Segment { tokens: &news[i], cache }).collect();
            let mut workspace = Workspace::default();
            model.forward(cpu, &mut segments, &mut workspace, &mut NoProbe).unwrap();
            let rows: usize = which.iter().map(|&i| news[i].len()).sum();
            let mut logits = vec![0.0; rows * vocab];
            model.logits(cpu, &mut workspace, 0..rows, &mut logits);
            for (&i, cache) in which.iter().zip(&caches) {
                assert_eq!(cache.len(), pasts[i] + news[i].len());
            }
            logits
        };
        let alone: Vec<f32> = (0..3).flat_map(|i| run(&[i])).collect();
        assert_eq!(run(&[0, 1, 2]), alone, "{family}");
    }
}
