//! The fixtures are what the compiler makes of their sources today.

use shadowllm_nvrtc::{Nvrtc, Options};

use crate::support::{folder, ptx};

/// Version of the compiler that made the fixtures; another one writes other PTX.
const VERSION: &str = "12.9";

/// Without NVRTC of that version this is skipped. After a change of a source: `cargo run -p shadowllm-emulator --example fixtures`.
#[test]
#[allow(clippy::print_stderr)]
fn fixtures_are_fresh() {
    let nvrtc = match Nvrtc::open() {
        Ok(nvrtc) if nvrtc.version() == VERSION => nvrtc,
        Ok(nvrtc) => {
            eprintln!("skipped: the fixtures are of NVRTC {VERSION}, here is {}", nvrtc.version());
            return;
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    let mut sources = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        sources += 1;
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let source = std::fs::read_to_string(&path).unwrap();
        for arch in [80, 90, 100] {
            let compiled = nvrtc.compile(&source, &Options::new(arch)).unwrap();
            let fixture = ptx(&name, &format!("sm_{arch}"));
            assert!(compiled.ptx == fixture, "{name} for sm_{arch} differs: make the fixtures again");
        }
    }
    assert_eq!(sources, 12);
}
