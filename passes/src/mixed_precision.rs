//! Products of a narrow type with sums in f32: `--precision tf32`, `bf16` and `f16`
//! (Micikevicius et al. 2018; the choice of ops is autocast's: contractions and
//! attention narrow, everything between them f32). Weights are stored narrow, and so
//! are tables that are gathered from. For f16 that is all: no x86 level here multiplies
//! f16, and activations in f16 cost a conversion for each broadcast of one (1.2 times the
//! time of f32). For bf16:
//!
//! ```text
//! %y = matmul %a, @w        (f32)
//! becomes
//! %p = cast %a {to = bf16}            %q = cast @w {to = bf16}
//! %y = matmul %p, %q {out = f32}
//! ```
//!
//! For tf32, which is f32 with fewer bits, and is stored as f32:
//!
//! ```text
//! %p = round_tf32 %a                  %q = round_tf32 @w
//! %y = matmul %p, %q {tf32 = true}
//! ```
//!
//! What a product reads is rounded where it is made, behind views, and everything
//! else that reads it reads the rounded number too: so memory holds it once. Results of regions, the model's among them, stay as they were computed, and
//! so do products whose weights are bytes.
//!
//! In every precision what a product with `tf32` reads is rounded before it, so that
//! kernels may take both sides as they lie: from here on that is what `tf32` promises.

use crate::{Changed, PassCx, PassError, Precision};
use kiln_ir::edit::{Rewrite, sweep};
use kiln_ir::graph::Node;
use kiln_ir::ops::block_matmul::BlockMatMul;
use kiln_ir::ops::contract::MatMul;
use kiln_ir::{Builder, DType, Graph, NodeId, Op, TypeError, UnaryFn, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Narrows products, if the options ask for it, and rounds what is marked.
pub fn mixed_precision(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let mut changed = Changed::No;
    let narrow = match cx.options.precision {
        Precision::F32 | Precision::Tf32 => None,
        Precision::Bf16 => Some(DType::BF16),
        Precision::F16 => Some(DType::F16),
    };
    if let Some(to) = narrow {
        changed = changed.or(narrowed(cx, graph, To::Type(to))?);
    }
    let all = cx.options.precision == Precision::Tf32;
    Ok(changed.or(narrowed(cx, graph, To::Tf32 { all })?))
}

fn narrowed(cx: &mut PassCx, graph: &mut Graph, to: To) -> Result<Changed, PassError> {
    let mut pass = Pass {
        to,
        read: match to {
            To::Type(DType::F16) => BTreeSet::new(),
            _ => read_by_products(graph, to),
        },
        rounded: BTreeMap::new(),
    };
    let changed = sweep(graph, cx.globals, &mut |b, n| pass.rewrite(b, n))?;
    Ok(changed.into())
}

/// What factors become.
#[derive(Clone, Copy, PartialEq)]
enum To {
    /// Numbers of a narrower type.
    Type(DType),
    /// Rounded f32; of all products, or of those that are marked.
    Tf32 { all: bool },
}

struct Pass {
    to: To,
    /// What products read, behind views, that is rounded where it is made.
    read: BTreeSet<Value>,
    /// Rounded values as f32, and what they are widened from.
    rounded: BTreeMap<Value, Value>,
}

/// How many of a node's arguments are factors: numbers that it multiplies in f32.
fn factors(graph: &Graph, n: NodeId, to: To) -> usize {
    let node = graph.node(n);
    let f32 = |v: Value| graph.ty(v).dtype == DType::F32;
    let count = match (&node.op, to) {
        (Op::MatMul(op), To::Tf32 { .. }) if op.tf32 => return 2,
        (Op::MatMul(_) | Op::Attention(_), To::Tf32 { all: false }) => 0,
        (Op::MatMul(op), _) if op.out.is_none_or(|t| t == DType::F32) => 2,
        (Op::Attention(_), To::Type(_)) => 3,
        (Op::BlockMatMul(op), To::Type(_)) if op.out.is_none_or(|t| t == DType::F32) => 1,
        _ => 0,
    };
    // Bytes are widened by the kernel as it reads them, and stay bytes.
    let bytes = |v: Value| match graph.producer_op(v) {
        Some((Op::Cast(_), args)) => is_data(graph, args[0]) && graph.ty(args[0]).dtype.is_int(),
        _ => false,
    };
    match node.args[..count].iter().all(|&v| f32(v) && !bytes(v)) {
        true => count,
        false => 0,
    }
}

/// Whether a value, an f32, is known to be a number of tf32.
fn is_tf32(graph: &Graph, v: Value) -> bool {
    match graph.producer_op(v) {
        Some((Op::Unary(f), _)) => f.f == UnaryFn::RoundTf32,
        // All of bf16 and of eight bits; f16 has as many bits of mantissa, fewer of exponent.
        Some((Op::Cast(_), args)) => {
            graph.ty(args[0]).dtype.bits() <= 16
                && (graph.ty(args[0]).dtype.is_float() || graph.ty(args[0]).dtype.bits() <= 8)
        }
        _ => false,
    }
}

fn is_data(graph: &Graph, v: Value) -> bool {
    matches!(graph.producer_op(v), Some((Op::Global(_), _)))
}

/// What a view shows, if the value is one.
fn viewed(graph: &Graph, v: Value) -> Option<(NodeId, Value)> {
    let (n, _) = graph.producer(v)?;
    let node = graph.node(n);
    let view = matches!(
        node.op,
        Op::Reshape(_) | Op::Broadcast(_) | Op::Transpose(_) | Op::Slice(_)
    );
    view.then(|| (n, node.args[0]))
}

fn read_by_products(graph: &Graph, to: To) -> BTreeSet<Value> {
    let mut read = BTreeSet::new();
    for n in graph.nodes_in_order() {
        for &v in &graph.node(n).args[..factors(graph, n, to)] {
            let mut v = v;
            while let Some((_, source)) = viewed(graph, v) {
                v = source;
            }
            // What has regions is not built again, and data need not be.
            let made = graph.producer_op(v).is_some_and(|(op, _)| {
                !matches!(
                    op,
                    Op::Global(_) | Op::Constant(_) | Op::If(_) | Op::Loop(_)
                )
            });
            let before = matches!(to, To::Tf32 { .. }) && is_tf32(graph, v);
            if made && !before {
                read.insert(v);
            }
        }
    }
    for r in 0..graph.region_count() {
        for v in &graph.region(kiln_ir::RegionId(r as u32)).results {
            read.remove(v);
        }
    }
    read
}

impl Pass {
    fn rewrite(&mut self, b: &mut Builder, n: NodeId) -> Result<Rewrite, TypeError> {
        let count = factors(b.graph, n, self.to);
        let node = b.graph.node(n).clone();
        let [v] = node.results[..] else {
            return Ok(Rewrite::Keep);
        };
        let mut y = None;
        if self.to == To::Type(DType::F16) && count > 0 {
            return self.with_weights(b, &node, count);
        }
        if count > 0 {
            let mut args = node.args.clone();
            for x in &mut args[..count] {
                *x = self.narrow(b, *x)?;
            }
            y = match (&node.op, self.to) {
                (Op::MatMul(op), To::Tf32 { .. }) if op.tf32 && args == node.args => None,
                (Op::MatMul(op), to) => {
                    let op = MatMul {
                        out: match to {
                            To::Type(_) => Some(DType::F32),
                            To::Tf32 { .. } => op.out,
                        },
                        tf32: to != To::Type(DType::BF16),
                        ..op.clone()
                    };
                    Some(b.one(op, &args)?)
                }
                (Op::BlockMatMul(op), _) => {
                    let op = BlockMatMul {
                        out: Some(DType::F32),
                        ..op.clone()
                    };
                    Some(b.one(op, &args)?)
                }
                (op, _) => {
                    let y = b.one(op.clone(), &args)?;
                    Some(self.widen(b, y)?)
                }
            };
        } else if let (Some(table), To::Type(to)) = (self.table(b.graph, n), self.to) {
            let mut args = node.args.clone();
            args[0] = b.cast(table, to)?;
            let rows = b.one(node.op.clone(), &args)?;
            y = Some(self.widen(b, rows)?);
        }
        let wide = |y: Option<Value>| y.is_some_and(|y| self.rounded.contains_key(&y));
        if self.read.contains(&v) && node.regions.is_empty() && !wide(y) {
            let full = match y {
                Some(y) => y,
                None => again(b, &node.op, &node.args, v)?,
            };
            let narrow = self.round(b, full)?;
            y = Some(self.widen(b, narrow)?);
        }
        Ok(y.map_or(Rewrite::Keep, |y| Rewrite::With(vec![y])))
    }

    /// A product whose factors are narrowed where they are data.
    fn with_weights(
        &mut self,
        b: &mut Builder,
        node: &Node,
        count: usize,
    ) -> Result<Rewrite, TypeError> {
        let mut args = node.args.clone();
        for x in &mut args[..count] {
            if is_data(b.graph, *x) {
                let narrow = self.round(b, *x)?;
                *x = self.widen(b, narrow)?;
            }
        }
        if args == node.args {
            return Ok(Rewrite::Keep);
        }
        Ok(Rewrite::With(vec![b.one(node.op.clone(), &args)?]))
    }

    /// The table of f32 that a node gathers rows from, if it is data.
    fn table(&self, graph: &Graph, n: NodeId) -> Option<Value> {
        let node = graph.node(n);
        let &table = node.args.first()?;
        let ty = graph.ty(table);
        let gathers = matches!(node.op, Op::Gather(_) | Op::Embedding(_));
        (gathers && is_data(graph, table) && ty.dtype == DType::F32 && ty.rank() > 1)
            .then_some(table)
    }

    /// A value of f32, rounded.
    fn round(&self, b: &mut Builder, v: Value) -> Result<Value, TypeError> {
        match self.to {
            To::Type(to) => b.cast(v, to),
            To::Tf32 { .. } => b.unary(UnaryFn::RoundTf32, v),
        }
    }

    /// A rounded value as f32.
    fn widen(&mut self, b: &mut Builder, narrow: Value) -> Result<Value, TypeError> {
        let wide = match self.to {
            To::Type(_) => b.cast(narrow, DType::F32)?,
            To::Tf32 { .. } => narrow,
        };
        self.rounded.insert(wide, narrow);
        Ok(wide)
    }

    /// A value as the product reads it: rounded where it is made, views of it after that.
    fn narrow(&self, b: &mut Builder, v: Value) -> Result<Value, TypeError> {
        if let Some(&narrow) = self.rounded.get(&v) {
            return Ok(narrow);
        }
        let node = b.graph.producer(v).map(|(n, _)| b.graph.node(n).clone());
        match node {
            Some(node) if viewed(b.graph, v).is_some() => {
                let mut args = node.args.clone();
                args[0] = self.narrow(b, args[0])?;
                again(b, &node.op, &args, v)
            }
            Some(node)
                if matches!(node.op, Op::Cast(_))
                    && self.to == To::Type(b.graph.ty(node.args[0]).dtype) =>
            {
                Ok(node.args[0])
            }
            Some(_) if matches!(self.to, To::Tf32 { .. }) && is_tf32(b.graph, v) => Ok(v),
            _ => self.round(b, v),
        }
    }
}

/// The op once more, its result of the shape that `like` has as it is written.
fn again(b: &mut Builder, op: &Op, args: &[Value], like: Value) -> Result<Value, TypeError> {
    let y = b.one(op.clone(), args)?;
    let (shape, name) = (b.shape(like), b.graph.value(like).name.clone());
    let new = b.graph.value_mut(y);
    new.ty.shape = shape;
    new.name = name;
    Ok(y)
}
