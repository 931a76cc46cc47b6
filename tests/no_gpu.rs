//! What the program says where there is no GPU that it can use: with a driver library made here that says what it is told to.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "support/program.rs"]
mod program;

use std::path::Path;
use std::process::Command;

use program::{Run, command, finish};

/// The driver of a machine that `FAKE_CUDA` describes. Only what is called before a model is copied.
const DRIVER: &str = r#"
#include <stdlib.h>
#include <string.h>
static int is(const char *what) { const char *v = getenv("FAKE_CUDA"); return v && !strcmp(v, what); }
int cuInit(unsigned flags) { return is("stub") ? 34 : is("no-device") ? 100 : is("broken") ? 999 : 0; }
int cuDriverGetVersion(int *v) { *v = is("old") ? 11040 : 12040; return 0; }
int cuGetErrorString(int e, const char **s) { *s = e == 999 ? "unknown error" : "other"; return 0; }
int cuDeviceGetCount(int *n) { *n = is("none") ? 0 : 1; return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Fake GPU", n); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? (is("turing") ? 7 : 8) : a == 76 ? (is("turing") ? 5 : 0) : 0; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)1; return 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { return 0; }
int cuCtxSetCurrent(void *c) { return 0; }
int cuStreamCreate(void **s, unsigned f) { *s = (void *)1; return 0; }
int cuStreamSynchronize(void *s) { return 0; }
int cuStreamDestroy_v2(void *s) { return 0; }
int cuMemGetInfo_v2(size_t *f, size_t *t) { *f = 1000000; *t = 8000000000; return 0; }
"#;

/// Builds a library with these functions, or says that there is no compiler.
fn library(folder: &Path, source: &str) -> Option<()> {
    let file = folder.join("driver.c");
    std::fs::write(&file, source).unwrap();
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-w", "-o"]).arg(folder.join("libcuda.so.1")).arg(&file).status();
    match built {
        Ok(status) if status.success() => {
            std::fs::copy(folder.join("libcuda.so.1"), folder.join("libcuda.so")).unwrap();
            Some(())
        }
        _ => {
            println!("skipped: there is no C compiler `cc`");
            None
        }
    }
}

/// Generates a little on a device, with the libraries of a folder.
fn generate(device: &str, libraries: &Path, machine: &str, nvrtc: &str) -> Run {
    let mut command = command(&["generate", "Once upon a time", "-n", "4", "--device", device]);
    command.env("LD_LIBRARY_PATH", libraries).env("FAKE_CUDA", machine).env("SHADOWLLM_NVRTC", nvrtc);
    finish(command, "")
}

struct Case {
    machine: &'static str,
    device: &'static str,
    message: &'static str,
}

#[test]
fn everything_that_may_be_missing_is_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let Some(()) = library(folder.path(), DRIVER) else { return };
    let cases = [
        Case {
            machine: "stub",
            device: "cuda",
            message: "the libcuda that was found is the stub of the CUDA toolkit, which is for linking only: take its folder out of \
                      LD_LIBRARY_PATH or install the NVIDIA driver, or use --device cpu",
        },
        Case {
            machine: "no-device",
            device: "cuda:0",
            message: "the NVIDIA driver finds no GPU (check `nvidia-smi` and CUDA_VISIBLE_DEVICES); use --device cpu without one",
        },
        Case {
            machine: "none",
            device: "cuda",
            message: "the NVIDIA driver finds no GPU (check `nvidia-smi` and CUDA_VISIBLE_DEVICES); use --device cpu without one",
        },
        Case {
            machine: "broken",
            device: "cuda",
            message: "the NVIDIA driver failed to start: unknown error (CUDA_ERROR_UNKNOWN)",
        },
        Case {
            machine: "old",
            device: "cuda",
            message: "the NVIDIA driver is too old: it supports CUDA 11.4, but ShadowLLM needs CUDA 12.0 or newer; update the driver, \
                      or use --device cpu",
        },
        Case {
            machine: "",
            device: "cuda:3",
            message: "there is no GPU number 3: the NVIDIA driver finds 1, numbered from 0",
        },
        Case {
            machine: "turing",
            device: "cuda",
            message: "cuda:0 (Fake GPU) is of compute capability 7.5, for which there are no kernels (supported are 8.0 and newer); use \
                      --device cpu",
        },
        Case {
            machine: "",
            device: "cuda",
            message: "the kernels cannot be compiled: SHADOWLLM_NVRTC is no-such-folder, which does not exist: set it to the file \
                      libnvrtc.so.12 or its folder",
        },
    ];
    for Case { machine, device, message } in cases {
        let run = generate(device, folder.path(), machine, "no-such-folder");
        assert_eq!((run.code, run.out.as_str()), (Some(3), ""), "{machine}: {}", run.err);
        assert_eq!(run.err, format!("error: {message}\n"), "{machine}");
    }
}

#[test]
fn without_a_driver_auto_works_on_the_cpu_and_says_so_once() {
    let folder = tempfile::tempdir().unwrap();
    // Whatever the machine has, this is found first, and is no driver.
    let Some(()) = library(folder.path(), "int nothing;") else { return };
    let message =
        "the libcuda that was found has no function cuInit: install the NVIDIA driver again, or use --device cpu";
    let auto = generate("auto", folder.path(), "", "no-such-folder");
    assert_eq!(auto.code, Some(0), "{}", auto.err);
    let cpu = generate("cpu", folder.path(), "", "no-such-folder");
    assert_eq!(auto.out, cpu.out);
    let said = format!("decoding on the CPU: {message}\n");
    assert_eq!(auto.err.matches("decoding on the CPU").count(), 1);
    assert!(auto.err.starts_with(&said), "{}", auto.err);
    assert!(!cpu.err.contains("CUDA") && !cpu.err.contains("libcuda"), "{}", cpu.err);
    let explicit = generate("cuda", folder.path(), "", "no-such-folder");
    assert_eq!((explicit.code, explicit.err), (Some(3), format!("error: {message}\n")));
}

/// On a machine with a GPU this is not to be seen.
#[test]
fn no_driver_at_all() {
    let run = generate("cuda", Path::new("no-such-folder"), "", "no-such-folder");
    if !run.err.contains("libcuda.so.1 was not found") {
        return println!("skipped: this machine has an NVIDIA driver");
    }
    let message = "there is no NVIDIA driver on this machine (libcuda.so.1 was not found): install the driver, or use --device cpu";
    assert_eq!((run.code, run.err), (Some(3), format!("error: {message}\n")));
}

/// The fake has 1 MB free; the compiler has to be there to come so far.
#[test]
fn too_little_memory_is_known_before_it_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let Some(()) = library(folder.path(), DRIVER) else { return };
    let Some(nvrtc) = std::env::var("SHADOWLLM_NVRTC").ok() else {
        return println!("skipped: SHADOWLLM_NVRTC is not set");
    };
    let run = generate("cuda", folder.path(), "", &nvrtc);
    assert_eq!(run.code, Some(3), "{}", run.err);
    assert!(
        run.err.starts_with("error: the model takes 0.0") || run.err.contains("the model takes 0.1"),
        "{}",
        run.err
    );
    let end = "GB of GPU memory, but cuda:0 (Fake GPU) has 0.00 GB free of 8.00 GB; end what else runs there, use a smaller --context or \
               model, or use --device cpu\n";
    assert!(run.err.ends_with(end), "{}", run.err);
    let auto = generate("auto", folder.path(), "", &nvrtc);
    assert_eq!((auto.code, auto.out), (Some(0), generate("cpu", folder.path(), "", &nvrtc).out));
    assert!(auto.err.contains("decoding on the CPU: the model takes"), "{}", auto.err);
}

#[test]
fn unknown_devices() {
    let run = generate("gpu", Path::new("no-such-folder"), "", "no-such-folder");
    assert_eq!(run.code, Some(2));
    let message =
        "unknown device \"gpu\"; expected cpu, auto, cuda, cuda:N (such as cuda:0) or, in builds with it, emulator";
    assert!(run.err.contains(message), "{}", run.err);
}
