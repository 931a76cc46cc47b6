//! The launches by which a station decides: predictor and selection.

use super::builder::Builder;
use super::{Arg, Part, Role, Tensor};
use crate::kernel::Kernel;
use crate::predictor::{Kind, PredictorInput, PredictorSpec, WeightFormat};
use crate::{KernelSpec, Scope, predictor, select};

impl Builder {
    fn status(&mut self) -> Arg {
        self.at(Role::State, 16, 8)
    }

    pub(super) fn decide(&mut self, station: usize) {
        let spec = self.spec().clone();
        let Some(predictor) = self.program.predictor.clone() else { return };
        let layers = predictor.layers(&spec, station);
        if layers.is_empty() {
            return;
        }
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| predictor.width(*kind).is_some()).collect();
        if predictor.trunk {
            self.hidden(&spec, &predictor, station, &[None]);
        } else {
            let own: Vec<Option<Kind>> = kinds.iter().copied().map(Some).collect();
            self.hidden(&spec, &predictor, station, &own);
        }
        let args: Vec<Vec<Arg>> = kinds
            .iter()
            .map(|&kind| {
                let (units, own) = (predictor::units(&spec, kind), Some(kind).filter(|_| !predictor.trunk));
                let (rows, width) = (layers.len() * units, predictor.width(kind).unwrap_or(0));
                let mut args = self.layer_tensors(&predictor, |part| Tensor::Output(station, kind, part), rows, width);
                let scores = self.scores(&spec, kind, layers.start);
                args.extend([self.hidden_layer(own, width), scores, Arg::U32(rows as u32)]);
                args
            })
            .collect();
        self.launch(None, predictor::output(&spec, &predictor, &kinds), args.concat());
        self.select(&spec, &kinds, layers);
    }

    /// Scores of a layer.
    fn scores(&mut self, spec: &KernelSpec, kind: Kind, layer: usize) -> Arg {
        let units = predictor::units(spec, kind);
        self.at(Role::Scores(kind), 4 * spec.sizes.layers * units, 4 * layer * units)
    }

    /// The hidden layer of a kind, or the trunk.
    fn hidden_layer(&mut self, kind: Option<Kind>, width: usize) -> Arg {
        let name = match kind {
            None => "trunk",
            Some(Kind::Heads) => "hidden layer of heads",
            Some(Kind::Neurons) => "hidden layer of neurons",
        };
        self.all(Role::Scratch(name), 4 * width)
    }

    /// Weight, scale and bias of a predictor's layer.
    fn layer_tensors(
        &mut self,
        predictor: &PredictorSpec,
        part: impl Fn(Part) -> Tensor,
        rows: usize,
        n: usize,
    ) -> Vec<Arg> {
        let mut args = vec![self.tensor(part(Part::Weight), rows * predictor.format.row_bytes(n))];
        if predictor.format == WeightFormat::Int8 {
            args.push(self.tensor(part(Part::RowScale), 4 * rows));
        }
        if predictor.bias {
            args.push(self.tensor(part(Part::Bias), 4 * rows));
        }
        args
    }

    /// The hidden layers of these kinds, or the trunk.
    fn hidden(&mut self, spec: &KernelSpec, predictor: &PredictorSpec, station: usize, kinds: &[Option<Kind>]) {
        let n = predictor.inputs(spec);
        let args: Vec<Vec<Arg>> = kinds
            .iter()
            .map(|&kind| {
                let width = predictor.hidden_width(kind);
                let tensors = |part| Tensor::Hidden(station, kind, part);
                let mut args = self.layer_tensors(predictor, tensors, width, n);
                args.push(match predictor.input {
                    PredictorInput::Residual => self.residual(),
                    PredictorInput::Contexts => self.contexts(),
                });
                if predictor.normalization == predictor::Normalization::Standardize {
                    args.push(self.tensor(Tensor::Mean(station), 4 * n));
                    args.push(self.tensor(Tensor::Scale(station), 4 * n));
                }
                args.extend([self.hidden_layer(kind, width), Arg::U32(width as u32)]);
                args
            })
            .collect();
        self.launch(None, predictor::hidden(spec, predictor, kinds), args.concat());
    }

    /// The lists of these kinds for `layers`.
    fn select(&mut self, spec: &KernelSpec, kinds: &[Kind], layers: std::ops::Range<usize>) {
        let most = self.program.predictor.as_ref().map_or(0, |p| p.layers(spec, 0).len());
        let grid = [layers.len() as u32, kinds.len() as u32];
        let status = self.status();
        let places: Vec<Places> = kinds
            .iter()
            .map(|&kind| {
                let (second, all) = (usize::from(kind == Kind::Neurons), spec.sizes.layers);
                Places {
                    common: [self.scores(spec, kind, layers.start), self.at(Role::Budget, 16, 8 * second)],
                    lists: [
                        self.list(kind, layers.start),
                        self.at(Role::Counts, 8 * all, 8 * layers.start + 4 * second),
                    ],
                    kind,
                }
            })
            .collect();
        let launch = |builder: &mut Self, kernel: Kernel, args: &dyn Fn(&mut Self, &Places) -> Vec<Arg>| {
            let args: Vec<Arg> =
                places.iter().flat_map(|places| [places.common.to_vec(), args(builder, places)].concat()).collect();
            builder.launch_on(None, kernel, grid, args);
        };
        if spec.scope == Scope::Local {
            let kernel = select::local(spec, kinds, most);
            return launch(self, kernel, &|_, places| [&[status], &places.lists[..]].concat());
        }
        let [cut, histogram, ties, collect] = select::global(spec, kinds, most);
        launch(self, cut, &|builder, places| vec![status, builder.cuts(places), builder.bins(places)]);
        for digit in 0..select::DIGITS as u32 {
            launch(self, histogram.clone(), &|builder, places| {
                vec![builder.cuts(places), builder.bins(places), Arg::U32(digit)]
            });
        }
        launch(self, ties, &|builder, places| vec![builder.cuts(places), builder.bins(places), builder.rest(places)]);
        launch(self, collect, &|builder, places| {
            [&[builder.cuts(places), builder.rest(places)], &places.lists[..]].concat()
        });
    }

    /// Cuts of all layers.
    fn cuts(&mut self, places: &Places) -> Arg {
        let names = ["cuts of heads", "cuts of neurons"];
        let bytes = 16 * self.spec().sizes.layers;
        self.all(Role::Scratch(places.name(names)), bytes)
    }

    fn bins(&mut self, places: &Places) -> Arg {
        let names = ["histograms of heads", "histograms of neurons"];
        self.all(Role::Scratch(places.name(names)), 4 * select::DIGITS * select::BINS)
    }

    /// The cut that all layers have in common.
    fn rest(&mut self, places: &Places) -> Arg {
        let names = ["common cut of heads", "common cut of neurons"];
        self.all(Role::Scratch(places.name(names)), 8)
    }
}

/// Where the selection of a kind reads and writes.
struct Places {
    kind: Kind,
    /// Scores and budget.
    common: [Arg; 2],
    /// Lists and their lengths.
    lists: [Arg; 2],
}

impl Places {
    fn name(&self, [heads, neurons]: [&'static str; 2]) -> &'static str {
        match self.kind {
            Kind::Heads => heads,
            Kind::Neurons => neurons,
        }
    }
}
