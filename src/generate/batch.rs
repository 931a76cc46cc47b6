//! Several sequences decoded together: weights that more than one of them needs are read once.
//!
//! Decoding is bound by the bytes of weights that are read, so a step of several sequences costs little more than one as long as
//! they need the same weights. Dense sequences need all of them; sparse ones each have a plan of their own, and what is read is
//! the union of their plans. Each computes only its own units, bit for bit as it would alone.

use std::sync::Arc;

use super::{Engine, Session};
use crate::kernels::Cpu;
use crate::model::{Model, NoProbe, Segment, SparseCount, SparseRow, Workspace};
use crate::sparsity::Kept;
use crate::{Error, Result};

/// What one step of a batch read.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct BatchStep {
    /// Sequences.
    pub sequences: usize,
    /// Heads that were read, each once, whichever sequences keep it; over all layers.
    pub heads: u64,
    /// Neurons that were read, likewise.
    pub neurons: u64,
    /// Units that there are: heads and neurons of all layers, once for each time that the weights were gone through.
    pub all_heads: u64,
    /// As `all_heads`.
    pub all_neurons: u64,
    /// Bytes that the step read.
    pub bytes: u64,
    /// Bytes that the sequences would have read one after the other.
    pub bytes_alone: u64,
}

impl BatchStep {
    /// The effective kept fraction: units that any sequence keeps / units.
    pub fn kept(&self) -> Kept {
        let fraction = |kept: u64, all: u64| if all == 0 { 1.0 } else { kept as f64 / all as f64 };
        Kept { heads: fraction(self.heads, self.all_heads), neurons: fraction(self.neurons, self.all_neurons) }
    }

    /// Adds another step, for means over several.
    pub fn add(&mut self, other: &BatchStep) {
        self.sequences += other.sequences;
        self.heads += other.heads;
        self.neurons += other.neurons;
        self.all_heads += other.all_heads;
        self.all_neurons += other.all_neurons;
        self.bytes += other.bytes;
        self.bytes_alone += other.bytes_alone;
    }
}

impl Engine {
    /// Appends one token to each of several sessions, as [`Session::step`] does, at the same time: the same logits, bit for bit, and
    /// each weight is read once for all sessions that need it (for up to 8; more are taken in turn). Every session
    /// keeps its own sparsity; dense ones may be among them.
    ///
    /// ```
    /// # use shadowllm::{Engine, EngineOptions, SessionOptions};
    /// # fn main() -> shadowllm::Result<()> {
    /// let engine = Engine::open("embedded", EngineOptions::default())?;
    /// let mut a = engine.session(SessionOptions::default())?;
    /// a.prefill(&[2, 50, 1266, 584, 262, 580])?;
    /// let mut b = a.fork();
    /// let step = engine.step_batch(&mut [&mut a, &mut b], &[15, 283])?;
    /// assert!(step.bytes < step.bytes_alone);
    /// println!("{} and {}", shadowllm::kernels::argmax(a.logits()), shadowllm::kernels::argmax(b.logits()));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::BatchTokens`]; [`Error::BatchMixed`] for sessions of another engine or with different packed weights; those of
    /// [`Session::step`]. All sessions then hold the tokens that they held before.
    pub fn step_batch(&self, sessions: &mut [&mut Session], tokens: &[u32]) -> Result<BatchStep> {
        self.check_batch(sessions, tokens)?;
        let lengths: Vec<usize> = sessions.iter().map(|session| session.tokens.len()).collect();
        let (mut sparse, mut dense) = (Parts::default(), Parts::default());
        for (session, &token) in sessions.iter_mut().zip(tokens) {
            let part = if session.sparsity.is_some() { &mut sparse } else { &mut dense };
            part.sessions.push(session);
            part.tokens.push(token);
        }
        let mut total = BatchStep::default();
        let mut run = || {
            for part in [&mut sparse, &mut dense] {
                let tokens = part.tokens.chunks(Model::MOST_SEQUENCES);
                for (sessions, tokens) in part.sessions.chunks_mut(Model::MOST_SEQUENCES).zip(tokens) {
                    total.add(&step_together(sessions, tokens, true)?);
                }
            }
            Ok(())
        };
        let result = run();
        if let Err(error) = result {
            for (session, len) in sessions.iter_mut().zip(lengths) {
                session.truncate(len);
            }
            return Err(error);
        }
        Ok(total)
    }

    fn check_batch(&self, sessions: &[&mut Session], tokens: &[u32]) -> Result<()> {
        if sessions.len() != tokens.len() {
            return Err(Error::BatchTokens { sessions: sessions.len(), tokens: tokens.len() });
        }
        let mut packed = None;
        for (index, (session, &token)) in sessions.iter().zip(tokens).enumerate() {
            if !self.is_same(&session.engine) {
                return Err(Error::BatchMixed { index, reason: "is of another engine" });
            }
            if let Some(sparsity) = &session.sparsity
                && !Arc::ptr_eq(packed.get_or_insert(&sparsity.packed), &sparsity.packed)
            {
                return Err(Error::BatchMixed { index, reason: "runs over other packed weights" });
            }
            if session.device.is_some() {
                return Err(Error::BatchMixed { index, reason: "runs on a device" });
            }
            session.check(&[token])?;
        }
        Ok(())
    }
}

/// The sessions of one kind in a batch.
#[derive(Default)]
struct Parts<'a> {
    sessions: Vec<&'a mut Session>,
    tokens: Vec<u32>,
}

/// One token of each session, all sparse or all dense, checked, at most [`Model::MOST_SEQUENCES`]. One session allocates nothing.
pub(super) fn step_together(sessions: &mut [&mut Session], tokens: &[u32], with_logits: bool) -> Result<BatchStep> {
    let Some(first) = sessions.first_mut() else { return Ok(BatchStep::default()) };
    let engine = first.engine.clone();
    let packed = first.sparsity.as_ref().map(|sparsity| Arc::clone(&sparsity.packed));
    // The pass leaves its rows there; it is as good as any other session's.
    let mut workspace = std::mem::take(&mut first.workspace);
    let (model, cpu) = (engine.model(), engine.cpu());
    // One entry into the thread pool for the whole token.
    let result = cpu.install(|| {
        let count = match &packed {
            Some(packed) => {
                Some(with_rows(cpu, sessions, tokens, |rows| model.decode_sparse(cpu, packed, rows, &mut workspace))?)
            }
            None => {
                with_segments(sessions, tokens, |segments| model.forward(cpu, segments, &mut workspace, &mut NoProbe))?;
                None
            }
        };
        if with_logits {
            read_logits(model, cpu, &mut workspace, sessions);
        }
        Ok::<_, Error>(count)
    });
    if let Some(first) = sessions.first_mut() {
        first.workspace = workspace;
    }
    let count = result?;
    for (session, &token) in sessions.iter_mut().zip(tokens) {
        session.tokens.push(token);
    }
    Ok(account(model, sessions, count))
}

/// Calls `f` with a row of each session, all of them sparse.
fn with_rows(
    cpu: &Cpu,
    sessions: &mut [&mut Session],
    tokens: &[u32],
    f: impl FnOnce(&mut [SparseRow<'_>]) -> Result<SparseCount>,
) -> Result<SparseCount> {
    fn row<'a>(cpu: &Cpu, session: &'a mut Session, token: u32) -> Result<Option<SparseRow<'a>>> {
        let Session { cache, sparsity, .. } = session;
        let Some(sparsity) = sparsity else { return Ok(None) };
        let options = sparsity.options;
        let director = sparsity.begin(cpu, cache.len())?;
        Ok(Some(SparseRow { token, cache, director, options, count: SparseCount::default() }))
    }
    let mut counts = [SparseCount::default(); Model::MOST_SEQUENCES];
    let all = match (&mut *sessions, tokens) {
        ([session], &[token]) => match row(cpu, session, token)? {
            Some(row) => {
                let mut rows = [row];
                let all = f(&mut rows)?;
                counts[0] = rows[0].count;
                all
            }
            None => SparseCount::default(),
        },
        (sessions, tokens) => {
            let rows = sessions.iter_mut().zip(tokens).map(|(session, &token)| row(cpu, session, token));
            let mut rows = rows.filter_map(Result::transpose).collect::<Result<Vec<_>>>()?;
            let all = f(&mut rows)?;
            for (count, row) in counts.iter_mut().zip(&rows) {
                *count = row.count;
            }
            all
        }
    };
    for (session, count) in sessions.iter_mut().zip(counts) {
        if let Some(sparsity) = &mut session.sparsity {
            sparsity.end(count);
        }
    }
    Ok(all)
}

/// Calls `f` with a segment of each session.
fn with_segments(
    sessions: &mut [&mut Session],
    tokens: &[u32],
    f: impl FnOnce(&mut [Segment<'_>]) -> Result<()>,
) -> Result<()> {
    let segment = |(session, token)| {
        let session: &mut &mut Session = session;
        Segment { tokens: std::slice::from_ref(token), cache: &mut session.cache }
    };
    match (&mut *sessions, tokens) {
        ([session], [token]) => f(&mut [segment((session, token))]),
        (sessions, tokens) => f(&mut sessions.iter_mut().zip(tokens).map(segment).collect::<Vec<_>>()),
    }
}

/// Row `i` of the workspace becomes logits of session `i`.
fn read_logits(model: &Model, cpu: &Cpu, workspace: &mut Workspace, sessions: &mut [&mut Session]) {
    if let [session] = sessions {
        return model.logits(cpu, workspace, 0..1, &mut session.logits);
    }
    let vocab = model.config.vocab;
    let mut all = cpu.scratch(sessions.len() * vocab);
    model.logits(cpu, workspace, 0..sessions.len(), &mut all);
    for (session, logits) in sessions.iter_mut().zip(all.chunks_exact(vocab)) {
        session.logits.copy_from_slice(logits);
    }
}

/// What a step read that is done; `count` of sparse sessions.
fn account(model: &Model, sessions: &[&mut Session], count: Option<SparseCount>) -> BatchStep {
    let c = &model.config;
    let (all_heads, all_neurons) = ((c.layers * c.heads) as u64, (c.layers * c.ffn) as u64);
    let mut step = BatchStep { sequences: sessions.len(), all_heads, all_neurons, ..BatchStep::default() };
    let (mut shared, mut own) = (0, 0);
    for session in sessions {
        let dense = model.active_bytes(session.tokens.len() - 1);
        step.bytes_alone += session.step_bytes();
        own += dense.embedding + session.sparsity.as_ref().map_or(dense.cache, |sparsity| sparsity.decision_bytes());
        shared = dense.head + if count.is_some() { model.vector_bytes() } else { dense.blocks };
    }
    (step.heads, step.neurons) = count.map_or((all_heads, all_neurons), |count| (count.heads, count.neurons));
    step.bytes = own + shared + count.map_or(0, |count| count.blocks + count.cache);
    step
}
