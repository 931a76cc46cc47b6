//! Forward only: for criteria that need no gradient.

use super::{BackwardWorkspace, LayerRecord, LayerVisitor};
use crate::Result;
use crate::kernels::Cpu;
use crate::model::{Model, Probe, Rows, Segment};
use crate::tensor::Buffer;

/// Runs a text through the model and shows `visitor` every layer, the first one first: contexts, inners and the residual stream;
/// all other slices are empty, and there is no loss.
///
/// # Errors
/// [`Error::NoTokens`](crate::Error::NoTokens), [`Error::TokenOutOfRange`](crate::Error::TokenOutOfRange),
/// [`Error::ContextFull`](crate::Error::ContextFull); what `visitor` returns, after the forward pass has ended.
pub fn observe(
    cpu: &Cpu,
    model: &Model,
    tokens: &[u32],
    work: &mut BackwardWorkspace,
    visitor: &mut dyn LayerVisitor,
) -> Result<()> {
    let mut contexts = std::mem::take(&mut work.layer.contexts);
    let mut inners = std::mem::take(&mut work.layer.inners);
    let mut observer =
        Observer { tokens: tokens.len(), contexts: &mut contexts, inners: &mut inners, visitor, result: Ok(()) };
    let (workspace, cache) = work.start(&model.config, tokens.len());
    let forward = model.forward(
        cpu,
        &mut [Segment { tokens, cache }],
        workspace,
        &mut Layers { observer: &mut observer, last: model.layers.len() },
    );
    if forward.is_ok()
        && let Some(last) = model.layers.len().checked_sub(1)
    {
        observer.show(last, workspace.before_final_norm(model, tokens.len()));
    }
    let result = forward.and(observer.result);
    (work.layer.contexts, work.layer.inners) = (contexts, inners);
    result
}

/// Holds what was seen of the layer at hand.
struct Observer<'a> {
    tokens: usize,
    contexts: &'a mut Buffer,
    inners: &'a mut Buffer,
    visitor: &'a mut dyn LayerVisitor,
    /// The first error; nothing is shown after it.
    result: Result<()>,
}

impl Observer<'_> {
    fn show(&mut self, layer: usize, residual: &[f32]) {
        if self.result.is_ok() {
            self.result = self.visitor.layer(&LayerRecord {
                layer,
                tokens: self.tokens,
                contexts: self.contexts,
                context_grads: &[],
                inners: self.inners,
                inner_grads: &[],
                residual,
                ffn_inputs: &[],
                gates: &[],
                gate_grads: &[],
                ups: &[],
                up_grads: &[],
            });
        }
    }
}

/// The forward pass's view of an [`Observer`].
struct Layers<'a, 'b> {
    observer: &'a mut Observer<'b>,
    /// `L`: that residual stream has passed the final norm.
    last: usize,
}

fn copy(values: &[f32], into: &mut Buffer) {
    into.resize(values.len());
    into.copy_from_slice(values);
}

impl Probe for Layers<'_, '_> {
    fn residual(&mut self, rows: Rows, values: &mut [f32]) {
        if (1..self.last).contains(&rows.layer) {
            self.observer.show(rows.layer - 1, values);
        }
    }

    fn contexts(&mut self, _: Rows, values: &mut [f32]) {
        copy(values, self.observer.contexts);
    }

    fn inners(&mut self, _: Rows, values: &mut [f32]) {
        copy(values, self.observer.inners);
    }
}
