//! The compiler where it is installed, and what is said where it is not.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs;
use std::path::Path;

use shadowllm_nvrtc::{Error, Nvrtc, Options};

const SUM: &str = r#"
extern "C" __global__ void __launch_bounds__(64) sum(const float* __restrict__ x, float* __restrict__ y) {
    __shared__ float part[64];
    part[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (int i = 0; i < 64; i++) total = fmaf(part[i], part[i], total);
        y[0] = total;
    }
}
"#;

/// The compiler, or the word that the test is skipped.
fn installed() -> Option<Nvrtc> {
    match Nvrtc::open() {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

#[test]
fn text_becomes_ptx_and_machine_code_with_facts() {
    let Some(nvrtc) = installed() else { return };
    for arch in [80, 90] {
        let compiled = nvrtc.compile(SUM, &Options::new(arch)).unwrap();
        assert!(compiled.ptx.contains(&format!(".target sm_{arch}")) && compiled.ptx.contains(".entry sum("));
        assert!(compiled.ptx.contains("fma.rn.f32"));
        assert_eq!(&compiled.cubin[..4], b"\x7fELF");
        let [sum] = compiled.kernels.as_slice() else { panic!("{:?}", compiled.kernels) };
        assert_eq!((sum.name.as_str(), sum.shared, sum.stack, sum.spills()), ("sum", 256, 0, false));
        assert!(sum.registers > 0 && sum.barriers == 1);
        assert!(compiled.warnings.is_empty());
    }
    // What is not written as fmaf is not fused.
    let separate = SUM.replace("fmaf(part[i], part[i], total)", "part[i] * part[i] + total");
    assert!(!nvrtc.compile(&separate, &Options::new(80)).unwrap().ptx.contains("fma.rn.f32"));
}

#[test]
fn programs_compile_side_by_side_as_alone() {
    let Some(nvrtc) = installed() else { return };
    let options = Options::new(90);
    let sources: Vec<String> = (0..5).map(|i| SUM.replace("sum(", &format!("sum_{i}("))).collect();
    let compiled = nvrtc.compile_all(&sources, &options).unwrap();
    assert_eq!(compiled.len(), sources.len());
    for (source, compiled) in sources.iter().zip(compiled) {
        assert!(compiled == nvrtc.compile(source, &options).unwrap());
    }
    assert!(nvrtc.compile_all(&[], &options).unwrap().is_empty());

    let broken = [sources[0].clone(), "first".to_owned(), sources[1].clone(), "second".to_owned()];
    let error = nvrtc.compile_all(&broken, &options).unwrap_err();
    assert!(matches!(&error, Error::Rejected { log, .. } if log.contains("first")), "{error}");
}

#[test]
fn errors_carry_the_compilers_words() {
    let Some(nvrtc) = installed() else { return };
    let version = nvrtc.version();

    let rejected = nvrtc.compile("extern \"C\" __global__ void k() { x = 1; }", &Options::new(80)).unwrap_err();
    let expected = format!(
        "NVRTC {version} rejects the CUDA source for sm_80:\nshadowllm.cu(1): error: identifier \"x\" is undefined"
    );
    assert!(rejected.to_string().starts_with(&expected), "{rejected}");

    let wrong_asm = "extern \"C\" __global__ void k() { asm volatile(\"nonsense.f32;\"); }";
    let rejected = nvrtc.compile(wrong_asm, &Options::new(80)).unwrap_err();
    assert!(matches!(&rejected, Error::Rejected { log, .. } if log.contains("nonsense")), "{rejected}");

    let unused = "extern \"C\" __global__ void k() { int unused; }";
    let warned = nvrtc.compile(unused, &Options::new(80)).unwrap_err();
    let expected = format!("NVRTC {version} warns of the CUDA source for sm_80:\nshadowllm.cu(1): warning #");
    assert!(warned.to_string().starts_with(&expected), "{warned}");
    let allowed = nvrtc.compile(unused, &Options { arch: 80, deny_warnings: false }).unwrap();
    assert!(allowed.warnings[0].contains("\"unused\""), "{:?}", allowed.warnings);

    let unknown = nvrtc.compile(SUM, &Options::new(20)).unwrap_err().to_string();
    assert!(unknown.starts_with(&format!("NVRTC {version} cannot compile for sm_20, only for sm_")), "{unknown}");
    assert!(unknown.ends_with(": install a newer NVRTC"), "{unknown}");

    let zero = nvrtc.compile("\0", &Options::new(80)).unwrap_err().to_string();
    assert_eq!(zero, "the CUDA source has a zero byte at offset 0: it must be text");
}

#[test]
fn without_a_library_one_sentence_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let message = |path: &Path| Nvrtc::open_at(Some(path)).unwrap_err().to_string();
    let missing = dir.path().join("nowhere");
    assert_eq!(
        message(&missing),
        format!(
            "SHADOWLLM_NVRTC is {}, which does not exist: set it to the file libnvrtc.so.12 or its folder",
            missing.display()
        )
    );
    assert_eq!(
        message(dir.path()),
        format!(
            "SHADOWLLM_NVRTC is {}, where there is no libnvrtc.so.*: set it to the file libnvrtc.so.12 or its folder",
            dir.path().display()
        )
    );
    let text = dir.path().join("libnvrtc.so.12");
    fs::write(&text, "not a library").unwrap();
    for path in [text.as_path(), dir.path()] {
        let message = message(path);
        assert!(message.starts_with("NVRTC cannot be opened ("), "{message}");
        assert!(
            message.ends_with("): install it again, or set SHADOWLLM_NVRTC to another libnvrtc.so.12"),
            "{message}"
        );
    }
    let absent = Error::NotInstalled { names: "libnvrtc.so.12".into(), folders: "/usr/local/cuda".into() };
    assert_eq!(
        absent.to_string(),
        "there is no NVRTC on this system (looked for libnvrtc.so.12 where the system finds libraries and below \
         /usr/local/cuda): install the CUDA toolkit, or run `pip install nvidia-cuda-nvrtc-cu12` and set SHADOWLLM_NVRTC \
         to the folder of libnvrtc.so.12"
    );
}
