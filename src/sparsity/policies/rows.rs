//! Selection for several tokens at once, shared by threads.

use rayon::prelude::*;

use crate::Result;
use crate::kernels::Cpu;
use crate::sparsity::masks::MaskRow;
use crate::sparsity::{Budget, Plan, Scores, Selector, Units};

/// Tokens that are decided together. Few enough that their scores take little memory, and that products of so many rows are, bit
/// for bit, those of the rows one by one.
pub(super) const BLOCK: usize = 16;

/// Scores and buffers of a block of tokens.
#[derive(Debug, Default)]
pub(super) struct RowSelectors {
    workers: Vec<Worker>,
}

#[derive(Debug)]
struct Worker {
    scores: Scores,
    selector: Selector,
    plan: Plan,
}

impl RowSelectors {
    /// The scores of `rows` tokens, to be written. They hold what was there before, zeros at first.
    pub(super) fn scores(&mut self, rows: usize, units: Units) -> Vec<&mut Scores> {
        while self.workers.len() < rows {
            let (scores, plan) = (Scores::zeros(units), Plan::dense(units));
            self.workers.push(Worker { scores, selector: Selector::new(), plan });
        }
        self.workers.iter_mut().take(rows).map(|worker| &mut worker.scores).collect()
    }

    /// Selects for `layers` of every row by its scores. The result does not depend on the threads.
    ///
    /// # Errors
    /// As [`Selector::select_layers`], for the first row that has one.
    pub(super) fn select(
        &mut self,
        cpu: &Cpu,
        budget: &Budget,
        units: Units,
        layers: std::ops::Range<usize>,
        rows: &mut [MaskRow<'_>],
    ) -> Result<()> {
        let one = |(worker, row): (&mut Worker, &mut MaskRow<'_>)| {
            let Worker { scores, selector, plan } = worker;
            selector.select_layers(None, scores, budget, units, layers.clone(), plan)?;
            layers.clone().for_each(|layer| row.set(layer, &plan.layers[layer]));
            Ok(())
        };
        // A pool of one thread is the caller's own, and rayon must not be asked then: it would start threads of its own.
        if cpu.threads() == 1 {
            return self.workers.iter_mut().zip(rows).try_for_each(one);
        }
        let results: Vec<Result<()>> =
            cpu.install(|| self.workers.par_iter_mut().zip(rows.par_iter_mut()).map(one).collect());
        results.into_iter().collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kernels::CpuOptions;
    use crate::sparsity::predictor::{Predictor, PredictorInfo, WeightFormat, random_predictor, write_predictor};
    use crate::sparsity::testing::{UNITS, config, info, rng, scores};
    use crate::sparsity::{
        DejaVu, Dense, Fixed, Oracle, PlanMasks, Policy, PolicyInput, Random, RowsInput, Scope, Shadow, Station,
    };

    /// Every policy, made anew.
    fn policies(budget: Budget) -> Vec<Box<dyn Policy>> {
        let info = PredictorInfo { stations: vec![0, 1], ..info() };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p.safetensors");
        write_predictor(&path, &info, &random_predictor(&info, &config(), 8, 8, 2), WeightFormat::Int8).unwrap();
        let predictor = Arc::new(Predictor::open(&path, &config(), &info.model).unwrap());
        let source = |position: usize, into: &mut Scores| {
            into.clone_from(&scores(position as u32));
            Ok(())
        };
        vec![
            Box::new(Dense),
            Box::new(Fixed::new(&scores(3), &budget, UNITS).unwrap()),
            Box::new(Random::new(3, budget, UNITS).unwrap()),
            Box::new(Oracle::new(source, budget, UNITS).unwrap()),
            Box::new(Shadow::new(Arc::clone(&predictor), budget).unwrap()),
            Box::new(DejaVu::new(predictor, budget).unwrap()),
        ]
    }

    /// Decisions for many tokens at once, also in two parts, are those for one after the other; a fork goes on as its origin.
    #[test]
    fn rows_are_decided_as_one_by_one() {
        const ROWS: usize = 37;
        let mut random = rng(4);
        let residual: Vec<f32> = (0..8 * ROWS).map(|_| random() - 0.5).collect();
        let contexts: Vec<f32> = (0..8 * ROWS).map(|_| random() - 0.5).collect();
        for scope in [Scope::Local, Scope::Global] {
            let budget = Budget::new(0.5, 0.25, scope).unwrap();
            for threads in [1, 2, 3] {
                let cpu = Cpu::new(&CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap();
                for (mut one, mut many) in policies(budget).into_iter().zip(policies(budget)) {
                    let mut masks = PlanMasks::new(UNITS);
                    masks.reset(ROWS);
                    for part in [0..20, 20..ROWS] {
                        for &station in &many.stations().to_vec() {
                            let rows = part.len();
                            let values = match station {
                                Station::AfterLayer(_) => 8 * part.start..8 * part.end,
                                _ => 0..0,
                            };
                            let (residual, contexts) = (&residual[values.clone()], &contexts[values]);
                            let position = 5 + part.start;
                            let input = RowsInput { station, position, rows, residual, contexts, cpu: &cpu };
                            many.decide_rows(input, &mut masks.rows_mut(part.clone())).unwrap();
                        }
                        many = many.fork();
                    }
                    for row in 0..ROWS {
                        let mut plan = Plan::dense(UNITS);
                        for &station in &one.stations().to_vec() {
                            let values = match station {
                                Station::AfterLayer(_) => 8 * row..8 * (row + 1),
                                _ => 0..0,
                            };
                            let (residual, contexts) = (&residual[values.clone()], &contexts[values]);
                            let input = PolicyInput { station, position: 5 + row, residual, contexts, cpu: &cpu };
                            one.decide(input, &mut plan).unwrap();
                        }
                        assert_eq!(masks.plan(row), plan, "{}, row {row}", one.name());
                    }
                }
            }
        }
    }
}
