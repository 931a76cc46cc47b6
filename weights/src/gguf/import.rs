//! GGUF file in, Hugging Face directory out.
//!
//! The engine reads one kind of checkpoint; other kinds are converted once. Tensors are streamed from the mapped file into the
//! new one in pieces, so memory use does not grow with the model. The directory is made under a temporary name and renamed at
//! the end: it is there whole or not at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::config::{Hyper, SpecialIds};
use super::problem::GgufProblem;
use super::reader::Gguf;
use super::tensors::{self, Plan};
use super::tokenizer::{TokenizerFiles, tokenizer};
use crate::quantize::Encoder;
use crate::{DType, Error, Progress, Result, SafetensorsWriter, StagedDirectory, checkpoint_metadata, files};

/// What an import did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// The new directory.
    pub directory: PathBuf,
    /// Architecture, such as "llama" or "qwen2".
    pub architecture: String,
    /// Type of the tensors written: "f32", "f16", "bf16" or "int8".
    pub dtype: String,
    /// Number of tensors written.
    pub tensors: usize,
    /// Number of values in them.
    pub parameters: u64,
    /// Number of tensors of each type in what was imported.
    pub source_types: BTreeMap<String, usize>,
    /// Bytes of `model.safetensors`.
    pub bytes: u64,
    /// Whether the embedding table is also the LM head.
    pub tied: bool,
    /// Number of tokens of the tokenizer; `None` if a GGUF file has none, or if the tokenizer was copied.
    pub tokens: Option<usize>,
}

/// Everything that is known before the first byte is written.
struct Prepared<'a> {
    architecture: &'static str,
    plan: Plan<'a>,
    config: Value,
    generation_config: Value,
    tokenizer: Option<TokenizerFiles>,
}

/// Converts the GGUF file `gguf` into the new directory `out_dir`, with all tensors as `dtype`.
///
/// `out_dir` must not exist or be empty; its parents are made. While the import runs, the directory has a temporary name
/// beside it; an error leaves nothing behind. The file must not be changed by others meanwhile: it is memory-mapped.
///
/// ```no_run
/// use shadowllm_weights::{DType, gguf};
/// let report = gguf::import("SmolLM2.Q4_1.gguf".as_ref(), "smollm2".as_ref(), DType::BF16, &())?;
/// assert_eq!(report.architecture, "llama");
/// # Ok::<(), shadowllm_weights::Error>(())
/// ```
///
/// # Errors
/// [`Error::Gguf`] says what is wrong with the file, [`Error::OutputExists`], [`Error::Io`], [`Error::Write`] if the disk
/// is full, and [`Error::NotFinite`] for int8 weights of such a value.
pub fn import(gguf: &Path, out_dir: &Path, dtype: DType, progress: &dyn Progress) -> Result<ImportReport> {
    let (map, _) = files::map(gguf)?;
    let problem = |problem: GgufProblem| Error::Gguf { path: gguf.to_owned(), problem };
    let parsed = Gguf::parse(map.bytes()).map_err(problem)?;
    let prepared = prepare(&parsed, dtype).map_err(problem)?;

    let staged = StagedDirectory::create(out_dir)?;
    let target = staged.path().join("model.safetensors");
    let bytes = write_tensors(&prepared.plan, &target, dtype, progress, gguf).map_err(|e| staged.finally(e))?;
    let write = |name: &str, value: &Value| {
        let mut text = format!("{value:#}").into_bytes();
        text.push(b'\n');
        staged.write(name, &text)
    };
    write("config.json", &prepared.config)?;
    write("generation_config.json", &prepared.generation_config)?;
    if let Some(files) = &prepared.tokenizer {
        write("tokenizer.json", &files.tokenizer)?;
        write("tokenizer_config.json", &files.config)?;
    }
    staged.finish()?;

    let tensors = &prepared.plan.tensors;
    let mut source_types = BTreeMap::new();
    for planned in tensors {
        *source_types.entry(planned.tensor.quant.name().to_owned()).or_insert(0) += 1;
    }
    Ok(ImportReport {
        directory: out_dir.to_owned(),
        architecture: prepared.architecture.to_owned(),
        dtype: dtype.name().to_owned(),
        tensors: tensors.len(),
        parameters: tensors.iter().map(|t| t.tensor.len() as u64).sum(),
        source_types,
        bytes,
        tied: prepared.plan.found.tied,
        tokens: prepared.tokenizer.as_ref().map(|t| t.tokens),
    })
}

fn prepare<'a>(gguf: &Gguf<'a>, dtype: DType) -> Result<Prepared<'a>, GgufProblem> {
    let hyper = Hyper::read(gguf)?;
    let plan = tensors::plan(gguf, &hyper)?;
    let special = SpecialIds::read(gguf, plan.found.vocab)?;
    Ok(Prepared {
        architecture: hyper.family.name(),
        config: hyper.config(plan.found, &special, dtype),
        generation_config: special.generation_config(),
        tokenizer: tokenizer(gguf, &special, hyper.context(), plan.found.vocab)?,
        plan,
    })
}

/// Does everything an import does with the bytes of a GGUF file short of writing: reads the header, rebuilds configuration and
/// tokenizer, converts every tensor. Tells whether a file can be imported, and is what the fuzz target runs.
///
/// # Errors
/// What is wrong with the file.
pub fn check(file: &[u8]) -> Result<(), GgufProblem> {
    let parsed = Gguf::parse(file)?;
    let prepared = prepare(&parsed, DType::F32)?;
    prepared.plan.tensors.iter().try_for_each(|planned| planned.convert(DType::F32, |_| Ok::<(), GgufProblem>(())))
}

/// Either kind of failure inside the conversion of a tensor.
enum Failure {
    Source(GgufProblem),
    Target(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Target(error)
    }
}

impl From<GgufProblem> for Failure {
    fn from(problem: GgufProblem) -> Self {
        Failure::Source(problem)
    }
}

/// Streams all tensors into a new safetensors file; returns its size.
fn write_tensors(plan: &Plan, path: &Path, dtype: DType, progress: &dyn Progress, gguf: &Path) -> Result<u64> {
    let specs: Vec<_> = plan.tensors.iter().map(|t| t.spec(dtype)).collect();
    let mut writer = SafetensorsWriter::create(path, &specs, &checkpoint_metadata(dtype))?;
    let bytes = writer.file_len();
    progress.start("importing", Some(specs.iter().filter_map(|s| s.byte_len()).map(|n| n as u64).sum()));
    let converted = plan.tensors.iter().try_for_each(|planned| {
        let mut sink = |bytes: &[u8]| -> Result<(), Failure> {
            writer.append(&planned.name, bytes)?;
            progress.advance(bytes.len() as u64);
            if progress.go_on() { Ok(()) } else { Err(Failure::Target(Error::Interrupted)) }
        };
        if dtype != DType::I8 {
            return planned.convert(dtype, sink);
        }
        let mut encoder = Encoder::new(&planned.name, &planned.tensor.shape, planned.ends_a_block());
        planned.convert(DType::F32, |bytes| {
            let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            encoder.push(&values, &mut sink)
        })?;
        encoder.finish(&mut sink)
    });
    progress.finish();
    match converted {
        Ok(()) => writer.finish().map(|()| bytes),
        Err(Failure::Target(error)) => Err(error),
        Err(Failure::Source(problem)) => Err(Error::Gguf { path: gguf.to_owned(), problem }),
    }
}
