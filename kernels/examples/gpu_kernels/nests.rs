//! Loop nests: norms, softmax, elementwise ones, copies.

use crate::case::{Buffer, Case, dense_strides};
use kiln_ir::{BinaryFn, DType, UnaryFn};
use kiln_kernels::cuda::SortSpec;
use kiln_kernels::{
    Effect, ExprId, Exprs, Gathered, Index, KernelSpec, LoopNest, Reducer, Size, Stage, Temp,
};
use serde_json::json;

const F: DType = DType::F32;

/// Added to variances.
const EPSILON: f32 = 1e-5;

fn c(n: i64) -> Size {
    Size::Const(n)
}

/// A nest over `[rows, columns]` whose work units are rows, with a temporary a row.
fn over_rows(e: Exprs, buffers: &[Buffer], [m, k]: [i64; 2], stages: Vec<Stage>) -> LoopNest {
    LoopNest {
        exprs: e,
        args: buffers.iter().map(|b| b.dtype).collect(),
        params: 0,
        axes: vec![c(m), c(k)],
        outer: 1,
        temps: vec![Temp {
            dtype: F,
            axes: vec![1],
        }],
        stages,
    }
}

fn case(what: &str, dtype: DType, shape: &[i64], nest: LoopNest, buffers: Vec<Buffer>) -> Case {
    let shape: Vec<String> = shape.iter().map(i64::to_string).collect();
    let name = format!("{what}_{dtype}_{}", shape.join("x"));
    let op = json!({"kind": what, "epsilon": f64::from(EPSILON)});
    Case::new((name, "nest"), op, KernelSpec::Nest(nest), buffers, vec![])
}

fn softmax(dtype: DType, [m, k]: [i64; 2]) -> Case {
    let mut e = Exprs::new();
    let index = Index::strided([c(k), c(1)]);
    let x = e.load(0, dtype, index.clone()).unwrap();
    let x = e.cast(F, x).unwrap();
    let top = e.acc(0, F).unwrap();
    let less = e.binary(BinaryFn::Sub, x, top).unwrap();
    let exp = e.unary(UnaryFn::Exp, less).unwrap();
    let kept = e.temp(0, F).unwrap();
    let total = e.acc(1, F).unwrap();
    let y = e.binary(BinaryFn::Div, kept, total).unwrap();
    let y = e.cast(dtype, y).unwrap();
    let keep = Effect::Keep {
        temp: 0,
        value: exp,
    };
    let stages = vec![
        Stage::new(&[1], vec![Effect::reduce(0, Reducer::Max, x)]),
        Stage::new(&[1], vec![keep, Effect::reduce(1, Reducer::Sum, exp)]),
        Stage::new(&[1], vec![Effect::store(1, index, y)]),
    ];
    let buffers = ["x", "out"].map(|role| Buffer::dense(role, dtype, &[m, k]));
    let nest = over_rows(e, &buffers, [m, k], stages);
    case("softmax", dtype, &[m, k], nest, buffers.to_vec())
}

/// The mean square of what is kept, plus epsilon, as a factor.
fn scale(e: &mut Exprs, acc: u16, n: ExprId) -> ExprId {
    let squares = e.acc(acc, F).unwrap();
    let mean = e.binary(BinaryFn::Div, squares, n).unwrap();
    let epsilon = e.f32(EPSILON);
    let mean = e.binary(BinaryFn::Add, mean, epsilon).unwrap();
    e.unary(UnaryFn::Rsqrt, mean).unwrap()
}

fn layer_norm(dtype: DType, [m, k]: [i64; 2]) -> Case {
    let mut e = Exprs::new();
    let (row, column) = (Index::strided([c(k), c(1)]), Index::strided([c(0), c(1)]));
    let x = e.load(0, dtype, row.clone()).unwrap();
    let x = e.cast(F, x).unwrap();
    let gamma = e.load(1, F, column.clone()).unwrap();
    let beta = e.load(2, F, column).unwrap();
    let n = e.f32(k as f32);
    let total = e.acc(0, F).unwrap();
    let mean = e.binary(BinaryFn::Div, total, n).unwrap();
    let kept = e.temp(0, F).unwrap();
    let centred = e.binary(BinaryFn::Sub, kept, mean).unwrap();
    let square = e.binary(BinaryFn::Mul, centred, centred).unwrap();
    let factor = scale(&mut e, 1, n);
    let y = e.binary(BinaryFn::Mul, centred, factor).unwrap();
    let y = e.binary(BinaryFn::Mul, y, gamma).unwrap();
    let y = e.binary(BinaryFn::Add, y, beta).unwrap();
    let y = e.cast(dtype, y).unwrap();
    let keep = Effect::Keep { temp: 0, value: x };
    let stages = vec![
        Stage::new(&[1], vec![keep, Effect::reduce(0, Reducer::Sum, x)]),
        Stage::new(&[1], vec![Effect::reduce(1, Reducer::Sum, square)]),
        Stage::new(&[1], vec![Effect::store(3, row, y)]),
    ];
    let buffers = vec![
        Buffer::dense("x", dtype, &[m, k]),
        Buffer::dense("gamma", F, &[k]),
        Buffer::dense("beta", F, &[k]),
        Buffer::dense("out", dtype, &[m, k]),
    ];
    let nest = over_rows(e, &buffers, [m, k], stages);
    case("layer_norm", dtype, &[m, k], nest, buffers)
}

fn rms_norm(dtype: DType, [m, k]: [i64; 2]) -> Case {
    let mut e = Exprs::new();
    let row = Index::strided([c(k), c(1)]);
    let x = e.load(0, dtype, row.clone()).unwrap();
    let x = e.cast(F, x).unwrap();
    let gamma = e.load(1, F, Index::strided([c(0), c(1)])).unwrap();
    let n = e.f32(k as f32);
    let square = e.binary(BinaryFn::Mul, x, x).unwrap();
    let kept = e.temp(0, F).unwrap();
    let factor = scale(&mut e, 0, n);
    let y = e.binary(BinaryFn::Mul, kept, factor).unwrap();
    let y = e.binary(BinaryFn::Mul, y, gamma).unwrap();
    let y = e.cast(dtype, y).unwrap();
    let keep = Effect::Keep { temp: 0, value: x };
    let stages = vec![
        Stage::new(&[1], vec![keep, Effect::reduce(0, Reducer::Sum, square)]),
        Stage::new(&[1], vec![Effect::store(2, row, y)]),
    ];
    let buffers = vec![
        Buffer::dense("x", dtype, &[m, k]),
        Buffer::dense("gamma", F, &[k]),
        Buffer::dense("out", dtype, &[m, k]),
    ];
    let nest = over_rows(e, &buffers, [m, k], stages);
    case("rms_norm", dtype, &[m, k], nest, buffers)
}

/// An elementwise nest over `shape`: `value` of the loaded elements, which are cast to
/// f32 before; results go where `out` says.
fn elementwise(
    what: &str,
    dtype: DType,
    shape: &[i64],
    inputs: &[&'static str],
    out: Buffer,
    out_index: &[i64],
    value: impl Fn(&mut Exprs, &[ExprId]) -> ExprId,
) -> Case {
    let mut e = Exprs::new();
    let index = |strides: &[i64]| Index::strided(strides.iter().map(|&s| c(s)));
    let mut buffers: Vec<Buffer> = (inputs.iter())
        .map(|&role| Buffer::dense(role, dtype, shape))
        .collect();
    let loads: Vec<ExprId> = (0..inputs.len() as u16)
        .map(|i| {
            let x = e.load(i, dtype, index(&dense_strides(shape))).unwrap();
            e.cast(if dtype.is_float() { F } else { dtype }, x).unwrap()
        })
        .collect();
    let y = value(&mut e, &loads);
    let y = e.cast(out.dtype, y).unwrap();
    buffers.push(out);
    let nest = LoopNest {
        exprs: e,
        args: buffers.iter().map(|b| b.dtype).collect(),
        params: 0,
        axes: shape.iter().map(|&n| c(n)).collect(),
        outer: shape.len() as u8,
        temps: vec![],
        stages: vec![Stage::new(
            &[],
            vec![Effect::store(inputs.len() as u16, index(out_index), y)],
        )],
    };
    case(what, dtype, shape, nest, buffers)
}

fn add(dtype: DType, n: i64) -> Case {
    let out = Buffer::dense("out", dtype, &[n]);
    elementwise("add", dtype, &[n], &["x", "y"], out, &[1], |e, x| {
        e.binary(BinaryFn::Add, x[0], x[1]).unwrap()
    })
}

fn gelu(dtype: DType, n: i64) -> Case {
    let out = Buffer::dense("out", dtype, &[n]);
    elementwise("gelu", dtype, &[n], &["x"], out, &[1], |e, x| {
        let share = e.unary(UnaryFn::NormalCdf, x[0]).unwrap();
        e.binary(BinaryFn::Mul, x[0], share).unwrap()
    })
}

fn copy(dtype: DType, n: i64) -> Case {
    let out = Buffer::dense("out", dtype, &[n]);
    elementwise("copy", dtype, &[n], &["x"], out, &[1], |_, x| x[0])
}

/// A matrix written by columns.
fn transpose(dtype: DType, [m, k]: [i64; 2]) -> Case {
    let out = Buffer::strided("out", dtype, &[m, k], &[1, m]);
    elementwise("transpose", dtype, &[m, k], &["x"], out, &[1, m], |_, x| {
        x[0]
    })
}

/// Rounded to bytes of a grid.
fn quantize(n: i64) -> Case {
    let out = Buffer::dense("out", DType::I8, &[n]);
    elementwise("quantize", F, &[n], &["x"], out, &[1], |e, x| {
        let grid = e.f32(1.0 / 64.0);
        let y = e.binary(BinaryFn::Div, x[0], grid).unwrap();
        let y = e.unary(UnaryFn::Round, y).unwrap();
        e.cast(DType::I8, y).unwrap()
    })
}

/// Sums of rows, or of columns.
fn sum(dtype: DType, [m, k]: [i64; 2], columns: bool) -> Case {
    let mut e = Exprs::new();
    let (strides, what) = match columns {
        true => ([c(1), c(m)], "sum_columns"),
        false => ([c(k), c(1)], "sum_rows"),
    };
    let x = e.load(0, dtype, Index::strided(strides)).unwrap();
    let acc = if dtype.is_float() { F } else { DType::I32 };
    let x = e.cast(acc, x).unwrap();
    let total = e.acc(0, acc).unwrap();
    let shape = if columns { [k, m] } else { [m, k] };
    let buffers = vec![
        Buffer::dense("x", dtype, &shape),
        Buffer::dense("out", acc, &[m]),
    ];
    let stages = vec![
        Stage::new(&[1], vec![Effect::reduce(0, Reducer::Sum, x)]),
        Stage::new(&[], vec![Effect::store(1, Index::strided([c(1)]), total)]),
    ];
    let mut nest = over_rows(e, &buffers, [m, k], stages);
    nest.temps.clear();
    case(what, dtype, &shape, nest, buffers)
}

/// A softmax that keeps no temporaries, as the compiler writes it: few rows go in parts.
fn plain_softmax(dtype: DType, [m, k]: [i64; 2]) -> Case {
    let mut e = Exprs::new();
    let index = Index::strided([c(k), c(1)]);
    let x = e.load(0, dtype, index.clone()).unwrap();
    let x = e.cast(F, x).unwrap();
    let top = e.acc(0, F).unwrap();
    let less = e.binary(BinaryFn::Sub, x, top).unwrap();
    let exp = e.unary(UnaryFn::Exp, less).unwrap();
    let total = e.acc(1, F).unwrap();
    let y = e.binary(BinaryFn::Div, exp, total).unwrap();
    let y = e.cast(dtype, y).unwrap();
    let stages = vec![
        Stage::new(&[1], vec![Effect::reduce(0, Reducer::Max, x)]),
        Stage::new(&[1], vec![Effect::reduce(1, Reducer::Sum, exp)]),
        Stage::new(&[1], vec![Effect::store(1, index, y)]),
    ];
    let buffers = ["x", "out"].map(|role| Buffer::dense(role, dtype, &[m, k]));
    let mut nest = over_rows(e, &buffers, [m, k], stages);
    nest.temps.clear();
    case("softmax", dtype, &[m, k], nest, buffers.to_vec())
}

/// Where the largest element of each row is.
fn arg_max(dtype: DType, [m, k]: [i64; 2]) -> Case {
    let mut e = Exprs::new();
    let value = e.load(0, dtype, Index::strided([c(k), c(1)])).unwrap();
    let position = e.axis(1);
    let at = e.acc(1, DType::I64).unwrap();
    let find = Effect::ArgReduce {
        best: 0,
        at: 1,
        largest: true,
        last: false,
        value,
        position,
    };
    let buffers = vec![
        Buffer::dense("x", dtype, &[m, k]),
        Buffer::dense("out", DType::I64, &[m]),
    ];
    let stages = vec![
        Stage::new(&[1], vec![find]),
        Stage::new(&[], vec![Effect::store(1, Index::strided([c(1)]), at)]),
    ];
    let mut nest = over_rows(e, &buffers, [m, k], stages);
    nest.temps.clear();
    case("arg_max", dtype, &[m, k], nest, buffers)
}

/// Rows added to those of a table that indices name, in order; integers, as the table is
/// what a result holds before.
fn scatter_rows([count, rows, width]: [i64; 3]) -> Case {
    let mut e = Exprs::new();
    let id = e.load(0, DType::I32, Index::strided([c(1)])).unwrap();
    let row = Index::strided([c(width), c(1)]);
    let value = e.load(1, DType::I32, row).unwrap();
    let gathered = Gathered {
        index: id,
        stride: c(width),
        extent: c(rows),
    };
    let add = Effect::Store {
        arg: 2,
        index: Index {
            gathers: vec![gathered],
            ..Index::strided([c(0), c(1)])
        },
        value,
        update: Some(Reducer::Sum),
        when: None,
    };
    let buffers = vec![
        Buffer::dense("ids", DType::I32, &[count]),
        Buffer::dense("x", DType::I32, &[count, width]),
        Buffer::dense("out", DType::I32, &[rows, width]),
    ];
    let nest = LoopNest {
        outer: 2,
        temps: vec![],
        ..over_rows(
            e,
            &buffers,
            [count, width],
            vec![Stage::new(&[], vec![add])],
        )
    };
    let shape = [count, rows, width];
    case("scatter_rows", DType::I32, &shape, nest, buffers)
}

/// Sums of each element and those before it in its row.
fn cumulate(dtype: DType, [m, k]: [i64; 2]) -> Case {
    let mut e = Exprs::new();
    let index = Index::strided([c(k), c(1)]);
    let x = e.load(0, dtype, index.clone()).unwrap();
    let x = e.cast(F, x).unwrap();
    let sum = e.acc(0, F).unwrap();
    let scan = Effect::Scan {
        acc: 0,
        by: Reducer::Sum,
        value: x,
        exclusive: false,
    };
    let buffers = vec![
        Buffer::dense("x", dtype, &[m, k]),
        Buffer::dense("out", F, &[m, k]),
    ];
    let store = Effect::store(1, index, sum);
    let stages = vec![Stage::new(&[1], vec![scan, store])];
    let mut nest = over_rows(e, &buffers, [m, k], stages);
    nest.temps.clear();
    case("cumulate", dtype, &[m, k], nest, buffers)
}

/// The places of the `k` best of `[outer, n, inner]` along `n`: a block for each lane, or
/// several launches.
fn select(dtype: DType, [outer, n, inner, k]: [i64; 4], largest: bool) -> Case {
    let buffers = vec![
        Buffer::dense("x", dtype, &[outer, n, inner]),
        Buffer::dense("taken", dtype, &[outer, k, inner]),
        Buffer::dense("out", DType::I64, &[outer, k, inner]),
    ];
    let name = format!("select_{dtype}_{outer}x{n}x{inner}_{k}");
    let op = json!({"kind": "select", "k": k, "largest": largest});
    let params = vec![outer, n, inner, k];
    let spec = SortSpec { dtype, largest };
    Case::new((name, "selection"), op, spec, buffers, params)
}

/// Nests to check, then those to time.
pub fn cases() -> Vec<Case> {
    use DType::{BF16, F16, F32, I8};
    let mut cases = vec![];
    for dtype in [F32, BF16, F16] {
        for shape in [[7, 83], [3, 1030]] {
            cases.extend([
                softmax(dtype, shape),
                layer_norm(dtype, shape),
                rms_norm(dtype, shape),
            ]);
        }
        cases.extend([
            add(dtype, 1003),
            gelu(dtype, 1003),
            copy(dtype, 4096),
            transpose(dtype, [37, 45]),
            sum(dtype, [5, 300], false),
            sum(dtype, [70, 33], true),
            sum(dtype, [3, 70001], false),
            sum(dtype, [70, 1500], true),
            plain_softmax(dtype, [2, 66000]),
            arg_max(dtype, [3, 70001]),
            cumulate(dtype, [3, 2047]),
            cumulate(dtype, [2, 66000]),
            select(dtype, [3, 1000, 2, 9], true),
            select(dtype, [2, 5000, 1, 300], false),
        ]);
    }
    cases.extend([
        add(I8, 777),
        copy(I8, 1003),
        transpose(I8, [37, 45]),
        sum(I8, [5, 300], false),
        quantize(1003),
        select(I8, [2, 2048, 3, 2048], true),
        select(I8, [1, 9000, 2, 500], false),
        scatter_rows([300, 40, 70]),
        scatter_rows([5000, 40, 1]),
    ]);
    let large = 1 << 26;
    for dtype in [F32, BF16] {
        for shape in [[8192, 4096], [32, 1024]] {
            cases.push(softmax(dtype, shape).timed(0));
            cases.push(layer_norm(dtype, shape).timed(0));
        }
        cases.push(sum(dtype, [1, 10_000_000], false).timed(0));
        cases.push(sum(dtype, [4096, 32768], true).timed(0));
        cases.push(plain_softmax(dtype, [1, 250_000]).timed(0));
        cases.push(cumulate(dtype, [1, 10_000_000]).timed(0));
        cases.push(add(dtype, large).timed(0));
        cases.push(gelu(dtype, large).timed(0));
    }
    cases.push(copy(F32, large).timed(0));
    cases
}
