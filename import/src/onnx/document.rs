//! What is supported of ONNX, for people: `docs/onnx-operators.md`.

use super::table::{self, How, Row};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Written by `scripts/onnx_operators.py`.
const OPERATORS: &str = include_str!("../../data/onnx-operators.tsv");

/// One line of the list of operators.
struct Defined<'a> {
    domain: &'a str,
    op: &'a str,
    versions: Vec<&'a str>,
    /// Those of which a test passes.
    tested: Vec<&'a str>,
    /// Element types of the first argument.
    types: Vec<&'a str>,
    /// Those with which a test's model compiles; empty where none is of the kind
    /// that is tried.
    compiled: Vec<&'a str>,
}

/// The domains in the order of the page, with what they are called in models.
const DOMAINS: [(&str, &str); 5] = [
    ("", "ai.onnx"),
    ("ai.onnx.ml", "ai.onnx.ml"),
    ("ai.onnx.preview", "ai.onnx.preview"),
    ("ai.onnx.preview.training", "ai.onnx.preview.training"),
    ("com.microsoft", "com.microsoft"),
];

const HEAD: &str = "\
# ONNX operators

Made from the importer's table (`import/src/onnx/table.rs`) and
`import/data/onnx-operators.tsv`; `KILN_BLESS=1 cargo test -p kiln-import --test onnx
document` writes it anew. Models of opset 7 to 28 are read; a newer opset gives a
warning. An operator that is not listed as supported converts where the model has a
function body for it.

- **Versions** are those of the operator's definition that such a model can have, by
  the opset that brought them. All convert, but for what the limits say; in
  parentheses those of which neither ONNX's node tests nor Kiln's have a case.
- **Types** are the element types of the first argument (of the first result where
  there is none) with which a test's model compiles; after \"not\" those of the
  definition with which it does not. In parentheses: the definition's, where no test
  model was tried with each.
- **Done**: in compiled code; folded (while importing: what is left are at most
  copies and views); or by the runtime, around compiled code.
- Complex numbers are not computed with. A value has at most 32 axes.
- What must be known while importing and is not gives the error K0112, which says what
  to do: `--dim NAME=N` fixes a size, `--freeze NAME=FILE.npy` what an input holds.

## Sequences and optionals

Compiled code has tensors alone: how many elements a sequence has and whether an
optional has a value must be known while importing, or follow from a loop that appends
one tensor of one shape a step. An input or output `s` that is a sequence of n tensors
is the ports `s.0` to `s.(n-1)`, each with a shape and named sizes (`s_0_dim1`) of its
own. `--dim s=3` gives an input's number of elements, `--dim s=-1` says that an optional
input has no value, `--dim s=1` that an optional tensor has one, `--shape s.0=a,3` gives a
shape that the model does not declare. An optional is the ports of what it holds, or
none.
";

/// The page, as `docs/onnx-operators.md` has it.
pub fn operators_markdown() -> String {
    let mut defined: Vec<Defined> = OPERATORS.lines().filter_map(parse).collect();
    defined.sort_by_key(|d| d.op);
    let mut out = HEAD.to_string();
    for (domain, shown) in DOMAINS {
        let mut rows: Vec<&Row> = table::rows().filter(|r| r.domain == domain).collect();
        rows.sort_by_key(|r| r.op);
        let all = defined.iter().filter(|d| d.domain == domain);
        let all: BTreeMap<&str, &Defined> = all.map(|d| (d.op, d)).collect();
        let missing: Vec<&str> = all
            .keys()
            .filter(|op| table::find(domain, op).is_none())
            .copied()
            .collect();
        let of = rows.len() + missing.len();
        let _ = write!(
            out,
            "\n## {shown}\n\n{} of {of} operators are supported.\n\n",
            rows.len()
        );
        out += "| operator | versions | types | done | limits |\n|---|---|---|---|---|\n";
        for row in rows {
            out += &line(row, all.get(row.op).copied());
        }
        out += &not_supported(domain, &missing);
    }
    out
}

fn parse(line: &str) -> Option<Defined<'_>> {
    let mut columns = line.split('\t');
    let domain = columns.next().filter(|d| !d.starts_with('#'))?;
    let op = columns.next()?;
    let mut list = || {
        let all = columns.next().unwrap_or("").split(',');
        all.filter(|s| !s.is_empty()).collect::<Vec<&str>>()
    };
    Some(Defined {
        domain: super::scope::domain(domain),
        op,
        versions: list(),
        tested: list(),
        types: list(),
        compiled: list(),
    })
}

fn line(row: &Row, defined: Option<&Defined>) -> String {
    let (versions, types) = match defined {
        Some(d) => (versions(d), types(d)),
        None => ("1".to_string(), String::new()),
    };
    let how = match row.how {
        How::Compiled => "compiled",
        How::Folded => "folded",
        How::Control => "runtime",
    };
    let limits = row.limits.join("; ");
    format!("| {} | {versions} | {types} | {how} | {limits} |\n", row.op)
}

fn versions(d: &Defined) -> String {
    let shown = d.versions.iter().map(|v| match d.tested.contains(v) {
        true => v.to_string(),
        false => format!("({v})"),
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn types(d: &Defined) -> String {
    if d.compiled.is_empty() {
        return match short(&d.types) {
            all if all.is_empty() => all,
            all => format!("({all})"),
        };
    }
    let not: Vec<&str> = d
        .types
        .iter()
        .filter(|t| !d.compiled.contains(t))
        .copied()
        .collect();
    match not.is_empty() {
        true => short(&d.compiled),
        false => format!("{}; not {}", short(&d.compiled), short(&not)),
    }
}

/// Types with those of one letter and all usual widths as a range.
fn short(types: &[&str]) -> String {
    let mut left: BTreeSet<&str> = types.iter().copied().collect();
    let mut out: Vec<String> = vec![];
    for letter in ["i", "u"] {
        let widths = ["8", "16", "32", "64"].map(|w| format!("{letter}{w}"));
        if widths.iter().all(|w| left.contains(&**w)) {
            left.retain(|t| !widths.iter().any(|w| w == t));
            out.push(format!("{letter}8–{letter}64"));
        }
    }
    let rest = types.iter().filter(|t| left.contains(*t));
    let rest = rest.map(|t| t.to_string());
    rest.chain(out).collect::<Vec<_>>().join(" ")
}

/// Operators by what `kiln check` says to do about them.
fn not_supported(domain: &str, ops: &[&str]) -> String {
    let mut remedies: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for &op in ops {
        let remedy = table::suggestion(domain);
        remedies.entry(remedy).or_default().push(op);
    }
    if remedies.is_empty() {
        return String::new();
    }
    let mut out = "\nNot supported (K0110), with what `kiln check` says to do:\n\n".to_string();
    for (remedy, ops) in remedies {
        let _ = writeln!(out, "- {}: {remedy}.", ops.join(", "));
    }
    out
}
