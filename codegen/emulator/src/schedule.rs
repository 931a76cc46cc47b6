//! In which order blocks and warps run. A correct kernel gives the same result under every schedule; a race often doesn't.

/// Order of blocks, and of warps within a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schedule {
    /// Blocks and warps ascending; a warp runs until it waits.
    #[default]
    InOrder,
    /// Blocks and warps descending.
    Reversed,
    /// Blocks shuffled, and warps taken at random for a random number of instructions. The seed fixes all of it.
    Random(u64),
}

impl Schedule {
    /// The order of `blocks` blocks.
    pub fn blocks(self, blocks: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..blocks).collect();
        match self {
            Self::InOrder => {}
            Self::Reversed => order.reverse(),
            Self::Random(seed) => {
                let mut random = Random::new(seed);
                for i in (1..order.len()).rev() {
                    order.swap(i, random.below(i as u64 + 1) as usize);
                }
            }
        }
        order
    }

    /// The choices within the block of this number.
    pub fn warps(self, block: u32) -> Choices {
        Choices {
            schedule: self,
            random: match self {
                Self::Random(seed) => Random::new(seed ^ (u64::from(block) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                _ => Random::new(0),
            },
        }
    }
}

/// Chooses the next warp.
#[derive(Debug)]
pub struct Choices {
    schedule: Schedule,
    random: Random,
}

impl Choices {
    /// One of the ready warps, and for how many instructions it may run. `ready` is not empty.
    pub fn next(&mut self, ready: &[usize]) -> (usize, u64) {
        match self.schedule {
            Schedule::InOrder => (ready[0], u64::MAX),
            Schedule::Reversed => (ready[ready.len() - 1], u64::MAX),
            Schedule::Random(_) => {
                let warp = ready[self.random.below(ready.len() as u64) as usize];
                (warp, 1 + self.random.below(64))
            }
        }
    }
}

/// SplitMix64: small, and the same everywhere.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % limit
    }
}
