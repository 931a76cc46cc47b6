//! Units of several ascending lists, taken a few at a time.

use std::ops::Range;

use crate::kernels::linear::SAME_BITS;
use crate::kernels::simd::Element;

/// Most sequences of one call. Fewer than the rows from which matrix products are blocked, so that no product of a batch, of
/// whatever matrix, rounds otherwise than that of one row.
pub const MOST_SEQUENCES: usize = 8;

const _: () = assert!(MOST_SEQUENCES < SAME_BITS);

/// Most units of a group: as many as a mask has bits.
pub(super) const MOST_UNITS: usize = u64::BITS as usize;

/// Units of a group that the longest list should have.
const ENTRIES: usize = 12;

/// Some neighbouring units, and which of them each sequence lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// The unit of bit 0.
    pub(super) start: usize,
    /// Per sequence, a bit for each unit that it lists.
    pub(super) listed: [u64; MOST_SEQUENCES],
    /// Per sequence, where in its list the lowest of these is.
    pub(super) first: [usize; MOST_SEQUENCES],
}

/// How many neighbouring units make a group: so many that sequences have enough of them in common work, so few that their rows
/// stay in a cache. `units` is how many there are.
pub(super) fn width(lists: &[&[u32]], units: usize) -> usize {
    let longest = lists.iter().map(|list| list.len()).max().unwrap_or(0).max(1);
    (ENTRIES * units).div_ceil(longest).clamp(1, MOST_UNITS)
}

/// Goes through the units of `units` that any list has, group by group, ascending.
pub(super) struct Groups<'a> {
    lists: &'a [&'a [u32]],
    /// The next place in each list.
    next: [usize; MOST_SEQUENCES],
    units: Range<usize>,
    width: usize,
}

impl<'a> Groups<'a> {
    /// Groups of `width` units, at most [`MOST_UNITS`].
    pub(super) fn new(lists: &'a [&'a [u32]], units: Range<usize>, width: usize) -> Self {
        assert!(lists.len() <= MOST_SEQUENCES && (1..=MOST_UNITS).contains(&width));
        let mut next = [0; MOST_SEQUENCES];
        for (next, list) in next.iter_mut().zip(lists) {
            *next = list.partition_point(|&unit| (unit as usize) < units.start);
        }
        Groups { lists, next, units, width }
    }
}

impl Iterator for Groups<'_> {
    type Item = Group;

    fn next(&mut self) -> Option<Group> {
        let heads = self.lists.iter().zip(&self.next).filter_map(|(list, &next)| list.get(next));
        let start = heads.min().map(|&unit| unit as usize).filter(|&unit| unit < self.units.end)?;
        let end = self.units.end.min(start + self.width);
        let mut group = Group { start, listed: [0; MOST_SEQUENCES], first: self.next };
        for (sequence, (list, next)) in self.lists.iter().zip(&mut self.next).enumerate() {
            while let Some(&unit) = list.get(*next).filter(|&&unit| (unit as usize) < end) {
                group.listed[sequence] |= 1 << (unit as usize - start);
                *next += 1;
            }
        }
        Some(group)
    }
}

/// The units that any sequence has.
#[inline(always)]
pub(super) fn union(masks: &[u64; MOST_SEQUENCES]) -> u64 {
    let mut union = 0;
    for mask in masks {
        union |= mask;
    }
    union
}

/// How many units of `mask` lie below `bit`.
#[inline(always)]
pub(super) fn below(mask: u64, bit: usize) -> usize {
    (mask & ((1 << bit) - 1)).count_ones() as usize
}

/// The units of a mask, ascending.
#[derive(Clone, Copy)]
pub(super) struct Bits(pub(super) u64);

impl Iterator for Bits {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        let bit = self.0.trailing_zeros() as usize;
        self.0 &= self.0.wrapping_sub(1);
        (bit < MOST_UNITS).then_some(bit)
    }
}

/// The rows of some units of a group, ascending.
pub(super) struct Rows<'a, W> {
    rows: [&'a [W]; MOST_UNITS],
    len: usize,
}

impl<'a, W: Element> Rows<'a, W> {
    /// Those of the units of `mask`; `row` finds one.
    #[inline(always)]
    pub(super) fn new(mask: u64, row: impl Fn(usize) -> &'a [W]) -> Self {
        let mut rows = Rows::none();
        for bit in Bits(mask) {
            rows.rows[rows.len] = row(bit);
            rows.len += 1;
        }
        rows
    }

    /// No row.
    #[inline(always)]
    pub(super) fn none() -> Self {
        Rows { rows: [&[]; MOST_UNITS], len: 0 }
    }

    /// How many.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Row `i`.
    #[inline(always)]
    pub(super) fn get(&self, i: usize) -> &'a [W] {
        self.rows[..self.len][i]
    }

    /// Where row `i` begins; where `row` does if there is none.
    #[inline(always)]
    pub(super) fn start(&self, i: usize, row: &[W]) -> *const W {
        if i < self.len { self.rows[i].as_ptr() } else { row.as_ptr() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_the_lists() {
        let long: Vec<u32> = (0..1000).filter(|i| i % 3 != 1).collect();
        let lists: [&[u32]; 4] = [&[0, 3, 4, 63, 64, 127, 900], &[], &[3, 5, 900, 901], &long];
        for lists in [&lists[..], &lists[..3], &lists[1..2]] {
            for units in [0..1000, 3..901, 4..5, 6..6] {
                for width in [1, 16, 63, 64] {
                    let mut found = vec![Vec::new(); lists.len()];
                    let mut end = units.start;
                    for group in Groups::new(lists, units.clone(), width) {
                        assert!(group.start >= end, "units {units:?}, width {width}: groups overlap");
                        assert_eq!(union(&group.listed) & 1, 1, "a group begins with a unit that is listed");
                        end = group.start + width;
                        for (sequence, list) in lists.iter().enumerate() {
                            for (j, bit) in Bits(group.listed[sequence]).enumerate() {
                                assert!(bit < width);
                                assert_eq!(below(group.listed[sequence], bit), j);
                                assert_eq!(list[group.first[sequence] + j] as usize, group.start + bit);
                                found[sequence].push(list[group.first[sequence] + j]);
                            }
                        }
                    }
                    for (found, list) in found.iter().zip(lists) {
                        let expected = list.iter().filter(|&&unit| units.contains(&(unit as usize)));
                        assert!(found.iter().eq(expected), "units {units:?}, width {width}: {found:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn groups_of_long_lists_are_narrow() {
        let list: Vec<u32> = (0..1000).collect();
        assert_eq!(width(&[&list, &[]], 1000), ENTRIES);
        assert_eq!(width(&[&list[..500], &list[..20]], 1000), 2 * ENTRIES);
        assert_eq!(width(&[&list[..10]], 1000), MOST_UNITS);
        assert_eq!(width(&[&[]], 1000), MOST_UNITS);
        assert_eq!(width(&[], 0), 1);
    }
}
