//! Operators that move elements.

use super::source::row_and_column;
use crate::diagnostic::code;
use crate::onnx::cx::{Cx, Fail, Out, resolve_axis};
use kiln_ir::graph::{Guard, Relation, Value};
use kiln_ir::ops::layout::{Pad, PadMode, Slice, resolve_reshape};
use kiln_ir::ops::source::Iota;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, Tri};

pub(crate) fn reshape(cx: &mut Cx) -> Out {
    let (x, target) = (cx.arg(0)?, cx.arg(1)?);
    let zero_is_zero = cx.flag("allowzero", false)?;
    let shape = cx.shape(x);
    let known = cx.b.graph.known(target).map(|k| k.dims.clone());
    let target = match known {
        Some(dims) => dims,
        None => match cx.known_ints(target) {
            Some(ints) => ints.into_iter().map(Dim::from).collect(),
            None => return reshape_by_data(cx, x, target, zero_is_zero),
        },
    };
    let target = resolve_reshape(&shape, &target, zero_is_zero)?;
    Ok(vec![cx.b.reshape(x, &target)?])
}

/// The target is known only when the model runs: what 0 and −1 stand for is
/// computed there, and each extent gets a name.
fn reshape_by_data(cx: &mut Cx, x: Value, target: Value, zero_is_zero: bool) -> Out {
    let shape = cx.shape(x);
    let rank = match &cx.shape(target)[..] {
        [n] => n.as_const().filter(|n| (0..=16).contains(n)),
        _ => None,
    };
    let Some(rank) = rank else {
        return Err(Fail::new(
            crate::diagnostic::code::DATA_SHAPE,
            "the rank of the result depends on data",
        )
        .help("export the model so that ranks are fixed"));
    };
    let mut t = cx.b.cast(target, DType::I64)?;
    if !zero_is_zero {
        let copied = (0..rank as usize).map(|i| shape.get(i).cloned().unwrap_or(Dim::ONE));
        let copied = cx.vector(copied.collect())?;
        let zero = cx.like(t, 0.0)?;
        let copies = cx.b.compare(CompareFn::Eq, t, zero)?;
        t = cx.b.select(copies, copied, t)?;
    }
    let (one, minus) = (cx.like(t, 1.0)?, cx.like(t, -1.0)?);
    let open = cx.b.compare(CompareFn::Eq, t, minus)?;
    let others = cx.b.select(open, one, t)?;
    let others = cx.b.reduce(kiln_ir::ReduceFn::Prod, others, &[0], false)?;
    let others = cx.with_int(BinaryFn::Max, others, 1)?;
    let total = cx.scalar_dim(Dim::product(&shape))?;
    let rest = cx.b.div(total, others)?;
    let t = cx.b.select(open, rest, t)?;
    let dims = cx.sizes(t)?;
    Ok(vec![cx.b.reshape(x, &dims)?])
}

pub(crate) fn flatten(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let shape = cx.shape(x);
    let axis = cx.int("axis", 1)?;
    let axis = if axis < 0 {
        axis + shape.len() as i64
    } else {
        axis
    };
    let axis = usize::try_from(axis)
        .ok()
        .filter(|&a| a <= shape.len())
        .ok_or_else(|| Fail::invalid(format!("there is no axis {axis} to flatten at")))?;
    let flat = [Dim::product(&shape[..axis]), Dim::product(&shape[axis..])];
    Ok(vec![cx.b.reshape(x, &flat)?])
}

/// Axes are an attribute before opset 13, then an argument.
fn axes_operand(cx: &mut Cx, since: i64, arg: usize) -> Result<Option<Vec<i64>>, Fail> {
    if cx.opset < since {
        return Ok(cx.ints("axes")?.map(|a| a.to_vec()));
    }
    match cx.opt(arg) {
        None => Ok(None),
        Some(v) => cx.need_ints(v, "the axes").map(Some),
    }
}

pub(crate) fn squeeze(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let shape = cx.shape(x);
    let axes = match axes_operand(cx, 13, 1)? {
        Some(axes) => cx.axes(&axes, shape.len())?,
        None => axes_of_one(cx, &shape)?,
    };
    let kept: Vec<Dim> = (0..shape.len())
        .filter(|i| !axes.contains(i))
        .map(|i| shape[i].clone())
        .collect();
    for &i in &axes {
        if shape[i].as_const().is_some_and(|c| c != 1) {
            return Err(Fail::invalid(format!("axis {i} of {shape:?} is not 1")));
        }
    }
    Ok(vec![cx.b.reshape(x, &kept)?])
}

/// The axes that are 1. Whether an open size is one decides the result's rank: the model
/// may declare that; else a size of the caller's is not 1, under a guard, and one that
/// data decides is refused.
fn axes_of_one(cx: &mut Cx, shape: &[Dim]) -> Result<Vec<usize>, Fail> {
    let sure: Vec<usize> = (0..shape.len()).filter(|&i| shape[i] == Dim::ONE).collect();
    let open = |&i: &usize| shape[i].as_const().is_none() && shape[i].same(&Dim::ONE) != Tri::No;
    let open: Vec<usize> = (0..shape.len()).filter(open).collect();
    let gone = cx.declared_rank(0).and_then(|r| shape.len().checked_sub(r));
    if !open.is_empty() && gone == Some(sure.len() + open.len()) {
        return Ok((0..shape.len())
            .filter(|i| sure.contains(i) || open.contains(i))
            .collect());
    }
    for &i in &open {
        if gone != Some(sure.len()) && cx.hangs_on_data(&shape[i]) {
            return Err(
                Fail::new(code::DATA_SHAPE, "the rank of a result depends on data")
                    .help("name the axes to squeeze, or declare the shape of the result"),
            );
        }
        let off = shape[i].clone() - Dim::ONE;
        cx.b.graph.add_guard(Guard {
            left: Dim::ONE,
            relation: Relation::Le,
            right: off.clone() * off,
            because: "a size that is squeezed where it is 1 is not".into(),
        });
    }
    Ok(sure)
}

pub(crate) fn unsqueeze(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let shape = cx.shape(x);
    let axes = axes_operand(cx, 13, 1)?.ok_or_else(|| Fail::invalid("the axes are missing"))?;
    let rank = shape.len() + axes.len();
    let axes = cx.axes(&axes, rank)?;
    let mut rest = shape.into_iter();
    let wide: Vec<Dim> = (0..rank)
        .map(|i| match axes.contains(&i) {
            true => Dim::ONE,
            false => rest.next().unwrap_or(Dim::ONE),
        })
        .collect();
    Ok(vec![cx.b.reshape(x, &wide)?])
}

pub(crate) fn transpose(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let rank = cx.rank(x);
    let perm = match cx.ints("perm")? {
        None => (0..rank).rev().collect(),
        Some(p) => p
            .iter()
            .map(|&i| resolve_axis(i, rank))
            .collect::<Result<Vec<_>, _>>()?,
    };
    Ok(vec![cx.b.transpose(x, &perm)?])
}

pub(crate) fn concat(cx: &mut Cx) -> Out {
    let all = cx.all()?;
    let axis = cx
        .opt_int("axis")?
        .ok_or_else(|| Fail::invalid("the axis is missing"))?;
    let axis = cx.axis(axis, cx.rank(all[0]))?;
    Ok(vec![cx.b.concat(&all, axis)?])
}

/// Sizes are an attribute before opset 13, then an argument; from 18 on
/// `num_outputs` divides evenly, the last part being shorter.
pub(crate) fn split(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let shape = cx.shape(x);
    let axis = cx.axis_attr(0, shape.len())?;
    let given = match cx.opt(1) {
        Some(v) if cx.opset >= 13 => Some(cx.sizes(v)?),
        _ if cx.opset >= 13 => None,
        _ => cx
            .ints("split")?
            .map(|s| s.iter().map(|&n| Dim::from(n)).collect()),
    };
    let parts = match given {
        Some(parts) => parts,
        None => {
            let named = cx.node.output.len() as i64;
            let n = cx.int("num_outputs", named)?;
            if n != named {
                let message = format!("{named} results are named for {n} parts");
                return Err(Fail::invalid(message));
            }
            even_parts(&shape[axis], n)?
        }
    };
    let mut start = Dim::ZERO;
    let mut out = vec![];
    for part in parts {
        out.push(cx.b.slice_axis(x, axis, start.clone(), part.clone())?);
        start = start + part;
    }
    Ok(out)
}

fn even_parts(extent: &Dim, n: i64) -> Result<Vec<Dim>, Fail> {
    if !(1..=1 << 16).contains(&n) {
        return Err(Fail::invalid(format!("cannot split into {n} parts")));
    }
    let part = extent.ceil_div(&n.into());
    let mut parts = vec![part.clone(); n as usize - 1];
    let last = extent.clone() - part * Dim::from(n - 1);
    if last.as_const().is_some_and(|c| c < 0) {
        return Err(Fail::invalid(format!(
            "{extent} elements do not split into {n} parts"
        )));
    }
    parts.push(last);
    Ok(parts)
}

/// Bounds are attributes before opset 10, then arguments.
pub(crate) fn slice(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let shape = cx.shape(x);
    let plain =
        |ints: Option<&[i64]>| ints.map(|s| s.iter().map(|&i| Dim::from(i)).collect::<Vec<_>>());
    let missing = || Fail::invalid("the bounds are missing");
    let (starts, ends, axes, steps);
    if cx.opset < 10 {
        starts = Some(plain(cx.ints("starts")?).ok_or_else(missing)?);
        ends = Some(plain(cx.ints("ends")?).ok_or_else(missing)?);
        axes = cx.ints("axes")?.map(|a| a.to_vec());
        steps = None;
    } else {
        let known = |cx: &Cx, v: Value| {
            let dims = cx.b.graph.known(v).map(|k| k.dims.clone());
            dims.or_else(|| plain(cx.known_ints(v).as_deref()))
        };
        starts = known(cx, cx.arg(1)?);
        ends = known(cx, cx.arg(2)?);
        axes = match cx.opt(3) {
            Some(v) => Some(cx.need_ints(v, "the sliced axes")?),
            None => None,
        };
        steps = match cx.opt(4) {
            Some(v) => Some(cx.need_ints(v, "the steps of the slice")?),
            None => None,
        };
    }
    let count = match (&starts, &axes) {
        (_, Some(a)) => a.len(),
        (Some(s), None) => s.len(),
        (None, None) => shape.len(),
    };
    let axes = axes.unwrap_or_else(|| (0..count as i64).collect());
    let axes: Vec<usize> = axes
        .iter()
        .map(|&a| resolve_axis(a, shape.len()))
        .collect::<Result<_, _>>()?;
    let steps = steps.unwrap_or_else(|| vec![1; count]);
    if steps.len() != count || steps.contains(&0) {
        return Err(Fail::invalid("the steps do not fit the axes"));
    }
    match (starts, ends) {
        (Some(s), Some(e)) if s.len() == count && e.len() == count => {
            slice_known(cx, x, &axes, &s, &e, &steps)
        }
        (Some(s), Some(e)) => Err(Fail::invalid(format!(
            "{} starts, {} ends, {count} axes",
            s.len(),
            e.len()
        ))),
        _ => slice_by_data(cx, x, &axes, &steps),
    }
}

fn slice_known(
    cx: &mut Cx,
    x: Value,
    axes: &[usize],
    starts: &[Dim],
    ends: &[Dim],
    steps: &[i64],
) -> Out {
    let mut sizes = cx.shape(x);
    let table = cx.literal(x).is_some();
    let (mut from, mut by) = (vec![Dim::ZERO; sizes.len()], vec![1; sizes.len()]);
    for (k, &axis) in axes.iter().enumerate() {
        let extent = sizes[axis].clone();
        let step = steps[k];
        if step > 0 {
            let start = cx.position(&starts[k], &extent, table);
            let end = match ends[k].as_const() {
                Some(c) if c >= i32::MAX as i64 => extent.clone(),
                _ => cx.position(&ends[k], &extent, table),
            };
            let taken = (end - start.clone()).ceil_div(&step.into());
            from[axis] = start;
            sizes[axis] = nonneg(taken);
        } else {
            let (start, size) = backwards(cx, &starts[k], &ends[k], step, &extent)?;
            from[axis] = start;
            sizes[axis] = size;
        }
        // Nothing taken: a start at the end would leave the axis.
        if sizes[axis] == Dim::ZERO {
            from[axis] = Dim::ZERO;
        }
        by[axis] = step;
    }
    let op = Slice {
        starts: from,
        sizes,
        steps: by,
    };
    Ok(vec![cx.b.one(op, &[x])?])
}

fn nonneg(d: Dim) -> Dim {
    if d.is_nonneg() {
        d
    } else {
        d.maximum(&Dim::ZERO)
    }
}

/// First position and count of a slice with a negative step: positions clamp to
/// −1 … extent − 1.
fn backwards(
    cx: &mut Cx,
    start: &Dim,
    end: &Dim,
    step: i64,
    extent: &Dim,
) -> Result<(Dim, Dim), Fail> {
    let last = extent.clone() - Dim::ONE;
    let mut clamp = |at: &Dim, lowest: i64| match at.as_const() {
        Some(c) if c <= -(i32::MAX as i64) => Dim::from(lowest),
        Some(c) if c < 0 => {
            let p = extent.clone() + at.clone();
            if (p.clone() - Dim::from(lowest)).is_nonneg() {
                p
            } else {
                p.maximum(&lowest.into())
            }
        }
        Some(c) if c >= i32::MAX as i64 => last.clone(),
        Some(_) => at.minimum(&last),
        None => {
            cx.assume_le(Dim::ZERO, at.clone(), "the slice counts from the front");
            at.minimum(&last)
        }
    };
    let (from, to) = (clamp(start, 0), clamp(end, -1));
    let size = (from.clone() - to).ceil_div(&step.saturating_neg().into());
    let size = nonneg(size);
    if from == last && !from.is_nonneg() {
        // An empty axis would start at −1.
        cx.assume_le(
            Dim::ONE,
            extent.clone(),
            "the slice starts at the last element",
        );
    }
    Ok((from, size))
}

/// Bounds that only running tells: positions are computed there, and elements
/// gathered.
fn slice_by_data(cx: &mut Cx, mut x: Value, axes: &[usize], steps: &[i64]) -> Out {
    let (starts, ends) = (cx.arg(1)?, cx.arg(2)?);
    for (k, &axis) in axes.iter().enumerate() {
        let extent = cx.shape(x)[axis].clone();
        let (start, end) = (cx.element(starts, k as i64)?, cx.element(ends, k as i64)?);
        let (low, high) = if steps[k] > 0 { (0, 0) } else { (-1, -1) };
        let n = cx.scalar_dim(extent)?;
        let start = clamp_by_data(cx, start, n, if steps[k] > 0 { low } else { 0 }, high)?;
        let end = clamp_by_data(cx, end, n, low, high)?;
        let span = match steps[k] > 0 {
            true => cx.b.sub(end, start)?,
            false => cx.b.sub(start, end)?,
        };
        let by = steps[k].saturating_abs();
        let span = cx.with_int(BinaryFn::Add, span, by - 1)?;
        let count = cx.with_int(BinaryFn::Max, span, 0)?;
        let count = cx.with_int(BinaryFn::Div, count, by)?;
        let size = cx.mint(count, None)?;
        let iota = Iota {
            shape: vec![size],
            axis: 0,
            dtype: DType::I64,
        };
        let at = cx.b.one(iota, &[])?;
        let at = cx.with_int(BinaryFn::Mul, at, steps[k])?;
        let at = cx.b.add(at, start)?;
        x = cx.b.gather(x, at, axis)?;
    }
    Ok(vec![x])
}

/// A position, from the end if negative, clamped to `low ..= n + high`.
fn clamp_by_data(cx: &mut Cx, at: Value, n: Value, low: i64, high: i64) -> Result<Value, Fail> {
    let zero = cx.like(at, 0.0)?;
    let negative = cx.b.compare(CompareFn::Lt, at, zero)?;
    let wrapped = cx.b.add(at, n)?;
    let at = cx.b.select(negative, wrapped, at)?;
    let at = cx.with_int(BinaryFn::Max, at, low)?;
    let top = cx.with_int(BinaryFn::Add, n, high)?;
    Ok(cx.b.binary(BinaryFn::Min, at, top)?)
}

pub(crate) fn expand(cx: &mut Cx) -> Out {
    let (x, target) = (cx.arg(0)?, cx.arg(1)?);
    let target = cx.sizes(target)?;
    let shape = cx.broadcast(&[cx.shape(x), target]);
    let x = cx.stretch(x, &shape)?;
    Ok(vec![cx.b.broadcast_to(x, &shape)?])
}

/// Each axis gets a repeated one before it; both then join.
pub(crate) fn tile(cx: &mut Cx) -> Out {
    let (x, repeats) = (cx.arg(0)?, cx.arg(1)?);
    let (shape, repeats) = (cx.shape(x), cx.sizes(repeats)?);
    if repeats.len() != shape.len() {
        return Err(Fail::invalid("the repeats do not fit the axes"));
    }
    if repeats.iter().all(|r| *r == Dim::ONE) {
        return Ok(vec![x]);
    }
    let (mut split, mut wide, mut joined) = (vec![], vec![], vec![]);
    for (d, r) in shape.iter().zip(&repeats) {
        if *r != Dim::ONE {
            split.push(Dim::ONE);
            wide.push(r.clone());
        }
        split.push(d.clone());
        wide.push(d.clone());
        joined.push(d.clone() * r.clone());
    }
    let v = cx.b.reshape(x, &split)?;
    let v = cx.b.broadcast_to(v, &wide)?;
    Ok(vec![cx.b.reshape(v, &joined)?])
}

/// Counts are an attribute before opset 11, then an argument.
pub(crate) fn pad(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let rank = cx.rank(x);
    let counts: Vec<Dim> = if cx.opset < 11 {
        let pads = cx.ints("pads")?.unwrap_or_default();
        pads.iter().map(|&p| p.into()).collect()
    } else {
        let pads = cx.arg(1)?;
        let known = cx.b.graph.known(pads).map(|k| k.dims.clone());
        match known {
            Some(dims) => dims,
            None => cx
                .need_ints(pads, "the padding")?
                .into_iter()
                .map(Dim::from)
                .collect(),
        }
    };
    let axes = match cx.opt(3) {
        Some(v) if cx.opset >= 18 => {
            let axes = cx.need_ints(v, "the padded axes")?;
            axes.iter()
                .map(|&a| resolve_axis(a, rank))
                .collect::<Result<Vec<_>, _>>()?
        }
        _ => (0..rank).collect(),
    };
    if counts.len() != 2 * axes.len() {
        return Err(Fail::invalid(format!(
            "{} counts pad {} axes",
            counts.len(),
            axes.len()
        )));
    }
    let (mut lo, mut hi) = (vec![Dim::ZERO; rank], vec![Dim::ZERO; rank]);
    for (k, &axis) in axes.iter().enumerate() {
        lo[axis] = counts[k].clone();
        hi[axis] = counts[k + axes.len()].clone();
    }
    let mode = match cx.text("mode", "constant")? {
        "constant" => PadMode::Constant,
        other => return continued(cx, x, &lo, &hi, other),
    };
    let fill = match cx.opt(2) {
        Some(v) if cx.opset >= 11 => cx.b.reshape(v, &[])?,
        _ => {
            let value = cx.float("value", 0.0)?;
            cx.like(x, value)?
        }
    };
    Ok(vec![cx.b.one(Pad { lo, hi, mode }, &[x, fill])?])
}

/// Padding by the argument's own elements: each axis read where its continuation
/// says.
fn continued(cx: &mut Cx, mut x: Value, lo: &[Dim], hi: &[Dim], mode: &str) -> Out {
    for axis in 0..lo.len() {
        if lo[axis] == Dim::ZERO && hi[axis] == Dim::ZERO {
            continue;
        }
        let length = cx.extent(x, axis)?;
        let op = Iota {
            shape: vec![length.clone() + lo[axis].clone() + hi[axis].clone()],
            axis: 0,
            dtype: DType::I64,
        };
        let i = cx.b.one(op, &[])?;
        let before = cx.scalar_dim(lo[axis].clone())?;
        let i = cx.b.sub(i, before)?;
        let (n, last) = (
            cx.scalar_dim(length.clone())?,
            cx.scalar_dim(length - Dim::ONE)?,
        );
        let at = match mode {
            "edge" => {
                let at = cx.b.binary(BinaryFn::Min, i, last)?;
                cx.with_int(BinaryFn::Max, at, 0)?
            }
            "wrap" => cx.b.binary(BinaryFn::Mod, i, n)?,
            "reflect" => {
                // A triangle wave; of a single element, always that one.
                let twice = cx.b.add(last, last)?;
                let period = cx.with_int(BinaryFn::Max, twice, 1)?;
                let there = cx.b.binary(BinaryFn::Mod, i, period)?;
                let back = cx.b.sub(period, there)?;
                let at = cx.b.binary(BinaryFn::Min, there, back)?;
                cx.b.binary(BinaryFn::Min, at, last)?
            }
            other => return Err(Fail::invalid(format!("there is no pad mode `{other}`"))),
        };
        x = cx.b.gather(x, at, axis)?;
    }
    Ok(vec![x])
}

/// Keeps the upper or lower triangle of the last two axes.
pub(crate) fn trilu(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let (row, column) = row_and_column(cx, &cx.shape(x))?;
    let diagonal = match cx.opt(1) {
        Some(k) => {
            let k = cx.b.reshape(k, &[])?;
            cx.b.add(row, k)?
        }
        None => row,
    };
    let f = if cx.flag("upper", true)? {
        CompareFn::Ge
    } else {
        CompareFn::Le
    };
    let keep = cx.b.compare(f, column, diagonal)?;
    let zero = cx.like(x, 0.0)?;
    Ok(vec![cx.b.select(keep, x, zero)?])
}

/// `[n, c, h, w]` and the block size.
fn blocks(cx: &mut Cx) -> Result<(Value, [Dim; 4], Dim), Fail> {
    let (x, block) = (cx.arg(0)?, cx.int("blocksize", 0)?);
    if block < 1 {
        return Err(Fail::invalid(format!("the block size is {block}")));
    }
    match <[Dim; 4]>::try_from(cx.shape(x)) {
        Ok(shape) => Ok((x, shape, block.into())),
        Err(_) => Err(Fail::invalid("the argument is no image of rank 4")),
    }
}

pub(crate) fn depth_to_space(cx: &mut Cx) -> Out {
    let (x, [n, c, h, w], b) = blocks(cx)?;
    let deep = c.floor_div(&(b.clone() * b.clone()));
    let (split, perm) = match cx.text("mode", "DCR")? {
        "DCR" => (
            [
                n.clone(),
                b.clone(),
                b.clone(),
                deep.clone(),
                h.clone(),
                w.clone(),
            ],
            [0, 3, 4, 1, 5, 2],
        ),
        "CRD" => (
            [
                n.clone(),
                deep.clone(),
                b.clone(),
                b.clone(),
                h.clone(),
                w.clone(),
            ],
            [0, 1, 4, 2, 5, 3],
        ),
        other => return Err(Fail::invalid(format!("there is no mode `{other}`"))),
    };
    let v = cx.b.reshape(x, &split)?;
    let v = cx.b.transpose(v, &perm)?;
    Ok(vec![cx.b.reshape(v, &[n, deep, h * b.clone(), w * b])?])
}

pub(crate) fn space_to_depth(cx: &mut Cx) -> Out {
    let (x, [n, c, h, w], b) = blocks(cx)?;
    let (rows, columns) = (h.floor_div(&b), w.floor_div(&b));
    let split = [
        n.clone(),
        c.clone(),
        rows.clone(),
        b.clone(),
        columns.clone(),
        b.clone(),
    ];
    let perm = match cx.text("mode", "DCR")? {
        "DCR" => [0, 3, 5, 1, 2, 4],
        "CRD" => [0, 1, 3, 5, 2, 4],
        other => return Err(Fail::invalid(format!("there is no mode `{other}`"))),
    };
    let v = cx.b.reshape(x, &split)?;
    let v = cx.b.transpose(v, &perm)?;
    Ok(vec![
        cx.b.reshape(v, &[n, c * b.clone() * b, rows, columns])?,
    ])
}

/// The middle of each axis cut out, or zeros put around it evenly.
pub(crate) fn center_crop_pad(cx: &mut Cx) -> Out {
    let (mut x, wanted) = (cx.arg(0)?, cx.arg(1)?);
    let rank = cx.rank(x);
    let axes: Vec<usize> = match cx.ints("axes")? {
        None => (0..rank).collect(),
        Some(a) => (a.iter().map(|&a| cx.axis(a, rank))).collect::<Result<_, _>>()?,
    };
    let wanted = cx.need_ints(wanted, "the shape of a crop")?;
    if wanted.len() != axes.len() {
        let message = format!("{} sizes for {} axes", wanted.len(), axes.len());
        return Err(Fail::invalid(message));
    }
    for (&axis, &to) in axes.iter().zip(&wanted) {
        let (from, to) = (cx.extent(x, axis)?, Dim::from(to));
        // Half of what is missing or too much, rounded down, stands before.
        let missing = (to.clone() - from.clone()).maximum(&Dim::ZERO);
        let more = (from - to.clone()).maximum(&Dim::ZERO);
        if more != Dim::ZERO {
            x = cx.b.slice_axis(
                x,
                axis,
                more.floor_div(&2.into()),
                to.minimum(&cx.extent(x, axis)?),
            )?;
        }
        if missing != Dim::ZERO {
            let (mut lo, mut hi) = (vec![Dim::ZERO; rank], vec![Dim::ZERO; rank]);
            lo[axis] = missing.floor_div(&2.into());
            hi[axis] = missing - lo[axis].clone();
            let fill = cx.like(x, 0.0)?;
            let mode = PadMode::Constant;
            x = cx.b.one(Pad { lo, hi, mode }, &[x, fill])?;
        }
    }
    Ok(vec![x])
}
