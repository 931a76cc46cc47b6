//! The training itself: portion by portion.
//!
//! A portion is as many samples as fit into memory. It is read, used a few times in shuffled order, judged and written down as
//! the state from which the run can go on. What is random depends on the seed and on how far the training is, so nothing but
//! the state has to be remembered.

use std::ops::ControlFlow;
use std::path::Path;

use super::export::Trained;
use super::initial;
use super::judge::{Judge, Judgement};
use super::loss::LayerLoss;
use super::network::{BatchWork, Expected};
use super::options::{TrainOptions, Width};
use super::state::{Progress, State};
use super::{Factors, TrainEvent, TrainReport};
use crate::kernels::{AdamW, Cpu};
use crate::learn::LearnError;
use crate::learn::compact::CompactRows;
use crate::learn::samples::{SampleBatch, SampleInfo, SampleSource, mix, shuffle};
use crate::sparsity::predictor::{Normalization, Standard, min_max};
use crate::{Error, Result};

/// Memory of a portion if its size is not given.
const PORTION_BYTES: usize = 1 << 30;
/// Samples of a portion if its size is not given, at most.
const PORTION_ROWS: usize = 65536;
/// Samples of a portion that mean targets are taken from.
const MEAN_ROWS: usize = 1024;
/// Memory of the usual norm of gradients.
const NORM_MEMORY: f64 = 0.95;

/// Trains a predictor on what `source` gives.
///
/// With `state` the run is written there after every portion, and `resume` goes on from it; the result is the same, bit for
/// bit, as without the interruption, and for any number of threads. `factors` are what predictions are multiplied with before
/// units are ranked; they end up in the output weights. `progress` hears what happens and may stop the run.
///
/// # Errors
/// [`LearnError::TrainSetting`]; [`LearnError::TrainingText`] if there is nothing to train or to judge on; those of the source;
/// [`LearnError::TrainingDiverged`]; [`LearnError::OtherTraining`] and those of reading for a state that does not fit; [`Error::Weights`] if
/// the state cannot be written; [`Error::Interrupted`].
pub fn train(
    cpu: &Cpu,
    source: &mut dyn SampleSource,
    options: &TrainOptions,
    factors: Option<&Factors>,
    state: Option<&Path>,
    resume: bool,
    progress: &mut dyn FnMut(TrainEvent<'_>) -> ControlFlow<()>,
) -> Result<Trained> {
    options.validate()?;
    let mut trainer = Trainer::new(cpu, source, options, factors, progress)?;
    if let (Some(path), true) = (state, resume) {
        trainer.state.read(path, &trainer.info, trainer.rows, options)?;
    }
    trainer.read_held_out()?;
    while trainer.state.progress.epoch < options.epochs {
        if trainer.read_portion()? {
            trainer.learn()?;
            trainer.judge()?;
        }
        if let Some(path) = state {
            trainer.state.write(path, &trainer.info, trainer.rows, options)?;
        }
    }
    let Trainer { info, state, held_out, .. } = trainer;
    Ok(Trained::new(info, options.clone(), state, held_out, factors.cloned()))
}

/// A training at work.
struct Trainer<'a> {
    cpu: &'a Cpu,
    source: &'a mut dyn SampleSource,
    options: &'a TrainOptions,
    factors: Option<&'a Factors>,
    tell: &'a mut dyn FnMut(TrainEvent<'_>) -> ControlFlow<()>,
    info: SampleInfo,
    /// Samples to train on and to judge on.
    rows: [u64; 2],
    losses: [LayerLoss; 2],
    state: State,
    batch: SampleBatch,
    portion: CompactRows,
    held_out: CompactRows,
    /// Samples read before this portion.
    before: u64,
    work: BatchWork,
    /// Inputs of a batch, `[T, n]`.
    x: Vec<f32>,
}

impl<'a> Trainer<'a> {
    fn new(
        cpu: &'a Cpu,
        source: &'a mut dyn SampleSource,
        options: &'a TrainOptions,
        factors: Option<&'a Factors>,
        tell: &'a mut dyn FnMut(TrainEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Self> {
        let info = source.info().clone();
        let split = options.split();
        let rows = [source.rows(&|d| !split.holds_out(d)), source.rows(&|d| split.holds_out(d))];
        let all = rows[0] + rows[1];
        if let Some(what) = ["train", "judge"].into_iter().zip(rows).find_map(|(what, n)| (n == 0).then_some(what)) {
            let reason = format!(
                "of {all} tokens none are left to {what} on: documents are divided whole, and {} of them are held out; \
                 use more text or another seed",
                options.held_out
            );
            return Err(LearnError::TrainingText { reason }.into());
        }
        let networks = initial::networks(&info, options);
        let losses = losses(&info, options);
        let progress =
            Progress { norms: vec![0; networks.len()], best: f64::INFINITY.to_bits(), ..Progress::default() };
        let state =
            State { progress, networks, best: Vec::new(), standards: Vec::new(), means: [Vec::new(), Vec::new()] };
        let [portion, held_out] = [CompactRows::new(&info), CompactRows::new(&info)];
        let (batch, work, x) = (SampleBatch::default(), BatchWork::default(), Vec::new());
        Ok(Trainer {
            cpu,
            source,
            options,
            factors,
            tell,
            info,
            rows,
            losses,
            state,
            batch,
            portion,
            held_out,
            before: 0,
            work,
            x,
        })
    }

    fn tell(&mut self, event: TrainEvent<'_>) -> Result<()> {
        if (self.tell)(event).is_break() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Reads what will be judged on, from the beginning of the source.
    fn read_held_out(&mut self) -> Result<()> {
        let split = self.options.split();
        let most = (self.options.judged as u64).min(self.rows[1]);
        self.source.seek(0);
        while (self.held_out.rows as u64) < most && self.source.next(&|d| split.holds_out(d), &mut self.batch)? {
            self.held_out.extend(self.cpu, &self.batch);
            self.tell(TrainEvent::HeldOut { rows: self.held_out.rows as u64, of: most })?;
        }
        self.source.seek(self.state.progress.position);
        Ok(())
    }

    fn portion_rows(&self) -> usize {
        let fitting = PORTION_BYTES / CompactRows::row_bytes(&self.info).max(1);
        self.options.portion.unwrap_or(fitting.min(PORTION_ROWS)).max(self.options.batch)
    }

    /// Reads the next portion; false if the source was at its end.
    fn read_portion(&mut self) -> Result<bool> {
        let split = self.options.split();
        let limit = self.portion_rows();
        self.portion.clear();
        self.before = self.state.progress.rows;
        while self.portion.rows < limit {
            if !self.source.next(&|d| !split.holds_out(d), &mut self.batch)? {
                self.source.seek(0);
                self.state.progress.epoch += 1;
                break;
            }
            self.portion.extend(self.cpu, &self.batch);
            self.tell_rows(self.portion.rows / 2)?;
        }
        self.state.progress.position = self.source.position();
        self.state.progress.rows += self.portion.rows as u64;
        Ok(self.portion.rows > 0)
    }

    /// Says how far the run is: `part` samples of this portion count as done.
    fn tell_rows(&mut self, part: usize) -> Result<()> {
        let of = self.rows[0] * self.options.epochs as u64;
        self.tell(TrainEvent::Progress { rows: (self.before + part as u64).min(of), of })
    }

    /// Uses the portion.
    fn learn(&mut self) -> Result<()> {
        if self.state.standards.is_empty() && self.options.normalization == Normalization::Standardize {
            self.state.standards = self.portion.inputs.iter().map(|x| standard(x, self.info.inputs)).collect();
        }
        self.add_to_means();
        if self.state.progress.portions == 0 {
            self.set_biases();
        }
        let rows = self.portion.rows;
        let batches = rows.div_ceil(self.options.batch);
        let size = rows.div_ceil(batches);
        let mut order: Vec<u32> = (0..rows as u32).collect();
        for pass in 0..self.options.passes {
            shuffle(mix(mix(self.options.seed, self.state.progress.portions), pass as u64), &mut order);
            for (index, batch) in order.chunks(size).enumerate() {
                self.step(batch)?;
                let used = (pass * rows + (index + 1) * size) / self.options.passes;
                self.tell_rows((rows + used.min(rows)) / 2)?;
            }
        }
        self.state.progress.portions += 1;
        Ok(())
    }

    /// Mean targets, in the form that each loss wants them.
    fn add_to_means(&mut self) {
        let stride = self.portion.rows.div_ceil(MEAN_ROWS).max(1);
        let count = self.portion.rows.div_ceil(stride) as u64;
        let before = self.state.progress.mean_rows;
        let share = count as f64 / (before + count) as f64;
        let all = [&self.portion.heads, &self.portion.neurons];
        for ((means, codes), loss) in self.state.means.iter_mut().zip(all).zip(self.losses) {
            means.resize(codes.layers * codes.width, 0.0);
            let rows = self.portion.rows;
            self.cpu.each_row(codes.layers, [means, &mut []], 1 << 20, &|layer, means, _| {
                let (mut sums, mut targets) = (vec![0.0_f64; means.len()], vec![0.0; means.len()]);
                for row in (0..rows).step_by(stride) {
                    loss.prepare(codes.layer(row, layer), &mut targets);
                    sums.iter_mut().zip(&targets).for_each(|(sum, t)| *sum += f64::from(*t));
                }
                for (mean, sum) in means.iter_mut().zip(sums) {
                    let old = f64::from(*mean);
                    *mean = (old + share * (sum / count as f64 - old)) as f32;
                }
            });
        }
        self.state.progress.mean_rows += count;
    }

    /// Outputs of the best constant predictor, `[(L-1) * width]`.
    fn constant(&self, kind: usize) -> Vec<f32> {
        let mut constant = self.state.means[kind].clone();
        self.losses[kind].constant(&mut constant);
        constant
    }

    /// Output biases begin at the best constant.
    fn set_biases(&mut self) {
        let constants = [self.constant(0), self.constant(1)];
        for networks in &mut self.state.networks {
            for (output, constant) in networks.outputs.iter_mut().zip(&constants) {
                let Some(output) = output else { continue };
                let first = (output.layers.start - 1) * output.width;
                output.layer.bias.value.copy_from_slice(&constant[first..first + output.layer.rows]);
            }
        }
    }

    /// One step on some samples of the portion.
    fn step(&mut self, rows: &[u32]) -> Result<()> {
        let settings = AdamW {
            learning_rate: self.learning_rate(),
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: self.options.weight_decay,
        };
        self.state.progress.steps += 1;
        let codes = [&self.portion.heads, &self.portion.neurons];
        // Where both share a hidden layer, heads count as much as the many more neurons.
        let few = match self.options.width {
            Width::Shared(_) => self.info.neurons as f32 / self.info.heads.max(1) as f32,
            Width::Separate { .. } => 1.0,
        };
        let expected = Expected { codes, rows, losses: self.losses, weights: [few, 1.0] };
        for (s, networks) in self.state.networks.iter_mut().enumerate() {
            let x = &self.portion.inputs[s];
            gather(x, rows, self.info.inputs, self.options.normalization, self.state.standards.get(s), &mut self.x);
            let losses = networks.backward(self.cpu, &self.x, expected, &mut self.work);
            let tensors = networks.tensors_mut();
            let norm = tensors.iter().map(|t| square(&t.gradient)).sum::<f64>().sqrt();
            if !norm.is_finite() || losses.iter().any(|loss| !loss.is_finite()) {
                return Err(LearnError::TrainingDiverged { step: self.state.progress.steps }.into());
            }
            let usual = &mut self.state.progress.norms[s];
            let scale = clip(usual, norm, f64::from(self.options.clip));
            for t in tensors {
                let weight_decay = if t.decays { settings.weight_decay } else { 0.0 };
                let settings = AdamW { weight_decay, ..settings };
                let [m, v] = &mut t.moments;
                settings.step(self.cpu, self.state.progress.steps, scale, &t.gradient, &mut t.value, m, v);
            }
        }
        self.state.progress.used += rows.len() as u64;
        Ok(())
    }

    fn learning_rate(&self) -> f32 {
        let options = self.options;
        let total = self.rows[0] as f64 * (options.epochs * options.passes) as f64;
        // The middle of the step, so that neither the first nor the last is without effect.
        let done = (self.state.progress.used as f64 + options.batch as f64 / 2.0) / total;
        rate(options.learning_rate, options.warm_up, done)
    }

    /// Judges the networks on what was held out, and remembers them if none were better.
    fn judge(&mut self) -> Result<()> {
        let judgements = {
            let constants = [self.constant(0), self.constant(1)];
            let mut judges = [0, 1].map(|kind| {
                let factors = self.factors.map(|f| &f.of(kind)[..]);
                let keep = keep(self.options, &self.info)[kind];
                Judge::new(self.cpu, &self.held_out, kind, self.losses[kind], keep, &constants[kind], factors)
            });
            let all: Vec<u32> = (0..self.held_out.rows as u32).collect();
            for (s, networks) in self.state.networks.iter().enumerate() {
                let (x, standard) = (&self.held_out.inputs[s], self.state.standards.get(s));
                gather(x, &all, self.info.inputs, self.options.normalization, standard, &mut self.x);
                networks.forward(self.cpu, &self.x, all.len(), &mut self.work, &mut |kind, layers, y| {
                    judges[kind].add(y, layers);
                });
            }
            let has = |kind: usize| self.state.networks.iter().all(|n| n.outputs[kind].is_some());
            let [heads, neurons] = judges;
            [has(0).then(|| heads.finish()), has(1).then(|| neurons.finish())]
        };
        // Of each kind relative to the constant: losses of heads and of neurons are of different sizes.
        let relative = |j: &Judgement| if j.loss_of_mean > 0.0 { j.loss / j.loss_of_mean } else { 1.0 };
        let loss: f64 = judgements.iter().flatten().map(relative).sum();
        if !loss.is_finite() {
            return Err(LearnError::TrainingDiverged { step: self.state.progress.steps }.into());
        }
        let best = loss <= f64::from_bits(self.state.progress.best);
        if best {
            self.state.progress.best = loss.to_bits();
            let values = |n: &super::network::Networks| n.tensors().iter().map(|(_, t)| t.value.clone()).collect();
            self.state.best = self.state.networks.iter().map(values).collect();
        }
        let [heads, neurons] = judgements;
        let report = TrainReport {
            epoch: self.state.progress.epoch,
            rows: self.state.progress.rows,
            steps: self.state.progress.steps,
            learning_rate: self.learning_rate(),
            best,
            heads,
            neurons,
        };
        self.state.progress.history.push(report.clone());
        self.tell(TrainEvent::Report(&report))
    }
}

/// Units of a layer that count as best, of each kind.
pub(super) fn keep(options: &TrainOptions, info: &SampleInfo) -> [usize; 2] {
    let [heads, neurons] = options.kept;
    [(heads, info.heads), (neurons, info.neurons)]
        .map(|(kept, width)| ((kept * width as f32).round() as usize).clamp(1, width.max(1)))
}

/// The loss of each kind of unit.
pub(super) fn losses(info: &SampleInfo, options: &TrainOptions) -> [LayerLoss; 2] {
    keep(options, info).map(|best| LayerLoss { loss: options.loss, scale: options.target_scale, best })
}

/// Inputs of some rows, normalised.
pub(super) fn gather(
    x: &[half::f16],
    rows: &[u32],
    n: usize,
    normalization: Normalization,
    standard: Option<&Standard>,
    out: &mut Vec<f32>,
) {
    out.clear();
    let mut row = Vec::with_capacity(n);
    for &index in rows {
        row.clear();
        row.extend(x[index as usize * n..][..n].iter().map(|v| v.to_f32()));
        match (normalization, standard) {
            (Normalization::MinMax, _) => min_max(&row, out),
            (Normalization::Standardize, Some(standard)) => standard.apply(&row, out),
            _ => out.extend_from_slice(&row),
        }
    }
}

/// Mean and inverse standard deviation of every input; an input that never changes is left as large as it is.
fn standard(x: &[half::f16], n: usize) -> Standard {
    let rows = (x.len() / n.max(1)).max(1) as f64;
    let mut sums = vec![[0.0_f64; 2]; n];
    for row in x.chunks_exact(n) {
        for (sums, v) in sums.iter_mut().zip(row) {
            let v = f64::from(v.to_f32());
            sums[0] += v;
            sums[1] += v * v;
        }
    }
    let scale = |[sum, squares]: [f64; 2]| {
        let variance = squares / rows - (sum / rows) * (sum / rows);
        // What is left of a constant is rounding.
        let floor = 1e-6 * squares / rows;
        if variance > floor { (1.0 / variance.sqrt()) as f32 } else { 1.0 }
    };
    Standard {
        mean: sums.iter().map(|[sum, _]| (sum / rows) as f32).collect(),
        scale: sums.iter().map(|&s| scale(s)).collect(),
    }
}

/// The learning rate when a share `done` of the training is done.
fn rate(largest: f32, warm_up: f64, done: f64) -> f32 {
    let factor = if done < warm_up {
        done / warm_up
    } else {
        let rest = ((done - warm_up) / (1.0 - warm_up).max(f64::EPSILON)).clamp(0.0, 1.0);
        (1.0 + (std::f64::consts::PI * rest).cos()) / 2.0
    };
    (f64::from(largest) * factor) as f32
}

/// What a gradient of norm `norm` is multiplied with, and the new usual norm (as bits; 0: there is none yet).
fn clip(usual: &mut u64, norm: f64, limit: f64) -> f32 {
    let before = f64::from_bits(*usual);
    let allowed = if limit > 0.0 && before > 0.0 { norm.min(limit * before) } else { norm };
    *usual = if before > 0.0 { NORM_MEMORY * before + (1.0 - NORM_MEMORY) * allowed } else { norm }.to_bits();
    if allowed < norm { (allowed / norm) as f32 } else { 1.0 }
}

/// Sum of squares, in sixteen sums so that the processor need not wait for the one before.
fn square(values: &[f32]) -> f64 {
    let mut sums = [0.0_f64; 16];
    for values in values.chunks(16) {
        sums.iter_mut().zip(values).for_each(|(sum, v)| *sum += f64::from(*v) * f64::from(*v));
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls() {
        let at = |done| rate(2.0, 0.1, done);
        assert_eq!([at(0.0), at(0.05), at(0.1)], [0.0, 1.0, 2.0]);
        assert!((at(0.55) - 1.0).abs() < 1e-6 && at(1.0) < 1e-6 && at(1.5) < 1e-6);
        assert_eq!(rate(2.0, 0.0, 0.0), 2.0);
    }

    #[test]
    fn outliers_are_shortened_to_the_usual_norm() {
        let mut usual = 0;
        assert_eq!(clip(&mut usual, 2.0, 4.0), 1.0);
        assert_eq!(clip(&mut usual, 6.0, 4.0), 1.0);
        let now = f64::from_bits(usual);
        assert!((now - 2.2).abs() < 1e-12);
        let scale = clip(&mut usual, 88.0, 4.0);
        assert!((scale - 0.1).abs() < 1e-6, "{scale}");
        assert_eq!(clip(&mut usual, 1e9, 0.0), 1.0);
    }

    #[test]
    fn standards_are_mean_and_inverse_deviation() {
        let x: Vec<half::f16> = [1.0, 5.0, 3.0, 5.0].map(half::f16::from_f32).to_vec();
        let standard = standard(&x, 2);
        assert_eq!((standard.mean, standard.scale), (vec![2.0, 5.0], vec![1.0, 1.0]));
    }

    #[test]
    fn squares_are_summed() {
        let values: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(square(&values), (0..37).map(|i| f64::from(i * i)).sum::<f64>());
    }
}
