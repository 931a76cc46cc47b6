//! How long a token should take: a model of bytes and launches.
//!
//! Decoding one token is bound by memory, so a launch takes the time that its bytes take at the speed of memory, plus what every
//! launch costs. Three numbers are assumed, and said with every prediction:
//!
//! * [`EFFICIENCY`], the share of the nominal bandwidth that long streams of 16-byte loads reach;
//! * [`LAUNCH_GAP`], between two kernels of a graph: 0.5 us (NVIDIA's article "Getting Started with CUDA Graphs" measures 3.4 us a
//!   kernel that runs for 2.9 us);
//! * [`RAMP`], until the first loads of a kernel have come and after its last ones: two latencies of memory.
//!
//! Bytes are those that the kernels declare ([`Kernel::bytes`](crate::Kernel::bytes)) in buffers that live in memory: tensors, keys
//! and values, pending attention inputs, logits and scores. Small vectors and partial sums stay in the second-level cache.

use crate::KernelSpec;
use crate::kernel::Counts;
use crate::predictor::Kind;
use crate::program::{Arg, Launch, Program, Role};

/// Share of the nominal bandwidth.
pub const EFFICIENCY: f64 = 0.9;
/// Seconds between two kernels of a graph.
pub const LAUNCH_GAP: f64 = 0.5e-6;
/// Seconds of a kernel in which memory is not busy.
pub const RAMP: f64 = 0.8e-6;

/// A GPU to predict for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub sm: u32,
    /// Nominal memory bandwidth in bytes per second.
    pub bandwidth: f64,
    /// Where that is from.
    pub source: &'static str,
}

impl Gpu {
    /// GPUs with published bandwidths.
    pub const ALL: [Gpu; 3] = [
        Gpu { name: "A100 80GB SXM", sm: 80, bandwidth: 2.039e12, source: "NVIDIA A100 Tensor Core GPU datasheet" },
        Gpu { name: "H100 80GB SXM", sm: 90, bandwidth: 3.35e12, source: "NVIDIA H100 Tensor Core GPU datasheet" },
        Gpu { name: "RTX 4090", sm: 89, bandwidth: 1.008e12, source: "NVIDIA Ada GPU Architecture whitepaper" },
    ];
}

/// What a token keeps, as far as its time depends on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Fraction of the heads kept in layers behind the first station.
    pub heads: f64,
    /// Fraction of the neurons kept there.
    pub neurons: f64,
    /// With ReLU: fraction of the kept neurons that are not 0. 1 is the worst case.
    pub active: f64,
    /// Positions in front of the token.
    pub position: usize,
}

impl Load {
    /// Everything is kept.
    pub fn dense(position: usize) -> Load {
        Load { heads: 1.0, neurons: 1.0, active: 1.0, position }
    }

    /// The same fraction of heads and neurons.
    pub fn kept(fraction: f64, position: usize) -> Load {
        Load { heads: fraction, neurons: fraction, ..Load::dense(position) }
    }

    /// Counts of one layer on average. A key/value head is needed if any of its query heads is, and these are taken as independent;
    /// heads that are not needed are filled once in `kv_flush` positions.
    fn counts(&self, spec: &KernelSpec, dense: bool) -> Counts {
        let s = &spec.sizes;
        let (heads, neurons) = if dense { (1.0, 1.0) } else { (self.heads, self.neurons) };
        let needed = 1.0 - (1.0 - heads).powi(spec.group() as i32);
        let filled = needed + (1.0 - needed) / spec.kv_flush as f64;
        let of = |n: usize, fraction: f64| (n as f64 * fraction).round() as u64;
        let neurons = of(s.ffn, neurons);
        Counts {
            heads: of(s.heads, heads),
            kv_heads: of(s.kv_heads, filled),
            made: s.kv_heads as u64,
            late: u64::from(needed < 1.0),
            cached: of(s.kv_heads, needed) * (self.position as u64 + 1),
            neurons,
            active: (neurons as f64 * self.active).round() as u64,
        }
    }
}

/// What one launch is expected to take.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The kernel's name.
    pub kernel: String,
    /// The layer.
    pub layer: Option<usize>,
    /// Bytes from and to memory.
    pub bytes: u64,
    /// Seconds.
    pub seconds: f64,
}

/// What one token is expected to take.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Its launches in order.
    pub steps: Vec<Step>,
}

impl Prediction {
    /// Of a program on a GPU.
    pub fn of(program: &Program, gpu: &Gpu, load: &Load) -> Prediction {
        let first_station = program.predictor.as_ref().and_then(|p| p.stations.first().copied());
        let steps = program.token.iter().map(|launch| {
            let kernel = &program.kernels[launch.kernel];
            // Without a predictor the host makes plans, for every layer but the first.
            let dense = launch.layer.is_none_or(|layer| layer <= first_station.unwrap_or(0));
            let counts = load.counts(&program.spec, dense);
            let bytes = memory_bytes(program, launch, &counts);
            let seconds = bytes as f64 / (gpu.bandwidth * EFFICIENCY) + LAUNCH_GAP + RAMP;
            Step { kernel: kernel.name.clone(), layer: launch.layer, bytes, seconds }
        });
        Prediction { steps: steps.collect() }
    }

    /// Seconds of the whole token.
    pub fn seconds(&self) -> f64 {
        self.steps.iter().map(|step| step.seconds).sum()
    }

    /// Bytes of the whole token.
    pub fn bytes(&self) -> u64 {
        self.steps.iter().map(|step| step.bytes).sum()
    }
}

/// Bytes of a launch in buffers that are too large for the second-level cache, or are read but once a token.
pub fn memory_bytes(program: &Program, launch: &Launch, counts: &Counts) -> u64 {
    let params = program.kernels[launch.kernel].params.iter();
    let in_memory = params.zip(&launch.args).filter(|(_, arg)| match arg {
        Arg::Buffer { buffer, .. } => matches!(
            program.buffers[*buffer].role,
            Role::Tensor(_) | Role::Keys | Role::Values | Role::Pending | Role::Logits | Role::Scores(Kind::Neurons)
        ),
        Arg::U32(_) => false,
    });
    in_memory.map(|(param, _)| param.traffic.at(counts)).sum()
}
