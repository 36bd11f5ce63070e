//! Linear models.

use super::{floats, rows, scores};
use crate::onnx::cx::{Cx, Fail, Out};

/// One number for each target. ONNX Runtime transforms the results of several
/// targets only.
pub(crate) fn regressor(cx: &mut Cx) -> Out {
    let x = rows(cx)?;
    let targets = usize::try_from(cx.int("targets", 1)?)
        .ok()
        .filter(|&t| t > 0)
        .ok_or_else(|| Fail::invalid("`targets` is below 1"))?;
    let weights = floats(cx, "coefficients")?.unwrap_or_default();
    let bias = floats(cx, "intercepts")?.unwrap_or_default();
    let y = scores::product(cx, x, &weights, &bias, targets)?;
    match targets {
        1 => Ok(vec![y]),
        _ => Ok(vec![scores::transformed(cx, y)?]),
    }
}

/// Labels and scores; one set of weights stands for two classes.
pub(crate) fn classifier(cx: &mut Cx) -> Out {
    let x = rows(cx)?;
    let labels = scores::labels(cx, "classlabels_ints")?;
    let weights = floats(cx, "coefficients")?.unwrap_or_default();
    let bias = floats(cx, "intercepts")?.unwrap_or_default();
    let width = super::width(cx, x)?.max(1);
    let y = scores::product(cx, x, &weights, &bias, weights.len() / width)?;
    if weights.len() / width == 1 && labels.len() == 2 {
        let label = scores::above(cx, y, 0.0, &labels)?;
        return Ok(vec![label, scores::two(cx, y, 1.0)?]);
    }
    let label = scores::best(cx, y, &labels)?;
    Ok(vec![label, scores::transformed(cx, y)?])
}
