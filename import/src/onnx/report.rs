//! Everything that is wrong with a model, grouped for reading.

use crate::diagnostic::{Diagnostic, Severity};
use std::collections::BTreeMap;
use std::fmt;

/// Node names shown for one gap.
const SHOWN: usize = 5;

/// One thing that is not supported, with all nodes that need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The diagnostics' code.
    pub code: &'static str,
    /// The operator; empty where the gap is not a node's.
    pub op: String,
    /// Its opset version.
    pub opset: i64,
    /// The first nodes' names.
    pub nodes: Vec<String>,
    /// How many nodes there are.
    pub count: usize,
    /// What is missing or wrong.
    pub reason: String,
    /// What to do.
    pub suggestion: String,
}

/// What [`crate::check_onnx`] found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What keeps the model from being imported; empty if nothing does.
    pub gaps: Vec<Gap>,
    /// What its author should know.
    pub warnings: Vec<Diagnostic>,
}

impl Report {
    /// Whether the model imports.
    pub fn ok(&self) -> bool {
        self.gaps.is_empty()
    }
}

/// Groups diagnostics by what they say.
pub(crate) fn report(diagnostics: Vec<Diagnostic>) -> Report {
    let (errors, warnings): (Vec<_>, Vec<_>) = diagnostics
        .into_iter()
        .partition(|d| d.severity == Severity::Error);
    let mut groups: BTreeMap<(&str, String, i64, String), Gap> = BTreeMap::new();
    for d in errors {
        let key = (d.code, d.place.op.clone(), d.place.opset, d.message.clone());
        let gap = groups.entry(key).or_insert_with(|| Gap {
            code: d.code,
            op: d.place.op,
            opset: d.place.opset,
            nodes: vec![],
            count: 0,
            reason: d.message,
            suggestion: d.help,
        });
        gap.count += 1;
        if gap.nodes.len() < SHOWN {
            gap.nodes.push(d.place.node);
        }
    }
    let mut gaps: Vec<Gap> = groups.into_values().collect();
    gaps.sort_by_key(|gap| std::cmp::Reverse(gap.count));
    Report { gaps, warnings }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if !self.op.is_empty() {
            write!(f, " {} (opset {})", self.op, self.opset)?;
        }
        write!(f, ": {}", self.reason)?;
        let named: Vec<String> = self
            .nodes
            .iter()
            .filter(|n| !n.is_empty())
            .map(|n| format!("`{n}`"))
            .collect();
        if !named.is_empty() {
            let more = self.count.saturating_sub(named.len());
            write!(f, "\n  in {} node(s): {}", self.count, named.join(", "))?;
            if more > 0 {
                write!(f, " and {more} more")?;
            }
        }
        if !self.suggestion.is_empty() {
            write!(f, "\n  help: {}", self.suggestion)?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for gap in &self.gaps {
            writeln!(f, "{gap}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "{warning}")?;
        }
        Ok(())
    }
}
