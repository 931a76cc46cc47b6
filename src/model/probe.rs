//! Seams of the forward pass: see or change what flows between its parts.

/// Shape of the rows that a probe is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Layer, from 0.
    pub layer: usize,
    /// Rows in this call: tokens of all segments, in order.
    pub count: usize,
}

/// Called by the forward pass, layer by layer, on all rows at once.
///
/// Every method may change what it is shown; the pass goes on with the changed values. The default does nothing.
pub trait Probe {
    /// Whether it wants to see anything. A pass that nobody watches may run elsewhere.
    fn watches(&self) -> bool {
        true
    }

    /// Residual stream entering layer `rows.layer`, `[rows, d]`; called with `layer == L` for the stream that leaves the
    /// last layer, after the final norm where the model has one.
    fn residual(&mut self, rows: Rows, values: &mut [f32]) {
        let _ = (rows, values);
    }

    /// Contexts `A`: attention output before the output projection, `[rows, H, d_h]`.
    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        let _ = (rows, values);
    }

    /// Products of a gated FFN, `gate x` (before its activation) and `up x`, each `[rows, F]`. Not called for a plain one.
    fn gates(&mut self, rows: Rows, gates: &mut [f32], ups: &mut [f32]) {
        let _ = (rows, gates, ups);
    }

    /// Inners `Z`: input of the second FFN matrix, `[rows, F]`.
    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        let _ = (rows, values);
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProbe;

impl Probe for NoProbe {
    fn watches(&self) -> bool {
        false
    }
}
