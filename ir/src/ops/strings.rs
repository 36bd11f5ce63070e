//! Ops on strings. What only moves or compares them is not here: `gather`, `select`,
//! `eq` and the like take strings as they take numbers.

use crate::graph::Value;
use crate::op::*;
use crate::ops::elementwise::map_axes;
use crate::ops::util::*;
use crate::strings::{Letters, Pattern, format_number, join, parse_number, ranks, split};
use crate::tensor::Encoder;
use crate::{Builder, DType, Dim, Kind, Tensor, TensorType};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What is done to each element.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StringFn {
    /// `string_concat(a: str, b: str)`: one after the other; both of one shape.
    Concat,
    /// `lower_case(x: str) {letters}`
    Lower(Letters),
    /// `upper_case(x: str) {letters}`
    Upper(Letters),
    /// `full_match(x: str) {pattern}`: whether RE2's expression matches all of it.
    FullMatch(String),
    /// `parse_number(x: str) {to}`: a string that is no number of the type is an error.
    Parse(DType),
    /// `format_number(x)`: the number as text.
    Format,
    /// `string_rank(x: str)`: how many different strings of `x` come before, in the
    /// order of their bytes. The one that looks at more than an element.
    Rank,
}

/// Strings made of strings or numbers, or the other way round, element by element.
#[derive(Clone, Debug, PartialEq)]
pub struct StringMap {
    /// What.
    pub f: StringFn,
}

/// `string_split(x: str[…])` → `(str[…, n], i64[…])`: the pieces of each element, as
/// many as the largest count (the rest of a row is empty strings), and how many there
/// are. See [`crate::strings::split`].
#[derive(Clone, Debug, PartialEq)]
pub struct StringSplit {
    /// Between the pieces; white space where it is empty.
    pub delimiter: String,
    /// How often an element is cut at most.
    pub most: Option<usize>,
    /// The name of `n`, known when it has run.
    pub symbol: Arc<str>,
}

/// Pieces beyond which the interpreter makes none: one long string widens every row.
const MOST_PIECES: usize = 1 << 28;

/// Numbers of whole bytes: what text is made of and becomes.
fn is_number(dtype: DType) -> bool {
    let kind = matches!(
        dtype.kind(),
        Kind::Float | Kind::Int | Kind::Uint | Kind::Bool
    );
    kind && dtype.size().is_some()
}

impl StringFn {
    /// The name in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            StringFn::Concat => "string_concat",
            StringFn::Lower(_) => "lower_case",
            StringFn::Upper(_) => "upper_case",
            StringFn::FullMatch(_) => "full_match",
            StringFn::Parse(_) => "parse_number",
            StringFn::Format => "format_number",
            StringFn::Rank => "string_rank",
        }
    }

    /// The element type of the result for an argument's, or why there is none.
    pub fn result(&self, of: DType) -> Result<DType, String> {
        let takes = match self {
            StringFn::Format => is_number(of),
            _ => of == DType::Str,
        };
        match (self, takes) {
            (_, false) => Err(format!("{} does not take {of}", self.name())),
            (StringFn::Parse(to), _) if !is_number(*to) => Err(format!("text is not read as {to}")),
            (StringFn::Parse(to), _) => Ok(*to),
            (StringFn::FullMatch(_), _) => Ok(DType::Bool),
            (StringFn::Rank, _) => Ok(DType::I64),
            _ => Ok(DType::Str),
        }
    }

    /// How many arguments it has.
    pub fn arity(&self) -> usize {
        if *self == StringFn::Concat { 2 } else { 1 }
    }
}

fn letters(a: &Attrs) -> Result<Letters, TypeError> {
    let name = a.name("letters")?;
    Letters::from_name(name).ok_or_else(|| TypeError(format!("there are no letters `{name}`")))
}

impl StringMap {
    /// The op from its text form; none if the mnemonic is another's.
    pub fn parse(mnemonic: &str, a: &Attrs) -> Option<Result<Self, TypeError>> {
        let f = match mnemonic {
            "string_concat" => Ok(StringFn::Concat),
            "lower_case" => letters(a).map(StringFn::Lower),
            "upper_case" => letters(a).map(StringFn::Upper),
            "full_match" => a.str("pattern").map(|p| StringFn::FullMatch(p.to_string())),
            "parse_number" => a.dtype("to").map(StringFn::Parse),
            "format_number" => Ok(StringFn::Format),
            "string_rank" => Ok(StringFn::Rank),
            _ => return None,
        };
        Some(f.map(|f| StringMap { f }))
    }
}

fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::new(text).map_err(|e| format!("the expression `{text}` is not valid: {e}"))
}

/// An error at an element.
fn at<T>(i: usize, r: Result<T, String>) -> Result<T, EvalError> {
    r.map_err(|e| EvalError(format!("element {i}: {e}")))
}

impl OpDef for StringMap {
    fn mnemonic(&self) -> &'static str {
        self.f.name()
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        arity(args, self.f.arity())?;
        let mut to = DType::Str;
        for a in args {
            to = self.f.result(a.ty.dtype).map_err(TypeError)?;
        }
        if let StringFn::FullMatch(text) = &self.f {
            pattern(text).map_err(TypeError)?;
        }
        let mut shape = args[0].ty.shape.clone();
        for a in &args[1..] {
            if a.ty.rank() != shape.len() {
                return type_err(format!("{} and {} differ in rank", args[0].ty, a.ty));
            }
            for (d, other) in shape.iter_mut().zip(&a.ty.shape) {
                *d = cx.require_same(d, other, "strings are joined one by one")?;
            }
        }
        Ok(vec![TensorType::new(to, shape).into()])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        match self.f {
            StringFn::Rank => AxisMap::Whole {
                because: "a rank is among all elements",
            },
            _ => map_axes(args),
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, shape) = (args[0], args[0].shape().to_vec());
        let each = x.as_strings().iter();
        let made = match &self.f {
            StringFn::Concat => {
                let pairs = each.zip(args[1].as_strings()).enumerate();
                let joined = pairs.map(|(i, (a, b))| at(i, join(a, b)));
                Tensor::strings(shape, joined.collect::<Result<_, _>>()?)
            }
            StringFn::Lower(l) => Tensor::strings(shape, each.map(|s| l.lower(s)).collect()),
            StringFn::Upper(l) => Tensor::strings(shape, each.map(|s| l.upper(s)).collect()),
            StringFn::FullMatch(text) => {
                let p = pattern(text).map_err(EvalError)?;
                let truths = each.map(|s| u8::from(p.matches(s)));
                Tensor::new(DType::Bool, shape, truths.collect::<Vec<u8>>())
            }
            StringFn::Parse(to) => {
                let mut out = Encoder::new(*to, x.len());
                for (i, s) in each.enumerate() {
                    let read = parse_number(s, *to, &mut out);
                    at(i, read.map_err(|e| format!("{s:?} is {e}")))?;
                }
                Tensor::new(*to, shape, out.finish())
            }
            StringFn::Format => {
                let text = (0..x.len()).map(|i| format_number(x.dtype(), x.bytes(), i));
                Tensor::strings(shape, text.collect())
            }
            StringFn::Rank => Tensor::from_i64(DType::I64, shape, &ranks(x.as_strings())),
        };
        made.map(|t| vec![t]).map_err(|e| EvalError(e.to_string()))
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Zero {
            because: "strings take no gradient",
        })
    }

    fn attrs(&self) -> Attrs {
        let none = Attrs::none();
        match &self.f {
            StringFn::Concat | StringFn::Format | StringFn::Rank => none,
            StringFn::Lower(l) | StringFn::Upper(l) => {
                none.with("letters", Attr::Name(l.name().into()))
            }
            StringFn::FullMatch(p) => none.with("pattern", Attr::Str(p.clone())),
            StringFn::Parse(to) => none.with("to", Attr::Name(to.name().into())),
        }
    }

    primitive!();
}

parse_one!(StringSplit, "string_split", |a| Ok(StringSplit {
    delimiter: a.str("delimiter")?.to_string(),
    most: match a.get("most") {
        Ok(_) => Some(a.index("most")?),
        Err(_) => None,
    },
    symbol: a.symbol("symbol")?,
}));

impl OpDef for StringSplit {
    fn mnemonic(&self) -> &'static str {
        "string_split"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let x = arity(args, 1)?[0].ty;
        if x.dtype != DType::Str {
            return type_err(format!("takes strings, not {x}"));
        }
        let mut shape = x.shape.clone();
        shape.push(Dim::sym(self.symbol.clone()));
        Ok(vec![
            TensorType::new(DType::Str, shape).into(),
            TensorType::new(DType::I64, x.shape.clone()).into(),
        ])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "the result's size depends on every element",
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let strings = args[0].as_strings();
        let cut = |s: &String| -> Vec<String> {
            let pieces = split(s, &self.delimiter, self.most).into_iter();
            pieces.map(str::to_string).collect()
        };
        let rows: Vec<Vec<String>> = strings.iter().map(cut).collect();
        let counts: Vec<i64> = rows.iter().map(|r| r.len() as i64).collect();
        let width = counts.iter().copied().max().unwrap_or(0) as usize;
        if rows.len().saturating_mul(width) > MOST_PIECES {
            return Err(EvalError(format!(
                "{width} pieces of {} strings",
                rows.len()
            )));
        }
        let mut shape = args[0].shape().to_vec();
        let counts = Tensor::from_i64(DType::I64, shape.clone(), &counts);
        let padded = rows.into_iter().flat_map(|mut row| {
            row.resize(width, String::new());
            row
        });
        shape.push(width);
        let pieces = Tensor::strings(shape, padded.collect());
        cx.binding
            .borrow_mut()
            .insert(self.symbol.clone(), width as i64);
        let bad = |e: crate::tensor::SizeMismatch| EvalError(e.to_string());
        Ok(vec![pieces.map_err(bad)?, counts.map_err(bad)?])
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Zero {
            because: "strings take no gradient",
        })
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::none().with("delimiter", Attr::Str(self.delimiter.clone()));
        let attrs = match self.most {
            Some(n) => attrs.with("most", Attr::Int(n as i64)),
            None => attrs,
        };
        attrs.with("symbol", Attr::Str(self.symbol.to_string()))
    }

    primitive!();
}
