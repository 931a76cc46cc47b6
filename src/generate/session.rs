//! One sequence on a loaded engine: its tokens, its key/value cache, its logits.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::batch::step_together;
use super::{Engine, Sparsity};
use crate::gpu::{Course, DeviceModel, DeviceSequence, GpuError};
use crate::model::{KvCache, NoProbe, Probe, Segment, SparseOptions, Workspace};
use crate::{Error, Result};

/// Tokens of one pass through the layers while a prompt is processed: enough to be compute bound, few enough that
/// activations stay small whatever the prompt's length.
const PREFILL_CHUNK: usize = 512;

/// Rows of one pass through the LM head while all logits are read; `V` floats each.
const LOGIT_ROWS: usize = 128;

/// Settings of a session.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Most tokens it may hold; `None`: as many as the model has positions. Memory is taken as tokens come.
    pub context: Option<usize>,
}

/// One sequence. Several sessions may run on one engine at once, also from several threads.
///
/// ```
/// # use shadowllm::{Engine, EngineOptions, SessionOptions};
/// # fn main() -> shadowllm::Result<()> {
/// let engine = Engine::open("embedded", EngineOptions::default())?;
/// let mut session = engine.session(SessionOptions::default())?;
/// let mut token = shadowllm::kernels::argmax(session.prefill(&[2, 50, 1266, 584, 262, 580])?);
/// let mut text = Vec::new();
/// for _ in 0..4 {
///     text.push(token as u32);
///     token = shadowllm::kernels::argmax(session.step(token as u32)?);
/// }
/// assert_eq!(text, [15, 283, 264, 1095]); // ", and the whole"
/// session.truncate(6); // back to the prompt
/// assert_eq!(session.tokens().len(), 6);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Session {
    pub(super) engine: Engine,
    pub(super) tokens: Vec<u32>,
    pub(super) cache: KvCache,
    pub(super) workspace: Workspace,
    pub(super) logits: Vec<f32>,
    pub(super) sparsity: Option<Sparsity>,
    /// Where steps run, if not here.
    pub(super) device: Option<Box<DeviceSequence>>,
}

impl Session {
    pub(super) fn new(engine: Engine, options: SessionOptions) -> Result<Self> {
        let max = engine.config().max_positions;
        let context = options.context.unwrap_or(max);
        if context > max {
            return Err(Error::ContextTooLong { asked: context, max });
        }
        Ok(Session {
            cache: KvCache::new(engine.config(), context),
            tokens: Vec::new(),
            workspace: Workspace::default(),
            logits: vec![0.0; engine.config().vocab],
            sparsity: None,
            device: None,
            engine,
        })
    }

    /// The engine that it runs on.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// All tokens so far, prompt included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens that still fit.
    pub fn remaining(&self) -> usize {
        self.cache.limit() - self.tokens.len()
    }

    /// Bytes of its key/value cache; of all its memory on the device where it runs on one.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.bytes() + self.device.as_ref().map_or(0, |device| device.memory_bytes())
    }

    /// Bytes of memory that the sequence holds: its cache, what missing keys and values are made from, buffers and logits.
    pub fn memory_bytes(&self) -> u64 {
        self.cache.bytes() + self.cache.pending_bytes() + self.workspace.bytes() + 4 * self.logits.capacity() as u64
    }

    /// Logits (`[V]`) that were computed last, by [`Session::prefill`], [`Session::step`] or [`Session::score`]; zeros before.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Makes the following steps sparse, or dense again with `None`. May be changed between any two tokens. Prompts are dense
    /// unless [`Sparsity::prompts`] says otherwise, and scored texts always are.
    ///
    /// # Errors
    /// [`Error::PackedShape`] if the packed weights are of another model, [`Error::NotGated`] or [`Error::GateShape`] if the gate
    /// thresholds are; those of [`Session::set_device`] if it runs on a device; the session is unchanged then.
    pub fn set_sparsity(&mut self, sparsity: Option<Sparsity>) -> Result<()> {
        if let Some(sparsity) = &sparsity {
            sparsity.packed.check(self.engine.config())?;
            if let Some(gate) = sparsity.gate_skip() {
                gate.check(self.engine.config())?;
            }
        }
        self.fill_cache()?;
        if let Some(device) = &self.device {
            let model = Arc::clone(device.model());
            self.device = Some(Box::new(self.sequence(&model, sparsity.as_ref())?));
        }
        self.sparsity = sparsity;
        Ok(())
    }

    /// Runs the following prompts and steps on a device, or on the CPU again with `None`. May be changed between any two tokens. Scored texts, and
    /// prompts that a probe watches, run on the CPU in any case, and what they leave in the cache is copied.
    ///
    /// # Errors
    /// [`Error::Gpu`]: the model on the device is another engine's, there is too little memory, no compiler, or the session's sparsity is of
    /// a kind that only the CPU engine has; the session is unchanged then.
    pub fn set_device(&mut self, model: Option<&Arc<DeviceModel>>) -> Result<()> {
        self.fill_cache()?;
        self.device = match model {
            None => None,
            Some(model) if !model.engine().is_same(&self.engine) => return Err(GpuError::OtherEngine.into()),
            Some(model) => Some(Box::new(self.sequence(model, self.sparsity.as_ref())?)),
        };
        Ok(())
    }

    /// The device that steps run on.
    pub fn device(&self) -> Option<&DeviceSequence> {
        self.device.as_deref()
    }

    /// Memory on a device for the tokens of this session, over the units of `sparsity`.
    fn sequence(&self, model: &Arc<DeviceModel>, sparsity: Option<&Sparsity>) -> Result<DeviceSequence> {
        let context = self.cache.limit();
        let course = match sparsity {
            Some(sparsity) => sparsity.on_device(context)?,
            None => Course { context, kv_flush: SparseOptions::default().kv_flush, rule: None },
        };
        DeviceSequence::new(model, course)
    }

    /// The sparsity in force.
    pub fn sparsity(&self) -> Option<&Sparsity> {
        self.sparsity.as_ref()
    }

    /// Bytes that the last step read: weights, keys and values, and what its decisions read.
    pub fn step_bytes(&self) -> u64 {
        if let Some(device) = &self.device {
            return device.step_bytes();
        }
        let model = self.engine.model();
        let dense = model.active_bytes(self.tokens.len().saturating_sub(1));
        match &self.sparsity {
            None => dense.total(),
            Some(sparsity) => {
                let count = sparsity.count();
                let fixed = dense.head + dense.embedding + model.vector_bytes();
                fixed + count.blocks + count.cache + sparsity.decision_bytes()
            }
        }
    }

    /// Bytes of attention inputs that are kept to make missing keys and values from.
    pub fn pending_bytes(&self) -> u64 {
        self.cache.pending_bytes()
    }

    /// Brings the cache up to date and makes what sparse tokens left out of it, so that a dense pass may follow.
    fn fill_cache(&mut self) -> Result<()> {
        if let Some(device) = &mut self.device {
            device.fetch(&mut self.cache)?;
        }
        if let Some(sparsity) = &self.sparsity {
            let (model, cpu) = (self.engine.model(), self.engine.cpu());
            let (packed, cache) = (&*sparsity.packed, &mut self.cache);
            cpu.install(|| model.fill_cache(cpu, packed, cache));
        }
        Ok(())
    }

    /// Takes memory for `tokens` in all (at most the context), so that later steps allocate nothing.
    pub fn reserve(&mut self, tokens: usize) {
        self.cache.reserve(tokens);
    }

    /// Forgets every token from `len` on, so that the sequence can go on differently. The logits stay as they were.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.cache.truncate(len);
        if let Some(device) = &mut self.device {
            device.truncate(len);
        }
    }

    /// Another sequence that begins with all tokens of this one: the prompt is processed once, and what follows may differ. It
    /// is dense, since a policy serves one sequence, and on the CPU.
    pub fn fork(&mut self) -> Session {
        // A device that fails leaves positions out, and the next call of the copy says so.
        let _ = self.fill_cache();
        Session {
            engine: self.engine.clone(),
            tokens: self.tokens.clone(),
            cache: self.cache.clone(),
            workspace: Workspace::default(),
            logits: self.logits.clone(),
            sparsity: None,
            device: None,
        }
    }

    /// Appends many tokens and returns the logits (`[V]`) after the last one.
    ///
    /// # Errors
    /// [`Error::NoTokens`], [`Error::TokenOutOfRange`], [`Error::ContextFull`]; the session is unchanged then.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.prefill_with(tokens, &mut NoProbe, &mut |_| ControlFlow::Continue(()))
    }

    /// [`Session::prefill`] with a probe on the dense forward pass (sparse prompts have none), and a callback that is told how
    /// many of the tokens are done and may stop the work.
    ///
    /// # Errors
    /// As [`Session::prefill`], and [`Error::Interrupted`] if the callback says so; the session then holds what it held
    /// before.
    pub fn prefill_with(
        &mut self,
        tokens: &[u32],
        probe: &mut (dyn Probe + Send),
        done: &mut (dyn FnMut(usize) -> ControlFlow<()> + Send),
    ) -> Result<&[f32]> {
        self.check(tokens)?;
        let before = self.tokens.len();
        self.cache.reserve(self.cache.len() + tokens.len());
        let result = match &self.sparsity {
            Some(sparsity) if sparsity.has_sparse_prompts() => self.prefill_sparse(tokens, done),
            Some(sparsity) if sparsity.decides_from_prompts() => self.prefill_dense(tokens, probe, done),
            _ if self.device.is_some() && !probe.watches() => self.prefill_on_device(tokens, done),
            _ => self.prefill_dense(tokens, probe, done),
        };
        if let Err(error) = result {
            self.truncate(before);
            return Err(error);
        }
        Ok(&self.logits)
    }

    fn prefill_dense(
        &mut self,
        tokens: &[u32],
        probe: &mut (dyn Probe + Send),
        done: &mut (dyn FnMut(usize) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        let mut finished = 0;
        for chunk in tokens.chunks(PREFILL_CHUNK) {
            finished += chunk.len();
            let is_last = finished == tokens.len();
            self.run(chunk, is_last, probe)?;
            if is_last {
                self.read_last(chunk.len());
            }
            if done(finished).is_break() {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    }

    fn prefill_on_device(
        &mut self,
        tokens: &[u32],
        done: &mut (dyn FnMut(usize) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        if self.device.as_ref().is_some_and(|device| !device.is_whole()) {
            // What heads lack is made here, and copied.
            self.fill_cache()?;
        }
        let Session { cache, device, logits, tokens: held, .. } = self;
        let Some(device) = device else { return Ok(()) };
        device.bring(cache)?;
        let mut finished = 0;
        for block in tokens.chunks(DeviceSequence::BLOCK) {
            device.block(block)?;
            held.extend_from_slice(block);
            finished += block.len();
            if finished == tokens.len() {
                device.end_prompt(logits)?;
            }
            if done(finished).is_break() {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    }

    /// Logits are read after the last token only.
    fn prefill_sparse(
        &mut self,
        tokens: &[u32],
        done: &mut (dyn FnMut(usize) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        for (finished, &token) in (1..).zip(tokens) {
            self.advance(token, finished == tokens.len())?;
            if done(finished).is_break() {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    }

    /// Appends one token and returns the logits (`[V]`) after it.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`], [`Error::ContextFull`]; the session is unchanged then.
    pub fn step(&mut self, token: u32) -> Result<&[f32]> {
        self.check(&[token])?;
        self.advance(token, true)?;
        Ok(&self.logits)
    }

    /// One token that was checked, here or on the device.
    fn advance(&mut self, token: u32, with_logits: bool) -> Result<()> {
        let Session { engine, cache, sparsity, device, logits, tokens, .. } = self;
        let Some(device) = device else {
            return step_together(&mut [self], &[token], with_logits).map(drop);
        };
        device.bring(cache)?;
        let plan = match sparsity {
            Some(sparsity) => Some(sparsity.plan_for_device(engine.cpu(), device.held())?),
            None => None,
        };
        let count = device.step(token, plan, logits)?;
        if let Some(sparsity) = sparsity {
            sparsity.end(count);
        }
        tokens.push(token);
        Ok(())
    }

    /// Appends tokens and hands over the logits after each of them from index `from` on, in order: `each(index, logits)`
    /// with the index into `tokens` and `[V]` logits. The LM head runs for those only, and memory does not grow with
    /// `tokens` beyond the key/value cache.
    ///
    /// # Errors
    /// As [`Session::prefill`], and [`Error::Interrupted`] if `each` says so; the session then holds what it held before.
    pub fn score(
        &mut self,
        tokens: &[u32],
        from: usize,
        each: &mut (dyn FnMut(usize, &[f32]) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        self.score_with(tokens, from, &mut NoProbe, each)
    }

    /// [`Session::score`] with a probe on the forward pass.
    ///
    /// # Errors
    /// As [`Session::score`].
    pub fn score_with(
        &mut self,
        tokens: &[u32],
        from: usize,
        probe: &mut (dyn Probe + Send),
        each: &mut (dyn FnMut(usize, &[f32]) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        self.check(tokens)?;
        let before = self.tokens.len();
        self.cache.reserve(self.cache.len() + tokens.len());
        let vocab = self.engine.config().vocab;
        let mut rows = Vec::new();
        for (first, chunk) in (0..).step_by(PREFILL_CHUNK).zip(tokens.chunks(PREFILL_CHUNK)) {
            self.run(chunk, false, probe)?;
            for start in (from.saturating_sub(first)..chunk.len()).step_by(LOGIT_ROWS) {
                let here = start..chunk.len().min(start + LOGIT_ROWS);
                rows.resize(here.len() * vocab, 0.0);
                let (model, cpu, workspace) = (self.engine.model(), self.engine.cpu(), &mut self.workspace);
                cpu.install(|| model.logits(cpu, workspace, here.clone(), &mut rows));
                for (row, logits) in here.zip(rows.chunks_exact(vocab)) {
                    if each(first + row, logits).is_break() {
                        self.truncate(before);
                        return Err(Error::Interrupted);
                    }
                }
            }
        }
        if let Some(last) = rows.chunks_exact(vocab).next_back() {
            self.logits.copy_from_slice(last);
        }
        Ok(())
    }

    pub(super) fn check(&self, tokens: &[u32]) -> Result<()> {
        self.engine.model().check_tokens(tokens)?;
        let (held, tokens_held) = (self.cache.len(), self.tokens.len());
        if self.device.is_none() && held != tokens_held {
            return Err(GpuError::Lost { held, tokens: tokens_held }.into());
        }
        if tokens.len() > self.remaining() {
            return Err(Error::ContextFull {
                context: self.cache.limit(),
                held: self.tokens.len(),
                more: tokens.len(),
            });
        }
        Ok(())
    }

    /// One pass through the layers, all units. At the end of a prompt a policy may decide for what follows.
    fn run(&mut self, chunk: &[u32], ends_prompt: bool, probe: &mut (dyn Probe + Send)) -> Result<()> {
        self.fill_cache()?;
        let (model, cpu) = (self.engine.model(), self.engine.cpu());
        let last = self.tokens.len() + chunk.len() - 1;
        let segments = &mut [Segment { tokens: chunk, cache: &mut self.cache }];
        let workspace = &mut self.workspace;
        match self.sparsity.as_mut().filter(|_| ends_prompt) {
            Some(sparsity) if sparsity.decides_from_prompts() => {
                let mut watch = sparsity.watch(cpu, last, probe)?;
                cpu.install(|| model.forward(cpu, segments, workspace, &mut watch))?;
                watch.finish()?;
            }
            _ => cpu.install(|| model.forward(cpu, segments, workspace, probe))?,
        }
        self.tokens.extend_from_slice(chunk);
        Ok(())
    }

    /// Logits of the last of `rows` rows into `self.logits`.
    fn read_last(&mut self, rows: usize) {
        let (model, cpu) = (self.engine.model(), self.engine.cpu());
        let (workspace, logits) = (&mut self.workspace, &mut self.logits);
        cpu.install(|| model.logits(cpu, workspace, rows - 1..rows, logits));
    }
}
