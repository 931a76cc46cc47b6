//! Packed weights without a file, for weights that were made in memory.

use std::collections::HashMap;
use std::sync::Arc;

use super::PackedCheckpoint;
use super::pack::{BLOCK, Contents};
use super::records::Records;
use crate::{Checkpoint, DType, Error, Progress, Result, Storage, TensorData};

impl PackedCheckpoint {
    /// Packs the weights of `source` into memory: as [`pack`](super::pack), but nothing is written, and nothing remains when the
    /// result is dropped. Layers whose matrices are the same memory share their records.
    ///
    /// ```
    /// # fn main() -> Result<(), shadowllm_weights::Error> {
    /// # let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("embedded/tiny-opt");
    /// use shadowllm_weights::{Checkpoint, PackedCheckpoint};
    /// let packed = PackedCheckpoint::in_memory(&Checkpoint::open(&dir)?, &())?;
    /// assert_eq!(packed.layer(7).neurons.shape(), [1024, 2, 256]); // F, fc1 row | fc2 column, d
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::MixedTypes`]; [`Error::Interrupted`]; [`Error::MissingTensor`] and other errors of a checkpoint that is not what its
    /// configuration says.
    pub fn in_memory(source: &Checkpoint, progress: &dyn Progress) -> Result<Self> {
        let contents = Contents::of(source)?;
        let mut made: HashMap<Vec<*const u8>, TensorData> = HashMap::new();
        let mut tensors = Vec::with_capacity(contents.records.len());
        progress.start("packing", None);
        for records in &contents.records {
            let parts = records.parts.iter().map(|(name, _)| source.tensor(name));
            let matrices = parts.collect::<Result<Vec<_>>>()?;
            let memory: Vec<_> = matrices.iter().map(|matrix| matrix.bytes().as_ptr()).collect();
            let tensor = match made.get(&memory) {
                Some(tensor) => tensor.clone(),
                None => filled(records, source.config().hidden, &matrices, contents.dtype, progress)?,
            };
            made.insert(memory, tensor.clone());
            tensors.push(tensor);
        }
        progress.finish();
        let mut tensors = tensors.into_iter();
        let layers = std::iter::from_fn(|| Some([tensors.next()?, tensors.next()?, tensors.next()?])).collect();
        let rest = contents.rest.iter().map(|name| Ok((name.clone(), source.tensor(name)?.clone())));
        Self::of_layers(source, contents.dtype, layers, rest.collect::<Result<_>>()?)
    }
}

/// All records of one kind and layer, in rows of `width` values.
fn filled(
    records: &Records,
    width: usize,
    matrices: &[&TensorData],
    dtype: DType,
    progress: &dyn Progress,
) -> Result<TensorData> {
    let record = records.record_bytes();
    let len = records.count * record;
    // Words, so that values of every type are aligned.
    let mut words = vec![0u64; len.div_ceil(size_of::<u64>())];
    let bytes = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..len];
    let at_once = (BLOCK / record).max(1);
    for (block, out) in bytes.chunks_mut(at_once * record).enumerate() {
        let first = block * at_once;
        records.fill(matrices, first..first + out.len() / record, out);
        progress.advance(out.len() as u64);
        if !progress.go_on() {
            return Err(Error::Interrupted);
        }
    }
    let shape = [records.count, records.parts.len() * records.height, width];
    TensorData::new(Arc::new(Storage::Owned { words, len }), 0..len, dtype, &shape)
}
