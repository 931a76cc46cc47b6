//! What a user may ask for.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Parser;
use shadowllm_weights::DType;

use super::BenchError;
use super::policy::PolicySpec;
use super::shape::ShapeName;
use crate::cli::options::CpuArgs;

/// Measures how fast this machine decodes at the shapes of published models, dense and with only a part of the heads and neurons,
/// beside what the bytes allow.
///
/// Needs no model: weights are random, in memory. Every policy is run token by token in turn with the dense model, so that what
/// else the machine does hits all rows alike, and times are medians. Ctrl-C ends the measurement and reports what there is.
#[derive(Debug, Parser)]
#[command(name = "shadow-bench", version, max_term_width = 100)]
pub(super) struct Options {
    /// Shapes, with commas between them: opt-125m, opt-1.3b, opt-2.7b, opt-6.7b, opt-13b, opt-30b, opt-66b (`opt-` may be left
    /// out), llama-2-7b, llama-3-8b, llama-3.2-1b, smollm2-135m; a model's directory, whose weights are taken; or a config.json.
    /// Layers of a model that is larger than memory share weights.
    #[arg(long, value_name = "SHAPE", value_delimiter = ',', default_value = "opt-1.3b")]
    pub(super) shape: Vec<ShapeName>,

    /// Type of random weights: f32, f16, bf16 or int8.
    #[arg(long, value_name = "TYPE", default_value_t = DType::BF16)]
    pub(super) dtype: DType,

    #[command(flatten)]
    pub(super) cpu: CpuArgs,

    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = count)]
    pub(super) prompt: usize,

    /// Tokens that are decoded, in every repetition.
    #[arg(long = "gen", value_name = "N", default_value_t = 128, value_parser = count)]
    pub(super) generate: usize,

    /// Tokens in front of the first one that is decoded, with commas between several [default: those of the prompt].
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = count)]
    pub(super) context: Vec<usize>,

    /// Sequences that are decoded together, with commas between several.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = count)]
    pub(super) batch: Vec<usize>,

    /// Who chooses the heads and neurons: dense (always measured: what the others are compared with), static, random, shadow and
    /// dejavu, with commas between them. Predictors are random and really run: shadow with 256 hidden units in int8, dejavu with
    /// 512 for heads and 1000 for neurons in f16; dejavu:2048 and shadow:128/256:f32 are others.
    #[arg(long, value_name = "POLICY", value_delimiter = ',', default_value = "dense,static,shadow,dejavu")]
    pub(super) policy: Vec<PolicySpec>,

    /// Fractions of the heads and of the neurons to keep: with commas between them, or 1.0..0.1 for steps of 0.1.
    #[arg(long, value_name = "FRACTIONS", default_value = "0.5", allow_hyphen_values = true)]
    pub(super) keep: KeepList,

    /// Repetitions of the whole protocol.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = count)]
    pub(super) repetitions: usize,

    /// Tokens decoded by every row before anything is measured.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(super) warm_up: usize,

    /// Do not read the second half of neurons that ReLU makes 0. Exact, but what random weights save by it says nothing about real
    /// ones, so it is off.
    #[arg(long)]
    pub(super) relu_skip: bool,

    /// Seed of weights, predictors and random plans.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,

    /// First check, on the same weights, that every policy's tokens are those of the dense model with all other units set to zero.
    #[arg(long)]
    pub(super) verify: bool,

    /// Print one JSON document in place of the table.
    #[arg(long)]
    pub(super) json: bool,

    /// Write the rows as CSV into a file, or, without a name, print them in place of the table.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-", conflicts_with = "json")]
    pub(super) csv: Option<PathBuf>,

    /// Draw time against the kept fraction with the ideal line, and time against the size of the model if there are several, as SVG.
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,

    /// Keep the results with facts about this machine and the command line, in DIR/MACHINE/DATE.json.
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "benches/results")]
    pub(super) record: Option<PathBuf>,
}

fn count(text: &str) -> Result<usize, BenchError> {
    text.trim().parse().ok().filter(|&n| n > 0).ok_or_else(|| BenchError::Count { found: text.to_owned() })
}

/// Kept fractions, each once, in the order given.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct KeepList(pub(super) Vec<f32>);

/// Steps of a range are of this many parts of one.
const STEPS: f32 = 10.0;

impl FromStr for KeepList {
    type Err = BenchError;

    fn from_str(text: &str) -> Result<Self, BenchError> {
        let wrong = || BenchError::Keep { found: text.to_owned() };
        let fraction = |text: &str| {
            let value = text.trim().parse::<f32>().ok();
            value.filter(|&value| value > 0.0 && value <= 1.0).ok_or_else(wrong)
        };
        let mut all: Vec<f32> = Vec::new();
        for part in text.split(',') {
            match part.split_once("..") {
                None => all.push(fraction(part)?),
                Some((from, to)) => {
                    let (from, to) = (fraction(from)?, fraction(to)?);
                    let steps = ((from - to).abs() * STEPS + 1e-3).floor() as usize;
                    let sign = if to < from { -1.0 } else { 1.0 };
                    // Rounded, so that 0.3 is the number that a person writes.
                    all.extend((0..=steps).map(|i| (1e4 * (from + sign * i as f32 / STEPS)).round() / 1e4));
                }
            }
        }
        let mut seen = Vec::new();
        all.retain(|keep| {
            !seen.contains(keep) && {
                seen.push(*keep);
                true
            }
        });
        Ok(KeepList(all))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn clap_has_no_complaints() {
        Options::command().debug_assert();
    }

    #[test]
    fn kept_fractions() {
        for (text, expected) in [
            ("0.5", &[0.5][..]),
            ("1.0..0.1", &[1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
            ("0.1..0.35,0.25, 0.2", &[0.1, 0.2, 0.3, 0.25]),
            ("1..1", &[1.0]),
        ] {
            assert_eq!(text.parse::<KeepList>().unwrap(), KeepList(expected.to_vec()), "{text}");
        }
        for text in ["", "0", "1.1", "-0.5", "nan", "0.5,", "0.5..", "..", "a..0.1", "0.1..2"] {
            let error = text.parse::<KeepList>().unwrap_err().to_string();
            assert_eq!(
                error,
                format!(
                    "{text:?} is no kept fraction; expected numbers over 0 and at most 1 with commas between them, or a range such as \
                     1.0..0.1, which goes in steps of 0.1"
                )
            );
        }
    }

    #[test]
    fn counts() {
        assert_eq!(count(" 3").unwrap(), 3);
        for text in ["0", "-1", "x", ""] {
            let error = count(text).unwrap_err().to_string();
            assert_eq!(error, format!("{text:?} is no number that can be used here; expected 1 or more"));
        }
    }
}
