//! Options of commands that learn from text.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::console::read_text;
use super::text::file_name;
use crate::Result;
use crate::eval::tasks::{Request, Shots, encode_answer, read_items, task};
use crate::generate::Engine;
use crate::learn::LearnError;
use crate::learn::trace::{Document, Importance, Passage, SampleOptions, Text, TextSource, choose_documents};
use crate::learn::train::PresetSamples;
use crate::sparsity::predictor::PredictorInput;

/// Which text.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Text")]
pub(super) struct TextArgs {
    /// Text files (UTF-8); - for standard input. Use text of the kind that will be generated: nothing else matters as much. Every
    /// file gives an equal share of the tokens as long as it lasts.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub text: Vec<PathBuf>,

    /// Records of a task to learn from, jsonl with the columns of Hugging Face, each with its right answer: piqa, copa, openbookqa,
    /// winogrande, rte, hellaswag or arc_easy. As texts they give an equal share of the tokens. Gradients are of the loss on the
    /// answer alone.
    #[arg(long, value_name = "NAME=FILE", num_args = 1..)]
    pub tasks: Vec<String>,

    /// Examples in front of each record of a task, other records of its file.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub shots: usize,

    /// Tokens to learn from.
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    pub tokens: usize,

    /// Tokens that are read in one go, from position 0 [default: 512, or the model's context if that is shorter].
    #[arg(long, value_name = "N")]
    pub window: Option<usize>,

    /// Seed of everything random; the same seed gives the same file.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// Which text, and what is noted of it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Text")]
pub(super) struct SampleArgs {
    #[command(flatten)]
    pub texts: TextArgs,

    /// What predictors read: the residual stream after a station's layer, or the contexts of its heads [default: that of the
    /// preset].
    #[arg(long, value_name = "INPUT", value_enum)]
    pub input: Option<InputName>,

    /// Layers after which a predictor reads, beginning with 0; each predicts the layers up to the next [default: those of the
    /// preset].
    #[arg(long, value_name = "LAYER,LAYER,...", value_delimiter = ',')]
    pub stations: Option<Vec<usize>>,

    /// How much a unit counted for a token: magnitude, the size of what it adds to the residual stream; l2norm, the size of its
    /// activation; or with gradients, which take three times as long, saliency, plainact, fisher or gradnorm [default: that of
    /// the preset].
    #[arg(long, value_name = "NAME")]
    pub criterion: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum InputName {
    Residual,
    Contexts,
}

impl From<InputName> for PredictorInput {
    fn from(name: InputName) -> Self {
        match name {
            InputName::Residual => PredictorInput::Residual,
            InputName::Contexts => PredictorInput::Contexts,
        }
    }
}

/// Documents of files.
pub(super) struct Documents {
    /// The documents.
    pub documents: Vec<Document>,
    /// Names of the files.
    pub names: Vec<String>,
    /// Documents of each.
    pub counts: Vec<usize>,
    /// Tokens of a window.
    pub window: usize,
}

impl TextArgs {
    /// Documents of the files, as many as there are tokens asked for.
    pub(super) fn documents(&self, engine: &Engine) -> Result<Documents> {
        let (tokenizer, config) = (engine.tokenizer()?, engine.config());
        let mut texts = Vec::with_capacity(self.text.len() + self.tasks.len());
        for path in &self.text {
            texts.push(Text::plain(&file_name(path), &read_text(path)?)?);
        }
        for given in &self.tasks {
            texts.push(self.task(given)?);
        }
        if texts.is_empty() {
            let reason =
                "there is nothing to learn from; give texts with --text FILE or records with --tasks NAME=FILE";
            return Err(LearnError::TrainingText { reason: reason.to_owned() }.into());
        }
        let mut encode = |passage: &Passage| match passage {
            Passage::Plain(text) => Ok(Document::from(tokenizer.encode(text, false)?)),
            Passage::Answer { context, answer } => {
                let Request { tokens, context } = encode_answer(tokenizer, config, context, answer)?;
                Ok(Document::with_answer(tokens, context))
            }
        };
        let (documents, counts) = choose_documents(&texts, self.tokens, self.seed, &mut encode)?;
        let names = texts.iter().map(|text| text.name().to_owned()).collect();
        let window = self.window.unwrap_or_else(|| config.max_positions.min(512));
        Ok(Documents { documents, names, counts, window })
    }

    /// The records of a task as texts: what is asked and the right answer, behind other records.
    fn task(&self, given: &str) -> Result<Text> {
        let (name, file) = given.split_once('=').ok_or_else(|| LearnError::TrainingText {
            reason: format!("--tasks {given:?} names no file; expected NAME=FILE, such as piqa=piqa_train.jsonl"),
        })?;
        let path = Path::new(file);
        let items = read_items(path, task(name)?, None)?;
        let mut shots = match self.shots {
            0 => Shots::none(),
            count => Shots::new(&items, count, self.seed).map_err(|error| error.in_file(path))?,
        };
        let passages = items.iter().filter_map(|item| {
            let (context, answer) = item.requests(&shots.draw()).into_iter().nth(item.gold)?;
            Some(Passage::Answer { context, answer })
        });
        Text::passages(&file_name(path), passages.collect())
    }
}

impl SampleArgs {
    /// Samples of the files, with the preset's settings where none are given.
    pub(super) fn source<'a>(&self, engine: &'a Engine, preset: &PresetSamples) -> Result<TextSource<'a>> {
        let Documents { documents, names, counts, window } = self.texts.documents(engine)?;
        let data: Vec<String> =
            names.iter().zip(counts).map(|(name, count)| format!("{name} ({count} documents)")).collect();
        let options = SampleOptions {
            input: self.input.map_or(preset.input, PredictorInput::from),
            stations: self.stations.clone().unwrap_or_else(|| preset.stations.clone()),
            window,
            seed: self.texts.seed,
            data: data.join(", "),
        };
        let name = self.criterion.as_deref().unwrap_or(preset.criterion);
        let importance = Importance::of(name, engine.cpu(), engine.model())?;
        TextSource::new(engine.cpu(), engine.model(), importance, documents, &options)
    }
}
