//! The networks of one station while they are trained.
//!
//! The outputs are many (one per unit of the model) and the rest is small, so a batch never has all its outputs in memory:
//! it goes through them a few layers at a time, forward, loss and backward, and only the gradient of the hidden units is kept
//! from block to block. Every sum runs in an order given by shapes alone: the bits do not depend on the number of threads.

use std::ops::Range;

use super::loss::{LayerLoss, UNITS_ON_STACK, with_room};
use crate::kernels::{Cpu, bias_gradient, linear_f32, linear_transposed_f32, weight_gradient};
use crate::learn::compact::Codes;
use crate::sparsity::predictor::HiddenActivation;

/// Outputs of a block, unless one layer has more.
const BLOCK_OUTPUTS: usize = 2048;

/// Trained values with all that the optimiser keeps of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tensor {
    pub(super) value: Vec<f32>,
    pub(super) gradient: Vec<f32>,
    /// Means of the gradients and of their squares.
    pub(super) moments: [Vec<f32>; 2],
    /// Whether weight decay applies: to matrices only.
    pub(super) decays: bool,
}

impl Tensor {
    fn new(value: Vec<f32>, decays: bool) -> Self {
        let zeros = vec![0.0; value.len()];
        Tensor { value, gradient: zeros.clone(), moments: [zeros.clone(), zeros], decays }
    }
}

/// `y = W x + b`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layer {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// `[rows, cols]`
    pub(super) weight: Tensor,
    /// `[rows]`
    pub(super) bias: Tensor,
}

impl Layer {
    pub(super) fn new(cols: usize, weight: Vec<f32>, bias: Vec<f32>) -> Self {
        Layer { rows: bias.len(), cols, weight: Tensor::new(weight, true), bias: Tensor::new(bias, false) }
    }

    /// Outputs `rows` of all rows of `x`.
    fn forward(&self, cpu: &Cpu, rows: Range<usize>, x: &[f32], out: &mut [f32]) {
        let weight = &self.weight.value[rows.start * self.cols..rows.end * self.cols];
        linear_f32(cpu, weight, [rows.len(), self.cols], Some(&self.bias.value[rows]), x, out);
    }

    /// Gradients of rows `rows` from those of their outputs.
    fn backward(&mut self, cpu: &Cpu, rows: Range<usize>, dy: &[f32], x: &[f32]) {
        let shape = [dy.len() / rows.len(), rows.len(), self.cols];
        let weights = rows.start * self.cols..rows.end * self.cols;
        weight_gradient(cpu, shape, dy, x, &mut self.weight.gradient[weights]);
        bias_gradient(cpu, dy, &mut self.bias.gradient[rows]);
    }
}

/// What predicts one kind of unit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Output {
    /// Index of the hidden layer that it reads.
    pub(super) hidden: usize,
    /// Layers of the model that it predicts.
    pub(super) layers: Range<usize>,
    /// Units of a layer.
    pub(super) width: usize,
    pub(super) layer: Layer,
}

impl Output {
    /// The layers of each block, counted from the first that is predicted.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (count, step) = (self.layers.len(), (BLOCK_OUTPUTS / self.width.max(1)).max(1));
        (0..count).step_by(step).map(move |start| start..count.min(start + step))
    }
}

/// The networks of one station: hidden layers (one if heads and neurons share it) and what reads them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Networks {
    pub(super) activation: HiddenActivation,
    pub(super) hidden: Vec<Layer>,
    /// Heads and neurons, in this order.
    pub(super) outputs: [Option<Output>; 2],
}

/// Samples that the networks are to foresee: all of them, or those of `rows`.
#[derive(Clone, Copy)]
pub(super) struct Expected<'a> {
    /// Of heads and of neurons.
    pub(super) codes: [&'a Codes; 2],
    /// `[T]`
    pub(super) rows: &'a [u32],
    /// Of heads and of neurons.
    pub(super) losses: [LayerLoss; 2],
    /// What the gradients of heads and of neurons count.
    pub(super) weights: [f32; 2],
}

/// Memory of a batch.
#[derive(Clone, Debug, Default)]
pub(super) struct BatchWork {
    /// For each hidden layer `[T, p]`: its outputs, and their gradients.
    hidden: Vec<[Vec<f32>; 2]>,
    /// `[T, p]`
    share: Vec<f32>,
    /// Outputs of a block `[T, block]`, then their gradients.
    y: Vec<f32>,
    /// Loss of each layer of the block `[T, layers]`.
    losses: Vec<f32>,
}

impl Networks {
    /// All tensors, in a fixed order, with the names that files give them.
    pub(super) fn tensors(&self) -> Vec<(String, &Tensor)> {
        let hidden = self.hidden.iter().enumerate().map(|(i, layer)| (format!("hidden{i}"), layer));
        let outputs = ["heads", "neurons"].into_iter().zip(&self.outputs);
        let outputs = outputs.filter_map(|(name, o)| Some((name.to_owned(), &o.as_ref()?.layer)));
        hidden
            .chain(outputs)
            .flat_map(|(n, l)| [(format!("{n}.weight"), &l.weight), (format!("{n}.bias"), &l.bias)])
            .collect()
    }

    /// As [`Networks::tensors`], to be changed.
    pub(super) fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        let outputs = self.outputs.iter_mut().flatten().map(|o| &mut o.layer);
        self.hidden.iter_mut().chain(outputs).flat_map(|l| [&mut l.weight, &mut l.bias]).collect()
    }

    fn hidden(&self, cpu: &Cpu, x: &[f32], t: usize, work: &mut BatchWork) {
        work.hidden.resize(self.hidden.len(), Default::default());
        for (layer, [h, dh]) in self.hidden.iter().zip(&mut work.hidden) {
            h.resize(t * layer.rows, 0.0);
            layer.forward(cpu, 0..layer.rows, x, h);
            if self.activation == HiddenActivation::Relu {
                h.iter_mut().for_each(|v| *v = v.max(0.0));
            }
            dh.clear();
            dh.resize(t * layer.rows, 0.0);
        }
    }

    /// Predicts for the `t` rows of `x` (`[T, n]`) and shows all outputs in blocks of layers, as
    /// `show(0 for heads or 1 for neurons, layers, [T, layers, width])`.
    pub(super) fn forward(
        &self,
        cpu: &Cpu,
        x: &[f32],
        t: usize,
        work: &mut BatchWork,
        show: &mut dyn FnMut(usize, usize, &mut [f32]),
    ) {
        self.hidden(cpu, x, t, work);
        for (kind, output) in self.outputs.iter().enumerate() {
            let Some(output) = output else { continue };
            for block in output.blocks() {
                let rows = block.start * output.width..block.end * output.width;
                work.y.resize(t * rows.len(), 0.0);
                output.layer.forward(cpu, rows, &work.hidden[output.hidden][0], &mut work.y);
                show(kind, block.len(), &mut work.y);
            }
        }
    }

    /// Computes all gradients of the loss, averaged over the rows of `x` (`[T, n]`). Returns the mean losses of heads and of
    /// neurons over rows and layers, before the step.
    pub(super) fn backward(&mut self, cpu: &Cpu, x: &[f32], expected: Expected<'_>, work: &mut BatchWork) -> [f64; 2] {
        let t = expected.rows.len();
        self.hidden(cpu, x, t, work);
        let BatchWork { hidden, share, y, losses } = work;
        let mut means = [0.0; 2];
        for (kind, output) in self.outputs.iter_mut().enumerate() {
            let Some(output) = output else { continue };
            let (codes, loss, weight) =
                (expected.codes[kind], expected.losses[kind], expected.weights[kind] / t as f32);
            let [h, dh] = &mut hidden[output.hidden];
            for block in output.blocks() {
                let rows = block.start * output.width..block.end * output.width;
                y.resize(t * rows.len(), 0.0);
                output.layer.forward(cpu, rows.clone(), h, y);
                losses.resize(t * block.len(), 0.0);
                // Layer 0 has no codes.
                let first = output.layers.start + block.start - 1;
                cpu.each_row(t, [y, losses], 16 * rows.len(), &|row, y, losses| {
                    // On the stack: tasks allocate nothing.
                    let mut targets = [0.0; UNITS_ON_STACK];
                    for (i, (y, found)) in y.chunks_exact_mut(output.width).zip(losses).enumerate() {
                        let codes = codes.layer(expected.rows[row] as usize, first + i);
                        *found = with_room(&mut targets, codes.len(), |targets| {
                            loss.prepare(codes, targets);
                            loss.gradient(y, targets, weight)
                        });
                    }
                });
                means[kind] += losses.iter().map(|&v| f64::from(v)).sum::<f64>();
                let weights = &output.layer.weight.value[rows.start * output.layer.cols..rows.end * output.layer.cols];
                share.resize(dh.len(), 0.0);
                linear_transposed_f32(cpu, weights, [rows.len(), output.layer.cols], y, share);
                crate::kernels::add_assign(cpu, dh, share);
                output.layer.backward(cpu, rows, y, h);
            }
            means[kind] /= (t * output.layers.len()) as f64;
        }
        for (layer, [h, dh]) in self.hidden.iter_mut().zip(hidden) {
            if self.activation == HiddenActivation::Relu {
                dh.iter_mut().zip(h.iter()).for_each(|(d, h)| *d = if *h > 0.0 { *d } else { 0.0 });
            }
            layer.backward(cpu, 0..layer.rows, dh, x);
        }
        means
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::learn::train::loss::{Loss, TargetScale};
    use crate::sparsity::testing::{cpu, rng};

    const N: usize = 6;

    fn codes(layers: usize, width: usize, rows: usize, next: &mut impl FnMut() -> f32) -> Codes {
        let codes = (0..rows * layers * width).map(|_| (next() * 255.0) as u8).collect();
        Codes { layers, width, codes, scales: vec![1.0; rows * layers] }
    }

    fn networks(trunk: bool, activation: HiddenActivation, next: &mut impl FnMut() -> f32) -> Networks {
        let mut layer = |rows: usize, cols: usize| {
            let mut values = |n| (0..n).map(|_| next() - 0.5).collect::<Vec<_>>();
            Layer::new(cols, values(rows * cols), values(rows))
        };
        let hidden = if trunk { vec![layer(5, N)] } else { vec![layer(5, N), layer(7, N)] };
        let other = hidden.len() - 1;
        let cols = hidden[other].rows;
        let heads = Output { hidden: 0, layers: 1..4, width: 4, layer: layer(12, 5) };
        let neurons = Output { hidden: other, layers: 1..4, width: 1500, layer: layer(4500, cols) };
        Networks { activation, hidden, outputs: [Some(heads), Some(neurons)] }
    }

    /// Every kind of tensor, against the difference quotient of the loss in f64 sums.
    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (mut next, cpu) = (rng(1), cpu());
        let codes = [codes(3, 4, 10, &mut next), codes(3, 1500, 10, &mut next)];
        let x: Vec<f32> = (0..4 * N).map(|_| next() * 2.0 - 1.0).collect();
        let rows = [7, 1, 1, 9];
        for (trunk, activation) in [(false, HiddenActivation::Relu), (true, HiddenActivation::None)] {
            for loss in [Loss::Mse, Loss::Bce, Loss::Listwise, Loss::Pairwise] {
                let losses = [4, 1500].map(|width| LayerLoss { loss, scale: TargetScale::Max, best: width / 2 });
                let expected = Expected { codes: [&codes[0], &codes[1]], rows: &rows, losses, weights: [1.0; 2] };
                let mut networks = networks(trunk, activation, &mut next);
                let mut work = BatchWork::default();
                networks.backward(&cpu, &x, expected, &mut work);
                let gradients: Vec<Vec<f32>> = networks.tensors().iter().map(|(_, t)| t.gradient.clone()).collect();
                // What is differentiated: the sum over layers and units of the mean over rows.
                let total = |networks: &Networks| -> f64 {
                    let [heads, neurons] = networks.clone().backward(&cpu, &x, expected, &mut BatchWork::default());
                    3.0 * (4.0 * heads + 1500.0 * neurons)
                };
                for (index, gradients) in gradients.iter().enumerate() {
                    let largest = gradients.iter().fold(0.0_f32, |max, g| max.max(g.abs()));
                    for at in [0, gradients.len() / 3, gradients.len() - 1] {
                        let moved = |step: f32| {
                            let mut networks = networks.clone();
                            networks.tensors_mut()[index].value[at] += step;
                            total(&networks)
                        };
                        // Both are smooth, and their losses are large numbers of f32.
                        let step = if matches!(loss, Loss::Listwise | Loss::Pairwise) { 2e-2 } else { 2e-3 };
                        let quotient = (moved(step) - moved(-step)) / f64::from(2.0 * step);
                        let off = (f64::from(gradients[at]) - quotient).abs();
                        let bound = 0.02 * f64::from(largest) + 0.05;
                        assert!(off < bound, "{loss}, tensor {index}, {at}: {} instead of {quotient}", gradients[at]);
                    }
                }
            }
        }
    }

    #[test]
    fn forward_shows_every_output_once() {
        let (mut next, cpu) = (rng(2), cpu());
        let networks = networks(false, HiddenActivation::Relu, &mut next);
        let x: Vec<f32> = (0..3 * N).map(|_| next() - 0.5).collect();
        let mut seen = Vec::new();
        networks.forward(&cpu, &x, 3, &mut BatchWork::default(), &mut |kind, layers, y| {
            assert_eq!(y.len(), 3 * layers * [4, 1500][kind]);
            seen.push((kind, layers));
        });
        assert_eq!(seen, [(0, 3), (1, 1), (1, 1), (1, 1)]);
    }
}
