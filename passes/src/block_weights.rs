//! Weights that are dequantized in blocks stay as they are stored where kernels multiply by
//! them: on GPUs, which read a few bits where the graph as it is written makes a matrix of
//! floats in every run.
//!
//! ```text
//! %w = dequantize @q, @s, @z {axis = 0, block = 32}     @q: i4[k, n]
//! %y = matmul %x, %w
//! becomes
//! %y = block_matmul %x, @p, sᵀ, zᵀ + 8 {bits = 4, block = 32}
//! @p = xor (bit_cast (transpose @q)), 0x88
//! ```
//!
//! Numbers with a sign become such without one, half their range above.

use crate::fold_constants::add_expr;
use crate::{Changed, PassCx, PassError};
use kiln_ir::ops::block_matmul::BlockMatMul;
use kiln_ir::ops::composite::Dequantize;
use kiln_ir::ops::contract::MatMul;
use kiln_ir::ops::elementwise::{Binary, BitCast};
use kiln_ir::ops::layout::{Perm, Transpose};
use kiln_ir::{
    BinaryFn, Builder, ConstSource, DType, Dim, Global, GlobalKind, Graph, Kind, NodeId, Op,
    TensorType, Value,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Replaces `matmul(x, dequantize(global q, …))` where no processor is a target.
pub fn block_weights(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    if cx.options.panels {
        return Ok(Changed::No);
    }
    let mut replaced: BTreeMap<Value, Value> = BTreeMap::new();
    let mut dead = BTreeSet::new();
    for n in graph.nodes_in_order() {
        let Some(weight) = weight(graph, n, cx.options.exact) else {
            continue;
        };
        let (x, v) = (graph.node(n).args[0], graph.node(n).results[0]);
        let packed = packed(cx, &weight);
        let filled = match (weight.zero, weight.signed) {
            // Without a sign, and without a zero: it is 0.
            (None, false) => Some(splat(cx, &weight, 0.0, weight.by_block())),
            _ => None,
        };
        let mut b = Builder::before(graph, cx.globals, n);
        let turn = |b: &mut Builder, v: Value| match weight.turned {
            true => b.transpose(v, &[1, 0]),
            false => Ok(v),
        };
        let data = b.global(packed)?;
        let scales = turn(&mut b, weight.scale)?;
        let mut args = vec![x, data, scales];
        if let Some(zero) = weight.zero {
            let zero = turn(&mut b, zero)?;
            let mut zero = b.cast(zero, DType::U8)?;
            if weight.signed {
                let half = b.scalar(DType::U8, f64::from(1u32 << (weight.bits - 1)))?;
                zero = b.add(zero, half)?;
            }
            args.push(zero);
        } else if let Some(zeros) = filled {
            args.push(b.global(zeros)?);
        }
        let op = BlockMatMul {
            bits: weight.bits,
            block: weight.block,
            out: weight.out,
        };
        replaced.insert(v, b.one(op, &args)?);
        dead.insert(n);
    }
    graph.replace_all(&replaced);
    graph.remove_nodes(&dead);
    Ok((!dead.is_empty()).into())
}

/// A weight of `[k, n]` if `turned`, else `[n, k]`.
struct Weight {
    name: Arc<str>,
    ty: TensorType,
    turned: bool,
    n: Dim,
    k: i64,
    bits: usize,
    signed: bool,
    block: usize,
    scale: Value,
    zero: Option<Value>,
    out: Option<DType>,
}

impl Weight {
    /// The shape of its scales, by column.
    fn by_block(&self) -> Vec<Dim> {
        vec![self.n.clone(), (self.k / self.block as i64).into()]
    }

    /// The shape of its bytes.
    fn bytes(&self) -> Vec<Dim> {
        vec![self.n.clone(), (self.k * self.bits as i64 / 8).into()]
    }
}

/// The quantized weight that a product reads, of which every column has whole blocks.
fn weight(graph: &Graph, n: NodeId, exact: bool) -> Option<Weight> {
    let node = graph.node(n);
    let Op::MatMul(MatMul {
        transpose_a: false,
        transpose_b,
        out,
        tf32: false,
    }) = node.op
    else {
        return None;
    };
    let (mut of, mut args) = graph.producer_op(node.args[1])?;
    if let Op::Cast(_) = of {
        (of, args) = graph.producer_op(args[0])?;
    }
    let &Op::Dequantize(Dequantize { axis, block }) = of else {
        return None;
    };
    let (Op::Global(global), _) = graph.producer_op(args[0])? else {
        return None;
    };
    let (x, scale) = (graph.ty(node.args[0]).dtype, graph.ty(args[1]).dtype);
    let float = |t: DType| matches!(t, DType::F32 | DType::F16 | DType::BF16);
    let constant = |v: &Value| {
        let made = graph.producer_op(*v);
        matches!(made, Some((Op::Global(_) | Op::Constant(_), _)))
    };
    let ty = graph.ty(args[0]).clone();
    let (k_axis, n_axis) = if transpose_b { (1, 0) } else { (0, 1) };
    let (bits, kind) = (ty.dtype.bits(), ty.dtype.kind());
    let whole = ty.encoding.is_none()
        && ty.rank() == 2
        && axis == k_axis
        && matches!(kind, Kind::Int | Kind::Uint)
        && matches!(bits, 2 | 4 | 8)
        && float(x)
        && float(scale)
        // Dequantizing rounds to the scale's type: the same only to what is multiplied.
        && (!exact || scale == x || scale == DType::F32)
        && args[1..].iter().all(constant);
    if !whole {
        return None;
    }
    let k = ty.shape[k_axis].as_const()?;
    let fits = k > 0 && block > 0 && k % block as i64 == 0 && (block * bits).is_multiple_of(8);
    fits.then(|| Weight {
        name: global.name.clone(),
        turned: k_axis == 0,
        n: ty.shape[n_axis].clone(),
        k,
        bits,
        signed: kind == Kind::Int,
        block,
        scale: args[1],
        zero: args.get(2).copied(),
        out,
        ty,
    })
}

/// The global of its bytes, by column and without signs.
fn packed(cx: &mut PassCx, weight: &Weight) -> Arc<str> {
    let mut name = weight.name.clone();
    let mut ty = weight.ty.clone();
    if let (true, Some(perm)) = (weight.turned, Perm::new(vec![1, 0])) {
        ty.shape.reverse();
        name = add_expr(cx, &[name], Transpose { perm }.into(), ty.clone());
    }
    let bytes = TensorType::new(DType::U8, weight.bytes());
    if ty.dtype != DType::U8 {
        let op = BitCast { to: DType::U8 };
        name = add_expr(cx, &[name], op.into(), bytes.clone());
    }
    if weight.signed {
        let sign = match weight.bits {
            2 => 0xaa,
            4 => 0x88,
            _ => 0x80,
        };
        let signs = splat(cx, weight, f64::from(sign), weight.bytes());
        let op = Binary { f: BinaryFn::Xor };
        name = add_expr(cx, &[name, signs], op.into(), bytes);
    }
    name
}

/// A global of one byte everywhere.
fn splat(cx: &mut PassCx, weight: &Weight, value: f64, shape: Vec<Dim>) -> Arc<str> {
    let ty = TensorType::new(DType::U8, shape);
    for i in 0.. {
        let name: Arc<str> = format!("{}.splat{i}", weight.name).into();
        match cx.globals.get(&name) {
            None => {
                let kind = GlobalKind::Const(ConstSource::Splat(value));
                cx.globals.insert(name.clone(), Global { ty, kind });
                return name;
            }
            Some(Global {
                ty: have,
                kind: GlobalKind::Const(ConstSource::Splat(v)),
            }) if *have == ty && *v == value => return name,
            Some(_) => {}
        }
    }
    unreachable!("there are more names than globals")
}
