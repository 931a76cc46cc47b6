//! Bytes that decoding a token by a plan reads, without decoding it.

use crate::model::{Ffn, Layer, Model};
use crate::sparsity::PlanMasks;

/// Sizes of a model's records, layer by layer.
#[derive(Debug)]
pub(super) struct RecordBytes {
    layers: Vec<LayerBytes>,
    /// What every token reads: LM head, a row of the embedding, norms and biases.
    fixed: u64,
    /// Query heads of a key/value head.
    group: usize,
    /// Keys and values of one position of one key/value head.
    position: u64,
}

#[derive(Debug)]
struct LayerBytes {
    head: u64,
    kv_head: u64,
    neuron: u64,
    /// Positions that are attended to.
    window: usize,
}

impl RecordBytes {
    pub(super) fn of(model: &Model) -> Self {
        let c = &model.config;
        let layer = |layer: &Layer| {
            let a = &layer.attention;
            let ffn = match &layer.ffn {
                Ffn::Plain { fc1, fc2 } => fc1.weight.bytes() + fc2.weight.bytes(),
                Ffn::Gated { gate, up, down } => gate.weight.bytes() + up.weight.bytes() + down.weight.bytes(),
            };
            LayerBytes {
                head: (a.q.weight.bytes() + a.out.weight.bytes()) / c.heads as u64,
                kv_head: (a.k.weight.bytes() + a.v.weight.bytes()) / c.kv_heads as u64,
                neuron: ffn / c.ffn as u64,
                window: a.window.unwrap_or(usize::MAX),
            }
        };
        let active = model.active_bytes(0);
        RecordBytes {
            layers: model.layers.iter().map(layer).collect(),
            fixed: active.head + active.embedding + model.vector_bytes(),
            group: c.heads / c.kv_heads,
            position: 2 * (size_of::<f32>() * c.head_dim) as u64,
        }
    }

    /// Those of the token at `position` by the plan of a row.
    pub(super) fn token(&self, masks: &PlanMasks, row: usize, position: usize) -> u64 {
        let layer = |(index, layer): (usize, &LayerBytes)| {
            let (mut heads, mut kv_heads, mut last) = (0, 0, usize::MAX);
            each_unit(masks.heads(row, index), |head| {
                heads += 1;
                kv_heads += u64::from(head / self.group != last);
                last = head / self.group;
            });
            let neurons: u64 = masks.neurons(row, index).iter().map(|word| u64::from(word.count_ones())).sum();
            let seen = layer.window.min(position + 1) as u64;
            heads * layer.head + kv_heads * (layer.kv_head + seen * self.position) + neurons * layer.neuron
        };
        self.fixed + self.layers.iter().enumerate().map(layer).sum::<u64>()
    }
}

/// Bytes that the dense model reads for a token, on average over the positions of a window.
pub(super) fn dense_bytes(model: &Model, window: usize) -> f64 {
    let sum: u64 = (0..window).map(|position| model.active_bytes(position).total()).sum();
    sum as f64 / window.max(1) as f64
}

/// Calls `each` for every unit whose bit is set, ascending.
pub(super) fn each_unit(words: &[u64], mut each: impl FnMut(usize)) {
    for (index, &word) in words.iter().enumerate() {
        let mut rest = word;
        while rest != 0 {
            each(64 * index + rest.trailing_zeros() as usize);
            rest &= rest - 1;
        }
    }
}

#[cfg(all(test, feature = "embedded-model"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sparsity::{LayerPlan, Units};
    use crate::{Engine, EngineOptions};

    #[test]
    fn a_dense_plan_reads_what_the_dense_model_reads() {
        let engine = Engine::open("embedded", EngineOptions::default()).unwrap();
        let (model, units) = (engine.model(), Units::from(engine.config()));
        let mut masks = PlanMasks::new(units);
        masks.reset(1);
        let records = RecordBytes::of(model);
        for position in [0, 7, 300] {
            assert_eq!(records.token(&masks, 0, position), model.active_bytes(position).total());
        }
        let mean = (0..10).map(|position| model.active_bytes(position).total()).sum::<u64>() as f64 / 10.0;
        assert_eq!(dense_bytes(model, 10), mean);
        // A layer without units reads its norms and biases only.
        let whole = records.token(&masks, 0, 3);
        masks.rows_mut(0..1).rows().next().unwrap().set(1, &LayerPlan::default());
        let layer = &records.layers[1];
        let heads = units.heads as u64 * (layer.head + layer.kv_head + 4 * records.position);
        assert_eq!(whole - records.token(&masks, 0, 3), heads + units.neurons as u64 * layer.neuron);
    }

    #[test]
    fn units_are_listed_in_order() {
        let mut units = Vec::new();
        each_unit(&[1 << 63 | 5, 0, 2], |unit| units.push(unit));
        assert_eq!(units, [0, 2, 63, 129]);
    }
}
