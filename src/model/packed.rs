//! Layer weights as records of units, for tokens that keep a part of them.

use shadowllm_weights::{ModelConfig, PackedCheckpoint, TensorData};

use crate::tensor::Matrix;
use crate::{Error, Result};

/// Records of one layer.
#[derive(Clone, Debug)]
pub struct PackedLayer {
    /// `[H, 2*d_h*d]`: a head's rows of Wq, then its columns of Wo.
    pub heads: Matrix,
    /// `[H_kv, 2*d_h*d]`: a key/value head's rows of Wk, then of Wv.
    pub kv_heads: Matrix,
    /// `[F, R*d]`: a neuron's fc1 row and fc2 column (R = 2), or its gate row, up row and down column (R = 3).
    pub neurons: Matrix,
}

/// The matrices of all layers as records. Norms, biases, embedding and head are those of the [`Model`](super::Model).
#[derive(Debug)]
pub struct PackedModel {
    /// `L` layers.
    pub layers: Vec<PackedLayer>,
}

impl PackedModel {
    /// Takes the records of a packed checkpoint; nothing is copied.
    ///
    /// # Errors
    /// None for a checkpoint that was opened, whose shapes were checked.
    pub fn load(packed: &PackedCheckpoint) -> Result<PackedModel> {
        let records = |tensor: &TensorData| -> Result<Matrix> { Ok(Matrix::of_records(tensor.clone())?) };
        let layers = (0..packed.config().layers).map(|i| {
            let layer = packed.layer(i);
            Ok(PackedLayer {
                heads: records(layer.heads)?,
                kv_heads: records(layer.kv_heads)?,
                neurons: records(layer.neurons)?,
            })
        });
        Ok(PackedModel { layers: layers.collect::<Result<_>>()? })
    }

    /// Checks that the records are those of a model of this shape.
    ///
    /// # Errors
    /// [`Error::PackedShape`] names the first difference.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let mismatch = |what, found, expected| Err(Error::PackedShape { what, found, expected });
        if self.layers.len() != config.layers {
            return mismatch("layers", self.layers.len(), config.layers);
        }
        let head = 2 * config.head_dim * config.hidden;
        let neuron = config.hidden * if config.gated { 3 } else { 2 };
        for layer in &self.layers {
            for (what, records, rows, cols) in [
                ("heads", &layer.heads, config.heads, head),
                ("key/value heads", &layer.kv_heads, config.kv_heads, head),
                ("neurons", &layer.neurons, config.ffn, neuron),
            ] {
                if records.rows() != rows {
                    return mismatch(what, records.rows(), rows);
                }
                if records.cols() != cols {
                    return mismatch("values of a record", records.cols(), cols);
                }
            }
        }
        Ok(())
    }
}
