//! Thresholds from a text: the dense model reads it, and the sizes of its gates are counted.

use std::ops::ControlFlow;

use super::histogram::SizeHistogram;
use super::{GateStatistic, GateThresholds, check_gated};
use crate::kernels::{Cpu, activate, embed_row};
use crate::model::{Ffn, KvCache, Model, Probe, Rows, Segment, Workspace};
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
    let mut row = vec![0.0; f];
    for (layer, squares) in model.layers.iter().zip(squares.chunks_exact(f)) {
        let Ffn::Gated { down, .. } = &layer.ffn else {
            return Err(Error::NotGated { architecture: model.config.architecture.name() });
        };
        let mut norms = vec![0.0; f];
        for i in 0..down.weight.rows() {
            embed_row(cpu, &down.weight, i, &mut row);
            for (norm, w) in norms.iter_mut().zip(&row) {
                *norm += f64::from(*w) * f64::from(*w);
            }
        }
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
