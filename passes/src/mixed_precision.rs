//! Products of a narrow type with sums in f32: `--precision bf16` and `f16`
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
//! What a product reads is rounded where it is made, behind views, and everything
//! else that reads it reads the rounded number too: so memory holds it once, half as
//! large. Results of regions, the model's among them, stay as they were computed, and
//! so do products whose weights are bytes.

use crate::{Changed, PassCx, PassError};
use kiln_ir::edit::{Rewrite, sweep};
use kiln_ir::graph::Node;
use kiln_ir::ops::block_matmul::BlockMatMul;
use kiln_ir::ops::contract::MatMul;
use kiln_ir::{Builder, DType, Graph, NodeId, Op, TypeError, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Narrows products, if the options ask for it.
pub fn mixed_precision(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let to = cx.options.precision;
    if !matches!(to, DType::F16 | DType::BF16) {
        return Ok(Changed::No);
    }
    let mut pass = Pass {
        to,
        read: match to {
            DType::BF16 => read_by_products(graph),
            _ => BTreeSet::new(),
        },
        rounded: BTreeMap::new(),
    };
    let changed = sweep(graph, cx.globals, &mut |b, n| pass.rewrite(b, n))?;
    Ok(changed.into())
}

struct Pass {
    to: DType,
    /// What products read, behind views, that is rounded where it is made.
    read: BTreeSet<Value>,
    /// Widened values, and what they are widened from.
    rounded: BTreeMap<Value, Value>,
}

/// How many of a node's arguments are factors: numbers that it multiplies in f32.
fn factors(graph: &Graph, n: NodeId) -> usize {
    let node = graph.node(n);
    let f32 = |v: Value| graph.ty(v).dtype == DType::F32;
    let count = match &node.op {
        Op::MatMul(op) if op.out.is_none_or(|t| t == DType::F32) => 2,
        Op::Attention(_) => 3,
        Op::BlockMatMul(op) if op.out.is_none_or(|t| t == DType::F32) => 1,
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

fn read_by_products(graph: &Graph) -> BTreeSet<Value> {
    let mut read = BTreeSet::new();
    for n in graph.nodes_in_order() {
        for &v in &graph.node(n).args[..factors(graph, n)] {
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
            if made {
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
        let count = factors(b.graph, n);
        let node = b.graph.node(n).clone();
        let [v] = node.results[..] else {
            return Ok(Rewrite::Keep);
        };
        let mut y = None;
        if self.to == DType::F16 && count > 0 {
            return self.with_weights(b, &node, count);
        }
        if count > 0 {
            let mut args = node.args.clone();
            for x in &mut args[..count] {
                *x = self.narrow(b, *x)?;
            }
            y = Some(match &node.op {
                Op::MatMul(op) => {
                    let op = MatMul {
                        out: Some(DType::F32),
                        ..op.clone()
                    };
                    b.one(op, &args)?
                }
                Op::BlockMatMul(op) => {
                    let op = BlockMatMul {
                        out: Some(DType::F32),
                        ..op.clone()
                    };
                    b.one(op, &args)?
                }
                op => {
                    let y = b.one(op.clone(), &args)?;
                    self.widen(b, y)?
                }
            });
        } else if let Some(table) = self.table(b.graph, n) {
            let mut args = node.args.clone();
            args[0] = b.cast(table, self.to)?;
            let rows = b.one(node.op.clone(), &args)?;
            y = Some(self.widen(b, rows)?);
        }
        let wide = |y: Option<Value>| y.is_some_and(|y| self.rounded.contains_key(&y));
        if self.read.contains(&v) && node.regions.is_empty() && !wide(y) {
            let full = match y {
                Some(y) => y,
                None => again(b, &node.op, &node.args, v)?,
            };
            let narrow = b.cast(full, self.to)?;
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
                let narrow = b.cast(*x, self.to)?;
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

    fn widen(&mut self, b: &mut Builder, narrow: Value) -> Result<Value, TypeError> {
        let wide = b.cast(narrow, DType::F32)?;
        self.rounded.insert(wide, narrow);
        Ok(wide)
    }

    /// A value in the narrow type: rounded where it is made, views of it after that.
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
                if matches!(node.op, Op::Cast(_)) && b.graph.ty(node.args[0]).dtype == self.to =>
            {
                Ok(node.args[0])
            }
            _ => b.cast(v, self.to),
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
