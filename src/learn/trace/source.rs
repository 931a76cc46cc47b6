//! Samples straight from text: nothing is stored.

use std::ops::Range;

use super::windows::{Window, Windows};
use super::{Document, Importance, TokenCriterion};
use crate::Result;
use crate::kernels::Cpu;
use crate::learn::LearnError;
use crate::learn::criteria::LayerInput;
use crate::learn::samples::{SampleBatch, SampleInfo, SampleSource, mix, shuffle};
use crate::learn::{BackwardWorkspace, Criterion, Form, LayerRecord, LayerVisitor, Loss, UnitKind, backward};
use crate::model::{KvCache, Model, Probe, Rows, Segment, Workspace};
use crate::sparsity::ModelIdentity;
use crate::sparsity::predictor::PredictorInput;

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
    importance: Importance,
    info: SampleInfo,
    documents: Vec<Document>,
    window: usize,
    windows: Windows,
    cache: KvCache,
    workspace: Workspace,
    work: BackwardWorkspace,
}

impl<'a> TextSource<'a> {
    /// Samples of `documents`.
    ///
    /// # Errors
    /// [`LearnError::TrainingText`] if there is nothing to read or a window does not fit; [`LearnError::TrainSetting`] for stations that
    /// the model does not have; [`crate::Error::TokenOutOfRange`].
    pub fn new(
        cpu: &'a Cpu,
        model: &'a Model,
        importance: Importance,
        documents: Vec<impl Into<Document>>,
        options: &SampleOptions,
    ) -> Result<Self> {
        let documents: Vec<Document> = documents.into_iter().map(Into::into).collect();
        let config = &model.config;
        let (window, context) = (options.window, config.max_positions);
        let reason = if window < 2 {
            Some(format!("a window of {window} tokens has nothing to learn from; use at least 2"))
        } else if window > context {
            Some(format!("a window of {window} tokens does not fit into the model's {context} positions"))
        } else if documents.iter().all(|d| d.tokens.len() < 2) {
            Some("the text has no document of at least 2 tokens; use a longer text".to_owned())
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(LearnError::TrainingText { reason }.into());
        }
        let stations = &options.stations;
        let ascending = stations.windows(2).all(|pair| pair[0] < pair[1]);
        if stations.first() != Some(&0) || !ascending || stations.last().is_some_and(|&last| last + 1 >= config.layers)
        {
            return Err(LearnError::TrainSetting {
                setting: "list of stations",
                found: format!("{stations:?}"),
                expected: "ascending layers that begin with 0 and end before the last layer",
            }
            .into());
        }
        for document in documents.iter().filter(|d| !d.tokens.is_empty()) {
            model.check_tokens(&document.tokens)?;
        }
        let unused = unused(&importance);
        let cut = |(index, document): (usize, &Document)| {
            let pieces = match importance {
                Importance::Activations(_) => document.pieces(window),
                Importance::Gradients(_) => document.scored_pieces(window),
            };
            let place = |piece: Range<usize>| (piece.start, piece.len() - unused);
            pieces.into_iter().map(place).map(move |(start, len)| Window { document: index as u32, start, len })
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
            criterion: importance.name().to_owned(),
            data: options.data.clone(),
        };
        let (cache, workspace, work) = (KvCache::new(config, window), Workspace::default(), BackwardWorkspace::new());
        Ok(TextSource { cpu, model, importance, info, documents, window, windows, cache, workspace, work })
    }

    /// The documents that it reads.
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// Tokens of a window, the last one of a document excepted.
    pub fn window(&self) -> usize {
        self.window
    }

    /// What it computes with.
    pub(in crate::learn) fn cpu(&self) -> &'a Cpu {
        self.cpu
    }

    /// The model that is watched.
    pub(in crate::learn) fn model(&self) -> &'a Model {
        self.model
    }

    /// All windows, in order.
    pub(in crate::learn) fn windows(&self) -> &[Window] {
        &self.windows.all
    }

    /// The tokens of a window that are samples, and the loss of them as a text; `None` if nothing of it is scored.
    pub(in crate::learn) fn scored(&self, window: &Window) -> Option<(&[u32], Loss)> {
        let document = &self.documents[window.document as usize];
        let piece = window.start..window.start + window.len;
        let is_scored = piece.len() > 1 && document.answer.is_none_or(|answer| answer < piece.end);
        is_scored.then(|| (&document.tokens[piece.clone()], document.loss(&piece)))
    }

    /// A hash of all tokens, windows and their order.
    pub(super) fn text_hash(&self) -> String {
        let mut hash = 0;
        for window in &self.windows.all {
            let document = &self.documents[window.document as usize];
            let tokens = &document.tokens[window.start..window.start + window.len];
            let numbers = [u64::from(window.document), window.start as u64, window.len as u64];
            // Where the answer begins says what the loss is of.
            let scored = matches!(self.importance, Importance::Gradients(_));
            let answer = document.answer.filter(|_| scored).map(|answer| answer as u64);
            hash = numbers.into_iter().chain(answer).chain(tokens.iter().map(|&t| u64::from(t))).fold(hash, mix);
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
        let (piece, document) = (start..start + len + unused(&self.importance), &self.documents[document as usize]);
        let tokens = &document.tokens[piece.clone()];
        let (cpu, model) = (self.cpu, self.model);
        let mut notes = Notes { info: &self.info, batch, scratch: Vec::new() };
        match &self.importance {
            Importance::Activations(criterion) => {
                self.cache.truncate(0);
                let (segment, workspace) = (Segment { tokens, cache: &mut self.cache }, &mut self.workspace);
                let mut recorder = Recorder { notes, criterion: &**criterion };
                cpu.install(|| model.forward(cpu, &mut [segment], workspace, &mut recorder))?;
            }
            Importance::Gradients(criterion) => {
                let mut visitor = GradientRecorder { notes: &mut notes, cpu, model, tokens, criterion: *criterion };
                backward(cpu, model, tokens, &document.loss(&piece), &mut self.work, &mut visitor)?;
            }
        }
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

/// Tokens of a window that are no samples: where gradients count the last one, which predicts nothing. That holds for records, too:
/// their answer ends the window, and tokens before it have gradients, through the attention of those that predict it.
fn unused(importance: &Importance) -> usize {
    usize::from(matches!(importance, Importance::Gradients(_)))
}

/// What is noted of a window.
struct Notes<'a> {
    info: &'a SampleInfo,
    batch: &'a mut SampleBatch,
    /// Importances of a layer, `[T, units]`.
    scratch: Vec<f32>,
}

impl Notes<'_> {
    /// Inputs of the station behind `layer`, if there is one.
    fn input(&mut self, layer: usize, kind: PredictorInput, values: &[f32]) {
        let station = self.info.stations.iter().position(|&after| after == layer);
        if let Some(station) = station.filter(|_| self.info.input == kind) {
            let inputs = &mut self.batch.inputs[station];
            let len = inputs.len();
            inputs.copy_from_slice(&values[..len]);
        }
    }

    /// Importances of layer `layer` for `tokens` tokens, which `score` writes, `[T, units]`.
    fn importances(
        &mut self,
        kind: UnitKind,
        layer: usize,
        tokens: usize,
        score: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<()> {
        if layer == 0 {
            return Ok(());
        }
        let (width, all) = match kind {
            UnitKind::Heads => (self.info.heads, &mut self.batch.heads),
            UnitKind::Neurons => (self.info.neurons, &mut self.batch.neurons),
        };
        self.scratch.resize(tokens * width, 0.0);
        score(&mut self.scratch)?;
        let stride = (self.info.layers - 1) * width;
        for (values, all) in self.scratch.chunks_exact(width).zip(all.chunks_exact_mut(stride)) {
            all[(layer - 1) * width..][..width].copy_from_slice(values);
        }
        Ok(())
    }
}

/// Notes inputs and importances while the model reads.
struct Recorder<'a> {
    notes: Notes<'a>,
    criterion: &'a dyn TokenCriterion,
}

impl Probe for Recorder<'_> {
    fn residual(&mut self, rows: Rows, values: &mut [f32]) {
        // What enters a layer is what left the one before.
        if rows.layer > 0 {
            self.notes.input(rows.layer - 1, PredictorInput::Residual, values);
        }
    }

    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        self.notes.input(rows.layer, PredictorInput::Contexts, values);
        let score = |out: &mut [f32]| {
            self.criterion.heads(rows.layer, values, out);
            Ok(())
        };
        // A forward-only importance cannot fail.
        let _ = self.notes.importances(UnitKind::Heads, rows.layer, rows.count, score);
    }

    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        let score = |out: &mut [f32]| {
            self.criterion.neurons(rows.layer, values, out);
            Ok(())
        };
        let _ = self.notes.importances(UnitKind::Neurons, rows.layer, rows.count, score);
    }
}

/// Notes inputs and importances while the loss goes back.
struct GradientRecorder<'a, 'b> {
    notes: &'a mut Notes<'b>,
    cpu: &'a Cpu,
    model: &'a Model,
    tokens: &'a [u32],
    criterion: &'static dyn Criterion,
}

impl LayerVisitor for GradientRecorder<'_, '_> {
    fn layer(&mut self, record: &LayerRecord<'_>) -> Result<()> {
        self.notes.input(record.layer, PredictorInput::Residual, record.residual);
        self.notes.input(record.layer, PredictorInput::Contexts, record.contexts);
        let input = LayerInput { cpu: self.cpu, model: self.model, tokens: self.tokens, record, curvature: None };
        for kind in [UnitKind::Heads, UnitKind::Neurons] {
            let score = |out: &mut [f32]| self.criterion.score(&input, kind, Form::Token, out);
            self.notes.importances(kind, record.layer, record.tokens, score)?;
        }
        Ok(())
    }
}
