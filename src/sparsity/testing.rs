//! What this module's tests share.

use super::{Plan, Policy, PolicyInput, Scores, Units};
use crate::kernels::{Cpu, CpuOptions};

pub(crate) const UNITS: Units = Units { layers: 3, heads: 4, neurons: 32 };

/// Different scores for every seed.
pub(crate) fn scores(seed: u32) -> Scores {
    let value = |i: usize| ((i as u32).wrapping_add(97 * seed).wrapping_mul(2_654_435_761) >> 16) as f32;
    Scores { heads: (0..12).map(value).collect(), neurons: (0..96).map(value).collect() }
}

/// One thread.
pub(crate) fn cpu() -> Cpu {
    Cpu::new(&CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap()
}

/// The plan that a policy without stations behind layers makes for `position`.
pub(crate) fn decide(policy: &mut impl Policy, position: usize) -> Plan {
    let mut plan = Plan::dense(UNITS);
    let cpu = cpu();
    for station in policy.stations().to_vec() {
        let input = PolicyInput { station, position, residual: &[], contexts: &[], cpu: &cpu };
        policy.decide(input, &mut plan).unwrap();
    }
    plan
}
