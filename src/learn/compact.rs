//! Samples in little memory: f16 inputs, one byte per importance.
//!
//! A byte `c` of a layer stands for the share `(c / 255)^2` of the layer's largest importance in this sample. The square spends
//! the codes on small values, of which most layers consist: half of all codes lie below a quarter of the largest. Both
//! training and trace files keep samples this way, and what was decoded encodes to the same bytes again, so training from a
//! trace is training from the text it was made of, bit for bit.

use half::f16;

use super::samples::{SampleBatch, SampleInfo};
use crate::kernels::Cpu;

/// Importances of one kind of unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Codes {
    /// Layers of a row.
    pub(super) layers: usize,
    /// Units of a layer.
    pub(super) width: usize,
    /// `[rows, layers, width]`
    pub(super) codes: Vec<u8>,
    /// `[rows, layers]`: the largest importance.
    pub(super) scales: Vec<f32>,
}

impl Codes {
    pub(super) fn new(layers: usize, width: usize) -> Self {
        Codes { layers, width, codes: Vec::new(), scales: Vec::new() }
    }

    /// Codes of layer `layer` (from 0) of a row.
    pub(super) fn layer(&self, row: usize, layer: usize) -> &[u8] {
        let at = row * self.layers + layer;
        &self.codes[at * self.width..(at + 1) * self.width]
    }

    /// Appends rows of importances, `[rows, layers, width]`.
    fn extend(&mut self, values: &[f32]) {
        if self.width == 0 {
            return;
        }
        for layer in values.chunks_exact(self.width) {
            let largest = layer.iter().fold(0.0_f32, |max, &v| max.max(v));
            self.scales.push(largest);
            let factor = if largest > 0.0 { 1.0 / largest } else { 0.0 };
            self.codes.extend(layer.iter().map(|&v| encode(v * factor)));
        }
    }

    /// Importances of the rows, `[rows, layers, width]`.
    pub(super) fn decode(&self, out: &mut [f32]) {
        if self.width == 0 {
            return;
        }
        for ((out, codes), &scale) in
            out.chunks_exact_mut(self.width).zip(self.codes.chunks_exact(self.width)).zip(&self.scales)
        {
            out.iter_mut().zip(codes).for_each(|(out, &code)| *out = decode(code) * scale);
        }
    }
}

/// The code of a share of 0 to 1.
fn encode(share: f32) -> u8 {
    (share.sqrt() * 255.0 + 0.5) as u8
}

/// The share that a code stands for.
pub(super) fn decode(code: u8) -> f32 {
    let root = f32::from(code) * (1.0 / 255.0);
    root * root
}

/// Any number of samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct CompactRows {
    pub(super) rows: usize,
    /// For each station `[rows, n]`.
    pub(super) inputs: Vec<Vec<f16>>,
    pub(super) heads: Codes,
    pub(super) neurons: Codes,
}

impl CompactRows {
    pub(super) fn new(info: &SampleInfo) -> Self {
        let layers = info.layers.saturating_sub(1);
        CompactRows {
            rows: 0,
            inputs: vec![Vec::new(); info.stations.len()],
            heads: Codes::new(layers, info.heads),
            neurons: Codes::new(layers, info.neurons),
        }
    }

    /// Bytes of one sample.
    pub(super) fn row_bytes(info: &SampleInfo) -> usize {
        let layers = info.layers.saturating_sub(1);
        2 * info.stations.len() * info.inputs + layers * (info.heads + info.neurons + 2 * size_of::<f32>())
    }

    /// Removes all rows and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.rows = 0;
        self.inputs.iter_mut().for_each(Vec::clear);
        for codes in [&mut self.heads, &mut self.neurons] {
            codes.codes.clear();
            codes.scales.clear();
        }
    }

    /// Appends row `row` of other rows, whose inputs have `n` values.
    pub(super) fn push(&mut self, other: &CompactRows, row: usize, n: usize) {
        self.rows += 1;
        for (to, from) in self.inputs.iter_mut().zip(&other.inputs) {
            to.extend_from_slice(&from[row * n..(row + 1) * n]);
        }
        for (to, from) in [(&mut self.heads, &other.heads), (&mut self.neurons, &other.neurons)] {
            to.codes.extend_from_slice(&from.codes[row * from.layers * from.width..][..from.layers * from.width]);
            to.scales.extend_from_slice(&from.scales[row * from.layers..][..from.layers]);
        }
    }

    /// Appends the rows of a batch, which were validated.
    pub(super) fn extend(&mut self, cpu: &Cpu, batch: &SampleBatch) {
        self.rows += batch.rows;
        for (rows, x) in self.inputs.iter_mut().zip(&batch.inputs) {
            rows.extend(x.iter().map(|&v| to_f16(v)));
        }
        cpu.join(|| self.heads.extend(&batch.heads), || self.neurons.extend(&batch.neurons));
    }
}

/// The nearest f16; values beyond its range become its largest, because one outlier is no reason to fail.
fn to_f16(value: f32) -> f16 {
    f16::from_f32(value.clamp(-65504.0, 65504.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::samples::tests::info;
    use super::*;
    use crate::sparsity::testing::{cpu, rng};

    #[test]
    fn codes_are_near_and_survive_a_round_trip() {
        for code in 0..=255 {
            assert_eq!(encode(decode(code)), code);
        }
        for i in 0..=10_000 {
            let share = i as f32 / 10_000.0;
            let off = (decode(encode(share)) - share).abs();
            // Half a code, which is widest at the top.
            assert!(off <= share.sqrt() / 255.0 + 5e-6, "{share}: {off}");
        }
    }

    proptest! {
        /// What was decoded encodes to the same bytes, whatever the scales.
        #[test]
        fn decoding_and_encoding_again_changes_nothing(seed in any::<u64>(), exponent in -30_i32..30) {
            let mut next = rng(seed);
            let values: Vec<f32> = (0..96).map(|_| next().powi(4) * 2.0_f32.powi(exponent)).collect();
            let mut codes = Codes::new(3, 16);
            codes.extend(&values);
            let mut decoded = vec![0.0; 96];
            codes.decode(&mut decoded);
            let mut again = Codes::new(3, 16);
            again.extend(&decoded);
            prop_assert_eq!(codes, again);
        }
    }

    #[test]
    fn rows_take_what_they_say() {
        let info = info();
        let mut batch = SampleBatch::default();
        batch.resize(&info, 5);
        batch.inputs[1][0] = 1e9;
        batch.neurons[3] = 2.0;
        let mut rows = CompactRows::new(&info);
        rows.extend(&cpu(), &batch);
        rows.extend(&cpu(), &batch);
        assert_eq!(rows.rows, 10);
        assert_eq!(rows.inputs[1][40], f16::MAX);
        assert_eq!((rows.neurons.layer(5, 0)[3], rows.neurons.scales[10]), (255, 2.0));
        let bytes = rows.inputs.iter().map(|x| 2 * x.len()).sum::<usize>()
            + [&rows.heads, &rows.neurons].map(|c| c.codes.len() + 4 * c.scales.len()).iter().sum::<usize>();
        assert_eq!(bytes, 10 * CompactRows::row_bytes(&info));
        rows.clear();
        assert_eq!(rows, CompactRows::new(&info));
    }
}
