//! The text form, `.kir`: printing.
//!
//! ```text
//! kir 1
//! const @w : f32[4, 4] = splat 0.5
//! func @f(%x: f32[batch, 4]) -> (%y) {
//!   %0 = global {name = "w"} : f32[4, 4]
//!   %1 = matmul %x, %0 : f32[batch, 4]
//!   return %1 as y
//! }
//! ```

use crate::graph::{Graph, NodeId, PortKind, RegionId, Relation, Value};
use crate::module::{ConstSource, GlobalKind, Module};
use crate::op::{Attr, Attrs};
use crate::tensor::computes_in_integers;
use crate::{DType, Tensor};
use std::fmt::Write;

/// Version of the text form.
pub const KIR_VERSION: u32 = 1;

/// What to print.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrintOptions {
    /// Where each node stems from.
    pub origins: bool,
}

/// Literals beyond this many elements print their type and a digest only, and do
/// not parse back: globals are written beside the text instead.
const INLINE_LIMIT: usize = 4096;

/// The text of a module.
pub fn print_module(module: &Module, options: &PrintOptions) -> String {
    let mut out = format!("kir {KIR_VERSION}\n");
    for (name, global) in &module.globals {
        let (kind, source, tail) = match &global.kind {
            GlobalKind::Const(s) => ("const", s, String::new()),
            GlobalKind::State { init, checkpoint } => {
                let tail = checkpoint
                    .as_ref()
                    .map(|c| format!(" checkpoint {}", quote(c)))
                    .unwrap_or_default();
                ("state", init, tail)
            }
        };
        let _ = writeln!(
            out,
            "{kind} @{} : {} = {}{tail}",
            symbol(name),
            global.ty,
            source_text(source)
        );
    }
    for f in &module.functions {
        out.push_str(&print_graph(f, options));
    }
    out
}

fn source_text(source: &ConstSource) -> String {
    match source {
        ConstSource::Splat(v) => format!("splat {}", float(*v)),
        ConstSource::Tensor(t) => tensor(t),
        ConstSource::Expr { op, args } => {
            let args: Vec<String> = args.iter().map(|a| format!("@{}", symbol(a))).collect();
            format!(
                "expr {} {}{}",
                op.def().mnemonic(),
                args.join(", "),
                attrs_text(&op.def().attrs())
            )
        }
    }
}

/// The text of one function.
pub fn print_graph(graph: &Graph, options: &PrintOptions) -> String {
    let mut out = String::new();
    let _ = write!(out, "func @{}(", symbol(&graph.name));
    for (i, (port, &v)) in graph.params.iter().zip(&graph.body().params).enumerate() {
        let tie = match &port.kind {
            PortKind::Caller => String::new(),
            PortKind::State(s) => format!(" = state @{}", symbol(s)),
        };
        let comma = if i > 0 { ", " } else { "" };
        let _ = write!(
            out,
            "{comma}{v} {}: {}{tie}",
            quote(&port.name),
            graph.ty(v)
        );
    }
    out.push_str(") {\n");
    for g in &graph.guards {
        let how = if g.relation == Relation::Eq {
            "=="
        } else {
            "<="
        };
        let _ = writeln!(
            out,
            "  guard <{}> {how} <{}> {}",
            g.left,
            g.right,
            quote(&g.because)
        );
    }
    region_text(graph, Graph::BODY, 1, options, &mut out);
    let results: Vec<String> = graph
        .results
        .iter()
        .zip(&graph.body().results)
        .map(|(port, v)| match &port.kind {
            PortKind::Caller => format!("{v} {}", quote(&port.name)),
            PortKind::State(s) => format!("{v} {} = state @{}", quote(&port.name), symbol(s)),
        })
        .collect();
    let _ = writeln!(out, "  return {}\n}}", results.join(", "));
    out
}

fn region_text(
    graph: &Graph,
    region: RegionId,
    depth: usize,
    options: &PrintOptions,
    out: &mut String,
) {
    for &n in &graph.region(region).nodes {
        node_text(graph, n, depth, options, out);
    }
}

fn node_text(graph: &Graph, n: NodeId, depth: usize, options: &PrintOptions, out: &mut String) {
    let pad = "  ".repeat(depth);
    let node = graph.node(n);
    out.push_str(&pad);
    if !node.results.is_empty() {
        let names: Vec<String> = node.results.iter().map(Value::to_string).collect();
        let _ = write!(out, "{} = ", names.join(", "));
    }
    out.push_str(node.op.def().mnemonic());
    let args: Vec<String> = node.args.iter().map(Value::to_string).collect();
    if !args.is_empty() {
        let _ = write!(out, " {}", args.join(", "));
    }
    out.push_str(&attrs_text(&node.op.def().attrs()));
    for &r in &node.regions {
        let region = graph.region(r);
        let params: Vec<String> = region
            .params
            .iter()
            .map(|&v| format!("{v}: {}", graph.ty(v)))
            .collect();
        let _ = writeln!(out, " ({}) {{", params.join(", "));
        region_text(graph, r, depth + 1, options, out);
        let results: Vec<String> = region.results.iter().map(Value::to_string).collect();
        let _ = write!(out, "{pad}  yield {}\n{pad}}}", results.join(", "));
    }
    if !node.results.is_empty() {
        let types: Vec<String> = node
            .results
            .iter()
            .map(|&v| {
                let shard = graph
                    .value(v)
                    .shard
                    .as_ref()
                    .map(|s| format!(" shard {s}"))
                    .unwrap_or_default();
                format!("{}{shard}", graph.ty(v))
            })
            .collect();
        let _ = write!(out, " : {}", types.join(", "));
    }
    if options.origins && !node.origins.is_empty() {
        let places: Vec<String> = node
            .origins
            .iter()
            .map(|o| format!("{}:{}", quote(&o.file), quote(&o.node)))
            .collect();
        let _ = write!(out, " loc({})", places.join(", "));
    }
    out.push('\n');
}

/// Attributes in braces; nothing for none.
pub fn attrs_text(attrs: &Attrs) -> String {
    if attrs.0.is_empty() {
        return String::new();
    }
    let list: Vec<String> = attrs
        .0
        .iter()
        .map(|(n, a)| format!("{n} = {}", attr_text(a)))
        .collect();
    format!(" {{{}}}", list.join(", "))
}

fn attr_text(a: &Attr) -> String {
    match a {
        Attr::Bool(b) => b.to_string(),
        Attr::Int(i) => i.to_string(),
        Attr::Float(f) => float(*f),
        Attr::Name(n) => n.clone(),
        Attr::Str(s) => quote(s),
        Attr::Dim(d) => format!("<{d}>"),
        Attr::Dims(ds) => {
            let list: Vec<String> = ds
                .iter()
                .map(|d| {
                    d.as_const()
                        .map_or_else(|| format!("<{d}>"), |c| c.to_string())
                })
                .collect();
            format!("[{}]", list.join(", "))
        }
        Attr::Tensor(t) => tensor(t),
    }
}

/// A number that parses back to the same bits and is never taken for an integer.
fn float(v: f64) -> String {
    match v {
        v if v.is_nan() => "nan".into(),
        v if v.is_infinite() => if v > 0.0 { "inf" } else { "-inf" }.into(),
        v => format!("{v:?}"),
    }
}

fn tensor(t: &Tensor) -> String {
    let n = t.len();
    if n > INLINE_LIMIT {
        let digest = t.bytes().iter().fold(0xcbf29ce484222325u64, |h, &b| {
            (h ^ b as u64).wrapping_mul(0x100000001b3)
        });
        return format!("{} omitted {digest:016x}", t.ty());
    }
    let items: Vec<String> = match t.dtype() {
        DType::Str => t.as_strings().iter().map(|s| quote(s)).collect(),
        d if computes_in_integers(d) => (0..n).map(|i| t.get_i64(i).to_string()).collect(),
        _ => (0..n).map(|i| float(t.get_f64(i))).collect(),
    };
    format!("{} ({})", t.ty(), items.join(", "))
}

/// A name as it stands after `@`: quoted where it is not plain.
fn symbol(name: &str) -> String {
    let plain = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-$".contains(c));
    if plain { name.to_string() } else { quote(name) }
}

fn quote(s: &str) -> String {
    format!(
        "\"{}\"",
        s.replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    )
}
