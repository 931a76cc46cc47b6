//! The property that everything rests on, checked on the weights that are measured: a sparse token is the dense model with the contexts
//! of dropped heads and the inners of dropped neurons set to zero.
//!
//! The two sides have little in common: gather kernels over packed records on the one, the dense forward pass over plain weights with
//! a probe that sets to zero on the other.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde::Serialize;

use super::BenchError;
use super::protocol::{Plan, prompt_tokens};
use super::watch::Watch;
use crate::generate::{Engine, Session, SessionOptions, Sparsity};
use crate::kernels::argmax;
use crate::model::{Probe, Rows};
use crate::sparsity::{self, Predictor, Refresh};
use crate::{Error, Result};

/// Tokens of the prompt: so few that bf16 products are exact and both sides start from the same cache.
const PROMPT: usize = 16;
/// Tokens decoded by every policy.
const TOKENS: usize = 4;
/// Largest difference of two logits, as a part of the largest logit: both sides round sums of thousands of products in `f32`, in
/// different orders, layer after layer.
const LIMIT: f32 = 2e-4;

/// What was found for one row.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Verified {
    pub(super) shape: String,
    pub(super) policy: String,
    pub(super) keep: f32,
    /// Tokens compared.
    pub(super) tokens: usize,
    /// Largest difference of two logits, as a part of the largest logit.
    pub(super) largest_difference: f32,
}

/// Sets to zero what a plan does not keep, in passes over one token.
struct Masked<'a> {
    plan: &'a sparsity::Plan,
    heads: usize,
    neurons: usize,
}

fn keep_only(values: &mut [f32], units: usize, kept: &[u32]) {
    let width = values.len() / units;
    for (unit, values) in (0..).zip(values.chunks_exact_mut(width)) {
        if kept.binary_search(&unit).is_err() {
            values.fill(0.0);
        }
    }
}

impl Probe for Masked<'_> {
    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        keep_only(values, self.heads, &self.plan.layers[rows.layer].heads);
    }

    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        keep_only(values, self.neurons, &self.plan.layers[rows.layer].neurons);
    }
}

/// Largest difference between `logits` and those of the masked dense model after `token`, as a part of the largest logit.
fn difference(logits: &[f32], dense: &mut Session, token: u32, plan: &sparsity::Plan) -> Result<f32> {
    let (heads, neurons) = (dense.engine().config().heads, dense.engine().config().ffn);
    let mut probe = Masked { plan, heads, neurons };
    let expected = dense.prefill_with(&[token], &mut probe, &mut |_| ControlFlow::Continue(()))?;
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |largest, v| largest.max(v.abs()));
    let differences = logits.iter().zip(expected).map(|(a, b)| (a - b).abs() / largest);
    // NaN is no agreement.
    Ok(differences.fold(0.0, |most, d| if d.is_nan() { f32::INFINITY } else { most.max(d) }))
}

/// Checks every row of a plan.
///
/// # Errors
/// [`BenchError::Verify`] for the first token that is not what it should be; [`Error::Interrupted`].
pub(super) fn verify(
    name: &str,
    plain: &Engine,
    packed: &Engine,
    plan: &Plan<'_>,
    predictors: &[Option<Arc<Predictor>>],
    watch: &Watch,
) -> Result<Vec<Verified>> {
    let (config, cpu) = (plain.config(), plain.cpu());
    let prompt = PROMPT.min(config.max_positions.saturating_sub(TOKENS)).max(1);
    let prompt = prompt_tokens(0..prompt, config.vocab);
    let start = |engine: &Engine| -> Result<Session> {
        let mut session = engine.session(SessionOptions { context: Some(prompt.len() + TOKENS) })?;
        session.prefill(&prompt)?;
        Ok(session)
    };
    let Some(records) = packed.packed() else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for (&(spec, keep), predictor) in plan.rows.iter().zip(predictors) {
        watch.say(&format!("{name}: verifying {} at {keep}", spec.name));
        let (mut sparse, mut dense) = (start(packed)?, start(plain)?);
        let policy = spec.policy(predictor.as_ref(), keep, plan.seed, config, cpu)?;
        let sparsity = Sparsity::new(Arc::clone(records), policy, Refresh::EveryToken, config, plan.sparse);
        sparse.set_sparsity(Some(sparsity))?;
        let mut most = 0.0_f32;
        for token in 0..TOKENS {
            if !watch.go_on() {
                return Err(Error::Interrupted);
            }
            // What the model itself would say next.
            let next = argmax(sparse.logits()) as u32;
            sparse.step(next)?;
            let Some(kept) = sparse.sparsity().map(Sparsity::plan) else { continue };
            let difference = difference(sparse.logits(), &mut dense, next, kept)?;
            if difference > LIMIT {
                let (shape, policy) = (name.to_owned(), spec.name.clone());
                return Err(BenchError::Verify { shape, policy, keep, token, difference, limit: LIMIT }.into());
            }
            most = most.max(difference);
        }
        let (shape, policy) = (name.to_owned(), spec.name.clone());
        all.push(Verified { shape, policy, keep, tokens: TOKENS, largest_difference: most });
    }
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::bench::policy::PolicySpec;
    use crate::generate::EngineOptions;
    use crate::model::SparseOptions;
    use crate::model::random::random_checkpoint;
    use shadowllm_weights::{DType, ModelConfig, PackedCheckpoint};

    /// A step with half of the units, and how far it is from the dense model masked by a plan that `change` has changed.
    fn distance(json: &[u8], change: impl Fn(&mut sparsity::Plan)) -> f32 {
        let checkpoint = random_checkpoint(ModelConfig::from_json(json).unwrap(), DType::BF16, 5).unwrap();
        let plain = Engine::load(&checkpoint, EngineOptions::default()).unwrap();
        let packed = plain.over(&PackedCheckpoint::in_memory(&checkpoint, &()).unwrap()).unwrap();
        let (config, cpu) = (plain.config(), plain.cpu());
        let [mut sparse, mut dense] = [&packed, &plain].map(|engine| {
            let mut session = engine.session(SessionOptions::default()).unwrap();
            session.prefill(&[3, 1, 4, 1, 5]).unwrap();
            session
        });
        let policy = "random".parse::<PolicySpec>().unwrap().policy(None, 0.5, 1, config, cpu).unwrap();
        let (records, options) = (Arc::clone(packed.packed().unwrap()), SparseOptions::default());
        let sparsity = Sparsity::new(records, policy, Refresh::EveryToken, config, options);
        sparse.set_sparsity(Some(sparsity)).unwrap();
        sparse.step(7).unwrap();
        let mut plan = sparse.sparsity().unwrap().plan().clone();
        change(&mut plan);
        difference(sparse.logits(), &mut dense, 7, &plan).unwrap()
    }

    #[test]
    fn a_plan_that_was_not_followed_is_noticed() {
        let opt = br#"{"model_type": "opt", "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "ffn_dim": 64,
            "vocab_size": 50, "max_position_embeddings": 16, "word_embed_proj_dim": 32}"#;
        let llama = br#"{"model_type": "llama", "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 16}"#;
        for json in [&opt[..], &llama[..]] {
            assert!(distance(json, |_| {}) <= LIMIT);
            // A head too few, a neuron too few, a neuron that is another.
            assert!(distance(json, |plan| plan.layers[1].heads.truncate(1)) > LIMIT);
            assert!(distance(json, |plan| plan.layers[2].neurons.clear()) > LIMIT);
            let shift = |plan: &mut sparsity::Plan| {
                plan.layers[1].neurons.iter_mut().for_each(|neuron| *neuron = (*neuron + 1).min(63));
                plan.layers[1].neurons.dedup();
            };
            assert!(distance(json, shift) > LIMIT);
        }
    }
}
