use std::collections::BTreeSet;

use super::testing::{HEADS, NEURONS, Sample, WIDTH, model, text};
use super::*;
use crate::kernels::CpuOptions;
use crate::learn::{BackwardWorkspace, LayerVisitor, Loss, UnitFactors, backward, backward_scaled};
use crate::tensor::MatrixView;

const KINDS: [UnitKind; 2] = [UnitKind::Heads, UnitKind::Neurons];

fn near(found: f32, expected: f64) -> bool {
    (f64::from(found) - expected).abs() <= 1e-5 * expected.abs() + 1e-7
}

/// The formulas of the table, naively and in `f64`: `terms[t][unit]` is what is summed over tokens.
fn terms(sample: &Sample, name: &str, kind: UnitKind) -> Vec<Vec<f64>> {
    let (values, grads, width) = match kind {
        UnitKind::Heads => (&sample.contexts, &sample.context_grads, WIDTH),
        UnitKind::Neurons => (&sample.inners, &sample.inner_grads, 1),
    };
    let units = values.len() / sample.tokens.len() / width;
    let vector = |x: &[f32], t: usize, u: usize| -> Vec<f64> {
        x[(t * units + u) * width..][..width].iter().map(|&v| f64::from(v)).collect()
    };
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let rms = |u: usize| {
        let squares = (0..sample.tokens.len()).map(|t| product(&vector(grads, t, u), &vector(grads, t, u)));
        (squares.sum::<f64>() / sample.tokens.len() as f64).sqrt()
    };
    let term = |t: usize, u: usize| {
        let (a, da) = (vector(values, t, u), vector(grads, t, u));
        match name {
            "plainact" => product(&a, &da).abs(),
            "fisher" => product(&a, &da).powi(2),
            "l2norm" => product(&a, &a),
            "gradnorm" => product(&da, &da),
            "saliency" => product(&a, &a).sqrt() * rms(u),
            _ => product(&a, &da),
        }
    };
    (0..sample.tokens.len()).map(|t| (0..units).map(|u| term(t, u)).collect()).collect()
}

#[test]
fn both_forms_are_the_formulas_of_the_table() {
    let sample = Sample::new(33, 1);
    for name in ["plainact", "fisher", "l2norm", "gradnorm", "saliency", "snip"] {
        for kind in KINDS {
            let terms = terms(&sample, name, kind);
            let root = |v: f64| if matches!(name, "l2norm" | "gradnorm") { v.sqrt() } else { v };
            let units = terms[0].len();
            let sums = sample.score(name, kind, Form::Sequence);
            for (u, found) in sums.iter().enumerate() {
                let sum: f64 = terms.iter().map(|row| row[u]).sum();
                let expected = if name == "snip" { sum.abs() } else { root(sum) };
                assert!(near(*found, expected), "{name} of {kind:?} {u}: {found} instead of {expected}");
            }
            if name != "snip" {
                let tokens = sample.score(name, kind, Form::Token);
                for (i, found) in tokens.iter().enumerate() {
                    assert!(near(*found, root(terms[i / units][i % units])), "{name} of {kind:?}");
                }
            }
        }
    }
}

#[test]
fn magnitude_is_the_size_of_what_is_added() {
    let sample = Sample::new(9, 12);
    let norms = sample.model.layers[1].ffn.output_squares(&sample.cpu);
    let squares: Vec<f32> = sample.score("l2norm", UnitKind::Heads, Form::Token).iter().map(|v| v * v).collect();
    let found = sample.score("magnitude", UnitKind::Heads, Form::Token);
    assert!(found.iter().zip(&squares).all(|(found, square)| near(*found, f64::from(*square))));
    let found = sample.score("magnitude", UnitKind::Neurons, Form::Token);
    let sums = sample.score("magnitude", UnitKind::Neurons, Form::Sequence);
    for (i, (found, z)) in found.iter().zip(&sample.inners).enumerate() {
        assert!(near(*found, f64::from(z.abs()) * norms[i % NEURONS].sqrt()));
    }
    for (unit, sum) in sums.iter().enumerate() {
        assert!(near(*sum, found[unit..].iter().step_by(NEURONS).map(|&v| f64::from(v)).sum()));
    }
}

#[test]
fn names_are_found_and_unknown_ones_are_an_error() {
    let names: BTreeSet<&str> = ALL.iter().map(|criterion| criterion.name()).collect();
    assert_eq!(names.len(), ALL.len());
    for criterion in ALL {
        assert_eq!(criterion.name().parse::<&'static dyn Criterion>().unwrap().name(), criterion.name());
        assert!(KINDS.iter().any(|&kind| criterion.has(kind, Form::Sequence)), "{criterion:?} scores nothing");
    }
    assert_eq!(
        "l2_norm".parse::<&'static dyn Criterion>().unwrap_err().to_string(),
        "unknown criterion \"l2_norm\"; known are magnitude, plainact, plainact-weight, fisher, l2norm, gradnorm, saliency, \
         snip, nwot, jacov, epenas, grasp"
    );
}

#[test]
fn products_that_half_precision_loses_are_kept() {
    let mut sample = Sample::new(8, 2);
    sample.context_grads.iter_mut().chain(&mut sample.inner_grads).for_each(|v| *v *= 1e-6);
    for kind in KINDS {
        let scores = sample.score("fisher", kind, Form::Sequence);
        assert!(scores.iter().all(|&v| v > 0.0), "{scores:?}");
        // The smallest number that half precision has is 2^-24.
        assert!(scores.iter().all(|&v| v < 2f32.powi(-25)));
    }
}

#[test]
fn fisher_is_of_the_head_as_a_whole() {
    let mut sample = Sample::new(2, 3);
    sample.contexts.fill(1.0);
    // Components that cancel: a factor on the head does not change the loss.
    sample.context_grads.iter_mut().enumerate().for_each(|(i, v)| *v = if i % 2 == 0 { 1.0 } else { -1.0 });
    assert_eq!(sample.score("fisher", UnitKind::Heads, Form::Sequence), [0.0; HEADS]);
}

#[test]
fn l2norm_is_of_what_passes_the_activation() {
    let mut sample = Sample::new(4, 4);
    // Far from firing: the value before ReLU is large, what the neuron puts out is nothing.
    sample.gates.iter_mut().step_by(NEURONS).for_each(|v| *v = -100.0);
    sample.inners.iter_mut().step_by(NEURONS).for_each(|v| *v = 0.0);
    let scores = sample.score("l2norm", UnitKind::Neurons, Form::Sequence);
    assert_eq!(scores[0], 0.0);
    assert!(scores[1..].iter().all(|&v| v > 0.0));
}

#[test]
fn gradnorm_knows_closed_neurons() {
    let mut sample = Sample::new(4, 5);
    sample.gate_grads.iter_mut().step_by(NEURONS).for_each(|v| *v = 0.0);
    assert!(sample.score("gradnorm", UnitKind::Neurons, Form::Sequence)[0] > 0.0);
}

#[test]
fn snip_is_the_derivative_of_one_factor_and_plainact_is_not() {
    let mut sample = Sample::new(6, 6);
    // What one token gains another loses.
    for values in [&mut sample.contexts, &mut sample.inners] {
        values.fill(1.0);
    }
    for (values, row) in [(&mut sample.context_grads, HEADS * WIDTH), (&mut sample.inner_grads, NEURONS)] {
        values.iter_mut().enumerate().for_each(|(i, v)| *v = if i / row % 2 == 0 { 0.5 } else { -0.5 });
    }
    for kind in KINDS {
        assert!(sample.score("snip", kind, Form::Sequence).iter().all(|&v| v == 0.0));
        assert!(sample.score("plainact", kind, Form::Sequence).iter().all(|&v| v > 1.0));
    }
}

#[test]
fn nwot_does_not_measure_the_length_of_the_text() {
    for kind in KINDS {
        let (once, twice) = (Sample::new(50, 7), Sample::new(50, 7).twice());
        let (a, b) = (once.score("nwot", kind, Form::Sequence), twice.score("nwot", kind, Form::Sequence));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{kind:?}: {a:?} and {b:?}");
    }
}

#[test]
fn nwot_prefers_units_that_tell_tokens_apart() {
    let mut sample = Sample::new(40, 8);
    for (i, gate) in sample.gates.iter_mut().enumerate() {
        let (token, neuron) = (i / NEURONS, i % NEURONS);
        // Neuron 0 never fires, neuron 1 always does, neuron 2 for every second token.
        *gate = match neuron {
            0 => -1.0,
            1 => 1.0,
            2 => {
                if token % 2 == 0 {
                    1.0
                } else {
                    -1.0
                }
            }
            _ => *gate,
        };
    }
    let neurons = sample.score("nwot", UnitKind::Neurons, Form::Sequence);
    assert_eq!(neurons[0], neurons[1]);
    assert!(neurons[2] > neurons[0] && neurons[2..].iter().all(|&v| v <= neurons[2]));
    // Head 0 has the same signs in every token.
    for (i, context) in sample.contexts.iter_mut().enumerate() {
        if (i / WIDTH).is_multiple_of(HEADS) {
            *context = if i % WIDTH == 0 { 1.0 } else { -1.0 };
        }
    }
    let heads = sample.score("nwot", UnitKind::Heads, Form::Sequence);
    assert!(heads[1..].iter().all(|&v| v > heads[0]), "{heads:?}");
    assert!(near(heads[0], (1.0 + WIDTH as f64).ln()));
}

#[test]
fn jacov_prefers_gradients_that_differ() {
    let mut sample = Sample::new(60, 9);
    // Head 0 reacts in one direction only.
    let first: Vec<f32> = sample.context_grads[..WIDTH].to_vec();
    for (i, grads) in sample.context_grads.chunks_exact_mut(WIDTH).enumerate() {
        if i % HEADS == 0 {
            let size = 1.0 + (i / HEADS) as f32;
            grads.iter_mut().zip(&first).for_each(|(v, f)| *v = size * f);
        }
    }
    let scores = sample.score("jacov", UnitKind::Heads, Form::Sequence);
    assert!(scores[1..].iter().all(|&v| v > scores[0]), "{scores:?}");
    // With more vectors than dimensions every score would be at most -1/k for each eigenvalue that rounding leaves.
    assert!(scores[1..].iter().all(|&v| v > -1e4), "{scores:?}");
}

#[test]
fn epenas_does_not_measure_how_often_a_token_occurs() {
    let mut sample = Sample::new(80, 10);
    // Classes of 60 and 19 tokens with the same gradients in turn.
    let pattern = sample.context_grads[..6 * HEADS * WIDTH].to_vec();
    for (t, row) in sample.context_grads.chunks_exact_mut(HEADS * WIDTH).enumerate() {
        row.copy_from_slice(&pattern[t % 6 * HEADS * WIDTH..][..HEADS * WIDTH]);
    }
    for (t, token) in sample.tokens.iter_mut().enumerate() {
        *token = if t <= 60 { 3 } else { 5 };
    }
    let scores = sample.score("epenas", UnitKind::Heads, Form::Sequence);
    // Sums over pairs would differ by a factor of ten, with means the classes are nearly the same.
    assert!(scores.iter().all(|&v| v < 1.5), "{scores:?}");
    sample.tokens.iter_mut().for_each(|token| *token = 3);
    assert_eq!(
        sample.score("epenas", UnitKind::Heads, Form::Sequence),
        [0.0; HEADS],
        "one class has nothing to differ from"
    );
}

#[test]
fn plainact_weight_is_of_the_weights_gradient() {
    let sample = Sample::new(21, 11);
    let scores = sample.score("plainact-weight", UnitKind::Neurons, Form::Sequence);
    let crate::model::Ffn::Plain { fc1, .. } = &sample.model.layers[1].ffn else { panic!("plain") };
    let MatrixView::F32(w) = fc1.weight.stored().view() else { panic!("f32") };
    for (i, found) in scores.iter().enumerate() {
        let gradient = |j: usize| -> f64 {
            let rows = (0..21)
                .map(|t| f64::from(sample.gate_grads[t * NEURONS + i]) * f64::from(sample.ffn_inputs[t * 24 + j]));
            rows.sum()
        };
        let expected: f64 = (0..24).map(|j| (f64::from(w[i * 24 + j]) * gradient(j)).abs()).sum();
        assert!(near(*found, expected), "neuron {i}: {found} instead of {expected}");
    }
    let heads = sample.score("plainact-weight", UnitKind::Heads, Form::Sequence);
    assert_eq!(heads, sample.score("plainact", UnitKind::Heads, Form::Sequence));
}

#[test]
fn every_criterion_of_a_text_from_one_pass() {
    let cpu = Cpu::new(&CpuOptions::default()).unwrap();
    for gated in [false, true] {
        let model = model(gated);
        let tokens = text(3, 120);
        let mut work = BackwardWorkspace::new();
        let (loss, scores) = sequence_scores(&cpu, &model, &tokens, &Loss::sum(), &ALL, &mut work).unwrap();
        assert_eq!(loss.tokens, 119);
        for (criterion, scores) in ALL.iter().zip(&scores) {
            scores.validate(&model.config).unwrap();
            for (kind, values) in [(UnitKind::Heads, &scores.heads), (UnitKind::Neurons, &scores.neurons)] {
                let some = values.iter().any(|&v| v != 0.0);
                assert_eq!(some, criterion.has(kind, Form::Sequence), "{criterion:?} of {kind:?}");
            }
        }
    }
}

#[test]
fn curvature_must_be_there_where_it_is_needed() {
    struct Score(Option<Error>);
    let (cpu, model, tokens) = (Cpu::new(&CpuOptions::default()).unwrap(), model(false), text(3, 12));
    struct Visitor<'a>(&'a Cpu, &'a Model, &'a [u32], Score);
    impl LayerVisitor for Visitor<'_> {
        fn layer(&mut self, record: &LayerRecord<'_>) -> Result<()> {
            let input = LayerInput { cpu: self.0, model: self.1, tokens: self.2, record, curvature: None };
            let result = grasp::Grasp.score(&input, UnitKind::Heads, Form::Sequence, &mut [0.0; HEADS]);
            self.3 = Score(result.err());
            Ok(())
        }
    }
    let mut visitor = Visitor(&cpu, &model, &tokens, Score(None));
    backward(&cpu, &model, &tokens, &Loss::sum(), &mut BackwardWorkspace::new(), &mut visitor).unwrap();
    assert_eq!(
        visitor.3.0.unwrap().to_string(),
        "criterion grasp needs the curvature of the text; compute it first (learn::criteria::curvature)"
    );
}

/// Half the squared norm of the gradient with respect to all factors, with head `head` of layer 1 at `factor`.
fn gradient_flow(model: &Model, tokens: &[u32], head: usize, factor: f32) -> f64 {
    struct Sums<'a> {
        factors: &'a UnitFactors,
        total: f64,
    }
    impl LayerVisitor for Sums<'_> {
        fn layer(&mut self, record: &LayerRecord<'_>) -> Result<()> {
            let mut heads = [0.0f64; HEADS];
            let vectors = record.contexts.chunks_exact(WIDTH).zip(record.context_grads.chunks_exact(WIDTH));
            for (i, (a, g)) in vectors.enumerate() {
                heads[i % HEADS] += a.iter().zip(g).map(|(a, g)| f64::from(*a) * f64::from(*g)).sum::<f64>();
            }
            let mut neurons = [0.0f64; NEURONS];
            for (i, (z, g)) in record.inners.iter().zip(record.inner_grads).enumerate() {
                neurons[i % NEURONS] += f64::from(*z) * f64::from(*g);
            }
            let factors = &self.factors.heads[record.layer * HEADS..];
            let heads = heads.iter().zip(factors).map(|(sum, m)| (sum / f64::from(*m)).powi(2));
            self.total += 0.5 * (heads.sum::<f64>() + neurons.iter().map(|v| v * v).sum::<f64>());
            Ok(())
        }
    }
    let mut factors = UnitFactors { heads: vec![1.0; 3 * HEADS], neurons: vec![1.0; 3 * NEURONS] };
    factors.heads[HEADS + head] = factor;
    let mut sums = Sums { factors: &factors, total: 0.0 };
    let cpu = Cpu::new(&CpuOptions::default()).unwrap();
    let mut work = BackwardWorkspace::new();
    backward_scaled(&cpu, model, tokens, &Loss::sum(), &factors, &mut work, &mut sums).unwrap();
    sums.total
}

#[test]
fn grasp_is_the_derivative_of_gradient_flow() {
    // A smooth model: with ReLU both differences cross kinks.
    let (model, tokens) = (model(true), text(4, 40));
    let cpu = Cpu::new(&CpuOptions::default()).unwrap();
    let grasp: &'static dyn Criterion = "grasp".parse().unwrap();
    let mut work = BackwardWorkspace::new();
    let (_, scores) = sequence_scores(&cpu, &model, &tokens, &Loss::sum(), &[grasp], &mut work).unwrap();
    let largest = scores[0].heads[HEADS..2 * HEADS].iter().fold(0.0f32, |a, v| a.max(v.abs()));
    for head in 0..HEADS {
        let step = 1.0 / 64.0;
        let flow = |factor| gradient_flow(&model, &tokens, head, factor);
        let expected = (flow(1.0 + step) - flow(1.0 - step)) / (2.0 * f64::from(step));
        let found = f64::from(scores[0].heads[HEADS + head]);
        assert!((found - expected).abs() < 0.03 * f64::from(largest), "head {head}: {found} instead of {expected}");
    }
}
