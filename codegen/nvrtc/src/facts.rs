//! What the assembler says of every kernel, read from the compiler's log.

/// Resources of one compiled kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelFacts {
    /// Its name in the program.
    pub name: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread.
    pub stack: u32,
    /// Bytes that a thread writes to local memory for want of registers.
    pub spill_stores: u32,
    /// Bytes that a thread reads back.
    pub spill_loads: u32,
    /// Bytes of static shared memory of a block.
    pub shared: u32,
    /// Barriers.
    pub barriers: u32,
}

impl KernelFacts {
    /// Whether registers were short.
    pub fn spills(&self) -> bool {
        self.spill_stores > 0 || self.spill_loads > 0
    }
}

/// Facts of every kernel in the order of the log.
pub(crate) fn kernels(log: &str) -> Vec<KernelFacts> {
    let mut kernels: Vec<KernelFacts> = Vec::new();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            kernels.push(KernelFacts { name, ..KernelFacts::default() });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        let number = |unit| number_before(line, unit);
        if line.contains("bytes stack frame") {
            kernel.stack = number(" bytes stack frame");
            kernel.spill_stores = number(" bytes spill stores");
            kernel.spill_loads = number(" bytes spill loads");
        } else if line.contains(" registers") {
            kernel.registers = number(" registers");
            kernel.shared = number(" bytes smem");
            kernel.barriers = number(" barriers");
        }
    }
    kernels
}

/// The lines of a log that warn.
pub(crate) fn warnings(log: &str) -> Vec<String> {
    let warns = |line: &&str| line.contains("warning #") || line.contains("ptxas warning");
    log.lines().filter(warns).map(str::to_owned).collect()
}

/// The number that stands before `unit`; 0 if there is none.
fn number_before(line: &str, unit: &str) -> u32 {
    let before = line.split(unit).next().filter(|before| before.len() < line.len());
    let digits = before.and_then(|before| before.rsplit(|c: char| !c.is_ascii_digit()).next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 4096 bytes smem, 380 bytes cmem[0]
ptxas info    : Compile time = 2.1 ms
ptxas info    : Compiling entry function 'second' for 'sm_80'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 360 bytes cmem[0]
ptxas warning : Registers are spilled to local memory in function 'first'
";

    #[test]
    fn facts_and_warnings_are_read_from_the_log() {
        let kernels = kernels(LOG);
        let first = KernelFacts {
            name: "first".into(),
            registers: 255,
            stack: 16,
            spill_stores: 4,
            spill_loads: 8,
            shared: 4096,
            barriers: 1,
        };
        let second = KernelFacts { name: "second".into(), registers: 12, ..KernelFacts::default() };
        assert!(first.spills() && !second.spills());
        assert_eq!(kernels, [first, second]);
        assert_eq!(warnings(LOG), ["ptxas warning : Registers are spilled to local memory in function 'first'"]);
    }
}
