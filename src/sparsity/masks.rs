//! The units that many tokens keep, a bit for each.
//!
//! A token that is decoded has a [`Plan`]: lists, because kernels walk along them. Where a whole text runs at once and dropped
//! units are set to zero, lists of every token would take as much memory as its activations do; bits take a thirty-second of
//! that, and say of any unit at once whether it is kept.

use super::{Kept, LayerPlan, Plan, Units};

/// Plans of consecutive tokens.
///
/// ```
/// use shadowllm::sparsity::{LayerPlan, PlanMasks, Units};
///
/// let mut masks = PlanMasks::new(Units { layers: 2, heads: 3, neurons: 70 });
/// masks.reset(2);
/// masks.rows_mut(1..2).rows().next().unwrap().set(1, &LayerPlan { heads: vec![0, 2], neurons: vec![64] });
/// assert_eq!((masks.heads(0, 1), masks.heads(1, 1)), (&[0b111][..], &[0b101][..]));
/// assert_eq!(masks.neurons(1, 1), [0, 1]);
/// ```
#[derive(Clone, Debug)]
pub struct PlanMasks {
    layout: Layout,
    /// `[rows, L, words of the heads, words of the neurons]`
    bits: Vec<u64>,
}

/// Some neighbouring rows of a [`PlanMasks`], to be written.
#[derive(Debug)]
pub struct MaskRows<'a> {
    layout: Layout,
    bits: &'a mut [u64],
}

/// One row of a [`PlanMasks`], to be written.
#[derive(Debug)]
pub struct MaskRow<'a> {
    layout: Layout,
    /// `[L, words of the heads, words of the neurons]`
    bits: &'a mut [u64],
}

/// Where the bits of a unit are.
#[derive(Clone, Copy, Debug)]
struct Layout {
    units: Units,
    /// Words of a layer's heads, and of its neurons.
    heads: usize,
    neurons: usize,
}

const BITS: usize = u64::BITS as usize;

impl Layout {
    fn layer(self) -> usize {
        self.heads + self.neurons
    }

    fn row(self) -> usize {
        self.units.layers * self.layer()
    }

    /// Heads and neurons of a layer of one row.
    fn split_mut(self, row: &mut [u64], layer: usize) -> (&mut [u64], &mut [u64]) {
        row[layer * self.layer()..][..self.layer()].split_at_mut(self.heads)
    }
}

/// Sets the first `n` bits and clears the rest.
fn set_all(words: &mut [u64], n: usize) {
    for (index, word) in words.iter_mut().enumerate() {
        *word = match n.saturating_sub(index * BITS) {
            0 => 0,
            left if left >= BITS => u64::MAX,
            left => (1 << left) - 1,
        };
    }
}

fn set_listed(words: &mut [u64], list: &[u32]) {
    words.fill(0);
    for &unit in list {
        words[unit as usize / BITS] |= 1 << (unit as usize % BITS);
    }
}

fn listed(words: &[u64], list: &mut Vec<u32>) {
    list.clear();
    for (index, &word) in words.iter().enumerate() {
        let mut rest = word;
        while rest != 0 {
            list.push((index * BITS) as u32 + rest.trailing_zeros());
            rest &= rest - 1;
        }
    }
}

impl PlanMasks {
    /// No rows yet.
    pub fn new(units: impl Into<Units>) -> Self {
        let units = units.into();
        let layout = Layout { units, heads: units.heads.div_ceil(BITS), neurons: units.neurons.div_ceil(BITS) };
        PlanMasks { layout, bits: Vec::new() }
    }

    /// The words of `n` units that are all kept.
    pub(crate) fn all(n: usize) -> Vec<u64> {
        let mut words = vec![0; n.div_ceil(BITS)];
        set_all(&mut words, n);
        words
    }

    /// Makes it `rows` rows that keep everything.
    pub fn reset(&mut self, rows: usize) {
        let layout = self.layout;
        self.bits.resize(rows * layout.row(), 0);
        let Some((first, rest)) = self.bits.split_at_mut_checked(layout.row()) else { return };
        for layer in 0..layout.units.layers {
            let (heads, neurons) = layout.split_mut(first, layer);
            set_all(heads, layout.units.heads);
            set_all(neurons, layout.units.neurons);
        }
        rest.chunks_exact_mut(layout.row().max(1)).for_each(|row| row.copy_from_slice(first));
    }

    /// Heads of a row's layer: bit `i % 64` of word `i / 64` says whether head `i` is kept.
    ///
    /// # Panics
    /// If there is no such row or layer.
    pub fn heads(&self, row: usize, layer: usize) -> &[u64] {
        &self.bits[row * self.layout.row() + layer * self.layout.layer()..][..self.layout.heads]
    }

    /// Neurons of a row's layer, likewise.
    ///
    /// # Panics
    /// If there is no such row or layer.
    pub fn neurons(&self, row: usize, layer: usize) -> &[u64] {
        let layer = row * self.layout.row() + layer * self.layout.layer();
        &self.bits[layer + self.layout.heads..][..self.layout.neurons]
    }

    /// The plan of a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn plan(&self, row: usize) -> Plan {
        let layer = |layer| {
            let mut plan = LayerPlan::default();
            listed(self.heads(row, layer), &mut plan.heads);
            listed(self.neurons(row, layer), &mut plan.neurons);
            plan
        };
        Plan { layers: (0..self.layout.units.layers).map(layer).collect() }
    }

    /// Rows `rows`, to be written.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn rows_mut(&mut self, rows: std::ops::Range<usize>) -> MaskRows<'_> {
        let width = self.layout.row();
        MaskRows { layout: self.layout, bits: &mut self.bits[rows.start * width..rows.end * width] }
    }

    /// Units kept by rows `rows`, summed.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn count(&self, rows: std::ops::Range<usize>) -> KeptCount {
        let layout = self.layout;
        let mut count = KeptCount { tokens: rows.len() as u64, ..KeptCount::default() };
        let ones = |words: &[u64]| words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        for layer in self.bits[rows.start * layout.row()..rows.end * layout.row()].chunks_exact(layout.layer().max(1)) {
            let (heads, neurons) = layer.split_at(layout.heads);
            count.heads += ones(heads);
            count.neurons += ones(neurons);
        }
        count
    }
}

impl MaskRows<'_> {
    /// The model's units.
    pub fn units(&self) -> Units {
        self.layout.units
    }

    /// The rows, in order.
    pub fn rows(&mut self) -> impl Iterator<Item = MaskRow<'_>> {
        let layout = self.layout;
        self.bits.chunks_exact_mut(layout.row().max(1)).map(move |bits| MaskRow { layout, bits })
    }
}

impl MaskRow<'_> {
    /// The units that a layer keeps.
    ///
    /// # Panics
    /// If the model has no such layer or unit.
    pub fn set(&mut self, layer: usize, plan: &LayerPlan) {
        let (heads, neurons) = self.layout.split_mut(self.bits, layer);
        set_listed(heads, &plan.heads);
        set_listed(neurons, &plan.neurons);
    }

    /// Writes what is kept so far into `plan`.
    pub fn read(&self, plan: &mut Plan) {
        plan.layers.resize_with(self.layout.units.layers, LayerPlan::default);
        for (layer, bits) in plan.layers.iter_mut().zip(self.bits.chunks_exact(self.layout.layer().max(1))) {
            let (heads, neurons) = bits.split_at(self.layout.heads);
            listed(heads, &mut layer.heads);
            listed(neurons, &mut layer.neurons);
        }
    }
}

/// Units that tokens kept, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptCount {
    /// Tokens counted.
    pub tokens: u64,
    /// Heads kept, over all layers.
    pub heads: u64,
    /// Neurons kept, over all layers.
    pub neurons: u64,
}

impl KeptCount {
    /// Adds those of other tokens.
    pub fn add(&mut self, other: KeptCount) {
        self.tokens += other.tokens;
        self.heads += other.heads;
        self.neurons += other.neurons;
    }

    /// Units kept / units, over all layers, layer 0 included; 1 if no token was counted.
    pub fn fraction(&self, units: impl Into<Units>) -> Kept {
        let units = units.into();
        let fraction = |kept: u64, width: usize| match self.tokens * (units.layers * width) as u64 {
            0 => 1.0,
            all => kept as f64 / all as f64,
        };
        Kept { heads: fraction(self.heads, units.heads), neurons: fraction(self.neurons, units.neurons) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A random plan of a random shape.
    fn any_plan() -> impl Strategy<Value = (Units, Plan)> {
        (1usize..4, 1usize..140, 1usize..140).prop_flat_map(|(layers, heads, neurons)| {
            let list = |n: usize| {
                let kept = prop::collection::vec(any::<bool>(), n);
                kept.prop_map(|kept| (0..).zip(kept).filter(|(_, kept)| *kept).map(|(i, _)| i).collect::<Vec<u32>>())
            };
            let layer = (list(heads), list(neurons)).prop_map(|(heads, neurons)| LayerPlan { heads, neurons });
            let plan = prop::collection::vec(layer, layers).prop_map(|layers| Plan { layers });
            (Just(Units { layers, heads, neurons }), plan)
        })
    }

    proptest! {
        #[test]
        fn masks_are_the_lists(case in any_plan(), rows in 1usize..5, at in any::<prop::sample::Index>()) {
            let (units, plan) = case;
            let mut masks = PlanMasks::new(units);
            // Whatever was there before is gone.
            masks.reset(rows + 1);
            masks.rows_mut(0..1).rows().next().unwrap().set(0, &LayerPlan::default());
            masks.reset(rows);
            let at = at.index(rows);
            for (layer, kept) in plan.layers.iter().enumerate() {
                masks.rows_mut(at..at + 1).rows().next().unwrap().set(layer, kept);
            }
            let mut read = Plan::default();
            masks.rows_mut(at..at + 1).rows().next().unwrap().read(&mut read);
            prop_assert_eq!(&read, &plan);
            for row in 0..rows {
                let expected = if row == at { plan.clone() } else { Plan::dense(units) };
                prop_assert_eq!(masks.plan(row), expected);
            }
            let count = masks.count(at..at + 1);
            prop_assert_eq!(count.fraction(units), plan.kept_fraction(units));
            let mut sum = masks.count(0..rows);
            prop_assert_eq!(sum.tokens, rows as u64);
            sum.add(count);
            prop_assert_eq!(sum.tokens, rows as u64 + 1);
        }
    }

    #[test]
    fn of_no_tokens_everything_is_kept() {
        let units = Units { layers: 2, heads: 2, neurons: 2 };
        assert_eq!(KeptCount::default().fraction(units), Kept { heads: 1.0, neurons: 1.0 });
    }
}
