//! Any bytes as a predictor file: an error, or a predictor whose stations reach every layer but the first, and that predicts.
#![no_main]

#[path = "../model.rs"]
mod model;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use shadowllm::kernels::{Cpu, CpuOptions};
use shadowllm::sparsity::predictor::PredictorScratch;
use shadowllm::sparsity::{Predictor, Scores, Units};

thread_local! {
    static CPU: RefCell<Option<Cpu>> = RefCell::new(Cpu::new(&CpuOptions { threads: Some(1), ..CpuOptions::default() }).ok());
}

fuzz_target!(|bytes: &[u8]| {
    let Some(config) = model::config() else { return };
    let Ok(predictor) = Predictor::from_bytes(bytes, &config, &model::identity()) else { return };
    let units = Units::from(&config);
    assert_eq!(predictor.units(), units);
    let ranks = predictor.ranks();
    assert!(ranks.heads || ranks.neurons);
    assert!(predictor.bytes(ranks) > 0);
    let mut next = 1;
    let (mut scratch, mut scores) = (PredictorScratch::default(), Scores::zeros(units));
    for station in 0..predictor.info().stations.len() {
        let layers = predictor.layers(station);
        assert_eq!(layers.start, next);
        next = layers.end;
        CPU.with_borrow(|cpu| {
            if let Some(cpu) = cpu {
                let predicted = predictor.predict(cpu, station, &[0.5; 8], ranks, &mut scratch, &mut scores);
                assert!(predicted.is_ok(), "{predicted:?}");
            }
        });
    }
    assert_eq!(next, units.layers);
});
