//! Moves that swap the axis of their runs: transposes of two axes, in vectors.
//!
//! Where a nest reads runs along one axis `u` and writes runs along another `v`,
//! one of the two would be a gather. Instead both axes are walked together:
//!
//! ```text
//! u short, [.., g, c] -> [.., c, g], g of 2..8       u long, [r, c] -> [c, r]
//!   for 16 c at a time                               for 16 c at a time, 16 r at a time
//!     g runs of 16 c are loaded                        16 runs are loaded, transposed in
//!     each of the g points is computed                 registers and laid into scratch;
//!     16·g results are interleaved, g runs stored      for each c: a run of 16 r is stored
//! ```
//! A short axis costs g − 1 shuffles a vector, a long one 4; both are unrolled, the
//! long one's 64 shuffles once a load, so compile time stays with the nest's size.

use crate::emit_nest::NestEmitter;
use crate::expr::{ExprId, Index, Node, Size, compute_dtype};
use crate::lower::{convert, memory_elem};
use crate::micro;
use crate::nest::{Effect, LANES, LoopNest, SCRATCH_HEAD};
use crate::schedule::access_cost;
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, Ty, Val};
use kiln_ir::DType;

/// The axis that is walked together with the vector axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossed {
    /// Which one; it is parallel.
    pub axis: u8,
    /// Its points in one tile: all of a short axis, else [`LANES`].
    pub points: i64,
    /// Whether it is short: its points are computed side by side in registers.
    pub short: bool,
}

/// The longest axis that is short.
const SHORT: i64 = 8;

/// Points of an axis below which 16 lanes along it idle too much.
const LONG: i64 = 8;

/// Expressions times unrolled points that a kernel may have.
const UNROLLED: i64 = 256;

/// Rough cycles of a vector that is read or written across lanes.
const CROSSING: u64 = 14;

/// Scratch bytes of one transposed tile of the widest elements.
const TILE_BYTES: i64 = LANES * LANES * 8;

impl Crossed {
    /// Whether a load or store runs along this axis and not along the vector axis.
    fn crosses(self, index: &Index, dtype: DType, vector: u8) -> bool {
        let runs = index.gathers.is_empty() && index.stride(self.axis) == Size::ONE;
        let step = index.stride(vector);
        runs && if self.short {
            step == Size::Const(self.points)
        } else {
            // Masked runs of narrow elements are one access a lane on AVX2.
            step != Size::ZERO && matches!(dtype.size(), Some(4 | 8))
        }
    }
}

impl LoopNest {
    /// The vector axis and the axis crossed with it, if that is cheaper than `plain`
    /// (the cost of the best vector axis alone).
    pub(crate) fn crossed(&self, plain: u64) -> Option<(u8, Crossed)> {
        let maps = self.effects().all(|e| {
            matches!(
                e,
                Effect::Store {
                    update: None,
                    when: None,
                    ..
                }
            )
        });
        if !maps || self.outer as usize != self.axes.len() {
            return None;
        }
        let axes = 0..self.outer;
        (axes.clone().flat_map(|v| axes.clone().map(move |u| (v, u))))
            .filter(|(v, u)| v != u)
            .filter_map(|(v, u)| {
                let crossed = self.crossing_axis(v, u)?;
                Some((self.crossed_cost(v, crossed)?, v, crossed))
            })
            .filter(|&(cost, ..)| cost < plain)
            .min_by_key(|&(cost, v, c)| (cost, v, c.axis))
            .map(|(_, v, c)| (v, c))
    }

    fn crossing_axis(&self, v: u8, u: u8) -> Option<Crossed> {
        let extent = |a: u8| self.axes[a as usize].as_const();
        if extent(v).is_some_and(|n| n < LONG) {
            return None;
        }
        match extent(u) {
            Some(n @ 2..=SHORT) => (self.live().len() as i64 * n <= UNROLLED).then_some(Crossed {
                axis: u,
                points: n,
                short: true,
            }),
            Some(..=1) => None,
            _ => Some(Crossed {
                axis: u,
                points: LANES,
                short: false,
            }),
        }
    }

    /// The cost as [`LoopNest::vector_cost`] counts it; `None` if nothing crosses.
    fn crossed_cost(&self, v: u8, c: Crossed) -> Option<u64> {
        let loads: Vec<ExprId> = self.crossed_loads(v, c);
        let mut cost = 8;
        let mut crossing = loads.len() as u64;
        for id in self.live() {
            if let Node::Load { index, .. } = self.exprs.node(id)
                && !loads.contains(&id)
            {
                cost += access_cost(self, index, v);
            }
        }
        for effect in self.effects() {
            if let Effect::Store { arg, index, .. } = effect {
                // A long axis crosses in loads alone: the roles can be swapped.
                if c.short && c.crosses(index, self.args[*arg as usize], v) {
                    crossing += 1;
                } else {
                    cost += access_cost(self, index, v);
                }
            }
        }
        if crossing == 0 {
            return None;
        }
        let extent = self.axes[v as usize].as_const().unwrap_or(64).max(1) as u64;
        let vectors = extent.div_ceil(LANES as u64);
        Some((cost + CROSSING * crossing) * vectors * 1024 / extent)
    }

    fn crossed_loads(&self, v: u8, c: Crossed) -> Vec<ExprId> {
        let crosses = |id: &ExprId| match self.exprs.node(*id) {
            Node::Load {
                dtype,
                index,
                guard: None,
                ..
            } => c.crosses(index, *dtype, v),
            _ => false,
        };
        self.live().into_iter().filter(crosses).collect()
    }

    /// Scratch bytes for the transposed tiles of a schedule.
    pub(crate) fn crossed_scratch(&self) -> i64 {
        let schedule = self.schedule();
        match (schedule.vector, schedule.crossed) {
            (Some(v), Some(c)) if !c.short => self.crossed_loads(v, c).len() as i64 * TILE_BYTES,
            _ => 0,
        }
    }
}

/// How elements are moved between registers.
fn raw_elem(dtype: DType) -> Elem {
    match memory_elem(dtype) {
        Elem::F16 | Elem::BF16 => Elem::I16,
        Elem::I1 => Elem::I8,
        other => other,
    }
}

impl<'a> NestEmitter<'a> {
    /// 16 points of the vector axis, of which `end` is the end, with the points of
    /// the crossed axis from its tile number `at` on.
    pub(crate) fn cross(&mut self, e: &mut Emitter, c: Crossed, at: Val, end: Val) {
        let Some(v) = self.cx.vector else {
            unreachable!("a crossed schedule has a vector axis")
        };
        let loads = self.nest.crossed_loads(v, c);
        if c.short {
            self.cross_short(e, c, v, &loads, end);
        } else {
            self.cross_long(e, c, v, &loads, (at, end));
        }
        self.cx.ready.clear();
    }

    fn cross_short(&mut self, e: &mut Emitter, c: Crossed, v: u8, loads: &[ExprId], end: Val) {
        let zero = e.i64(0);
        let points = c.points as u32;
        let mut dealt = vec![];
        for &id in loads {
            let Node::Load {
                arg, dtype, index, ..
            } = self.nest.exprs.node(id)
            else {
                continue;
            };
            let ty = Ty::vector(raw_elem(*dtype), LANES as u32);
            let runs = self.runs(e, c, zero, *arg, ty.elem, index);
            let masks = self.run_masks(e, c, v, end);
            let parts: Vec<Val> = (runs.iter().zip(masks))
                .map(|(&p, mask)| match mask {
                    Some(mask) => e.load_masked(p, ty, mask),
                    None => e.load(p, ty),
                })
                .collect();
            let deal = |g: u32| pick(e, &parts, &|lane| split(lane * points + g));
            dealt.push((0..points).map(deal).collect::<Vec<Val>>());
        }
        let nest = self.nest;
        let mut kept: Vec<Vec<Val>> = vec![vec![]; nest.effects().count()];
        for g in 0..points {
            let here = e.i64(g as i64);
            self.in_loop(c.axis, here, None, |s| {
                for (&id, values) in loads.iter().zip(&dealt) {
                    s.cx.ready.insert(id, values[g as usize]);
                }
                for (effect, kept) in nest.effects().zip(&mut kept) {
                    kept.extend(s.cross_store(e, effect, Some((c, v))));
                }
            });
        }
        for (effect, kept) in nest.effects().zip(&kept) {
            let Effect::Store { arg, index, .. } = effect else {
                continue;
            };
            let Some(first) = kept.first() else { continue };
            let runs = self.runs(e, c, zero, *arg, first.ty.elem, index);
            let masks = self.run_masks(e, c, v, end);
            for (k, (p, mask)) in (0..).zip(runs.into_iter().zip(masks)) {
                let out = pick(e, kept, &|lane| {
                    let at = k * LANES as u32 + lane;
                    ((at % points) as usize, at / points)
                });
                match mask {
                    Some(mask) => e.store_masked(out, p, mask),
                    None => e.store(out, p),
                }
            }
        }
    }

    /// Stores, or gives the vector that is to be stored across lanes.
    fn cross_store(
        &mut self,
        e: &mut Emitter,
        effect: &Effect,
        across: Option<(Crossed, u8)>,
    ) -> Option<Val> {
        let Effect::Store {
            arg, index, value, ..
        } = effect
        else {
            unreachable!("a crossed nest only stores")
        };
        let t = self.nest.args[*arg as usize];
        let x = self.cx.value(e, *value);
        if !across.is_some_and(|(c, v)| c.crosses(index, t, v)) {
            self.cx.store(e, *arg, t, index, x, None);
            return None;
        }
        let x = convert(e, x, compute_dtype(t), t);
        let x = e.splat(x, LANES as u32);
        Some(match x.ty.elem {
            Elem::I1 => e.cast(x, Elem::I8, true, true),
            Elem::F16 | Elem::BF16 => e.bitcast(x, Elem::I16),
            _ => x,
        })
    }

    /// Pointers to the runs of 16 that follow each other from the first point on.
    fn runs(
        &mut self,
        e: &mut Emitter,
        c: Crossed,
        first: Val,
        arg: u16,
        elem: Elem,
        index: &Index,
    ) -> Vec<Val> {
        let base = self.in_loop(c.axis, first, None, |s| s.cx.address(e, arg, elem, index));
        (0..c.points)
            .map(|k| {
                let at = e.i64(k * LANES);
                e.offset(base, at, elem)
            })
            .collect()
    }

    /// Which elements of each run exist; `None`: all of them.
    fn run_masks(&mut self, e: &mut Emitter, c: Crossed, v: u8, end: Val) -> Vec<Option<Val>> {
        let (Some(_), Some(i)) = (self.cx.mask, self.cx.axes[v as usize]) else {
            return vec![None; c.points as usize];
        };
        let left = e.sub(end, i);
        let points = e.i64(c.points);
        let left = e.mul(left, points);
        (0..c.points)
            .map(|k| {
                let before = e.i64(k * LANES);
                let here = e.sub(left, before);
                Some(e.mask_first(here, LANES as u32))
            })
            .collect()
    }

    fn cross_long(
        &mut self,
        e: &mut Emitter,
        c: Crossed,
        v: u8,
        loads: &[ExprId],
        (at, end): (Val, Val),
    ) {
        let lanes = e.i64(LANES);
        let low = e.mul(at, lanes);
        let above = e.add(low, lanes);
        let extent = self.extents[c.axis as usize];
        let high = e.min(above, extent, false);
        let tiles: Vec<(ExprId, Val, Elem)> = (0i64..)
            .zip(loads)
            .filter_map(|(k, &id)| {
                let Node::Load {
                    arg, dtype, index, ..
                } = self.nest.exprs.node(id)
                else {
                    return None;
                };
                let elem = raw_elem(*dtype);
                let rows = self.tile_rows(e, (c, v), (*arg, elem, index), (low, high, end));
                let start = e.i64(SCRATCH_HEAD + k * TILE_BYTES);
                let tile = e.offset(self.cx.scratch, start, Elem::I8);
                for (j, column) in (0..).zip(micro::transpose(e, rows)) {
                    let at = e.i64(j * LANES);
                    let p = e.offset(tile, at, elem);
                    e.store(column, p);
                }
                Some((id, tile, elem))
            })
            .collect();
        let one = e.i64(1);
        let nest = self.nest;
        e.for_loop(low, high, one, &[], |e, u, _| {
            self.in_loop(c.axis, u, None, |s| {
                let row = e.sub(u, low);
                let row = e.mul(row, lanes);
                for &(id, tile, elem) in &tiles {
                    let p = e.offset(tile, row, elem);
                    let x = e.load(p, Ty::vector(elem, LANES as u32));
                    s.cx.ready.insert(id, x);
                }
                for effect in nest.effects() {
                    s.cross_store(e, effect, None);
                }
            });
            vec![]
        });
    }

    /// 16 rows along the crossed axis, one for each point of the vector axis; what
    /// does not exist is not read.
    fn tile_rows(
        &mut self,
        e: &mut Emitter,
        (c, v): (Crossed, u8),
        (arg, elem, index): (u16, Elem, &Index),
        (low, high, end): (Val, Val, Val),
    ) -> Vec<Val> {
        let ty = Ty::vector(elem, LANES as u32);
        let base = self.in_loop(c.axis, low, None, |s| s.cx.address(e, arg, elem, index));
        let step = self.cx.size(e, index.stride(v));
        let whole = self.nest.axes[c.axis as usize].as_const();
        let columns = if whole.is_some_and(|n| n % LANES == 0) {
            None
        } else {
            let count = e.sub(high, low);
            Some(e.mask_first(count, LANES as u32))
        };
        let left = match (self.cx.mask, self.cx.axes[v as usize]) {
            (Some(_), Some(i)) => Some(e.sub(end, i)),
            _ => None,
        };
        (0..LANES)
            .map(|r| {
                let r = e.i64(r);
                let at = e.mul(r, step);
                let p = e.offset(base, at, elem);
                let exists = left.map(|left| {
                    let exists = e.cmp(Cmp::Lt, r, left, false);
                    e.splat(exists, LANES as u32)
                });
                match (exists, columns) {
                    (None, None) => e.load(p, ty),
                    (Some(mask), None) | (None, Some(mask)) => e.load_masked(p, ty, mask),
                    (Some(a), Some(b)) => {
                        let mask = e.op2("arith.andi", a, b);
                        e.load_masked(p, ty, mask)
                    }
                }
            })
            .collect()
    }
}

/// Which vector and which lane of it an element of a sequence of runs is.
fn split(at: u32) -> (usize, u32) {
    ((at / LANES as u32) as usize, at % LANES as u32)
}

/// The vector whose lanes come from `source(lane)`: (which of `xs`, which lane).
fn pick(e: &mut Emitter, xs: &[Val], source: &dyn Fn(u32) -> (usize, u32)) -> Val {
    let lanes = 0..LANES as u32;
    let used = |k: usize| lanes.clone().any(|l| source(l).0 == k);
    let mut out: Option<(usize, Val)> = None;
    for (k, &x) in xs.iter().enumerate().filter(|(k, _)| used(*k)) {
        let Some((first, before)) = out else {
            out = Some((k, x));
            continue;
        };
        // Only the first two are met as they were loaded.
        let raw = before == xs[first];
        let list: Vec<u32> = (lanes.clone())
            .map(|l| match source(l) {
                (j, lane) if j == k => LANES as u32 + lane,
                (j, lane) if j == first && raw => lane,
                _ => l,
            })
            .collect();
        out = Some((first, e.shuffle(before, x, &list)));
    }
    match out {
        Some((_, v)) => v,
        None => unreachable!("every lane has a source"),
    }
}
