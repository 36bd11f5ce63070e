//! What ops on strings compute of one element: one definition, which both the
//! interpreter and the runtime use.

mod number;
mod pattern;

pub use number::{format_number, parse_number};
pub use pattern::Pattern;

use serde::{Deserialize, Serialize};

/// Bytes of one string beyond which none is made: a loop may double one each time.
pub const MOST_BYTES: usize = 1 << 28;

/// Which letters a change of case knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Letters {
    /// A to Z alone.
    Ascii,
    /// Unicode's simple mappings: one character becomes one.
    Unicode,
    /// The same, but that i has İ and ı has I, as in Turkish.
    Turkic,
}

impl Letters {
    /// All of them, with their names in the text form.
    pub const ALL: &'static [(Letters, &'static str)] = &[
        (Letters::Ascii, "ascii"),
        (Letters::Unicode, "unicode"),
        (Letters::Turkic, "turkic"),
    ];

    /// The name in the text form.
    pub fn name(self) -> &'static str {
        let row = Letters::ALL.iter().find(|r| r.0 == self);
        row.map_or("", |r| r.1)
    }

    /// The letters of this name.
    pub fn from_name(name: &str) -> Option<Letters> {
        let row = Letters::ALL.iter().find(|r| r.1 == name);
        row.map(|r| r.0)
    }

    /// The string in capital letters.
    pub fn upper(self, s: &str) -> String {
        match self {
            Letters::Ascii => s.to_ascii_uppercase(),
            Letters::Unicode => s.chars().map(upper).collect(),
            Letters::Turkic => s
                .chars()
                .map(|c| if c == 'i' { 'İ' } else { upper(c) })
                .collect(),
        }
    }

    /// The string in small letters.
    pub fn lower(self, s: &str) -> String {
        match self {
            Letters::Ascii => s.to_ascii_lowercase(),
            Letters::Unicode => s.chars().map(lower).collect(),
            Letters::Turkic => s
                .chars()
                .map(|c| if c == 'I' { 'ı' } else { lower(c) })
                .collect(),
        }
    }
}

fn upper(c: char) -> char {
    let mut all = c.to_uppercase();
    match (all.next(), all.next()) {
        (Some(one), None) => one,
        // The simple mapping of the Greek letters whose full one spells out the iota.
        _ => match c {
            'ᾀ'..='ᾇ' | 'ᾐ'..='ᾗ' | 'ᾠ'..='ᾧ' => {
                char::from_u32(c as u32 + 8).unwrap_or(c)
            }
            'ᾳ' => 'ᾼ',
            'ῃ' => 'ῌ',
            'ῳ' => 'ῼ',
            _ => c,
        },
    }
}

fn lower(c: char) -> char {
    let mut all = c.to_lowercase();
    match (all.next(), all.next()) {
        (Some(one), None) => one,
        _ if c == 'İ' => 'i',
        _ => c,
    }
}

/// One string after the other.
pub fn join(a: &str, b: &str) -> Result<String, String> {
    match a.len() + b.len() <= MOST_BYTES {
        true => Ok([a, b].concat()),
        false => Err(format!(
            "a string of {} bytes is beyond the {MOST_BYTES} that one may have",
            a.len() + b.len()
        )),
    }
}

/// The pieces between a delimiter, or between runs of white space where it is empty
/// (none at the ends then); at most `most` times cut, where that is given. As Python's
/// `str.split`, which the standard's reference is made of.
pub fn split<'s>(s: &'s str, delimiter: &str, most: Option<usize>) -> Vec<&'s str> {
    let most = most.unwrap_or(usize::MAX).saturating_add(1);
    if !delimiter.is_empty() {
        return s.splitn(most, delimiter).collect();
    }
    let (mut out, mut rest) = (vec![], s.trim_start_matches(is_space));
    while !rest.is_empty() && out.len() + 1 < most {
        let (piece, after) = rest.split_once(is_space).unwrap_or((rest, ""));
        out.push(piece);
        rest = after.trim_start_matches(is_space);
    }
    if !rest.is_empty() {
        out.push(rest);
    }
    out
}

/// How many different strings come before each, in the order of their bytes.
pub fn ranks<S: AsRef<str>>(all: &[S]) -> Vec<i64> {
    let mut order: Vec<&str> = all.iter().map(AsRef::as_ref).collect();
    order.sort_unstable();
    order.dedup();
    let before = |s: &S| order.partition_point(|o| *o < s.as_ref()) as i64;
    all.iter().map(before).collect()
}

/// White space as Python has it: Unicode's, and four separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_changes_one_character_to_one() {
        let both = |l: Letters, s: &str| (l.lower(s), l.upper(s));
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        assert_eq!(
            both(Letters::Unicode, "Straße Éa"),
            pair("straße éa", "STRAßE ÉA")
        );
        assert_eq!(both(Letters::Unicode, "İiIı"), pair("iiiı", "İIII"));
        assert_eq!(both(Letters::Turkic, "İiIı"), pair("iiıı", "İİII"));
        assert_eq!(both(Letters::Ascii, "AbÉé"), pair("abÉé", "ABÉé"));
        assert_eq!(
            both(Letters::Unicode, "ΣΑΣ ᾳ ﬁ"),
            pair("σασ ᾳ ﬁ", "ΣΑΣ ᾼ ﬁ")
        );
    }

    #[test]
    fn ranks_are_among_different_strings() {
        assert_eq!(ranks(&["b", "", "é", "b", "Z"]), [2, 0, 3, 2, 1]);
        assert_eq!(ranks::<&str>(&[]), [0; 0]);
    }

    /// From Python 3.11: `s.split(delimiter or None, most)`.
    #[test]
    fn splitting_is_pythons() {
        let cut = |s, d, most| split(s, d, most).join("|");
        assert_eq!(cut("a,b,,c,", ",", None), "a|b||c|");
        assert_eq!(cut("a,b,,c,", ",", Some(2)), "a|b|,c,");
        assert_eq!(cut("a,b", ",", Some(0)), "a,b");
        assert_eq!(split("", ",", None), [""]);
        assert_eq!(cut(";;;a;;;", ";;", None), "|;a|;");
        assert_eq!(cut("  x y\u{a0} z ", "", None), "x|y|z");
        assert_eq!(cut("  x y   z ", "", Some(1)), "x|y   z ");
        assert_eq!(cut("  x y   z ", "", Some(0)), "x y   z ");
        assert_eq!(split("", "", None), [""; 0]);
        assert_eq!(split(" \u{1c}\u{2003}", "", Some(0)), [""; 0]);
    }
}
