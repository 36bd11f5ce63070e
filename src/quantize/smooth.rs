//! Activations whose channels differ widely, made easier to quantize.
//!
//! ```text
//! x · W = (x ⊙ f) · (diag(1/f) · W)
//! ```
//!
//! One grid serves all channels of `x`; where one channel is a hundred times as large as
//! the rest, those keep a few steps. `f` divides each channel by
//! `s = max|x|^α / max|W|^(1−α)` and the weight's row, which has a scale for each column
//! and so much room, takes that up (Xiao and others, SmoothQuant, 2022). A constant as
//! large on both sides leaves either alone.

use super::constants::Constants;
use super::{Kind, Observed, Plan, attribute, floats};
use crate::import::{Diagnostic, Draft};
use std::collections::BTreeMap;

/// The factors of every activation that products by constant matrices alone read, from
/// max |x| of its channels ([`super::Histogram::channels`]). `strength` is α.
pub fn factors(
    draft: &mut Draft,
    plan: &Plan,
    observed: &Observed,
    strength: f64,
) -> Result<BTreeMap<String, Vec<f32>>, Box<Diagnostic>> {
    let constants = Constants::of(&draft.proto.graph);
    // max |W| of each row, over all products that read a value; none where one of them
    // cannot take factors up.
    let mut rows: BTreeMap<String, Option<Vec<f32>>> = BTreeMap::new();
    for p in &plan.products {
        let node = draft.proto.graph.node[p.node].clone();
        for &slot in &p.activations {
            let found = match slot {
                0 => row_maxima(draft, &constants, &node, p.weight.map(|w| w.0))?,
                _ => None,
            };
            let all = rows
                .entry(node.input[slot].clone())
                .or_insert(found.clone());
            *all = all.take().zip(found).and_then(|(a, b)| larger(a, &b));
        }
    }
    for name in &plan.outputs {
        rows.insert(name.clone(), None);
    }
    let mut out = BTreeMap::new();
    for (name, rows) in rows {
        let channels = observed.histograms.get(&name).map(|h| &h.channels);
        if let (Some(rows), Some(channels)) = (rows, channels)
            && rows.len() == channels.len()
        {
            let pairs = channels.iter().zip(&rows);
            let of = |(&x, &w): (&f32, &f32)| factor(x, w, strength);
            out.insert(name, pairs.map(of).collect());
        }
    }
    Ok(out)
}

/// What a channel is multiplied by: near 1 where nothing is known of it.
fn factor(x: f32, w: f32, strength: f64) -> f32 {
    let tame = |v: f32| v.is_finite() && v > 0.0;
    if !tame(x) || !tame(w) {
        return 1.0;
    }
    let s = (x as f64).powf(strength) / (w as f64).powf(1.0 - strength);
    (1.0 / s.clamp(1e-5, 1e5)) as f32
}

fn larger(a: Vec<f32>, b: &[f32]) -> Option<Vec<f32>> {
    (a.len() == b.len()).then(|| a.iter().zip(b).map(|(a, b)| a.max(*b)).collect())
}

/// max |W| of each row of the matrix that a node multiplies by from the right.
fn row_maxima(
    draft: &mut Draft,
    constants: &Constants,
    node: &super::NodeProto,
    weight: Option<usize>,
) -> Result<Option<Vec<f32>>, Box<Diagnostic>> {
    if weight != Some(1) || attribute(node, "transA").is_some_and(|a| a.i != 0) {
        return Ok(None);
    }
    let Some(t) = constants
        .read(draft, &node.input[1])?
        .filter(|t| t.shape().len() == 2)
    else {
        return Ok(None);
    };
    let Some(rows) = rows(node) else {
        return Ok(None);
    };
    let (values, n) = (floats(&t), t.shape()[1].max(1));
    let mut maxima = vec![0f32; t.shape()[rows]];
    for (i, v) in values.iter().enumerate() {
        let m = &mut maxima[if rows == 0 { i / n } else { i % n }];
        *m = m.max(v.abs());
    }
    Ok(Some(maxima))
}

/// The axis of a node's right matrix that runs with the last axis of the left.
fn rows(node: &super::NodeProto) -> Option<usize> {
    match Kind::of(node)? {
        Kind::MatMul => Some(0),
        Kind::Gemm => Some(usize::from(
            attribute(node, "transB").is_some_and(|a| a.i != 0),
        )),
        Kind::Conv | Kind::Gather => None,
    }
}

/// A right matrix of this shape with its rows divided by factors.
pub(super) fn take_up(node: &super::NodeProto, w: &mut [f32], shape: &[usize], factors: &[f32]) {
    let (Some(axis), &[_, n]) = (rows(node), shape) else {
        return;
    };
    for (i, v) in w.iter_mut().enumerate() {
        let k = if axis == 0 { i / n } else { i % n };
        *v = (*v as f64 / factors[k] as f64) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_channel_is_divided_and_an_empty_one_is_left() {
        assert_eq!(factor(0.0, 1.0, 0.5), 1.0);
        assert_eq!(factor(1.0, 0.0, 0.5), 1.0);
        assert!((factor(16.0, 1.0, 0.5) - 0.25).abs() < 1e-6);
        assert!((factor(16.0, 1.0, 1.0) - 1.0 / 16.0).abs() < 1e-6);
        // A strength of 0 evens out the weight alone.
        assert!((factor(16.0, 4.0, 0.0) - 4.0).abs() < 1e-6);
    }
}
