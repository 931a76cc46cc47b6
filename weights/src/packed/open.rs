//! A packed file, open for reading.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::format::{PackedHeader, heads_name, int8_shapes, kv_heads_name, neurons_name, parse_packed_header};
use super::identity::SourceIdentity;
use super::lock::{self, PackLock};
use super::pack::{make_parent, pack_locked};
use super::records::Records;
use super::{FILE_NAME, PackedProblem, packed_location};
use crate::shards::{Tensor, read_storage};
use crate::{Checkpoint, DType, Error, ModelConfig, ModelNames, Progress, Result, TensorData, files};

/// Packed weights: mapped, checked, and used in place. Needs nothing of the checkpoint that they were packed from.
#[derive(Debug)]
pub struct PackedCheckpoint {
    path: PathBuf,
    dtype: DType,
    fingerprint: String,
    source: SourceIdentity,
    mapped_bytes: u64,
    layers: Vec<Layer>,
    rest: Checkpoint,
}

#[derive(Debug)]
struct Layer {
    heads: TensorData,
    kv_heads: TensorData,
    neurons: TensorData,
}

/// The records of one layer.
#[derive(Clone, Copy, Debug)]
pub struct PackedLayer<'a> {
    /// `[H, 2*d_h, d]`: per head its rows of Wq, then its columns of Wo.
    pub heads: &'a TensorData,
    /// `[H_kv, 2*d_h, d]`: per key/value head its rows of Wk, then its rows of Wv.
    pub kv_heads: &'a TensorData,
    /// `[F, R, d]`: per neuron its `fc1` row and `fc2` column (`R = 2`), or its `gate` row, `up` row and `down` column (`R = 3`).
    pub neurons: &'a TensorData,
}

impl PackedCheckpoint {
    /// Opens the packed file `path`. If the model that it was packed from is there still (in the file's own directory, or where it
    /// was), the file must have been made from what that model is now; see [`PackedCheckpoint::open_for`].
    ///
    /// The file stays mapped; replace it by renaming only, as [`pack`](super::pack) does.
    ///
    /// # Errors
    /// [`Error::Packed`] says what is wrong with it; [`Error::Io`] and [`Error::NotAFile`].
    pub fn open(path: &Path) -> Result<Self> {
        let mut packed = Self::read(path).map_err(|e| or_busy(e, path))?;
        match packed.find_source() {
            Some(source) => packed.checked_for(&source, &()),
            None => {
                // The weights are gone; the tokenizer may be there still.
                let is_model = |directory: &PathBuf| directory.join("config.json").is_file();
                if let Some(directory) = packed.directories().find(is_model).or_else(|| packed.directories().next()) {
                    packed.rest.set_directory(&directory);
                }
                Ok(packed)
            }
        }
    }

    /// Opens the packed file `path` of the model `source`. A file of weights of the same size and modification time as when it was
    /// packed counts as the same; where the time differs its content is hashed, once.
    ///
    /// # Errors
    /// As [`PackedCheckpoint::open`]; [`PackedProblem::Stale`] if `source` is another model, or has changed;
    /// [`Error::Interrupted`].
    pub fn open_for(path: &Path, source: &Checkpoint, progress: &dyn Progress) -> Result<Self> {
        Self::read_for(path, source, progress).map_err(|e| or_busy(e, path))
    }

    /// Opens the packed weights of `source` at [`packed_location`]. If there are none, or they are stale, damaged or of another
    /// version, they are made first. While another process makes them, this one waits.
    ///
    /// # Errors
    /// Those of [`packed_location`], [`pack`](super::pack) and [`PackedCheckpoint::open_for`].
    pub fn open_or_pack(source: &Checkpoint, progress: &dyn Progress) -> Result<Self> {
        Self::open_or_pack_at(&packed_location(source)?, source, progress)
    }

    /// As [`PackedCheckpoint::open_or_pack`], at a place of your choice.
    ///
    /// # Errors
    /// As there.
    pub fn open_or_pack_at(path: &Path, source: &Checkpoint, progress: &dyn Progress) -> Result<Self> {
        match Self::read_for(path, source, progress) {
            Err(error) if needs_packing(&error) => {}
            result => return result,
        }
        make_parent(path)?;
        let lock = PackLock::wait(path, progress)?;
        // Whoever held the lock may have made it meanwhile.
        match Self::read_for(path, source, progress) {
            Err(error) if needs_packing(&error) => {}
            result => return result,
        }
        pack_locked(source, path, progress, &lock)?;
        let mut packed = Self::read(path)?;
        packed.rest.describe_as(source);
        Ok(packed)
    }

    /// Weights that are in no file; `layers` are the heads, key/value heads and neurons of each layer.
    pub(super) fn of_layers(
        source: &Checkpoint,
        dtype: DType,
        layers: Vec<[TensorData; 3]>,
        rest: Vec<(String, TensorData)>,
    ) -> Result<Self> {
        let layer = |[heads, kv_heads, neurons]: [TensorData; 3]| Layer { heads, kv_heads, neurons };
        let mut rest = Checkpoint::from_tensors(source.config().clone(), rest);
        rest.describe_as(source);
        Ok(PackedCheckpoint {
            path: PathBuf::from(source.location()),
            dtype,
            fingerprint: source.fingerprint()?,
            source: SourceIdentity { location: source.location(), files: Vec::new() },
            mapped_bytes: 0,
            layers: layers.into_iter().map(layer).collect(),
            rest,
        })
    }

    fn read_for(path: &Path, source: &Checkpoint, progress: &dyn Progress) -> Result<Self> {
        Self::read(path)?.checked_for(source, progress)
    }

    /// Opens the file and checks everything that shows in it.
    fn read(path: &Path) -> Result<Self> {
        let (storage, _) = files::map(path)?;
        let problem = |problem| Error::Packed { path: path.to_owned(), problem };
        let header = parse_packed_header(storage.bytes()).map_err(problem)?;
        let PackedHeader { config, dtype, fingerprint, source, tensors } = header;
        let int8 = int8_shapes(&config, dtype, &tensors);
        let mut tensors =
            read_storage("", storage, None, &int8).map_err(|e| problem(PackedProblem::Damaged(Box::new(e))))?;
        let mut take = |name: String| match tensors.by_name.remove(&name) {
            Some(Tensor::Loaded(tensor)) => Ok(tensor),
            _ => Err(problem(PackedProblem::MissingTensor { name })),
        };
        let layers = (0..config.layers)
            .map(|i| {
                let (heads, kv_heads) = (take(heads_name(i))?, take(kv_heads_name(i))?);
                Ok(Layer { heads, kv_heads, neurons: take(neurons_name(i))? })
            })
            .collect::<Result<_>>()?;
        let mapped_bytes = tensors.bytes;
        let rest = tensors.by_name.into_iter().filter_map(|(name, tensor)| match tensor {
            Tensor::Loaded(tensor) => Some((name, tensor)),
            Tensor::Unsupported(_) => None,
        });
        let rest = Checkpoint::from_tensors(config, rest);
        Ok(PackedCheckpoint { path: path.to_owned(), dtype, fingerprint, source, mapped_bytes, layers, rest })
    }

    /// The model that the file belongs to, if it is to be found.
    fn find_source(&self) -> Option<Checkpoint> {
        if !self.source.is_directory() {
            return Checkpoint::embedded().ok().filter(|embedded| embedded.location() == self.source.location);
        }
        self.directories().find_map(|dir| Checkpoint::open(&dir).ok())
    }

    /// Where the model may be, most likely first.
    fn directories(&self) -> impl Iterator<Item = PathBuf> + use<> {
        // A model that was moved takes its packed file along.
        let own = self.path.parent().filter(|_| self.path.file_name().is_some_and(|name| name == FILE_NAME));
        let own = own.map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent }.to_owned());
        let source = self.source.is_directory().then(|| PathBuf::from(&self.source.location));
        own.into_iter().chain(source)
    }

    fn checked_for(mut self, source: &Checkpoint, progress: &dyn Progress) -> Result<Self> {
        if self.config().structure() != source.config().structure() {
            let reason = "the model has another configuration than when it was packed".to_owned();
            let problem = PackedProblem::Stale { reason, source_location: self.source.location };
            return Err(Error::Packed { path: self.path, problem });
        }
        self.source.check(&self.path, source, progress)?;
        // Special tokens may have changed since.
        self.rest.describe_as(source);
        Ok(self)
    }

    /// The records of layer `i`.
    ///
    /// # Panics
    /// If there is no such layer; `config().layers` says how many there are.
    pub fn layer(&self, i: usize) -> PackedLayer<'_> {
        let Layer { heads, kv_heads, neurons } = &self.layers[i];
        PackedLayer { heads, kv_heads, neurons }
    }

    /// All tensors that are not packed, under their own names: norms, biases, embeddings, an untied head. Its side files, a
    /// tokenizer among them, are those of the model that the file belongs to, where it is to be found.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.rest
    }

    /// The model's description.
    pub fn config(&self) -> &ModelConfig {
        self.rest.config()
    }

    /// Type of the records.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// [`Checkpoint::fingerprint`] of the model.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What the weights were packed from.
    pub fn source(&self) -> &SourceIdentity {
        &self.source
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file: bytes mapped, not bytes read.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped_bytes
    }

    /// All tensors of the model as a checkpoint has them, the packed ones taken apart into matrices again.
    ///
    /// # Errors
    /// [`Error::TensorSize`] never, short of a bug: shapes were checked when the file was opened.
    pub fn unpack(&self) -> Result<Vec<(String, TensorData)>> {
        let config = self.config();
        let names = ModelNames::of(config, |name| self.rest.get(name).is_some());
        let mut tensors: Vec<(String, TensorData)> =
            self.rest.names().filter_map(|name| Some((name.to_owned(), self.rest.get(name)?.clone()))).collect();
        for (i, (layer, stored)) in names.layers.iter().zip(&self.layers).enumerate() {
            let packed = [&stored.heads, &stored.kv_heads, &stored.neurons];
            for (records, packed) in Records::of_layer(config, self.dtype, i, layer).iter().zip(packed) {
                for (p, (name, _)) in records.parts.iter().enumerate() {
                    let (mut shape, bytes) = records.matrix(p, packed.bytes());
                    if self.dtype == DType::I8 {
                        shape[1] = config.hidden;
                    }
                    tensors.push((name.clone(), TensorData::from_bytes(&shape, self.dtype, &bytes)?));
                }
            }
        }
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(tensors)
    }
}

/// `error`, unless there is no file yet because someone is making it.
fn or_busy(error: Error, path: &Path) -> Error {
    match error {
        Error::Io { source, .. } if source.kind() == ErrorKind::NotFound && lock::is_held(path) => lock::busy(path),
        other => other,
    }
}

/// Whether `error` is one that packing mends.
fn needs_packing(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => source.kind() == ErrorKind::NotFound,
        Error::Packed { problem, .. } => problem.is_mended_by_packing(),
        _ => false,
    }
}
