//! One session on a device: its memory there, and one token, or one block of a prompt, after the other.
//!
//! The device's keys and values are a copy of the session's cache. Whoever is ahead is told so by the number of positions: what runs here makes
//! the device be ahead, what the CPU engine runs (scored texts, watched prompts) the session. Each is brought up to date before it goes on,
//! the session with the lists of what heads still lack.

use std::sync::Arc;

use shadowllm_codegen::report::memory_bytes;
use shadowllm_codegen::{Arg, Counts, Kind, Launch, PROMPT_TOKENS, Program, Role, STATUS_BAD_SCORE};

use super::device::Loaded;
use super::model::{rounded, upload};
use super::shared::Allocation;
use super::spec::{Decision, decision, kernel_spec, windows};
use super::upload::Source;
use super::{BufferId, DeviceModel, GpuError, GraphId, LaunchArg, LaunchSpec};
use crate::Result;
use crate::model::{KvCache, SparseCount};
use crate::sparsity::{Budget, LayerPlan, Plan, Predictor, Scope};

/// How tokens are decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course<'a> {
    /// Positions that there is room for.
    pub(crate) context: usize,
    /// As in [`SparseOptions`](crate::model::SparseOptions).
    pub(crate) kv_flush: usize,
    /// What makes plans on the device; `None`: the host does.
    pub(crate) rule: Option<(&'a Predictor, &'a Budget)>,
}

/// A session's memory and launches on a device.
#[derive(Debug)]
pub struct DeviceSequence {
    model: Arc<DeviceModel>,
    program: Program,
    /// Whether plans are made on the device.
    decides: bool,
    /// One for each of [`Program::buffers`].
    buffers: Vec<Arc<Allocation>>,
    graphs: Graphs,
    /// Kept until the graphs are gone.
    _code: Loaded,
    /// Positions that the device has, all heads of those that the session has too.
    held: usize,
    /// Token and position that the device would go on with.
    next: Option<[u32; 2]>,
    /// `[L, H_kv + 1]`, as on the device.
    watermarks: Vec<u32>,
    /// Whether `watermarks` are not yet written since they were lowered.
    cut: bool,
    /// The lists that the host wrote last.
    plan: Plan,
    bytes: u64,
}

/// What is launched at once.
#[derive(Debug)]
struct Graphs {
    token: GraphId,
    /// A block of a prompt.
    prompt: GraphId,
    /// What follows the last block.
    end: GraphId,
}

impl DeviceSequence {
    /// Tokens of a block of a prompt.
    pub(crate) const BLOCK: usize = PROMPT_TOKENS;

    /// Takes memory for a session, compiles its kernels and records them.
    ///
    /// # Errors
    /// Those of [`GpuError`].
    pub(crate) fn new(model: &Arc<DeviceModel>, course: Course<'_>) -> Result<DeviceSequence> {
        let (engine, gpu) = (model.engine(), &model.gpu);
        let config = engine.config();
        let decision = course.rule.map(|(predictor, budget)| decision(predictor, budget)).transpose()?;
        let scope = decision.as_ref().map_or(Scope::Local, |decision| decision.scope);
        let spec = kernel_spec(engine.model(), course.context, course.kv_flush.max(1), scope, gpu.sm())?;
        let predictor = decision.as_ref().map(|decision| &decision.spec);
        let program = Program::emit(&spec, predictor, &windows(config)).map_err(GpuError::from)?;
        let own = program.buffers.iter().filter(|buffer| shared(model, buffer.role).is_none());
        gpu.check_room("a sequence", rounded(own.map(|buffer| buffer.bytes)))?;
        let code = gpu.load(&program)?;
        let packed = engine.packed().ok_or(GpuError::NotPacked)?;
        let source = Source { model: engine.model(), packed, predictor: course.rule.map(|(predictor, _)| predictor) };
        let buffers = program.buffers.iter().map(|buffer| match (shared(model, buffer.role), buffer.role) {
            (Some(there), _) => Ok(Arc::clone(there)),
            (None, Role::Tensor(tensor)) => upload(gpu, &source, tensor, buffer.bytes, &()),
            (None, role) => Ok(Arc::new(gpu.shared.alloc(&format!("{role:?}"), buffer.bytes)?)),
        });
        let buffers = buffers.collect::<Result<Vec<_>>>()?;
        let graphs = record(model, &program, &code, &buffers)?;
        let mut sequence = DeviceSequence {
            watermarks: vec![0; config.layers * (config.kv_heads + 1)],
            plan: Plan { layers: vec![LayerPlan::default(); config.layers] },
            model: Arc::clone(model),
            decides: decision.is_some(),
            program,
            buffers,
            graphs,
            _code: code,
            held: 0,
            next: None,
            cut: false,
            bytes: 0,
        };
        sequence.write(Role::Watermarks, 0, &sequence.watermarks)?;
        sequence.write_plan(&Plan::dense(config))?;
        if let Some(Decision { budget, .. }) = decision {
            sequence.write(Role::Budget, 0, &budget)?;
        }
        Ok(sequence)
    }

    /// The model that it runs.
    pub fn model(&self) -> &Arc<DeviceModel> {
        &self.model
    }

    /// The CUDA text of its kernels.
    pub fn source(&self) -> String {
        self.program.source()
    }

    /// Bytes of device memory that it has beside the model's.
    pub fn memory_bytes(&self) -> u64 {
        let own = self.program.buffers.iter().filter(|buffer| shared(&self.model, buffer.role).is_none());
        own.map(|buffer| buffer.bytes).sum()
    }

    /// Positions that the device has.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Bytes of weights, keys and values that the last token read, and the little that it wrote, as the kernels declare.
    pub fn step_bytes(&self) -> u64 {
        self.bytes
    }

    /// The plan of the last token.
    ///
    /// # Errors
    /// [`DeviceError::Failed`](super::DeviceError::Failed).
    pub fn plan(&self) -> Result<Plan> {
        let s = self.program.spec.sizes;
        let counts: Vec<u32> = self.read(Role::Counts, 0, 2 * s.layers)?;
        let list = |kind, layer: usize, width: usize, count: u32| {
            self.read::<u32>(Role::Lists(kind), 4 * layer * width, count as usize)
        };
        let layer = |layer: usize| {
            Ok(LayerPlan {
                heads: list(Kind::Heads, layer, s.heads, counts[2 * layer])?,
                neurons: list(Kind::Neurons, layer, s.ffn, counts[2 * layer + 1])?,
            })
        };
        Ok(Plan { layers: (0..s.layers).map(layer).collect::<Result<_>>()? })
    }

    /// Forgets every position from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        if len < self.held {
            self.held = len;
            self.watermarks.iter_mut().for_each(|mark| *mark = (*mark).min(len as u32));
            self.cut = true;
        }
    }

    /// Copies the positions that the device lacks from a cache without holes.
    ///
    /// # Errors
    /// [`DeviceError::Failed`](super::DeviceError::Failed).
    pub(crate) fn bring(&mut self, cache: &KvCache) -> Result<()> {
        let (from, to) = (self.held, cache.len());
        if from >= to {
            return Ok(());
        }
        for place in self.heads() {
            let (keys, values) = (cache.keys(place.layer, place.head), cache.values(place.layer, place.head));
            let rows = from * place.width..to * place.width;
            self.write(Role::Keys, place.row(from), &keys[rows.clone()])?;
            self.write(Role::Values, place.row(from), &values[rows])?;
        }
        self.watermarks.fill(to as u32);
        self.cut = true;
        self.held = to;
        Ok(())
    }

    /// Copies the positions that a cache lacks to it, as far as they were made, and the attention inputs of the rest.
    ///
    /// # Errors
    /// [`DeviceError::Failed`](super::DeviceError::Failed).
    pub(crate) fn fetch(&mut self, cache: &mut KvCache) -> Result<()> {
        let (from, to) = (cache.len(), self.held);
        if from >= to {
            return Ok(());
        }
        let s = self.program.spec.sizes;
        let flush = self.program.spec.kv_flush;
        cache.grow_for(to - from);
        for place in self.heads() {
            let end = self.watermarks[place.layer * (s.kv_heads + 1) + place.head] as usize;
            let made = end.saturating_sub(from) * place.width;
            let keys = self.read::<f32>(Role::Keys, place.row(from), made)?;
            let values = self.read::<f32>(Role::Values, place.row(from), made)?;
            cache.take_rows(place.layer, place.head, from, &keys, &values);
        }
        for layer in 0..s.layers {
            let first = self.watermarks[layer * (s.kv_heads + 1) + s.kv_heads] as usize;
            let mut pending = Vec::with_capacity((to - first) * s.hidden);
            for position in first..to {
                let row = layer * flush + position % flush;
                pending.extend(self.read::<f32>(Role::Pending, 4 * row * s.hidden, s.hidden)?);
            }
            cache.take_pending(layer, first, &pending);
        }
        cache.advance(to - from);
        // What the session makes now of what is missing, the device gets with the next positions.
        self.held = self.watermarks.iter().copied().min().unwrap_or(0) as usize;
        Ok(())
    }

    /// Runs one token at the position behind those that it holds, over the units of `plan` if the host makes plans. Writes the logits.
    ///
    /// # Errors
    /// [`DeviceError::Failed`](super::DeviceError::Failed), [`GpuError::BadScore`]; the token does not count then.
    pub(crate) fn step(&mut self, token: u32, plan: Option<&Plan>, logits: &mut [f32]) -> Result<SparseCount> {
        let position = self.held;
        if let Some(plan) = plan.filter(|_| !self.decides) {
            self.write_plan(plan)?;
        }
        if self.cut {
            self.write(Role::Watermarks, 0, &self.watermarks)?;
            self.cut = false;
        }
        if self.next.take() != Some([token, position as u32]) {
            self.write(Role::State, 0, &[token, position as u32, 0, 0])?;
        }
        self.model.gpu.shared.lock().replay(self.graphs.token)?;
        let state = self.state()?;
        if state[2] & STATUS_BAD_SCORE != 0 {
            return Err(GpuError::BadScore.into());
        }
        self.read_into(Role::Logits, 0, logits)?;
        let count = self.account(position)?;
        self.held = position + 1;
        Ok(count)
    }

    /// Token and position that the device goes on with, and what is wrong.
    fn state(&mut self) -> Result<Vec<u32>> {
        let state: Vec<u32> = self.read(Role::State, 0, 4)?;
        // Broken logits are found where a token is chosen from them; the status stays until it is written again.
        self.next = (state[2] == 0).then_some([state[0], state[1]]);
        Ok(state)
    }

    /// Whether no head lacks keys and values of a position that the device has.
    pub(crate) fn is_whole(&self) -> bool {
        self.watermarks.iter().all(|&mark| mark as usize >= self.held)
    }

    /// Runs at most [`Self::BLOCK`] tokens of a prompt at the positions behind those that it holds; of these no head may lack any.
    ///
    /// # Errors
    /// [`DeviceError::Failed`](super::DeviceError::Failed); the tokens do not count then.
    pub(crate) fn block(&mut self, tokens: &[u32]) -> Result<()> {
        self.write(Role::Block, 0, &[self.held as u32, tokens.len() as u32])?;
        self.write(Role::Block, 16, tokens)?;
        self.next = None;
        self.model.gpu.shared.lock().replay(self.graphs.prompt)?;
        self.held += tokens.len();
        self.watermarks.fill(self.held as u32);
        self.cut = true;
        Ok(())
    }

    /// Writes the logits after the last token of [`Self::block`].
    ///
    /// # Errors
    /// [`DeviceError::Failed`](super::DeviceError::Failed).
    pub(crate) fn end_prompt(&mut self, logits: &mut [f32]) -> Result<()> {
        self.model.gpu.shared.lock().replay(self.graphs.end)?;
        self.cut = false;
        self.state()?;
        self.read_into(Role::Logits, 0, logits)
    }

    /// What the token at `position` kept and read, by what it left on the device.
    fn account(&mut self, position: usize) -> Result<SparseCount> {
        let (s, group) = (self.program.spec.sizes, self.program.spec.sizes.heads / self.program.spec.sizes.kv_heads);
        let kept: Vec<u32> = self.read(Role::Counts, 0, 2 * s.layers)?;
        let heads: Vec<u32> = self.read(Role::Lists(Kind::Heads), 0, s.layers * s.heads)?;
        let whole: Option<Vec<u32>> = match self.program.buffer(Role::ReadWhole) {
            Some(buffer) => Some(self.read(Role::ReadWhole, 0, self.program.buffers[buffer].bytes as usize / 4)?),
            None => None,
        };
        let marks: Vec<u32> = self.read(Role::Watermarks, 0, self.watermarks.len())?;
        let windows = windows(self.model.engine().config());
        let layers = (0..s.layers).map(|layer| {
            let (count, neurons) = (kept[2 * layer] as usize, u64::from(kept[2 * layer + 1]));
            let row = layer * (s.kv_heads + 1)..layer * (s.kv_heads + 1) + s.kv_heads;
            let made = self.watermarks[row.clone()].iter().zip(&marks[row]).map(|(before, after)| after - before);
            let (made, filled) =
                made.fold((0, 0), |(made, filled), new| (made + u64::from(new), filled + u64::from(new > 0)));
            let needed = heads[layer * s.heads..][..count].chunk_by(|a, b| *a as usize / group == *b as usize / group);
            let seen = match windows[layer] {
                0 => position as u64 + 1,
                window => u64::from(window).min(position as u64 + 1),
            };
            let active = whole.as_ref().map_or(neurons, |whole| {
                let pieces = whole.len() / s.layers;
                whole[layer * pieces..][..pieces].iter().map(|&n| u64::from(n)).sum()
            });
            Counts {
                heads: count as u64,
                kv_heads: filled,
                made,
                late: made - filled,
                cached: needed.count() as u64 * seen,
                neurons,
                active,
            }
        });
        let layers: Vec<Counts> = layers.collect();
        self.watermarks = marks;
        let mut count = SparseCount::default();
        let none = Counts::default();
        self.bytes = 0;
        for launch in &self.program.token {
            let bytes = memory_bytes(&self.program, launch, launch.layer.map_or(&none, |layer| &layers[layer]));
            self.bytes += bytes;
            count.blocks += if launch.layer.is_some() { bytes } else { 0 };
        }
        for layer in &layers {
            count.heads += layer.heads;
            count.neurons += layer.neurons;
            count.neurons_active += layer.active;
            count.cache += 8 * layer.cached * s.head_dim as u64;
        }
        count.blocks = count.blocks.saturating_sub(count.cache);
        Ok(count)
    }

    /// Writes the lists that differ from those that the device has.
    fn write_plan(&mut self, plan: &Plan) -> Result<()> {
        let s = self.program.spec.sizes;
        for (layer, units) in plan.layers.iter().enumerate() {
            let known = &self.plan.layers[layer];
            if known.heads != units.heads {
                self.write(Role::Lists(Kind::Heads), 4 * layer * s.heads, &units.heads)?;
            }
            if known.neurons != units.neurons {
                self.write(Role::Lists(Kind::Neurons), 4 * layer * s.ffn, &units.neurons)?;
            }
            if known != units {
                self.write(Role::Counts, 8 * layer, &[units.heads.len() as u32, units.neurons.len() as u32])?;
            }
        }
        self.plan.copy_from(plan);
        Ok(())
    }

    /// Every key/value head of every layer.
    fn heads(&self) -> impl Iterator<Item = HeadPlace> + use<> {
        let s = self.program.spec.sizes;
        (0..s.layers).flat_map(move |layer| {
            (0..s.kv_heads).map(move |head| HeadPlace {
                layer,
                head,
                width: s.head_dim,
                first: (layer * s.kv_heads + head) * s.context,
            })
        })
    }

    fn id(&self, role: Role) -> Result<BufferId> {
        let buffer = self.program.buffer(role).map(|buffer| self.buffers[buffer].id);
        buffer.ok_or_else(|| GpuError::Unsupported { reason: format!("its kernels have no buffer {role:?}") }.into())
    }

    fn write<T: bytemuck::NoUninit>(&self, role: Role, offset: usize, values: &[T]) -> Result<()> {
        let id = self.id(role)?;
        Ok(self.model.gpu.shared.lock().write(id, offset as u64, bytemuck::cast_slice(values))?)
    }

    fn read<T: bytemuck::Pod>(&self, role: Role, offset: usize, len: usize) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); len];
        self.read_into(role, offset, &mut values)?;
        Ok(values)
    }

    fn read_into<T: bytemuck::Pod>(&self, role: Role, offset: usize, values: &mut [T]) -> Result<()> {
        let id = self.id(role)?;
        Ok(self.model.gpu.shared.lock().read(id, offset as u64, bytemuck::cast_slice_mut(values))?)
    }
}

impl Drop for DeviceSequence {
    fn drop(&mut self) {
        let mut device = self.model.gpu.shared.lock();
        let Graphs { token, prompt, end } = self.graphs;
        [token, prompt, end].into_iter().for_each(|graph| device.drop_graph(graph));
    }
}

/// Where the keys, and the values, of one head are.
#[derive(Clone, Copy)]
struct HeadPlace {
    layer: usize,
    head: usize,
    width: usize,
    /// Rows in front of it.
    first: usize,
}

impl HeadPlace {
    /// Byte at which the row of a position begins.
    fn row(&self, position: usize) -> usize {
        4 * (self.first + position) * self.width
    }
}

/// The buffer of a role, if it is one of the model's.
fn shared(model: &DeviceModel, role: Role) -> Option<&Arc<Allocation>> {
    match role {
        Role::Tensor(tensor) => model.tensor(tensor),
        _ => None,
    }
}

/// The launches of a program as graphs.
fn record(model: &DeviceModel, program: &Program, code: &Loaded, buffers: &[Arc<Allocation>]) -> Result<Graphs> {
    let mut device = model.gpu.shared.lock();
    for (index, kernel) in program.kernels.iter().enumerate() {
        device.prepare(code.module(index), &kernel.name, kernel.shared)?;
    }
    let mut graph = |launches: &[Launch]| -> Result<GraphId> {
        device.begin_graph()?;
        let result = launches.iter().try_for_each(|launch| {
            let (kernel, module) = (&program.kernels[launch.kernel], code.module(launch.kernel));
            let args = launch.args.iter().map(|arg| match *arg {
                Arg::Buffer { buffer, offset } => LaunchArg::Address(buffers[buffer].id, offset),
                Arg::U32(value) => LaunchArg::U32(value),
            });
            let (grid, threads, shared) = (launch.grid, kernel.threads, kernel.shared);
            let args: Vec<LaunchArg> = args.collect();
            device.launch(module, &LaunchSpec { kernel: &kernel.name, grid, threads, shared, args: &args })
        });
        let graph = device.end_graph();
        Ok(result.and(graph)?)
    };
    Ok(Graphs { token: graph(&program.token)?, prompt: graph(&program.prompt)?, end: graph(&program.end)? })
}
