//! Reading tokens of the text form.

use super::ParseError;
use crate::{BlockFormat, DType, Dim, Encoding, TensorType};

/// A place in the text, and what stands there.
#[derive(Clone)]
pub(super) struct Cursor<'t> {
    text: &'t str,
    at: usize,
}

pub(super) type Parsed<T> = Result<T, ParseError>;

impl<'t> Cursor<'t> {
    pub(super) fn new(text: &'t str) -> Cursor<'t> {
        Cursor { text, at: 0 }
    }

    /// The byte at which the next token starts.
    pub(super) fn here(&mut self) -> usize {
        self.skip();
        self.at
    }

    pub(super) fn go(&mut self, at: usize) {
        self.at = at;
    }

    /// An error at a byte of the text.
    pub(super) fn error_at(&self, at: usize, message: impl Into<String>) -> ParseError {
        let before = &self.text[..at.min(self.text.len())];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        ParseError {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.into(),
        }
    }

    /// An error at the next token.
    pub(super) fn error<T>(&mut self, message: impl Into<String>) -> Parsed<T> {
        let at = self.here();
        Err(self.error_at(at, message))
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    /// Past blanks and `//` comments.
    fn skip(&mut self) {
        loop {
            let rest = self.rest().trim_start();
            self.at = self.text.len() - rest.len();
            if !rest.starts_with("//") {
                return;
            }
            self.at += rest.find('\n').unwrap_or(rest.len());
        }
    }

    /// Whether the text is over.
    pub(super) fn done(&mut self) -> bool {
        self.skip();
        self.rest().is_empty()
    }

    pub(super) fn peek(&mut self, token: &str) -> bool {
        self.skip();
        self.rest().starts_with(token)
    }

    pub(super) fn eat(&mut self, token: &str) -> bool {
        let found = self.peek(token);
        if found {
            self.at += token.len();
        }
        found
    }

    pub(super) fn expect(&mut self, token: &str) -> Parsed<()> {
        if self.eat(token) {
            return Ok(());
        }
        let found = self.found();
        self.error(format!("expected `{token}`, found {found}"))
    }

    /// What stands here, for messages.
    fn found(&mut self) -> String {
        self.skip();
        match self.rest().split_whitespace().next() {
            Some(token) => format!("`{}`", token.chars().take(40).collect::<String>()),
            None => "the end of the text".into(),
        }
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let end = rest.find(|c| !keep(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// A word: letters, digits, `_`, `.`, `$`. Empty if none stands here.
    pub(super) fn word(&mut self) -> &'t str {
        self.skip();
        self.take_while(|c| c.is_alphanumeric() || "_.$".contains(c))
    }

    /// A word that must be there.
    pub(super) fn some_word(&mut self, what: &str) -> Parsed<&'t str> {
        let at = self.here();
        let word = self.word();
        if word.is_empty() {
            self.go(at);
            let found = self.found();
            return self.error(format!("expected {what}, found {found}"));
        }
        Ok(word)
    }

    /// Takes this word, if it is the next.
    pub(super) fn eat_word(&mut self, want: &str) -> bool {
        let at = self.here();
        let found = self.word() == want;
        if !found {
            self.go(at);
        }
        found
    }

    /// Quoted text, if the next token is.
    pub(super) fn string(&mut self) -> Parsed<Option<String>> {
        let start = self.here();
        if !self.eat("\"") {
            return Ok(None);
        }
        let mut out = String::new();
        loop {
            out.push_str(self.take_while(|c| c != '"' && c != '\\'));
            let mut chars = self.rest().chars();
            let (first, second) = (chars.next(), chars.next());
            match (first, second) {
                (Some('"'), _) => {
                    self.at += 1;
                    return Ok(Some(out));
                }
                (Some(_), Some(c)) => {
                    out.push(if c == 'n' { '\n' } else { c });
                    self.at += 1 + c.len_utf8();
                }
                _ => return Err(self.error_at(start, "the quoted text does not end")),
            }
        }
    }

    /// Quoted text that must be there.
    pub(super) fn some_string(&mut self) -> Parsed<String> {
        match self.string()? {
            Some(s) => Ok(s),
            None => {
                let found = self.found();
                self.error(format!("expected quoted text, found {found}"))
            }
        }
    }

    /// A name after `@`: plain or quoted.
    pub(super) fn symbol(&mut self) -> Parsed<String> {
        self.expect("@")?;
        if let Some(s) = self.string()? {
            return Ok(s);
        }
        let name = self.take_while(|c| c.is_alphanumeric() || "_.$-".contains(c));
        if name.is_empty() {
            return self.error("expected a name after `@`");
        }
        Ok(name.to_string())
    }

    /// A value's token after `%`.
    pub(super) fn value(&mut self) -> Parsed<&'t str> {
        if !self.eat("%") {
            let found = self.found();
            return self.error(format!("expected a value, found {found}"));
        }
        let name = self.take_while(|c| c.is_alphanumeric() || "_.$".contains(c));
        if name.is_empty() {
            return self.error("expected a name after `%`");
        }
        Ok(name)
    }

    /// The text of a number: a sign and a word that starts with a digit, or
    /// `inf` or `nan`. Empty if none stands here.
    pub(super) fn number(&mut self) -> &'t str {
        let start = self.here();
        self.eat("-");
        let digits = self.word();
        let named = digits == "inf" || digits == "nan";
        if !named && !digits.starts_with(|c: char| c.is_ascii_digit()) {
            self.at = start;
            return "";
        }
        // The sign of an exponent is no part of a word.
        if digits.ends_with(['e', 'E']) && !named && self.rest().starts_with(['-', '+']) {
            self.at += 1;
            self.word();
        }
        &self.text[start..self.at]
    }

    pub(super) fn float(&mut self) -> Parsed<f64> {
        let at = self.here();
        let text = self.number();
        text.parse()
            .map_err(|_| self.error_at(at, "expected a number"))
    }

    pub(super) fn unsigned(&mut self) -> Parsed<u64> {
        let at = self.here();
        let text = self.number();
        text.parse()
            .map_err(|_| self.error_at(at, "expected a count"))
    }

    /// A size up to one of these characters at the level of this text.
    fn dim_until(&mut self, ends: &[char]) -> Parsed<Dim> {
        let start = self.here();
        let (mut depth, mut end) = (0usize, None);
        for (i, c) in self.rest().char_indices() {
            match c {
                '(' => depth += 1,
                ')' if depth > 0 => depth -= 1,
                c if depth == 0 && ends.contains(&c) => {
                    end = Some(i);
                    break;
                }
                '\n' => break,
                _ => {}
            }
        }
        let Some(end) = end else {
            return Err(self.error_at(start, "the size does not end"));
        };
        let text = &self.rest()[..end];
        let dim = text
            .parse::<Dim>()
            .map_err(|e| self.error_at(start, e.to_string()))?;
        self.at += end;
        Ok(dim)
    }

    /// `<batch*seq + 1>`
    pub(super) fn dim(&mut self) -> Parsed<Dim> {
        self.expect("<")?;
        let dim = self.dim_until(&['>'])?;
        self.expect(">")?;
        Ok(dim)
    }

    /// The type whose element type has been read: `[4, batch]:q4_0@1`.
    pub(super) fn ty_after(&mut self, dtype: DType) -> Parsed<TensorType> {
        self.expect("[")?;
        let mut shape = vec![];
        while !self.eat("]") {
            if !shape.is_empty() {
                self.expect(",")?;
            }
            shape.push(self.dim_until(&[',', ']'])?);
        }
        let mut ty = TensorType::new(dtype, shape);
        // No blank: `: f32[4] : …` would be another annotation.
        if self.rest().starts_with(':') {
            self.at += 1;
            let at = self.here();
            let format = BlockFormat::from_name(self.word())
                .ok_or_else(|| self.error_at(at, "there is no such block format"))?;
            self.expect("@")?;
            let at = self.here();
            let axis = self
                .unsigned()?
                .try_into()
                .ok()
                .filter(|&a: &u8| usize::from(a) < ty.rank())
                .ok_or_else(|| self.error_at(at, "the type has no such axis"))?;
            ty.encoding = Some(Encoding { format, axis });
        }
        Ok(ty)
    }

    /// `f32[4, batch]`
    pub(super) fn ty(&mut self) -> Parsed<TensorType> {
        let at = self.here();
        let word = self.word();
        match DType::from_name(word) {
            Some(dtype) => self.ty_after(dtype),
            None => {
                let shown: String = word.chars().take(40).collect();
                Err(self.error_at(at, format!("expected an element type, found `{shown}`")))
            }
        }
    }

    /// Past a block that starts with `{`, whatever it holds.
    pub(super) fn skip_block(&mut self) -> Parsed<()> {
        let start = self.here();
        self.expect("{")?;
        let mut depth = 1;
        while depth > 0 {
            if self.done() {
                return Err(self.error_at(start, "the block does not end"));
            }
            if self.string()?.is_some() {
                continue;
            }
            match self.rest().chars().next() {
                Some('{') => depth += 1,
                Some('}') => depth -= 1,
                _ => {}
            }
            self.at += self.rest().chars().next().map_or(0, char::len_utf8);
        }
        Ok(())
    }
}
