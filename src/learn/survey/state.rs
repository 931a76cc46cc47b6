//! Sums so far, in memory and on disk: what a survey that was stopped goes on from.
//!
//! A safetensors file, written under a temporary name and renamed, so a kill at any moment leaves the state before. Its metadata has
//! one key, `survey`: what is surveyed, and how far it is. All numbers are F64, so that going on changes no bit:
//!
//! | tensor | shape | what |
//! | --- | --- | --- |
//! | `losses` | `[texts]` | sum of each text's losses |
//! | `sums` | `[texts, criteria, L * (H + F)]` | sums over the pieces of each text, heads first |

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde::{Deserialize, Serialize};
use shadowllm_weights::write_atomic;

use super::run::{SurveyOptions, SurveyedText};
use crate::learn::LearnError;
use crate::learn::{LossValue, UnitKind};
use crate::sparsity::file::File;
use crate::sparsity::{ModelIdentity, Scores, Units};
use crate::{Error, Result};

const KEY: &str = "survey";
const VERSION: u32 = 1;

/// What is surveyed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Description {
    version: u32,
    model: ModelIdentity,
    /// `L, H, F`
    shape: [usize; 3],
    criteria: Vec<String>,
    window: usize,
    texts: Vec<String>,
    /// Hash of the tokens.
    hash: String,
}

impl Description {
    pub(super) fn new(model: &ModelIdentity, units: Units, options: &SurveyOptions, hash: String) -> Self {
        Description {
            version: VERSION,
            model: model.clone(),
            shape: [units.layers, units.heads, units.neurons],
            criteria: options.criteria.iter().map(|criterion| criterion.name().to_owned()).collect(),
            window: options.window,
            texts: options.texts.clone(),
            hash,
        }
    }

    /// Scores of one criterion.
    fn units(&self) -> usize {
        self.shape[0] * (self.shape[1] + self.shape[2])
    }

    /// What is not as it was found, in words.
    fn difference(&self, found: &Description) -> String {
        let differ = |what: &str, was: String, is: String| format!("its {what} was {was}, and here it is {is}");
        if found.criteria != self.criteria {
            differ("list of criteria", found.criteria.join(", "), self.criteria.join(", "))
        } else if found.window != self.window {
            differ("window", found.window.to_string(), self.window.to_string())
        } else if found.texts != self.texts {
            differ("text", found.texts.join(", "), self.texts.join(", "))
        } else {
            "its text, of the same name, had other tokens".to_owned()
        }
    }
}

/// What was read of a text: pieces, tokens, tokens scored.
type Counts = [u64; 3];

#[derive(Serialize, Deserialize)]
struct Head {
    #[serde(flatten)]
    description: Description,
    counts: Vec<Counts>,
}

/// Sums over the pieces of each text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    names: Vec<String>,
    /// Heads of all layers, units of all layers.
    widths: [usize; 2],
    criteria: usize,
    counts: Vec<Counts>,
    losses: Vec<f64>,
    /// `[texts, criteria, units]`
    sums: Vec<f64>,
}

impl State {
    /// Nothing read yet.
    pub(super) fn new(of: &Description) -> Self {
        let (texts, criteria) = (of.texts.len(), of.criteria.len());
        State {
            names: of.texts.clone(),
            widths: [of.shape[0] * of.shape[1], of.units()],
            criteria,
            counts: vec![[0; 3]; texts],
            losses: vec![0.0; texts],
            sums: vec![0.0; texts * criteria * of.units()],
        }
    }

    /// Pieces that were read.
    pub(super) fn done(&self) -> usize {
        self.counts.iter().map(|counts| counts[0] as usize).sum()
    }

    /// Adds a piece of text `text`; `scores` are of each criterion.
    pub(super) fn add(&mut self, text: usize, tokens: usize, loss: &LossValue, scores: &[Scores]) {
        let add = [1, tokens as u64, loss.tokens as u64];
        self.counts[text].iter_mut().zip(add).for_each(|(count, n)| *count += n);
        self.losses[text] += loss.sum;
        let units = self.widths[1];
        let sums = &mut self.sums[text * self.criteria * units..][..self.criteria * units];
        for (sums, scores) in sums.chunks_exact_mut(units.max(1)).zip(scores) {
            let values = scores.heads.iter().chain(&scores.neurons);
            sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += f64::from(value));
        }
    }

    /// What was read of each text.
    pub(super) fn texts(&self) -> Vec<SurveyedText> {
        let texts = self.names.iter().zip(&self.counts).zip(&self.losses);
        let report = |((name, &[pieces, tokens, scored]), loss): ((&String, &Counts), &f64)| SurveyedText {
            name: name.clone(),
            pieces,
            tokens,
            scored,
            loss: loss / scored.max(1) as f64,
        };
        texts.map(report).collect()
    }

    /// Mean scores of a text by a criterion, if anything was read of it.
    pub(super) fn mean(&self, text: usize, criterion: usize, kind: UnitKind) -> Option<Vec<f64>> {
        let [heads, units] = self.widths;
        let sums = &self.sums[(text * self.criteria + criterion) * units..][..units];
        let sums = if kind == UnitKind::Heads { &sums[..heads] } else { &sums[heads..] };
        let pieces = self.counts[text][0];
        (pieces > 0).then(|| sums.iter().map(|sum| sum / pieces as f64).collect())
    }

    /// Writes the file under a temporary name and renames it.
    ///
    /// # Errors
    /// [`Error::Weights`] if it cannot be written.
    pub(super) fn write(&self, path: &Path, of: &Description) -> Result<()> {
        let head = Head { description: of.clone(), counts: self.counts.clone() };
        let json = serde_json::to_string(&head).map_err(|e| metadata(e.to_string()))?;
        let shape = vec![self.names.len(), self.criteria, self.widths[1]];
        let tensors = [("losses", vec![self.names.len()], &self.losses), ("sums", shape, &self.sums)];
        let views: Vec<(&str, TensorView<'_>)> = tensors
            .into_iter()
            .map(|(name, shape, values)| Ok((name, TensorView::new(Dtype::F64, shape, bytemuck::cast_slice(values))?)))
            .collect::<Result<_, safetensors::SafeTensorError>>()
            .map_err(|e| metadata(e.to_string()))?;
        let bytes = serialize(views, Some(HashMap::from([(KEY.to_owned(), json)])));
        Ok(write_atomic(path, &bytes.map_err(|e| metadata(e.to_string()))?)?)
    }

    /// Reads the state of a survey.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InFile`] with what is wrong: another model, text or criterion ([`LearnError::OtherSurvey`]), a broken
    /// file.
    pub(super) fn read(path: &Path, of: &Description) -> Result<Self> {
        let file = File::read(path)?;
        Self::read_from(&file, of).map_err(|e| e.in_file(path))
    }

    fn read_from(file: &File, of: &Description) -> Result<Self> {
        let head: Head = serde_json::from_str(file.expect_metadata(KEY)?).map_err(|e| metadata(e.to_string()))?;
        let found = &head.description;
        if found.version != VERSION {
            return Err(metadata(format!("version {} of the format; this program reads {VERSION}", found.version)));
        }
        if found.model != of.model {
            return Err(Error::OtherModel { found: found.model.clone(), expected: of.model.clone() });
        }
        if found != of {
            return Err(LearnError::OtherSurvey { difference: of.difference(found) }.into());
        }
        let mut state = State::new(of);
        if head.counts.len() != state.counts.len() {
            return Err(metadata("the number of counts is not that of the texts".to_owned()));
        }
        state.counts = head.counts;
        let values = |name: &str, shape: &[usize]| -> Result<Vec<f64>> {
            let bytes = file.bytes(name, shape, Dtype::F64)?.as_chunks().0;
            Ok(bytes.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect())
        };
        state.losses = values("losses", &[state.names.len()])?;
        state.sums = values("sums", &[state.names.len(), state.criteria, state.widths[1]])?;
        Ok(state)
    }
}

fn metadata(reason: String) -> Error {
    Error::FileMetadata { key: KEY.to_owned(), reason }
}
