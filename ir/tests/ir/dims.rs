//! Sizes against plain integer arithmetic.

use kiln_ir::{Binding, Dim, Tri};
use proptest::prelude::*;

/// An expression, to be built as a [`Dim`] and computed beside it.
#[derive(Clone, Debug)]
enum Expr {
    Const(i64),
    Sym(usize),
    Add(Box<Expr>, Box<Expr>),
    Sub(Box<Expr>, Box<Expr>),
    Mul(Box<Expr>, Box<Expr>),
    Div(Box<Expr>, i64),
    Ceil(Box<Expr>, i64),
    Max(Box<Expr>, Box<Expr>),
    Min(Box<Expr>, Box<Expr>),
}

const NAMES: [&str; 3] = ["a", "b", "seq"];

impl Expr {
    fn dim(&self) -> Dim {
        match self {
            Expr::Const(c) => (*c).into(),
            Expr::Sym(i) => Dim::sym(NAMES[*i]),
            Expr::Add(a, b) => a.dim() + b.dim(),
            Expr::Sub(a, b) => a.dim() - b.dim(),
            Expr::Mul(a, b) => a.dim() * b.dim(),
            Expr::Div(a, b) => a.dim().floor_div(&(*b).into()),
            Expr::Ceil(a, b) => a.dim().ceil_div(&(*b).into()),
            Expr::Max(a, b) => a.dim().maximum(&b.dim()),
            Expr::Min(a, b) => a.dim().minimum(&b.dim()),
        }
    }

    fn value(&self, sizes: &[i64]) -> i128 {
        let v = |e: &Expr| e.value(sizes);
        match self {
            Expr::Const(c) => *c as i128,
            Expr::Sym(i) => sizes[*i] as i128,
            Expr::Add(a, b) => v(a) + v(b),
            Expr::Sub(a, b) => v(a) - v(b),
            Expr::Mul(a, b) => v(a) * v(b),
            Expr::Div(a, b) => v(a).div_euclid(*b as i128),
            Expr::Ceil(a, b) => -(-v(a)).div_euclid(*b as i128),
            Expr::Max(a, b) => v(a).max(v(b)),
            Expr::Min(a, b) => v(a).min(v(b)),
        }
    }
}

fn expr() -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![
        (-20i64..20).prop_map(Expr::Const),
        (0..NAMES.len()).prop_map(Expr::Sym)
    ];
    leaf.prop_recursive(4, 24, 2, |e| {
        let pair = (e.clone(), e.clone()).prop_map(|(a, b)| (Box::new(a), Box::new(b)));
        prop_oneof![
            pair.clone().prop_map(|(a, b)| Expr::Add(a, b)),
            pair.clone().prop_map(|(a, b)| Expr::Sub(a, b)),
            pair.clone().prop_map(|(a, b)| Expr::Mul(a, b)),
            pair.clone().prop_map(|(a, b)| Expr::Max(a, b)),
            pair.prop_map(|(a, b)| Expr::Min(a, b)),
            (e.clone(), 1i64..20).prop_map(|(a, b)| Expr::Div(Box::new(a), b)),
            (e, 1i64..20).prop_map(|(a, b)| Expr::Ceil(Box::new(a), b)),
        ]
    })
}

fn binding(sizes: &[i64]) -> Binding {
    let pairs = NAMES.iter().zip(sizes);
    pairs.map(|(n, s)| ((*n).into(), *s)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_size_has_the_value_of_its_expression(e in expr(), sizes in prop::array::uniform3(0i64..50)) {
        let dim = e.dim();
        match i64::try_from(e.value(&sizes)) {
            // Powers of a normal form may leave 64 bits where their sum does not.
            Ok(want) => if let Ok(have) = dim.eval(&binding(&sizes)) {
                prop_assert_eq!(have, want, "{}", dim);
            },
            Err(_) => prop_assert!(dim.eval(&binding(&sizes)).is_err(), "{}", dim),
        }
    }

    #[test]
    fn what_prints_parses_back(e in expr()) {
        let dim = e.dim();
        prop_assert_eq!(dim.to_string().parse::<Dim>(), Ok(dim));
    }

    #[test]
    fn answers_hold_for_every_binding(
        a in expr(),
        b in expr(),
        sizes in prop::array::uniform3(0i64..50),
    ) {
        let (x, y) = (a.value(&sizes), b.value(&sizes));
        let (p, q) = (a.dim(), b.dim());
        match p.same(&q) {
            Tri::Yes => prop_assert_eq!(x, y),
            Tri::No => prop_assert_ne!(x, y, "{} and {}", p, q),
            Tri::Unknown => {}
        }
        match p.le(&q) {
            Tri::Yes => prop_assert!(x <= y, "{} and {}", p, q),
            Tri::No => prop_assert!(x > y, "{} and {}", p, q),
            Tri::Unknown => {}
        }
        if let Some(exact) = p.div_exact(&q)
            && let (true, Ok(n)) = (y != 0, exact.eval(&binding(&sizes)))
        {
            prop_assert_eq!(n as i128 * y, x, "{} / {} = {}", p, q, exact);
        }
    }
}
