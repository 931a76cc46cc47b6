//! Sizes that a model can have. A hostile or damaged configuration must fail here, not in an allocation or a multiplication later.

use super::{ModelConfig, Positions};
use crate::{Error, Result};

/// Largest values accepted; each is an order of magnitude over any published model.
const LIMITS: [(&str, u64); 8] = [
    ("num_hidden_layers", 1 << 14),
    ("num_attention_heads", 1 << 16),
    ("num_key_value_heads", 1 << 16),
    ("head_dim", 1 << 16),
    ("hidden_size", 1 << 20),
    ("ffn width", 1 << 24),
    ("vocab_size", (1 << 31) - 1),
    ("max_position_embeddings", 1 << 31),
];

/// Window of each layer; refuses absurd numbers of layers before it allocates.
pub(super) fn windows(layers: usize, window: impl Fn(usize) -> Option<usize>) -> Result<Vec<Option<usize>>> {
    let (name, limit) = LIMITS[0];
    at_most(name, layers, limit)?;
    Ok((0..layers).map(window).collect())
}

fn at_most(name: &str, found: usize, limit: u64) -> Result<()> {
    if found as u64 > limit {
        return Err(impossible(format!("{name} is {found}; the most that is accepted is {limit}")));
    }
    Ok(())
}

fn impossible(reason: String) -> Error {
    Error::ConfigImpossible { reason }
}

/// Checks sizes against the limits and each other. All were read as at least 1.
pub(super) fn check(config: &mut ModelConfig) -> Result<()> {
    let found = [
        config.layers,
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.hidden,
        config.ffn,
        config.vocab,
        config.max_positions,
    ];
    for ((name, limit), found) in LIMITS.into_iter().zip(found) {
        at_most(name, found, limit)?;
    }
    at_most("word_embed_proj_dim", config.embed_dim, 1 << 20)?;
    if !config.heads.is_multiple_of(config.kv_heads) {
        return Err(impossible(format!(
            "num_attention_heads is {}, which is no multiple of num_key_value_heads {}",
            config.heads, config.kv_heads
        )));
    }
    if matches!(config.positions, Positions::Rope(_)) && !config.head_dim.is_multiple_of(2) {
        return Err(impossible(format!("head_dim is {}, but rotary positions need an even one", config.head_dim)));
    }
    check_products(config)?;
    check_tokens(config)
}

/// Every matrix and the longest key/value cache in f32 must be addressable.
fn check_products(config: &ModelConfig) -> Result<()> {
    let products: [(&str, &[usize]); 5] = [
        ("the embedding table", &[config.vocab, config.embed_dim.max(config.hidden)]),
        ("a query matrix", &[config.heads, config.head_dim, config.hidden]),
        ("an FFN matrix", &[config.ffn, config.hidden]),
        ("the position table", &[config.max_positions, config.hidden.max(config.head_dim)]),
        ("the key/value cache", &[2, config.layers, config.kv_heads, config.head_dim, config.max_positions]),
    ];
    for (what, sizes) in products {
        let bytes = sizes.iter().try_fold(size_of::<f32>(), |n, &size| n.checked_mul(size));
        if bytes.is_none_or(|n| n > isize::MAX as usize) {
            return Err(impossible(format!("{what} of {sizes:?} values is larger than any memory")));
        }
    }
    Ok(())
}

/// Token ids that no logit belongs to are mistakes, except that old files put the padding token outside the vocabulary.
pub(super) fn check_tokens(config: &mut ModelConfig) -> Result<()> {
    let outside = |id: &u32| *id as usize >= config.vocab;
    for (key, id) in
        config.bos.iter().map(|id| ("bos_token_id", id)).chain(config.eos.iter().map(|id| ("eos_token_id", id)))
    {
        if outside(id) {
            return Err(impossible(format!("{key} is {id}, but vocab_size is {}", config.vocab)));
        }
    }
    config.pad = config.pad.filter(|id| !outside(id));
    Ok(())
}
