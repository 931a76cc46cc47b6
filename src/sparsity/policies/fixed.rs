//! `static`: one plan for every token, from scores that were averaged over a calibration text.
//!
//! Costs nothing per token and can be surprisingly good for mild budgets; what contextual policies gain, they gain over this.

use crate::Result;
use crate::sparsity::{Budget, Plan, Policy, PolicyInput, Scores, Station, Units, select};

/// One plan for every token.
#[derive(Clone, Debug)]
pub struct Fixed {
    plan: Plan,
}

impl Fixed {
    /// The best units by `scores`.
    ///
    /// # Errors
    /// As [`select`].
    pub fn new(scores: &Scores, budget: &Budget, units: impl Into<Units>) -> Result<Self> {
        let units = units.into();
        let mut plan = Plan::dense(units);
        select(scores, budget, units, &mut plan)?;
        Ok(Fixed { plan })
    }

    /// A plan of one's own.
    ///
    /// # Errors
    /// As [`Plan::validate`].
    pub fn with_plan(plan: Plan, units: impl Into<Units>) -> Result<Self> {
        plan.validate(units)?;
        Ok(Fixed { plan })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

impl Policy for Fixed {
    fn name(&self) -> &'static str {
        "static"
    }

    fn stations(&self) -> &[Station] {
        &[Station::Once]
    }

    fn decide(&mut self, _: PolicyInput<'_>, plan: &mut Plan) -> Result<()> {
        plan.copy_from(&self.plan);
        Ok(())
    }

    fn fork(&self) -> Box<dyn Policy> {
        Box::new(self.clone())
    }

    fn bytes_per_decision(&self) -> u64 {
        0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sparsity::Scope;
    use crate::sparsity::testing::{UNITS, decide, scores};

    #[test]
    fn it_is_the_selection_of_its_scores() {
        let budget = Budget::new(0.5, 0.25, Scope::Global).unwrap();
        let mut expected = Plan::dense(UNITS);
        select(&scores(5), &budget, UNITS, &mut expected).unwrap();
        let mut policy = Fixed::new(&scores(5), &budget, UNITS).unwrap();
        assert_eq!(decide(&mut policy, 0), expected);
        assert_eq!(policy.plan(), &expected);
        assert!(Fixed::with_plan(Plan::default(), UNITS).is_err());
    }
}
