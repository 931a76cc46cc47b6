//! The settings of a [`Sampler`](super::Sampler), checked before the first token.
//!
//! A setting outside its range would not fail by itself: it would give strange text. So each has a range, and a value
//! beyond it is an error that says what the range is.

use super::GenerateError;

/// How the next token is chosen. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits: below 1 bolder, above 1 more even. 0 is greedy: always the most probable token.
    pub temperature: f32,
    /// Keep the `k` most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens whose mass is at least this, in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less probable than this times the most probable one, in [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// Above 1 makes tokens that already occurred less likely, below 1 more likely; 1 changes nothing.
    pub repetition_penalty: f32,
    /// How many of the last tokens count as "already occurred"; `None`: the whole history.
    pub repetition_window: Option<usize>,
    /// Seed of the random numbers: the same seed, options and logits give the same tokens.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_window: None,
            seed: 0,
        }
    }
}

impl SamplerOptions {
    /// Checks every option.
    ///
    /// # Errors
    /// [`GenerateError::SamplerOption`] for the first that is out of its range.
    pub fn validate(&self) -> Result<(), GenerateError> {
        let check = |sound: bool, name, value: String, expected| {
            if sound { Ok(()) } else { Err(GenerateError::SamplerOption { name, value, expected }) }
        };
        let unit = 0.0..=1.0_f32;
        check(
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "temperature",
            self.temperature.to_string(),
            "a finite number of at least 0 (0 is greedy, 1 leaves the model's distribution as it is)",
        )?;
        check(
            unit.contains(&self.top_p) && self.top_p > 0.0,
            "top_p",
            self.top_p.to_string(),
            "a number above 0 and at most 1 (1 keeps all tokens)",
        )?;
        check(
            unit.contains(&self.min_p),
            "min_p",
            self.min_p.to_string(),
            "a number from 0 to 1 (0 keeps all tokens)",
        )?;
        check(
            self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
            "repetition_penalty",
            self.repetition_penalty.to_string(),
            "a finite number above 0 (1 changes nothing, 1.1 is a mild penalty)",
        )?;
        check(
            self.repetition_window != Some(0),
            "repetition_window",
            "0".to_owned(),
            "at least 1 token; leave it out to look at the whole history, or set repetition_penalty to 1",
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn options_out_of_range_are_errors() {
        let base = SamplerOptions::default;
        let temperature =
            "expected a finite number of at least 0 (0 is greedy, 1 leaves the model's distribution as it is)";
        let top_p = "expected a number above 0 and at most 1 (1 keeps all tokens)";
        let penalty = "expected a finite number above 0 (1 changes nothing, 1.1 is a mild penalty)";
        let cases = [
            (SamplerOptions { temperature: f32::NAN, ..base() }, format!("temperature is NaN: {temperature}")),
            (SamplerOptions { temperature: -0.5, ..base() }, format!("temperature is -0.5: {temperature}")),
            (SamplerOptions { temperature: f32::INFINITY, ..base() }, format!("temperature is inf: {temperature}")),
            (SamplerOptions { top_p: 0.0, ..base() }, format!("top_p is 0: {top_p}")),
            (SamplerOptions { top_p: 1.5, ..base() }, format!("top_p is 1.5: {top_p}")),
            (SamplerOptions { top_p: f32::NAN, ..base() }, format!("top_p is NaN: {top_p}")),
            (
                SamplerOptions { min_p: -0.1, ..base() },
                "min_p is -0.1: expected a number from 0 to 1 (0 keeps all tokens)".to_owned(),
            ),
            (SamplerOptions { repetition_penalty: 0.0, ..base() }, format!("repetition_penalty is 0: {penalty}")),
            (
                SamplerOptions { repetition_penalty: f32::NAN, ..base() },
                format!("repetition_penalty is NaN: {penalty}"),
            ),
            (
                SamplerOptions { repetition_window: Some(0), ..base() },
                "repetition_window is 0: expected at least 1 token; leave it out to look at the whole history, or set \
                 repetition_penalty to 1"
                    .to_owned(),
            ),
        ];
        for (options, message) in cases {
            assert_eq!(options.validate().unwrap_err().to_string(), message);
        }
    }
}
