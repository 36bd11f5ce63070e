//! Numbers as text, both ways.

use crate::tensor::{Encoder, read_f64, read_i64};
use crate::{DType, Kind};

/// Digits that a float is written with.
const DIGITS: usize = 8;

/// Element `i` of packed `bytes` as text, as ONNX Runtime writes it: floats with eight
/// significant digits (C's `%.8g`), `NaN`, `INF` and `-INF`, truths as 1 and 0.
pub fn format_number(dtype: DType, bytes: &[u8], i: usize) -> String {
    match dtype.kind() {
        Kind::Float => format_float(read_f64(dtype, bytes, i)),
        Kind::Uint => (read_i64(dtype, bytes, i) as u64).to_string(),
        Kind::Int | Kind::Bool => read_i64(dtype, bytes, i).to_string(),
        // The op's types exclude them.
        Kind::Complex | Kind::Str => String::new(),
    }
}

fn format_float(v: f64) -> String {
    if v.is_nan() {
        return "NaN".into();
    }
    if v.is_infinite() {
        return if v > 0.0 { "INF" } else { "-INF" }.into();
    }
    let scientific = format!("{v:.*e}", DIGITS - 1);
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let bare = |s: &str| match s.contains('.') {
        true => s.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => s.to_string(),
    };
    if (-4..DIGITS as i32).contains(&exponent) {
        let places = usize::try_from(DIGITS as i32 - 1 - exponent).unwrap_or(0);
        return bare(&format!("{v:.places$}"));
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", bare(digits), exponent.unsigned_abs())
}

/// Reads a number of this type and appends it. White space round it is skipped;
/// `INF`, `Infinity` and `NaN` are known in any case; a fraction is cut off for
/// integers; a number is true where it is not zero. What is no number, or no number of
/// the type, is an error that says which of the two.
pub fn parse_number(s: &str, to: DType, out: &mut Encoder) -> Result<(), String> {
    let text = s.trim();
    let float = text.parse::<f64>();
    if to.kind() == Kind::Float {
        let v = float.map_err(|_| "no number".to_string())?;
        out.push_f64(v);
        return Ok(());
    }
    let whole = match text.parse::<i128>() {
        Ok(n) => n,
        // A cast of what is beyond i128 gives its ends, which are out of range too.
        Err(_) => match float {
            Ok(v) if to == DType::Bool && !v.is_nan() => i128::from(v != 0.0),
            Ok(v) if !v.is_nan() => v.trunc() as i128,
            Ok(_) => return Err(format!("no number of {to}")),
            Err(_) => return Err("no number".into()),
        },
    };
    let bits = to.bits() as u32;
    let (least, greatest) = match to.kind() {
        Kind::Bool => (i128::MIN, i128::MAX),
        Kind::Uint => (0, (1i128 << bits) - 1),
        _ => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
    };
    if !(least..=greatest).contains(&whole) {
        return Err(format!("no number of {to}"));
    }
    match to {
        DType::Bool => out.push_i64(i64::from(whole != 0)),
        _ => out.push_i64(whole as i64),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;

    fn written(dtype: DType, values: &[f64]) -> Vec<String> {
        let t = Tensor::from_f64(dtype, [values.len()], values).unwrap();
        (0..values.len())
            .map(|i| format_number(dtype, t.bytes(), i))
            .collect()
    }

    /// From ONNX Runtime 1.32.
    #[test]
    fn floats_are_written_with_eight_digits() {
        let values = [
            0.1,
            1.0,
            1e8,
            1e-5,
            1.0 / 3.0,
            -0.0,
            f64::NAN,
            f64::INFINITY,
            -f64::INFINITY,
            123456.789,
            1e20,
            16777216.0,
            3.4e38,
            1e-40,
            0.0001,
            12345678.0,
            0.00001234,
        ];
        let want = [
            "0.1",
            "1",
            "1e+08",
            "9.9999997e-06",
            "0.33333334",
            "-0",
            "NaN",
            "INF",
            "-INF",
            "123456.79",
            "1e+20",
            "16777216",
            "3.4e+38",
            "9.9999461e-41",
            "9.9999997e-05",
            "12345678",
            "1.234e-05",
        ];
        assert_eq!(written(DType::F32, &values), want);
        assert_eq!(
            written(DType::F64, &[1.0 / 3.0, 1e16, 123456.789]),
            ["0.33333333", "1e+16", "123456.79"]
        );
        assert_eq!(
            written(DType::F16, &[0.1, 65504.0]),
            ["0.099975586", "65504"]
        );
        assert_eq!(written(DType::Bool, &[1.0, 0.0]), ["1", "0"]);
        assert_eq!(written(DType::I8, &[-128.0]), ["-128"]);
        let most = Tensor::new(DType::U64, [1], vec![255; 8]).unwrap();
        assert_eq!(
            format_number(DType::U64, most.bytes(), 0),
            "18446744073709551615"
        );
    }

    fn read(s: &str, to: DType) -> Result<f64, String> {
        let mut out = Encoder::new(to, 1);
        parse_number(s, to, &mut out)?;
        Ok(Tensor::new(to, [1], out.finish()).unwrap().get_f64(0))
    }

    #[test]
    fn numbers_are_read_or_refused() {
        for (s, v) in [
            ("1", 1.0),
            (" -2.5 ", -2.5),
            ("1E8", 1e8),
            ("+inf", f64::INFINITY),
            (".5", 0.5),
        ] {
            assert_eq!(read(s, DType::F32), Ok(v), "{s}");
        }
        assert!(read("nAn", DType::F64).unwrap().is_nan());
        for (s, v) in [("7", 7.0), ("100.5", 100.0), ("-1.9", -1.0), ("1e2", 100.0)] {
            assert_eq!(read(s, DType::I8), Ok(v), "{s}");
        }
        assert_eq!(
            read("18446744073709551615", DType::U64),
            Ok(18446744073709551615.0)
        );
        assert_eq!(read("0.5", DType::Bool), Ok(1.0));
        assert_eq!(read("0", DType::Bool), Ok(0.0));
        for (s, to) in [
            ("128", DType::I8),
            ("-1", DType::U8),
            ("inf", DType::I64),
            ("nan", DType::Bool),
            ("1e400", DType::I32),
        ] {
            assert_eq!(read(s, to), Err(format!("no number of {to}")), "{s}");
        }
        for s in ["", "abc", "1abc", "0x10", "1_0", "1 2"] {
            assert_eq!(read(s, DType::F32), Err("no number".into()), "{s}");
            assert_eq!(read(s, DType::I64), Err("no number".into()), "{s}");
        }
    }
}
