//! Scalar functions against the interpreter's f64 meaning, over dense sweeps.

use crate::support::{load, targets};
use kiln_ir::{BinaryFn, DType, UnaryFn};
use kiln_kernels::*;

fn map(t: DType, arity: usize, f: impl Fn(&mut Exprs, &[ExprId]) -> ExprId) -> KernelSpec {
    let mut e = Exprs::new();
    let index = Index::strided([Size::ONE]);
    let xs: Vec<ExprId> = (0..arity)
        .map(|i| e.load(i as u16, t, index.clone()).unwrap())
        .collect();
    let value = f(&mut e, &xs);
    let mut args = vec![t; arity];
    args.push(e.dtype(value));
    KernelSpec::Nest(LoopNest {
        exprs: e,
        args,
        params: 1,
        axes: vec![Size::Param(0)],
        outer: 1,
        temps: vec![],
        stages: vec![Stage {
            axes: vec![],
            effects: vec![Effect::Store {
                arg: arity as u16,
                index,
                value,
                update: None,
                when: None,
            }],
        }],
    })
}

/// Every magnitude of f32, with the values around which formulas change.
fn sweep() -> Vec<f32> {
    let mut v: Vec<f32> = (0..1u64 << 17)
        .map(|i| f32::from_bits((i << 15) as u32 ^ 0x2a5))
        .collect();
    for i in -40_000..40_000 {
        v.push(i as f32 * 0.0025 + 1e-4);
        v.push(1.0 + i as f32 * 1e-7);
    }
    v.extend([
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -0.5,
        0.55,
        0.9277344,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MIN_POSITIVE,
        1e-45,
        -1e-45,
        f32::MAX,
        f32::MIN,
        88.72284,
        88.7229,
        -87.33655,
        -103.97,
        -104.0,
        1e5,
        99999.9,
        2.5,
        3.5,
        -2.5,
    ]);
    v
}

/// Distance in units of the expected value's last place.
fn ulp32(got: f32, want: f64) -> f64 {
    let rounded = want as f32;
    if got == rounded || (got.is_nan() && rounded.is_nan()) {
        return 0.0;
    }
    if !got.is_finite() || !rounded.is_finite() {
        // Overflow on either side of the last finite number.
        let edge =
            got.abs() >= f32::MAX && rounded.abs() >= f32::MAX && (got > 0.0) == (rounded > 0.0);
        return if edge { 1.0 } else { f64::INFINITY };
    }
    let exponent = (want.abs().log2().floor() as i32).clamp(-126, 127);
    (got as f64 - want).abs() / 2f64.powi(exponent - 23)
}

fn run<const N: usize, T: Copy>(
    spec: &KernelSpec,
    loaded: &crate::support::Loaded,
    name: &str,
    inputs: &[Vec<T>],
    to: impl Fn(T) -> [u8; N],
) -> Vec<u8> {
    let n = inputs[0].len();
    let mut buffers: Vec<Vec<u8>> = inputs
        .iter()
        .map(|v| v.iter().flat_map(|&x| to(x)).collect())
        .collect();
    buffers.push(vec![0; N * n]);
    assert_eq!(loaded.run(name, spec, &mut buffers, &[n as i64]), STATUS_OK);
    buffers.pop().unwrap()
}

const FLOAT_FNS: &[(UnaryFn, f64)] = &[
    (UnaryFn::Exp, 1.5),
    (UnaryFn::Log, 1.5),
    (UnaryFn::Erf, 1.5),
    (UnaryFn::Tanh, 2.0),
    (UnaryFn::Sigmoid, 2.5),
    (UnaryFn::Sqrt, 0.51),
    (UnaryFn::Rsqrt, 1.5),
    (UnaryFn::Recip, 0.51),
    (UnaryFn::Sin, 0.51),
    (UnaryFn::Cos, 0.51),
    (UnaryFn::Tan, 0.51),
    (UnaryFn::Asin, 0.51),
    (UnaryFn::Acos, 0.51),
    (UnaryFn::Atan, 0.51),
    (UnaryFn::Sinh, 0.51),
    (UnaryFn::Cosh, 0.51),
    (UnaryFn::Asinh, 0.51),
    (UnaryFn::Acosh, 0.51),
    (UnaryFn::Atanh, 0.51),
    (UnaryFn::Floor, 0.0),
    (UnaryFn::Ceil, 0.0),
    (UnaryFn::Round, 0.0),
    (UnaryFn::Sign, 0.0),
    (UnaryFn::Abs, 0.0),
    (UnaryFn::Neg, 0.0),
];

fn kernels(t: DType) -> Vec<(String, KernelSpec)> {
    FLOAT_FNS
        .iter()
        .map(|&(f, _)| {
            (
                f.name().to_string(),
                map(t, 1, |e, x| e.unary(f, x[0]).unwrap()),
            )
        })
        .collect()
}

/// The f64 value, where the interpreter's own loses digits by a better formula.
fn truth(f: UnaryFn, x: f64) -> f64 {
    match f {
        UnaryFn::Acosh if (1.0..1e100).contains(&x) => {
            ((x - 1.0) + ((x - 1.0) * (x + 1.0)).sqrt()).ln_1p()
        }
        _ => f.eval_f64(x),
    }
}

/// How far `normal_cdf` may be off: one and a half units below 1 anywhere, and the tail
/// down to 1e-8 by so much of itself.
const CDF: (f64, f64) = (9e-8, 3e-6);

#[test]
fn the_normal_distribution_is_near_everywhere_and_in_its_tail() {
    let f = UnaryFn::NormalCdf;
    let spec = |t| {
        vec![(
            "cdf".to_string(),
            map(t, 1, |e, x| e.unary(f, x[0]).unwrap()),
        )]
    };
    let dense = (-2000..2000).map(|i| i as f32 / 250.0);
    let narrow: Vec<f32> = sweep().into_iter().chain(dense).collect();
    let wide: Vec<f64> = narrow.iter().map(|&x| x as f64).collect();
    let off = |level: &str, x: f64, y: f64, (all, tail): (f64, f64)| {
        let want = f.eval_f64(x);
        let near = (y - want).abs() <= all && (0.0..=1.0).contains(&y);
        let in_tail = want < 1e-8 || (y - want).abs() <= tail * want;
        let same = (near && in_tail) || (y.is_nan() && want.is_nan());
        assert!(same, "normal_cdf({x}) = {y} on {level}, not {want}");
    };
    for target in targets() {
        let level = &target.name;
        let singles = spec(DType::F32);
        let loaded = load(&singles, &target);
        let inputs = std::slice::from_ref(&narrow);
        let out = run(&singles[0].1, &loaded, "cdf", inputs, f32::to_le_bytes);
        for (&x, y) in narrow.iter().zip(out.chunks_exact(4)) {
            let y = f32::from_le_bytes(y.try_into().unwrap());
            off(level, x as f64, y as f64, CDF);
        }
        let doubles = spec(DType::F64);
        let loaded = load(&doubles, &target);
        let inputs = std::slice::from_ref(&wide);
        let out = run(&doubles[0].1, &loaded, "cdf", inputs, f64::to_le_bytes);
        for (&x, y) in wide.iter().zip(out.chunks_exact(8)) {
            off(
                level,
                x,
                f64::from_le_bytes(y.try_into().unwrap()),
                (6e-16, 2e-13),
            );
        }
    }
}

fn is_periodic(f: UnaryFn) -> bool {
    matches!(f, UnaryFn::Sin | UnaryFn::Cos | UnaryFn::Tan)
}

#[test]
fn f32_functions_are_within_their_stated_ulps() {
    let specs = kernels(DType::F32);
    let inputs = sweep();
    let mut failures = vec![];
    for target in targets() {
        let loaded = load(&specs, &target);
        for ((name, spec), &(f, bound)) in specs.iter().zip(FLOAT_FNS) {
            let out = run(
                spec,
                &loaded,
                name,
                std::slice::from_ref(&inputs),
                f32::to_le_bytes,
            );
            let mut worst = (0.0, 0.0f32, 0.0f32, 0.0);
            for (x, y) in inputs.iter().zip(out.chunks_exact(4)) {
                let y = f32::from_le_bytes(y.try_into().unwrap());
                let want = f.eval_f64(*x as f64);
                // Angles beyond 2^50 are reduced with too few digits of π.
                if is_periodic(f) && x.abs() > 1e15 && x.is_finite() {
                    assert!(y.is_finite(), "{name}({x}) = {y}");
                    continue;
                }
                let ulp = ulp32(y, want);
                if ulp > worst.0 {
                    worst = (ulp, *x, y, want);
                }
            }
            if worst.0 > bound {
                failures.push(format!("{name} at {}: {worst:?}", target.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn f64_functions_are_within_a_hundredth_of_a_trillionth() {
    let specs = kernels(DType::F64);
    let mut inputs: Vec<f64> = sweep()
        .into_iter()
        .map(|x| x as f64 * 1.000000123)
        .collect();
    inputs.extend([
        0.1, 1e-300, -1e-310, 5e-324, 1e200, -1e200, 1e300, 708.0, 709.7, 710.0, -744.0,
    ]);
    let mut failures = vec![];
    for target in targets() {
        let loaded = load(&specs, &target);
        for ((name, spec), &(f, _)) in specs.iter().zip(FLOAT_FNS) {
            let out = run(
                spec,
                &loaded,
                name,
                std::slice::from_ref(&inputs),
                f64::to_le_bytes,
            );
            let mut worst = (0.0, 0.0, 0.0, 0.0);
            for (&x, y) in inputs.iter().zip(out.chunks_exact(8)) {
                let y = f64::from_le_bytes(y.try_into().unwrap());
                let want = truth(f, x);
                if is_periodic(f) && x.abs() > 1e9 && x.is_finite() {
                    continue;
                }
                let same = y == want || (y.is_nan() && want.is_nan());
                let error = if same {
                    0.0
                } else {
                    (y - want).abs() / want.abs().max(1e-290)
                };
                if error.is_nan() || error > worst.0 {
                    worst = (error, x, y, want);
                }
            }
            if worst.0.is_nan() || worst.0 > 1e-14 {
                failures.push(format!("{name} at {}: {worst:?}", target.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Pairs of interesting numbers, and random ones.
fn pairs() -> Vec<Vec<f32>> {
    let some = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        2.0,
        -2.0,
        3.0,
        -3.0,
        0.5,
        -0.5,
        1.5,
        10.0,
        -7.0,
        1e10,
        -1e-10,
        33.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        f32::MIN_POSITIVE,
        1e-42,
    ];
    let mut out = vec![vec![], vec![]];
    for a in some {
        for b in some {
            out[0].push(a);
            out[1].push(b);
        }
    }
    let mut rng = crate::support::Rng(9);
    for _ in 0..20_000 {
        let scale = 2f64.powi(rng.below(60) as i32 - 30);
        out[0].push((rng.unit() * scale) as f32);
        out[1].push((rng.unit() * 20.0) as f32);
    }
    out
}

#[test]
fn two_argument_functions_agree_in_every_corner() {
    let fns = [
        (BinaryFn::Pow, 0.51),
        (BinaryFn::Atan2, 0.51),
        (BinaryFn::Rem, 0.0),
        (BinaryFn::Mod, 0.51),
        (BinaryFn::Min, 0.0),
        (BinaryFn::Max, 0.0),
    ];
    let specs: Vec<(String, KernelSpec)> = fns
        .iter()
        .map(|&(f, _)| {
            (
                f.name().into(),
                map(DType::F32, 2, |e, x| e.binary(f, x[0], x[1]).unwrap()),
            )
        })
        .collect();
    let inputs = pairs();
    let mut failures = vec![];
    for target in targets() {
        let loaded = load(&specs, &target);
        for ((name, spec), &(f, bound)) in specs.iter().zip(&fns) {
            let out = run(spec, &loaded, name, &inputs, f32::to_le_bytes);
            for (i, y) in out.chunks_exact(4).enumerate() {
                let (a, b) = (inputs[0][i], inputs[1][i]);
                let y = f32::from_le_bytes(y.try_into().unwrap());
                let want = f.eval_f64(a as f64, b as f64);
                if ulp32(y, want) > bound {
                    failures.push(format!("{name}({a}, {b}) = {y}, not {want}"));
                }
            }
        }
    }
    failures.truncate(30);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn powers_with_known_exponents_agree_in_every_corner() {
    // With the bounds that follow from the roundings of each.
    let exponents = [(1.0, 0.0), (2.0, 0.5), (3.0, 2.0), (-1.0, 0.5), (0.75, 3.5)];
    let specs: Vec<(String, KernelSpec)> = (exponents.iter().enumerate())
        .map(|(i, &(n, _))| {
            let power = map(DType::F32, 1, |e, x| {
                let n = e.f32(n);
                e.binary(BinaryFn::Pow, x[0], n).unwrap()
            });
            (format!("power_{i}"), power)
        })
        .collect();
    let inputs = pairs();
    for target in targets() {
        let loaded = load(&specs, &target);
        for ((name, spec), (n, bound)) in specs.iter().zip(exponents) {
            let out = run(spec, &loaded, name, &inputs[..1], f32::to_le_bytes);
            for (i, y) in out.chunks_exact(4).enumerate() {
                let x = inputs[0][i];
                let y = f32::from_le_bytes(y.try_into().unwrap());
                let want = BinaryFn::Pow.eval_f64(x as f64, n as f64);
                assert!(ulp32(y, want) <= bound, "{x}^{n} = {y}, not {want}");
            }
        }
    }
}

#[test]
fn integer_powers_and_shifts_wrap() {
    for t in [DType::I32, DType::I64, DType::U8] {
        let specs: Vec<(String, KernelSpec)> = [BinaryFn::Pow, BinaryFn::Shl, BinaryFn::Shr]
            .iter()
            .map(|&f| {
                (
                    f.name().to_string(),
                    map(t, 2, |e, x| e.binary(f, x[0], x[1]).unwrap()),
                )
            })
            .collect();
        let (mut a, mut b) = (vec![], vec![]);
        for x in [0i64, 1, 2, 3, 7, 15, 100, 200, -1, -2, -7] {
            for y in [0i64, 1, 2, 3, 5, 7, -1, -2] {
                if t != DType::U8 || (x >= 0 && y >= 0) {
                    a.push(x);
                    b.push(y);
                }
            }
        }
        let encode = |v: &[i64]| {
            kiln_ir::Tensor::from_i64(t, [v.len()], v)
                .unwrap()
                .bytes()
                .to_vec()
        };
        for target in targets() {
            let loaded = load(&specs, &target);
            for (name, spec) in &specs {
                let KernelSpec::Nest(nest) = spec else {
                    unreachable!()
                };
                let out = vec![0; a.len() * t.size().unwrap()];
                let mut got = vec![encode(&a), encode(&b), out];
                let mut want = got.clone();
                let params = [a.len() as i64];
                assert_eq!(loaded.run(name, spec, &mut got, &params), STATUS_OK);
                reference::run(nest, &mut want, &params).unwrap();
                assert_eq!(got[2], want[2], "{name} on {t}");
            }
        }
    }
}

/// What a quantize op ends in, over the sweep and around every tie.
#[test]
fn rounding_to_bytes_saturates() {
    let mut values = sweep();
    values.extend((-600..600).flat_map(|i| {
        let tie = i as f32 / 2.0;
        [tie, tie.next_up(), tie.next_down()]
    }));
    let cases = [
        (DType::U8, 0.0),
        (DType::U8, 131.0),
        (DType::U8, 255.0),
        (DType::I8, 0.0),
        (DType::I8, -128.0),
        (DType::I8, 5.0),
        // No zero point: the sum is rounded again.
        (DType::U8, 0.25),
        (DType::I8, 3e4),
    ];
    let specs: Vec<(String, KernelSpec)> = (0..)
        .zip(&cases)
        .map(|(i, &(to, zero))| {
            let spec = map(DType::F32, 1, |e, x| {
                let y = e.unary(UnaryFn::Round, x[0]).unwrap();
                let z = e.f32(zero);
                let y = e.binary(BinaryFn::Add, y, z).unwrap();
                e.cast(to, y).unwrap()
            });
            (format!("quantize{i}"), spec)
        })
        .collect();
    // Read as numbers again.
    let wide: Vec<(String, KernelSpec)> = (0..)
        .zip(&cases)
        .map(|(i, &(to, zero))| {
            let spec = map(DType::F32, 1, |e, x| {
                let y = e.unary(UnaryFn::Round, x[0]).unwrap();
                let z = e.f32(zero);
                let y = e.binary(BinaryFn::Add, y, z).unwrap();
                let byte = e.cast(to, y).unwrap();
                e.cast(DType::I32, byte).unwrap()
            });
            (format!("again{i}"), spec)
        })
        .collect();
    for target in targets() {
        let loaded = load(&[&specs[..], &wide].concat(), &target);
        for (i, &(to, zero)) in cases.iter().enumerate() {
            let n = values.len() as i64;
            let run = |(name, spec): &(String, KernelSpec), size: usize| {
                let mut buffers = vec![values.iter().flat_map(|x| x.to_le_bytes()).collect()];
                buffers.push(vec![0; size * values.len()]);
                assert_eq!(loaded.run(name, spec, &mut buffers, &[n]), STATUS_OK);
                buffers.pop().unwrap()
            };
            let (bytes, again) = (run(&specs[i], 1), run(&wide[i], 4));
            let again = crate::support::numbers(DType::I32, &again);
            assert_eq!(crate::support::numbers(to, &bytes), again);
            for (&x, &got) in values.iter().zip(&bytes) {
                let y = x.round_ties_even() + zero;
                let want = match to {
                    DType::U8 => y as u8,
                    _ => y as i8 as u8,
                };
                assert_eq!(got, want, "{}: {x} + {zero} to {to}", target.name);
            }
        }
    }
}
