use super::*;
use crate::ops::control::*;
use std::slice::from_ref;

/// Infers over regions of these types.
fn infer_over(
    op: impl Into<Op>,
    args: &[TensorType],
    regions: Vec<(Vec<TensorType>, Vec<TensorType>)>,
) -> Result<Vec<String>, String> {
    let globals = Globals::new();
    let callee = |name: &str| {
        (name == "f").then(|| Signature {
            params: vec![],
            results: vec![ty(DType::F32, &["2"])],
        })
    };
    let mut cx = InferCx {
        globals: &globals,
        regions,
        callee: &callee,
        guards: vec![],
    };
    let views: Vec<Arg> = args.iter().map(|ty| Arg { ty, known: None }).collect();
    let inferred = op.into().def().infer(&mut cx, &views).map_err(|e| e.0)?;
    Ok(inferred.iter().map(|i| i.ty.to_string()).collect())
}

#[test]
fn branches_join() {
    let cond = ty(DType::Bool, &[]);
    let regions = |a: &[&str], b: &[&str]| {
        vec![
            (vec![], vec![ty(DType::F32, a)]),
            (vec![], vec![ty(DType::F32, b)]),
        ]
    };
    let plain = If::default();
    let same = infer_over(
        plain.clone(),
        from_ref(&cond),
        regions(&["n", "2"], &["n", "2"]),
    );
    assert_eq!(same.unwrap(), ["f32[n, 2]"]);
    let differ = infer_over(plain, from_ref(&cond), regions(&["n", "2"], &["m", "2"]));
    assert!(differ.unwrap_err().contains("`sizes`"));
    let named = If {
        sizes: vec![MintedSize {
            result: 0,
            axis: 0,
            symbol: "k".into(),
        }],
    };
    let joined = infer_over(named.clone(), &[cond], regions(&["n", "2"], &["m", "2"]));
    assert_eq!(joined.unwrap(), ["f32[k, 2]"]);
    let attrs = Op::from(named.clone()).def().attrs();
    assert_eq!(Op::parse("if", &attrs), Ok(named.into()));
}

#[test]
fn the_branch_taken_gives_sizes_their_values() {
    let binding = RefCell::new(Binding::new());
    let region = |i: usize, _: &[Tensor]| Ok(vec![f32s(&[i + 3], &vec![0.0; i + 3])]);
    let cx = EvalCx {
        region: &region,
        ..EvalCx::pure(&binding)
    };
    let op = If {
        sizes: vec![MintedSize {
            result: 0,
            axis: 0,
            symbol: "k".into(),
        }],
    };
    let no = Tensor::scalar_i64(DType::Bool, 0);
    assert_eq!(op.eval(&cx, &[&no]).unwrap()[0].shape(), [4]);
    assert_eq!(binding.borrow()["k"], 4);
}

fn a_loop(symbol: Option<&str>) -> Loop {
    Loop {
        carried: 1,
        symbol: symbol.map(Into::into),
        sizes: vec![],
    }
}

/// Doubles what it carries until it exceeds 20; scans the square of the step.
fn doubling(_: usize, args: &[Tensor]) -> Outcome {
    let (i, x) = (args[0].get_i64(0), 2.0 * args[1].get_f64(0));
    Ok(vec![
        Tensor::scalar_i64(DType::Bool, (x <= 20.0) as i64),
        Tensor::scalar_f64(DType::F32, x),
        Tensor::scalar_i64(DType::I64, i * i),
    ])
}

fn doubling_results(_: usize) -> Vec<TensorType> {
    vec![
        ty(DType::Bool, &[]),
        ty(DType::F32, &[]),
        ty(DType::I64, &[]),
    ]
}

fn run_loop(op: Loop, trip: i64, start: bool) -> Result<(Vec<Tensor>, Binding), EvalError> {
    let binding = RefCell::new(Binding::new());
    let cx = EvalCx {
        region: &doubling,
        region_results: &doubling_results,
        ..EvalCx::pure(&binding)
    };
    let args = [
        Tensor::scalar_i64(DType::I64, trip),
        Tensor::scalar_i64(DType::Bool, start as i64),
        Tensor::scalar_f64(DType::F32, 3.0),
    ];
    let out = op.eval(&cx, &args.iter().collect::<Vec<_>>())?;
    Ok((out, binding.into_inner()))
}

#[test]
fn a_loop_runs_to_its_trip_count_or_condition() {
    let (out, binding) = run_loop(a_loop(Some("n")), 2, true).unwrap();
    assert_eq!((out[0].to_f64(), out[1].to_i64()), (vec![12.0], vec![0, 1]));
    assert_eq!(binding["n"], 2);
    // 3, 6, 12, 24: the third step ends it, with or without a limit.
    for trip in [-1, 100] {
        let (out, binding) = run_loop(a_loop(Some("n")), trip, true).unwrap();
        assert_eq!(
            (out[0].to_f64(), out[1].to_i64()),
            (vec![24.0], vec![0, 1, 4])
        );
        assert_eq!(binding["n"], 3);
    }
    let (out, binding) = run_loop(a_loop(Some("n")), 5, false).unwrap();
    assert_eq!((out[0].to_f64(), out[1].shape()), (vec![3.0], &[0][..]));
    assert_eq!((out[1].dtype(), binding["n"]), (DType::I64, 0));
    assert!(
        run_loop(a_loop(None), 5, true)
            .unwrap_err()
            .0
            .contains("3 of 5 steps")
    );
    assert!(run_loop(a_loop(None), 2, true).is_ok());
}

#[test]
fn loops_type() {
    let (trip, cond) = (ty(DType::I64, &[]), ty(DType::Bool, &[]));
    let x = |d: &str| ty(DType::F32, &[d]);
    let body = |param: TensorType, next: TensorType| {
        vec![(
            vec![trip.clone(), param],
            vec![cond.clone(), next, ty(DType::I64, &["3"])],
        )]
    };
    let args = [trip.clone(), cond.clone(), x("m")];
    let out = infer_over(a_loop(Some("n")), &args, body(x("m"), x("m"))).unwrap();
    assert_eq!(out, ["f32[m]", "i64[n, 3]"]);
    assert!(
        infer_over(a_loop(None), &args, body(x("m"), x("m")))
            .unwrap_err()
            .contains("trip count")
    );
    assert!(
        infer_over(a_loop(Some("n")), &args, body(x("m"), x("m + 1")))
            .unwrap_err()
            .contains("changes")
    );
    // A value that grows carries a name for its extent.
    let sizes = vec![MintedSize {
        result: 0,
        axis: 0,
        symbol: "len".into(),
    }];
    let grows = Loop {
        sizes,
        ..a_loop(Some("n"))
    };
    let out = infer_over(grows.clone(), &args, body(x("len"), x("len + 1"))).unwrap();
    assert_eq!(out, ["f32[len]", "i64[n, 3]"]);
    let attrs = Op::from(grows.clone()).def().attrs();
    assert_eq!(Op::parse("loop", &attrs), Ok(grows.into()));
}

#[test]
fn calls_and_groups_take_their_types_from_what_they_run() {
    let call = |f: &str| Call { function: f.into() };
    assert_eq!(infer_over(call("f"), &[], vec![]).unwrap(), ["f32[2]"]);
    assert!(
        infer_over(call("g"), &[], vec![])
            .unwrap_err()
            .contains("@g")
    );
    let x = ty(DType::F32, &["n"]);
    let region = vec![(vec![x.clone()], vec![ty(DType::F16, &["n"])])];
    assert_eq!(infer_over(Fused, &[x], region.clone()).unwrap(), ["f16[n]"]);
    assert!(
        infer_over(Fused, &[ty(DType::F32, &["m"])], region)
            .unwrap_err()
            .contains("takes")
    );
}
