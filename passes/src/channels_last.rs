//! Gives regions around convolutions the layout that the convolution kernels read:
//! channels last.
//!
//! A value `[n, c, s..]` has a second form `[n, s.., c]`. A convolution computes that
//! form, and what follows it is computed in that form as long as it can be; the first
//! form is a transpose of it, which is dead unless somebody reads it. So a network's
//! image is transposed once, where it enters.
//!
//! ```text
//! %2 = conv %x, @w            %t = transpose %x            (once)
//! %3 = add %2, %b      →      %4 = packed_conv %t, @w.pack
//! %4 = conv %3, @v            %5 = add %4, %b'
//!                             %6 = packed_conv %5, @v.pack
//! ```
//!
//! Filters are packed here as well ([`PackedConv`] says how); those that are no
//! constants stay with the convolution's expansion. Sums over channels and places are in
//! the order of the layout, whatever the batch.

use crate::fold_constants::{add_expr, constant_name};
use crate::{Changed, PassCx, PassError};
use kiln_ir::edit::{Rewrite, sweep};
use kiln_ir::ops::composite::{Dequantize, Quantize};
use kiln_ir::ops::conv::Conv;
use kiln_ir::ops::index::Gather;
use kiln_ir::ops::layout::{Broadcast, Concat, Pad, PadMode, Reshape, Slice, Transpose};
use kiln_ir::ops::pack_filters::PackFilters;
use kiln_ir::ops::packed_conv::PackedConv;
use kiln_ir::ops::reduce::Reduce;
use kiln_ir::ops::window::Unfold;
use kiln_ir::{
    Builder, Class, DType, Dim, Graph, NodeId, Op, RegionId, TensorType, TypeError, Value,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Depthwise filters of more taps have no kernel.
const MOST_DEPTHWISE_TAPS: usize = 64;

/// Images with fewer channels get their border in memory: the taps along the last axis
/// are then one run of elements.
const FEW_CHANNELS: usize = 16;

/// Moves convolutions and what is around them to channels last.
pub fn channels_last(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let filters = pack_all(cx, graph);
    if filters.is_empty() {
        return Ok(Changed::No);
    }
    let mut forms = Forms::default();
    let changed = sweep(graph, cx.globals, &mut |b, n| forms.rule(b, n, &filters))?;
    crate::eliminate_dead::eliminate_dead(cx, graph)?;
    Ok(changed.into())
}

/// Filters in the layout of the kernels.
struct Packed {
    name: Arc<str>,
    /// The convolution, but for its border.
    op: PackedConv,
    /// Whether the border is put around the image in memory.
    apart: bool,
}

/// By the convolution that they are for.
type Filters = BTreeMap<NodeId, Packed>;

fn pack_all(cx: &mut PassCx, graph: &Graph) -> Filters {
    let mut out = Filters::new();
    for n in graph.nodes_in_order() {
        let node = graph.node(n);
        if let Op::Conv(op) = &node.op
            && let Some(packed) = pack(cx, graph, n, op)
        {
            out.insert(n, packed);
        }
    }
    out
}

/// The packed filters of a convolution; none if no kernel serves it.
fn pack(cx: &mut PassCx, graph: &Graph, n: NodeId, op: &Conv) -> Option<Packed> {
    let node = graph.node(n);
    let (x, w) = (node.args[0], node.args[1]);
    let ty = graph.ty(w).clone();
    let known = match op.out {
        // Every other type of bytes was made i8.
        Some(_) => ty.dtype == DType::I8,
        None => matches!(ty.dtype, DType::F32 | DType::F16 | DType::BF16),
    };
    if !known || op.dilations.iter().chain(&op.strides).any(|&n| n > 1 << 16) {
        return None;
    }
    let shape = ty.const_shape()?;
    let channels = graph.shape(x)[1].as_const()? as usize;
    let taps = (shape[2..].iter()).try_fold(1usize, |n, &k| n.checked_mul(k))?;
    let filters = shape[0];
    let depthwise = is_depthwise(op, channels, filters);
    if depthwise && taps > MOST_DEPTHWISE_TAPS || taps > 1 << 16 {
        return None;
    }
    let winograd = (cx.options.transformed_filters && !cx.options.exact)
        && tiles_pay(op, &ty, graph.shape(node.results[0]));
    let mut packed = PackedConv {
        filters,
        groups: op.groups,
        kernel: shape[2..].to_vec(),
        strides: op.strides.clone(),
        dilations: op.dilations.clone(),
        lo: op.lo.clone(),
        hi: op.hi.clone(),
        winograd,
    };
    let few = op.groups == 1 && channels < FEW_CHANNELS && shape.last() > Some(&1);
    let apart = few && packed.is_bordered();
    if apart {
        packed.lo = vec![Dim::ZERO; packed.lo.len()];
        packed.hi = packed.lo.clone();
    }
    let bytes = op.out.is_some();
    let nr = match depthwise {
        true => 0,
        false => panel(filters / op.groups, winograd || bytes),
    };
    let pack = match bytes {
        true => packed.pack_of_bytes(nr),
        false => PackFilters {
            groups: op.groups,
            nr,
            winograd,
            group: 1,
            run: 1,
        },
    };
    let name = constant_name(cx, graph, w)?;
    let dims: Vec<Dim> = pack.shape_of(&shape)?.into_iter().map(Dim::from).collect();
    let name = add_expr(cx, &[name], pack.into(), ty.with_shape(dims));
    Some(Packed {
        name,
        op: packed,
        apart,
    })
}

/// Whether transformed tiles are less work, by what was measured on one Zen 4 core:
/// products at 95 of 115 GF/s instead of 107, 16 channels of a tile transformed in 0.1 µs,
/// and filters, four times as large, read at 15 GB/s where they leave the second-level
/// cache.
fn tiles_pay(op: &Conv, w: &TensorType, result: &[Dim]) -> bool {
    let one = |l: &[usize]| l.iter().all(|&n| n == 1);
    let Some(&[m, c, 3, 3]) = w.const_shape().as_deref() else {
        return false;
    };
    if op.groups != 1 || !one(&op.strides) || !one(&op.dilations) || w.dtype != DType::F32 {
        return false;
    }
    if m < 16 || c < 16 {
        return false;
    }
    let (m, c) = (m as f64, c as f64);
    // A size that is not known is taken for a middling one.
    let size = |d: &Dim| d.as_const().unwrap_or(28) as f64;
    let (h, width) = (size(&result[2]), size(&result[3]));
    let tiles = (h / 4.0).ceil() * (width / 4.0).ceil();
    let direct = h * width * 18.0 * c * m / 107.0;
    let filters = (36.0 * 4.0 * c * m - 1e6).max(0.0) / 15.0;
    let around = tiles * (c + m) / 16.0 * 100.0;
    tiles * 72.0 * c * m / 95.0 + around + filters < 0.9 * direct
}

fn is_depthwise(op: &Conv, channels: usize, filters: usize) -> bool {
    op.groups == channels && op.groups == filters && channels > 1
}

/// The width of panels for so many filters: of those that the kernels' tiles divide,
/// the one with the least work, where each panel reads the image once more.
fn panel(filters: usize, whole: bool) -> usize {
    let cost = |nr: usize| filters.div_ceil(nr) * (nr + 6);
    let step = if whole { 16 } else { 8 };
    (step..=64)
        .rev()
        .step_by(step)
        .min_by_key(|&nr| cost(nr))
        .unwrap_or(64)
}

/// The second form of a value, and how many axes behind the first are at its end.
#[derive(Clone, Copy)]
struct Form {
    value: Value,
    moved: usize,
}

/// Which axis of the first form each axis of the second is.
fn order(rank: usize, moved: usize) -> Vec<usize> {
    let head = std::iter::once(0).chain(1 + moved..rank);
    head.chain(1..=moved).collect()
}

/// What is known of values so far.
#[derive(Default)]
struct Forms {
    /// Second forms that are visible wherever the value is.
    of: BTreeMap<Value, Form>,
    /// Transposes that were made for a reader.
    made: BTreeMap<(Value, RegionId), Value>,
    /// Values with leading axes of extent 1, up to a rank.
    wide: BTreeMap<(Value, RegionId, usize), Value>,
}

type Answer = Result<Rewrite, TypeError>;

impl Forms {
    fn rule(&mut self, b: &mut Builder, n: NodeId, filters: &Filters) -> Answer {
        let node = b.graph.node(n).clone();
        let [v] = node.results[..] else {
            return Ok(Rewrite::Keep);
        };
        let args = &node.args[..];
        if let Op::Conv(op) = &node.op {
            return match filters.get(&n) {
                Some(w) => self.conv(b, op, args, w),
                None => Ok(Rewrite::Keep),
            };
        }
        if !args.iter().any(|a| self.of.contains_key(a)) {
            return Ok(Rewrite::Keep);
        }
        match &node.op {
            Op::Silu(_) | Op::Gelu(_) => self.elementwise(b, &node.op, args, v),
            op if op.class() == Class::Elementwise => self.elementwise(b, op, args, v),
            Op::Quantize(q) if q.block == 0 => {
                let made = |axis| Quantize { axis, ..q.clone() }.into();
                self.requantize(b, args, q.axis, &made)
            }
            Op::Dequantize(d) if d.block == 0 => {
                let made = |axis| Dequantize { axis, ..d.clone() }.into();
                self.requantize(b, args, d.axis, &made)
            }
            Op::Reduce(r) => self.reduce(b, r, args[0]),
            Op::Pad(p) => self.pad(b, p, args),
            Op::Slice(s) => self.slice(b, s, args[0]),
            Op::Broadcast(to) => self.broadcast(b, to, args[0]),
            Op::Concat(c) => self.concat(b, c, args, v),
            Op::Unfold(u) => self.unfold(b, u, args[0]),
            Op::Gather(g) => self.gather(b, g, args),
            Op::Reshape(r) => self.reshape(b, r, args[0]),
            Op::Transpose(t) => self.transpose(b, t, args[0]),
            _ => Ok(Rewrite::Keep),
        }
    }

    /// The second form with one axis moved, if there is one.
    fn one(&self, v: Value) -> Option<Value> {
        self.of.get(&v).filter(|f| f.moved == 1).map(|f| f.value)
    }

    /// A value from its second form.
    fn result(&mut self, b: &mut Builder, value: Value, moved: usize) -> Answer {
        let rank = b.ty(value).rank();
        let order = order(rank, moved);
        let mut perm = vec![0; rank];
        order.iter().enumerate().for_each(|(i, &a)| perm[a] = i);
        let v = b.transpose(value, &perm)?;
        self.of.insert(v, Form { value, moved });
        Ok(Rewrite::With(vec![v]))
    }

    /// The second form of any value of rank 3 or more, made if it must be.
    fn get(&mut self, b: &mut Builder, v: Value) -> Result<Value, TypeError> {
        if let Some(form) = self.one(v) {
            return Ok(form);
        }
        let key = (v, b.region());
        if let Some(&made) = self.made.get(&key) {
            return Ok(made);
        }
        let shape = b.shape(v);
        let order = order(shape.len(), 1);
        let alone = (0..shape.len()).all(|i| i == 1 || shape[i] == Dim::ONE);
        let made = if alone {
            // One value a channel: nothing changes places.
            let shape: Vec<Dim> = order.iter().map(|&a| shape[a].clone()).collect();
            b.reshape(v, &shape)?
        } else {
            b.transpose(v, &order)?
        };
        self.made.insert(key, made);
        Ok(made)
    }

    fn conv(&mut self, b: &mut Builder, op: &Conv, args: &[Value], w: &Packed) -> Answer {
        let mut x = self.get(b, args[0])?;
        // The third argument is what stands around bytes, or a bias.
        let (around, bias) = match op.out {
            Some(_) => (args.get(2), None),
            None => (None, args.get(2)),
        };
        if w.apart {
            let with_outer = |d: &[Dim]| [&[Dim::ZERO], d, &[Dim::ZERO]].concat();
            let around = match around {
                Some(&v) => v,
                None => b.scalar_like(x, 0.0)?,
            };
            let pad = Pad {
                lo: with_outer(&op.lo),
                hi: with_outer(&op.hi),
                mode: PadMode::Constant,
            };
            x = b.one(pad, &[x, around])?;
        }
        let filters = b.global(w.name.clone())?;
        let mut given = vec![x, filters];
        given.extend(around.filter(|_| w.op.is_bordered()));
        let mut y = b.one(w.op.clone(), &given)?;
        if let Some(&bias) = bias {
            y = b.add(y, bias)?;
        }
        self.result(b, y, 1)
    }

    /// Quantize and dequantize, `made` for the axis that theirs becomes.
    fn requantize(
        &mut self,
        b: &mut Builder,
        args: &[Value],
        axis: usize,
        made: &dyn Fn(usize) -> Op,
    ) -> Answer {
        let Some(form) = self.one(args[0]) else {
            return Ok(Rewrite::Keep);
        };
        let order = order(b.ty(form).rank(), 1);
        let axis = order.iter().position(|&a| a == axis).unwrap_or(axis);
        let mut given = args.to_vec();
        given[0] = form;
        let y = b.one(made(axis), &given)?;
        self.result(b, y, 1)
    }

    fn elementwise(&mut self, b: &mut Builder, op: &Op, args: &[Value], v: Value) -> Answer {
        let rank = b.ty(v).rank();
        let leads = |&a: &Value| self.one(a).is_some_and(|f| b.ty(f).rank() == rank);
        if rank < 3 || !args.iter().any(leads) {
            return Ok(Rewrite::Keep);
        }
        let mut new = vec![];
        for &a in args {
            let shape = b.shape(a);
            new.push(match shape.len() {
                0 => a,
                // Broadcasts along channels: the last axis of a shorter shape is not
                // the channels'.
                short if short < rank => {
                    let mut whole = vec![Dim::ONE; rank - short];
                    whole.extend(shape);
                    let key = (a, b.region(), rank);
                    let wide = match self.wide.get(&key) {
                        Some(&made) => made,
                        None => b.reshape(a, &whole)?,
                    };
                    self.wide.insert(key, wide);
                    self.get(b, wide)?
                }
                _ => self.get(b, a)?,
            });
        }
        let y = b.one(op.clone(), &new)?;
        self.result(b, y, 1)
    }

    fn reduce(&mut self, b: &mut Builder, r: &Reduce, x: Value) -> Answer {
        let Some(form) = self.one(x) else {
            return Ok(Rewrite::Keep);
        };
        let rank = b.ty(form).rank();
        let order = order(rank, 1);
        let mut axes: Vec<usize> = (0..rank).filter(|&i| r.axes.contains(&order[i])).collect();
        axes.sort_unstable();
        let left: Vec<usize> = order
            .iter()
            .copied()
            .filter(|a| r.keep || !r.axes.contains(a))
            .collect();
        let sorted = left.is_sorted();
        let new = Reduce { axes, ..r.clone() };
        // Without the axes, one without the other form may be left.
        if !r.keep && !sorted && (r.axes.contains(&0) || left.len() < 3) {
            return Ok(Rewrite::Keep);
        }
        let y = b.one(new, &[form])?;
        match sorted {
            true => Ok(Rewrite::With(vec![y])),
            false => self.result(b, y, 1),
        }
    }

    fn pad(&mut self, b: &mut Builder, p: &Pad, args: &[Value]) -> Answer {
        let Some(form) = self.one(args[0]) else {
            return Ok(Rewrite::Keep);
        };
        let order = order(p.lo.len(), 1);
        let permuted = |d: &[Dim]| order.iter().map(|&a| d[a].clone()).collect::<Vec<_>>();
        let new = Pad {
            lo: permuted(&p.lo),
            hi: permuted(&p.hi),
            mode: p.mode,
        };
        let mut given = args.to_vec();
        given[0] = form;
        let y = b.one(new, &given)?;
        self.result(b, y, 1)
    }

    fn slice(&mut self, b: &mut Builder, s: &Slice, x: Value) -> Answer {
        let Some(form) = self.one(x) else {
            return Ok(Rewrite::Keep);
        };
        let order = order(s.starts.len(), 1);
        let new = Slice {
            starts: order.iter().map(|&a| s.starts[a].clone()).collect(),
            sizes: order.iter().map(|&a| s.sizes[a].clone()).collect(),
            steps: order.iter().map(|&a| s.steps[a]).collect(),
        };
        let y = b.one(new, &[form])?;
        self.result(b, y, 1)
    }

    fn broadcast(&mut self, b: &mut Builder, to: &Broadcast, x: Value) -> Answer {
        let Some(form) = self.one(x).filter(|&f| b.ty(f).rank() == to.shape.len()) else {
            return Ok(Rewrite::Keep);
        };
        let order = order(to.shape.len(), 1);
        let shape = order.iter().map(|&a| to.shape[a].clone()).collect();
        let y = b.one(Broadcast { shape }, &[form])?;
        self.result(b, y, 1)
    }

    fn concat(&mut self, b: &mut Builder, c: &Concat, args: &[Value], v: Value) -> Answer {
        let rank = b.ty(v).rank();
        let have = args.iter().filter(|&&a| self.one(a).is_some()).count();
        if rank < 3 || 2 * have < args.len() {
            return Ok(Rewrite::Keep);
        }
        let order = order(rank, 1);
        let axis = (0..rank).find(|&i| order[i] == c.axis).unwrap_or(c.axis);
        let mut new = vec![];
        for &a in args {
            new.push(self.get(b, a)?);
        }
        let y = b.one(Concat { axis }, &new)?;
        self.result(b, y, 1)
    }

    fn unfold(&mut self, b: &mut Builder, u: &Unfold, x: Value) -> Answer {
        let Some(form) = self.one(x).filter(|_| u.axis >= 2) else {
            return Ok(Rewrite::Keep);
        };
        let new = Unfold {
            axis: u.axis - 1,
            ..u.clone()
        };
        let y = b.one(new, &[form])?;
        self.result(b, y, 1)
    }

    fn gather(&mut self, b: &mut Builder, g: &Gather, args: &[Value]) -> Answer {
        let rank = b.ty(args[1]).rank();
        let Some(form) = self.one(args[0]).filter(|_| g.axis >= 1 && rank == 1) else {
            return Ok(Rewrite::Keep);
        };
        let last = b.ty(form).rank() - 1;
        let axis = if g.axis == 1 { last } else { g.axis - 1 };
        let y = b.one(Gather { axis }, &[form, args[1]])?;
        self.result(b, y, 1)
    }

    /// Batch and channels stay; or the channels split, or come together again.
    fn reshape(&mut self, b: &mut Builder, r: &Reshape, x: Value) -> Answer {
        let Some(&form) = self.of.get(&x) else {
            return Ok(Rewrite::Keep);
        };
        let (old, new) = (b.shape(x), &r.shape);
        if new.first() != Some(&old[0]) {
            return Ok(Rewrite::Keep);
        }
        let spatial = &old[1 + form.moved..];
        let channels = Dim::product(&old[1..1 + form.moved]);
        let keeps = |moved: &usize| {
            Dim::product(&new[1..1 + moved]) == channels
                && (new[1 + moved..] == *spatial || (*moved, form.moved) == (1, 1))
        };
        let Some(moved) = (1..new.len()).find(keeps) else {
            return Ok(Rewrite::Keep);
        };
        if new.len() < 2 + moved {
            // No spatial axis is left, so all of them had one element.
            let y = b.reshape(form.value, new)?;
            return Ok(Rewrite::With(vec![y]));
        }
        let order = order(new.len(), moved);
        let shape: Vec<Dim> = order.iter().map(|&a| new[a].clone()).collect();
        let y = b.reshape(form.value, &shape)?;
        self.result(b, y, moved)
    }

    /// Axes of channels change places among themselves or with spatial ones.
    fn transpose(&mut self, b: &mut Builder, t: &Transpose, x: Value) -> Answer {
        let perm = t.perm.axes();
        let rank = perm.len();
        let Some(&form) = self.of.get(&x).filter(|_| rank >= 3 && perm[0] == 0) else {
            return Ok(Rewrite::Keep);
        };
        let inside = |axis: &usize| (1..=form.moved).contains(axis);
        let moved = if perm[1..=form.moved].iter().all(inside) {
            form.moved
        } else if inside(&perm[1]) {
            1
        } else {
            return Ok(Rewrite::Keep);
        };
        let from = order(rank, form.moved);
        let place = |axis: usize| from.iter().position(|&a| a == axis).unwrap_or(axis);
        let to: Vec<usize> = order(rank, moved).iter().map(|&a| place(perm[a])).collect();
        let y = b.transpose(form.value, &to)?;
        self.result(b, y, moved)
    }
}
