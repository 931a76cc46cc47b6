//! `shadowllm emit-cuda`: the kernels that a GPU would run, as text.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use shadowllm_nvrtc::{Compiled, Nvrtc};
use shadowllm_weights::{DType, ModelConfig, ModelSource, write_atomic};

use super::console::Console;
use crate::gpu::{Emission, EmissionOptions, GpuTimes, KernelReport, PaperTimes};
use crate::model::Model;
use crate::model::random::Shape;
use crate::{Error, Result};

/// Write the CUDA source of a model's kernels, and what can be known of its speed without a GPU.
///
/// With NVRTC (of the system, or named by SHADOWLLM_NVRTC) the text is also compiled.
#[derive(Debug, Args)]
pub(super) struct EmitCuda {
    /// Shape of a published model, as for random-model.
    #[arg(long, value_name = "SHAPE", required_unless_present = "model", conflicts_with = "model")]
    shape: Option<Shape>,

    /// In place of a shape: a model, as for `generate`. Its weights are not read.
    #[arg(long, short, value_name = "MODEL")]
    model: Option<String>,

    /// With --shape: type of the weights: f32, f16 or bf16.
    #[arg(long, default_value_t = DType::F16, value_name = "TYPE", conflicts_with = "model")]
    dtype: DType,

    /// Version of the GPU: 80, 86, 89, 90, 100 or 120.
    #[arg(long, value_name = "N")]
    sm: u32,

    /// Positions that the key/value cache has room for [default: the model's context].
    #[arg(long, value_name = "N")]
    context: Option<usize>,

    /// Positions in front of the token whose time is predicted.
    #[arg(long, value_name = "N", default_value_t = 128)]
    position: usize,

    /// Folder to write kernels.cu to, and with a compiler kernels.ptx and kernels.cubin.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Also write report.json: the compiler's facts of every kernel, bytes, and predicted times of a token.
    #[arg(long)]
    report: bool,

    /// Print the report as one JSON document.
    #[arg(long)]
    json: bool,
}

/// What `emit-cuda --json` prints, and `report.json` holds.
#[derive(Debug, Serialize)]
struct Report {
    /// The shape, with type and version.
    name: String,
    /// The text.
    source: PathBuf,
    /// Version of the compiler; `null` without one.
    nvrtc: Option<String>,
    /// Seconds that it took; `null` without one.
    compile_seconds: Option<f64>,
    /// Every kernel: `name`, `launches` in a token, `prompt_launches` in a block of a prompt, `blocks`, `threads`, `dynamic_shared`, `bytes` and `weight_bytes` of a dense token,
    /// and of the compiler `registers`, `static_shared`, `spill_bytes`, `resident_blocks` and `occupancy`.
    kernels: Vec<KernelReport>,
    /// For each of some GPUs the time of a token by a model of bandwidth: `gpu`, `gb_per_second`, `source`, `dense` and `kept`, with `fraction`,
    /// `milliseconds`, `bytes` and `ratio` each.
    times: Vec<GpuTimes>,
    /// What ShadowLLM's authors measured at this shape, 50 % kept; `null` if they did not.
    paper: Option<PaperTimes>,
}

impl EmitCuda {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let (config, dtype) = self.model_or_shape(console)?;
        let options = EmissionOptions { sm: self.sm, context: self.context, position: self.position };
        let emission = Emission::new(&config, dtype, options)?;
        std::fs::create_dir_all(&self.out).map_err(|source| Error::Io {
            action: "create",
            path: self.out.clone(),
            source,
        })?;
        let source = self.out.join("kernels.cu");
        write_atomic(&source, emission.source().as_bytes())?;
        let start = std::time::Instant::now();
        let compiled = self.compile(console, &emission)?;
        let compile_seconds = compiled.is_some().then(|| start.elapsed().as_secs_f64());
        let report = Report {
            name: emission.name(),
            source,
            compile_seconds,
            kernels: emission.kernels(compiled.as_ref().map(|(compiled, _)| compiled)),
            nvrtc: compiled.map(|(_, version)| version),
            times: emission.times()?,
            paper: emission.paper(),
        };
        if self.report {
            let text = serde_json::to_vec_pretty(&report).map_err(|error| Error::Io {
                action: "write",
                path: self.out.join("report.json"),
                source: error.into(),
            })?;
            write_atomic(&self.out.join("report.json"), &text)?;
        }
        if self.json {
            return console.json(&report);
        }
        console.line(&report.text())
    }

    fn model_or_shape(&self, console: &Console) -> Result<(ModelConfig, DType)> {
        match (&self.model, self.shape) {
            (Some(model), _) => {
                let checkpoint = ModelSource::parse(model)?.open(&console.bytes_progress())?;
                let dtype = Model::load(&checkpoint)?.embedding.dtype();
                Ok((checkpoint.config().clone(), dtype))
            }
            (None, Some(shape)) => {
                let config = ModelConfig::from_json(shape.config_json(self.dtype).to_string().as_bytes())?;
                Ok((config, self.dtype))
            }
            // The command line asks for one of them.
            (None, None) => Err(Error::UnknownShape { found: String::new(), known: "--shape or --model".to_owned() }),
        }
    }

    /// Code and the compiler's version, written beside the text; `None` after saying why there is no compiler.
    fn compile(&self, console: &Console, emission: &Emission) -> Result<Option<(Compiled, String)>> {
        let nvrtc = match Nvrtc::open() {
            Ok(nvrtc) => nvrtc,
            Err(error) => {
                console.note(&format!("not compiled: {error}"));
                return Ok(None);
            }
        };
        let compiled = emission.compile(&nvrtc)?;
        let write = |name: &str, bytes: &[u8]| write_atomic(&Path::new(&self.out).join(name), bytes);
        write("kernels.ptx", compiled.ptx.as_bytes())?;
        write("kernels.cubin", &compiled.cubin)?;
        Ok(Some((compiled, nvrtc.version())))
    }
}

impl Report {
    fn text(&self) -> String {
        let mut text = format!("{}: {}\n", self.source.display(), self.name);
        if let (Some(version), Some(seconds)) = (&self.nvrtc, self.compile_seconds) {
            text += &format!("compiled by NVRTC {version} in {seconds:.2} s\n");
        }
        text += "\nlaunches  in prompts  blocks x threads  registers  spills  occupancy  MB per dense token  kernel\n";
        for kernel in &self.kernels {
            let shown = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            text += &format!(
                "{:>8}  {:>10}  {:>16}  {:>9}  {:>6}  {:>9}  {:>18.3}  {}\n",
                kernel.launches,
                kernel.prompt_launches,
                format!("{} x {}", kernel.blocks, kernel.threads),
                shown(kernel.registers.map(|n| n.to_string())),
                shown(kernel.spill_bytes.map(|n| n.to_string())),
                shown(kernel.occupancy.map(|share| format!("{:.0} %", 100.0 * share))),
                kernel.bytes as f64 / 1e6,
                kernel.name,
            );
        }
        text += "\npredicted milliseconds per token (ratio to dense), by a model of bandwidth and launches\nkept      ";
        for gpu in &self.times {
            text += &format!("  {:>16}", gpu.gpu);
        }
        text += "\ndense     ";
        for gpu in &self.times {
            text += &format!("  {:>16}", format!("{:.3}", gpu.dense.milliseconds));
        }
        for row in 0..self.times.first().map_or(0, |gpu| gpu.kept.len()) {
            text += &format!("\n{:>4.0} %    ", 100.0 * self.times[0].kept[row].fraction);
            for gpu in &self.times {
                let time = &gpu.kept[row];
                text += &format!("  {:>16}", format!("{:.3} ({:.2})", time.milliseconds, time.ratio));
            }
        }
        if let Some(paper) = &self.paper {
            text += &format!(
                "\nmeasured by the authors of ShadowLLM at 50 % on {} A100: DejaVu {:.2}, ShadowLLM {:.2}, static {:.2}",
                paper.gpus, paper.dejavu_ms, paper.shadowllm_ms, paper.static_ms
            );
        }
        text
    }
}
