//! The embedding of BERT with its normalization.

use super::super::attention::index;
use super::super::norm::layer_norm_of;
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::{CompareFn, DType, Dim, ReduceFn};

/// Words, positions and segments looked up, added and normalised; how many tokens
/// of each row the mask shows; and the sum.
pub(crate) fn embed(cx: &mut Cx) -> Out {
    let (ids, words, places) = (cx.arg(0)?, cx.arg(2)?, cx.arg(3)?);
    let [batch, length] = &cx.shape(ids)[..] else {
        return Err(Fail::invalid("the words are a matrix"));
    };
    let mut sum = cx.b.gather(words, ids, 0)?;
    let at = match cx.opt(8) {
        Some(at) => at,
        None => index(cx, vec![length.clone()], 0)?,
    };
    let place = cx.b.gather(places, at, 0)?;
    sum = cx.b.add(sum, place)?;
    if let (Some(segments), Some(table)) = (cx.opt(1), cx.opt(4)) {
        let segment = cx.b.gather(table, segments, 0)?;
        sum = cx.b.add(sum, segment)?;
    }
    let (gamma, beta) = (cx.arg(5)?, cx.arg(6)?);
    let eps = cx.float("epsilon", 1e-12)?;
    let y = layer_norm_of(cx, sum, gamma, Some(beta), 2, eps)?;
    let counts = match cx.opt(7) {
        None => cx.b.full(DType::I32, std::slice::from_ref(batch), 0.0)?,
        Some(mask) => {
            let one = cx.like(mask, 1.0)?;
            let seen = cx.b.compare(CompareFn::Eq, mask, one)?;
            let seen = cx.b.cast(seen, DType::I32)?;
            cx.b.reduce(ReduceFn::Sum, seen, &[1], false)?
        }
    };
    Ok(vec![y, counts, sum])
}

/// An axis of extent 1 put in.
pub(crate) fn expand_dims(cx: &mut Cx) -> Out {
    let (x, axis) = (cx.arg(0)?, cx.arg(1)?);
    let axis = cx.need_ints(axis, "the new axis")?;
    let mut shape = cx.shape(x);
    let at = cx.axis(axis.first().copied().unwrap_or(0), shape.len() + 1)?;
    shape.insert(at, Dim::ONE);
    Ok(vec![cx.b.reshape(x, &shape)?])
}
