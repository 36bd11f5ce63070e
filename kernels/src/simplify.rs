//! Makes a nest smaller without changing what it computes: axes of extent one
//! go, and neighbouring axes that every access walks as one become one.
//!
//! ```text
//! before: axes [batch, seq, 384], x strides [seq*384, 384, 1], bias [0, 0, 1]
//! after:  axes [batch*seq, 384],  x strides [384, 1],          bias [0, 1]
//! ```
//! It works on the launch's symbolic dims, which are what can be compared. At
//! last [`crate::reuse`] keeps what several stages compute.

use crate::expr::{ExprError, ExprId, Exprs, Gathered, Index, Node, Size};
use crate::nest::{Effect, LoopNest, Params, Stage, Temp, size_dim};
use crate::reuse::reuse;
use kiln_ir::{Dim, Tri};
use std::collections::HashMap;

/// The simplest equal nest and its launch parameters.
pub fn simplify(nest: &LoopNest, params: &[Dim]) -> Result<(LoopNest, Vec<Dim>), ExprError> {
    let mut out = rebuild(nest, params, &|_| Fate::Stays)?;
    for axis in (0..nest.axes.len() as u8).rev() {
        let (n, p) = &out;
        if size_dim(n.axes[axis as usize], p) == Dim::ONE {
            out = rebuild(n, p, &|a| if a == axis { Fate::Gone } else { Fate::Stays })?;
        }
    }
    // From the inside out: each merge may enable the next one outward.
    for axis in (0..out.0.axes.len().saturating_sub(1) as u8).rev() {
        let (n, p) = &out;
        if mergeable(n, p, axis) {
            out = rebuild(n, p, &|a| if a == axis { Fate::Joins } else { Fate::Stays })?;
        }
    }
    out.0 = reuse(&out.0)?;
    Ok(out)
}

/// What becomes of an axis.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Stays,
    /// Has extent one.
    Gone,
    /// Becomes part of the next axis.
    Joins,
}

/// Whether `axis` and the next one are walked as one everywhere.
fn mergeable(nest: &LoopNest, params: &[Dim], axis: u8) -> bool {
    let next = axis + 1;
    if nest.is_inner(axis) != nest.is_inner(next) {
        return false;
    }
    let together = |axes: &[u8]| {
        let (a, b) = (
            axes.iter().position(|&x| x == axis),
            axes.iter().position(|&x| x == next),
        );
        match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => b == a + 1,
            _ => false,
        }
    };
    let lists = (nest.stages.iter().map(|s| &s.axes)).chain(nest.temps.iter().map(|t| &t.axes));
    if !lists.into_iter().all(|l| together(l)) {
        return false;
    }
    let named =
        |id: &ExprId| matches!(nest.exprs.node(*id), Node::Axis(a) if *a == axis || *a == next);
    if nest.live().iter().any(named) {
        return false;
    }
    let extent = size_dim(nest.axes[next as usize], params);
    nest.accesses().iter().all(|(_, index)| {
        let outer = size_dim(index.stride(axis), params);
        let inner = size_dim(index.stride(next), params);
        outer.same(&(inner * extent.clone())) == Tri::Yes
    })
}

/// Builds the nest again with some axes taken out.
fn rebuild(
    nest: &LoopNest,
    params: &[Dim],
    fate: &dyn Fn(u8) -> Fate,
) -> Result<(LoopNest, Vec<Dim>), ExprError> {
    let count = nest.axes.len() as u8;
    let mut numbers = HashMap::new();
    for a in (0..count).filter(|&a| fate(a) == Fate::Stays) {
        numbers.insert(a, numbers.len() as u8);
    }
    let mut cx = Rebuild {
        nest,
        old: params,
        params: Params::new(),
        numbers,
        exprs: Exprs::new(),
        ids: HashMap::new(),
    };
    let mut axes = vec![];
    for a in (0..count).filter(|&a| fate(a) == Fate::Stays) {
        let mut extent = size_dim(nest.axes[a as usize], params);
        if a > 0 && fate(a - 1) == Fate::Joins {
            extent = extent * size_dim(nest.axes[a as usize - 1], params);
        }
        axes.push(cx.params.size(&extent));
    }
    for id in nest.live() {
        let node = cx.node(nest.exprs.node(id));
        let new = cx.exprs.add(node)?;
        cx.ids.insert(id, new);
    }
    let stages = (nest.stages.iter())
        .map(|s| Stage {
            axes: cx.axes(&s.axes),
            effects: s.effects.iter().map(|e| cx.effect(e)).collect(),
        })
        .collect();
    let temps = (nest.temps.iter())
        .map(|t| Temp {
            dtype: t.dtype,
            axes: cx.axes(&t.axes),
        })
        .collect();
    let outer = (0..nest.outer).filter(|&a| fate(a) == Fate::Stays).count() as u8;
    let dims = cx.params.into_dims();
    Ok((
        LoopNest {
            exprs: cx.exprs,
            args: nest.args.clone(),
            params: dims.len() as u16,
            axes,
            outer,
            temps,
            stages,
        },
        dims,
    ))
}

struct Rebuild<'a> {
    nest: &'a LoopNest,
    old: &'a [Dim],
    params: Params,
    numbers: HashMap<u8, u8>,
    exprs: Exprs,
    ids: HashMap<ExprId, ExprId>,
}

impl Rebuild<'_> {
    fn size(&mut self, s: Size) -> Size {
        let dim = size_dim(s, self.old);
        self.params.size(&dim)
    }

    fn axes(&self, axes: &[u8]) -> Vec<u8> {
        axes.iter()
            .filter_map(|a| self.numbers.get(a).copied())
            .collect()
    }

    fn node(&mut self, node: &Node) -> Node {
        match node {
            Node::Param(i) => match self.size(Size::Param(*i)) {
                Size::Param(i) => Node::Param(i),
                Size::Const(c) => integer(c),
            },
            Node::Axis(a) => match self.numbers.get(a) {
                Some(&n) => Node::Axis(n),
                None => integer(0),
            },
            other => match other.with_operands(&|x| self.ids[&x]) {
                Node::Load {
                    arg,
                    dtype,
                    index,
                    guard,
                } => Node::Load {
                    arg,
                    dtype,
                    index: self.index(index),
                    guard,
                },
                other => other,
            },
        }
    }

    fn effect(&mut self, effect: &Effect) -> Effect {
        let mut out = effect.with_roots(&|x| self.ids[&x]);
        if let Effect::Store { index, .. } = &mut out {
            *index = self.index(std::mem::take(index));
        }
        out
    }

    /// An index, its operands already renumbered, over the new axes.
    fn index(&mut self, index: Index) -> Index {
        let kept: Vec<u8> = (0..self.nest.axes.len() as u8)
            .filter(|a| self.numbers.contains_key(a))
            .collect();
        Index {
            offset: self.size(index.offset),
            strides: (kept.into_iter())
                .map(|a| self.size(index.stride(a)))
                .collect(),
            gathers: (index.gathers.iter())
                .map(|g| Gathered {
                    index: g.index,
                    stride: self.size(g.stride),
                    extent: self.size(g.extent),
                })
                .collect(),
        }
        .normalised()
    }
}

fn integer(c: i64) -> Node {
    Node::Const {
        dtype: kiln_ir::DType::I64,
        bits: c as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::{BinaryFn, DType};

    #[test]
    fn bias_add_over_three_axes_becomes_two() {
        let d = |t: &str| t.parse::<Dim>().unwrap();
        let mut p = Params::new();
        let mut e = Exprs::new();
        let row = Index::strided([p.size(&d("seq*384")), p.size(&d("384")), Size::ONE]);
        let x = e.load(0, DType::F32, row.clone()).unwrap();
        let col = Index::strided([Size::ZERO, Size::ZERO, Size::ONE]);
        let b = e.load(1, DType::F32, col).unwrap();
        let sum = e.binary(BinaryFn::Add, x, b).unwrap();
        let nest = LoopNest {
            exprs: e,
            args: vec![DType::F32; 3],
            axes: vec![p.size(&d("batch")), p.size(&d("seq")), Size::Const(384)],
            params: p.dims().len() as u16,
            outer: 3,
            temps: vec![],
            stages: vec![Stage {
                axes: vec![],
                effects: vec![Effect::Store {
                    arg: 2,
                    index: row,
                    value: sum,
                    update: None,
                    when: None,
                }],
            }],
        };
        nest.check().unwrap();
        let (small, dims) = simplify(&nest, p.dims()).unwrap();
        small.check().unwrap();
        assert_eq!(dims, [d("batch*seq")]);
        assert_eq!(small.axes, [Size::Param(0), Size::Const(384)]);
        assert_eq!(small.tiles(&dims), d("batch*seq"));
        let (same, _) = simplify(&small, &dims).unwrap();
        assert_eq!(same, small);
    }
}
