//! The check of the text form: what parses prints and parses again, what verifies
//! runs and means the same after the exact passes.

use kiln_ir::interp::{Interpreter, State};
use kiln_ir::parse::{NoFiles, parse_module};
use kiln_ir::print::{PrintOptions, print_module};
use kiln_ir::verify::verify_module;
use kiln_ir::{Binding, DType, GlobalKind, Graph, Module, Op, PortKind, Tensor, TensorType};
use kiln_passes::{Manager, Options, pipeline};

/// Modules beyond these are not run.
const NODES: usize = 60;
const ELEMENTS: i64 = 512;
const CALLS: usize = 4;

/// Passes that may not change a bit of a result.
const EXACT: [&str; 6] = [
    "canonicalize",
    "fold-constants",
    "share-common",
    "eliminate-dead",
    "simplify",
    "decompose",
];

/// Checks everything that must hold of a text, whatever it is. Whether a function
/// of it was run, before and after the passes.
pub fn check(text: &str) -> bool {
    let module = match parse_module(text, &NoFiles) {
        Ok(module) => module,
        Err(e) => {
            let shown = e.to_string();
            assert!(shown.starts_with("K0201: "), "no code: {shown}");
            assert!(e.line > 0 && e.column > 0 && !e.message.is_empty(), "{e:?}");
            return false;
        }
    };
    let errors = verify_module(&module);
    let shown = printed(&module);
    if let Some(first) = errors.first() {
        assert!(first.to_string().starts_with("K0301: "), "no code: {first}");
        return false;
    }
    // Constants beyond what people read are left out of a text.
    if !shown.contains("omitted") {
        let again = parse_module(&shown, &NoFiles)
            .unwrap_or_else(|e| panic!("does not read back: {e}\n{shown}"));
        assert_eq!(printed(&again), shown, "prints another text when read back");
        if let Some(e) = verify_module(&again).first() {
            panic!("does not verify when read back: {e}\n{shown}");
        }
    }
    is_small(&module) && keeps_its_meaning(&module, &shown)
}

fn printed(module: &Module) -> String {
    let options = PrintOptions {
        origins: true,
        ids: false,
    };
    print_module(module, &options)
}

/// Runs the functions before and after the passes. Whether any ran.
fn keeps_its_meaning(module: &Module, shown: &str) -> bool {
    let runs: Vec<(String, Vec<Tensor>, Outcome)> = module
        .functions
        .iter()
        .flat_map(|f| (0..2).map(move |round| (f, round)))
        .filter_map(|(f, round)| {
            let inputs = inputs(f, round)?;
            let outcome = outcome(module, &f.name, &inputs)?;
            Some((f.name.to_string(), inputs, outcome))
        })
        .collect();
    let exact = Options {
        exact: true,
        ..Options::default()
    };
    for name in EXACT {
        let pass = pipeline::by_name(name).expect("the pass is there");
        let mut rewritten = module.clone();
        run_passes(&[pass], &mut rewritten, &exact, name, shown);
        for (function, inputs, want) in &runs {
            let have = outcome(&rewritten, function, inputs);
            assert!(
                have.as_ref().is_some_and(|h| same(h, want)),
                "{name} changes @{function} on {inputs:?}: {have:?} is not {want:?}\n{shown}\n{}",
                printed(&rewritten)
            );
        }
    }
    let mut compiled = module.clone();
    run_passes(
        pipeline::COMPILE,
        &mut compiled,
        &Options::default(),
        "compile",
        shown,
    );
    for (function, inputs, _) in &runs {
        assert!(
            outcome(&compiled, function, inputs).is_some(),
            "@{function} no longer runs on {inputs:?}\n{shown}\n{}",
            printed(&compiled)
        );
    }
    !runs.is_empty()
}

fn run_passes(
    passes: &[kiln_passes::Pass],
    module: &mut Module,
    options: &Options,
    name: &str,
    shown: &str,
) {
    let mut manager = Manager {
        verify: true,
        ..Manager::default()
    };
    if let Err(e) = manager.run(passes, module, options) {
        panic!("{name}: {e}\n{shown}");
    }
}

/// Results, and the state after.
type Outcome = (Vec<Tensor>, State);

/// None where it does not run: a guard fails, an index is out of range.
fn outcome(module: &Module, function: &str, inputs: &[Tensor]) -> Option<Outcome> {
    let mut interpreter = Interpreter::new(module).ok()?;
    match interpreter.run(function, inputs) {
        Ok(results) => Some((results, interpreter.state)),
        Err(e) => {
            assert!(!e.0.is_empty(), "an error says nothing");
            None
        }
    }
}

fn same(have: &Outcome, want: &Outcome) -> bool {
    let equal = |a: &Tensor, b: &Tensor| {
        let alike = a.dtype() == b.dtype() && a.shape() == b.shape();
        let number = |x: f64, y: f64| x == y || (x.is_nan() && y.is_nan());
        alike
            && (a == b
                || a.dtype() != DType::Str
                    && a.to_f64()
                        .iter()
                        .zip(b.to_f64())
                        .all(|(&x, y)| number(x, y)))
    };
    let results =
        have.0.len() == want.0.len() && have.0.iter().zip(&want.0).all(|(a, b)| equal(a, b));
    results
        && want
            .1
            .iter()
            .all(|(n, t)| have.1.get(n).is_some_and(|h| equal(h, t)))
}

/// Sizes of a round: the first symbol has another than the second.
fn binding(graph: &Graph, round: usize) -> Binding {
    let mut symbols = std::collections::BTreeSet::new();
    for &v in &graph.body().params {
        graph.shape(v).iter().for_each(|d| d.symbols(&mut symbols));
    }
    let size = |i: usize| [1, 3, 2][(round + i) % 3];
    let named = symbols.into_iter().enumerate();
    named.map(|(i, s)| (s, size(i))).collect()
}

fn inputs(graph: &Graph, round: usize) -> Option<Vec<Tensor>> {
    let binding = binding(graph, round);
    let ports = graph.params.iter().zip(&graph.body().params);
    let types = ports.filter(|(p, _)| p.kind == PortKind::Caller);
    types
        .map(|(_, &v)| {
            let ty = graph.ty(v);
            if ty.encoding.is_some() {
                return None;
            }
            let extent = |d: &kiln_ir::Dim| usize::try_from(d.eval(&binding).ok()?).ok();
            let shape: Vec<usize> = ty.shape.iter().map(extent).collect::<Option<_>>()?;
            let count: usize = shape.iter().product();
            // Small integers are indices and sizes; floats are of both signs.
            let element = |i: usize| match ty.dtype {
                DType::Bool => ((i + round) % 2) as f64,
                d if d.is_int() => ((i + round) % 3) as f64,
                _ => ((i * 7 + 3 * round) % 11) as f64 / 4.0 - 1.0,
            };
            if ty.dtype == DType::Str {
                let word = |i: usize| ["", "1", "a b", "É"][(i + round) % 4].to_string();
                return Tensor::strings(shape, (0..count).map(word).collect()).ok();
            }
            let elements: Vec<f64> = (0..count).map(element).collect();
            Tensor::from_f64(ty.dtype, shape, &elements).ok()
        })
        .collect()
}

/// Whether running a module takes little: few nodes, no loops, and every value
/// has a known and small size.
fn is_small(module: &Module) -> bool {
    let globals = module.globals.values().all(|g| {
        let source = match &g.kind {
            GlobalKind::Const(source) => source,
            GlobalKind::State { init, .. } => init,
        };
        let args = match source {
            kiln_ir::ConstSource::Expr { args, .. } => args.len(),
            _ => 0,
        };
        args < 4 && fits(&g.ty, &Binding::new())
    });
    let nodes: Vec<(&Graph, kiln_ir::NodeId)> = module
        .functions
        .iter()
        .flat_map(|f| f.nodes_in_order().into_iter().map(move |n| (f, n)))
        .collect();
    let loops = nodes
        .iter()
        .any(|(f, n)| matches!(f.node(*n).op, Op::Loop(_)));
    let calls = nodes
        .iter()
        .filter(|(f, n)| matches!(f.node(*n).op, Op::Call(_)));
    if !globals || loops || calls.count() > CALLS || nodes.len() > NODES {
        return false;
    }
    module.functions.iter().all(|f| {
        (0..2).all(|round| {
            let binding = binding(f, round);
            let values = (0..f.value_count() as u32).map(kiln_ir::Value);
            values.into_iter().all(|v| fits(f.ty(v), &binding))
        })
    })
}

fn fits(ty: &TensorType, binding: &Binding) -> bool {
    let mut sizes = ty.shape.iter().map(|d| d.eval(binding).ok());
    let elements = sizes.try_fold(1i64, |n, d| n.checked_mul(d?));
    ty.rank() <= 8 && elements.is_some_and(|n| (0..=ELEMENTS).contains(&n))
}
