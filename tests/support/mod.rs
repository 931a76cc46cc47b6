//! What several integration tests need. Each test file uses a part of it.

#![allow(dead_code, clippy::unwrap_used, clippy::print_stdout)]

use std::path::PathBuf;

use shadowllm::kernels::IsaName;

/// The folder with references and texts that is not part of the repository, or `None` after saying so.
pub fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("SHADOWLLM_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared")), PathBuf::from);
    let path = root.join(name);
    if !path.exists() {
        println!("skipped: ../shared/{name} is not there");
        return None;
    }
    Some(path)
}

/// A directory named by an environment variable, or `None` after saying so.
pub fn directory(variable: &str) -> Option<PathBuf> {
    let directory = std::env::var_os(variable).map(PathBuf::from);
    if directory.is_none() {
        println!("skipped: {variable} is not set");
    }
    directory
}

/// Features of the narrowest random model. Two ways to add up differ by a last bit, and a norm divides that by the spread of
/// what it gets: over two or three values the spread is near zero often enough that no bound would hold.
pub const NARROWEST: usize = 8;

/// Every instruction set of this processor, or the one that the environment asks for.
pub fn isas() -> Vec<IsaName> {
    match std::env::var("SHADOWLLM_ISA") {
        Ok(name) => vec![name.parse().unwrap()],
        Err(_) => IsaName::available().collect(),
    }
}

/// Largest absolute difference; NaN counts as infinite.
pub fn largest_difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, |a, b| if b.is_nan() { f32::INFINITY } else { a.max(b) })
}
