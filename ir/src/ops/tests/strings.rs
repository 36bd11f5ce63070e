//! What ops make of strings, and which refuse them.

use super::*;
use crate::ops::elementwise::{Binary, BitCast, Cast, Compare, Unary};
use crate::ops::index::{NonZero, ScatterElements, ScatterFn, ScatterNd};
use crate::ops::reduce::{Cumulate, Reduce, TopK};
use crate::ops::source::Iota;
use crate::ops::strings::{StringFn, StringMap, StringSplit};
use crate::{BinaryFn, CompareFn, ReduceFn, UnaryFn};

fn strings(shape: &[usize], all: &[&str]) -> Tensor {
    Tensor::strings(shape, all.iter().map(|s| s.to_string()).collect()).unwrap()
}

#[test]
fn arithmetic_and_order_refuse_strings() {
    let x = || ty(DType::Str, &["B"]);
    let (f, axis) = (ReduceFn::Max, 0);
    let refused: Vec<(Op, usize)> = vec![
        (Compare { f: CompareFn::Lt }.into(), 2),
        (Binary { f: BinaryFn::Add }.into(), 2),
        (Unary { f: UnaryFn::Neg }.into(), 1),
        (Cast { to: DType::F32 }.into(), 1),
        (BitCast { to: DType::I64 }.into(), 1),
        (NonZero { symbol: "n".into() }.into(), 1),
        (
            Reduce {
                f,
                axes: vec![0],
                keep: false,
            }
            .into(),
            1,
        ),
        (
            Cumulate {
                f,
                axis,
                exclusive: false,
                reverse: false,
            }
            .into(),
            1,
        ),
        (
            TopK {
                axis,
                k: 1.into(),
                largest: true,
            }
            .into(),
            1,
        ),
        (
            StringMap {
                f: StringFn::Format,
            }
            .into(),
            1,
        ),
    ];
    for (op, arguments) in refused {
        let message = refuses(op.clone(), &vec![x(); arguments]);
        assert!(message.contains("str"), "{op:?}: {message}");
    }
    let i64_1 = ty(DType::I64, &["1"]);
    let f = ScatterFn::Max;
    refuses(
        ScatterElements { axis, f },
        &[x(), i64_1.clone(), ty(DType::Str, &["1"])],
    );
    refuses(ScatterNd { f }, &[x(), i64_1, ty(DType::Str, &[])]);
    refuses(BitCast { to: DType::Str }, &[ty(DType::I64, &["B"])]);
    refuses(Cast { to: DType::Str }, &[ty(DType::I64, &["B"])]);
    refuses(
        Iota {
            shape: vec![2.into()],
            axis,
            dtype: DType::Str,
        },
        &[],
    );
}

#[test]
fn ops_on_strings_refuse_what_they_cannot_do() {
    let text = ty(DType::Str, &["B"]);
    let one = |f, of: DType| refuses(StringMap { f }, &[ty(of, &["B"])]);
    let letters = crate::strings::Letters::Ascii;
    assert!(one(StringFn::Lower(letters), DType::F32).contains("does not take f32"));
    assert!(one(StringFn::Format, DType::I4).contains("does not take i4"));
    assert!(one(StringFn::Format, DType::C64).contains("does not take c64"));
    assert!(one(StringFn::Parse(DType::C64), DType::Str).contains("not read as c64"));
    assert!(one(StringFn::Parse(DType::Str), DType::Str).contains("not read as str"));
    let bad = StringFn::FullMatch("(".into());
    assert!(one(bad, DType::Str).contains("the expression `(` is not valid"));
    let pair = [ty(DType::Str, &["2"]), ty(DType::Str, &["3"])];
    assert!(
        refuses(
            StringMap {
                f: StringFn::Concat
            },
            &pair
        )
        .contains("joined one by one")
    );
    let (f, rank2) = (StringFn::Concat, ty(DType::Str, &["B", "1"]));
    assert!(refuses(StringMap { f }, &[text, rank2]).contains("differ in rank"));
    let split = StringSplit {
        delimiter: ",".into(),
        most: None,
        symbol: "n".into(),
    };
    assert!(refuses(split, &[ty(DType::I64, &["B"])]).contains("takes strings"));
}

#[test]
fn zero_among_strings_is_the_empty_one() {
    let empty = strings(&[], &[""]);
    assert_eq!(Tensor::scalar_f64(DType::Str, 0.0), empty);
    assert_eq!(Tensor::scalar_i64(DType::Str, 7), empty);
    assert!(
        Tensor::new(DType::Str, [1], vec![0; 8]).is_err(),
        "strings are no bytes"
    );
}

#[test]
fn a_concatenation_has_a_limit() {
    let half = "x".repeat(crate::strings::MOST_BYTES / 2 + 1);
    let x = strings(&[1], &[&half]);
    let made = run(
        StringMap {
            f: StringFn::Concat,
        },
        &[&x, &x],
    );
    assert!(made.unwrap_err().contains("element 0: a string of"));
}
