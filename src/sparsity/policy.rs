//! Who makes plans, and when.
//!
//! The forward pass knows nothing of predictors or files. It asks a policy at which places on a token's path it wants to be
//! heard, and calls it there; the policy writes into the plan for layers that are still to come. So each way to choose units
//! is one file, and a new one changes nothing else.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Budget, MaskRows, Plan, Predictor};
use crate::kernels::Cpu;
use crate::{Error, Result};

/// A place on a token's path where a policy decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Station {
    /// Once for the whole sequence, before its first sparse token: the plan does not depend on the token.
    Once,
    /// Before layer 0, whenever [`Refresh`] says so.
    Start,
    /// After this layer, whenever [`Refresh`] says so.
    AfterLayer(usize),
}

impl Station {
    /// The first layer that a decision here may be about.
    pub fn next_layer(self) -> usize {
        match self {
            Station::Once | Station::Start => 0,
            Station::AfterLayer(layer) => layer + 1,
        }
    }
}

/// What a policy may look at.
#[derive(Clone, Copy, Debug)]
pub struct PolicyInput<'a> {
    /// Where on the token's path this is.
    pub station: Station,
    /// Position of the token in its sequence, from 0.
    pub position: usize,
    /// `[d]`: residual stream leaving the station's layer. Empty at [`Station::Once`] and [`Station::Start`].
    pub residual: &'a [f32],
    /// `[H, d_h]`: contexts of the station's layer, zero for heads that were dropped. Empty at [`Station::Once`] and
    /// [`Station::Start`].
    pub contexts: &'a [f32],
    /// What it may compute with.
    pub cpu: &'a Cpu,
}

/// What a policy may look at when it decides for consecutive tokens of a sequence at once.
#[derive(Clone, Copy, Debug)]
pub struct RowsInput<'a> {
    /// Where on the path of each token this is; not [`Station::Once`].
    pub station: Station,
    /// Position of the first token in its sequence, from 0.
    pub position: usize,
    /// Number of tokens.
    pub rows: usize,
    /// `[rows, d]`, as in [`PolicyInput`].
    pub residual: &'a [f32],
    /// `[rows, H, d_h]`, as in [`PolicyInput`].
    pub contexts: &'a [f32],
    /// What it may compute with.
    pub cpu: &'a Cpu,
}

impl<'a> RowsInput<'a> {
    /// One token of it.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> PolicyInput<'a> {
        let part = |values: &'a [f32]| {
            let width = values.len() / self.rows;
            &values[row * width..][..width]
        };
        PolicyInput {
            station: self.station,
            position: self.position + row,
            residual: part(self.residual),
            contexts: part(self.contexts),
            cpu: self.cpu,
        }
    }
}

/// Chooses the units of each layer.
///
/// One policy serves one sequence: it may keep state from decision to decision. The plan it is given is dense at the first
/// call and its own last plan after that. Whatever the budget, layer 0 stays whole.
pub trait Policy: Send {
    /// Name on the command line and in reports.
    fn name(&self) -> &'static str;

    /// Where [`Policy::decide`] is called, in the order of a token's path. Empty: never, every token is dense.
    fn stations(&self) -> &[Station];

    /// Decides at `input.station`. It may change the plan of layers behind the station only; the others are already computed.
    ///
    /// # Errors
    /// Whatever keeps it from deciding. The plan is then as before.
    fn decide(&mut self, input: PolicyInput<'_>, plan: &mut Plan) -> Result<()>;

    /// Decides for many tokens of a sequence at once, as [`Policy::decide`] would for one after the other: what evaluation does,
    /// where a text is known and runs layer by layer. Each row of `masks` is the plan of its token as far as it was decided.
    ///
    /// # Errors
    /// As [`Policy::decide`], and those of [`Plan::validate_layer`].
    fn decide_rows(&mut self, input: RowsInput<'_>, masks: &mut MaskRows<'_>) -> Result<()> {
        let units = masks.units();
        let mut plan = Plan::default();
        for (at, mut row) in masks.rows().enumerate() {
            row.read(&mut plan);
            self.decide(input.row(at), &mut plan)?;
            for layer in input.station.next_layer()..units.layers {
                plan.validate_layer(layer, units)?;
                row.set(layer, &plan.layers[layer]);
            }
        }
        Ok(())
    }

    /// The predictor and the budget whose selection its plans are, if they are nothing else: a device that has both makes the same
    /// plans by itself.
    fn predicted(&self) -> Option<(&Arc<Predictor>, &Budget)> {
        None
    }

    /// The same policy, with all that it remembers, for another sequence that begins with the tokens seen so far.
    fn fork(&self) -> Box<dyn Policy>;

    /// Bytes of weights that the decisions of one token read, all stations together.
    fn bytes_per_decision(&self) -> u64;
}

/// How often a policy is asked again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Refresh {
    /// For every token. A plan that is held for several tokens costs quality fast.
    #[default]
    EveryToken,
    /// For one token in this many, beginning with the first that is decoded; 0 is as 1.
    Every(usize),
    /// Once, for the last token of the prompt.
    Prompt,
}

impl Refresh {
    /// Whether a new plan is due, `tokens` after the last one was made (0: there is none yet).
    pub fn is_due(self, tokens: usize) -> bool {
        tokens == 0
            || match self {
                Refresh::EveryToken => true,
                Refresh::Every(n) => tokens >= n,
                Refresh::Prompt => false,
            }
    }
}

impl fmt::Display for Refresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refresh::EveryToken => f.write_str("1"),
            Refresh::Every(n) => n.fmt(f),
            Refresh::Prompt => f.write_str("prompt"),
        }
    }
}

impl FromStr for Refresh {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match (text, text.parse()) {
            ("prompt", _) => Ok(Refresh::Prompt),
            (_, Ok(1)) => Ok(Refresh::EveryToken),
            (_, Ok(n)) if n > 0 => Ok(Refresh::Every(n)),
            _ => Err(Error::UnknownRefresh { found: text.to_owned() }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn refresh_is_a_number_of_tokens_or_prompt() {
        for (text, refresh, due) in [
            ("1", Refresh::EveryToken, [true, true, true, true]),
            ("2", Refresh::Every(2), [true, false, true, true]),
            ("3", Refresh::Every(3), [true, false, false, true]),
            ("prompt", Refresh::Prompt, [true, false, false, false]),
        ] {
            assert_eq!(text.parse::<Refresh>().unwrap(), refresh);
            assert_eq!(refresh.to_string(), text);
            assert_eq!([0, 1, 2, 3].map(|tokens| refresh.is_due(tokens)), due);
        }
        for text in ["0", "-1", "", "never"] {
            let expected =
                format!("unknown refresh {text:?}; expected a number of tokens (1 decides for every token) or prompt");
            assert_eq!(text.parse::<Refresh>().unwrap_err().to_string(), expected);
        }
    }
}
