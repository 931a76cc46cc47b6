//! Rotary scaling: from what GGUF stores to what `config.json` says.
//!
//! GGUF keeps linear scaling as a factor, but of Llama 3.1's scaling only the result: one divisor per frequency, in the
//! tensor `rope_freqs.weight`. The parameters that made them are found by trial among those in use, and accepted only if they
//! reproduce every stored divisor; a model whose scaling is something else is refused rather than imported wrongly.

use serde_json::{Value, json};

use super::config::shortest;
use super::problem::{GgufProblem, GgufResult};
use super::reader::Gguf;

/// The divisors of Llama 3.1's scaling.
pub(crate) const FREQS_TENSOR: &str = "rope_freqs.weight";

/// Largest relative difference between a stored divisor and the recomputed one. The divisors were computed in `f32`, where
/// the ramp between the two regimes loses a few units in the last place.
const TOLERANCE: f64 = 1e-5;

/// The `rope_scaling` entry of `config.json`; `null` where there is none.
///
/// # Errors
/// [`GgufProblem::Unsupported`] for scaling without an equivalent, and wrong types of keys.
pub(crate) fn scaling(gguf: &Gguf, architecture: &str, theta: f32, head_dim: usize) -> GgufResult<Value> {
    let key = |leaf: &str| format!("{architecture}.rope.{leaf}");
    let factor = match gguf.opt_f32(&key("scaling.factor"))? {
        Some(factor) => Some(factor),
        None => gguf.opt_f32(&key("scale_linear"))?,
    };
    let kind = gguf.opt_str(&key("scaling.type"))?.unwrap_or("linear");
    let scaling = match (kind, factor) {
        ("none", _) | ("linear", None | Some(0.0 | 1.0)) => Value::Null,
        ("linear", Some(factor)) if factor > 0.0 => {
            json!({ "rope_type": "linear", "type": "linear", "factor": shortest(factor) })
        }
        ("linear", Some(factor)) => {
            return Err(GgufProblem::KeyValue {
                key: key("scaling.factor"),
                found: factor.to_string(),
                expected: "a positive number".to_owned(),
            });
        }
        (kind, _) => {
            return Err(GgufProblem::Unsupported { what: format!("the model uses rope scaling of type {kind:?}") });
        }
    };
    let Some(tensor) = gguf.tensors.iter().find(|t| t.name == FREQS_TENSOR) else {
        return Ok(scaling);
    };
    if !scaling.is_null() {
        return Err(GgufProblem::Unsupported {
            what: format!("the model has both rope scaling of type {kind:?} and divisors in {FREQS_TENSOR}"),
        });
    }
    if tensor.shape != [head_dim / 2] {
        return Err(GgufProblem::TensorShape {
            name: FREQS_TENSOR.to_owned(),
            found: tensor.shape.clone(),
            expected: vec![head_dim / 2],
        });
    }
    let mut divisors = vec![0.0; tensor.len()];
    tensor.quant.dequantize(tensor.data, &mut divisors);
    if divisors.iter().all(|&d| d == 1.0) {
        return Ok(Value::Null);
    }
    let declared = gguf.opt_int(&key("scaling.original_context_length"))?;
    let candidates = declared.into_iter().chain((10..=17).map(|bits| 1 << bits));
    let found = candidates
        .map(|original| Llama3 {
            factor: divisors.iter().copied().fold(1.0, f32::max),
            low: 1.0,
            high: 4.0,
            original: original as f64,
        })
        .find(|candidate| candidate.reproduces(&divisors, theta));
    let Some(found) = found else {
        return Err(GgufProblem::Unsupported {
            what: format!("the rope divisors in {FREQS_TENSOR} are not those of Llama 3.1's scaling"),
        });
    };
    Ok(json!({
        "factor": shortest(found.factor),
        "high_freq_factor": found.high,
        "low_freq_factor": found.low,
        "original_max_position_embeddings": found.original as u64,
        "rope_type": "llama3",
    }))
}

/// Parameters of Llama 3.1's scaling, as in transformers' `modeling_rope_utils`.
struct Llama3 {
    factor: f32,
    low: f64,
    high: f64,
    original: f64,
}

impl Llama3 {
    /// The divisor of frequency `i` of `count`.
    fn divisor(&self, theta: f32, i: usize, count: usize) -> f64 {
        let frequency = f64::from(theta).powf(-(i as f64) / count as f64);
        let turns = self.original * frequency / std::f64::consts::TAU;
        let factor = f64::from(self.factor);
        if turns > self.high {
            1.0
        } else if turns < self.low {
            factor
        } else {
            let smooth = (turns - self.low) / (self.high - self.low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    }

    fn reproduces(&self, divisors: &[f32], theta: f32) -> bool {
        divisors.iter().enumerate().all(|(i, &stored)| {
            let made = self.divisor(theta, i, divisors.len());
            (made - f64::from(stored)).abs() <= TOLERANCE * made
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing::{Builder, Meta};
    use super::*;

    fn model(metadata: &[(&str, Meta)], divisors: Option<&[f32]>) -> Vec<u8> {
        let mut builder = Builder::new();
        for (key, value) in metadata {
            builder.meta(key, value.clone());
        }
        if let Some(divisors) = divisors {
            builder.f32_tensor(FREQS_TENSOR, &[divisors.len()], divisors);
        }
        builder.build()
    }

    /// Divisors of Llama-3.2-1B (theta 500000, d_h 64, factor 32), as its converter computes them in `f32`.
    fn llama_3_2_1b() -> Vec<f32> {
        (0..32)
            .map(|i| {
                let frequency = 1.0 / 500_000f32.powf(2.0 * i as f32 / 64.0);
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                if wavelength < 8192.0 / 4.0 {
                    1.0
                } else if wavelength > 8192.0 {
                    32.0
                } else {
                    let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                    1.0 / ((1.0 - smooth) / 32.0 + smooth)
                }
            })
            .collect()
    }

    #[test]
    fn llama3_parameters_are_recovered() {
        let divisors = llama_3_2_1b();
        assert!(divisors.iter().any(|d| *d > 1.0 && *d < 32.0), "the ramp is part of the test");
        let bytes = model(&[], Some(&divisors));
        let scaling = scaling(&Gguf::parse(&bytes).unwrap(), "llama", 500_000.0, 64).unwrap();
        assert_eq!(
            scaling,
            json!({ "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 8192, "rope_type": "llama3" })
        );
    }

    #[test]
    fn everything_else() {
        let text = |t: &str| Meta::String(t.to_owned());
        let mut bent = llama_3_2_1b();
        bent[20] *= 1.001;
        struct Case {
            metadata: Vec<(&'static str, Meta)>,
            divisors: Option<Vec<f32>>,
            expected: Result<Value, &'static str>,
        }
        let linear = |factor: f64| json!({ "rope_type": "linear", "type": "linear", "factor": factor });
        let cases = [
            Case { metadata: vec![], divisors: None, expected: Ok(Value::Null) },
            Case {
                metadata: vec![("llama.rope.scaling.type", text("none"))],
                divisors: None,
                expected: Ok(Value::Null),
            },
            Case { metadata: vec![], divisors: Some(vec![1.0; 32]), expected: Ok(Value::Null) },
            Case {
                metadata: vec![
                    ("llama.rope.scaling.type", text("linear")),
                    ("llama.rope.scaling.factor", Meta::F32(2.5)),
                ],
                divisors: None,
                expected: Ok(linear(2.5)),
            },
            Case {
                metadata: vec![("llama.rope.scale_linear", Meta::F32(4.0))],
                divisors: None,
                expected: Ok(linear(4.0)),
            },
            Case {
                metadata: vec![("llama.rope.scaling.factor", Meta::F32(-4.0))],
                divisors: None,
                expected: Err("key \"llama.rope.scaling.factor\" is -4; expected a positive number"),
            },
            Case {
                metadata: vec![("llama.rope.scaling.type", text("yarn"))],
                divisors: None,
                expected: Err(
                    "the model uses rope scaling of type \"yarn\", which this import does not handle; use the \
                     model's original Hugging Face checkpoint",
                ),
            },
            Case {
                metadata: vec![],
                divisors: Some(bent),
                expected: Err(
                    "the rope divisors in rope_freqs.weight are not those of Llama 3.1's scaling, which this \
                     import does not handle; use the model's original Hugging Face checkpoint",
                ),
            },
            Case {
                metadata: vec![],
                divisors: Some(vec![1.0; 31]),
                expected: Err("tensor \"rope_freqs.weight\" has shape [31]; the metadata asks for [32]"),
            },
            Case {
                metadata: vec![("llama.rope.scaling.factor", Meta::F32(2.0))],
                divisors: Some(llama_3_2_1b()),
                expected: Err(
                    "the model has both rope scaling of type \"linear\" and divisors in rope_freqs.weight, which \
                     this import does not handle; use the model's original Hugging Face checkpoint",
                ),
            },
        ];
        for case in cases {
            let bytes = model(&case.metadata, case.divisors.as_deref());
            let found = scaling(&Gguf::parse(&bytes).unwrap(), "llama", 500_000.0, 64);
            assert_eq!(found.map_err(|e| e.to_string()), case.expected.map_err(str::to_owned));
        }
    }
}
