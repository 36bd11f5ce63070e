//! Sequences and optionals.

use crate::onnx::cx::{Cx, Fail, Items};
use crate::onnx::item::{self, Item, Part, Sequence, opaque, unknown};
use crate::onnx::tensor;
use kiln_ir::graph::Value;
use kiln_ir::{DType, Dim, Tensor, Tri};

/// Axes up to this long are split into single elements; longer ones stay whole
/// until someone takes an element.
const SPLIT: i64 = 64;
/// Pieces that an axis is split into.
const MAX_PIECES: i64 = 1 << 16;

/// Parts before a place and from it on.
type Halves = (Vec<Part>, Vec<Part>);

impl Cx<'_, '_, '_> {
    /// How many elements a sequence holds.
    pub(crate) fn length(&self, s: &Sequence) -> Result<Dim, Fail> {
        let counts = s.parts.iter().map(|part| part.count(self.b.graph));
        let mut total = Dim::ZERO;
        for count in counts {
            total = total + count?;
        }
        Ok(total)
    }

    fn part_of(&mut self, v: Value, start: Dim, size: Dim) -> Result<Part, Fail> {
        Ok(Part::Stack(self.b.slice_axis(v, 0, start, size)?))
    }

    /// Parts split before element `n`, counted from the end where `back`: then
    /// `n` elements follow.
    fn split(&mut self, s: &Sequence, n: i64, back: bool) -> Result<Halves, Fail> {
        let (mut passed, mut rest) = (vec![], s.parts.clone());
        if !back {
            rest.reverse();
        }
        // `rest` is a stack whose last part comes next, `passed` what was walked
        // over; both lie the other way round when walking from the front.
        let mut left = n;
        while left > 0 {
            let Some(part) = rest.pop() else {
                let all = self.length(s)?;
                return Err(Fail::invalid(format!(
                    "a sequence of {all} elements has no {n} at its {}",
                    if back { "end" } else { "front" }
                )));
            };
            let (Part::Stack(v), count) = (part, part.count(self.b.graph)?) else {
                passed.push(part);
                left -= 1;
                continue;
            };
            match count.as_const() {
                Some(c) if c <= left => {
                    passed.push(part);
                    left -= c;
                }
                None if !rest.is_empty() => {
                    return Err(unknown(
                        "a position lies behind elements of an unknown number",
                    ));
                }
                _ => {
                    let because = format!("the sequence has at least {n} elements");
                    self.assume_le(left.into(), count.clone(), &because);
                    let others = count - Dim::from(left);
                    let (near, far) = if back {
                        let far = self.part_of(v, Dim::ZERO, others.clone())?;
                        (self.part_of(v, others, left.into())?, far)
                    } else {
                        let far = self.part_of(v, left.into(), others)?;
                        (self.part_of(v, Dim::ZERO, left.into())?, far)
                    };
                    passed.push(near);
                    rest.push(far);
                    left = 0;
                }
            }
        }
        if back {
            passed.reverse();
            Ok((rest, passed))
        } else {
            rest.reverse();
            Ok((passed, rest))
        }
    }

    /// All elements along a new first axis: they must have one shape.
    fn stacked(&mut self, s: &Sequence) -> Result<Value, Fail> {
        let mut pieces: Vec<Value> = vec![];
        for part in &s.parts {
            let piece = match part {
                Part::Stack(v) => *v,
                Part::One(v) => self.with_axis(*v, 0)?,
                Part::Before(..) => return Err(opaque()),
            };
            if let Some(&first) = pieces.first() {
                let (a, b) = (self.shape(first), self.shape(piece));
                let same = |(a, b): (&Dim, &Dim)| a.same(b) == Tri::Yes;
                if a.len() != b.len() || !a.iter().zip(&b).skip(1).all(same) {
                    return Err(unknown(
                        "the sequence's elements may differ in shape, and which is taken depends on data",
                    ));
                }
            }
            pieces.push(piece);
        }
        match pieces.is_empty() {
            true => Err(Fail::invalid("an element of an empty sequence is taken")),
            false => Ok(self.b.concat(&pieces, 0)?),
        }
    }

    fn with_axis(&mut self, v: Value, axis: usize) -> Result<Value, Fail> {
        let mut shape = self.shape(v);
        shape.insert(axis, Dim::ONE);
        Ok(self.b.reshape(v, &shape)?)
    }

    /// The position in argument `i`, if it is known.
    fn known_place(&self, i: usize) -> Option<i64> {
        match self.known_ints(self.opt(i)?)?[..] {
            [at] => Some(at),
            _ => None,
        }
    }

    fn need_place(&self, i: usize) -> Result<i64, Fail> {
        self.known_place(i)
            .ok_or_else(|| unknown("a position in a sequence depends on data"))
    }

    /// Parts before position `at`, which counts from the end where it is
    /// negative, and from it on.
    fn split_at(&mut self, s: &Sequence, at: i64) -> Result<Halves, Fail> {
        self.split(s, at.saturating_abs(), at < 0)
    }
}

pub(crate) fn construct(cx: &mut Cx) -> Items {
    let all = cx.all()?;
    let dtype = cx.dtype(all[0]);
    if let Some(&other) = all.iter().find(|&&v| cx.dtype(v) != dtype) {
        return Err(mixed(dtype, cx.dtype(other)));
    }
    Ok(vec![Item::Sequence(Sequence::of(dtype, all))])
}

fn mixed(a: DType, b: DType) -> Fail {
    Fail::invalid(format!("a sequence of {a} cannot hold {b}"))
}

pub(crate) fn empty(cx: &mut Cx) -> Items {
    let number = cx.int("dtype", 1)?;
    let dtype = tensor::dtype(number)
        .ok_or_else(|| Fail::invalid(format!("{number} is no element type")))?;
    Ok(vec![Item::Sequence(Sequence::of(dtype, vec![]))])
}

pub(crate) fn insert(cx: &mut Cx) -> Items {
    let (s, v) = (cx.sequence(0)?, cx.arg(1)?);
    if cx.dtype(v) != s.dtype {
        return Err(mixed(s.dtype, cx.dtype(v)));
    }
    let (mut parts, rest) = match cx.opt(2) {
        None => (s.parts.clone(), vec![]),
        Some(_) => {
            let at = cx.need_place(2)?;
            cx.split_at(&s, at)?
        }
    };
    parts.push(Part::One(v));
    parts.extend(rest);
    let dtype = s.dtype;
    Ok(vec![Item::Sequence(Sequence { dtype, parts })])
}

pub(crate) fn erase(cx: &mut Cx) -> Items {
    let s = cx.sequence(0)?;
    let at = match cx.opt(1) {
        None => -1,
        Some(_) => cx.need_place(1)?,
    };
    let (mut parts, rest) = cx.split_at(&s, at)?;
    let dtype = s.dtype;
    let (_, kept) = cx.split(&Sequence { dtype, parts: rest }, 1, false)?;
    parts.extend(kept);
    Ok(vec![Item::Sequence(Sequence { dtype, parts })])
}

/// A known position picks its element; one that data decides reads from the
/// stacked elements.
pub(crate) fn at(cx: &mut Cx) -> Items {
    let (s, place) = (cx.sequence(0)?, cx.arg(1)?);
    let v = match cx.known_place(1) {
        Some(at) => {
            let (_, rest) = cx.split_at(&s, at)?;
            match rest.first() {
                Some(Part::One(v)) => *v,
                Some(Part::Stack(v)) => {
                    let (n, because) = (cx.extent(*v, 0)?, format!("element {at} is taken"));
                    cx.assume_le(Dim::ONE, n, &because);
                    item::element(cx.b, *v, Dim::ZERO)?
                }
                Some(Part::Before(..)) => return Err(opaque()),
                None => {
                    return Err(Fail::invalid(format!("the sequence has no element {at}")));
                }
            }
        }
        None => {
            let all = cx.stacked(&s)?;
            let place = cx.b.reshape(place, &[])?;
            cx.b.gather(all, place, 0)?
        }
    };
    Ok(vec![Item::Tensor(v)])
}

pub(crate) fn length(cx: &mut Cx) -> Items {
    let s = cx.sequence(0)?;
    let n = cx.length(&s)?;
    Ok(vec![Item::Tensor(cx.scalar_dim(n)?)])
}

/// Pieces of the given sizes; without sizes, one for each position of the axis.
pub(crate) fn split_to_sequence(cx: &mut Cx) -> Items {
    let x = cx.arg(0)?;
    let axis = cx.axis_attr(0, cx.rank(x))?;
    let dtype = cx.dtype(x);
    let extent = cx.extent(x, axis)?;
    let sizes = match cx.opt(1) {
        None => {
            let keep = cx.flag("keepdims", true)?;
            let parts = single_slices(cx, x, axis, keep)?;
            return Ok(vec![Item::Sequence(Sequence { dtype, parts })]);
        }
        Some(v) if cx.rank(v) == 0 => match (cx.need_ints(v, "the size of a piece")?[0], extent) {
            (1, _) => {
                let parts = single_slices(cx, x, axis, true)?;
                return Ok(vec![Item::Sequence(Sequence { dtype, parts })]);
            }
            (n, extent) => equal_pieces(n, &extent)?,
        },
        Some(v) => cx.sizes(v)?,
    };
    let (mut start, mut pieces) = (Dim::ZERO, vec![]);
    for size in sizes {
        pieces.push(cx.b.slice_axis(x, axis, start.clone(), size.clone())?);
        start = start + size;
    }
    Ok(vec![Item::Sequence(Sequence::of(dtype, pieces))])
}

fn equal_pieces(n: i64, extent: &Dim) -> Result<Vec<Dim>, Fail> {
    let total = extent.as_const().ok_or_else(|| {
        unknown(format!(
            "how many pieces of {n} an axis of {extent} splits into is not known"
        ))
    })?;
    if n < 1 || total / n > MAX_PIECES {
        return Err(Fail::invalid(format!(
            "an axis of {total} does not split into pieces of {n}"
        )));
    }
    let starts = (0..total).step_by(n as usize);
    Ok(starts.map(|at| Dim::from(n.min(total - at))).collect())
}

fn single_slices(cx: &mut Cx, x: Value, axis: usize, keep: bool) -> Result<Vec<Part>, Fail> {
    let shape = cx.shape(x);
    let mut inner = shape.clone();
    inner.remove(axis);
    let mut element = inner.clone();
    if keep {
        element.insert(axis, Dim::ONE);
    }
    if let Some(n) = shape[axis].as_const().filter(|&n| n <= SPLIT) {
        let one = |i: i64| {
            let v = cx.b.slice_axis(x, axis, i.into(), Dim::ONE)?;
            Ok(Part::One(cx.b.reshape(v, &element)?))
        };
        return (0..n).map(one).collect();
    }
    let mut perm: Vec<usize> = (0..shape.len()).filter(|&i| i != axis).collect();
    perm.insert(0, axis);
    let first = cx.b.transpose(x, &perm)?;
    element.insert(0, shape[axis].clone());
    Ok(vec![Part::Stack(cx.b.reshape(first, &element)?)])
}

pub(crate) fn concat_from_sequence(cx: &mut Cx) -> Items {
    let s = cx.sequence(0)?;
    let new_axis = cx.flag("new_axis", false)?;
    let axis = cx
        .opt_int("axis")?
        .ok_or_else(|| Fail::invalid("the axis is missing"))?;
    let rank = match s.parts.first() {
        Some(Part::One(v)) => cx.rank(*v),
        Some(Part::Stack(v)) => cx.rank(*v) - 1,
        Some(Part::Before(..)) => return Err(opaque()),
        None => return Err(Fail::invalid("the tensors of an empty sequence are joined")),
    };
    let axis = cx.axis(axis, rank + new_axis as usize)?;
    let mut pieces = vec![];
    for part in &s.parts {
        pieces.push(match *part {
            Part::One(v) if new_axis => cx.with_axis(v, axis)?,
            Part::One(v) => v,
            Part::Stack(v) => {
                let shape = cx.shape(v);
                let mut perm: Vec<usize> = (1..shape.len()).collect();
                perm.insert(axis.min(perm.len()), 0);
                let moved = cx.b.transpose(v, &perm)?;
                let mut joined = shape[1..].to_vec();
                match joined.get_mut(axis) {
                    _ if new_axis => joined.insert(axis, shape[0].clone()),
                    Some(extent) => *extent = shape[0].clone() * extent.clone(),
                    None => return Err(Fail::invalid("the elements differ in rank")),
                }
                cx.b.reshape(moved, &joined)?
            }
            Part::Before(..) => return Err(opaque()),
        });
    }
    Ok(vec![Item::Tensor(cx.b.concat(&pieces, axis)?)])
}

/// The body once for each element; tensors among the arguments are the same for
/// all.
pub(crate) fn map(cx: &mut Cx) -> Items {
    let graph = cx.graph("body")?;
    let first = cx.sequence(0)?;
    if cx.length(&first)?.as_const().is_none() {
        return super::loops::map_stacks(cx, graph);
    }
    let count = item::elements(cx.b, &first)?.len();
    let mut given: Vec<Vec<Item>> = vec![vec![]; count];
    for i in 0..cx.items.len() {
        match cx.item(i)? {
            Item::Sequence(s) => {
                let all = item::elements(cx.b, &s)?;
                if all.len() != count {
                    let message = format!("sequences of {count} and {} elements", all.len());
                    return Err(Fail::invalid(message));
                }
                let both = given.iter_mut().zip(all);
                both.for_each(|(row, v)| row.push(Item::Tensor(v)));
            }
            other => given.iter_mut().for_each(|row| row.push(other.clone())),
        }
    }
    let mut made: Vec<Vec<Value>> = vec![vec![]; graph.output.len()];
    for row in given {
        let results = cx.imp.subgraph(cx.b, cx.scope, graph, &row, cx.env)?;
        for (all, one) in made.iter_mut().zip(&results) {
            all.push(one.tensor()?);
        }
    }
    let infos = graph.output.iter().zip(made);
    infos
        .map(|(info, all)| {
            let declared = tensor::dtype(info.type_.tensor_type().elem_type as i64);
            let dtype = match all.first() {
                Some(&v) => cx.dtype(v),
                None => declared.unwrap_or(DType::F32),
            };
            Ok(Item::Sequence(Sequence::of(dtype, all)))
        })
        .collect()
}

/// With an argument, that; without one, an optional without a value.
pub(crate) fn optional(cx: &mut Cx) -> Items {
    let item = cx.items.first().cloned().flatten();
    Ok(vec![item.unwrap_or(Item::Nothing)])
}

pub(crate) fn has_element(cx: &mut Cx) -> Items {
    let item = cx.items.first().cloned().flatten();
    let has = item.is_some_and(|item| item != Item::Nothing);
    let v = cx.b.constant(Tensor::scalar_i64(DType::Bool, has as i64))?;
    Ok(vec![Item::Tensor(v)])
}

pub(crate) fn get_element(cx: &mut Cx) -> Items {
    match cx.item(0)? {
        Item::Nothing => Err(Fail::invalid(
            "the element of an optional without a value is taken",
        )),
        item => Ok(vec![item]),
    }
}

pub(crate) fn identity(cx: &mut Cx) -> Items {
    Ok(vec![cx.item(0)?])
}
