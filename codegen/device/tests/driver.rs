//! The driver is asked for what the emulator is asked for, call for call: with a driver library made here that writes down what it is told.
//!
//! The library has to be found when a process starts, so the driver's side runs in a child of this test.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;
use std::process::{Command, Output};

use shadowllm_device::{Backend, BufferId, CodeForm, Cuda, Emulator, LaunchArg, LaunchSpec};

/// Memory, copies and order of a device; nothing runs. Allocation n begins at (n + 1) << 24.
const DRIVER: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef unsigned long long u64;
static char *memory[64];
static char names[8][64];
static int count, graphs, functions;
#define SAY(...) do { FILE *log = fopen(getenv("DRIVER_LOG"), "a"); fprintf(log, __VA_ARGS__); fclose(log); } while (0)
#define PLACE(a) (int)(((a) >> 24) - 1), (int)((a) & 0xffffff)
int cuInit(unsigned f) { return 0; }
int cuDriverGetVersion(int *v) { *v = 12080; return 0; }
int cuGetErrorString(int e, const char **s) { *s = "other"; return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Fake GPU", n); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : 0; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)1; return 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { return 0; }
int cuCtxSetCurrent(void *c) { return 0; }
int cuStreamCreate(void **s, unsigned f) { *s = (void *)1; return 0; }
int cuStreamSynchronize(void *s) { SAY("wait\n"); return 0; }
int cuStreamDestroy_v2(void *s) { return 0; }
int cuEventCreate(void **e, unsigned f) { *e = (void *)1; return 0; }
int cuEventSynchronize(void *e) { return 0; }
int cuEventRecord(void *e, void *s) { return 0; }
int cuEventDestroy_v2(void *e) { return 0; }
int cuMemHostAlloc(void **p, size_t n, unsigned f) { *p = malloc(n); return 0; }
int cuMemFreeHost(void *p) { free(p); return 0; }
int cuMemAlloc_v2(u64 *a, size_t n) { SAY("alloc %zu\n", n); memory[count] = calloc(1, n); *a = (u64)++count << 24; return 0; }
int cuMemFree_v2(u64 a) { SAY("free %d+%d\n", PLACE(a)); return 0; }
int cuMemcpyHtoDAsync_v2(u64 a, const void *p, size_t n, void *s) {
  SAY("write %d+%d %zu\n", PLACE(a), n); memcpy(memory[(a >> 24) - 1] + (a & 0xffffff), p, n); return 0;
}
int cuMemcpyDtoHAsync_v2(void *p, u64 a, size_t n, void *s) {
  SAY("read %d+%d %zu\n", PLACE(a), n); memcpy(p, memory[(a >> 24) - 1] + (a & 0xffffff), n); return 0;
}
int cuModuleLoadData(void **m, const void *p) { SAY("load\n"); *m = (void *)1; return 0; }
int cuModuleUnload(void *m) { SAY("unload\n"); return 0; }
int cuModuleGetFunction(void **f, void *m, const char *name) { SAY("find %s\n", name); *f = strcpy(names[functions++], name); return 0; }
int cuFuncSetAttribute(void *f, int a, int v) { SAY("shared %d %s\n", v, (char *)f); return 0; }
int cuLaunchKernel(void *f, unsigned x, unsigned y, unsigned z, unsigned t, unsigned u, unsigned v, unsigned shared, void *s, void **p, void **e) {
  u64 a = *(u64 *)p[0];
  SAY("launch %s %u %u %u %u %d+%d %u\n", (char *)f, x, y, t, shared, PLACE(a), *(unsigned *)p[1]); return 0;
}
int cuStreamBeginCapture_v2(void *s, int mode) { SAY("begin\n"); return 0; }
int cuStreamEndCapture(void *s, void **g) { SAY("end\n"); *g = (void *)1; return 0; }
int cuGraphInstantiateWithFlags(void **e, void *g, u64 f) { *e = (void *)(u64)++graphs; return 0; }
int cuGraphDestroy(void *g) { return 0; }
int cuGraphLaunch(void *e, void *s) { SAY("replay %d\n", (int)(u64)e - 1); return 0; }
int cuGraphExecDestroy(void *e) { SAY("drop %d\n", (int)(u64)e - 1); return 0; }
"#;

const PTX: &str = "
.version 8.8
.target sm_80
.address_size 64
.visible .entry twice(.param .u64 data, .param .u32 n)
{
    .reg .b32 %r<3>;
    .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [data];
    mov.u32 %r1, %tid.x;
    mad.wide.u32 %rd2, %r1, 4, %rd1;
    ld.global.u32 %r2, [%rd2];
    add.s32 %r2, %r2, %r2;
    st.global.u32 [%rd2], %r2;
    ret;
}";

/// Everything that a runtime asks of a device, with the line that the driver would write down for it.
fn work(device: &mut dyn Backend) -> Vec<String> {
    let mut asked = Vec::new();
    let mut say = |line: &str| asked.push(line.to_owned());
    let launch = |device: &mut dyn Backend, module, buffer: BufferId, n| {
        let args = [LaunchArg::Address(buffer, 4), LaunchArg::U32(n)];
        let launch = LaunchSpec { kernel: "twice", grid: [1, 1], threads: 2, shared: 60_000, args: &args };
        device.launch(module, &launch).unwrap();
    };
    let [first, second] = [16, 12].map(|bytes| {
        say(&format!("alloc {bytes}"));
        device.alloc("numbers", bytes).unwrap()
    });
    for (index, buffer, bytes) in [(0, first, 16), (1, second, 12)] {
        say(&format!("write {index}+0 {bytes}"));
        device.write(buffer, 0, &[1; 16][..bytes]).unwrap();
    }
    say("load");
    let module = device.load(PTX.as_bytes()).unwrap();
    say("find twice");
    say("shared 60000 twice");
    device.prepare(module, "twice", 60_000).unwrap();
    say("begin");
    device.begin_graph().unwrap();
    for (index, buffer, n) in [(0, first, 7), (1, second, 8)] {
        say(&format!("launch twice 1 1 2 60000 {index}+4 {n}"));
        launch(device, module, buffer, n);
    }
    say("end");
    let graph = device.end_graph().unwrap();
    for _ in 0..2 {
        say("replay 0");
        device.replay(graph).unwrap();
    }
    say("launch twice 1 1 2 60000 0+4 9");
    launch(device, module, first, 9);
    say("write 0+8 4");
    device.write(first, 8, &[5, 0, 0, 0]).unwrap();
    say("read 0+8 4");
    say("wait");
    let mut four = [0; 4];
    device.read(first, 8, &mut four).unwrap();
    assert_eq!(four, [5, 0, 0, 0]);
    say("wait");
    device.synchronize().unwrap();
    say("drop 0");
    device.drop_graph(graph);
    say("unload");
    device.unload(module);
    for (index, buffer) in [first, second].into_iter().enumerate() {
        say(&format!("free {index}+0"));
        device.free(buffer);
    }
    asked
}

/// Runs one of the two tests that are children, with the libraries of a folder.
fn child(name: &str, libraries: &Path, log: &Path) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env("DRIVER_LOG", log).env("LD_LIBRARY_PATH", libraries);
    command.output().unwrap()
}

#[test]
fn child_of_the_next() {
    let Some(log) = std::env::var_os("DRIVER_LOG") else { return };
    let mut cuda = Cuda::open(0).unwrap();
    assert_eq!((cuda.name(), cuda.sm(), cuda.code_form()), ("cuda:0 (Fake GPU)", 80, CodeForm::Cubin));
    let asked = work(&mut cuda);
    let told: Vec<String> = std::fs::read_to_string(log).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(told, asked);
}

#[test]
fn the_driver_is_asked_for_what_the_emulator_is() {
    // Whatever is asked there the emulator does.
    assert!(work(&mut Emulator::new()).len() > 20);
    let folder = tempfile::tempdir().unwrap();
    let (file, library) = (folder.path().join("driver.c"), folder.path().join("libcuda.so.1"));
    std::fs::write(&file, DRIVER).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-w", "-o"]).arg(&library).arg(&file).status();
    if !built.is_ok_and(|status| status.success()) {
        return println!("skipped: there is no C compiler `cc`");
    }
    std::fs::copy(&library, folder.path().join("libcuda.so")).unwrap();
    let output = child("child_of_the_next", folder.path(), &folder.path().join("log"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[test]
fn child_without_a_driver() {
    if std::env::var_os("DRIVER_LOG").is_some() {
        println!("said: {}", Cuda::open(0).err().map_or("nothing".to_owned(), |error| error.to_string()));
    }
}

#[test]
fn without_a_driver_there_is_a_sentence() {
    let nothing = Path::new("no-such-folder");
    let output = child("child_without_a_driver", nothing, nothing);
    let said = String::from_utf8_lossy(&output.stdout);
    let sentence = "there is no NVIDIA driver on this machine (libcuda.so.1 was not found): install the driver, or use --device cpu";
    if said.contains("said: nothing") {
        return println!("skipped: this machine has an NVIDIA driver");
    }
    assert!(said.contains(&format!("said: {sentence}\n")), "{said}");
}
