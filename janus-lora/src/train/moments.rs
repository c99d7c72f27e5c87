//! `optimizer.safetensors`: AdamW's state, under the names of the adapter's tensors and torch's names of the parts:
//! `<tensor>.exp_avg` and `<tensor>.exp_avg_sq` in f32 and the tensor's shape, `<tensor>.step` as an I64 scalar. A tensor that
//! had no gradient yet has none of them. Beside them, where a codebook is trained, `codebook.shares`: how its codes are used.

use std::borrow::Cow;
use std::io::{self, Write};

use janus_core::directory::Directory;
use janus_core::input;
use janus_core::output::{OutputError, write_below};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo, TensorView};

use super::step::Stepper;

/// File name in a checkpoint.
pub(super) const FILE: &str = "optimizer.safetensors";

const FIRST: &str = "exp_avg";
const SECOND: &str = "exp_avg_sq";
const STEP: &str = "step";
const SHARES: &str = "codebook.shares";

/// Room for names and shapes beside the values.
const HEADER_LIMIT_BYTES: u64 = 100_000_000;

/// A part of the state, in memory as it is.
enum Part<'a> {
    Values(Cow<'a, [f32]>, &'a [usize]),
    Count(i64),
}

impl Part<'_> {
    fn info(&self, begin: usize) -> TensorInfo {
        let (dtype, shape, bytes) = match self {
            Part::Values(values, shape) => (Dtype::F32, shape.to_vec(), std::mem::size_of_val(&**values)),
            Part::Count(count) => (Dtype::I64, Vec::new(), std::mem::size_of_val(count)),
        };
        TensorInfo { dtype, shape, data_offsets: (begin, begin + bytes) }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Part::Values(values, _) => values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes())),
            Part::Count(count) => out.write_all(&count.to_le_bytes()),
        }
    }
}

/// Writes the state of every tensor into a folder that is yet to be put in its place.
///
/// # Errors
/// The system's.
pub(super) fn write(folder: &Directory, stepper: &Stepper) -> Result<(), OutputError> {
    let Stepper { trainables, optimizer, .. } = stepper;
    let failed = |source| OutputError::Io { path: folder.path().join(FILE), source };
    let mut parts = Vec::with_capacity(3 * trainables.len());
    for (number, trainable) in trainables.iter().enumerate() {
        let state = optimizer.state(number).map_err(|e| failed(io::Error::other(e)))?;
        let Some(moments) = state else { continue };
        let name = |part: &str| format!("{}.{part}", trainable.name);
        parts.push((name(FIRST), Part::Values(moments.first, trainable.var.dims())));
        parts.push((name(SECOND), Part::Values(moments.second, trainable.var.dims())));
        parts.push((name(STEP), Part::Count(moments.steps.into())));
    }
    let codes = stepper.codebook.as_ref().map(|codebook| [codebook.shares().len()]);
    if let (Some(codebook), Some(codes)) = (&stepper.codebook, &codes) {
        parts.push((SHARES.to_owned(), Part::Values(codebook.shares().into(), codes)));
    }
    // As the format's own writer has them: wider types first, so that all are aligned, then by name.
    parts.sort_by(|(a, one), (b, two)| two.info(0).dtype.cmp(&one.info(0).dtype).then_with(|| a.cmp(b)));
    let mut infos = Vec::with_capacity(parts.len());
    let mut at = 0;
    for (name, part) in &parts {
        let info = part.info(at);
        at = info.data_offsets.1;
        infos.push((name.clone(), info));
    }
    write_below(folder, FILE, |out| {
        let header = Metadata::new(None, infos).map_err(io::Error::other)?;
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        parts.iter().try_for_each(|(_, part)| part.write(out))
    })
}

/// Puts the state of every tensor back, or says what is wrong and changes nothing.
///
/// # Errors
/// What is wrong.
pub(super) fn read(folder: &Directory, stepper: &mut Stepper) -> Result<(), String> {
    let Stepper { trainables, optimizer, codebook, .. } = stepper;
    let told = |e: &dyn std::fmt::Display| e.to_string();
    let values: u64 = trainables.iter().map(|trainable| trainable.var.elem_count() as u64).sum();
    let limit = values.saturating_mul(2 * 4).saturating_add(HEADER_LIMIT_BYTES);
    let bytes = input::read(folder, FILE, limit).map_err(|e| told(&e))?;
    let bytes = bytes.ok_or_else(|| format!("there is no `{FILE}`"))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| format!("`{FILE}` is no safetensors file: {e}"))?;
    let (mut found, mut used) = (Vec::new(), 0);
    for (number, trainable) in trainables.iter().enumerate() {
        let name = |part: &str| format!("{}.{part}", trainable.name);
        if file.tensor(&name(STEP)).is_err() {
            continue;
        }
        let part = |part: &str, dtype: Dtype, shape: &[usize]| -> Result<TensorView<'_>, String> {
            let name = name(part);
            let tensor = file.tensor(&name).map_err(|_| format!("`{FILE}` has no `{name}`"))?;
            if (tensor.dtype(), tensor.shape()) != (dtype, shape) {
                let got = (tensor.dtype(), tensor.shape());
                return Err(format!("`{name}` is {got:?}, expected {:?}", (dtype, shape)));
            }
            Ok(tensor)
        };
        let shape = trainable.var.dims();
        let first = floats(&part(FIRST, Dtype::F32, shape)?);
        let second = floats(&part(SECOND, Dtype::F32, shape)?);
        if let Some(value) = first.iter().chain(&second).find(|value| !value.is_finite()) {
            return Err(format!("the moments of `{}` hold {value}", trainable.name));
        }
        let count: Option<[u8; 8]> = part(STEP, Dtype::I64, &[])?.data().try_into().ok();
        let steps = count.and_then(|count| i32::try_from(i64::from_le_bytes(count)).ok()).filter(|steps| *steps > 0);
        found.push((number, first, second, steps.ok_or_else(|| format!("`{}` counts no steps", name(STEP)))?));
        used += 3;
    }
    let mut shares = None;
    if let Some(codebook) = codebook.as_ref() {
        let tensor = file.tensor(SHARES).map_err(|_| format!("`{FILE}` has no `{SHARES}`"))?;
        if (tensor.dtype(), tensor.shape()) != (Dtype::F32, &[codebook.shares().len()][..]) {
            let got = (tensor.dtype(), tensor.shape());
            return Err(format!("`{SHARES}` is {got:?}, expected {} in f32", codebook.shares().len()));
        }
        shares = Some(floats(&tensor));
        used += 1;
    }
    if used != file.len() {
        return Err(format!("`{FILE}` has {} tensors, {used} of them of this run", file.len()));
    }
    if let (Some(codebook), Some(shares)) = (codebook, shares) {
        codebook.restore(shares);
    }
    for (number, first, second, steps) in found {
        optimizer.restore(number, first, second, steps).map_err(|e| told(&e))?;
    }
    Ok(())
}

/// The values of an F32 tensor.
fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
    tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
