//! What a test file asks for.

use super::{Failure, failed};
use crate::Tensor;
use crate::parse::parse_literal;
use crate::print::literal_text;
use std::collections::BTreeMap;

/// The directives of one file.
pub(super) struct Directives {
    /// `passes`, `verify`, …
    pub mode: String,
    /// What follows the mode's `=`.
    pub value: String,
    /// Relative tolerance; 0: the same bits.
    pub tol: f64,
    /// Sizes that the file binds.
    pub dims: BTreeMap<String, usize>,
    /// Bounds of integer inputs, both included.
    pub ints: (i64, i64),
    /// Errors by line.
    pub errors: Vec<(usize, String)>,
    pub runs: Vec<Run>,
    /// Texts to find (true) or not to find, in order.
    checks: Vec<(bool, String)>,
    /// The whole printed text, if the file has it.
    output: Option<String>,
}

/// One `// run:` or `// fails:`.
pub(super) struct Run {
    pub line: usize,
    pub function: String,
    pub args: Vec<Tensor>,
    pub results: Vec<Tensor>,
    /// The message it fails with.
    pub fails: Option<String>,
}

impl Default for Directives {
    fn default() -> Directives {
        Directives {
            mode: String::new(),
            value: String::new(),
            tol: 1e-5,
            dims: BTreeMap::new(),
            ints: (0, 2),
            errors: vec![],
            runs: vec![],
            checks: vec![],
            output: None,
        }
    }
}

impl Directives {
    pub(super) fn of(text: &str) -> Result<Directives, Failure> {
        let mut out = Directives::default();
        for (i, line) in text.lines().enumerate() {
            let at = |e: String| Failure::Failed(format!("line {}: {e}", i + 1));
            let mut errors = line.split("// error: ").skip(1).peekable();
            if errors.peek().is_some() {
                out.errors
                    .extend(errors.map(|e| (i + 1, e.trim().to_string())));
                continue;
            }
            let Some(comment) = line.trim_start().strip_prefix("//") else {
                continue;
            };
            if let Some(printed) = comment.strip_prefix('|') {
                let whole = out.output.get_or_insert_default();
                whole.push_str(printed.strip_prefix(' ').unwrap_or(printed));
                whole.push('\n');
            } else if let Some(options) = comment.trim().strip_prefix("test:") {
                out.options(options).map_err(at)?;
            } else if let Some(text) = comment.trim().strip_prefix("check:") {
                out.checks.push((true, text.trim().to_string()));
            } else if let Some(text) = comment.trim().strip_prefix("check-not:") {
                out.checks.push((false, text.trim().to_string()));
            } else if let Some(run) = comment.trim().strip_prefix("run:") {
                out.runs.push(Run::of(i + 1, run, false).map_err(at)?);
            } else if let Some(run) = comment.trim().strip_prefix("fails:") {
                out.runs.push(Run::of(i + 1, run, true).map_err(at)?);
            }
        }
        if out.mode.is_empty() {
            return failed("the file has no `// test:` line");
        }
        Ok(out)
    }

    fn options(&mut self, options: &str) -> Result<(), String> {
        for option in options.split_whitespace() {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let bad = || format!("`{option}` is not understood");
            match key {
                "tol" => self.tol = value.parse().map_err(|_| bad())?,
                "ints" => {
                    let (lo, hi) = value.split_once("..").ok_or_else(bad)?;
                    self.ints = match (lo.parse(), hi.parse()) {
                        (Ok(lo), Ok(hi)) if lo <= hi => (lo, hi),
                        _ => return Err(bad()),
                    };
                }
                "dims" => {
                    for pair in value.split(',') {
                        let (name, n) = pair.split_once(':').ok_or_else(bad)?;
                        let n = n.parse().map_err(|_| bad())?;
                        self.dims.insert(name.to_string(), n);
                    }
                }
                "roundtrip" | "verify" | "interp" | "passes" | "run" if self.mode.is_empty() => {
                    (self.mode, self.value) = (key.to_string(), value.to_string());
                }
                _ => return Err(bad()),
            }
        }
        Ok(())
    }

    /// Whether the printed text is as the file says.
    pub(super) fn check(&self, printed: &str) -> Result<(), Failure> {
        let mut at = 0;
        for (i, (wanted, text)) in self.checks.iter().enumerate() {
            let found = printed[at..].find(text.as_str());
            if *wanted {
                let Some(found) = found else {
                    return failed(format!("check: `{text}` is not found in\n{printed}"));
                };
                at += found + text.len();
                continue;
            }
            let next = self.checks[i..].iter().find(|(wanted, _)| *wanted);
            let end = next.and_then(|(_, next)| printed[at..].find(next.as_str()));
            if found.is_some_and(|f| end.is_none_or(|end| f < end)) {
                return failed(format!("check-not: `{text}` is found in\n{printed}"));
            }
        }
        match &self.output {
            Some(want) if want != printed => failed(format!(
                "prints another text than its `//|` lines:\n{printed}"
            )),
            _ => Ok(()),
        }
    }

    /// The file's text with this output, where it has an output or no checks.
    pub(super) fn with_output(&self, text: &str, printed: &str) -> String {
        if self.output.is_none() && !self.checks.is_empty() {
            return text.to_string();
        }
        let mut lines: Vec<String> = text
            .lines()
            .filter(|l| !l.trim_start().starts_with("//|"))
            .map(str::to_string)
            .collect();
        lines.extend(printed.lines().map(|l| format!("//| {l}")));
        join(&lines)
    }
}

pub(super) fn join(lines: &[String]) -> String {
    lines.iter().map(|l| format!("{l}\n")).collect()
}

impl Run {
    /// `@f(literal, …) == literal, …`, or `@f(literal, …) message`.
    fn of(line: usize, text: &str, fails: bool) -> Result<Run, String> {
        let shape = || "expected `@name(arguments) == results`".to_string();
        let (function, rest) = text
            .trim()
            .strip_prefix('@')
            .and_then(|t| t.split_once('('))
            .ok_or_else(shape)?;
        let (args, rest) = literals(rest)?;
        let rest = rest.strip_prefix(')').ok_or_else(shape)?.trim();
        let mut run = Run {
            line,
            function: function.to_string(),
            args,
            results: vec![],
            fails: None,
        };
        if fails {
            run.fails = Some(rest.to_string());
        } else if !rest.is_empty() {
            let (results, rest) = literals(rest.strip_prefix("==").ok_or_else(shape)?)?;
            if !rest.is_empty() {
                return Err(format!("`{rest}` follows the results"));
            }
            run.results = results;
        }
        Ok(run)
    }

    /// The line with these results.
    pub(super) fn blessed(&self, results: &[Tensor]) -> String {
        let list = |ts: &[Tensor]| ts.iter().map(literal_text).collect::<Vec<_>>().join(", ");
        let (args, results) = (list(&self.args), list(results));
        format!("// run: @{}({args}) == {results}", self.function)
    }
}

fn literals(text: &str) -> Result<(Vec<Tensor>, &str), String> {
    let (mut out, mut rest) = (vec![], text.trim());
    while !rest.is_empty() && !rest.starts_with(')') {
        let (t, after) = parse_literal(rest).map_err(|e| e.message)?;
        out.push(t);
        rest = after.trim();
        match rest.strip_prefix(',') {
            Some(after) => rest = after.trim(),
            None => break,
        }
    }
    Ok((out, rest))
}
