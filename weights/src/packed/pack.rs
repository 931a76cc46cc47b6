//! Making a packed file.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::PackedProblem;
use super::format::{VERSION, claims_to_be_packed, metadata, packed_layout, packed_matrices, rest_layout};
use super::identity::SourceIdentity;
use super::location::SUFFIX;
use super::lock::PackLock;
use super::records::Records;
use crate::writer::Temporary;
use crate::{Checkpoint, DType, Error, ModelNames, Progress, Result, SafetensorsWriter, TensorSpec, files};

/// Bytes of records made and written at a time. The larger, the more of each row of a matrix is read at once; memory use is
/// this or one record.
pub(super) const BLOCK: usize = 64 << 20;

/// What packing did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PackReport {
    /// The file that was made.
    pub file: PathBuf,
    /// The model.
    pub source: String,
    /// Its [`Checkpoint::fingerprint`].
    pub fingerprint: String,
    /// Type of the packed tensors: "f32", "f16", "bf16" or "int8".
    pub dtype: String,
    /// Version of the format.
    pub version: String,
    /// Number of layers.
    pub layers: usize,
    /// Bytes of the records of heads, key/value heads and neurons.
    pub packed_bytes: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Packs the weights of `checkpoint` into the file `target`, replacing packed weights that are there. Parents of `target` are made.
///
/// The file appears when it is complete; an error or an interruption leaves what was there. Memory use does not grow with
/// the model.
///
/// ```
/// # fn main() -> Result<(), shadowllm_weights::Error> {
/// # let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("embedded/tiny-opt");
/// # let out = tempfile::tempdir().unwrap();
/// # let target = out.path().join("tiny.shadow.safetensors");
/// use shadowllm_weights::{Checkpoint, PackedCheckpoint, pack};
/// pack(&Checkpoint::open(&dir)?, &target, &())?;
/// let packed = PackedCheckpoint::open(&target)?;
/// assert_eq!(packed.layer(7).neurons.shape(), [1024, 2, 256]); // F, fc1 row | fc2 column, d
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Write`] if the disk is full; [`Error::Packed`] if another process is making the file, or if there is another kind of
/// file under its name; [`Error::MixedTypes`]; [`Error::Interrupted`]; [`Error::MissingTensor`] and other errors of a checkpoint
/// that is not what its configuration says.
pub fn pack(checkpoint: &Checkpoint, target: &Path, progress: &dyn Progress) -> Result<PackReport> {
    make_parent(target)?;
    let lock = PackLock::acquire(target)?;
    pack_locked(checkpoint, target, progress, &lock)
}

/// Makes the directory of `target`.
pub(super) fn make_parent(target: &Path) -> Result<()> {
    match target.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e)),
        None => Ok(()),
    }
}

/// As [`pack`], by who holds the lock.
pub(super) fn pack_locked(
    checkpoint: &Checkpoint,
    target: &Path,
    progress: &dyn Progress,
    _lock: &PackLock,
) -> Result<PackReport> {
    check_target(target)?;
    Temporary::remove_abandoned(target);
    let contents = Contents::of(checkpoint)?;
    let fingerprint = checkpoint.fingerprint()?;
    let source = SourceIdentity::of(checkpoint, progress)?;
    let metadata = metadata(checkpoint.config(), contents.dtype, &fingerprint, &source);
    let writer = SafetensorsWriter::create(target, &contents.specs, &metadata)?;
    let bytes = writer.file_len();
    contents.write(checkpoint, writer, BLOCK, progress)?;
    Ok(PackReport {
        file: target.to_owned(),
        source: checkpoint.location(),
        fingerprint,
        dtype: contents.dtype.name().to_owned(),
        version: VERSION.to_owned(),
        layers: checkpoint.config().layers,
        packed_bytes: contents.packed_bytes(),
        bytes,
    })
}

/// Refuses to replace what is no packed file. A name of ours is always ours, however damaged the file.
fn check_target(target: &Path) -> Result<()> {
    let occupied = || Error::Packed { path: target.to_owned(), problem: PackedProblem::Occupied };
    match fs::metadata(target) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("open", target, e)),
        Ok(found) if !found.is_file() => return Err(occupied()),
        Ok(_) => {}
    }
    let is_ours = target.to_string_lossy().ends_with(SUFFIX) || claims_to_be_packed(files::map(target)?.0.bytes());
    if is_ours { Ok(()) } else { Err(occupied()) }
}

/// Everything that a packed file of a checkpoint will hold.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) dtype: DType,
    pub(super) records: Vec<Records>,
    /// Names of the tensors that are copied.
    pub(super) rest: Vec<String>,
    pub(super) specs: Vec<TensorSpec>,
}

impl Contents {
    /// Checks shapes and types of everything.
    ///
    /// # Errors
    /// As [`pack`].
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let config = checkpoint.config();
        // A packed file holds its configuration as `config.json`.
        config.check_writable()?;
        let names = ModelNames::of(config, |name| checkpoint.get(name).is_some());
        for ((name, shape), int8) in names.layout(config).into_iter().zip(names.stored(config, DType::I8)) {
            let is_int8 = checkpoint.tensor(&name)?.dtype() == DType::I8;
            checkpoint.tensor_with_shape(&name, if is_int8 { &int8.shape } else { &shape })?;
        }
        let dtype = one_type(checkpoint, &names)?;
        let mut specs: Vec<TensorSpec> =
            packed_layout(config).map(|(name, shape)| TensorSpec { name, dtype, shape }).collect();
        let mut rest = Vec::new();
        for (name, shape) in rest_layout(config, &names) {
            specs.push(TensorSpec { name: name.clone(), dtype: checkpoint.tensor(&name)?.dtype(), shape });
            rest.push(name);
        }
        let layers = names.layers.iter().enumerate();
        let records = layers.flat_map(|(i, layer)| Records::of_layer(config, dtype, i, layer)).collect();
        Ok(Contents { dtype, records, rest, specs })
    }

    /// Bytes of all records.
    fn packed_bytes(&self) -> u64 {
        self.records.iter().map(|r| (r.count * r.record_bytes()) as u64).sum()
    }

    /// Writes everything and finishes the file. Blocks of records have at most `block` bytes, or are one record.
    ///
    /// # Errors
    /// As [`pack`].
    pub(super) fn write(
        &self,
        checkpoint: &Checkpoint,
        mut writer: SafetensorsWriter,
        block: usize,
        progress: &dyn Progress,
    ) -> Result<()> {
        progress.start("packing", Some(writer.file_len()));
        let largest = self.records.iter().map(Records::record_bytes).max().unwrap_or(0).max(block);
        // Words, so that values of every type are aligned.
        let mut words = vec![0u32; largest.div_ceil(size_of::<u32>())];
        let buffer: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        let done = |writer: &mut SafetensorsWriter, name: &str, bytes: &[u8]| {
            writer.append(name, bytes)?;
            progress.advance(bytes.len() as u64);
            if progress.go_on() { Ok(()) } else { Err(Error::Interrupted) }
        };
        for records in &self.records {
            let parts = records.parts.iter().map(|(name, _)| checkpoint.tensor(name));
            let matrices = parts.collect::<Result<Vec<_>>>()?;
            let at_once = (block / records.record_bytes()).max(1);
            for first in (0..records.count).step_by(at_once) {
                let range = first..records.count.min(first + at_once);
                let out = &mut buffer[..range.len() * records.record_bytes()];
                records.fill(&matrices, range, out);
                done(&mut writer, &records.name, out)?;
            }
        }
        for name in &self.rest {
            for bytes in checkpoint.tensor(name)?.bytes().chunks(block) {
                done(&mut writer, name, bytes)?;
            }
        }
        writer.finish()?;
        progress.finish();
        Ok(())
    }
}

/// The type of all packed matrices.
fn one_type(checkpoint: &Checkpoint, names: &ModelNames) -> Result<DType> {
    let mut first: Option<(String, DType)> = None;
    for name in names.layers.iter().flat_map(packed_matrices) {
        let second = format!("{name}.weight");
        let second_type = checkpoint.tensor(&second)?.dtype();
        match first {
            None => first = Some((second, second_type)),
            Some((_, first_type)) if first_type == second_type => {}
            Some((first, first_type)) => return Err(Error::MixedTypes { first, first_type, second, second_type }),
        }
    }
    // A configuration that was read has at least one layer.
    Ok(first.map_or(DType::F32, |(_, dtype)| dtype))
}
