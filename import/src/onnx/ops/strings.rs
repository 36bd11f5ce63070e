//! Operators on strings. What moves or compares them is not here: it takes strings as
//! it takes numbers.

use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::index::NonZero;
use kiln_ir::ops::strings::{StringFn, StringMap, StringSplit};
use kiln_ir::strings::{Letters, Pattern};
use kiln_ir::{CompareFn, DType, Dim, Kind, ReduceFn, Tensor, UnaryFn};

type One = Result<Value, Fail>;

fn map(cx: &mut Cx, f: StringFn, args: &[Value]) -> One {
    Ok(cx.b.one(StringMap { f }, args)?)
}

/// Argument `i`, which must be of strings.
fn strings(cx: &Cx, i: usize) -> One {
    let x = cx.arg(i)?;
    match cx.dtype(x) {
        DType::Str => Ok(x),
        other => Err(Fail::invalid(format!(
            "argument {i} is of {other}, not of strings"
        ))),
    }
}

/// A vector of strings as a constant.
pub(crate) fn vector(cx: &mut Cx, all: &[String]) -> One {
    let t = Tensor::strings([all.len()], all.to_vec());
    Ok(cx
        .b
        .constant(t.map_err(|e| Fail::invalid(e.to_string()))?)?)
}

/// Numbers to strings, or strings to numbers: floats as ONNX Runtime writes them.
pub(crate) fn cast(cx: &mut Cx, x: Value, to: DType) -> One {
    let from = cx.dtype(x);
    if from == to {
        return Ok(x);
    }
    let other = if to == DType::Str { from } else { to };
    let whole = other.size().is_some();
    // Small elements have a type between.
    let near = match other.kind() {
        Kind::Float if whole && other.bits() > 8 => other,
        Kind::Float => DType::F32,
        Kind::Int | Kind::Uint | Kind::Bool if whole => other,
        Kind::Int => DType::I8,
        Kind::Uint => DType::U8,
        Kind::Bool | Kind::Complex | Kind::Str => {
            return Err(Fail::form(format!("{from} is not cast to {to}")));
        }
    };
    if to == DType::Str {
        let x = cx.b.cast(x, near)?;
        return map(cx, StringFn::Format, &[x]);
    }
    let x = map(cx, StringFn::Parse(near), &[x])?;
    super::elementwise::cast_value(cx, x, to)
}

/// Strings one after the other, broadcast to each other first.
pub(crate) fn concat(cx: &mut Cx) -> Out {
    let (a, b) = (strings(cx, 0)?, strings(cx, 1)?);
    let met = cx.meet(&[a, b])?;
    let (a, b) = (met[0], met[1]);
    let shape = cx.broadcast(&[cx.shape(a), cx.shape(b)]);
    let a = cx.b.broadcast_to(a, &shape)?;
    let b = cx.b.broadcast_to(b, &shape)?;
    Ok(vec![map(cx, StringFn::Concat, &[a, b])?])
}

pub(crate) fn regex_full_match(cx: &mut Cx) -> Out {
    let x = strings(cx, 0)?;
    let pattern = cx.text("pattern", "")?.to_string();
    Pattern::new(&pattern).map_err(|e| {
        Fail::form(format!("the expression `{pattern}` is not valid: {e}"))
            .help("write it in RE2's syntax")
    })?;
    Ok(vec![map(cx, StringFn::FullMatch(pattern), &[x])?])
}

/// Pieces and their counts. An empty string between delimiters is a piece, and so is
/// the whole of an empty string, as in the standard's reference.
pub(crate) fn split(cx: &mut Cx) -> Out {
    let x = strings(cx, 0)?;
    let most = cx.opt_int("maxsplit")?;
    let op = StringSplit {
        delimiter: cx.text("delimiter", "")?.to_string(),
        // Below zero is Python's way to say that there is no limit.
        most: most.and_then(|n| usize::try_from(n).ok()),
        symbol: cx.b.graph.fresh_symbol("pieces"),
    };
    Ok(cx.b.push(op, &[x])?)
}

/// The letters of a locale. Of its rules only Turkish and its kin's i matter where one
/// character becomes one.
fn letters(locale: &str) -> Letters {
    let language = locale.split(['_', '-', '.']).next().unwrap_or_default();
    match language {
        "C" | "POSIX" => Letters::Ascii,
        "tr" | "az" => Letters::Turkic,
        _ => Letters::Unicode,
    }
}

/// Strings that are no stop words, with their case changed; one empty string where
/// none is left.
pub(crate) fn normalize(cx: &mut Cx) -> Out {
    let x = strings(cx, 0)?;
    let shape = cx.shape(x);
    let (count, rows) = match &shape[..] {
        [c] => (c.clone(), false),
        [one, c] if one.same(&Dim::ONE) != kiln_ir::Tri::No => (c.clone(), true),
        _ => {
            let what = format!("strings of shape {}", cx.ty(x));
            return Err(Fail::invalid(format!(
                "{what}: a vector or one row is wanted"
            )));
        }
    };
    let x = cx.b.reshape(x, std::slice::from_ref(&count))?;
    let letters = letters(cx.text("locale", "en_US")?);
    let action = match cx.text("case_change_action", "NONE")? {
        "NONE" => None,
        "LOWER" => Some(StringFn::Lower(letters)),
        "UPPER" => Some(StringFn::Upper(letters)),
        other => {
            return Err(Fail::invalid(format!(
                "there is no change of case `{other}`"
            )));
        }
    };
    let y = match &action {
        Some(f) => map(cx, f.clone(), &[x])?,
        None => x,
    };
    let stop = cx.texts("stopwords")?.unwrap_or_default();
    let y = match stop.is_empty() {
        true => y,
        false => {
            let (compared, stop) = match cx.flag("is_case_sensitive", false)? {
                true => (x, stop),
                // As ONNX Runtime: in capitals only where those are made anyway.
                false => match action {
                    Some(StringFn::Upper(_)) => {
                        (y, stop.iter().map(|s| letters.upper(s)).collect())
                    }
                    Some(_) => (y, stop.iter().map(|s| letters.lower(s)).collect()),
                    None => {
                        let lower = map(cx, StringFn::Lower(letters), &[x])?;
                        (lower, stop.iter().map(|s| letters.lower(s)).collect())
                    }
                },
            };
            let stop = vector(cx, &stop)?;
            kept(cx, y, compared, stop, &count)?
        }
    };
    if !rows {
        return Ok(vec![y]);
    }
    let n = cx.extent(y, 0)?;
    Ok(vec![cx.b.reshape(y, &[Dim::ONE, n])?])
}

/// The elements of `y` where `x` is none of `stop`, or one empty string.
fn kept(cx: &mut Cx, y: Value, x: Value, stop: Value, count: &Dim) -> One {
    let column = cx.b.reshape(x, &[count.clone(), Dim::ONE])?;
    let hit = cx.b.compare(CompareFn::Eq, column, stop)?;
    let hit = cx.b.reduce(ReduceFn::Max, hit, &[1], false)?;
    let keep = cx.b.unary(UnaryFn::Not, hit)?;
    let symbol = cx.b.graph.fresh_symbol("kept");
    let at = cx.b.one(
        NonZero {
            symbol: symbol.clone(),
        },
        &[keep],
    )?;
    let found = Dim::sym(symbol);
    let at = cx.b.reshape(at, std::slice::from_ref(&found))?;
    // Behind the elements stands an empty one, which is taken where no other is.
    let last = cx.vector(vec![count.clone()])?;
    let at = cx.b.concat(&[at, last], 0)?;
    let at =
        cx.b.slice_axis(at, 0, Dim::ZERO, found.maximum(&Dim::ONE))?;
    let empty = vector(cx, &[String::new()])?;
    let all = cx.b.concat(&[y, empty], 0)?;
    Ok(cx.b.gather(all, at, 0)?)
}
