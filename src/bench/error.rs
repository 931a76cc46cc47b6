//! What can be wrong with a measurement that was asked for.

/// Why a measurement cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A shape that is neither known nor a file.
    #[error("unknown shape {found:?}; expected {known}, a model's directory, or a config.json")]
    UnknownShape {
        /// What was given.
        found: String,
        /// Shapes that have names.
        known: String,
    },
    /// A policy that does not exist, or with a size that it cannot have.
    #[error(
        "unknown policy {found:?}; expected dense, static, random, shadow or dejavu, where shadow and dejavu may state their \
         predictor's hidden units and number format, as in shadow:256, dejavu:512/1000 (heads/neurons) or dejavu:2048:f16"
    )]
    UnknownPolicy {
        /// What was given.
        found: String,
    },
    /// Kept fractions that cannot be read.
    #[error(
        "{found:?} is no kept fraction; expected numbers over 0 and at most 1 with commas between them, or a range such as \
         1.0..0.1, which goes in steps of 0.1"
    )]
    Keep {
        /// What was given.
        found: String,
    },
    /// A number of tokens, sequences or repetitions that is 0 or not a number.
    #[error("{found:?} is no number that can be used here; expected 1 or more")]
    Count {
        /// What was given.
        found: String,
    },
    /// A context that does not hold the prompt.
    #[error(
        "a context of {context} tokens does not hold the prompt of {prompt}; use --context {prompt} or more, or a shorter --prompt"
    )]
    ContextShort {
        /// Tokens before the first decoded one.
        context: usize,
        /// Tokens of the prompt.
        prompt: usize,
    },
    /// More positions than the model has.
    #[error(
        "{shape} has {max} positions, but {context} tokens of context and {generated} decoded ones were asked for; use a smaller \
         --context, --prompt or --gen"
    )]
    Positions {
        /// The shape.
        shape: String,
        /// Its positions.
        max: usize,
        /// Tokens before the first decoded one.
        context: usize,
        /// Tokens to decode.
        generated: usize,
    },
    /// More memory than there is.
    #[error(
        "{shape} needs at least {:.1} GB of memory for this, but {:.1} GB are available; use fewer policies, a smaller --context, \
         --gen or --batch, or a smaller shape",
        *needed as f64 / 1e9,
        *available as f64 / 1e9
    )]
    Memory {
        /// The shape.
        shape: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// A sparse token was not the masked dense model.
    #[error(
        "{shape}, {policy} at kept fraction {keep}: logits of token {token} differ from those of the dense model with everything else \
         masked by {difference:.1e} of the largest logit; expected at most {limit:.0e}. Nothing was measured, because a kernel is wrong"
    )]
    Verify {
        /// The shape.
        shape: String,
        /// The policy.
        policy: String,
        /// The kept fraction.
        keep: f32,
        /// Which of the decoded tokens.
        token: usize,
        /// Largest difference, as a part of the largest logit.
        difference: f32,
        /// What is allowed.
        limit: f32,
    },
    /// A plot that could not be drawn.
    #[error("the plot cannot be drawn: {reason}")]
    Plot {
        /// What the plotter says.
        reason: String,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_to_do() {
        let memory = BenchError::Memory { shape: "opt-66b".into(), needed: 30_240_000_000, available: 8_000_000_000 };
        assert_eq!(
            memory.to_string(),
            "opt-66b needs at least 30.2 GB of memory for this, but 8.0 GB are available; use fewer policies, a smaller --context, \
             --gen or --batch, or a smaller shape"
        );
        let (shape, policy) = ("opt-125m".into(), "shadow".into());
        let verify = BenchError::Verify { shape, policy, keep: 0.5, token: 3, difference: 0.0125, limit: 2e-4 };
        assert_eq!(
            verify.to_string(),
            "opt-125m, shadow at kept fraction 0.5: logits of token 3 differ from those of the dense model with everything else \
             masked by 1.3e-2 of the largest logit; expected at most 2e-4. Nothing was measured, because a kernel is wrong"
        );
        let plot = BenchError::Plot { reason: "no room".into() };
        assert_eq!(plot.to_string(), "the plot cannot be drawn: no room");
    }
}
