//! A model's weights on a device.

use std::collections::HashMap;
use std::sync::Arc;

use shadowllm_codegen::{Program, Role, Tensor};
use shadowllm_weights::Progress;

use super::shared::Allocation;
use super::upload::Source;
use super::{Gpu, GpuError, spec};
use crate::generate::Engine;
use crate::sparsity::Scope;
use crate::{Error, Result};

/// What code and graphs take beside the buffers, and more.
const RESERVE: u64 = 64 << 20;
/// Allocations are rounded up to this.
const GRAIN: u64 = 512;
/// Bytes between two reports of progress.
const REPORT: usize = 64 << 20;

/// The weights of one engine on a device, for any number of sessions.
///
/// ```no_run
/// use std::sync::Arc;
/// use shadowllm::gpu::{Device, DeviceModel};
/// use shadowllm::weights::{Checkpoint, PackedCheckpoint};
/// use shadowllm::{Engine, EngineOptions, SessionOptions};
///
/// # fn main() -> shadowllm::Result<()> {
/// let packed = PackedCheckpoint::open_or_pack(&Checkpoint::embedded()?, &())?;
/// let engine = Engine::load_packed(&packed, EngineOptions::default())?;
/// let gpu = Device::Cuda(0).open()?.expect("a GPU is no CPU");
/// let model = Arc::new(DeviceModel::load(&gpu, &engine, &())?);
/// let mut session = engine.session(SessionOptions::default())?;
/// session.set_device(Some(&model))?;
/// let logits = session.prefill(&[2, 50, 1266, 584])?; // on the GPU, as what follows
/// let token = shadowllm::kernels::argmax(logits) as u32;
/// session.step(token)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DeviceModel {
    pub(super) gpu: Gpu,
    engine: Engine,
    tensors: HashMap<Tensor, Arc<Allocation>>,
}

impl DeviceModel {
    /// Copies the weights of an engine to a device, after a look whether they fit there.
    ///
    /// # Errors
    /// [`GpuError::NotPacked`]; [`GpuError::Unsupported`] and [`GpuError::Spec`] for models without kernels; [`GpuError::Memory`];
    /// [`Error::Weights`] with [`shadowllm_weights::Error::Interrupted`] if `progress` says so.
    pub fn load(gpu: &Gpu, engine: &Engine, progress: &dyn Progress) -> Result<DeviceModel> {
        let (model, packed) = (engine.model(), engine.packed().ok_or(GpuError::NotPacked)?);
        let config = engine.config();
        let spec = spec::kernel_spec(model, config.max_positions, 1, Scope::Local, gpu.sm())?;
        let program = Program::emit(&spec, None, &spec::windows(config)).map_err(GpuError::from)?;
        let source = Source { model, packed, predictor: None };
        let head_is_embedding = std::ptr::eq(model.head.view_bytes(), model.embedding.view_bytes());
        let wanted: Vec<(Tensor, u64)> = program
            .buffers
            .iter()
            .filter_map(|buffer| match buffer.role {
                Role::Tensor(Tensor::LmHead) if head_is_embedding => None,
                Role::Tensor(tensor) => Some((tensor, buffer.bytes)),
                _ => None,
            })
            .collect();
        let total = rounded(wanted.iter().map(|(_, bytes)| *bytes));
        gpu.check_room("the model", total + RESERVE)?;
        progress.start(&format!("copying to {}", gpu.name()), Some(total));
        let mut tensors = HashMap::new();
        let copy = || -> Result<()> {
            for (tensor, bytes) in wanted {
                tensors.insert(tensor, upload(gpu, &source, tensor, bytes, progress)?);
            }
            Ok(())
        };
        let copied = copy();
        progress.finish();
        copied?;
        if let Some(embedding) = tensors.get(&Tensor::Embedding).filter(|_| head_is_embedding) {
            tensors.insert(Tensor::LmHead, Arc::clone(embedding));
        }
        Ok(DeviceModel { gpu: gpu.clone(), engine: engine.clone(), tensors })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The engine whose weights these are.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// A tensor of the model; `None` for those of a predictor.
    pub(super) fn tensor(&self, tensor: Tensor) -> Option<&Arc<Allocation>> {
        self.tensors.get(&tensor)
    }
}

/// What `bytes` in several buffers take at most.
pub(super) fn rounded(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.map(|bytes| bytes.next_multiple_of(GRAIN)).sum()
}

/// Puts a tensor, of which `bytes` bytes are wanted, on a device.
pub(super) fn upload(
    gpu: &Gpu,
    source: &Source<'_>,
    tensor: Tensor,
    bytes: u64,
    progress: &dyn Progress,
) -> Result<Arc<Allocation>> {
    let content = source.bytes(tensor)?;
    let found = content.len() as u64;
    if found != bytes {
        let reason = format!("its tensor {tensor:?} has {found} bytes, and its kernels read {bytes}");
        return Err(GpuError::Unsupported { reason }.into());
    }
    let buffer = gpu.shared.alloc(&format!("{tensor:?}"), bytes)?;
    for (at, part) in content.chunks(REPORT).enumerate() {
        gpu.shared.lock().write(buffer.id, (at * REPORT) as u64, part)?;
        progress.advance(part.len() as u64);
        if !progress.go_on() {
            return Err(Error::Weights(shadowllm_weights::Error::Interrupted));
        }
    }
    Ok(Arc::new(buffer))
}
