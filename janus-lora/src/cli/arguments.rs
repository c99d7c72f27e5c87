//! What several commands are given in the same words.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use clap::Args;
use janus_core::{DeviceChoice, Janus, Parts};

use crate::adapter::{self, Adapter};
use crate::base::Base;
use crate::error::{Error, Result};
use crate::heads::Heads;
use crate::status::Status;

/// A base and the adapters over it.
#[derive(Debug, Args)]
pub(super) struct BaseArguments {
    /// Base: `janus-nano` (built in), a folder, a hub id such as `deepseek-ai/Janus-Pro-1B`, or `init:SHAPE?seed=N`
    #[arg(long)]
    pub(super) base: String,
    /// Adapter folder, with a factor on its scale after a colon; several add up
    #[arg(long = "adapter", value_name = "DIR[:SCALE]")]
    pub(super) adapters: Vec<String>,
}

impl BaseArguments {
    /// The base and its adapters, checked against each other.
    pub(super) fn open(&self, status: &dyn Status) -> Result<(Base, Vec<(Adapter, f64)>)> {
        let base = Base::open(&self.base, status)?;
        let adapters =
            self.adapters.iter().map(|text| read_adapter(text, &base, status)).collect::<Result<Vec<_>>>()?;
        Ok((base, adapters))
    }
}

/// Reads an adapter given as `DIR[:SCALE]` and checks that it belongs to the base.
pub(super) fn read_adapter(text: &str, base: &Base, status: &dyn Status) -> Result<(Adapter, f64)> {
    let (folder, scale): (PathBuf, f64) = adapter::parse_argument(text)?;
    Ok((read_adapter_folder(&folder, base, status)?, scale))
}

/// Reads an adapter and checks that it belongs to the base.
pub(super) fn read_adapter_folder(folder: &Path, base: &Base, status: &dyn Status) -> Result<Adapter> {
    let adapter = Adapter::read(folder, base.config(), base.checkpoint().is_tied())?;
    adapter.check_base_copies(&|name| Ok(base.checkpoint().read(name, DType::F32)?))?;
    if adapter.note.as_ref().is_some_and(|note| note.base.is_some()) {
        adapter::check_fingerprint(adapter.note.as_ref(), &base.fingerprint(status)?)?;
    } else {
        let folder = folder.display();
        status.warn(&format!("`{folder}` does not say which base it was trained on: it is taken to be this one"));
    }
    Ok(adapter)
}

/// Lets the model compute with the adapters; their heads.
pub(super) fn attach(model: &Janus, adapters: &[(Adapter, f64)]) -> Result<Heads> {
    let adapters: Vec<(&Adapter, f64)> = adapters.iter().map(|(adapter, scale)| (adapter, *scale)).collect();
    adapter::attach(model, &adapters)?;
    Ok(adapter::heads(&adapters, model.device())?)
}

/// Where to compute.
#[derive(Debug, Args)]
pub(super) struct DeviceArgument {
    /// cpu, cuda, cuda:N, metal, or auto: the GPU this program was built for, where there is one
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub(super) device: DeviceChoice,
}

impl DeviceArgument {
    /// The device, or why there is none: asked for before anything else, so that it is told at once.
    pub(super) fn open(&self) -> Result<Device> {
        Ok(self.device.open()?)
    }
}

/// How a base is computed.
#[derive(Debug, Args)]
pub(super) struct TypeArgument {
    /// What the frozen weights are computed in: f32 or bf16; by default bf16 where they are stored in 16 bits
    #[arg(long, value_name = "TYPE", value_parser = parse_dtype)]
    pub(super) dtype: Option<DType>,
}

impl TypeArgument {
    /// The model with its adapters attached, and their heads.
    pub(super) fn model(
        &self,
        base: &Base,
        adapters: &[(Adapter, f64)],
        device: &Device,
        parts: Parts,
        status: &dyn Status,
    ) -> Result<(Janus, Heads)> {
        let stored = base.checkpoint().stored_dtype();
        let dtype = self.dtype.unwrap_or(if stored == DType::F32 { DType::F32 } else { DType::BF16 });
        if dtype == DType::F16 {
            let message = "weights are computed in f32 or bf16, not in f16".to_owned();
            return Err(Error::Usage { message, hint: "leave `--dtype` out, or give f32 or bf16".into() });
        }
        let model = base.model(dtype, device, parts, status)?;
        let heads = attach(&model, adapters)?;
        Ok((model, heads))
    }
}

/// `f32`, `bf16` or `f16`.
pub(super) fn parse_dtype(text: &str) -> std::result::Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        other => Err(format!("`{other}` is none of f32, bf16, f16")),
    }
}
