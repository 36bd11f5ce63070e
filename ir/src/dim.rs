//! Symbolic dimensions: integer polynomials over named sizes, kept normalised.
//!
//! `batch*seq + 15`, `(seq + 15) / 16`, `max(a, b)`: two dims that are equal as
//! polynomials are equal as values, so `==` is a sound *Yes*; [`Dim::same`] also
//! answers *No* where it can and *Unknown* otherwise. `/` is floor division.
//! Named sizes are never negative.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::ops;
use std::str::FromStr;
use std::sync::Arc;

/// An answer about symbolic sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tri {
    /// True for every binding.
    Yes,
    /// False for every binding.
    No,
    /// Depends on the binding: what matters becomes a guard.
    Unknown,
}

/// Parentheses in parentheses that a text may have: more are an attack on the stack.
const MAX_NESTING: usize = 256;

/// What a monomial is a product of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Atom {
    Sym(Arc<str>),
    Div(Dim, Dim),
    Max(Dim, Dim),
    Min(Dim, Dim),
}

type Monomial = Vec<(Atom, u32)>;

/// A size: a constant or an expression over named sizes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim(Repr);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    Const(i64),
    /// Sorted by monomial, no zero coefficient, not a lone constant.
    Poly(Arc<Vec<(Monomial, i64)>>),
}

/// Why a dim has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DimError {
    /// The symbol has no binding.
    Unbound(String),
    /// Arithmetic left the 64-bit range.
    Overflow(String),
    /// Division by zero.
    DivisionByZero(String),
    /// The text is not a dim.
    Parse(String),
}

impl fmt::Display for DimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DimError::Unbound(s) => write!(f, "the size `{s}` has no value"),
            DimError::Overflow(d) => write!(f, "the size `{d}` leaves the 64-bit range"),
            DimError::DivisionByZero(d) => write!(f, "the size `{d}` divides by zero"),
            DimError::Parse(t) => write!(f, "`{t}` is not a size expression"),
        }
    }
}

impl std::error::Error for DimError {}

/// Values of named sizes.
pub type Binding = BTreeMap<Arc<str>, i64>;

impl Dim {
    /// The size zero.
    pub const ZERO: Dim = Dim(Repr::Const(0));
    /// The size one.
    pub const ONE: Dim = Dim(Repr::Const(1));

    /// A named size.
    pub fn sym(name: impl Into<Arc<str>>) -> Dim {
        Dim::atom(Atom::Sym(name.into()))
    }

    /// The constant's value, if this is one.
    pub fn as_const(&self) -> Option<i64> {
        match self.0 {
            Repr::Const(c) => Some(c),
            Repr::Poly(_) => None,
        }
    }

    /// The name, if this is a bare symbol.
    pub fn as_sym(&self) -> Option<&Arc<str>> {
        match &self.0 {
            Repr::Poly(terms) => match &terms[..] {
                [(mono, 1)] => match &mono[..] {
                    [(Atom::Sym(s), 1)] => Some(s),
                    _ => None,
                },
                _ => None,
            },
            Repr::Const(_) => None,
        }
    }

    /// The product of all dims (1 for none).
    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
        dims.into_iter().fold(Dim::ONE, |acc, d| acc * d.clone())
    }

    /// Floor division. `x / 1 = x`; exact where the polynomial divides.
    pub fn floor_div(&self, by: &Dim) -> Dim {
        if let Some(q) = self.div_exact(by) {
            return q;
        }
        match (self.as_const(), by.as_const()) {
            (Some(a), Some(b)) if b != 0 && a.checked_div(b).is_some() => {
                (a.div_euclid(b) - if b < 0 && a.rem_euclid(b) != 0 { 1 } else { 0 }).into()
            }
            (_, Some(b)) if b > 0 => {
                // Terms whose coefficient divides leave the floor: (16n + 3) / 16 = n + 3/16.
                let (whole, rest): (Vec<_>, Vec<_>) =
                    self.terms().into_iter().partition(|(_, c)| c % b == 0);
                let whole = Dim::from_terms(whole.into_iter().map(|(m, c)| (m, c / b)));
                let rest = Dim::from_terms(rest);
                match rest.as_const() {
                    Some(r) => whole + Dim::from(r.div_euclid(b)),
                    None => whole + Dim::atom(Atom::Div(rest, b.into())),
                }
            }
            _ => Dim::atom(Atom::Div(self.clone(), by.clone())),
        }
    }

    /// Division rounding up, for positive divisors.
    pub fn ceil_div(&self, by: &Dim) -> Dim {
        if let Some(q) = self.div_exact(by) {
            return q;
        }
        (self.clone() + by.clone() - Dim::ONE).floor_div(by)
    }

    /// The remainder of floor division.
    pub fn modulo(&self, by: &Dim) -> Dim {
        self.clone() - self.floor_div(by) * by.clone()
    }

    /// `self / by` if that is exact for every binding, by polynomial division.
    pub fn div_exact(&self, by: &Dim) -> Option<Dim> {
        if by.as_const() == Some(1) {
            return Some(self.clone());
        }
        if *self == *by && by.as_const() != Some(0) {
            return Some(Dim::ONE);
        }
        let divisor = by.terms();
        let (lead_m, lead_c) = divisor.last()?.clone();
        if lead_c == 0 {
            return None;
        }
        let (mut rest, mut quotient) = (self.clone(), Dim::ZERO);
        for _ in 0..64 {
            if rest == Dim::ZERO {
                return Some(quotient);
            }
            let (m, c) = rest.terms().iter().rev().find_map(|(m, c)| {
                // None on the one quotient beyond 64 bits.
                (c.checked_rem(lead_c)? == 0)
                    .then(|| mono_div(m, &lead_m).map(|q| (q, c / lead_c)))
                    .flatten()
            })?;
            let term = Dim::from_terms([(m, c)]);
            rest = rest - term.clone() * by.clone();
            quotient = quotient + term;
        }
        None
    }

    /// The larger of two sizes.
    pub fn maximum(&self, other: &Dim) -> Dim {
        match (self.le(other), other.le(self)) {
            (Tri::Yes, _) => other.clone(),
            (_, Tri::Yes) => self.clone(),
            _ => {
                let (a, b) = if self < other {
                    (self, other)
                } else {
                    (other, self)
                };
                Dim::atom(Atom::Max(a.clone(), b.clone()))
            }
        }
    }

    /// The smaller of two sizes.
    pub fn minimum(&self, other: &Dim) -> Dim {
        match (self.le(other), other.le(self)) {
            (Tri::Yes, _) => self.clone(),
            (_, Tri::Yes) => other.clone(),
            _ => {
                let (a, b) = if self < other {
                    (self, other)
                } else {
                    (other, self)
                };
                Dim::atom(Atom::Min(a.clone(), b.clone()))
            }
        }
    }

    /// Whether the two are equal.
    pub fn same(&self, other: &Dim) -> Tri {
        if self == other {
            return Tri::Yes;
        }
        let diff = self.clone() - other.clone();
        if diff.as_const().is_some() {
            return Tri::No;
        }
        let strictly = |d: &Dim| (d.clone() - Dim::ONE).is_nonneg();
        if strictly(&diff) || strictly(&-diff) {
            Tri::No
        } else {
            Tri::Unknown
        }
    }

    /// Whether `self <= other`.
    pub fn le(&self, other: &Dim) -> Tri {
        let diff = other.clone() - self.clone();
        if let Some(c) = diff.as_const() {
            return if c >= 0 { Tri::Yes } else { Tri::No };
        }
        if diff.is_nonneg() {
            Tri::Yes
        } else if (-diff - Dim::ONE).is_nonneg() {
            Tri::No
        } else {
            Tri::Unknown
        }
    }

    /// Proved never negative (false also where it is not known).
    pub fn is_nonneg(&self) -> bool {
        match &self.0 {
            Repr::Const(c) => *c >= 0,
            Repr::Poly(terms) => terms
                .iter()
                .all(|(m, c)| *c >= 0 && m.iter().all(|(a, p)| p % 2 == 0 || a.is_nonneg())),
        }
    }

    /// How many terms the expression has as it is written out, those inside divisions,
    /// maxima and minima among them, once for each power. What is beyond the largest
    /// number counts as that.
    pub fn term_count(&self) -> usize {
        self.count(&|_| 1)
    }

    /// How many factors stand in the expression as it is written out, a power once
    /// for each time, with all that is inside it; a constant is one. What is beyond the
    /// largest number counts as that.
    pub fn factor_count(&self) -> usize {
        self.count(&|powers: u64| usize::try_from(powers).unwrap_or(usize::MAX).max(1))
    }

    /// How deep parentheses nest in the text of this size. What nests deeper than
    /// 256 does not read back.
    pub fn nesting(&self) -> usize {
        let Repr::Poly(terms) = &self.0 else { return 0 };
        let atoms = terms.iter().flat_map(|(mono, _)| mono);
        let depth = |atom: &Atom| match atom {
            Atom::Sym(_) => 0,
            // ((a) / (b))
            Atom::Div(a, b) => 2 + a.nesting().max(b.nesting()),
            Atom::Max(a, b) | Atom::Min(a, b) => 1 + a.nesting().max(b.nesting()),
        };
        atoms.map(|(atom, _)| depth(atom)).max().unwrap_or(0)
    }

    /// The sum of `of_term(sum of its powers)` over all terms.
    fn count(&self, of_term: &dyn Fn(u64) -> usize) -> usize {
        let Repr::Poly(terms) = &self.0 else { return 1 };
        let inner = |atom: &Atom| match atom {
            Atom::Sym(_) => 0,
            Atom::Div(a, b) | Atom::Max(a, b) | Atom::Min(a, b) => {
                a.count(of_term).saturating_add(b.count(of_term))
            }
        };
        let each = terms.iter().map(|(mono, _)| {
            let powers = mono.iter().map(|(_, p)| u64::from(*p)).sum();
            let nested = (mono.iter()).map(|(a, p)| inner(a).saturating_mul(*p as usize));
            nested.fold(of_term(powers), usize::saturating_add)
        });
        each.fold(0, usize::saturating_add)
    }

    /// Every symbol in the expression, in order.
    pub fn symbols(&self, out: &mut std::collections::BTreeSet<Arc<str>>) {
        for (mono, _) in self.terms() {
            for (atom, _) in mono {
                match atom {
                    Atom::Sym(s) => {
                        out.insert(s);
                    }
                    Atom::Div(a, b) | Atom::Max(a, b) | Atom::Min(a, b) => {
                        a.symbols(out);
                        b.symbols(out);
                    }
                }
            }
        }
    }

    /// Replaces symbols by dims.
    pub fn substitute(&self, with: &dyn Fn(&str) -> Option<Dim>) -> Dim {
        if self.as_const().is_some() {
            return self.clone();
        }
        self.terms().into_iter().fold(Dim::ZERO, |sum, (mono, c)| {
            let term = mono.into_iter().fold(Dim::from(c), |prod, (atom, p)| {
                let base = match atom {
                    Atom::Sym(s) => with(&s).unwrap_or_else(|| Dim::sym(s)),
                    Atom::Div(a, b) => a.substitute(with).floor_div(&b.substitute(with)),
                    Atom::Max(a, b) => a.substitute(with).maximum(&b.substitute(with)),
                    Atom::Min(a, b) => a.substitute(with).minimum(&b.substitute(with)),
                };
                (0..p).fold(prod, |acc, _| acc * base.clone())
            });
            sum + term
        })
    }

    /// The value under a binding.
    pub fn eval(&self, binding: &Binding) -> Result<i64, DimError> {
        let terms = match &self.0 {
            Repr::Const(c) => return Ok(*c),
            Repr::Poly(terms) => terms,
        };
        let overflow = || DimError::Overflow(self.to_string());
        let mut sum = 0i64;
        for (mono, c) in terms.iter() {
            let mut term = *c;
            for (atom, power) in mono {
                let value = match atom {
                    Atom::Sym(s) => *binding
                        .get(s)
                        .ok_or_else(|| DimError::Unbound(s.to_string()))?,
                    Atom::Div(a, b) => {
                        let (a, b) = (a.eval(binding)?, b.eval(binding)?);
                        if b == 0 {
                            return Err(DimError::DivisionByZero(self.to_string()));
                        }
                        let q = a.checked_div(b).ok_or_else(overflow)?;
                        if a % b != 0 && (a < 0) != (b < 0) {
                            q - 1
                        } else {
                            q
                        }
                    }
                    Atom::Max(a, b) => a.eval(binding)?.max(b.eval(binding)?),
                    Atom::Min(a, b) => a.eval(binding)?.min(b.eval(binding)?),
                };
                for _ in 0..*power {
                    term = term.checked_mul(value).ok_or_else(overflow)?;
                }
            }
            sum = sum.checked_add(term).ok_or_else(overflow)?;
        }
        Ok(sum)
    }

    fn atom(atom: Atom) -> Dim {
        Dim(Repr::Poly(Arc::new(vec![(vec![(atom, 1)], 1)])))
    }

    /// The terms, the leading monomial last.
    fn terms(&self) -> Vec<(Monomial, i64)> {
        match &self.0 {
            Repr::Const(0) => vec![],
            Repr::Const(c) => vec![(vec![], *c)],
            Repr::Poly(terms) => terms.to_vec(),
        }
    }

    fn from_terms(terms: impl IntoIterator<Item = (Monomial, i64)>) -> Dim {
        let mut map: BTreeMap<Monomial, i64> = BTreeMap::new();
        for (m, c) in terms {
            let slot = map.entry(m).or_default();
            *slot = slot.saturating_add(c);
        }
        map.retain(|_, c| *c != 0);
        match map.len() {
            0 => Dim::ZERO,
            1 if map.contains_key(&vec![]) => Dim(Repr::Const(map[&vec![]])),
            _ => Dim(Repr::Poly(Arc::new(map.into_iter().collect()))),
        }
    }
}

impl Atom {
    fn is_nonneg(&self) -> bool {
        match self {
            Atom::Sym(_) => true,
            Atom::Div(a, b) | Atom::Min(a, b) => a.is_nonneg() && b.is_nonneg(),
            Atom::Max(a, b) => a.is_nonneg() || b.is_nonneg(),
        }
    }
}

fn mono_mul(a: &Monomial, b: &Monomial) -> Monomial {
    let mut powers: BTreeMap<Atom, u32> = a.iter().cloned().collect();
    for (atom, p) in b {
        *powers.entry(atom.clone()).or_default() += p;
    }
    powers.into_iter().collect()
}

fn mono_div(a: &Monomial, b: &Monomial) -> Option<Monomial> {
    let mut powers: BTreeMap<Atom, u32> = a.iter().cloned().collect();
    for (atom, p) in b {
        let slot = powers.get_mut(atom)?;
        *slot = slot.checked_sub(*p)?;
    }
    powers.retain(|_, p| *p != 0);
    Some(powers.into_iter().collect())
}

impl Default for Dim {
    /// 0.
    fn default() -> Dim {
        Dim::ZERO
    }
}

impl From<i64> for Dim {
    fn from(c: i64) -> Dim {
        Dim(Repr::Const(c))
    }
}

impl From<usize> for Dim {
    fn from(c: usize) -> Dim {
        Dim(Repr::Const(c as i64))
    }
}

impl From<i32> for Dim {
    fn from(c: i32) -> Dim {
        Dim(Repr::Const(c as i64))
    }
}

impl ops::Add for Dim {
    type Output = Dim;
    fn add(self, other: Dim) -> Dim {
        match (&self.0, &other.0) {
            (Repr::Const(a), Repr::Const(b)) => Dim(Repr::Const(a.saturating_add(*b))),
            _ => Dim::from_terms(self.terms().into_iter().chain(other.terms())),
        }
    }
}

impl ops::Neg for Dim {
    type Output = Dim;
    fn neg(self) -> Dim {
        self * Dim::from(-1i64)
    }
}

impl ops::Sub for Dim {
    type Output = Dim;
    fn sub(self, other: Dim) -> Dim {
        self + -other
    }
}

impl ops::Mul for Dim {
    type Output = Dim;
    fn mul(self, other: Dim) -> Dim {
        match (&self.0, &other.0) {
            // Saturating: a product beyond 64 bits is reported where the size is
            // used, and never wraps to a small one.
            (Repr::Const(a), Repr::Const(b)) => Dim(Repr::Const(a.saturating_mul(*b))),
            (Repr::Const(1), _) => other,
            (_, Repr::Const(1)) => self,
            _ => {
                let right = other.terms();
                Dim::from_terms(self.terms().iter().flat_map(|(ma, ca)| {
                    right
                        .iter()
                        .map(|(mb, cb)| (mono_mul(ma, mb), ca.saturating_mul(*cb)))
                        .collect::<Vec<_>>()
                }))
            }
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = match &self.0 {
            Repr::Const(c) => return write!(f, "{c}"),
            Repr::Poly(terms) => terms,
        };
        // Constants read best last.
        let ordered = terms
            .iter()
            .filter(|(m, _)| !m.is_empty())
            .chain(terms.iter().filter(|(m, _)| m.is_empty()));
        for (i, (mono, c)) in ordered.enumerate() {
            // The absolute value of the least number is none that reads back.
            let least = *c == i64::MIN;
            match (i, *c < 0 && !least) {
                (0, true) => f.write_str("-")?,
                (0, false) => {}
                (_, true) => f.write_str(" - ")?,
                (_, false) => f.write_str(" + ")?,
            }
            let mut first = true;
            if least {
                write!(f, "(-{} - 1)", i64::MAX)?;
                first = false;
            } else if c.unsigned_abs() != 1 || mono.is_empty() {
                write!(f, "{}", c.unsigned_abs())?;
                first = false;
            }
            for (atom, power) in mono {
                for _ in 0..*power {
                    if !first {
                        f.write_str("*")?;
                    }
                    first = false;
                    write!(f, "{atom}")?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Sym(s) => f.write_str(s),
            Atom::Div(a, b) => write!(f, "(({a}) / ({b}))"),
            Atom::Max(a, b) => write!(f, "max({a}, {b})"),
            Atom::Min(a, b) => write!(f, "min({a}, {b})"),
        }
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Dim {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Repr::Const(c) => s.serialize_i64(c),
            Repr::Poly(_) => s.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Dim {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Dim, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Int(i64),
            Text(String),
        }
        match Form::deserialize(d)? {
            Form::Int(c) => Ok(c.into()),
            Form::Text(t) => t.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl FromStr for Dim {
    type Err = DimError;

    /// Sums and products of names, integers, `a / b` (floor), `max(a, b)`,
    /// `min(a, b)` and parentheses.
    fn from_str(text: &str) -> Result<Dim, DimError> {
        let bad = || DimError::Parse(text.chars().take(80).collect());
        let mut p = Parser {
            rest: text,
            depth: 0,
        };
        let dim = p.sum().ok_or_else(bad)?;
        // What is read can be printed and read again.
        if p.rest.trim_start().is_empty() && dim.nesting() < MAX_NESTING {
            Ok(dim)
        } else {
            Err(bad())
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    fn eat(&mut self, token: char) -> bool {
        let trimmed = self.rest.trim_start();
        match trimmed.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn sum(&mut self) -> Option<Dim> {
        // Deeper nesting than any printed dim has is an attack on the stack.
        self.depth += 1;
        if self.depth > MAX_NESTING {
            return None;
        }
        let mut acc = if self.eat('-') {
            -self.product()?
        } else {
            self.product()?
        };
        loop {
            if self.eat('+') {
                acc = acc + self.product()?;
            } else if self.eat('-') {
                acc = acc - self.product()?;
            } else {
                self.depth -= 1;
                return Some(acc);
            }
        }
    }

    fn product(&mut self) -> Option<Dim> {
        let mut acc = self.factor()?;
        loop {
            if self.eat('*') {
                let by = self.factor()?;
                // Longer products than any model has are an attack on memory, and
                // higher powers one on time.
                if acc.terms().len() * by.terms().len() > 4096 {
                    return None;
                }
                acc = acc * by;
                if acc.factor_count() > 4096 {
                    return None;
                }
            } else if self.eat('/') {
                let by = self.factor()?;
                if by.as_const() == Some(0) {
                    return None;
                }
                acc = acc.floor_div(&by);
            } else {
                return Some(acc);
            }
        }
    }

    fn factor(&mut self) -> Option<Dim> {
        if self.eat('(') {
            let inner = self.sum()?;
            return self.eat(')').then_some(inner);
        }
        let text = self.rest.trim_start();
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        let end = text.find(|c| !word(c)).unwrap_or(text.len());
        let (token, rest) = text.split_at(end);
        self.rest = rest;
        let first = token.chars().next()?;
        if first.is_ascii_digit() {
            return token.parse::<i64>().ok().map(Dim::from);
        }
        if (token == "max" || token == "min") && self.eat('(') {
            let a = self.sum()?;
            let b = self.eat(',').then(|| self.sum()).flatten()?;
            return self.eat(')').then(|| {
                if token == "max" {
                    a.maximum(&b)
                } else {
                    a.minimum(&b)
                }
            });
        }
        Some(Dim::sym(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(t: &str) -> Dim {
        t.parse().unwrap()
    }

    #[test]
    fn normal_form_decides_equality() {
        assert_eq!(d("(a + b)*2"), d("2*b + 2*a"));
        assert_eq!(d("a*b - b*a"), Dim::ZERO);
        assert_eq!(d("(16*n + 19) / 16"), d("n + 1"));
        assert_eq!(
            d("batch*seq*384").div_exact(&d("batch*384")),
            Some(d("seq"))
        );
        assert_eq!(
            d("(a + 1)*(b + 2)").div_exact(&d("b + 2")),
            Some(d("a + 1"))
        );
        assert_eq!(d("a + 1").div_exact(&d("a")), None);
    }

    #[test]
    fn answers_are_yes_no_unknown() {
        assert_eq!(d("a").same(&d("a")), Tri::Yes);
        assert_eq!(d("a + 1").same(&d("a")), Tri::No);
        assert_eq!(d("a + b + 1").same(&d("0")), Tri::No);
        assert_eq!(d("a").same(&d("b")), Tri::Unknown);
        assert_eq!(d("a").le(&d("a + b")), Tri::Yes);
        assert_eq!(d("a + 3").le(&d("a")), Tri::No);
        assert_eq!(d("a").maximum(&d("a + 1")), d("a + 1"));
    }

    #[test]
    fn prints_and_parses() {
        for text in [
            "batch*seq + 15",
            "((seq + 15) / (16))",
            "max(a, b)",
            "-3*a + 7",
            "min(2*a, b + 1)*c",
            "a + (0 - 9223372036854775807 - 1)",
            "(0 - 9223372036854775807 - 1)*a + b",
        ] {
            let dim = d(text);
            assert_eq!(dim, d(&dim.to_string()), "{text} printed as {dim}");
        }
        assert!("a +".parse::<Dim>().is_err());
        assert!("a / 0".parse::<Dim>().is_err());
        assert!("(".repeat(100_000).parse::<Dim>().is_err());
        let sum: Vec<String> = (0..100).map(|i| format!("a{i}")).collect();
        let product = vec![format!("({})", sum.join("+")); 20].join("*");
        assert!(product.parse::<Dim>().is_err());
        let power = vec!["(a + b)"; 2000].join("*");
        assert!(power.parse::<Dim>().is_err());
        // The one quotient of 64-bit integers that is none.
        let lowest = "(0 - 9223372036854775807 - 1)";
        let _ = format!("{lowest} / (0 - 1)").parse::<Dim>();
        let _ = format!("({lowest}*a + b) / (0 - 1)").parse::<Dim>();
    }

    #[test]
    fn what_is_read_can_be_printed_and_read_again() {
        let divided = |n: usize| {
            let ends: String = (0..n).map(|i| format!(" / b{i} + {i})")).collect();
            format!("{}a{ends}", "(".repeat(n)).parse::<Dim>()
        };
        let deep = divided(120).unwrap();
        assert!(deep.nesting() > 200);
        assert_eq!(deep.to_string().parse(), Ok(deep));
        assert!(divided(200).is_err());
    }

    #[test]
    fn terms_and_factors_are_counted_as_they_are_written() {
        let counts = |t: &str| (d(t).term_count(), d(t).factor_count());
        assert_eq!(counts("7"), (1, 1));
        assert_eq!(counts("a*a*b + 1"), (2, 4));
        assert_eq!(counts("(a + 3) / b"), (4, 4));
        assert_eq!(counts("((a + 3) / b) * ((a + 3) / b)"), (7, 8));
        let mut power = d("a");
        (0..24).for_each(|_| power = power.clone() * power.clone());
        assert_eq!((power.term_count(), power.factor_count()), (1, 1 << 24));
    }

    #[test]
    fn evaluates_with_overflow_checks() {
        let binding: Binding = [("a".into(), 7), ("b".into(), i64::MAX)].into();
        assert_eq!(d("(a + 15) / 16").eval(&binding), Ok(1));
        assert_eq!(d("max(a, 9) - min(a, 2)").eval(&binding), Ok(7));
        assert!(matches!(
            d("a*b").eval(&binding),
            Err(DimError::Overflow(_))
        ));
        assert!(matches!(d("z").eval(&binding), Err(DimError::Unbound(_))));
    }
}
