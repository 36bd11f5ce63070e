//! Inputs to run a function on, and how near results must be.

use super::Failure;
use super::directives::Directives;
use crate::graph::{Graph, PortKind};
use crate::ops::samples::{ArgSpec, Fill, Random};
use crate::tensor::computes_in_integers;
use crate::{Binding, DType, Tensor, TensorType};
use std::collections::BTreeSet;

/// Sizes that are tried in turn: one, a power of two, neither, and more than a
/// vector's lanes.
const SIZES: [usize; 4] = [1, 4, 3, 19];

/// Results that are smaller than this count as this.
const FLOOR: f64 = 1e-3;

/// Seeded inputs for the caller's ports, under a few bindings of the sizes.
pub(super) fn cases(test: &Directives, graph: &Graph) -> Result<Vec<Vec<Tensor>>, Failure> {
    let ports = graph.params.iter().zip(&graph.body().params);
    let types: Vec<&TensorType> = ports
        .filter(|(port, _)| port.kind == PortKind::Caller)
        .map(|(_, &v)| graph.ty(v))
        .collect();
    let mut symbols = BTreeSet::new();
    for ty in &types {
        ty.shape.iter().for_each(|d| d.symbols(&mut symbols));
    }
    let rounds = if symbols.iter().all(|s| test.dims.contains_key(&**s)) {
        1
    } else {
        SIZES.len()
    };
    (0..rounds)
        .map(|round| {
            let size = |(i, s): (usize, _)| {
                let n = test.dims.get::<str>(s).copied();
                n.unwrap_or(SIZES[(round + i) % SIZES.len()]) as i64
            };
            let symbols = symbols.iter().enumerate();
            let binding: Binding = symbols.map(|(i, s)| (s.clone(), size((i, s)))).collect();
            let mut random = Random(round as u64 + 1);
            types
                .iter()
                .map(|ty| input(test, ty, &binding, &mut random))
                .collect()
        })
        .collect()
}

fn input(
    test: &Directives,
    ty: &TensorType,
    binding: &Binding,
    random: &mut Random,
) -> Result<Tensor, Failure> {
    if ty.encoding.is_some() {
        return Err(Failure::Failed(format!("no inputs are made for {ty}")));
    }
    let mut shape = vec![];
    for d in &ty.shape {
        shape.push(usize::try_from(d.eval(binding)?)?);
    }
    let fill = match ty.dtype {
        DType::Bool => Fill::Between(0.0, 1.0),
        d if computes_in_integers(d) => Fill::Between(test.ints.0 as f64, test.ints.1 as f64),
        _ => Fill::Between(-1.0, 1.0),
    };
    let spec = ArgSpec {
        dtype: ty.dtype,
        shape,
        fill,
    };
    Ok(spec.tensor(random))
}

/// The same types and shapes; integers equal; floats within `tol` of the whole
/// (by norm), none farther off than 100 times that share of the largest, and not
/// finite in the same places.
pub(super) fn compare(have: &[Tensor], want: &[Tensor], tol: f64) -> Result<(), String> {
    if have.len() != want.len() {
        return Err(format!("{} results, not {}", have.len(), want.len()));
    }
    for (i, (h, w)) in have.iter().zip(want).enumerate() {
        if (h.dtype(), h.shape()) != (w.dtype(), w.shape()) {
            return Err(format!("result {i} is {}, not {}", h.ty(), w.ty()));
        }
        let near = if tol == 0.0 || !w.dtype().is_float() {
            h == w
        } else {
            near(&h.to_f64(), &w.to_f64(), tol)
        };
        if !near {
            return Err(format!("result {i} is {h:?}, not {w:?}"));
        }
    }
    Ok(())
}

fn near(have: &[f64], want: &[f64], tol: f64) -> bool {
    let (mut error, mut norm, mut worst, mut largest) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for (&h, &w) in have.iter().zip(want) {
        if !h.is_finite() || !w.is_finite() {
            if h == w || (h.is_nan() && w.is_nan()) {
                continue;
            }
            return false;
        }
        error += (h - w) * (h - w);
        norm += w * w;
        worst = worst.max((h - w).abs());
        largest = largest.max(w.abs());
    }
    error.sqrt() <= tol * norm.sqrt().max(FLOOR) && worst <= 100.0 * tol * largest.max(FLOOR)
}

/// Whether every result is as `compare` asks for, or is a float result within four
/// times the largest difference that noisy runs of the reference show.
pub(super) fn within_noise(
    have: &[Tensor],
    want: &[Tensor],
    noisy: &[Vec<Tensor>],
    tol: f64,
) -> bool {
    let one = |i: usize, h: &Tensor, w: &Tensor| {
        if compare(std::slice::from_ref(h), std::slice::from_ref(w), tol).is_ok() {
            return true;
        }
        if (h.dtype(), h.shape()) != (w.dtype(), w.shape()) || !w.dtype().is_float() {
            return false;
        }
        let want = w.to_f64();
        let farthest = |a: &Tensor| {
            // A difference that is no number is beyond everything.
            let differences = a
                .to_f64()
                .into_iter()
                .zip(&want)
                .map(|(a, w)| (a - w).abs());
            differences.fold(0.0, |m, d| if d <= m { m } else { d })
        };
        let allowed = noisy.iter().map(|n| farthest(&n[i])).fold(0.0, f64::max);
        farthest(h) <= 4.0 * allowed && allowed.is_finite()
    };
    have.len() == want.len()
        && have
            .iter()
            .zip(want)
            .enumerate()
            .all(|(i, (h, w))| one(i, h, w))
}
