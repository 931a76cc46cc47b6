mod support;
use shadowllm_codegen::DType;
use support::*;
#[test]
fn times() {
    let nvrtc = nvrtc().unwrap();
    let name = std::env::var("ONLY").unwrap_or("opt-6.7b".into());
    let shape = SHAPES.iter().find(|s| s.name == name).unwrap();
    let p = program(&shape.spec(DType::BF16, 80));
    let mut o = shadowllm_nvrtc::Options::new(80);
    o.deny_warnings = false;
    let t = std::time::Instant::now();
    nvrtc.compile(&p.prelude, &o).unwrap();
    eprintln!("prelude {:?}", t.elapsed());
    for k in &p.kernels {
        let t = std::time::Instant::now();
        let c = nvrtc.compile(&format!("{}{}", p.prelude, k.source), &o).unwrap();
        eprintln!("{:?} {} ptx lines {} cubin {}", t.elapsed(), k.name, c.ptx.lines().count(), c.cubin.len());
    }
    std::fs::write("/tmp/p.cu", p.source()).unwrap();
    let c = nvrtc.compile(&p.source(), &o).unwrap();
    std::fs::write("/tmp/p.ptx", c.ptx).unwrap();
}
