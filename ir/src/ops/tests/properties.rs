//! Properties that every op of the table has.

use super::*;
use crate::ops::layout::Slice;
use crate::ops::reduce::Reduce;
use crate::ops::samples::{HAND_TESTED, Sample, samples};
use crate::{BinaryFn, ReduceFn};
use std::collections::BTreeSet;

#[test]
fn every_row_of_the_table_has_samples() {
    let mut missing: BTreeSet<&str> = Op::TABLE.iter().copied().collect();
    for s in samples() {
        let debug = format!("{:?}", s.op);
        let variant = debug.split('(').next().unwrap_or_default().to_lowercase();
        missing.retain(|name| name.replace('_', "") != variant);
    }
    for (name, why) in HAND_TESTED {
        assert!(
            missing.remove(name),
            "{name} has samples, though it says: {why}"
        );
    }
    assert_eq!(missing, BTreeSet::new(), "without samples");
}

#[test]
fn attributes_parse_back() {
    for s in samples() {
        let def = s.op.def();
        assert_eq!(Op::parse(def.mnemonic(), &def.attrs()), Ok(s.op.clone()));
    }
}

#[test]
fn inference_agrees_with_evaluation() {
    for s in samples() {
        let args = s.tensors(1);
        // `run` compares the types.
        run(s.op.clone(), &args.iter().collect::<Vec<_>>())
            .unwrap_or_else(|e| panic!("{:?}: {e}", s.op));
    }
}

#[test]
fn sizes_may_be_symbols() {
    // Each extent becomes a symbol of its own value's name: `d3` for 3. Binding
    // the inferred types must give the types of the constant arguments.
    for s in samples() {
        let args = s.tensors(1);
        let symbolic: Vec<TensorType> = args
            .iter()
            .map(|t| {
                let dim = |&d: &usize| {
                    if d == 1 {
                        Dim::ONE
                    } else {
                        Dim::sym(format!("d{d}"))
                    }
                };
                TensorType::new(t.dtype(), t.shape().iter().map(dim).collect::<Vec<_>>())
            })
            .collect();
        let Ok((types, _)) = infer(s.op.clone(), &symbolic) else {
            // Where an attribute or a head size must be constant.
            continue;
        };
        let constant: Vec<TensorType> = args.iter().map(|t| t.ty()).collect();
        let want = infer(s.op.clone(), &constant).unwrap().0;
        let binding: Binding = (0..20).map(|d| (format!("d{d}").into(), d)).collect();
        for (got, want) in types.iter().zip(&want) {
            let bound: Vec<Dim> = got
                .shape
                .iter()
                .map(|d| d.eval(&binding).unwrap().into())
                .collect();
            assert_eq!(
                (bound, got.dtype),
                (want.shape.clone(), want.dtype),
                "{:?}",
                s.op
            );
        }
    }
}

/// Elements `start .. end` of the axes with this label.
fn cut(t: &Tensor, labels: &[Option<u8>], label: u8, start: usize, end: Option<usize>) -> Tensor {
    let mut op = Slice {
        starts: vec![Dim::ZERO; t.shape().len()],
        sizes: t.shape().iter().map(|&d| d.into()).collect(),
        steps: vec![1; t.shape().len()],
    };
    for (axis, _) in labels
        .iter()
        .enumerate()
        .filter(|(_, l)| **l == Some(label))
    {
        let end = end.unwrap_or(t.shape()[axis]);
        (op.starts[axis], op.sizes[axis]) = (start.into(), (end - start).into());
    }
    run1(op, &[t])
}

/// Whether the op's attributes hold extents, so that a part needs other attributes.
fn has_extents(op: &Op) -> bool {
    op.def()
        .attrs()
        .0
        .iter()
        .any(|(name, _)| ["shape", "sizes", "starts", "lo"].contains(&name.as_str()))
}

#[test]
fn cutting_arguments_along_a_label_cuts_the_results() {
    let mut cuts = 0;
    for s in samples().iter().filter(|s| !has_extents(&s.op)) {
        cuts += check_cuts(s);
    }
    assert!(cuts > 100, "only {cuts} cuts were tried");
}

fn check_cuts(s: &Sample) -> usize {
    let args = s.tensors(2);
    let types: Vec<TensorType> = args.iter().map(|t| t.ty()).collect();
    let AxisMap::Labels {
        args: labels,
        results,
        reduce,
    } = s.op.def().axes(&types.iter().collect::<Vec<_>>())
    else {
        return 0;
    };
    let whole = run(s.op.clone(), &args.iter().collect::<Vec<_>>()).unwrap();
    assert_eq!(
        (labels.len(), results.len()),
        (args.len(), whole.len()),
        "{:?}",
        s.op
    );
    let all: BTreeSet<u8> = labels.iter().flatten().flatten().copied().collect();
    for &label in &all {
        let part = |start, end| -> Vec<Tensor> {
            let cut: Vec<Tensor> = args
                .iter()
                .zip(&labels)
                .map(|(t, l)| cut(t, l, label, start, end))
                .collect();
            run(s.op.clone(), &cut.iter().collect::<Vec<_>>())
                .unwrap_or_else(|e| panic!("{:?} cut along {label}: {e}", s.op))
        };
        let (low, high) = (part(0, Some(1)), part(1, None));
        let kept = results.iter().flatten().any(|l| *l == Some(label));
        for (i, w) in whole.iter().enumerate() {
            if kept {
                assert_eq!(
                    low[i],
                    cut(w, &results[i], label, 0, Some(1)),
                    "{:?} along {label}",
                    s.op
                );
                assert_eq!(
                    high[i],
                    cut(w, &results[i], label, 1, None),
                    "{:?} along {label}",
                    s.op
                );
            } else {
                let f = reduce.unwrap_or_else(|| panic!("{:?} reduces {label} by nothing", s.op));
                let both = combine(f, &low[i], &high[i]);
                close(&both, &w.to_f64(), 1e-5);
            }
        }
    }
    all.len()
}

fn combine(f: ReduceFn, a: &Tensor, b: &Tensor) -> Tensor {
    let f = match f {
        ReduceFn::Sum => BinaryFn::Add,
        ReduceFn::Prod => BinaryFn::Mul,
        ReduceFn::Max => BinaryFn::Max,
        ReduceFn::Min => BinaryFn::Min,
        ReduceFn::Mean => panic!("means do not combine"),
    };
    run1(crate::ops::elementwise::Binary { f }, &[a, b])
}

#[test]
fn the_mean_keeps_its_axes_whole() {
    let mean = Reduce {
        f: ReduceFn::Mean,
        axes: vec![1],
        keep: false,
    };
    let AxisMap::Labels { args, .. } = mean.axes(&[&ty(DType::F32, &["4", "6"])]) else {
        panic!("has labels")
    };
    assert_eq!(args, [vec![Some(0), None]]);
}
