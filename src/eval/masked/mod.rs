//! Quality under a policy, at the speed of a prompt.
//!
//! A sparse token is, to rounding, the dense model with the contexts of dropped heads and the inners of dropped neurons set to zero;
//! that is what sparse decoding promises and what its tests hold it to. So the quality of a policy need not be measured token by
//! token: a known text runs through the dense forward pass, many tokens at once, a probe lets the policy decide for every one of
//! them where it would decide while decoding, and sets to zero what is dropped. The policies, predictors and selections are those
//! of decoding; only the products are done together.
//!
//! ```text
//! Chooser --a policy per text--> MaskedText (key/value cache, policy)
//!                                     |
//! tokens of many texts --Masked::run--+--> forward pass with MaskProbe --> logits of the rows that are wanted
//! ```
//!
//! Two rules say which token decides ([`Decision`]); only one of them could be followed while decoding.

mod oracle;
mod probe;
mod run;
mod source;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use run::{EachLogits, EachPass, Job, Masked, MaskedText};
pub use source::PolicySource;

use crate::eval::EvalError;
use crate::sparsity::{Budget, GateSkip, Policy};
use crate::{Error, Result};

/// Which token decides on the units of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// Each token on its own: what decoding does.
    #[default]
    Causal,
    /// The last token of a text on those of all its tokens: the rule of the ShadowLLM paper. The first tokens profit from the last,
    /// so no decoder can follow it; for comparison only.
    Sequence,
}

impl Decision {
    /// Name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Decision::Causal => "causal",
            Decision::Sequence => "sequence",
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Decision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Decision::Causal, Decision::Sequence]
            .into_iter()
            .find(|decision| decision.name() == name)
            .ok_or_else(|| EvalError::UnknownDecision { found: name.to_owned() }.into())
    }
}

/// By what the oracle ranks units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Importance {
    /// What a unit adds to the token's residual stream, by the sizes of the dense model: the squared norm of a head's context,
    /// `abs(Z) * norm(second FFN column)` of a neuron.
    #[default]
    Magnitude,
}

impl Importance {
    /// Name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Importance::Magnitude => "magnitude",
        }
    }
}

impl fmt::Display for Importance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Importance {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Importance::Magnitude]
            .into_iter()
            .find(|importance| importance.name() == name)
            .ok_or_else(|| EvalError::UnknownImportance { found: name.to_owned() }.into())
    }
}

/// Makes the policy of a text, which is told apart by its number.
pub type PolicyMaker = Box<dyn Fn(u64) -> Result<Box<dyn Policy>> + Send + Sync>;

/// Who chooses the units.
pub enum Chooser {
    /// A policy as in decoding, made anew for every text.
    Policy(PolicyMaker),
    /// The best units of every token by what the dense model computes for it. No policy can know that beforehand; it is the bound
    /// that predictors are held against. Costs a dense pass more.
    Oracle {
        /// By what units are ranked.
        importance: Importance,
        /// How many are kept.
        budget: Budget,
    },
}

impl fmt::Debug for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Chooser::Policy(_) => f.write_str("Policy(..)"),
            Chooser::Oracle { importance, budget } => {
                f.debug_struct("Oracle").field("importance", importance).field("budget", budget).finish()
            }
        }
    }
}

/// How texts are masked, whoever chooses.
#[derive(Clone, Debug, Default)]
pub struct Masking {
    /// Which token decides.
    pub decision: Decision,
    /// Tokens at the start of each text that keep everything, like a prompt.
    pub dense_prefix: usize,
    /// Also skips kept neurons whose gate is under its threshold.
    pub gate: Option<Arc<GateSkip>>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for decision in [Decision::Causal, Decision::Sequence] {
            assert_eq!(decision.to_string().parse::<Decision>().unwrap(), decision);
        }
        assert_eq!(Importance::Magnitude.to_string().parse::<Importance>().unwrap(), Importance::Magnitude);
        assert_eq!(
            "last".parse::<Decision>().unwrap_err().to_string(),
            "unknown decision \"last\"; expected causal (each token on its own) or sequence (the last token for the whole text)"
        );
        assert_eq!(
            "size".parse::<Importance>().unwrap_err().to_string(),
            "unknown importance \"size\"; expected magnitude"
        );
    }
}
