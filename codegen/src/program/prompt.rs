//! The launches of a block of a prompt, and those after the last.

use super::builder::Builder;
use super::{Arg, NormSite, Role, Tensor};
use crate::{Family, KernelSpec, prompt};

impl Builder {
    pub(super) fn prompt(&mut self, windows: &[u32]) {
        let spec = self.spec().clone();
        let (s, row) = (&spec.sizes, spec.row_bytes() as usize);
        let block = self.all(Role::Block, 4 * prompt::BLOCK_WORDS);
        let stream = self.all(Role::Scratch("prompt streams"), 4 * prompt::TOKENS * s.hidden);
        let mut args = vec![self.tensor(Tensor::Embedding, s.vocab * row)];
        if spec.family == Family::Opt {
            args.push(self.tensor(Tensor::Positions, (s.context + spec.position_offset) * row));
        }
        args.extend([block, stream]);
        self.launch(None, prompt::embed(&spec), args);
        for layer in 0..s.layers {
            let here = Some(layer);
            let input = self.prompt_norm(&spec, NormSite::Attention(layer));
            let [heads, kv_heads] = self.records(&spec, layer);
            let [keys, values] = self.cache(&spec, layer);
            let queries = self.all(Role::Scratch("prompt queries"), 4 * prompt::TOKENS * s.heads * s.head_dim);
            let mut args = vec![heads, kv_heads, input, block];
            args.extend(self.qkv_vectors(&spec, layer));
            args.extend([keys, values, queries]);
            self.launch(here, prompt::qkv(&spec), args);
            let contexts = self.split("prompt contexts", &spec, s.heads * s.head_dim);
            let window = windows.get(layer).copied().unwrap_or(0);
            let args = vec![keys, values, queries, block, contexts, Arg::U32(window)];
            self.launch(here, prompt::attention(&spec), args);
            let sums = self.prompt_sums(&spec);
            self.launch(here, prompt::output(&spec), vec![heads, contexts, block, sums]);

            let input = self.prompt_norm(&spec, NormSite::Ffn(layer));
            let inner = self.split("prompt inner values", &spec, s.ffn);
            let records = self.neurons(&spec, layer);
            let mut args = vec![records, input, block];
            args.extend(self.ffn_vectors(&spec, layer));
            args.push(inner);
            self.launch(here, prompt::ffn_first(&spec), args);
            self.launch(here, prompt::ffn_second(&spec), vec![records, inner, block, sums]);
        }
    }

    /// Split activations of a block of a prompt.
    fn split(&mut self, name: &'static str, spec: &KernelSpec, width: usize) -> Arg {
        self.all(Role::Scratch(name), prompt::planes_bytes(spec, width))
    }

    fn prompt_sums(&mut self, spec: &KernelSpec) -> Arg {
        let bytes = 4 * prompt::parts(spec) * prompt::TOKENS * spec.sizes.hidden;
        self.all(Role::Scratch("prompt sums"), bytes)
    }

    /// The bias of the product in front of a norm, and whether there is such a product.
    fn prompt_before(&mut self, spec: &KernelSpec, site: NormSite) -> (prompt::Before, Option<Arg>) {
        let (bias, tensor) = match site {
            NormSite::Attention(0) => return (prompt::Before::Nothing, None),
            NormSite::Attention(layer) => (spec.bias.ffn, Tensor::SecondBias(layer - 1)),
            NormSite::Ffn(layer) => (spec.bias.out, Tensor::OutBias(layer)),
            NormSite::Final => (spec.bias.ffn, Tensor::SecondBias(spec.sizes.layers - 1)),
        };
        let arg = bias.then(|| self.tensor(tensor, 4 * spec.sizes.hidden));
        (prompt::Before::Product { bias }, arg)
    }

    /// Adds the product in front to the residual streams of a block, and normalises them.
    fn prompt_norm(&mut self, spec: &KernelSpec, site: NormSite) -> Arg {
        let (before, bias) = self.prompt_before(spec, site);
        let stream = self.all(Role::Scratch("prompt streams"), 4 * prompt::TOKENS * spec.sizes.hidden);
        let mut args = vec![stream];
        args.extend(self.norm(site).into_iter().skip(1));
        args.push(self.all(Role::Block, 4 * prompt::BLOCK_WORDS));
        if before != prompt::Before::Nothing {
            args.push(self.prompt_sums(spec));
        }
        args.extend(bias);
        let output = self.split("prompt input", spec, spec.sizes.hidden);
        args.push(output);
        let layer = match site {
            NormSite::Attention(layer) | NormSite::Ffn(layer) => Some(layer),
            NormSite::Final => None,
        };
        self.launch(layer, prompt::norm(spec, before), args);
        output
    }

    pub(super) fn prompt_end(&mut self) {
        let spec = self.spec().clone();
        let s = &spec.sizes;
        let (_, bias) = self.prompt_before(&spec, NormSite::Final);
        let stream = self.all(Role::Scratch("prompt streams"), 4 * prompt::TOKENS * s.hidden);
        let mut args = vec![stream, self.all(Role::Block, 4 * prompt::BLOCK_WORDS), self.prompt_sums(&spec)];
        args.extend(bias);
        args.extend([self.residual(), self.arrivals(0)]);
        args.push(self.all(Role::Watermarks, 4 * s.layers * (s.kv_heads + 1)));
        args.push(self.state());
        self.launch(None, prompt::end(&spec, spec.bias.ffn), args);
        self.end();
    }
}
