//! From documents to scores.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::state::{Description, State};
use crate::kernels::Cpu;
use crate::learn::LearnError;
use crate::learn::samples::mix;
use crate::learn::trace::Document;
use crate::learn::{BackwardWorkspace, Criterion, Form, UnitKind, sequence_scores};
use crate::model::Model;
use crate::sparsity::{ModelIdentity, Scores, ScoresFile, Units};
use crate::{Error, Result};

/// What is surveyed.
#[derive(Clone, Debug)]
pub struct SurveyOptions {
    /// The criteria.
    pub criteria: Vec<&'static dyn Criterion>,
    /// Tokens of a window, which is read from position 0 like a text of its own.
    pub window: usize,
    /// Names of the texts that documents are of.
    pub texts: Vec<String>,
}

/// What was read of one text.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SurveyedText {
    /// Its name.
    pub name: String,
    /// Pieces read.
    pub pieces: u64,
    /// Tokens read.
    pub tokens: u64,
    /// Tokens that the loss is of.
    pub scored: u64,
    /// Cross-entropy of one of them, in nats.
    pub loss: f64,
}

/// Scores of every unit by every criterion.
#[derive(Clone, Debug, PartialEq)]
pub struct Survey {
    /// The model's shape.
    pub units: Units,
    /// The model.
    pub model: ModelIdentity,
    /// Each criterion with its scores, which are empty for a kind of units that it says nothing about.
    pub scores: Vec<(&'static str, Scores)>,
    /// What was read.
    pub texts: Vec<SurveyedText>,
}

/// A state is written again when ten times as long has passed as writing it took: it costs a tenth of the time at most.
const STATE_SHARE: u32 = 10;

/// Surveys `documents`. With a path `state` the work is stored there as it goes on, and continued if it is there already; the caller
/// removes the file when it has the results. The results do not depend on interruptions, nor on the number of threads.
/// `progress(tokens done, of all)` may stop the work.
///
/// # Errors
/// [`LearnError::TrainingText`] if there is nothing to read or a window does not fit; [`Error::TokenOutOfRange`]; [`LearnError::OtherSurvey`]
/// if the state is of other texts or criteria; [`LearnError::BadCriterion`], [`LearnError::BadLoss`], [`LearnError::BadGradients`] if the numbers
/// break down; [`Error::Weights`] if the state cannot be written; [`Error::Interrupted`].
pub fn survey(
    cpu: &Cpu,
    model: &Model,
    documents: &[Document],
    options: &SurveyOptions,
    state: Option<&Path>,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Survey> {
    let pieces = pieces(model, documents, options)?;
    let (units, identity) = (Units::from(&model.config), ModelIdentity::of(model));
    let description = Description::new(&identity, units, options, text_hash(documents, &pieces));
    let mut sums = match state {
        Some(path) if path.exists() => State::read(path, &description)?,
        _ => State::new(&description),
    };
    let total: u64 = pieces.iter().map(|(_, piece)| piece.len() as u64).sum();
    let mut done: u64 = sums.texts().iter().map(|text| text.tokens).sum();
    let mut work = BackwardWorkspace::new();
    let (mut saved, mut cost) = (Instant::now(), Duration::ZERO);
    let mut save = |sums: &State, force: bool| -> Result<()> {
        let Some(path) = state.filter(|_| force || saved.elapsed() >= STATE_SHARE * cost) else { return Ok(()) };
        let start = Instant::now();
        sums.write(path, &description)?;
        (saved, cost) = (Instant::now(), start.elapsed());
        Ok(())
    };
    for (index, piece) in &pieces[sums.done().min(pieces.len())..] {
        if progress(done, total).is_break() {
            save(&sums, true)?;
            return Err(Error::Interrupted);
        }
        let document = &documents[*index];
        let (tokens, loss) = (&document.tokens[piece.clone()], document.loss(piece));
        let (loss, scores) = sequence_scores(cpu, model, tokens, &loss, &options.criteria, &mut work)?;
        for (criterion, scores) in options.criteria.iter().zip(&scores) {
            let broken = |source| LearnError::BadCriterion { criterion: criterion.name(), source: Box::new(source) };
            scores.validate(units).map_err(broken)?;
        }
        sums.add(document.text, tokens.len(), &loss, &scores);
        done += piece.len() as u64;
        save(&sums, false)?;
    }
    // Nothing is left to stop.
    let _ = progress(done, total);
    save(&sums, true)?;
    let texts = sums.texts();
    let scores = options.criteria.iter().enumerate().map(|(index, &criterion)| {
        let of = |kind, width: usize| {
            let means: Vec<Vec<f64>> = (0..texts.len()).filter_map(|text| sums.mean(text, index, kind)).collect();
            if criterion.has(kind, Form::Sequence) { combine(&means, width) } else { Vec::new() }
        };
        let scores = Scores { heads: of(UnitKind::Heads, units.heads), neurons: of(UnitKind::Neurons, units.neurons) };
        (criterion.name(), scores)
    });
    Ok(Survey { units, model: identity, scores: scores.collect(), texts: texts.to_vec() })
}

impl Survey {
    /// The scores as files, in the order of the criteria.
    pub fn files(&self) -> impl Iterator<Item = ScoresFile> {
        self.scores.iter().map(|(criterion, scores)| ScoresFile {
            scores: scores.clone(),
            criterion: (*criterion).to_owned(),
            model: Some(self.model.clone()),
        })
    }
}

/// What is read, in order: the document and its tokens. A window that is less than half full says less than a whole one, and is
/// read only where it is all that there is of a document.
fn pieces(model: &Model, documents: &[Document], options: &SurveyOptions) -> Result<Vec<(usize, Range<usize>)>> {
    let (window, context) = (options.window, model.config.max_positions);
    let mut pieces = Vec::new();
    if (2..=context).contains(&window) {
        for (index, document) in documents.iter().enumerate().filter(|(_, document)| !document.tokens.is_empty()) {
            model.check_tokens(&document.tokens)?;
            let of_document = document.scored_pieces(window).into_iter().enumerate();
            pieces.extend(of_document.filter(|(i, p)| *i == 0 || 2 * p.len() >= window).map(|(_, p)| (index, p)));
        }
    }
    let reason = if window < 2 {
        format!("a window of {window} tokens has nothing to learn from; use at least 2")
    } else if window > context {
        format!("a window of {window} tokens does not fit into the model's {context} positions")
    } else if pieces.is_empty() {
        "the text has no document of at least 2 tokens; use a longer text".to_owned()
    } else {
        return Ok(pieces);
    };
    Err(LearnError::TrainingText { reason }.into())
}

/// A hash of all that is read.
fn text_hash(documents: &[Document], pieces: &[(usize, Range<usize>)]) -> String {
    let hash = pieces.iter().fold(0, |hash, (index, piece)| {
        let document = &documents[*index];
        let numbers = [document.text, piece.len(), document.answer.unwrap_or(usize::MAX)].map(|n| n as u64);
        let tokens = document.tokens[piece.clone()].iter().map(|&token| u64::from(token));
        numbers.into_iter().chain(tokens).fold(hash, mix)
    });
    format!("{hash:016x}")
}

/// The mean of the texts' scores `[L, width]`, each text of the same size.
fn combine(texts: &[Vec<f64>], width: usize) -> Vec<f32> {
    // Layer 0, which is never pruned, does not count.
    let size = |scores: &Vec<f64>| {
        let units = scores.get(width..).unwrap_or_default();
        units.iter().map(|v| v.abs()).sum::<f64>() / units.len().max(1) as f64
    };
    let sizes: Vec<f64> = texts.iter().map(size).collect();
    let common = sizes.iter().sum::<f64>() / sizes.len().max(1) as f64;
    let weights = sizes.iter().map(|&size| if size > 0.0 && sizes.len() > 1 { common / size } else { 1.0 });
    let mut sums = vec![0.0; texts.first().map_or(0, Vec::len)];
    for (scores, weight) in texts.iter().zip(weights) {
        sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += weight * score);
    }
    sums.into_iter().map(|sum| (sum / texts.len() as f64) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_count_the_same_whatever_their_size() {
        // Two units a layer, two layers; the second text's scores are a hundred times as large.
        let texts = [vec![9.0, 9.0, 1.0, 3.0], vec![9.0, 9.0, 300.0, -100.0]];
        let combined = combine(&texts, 2);
        assert_eq!(combined[2], (101.0 / 2.0 * (0.5 + 1.5)) as f32);
        assert_eq!(combined[3], (101.0 / 2.0 * (1.5 - 0.5)) as f32);
        assert_eq!(combine(&texts[..1], 2), [9.0, 9.0, 1.0, 3.0], "one text is as it is");
        assert_eq!(
            combine(&[vec![1.0, 0.0], vec![1.0, 2.0]], 1),
            [0.75, 0.5],
            "a text without any score counts as nothing"
        );
    }
}
