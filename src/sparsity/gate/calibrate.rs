//! Thresholds from a text: the dense model reads it, and the sizes of its gates are counted.

use std::ops::ControlFlow;

use super::histogram::SizeHistogram;
use super::{GateStatistic, GateThresholds, check_gated};
use crate::kernels::{Cpu, activate};
use crate::model::{KvCache, Model, Probe, Rows, Segment, Workspace};
use crate::sparsity::ModelIdentity;
use crate::{Error, Result};

/// Fractions that limits are computed for, in hundredths.
const FRACTIONS: std::ops::RangeInclusive<u8> = 1..=99;
/// One window in this many tells how large `up` products are: a mean settles sooner than a quantile.
const SCALE_STRIDE: usize = 4;
/// Fewer tokens say nothing about how rare a size is.
const LEAST_TOKENS: usize = 256;

/// How to calibrate.
#[derive(Clone, Debug)]
pub struct GateCalibration {
    /// What the thresholds are of.
    pub statistic: GateStatistic,
    /// Tokens of one window, at least 2; each is read from position 0. The first token of each is not counted: it attends to itself
    /// alone and its activations are like no others', and it is always part of a prompt, which is dense.
    pub window: usize,
    /// The text, in words; kept in the file.
    pub data: String,
}

impl Default for GateCalibration {
    fn default() -> Self {
        GateCalibration { statistic: GateStatistic::default(), window: 512, data: String::new() }
    }
}

/// Calibrates the thresholds of a model on `tokens`: the same for any number of threads. `progress(tokens done, of all)` may stop
/// the work; the weighted statistic reads a quarter of the text once more.
///
/// # Errors
/// [`Error::NotGated`]; [`Error::CalibrationText`] if the text is too short or the window does not fit; [`Error::TokenOutOfRange`];
/// [`Error::BadGates`] if a gate is not a finite number; [`Error::Interrupted`].
pub fn calibrate_gate(
    cpu: &Cpu,
    model: &Model,
    tokens: &[u32],
    options: &GateCalibration,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<GateThresholds> {
    let config = &model.config;
    check_gated(config)?;
    let windows = windows(tokens, options.window, config.max_positions)?;
    model.check_tokens(tokens)?;
    let sampled: Vec<&[u32]> = match options.statistic {
        GateStatistic::Weighted => windows.iter().step_by(SCALE_STRIDE).copied().collect(),
        GateStatistic::Plain => Vec::new(),
    };
    let total = windows.iter().chain(&sampled).map(|window| window.len()).sum();
    let mut reader = Reader { cpu, model, total, done: 0, progress };
    let (layers, f) = (config.layers, config.ffn);
    let scales = match options.statistic {
        GateStatistic::Plain => None,
        GateStatistic::Weighted => {
            let mut squares = UpSquares { f, sums: vec![0.0; layers * f] };
            reader.read(&sampled, &mut squares)?;
            let counted: usize = sampled.iter().map(|window| window.len() - 1).sum();
            Some(scales(cpu, model, &squares.sums, counted)?)
        }
    };
    let sizes = vec![SizeHistogram::new(); layers];
    let mut counts = GateSizes { cpu, model, scales: scales.as_deref(), sizes, buffer: Vec::new(), bad: None };
    reader.read(&windows, &mut counts)?;
    if let Some(layer) = counts.bad {
        return Err(Error::BadGates { layer });
    }
    let fractions: Vec<f32> = FRACTIONS.map(|percent| f32::from(percent) / 100.0).collect();
    let limits =
        counts.sizes.iter().flat_map(|sizes| FRACTIONS.map(|percent| sizes.quantile(f64::from(percent) / 100.0)));
    Ok(GateThresholds {
        model: ModelIdentity::of(model),
        statistic: options.statistic,
        data: options.data.clone(),
        tokens: windows.iter().map(|window| window.len() as u64 - 1).sum(),
        fractions,
        limits: limits.collect(),
        scales,
    })
}

/// The text cut into windows; a last one of a single token has nothing to count.
fn windows(tokens: &[u32], window: usize, context: usize) -> Result<Vec<&[u32]>> {
    let reason = if window < 2 {
        format!("a window of {window} tokens has nothing to count; use at least 2")
    } else if window > context {
        format!("a window of {window} tokens does not fit into the model's {context} positions")
    } else if tokens.len() < LEAST_TOKENS {
        format!(
            "the text has {} tokens, and calibration needs at least {LEAST_TOKENS}; use a longer text",
            tokens.len()
        )
    } else {
        return Ok(tokens.chunks(window).filter(|window| window.len() > 1).collect());
    };
    Err(Error::CalibrationText { reason })
}

/// What a neuron's `abs(g)` is multiplied by, `[L, F]`: the root mean square of its `up` product times the norm of its `down`
/// column.
fn scales(cpu: &Cpu, model: &Model, squares: &[f64], counted: usize) -> Result<Vec<f32>> {
    let f = model.config.ffn;
    let mut scales = Vec::with_capacity(squares.len());
    for (layer, squares) in model.layers.iter().zip(squares.chunks_exact(f)) {
        let norms = layer.ffn.output_squares(cpu);
        let first = scales.len();
        scales.extend(squares.iter().zip(&norms).map(|(up, down)| (up / counted as f64 * down).sqrt() as f32));
        if scales[first..].iter().any(|scale| !scale.is_finite()) {
            return Err(Error::BadGates { layer: first / f });
        }
    }
    Ok(scales)
}

/// Runs windows through the model.
struct Reader<'a> {
    cpu: &'a Cpu,
    model: &'a Model,
    total: usize,
    done: usize,
    progress: &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>,
}

impl Reader<'_> {
    fn read(&mut self, windows: &[&[u32]], probe: &mut (impl Probe + Send)) -> Result<()> {
        let longest = windows.iter().map(|window| window.len()).max().unwrap_or(0);
        let mut cache = KvCache::new(&self.model.config, longest);
        let mut workspace = Workspace::default();
        for tokens in windows {
            cache.truncate(0);
            let segment = Segment { tokens, cache: &mut cache };
            let (cpu, model, workspace) = (self.cpu, self.model, &mut workspace);
            cpu.install(|| model.forward(cpu, &mut [segment], workspace, probe))?;
            self.done += tokens.len();
            if (self.progress)(self.done, self.total).is_break() {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    }
}

/// Sums of the squares of all `up` products, `[L, F]`.
struct UpSquares {
    f: usize,
    sums: Vec<f64>,
}

impl Probe for UpSquares {
    fn gates(&mut self, rows: Rows, _: &mut [f32], ups: &mut [f32]) {
        let sums = &mut self.sums[rows.layer * self.f..][..self.f];
        for ups in ups.chunks_exact(self.f).skip(1) {
            for (sum, up) in sums.iter_mut().zip(ups) {
                *sum += f64::from(*up) * f64::from(*up);
            }
        }
    }
}

/// The sizes of all activated gates, times their scales.
struct GateSizes<'a> {
    cpu: &'a Cpu,
    model: &'a Model,
    /// `[L, F]`
    scales: Option<&'a [f32]>,
    /// One per layer.
    sizes: Vec<SizeHistogram>,
    /// `[rows, F]`
    buffer: Vec<f32>,
    /// The first layer with a gate that is not a finite number.
    bad: Option<usize>,
}

impl Probe for GateSizes<'_> {
    fn gates(&mut self, rows: Rows, gates: &mut [f32], _: &mut [f32]) {
        let f = self.model.config.ffn;
        self.buffer.clear();
        self.buffer.extend_from_slice(&gates[f..]);
        activate(self.cpu, self.model.config.activation, &mut self.buffer);
        let sizes = &mut self.sizes[rows.layer];
        let scales = self.scales.map(|scales| &scales[rows.layer * f..][..f]);
        let mut finite = true;
        for row in self.buffer.chunks_exact(f) {
            match scales {
                None => row.iter().for_each(|gate| finite &= sizes.add(gate.abs())),
                Some(scales) => row.iter().zip(scales).for_each(|(gate, s)| finite &= sizes.add(gate.abs() * s)),
            }
        }
        if !finite {
            self.bad.get_or_insert(rows.layer);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use shadowllm_weights::{DType, ModelConfig};

    use super::super::GateMask;
    use super::*;
    use crate::model::Ffn;
    use crate::model::random::random_checkpoint;
    use crate::sparsity::testing::cpu;

    fn model(activation: &str) -> Model {
        let json = format!(
            r#"{{"model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 100,
            "rms_norm_eps": 1e-5, "hidden_act": "{activation}"}}"#
        );
        let config = ModelConfig::from_json(json.as_bytes()).unwrap();
        Model::load(&random_checkpoint(config, DType::F32, 5).unwrap()).unwrap()
    }

    fn text(n: u32, seed: u32) -> Vec<u32> {
        (0..n).map(|i| (i * i + seed * i / 7) % 61).collect()
    }

    fn run(model: &Model, statistic: GateStatistic) -> GateThresholds {
        let options = GateCalibration { statistic, window: 50, data: "numbers".to_owned() };
        calibrate_gate(&cpu(), model, &text(1000, 1), &options, &mut |_, _| ControlFlow::Continue(())).unwrap()
    }

    /// Every gate product and `up` product but those of the first rows.
    #[derive(Default)]
    struct Record {
        gates: Vec<Vec<f32>>,
        ups: Vec<Vec<f32>>,
    }

    impl Probe for Record {
        fn gates(&mut self, rows: Rows, gates: &mut [f32], ups: &mut [f32]) {
            let first = gates.len() / rows.count;
            self.gates.resize(3, Vec::new());
            self.ups.resize(3, Vec::new());
            self.gates[rows.layer].extend_from_slice(&gates[first..]);
            self.ups[rows.layer].extend_from_slice(&ups[first..]);
        }
    }

    fn record(model: &Model, probe: &mut (impl Probe + Send), windows: &[&[u32]]) {
        let cpu = cpu();
        let (total, done) = (usize::MAX, 0);
        let mut reader = Reader { cpu: &cpu, model, total, done, progress: &mut |_, _| ControlFlow::Continue(()) };
        reader.read(windows, probe).unwrap();
    }

    #[test]
    fn limits_are_the_quantiles_of_the_statistic() {
        let model = model("silu");
        let tokens = text(1000, 1);
        let windows: Vec<&[u32]> = tokens.chunks(50).collect();
        let mut all = Record::default();
        record(&model, &mut all, &windows);
        let mut sampled = Record::default();
        record(&model, &mut sampled, &windows.iter().step_by(4).copied().collect::<Vec<_>>());
        for statistic in [GateStatistic::Weighted, GateStatistic::Plain] {
            let thresholds = run(&model, statistic);
            assert_eq!((thresholds.tokens, thresholds.fractions.len()), (980, 99));
            for layer in 0..3 {
                let Ffn::Gated { down, .. } = &model.layers[layer].ffn else { unreachable!() };
                let scale = |i: usize| -> f64 {
                    let ups: Vec<f64> = sampled.ups[layer].iter().skip(i).step_by(40).map(|&u| f64::from(u)).collect();
                    let rms = (ups.iter().map(|u| u * u).sum::<f64>() / ups.len() as f64).sqrt();
                    let crate::tensor::MatrixView::F32(w) = down.weight.stored().view() else { unreachable!() };
                    rms * w.iter().skip(i).step_by(40).map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt()
                };
                let scales: Vec<f64> = match &thresholds.scales {
                    None => vec![1.0; 40],
                    Some(found) => (0..40)
                        .map(scale)
                        .enumerate()
                        .inspect(|&(i, s)| assert!((f64::from(found[layer * 40 + i]) / s - 1.0).abs() < 1e-5))
                        .map(|(_, s)| s)
                        .collect(),
                };
                let sizes = all.gates[layer].iter().enumerate();
                let silu = |g: f32| f64::from(g) / (1.0 + (-f64::from(g)).exp());
                let mut sizes: Vec<f64> = sizes.map(|(at, &g)| silu(g).abs() * scales[at % 40]).collect();
                sizes.sort_by(f64::total_cmp);
                for (percent, limit) in (1..100).zip(&thresholds.limits[layer * 99..]) {
                    let exact = sizes[percent * sizes.len() / 100];
                    // A bin is a thirty-second of an octave; few tokens make lumps, between which a bin says nothing.
                    let off = f64::from(*limit) / exact - 1.0;
                    assert!(off.abs() < 1.0 / 31.0, "{statistic}, layer {layer}, {percent} %: {limit}, not {exact}");
                }
            }
        }
    }

    #[test]
    fn the_mask_skips_what_was_asked_for() {
        let model = model("silu");
        let (tokens, cpu) = (text(1000, 1), cpu());
        let windows: Vec<&[u32]> = tokens.chunks(50).collect();
        for statistic in [GateStatistic::Weighted, GateStatistic::Plain] {
            for fraction in [0.0, 0.3, 0.555] {
                let skip = Arc::new(run(&model, statistic).at(fraction, &model.config).unwrap());
                let mask = GateMask::new(&cpu, &model.config, skip).unwrap();
                let mut mask = mask.dense_prefix(1, 50);
                record(&model, &mut mask, &windows);
                // Layer 0 is exact. What layer 1 skips changes the gates of layer 2 a little.
                let expected = f64::from(fraction) * 2.0 / 3.0;
                assert!((mask.skipped() - expected).abs() < 0.01, "{} instead of {expected}", mask.skipped());
            }
        }
    }

    #[test]
    fn zeros_of_relu_need_no_limit() {
        let thresholds = run(&model("relu"), GateStatistic::Plain);
        // About half of the gates are 0: the limit of any smaller fraction is 0, and nothing is under it.
        assert_eq!(thresholds.limits[99 + 29], 0.0);
        assert!(thresholds.limits[99 + 79] > 0.0);
    }

    #[test]
    fn it_can_be_interrupted_and_says_how_far_it_is() {
        let model = model("silu");
        let mut seen = Vec::new();
        let options = GateCalibration { window: 100, ..GateCalibration::default() };
        let interrupted = calibrate_gate(&cpu(), &model, &text(450, 1), &options, &mut |done, total| {
            seen.push((done, total));
            if done < 400 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert!(matches!(interrupted, Err(Error::Interrupted)));
        // The windows of 100 and 50 tokens that are every fourth, then all of them.
        assert_eq!(seen, [(100, 600), (150, 600), (250, 600), (350, 600), (450, 600)]);
    }
}
