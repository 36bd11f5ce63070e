//! Products of values that were quantized to floats of eight bits.
//!
//! ```text
//! %a = dequantize %p, %s                         (one scale)
//! %b = dequantize @w, %t {axis = 1}              (one, or one for each column)
//! %y = matmul %a, %b
//! becomes
//! %i = matmul %p, @w {out = f32}
//! %y = mul %i, s·t
//! ```
//!
//! Each product of two such numbers is exact in f32, where scaled ones are rounded before
//! they are multiplied: so this is a *rounding* rule as well. A zero point other than 0 has
//! no meaning that a product of the stored numbers keeps, and there is none in practice.
//! No processor multiplies such floats: where one is a target the sides become f32, once.

use super::{Scales, dequantize_of, number, scale_of};
use kiln_ir::ops::contract::MatMul;
use kiln_ir::{Builder, DType, Globals, Graph, NodeId, Op, TypeError, Value};

/// A product of two values of f8, as they are stored.
pub(super) struct Eights {
    op: MatMul,
    sides: [Value; 2],
    scales: Scales,
}

/// The product of two dequantized values that a node is.
pub(super) fn dequantized(graph: &Graph, globals: &Globals, n: NodeId) -> Option<Eights> {
    let node = graph.node(n);
    let Op::MatMul(op) = &node.op else {
        return None;
    };
    if op.out.is_some() || op.tf32 || graph.ty(node.results[0]).dtype != DType::F32 {
        return None;
    }
    let side = |i: usize, column: Option<usize>| -> Option<(Value, Value)> {
        let (d, args) = dequantize_of(graph, node.args[i])?;
        let eight = matches!(graph.ty(args[0]).dtype, DType::F8E4M3FN | DType::F8E5M2);
        let zero = (args.get(2)).is_none_or(|&z| number(graph, globals, z) == Some(0.0));
        let scale = scale_of(graph, d, args, column)?;
        (eight && zero).then_some((args[0], scale))
    };
    let rank = graph.ty(node.args[1]).rank();
    let column = rank - if op.transpose_b { 2 } else { 1 };
    let (a, sa) = side(0, None)?;
    let (b, sb) = side(1, Some(column))?;
    Some(Eights {
        op: MatMul {
            out: Some(DType::F32),
            ..op.clone()
        },
        sides: [a, b],
        scales: [sa, sb],
    })
}

impl Eights {
    /// The product as numbers.
    pub(super) fn numbers(&self, b: &mut Builder) -> Result<Value, TypeError> {
        let sums = b.one(self.op.clone(), &self.sides)?;
        let scale = b.mul(self.scales[0], self.scales[1])?;
        b.mul(sums, scale)
    }
}
