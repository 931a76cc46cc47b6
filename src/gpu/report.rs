//! A model's kernels as text, what the compiler says of them, and how long a token should take: all that can be known without a GPU.

use serde::Serialize;
use shadowllm_codegen::report::{Gpu as GpuModel, Load, Prediction};
use shadowllm_codegen::{Counts, Launch, Normalization, PredictorInput, PredictorSpec, Program, Sm, WeightFormat};
use shadowllm_nvrtc::{Compiled, Nvrtc, Options};
use shadowllm_weights::{DType, ModelConfig};

use super::{GpuError, spec};
use crate::Result;

/// Hidden units of the predictor that is emitted, as `train` has by default.
const WIDTH: usize = 128;
/// Kept fractions of heads and neurons that times are predicted for.
const FRACTIONS: [f64; 9] = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1];
/// Registers of a multiprocessor, of every generation that there are kernels for.
const REGISTERS: u32 = 65_536;

/// What to emit.
#[derive(Clone, Copy, Debug)]
pub struct EmissionOptions {
    /// The GPU's version: 90 for `sm_90`.
    pub sm: u32,
    /// Positions that the key/value cache has room for; `None`: as many as the model has.
    pub context: Option<usize>,
    /// Positions in front of the token whose time is predicted.
    pub position: usize,
}

/// Emitted kernels, with a predictor after layer 0 that makes plans on the device.
#[derive(Clone, Debug)]
pub struct Emission {
    config: ModelConfig,
    dtype: DType,
    options: EmissionOptions,
    program: Program,
}

/// One kernel.
#[derive(Clone, Debug, Serialize)]
pub struct KernelReport {
    /// Its name.
    pub name: String,
    /// Launches in a token.
    pub launches: usize,
    /// Launches in a block of a prompt and at a prompt's end.
    pub prompt_launches: usize,
    /// Blocks of one.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub dynamic_shared: u32,
    /// Bytes of all its launches in a dense token, distinct addresses.
    pub bytes: u64,
    /// Of these, weights.
    pub weight_bytes: u64,
    /// Registers of a thread; this and what follows is `null` without a compiler.
    pub registers: Option<u32>,
    /// Bytes of static shared memory of a block.
    pub static_shared: Option<u32>,
    /// Bytes that a thread writes to and reads from local memory for want of registers.
    pub spill_bytes: Option<u32>,
    /// Blocks that a multiprocessor holds at once.
    pub resident_blocks: Option<u32>,
    /// Their warps / the most warps that a multiprocessor holds.
    pub occupancy: Option<f64>,
}

/// A token on one GPU.
#[derive(Clone, Debug, Serialize)]
pub struct GpuTimes {
    /// The GPU.
    pub gpu: &'static str,
    /// Its memory bandwidth in 10^9 bytes per second.
    pub gb_per_second: f64,
    /// Where that is from.
    pub source: &'static str,
    /// The dense model, without a predictor.
    pub dense: TokenTime,
    /// At kept fractions of heads and neurons, predictor included.
    pub kept: Vec<TokenTime>,
}

/// A predicted time.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TokenTime {
    /// Fraction of heads and neurons that the layers after layer 0 keep.
    pub fraction: f64,
    /// Milliseconds of a token.
    pub milliseconds: f64,
    /// Bytes that it moves.
    pub bytes: u64,
    /// Time over that of the dense model.
    pub ratio: f64,
}

/// What ShadowLLM's authors measured: A100s, 50 % sparsity, 128 prompt and 128 generated tokens, whole runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PaperTimes {
    /// GPUs that one model was spread over.
    pub gpus: u32,
    /// Milliseconds per generated token with DejaVu's predictors.
    pub dejavu_ms: f64,
    /// With ShadowLLM's.
    pub shadowllm_ms: f64,
    /// With a static plan.
    pub static_ms: f64,
}

/// `d`, GPUs, and milliseconds of whole runs, of the authors' `a100_perffinal.csv`.
const PAPER: [(usize, u32, [f64; 3]); 5] = [
    (2048, 1, [654.0, 539.0, 438.0]),
    (4096, 2, [1121.0, 978.0, 827.0]),
    (5120, 4, [1315.0, 1154.0, 1017.0]),
    (7168, 4, [2099.0, 1808.0, 1577.0]),
    (9216, 4, [3565.0, 3085.0, 2658.0]),
];
/// Tokens that a run of them generates.
const PAPER_TOKENS: f64 = 128.0;

impl Emission {
    /// Emits the kernels of a model.
    ///
    /// # Errors
    /// [`GpuError::Spec`], [`GpuError::Unsupported`] for models without kernels.
    pub fn new(config: &ModelConfig, dtype: DType, options: EmissionOptions) -> Result<Emission> {
        let program = emit(config, dtype, &options, options.sm, true)?;
        Ok(Emission { config: config.clone(), dtype, options, program })
    }

    /// Name of the shape, with type and version.
    pub fn name(&self) -> String {
        self.program.spec.name()
    }

    /// The CUDA text.
    pub fn source(&self) -> String {
        self.program.source()
    }

    /// Compiles it.
    ///
    /// # Errors
    /// [`GpuError::Compile`].
    pub fn compile(&self, nvrtc: &Nvrtc) -> Result<Compiled> {
        Ok(nvrtc.compile(&self.source(), &Options::new(self.options.sm)).map_err(GpuError::from)?)
    }

    /// Every kernel, with the compiler's facts if it was compiled.
    pub fn kernels(&self, compiled: Option<&Compiled>) -> Vec<KernelReport> {
        let s = &self.program.spec.sizes;
        let all = |n: usize| n as u64;
        let dense = Counts {
            heads: all(s.heads),
            kv_heads: all(s.kv_heads),
            made: all(s.kv_heads),
            late: 0,
            cached: all(s.kv_heads * (self.options.position + 1)),
            neurons: all(s.ffn),
            active: all(s.ffn),
        };
        let report = |(index, kernel): (usize, &shadowllm_codegen::Kernel)| {
            let own = |launches: &'_ [Launch]| launches.iter().filter(|launch| launch.kernel == index).count();
            let Program { token, prompt, end, .. } = &self.program;
            let launches = own(token);
            let count = launches as u64;
            let facts = compiled.and_then(|compiled| compiled.kernels.iter().find(|facts| facts.name == kernel.name));
            let resident = facts.map(|facts| {
                let shared = kernel.shared + facts.shared;
                Occupancy::of(self.program.spec.sm).blocks(kernel.threads, facts.registers, shared)
            });
            KernelReport {
                name: kernel.name.clone(),
                launches,
                prompt_launches: own(prompt) + own(end),
                blocks: kernel.grid[0] * kernel.grid[1],
                threads: kernel.threads,
                dynamic_shared: kernel.shared,
                bytes: count * kernel.bytes(&dense),
                weight_bytes: count * kernel.weight_bytes(&dense),
                registers: facts.map(|facts| facts.registers),
                static_shared: facts.map(|facts| facts.shared),
                spill_bytes: facts.map(|facts| facts.spill_stores + facts.spill_loads),
                resident_blocks: resident,
                occupancy: resident.map(|blocks| {
                    let threads = blocks * kernel.threads.next_multiple_of(32);
                    f64::from(threads) / f64::from(Occupancy::of(self.program.spec.sm).threads)
                }),
            }
        };
        self.program.kernels.iter().enumerate().map(report).collect()
    }

    /// Times of a token on GPUs whose bandwidth is published.
    ///
    /// # Errors
    /// As [`Emission::new`].
    pub fn times(&self) -> Result<Vec<GpuTimes>> {
        let times = |gpu: GpuModel| {
            let position = self.options.position;
            let dense = emit(&self.config, self.dtype, &self.options, gpu.sm, false)?;
            let dense = Prediction::of(&dense, &gpu, &Load::dense(position));
            let sparse = emit(&self.config, self.dtype, &self.options, gpu.sm, true)?;
            let time = |fraction: f64, prediction: &Prediction| TokenTime {
                fraction,
                milliseconds: 1e3 * prediction.seconds(),
                bytes: prediction.bytes(),
                ratio: prediction.seconds() / dense.seconds(),
            };
            let kept = FRACTIONS
                .map(|fraction| time(fraction, &Prediction::of(&sparse, &gpu, &Load::kept(fraction, position))))
                .to_vec();
            let GpuModel { name, bandwidth, source, .. } = gpu;
            Ok(GpuTimes { gpu: name, gb_per_second: bandwidth / 1e9, source, dense: time(1.0, &dense), kept })
        };
        GpuModel::ALL.into_iter().map(times).collect()
    }

    /// What the authors measured at this shape; `None` if they did not.
    pub fn paper(&self) -> Option<PaperTimes> {
        let is_opt = self.program.spec.family == shadowllm_codegen::Family::Opt;
        let (_, gpus, runs) = PAPER.iter().find(|(hidden, ..)| is_opt && *hidden == self.config.hidden)?;
        let [dejavu_ms, shadowllm_ms, static_ms] = runs.map(|run| run / PAPER_TOKENS);
        Some(PaperTimes { gpus: *gpus, dejavu_ms, shadowllm_ms, static_ms })
    }
}

fn emit(config: &ModelConfig, dtype: DType, options: &EmissionOptions, sm: u32, decides: bool) -> Result<Program> {
    let sm = Sm::new(sm).map_err(GpuError::from)?;
    let spec = spec::spec_of(config, dtype, options.context.unwrap_or(config.max_positions), sm)?;
    let predictor = PredictorSpec {
        stations: vec![0],
        input: PredictorInput::Residual,
        normalization: Normalization::None,
        relu: true,
        format: WeightFormat::Int8,
        bias: true,
        heads: Some(WIDTH),
        neurons: Some(WIDTH),
        trunk: false,
    };
    let predictor = decides.then_some(&predictor);
    Ok(Program::emit(&spec, predictor, &spec::windows(config)).map_err(GpuError::from)?)
}

/// What a multiprocessor holds, of table "Technical Specifications per Compute Capability" of NVIDIA's CUDA programming guide.
#[derive(Clone, Copy, Debug)]
struct Occupancy {
    threads: u32,
    blocks: u32,
    /// Bytes of shared memory, of which every block takes 1 KiB more than it asks for.
    shared: u32,
}

impl Occupancy {
    fn of(sm: Sm) -> Occupancy {
        let (threads, blocks, shared) = match sm.version() {
            80 => (2048, 32, 164),
            86 => (1536, 16, 100),
            89 => (1536, 24, 100),
            90 | 100 => (2048, 32, 228),
            _ => (1536, 24, 100),
        };
        Occupancy { threads, blocks, shared: shared << 10 }
    }

    /// Blocks that fit.
    fn blocks(self, threads: u32, registers: u32, shared: u32) -> u32 {
        let threads = threads.next_multiple_of(32).max(32);
        // Registers are given to warps by 256.
        let of_warp = (32 * registers).next_multiple_of(256).max(256);
        let by_registers = REGISTERS / of_warp / (threads / 32);
        let by_shared = self.shared / (shared + 1024).next_multiple_of(128);
        self.blocks.min(self.threads / threads).min(by_registers).min(by_shared)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::random::Shape;

    fn emission(shape: &str, sm: u32) -> Result<Emission> {
        let shape: Shape = shape.parse().unwrap();
        let json = shape.config_json(DType::F16).to_string();
        let config = ModelConfig::from_json(json.as_bytes()).unwrap();
        Emission::new(&config, DType::F16, EmissionOptions { sm, context: None, position: 128 })
    }

    #[test]
    fn half_of_opt_6_7b_takes_little_more_than_half_of_the_dense_time() {
        let emission = emission("opt-6.7b", 90).unwrap();
        assert_eq!(emission.name(), "opt_l32_d4096_h32x128_kv32_f16384_v50272_f16_sm90");
        for gpu in emission.times().unwrap() {
            let half = gpu.kept.iter().find(|time| time.fraction == 0.5).unwrap();
            // The dense token has no predictor. The faster the memory, the more weighs what does not shrink: launches, LM head.
            assert!(half.ratio <= 0.56 && half.milliseconds < gpu.dense.milliseconds, "{gpu:?}");
            assert!(gpu.kept.windows(2).all(|pair| pair[1].bytes < pair[0].bytes));
        }
        let paper = emission.paper().unwrap();
        assert_eq!((paper.gpus, paper.shadowllm_ms), (2, 978.0 / 128.0));
        let kernels = emission.kernels(None);
        let weights: u64 = kernels.iter().map(|kernel| kernel.weight_bytes).sum();
        assert!((13.0e9..13.6e9).contains(&(weights as f64)), "{weights}");
        assert!(
            kernels.iter().all(|kernel| kernel.launches + kernel.prompt_launches > 0 && kernel.registers.is_none())
        );
    }

    #[test]
    fn blocks_that_fit() {
        let a100 = Occupancy::of(Sm::new(80).unwrap());
        assert_eq!(a100.blocks(512, 64, 0), 2);
        assert_eq!(a100.blocks(256, 32, 0), 8);
        assert_eq!(a100.blocks(32, 16, 0), 32);
        assert_eq!(a100.blocks(512, 32, 80 << 10), 2);
        assert_eq!(Occupancy::of(Sm::new(86).unwrap()).blocks(512, 40, 0), 3);
    }

    #[test]
    fn what_has_no_kernels_is_said() {
        assert_eq!(
            emission("opt-6.7b", 75).unwrap_err().to_string(),
            "this model cannot run on a GPU: no kernels for sm_75; supported are 80, 86, 89, 90, 100, 120"
        );
        assert!(emission("llama-3-8b", 80).unwrap().paper().is_none());
    }
}
