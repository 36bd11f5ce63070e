//! Guards on sizes that data decides, at the steps that give these sizes values.

use kiln_runtime::plan::{Guard, Step};
use std::collections::BTreeSet;
use std::sync::Arc;

type Symbols = BTreeSet<Arc<str>>;

/// Puts a check behind every step that gives a size a value, of the guards that hang on
/// it and on what has a value there: `known` before the first step. Those on the
/// caller's sizes alone are checked before any step runs.
///
/// Sizes that branches and iterations name have a value as long as these last; those
/// that they hand on (`sizes`), also behind them.
pub(super) fn place(steps: &mut Vec<Step>, guards: &[Guard], known: &mut Symbols) {
    let late = |g: &&Guard| !symbols(g).is_subset(known);
    let late: Vec<&Guard> = guards.iter().filter(late).collect();
    if !late.is_empty() {
        inside(steps, &late, known);
    }
}

fn symbols(g: &Guard) -> Symbols {
    let mut symbols = Symbols::new();
    g.left.symbols(&mut symbols);
    g.right.symbols(&mut symbols);
    symbols
}

/// What is to be checked once the sizes `new` have values.
fn due(guards: &[&Guard], known: &Symbols, new: &Symbols) -> Option<Step> {
    let of = |g: &&&Guard| {
        let s = symbols(g);
        !s.is_disjoint(new) && s.iter().all(|s| known.contains(s) || new.contains(s))
    };
    let guards: Vec<Guard> = guards.iter().filter(of).map(|&g| g.clone()).collect();
    (!guards.is_empty()).then_some(Step::Check { guards })
}

fn names(sizes: &[(String, kiln_ir::Dim)]) -> impl Iterator<Item = Arc<str>> {
    sizes.iter().map(|(name, _)| name.as_str().into())
}

fn inside(steps: &mut Vec<Step>, guards: &[&Guard], known: &mut Symbols) {
    let all = std::mem::take(steps);
    for mut step in all {
        let mut new = Symbols::new();
        match &mut step {
            Step::BindDim { symbol, .. }
            | Step::NonZero { symbol, .. }
            | Step::SplitStrings { symbol, .. } => {
                new.insert(symbol.as_str().into());
            }
            Step::SetDims { sizes } => new.extend(names(sizes)),
            Step::If {
                then, otherwise, ..
            } => {
                let (mut a, mut b) = (known.clone(), known.clone());
                inside(then, guards, &mut a);
                inside(otherwise, guards, &mut b);
                // Checked in the branch that was taken.
                known.extend(a.intersection(&b).cloned());
            }
            Step::Loop(l) => {
                // What iterations carry was named before the first one, and is again
                // after each.
                let carried: Symbols = names(&l.sizes).collect();
                let before: Symbols = known.difference(&carried).cloned().collect();
                let mut within = known.clone();
                inside(&mut l.body, guards, &mut within);
                if let Some(check) = due(guards, &before, &carried) {
                    l.body.insert(0, check);
                }
                new = carried;
                new.extend(l.symbol.as_deref().map(Arc::from));
            }
            Step::Launch(_)
            | Step::WriteDims { .. }
            | Step::Copy { .. }
            | Step::Check { .. }
            | Step::Repack { .. }
            | Step::TopK { .. }
            | Step::Strings { .. } => {}
        }
        let check = due(guards, known, &new);
        known.extend(new);
        steps.push(step);
        steps.extend(check);
    }
}
