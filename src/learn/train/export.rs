//! What came of a training: a predictor file, and how good it is as it is in the file.

use std::path::Path;

use shadowllm_weights::{ModelConfig, write_atomic};

use super::judge::{Judge, Judgement, RANKED};
use super::network::{Layer, Output};
use super::options::{TrainOptions, Width};
use super::run::{keep, losses};
use super::state::State;
use super::{Factors, TrainReport};
use crate::Result;
use crate::kernels::Cpu;
use crate::learn::compact::CompactRows;
use crate::learn::samples::SampleInfo;
use crate::sparsity::Scores;
use crate::sparsity::predictor::{
    LayerWeights, NetworkWeights, Normalization, Predictor, PredictorInfo, PredictorScratch, StationWeights, Training,
    TrainingRun, Wanted, WeightFormat, predictor_bytes,
};

/// A trained predictor and what it was judged on.
#[derive(Clone, Debug)]
pub struct Trained {
    info: SampleInfo,
    options: TrainOptions,
    state: State,
    held_out: CompactRows,
    factors: Option<Factors>,
}

/// A predictor file that was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Exported {
    /// Its size.
    pub bytes: u64,
    /// What it says of itself.
    pub info: PredictorInfo,
    /// How its heads are predicted, if they are.
    pub heads: Option<Judgement>,
    /// How its neurons are predicted, if they are.
    pub neurons: Option<Judgement>,
}

impl Trained {
    pub(super) fn new(
        info: SampleInfo,
        options: TrainOptions,
        state: State,
        held_out: CompactRows,
        factors: Option<Factors>,
    ) -> Self {
        Trained { info, options, state, held_out, factors }
    }

    /// All reports of the training.
    pub fn history(&self) -> &[TrainReport] {
        &self.state.progress.history
    }

    /// Samples that it was trained on, each counted once.
    pub fn tokens(&self) -> u64 {
        self.state.progress.rows / self.options.epochs as u64
    }

    /// Writes the best networks, after measuring on the held-out samples what the file's own numbers are worth.
    ///
    /// # Errors
    /// [`crate::Error::Weights`] if it cannot be written.
    pub fn write(&self, cpu: &Cpu, path: &Path, config: &ModelConfig, format: WeightFormat) -> Result<Exported> {
        let stations = self.stations();
        let mut info = self.predictor_info();
        // Read back from memory: what is not good is not written.
        let bytes = predictor_bytes(&info, &stations, format)?;
        let [heads, neurons] = self.judge(cpu, &Predictor::from_bytes(&bytes, config, &info.model)?)?;
        if let Some(run) = &mut info.training.run {
            run.heads = heads.as_ref().map(|j| j.ranking);
            run.neurons = neurons.as_ref().map(|j| j.ranking);
        }
        let bytes = predictor_bytes(&info, &stations, format)?;
        write_atomic(path, &bytes)?;
        Ok(Exported { bytes: bytes.len() as u64, info, heads, neurons })
    }

    fn predictor_info(&self) -> PredictorInfo {
        let (options, info) = (&self.options, &self.info);
        let (head_width, neuron_width) = match options.width {
            Width::Shared(width) => (width, width),
            Width::Separate { heads, neurons } => (heads, neurons),
        };
        let scale = serde_json::to_value(options.target_scale).ok();
        let run = TrainingRun {
            program: concat!("shadowllm ", env!("CARGO_PKG_VERSION")).to_owned(),
            head_width,
            neuron_width,
            loss: options.loss.name().to_owned(),
            target_scale: scale.and_then(|v| Some(v.as_str()?.to_owned())).unwrap_or_default(),
            passes: options.epochs * options.passes,
            steps: self.state.progress.steps,
            learning_rate: options.learning_rate,
            held_out: options.held_out,
            judged: self.ranked().rows as u64,
            kept_heads: options.kept[0],
            kept_neurons: options.kept[1],
            heads: None,
            neurons: None,
        };
        PredictorInfo {
            model: info.model.clone(),
            stations: info.stations.clone(),
            input: info.input,
            normalization: options.normalization,
            activation: options.activation,
            criterion: match &self.factors {
                Some(factors) => format!("{} ({})", factors.criterion, info.criterion),
                None => info.criterion.clone(),
            },
            training: Training { data: info.data.clone(), tokens: self.tokens(), seed: options.seed, run: Some(run) },
            validated: Vec::new(),
        }
    }

    /// The best networks, with the factors in their output weights.
    fn stations(&self) -> Vec<StationWeights> {
        let mut networks = self.state.networks.clone();
        for (networks, best) in networks.iter_mut().zip(&self.state.best) {
            networks.tensors_mut().into_iter().zip(best).for_each(|(tensor, best)| tensor.value.clone_from(best));
        }
        let station = |(s, networks): (usize, &super::network::Networks)| {
            let shared = matches!(self.options.width, Width::Shared(_));
            let network = |kind: usize| {
                let output = networks.outputs[kind].as_ref()?;
                let hidden = (!shared).then(|| weights(&networks.hidden[output.hidden]));
                Some(NetworkWeights { hidden, output: self.with_factors(kind, output) })
            };
            let standard = match self.options.normalization {
                Normalization::Standardize => self.state.standards.get(s),
                Normalization::None | Normalization::MinMax => None,
            };
            StationWeights {
                standard: standard.map(|s| (s.mean.clone(), s.scale.clone())),
                trunk: shared.then(|| weights(&networks.hidden[0])),
                heads: network(0),
                neurons: network(1),
            }
        };
        networks.iter().enumerate().map(station).collect()
    }

    fn with_factors(&self, kind: usize, output: &Output) -> LayerWeights {
        let mut layer = weights(&output.layer);
        if let Some(factors) = &self.factors {
            let first = (output.layers.start - 1) * output.width;
            let bias = layer.bias.iter_mut().flatten();
            let rows = layer.weight.chunks_exact_mut(layer.cols).zip(bias);
            for ((row, bias), factor) in rows.zip(&factors.of(kind)[first..]) {
                row.iter_mut().for_each(|w| *w *= factor);
                *bias *= factor;
            }
        }
        layer
    }

    /// The held-out samples that rankings are over, as a set of its own.
    fn ranked(&self) -> CompactRows {
        let mut ranked = CompactRows::new(&self.info);
        let n = self.info.inputs;
        for row in (0..self.held_out.rows).step_by(self.held_out.rows.div_ceil(RANKED).max(1)) {
            ranked.push(&self.held_out, row, n);
        }
        ranked
    }

    /// Judges a predictor by the way that it runs: token by token.
    fn judge(&self, cpu: &Cpu, predictor: &Predictor) -> Result<[Option<Judgement>; 2]> {
        let samples = self.ranked();
        let (rows, units) = (samples.rows, self.info.units());
        let Wanted { heads, neurons } = predictor.ranks();
        let mut scratch = PredictorScratch::default();
        let mut scores = Scores::zeros(units);
        let sizes = [self.info.head_targets(), self.info.neuron_targets()];
        let mut outputs = sizes.map(|size| vec![0.0; rows * size]);
        let mut x = Vec::new();
        for row in 0..rows {
            for (s, inputs) in samples.inputs.iter().enumerate() {
                x.clear();
                x.extend(inputs[row * self.info.inputs..][..self.info.inputs].iter().map(|v| v.to_f32()));
                predictor.predict(cpu, s, &x, predictor.ranks(), &mut scratch, &mut scores)?;
            }
            for (kind, all) in [&scores.heads, &scores.neurons].into_iter().enumerate() {
                let layer0 = all.len() - sizes[kind];
                outputs[kind][row * sizes[kind]..][..sizes[kind]].copy_from_slice(&all[layer0..]);
            }
        }
        let losses = losses(&self.info, &self.options);
        let keep = keep(&self.options, &self.info);
        let judge = |kind: usize, y: &mut [f32]| {
            let mut constant = self.state.means[kind].clone();
            losses[kind].constant(&mut constant);
            // Outputs have the factors in them already, and are compared with importances that have them, too.
            let mut judge = Judge::new(cpu, &samples, kind, losses[kind], keep[kind], &constant, None);
            if let Some(factors) = &self.factors {
                let factors = factors.of(kind);
                y.chunks_exact_mut(factors.len()).for_each(|y| y.iter_mut().zip(factors).for_each(|(y, f)| *y /= f));
                judge.factors = Some(factors);
            }
            judge.add(y, units.layers - 1);
            judge.finish()
        };
        let [head_outputs, neuron_outputs] = &mut outputs;
        Ok([heads.then(|| judge(0, head_outputs)), neurons.then(|| judge(1, neuron_outputs))])
    }
}

fn weights(layer: &Layer) -> LayerWeights {
    LayerWeights { weight: layer.weight.value.clone(), cols: layer.cols, bias: Some(layer.bias.value.clone()) }
}
