//! Attributes, tensor literals and shard specifications.

use super::Parser;
use super::cursor::{Cursor, Parsed};
use crate::op::{Attr, Attrs};
use crate::tensor::{Encoder, computes_in_integers, element_count};
use crate::{DType, Dim, ShardSpec, Tensor, TensorType};

/// Bytes that the literals of a text may have in memory where one number fills
/// them: a few characters ask for any number of elements.
const FILLED_LIMIT: usize = 1 << 28;

impl Parser<'_> {
    /// `{axis = 1, keep = true}`, or nothing.
    pub(super) fn attrs(&mut self) -> Parsed<Attrs> {
        let mut attrs = Attrs::none();
        if !self.cursor.eat("{") {
            return Ok(attrs);
        }
        while !self.cursor.eat("}") {
            if !attrs.0.is_empty() {
                self.cursor.expect(",")?;
            }
            let name = self.cursor.some_word("an attribute's name")?.to_string();
            self.cursor.expect("=")?;
            let attr = self.attr()?;
            attrs.0.push((name, attr));
        }
        Ok(attrs)
    }

    fn attr(&mut self) -> Parsed<Attr> {
        if let Some(s) = self.cursor.string()? {
            return Ok(Attr::Str(s));
        }
        if self.cursor.peek("<") {
            return self.cursor.dim().map(Attr::Dim);
        }
        if self.cursor.eat("[") {
            return self.dims().map(Attr::Dims);
        }
        let at = self.cursor.here();
        let number = self.cursor.number();
        if !number.is_empty() {
            return match (number.parse(), number.parse()) {
                (Ok(i), _) => Ok(Attr::Int(i)),
                (_, Ok(f)) => Ok(Attr::Float(f)),
                _ => Err(self.cursor.error_at(at, format!("`{number}` is no number"))),
            };
        }
        let word = self.cursor.some_word("an attribute")?;
        if let (Some(dtype), true) = (DType::from_name(word), self.cursor.peek("[")) {
            let ty = self.cursor.ty_after(dtype)?;
            return self.elements(&ty).map(Attr::Tensor);
        }
        Ok(match word {
            "true" => Attr::Bool(true),
            "false" => Attr::Bool(false),
            name => Attr::Name(name.to_string()),
        })
    }

    /// `1, <batch>]`
    fn dims(&mut self) -> Parsed<Vec<Dim>> {
        let mut dims = vec![];
        while !self.cursor.eat("]") {
            if !dims.is_empty() {
                self.cursor.expect(",")?;
            }
            if self.cursor.peek("<") {
                dims.push(self.cursor.dim()?);
                continue;
            }
            let at = self.cursor.here();
            let number: i64 = self
                .cursor
                .number()
                .parse()
                .map_err(|_| self.cursor.error_at(at, "expected an integer or `<size>`"))?;
            dims.push(number.into());
        }
        Ok(dims)
    }

    /// The elements of a literal of this type: `(1, 2)`, `splat 0`, `hex "…"`,
    /// `file("weights.bin", 64, 1536)`.
    pub(super) fn elements(&mut self, ty: &TensorType) -> Parsed<Tensor> {
        let at = self.cursor.here();
        let Some(shape) = ty.const_shape().filter(|_| ty.encoding.is_none()) else {
            let what = format!("a literal is plain and of constant shape, not {ty}");
            return Err(self.cursor.error_at(at, what));
        };
        if self.cursor.eat("(") {
            return self.listed(at, ty.dtype, shape);
        }
        let word = self.cursor.some_word("`(…)`, `splat`, `hex` or `file`")?;
        let built = match word {
            "splat" => {
                let n = element_count(&shape);
                let bytes = n.and_then(|n| ty.dtype.bytes_for(n));
                let filled = bytes.and_then(|b| b.checked_add(self.filled));
                let (Some(n), Some(filled)) = (n, filled.filter(|&b| b <= FILLED_LIMIT)) else {
                    let what = format!("{ty} is no literal, or too large to be filled");
                    return Err(self.cursor.error_at(at, what));
                };
                self.filled = filled;
                let value = self.cursor.number();
                let Some(bytes) = filled_with(ty.dtype, n, value) else {
                    return Err(self.cursor.error_at(at, format!("`{value}` is no {ty}")));
                };
                Tensor::new(ty.dtype, shape, bytes)
            }
            "hex" => match unhex(&self.cursor.some_string()?) {
                Some(bytes) => Tensor::new(ty.dtype, shape, bytes),
                None => return Err(self.cursor.error_at(at, "expected pairs of hex digits")),
            },
            "file" => {
                self.cursor.expect("(")?;
                let file = self.cursor.some_string()?;
                self.cursor.expect(",")?;
                let offset = self.cursor.unsigned()?;
                self.cursor.expect(",")?;
                let length = self.cursor.unsigned()?;
                self.cursor.expect(")")?;
                let loaded = self.loader.load(&file, offset, length);
                Tensor::new(
                    ty.dtype,
                    shape,
                    loaded.map_err(|e| self.cursor.error_at(at, e))?,
                )
            }
            "omitted" => {
                let what = "a constant was left out when this text was printed";
                return Err(self.cursor.error_at(at, what));
            }
            _ => {
                return Err(self
                    .cursor
                    .error_at(at, "expected `(…)`, `splat`, `hex` or `file`"));
            }
        };
        built.map_err(|e| self.cursor.error_at(at, format!("{ty}: {e}")))
    }

    fn listed(&mut self, at: usize, dtype: DType, shape: Vec<usize>) -> Parsed<Tensor> {
        let c = &mut self.cursor;
        let (mut out, mut strings, mut n) = (Encoder::new(dtype, 0), vec![], 0);
        while !c.eat(")") {
            if n > 0 {
                c.expect(",")?;
            }
            n += 1;
            if dtype == DType::Str {
                strings.push(c.some_string()?);
                continue;
            }
            let here = c.here();
            let text = c.number();
            if !push(&mut out, dtype, text) {
                return Err(c.error_at(here, format!("expected a number of type {dtype}")));
            }
        }
        if element_count(&shape) != Some(n) {
            let what = format!("{n} elements do not fill the shape {shape:?}");
            return Err(c.error_at(at, what));
        }
        let built = if dtype == DType::Str {
            Tensor::strings(shape, strings)
        } else {
            Tensor::new(dtype, shape, out.finish())
        };
        built.map_err(|e| c.error_at(at, e.to_string()))
    }
}

/// Appends a number; false if the text is none of this type.
fn push(out: &mut Encoder, dtype: DType, text: &str) -> bool {
    if computes_in_integers(dtype) {
        let signed = text.parse::<i64>();
        let value = signed.or_else(|_| text.parse::<u64>().map(|v| v as i64));
        value.map(|v| out.push_i64(v)).is_ok()
    } else {
        text.parse().map(|v| out.push_f64(v)).is_ok()
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|c| c.to_digit(16).map(|d| d as u8))
        .collect();
    let digits = digits.filter(|d| d.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|p| p[0] << 4 | p[1]).collect())
}

/// `shard [dp, -] partial tp`, or nothing.
pub(super) fn shard(c: &mut Cursor) -> Parsed<Option<ShardSpec>> {
    if !c.eat_word("shard") {
        return Ok(None);
    }
    let mut spec = ShardSpec::default();
    c.expect("[")?;
    while !c.eat("]") {
        if !spec.axes.is_empty() {
            c.expect(",")?;
        }
        spec.axes
            .push(if c.eat("-") { vec![] } else { mesh_axes(c)? });
    }
    if c.eat_word("partial") {
        spec.partial = mesh_axes(c)?;
    }
    Ok(Some(spec))
}

fn mesh_axes(c: &mut Cursor) -> Parsed<Vec<String>> {
    let mut axes = vec![c.some_word("a mesh axis")?.to_string()];
    while c.eat("+") {
        axes.push(c.some_word("a mesh axis")?.to_string());
    }
    Ok(axes)
}

/// `n` times one number, which is read once: there may be a great many of small ones.
fn filled_with(dtype: DType, n: usize, text: &str) -> Option<Vec<u8>> {
    let some = |count: usize| {
        let mut out = Encoder::new(dtype, count);
        (0..count)
            .all(|_| push(&mut out, dtype, text))
            .then_some(out)
    };
    // Elements that fill whole bytes.
    let together = 8 / dtype.bits().clamp(1, 8);
    let mut bytes = some(together)?.finish().repeat(n / together);
    bytes.extend(some(n % together)?.finish());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_is_what_is_listed() {
        for (dtype, text) in [
            (DType::U4, "9"),
            (DType::I2, "-1"),
            (DType::F4E2M1, "1.5"),
            (DType::F16, "-2.5"),
            (DType::I64, "-7"),
        ] {
            for n in [0, 1, 3, 8, 13] {
                let mut listed = Encoder::new(dtype, n);
                assert!((0..n).all(|_| push(&mut listed, dtype, text)));
                assert_eq!(
                    filled_with(dtype, n, text),
                    Some(listed.finish()),
                    "{dtype} {n}"
                );
            }
        }
        assert_eq!(filled_with(DType::F32, 4, "one"), None);
    }
}
