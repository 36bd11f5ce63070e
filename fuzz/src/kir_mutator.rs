//! Changes to texts that keep most of them texts: tokens for tokens of their kind,
//! lines moved, repeated, left out.

use crate::random::Random;
use kiln_ir::op::Op;
use kiln_ir::{BinaryFn, CompareFn, DType, ReduceFn, UnaryFn};
use libfuzzer_sys::fuzzer_mutate;
use std::ops::Range;

/// libFuzzer's custom mutator.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut r = Random::new(seed);
    let text = std::str::from_utf8(&data[..size]).ok().map(str::to_string);
    let Some(mut text) = text.filter(|_| !r.once_in(4)) else {
        return fuzzer_mutate(data, size, max_size);
    };
    for _ in 0..1 + r.below(3) {
        text = match r.below(6) {
            0 => change_lines(&text, &mut r),
            _ => change_token(&text, &mut r),
        };
    }
    let bytes = text.as_bytes();
    let kept = bytes.len().min(max_size);
    data[..kept].copy_from_slice(&bytes[..kept]);
    kept
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Word,
    Value,
    Symbol,
    Number,
    Other,
}

fn tokens(text: &str) -> Vec<(Kind, Range<usize>)> {
    let word = |c: char| c.is_alphanumeric() || "_.$".contains(c);
    let (mut out, mut at) = (vec![], 0);
    while let Some(c) = text[at..].chars().next() {
        let from = at;
        let sigil = "%@-".contains(c);
        at += c.len_utf8();
        if sigil || word(c) {
            let rest = &text[at..];
            at += rest.find(|c| !word(c)).unwrap_or(rest.len());
        }
        let kind = match c {
            '%' => Kind::Value,
            '@' => Kind::Symbol,
            '-' if at > from + 1 => Kind::Number,
            c if c.is_ascii_digit() => Kind::Number,
            c if word(c) => Kind::Word,
            _ => Kind::Other,
        };
        if !c.is_whitespace() {
            out.push((kind, from..at));
        }
    }
    out
}

/// Another token of its kind, from this text or from all there are.
fn change_token(text: &str, r: &mut Random) -> String {
    let tokens = tokens(text);
    if tokens.is_empty() {
        return vocabulary(r);
    }
    let (kind, range) = r.one_of(&tokens);
    let of_kind: Vec<&str> = tokens
        .iter()
        .filter(|(k, _)| *k == kind)
        .map(|(_, range)| &text[range.clone()])
        .collect();
    let new = match kind {
        Kind::Number if r.once_in(2) => r.integer().to_string(),
        Kind::Word if r.once_in(2) => vocabulary(r),
        Kind::Other if r.once_in(3) => String::new(),
        // A name or a size where a number stands, and the reverse.
        _ if r.once_in(8) => text[r.one_of(&tokens).1].to_string(),
        _ => r.one_of(&of_kind).to_string(),
    };
    format!("{}{new}{}", &text[..range.start], &text[range.end..])
}

fn vocabulary(r: &mut Random) -> String {
    const WORDS: [&str; 24] = [
        "axis", "axes", "keep", "to", "shape", "value", "perm", "true", "false", "mode", "name",
        "symbol", "sizes", "state", "const", "guard", "splat", "expr", "hex", "inf", "nan",
        "yield", "return", "max",
    ];
    match r.below(7) {
        0 => r.one_of(&WORDS).to_string(),
        1 => r.one_of(DType::ALL).name().to_string(),
        2 => r.one_of(UnaryFn::ALL).name().to_string(),
        3 => r.one_of(BinaryFn::ALL).name().to_string(),
        4 => r.one_of(CompareFn::ALL).name().to_string(),
        5 => r.one_of(ReduceFn::ALL).name().to_string(),
        _ => r.one_of(Op::TABLE).to_string(),
    }
}

fn change_lines(text: &str, r: &mut Random) -> String {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    if lines.is_empty() {
        return String::new();
    }
    let at = r.below(lines.len());
    match r.below(3) {
        0 => drop(lines.remove(at)),
        1 => lines.insert(r.below(lines.len()), lines[at]),
        _ => {
            let other = r.below(lines.len());
            lines.swap(at, other);
        }
    }
    lines.concat()
}
