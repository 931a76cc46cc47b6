//! Forward, loss, and the layers back to front.

use super::workspace::BackwardWorkspace;
use super::{LayerVisitor, Loss, LossValue};
use crate::Result;
use crate::kernels::Cpu;
use crate::learn::LearnError;
use crate::model::{Model, Probe, Rows, Segment, sized};

/// A factor on the context of every head and on every inner, in all tokens: where they differ from 1, gradients are those of the
/// model that computes with the scaled values.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitFactors {
    /// `[L, H]`.
    pub heads: Vec<f32>,
    /// `[L, F]`.
    pub neurons: Vec<f32>,
}

impl UnitFactors {
    pub(super) fn layer(&self, model: &Model, layer: usize) -> [&[f32]; 2] {
        let (h, f) = (model.config.heads, model.config.ffn);
        [&self.heads[layer * h..(layer + 1) * h], &self.neurons[layer * f..(layer + 1) * f]]
    }
}

/// Runs a text through the model and its loss back, and shows `visitor` every layer with its gradients, the last one first.
///
/// # Errors
/// [`LearnError::NothingToPredict`], [`LearnError::LossRange`], [`crate::Error::TokenOutOfRange`], [`crate::Error::ContextFull`] before anything is done;
/// [`LearnError::BadLoss`], [`LearnError::BadGradients`] if the numbers break down; what `visitor` returns.
pub fn backward(
    cpu: &Cpu,
    model: &Model,
    tokens: &[u32],
    loss: &Loss,
    work: &mut BackwardWorkspace,
    visitor: &mut dyn LayerVisitor,
) -> Result<LossValue> {
    Pass { cpu, model, factors: None }.run(tokens, loss, work, visitor)
}

/// As [`backward`], for the model whose units are multiplied by `factors`. The visitor sees contexts and inners after they were
/// multiplied, and the gradients with respect to these.
///
/// # Errors
/// As [`backward`].
///
/// # Panics
/// If there is not one factor for each unit.
pub fn backward_scaled(
    cpu: &Cpu,
    model: &Model,
    tokens: &[u32],
    loss: &Loss,
    factors: &UnitFactors,
    work: &mut BackwardWorkspace,
    visitor: &mut dyn LayerVisitor,
) -> Result<LossValue> {
    let config = &model.config;
    assert_eq!(factors.heads.len(), config.layers * config.heads, "one factor for each head");
    assert_eq!(factors.neurons.len(), config.layers * config.ffn, "one factor for each neuron");
    Pass { cpu, model, factors: Some(factors) }.run(tokens, loss, work, visitor)
}

/// One backward pass of one model.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) cpu: &'a Cpu,
    pub(super) model: &'a Model,
    pub(super) factors: Option<&'a UnitFactors>,
}

impl Pass<'_> {
    fn run(
        self,
        tokens: &[u32],
        loss: &Loss,
        work: &mut BackwardWorkspace,
        visitor: &mut dyn LayerVisitor,
    ) -> Result<LossValue> {
        loss.range(tokens.len())?;
        self.forward(tokens, work)?;
        let value = loss.run(self.cpu, self.model, tokens, work)?;
        visitor.loss(&value)?;
        self.final_norm(tokens.len(), work);
        for layer in (0..self.model.layers.len()).rev() {
            self.layer(layer, tokens.len(), work, visitor)?;
        }
        Ok(value)
    }

    /// The forward pass, which keeps what enters every layer.
    fn forward(self, tokens: &[u32], work: &mut BackwardWorkspace) -> Result<()> {
        let (cpu, model) = (self.cpu, self.model);
        model.check_tokens(tokens)?;
        let block = tokens.len() * model.config.hidden;
        let layers = model.layers.len();
        let mut entering = std::mem::take(&mut work.entering);
        let (workspace, cache) = work.start(&model.config, tokens.len());
        let kept = sized(&mut entering, (layers + 1) * block);
        let mut keep = Keep { pass: self, entering: kept, block };
        let result = model.forward(cpu, &mut [Segment { tokens, cache }], workspace, &mut keep);
        if result.is_ok() {
            kept[layers * block..].copy_from_slice(workspace.before_final_norm(model, tokens.len()));
        }
        work.entering = entering;
        result
    }

    /// From the gradient of what the final norm returns to that of what leaves the last layer.
    fn final_norm(self, tokens: usize, work: &mut BackwardWorkspace) {
        let d = self.model.config.hidden;
        let Some(norm) = &self.model.final_norm else { return };
        let leaving = &work.entering[self.model.layers.len() * tokens * d..][..tokens * d];
        let dx = sized(&mut work.layer.block, tokens * d);
        dx.fill(0.0);
        norm.apply_backward(self.cpu, leaving, d, &work.layer.gradient[..tokens * d], dx);
        std::mem::swap(&mut work.layer.block, &mut work.layer.gradient);
    }

    fn layer(
        self,
        layer: usize,
        tokens: usize,
        work: &mut BackwardWorkspace,
        visitor: &mut dyn LayerVisitor,
    ) -> Result<()> {
        // Broken values of one layer break those of all layers below it: they are found before they are used.
        if work.layer.gradient[..tokens * self.model.config.hidden].iter().any(|v| !v.is_finite()) {
            return Err(LearnError::BadGradients { layer }.into());
        }
        match work.parts() {
            Some(parts) => self.through_layer(layer, tokens, parts, visitor),
            None => Ok(()),
        }
    }
}

/// Copies what enters each layer, and applies the factors.
struct Keep<'a> {
    pass: Pass<'a>,
    /// `[L + 1, T, d]`
    entering: &'a mut [f32],
    /// `T * d`
    block: usize,
}

impl Probe for Keep<'_> {
    fn residual(&mut self, rows: Rows, values: &mut [f32]) {
        if rows.layer < self.pass.model.layers.len() {
            self.entering[rows.layer * self.block..][..self.block].copy_from_slice(values);
        }
    }

    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        if let Some(factors) = self.pass.factors {
            let [heads, _] = factors.layer(self.pass.model, rows.layer);
            scale_heads(values, heads, self.pass.model.config.head_dim);
        }
    }

    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        if let Some(factors) = self.pass.factors {
            let [_, neurons] = factors.layer(self.pass.model, rows.layer);
            scale_neurons(values, neurons);
        }
    }
}

/// Multiplies the heads of every row of `x` `[T, H, d_h]` by their factors.
pub(super) fn scale_heads(x: &mut [f32], factors: &[f32], head_dim: usize) {
    for (x, factor) in x.chunks_exact_mut(head_dim).zip(factors.iter().cycle()) {
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

/// Multiplies the neurons of every row of `x` `[T, F]` by their factors.
pub(super) fn scale_neurons(x: &mut [f32], factors: &[f32]) {
    for x in x.chunks_exact_mut(factors.len()) {
        x.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
    }
}
