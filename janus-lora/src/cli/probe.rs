//! `janus probe`.

use std::path::PathBuf;

use candle_core::{DType, Tensor};
use clap::Args;
use janus_core::output::{require_file, write_file};

use super::arguments::{BaseArguments, DeviceArgument, attach};
use super::sandbox::Writes;
use super::status::Terminal;
use crate::culprit::explain;
use crate::error::{Error, Result};
use crate::probe::{ProbeInput, probe};
use crate::train::trainable::Trainables;

/// Run one forward pass in f32 over given tensors and write what comes out.
///
/// Input (I64 ids and masks, F32 pixels): input_ids [B,T], attention_mask [B,T], pixel_values [N,3,H,W],
/// image_tokens [B,K], labels [B,T]. Output (F32): logits [B,T,V] or gen_logits [B,K,codes], image_features [N,P,D],
/// loss, and grad.<adapter tensor> with --gradients.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  janus probe --base base --input in.safetensors --output out.safetensors
  janus probe --base base --adapter runs/inspection --input in.safetensors --output out.safetensors --gradients")]
pub(super) struct Probe {
    #[command(flatten)]
    base: BaseArguments,
    #[command(flatten)]
    device: DeviceArgument,
    /// safetensors file to read
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// safetensors file to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Also the gradients of the loss, for the one adapter given
    #[arg(long)]
    gradients: bool,
}

impl Probe {
    /// What the command means to write.
    pub(super) fn writes(&self) -> Writes {
        Writes { on_device: self.device.may_be_gpu(), ..Writes::output(&self.output) }
    }

    pub(super) fn run(self) -> Result<()> {
        if self.gradients && self.base.adapters.len() != 1 {
            let message = format!("`--gradients` needs one adapter, {} are given", self.base.adapters.len());
            return Err(Error::Usage { message, hint: "give one `--adapter DIR`".into() });
        }
        let output = require_file(&self.output)?;
        let device = self.device.open()?;
        let input = ProbeInput::read(&self.input)?;
        let (base, mut adapters) = self.base.open(&Terminal)?;
        let given = adapters.clone();
        let model = base.model(DType::F32, &device, input.parts(), &Terminal)?;
        let trainables = if self.gradients {
            let (mut adapter, scale) = adapters.remove(0);
            // What lies in parts that this pass does not run has no gradient.
            adapter.sites.retain(|path, _| model.projections().get(path).is_some());
            adapter.saved.retain(|name, _| model.parameters().get(name).is_some());
            Some(Trainables::attach_scaled(&model, adapter, scale)?)
        } else {
            attach(&model, &adapters)?;
            None
        };
        let out: Vec<(String, Tensor)> =
            probe(&base, &model, &input, trainables.as_ref()).map_err(|error| explain(error, &base, &given))?;
        let bytes = safetensors::serialize(out, None).map_err(candle_core::Error::from)?;
        Ok(write_file(&output, |file| file.write_all(&bytes))?)
    }
}
