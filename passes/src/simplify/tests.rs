//! Every rule against the interpreter, and the limits.

use super::language::Terms;
use super::rules::{RULES, Rule};
use super::*;
use crate::Options;
use kiln_ir::filetest::same_meaning;
use kiln_ir::parse::{NoFiles, parse_module};
use kiln_ir::print::{PrintOptions, print_module};
use kiln_ir::{Builder, Module};

fn module(body: &str) -> Module {
    let text = format!("kir 1\nfunc @f{body}\n");
    parse_module(&text, &NoFiles).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The module with its result computed by one term of the result's class; none
/// where that term does not stand alone.
fn with_term(module: &Module, op: &Op, args: &[egg::Id], terms: &Terms) -> Option<Module> {
    let mut out = module.clone();
    let globals = out.globals.clone();
    let graph = &mut out.functions[0];
    let root = graph.body().results[0];
    let (n, _) = graph.producer(root)?;
    let choice = extract::cheapest(terms);
    let mut b = Builder::before(graph, &globals, n);
    let args: Vec<Value> = args
        .iter()
        .map(|&a| choice.build_one(&mut b, terms, a))
        .collect::<Result<_, _>>()
        .unwrap();
    let y = b.one(op.clone(), &args).unwrap();
    graph.region_mut(Graph::BODY).results[0] = y;
    Some(out)
}

fn check(rule: &Rule, body: &str) {
    let module = module(body);
    let graph = &module.functions[0];
    let window: Vec<NodeId> = (graph.nodes_in_order().into_iter())
        .filter(|&n| is_term(graph, n))
        .collect();
    let (mut terms, _) = Terms::of(graph, &module.globals, &window);
    let fired = saturate(&mut terms, &[rule]);
    assert!(fired, "{} does not apply to\n{body}", rule.name);
    let root = terms.class_of(graph.body().results[0]).unwrap();
    let tol = if rule.exact { 0.0 } else { 1e-5 };
    let mut compared = 0;
    let all: Vec<(Op, Vec<egg::Id>)> = (terms.terms(root))
        .map(|(op, args)| (op.clone(), args.to_vec()))
        .collect();
    for (op, args) in all {
        // A term that contains its own class stands for infinitely many.
        if args.iter().any(|&a| terms.find(a) == root) {
            continue;
        }
        let Some(other) = with_term(&module, &op, &args, &terms) else {
            continue;
        };
        same_meaning(&module, &other, tol).unwrap_or_else(|e| {
            let text = print_module(&other, &PrintOptions::default());
            panic!("{}: {e}\n{text}", rule.name)
        });
        compared += 1;
    }
    let leaves = terms.leaves(root).count();
    assert!(compared + leaves > 1, "{}: nothing to compare", rule.name);
}

#[test]
fn every_rule_holds_on_its_examples() {
    for rule in RULES {
        for body in rule.examples {
            check(rule, body);
        }
    }
}

fn simplified(module: &Module, exact: bool) -> Module {
    let mut out = module.clone();
    let options = Options {
        exact,
        ..Options::default()
    };
    let mut cx = PassCx {
        globals: &mut out.globals,
        options: &options,
        functions: &[],
    };
    simplify(&mut cx, &mut out.functions[0]).unwrap();
    out
}

#[test]
fn rounding_rules_are_off_where_bits_must_not_change() {
    for rule in RULES.iter().filter(|r| !r.exact) {
        for body in rule.examples {
            let module = module(body);
            let after = simplified(&module, true);
            same_meaning(&module, &after, 0.0).unwrap();
        }
    }
}

#[test]
fn the_same_input_gives_the_same_output() {
    for seed in 0..20 {
        let module = kiln_ir::filetest::random_module(seed, 60);
        let text = |m: &Module| print_module(m, &PrintOptions::default());
        let first = text(&simplified(&module, false));
        for _ in 0..3 {
            assert_eq!(text(&simplified(&module, false)), first, "seed {seed}");
        }
    }
}

#[test]
fn random_modules_keep_their_meaning() {
    for seed in 0..150 {
        let module = kiln_ir::filetest::random_module(seed, 30);
        for (exact, tol) in [(true, 0.0), (false, 1e-5)] {
            let after = simplified(&module, exact);
            let errors = kiln_ir::verify::verify_module(&after);
            assert!(
                errors.is_empty(),
                "seed {seed}: {:?}",
                errors.first().map(|e| e.to_string())
            );
            same_meaning(&module, &after, tol).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
    }
}
