//! Compiles the CUDA sources of the tests again: `cargo run -p shadowllm-emulator --example fixtures`, with `SHADOWLLM_NVRTC` naming
//! the folder of NVRTC 12.9 where the system has none.

use std::path::Path;

use shadowllm_nvrtc::{Nvrtc, Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let nvrtc = Nvrtc::open()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for entry in folder.read_dir()? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        let source = std::fs::read_to_string(&path)?;
        for arch in [80, 90, 100] {
            let compiled = nvrtc.compile(&source, &Options::new(arch))?;
            std::fs::write(path.with_extension(format!("sm_{arch}.ptx")), compiled.ptx)?;
        }
    }
    Ok(())
}
