//! Contractions and the layouts of what they read.

use crate::graph::Value;
use crate::op::*;
use crate::ops::blocks;
use crate::ops::util::*;
use crate::tensor::{Encoder, computes_in_integers};
use crate::{BlockFormat, Builder, DType, Dim, Kind, ReduceFn, Tensor, TensorType, UnaryFn};

/// `matmul(a, b)`: `[.., m, k] · [.., k, n]`, leading axes broadcast. Both of
/// one dtype (8-bit integers may differ in sign, floats of eight bits in kind, where `out`
/// is given); f8, f16 and bf16 accumulate in f32,
/// integers in i32 where `out` says so. With `tf32`, of f32: both are rounded first
/// ([`crate::scalar::round_tf32`]), so that tensor cores may multiply them; sums are in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct MatMul {
    /// `a` is `[.., k, m]`.
    pub transpose_a: bool,
    /// `b` is `[.., n, k]`.
    pub transpose_b: bool,
    /// The result's dtype; none for the arguments'.
    pub out: Option<DType>,
    /// Whether the arguments are rounded to tf32.
    pub tf32: bool,
}

/// `pack(w)`: the last two axes `[k, n]` (or `[n, k]` if `transposed`) as panels
/// `[ceil(n/nr), k, nr]`, zero-padded: what the matmul kernels read. With groups of
/// `group` > 1, those of one column lie together: `[ceil(n/nr), ceil(k/group), nr,
/// group]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pack {
    /// Columns a panel.
    pub nr: usize,
    /// Neighbours along k that lie together.
    pub group: usize,
    /// `w` is `[.., n, k]`.
    pub transposed: bool,
}

/// `decode(x)`: the plain elements of an encoded value. The host holds an encoded
/// value as a `u8` tensor of its blocks, those along `axis` innermost (for the
/// last axis: the blocks in row-major order, as GGUF stores them). The attributes
/// repeat the argument's type, so that the bytes alone can be read:
/// [`Decode::of`] makes them.
#[derive(Clone, Debug, PartialEq)]
pub struct Decode {
    /// The block format.
    pub format: BlockFormat,
    /// The axis along which elements form blocks.
    pub axis: usize,
    /// What an element means.
    pub dtype: DType,
    /// The plain value's shape.
    pub shape: Vec<Dim>,
}

/// `m`, `k` of a matrix stored as `[.., m, k]`, or as `[.., k, m]`.
fn matrix<T: Clone>(shape: &[T], transposed: bool) -> (T, T) {
    let (r, c) = (
        shape[shape.len() - 2].clone(),
        shape[shape.len() - 1].clone(),
    );
    if transposed { (c, r) } else { (r, c) }
}

parse_one!(MatMul, "matmul", |attrs| Ok(MatMul {
    transpose_a: attrs.bool("transpose_a")?,
    transpose_b: attrs.bool("transpose_b")?,
    out: match attrs.get("out") {
        Ok(_) => Some(attrs.dtype("out")?),
        Err(_) => None,
    },
    tf32: match attrs.get("tf32") {
        Ok(_) => attrs.bool("tf32")?,
        Err(_) => false,
    },
}));

impl MatMul {
    fn result_dtype(&self, a: DType, b: DType) -> Result<DType, TypeError> {
        let out = self.out.unwrap_or(a);
        let bytes = |d: DType| matches!(d, DType::I8 | DType::U8);
        let eight = |d: DType| matches!(d, DType::F8E4M3FN | DType::F8E5M2);
        let mixed = bytes(a) && bytes(b) || eight(a) && eight(b);
        let agree = a == b || mixed && self.out.is_some();
        match (a.kind(), out.kind()) {
            _ if self.tf32 && [a, b] != [DType::F32; 2] => {
                type_err(format!("tf32 is what f32 is rounded to, not {a} and {b}"))
            }
            _ if !agree => type_err(format!("the arguments differ in element type: {a} and {b}")),
            (Kind::Float, Kind::Float) => Ok(out),
            (Kind::Int | Kind::Uint, Kind::Int | Kind::Uint) => Ok(out),
            (Kind::Bool | Kind::Complex | Kind::Str, _) => {
                type_err(format!("matrices of {a} are not supported"))
            }
            _ => type_err(format!("a product of {a} matrices cannot be {out}")),
        }
    }
}

impl OpDef for MatMul {
    fn mnemonic(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let args = arity(args, 2)?;
        let (a, b) = (args[0].ty, args[1].ty);
        plain(a)?;
        plain(b)?;
        if a.rank() < 2 || b.rank() < 2 {
            return type_err(format!(
                "needs matrices, not {a} and {b}: reshape vectors first"
            ));
        }
        let dtype = self.result_dtype(a.dtype, b.dtype)?;
        let (m, ka) = matrix(&a.shape, self.transpose_a);
        let (kb, n) = matrix(&b.shape, self.transpose_b);
        cx.require_same(&ka, &kb, &format!("the inner extents of {a} and {b}"))?;
        let mut shape =
            broadcast_shapes(cx, &[&a.shape[..a.rank() - 2], &b.shape[..b.rank() - 2]])?;
        shape.extend([m, n]);
        Ok(vec![TensorType::new(dtype, shape).into()])
    }

    /// `bmk,bkn->bmn`: labels `0..` for the batch, then m, k, n.
    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let rank = args[0].rank().max(args[1].rank());
        let mut labels = broadcast_labels(args, rank);
        let (m, k, n) = (rank as u8 - 2, rank as u8 - 1, rank as u8);
        let mut matrix = |i: usize, r: u8, c: u8, transposed: bool| {
            let at = args[i].rank() - 2;
            let (r, c) = if transposed { (c, r) } else { (r, c) };
            (labels[i][at], labels[i][at + 1]) = (Some(r), Some(c));
        };
        matrix(0, m, k, self.transpose_a);
        matrix(1, k, n, self.transpose_b);
        let batch = |i: u8| {
            labels
                .iter()
                .any(|l| l[..l.len() - 2].contains(&Some(i)))
                .then_some(i)
        };
        let result = (0..m).map(batch).chain([Some(m), Some(n)]).collect();
        AxisMap::Labels {
            args: labels,
            results: vec![result],
            reduce: Some(ReduceFn::Sum),
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (a, b) = (args[0], args[1]);
        let dtype = self.out.unwrap_or(a.dtype());
        let (m, k) = matrix(a.shape(), self.transpose_a);
        let (kb, n) = matrix(b.shape(), self.transpose_b);
        if k != kb {
            return Err(EvalError(format!("matmul: {k} columns meet {kb} rows")));
        }
        let (ba, bb) = (
            &a.shape()[..a.shape().len() - 2],
            &b.shape()[..b.shape().len() - 2],
        );
        let batch = broadcast_sizes(ba, bb).map_err(|e| EvalError(format!("matmul: {e}")))?;
        let (sa, sb) = (broadcast_strides(ba, &batch), broadcast_strides(bb, &batch));
        let (am, ak) = if self.transpose_a { (1, m) } else { (k, 1) };
        let (bk, bn) = if self.transpose_b { (1, k) } else { (n, 1) };
        let mut out = Encoder::new(dtype, batch.iter().product::<usize>() * m * n);
        let exact = computes_in_integers(a.dtype());
        let (fa, fb) = match (exact, self.tf32) {
            (true, _) => (vec![], vec![]),
            (_, false) => (a.to_f64(), b.to_f64()),
            (_, true) => {
                let round = |x| UnaryFn::RoundTf32.eval_f64(x);
                let rounded = |t: &Tensor| t.to_f64().into_iter().map(round).collect();
                (rounded(a), rounded(b))
            }
        };
        // A single row reads each element of a weight once: no copy of it is made.
        let once = m == 1 && batch.iter().all(|&n| n == 1);
        let ia = if exact { a.to_i64() } else { vec![] };
        let ib = if exact && !once { b.to_i64() } else { vec![] };
        for_each_index(&batch, |at| {
            let (oa, ob) = (offset(at, &sa) * m * k, offset(at, &sb) * k * n);
            for i in 0..m {
                let a_at = |p: usize| oa + i * am + p * ak;
                let b_at = |p: usize, j: usize| ob + p * bk + j * bn;
                if exact {
                    let mut row = vec![0i64; n];
                    for p in 0..k {
                        let x = ia[a_at(p)];
                        row.iter_mut().enumerate().for_each(|(j, s)| {
                            let at = b_at(p, j);
                            let y = if once { b.get_i64(at) } else { ib[at] };
                            *s = s.wrapping_add(x.wrapping_mul(y));
                        });
                    }
                    row.into_iter().for_each(|s| out.push_i64(s));
                } else {
                    let mut row = vec![0f64; n];
                    for p in 0..k {
                        let x = fa[a_at(p)];
                        row.iter_mut()
                            .enumerate()
                            .for_each(|(j, s)| *s += x * fb[b_at(p, j)]);
                    }
                    row.into_iter().for_each(|s| out.push_f64(s));
                }
            }
        });
        let shape: Vec<usize> = batch.into_iter().chain([m, n]).collect();
        finish(dtype, shape, out)
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let (x, y) = (io.args[0], io.args[1]);
        let (sx, sy) = (b.shape(x), b.shape(y));
        let d = {
            let dtype = b.ty(x).dtype;
            b.cast(d[0], dtype)?
        };
        let dx = match self.transpose_a {
            false => self.like(b, [d, y], false, !self.transpose_b)?,
            true => self.like(b, [y, d], self.transpose_b, true)?,
        };
        // One weight for the whole batch: the batch joins the rows, so that no
        // gradient per batch entry is ever held.
        let dy = if sy.len() == 2 && sx.len() > 2 && !self.transpose_a {
            let (x, d) = (join_rows(b, x)?, join_rows(b, d)?);
            self.grad_right(b, x, d)?
        } else {
            self.grad_right(b, x, d)?
        };
        Ok(Grad::Args(vec![
            Some(unbroadcast(b, dx, &sx)?),
            Some(unbroadcast(b, dy, &sy)?),
        ]))
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::none()
            .with("transpose_a", Attr::Bool(self.transpose_a))
            .with("transpose_b", Attr::Bool(self.transpose_b));
        let attrs = match self.out {
            Some(d) => attrs.with("out", Attr::Name(d.name().into())),
            None => attrs,
        };
        match self.tf32 {
            true => attrs.with("tf32", Attr::Bool(true)),
            false => attrs,
        }
    }

    primitive!();
}

impl MatMul {
    /// A product of a gradient, rounded as this one is.
    fn like(
        &self,
        b: &mut Builder,
        args: [Value; 2],
        transpose_a: bool,
        transpose_b: bool,
    ) -> Result<Value, TypeError> {
        let product = MatMul {
            transpose_a,
            transpose_b,
            out: None,
            tf32: self.tf32,
        };
        b.one(product, &args)
    }

    fn grad_right(&self, b: &mut Builder, x: Value, d: Value) -> Result<Value, TypeError> {
        match self.transpose_b {
            false => self.like(b, [x, d], !self.transpose_a, false),
            true => self.like(b, [d, x], true, self.transpose_a),
        }
    }
}

/// `[.., m, k]` as `[rows, k]`.
fn join_rows(b: &mut Builder, x: Value) -> Result<Value, TypeError> {
    let shape = b.shape(x);
    let last = shape.len() - 1;
    b.reshape(x, &[Dim::product(&shape[..last]), shape[last].clone()])
}

/// NumPy's broadcast of two constant shapes.
fn broadcast_sizes(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| {
        if i + s.len() < rank {
            1
        } else {
            s[i + s.len() - rank]
        }
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y || y == 1 => Ok(x),
            (1, y) => Ok(y),
            (x, y) => Err(format!("batch extents {x} and {y} do not broadcast")),
        })
        .collect()
}

parse_one!(Pack, "pack", |attrs| Ok(Pack {
    nr: attrs.index("nr")?,
    group: match attrs.get("group") {
        Ok(_) => attrs.index("group")?,
        Err(_) => 1,
    },
    transposed: attrs.bool("transposed")?,
}));

impl Pack {
    /// The panels of matrices `k × n`, `count` elements of `N` bytes in all. Sixteen
    /// rows at a time: a cache line of a column, and few enough to stay in a cache.
    fn moved<const N: usize>(
        &self,
        w: &[[u8; N]],
        (k, n): (usize, usize),
        count: usize,
    ) -> Vec<u8> {
        let mut bytes = vec![0; count * N];
        let panel = k.div_ceil(self.group) * self.group * self.nr;
        if count == 0 || k * n == 0 {
            return bytes;
        }
        let (row, column) = if self.transposed { (1, k) } else { (n, 1) };
        let panels = bytes.as_chunks_mut::<N>().0.chunks_exact_mut(panel);
        for (i, to) in panels.enumerate() {
            let each = n.div_ceil(self.nr);
            let (matrix, first) = (&w[i / each * k * n..], i % each * self.nr);
            let columns = self.nr.min(n - first);
            for top in (0..k).step_by(16) {
                let rows = top..(top + 16).min(k);
                let place = |r: usize| r / self.group * self.nr * self.group + r % self.group;
                let places: Vec<usize> = rows.clone().map(place).collect();
                for j in 0..columns {
                    for (r, at) in rows.clone().zip(&places) {
                        to[at + j * self.group] = matrix[r * row + (first + j) * column];
                    }
                }
            }
        }
        bytes
    }
}

impl OpDef for Pack {
    fn mnemonic(&self) -> &'static str {
        "pack"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let w = arity(args, 1)?[0].ty;
        plain(w)?;
        if w.rank() < 2 || w.dtype == DType::Str {
            return type_err(format!("needs a matrix of numbers, not {w}"));
        }
        if self.nr == 0 || self.group == 0 {
            return type_err("a panel needs columns, and a group rows");
        }
        let (k, n) = matrix(&w.shape, self.transposed);
        let mut shape = w.shape[..w.rank() - 2].to_vec();
        let groups = k.ceil_div(&self.group.into());
        shape.extend([n.ceil_div(&self.nr.into()), groups, self.nr.into()]);
        if self.group > 1 {
            shape.push(self.group.into());
        }
        Ok(vec![TensorType::new(w.dtype, shape).into()])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let rank = args[0].rank();
        let batch = || (0..rank - 2).map(|i| Some(i as u8));
        // Groups cut k: no part of it passes through.
        let k = (self.group == 1).then_some(rank as u8 - 2);
        let matrix = if self.transposed {
            [None, k]
        } else {
            [k, None]
        };
        let inner = (self.group > 1).then_some(None);
        AxisMap::Labels {
            args: vec![batch().chain(matrix).collect()],
            results: vec![batch().chain([None, k, None]).chain(inner).collect()],
            reduce: None,
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let w = args[0];
        let (k, n) = matrix(w.shape(), self.transposed);
        let panels = n.div_ceil(self.nr);
        let batch = &w.shape()[..w.shape().len() - 2];
        let groups = k.div_ceil(self.group);
        let mut shape = batch.to_vec();
        shape.extend([panels, groups, self.nr]);
        if self.group > 1 {
            shape.push(self.group);
        }
        let count = shape.iter().product::<usize>();
        // Whole networks are packed while compiling: elements of whole bytes are moved.
        let moved = match w.dtype().size().filter(|_| w.dtype() != DType::Str) {
            Some(1) => Some(self.moved(w.bytes().as_chunks::<1>().0, (k, n), count)),
            Some(2) => Some(self.moved(w.bytes().as_chunks::<2>().0, (k, n), count)),
            Some(4) => Some(self.moved(w.bytes().as_chunks::<4>().0, (k, n), count)),
            Some(8) => Some(self.moved(w.bytes().as_chunks::<8>().0, (k, n), count)),
            _ => None,
        };
        if let Some(bytes) = moved {
            let y = Tensor::new(w.dtype(), shape, bytes);
            return Ok(vec![y.map_err(|e| EvalError(e.to_string()))?]);
        }
        let mut out = Encoder::new(w.dtype(), count);
        for_each_index(&shape, |index| {
            let (lead, place) = index.split_at(batch.len());
            let column = place[0] * self.nr + place[2];
            let row = place[1] * self.group + place.get(3).unwrap_or(&0);
            let at = offset(lead, &strides(batch)) * k * n
                + if self.transposed {
                    column * k + row
                } else {
                    row * n + column
                };
            match computes_in_integers(w.dtype()) {
                _ if column >= n || row >= k => out.push_i64(0),
                true => out.push_i64(w.get_i64(at)),
                false => out.push_f64(w.get_f64(at)),
            }
        });
        finish(w.dtype(), shape, out)
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Unsupported {
            because: "layouts are chosen after differentiation",
        })
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::none()
            .with("nr", Attr::Int(self.nr as i64))
            .with("transposed", Attr::Bool(self.transposed));
        match self.group {
            1 => attrs,
            group => attrs.with("group", Attr::Int(group as i64)),
        }
    }

    primitive!();
}

impl Decode {
    /// The decoder of values of this type; none if they are plain.
    pub fn of(ty: &TensorType) -> Option<Decode> {
        ty.encoding.map(|e| Decode {
            format: e.format,
            axis: e.axis as usize,
            dtype: ty.dtype,
            shape: ty.shape.clone(),
        })
    }
}

parse_one!(Decode, "decode", |attrs| Ok(Decode {
    format: BlockFormat::from_name(attrs.name("format")?).ok_or_else(|| TypeError(format!(
        "there is no encoding `{}`",
        attrs.name("format").unwrap_or_default()
    )))?,
    axis: attrs.index("axis")?,
    dtype: attrs.dtype("dtype")?,
    shape: attrs.dims("shape")?,
}));

impl OpDef for Decode {
    fn mnemonic(&self) -> &'static str {
        "decode"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let x = arity(args, 1)?[0].ty;
        if Decode::of(x).as_ref() != Some(self) {
            return type_err(format!(
                "decodes {} along axis {}, but the argument is {x}",
                self.format.name(),
                self.axis
            ));
        }
        check_axis(self.axis, x.rank())?;
        let len = self.format.block_len();
        if x.shape[self.axis].modulo(&len.into()) != Dim::ZERO {
            return type_err(format!(
                "axis {} of {x} does not divide into blocks of {len}",
                self.axis
            ));
        }
        if !self.dtype.is_float() {
            return type_err(format!("decodes to floats, not {}", self.dtype));
        }
        Ok(vec![TensorType::new(self.dtype, self.shape.clone()).into()])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        // Blocks of the axis stay whole; so the axis itself has no label.
        let labels: Vec<Option<u8>> = (0..self.shape.len())
            .map(|i| (i != self.axis).then_some(i as u8))
            .collect();
        AxisMap::Labels {
            args: vec![labels.clone()],
            results: vec![labels],
            reduce: None,
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let shape = cx.dims(&self.shape)?;
        let (len, bytes) = (self.format.block_len(), self.format.block_bytes());
        let total: usize = shape.iter().product();
        let x = args[0].bytes();
        if shape.get(self.axis).is_none_or(|n| n % len != 0) || x.len() != total / len * bytes {
            let name = self.format.name();
            return Err(EvalError(format!(
                "decode: {} bytes are not {shape:?} in {name}",
                x.len()
            )));
        }
        let mut lanes = Vec::with_capacity(total);
        for block in x.chunks_exact(bytes) {
            blocks::decode_block(self.format, block, &mut lanes)?;
        }
        // The blocks' order has the axis innermost; put it back in its place.
        let mut order = shape.clone();
        let n = order.remove(self.axis);
        order.push(n);
        let stride = strides(&order);
        let mut out = Encoder::new(self.dtype, total);
        for_each_index(&shape, |index| {
            let mut from = index.to_vec();
            let i = from.remove(self.axis);
            from.push(i);
            out.push_f64(lanes[offset(&from, &stride)] as f64);
        });
        finish(self.dtype, shape, out)
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Zero {
            because: "encoded values are constants",
        })
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("format", Attr::Name(self.format.name().into()))
            .with("axis", Attr::Int(self.axis as i64))
            .with("dtype", Attr::Name(self.dtype.name().into()))
            .with("shape", Attr::Dims(self.shape.clone()))
    }

    primitive!();
}
