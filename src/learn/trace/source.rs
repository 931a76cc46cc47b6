//! Samples straight from text: nothing is stored.

use super::TokenCriterion;
use super::windows::{Window, Windows};
use crate::kernels::Cpu;
use crate::learn::samples::{SampleBatch, SampleInfo, SampleSource, mix, shuffle};
use crate::model::{KvCache, Model, Probe, Rows, Segment, Workspace};
use crate::sparsity::ModelIdentity;
use crate::sparsity::predictor::PredictorInput;
use crate::{Error, Result};

/// What samples are to be of.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOptions {
    /// What the inputs are.
    pub input: PredictorInput,
    /// Layers after which they are taken.
    pub stations: Vec<usize>,
    /// Tokens of a window, which is read from position 0 like a text of its own.
    pub window: usize,
    /// Seed of the order of the windows.
    pub seed: u64,
    /// The text, in words.
    pub data: String,
}

/// Samples of documents, window by window.
pub struct TextSource<'a> {
    cpu: &'a Cpu,
    model: &'a Model,
    criterion: Box<dyn TokenCriterion>,
    info: SampleInfo,
    documents: Vec<Vec<u32>>,
    windows: Windows,
    cache: KvCache,
    workspace: Workspace,
}

impl<'a> TextSource<'a> {
    /// Samples of `documents`.
    ///
    /// # Errors
    /// [`Error::TrainingText`] if there is nothing to read or a window does not fit; [`Error::TrainSetting`] for stations that
    /// the model does not have; [`Error::TokenOutOfRange`].
    pub fn new(
        cpu: &'a Cpu,
        model: &'a Model,
        criterion: Box<dyn TokenCriterion>,
        documents: Vec<Vec<u32>>,
        options: &SampleOptions,
    ) -> Result<Self> {
        let config = &model.config;
        let (window, context) = (options.window, config.max_positions);
        let reason = if window < 2 {
            Some(format!("a window of {window} tokens has nothing to learn from; use at least 2"))
        } else if window > context {
            Some(format!("a window of {window} tokens does not fit into the model's {context} positions"))
        } else if documents.iter().all(|d| d.len() < 2) {
            Some("the text has no document of at least 2 tokens; use a longer text".to_owned())
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(Error::TrainingText { reason });
        }
        let stations = &options.stations;
        let ascending = stations.windows(2).all(|pair| pair[0] < pair[1]);
        if stations.first() != Some(&0) || !ascending || stations.last().is_some_and(|&last| last + 1 >= config.layers)
        {
            return Err(Error::TrainSetting {
                setting: "list of stations",
                found: format!("{stations:?}"),
                expected: "ascending layers that begin with 0 and end before the last layer",
            });
        }
        for document in documents.iter().filter(|d| !d.is_empty()) {
            model.check_tokens(document)?;
        }
        let cut = |(index, document): (usize, &Vec<u32>)| {
            let pieces = (0..document.len()).step_by(window).map(|start| (start, window.min(document.len() - start)));
            let pieces: Vec<_> = pieces.filter(|&(_, len)| len > 1).collect();
            pieces.into_iter().map(move |(start, len)| Window { document: index as u32, start, len })
        };
        let mut all: Vec<Window> = documents.iter().enumerate().flat_map(cut).collect();
        shuffle(options.seed, &mut all);
        let windows = Windows { all, next: 0 };
        let info = SampleInfo {
            model: ModelIdentity::of(model),
            layers: config.layers,
            heads: config.heads,
            neurons: config.ffn,
            stations: stations.clone(),
            input: options.input,
            inputs: match options.input {
                PredictorInput::Residual => config.hidden,
                PredictorInput::Contexts => config.heads * config.head_dim,
            },
            criterion: criterion.name().to_owned(),
            data: options.data.clone(),
        };
        let (cache, workspace) = (KvCache::new(config, window), Workspace::default());
        Ok(TextSource { cpu, model, criterion, info, documents, windows, cache, workspace })
    }

    /// What it computes with.
    pub(super) fn cpu(&self) -> &'a Cpu {
        self.cpu
    }

    /// All windows, in order.
    pub(super) fn windows(&self) -> &[Window] {
        &self.windows.all
    }

    /// A hash of all tokens, windows and their order.
    pub(super) fn text_hash(&self) -> String {
        let mut hash = 0;
        for window in &self.windows.all {
            let tokens = &self.documents[window.document as usize][window.start..window.start + window.len];
            let numbers = [u64::from(window.document), window.start as u64, window.len as u64];
            hash = numbers.into_iter().chain(tokens.iter().map(|&t| u64::from(t))).fold(hash, mix);
        }
        format!("{hash:016x}")
    }
}

impl SampleSource for TextSource<'_> {
    fn info(&self) -> &SampleInfo {
        &self.info
    }

    fn rows(&self, wanted: &dyn Fn(u32) -> bool) -> u64 {
        self.windows.rows(wanted)
    }

    fn next(&mut self, wanted: &dyn Fn(u32) -> bool, batch: &mut SampleBatch) -> Result<bool> {
        let Some(index) = self.windows.take(wanted) else {
            batch.resize(&self.info, 0);
            return Ok(false);
        };
        let Window { document, start, len } = self.windows.all[index];
        batch.resize(&self.info, len);
        batch.documents.fill(document);
        self.cache.truncate(0);
        let tokens = &self.documents[document as usize][start..start + len];
        let segment = Segment { tokens, cache: &mut self.cache };
        let mut recorder = Recorder { info: &self.info, criterion: &*self.criterion, batch, scratch: Vec::new() };
        let (cpu, model, workspace) = (self.cpu, self.model, &mut self.workspace);
        cpu.install(|| model.forward(cpu, &mut [segment], workspace, &mut recorder))?;
        batch.validate(&self.info)?;
        Ok(true)
    }

    fn position(&self) -> u64 {
        self.windows.next as u64
    }

    fn seek(&mut self, position: u64) {
        self.windows.seek(position);
    }
}

/// Notes inputs and importances while the model reads.
struct Recorder<'a> {
    info: &'a SampleInfo,
    criterion: &'a dyn TokenCriterion,
    batch: &'a mut SampleBatch,
    /// Importances of a layer, `[T, units]`.
    scratch: Vec<f32>,
}

impl Recorder<'_> {
    /// Inputs of the station behind `layer`, if there is one.
    fn input(&mut self, layer: usize, values: &[f32]) {
        if let Some(station) = self.info.stations.iter().position(|&after| after == layer) {
            self.batch.inputs[station].copy_from_slice(values);
        }
    }
}

/// Puts the importances of a layer, `[T, width]`, into their columns of `all`, `[T, L-1, width]`.
fn place(values: &[f32], width: usize, layer: usize, layers: usize, all: &mut [f32]) {
    let stride = (layers - 1) * width;
    for (values, all) in values.chunks_exact(width).zip(all.chunks_exact_mut(stride)) {
        all[(layer - 1) * width..][..width].copy_from_slice(values);
    }
}

impl Probe for Recorder<'_> {
    fn residual(&mut self, rows: Rows, values: &mut [f32]) {
        // What enters a layer is what left the one before.
        if self.info.input == PredictorInput::Residual && rows.layer > 0 {
            self.input(rows.layer - 1, values);
        }
    }

    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        if self.info.input == PredictorInput::Contexts {
            self.input(rows.layer, values);
        }
        if rows.layer > 0 {
            self.scratch.resize(rows.count * self.info.heads, 0.0);
            self.criterion.heads(rows.layer, values, &mut self.scratch);
            place(&self.scratch, self.info.heads, rows.layer, self.info.layers, &mut self.batch.heads);
        }
    }

    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        if rows.layer > 0 {
            self.scratch.resize(rows.count * self.info.neurons, 0.0);
            self.criterion.neurons(rows.layer, values, &mut self.scratch);
            place(&self.scratch, self.info.neurons, rows.layer, self.info.layers, &mut self.batch.neurons);
        }
    }
}
