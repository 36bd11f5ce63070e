//! Operators that draw random numbers: what is drawn is not compared, but how it is
//! spread, and that it is the same every time.

use crate::support::*;
use kiln_import::import_onnx;
use kiln_ir::{DType, Tensor};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, GraphProto, NodeProto};

const N: i64 = 40_000;

fn float(node: &mut NodeProto, name: &str, v: f32) {
    node.attribute.push(AttributeProto {
        name: name.into(),
        f: v,
        type_: AttributeType::FLOAT.into(),
        ..Default::default()
    });
}

fn int(node: &mut NodeProto, name: &str, v: i64) {
    node.attribute.push(AttributeProto {
        name: name.into(),
        i: v,
        type_: AttributeType::INT.into(),
        ..Default::default()
    });
}

/// What one node over `x` gives, its first result called `y`.
fn drawn(test: &str, node: NodeProto, x: &Tensor) -> Vec<Tensor> {
    let shape: Vec<i64> = x.shape().iter().map(|&d| d as i64).collect();
    let output = node.output.iter().map(|o| value(o, 0, &[])).collect();
    let graph = GraphProto {
        name: test.into(),
        node: vec![node],
        input: vec![value("x", 1, &shape)],
        output,
        ..Default::default()
    };
    let path = write(test, &model(graph));
    let imported = import_onnx(&path, &options()).unwrap();
    let once = run(&imported.module, std::slice::from_ref(x)).unwrap();
    let again = run(&imported.module, std::slice::from_ref(x)).unwrap();
    let same = once
        .iter()
        .zip(&again)
        .all(|(a, b)| a.to_f64() == b.to_f64());
    assert!(same, "two runs draw the same numbers");
    once
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::from_f32(shape, &vec![0.0; shape.iter().product()]).unwrap()
}

/// Mean and deviation.
fn moments(v: &[f64]) -> (f64, f64) {
    let mean = v.iter().sum::<f64>() / v.len() as f64;
    let square = v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64;
    (mean, square.sqrt())
}

fn near(got: f64, want: f64) {
    assert!((got - want).abs() < 0.03, "{got} is not near {want}");
}

#[test]
fn uniform_numbers_fill_their_range() {
    let mut n = node("RandomUniformLike", &["x"], &["y"]);
    float(&mut n, "low", -1.0);
    float(&mut n, "high", 3.0);
    let y = drawn("uniform", n.clone(), &zeros(&[N as usize]))[0].to_f64();
    assert!(y.iter().all(|v| (-1.0..3.0).contains(v)));
    let (mean, deviation) = moments(&y);
    near(mean, 1.0);
    near(deviation, 4.0 / 12f64.sqrt());
    float(&mut n, "seed", 5.0);
    let other = drawn("uniform-seed", n, &zeros(&[N as usize]))[0].to_f64();
    assert_ne!(y, other, "another seed draws others");
}

#[test]
fn normal_numbers_have_their_moments() {
    let mut n = node("RandomNormalLike", &["x"], &["y"]);
    float(&mut n, "mean", 2.0);
    float(&mut n, "scale", 0.5);
    let y = drawn("normal", n, &zeros(&[200, 200]))[0].to_f64();
    let (mean, deviation) = moments(&y);
    near(mean, 2.0);
    near(deviation, 0.5);
    let beyond = y.iter().filter(|v| (**v - 2.0).abs() > 1.0).count();
    near(beyond as f64 / y.len() as f64, 0.0455);
}

#[test]
fn bernoulli_draws_by_probability() {
    let x = Tensor::from_f32([3], &[0.0, 0.3, 1.0]).unwrap();
    let rows: Vec<f32> = (0..N as usize).flat_map(|_| x.to_f32()).collect();
    let x = Tensor::from_f32([N as usize, 3], &rows).unwrap();
    let y = &drawn("bernoulli", node("Bernoulli", &["x"], &["y"]), &x)[0];
    let share = |c: usize| (0..N as usize).map(|r| y.get_f64(3 * r + c)).sum::<f64>() / N as f64;
    assert_eq!((share(0), share(2)), (0.0, 1.0));
    near(share(1), 0.3);
}

#[test]
fn multinomial_draws_by_log_probability() {
    let logs: Vec<f32> = [0.1f32, 0.6, 0.3].iter().map(|p| p.ln() + 2.0).collect();
    let x = Tensor::from_f32([1, 3], &logs).unwrap();
    let mut n = node("Multinomial", &["x"], &["y"]);
    int(&mut n, "sample_size", N);
    int(&mut n, "dtype", 7);
    let y = &drawn("multinomial", n, &x)[0];
    assert_eq!((y.dtype(), y.shape()), (DType::I64, &[1, N as usize][..]));
    let y = y.to_i64();
    for (class, want) in [(0, 0.1), (1, 0.6), (2, 0.3)] {
        near(
            y.iter().filter(|&&v| v == class).count() as f64 / N as f64,
            want,
        );
    }
}

#[test]
fn dropout_in_training_keeps_the_mean() {
    let x = Tensor::from_f32([N as usize], &vec![1.0; N as usize]).unwrap();
    let shape = [N];
    let graph = GraphProto {
        name: "dropout".into(),
        node: vec![node("Dropout", &["x", "ratio", "training"], &["y", "mask"])],
        input: vec![value("x", 1, &shape)],
        output: vec![value("y", 0, &[]), value("mask", 0, &[])],
        initializer: vec![
            floats("ratio", &[], &[0.25]),
            onnx_protobuf::TensorProto {
                name: "training".into(),
                data_type: 9,
                raw_data: vec![1],
                ..Default::default()
            },
        ],
        ..Default::default()
    };
    let imported = import_onnx(&write("dropout", &model(graph)), &options()).unwrap();
    let out = run(&imported.module, &[x]).unwrap();
    let (y, mask) = (out[0].to_f64(), out[1].to_f64());
    let factor = f64::from(1.0f32 / 0.75);
    for (y, kept) in y.iter().zip(&mask) {
        assert!(
            (y - kept * factor).abs() < 1e-6,
            "{y} where the mask is {kept}"
        );
    }
    near(mask.iter().sum::<f64>() / N as f64, 0.75);
}
