//! Linear attention: a state of keys × values that each step updates.

use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::control::Loop;
use kiln_ir::ops::index::DynamicSlice;
use kiln_ir::{Builder, DType, Dim, Tensor, TensorType, TypeError, UnaryFn};

type One = Result<Value, Fail>;

/// `[b, t, h·d]` as `[t, b, h, d]`, in f32: a step's slice is whole.
fn steps_first(cx: &mut Cx, x: Value, heads: i64) -> One {
    let shape = cx.shape(x);
    let [b, t, width] = &shape[..] else {
        return Err(Fail::invalid(format!(
            "an argument of rank {}",
            shape.len()
        )));
    };
    let d = width.div_exact(&heads.into());
    let d = d.ok_or_else(|| Fail::invalid(format!("{width} features in {heads} heads")))?;
    let x = cx.b.cast(x, DType::F32)?;
    let x = cx.b.reshape(x, &[b.clone(), t.clone(), heads.into(), d])?;
    Ok(cx.b.transpose(x, &[1, 0, 2, 3])?)
}

/// Step `i` of `[t, rest…]`, as `[rest…]`.
pub(crate) fn step(b: &mut Builder, x: Value, i: Value) -> Result<Value, TypeError> {
    let shape = b.shape(x);
    let mut sizes = shape.clone();
    sizes[0] = Dim::ONE;
    let zero = b.constant(Tensor::scalar_i64(DType::I64, 0))?;
    let mut starts = vec![b.reshape(zero, &[Dim::ONE])?; shape.len()];
    starts[0] = b.reshape(i, &[Dim::ONE])?;
    let starts = b.concat(&starts, 0)?;
    let one = b.one(DynamicSlice { sizes }, &[x, starts])?;
    b.reshape(one, &shape[1..])
}

/// The axes of a vector of keys as a column, or of values as a row.
fn with_one(b: &mut Builder, x: Value, at: usize) -> Result<Value, TypeError> {
    let mut shape = b.shape(x);
    shape.insert(at, Dim::ONE);
    b.reshape(x, &shape)
}

/// Opset 27: the linear, gated, delta and gated delta rules, one step at a time.
pub(crate) fn linear_attention(cx: &mut Cx) -> Out {
    let rule = cx.text("update_rule", "gated_delta")?;
    let (gated, delta) = match rule {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(Fail::invalid(format!("there is no update_rule `{other}`"))),
    };
    let (qh, kh) = (cx.int("q_num_heads", 0)?, cx.int("kv_num_heads", 0)?);
    if qh <= 0 || kh <= 0 || qh % kh != 0 {
        return Err(Fail::invalid(format!("{qh} query heads over {kh} heads")));
    }
    let (query, value) = (cx.arg(0)?, cx.arg(2)?);
    let narrow = cx.dtype(query);
    let q = steps_first(cx, query, qh)?;
    let k = steps_first(cx, cx.arg(1)?, kh)?;
    let v = steps_first(cx, value, kh)?;
    let qs = cx.shape(q);
    let (t, batch, dk) = (qs[0].clone(), qs[1].clone(), qs[3].clone());
    let dv = cx.shape(v)[3].clone();
    let decay = match (gated, cx.opt(4)) {
        (true, Some(g)) => {
            let g = steps_first(cx, g, kh)?;
            Some(cx.b.unary(UnaryFn::Exp, g)?)
        }
        (true, None) => return Err(Fail::invalid("the decay is missing")),
        (false, _) => None,
    };
    let beta = match (delta, cx.opt(5)) {
        (true, Some(b)) => {
            let one = cx.extent(b, 2)? == Dim::ONE;
            Some(steps_first(cx, b, if one { 1 } else { kh })?)
        }
        (true, None) => return Err(Fail::invalid("beta is missing")),
        (false, _) => None,
    };
    let scale = match cx.float("scale", 0.0)? {
        0.0 => match dk.as_const() {
            Some(d) => 1.0 / (d as f64).sqrt(),
            None => return Err(Fail::form("the head size of attention must be a constant")),
        },
        s => s,
    };
    let shape = [batch.clone(), kh.into(), dk.clone(), dv.clone()];
    let (start, kept) = match cx.opt(3) {
        Some(past) => (cx.b.cast(past, DType::F32)?, cx.dtype(past)),
        None => (cx.b.full(DType::F32, &shape, 0.0)?, narrow),
    };

    let region = cx.b.graph.add_region();
    let index = TensorType::scalar(DType::I64);
    let i = cx.b.graph.add_region_param(region, index);
    let ty = cx.ty(start);
    let state = cx.b.graph.add_region_param(region, ty);
    let share = qh / kh;
    let yielded = cx.b.in_region(region, |b| {
        let mut s = state;
        let (k, mut v) = (step(b, k, i)?, step(b, v, i)?);
        if let Some(g) = decay {
            let g = step(b, g, i)?;
            let g = with_one(b, g, 3)?;
            s = b.mul(s, g)?;
        }
        let row = with_one(b, k, 2)?;
        if let Some(beta) = beta {
            // What the state holds for this key is replaced, not added to.
            let held = b.matmul(row, s)?;
            let held = b.reshape(held, &[batch.clone(), kh.into(), dv.clone()])?;
            let missing = b.sub(v, held)?;
            let beta = step(b, beta, i)?;
            v = b.mul(beta, missing)?;
        }
        let column = with_one(b, k, 3)?;
        let values = with_one(b, v, 2)?;
        let outer = b.mul(column, values)?;
        s = b.add(s, outer)?;
        // Query heads that share a state are the rows of one product.
        let q = step(b, q, i)?;
        let q = b.reshape(q, &[batch.clone(), kh.into(), share.into(), dk.clone()])?;
        let y = b.matmul(q, s)?;
        let factor = b.scalar_like(y, scale)?;
        let y = b.mul(y, factor)?;
        let y = b.reshape(y, &[batch.clone(), Dim::from(qh) * dv.clone()])?;
        let go = b.constant(Tensor::scalar_i64(DType::Bool, 1))?;
        Ok::<_, TypeError>(vec![go, s, y])
    })?;
    cx.b.graph.region_mut(region).results = yielded;
    let trip = cx.scalar_dim(t)?;
    let go = cx.b.constant(Tensor::scalar_i64(DType::Bool, 1))?;
    let op = Loop {
        carried: 1,
        symbol: None,
        sizes: vec![],
    };
    let out =
        cx.b.push_with_regions(op, &[trip, go, start], vec![region])?;
    let y = cx.b.transpose(out[1], &[1, 0, 2])?;
    Ok(vec![cx.b.cast(y, narrow)?, cx.b.cast(out[0], kept)?])
}
