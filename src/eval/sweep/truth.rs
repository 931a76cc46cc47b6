//! The units that are truly best for each token, to hold plans against.

use std::ops::{ControlFlow, Range};

use super::bytes::each_unit;
use crate::eval::{Chooser, Importance, Job, Masked, Masking};
use crate::generate::Engine;
use crate::sparsity::{Budget, LayerPlan, PlanMasks, Scores, Units, select};
use crate::{Error, Result};

/// Memory for the best units of all tokens that are compared.
const MEMORY: usize = 256 << 20;

/// The oracle's plans at one budget, for as many windows from the start of the text as fit into [`MEMORY`], and at least one.
#[derive(Debug)]
pub(super) struct Truth {
    units: Units,
    /// Tokens of every window that are not compared.
    prefix: usize,
    /// For each window its passes: the first token, and the plans.
    windows: Vec<Vec<(usize, PlanMasks)>>,
    /// Best units of layers, summed over tokens; heads and neurons.
    wanted: [Vec<u64>; 2],
    /// Of these, those of the best plan that is the same for all tokens.
    constant: [Vec<u64>; 2],
    tokens: u64,
}

/// Words of the heads or of the neurons of a row's layer.
pub(super) fn words(masks: &PlanMasks, kind: usize, row: usize, layer: usize) -> &[u64] {
    if kind == 0 { masks.heads(row, layer) } else { masks.neurons(row, layer) }
}

impl Truth {
    /// Asks the oracle. `progress(windows done, windows)` may stop the work.
    pub(super) fn of(
        engine: &Engine,
        windows: &[&[u32]],
        budget: Budget,
        prefix: usize,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Truth> {
        let units = Units::from(engine.config());
        let row = 8 * units.layers * (units.heads.div_ceil(64) + units.neurons.div_ceil(64));
        let size = row * windows.first().map_or(0, |window| window.len());
        let windows = &windows[..(MEMORY / size.max(1)).clamp(1, windows.len().max(1)).min(windows.len())];
        let chooser = Chooser::Oracle { importance: Importance::Magnitude, budget };
        let mut masked = Masked::new(engine, chooser, Masking { dense_prefix: prefix, ..Masking::default() })?;
        let zeros = |width: usize| vec![0_u64; units.layers * width];
        let mut times = [zeros(units.heads), zeros(units.neurons)];
        let mut truth = Truth {
            units,
            prefix,
            windows: Vec::new(),
            wanted: [zeros(1), zeros(1)],
            constant: [zeros(1), zeros(1)],
            tokens: 0,
        };
        for (number, window) in windows.iter().enumerate() {
            let mut text = masked.text(number as u64, window.len())?;
            let mut passes = Vec::new();
            let passed = &mut |parts: &[(usize, Range<usize>)], masks: &PlanMasks| {
                passes.extend(parts.iter().map(|(_, range)| (range.start, masks.clone())));
            };
            let jobs = &mut [Job { text: &mut text, tokens: window, from: window.len() }];
            masked.run_with(jobs, passed, &mut |_, _, _| ControlFlow::Continue(()))?;
            truth.windows.push(passes);
            truth.count(number, window.len(), &mut times);
            if progress(number + 1, windows.len()).is_break() {
                return Err(Error::Interrupted);
            }
        }
        truth.hold(&budget, &times)?;
        Ok(truth)
    }

    /// The plans with token `position` of a window, and their row of it; `None` if it is not compared.
    pub(super) fn plan(&self, window: usize, position: usize) -> Option<(&PlanMasks, usize)> {
        let passes = self.windows.get(window).filter(|_| position >= self.prefix)?;
        let pass = passes.partition_point(|&(first, _)| first <= position).checked_sub(1)?;
        let (first, masks) = passes.get(pass)?;
        Some((masks, position - first))
    }

    /// Best units of a layer, summed over tokens.
    pub(super) fn wanted(&self, kind: usize) -> &[u64] {
        &self.wanted[kind]
    }

    /// Those of the best constant plan.
    pub(super) fn constant(&self, kind: usize) -> &[u64] {
        &self.constant[kind]
    }

    /// Tokens that are compared.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    fn count(&mut self, window: usize, len: usize, times: &mut [Vec<u64>; 2]) {
        for position in self.prefix..len {
            let Some((masks, row)) = self.plan(window, position) else { continue };
            for (kind, times) in times.iter_mut().enumerate() {
                let width = times.len() / self.units.layers;
                for (layer, times) in times.chunks_exact_mut(width).enumerate() {
                    each_unit(words(masks, kind, row, layer), |unit| times[unit] += 1);
                }
            }
            self.tokens += 1;
        }
        for (wanted, times) in self.wanted.iter_mut().zip(times) {
            let width = times.len() / self.units.layers;
            for (wanted, times) in wanted.iter_mut().zip(times.chunks_exact(width)) {
                *wanted = times.iter().sum();
            }
        }
    }

    /// The plan that keeps the units that are most often best, and how often it is right.
    fn hold(&mut self, budget: &Budget, times: &[Vec<u64>; 2]) -> Result<()> {
        // Counts of tokens, which f32 holds exactly up to 2^24.
        let scores = |times: &[u64]| times.iter().map(|&times| times as f32).collect();
        let scores = Scores { heads: scores(&times[0]), neurons: scores(&times[1]) };
        let mut plan = crate::sparsity::Plan::dense(self.units);
        select(&scores, budget, self.units, &mut plan)?;
        let lists: [fn(&LayerPlan) -> &[u32]; 2] = [|layer| &layer.heads, |layer| &layer.neurons];
        for ((constant, times), list) in self.constant.iter_mut().zip(times).zip(lists) {
            let width = times.len() / self.units.layers;
            for ((constant, times), layer) in constant.iter_mut().zip(times.chunks_exact(width)).zip(&plan.layers) {
                *constant = list(layer).iter().map(|&unit| times[unit as usize]).sum();
            }
        }
        Ok(())
    }
}
