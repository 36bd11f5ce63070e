//! Regular expressions: RE2's syntax, which ONNX names, in the words of the crate
//! `regex`. Both match in time linear in the text. What the two write alike but mean
//! differently is rewritten (`\d` is ASCII, `&&` in a class is two ampersands); what
//! only RE2 has and the crate cannot do (`\C`, one byte) is an error.

use std::fmt::Write;
use std::iter::Peekable;
use std::str::Chars;

/// Bytes that a compiled expression may take.
const MOST_BYTES: usize = 4 << 20;
/// Nesting of an expression.
const MOST_NESTED: u32 = 200;
/// Times that something may be repeated, as in RE2.
const MOST_REPEATS: u32 = 1000;

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Pattern(regex::Regex);

impl Pattern {
    /// Compiles an expression in RE2's syntax; an error says what is wrong with it.
    pub fn new(pattern: &str) -> Result<Pattern, String> {
        let body = Translator::new(pattern).all()?;
        // Alone first: parentheses that do not match might fit those put round it.
        build(&body)?;
        build(&format!(r"\A(?:{body})\z")).map(Pattern)
    }

    /// Whether the whole text is matched.
    pub fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

fn build(pattern: &str) -> Result<regex::Regex, String> {
    let built = regex::RegexBuilder::new(pattern)
        .size_limit(MOST_BYTES)
        .nest_limit(MOST_NESTED)
        .build();
    built.map_err(|e| match e {
        regex::Error::CompiledTooBig(n) => format!("it takes more than {n} bytes compiled"),
        // The last line says what is wrong; those before show the rewritten text.
        e => {
            let text = e.to_string();
            let last = text.lines().last().unwrap_or_default();
            last.trim_start_matches("error: ").to_string()
        }
    })
}

/// The classes that have names in brackets and colons.
const CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

struct Translator<'p> {
    rest: Peekable<Chars<'p>>,
    out: String,
}

/// What stands in a class: a character, which may begin a range, or a set.
enum Member {
    One(char),
    Set(String),
}

impl<'p> Translator<'p> {
    fn new(pattern: &'p str) -> Translator<'p> {
        Translator {
            rest: pattern.chars().peekable(),
            out: String::new(),
        }
    }

    fn all(mut self) -> Result<String, String> {
        while let Some(c) = self.rest.next() {
            match c {
                '\\' => self.escape()?,
                '[' => self.class()?,
                '(' => self.group()?,
                '{' => self.repeat()?,
                c => self.out.push(c),
            }
        }
        Ok(self.out)
    }

    /// Takes what follows if it begins with this.
    fn take(&mut self, text: &str) -> bool {
        let mut ahead = self.rest.clone();
        let fits = text.chars().all(|c| ahead.next() == Some(c));
        if fits {
            self.rest = ahead;
        }
        fits
    }

    fn literal(&mut self, c: char) {
        self.out += &literal(c);
    }

    /// Behind an opening parenthesis: flags and names that RE2 knows.
    fn group(&mut self) -> Result<(), String> {
        self.out.push('(');
        if !self.take("?") {
            return Ok(());
        }
        self.out.push('?');
        if self.take("P<") || self.take("<") {
            self.out += "P<";
            return Ok(());
        }
        loop {
            match self.rest.next() {
                Some(c @ ('i' | 'm' | 's' | 'U' | '-')) => self.out.push(c),
                Some(c @ (':' | ')')) => {
                    self.out.push(c);
                    return Ok(());
                }
                Some(c) => return Err(format!("`(?{c}` is no group")),
                None => return Err("a group does not end".into()),
            }
        }
    }

    /// Behind an opening brace: a count, or a brace that stands for itself.
    fn repeat(&mut self) -> Result<(), String> {
        let ahead: String = self
            .rest
            .clone()
            .take_while(|&c| c != '}')
            .take(16)
            .collect();
        let closed = self.rest.clone().nth(ahead.chars().count()) == Some('}');
        let (low, high) = ahead.split_once(',').unwrap_or((&ahead, ""));
        let digits = |s: &str| s.chars().all(|c| c.is_ascii_digit());
        if !closed || low.is_empty() || !digits(low) || !digits(high) {
            self.literal('{');
            return Ok(());
        }
        for n in [low, high].iter().filter(|n| !n.is_empty()) {
            if n.parse::<u32>().map_or(true, |n| n > MOST_REPEATS) {
                return Err(format!(
                    "{{{ahead}}} repeats more than {MOST_REPEATS} times"
                ));
            }
        }
        self.out.push('{');
        Ok(())
    }

    /// Behind a backslash outside a class.
    fn escape(&mut self) -> Result<(), String> {
        match self.rest.peek() {
            Some('b') => self.out += r"(?-u:\b)",
            Some('B') => self.out += r"(?-u:\B)",
            Some('A') => self.out += r"\A",
            Some('z') => self.out += r"\z",
            Some('C') => return Err(r"`\C` (one byte) is not supported".into()),
            Some('Q') => {
                self.rest.next();
                while !self.take(r"\E") {
                    let Some(c) = self.rest.next() else {
                        return Ok(());
                    };
                    self.literal(c);
                }
                return Ok(());
            }
            Some('E') => {}
            _ => {
                let member = self.escaped()?;
                match member {
                    Member::One(c) => self.literal(c),
                    // ASCII sets do not grow where case is ignored.
                    Member::Set(set) if set.starts_with('[') => {
                        self.out += &format!("(?-i:{set})");
                    }
                    Member::Set(set) => self.out += &set,
                }
                return Ok(());
            }
        }
        self.rest.next();
        Ok(())
    }

    /// Behind a backslash: a character, or a set of them.
    fn escaped(&mut self) -> Result<Member, String> {
        let c = self.rest.next().ok_or("it ends in a backslash")?;
        let set = |s: &str| Ok(Member::Set(s.to_string()));
        match c {
            'd' => set("[0-9]"),
            'D' => set("[^0-9]"),
            's' => set(r"[\t\n\f\r ]"),
            'S' => set(r"[^\t\n\f\r ]"),
            'w' => set("[0-9A-Za-z_]"),
            'W' => set("[^0-9A-Za-z_]"),
            'p' | 'P' => self.property(c == 'P').map(Member::Set),
            'a' => Ok(Member::One('\x07')),
            'f' => Ok(Member::One('\x0c')),
            'n' => Ok(Member::One('\n')),
            'r' => Ok(Member::One('\r')),
            't' => Ok(Member::One('\t')),
            'v' => Ok(Member::One('\x0b')),
            'x' => self.hexadecimal().map(Member::One),
            '0'..='7' => self.octal(c).map(Member::One),
            c if c.is_ascii_punctuation() || c.is_ascii_control() || c == ' ' => Ok(Member::One(c)),
            c => Err(format!("there is no escape `\\{c}`")),
        }
    }

    /// Behind `\p`: a letter, or a name in braces.
    fn property(&mut self, mut not: bool) -> Result<String, String> {
        let mut name = String::new();
        match self.rest.next() {
            Some('{') => {
                if self.take("^") {
                    not = !not;
                }
                loop {
                    match self.rest.next() {
                        Some('}') => break,
                        Some(c) if c.is_ascii_alphanumeric() || c == '_' => name.push(c),
                        _ => return Err("a property's name does not end".into()),
                    }
                }
            }
            Some(c) if c.is_ascii_alphabetic() => name.push(c),
            _ => return Err("a property has no name".into()),
        }
        Ok(format!(r"\{}{{{name}}}", if not { 'P' } else { 'p' }))
    }

    fn hexadecimal(&mut self) -> Result<char, String> {
        let bad = || r"`\x` is not followed by a character's number".to_string();
        let digits: String = match self.take("{") {
            true => {
                let all = self
                    .rest
                    .clone()
                    .take_while(|&c| c != '}')
                    .take(9)
                    .collect::<String>();
                if !self.take(&format!("{all}}}")) {
                    return Err(bad());
                }
                all
            }
            false => self.rest.by_ref().take(2).collect(),
        };
        let number = u32::from_str_radix(&digits, 16).map_err(|_| bad())?;
        char::from_u32(number).ok_or_else(bad)
    }

    /// Up to three octal digits; a lone one that is not 0 would refer to a group.
    fn octal(&mut self, first: char) -> Result<char, String> {
        let mut number = first.to_digit(8).unwrap_or(0);
        let mut count = 1;
        while let Some(d) = self
            .rest
            .peek()
            .and_then(|c| c.to_digit(8))
            .filter(|_| count < 3)
        {
            number = number * 8 + d;
            count += 1;
            self.rest.next();
        }
        if count == 1 && number != 0 {
            return Err(format!(
                "`\\{first}` refers to a group, which cannot be matched"
            ));
        }
        char::from_u32(number).ok_or_else(|| "an octal number is no character".into())
    }

    /// Behind an opening bracket.
    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.take("^") {
            self.out.push('^');
        }
        let mut first = true;
        loop {
            if !first && self.take("]") {
                self.out.push(']');
                return Ok(());
            }
            first = false;
            let low = match self.member()? {
                Member::Set(set) => {
                    self.out += &set;
                    continue;
                }
                Member::One(c) => c,
            };
            self.literal(low);
            let mut ahead = self.rest.clone();
            if ahead.next() == Some('-') && ahead.next().is_some_and(|c| c != ']') {
                self.rest.next();
                let Member::One(high) = self.member()? else {
                    return Err("a range in a class ends in a set".into());
                };
                self.out.push('-');
                self.literal(high);
            }
        }
    }

    fn member(&mut self) -> Result<Member, String> {
        match self.rest.next() {
            None => Err("a class does not end".into()),
            Some('\\') => self.escaped(),
            Some('[') if self.rest.peek() == Some(&':') => {
                let name: String = self
                    .rest
                    .clone()
                    .skip(1)
                    .take_while(|&c| c != ':')
                    .take(12)
                    .collect();
                if !self.take(&format!(":{name}:]")) {
                    return Ok(Member::One('['));
                }
                match CLASSES.contains(&name.trim_start_matches('^')) {
                    true => Ok(Member::Set(format!("[:{name}:]"))),
                    false => Err(format!("there is no class `[:{name}:]`")),
                }
            }
            Some(c) => Ok(Member::One(c)),
        }
    }
}

/// A character that stands for itself, in a class or not.
fn literal(c: char) -> String {
    let mut out = String::new();
    match c {
        c if c.is_ascii_alphanumeric() || !c.is_ascii() => out.push(c),
        c => drop(write!(out, r"\x{{{:x}}}", c as u32)),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        let p = Pattern::new(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));
        p.matches(text)
    }

    /// What ONNX Runtime 1.32 answers.
    #[test]
    fn matches_as_re2() {
        let yes = [
            (r"\d+", "123"),
            (r"\pL+", "é"),
            ("(?i)É", "é"),
            ("a|ab", "ab"),
            ("[a&&b]", "&"),
            (r"\Q.*\E", ".*"),
            (".", "é"),
            ("(?P<n>a)(?<m>b)", "ab"),
            ("[[:word:]]+", "a_"),
            ("[^[:alpha:]]", "1"),
            (r"\x{e9}", "é"),
            (r"\141", "a"),
            (r"\bab\b", "ab"),
            ("", ""),
            ("(?s).", "\n"),
            (r"\p{Greek}+", "αβ"),
            (r"[\d\-x]", "-"),
            ("[a-]", "-"),
            ("[]a]", "]"),
            (r"\z", ""),
            (r"[\pL]", "é"),
            (r"\_", "_"),
            ("[[a]", "["),
            ("a{,2}", "a{,2}"),
            ("x{2", "x{2"),
            ("(?i)straße", "STRAßE"),
            ("(?i)k", "\u{212a}"),
            ("[[:^alpha:]]", "1"),
            (r"\pZ", "\u{a0}"),
            (r"\p{Lu}", "A"),
            (r"\p{^Lu}", "a"),
            (r"\07", "\x07"),
            ("}", "}"),
            ("]", "]"),
            ("{", "{"),
            (r"(\W|^)[\w.\-]{0,25}@x(\W|$)", "a@x"),
        ];
        for (pattern, text) in yes {
            assert!(
                matches(pattern, text),
                "{pattern:?} does not match {text:?}"
            );
        }
        let no = [
            (r"\d+", "١٢"),
            (r"\w+", "é"),
            (r"\s", "\x0b"),
            ("a$b", "ab"),
            (".", "\n"),
            ("(?-s).", "\n"),
            ("a", "ab"),
            ("b", "ab"),
            (r"\Bab", "ab"),
            (r"(?i)\w", "\u{212a}"),
        ];
        for (pattern, text) in no {
            assert!(!matches(pattern, text), "{pattern:?} matches {text:?}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for pattern in [
            "(",
            ")(",
            "a)(b",
            "(?x)a b",
            "a{1001}",
            r"\h",
            r"\1",
            r"\é",
            r"\C",
            "[a",
            r"\",
            "[b-a]",
            "(?=a)",
            r"\p{Nothing}",
            r"\x{110000}",
            "[[:nothing:]]",
            "*a",
            "((a{1000}){1000}){1000}",
        ] {
            assert!(Pattern::new(pattern).is_err(), "{pattern:?} compiles");
        }
        let deep = "(".repeat(100_000) + &")".repeat(100_000);
        assert!(Pattern::new(&deep).is_err());
    }
}
