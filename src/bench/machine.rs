//! The machine: what the operating system says of it, and what it reaches.
//!
//! Where a fact cannot be had (another operating system, a container that hides it) it is `None`, and whatever would need it does
//! without.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::rows::median;
use crate::kernels::{Cpu, read_passes};

/// Text of a small file, if it is there.
fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The value of a line `key: value` or `key value`.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix(key)?.trim_start();
        Some(value.strip_prefix(':').unwrap_or(value).trim())
    })
}

/// A number with a unit of 1024, such as `300 MB`, `2048 kB` or `307200K`.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match text[digits..].trim_start().chars().next() {
        None => 1,
        Some('k' | 'K') => 1 << 10,
        Some('M') => 1 << 20,
        Some('G') => 1 << 30,
        Some(_) => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit)
}

/// Size of the largest cache that the first core uses.
pub(super) fn last_level_cache() -> Option<u64> {
    let caches = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    caches.filter_map(|cache| bytes(&read(cache.ok()?.path().join("size"))?)).max()
}

/// What is assumed of a cache that nobody tells about.
const ASSUMED_CACHE: u64 = 64 << 20;

/// Bytes that are several times the last-level cache, so that a pass over them comes from memory.
pub(super) fn beyond_caches() -> u64 {
    4 * last_level_cache().unwrap_or(ASSUMED_CACHE)
}

/// Memory that can be taken without anything being moved out, within the limits of a container.
pub(super) fn available_memory() -> Option<u64> {
    let free = bytes(field(&read("/proc/meminfo")?, "MemAvailable")?)?;
    let group = |name: &str| read(Path::new("/sys/fs/cgroup").join(name));
    let limit = group("memory.max").and_then(|max| bytes(&max));
    let left = limit.zip(group("memory.current").and_then(|now| bytes(&now))).map(|(max, now)| max.saturating_sub(now));
    Some(left.map_or(free, |left| left.min(free)))
}

/// The most memory that this process ever held.
pub(super) fn peak_resident() -> Option<u64> {
    bytes(field(&read("/proc/self/status")?, "VmHWM")?)
}

/// Facts about the machine, for records.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Host {
    /// The processor, as it calls itself.
    pub(super) processor: Option<String>,
    /// Family, model and stepping, by which processors of the same name are told apart.
    pub(super) revision: Option<String>,
    /// Cores that this process may use.
    pub(super) cores: Option<usize>,
    /// Nodes of memory; more than one: bandwidth depends on where the weights are.
    pub(super) memory_nodes: Option<usize>,
    /// Bytes of memory.
    pub(super) memory_bytes: Option<u64>,
    /// Bytes of the last-level cache.
    pub(super) cache_bytes: Option<u64>,
    /// Instruction sets that kernels could run on.
    pub(super) isas: Vec<&'static str>,
    /// Features of the processor that kernels use or could.
    pub(super) features: Vec<String>,
    /// `linux`, `macos`, `windows`, ...
    pub(super) system: &'static str,
    /// Version of its kernel.
    pub(super) kernel: Option<String>,
    /// When memory comes in huge pages.
    pub(super) huge_pages: Option<String>,
}

/// Features worth a mention.
const FEATURES: [&str; 10] =
    ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"];

impl Host {
    pub(super) fn look() -> Self {
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let fact = |key: &str| field(&cpuinfo, key).map(str::to_owned);
        let revision = || Some(format!("{}-{}-{}", fact("cpu family")?, fact("model\t")?, fact("stepping")?));
        let flags = fact("flags").unwrap_or_default();
        let features = FEATURES.iter().filter(|f| flags.split(' ').any(|flag| flag == **f));
        let nodes = std::fs::read_dir("/sys/devices/system/node").ok().map(|nodes| {
            let is_node = |name: &str| name.strip_prefix("node").is_some_and(|n| n.parse::<usize>().is_ok());
            nodes.filter_map(|node| node.ok()?.file_name().into_string().ok()).filter(|name| is_node(name)).count()
        });
        Host {
            processor: fact("model name"),
            revision: revision(),
            cores: std::thread::available_parallelism().ok().map(usize::from),
            memory_nodes: nodes,
            memory_bytes: read("/proc/meminfo").and_then(|text| bytes(field(&text, "MemTotal")?)),
            cache_bytes: last_level_cache(),
            isas: crate::kernels::IsaName::available().map(crate::kernels::IsaName::name).collect(),
            features: features.map(|f| (*f).to_owned()).collect(),
            system: std::env::consts::OS,
            kernel: read("/proc/sys/kernel/osrelease"),
            huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled"),
        }
    }

    /// A name for machines like this one that can be a folder: `intel-xeon-processor-6-207-2-2-cores`.
    pub(super) fn slug(&self) -> String {
        let processor = self.processor.as_deref().unwrap_or(std::env::consts::ARCH);
        let text = format!(
            "{} {} {} cores",
            processor.replace("(R)", "").replace("(TM)", ""),
            self.revision.as_deref().unwrap_or_default(),
            self.cores.unwrap_or(1)
        );
        let kept = text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' });
        kept.collect::<String>().split_whitespace().collect::<Vec<_>>().join("-")
    }
}

/// Read bandwidth of a run, measured again and again while it lasts.
#[derive(Clone, Debug)]
pub(super) struct Bandwidth {
    /// Bytes that are read in one pass.
    bytes: usize,
    passes: Vec<f64>,
    /// When it was measured last.
    last: Option<Instant>,
}

/// Passes of one measurement.
const PASSES: usize = 5;
/// A bandwidth that was measured so short a time ago is not measured again.
const FRESH: Duration = Duration::from_secs(5);

impl Bandwidth {
    /// Of passes over `bytes`.
    pub(super) fn of(bytes: u64) -> Self {
        Bandwidth { bytes: usize::try_from(bytes).unwrap_or(usize::MAX), passes: Vec::new(), last: None }
    }

    /// Adds some passes.
    pub(super) fn measure(&mut self, cpu: &Cpu) {
        self.passes.extend(read_passes(cpu, self.bytes, PASSES));
        self.last = Some(Instant::now());
    }

    /// Adds some passes, unless there were some a moment ago.
    pub(super) fn measure_again(&mut self, cpu: &Cpu) {
        if self.last.is_none_or(|last| last.elapsed() > FRESH) {
            self.measure(cpu);
        }
    }

    /// GB/s: the median of all passes so far.
    pub(super) fn gb_per_second(&self) -> f64 {
        median(self.passes.iter().copied())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("307200K", Some(307_200 << 10)),
            ("24123456 kB", Some(24_123_456 << 10)),
            ("36 MB", Some(36 << 20)),
            ("17", Some(17)),
            ("max", None),
            ("", None),
            ("5 parsecs", None),
        ] {
            assert_eq!(bytes(text), expected, "{text:?}");
        }
    }

    #[test]
    fn fields() {
        let text = "cpu family\t: 6\nmodel\t\t: 207\nmodel name\t: Some (R) Thing\nMemAvailable:  12 kB";
        assert_eq!((field(text, "model\t"), field(text, "model name")), (Some("207"), Some("Some (R) Thing")));
        assert_eq!((field(text, "MemAvailable"), field(text, "absent")), (Some("12 kB"), None));
    }

    #[test]
    fn machines_have_names_for_folders() {
        let host = Host::look();
        let named = Host {
            processor: Some("Intel(R) Xeon(R) Processor".into()),
            revision: Some("6-207-2".into()),
            cores: Some(2),
            ..host.clone()
        };
        assert_eq!(named.slug(), "intel-xeon-processor-6-207-2-2-cores");
        assert!(host.slug().chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{}", host.slug());
    }
}
