use super::*;
use crate::kernels::CpuOptions;
use crate::sparsity::Scope;
use proptest::prelude::*;

/// Kept indices of every row by full sorts, straight from the definition.
fn sorted(scores: &[f32], width: usize, allowance: Allowance) -> Vec<Vec<u32>> {
    let rank = |units: &mut Vec<(usize, usize)>| {
        units.sort_by(|&(l, i), &(m, j)| {
            let (a, b) = (scores[l * width + i], scores[m * width + j]);
            b.partial_cmp(&a).unwrap().then((l, i).cmp(&(m, j)))
        });
    };
    let mut kept = Vec::new();
    let mut rest = Vec::new();
    for layer in 0..scores.len() / width {
        let mut units: Vec<(usize, usize)> = (0..width).map(|i| (layer, i)).collect();
        rank(&mut units);
        rest.extend(units.split_off(allowance.each.min(width)));
        kept.extend(units);
    }
    rank(&mut rest);
    rest.truncate(allowance.shared);
    kept.extend(rest);
    kept.sort_unstable();
    let list = |layer| kept.iter().filter(|u| u.0 == layer).map(|u| u.1 as u32).collect();
    (0..scores.len() / width).map(list).collect()
}

/// Few distinct values, so that ties are common, zeros of both signs among them.
fn any_scores(n: usize) -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        (-3_i8..4).prop_map(f32::from),
        Just(-0.0_f32),
        -1e30_f32..1e30,
        Just(f32::MAX),
        Just(f32::MIN),
        Just(f32::MIN_POSITIVE / 2.0),
    ];
    proptest::collection::vec(value, n)
}

fn any_case() -> impl Strategy<Value = (Units, Scores, Budget)> {
    (1_usize..6, 1_usize..9, 1_usize..70, any::<bool>()).prop_flat_map(|(layers, heads, neurons, global)| {
        let scope = if global { Scope::Global } else { Scope::Local };
        let budget = (1_u32..=100, 1_u32..=100).prop_map(move |(h, n)| Budget {
            heads: h as f32 / 100.0,
            neurons: n as f32 / 100.0,
            scope,
        });
        let scores = (any_scores(layers * heads), any_scores(layers * neurons))
            .prop_map(|(heads, neurons)| Scores { heads, neurons });
        (Just(Units { layers, heads, neurons }), scores, budget)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn selection_equals_sorting((units, scores, budget) in any_case()) {
        let mut plan = Plan::dense(units);
        Selector::new().select(&scores, &budget, units, &mut plan).unwrap();
        plan.validate(units).unwrap();
        let heads = sorted(&scores.heads[units.heads..], units.heads, budget.heads_of(units, units.layers - 1));
        let neurons =
            sorted(&scores.neurons[units.neurons..], units.neurons, budget.neurons_of(units, units.layers - 1));
        for (layer, plan) in plan.layers[1..].iter().enumerate() {
            prop_assert_eq!(&plan.heads, &heads[layer]);
            prop_assert_eq!(&plan.neurons, &neurons[layer]);
        }
    }

    #[test]
    fn keys_order_like_scores(a in any_scores(1), b in any_scores(1)) {
        prop_assert_eq!(key(&a[0]).cmp(&key(&b[0])), a[0].partial_cmp(&b[0]).unwrap());
    }
}

const UNITS: Units = Units { layers: 3, heads: 4, neurons: 32 };

fn varied(seed: u32) -> Scores {
    let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) % 997) as f32;
    Scores { heads: (0..12).map(value).collect(), neurons: (0..96).map(value).collect() }
}

#[test]
fn a_full_budget_keeps_all() {
    for scope in [Scope::Local, Scope::Global] {
        let mut plan = Plan::default();
        select(&varied(1), &Budget { scope, ..Budget::DENSE }, UNITS, &mut plan).unwrap();
        assert_eq!(plan, Plan::dense(UNITS));
    }
}

#[test]
fn a_global_budget_prefers_the_better_layer_but_starves_none() {
    let mut scores = Scores::zeros(UNITS);
    scores.heads[8..].fill(1.0);
    scores.neurons[64..].fill(1.0);
    let mut plan = Plan::dense(UNITS);
    select(&scores, &Budget::new(0.5, 0.5, Scope::Global).unwrap(), UNITS, &mut plan).unwrap();
    assert_eq!((&plan.layers[1].heads[..], &plan.layers[2].heads[..]), (&[0][..], &[0, 1, 2][..]));
    assert_eq!((&plan.layers[1].neurons[..], plan.layers[2].neurons.len()), (&[0, 1][..], 30));
}

#[test]
fn many_scores_are_cut_as_few_are() {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let units = Units { layers: 4, heads: 3, neurons: 5000 };
    for levels in [3.0, 100.0, 1e7] {
        // Few levels: ties cross buckets, layers and the threshold.
        let mut value = || ((next() + next() - 1.0) * levels).round() / levels;
        let heads = (0..12).map(|_| value()).collect();
        let scores = Scores { heads, neurons: (0..20_000).map(|_| value()).collect() };
        for scope in [Scope::Local, Scope::Global] {
            for percent in [1, 7, 50, 93, 100] {
                let fraction = percent as f32 / 100.0;
                let budget = Budget::new(fraction, fraction, scope).unwrap();
                let expected = sorted(&scores.neurons[5000..], 5000, budget.neurons_of(units, 3));
                for threads in [1, 2, 3] {
                    let options = CpuOptions { threads: Some(threads), ..CpuOptions::default() };
                    let cpu = Cpu::new(&options).unwrap();
                    let mut plan = Plan::dense(units);
                    Selector::new().select_layers(Some(&cpu), &scores, &budget, units, 1..4, &mut plan).unwrap();
                    for (plan, expected) in plan.layers[1..].iter().zip(&expected) {
                        assert_eq!(&plan.neurons, expected, "{levels} {scope} {percent} {threads}");
                    }
                }
            }
        }
    }
}

#[test]
fn layers_that_are_not_asked_for_stay() {
    let mut plan = Plan::dense(UNITS);
    let budget = Budget::new(0.25, 0.25, Scope::Global).unwrap();
    let mut scores = varied(3);
    scores.neurons[..64].fill(f32::NAN);
    Selector::new().select_layers(None, &scores, &budget, UNITS, 2..3, &mut plan).unwrap();
    assert_eq!(plan.layers[..2], Plan::dense(UNITS).layers[..2]);
    assert_eq!((plan.layers[2].heads.len(), plan.layers[2].neurons.len()), (1, 8));
}

#[test]
fn after_the_first_plan_nothing_is_allocated() {
    for scope in [Scope::Local, Scope::Global] {
        let mut selector = Selector::new();
        let mut plan = Plan::dense(UNITS);
        let state = |selector: &Selector, plan: &Plan| {
            let lists = plan.layers.iter().map(|l| (l.heads.as_ptr(), l.neurons.as_ptr())).collect::<Vec<_>>();
            (selector.keys.capacity(), selector.layers.capacity(), lists)
        };
        let fraction = |percent: u32| percent as f32 / 100.0;
        selector.select(&varied(0), &Budget::new(0.1, 0.1, scope).unwrap(), UNITS, &mut plan).unwrap();
        let first = state(&selector, &plan);
        for percent in (1..=100).rev() {
            let budget = Budget::new(fraction(percent), fraction(percent), scope).unwrap();
            selector.select(&varied(percent), &budget, UNITS, &mut plan).unwrap();
            assert_eq!(state(&selector, &plan), first);
        }
    }
}

#[test]
fn broken_scores_are_named_and_change_nothing() {
    let budget = Budget::new(0.5, 0.5, Scope::Local).unwrap();
    let with = |change: fn(&mut Scores)| {
        let mut scores = varied(7);
        change(&mut scores);
        scores
    };
    for (scores, expected) in [
        (with(|s| s.heads[7] = f32::NAN), "the score of head 3 of layer 1 is NaN; scores must be finite numbers"),
        (
            with(|s| s.neurons[64] = f32::NEG_INFINITY),
            "the score of neuron 0 of layer 2 is -inf; scores must be finite numbers",
        ),
        (
            with(|s| s.neurons.truncate(64)),
            "64 scores for neurons were given; a model of 3 layers of 32 neurons needs 96",
        ),
    ] {
        let mut plan = Plan::dense(UNITS);
        let error = select(&scores, &budget, UNITS, &mut plan).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(scores.validate(UNITS).unwrap_err().to_string(), expected);
        assert_eq!(plan, Plan::dense(UNITS));
    }
    let layer_0 = with(|s| s.heads[0] = f32::NAN);
    assert!(select(&layer_0, &budget, UNITS, &mut Plan::dense(UNITS)).is_ok());
    let zero = Budget { heads: 0.0, ..budget };
    assert!(select(&varied(7), &zero, UNITS, &mut Plan::dense(UNITS)).is_err());
}
