//! Choosing the next token from the logits.
//!
//! The transforms and their order are those of Hugging Face `generate`, so that settings published with a model mean here
//! what they mean there:
//!
//! 1. *repetition penalty* (CTRL, Keskar et al. 2019): logits of tokens already in the context are divided by the penalty
//!    when positive, multiplied when negative;
//! 2. *temperature*: logits are divided by it; 0 means greedy and ends the list here;
//! 3. *top-k*: the k best stay;
//! 4. *top-p* (nucleus, Holtzman et al. 2019): of those, renormalised, the smallest set of best tokens whose mass reaches p;
//! 5. *min-p* (Nguyen et al. 2024): of those, tokens at least `min_p` times as probable as the best.
//!
//! Ties are decided by the lower id everywhere, so top-k keeps exactly k (Hugging Face keeps all that tie with the k-th).
//! The random numbers are ChaCha8, whose stream is fixed by its specification: a seed gives the same tokens in every
//! release. Each draw uses one 64-bit number, a greedy choice none.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::logits::{Candidate, checked_max, greedy, select_best};
use super::{GenerateError, SamplerOptions};

/// Chooses tokens by [`SamplerOptions`]. Keeps its buffers, so that after the first token nothing is allocated.
///
/// ```
/// use shadowllm::generate::{Sampler, SamplerOptions};
/// let logits = [0.1, 2.0, 0.3];
/// let mut greedy = Sampler::new(SamplerOptions::default())?;
/// assert_eq!(greedy.sample(&logits, &[])?, 1);
///
/// let options = SamplerOptions { temperature: 0.8, top_k: 2, seed: 7, ..SamplerOptions::default() };
/// let mut sampler = Sampler::new(options)?;
/// assert_ne!(sampler.sample(&logits, &[])?, 0); // not among the best two
/// # Ok::<(), shadowllm::generate::GenerateError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    rng: ChaCha8Rng,
    /// `[V]`: logits after the repetition penalty.
    scores: Vec<f32>,
    /// `[V]`: `seen[id] == round` when the penalty was already applied to `id` in this round.
    seen: Vec<u32>,
    round: u32,
    /// Tokens that may still be drawn.
    candidates: Vec<Candidate>,
    /// `[candidates]`: probability relative to that of the best token, so the best has 1.
    weights: Vec<f64>,
}

impl Sampler {
    /// A sampler at the start of its random stream.
    ///
    /// # Errors
    /// As [`SamplerOptions::validate`].
    pub fn new(options: SamplerOptions) -> Result<Self, GenerateError> {
        options.validate()?;
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&options.seed.to_le_bytes());
        Ok(Self {
            options,
            rng: ChaCha8Rng::from_seed(seed),
            scores: Vec::new(),
            seen: Vec::new(),
            round: 0,
            candidates: Vec::new(),
            weights: Vec::new(),
        })
    }

    /// The options in force.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Chooses the next token. `history` is the context so far, prompt and generated tokens, oldest first; only the
    /// repetition penalty looks at it.
    ///
    /// # Errors
    /// [`GenerateError::BadLogit`] when a logit is NaN or +infinity, [`GenerateError::NoCandidate`] when none is finite,
    /// [`GenerateError::TokenOutOfRange`] when `history` has an id not below V.
    pub fn sample(
        &mut self,
        logits: &[f32],  // [V]
        history: &[u32], // [positions]
    ) -> Result<u32, GenerateError> {
        if self.options.temperature == 0.0 {
            if self.options.repetition_penalty == 1.0 {
                return greedy(logits);
            }
            self.penalise(logits, history)?;
            return greedy(&self.scores);
        }
        self.filter(logits, history)?;
        let total: f64 = self.weights.iter().sum();
        // The 53 bits of an f64 fraction, in [0, 1).
        let unit = (self.rng.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64);
        let target = unit * total;
        let mut mass = 0.0;
        let mut drawn = self.candidates[0].id;
        for (candidate, weight) in self.candidates.iter().zip(&self.weights) {
            if *weight > 0.0 {
                drawn = candidate.id;
                mass += weight;
                if target < mass {
                    break;
                }
            }
        }
        Ok(drawn)
    }

    /// The distribution [`sample`](Self::sample) would draw from: tokens and probabilities (they sum to 1), most probable
    /// first. Draws nothing. A greedy sampler has one token of probability 1.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn distribution(
        &mut self,
        logits: &[f32],  // [V]
        history: &[u32], // [positions]
    ) -> Result<Vec<(u32, f64)>, GenerateError> {
        if self.options.temperature == 0.0 {
            return Ok(vec![(self.sample(logits, history)?, 1.0)]);
        }
        self.filter(logits, history)?;
        let total: f64 = self.weights.iter().sum();
        let mut tokens: Vec<(Candidate, f64)> =
            self.candidates.iter().zip(&self.weights).map(|(candidate, weight)| (*candidate, weight / total)).collect();
        tokens.sort_unstable_by(|left, right| left.0.best_first(&right.0));
        Ok(tokens.into_iter().map(|(candidate, probability)| (candidate.id, probability)).collect())
    }

    /// Step 1: `scores` becomes the logits with the repetition penalty applied, once per distinct token.
    fn penalise(&mut self, logits: &[f32], history: &[u32]) -> Result<(), GenerateError> {
        self.scores.clear();
        self.scores.extend_from_slice(logits);
        let penalty = self.options.repetition_penalty;
        if penalty == 1.0 {
            return Ok(());
        }
        self.round = self.round.wrapping_add(1);
        if self.seen.len() != logits.len() || self.round == 0 {
            self.seen.clear();
            self.seen.resize(logits.len(), 0);
            self.round = 1;
        }
        let window = self.options.repetition_window.unwrap_or(history.len()).min(history.len());
        for &id in &history[history.len() - window..] {
            let Some(seen) = self.seen.get_mut(id as usize) else {
                return Err(GenerateError::TokenOutOfRange { id, vocab: logits.len() });
            };
            if *seen != self.round {
                *seen = self.round;
                let score = &mut self.scores[id as usize];
                let penalised = if *score > 0.0 { *score / penalty } else { *score * penalty };
                // An extreme penalty must not turn a sound logit into an infinite one.
                *score = if score.is_finite() { penalised.clamp(f32::MIN, f32::MAX) } else { penalised };
            }
        }
        Ok(())
    }

    /// Steps 1 to 5: leaves the tokens that may be drawn in `candidates`, with their `weights`. At least one remains.
    ///
    /// Dividing by the temperature keeps the order, so it is applied when scores become weights; that way the smallest
    /// temperature cannot overflow. Candidates are by id when no filter had to rank them, else best first: their order,
    /// and with it the draw, never depends on how the selection works inside.
    fn filter(&mut self, logits: &[f32], history: &[u32]) -> Result<(), GenerateError> {
        self.penalise(logits, history)?;
        let max = f64::from(checked_max(&self.scores)?);
        let top_k = self.options.top_k;
        if top_k > 0 && top_k < self.scores.len() {
            select_best(&self.scores, top_k, &mut self.candidates);
        } else {
            self.candidates.clear();
            self.candidates.extend((0_u32..).zip(&self.scores).map(|(id, &score)| Candidate { score, id }));
        }
        let temperature = f64::from(self.options.temperature);
        let weight = |candidate: &Candidate| ((f64::from(candidate.score) - max) / temperature).exp();
        self.weights.clear();
        self.weights.extend(self.candidates.iter().map(weight));

        if self.options.top_p < 1.0 {
            let total: f64 = self.weights.iter().sum();
            let top_p = f64::from(self.options.top_p);
            // All tokens lighter than this weigh less than the tail that may go: ranking them is not needed.
            let negligible = total * (1.0 - top_p) / self.candidates.len() as f64;
            self.retain_weights(negligible);
            self.candidates.sort_unstable_by(Candidate::best_first);
            self.weights.clear();
            let mut mass = 0.0;
            for candidate in &self.candidates {
                if mass >= top_p * total {
                    break;
                }
                let weight = weight(candidate);
                self.weights.push(weight);
                mass += weight;
            }
            self.candidates.truncate(self.weights.len());
        }
        if self.options.min_p > 0.0 {
            self.retain_weights(f64::from(self.options.min_p));
        }
        Ok(())
    }

    /// Keeps the candidates whose weight is at least `least`, in their order. The best one has weight 1.
    fn retain_weights(&mut self, least: f64) {
        let mut kept = 0;
        for at in 0..self.weights.len() {
            if self.weights[at] >= least {
                self.weights[kept] = self.weights[at];
                self.candidates[kept] = self.candidates[at];
                kept += 1;
            }
        }
        self.weights.truncate(kept);
        self.candidates.truncate(kept);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampler(options: SamplerOptions) -> Sampler {
        Sampler::new(options).unwrap()
    }

    #[test]
    fn an_extreme_penalty_leaves_logits_finite() {
        let greedy = |penalty, logits: &[f32]| {
            sampler(SamplerOptions { repetition_penalty: penalty, ..SamplerOptions::default() }).sample(logits, &[0, 1])
        };
        assert_eq!(greedy(1e-38, &[-1.0, 30.0, 9.0]).unwrap(), 1);
        // Both end at the lowest number there is, and ties go to the lower id.
        assert_eq!(greedy(f32::MAX, &[-3.0, -2.0]).unwrap(), 0);
    }

    /// Hugging Face's processors one after the other, with full sorts and no shortcuts.
    fn oracle(options: &SamplerOptions, logits: &[f32], history: &[u32]) -> Vec<(u32, f64)> {
        let mut scores: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
        let window = options.repetition_window.unwrap_or(usize::MAX);
        let recent = &history[history.len().saturating_sub(window)..];
        let penalty = options.repetition_penalty;
        for (id, score) in scores.iter_mut().enumerate() {
            if recent.contains(&(id as u32)) {
                let old = *score as f32;
                *score = f64::from(if old < 0.0 { old * penalty } else { old / penalty });
            }
        }
        let mut ranked: Vec<(u32, f64)> = (0..).zip(scores).collect();
        ranked.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
        if options.top_k > 0 {
            ranked.truncate(options.top_k);
        }
        let normalise = |ranked: &mut Vec<(u32, f64)>| {
            let total: f64 = ranked.iter().map(|token| token.1).sum();
            ranked.iter_mut().for_each(|token| token.1 /= total);
        };
        let best = ranked[0].1;
        for token in &mut ranked {
            token.1 = ((token.1 - best) / f64::from(options.temperature)).exp();
        }
        normalise(&mut ranked);
        let mut mass = 0.0;
        ranked.retain(|token| {
            let keep = options.top_p == 1.0 || mass < f64::from(options.top_p);
            mass += token.1;
            keep
        });
        let least = ranked[0].1 * f64::from(options.min_p);
        ranked.retain(|token| token.1 >= least);
        normalise(&mut ranked);
        ranked
    }

    #[test]
    fn greedy_takes_the_best_and_of_ties_the_first() {
        assert_eq!(sampler(SamplerOptions::default()).sample(&[1.0, 3.0, 3.0], &[]).unwrap(), 1);
    }

    #[test]
    fn greedy_heeds_the_repetition_penalty() {
        let options = SamplerOptions { repetition_penalty: 2.0, ..SamplerOptions::default() };
        // Once per distinct token: 4/2 beats 1.5, 4/2/2 would not.
        assert_eq!(sampler(options.clone()).sample(&[4.0, 1.5], &[0, 0]).unwrap(), 0);
        assert_eq!(sampler(options.clone()).sample(&[4.0, 2.5], &[0]).unwrap(), 1);
        assert_eq!(sampler(options.clone()).sample(&[-1.0, -1.5], &[0]).unwrap(), 1);
        let windowed = SamplerOptions { repetition_window: Some(1), ..options };
        assert_eq!(sampler(windowed).sample(&[4.0, 2.5], &[0, 1]).unwrap(), 0);
    }

    #[test]
    fn a_history_of_another_vocabulary_is_an_error() {
        let options = SamplerOptions { repetition_penalty: 1.1, ..SamplerOptions::default() };
        assert_eq!(
            sampler(options).sample(&[0.0, 1.0], &[2]).unwrap_err().to_string(),
            "token id 2 is out of range: there are 2 logits, so ids go from 0 to 1"
        );
    }

    #[test]
    fn broken_logits_are_errors_at_every_temperature() {
        for temperature in [0.0, 1.0] {
            for penalty in [1.0, 1.2] {
                let options = SamplerOptions { temperature, repetition_penalty: penalty, ..SamplerOptions::default() };
                let error = sampler(options).sample(&[0.0, f32::NAN], &[0]).unwrap_err();
                assert!(matches!(error, GenerateError::BadLogit { id: 1, .. }), "{error}");
            }
        }
    }

    #[test]
    fn the_smallest_temperature_is_nearly_greedy() {
        let options = SamplerOptions { temperature: f32::from_bits(1), ..SamplerOptions::default() };
        assert_eq!(sampler(options).sample(&[1.0, 1.5, -2.0], &[]).unwrap(), 1);
    }

    #[test]
    fn masked_tokens_are_never_drawn() {
        let options = SamplerOptions { temperature: 5.0, ..SamplerOptions::default() };
        let mut sampler = sampler(options);
        for _ in 0..200 {
            let drawn = sampler.sample(&[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY], &[]).unwrap();
            assert_eq!(drawn, 1);
        }
    }

    #[test]
    fn after_the_first_token_nothing_is_allocated() {
        let options = SamplerOptions {
            temperature: 1.0,
            top_k: 20,
            top_p: 0.9,
            min_p: 0.01,
            repetition_penalty: 1.1,
            ..SamplerOptions::default()
        };
        for options in [SamplerOptions { top_k: 0, ..options.clone() }, options] {
            let mut sampler = sampler(options);
            let capacities = |sampler: &Sampler| {
                (
                    sampler.scores.capacity(),
                    sampler.seen.capacity(),
                    sampler.candidates.capacity(),
                    sampler.weights.capacity(),
                )
            };
            let logits = |step: u32| (0..500_u32).map(|id| (id * step % 97) as f32 * 0.1).collect::<Vec<f32>>();
            sampler.sample(&logits(1), &[0]).unwrap();
            let first = capacities(&sampler);
            for step in 2..50 {
                sampler.sample(&logits(step), &[0, step]).unwrap();
                assert_eq!(capacities(&sampler), first);
            }
        }
    }

    /// Pinned: a seed must give the same tokens in every release.
    #[test]
    fn the_stream_of_a_seed_is_fixed() {
        let logits: Vec<f32> = (0..16).map(|id| (id % 5) as f32 * 0.5).collect();
        let draw = |seed| {
            let mut sampler = sampler(SamplerOptions { temperature: 1.0, seed, ..SamplerOptions::default() });
            (0..12).map(|_| sampler.sample(&logits, &[]).unwrap()).collect::<Vec<u32>>()
        };
        assert_eq!(draw(0), [13, 9, 4, 3, 4, 2, 0, 4, 4, 11, 10, 7]);
        assert_ne!(draw(42), draw(0));
        assert_eq!(draw(42), draw(42));
    }

    /// Pearson's statistic of 20000 draws against the oracle. The seed is fixed, so this cannot fail by chance; the
    /// bounds are the 99.9 % quantiles of chi-square, so a sampler that is slightly wrong does not pass.
    #[test]
    fn draws_follow_the_distribution() {
        let logits = [2.0, -1.0, 0.5, 1.5, 0.0, 1.0, -3.0, 2.5];
        let base = || SamplerOptions { temperature: 1.3, seed: 11, ..SamplerOptions::default() };
        let cases = [
            (base(), 7, 24.3),
            (SamplerOptions { top_k: 4, ..base() }, 3, 16.3),
            (SamplerOptions { top_p: 0.8, ..base() }, 3, 16.3),
            (SamplerOptions { min_p: 0.3, ..base() }, 3, 16.3),
            (SamplerOptions { repetition_penalty: 1.7, ..base() }, 7, 24.3),
        ];
        let history = [7, 1, 7];
        for (options, freedom, bound) in cases {
            let expected = oracle(&options, &logits, &history);
            assert_eq!(expected.len(), freedom + 1, "{options:?}");
            let draws = 20_000;
            let mut counts = [0.0; 8];
            let mut sampler = sampler(options.clone());
            for _ in 0..draws {
                counts[sampler.sample(&logits, &history).unwrap() as usize] += 1.0;
            }
            let statistic: f64 = expected
                .iter()
                .map(|&(id, probability)| {
                    let mean = probability * f64::from(draws);
                    (counts[id as usize] - mean) * (counts[id as usize] - mean) / mean
                })
                .sum();
            let counted: f64 = expected.iter().map(|&(id, _)| counts[id as usize]).sum();
            assert_eq!(counted, f64::from(draws), "drawn outside the candidates: {options:?}");
            assert!(statistic < bound, "{statistic} {options:?}");
        }
    }

    prop_compose! {
        fn any_options()(
            temperature in 0.05_f32..3.0,
            top_k in prop_oneof![Just(0_usize), 1_usize..40],
            top_p in prop_oneof![Just(1.0_f32), 0.01_f32..1.0],
            min_p in prop_oneof![Just(0.0_f32), 0.0_f32..=1.0],
            repetition_penalty in prop_oneof![Just(1.0_f32), 0.5_f32..2.0],
            repetition_window in proptest::option::of(1_usize..20),
        ) -> SamplerOptions {
            SamplerOptions { temperature, top_k, top_p, min_p, repetition_penalty, repetition_window, seed: 0 }
        }
    }

    proptest! {
        /// Logits on a coarse grid (ties) and fine ones (none). A kept set may differ from the oracle's only where a
        /// threshold falls within rounding of a token, which the comparison of probabilities tolerates.
        #[test]
        fn every_filter_agrees_with_the_oracle(
            options in any_options(),
            logits in prop_oneof![
                proptest::collection::vec((-8_i8..8).prop_map(f32::from), 1..60),
                proptest::collection::vec(-8.0_f32..8.0, 1..60),
            ],
            history in proptest::collection::vec(0_u32..60, 0..40),
        ) {
            let history: Vec<u32> = history.into_iter().filter(|id| (*id as usize) < logits.len()).collect();
            let expected = oracle(&options, &logits, &history);
            let actual = sampler(options).distribution(&logits, &history).unwrap();
            let ids = |tokens: &[(u32, f64)]| tokens.iter().map(|token| token.0).collect::<Vec<_>>();
            prop_assert_eq!(ids(&actual), ids(&expected));
            for (left, right) in actual.iter().zip(&expected) {
                prop_assert!((left.1 - right.1).abs() < 1e-9, "{:?} {:?}", left, right);
            }
        }

        #[test]
        fn buffers_do_not_leak_between_tokens(
            options in any_options(),
            rows in proptest::collection::vec(proptest::collection::vec(-5.0_f32..5.0, 1..30), 1..5),
        ) {
            let mut reused = sampler(options.clone());
            for logits in &rows {
                prop_assert_eq!(
                    reused.distribution(logits, &[0]).unwrap(),
                    sampler(options.clone()).distribution(logits, &[0]).unwrap()
                );
            }
        }
    }
}
