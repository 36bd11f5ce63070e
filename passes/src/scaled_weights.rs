//! Weights that are stored in bytes with a scale, read by floats.
//!
//! ```text
//! %y = matmul %x, (mul (cast @w {to = f32}), @s)      @s: one, or one for each column
//! becomes
//! %y = mul (matmul %x, (cast @w {to = f32})), @s
//! ```
//!
//! The kernel widens the bytes as it reads them, and the scales are its epilogue, where
//! the graph as it is written makes a matrix of floats in every run. That rounds
//! otherwise, so it is off where bits must not change. Likewise, always and exactly,
//! rows of a table are gathered before they are scaled, with their own scales. The
//! scaled value may be a dequantize op as well.

use crate::{Changed, PassCx, PassError};
use kiln_ir::edit::{Rewrite, sweep};
use kiln_ir::ops::contract::MatMul;
use kiln_ir::ops::index::Gather;
use kiln_ir::{BinaryFn, Builder, DType, Dim, Graph, NodeId, Op, TypeError, Value};

/// Applies the rules.
pub fn scaled_weights(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let exact = cx.options.exact;
    let changed = sweep(graph, cx.globals, &mut |b, n| {
        let found = match &b.graph.node(n).op {
            Op::MatMul(op) if !exact => product(b, n, &op.clone())?,
            Op::Gather(Gather { axis: 0 }) => rows(b, n)?,
            _ => None,
        };
        Ok(found.map_or(Rewrite::Keep, |y| Rewrite::With(vec![y])))
    })?;
    Ok(changed.into())
}

/// Bytes of the model as f32, times a scale that is the model's too.
struct Scaled {
    bytes: Value,
    /// What the bytes are less; of the bytes' type.
    zero: Option<Value>,
    /// Of as many axes as the bytes, or none.
    scale: Value,
}

fn is_data(graph: &Graph, v: Value) -> bool {
    matches!(
        graph.producer_op(v),
        Some((Op::Global(_) | Op::Constant(_), _))
    )
}

/// Bytes of the model that a cast widens to f32.
fn widened(graph: &Graph, v: Value) -> Option<Value> {
    let (Op::Cast(_), args) = graph.producer_op(v)? else {
        return None;
    };
    let byte = matches!(graph.ty(args[0]).dtype, DType::I8 | DType::U8);
    (byte && graph.ty(v).dtype == DType::F32 && is_data(graph, args[0])).then_some(args[0])
}

fn scaled(b: &mut Builder, v: Value) -> Result<Option<Scaled>, TypeError> {
    let Some((op, args)) = b.graph.producer_op(v) else {
        return Ok(None);
    };
    let (op, args) = (op.clone(), args.to_vec());
    match op {
        Op::Binary(f) if f.f == BinaryFn::Mul => {
            let found = [(0, 1), (1, 0)].into_iter().find_map(|(x, s)| {
                let bytes = widened(b.graph, args[x])?;
                is_data(b.graph, args[s]).then_some((bytes, args[s]))
            });
            let Some((bytes, scale)) = found.filter(|(w, _)| b.shape(*w) == b.shape(v)) else {
                return Ok(None);
            };
            let shape = b.shape(scale);
            let scale = match shape.len() {
                0 => scale,
                rank => {
                    let lead = vec![Dim::ONE; b.shape(bytes).len() - rank];
                    b.reshape(scale, &[lead, shape].concat())?
                }
            };
            Ok(Some(Scaled {
                bytes,
                zero: None,
                scale,
            }))
        }
        Op::Dequantize(d) if d.block == 0 => {
            let ty = b.ty(args[0]);
            let bytes = matches!(ty.dtype, DType::I8 | DType::U8);
            let f32 = b.ty(args[1]).dtype == DType::F32;
            if !bytes || !f32 || !args.iter().all(|&a| is_data(b.graph, a)) {
                return Ok(None);
            }
            let spread = |b: &mut Builder, v: Value| -> Result<Value, TypeError> {
                let mut shape = vec![Dim::ONE; ty.rank()];
                match b.ty(v).rank() {
                    0 => Ok(v),
                    _ => {
                        shape[d.axis] = ty.shape[d.axis].clone();
                        b.reshape(v, &shape)
                    }
                }
            };
            let scale = spread(b, args[1])?;
            let zero = args.get(2).map(|&z| spread(b, z)).transpose()?;
            Ok(Some(Scaled {
                bytes: args[0],
                zero,
                scale,
            }))
        }
        _ => Ok(None),
    }
}

/// A product whose right side is scaled by column.
fn product(b: &mut Builder, n: NodeId, op: &MatMul) -> Result<Option<Value>, TypeError> {
    let node = b.graph.node(n).clone();
    let (x, w) = (node.args[0], node.args[1]);
    if op.out.is_some() || b.ty(x).dtype != DType::F32 || b.ty(w).rank() != 2 {
        return Ok(None);
    }
    let Some(w) = scaled(b, w)?.filter(|w| w.zero.is_none()) else {
        return Ok(None);
    };
    let (k, column) = if op.transpose_b { (1, 0) } else { (0, 1) };
    let shape = b.shape(w.scale);
    if shape.get(k).is_some_and(|d| *d != Dim::ONE) {
        return Ok(None);
    }
    let bytes = b.cast(w.bytes, DType::F32)?;
    let y = b.one(op.clone(), &[x, bytes])?;
    let scale = match shape.get(column) {
        Some(columns) => b.reshape(w.scale, std::slice::from_ref(columns))?,
        None => w.scale,
    };
    Ok(Some(b.mul(y, scale)?))
}

/// Rows of a scaled table.
fn rows(b: &mut Builder, n: NodeId) -> Result<Option<Value>, TypeError> {
    let node = b.graph.node(n).clone();
    let (table, index) = (node.args[0], node.args[1]);
    let Some(table) = scaled(b, table)? else {
        return Ok(None);
    };
    let chosen = |b: &mut Builder, v: Value| -> Result<Value, TypeError> {
        match b.shape(v).first() {
            None => Ok(v),
            Some(d) if *d == Dim::ONE => {
                let shape = b.shape(v)[1..].to_vec();
                b.reshape(v, &shape)
            }
            Some(_) => b.one(Gather { axis: 0 }, &[v, index]),
        }
    };
    if b.shape(table.bytes).first() == Some(&Dim::ONE) {
        return Ok(None);
    }
    let x = chosen(b, table.bytes)?;
    let scale = chosen(b, table.scale)?;
    let x = match table.zero {
        None => x,
        Some(zero) => {
            let zero = chosen(b, zero)?;
            let (x, zero) = (b.cast(x, DType::I32)?, b.cast(zero, DType::I32)?);
            b.sub(x, zero)?
        }
    };
    let x = b.cast(x, DType::F32)?;
    Ok(Some(b.mul(x, scale)?))
}
