//! Chooses how weights lie in memory: a weight that is the right side of
//! contractions is stored once, in panels, which the matrix and the vector
//! kernels share. Packing happens when the artifact is written. Weights that bytes or
//! bf16 are multiplied by hold four or two neighbours of a column together, as kernels
//! sum them.

use crate::fold_constants::add_expr;
use crate::{Changed, PassCx, PassError};
use kiln_ir::ops::contract::Pack;
use kiln_ir::ops::layout::{Perm, Transpose};
use kiln_ir::ops::packed::PackedMatMul;
use kiln_ir::{Builder, DType, Graph, Op, Value};
use std::collections::{BTreeMap, BTreeSet};

/// How many elements of a column kernels multiply and add at once.
fn group(x: DType, w: DType) -> usize {
    match (x, w) {
        (DType::I8 | DType::U8, _) => 4,
        (DType::BF16, DType::BF16) => 2,
        _ => 1,
    }
}

/// Replaces `matmul(x, global w)` by `packed_matmul(x, global pack(w))`.
pub fn choose_layouts(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let mut replaced: BTreeMap<Value, Value> = BTreeMap::new();
    let mut dead = BTreeSet::new();
    for n in graph.nodes_in_order() {
        let node = graph.node(n);
        let Op::MatMul(op) = node.op.clone() else {
            continue;
        };
        let (x, w) = (node.args[0], node.args[1]);
        let byte = |v: Value| matches!(graph.ty(v).dtype, DType::I8 | DType::U8);
        let bytes = byte(x) && byte(w) && op.out == Some(DType::I32);
        let half = |v: Value| matches!(graph.ty(v).dtype, DType::F16 | DType::BF16);
        let eight = |v: Value| matches!(graph.ty(v).dtype, DType::F8E4M3FN | DType::F8E5M2);
        let eights = eight(x) && eight(w) && op.out.is_some();
        let wide = graph.ty(w).dtype == DType::F32 && op.out.is_none();
        let floats = wide || half(w) && op.out.is_none_or(|t| t == DType::F32);
        // No processor multiplies f8: its weights lie as they are where there is one.
        let by_columns = eights && !cx.options.panels;
        if op.transpose_a || !(bytes || floats || by_columns) {
            continue;
        }
        // A weight held in a narrower type is widened by the kernel as it reads.
        let source = match graph.producer_op(w) {
            Some((Op::Cast(_), args)) if wide => args[0],
            _ => w,
        };
        let Some((Op::Global(global), _)) = graph.producer_op(source) else {
            continue;
        };
        let (name, ty) = (global.name.clone(), graph.ty(source).clone());
        let narrow = matches!(
            ty.dtype,
            DType::F32 | DType::F16 | DType::BF16 | DType::I8 | DType::U8
        );
        let Some(&[rows, columns]) = ty.const_shape().as_deref() else {
            continue;
        };
        if ty.encoding.is_some() || !(narrow || by_columns) {
            continue;
        }
        // What tensor cores multiply, as they read it.
        let cores = by_columns || half(w) || bytes || op.tf32 && source == w;
        if !cx.options.panels && cores {
            if op.transpose_b {
                continue;
            }
            let Some(perm) = Perm::new(vec![1, 0]) else {
                continue;
            };
            let shape = vec![columns.into(), rows.into()];
            let turned = add_expr(cx, &[name], Transpose { perm }.into(), ty.with_shape(shape));
            let v = node.results[0];
            let mut b = Builder::before(graph, cx.globals, n);
            let columns = b.global(turned)?;
            let mut op = op;
            op.transpose_b = true;
            replaced.insert(v, b.one(op, &[x, columns])?);
            dead.insert(n);
            continue;
        }
        let (depth, columns) = if op.transpose_b {
            (columns, rows)
        } else {
            (rows, columns)
        };
        let nr = cx.options.panel.min(columns.next_multiple_of(16));
        let group = group(graph.ty(x).dtype, ty.dtype);
        let mut shape = vec![
            columns.div_ceil(nr).into(),
            depth.div_ceil(group).into(),
            nr.into(),
        ];
        if group > 1 {
            shape.push(group.into());
        }
        let pack = Pack {
            nr,
            group,
            transposed: op.transpose_b,
        };
        let packed = add_expr(cx, &[name], pack.into(), ty.with_shape(shape));
        let v = node.results[0];
        let mut b = Builder::before(graph, cx.globals, n);
        let panels = b.global(packed)?;
        let out = if bytes { None } else { op.out };
        replaced.insert(v, b.one(PackedMatMul { n: columns, out }, &[x, panels])?);
        dead.insert(n);
    }
    graph.replace_all(&replaced);
    graph.remove_nodes(&dead);
    Ok((!dead.is_empty()).into())
}
