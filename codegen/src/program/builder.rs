//! How a program comes into being: kernels and buffers when a launch first asks for them, and the arguments that launches share.

use super::{Arg, Buffer, Launch, NormSite, Program, Role, Tensor};
use crate::kernel::{Kernel, ParamKind};
use crate::predictor::Kind;
use crate::{KernelSpec, Norm, predictor};

/// Puts a program together: kernels and buffers come into being when a launch first asks for them.
pub(super) struct Builder {
    pub(super) program: Program,
    /// Of what is being put together.
    pub(super) launches: Vec<Launch>,
}

impl Builder {
    pub(super) fn spec(&self) -> &KernelSpec {
        &self.program.spec
    }

    /// The address of element `at` (of `size` bytes) of the buffer of `role`, which has `bytes` in all.
    pub(super) fn at(&mut self, role: Role, bytes: usize, offset: usize) -> Arg {
        let buffer = self.program.buffer(role).unwrap_or_else(|| {
            self.program.buffers.push(Buffer { role, bytes: bytes as u64 });
            self.program.buffers.len() - 1
        });
        Arg::Buffer { buffer, offset: offset as u64 }
    }

    pub(super) fn all(&mut self, role: Role, bytes: usize) -> Arg {
        self.at(role, bytes, 0)
    }

    pub(super) fn tensor(&mut self, tensor: Tensor, bytes: usize) -> Arg {
        self.all(Role::Tensor(tensor), bytes)
    }

    pub(super) fn launch(&mut self, layer: Option<usize>, kernel: Kernel, args: Vec<Arg>) {
        let grid = kernel.grid;
        self.launch_on(layer, kernel, grid, args);
    }

    pub(super) fn launch_on(&mut self, layer: Option<usize>, kernel: Kernel, grid: [u32; 2], args: Vec<Arg>) {
        debug_assert_eq!(kernel.params.len(), args.len(), "{}", kernel.name);
        debug_assert!(kernel.params.iter().zip(&args).all(|(param, arg)| match param.kind {
            ParamKind::Buffer(..) => matches!(arg, Arg::Buffer { .. }),
            ParamKind::U32 => matches!(arg, Arg::U32(_)),
        }));
        let kernels = &mut self.program.kernels;
        let index = kernels.iter().position(|known| known.name == kernel.name).unwrap_or_else(|| {
            kernels.push(kernel);
            kernels.len() - 1
        });
        self.launches.push(Launch { kernel: index, grid, args, layer });
    }

    pub(super) fn state(&mut self) -> Arg {
        self.all(Role::State, 16)
    }

    pub(super) fn residual(&mut self) -> Arg {
        let bytes = 4 * self.spec().sizes.hidden;
        self.all(Role::Residual, bytes)
    }

    /// Counts of a layer.
    pub(super) fn counts(&mut self, layer: usize) -> Arg {
        let layers = self.spec().sizes.layers;
        self.at(Role::Counts, 8 * layers, 8 * layer)
    }

    /// List of a layer.
    pub(super) fn list(&mut self, kind: Kind, layer: usize) -> Arg {
        let width = predictor::units(self.spec(), kind);
        let layers = self.spec().sizes.layers;
        self.at(Role::Lists(kind), 4 * layers * width, 4 * layer * width)
    }

    /// Records of a layer's heads and key/value heads.
    pub(super) fn records(&mut self, spec: &KernelSpec, layer: usize) -> [Arg; 2] {
        let (s, row) = (&spec.sizes, spec.row_bytes() as usize);
        [
            self.tensor(Tensor::Heads(layer), s.heads * 2 * s.head_dim * row),
            self.tensor(Tensor::KvHeads(layer), s.kv_heads * 2 * s.head_dim * row),
        ]
    }

    /// Records of a layer's neurons.
    pub(super) fn neurons(&mut self, spec: &KernelSpec, layer: usize) -> Arg {
        let rows = if spec.family.is_llama() { 3 } else { 2 };
        self.tensor(Tensor::Neurons(layer), spec.sizes.ffn * rows * spec.row_bytes() as usize)
    }

    /// Keys and values of a layer.
    pub(super) fn cache(&mut self, spec: &KernelSpec, layer: usize) -> [Arg; 2] {
        let s = &spec.sizes;
        let bytes = s.kv_heads * s.context * s.head_dim * spec.cache.size();
        [Role::Keys, Role::Values].map(|role| self.at(role, s.layers * bytes, layer * bytes))
    }

    /// What is done to queries, keys and values: biases and rotations.
    pub(super) fn qkv_vectors(&mut self, spec: &KernelSpec, layer: usize) -> Vec<Arg> {
        let (s, mut args) = (&spec.sizes, Vec::new());
        if spec.bias.qkv {
            args.push(self.tensor(Tensor::QueryBias(layer), 4 * s.heads * s.head_dim));
            args.push(self.tensor(Tensor::KeyBias(layer), 4 * s.kv_heads * s.head_dim));
            args.push(self.tensor(Tensor::ValueBias(layer), 4 * s.kv_heads * s.head_dim));
        }
        if spec.family.is_llama() {
            args.push(self.tensor(Tensor::Rope, 4 * s.context * s.head_dim));
        }
        args
    }

    /// Biases of the first rows of an FFN.
    pub(super) fn ffn_vectors(&mut self, spec: &KernelSpec, layer: usize) -> Vec<Arg> {
        let (s, mut args) = (&spec.sizes, Vec::new());
        if spec.bias.ffn {
            args.push(self.tensor(Tensor::FirstBias(layer), 4 * s.ffn));
            if spec.family.is_llama() {
                args.push(self.tensor(Tensor::UpBias(layer), 4 * s.ffn));
            }
        }
        args
    }

    /// Arguments of the parameters of a norm.
    pub(super) fn norm(&mut self, site: NormSite) -> Vec<Arg> {
        let bytes = 4 * self.spec().sizes.hidden;
        let mut args = vec![self.residual(), self.tensor(Tensor::NormWeight(site), bytes)];
        if self.spec().norm == Norm::LayerNorm {
            args.push(self.tensor(Tensor::NormBias(site), bytes));
        }
        args
    }
}
