//! The probe that lets policies decide for the rows of a dense pass and sets to zero what they drop.

use std::ops::Range;

use rayon::prelude::*;

use super::Decision;
use crate::Result;
use crate::kernels::Cpu;
use crate::model::{Probe, Rows};
use crate::sparsity::{GateMask, Plan, PlanMasks, Policy, PolicyInput, RowsInput, Station, Units};

/// Rows of one text that are decided.
pub(super) struct Span<'a> {
    /// Rows of the pass, at least one.
    pub(super) rows: Range<usize>,
    /// Position in the text of the first of them.
    pub(super) position: usize,
    pub(super) policy: &'a mut dyn Policy,
    /// The plan that all its rows have in common, as far as there is one.
    pub(super) plan: &'a mut Plan,
}

/// Masks the rows of one pass.
pub(super) struct MaskProbe<'a> {
    pub(super) cpu: &'a Cpu,
    pub(super) units: Units,
    pub(super) decision: Decision,
    /// In order. Rows of the pass that are in none of them stay dense.
    pub(super) spans: Vec<Span<'a>>,
    /// One row for each of the pass.
    pub(super) masks: &'a mut PlanMasks,
    pub(super) gate: Option<&'a mut GateMask>,
    /// `[rows, H, d_h]`: contexts of the last layer whose policies want them.
    pub(super) contexts: &'a mut Vec<f32>,
    /// The first error; a pass cannot be stopped.
    pub(super) result: Result<()>,
}

impl MaskProbe<'_> {
    /// Decisions in front of the first layer.
    pub(super) fn start(&mut self) {
        self.decide(Station::Start, &[], 0);
    }

    /// Whether a policy has a station here.
    fn has(&self, station: Station) -> bool {
        self.spans.iter().any(|span| span.policy.stations().contains(&station))
    }

    /// `residual` is `[count, d]`, or empty.
    fn decide(&mut self, station: Station, residual: &[f32], count: usize) {
        if self.result.is_ok() {
            let contexts = if residual.is_empty() { &[][..] } else { &self.contexts[..] };
            self.result = decide(
                self.cpu,
                self.units,
                self.decision,
                &mut self.spans,
                self.masks,
                &Seen { station, residual, contexts, count },
            );
        }
    }
}

/// Sets dropped units of every row to zero. `values` is `[count, units, width]`.
fn zero_rows<'k>(
    cpu: &Cpu,
    values: &mut [f32],
    units: usize,
    count: usize,
    kept: impl Fn(usize) -> &'k [u64] + Send + Sync,
) {
    let row = values.len() / count;
    let one = |(at, values): (usize, &mut [f32])| zero_dropped(values, row / units, kept(at));
    // A pool of one thread is the caller's own, and rayon must not be asked then: it would start threads of its own.
    if cpu.threads() == 1 {
        return values.chunks_exact_mut(row).enumerate().for_each(one);
    }
    cpu.install(|| values.par_chunks_exact_mut(row).enumerate().for_each(one));
}

/// What a pass shows at a station.
struct Seen<'a> {
    station: Station,
    /// `[count, d]`, or empty.
    residual: &'a [f32],
    /// `[count, H, d_h]`, or empty.
    contexts: &'a [f32],
    /// Rows of the pass.
    count: usize,
}

impl<'a> Seen<'a> {
    fn rows(&self, values: &'a [f32], rows: Range<usize>) -> &'a [f32] {
        let width = values.len() / self.count.max(1);
        &values[rows.start * width..rows.end * width]
    }
}

fn decide(
    cpu: &Cpu,
    units: Units,
    decision: Decision,
    spans: &mut [Span<'_>],
    masks: &mut PlanMasks,
    seen: &Seen<'_>,
) -> Result<()> {
    let station = seen.station;
    for Span { rows, position, policy, plan } in spans.iter_mut().filter(|s| s.policy.stations().contains(&station)) {
        let mut masks = masks.rows_mut(rows.clone());
        match decision {
            Decision::Causal => {
                let (residual, contexts) =
                    (seen.rows(seen.residual, rows.clone()), seen.rows(seen.contexts, rows.clone()));
                let (position, rows) = (*position, rows.len());
                policy.decide_rows(RowsInput { station, position, rows, residual, contexts, cpu }, &mut masks)?;
            }
            Decision::Sequence => {
                let last = rows.end - 1..rows.end;
                let (residual, contexts) = (seen.rows(seen.residual, last.clone()), seen.rows(seen.contexts, last));
                let position = *position + rows.len() - 1;
                policy.decide(PolicyInput { station, position, residual, contexts, cpu }, plan)?;
                let layers = station.next_layer()..units.layers;
                layers.clone().try_for_each(|layer| plan.validate_layer(layer, units))?;
                for mut row in masks.rows() {
                    layers.clone().for_each(|layer| row.set(layer, &plan.layers[layer]));
                }
            }
        }
    }
    Ok(())
}

/// Sets the units that are not kept to zero. `values` is `[units, width]`.
fn zero_dropped(values: &mut [f32], width: usize, kept: &[u64]) {
    for (values, word) in values.chunks_mut(64 * width).zip(kept) {
        let units = values.len() / width;
        let mut dropped = !word & (u64::MAX >> (64 - units));
        while dropped != 0 {
            let unit = dropped.trailing_zeros() as usize;
            values[unit * width..(unit + 1) * width].fill(0.0);
            dropped &= dropped - 1;
        }
    }
}

impl Probe for MaskProbe<'_> {
    fn residual(&mut self, rows: Rows, values: &mut [f32]) {
        // What enters a layer has left the one before.
        let left = rows.layer.checked_sub(1).filter(|_| rows.layer < self.units.layers);
        if let Some(left) = left {
            self.decide(Station::AfterLayer(left), values, rows.count);
        }
    }

    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        let masks = &*self.masks;
        zero_rows(self.cpu, values, self.units.heads, rows.count, |row| masks.heads(row, rows.layer));
        if self.has(Station::AfterLayer(rows.layer)) {
            self.contexts.clear();
            self.contexts.extend_from_slice(values);
        }
    }

    fn gates(&mut self, rows: Rows, gates: &mut [f32], ups: &mut [f32]) {
        if let Some(gate) = &mut self.gate {
            let (spans, masks) = (&self.spans, &self.masks);
            let decided = |row| spans.iter().any(|span| span.rows.contains(&row));
            gate.mask(rows.layer, gates, ups, |row| decided(row).then(|| masks.neurons(row, rows.layer)));
        }
    }

    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        let masks = &*self.masks;
        zero_rows(self.cpu, values, self.units.neurons, rows.count, |row| masks.neurons(row, rows.layer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_units_are_zero_and_others_stay() {
        for units in [1usize, 2, 63, 64, 65, 130] {
            for width in [1, 3] {
                let kept: Vec<bool> = (0..units).map(|i| i * i % 3 != 1).collect();
                let mut words = vec![0u64; units.div_ceil(64)];
                kept.iter().enumerate().for_each(|(i, &kept)| words[i / 64] |= u64::from(kept) << (i % 64));
                let mut values: Vec<f32> = (0..units * width).map(|i| i as f32 + 1.0).collect();
                let expected: Vec<f32> =
                    values.iter().enumerate().map(|(i, &v)| if kept[i / width] { v } else { 0.0 }).collect();
                zero_dropped(&mut values, width, &words);
                assert_eq!(values, expected);
            }
        }
    }
}
