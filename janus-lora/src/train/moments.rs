//! `optimizer.safetensors`: AdamW's state, under the names of the adapter's tensors and torch's names of the parts:
//! `<tensor>.exp_avg` and `<tensor>.exp_avg_sq` in f32 and the tensor's shape, `<tensor>.step` as an I64 scalar. A tensor that
//! had no gradient yet has none of them. Beside them, where a codebook is trained, `codebook.shares`: how its codes are used.

use std::borrow::Cow;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, View, serialize_to_file};

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
    Values(&'a [f32], &'a [usize]),
    Count(i64),
}

impl View for Part<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Part::Values(..) => Dtype::F32,
            Part::Count(_) => Dtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Part::Values(_, shape) => shape,
            Part::Count(_) => &[],
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Part::Values(values, _) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Part::Count(count) => count.to_le_bytes().to_vec().into(),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Part::Values(values, _) => std::mem::size_of_val(*values),
            Part::Count(count) => std::mem::size_of_val(count),
        }
    }
}

/// Writes the state of every tensor into a folder that is yet to be put in its place.
///
/// # Errors
/// The system's.
pub(super) fn write(folder: &Path, stepper: &Stepper) -> Result<(), std::io::Error> {
    let Stepper { trainables, optimizer, .. } = stepper;
    let mut parts = Vec::with_capacity(3 * trainables.len());
    for (number, trainable) in trainables.iter().enumerate() {
        let Some(moments) = optimizer.state(number) else { continue };
        let name = |part: &str| format!("{}.{part}", trainable.name);
        parts.push((name(FIRST), Part::Values(moments.first, trainable.var.dims())));
        parts.push((name(SECOND), Part::Values(moments.second, trainable.var.dims())));
        parts.push((name(STEP), Part::Count(moments.steps.into())));
    }
    let codes = stepper.codebook.as_ref().map(|codebook| [codebook.shares().len()]);
    if let (Some(codebook), Some(codes)) = (&stepper.codebook, &codes) {
        parts.push((SHARES.to_owned(), Part::Values(codebook.shares(), codes)));
    }
    serialize_to_file(parts, None, &folder.join(FILE)).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(error) => error,
        other => std::io::Error::other(other.to_string()),
    })
}

/// Puts the state of every tensor back, or says what is wrong and changes nothing.
///
/// # Errors
/// What is wrong.
pub(super) fn read(folder: &Path, stepper: &mut Stepper) -> Result<(), String> {
    let Stepper { trainables, optimizer, codebook, .. } = stepper;
    let path = folder.join(FILE);
    let told = |e: &dyn std::fmt::Display| e.to_string();
    let values: u64 = trainables.iter().map(|trainable| trainable.var.elem_count() as u64).sum();
    let limit = values.saturating_mul(2 * 4).saturating_add(HEADER_LIMIT_BYTES);
    let bytes = janus_core::input::read_named(&path, limit).map_err(|e| told(&e))?;
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
        optimizer.restore(number, first, second, steps);
    }
    Ok(())
}

/// The values of an F32 tensor.
fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
    tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
