//! The words of PTX text.

use super::parse::error;
use crate::error::Result;

/// Where something is written: line and column from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Place {
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1, in bytes.
    pub column: u32,
}

/// A word.
#[derive(Clone, Debug, PartialEq)]
pub enum Word<'a> {
    /// A name: of an instruction, a register, a variable.
    Name(&'a str),
    /// A dot and a name: a directive or a modifier, without its dot.
    Dot(&'a str),
    /// An integer, without a sign.
    Int(u64),
    /// The bits of a single, `0f…`.
    Single(u32),
    /// A double: `0d…` or decimal.
    Double(f64),
    /// Text in quotes.
    Text(&'a str),
    /// A sign of one character.
    Sign(u8),
    /// The end of the text.
    End,
}

/// A word and its place.
#[derive(Clone, Debug)]
pub struct Token<'a> {
    /// The word.
    pub word: Word<'a>,
    /// Where it begins.
    pub place: Place,
    /// Where it begins and ends in the text, in bytes.
    pub span: (usize, usize),
}

impl Token<'_> {
    /// Whether `next` follows with nothing between.
    pub fn touches(&self, next: &Token) -> bool {
        self.span.1 == next.span.0
    }
}

/// All words of `text`, the last one [`Word::End`].
pub fn lex(text: &str) -> Result<Vec<Token<'_>>> {
    let mut lexer = Lexer {
        text,
        bytes: text.as_bytes(),
        at: 0,
        line: 1,
        line_start: 0,
    };
    let mut out = Vec::with_capacity(text.len() / 4);
    loop {
        lexer.skip()?;
        let (place, start) = (lexer.place(), lexer.at);
        let word = lexer.word()?;
        let end = word == Word::End;
        let span = (start, lexer.at);
        out.push(Token { word, place, span });
        if end {
            return Ok(out);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    line: u32,
    line_start: usize,
}

fn is_name(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%')
}

impl<'a> Lexer<'a> {
    fn place(&self) -> Place {
        Place {
            line: self.line,
            column: (self.at - self.line_start + 1) as u32,
        }
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn newline(&mut self) {
        self.line += 1;
        self.line_start = self.at + 1;
    }

    /// Passes over spaces and comments.
    fn skip(&mut self) -> Result<()> {
        while self.at < self.bytes.len() {
            match (self.peek(0), self.peek(1)) {
                (b'\n', _) => {
                    self.newline();
                    self.at += 1;
                }
                (b' ' | b'\t' | b'\r', _) => self.at += 1,
                (b'/', b'/') => {
                    while self.at < self.bytes.len() && self.peek(0) != b'\n' {
                        self.at += 1;
                    }
                }
                (b'/', b'*') => {
                    let place = self.place();
                    self.at += 2;
                    while (self.peek(0), self.peek(1)) != (b'*', b'/') {
                        if self.at >= self.bytes.len() {
                            return Err(error(place, "a comment that does not end", "add `*/`"));
                        }
                        if self.peek(0) == b'\n' {
                            self.newline();
                        }
                        self.at += 1;
                    }
                    self.at += 2;
                }
                _ => break,
            }
        }
        Ok(())
    }

    fn run(&mut self, within: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        while self.at < self.bytes.len() && within(self.bytes[self.at]) {
            self.at += 1;
        }
        self.text.get(start..self.at).unwrap_or("")
    }

    fn word(&mut self) -> Result<Word<'a>> {
        let place = self.place();
        let Some(&c) = self.bytes.get(self.at) else {
            return Ok(Word::End);
        };
        match c {
            b'0'..=b'9' => self.number(),
            b'.' if self.peek(1).is_ascii_digit() && !is_name(self.before()) => self.number(),
            b'.' => {
                self.at += 1;
                let start = self.at;
                self.run(is_name);
                while (self.peek(0), self.peek(1)) == (b':', b':') && is_name(self.peek(2)) {
                    self.at += 2;
                    self.run(is_name);
                }
                match &self.text[start..self.at] {
                    "" => Err(error(place, "a dot with no name after it", "take it out")),
                    name => Ok(Word::Dot(name)),
                }
            }
            b'"' => {
                self.at += 1;
                let text = self.run(|c| c != b'"' && c != b'\n');
                if self.peek(0) != b'"' {
                    return Err(error(place, "text that does not end", "add `\"`"));
                }
                self.at += 1;
                Ok(Word::Text(text))
            }
            c if is_name(c) => Ok(Word::Name(self.run(is_name))),
            b',' | b';' | b':' | b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'|' | b'@' | b'!'
            | b'+' | b'-' | b'<' | b'>' | b'=' | b'*' => {
                self.at += 1;
                Ok(Word::Sign(c))
            }
            _ => {
                let c = self.text[self.at..].chars().next().unwrap_or(' ');
                let what = format!("`{}` has no meaning in PTX", c.escape_default());
                Err(error(place, what, "take it out"))
            }
        }
    }

    fn before(&self) -> u8 {
        self.at.checked_sub(1).map_or(0, |at| self.bytes[at])
    }

    fn number(&mut self) -> Result<Word<'a>> {
        let place = self.place();
        let start = self.at;
        let prefixed = self.peek(0) == b'0';
        let bad = |text: &str| {
            let what = format!("`{text}` is not a number");
            error(
                place,
                what,
                "integers: 10, 0x1f, 0b11, 017; floats: 0f3F800000, 0d…, 1.5",
            )
        };
        if prefixed && matches!(self.peek(1), b'f' | b'F' | b'd' | b'D') {
            let double = matches!(self.peek(1), b'd' | b'D');
            self.at += 2;
            let digits = self.run(|c| c.is_ascii_alphanumeric());
            let bits = u64::from_str_radix(digits, 16);
            return match (bits, digits.len(), double) {
                (Ok(bits), 8, false) => Ok(Word::Single(bits as u32)),
                (Ok(bits), 16, true) => Ok(Word::Double(f64::from_bits(bits))),
                _ => Err(bad(&self.text[start..self.at])),
            };
        }
        let radix = match (prefixed, self.peek(1)) {
            (true, b'x' | b'X') => 16,
            (true, b'b' | b'B') => 2,
            (true, b'0'..=b'9') => 8,
            _ => 10,
        };
        if radix == 10 {
            self.run(|c| c.is_ascii_digit());
            let exponent = matches!(self.peek(0), b'e' | b'E');
            if (self.peek(0) == b'.' && self.peek(1).is_ascii_digit()) || exponent {
                return self.decimal(start).ok_or_else(|| bad("a decimal number"));
            }
        } else {
            self.at += if radix == 8 { 1 } else { 2 };
            self.run(|c| c.is_ascii_hexdigit());
        }
        let digits = &self.text[start + [0, 2][(radix == 16 || radix == 2) as usize]..self.at];
        if matches!(self.peek(0), b'U' | b'u') {
            self.at += 1;
        }
        if is_name(self.peek(0)) {
            self.run(is_name);
            return Err(bad(&self.text[start..self.at]));
        }
        u64::from_str_radix(digits, radix)
            .map(Word::Int)
            .map_err(|_| bad(&self.text[start..self.at]))
    }

    fn decimal(&mut self, start: usize) -> Option<Word<'a>> {
        if self.peek(0) == b'.' {
            self.at += 1;
            self.run(|c| c.is_ascii_digit());
        }
        if matches!(self.peek(0), b'e' | b'E') {
            self.at += 1;
            if matches!(self.peek(0), b'+' | b'-') {
                self.at += 1;
            }
            self.run(|c| c.is_ascii_digit());
        }
        self.text[start..self.at].parse().ok().map(Word::Double)
    }
}
