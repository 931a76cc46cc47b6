//! Time of a decoded token under a policy, beside the dense model over the same packed weights.
//!
//! Both decode the same tokens of the text after the same prompt, in turn, several times: what else the machine does in the
//! meantime falls on both. Figures are medians over all tokens.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use super::results::{Speed, rounded};
use crate::generate::{Engine, Session, SessionOptions, Sparsity};
use crate::model::SparseOptions;
use crate::sparsity::{Dense, GateSkip, Policy, Refresh};
use crate::{Error, Result};

/// Most tokens of the prompt, which is a half of what is read if that is less.
const PROMPT: usize = 128;
/// Most tokens that are decoded in a turn.
const STEPS: usize = 32;
/// Turns of each, after one that warms up.
const TURNS: usize = 5;

/// Tokens of prompt and turn in a text of `tokens`.
fn shape(tokens: usize) -> (usize, usize) {
    let prompt = PROMPT.min(tokens / 2);
    (prompt, STEPS.min(tokens - prompt))
}

/// Times and bytes of the steps of one session.
struct Runner {
    session: Session,
    prompt: usize,
    seconds: Vec<f64>,
    deciding: Vec<f64>,
    bytes: u64,
}

impl Runner {
    fn new(
        engine: &Engine,
        prompt: &[u32],
        policy: Box<dyn Policy>,
        options: SparseOptions,
        gate: Option<&Arc<GateSkip>>,
    ) -> Result<Runner> {
        // An engine over plain weights has no records; the caller has packed them.
        let packed = engine.packed().ok_or(Error::NotPacked)?;
        let mut session = engine.session(SessionOptions::default())?;
        session.prefill(prompt)?;
        let sparsity = Sparsity::new(Arc::clone(packed), policy, Refresh::EveryToken, engine.config(), options);
        let sparsity = match gate {
            Some(gate) => sparsity.with_gate_skip(Arc::clone(gate)),
            None => sparsity,
        };
        session.set_sparsity(Some(sparsity))?;
        Ok(Runner { session, prompt: prompt.len(), seconds: Vec::new(), deciding: Vec::new(), bytes: 0 })
    }

    /// Decodes `tokens` behind the prompt.
    fn turn(&mut self, tokens: &[u32], counts: bool) -> Result<()> {
        self.session.truncate(self.prompt);
        for &token in tokens {
            let start = Instant::now();
            self.session.step(token)?;
            let seconds = start.elapsed().as_secs_f64();
            if counts {
                self.seconds.push(seconds);
                let deciding = self.session.sparsity().map_or(0.0, |s| s.decision_time().as_secs_f64());
                self.deciding.push(deciding);
                self.bytes += self.session.step_bytes();
            }
        }
        Ok(())
    }

    fn bytes_per_token(&self) -> f64 {
        self.bytes as f64 / self.seconds.len().max(1) as f64
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Times `policy` on a text, as much of which as fits into the context and is needed. `progress(turns done, turns)` may stop the
/// work.
pub(super) fn speed(
    engine: &Engine,
    text: &[u32],
    policy: Box<dyn Policy>,
    gate: Option<&Arc<GateSkip>>,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Speed> {
    let (prompt, steps) = shape(text.len().min(engine.config().max_positions));
    let (prompt, tokens) = (&text[..prompt], &text[prompt..prompt + steps]);
    // The dense model reads all that it has, so ReLU skip counts for the policy.
    let all = SparseOptions { relu_skip: false, ..SparseOptions::default() };
    let mut dense = Runner::new(engine, prompt, Box::new(Dense), all, None)?;
    let mut sparse = Runner::new(engine, prompt, policy, SparseOptions::default(), gate)?;
    for turn in 0..=TURNS {
        for runner in [&mut dense, &mut sparse] {
            runner.turn(tokens, turn > 0)?;
        }
        if progress(turn, TURNS).is_break() {
            return Err(Error::Interrupted);
        }
    }
    let (bytes_per_token, dense_bytes_per_token) = (sparse.bytes_per_token(), dense.bytes_per_token());
    let tokens = sparse.seconds.len();
    let [ms, dense_ms, deciding] = [sparse.seconds, dense.seconds, sparse.deciding].map(|values| 1e3 * median(values));
    Ok(Speed {
        ms_per_token: rounded(ms),
        dense_ms_per_token: rounded(dense_ms),
        speedup: rounded(dense_ms / ms),
        decision_ms_per_token: rounded(deciding),
        bytes_per_token: rounded(bytes_per_token),
        dense_bytes_per_token: rounded(dense_bytes_per_token),
        tokens,
    })
}
