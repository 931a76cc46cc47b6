//! The model inside the library: the first command a newcomer types must produce text without a network.

/// Bytes that start at a multiple of 64, as the widest vector loads like them and typed views need them.
#[repr(C, align(64))]
struct Aligned<B: ?Sized>(B);

static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../embedded/tiny-opt/model.safetensors"));

/// What [`crate::Checkpoint::location`] says.
pub(crate) const LOCATION: &str = "embedded:tiny-opt";
/// `config.json`.
pub(crate) const CONFIG: &[u8] = include_bytes!("../embedded/tiny-opt/config.json");
/// `generation_config.json`.
pub(crate) const GENERATION_CONFIG: &[u8] = include_bytes!("../embedded/tiny-opt/generation_config.json");
/// A predictor for the model.
pub(crate) const PREDICTOR: &[u8] = include_bytes!("../embedded/tiny-opt/predictor.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../embedded/tiny-opt/tokenizer.json");

/// `model.safetensors`, 64-byte aligned.
pub(crate) fn model() -> &'static [u8] {
    &MODEL.0
}

/// A file beside the weights.
pub(crate) fn side_file(name: &str) -> Option<&'static [u8]> {
    match name {
        "config.json" => Some(CONFIG),
        "generation_config.json" => Some(GENERATION_CONFIG),
        "tokenizer.json" => Some(TOKENIZER),
        _ => None,
    }
}
