//! All kernels of a model, the memory that they need, and the launches of one token: the contract with whoever runs them.
//!
//! A runtime knows nothing of the kernels. It compiles [`Program::source`], allocates [`Program::buffers`], fills those whose
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

use crate::kernel::{Kernel, ParamKind};
use crate::predictor::{Kind, PredictorInput, PredictorSpec, WeightFormat};
use crate::{Family, KernelSpec, Norm, Scope, SpecError};
use crate::{attention, embed, ffn, head, norm, output, predictor, prelude, prompt, qkv, reduce, select};

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
        let mut text = format!("// {}\n{}", self.spec.name(), self.prelude);
        for kernel in &self.kernels {
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
    text += &prompt::functions(spec);
    if let Some(predictor) = predictor {
        if predictor.format == WeightFormat::Int8 {
            text += predictor::FUNCTIONS;
        }
        text += &select::functions(spec.scope == Scope::Global);
    }
    text
}

/// Puts a program together: kernels and buffers come into being when a launch first asks for them.
struct Builder {
    program: Program,
    /// Of what is being put together.
    launches: Vec<Launch>,
}

impl Builder {
    fn spec(&self) -> &KernelSpec {
        &self.program.spec
    }

    /// The address of element `at` (of `size` bytes) of the buffer of `role`, which has `bytes` in all.
    fn at(&mut self, role: Role, bytes: usize, offset: usize) -> Arg {
        let buffer = self.program.buffer(role).unwrap_or_else(|| {
            self.program.buffers.push(Buffer { role, bytes: bytes as u64 });
            self.program.buffers.len() - 1
        });
        Arg::Buffer { buffer, offset: offset as u64 }
    }

    fn all(&mut self, role: Role, bytes: usize) -> Arg {
        self.at(role, bytes, 0)
    }

    fn tensor(&mut self, tensor: Tensor, bytes: usize) -> Arg {
        self.all(Role::Tensor(tensor), bytes)
    }

    fn launch(&mut self, layer: Option<usize>, kernel: Kernel, args: Vec<Arg>) {
        let grid = kernel.grid;
        self.launch_on(layer, kernel, grid, args);
    }

    fn launch_on(&mut self, layer: Option<usize>, kernel: Kernel, grid: [u32; 2], args: Vec<Arg>) {
        debug_assert_eq!(kernel.params.len(), args.len(), "{}", kernel.name);
        debug_assert!(kernel.params.iter().zip(&args).all(|(param, arg)| match param.kind {
            ParamKind::Buffer(..) => matches!(arg, Arg::Buffer { .. }),
            ParamKind::U32 => matches!(arg, Arg::U32(_)),
        }));
        let kernels = &mut self.program.kernels;
        let index = kernels.iter().position(|known| known.name == kernel.name).unwrap_or_else(|| {
            kernels.push(kernel);
            kernels.len() - 1
        });
        self.launches.push(Launch { kernel: index, grid, args, layer });
    }

    fn state(&mut self) -> Arg {
        self.all(Role::State, 16)
    }

    fn residual(&mut self) -> Arg {
        let bytes = 4 * self.spec().sizes.hidden;
        self.all(Role::Residual, bytes)
    }

    /// Counts of a layer.
    fn counts(&mut self, layer: usize) -> Arg {
        let layers = self.spec().sizes.layers;
        self.at(Role::Counts, 8 * layers, 8 * layer)
    }

    /// List of a layer.
    fn list(&mut self, kind: Kind, layer: usize) -> Arg {
        let width = predictor::units(self.spec(), kind);
        let layers = self.spec().sizes.layers;
        self.at(Role::Lists(kind), 4 * layers * width, 4 * layer * width)
    }

    /// Records of a layer's heads and key/value heads.
    fn records(&mut self, spec: &KernelSpec, layer: usize) -> [Arg; 2] {
        let (s, row) = (&spec.sizes, spec.row_bytes() as usize);
        [
            self.tensor(Tensor::Heads(layer), s.heads * 2 * s.head_dim * row),
            self.tensor(Tensor::KvHeads(layer), s.kv_heads * 2 * s.head_dim * row),
        ]
    }

    /// Records of a layer's neurons.
    fn neurons(&mut self, spec: &KernelSpec, layer: usize) -> Arg {
        let rows = if spec.family.is_llama() { 3 } else { 2 };
        self.tensor(Tensor::Neurons(layer), spec.sizes.ffn * rows * spec.row_bytes() as usize)
    }

    /// Keys and values of a layer.
    fn cache(&mut self, spec: &KernelSpec, layer: usize) -> [Arg; 2] {
        let s = &spec.sizes;
        let bytes = s.kv_heads * s.context * s.head_dim * spec.cache.size();
        [Role::Keys, Role::Values].map(|role| self.at(role, s.layers * bytes, layer * bytes))
    }

    /// What is done to queries, keys and values: biases and rotations.
    fn qkv_vectors(&mut self, spec: &KernelSpec, layer: usize) -> Vec<Arg> {
        let (s, mut args) = (&spec.sizes, Vec::new());
        if spec.bias.qkv {
            args.push(self.tensor(Tensor::QueryBias(layer), 4 * s.heads * s.head_dim));
            args.push(self.tensor(Tensor::KeyBias(layer), 4 * s.kv_heads * s.head_dim));
            args.push(self.tensor(Tensor::ValueBias(layer), 4 * s.kv_heads * s.head_dim));
        }
        if spec.family.is_llama() {
            args.push(self.tensor(Tensor::Rope, 4 * s.context * s.head_dim));
        }
        args
    }

    /// Biases of the first rows of an FFN.
    fn ffn_vectors(&mut self, spec: &KernelSpec, layer: usize) -> Vec<Arg> {
        let (s, mut args) = (&spec.sizes, Vec::new());
        if spec.bias.ffn {
            args.push(self.tensor(Tensor::FirstBias(layer), 4 * s.ffn));
            if spec.family.is_llama() {
                args.push(self.tensor(Tensor::UpBias(layer), 4 * s.ffn));
            }
        }
        args
    }

    /// Arguments of the parameters of a norm.
    fn norm(&mut self, site: NormSite) -> Vec<Arg> {
        let bytes = 4 * self.spec().sizes.hidden;
        let mut args = vec![self.residual(), self.tensor(Tensor::NormWeight(site), bytes)];
        if self.spec().norm == Norm::LayerNorm {
            args.push(self.tensor(Tensor::NormBias(site), bytes));
        }
        args
    }

    fn token(&mut self, windows: &[u32]) {
        self.embed();
        let stations = self.program.predictor.as_ref().map_or(Vec::new(), |p| p.stations.clone());
        for layer in 0..self.spec().sizes.layers {
            self.attention(layer, windows.get(layer).copied().unwrap_or(0));
            self.ffn(layer);
            if let Some(station) = stations.iter().position(|&after| after == layer) {
                self.decide(station);
            }
        }
        self.end();
    }

    fn embed(&mut self) {
        let kernel = embed::kernel(self.spec());
        let (s, row) = (self.spec().sizes, self.spec().row_bytes() as usize);
        let mut args = vec![self.tensor(Tensor::Embedding, s.vocab * row)];
        if self.spec().family == Family::Opt {
            let rows = s.context + self.spec().position_offset;
            args.push(self.tensor(Tensor::Positions, rows * row));
        }
        args.extend([self.state(), self.residual()]);
        self.launch(None, kernel, args);
    }

    fn reads_contexts(&self) -> bool {
        self.program.predictor.as_ref().is_some_and(|p| p.input == PredictorInput::Contexts)
    }

    fn contexts(&mut self) -> Arg {
        let bytes = 4 * self.spec().sizes.heads * self.spec().sizes.head_dim;
        self.all(Role::Contexts, bytes)
    }

    fn attention(&mut self, layer: usize, window: u32) {
        let spec = self.spec().clone();
        let s = &spec.sizes;
        let here = Some(layer);
        let [heads, kv_heads] = self.records(&spec, layer);
        let (list, counts, state) = (self.list(Kind::Heads, layer), self.counts(layer), self.state());
        let [keys, values] = self.cache(&spec, layer);
        let marks = 4 * (s.kv_heads + 1);
        let watermark = self.at(Role::Watermarks, s.layers * marks, layer * marks);
        let ring = 4 * spec.kv_flush * s.hidden;
        let pending = self.at(Role::Pending, s.layers * ring, layer * ring);
        let queries = self.all(Role::Scratch("queries"), 4 * s.heads * s.head_dim);

        let mut args = vec![heads, kv_heads];
        args.extend(self.norm(NormSite::Attention(layer)));
        args.extend(self.qkv_vectors(&spec, layer));
        let arrivals = self.arrivals(0);
        args.extend([list, counts, state, watermark, pending, keys, values, queries, arrivals]);
        self.launch(here, qkv::kernel(&spec), args);

        let pieces = s.heads * spec.splits();
        let piece_sums = self.all(Role::Scratch("attention sums"), 4 * pieces * s.head_dim);
        let piece_stats = self.all(Role::Scratch("attention maxima"), 8 * pieces);
        let contexts = self.contexts();
        let args = vec![
            keys,
            values,
            queries,
            list,
            counts,
            state,
            watermark,
            piece_sums,
            piece_stats,
            arrivals,
            contexts,
            Arg::U32(window),
        ];
        self.launch(here, attention::kernel(&spec, self.reads_contexts()), args);

        let mut args = vec![heads, contexts, list, counts];
        if spec.bias.out {
            args.push(self.tensor(Tensor::OutBias(layer), 4 * s.hidden));
        }
        args.push(self.residual());
        self.launch(here, output::kernel(&spec), args);
    }

    /// Counters by which a kernel knows its last block, from `first` on: those of the attention, then the LM head's. Every layer's first
    /// kernel sets them to zero.
    fn arrivals(&mut self, first: usize) -> Arg {
        let bytes = 4 * (attention::arrivals(self.spec()) + 1);
        self.at(Role::Scratch("arrivals"), bytes, 4 * first)
    }

    /// Pieces of the FFN's sum.
    fn partial(&mut self) -> Arg {
        let bytes = 4 * self.spec().sizes.hidden * self.spec().ffn_pieces();
        self.all(Role::Scratch("pieces"), bytes)
    }

    fn ffn(&mut self, layer: usize) {
        let spec = self.spec().clone();
        let s = &spec.sizes;
        let kernel = ffn::kernel(&spec);
        let mut args = vec![self.neurons(&spec, layer)];
        args.extend(self.norm(NormSite::Ffn(layer)));
        args.extend(self.ffn_vectors(&spec, layer));
        args.extend([self.list(Kind::Neurons, layer), self.counts(layer), self.partial()]);
        if kernel.params.last().is_some_and(|param| param.name == "read_whole") {
            let pieces = 4 * spec.ffn_pieces();
            args.push(self.at(Role::ReadWhole, s.layers * pieces, layer * pieces));
        }
        // The FFN's lengths are the second of a layer's counts; the kernel knows.
        self.launch(Some(layer), kernel, args);
        let mut args = vec![self.partial()];
        if spec.bias.ffn {
            args.push(self.tensor(Tensor::SecondBias(layer), 4 * s.hidden));
        }
        args.push(self.residual());
        self.launch(Some(layer), reduce::kernel(&spec), args);
    }

    fn prompt(&mut self, windows: &[u32]) {
        let spec = self.spec().clone();
        let (s, row) = (&spec.sizes, spec.row_bytes() as usize);
        let block = self.all(Role::Block, 4 * prompt::BLOCK_WORDS);
        let stream = self.all(Role::Scratch("prompt streams"), 4 * prompt::TOKENS * s.hidden);
        let mut args = vec![self.tensor(Tensor::Embedding, s.vocab * row)];
        if spec.family == Family::Opt {
            args.push(self.tensor(Tensor::Positions, (s.context + spec.position_offset) * row));
        }
        args.extend([block, stream]);
        self.launch(None, prompt::embed(&spec), args);
        for layer in 0..s.layers {
            let here = Some(layer);
            let input = self.prompt_norm(&spec, NormSite::Attention(layer));
            let [heads, kv_heads] = self.records(&spec, layer);
            let [keys, values] = self.cache(&spec, layer);
            let queries = self.all(Role::Scratch("prompt queries"), 4 * prompt::TOKENS * s.heads * s.head_dim);
            let mut args = vec![heads, kv_heads, input, block];
            args.extend(self.qkv_vectors(&spec, layer));
            args.extend([keys, values, queries]);
            self.launch(here, prompt::qkv(&spec), args);
            let contexts = self.split("prompt contexts", &spec, s.heads * s.head_dim);
            let window = windows.get(layer).copied().unwrap_or(0);
            let args = vec![keys, values, queries, block, contexts, Arg::U32(window)];
            self.launch(here, prompt::attention(&spec), args);
            let sums = self.prompt_sums(&spec);
            self.launch(here, prompt::output(&spec), vec![heads, contexts, block, sums]);

            let input = self.prompt_norm(&spec, NormSite::Ffn(layer));
            let inner = self.split("prompt inner values", &spec, s.ffn);
            let records = self.neurons(&spec, layer);
            let mut args = vec![records, input, block];
            args.extend(self.ffn_vectors(&spec, layer));
            args.push(inner);
            self.launch(here, prompt::ffn_first(&spec), args);
            self.launch(here, prompt::ffn_second(&spec), vec![records, inner, block, sums]);
        }
    }

    /// Split activations of a block of a prompt.
    fn split(&mut self, name: &'static str, spec: &KernelSpec, width: usize) -> Arg {
        self.all(Role::Scratch(name), prompt::planes_bytes(spec, width))
    }

    fn prompt_sums(&mut self, spec: &KernelSpec) -> Arg {
        let bytes = 4 * prompt::parts(spec) * prompt::TOKENS * spec.sizes.hidden;
        self.all(Role::Scratch("prompt sums"), bytes)
    }

    /// The bias of the product in front of a norm, and whether there is such a product.
    fn prompt_before(&mut self, spec: &KernelSpec, site: NormSite) -> (prompt::Before, Option<Arg>) {
        let (bias, tensor) = match site {
            NormSite::Attention(0) => return (prompt::Before::Nothing, None),
            NormSite::Attention(layer) => (spec.bias.ffn, Tensor::SecondBias(layer - 1)),
            NormSite::Ffn(layer) => (spec.bias.out, Tensor::OutBias(layer)),
            NormSite::Final => (spec.bias.ffn, Tensor::SecondBias(spec.sizes.layers - 1)),
        };
        let arg = bias.then(|| self.tensor(tensor, 4 * spec.sizes.hidden));
        (prompt::Before::Product { bias }, arg)
    }

    /// Adds the product in front to the residual streams of a block, and normalises them.
    fn prompt_norm(&mut self, spec: &KernelSpec, site: NormSite) -> Arg {
        let (before, bias) = self.prompt_before(spec, site);
        let stream = self.all(Role::Scratch("prompt streams"), 4 * prompt::TOKENS * spec.sizes.hidden);
        let mut args = vec![stream];
        args.extend(self.norm(site).into_iter().skip(1));
        args.push(self.all(Role::Block, 4 * prompt::BLOCK_WORDS));
        if before != prompt::Before::Nothing {
            args.push(self.prompt_sums(spec));
        }
        args.extend(bias);
        let output = self.split("prompt input", spec, spec.sizes.hidden);
        args.push(output);
        let layer = match site {
            NormSite::Attention(layer) | NormSite::Ffn(layer) => Some(layer),
            NormSite::Final => None,
        };
        self.launch(layer, prompt::norm(spec, before), args);
        output
    }

    fn prompt_end(&mut self) {
        let spec = self.spec().clone();
        let s = &spec.sizes;
        let (_, bias) = self.prompt_before(&spec, NormSite::Final);
        let stream = self.all(Role::Scratch("prompt streams"), 4 * prompt::TOKENS * s.hidden);
        let mut args = vec![stream, self.all(Role::Block, 4 * prompt::BLOCK_WORDS), self.prompt_sums(&spec)];
        args.extend(bias);
        args.extend([self.residual(), self.arrivals(0)]);
        args.push(self.all(Role::Watermarks, 4 * s.layers * (s.kv_heads + 1)));
        args.push(self.state());
        self.launch(None, prompt::end(&spec, spec.bias.ffn), args);
        self.end();
    }

    fn end(&mut self) {
        let spec = self.spec().clone();
        let s = &spec.sizes;
        let blocks = 4 * head::blocks(&spec);
        let mut args = vec![self.tensor(Tensor::LmHead, s.vocab * spec.row_bytes() as usize)];
        args.extend(self.norm(NormSite::Final));
        let best = self.all(Role::Scratch("best logits"), blocks);
        let id = self.all(Role::Scratch("best tokens"), blocks);
        args.extend([
            self.all(Role::Logits, 4 * s.vocab),
            best,
            id,
            self.arrivals(attention::arrivals(&spec)),
            self.state(),
        ]);
        args.push(self.all(Role::Tokens, 4 * s.context));
        self.launch(None, head::kernel(&spec), args);
    }

    fn status(&mut self) -> Arg {
        self.at(Role::State, 16, 8)
    }

    fn decide(&mut self, station: usize) {
        let spec = self.spec().clone();
        let Some(predictor) = self.program.predictor.clone() else { return };
        let layers = predictor.layers(&spec, station);
        if layers.is_empty() {
            return;
        }
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| predictor.width(*kind).is_some()).collect();
        if predictor.trunk {
            self.hidden(&spec, &predictor, station, &[None]);
        } else {
            let own: Vec<Option<Kind>> = kinds.iter().copied().map(Some).collect();
            self.hidden(&spec, &predictor, station, &own);
        }
        let args: Vec<Vec<Arg>> = kinds
            .iter()
            .map(|&kind| {
                let (units, own) = (predictor::units(&spec, kind), Some(kind).filter(|_| !predictor.trunk));
                let (rows, width) = (layers.len() * units, predictor.width(kind).unwrap_or(0));
                let mut args = self.layer_tensors(&predictor, |part| Tensor::Output(station, kind, part), rows, width);
                let scores = self.scores(&spec, kind, layers.start);
                args.extend([self.hidden_layer(own, width), scores, Arg::U32(rows as u32)]);
                args
            })
            .collect();
        self.launch(None, predictor::output(&spec, &predictor, &kinds), args.concat());
        self.select(&spec, &kinds, layers);
    }

    /// Scores of a layer.
    fn scores(&mut self, spec: &KernelSpec, kind: Kind, layer: usize) -> Arg {
        let units = predictor::units(spec, kind);
        self.at(Role::Scores(kind), 4 * spec.sizes.layers * units, 4 * layer * units)
    }

    /// The hidden layer of a kind, or the trunk.
    fn hidden_layer(&mut self, kind: Option<Kind>, width: usize) -> Arg {
        let name = match kind {
            None => "trunk",
            Some(Kind::Heads) => "hidden layer of heads",
            Some(Kind::Neurons) => "hidden layer of neurons",
        };
        self.all(Role::Scratch(name), 4 * width)
    }

    /// Weight, scale and bias of a predictor's layer.
    fn layer_tensors(
        &mut self,
        predictor: &PredictorSpec,
        part: impl Fn(Part) -> Tensor,
        rows: usize,
        n: usize,
    ) -> Vec<Arg> {
        let mut args = vec![self.tensor(part(Part::Weight), rows * predictor.format.row_bytes(n))];
        if predictor.format == WeightFormat::Int8 {
            args.push(self.tensor(part(Part::RowScale), 4 * rows));
        }
        if predictor.bias {
            args.push(self.tensor(part(Part::Bias), 4 * rows));
        }
        args
    }

    /// The hidden layers of these kinds, or the trunk.
    fn hidden(&mut self, spec: &KernelSpec, predictor: &PredictorSpec, station: usize, kinds: &[Option<Kind>]) {
        let n = predictor.inputs(spec);
        let args: Vec<Vec<Arg>> = kinds
            .iter()
            .map(|&kind| {
                let width = predictor.hidden_width(kind);
                let tensors = |part| Tensor::Hidden(station, kind, part);
                let mut args = self.layer_tensors(predictor, tensors, width, n);
                args.push(match predictor.input {
                    PredictorInput::Residual => self.residual(),
                    PredictorInput::Contexts => self.contexts(),
                });
                if predictor.normalization == predictor::Normalization::Standardize {
                    args.push(self.tensor(Tensor::Mean(station), 4 * n));
                    args.push(self.tensor(Tensor::Scale(station), 4 * n));
                }
                args.extend([self.hidden_layer(kind, width), Arg::U32(width as u32)]);
                args
            })
            .collect();
        self.launch(None, predictor::hidden(spec, predictor, kinds), args.concat());
    }

    /// The lists of these kinds for `layers`.
    fn select(&mut self, spec: &KernelSpec, kinds: &[Kind], layers: std::ops::Range<usize>) {
        let most = self.program.predictor.as_ref().map_or(0, |p| p.layers(spec, 0).len());
        let grid = [layers.len() as u32, kinds.len() as u32];
        let status = self.status();
        let places: Vec<Places> = kinds
            .iter()
            .map(|&kind| {
                let (second, all) = (usize::from(kind == Kind::Neurons), spec.sizes.layers);
                Places {
                    common: [self.scores(spec, kind, layers.start), self.at(Role::Budget, 16, 8 * second)],
                    lists: [
                        self.list(kind, layers.start),
                        self.at(Role::Counts, 8 * all, 8 * layers.start + 4 * second),
                    ],
                    kind,
                }
            })
            .collect();
        let launch = |builder: &mut Self, kernel: Kernel, args: &dyn Fn(&mut Self, &Places) -> Vec<Arg>| {
            let args: Vec<Arg> =
                places.iter().flat_map(|places| [places.common.to_vec(), args(builder, places)].concat()).collect();
            builder.launch_on(None, kernel, grid, args);
        };
        if spec.scope == Scope::Local {
            let kernel = select::local(spec, kinds, most);
            return launch(self, kernel, &|_, places| [&[status], &places.lists[..]].concat());
        }
        let [cut, histogram, ties, collect] = select::global(spec, kinds, most);
        launch(self, cut, &|builder, places| vec![status, builder.cuts(places), builder.bins(places)]);
        for digit in 0..select::DIGITS as u32 {
            launch(self, histogram.clone(), &|builder, places| {
                vec![builder.cuts(places), builder.bins(places), Arg::U32(digit)]
            });
        }
        launch(self, ties, &|builder, places| vec![builder.cuts(places), builder.bins(places), builder.rest(places)]);
        launch(self, collect, &|builder, places| {
            [&[builder.cuts(places), builder.rest(places)], &places.lists[..]].concat()
        });
    }

    /// Cuts of all layers.
    fn cuts(&mut self, places: &Places) -> Arg {
        let names = ["cuts of heads", "cuts of neurons"];
        let bytes = 16 * self.spec().sizes.layers;
        self.all(Role::Scratch(places.name(names)), bytes)
    }

    fn bins(&mut self, places: &Places) -> Arg {
        let names = ["histograms of heads", "histograms of neurons"];
        self.all(Role::Scratch(places.name(names)), 4 * select::DIGITS * select::BINS)
    }

    /// The cut that all layers have in common.
    fn rest(&mut self, places: &Places) -> Arg {
        let names = ["common cut of heads", "common cut of neurons"];
        self.all(Role::Scratch(places.name(names)), 8)
    }
}

/// Where the selection of a kind reads and writes.
struct Places {
    kind: Kind,
    /// Scores and budget.
    common: [Arg; 2],
    /// Lists and their lengths.
    lists: [Arg; 2],
}

impl Places {
    fn name(&self, [heads, neurons]: [&'static str; 2]) -> &'static str {
        match self.kind {
            Kind::Heads => heads,
            Kind::Neurons => neurons,
        }
    }
}
