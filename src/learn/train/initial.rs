//! Networks before their first step.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::network::{Layer, Networks, Output};
use super::options::{TrainOptions, Width};
use crate::learn::samples::SampleInfo;

/// Output weights begin this much smaller than their inputs would ask for: the bias, which begins at the mean of the targets,
/// is the best guess until the hidden units have learnt something.
const OUTPUT_SIZE: f32 = 0.1;

/// Networks of every station, from the seed alone; output biases are zero.
pub(super) fn networks(info: &SampleInfo, options: &TrainOptions) -> Vec<Networks> {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let ends = info.stations.iter().skip(1).map(|&next| next + 1).chain([info.layers]);
    let stations = info.stations.iter().zip(ends);
    stations
        .map(|(&after, end)| {
            let (hidden_widths, [heads, neurons]) = match options.width {
                Width::Shared(width) => (vec![width], [Some(0), Some(0)]),
                Width::Separate { heads, neurons } => {
                    let widths: Vec<usize> = [heads, neurons].into_iter().filter(|&w| w > 0).collect();
                    let last = widths.len() - 1;
                    (widths, [(heads > 0).then_some(0), (neurons > 0).then_some(last)])
                }
            };
            let hidden: Vec<Layer> =
                hidden_widths.iter().map(|&width| layer(&mut rng, width, info.inputs, 1.0)).collect();
            let mut output = |reads: Option<usize>, width: usize| {
                let layers = after + 1..end;
                let of = reads?;
                let layer = layer(&mut rng, layers.len() * width, hidden[of].rows, OUTPUT_SIZE);
                Some(Output { hidden: of, layers, width, layer })
            };
            let outputs = [output(heads, info.heads), output(neurons, info.neurons)];
            Networks { activation: options.activation, hidden, outputs }
        })
        .collect()
}

/// Weights of variance `(size^2) / cols`, evenly distributed.
fn layer(rng: &mut ChaCha8Rng, rows: usize, cols: usize, size: f32) -> Layer {
    let half_width = size * (3.0 / cols.max(1) as f32).sqrt();
    // 24 bits are a fraction that f32 holds exactly.
    let mut value = || half_width * (2.0 * ((rng.next_u32() >> 8) as f32 / (1_u32 << 24) as f32) - 1.0);
    Layer::new(cols, (0..rows * cols).map(|_| value()).collect(), vec![0.0; rows])
}
