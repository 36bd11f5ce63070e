//! RNN, GRU and LSTM: the product with the inputs of all steps first, then a loop
//! over the steps.

use crate::onnx::cx::{Cx, Fail, Out};
use crate::onnx::ops::recurrence::step;
use kiln_ir::graph::Value;
use kiln_ir::ops::control::Loop;
use kiln_ir::{BinaryFn, Builder, CompareFn, DType, Dim, Tensor, TensorType, TypeError, UnaryFn};

type One = Result<Value, Fail>;
type Typed = Result<Value, TypeError>;

/// Which cell.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Cell {
    Rnn,
    Gru,
    Lstm,
}

impl Cell {
    fn gates(self) -> i64 {
        match self {
            Cell::Rnn => 1,
            Cell::Gru => 3,
            Cell::Lstm => 4,
        }
    }

    fn usual(self) -> &'static [&'static str] {
        match self {
            Cell::Rnn => &["Tanh"],
            Cell::Gru => &["Sigmoid", "Tanh"],
            Cell::Lstm => &["Sigmoid", "Tanh", "Tanh"],
        }
    }
}

/// An activation with its two numbers.
struct Activation {
    name: String,
    alpha: f64,
    beta: f64,
}

/// One direction's weights and switches.
struct Layer {
    cell: Cell,
    /// `[hidden, gates·hidden]`.
    recurrent: Value,
    /// Of the recurrent product, `[gates·hidden]`: where a gate multiplies it.
    recurrent_bias: Option<Value>,
    /// LSTM's peepholes, `[3·hidden]`.
    peepholes: Option<Value>,
    activations: Vec<Activation>,
    clip: Option<f64>,
    hidden: Dim,
    linear_before_reset: bool,
    input_forget: bool,
}

/// The activations of all directions, and the numbers that those take that have any.
fn activations(cx: &Cx, cell: Cell, directions: usize) -> Result<Vec<Activation>, Fail> {
    let usual = cell.usual();
    let names: Vec<String> = match cx.texts("activations")? {
        Some(names) if names.len() == usual.len() * directions => names,
        Some(names) => return Err(Fail::invalid(format!("activations are {names:?}"))),
        None => usual
            .iter()
            .cycle()
            .take(usual.len() * directions)
            .map(|s| s.to_string())
            .collect(),
    };
    let mut alphas = cx.floats("activation_alpha")?.unwrap_or_default().iter();
    let mut betas = cx.floats("activation_beta")?.unwrap_or_default().iter();
    let mut out = vec![];
    for name in names {
        let name = name.to_lowercase();
        let (alpha, beta) = match &name[..] {
            "relu" | "tanh" | "sigmoid" | "softsign" | "softplus" => (None, None),
            "affine" => (Some(1.0), Some(0.0)),
            "leakyrelu" => (Some(0.01), None),
            "thresholdedrelu" | "elu" => (Some(1.0), None),
            "scaledtanh" => (Some(1.0), Some(1.0)),
            "hardsigmoid" => (Some(0.2), Some(0.5)),
            other => return Err(Fail::invalid(format!("there is no activation `{other}`"))),
        };
        let next = |list: &mut std::slice::Iter<f32>, usual: Option<f64>| match usual {
            None => 0.0,
            Some(d) => list.next().map_or(d, |&v| v.into()),
        };
        out.push(Activation {
            alpha: next(&mut alphas, alpha),
            beta: next(&mut betas, beta),
            name,
        });
    }
    Ok(out)
}

fn by(b: &mut Builder, f: BinaryFn, x: Value, c: f64) -> Typed {
    let c = b.scalar_like(x, c)?;
    b.binary(f, x, c)
}

impl Layer {
    fn activate(&self, b: &mut Builder, which: usize, mut x: Value) -> Typed {
        if let Some(c) = self.clip {
            x = by(b, BinaryFn::Min, x, c)?;
            x = by(b, BinaryFn::Max, x, -c)?;
        }
        let a = &self.activations[which];
        match &a.name[..] {
            "relu" => by(b, BinaryFn::Max, x, 0.0),
            "tanh" => b.unary(UnaryFn::Tanh, x),
            "sigmoid" => b.unary(UnaryFn::Sigmoid, x),
            "softsign" => {
                let size = b.unary(UnaryFn::Abs, x)?;
                let size = by(b, BinaryFn::Add, size, 1.0)?;
                b.div(x, size)
            }
            "softplus" => {
                let e = b.unary(UnaryFn::Exp, x)?;
                let e = by(b, BinaryFn::Add, e, 1.0)?;
                b.unary(UnaryFn::Log, e)
            }
            "affine" => {
                let y = by(b, BinaryFn::Mul, x, a.alpha)?;
                by(b, BinaryFn::Add, y, a.beta)
            }
            "scaledtanh" => {
                let y = by(b, BinaryFn::Mul, x, a.beta)?;
                let y = b.unary(UnaryFn::Tanh, y)?;
                by(b, BinaryFn::Mul, y, a.alpha)
            }
            "hardsigmoid" => {
                let y = by(b, BinaryFn::Mul, x, a.alpha)?;
                let y = by(b, BinaryFn::Add, y, a.beta)?;
                let y = by(b, BinaryFn::Min, y, 1.0)?;
                by(b, BinaryFn::Max, y, 0.0)
            }
            "thresholdedrelu" => {
                let (limit, zero) = (b.scalar_like(x, a.alpha)?, b.scalar_like(x, 0.0)?);
                let over = b.compare(CompareFn::Gt, x, limit)?;
                b.select(over, x, zero)
            }
            // Leaky and exponential: what differs is below zero.
            name => {
                let zero = b.scalar_like(x, 0.0)?;
                let below = b.compare(CompareFn::Lt, x, zero)?;
                let y = match name {
                    "elu" => {
                        let e = b.unary(UnaryFn::Exp, x)?;
                        by(b, BinaryFn::Sub, e, 1.0)?
                    }
                    _ => x,
                };
                let y = by(b, BinaryFn::Mul, y, a.alpha)?;
                b.select(below, y, x)
            }
        }
    }

    /// Gate `k` of `[batch, gates·hidden]`.
    fn gate(&self, b: &mut Builder, x: Value, k: i64) -> Typed {
        let axis = b.shape(x).len() - 1;
        b.slice_axis(
            x,
            axis,
            self.hidden.clone() * Dim::from(k),
            self.hidden.clone(),
        )
    }

    /// Gates `k` on of the recurrent product.
    fn product(&self, b: &mut Builder, h: Value, k: i64, count: i64) -> Typed {
        let n = self.hidden.clone();
        let r = b.slice_axis(self.recurrent, 1, n.clone() * k.into(), n * count.into())?;
        b.matmul(h, r)
    }

    /// The next state from the inputs' part of the gates, `[batch, gates·hidden]`.
    fn next(
        &self,
        b: &mut Builder,
        x: Value,
        h: Value,
        c: Option<Value>,
    ) -> Result<(Value, Option<Value>), TypeError> {
        match (self.cell, c) {
            (Cell::Gru, _) => Ok((self.gru(b, x, h)?, None)),
            (Cell::Lstm, Some(c)) => self.lstm(b, x, h, c).map(|(h, c)| (h, Some(c))),
            _ => {
                let y = self.product(b, h, 0, 1)?;
                let y = b.add(x, y)?;
                Ok((self.activate(b, 0, y)?, None))
            }
        }
    }

    fn gru(&self, b: &mut Builder, x: Value, h: Value) -> Typed {
        let both = self.product(b, h, 0, 2)?;
        let mut gates = vec![];
        for k in 0..2 {
            let (x, r) = (self.gate(b, x, k)?, self.gate(b, both, k)?);
            let sum = b.add(x, r)?;
            gates.push(self.activate(b, 0, sum)?);
        }
        let (z, r) = (gates[0], gates[1]);
        let bias = match self.recurrent_bias {
            Some(v) => Some(self.gate(b, v, 2)?),
            None => None,
        };
        let add_bias = |b: &mut Builder, v| bias.map_or(Ok(v), |bias| b.add(v, bias));
        let inner = match self.linear_before_reset {
            true => {
                let y = self.product(b, h, 2, 1)?;
                let y = add_bias(b, y)?;
                b.mul(r, y)?
            }
            false => {
                let kept = b.mul(r, h)?;
                let y = self.product(b, kept, 2, 1)?;
                add_bias(b, y)?
            }
        };
        let x = self.gate(b, x, 2)?;
        let sum = b.add(x, inner)?;
        let new = self.activate(b, 1, sum)?;
        let one = b.scalar_like(z, 1.0)?;
        let share = b.sub(one, z)?;
        let (new, old) = (b.mul(share, new)?, b.mul(z, h)?);
        b.add(new, old)
    }

    fn lstm(
        &self,
        b: &mut Builder,
        x: Value,
        h: Value,
        c: Value,
    ) -> Result<(Value, Value), TypeError> {
        let r = self.product(b, h, 0, 4)?;
        let sum = b.add(x, r)?;
        // A gate that sees the cell through a peephole.
        let gate = |b: &mut Builder, k: i64, peephole: i64, c: Value| -> Typed {
            let g = self.gate(b, sum, k)?;
            let Some(p) = self.peepholes else {
                return Ok(g);
            };
            let p = self.gate(b, p, peephole)?;
            let seen = b.mul(p, c)?;
            b.add(g, seen)
        };
        // In the order of the weights: input, output, forget, cell.
        let i = gate(b, 0, 0, c)?;
        let i = self.activate(b, 0, i)?;
        let f = match self.input_forget {
            true => {
                let one = b.scalar_like(i, 1.0)?;
                b.sub(one, i)?
            }
            false => {
                let f = gate(b, 2, 2, c)?;
                self.activate(b, 0, f)?
            }
        };
        let new = self.gate(b, sum, 3)?;
        let new = self.activate(b, 1, new)?;
        let (kept, new) = (b.mul(f, c)?, b.mul(i, new)?);
        let c = b.add(kept, new)?;
        let o = gate(b, 1, 1, c)?;
        let o = self.activate(b, 0, o)?;
        let shown = self.activate(b, 2, c)?;
        Ok((b.mul(o, shown)?, c))
    }
}

/// `[direction, …]` at one direction.
fn of_direction(cx: &mut Cx, v: Value, d: usize) -> One {
    let shape = cx.shape(v);
    let one = cx.b.slice_axis(v, 0, Dim::from(d), Dim::ONE)?;
    Ok(cx.b.reshape(one, &shape[1..])?)
}

/// What one direction gives: all states `[t, b, h]`, the last, the last cell.
type Ran = (Value, Value, Option<Value>);

fn run(
    cx: &mut Cx,
    layer: &Layer,
    x: Value,
    h: Value,
    c: Option<Value>,
    lengths: Option<Value>,
    backwards: bool,
) -> Result<Ran, Fail> {
    let steps = cx.extent(x, 0)?;
    let trip = cx.scalar_dim(steps.clone())?;
    let last = cx.scalar_dim(steps - Dim::ONE)?;
    let region = cx.b.graph.add_region();
    let i =
        cx.b.graph
            .add_region_param(region, TensorType::scalar(DType::I64));
    let ty = cx.ty(h);
    let old_h = cx.b.graph.add_region_param(region, ty.clone());
    let old_c = c.map(|_| cx.b.graph.add_region_param(region, ty));
    let yielded = cx.b.in_region(region, |b| {
        let at = if backwards { b.sub(last, i)? } else { i };
        let now = step(b, x, at)?;
        let (mut h, mut c) = layer.next(b, now, old_h, old_c)?;
        let mut shown = h;
        if let Some(lengths) = lengths {
            let active = b.compare(CompareFn::Lt, at, lengths)?;
            let zero = b.scalar_like(h, 0.0)?;
            shown = b.select(active, h, zero)?;
            h = b.select(active, h, old_h)?;
            if let (Some(new), Some(old)) = (c, old_c) {
                c = Some(b.select(active, new, old)?);
            }
        }
        let go = b.constant(Tensor::scalar_i64(DType::Bool, 1))?;
        let all = [go, h].into_iter().chain(c).chain([shown]);
        Ok::<_, TypeError>(all.collect())
    })?;
    cx.b.graph.region_mut(region).results = yielded;
    let go = cx.b.constant(Tensor::scalar_i64(DType::Bool, 1))?;
    let op = Loop {
        carried: 1 + c.is_some() as usize,
        symbol: None,
        sizes: vec![],
    };
    let args: Vec<Value> = [trip, go, h].into_iter().chain(c).collect();
    let out = cx.b.push_with_regions(op, &args, vec![region])?;
    match out[..] {
        [h, all] => Ok((all, h, None)),
        [h, c, all] => Ok((all, h, Some(c))),
        _ => Err(Fail::invalid("a loop of another number of results")),
    }
}

/// Directions stacked along a new axis.
fn stacked(cx: &mut Cx, all: &[Value], axis: usize) -> One {
    let mut wide = vec![];
    for &v in all {
        let mut shape = cx.shape(v);
        shape.insert(axis, Dim::ONE);
        wide.push(cx.b.reshape(v, &shape)?);
    }
    Ok(cx.b.concat(&wide, axis)?)
}

pub(crate) fn recurrent(cx: &mut Cx, cell: Cell) -> Out {
    let batch_first = cx.flag("layout", false)?;
    let (mut x, w, r) = (cx.arg(0)?, cx.arg(1)?, cx.arg(2)?);
    if batch_first {
        x = cx.b.transpose(x, &[1, 0, 2])?;
    }
    let backwards: &[bool] = match cx.text("direction", "forward")? {
        "forward" => &[false],
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        other => return Err(Fail::invalid(format!("there is no direction `{other}`"))),
    };
    let hidden = cx.extent(r, 2)?;
    let batch = cx.extent(x, 1)?;
    let lengths = match cx.opt(4) {
        None => None,
        Some(l) => {
            let l = cx.b.cast(l, DType::I64)?;
            Some(cx.b.reshape(l, &[batch.clone(), Dim::ONE])?)
        }
    };
    let mut all = activations(cx, cell, backwards.len())?.into_iter();
    let (mut outs, mut lasts, mut cells) = (vec![], vec![], vec![]);
    for (d, &back) in backwards.iter().enumerate() {
        let w = of_direction(cx, w, d)?;
        let r = of_direction(cx, r, d)?;
        let mut now = cx.b.matmul_t(x, w, false, true)?;
        let width = hidden.clone() * cell.gates().into();
        let mut recurrent_bias = None;
        if let Some(bias) = cx.opt(3) {
            let bias = of_direction(cx, bias, d)?;
            let first = cx.b.slice_axis(bias, 0, Dim::ZERO, width.clone())?;
            let second = cx.b.slice_axis(bias, 0, width.clone(), width)?;
            now = cx.b.add(now, first)?;
            now = match cell {
                // The new state's part stands inside the reset gate's product.
                Cell::Gru => {
                    recurrent_bias = Some(second);
                    let two = hidden.clone() * 2.into();
                    let gates = cx.b.slice_axis(second, 0, Dim::ZERO, two)?;
                    let none =
                        cx.b.full(cx.dtype(second), std::slice::from_ref(&hidden), 0.0)?;
                    let second = cx.b.concat(&[gates, none], 0)?;
                    cx.b.add(now, second)?
                }
                _ => cx.b.add(now, second)?,
            };
        }
        let layer = Layer {
            cell,
            recurrent: cx.b.transpose(r, &[1, 0])?,
            recurrent_bias,
            peepholes: match cx.opt(7).filter(|_| cell == Cell::Lstm) {
                Some(p) => Some(of_direction(cx, p, d)?),
                None => None,
            },
            activations: all.by_ref().take(cell.usual().len()).collect(),
            clip: cx.opt_float("clip")?.filter(|&c| c > 0.0),
            hidden: hidden.clone(),
            linear_before_reset: cx.flag("linear_before_reset", false)?,
            input_forget: cx.flag("input_forget", false)?,
        };
        let start = |cx: &mut Cx, i: usize| -> One {
            match cx.opt(i) {
                None => Ok(cx
                    .b
                    .full(cx.dtype(x), &[batch.clone(), hidden.clone()], 0.0)?),
                Some(v) => {
                    let v = if batch_first {
                        cx.b.transpose(v, &[1, 0, 2])?
                    } else {
                        v
                    };
                    of_direction(cx, v, d)
                }
            }
        };
        let h = start(cx, 5)?;
        let c = match cell {
            Cell::Lstm => Some(start(cx, 6)?),
            _ => None,
        };
        let (every, h, c) = run(cx, &layer, now, h, c, lengths, back)?;
        // Stacked in the order of the steps.
        outs.push(if back {
            super::control::reversed(cx, every)?
        } else {
            every
        });
        lasts.push(h);
        cells.extend(c);
    }
    let mut y = stacked(cx, &outs, 1)?;
    let mut h = vec![stacked(cx, &lasts, 0)?];
    if !cells.is_empty() {
        h.push(stacked(cx, &cells, 0)?);
    }
    if batch_first {
        y = cx.b.transpose(y, &[2, 0, 1, 3])?;
        for v in &mut h {
            *v = cx.b.transpose(*v, &[1, 0, 2])?;
        }
    }
    Ok([y].into_iter().chain(h).collect())
}
