//! A program on a device, with random weights.

use std::collections::HashMap;

use half::{bf16, f16};
use shadowllm_codegen::{
    Arg, DType, KernelSpec, Kind, Launch, NormSite, Part, PredictorSpec, Program, Role, Tensor, WeightFormat,
};
use shadowllm_device::{BufferId, LaunchArg};
use shadowllm_emulator::Counters;
use shadowllm_nvrtc::{Nvrtc, Options};

use super::device::{self, Device};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.word() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.word() % n as u64) as usize
    }

    /// Some of `0..n`, ascending.
    pub fn some(&mut self, n: usize, count: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            all.swap(i, self.below(i + 1));
        }
        all.truncate(count);
        all.sort_unstable();
        all
    }
}

/// A compiled program on the device.
pub struct Host {
    pub program: Program,
    pub device: Device,
    buffers: Vec<BufferId>,
    /// Values of floating-point tensors as the device sees them.
    pub tensors: HashMap<Tensor, Vec<f32>>,
    /// 8-bit weights, with their padding.
    pub integers: HashMap<Tensor, Vec<i8>>,
}

fn format_of(program: &Program, tensor: Tensor) -> WeightFormat {
    let predicted = program.predictor.as_ref().map(|predictor| predictor.format);
    match tensor {
        Tensor::Embedding
        | Tensor::Positions
        | Tensor::LmHead
        | Tensor::Heads(_)
        | Tensor::KvHeads(_)
        | Tensor::Neurons(_) => WeightFormat::Float(program.spec.dtype),
        Tensor::Hidden(_, _, Part::Weight) | Tensor::Output(_, _, Part::Weight) => predicted.unwrap(),
        _ => WeightFormat::Float(DType::F32),
    }
}

pub fn rounded(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F32 => value,
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::BF16 => bf16::from_f32(value).to_f32(),
    }
}

impl Host {
    /// A program and its code, to make hosts of.
    pub fn compile(nvrtc: &Nvrtc, spec: &KernelSpec, predictor: Option<&PredictorSpec>) -> (Program, Vec<u8>) {
        Host::compile_with_windows(nvrtc, spec, predictor, &[])
    }

    pub fn compile_with_windows(
        nvrtc: &Nvrtc,
        spec: &KernelSpec,
        predictor: Option<&PredictorSpec>,
        windows: &[u32],
    ) -> (Program, Vec<u8>) {
        let program = Program::emit(spec, predictor, windows).unwrap();
        let compiled = nvrtc.compile(&program.source(), &Options::new(spec.sm.version())).unwrap();
        (program, device::code(compiled))
    }

    pub fn new((program, code): &(Program, Vec<u8>), seed: u64) -> Host {
        let program = program.clone();
        let spec = &program.spec;
        let device = Device::new(code);
        let mut random = Random(seed);
        let (mut tensors, mut integers) = (HashMap::new(), HashMap::new());
        let mut buffers = Vec::new();
        for buffer in &program.buffers {
            let name = format!("{:?}", buffer.role);
            let bytes = buffer.bytes as usize;
            let handle = match buffer.role {
                Role::Tensor(tensor) => {
                    let handle = match format_of(&program, tensor) {
                        WeightFormat::Int8 => {
                            let values: Vec<i8> = (0..bytes).map(|_| random.word() as i8).collect();
                            let handle = device.alloc_from(&name, &values);
                            integers.insert(tensor, values);
                            handle
                        }
                        WeightFormat::Float(dtype) => {
                            let values = draw(tensor, spec, bytes / dtype.size(), &mut random);
                            let values: Vec<f32> = values.into_iter().map(|v| rounded(v, dtype)).collect();
                            let handle = match dtype {
                                DType::F32 => device.alloc_from(&name, &values),
                                DType::F16 => {
                                    let bits: Vec<u16> = values.iter().map(|v| f16::from_f32(*v).to_bits()).collect();
                                    device.alloc_from(&name, &bits)
                                }
                                DType::BF16 => {
                                    let bits: Vec<u16> = values.iter().map(|v| bf16::from_f32(*v).to_bits()).collect();
                                    device.alloc_from(&name, &bits)
                                }
                            };
                            tensors.insert(tensor, values);
                            handle
                        }
                    };
                    device.set_read_only(handle);
                    handle
                }
                Role::State | Role::Watermarks => device.alloc_from(&name, &vec![0_u32; bytes / 4]),
                _ => device.alloc(&name, bytes),
            };
            buffers.push(handle);
        }
        let mut host = Host { program, device, buffers, tensors, integers };
        let s = host.program.spec.sizes;
        for layer in 0..s.layers {
            let (heads, neurons): (Vec<u32>, Vec<u32>) = ((0..s.heads as u32).collect(), (0..s.ffn as u32).collect());
            host.keep(layer, &heads, &neurons);
        }
        host
    }

    pub fn buffer(&self, role: Role) -> BufferId {
        self.buffers[self.program.buffer(role).unwrap()]
    }

    /// Writes the lists of a layer.
    pub fn keep(&mut self, layer: usize, heads: &[u32], neurons: &[u32]) {
        let s = self.program.spec.sizes;
        for (kind, width, list) in [(Kind::Heads, s.heads, heads), (Kind::Neurons, s.ffn, neurons)] {
            let buffer = self.buffer(Role::Lists(kind));
            self.device.upload(buffer, 4 * layer * width, list).unwrap();
        }
        let counts = self.buffer(Role::Counts);
        self.device.upload(counts, 8 * layer, &[heads.len() as u32, neurons.len() as u32]).unwrap();
    }

    /// The lists of a layer as the device has them.
    pub fn kept(&self, layer: usize, kind: Kind) -> Vec<u32> {
        let s = self.program.spec.sizes;
        let (width, second) = if kind == Kind::Heads { (s.heads, 0) } else { (s.ffn, 1) };
        let count = self.values::<u32>(Role::Counts)[2 * layer + second] as usize;
        self.device.download(self.buffer(Role::Lists(kind)), 4 * layer * width, count)
    }

    pub fn start(&mut self, token: u32, position: u32) {
        let state = self.buffer(Role::State);
        self.device.upload(state, 0, &[token, position]).unwrap();
    }

    /// Keys or values of the first positions, `[position][H_kv * d_h]`, as if a prompt had left them.
    pub fn preset(&mut self, role: Role, layer: usize, rows: &[Vec<f32>]) {
        let (s, cache) = (self.program.spec.sizes, self.program.spec.cache);
        let buffer = self.buffer(role);
        for (position, row) in rows.iter().enumerate() {
            for (g, values) in row.chunks_exact(s.head_dim).enumerate() {
                let at = ((layer * s.kv_heads + g) * s.context + position) * s.head_dim * cache.size();
                let bits = |bits: fn(f32) -> u16| values.iter().map(|v| bits(*v)).collect::<Vec<u16>>();
                match cache {
                    DType::F32 => self.device.upload(buffer, at, values),
                    DType::F16 => self.device.upload(buffer, at, &bits(|v| f16::from_f32(v).to_bits())),
                    DType::BF16 => self.device.upload(buffer, at, &bits(|v| bf16::from_f32(v).to_bits())),
                }
                .unwrap();
            }
        }
        let marks = vec![rows.len() as u32; s.kv_heads + 1];
        let watermarks = self.buffer(Role::Watermarks);
        self.device.upload(watermarks, 4 * layer * (s.kv_heads + 1), &marks).unwrap();
    }

    /// Launch `index` of a token.
    pub fn launch(&mut self, index: usize) -> Counters {
        self.try_launch(index).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Launch `index` of a token; the emulator may find fault with it.
    pub fn try_launch(&mut self, index: usize) -> Result<Counters, String> {
        self.run(&self.program.token[index]).map_err(|error| format!("launch {index}, {error}"))
    }

    /// Any launch of the program.
    pub fn run(&self, launch: &Launch) -> Result<Counters, String> {
        let kernel = &self.program.kernels[launch.kernel];
        let args: Vec<LaunchArg> = launch
            .args
            .iter()
            .map(|arg| match *arg {
                Arg::Buffer { buffer, offset } => LaunchArg::Address(self.buffers[buffer], offset),
                Arg::U32(value) => LaunchArg::U32(value),
            })
            .collect();
        let result = self.device.launch(&kernel.name, launch.grid, [kernel.threads, kernel.shared], &args);
        result.map_err(|error| format!("{}: {error}", kernel.name))
    }

    /// A prompt behind `held` positions, in blocks of at most `most` tokens, up to the logits after its last token.
    pub fn try_prompt(&mut self, tokens: &[u32], held: usize, most: usize) -> Result<(), String> {
        let buffer = self.buffer(Role::Block);
        for (index, block) in tokens.chunks(most).enumerate() {
            let start = [(held + index * most) as u32, block.len() as u32, 0, 0];
            self.device.upload(buffer, 0, &[&start, block].concat()).unwrap();
            self.program.prompt.iter().try_for_each(|launch| self.run(launch).map(drop))?;
        }
        self.program.end.iter().try_for_each(|launch| self.run(launch).map(drop))
    }

    /// All launches of a token.
    pub fn token(&mut self) {
        for index in 0..self.program.token.len() {
            self.launch(index);
        }
    }

    pub fn values<T: bytemuck::Pod>(&self, role: Role) -> Vec<T> {
        let index = self.program.buffer(role).unwrap();
        let count = self.program.buffers[index].bytes as usize / size_of::<T>();
        self.device.download(self.buffers[index], 0, count)
    }

    pub fn tensor(&self, tensor: Tensor) -> &[f32] {
        &self.tensors[&tensor]
    }
}

/// Values that keep activations in the range of a real model's.
fn draw(tensor: Tensor, spec: &KernelSpec, n: usize, random: &mut Random) -> Vec<f32> {
    let s = spec.sizes;
    if tensor == Tensor::Rope {
        let half = s.head_dim / 2;
        let angle = |i: usize| {
            let (position, c) = (i / s.head_dim, i % s.head_dim % half);
            position as f64 * 10_000_f64.powf(-(c as f64) / half as f64)
        };
        return (0..n)
            .map(|i| if i % s.head_dim < half { angle(i).cos() as f32 } else { angle(i).sin() as f32 })
            .collect();
    }
    let (centre, width) = match tensor {
        Tensor::Embedding | Tensor::Positions => (0.0, 1.0),
        Tensor::LmHead | Tensor::Heads(_) | Tensor::KvHeads(_) | Tensor::Neurons(_) => {
            (0.0, (6.0 / s.hidden as f32).sqrt())
        }
        Tensor::NormWeight(_) | Tensor::Scale(_) => (1.0, 0.3),
        Tensor::Hidden(_, _, Part::RowScale) | Tensor::Output(_, _, Part::RowScale) => (0.01, 0.005),
        Tensor::NormBias(NormSite::Final) => (0.0, 0.5),
        _ => (0.0, 0.3),
    };
    (0..n).map(|_| centre + width * random.unit()).collect()
}
