//! One layer: computed again from what entered it, then back.
//!
//! ```text
//! norm in front (OPT, Llama)                norm behind (opt-350m)
//! attended = x + O A(norm1 x)               attended = x + O A(x)        between = norm1 attended
//! leaving  = attended + W2 Z(norm2 attended)  leaving = between + W2 Z(between)   next = norm2 leaving
//! ```
//!
//! The recomputed values have the bits of the forward pass: the same kernels on the same rows. Keys and values come from the
//! cache, and what leaves the layer is what entered the next one, so neither is computed again.

use shadowllm_weights::NormPlacement;

use super::pass::{Pass, scale_heads, scale_neurons};
use super::workspace::{LayerBuffers, Parts};
use super::{LayerRecord, LayerVisitor};
use crate::Result;
use crate::kernels::{
    AttentionPass, AttentionShape, Cpu, activate, activate_backward, add_assign, attention_backward,
    attention_recorded, gated, gated_backward, rope, rope_backward,
};
use crate::model::{Ffn, Layer, Model, Norm, sized};
use crate::tensor::Buffer;

impl Pass<'_> {
    /// From the gradient of what leaves `layer` to that of what enters it, in `buffers.gradient`. Layer 0 ends with its contexts:
    /// below them there is nothing to be scored.
    pub(super) fn through_layer(
        self,
        layer: usize,
        tokens: usize,
        parts: Parts<'_>,
        visitor: &mut dyn LayerVisitor,
    ) -> Result<()> {
        let Parts { cache, entering, buffers } = parts;
        let block = tokens * self.model.config.hidden;
        let at = &mut At {
            cpu: self.cpu,
            model: self.model,
            weights: &self.model.layers[layer],
            factors: self.factors.map(|factors| factors.layer(self.model, layer)),
            tokens,
            entering: &entering[layer * block..][..block],
            keys: &cache.layer(layer).keys,
            values: &cache.layer(layer).values,
            capacity: cache.capacity(),
            buffers,
        };
        at.attention_again();
        at.ffn_again();
        at.ffn_back();
        at.contexts_back();
        visitor.layer(&at.record(layer, &entering[(layer + 1) * block..][..block]))?;
        if layer > 0 {
            at.attention_back();
        }
        Ok(())
    }
}

/// A layer of a text.
struct At<'a> {
    cpu: &'a Cpu,
    model: &'a Model,
    weights: &'a Layer,
    /// On heads and neurons.
    factors: Option<[&'a [f32]; 2]>,
    tokens: usize,
    /// `[T, d]`
    entering: &'a [f32],
    /// `[H_kv, capacity, d_h]`
    keys: &'a [f32],
    /// `[H_kv, capacity, d_h]`
    values: &'a [f32],
    capacity: usize,
    buffers: &'a mut LayerBuffers,
}

impl At<'_> {
    fn pre(&self) -> bool {
        self.model.config.norm_placement == NormPlacement::Pre
    }

    /// Values in `[T, d]`, in `[T, H*d_h]`, in `[T, H_kv*d_h]`, in `[T, F]`.
    fn sizes(&self) -> [usize; 4] {
        let c = &self.model.config;
        [c.hidden, c.heads * c.head_dim, c.kv_heads * c.head_dim, c.ffn].map(|width| self.tokens * width)
    }

    fn shape(&self) -> AttentionShape {
        self.model.attention_shape(self.weights.attention.window)
    }

    /// Queries, contexts and the residual stream behind the attention.
    fn attention_again(&mut self) {
        let [rows, width, _, _] = self.sizes();
        let (cpu, model, weights, shape) = (self.cpu, self.model, self.weights, self.shape());
        let b = &mut *self.buffers;
        let input = model.block_input(cpu, &weights.attention_norm, self.entering, sized(&mut b.normed, rows));
        let queries = sized(&mut b.queries, width);
        weights.attention.q.apply(cpu, input, queries);
        if let Some(table) = &model.rope {
            rope(cpu, queries, shape.heads, shape.head_dim, table, 0);
        }
        let contexts = sized(&mut b.contexts, width);
        let log_sums = sized(&mut b.log_sums, self.tokens * shape.heads);
        attention_recorded(cpu, &shape, queries, self.keys, self.values, self.capacity, contexts, log_sums);
        let mut used: &[f32] = contexts;
        if let Some([heads, _]) = self.factors {
            let scaled = sized(&mut b.scaled, width);
            scaled.copy_from_slice(contexts);
            scale_heads(scaled, heads, shape.head_dim);
            used = scaled;
        }
        let attended = sized(&mut b.attended, rows);
        weights.attention.out.apply(cpu, used, attended);
        add_assign(cpu, attended, self.entering);
        if model.config.norm_placement == NormPlacement::Post {
            let between = sized(&mut b.between, rows);
            weights.attention_norm.apply(cpu, attended, model.config.hidden, between);
        }
    }

    /// Gates, `up` products and inners, and with the norm behind what it is applied to.
    fn ffn_again(&mut self) {
        let [rows, _, _, inner] = self.sizes();
        let (cpu, model, weights) = (self.cpu, self.model, self.weights);
        let pre = self.pre();
        let b = &mut *self.buffers;
        if pre {
            weights.ffn_norm.apply(cpu, &b.attended[..rows], model.config.hidden, sized(&mut b.normed, rows));
        }
        let input = if pre { &b.normed[..rows] } else { &b.between[..rows] };
        let gates = sized(&mut b.gates, inner);
        let inners = sized(&mut b.inners, inner);
        match &weights.ffn {
            Ffn::Plain { fc1, .. } => {
                fc1.apply(cpu, input, gates);
                inners.copy_from_slice(gates);
                activate(cpu, model.config.activation, inners);
            }
            Ffn::Gated { gate, up, .. } => {
                let ups = sized(&mut b.ups, inner);
                gate.apply(cpu, input, gates);
                up.apply(cpu, input, ups);
                inners.copy_from_slice(gates);
                gated(cpu, model.config.activation, inners, ups);
            }
        }
        if let Some([_, neurons]) = self.factors {
            scale_neurons(inners, neurons);
        }
        if !pre {
            let leaving = sized(&mut b.leaving, rows);
            self.weights.ffn.second().apply(cpu, inners, leaving);
            add_assign(cpu, leaving, &b.between[..rows]);
        }
    }

    /// From the gradient of what leaves the layer to that of what leaves the attention.
    fn ffn_back(&mut self) {
        let [rows, _, _, inner] = self.sizes();
        let (cpu, model, weights) = (self.cpu, self.model, self.weights);
        let d = model.config.hidden;
        let pre = self.pre();
        let b = &mut *self.buffers;
        if !pre {
            norm_back(cpu, &weights.ffn_norm, d, &b.leaving[..rows], &mut b.gradient, &mut b.block);
        }
        let gradient = &mut b.gradient[..rows];
        let inner_grads = sized(&mut b.inner_grads, inner);
        weights.ffn.second().apply_transposed(cpu, gradient, inner_grads);
        let gate_grads = sized(&mut b.gate_grads, inner);
        let scaled = |into: &mut [f32]| {
            into.copy_from_slice(inner_grads);
            if let Some([_, neurons]) = self.factors {
                scale_neurons(into, neurons);
            }
        };
        let block = sized(&mut b.block, rows);
        match &weights.ffn {
            Ffn::Plain { fc1, .. } => {
                scaled(gate_grads);
                activate_backward(cpu, model.config.activation, &b.gates[..inner], gate_grads);
                fc1.apply_transposed(cpu, gate_grads, block);
            }
            Ffn::Gated { gate, up, .. } => {
                let up_grads = sized(&mut b.up_grads, inner);
                gate_grads.copy_from_slice(&b.gates[..inner]);
                up_grads.copy_from_slice(&b.ups[..inner]);
                gated_backward(cpu, model.config.activation, inner_grads, gate_grads, up_grads);
                if let Some([_, neurons]) = self.factors {
                    scale_neurons(gate_grads, neurons);
                    scale_neurons(up_grads, neurons);
                }
                let part = sized(&mut b.part, rows);
                gate.apply_transposed(cpu, gate_grads, block);
                up.apply_transposed(cpu, up_grads, part);
                add_assign(cpu, block, part);
            }
        }
        if pre {
            weights.ffn_norm.apply_backward(cpu, &b.attended[..rows], d, block, gradient);
        } else {
            add_assign(cpu, gradient, block);
            norm_back(cpu, &weights.attention_norm, d, &b.attended[..rows], &mut b.gradient, &mut b.block);
        }
    }

    /// The gradient of the contexts.
    fn contexts_back(&mut self) {
        let [rows, width, _, _] = self.sizes();
        let b = &mut *self.buffers;
        let context_grads = sized(&mut b.context_grads, width);
        self.weights.attention.out.apply_transposed(self.cpu, &b.gradient[..rows], context_grads);
    }

    fn record<'a>(&'a self, layer: usize, residual: &'a [f32]) -> LayerRecord<'a> {
        let [rows, width, _, inner] = self.sizes();
        let b = &*self.buffers;
        let gated = if self.model.config.gated { inner } else { 0 };
        LayerRecord {
            layer,
            tokens: self.tokens,
            contexts: if self.factors.is_some() { &b.scaled[..width] } else { &b.contexts[..width] },
            context_grads: &b.context_grads[..width],
            inners: &b.inners[..inner],
            inner_grads: &b.inner_grads[..inner],
            residual,
            ffn_inputs: if self.pre() { &b.normed[..rows] } else { &b.between[..rows] },
            gates: &b.gates[..inner],
            gate_grads: &b.gate_grads[..inner],
            ups: &b.ups[..gated],
            up_grads: &b.up_grads[..gated],
        }
    }

    /// From the gradient of the contexts to that of what enters the layer.
    fn attention_back(&mut self) {
        let [rows, width, kv_width, _] = self.sizes();
        let (cpu, model, weights, shape) = (self.cpu, self.model, self.weights, self.shape());
        let pre = self.pre();
        let b = &mut *self.buffers;
        let context_grads = &mut b.context_grads[..width];
        if let Some([heads, _]) = self.factors {
            scale_heads(context_grads, heads, shape.head_dim);
        }
        let pass = AttentionPass {
            shape,
            q: &b.queries[..width],
            k: self.keys,
            v: self.values,
            capacity: self.capacity,
            out: &b.contexts[..width],
            log_sums: &b.log_sums[..self.tokens * shape.heads],
        };
        let dq = sized(&mut b.query_grads, width);
        let dk = sized(&mut b.key_grads, kv_width);
        let dv = sized(&mut b.value_grads, kv_width);
        attention_backward(cpu, &pass, context_grads, dq, dk, dv);
        if let Some(table) = &model.rope {
            rope_backward(cpu, dq, shape.heads, shape.head_dim, table, 0);
            rope_backward(cpu, dk, shape.kv_heads, shape.head_dim, table, 0);
        }
        let (block, part) = (sized(&mut b.block, rows), sized(&mut b.part, rows));
        weights.attention.q.apply_transposed(cpu, dq, block);
        for (projection, grads) in [(&weights.attention.k, &*dk), (&weights.attention.v, &*dv)] {
            projection.apply_transposed(cpu, grads, part);
            add_assign(cpu, block, part);
        }
        let gradient = &mut b.gradient[..rows];
        if pre {
            weights.attention_norm.apply_backward(cpu, self.entering, model.config.hidden, block, gradient);
        } else {
            add_assign(cpu, gradient, block);
        }
    }
}

/// Replaces the gradient of a norm's output by that of its input `x`; `room` is used up.
fn norm_back(cpu: &Cpu, norm: &Norm, d: usize, x: &[f32], gradient: &mut Buffer, room: &mut Buffer) {
    let dx = sized(room, x.len());
    dx.fill(0.0);
    norm.apply_backward(cpu, x, d, &gradient[..x.len()], dx);
    std::mem::swap(gradient, room);
}
