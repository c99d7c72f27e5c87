//! What heads tell of a table's pictures, and its figures.

use candle_core::Tensor;
use serde_json::Value;

use super::Evaluation;
use crate::adapter::AdapterError;
use crate::error::Result;
use crate::heads::HeadKind;
use crate::tasks::Batch;

/// Evaluates a table of a head of this kind; `None` without its head.
pub(super) fn evaluate(evaluation: &Evaluation<'_>, kind: &HeadKind) -> Result<Option<Value>> {
    let Some(head) = evaluation.heads.get(evaluation.name) else { return Ok(None) };
    if head.kind != *kind {
        let name = evaluation.name.to_owned();
        if head.kind.task() != kind.task() {
            let (expected, got) = (kind.task(), head.kind.task());
            return Err(AdapterError::OtherTask { name, expected, got }.into());
        }
        let (expected, got) = (kind.labels().to_vec(), head.kind.labels().to_vec());
        return Err(AdapterError::OtherLabels { name, expected, got }.into());
    }
    let (model, form) = (evaluation.model, kind.form());
    let (mut figures, mut sum) = (form.figures(), 0.0);
    evaluation.each(|_, batch| {
        let Batch::Pictures(batch) = batch else { return Ok(()) };
        let each = batch.output_of_each(model, head)?;
        let together = |tensor: usize| {
            let own: Vec<&Tensor> = each.iter().map(|output| &output[tensor]).collect();
            Tensor::cat(&own, 0)
        };
        let all = (0..each.first().map_or(0, Vec::len)).map(together).collect::<candle_core::Result<Vec<_>>>()?;
        sum += f64::from(batch.loss_of(model, head, &all)?.sum.to_scalar::<f32>()?);
        for ((target, frame), output) in batch.targets.iter().zip(&batch.frames).zip(&each) {
            let answer = form.answer(model.config(), output, frame)?;
            figures.add(target, output, &answer)?;
            evaluation.predicted(
                || form.truth(target),
                || Value::Object(form.description(&answer, &[]).json.into_iter().collect()),
            );
        }
        Ok(())
    })?;
    Ok(Some(figures.metrics(sum)?))
}
