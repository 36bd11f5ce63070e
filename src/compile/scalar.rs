//! From a group's region to scalar expressions: what one element of a value is,
//! as a function of the kernel's axes.
//!
//! A value at coordinates asks its producer, which asks its arguments at theirs;
//! moves (transpose, slice, broadcast, gather, pad, concat) only change the
//! coordinates, and a region parameter becomes a load whose address is the sum of
//! coordinate times stride.

use kiln_ir::ops::layout::PadMode;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, Graph, Op, RegionId, Value};
use kiln_kernels::{ExprError, ExprId, Exprs, Gathered, Index, Node, Params, Size};
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// Why a group has no kernel.
#[derive(Clone, Debug)]
pub struct NoKernel(pub String);

impl fmt::Display for NoKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<ExprError> for NoKernel {
    fn from(e: ExprError) -> NoKernel {
        NoKernel(e.to_string())
    }
}

impl From<kiln_kernels::SpecError> for NoKernel {
    fn from(e: kiln_kernels::SpecError) -> NoKernel {
        NoKernel(e.to_string())
    }
}

/// What a kernel reads and writes for an element of this type: strings are handles.
pub fn element(dtype: DType) -> DType {
    match dtype {
        DType::Str => DType::I64,
        dtype => dtype,
    }
}

/// A position along one axis of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Coord {
    /// `offset + Σ axis·factor` over the kernel's axes.
    Linear {
        /// Axis and factor, by axis.
        terms: BTreeMap<u8, Dim>,
        /// Constant part.
        offset: Dim,
    },
    /// A number that data gives (i64).
    Data(ExprId),
}

impl Coord {
    /// Position 0.
    pub fn zero() -> Coord {
        Coord::Linear {
            terms: BTreeMap::new(),
            offset: Dim::ZERO,
        }
    }

    /// The coordinate along a kernel axis.
    pub fn axis(axis: u8) -> Coord {
        Coord::Linear {
            terms: [(axis, Dim::ONE)].into(),
            offset: Dim::ZERO,
        }
    }
}

/// The state of one kernel's construction.
pub struct Scalars<'a> {
    /// The function.
    pub graph: &'a Graph,
    /// The group's region.
    pub region: RegionId,
    /// The expressions so far.
    pub exprs: Exprs,
    /// The launch's parameters.
    pub params: Params,
    /// Buffers in order of their numbers: region parameters.
    pub buffers: Vec<Value>,
    /// Values that stand for themselves: accumulators, an anchor's result. With
    /// the coordinates at which they may be read (none: anywhere).
    pub fixed: BTreeMap<Value, (ExprId, Option<Vec<Coord>>)>,
    /// Called for a reduction when its value is first needed.
    pub reductions: Vec<Value>,
    memo: HashMap<(Value, Vec<Coord>, Option<ExprId>), ExprId>,
}

impl<'a> Scalars<'a> {
    /// A construction with these buffers numbered first.
    pub fn new(graph: &'a Graph, region: RegionId, buffers: Vec<Value>) -> Scalars<'a> {
        Scalars {
            graph,
            region,
            exprs: Exprs::new(),
            params: Params::new(),
            buffers,
            fixed: BTreeMap::new(),
            reductions: vec![],
            memo: HashMap::new(),
        }
    }

    /// A dim as a kernel size.
    pub fn size(&mut self, d: &Dim) -> Size {
        self.params.size(d)
    }

    /// A dim as an i64 expression.
    pub fn dim(&mut self, d: &Dim) -> ExprId {
        let size = self.size(d);
        self.exprs.size(size)
    }

    /// A coordinate as an i64 expression.
    pub fn coord(&mut self, c: &Coord) -> Result<ExprId, NoKernel> {
        match c {
            Coord::Data(e) => Ok(*e),
            Coord::Linear { terms, offset } => {
                let mut sum = self.dim(offset);
                for (axis, factor) in terms {
                    let (x, f) = (self.exprs.axis(*axis), self.dim(factor));
                    let term = if *factor == Dim::ONE {
                        x
                    } else {
                        self.exprs.binary(BinaryFn::Mul, x, f)?
                    };
                    sum = if *offset == Dim::ZERO && sum == self.dim(&Dim::ZERO) {
                        term
                    } else {
                        self.exprs.binary(BinaryFn::Add, sum, term)?
                    };
                }
                Ok(sum)
            }
        }
    }

    /// `c·factor + offset`.
    fn scale(&mut self, c: &Coord, factor: i64, offset: &Dim) -> Result<Coord, NoKernel> {
        Ok(match c {
            Coord::Linear { terms, offset: o } => Coord::Linear {
                terms: terms
                    .iter()
                    .map(|(a, f)| (*a, f.clone() * Dim::from(factor)))
                    .collect(),
                offset: o.clone() * Dim::from(factor) + offset.clone(),
            },
            Coord::Data(e) => {
                let (f, o) = (self.exprs.i64(factor), self.dim(offset));
                let scaled = self.exprs.binary(BinaryFn::Mul, *e, f)?;
                Coord::Data(self.exprs.binary(BinaryFn::Add, scaled, o)?)
            }
        })
    }

    /// `a + b`.
    fn plus(&mut self, a: &Coord, b: &Coord) -> Result<Coord, NoKernel> {
        if let (
            Coord::Linear {
                terms: s,
                offset: o,
            },
            Coord::Linear {
                terms: t,
                offset: p,
            },
        ) = (a, b)
        {
            let mut terms = s.clone();
            for (axis, factor) in t {
                let slot = terms.entry(*axis).or_insert(Dim::ZERO);
                *slot = slot.clone() + factor.clone();
            }
            let offset = o.clone() + p.clone();
            return Ok(Coord::Linear { terms, offset });
        }
        let (x, y) = (self.coord(a)?, self.coord(b)?);
        Ok(Coord::Data(self.exprs.binary(BinaryFn::Add, x, y)?))
    }

    /// The element of `v` at these coordinates; where `guard` (a bool) is false it
    /// is not read, and the value is anything.
    pub fn value(
        &mut self,
        v: Value,
        at: &[Coord],
        guard: Option<ExprId>,
    ) -> Result<ExprId, NoKernel> {
        if let Some((e, allowed)) = self.fixed.get(&v) {
            // The only element of an axis of extent 1 is wherever one looks.
            let shape = self.graph.shape(v);
            let elsewhere = |want: &Vec<Coord>| {
                let mut pairs = want.iter().zip(at).zip(shape);
                want.len() != at.len() || pairs.any(|((w, c), d)| w != c && *d != Dim::ONE)
            };
            return match allowed {
                Some(want) if elsewhere(want) => {
                    Err(NoKernel(format!("{v} is read away from its own place")))
                }
                _ => Ok(*e),
            };
        }
        let key = (v, at.to_vec(), guard);
        if let Some(e) = self.memo.get(&key) {
            return Ok(*e);
        }
        let e = self.compute(v, at, guard)?;
        self.memo.insert(key, e);
        Ok(e)
    }

    /// Coordinates of an elementwise argument.
    fn aligned(&self, arg: Value, result: Value, at: &[Coord]) -> Vec<Coord> {
        let (a, r) = (self.graph.shape(arg), self.graph.shape(result));
        let lead = r.len() - a.len();
        (0..a.len())
            .map(|i| {
                if a[i] == Dim::ONE {
                    Coord::zero()
                } else {
                    at[lead + i].clone()
                }
            })
            .collect()
    }

    fn compute(
        &mut self,
        v: Value,
        at: &[Coord],
        guard: Option<ExprId>,
    ) -> Result<ExprId, NoKernel> {
        let graph = self.graph;
        let Some((n, _)) = graph.producer(v) else {
            return self.load(v, at, guard);
        };
        let node = graph.node(n);
        if node.parent != self.region {
            return Err(NoKernel(format!("{v} comes from outside the group")));
        }
        let args = &node.args;
        let cannot = |what: &str| {
            Err(NoKernel(format!(
                "`{what}` has no kernel in this place yet"
            )))
        };
        match &node.op {
            Op::Unary(u) => {
                let c = self.aligned(args[0], v, at);
                let x = self.value(args[0], &c, guard)?;
                Ok(self.exprs.unary(u.f, x)?)
            }
            Op::Binary(b) => {
                let (p, q) = (self.aligned(args[0], v, at), self.aligned(args[1], v, at));
                let (x, y) = (
                    self.value(args[0], &p, guard)?,
                    self.value(args[1], &q, guard)?,
                );
                Ok(self.exprs.binary(b.f, x, y)?)
            }
            Op::Compare(c) => {
                let (p, q) = (self.aligned(args[0], v, at), self.aligned(args[1], v, at));
                let (x, y) = (
                    self.value(args[0], &p, guard)?,
                    self.value(args[1], &q, guard)?,
                );
                Ok(self.exprs.compare(c.f, x, y)?)
            }
            Op::Select(_) => {
                let cs: Vec<Vec<Coord>> = args.iter().map(|&a| self.aligned(a, v, at)).collect();
                let c = self.value(args[0], &cs[0], guard)?;
                let (x, y) = (
                    self.value(args[1], &cs[1], guard)?,
                    self.value(args[2], &cs[2], guard)?,
                );
                Ok(self.exprs.select(c, x, y)?)
            }
            Op::Cast(c) => {
                let p = self.aligned(args[0], v, at);
                let x = self.value(args[0], &p, guard)?;
                Ok(self.exprs.cast(c.to, x)?)
            }
            Op::Constant(c) if c.value.len() == 1 && c.value.dtype() != DType::Str => {
                let dtype = c.value.dtype();
                Ok(if dtype.is_float() {
                    self.exprs.float(dtype, c.value.get_f64(0))?
                } else {
                    self.exprs.int(dtype, c.value.get_i64(0))?
                })
            }
            Op::Dims(d) if d.value.dims.len() == 1 => Ok(self.dim(&d.value.dims[0])),
            Op::Iota(i) => {
                let e = self.coord(&at[i.axis])?;
                Ok(self.exprs.cast(i.dtype, e)?)
            }
            Op::Broadcast(_) => {
                let c = self.aligned(args[0], v, at);
                self.value(args[0], &c, guard)
            }
            Op::Transpose(t) => {
                let mut c = vec![Coord::zero(); at.len()];
                t.perm
                    .axes()
                    .iter()
                    .enumerate()
                    .for_each(|(i, &p)| c[p] = at[i].clone());
                self.value(args[0], &c, guard)
            }
            Op::Slice(s) => {
                let c: Vec<Coord> = (0..at.len())
                    .map(|i| self.scale(&at[i], s.steps[i], &s.starts[i]))
                    .collect::<Result<_, _>>()?;
                self.value(args[0], &c, guard)
            }
            Op::Unfold(u) => {
                let mut c = at.to_vec();
                let place = c.remove(u.axis + 1);
                let window = self.scale(&c[u.axis], u.step as i64, &Dim::ZERO)?;
                let place = self.scale(&place, u.dilation as i64, &Dim::ZERO)?;
                c[u.axis] = self.plus(&window, &place)?;
                self.value(args[0], &c, guard)
            }
            Op::Gather(g) => {
                let n = graph.ty(args[1]).rank();
                let index = self.value(args[1], &at[g.axis..g.axis + n], guard)?;
                let index = self.checked(index, args[0], g.axis)?;
                let mut c = at[..g.axis].to_vec();
                c.push(index);
                c.extend_from_slice(&at[g.axis + n..]);
                self.value(args[0], &c, guard)
            }
            Op::GatherElements(g) => {
                let index = self.value(args[1], at, guard)?;
                let mut c = at.to_vec();
                c[g.axis] = self.checked(index, args[0], g.axis)?;
                self.value(args[0], &c, guard)
            }
            Op::GatherNd(g) => {
                let lead = graph.ty(args[1]).rank() - 1;
                let depth = graph.shape(args[1])[lead].as_const().unwrap_or(0);
                let mut c = at[..g.batch_dims].to_vec();
                for j in 0..depth {
                    let mut place = at[..lead].to_vec();
                    place.push(Coord::Linear {
                        terms: BTreeMap::new(),
                        offset: j.into(),
                    });
                    let index = self.value(args[1], &place, guard)?;
                    c.push(self.checked(index, args[0], g.batch_dims + j as usize)?);
                }
                c.extend_from_slice(&at[lead..]);
                self.value(args[0], &c, guard)
            }
            Op::Pad(p) if p.mode == PadMode::Constant => {
                let mut inside = guard;
                let mut c = vec![];
                for (i, here) in at.iter().enumerate() {
                    let back = -p.lo[i].clone();
                    let moved = self.scale(here, 1, &back)?;
                    if p.lo[i] != Dim::ZERO || p.hi[i] != Dim::ZERO {
                        let e = self.coord(&moved)?;
                        let (zero, end) = (self.exprs.i64(0), self.dim(&graph.shape(args[0])[i]));
                        let low = self.exprs.compare(CompareFn::Ge, e, zero)?;
                        let high = self.exprs.compare(CompareFn::Lt, e, end)?;
                        let both = self.exprs.binary(BinaryFn::And, low, high)?;
                        inside = Some(match inside {
                            Some(g) => self.exprs.binary(BinaryFn::And, g, both)?,
                            None => both,
                        });
                    }
                    c.push(moved);
                }
                let fill = self.value(args[1], &[], guard)?;
                let x = self.value(args[0], &c, inside)?;
                match (inside, self.exprs.node(x).clone()) {
                    // The load's own guard chooses.
                    (
                        Some(when),
                        Node::Load {
                            arg,
                            dtype,
                            index,
                            guard: Some(g),
                        },
                    ) if g.when == when => {
                        Ok(self.exprs.load_where(arg, dtype, index, when, fill)?)
                    }
                    (Some(g), _) => Ok(self.exprs.select(g, x, fill)?),
                    (None, _) => Ok(x),
                }
            }
            Op::Concat(cat) => {
                // The last piece is the default, earlier ones are chosen before it.
                let place = self.coord(&at[cat.axis])?;
                let mut start = Dim::ZERO;
                let mut pieces = vec![];
                for (i, &a) in args.iter().enumerate() {
                    let end = start.clone() + graph.shape(a)[cat.axis].clone();
                    let (low, high) = (self.dim(&start), self.dim(&end));
                    let below = self.exprs.compare(CompareFn::Lt, place, high)?;
                    let above = self.exprs.compare(CompareFn::Ge, place, low)?;
                    // Nothing is before the first piece or behind the last, except
                    // where an index from data leads nowhere.
                    let found = matches!(at[cat.axis], Coord::Linear { .. }) && guard.is_none();
                    let mut inside = match i {
                        0 if found && args.len() > 1 => below,
                        _ if found && i + 1 == args.len() => above,
                        _ => self.exprs.binary(BinaryFn::And, above, below)?,
                    };
                    if let Some(g) = guard {
                        inside = self.exprs.binary(BinaryFn::And, inside, g)?;
                    }
                    let mut c = at.to_vec();
                    let back = -start.clone();
                    c[cat.axis] = self.scale(&at[cat.axis], 1, &back)?;
                    let x = self.value(a, &c, Some(inside))?;
                    pieces.push((below, x));
                    start = end;
                }
                let mut pieces = pieces.into_iter().rev();
                let Some((_, mut out)) = pieces.next() else {
                    return cannot("concat");
                };
                for (below, x) in pieces {
                    out = self.exprs.select(below, x, out)?;
                }
                Ok(out)
            }
            Op::DynamicSlice(d) => {
                // A box of something in memory: its start is one term of the address.
                if graph.producer(args[0]).is_some() {
                    return cannot("dynamic_slice of a computed value");
                }
                let ty = graph.ty(args[0]).clone();
                let mut index = self.address(&ty.shape, at)?;
                self.box_start(&mut index, args[1], &ty.shape, &d.sizes)?;
                let arg = self.buffer(args[0]);
                Ok(match guard {
                    None => self.exprs.load(arg, element(ty.dtype), index)?,
                    Some(g) => {
                        let zero = self.exprs.int(element(ty.dtype), 0)?;
                        self.exprs
                            .load_where(arg, element(ty.dtype), index, g, zero)?
                    }
                })
            }
            kiln_ir::any_reduction!() => Err(NoKernel(format!(
                "the reduction {v} stands where none is expected"
            ))),
            kiln_ir::any_anchor!() => {
                Err(NoKernel(format!("{v} stands in a group of another kind")))
            }
            // A pad that does not fill, kernels of their own, what the plan does.
            Op::Pad(_)
            | kiln_ir::any_kernel!()
            | kiln_ir::any_plan!()
            | kiln_ir::any_composite!() => cannot(node.op.def().mnemonic()),
        }
    }

    /// An index from data along an axis of `x`. Where it addresses memory it is
    /// counted from the end if negative, and checked; what reads through a view is
    /// counted here, since the memory behind has other extents, and an index out of
    /// range goes far out of those as well.
    fn checked(&mut self, index: ExprId, x: Value, axis: usize) -> Result<Coord, NoKernel> {
        let index = self.exprs.cast(DType::I64, index)?;
        if self.graph.producer(x).is_none() {
            return Ok(Coord::Data(index));
        }
        let extent = self.dim(&self.graph.shape(x)[axis].clone());
        let (zero, far) = (self.exprs.i64(0), self.exprs.i64(1 << 40));
        let negative = self.exprs.compare(CompareFn::Lt, index, zero)?;
        let back = self.exprs.binary(BinaryFn::Add, index, extent)?;
        let index = self.exprs.select(negative, back, index)?;
        let above = self.exprs.compare(CompareFn::Ge, index, zero)?;
        let below = self.exprs.compare(CompareFn::Lt, index, extent)?;
        let inside = self.exprs.binary(BinaryFn::And, above, below)?;
        Ok(Coord::Data(self.exprs.select(inside, index, far)?))
    }

    /// Adds the start of a box of `sizes` inside `shape`, read from `starts`, to an
    /// address; a box that leaves the shape is an index out of range.
    pub fn box_start(
        &mut self,
        index: &mut Index,
        starts: Value,
        shape: &[Dim],
        sizes: &[Dim],
    ) -> Result<(), NoKernel> {
        for i in 0..shape.len() {
            let which = Coord::Linear {
                terms: BTreeMap::new(),
                offset: i.into(),
            };
            let start = self.value(starts, &[which], None)?;
            // Below zero means before the box here, not counted from the end.
            let (zero, never) = (self.exprs.i64(0), self.exprs.i64(i64::MAX));
            let below = self.exprs.compare(CompareFn::Lt, start, zero)?;
            let start = self.exprs.select(below, never, start)?;
            let room = shape[i].clone() - sizes[i].clone() + Dim::ONE;
            let (stride, extent) = (self.size(&Dim::product(&shape[i + 1..])), self.size(&room));
            index.gathers.push(Gathered {
                index: start,
                stride,
                extent,
            });
        }
        Ok(())
    }

    /// A load of a region parameter.
    fn load(&mut self, v: Value, at: &[Coord], guard: Option<ExprId>) -> Result<ExprId, NoKernel> {
        let ty = self.graph.ty(v).clone();
        let arg = self.buffer(v);
        let index = self.address(&ty.shape, at)?;
        Ok(match guard {
            None => self.exprs.load(arg, element(ty.dtype), index)?,
            Some(g) => {
                let zero = self.exprs.int(element(ty.dtype), 0)?;
                self.exprs
                    .load_where(arg, element(ty.dtype), index, g, zero)?
            }
        })
    }

    /// The number of a region parameter's buffer.
    pub fn buffer(&mut self, v: Value) -> u16 {
        let known = self.buffers.iter().position(|&b| b == v);
        known.unwrap_or_else(|| {
            self.buffers.push(v);
            self.buffers.len() - 1
        }) as u16
    }

    /// The address of coordinates in a dense row-major tensor.
    pub fn address(&mut self, shape: &[Dim], at: &[Coord]) -> Result<Index, NoKernel> {
        let mut index = Index::default();
        let mut offset = Dim::ZERO;
        let mut strides: BTreeMap<u8, Dim> = BTreeMap::new();
        for (i, c) in at.iter().enumerate() {
            let stride = Dim::product(&shape[i + 1..]);
            match c {
                Coord::Linear { terms, offset: o } => {
                    offset = offset + o.clone() * stride.clone();
                    for (axis, factor) in terms {
                        let slot = strides.entry(*axis).or_insert(Dim::ZERO);
                        *slot = slot.clone() + factor.clone() * stride.clone();
                    }
                }
                Coord::Data(e) => {
                    let (stride, extent) = (self.size(&stride), self.size(&shape[i]));
                    index.gathers.push(Gathered {
                        index: *e,
                        stride,
                        extent,
                    });
                }
            }
        }
        index.offset = self.size(&offset);
        if let Some((&last, _)) = strides.last_key_value() {
            index.strides = (0..=last)
                .map(|a| strides.get(&a).map_or(Size::ZERO, |d| self.params.size(d)))
                .collect();
        }
        Ok(index)
    }
}
