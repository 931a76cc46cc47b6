//! What the tests of the emulator share: fixtures, schedules, numbers.

#![allow(dead_code)]

use shadowllm_emulator::{Arg, Counters, Device, Error, Module, Schedule};

/// Schedules that every kernel must be right under.
pub const SCHEDULES: [Schedule; 4] =
    [Schedule::InOrder, Schedule::Reversed, Schedule::Random(1), Schedule::Random(20_26)];
/// Architectures there are fixtures of.
pub const TARGETS: [&str; 3] = ["sm_80", "sm_90", "sm_100"];

/// The folder of the fixtures.
pub fn folder() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The PTX of a fixture.
pub fn ptx(name: &str, target: &str) -> String {
    let path = folder().join(format!("{name}.{target}.ptx"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs `test` on a fresh device with the module loaded, for every target and schedule.
pub fn everywhere(name: &str, test: impl Fn(&mut Device, &Module)) {
    for target in TARGETS {
        let text = ptx(name, target);
        for schedule in SCHEDULES {
            let mut device = Device::new();
            device.set_schedule(schedule);
            let module = device.load(&text).unwrap();
            assert_eq!(module.target(), target);
            test(&mut device, &module);
        }
    }
}

/// Launches in one dimension.
pub fn launch(device: &mut Device, module: &Module, kernel: &str, grid: usize, block: usize, args: &[Arg]) -> Counters {
    try_launch(device, module, kernel, grid, block, args).unwrap_or_else(|error| panic!("{error}"))
}

/// Launches in one dimension.
pub fn try_launch(
    device: &mut Device,
    module: &Module,
    kernel: &str,
    grid: usize,
    block: usize,
    args: &[Arg],
) -> Result<Counters, Error> {
    device.launch(module, kernel, [grid as u32, 1, 1], [block as u32, 1, 1], 0, args)
}

/// Numbers that look random and are the same everywhere.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2) + 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit
    }

    /// Between -1 and 1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }
}

/// The bits of floats: equality that tells zeros apart and knows NaN.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
