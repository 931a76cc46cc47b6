//! The option of commands that may decode on a GPU.

use std::sync::Arc;

use clap::Args;
use shadowllm_weights::{Checkpoint, PackedCheckpoint};

use super::console::Console;
use crate::generate::{Session, SessionOptions};
use crate::gpu::{Device, DeviceModel, Gpu};
use crate::{Error, Result};

/// Where tokens are decoded.
#[derive(Clone, Debug, Args)]
pub(super) struct DeviceArgs {
    /// Where prompts and tokens are run: cpu, cuda or cuda:N (an NVIDIA GPU by its number), or auto (the first GPU if it can run the model,
    /// else the CPU). A GPU takes packed weights, which are made if need be.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    device: Device,
}

impl DeviceArgs {
    /// The GPU, if it is to be one. With `auto`, says why not if it is not.
    pub(super) fn open(&self, console: &Console) -> Result<Option<Gpu>> {
        self.unless_auto(console, self.device.open()).map(Option::flatten)
    }

    /// Makes `session` decode on the GPU. One that is over plain weights becomes one over the packed weights of `plain`. With `auto`, leaves
    /// it as it is and says why if that cannot be.
    pub(super) fn place(
        &self,
        console: &Console,
        gpu: &Gpu,
        plain: Option<&Checkpoint>,
        session: &mut Session,
    ) -> Result<()> {
        let mut place = || {
            let progress = console.bytes_progress();
            let engine = match plain {
                Some(checkpoint) => session.engine().over(&PackedCheckpoint::open_or_pack(checkpoint, &progress)?)?,
                None => session.engine().clone(),
            };
            let model = Arc::new(DeviceModel::load(gpu, &engine, &progress)?);
            if plain.is_none() {
                return session.set_device(Some(&model));
            }
            let context = session.remaining() + session.tokens().len();
            let mut packed = engine.session(SessionOptions { context: Some(context) })?;
            packed.set_device(Some(&model))?;
            *session = packed;
            Ok(())
        };
        let placed = place();
        self.unless_auto(console, placed).map(drop)
    }

    /// What was asked for; with `auto`, `None` for what a device cannot do, after saying why.
    fn unless_auto<T>(&self, console: &Console, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Error::Gpu(error)) if self.device == Device::Auto => {
                console.note(&format!("decoding on the CPU: {error}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
