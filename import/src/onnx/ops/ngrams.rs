//! TfIdfVectorizer: how often each n-gram of a pool occurs.

use crate::diagnostic::code;
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, ReduceFn, Tensor};

fn place(cx: &mut Cx, t: Result<Tensor, kiln_ir::tensor::SizeMismatch>) -> Result<Value, Fail> {
    Ok(cx
        .b
        .constant(t.map_err(|e| Fail::invalid(format!("{e:?}")))?)?)
}

/// The n-grams of one size: how many, and their tokens one place after another.
struct Grams {
    size: usize,
    first: usize,
    tokens: Vec<Tensor>,
}

/// The tokens that a pool is made of.
enum Tokens<'m> {
    Numbers(&'m [i64]),
    Strings(Vec<String>),
}

impl Tokens<'_> {
    fn len(&self) -> usize {
        match self {
            Tokens::Numbers(all) => all.len(),
            Tokens::Strings(all) => all.len(),
        }
    }

    /// Every `step`-th token from `start` on, below `end`, as a column.
    fn column(&self, start: usize, end: usize, step: usize) -> Result<Tensor, Fail> {
        let at: Vec<usize> = (start..end).step_by(step).collect();
        let made = match self {
            Tokens::Numbers(all) => {
                let numbers: Vec<i64> = at.iter().map(|&i| all[i]).collect();
                Tensor::from_i64(DType::I64, [at.len(), 1], &numbers)
            }
            Tokens::Strings(all) => {
                let strings = at.iter().map(|&i| all[i].clone()).collect();
                Tensor::strings([at.len(), 1], strings)
            }
        };
        made.map_err(|e| Fail::invalid(e.to_string()))
    }
}

/// The pool by size; grams are numbered through it.
fn pool(cx: &Cx) -> Result<Vec<Grams>, Fail> {
    let pool = match (cx.ints("pool_int64s")?, cx.texts("pool_strings")?) {
        (Some(all), None) => Tokens::Numbers(all),
        (None, Some(all)) => Tokens::Strings(all),
        _ => {
            let what = "the pool is not one list of integers or of strings";
            return Err(Fail::invalid(what));
        }
    };
    let starts = cx.ints("ngram_counts")?.unwrap_or_default();
    let (mut out, mut first) = (vec![], 0);
    for (i, &start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(pool.len() as i64);
        let part = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        let part = part.filter(|&(start, end)| start <= end && end <= pool.len());
        let (start, end) =
            part.ok_or_else(|| Fail::invalid(format!("`ngram_counts` is {starts:?}")))?;
        let size = i + 1;
        let count = (end - start) / size;
        // What is left over of the last gram is none.
        let end = start + count * size;
        let columns = (0..size).map(|k| pool.column((start + k).min(end), end, size));
        out.push(Grams {
            size,
            first,
            tokens: columns.collect::<Result<_, _>>()?,
        });
        first += count;
    }
    Ok(out)
}

/// Columns of a result: each costs the importer some bytes.
const MOST_COLUMNS: i64 = 1 << 22;

pub(crate) fn tf_idf(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let (least, most) = (cx.int("min_gram_length", 1)?, cx.int("max_gram_length", 1)?);
    let skips = cx.int("max_skip_count", 0)?;
    let shape = cx.shape(x);
    let (rows, length) = match &shape[..] {
        [l] => (Dim::ONE, l),
        [b, l] => (b.clone(), l),
        _ => return Err(Fail::invalid(format!("tokens of rank {}", shape.len()))),
    };
    let length = length.as_const().ok_or_else(|| {
        Fail::new(
            code::DATA_SHAPE,
            "the number of tokens must be known when the model is compiled",
        )
        .help("give it with --dim")
    })?;
    let tokens = match cx.dtype(x) {
        DType::Str => x,
        _ => cx.b.cast(x, DType::I64)?,
    };
    let tokens =
        cx.b.reshape(tokens, &[rows.clone(), Dim::ONE, length.into()])?;
    let columns = cx.ints("ngram_indexes")?.unwrap_or_default();
    let width = columns.iter().max().map_or(0, |&m| m.saturating_add(1));
    if width > MOST_COLUMNS {
        return Err(Fail::invalid(format!(
            "`ngram_indexes` has {width} columns"
        )));
    }
    // Which counted gram stands in each column; those that are not counted are the
    // zeros behind.
    let mut counts = vec![];
    let mut source = vec![-1i64; usize::try_from(width).unwrap_or(0)];
    let mut counted = 0i64;
    for g in pool(cx)? {
        let n = g.tokens[0].len();
        if !(least..=most).contains(&(g.size as i64)) || n == 0 {
            continue;
        }
        for k in 0..n {
            let column = columns
                .get(g.first + k)
                .and_then(|&c| usize::try_from(c).ok());
            let slot = column.and_then(|c| source.get_mut(c));
            *slot.ok_or_else(|| Fail::invalid("`ngram_indexes` is too short"))? =
                counted + k as i64;
        }
        counted += n as i64;
        let mut sum = cx.b.full(DType::F32, &[rows.clone(), Dim::from(n)], 0.0)?;
        // A single token has no gaps to widen.
        let widest = if g.size == 1 { 0 } else { skips };
        for gap in 1..=widest + 1 {
            let starts = length - (g.size as i64 - 1) * gap;
            if starts <= 0 {
                break;
            }
            let mut all = None;
            for (k, wanted) in g.tokens.iter().enumerate() {
                let wanted = cx.b.constant(wanted.clone())?;
                let at = Dim::from(k as i64 * gap);
                let here = cx.b.slice_axis(tokens, 2, at, starts.into())?;
                let same = cx.b.compare(CompareFn::Eq, here, wanted)?;
                all = Some(match all {
                    None => same,
                    Some(a) => cx.b.binary(BinaryFn::And, a, same)?,
                });
            }
            if let Some(all) = all {
                let found = cx.b.cast(all, DType::F32)?;
                let found = cx.b.reduce(ReduceFn::Sum, found, &[2], false)?;
                sum = cx.b.add(sum, found)?;
            }
        }
        counts.push(sum);
    }
    counts.push(cx.b.full(DType::F32, &[rows, Dim::ONE], 0.0)?);
    let all = cx.b.concat(&counts, 1)?;
    let source: Vec<i64> = source
        .iter()
        .map(|&s| if s < 0 { counted } else { s })
        .collect();
    let source = Tensor::from_i64(DType::I64, [source.len()], &source);
    let source = place(cx, source)?;
    let mut y = cx.b.gather(all, source, 1)?;
    let mode = cx.text("mode", "TF")?;
    if mode != "TF" {
        let mut weights = vec![1.0; usize::try_from(width).unwrap_or(0)];
        let given = cx.floats("weights")?.unwrap_or_default();
        for (&c, &w) in columns.iter().zip(given) {
            if let Some(slot) = usize::try_from(c).ok().and_then(|c| weights.get_mut(c)) {
                *slot = f64::from(w);
            }
        }
        let weights = Tensor::from_f64(DType::F32, [weights.len()], &weights);
        let weights = place(cx, weights)?;
        if mode == "IDF" {
            let zero = cx.like(y, 0.0)?;
            let some = cx.b.compare(CompareFn::Gt, y, zero)?;
            y = cx.b.cast(some, DType::F32)?;
        }
        y = cx.b.mul(y, weights)?;
    }
    if shape.len() == 1 {
        y = cx.b.reshape(y, &[width.into()])?;
    }
    Ok(vec![y])
}
