//! What one decoded token reads.

use shadowllm_weights::Positions;

use super::{Ffn, KeptUnits, Model, PackedLayer};

/// Bytes that decoding one token reads from memory, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ActiveBytes {
    /// Layer weights: attention, FFN and norms.
    pub blocks: u64,
    /// LM head, final norm and projections.
    pub head: u64,
    /// One row of the embedding and position tables.
    pub embedding: u64,
    /// Keys and values of the positions that the token attends to.
    pub cache: u64,
}

impl ActiveBytes {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.blocks + self.head + self.embedding + self.cache
    }
}

/// Bytes of the records of some units of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct UnitBytes {
    /// Query rows and output columns of the heads, key and value rows of the key/value heads that they use.
    pub heads: u64,
    /// Whole records of the neurons.
    pub neurons: u64,
}

impl UnitBytes {
    /// Both.
    pub fn total(&self) -> u64 {
        self.heads + self.neurons
    }
}

impl PackedLayer {
    /// Bytes of the records that a plan keeps: what a token reads of the layer's matrices, but for what the token itself
    /// decides. A neuron that is skipped by its first product is read in part, and after `kv_flush` positions the key and
    /// value rows of every head are read.
    pub fn unit_bytes(&self, kept: KeptUnits<'_>) -> UnitBytes {
        let record = |m: &crate::tensor::Matrix| m.row_bytes() as u64;
        let group = (self.heads.rows() / self.kv_heads.rows().max(1)).max(1) as u32;
        // The list ascends, so the heads of one key/value head stand together.
        let used = kept.heads.chunk_by(|a, b| a / group == b / group).count() as u64;
        UnitBytes {
            heads: kept.heads.len() as u64 * record(&self.heads) + used * record(&self.kv_heads),
            neurons: kept.neurons.len() as u64 * record(&self.neurons),
        }
    }
}

impl Model {
    /// Bytes read to decode the token at `position` (0 is the first token of a text).
    pub fn active_bytes(&self, position: usize) -> ActiveBytes {
        let blocks = self.layers.iter().map(|layer| {
            let a = &layer.attention;
            let ffn = match &layer.ffn {
                Ffn::Plain { fc1, fc2 } => fc1.bytes() + fc2.bytes(),
                Ffn::Gated { gate, up, down } => gate.bytes() + up.bytes() + down.bytes(),
            };
            let attention = a.q.bytes() + a.k.bytes() + a.v.bytes() + a.out.bytes();
            attention + ffn + layer.attention_norm.bytes() + layer.ffn_norm.bytes()
        });
        let row = |m: &crate::tensor::Matrix| m.row_bytes() as u64;
        let linear = |l: &Option<super::Linear>| l.as_ref().map_or(0, super::Linear::bytes);
        let learned = matches!(self.config.positions, Positions::Learned { .. });
        let seen: u64 =
            self.layers.iter().map(|l| l.attention.window.unwrap_or(usize::MAX).min(position + 1) as u64).sum();
        ActiveBytes {
            blocks: blocks.sum(),
            head: self.head.bytes() as u64
                + self.final_norm.as_ref().map_or(0, super::Norm::bytes)
                + linear(&self.project_out),
            embedding: row(&self.embedding)
                + linear(&self.project_in)
                + if learned { self.positions.as_ref().map_or(0, row) } else { 0 },
            cache: seen * 8 * (self.config.kv_heads * self.config.head_dim) as u64,
        }
    }

    /// Bytes of the layers' norms and biases, which every token reads whatever it keeps.
    pub fn vector_bytes(&self) -> u64 {
        let bias = |l: &super::Linear| l.bytes() - l.weight.bytes();
        let layers = self.layers.iter().map(|layer| {
            let a = &layer.attention;
            let ffn = match &layer.ffn {
                Ffn::Plain { fc1, fc2 } => bias(fc1) + bias(fc2),
                Ffn::Gated { gate, up, down } => bias(gate) + bias(up) + bias(down),
            };
            let attention: u64 = [&a.q, &a.k, &a.v, &a.out].into_iter().map(bias).sum();
            attention + ffn + layer.attention_norm.bytes() + layer.ffn_norm.bytes()
        });
        layers.sum()
    }

    /// Bytes of all weights, tied ones counted once; norms and biases as `f32`, as they are held.
    pub fn weight_bytes(&self) -> u64 {
        let token = self.active_bytes(0);
        let matrix = |m: &Option<crate::tensor::Matrix>| m.as_ref().map_or(0, |m| m.bytes() as u64);
        token.blocks
            + token.head
            + if self.config.tied { 0 } else { self.embedding.bytes() as u64 }
            + matrix(&self.positions)
            + self.project_in.as_ref().map_or(0, super::Linear::bytes)
    }

    /// Number of parameters, tied ones counted once.
    pub fn parameters(&self) -> u64 {
        let matrix = |m: &crate::tensor::Matrix| (m.rows() * m.cols()) as u64;
        let vector = |v: &Option<Vec<f32>>| v.as_ref().map_or(0, |v| v.len() as u64);
        let linear = |l: &super::Linear| matrix(l.weight.stored()) + vector(&l.bias);
        let layers = self.layers.iter().map(|layer| {
            let a = &layer.attention;
            let ffn = match &layer.ffn {
                Ffn::Plain { fc1, fc2 } => linear(fc1) + linear(fc2),
                Ffn::Gated { gate, up, down } => linear(gate) + linear(up) + linear(down),
            };
            let norms = (layer.attention_norm.bytes() + layer.ffn_norm.bytes()) / 4;
            [&a.q, &a.k, &a.v, &a.out].into_iter().map(linear).sum::<u64>() + ffn + norms
        });
        layers.sum::<u64>()
            + matrix(&self.embedding)
            + if self.config.tied { 0 } else { matrix(&self.head) }
            + self.positions.as_ref().map_or(0, matrix)
            + self.project_in.as_ref().map_or(0, linear)
            + self.project_out.as_ref().map_or(0, linear)
            + self.final_norm.as_ref().map_or(0, |n| n.bytes() / 4)
    }
}
