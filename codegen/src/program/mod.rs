//! All kernels of a model, the memory that they need, and the launches of one token: the contract with whoever runs them.
//!
//! A runtime knows nothing of the kernels. It compiles [`Program::source`] or [`Program::parts`], allocates [`Program::buffers`], fills those whose
//! [`Role`] says that they hold tensors, and launches [`Program::token`] in order, once per token, each launch after the one in
//! front of it (captured once as a graph). A prompt is cut into blocks of at most [`PROMPT_TOKENS`](crate::PROMPT_TOKENS) tokens: for each, the
//! host writes [`Role::Block`] and launches [`Program::prompt`]; after the last, [`Program::end`], if logits are wanted. Nothing in a token waits for the host: the token's id and position, the budget, the
//! lists and their lengths are device memory, so one graph serves all tokens, budgets and plans.
//!
//! # Memory
//! Every buffer starts at a multiple of 256 bytes. Tensors are uploaded as they are: matrices of [`KernelSpec::dtype`], all records
//! of a layer in the arrangement of a packed checkpoint, vectors widened to `f32`. Embedding, positions and LM head that are stored
//! in another type are converted first. For a new sequence the state and the watermarks are zeros; nothing else needs a content.
//!
//! A kernel whose [`Kernel::shared`] is over 48 KiB needs its limit of dynamic shared memory raised before the first launch. Status
//! bits ([`STATUS_BAD_LOGIT`](crate::STATUS_BAD_LOGIT), [`STATUS_BAD_SCORE`](crate::STATUS_BAD_SCORE)) stay until the host
//! clears them; after such a token lists and logits are of no use, but nothing was written out of bounds.
//!
//! | role | content |
//! | --- | --- |
//! | [`Tensor::Heads`] | `[H, 2*d_h, d]`: record `h` starts at `h * 2*d_h*d`; its rows of Wq, then its columns of Wo |
//! | [`Tensor::KvHeads`] | `[H_kv, 2*d_h, d]`: rows of Wk, then of Wv |
//! | [`Tensor::Neurons`] | `[F, R, d]`: fc1 row, fc2 column (R = 2), or gate row, up row, down column (R = 3) |
//! | [`Tensor::Rope`] | `[context, d_h]`: `d_h/2` cosines, then `d_h/2` sines of every position |
//! | [`Role::State`] | `[4]` `u32`: token, position, status bits, 0. The host writes token and position of a sequence's next step; |
//! |   | the last launch of a token writes them for the token after it, so a greedy host need not |
//! | [`Role::Block`] | `[4 + 128]`: first position of a block of a prompt, how many tokens it has, 0, 0, and the tokens |
//! | [`Role::Tokens`] | `[context]`: the greedy choice after position `p` is at `p + 1` |
//! | [`Role::Budget`] | `[4]`: heads and neurons that each layer keeps, each followed by how many all layers share beyond those |
//! | [`Role::Lists`] | `[L, H]` and `[L, F]` `u32`: kept units of a layer, ascending. The host writes those of the layers up to the first |
//! |   | station, which keep everything; without a predictor those of all layers |
//! | [`Role::Counts`] | `[L, 2]`: lengths of a layer's lists of heads and of neurons; as the lists |
//! | [`Role::Keys`], [`Role::Values`] | `[L, H_kv, context, d_h]` of [`KernelSpec::cache`], rows below the watermark are there |
//! | [`Role::Watermarks`] | `[L, H_kv + 1]`: first position that each head lacks; last, the first whose attention input is kept |
//! | [`Role::Pending`] | `[L, kv_flush, d]`: attention input of position `p` in row `p % kv_flush` |
//! | [`Role::Logits`] | `[V]`, of the present token |
//! | [`Role::ReadWhole`] | `[L, pieces]`: neurons whose record was read to the end, with ReLU |
//!
//! After a prompt, here or elsewhere, keys, values and the watermarks (all at the prompt's length) are what a token needs; [`Program::end`] sets
//! the watermarks, too. A block of a prompt needs the keys and values of all heads at all positions in front of it.

mod builder;
mod decision;
mod prompt;
mod token;

use builder::Builder;

use crate::kernel::Kernel;
use crate::predictor::{Kind, PredictorSpec, WeightFormat};
use crate::{KernelSpec, Scope, SpecError, ffn, norm, predictor, prelude, qkv, select};

/// Texts that a program is cut into. The prelude, which each has, takes the compiler as long as the smallest kernels.
const PARTS: usize = 4;

/// Norm of a layer or of the model's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormSite {
    /// In front of the attention of a layer.
    Attention(usize),
    /// In front of the FFN of a layer.
    Ffn(usize),
    /// In front of the LM head.
    Final,
}

/// A tensor of the model or the predictor, for the host to upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tensor {
    /// `[V, d]`.
    Embedding,
    /// Learned positions, `[context + offset, d]`.
    Positions,
    /// `[V, d]`; the embedding's memory if they are tied.
    LmHead,
    /// Query and output rows of a layer's heads.
    Heads(usize),
    /// Key and value rows of a layer's key/value heads.
    KvHeads(usize),
    /// Records of a layer's neurons.
    Neurons(usize),
    /// `[d]` `f32`; ones if the model has none.
    NormWeight(NormSite),
    /// `[d]` `f32`; zeros if the model has none.
    NormBias(NormSite),
    /// `[H * d_h]` `f32`.
    QueryBias(usize),
    /// `[H_kv * d_h]` `f32`.
    KeyBias(usize),
    /// `[H_kv * d_h]` `f32`.
    ValueBias(usize),
    /// `[d]` `f32`, of the attention's output projection.
    OutBias(usize),
    /// `[F]` `f32`, of fc1 or the gate.
    FirstBias(usize),
    /// `[F]` `f32`, of up.
    UpBias(usize),
    /// `[d]` `f32`, of fc2 or down.
    SecondBias(usize),
    /// Cosines and sines.
    Rope,
    /// `[n]` `f32`, mean of the inputs of a station.
    Mean(usize),
    /// `[n]` `f32`, factor of the inputs of a station.
    Scale(usize),
    /// Hidden layer of a station; `None` is the trunk. Rows are padded with zeros to 16 bytes.
    Hidden(usize, Option<Kind>, Part),
    /// Output layer of a station, padded likewise.
    Output(usize, Kind, Part),
}

/// A part of a predictor's layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Rows in the predictor's format.
    Weight,
    /// A row's scale, `f32`.
    RowScale,
    /// A row's bias, `f32`.
    Bias,
}

/// What a buffer is for. See the table of [this module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Uploaded by the host, never written.
    Tensor(Tensor),
    /// Token, position, status.
    State,
    /// A block of a prompt.
    Block,
    /// Greedy choices by position.
    Tokens,
    /// Counts of the budget.
    Budget,
    /// Kept units.
    Lists(Kind),
    /// Lengths of the lists.
    Counts,
    /// Keys.
    Keys,
    /// Values.
    Values,
    /// Watermarks of the lazy fill.
    Watermarks,
    /// Attention inputs of positions that some head lacks.
    Pending,
    /// Logits.
    Logits,
    /// Neurons read to the end.
    ReadWhole,
    /// The residual stream, `[d]`.
    Residual,
    /// Contexts, `[H, d_h]`; of heads that are not kept zeros where a predictor reads them, else anything.
    Contexts,
    /// Predicted scores, `[L, H]` or `[L, F]`; layers up to the first station are not written.
    Scores(Kind),
    /// Between two kernels of a token; what is there before does not matter.
    Scratch(&'static str),
}

/// Device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// What it is for.
    pub role: Role,
    /// Its size.
    pub bytes: u64,
}

/// One argument of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// Address of byte `offset` of a buffer.
    Buffer {
        /// Index into [`Program::buffers`].
        buffer: usize,
        /// In bytes.
        offset: u64,
    },
    /// A number.
    U32(u32),
}

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Index into [`Program::kernels`].
    pub kernel: usize,
    /// Blocks in x and y.
    pub grid: [u32; 2],
    /// One for each parameter of the kernel.
    pub args: Vec<Arg>,
    /// The layer that it belongs to; `None` for embedding, decisions and the end.
    pub layer: Option<usize>,
}

/// Everything that one model's tokens need.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// What it was emitted for.
    pub spec: KernelSpec,
    /// Its predictor, if plans are made on the device.
    pub predictor: Option<PredictorSpec>,
    /// Text in front of the kernels.
    pub prelude: String,
    /// Every kernel once.
    pub kernels: Vec<Kernel>,
    /// Device memory.
    pub buffers: Vec<Buffer>,
    /// The launches of one token, in order.
    pub token: Vec<Launch>,
    /// The launches of a block of a prompt: keys and values of its tokens.
    pub prompt: Vec<Launch>,
    /// The launches after the last block of a prompt: logits after its last token.
    pub end: Vec<Launch>,
}

impl Program {
    /// Emits the kernels of a model. `windows` are the positions that each layer sees, 0 for all; it may be empty if no layer has a
    /// window.
    ///
    /// # Errors
    /// Those of [`KernelSpec::validate`] and [`PredictorSpec::validate`].
    pub fn emit(spec: &KernelSpec, predictor: Option<&PredictorSpec>, windows: &[u32]) -> Result<Program, SpecError> {
        spec.validate()?;
        if let Some(predictor) = predictor {
            predictor.validate(spec)?;
        }
        let program = Program {
            spec: spec.clone(),
            predictor: predictor.cloned(),
            prelude: prelude_of(spec, predictor),
            kernels: Vec::new(),
            buffers: Vec::new(),
            token: Vec::new(),
            prompt: Vec::new(),
            end: Vec::new(),
        };
        let mut builder = Builder { program, launches: Vec::new() };
        builder.token(windows);
        builder.program.token = std::mem::take(&mut builder.launches);
        builder.prompt(windows);
        builder.program.prompt = std::mem::take(&mut builder.launches);
        builder.prompt_end();
        builder.program.end = std::mem::take(&mut builder.launches);
        Ok(builder.program)
    }

    /// The whole text, for one call of the compiler.
    pub fn source(&self) -> String {
        self.text(self.kernels.iter())
    }

    /// The same kernels as texts of their own, for several calls of the compiler at once: kernel `k` is in part `k % parts.len()`.
    /// There are as many parts on every machine.
    pub fn parts(&self) -> Vec<String> {
        let parts = PARTS.min(self.kernels.len());
        (0..parts).map(|part| self.text(self.kernels.iter().skip(part).step_by(parts))).collect()
    }

    fn text<'a>(&self, kernels: impl Iterator<Item = &'a Kernel>) -> String {
        let mut text = format!("// {}\n{}", self.spec.name(), self.prelude);
        for kernel in kernels {
            text.push('\n');
            text.push_str(&kernel.source);
        }
        text
    }

    /// The buffer of a role.
    pub fn buffer(&self, role: Role) -> Option<usize> {
        self.buffers.iter().position(|buffer| buffer.role == role)
    }
}

fn prelude_of(spec: &KernelSpec, predictor: Option<&PredictorSpec>) -> String {
    let mut text = prelude::PRELUDE.to_owned();
    text += ffn::activation(spec.activation);
    text += &norm::function(spec);
    text += &qkv::functions(spec);
    text += &crate::prompt::functions(spec);
    if let Some(predictor) = predictor {
        if predictor.format == WeightFormat::Int8 {
            text += predictor::FUNCTIONS;
        }
        text += &select::functions(spec.scope == Scope::Global);
    }
    text
}
