//! What kernels declare to move is what they move, and weights come in loads of 16 bytes.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::HashMap;

use shadowllm_codegen::{Arg, Counts, DType, KernelSpec, Kind, ParamKind, Role, Sizes, Sm};

use support::host::{Host, Random};
use support::{nvrtc, predictor};

const SECTOR: u64 = 32;

fn declared_bytes_are_moved(spec: &KernelSpec) {
    let Some(nvrtc) = nvrtc() else { return };
    let s = spec.sizes;
    let compiled = Host::compile(&nvrtc, spec, Some(&predictor()));
    let mut host = Host::new(&compiled, 11);
    let budget = host.buffer(Role::Budget);
    let mut random = Random(12);
    // Enough positions for every piece of the context.
    let rows = vec![vec![0.1; s.kv_heads * s.head_dim]; 33];
    for layer in 0..s.layers {
        host.preset(Role::Keys, layer, &rows);
        host.preset(Role::Values, layer, &rows);
    }
    for position in 33..37 {
        let kept = [1 + random.below(s.heads), 0, 1 + random.below(s.ffn), 0].map(|n| n as u32);
        host.device.upload(budget, 0, &kept).unwrap();
        host.start(random.below(s.vocab) as u32, position);
        let marks = host.values::<u32>(Role::Watermarks);
        let mut waits: HashMap<usize, Counts> = HashMap::new();
        for index in 0..host.program.token.len() {
            let launch = host.program.token[index].clone();
            let kernel = host.program.kernels[launch.kernel].clone();
            let mut counts = Counts::default();
            if let Some(layer) = launch.layer {
                counts = *waits.entry(layer).or_insert_with(|| counts_of(&host, layer, position, &marks));
            }
            let counters = host.launch(index);
            if kernel.params.iter().any(|param| param.name == "read_whole") {
                let whole = host.values::<u32>(Role::ReadWhole);
                let pieces = whole.len() / s.layers;
                let layer = launch.layer.unwrap();
                counts.active = whole[layer * pieces..][..pieces].iter().map(|n| u64::from(*n)).sum();
            }
            if kernel.name.starts_with("select_") {
                let kept = |kind| (1..s.layers).map(|layer| host.kept(layer, kind).len() as u64).sum();
                (counts.heads, counts.neurons) = (kept(Kind::Heads), kept(Kind::Neurons));
            }
            let (mut declared, mut moved) = (0, 0);
            for (param, arg) in kernel.params.iter().zip(&launch.args) {
                let (ParamKind::Buffer(..), Arg::Buffer { buffer, .. }) = (param.kind, arg) else { continue };
                let name = format!("{:?}", host.program.buffers[*buffer].role);
                let Some(traffic) = counters.buffer(&name) else {
                    assert_eq!(param.traffic.at(&counts), 0, "{}, {name} was not touched", kernel.name);
                    continue;
                };
                let bytes = SECTOR * (traffic.distinct_read_sectors + traffic.distinct_written_sectors);
                declared += param.traffic.at(&counts);
                moved += bytes;
                if param.weights {
                    assert_eq!(bytes, param.traffic.at(&counts), "{}, {name}", kernel.name);
                    assert_eq!(traffic.narrowest_load, 16, "{}, {name}", kernel.name);
                    let once = counts.late == 0 || !name.contains("KvHeads");
                    assert!(!once || traffic.read_bytes == bytes, "{}, {name} is read more than once", kernel.name);
                }
            }
            let (low, high) = (declared - declared / 20, declared + declared / 20 + 16 * SECTOR);
            assert!((low..=high).contains(&moved), "{}: declared {declared}, moved {moved}", kernel.name);
        }
    }
}

/// Counts of a layer before its first launch, from its lists and the watermarks.
fn counts_of(host: &Host, layer: usize, position: u32, marks: &[u32]) -> Counts {
    let spec = &host.program.spec;
    let s = spec.sizes;
    let (heads, neurons) = (host.kept(layer, Kind::Heads), host.kept(layer, Kind::Neurons));
    let marks = &marks[layer * (s.kv_heads + 1)..][..s.kv_heads + 1];
    let flush = (position + 1 - marks[s.kv_heads]) as usize >= spec.kv_flush;
    let mut needed: Vec<usize> = heads.iter().map(|head| *head as usize / (s.heads / s.kv_heads)).collect();
    needed.dedup();
    let made: Vec<usize> = if flush { (0..s.kv_heads).collect() } else { needed.clone() };
    let rows: u64 = made.iter().map(|g| u64::from(position + 1 - marks[*g])).sum();
    // Inputs of earlier positions are read once for all heads.
    let late = made.iter().map(|g| u64::from(position - marks[*g])).max().unwrap_or(0);
    Counts {
        heads: heads.len() as u64,
        kv_heads: made.len() as u64,
        made: rows,
        late,
        cached: needed.len() as u64 * u64::from(position + 1),
        neurons: neurons.len() as u64,
        active: 0,
    }
}

#[test]
fn opt_moves_what_it_declares() {
    let sizes =
        Sizes { layers: 3, hidden: 512, heads: 8, kv_heads: 8, head_dim: 64, ffn: 700, vocab: 600, context: 64 };
    declared_bytes_are_moved(&KernelSpec { kv_flush: 3, ..KernelSpec::opt(sizes, DType::F16, Sm::new(80).unwrap()) });
}

#[test]
fn llama_moves_what_it_declares() {
    let sizes =
        Sizes { layers: 3, hidden: 512, heads: 8, kv_heads: 2, head_dim: 64, ffn: 500, vocab: 600, context: 64 };
    declared_bytes_are_moved(&KernelSpec::llama(sizes, DType::BF16, Sm::new(90).unwrap()));
}

/// A block of a prompt reads every weight once, whatever the number of its tokens.
fn prompts_read_weights_once(spec: &KernelSpec) {
    let Some(nvrtc) = nvrtc() else { return };
    let compiled = Host::compile(&nvrtc, spec, None);
    let host = Host::new(&compiled, 11);
    for count in [1, 20, 40] {
        let tokens: Vec<u32> = (0..count).collect();
        host.device.upload(host.buffer(Role::Block), 0, &[&[0, count, 0, 0], &tokens[..]].concat()).unwrap();
        for launch in &host.program.prompt {
            let kernel = &host.program.kernels[launch.kernel];
            let counters = host.run(launch).unwrap();
            // Of the embeddings only the rows of the tokens are read.
            let products = launch.layer.is_some();
            for (param, arg) in kernel.params.iter().zip(&launch.args).filter(|(param, _)| products && param.weights) {
                let Arg::Buffer { buffer, .. } = arg else { continue };
                let traffic = counters.buffer(&format!("{:?}", host.program.buffers[*buffer].role)).unwrap();
                let declared = param.traffic.at(&Counts::default());
                let moved = (SECTOR * traffic.distinct_read_sectors, traffic.read_bytes, traffic.narrowest_load);
                assert_eq!(moved, (declared, declared, 16), "{}, {count} tokens", kernel.name);
            }
        }
    }
}

#[test]
fn prompts_of_opt_read_weights_once() {
    let sizes = Sizes { layers: 1, hidden: 256, heads: 4, kv_heads: 4, head_dim: 64, ffn: 301, vocab: 60, context: 64 };
    prompts_read_weights_once(&KernelSpec::opt(sizes, DType::F16, Sm::new(80).unwrap()));
}

#[test]
fn prompts_of_llama_read_weights_once() {
    let sizes = Sizes { layers: 1, hidden: 256, heads: 4, kv_heads: 2, head_dim: 64, ffn: 200, vocab: 60, context: 64 };
    prompts_read_weights_once(&KernelSpec::llama(sizes, DType::BF16, Sm::new(90).unwrap()));
}
