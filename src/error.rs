//! Everything that can go wrong in the engine, one variant each.

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the engine could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint could not be found, read or written.
    #[error(transparent)]
    Weights(#[from] shadowllm_weights::Error),
    /// The kernels cannot run as asked on this processor.
    #[error(transparent)]
    Kernel(#[from] crate::kernels::KernelError),
    /// A tensor has not the form that it is used in.
    #[error(transparent)]
    Tensor(#[from] crate::tensor::TensorError),
    /// Text, sampling or chat settings are wrong.
    #[error(transparent)]
    Generate(#[from] crate::generate::GenerateError),
    /// Nothing can be learned as it was asked for.
    #[error(transparent)]
    Learn(#[from] crate::learn::LearnError),
    /// Something cannot be evaluated as it was asked for.
    #[error(transparent)]
    Eval(#[from] crate::eval::EvalError),
    /// A device cannot be used, or not for what was asked.
    #[error(transparent)]
    Gpu(#[from] crate::gpu::GpuError),
    /// A measurement of speed cannot be made as it was asked for.
    #[cfg(feature = "cli")]
    #[error(transparent)]
    Bench(#[from] crate::bench::BenchError),
    /// An operation on tokens was given none.
    #[error("no tokens were given; a prompt needs at least one (an empty text has none unless the tokenizer adds one)")]
    NoTokens,
    /// A token id is not in the model's vocabulary.
    #[error("token id {id} at index {at} is out of range: the model's vocabulary has {vocab} entries (0 to {})", vocab - 1)]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Its place among the tokens given.
        at: usize,
        /// Entries of the vocabulary.
        vocab: usize,
    },
    /// The tokens do not fit into the context.
    #[error(
        "the context is full: it holds {context} tokens, {held} are in it and {more} more were asked for; \
         shorten the text, start a new session or truncate this one"
    )]
    ContextFull {
        /// Tokens that the session's context holds.
        context: usize,
        /// Tokens already in it.
        held: usize,
        /// Tokens that were to be added.
        more: usize,
    },
    /// A dense pass was asked for on a cache in which heads lack positions that sparse tokens left out.
    #[error("some heads of the key/value cache lack positions of sparse tokens; fill it first (Model::fill_cache)")]
    CacheIncomplete,
    /// A session was asked for a context longer than the model's.
    #[error("a context of {asked} tokens was asked for, but the model has {max} positions; use at most {max}")]
    ContextTooLong {
        /// Context asked for.
        asked: usize,
        /// Positions of the model.
        max: usize,
    },
    /// The checkpoint has no tokenizer, so text cannot be turned into tokens.
    #[error("{location} has no tokenizer.json; work with token ids instead (--prompt-ids, --ids), or add the file")]
    NoTokenizer {
        /// The checkpoint.
        location: String,
    },
    /// The model cannot chat.
    #[error("{location}: {reason}")]
    NoChatTemplate {
        /// The checkpoint.
        location: String,
        /// Why there is no usable template.
        reason: String,
    },
    /// Packed weights belong to a model of another shape.
    #[error("these packed weights have {found} {what}, the model has {expected}; pack the model that is loaded")]
    PackedShape {
        /// What differs.
        what: &'static str,
        /// In the packed weights.
        found: usize,
        /// In the model.
        expected: usize,
    },
    /// A file of prompts without any.
    #[error("{} has no prompts; write one on each line", path.display())]
    NoPrompts {
        /// The file.
        path: std::path::PathBuf,
    },
    /// A batch of sequences that is too large, or empty.
    #[error("a batch of {found} sequences was asked for; at least 1 and at most {most} are run at once")]
    BatchSize {
        /// Sequences given.
        found: usize,
        /// Most that are taken.
        most: usize,
    },
    /// A batch with another number of tokens than sequences.
    #[error("{tokens} tokens were given for {sessions} sessions; a batch takes one token of each")]
    BatchTokens {
        /// Sessions given.
        sessions: usize,
        /// Tokens given.
        tokens: usize,
    },
    /// A batch of sessions that do not belong together.
    #[error(
        "session {index} of the batch {reason}; sessions that are stepped together share one engine and one packed model"
    )]
    BatchMixed {
        /// The first session that does not belong to the others.
        index: usize,
        /// Why.
        reason: &'static str,
    },
    /// Packed weights of another model than the one that is loaded.
    #[error(
        "{}: these packed weights are of the model {found}, but the one that is loaded is {expected}; pack that one",
        path.display()
    )]
    PackedModel {
        /// The packed file.
        path: std::path::PathBuf,
        /// Whose weights were packed.
        found: crate::sparsity::ModelIdentity,
        /// Whose weights are loaded.
        expected: crate::sparsity::ModelIdentity,
    },
    /// Prompts were to be sparse and to decide.
    #[error(
        "with refresh prompt the last prompt token decides, so a prompt cannot be sparse itself; \
         use prefill dense, or refresh every N tokens"
    )]
    PromptDecides,
    /// A policy was named without what it decides by.
    #[error("the policy {policy} needs {option}")]
    PolicyNeeds {
        /// The policy.
        policy: &'static str,
        /// The option that is missing.
        option: &'static str,
    },
    /// A plan was to be shown, but of no prompt.
    #[error("a plan is made for a token: give a prompt with --prompt TEXT or --prompt-ids ID,ID,...")]
    PlanNeedsPrompt,
    /// A model shape that is not in the list.
    #[error("unknown shape {found:?}; known are {known}")]
    UnknownShape {
        /// The name as given.
        found: String,
        /// All names.
        known: String,
    },
    /// A model that is no GGUF file, to be converted to a type of full precision.
    #[error(
        "{model} is a model already, and models are converted to int8 only, not to {dtype}; other types are for GGUF files"
    )]
    ImportsToInt8 {
        /// The model.
        model: String,
        /// The type that was asked for.
        dtype: shadowllm_weights::DType,
    },
    /// A file or stream could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "write to".
        action: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A policy of a sweep that cannot be read.
    #[error("policy {found:?} {reason}")]
    SweepPolicy {
        /// As given.
        found: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// Decoding was to be timed over weights that are not packed.
    #[error(
        "sparse decoding is timed over packed weights, but this engine has none; use Engine::over or Engine::load_packed"
    )]
    NotPacked,
    /// Examples were asked for, but not said where from.
    #[error("examples for {task} are wanted, but no file of them was given; use --shots-from {task}=FILE")]
    NoShots {
        /// The task.
        task: &'static str,
    },
    /// The work was interrupted on request.
    #[error("interrupted")]
    Interrupted,
    // Contextual sparsity.
    /// A budget's fraction that means nothing.
    #[error("the fraction of {units} to keep is {value}; expected a number over 0 and at most 1, where 1 keeps all")]
    BudgetFraction {
        /// "heads" or "neurons".
        units: &'static str,
        /// The fraction.
        value: f32,
    },
    /// A budget scope that is not in the list.
    #[error("unknown budget {found:?}; expected local (the same count in every layer) or global")]
    UnknownScope {
        /// The name as given.
        found: String,
    },
    /// A refresh interval that is not in the list.
    #[error("unknown refresh {found:?}; expected a number of tokens (1 decides for every token) or prompt")]
    UnknownRefresh {
        /// As given.
        found: String,
    },
    /// A plan made for another number of layers.
    #[error("the plan has {found} layers, but the model has {expected}; make it for this model")]
    PlanLayers {
        /// Layers of the plan.
        found: usize,
        /// Layers of the model.
        expected: usize,
    },
    /// A list of kept units that cannot be executed.
    #[error("plan of layer {layer}, {units}: {reason}")]
    PlanList {
        /// The layer.
        layer: usize,
        /// "heads" or "neurons".
        units: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Scores of a model of another shape.
    #[error("{found} scores for {units} were given; a model of {layers} layers of {width} {units} needs {}", layers * width)]
    ScoresLength {
        /// "heads" or "neurons".
        units: &'static str,
        /// Scores given.
        found: usize,
        /// `L`.
        layers: usize,
        /// Units of one layer.
        width: usize,
    },
    /// A budget prunes units that the scores say nothing about.
    #[error(
        "the scores rank no {units}, but the budget keeps only {kept} of them; keep all {units}, or use scores of a criterion that ranks them"
    )]
    ScoresLack {
        /// "heads" or "neurons".
        units: &'static str,
        /// The budget's fraction.
        kept: f32,
    },
    /// A score that cannot be ranked.
    #[error("the score of {unit} {index} of layer {layer} is {value}; scores must be finite numbers")]
    BadScore {
        /// "head" or "neuron".
        unit: &'static str,
        /// Its layer.
        layer: usize,
        /// Its index in the layer.
        index: usize,
        /// `NaN`, `inf` or `-inf`.
        value: f32,
    },
    /// Something is wrong inside one file; the source says what.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong in it.
        source: Box<Error>,
    },
    /// An entry of a file's metadata is missing or wrong.
    #[error("metadata {key}: {reason}")]
    FileMetadata {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor that a scores or predictor file must have.
    #[error("there is no tensor {name}; the file has {known}")]
    FileTensorMissing {
        /// The name.
        name: String,
        /// What is there instead.
        known: String,
    },
    /// A tensor of a scores or predictor file that does not fit the model.
    #[error("tensor {name} has shape {found:?}, but this model needs {expected:?}; the file is for another model")]
    FileTensorShape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
    },
    /// A tensor of a scores or predictor file of a type that it cannot have.
    #[error("tensor {name} has type {found}; expected {expected}")]
    FileTensorType {
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
        /// Types that it can have.
        expected: &'static str,
    },
    /// A tensor that a predictor file cannot have: perhaps misspelt, and silently unused.
    #[error(
        "tensor {name} has no meaning in a predictor file with these stations and this normalization; remove or rename it"
    )]
    FileTensorUnknown {
        /// The tensor.
        name: String,
    },
    /// A predictor file of another version of the format.
    #[error(
        "predictor format version {found}; this program reads version {expected}: train the predictor again or use the program it was made with"
    )]
    PredictorVersion {
        /// Version of the file.
        found: u64,
        /// Version that is read.
        expected: u32,
    },
    /// Weights that are no predictor.
    #[error("the predictor cannot be written: {reason}")]
    PredictorWeights {
        /// What does not fit.
        reason: String,
    },
    /// A predictor was given an input of another width.
    #[error("the predictor reads {expected} values, but was given {found}")]
    PredictorInput {
        /// Values given.
        found: usize,
        /// Values that it reads.
        expected: usize,
    },
    /// A budget prunes units that the predictor cannot rank.
    #[error(
        "the predictor ranks no {units}, but the budget keeps only {kept} of them; keep all {units}, or use another predictor"
    )]
    PredictorLacks {
        /// "heads" or "neurons".
        units: &'static str,
        /// The budget's fraction.
        kept: f32,
    },
    /// A limit of what sparsity may cost that is none.
    #[error(
        "the largest increase in perplexity is {found:?}; expected a percentage such as 5% or a fraction from 0 to 1 such as 0.05"
    )]
    MaxIncrease {
        /// As given.
        found: String,
    },
    /// A budget was to be chosen by what a predictor costs, which was never measured.
    #[error(
        "this predictor was never validated, so no budget can be chosen by what it costs; run `shadowllm validate` on it with text \
         of the kind that will be generated, or choose a budget with --keep"
    )]
    NeverValidated,
    /// A budget was to be chosen by what a predictor costs, for a policy without one.
    #[error(
        "--max-ppl-increase chooses a budget by what a predictor was measured to cost, and the policy {policy} has no predictor; \
         use --policy shadow or dejavu, or choose a budget with --keep"
    )]
    IncreaseNeedsPredictor {
        /// The policy.
        policy: String,
    },
    /// What is compiled in was to be written.
    #[error(
        "the embedded predictor is a part of the program and cannot be rewritten; name another file with --out FILE"
    )]
    EmbeddedPredictorStays,
    /// A predictor whose stations the policy cannot work with.
    #[error("the predictor has stations after layers {found:?}; policy {policy} needs {expected}")]
    PredictorStations {
        /// The policy.
        policy: &'static str,
        /// Stations of the predictor.
        found: Vec<usize>,
        /// Stations that it needs.
        expected: &'static str,
    },
    /// Gate skip on a model without gates.
    #[error(
        "gate skip needs a gated FFN, such as Llama's, and this {architecture} model has none; \
         its ReLU skip, which is exact, is on by default"
    )]
    NotGated {
        /// Of the model.
        architecture: &'static str,
    },
    /// A fraction of neurons to skip by their gate that was not calibrated.
    #[error(
        "the fraction of neurons to skip by their gate is {value}; expected a number from 0, which skips none, to {most}"
    )]
    GateFraction {
        /// The fraction.
        value: f32,
        /// The largest calibrated one.
        most: f32,
    },
    /// Gate thresholds of a model of another shape.
    #[error(
        "the gate thresholds are for {} layers of {} neurons, but the model has {} layers of {}; \
         calibrate them for this model",
        found.0, found.1, expected.0, expected.1
    )]
    GateShape {
        /// Layers and neurons of a layer that the thresholds are for.
        found: (usize, usize),
        /// Those of the model.
        expected: (usize, usize),
    },
    /// Values of a file of gate thresholds that cannot be.
    #[error("no usable gate thresholds: {reason}; make the file again with `shadowllm calibrate-gate`")]
    GateFile {
        /// What is wrong.
        reason: String,
    },
    /// A statistic of gates that is not in the list.
    #[error("unknown statistic {found:?}; expected weighted or plain")]
    UnknownGateStatistic {
        /// The name as given.
        found: String,
    },
    /// A text that cannot be calibrated on.
    #[error("{reason}")]
    CalibrationText {
        /// What does not fit, and what would.
        reason: String,
    },
    /// A gate that is no number, so that nothing can be said of its size.
    #[error(
        "the gates of layer {layer} are not finite: the forward pass broke down; \
         check the checkpoint for NaN, infinite or wrongly converted weights"
    )]
    BadGates {
        /// The layer.
        layer: usize,
    },
    /// The state of a run that was stopped would be overwritten.
    #[error("{} holds the state of a run that was stopped; go on with --resume, or remove the file to begin anew", path.display())]
    StateExists {
        /// The state.
        path: std::path::PathBuf,
    },
    /// A scores or predictor file that was made for another model.
    #[error("made for the model {found}, but this model is {expected}; use a file that was made for this model")]
    OtherModel {
        /// Fingerprint in the file.
        found: crate::sparsity::ModelIdentity,
        /// Fingerprint of the model.
        expected: crate::sparsity::ModelIdentity,
    },
}

impl Error {
    /// The error as one of `path`.
    pub(crate) fn in_file(self, path: &std::path::Path) -> Error {
        Error::InFile { path: path.to_owned(), source: Box::new(self) }
    }
}
